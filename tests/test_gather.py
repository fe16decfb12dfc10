"""Gathering from a web of every kind: exactly the good photos are kept, and nothing that happens on the way can spoil the folder."""
import hashlib
import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

import web as pages
from bearclf import fetch
from bearclf.check import check_photos
from bearclf.core import open_photo, photo_files
from bearclf.folder import read_manifest
from bearclf.moves import set_aside
from bearclf.gather import download_photos, gather
from bearclf.search import Photo
from bearclf.verify import likeness
from test_cli import bearclf, one_line

pytestmark = pytest.mark.once

QUERIES = dict(grizzly="grizzly bear", black="black bear", teddy="teddy bear")
SOURCES = ("openverse", "commons", "inaturalist", "serpapi")


@pytest.fixture
def server(monkeypatch):
    with pages.web() as server:
        monkeypatch.setenv("BEARCLF_ENDPOINTS", server.endpoints())
        monkeypatch.setenv("SERPAPI_API_KEY", "any")
        yield server


def listed_by(server, listed):
    "Let the searches find `listed`, each address at one of them."
    server.search({QUERIES[label]: {s: urls[i::len(SOURCES)] for i, s in enumerate(SOURCES)} for label, urls in listed.items()})


def snapshot(folder):
    "Every file of a photos folder that is not hidden, without the times in it."
    rows = [{k: v for k, v in r.items() if k != "fetched_at"} for r in read_manifest(folder)]
    files = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file() and p.name != "photos.jsonl" and not p.relative_to(folder).parts[0].startswith(".")}
    return rows, files


