"""The command line answers at once.

Nothing heavy is imported before a command needs it, and a test names what brought it."""
import subprocess
import sys

import pytest

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
