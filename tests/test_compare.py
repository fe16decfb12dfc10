"""Training again after cleaning: do the same photos validate, and does nothing of them leak into training?"""
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bearclf.core import BearclfError
from bearclf.moves import DELETE, apply_marks, undo

FAST = dict(epochs=1, size=64, bs=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Drawn photos, a run on them, and after it a cleaning: one validation photo set aside, one relabelled, a training photo relabelled; and new photos, one of them like a validation photo."
    from bearclf.practice import draw_bear
    from bearclf.train import read_run, train
    at = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    for label in ("black", "teddy"):
        (at/"photos"/label).mkdir(parents=True)
        for i in range(15): draw_bear(label, rng).save(at/"photos"/label/f"{i}.png")
    train(at/"photos", at/"before", **FAST)
    valid = read_run(at/"before")["split"]["valid"]
    train_side = next(f"{label}/{i}.png" for label in ("black", "teddy") for i in range(15) if f"{label}/{i}.png" not in valid)
    other = lambda file: "teddy" if file.startswith("black") else "black"
    apply_marks(at/"photos", {valid[0]: DELETE, valid[1]: other(valid[1]), train_side: other(train_side)})
    label = valid[2].split("/")[0]
    with Image.open(at/"photos"/valid[2]) as im: im.convert("RGB").resize((im.width*3//4, im.height*3//4)).save(at/"photos"/label/"again.jpg", quality=80)
    draw_bear(label, rng).save(at/"photos"/label/"new.png")
    return at, valid, other


def test_the_same_photos_validate_and_nothing_leaks(trained):
    from bearclf.compare import compare, held_out, retrain
    from bearclf.train import read_run
    at, valid, other = trained
    places = held_out(at/"before")
    assert places[valid[0]] is None and places[valid[1]].startswith(other(valid[1])) and all(places[v] == v for v in valid[2:])
    learn = retrain(at/"before", at/"after")
    run, label = read_run(at/"after"), valid[2].split("/")[0]
    assert run["split"]["valid"] == sorted(p for p in places.values() if p) and run["split"]["kind"] == "kept"
    assert run["arguments"]["epochs"] == FAST["epochs"] and run["arguments"]["size"] == FAST["size"]
    assert run["split"]["left_out"] == [f"{label}/again.jpg"]
    names = {fn.relative_to(at/"photos").as_posix() for fn in learn.dls.train_ds.items}
    assert f"{label}/new.png" in names and not names & {*run["split"]["valid"], f"{label}/again.jpg"}

    table = compare(at/"before", at/"after")
    assert table.n.tolist() == [len(valid) - 2, len(valid) - 1]
    assert (table.after*table.n).round().astype(int).tolist() == ((table.before*table.n).round().astype(int) + table.mended - table.spoiled).tolist()
    assert round(table.after[1]*table.n[1]) == run["metrics"]["right"]  # as the run itself says
    assert len(learn.dls.train_ds) == run["split"]["train"]


def test_mistakes_are_sentences(trained, tmp_path):
    from bearclf.compare import compare, held_out, retrain
    from bearclf.train import train
    at, valid, other = trained
    with pytest.raises(BearclfError, match="not a run folder"): retrain(tmp_path/"nowhere", tmp_path/"out")
    with pytest.raises(BearclfError, match="no longer in"): held_out(at/"before", tmp_path/"photos")
    train(at/"photos", tmp_path/"other", seed=1, **FAST)
    with pytest.raises(BearclfError, match="may have learned from"): compare(at/"before", tmp_path/"other")
    with pytest.raises(BearclfError, match="already there"): retrain(at/"before", tmp_path/"other")
    shutil.copytree(at/"before", tmp_path/"old")
    run = json.loads((tmp_path/"old"/"run.json").read_text())
    (tmp_path/"old"/"run.json").write_text(json.dumps(run | dict(arguments={})))
    with pytest.raises(BearclfError, match="does not say how"): retrain(tmp_path/"old", tmp_path/"out")
    (tmp_path/"old"/"run.json").write_text(json.dumps(run | dict(split=dict(valid=["black/none.png"]))))
    with pytest.raises(BearclfError, match="is left"): retrain(tmp_path/"old", tmp_path/"out")


def test_what_was_undone_counts_as_untouched(trained, tmp_path):
    from bearclf.compare import held_out
    at, valid, other = trained
    shutil.copytree(at/"photos", tmp_path/"photos")
    undo(tmp_path/"photos")
    assert held_out(at/"before", tmp_path/"photos") == {v: v for v in valid}


@pytest.fixture
def moved(trained, tmp_path):
    "The set as it was cleaned, in a place of its own, with a run that was trained again there."
    from bearclf.compare import retrain
    at, valid, other = trained
    shutil.copytree(at/"photos", tmp_path/"photos")
    retrain(at/"before", tmp_path/"after", tmp_path/"photos")
    return at/"before", tmp_path/"after", tmp_path/"photos", valid, other


def test_cleaning_may_go_on(moved):
    from bearclf.compare import compare
    before, after, photos, valid, other = moved
    apply_marks(photos, {valid[2]: other(valid[2]), valid[3]: DELETE})
    assert compare(before, after, photos).n.tolist() == [len(valid) - 4, len(valid) - 2]
    undo(photos, everything=True)  # what was set aside when `after` was trained validated only one of the two
    assert compare(before, after, photos).n.tolist() == [len(valid) - 1]*2


def test_runs_that_are_no_pair(moved, tmp_path):
    from bearclf.compare import compare, retrain
    from bearclf.train import read_run
    before, after, photos, valid, other = moved
    with pytest.raises(BearclfError, match="say with `photos`"): compare(before, after)
    with pytest.raises(BearclfError, match="name the earlier run first"):
        (after/"run.json").write_text(json.dumps(read_run(after) | dict(created="2020-01-01T00:00:00+00:00")))
        compare(before, after, photos)
    held = read_run(before)["split"]["valid"]
    apply_marks(photos, dict.fromkeys(held[2:4], "panda"))
    with pytest.raises(BearclfError, match="no training photos of panda"): retrain(before, tmp_path/"panda", photos)
    own = [fn.relative_to(photos).as_posix() for fn in sorted(photos.glob("[a-z]*/*.png"))]
    apply_marks(photos, dict.fromkeys([name for name in own if name not in held and not name.startswith("panda")][:2], "panda"))
    retrain(before, tmp_path/"panda", photos)
    with pytest.raises(BearclfError, match="knows the label panda"): compare(before, tmp_path/"panda", photos)


def test_cleaning_while_a_model_is_trained_is_followed(trained, tmp_path, monkeypatch):
    import bearclf.train
    from bearclf.compare import held_out
    at, valid, other = trained
    shutil.copytree(at/"photos", tmp_path/"photos")
    write = bearclf.train._write_run
    def cleaned_meanwhile(learn, record, rows, part):
        write(learn, record | dict(created="2099-01-01T00:00:00+00:00"), rows, part)  # as if the training had taken long
        file = record["split"]["valid"][0]
        apply_marks(tmp_path/"photos", {file: other(file)})
    monkeypatch.setattr(bearclf.train, "_write_run", cleaned_meanwhile)
    bearclf.train.train(tmp_path/"photos", tmp_path/"run", **FAST)
    file, place = next(iter(held_out(tmp_path/"run").items()))
    assert place.startswith(other(file) + "/")
