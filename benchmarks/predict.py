"""How long an answer takes, from a JPEG file on: fastai's own ways, plain PyTorch, and a bundle.

    python benchmarks/predict.py PHOTOS [--rounds 5]

PHOTOS is a photos folder. Two learners are made as in the course (plain `ImageBlock`, `RandomResizedCrop`, `vision_learner`): one with the course's resnet18 (from random weights where its checkpoint cannot be had, which takes the same
time), one with bearclf's own backbone. A third, trained by bearclf, becomes two bundles: with weights as they come by default, and with 8 bits. Then they are asked, in turns:
- one photo after the other (1, 3 and 12 megapixels, and the photos as they are), each way in a process of its own, as somebody has it who has only that way, and all photos in its turn: median and 95th percentile;
- many photos: `get_preds` on a `test_dl` against `Classifier.predict_many`, and how near the latter is to its limit: opening alone plus graph alone;
- from nothing to the first answer, in a process of its own: seconds and peak memory.
"""
import argparse, contextlib, io, multiprocessing, os, statistics, subprocess, sys, tempfile, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

warnings.simplefilter("ignore")
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("photos", type=Path)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--sizes", nargs="+", default=["as they are", 1, 3, 12], type=lambda word: word if word == "as they are" else int(word), help="megapixels")

FIRST = dict(
    fastai="from fastai.vision.all import load_learner; learn = load_learner({model!r}); learn.predict({photo!r})",
    bearclf="from bearclf.classify import Classifier; Classifier({model!r}).predict({photo!r})")


def first_answer(way, model, photo):
    "Seconds and MB from the start of Python to the first answer."
    code = f"import time, warnings; warnings.simplefilter('ignore'); start = time.perf_counter()\n{FIRST[way].format(model=str(model), photo=str(photo))}\nprint(time.perf_counter() - start, next(int(line.split()[1])/1e3 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    return tuple(map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-2:]))


def sized(fns, folder, megapixels):
    "The photos as JPEGs of so many megapixels."
    from PIL import Image
    from bearclf.core import open_photo
    out = []
    for fn in fns:
        im = open_photo(fn)
        scale = (megapixels*1e6/im.width/im.height)**.5
        out.append(folder/f"{megapixels}-{fn.stem}.jpg")
        im.resize((round(im.width*scale), round(im.height*scale)), Image.Resampling.BICUBIC).save(out[-1], quality=90)
    return out


def made(photos, folder):
    "The course's learner and the same with our backbone, each with its `export.pkl` in `folder`, and our bundles by name."
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, RandomResizedCrop, RandomSplitter, aug_transforms, error_rate, parent_label, resnet18, vision_learner
    from bearclf.export import export_bundle
    from bearclf.folder import labelled_photos
    from bearclf.train import efficientnet_lite0, train
    block = DataBlock((ImageBlock, CategoryBlock), get_items=labelled_photos, splitter=RandomSplitter(seed=42), get_y=parent_label,
                      item_tfms=RandomResizedCrop(224, min_scale=.5), batch_tfms=aug_transforms())
    course = vision_learner(block.dataloaders(photos), resnet18, metrics=error_rate, pretrained=False)
    course.export(folder/"course.pkl")
    learn = vision_learner(block.dataloaders(photos), efficientnet_lite0, metrics=error_rate, lin_ftrs=[], concat_pool=False)
    learn.export(folder/"own.pkl")
    ours = train(photos, folder/"run", epochs=1)
    return course, learn, {"bearclf": export_bundle(ours, folder/"bundle"), "bearclf, 8 bits": export_bundle(ours, folder/"eight", weights="int8")}


def loud(model):
    "fastai's `predict` with its progress bar."
    from fastai.vision.all import load_learner
    learn = load_learner(model)
    def answer(fn):
        with contextlib.redirect_stdout(io.StringIO()): learn.predict(fn)
    return answer


def quiet(model):
    "fastai's `predict` without its progress bar."
    from fastai.vision.all import load_learner
    learn = load_learner(model)
    def answer(fn):
        with learn.no_bar(), learn.no_logging(): learn.predict(fn)
    return answer


def plain_torch(model):
    "The learner's network without fastai: photo → probabilities."
    import numpy as np, torch
    from fastai.vision.all import load_learner
    from PIL import Image
    from bearclf.train import normalization
    learn = load_learner(model)
    (mean, std), model = normalization(learn.dls), learn.model.eval()
    def answer(fn):
        im = Image.open(fn).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
        with torch.inference_mode(): return model(((torch.from_numpy(np.array(im)).permute(2, 0, 1)/255 - mean[:, None, None])/std[:, None, None])[None]).softmax(1)
    return answer


def classifier(model):
    "Ours."
    from bearclf.classify import Classifier
    return Classifier(model).predict


def timed(f, *args):
    start = perf_counter()
    f(*args)
    return perf_counter() - start


