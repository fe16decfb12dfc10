"""The command line as its user meets it: mistakes in one line, nothing written half, real photos to a real bundle."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from bearclf.cli import main


def bearclf(*args, timeout=900, **env):
    "Run `bearclf`; its exit status, stdout and stderr."
    done = subprocess.run([sys.executable, "-m", "bearclf.cli", *map(str, args)], capture_output=True, text=True, encoding="utf-8",
                          timeout=timeout, env=os.environ | dict(PYTHONIOENCODING="utf-8") | env)
    return done.returncode, done.stdout, done.stderr


def told(capsys, *args):
    "The same without a new process, for mistakes that are found before any work begins: exit status and stderr."
    with pytest.raises(SystemExit) as end: main([str(a) for a in args])
    return end.value.code, capsys.readouterr().err


def one_line(err): return len(err.strip().splitlines()) == 1 and err.startswith("bearclf: ") and "Traceback" not in err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "A small practice set without its broken files."
    folder = tmp_path_factory.mktemp("drawn")/"photos"
    assert bearclf("practice", "--out", folder, "--per-label", 12)[0] == 0
    assert bearclf("check", folder)[0] == 1
    assert bearclf("check", folder, "--fix")[0] == 0
    return folder


def test_mistakes_get_one_line_and_write_nothing(tmp_path, drawn, capsys):
    lonely = tmp_path/"lonely"
    for label, n in (("black", 1), ("teddy", 3)):
        (lonely/label).mkdir(parents=True)
        for i in range(n): Image.new("RGB", (32, 32), (i, 9, 9)).save(lonely/label/f"{i}.png")
    broken = tmp_path/"broken"
    shutil.copytree(drawn, broken)
    (broken/"teddy"/"page.jpg").write_text("<html>moved</html>")
    (tmp_path/"empty").mkdir()
    out = tmp_path/"out"
    cases = {"check the name": ["train", tmp_path/"missing", "--out", out], "no photos": ["train", tmp_path/"empty", "--out", out],
             "black (1)": ["train", lonely, "--out", out], "teddy/page.jpg": ["train", broken, "--out", out],
             "architecture": ["train", drawn, "--out", out, "--arch", "resnet81"], "other files": ["train", drawn, "--out", lonely],
             "inside the photos folder": ["train", drawn, "--out", drawn/"run"], "--seed": ["train", drawn, "--out", out, "--seed", -1],
             "not a run folder": ["export", tmp_path/"empty", "--out", out], "no bundle": ["predict", lonely, "--bundle", tmp_path/"empty"],
             "holds no photos": ["predict", tmp_path/"empty"]}
    for said, args in cases.items():
        status, err = told(capsys, *args)
        assert (status, one_line(err)) == (2, True) and said in err, (said, err)
    assert bearclf("train", tmp_path/"missing")[0] == 2
    assert not out.exists() and not list(tmp_path.glob(".*.part"))


def test_changed_or_foreign_bundles_are_refused(tmp_path):
    from bearclf.classify import bundle_folder
    def damaged(name, change):
        folder = tmp_path/name
        shutil.copytree(bundle_folder(), folder)
        change(folder)
        return bearclf("predict", tmp_path, "--bundle", folder)
    def edit(folder, **values):
        spec = json.loads((folder/"bundle.json").read_text())
        (folder/"bundle.json").write_text(json.dumps(spec | values))
    cases = {"SHA-256": lambda f: (f/"model.onnx").write_bytes((f/"model.onnx").read_bytes()[:-9]), "schema 2": lambda f: edit(f, schema=2),
             "is missing": lambda f: (f/"model.onnx").unlink(), "cannot be read": lambda f: (f/"bundle.json").write_text("{"),
             "outside the bundle": lambda f: edit(f, files={"../../secret": "1", "model.onnx": "0"}), "lacks": lambda f: (f/"bundle.json").write_text('{"schema": 1}'),
             "lacks files": lambda f: edit(f, files=["model.onnx"]), "2 labels": lambda f: edit(f, labels=["black", "teddy"]), "lacks image": lambda f: edit(f, image={"size": [224, 224], "resize": {"method": "crop"}}), "lacks thresholds": lambda f: edit(f, thresholds={"sure": "x"}), "lacks labels": lambda f: edit(f, labels=[1, 2, 3]), "schema None": lambda f: (f/"bundle.json").write_text("[1]")}
    for i, (said, change) in enumerate(cases.items()):
        status, _, err = damaged(f"b{i}", change)
        assert (status, one_line(err)) == (2, True) and said in err, (said, err)


def test_predict_answers_in_order_and_goes_on_after_a_bad_photo(tmp_path, drawn):
    bad, good = tmp_path/"not a photo.jpg", sorted((drawn/"teddy").glob("*.*"))[0]
    bad.write_text("hello")
    status, out, err = bearclf("predict", "--json", good, bad, tmp_path/"gone.png", drawn/"black")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and err == ""
    assert [set(r) for r in rows[:3]] == [{"file", "label", "verdict", "probs", "known", "ms"}, {"file", "error"}, {"file", "error"}]
    assert [r["file"] for r in rows[:3]] == [str(good), str(bad), str(tmp_path/"gone.png")]
    assert len(rows) == 3 + len(list((drawn/"black").glob("*.*")))
    assert all(abs(sum(r["probs"].values()) - 1) < 1e-3 for r in rows if "probs" in r)


def test_force_replaces_only_what_bearclf_wrote(tmp_path, drawn):
    out = tmp_path/"run"
    out.mkdir()
    for name in ("run.json", "my thesis.txt"): (out/name).write_text("{}")
    status, _, err = bearclf("train", drawn, "--out", out, "--force")
    assert status == 2 and one_line(err) and "my thesis.txt" in err
    assert {p.name for p in out.iterdir()} == {"run.json", "my thesis.txt"}


def test_a_killed_run_leaves_no_run_folder(tmp_path, drawn):
    out = tmp_path/"run"
    process = subprocess.Popen([sys.executable, "-m", "bearclf.cli", "train", str(drawn), "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".run.unfinished")): assert process.poll() is None; time.sleep(.1)
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()


def test_photos_of_any_label_from_folder_to_answer(tmp_path, drawn):
    run, bundle = tmp_path/"run", tmp_path/"bundle"
    assert bearclf("train", drawn, "--out", run, "--epochs", 1)[0] == 0
    assert {p.name for p in run.iterdir()} == {"export.pkl", "history.csv", "history.png", "run.json", "confusion.png", "top_losses.png"}
    status, _, err = bearclf("export", run, "--out", bundle)
    assert (status, err) == (0, "")
    assert {p.name for p in bundle.iterdir()} == {"model.onnx", "bundle.json", "card.md"}
    status, _, err = bearclf("train", drawn, "--out", run)
    assert status == 2 and one_line(err) and "--force" in err
    fn = sorted((drawn/"grizzly").glob("*.*"))[0]
    status, out, _ = bearclf("predict", "--bundle", bundle, "--json", fn)
    assert status == 0 and set(json.loads(out)["probs"]) == {"black", "grizzly", "teddy"}
    fn.rename(fn.with_name("renamed" + fn.suffix))
    status, _, err = bearclf("export", run, "--out", tmp_path/"late")
    assert status == 2 and "changed since" in err and not (tmp_path/"late").exists()


def test_weights_that_cannot_be_had_are_said(tmp_path, drawn):
    offline = dict(TORCH_HOME=str(tmp_path), https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    status, _, err = bearclf("train", drawn, "--out", tmp_path/"run", "--arch", "resnet18", **offline)
    assert status == 2 and one_line(err) and "cannot be downloaded" in err
    assert not (tmp_path/"run").exists()
