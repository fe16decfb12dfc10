"""The predictions log on both its databases: the same promises, kept by SQLite and by PostgreSQL."""
import io
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import create_engine, func, select, text, update

from bearclf import drift
from bearclf.classify import Answer, Classifier, traits
from bearclf.core import BearclfError, sha256
from bearclf.drift import EVERY, close_alarm, monitor, open_alarms
from bearclf.log import PHOTOS, PREDICTIONS, REVIEWS, Outrun, PredictionsLog, log_url
from bearclf.loop import learn_from
from bearclf.review import agreement, outcome, pending, queue, say, take_back
from bearclf.rollout import begin, demote, evidence, heed, promote
from bearclf.stage import Closed, Policy, record, set_stage, standing

pytestmark = pytest.mark.once
ANSWER = Answer("a.jpg", "grizzly", "confident", dict(grizzly=.9, black=.1), .5, 10)
BUNDLE = "f"*64


@pytest.fixture
def log(any_log):
    log = PredictionsLog(any_log)
    yield log
    log.engine.dispose()


def write(log, photo=b"a photo", **more): return log.write(ANSWER, photo, BUNDLE, **more)
def row(log, id): return next(iter(log.rows(PREDICTIONS.c.id == id)), None)
def stands(log, id): return row(log, id)["human"], row(log, id)["reviewer"]


def lent(log, photo, **more):
    id = write(log, photo, **{"review": "first", **more})
    log.lend(id, photo)
    return id


def aged(log, days, *ids):
    with log.changing() as db:
        db.execute(update(PREDICTIONS).where(PREDICTIONS.c.id.in_(ids)).values(time=PREDICTIONS.c.time - timedelta(days=days)) if not log.file else
                   text(f"update predictions set time = datetime(time, '-{days} days') || '.000000' where id in ({', '.join(repr(i) for i in ids)})"))
        db.execute(update(REVIEWS).where(REVIEWS.c.prediction.in_(ids)).values(time=datetime(2000, 1, 1)))


def at_once(*does):
    "Call all of them at the same moment; what each returned, or raised."
    barrier, out = threading.Barrier(len(does)), [None]*len(does)
    def go(i):
        barrier.wait()
        try: out[i] = does[i]()
        except Exception as e: out[i] = e
    threads = [threading.Thread(target=go, args=[i]) for i in range(len(does))]
    for t in threads: t.start()
    for t in threads: t.join()
    return out


def test_what_is_written_is_read(log):
    before = datetime.now(timezone.utc).replace(tzinfo=None)
    id = write(log, shown="A grizzly", stage="supervised", review="confirm", source="page", traits=dict(brightness=.5, side=None))
    told = row(log, id)
    assert before <= told.pop("time") <= datetime.now(timezone.utc).replace(tzinfo=None)
    assert told.items() >= dict(id=id, stage="supervised", bundle=BUNDLE, sha256=sha256(b"a photo"), probs=dict(grizzly=.9, black=.1), known=.5, verdict="confident", shown="A grizzly",
                        human=None, reviewer=None, consent=False, lent=False, review="confirm", source="page", traits=dict(brightness=.5, side=None)).items()
    assert [r["id"] for r in PredictionsLog(log.file or log.engine.url.render_as_string(hide_password=False)).rows()] == [id]


def test_write_many_writes_once(log):
    answers = [(f"{i:032x}", ANSWER, sha256(b"%d" % i)) for i in range(100)]
    assert [log.write_many(answers[:60], BUNDLE), log.write_many(answers, BUNDLE), log.write_many(answers, BUNDLE)] == [60, 40, 0]


def test_tell_consent_and_lend(log):
    a, b = write(log), write(log)  # the same photo twice
    sha = sha256(b"a photo")
    log.tell(a, "black", b"jpeg")
    log.lend(b, b"jpeg")
    assert log.photo(sha) == b"jpeg"
    log.tell(a, "grizzly")  # may not be kept after all, but b lends it still
    assert (stands(log, a), log.photo(sha)) == (("grizzly", "visitor"), b"jpeg")
    log.lend(b, None)
    assert log.photo(sha) is None
    with pytest.raises(BearclfError, match="holds this answer no longer"): log.tell("0"*32, "black")


