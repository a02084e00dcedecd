"""Shrunk blends: found parameters, no harm from useless members, and a choice only when it is clear."""
import numpy as np
import pandas as pd
import pytest
import yaml

from hms_hbac.core import DataError
from hms_hbac.evaluation.blending import (
    METHODS,
    compare,
    crossfit,
    fit_shrunk,
    fit_weights,
    newton_path,
    patient_folds,
    shrunk_blend,
    weight_spread,
)
from hms_hbac.evaluation.members import Members, example_members
from hms_hbac.inference.pooling import pool
from hms_hbac.models.losses import kl_rows


def mean_kl(members, method, folds=5):
    return kl_rows(members.target,
                   crossfit(METHODS[method], members, patient_folds(members.patient, folds))).mean()


def test_the_newton_path_ends_where_a_general_optimizer_ends():
    from scipy.optimize import minimize
    m = example_members(patients=60)
    part = patient_folds(m.patient, 4)
    ridge, x, _ = next(p for p in newton_path(m.prob, m.target, part, 4) if p[0] == .03)
    start = np.r_[np.zeros(4), 1, np.zeros(6)]

    def loss(x):
        kl = -(m.target * np.log(shrunk_blend(x, m.prob)[0])).sum(1).mean()
        return kl + ridge / 2 * ((x - start) ** 2).sum()

    best = minimize(loss, start, method="BFGS")
    assert loss(x) <= best.fun + 1e-6
    assert np.allclose(x, best.x, atol=.01)


def test_what_is_fitted_is_what_the_pool_applies():
    m = example_members(patients=60, sharpen=2.)
    how = fit_shrunk(m.prob, m.target, m.patient)
    x = np.r_[np.log(how["weights"]), how["scale"], how["bias"]]
    assert np.allclose(pool(m.prob, **how), shrunk_blend(x, m.prob)[0], atol=1e-9)
    assert how["weights"].sum() == pytest.approx(1) and (how["weights"] > 0).all() and .3 < how["scale"] < .9


def test_useless_members_do_no_harm():
    "Three good members among fifteen that know nothing: nearly as good as the three alone."
    m = example_members(noise=(.5, .5, .5) + (4,) * 15, echo=0, patients=150)
    good = Members(m.names[:3], m.prob[:3], m.target, m.patient, m.n_votes, m.key)
    shrunk = mean_kl(m, "shrunk")
    assert shrunk < mean_kl(good, "mean") + .01 < mean_kl(m, "mean")
    spread = weight_spread(m, "shrunk")
    assert min(spread[n][0] for n in m.names[:3]) > max(spread[n][1] for n in m.names[3:])


def test_twenty_equal_members_keep_the_mean():
    m = example_members(noise=(.7,) * 20, echo=0, patients=80)
    rng = np.random.default_rng(0)
    votes = np.stack([rng.multinomial(14, p) for p in m.prob.mean(0)]) / 14
    same = Members(m.names, m.prob, votes, m.patient, m.n_votes, m.key)
    table = compare(same, reps=500, methods=["shrunk"])
    assert table.attrs["choice"] == "mean" and table.gain["shrunk"] > -.002


def test_twenty_overconfident_members_are_softened_and_the_file_tells_the_spread(tmp_path):
    m = example_members(noise=(.9,) * 20, echo=0, patients=80, sharpen=3.)
    fit = fit_weights(m, tmp_path / "w.yaml", reps=500, methods=["shrunk"])
    held = yaml.safe_load((tmp_path / "w.yaml").read_text())
    assert fit["method"] == "shrunk" and fit["nested"]["low"] > 0 and fit["how"]["scale"] < 1
    assert list(held["spread"]) == m.names
    assert all(low <= high for low, high in held["spread"].values())


def test_the_ridge_is_chosen_without_the_rows_of_the_judged_patients():
    "Rows of one patient repeated ten times are one patient: the ridge stays strong."
    m = example_members(noise=(.6,) * 8, echo=0, patients=12, rows=1)
    rows = np.repeat(np.arange(12), 20)
    again = m.take(rows)
    by_patient = fit_shrunk(again.prob, again.target, again.patient)["weights"]
    by_row = fit_shrunk(again.prob, again.target)["weights"]
    assert np.ptp(by_patient) < np.ptp(by_row)


def test_real_members_and_simulated_twenty(real):
    file = real / "oof/oof_predictions.parquet"
    fit = fit_weights(file, methods=["shrunk"], reps=500)
    clear = fit["table"].low["shrunk"] > 0
    assert (fit["method"] == "shrunk") == clear and fit["nested"]["kl"] <= fit["plain_mean"] + .0005
    assert pd.Series(fit["weights"]).sum() == pytest.approx(1)


def test_no_rows_no_weights():
    with pytest.raises(DataError, match="no row has 30 votes"):
        fit_weights(example_members(patients=10), min_votes=30)
