"""How far a model is let out, looked at from outside: what leaves page and service in each stage, what people's words do to it, and who may change it."""
import json, os, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from bearclf.classify import Answer, Classifier, bundle_folder, overlay
from bearclf.core import BearclfError, data_url, sha256
from bearclf.log import PREDICTIONS, PredictionsLog
from bearclf.practice import draw_bear
from bearclf.review import say
from bearclf.stage import Policy, record, set_stage, standing
from browser import WAIT
from conftest import app, free_port

pytestmark = pytest.mark.once


def jpeg(label, seed):
    draw_bear(label, np.random.default_rng(seed)).save(out := BytesIO(), "jpeg", quality=90)
    return out.getvalue()


TEDDY, OTHER = jpeg("teddy", 4), jpeg("grizzly", 3)  # the model is sure of the first, and takes the second for none of these


@pytest.fixture(scope="module")
def clf(): return Classifier(threads=1)


@pytest.fixture
def log(tmp_path): return PredictionsLog(tmp_path/"bearclf.db")


def cli(*args): return subprocess.run([sys.executable, "-m", "bearclf.cli", *map(str, args)], capture_output=True, text=True, timeout=120)


def test_the_two_photos_are_what_they_should_be(clf):
    assert [clf.predict(photo, "x").verdict for photo in (TEDDY, OTHER)] == ["confident", "out_of_domain"]


class Tap:
    "A browser tab all of whose traffic is kept: bodies and headers of responses, and every frame of its web sockets."
    def __init__(self, chromium, url):
        self.context = chromium.new_context()
        self.tab, self.frames, self.responses = self.context.new_page(), [], []
        self.tab.on("websocket", lambda ws: ws.on("framereceived", lambda frame: self.frames.append(frame if isinstance(frame, bytes) else frame.encode())))
        self.tab.on("response", lambda r: self.responses.append(r))
        self.tab.goto(url, timeout=WAIT)
        self.tab.wait_for_selector(".bearclf-upload input", state="attached", timeout=WAIT)

    def choose(self, name, photo):
        "Send a photo; all that has come since, once its card is there."
        before, cards = len(self.frames), self.tab.locator(".bearclf .card").count()
        self.tab.set_input_files(".bearclf-upload input", [dict(name=name, mimeType="image/jpeg", buffer=photo)])
        expect(self.tab.locator(".bearclf .card")).to_have_count(cards + 1, timeout=WAIT)
        self.tab.wait_for_timeout(500)
        return b"".join(self.frames[before:])

    def bodies(self): return b"".join(r.body() for r in self.responses if r.request.method == "GET" and not r.url.endswith((".js", ".css")))
    def headers(self): return json.dumps([r.all_headers() for r in self.responses]).encode()


def secrets(answer):
    "What would tell an answer, wherever it stands."
    numbers = [p for p in (*answer.probs.values(), answer.known) if .001 < p < .999]
    said = [answer.words(), data_url(overlay(answer.pixels, answer.heat))[-200:], 'class=\\"bars\\"', f'card {answer.verdict}', "The model is sure", "If it had to choose"]
    return [s.encode() for s in [*said, *(f"{p:.4f}"[1:] for p in numbers), *(f"--p:{p:.1%}" for p in answer.probs.values())]]


def leaked(traffic, answer): return [s for s in secrets(answer) if s in traffic]


def anonymous(traffic):
    "Traffic without what differs from message to message anyhow: numbers of messages, times, and the visitor's own picture."
    text = re.sub(rb"base64,[A-Za-z0-9+/=]+", b"", traffic)
    return sorted(set(re.findall(rb'"(?:value|asks|about|claim|words|kind)": ?(?:"(?:[^"\\]|\\.)*"|null)', text)))


@pytest.mark.parametrize("stage", ["shadow", "supervised"])
def test_a_withheld_answer_is_nowhere_in_the_pages_traffic(serve, chromium, log, clf, stage):
    set_stage(log, clf.fingerprint, stage, Policy(labels=["black"]), "anna", "first day")
    server = serve(*app("--log", log.name))
    tap = Tap(chromium, server.url)
    tap.choose("first.jpg", jpeg("black", 1))  # what the page itself says comes before
    heard = {name: tap.choose("photo.jpg", photo) for name, photo in dict(teddy=TEDDY, other=OTHER).items()}
    for photo, traffic in zip((TEDDY, OTHER), heard.values()): assert leaked(traffic + tap.bodies() + tap.headers(), clf.predict(photo, "photo.jpg")) == []
    assert anonymous(heard["teddy"]) == anonymous(heard["other"])  # nothing tells a sure answer from "none of these"
    assert len(anonymous(heard["teddy"])) > 2
    assert {row["shown"] for row in log.rows()} == {None}
    set_stage(log, clf.fingerprint, "open", Policy(), "anna", "to see that the ear hears")
    answer = clf.predict(TEDDY, "photo.jpg")
    assert len(leaked(tap.choose("photo.jpg", TEDDY), answer)) > 2  # the same ear hears an answer that is given
    tap.context.close()


