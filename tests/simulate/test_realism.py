"""Realism: features with known answers, a fair classifier, and the measurement on real files."""
import numpy as np
import pytest
from scipy.io import savemat

from hms_hbac.core import CHANNELS, CLASSES, DataError
from hms_hbac.simulate.realism import (
    Segment,
    auc,
    real_segments,
    realism,
    segment_features,
    simulate_like,
    told_apart,
)


def write_pair(folder, votes, eeg, columns=300):
    folder = folder / "IIIC-IRR/code_for_figures/Data/eFigure2"
    folder.mkdir(parents=True, exist_ok=True)
    panels = np.empty((4, 2), object)
    for k, name in enumerate(("LL", "RL", "LP", "RP")):
        panels[k] = [name, np.full((100, columns if k else 300), k + 1.)]
    savemat(folder / "A_Sample01.mat", dict(seg_10sec=eeg, Sdata=panels, vv=np.array([votes])))


def test_a_pair_is_read_in_the_order_of_our_classes(tmp_path):
    eeg = np.random.default_rng(0).standard_normal((20, 2000))
    write_pair(tmp_path, [1, 2, 3, 4, 5, 6], eeg, columns=597)    # other, seizure, LPD, GPD, LRDA, GRDA
    segment, = real_segments(tmp_path)
    assert dict(zip(CLASSES, (segment.shares * 21).round(), strict=True)) == dict(
        other=1, seizure=2, lpd=3, gpd=4, lrda=5, grda=6)
    assert np.allclose(segment.eeg, eeg, atol=1e-6) and segment.panels["RP"].shape == (100, 597)


def test_files_that_cannot_be_read_are_told_and_left_out(tmp_path):
    with pytest.raises(DataError, match="holds no clone"): real_segments(tmp_path)
    write_pair(tmp_path, [1] * 6, np.zeros((19, 2000)))
    with pytest.warns(UserWarning, match="seg_10sec"), pytest.raises(DataError, match="no segments"):
        real_segments(tmp_path)


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 40).astype(float)
    y = (rng.random(40) < .4).astype(float)
    w = rng.random(40)
    ones, zeros = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    wins = sum(w[a] * w[b] * ((score[a] > score[b]) + .5 * (score[a] == score[b])) for a in ones for b
               in zeros)
    assert auc(score, y, w) == pytest.approx(wins / (w[ones].sum() * w[zeros].sum()))


def test_a_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(2)
    x, classes = rng.standard_normal((36, 11, 6)), np.arange(36) % 6
    assert .3 < told_apart(x[:, 0], x[:, 1:], classes, 20)[0] < .65
    x[:, 0, 1] += 2.5
    value, low, high = told_apart(x[:, 0], x[:, 1:], classes, 20)
    assert value > .9 and low <= value <= high


def test_units_and_sides_of_features():
    eeg = simulate_like(Segment("lpd", np.eye(6)[1], None), 3).eeg
    one, ten = segment_features(eeg), segment_features(10 * eeg)
    assert ten["amp50"] - one["amp50"] == pytest.approx(np.log(10), abs=.15)
    for name in ("kurtosis", "corr", "rhythm", "lateral"): assert ten[name] == pytest.approx(one[name],
                                                                                             abs=.02)
    flipped = eeg[[CHANNELS.index(c) for c in CHANNELS[11:19]] + [8, 9, 10] + list(range(8)) + [19]]
    mirrored = segment_features(flipped)
    assert mirrored["lateral"] == pytest.approx(one["lateral"], abs=1e-3)


def test_the_real_files_are_read_and_hardly_told_apart(real):
    segments = real_segments(real / "iiic")
    named = {"SZ": "seizure", "LPD": "lpd", "GPD": "gpd", "LRDA": "lrda", "GRDA": "grda", "Other": "other"}
    split = {"SZ_sample4", "LRDA_sample4", "GRDA_sample3", "GRDA_sample4", "Other_sample2"}   # raters differ
    for segment in segments:                            # the majority of votes agrees with the file's name
        kind = named.get(segment.name.split("_")[0])
        if kind and segment.name not in split: assert CLASSES[segment.shares.argmax()] == kind
    result, table, _ = realism(real / "iiic", sets=1, workers=1, progress=False)
    assert result["segments"] == len(segments) >= 30
    assert result["auc"] <= .85 and np.isfinite(table.to_numpy()).all()
