// From a file to the pixels that the graph wants, as bearclf.core and bearclf.classify do it with Pillow: browsers scale pictures each in their own way, so nothing is scaled by the browser here.
// A picture is { width, height, bands, data }: so many bytes for each pixel.

const LARGEST = 100_000_000  // pixels of a photo
const STRIP = 1 << 20        // pixels that are taken out of the browser's picture at once
const PARTS = 5_000          // of a JPEG before its picture; browsers take minutes over a file that has far more
const BITS = 22              // of the weights, as in Pillow

const starts = (bytes, text, at = 0) => [...text].every((c, i) => bytes[at + i] === c.charCodeAt(0))

export function kindOf(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return 'jpeg'
  if (starts(bytes, '\x89PNG\r\n\x1a\n')) return 'png'
  if (starts(bytes, 'GIF8')) return 'gif'
  if (starts(bytes, 'RIFF') && starts(bytes, 'WEBP', 8)) return 'webp'
  if (starts(bytes, 'BM')) return 'bmp'
  if (starts(bytes, 'II*\0') || starts(bytes, 'MM\0*')) return 'tiff'
  return starts(bytes, 'ftypavif', 4) ? 'avif' : ''
}

// Which of the sentences fits a file that is no photo, from how it starts.
export function whyNot(bytes) {
  const text = new TextDecoder('latin1').decode(bytes.subarray(0, 1024)).trimStart().slice(0, 512).toLowerCase()
  if (!bytes.length) return 'empty'
  if (/^<(!doctype|html|head|script)/.test(text)) return 'page'
  if (text.startsWith('version https://git-lfs')) return 'pointer'
  if (text.startsWith('<svg') || (text.startsWith('<?xml') && text.includes('<svg'))) return 'drawing'
  if (/^ftyp(heic|heix|mif1|msf1)/.test(text.slice(4))) return 'heic'
  const kind = kindOf(bytes)
  return kind === 'tiff' ? 'tiff' : kind ? 'damaged' : 'other'
}

function jpegSize(view) {
  for (let at = 2, part = 0; at + 9 < view.byteLength; part++) {
    if (part > PARTS) throw new NoPhoto('damaged')
    const marker = view.getUint8(at) === 0xff ? view.getUint8(at + 1) : 0
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)]
    at += !marker || marker === 0xff ? 1 : marker === 1 || (marker >= 0xd0 && marker <= 0xd8) ? 2 : 2 + Math.max(2, view.getUint16(at + 2))
  }
  return [0, 0]
}

function webpSize(view) {
  const three = at => view.getUint16(at, true) + 65536 * view.getUint8(at + 2) + 1
  const kind = view.getUint8(15)
  if (kind === 0x58) return [three(24), three(27)]  // VP8X
  if (kind === 0x4c) return [1 + (view.getUint32(21, true) & 0x3fff), 1 + (view.getUint32(21, true) >> 14 & 0x3fff)]  // VP8L
  return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff]
}

// Width and height that a file claims; [0, 0] where it does not say.
function claimed(bytes, kind) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < 32) return [0, 0]
  if (kind === 'jpeg') return jpegSize(view)
  if (kind === 'png') return [view.getUint32(16), view.getUint32(20)]
  if (kind === 'gif') return [view.getUint16(6, true), view.getUint16(8, true)]
  if (kind === 'bmp') return [view.getInt32(18, true), Math.abs(view.getInt32(22, true))]
  return kind === 'webp' ? webpSize(view) : [0, 0]
}

// Kinds of pixels that Pillow does not take the mean of: palettes, one bit, 16 bits of grey.
function meanless(bytes, kind) {
  if (kind === 'png') return bytes[25] === 3 || (bytes[25] === 0 && [1, 16].includes(bytes[24]))
  return kind === 'gif' || (kind === 'bmp' && bytes[28] <= 8)
}

// The mean of each square of `times` × `times`; those at the right and at the bottom may be smaller.
export function mean({ width, height, bands, data }, times, kept = bands) {
  const w = Math.ceil(width / times), h = Math.ceil(height / times), out = new Uint8Array(w * h * kept), sums = new Uint32Array(w * kept)
  for (let y = 0; y < h; y++) {
    const top = y * times, bottom = Math.min(top + times, height)
    sums.fill(0)
    for (let row = top; row < bottom; row++) for (let x = 0, at = row * width * bands, to = 0; x < width; to += kept) {
      for (const end = Math.min(x + times, width); x < end; x++, at += bands) for (let b = 0; b < kept; b++) sums[to + b] += data[at + b]
    }
    for (let x = 0, to = 0; x < w; x++) {
      const n = (bottom - top) * Math.min(times, width - x * times)
      for (let b = 0; b < kept; b++, to++) out[y * w * kept + to] = (sums[to] + (n >> 1)) / n
    }
  }
  return { width: w, height: h, bands: kept, data: out }
}

// The browser's picture on white as RGB, `times` smaller, a strip at a time.
function taken(bitmap, times) {
  const { width, height } = bitmap, rows = times * Math.max(1, Math.floor(STRIP / width / times))
  const w = Math.ceil(width / times), data = new Uint8Array(w * Math.ceil(height / times) * 3)
  const pen = new OffscreenCanvas(width, Math.min(rows, height)).getContext('2d', { willReadFrequently: true })
  for (let top = 0; top < height; top += rows) {
    const strip = Math.min(rows, height - top)
    pen.fillStyle = 'white'
    pen.fillRect(0, 0, width, strip)
    pen.drawImage(bitmap, 0, top, width, strip, 0, 0, width, strip)
    data.set(mean({ width, height: strip, bands: 4, data: pen.getImageData(0, 0, width, strip).data }, times, 3).data, top / times * w * 3)
  }
  return { width: w, height: Math.ceil(height / times), bands: 3, data }
}

