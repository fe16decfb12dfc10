"""What `bearclf deploy` writes is installed and started as its host would: in a new environment, by a user who owns nothing, from a folder that cannot be written."""
import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

import pytest

from bearclf.classify import Classifier, bundle_folder
from conftest import free_port

pytestmark = pytest.mark.once

ROADS = ["docker", "space", "binder"]
PAGE = {"docker": "", "space": "", "binder": "voila/render/app.ipynb"}


def deploy(*args): return subprocess.run([sys.executable, "-m", "bearclf.cli", "deploy", *map(str, args)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def shop():
    "A folder below which everybody may read."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folders(shop):
    made = {}
    for road in ROADS:
        done = deploy(road, shop/road)
        assert done.returncode == 0, done.stderr
        made[road] = shop/road
    return made


def public_python(shop):
    "This Python, where every user may run it: root's home is closed to others."
    base = Path(sys.base_prefix)
    if all(p.stat().st_mode & 0o005 == 0o005 for p in (base, *base.parents)): return base/"bin"/Path(sys._base_executable).name
    for part in ("bin", "lib"): shutil.copytree(base/part, shop/"python"/part, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a"))
    return shop/"python"/"bin"/f"python3.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def installed(shop, folders):
    "A new environment with what the folders ask for, which is the same for all three."
    wanted = {road: ((folder/"requirements.txt").read_text(), sorted(p.name for p in folder.glob("*.whl"))) for road, folder in folders.items()}
    assert wanted["docker"] == wanted["space"] == wanted["binder"]
    subprocess.run([public_python(shop), "-m", "venv", shop/"venv"], check=True)
    for more in (["-r", "requirements.txt"], wanted["docker"][1]):
        subprocess.run([shop/"venv/bin/pip", "install", "-q", "--no-deps", *more], cwd=folders["docker"], check=True, timeout=600)
    subprocess.run([shop/"venv/bin/pip", "check"], check=True)
    return shop/"venv"


def recipe(folder):
    "A Dockerfile's environment and command."
    text = (folder/"Dockerfile").read_text()
    return dict(pair.split("=", 1) for pair in re.search(r"^ENV (.*)$", text, re.M)[1].split()), json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])


def started(road, folder, venv, home):
    "The command and environment with which a host would start it, on a free port."
    port = free_port()
    if road == "binder":  # as repo2docker does: a Jupyter server
        command = ["jupyter-server", "--no-browser", f"--port={port}", "--ServerApp.token=", "--ServerApp.root_dir=" + str(folder)]
        return command, {"HOME": str(home)}, port
    env, command = recipe(folder)
    command[command.index("--port") + 1] = str(port)
    return command, env | {"HOME": str(home), "BEARCLF_BUNDLE": str(folder/Path(env["BEARCLF_BUNDLE"]).relative_to("/app"))}, port


def closed(folder):
    "Nobody may write there."
    for p in [folder, *folder.rglob("*")]: p.chmod(0o555 if p.is_dir() else 0o444)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="starting as another user needs root")
@pytest.mark.parametrize("road", ROADS)
def test_it_starts_as_its_host_starts_it(road, folders, installed, shop, serve, visit, bears):
    folder, home = folders[road], shop/f"home-{road}"
    home.mkdir()
    os.chown(home, 1000, 1000)
    closed(folder)
    (command, env, port) = started(road, folder, installed, home)
    as_nobody = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--", "env", "-i", "-C", str(folder), f"PATH={installed/'bin'}:/usr/bin:/bin", "LANG=C.UTF-8", f"LD_LIBRARY_PATH={shop}/python/lib", "TMPDIR=" + str(home), *(f"{k}={v}" for k, v in env.items()), str(installed/"bin"/command[0]), *command[1:]]
    serve(as_nobody, f"http://localhost:{port}/" + ("health" if road != "binder" else "api"))
    visitor = visit(f"http://localhost:{port}/{PAGE[road]}").ready()
    assert visitor.choose(bears[2]) == [Classifier().predict(bears[2]).words()]
    assert {p.stat().st_uid for p in folder.rglob("*")} == {0}


@pytest.mark.parametrize("road", ["docker", "space"])
def test_dockerfiles_have_no_fault_that_hadolint_knows(road, folders):
    done = subprocess.run([Path(sys.executable).parent/"hadolint", folders[road]/"Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("road", ROADS)
def test_it_is_small_and_pinned(road, folders):
    assert sum(p.stat().st_size for p in folders[road].rglob("*")) < 12e6
    lines = (folders[road]/"requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines) and not {"torch", "fastai", "scipy", "ray"} & {line.split("==")[0] for line in lines}
    text = (folders[road]/"README.md").read_text()
    assert "$" not in text and "None" not in text


@pytest.mark.parametrize("road", [*ROADS, "static"])
def test_nothing_is_overwritten(road, tmp_path):
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine"/"README.md").write_text("My notes")
    for force in ([], ["--force"]):
        done = deploy(road, tmp_path/"mine", *force)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert (tmp_path/"mine"/"README.md").read_text() == "My notes" and len(list((tmp_path/"mine").iterdir())) == 1
    assert deploy(road, tmp_path/"new").returncode == 0
    assert deploy(road, tmp_path/"new").returncode == 2
    (tmp_path/"new"/"CNAME").write_text("bears.example")
    again, other = deploy(road, tmp_path/"new", "--force"), deploy("docker" if road == "static" else "static", tmp_path/"new", "--force")
    assert again.returncode == 0 and "CNAME" in again.stderr
    assert other.returncode == 2 and f"was written by deploy {road}" in other.stderr
    assert (tmp_path/"new"/"CNAME").read_text() == "bears.example"


def test_a_bundle_that_nobody_measured_says_so(tmp_path):
    shutil.copytree(bundle_folder(), tmp_path/"bundle")
    spec = json.loads((tmp_path/"bundle"/"bundle.json").read_text())
    spec["metrics"], spec["thresholds"] = {}, dict(sure=spec["thresholds"]["sure"])
    (tmp_path/"bundle"/"bundle.json").write_text(json.dumps(spec))
    done = deploy("static", tmp_path/"page", "--bundle", tmp_path/"bundle")
    page = (tmp_path/"page"/"index.html").read_text()
    assert done.returncode == 0 and "was not measured" in done.stderr
    assert "Nobody has measured" in page and "names one all the same" in page


def test_mistakes_are_one_line(tmp_path):
    (tmp_path/"file").write_text("")
    for args, sentence in ((("docker", tmp_path/"x", "--bundle", tmp_path), "There is no bundle"), (("docker", tmp_path/"file"), "is a file"), (("nowhere", tmp_path/"x"), "nowhere")):
        done = deploy(*args)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
