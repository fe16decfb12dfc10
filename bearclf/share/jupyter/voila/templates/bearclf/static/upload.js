// Runs in the visitor's browser. Takes photos by button, drop or paste, makes them small, and sends them to the kernel.
// `mount` needs no kernel: the page's template calls it while the kernel's widgets are still on their way, and `render` takes over what was mounted, with the photos chosen so far.
// The page without a kernel (share/static) uses it, too: there photos go as they are, to the model in the browser.

const KERNEL_READS = /^image\/(jpeg|png|webp|gif|bmp)$/
const SMALL = 1_000_000  // bytes: a photo this small, and small enough in pixels, goes as it is
const WHOLE = 8_000_000  // bytes: what the browser cannot open goes whole up to here, for the kernel to open it (TIFF) or to say why not
const LARGEST = 200_000_000  // bytes, where photos go as they are

// What to send of `file`: itself, a smaller JPEG, or null where the browser cannot open it and it is too big to send as it is.
async function packed(file, side) {
  const bitmap = await createImageBitmap(file).catch(() => null)  // upright, as the photo's EXIF orientation asks
  if (!bitmap) return file.size <= WHOLE ? file : null
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height))
  if (scale === 1 && file.size <= SMALL && KERNEL_READS.test(file.type)) return file
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(bitmap.width * scale))
  canvas.height = Math.max(1, Math.round(bitmap.height * scale))
  const pen = canvas.getContext('2d')
  pen.fillStyle = 'white'
  pen.fillRect(0, 0, canvas.width, canvas.height)
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  bitmap.close()
  return new Promise(done => canvas.toBlob(done, 'image/jpeg', 0.92))
}

const whole = file => file.size <= LARGEST ? file : null

// A folder dropped on the page, or a file gone since it was chosen, cannot be read: it goes empty, and the kernel says so.
const bytes = async blob => blob.arrayBuffer().catch(() => new ArrayBuffer(0))

const LOST = 'The page has lost touch with its model. Reload the page, then try again.'
const PATIENCE = 60_000, DOUBT = 3_000  // milliseconds without an answer: until it is lost, and until we ask whether there is a kernel at all

// Whether the server has ended the kernel of this page, as it does after a long silence. Outside Voilà we cannot know.
async function ended() {
  const { baseUrl = '/', kernelId } = JSON.parse(document.getElementById('jupyter-config-data')?.textContent ?? '{}')
  if (!kernelId) return false
  const told = await fetch(`${baseUrl}api/kernels/${kernelId}`).catch(() => null)
  return told?.status === 404
}

const photos = n => n === 1 ? '1 photo' : `${n} photos`

export function mount(el) {
  el.classList.add('bearclf', 'bearclf-upload')
  el.innerHTML = `
    <label class="choose"><input type="file" accept="image/*" multiple><span>Choose photos</span></label>
    <p class="hint">or drop them here, or paste one</p>
    <p class="status" role="status" aria-live="polite"></p><p class="heard unseen" role="status" aria-live="polite"></p>`
  const input = el.querySelector('input'), status = el.querySelector('.status'), heard = el.querySelector('.heard')
  let asked = 0, answered = 0, left = '', queue = Promise.resolve(), patience, doubt, meet, side = 1024, limit = 20
  const met = new Promise(done => meet = done)  // the model in the kernel

  function say(text, quietly = false) {  // quietly: read out, not shown
    status.textContent = text
    status.classList.toggle('quiet', quietly)
  }

  function lost() {
    answered = asked
    waiting()
    say(LOST)
  }

  function waiting() {
    clearTimeout(patience)
    clearTimeout(doubt)
    if (answered === asked) return
    patience = setTimeout(lost, PATIENCE)
    doubt = setTimeout(async () => { if (await ended()) lost() }, DOUBT)
  }

  async function send(file) {
    const blob = await (side ? packed(file, side) : whole(file)), model = await met
    model.send({ kind: 'photo', name: file.name, too_big: !blob }, undefined, [await bytes(blob ?? new Blob())])
  }

  function take(files) {
    const chosen = [...files].slice(0, limit)
    if (!chosen.length) return
    if (answered === asked) asked = answered = 0, left = ''
    asked += chosen.length
    if (files.length > limit) left = ` ${photos(files.length)} are too many at once: the last ${files.length - limit} are left out.`
    say(`Looking at ${photos(asked)} …${left}`)
    for (const file of chosen) queue = queue.then(() => send(file)).catch(lost)
    waiting()
  }

  function hear(message) {
    if (message.kind === 'loading') {
      waiting()
      return say(message.words || (answered < asked ? `Looking at ${photos(asked)} …${left}` : ''))
    }
    if (message.kind === 'cleared') {
      input.focus()  // the button that had the focus is gone
      return say('Cleared.', true)
    }
    answered += 1
    waiting()
    if (answered < asked) say(`${answered} of ${photos(asked)} answered …${left}`)
    if (asked > 1) heard.textContent = message.words  // each answer is read out
    if (answered < asked) return
    if (asked > 1) say(`${photos(asked)} answered.${left}`)
    else say(message.words, true)  // its card is in view
  }

  const listening = new AbortController(), { signal } = listening
  const page = event => event.target.closest?.('.bearclf-page') ?? el  // on our page a photo may land anywhere
  const ours = event => event.dataTransfer?.types.includes('Files') && page(event).contains(event.target)
  const hover = on => el.classList.toggle('hover', on)

  input.addEventListener('change', () => { take(input.files); input.value = '' }, { signal })
  document.addEventListener('dragover', event => { if (ours(event)) { event.preventDefault(); hover(true) } }, { signal })
  document.addEventListener('dragleave', event => { if (!event.relatedTarget) hover(false) }, { signal })
  document.addEventListener('drop', event => {
    hover(false)
    if (ours(event)) { event.preventDefault(); take(event.dataTransfer.files) }
  }, { signal })
  document.addEventListener('paste', event => take(event.clipboardData?.files ?? []), { signal })

  // The newest card comes first, and into view. The kernel appends it, for what comes after a change in a list of widgets is made anew, with all that somebody had begun there.
  const first = new MutationObserver(changes => {
    for (const { target, addedNodes } of changes) {
      if (!target.matches?.('.bearclf-page .answers')) continue
      for (const card of addedNodes) {
        if (card === target.firstElementChild) continue
        target.prepend(card)
        card.scrollIntoView({ block: 'nearest' })
      }
    }
  })
  first.observe(document.body, { childList: true, subtree: true })

  function connect(model) {
    side = model.get('side')
    limit = model.get('limit')
    model.on('msg:custom', hear)
    meet(model)
  }
  Object.assign(el, { connect, stop: () => { listening.abort(); first.disconnect() } })
  return el
}

function render({ model, el }) {
  const early = document.querySelector('[data-early]'), box = early ?? mount(document.createElement('div')), focused = box.contains(document.activeElement)
  box.removeAttribute('data-early')
  el.append(box)
  if (focused) requestAnimationFrame(() => box.querySelector('input').focus())
  box.connect(model)
  model.send({ kind: 'hello' })
  return () => box.stop()
}

export default { render }
