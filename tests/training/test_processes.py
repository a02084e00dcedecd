"""Two processes do what one does, and a machine that dies is no loss. CPU and gloo; every launch is
torchrun's own module."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).parents[1] / "toy_training.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def agent(port, rank, nodes, processes, *args):
    "A torchrun agent, in a process group of its own (so that it can be killed with its workers)."
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=test",
        f"--rdzv-conf=is_host={int(rank == 0)}",
        "--local-addr=127.0.0.1",
        "--max-restarts=0",
        *args,
    ]
    return subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def end(process):
    "Kill the agent and all it started."
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.communicate()


def one(folder, *options):
    done = subprocess.run(
        [sys.executable, SCRIPT, str(folder), *options], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "history.csv")


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    "A finished run of one agent with two processes."
    folder = tmp_path_factory.mktemp("double") / "run"
    run = agent(free_port(), 0, 1, 2, SCRIPT, str(folder))
    out, _ = run.communicate(timeout=150)
    assert run.returncode == 0, out
    assert out.count("finished") == 1                                        # one process speaks and writes
    return folder


def test_two_processes_equal_one(tmp_path, double):
    """One process with 2b rows a batch and two with b each see the same global batches: the loss curves
    agree to 1e-4.

    The toy has no batch normalisation and no dropout: those act on a process's own rows, so there
    equality cannot hold."""
    single, both = one(tmp_path / "single"), pd.read_csv(double / "history.csv")
    assert (
        both["update"].tolist() == single["update"].tolist()
        and both.samples.tolist() == single.samples.tolist()
    )
    for column in ("loss", "kl", "kl_selected", "lr"):
        assert np.abs(both[column] - single[column]).max() < 1e-4, column
    a, b = (pd.read_parquet(folder / "oof.parquet") for folder in (tmp_path / "single", double))
    assert b.event_id.is_unique and b.event_id.tolist() == a.event_id.tolist()   # every row once, in order
    assert np.abs(a.select_dtypes("float").to_numpy() - b.select_dtypes("float").to_numpy()).max() < 1e-3
    manifest = json.loads((double / "manifest.json").read_text())
    assert (manifest["processes"], manifest["status"], manifest["samples"]) == (
        2,
        "finished",
        single.samples.iloc[-1],
    )


def test_an_agent_dies(tmp_path, double):
    """Two agents of one process each on loopback stand for two machines. One is killed midway, the other
    gives up; the same two commands go on
    from the last checkpoint and reach, to the bit, what an undisturbed run of two processes reaches."""
    folder = tmp_path / "run"

    def both(*more):
        port = free_port()
        return [
            agent(port, rank, 2, 1, SCRIPT, str(folder), "every=0", *(more if rank == 1 else ()))
            for rank in range(2)
        ]

    # the second machine's process kills itself in mid-epoch
    agents = both("die=update:14")
    try:
        assert agents[1].wait(timeout=150) != 0
        for a in agents: end(a)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["status"] != "finished" and not (folder / "model.safetensors").exists()
        assert json.loads((folder / "last" / "state.json").read_text())["state"]["progress"]["total"] > 0
        agents = both()
        for a in agents: assert a.wait(timeout=150) == 0, a.communicate()[0]
    finally:
        for a in agents: end(a)
    frames = [
        pd.read_csv(f / "history.csv").drop(columns=["seconds", "samples_per_s"]) for f in (double, folder)
    ]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    a, b = (load_file(f / "model.safetensors") for f in (double, folder))
    assert all(a[k].equal(b[k]) for k in a)
