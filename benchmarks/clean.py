"""What cleaning finds, and what it buys: real photos with 8 % of the labels flipped and 5 % copies, five times anew.

    python benchmarks/clean.py [PHOTOS] [SEEDS]

A fifth of the photos, under their true labels, is kept for the test. Faults are planted in the rest, `suspects` and the course's way (a model trained for four epochs, its highest losses) look for them,
and a reviewer who looks at a tenth of the photos gives the flipped ones among them their label back. Then the same training three times: on the photos as they were, with the faults, and reviewed.
A share of flipped labels that are found is of those in the part that is ranked: all photos, or those that the model learned from, or those that validated it; a tenth is a tenth of that part.
Each seed draws another fifth, so with many seeds a photo is tested more than once, by other models: intervals over all seeds together are a little too narrow.
"""
import contextlib, io, shutil, sys, tempfile
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
from test_suspects import planted

from bearclf.core import wilson
from bearclf.data import GroupSplitter
from bearclf.folder import labelled_photos
from bearclf.moves import apply_marks
from bearclf.suspects import suspects
from bearclf.train import train


def right_of(learn, pairs):
    with learn.no_bar(): probs = learn.get_preds(dl=learn.dls.test_dl([fn for fn, _ in pairs]))[0]
    return [bool(learn.dls.vocab[p.argmax()] == label) for p, (_, label) in zip(probs, pairs)]


def quiet(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()): return f(*args, **kwargs)


def once(photos, work, seed):
    "One seed: the shares found, and how many test photos each model gets right."
    fns = labelled_photos(photos)
    rest, test = GroupSplitter(.2, seed)(fns)
    for i in rest: (work/"clean"/fns[i].parent.name).mkdir(parents=True, exist_ok=True); shutil.copy(fns[i], work/"clean"/fns[i].parent.name)
    false, copies = planted(work/"clean", work/"faulty", seed)
    clean = labelled_photos(work/"clean")
    true_label = {name: clean[int(Path(name).stem[1:])].parent.name for name in false}
    shutil.copytree(work/"faulty", work/"reviewed")
    pairs = [(fns[i], fns[i].parent.name) for i in test]
    learners = {way: quiet(train, work/way, work/f"run-{way}", seed=seed) for way in ("clean", "faulty")}
    table = quiet(suspects, work/"faulty", learners["faulty"], seed=seed)
    told, first = [{*pair} for pair in zip(table.file, table.twin) if pair[1]], tenth(table, "wrong")
    apply_marks(work/"reviewed", {name: label for name, label in true_label.items() if name in first})
    learners["reviewed"] = quiet(train, work/"reviewed", work/"run-reviewed", seed=seed)
    found = lambda part, by: len(false & tenth(part, by))/len(false & {*part.file})
    shares = dict(suspects=found(table, "wrong"), losses=found(table, "loss")) | {split: found(table[table.split == split], "loss") for split in ("train", "valid")}
    return shares | dict(copies=float(np.mean([any(pair & other for other in told) for pair in copies]))) | {way: right_of(learn, pairs) for way, learn in learners.items()}


def tenth(table, by): return {*table.nlargest(len(table)//10, by).file}


def in_a_line(row):
    "A seed in one line."
    return ", ".join(f"{k} {sum(v)} of {len(v)}" if isinstance(v, list) else f"{k} {v:.3f}" for k, v in row.items())


def differ(rows, before, after):
    "How many answers two trainings differ in, and McNemar's exact test."
    pairs = [pair for row in rows for pair in zip(row[before], row[after])]
    mended, spoiled = pairs.count((False, True)), pairs.count((True, False))
    return f"{before} to {after}: {mended} mended, {spoiled} spoiled" + (f", p = {binomtest(mended, mended + spoiled).pvalue:.2g}" if mended + spoiled else "")


FOUND = dict(suspects="flipped labels in the tenth most probably wrong", losses="in the tenth with the highest losses", train="of those it learned from, in their tenth with the highest losses",
             valid="of those that validated it, in their tenth", copies="copies that are told")


def summary(rows):
    right = {way: sum(sum(row[way]) for row in rows) for way in ("clean", "faulty", "reviewed")}
    n = sum(len(row["clean"]) for row in rows)
    for k, said in FOUND.items(): print(f"{said}: {np.mean([row[k] for row in rows]):.1%} (lowest of the seeds {min(row[k] for row in rows):.1%})")
    for way, k in right.items(): print(f"trained on the {way} photos: {k} of {n} right, {k/n:.1%} ({' to '.join(f'{v:.1%}' for v in wilson(k, n))})")
    for before, after in (("clean", "faulty"), ("faulty", "reviewed"), ("clean", "reviewed")): print(differ(rows, before, after))
    lost, back = right["clean"] - right["faulty"], right["reviewed"] - right["faulty"]
    print(f"lost by the faults: {lost}; won back by the review: {back}" + (f", {back/lost:.0%}" if lost > 0 else ""))


def main(photos=Path(__file__).parents[2]/"shared"/"photos"/"bears", seeds=5):
    rows = []
    for seed in range(int(seeds)):
        with tempfile.TemporaryDirectory() as work: rows.append(once(Path(photos), Path(work), seed))
        print(seed, in_a_line(rows[-1]), flush=True)
        if len(rows) % 5 == 0 or len(rows) == int(seeds): print(f"-- {len(rows)} seeds"); summary(rows)


if __name__ == "__main__": main(*sys.argv[1:])
