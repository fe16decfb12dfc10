"""Real photos, in `$BEARCLF_PHOTOS`'s place or `../shared/photos`: skipped, with the reason, where there are none."""
import json
import shutil
from collections import Counter

import pytest
from test_cli import bearclf

from bearclf.classify import Classifier
from bearclf.core import sha256


def rows(*args): return [json.loads(line) for line in bearclf("predict", "--json", *args)[1].splitlines()]


def part(folder, to, one_in):
    "A copy of one photo in so many, chosen by content: enough for a test, and so many times as quick."
    for fn in folder.glob("*/*"):
        if int(sha256(fn), 16) % one_in: continue
        (to/fn.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(fn, to/fn.parent.name)
    return to


@pytest.fixture(scope="module")
def half_trained(shared_photos, tmp_path_factory):
    "A run on half of the bears, and its bundle."
    folder = tmp_path_factory.mktemp("half")
    part(shared_photos/"bears", folder/"bears", 2)
    for command in (["train", folder/"bears", "--out", folder/"run", "--epochs", 1], ["export", folder/"run", "--out", folder/"bundle"]):
        status, _, err = bearclf(*command)
        assert status == 0, err
    return folder/"run", folder/"bundle"


def test_train_export_predict_on_real_bears(half_trained):
    run, bundle = half_trained
    photos, record = run.parent/"bears", json.loads((run/"run.json").read_text())
    assert record["metrics"]["accuracy"] >= .95, record["metrics"]
    spec = json.loads((bundle/"bundle.json").read_text())
    assert spec["metrics"]["parity"]["largest_difference"] <= .01 and spec["metrics"]["parity"]["n"] >= 180
    held_out = [photos/fn for fn in record["split"]["valid"]]
    answers = rows("--bundle", bundle, *held_out)
    right = sum(a["label"] == fn.parent.name for a, fn in zip(answers, held_out))
    assert len(answers) == len(held_out) and right == spec["metrics"]["right"] >= .95*len(held_out)


@pytest.mark.once
def test_other_weights_answer_as_the_learner(half_trained, tmp_path):
    "32 bits to a thousandth; 8 bits with the same labels for nearly all."
    from bearclf.export import export_run
    run, bundle = half_trained
    for weights, most in (("float32", 1e-3), ("int8", .2)):
        m = json.loads((export_run(run, tmp_path/weights, weights=weights)/"bundle.json").read_text())["metrics"]
        assert m["parity"].get("usual_difference", m["parity"]["largest_difference"]) <= most and m["parity"]["same"] >= .98*m["parity"]["n"] and abs(m["right"] - m["learner_right"]) <= 1
    sizes = {folder.name: (folder/"model.onnx").stat().st_size/1e6 for folder in (tmp_path/"float32", bundle, tmp_path/"int8")}
    assert sizes["float32"] > 13 > 9 > sizes["bundle"] > 6 > sizes["int8"], sizes


def test_the_bundled_model_on_bears_and_on_other_things(shared_photos):
    "Against what its card says, and against all bears."
    metrics = Classifier().metrics
    assert metrics["verdicts"].get("out_of_domain", 0) <= .02*metrics["n"] and metrics["error_after"] <= .03 and metrics["parity"]["n"] >= 200 and metrics["parity"]["largest_difference"] <= .01
    bears = rows(shared_photos/"bears")
    assert sum(a["label"] in a["file"].split("/") for a in bears) >= .97*len(bears)
    assert Counter(a["verdict"] for a in bears)["out_of_domain"] <= .02*len(bears)
    for name, most in (("not_bears", .01), ("near_misses", .05)):
        others = rows(shared_photos/name)
        assert sum(a["verdict"] != "out_of_domain" for a in others) <= most*len(others)


def test_photos_straight_from_the_web(shared_photos):
    answers = rows(shared_photos/"as_downloaded")
    assert len(answers) == len([p for p in (shared_photos/"as_downloaded").rglob("*") if p.is_file()])
    assert not [a for a in answers if "error" in a]


@pytest.mark.once
def test_other_labels_and_a_torchvision_network_work_as_well(shared_photos, tmp_path):
    home = dict(TORCH_HOME=str(shared_photos.parent/"weights"))
    part(shared_photos/"flowers", tmp_path/"flowers", 2)
    status, out, err = bearclf("train", tmp_path/"flowers", "--out", tmp_path/"run", "--epochs", 1, "--arch", "mobilenet_v2", **home)
    assert status == 0, err
    status, out, err = bearclf("export", tmp_path/"run", "--out", tmp_path/"bundle", **home)
    assert status == 0, err
    spec = json.loads((tmp_path/"bundle"/"bundle.json").read_text())
    assert spec["labels"] == ["daisy", "dandelion", "rose", "sunflower", "tulip"] and spec["metrics"]["accuracy"] >= .6
