// The model, in a thread of its own so that the page never stands still. Told once what to load, then given what the opener made of photos; answers in their order.
import { scaled } from './photo.js'

let told, ort, session, asked = 0, got = 0, fresh = []

const tell = (kind, more = {}) => self.postMessage({ kind, ...more })

// The cache that the service worker reads, too; none where the browser offers none, as on a page without https.
const kept = () => self.caches?.open(told.cache).catch(() => undefined)

function counted(body) {
  return body.pipeThrough(new TransformStream({ transform(chunk, to) { got += chunk.length; tell('loading', { got }); to.enqueue(chunk) } }))
}

async function fetched(url) {
  const cache = await kept(), there = await cache?.match(url)
  if (there) return there.body
  const answer = await fetch(url)
  if (!answer.ok) throw Error(`${url} cannot be fetched (${answer.status})`)
  if (cache) fresh.push([url, answer.clone()])
  return counted(answer.body)
}

// Done last: who waits for an answer need not wait for the disk.
async function keep() {
  const cache = await kept()
  await Promise.all(fresh.splice(0).map(([url, answer]) => cache.put(url, answer))).catch(() => {})  // no room: then it is fetched again next time
  tell('kept')
}

const whole = async stream => new Uint8Array(await new Response(stream).arrayBuffer())

// Bytes that lie apart by kind (first all with an even place, then the odd ones, for `stride` 2) in their order again: so they pack better.
function woven(planes, stride) {
  const bytes = new Uint8Array(planes.length)
  for (let i = 0, at = 0; i < stride; i++) for (let to = i; to < bytes.length; to += stride) bytes[to] = planes[at++]
  return bytes
}

async function graph({ url, stride, sha256 }) {
  const planes = await whole((await fetched(url)).pipeThrough(new DecompressionStream('gzip'))), bytes = stride > 1 ? woven(planes, stride) : planes
  if (!self.crypto?.subtle) return bytes  // a page without https
  const digest = [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))].map(b => b.toString(16).padStart(2, '0')).join('')
  if (digest !== sha256) throw Error('the model is not the one that was deployed')
  return bytes
}

async function runtime({ folder, wasm }) {
  const packed = fetched(wasm).then(whole)
  const [{ decompress }, loaded] = await Promise.all([import(`${folder}fzstd.mjs`), import(`${folder}ort.wasm.min.mjs`)])
  ort = loaded
  Object.assign(ort.env.wasm, { wasmPaths: folder, wasmBinary: decompress(await packed), numThreads: self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1 })
  ort.env.logLevel = 'error'
}

async function run(pixels, [h, w] = told.image.size) {
  const out = await session.run({ image: new ort.Tensor('uint8', pixels, [1, h, w, 3]) })
  return Object.fromEntries(Object.entries(out).map(([name, { data, dims }]) => [name, { data, dims }]))
}

async function load() {
  const [bytes] = await Promise.all([graph(told.model), runtime(told.runtime)])
  session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'], graphOptimizationLevel: 'disabled' })  // the exported graph is lean already: looking for more takes longer than it saves
  const [h, w] = told.image.size
  if (!asked) await run(new Uint8Array(h * w * 3))  // the first answer takes longer than the others: not the visitor's, unless they wait for it already
}

export function verdict(top, known, thresholds) {
  if (known !== null && thresholds.known != null && known < thresholds.known) return 'out_of_domain'
  return top >= thresholds.sure ? 'confident' : 'unsure'
}

// How much more each place speaks for the label than for labels in general, from 0 to 180, as large as the photo.
function mask({ data, dims: [, h, w, labels] }, label, size) {
  const heat = Float32Array.from({ length: h * w }, (_, i) => {
    const here = data.subarray(i * labels, (i + 1) * labels)
    return here[label] - here.reduce((a, b) => a + b, 0) / labels
  })
  const low = Math.min(...heat), span = Math.max(Math.max(...heat) - low, 1e-9)
  return scaled({ width: w, height: h, bands: 1, data: Uint8Array.from(heat, v => 180 * (v - low) / span) }, size[1], size[0]).data
}

// What the graph saw, the redder the more it speaks for the label.
function where(seen, heat, label) {
  const red = mask(heat, label, [seen.height, seen.width]), picture = new ImageData(seen.width, seen.height), [r, g, b] = [255, 40, 0]
  for (let i = 0; i < red.length; i++) {
    for (const [band, colour] of [r, g, b].entries()) picture.data[4 * i + band] = Math.round((seen.data[3 * i + band] * (255 - red[i]) + colour * red[i]) / 255)
    picture.data[4 * i + 3] = 255
  }
  const canvas = new OffscreenCanvas(seen.width, seen.height)
  canvas.getContext('2d').putImageData(picture, 0, 0)
  return canvas.convertToBlob({ type: 'image/jpeg', quality: .8 })
}

// The answer, and what draws where it comes from, which can wait until the answer is shown.
async function answered(seen, loaded) {
  await loaded
  const out = await run(seen.data), probs = [...out.probs.data], top = Math.max(...probs), known = out.known ? out.known.data[0] : null
  if (!(Math.abs(probs.reduce((a, b) => a + b, 0) - 1) < .01)) throw Error('the graph gives no probabilities')
  const said = verdict(top, known, told.thresholds), hot = !!out.heatmap && said !== 'out_of_domain'
  return [{ verdict: said, probs, known, hot }, () => where(seen, out.heatmap, probs.indexOf(top))]
}

let loaded, queue = Promise.resolve()

function begin(message) {
  told = message.told
  loaded = load()
  loaded.then(() => { tell('ready'); queue = queue.then(keep) }, e => tell('failed', { words: e.message ?? String(e) }))
}

async function look({ id, seen, picture, ...refused }) {
  if (!seen) return tell('answer', { id, ...refused })
  try {
    const [answer, draw] = await answered(seen, loaded)
    tell('answer', { id, answer: { ...answer, picture } })
    if (answer.hot) tell('where', { where: await draw() })
  } catch (e) { tell('answer', { id, error: e.message ?? String(e) }) }
}

self.onmessage = ({ data }) => {
  if (data.told) return begin(data)
  asked += 1
  queue = queue.then(() => look(data))
}
