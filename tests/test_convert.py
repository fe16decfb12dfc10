"""Exports of others: read without running them, old ones and hostile ones, and made bundles that answer the same."""
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath, WindowsPath

import pytest
from test_cli import bearclf, one_line, told

from bearclf.core import BearclfError

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def shared_exports(shared_photos): return Path(shared_photos).parent/"exports"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")/"photos"
    assert bearclf("practice", "--out", folder, "--per-label", 8)[0] == 0
    assert bearclf("check", folder, "--fix")[0] == 0
    return folder


def which_bear(fn): return Path(fn).parent.name


def learner_on(photos, arch=None, get_y=which_bear, item_tfms=None, batch_tfms=None, **kwargs):
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Resize, aug_transforms, error_rate, get_image_files, vision_learner
    from torchvision.models import squeezenet1_1
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=get_y, item_tfms=item_tfms or Resize(96), batch_tfms=batch_tfms or aug_transforms())
    return vision_learner(block.dataloaders(photos, bs=8, num_workers=0), arch or squeezenet1_1, metrics=error_rate, pretrained=False, **kwargs)


@pytest.fixture(scope="module")
def plain(drawn, tmp_path_factory):
    "An untrained learner, its export, and its answers."
    learn = learner_on(drawn)
    file = tmp_path_factory.mktemp("export")/"export.pkl"
    learn.export(file)
    return learn, file


def answers(learn, fns):
    with learn.no_bar(), learn.no_logging(): return learn.get_preds(dl=learn.dls.test_dl(fns, bs=8, num_workers=0))[0]


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "densenet121", "vgg11_bn", "timm resnet10t", "timm tf_efficientnet_lite0", "xresnet"])
def test_answers_as_the_learner_that_was_exported(drawn, tmp_path, arch):
    import torchvision
    from fastai.vision import models
    from bearclf.convert import read_export
    import bearclf.train  # noqa: F401  teaches fastai where to cut MobileNetV2
    net = arch.split()[1] if arch.startswith("timm") else models.xresnet.xresnet18 if arch == "xresnet" else getattr(torchvision.models, arch)
    learn = learner_on(drawn, net)
    learn.export(tmp_path/"export.pkl")
    if arch == "xresnet":
        with pytest.raises(BearclfError, match="cannot be converted"): read_export(tmp_path/"export.pkl")
        return
    found = read_export(tmp_path/"export.pkl")
    fns = sorted(drawn.glob("*/*.*"))[:12]
    assert found.arch == arch.split()[-1] and found.labels == list(learn.dls.vocab) and found.would_run == []
    assert float((answers(found.learner(drawn), fns) - answers(learn, fns)).abs().max()) < 1e-4


def silent_changes():
    "Learners that `vision_learner` does not make like this; each changes the answers."
    from fastai.vision.all import Callback, CropPad, CrossEntropyLossFlat, Normalize, RandomResizedCrop, Resize, nn
    class Grey(Callback):
        def before_batch(self): self.learn.xb = (self.x.mean(1, keepdim=True).expand_as(self.x),)
    def transforms(**kwargs): return lambda photos: learner_on(photos, **kwargs)
    def after(change):
        def made(photos):
            learn = learner_on(photos)
            change(learn)
            return learn
        return made
    def other_activation(learn):
        learn.loss_func = CrossEntropyLossFlat()
        learn.loss_func.activation = doubled
    def padded(learn): next(m for m in learn.model[0].modules() if isinstance(m, nn.Conv2d) and m.padding != (0, 0)).padding_mode = "circular"
    return dict(
        layer_added=after(lambda learn: learn.model[0].append(nn.Sigmoid())), layer_gone=after(lambda learn: learn.model[0][0]._modules.pop("1")),
        other_layer=after(lambda learn: learn.model[0][0].__setitem__(1, nn.Sequential(nn.Sigmoid()))), padding=after(padded), head_pool=after(lambda learn: setattr(learn.model[1][0], "mp", nn.AdaptiveAvgPool2d(1))),
        body_hook=after(lambda learn: learn.model[0].register_forward_hook(doubled)), head_hook=after(lambda learn: learn.model[1].register_forward_hook(doubled)), forward=after(lambda learn: setattr(learn.model, "forward", upside)),
        callback=after(lambda learn: learn.add_cb(Grey())), activation=after(other_activation), normalised_twice=after(lambda learn: [learn.dls.add_tfms([Normalize.from_stats([m]*3, [.2]*3)], "after_batch") for m in (.4, .6)]),
        nearest=transforms(item_tfms=Resize(96, resamples=(0, 0))), crop_after=transforms(item_tfms=[Resize(96), CropPad(64)]), random_nearest=transforms(item_tfms=RandomResizedCrop(96, resamples=(0, 0))))


