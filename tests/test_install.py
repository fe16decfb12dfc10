"""The base package in a new virtual environment: small, light, and it answers."""
import json
import os
import shutil
import subprocess
import sys
import venv
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import ROOT, free_port, serving

from bearclf.practice import draw_bear

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A virtual environment with a built bearclf and nothing but what that requires."
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder/"venv", with_pip=True)
    bin = folder/"venv"/("Scripts" if os.name == "nt" else "bin")
    source = shutil.copytree(ROOT, folder/"source", ignore=shutil.ignore_patterns(".*", "_work", "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder/"dist", source], check=True)
    done = subprocess.run([bin/"pip", "install", "-q", *(folder/"dist").glob("*.whl")], capture_output=True, text=True)
    if done.returncode and os.environ.get("CI") != "true": pytest.skip("a package index cannot be reached, so no new environment can be filled")
    assert not done.returncode, done.stderr
    return folder/"venv", bin


def test_it_is_light(base):
    folder, bin = base
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    assert size < 500e6, f"{size/1e6:.0f} MB"
    done = subprocess.run([bin/"pip", "list", "--format", "json"], check=True, capture_output=True, text=True)
    assert not {"torch", "scipy", "fastai", "pandas"} & {p["name"].lower() for p in json.loads(done.stdout)}


def test_it_predicts(base, tmp_path):
    draw_bear("teddy", np.random.default_rng(4)).save(tmp_path/"teddy.png")
    done = subprocess.run([base[1]/"bearclf", "predict", "--json", tmp_path/"teddy.png"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["probs"]) == {"black", "grizzly", "teddy"}


def test_it_serves_the_page(base, tmp_path):
    port = free_port()
    with serving([str(base[1]/"bearclf"), "app", "--no-browser", "--port", str(port)], f"http://localhost:{port}/", cwd=tmp_path) as server:
        assert "Photo classifier" in urlopen(server.url, timeout=60).read().decode()


def test_it_deploys_the_static_page(base, tmp_path):
    done = subprocess.run([base[1]/"bearclf", "deploy", "static", tmp_path/"page"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path/"page"/"index.html").is_file() and list((tmp_path/"page").rglob("*.wasm.zst.bin"))


def test_what_is_missing_is_said(base, tmp_path):
    for label in ("black", "teddy"):
        (tmp_path/"photos"/label).mkdir(parents=True)
        for i in range(2): draw_bear(label, np.random.default_rng(i)).save(tmp_path/"photos"/label/f"{i}.png")
    done = subprocess.run([base[1]/"bearclf", "train", tmp_path/"photos"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'bearclf[course]'" in done.stderr and len(done.stderr.splitlines()) == 1
