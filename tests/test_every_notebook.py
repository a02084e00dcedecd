"""Every notebook runs to its end, each in a process of its own; tools/test_notebooks.py says how.

The ladders of nbs/experiments/ climb two rungs here; every rung is built by
tests/evaluation/test_ladder.py."""
import sys
from pathlib import Path

import apart  # noqa: F401  its server has imported the package; notebooks are run in forks of it
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import test_notebooks as tool  # noqa: E402  the tools' folder had to be found first

BOOKS = {path.relative_to(ROOT / "nbs").as_posix(): path for path in tool.notebooks()}


@pytest.mark.parametrize("name", BOOKS)
def test_runs(name, shared_folder):
    _, _, fault = tool.run(BOOKS[name], "", 280, shared_folder / "ladders")
    assert fault is None, fault[-5000:]
