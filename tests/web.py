"""A small web on loopback that behaves like the real one: photo searches in their documented formats, and servers of every kind."""
import gzip
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
from PIL import Image

LABELS = ("grizzly", "black", "teddy")


def scene(seed, size=(160, 120)):
    "A picture that looks like no other: soft coloured noise."
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def coded(im, kind="JPEG", **options):
    out = BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def _exif(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _png_head(width, height):
    "A PNG that claims to be huge and holds next to nothing."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0"*10_000)) + chunk(b"IEND", b"")


def _sent(*parts, **head):
    "An answer with this body, in these parts, and with these headers."
    def answer(web):
        web.reply(b"".join(parts), **head)
    return answer


def _redirect(to): return lambda web: web.reply(status=302, Location=to)


def _once(status, body, **head):
    "Busy the first time an address is asked, then there."
    def answer(web):
        first = web.server.asked[web.path] == 1
        web.reply(b"" if first else body, status=status if first else 200, **(head if first else {}))
    return answer


def _chunked(body):
    def answer(web):
        web.reply(None, Transfer_Encoding="chunked")
        for i in range(0, len(body), 1000): part = body[i:i+1000]; web.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        web.wfile.write(b"0\r\n\r\n")
    return answer


def _slowly(body, seconds):
    def answer(web):
        web.reply(None, Content_Length=len(body))
        step = -(-len(body)//10)
        for i in range(0, len(body), step): web.wfile.write(body[i:i+step]); time.sleep(seconds/10)
    return answer


def _endless(web):
    web.reply(None, Transfer_Encoding="chunked")
    part = b"\xff\xd8\xff" + bytes(99_997)
    while True: web.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def _drip(web):
    web.reply(None, Content_Length=10_000)
    for _ in range(10_000): web.wfile.write(b"\xff"); time.sleep(.05)


def _drip_head(web):
    web.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(10_000): web.wfile.write(b"."); time.sleep(.05)


def _hang_up(web): web.close_connection = True; web.connection.shutdown(socket.SHUT_RDWR)
def _babble(web): web.wfile.write(b"HELLO THIS IS NO HTTP\r\n\r\n"); web.close_connection = True
def _short(body): return lambda web: (web.reply(None, Content_Length=len(body)), web.wfile.write(body[:len(body)//2]), setattr(web, "close_connection", True))


def good_kinds():
    "Name → function from a picture to (suffix, answer): photos, in every form in which they come."
    rgba = lambda im: Image.merge("RGBA", [*im.split(), Image.linear_gradient("L").resize(im.size).point(lambda v: 200 + v//5)])
    grey16 = lambda im: Image.fromarray(np.asarray(im.convert("L")).astype(np.uint16)*257)
    plain = lambda im: coded(im, quality=88)
    kinds = dict(
        plain=lambda im: ("jpg", plain(im)), progressive=lambda im: ("jpg", coded(im, progressive=True)), grey=lambda im: ("jpg", coded(im.convert("L"))), press=lambda im: ("jpg", coded(im.convert("CMYK"))),
        sideways=lambda im: ("jpg", coded(im, exif=_exif(6))), upside_down=lambda im: ("jpg", coded(im, exif=_exif(3))), shouting=lambda im: ("JPG", plain(im)), png=lambda im: ("png", coded(im, "PNG")),
        see_through=lambda im: ("png", coded(rgba(im), "PNG")), palette=lambda im: ("png", coded(im.quantize(200), "PNG")), grey16=lambda im: ("png", coded(grey16(im), "PNG")), grey_alpha=lambda im: ("png", coded(rgba(im).convert("LA"), "PNG")),
        webp=lambda im: ("webp", coded(im, "WEBP")), webp_lossless=lambda im: ("webp", coded(rgba(im), "WEBP", lossless=True)), webp_moving=lambda im: ("webp", coded(im, "WEBP", save_all=True, append_images=[im.rotate(90)])),
        gif=lambda im: ("gif", coded(im.quantize(250), "GIF")), gif_moving=lambda im: ("gif", coded(im, "GIF", save_all=True, append_images=[im.rotate(90)])), bmp=lambda im: ("bmp", coded(im, "BMP")), tiff=lambda im: ("tif", coded(im, "TIFF")),
        tiff_lzw=lambda im: ("tiff", coded(im, "TIFF", compression="tiff_lzw")), two_in_one=lambda im: ("jpg", coded(im, "MPO", save_all=True, append_images=[im.rotate(90)])), trailing=lambda im: ("jpg", plain(im) + b"<!-- thank you -->"),
        wrong_suffix=lambda im: ("png", plain(im)), no_suffix=lambda im: ("php?photo=%s", plain(im)), spaced=lambda im: (" ä b.jpg", plain(im)), said_to_be_html=lambda im: ("jpg", _sent(plain(im), Content_Type="text/html")),
        chunked=lambda im: ("jpg", _chunked(plain(im))), gzipped=lambda im: ("jpg", _sent(gzip.compress(plain(im)), Content_Encoding="gzip")), slow=lambda im: ("jpg", _slowly(plain(im), .6)),
        busy_once=lambda im: ("jpg", _once(503, plain(im))), later=lambda im: ("jpg", _once(429, plain(im), Retry_After="0")), moved=lambda im: ("jpg", plain(im)))
    for kind in ("AVIF", "HEIF"):
        try: coded(scene(0), kind)
        except (KeyError, OSError, ValueError): continue
        kinds[kind.lower()] = lambda im, kind=kind: (kind.lower().replace("heif", "heic"), coded(im, kind))
    return kinds


def bad_kinds(im):
    "Name → answer: what is no photo, or never ends."
    jpeg, png = coded(im), coded(im, "PNG")
    return dict(
        gone=_sent(status=404), forbidden=_sent(status=403), removed=_sent(status=410), html=b"<!DOCTYPE html><html>moved</html>", empty=b"", half=jpeg[:len(jpeg)//2], half_png=png[:len(png)//2], text=b"Dear diary, a bear!",
        json=b'{"error": "no"}', svg=b'<svg xmlns="http://www.w3.org/2000/svg"/>', pdf=b"%PDF-1.7\n" + bytes(999), film=b"\0\0\0\x18ftypmp42" + bytes(999), pointer=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        icon=coded(im.resize((32, 32))), pixel=coded(Image.new("RGB", (1, 1)), "GIF"), bomb=_png_head(50_000, 50_000), claims_more=_png_head(3000, 2000), only_head=b"\xff\xd8\xff\xe0" + bytes(500), noise=bytes(random.Random(1).randbytes(4000)),
        too_long=_sent(b"", Content_Length=90_000_000), endless=_endless, round_and_round=_redirect("/bad/round_and_round.jpg"), to_a_file=_redirect("file:///etc/passwd"), zipped=_sent(b"not zipped", Content_Encoding="gzip"), too_short=_sent(jpeg, Content_Length=len(jpeg)//3))


def failing_kinds(im):
    "Name → answer: what may work another day, so that the next run asks again."
    return dict(broken_server=_sent(status=500), storm=_sent(status=429, Retry_After="0"), hangs_up=_hang_up, babble=_babble, drip=_drip, drip_head=_drip_head, breaks_off=_short(coded(im)))


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.count(self.path)
        path, _, query = self.path.partition("?")
        page = self.server.pages.get(self.path) or self.server.pages.get(path)
        time.sleep(self.server.delay)
        try: page(self) if callable(page) else self.reply(page) if page is not None else self.reply(status=404)
        except OSError: self.close_connection = True

    def reply(self, body=b"", status=200, **head):
        head = head if body is None else {"Content_Length": len(body)} | head
        self.send_response(status)
        for k, v in head.items(): self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        if body: self.wfile.write(body)
        if body is not None and int(head["Content_Length"]) != len(body): self.close_connection = True

    def log_message(self, *args): pass


class Web(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.pages, self.asked, self.delay, self.lock = {}, Counter(), 0, threading.Lock()
        self.site = f"http://127.0.0.1:{self.server_port}"

    def count(self, path):
        with self.lock: self.asked[path] += 1

    def handle_error(self, *args): pass

    def endpoints(self): return json.dumps({name: f"{self.site}/{name}" for name in ("openverse", "commons", "inaturalist", "serpapi")})

    def search(self, found):
        "Answer searches: `found` is {query: {provider: [address, …]}}."
        def page(name, answer):
            def reply(web):
                q = {k: v[0] for k, v in parse_qs(urlsplit(web.path).query).items()}
                words = next(q[k] for k in ("q", "gsrsearch", "taxon_name") if k in q).removeprefix("filetype:bitmap ")
                web.reply(json.dumps(answer(q, found.get(words, {}).get(name, []))).encode(), Content_Type="application/json")
            self.pages[f"/{name}"] = reply
        for name, answer in dict(openverse=_openverse, commons=_commons, inaturalist=_inaturalist, serpapi=_serpapi).items(): page(name, answer)


def _openverse(q, urls):
    page, size = int(q["page"]), int(q["page_size"])
    assert size <= 20
    return dict(result_count=len(urls), page_count=-(-len(urls)//size), page_size=size, page=page, results=[dict(id=u, title=u, url=u, foreign_landing_url=u + "#page", creator="Ursula Berg",
                license="by-sa", license_version="2.0", license_url="https://creativecommons.org/licenses/by-sa/2.0/", width=160, height=120) for u in urls[(page-1)*size:page*size]])


def _commons(q, urls):
    first, size = int(q.get("gsroffset", 0)), int(q["gsrlimit"])
    more = {"continue": {"gsroffset": first+size, "continue": "gsroffset||"}} if first+size < len(urls) else {}
    return dict(batchcomplete=True, query=dict(pages=[dict(pageid=i, ns=6, title=f"File:{i}.jpg", index=i+1, imageinfo=[dict(url=u, descriptionurl=u + "#page", width=160, height=120, mime="image/jpeg", sha1="0"*40,
                extmetadata=dict(Artist=dict(value="<b>Ursula</b> Berg"), LicenseShortName=dict(value="CC BY 4.0"), LicenseUrl=dict(value="https://creativecommons.org/licenses/by/4.0")))]) for i, u in enumerate(urls[first:first+size], first)][::-1]), **more)


def _inaturalist(q, urls):
    page, size = int(q["page"]), int(q["per_page"])
    return dict(total_results=len(urls), page=page, per_page=size, results=[dict(id=i, uri=u + "#page", quality_grade="research", user=dict(login="ursula"), taxon=dict(name=q["taxon_name"]),
                photos=[dict(id=i, license_code="cc-by", url=u, attribution="(c) Ursula Berg", original_dimensions=dict(width=160, height=120))]) for i, u in enumerate(urls)][(page-1)*size:page*size])


def _serpapi(q, urls):
    page = int(q["ijn"])
    found = [dict(position=i, title=u, link=u + "#page", original=u, original_width=160, original_height=120) for i, u in enumerate(urls)][page*100:(page+1)*100]
    return dict(images_results=found) if found else dict(error="Google hasn't returned any results for this query.")


@contextmanager
def web():
    with Web() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield server
        finally: server.shutdown()


def fill(server, per_label, copies=6, bad=True, failing=True, seed=0):
    """Put photos on the web: for each label `per_label` good ones of all kinds, copies of some, and everything that is none.
    `bad` may name some of `bad_kinds` only. Returns {label: addresses, as a search would list them}, {address of a good one: its picture}."""
    kinds, rng, good, listed = good_kinds(), random.Random(seed), {}, {}
    for l, label in enumerate(LABELS):
        urls = []
        for i in range(per_label):
            name, kind = list(kinds.items())[i % len(kinds)]
            im = scene(1000*(seed+1) + 300*l + i)
            suffix, answer = kind(im)
            path = f"/{label}/{i}." + (suffix % i if "%s" in suffix else suffix)
            path = quote(path, safe="/?=")
            server.pages[path] = answer
            if name == "moved": server.pages[f"/{label}/was-{i}.jpg"] = _redirect(path); path = f"/{label}/was-{i}.jpg"
            good[server.site + path] = im
            urls.append(server.site + path)
        plain = [u for i, u in enumerate(urls) if list(kinds)[i % len(kinds)] == "plain"]
        extra = []
        for i in range(copies):
            u = plain[i % len(plain)]
            im, path = good[u], f"/{label}/copy-{i}.jpg"
            server.pages[path] = [coded(im, quality=88), coded(im, quality=40), coded(im.resize((120, 90))), coded(im, "PNG"), coded(im.point(lambda v: int(v*.85)))][i % 5]
            extra.append((server.site + path, u))
        for u, original in extra: urls.insert(rng.randint(urls.index(original) + 1, len(urls) - 1), u)  # after its original, before the last good one
        odd = {k: v for k, v in bad_kinds(scene(9)).items() if bad is True or bad and k in bad} | (failing_kinds(scene(9)) if failing else {})
        for name, answer in odd.items():
            path = "/bad/round_and_round.jpg" if name == "round_and_round" else f"/bad/{label}-{name}.jpg"
            server.pages[path] = answer
            urls.insert(rng.randint(0, len(urls) - 1), server.site + path)
        listed[label] = urls
    return listed, good
