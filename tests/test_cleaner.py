"""The cleaner in JupyterLab, by mouse and by keyboard, and beside it fastai's own."""
import re
import shutil
import statistics
import time

import numpy as np
import pytest
from playwright.sync_api import expect

from bearclf.core import BearclfError, sha256
from bearclf.folder import read_manifest
from bearclf.moves import DELETE, read_journal
from lab import Lab, lab, notebook

LEARNER = """from bearclf.clean import PhotoCleaner
from bearclf.data import photo_block
from bearclf.train import photo_learner
learn = photo_learner(photo_block(size=64).dataloaders('photos', bs=16))  # untrained: it suspects many"""
HERE = "cleaner = PhotoCleaner(learn)\ncleaner"


@pytest.fixture
def practice(tmp_path):
    "A practice set without its broken files."
    from bearclf.moves import set_aside
    from bearclf.practice import practice_set
    from bearclf.verify import verify_photos
    folder = practice_set(tmp_path/"photos", 20, 42)
    set_aside(verify_photos(folder), folder)
    (folder/"cleaning.jsonl").unlink()
    return folder


def everything(folder): return {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file() and p.parent != folder}


def test_mark_switch_apply_undo_restart_undo(chromium, serve, practice):
    notebook(practice.parent/"x.ipynb", LEARNER, HERE, "sorted(cleaner.marks.items())", "[str(cleaner.fns[i]) for i in cleaner.delete()], cleaner.change()")
    command, url = lab(practice.parent)
    serve(command, url)
    began, page = everything(practice), Lab(chromium, url, "x.ipynb")
    page.run(0); page.run(1)
    tab = page.tab
    root, cards = tab.locator(".bearclf-cleaner"), tab.locator(".bearclf-cleaner .card")
    menu = lambda name: root.locator(f"select[name={name}]")
    name = lambda i: cards.nth(i).locator("figcaption").first.inner_text()
    expect(cards).to_have_count(24)
    shown = sum(not file.startswith(".") for file in began)

    # by mouse: two marks, then another label, another split, and back
    marked = {name(0): DELETE, name(2): "grizzly" if not name(2).startswith("grizzly") else "teddy"}
    cards.nth(0).locator("select").select_option(DELETE)
    cards.nth(2).locator("select").select_option(marked[name(2)])
    expect(root.get_by_role("button", name="Apply 2 marks")).to_be_enabled()
    menu("label").select_option("teddy")
    expect(root.locator(".where")).to_contain_text(re.compile(r"· (19|2\d) photos"))
    menu("split").select_option("valid")
    expect(root.locator(".where")).to_contain_text(re.compile(r"· \d photos"))
    menu("split").select_option(""); menu("label").select_option("")
    expect(root.locator(".where")).to_contain_text(f"· {shown} photos")
    assert cards.nth(0).locator("select").input_value() == DELETE and cards.nth(2).locator("select").input_value() == marked[name(2)]
    page.run(2)
    assert page.said(2) == repr(sorted(marked.items()))

    # by keyboard alone
    menu("label").focus()
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.classList.contains('card')"): break
    tab.keyboard.press("ArrowRight")
    second, held = name(1), page.cell(0).count()
    tab.keyboard.press("d"); tab.keyboard.press("d")  # in JupyterLab's own hands: delete the cell
    marked[second] = DELETE
    tab.keyboard.press("PageDown")
    expect(root.locator(".where")).to_contain_text("2 of")
    fourth = name(0)
    tab.keyboard.press("3" if not fourth.startswith("teddy") else "1")
    marked[fourth] = "teddy" if not fourth.startswith("teddy") else "black"
    tab.keyboard.press("ArrowLeft")  # back over the edge of the page
    expect(root.locator(".where")).to_contain_text("1 of")
    expect(cards.nth(23)).to_be_focused()
    tab.keyboard.press("x"); tab.keyboard.press("a"); tab.keyboard.press("b")  # cut, new cells: not here
    assert page.cell(0).count() == held and tab.locator(".jp-CodeCell").count() == 4
    tab.screenshot(path=practice.parent/"marked.png")
    while "Apply" not in tab.evaluate("document.activeElement.textContent") or tab.evaluate("document.activeElement.tagName") != "BUTTON": tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Enter")
    expect(root.locator(".said")).to_contain_text("2 set aside in .quarantine, 2 given another label.")
    assert {line["file"]: DELETE if line["action"] == "delete" else line["to"].split("/")[0] for line in read_journal(practice)} == marked
    assert sorted(everything(practice).values()) == sorted(began.values()) and everything(practice) != began
    assert {row["file"] for row in read_manifest(practice)} >= {line["to"] for line in read_journal(practice) if line["action"] == "relabel"}

    # undo, apply once more, restart, undo
    root.get_by_role("button", name="Undo the last step (4 photos)").click()
    expect(root.locator(".said")).to_contain_text("4 back where they were")
    assert everything(practice) == began
    expect(root.locator(".where")).to_contain_text(f"· {shown} photos")
    cards.nth(0).locator("select").select_option(DELETE)
    root.get_by_role("button", name="Apply 1 mark").click()
    expect(root.locator(".said")).to_contain_text("1 set aside")
    page.restart()
    page.run(0); page.run(1)
    expect(cards).to_have_count(24)
    root.get_by_role("button", name="Undo the last step (1 photo)").click()
    expect(root.locator(".said")).to_contain_text("1 back where they were")
    assert everything(practice) == began
    assert not page.errors
    page.context.close()


