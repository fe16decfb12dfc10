"""The service from outside: good and hostile requests, load, a new bundle, the order to stop."""
import json, os, random, shutil, signal, socket, statistics, struct, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from bearclf.classify import Classifier, bundle_folder
from bearclf.log import PredictionsLog
from conftest import free_port, serving
from hostile import corpus, sound

pytestmark = pytest.mark.once

PROBLEM = "application/problem+json"


def service(*options):
    "`bearclf serve` on a free port: command and address of its health."
    port = free_port()
    return [sys.executable, "-m", "bearclf.cli", "serve", "--port", str(port), *map(str, options)], f"http://127.0.0.1:{port}/health"


@pytest.fixture
def start(serve):
    "Start the service; gives a client and the process."
    clients = []
    def started(*options, **env):
        process = serve(*service(*options), env=env)
        clients.append(httpx.Client(base_url=process.url.removesuffix("/health"), timeout=60))
        return clients[-1], process
    yield started
    for c in clients: c.close()


@pytest.fixture(scope="module")
def client():
    with serving(*service()) as process, httpx.Client(base_url=process.url.removesuffix("/health"), timeout=60) as client: yield client


def post(client, data, kind="image/jpeg", **headers): return client.post("/predict", content=data, headers={"Content-Type": kind, **headers})


def told(response, status):
    "The sentence of a problem."
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status and problem["detail"] and "Traceback" not in response.text
    return problem["detail"]


def test_it_answers_as_the_classifier(client, bears):
    clf = Classifier(threads=1)
    for file in bears:
        row, = post(client, file.read_bytes(), "image/png").json()["predictions"]
        there = clf.predict(file)
        assert (row["label"], row["verdict"]) == (there.label, there.verdict) and row["probs"] == pytest.approx(there.probs, abs=1e-5)
    answer = client.post("/predict", files=[("photo", (f.name, f.read_bytes())) for f in bears]).json()
    assert [row["file"] for row in answer["predictions"]] == [f.name for f in bears] and answer["bundle"] == clf.fingerprint
    model = client.get("/model").json()
    assert model["labels"] == clf.labels and model["bundle"] == clf.fingerprint and model["card"].startswith("#")
    assert client.get("/health").json() == dict(status="ok", bundle=clf.fingerprint, waiting=0)


def test_every_kind_of_photo_and_whatever_else_comes(client):
    good = sound(random.Random(3))
    for name, data in good.items(): assert post(client, data).status_code == 200, name
    said = {name: post(client, data) for name, (_, data, _) in corpus(150, seed=8).items()}
    assert {r.status_code for r in said.values()} <= {200, 400, 413, 422}
    for r in said.values():
        if r.status_code != 200: assert r.headers["content-type"] == PROBLEM and "Traceback" not in r.text
    mixed = client.post("/predict", files=[("photo", ("good.png", good["rgb.png"])), ("photo", ("<b>.jpg", b"Dear diary")), ("other", ("good.jpg", good["baseline.jpg"]))])
    assert [sorted(row)[0] for row in mixed.json()["predictions"]] == ["file", "error", "file"]


def test_malformed_requests(client, bears):
    photo = bears[0].read_bytes()
    assert "no photo in the request" in told(post(client, b""), 400)
    assert "curl -F" in told(post(client, photo, "application/x-www-form-urlencoded"), 415)
    assert "curl -F" in told(post(client, photo, "text/html; charset=x"), 415)
    for body, kind in ((photo, "multipart/form-data"), (photo, "multipart/form-data; boundary=x"), (b"--x\r\n", "multipart/form-data; boundary=x"), (b"--x\r\nContent-Disposition: form-data; name=\"photo\"; filename=\"a\"\r\n\r\nabc", "multipart/form-data; boundary=x"),
                       (b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n" + b"a"*100_000 + b"\r\n--x--", "multipart/form-data; boundary=x; charset=punycode"), (b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n" + b"a"*100_000 + b"\r\n--x--", "multipart/form-data; boundary=x"),
                       (b"--x\r\n" + b"A"*100_000, "multipart/form-data; boundary=x"), (b"--x\r\nContent-Disposition: form-data; name=\"photo\"\r\n\r\nabc\r\n--x--", "multipart/form-data; boundary=x"), (b"--x--", "multipart/form-data; boundary=" + "x"*5000)):
        told(post(client, body, kind), 400)
    told(client.post("/predict", files=[("photo", photo)]*17), 400)
    assert "no such address" in told(client.get("/predict/x"), 404)
    assert "asked with POST" in told(client.get("/predict"), 405)
    Image.new("RGB", (64, 64)).save(tiff := BytesIO(), "TIFF", tiffinfo={60322: 16384, 60323: 16384})
    tiled = tiff.getvalue()
    for tag in (322, 323): tiled = tiled.replace(struct.pack("<H", 60000 + tag), struct.pack("<H", tag), 1)  # its tiles' width and height: one would take 800 MB
    assert post(client, tiff.getvalue(), "image/tiff").status_code == 200
    assert "too many for its kind" in told(post(client, tiled, "image/tiff"), 422)
    assert client.get("/predict").headers["allow"] == "POST"
    assert client.get("/health").status_code == 200


