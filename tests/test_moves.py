"""Cleaning that is killed, disturbed and taken back: is every photo still there, and where the journal says?"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bearclf.core import BearclfError, sha256
from bearclf.folder import read_manifest
from bearclf.moves import DELETE, apply_marks, open_steps, read_journal, relabel, set_aside, settle, undo

pytestmark = pytest.mark.once

ODD = ["two words.jpg", "it's \"quoted\".jpg", "медведь 熊.jpg", ".hidden.jpg", "a;b&c$(d).jpg", "per%20cent.jpg", "-rf.jpg", "line\nbreak.jpg", "UPPER.JPG", "no suffix", "back\\slash.jpg"]


def folder_of(to, n, names=()):
    "`n` files of three labels with a manifest; what is in them says which they are."
    for i in range(n):
        label = ("black", "grizzly", "teddy")[i % 3]
        (to/label).mkdir(parents=True, exist_ok=True)
        (to/label/(names[i % len(names)] if names else f"{i//3}.jpg")).write_bytes(b"photo %d" % i*50)
    rows = [dict(file=p.relative_to(to).as_posix(), label=p.parent.name, sha256=sha256(p)) for p in sorted(to.rglob("*")) if p.is_file()]
    (to/"photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {row["sha256"]: row["file"] for row in rows}


def agrees(to, began):
    "Every photo is where the journal leads, with its content, and the manifest names each under its label."
    places = {file: sha for sha, file in began.items()}
    for line in read_journal(to): places[line["to"]] = places.pop(line["file"])
    there = {sha256(p): p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file() and p.parent != to}
    assert there == {sha: file for file, sha in places.items()}
    listed = {row["sha256"]: (row["file"], row["label"]) for row in read_manifest(to)}
    assert len(listed) == len(began)
    for sha, file in there.items():
        if not file.startswith(".quarantine/"): assert listed[sha] == (file, Path(file).parent.name)
    assert {p.name for p in to.iterdir() if p.is_file()} <= {"photos.jsonl", "cleaning.jsonl", ".lock"}
    return there


def random_marks(to, rng, n):
    files = [p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file() and p.parent != to and ".quarantine" not in p.parts]
    return {file: rng.choice([DELETE, "black", "grizzly", "teddy", "polar"]) for file in rng.sample(files, min(n, len(files)))}


def clean_for_ever(to, seed):
    rng = random.Random(seed)
    while True:
        if rng.random() < .5 and open_steps(read_journal(to)): undo(to, everything=rng.random() < .1)
        else: apply_marks(to, random_marks(to, rng, 20), reasons={})


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_two_hundred_times(tmp_path):
    began, rng, broken_off = folder_of(tmp_path, 500), random.Random(0), 0
    for i in range(200):
        child = os.fork()
        if not child:
            try: clean_for_ever(tmp_path, i)
            finally: os._exit(1)
        if i % 2:  # wherever it is, or in the middle of a step
            while not (tmp_path/".cleaning.todo").exists(): time.sleep(.0002)
        time.sleep(rng.uniform(0, .01 if i % 2 else .1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it had ended by itself"
        broken_off += (tmp_path/".cleaning.todo").exists()
        settle(tmp_path)
        agrees(tmp_path, began)
    assert broken_off > 40, f"only {broken_off} of 200 kills fell into the middle of a step"
    undo(tmp_path, everything=True)
    assert agrees(tmp_path, began).keys() == began.keys()
    back = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*") if p.is_file() and p.parent != tmp_path}
    assert back == {"black", "grizzly", "teddy"}


def test_odd_names_go_out_and_come_back(tmp_path):
    began = folder_of(tmp_path, 30, ODD)
    files = sorted(began.values())
    apply_marks(tmp_path, {file: DELETE if i % 2 else "teddy" for i, file in enumerate(files)})
    agrees(tmp_path, began)
    undo(tmp_path)
    assert agrees(tmp_path, began) == began


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_a_name_that_is_no_text(tmp_path):
    folder_of(tmp_path, 6)
    os.rename(os.fsencode(tmp_path/"black"/"0.jpg"), os.fsencode(tmp_path/"black") + b"/\xff\xfe.jpg")
    file = os.fsdecode(b"black/\xff\xfe.jpg")
    assert len(apply_marks(tmp_path, {file: DELETE}).lines) == 1
    undo(tmp_path)
    assert os.fsencode(file) in [b"black/" + name for name in os.listdir(os.fsencode(tmp_path/"black"))]


def test_names_that_are_one_on_other_computers(tmp_path):
    for name in ("black/A.jpg", "black/a.jpg", "grizzly/x.jpg"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(name)
    done = apply_marks(tmp_path, {"black/A.jpg": "grizzly", "black/a.jpg": "grizzly"})
    assert len({line["to"].casefold() for line in done.lines}) == 2


def test_what_vanished_or_changed_is_left_and_told(tmp_path):
    began = folder_of(tmp_path, 9)
    hashes = {file: sha for sha, file in began.items()}
    (tmp_path/"black"/"0.jpg").unlink()
    (tmp_path/"black"/"1.jpg").write_text("another")
    done = apply_marks(tmp_path, dict.fromkeys(hashes, DELETE), hashes=hashes)
    assert set(done.left) == {"black/0.jpg", "black/1.jpg"} and len(done.lines) == 7
    (tmp_path/".quarantine"/"teddy"/"0.jpg").rename(tmp_path/"teddy.jpg")  # taken back by hand
    back = undo(tmp_path)
    assert set(back.left) == {"teddy/0.jpg"} and len(back.lines) == 6
    with pytest.raises(BearclfError, match="put it back there"): undo(tmp_path)
    (tmp_path/".quarantine"/"teddy").mkdir(parents=True)
    (tmp_path/"teddy.jpg").rename(tmp_path/".quarantine"/"teddy"/"0.jpg")
    assert [line["to"] for line in undo(tmp_path).lines] == ["teddy/0.jpg"]  # the step was not used up
    with pytest.raises(BearclfError, match="could be undone"): undo(tmp_path)


def test_a_name_taken_in_the_meantime(tmp_path):
    began = folder_of(tmp_path, 6)
    set_aside([tmp_path/"black"/"0.jpg"], tmp_path)
    (tmp_path/"black").mkdir(exist_ok=True)
    (tmp_path/"black"/"0.jpg").write_text("new here")
    assert undo(tmp_path).lines[0]["to"] == "black/0-1.jpg"
    assert (tmp_path/"black"/"0.jpg").read_text() == "new here"
    assert [row["file"] for row in read_manifest(tmp_path) if row["sha256"] == [*began][0]] == ["black/0-1.jpg"]


@pytest.mark.parametrize("journal, said", [("{\"file\": \n{}\n", "line 1"), ("{}\n", "cleaning.jsonl names None"), ("{\"file\": \"black/0.jpg\", \"to\": \"black/9.jpg\", \"step\": NaN}\n", "is no longer in"), ("{\"file\": \"black/0.jpg\", \"to\": \"../0.jpg\"}\n", "nothing was moved"),
                                           ("{\"file\": \"/etc/x\", \"to\": \"black/0.jpg\"}\n", "nothing was moved"), ("[1]\n{}\n", "line 1"), ("{\"file\": 1, \"to\": [2]}\n", "names 1")])
def test_a_journal_by_somebody(tmp_path, journal, said):
    began = folder_of(tmp_path, 6)
    (tmp_path/"cleaning.jsonl").write_text(journal)
    with pytest.raises(BearclfError, match=said): undo(tmp_path)
    if "line 1" in said:
        with pytest.raises(BearclfError, match=said): set_aside([tmp_path/"black"/"0.jpg"], tmp_path)
    assert {sha256(p) for p in tmp_path.rglob("*.jpg")} == set(began)


def test_a_half_written_line_at_the_end(tmp_path):
    began = folder_of(tmp_path, 6)
    set_aside([tmp_path/"black"/"0.jpg"], tmp_path)
    with open(tmp_path/"cleaning.jsonl", "a") as f: f.write("{\"time\": \"2026-")
    undo(tmp_path)
    assert agrees(tmp_path, began) == began


def test_a_link_leads_nowhere(tmp_path):
    folder_of(tmp_path/"photos", 6)
    (tmp_path/"else").mkdir()
    (tmp_path/"photos"/"polar").symlink_to(tmp_path/"else")
    with pytest.raises(BearclfError, match="nothing was moved"): relabel(tmp_path/"photos"/"black"/"0.jpg", "polar", tmp_path/"photos")
    assert not any((tmp_path/"else").iterdir())


AT_WORK = "import sys, time; from bearclf.folder import locked\nwith locked(sys.argv[1]): print('mine', flush=True); time.sleep(float(sys.argv[2]))"

@pytest.mark.parametrize("long", [1, 60])
def test_two_at_one_folder(tmp_path, long, monkeypatch):
    folder_of(tmp_path, 6)
    other = subprocess.Popen([sys.executable, "-c", AT_WORK, tmp_path, str(long)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "mine\n"
        if long < 10: assert len(set_aside([tmp_path/"black"/"0.jpg"], tmp_path)) == 1  # it waits
        else:
            with pytest.raises(BearclfError, match="Another bearclf"): set_aside([tmp_path/"black"/"0.jpg"], tmp_path)
    finally: other.kill(); other.wait()


AS_NOBODY = """
import os, sys, tempfile
from bearclf import moves
from bearclf.core import BearclfError
with moves.locked(tempfile.mkdtemp()): pass  # whatever that imports
if not os.getuid(): os.setgid(65534); os.setuid(65534)
try: moves.apply_marks(sys.argv[1], {'black/0.jpg': moves.DELETE, 'teddy/0.jpg': moves.DELETE})
except BearclfError as e: print(e)
"""

@pytest.mark.skipif(sys.platform == "win32", reason="permissions as on Unix")
@pytest.mark.parametrize("closed, said", [(".", "cannot be written to"), ("teddy", "nothing was moved")])
def test_where_nothing_may_be_written(closed, said):
    folder = Path(f"/tmp/bearclf-closed-{os.getpid()}-{closed.strip('.')}")  # pytest's own folder is its user's alone
    began = folder_of(folder, 6)
    try:
        for p in (folder, *folder.rglob("*")): p.chmod(0o777 if p.is_dir() else 0o666)
        (folder/closed).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, folder], capture_output=True, text=True)
        assert said in done.stdout and not done.stderr
        (folder/closed).chmod(0o777)
        assert agrees(folder, began) == began
        assert len(set_aside([folder/"black"/"0.jpg"], folder)) == 1
    finally: shutil.rmtree(folder)


def test_a_loose_file_goes_out_and_comes_back(tmp_path):
    began = folder_of(tmp_path, 6)
    (tmp_path/"loose.jpg").write_text("no label"); (tmp_path/"a"/"b"/"c").mkdir(parents=True); (tmp_path/"a"/"b"/"c"/"deep.jpg").write_text("deep")
    set_aside([tmp_path/"loose.jpg", tmp_path/"a"/"b"/"c"/"deep.jpg"], tmp_path)
    assert (tmp_path/".quarantine"/"loose.jpg").is_file() and not (tmp_path/"a").exists()
    undo(tmp_path)
    assert (tmp_path/"loose.jpg").read_text() == "no label" and (tmp_path/"a"/"b"/"c"/"deep.jpg").read_text() == "deep"
    for ours in ("photos.jsonl", "cleaning.jsonl"):
        with pytest.raises(BearclfError, match="no place for a photo"): apply_marks(tmp_path, {ours: DELETE})
    with pytest.raises(BearclfError, match="no place for a photo"): apply_marks(tmp_path, {".quarantine": DELETE})


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_a_manifest_with_a_name_that_is_no_text(tmp_path):
    began = folder_of(tmp_path, 6)
    os.rename(tmp_path/"black"/"0.jpg", os.fsencode(tmp_path/"black") + b"/\xff.jpg")
    odd = os.fsdecode(b"black/\xff.jpg")
    rows = [row | dict(file=odd) if row["file"] == "black/0.jpg" else row for row in read_manifest(tmp_path)]
    (tmp_path/"photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    apply_marks(tmp_path, {odd: "grizzly", "teddy/0.jpg": "black"})
    assert {row["file"] for row in read_manifest(tmp_path)} >= {odd.replace("black", "grizzly"), "black/0.jpg"}
    (tmp_path/".cleaning.todo").write_text(json.dumps(dict(lines=[dict(file=odd.replace("black", "grizzly"), to=".quarantine/x.jpg", step="s", sha256=None)], listed={})))
    assert len(settle(tmp_path)) == 1
    undo(tmp_path, everything=True)
    assert {row["file"] for row in read_manifest(tmp_path)} >= {odd, "teddy/0.jpg"}


@pytest.mark.parametrize("todo", [dict(step=[]), dict(step=None), dict(to="cleaning.jsonl/x.jpg"), dict(to="photos.jsonl"), dict(to=".lock"), dict(to="black/\ud800.jpg"), dict(file=5), dict(sha256={})])
def test_a_plan_by_somebody(tmp_path, todo):
    began = folder_of(tmp_path, 6)
    (tmp_path/".cleaning.todo").write_text(json.dumps(dict(lines=[dict(file="black/0.jpg", to="black/9.jpg", step="s", sha256=None) | todo], listed={})))
    if "sha256" in todo: settle(tmp_path)
    else:
        with pytest.raises(BearclfError, match="damaged|no place"): settle(tmp_path)
    assert {sha256(p) for p in tmp_path.rglob("*.jpg")} == set(began)


def test_where_a_step_can_go_neither_on_nor_back(tmp_path, monkeypatch):
    began, rename = folder_of(tmp_path, 6), os.rename
    def fails(a, b, left=[1]):
        left[0] -= 1
        if left[0] < 0: raise OSError(30, "Read-only file system")
        rename(a, b)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(BearclfError, match="will finish the step"): set_aside([tmp_path/"black"/"0.jpg", tmp_path/"teddy"/"0.jpg"], tmp_path)
    monkeypatch.undo()
    assert len(settle(tmp_path)) == 2
    agrees(tmp_path, began)


def test_what_cannot_be_marked(tmp_path):
    began = folder_of(tmp_path, 9)
    with pytest.raises(BearclfError, match="no folder"): apply_marks(tmp_path/"nowhere", {"black/0.jpg": DELETE})
    assert not (tmp_path/"nowhere").exists()
    with pytest.raises(BearclfError, match="in capitals only"): apply_marks(tmp_path, {"black/0.jpg": "Grizzly"})
    set_aside([tmp_path/"black"/"0.jpg"], tmp_path)
    with pytest.raises(BearclfError, match="undo that step"): apply_marks(tmp_path, {".quarantine/black/0.jpg": "grizzly"})
    (tmp_path/"black"/"1.jpg").unlink(); (tmp_path/"black"/"1.jpg").mkdir()
    (tmp_path/"black"/"2.jpg").unlink(); (tmp_path/"black"/"2.jpg").symlink_to("nowhere")
    left = apply_marks(tmp_path, {"black/1.jpg": DELETE, "black/2.jpg": DELETE}, hashes={file: sha for sha, file in began.items()}).left
    assert left == {"black/1.jpg": "is a folder", "black/2.jpg": "has changed since it was looked at"}


def test_a_step_that_fails_leaves_no_folders(tmp_path, monkeypatch):
    began = folder_of(tmp_path, 6)
    monkeypatch.setattr("bearclf.moves.append_jsonl", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BearclfError, match="nothing was moved"): apply_marks(tmp_path, {"black/0.jpg": "brown", "black/1.jpg": "brown"})
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["black", "grizzly", "teddy"]
    assert agrees(tmp_path, began) == began


@pytest.mark.parametrize("name, line", [("photos.jsonl", {"file": ["black/9.jpg"]}), ("cleaning.jsonl", {"step": [], "undoes": {}, "file": "black/9.jpg", "to": "grizzly/9.jpg"}), ("photos.jsonl", {"file": "black/" + "x"*3000})])
def test_rows_of_odd_kinds(tmp_path, name, line):
    began = folder_of(tmp_path, 6)
    (tmp_path/"ATTRIBUTION.md").write_text("")
    with open(tmp_path/name, "a") as f: f.write(json.dumps(line) + "\n")
    assert len(apply_marks(tmp_path, {"black/0.jpg": "grizzly"}).lines) == 1
    assert [o["to"] for o in undo(tmp_path).lines] == ["black/0.jpg"]
    assert not (tmp_path/".cleaning.todo").exists()