def test_twenty_consent_at_once(log):
    ids = [write(log) for _ in range(20)]
    assert at_once(*[lambda id=id: log.tell(id, "black", b"jpeg") for id in ids]) == [None]*20
    assert log.photo(sha256(b"a photo")) == b"jpeg" and all(r["consent"] for r in log.rows())


def test_forget(log):
    a, b = lent(log, b"a"), lent(log, b"b")
    say(log, a, "anna", "black")
    assert log.forget(sha256(b"a")) == 1
    assert (row(log, a), log.photo(sha256(b"a")), log.read(select(REVIEWS))) == (None, None, [])
    assert outcome(log, a).state == "gone" and outcome(log, b).state == "waiting"
    with pytest.raises(BearclfError, match="no longer"): say(log, a, "anna", "black")
    assert take_back(log, "anna") is None


def test_prune(log):
    fresh, seen, old, kept, gone = (lent(log, name) for name in (b"fresh", b"seen", b"old", b"kept", b"gone"))
    twin = lent(log, b"seen")
    log.tell(kept, "black", b"kept")
    say(log, seen, "anna", "black")
    aged(log, 2, seen, twin)
    aged(log, 31, old, kept)
    aged(log, 400, gone)
    assert log.prune(days=365) == (3, 1)
    assert {name: log.photo(sha256(name)) is not None for name in (b"fresh", b"seen", b"old", b"kept", b"gone")} == {b"fresh": True, b"seen": False, b"old": False, b"kept": True, b"gone": False}
    assert row(log, gone) is None and stands(log, seen) == ("black", "anna")


def test_a_photo_stays_while_reviewers_are_not_done(log):
    id = lent(log, b"a")
    say(log, id, "anna", "black", needed=2)
    aged(log, 2, id)
    assert log.prune() == (0, 0)
    say(log, id, "ben", "black", needed=2)
    aged(log, 0, id)
    assert log.prune() == (1, 0)


def test_of_twenty_that_know_the_same_one_writes(log):
    logs = [PredictionsLog(log.file or log.engine.url.render_as_string(hide_password=False)) for _ in range(20)]
    last = 0
    for _ in range(5):
        out = at_once(*[lambda l=l: l.add_event("stage", BUNDLE, after=last) for l in logs])
        (last,) = [n for n in out if isinstance(n, int)]
        assert sum(isinstance(e, Outrun) for e in out) == 19
    for l in logs: l.engine.dispose()


def test_twenty_that_do_not_ask_all_write(log):
    out = at_once(*[lambda i=i: log.add_event("look", f"{i}") for i in range(20)])
    assert sorted(out) == list(range(1, 21))


def test_two_reviewers_at_once(log):
    ids = [lent(log, b"%d" % i) for i in range(25)]
    labels = ["black", "grizzly", "", None]
    told = [(random.choice(labels), random.choice(labels)) for _ in ids]
    for id, (anna, ben) in zip(ids, told): assert not [e for e in at_once(lambda: say(log, id, "anna", anna, 2), lambda: say(log, id, "ben", ben, 2)) if isinstance(e, Exception)]
    states = [outcome(log, id, 2) for id in ids]
    expected = lambda a, b: ("unclear", None) if a is b is None else ("waiting", None) if None in (a, b) else ("settled", a) if a == b else ("disputed", None)
    assert [tuple(s) for s in states] == [expected(*t) for t in told]
    assert [stands(log, id)[0] for id in ids] == [s.label for s in states]
    counts = Counter(s.state for s in states)
    assert pending(log, 2) == dict(without_photo=0, begun=counts["waiting"]) | {s: counts[s] for s in ("waiting", "disputed", "unclear", "settled")}
    assert agreement(log) == dict(n=counts["settled"] + counts["disputed"], same=counts["settled"])


