"One folder of recordings and its cache, shared by the tests of the cache and of the windows."

import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import CHANNELS, spectrogram_columns
from hms_hbac.data.recordings import prepare


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    "70 EEGs (three shards) and 40 spectrograms (two shards) of odd lengths; one is truncated, one has holes."
    root = tmp_path_factory.mktemp("rec") / "comp"
    rng = np.random.default_rng(0)
    for name in ("train_eegs", "train_spectrograms"):
        (root / name).mkdir(parents=True)
    (root / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n5,7,1\n2,3,1\n")
    for id in range(1, 71):
        x = pd.DataFrame(
            rng.normal(0, 30, (10_000 + 4_000 * (id % 2), 20)).astype("float32"), columns=CHANNELS
        )
        if id == 7:
            x.loc[1_000:1_099, "T3"] = np.nan
        x.to_parquet(root / f"train_eegs/{id}.parquet")
    for id in range(1, 41):
        s = pd.DataFrame(
            np.exp(rng.normal(0, 3, (300 + 20 * (id % 2), 400))).astype("float32"),
            columns=spectrogram_columns(),
        )
        s.insert(0, "time", 2 * np.arange(len(s)) + 1)
        if id == 5:
            s.loc[20, "RL_0.98"] = np.nan
        s.to_parquet(root / f"train_spectrograms/{id}.parquet")
    bad = root / "train_eegs/60.parquet"
    bad.write_bytes(bad.read_bytes()[:70_000])
    return root


@pytest.fixture(scope="session")
def cache(folder, tmp_path_factory):
    "A cache that nothing may change."
    out = tmp_path_factory.mktemp("cache") / "cache"
    prepare(folder, out, workers=1, progress=False)
    return out