def test_a_person_sees_it_only_when_allowed_and_their_word_comes_back(serve, visit, log, clf, tmp_path):
    set_stage(log, clf.fingerprint, "supervised", Policy(), "anna", "third week")
    visitor = visit(serve(*app("--log", log.name)).url).ready()
    for name, photo in dict(other=OTHER, teddy=TEDDY).items(): (tmp_path/f"{name}.jpg").write_bytes(photo)
    assert visitor.choose(tmp_path/"other.jpg") == ["A person looks at this first"]
    pending = visitor.tab.locator(".bearclf-pending")
    assert log.photo(sha256(OTHER)) is None
    pending.get_by_role("button", name="Let a person see it").click()
    expect(pending).to_contain_text("Waiting for a person", timeout=WAIT)
    row, = log.rows()
    assert row["lent"] and not row["consent"] and log.photo(sha256(OTHER)) is not None
    say(log, row["id"], "anna", "grizzly")
    expect(pending).to_contain_text("A person says: grizzly.", timeout=WAIT)

    visitor.tab.set_input_files(".bearclf-upload input", str(tmp_path/"teddy.jpg"))
    newest = visitor.tab.locator(".answer").first
    expect(newest).to_contain_text("Provisional", timeout=WAIT)
    newest.get_by_role("button", name="Let a person see it").click()
    expect(newest).to_contain_text("Waiting for a person", timeout=WAIT)
    newest.get_by_role("button", name="Take it back").click()
    expect(newest).to_contain_text("Nobody may see it", timeout=WAIT)
    assert log.photo(sha256(TEDDY)) is None
    newest.get_by_role("button", name="Let a person see it").click()
    expect(newest).to_contain_text("Waiting for a person", timeout=WAIT)
    say(log, log.rows()[-1]["id"], "anna", "black")
    expect(newest).to_contain_text("A person corrects this: black.", timeout=WAIT)


def service(serve, *options, env=None):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve([sys.executable, "-m", "bearclf.cli", "serve", "--port", str(port), *map(str, options)], f"{url}/health", env=env)
    return httpx.Client(base_url=url, timeout=60)


def ask(client, photo, **query):
    r = client.post("/predict", params=query, content=photo, headers={"Content-Type": "image/jpeg"})
    return r, r.json()["predictions"][0] if r.status_code == 200 else r.json()


def counters(client): return {line for line in client.get("/metrics").text.splitlines() if line.startswith("bearclf_photos_total")}


@pytest.mark.parametrize("stage, kind", [("shadow", "trial"), ("supervised", "first")])
def test_a_withheld_answer_is_nowhere_in_what_the_service_says(serve, log, clf, stage, kind):
    set_stage(log, clf.fingerprint, stage, Policy(labels=["black"]), "anna", "first day")
    client, said, counted = service(serve, "--log", log.name), [], []
    for photo in (TEDDY, OTHER):
        before = counters(client)
        r, row = ask(client, photo, review=True)
        said.append((dict(r.headers) | {"date": ""}, r.content.replace(row["id"].encode(), b"")))
        counted.append(counters(client) - before)
        assert row == dict(file="this upload", withheld=kind, id=row["id"])
        assert leaked(r.content + str(r.headers).encode(), clf.predict(photo, "this upload")) == []
    assert said[0] == said[1]
    assert all("withheld" in line and "teddy" not in line for lines in counted for line in lines)
    assert [(row["shown"], row["lent"], row["source"]) for row in log.rows()] == [(None, True, "service")]*2
    heard = client.get(f"/answers/{row['id']}")
    assert heard.status_code == (404 if stage == "shadow" else 200)
    if stage == "supervised":
        say(log, row["id"], "anna", "grizzly")
        assert client.get(f"/answers/{row['id']}").json() == dict(state="settled", label="grizzly")


