"""Photos that are none, or want to hurt: `corpus(n)` makes them, and as a program it feeds a folder of them to the bundled classifier, and says what came of each."""
import json
import random
import struct
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def saved(im, kind, **kwargs):
    out = BytesIO()
    im.save(out, kind, **kwargs)
    return out.getvalue()


def sound(rng):
    "Good photos in every kind of file: name → bytes."
    noise = np.random.default_rng(rng.randrange(10**6)).normal(0, 20, (120, 160, 3))
    im = Image.fromarray(np.uint8(np.clip(noise + np.linspace(40, 200, 160)[None, :, None], 0, 255)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, "x"*500
    deep = Image.fromarray(np.asarray(im.convert("L"), dtype=np.uint16)*257)
    return {
        "baseline.jpg": saved(im, "JPEG"), "progressive.jpg": saved(im, "JPEG", progressive=True), "grey.jpg": saved(im.convert("L"), "JPEG"), "cmyk.jpg": saved(im.convert("CMYK"), "JPEG"),
        "turned.jpg": saved(im, "JPEG", exif=exif), "rgb.png": saved(im, "PNG"), "palette.png": saved(im.convert("P"), "PNG"), "alpha.png": saved(im.convert("RGBA"), "PNG"), "deep.png": saved(deep, "PNG"),
        "bit.png": saved(im.convert("1"), "PNG"), "lossy.webp": saved(im, "WEBP"), "lossless.webp": saved(im, "WEBP", lossless=True), "moving.webp": saved(im, "WEBP", save_all=True, append_images=[im.rotate(9)]),
        "moving.gif": saved(im, "GIF", save_all=True, append_images=[im.rotate(9), im.rotate(18)]), "plain.bmp": saved(im, "BMP"), "raw.tif": saved(im, "TIFF"), "lzw.tif": saved(im, "TIFF", compression="tiff_lzw"),
        "deep.tif": saved(deep, "TIFF"), "float.tif": saved(im.convert("F"), "TIFF"), "jpeg.tif": saved(im, "TIFF", compression="jpeg"), "pages.tif": saved(im, "TIFF", save_all=True, append_images=[im]),
    }


def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
def png(w, h, data=b"", depth=8, colours=2, more=b""): return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colours, 0, 0, 0)) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(w, h):
    "32 bits a pixel, compressed."
    data = zlib.compress(bytes(4*w*h), 1)
    tags = [(256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, 32), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, h), (279, 4, 1, len(data)), (339, 3, 1, 3)]
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)


def passes(w, h):
    "A baseline JPEG that claims to bring each colour in a pass of its own."
    data = bytearray(saved(Image.new("RGB", (64, 64)), "JPEG"))
    sof, sos = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    data[sof + 5:sof + 9] = struct.pack(">HH", h, w)
    return bytes(data[:sos]) + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(data[sos + 14:])


