"""The page as a visitor meets it: real Chromium, real Voilà."""
import json, shutil, signal, socket, subprocess, sys
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect

from bearclf.app import SORRY
from bearclf.classify import Classifier, bundle_folder
from bearclf.core import photo_files
from bearclf.practice import draw_bear
from browser import WAIT
from conftest import ROOT, app, free_port


def voila(notebook):
    "Plain `voila`: command and address."
    port = free_port()
    return [sys.executable, "-m", "voila", notebook, "--no-browser", f"--port={port}"], f"http://localhost:{port}/"


def test_says_what_predict_says(visitor, bears):
    said = visitor.choose(bears[2])
    assert said == [Classifier().predict(bears[2]).words()]
    visitor.status(f"teddy.png: {said[0]}")
    assert visitor.tab.locator(".bearclf .bars li").count() == 3
    assert visitor.tab.evaluate("document.querySelector('.bearclf .card img').naturalWidth") > 0


def test_shows_where_the_answer_comes_from_when_asked(visitor, bears):
    visitor.choose(bears[2])
    picture = visitor.tab.locator(".bearclf .card .where img")
    assert not picture.is_visible()
    visitor.tab.locator(".bearclf .card .where summary").focus()
    visitor.tab.keyboard.press("Enter")
    assert picture.is_visible() and "teddy" in picture.get_attribute("alt")


def test_names_real_bears(visitor, photos):
    files = [f for label in sorted(p.name for p in photos.iterdir() if p.is_dir()) for f in photo_files(photos/label)[:3]]
    said = visitor.choose(*files)[::-1]
    right = sum(f.parent.name in words for f, words in zip(files, said))
    assert right >= len(files) - 1, said


def test_text_named_jpg_gets_its_sentence(visitor, tmp_path):
    (tmp_path/"diary.jpg").write_text("Dear diary, today I saw a bear.")
    (tmp_path/"page.jpg").write_text("<!DOCTYPE html><html></html>")
    page, diary = visitor.choose(tmp_path/"diary.jpg", tmp_path/"page.jpg")
    assert diary.startswith("diary.jpg is not a photo")
    assert "web page" in page


def test_every_kind_of_bad_file_gets_a_sentence(visitor, bears, tmp_path):
    rng = np.random.default_rng(0)
    whole = tmp_path/"whole.jpg"
    Image.fromarray(rng.integers(0, 256, (400, 500, 3), dtype="uint8")).save(whole)
    bad = {
        "setup.jpg": b"MZ" + rng.bytes(5000), "cut.jpg": whole.read_bytes()[:whole.stat().st_size//3], "empty.png": b"", "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>window.hit=1</script></svg>",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + rng.bytes(3000), "film.mp4": b"\0\0\0\x18ftypmp42" + rng.bytes(3000), "huge.raw": rng.bytes(9_000_000), "dot.gif": b"GIF89a" + rng.bytes(20), "paper.pdf": b"%PDF-1.7\n" + rng.bytes(500)}
    for name, content in bad.items(): (tmp_path/name).write_bytes(content)
    visitor.choose(*(tmp_path/name for name in bad))
    cards = visitor.tab.locator(".bearclf .card")
    told = dict(zip(cards.locator(".file").all_text_contents(), cards.evaluate_all("all => all.map(e => [e.classList.contains('no_photo'), e.querySelector('.words').textContent])")))
    assert set(told) == set(bad) and SORRY not in str(told)
    for name, (refused, words) in told.items():
        if name != "drawing.svg": assert refused and name in words, (name, words)  # the browser can open an SVG, and sends a picture of it
    assert "too big" in told["huge.raw"][1] and "HEIC" in told["phone.heic"][1]
    assert visitor.tab.evaluate("window.hit") is None


@pytest.mark.once
def test_a_thousand_photos_at_once(visitor, bears):
    visitor.event("drop", bears[:1] * 1000)
    visitor.status("1000 photos are too many at once: the last 980 are left out.")
    assert len(visitor.cards(20)) == 20


def test_a_folder_dropped_on_the_page(visitor):
    visitor.tab.evaluate("""() => {
        const carried = new DataTransfer(), folder = new File([], 'holiday')
        folder.arrayBuffer = folder.text = () => Promise.reject(new DOMException('', 'NotFoundError'))  // as a browser reads a folder
        carried.items.add(folder)
        document.querySelector('.bearclf-upload').dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: carried}))
    }""")
    assert "holiday" in visitor.cards(1)[0]


@pytest.mark.once
def test_who_leaves_in_the_middle_of_an_upload_harms_nobody(visit, serve, bears, tmp_path):
    server = serve(*app())
    big = tmp_path/"big.jpg"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (2400, 3200, 3), dtype="uint8")).save(big, quality=95)
    other = visit(server.url).ready()
    for wait in (0, 300, 900, 1500):
        leaving = visit(server.url).ready()
        leaving.tab.set_input_files(".bearclf-upload input", [str(big)]*8)
        leaving.tab.wait_for_timeout(wait)
        leaving.tab.close()
    assert other.choose(bears[2]) == [Classifier().predict(bears[2]).words()]
    after = visit(server.url).ready()
    after.choose(bears[0])
    for v in (other, after): v.tab.close()
    server.terminate()
    assert "Traceback" not in server.communicate(timeout=30)[1]