def test_five_thousand_photos(chromium, serve, tmp_path):
    from bearclf.practice import draw_bear
    data = [draw_bear(label, np.random.default_rng(i)).resize((320, 240)) for i, label in enumerate(("black", "grizzly", "teddy"))]
    for i in range(5000):
        at = tmp_path/"photos"/("black", "grizzly", "teddy")[i % 3]/f"{i}.jpg"
        at.parent.mkdir(parents=True, exist_ok=True)
        if i < 3: data[i].save(at)
        else: at.write_bytes((tmp_path/"photos"/at.parent.name/f"{i % 3}.jpg").read_bytes() + b"%d" % i)
    notebook(tmp_path/"x.ipynb", """import pandas as pd
from bearclf.clean import PhotoCleaner
from bearclf.folder import labelled_photos
files = [fn.relative_to('photos').as_posix() for fn in labelled_photos('photos')]
table = pd.DataFrame([dict(file=f, label=f.split('/')[0], score=0, reason='', reasons='copy' if i % 5 else '', why='like another', suggested='', twin=files[i - 1], wrong=0) for i, f in enumerate(files)])""", "cleaner = PhotoCleaner('photos', table)\ncleaner")
    command, url = lab(tmp_path)
    serve(command, url)
    page = Lab(chromium, url, "x.ipynb")
    page.run(0)
    cards, where = page.tab.locator(".bearclf-cleaner .card"), page.tab.locator(".bearclf-cleaner .where")
    page.cell(1).locator(".cm-content").click()
    begin = time.perf_counter()
    page.tab.keyboard.press("Control+Enter")
    cards.nth(23).wait_for()
    opened, turned = time.perf_counter() - begin, []
    cards.first.focus()
    for i in range(2, 12):
        begin = time.perf_counter()
        page.tab.keyboard.press("PageDown")
        page.tab.wait_for_function(f"document.querySelector('.bearclf-cleaner .where').textContent.startsWith('{i} of 209') && [...document.querySelectorAll('.bearclf-cleaner img')].every(i => i.complete)", polling=10)
        turned.append(time.perf_counter() - begin)
    print(f"opened in {opened:.2f} s, a page in {statistics.median(turned):.2f} s, at most {max(turned):.2f} s")
    assert opened < 2 and statistics.median(turned) < .3
    page.context.close()


