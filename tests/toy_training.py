"""A toy with the interfaces of a real system, for tests of the training loop; run as a script it trains in a process of its own.

`python toy_training.py FOLDER key=value ...`; keys: epochs, batch, accumulate, norm, dropout, every (seconds between checkpoints), budget, die."""
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from hms_hbac.core import VOTES
from hms_hbac.draws import seed_everything
from hms_hbac.training.loop import Loop, make_accelerator
from hms_hbac.training.oof import vote_shares

IDENTITY = {"recipe_hash": "toy", "data": "toy", "fold": 0}


def toy_table(n=330, seed=0):
    rng = np.random.default_rng(seed)
    hint = rng.normal(size=(n, 6))
    votes = np.array([rng.multinomial(k, q / q.sum()) for k, q in zip(rng.choice([2, 3, 4, 12, 16], n), np.exp(2 * hint))])
    table = pd.DataFrame(votes, columns=list(VOTES)).assign(**{c: range(n) for c in ("event_id", "eeg_id", "spectrogram_id")})
    return table.assign(n_votes=votes.sum(1), patient_id=np.arange(n) // 4, fold=np.arange(n) // 4 % 5), hint.astype(np.float32)


class ToyData:
    def __init__(self, table, hint): self.table, self.hint = table, hint
    def batch(self, rows, epoch):
        t = self.table.iloc[rows]
        return {"x": torch.from_numpy(self.hint[rows]), "target": torch.from_numpy(vote_shares(t)),
                "n_votes": torch.tensor(t.n_votes.to_numpy(np.float32))}


class ToySystem(nn.Module):
    "Two layers; `norm` adds a batch normalisation, whose statistics are each process's own."
    def __init__(self, norm=False, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64) if norm else nn.Identity(), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 6))
    def forward(self, batch): return self.net(batch["x"]), batch


def toy_settings(epochs=3, batch=32, accumulate=1, stages=None, **over):
    stage = dict(name="all", epochs=epochs, min_votes=0, max_votes=None, bound=None, keep=1.0, keep_from=0, start="previous", lr=None, loss=None,
                 mosaic_epochs=0, mixing=True)
    base = dict(name="toy", loss="KL()", batch_size=batch, accumulate=accumulate, clip=1.0, seed=0, evals_per_epoch=2, select_min_votes=10,
                patience=None, ema=SimpleNamespace(decay=.9, every=2, after=3),
                optimizer=SimpleNamespace(name="adamw", lr=3e-3, weight_decay=1e-2, betas=None),
                schedule=SimpleNamespace(name="onecycle", warmup=.2, div=25., final_div=100., period=20, at=.75, factor=.1))
    s = SimpleNamespace(**(base | over))
    s.stages = [SimpleNamespace(**(stage | given)) for given in stages or [{}, {"name": "sure", "min_votes": 10}]]
    return s


def toy_loop(folder, norm=False, dropout=0.0, every=240.0, budget=None, settings=None, **over):
    table, hint = toy_table()
    settings = settings or toy_settings(**over)
    seed_everything(settings.seed)
    data = ToyData(table, hint)
    return Loop(ToySystem(norm, dropout), settings, table, data, data, np.flatnonzero(table.fold != 0), np.flatnonzero(table.fold == 0), Path(folder),
                dict(IDENTITY), make_accelerator(), budget=budget, checkpoint_every=every, log=False)


def kill_at(moment, n):
    "Arrange that this process kills itself (SIGKILL) at the `n`-th `moment`: update, tensors (half written), commit (before state.json), after, or start."
    import signal
    import hms_hbac.training.checkpoints as checkpoints
    import hms_hbac.training.run as training
    seen = [0]

    def die_when(now):
        seen[0] += now
        if now and seen[0] == n: os.kill(os.getpid(), signal.SIGKILL)

    if moment == "update":
        inner = training.step
        def step(loop, part): inner(loop, part); die_when(True)
        training.step = step
    elif moment == "tensors":                        # half of the tensor file is on the disk
        inner = Path.write_bytes
        def write_bytes(self, data):
            if "state-" in self.name and seen[0] == n - 1: inner(self, data[:len(data) // 2])
            die_when("state-" in self.name)
            return inner(self, data)
        Path.write_bytes = write_bytes
    else:                                            # the new tensors lie there, state.json names the old ones (commit) or already the new (after)
        inner = checkpoints.write_json
        def write_json(path, obj):
            if moment == "commit": die_when(True)
            inner(path, obj)
            if moment == "after": die_when(True)
        checkpoints.write_json = write_json


def main(folder, *options):
    torch.set_num_threads(1)
    given = dict(o.split("=", 1) for o in options)
    die = given.pop("die", None)
    given = {k: float(v) if k in ("dropout", "every", "budget") else int(v) for k, v in given.items()}
    if die:
        moment, n = die.split(":")
        kill_at(moment, int(n))
    from hms_hbac.training.run import conclude, fit
    loop = toy_loop(folder, **given)
    status = fit(loop)
    if status == "finished": conclude(loop)
    if loop.accelerator.is_main_process: print(status)
    if loop.processes > 1: torch.distributed.destroy_process_group()


if __name__ == "__main__": main(*sys.argv[1:])
