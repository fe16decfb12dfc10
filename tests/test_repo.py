"""The repository keeps its own promises: README and package in step with the notebooks, outputs clean."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))


def test_readme_is_written_from_the_index():
    done = subprocess.run([sys.executable, ROOT/"tools"/"readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs_are_clean(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert path.stat().st_size < 600_000
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert not re.search(r"(?<![\w.])/(home|root|work|Users|tmp)/[\w.]", json.dumps(outputs))
    pictures = [v for o in outputs for k, v in o.get("data", {}).items() if k.startswith("image/")]
    assert all(len("".join(p)) * 3/4 < 100_000 for p in pictures)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[:2].isdigit()], ids=lambda p: p.stem)
def test_lessons_have_their_shape(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first, text = "".join(cells[0]["source"]), ["".join(c["source"]) for c in cells]
    assert re.fullmatch(r"# \w+\n\n> [^\n]+", first.strip())
    assert sum(c["cell_type"] == "markdown" for c in cells) >= .6*sum(c["cell_type"] == "code" for c in cells)
    assert "## Check yourself" in "\n".join(text) and "<details>" in text[-1]


def test_pictures_and_weights_of_others_are_not_in_the_repository():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: pytest.skip("not a git checkout")
    photos = [f for f in done.stdout.split() if f.lower().endswith((".jpg", ".jpeg", ".pth", ".pkl", ".npz"))]
    assert photos == []
