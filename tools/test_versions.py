"""Do the promised versions work? An environment of its own, the package's tests, a rehearsal of the kernels.

    python tools/test_versions.py oldest                 the lowest versions that settings.ini allows
    python tools/test_versions.py kaggle kaggle-next     the versions of Kaggle's image and of its next base
    python tools/test_versions.py --last                 when each of them last ran here
    python tools/test_versions.py oldest --tests data    only the tests of some folders, no rehearsal

The versions stand in tools/versions/*.txt, the interpreter in their line `# python`. Environments are made in
build/versions/, with uv, and made anew when settings.ini or the file of versions changes.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shared import ROOT

PLACE = ROOT / "build/versions"
NAMES, WORKERS = ("oldest", "kaggle", "kaggle-next"), "2"
FOLDERS = ("signal", "data", "simulate", "views", "augment", "models", "training", "inference", "evaluation")
TOOLS = ["pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.120", "filelock>=3.16",
         "beautifulsoup4>=4.12", "psutil>=5.9.5", "librosa>=0.10.2", "nbclient>=0.10", "nbformat>=5.10",
         "ipykernel>=6.17", "nbconvert>=7.16", "setuptools>=75", "wheel>=0.45", "build>=1.2"]


def interpreter(version):
    "An installed Python of this version; exits with the cure where there is none."
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in [*pyenv, *filter(None, [shutil.which(f"python{version}")])]:
        command = [candidate, "-c", "import sys; print(sys.executable)"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode == 0:
            return told.stdout.strip()
    sys.exit(f"no Python {version} here; install it (pyenv install {version}), then the same command again")


def make(name):
    "The environment's interpreter, made or kept."
    versions = ROOT / f"tools/versions/{name}.txt"
    folder = PLACE / name
    said = versions.read_text() + (ROOT / "settings.ini").read_text()
    python, stamp = folder / "bin/python", folder / "made-from.txt"
    if stamp.is_file() and stamp.read_text() == said:
        return python
    uv = Path(sys.executable).parent / "uv"
    wanted = re.search(r"^# python (\S+)", versions.read_text(), re.M).group(1)
    subprocess.run([uv, "venv", "-q", "--clear", "--python", interpreter(wanted), folder], check=True)
    options = ["--resolution", "lowest-direct"] if name == "oldest" else ["-c", versions]
    subprocess.run([uv, "pip", "install", "-p", python, "-q", *options, f"{ROOT}[dask]", *TOOLS], check=True)
    # the checkout is tested, not the copy that was installed for its requirements
    subprocess.run([uv, "pip", "uninstall", "-p", python, "-q", "hms_hbac"], check=True)
    stamp.write_text(said)
    return python


def run(name, folders):
    "Test one set of versions: True where all passed; writes build/versions/NAME.json."
    python, start = make(name), time.time()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    tests = [f"tests/{f}" for f in folders or FOLDERS]
    commands = [["-n", WORKERS, "--dist", "loadfile", *tests]]
    if not folders:
        commands.append(["tests/kaggle/test_kaggle_kernels.py"])                            # the rehearsal
    done = [subprocess.run([python, "-m", "pytest", "-q", *c], cwd=ROOT, env=env) for c in commands]
    passed = not any(d.returncode for d in done)
    told = {"passed": passed, "when": time.time(), "seconds": round(time.time() - start), "tests": tests}
    (PLACE / f"{name}.json").write_text(json.dumps(told) + "\n")
    print(f"{name}: {'passed' if passed else 'FAILED'} in {told['seconds']} s")
    return passed


def last():
    "A line for each set whose last run is missing or older than the lock file."
    changed = (ROOT / "requirements-dev.txt").stat().st_mtime
    for name in NAMES:
        file = PLACE / f"{name}.json"
        target = "test-oldest" if name == "oldest" else "test-kaggle"
        if not file.is_file():
            print(f"versions {name}: not run here yet (make {target})")
            continue
        told = json.loads(file.read_text())
        day = time.strftime("%Y-%m-%d", time.localtime(told["when"]))
        verdict = "passed" if told["passed"] else "failed"
        if told["when"] < changed:
            print(f"versions {name}: {verdict} on {day}, before the lock file changed (make {target})")


def main():
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("names", nargs="*", metavar="oldest|kaggle|kaggle-next")
    parser.add_argument("--last", action="store_true")
    parser.add_argument("--tests", nargs="*", default=[], choices=FOLDERS)
    args = parser.parse_args()
    if args.last:
        return last()
    if not args.names or not set(args.names) <= set(NAMES):
        parser.error(f"name some of {', '.join(NAMES)}")
    PLACE.mkdir(parents=True, exist_ok=True)
    return 0 if all([run(name, args.tests) for name in args.names]) else 1


if __name__ == "__main__":
    sys.exit(main())
