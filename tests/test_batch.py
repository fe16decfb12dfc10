"""`bearclf batch` as its user meets it: killed, refused room, handed rubbish; on this machine and on Ray."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import psutil
import pytest
from hostile import sound, special
from web import fill, web

from bearclf.batch import _Worker, batch, photos_in
from bearclf.classify import Classifier
from bearclf.core import BearclfError, photo_files, sha256
from bearclf.log import PredictionsLog
from bearclf.practice import draw_bear

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
ONCE = {"row", "file", "label", "verdict", "known", "error", "sha256", "bundle"}  # what every run must say alike


def start(*args, **options):
    "`bearclf batch …`, begun."
    return subprocess.Popen([sys.executable, "-m", "bearclf.cli", "batch", *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(*args, timeout=120, **options):
    "The same, to its end: status, what it said, what it complained of."
    process = start(*args, **options)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def told(out):
    "The answers, without what may differ."
    df = pd.read_parquet(out)
    return df[[c for c in df.columns if c in ONCE or c.startswith("p_")]]


def alike(a, b): pd.testing.assert_frame_equal(told(a), told(b))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "160 photos under 32 pictures, two of them broken: folder."
    folder = tmp_path_factory.mktemp("drawn")
    for i in range(32): draw_bear(["black", "grizzly", "teddy"][i % 3], np.random.default_rng(i)).resize((500, 400)).save(folder/f"{i:03}-0.jpg")
    (folder/"007-0.jpg").write_bytes((folder/"007-0.jpg").read_bytes()[:3000])
    (folder/"011-0.jpg").write_text("<html>gone</html>")
    for i in range(32):
        for k in range(1, 5): os.link(folder/f"{i:03}-0.jpg", folder/f"{i:03}-{k}.jpg")
    return folder


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    "The answers of a run that nobody disturbed."
    out = tmp_path_factory.mktemp("whole")/"answers.parquet"
    status, said, err = run(drawn, out, "--part", 8)
    assert status == 1 and err == "" and "160 photos" in said and "150 answered, 10 could not be read" in said, (said, err)
    df = pd.read_parquet(out)
    assert df.file.tolist() == [str(fn) for fn in photo_files(drawn)] and df.row.tolist() == list(range(160))
    assert df.error[df.file.str.contains("/007-|/011-")].notna().all() and df.error.notna().sum() == 10
    assert (df.sha256 == [sha256(fn) for fn in photo_files(drawn)]).all()
    good = df[df.error.isna()]
    assert np.allclose(good.filter(like="p_").sum(axis=1), 1, atol=1e-3) and (good.filter(like="p_").idxmax(axis=1).str[2:] == good.label).all()
    assert os.listdir(out.parent) == [out.name]
    return out


def test_hostile_photos_and_names(tmp_path):
    "Rubbish, bombs, fifos, names in other encodings, photos that vanish: a row each, and the run goes on to its end."
    photos = tmp_path/"photos"
    photos.mkdir()
    made = {**special(), **sound(random.Random(1))}
    for name, data in made.items(): (photos/name).write_bytes(data)
    good = made["baseline.jpg"]
    odd = [os.fsencode(str(photos))+b"/caf\xe9.jpg", *(os.fsencode(photos/n) for n in ("a,b.jpg", "line\nbreak.jpg", "ä b.jpg", "'\".jpg"))]
    for name in odd: Path(os.fsdecode(name)).write_bytes(good)
    names = sorted(os.listdir(photos))
    os.mkfifo(photos/"pipe.jpg")
    status, out, err = run(photos, tmp_path/"folder.parquet")
    df = pd.read_parquet(tmp_path/"folder.parquet")
    assert status == 1 and "Traceback" not in err and len(df) == len(photo_files(photos)) == df.file.nunique()
    assert df.set_index("file").error[[str(photos/n) for n in sound(random.Random(1))]].isna().all()
    assert df[df.sha256 == sha256(good)].error.isna().sum() == 6
    listed = [n for n in names if n.isprintable()]*2 + ["gone.jpg", "", "x"*5000 + ".jpg", "pipe.jpg", "../../etc/passwd", "a\0b.jpg", "nowhere://x/y.jpg", "http://[bad/y.jpg", "file://" + str(photos/"baseline.jpg")]
    pd.DataFrame(dict(nr=range(len(listed)), picture=listed)).rename(columns=dict(nr="id")).to_parquet(photos/"list.parquet")
    status, out, err = run(photos/"list.parquet", tmp_path/"table.parquet", "--column", "picture")
    rows = pd.read_parquet(tmp_path/"table.parquet")
    assert status == 1 and "Traceback" not in err and rows.id.tolist() == list(range(len(listed))) and rows.file.tolist() == listed
    assert rows.error[-9:].notna().tolist() == [True]*8 + [False] and not rows.error[-9:-1].str.contains("\n").any()
    once = df.set_index("file").known
    assert [k if k == k else None for k in rows.known[:len(listed)//2 - 8]] == [k if k == k else None for k in once.reindex([str(photos/n) for n in listed[:len(listed)//2 - 8]])]
    assert sorted(os.listdir(tmp_path)) == ["folder.parquet", "photos", "table.parquet"]


def test_addresses(tmp_path):
    "A table of addresses: every kind of photo is answered, every kind of failure told, in the table's order, with its ids."
    with web() as server:
        listed, good = fill(server, 33, failing=False)
        urls = listed["teddy"] + ["http://127.0.0.1:9/nobody.jpg", "https://nowhere.invalid/x.jpg", listed["teddy"][0]]
        pd.DataFrame(dict(id=[f"{i:04}" for i in range(len(urls))], url=urls)).to_csv(tmp_path/"urls.csv", index=False, sep=";")
        status, out, err = run(tmp_path/"urls.csv", tmp_path/"a.parquet")
        df = pd.read_parquet(tmp_path/"a.parquet")
        assert status == 1 and err == "" and df.file.tolist() == urls and df.id.tolist() == [f"{i:04}" for i in range(len(urls))]
        assert not df.error[df.file.isin(good)].notna().any(), df.error[df.file.isin(good)].dropna().tolist()
        bad = df[df.file.str.contains("/bad/") & ~df.file.str.contains("icon|pixel|half.jpg") | df.file.str.contains("nobody|nowhere")]
        assert len(bad) > 20 and bad.error.notna().all(), bad.file[bad.error.isna()].tolist()


def test_a_store(tmp_path, drawn):
    "What fsspec reaches: here its memory."
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    for i in range(3): fs.pipe_file(f"/set/teddy/{i}.jpg", (drawn/f"{i:03}-0.jpg").read_bytes())
    for name in ("/set/teddy/.hidden.jpg", "/set/.cache/x.jpg", "/set/notes.txt"): fs.pipe_file(name, b"none")
    assert len(photos_in("memory://set").files) == len(photos_in("memory://set/**/*.jpg").files) == 3
    with ZipFile(tmp_path/"set.zip", "w") as zipped: zipped.write(drawn/"000-0.jpg", "teddy/0.jpg")
    fs.pipe_file("/set/list.csv", f"file\nzip://teddy/0.jpg::{tmp_path}/set.zip\nzip://teddy/9.jpg::{tmp_path}/set.zip\n".encode())
    done = batch("memory://set/list.csv", tmp_path/"a.parquet")
    batch(drawn/"000-0.jpg", tmp_path/"b.parquet")
    assert (done.answered, done.failed) == (1, 1) and pd.read_parquet(tmp_path/"a.parquet").known[0] == pd.read_parquet(tmp_path/"b.parquet").known[0]


class Deadly(BaseHTTPRequestHandler):
    "Photos; whoever asks for one that is deadly is killed before it comes."
    photo, driver, deaths = b"", None, 0
    def log_message(self, *_): pass
    def do_GET(self):
        if "deadly" in self.path:
            for p in psutil.Process(Deadly.driver.pid).children(recursive=True):
                if "bearclf.batch:_part" in p.cmdline() and any(c.raddr and c.raddr.port == self.client_address[1] or c.laddr.port == self.client_address[1] for c in p.net_connections("tcp")): p.kill(); Deadly.deaths += 1
        self.send_response(200)
        self.end_headers()
        with suppress(OSError): self.wfile.write(Deadly.photo)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_photo_that_kills_who_opens_it(tmp_path, drawn, engine):
    pytest.importorskip(dict(local="pyarrow", ray="ray")[engine])
    Deadly.photo, Deadly.deaths = (drawn/"000-0.jpg").read_bytes(), 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Deadly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [f"{'deadly' if i in (5, 19) else 'good'}{i}.jpg" for i in range(24)]
    (tmp_path/"list.csv").write_text("\n".join(["url", *(f"http://127.0.0.1:{server.server_port}/{name}" for name in names)]))
    Deadly.driver = start(tmp_path/"list.csv", tmp_path/"a.parquet", "--part", 16, "--engine", engine, "--workers", 1)
    out, err = Deadly.driver.communicate(timeout=180)
    server.shutdown()
    df = pd.read_parquet(tmp_path/"a.parquet")
    assert Deadly.driver.returncode == 1 and err == "" and "22 answered, 2 could not be read" in out, (out, err)
    assert Deadly.deaths >= 4 and df.row.tolist() == list(range(24)) and df.label[df.error.isna()].nunique() == 1
    assert [Path(f).stem for f in df.file[df.error.str.contains("ended two processes", na=False)]] == ["deadly5", "deadly19"]


class Slow(BaseHTTPRequestHandler):
    "Photos; one of them takes its time."
    photo = b""
    def log_message(self, *_): pass
    def do_GET(self):
        if "slow" in self.path: time.sleep(6)
        self.send_response(200)
        self.end_headers()
        with suppress(OSError): self.wfile.write(Slow.photo)


def test_a_photo_that_takes_too_long(drawn):
    Slow.photo, clf = (drawn/"000-0.jpg").read_bytes(), Classifier(threads=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with _Worker(clf.folder, clf.fingerprint, clf.labels, 1, silence=2) as worker:
        data = worker(100, [f"http://127.0.0.1:{server.server_port}/{'slow' if i == 5 else i}.jpg" for i in range(20)])
    server.shutdown()
    df = pd.read_parquet(BytesIO(data))
    assert df.row.tolist() == list(range(100, 120)) and df.label.count() == 19
    assert df.error[5] == f"http://127.0.0.1:{server.server_port}/slow.jpg takes longer than 2 s to open: look at it with care."


def test_killed_again_and_again(tmp_path, drawn, whole):
    "SIGKILL at random moments; in the end each photo has one row, and one line in the predictions log."
    rng, killed, parts, seen = random.Random(int(time.time())), 0, tmp_path/"a.parquet.parts", 0
    args = drawn, tmp_path/"a.parquet", "--part", 4, "--log", tmp_path/"log.db", "--workers", 1
    for _ in range(4):
        process, end = start(*args), time.monotonic() + 60
        while process.poll() is None and len(list(parts.glob("*.parquet"))) <= seen and time.monotonic() < end: time.sleep(.005)
        time.sleep(rng.random()/4)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
        seen = len(list(parts.glob("*.parquet")))
    assert killed > 1
    process = start(*args)
    while process.poll() is None and len(list(parts.glob("*.parquet"))) <= seen: time.sleep(.005)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "bearclf: stopped\n" and process.returncode == 130 and parts.exists()
    max(parts.glob("*.parquet")).unlink()  # as if it had been killed between the log and the part
    status, out, err = run(*args)
    assert status == 1 and err == "" and "by an earlier run" in out
    alike(tmp_path/"a.parquet", whole)
    rows = PredictionsLog(tmp_path/"log.db").rows()
    good = told(whole)[lambda df: df.error.isna()]
    assert sorted(r["sha256"] for r in rows) == sorted(good.sha256)
    assert not [p for p in os.listdir(tmp_path) if not p.startswith("log.db") and p != "a.parquet"]


def no_more_than(size): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_no_room(tmp_path, drawn, whole):
    "No room for a part, then for a part but not for the whole: one sentence each, and the next run goes on."
    out, args = tmp_path/"a.parquet", (drawn, tmp_path/"a.parquet", "--part", 8)
    status, said, err = run(*args, preexec_fn=no_more_than(3000))
    assert status == 2 and len(err.splitlines()) == 1 and str(tmp_path) in err and not os.listdir(tmp_path)
    status, said, err = run(*args, preexec_fn=no_more_than(whole.stat().st_size - 500))
    assert status == 2 and len(err.splitlines()) == 1 and str(out) in err and os.listdir(tmp_path) == [out.name + ".parts"]
    status, said, err = run(*args)
    assert status == 1 and "160 of them by an earlier run" in said
    alike(out, whole)
    (tmp_path/"file").write_text("")
    status, said, err = run(drawn, tmp_path/"file"/"a.parquet")
    assert status == 2 and len(err.splitlines()) == 1 and "Traceback" not in err


def test_mistakes_are_one_line(tmp_path, drawn):
    (tmp_path/"a.parquet").write_text("mine")
    (tmp_path/"b.parquet.parts").mkdir()
    (tmp_path/"b.parquet.parts"/"thesis.txt").write_text("mine")
    (tmp_path/"t.csv").write_text("name,label\nx.jpg,y\n")
    (tmp_path/"l.csv").write_bytes(b"file\ncaf\xe9.jpg\n")
    (tmp_path/"p.parquet").write_text("no parquet")
    (tmp_path/"folder.parquet").mkdir()
    out = tmp_path/"o.parquet"
    for args, words in [((tmp_path/"nowhere", out), "nowhere"), ((drawn, tmp_path/"a.parquet"), "there already"), (("nowhere://x/y", out), "nowhere"), ((drawn, out, "--engine", "spark"), "spark"), ((drawn, out, "--workers", "0"), "1"),
                        (photo_files(drawn)[:40] + [out], "put it in quotes")]:
        status, said, err = run(*args)
        assert status == 2 and len(err.splitlines()) == 1 and words in err, (args, err)
    for args, words in [((drawn, tmp_path/"b.parquet"), "holds other things"), ((tmp_path/"t.csv", out), "no column url or file"), ((tmp_path/"l.csv", out), "UTF-8"), ((tmp_path/"p.parquet", out), "as a table"), ((tmp_path/"none.csv", out), "none.csv"),
                        ((drawn, tmp_path/"folder.parquet"), "folder"), ((drawn, tmp_path/"o.csv"), ".parquet"), ((tmp_path/"*.jpg", out), "names no photos"), ((drawn, out, tmp_path), "no bundle")]:
        with pytest.raises(BearclfError, match=words) as e: batch(*args)
        assert len(str(e.value).splitlines()) == 1
    with pytest.raises(BearclfError, match="engine ray"): batch(drawn, out, address="auto")
    assert (tmp_path/"a.parquet").read_text() == (tmp_path/"b.parquet.parts"/"thesis.txt").read_text() == "mine" and not (tmp_path/"o.parquet.parts").exists()
    assert run(drawn, tmp_path/"a.parquet", "--force")[0] == 1 and len(told(tmp_path/"a.parquet")) == 160


def test_another_question_is_refused(tmp_path, drawn, whole):
    "Half done: other photos and other bundles are refused, also while it runs; --force begins anew."
    out, process = tmp_path/"a.parquet", start(drawn, tmp_path/"a.parquet", "--part", 4, "--workers", 1)
    while not list(tmp_path.glob("*.parts/*.parquet")) and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(BearclfError, match="at work"): batch(drawn, out)
    process.kill(); process.communicate()
    with pytest.raises(BearclfError, match="other photos"): batch(drawn/"*-0.jpg", out)
    with pytest.raises(BearclfError, match="another predictions log"): batch(drawn, out, log=tmp_path/"log.db")
    note = json.loads((tmp_path/"a.parquet.parts"/"batch.json").read_text())
    note["asked"]["bundle"] = "0"*64
    (tmp_path/"a.parquet.parts"/"batch.json").write_text(json.dumps(note))
    with pytest.raises(BearclfError, match="another bundle"): batch(drawn, out)
    (tmp_path/"a.parquet.parts"/"batch.json").write_text("{")
    with pytest.raises(BearclfError, match="damaged"): batch(drawn, out)
    done = batch(drawn, out, force=True)
    assert done.before == 0 and not (tmp_path/"a.parquet.parts").exists()
    alike(out, whole)


def test_what_others_put_beside_it_stays(tmp_path, drawn, whole):
    out, process = tmp_path/"a.parquet", start(drawn, tmp_path/"a.parquet", "--part", 4, "--workers", 1)
    while not list(tmp_path.glob("*.parts/*.parquet")) and process.poll() is None: time.sleep(.01)
    process.kill(); process.communicate()
    mine = [tmp_path/"a.parquet.parts"/"mine.parquet", tmp_path/"a.parquet.parts"/".x.part", tmp_path/".a.parquet.keep.part"]
    for p in mine: p.write_text("mine")
    batch(drawn, out)
    alike(out, whole)
    assert [p.read_text() for p in mine] == ["mine"]*3 and not (tmp_path/"a.parquet.parts"/"batch.json").exists()
    with pytest.raises(BearclfError, match="holds other things"): batch(drawn, out, force=True)
    (tmp_path/"list.txt").write_text("x.jpg")
    with pytest.raises(BearclfError, match="neither a photo nor a table"): batch(tmp_path/"list.txt", tmp_path/"b.parquet")
    assert batch("http://127.0.0.1:9/x.jpg", tmp_path/"b.parquet").failed == 1


@pytest.fixture(scope="module")
def cluster():
    "A Ray on two cores: its address."
    ray = pytest.importorskip("ray")
    for tries in (2, 1, 0):
        try: context = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False, logging_level="ERROR"); break
        except Exception:  # it gives itself 30 seconds, which two busy cores may not keep
            ray.shutdown()
            if not tries: raise
    yield context.address_info["gcs_address"]
    ray.shutdown()


def workers():
    "The processes in which photos are answered."
    found = []
    for p in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error): found += [p] if "_Actor" in " ".join(p.info["cmdline"] or []) and p.cmdline()[0].startswith("ray::") else []
    return found


def test_ray_says_the_same_whoever_dies(tmp_path, cluster, drawn, whole):
    "Workers are killed, then the driver; what is there in the end is what one undisturbed process says."
    pd.DataFrame(dict(file=[f for _ in range(2) for f in map(str, photo_files(drawn))])).to_parquet(tmp_path/"list.parquet")
    out, parts = tmp_path/"a.parquet", tmp_path/"a.parquet.parts"
    args = tmp_path/"list.parquet", out, "--part", 8, "--engine", "ray", "--address", cluster
    process, killed = start(*args), 0
    for seen in (2, 8, 16):
        while len(list(parts.glob("*.parquet"))) < seen and process.poll() is None: time.sleep(.01)
        if seen < 16 and process.poll() is None and (them := workers()): them[0].kill(); killed += 1
    process.kill()
    said, err = process.communicate()
    assert killed == 2 and process.returncode == -signal.SIGKILL and len(list(parts.glob("*.parquet"))) >= 16, (said, err)
    status, said, err = run(*args)
    assert status == 1 and err == "" and "by an earlier run" in said, (said, err)
    df, once = told(out), told(whole).drop(columns=["row", "file"])
    pd.testing.assert_frame_equal(df.drop(columns=["row", "file"]), pd.concat([once]*2, ignore_index=True))
    assert df.row.tolist() == list(range(320))


def test_no_ray_there(tmp_path, drawn):
    pytest.importorskip("ray")
    status, said, err = run(drawn, tmp_path/"a.parquet", "--engine", "ray", "--address", "127.0.0.1:9")
    assert status == 2 and len(err.splitlines()) == 1 and "127.0.0.1:9" in err and not os.listdir(tmp_path), err
