"""The toy of `hms_hbac.training.toy` for tests; run as a script it trains in a process of its own.

`python toy_training.py FOLDER key=value ...`; keys: epochs, batch, accumulate, norm, dropout, every (seconds
between checkpoints),
budget, go_on (1: the second stage continues the first), slow (seconds that each read takes), die."""
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from hms_hbac.training.machine import hold, last_words, listening, make_accelerator
from hms_hbac.training.state import Given, place
from hms_hbac.training.toy import IDENTITY, toy_parts, toy_settings

__all__ = ["IDENTITY", "toy_loop", "toy_settings"]
GO_ON = [{"epochs": 2}, {"name": "$sure$", "min_votes": 10, "start": "continue"}]


def toy_loop(folder, every=240.0, heard=None, **over):
    return place(Given(**toy_parts(make_accelerator(), folder, checkpoint_every=every, **over)), heard=heard)


def kill_at(moment, n):
    """Arrange that this process kills itself (SIGKILL) at the `n`-th `moment`.

    Update, tensors (half written), commit, after."""
    import hms_hbac.training.checkpoints as checkpoints
    import hms_hbac.training.fit as training
    seen = [0]

    def die_when(now):
        seen[0] += now
        if now and seen[0] == n: os.kill(os.getpid(), signal.SIGKILL)

    if moment == "update":
        inner = training.step
        def step(loop, part):
            inner(loop, part)
            die_when(True)
        training.step = step
    elif moment == "tensors":                        # half of the tensor file is on the disk
        inner = Path.write_bytes
        def write_bytes(self, data):
            if "state-" in self.name and seen[0] == n - 1: inner(self, data[:len(data) // 2])
            die_when("state-" in self.name)
            return inner(self, data)
        Path.write_bytes = write_bytes
    # before (commit) or after state.json names the new tensors
    else:
        inner = checkpoints.write_json
        def write_json(path, obj):
            if moment == "commit": die_when(True)
            inner(path, obj)
            if moment == "after": die_when(True)
        checkpoints.write_json = write_json


def main(folder, *options):
    torch.set_num_threads(1)
    given = dict(o.split("=", 1) for o in options)
    die, slow = given.pop("die", None), float(given.pop("slow", 0))
    given = {k: float(v) if k in ("dropout", "every", "budget") else int(v) for k, v in given.items()}
    if given.pop("go_on", 0): given["stages"] = GO_ON
    if die:
        moment, n = die.split(":")
        kill_at(moment, int(n))
    from hms_hbac.training.fit import fit
    from hms_hbac.training.run import conclude
    first = os.environ.get("RANK", "0") == "0"                    # of several processes, one locks and writes
    lock, words = (hold(folder), last_words(folder)) if first else (nullcontext(), nullcontext())
    with lock, listening() as heard, words:
        loop = toy_loop(folder, heard=heard, **given)
        if slow: slow_down(loop.given.train_data, slow)
        status = fit(loop)
        if status == "finished": conclude(loop)
    if loop.accelerator.is_main_process: print(status, flush=True)
    if loop.processes > 1: torch.distributed.destroy_process_group()
    if heard: raise SystemExit(128 + heard[0])


def slow_down(data, pause):
    inner = data.batch
    def batch(rows, epoch):
        time.sleep(pause)
        return inner(rows, epoch)
    data.batch = batch


if __name__ == "__main__": main(*sys.argv[1:])
