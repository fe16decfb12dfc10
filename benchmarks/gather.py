"""bearclf's gathering against fastai's, on one loopback server at equal concurrency: python benchmarks/gather.py PHOTOS [--rtt 0 0.03 0.1] [--rounds 5]

PHOTOS is a folder of photos (searched with its subfolders). Besides them the server has one bad address for every ten photos: no such
page, a web page named .jpg, half a photo. The plain way is the course's: download_images, get_image_files, verify_images, unlink.
Each run is a process of its own, imports are not counted, the two take turns. Prints medians, the ratio and the peak memory.

At --rtt 0 the server is plain http and answers at once, as no server on the web does: what is measured is the work on this machine.
Else it speaks https (a certificate made by openssl) and is so many seconds away and back: two such trips for a new connection, TCP's
and TLS's, and one for each answer. 30 ms is about as far as a server on the same continent, 100 ms as one on another.
"""
import argparse
import json
import multiprocessing
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORKERS = 8
PLAIN = """
from fastai.vision.all import *
start = time.perf_counter()
download_images(dest, urls=urls, n_workers=workers)
failed = verify_images(get_image_files(dest))
failed.map(Path.unlink)
"""
OURS = """
from bearclf.gather import download_photos
from bearclf.search import Photo
import imagehash, scipy.fftpack
from PIL import Image
Image.init()
start = time.perf_counter()
download_photos([Photo(u) for u in urls], dest, 'bear', workers=workers, per_host=workers, private=True)
"""
FRAME = """
import json, resource, sys, time
from pathlib import Path
dest, urls, workers = Path({dest!r}), json.loads(Path({urls!r}).read_text()), {workers}
dest.mkdir()
{way}
took = time.perf_counter() - start
peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))/1024
print(json.dumps(dict(seconds=took, megabytes=peak, kept=sum(1 for p in dest.rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp')))))
"""


def certificate(folder):
    "A certificate for this machine, valid for a day: its file, and the key's."
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem", *names], check=True, capture_output=True)
    return f"{folder}/cert.pem", f"{folder}/key.pem"


def serve(folder, rtt, tls, ready):
    "Photos by their place in the list, every eleventh address a bad one."
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    pages = {f"/{i}{fn.suffix.lower()}": fn.read_bytes() for i, fn in enumerate(files)}
    half = next(iter(pages.values()))
    bad = {f"/bad-{i}.jpg": (None, b"<!DOCTYPE html><html>moved</html>", half[:len(half)//2])[i % 3] for i in range(len(files)//10)}
    class Answers(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # as web servers do; else an answer waits for the receipt of its own head
        protocol_version = "HTTP/1.1"
        def setup(self):
            time.sleep(2*rtt)
            if tls: self.request = tls_context.wrap_socket(self.request, server_side=True)
            super().setup()
        def do_GET(self):
            time.sleep(rtt)
            body = (pages | bad).get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")
        def log_message(self, *args): pass
    class Server(ThreadingHTTPServer): daemon_threads, request_queue_size = True, 64
    if tls:
        tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls_context.load_cert_chain(*tls)
    server = Server(("127.0.0.1", 0), Answers)
    names = sorted([*pages, *bad], key=lambda name: name[::-1])  # the bad ones spread among the others
    ready.put([f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}{n}" for n in names])
    server.serve_forever()


def run(way, urls, folder):
    with tempfile.TemporaryDirectory(dir=folder) as tmp:
        code = FRAME.format(dest=f"{tmp}/photos", urls=str(urls), workers=WORKERS, way=way)
        return json.loads(subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def compare(photos, rtt, rounds):
    "All rounds at one distance; prints what they took."
    with tempfile.TemporaryDirectory() as folder:
        ready, tls = multiprocessing.Queue(), certificate(folder) if rtt else None
        if tls: os.environ["SSL_CERT_FILE"] = tls[0]
        server = multiprocessing.Process(target=serve, args=(photos, rtt, tls, ready), daemon=True)
        server.start()
        urls = Path(folder)/"urls.json"
        urls.write_text(json.dumps(ready.get()))
        runs = {"fastai": [], "bearclf": []}
        for _ in range(rounds):
            for name, way in (("fastai", PLAIN), ("bearclf", OURS)): runs[name].append(run(way, urls, folder))
        server.terminate()
    print(f"https, {rtt*1000:.0f} ms away" if rtt else "http, no distance")
    for name, done in runs.items():
        print(f"{name:8} {statistics.median(r['seconds'] for r in done):6.2f} s   {statistics.median(r['megabytes'] for r in done):5.0f} MB peak   {done[-1]['kept']} photos kept   ({', '.join(format(r['seconds'], '.2f') for r in done)})")
    print(f"ratio    {statistics.median(r['seconds'] for r in runs['fastai'])/statistics.median(r['seconds'] for r in runs['bearclf']):6.2f}\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, .03, .1], help="seconds to the server and back; 0: plain http")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for rtt in args.rtt: compare(args.photos, rtt, args.rounds)


if __name__ == "__main__": main()
