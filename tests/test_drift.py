"""`bearclf monitor` on answers of the bundled bears to real photos: silent while nothing changes, quick when night comes, and right whatever becomes of the log."""
import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import bearclf.log
from bearclf.classify import Answer, Classifier, bundle_folder, traits
from bearclf.core import BearclfError, open_photo, photo_files, sha256
from bearclf.drift import EVERY, TRAITS, WINDOW, close_alarm, columns, compare, drift_report, monitor, open_alarms, spend
from bearclf.log import PredictionsLog

pytestmark = pytest.mark.once
RUNS = 200


@pytest.fixture(scope="module")
def clf(): return Classifier(threads=1)


def told(clf, photo, side):
    answer = clf.predict(photo, "x.jpg")
    return dict(probs=answer.probs, known=answer.known, verdict=answer.verdict, source="page", traits=traits(answer.pixels, side))


def size(fn):
    with Image.open(fn) as im: return max(im.size)


def at_night(im, rng):
    "Much darker, and with the noise of a small sensor."
    dark = .25*(np.asarray(im, np.float32)/255)**1.6
    return Image.fromarray((255*(dark + rng.normal(0, .03, dark.shape)).clip(0, 1)).astype(np.uint8))


def held_out(clf, folder):
    "(file, answer) of those photos in `folder` that are in the bundle's reference: the model never learned from them."
    usual = clf.spec["reference"]
    among = {(*p, known) for p, known in zip(usual["probs"], usual["known"])}
    rows = [(fn, told(clf, fn, size(fn))) for fn in photo_files(folder)]
    return [(fn, row) for fn, row in rows if (*columns([row])["probs"][0], *columns([row])["known"]) in among]


def strangers(clf, photos): return [told(clf, fn, size(fn)) for part in ("not_bears", "near_misses") for fn in photo_files(photos/part)]


@pytest.fixture(scope="module")
def pools(shared_photos, clf):
    "Answers to photos that the model never learned from: held-out bears by day and by night, and other things."
    rng, day = np.random.default_rng(0), held_out(clf, shared_photos/"bears")
    assert len(day) == clf.metrics["n"]
    return dict(day=[row for _, row in day], night=[told(clf, at_night(open_photo(fn, least=512), rng), size(fn)) for fn, _ in day], other=strangers(clf, shared_photos))


def drawn(pool, n, rng): return [pool[i] | dict(id=f"{j:032x}") for j, i in enumerate(rng.integers(len(pool), size=n))]


def usual(pool, spec, rng):
    "A reference drawn from `pool`, as large as the bundle's."
    said, seen = columns(drawn(pool, len(spec["reference"]["known"]), rng)), columns(drawn(pool, len(spec["reference"]["side"]), rng))
    return {name: (seen if name in TRAITS else said)[name] for name in spec["reference"]}


