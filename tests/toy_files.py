"Made-up EEG and spectrogram tables for tests, with the columns of the real files."
import numpy as np
import pandas as pd

from hms_hbac.core import CHANNELS, spectrogram_columns


def eeg_table(rows=10_000, seed=0):
    values = np.random.default_rng(seed).normal(0, 20, (rows, 20)).astype("float32")
    return pd.DataFrame(values, columns=CHANNELS)


def spec_table(rows=300, seed=0):
    values = np.random.default_rng(seed).lognormal(0, 1, (rows, 400)).astype("float32")
    t = pd.DataFrame(values, columns=spectrogram_columns())
    t.insert(0, "time", np.arange(1, 2 * rows, 2, dtype="int16"))
    return t
