"""Run every notebook in a process of its own as nbdev_test does, two at a time, and print a table.

The processes are forks of one that has imported torch, the package and its like, so that each saves that.
Pictures are drawn once and small, since nobody looks at them here.
The ladders of nbs/experiments/ share one competition of 7 patients and have one epoch, one fold and two
rungs: that shows that they run. Every rung of theirs is built by tests/evaluation/test_ladder.py.

    python tools/test_notebooks.py [PART-OF-PATH ...] [--flags "slow cuda"] [--jobs 2] [--timeout 300]
"""
import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared import ROOT, notebooks, preloaded

SMALL = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
FORKS = multiprocessing.get_context("forkserver")


def quick_shell(path):
    "nbdev's shell, whose pictures are drawn once and small."
    from execnb.shell import CaptureShell
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    shell = CaptureShell(path, mpl_format="png")
    set_matplotlib_formats("png", bbox_inches=None)
    return shell


def execute(path, flags, log, ladders):
    "In a process of its own: run a notebook with its output in the file `log`; exit 0 where it passed."
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    os.chdir(ROOT)
    os.environ.update(SMALL)
    warnings.simplefilter("ignore")
    import nbdev.test
    from nbdev.config import get_config

    from hms_hbac.evaluation.ladder import SMALLEST
    from hms_hbac.signal.memory import keep_memory
    if ladders: os.environ["HMS_LADDER"] = f"{SMALLEST},{ladders}"
    keep_memory()
    nbdev.test.CaptureShell = quick_shell
    config = get_config()
    passed, _ = nbdev.test.test_nb(path, config.tst_flags.split(), flags.split(), basepath=config.config_path)
    sys.stdout.flush(), sys.stderr.flush()
    Path(log).with_name("cpu").write_text(str(sum(os.times()[:4])))
    os._exit(0 if passed else 1)


def run(path, flags, timeout, ladders=""):
    """Seconds, those of the processor, and the output where the notebook failed (None where it passed).

    Ladders share the competition in the folder `ladders`."""
    with tempfile.TemporaryDirectory() as folder:
        log, start = Path(folder) / "log", time.time()
        process = FORKS.Process(target=execute, args=(path, flags, str(log), str(ladders)))
        process.start()
        process.join(timeout)
        late = process.is_alive()
        with contextlib.suppress(ProcessLookupError):          # whatever the notebook started ends with it
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        text = log.read_text(errors="replace") if log.exists() else ""
        told = Path(folder) / "cpu"
        cpu = float(told.read_text()) if told.exists() else float("nan")
        if late: return timeout, cpu, f"stopped after {timeout} s\n{text}"
        ended = f"ended with {process.exitcode}\n{text}" if process.exitcode else None
        return time.time() - start, cpu, ended


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
    os.environ.update(SMALL)
    if len(paths) > 2: FORKS.set_forkserver_preload(preloaded())          # costs what two notebooks save
    failed, start = 0, time.time()
    with tempfile.TemporaryDirectory(prefix="ladders-") as shared, ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda p: run(p, args.flags, args.timeout, shared), paths)
        for path, (seconds, cpu, fault) in zip(paths, results, strict=True):
            verdict = "FAILED" if fault else "ok"
            print(f"{verdict:<7}{seconds:6.1f} s  cpu {cpu:6.1f} s  {path.relative_to(ROOT)}", flush=True)
            if fault:
                failed += 1
                print(fault[-5000:], flush=True)
    print(f"{len(paths) - failed} of {len(paths)} notebooks passed in {time.time() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