def test_one_reviewer_in_two_windows_has_one_word(log):
    for i in range(10):
        a, b = lent(log, b"%d" % i), lent(log, b"%d" % i)  # one photo, two answers
        at_once(lambda: say(log, a, "anna", "black"), lambda: say(log, b, "anna", "grizzly"))
        words = log.read(select(REVIEWS).where(REVIEWS.c.prediction.in_([a, b]), ~REVIEWS.c.undone))
        assert len(words) == 1 and stands(log, a) == stands(log, b) == (words[0]["label"], "anna")
    taken = at_once(*[lambda: take_back(log, "anna")]*4)
    assert len(set(taken)) == 4 and None not in taken


def test_a_visitor_at_the_same_time_does_not_overrule(log):
    for i in range(20):
        id = lent(log, b"%d" % i)
        assert None in at_once(lambda: say(log, id, "anna", "black"), lambda: log.tell(id, "grizzly"))
        assert stands(log, id) == ("black", "anna")
        assert take_back(log, "anna") == id
        assert stands(log, id) == ("grizzly", "visitor")


def test_queue(log):
    a, _ = lent(log, b"a"), lent(log, b"a")
    audit, unseen = lent(log, b"b", review="audit"), write(log, b"c", review="first")
    write(log, b"d")
    other = log.write(ANSWER, b"a", "e"*64, review="first")  # another bundle's answer
    ids = lambda who, *args, **kw: [r["id"] for r in queue(log, who, *args, **kw)]
    assert ids("anna") == ids("anna", "unsure") == [a, other, audit] and ids("anna", bundle="e"*64) == [other] and ids("anna", "audit") == [audit]
    assert ids("anna", most=1) == [a]
    say(log, a, "anna", "black", 2)
    assert (ids("anna"), ids("ben")) == ([other, audit], [a, other, audit])
    say(log, a, "ben", "black", 2)
    late = lent(log, b"a")
    assert (ids("carla"), outcome(log, late, 2)) == ([other, audit], ("settled", "black"))
    assert stands(log, late) == ("black", "anna, ben")
    assert pending(log, 2) == dict(waiting=2, begun=0, without_photo=1, disputed=0, unclear=0, settled=1) and unseen


@contextmanager
def locked(where):
    "Another connection holds what a writer needs."
    engine = create_engine(log_url(where))
    with engine.connect() as db:
        if engine.dialect.name == "sqlite": db.exec_driver_sql("BEGIN IMMEDIATE")
        else: db.exec_driver_sql("LOCK TABLE predictions IN EXCLUSIVE MODE")
        yield
        db.rollback()
    engine.dispose()


def test_a_locked_database_is_told(log, any_log):
    before = [write(log) for _ in range(3)]
    log.lend(before[0], b"jpeg")
    with locked(any_log):
        start = time.monotonic()
        errors = at_once(lambda: write(log), lambda: say(log, before[0], "anna", "black"), lambda: log.tell(before[1], "black"))
        assert 3 < time.monotonic() - start < 15
        assert all(isinstance(e, BearclfError) and "cannot be written" in str(e) for e in errors)
        assert outcome(log, before[0]).state == "waiting"  # reading goes on
    assert sorted(r["id"] for r in log.rows()) == sorted(before)
    assert say(log, before[0], "anna", "black").state == "settled" and write(log)


FILLS = """
import os, resource, sys
from bearclf.classify import Answer, Classifier, traits
from bearclf.core import BearclfError
from bearclf.log import PredictionsLog
log = PredictionsLog(sys.argv[1])
if log.file: resource.setrlimit(resource.RLIMIT_FSIZE, (4*2**20, 4*2**20))
answer = Answer("a.jpg", "grizzly", "confident", dict(grizzly=1.), .5, 10)
try:
    while True:
        photo = os.urandom(1_000_000)
        id = log.write(answer, photo, "f"*64)
        log.lend(id, photo)
        print(id, flush=True)
except BearclfError as e: print(e, file=sys.stderr)
"""


