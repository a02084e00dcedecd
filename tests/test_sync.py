"""The sync check passes on this checkout and fails, with its cure, where one of the three differs."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def check(folder):
    command = [sys.executable, "tools/check_sync.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync") / "repo"
    for name in ("nbs", "hms_hbac", "tools"):
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    if (ROOT / "README_files").is_dir():
        shutil.copytree(ROOT / "README_files", folder / "README_files")
    return folder


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text


FAULTS = [
    ("hms_hbac/core.py", "LABEL_SECONDS = 10", "LABEL_SECONDS = 12",
     "hms_hbac/core.py: differs from its notebook"),
    ("nbs/01_draws.ipynb", '"kernelspec"', '"kernelspecs"', "no kernelspec"),
    ("nbs/04_simulate/03_votes.ipynb", '"import numpy as np\\n"', '"import numpy as np\\n", "x = 1\\n"',
     "imports beside other code"),
    ("nbs/02_signal/01_filters.ipynb", "def repair(", "def repaired(",
     "filters.py: differs from its notebook"),
    ("README.md", "# hms_hbac", "# hms", "README.md: differs from nbs/index.ipynb"),
]
FOLLOW = ["hms_hbac/_modidx.py", "hms_hbac/signal/filters.py", "hms_hbac/simulate/votes.py"]    # of the above


def test_each_difference_is_found(copy):
    "A fault of each kind, each in a file of its own, in one run."
    before = {file: change(copy / file, old, new) for file, old, new, _ in FAULTS}
    status, said = check(copy)
    for file, text in before.items(): (copy / file).write_text(text, encoding="utf-8")
    assert status == 1
    for file, *_, message in FAULTS: assert message in said, f"{file}: {said}"
    named = {re.match(r"[^,:]+", line)[0] for line in said.splitlines() if not line.startswith(" ")}
    assert named == {*(f for f, *_ in FAULTS), *FOLLOW} - {"nbs/02_signal/01_filters.ipynb"}, said
