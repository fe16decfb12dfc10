// Runs in the reviewer's browser. Shows one photo and asks what it is; what the model said of it arrives only after the reviewer has chosen.

const NONE = 'none of these', UNCLEAR = 'I cannot tell'
const EVERY = 10_000     // milliseconds between two looks for news
const PATIENCE = 15_000  // milliseconds until an answer of the kernel is given up
const LOST = 'No answer: the page has lost touch with its log. Reload the page; what you said before stays.'
const ORDERS = { waiting: 'who waits first', unsure: 'unsure answers first', audit: 'audit sample only' }

const make = (tag, props = {}, ...inner) => {
  const e = Object.assign(document.createElement(tag), props)
  e.append(...inner.filter(Boolean))
  return e
}
const named = label => label === null ? UNCLEAR : label || NONE

function render({ model, el }) {
  el.classList.add('bearclf-review')
  el.innerHTML = `
    <header><h1>What do you see?</h1><p class="help">Look for yourself first. What the model said is told after you have chosen.</p></header>
    <section class="names" hidden><h2>Who is there?</h2><p></p></section>
    <section class="desk" aria-label="Review" hidden>
      <div class="bar"><label>Order <select></select></label> <span class="count"></span> <span class="who"><span></span> <button type="button" class="plain other">Somebody else?</button></span></div>
      <p class="status" role="status"></p>
      <div class="work">
        <figure tabindex="-1" aria-label="The photo"></figure>
        <div class="side">
          <fieldset class="choices"><legend>It shows</legend></fieldset>
          <div class="heard" hidden></div>
          <p class="acts"><button type="button" class="next" aria-keyshortcuts="Enter"><kbd>Enter</kbd> Next</button> <button type="button" class="undo" aria-keyshortcuts="U Control+Z"><kbd>U</kbd> Undo</button></p>
        </div>
      </div>
    </section>
    <footer class="about"><label><input type="checkbox" checked> Answer with keys</label> <span>People lent these photos so that you can look at them, and for nothing else.</span></footer>`
  const find = name => el.querySelector(name)
  const names = model.get('names'), order = find('select'), status = find('.status'), figure = find('figure'), choices = find('.choices'), told = find('.heard'), next = find('.next'), undo = find('.undo')
  let who = names.length === 1 ? names[0] : null, id = null, step = 'empty', options = [], urls = [], patience, asked = false

  order.append(...Object.entries(ORDERS).map(([value, text]) => make('option', { value, textContent: text })))
  find('.other').hidden = names.length === 1
  document.title = 'Review'
  if (location.search) history.replaceState(null, '', location.pathname)  // the token is a cookie by now, and nobody should read it over a shoulder

  function show(now) {  // 'photo': it waits for a word; 'told': it has one; 'gone': it is no longer there; 'empty': nothing waits
    step = now
    find('.work').hidden = now === 'empty'
    figure.hidden = now === 'gone'
    choices.hidden = now !== 'photo'
    told.hidden = now !== 'told'
    next.hidden = now === 'photo' || now === 'empty'
    find('.desk').dataset.step = now
  }

  function wait(on) {
    clearTimeout(patience)
    asked = on
    for (const part of el.querySelectorAll('.choices button, .acts button')) part.disabled = on
    if (on) patience = setTimeout(() => { wait(false); say(LOST) }, PATIENCE)
  }

  function send(kind, more = {}) {
    if (asked) return
    wait(true)
    model.send({ kind, ...more })
  }

  function say(words) { if (status.textContent !== words) status.textContent = words }  // said again, it would be read out again
  function url(data) { urls.push(URL.createObjectURL(new Blob([data], { type: 'image/jpeg' }))); return urls.at(-1) }
  function begin() { asked ? setTimeout(begin, 100) : send('begin', { who, order: order.value }) }
  function count(n) { find('.count').textContent = n === 1 ? '1 photo to look at' : `${n} photos to look at` }

  function choice(label, key) {
    const button = make('button', { type: 'button' }, key && make('kbd', { textContent: key }), ` ${named(label)}`)
    if (key) button.setAttribute('aria-keyshortcuts', key)
    button.addEventListener('click', () => step === 'photo' && send('say', { id, label }))
    return button
  }

  async function photo(m, data) {
    urls.forEach(URL.revokeObjectURL)
    urls = []
    id = m.id
    options = [...m.labels.map((label, i) => [label, i < 9 ? String(i + 1) : '']), ['', '0'], [null, '?']]
    choices.replaceChildren(choices.querySelector('legend'), ...options.map(o => choice(...o)))
    const image = make('img', { alt: 'The photo to look at', src: url(data) })
    figure.replaceChildren(image)
    told.replaceChildren()
    wait(true)  // nobody answers before the photo is there
    clearTimeout(patience)
    show('photo')
    try { await image.decode() } catch { figure.replaceChildren(make('p', { textContent: 'This photo cannot be shown.' })) }
    if (id !== m.id) return
    wait(false)
    if (document.activeElement !== order) figure.focus({ preventScroll: true })  // who chooses an order by arrow keys has not finished
    say(m.words)
  }

  function bar([label, p, text]) {
    const track = make('i')
    track.style.setProperty('--p', `${100*p}%`)
    return make('li', {}, make('b', { textContent: label }), track, make('span', { textContent: text }))
  }

  function tell(m, buffers) {
    const heat = buffers.length ? make('figure', { className: 'heat' }, make('img', { alt: `The photo, red where it speaks for ${m.top}`, src: url(buffers[0]) }), make('figcaption', { textContent: `The redder a place, the more it speaks for ${m.top}.` })) : null
    const words = make('p', { className: 'words' }, make('span', { className: 'mark', ariaHidden: 'true', textContent: m.mark }), m.words)
    told.replaceChildren(
      make('p', { className: 'you' }, 'You said ', make('strong', { textContent: named(m.you) }), '.'),
      make('article', { className: `card ${m.verdict}${m.same === false ? ' differs' : ''}`, ariaLabel: 'What the model said' }, make('div', { className: 'told' },
        make('p', { className: 'file', textContent: 'The model said' }), words, make('p', { className: 'meaning', textContent: m.meaning }), make('ul', { className: 'bars' }, ...m.bars.map(bar)), heat, m.note && make('p', { className: 'file note-heat', textContent: m.note }))),
      make('p', { className: 'stands', textContent: m.stands }))
    show('told')
    wait(false)
    next.focus({ preventScroll: true })
    say(`You said ${named(m.you)}. The model said: ${m.words}. ${m.stands}`)
  }

  function rest(kind, words) {  // nothing to look at: `kind` is 'gone' or 'empty'
    urls.forEach(URL.revokeObjectURL)
    urls = []
    id = null
    figure.replaceChildren()
    show(kind)
    wait(false)
    say(words)
    if (kind === 'gone') next.focus({ preventScroll: true })
  }

  model.on('msg:custom', (m, buffers) => {
    if (m.waiting !== undefined) count(m.waiting)
    if (m.kind === 'photo') photo(m, buffers[0])
    else if (m.kind === 'told') tell(m, buffers)
    else if (m.kind === 'gone' || m.kind === 'empty') rest(m.kind, m.words)
    else if (m.kind === 'note') { wait(false); say(m.words) }
  })

  function ask() {
    if (document.visibilityState === 'visible' && who !== null && !asked && document.contains(el)) model.send({ kind: 'news' })
  }

  function enter(name) {
    who = name
    find('.names').hidden = name !== null
    find('.desk').hidden = name === null
    if (name === null) return find('.names button').focus()
    find('.who span').textContent = name
    begin()
  }

  function key(event) {
    const at = event.target, typing = at.matches?.('input') || at.matches?.('select') && !/^[0-9?]$/.test(event.key), plain = !event.ctrlKey && !event.metaKey && !event.altKey
    if (who === null || event.repeat || typing || !find('.about input').checked) return
    const act = event.key.toLowerCase() === 'z' && (event.ctrlKey || event.metaKey) && !event.shiftKey || plain && event.key.toLowerCase() === 'u' ? () => send('undo')
      : plain && event.key === 'Enter' && !at.matches?.('button') && !next.hidden ? () => send('next')
      : plain && step === 'photo' && options.some(([, k]) => k === event.key) ? () => send('say', { id, label: options.find(([, k]) => k === event.key)[0] }) : null
    if (!act) return
    event.preventDefault()
    act()
  }

  find('.names p').append(...names.map(name => { const b = make('button', { type: 'button', textContent: name }); b.addEventListener('click', () => enter(name)); return b }))
  find('.other').addEventListener('click', () => enter(null))
  order.addEventListener('change', begin)
  next.addEventListener('click', () => send('next'))
  undo.addEventListener('click', () => send('undo'))
  document.addEventListener('keydown', key)
  const timer = setInterval(ask, EVERY)
  show('empty')
  enter(who)
  return () => { clearInterval(timer); clearTimeout(patience); document.removeEventListener('keydown', key); urls.forEach(URL.revokeObjectURL) }
}

export default { render }
