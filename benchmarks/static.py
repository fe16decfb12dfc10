"""What a visitor of the static page waits for and downloads, and how far its answers are from Python's.

    python benchmarks/static.py [PHOTOS ...] [--bundle DIR] [--rounds 5]

PHOTOS are photos or folders of them; without any, only times and sizes are measured. Needs Chromium.
The page is served by `python -m http.server`, and with the headers that allow threads by a server that is the same but for them. In turns, with a fresh browser profile each time:
- from navigation to the answer of a drawn photo of 1 megapixel that is chosen at once, on the first visit; the same on a second visit, which loads all from the browser;
- from choosing a photo to its answer afterwards, for 1 and for 12 megapixels, with one thread and with as many as there are cores (at most four);
- bytes over the wire on the first visit, without the host's compression.
Then each photo is asked of the page and of `Classifier.predict`: the largest difference of a probability, and whether label and verdict are the same. "decoded small" are JPEGs that Pillow takes smaller out of the file than they are: no browser does that.
"""
import argparse, json, statistics, sys, tempfile, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from bearclf.classify import Classifier
from bearclf.core import PhotoError, photo_files
from bearclf.static import static_page, visit_size
from bearclf.practice import draw_bear

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("photos", nargs="*", type=Path)
ap.add_argument("--bundle", type=Path)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--chromium", default="/usr/bin/chromium")


class Quiet(SimpleHTTPRequestHandler):
    threads, sent = False, []
    def end_headers(self):
        if self.threads: self.send_header("Cross-Origin-Opener-Policy", "same-origin"); self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()
    def log_message(self, *_): pass
    def copyfile(self, source, out):
        Quiet.sent.append(out.write(source.read()))


class Threads(Quiet): threads = True


def served(folder, handler):
    server = ThreadingHTTPServer(("localhost", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://localhost:{server.server_port}/"


def arrive(tab, url, photo):
    "Seconds from navigation to the first answer."
    tab.goto(url, wait_until="commit")
    tab.wait_for_selector(".bearclf-upload input", state="attached")
    return ask(tab, [photo])[2]


def ask(tab, photos):
    "(cards, oldest first; seconds until the last one was there, from the choice and from navigation); the page looks by itself."
    before = tab.locator(".card").count()
    waiting = f"() => new Promise(done => {{ const look = setInterval(() => document.querySelectorAll('.card').length === {before + len(photos)} && (clearInterval(look), done(performance.now())), 2) }})"
    tab.evaluate("() => document.querySelector('.bearclf-upload input').addEventListener('change', () => window.begun = performance.now(), {once: true, capture: true})")
    tab.set_input_files(".bearclf-upload input", [str(p) for p in photos])
    there = tab.evaluate(waiting)
    seconds = (there - tab.evaluate("begun"))/1e3
    cards = tab.locator(".card").evaluate_all("all => all.map(e => [e.classList[1], JSON.parse(e.dataset.probs ?? 'null')])")[::-1]
    return cards[before:], seconds, there/1e3


def times(browser, urls, photos, rounds):
    "name → seconds (bytes for 'wire'), of each round."
    took = {}
    def note(name, value): took.setdefault(name, []).append(value)
    for _ in range(rounds):
        for threads, url in urls.items():
            context = browser.new_context()
            tab, Quiet.sent = context.new_page(), []
            note(f"first visit, {threads}", arrive(tab, url, photos[0]))
            note(f"wire, {threads}", sum(Quiet.sent))
            tab.evaluate("() => new Promise(done => { const look = setInterval(() => navigator.serviceWorker.controller?.state === 'activated' && (clearInterval(look), done()), 20) })")
            tab.wait_for_timeout(2000)
            for name, photo in zip(("1 megapixel", "12 megapixels"), photos):
                for _ in range(5): note(f"{name}, {threads}", ask(tab, [photo])[1])
            note(f"second visit, {threads}", arrive(tab, url, photos[0]))
            context.close()
    return took


def compare(tab, clf, photos):
    "Print how far the page's answers are from Python's."
    rows, refused = [], []
    for i in range(0, len(photos), 20):
        for photo, (kind, probs) in zip(photos[i:i + 20], ask(tab, photos[i:i + 20])[0]):
            try: mine = clf.predict(photo)
            except PhotoError: mine = None
            if mine is None or probs is None: refused.append((mine is None) == (probs is None)); continue
            small = (im := Image.open(photo)).format == "JPEG" and min(im.size) >= 2*(clf.spec["image"].get("draft") or 10**9)
            rows.append((np.abs(np.array(probs) - list(mine.probs.values())).max(), small, kind == mine.verdict, np.argmax(probs) == clf.labels.index(mine.label), photo.name))
        tab.locator("button.clear").click()
    for name, part in (("all", rows), ("decoded small", [r for r in rows if r[1]]), ("others", [r for r in rows if not r[1]])):
        if part: print(f"{name}: {len(part)} photos, largest difference {max(r[0] for r in part):.4f}, median {statistics.median(r[0] for r in part):.1e}, over 0.02: {sum(r[0] > .02 for r in part)}, another label: {sum(not r[3] for r in part)}, another verdict: {sum(not r[2] for r in part)}")
    print(f"no photo for either: {sum(refused)}, for one of them: {len(refused) - sum(refused)}")
    for r in sorted(rows, reverse=True)[:8]: print(f"  {r[0]:.4f} {r[4]}")


def main():
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        folder, rng = Path(folder), np.random.default_rng(3)
        page = static_page(folder/"page", args.bundle)
        bear = draw_bear("grizzly", rng)
        drawn = [folder/"1.jpg", folder/"12.jpg"]
        for photo, size in zip(drawn, ((1155, 866), (4000, 3000))): bear.resize(size).save(photo, quality=90)
        browser = p.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
        urls = {"one thread": served(page, Quiet), "threads": served(page, Threads)}
        print(f"Chromium {browser.version}; the files of a first visit: {visit_size(page)/1e6:.2f} MB")
        for name, values in times(browser, urls, drawn, args.rounds).items():
            scale, unit = (1e-6, "MB") if name.startswith("wire") else (1, "s")
            print(f"{name}: median {statistics.median(values)*scale:.3f} {unit}, from {min(values)*scale:.3f} to {max(values)*scale:.3f}")
        if not args.photos: return
        tab = browser.new_page()
        arrive(tab, urls["one thread"], drawn[0])
        tab.locator("button.clear").click()
        compare(tab, Classifier(args.bundle), [f for given in args.photos for f in photo_files(given)])


if __name__ == "__main__": main()
