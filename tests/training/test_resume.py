"""A training that is killed at any moment goes on to the same bits. Real SIGKILLs in child processes, a
real full file system where we may mount one."""
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from apart import START
from safetensors.torch import load_file

from hms_hbac.core import CheckpointError
from hms_hbac.evaluation.runs import read_manifest
from hms_hbac.training.checkpoints import load_checkpoint, tree_hash
from hms_hbac.training.fit import fit
from hms_hbac.training.toy import toy_optimizer, toy_schedule

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_training
from toy_training import IDENTITY, toy_loop, toy_settings

OPTIONS = ("norm=1", "dropout=0.2", "every=0")


def child(folder, options, log, limit):
    "In a process of its own: outputs to `log`, then the toy training; `limit`: bytes that a file may have."
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(out, fd)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    toy_training.main(folder, *options)
    sys.stdout.flush()


def run(folder, *options, limit=None):
    log = Path(folder).parent / f"{Path(folder).name}.log"
    p = START.Process(target=child, args=(str(folder), options, str(log), limit))
    p.start()
    p.join(120)
    assert p.exitcode is not None, "the child hangs"
    return SimpleNamespace(returncode=p.exitcode, stdout=log.read_text(), stderr=log.read_text())


def result(folder):
    history = pd.read_csv(folder / "history.csv").drop(columns=["seconds", "samples_per_s"])
    return load_file(folder / "model.safetensors"), history, pd.read_parquet(folder / "oof.parquet")


def assert_same(a, b):
    (weights, history, oof), (weights2, history2, oof2) = result(a), result(b)
    assert weights.keys() == weights2.keys() and all(weights[k].equal(weights2[k]) for k in weights)
    pd.testing.assert_frame_equal(history, history2, check_exact=True)
    pd.testing.assert_frame_equal(oof, oof2, check_exact=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    done = run(folder, *OPTIONS)
    assert done.stdout.strip() == "finished", done.stderr
    return folder


def test_same_seed_twice(straight, tmp_path):
    assert run(tmp_path, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, tmp_path)


@pytest.mark.parametrize("die", ["update:1", "update:14", "tensors:8", "commit:20", "after:31"])
def test_killed(straight, tmp_path, die):
    """kill -9 before any checkpoint, between evaluations in mid-epoch, with half a tensor file written,
    with a whole one that nothing names yet,
    and right after the commit; the last two lie in the second stage."""
    killed = run(tmp_path, *OPTIONS, f"die={die}")
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "model.safetensors").exists()
    if die == "tensors:8":
        assert list((tmp_path / "last").glob(".state-*.part")), "the kill should have left half a file"
    again = run(tmp_path, *OPTIONS)
    assert again.stdout.strip() == "finished", again.stderr
    assert_same(straight, tmp_path)
    assert len(list((tmp_path / "last").iterdir())) == 2                 # the debris is gone


def test_killed_five_times_in_a_row(straight, tmp_path):
    for die in ("update:3", "tensors:4", "commit:5", "after:6", "update:7"):
        assert run(tmp_path, *OPTIONS, f"die={die}").returncode == -9
    assert run(tmp_path, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, tmp_path)


def test_time_budget(straight, tmp_path):
    for _ in range(3):
        paused = run(tmp_path, *OPTIONS, "budget=0")
        assert (paused.returncode, paused.stdout.strip()) == (0, "paused"), paused.stderr
        assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "paused"
    assert json.loads((tmp_path / "manifest.json").read_text())["updates"] == 3
    assert run(tmp_path, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 256 KiB (tmpfs; needs root); where it cannot be mounted, None."
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
        ).returncode
        == 0
    )
    yield folder if mounted else None
    if mounted: subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(straight, tmp_path, small_disk):
    """No room for the next checkpoint.

    A clear message, the last good one stays, and with room the run goes on to the same bits."""
    if small_disk:
        folder, limits = small_disk / "run", {}
        folder.mkdir()
        assert run(folder, *OPTIONS, "budget=0").stdout.strip() == "paused"
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: pass
    # no mount allowed: no file of this process may exceed 4 KiB (EFBIG instead of ENOSPC)
    else:
        folder, ballast = tmp_path / "run", None
        assert run(folder, *OPTIONS, "budget=0").stdout.strip() == "paused"
        limits = {"limit": 4096}
    before = load_checkpoint(folder / "last", IDENTITY)["progress"]["total"]
    full = run(folder, *OPTIONS, **limits)
    assert (
        full.returncode == 1
        and "could not write" in full.stderr
        and "give the same command again" in full.stderr
    ), full.stderr
    assert load_checkpoint(folder / "last", IDENTITY)["progress"]["total"] == before == 1
    if ballast: ballast.unlink()
    assert run(folder, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, folder)


