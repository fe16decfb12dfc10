"""Does the monitor cry wolf, and how soon does it notice? Streams of real photos that the bundled bears never learned from: python benchmarks/drift.py [PHOTOS] [--runs 200]

PHOTOS holds `bears`, `not_bears` and `near_misses`. Answers are drawn from them with replacement, the reference as well, so that before the change nothing at all differs but chance.
Then a share of the photos is of another kind: `night` (very dark, with noise), `snow` (bright and pale), `small` (96 pixels), `not bears` (given sizes of bears, or these two collections would be told apart by their sizes alone).
First it is told what the model says of the bears of each kind, and of those that are `close` (half their width and half their height).
Looks are as `bearclf monitor` makes them: one for each hundred photos, at the last three hundred. The change comes after 1000 photos, and the stream ends 2000 later.
"""
import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
from test_drift import at_night, drawn, held_out, size, strangers, told, usual

from bearclf.classify import Classifier
from bearclf.core import open_photo, photo_files
from bearclf.drift import EVERY, WINDOW, compare, spend
from bearclf.train import wilson

SHARES = .05, .1, .2, .5
RULES = {"p < 0.05 in any test": lambda k, tests: .05, "corrected for the tests of a look": lambda k, tests: .05/tests, "and for looking often (bearclf monitor)": lambda k, tests: spend(k)/tests}


def snowy(im): return Image.fromarray((255*(.45 + .55*(np.asarray(im, np.float32)/255)**.8)).astype(np.uint8))


def small(im):
    im.thumbnail((96, 96))
    return im


def close(im, rng):
    x, y = (int(rng.integers(side//2 + 1)) for side in im.size)
    return im.crop((x, y, x + im.width//2, y + im.height//2))


def pools(clf, photos, rng):
    "kind → answers"
    day = held_out(clf, photos/"bears")
    changed = lambda change, side=size: [told(clf, change(open_photo(fn, least=512)), side(fn)) for fn, _ in day]
    near = np.random.default_rng(1)
    things = [told(clf, fn, size(day[rng.integers(len(day))][0])) for fn in photo_files(photos/"not_bears")]
    kinds = dict(night=changed(lambda im: at_night(im, rng)), snow=changed(snowy), small=changed(small, lambda _: 96))
    say_so([fn.parent.name for fn, _ in day], dict(day=[row for _, row in day]) | kinds | dict(close=changed(lambda im: close(im, near))))
    return dict(day=[row for _, row in day]), kinds | {"not bears": things}


def say_so(labels, kinds):
    "What the model says of the same photos, kind by kind."
    print(f"{len(labels)} photos, and what is said of them\n{'kind':12}{'right':>8}{'wrong':>8}{'not sure':>10}{'none of these':>15}")
    for kind, rows in kinds.items():
        said = Counter(row["verdict"] if row["verdict"] != "confident" else max(row["probs"], key=row["probs"].get) == label for row, label in zip(rows, labels))
        print(f"{kind:12}{said[True]:8}{said[False]:8}{said['unsure']:10}{said['out_of_domain']:15}", flush=True)


def false_alarms(pool, spec, runs, rng):
    "rule → share of the runs of 2000 photos with an alarm"
    found = Counter()
    for _ in range(runs):
        reference, rows = usual(pool, spec, rng), drawn(pool, 2000, rng)
        looks = [compare(reference, rows[max(0, n - WINDOW):n], spend(n//EVERY)) for n in range(EVERY, 2001, EVERY)]
        found.update(said for said, limit in RULES.items() if any(min(f.p for f in look) < limit(k, len(look)) for k, look in enumerate(looks, 1)))
    return found


def noticed(day, other, share, spec, rng):
    "Photos after the change until the first alarm, and the series that is least likely; None, None if 2000 were not enough."
    reference, rows = usual(day, spec, rng), drawn(day, 1000, rng)
    rows += [pool[rng.integers(len(pool))] | dict(id=f"{1000 + i:032x}") for i, pool in enumerate(other if rng.random() < share else day for _ in range(2000))]
    for n in range(1000 + EVERY, len(rows) + 1, EVERY):
        alarms = [f for f in compare(reference, rows[n - WINDOW:n], spend(n//EVERY)) if f.alarm]
        if alarms: return n - 1000, min(alarms, key=lambda f: f.p).name
    return None, None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("photos", type=Path, nargs="?", default=Path("../shared/photos"))
    ap.add_argument("--runs", type=int, default=200)
    ap.add_argument("--reference", type=int, help="photos in the reference, as with --baseline; default: as many as the bundle has")
    args = ap.parse_args()
    clf, rng = Classifier(threads=1), np.random.default_rng(0)
    usually, kinds = pools(clf, args.photos, rng)
    spec = dict(reference=dict.fromkeys(clf.spec["reference"], [0]*args.reference)) if args.reference else clf.spec
    usually["day, and other things"] = usually["day"] + strangers(clf, args.photos)
    print(f"\nNothing changes: of {args.runs} runs of 2000 photos, how many raise a false alarm")
    for name, pool in usually.items():
        found = false_alarms(pool, spec, args.runs, rng)
        for said in RULES: print(f"{name + f' ({len(pool)} photos)':36}{said:42}{found[said]:5} ({100*found[said]/args.runs:.1f} %, 95 % interval to {100*wilson(found[said], args.runs)[1]:.1f} %)")
    print(f"\nFrom photo 1000 on, a share is of another kind ({args.runs//2} runs each)\n{'kind':12}{'share':>8}{'within 300':>12}{'within 2000':>12}{'median':>8}  told first by")
    for kind, pool in kinds.items():
        for share in SHARES:
            after, names = zip(*[noticed(usually["day"], pool, share, spec, rng) for _ in range(args.runs//2)])
            late = [a or 10**6 for a in after]
            middle = int(np.median(late))
            print(f"{kind:12}{100*share:6.0f} %{100*np.mean([a <= 300 for a in late]):10.0f} %{100*np.mean([a <= 2000 for a in late]):10.0f} %{middle if middle <= 2000 else '–':>8}  {', '.join(f'{name} {n}' for name, n in Counter(filter(None, names)).most_common(2))}", flush=True)


if __name__ == "__main__": main()
