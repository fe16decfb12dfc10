// Runs in the visitor's browser. Below an answer that people look at: asks whether they may see the photo, and tells what they say of it.

const EVERY = 5_000     // milliseconds between two questions for news
const PATIENCE = 10_000 // milliseconds until an answer of the kernel is given up
const LOST = 'This could not be noted: the page has lost touch with its model. Reload the page, then try again.'

function render({ model, el }) {
  el.classList.add('bearclf-pending')
  el.innerHTML = '<p class="asks"></p><button type="button"></button><p class="news" role="status"></p>'
  const button = el.querySelector('button'), news = el.querySelector('.news')
  const asks = el.querySelector('.asks')
  let lent = false, timer, patience
  asks.textContent = model.get('asks')

  function show() {
    button.textContent = lent ? 'Take it back' : 'Let a person see it'
    button.setAttribute('aria-label', `${button.textContent} (${model.get('about')})`)
  }

  function ask() {  // not while nobody looks at the page
    if (document.visibilityState === 'visible') model.send({ kind: 'news' })
  }

  function watch() {
    clearInterval(timer)
    if (lent && model.get('waits')) { timer = setInterval(ask, EVERY); ask() }
  }

  function tell(words) {
    if (news.textContent !== words) news.textContent = words  // said again, it would be read out again
  }

  button.addEventListener('click', () => {
    button.disabled = true
    model.send({ kind: 'lend', lent: !lent })
    patience = setTimeout(() => { button.disabled = false; tell(LOST) }, PATIENCE)
  })
  model.on('msg:custom', message => {
    if (message.kind === 'lent') {
      clearTimeout(patience)
      button.disabled = false
      lent = message.lent
      asks.hidden = lent  // what was asked for is done
      tell(message.words)
      show()
      watch()
    }
    if (message.kind === 'news') {
      tell(message.words)
      if (message.done) {
        clearInterval(timer)
        asks.hidden = button.hidden = true
        for (const note of el.closest('.answer')?.querySelectorAll('.note') ?? []) note.hidden = true  // it said that nobody has looked
      }
    }
  })
  show()
  return () => clearInterval(timer)
}

export default { render }