def test_too_large_and_without_a_length(client, bears):
    def endless(size):
        for _ in range(size//10**6): yield bytes(10**6)
    assert "25 MB" in told(post(client, bytes(100_000_000)), 413)
    assert "25 MB" in told(post(client, endless(100_000_000)), 413)
    assert "25 MB" in told(client.post("/predict", files=dict(photo=bytes(30_000_000))), 413)
    data = bears[0].read_bytes()
    assert post(client, iter([data[:1000], data[1000:]]), "image/png").status_code == 200  # chunked


def connect(client): return socket.create_connection(("127.0.0.1", client.base_url.port))


def test_those_that_dawdle(client, bears):
    "300 connections that send nothing more, or a letter now and then, do not keep others out, and are cut off."
    data, slow = bears[0].read_bytes(), [connect(client) for _ in range(300)]
    fed = set(slow[:150])
    for i, s in enumerate(slow): s.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + (b"Content-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc" if i % 2 else b"X-Slow: "))
    took, end, open_ = [], time.monotonic() + 20, set(slow)
    may = set(slow[1:150:2])  # who sends a letter of a body now and then has up to a minute
    while open_ - may and time.monotonic() < end:
        for s in open_ & fed:
            try: s.sendall(b"a")
            except OSError: pass  # told below
        began = time.perf_counter()
        assert post(client, data, "image/png").status_code == 200
        took.append(time.perf_counter() - began)
        for s in list(open_):
            s.setblocking(False)
            try: left = not (got := s.recv(4096)) or b"408" in got
            except BlockingIOError: left = False
            except OSError: left = True
            s.setblocking(True)
            if left: open_.discard(s)
        time.sleep(.5)
    for s in slow: s.close()
    assert open_ <= may, f"{len(open_ - may)} are still connected"
    assert statistics.median(took) < 1


