"""A deployment from its first day to its second winter: 5 000 real photos through the running service, people at the review page, and the command line in between."""
import json, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from bearclf.classify import Classifier
from bearclf.core import open_photo, photo_files, sha256
from bearclf.log import PREDICTIONS, PredictionsLog
from browser import WAIT
from conftest import free_port
from test_drift import at_night

pytestmark = pytest.mark.once

SIDE = 320  # pixels: enough for the model, and quick to send
KEYS = {"black": "1", "grizzly": "2", "teddy": "3", "": "0"}


def coded(im):
    im.save(out := BytesIO(), "jpeg", quality=85)
    return out.getvalue()


def snowy(im, rng): return Image.fromarray((255*(.55 + .45*np.asarray(im, np.float32)/255) + rng.normal(0, 6, (im.height, im.width, 1))).clip(0, 255).astype(np.uint8))
def coarse(im, _): return im.resize((max(1, im.width//6), max(1, im.height//6)))
def plain(im, _): return im


def stamped(photo, i):
    "The same picture in another file, as a camera's running number would make it."
    note = b"%d" % i
    return photo[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + photo[2:]


class World:
    "Where photos come from, and what they show."
    def __init__(self, shared):
        self.rng, self.n, self.truth = np.random.default_rng(7), 0, {}
        self.bears = [(fn.parent.name, self.small(fn)) for fn in photo_files(shared/"bears")]
        self.others = [("", self.small(fn)) for part in ("not_bears", "near_misses") for fn in photo_files(shared/part)]
        self.made = {}

    def small(self, fn):
        im = open_photo(fn, least=SIDE).convert("RGB")
        im.thumbnail((SIDE, SIDE))
        return im

    def photo(self, look=plain, strangers=.08):
        "Somebody takes a photo."
        pool = self.others if self.rng.random() < strangers else self.bears
        at = self.rng.integers(len(pool))
        label, im = pool[at]
        key = id(pool), at, look
        if key not in self.made: self.made[key] = coded(look(im, self.rng))
        self.n += 1
        data = stamped(self.made[key], self.n)
        self.truth[sha256(data)] = label
        return data

    def day(self, n, change=plain, share=0.): return [self.photo(change if self.rng.random() < share else plain) for _ in range(n)]


class Deployment:
    def __init__(self, folder, serve):
        self.file, self.log = folder/"bearclf.db", PredictionsLog(folder/"bearclf.db")
        self.serve, self.folder, self.answers = serve, folder, []
        port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        serve([sys.executable, "-m", "bearclf.cli", "serve", "--port", str(port), "--log", str(self.file)], f"{self.client.base_url}/health")

    def cli(self, *args):
        done = subprocess.run([sys.executable, "-m", "bearclf.cli", *map(str, args), "--log", str(self.file)], capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def rollout(self, verb, why): return self.cli("rollout", verb, "--who", "anna", "--why", why)
    def status(self): return json.loads(self.cli("rollout", "status", "--json").stdout)
    def monitor(self, *more): return self.cli("monitor", "--baseline", 300, *more)

    def send(self, photos):
        "Photos arrive, a few at a time; what is said of them."
        def one(photo):
            r = self.client.post("/predict", params=dict(review=True, keep=True), content=photo, headers={"Content-Type": "image/jpeg"})
            assert r.status_code == 200, r.text
            return r.json()["predictions"][0]
        with ThreadPoolExecutor(4) as pool: rows = [*pool.map(one, photos)]
        self.answers += photos
        return rows


class Reviewer:
    "Somebody at the review page who knows each photo."
    def __init__(self, d, world, visit):
        port = free_port()
        url = f"http://localhost:{port}"
        d.serve([sys.executable, "-m", "bearclf.cli", "review", "--no-browser", "--port", str(port), "--log", str(d.file), "--reviewer", "anna"], f"{url}/health")
        self.log, self.truth, self.visitor, self.done = d.log, world.truth, visit(f"{url}/"), 0

    def shown(self):
        "What the photo that lies there shows."
        frames = b"\n".join(f if isinstance(f, bytes) else f.encode() for f in self.visitor.frames[-40:])
        id = re.findall(rb'"kind": ?"photo", ?"id": ?"([0-9a-f]{32})"', frames)[-1].decode()
        return self.truth[self.log.rows(PREDICTIONS.c.id == id)[0]["sha256"]]

    def look(self, n):
        "Review `n` photos, by keyboard."
        tab = self.visitor.tab
        for _ in range(n):
            expect(tab.locator(".choices button").first).to_be_enabled(timeout=WAIT)
            tab.keyboard.press(KEYS[self.shown()])
            expect(tab.locator(".heard .card")).to_be_visible(timeout=WAIT)
            tab.keyboard.press("Enter")
            expect(tab.locator(".heard .card")).to_be_hidden(timeout=WAIT)
        self.done += n


def test_from_the_first_day_to_the_second_winter(serve, visit, shared_photos, tmp_path):
    world, d, clf = World(shared_photos), Deployment(tmp_path, serve), Classifier()
    assert d.cli("rollout", "start", "--who", "anna", "--why", "the first day", "--target", "0.8", "--reviewed", "150", "--audit", "0.1").returncode == 0

    # shadow: people answer as before, and the model is not heard
    rows = d.send(world.day(400))
    assert {row["withheld"] for row in rows} == {"trial"}
    assert d.rollout("promote", "in a hurry").returncode == 2 and d.status()["stage"] == "shadow"
    anna = Reviewer(d, world, visit)
    anna.look(149)
    done = d.rollout("promote", "nearly")
    assert done.returncode == 2 and "149 of 150 photos reviewed" in done.stderr
    anna.look(31)
    seen = d.status()
    assert (seen["answers"], seen["reviewed"]) == (400, 180) and all(gate["holds"] for gate in seen["gates"])
    assert d.rollout("promote", "180 reviewed").returncode == 0

    # supervised: provisional where it is sure, a person first elsewhere
    rows = d.send(world.day(600))
    shown = [row for row in rows if "label" in row]
    assert all(row["provisional"] and row["verdict"] == "confident" for row in shown) and 400 < len(shown) < 600
    assert {row["withheld"] for row in rows if "withheld" in row} == {"first"}
    assert d.monitor().returncode == 0, d.monitor().stdout  # nothing has changed
    assert d.rollout("promote", "in a hurry").returncode == 2
    anna.look(180)
    assert d.rollout("promote", "180 more reviewed").returncode == 0

    # open: answers at once, and a tenth goes to review whatever they are
    rows = d.send(world.day(1500))
    assert not any("withheld" in row or row.get("provisional") for row in rows)
    audit = [row for row in d.log.rows() if row["stage"] == "open"]
    drawn = [row for row in audit if row["review"] == "audit"]
    assert 100 < len(drawn) < 200 and len(audit) == 1500
    assert d.monitor().returncode == 0

    # winter: a fifth of the photos is taken at night; it is noticed within three hundred, and the model goes back under people's eyes
    for sent in (100, 200, 300):
        d.send(world.day(100, at_night, .2))
        done = d.monitor("--out", tmp_path/"monitor.html")
        if done.returncode == 1: break
    assert done.returncode == 1 and "taken back to supervised" in done.stdout, f"not noticed after {sent} photos at night"
    assert "Alarm" in (tmp_path/"monitor.html").read_text() and d.status()["stage"] == "supervised"
    anna.look(20)
    done = d.rollout("promote", "it is only dark")
    assert done.returncode == 2 and "open alarms: 1" in done.stderr
    number = d.status()["alarms"][0]
    assert d.cli("monitor", "--baseline", 300, "--close", number, "--who", "anna", "--why", "lamps were put up").returncode == 0
    d.send(world.day(1000))  # and the lamps help
    assert d.monitor().returncode == 0 and d.status()["alarms"] == []

    # snow, and a cheaper camera: noticed as well; this time back to shadow
    d.send([*world.day(300, snowy, .3), *world.day(5000 - len(d.answers) - 300, coarse, .3)])
    assert d.monitor().returncode == 1 and d.status()["stage"] == "shadow"

    # every photo is on record once, and only what people have settled may teach
    rows = d.log.rows()
    assert len(rows) == 5000 == len({row["sha256"] for row in rows}) and {row["sha256"] for row in rows} == {*map(sha256, d.answers)}
    assert sum(row["human"] is not None for row in rows) == anna.done == 380
    done = d.cli("rollout", "learn", tmp_path/"photos")
    learned = photo_files(tmp_path/"photos")
    assert done.returncode == 0 and len(learned) == sum(row["human"] not in (None, "") for row in rows)
    settled = {row["sha256"]: row["human"] for row in rows if row["human"]}
    assert {fn.stem: fn.parent.name for fn in learned} == settled and all(world.truth[row["sha256"]] == row["human"] for row in rows if row["human"] is not None)
    assert [event["details"]["stage"] for event in d.log.events("stage")] == ["shadow", "supervised", "open", "supervised", "shadow"]
