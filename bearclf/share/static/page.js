// The page: photos go to the opener, what it makes of them to the worker that has the model, answers become cards. Nothing is sent anywhere.
import { mount } from './upload.js'

const told = JSON.parse(document.querySelector('#told').textContent), { words, labels } = told
const find = (selector, within = document) => within.querySelector(selector)
const answers = find('.answers'), clear = find('button.clear'), waiting = new Map()
let hear, shown, broken = '', number = 0

told.cache = `bearclf ${new URL('.', document.baseURI).pathname}`  // as in sw.js
for (const file of [told.model, told.runtime]) for (const key of ['url', 'folder', 'wasm']) if (file[key]) file[key] = new URL(file[key], document.baseURI).href

// A worker that is made of text in the page has the page's content security policy, also where the host sends none: it can ask nobody but this host.
function started(name, hears) {
  const source = URL.createObjectURL(new Blob([`import ${JSON.stringify(new URL(name, import.meta.url).href)}`], { type: 'text/javascript' }))
  return Object.assign(new Worker(source, { type: 'module' }), { onmessage: ({ data }) => hears(data), onerror: event => fail(event.message || 'it could not be started') })
}

const percent = p => p >= .995 ? 'over 99 %' : p < .005 ? 'under 1 %' : `${(100 * p).toFixed(0)} %`

function sentence({ verdict, probs }) {
  const [first, second] = labels.map((_, i) => i).sort((a, b) => probs[b] - probs[a])
  if (verdict === 'out_of_domain') return words.out_of_domain
  return verdict === 'confident' ? `${words.articles[first]} ${labels[first]}, ${percent(probs[first])}` : `Not sure: ${labels[first]} or ${labels[second]}`
}

const filled = (text, facts) => text.replace(/\{(\w+)\}/g, (_, key) => facts[key])

function card(kind, mark, file, said) {
  const made = find('#card').content.firstElementChild.cloneNode(true)
  made.className = `card ${kind}`
  made.ariaLabel = find('.file', made).textContent = file
  find('.words', made).lastChild.textContent = said
  find('.mark', made).textContent = mark
  return made
}

function drawBars(list, probs) {
  const rows = [...list.children], order = labels.map((_, i) => i).sort((a, b) => probs[b] - probs[a])
  for (const [n, row] of rows.entries()) {
    const p = probs[order[n]]
    find('b', row).textContent = labels[order[n]]
    find('i', row).style.setProperty('--p', `${(100 * p).toFixed(1)}%`)
    find('span', row).textContent = percent(p)
  }
}

function answerCard(file, said, answer) {
  const { verdict, probs } = answer, top = Math.max(...probs), label = labels[probs.indexOf(top)], [mark, meaning] = words.verdicts[verdict]
  const made = card(verdict, mark, file, said), where = find('.where', made)
  Object.assign(made.dataset, { probs: JSON.stringify(probs), known: JSON.stringify(answer.known) })
  find('img', made).src = URL.createObjectURL(answer.picture)
  find('.meaning', made).textContent = verdict === 'confident' && top < .9 ? words.fairly : meaning
  drawBars(find('.bars', made), probs)
  if (!answer.hot) return where?.remove(), made
  find('img', where).alt = filled(find('img', where).alt, { label })
  find('p', where).textContent = filled(find('p', where).textContent, { label })
  return made
}

function refusal(file, said) {
  const made = card('no_photo', '!', file, said)
  for (const part of made.querySelectorAll('img, .meaning, .bars, .where')) part.remove()
  return made
}

function show(file, { answer, why, facts, error }) {
  if (error) console.warn(error)
  const said = answer ? sentence(answer) : why ? filled(words.no_photo[why], { ...facts, name: file }) : broken || words.sorry
  const made = answer ? answerCard(file, said, answer) : refusal(file, said)
  answers.append(made)
  clear.hidden = false
  hear({ kind: 'answered', words: answer ? `${file}: ${said}` : said })
  return made
}

function fail(why) {
  broken = filled(words.broken, { why })
  hear({ kind: 'loading', words: broken })
  for (const [id, file] of waiting) { waiting.delete(id); show(file, {}) }
}

function keepPage() {
  navigator.serviceWorker?.register('sw.js').catch(() => {})  // without it the page works as well, but not without a network
}

let step = 0
function progress(got) {
  const now = Math.floor(5 * got / told.bytes)
  if (now > step && performance.now() > 1500) hear({ kind: 'loading', words: filled(words.loading, { percent: Math.min(100, 20 * (step = now)), size: (told.bytes / 1e6).toFixed(0) }) })
}

function take(name, bytes, tooBig) {
  if (tooBig) return show(name, { why: 'big' })
  if (broken) return show(name, {})
  waiting.set(++number, name)
  opener.postMessage({ id: number, bytes, how: told.image }, [bytes])
}

const hears = {
  loading: ({ got }) => progress(got),
  ready: () => hear({ kind: 'loading', words: '' }),
  kept: keepPage,
  failed: ({ words }) => fail(words),
  answer: ({ id, ...said }) => { const file = waiting.get(id); if (waiting.delete(id)) shown = show(file, said) },
  where: ({ where }) => { if (shown?.isConnected) find('.where img', shown).src = URL.createObjectURL(where) },  // of the answer before
}

const worker = started('worker.js', data => hears[data.kind](data))
worker.postMessage({ told })
const opener = started('opener.js', photo => worker.postMessage(photo, photo.seen ? [photo.seen.data.buffer] : []))

const upload = mount(find('#upload'))
upload.connect({
  get: name => ({ side: 0, limit: told.limit })[name],
  on: (_, callback) => { hear = callback },
  send: ({ name, too_big }, _, [bytes]) => take(name, bytes, too_big),
})

clear.addEventListener('click', () => {
  for (const img of answers.querySelectorAll('img')) URL.revokeObjectURL(img.src)
  answers.replaceChildren()
  clear.hidden = true
  hear({ kind: 'cleared' })
})
