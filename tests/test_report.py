"""`bearclf report`: one file that opens from disk, without a network, and can be printed."""
import json
import re
import shutil
import subprocess
import sys
from html import unescape

import numpy as np
import pytest

from bearclf.core import BearclfError

HOSTILE = "teddy <img src=x onerror=alert(1)>"


def report(*args):
    done = subprocess.run([sys.executable, "-m", "bearclf.cli", "report", *map(str, args)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run on drawn photos, some with names that would like to be code."
    from bearclf.practice import draw_bear
    from bearclf.train import train
    at, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    for label in ("black", "grizzly"):
        (at/"photos"/label).mkdir(parents=True)
        for i in range(30): draw_bear(label, rng).save(at/"photos"/label/(f"{i} '\"&<b>.png" if sys.platform != "win32" else f"{i} '&.png"))
    train(at/"photos", at/"run", epochs=1, size=64, bs=8)
    rows = [json.dumps(dict(file=f"black/{i} '\"&<b>.png", label="black", source="</table><script>alert(1)</script>", license=HOSTILE)) for i in range(12)]
    (at/"photos"/"photos.jsonl").write_text("\n".join(rows) + "\n")
    return at


@pytest.fixture(scope="module")
def page(trained):
    status, out, err = report(trained/"run")
    assert (status, "report.html" in out) == (0, True), err
    return trained/"run"/"report.html"


def opened(chromium, page, **how):
    "The page from disk, with everything else closed off."
    context = chromium.new_context(**how)
    tab, context.asked, context.wrong = context.new_page(), [], []
    tab.on("request", lambda r: r.url.startswith("data:") or context.asked.append(r.url))
    tab.on("console", lambda m: m.type == "error" and context.wrong.append(m.text))
    tab.on("pageerror", lambda e: context.wrong.append(str(e)))
    tab.on("dialog", lambda d: context.wrong.append(d.message))
    context.set_offline(True)
    tab.goto(page.as_uri())
    return context, tab


@pytest.mark.parametrize("width, scheme", [(360, "light"), (1200, "dark")])
def test_opens_from_disk_alone(chromium, page, trained, width, scheme):
    from axe_playwright_python.sync_playwright import Axe
    context, tab = opened(chromium, page, viewport=dict(width=width, height=900), color_scheme=scheme)
    assert context.asked == [page.as_uri()] and not context.wrong
    assert [h.inner_text() for h in tab.locator("h2").all()] == ["What it takes for what", "Label by label", "The photos it finds hardest", "May its percentages be believed?", "Photos that have something in common", "What it was taught with"]
    run = json.loads((trained/"run"/"run.json").read_text())
    assert f"{run['metrics']['right']} of {run['metrics']['n']}" in tab.locator(".lead").inner_text()
    table = tab.locator("table").first
    cells = [[int(c.split()[0]) for c in row.locator("td").all_inner_texts()] for row in table.locator("tbody tr").all()]
    assert sum(map(sum, cells)) == run["metrics"]["n"] and sum(cells[i][i] for i in range(len(cells))) == run["metrics"]["right"]
    pictures = tab.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
    assert len(pictures) == 2*min(12, run["metrics"]["n"]) and min(pictures) > 50 and tab.locator("figure svg").count() == 2
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(tab)
    assert not found.response["violations"], found.generate_report()
    assert HOSTILE in tab.locator("body").inner_text() and "</table><script>" in tab.locator("body").inner_text()
    context.close()


def test_on_paper(chromium, page):
    context, tab = opened(chromium, page, color_scheme="dark")
    data = tab.pdf(format="A4")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 8
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('main')).color") == "rgb(0, 0, 0)"
    tab.set_viewport_size(dict(width=718, height=1000))  # A4 less its margins
    assert tab.evaluate("document.documentElement.scrollWidth") <= 718
    context.close()


def test_after_cleaning_and_without_some_photos(trained, tmp_path):
    from bearclf.moves import set_aside
    shutil.copytree(trained/"photos", tmp_path/"photos")
    run = json.loads((trained/"run"/"run.json").read_text())
    valid = run["split"]["valid"]
    set_aside([tmp_path/"photos"/valid[0]], tmp_path/"photos")
    status, out, err = report(trained/"run", "--photos", tmp_path/"photos", "--out", tmp_path/"a.html")
    assert status == 0 and "no longer there" not in (tmp_path/"a.html").read_text()  # found in quarantine
    (tmp_path/"photos"/valid[1]).unlink()
    status, out, err = report(trained/"run", "--photos", tmp_path/"photos", "--out", tmp_path/"b.html")
    assert status == 0 and f"1 of {len(valid)} validation photos are no longer there" in unescape((tmp_path/"b.html").read_text())


def test_mistakes_are_sentences(trained, tmp_path):
    from bearclf.report import write_report
    status, out, err = report(trained/"run", "--photos", tmp_path/"nowhere")
    assert status == 2 and "no longer in" in err and len(err.splitlines()) == 1
    status, out, err = report(trained/"run", "--out", tmp_path)
    assert status == 2 and "end in .html" in err and len(err.splitlines()) == 1
    with pytest.raises(BearclfError, match="not a run folder"): write_report(tmp_path)
    shutil.copytree(trained/"run", tmp_path/"run")
    (tmp_path/"run"/"run.json").write_text("{")
    with pytest.raises(BearclfError, match="cannot be read"): write_report(tmp_path/"run")
    shutil.copy(trained/"run"/"run.json", tmp_path/"run"/"run.json")
    (tmp_path/"run"/"export.pkl").write_bytes(b"half")
    with pytest.raises(BearclfError, match="is damaged"): write_report(tmp_path/"run")
