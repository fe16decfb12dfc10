"""Real photos, in `$BEARCLF_PHOTOS`'s place or `../shared/photos`: skipped, with the reason, where there are none."""
import json
import shutil
from collections import Counter

from test_cli import bearclf

from bearclf.core import sha256


def rows(*args): return [json.loads(line) for line in bearclf("predict", "--json", *args)[1].splitlines()]


def part(folder, to, one_in):
    "A copy of one photo in so many, chosen by content: enough for a test, and so many times as quick."
    for fn in folder.glob("*/*"):
        if int(sha256(fn), 16) % one_in: continue
        (to/fn.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(fn, to/fn.parent.name)
    return to


def test_train_export_predict_on_real_bears(shared_photos, tmp_path):
    run, bundle, photos = tmp_path/"run", tmp_path/"bundle", part(shared_photos/"bears", tmp_path/"bears", 2)
    status, _, err = bearclf("train", photos, "--out", run, "--epochs", 1)
    assert status == 0, err
    record = json.loads((run/"run.json").read_text())
    assert record["metrics"]["accuracy"] >= .95, record["metrics"]
    status, _, err = bearclf("export", run, "--out", bundle)
    assert status == 0, err
    spec = json.loads((bundle/"bundle.json").read_text())
    assert spec["metrics"]["parity"]["largest_difference"] <= .01 and spec["metrics"]["parity"]["n"] >= 180
    held_out = [photos/fn for fn in record["split"]["valid"]]
    answers = rows("--bundle", bundle, *held_out)
    right = sum(a["label"] == fn.parent.name for a, fn in zip(answers, held_out))
    assert len(answers) == len(held_out) and right == spec["metrics"]["right"] >= .95*len(held_out)


def test_the_bundled_model_on_bears_and_on_other_things(shared_photos):
    bears = rows(shared_photos/"bears")
    assert sum(a["label"] in a["file"].split("/") for a in bears) >= .95*len(bears)
    assert Counter(a["verdict"] for a in bears)["out_of_domain"] <= .05*len(bears)
    others = rows(shared_photos/"not_bears")
    assert Counter(a["verdict"] for a in others)["out_of_domain"] >= .95*len(others)


def test_photos_straight_from_the_web(shared_photos):
    answers = rows(shared_photos/"as_downloaded")
    assert len(answers) == len([p for p in (shared_photos/"as_downloaded").rglob("*") if p.is_file()])
    assert not [a for a in answers if "error" in a]


def test_other_labels_and_a_torchvision_network_work_as_well(shared_photos, tmp_path):
    home = dict(TORCH_HOME=str(shared_photos.parent/"weights"))
    part(shared_photos/"flowers", tmp_path/"flowers", 2)
    status, out, err = bearclf("train", tmp_path/"flowers", "--out", tmp_path/"run", "--epochs", 1, "--arch", "mobilenet_v2", **home)
    assert status == 0, err
    status, out, err = bearclf("export", tmp_path/"run", "--out", tmp_path/"bundle", **home)
    assert status == 0, err
    spec = json.loads((tmp_path/"bundle"/"bundle.json").read_text())
    assert spec["labels"] == ["daisy", "dandelion", "rose", "sunflower", "tulip"] and spec["metrics"]["accuracy"] >= .6
