"""Training as its user meets it: repeatable, killed and resumed, in two processes, on sets that come split, within bounds on the disk."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from test_cli import bearclf, one_line, told

PLAIN = dict(OMP_NUM_THREADS="1")  # as many threads everywhere: sums in another order differ in the last bit


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "A clean practice set."
    folder = tmp_path_factory.mktemp("drawn")/"photos"
    assert bearclf("practice", "--out", folder, "--per-label", 16)[0] == 0
    assert bearclf("check", folder, "--fix")[0] == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(drawn, tmp_path_factory):
    "A run of three epochs that nothing happened to."
    run = tmp_path_factory.mktemp("runs")/"run"
    status, out, err = bearclf("train", drawn, "--out", run, "--epochs", 2, **PLAIN)
    assert status == 0, err
    return run


def record(run): return json.loads((run/"run.json").read_text())
def table(run): return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(open(run/"history.csv"))]


def started(*args, **env):
    "A `bearclf` that goes on in the background."
    return subprocess.Popen([sys.executable, "-m", "bearclf.cli", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env)


def wait_for(there, process, seconds=300):
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(.02)


def rows_of(run):
    "How many epochs the checkpoint beside `run` holds."
    import torch
    try: return len(torch.load(run.with_name(f".{run.name}.unfinished")/"last.pth", weights_only=True)["rows"])
    except (OSError, RuntimeError, EOFError): return 0


def test_same_seed_same_run(drawn, undisturbed, tmp_path):
    assert bearclf("train", drawn, "--out", tmp_path/"again", "--epochs", 2, **PLAIN)[0] == 0
    assert table(tmp_path/"again") == table(undisturbed)
    for key in ("metrics", "split", "data", "labels"): assert record(tmp_path/"again")[key] == record(undisturbed)[key]


def test_killed_and_resumed_ends_as_if_nothing_had_happened(drawn, undisturbed, tmp_path, capsys):
    import torch
    run = tmp_path/"run"
    process = started("train", drawn, "--out", run, "--epochs", 2, **PLAIN)
    wait_for(lambda: rows_of(run) == 2, process)
    process.kill()
    process.communicate()
    assert not run.exists()
    checkpoint = tmp_path/".run.unfinished"/"last.pth"
    whole = checkpoint.read_bytes()
    middle = len(whole)//2
    state = torch.load(checkpoint, weights_only=True)
    state["model"].popitem()
    torch.save(state, tmp_path/"other")
    for broken in (whole[:middle] + bytes(1000) + whole[middle + 1000:], (tmp_path/"other").read_bytes()):
        checkpoint.write_bytes(broken)
        status, _, err = bearclf("train", drawn, "--out", run, "--epochs", 2, "--resume")
        assert status == 2 and one_line(err) and err.startswith(f"bearclf: {checkpoint} is damaged"), err
    (tmp_path/"other").unlink()
    checkpoint.write_bytes(whole)
    for said, options in {"--resume": [], "other epochs": ["--resume", "--epochs", 3], "other arch": ["--resume", "--epochs", 2, "--arch", "resnet18"]}.items():
        status, err = told(capsys, "train", drawn, "--out", run, *(options or ["--epochs", 2]))
        assert status == 2 and one_line(err) and said in err, err
    status, _, err = bearclf("train", drawn, "--out", run, "--epochs", 2, "--resume", **PLAIN)
    assert status == 0, err
    assert table(run) == table(undisturbed) and record(run)["metrics"] == record(undisturbed)["metrics"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.once
def test_killed_after_its_last_epoch(drawn, undisturbed, tmp_path):
    run = tmp_path/"run"
    process = started("train", drawn, "--out", run, "--epochs", 2, **PLAIN)
    wait_for(lambda: rows_of(run) == 3, process)
    process.kill()
    process.communicate()
    if run.exists(): pytest.skip("it was quicker")
    assert bearclf("train", drawn, "--out", run, "--epochs", 2, "--resume", **PLAIN)[0] == 0
    assert record(run)["metrics"] == record(undisturbed)["metrics"]


def test_ctrl_c_keeps_the_best_epoch_so_far(drawn, tmp_path, capsys):
    run = tmp_path/"run"
    process = started("train", drawn, "--out", run, "--epochs", 40)
    wait_for(lambda: rows_of(run) >= 2, process)
    status, err = told(capsys, "train", drawn, "--out", run, "--force")
    assert status == 2 and one_line(err) and "at work" in err, err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err and "--resume" in out, (out, err)
    kept, losses = record(run), [float(row["valid_loss"]) for row in table(run)]
    assert kept["interrupted"] == len(losses) < 41
    assert abs(kept["metrics"]["valid_loss"] - min(losses)) < 1e-3


@pytest.mark.once
def test_a_photo_that_breaks_mid_run_is_named(drawn, tmp_path):
    photos, run = tmp_path/"photos", tmp_path/"run"
    shutil.copytree(drawn, photos)
    process = started("train", photos, "--out", run, "--epochs", 3)
    wait_for(lambda: rows_of(run) >= 1, process)
    broken = sorted((photos/"teddy").glob("*.jpg"))
    whole = [fn.read_bytes() for fn in broken]
    for fn in broken: fn.write_bytes(b"<html>gone")
    _, err = process.communicate(timeout=300)
    told = [line for line in err.splitlines() if line.startswith("bearclf: ")]
    assert process.returncode == 2 and len(told) == 1 and "became unreadable" in told[0] and "Traceback" not in err, err
    assert not run.exists()
    for fn, data in zip(broken, whole): fn.write_bytes(data)
    status, _, err = bearclf("train", photos, "--out", run, "--epochs", 3, "--resume")
    assert status == 0 and len(table(run)) == 4, err


def test_two_processes_share_the_work(drawn, undisturbed, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "bearclf.cli"]
    done = subprocess.run([*command, "train", drawn, "--out", tmp_path/"run", "--epochs", "2"], capture_output=True, text=True, timeout=600, env=os.environ | PLAIN)
    assert done.returncode == 0, done.stderr
    both, one = record(tmp_path/"run"), record(undisturbed)
    assert both["processes"] == 2 and both["split"] == one["split"] and both["data"] == one["data"]
    (a, b), (c, d) = (r["metrics"]["accuracy_interval"] for r in (both, one))
    assert a <= d and c <= b
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.once
def test_splits_that_come_with_the_photos_are_kept(drawn, tmp_path):
    fns = sorted(p for label in ("black", "teddy") for p in (drawn/label).glob("*.*"))
    with open(tmp_path/"photos.csv", "w", newline="") as f:
        csv.writer(f).writerows([("name", "label", "is_valid"), *((os.path.relpath(fn, tmp_path), f"my {fn.parent.name}", int(i % 5 == 0)) for i, fn in enumerate(fns))])
    valid = sorted(os.path.relpath(fn, tmp_path) for fn in fns[::5])
    for i, fn in enumerate(fns):
        to = tmp_path/"split"/("train" if i % 5 else "valid")/fn.parent.name/fn.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(fn.read_bytes())
    assert bearclf("train", tmp_path/"photos.csv", "--out", tmp_path/"table", "--epochs", 1)[0] == 0
    assert bearclf("train", tmp_path/"split", "--out", tmp_path/"folders", "--epochs", 1)[0] == 0
    listed, divided = record(tmp_path/"table"), record(tmp_path/"folders")
    assert listed["labels"] == ["my black", "my teddy"] and listed["split"]["valid"] == valid and listed["split"]["kind"] == "given"
    assert len(divided["split"]["valid"]) == len(valid) and all(fn.startswith("valid/") for fn in divided["split"]["valid"])
    twin = tmp_path/"split"/divided["split"]["valid"][0]
    shutil.copy(twin, tmp_path/"split"/"train"/twin.parent.name/f"again{twin.suffix}")
    saved_again = tmp_path/"split"/divided["split"]["valid"][-1]
    Image.open(saved_again).convert("RGB").save(tmp_path/"split"/"train"/saved_again.parent.name/"smaller.jpg", quality=60)
    (tmp_path/"split"/"valid").rename(tmp_path/"split"/"Val")
    names = [f"Val/{fn.parent.name}/{fn.name}" for fn in (twin, saved_again)]
    status, out, _ = bearclf("train", tmp_path/"split", "--out", tmp_path/"leak", "--epochs", 1)
    leak = record(tmp_path/"leak")["split"]
    assert status == 0 and leak["copies"] == names[:1] and names[1] in leak["alike"] and twin.name in out and f"{len(leak['alike'])} look like training photos" in out
    status, out, err = bearclf("check", tmp_path/"split", "--fix")
    assert f"near: train/{saved_again.parent.name}/smaller.jpg: like {names[1]}, on the other side of the split" in out and "under another label" not in out, out
    assert (tmp_path/"split"/".quarantine"/"train"/saved_again.parent.name/"smaller.jpg").exists()
    status, _, err = bearclf("export", tmp_path/"table", "--out", tmp_path/"bundle")
    assert status == 0, err


def test_what_cannot_be_trained_is_told_in_one_line(drawn, tmp_path, capsys, monkeypatch):
    def says(said, *args):
        status, err = told(capsys, "train", *args, "--out", tmp_path/"run")
        assert status == 2 and one_line(err) and said in err, err
    folder = tmp_path/"labels"
    for i in range(1001):
        (folder/f"l{i}").mkdir(parents=True)
        for j in range(2): Image.new("RGB", (8, 8)).save(folder/f"l{i}"/f"{j}.png")
    says("1001 labels", folder)
    says("did you mean resnet18", drawn, "--arch", "resnet-18")
    says("no unfinished run", drawn, "--resume")
    for said, text in {'"file"': "photo;kind\na.jpg;teddy\n", "not there": "file,label\na.jpg,teddy\nb.jpg,black\n", "twice": "file,label\na.jpg,teddy\na.jpg,black\n", "lists no photos": "file,label\n", "'maybe'": "file,label,is_valid\na.jpg,teddy,maybe\n", "cannot be read": "", "lists a.jpg twice": "file,label\na.jpg,teddy\nb/../a.jpg,black\n",
                       "more columns": "file,label\na.jpg,teddy,\nb.jpg,teddy,\n", "xx.jpg, which": f"file,label\n{'x'*300}.jpg,teddy\n".replace(".jpg", "xx.jpg")}.items():
        (tmp_path/"photos.csv").write_text(text)
        says(said, tmp_path/"photos.csv")
    odd = tmp_path/"odd"
    for name in (b"bl\xffck", b"teddy"):
        shutil.copytree(drawn/"teddy", os.fsdecode(os.fsencode(odd) + b"/" + name))
    says("not plain text (bl\\udcffck)", odd)
    assert not (tmp_path/"run").exists() and not list(tmp_path.glob(".run*"))
    monkeypatch.chdir(tmp_path)
    status, err = told(capsys, "train", drawn, "--out", ".")
    assert status == 2 and one_line(err) and "where you are" in err, err


def loaded(photos):
    from bearclf.data import photo_block
    return photo_block(64).dataloaders(photos, bs=8)


def test_a_cache_without_room_only_costs_time(drawn, tmp_path, monkeypatch):
    "A cache folder that cannot be made, as on a full or read-only disk."
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("BEARCLF_CACHE", str(tmp_path/"file"/"cache"))
    with pytest.warns(UserWarning, match="not complete"): dls = loaded(drawn)
    assert sum(len(x) for x, _ in dls.valid) == len(dls.valid_ds) and len(dls.train.one_batch()[0]) == 8


def test_photos_are_unfolded_once(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("BEARCLF_CACHE", str(tmp_path))
    loaded(drawn)
    before = {p: p.stat().st_ino for p in tmp_path.rglob("*.npy")}
    assert len(before) >= len(list(drawn.glob("*/*.*")))
    loaded(drawn)
    assert {p: p.stat().st_ino for p in tmp_path.rglob("*.npy")} == before and not list(tmp_path.rglob(".*"))
    torn, size = min(before), min(before).stat().st_size
    torn.write_bytes(torn.read_bytes()[:1000])
    loaded(drawn)
    assert torn.stat().st_size == size


def test_a_learner_sees_photos_however_they_come(drawn):
    "Paths, bytes, PIL images and arrays are one photo, for the learner as trained and as exported; a second learner on the same photos changes nothing."
    import numpy as np
    from bearclf.core import open_photo
    from bearclf.train import photo_learner
    from fastai.torch_core import set_seed
    dls = loaded(drawn)
    set_seed(0)  # the head is a random one
    learn = photo_learner(dls)
    fn = dls.valid_ds.items[0]
    with learn.no_bar(), learn.no_logging():
        answers = [learn.predict(src)[2] for src in (fn, str(fn), fn.read_bytes())]
        whole = [learn.predict(src)[2] for src in (open_photo(fn), np.asarray(open_photo(fn)))]
        batch = dls.valid.one_batch()[0]
        photo_learner(dls)
    assert all(float((a - answers[0]).abs().max()) < 1e-6 for a in answers)
    assert all(float((a - answers[0]).abs().max()) < .1 for a in whole)  # a file may be decoded at a part of its size
    assert float((dls.valid.one_batch()[0] - batch).abs().max()) == 0


def test_the_course_line_takes_our_network(drawn):
    "`vision_learner(dls, efficientnet_lite0, ...)` is fastai's own learner: pretrained, frozen, normalised; its early layers stay as they are."
    import torch
    from fastai.vision.all import error_rate, vision_learner
    from bearclf.train import efficientnet_lite0, fast_callbacks, normalization
    dls = loaded(drawn)
    learn = vision_learner(dls, efficientnet_lite0, metrics=error_rate, cbs=fast_callbacks())
    assert [round(float(v[0]), 4) for v in normalization(dls)] == [round(127/255, 4), round(128/255, 4)]
    imagenet = efficientnet_lite0()
    early, late = (lambda net: [p.clone() for part in net[:8] for p in part.parameters()]), (lambda net: [p.clone() for part in net[8:] for p in part.parameters()])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    assert all(map(torch.equal, early(learn.model[0]), early(imagenet)))
    assert not all(map(torch.equal, late(learn.model[0]), late(imagenet[:11])))


def test_a_second_learner_and_the_normalisation_of_the_first(drawn, tmp_path, monkeypatch):
    "Another network's learner says that it took the DataLoaders over; one that cannot be made leaves them as they were; callbacks join the fast ones."
    import torch
    from fastai.vision.all import Callback
    from bearclf import train as bt
    class Mine(Callback): pass
    dls = loaded(drawn)
    learn = bt.photo_learner(dls, cbs=Mine())
    assert {"Mine", "FixedEarly", "FixedStatistics"} <= {type(cb).__name__ for cb in learn.cbs}
    before = bt.normalization(dls)
    with pytest.raises(bt.BearclfError, match="did you mean"): bt.photo_learner(dls, "resnet81")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody there
    urllib.request.install_opener(None)
    with pytest.raises(bt.BearclfError, match="connect once"): bt.photo_learner(dls, "resnet18")
    assert all(map(torch.equal, before, bt.normalization(dls)))
    with pytest.warns(UserWarning, match="make new ones"): bt.photo_learner(dls, "resnet18", pretrained=False)
    assert bt.normalization(dls) == ()


def test_a_picture_in_memory_is_turned_upright():
    from bearclf.data import Photo
    turned = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    turned.getexif()[0x0112] = 6
    upright = Photo.create(turned)
    assert upright.size == (20, 40) and upright.getpixel((0, 0)) == (255, 255, 255)


def test_a_linked_run_folder_stays_a_link(drawn, tmp_path):
    (tmp_path/"disk").mkdir()
    (tmp_path/"run").symlink_to(tmp_path/"disk")
    assert bearclf("train", drawn, "--out", tmp_path/"run", "--epochs", 1)[0] == 0
    assert (tmp_path/"run").is_symlink() and (tmp_path/"disk"/"run.json").is_file() and len(list(tmp_path.iterdir())) == 2


def test_no_layer_stays_bypassed_after_an_interruption(drawn):
    import torch
    from fastai.vision.all import Callback
    from bearclf.train import photo_learner
    class Stop(Callback):
        def after_pred(self):
            if not self.training: raise KeyboardInterrupt
    learn = photo_learner(loaded(drawn))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        with pytest.raises(KeyboardInterrupt): learn.validate(cbs=Stop())
    assert not [m for m in learn.model.modules() if "forward" in m.__dict__]
    assert not torch.equal(*learn.model.cpu()(torch.rand(2, 3, 64, 64)))


@pytest.mark.once
def test_two_processes_fill_one_cache(shared_photos, tmp_path):
    code = "import sys; from pathlib import Path; from bearclf.cache import *; c = PhotoCache(256, folder=Path(sys.argv[1])); fns = sorted(Path(sys.argv[2]).glob('*/*')); print(fill(c, fns))"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"cache"), str(shared_photos/"flowers")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=300)[0].strip() for p in both] == ["[]", "[]"]
    import numpy as np
    from bearclf.cache import PhotoCache, photo_hash
    one = PhotoCache(256, folder=Path(tmp_path/"cache"))
    fns = sorted((shared_photos/"flowers").glob("*/*"))
    assert all(np.array_equal(one.open(fn), one.make(fn)) for fn in fns[::20])
    assert len(list((tmp_path/"cache").rglob("*.npy"))) == len({photo_hash(fn) for fn in fns})
