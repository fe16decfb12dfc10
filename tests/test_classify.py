"""The bundle and the Classifier under hard use: hostile photos and bundles, many threads, every kind of weights."""
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import corpus
from PIL import Image

from bearclf.classify import Classifier, bundle_folder, load_bundle, photo_pixels
from bearclf.core import BearclfError, PhotoError, open_photo, sha256
from bearclf.practice import draw_bear

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def clf(): return Classifier(threads=1)


@pytest.fixture(scope="module")
def photos(): return [draw_bear(label, np.random.default_rng(i)) for i, label in enumerate(["black", "grizzly", "teddy"]*2)]


def test_six_hundred_hostile_photos(tmp_path):
    "None crashes, hangs, takes much memory, or is answered where half of it is missing."
    made = corpus(600)
    photos, here = tmp_path/"photos", tmp_path/"here"
    for folder in (photos, here): folder.mkdir()
    for name, (_, data, _) in made.items(): (photos/name).write_bytes(data)
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("hostile.py")), str(photos)], capture_output=True, text=True, timeout=300, cwd=here)
    rows = {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0 and set(rows) == set(made) and len(rows) >= 500, done.stderr[-2000:]
    assert not [r for r in rows.values() if "crash" in r]
    assert max(r["seconds"] for r in rows.values()) < 2 and max(r["mb"] for r in rows.values()) < 300
    assert not [n for n, (how, _, _) in made.items() if not how and "error" in rows[n]], "a sound photo was refused"
    assert all(n in r["error"] for n, r in rows.items() if "error" in r)
    assert all(abs(sum(r["probs"]) - 1) < 1e-3 for r in rows.values() if "probs" in r)
    for name, (how, data, whole) in made.items():
        if how == "cut" and "probs" in rows[name]: assert np.array_equal(open_photo(data), open_photo(whole)), f"{name} is cut off, and was answered"
    assert not list(here.iterdir()), "a photo left something behind"


def test_what_is_no_photo_is_told(clf):
    for wrong in (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 0, 3), np.uint8), np.zeros((8, 8, 3), np.int64), None, 3.5, [1, 2], {}, b"", "", "/", Path(".")):
        with pytest.raises(BearclfError): clf.predict(wrong)


def outside(model, location):
    "The graph with its first large table in another file."
    import onnx
    graph = onnx.load(model)
    table = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    onnx.external_data_helper.set_external_data(table, location)
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    return graph.SerializeToString()


def saying(**outputs):
    "A graph that answers the same to every photo."
    arrays = {name: np.array(value, dtype=None if isinstance(value[0][0] if isinstance(value[0], list) else value[0], str) else np.float32) for name, value in outputs.items()}
    nodes = [onnx.helper.make_node("Constant", [], [name], value=onnx.helper.make_tensor(name, onnx.TensorProto.STRING, a.shape, [str(v).encode() for v in a.ravel()]) if a.dtype.kind == "U" else onnx.numpy_helper.from_array(a)) for name, a in arrays.items()]
    told = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING if a.dtype.kind == "U" else onnx.TensorProto.FLOAT, a.shape) for name, a in arrays.items()]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", 224, 224, 3])
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [image], told), ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]).SerializeToString()


