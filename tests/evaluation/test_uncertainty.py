"""Sets, temperatures, abstention and the parts of the KL, where the truth is known."""
import numpy as np
import pytest
from scipy.stats import binom

from hms_hbac.core import DataError
from hms_hbac.evaluation.calibration import kl_by_votes, vote_groups
from hms_hbac.evaluation.uncertainty import (
    abstention_curve,
    coverage_by,
    covered,
    crossfit_sets,
    example_votes,
    fit_exponent,
    kl_parts,
    set_threshold,
    temperature_by_votes,
)
from hms_hbac.inference.pooling import class_sets
from hms_hbac.models.losses import kl_rows
from hms_hbac.models.votes import fit_mixture

TRUTH, VOTES, PROB, PATIENT = example_votes(16_000, seed=11)
N = VOTES.sum(1)
TARGET = VOTES / N[:, None]
RNG = np.random.default_rng(12)


def inside(hits, n, promised):
    return binom.ppf(.0005, n, promised) <= hits <= binom.ppf(.9995, n, promised)


@pytest.fixture(scope="module")
def fresh():
    "Rows that no threshold has seen, with one vote each."
    truth, votes, prob, _ = example_votes(12_000, seed=13)
    return prob, np.array([RNG.choice(6, p=q) for q in truth]), votes.sum(1), truth


@pytest.mark.parametrize("promised", [.8, .9, .95])
def test_promised_and_found_agree_within_the_binomial_interval(fresh, promised):
    prob, vote, n_votes, _ = fresh
    sets = class_sets(prob, set_threshold(PROB, TARGET, promised))
    hit = sets[np.arange(len(vote)), vote]
    assert inside(hit.sum(), len(hit), promised)
    # the number of votes says nothing about the segment here
    for n in np.unique(n_votes):
        assert inside(hit[n_votes == n].sum(), (n_votes == n).sum(), promised), n
    by_class = class_sets(prob, set_threshold(PROB, TARGET, promised, by_class=True))
    for c in range(6):
        assert inside(by_class[vote == c, c].sum(), (vote == c).sum(), promised), c


def test_sets_calibrated_on_majorities_cover_too_little(fresh):
    prob, vote, _, truth = fresh
    majority = np.eye(6)[TARGET.argmax(1)]
    sets = class_sets(prob, set_threshold(PROB, majority, .9))
    hit = sets[np.arange(len(vote)), vote].sum()
    assert hit < binom.ppf(1e-6, len(vote), .9) and covered(sets, truth).mean() < .87


def test_few_calibration_rows_promise_with_care():
    "Over many small calibrations the mean coverage of one new vote is at least what was promised."
    got = []
    for i in range(300):
        rows = np.arange(i * 40, i * 40 + 30)
        new = np.arange(i * 40 + 30, i * 40 + 40)
        got.append(covered(class_sets(PROB[new], set_threshold(PROB[rows], TARGET[rows], .9)),
                           TRUTH[new]).mean())
    assert np.mean(got) >= .9 - 3 * np.std(got) / len(got) ** .5


def test_sets_of_a_patient_do_not_depend_on_its_votes():
    sets = crossfit_sets(PROB[:400], TARGET[:400], PATIENT[:400], .8)
    other = TARGET[:400].copy()
    other[:4] = other[:4, ::-1]                                    # the votes of patient 0
    again = crossfit_sets(PROB[:400], other, PATIENT[:400], .8)
    assert (sets[:4] == again[:4]).all()
    assert sets[np.arange(400), PROB[:400].argmax(1)].all()


def test_coverage_by_group_has_an_interval_that_holds_the_promise():
    sets = crossfit_sets(PROB, TARGET, PATIENT, .9)
    table = coverage_by(vote_groups(N), sets, TARGET, PATIENT, draws=300)
    assert table.rows.sum() == len(PROB)
    assert (abs(table.covered.astype(float) - .9) < .02).all()
    with pytest.raises(DataError, match="between 0 and 1"):
        set_threshold(PROB, TARGET, 90)


def test_an_exponent_undoes_an_exponent():
    sharp = TRUTH ** 2 / (TRUTH ** 2).sum(1, keepdims=True)
    assert fit_exponent(sharp, TARGET) == pytest.approx(.5, abs=.02)
    table = temperature_by_votes(sharp, TARGET, N)
    assert (abs(table.temperature - 2) < .25).all() and (table.after <= table.kl).all()


def test_handing_over_by_the_error_itself_is_the_lowest_curve():
    kl = kl_rows(TARGET, PROB)
    best = abstention_curve(PROB, TARGET, PATIENT, kl, draws=100)
    assert np.allclose(best.kl, best.best)
    # a model that is as sure as it may be
    _, votes, prob, patient = example_votes(4000, seed=3, noise=.2, sharpen=1)
    plain = abstention_curve(prob, votes / votes.sum(1, keepdims=True), patient, draws=100)
    assert (plain.kl >= plain.best - 1e-12).all() and plain.kl.iloc[-1] < plain.low.iloc[0]


def test_the_parts_of_the_kl_are_those_of_the_truth():
    parts = kl_parts(PROB, TARGET, N, fit_mixture(VOTES, kinds=2, steps=80))
    assert np.allclose(parts.few_votes + parts.miss, kl_rows(TARGET, PROB))
    assert parts.miss.mean() == pytest.approx(kl_rows(TRUTH, PROB).mean(), abs=.02)
    assert parts.few_votes.mean() == pytest.approx(kl_rows(TARGET, TRUTH).mean(), abs=.02)


def test_groups_of_votes_stand_in_the_order_of_votes():
    n = np.array([12, 1, 3, 2, 22, 5, 16, 1])
    shares = np.full((len(n), 6), 1 / 6)
    groups = ["1", "2", "3", "4–5", "10–14", "15–19", "20–49"]
    assert list(kl_by_votes(shares, shares, n).index) == groups
