"""Fine-tuning, from a photos folder to an exported model, bearclf against what a fastai user would write: python benchmarks/train.py PHOTOS [--rounds 5]

Every round has a seed of its own and runs, one after the other, on the same photos and the same split:
  course    the course's cells with resnet18, as they stand (random weights where its checkpoint cannot be had: then its time counts, not its accuracy)
  plain     the same cells with bearclf's own backbone, EfficientNet-Lite0 and its pretrained weights
  torch     a plain PyTorch loop over that backbone with torchvision's reference settings (SGD, cosine, crop and flip), as many epochs
  bearclf   `bearclf.train.train` with its defaults, on an empty cache
  resnet18  `bearclf.train.train` with resnet18, on the cache that is there by now
Then the training loaders, three times in turn, a training step as each callback joins, the error with two choices undone, and the time of `bearclf.train.train` for 100, 200, 400 and 1 600 photos.
"""
import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

warnings.filterwarnings("ignore")
work = Path(tempfile.mkdtemp())
os.environ["BEARCLF_CACHE"] = str(work/"cache")

import torchvision  # noqa: E402
from fastai.vision.all import *  # noqa: E402, F403
from torchvision import transforms as T  # noqa: E402

import bearclf.train as bt  # noqa: E402
from bearclf.data import photo_block  # noqa: E402

EPOCHS = 4


def cells(valid, size=224):
    "The course's DataBlock, with the split given."
    return DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=FuncSplitter(lambda fn: fn in valid), get_y=parent_label,
                     item_tfms=RandomResizedCrop(size, min_scale=0.5), batch_tfms=aug_transforms())


def wrong(learn): return float(learn.validate()[1])


def course(photos, valid, seed):
    dls = cells(valid).dataloaders(photos)
    learn = vision_learner(dls, resnet18, metrics=error_rate, pretrained=has_resnet18())
    learn.freeze()
    learn.fine_tune(EPOCHS)
    learn.export(work/"export.pkl")
    return learn


def plain(photos, valid, seed):
    dls = cells(valid).dataloaders(photos)
    learn = vision_learner(dls, bt.efficientnet_lite0, metrics=error_rate)
    learn.fine_tune(EPOCHS)
    learn.export(work/"export.pkl")
    return learn


def ours(photos, valid, seed, arch=bt.OFFLINE_ARCH): return bt.train(photos, work/"run", arch=arch, epochs=EPOCHS, seed=seed, force=True)
def ours_cold(photos, valid, seed): shutil.rmtree(work/"cache", ignore_errors=True); return ours(photos, valid, seed)
def ours_resnet18(photos, valid, seed): return ours(photos, valid, seed, "resnet18")


class Files(torch.utils.data.Dataset):
    def __init__(self, fns, vocab, tfm): self.fns, self.vocab, self.tfm = fns, vocab, tfm
    def __len__(self): return len(self.fns)
    def __getitem__(self, i): return self.tfm(Image.open(self.fns[i]).convert("RGB")), self.vocab.index(self.fns[i].parent.name)


def torch_loop(photos, valid, seed):
    "torchvision's reference recipe: SGD with momentum, cosine, random crop and flip, everything learns. Returns the share wrong."
    import timm
    vocab, fns, stats = sorted({fn.parent.name for fn in get_image_files(photos)}), get_image_files(photos), ([127/255]*3, [128/255]*3)
    train_tfm = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*stats)])
    valid_tfm = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(*stats)])
    model = timm.create_model(bt.OFFLINE_ARCH, num_classes=len(vocab))
    model.load_state_dict(bt._lite0_weights(model), strict=False)
    loader = lambda part, tfm, shuffle: torch.utils.data.DataLoader(Files(part, vocab, tfm), batch_size=32, shuffle=shuffle, num_workers=2)
    train, test = loader([fn for fn in fns if fn not in valid], train_tfm, True), loader(sorted(valid), valid_tfm, False)
    opt = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9, weight_decay=1e-4)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, (EPOCHS + 1)*len(train))
    for _ in range(EPOCHS + 1):
        model.train()
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            sched.step()
        model.eval()
        with torch.no_grad(): right = sum((model(x).argmax(1) == y).sum().item() for x, y in test)
    torch.save(model.state_dict(), work/"model.pth")
    return 1 - right/len(valid)


def has_resnet18():
    "Whether resnet18's weights can be had; else both sides begin at random."
    try: torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict(progress=False)
    except OSError: return False
    return True


def random_resnet18(dls, arch, *, original=bt._torchvision_learner, **kwargs):
    learn = original(dls, arch, **kwargs | dict(pretrained=False))
    learn.freeze()
    return learn


WAYS = dict(course=course, plain=plain, torch=torch_loop, bearclf=ours_cold, resnet18=ours_resnet18)


def interval(values):
    "Mean and its 95 % interval (normal)."
    mean, half = statistics.mean(values), 1.96*statistics.stdev(values)/len(values)**.5 if len(values) > 1 else float("nan")
    return f"{mean:.1%} ± {half:.1%}"


