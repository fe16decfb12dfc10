"""Many visitors, and those who ask for what they should not get: plain HTTP and raw web sockets against a real `bearclf app`."""
import asyncio, io, json, re, shutil, socket, statistics, struct, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from uuid import uuid4

import numpy as np
import psutil
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from bearclf.classify import bundle_folder
from bearclf.practice import draw_bear
from bearclf.visitors import CAN_FORK, WIRE
from conftest import app

AsyncHTTPClient.configure("tornado.simple_httpclient.SimpleAsyncHTTPClient", max_clients=500)
SECONDS = 60


def run(coroutine):
    "In a thread of its own: Playwright's loop may be running in this one."
    with ThreadPoolExecutor(1) as pool: return pool.submit(asyncio.run, coroutine).result()


async def get(url, method="GET", **kwargs):
    return await AsyncHTTPClient().fetch(HTTPRequest(url, method, connect_timeout=SECONDS, request_timeout=SECONDS, allow_nonstandard_methods=True, follow_redirects=False, **kwargs), raise_error=False)


def packed(*parts, count=None):
    "A frame of the protocol `WIRE`: how many numbers come, where each part begins and the last one ends, the parts."
    ends = list(accumulate([8*(len(parts) + 2), *map(len, parts)]))
    return struct.pack(f"<{len(ends) + 1}Q", len(ends) if count is None else count, *ends) + b"".join(parts)


def message(kind, content, channel="shell", buffers=(), **other):
    "A Jupyter message as a web socket carries it; `other` may be another header, parent_header or metadata."
    said = dict(header=dict(msg_id=uuid4().hex, msg_type=kind, username="", session="s", date="2026-01-01T00:00:00Z", version="5.3"), parent_header={}, metadata={}) | other
    return packed(channel.encode(), *(json.dumps(part).encode() for part in (*said.values(), content)), *buffers)


def unpacked(frame):
    "What a message says."
    n, *ends = struct.unpack("<7Q", frame[:56])
    header, _, _, content = (json.loads(frame[begin:end]) for begin, end in zip(ends[1:5], ends[2:6]))
    return dict(header=header, content=content)