def doubled(*args): return 2*args[-1]
def upside(x): return x.mean((2, 3))


@pytest.mark.parametrize("name", ["layer_added", "layer_gone", "other_layer", "padding", "head_pool", "body_hook", "head_hook", "forward", "callback", "activation", "normalised_twice", "nearest", "crop_after", "random_nearest"])
def test_what_would_answer_otherwise_is_refused(drawn, tmp_path, name):
    from bearclf.convert import read_export
    silent_changes()[name](drawn).export(tmp_path/"export.pkl")
    with pytest.raises(BearclfError, match="cannot be converted"): read_export(tmp_path/"export.pkl")


@pytest.mark.parametrize("how", ["wide crop", "wide squish", "wide pad", "wide random", "numpy labels", "normalised", "linear head"])
def test_what_answers_the_same_is_taken(drawn, tmp_path, how):
    import numpy as np
    from fastai.vision.all import Normalize, RandomResizedCrop, Resize
    from bearclf.classify import resize
    from bearclf.convert import read_export
    from bearclf.core import open_photo
    from bearclf.export import image_words
    tfm = RandomResizedCrop((64, 96)) if how == "wide random" else Resize((64, 96), method=how.split()[1], pad_mode="zeros") if how.startswith("wide") else Resize(96)
    more = dict(get_y=lambda fn: np.str_(which_bear(fn))) if how == "numpy labels" else dict(batch_tfms=Normalize.from_stats([.4]*3, [.2]*3)) if how == "normalised" else dict(lin_ftrs=[], concat_pool=False, bn_final=True) if how == "linear head" else {}
    learn = learner_on(drawn, item_tfms=tfm, **more)
    learn.export(tmp_path/"export.pkl")
    found = read_export(tmp_path/"export.pkl")
    fns = sorted(drawn.glob("*/*.*"))[:12]
    assert found.labels == [str(v) for v in learn.dls.vocab]
    assert float((answers(found.on(fns, lambda fn: found.labels[len(fn.name) % 2]), fns) - answers(learn, fns)).abs().max()) < 1e-4
    assert resize(open_photo(fns[0]), image_words(found.on(fns, lambda fn: found.labels[0]))).shape[:2] == ((64, 96) if how.startswith("wide") else (96, 96))


class Named:
    "Something that pickles as a call of `f`."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


def rebuilt(file, to, change):
    "A copy of an export with other instructions."
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist(): new.writestr(name, change(old.read(name)) if name.endswith("/data.pkl") else old.read(name))
    return to


def test_what_broke_load_learner_does_not_matter(plain, drawn, tmp_path):
    from bearclf.convert import read_export
    learn, file = plain
    learn.there = Named(WindowsPath, "C:/bears")
    learn.export(tmp_path/"windows.pkl")
    del learn.there
    renamed = rebuilt(file, tmp_path/"renamed.pkl", lambda code: code.replace(b"fastcore.transform\nPipeline", b"fastcore.no_more_xx\nPipeline"[:27]))
    fns = sorted(drawn.glob("*/*.*"))[:12]
    for changed in (tmp_path/"windows.pkl", renamed): assert float((answers(read_export(changed).learner(drawn), fns) - answers(learn, fns)).abs().max()) < 1e-4


def canary_calls(canary):
    "Ways in which a pickle may try to make the file `canary`."
    touch = f"touch {canary}"
    return {
        "os.system": Named(os.system, touch), "eval": Named(eval, f"__import__('os').system('{touch}')"), "exec": Named(exec, f"open('{canary}', 'w')"),
        "open": Named(open, str(canary), "w"), "Popen": Named(subprocess.Popen, ["touch", str(canary)]), "run": Named(subprocess.run, ["touch", str(canary)]),
        "check_output": Named(subprocess.check_output, ["touch", str(canary)]), "attribute": Named(os.close, Named(os.open, str(canary), os.O_CREAT)), "write": Named(Path.write_text, Path(canary), "x"),
        "touch": Named(Path.touch, Path(canary)), "popen": Named(os.popen, touch), "mkdir": Named(os.mkdir, str(canary)), "nested": Named(list, [Named(os.system, touch)]),
        "pickle in pickle": Named(pickle.loads, pickle.dumps(Named(os.system, touch))), "map": Named(list, Named(map, os.system, [touch])), "zip": Named(zipfile.ZipFile, str(canary), "w"),
        "torch.load": Named(__import__("torch").save, 1, str(canary)), "exec in numpy": Named(__import__("numpy").save, str(canary), 1), "makedirs": Named(os.makedirs, str(canary)),
        "rename": Named(os.symlink, "/", str(canary)), "compile": Named(exec, Named(compile, f"open('{canary}', 'w')", "x", "exec")), "breakpoint": Named(os.execv, "/bin/touch", ["touch", str(canary)])}


