"""False labels and copies, planted among real photos: does `suspects` find them?"""
import shutil

import numpy as np
import pytest
from PIL import ImageEnhance, ImageOps

from bearclf.core import BearclfError, open_photo


def planted(photos, folder, seed):
    "A copy of `photos` in which 8 % have another label and 5 % are there twice: the false ones, and the copies with their originals."
    from bearclf.folder import labelled_photos
    shutil.copytree(photos, folder)
    rng, fns = np.random.default_rng(seed), labelled_photos(folder)
    labels, order, inside = sorted({fn.parent.name for fn in fns}), rng.permutation(len(fns)), lambda fn: fn.relative_to(folder).as_posix()
    n, false, copies = round(.08*len(fns)), set(), []
    for i in order[:n]:
        to = folder/rng.choice([label for label in labels if label != fns[i].parent.name])/f"f{i}{fns[i].suffix}"
        false.add(inside(fns[i].rename(to)))
    for i in order[n:n + round(.05*len(fns))]:
        im, cut, copy = open_photo(fns[i]), rng.uniform(.01, .05), fns[i].with_name(f"c{i}.jpg")
        w, h = im.size
        changed = [lambda: im, lambda: im.resize((w*2//3, h*2//3)), lambda: im.crop((int(w*cut), int(h*cut), int(w*(1 - cut)), int(h*(1 - cut)))), lambda: ImageEnhance.Brightness(im).enhance(1.2), lambda: ImageOps.mirror(im)]
        changed[rng.integers(5)]().save(copy, quality=int(rng.integers(60, 90)))
        copies.append({inside(copy), inside(fns[i])})
    return false, copies


@pytest.mark.once
def test_finds_false_labels_and_copies(photos, tmp_path):
    from bearclf.suspects import suspects
    shares = []
    for seed in range(5):
        false, copies = planted(photos, tmp_path/str(seed), seed)
        table = suspects(tmp_path/str(seed), seed=seed)
        first = set(table.sort_values("wrong", ascending=False).file[:len(table)//10])
        told = [{*pair} for pair in zip(table.file, table.twin) if pair[1]]
        shares.append((len(false & first)/len(false), np.mean([pair in told or any(pair & other for other in told) for pair in copies])))
    print(shares)
    assert np.mean(shares, axis=0)[0] >= .97 and np.mean(shares, axis=0)[1] >= .95


def test_an_unreadable_photo_and_a_folder_without_labels_are_one_sentence(tmp_path):
    from bearclf.practice import draw_bear
    from bearclf.suspects import suspects
    with pytest.raises(BearclfError, match="no folder"): suspects(tmp_path/"nowhere")
    for label in ("black", "teddy"):
        (tmp_path/label).mkdir()
        for i in range(3): draw_bear(label, np.random.default_rng(i)).save(tmp_path/label/f"{i}.png")
    assert len(suspects(tmp_path)) == 6
    (tmp_path/"teddy"/"bad.jpg").write_text("no photo")
    with pytest.raises(BearclfError, match="bad.jpg"): suspects(tmp_path)
