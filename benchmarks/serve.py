"""Answers a second, and how long each takes, when 1 to 32 clients ask at once: FastAPI with fastai's `learn.predict`, LitServe with our graph, and `bearclf serve`.

    python benchmarks/serve.py RUN BUNDLE [INT8] [--litserve PYTHON] [--folder FOLDER] [--side 512] [--clients 1 2 4 8 16 32] [--seconds 8] [--rounds 3]

RUN is a run folder (`bearclf train`), BUNDLE the bundle made from it (`bearclf export`), so all three have the same network; INT8 another one with weights of 8 bits, to be served, too. The photos are real ones (default: `BEARCLF_PHOTOS`, or ../shared/photos/bears), 60 of them in turn.
LitServe is tried if `--litserve` names a Python that has litserve, python-multipart, onnxruntime, numpy and pillow; two workers, as many as there are cores here. The load comes from wrk (`apt install wrk`), which runs on the same machine and takes little of it.
The three are started one at a time, in turns; said are medians over the rounds, and answers that are not 200 are not counted.
"""
import argparse, json, os, signal, socket, statistics, subprocess, sys, tempfile, time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from bearclf.core import open_photo, photo_files

HERE = Path(__file__).resolve().parent.parent

FASTAI = """import sys
from fastai.vision.all import *
from fastapi import FastAPI, UploadFile
import uvicorn
app, learn = FastAPI(), load_learner({export!r})
@app.post('/predict')
async def predict(photo: UploadFile):
    with learn.no_bar(): label, index, probs = learn.predict(PILImage.create(await photo.read()))
    return dict(label=str(label), probs=dict(zip(learn.dls.vocab, map(float, probs))))
uvicorn.run(app, port=int(sys.argv[1]), log_level='error')"""

LITSERVE = """import sys
import litserve as ls
from bearclf.classify import Classifier
class Photos(ls.LitAPI):
    def setup(self, device): self.clf = Classifier({bundle!r}, threads=1)
    def decode_request(self, request): return request['photo'].file.read()
    def predict(self, data): return self.clf.predict(data)
    def encode_response(self, answer): return answer.row()
if __name__ == '__main__': ls.LitServer(Photos(), accelerator='cpu', workers_per_device=2).run(port=int(sys.argv[1]), log_level='error', generate_client_file=False)"""

FORM = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'

WRK = """
local bodies, n = {}, 0
for i = 1, COUNT do local f = io.open("FOLDER/" .. i, "rb"); bodies[i] = f:read("*a"); f:close() end
wrk.method, wrk.headers["Content-Type"] = "POST", 'multipart/form-data; boundary=x'
function request() n = n % COUNT + 1; return wrk.format(nil, "/predict", nil, bodies[n]) end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"n": %d, "us": %d, "bad": %d, "p50": %d, "p95": %d, "p99": %d}', summary.requests, summary.duration, e.status + e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def sent(fn, side):
    "A photo as the client sends it: as it is, or made smaller first, as an app or a page can do."
    if not side: return fn.read_bytes()
    im, out = open_photo(fn), BytesIO()
    im.thumbnail((side, side))
    im.save(out, "jpeg", quality=90)
    return out.getvalue()


def prepared(folder, fns, side=None):
    "wrk's script, and the forms it sends."
    for i, fn in enumerate(fns, 1): (folder/str(i)).write_bytes(FORM + sent(fn, side) + b"\r\n--x--\r\n")
    script = folder/"load.lua"
    script.write_text(WRK.replace("COUNT", str(len(fns))).replace("FOLDER", str(folder)))
    return script


def up(port):
    for _ in range(600):
        try: return urlopen(f"http://127.0.0.1:{port}/docs").status
        except HTTPError: return
        except OSError: time.sleep(.2)
    raise SystemExit("a server did not start")


def load(port, script, clients, seconds):
    "What wrk says: answers a second, and milliseconds."
    done = subprocess.run(["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", script, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout[done.stdout.rindex("{"):])
    return dict(rate=(said["n"] - said["bad"])/said["us"]*1e6, bad=said["bad"], **{p: said[p]/1e3 for p in ("p50", "p95", "p99")})


def measure(command, script, args):
    "Start a server, ask it, end it: clients → what `load` says."
    port = free_port()
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ | dict(PYTHONPATH=str(HERE)))
    try:
        up(port)
        if not load(port, script, 2, 3)["rate"]: raise SystemExit(f"{command} gives no answers")  # and it is warm now
        return {n: load(port, script, n, args.seconds) for n in args.clients}
    finally: end(process)


def end(process):
    "With all its children: LitServe's workers outlive it for some seconds, on all of a core, which is then missing to whoever is measured next."
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired): process.wait(20)
    with suppress(ProcessLookupError):
        while True: os.killpg(process.pid, signal.SIGKILL); process.poll(); time.sleep(.1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("bundle", type=Path)
    p.add_argument("int8", type=Path, nargs="?")
    p.add_argument("--litserve", help="a Python that has litserve")
    p.add_argument("--folder", type=Path, default=os.environ.get("BEARCLF_PHOTOS") or HERE.parent/"shared"/"photos"/"bears")
    p.add_argument("--side", type=int, help="make the photos smaller before they are sent: their longer side, in pixels")
    p.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    p.add_argument("--seconds", type=int, default=8)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        fns = photo_files(args.folder)
        script = prepared(folder, fns[::max(1, len(fns)//60)][:60], args.side)
        (folder/"fastai_page.py").write_text(FASTAI.format(export=str((args.run/"export.pkl").absolute())))
        (folder/"lit_page.py").write_text(LITSERVE.format(bundle=str(args.bundle.absolute())))
        ways = {"FastAPI + fastai": [sys.executable, folder/"fastai_page.py"], "LitServe": args.litserve and [args.litserve, folder/"lit_page.py"], "bearclf serve": [sys.executable, "-m", "bearclf.cli", "serve", "--bundle", args.bundle.absolute(), "--port"]}
        if args.int8: ways["bearclf, 8 bits"] = [*ways["bearclf serve"][:4], "--bundle", args.int8.absolute(), "--port"]
        got = {name: [] for name, command in ways.items() if command}
        for _ in range(args.rounds):
            for name in got: got[name].append(measure(ways[name], script, args))
    mid = {name: {n: {k: statistics.median(r[n][k] for r in rounds) for k in rounds[0][n]} for n in args.clients} for name, rounds in got.items()}
    print(f"{'':18} clients  answers/s   p50 ms   p95 ms   p99 ms  refused")
    for name, rows in mid.items():
        for n, r in rows.items(): print(f"{name:18} {n:7} {r['rate']:10.1f} {r['p50']:8.0f} {r['p95']:8.0f} {r['p99']:8.0f} {r['bad']:8.0f}")
    for ours in (name for name in mid if name.startswith("bearclf")):
        for name in (name for name in mid if not name.startswith("bearclf")):
            print(f"{ours} against {name}: " + ", ".join(f"{n}: {mid[ours][n]['rate']/mid[name][n]['rate']:.1f} × the answers, {mid[ours][n]['p95']/mid[name][n]['p95']:.2f} × p95" for n in args.clients))
    best = max(r["rate"] for r in mid["bearclf serve"].values())
    print(f"On paper: 100 million photos at {best:.0f} a second are {1e8/best/3600:.0f} hours of a machine like this one; on ten of them {1e8/best/36e3:.0f} hours.")


if __name__ == "__main__": main()