def test_a_full_disk_is_told_and_what_was_answered_stays(log, any_log):
    done = subprocess.run([sys.executable, "-c", FILLS, any_log], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    ids = done.stdout.split()
    assert len(ids) >= 2 and set(ids) <= {r["id"] for r in log.rows()}
    with log.engine.connect() as db: assert db.scalar(select(func.count()).select_from(PHOTOS).where(func.length(PHOTOS.c.data) == 1_000_000)) >= len(ids)


WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from bearclf.classify import Answer, Classifier, traits
from bearclf.core import BearclfError
from bearclf.log import PredictionsLog
where, folder, writers, photos = sys.argv[1], Path(sys.argv[2]), 20, 500
answer = Answer("a.jpg", "grizzly", "confident", dict(grizzly=1.), .5, 10)
told = lambda w: [line.split() for line in (folder/f"{w}.txt").read_text().splitlines()]  # a line is one small write: all of it, or nothing

def patient(does, *args):
    while True:
        try: return does(*args)
        except BearclfError as e:  # twenty that write without a pause can keep one waiting for too long: it was told so, and comes again
            if 'lock' not in str(e): raise

def write(w):
    out = os.open(folder/f"{w}.txt", os.O_WRONLY | os.O_APPEND)
    log = patient(PredictionsLog, where)
    for i in range(len(told(w)), photos): os.write(out, f"{i} {patient(log.write, answer, b'%d %d' % (w, i), 'f'*64)}\\n".encode())

def begin(w):
    pid = os.fork()
    if pid: return pid
    try: write(w); os._exit(0)
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}\\n".encode())
        os._exit(1)

for w in range(writers): (folder/f"{w}.txt").touch()
dies = {w: [random.randrange(0, photos) for _ in range(2)] for w in range(writers)}  # after about so many photos
runs, kills = {begin(w): w for w in range(writers)}, 0
while runs:
    time.sleep(.003)
    for pid, w in list(runs.items()):
        if dies[w] and len(told(w)) >= min(dies[w]):
            dies[w].remove(min(dies[w]))
            os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended: continue
        del runs[pid]
        if os.WIFSIGNALED(status): kills += 1
        if status: runs[begin(w)] = w
