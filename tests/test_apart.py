"""Processes apart: interrupted, orphaned, started in a hostile folder, dying again and again."""
import signal, subprocess, sys, time
from io import BytesIO

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from bearclf.apart import Away, Died
from bearclf.batch import _columns, _file, _Worker
from bearclf.classify import Classifier

pytestmark = pytest.mark.once


@pytest.fixture
def away():
    asked = Away(Classifier(threads=1))
    asked.ready()
    yield asked
    asked.end()


class Interrupted(Exception): pass


def noise(name):
    "More than a pipe holds."
    Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (700, 900, 3), dtype="uint8")).save(out := BytesIO(), "png")
    return out.getvalue(), name


def test_who_is_interrupted_leaves_no_answer_to_the_next(away):
    "As by Ctrl-C in a notebook, whenever it comes."
    def stop(*_): raise Interrupted
    before, interrupted = signal.signal(signal.SIGALRM, stop), 0
    photos = [noise(name) for name in ("a.png", "bb.png", "ccc.png")]
    try:
        for i in range(12):
            signal.setitimer(signal.ITIMER_REAL, .0005*(1 + 3*i))
            try: away.predict_together(photos[:1])
            except Interrupted: interrupted += 1
            finally: signal.setitimer(signal.ITIMER_REAL, 0)
            for photo in photos[1:]: assert away.predict_together([photo])[0].file == photo[1]
    finally: signal.signal(signal.SIGALRM, before)
    assert interrupted


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that is stopped stays")
def test_nobody_outlives_the_one_who_asks():
    code = "from bearclf.apart import Away; from bearclf.classify import Classifier\nfor _ in (a := [Away(Classifier(threads=1)) for _ in range(2)]): _.ready()\nprint(*(_.apart.process.pid for _ in a), flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    children[0].suspend()  # and the other waits for a question
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 10
    while any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children): assert time.monotonic() < end; time.sleep(.1)


def test_nothing_is_imported_from_the_current_folder(tmp_path, bears):
    (tmp_path/"json.py").write_text("raise SystemExit('a stranger in the house')")
    (tmp_path/"photos").mkdir()
    (tmp_path/"photos"/"bear.png").write_bytes(bears[0].read_bytes())
    done = subprocess.run([sys.executable, "-c", "import sys; sys.path = sys.path[1:]; from bearclf.cli import main; main()", "batch", "photos", "a.parquet"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_a_part_of_photos_that_kill():
    "Every second of a thousand; that a process really dies of one is tested in test_batch."
    clf = Classifier(threads=1)

    class Worker(_Worker):
        def _ask(self, first, wheres):
            self.apart.at = next((i for i, w in enumerate(wheres) if "deadly" in w), None)
            if self.apart.at is not None: raise Died
            return _file(pa.Table.from_pylist([dict(row=first + i, label="teddy") for i in range(len(wheres))], schema=_columns(clf.labels)))

    data = Worker(clf.folder, clf.fingerprint, clf.labels, 1)(7, [f"{'deadly' if i % 2 else 'good'}{i}.jpg" for i in range(1000)])
    df = pd.read_parquet(BytesIO(data))
    assert df.row.tolist() == list(range(7, 1007)) and df.error.notna().tolist() == [bool(i % 2) for i in range(1000)]
