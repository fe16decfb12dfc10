"""What cleaning finds, and what it buys: real photos with 8 % of the labels flipped and 5 % copies, five times anew.

    python benchmarks/clean.py [PHOTOS] [SEEDS]

A fifth of the photos, under their true labels, is kept for the test. Faults are planted in the rest, `suspects` and the course's way (a model trained for four epochs, its highest losses) look for them,
and a reviewer who looks at a tenth of the photos gives the flipped ones among them their label back. Then the same training three times: on the photos as they were, with the faults, and reviewed.
"""
import contextlib, io, shutil, sys, tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
from test_suspects import planted

from bearclf.data import GroupSplitter
from bearclf.folder import labelled_photos
from bearclf.moves import apply_marks
from bearclf.suspects import suspects
from bearclf.train import train, wilson


def right_of(learn, pairs):
    with learn.no_bar(): probs = learn.get_preds(dl=learn.dls.test_dl([fn for fn, _ in pairs]))[0]
    return sum(learn.dls.vocab[p.argmax()] == label for p, (_, label) in zip(probs, pairs))


def quiet(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()): return f(*args, **kwargs)


def once(photos, work, seed):
    "One seed: the shares found, and how many test photos each model gets right."
    fns = labelled_photos(photos)
    rest, test = GroupSplitter(.2, seed)(fns)
    for i in rest: (work/"clean"/fns[i].parent.name).mkdir(parents=True, exist_ok=True); shutil.copy(fns[i], work/"clean"/fns[i].parent.name)
    truth, (false, copies) = {fn.stem: fn.parent.name for fn in labelled_photos(work/"clean")}, planted(work/"clean", work/"faulty", seed)
    clean = [fn for fn in labelled_photos(work/"clean")]
    true_label = {name: clean[int(Path(name).stem[1:])].parent.name for name in false}
    shutil.copytree(work/"faulty", work/"reviewed")
    pairs = [(fns[i], fns[i].parent.name) for i in test]
    learners = {way: quiet(train, work/way, work/f"run-{way}", seed=seed) for way in ("clean", "faulty")}
    table = quiet(suspects, work/"faulty", learners["faulty"], seed=seed)
    n, told = len(table)//10, [{*pair} for pair in zip(table.file, table.twin) if pair[1]]
    first = {*table.nlargest(n, "wrong").file}
    losses = dict(all={*table.nlargest(n, "loss").file}, valid={*table[table.split == "valid"].nlargest(n, "loss").file})
    apply_marks(work/"reviewed", {name: label for name, label in true_label.items() if name in first})
    learners["reviewed"] = quiet(train, work/"reviewed", work/"run-reviewed", seed=seed)
    share = lambda seen: len(false & seen)/len(false)
    return dict(suspects=share(first), losses=share(losses["all"]), copies=np.mean([any(pair & other for other in told) for pair in copies]), n=len(pairs)) | {way: right_of(learn, pairs) for way, learn in learners.items()}


def main(photos=Path(__file__).parents[2]/"shared"/"photos"/"bears", seeds=5):
    rows = []
    for seed in range(int(seeds)):
        with tempfile.TemporaryDirectory() as work: rows.append(once(Path(photos), Path(work), seed))
        print(seed, rows[-1], flush=True)
    n, total = sum(row["n"] for row in rows), lambda k: sum(row[k] for row in rows)
    for k, said in dict(suspects="flipped labels in the tenth most probably wrong", losses="flipped labels in the tenth with the highest losses", copies="copies that are told").items():
        print(f"{said}: {np.mean([row[k] for row in rows]):.1%} (at least {min(row[k] for row in rows):.1%})")
    for way in ("clean", "faulty", "reviewed"): print(f"trained on the {way} photos: {total(way)} of {n} right, {total(way)/n:.1%} ({' to '.join(f'{v:.1%}' for v in wilson(total(way), n))})")
    lost = total("clean") - total("faulty")
    print(f"lost by the faults: {lost}; won back by the review: {total('reviewed') - total('faulty')}" + (f", {(total('reviewed') - total('faulty'))/lost:.0%}" if lost > 0 else ""))


if __name__ == "__main__": main(*sys.argv[1:])
