"""Many photos by `bearclf batch`, killed on the way: one row each? As quick at the end as at the beginning? How much memory?

The photos of a folder (default: `BEARCLF_PHOTOS`, or ../shared/photos/bears) under so many names, so that there are as many as asked for.
    python benchmarks/batch.py [--photos 20000] [--kills 2] [--engine local|ray] [--folder FOLDER]
"""
import argparse, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

import pandas as pd

from bearclf.core import photo_files

HERE = Path(__file__).resolve().parent.parent


def filled(folder, fns, n):
    "Links to `fns`, over and over, `n` in all."
    folder.mkdir()
    for i in range(n): (folder/f"{i:07}{fns[i % len(fns)].suffix}").symlink_to(fns[i % len(fns)].resolve())


def peak(pid): # MB
    try: return next(int(line.split()[1])/1e3 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
    except (OSError, StopIteration): return 0


def run(command, until=lambda: False):
    "To its end, or until it is killed: (status, seconds, MB)."
    process, start, most = subprocess.Popen(command, stdout=subprocess.DEVNULL), time.monotonic(), 0
    while process.poll() is None:
        most = max(most, peak(process.pid))
        if until(): process.send_signal(signal.SIGKILL)
        time.sleep(.2)
    return process.returncode, time.monotonic() - start, most


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--photos", type=int, default=20_000)
    p.add_argument("--kills", type=int, default=2)
    p.add_argument("--engine", default="local")
    p.add_argument("--folder", default=os.environ.get("BEARCLF_PHOTOS") or HERE.parent/"shared"/"photos"/"bears")
    args = p.parse_args()
    fns = photo_files(args.folder)
    with tempfile.TemporaryDirectory() as work:
        photos, out, when = Path(work)/"photos", Path(work)/"answers.parquet", []
        filled(photos, fns, args.photos)
        command, parts = [sys.executable, "-m", "bearclf.cli", "batch", photos, out, "--engine", args.engine], Path(work)/"answers.parquet.parts"
        def enough(share): # and keep the times at which parts came
            when.extend(time.time() for _ in range(len(list(parts.glob("*.parquet"))) - len(when)))
            return len(when)*256 >= share*args.photos
        told = [run(command, lambda share=(k + 1)/(args.kills + 1): enough(share)) for k in range(args.kills)] + [run(command, lambda: enough(2))]
        df = pd.read_parquet(out, columns=["row", "file", "known", "error", "sha256"])
        assert df.file.tolist() == [str(photos/f"{i:07}{fns[i % len(fns)].suffix}") for i in range(args.photos)] and not parts.exists()
        assert df.groupby(df.row % len(fns)).sha256.nunique().max() == 1 and df.groupby(df.row % len(fns)).known.nunique().max() == 1
        rate = lambda part: 256*(len(part) - 1)/max(part[-1] - part[0], .2)
        quarter = len(when)//4
        print(f"{len(df)} photos ({len(fns)} different), {sum(status == -signal.SIGKILL for status, *_ in told)} kills: one row each, in order, and photos that are alike are answered alike; {df.error.notna().sum()} could not be read")
        print(f"{sum(s for _, s, _ in told):.0f} s in all; {rate(when[:quarter]):.0f} photos a second in the first quarter, {rate(when[-quarter:]):.0f} in the last; peak {max(m for *_, m in told):.0f} MB")


if __name__ == "__main__": main()
