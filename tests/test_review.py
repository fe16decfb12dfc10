"""The reviewers' page in a real browser: the keyboard, what travels on the wire, several people, and who gets in."""
import re
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from bearclf.classify import Classifier
from bearclf.core import bare_photo, sha256
from bearclf.log import PREDICTIONS, REVIEWS, PredictionsLog
from bearclf.practice import draw_bear
from bearclf.review_page import GONE, NOTHING
from bearclf.stage import Policy, set_stage
from bearclf.visitors import WIRE
from browser import WAIT
from conftest import free_port
from test_access import violations
from test_visitors import refused, run
from web import coded

LABELS = ("black", "grizzly", "teddy")
KEYS = {"black": "1", "grizzly": "2", "teddy": "3", "": "0", None: "?"}


class Queue:
    "A log with photos to review, and a server for its page."
    def __init__(self, folder, serve):
        self.file, self.serve, self.clf = folder/"bearclf.db", serve, Classifier()
        self.log, self.ids, self.photos = PredictionsLog(self.file), [], []

    def add(self, *photos, review="first"):
        for data in photos:
            self.ids.append(self.log.write(self.clf.predict(data), data, self.clf.fingerprint, stage="supervised", review=review, source="page"))
            self.photos.append(data)
            self.log.lend(self.ids[-1], bare_photo(data))
        return self

    def served(self, *options, reviewers=("anna",)):
        port, names = free_port(), [o for name in reviewers for o in ("--reviewer", name)]
        command = [sys.executable, "-m", "bearclf.cli", "review", "--no-browser", "--log", str(self.file), "--port", str(port), *names, *options]
        return self.serve(command, f"http://localhost:{port}/health")

    def url(self, **more): return self.served(**more).url.removesuffix("health")
    def row(self, i): return self.log.rows(PREDICTIONS.c.id == self.ids[i])[0]
    def stands(self, i): return self.row(i)["human"], self.row(i)["reviewer"]


@pytest.fixture
def queue(tmp_path, serve): return Queue(tmp_path, serve)


def drawn(*labels): return [coded(draw_bear(label, np.random.default_rng(i))) for i, label in enumerate(labels)]
def asked(tab): expect(tab.locator(".choices button").first).to_be_enabled(timeout=WAIT)
def told(tab): expect(tab.locator(".heard .card")).to_be_visible(timeout=WAIT)


def say(tab, label):
    asked(tab)
    tab.keyboard.press(KEYS[label])
    told(tab)


def test_ten_by_keyboard_alone(queue, visit, shared_photos):
    first = lambda folder, n: [f.read_bytes() for f in sorted((shared_photos/folder).iterdir())[:n]]
    queue.add(*drawn(*LABELS, "teddy"), *first("bears/black", 2), *first("bears/grizzly", 2), *first("not_bears", 2))
    said = [*LABELS, "teddy", "black", "black", "grizzly", None, "", ""]
    tab = visit(queue.url()).tab
    for n, label in enumerate(said):
        asked(tab)
        expect(tab.locator(".count")).to_have_text(f"{10 - n} photos to look at" if n < 9 else "1 photo to look at")
        assert tab.evaluate("document.activeElement.tagName") == "FIGURE"
        say(tab, label)
        assert tab.evaluate("document.activeElement.className") == "next"
        expect(tab.get_by_role("status")).to_contain_text(f"You said {'I cannot tell' if label is None else label or 'none of these'}. The model said: ")
        tab.keyboard.press("1")  # a key too many: nothing is asked now
        tab.keyboard.press("Enter")
    expect(tab.get_by_role("status")).to_contain_text("Nothing waits for you", timeout=WAIT)
    assert [queue.stands(i) for i in range(10)] == [(None, None) if label is None else (label, "anna") for label in said]
    assert len(queue.log.read(select(REVIEWS))) == 10


