// Runs in the visitor's browser. Asks, below an answer, whether it was right; what the visitor says goes to the kernel.

const NONE = 'none of these'
const LOST = 'This could not be noted: the page has lost touch with its model.'
const PATIENCE = 10_000  // milliseconds until it is lost

// A `<select>` of the labels; what it gives is a label, or '' for none of them.
function choices(labels) {
  const select = document.createElement('select')
  select.append(new Option('Choose …', -1), ...labels.map((label, i) => new Option(label, i)), new Option(NONE, labels.length))
  return { select, chosen: () => labels[select.value] ?? '', none: () => select.value === '-1' }
}

function render({ model, el }) {
  const labels = model.get('labels'), claim = model.get('claim')  // claim: the label that the answer gives, '' if it says "none of these", null if it is not sure
  const { select, chosen, none } = choices(labels)
  el.classList.add('bearclf-question')
  el.innerHTML = `
    <form>
      <fieldset><legend></legend>
        <span class="said"><button type="button" class="yes">Yes</button> <button type="button" class="no">No</button></span>
        <span class="pick"><label class="it">It is </label><button>Send</button></span>
      </fieldset>
      <label class="keep"><input type="checkbox"> You may keep this photo to learn from</label>
    </form>
    <p class="noted" tabindex="-1"><span></span> <button type="button" class="change">Change</button></p>`
  const find = name => el.querySelector(name), form = find('form'), noted = find('.noted'), keep = find('.keep input'), legend = find('legend')
  let patience
  find('.it').append(select)

  function show(step) {  // 'ask': yes or no; 'pick': what then; 'noted': thanks
    form.hidden = step === 'noted'
    noted.hidden = step !== 'noted'
    find('.said').hidden = step !== 'ask'
    find('.pick').hidden = step !== 'pick'
    legend.textContent = claim === null ? 'Do you know what it is?' : step === 'ask' ? 'Was this right?' : 'What is it, then?'
  }
  const begin = () => show(claim === null ? 'pick' : 'ask')
  function tell(human) {
    model.send({ kind: 'told', human, keep: keep.checked })
    clearTimeout(patience)
    patience = setTimeout(() => thank(LOST), PATIENCE)
  }

  function thank(words) {
    clearTimeout(patience)
    noted.firstElementChild.textContent = words
    show('noted')
    noted.focus()  // so that it is read out, and the keyboard stays where it was
  }

  find('.yes').addEventListener('click', () => tell(claim))
  find('.no').addEventListener('click', () => { show('pick'); select.focus() })
  find('.change').addEventListener('click', () => { begin(); (claim === null ? select : find('.yes')).focus() })
  form.addEventListener('submit', event => {
    event.preventDefault()
    none() ? select.focus() : tell(chosen())
  })
  model.on('msg:custom', message => { if (message.kind === 'noted') thank(message.words) })
  begin()
}

export default { render }