print(kills)
"""


def test_twenty_writers_killed_lose_nothing(any_log, tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITERS, any_log, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 30
    said = [line.split() for w in range(20) for line in (tmp_path/f"{w}.txt").read_text().splitlines()]
    assert Counter(int(i) for i, _ in said) == {i: 20 for i in range(500)}
    log = PredictionsLog(any_log)
    there = Counter(r["id"] for r in log.rows())
    assert len(there) <= 10_000 + int(done.stdout)  # a photo whose writer was killed before it could say so is answered again
    assert all(there[id] == 1 for _, id in said) and len({id for _, id in said}) == 10_000
    assert {r["sha256"] for r in log.rows()} == {sha256(b"%d %d" % (w, i)) for w in range(20) for i in range(500)}
    log.engine.dispose()


LABELS = ["black", "grizzly", "teddy"]


def sure(label, rng=random): return Answer("x.jpg", label, "confident", {k: .98 if k == label else .01 for k in LABELS}, .7 + .05*rng.random(), 1., np.full((32, 32, 3), int(120 + 60*rng.random()), np.uint8))


def reviewed(log, n):
    for i in range(n):
        answer = sure(LABELS[i % 3])
        say(log, record(log, answer, b"photo %d %f" % (i, random.random()), BUNDLE, "service").id, "anna", answer.label)


def test_from_shadow_to_open_and_back(log):
    begin(log, BUNDLE, Policy(target=.5, reviewed=20), "anna", "first day")
    for stage in ("supervised", "open"):
        reviewed(log, 30)
        if stage == "open": demote(log, BUNDLE, "ben", "to see"); set_stage(log, BUNDLE, "supervised", Policy(target=.5, reviewed=20), "ben", "seen"); reviewed(log, 30)
        seen = evidence(log, BUNDLE, LABELS)
        assert (seen.reviewed, seen.said["teddy"]) == (30, (10, 10))
        out = at_once(*[lambda name=name: promote(log, seen, name, "now") for name in ("anna", "ben", "carl", "dora")])
        assert out.count(stage) == 1 and sum(isinstance(e, Outrun) for e in out) == 3
    assert standing(log, BUNDLE).stage == "open"
    number = log.add_event("alarm", BUNDLE, "bearclf monitor", "darker", dict(look=1, findings=[], words=[], examples=[]))
    assert heed(log, BUNDLE, open_alarms(log, BUNDLE)) == "supervised" and heed(log, BUNDLE, open_alarms(log, BUNDLE)) is None
    close_alarm(log, number, "anna", "a lamp")
    assert open_alarms(log, BUNDLE) == []


def test_ten_places_are_ten(log):
    set_stage(log, BUNDLE, "supervised", Policy(per_day=10), "anna", "ten a day")
    out = at_once(*[lambda i=i: record(log, sure("teddy"), b"%d" % i, BUNDLE, "service") for i in range(24)])
    assert sum(isinstance(e, Closed) for e in out) == 14 and len(log.rows()) == 10


def test_taken_back_between_two_answers(log):
    set_stage(log, BUNDLE, "open", Policy(audit=0), "anna", "x")
    done, shown = threading.Event(), []
    def ask():
        while not done.is_set(): shown.append(record(log, sure("teddy"), random.randbytes(8), BUNDLE, "service"))
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads: t.start()
    time.sleep(.5)
    demote(log, BUNDLE, "ben", "enough", "shadow")
    after = record(log, sure("teddy"), b"last", BUNDLE, "service")
    done.set()
    for t in threads: t.join()
    number = log.events("stage", BUNDLE)[-1]["number"]
    assert not after.shown and {r.shown for r in shown if r.ruled == number} <= {False}
    rows = log.rows()
    back = min(row["time"] for row in rows if row["stage"] == "shadow")
    assert [row for row in rows if row["stage"] == "open" and row["time"] > log.events("stage", BUNDLE)[-1]["time"] + timedelta(seconds=.5)] == [] and back


def test_what_may_be_learned(log, tmp_path):
    set_stage(log, BUNDLE, "open", Policy(audit=1), "anna", "x")
    im = io.BytesIO(); Image.new("RGB", (64, 48), (90, 60, 30)).save(im, "jpeg")
    for i in range(8):
        id = record(log, sure("teddy"), b"%d" % i, BUNDLE, "page").id
        log.lend(id, im.getvalue(), keep=i != 1)
        if i != 2: say(log, id, "anna", ["grizzly", "black"][i % 2])
    learned = learn_from(log, tmp_path/"photos")
    assert (len(learned.added), learned.unreviewed, learned.kept_back) == (6, 1, 1)


def logged(log, n: int) -> Classifier:
    "As many answers on record, of the classifier that comes back."
    rng, clf = random.Random(0), Classifier()
    for i in range(n):
        answer = sure(rng.choice(LABELS), rng)
        with log.changing() as db: log.add(db, answer, sha256(b"%d" % i), clf.fingerprint, None, "open", source="page", traits=traits(answer.pixels, 640))
    return clf


def test_monitor_looks_once(log):
    clf = logged(log, 2*EVERY + 150)
    out = at_once(*[lambda: monitor(log, clf, baseline=100) for _ in range(3)])
    assert sum(r.made for r in out) == 2 == len(out[0].looks), out
    assert monitor(log, clf, baseline=100).made == 0


def test_monitor_that_is_outrun_tells_what_it_made(log, monkeypatch):
    clf, others, compare = logged(log, 3*EVERY + 100), [], drift.compare
    def slow(*args): # before the second look, another monitor makes all that are left
        calls.append(1)
        if len(calls) == 2: others.append(monitor(log, clf, baseline=100))
        return compare(*args)
    calls = []
    monkeypatch.setattr(drift, "compare", slow)
    mine = monitor(log, clf, baseline=100)
    assert (mine.made, others[0].made, len(mine.looks)) == (1, 2, 3)
    assert "looks: 3, of them now: 1;" in str(mine)
