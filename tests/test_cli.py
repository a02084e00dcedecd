"""The command line answers at once.

Nothing heavy is imported before a command needs it, and a test names what brought it."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import CLASSES, VOTES
from hms_hbac.evaluation.runs import example_run
from hms_hbac.models.listing import read_table

HEAVY = ("torch", "timm", "pandas", "pyarrow", "scipy", "matplotlib", "sklearn", "joblib", "yaml")
WATCH = """
import builtins, sys, traceback
heavy, inner, chain = {heavy!r}, builtins.__import__, []
def watch(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.partition(".")[0]
    if level == 0 and top in heavy and top not in sys.modules and not chain:
        frames = [f for f in traceback.extract_stack() if "hms_hbac" in f.filename]
        places = [f"{{f.filename.rpartition('hms_hbac/')[2]}}:{{f.lineno}}" for f in frames[::-1]]
        chain.append(top + ", imported by " + " < ".join(places))
    return inner(name, globals, locals, fromlist, level)
builtins.__import__ = watch
from hms_hbac.cli import app
try: app({args!r})
except SystemExit as e: status = e.code
builtins.__import__ = inner
print("HEAVY", *chain, file=sys.stderr)
sys.exit(status)
"""


def watched(*args, heavy=HEAVY):
    "(status, stdout, the heavy import and who brought it, or nothing) of a command in a process of its own."
    code = WATCH.format(heavy=heavy, args=[str(a) for a in args])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("HEAVY")]
    assert lines, done.stderr
    return done.returncode, done.stdout, lines[-1].removeprefix("HEAVY").strip()


@pytest.mark.parametrize("args", [("--help",), ("kaggle", "--help"), ("train", "--help"), ("no-such",)])
def test_help_imports_nothing_heavy(args):
    status, _, brought = watched(*args)
    assert status == (2 if args[0] == "no-such" else 0) and brought == "", brought


def test_the_watch_itself():
    "It names an import that a command does make, with the modules on the way."
    status, _, brought = watched("runs", "no-such-folder")
    assert status == 1 and ", imported by " in brought and "cli.py" in brought


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    "A folder of runs of two recipes, a competition folder without files, and a submission."
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    votes = pd.DataFrame(rng.integers(1, 6, (40, 6)), columns=list(VOTES))
    table = votes.assign(event_id=range(40), eeg_id=range(40), patient_id=np.arange(40) // 4,
                         fold=np.arange(40) // 4 % 2, n_votes=votes.sum(axis=1))
    for name in ("one", "two"):
        prob = rng.dirichlet(np.ones(6), 40)
        example_run(folder / "runs", name, table.assign(**dict(zip(CLASSES, prob.T, strict=True))))
    (folder / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n7,1,1\n8,2,1\n")
    shares = pd.DataFrame(np.full((2, 6), 1 / 6), columns=list(VOTES))
    shares.insert(0, "eeg_id", [1, 2])
    shares.to_csv(folder / "submission.csv", index=False)
    return folder


WORDS = ["runs {0}/runs", "check-submission {0}/submission.csv --data {0}", "recipes"]


@pytest.mark.parametrize("words", WORDS)
def test_tables_need_no_torch(small_folder, words):
    if words == "recipes" and read_table() is None:
        pytest.skip("a recipe has changed since: python tools/build_recipes.py")
    status, out, brought = watched(*words.format(small_folder).split(), heavy=("torch", "timm", "scipy"))
    assert status == 0 and brought == "", brought
    wanted = {"runs": "recipe", "check-submission": "valid", "recipes": "panels_b0"}
    assert wanted[words.split()[0]] in out