def test_nothing_of_the_answer_is_on_the_wire_before_the_choice(queue, visit, shared_photos):
    queue.add(*drawn("teddy"), *[f.read_bytes() for folder in ("bears/grizzly", "not_bears", "near_misses/polar", "bears/black") for f in sorted((shared_photos/folder).iterdir())[:2]])
    assert {"confident", "out_of_domain"} <= {row["verdict"] for row in queue.log.rows()}
    visitor = visit(queue.url(reviewers=["anna", "ben"]))
    tab, wire = visitor.tab, lambda: b"\n".join(f if isinstance(f, bytes) else f.encode() for f in visitor.frames)
    expect(tab.get_by_role("button", name="anna")).to_be_visible(timeout=WAIT)
    assert queue.clf.fingerprint not in tab.content()
    visitor.frames.clear()  # the page itself, whose program names the verdicts
    tab.get_by_role("button", name="anna").click()
    for n in range(len(queue.ids)):
        asked(tab)
        tab.wait_for_timeout(300)
        before = wire()
        shown = next(i for i, photo in enumerate(queue.photos) if bare_photo(photo) in before)
        row, tells = queue.row(shown), re.compile(rb"confident|unsure|out_of_domain|verdict|probs|known|heat|bars|top\"|confirm|model said", re.I)
        assert before.count(b"\xff\xd8\xff") == 1 and not tells.search(before.replace(bare_photo(queue.photos[shown]), b""))
        assert not re.search(rb"\d\.\d{3}", re.sub(rb"\d\d:\d\d:\d\d\.\d+", b"", before.replace(bare_photo(queue.photos[shown]), b"")))  # no probability; times of messages have such numbers
        assert not tab.locator(".heard .card").count()
        say(tab, "black")
        after = wire()
        assert row["verdict"].encode() in after and b"bars" in after and after.count(b"\xff\xd8\xff") == 2  # and with the choice, all of it
        visitor.frames.clear()
        tab.keyboard.press("Enter")
    expect(tab.get_by_role("status")).to_contain_text("Nothing waits for you", timeout=WAIT)


def test_undo(queue, visit):
    queue.add(*drawn(*LABELS))
    tab = visit(queue.url()).tab
    asked(tab)
    tab.keyboard.press("u")
    expect(tab.get_by_role("status")).to_have_text(NOTHING)
    say(tab, "black")
    tab.keyboard.press("u")  # while the model's answer is there
    expect(tab.get_by_role("status")).to_contain_text("Taken back", timeout=WAIT)
    assert queue.stands(0) == (None, None) and not tab.locator(".heard .card:visible").count()
    for label in ("teddy", "grizzly"):
        say(tab, label)
        tab.keyboard.press("Enter")
    asked(tab)
    expect(tab.locator(".count")).to_have_text("1 photo to look at")
    for left in ("2 photos", "3 photos"):  # and of the earlier ones
        tab.keyboard.press("Control+z")
        expect(tab.locator(".count")).to_have_text(f"{left} to look at", timeout=WAIT)
        asked(tab)
    say(tab, "black")
    assert [queue.stands(i) for i in range(3)] == [("black", "anna"), (None, None), (None, None)]
    assert [r["undone"] for r in queue.log.read(select(REVIEWS).order_by(REVIEWS.c.time))] == [True, True, True, False]


def test_two_must_agree_and_a_third_decides(queue, visit):
    queue.add(*drawn("black", "teddy"))
    set_stage(queue.log, queue.clf.fingerprint, "supervised", Policy(reviewers=2), "dora", "first week")
    url = queue.url(reviewers=["anna", "ben", "carla"])
    visitors = {name: visit(url) for name in ("anna", "ben", "carla")}
    tabs = {name: v.tab for name, v in visitors.items()}
    said = {"anna": ("black", "teddy"), "ben": ("grizzly", "teddy")}
    for name, tab in tabs.items(): tab.get_by_role("button", name=name).click(timeout=WAIT)
    def photo(name):
        asked(tabs[name])
        return next(i for frame in reversed(visitors[name].frames) for i, p in enumerate(queue.photos) if isinstance(frame, bytes) and bare_photo(p) in frame)
    stands = {}
    for name in ("anna", "ben"):
        for _ in range(2):
            i = photo(name)
            say(tabs[name], said[name][i])
            stands[name, i] = tabs[name].locator(".stands").inner_text()
            tabs[name].keyboard.press("Enter")
    assert stands["anna", 0] == stands["anna", 1] == "It stands once somebody else says the same."
    assert stands["ben", 0] == "People disagree. It stays open for somebody else." and stands["ben", 1] == "What stands now: teddy."
    assert [queue.stands(0), queue.stands(1)] == [(None, None), ("teddy", "anna, ben")]
    carla = tabs["carla"]
    if photo("carla"): say(carla, "teddy"), carla.keyboard.press("Enter")  # she sat there before it was settled
    assert photo("carla") == 0
    say(carla, "black")
    expect(carla.locator(".stands")).to_have_text("What stands now: black.")
    assert queue.stands(0) == ("black", "anna, carla")


def test_a_photo_that_is_forgotten_meanwhile(queue, visit):
    queue.add(*drawn(*LABELS))
    tab = visit(queue.url()).tab
    asked(tab)
    queue.log.forget(sha256(queue.photos[0]))
    tab.keyboard.press("1")
    expect(tab.get_by_role("status")).to_have_text(GONE, timeout=WAIT)
    tab.keyboard.press("Enter")
    asked(tab)
    queue.log.lend(queue.ids[1], None)  # its sender thought better of it; the page hears of it by itself
    expect(tab.get_by_role("status")).to_have_text(GONE, timeout=WAIT)
    assert not tab.locator(".work img:visible").count()
    tab.keyboard.press("1")  # meant for the photo that is gone
    tab.keyboard.press("Enter")
    say(tab, "teddy")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("status")).to_contain_text("1 more may be seen by nobody", timeout=WAIT)
    assert queue.stands(1) == (None, None) and queue.stands(2) == ("teddy", "anna")
    queue.log.lend(queue.ids[1], bare_photo(queue.photos[1]))
    asked(tab)  # the empty page looked again