def test_provisional_then_taken_back_at_once(serve, log, clf):
    set_stage(log, clf.fingerprint, "supervised", Policy(), "anna", "third week")
    client = service(serve, "--log", log.name)
    _, row = ask(client, TEDDY)
    assert (row["label"], row["provisional"]) == ("teddy", True)
    done = cli("rollout", "demote", "--log", log.name, "--who", "ben", "--why", "it called a dog a bear")
    assert done.returncode == 0 and "shadow" in done.stdout
    _, row = ask(client, TEDDY)
    assert row["withheld"] == "trial"


def test_another_bundle_begins_in_shadow(serve, log, clf, tmp_path):
    bundle = tmp_path/"bundle"
    shutil.copytree(bundle_folder(), bundle)
    set_stage(log, clf.fingerprint, "open", Policy(audit=0), "anna", "long watched")
    client = service(serve, "--log", log.name, "--bundle", bundle)
    _, row = ask(client, TEDDY)
    assert row["label"] == "teddy" and "id" not in row
    spec = json.loads((bundle/"bundle.json").read_text())
    (bundle/"bundle.json").write_text(json.dumps(spec | dict(created="2027-01-01T00:00:00+00:00")))
    end = time.monotonic() + 30
    while client.get("/health").json()["bundle"] == clf.fingerprint: assert time.monotonic() < end; time.sleep(.2)
    _, row = ask(client, TEDDY)
    assert row["withheld"] == "trial"
    said = cli("rollout", "status", "--log", log.name, "--bundle", bundle)
    assert said.returncode == 0 and said.stdout.startswith("shadow, for nobody has let this bundle out")


def test_hours_and_numbers(serve, log, clf, visit, tmp_path):
    set_stage(log, clf.fingerprint, "supervised", Policy(per_day=2), "anna", "two a day")
    client = service(serve, "--log", log.name)
    assert [ask(client, TEDDY)[0].status_code for _ in range(2)] == [200, 200]
    r, problem = ask(client, TEDDY)
    assert r.status_code == 503 and "come back tomorrow" in problem["detail"] and 0 < int(r.headers["retry-after"]) <= 86400
    assert leaked(r.content + str(r.headers).encode(), clf.predict(TEDDY, "this upload")) == []
    (tmp_path/"teddy.jpg").write_bytes(TEDDY)
    visitor = visit(serve(*app("--log", log.name)).url).ready()
    assert visitor.choose(tmp_path/"teddy.jpg") == ["Today's 2 photos are answered: please come back tomorrow."]
    hour = time.localtime().tm_hour
    set_stage(log, clf.fingerprint, "supervised", Policy(hours=[(hour + 2) % 24, (hour + 3) % 24]), "anna", "at another hour")
    r, problem = ask(client, TEDDY)
    assert r.status_code == 503 and "when people are there" in problem["detail"]
    assert len(log.rows()) == 2


def test_thirty_at_once_take_no_more_places_than_there_are(log, clf):
    set_stage(log, clf.fingerprint, "supervised", Policy(per_day=10), "anna", "ten a day")
    answer = clf.predict(TEDDY, "x")
    def one(i):
        try: return record(log, answer, b"%d" % i, clf.fingerprint, "service")
        except BearclfError as e: return e
    with ThreadPoolExecutor(8) as pool: got = [*pool.map(one, range(30))]
    assert sum(not isinstance(g, BearclfError) for g in got) == 10 == len(log.rows())


def reviewed(log, clf, n, truth=("black", "grizzly", "teddy"), reviewer="anna"):
    "Photos of which the model is sure and people agree."
    for i in range(n):
        label = truth[i % len(truth)]
        answer = Answer("x", label, "confident", {k: .98 if k == label else .01 for k in clf.labels}, .8, 1., np.zeros((8, 8, 3), np.uint8))
        receipt = record(log, answer, b"photo %d %s" % (i, os.urandom(8)), clf.fingerprint, "service")
        say(log, receipt.id, reviewer, label)


