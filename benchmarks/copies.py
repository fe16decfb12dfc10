"""How far photos are from their copies, and from each other: python benchmarks/copies.py PHOTOS

Prints the numbers that `NEAR` and `ALIKE` of bearclf.verify were chosen by, and what `LIKE` of bearclf.groups finds: pairs of different files within a few bits of perceptual
hash, and, for a copy of every photo saved smaller and at a lower quality and for ones cropped by 2 % and 5 % a side, its bits and its correlation.
"""
import io
import random
import sys
from itertools import combinations

import numpy as np

from bearclf.core import open_photo, photo_files
from bearclf.groups import LIKE
from bearclf.verify import ALIKE, NEAR, distance, glance, likeness, phash


def saved(im, quality):
    "`im` as a JPEG, seen again."
    out = io.BytesIO()
    im.save(out, "JPEG", quality=quality)
    return glance(out.getvalue())


def smaller(im, rng):
    side = max(160, int(max(im.size)*rng.uniform(.15, .9)))
    copy = im.copy()
    copy.thumbnail((side, side))
    return saved(copy, rng.randint(35, 85))


def cropped(im, share=.02):
    w, h = im.size
    return saved(im.crop((int(share*w), int(share*h), int((1 - share)*w), int((1 - share)*h))), 85)


def tell(name, seen):
    "The distances of copies from their originals."
    bits, alike = np.array([distance(phash(a), phash(b)) for a, b in seen]), np.array([likeness(a, b) for a, b in seen])
    found = np.mean((bits <= NEAR) & (alike >= ALIKE))
    print(f"{name}: at most {bits.max()} bits; correlation {alike.min():.3f} at least, {np.median(alike):.3f} in the middle; {found:.0%} found, {np.mean(bits <= LIKE):.0%} within {LIKE} bits")


def main():
    files, rng = photo_files(sys.argv[1]), random.Random(0)
    looks = {f: glance(f) for f in files}
    hashes = {f: phash(im) for f, im in looks.items()}
    pairs = [(distance(hashes[a], hashes[b]), a, b) for a, b in combinations(files, 2)]
    print(f"{len(files)} files, {len(pairs)} pairs, {sum(bits <= LIKE for bits, *_ in pairs)} within {LIKE} bits")
    for bits, a, b in sorted(p for p in pairs if p[0] <= NEAR + 2): print(f"  {bits} bits, correlation {likeness(looks[a], looks[b]):.3f}: {a.parent.name}/{a.name} {b.parent.name}/{b.name}")
    opened = [(looks[f], open_photo(f)) for f in files]
    tell("saved smaller", [(look, smaller(im, rng)) for look, im in opened])
    tell("cropped by 2 %", [(look, cropped(im)) for look, im in opened])
    tell("cropped by 5 %", [(look, cropped(im, .05)) for look, im in opened])


if __name__ == "__main__": main()