def test_keys_can_be_turned_off_and_orders_chosen(queue, visit):
    queue.add(*drawn("black"), review="audit").add(*drawn("teddy", "grizzly")[1:])
    tab = visit(queue.url()).tab
    asked(tab)
    tab.get_by_label("Answer with keys").uncheck()
    tab.locator("h1").click()
    tab.keyboard.press("1")
    tab.get_by_label("Order").select_option("audit")
    expect(tab.locator(".count")).to_have_text("1 photo to look at", timeout=WAIT)
    asked(tab)
    assert queue.log.read(select(REVIEWS)) == []
    tab.get_by_role("button", name="none of these").click()
    told(tab)
    assert queue.stands(0) == ("", "anna")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_axe_finds_nothing_serious(queue, visit, width, scheme):
    queue.add(*drawn("teddy", "teddy"))
    tab = visit(queue.url(reviewers=["anna", "ben"]), viewport=dict(width=width, height=800), color_scheme=scheme).tab
    tab.get_by_role("button", name="ben").wait_for(timeout=WAIT)
    assert violations(tab) == []
    tab.get_by_role("button", name="ben").click()
    asked(tab)
    assert violations(tab) == []
    shown = []
    for label in ("teddy", "black"):  # the model says the same of the one, and something else of the other
        say(tab, label)
        assert violations(tab) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        card = tab.locator(".heard .card")
        shown.append((card.locator(".mark").inner_text(), card.locator(".mark").evaluate("e => getComputedStyle(e).backgroundColor"), card.locator(".meaning").inner_text().split(". ")[0]))
        tab.keyboard.press("Enter")
    (same, green, alike), (differs, blue, unlike) = shown
    assert (differs, unlike, same, alike) == ("≠", "The model says something else", "✓", "The model says the same") and blue != green
    expect(tab.get_by_role("status")).to_contain_text("Nothing waits for you", timeout=WAIT)
    assert violations(tab) == []


def status(url, **headers):
    there = urlsplit(url)
    connection = HTTPConnection(there.netloc, timeout=60)
    connection.request("GET", f"{there.path}?{there.query}", headers=headers)
    with connection.getresponse() as answer: return answer.status


WEBSOCKET = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": WIRE}
FILES = "review.ipynb nbs/review.ipynb bearclf.db voila.json voila/files/review.ipynb api/kernels api/contents voila/templates/bearclf/static/review.js files/bearclf.db /etc/passwd".split()


def test_with_another_ip_a_token_is_needed(queue, visit):
    server = queue.add(*drawn("black")).served("--ip", "0.0.0.0")
    said = server.stdout.readline()
    token, home = re.search(r"\?token=([\w-]{32})\n", said)[1], server.url.removesuffix("health")
    assert [status(home), status(f"{home}?token=wrong"), status(home, Cookie=f"username-localhost={token}")] == [403, 403, 403]
    tab = visit(f"{home}?token={token}").tab
    asked(tab)
    assert tab.url == home
    kernel = tab.evaluate("JSON.parse(document.querySelector('#jupyter-config-data').textContent).kernelId")
    assert status(f"{home}api/kernels/{kernel}/channels", **WEBSOCKET) == 403 and status(f"{home}api/kernels/{kernel}") in (403, 404)
    say(tab, "black")
    tab.reload()  # the cookie knows
    expect(tab.get_by_role("status")).to_contain_text("Nothing waits for you", timeout=WAIT)


def test_other_sites_and_files(queue, visit):
    home = queue.add(*drawn("black")).url()
    tab = visit(home).tab
    asked(tab)
    kernel = tab.evaluate("JSON.parse(document.querySelector('#jupyter-config-data').textContent).kernelId")
    channels = f"{home}api/kernels/{kernel}/channels"
    assert status(home, Host="evil.example") == 403  # a site that calls itself by our address
    assert status(channels, Host="evil.example", Origin="http://evil.example", **WEBSOCKET) == 403
    assert (status(channels, Origin="http://evil.example", **WEBSOCKET), status(channels, Origin=home.rstrip("/"), **WEBSOCKET)) == (403, 101)
    assert "frame-ancestors 'self'" in urlopen(home, timeout=60).headers["Content-Security-Policy"]
    assert {path: status(home + path) for path in FILES if status(home + path) not in (403, 404)} == {}


def test_a_socket_that_speaks_the_old_way_is_refused(queue):
    codes, seconds = run(refused(queue.add(*drawn("black")).url()))
    assert codes == [400, 400, 400] and seconds < 2
