"""Folds in real worker processes: a signal to the whole group pauses each of them, and nothing is lost."""
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from apart import START

from hms_hbac.core import RecipeError, read_json
from hms_hbac.data.competition import Competition
from hms_hbac.data.recordings import prepare
from hms_hbac.evaluation.runs import read_manifest
from hms_hbac.models.recipe import load_recipe
from hms_hbac.training.machine import crew_of
from hms_hbac.training.run import train

LONG = ["view=CropPad(Panels(), 64, 64)", "stages=[{name: all, epochs: 4000}]", "batch_size=64"]


def command(place, comp, early):
    """`hms-hbac train` of two folds at once, in a process group of its own; what it says goes to said.txt.
    `early`: a file tells when the first worker is on its way."""
    os.setsid()
    if early: tell_start(place / "runs/early")
    said = os.open(place / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for fd in (1, 2): os.dup2(said, fd)
    from hms_hbac.cli import app
    given = [w for o in LONG for w in ("--set", o)]
    app(["train", "panels_b0", "--scale", "demo", "--data", str(comp), "--runs", str(place / "runs"),
         "--cache", str(place / "cache"), "--folds", "0,1", "--workers", "2", *given])


def tell_start(file):
    from joblib.externals.loky import ProcessPoolExecutor
    inner = ProcessPoolExecutor.submit
    def submit(*args, **more):
        job = inner(*args, **more)
        file.touch()
        return job
    ProcessPoolExecutor.submit = submit


def states(place): return sorted((place / "runs").glob("*/fold*/last/state.json"))


def updates(place): return [read_json(p)["state"]["progress"]["total"] for p in states(place)]


def test_a_signal_to_the_group_pauses_all_workers(comp_dir, tmp_path):
    """SIGTERM as from a scheduler, then Ctrl-C: exit 143 and 130, both folds paused with all their updates,
    and the same command goes on from there; also where the signal comes before the workers listen."""
    prepare(Competition(comp_dir), tmp_path / "cache", progress=False)
    done = [0, 0]
    for number, early in ((signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)):
        p = START.Process(target=command, args=(tmp_path, comp_dir, early))
        p.start()
        until = time.monotonic() + 120
        def going_on(p=p, done=done, until=until):
            assert p.is_alive() and time.monotonic() < until, (tmp_path / "said.txt").read_text()[-2000:]
            now = updates(tmp_path)
            return len(now) == 2 and all(a > b for a, b in zip(now, done, strict=True))
        if early:
            while not (tmp_path / "runs/early").exists() and p.is_alive(): time.sleep(.01)
        else:
            while not going_on(): time.sleep(.05)
        os.killpg(p.pid, number)
        p.join(60)
        if p.is_alive(): os.killpg(p.pid, signal.SIGKILL)
        told = (tmp_path / "said.txt").read_text()[-2000:]
        assert p.exitcode == 128 + number, (p.exitcode, told)
        assert "Traceback" not in told and "the same command goes on" in told, told
        assert "what is finished is kept" not in told, told            # said once
        runs = [read_manifest(s.parent.parent) for s in states(tmp_path)]
        assert [r["status"] for r in runs] == ["paused"] * 2
        saved = updates(tmp_path)
        assert [r["updates"] for r in runs] == saved and all(a >= b for a, b in zip(saved, done, strict=True))
        assert not list((tmp_path / "runs").rglob(".lock")), "a worker lives on"
        done = saved
    recipe = load_recipe("panels_b0", "demo", LONG)
    train(recipe, comp_dir, tmp_path / "runs", 1, cache=tmp_path / "cache", log=False, time_budget=0)
    assert updates(tmp_path) == [done[0], done[1] + 1]
    assert len(pd.read_csv(states(tmp_path)[1].parent.parent / "history.csv")) > 1


def busy(folder):
    "What a worker may be doing when another fails: it saves at a signal."
    from hms_hbac.training.machine import listening
    with listening() as heard:
        Path(folder, "busy").touch()
        while not heard: time.sleep(.02)
        Path(folder, "saved").touch()


def fail(folder):
    while not Path(folder, "busy").exists(): time.sleep(.02)
    raise RecipeError("of one fold")


def test_an_error_of_one_fold_lets_the_others_save(tmp_path):
    with pytest.raises(RecipeError, match="of one fold"), crew_of(2, 1) as crew:
        jobs = [crew.submit(f, tmp_path) for f in (busy, fail)]
        for job in jobs[::-1]: job.result()
    assert (tmp_path / "saved").exists()