def test_those_that_do_not_read_or_send_no_request(client):
    "After an answer a line and no request; a byte of a body nobody asked for; headers without end; an answer that is not read; fifty requests at once."
    held = [connect(client) for _ in range(5)]
    line, byte, heads, deaf, many = held
    line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); line.recv(4096); line.sendall(b"\r\n")
    byte.sendall(b"GET /model/x HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"); byte.recv(4096); byte.sendall(b"z")
    with pytest.raises(OSError):
        heads.sendall(b"GET /health HTTP/1.1\r\n")
        for i in range(20_000): heads.sendall(b"a%d: %s\r\n" % (i, b"b"*100))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
    many.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"*50)
    ours, end = {s.getsockname()[1] for s in held}, time.monotonic() + 30
    still = lambda: {c.raddr.port for c in psutil.net_connections("tcp") if c.pid and c.status == "ESTABLISHED" and c.laddr.port == client.base_url.port and c.raddr.port in ours}  # the server's ends
    while still() and time.monotonic() < end: time.sleep(.5)
    assert not still()
    for s in held: s.close()
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("begun", [b"GET /", b"GET /health HTTP/1.1\r\na: ", b"GET /health HTTP/1.1\r\n", b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: "])
def test_what_never_ends_is_cut_off(client, begun):
    "An address, a header's value or name, a trailer."
    sent, long = 0, []
    with connect(client) as s, suppress(OSError):
        s.sendall(begun)
        while sent < 100_000_000:
            s.sendall(b"a"*65536)
            sent += 65536
            if sent % 2**20 == 0: start = time.perf_counter(); client.get("/health"); long.append(time.perf_counter() - start)
    assert sent < 20_000_000 and max(long, default=0) < 2


def test_questions_without_an_end_that_nobody_reads(client):
    "Fifty requests at once, without a header, again and again on one connection."
    with connect(client) as s, pytest.raises(OSError):
        for _ in range(100_000): s.sendall(b"GET /health HTTP/1.1\r\n\r\n"*50)
    assert client.get("/health").status_code == 200
    with connect(client) as s:
        s.sendall(b"nonsense\r\n\r\n")
        assert b"application/problem+json" in s.recv(4096)


def test_who_leaves_before_the_answer_is_forgotten_without_a_word(start, bears):
    client, process = start("--workers", 1)
    data, gone = bears[0].read_bytes(), [connect(client) for _ in range(40)]
    for s in gone: s.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    for s in gone: s.close()
    assert post(client, data, "image/png").status_code == 200
    assert client.get("/health").json()["waiting"] == 0
    process.terminate()
    assert process.communicate(timeout=30)[1] == ""


def test_keys(start, tmp_path, bears):
    (tmp_path/"keys.txt").write_text("# ours\n\n0123456789abcdef\nanother key, longer\n")
    client, _ = start("--keys", tmp_path/"keys.txt")
    data = bears[0].read_bytes()
    for key in ({}, {"X-API-Key": ""}, {"X-API-Key": "0123456789abcdeg"}, {"X-API-Key": "# ours"}):
        for answer in (post(client, data, "image/png", **key), client.get("/model", headers=key), client.get("/metrics", headers=key)): told(answer, 401)
    assert client.get("/health").status_code == 200
    for key in ("0123456789abcdef", "another key, longer"): assert post(client, data, "image/png", **{"X-API-Key": key}).status_code == 200


def test_rate_and_origins(start, bears):
    client, _ = start("--rate", "5/day", "--origin", "https://example.org")
    data = bears[0].read_bytes()
    answers = [post(client, data, "image/png", Origin="https://example.org") for _ in range(7)]
    assert [a.status_code for a in answers] == [200]*5 + [429]*2
    assert post(client, data, "image/png", **{"X-Forwarded-For": "10.0.0.1"}).status_code == 429  # who it is said to be for counts nothing
    assert 0 < int(answers[-1].headers["retry-after"]) <= 86400 and "5/day" in told(answers[-1], 429)
    assert {a.headers["access-control-allow-origin"] for a in answers} == {"https://example.org"}
    asked = dict(Origin="https://evil.example", **{"Access-Control-Request-Method": "POST"})
    assert client.options("/predict", headers=asked).status_code == 400
    assert "access-control-allow-origin" not in client.get("/health", headers=asked).headers


def test_without_origins_no_other_site_may_read(client):
    asked = dict(Origin="https://example.org", **{"Access-Control-Request-Method": "POST"})
    assert not [k for answer in (client.options("/predict", headers=asked), client.get("/health", headers=asked)) for k in answer.headers if k.startswith("access-control")]


def test_the_docs_ask_no_other_machine(client, chromium):
    tab, asked = chromium.new_page(), []
    tab.on("request", lambda r: asked.append(r.url))
    tab.goto(str(client.base_url) + "/docs")
    tab.get_by_text("/predict").first.wait_for()
    tab.close()
    assert all(url.startswith((str(client.base_url), "data:")) for url in asked), asked


def test_every_answer_is_on_record(start, tmp_path, bears):
    db = tmp_path/"bearclf.db"
    client, _ = start("--log", db)
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda i: post(client, bears[i % 3].read_bytes(), "image/png"), range(60)))
    assert {a.status_code for a in answers} <= {200, 503}
    assert len(PredictionsLog(db).rows()) == sum(a.status_code == 200 for a in answers) > 30
    shutil.move(db, tmp_path/"gone.db"); db.mkdir()  # nothing can be written there
    assert "on record" in told(post(client, bears[0].read_bytes(), "image/png"), 503)


def copied(bundle, to):
    shutil.copytree(bundle, to)
    return to


def changed(bundle):
    "The same model with another threshold, and so another fingerprint."
    spec = json.loads((bundle/"bundle.json").read_text())
    spec["thresholds"]["sure"] += .001
    (bundle/"new.json").write_text(json.dumps(spec))
    os.replace(bundle/"new.json", bundle/"bundle.json")


