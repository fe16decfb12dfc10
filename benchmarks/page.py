"""What a visitor waits for and what a visitor costs: the course's own page (fastai in Voilà), a Gradio page with fastai, and ours.

    python benchmarks/page.py EXPORT.pkl BUNDLE [--rounds 5] [--visitors 1 10 30]

EXPORT.pkl is a fastai learner, BUNDLE the bundle made from it (`bearclf train`, `bearclf export`). Needs Chromium, and for the Gradio page a Python with gradio and fastai (`--gradio`); without, that page is left out.
Each page is served from this machine, one at a time, in turns, and visited with the same Chromium and the same two drawn photos (1 and 12 megapixels):
- from navigation to a button that takes a photo, for the first visitor and for the tenth while nine are there;
- from navigation to the answer of a photo of 1 megapixel that is chosen at the first moment possible;
- four seconds later, from choosing a photo (and pressing "Classify", where there is such a button) to its answer;
- bytes that came over the network, without a cache; and memory of all its processes (PSS, which counts what processes share once) with so many visitors.
The course's page is not asked to hold more than ten visitors: thirty would need more memory than most machines have.
"""
import argparse, contextlib, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from time import perf_counter
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil
from PIL import Image
from playwright.sync_api import sync_playwright

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("export", type=Path)
ap.add_argument("bundle", type=Path)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--gradio", default=sys.executable, help="a Python that has gradio and fastai; default: this one")
ap.add_argument("--visitors", nargs="+", type=int, default=[1, 10, 30])

STOCK = """from fastai.vision.all import *
import ipywidgets as widgets
learn = load_learner({export!r})
upload, out, label, button = widgets.FileUpload(), widgets.Output(), widgets.Label(), widgets.Button(description='Classify')
def on_click(change):
    value = upload.value
    img = PILImage.create(bytes((list(value.values())[-1] if isinstance(value, dict) else value[-1])['content']))
    out.clear_output()
    with out: display(img.to_thumb(128, 128))
    pred, idx, probs = learn.predict(img)
    label.value = f'Prediction: {{pred}}; Probability: {{probs[idx]:.04f}}'
button.on_click(on_click)
widgets.VBox([widgets.Label('Select your bear!'), upload, button, out, label])"""

