"""What the tests share: a served page, a browser that keeps account, the photos."""
import os, random, shutil, socket, subprocess, sys, tempfile, time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

os.environ.setdefault("BEARCLF_CACHE", os.path.join(tempfile.gettempdir(), "bearclf-tests"))  # one cache for all of them, and none of the user's
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")  # two trainings that each want every core take far longer than one after the other

ROOT = Path(__file__).parent.parent
START = 90  # seconds a server may take to start: two slow cores, busy with other things
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def free_port():
    "A port that nobody listens on, and that neither the system (from 32768) nor Ray (to 19999) gives to others meanwhile."
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # no seed of a test makes it the same twice
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def _answers(url):
    try: return urlopen(url, timeout=START).status == 200
    except HTTPError: return True
    except OSError: return False


@contextmanager
def serving(command, url, cwd=ROOT, env=None):
    "Run `command` until the block ends; the block starts once `url` answers."
    process = subprocess.Popen(command, cwd=cwd, env={**{k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.url = url
    try:
        end = time.monotonic() + START
        while not _answers(url):
            assert process.poll() is None, f"the server ended early: {process.communicate()[1]}"
            assert time.monotonic() < end, f"no answer from {url} in {START} s"
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None: process.terminate()
        try: print((process.communicate(timeout=30)[1] or "")[-9999:], file=sys.stderr, end="")  # pytest shows it where a test fails
        except subprocess.TimeoutExpired: process.kill()


def app(*options):
    "`bearclf app` on a free port, unless `options` name one: command and address."
    port = free_port()
    return [sys.executable, "-m", "bearclf.cli", "app", "--no-browser", "--port", str(port), *options], f"http://localhost:{port}/"


@pytest.fixture(scope="session")
def page_url():
    "The address of one `bearclf app`, with the bundled bears."
    with serving(*app()) as process: yield process.url


@pytest.fixture
def serve():
    "`serving` until the test ends."
    with ExitStack() as servers: yield lambda *args, **kwargs: servers.enter_context(serving(*args, **kwargs))


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, serve):  # after `serve`, so that visitors leave before their server ends
    "Open a page; when the test ends, nothing may have gone wrong in its console, and no other machine been asked."
    visitors = []
    def opened(url, **context):
        from browser import Visitor
        visitors.append(Visitor(chromium, url, **context))
        return visitors[-1]
    yield opened
    for v in visitors: v.leave()


@pytest.fixture
def visitor(visit, page_url): return visit(page_url).ready()


@pytest.fixture
def bears(tmp_path):
    "Three drawn bears as files."
    import numpy as np
    from bearclf.practice import draw_bear
    rng = np.random.default_rng(5)
    files = [tmp_path/f"{label}.png" for label in ("black", "grizzly", "teddy")]
    for f in files: draw_bear(f.stem, rng).save(f)
    return files


@pytest.fixture(scope="session")
def photos():
    "Real photos: a folder with one folder per label."
    folder = Path(os.environ.get("BEARCLF_PHOTOS") or ROOT.parent/"shared"/"photos"/"bears")
    if folder.is_dir(): return folder
    if os.environ.get("CI") == "true": pytest.fail(f"CI must have real photos, and there are none in {folder}")
    pytest.skip(f"no real photos in {folder}: name their folder with BEARCLF_PHOTOS")


@pytest.fixture(scope="session")
def shared_photos(photos):
    "The collections around the bears: `bears`, `not_bears`, `near_misses`, `as_downloaded`, `flowers`."
    if (photos.parent/"not_bears").is_dir(): return photos.parent
    if os.environ.get("CI") == "true": pytest.fail(f"CI must have the collections beside {photos}")
    pytest.skip(f"no other collections beside {photos}")


@pytest.fixture(scope="session")
def postgres_server():
    from databases import postgres, programs
    try: import psycopg  # noqa: F401
    except ImportError: bin = None
    else: bin = programs()
    if bin is None:
        if os.environ.get("CI") == "true": pytest.fail("CI must have PostgreSQL and psycopg")
        pytest.skip("needs PostgreSQL (apt install postgresql) and psycopg")
    with postgres(bin) as emptied: yield emptied


@pytest.fixture(params=["sqlite", "postgresql"])
def any_log(request, tmp_path):
    "Where a new predictions log shall be: a file, or an empty database of a PostgreSQL."
    if request.param == "sqlite": return str(tmp_path/"bearclf.db")
    return request.getfixturevalue("postgres_server")()
