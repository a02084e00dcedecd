"""Run folders of version 0.1.0, when all modules lay in one list: they predict, and they go on.

old_layout.tar.xz was written by that version: `comp` (15 recordings of square waves), `runs` (fold 0,
finished), `paused` (fold 1, stopped by its time budget), `whole` (fold 1, never stopped), and
`submission.csv`, what `predict` made of `runs`.
"""
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import VOTES
from hms_hbac.inference.predict import predict
from hms_hbac.models.recipe import load_recipe
from hms_hbac.training.run import train

NAME = "resnet1d_gru"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("old_layout.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_an_old_run_predicts_as_before(old):
    assert predict(old / "runs" / NAME, old / "comp", old / "new.csv", progress=False) == 0
    before, now = (pd.read_csv(old / name) for name in ("submission.csv", "new.csv"))
    assert before.eeg_id.tolist() == now.eeg_id.tolist()
    np.testing.assert_allclose(now[list(VOTES)], before[list(VOTES)], atol=1e-4)


def test_a_finished_fold_is_left_alone(old):
    fold = old / "runs" / NAME / "fold0"
    before = {p.name: p.read_bytes() for p in fold.glob("*.*")}
    train(load_recipe(fold / "recipe.yaml"), old / "comp", old / "runs", 0, cache=old / "cache", log=False)
    assert {p.name: p.read_bytes() for p in fold.glob("*.*")} == before


def test_a_paused_fold_goes_on(old):
    "One more update on top of the checkpoint: the schedule, the weights and the score go on."
    fold = old / "paused" / NAME / "fold1"
    done = pd.read_csv(fold / "history.csv")
    train(load_recipe(fold / "recipe.yaml"), old / "comp", old / "paused", 1, cache=old / "cache", log=False,
          time_budget=.01)
    history = pd.read_csv(fold / "history.csv")
    whole = pd.read_csv(old / "whole" / NAME / "fold1/history.csv")
    assert len(history) > len(done) == 1
    told = ["epoch", "update", "samples", "lr"]
    np.testing.assert_allclose(history[told], whole[told][:len(history)], rtol=1e-6)
    np.testing.assert_allclose(history.kl, whole.kl[:len(history)], rtol=5e-3)
    assert history.kl[1] != history.kl[0]
