"""A training that is killed at any moment goes on to the same bits. Real SIGKILLs in child processes, a real full file system where we may mount one."""
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from safetensors.torch import load_file

from hms_hbac.training.checkpoints import load_checkpoint
from hms_hbac.core import CheckpointError
from hms_hbac.training.run import fit

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_training
from toy_training import IDENTITY, toy_loop, toy_settings

OPTIONS = ("norm=1", "dropout=0.2", "every=0")
CONTEXT = multiprocessing.get_context("forkserver")      # a server imports torch, timm and ours once; each child is a fresh fork of it
CONTEXT.set_forkserver_preload(["toy_training", "hms_hbac.training.run", "accelerate", "timm.optim", "timm.utils", "pyarrow.parquet", "tqdm.auto"])


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
    p = CONTEXT.Process(target=child, args=(str(folder), options, str(log), limit))
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
    """kill -9 before any checkpoint, between evaluations in mid-epoch, with half a tensor file written, with a whole one that nothing names yet,
    and right after the commit; the last two lie in the second stage."""
    killed = run(tmp_path, *OPTIONS, f"die={die}")
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "model.safetensors").exists()
    if die == "tensors:8": assert list((tmp_path / "last").glob(".state-*.part")), "the kill should have left half a file"
    again = run(tmp_path, *OPTIONS)
    assert again.stdout.strip() == "finished", again.stderr
    assert_same(straight, tmp_path)
    assert len(list((tmp_path / "last").iterdir())) == 2                 # the debris is gone


def test_killed_five_times_in_a_row(straight, tmp_path):
    for die in ("update:3", "tensors:4", "commit:5", "after:6", "update:7"): assert run(tmp_path, *OPTIONS, f"die={die}").returncode == -9
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
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True).returncode == 0
    yield folder if mounted else None
    if mounted: subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(straight, tmp_path, small_disk):
    "No room for the next checkpoint: a clear message, the last good one stays, and with room the run goes on to the same bits."
    if small_disk:
        folder, limits = small_disk / "run", {}
        folder.mkdir()
        assert run(folder, *OPTIONS, "budget=0").stdout.strip() == "paused"
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: pass
    else:                                    # no mount allowed: no file of this process may exceed 4 KiB (EFBIG instead of ENOSPC)
        folder, ballast = tmp_path / "run", None
        assert run(folder, *OPTIONS, "budget=0").stdout.strip() == "paused"
        limits = {"limit": 4096}
    before = load_checkpoint(folder / "last", IDENTITY)["progress"]["total"]
    full = run(folder, *OPTIONS, **limits)
    assert full.returncode == 1 and "could not write" in full.stderr and "give the same command again" in full.stderr, full.stderr
    assert load_checkpoint(folder / "last", IDENTITY)["progress"]["total"] == before == 1
    if ballast: ballast.unlink()
    assert run(folder, *OPTIONS).stdout.strip() == "finished"
    assert_same(straight, folder)


def test_foreign_and_corrupt_are_refused(tmp_path):
    fit(loop := toy_loop(tmp_path, budget=0, every=0.0))
    for key, value in (("recipe_hash", "other"), ("data", "other"), ("fold", 3)):
        stranger = toy_loop(tmp_path)
        stranger.identity[key] = value
        with pytest.raises(CheckpointError, match=f"belongs to another run: {key} is .* and {value!r} here(.|\n)*--fresh"): fit(stranger)
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


def test_optimizers_and_schedules_resume(tmp_path):
    "Other optimisers and schedules continue to the same bits."
    plans = [("lion", "cosine"), ("adam", "warm_restarts"), ("sgd", "step"), ("adamw", "constant")]
    for optimizer, schedule in plans:
        make = lambda: toy_settings(stages=[{"epochs": 1}], optimizer=SimpleNamespace(name=optimizer, lr=1e-3, weight_decay=.01, betas=None),
                                    schedule=SimpleNamespace(name=schedule, warmup=.2, div=25., final_div=100., period=3, at=.5, factor=.1))
        straight = toy_loop(tmp_path / f"{optimizer}-s", settings=make(), dropout=.1)
        fit(straight)
        status = "paused"
        while status == "paused":
            broken = toy_loop(tmp_path / f"{optimizer}-b", settings=make(), dropout=.1, budget=0)
            status = fit(broken) if len(broken.progress.history) < 99 else "lost"
        a, b = straight.system.state_dict(), broken.system.state_dict()
        assert status == "finished" and all(a[k].equal(b[k]) for k in a), (optimizer, schedule)