def agrees(folder):
    "The manifest matches the folder to the byte."
    rows = {r["file"]: r for r in read_manifest(folder)}
    assert set(rows) == {p.relative_to(folder).as_posix() for p in photo_files(folder)}
    for file, row in rows.items():
        data = (folder/file).read_bytes()
        im = Image.open(BytesIO(data))
        assert (im.format, im.mode, im.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        assert hashlib.sha256(data).hexdigest() == row["sha256"] and file.startswith(row["label"] + "/") and len(row["phash"]) == 16
        assert im.getexif().get(0x0112, 1) == 1
    assert not [p for p in folder.rglob("*") if p.name.endswith(".part")]


def test_exactly_the_good_ones_twice(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_SECONDS", 1)
    monkeypatch.setattr(fetch, "BACKOFF", .05)
    listed, good = pages.fill(server, per_label=150)
    listed_by(server, listed)
    kinds = len(pages.good_kinds()) + len(pages.bad_kinds(pages.scene(0))) + len(pages.failing_kinds(pages.scene(0)))
    assert kinds >= 40
    photos = tmp_path/"photos"
    report = gather(QUERIES, photos, 150, SOURCES, private=True, per_host=8)
    kept = {r["url"]: r for r in read_manifest(photos)}
    assert set(kept) == set(good), (set(good) - set(kept), set(kept) - set(good), [o for o in report.outcomes if o.address in set(good) - set(kept)])
    for url, row in kept.items(): assert likeness(open_photo(photos/row["file"]).resize((64, 64)), _upright(good[url], url, server).resize((64, 64))) > .8, url
    agrees(photos)
    assert {label: c["kept"] for label, c in report.counts.items()} == dict.fromkeys(QUERIES, 150)
    assert all(o.reason for o in report.lost)
    assert (photos/"ATTRIBUTION.md").read_text().count("\n| grizzly/") == 150

    before, server.asked = snapshot(photos), Counter()
    again = gather(QUERIES, photos, 150, SOURCES, private=True)
    assert not server.asked and snapshot(photos) == before and not again.lost

    more = gather(QUERIES, photos, 160, SOURCES, private=True, per_host=8)  # more than there are: only what may work another day is asked for
    asked = {path for path in server.asked if not path.startswith(tuple(f"/{s}" for s in SOURCES))}
    assert snapshot(photos) == before and sum(c["kept"] for c in more.counts.values()) == 0
    assert asked <= {f"/bad/{label}-{name}.jpg" for label in QUERIES for name in pages.failing_kinds(pages.scene(0))}, asked


def _upright(im, url, server):
    "What a good photo's picture looks like once its camera's note is followed."
    page = server.pages.get(url.removeprefix(server.site))
    turn = Image.open(BytesIO(page)).getexif().get(0x0112, 1) if isinstance(page, bytes) else 1
    return im.rotate({6: -90, 3: 180}.get(turn, 0), expand=True)


ALL = [word for s in SOURCES for word in ("--source", s)]


def command(out, *extra): return [sys.executable, "-m", "bearclf.cli", "gather", *(f"{k}={v}" for k, v in QUERIES.items()), "--out", str(out), "--allow-private", *map(str, extra)]


def test_killed_at_fifty_moments_it_ends_the_same(server, tmp_path):
    listed, good = pages.fill(server, per_label=14, copies=4, bad=["html", "half", "gone", "icon"], failing=False)
    listed_by(server, listed)
    server.delay = .03

    def begun(out):
        "A process of its own that gathers; forked, since importing would take most of the time that it has to live."
        process = multiprocessing.get_context("fork").Process(target=gather, args=(QUERIES, out, 14, SOURCES), kwargs=dict(private=True))
        process.start()
        return process

    start, first = time.monotonic(), begun(tmp_path/"calm")
    first.join(60)
    whole, calm, rng, kills, rounds = time.monotonic() - start, snapshot(tmp_path/"calm"), random.Random(7), 0, 0
    assert first.exitcode == 0 and len(calm[0]) == len(good)
    while kills < 50:
        rounds += 1
        out, process = tmp_path/f"killed-{rounds}", None
        while not process or process.exitcode:
            process = begun(out)
            process.join(rng.uniform(.05, .5)*whole if kills < 50 else 60)
            if process.is_alive(): process.kill(); process.join(); kills += 1
            assert process.exitcode in (0, -signal.SIGKILL)
        agrees(out)
        assert snapshot(out) == calm
    assert rounds > 2


def test_a_full_disk_is_said_and_spoils_nothing(server, tmp_path):
    listed, good = pages.fill(server, per_label=34, failing=False)
    listed_by(server, listed)
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # no file may grow beyond: photos fit, the manifest soon does not
    done = subprocess.run(command(tmp_path/"photos", "--per-label", 34, *ALL), preexec_fn=small, capture_output=True, text=True)
    assert done.returncode == 2 and one_line(done.stderr) and "cannot be written" in done.stderr, done.stderr
    rows = read_manifest(tmp_path/"photos")
    assert 0 < len(rows) < len(good)
    agrees(tmp_path/"photos")


def test_two_at_once_and_other_mistakes(server, tmp_path):
    listed, _ = pages.fill(server, per_label=34, failing=False)
    listed_by(server, listed)
    server.delay = .1
    first = subprocess.Popen(command(tmp_path/"photos", "--per-label", 34, *ALL), stdout=subprocess.DEVNULL)
    while not (tmp_path/"photos"/"photos.jsonl").exists(): time.sleep(.05)
    status, _, err = bearclf("gather", "grizzly=grizzly bear", "--out", tmp_path/"photos", "--allow-private")
    first.kill(); first.wait()
    assert (status, one_line(err)) == (2, True) and "Another bearclf" in err
    (tmp_path/"file").write_text("")
    cases = {"choose from": ["grizzly=x", "--source", "flickr"], "is not LABEL=QUERY": ["grizzly"], "cannot be a label": ["../up=x"], "given twice": ["a=x", "a=y"], "no licence": ["a=x", "--license", "mine"],
             "either labels": [], "There is no file": ["--replay", tmp_path/"none.jsonl"], "is a file: name a folder": ["a=x", "--out", tmp_path/"file"], "has no photo for": ["a=nobody knows it"], "not on the public internet": ["a=grizzly bear"]}
    for said, args in cases.items():
        private = [] if said.startswith("not on") else ["--allow-private"]
        status, _, err = bearclf("gather", *(args if "--out" in args else [*args, "--out", tmp_path/"new"]), *private)
        assert (status, one_line(err)) == (2, True) and said in err, (said, err)


def test_replay_and_originals(server, tmp_path):
    listed, good = pages.fill(server, per_label=34, bad=False, failing=False)
    listed_by(server, listed)
    assert bearclf("gather", *(f"{k}={v}" for k, v in QUERIES.items()), "--out", tmp_path/"a", "--per-label", 34, *ALL, "--allow-private", "--keep-originals")[0] == 0
    sent = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path/"a"/".originals").rglob("*.*")}
    assert {hashlib.sha256(v).hexdigest() for k, v in server.pages.items() if k.endswith((".bmp", ".gif")) and isinstance(v, bytes)} <= sent
    status, out, err = bearclf("gather", "--replay", tmp_path/"a"/"photos.jsonl", "--out", tmp_path/"b", "--allow-private")
    assert (status, err) == (0, "")
    assert sorted(map(str, snapshot(tmp_path/"a")[0])) == sorted(map(str, snapshot(tmp_path/"b")[0])) and snapshot(tmp_path/"a")[1] == snapshot(tmp_path/"b")[1]


