"""Many photos by `bearclf batch`: how many a second, by which engine; is the last as quick as the first; is there one row each though the batch is killed on the way; what would 100 million cost?

    python benchmarks/batch.py [--sizes 1000 5000 20000] [--kills 2] [--engines local ray] [--price 0.10] [--folder FOLDER]

The photos of a folder (default: `BEARCLF_PHOTOS`, or ../shared/photos/bears) under so many names that there are as many as asked for. First each engine on one core and on two, with the least of the sizes. Then all sizes by the local engine; the largest is killed (SIGKILL) on the way, and begun again.
The estimate is on paper: the rate of this machine, as many of them as you like, and a price for an hour of one of them that you give.
"""
import argparse, os, signal, subprocess, sys, tempfile, time
from contextlib import suppress
from pathlib import Path

import pandas as pd

from bearclf.core import photo_files

HERE = Path(__file__).resolve().parent.parent
PART = 256  # photos, as `bearclf batch` has it


def filled(folder, fns, n):
    "Links to `fns`, over and over, `n` in all."
    folder.mkdir()
    for i in range(n): (folder/f"{i:07}{fns[i % len(fns)].suffix}").symlink_to(fns[i % len(fns)].resolve())
    return folder


def peak(pid): # MB, with the processes it started
    try: pids, most = [pid, *open(f"/proc/{pid}/task/{pid}/children").read().split()], 0
    except OSError: return 0
    for p in pids:
        with suppress(OSError): most += sum(int(line.split()[1])/1e3 for line in open(f"/proc/{p}/status") if line.startswith("VmHWM"))
    return most


def run(photos, out, *options, until=lambda: False):
    "To its end, or until it is killed: (status, seconds, MB)."
    process, start, most = subprocess.Popen([sys.executable, "-m", "bearclf.cli", "batch", photos, out, *map(str, options)], stdout=subprocess.DEVNULL), time.monotonic(), 0
    while process.poll() is None:
        most = max(most, peak(process.pid))
        if until(): process.send_signal(signal.SIGKILL)
        time.sleep(.2)
    return process.returncode, time.monotonic() - start, most


def killed(photos, out, n, kills):
    "Run with so many kills: (seconds, MB, when each part came, kills that found it alive)."
    parts, when = out.with_name(out.name + ".parts"), []
    def enough(share): # and keep the times at which parts came
        when.extend(time.time() for _ in range(len(list(parts.glob("*.parquet"))) - len(when)))
        return len(when)*PART >= share*n
    told = [run(photos, out, until=lambda share=(k + 1)/(kills + 1): enough(share)) for k in range(kills)] + [run(photos, out, until=lambda: enough(2))]
    assert not parts.exists()
    return sum(s for _, s, _ in told), max(m for *_, m in told), when, sum(status == -signal.SIGKILL for status, *_ in told)


def check(out, photos, fns, n):
    "One row each, in order; photos that are alike are answered alike."
    df = pd.read_parquet(out, columns=["row", "file", "known", "error", "sha256"])
    assert df.file.tolist() == [str(photos/f"{i:07}{fns[i % len(fns)].suffix}") for i in range(n)] and df.row.tolist() == list(range(n))
    assert df.groupby(df.row % len(fns)).sha256.nunique().max() == 1 and df.groupby(df.row % len(fns)).known.nunique().max() == 1
    return df.error.notna().sum()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", nargs="+", type=int, default=[1000, 5000, 20_000])
    p.add_argument("--kills", type=int, default=2)
    p.add_argument("--engines", nargs="*", default=["local", "ray"])
    p.add_argument("--price", type=float, default=.10, help="of an hour of a machine like this one, in any currency")
    p.add_argument("--folder", default=os.environ.get("BEARCLF_PHOTOS") or HERE.parent/"shared"/"photos"/"bears")
    args = p.parse_args()
    fns, least, largest = photo_files(args.folder), min(args.sizes), max(args.sizes)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        folders = {n: filled(work/str(n), fns, n) for n in args.sizes}
        for engine in args.engines:
            for workers in (1, 2):
                status, seconds, _ = run(folders[least], work/"answers.parquet", "--engine", engine, "--workers", workers, "--part", 50, "--force")
                print(f"{engine:5}, {workers} core{'s' if workers > 1 else ' '}: {least} photos in {seconds:.1f} s, {least/seconds:.0f} a second" + " (starting Ray included)"*(engine == "ray"), flush=True)
        for n in sorted(args.sizes):
            seconds, mb, when, kills = killed(folders[n], work/f"{n}.parquet", n, args.kills*(n == largest))
            failed = check(work/f"{n}.parquet", folders[n], fns, n)
            print(f"local: {n} photos ({len(fns)} different), {kills} kills: one row each, in order, {failed} could not be read; {seconds:.1f} s, {n/seconds:.0f} a second, peak {mb:.0f} MB", flush=True)
        rate, quarter = lambda part: PART*(len(part) - 1)/max(part[-1] - part[0], .2), len(when)//4
        print(f"of the {largest}, {rate(when[:quarter]):.0f} a second in the first quarter, {rate(when[-quarter:]):.0f} in the last")
        hours = 1e8*seconds/largest/3600
        print(f"On paper: 100 million photos at {largest/seconds:.0f} a second are {hours:.0f} hours of one machine like this ({os.cpu_count()} cores): a day of {hours/24:.0f} machines, or {hours*args.price:.0f} at {args.price} an hour.")


if __name__ == "__main__": main()
