"""Which score tells photos of other things best? Ours against three from the literature: python benchmarks/ood.py PHOTOS OTHERS ... [--seeds 3]

For each seed a run of `bearclf.train.train` on PHOTOS; then, on its validation photos and on those in the folders OTHERS, which it never saw:
  nearest       mean cosine to the 10 nearest training photos (Sun et al. 2022), what a bundle calls `known`
  softmax       the largest probability (Hendrycks & Gimpel 2017)
  energy        log-sum-exp of the logits (Liu et al. 2020)
  mahalanobis   distance to the nearest label's mean, one covariance for all (Lee et al. 2018), with Ledoit and Wolf's shrinkage
Printed are AUROC (a validation photo scores above another thing; 1 is perfect) and how many other things pass a threshold that lets 99 % of the validation photos pass; means over the seeds.
"""
import argparse
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.covariance import LedoitWolf  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from bearclf.core import photo_files  # noqa: E402
from bearclf.export import BundleNet, _over, image_words, learner_photos, unit  # noqa: E402
from bearclf.train import train  # noqa: E402


def scores(learn, others):
    "score → [its values on the validation photos, on each of `others`]."
    photos, image, net = learner_photos(learn), image_words(learn), BundleNet(learn)
    features = lambda fns: _over(lambda x: net.features(x).mean((2, 3)), fns, image)
    logits = lambda fns: _over(lambda x: net.head(net.features(x)), fns, image)
    fns, labels = zip(*photos["train"])
    taught, sets = features(fns), [[fn for fn, _ in photos["valid"]], *others]
    net.references = torch.nn.functional.normalize(taught, dim=1)
    means = {label: taught[[k == label for k in labels]].mean(0) for label in set(labels)}
    inverse = torch.tensor(LedoitWolf().fit(torch.stack([f - means[k] for f, k in zip(taught, labels)]).numpy()).precision_, dtype=torch.float32)
    def mahalanobis(f): return -torch.stack([((f - m) @ inverse * (f - m)).sum(1) for m in means.values()]).min(0).values
    of = dict(nearest=lambda fns: _over(lambda x: net.nearest(net.features(x)), fns, image), softmax=lambda fns: logits(fns).softmax(1).max(1).values,
              energy=lambda fns: logits(fns).logsumexp(1), mahalanobis=lambda fns: mahalanobis(features(fns)))
    assert torch.allclose(unit(net.features(torch.zeros(1, *image["size"], 3, dtype=torch.uint8))).norm(dim=1), torch.ones(1), atol=1e-4)
    return {name: [f(s).numpy() for s in sets] for name, f in of.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("photos", type=Path)
    ap.add_argument("others", type=Path, nargs="+")
    ap.add_argument("--seeds", type=int, default=3)
    args = ap.parse_args()
    others, found = [photo_files(folder) for folder in args.others], []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as tmp:
            learn = train(args.photos, Path(tmp)/"run", seed=seed)
            found.append(scores(learn, others))
    print(f"\n{'':12}" + "".join(f"{folder.name + f' ({len(fns)})':>36}" for folder, fns in zip(args.others, others)))
    for name in found[0]:
        cells = []
        for i in range(len(others)):
            pairs = [(f[name][0], f[name][i + 1]) for f in found]
            auroc = np.mean([roc_auc_score([1]*len(a) + [0]*len(b), [*a, *b]) for a, b in pairs])
            cells.append(f"AUROC {auroc:.4f}, {100*np.mean([(b >= np.quantile(a, .01, method='lower')).mean() for a, b in pairs]):5.1f} % pass")
        print(f"{name:12}" + "".join(f"{cell:>36}" for cell in cells))


if __name__ == "__main__": main()