@pytest.mark.parametrize("where", ["inside", "alone", "as state"])
def test_nothing_in_a_hostile_export_runs(plain, tmp_path, where):
    "More than sixty ways; the file that each of them would make is never made."
    import torch
    from bearclf.convert import read_export
    learn, _ = plain
    canary, file = tmp_path/"canary", tmp_path/"export.pkl"
    for name, call in canary_calls(canary).items():
        if where == "inside": learn.surprise = call; learn.export(file); del learn.surprise
        else: torch.save(call if where == "alone" else {"model": call}, file)
        if where == "inside": assert read_export(file).labels == list(learn.dls.vocab), name
        else:
            with pytest.raises(BearclfError): read_export(file)
        assert not os.path.lexists(canary), name


def test_a_harmful_call_is_told(plain, tmp_path):
    learn, _ = plain
    learn.surprise = Named(os.system, "true")
    learn.export(tmp_path/"export.pkl")
    del learn.surprise
    status, out, err = bearclf("convert", tmp_path/"export.pkl", "--out", tmp_path/"bundle")
    assert status == 0 and "posix.system" in out + err and "Traceback" not in err, (out, err)


def test_damaged_exports_are_refused_quickly(plain, tmp_path):
    "Five hundred damaged files: each is read as it was or refused with a sentence, within 2 seconds and in bounded memory."
    from bearclf.convert import read_export
    learn, file = plain
    rng, whole = random.Random(0), file.read_bytes()
    with zipfile.ZipFile(file) as z: code = z.read(next(n for n in z.namelist() if n.endswith("/data.pkl")))
    def flipped(data): data = bytearray(data); [data.__setitem__(rng.randrange(len(data)), rng.randrange(256)) for _ in range(rng.choice((1, 3, 30)))]; return bytes(data)
    before, refused, bad = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, tmp_path/"bad.pkl"
    for i in range(500):
        kind = i % 5
        if kind < 3: rebuilt(file, bad, flipped)
        elif kind == 3: bad.write_bytes(whole[:rng.randrange(len(whole))])
        else: bad.write_bytes(flipped(whole))
        start = time.monotonic()
        try: assert read_export(bad).net is not None
        except BearclfError as e: refused += 1; assert "bad.pkl" in str(e) and "\n" not in str(e)
        assert time.monotonic() - start < 2, i
    assert refused > 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def nested(learn):
    "Forty layers, each of which holds the next one twice."
    from fastai.vision.all import nn
    layer = nn.ReLU()
    for _ in range(40): layer = nn.Sequential(layer, layer)
    learn.model[1].append(layer)


def test_requests_for_room_are_refused(plain, drawn, tmp_path):
    import torch
    from bearclf.convert import read_export
    _, file = plain
    long_put, bomb = b"\x80\x02]r" + (2**31 - 1).to_bytes(4, "little") + b".", b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    deep = b"\x80\x02" + b"]"*100_000 + b"a"*99_999 + b"."
    doubling = b"\x80\x02}K\x01" + b"2\x86"*60 + b"K\x01s."  # a key of tuples of tuples, 60 deep: forever to hash
    names = b"\x80\x02" + b"".join(b"cm\nn%d\n0" % i for i in range(100_000)) + b"N."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for code in (long_put, bomb, deep, doubling, names, b"\x80\x02" + b"N0"*2_000_000 + b"N."):
        start = time.monotonic()
        with pytest.raises(BearclfError) as refused: read_export(rebuilt(file, tmp_path/"bad.pkl", lambda _: code))
        assert time.monotonic() - start < 2 and len(str(refused.value)) < 500
    for change in (lambda learn: setattr(learn.model[1][4], "weight", torch.nn.Parameter(torch.zeros(1).expand(40_000, 30_000))), lambda learn: setattr(learn.dls.valid.after_item.fs[0], "size", (4096, 4096)), nested):
        learn = learner_on(drawn)
        change(learn)
        learn.export(tmp_path/"large.pkl")
        start = time.monotonic()
        with pytest.raises(BearclfError): read_export(tmp_path/"large.pkl")
        assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    whole = file.read_bytes()
    (tmp_path/"directory.pkl").write_bytes(whole[:-3000] + bytes(2900) + whole[-100:])
    with pytest.raises(BearclfError, match="damaged"): read_export(tmp_path/"directory.pkl")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path/"packed.pkl", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist(): new.writestr(name, old.read(name))
    with pytest.raises(BearclfError, match="compressed"): read_export(tmp_path/"packed.pkl")