def test_what_fastais_own_cleaner_does(practice, monkeypatch):
    "On record, so that the difference is; should one of these fail, the lesson's words about it are out of date."
    from fastai.vision.all import defaults
    from fastai.vision.widgets import ImageClassifierCleaner
    from bearclf.clean import PhotoCleaner
    from bearclf.data import photo_block
    from bearclf.train import photo_learner
    monkeypatch.setattr(defaults, "cpus", 0)
    monkeypatch.setattr("fastai.vision.widgets.display", lambda *_: None, raising=False)  # a notebook has it
    learn = photo_learner(photo_block(size=64).dataloaders(practice, bs=16))
    for label in ("black", "grizzly"): shutil.copy(learn.dls.train_ds.items[0], practice/label/"00000001.jpg")
    learn = photo_learner(photo_block(size=64).dataloaders(practice, bs=16))
    with learn.no_bar(): cleaner, ours = ImageClassifierCleaner(learn), PhotoCleaner(learn)
    menus = lambda: [box.children[1] for box in cleaner.widget.children[-1].children]

    menus()[0].value = "<Delete>"  # marks vanish when the label is switched
    ours.mark(ours.rows[0]["file"], DELETE)
    assert list(cleaner.delete()) == [0] and ours.delete() == [0]
    for label in ("teddy", "black"): cleaner.dd_cats.value = label; ours._received(None, dict(kind="show", view=dict(label=label)), [])
    assert list(cleaner.delete()) == [] and ours.delete() == [0]
    ours.marks.clear()

    assert len(cleaner.fns) <= 30 < len(ours.fns) == len(learn.dls.train_ds) + len(learn.dls.valid_ds)

    with pytest.raises(shutil.Error, match="already exists"): shutil.move(str(practice/"black"/"00000001.jpg"), practice/"grizzly")  # the course's line
    ours.mark("black/00000001.jpg", "grizzly")
    assert [*ours.apply().to] == ["grizzly/00000001-1.jpg"]
    ours.undo()

    gone = cleaner.fns[0]  # the list is stale, and the photo is gone for ever
    began = everything(practice)
    gone.unlink()
    with pytest.raises(FileNotFoundError): cleaner.dd_cats.value = "teddy"; cleaner.dd_cats.value = "black"
    assert everything(practice) != began
    other = next(id for id, row in ours.rows.items() if (practice/row["file"]).exists())
    ours.mark(ours.rows[other]["file"], DELETE); ours.apply()
    assert other not in ours.rows
    ours.undo()
    with pytest.raises(BearclfError, match="could be undone"): ours.undo(), ours.undo(), ours.undo()


def test_a_damaged_journal_a_full_disk_and_nonsense_are_told(practice, monkeypatch):
    from bearclf.clean import PhotoCleaner
    cleaner, told = PhotoCleaner(practice), []
    monkeypatch.setattr(cleaner, "send", lambda message, buffers=None: told.append(message))
    ask = lambda **message: (cleaner._received(None, message, []), told[-1])[1]
    first, began = cleaner.rows[0]["file"], everything(practice)
    for nonsense in (dict(kind="mark", id=0, mark="../x"), dict(kind="mark", id=0, mark=[1]), dict(kind="mark", id=[], mark=DELETE), dict(kind="mark", id=10**9, mark=DELETE), dict(kind="show", view=[1]), dict(kind="show", view=dict(page="x", label=3)), dict(kind="delete everything"), {}):
        cleaner._received(None, nonsense, [])
    assert not cleaner.marks and ask(kind="show")["page"] == 0
    (practice/"cleaning.jsonl").write_text("{\n{}\n")
    assert "damaged in line 1" in ask(kind="show")["said"]
    ask(kind="mark", id=0, mark=DELETE)
    assert "damaged in line 1" in ask(kind="apply")["said"] and cleaner.marks == {first: DELETE}
    (practice/"cleaning.jsonl").unlink()
    assert "could be undone" in ask(kind="undo")["said"]
    monkeypatch.setattr("bearclf.moves.write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left" in ask(kind="apply")["said"] and cleaner.marks == {first: DELETE}
    monkeypatch.undo()
    assert everything(practice) == began


def test_what_came_and_went_beside_it(practice):
    from bearclf.clean import PhotoCleaner
    from bearclf.moves import set_aside, undo
    one, two = PhotoCleaner(practice), PhotoCleaner(practice)
    last = max(one.rows)
    one.mark(one.rows[last]["file"], DELETE); one.apply()
    two.mark(two.rows[last]["file"], DELETE); two.mark(two.rows[0]["file"], "polar")
    assert [*two.apply().action] == ["relabel"] and last not in two.rows  # what the other took is left alone
    aside = set_aside([practice/one.rows[3]["file"]], practice)[0].relative_to(practice).as_posix()
    assert [*one.undo().file] == [aside] and one.rows[3]["file"] == aside.removeprefix(".quarantine/")
    one.undo()  # of what the other relabelled
    one.undo()
    assert sorted(row["file"] for row in one.rows.values()) == sorted(p.relative_to(practice).as_posix() for p in one.fns) and all(p.is_file() for p in one.fns)
    with pytest.raises(BearclfError, match="could be undone"): undo(practice)
