// Keeps the page, so that it opens again without a network, and lets its model use more than one core on hosts that send no such headers.
const KEPT = `bearclf $${new URL('.', location).pathname}`  // several pages may share a host
const FILES = $files  // their names change with what is in them
const address = name => new URL(name, location).href
const ours = new Set(FILES.map(address)), front = address('./')

async function keep() {
  const cache = await caches.open(KEPT)
  const missing = []
  for (const url of ours) if (!await cache.match(url)) missing.push(url)
  await cache.addAll([...missing, new Request(front, { cache: 'no-cache' })])
}

async function forget() {
  const cache = await caches.open(KEPT)
  for (const { url } of await cache.keys()) if (url !== front && !ours.has(url)) await cache.delete(url)
}

self.addEventListener('install', event => event.waitUntil(keep().then(() => self.skipWaiting())))
self.addEventListener('activate', event => event.waitUntil(forget().then(() => self.clients.claim())))

// With these headers browsers give a page memory that threads share.
function isolated(answer) {
  const headers = new Headers(answer.headers)
  headers.set('Cross-Origin-Opener-Policy', 'same-origin')
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp')
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers })
}

async function newest(request) {
  const cache = await caches.open(KEPT)
  try {
    const answer = await fetch(request.url, { cache: 'no-cache' })
    if (answer.ok) await cache.put(front, answer.clone())
    return answer
  } catch (e) {
    const there = await cache.match(front)
    if (there) return there
    throw e
  }
}

const held = async request => await (await caches.open(KEPT)).match(request.url) ?? fetch(request)

self.addEventListener('fetch', event => {
  const url = event.request.url.split(/[?#]/)[0]
  if (event.request.method !== 'GET') return
  if (url === front || url === `$${front}index.html`) event.respondWith(newest(event.request).then(isolated))
  else if (ours.has(url)) event.respondWith(held(event.request).then(isolated))
})