def test_what_cannot_be_understood_is_told_in_one_line(plain, drawn, tmp_path, capsys):
    import torch
    from fastai.vision.all import Learner, nn
    learn, _ = plain
    def says(said, file, *more):
        status, err = told(capsys, "convert", file, "--out", tmp_path/"bundle", *more)
        assert status == 2 and one_line(err) and said in err, err
    (tmp_path/"empty.pkl").write_bytes(b"")
    (tmp_path/"text.pkl").write_text("hello")
    (tmp_path/"page.pkl").write_text("\n<!doctype html><title>Sign in</title>")
    (tmp_path/"lfs.pkl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    torch.save(learn.model.state_dict(), tmp_path/"weights.pkl")
    torch.save(learn.model, tmp_path/"model.pkl")
    torch.save(learn.model, tmp_path/"old.pkl", _use_new_zipfile_serialization=False)
    other = Learner(learn.dls, nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Linear(4, 3))), loss_func=learn.loss_func)
    other.export(tmp_path/"other.pkl")
    for said, name in {"empty": "empty", "no export": "text", "web page": "page", "git lfs pull": "lfs", "weights alone": "weights", "no Learner": "model", "before 1.6": "old", "none that bearclf can build": "other", "check the name": "gone"}.items():
        says(said, tmp_path/f"{name}.pkl")
    (tmp_path/"bundle").mkdir()
    (tmp_path/"bundle"/"thesis.txt").write_text("mine")
    says("other files", plain[1])
    (tmp_path/"bundle"/"thesis.txt").unlink()
    says("has the label polar", plain[1], "--photos", relabelled(drawn, tmp_path/"photos"))


def relabelled(drawn, to):
    import shutil
    shutil.copytree(drawn, to)
    (to/"teddy").rename(to/"polar")
    return to


def test_real_exports_of_old_versions(shared_exports, shared_photos, tmp_path):
    "fastai 2.5.3 and 2.7.10, which today's load_learner cannot read."
    from bearclf.classify import Classifier
    for i, file in enumerate(sorted(shared_exports.glob("bears_*.pkl"))):
        status, out, err = bearclf("convert", file, "--out", tmp_path/f"b{i}")
        assert status == 0, err
        clf = Classifier(tmp_path/f"b{i}")
        fns = sorted((shared_photos/"bears").glob("*/*.*"))[::4]
        right = sum(clf.predict(fn).label == fn.parent.name for fn in fns)
        assert right >= .9*len(fns), (file, right, len(fns))
        spec = json.loads((tmp_path/f"b{i}"/"bundle.json").read_text())
        assert spec["thresholds"] == {"known": None, "sure": .9} and spec["metrics"]["n"] == 0 and spec["metrics"]["parity"]["largest_difference"] <= .01
    for name, said in dict(git_lfs_pointer="git lfs pull", html_page_saved_as_export="web page").items():
        status, _, err = bearclf("convert", shared_exports/f"{name}.pkl", "--out", tmp_path/"none")
        assert status == 2 and one_line(err) and said in err, err


def test_with_photos_the_bundle_is_measured(shared_exports, shared_photos, tmp_path):
    file = sorted(shared_exports.glob("bears_*.pkl"))[0]
    status, out, err = bearclf("convert", file, "--out", tmp_path/"bundle", "--photos", shared_photos/"bears")
    assert status == 0, err
    spec = json.loads((tmp_path/"bundle"/"bundle.json").read_text())
    assert spec["thresholds"]["known"] and spec["metrics"]["n"] > 150 and spec["metrics"]["accuracy"] >= .9
    assert spec["data"]["counts"] == {} and "Unknown" in (tmp_path/"bundle"/"card.md").read_text()
