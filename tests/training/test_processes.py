"""Two processes do what one does, and a machine that dies is no loss. CPU and gloo; every launch is
torchrun's own, called in a fork of a process that has imported it."""
import json
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy_training
from apart import START, apart
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).parents[1] / "toy_training.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(log, words):
    "In a process group of its own, so that it can be killed with its workers."
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(file, fd)
    os.environ.update(ENV)
    from torch.distributed.run import main
    main(words)


def agent(log, port, rank, nodes, processes, *args):
    "A torchrun agent that works already; what it and its workers say goes to the file `log`."
    words = [
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
    process = START.Process(target=torchrun, args=(str(log), words))
    process.start()
    return process


def status(process, seconds=150):
    "The exit status of an agent; None where it is not at its end yet."
    process.join(seconds)
    return process.exitcode


def end(process):
    "Kill the agent and all it started."
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.join()


def alone(folder):
    os.environ.update(ENV)
    toy_training.main(folder)


def one(folder):
    apart(alone, str(folder))
    return pd.read_csv(folder / "history.csv")


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    "A finished run of one agent with two processes."
    folder = tmp_path_factory.mktemp("double") / "run"
    log = folder.parent / "log"
    run = agent(log, free_port(), 0, 1, 2, SCRIPT, str(folder))
    ended, out = status(run), log.read_text()
    end(run)
    assert ended == 0, out
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
        port, told = free_port(), [SCRIPT, str(folder), "every=0"]
        words = [told, [*told, *more]]
        return [agent(tmp_path / f"log{k}", port, k, 2, 1, *words[k]) for k in range(2)]

    # the second machine's process kills itself in mid-epoch
    agents = both("die=update:14")
    try:
        assert status(agents[1]) not in (0, None)
        for a in agents: end(a)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["status"] != "finished" and not (folder / "model.safetensors").exists()
        assert json.loads((folder / "last" / "state.json").read_text())["state"]["progress"]["total"] > 0
        agents = both()
        for k, a in enumerate(agents): assert status(a) == 0, (tmp_path / f"log{k}").read_text()
    finally:
        for a in agents: end(a)
    frames = [
        pd.read_csv(f / "history.csv").drop(columns=["seconds", "samples_per_s"]) for f in (double, folder)
    ]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    a, b = (load_file(f / "model.safetensors") for f in (double, folder))
    assert all(a[k].equal(b[k]) for k in a)