GRADIO = """import sys
from fastai.vision.all import *
import gradio as gr
learn = load_learner({export!r})
def classify(img):
    with learn.no_bar(): pred, idx, probs = learn.predict(PILImage.create(img))
    return dict(zip(learn.dls.vocab, map(float, probs)))
gr.Interface(classify, gr.Image(), gr.Label()).launch(server_port=int(sys.argv[1]), quiet=True)"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def come(tab, answered):
    "Seconds since navigation at which the page shows an answer; it looks by itself, as for `USABLE`."
    return tab.evaluate(f"() => new Promise(done => {{ const look = setInterval(() => ({answered})() && (clearInterval(look), done(performance.now()/1e3)), 5) }})")


def ways(args, folder):
    "Name → (command, what of the page takes a photo: its selector and a word in it, how to give one: it tells when its answer came)."
    nb = dict(cells=[dict(cell_type="code", id="a", execution_count=None, metadata={}, outputs=[], source=STOCK.format(export=str(args.export.absolute())))],
              metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")), nbformat=4, nbformat_minor=5)
    (folder/"stock.ipynb").write_text(json.dumps(nb))
    (folder/"page.py").write_text(GRADIO.format(export=str(args.export.absolute())))

    def stock(tab, photo):
        with tab.expect_file_chooser() as chooser: tab.locator("button:has-text('Upload')").click()
        chooser.value.set_files(str(photo))
        tab.locator("button:has-text('(1)')").wait_for(timeout=60_000)
        tab.get_by_text("Classify").click()
        return come(tab, "() => /Prediction: \\w/.test(document.body.textContent)")

    def gradio(tab, photo):
        tab.set_input_files("input[type=file]", str(photo))
        tab.wait_for_selector("img[src*='/file=']", timeout=60_000)
        tab.get_by_role("button", name="Submit").click()
        return come(tab, "() => document.querySelector('[data-testid=label-output-value]')")

    def ours(tab, photo):
        n = tab.locator(".bearclf .card").count()
        tab.set_input_files(".bearclf-upload input", str(photo))
        return come(tab, f"() => document.querySelectorAll('.bearclf .card').length > {n}")

    out = {"fastai in Voilà": ([sys.executable, "-m", "voila", str(folder/"stock.ipynb"), "--no-browser", "--port={port}"], ("button", "Upload"), stock)}
    if not subprocess.run([args.gradio, "-c", "import gradio"], capture_output=True).returncode: out["fastai in Gradio"] = ([args.gradio, str(folder/"page.py"), "{port}"], ("input[type=file]", ""), gradio)
    out["bearclf"] = ([str(Path(sys.executable).with_name("bearclf")), "app", "--no-browser", "--port={port}", "--bundle", str(args.bundle.absolute())], (".bearclf-upload input", ""), ours)
    return out


@contextlib.contextmanager
def served(command):
    "The address of a page, once it answers; its processes are ended afterwards."
    port = free_port()
    server = subprocess.Popen([part.format(port=port) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | dict(GRADIO_ANALYTICS_ENABLED="False"))
    try:
        deadline = perf_counter() + 120
        while True:
            with contextlib.suppress(URLError, ConnectionError), urlopen(f"http://127.0.0.1:{port}/", timeout=60): break
            if perf_counter() > deadline or server.poll() is not None: sys.exit(f"{command} did not start")
            time.sleep(.3)
        time.sleep(8)  # what it prepares for the next visitor is ready, and the first one's is over
        yield f"http://127.0.0.1:{port}/", psutil.Process(server.pid)
    finally:
        children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired): server.wait(20)
        for p in [*children]:
            with contextlib.suppress(psutil.NoSuchProcess): p.kill()


def pss(process):
    "MB of a process and all its descendants."
    total = 0
    for p in [process, *process.children(recursive=True)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            total += next(int(line.split()[1]) for line in Path(f"/proc/{p.pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return total/1e3


USABLE = """const look = setInterval(() => {
    if (![...document.querySelectorAll(%s)].some(e => e.textContent.includes(%s))) return
    window.usable = performance.now()
    clearInterval(look)
}, 5)"""  # the page itself looks, and only when it is not too busy to take a click; from outside, one would wait for the browser's attention too


def visit(chromium, url, ready):
    "A new visitor with an empty cache: the tab, seconds until a photo can be given, and a function that ends the counting of bytes and tells them."
    context = chromium.new_context()
    context.add_init_script(USABLE % tuple(json.dumps(part) for part in ready))
    tab = context.new_page()
    came, session = [0], tab.context.new_cdp_session(tab)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda e: came.__setitem__(0, came[0] + e["encodedDataLength"]))
    session.on("Network.webSocketFrameReceived", lambda e: came.__setitem__(0, came[0] + len(e["response"]["payloadData"])))
    tab.goto(url, wait_until="commit", timeout=120_000)
    def counted():
        session.detach()
        return came[0]
    return tab, seen(tab), counted


def seen(tab):
    "Seconds from navigation to a button that takes a photo."
    while not (found := tab.evaluate("window.usable")): time.sleep(.01)
    return found/1e3


def turn(chromium, way, counts, photos):
    "One measurement of one page: a dict of numbers."
    command, ready, give = way
    out = {}
    with served(command) as (url, process):
        tabs = []
        while len(tabs) < max(counts):
            tab, took, counted = visit(chromium, url, ready)
            tabs.append(tab)
            if len(tabs) == 1: out["usable, s"] = took
            if len(tabs) == 10: out["usable for the tenth, s"] = took
            if len(tabs) == 1:
                out["first answer, s"] = give(tab, photos["1 MP"])
                out["bytes, MB"] = counted()/1e6  # from here on, nothing slows the browser down
                for name, photo in photos.items():
                    tab.reload()
                    seen(tab)
                    time.sleep(4)  # the visitor looks for a photo
                    start = tab.evaluate("performance.now()")/1e3
                    out[f"answer, {name}, s"] = give(tab, photo) - start
            time.sleep(3)  # between one visitor and the next
            if len(tabs) in counts:
                give(tab, photos["1 MP"]) if len(tabs) > 1 else None
                out[f"memory at {len(tabs)}, MB"] = pss(process)
        for tab in tabs: tab.context.close()
    return out


def drawn(folder):
    "Two photos of a drawn bear, as a camera would save them."
    from bearclf.practice import draw_bear
    out, bear = {}, draw_bear("teddy", np.random.default_rng(4))
    noise = np.random.default_rng(0)
    for name, size in {"1 MP": (1154, 866), "12 MP": (4000, 3000)}.items():
        grain = noise.normal(0, 6, (size[1], size[0], 1))
        out[name] = folder/f"{size[0]}.jpg"
        Image.fromarray(np.clip(np.asarray(bear.resize(size)) + grain, 0, 255).astype(np.uint8)).save(out[name], quality=92)
    return out


def main():
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as play:
        photos, all_ways = drawn(Path(tmp)), ways(args, Path(tmp))
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found = {name: [] for name in all_ways}
        for i in range(args.rounds):
            for name, way in all_ways.items():
                counts = [c for c in args.visitors if c <= 10 or name != "fastai in Voilà"] if i == 0 else [1]  # memory and crowds once, the rest in every turn
                found[name].append(turn(chromium, way, counts, photos))
        rows = list(dict.fromkeys(key for each in found.values() for out in each for key in out))
        print(f"{'':26}" + "".join(f"{name:>18}" for name in found))
        for row in rows:
            cells = [statistics.median(values) if (values := [out[row] for out in each if row in out]) else float("nan") for each in found.values()]
            print(f"{row:26}" + "".join(f"{cell:18.2f}" for cell in cells))


if __name__ == "__main__": main()