def test_a_forgotten_flag_and_a_photo_set_aside(server, tmp_path):
    listed, _ = pages.fill(server, per_label=34, bad=False, failing=False)
    (tmp_path/"list.txt").write_text("\n".join(listed["grizzly"][:6]))
    gather_list = ["gather", f"bear={tmp_path/'list.txt'}", "--source", "urls", "--out", tmp_path/"a"]
    status, out, _ = bearclf(*gather_list)
    assert status == 1 and "--allow-private" in out and "No photo came" in out
    assert bearclf(*gather_list, "--allow-private")[0] == 0  # nothing was noted against the addresses
    first, *others = photo_files(tmp_path/"a")
    assert len(others) >= 3
    set_aside([first], tmp_path/"a")
    assert bearclf("gather", "--replay", tmp_path/"a", "--out", tmp_path/"b", "--allow-private")[0] == 0
    assert [p.name for p in photo_files(tmp_path/"b")] == [p.name for p in others]


@pytest.mark.parametrize("name", ["photos.jsonl", "cleaning.jsonl", ".quarantine", ".originals", ".search"])
def test_no_link_leads_out_of_the_folder(tmp_path, name):
    mine, out, victim = tmp_path/"mine", tmp_path/"out", tmp_path/"victim"
    for d in (mine, out/"bear"): d.mkdir(parents=True)
    pages.scene(1).save(mine/"a.png")
    (out/"bear"/"b.jpg").write_bytes(b"no photo")
    if name.endswith("jsonl"): victim.write_text("a line without an end")
    else: victim.mkdir()
    (out/name).symlink_to(victim)
    for args in (["gather", f"bear={mine}", "--source", "folder", "--keep-originals", "--out", out], ["check", out, "--fix"]):
        status, _, err = bearclf(*args)
        assert (status, one_line(err)) == (2, True) and "is a link to another place" in err
    assert (victim.read_text() == "a line without an end") if victim.is_file() else not list(victim.iterdir())


def test_zip_that_would_unfold_without_end(tmp_path):
    with zipfile.ZipFile(tmp_path/"z.zip", "w", zipfile.ZIP_BZIP2) as z: z.writestr("bomb.jpg", bytes(50_000_000))
    with zipfile.ZipFile(tmp_path/"z.zip", "a") as z: z.writestr("bear.png", pages.coded(pages.scene(1), "PNG"))
    status, out, _ = bearclf("gather", f"bear={tmp_path/'z.zip'}", "--source", "zip", "--out", tmp_path/"out")
    assert status == 0 and "pack the zip anew" in out and len(photo_files(tmp_path/"out")) == 1


def test_last_line_longer_than_a_look_at_it(tmp_path):
    pages.scene(1).save(tmp_path/"a.png")
    out = tmp_path/"out"
    out.mkdir()
    (out/"photos.jsonl").write_text(json.dumps(dict(file="bear/x.jpg", label="bear", page="x"*2_000_000)))  # and no end of line
    assert bearclf("gather", f"bear={tmp_path}", "--source", "folder", "--out", out)[0] == 0
    assert len(read_manifest(out)) == 2