def test_a_stage_that_continues_is_killed(tmp_path):
    """One optimizer and one schedule over two stages, killed in both: the same bits.

    (The second stage is named $sure$.)."""
    options = (*OPTIONS, "go_on=1")
    assert run(tmp_path / "whole", *options).stdout.strip() == "finished"
    for die in ("update:11", "after:12"):
        assert run(tmp_path / "parts", *options, f"die={die}").returncode == -9
    assert run(tmp_path / "parts", *options).stdout.strip() == "finished"
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert set(pd.read_csv(tmp_path / "whole" / "history.csv").stage) == {"all", "$sure$"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_pause(straight, tmp_path, number):
    """A signal: everything is saved, the status is paused, the exit status 128 plus the signal's
    number; then the same bits."""
    folder = tmp_path / "run"
    p = START.Process(
        target=child, args=(str(folder), (*OPTIONS, "slow=0.05"), str(tmp_path / "log"), None)
    )
    p.start()
    while not (folder / "last" / "state.json").exists() and p.is_alive(): p.join(.05)
    # meanwhile another one is refused, by name
    second = run(folder, *OPTIONS)
    assert second.returncode == 1 and f"process {p.pid} on " in second.stderr, second.stderr
    os.kill(p.pid, number)
    p.join(120)
    assert p.exitcode == 128 + number, (tmp_path / "log").read_text()
    assert read_manifest(folder)["status"] == "paused" and not (folder / ".lock").exists()
    assert run(folder, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_does_not_train_hears_a_signal(monkeypatch, number):
    "While it prepares, its call ends; while it waits, it lives on and begins no further fold."
    from hms_hbac.training import run as module
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    calls = []
    monkeypatch.setattr(module, "SIGNALLED", [])
    monkeypatch.setattr(module, "train_before", lambda signalled: (
        calls.append(signalled), signal.raise_signal(number) if signalled else None, "done")[-1])
    try:
        assert module.in_worker(False) == "done"
        assert module.in_worker(True) == 128 + number
        module.SIGNALLED.clear()
        signal.raise_signal(number)
        assert module.in_worker(False) == 128 + number and calls == [False, True]
    finally:
        for n, handler in before.items(): signal.signal(n, handler)


def test_the_next_look_sees_a_crash(tmp_path):
    """SIGBUS (a cache file cut under the training) and SIGKILL leave `running`.

    Whoever looks next reads `failed` and why."""
    for number, told in ((signal.SIGBUS, "SIGBUS"), (signal.SIGKILL, "kill -9")):
        folder = tmp_path / told.replace(" ", "")
        p = START.Process(
            target=child, args=(str(folder), (*OPTIONS, "slow=0.05"), str(tmp_path / "log"), None)
        )
        p.start()
        while not (folder / "last" / "state.json").exists() and p.is_alive(): p.join(.05)
        assert read_manifest(folder)["status"] == "running"
        os.kill(p.pid, number)
        p.join(120)
        found = read_manifest(folder)
        assert found["status"] == "failed" and told in found["error"], found
    # the lock of a dead process stops nobody
    assert run(folder, *OPTIONS).stdout.strip() == "finished"


def test_foreign_and_corrupt_are_refused(tmp_path):
    fit(toy_loop(tmp_path, budget=0, every=0.0))
    for key, value in (("recipe_hash", "other"), ("data", "other"), ("fold", 3)):
        stranger = toy_loop(tmp_path)
        stranger.given.identity[key] = value
        with pytest.raises(
            CheckpointError, match=f"belongs to another run: {key} is .* and {value!r} here(.|\n)*--fresh"
        ):
            fit(stranger)
    [tensors] = (tmp_path / "last").glob("*.safetensors")
    good = tensors.read_bytes()
    for bad in (good[:-1], good[:100] + b"x" + good[101:], b""):
        tensors.write_bytes(bad)
        with pytest.raises(CheckpointError, match="corrupt checkpoint(.|\n)*--fresh"): fit(toy_loop(tmp_path))
    tensors.unlink()
    with pytest.raises(CheckpointError, match="cannot read state-"): fit(toy_loop(tmp_path))
    (tmp_path / "last" / "state.json").write_text('{"format": 1')
    with pytest.raises(CheckpointError, match="state.json cannot be read"): fit(toy_loop(tmp_path))
    assert fit(toy_loop(tmp_path), resume=False) == "finished"


def test_a_tampered_state_is_refused(tmp_path):
    "state.json changed by hand: never a silent new beginning, never a traceback."
    fit(toy_loop(tmp_path, budget=0, every=0.0))
    path = tmp_path / "last" / "state.json"
    good = json.loads(path.read_text())
    def tampered(change, hashed):
        head = json.loads(json.dumps(good))
        change(head)
        if hashed: head["state_sha256"] = tree_hash(head["state"])
        return json.dumps(head)

    changes = [
        lambda h: h.update(state=[]),
        lambda h: h.update(state={}),
        lambda h: h.update(state="x"),
        lambda h: h.update(identity=[]),
        lambda h: h["state"]["progress"].update(stage=7),
        lambda h: h["state"]["progress"].update(done="many"),
        lambda h: h["state"].pop("optimizer"),
        lambda h: h["state"].update(processes=[]),
        lambda h: h["state"]["progress"].update(wall=1),
        lambda h: h["state"]["system"].clear(),
    ]
    for change in changes:
        for hashed in (False, True):
            path.write_text(tampered(change, hashed))
            with pytest.raises(CheckpointError, match="corrupt checkpoint(.|\n)*--fresh"):
                fit(toy_loop(tmp_path))
    # of an earlier version
    path.write_text(json.dumps({k: v for k, v in good.items() if k != "state_sha256"}))
    assert fit(toy_loop(tmp_path)) == "finished"


def test_optimizers_and_schedules_resume(tmp_path):
    "Other optimisers and schedules continue to the same bits."
    plans = [("lion", "cosine"), ("adam", "warm_restarts"), ("sgd", "step"), ("adamw", "constant")]
    for optimizer, schedule in plans:
        def make(optimizer=optimizer, schedule=schedule):
            return toy_settings(
                stages=[{"epochs": 1}],
                optimizer=toy_optimizer(optimizer, lr=1e-3, weight_decay=0.01),
                schedule=toy_schedule(schedule, period=3, at=0.5),
            )
        straight = toy_loop(tmp_path / f"{optimizer}-s", settings=make(), dropout=.1)
        fit(straight)
        status = "paused"
        while status == "paused":
            broken = toy_loop(tmp_path / f"{optimizer}-b", settings=make(), dropout=.1, budget=0)
            status = fit(broken) if len(broken.progress.history) < 99 else "lost"
        a, b = straight.system.state_dict(), broken.system.state_dict()
        assert status == "finished" and all(a[k].equal(b[k]) for k in a), (optimizer, schedule)


def test_habits_resume(tmp_path):
    """Fading vote weights, a rising mean that skips the first stage, rates by part, frozen parts.

    Stopped after every update: the same bits."""
    def make():
        return toy_settings(
            loss="KL(weights='fading')", optimizer=toy_optimizer(lr=1e-2, rates={"4": .1}),
            ema=SimpleNamespace(decay=.99, every=1, after=0, first=.5, ramp=.5, skip=1),
            stages=[{"epochs": 1, "freeze": SimpleNamespace(epochs=1, names=["0"])},
                    {"name": "sure", "epochs": 1, "min_votes": 10}])
    straight = toy_loop(tmp_path / "s", settings=make(), norm=True, dropout=.1)
    first = straight.system.net[0].weight.detach().clone()
    fit(straight)
    status, frozen = "paused", []
    while status == "paused":
        broken = toy_loop(tmp_path / "b", settings=make(), norm=True, dropout=.1, budget=0)
        status = fit(broken) if len(broken.progress.history) < 99 else "lost"
        if broken.progress.stage == 0: frozen.append(broken.system.net[0].weight.equal(first))
    a, b = straight.system.state_dict(), broken.system.state_dict()
    assert status == "finished" and all(a[k].equal(b[k]) for k in a)
    assert len(frozen) > 3 and all(frozen) and not a["net.0.weight"].equal(first)