def test_gates_refuse_until_they_hold_and_say_why(log, clf):
    where = ("--log", log.name, "--who", "anna")
    assert "No rollout was begun" in cli("rollout", "status", "--log", log.name).stderr
    assert cli("rollout", "start", *where, "--why", "first day", "--reviewed", 120).returncode == 0
    reviewed(log, clf, 90)
    done = cli("rollout", "promote", *where, "--why", "soon enough")
    assert done.returncode == 2 and "90 of 120 photos reviewed" in done.stderr and done.stderr.count("\n") == 1
    reviewed(log, clf, 30, truth=("grizzly", "teddy"))
    done = cli("rollout", "promote", *where, "--why", "soon enough")
    assert done.returncode == 2 and "black: right, where it says so: 30 of 30 (89 to 100 %)" in done.stderr and "grizzly" not in done.stderr
    reviewed(log, clf, 15, truth=("black",))
    number = log.add_event("alarm", clf.fingerprint, "bearclf monitor", "it is darker", dict(look=1, findings=[], words=["it is darker"], examples=[]))
    done = cli("rollout", "promote", *where, "--why", "soon enough")
    assert done.returncode == 2 and "open alarms: 1" in done.stderr
    log.add_event("closed", clf.fingerprint, "anna", "a lamp", dict(alarm=number))
    assert "stage supervised" in cli("rollout", "promote", *where, "--why", "135 reviewed").stdout
    assert json.loads(cli("rollout", "status", "--log", log.name, "--json").stdout)["reviewed"] == 0  # a new stage, new evidence
    last = log.events("stage")[-1]
    assert (last["who"], last["why"], last["details"]["evidence"]["reviewed"]) == ("anna", "135 reviewed", 135)


def test_two_promote_at_once_and_one_of_them_does(log, clf):
    assert cli("rollout", "start", "--log", log.name, "--why", "x", "--reviewed", 1, "--target", .1, "--who", "anna").returncode == 0
    reviewed(log, clf, 30)
    with ThreadPoolExecutor(4) as pool: done = [*pool.map(lambda name: cli("rollout", "promote", "--log", log.name, "--who", name, "--why", "now"), ("anna", "ben", "carl", "dora"))]
    assert sorted(d.returncode for d in done) == [0, 2, 2, 2]
    assert all("look again" in d.stderr or "stays in supervised" in d.stderr for d in done if d.returncode)
    assert standing(log, clf.fingerprint).stage == "supervised"


def test_a_photo_sent_ten_times_is_one_witness_and_visitors_are_none(log, clf):
    from bearclf.rollout import begin, evidence
    begin(log, clf.fingerprint, Policy(), "anna", "x")
    answer = clf.predict(TEDDY, "x")
    ids = [record(log, answer, TEDDY, clf.fingerprint, "page").id for _ in range(10)]
    log.tell(record(log, answer, OTHER, clf.fingerprint, "page").id, "teddy")
    say(log, ids[0], "anna", "teddy")
    seen = evidence(log, clf.fingerprint, clf.labels)
    assert (seen.answers, seen.reviewed, seen.said["teddy"], seen.visitors) == (2, 1, (1, 1), (1, 1))


def test_what_was_looked_at_before_is_no_new_evidence(log, clf):
    from bearclf.rollout import begin, evidence, promote
    from bearclf.review import queue
    begin(log, clf.fingerprint, Policy(target=.5, reviewed=30), "anna", "x")
    photos = [(label, verdict, b"%d" % i) for i, (label, verdict) in enumerate([(label, label) for label in clf.labels]*20 + [("black", "teddy")]*15)]
    def sent():
        def one(truth, says, photo):
            probs = {k: .98 if k == says else .01 for k in clf.labels}
            return record(log, Answer("x", says, "confident", probs, .8, 1., np.zeros((8, 8, 3), np.uint8)), photo, clf.fingerprint, "service").id
        return [(one(*p), p) for p in photos]
    for id, (truth, *_) in sent(): say(log, id, "anna", truth)
    before = evidence(log, clf.fingerprint, clf.labels)
    for id, _ in sent(): log.lend(id, TEDDY)  # all of them again, the wrong ones too: they stay wrong
    again = evidence(log, clf.fingerprint, clf.labels)
    assert (before.said, before.found, before.reviewed) == (again.said, again.found, again.reviewed) and before.said["teddy"] == (20, 35)
    set_stage(log, clf.fingerprint, "supervised", Policy(target=.5, reviewed=30), "anna", "x")
    sent()
    queue(log, "anna")  # which carries words over to what was sent again
    seen = evidence(log, clf.fingerprint, clf.labels)
    assert (seen.answers, seen.reviewed) == (0, 0)
    with pytest.raises(BearclfError, match="0 of 30 photos reviewed"): promote(log, seen, "anna", "x")


def test_an_alarm_that_comes_while_somebody_decides(log, clf):
    from bearclf.rollout import begin, evidence, promote
    begin(log, clf.fingerprint, Policy(target=.3, reviewed=10), "anna", "x")
    reviewed(log, clf, 30)
    seen = evidence(log, clf.fingerprint, clf.labels)
    log.add_event("alarm", clf.fingerprint, "bearclf monitor", "it is darker", dict(look=1, findings=[], words=["it is darker"], examples=[]))
    with pytest.raises(BearclfError, match="open alarms: 1"): promote(log, seen, "anna", "x")
    assert standing(log, clf.fingerprint).stage == "shadow"


