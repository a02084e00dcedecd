"Made-up EEG, spectrograms and clones of open EEG for tests, in the form of the real files."
import numpy as np
import pandas as pd
from scipy.io import savemat

from hms_hbac.core import CHANNELS, spectrogram_columns

PANELS = ("LL", "RL", "LP", "RP")


def eeg_table(rows=10_000, seed=0):
    values = np.random.default_rng(seed).normal(0, 20, (rows, 20)).astype("float32")
    return pd.DataFrame(values, columns=CHANNELS)


def spec_table(rows=300, seed=0):
    values = np.random.default_rng(seed).lognormal(0, 1, (rows, 400)).astype("float32")
    t = pd.DataFrame(values, columns=spectrogram_columns())
    t.insert(0, "time", np.arange(1, 2 * rows, 2, dtype="int16"))
    return t


def cells(rows):
    "A MATLAB cell array of the given rows."
    out = np.empty((len(rows), len(rows[0])), object)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            out[i, j] = value
    return out


def write_clones(folder):
    "Both repositories of open EEG with two windows and one pair, as small as they can be."
    data = [folder / r / "code_for_figures/Data" for r in ("IIIC-SPaRCNet", "IIIC-IRR")]
    samples, pairs = data[0] / "Figure4to6/samples", data[1] / "eFigure2"
    for part in (samples, pairs, data[0] / "Figure3"): part.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("SZ_sample1", "GRDA_sample2"):
        savemat(samples / f"{name}.mat", {"seg": rng.normal(0, 30, (20, 10_000))})
    shares = np.array([[0.1, 0.5, 0.2, 0.1, 0.06, 0.04]])
    block = cells(
        [
            ("SZ_sample1", np.array([[1, 9, 2, 3, 4, 5]]), shares, 1.0, 2.0),
            ("GRDA_sample2", np.array([[0, 0, 0, 0, 1, 4]]), shares, 1.0, 2.0),
        ]
    )
    savemat(data[0] / "Figure3/samples.mat", {"LUT": cells([(block,)])})
    panels = cells([(p, rng.gamma(3, 10 + k, (100, 300))) for k, p in enumerate(PANELS)])
    savemat(
        pairs / "K_Sample11.mat",
        {"seg_10sec": rng.normal(0, 30, (20, 2000)), "Sdata": panels, "vv": np.array([[0, 0, 0, 6, 6, 0]])},
    )
    return folder