@pytest.mark.parametrize("served", ["bearclf app", "voila app.ipynb"])
def test_a_script_that_gets_into_the_page_can_ask_nobody(visit, serve, bears, served):
    visitor = visit(serve(*(app() if served == "bearclf app" else (*voila("app.ipynb"), ROOT/"nbs"))).url).ready()
    visitor.choose(bears[0])
    visitor.errors.clear()
    visitor.tab.evaluate("""() => {
        document.querySelector('.bearclf .about').insertAdjacentHTML('beforeend', '<img src="http://example.com/x.png"><img src=x onerror="window.hit=1">')
        fetch('http://example.com/').catch(() => window.refused = true)
    }""")
    visitor.tab.wait_for_timeout(1000)
    assert visitor.tab.evaluate("[window.refused, window.hit]") == [True, None if served == "bearclf app" else 1]  # plain Voilà cannot give each script a word of its own
    assert any("Content Security Policy" in error for error in visitor.errors)
    visitor.errors.clear()
    visitor.asked[:] = [url for url in visitor.asked if "example.com" not in url]  # asked for, and refused by the browser


def test_several_then_clear_then_again(visitor, bears):
    visitor.choose(*bears)
    assert visitor.tab.locator(".bearclf .card .file").all_text_contents() == ["teddy.png", "grizzly.png", "black.png"]
    visitor.status("3 photos answered")
    visitor.tab.get_by_role("button", name="Clear").click()
    visitor.cards(0)
    visitor.status("Cleared.")
    assert visitor.tab.evaluate("document.activeElement.type") == "file"
    assert not visitor.tab.get_by_role("button", name="Clear").is_visible()
    visitor.choose(bears[0])


@pytest.mark.parametrize("name", ["drop", "paste"])
def test_drop_and_paste(visitor, bears, name):
    visitor.event(name, bears[:2])
    assert len(visitor.cards(2)) == 2


def test_too_many_at_once(visitor, bears):
    visitor.event("drop", bears[:1] * 23)
    visitor.status("23 photos are too many at once")
    assert len(visitor.cards(20)) == 20
    visitor.status("20 photos answered. 23 photos are too many at once: the last 3 are left out.")


def test_photo_over_ten_megabytes_lying_on_its_side(visitor, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (2400, 3200, 3), dtype="uint8")
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me a quarter clockwise"
    Image.fromarray(noise).save(tmp_path/"big.jpg", quality=98, subsampling=0, exif=exif)
    assert (tmp_path/"big.jpg").stat().st_size > 10_000_000
    visitor.choose(tmp_path/"big.jpg")
    width, height = visitor.tab.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('.bearclf .card img'))")
    assert height > width


def test_photo_only_the_kernel_can_open(visitor, tmp_path):
    draw_bear("black", np.random.default_rng(2)).save(tmp_path/"scan.tif")
    said = visitor.choose(tmp_path/"scan.tif")
    assert said == [Classifier().predict(tmp_path/"scan.tif").words()]


def test_name_with_html_is_harmless(visitor, bears, tmp_path):
    for content, name in ((bears[0].read_bytes(), "<img src=x onerror=window.hit=1>.png"), (b"text", "<script>window.hit=1<\u2215script>.jpg")):
        (tmp_path/name).write_bytes(content)
    visitor.choose(*tmp_path.glob("<*"))
    visitor.tab.wait_for_timeout(500)
    assert visitor.tab.evaluate("window.hit") is None
    assert visitor.tab.locator(".bearclf .card .file").filter(has_text="<img src=x").count() == 1


def test_keyboard_reaches_the_button(visitor):
    visitor.tab.keyboard.press("Tab")
    assert visitor.tab.evaluate("document.activeElement.type") == "file"
    assert visitor.tab.get_by_label("Choose photos").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(visit, page_url, bears, scheme):
    visitor = visit(page_url, viewport=dict(width=360, height=740), color_scheme=scheme).ready()
    visitor.choose(*bears)
    assert visitor.tab.evaluate("document.documentElement.scrollWidth") <= 360
    paper = visitor.tab.evaluate("getComputedStyle(document.querySelector('.bearclf-page')).backgroundColor")
    assert (sum(int(c) for c in paper[4:-1].split(",")) < 382) == (scheme == "dark")


