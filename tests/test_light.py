"""The light rule: what a page visitor's kernel imports must never bring torch or fastai along."""
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "fastai", "scipy", "sklearn", "pandas", "matplotlib", "onnx", "timm", "ray", "pyarrow"}


@pytest.mark.parametrize("module", ["core", "folder", "moves", "fetch", "search", "verify", "gather", "check", "practice", "classify", "apart", "log", "stage", "review", "app", "visitors", "review_page", "drift", "loop", "rollout", "batch", "deploy", "static", "cli"])
def test_light_modules_import_nothing_heavy(module):
    code = f"import bearclf.{module}, sys; print(*{HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_classifying_imports_nothing_heavy(tmp_path):
    code = ("import numpy as np, sys; from bearclf.classify import Classifier; from bearclf.practice import draw_bear\n"
            f"Classifier().predict(draw_bear('teddy', np.random.default_rng(0))); print(*{HEAVY!r} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
