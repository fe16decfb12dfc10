"""`bearclf serve --engine ray` from outside: more replicas when more is asked, one that dies, a cluster that was there before and stays."""
import signal, sys, threading, time
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from bearclf.classify import Classifier
from conftest import free_port

pytest.importorskip("ray")
pytestmark = pytest.mark.once


def photos(): # the processes that answer
    found = []
    for p in psutil.process_iter():
        with suppress(psutil.Error): found += [p] if p.cmdline()[:1] and p.cmdline()[0].startswith("ray::ServeReplica:bearclf:Photos") else []
    return found


@contextmanager
def asked(client, data, clients=24):
    "So many ask without a pause: their statuses."
    statuses, stop = [], threading.Event()
    def ask():
        while not stop.is_set():
            try: statuses.append(client.post("/predict", content=data, headers={"Content-Type": "image/png"}).status_code)
            except httpx.HTTPError as e: statuses.append(repr(e))
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for t in threads: t.start()
    try: yield statuses
    finally:
        stop.set()
        for t in threads: t.join()


def until(there, seconds=120):
    "Whether that is so at some moment: processes come, go and change their names meanwhile."
    end = time.monotonic() + seconds
    while not (seen := there()) and time.monotonic() < end: time.sleep(.2)
    return seen


@pytest.fixture
def start(serve):
    def started(*options):
        port = free_port()
        process = serve([sys.executable, "-m", "bearclf.cli", "serve", "--engine", "ray", "--port", str(port), *map(str, options)], f"http://127.0.0.1:{port}/health")
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        assert until(lambda: client.get("/health").status_code == 200), "no replica came"  # Ray's proxy is there earlier, and says 404
        return process, client
    return started


def test_more_replicas_when_more_is_asked_and_one_that_dies(start, bears):
    process, client = start("--replicas", 2)
    answer, = client.post("/predict", content=bears[0].read_bytes(), headers={"Content-Type": "image/png"}).json()["predictions"]
    assert answer["probs"] == pytest.approx(Classifier().predict(bears[0]).probs, abs=1e-5)
    assert len(photos()) == 1
    with asked(client, bears[0].read_bytes()) as statuses:
        assert until(lambda: len(photos()) == 2), "no second replica came"
        n, dead = len(statuses), photos()[0]
        assert until(lambda: statuses[n:].count(200) > 100)
        dead.kill()
        assert until(lambda: len(photos()) == 2 and dead not in photos()), "none took the place of the dead one"
        n = len(statuses)
        assert until(lambda: statuses[n:].count(200) > 100)
    assert statuses.count(200) > .8*len(statuses), {s: statuses.count(s) for s in set(statuses)}
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and "Traceback" not in err, err
    assert until(lambda: not photos(), 20)


def test_a_cluster_that_was_there_stays(start, bears):
    import ray
    context = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False, logging_level="ERROR")
    try:
        process, client = start("--address", context.address_info["gcs_address"], "--replicas", 1)
        assert client.post("/predict", content=bears[0].read_bytes(), headers={"Content-Type": "image/png"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
        assert process.returncode == 0 and until(lambda: not photos(), 20)
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
    finally: ray.shutdown()