def test_a_new_bundle_while_all_ask(start, tmp_path, bears):
    bundle = copied(bundle_folder(), tmp_path/"bundle")
    client, _ = start("--bundle", bundle)
    first, data, stop, got = client.get("/health").json()["bundle"], bears[0].read_bytes(), threading.Event(), []
    def ask():
        while not stop.is_set(): got.append(post(client, data, "image/png"))
    pool = ThreadPoolExecutor(4)
    askers = [pool.submit(ask) for _ in range(4)]
    (bundle/"model.onnx").rename(bundle/"away"); time.sleep(3)  # broken for a while
    (bundle/"bundle.json").write_text((bundle/"bundle.json").read_text() + " "); time.sleep(3)
    assert client.get("/health").json()["bundle"] == first
    changed(bundle); time.sleep(3)
    assert client.get("/health").json()["bundle"] == first
    (bundle/"away").rename(bundle/"model.onnx")  # whole again, and the last thing that comes
    end = time.monotonic() + 20
    while client.get("/health").json()["bundle"] == first: assert time.monotonic() < end; time.sleep(.2)
    time.sleep(.5); stop.set()
    for a in askers: a.result()  # none of them was cut off
    assert {r.status_code for r in got} == {200}
    assert len({r.json()["bundle"] for r in got}) == 2


def words(p):
    try: return p.cmdline()
    except psutil.Error: return []  # it has just died


def workers(process): return [p for p in psutil.Process(process.pid).children() if "bearclf.apart:_answers" in words(p)]


def spent(p):
    "Seconds of a core: what a process has done, however busy the machine is."
    try: return sum(p.cpu_times()[:2])
    except psutil.Error: return 0


def test_processes_that_die_while_all_ask(start, bears):
    "As a photo would that makes a decoder crash; nobody but its sender may notice."
    client, process = start("--workers", 2)
    probs, data, stop, got, killed = Classifier().predict(bears[0]).probs, bears[0].read_bytes(), threading.Event(), [], 0
    begun = max(map(spent, workers(process)))  # what it takes to start
    def ask():
        while not stop.is_set(): got.append(post(client, data, "image/png"))
    with ThreadPoolExecutor(6) as pool:
        askers = [pool.submit(ask) for _ in range(6)]
        try:
            for i in range(8):
                end = time.monotonic() + 60
                while sum(spent(p) > begun + .2 for p in workers(process)) < 2: assert time.monotonic() < end; time.sleep(.05)  # both are answering
                dead = workers(process)[:1 + i%2]
                for p in dead: p.kill(); killed += 1
                assert not psutil.wait_procs(dead, timeout=30)[1]
            time.sleep(2)
        finally: stop.set()
        for a in askers: a.result()  # none of them was cut off
    good = [r for r in got if r.status_code == 200]
    assert killed == 12 and len(good) > 50 and {r.status_code for r in got} <= {200, 422}
    assert all("ended two processes" in told(r, 422) for r in got if r.status_code == 422)
    assert all(r.json()["predictions"][0]["probs"] == pytest.approx(probs, abs=1e-6) for r in good)
    assert post(client, data, "image/png").status_code == 200 and len(workers(process)) == 2


def test_a_process_that_hangs_is_replaced(start, bears):
    client, process = start("--workers", 2)
    stuck, data = workers(process)[0], bears[0].read_bytes()
    stuck.suspend()
    with ThreadPoolExecutor(4) as pool: first = [r.status_code for r in pool.map(lambda _: post(client, data, "image/png"), range(4))]
    assert sorted(first) == [200, 200, 200, 422], first  # the other one answers
    end = time.monotonic() + 30
    while stuck.is_running() and stuck.status() != psutil.STATUS_ZOMBIE: assert time.monotonic() < end; time.sleep(.2)
    with ThreadPoolExecutor(8) as pool: assert {r.status_code for r in pool.map(lambda _: post(client, data, "image/png"), range(16))} == {200}
    left = workers(process)
    process.kill()
    assert len(left) == 2 and not psutil.wait_procs(left, timeout=10)[1]  # nobody stays behind


def test_a_process_that_dies_while_a_broken_bundle_lies_there(start, tmp_path, bears):
    "Another one takes its place, with the bundle that answers."
    bundle = copied(bundle_folder(), tmp_path/"bundle")
    client, process = start("--bundle", bundle, "--workers", 2)
    (bundle/"bundle.json").write_text("{")
    (bundle/"model.onnx").unlink()
    time.sleep(3)
    for p in workers(process): p.kill()
    assert {post(client, bears[0].read_bytes(), "image/png").status_code for _ in range(6)} == {200}


