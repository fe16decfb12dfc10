// Runs in the visitor's browser. Asks, below an answer, whether it was right; what the visitor says goes to the kernel.

const NONE = 'none of these'
const LOST = 'This could not be noted: the page has lost touch with its model. Reload the page, then answer again.'
const PATIENCE = 10_000  // milliseconds until it is lost

// A `<select>` of the labels but for the one that was just denied; what it gives is a label, or '' for none of them.
function choices(labels, denied) {
  const offered = [...labels, ''].filter(label => label !== denied), select = document.createElement('select')
  select.required = true  // the browser itself says so if nothing is chosen
  select.append(new Option('Choose …', ''), ...offered.map((label, i) => new Option(label || NONE, i)))
  return { select, chosen: () => offered[select.value] }
}

function render({ model, el }) {
  const claim = model.get('claim')  // the label that the answer gives, '' if it says "none of these", null if it is not sure
  const { select, chosen } = choices(model.get('labels'), claim)
  el.classList.add('bearclf-question')
  el.innerHTML = `
    <form>
      <fieldset><legend><span class="asks"></span><span class="unseen"></span></legend>
        <span class="said"><button type="button" class="yes">Yes</button> <button type="button" class="no">No</button></span>
        <span class="pick"><label class="it">It is </label><button>Send</button><button type="button" class="back">Back</button></span>
      </fieldset>
      <p class="noted" tabindex="-1"><span></span> <button type="button" class="change">Change</button></p>
      <label class="keep"><input type="checkbox"> You may keep this photo to learn from</label>
    </form>
    <p class="unseen" role="status"></p>`
  const find = name => el.querySelector(name), form = find('form'), noted = find('.noted'), keep = find('.keep input'), status = find('[role=status]')
  let patience, told  // told: what the visitor said last
  find('.it').append(select)
  find('legend .unseen').textContent = ` (${model.get('about')})`

  function show(step) {  // 'ask': yes or no; 'pick': what then; 'noted': thanks
    for (const [name, there] of [['fieldset', step !== 'noted'], ['.noted', step === 'noted'], ['.said', step === 'ask'], ['.pick', step === 'pick'], ['.back', claim !== null]]) find(name).hidden = !there
    find('.asks').textContent = claim === null ? 'Do you know what it is?' : step === 'ask' ? 'Was this right?' : 'What is it, then?'
  }
  const begin = () => show(claim === null ? 'pick' : 'ask')

  function wait(on) {
    clearTimeout(patience)
    form.toggleAttribute('data-waiting', on)
    for (const part of form.querySelectorAll('button, select, input')) part.disabled = on
    status.textContent = on ? 'One moment …' : ''
    if (on) patience = setTimeout(() => thank(LOST, false), PATIENCE)
  }

  function tell(human) {
    told = human
    model.send({ kind: 'told', human, keep: keep.checked })
    wait(true)
  }

  function thank(words, done) {
    wait(false)
    noted.firstElementChild.textContent = words
    find('.change').textContent = done ? 'Change' : 'Try again'
    if (!done) told = undefined
    show('noted')
    noted.focus()  // so that it is read out, and the keyboard stays where it was
  }

  find('.yes').addEventListener('click', () => tell(claim))
  find('.no').addEventListener('click', () => { show('pick'); select.focus() })
  find('.back').addEventListener('click', () => { begin(); find('.yes').focus() })
  find('.change').addEventListener('click', () => { told = undefined; begin(); (claim === null ? select : find('.yes')).focus() })
  keep.addEventListener('change', () => { if (told !== undefined) tell(told) })  // after the thanks, the box acts by itself
  form.addEventListener('submit', event => { event.preventDefault(); tell(chosen()) })
  model.on('msg:custom', message => { if (message.kind === 'noted') thank(message.words, message.done) })
  begin()
}

export default { render }