def percentiles(seconds): return f"{1e3*statistics.median(seconds):7.1f} ms, 95 %: {1e3*statistics.quantiles(seconds, n=20)[-1]:7.1f} ms"


def asked(line, way, model):
    "A process of its own: load, then for each list of photos that comes, the seconds that each takes; the first one, asked twice, warms up."
    warnings.simplefilter("ignore")
    answer = way(model)
    while fns := line.recv(): line.send([timed(answer, fn) for fn in [fns[0], *fns]][1:])


@contextlib.contextmanager
def processes(ways):
    "Name → a line to a process for each of `ways`, all loaded."
    spawn, lines = multiprocessing.get_context("spawn"), {}
    for name, (way, model) in ways.items():
        lines[name], theirs = spawn.Pipe()
        spawn.Process(target=asked, args=(theirs, way, model), daemon=True).start()
    try: yield lines
    finally:
        for line in lines.values(): line.send(None)


def singles(lines, fns, rounds):
    "Seconds a photo, by way: all photos one way and then the next."
    took = {name: [] for name in lines}
    for _ in range(rounds):
        for name, line in lines.items():
            line.send(fns)
            took[name] += line.recv()
    return took


def many(course, learn, clfs, fns, rounds):
    "Seconds a photo, of all photos, in turns; ours beside its parts alone."
    from bearclf.classify import Classifier, photo_pixels
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    how, kept = next(iter(clfs.values())).spec["image"], {}
    alone = {name: Classifier(clf.folder, threads=1) for name, clf in clfs.items()}  # as `predict_many` asks it
    def get_preds(learn):
        with learn.no_bar(), learn.no_logging(): learn.get_preds(dl=learn.dls.test_dl(fns))
    def spread(f, items):
        with ThreadPoolExecutor(cores) as pool: return list(pool.map(f, items))
    def opening(): kept["pixels"] = spread(lambda fn: photo_pixels(fn, how), fns)
    ways = {"course's get_preds": lambda: get_preds(course), "our backbone's get_preds": lambda: get_preds(learn), "opening alone": opening}
    for name, clf in clfs.items():
        ways[f"{name}, graph alone"] = lambda one=alone[name]: spread(lambda x: one.run(x[None]), kept["pixels"])
        ways[name] = lambda clf=clf: list(clf.predict_many(fns))
    took = {name: [] for name in ways}
    for _ in range(rounds):
        for name, f in ways.items(): took[name].append(timed(f)/len(fns))
    return {name: statistics.median(each) for name, each in took.items()}


def main():
    args = ap.parse_args()
    from bearclf.classify import Classifier
    from bearclf.folder import labelled_photos
    fns = labelled_photos(args.photos)
    some = fns[::-(-len(fns)//20)]
    with tempfile.TemporaryDirectory() as tmp:
        course, learn, bundles = made(args.photos, Path(tmp))
        clfs = {name: Classifier(bundle) for name, bundle in bundles.items()}
        print(f"from nothing to the first answer ({args.rounds} turns, medians)")
        firsts = {way: [] for way in FIRST}
        for _ in range(args.rounds):
            for way, model in dict(fastai=Path(tmp)/"course.pkl", bearclf=bundles["bearclf"]).items(): firsts[way].append(first_answer(way, model, some[0]))
        for way, each in firsts.items(): print(f"  {way:24} {statistics.median(s for s, _ in each):7.2f} s {statistics.median(mb for _, mb in each):7.0f} MB")
        export, own = Path(tmp)/"course.pkl", Path(tmp)/"own.pkl"
        ways = {"course's predict": (loud, export), "course's, no bar": (quiet, export), "our backbone's, no bar": (quiet, own), "plain PyTorch": (plain_torch, own)}
        with processes(ways | {name: (classifier, bundle) for name, bundle in bundles.items()}) as lines:
            singles(lines, some[:1], 1)  # all are loaded
            for size in args.sizes:
                took = singles(lines, some if size == "as they are" else sized(some, Path(tmp), size), args.rounds)
                base = statistics.median(took["course's predict"])
                print(f"one photo, {len(some)} photos {size}{'' if size == 'as they are' else ' megapixels'}, {args.rounds} turns")
                for name, each in took.items(): print(f"  {name:24} {percentiles(each)}  {base/statistics.median(each):5.1f} x")
        per = many(course, learn, clfs, fns, args.rounds)
        print(f"many photos ({len(fns)}, {args.rounds} turns, medians)")
        course, own = per["course's get_preds"], per["our backbone's get_preds"]
        for name, each in per.items(): print(f"  {name:30} {1/each:7.1f} photos a second")
        for name in clfs: print(f"  {name}: {course/per[name]:.1f} x the course's get_preds, {own/per[name]:.1f} x our backbone's; {per[name]/(per['opening alone'] + per[f'{name}, graph alone']):.2f} of opening plus graph")


if __name__ == "__main__": main()