def test_the_order_to_stop_waits_for_answers(start, bears):
    client, process = start("--workers", 1)
    large = BytesIO()
    Image.open(bears[0]).resize((4000, 3000)).save(large, "PNG", compress_level=1)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(post, client, large.getvalue(), "image/png") for _ in range(16)]
        while client.get("/health").json()["waiting"] < 10: time.sleep(.02)  # all have come
        process.terminate()
        assert [a.result().status_code for a in asked] == [200]*16, process.poll()
    out, err = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in err


def test_more_than_can_be_answered(start, shared_photos):
    "Twice as many as it can, good and hostile, for a while: good ones are answered or told to come again, and the memory stays."
    client, process = start("--waiting", 16)
    good = [p.read_bytes() for p in sorted((shared_photos/"bears").rglob("*.jpg"))[:40]]
    bad, statuses, stop = [data for _, data, _ in corpus(60, seed=2).values()], [], threading.Event()
    def ask(seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not stop.is_set():
                sent = good if rng.random() < .8 else bad
                statuses.append((sent is good, post(own, rng.choice(sent)).status_code))
    with ThreadPoolExecutor(32) as pool:
        askers, memory = [pool.submit(ask, seed) for seed in range(32)], []
        for _ in range(int(os.environ.get("BEARCLF_SOAK", 20))):
            time.sleep(1)
            memory.append(sum(p.memory_info().rss for p in [psutil.Process(process.pid), *workers(process)])/2**20)
        stop.set()
        for a in askers: a.result()  # none of them was cut off
    assert {s for is_good, s in statuses if is_good} <= {200, 503} and {s for _, s in statuses} <= {200, 400, 413, 422, 503}
    assert sum(s == 200 for _, s in statuses) > 5*len(memory) and any(s == 503 for _, s in statuses)
    print(f"memory of each minute: {[round(float(np.median(memory[i:i + 60]))) for i in range(0, len(memory), 60)]}, most {max(memory):.0f} MB; {len(statuses)} answers")
    assert max(memory) < 300 + 2*200*psutil.cpu_count(), memory  # a photo that is being opened may take 200 MB, one for each core
    minutes = [round(float(np.median(memory[i:i + 60]))) for i in range(0, len(memory), 60)]  # MB
    if len(minutes) >= 5: assert minutes[-1] < minutes[1]*1.1 + 20, minutes
    assert client.get("/health").json()["waiting"] <= 16


@pytest.mark.parametrize("key", [None, "0123456789abcdef"])
def test_it_does_what_its_description_says(start, tmp_path, key):
    "Schemathesis makes requests from the OpenAPI description, right and wrong ones, and holds the answers against it."
    (tmp_path/"keys.txt").write_text(str(key))
    client, process = start(*(["--keys", tmp_path/"keys.txt"] if key else []))
    command = [Path(sys.executable).parent/"schemathesis", "run", f"{client.base_url}/openapi.json", "--max-examples", "100", *(["-H", f"X-API-Key: {key}"] if key else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=os.environ | dict(SCHEMATHESIS_HOOKS="api_hooks", PYTHONPATH=str(Path(__file__).parent)))
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Tested: 5" in done.stdout


@pytest.mark.parametrize("options, sentence", [
    (["--bundle", "/nowhere"], "There is no bundle"), (["--rate", "often"], "is no rate"), (["--keys", "/nowhere"], "cannot be read"), (["--port", "99999"], "no port 99999"), (["--log", "/nowhere/x.db"], "cannot be opened")])
def test_mistakes_are_one_line(options, sentence):
    command, _ = service()
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_who_is_connected_can_still_ask(start, bears):
    "The order to stop comes between a connection, also one that was used before, and its request."
    client, process = start()
    port, data = client.base_url.port, bears[0].read_bytes()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n" % len(data)
    new, half, used, silent = (socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(4))
    half.sendall(head)
    used.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    heard = b""
    while not heard.endswith(b"}"): heard += used.recv(9999)
    assert heard.startswith(b"HTTP/1.1 200") and client.get("/health").status_code == 200
    process.terminate()
    time.sleep(.4)
    for s in (new, used): s.sendall(head)
    for s in (new, half, used):
        s.sendall(b"\r\n" + data)
        answer = s.makefile("rb").read()  # until it hangs up
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower() and b'"verdict"' in answer, answer
    assert silent.recv(99) == b""
    assert process.communicate(timeout=10)[1] == ""