def first_alarm(reference, rows, begin=EVERY):
    "After how many photos a monitor that looks from `begin` on raises one; None: it never does."
    return next((n for n in range(begin, len(rows) + 1, EVERY) if any(f.alarm for f in compare(reference, rows[max(0, n - WINDOW):n], spend(n//EVERY)))), None)


def test_no_false_alarms_while_nothing_changes(pools, clf):
    rng, pool = np.random.default_rng(1), pools["day"] + pools["other"]
    false = sum(first_alarm(usual(pool, clf.spec, rng), drawn(pool, 2000, rng)) is not None for _ in range(RUNS))
    assert false <= .05*RUNS, f"{false} of {RUNS} runs of 2000 photos without any change raised an alarm"


def test_a_fifth_of_night_photos_is_noticed_within_300(pools, clf):
    rng, soon = np.random.default_rng(2), 0
    for _ in range(RUNS):
        after = [pools["night" if rng.random() < .2 else "day"][rng.integers(len(pools["day"]))] | dict(id=f"{j:032x}") for j in range(300)]
        soon += first_alarm(usual(pools["day"], clf.spec, rng), drawn(pools["day"], 1000, rng) + after, begin=1000 + EVERY) is not None
    assert soon >= .95*RUNS, f"only {soon} of {RUNS} runs raised an alarm within 300 photos"


def arrive(log, rows, bundle, kept=None):
    "Put answers on record; returns the hashes of their photos."
    at = [b"%032x" % int.from_bytes(np.random.default_rng().bytes(16), "big") for _ in rows]
    for row, photo in zip(rows, at):
        id = log.write(Answer("x.jpg", max(row["probs"], key=row["probs"].get), row["verdict"], row["probs"], row["known"], 10), photo, bundle, source=row["source"], traits=row["traits"])
        if kept: log.tell(id, "", photo=kept)
    return [sha256(photo) for photo in at]


def command(*args):
    done = subprocess.run([sys.executable, "-m", "bearclf.cli", "monitor", *map(str, args)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def log(tmp_path): return PredictionsLog(tmp_path/"bears.db")


@pytest.fixture
def rng(): return np.random.default_rng(3)


def ids(log): return [id for look in log.events("look") for id in look["details"]["photos"]]


def test_from_the_first_photo_to_a_closed_alarm(pools, clf, log, rng, tmp_path, chromium):
    file, page = tmp_path/"bears.db", tmp_path/"monitor.html"
    assert command("--log", file)[:2] == (0, f"0 photos on record in {file}; looks: 0, of them now: 0; photos until the next: 100.\nNothing was looked at yet: a look takes 100 photos.\n")
    arrive(log, drawn(pools["day"], 99, rng), clf.fingerprint)
    assert "until the next: 1." in command("--log", file)[1]
    arrive(log, drawn(pools["day"], 351, rng), clf.fingerprint)
    status, out, _ = command("--log", file)
    assert (status, "450 photos" in out, "looks: 4, of them now: 4" in out, "No alarm is open" in out) == (0, True, True, True)

    kept = BytesIO()
    at_night(Image.new("RGB", (300, 200), "olive"), rng).save(kept, "jpeg")
    arrive(log, drawn(pools["night"], 60, rng), clf.fingerprint, kept.getvalue())
    arrive(log, drawn(pools["day"], 90, rng), clf.fingerprint)
    status, out, err = command("--log", file, "--out", page)
    assert (status, err, "brightness" in out, f"Written to {page}" in out) == (1, "", True, True)
    alarm, = open_alarms(log)
    assert alarm["bundle"] == clf.fingerprint and {f["series"] for f in alarm["details"]["findings"]} >= {"brightness"}
    assert len(log.events("alarm")) == 1 and command("--log", file)[0] == 1 and len(log.events("alarm")) == 1  # asked again, it says the same

    tab, said, asked = chromium.new_page(), [], []
    tab.on("console", lambda m: said.append(m.text)); tab.on("pageerror", lambda e: said.append(str(e))); tab.on("request", lambda r: asked.append(r.url))
    tab.goto(page.as_uri())
    assert tab.locator("h1").inner_text() == "Has anything changed? bears.db"
    assert tab.locator(".alarm li").first.is_visible() and tab.locator("figure svg").count() >= 10 and tab.locator("tr.alarmed").count() >= 1
    assert tab.locator(".alarm img").count() >= 1 and tab.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert (said, [u for u in asked if not u.startswith("data:")], "<script" in page.read_text()) == ([], [page.as_uri()], False)
    tab.close()

    assert command("--log", file, "--close", alarm["number"])[0] == 2 and command("--log", file, "--who", "Ada")[0] == 2 and command("--log", file, "--close", 999, "--who", "Ada", "--why", "seen")[0] == 2
    status, out, _ = command("--log", file, "--close", alarm["number"], "--who", "Ada", "--why", "a night camera: photos go to a person")
    assert (status, out.startswith(f"Alarm {alarm['number']} is closed."), open_alarms(log)) == (0, True, [])
    status, _, err = command("--log", file, "--close", alarm["number"], "--who", "Bob", "--why", "seen")
    assert (status, "was closed before, by Ada" in err) == (2, True)
    arrive(log, drawn(pools["day"], 100, rng), clf.fingerprint)
    assert command("--log", file)[0] == 0  # a look after the closing starts from new photos
    arrive(log, drawn(pools["night"], 100, rng), clf.fingerprint)
    assert command("--log", file)[0] == 1  # and what was closed and not mended is heard again


def test_mistakes_are_one_sentence(pools, clf, log, rng, tmp_path):
    arrive(log, drawn(pools["day"], 120, rng), "f"*64)
    bare = shutil.copytree(bundle_folder(), tmp_path/"bare")
    (bare/"bundle.json").write_text(json.dumps({k: v for k, v in clf.spec.items() if k != "reference"}))
    broken = shutil.copytree(bundle_folder(), tmp_path/"broken")
    (broken/"bundle.json").write_text(json.dumps(clf.spec | dict(reference=clf.spec["reference"] | dict(known=[], probs="many"))))
    for args, said in ((("--log", tmp_path/"typo.db"), "There is no predictions log"), (("--log", tmp_path/"bears.db"), "120 answers, all of other bundles (ffffffffffff)"), (("--log", tmp_path/"bears.db", "--bundle", tmp_path), "no bundle")):
        status, out, err = command(*args)
        assert (status, len(err.splitlines()), said in err) == (2, 1, True), err
    for folder, said in ((bare, "has no reference"), (broken, "is damaged")):
        arrive(log, drawn(pools["day"], 120, rng), Classifier(folder).fingerprint)
        status, out, err = command("--log", tmp_path/"bears.db", "--bundle", folder)
        assert (status, len(err.splitlines()), said in err) == (2, 1, True), err
    assert command("--log", tmp_path/"bears.db", "--bundle", bare, "--baseline", 100)[0] == 0


def test_running_it_often_finds_the_same(pools, clf, tmp_path, rng):
    rows, said = drawn(pools["day"], 600, rng) + drawn(pools["night"], 50, rng) + drawn(pools["day"], 250, rng), []
    for name, step in (("often", 30), ("once", 900)):
        log = PredictionsLog(tmp_path/f"{name}.db")
        for i in range(0, 900, step):
            arrive(log, rows[i:i + step], clf.fingerprint)
            monitor(log, clf)
        said.append([(look["details"]["k"], look["details"]["n"], [(f["name"], f["p"]) for f in look["details"]["findings"]], look["details"]["alarms"]) for look in log.events("look")])
    assert said[0] == said[1] and len(said[0]) == 9 and any(alarms for *_, alarms in said[0])


def test_two_monitors_at_once_look_once(pools, clf, log, rng, tmp_path):
    arrive(log, drawn(pools["day"], 500, rng) + drawn(pools["night"], 200, rng), clf.fingerprint)
    running = [subprocess.Popen([sys.executable, "-m", "bearclf.cli", "monitor", "--log", str(tmp_path/"bears.db")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(*process.communicate(), process.returncode) for process in running]
    assert [(err, status) for _, err, status in ended] == [("", 1)]*3
    assert [look["details"]["k"] for look in log.events("look")] == [1, 2, 3, 4, 5, 6, 7]
    looks = [alarm["details"]["look"] for alarm in log.events("alarm")]
    assert looks and len(looks) == len(set(looks)) and sorted(ids(log)) == sorted(row["id"] for row in log.rows())


def test_an_alarm_survives_the_death_of_its_monitor(pools, clf, log, rng, monkeypatch):
    arrive(log, drawn(pools["night"], 100, rng), clf.fingerprint)
    def killed(self, kind, *args, **more):
        if kind == "alarm": raise KeyboardInterrupt
        return real(self, kind, *args, **more)
    real = PredictionsLog.add_event
    monkeypatch.setattr(PredictionsLog, "add_event", killed)
    with pytest.raises(KeyboardInterrupt): monitor(log, clf)
    assert (len(log.events("look")), log.events("alarm")) == (1, [])
    monkeypatch.undo()
    assert (monitor(log, clf).made, len(open_alarms(log)), len(monitor(log, clf).open)) == (0, 1, 1)


def test_a_clock_going_back_loses_no_photo(pools, clf, log, rng, monkeypatch):
    clock = [datetime(2026, 1, 10)]
    def now():
        clock[0] += timedelta(seconds=1)
        return clock[0]
    monkeypatch.setattr(bearclf.log, "_now", now)
    arrive(log, drawn(pools["day"], 150, rng), clf.fingerprint)
    monitor(log, clf)
    clock[0] = datetime(2026, 1, 1)  # set back by nine days
    arrive(log, drawn(pools["day"], 150, rng), clf.fingerprint)
    report = monitor(log, clf)
    assert (report.photos, [look["details"]["k"] for look in report.looks], report.due) == (300, [1, 2, 3], 100)
    assert sorted(ids(log)) == sorted(row["id"] for row in log.rows())


def test_photos_that_are_forgotten_or_sent_twice(pools, clf, log, rng):
    shas = arrive(log, drawn(pools["day"], 100, rng), clf.fingerprint)
    row = pools["day"][0]
    for _ in range(150): log.write(Answer("x.jpg", "black", row["verdict"], row["probs"], row["known"], 10), b"the same photo, again and again", clf.fingerprint, source="page", traits=row["traits"])
    assert (monitor(log, clf).made, monitor(log, clf).photos) == (1, 101)
    for sha in shas[:40]: log.forget(sha)
    report = monitor(log, clf)
    assert (report.made, report.photos, report.due) == (0, 61, 99)  # what is gone is gone, and nothing is looked at twice
    arrive(log, drawn(pools["day"], 99, rng), clf.fingerprint)
    report = monitor(log, clf)
    assert (report.made, report.looks[-1]["details"]["n"], report.photos) == (1, 160, 160)


def test_the_first_photos_as_baseline(pools, clf, log, rng):
    assert monitor(log, clf, baseline=200).due == 300
    arrive(log, drawn(pools["other"], 290, rng), clf.fingerprint)  # nothing like the reference, from the first day on
    report = monitor(log, clf, baseline=200)
    assert (report.looks, report.due, report.open) == ([], 10, [])
    arrive(log, drawn(pools["other"], 210, rng), clf.fingerprint)
    report = monitor(log, clf, baseline=200)
    assert (len(report.looks), report.open, report.against) == (3, [], "the first 200 photos")
    by_program = [row | dict(source="service") for row in drawn(pools["other"], 100, rng)]
    arrive(log, by_program, clf.fingerprint)
    report = monitor(log, clf, baseline=200)
    assert {f["series"] for alarm in report.open for f in alarm["details"]["findings"]} == {"source"}
    assert monitor(log, clf).made == 0  # another reference makes no new looks of old photos


def test_old_rows_without_traits_and_hostile_labels(pools, clf, log, rng, tmp_path):
    label = "<img src=x onerror=alert(1)>"
    rows = [row | dict(traits=None, source=None, probs=dict(zip((label, "grizzly", "teddy"), row["probs"].values()))) for row in drawn(pools["day"], 100, rng)]
    arrive(log, rows, clf.fingerprint)
    report = monitor(log, clf)
    names = {f["name"] for f in report.looks[-1]["details"]["findings"]}
    assert "verdict" in names and not names & {*TRAITS, "source"}
    text = drift_report(report, log, tmp_path/"m.html").read_text()
    assert label not in text and "&lt;img src=x" in text


def test_reasons_are_asked_for(log):
    number = log.add_event("alarm", "f"*64, details=dict(look=1, findings=[], words=[], examples=[]))
    for who, why in (("", "seen"), ("Ada", " ")):
        with pytest.raises(BearclfError, match="say who, and why"): close_alarm(log, number, who, why)
    close_alarm(log, number, "Ada", "seen")
    assert open_alarms(log) == [] and datetime.now(timezone.utc).replace(tzinfo=None) - log.events("closed")[0]["time"] < timedelta(minutes=1)