def special():
    "What is not made from a good photo: name → bytes."
    im = Image.new("RGB", (64, 64), "red")
    jpeg = saved(im, "JPEG", progressive=True)
    scan = jpeg[jpeg.index(b"\xff\xda"):-2]
    ifd = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 64) + struct.pack("<I", 8)  # the next directory is this one
    return {
        "empty.jpg": b"", "one.jpg": b"\xff", "zeros.jpg": bytes(5000), "text.jpg": b"this is no photo"*50, "page.jpg": b"<!doctype html><html><body>404</body></html>", "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "drawing.jpg": b"<?xml version='1.0'?><svg/>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "phone.heic": b"\x00\x00\x00\x18ftypheic" + bytes(2000), "zip.jpg": b"PK\x03\x04" + bytes(500), "script.png": b"#!/bin/sh\ntouch canary\n",
        "one_pixel.png": saved(im.crop((0, 0, 1, 1)), "PNG"), "needle.png": saved(Image.new("RGB", (1, 9000)), "PNG"), "ribbon.jpg": saved(Image.new("RGB", (9000, 1)), "JPEG"), "one_pixel.gif": saved(im.crop((0, 0, 1, 1)), "GIF"),
        "nothing.png": png(0, 0), "wide.png": png(2**31 - 1, 1), "huge.png": png(30000, 30000, zlib.compress(bytes(10**6))), "bomb.png": png(9000, 9000, zlib.compress(bytes(27001*9000), 1)), "large.png": png(6200, 6200, zlib.compress(bytes(18601*6200), 1)), "clear.png": png(4400, 4400, zlib.compress(bytes(17601*4400), 1), 8, 6), "deep_large.png": png(5100, 5100, zlib.compress(bytes(10201*5100), 1), 16, 0), "colours.png": png(5600, 5600, zlib.compress(bytes(5601*5600), 1), 8, 3, chunk(b"PLTE", bytes(768))), "bits.png": png(20000, 20000, zlib.compress(bytes(2501*20000)), 1, 0),
        "text_bomb.png": png(8, 8, zlib.compress(bytes(25*8)), more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 1))), "icc_bomb.png": png(8, 8, zlib.compress(bytes(25*8)), more=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 1))),
        "large.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b"\x2c" + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02\x4c\x01\0\x3b", "large.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "ribbon.png": png(255, 390_000, zlib.compress(bytes(256*390_000), 1), 8, 0), "one_bit.png": png(9900, 9900, zlib.compress(bytes(1239*9900), 1), 1, 0), "clear_colours.png": png(5600, 5600, zlib.compress(bytes(5601*5600), 1), 8, 3, chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(9))),
        "float_ribbon.tif": tiff(300, 133_000), "large.webp": saved(Image.new("RGB", (6300, 6300)), "WEBP", method=0), "passes.jpg": passes(6000, 6000), "large.jpg": saved(Image.new("RGB", (9900, 9900)), "JPEG"), "large_progressive.jpg": saved(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True),
        "deep_enough.png": png(3000, 3000, zlib.compress(bytes(6001*3000), 1), 16, 0), "scans.jpg": jpeg[:-2] + scan*3000 + b"\xff\xd9", "stuffed.jpg": jpeg[:2] + (b"\xff\xe1\x00\x12Exif\0\0" + b"A"*10)*200_000 + jpeg[2:], "exif.jpg": jpeg[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527))*300 + jpeg[2:],
        "fill.jpg": jpeg[:2] + b"\xff"*8_000_000, "junk.jpg": jpeg[:2] + bytes(8_000_000) + jpeg[2:], "segments.jpg": jpeg[:2] + b"\xff\xe0\0\2"*2_000_000 + jpeg[2:], "notes.png": png(8, 8, zlib.compress(bytes(200)), more=chunk(b"tEXt", b"")*400_000),
        "notes.gif": b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6) + b"!\xfe\x01a\0"*1_000_000 + b"\x2c" + bytes(4) + b"\x08\0\x08\0\0\x02\x02\x4c\x01\0\x3b", "idle.gif": b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6_000_000),
        "loop.tif": ifd, "many.tif": b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 65535) + bytes(12*65535), "sure.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(100), "huge.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(8),
    }


def broken(data, rng):
    "One way or another to break a file: (how, bytes)."
    how = rng.choice(["cut", "flip", "flips", "hole", "twice", "insert", "head", "size"])
    at, out = rng.randrange(len(data)), bytearray(data)
    if how == "cut": out = out[:at]
    if how == "flip": out[at] ^= 1 << rng.randrange(8)
    if how == "flips":
        for _ in range(100): out[rng.randrange(len(out))] = rng.randrange(256)
    if how == "hole": out[at:at + 300] = bytes(len(out[at:at + 300]))
    if how == "twice": out = out*2
    if how == "insert": out[at:at] = rng.randbytes(50)
    if how == "head": out[:16] = rng.randbytes(16)
    if how == "size": out[min(at, 160):min(at, 160) + 4] = b"\xff\xff\xff\xf0"
    return how, bytes(out)


def corpus(n, seed=0):
    "So many of them: name → (how it was broken, '' if it is sound; its bytes; those of the sound one it came from)."
    rng, made = random.Random(seed), {name: ("special", data, None) for name, data in special().items()}
    for i, good in enumerate(sound(rng) for _ in iter(lambda: len(made) < n, False)):
        made |= {f"{i}-sound-{name}": ("", data, data) for name, data in good.items()} if i == 0 else {}
        for name, data in good.items():
            how, bad = broken(data, rng)
            made[f"{i}-{how}-{name}"] = how, bad, data
    return made


def main(folder):
    "Classify every file in `folder`: a JSON object a line."
    from bearclf.classify import Classifier
    from bearclf.core import BearclfError
    clf = Classifier(threads=1)
    for fn in sorted(Path(folder).iterdir()):
        start = time.perf_counter()
        try: said = dict(probs=list(clf.predict(fn).probs.values()))
        except BearclfError as e: said = dict(error=str(e))
        except Exception as e: said = dict(crash=f"{type(e).__name__}: {e}")
        peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))/1e3
        print(json.dumps(dict(file=fn.name, seconds=time.perf_counter() - start, mb=peak, **said)), flush=True)


if __name__ == "__main__": main(*sys.argv[1:])
