"""Votes: the probability behind them, and their counts beside the real label table."""
import numpy as np
import pandas as pd
import pytest
from scipy.special import rel_entr

from hms_hbac.core import VOTES
from hms_hbac.simulate.competition import PRESETS, plan
from hms_hbac.simulate.votes import (
    CONFUSION,
    EXPERTS,
    LEANINGS,
    SHOWN,
    agreement,
    draw_votes,
    expected_kl,
    quota,
    raters,
)


def test_tables_are_distributions():
    for table in (CONFUSION, SHOWN):
        assert np.allclose(table.sum(1), 1, atol=2e-3) and (table > 0).all()
    assert LEANINGS.sum() == pytest.approx(1)
    readiness, confusion = raters()
    assert readiness.sum() == pytest.approx(1) and np.allclose(confusion.sum(2), 1)
    assert np.allclose(np.tensordot(readiness, confusion, 1), CONFUSION, atol=2e-3)


@pytest.mark.parametrize("group", range(5))
def test_votes_follow_the_probability_that_is_returned(group):
    rng = np.random.default_rng(group)
    shown = np.array([.05, .1, .4, .1, .05, .3])
    drawn = [draw_votes(rng, shown, 2, group) for _ in range(1500)]
    votes, p = np.array([d[0] for d in drawn]), drawn[0][1]
    n = votes.sum()
    assert (abs(votes.sum(0) / n - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-9).all()
    assert p.sum() == pytest.approx(1) and drawn[0][2].sum() == pytest.approx(1)
    sizes = set(votes.sum(1))
    assert sizes <= ({1}, {2}, {3}, {4, 5, 6}, set(range(10, 29)))[group]


def test_drawn_votes_cost_what_the_floor_expects():
    rng, shown = np.random.default_rng(1), np.array([.1, .5, .1, .2, 0, .1])
    drawn = [draw_votes(rng, shown, 1, EXPERTS) for _ in range(2500)]
    votes, p = np.array([d[0] for d in drawn]), drawn[0][1]
    n = votes.sum(1)
    kl = rel_entr(votes / n[:, None], p).sum(1)
    assert kl.mean() == pytest.approx(expected_kl(np.tile(p, (len(n), 1)), n).mean(), rel=.06)


def test_expected_kl_of_one_vote_is_the_entropy():
    p = np.array([[.5, .25, .125, .125, 0, 0]])
    assert expected_kl(p, np.array([1]))[0] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum())


def test_quota():
    assert quota(60, (.17, .14, .12, .10, .12, .35), 6).sum() == 60
    assert quota(6, (.9, .02, .02, .02, .02, .02), 1).tolist() == [1] * 6


def counts(table):
    votes = table.drop_duplicates(["eeg_id", *VOTES])[list(VOTES)].to_numpy()
    return votes, *(np.bincount(k, minlength=30) / len(votes) for k in (votes.sum(1), votes.argmax(1)))


def test_events_are_counted_as_in_the_real_table(real):
    theirs, numbers, consensus = counts(pd.read_csv(real / "competition/train.csv.gz"))
    rows = pd.concat([r.rows for r in plan(**PRESETS["bench-s"]) if r.split == "train"])
    ours, our_numbers, our_consensus = counts(rows)
    assert abs(our_numbers - numbers).sum() / 2 <= .03
    assert abs(our_consensus - consensus).sum() / 2 <= .03
    for low, slack in ((2, .02), (10, .03)):
        a, b = (agreement(v[v.sum(1) >= low]) for v in (ours, theirs))
        assert abs(a["pairs"] - b["pairs"]) < slack and abs(a["majority"] - b["majority"]) < slack


@pytest.mark.parametrize("seed", range(3))
def test_sixty_patients_are_as_near_to_the_real_table_as_its_own_events(real, seed):
    "No farther than 19 of 20 samples of as many events, drawn from that table at random."
    theirs, *real_shares = counts(pd.read_csv(real / "competition/train.csv.gz"))
    ours, *shares = counts(pd.concat([r.rows for r in plan(60, 12, seed) if r.split == "train"]))
    rng = np.random.default_rng(seed)
    for of, mine, whole in zip((lambda v: v.sum(1), lambda v: v.argmax(1)), shares, real_shares, strict=True):
        drawn = [np.bincount(of(theirs[rng.integers(0, len(theirs), len(ours))]), minlength=30) / len(ours)
                 for _ in range(100)]
        assert abs(mine - whole).sum() <= np.quantile(abs(drawn - whole).sum(1), .95)