def test_rules_for_other_labels_narrow_nothing(log, clf):
    from bearclf.rollout import begin, evidence, gates
    begin(log, clf.fingerprint, Policy(labels=["daisy"]), "anna", "x")
    assert len(gates(evidence(log, clf.fingerprint, clf.labels))) == 2 + len(clf.labels)


def test_begun_again_by_mistake_loses_nothing(log, clf):
    where = ("--log", log.name, "--who", "anna")
    assert cli("rollout", "start", *where, "--why", "first day", "--reviewed", 20).returncode == 0
    reviewed(log, clf, 12)
    done = cli("rollout", "start", *where, "--why", "by mistake")
    assert done.returncode == 2 and "--anew" in done.stderr
    said = json.loads(cli("rollout", "status", "--log", log.name, "--json").stdout)
    assert (said["reviewed"], said["policy"]["reviewed"]) == (12, 20)
    assert cli("rollout", "start", *where, "--why", "other rules", "--anew").returncode == 0
    assert json.loads(cli("rollout", "status", "--log", log.name, "--json").stdout)["reviewed"] == 0


def test_a_log_that_is_moved_away_opens_nothing(serve, log, clf, visit, tmp_path):
    set_stage(log, clf.fingerprint, "shadow", Policy(), "anna", "first day")
    client, page = service(serve, "--log", log.name), serve(*app("--log", log.name))
    (tmp_path/"teddy.jpg").write_bytes(TEDDY)
    assert ask(client, TEDDY)[1]["withheld"] == "trial"
    for part in tmp_path.glob("bearclf.db*"): part.rename(tmp_path/f"away-{part.name}")
    r, problem = ask(client, TEDDY)
    assert r.status_code == 503 and leaked(r.content, clf.predict(TEDDY, "this upload")) == []
    said = visit(page.url).ready().choose(tmp_path/"teddy.jpg")
    assert said == ["The answer could not be put on record, so none is given. That is our fault, not yours: please try again in a minute."]
    for part in tmp_path.glob("away-*"): part.rename(tmp_path/part.name.removeprefix("away-"))
    assert ask(client, TEDDY)[1]["withheld"] == "trial"


def test_the_words_around_follow_the_stage(serve, log, clf, visit, tmp_path):
    set_stage(log, clf.fingerprint, "shadow", Policy(), "anna", "first day")
    page = serve(*app("--log", log.name))
    (tmp_path/"teddy.jpg").write_bytes(TEDDY)
    set_stage(log, clf.fingerprint, "open", Policy(), "anna", "later")  # when the kernel for the first visitor was made already
    visitor = visit(page.url).ready()
    expect(visitor.tab.locator(".bearclf-page .help").first).to_contain_text("how sure it is", timeout=WAIT)
    set_stage(log, clf.fingerprint, "shadow", Policy(), "anna", "back")
    assert visitor.choose(tmp_path/"teddy.jpg") == ["Noted"]
    expect(visitor.tab.locator(".bearclf-page .help").first).to_contain_text("on trial", timeout=WAIT)


def test_forgetting_while_somebody_reads_is_told_and_done_when_they_have_gone(log, clf):
    import sqlite3
    id = record(log, clf.predict(TEDDY, "x"), TEDDY, clf.fingerprint, "page").id
    log.lend(id, TEDDY)
    reader = sqlite3.connect(log.name)
    reader.execute("begin")
    reader.execute("select count(*) from predictions").fetchone()
    done = cli("rollout", "forget", sha256(TEDDY), "--log", log.name)
    assert done.returncode == 2 and "somebody is reading" in done.stderr
    reader.close()
    assert cli("rollout", "forget", sha256(TEDDY), "--log", log.name).returncode == 1  # no row is left; now the files are clean
    log.engine.dispose()
    for part in ("", "-wal"):
        path = f"{log.name}{part}"
        if os.path.exists(path): assert sha256(TEDDY).encode() not in open(path, "rb").read() and TEDDY[200:260] not in open(path, "rb").read()