class Guest:
    "A visitor without a browser: opens the page, connects, sends photos to its `Upload`."
    def __init__(self, url): self.url = url

    async def come(self):
        self.page = await get(self.url)
        if self.page.code != 200: return self
        self.kernel = re.search(r'"kernelId": "([^"]+)"', self.page.body.decode())[1]
        self.socket = await self.connect()
        return self

    async def connect(self, subprotocols=(WIRE,)):
        "Another web socket to the same kernel."
        return await websocket_connect(HTTPRequest(f"{self.url.replace('http', 'ws')}api/kernels/{self.kernel}/channels?session_id={uuid4()}", connect_timeout=SECONDS, request_timeout=SECONDS), max_message_size=2**26, subprotocols=subprotocols)

    async def send(self, *args, **kwargs): await self.socket.write_message(message(*args, **kwargs), binary=True)

    async def hear(self, wanted, seconds=SECONDS):
        "The first message for which `wanted` is true; None after `seconds`."
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try: frame = await asyncio.wait_for(self.socket.read_message(), left)
            except asyncio.TimeoutError: return None
            if frame is None: return None
            if wanted(told := unpacked(frame)): return told

    async def upload(self):
        "The address of the page's `Upload`."
        await self.send("comm_info_request", dict(target_name="jupyter.widget"))
        comms = (await self.hear(lambda m: m["header"]["msg_type"] == "comm_info_reply"))["content"]["comms"]
        for comm in comms:
            await self.send("comm_msg", dict(comm_id=comm, data=dict(method="request_state")))
            told = await self.hear(lambda m: m["header"]["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm and m["content"]["data"].get("method") == "update")
            if told and "_esm" in told["content"]["data"]["state"]: return comm

    async def ask(self, photo, name):
        "Seconds from sending a photo to its answer, and the answer's words."
        start = time.monotonic()
        await self.send("comm_msg", dict(comm_id=self.comm, data=dict(method="custom", content=dict(kind="photo", name=name))), buffers=[photo])
        told = await self.hear(lambda m: m["header"]["msg_type"] == "comm_msg" and m["content"]["data"].get("content", {}).get("kind") == "answered")
        return time.monotonic() - start, told and told["content"]["data"]["content"]["words"]

    def leave(self): self.socket.close()


def jpeg(label, seed):
    out = io.BytesIO()
    draw_bear(label, np.random.default_rng(seed)).save(out, "jpeg", quality=90)
    return out.getvalue()


CODE = "import pathlib; pathlib.Path({canary!r}).write_text('ran')"
PATHS = """app.ipynb nbs/app.ipynb voila.json bundle.json model.onnx card.md bearclf.db predictions.db .env settings.ini api/kernels api/kernels/ api/sessions api/contents api/contents/app.ipynb api/terminals api/kernelspecs
api/config/notebook api/nbconvert api/spec.yaml api/status tree lab edit/app.ipynb notebooks/app.ipynb files/app.ipynb view/app.ipynb nbconvert/html/app.ipynb terminals/1 metrics voila/tree voila/render/app.ipynb voila/render/../app.ipynb
voila/files/app.ipynb voila/files/voila.json voila/files/../settings.ini voila/files/%2e%2e/settings.ini voila/files//etc/passwd voila/files/..%2f..%2fetc%2fpasswd voila/static/../../app.ipynb voila/static/%2e%2e/%2e%2e/app.ipynb
voila/static//etc/passwd voila/static/..%2f..%2f..%2fetc%2fpasswd voila/templates/bearclf/../../../../../etc/passwd voila/templates/bearclf/index.html.j2 voila/templates/bearclf/static/..%2findex.html.j2 voila/labextensions/../../../etc/passwd voila/labextensions/%2e%2e/%2e%2e/kernels/python3/kernel.json
voila/api/contents/ voila/api/themes/..%2f..%2fetc%2fpasswd voila/execution/x static/../app.ipynb ../app.ipynb %2e%2e/app.ipynb ..%2fapp.ipynb ....//app.ipynb /etc/passwd //etc/passwd proc/self/environ ?voila-template=lab ?template=lab ?theme=../../etc""".split()
SECRETS = (b"from bearclf.app import page", b"root:x:", b"\"thresholds\"", b"cull_idle_timeout", b"{%", b"ipykernel_launcher", b"PATH=", b"[DEFAULT]")


def test_nothing_is_served_but_the_page(page_url):
    async def ask():
        return [(path, await get(page_url + path)) for path in PATHS]
    served = {path: r for path, r in run(ask())}
    for path, r in served.items():
        assert not any(secret in (r.body or b"") for secret in SECRETS), path
        assert path.startswith("?") or r.code in (301, 302, 400, 403, 404, 405, 426), (path, r.code)
        assert "Location" not in r.headers or "login" in r.headers["Location"] or r.headers["Location"].startswith("/"), path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_change_nothing(page_url, method):
    async def ask(): return [(await get(page_url + path, method, body="{}")).code for path in ("", "api/kernels", "api/contents/x.ipynb", "api/sessions", "voila/files/x")]
    assert all(code >= 400 or method == "OPTIONS" for code in run(ask()))


def test_no_code_runs(page_url, tmp_path):
    canary = tmp_path/"canary"
    code = CODE.format(canary=str(canary))
    tries = [("execute_request", dict(code=code, silent=True, store_history=False, user_expressions={}, allow_stdin=True)),
             ("execute_request", dict(code="0", silent=False, store_history=False, user_expressions=dict(x=f"exec({code!r})"), allow_stdin=False)),
             ("inspect_request", dict(code=code, cursor_pos=3, detail_level=1)), ("complete_request", dict(code=code, cursor_pos=len(code))), ("history_request", dict(hist_access_type="tail", n=10, output=True, raw=True)),
             ("is_complete_request", dict(code=code)), ("debug_request", dict(type="request", seq=1, command="evaluate", arguments=dict(expression=code))), ("usage_request", {}), ("create_subshell_request", {}), ("input_reply", dict(value=code)),
             ("interrupt_request", {}), ("comm_open", dict(comm_id=uuid4().hex, target_name="os.system", target_module="os", data=dict(command=f"touch {canary}"))),
             ("comm_open", dict(comm_id=uuid4().hex, target_name="jupyter.widget", data=dict(state=dict(_model_name="X", _model_module="os", _view_module="os"))))]
    async def attack():
        guest = await Guest(page_url).come()
        for channel in ("shell", "control", "stdin", "iopub", "nowhere"):
            for kind, content in tries: await guest.send(kind, content, channel)
        heard = await guest.hear(lambda m: m["header"]["msg_type"] in {kind.replace("request", "reply") for kind, _ in tries}, 4)
        await guest.send("kernel_info_request", {})
        assert await guest.hear(lambda m: m["header"]["msg_type"] == "kernel_info_reply")  # what is allowed is answered
        for junk in ("", "{", "null", "[1]", '{"header": 1}', b"\0\0\0\1\0\0\0\0", b"\xff"*64): await (await Guest(page_url).come()).socket.write_message(junk, binary=isinstance(junk, bytes))
        guest.leave()
        other = await Guest(page_url).come()  # the server is still there, and so is a page that works
        other.comm = await other.upload()
        words = (await other.ask(jpeg("teddy", 4), "t.jpg"))[1]
        other.leave()
        return heard, words
    heard, words = run(attack())
    assert heard is None and not canary.exists()
    assert words.startswith("t.jpg: ")


async def refused(url):
    "What becomes of web sockets that do not offer `WIRE`, and seconds until the server answers the next one."
    guest, codes = await Guest(url).come(), []
    for offered in (None, ["v0.kernel.websocket.jupyter.org"], [WIRE.upper(), "base64"]):
        try: codes.append((await guest.connect(offered)).selected_subprotocol)
        except HTTPClientError as e: codes.append(e.code)
    start = time.monotonic()
    assert (await get(url + "health")).code == 200
    guest.leave()
    return codes, time.monotonic() - start


def test_a_socket_that_speaks_the_old_way_is_refused(page_url):
    codes, seconds = run(refused(page_url))
    assert codes == [400, 400, 400] and seconds < 2


def test_what_is_no_message_is_dropped_in_silence(serve):
    server = serve(*app())
    header = dict(msg_id="m", session="s", username="")
    async def attack():
        guest = await Guest(server.url).come()
        comm, unheard = await guest.upload(), []
        frames = [*(message("comm_msg", dict(comm_id=comm, data=data)) for data in (dict(method="custom", content="hello"), dict(method="custom", content=[1]), dict(method="update", state=5), dict(method=7), "hello", None)),
                  *(message("kernel_info_request", {}, **{part: wrong}) for part in ("header", "parent_header", "metadata") for wrong in ("hello", [], None, 5)), *(message("comm_msg", content) for content in ("hello", [comm], None, {})),
                  *(message("", {}, header=header | more) for more in ({}, dict(msg_type=None), dict(msg_type=["comm_msg"]))), message("comm_msg", dict(comm_id=comm, data={}), channel="nowhere"),
                  "{}", "", b"", b"\0"*8, b"\xff"*64, packed(b"shell", count=2**40), packed(*[b"{}"]*5), packed(*[b"\xff{}"]*5), packed(b"shell", *[b"["*100_000]*4), struct.pack("<41Q", 40, *[400, 10**7]*20) + bytes(10**6)]
        for frame in frames:
            await guest.socket.write_message(frame, binary=isinstance(frame, bytes))
            await guest.send("kernel_info_request", {})
            if not await guest.hear(lambda m: m["header"]["msg_type"] == "kernel_info_reply", 20): unheard.append(frame[:200])
        guest.comm = comm
        words = (await guest.ask(jpeg("teddy", 4), "t.jpg"))[1]
        guest.leave()
        return unheard, words
    unheard, words = run(attack())
    server.terminate()
    assert server.communicate(timeout=30)[1] == ""
    assert unheard == [] and words.startswith("t.jpg: ")


def test_another_visitors_kernel_is_not_to_be_found(page_url):
    async def ask():
        guest = await Guest(page_url).come()
        pages = [await get(page_url + path) for path in ("", "api/kernels", "voila/static/voila.js", "api/kernels/00000000-0000-0000-0000-000000000000", "api/me")]
        guest.leave()
        return guest.kernel, [p.body or b"" for p in pages]
    kernel, bodies = run(ask())
    assert not any(kernel.encode() in body for body in bodies)


async def crowd(url, n, each):
    "`n` guests who come within some seconds and give `each` photos: all waiting times, and all words."
    photos = [jpeg(label, seed) for seed, label in enumerate(["black", "grizzly", "teddy"]*3)]
    async def one(i):
        await asyncio.sleep(i*.5)
        guest = await Guest(url).come()
        assert guest.page.code == 200, f"guest {i}: {guest.page.code} {guest.page.body[:300]}"
        guest.comm = await guest.upload()
        out = []
        for k in range(each):
            out.append((k, *await guest.ask(photos[(i + k) % len(photos)], f"{i}-{k}.jpg")))
            await asyncio.sleep(.5)
        guest.leave()
        return i, out
    return await asyncio.gather(*(one(i) for i in range(n)))


def family(server): return psutil.Process(server.pid).children(recursive=True)


@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_fifty_visitors(serve):
    server = serve(*app())
    found = run(crowd(server.url, 50, 10))
    waits = [took for _, out in found for _, took, _ in out]
    assert all(words and words.startswith(f"{i}-{k}.jpg: ") for i, out in found for k, _, words in out)  # each hears of their own photo
    assert len(waits) == 500
    print(f"median {statistics.median(waits):.2f} s, 95 %: {sorted(waits)[475]:.2f} s")
    assert sorted(waits)[475] <= 2


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_two_hundred_at_once(serve):
    server = serve(*app("--visitors", "20"))
    async def burst(): return await asyncio.gather(*(get(server.url) for _ in range(200)))
    codes = [(r.code, b"One moment" in r.body) for r in run(burst())]
    assert set(codes) == {(200, False), (503, True)}
    assert codes.count((200, False)) >= 20
    assert len(family(server)) <= 20 + 8


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
@pytest.mark.parametrize("victim", ["a kernel", "the warm process"])
def test_a_dead_process_takes_nobody_along(serve, victim):
    server = serve(*app())
    async def visits():
        guests = [await Guest(server.url).come() for _ in range(2)]
        for guest in guests: guest.comm = await guest.upload()
        warm = psutil.Process(server.pid).children()[0]
        (warm if victim == "the warm process" else max(warm.children(), key=psutil.Process.create_time)).kill()
        await asyncio.sleep(3)
        new = [await Guest(server.url).come() for _ in range(3)]
        for guest in new: guest.comm = await guest.upload()
        return [await guest.ask(jpeg("black", 1), "b.jpg") for guest in (guests[0:1] if victim == "a kernel" else []) + new]
    assert all(words.startswith("b.jpg: ") for _, words in run(visits()))


FAILING = """
import sys
from bearclf.visitors import Warm
fork, asked = Warm.fork, []
def sometimes(self, **request):
    asked.append(1)
    if len(asked) in {fail!r}: raise RuntimeError('no room')
    return fork(self, **request)
Warm.fork = sometimes
sys.argv = {argv!r}
from bearclf.cli import main; main()
"""


@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_a_kernel_that_does_not_start_is_not_the_visitors_affair(serve):
    command, url = app()
    server = serve([command[0], "-c", FAILING.format(fail=[1, 4, 7], argv=["bearclf", *command[3:]])], url)
    async def visits():
        said = []
        for _ in range(6):
            guest = await Guest(url).come()
            if guest.page.code == 200: guest.comm = await guest.upload()
            said.append(guest.page.code == 200 and (await guest.ask(jpeg("black", 1), "b.jpg"))[1])
            await asyncio.sleep(1.5)  # the next kernel is waiting by then
        return said
    said = run(visits())
    assert all(words and words.startswith("b.jpg: ") for words in said), said
    server.terminate()
    err = server.communicate(timeout=30)[1]
    assert "(RuntimeError('no room')), and another was tried." in err and "does not exist" not in err, err


def test_a_new_bundle_is_taken_by_the_next_visitor(serve, tmp_path):
    bundle = shutil.copytree(bundle_folder(), tmp_path/"b")
    server = serve(*app("--bundle", "b"), tmp_path)
    async def title():
        guest = await Guest(server.url).come()
        guest.leave()
        return "daisy" in guest.page.body.decode()
    before = run(title())
    spec = json.loads((bundle/"bundle.json").read_text())
    (bundle/"bundle.json").write_text(json.dumps({**spec, "labels": ["daisy", "rose", "tulip"]}))
    time.sleep(3)
    run(title())  # the kernel that was waiting still has the old one
    time.sleep(3)
    assert not before and run(title())


def impatient(*options, **seconds):
    "`bearclf app` that ends kernels sooner: command and address."
    command, url = app(*options)
    code = f"import sys, bearclf.visitors; vars(bearclf.visitors).update({seconds!r}); sys.argv = {['bearclf', *command[3:]]!r}; from bearclf.cli import main; main()"
    return [command[0], "-c", code], url


def pss(server):
    "MB of a server and all its processes, where what they share counts once."
    total = 0
    for p in [psutil.Process(server.pid), *family(server)]:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError): total += p.memory_full_info().pss/1e6
    return total


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_memory_comes_back_after_a_rush(serve):
    server = serve(*impatient("--visitors", "20", ALONE=6))
    async def burst(): return await asyncio.gather(*(get(server.url) for _ in range(200)))
    run(burst())  # what the server itself grows by when it is first busy stays
    def settled():
        end = time.monotonic() + 40
        while len(family(server)) > 2 and time.monotonic() < end: time.sleep(.5)
        time.sleep(2)
        return pss(server)
    before = settled()
    run(burst())
    during, after = pss(server), settled()
    print(f"{before:.0f} MB, in the rush {during:.0f} MB, then {after:.0f} MB")
    assert during > before + 100 and after < before + 20


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_the_waiting_kernel_waits_and_a_forgotten_tab_is_told(serve, visit, bears):
    server = serve(*impatient(ALONE=6, IDLE=9))
    time.sleep(25)  # a quiet night
    visitor = visit(server.url).ready()
    visitor.choose(bears[2])
    end = time.monotonic() + 40
    while len(family(server)) > 2 and time.monotonic() < end: visitor.tab.wait_for_timeout(500)
    assert len(family(server)) == 2  # the tab is open, and its kernel has ended
    visitor.tab.set_input_files(".bearclf-upload input", str(bears[0]))
    visitor.status("Reload the page")
    visitor.errors.clear()  # of a kernel that is not there
    visitor.tab.reload()
    visitor.ready().choose(bears[0])
    visitor.errors.clear()
    visitor.tab.close()
    server.terminate()
    assert "Traceback" not in server.communicate(timeout=30)[1]


@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_who_reloads_takes_no_second_place(serve, visit):
    server = serve(*app("--visitors", "4"))
    visitor = visit(server.url).ready()
    for _ in range(4):
        visitor.tab.locator("#rendered_cells .bearclf-upload").wait_for()
        visitor.tab.wait_for_timeout(1000)
        visitor.tab.reload()
        visitor.ready()
    visitor.tab.locator("#rendered_cells .bearclf-upload").wait_for()
    end = time.monotonic() + 15
    while len(family(server)) > 3 and time.monotonic() < end: visitor.tab.wait_for_timeout(500)
    assert len(family(server)) <= 4  # the warm process, the visitor's kernel, one that waits; and maybe one that was left before its page could say so


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_who_reads_nothing_holds_up_nobody(serve):
    server = serve(*app())
    async def attack():
        guest = await Guest(server.url).come()
        guest.comm = await guest.upload()
        deaf = []
        for _ in range(6):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
            line.connect(("127.0.0.1", int(server.url.split(":")[-1].strip("/"))))
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"*8)
            deaf.append(line)
        await asyncio.sleep(2)
        page = await asyncio.wait_for(get(server.url), 15)
        for line in deaf: line.close()
        return page.code, await guest.ask(jpeg("teddy", 4), "t.jpg")
    code, (_, words) = run(attack())
    assert code in (200, 503) and words.startswith("t.jpg: ")


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_what_is_left_unread_does_not_pile_up(serve):
    server = serve(*app())
    before = psutil.Process(server.pid).memory_info().rss
    async def attack():
        guest = await Guest(server.url).come()
        comm = await guest.upload()
        await guest.send("comm_msg", dict(comm_id=comm, data=dict(method="update", state=dict(_esm="x"*8_000_000))))
        deaf = await guest.connect()
        for _ in range(120):  # a gigabyte
            with suppress(Exception): await deaf.write_message(message("comm_msg", dict(comm_id=comm, data=dict(method="request_state"))), binary=True)
        await asyncio.sleep(5)
        other = await Guest(server.url).come()
        other.comm = await other.upload()
        return psutil.Process(server.pid).memory_info().rss, await other.ask(jpeg("teddy", 4), "t.jpg")
    after, (_, words) = run(attack())
    assert after < before + 600e6 and words.startswith("t.jpg: ")


@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_a_label_of_ones_own_is_not_noted(serve, tmp_path):
    from bearclf.log import PredictionsLog
    server = serve(*app("--log", "l.db"), tmp_path)
    async def attack():
        guest = await Guest(server.url).come()
        guest.comm = await guest.upload()
        await guest.ask(jpeg("teddy", 4), "t.jpg")
        await guest.send("comm_info_request", dict(target_name="jupyter.widget"))
        comms = (await guest.hear(lambda m: m["header"]["msg_type"] == "comm_info_reply"))["content"]["comms"]
        for comm in comms:
            if comm == guest.comm: continue
            for data in (dict(method="update", state=dict(labels=["forged"])), dict(method="custom", content=dict(kind="told", human="forged", keep=True)), dict(method="custom", content=dict(kind="told", human="teddy", keep="yes")), dict(method="custom", content=["told"]), dict(state=5)):
                await guest.send("comm_msg", dict(comm_id=comm, data=data))
        leaked = await guest.hear(lambda m: m["header"]["msg_type"] in ("error", "stream"), 3)
        guest.leave()
        return leaked
    leaked, log = run(attack()), PredictionsLog(tmp_path/"l.db")
    row, = log.rows()
    assert leaked is None and (row["human"], row["consent"]) == ("teddy", False) and log.photo(row["sha256"]) is None


@pytest.mark.once
@pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux only")
def test_kernels_of_those_who_left_end(serve):
    server = serve(*impatient(ALONE=6))
    url = server.url
    time.sleep(5)
    async def visits():
        guests = [await Guest(url).come() for _ in range(6)]
        for guest in guests: guest.comm = await guest.upload()
        during = len(family(server))
        for guest in guests: guest.leave()
        await get(url)  # a robot: asks for the page and goes
        return during
    during, end = run(visits()), time.monotonic() + 30
    while (after := len(family(server))) > 2 and time.monotonic() < end: time.sleep(.5)
    assert during >= 7 and after <= 2  # the warm process and a kernel that waits
