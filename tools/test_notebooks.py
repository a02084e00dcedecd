"""Run every notebook in a process of its own (nbdev_test --path), two at a time, and print a table. The ladders of nbs/experiments/ get
12 patients, one epoch and their first three rungs here, which shows that they run.

    python tools/test_notebooks.py [PART-OF-NAME ...] [--flags "slow cuda"] [--jobs 2] [--timeout 300]
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(path, flags, timeout):
    "Seconds, and the output where the notebook failed (None where it passed)."
    start, command = time.time(), [str(Path(sys.executable).parent / "nbdev_test"), "--path", str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore", "HMS_LADDER": "12,1,3"}
    try:
        done = subprocess.run([*command, *(["--flags", flags] if flags else [])], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
        fault = None if done.returncode == 0 else done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        fault = f"stopped after {timeout} s"
    return time.time() - start, fault


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--flags", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300)
    args = parser.parse_args()
    paths = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts and not p.name.startswith("_")]
    paths = [p for p in paths if not args.names or any(n in p.name for n in args.names)]
    failed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for path, (seconds, fault) in zip(paths, pool.map(lambda p: run(p, args.flags, args.timeout), paths)):
            print(f"{'FAILED' if fault else 'ok':<7}{seconds:6.1f} s  {path.relative_to(ROOT)}", flush=True)
            if fault:
                failed.append(path)
                print(fault[-5000:], flush=True)
    print(f"{len(paths) - len(failed)} of {len(paths)} notebooks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