@pytest.mark.parametrize("folder,notebook", [(".", "nbs/app.ipynb"), ("nbs", "app.ipynb")])
def test_plain_voila(visit, serve, bears, folder, notebook):
    visitor = visit(serve(*voila(notebook), ROOT/folder).url).ready()
    visitor.choose(bears[1])
    assert visitor.tab.locator("h1").text_content() == "Which bear is it?"


def test_broken_bundle_is_one_sentence_on_the_page(visit, serve, tmp_path):
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    (bundle/"model.onnx").write_bytes(b"not it")
    visitor = visit(serve(*voila("app.ipynb"), ROOT/"nbs", dict(BEARCLF_BUNDLE=str(bundle))).url)
    visitor.tab.wait_for_selector(".bearclf .sentence", timeout=WAIT)
    assert "SHA-256" in visitor.tab.locator(".sentence").text_content()
    assert "Traceback" not in visitor.tab.content()


def test_another_bundle_is_another_page(visit, serve, tmp_path):
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    spec = json.loads((bundle/"bundle.json").read_text())
    (bundle/"bundle.json").write_text(json.dumps({**spec, "labels": ["daisy", "<b>rose</b>", "tulip"]}))
    visitor = visit(serve(*app("--bundle", "b"), tmp_path).url).ready()
    assert visitor.tab.locator("h1").text_content() == "Photo classifier: daisy, <b>rose</b>, tulip"


def test_runs_in_this_python_whatever_else_is_called_python3(visit, serve, bears, tmp_path):
    kernel = tmp_path/"kernels"/"python3"
    kernel.mkdir(parents=True)
    (kernel/"kernel.json").write_text(json.dumps(dict(argv=["/bin/false"], display_name="another", language="python")))
    server = serve(*app(), env=dict(JUPYTER_PATH=str(tmp_path), JUPYTER_DATA_DIR=str(tmp_path)))
    visit(server.url).ready().choose(bears[0])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ends_when_told_and_leaves_no_kernel(serve, sent):
    server = serve(*app())
    family = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(sent)
    out, err = server.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert server.returncode == 0 and not alive
    assert out.splitlines() == [f"bearclf page: {server.url.rstrip('/')}"]
    assert "Traceback" not in err


@pytest.mark.parametrize("mistake", ["port", "bundle"])
def test_mistake_is_one_line_and_status_2(tmp_path, mistake):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        wrong = ["--port", str(other.getsockname()[1])] if mistake == "port" else ["--bundle", str(tmp_path)]
        command, _ = app(*wrong)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert ("in use" if mistake == "port" else "no bundle") in done.stderr


@pytest.mark.parametrize("path", ["app.ipynb", "voila/files/app.ipynb", "voila/files/images/page.png", "voila/files/voila.json", "voila/files/../settings.ini", "voila/tree"])
def test_serves_no_file_beside_the_page(page_url, path):
    with pytest.raises(HTTPError) as e: urlopen(page_url + path, timeout=60)
    assert e.value.code in (400, 403, 404)


def test_health_costs_no_kernel(serve):
    server = serve(*app())
    kernels = lambda: len(psutil.Process(server.pid).children(recursive=True))
    before = kernels()
    for _ in range(20): assert json.loads(urlopen(server.url + "health").read()) == {"status": "ok"}
    assert kernels() <= before + 1  # the one that waits for a visitor may have come


@pytest.mark.once
def test_in_a_frame_of_another_site(serve, chromium, bears, tmp_path):
    "Nobody may frame the page, unless they are named."
    port = free_port()
    other = f"http://127.0.0.1:{port}"  # localhost and 127.0.0.1 are different sites to a browser
    serve([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)], other)
    for options, shows in (([], False), (["--frame", other], True)):
        command, url = app(*options)
        serve(command, url)
        context = chromium.new_context()
        (tmp_path/"index.html").write_text(f"<iframe src='{url}' style='width:100%;height:600px'></iframe>")
        tab = context.new_page()
        tab.goto(f"{other}/")
        page = tab.frame_locator("iframe")
        if shows:
            page.locator("#rendered_cells .bearclf-upload input").wait_for(state="attached", timeout=60_000)
            page.locator(".bearclf-upload input").set_input_files(str(bears[0]))
            expect(page.locator(".card .words")).to_be_visible(timeout=60_000)
        else:
            tab.wait_for_timeout(3000)
            assert page.locator(".bearclf-upload").count() == 0
        context.close()