def rounds(photos, n):
    took, errors = {k: [] for k in WAYS}, {k: [] for k in WAYS}
    for seed in range(n):
        splitter = photo_block(seed=seed)
        valid = set(splitter.dataloaders(photos).valid_ds.items)
        for name, way in WAYS.items():
            set_seed(seed)
            start = time.perf_counter()
            done = way(photos, valid, seed)
            took[name].append(time.perf_counter() - start)
            with nullcontext() if isinstance(done, float) else done.no_bar(): errors[name].append(done if isinstance(done, float) else wrong(done))
            print(f"  seed {seed} {name}: {took[name][-1]:.1f} s, {errors[name][-1]:.1%} wrong", flush=True)
    middle = {k: statistics.median(v) for k, v in took.items()}
    for k in WAYS: print(f"{k}: {middle[k]:.1f} s, wrong {interval(errors[k])}")
    pairs = ("bearclf", "course"), ("bearclf", "plain"), ("bearclf", "torch"), ("resnet18", "course")
    for fast, slow in (p for p in pairs if {*p} <= {*middle}): print(f"{slow} / {fast}: {middle[slow]/middle[fast]:.2f}")


def loaders(photos):
    "Photos a second from file to augmented batch."
    plan = photo_block(seed=0)
    ours = plan.dataloaders(photos, bs=64)
    stock = cells(set(ours.valid_ds.items)).dataloaders(photos)
    def rate(dl):
        start = time.perf_counter()
        return sum(len(x) for x, _ in dl)/(time.perf_counter() - start)
    rates = [(rate(stock.train), rate(ours.train)) for _ in range(3)]
    a, b = (statistics.median(r) for r in zip(*rates))
    print(f"loader: fastai {a:.0f}, bearclf {b:.0f} photos a second, ratio {b/a:.2f}")


def steps(photos):
    "Milliseconds a photo of a training step in which all may learn, on pixels that are there already."
    dls = photo_block(seed=0).dataloaders(photos, bs=32)
    batch = dls.one_batch()
    again = lambda n: TfmdDL([batch]*n, bs=None, device=batch[0].device)
    ours, names = bt.fast_callbacks(), ("FixedStatistics", "ChannelsLast", "KeepMemory", "FixedEarly")
    for n in range(len(names) + 1):
        cbs = [cb for cb in ours if type(cb).__name__ in names[:n]]
        learn = vision_learner(dls, bt.efficientnet_lite0, lin_ftrs=[], concat_pool=False, cbs=cbs)
        learn.dls = DataLoaders(again(4), again(1))
        learn.unfreeze()
        with learn.no_bar(), learn.no_logging(), learn.added_cbs(Clock()): learn.fit(3, 1e-4)
        print(f"step {'+ ' + names[n - 1] if n else 'as fastai has it'}: {statistics.median(learn.took)/len(batch[0])*1000:.1f} ms a photo", flush=True)


class Clock(Callback):
    "Seconds of each training step but the first epoch's."
    def before_fit(self): self.learn.took = []
    def before_batch(self): self.start = time.perf_counter()
    def after_batch(self):
        if self.training and self.epoch: self.learn.took.append(time.perf_counter() - self.start)


def choices(photos, n=3):
    "What the larger learning rate is worth after the first epoch, and FixedStatistics after the last, over seeds."
    wrong = {}
    for seed in range(n):
        dls = photo_block(seed=seed).dataloaders(photos, bs=32)
        for name, lr, left_out in (("as it is", 1e-2, None), ("learning rate 0.002", 2e-3, None), ("without FixedStatistics", 1e-2, bt.FixedStatistics)):
            set_seed(seed)
            learn, seen = bt.photo_learner(dls), Errors()
            if left_out: learn.remove_cb(left_out)
            with learn.no_bar(), learn.no_logging(): learn.fine_tune(EPOCHS, lr, cbs=seen)
            wrong.setdefault(name, []).append(seen.each)
    for name, each in wrong.items():
        first, *_, last = zip(*each)
        print(f"{name}: wrong {interval(first)} after the first epoch, {interval(last)} after the last", flush=True)


class Errors(Callback):
    "The error rate of each epoch, of both halves of `fine_tune`."
    order = Recorder.order + 1
    def __init__(self): self.each = []
    def after_epoch(self): self.each.append(float(self.learn.final_record[-1]))


def linear(photos):
    "Seconds of a whole run for more and more photos, drawn again where there are too few."
    fns = get_image_files(photos)
    for n in (100, 200, 400, 1600):
        folder = work/f"photos{n}"
        for i, fn in enumerate(random.Random(0).choices(fns, k=n)):
            (folder/fn.parent.name).mkdir(parents=True, exist_ok=True)
            with Image.open(fn) as im: im.convert("RGB").crop((0, 0, im.width - i % 7, im.height - i//7 % 7)).save(folder/fn.parent.name/f"{i}.jpg", quality=90)  # another file, another hash
        start = time.perf_counter()
        ours(folder, None, 0)
        took = time.perf_counter() - start
        print(f"{n} photos: {took:.1f} s, {1000*took/n:.0f} ms a photo", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("rounds", "loaders", "steps", "choices", "linear"))
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="for --only rounds")
    args = parser.parse_args()
    for name in set(WAYS) - set(args.ways or WAYS): del WAYS[name]
    if not has_resnet18(): bt._torchvision_learner = random_resnet18
    if args.only in (None, "loaders"): loaders(args.photos)
    if args.only in (None, "rounds"): rounds(args.photos, args.rounds)
    if args.only in (None, "steps"): steps(args.photos)
    if args.only in (None, "choices"): choices(args.photos)
    if args.only in (None, "linear"): linear(args.photos)


if __name__ == "__main__":
    try: main()
    finally: shutil.rmtree(work, ignore_errors=True)
