"""The versions that settings.ini promises: `make test-oldest` sees a bound that is too low."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import test_versions as tool  # noqa: E402  the tools' folder had to be found first


@pytest.fixture
def old_joblib(tmp_path):
    "A folder with joblib 1.3, which cannot hand on results as they come (1.4 can)."
    folder = tmp_path / "old"
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "pip", "install", "-q", "--no-deps", "--target", folder, "joblib==1.3.2"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"joblib 1.3.2 cannot be had here: {done.stderr.strip()[-200:]}")
    return folder


def test_a_bound_that_is_too_low_is_seen(old_joblib, tmp_path, monkeypatch):
    "One test of the package with joblib 1.3 in front of the installed one: failed; without it: passed."
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{old_joblib}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(tool, "make", lambda name: python)
    monkeypatch.setattr(tool, "PLACE", tmp_path)
    monkeypatch.setattr(tool, "WORKERS", "0")                       # one process, one test
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider -k another_simulation_is_refused")
    assert not tool.run("oldest", ["simulate"])
    assert json.loads((tmp_path / "oldest.json").read_text())["passed"] is False
    old_joblib.rename(tmp_path / "away")
    assert tool.run("oldest", ["simulate"])
    assert json.loads((tmp_path / "oldest.json").read_text())["passed"] is True


def test_a_run_older_than_the_lock_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "PLACE", tmp_path)
    (tmp_path / "oldest.json").write_text(json.dumps({"passed": True, "when": 0}))
    (tmp_path / "kaggle.json").write_text(json.dumps({"passed": False, "when": 4e9}))
    tool.last()
    said = capsys.readouterr().out.splitlines()
    assert said == ["versions oldest: passed on 1970-01-01, before the lock file changed (make test-oldest)",
                    "versions kaggle-next: not run here yet (make test-kaggle)"]