// As `open_photo(…, least)`: the decoder's own reduction of a JPEG by 8, 4 or 2 (which is a mean), then the mean of what is still too large.
function reduced(bitmap, bytes, kind, least) {
  const times = least && !meanless(bytes, kind) ? Math.max(1, Math.floor(Math.min(bitmap.width, bitmap.height) / least)) : 1
  if (kind !== 'jpeg') return taken(bitmap, times)
  const small = taken(bitmap, [8, 4, 2, 1].find(n => n <= times)), more = least ? Math.floor(Math.min(small.width, small.height) / least) : 1
  return more > 1 ? mean(small, more) : small
}

// For each place along a line of `to`: where its pixels start among `from`, and their weights: a triangle that is as wide as the step, as in Pillow.
function weights(from, to) {
  const step = from / to, support = Math.max(step, 1)
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + .5) * step, first = Math.max(0, Math.trunc(centre - support + .5)), last = Math.min(from, Math.trunc(centre + support + .5))
    const raw = Float64Array.from({ length: last - first }, (_, j) => Math.max(0, 1 - Math.abs((first + j - centre + .5) / support)))
    const sum = raw.reduce((a, b) => a + b, 0)
    return { first, share: Int32Array.from(raw, w => Math.trunc(.5 + w / sum * (1 << BITS))) }
  })
}

function along({ width, height, bands, data }, to) {
  const out = new Uint8Array(to * height * bands), places = weights(width, to)
  for (let y = 0; y < height; y++) for (let x = 0; x < to; x++) {
    const { first, share } = places[x], at = (y * width + first) * bands
    for (let b = 0; b < bands; b++) {
      let sum = 1 << BITS - 1
      for (let i = 0, from = at + b; i < share.length; i++, from += bands) sum += data[from] * share[i]
      out[(y * to + x) * bands + b] = Math.min(255, sum >> BITS)
    }
  }
  return { width: to, height, bands, data: out }
}

function down({ width, height, bands, data }, to) {
  const row = width * bands, out = new Uint8Array(row * to), places = weights(height, to), sums = new Int32Array(row)
  for (let y = 0; y < to; y++) {
    const { first, share } = places[y]
    sums.fill(1 << BITS - 1)
    for (let i = 0; i < share.length; i++) for (let x = 0, from = (first + i) * row; x < row; x++, from++) sums[x] += data[from] * share[i]
    for (let x = 0; x < row; x++) out[y * row + x] = Math.min(255, sums[x] >> BITS)
  }
  return { width, height: to, bands, data: out }
}

// Pillow's own bilinear. Levels are rounded in between, so the order counts; this is Pillow 13's, older ones always go along the rows first.
export function scaled(picture, width, height) {
  const columnsFirst = picture.height > height && 2 * (picture.width - width) < picture.height - height
  return columnsFirst ? along(down(picture, height), width) : down(along(picture, width), height)
}

// The part of a picture that a box shows; what reaches outside is black.
function cut({ width, height, bands, data }, [left, top, right, bottom]) {
  const w = right - left, h = bottom - top, out = new Uint8Array(w * h * bands), from = Math.max(0, left), to = Math.min(width, right)
  for (let y = Math.max(0, top); y < Math.min(height, bottom); y++) out.set(data.subarray((y * width + from) * bands, (y * width + to) * bands), ((y - top) * w + from - left) * bands)
  return { width: w, height: h, bands, data: out }
}

// The centred box of the target's shape, with fastai's rounding.
function box(w, h, tw, th, outer) {
  const m = (outer ? Math.max : Math.min)(w / tw, h / th), bw = Math.trunc(m * tw), bh = Math.trunc(m * th)
  const left = Math.trunc((w - bw) * .5), top = Math.trunc((h - bh) * .5)
  return [left, top, left + bw, top + bh]
}

// As `resize`: what the graph sees.
export function fitted(picture, { size: [h, w], resize: { method, size: [th, tw] } }) {
  const { width, height } = picture
  if (method !== 'squish') {
    const [left, top, right, bottom] = box(width, height, tw, th, method === 'pad')
    if ((right - left) * (bottom - top) > LARGEST) throw new NoPhoto('long', { width, height })
    picture = cut(picture, [left, top, right, bottom])
  }
  const left = (tw - w) >> 1, top = (th - h) >> 1
  return cut(scaled(picture, tw, th), [left, top, left + w, top + h])
}

export class NoPhoto extends Error {
  constructor(why, facts = {}) { super(why); Object.assign(this, { why, facts }) }
}

// The photo as the graph wants it, and as the browser holds it; throws `NoPhoto`.
export async function opened(bytes, how) {
  const why = whyNot(bytes), kind = kindOf(bytes), [w, h] = claimed(bytes, kind)
  if (['empty', 'page', 'pointer', 'drawing'].includes(why)) throw new NoPhoto(why)
  if (w * h > LARGEST) throw new NoPhoto('large')
  const bitmap = await createImageBitmap(new Blob([bytes]), { imageOrientation: 'from-image', colorSpaceConversion: 'none' }).catch(() => null)  // upright, as the photo's EXIF orientation asks
  if (!bitmap) throw new NoPhoto(why)
  return { bitmap, seen: fitted(reduced(bitmap, bytes, kind, how.draft), how) }
}