def test_what_looks_like_a_label_or_a_hash_and_is_none(log, clf, tmp_path):
    set_stage(log, clf.fingerprint, "open", Policy(audit=1), "anna", "x")
    def settled(label, sha=None):
        probs = {label: .9, "teddy": .1}
        id = record(log, Answer("x", label, "confident", probs, .8, 1., np.zeros((8, 8, 3), np.uint8)), TEDDY + os.urandom(8), clf.fingerprint, "page").id
        log.lend(id, TEDDY, keep=True)
        say(log, id, "anna", label)
        if sha:
            with log.changing() as db:
                old = log.rows(PREDICTIONS.c.id == id)[0]["sha256"]
                db.exec_driver_sql("update predictions set sha256 = ? where sha256 = ?", (sha, old))
                db.exec_driver_sql("update photos set sha256 = ? where sha256 = ?", (sha, old))
    for label, sha in (("../up", None), (".quarantine", None), ("x\x1b[31m", None), ("grizzly", "../../../evil"), ("grizzly", None), ("black", None)): settled(label, sha)
    done = cli("rollout", "learn", tmp_path/"photos", "--log", log.name)
    assert done.returncode == 0 and "\x1b" not in done.stdout, done.stderr
    assert sorted(p.parent.name for p in (tmp_path/"photos").rglob("*.jpg")) == ["black", "grizzly"]
    assert {p.name for p in tmp_path.iterdir()} <= {"photos", "bearclf.db", "bearclf.db-wal", "bearclf.db-shm"}


def test_a_foreign_database_stays_as_it_is(tmp_path):
    import sqlite3
    theirs = tmp_path/"theirs.db"
    with sqlite3.connect(theirs) as db: db.execute("create table predictions (id text, weather text)")
    before = theirs.read_bytes()
    assert cli("rollout", "status", "--log", theirs).returncode == 2
    assert theirs.read_bytes() == before


def test_unreviewed_answers_never_teach(log, clf, tmp_path):
    from bearclf.core import photo_files
    set_stage(log, clf.fingerprint, "open", Policy(audit=.5), "anna", "x")
    rng, good = np.random.default_rng(0), set()
    for i in range(60):
        photo = jpeg("teddy", i) if i < 6 else TEDDY + b"%d" % i
        id = record(log, clf.predict(TEDDY, "x"), photo, clf.fingerprint, "page").id
        kind = i % 6
        if kind != 1: log.tell(id, "teddy", TEDDY)                                    # 1: nobody said anything
        if kind in (2, 3): say(log, id, "anna", "grizzly" if kind == 2 else "")       # 3: none of these
        if kind == 2: good.add(sha256(photo))
        if kind == 4: say(log, id, "anna", None)                                      # cannot tell
        if kind == 5:                                                                 # planted: it looks reviewed, and nobody has
            with log.changing() as db: db.execute(PREDICTIONS.update().where(PREDICTIONS.c.id == id).values(human="teddy", reviewer=("anna", "model", clf.fingerprint[:12])[i % 3]))
    done = cli("rollout", "learn", tmp_path/"photos", "--log", log.name)
    assert done.returncode == 0, done.stderr
    assert {p.stem for p in photo_files(tmp_path/"photos")} == good and len(good) == 10
    assert {p.parent.name for p in photo_files(tmp_path/"photos")} == {"grizzly"}
    assert "10 of 10 photos came through the model" in done.stdout
    assert cli("check", tmp_path/"photos", "--undo").returncode == 0 and photo_files(tmp_path/"photos") == []


def test_a_premortem_is_a_form_that_must_be_filled_in(tmp_path):
    form = tmp_path/"premortem.md"
    assert cli("rollout", "premortem", form).returncode == 0
    assert cli("rollout", "premortem", form).returncode == 2  # nothing is overwritten
    done = cli("export", tmp_path/"run", "--premortem", form)
    assert done.returncode == 2 and "7 of 7 questions open" in done.stderr


@pytest.mark.parametrize("args, sentence", [
    (["start", "--why", "x", "--audit", "5"], "is no share"), (["start", "--why", "x", "--hours", "noon"], "are no hours"), (["start", "--why", "x", "--label", "dragon"], "is no label"),
    (["start", "--why", "x", "--who", " "], "Say who you are"), (["promote"], "--why"), (["forget", "%"], "is no number"), (["demote", "--why", "x"], "No rollout was begun")])
def test_mistakes_are_one_line(log, args, sentence):
    done = cli("rollout", *args, "--log", log.name)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_typo_makes_no_log(tmp_path):
    done = cli("rollout", "status", "--log", tmp_path/"typo.db")
    assert done.returncode == 2 and "There is no predictions log" in done.stderr and not (tmp_path/"typo.db").exists()
