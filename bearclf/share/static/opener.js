// Opens photos, in a thread of its own: while the model is still being loaded, and while it looks at the photo before. In their order.
import { NoPhoto, opened } from './photo.js'

const PREVIEW = 560  // pixels, at most
let queue = Promise.resolve()

async function preview(bitmap) {
  const scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height)), canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale))), pen = canvas.getContext('2d')
  pen.fillStyle = 'white'
  pen.fillRect(0, 0, canvas.width, canvas.height)
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  bitmap.close()
  return canvas.convertToBlob({ type: 'image/jpeg', quality: .8 })
}

async function open({ id, bytes, how }) {
  try {
    const { bitmap, seen } = await opened(new Uint8Array(bytes), how)
    self.postMessage({ id, seen, picture: await preview(bitmap) }, [seen.data.buffer])
  } catch (e) { self.postMessage({ id, ...(e instanceof NoPhoto ? { why: e.why, facts: e.facts } : { error: e.message ?? String(e) }) }) }
}

self.onmessage = ({ data }) => { queue = queue.then(() => open(data)) }
