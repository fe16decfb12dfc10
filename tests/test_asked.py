"""What the page puts on record, and what it does when it cannot."""
import io, shutil, sqlite3, subprocess

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from bearclf.app import SORRY
from bearclf.classify import Classifier, bundle_folder
from bearclf.core import sha256
from bearclf.log import PredictionsLog
from bearclf.practice import draw_bear
from browser import WAIT
from conftest import ROOT, app, free_port
from test_page import voila


@pytest.fixture
def asking(visit, serve, tmp_path):
    "A visitor of a page that keeps a log, and the log."
    server = serve(*app("--log", "bearclf.db"), tmp_path)
    return visit(server.url).ready(), PredictionsLog(tmp_path/"bearclf.db")


@pytest.fixture
def teddy(tmp_path):
    "A photo that the model is sure of, with what a camera writes beside it."
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010F] = "a phone"
    draw_bear("teddy", np.random.default_rng(4)).save(tmp_path/"teddy.jpg", quality=92, exif=exif)
    return tmp_path/"teddy.jpg"


def test_yes_and_no_and_permission(asking, teddy):
    visitor, log = asking
    said = visitor.choose(teddy)
    question = visitor.tab.locator(".bearclf-question")
    row, = log.rows()
    assert (row["shown"], row["human"], row["consent"]) == (said[0], None, False)
    assert (row["sha256"], row["bundle"], row["stage"]) == (sha256(teddy), Classifier().fingerprint, "open")
    assert not question.get_by_label("You may keep this photo").is_checked()

    question.get_by_role("button", name="Yes").click()
    expect(question.locator(".noted")).to_contain_text("Noted: teddy. The photo is not kept.")
    assert log.rows()[0]["human"] == "teddy" and log.photo(sha256(teddy)) is None

    question.get_by_role("button", name="Change").click()
    question.get_by_label("You may keep this photo").check()
    question.get_by_role("button", name="No").click()
    question.get_by_label("It is").select_option(label="grizzly")
    question.get_by_role("button", name="Send").click()
    expect(question.locator(".noted")).to_contain_text("Noted: grizzly. The photo is kept.")
    row, = log.rows()
    assert (row["human"], row["reviewer"], row["consent"]) == ("grizzly", "visitor", True)
    kept = Image.open(io.BytesIO(log.photo(sha256(teddy))))
    assert kept.size == Image.open(teddy).size and not kept.getexif()

    question.get_by_role("button", name="Change").click()
    question.get_by_label("You may keep this photo").uncheck()
    question.get_by_role("button", name="Yes").click()
    expect(question.locator(".noted")).to_contain_text("not kept")
    assert log.photo(sha256(teddy)) is None


def test_none_of_these_is_an_answer_and_nothing_chosen_is_none(asking, teddy, tmp_path):
    visitor, log = asking
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype="uint8")).save(tmp_path/"noise.png")
    assert "does not look like" in visitor.choose(tmp_path/"noise.png")[0]
    question = visitor.tab.locator(".bearclf-question")
    question.get_by_role("button", name="No").click()
    question.get_by_role("button", name="Send").click()  # nothing was chosen
    visitor.tab.wait_for_timeout(500)
    assert log.rows()[0]["human"] is None and question.locator("select").is_visible()
    question.get_by_label("It is").select_option(label="none of these")
    question.get_by_role("button", name="Send").click()
    expect(question.locator(".noted")).to_contain_text("Noted: none of these.")
    assert log.rows()[0]["human"] == ""


def test_without_a_log_nothing_is_asked_and_nothing_kept(visitor, bears):
    visitor.choose(bears[0])
    assert visitor.tab.locator(".bearclf-question").count() == 0
    assert "Photos are not kept." in visitor.tab.locator(".about").text_content()


def test_what_is_no_photo_is_not_on_record(asking, teddy, tmp_path):
    visitor, log = asking
    (tmp_path/"diary.jpg").write_text("Dear diary")
    visitor.choose(tmp_path/"diary.jpg")
    assert log.rows() == [] and visitor.tab.locator(".bearclf-question").count() == 0


def test_no_record_no_answer(asking, teddy, tmp_path):
    visitor, log = asking
    other = sqlite3.connect(tmp_path/"bearclf.db", isolation_level=None)
    other.execute("begin exclusive")  # another program holds the database
    assert visitor.choose(teddy) == [SORRY]
    other.execute("rollback")
    assert log.rows() == []
    visitor.tab.set_input_files(".bearclf-upload input", str(teddy))
    visitor.cards(2)
    assert len(log.rows()) == 1


def test_plain_voila_keeps_a_log_too(visit, serve, teddy, tmp_path):
    visitor = visit(serve(*voila("app.ipynb"), ROOT/"nbs", dict(BEARCLF_LOG=str(tmp_path/"plain.db"))).url).ready()
    visitor.choose(teddy)
    visitor.tab.get_by_role("button", name="Yes").click()
    expect(visitor.tab.locator(".noted")).to_be_visible(timeout=WAIT)
    assert PredictionsLog(tmp_path/"plain.db").rows()[0]["human"] == "teddy"


def test_labels_are_text_wherever_they_are_shown(visit, serve, teddy, tmp_path):
    import json
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    spec, evil = json.loads((bundle/"bundle.json").read_text()), "<img src=x onerror=window.hit=1>"
    (bundle/"bundle.json").write_text(json.dumps({**spec, "labels": ["black", "grizzly", evil]}))
    visitor = visit(serve(*app("--bundle", "b", "--log", "l.db"), tmp_path).url).ready()
    visitor.choose(teddy)
    visitor.tab.get_by_role("button", name="Yes").click()
    expect(visitor.tab.locator(".noted")).to_contain_text(f"Noted: {evil}.")
    assert evil in visitor.tab.locator(".bearclf-question select").text_content()
    assert visitor.tab.evaluate("window.hit") is None


@pytest.mark.parametrize("log,said", [("no/such/folder/x.db", "cannot be opened"), ("bears://cave", "not installed")])
def test_a_log_that_cannot_be_is_told_before_anything_starts(tmp_path, log, said):
    command, _ = app("--log", log)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