def test_a_proxy_is_used_and_watched(monkeypatch):
    monkeypatch.setattr(fetch, "MAX_SECONDS", 1)
    asked = []
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            if "slow" in self.path:
                for _ in range(30): self.wfile.write(b"X: y\r\n"); time.sleep(.2)
            else: self.wfile.write(b"Content-Length: 4\r\n\r\nbear")
        def log_message(self, *args): pass
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads, proxy.handle_error = True, lambda *_: None
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "localhost")
    with fetch.Fetcher(private=True) as f:
        assert f.get("http://192.0.2.1/a.jpg") == b"bear" and asked == ["http://192.0.2.1/a.jpg"]
        start = time.monotonic()
        with pytest.raises(fetch.FetchError, match="not finished within"): f.get("http://192.0.2.1/slow.jpg")
        assert time.monotonic() - start < 4
    with fetch.Fetcher() as f:  # what the proxy may not be asked, and what does not go by it
        for url in ("http://127.0.0.1/a.jpg", "http://localhost/a.jpg", "https://127.0.0.1/a.jpg"):
            with pytest.raises(fetch.PrivateError): f.get(url)
    assert len(asked) == 2
    proxy.shutdown()


def test_replay_of_odd_addresses(server, tmp_path):
    listed, _ = pages.fill(server, per_label=34, bad=False, failing=False)
    (tmp_path/"list.txt").write_text("\n".join(listed["grizzly"][:3]))
    assert bearclf("gather", f"bear={tmp_path/'list.txt'}", "--source", "urls", "--out", tmp_path/"a", "--allow-private")[0] == 0
    first, *others = read_manifest(tmp_path/"a")
    other = {**first, "url": f" {first['url']} ", "sha256": "0"*64, "phash": f"{int(first['phash'], 16) ^ 2**64 - 1:016x}"}  # it was another photo
    (tmp_path/"m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [other, {**first, "url": "\0"}, *others]))
    status, out, _ = bearclf("gather", "--replay", tmp_path/"m.jsonl", "--out", tmp_path/"b", "--allow-private")
    assert status == 0 and "has changed since" in out and "1 photos in m.jsonl have no address" in out
    assert [r["file"] for r in read_manifest(tmp_path/"b")] == [r["file"] for r in others]


NATURAL = [{"grizzly/00000006.jpg", "grizzly/00000057.jpg"}, {"grizzly/00000052.jpg", "grizzly/00000127.jpg"}]  # the same photo in other colours, seen by eye


def test_real_photos_with_faults(shared_photos, server, tmp_path):
    rng, pairs, broken, urls = random.Random(3), [], [], {}
    originals = photo_files(shared_photos/"bears")
    for i, fn in enumerate(originals):
        data, path = fn.read_bytes(), f"/{fn.parent.name}/{fn.name}"
        if i % 10 == 4:
            data = [data[:len(data)*rng.randint(10, 95)//100], b"<html>" + data[:100], data[:2] + bytes(100) + data[102:]][i//10 % 3]
            broken.append(path)
        server.pages[path] = data
        urls.setdefault(fn.parent.name, []).append(path)
        if i % 10 == 7:
            im, scale, copy = open_photo(fn), rng.uniform(.25, .9) if i//10 % 2 else 1, f"/{fn.parent.name}/copy-{fn.stem}.jpg"
            server.pages[copy] = pages.coded(im.resize((int(im.width*scale), int(im.height*scale))), quality=rng.randint(40, 90))
            urls[fn.parent.name].append(copy)
            pairs.append((path, copy))
    outcomes = []
    for label, paths in urls.items(): outcomes += download_photos([Photo(server.site + p) for p in paths], tmp_path/"photos", label, private=True, per_host=8).outcomes
    agrees(tmp_path/"photos")
    ended = {o.address.removeprefix(server.site): o for o in outcomes}
    assert {p for p, o in ended.items() if o.end == "broken"} == set(broken)
    name = {r["file"]: r["url"].removeprefix(server.site) for r in read_manifest(tmp_path/"photos")}
    reported = {frozenset((name[o.file], p)) for p, o in ended.items() if o.end == "duplicate"}
    true = {frozenset(p) for p in pairs}
    natural = {frozenset("/" + f for f in p) for p in NATURAL}
    assert len(true & reported) >= .95*len(true), true - reported
    assert len(reported - true - natural) <= .01*len(originals), reported - true - natural
    assert not [f for f in check_photos(tmp_path/"photos") if f.kind in ("broken", "same", "near", "dark", "blurred")]
