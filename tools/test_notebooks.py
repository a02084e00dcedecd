"""Run every notebook in a process of its own (nbdev_test --path), two at a time, and print a table.

The ladders of nbs/experiments/ get 12 patients, one epoch and three rungs: it shows that they run.

    python tools/test_notebooks.py [PART-OF-PATH ...] [--flags "slow cuda"] [--jobs 2] [--timeout 300]
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared import ROOT, notebooks

SMALL = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore", "HMS_LADDER": "12,1,3"}


def run(path, flags, timeout):
    "Seconds, and the output where the notebook failed (None where it passed)."
    command = [str(Path(sys.executable).parent / "nbdev_test"), "--path", str(path)]
    if flags:
        command += ["--flags", flags]
    start, env = time.time(), {**os.environ, **SMALL}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
        fault = None if done.returncode == 0 else done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        fault = f"stopped after {timeout} s"
    return time.time() - start, fault


def main():
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--flags", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300)
    args = parser.parse_args()
    names = args.names or [""]
    paths = [p for p in notebooks() if any(n in str(p.relative_to(ROOT)) for n in names)]
    failed, start = 0, time.time()
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda p: run(p, args.flags, args.timeout), paths)
        for path, (seconds, fault) in zip(paths, results, strict=True):
            verdict = "FAILED" if fault else "ok"
            print(f"{verdict:<7}{seconds:6.1f} s  {path.relative_to(ROOT)}", flush=True)
            if fault:
                failed += 1
                print(fault[-5000:], flush=True)
    print(f"{len(paths) - failed} of {len(paths)} notebooks passed in {time.time() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