def test_bundles_that_lie_are_refused(tmp_path):
    "Twenty of them; none reads a file outside itself, takes long, or leaves anything behind."
    (tmp_path/"secret").write_bytes(b"s"*10**7)
    good = json.loads((bundle_folder()/"bundle.json").read_text())
    def made(name, model=None, text=None, **values):
        folder = tmp_path/name
        shutil.copytree(bundle_folder(), folder)
        if model is not None: (folder/"model.onnx").write_bytes(model)
        spec = good | dict(files=dict(good["files"], **{"model.onnx": sha256(folder/"model.onnx")})) | values
        (folder/"bundle.json").write_bytes(text if isinstance(text, bytes) else (json.dumps(spec) if text is None else text).encode())
        return folder
    real = (bundle_folder()/"model.onnx").read_bytes()
    image = good["image"]
    lies = dict(
        out1=dict(model=outside(bundle_folder()/"model.onnx", "../secret")), out2=dict(model=outside(bundle_folder()/"model.onnx", str(tmp_path/"secret"))), out3=dict(model=outside(bundle_folder()/"model.onnx", "card.md")),
        empty=dict(model=b""), noise=dict(model=os.urandom(10**5)), half=dict(model=real[:len(real)//2]), text=dict(model=b"import os; os.system('touch canary')"), pickle=dict(model=b"cos\nsystem\n(S'touch canary'\ntR."),
        deep=dict(text="["*100_000), broken=dict(text=json.dumps(good)[:-5]), large=dict(text=" "*11_000_000), binary=dict(text=b"\xff\xfe{"), long=dict(text=json.dumps(good).replace('"sure": ', '"sure": 1' + "0"*400)),
        nan=dict(thresholds=dict(known=float("nan"), sure=.9)), infinite=dict(thresholds=dict(known=None, sure=float("inf"))), twice=dict(labels=["black", "black", "teddy"]), more=dict(labels=["a", "b", "c", "d"]),
        wide=dict(image=image | dict(size=[224, 10**9])), other=dict(image=image | dict(size=[64, 64], resize=dict(method="squish", size=[64, 64]))), method=dict(image=image | dict(resize=dict(method="__import__('os')", size=[256, 256]))),
        says5=dict(model=saying(probs=[[5., 6, 7]])), below=dict(model=saying(probs=[[-1., .5, 1.5]])), words=dict(model=saying(probs=[[".1", ".2", ".7"]])), lost=dict(model=saying(probs=[[0., 0, 1]], known=[float("nan")])), flat=dict(model=saying(probs=[[0., 0, 1]], known=[1.], heatmap=[[1., 2, 3]])),
        side=dict(image=image | dict(crop="left")), near=dict(image=image | dict(resize=image["resize"] | dict(resample="nearest"))), name=dict(files=good["files"] | {"x"*5000: "00"}),
        draft=dict(image=image | dict(draft=-5)), small=dict(image=image | dict(draft=1)), path=dict(files={"model.onnx": good["files"]["model.onnx"], "../secret": sha256(tmp_path/"secret")}), new=dict(schema=2))
    assert len(lies) >= 20
    for name, values in lies.items():
        folder = made(name, **values)
        before = sorted(p.name for p in folder.iterdir())
        with pytest.raises(BearclfError) as e: Classifier(folder)
        assert str(folder) in str(e.value) and len(str(e.value).splitlines()) == 1, (name, str(e.value))
        assert sorted(p.name for p in folder.iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*lies, "secret"]) and not Path("canary").exists()
    assert load_bundle(made("sound"))["labels"] == good["labels"]


def test_many_threads_one_classifier(clf, photos):
    "Answers do not depend on who else asks."
    alone = [clf.predict(im).probs for im in photos]
    with ThreadPoolExecutor(8) as pool: together = list(pool.map(lambda i: clf.predict(photos[i % len(photos)]).probs, range(48)))
    assert all(np.allclose(list(p.values()), list(alone[i % len(photos)].values()), atol=1e-6) for i, p in enumerate(together))
    many = list(clf.predict_many(photos*3, workers=5))
    assert all(np.allclose(list(a.probs.values()), list(alone[i % len(photos)].values()), atol=1e-6) for i, a in enumerate(many))


def test_many_photos_are_taken_as_they_are_needed(clf, photos):
    taken = []
    def endless():
        while True: taken.append(1); yield photos[0]
    assert len(list(islice(clf.predict_many(endless(), workers=2), 3))) == 3 and len(taken) < 20
    broken = list(clf.predict_many([photos[0], b"no photo", Image.new("RGB", (0, 0)), "a\0b.jpg", photos[1]], raises=False))
    assert [isinstance(a, BearclfError) for a in broken] == [False, True, True, True, False]
    def ends_badly():
        yield from photos[:2]
        raise ValueError("mine")
    got, many = [], clf.predict_many(ends_badly())
    with pytest.raises(ValueError, match="mine"):
        for answer in many: got.append(answer)
    assert len(got) == 2
    before, one = threading.active_count(), clf.predict_many(photos*20, workers=3)
    next(one)
    assert threading.active_count() > before
    one.close()
    assert threading.active_count() == before
    slow = [photos[0].resize((4000, 4000)), *photos[1:]]
    for many in (clf, Classifier(threads=2)): assert [a.label for a in many.predict_many(slow)] == [clf.predict(im).label for im in slow]


def test_panoramas_for_a_model_that_pads(clf):
    how = dict(size=[64, 64], resize=dict(method="pad", size=[64, 64]))
    assert photo_pixels(Image.new("RGB", (3000, 300), "white"), how)[32].min() == 255
    with pytest.raises(PhotoError, match="too long"): photo_pixels(Image.new("RGB", (20_000, 200)), how)


def test_a_photo_is_one_photo_however_it_comes(clf, photos, tmp_path):
    "Path, text, bytes, open file; and, opened whole, as PIL image and array."
    fn = tmp_path/"bear.jpg"
    photos[0].resize((1400, 1100)).save(fn, quality=92)
    files = [clf.predict(src) for src in (fn, str(fn), fn.read_bytes(), bytearray(fn.read_bytes()), BytesIO(fn.read_bytes()))]
    whole = [clf.predict(src) for src in (Image.open(fn), np.asarray(Image.open(fn)))]
    assert all(np.allclose(list(a.probs.values()), list(files[0].probs.values()), atol=1e-6) for a in files)
    assert all(np.allclose(list(a.probs.values()), list(files[0].probs.values()), atol=.05) for a in whole)
    assert photo_pixels(fn, clf.spec["image"]).shape == (224, 224, 3) and files[0].pixels.shape == (224, 224, 3)


def test_the_heat_map_is_of_the_answer(clf, photos):
    "One map a label, whose mean ranks the labels as the answer does."
    out = clf.run(np.stack([photo_pixels(im, clf.spec["image"]) for im in photos]))
    assert out["heatmap"].shape == (len(photos), 7, 7, 3)
    centred = lambda rows: rows - rows.mean(1, keepdims=True)
    assert np.allclose(centred(np.log(out["probs"])), centred(out["heatmap"].mean((1, 2))/clf.metrics["temperature"]), atol=1e-3)
    assert clf.where(photos[0]).size == (224, 224)


def test_labels_cannot_become_code(clf):
    from bearclf.classify import Answer
    shown = Answer("<b>.jpg", "<script>x</script>", "confident", {"<script>x</script>": .9, "b": .1}, None, 1.)._repr_html_()
    assert "<script>" not in shown
