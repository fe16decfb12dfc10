"""What the page puts on record, and what it does when it cannot."""
import io, shutil, sqlite3, subprocess

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from bearclf.app import UNNOTED
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
    draw_bear("teddy", np.random.default_rng(4)).save(tmp_path/"teddy.jpg", quality=92, exif=exif, comment="at home")
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
    expect(question.locator(".noted")).to_contain_text(f"Noted: grizzly. The photo is kept, as number {sha256(teddy)[:10]}")
    row, = log.rows()
    assert (row["human"], row["reviewer"], row["consent"]) == ("grizzly", "visitor", True)
    kept = Image.open(io.BytesIO(log.photo(sha256(teddy))))
    assert kept.size == Image.open(teddy).size and not kept.getexif() and "comment" not in kept.info

    question.get_by_label("You may keep this photo").uncheck()  # acts by itself once there is an answer
    expect(question.locator(".noted")).to_contain_text("Noted: grizzly. The photo is not kept.")
    assert log.photo(sha256(teddy)) is None and log.rows()[0]["human"] == "grizzly"


def test_what_was_begun_stays_when_other_photos_come(asking, teddy, bears):
    visitor, log = asking
    visitor.choose(teddy)
    question = visitor.tab.locator(".bearclf-question").filter(has_text="teddy.jpg")
    question.get_by_label("You may keep this photo").check()
    question.get_by_role("button", name="Yes").click()
    expect(question.locator(".noted")).to_be_visible()
    visitor.tab.locator(".where summary").click()
    visitor.tab.set_input_files(".bearclf-upload input", [str(bears[0]), str(bears[1])])
    visitor.cards(3)
    visitor.status("2 photos answered")
    assert visitor.tab.locator(".bearclf .card .file").all_text_contents() == ["grizzly.png", "black.png", "teddy.jpg"]
    assert question.locator(".noted").is_visible() and question.get_by_label("You may keep this photo").is_checked()
    assert visitor.tab.locator(".where img").last.is_visible()
    assert [row["consent"] for row in log.rows()] == [True, False, False]


def test_what_goes_wrong_is_told_in_the_terminal_and_not_to_the_visitor(serve, visit, teddy, tmp_path):
    server = serve(*app("--log", "bearclf.db"), tmp_path)
    visitor, frames = visit(server.url), []
    visitor.tab.on("websocket", lambda ws: ws.on("framereceived", lambda frame: frames.append(frame if isinstance(frame, bytes) else frame.encode())))
    visitor.tab.reload()
    visitor.ready()
    for old in tmp_path.glob("bearclf.db*"): old.unlink()
    (tmp_path/"bearclf.db").mkdir()
    assert visitor.choose(teddy) == [UNNOTED]
    (tmp_path/"bearclf.db").rmdir()
    visitor.tab.set_input_files(".bearclf-upload input", str(teddy))
    assert visitor.cards(2) == [UNNOTED]*2 and not (tmp_path/"bearclf.db").exists()  # a log says how far the model is let out: none is begun anew under way
    visitor.tab.close()
    server.terminate()
    said = server.communicate(timeout=30)[1]
    assert "was moved or deleted while it was in use" in said
    assert frames and not any(b"Traceback" in frame or b"bearclf.db" in frame for frame in frames)


def test_the_log_is_one_file_when_the_page_has_ended(serve, visit, teddy, tmp_path):
    server = serve(*app("--log", "bearclf.db"), tmp_path)
    visitor = visit(server.url).ready()
    visitor.choose(teddy)
    visitor.tab.get_by_label("You may keep this photo").check()
    visitor.tab.get_by_role("button", name="Yes").click()
    expect(visitor.tab.locator(".noted")).to_be_visible()
    visitor.tab.close()
    server.terminate()
    server.communicate(timeout=30)
    shutil.copy(tmp_path/"bearclf.db", tmp_path/"copy.db")
    log = PredictionsLog(tmp_path/"copy.db")
    kept = log.photo(sha256(teddy))
    assert len(log.rows()) == 1 and kept and (tmp_path/"bearclf.db").stat().st_mode & 0o077 == 0
    log.forget(sha256(teddy)[:10])
    held = b"".join(p.read_bytes() for p in tmp_path.glob("copy.db*"))
    assert kept[500:600] not in held


def test_none_of_these_is_an_answer_and_nothing_chosen_is_none(asking, teddy, tmp_path):
    visitor, log = asking
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype="uint8")).save(tmp_path/"noise.png")
    assert "does not look like" in visitor.choose(tmp_path/"noise.png")[0]
    question = visitor.tab.locator(".bearclf-question")
    question.get_by_role("button", name="No").click()
    question.get_by_role("button", name="Send").click()  # nothing was chosen
    visitor.tab.wait_for_timeout(500)
    assert log.rows()[0]["human"] is None and question.locator("select:invalid").is_visible()  # the browser says what is missing
    question.get_by_role("button", name="Back").click()
    question.get_by_role("button", name="No").click()
    assert question.locator("option").all_text_contents() == ["Choose …", "black", "grizzly", "teddy"]  # "none of these" was just denied
    question.get_by_role("button", name="Back").click()
    question.get_by_role("button", name="Yes").click()
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
    assert visitor.choose(teddy) == [UNNOTED]
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


def test_a_long_label_fits_a_phone(visit, serve, teddy, tmp_path):
    import json
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    spec = json.loads((bundle/"bundle.json").read_text())
    (bundle/"bundle.json").write_text(json.dumps({**spec, "labels": ["Ursus-americanus-"*8, "Ursus-arctos-"*8, "Ursus-theodori-"*8]}))
    visitor = visit(serve(*app("--bundle", "b", "--log", "l.db"), tmp_path).url, viewport=dict(width=360, height=740)).ready()
    visitor.choose(teddy)
    visitor.tab.locator(".no").click()
    assert visitor.tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_labels_are_text_wherever_they_are_shown(visit, serve, teddy, tmp_path):
    import json
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    spec, evil = json.loads((bundle/"bundle.json").read_text()), "<img src=x onerror=window.hit=1>"
    (bundle/"bundle.json").write_text(json.dumps({**spec, "labels": ["black", "grizzly", evil]}))
    visitor = visit(serve(*app("--bundle", "b", "--log", "l.db"), tmp_path).url).ready()
    visitor.choose(teddy)
    visitor.tab.get_by_role("button", name="Yes").click()
    expect(visitor.tab.locator(".noted")).to_contain_text(f"Noted: {evil}.")
    visitor.tab.get_by_role("button", name="Change").click()
    visitor.tab.get_by_role("button", name="No").click()
    visitor.tab.locator(".bearclf-question select").select_option(label="grizzly")
    assert visitor.tab.evaluate("window.hit") is None


@pytest.mark.parametrize("log,said", [("no/such/folder/x.db", "cannot be opened"), ("bears://cave", "not installed")])
def test_a_log_that_cannot_be_is_told_before_anything_starts(tmp_path, log, said):
    command, _ = app("--log", log)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
