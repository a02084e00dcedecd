"""The host's spectrogram on real recordings (HMS_REAL) and on simulated ones."""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from hms_hbac.core import CHANNELS, PANELS, SPEC_FREQUENCIES, spectrogram_columns
from hms_hbac.signal.filters import MONTAGES, repair
from hms_hbac.signal.host import host_spectrogram
from hms_hbac.signal.spectrogram import log_mel, middle, multitaper

SHAPES = [(10, 50, 256), (15, 50, 256), (30, 50, 256), (45, 50, 256), (10, 100, 256), (30, 100, 256),
          (50, 128, 256), (50, 100, 300)]


def read_eeg(path):
    "The middle 50 s of a parquet file, (20, 10000) float32."
    x = torch.from_numpy(pd.read_parquet(path)[list(CHANNELS)].to_numpy(np.float32).T.copy())
    start = (x.shape[1] - 10_000) // 2
    return x[:, start:start + 10_000]


def librosa_loop(x, height, width):
    "(D, T) numpy -> (D, height, width), as the published systems compute it."
    librosa = pytest.importorskip("librosa")
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in x:
            mel = librosa.feature.melspectrogram(y=row, sr=200, hop_length=len(row) // width, n_fft=1024,
                                                 n_mels=height,
                                                 fmin=0, fmax=20, win_length=128)
            out.append((librosa.power_to_db(mel, ref=np.max)[:, :width] + 40) / 40)
    return np.stack(out)


def check_log_mel(eeg):
    differences = MONTAGES["chains"].derive(eeg)
    for seconds, height, width in SHAPES:
        ours = log_mel(differences, height, width, seconds).numpy()
        theirs = librosa_loop(repair(middle(differences, seconds))[0].numpy(), height, width)
        assert ours.shape == theirs.shape == (16, height, width)
        assert np.abs(ours - theirs).max() < 1e-4, (seconds, height, width)


@pytest.fixture(scope="module")
def pair(real):
    """The real test pair: EEG (20, 10000), the 24 rows of its spectrogram whose windows lie inside (4, 100,
    24), their times."""
    table = pd.read_parquet(real/"competition/test_spectrograms/853520.parquet")
    assert list(table.columns[1:]) == spectrogram_columns()
    seconds = table["time"].to_numpy(float)
    # the EEG is the middle 50 s of the 600: it starts at 275 s; a row at t s needs t - 2 ... t + 2
    inside = (seconds - 2 >= 275) & (seconds + 2 <= 325)
    power = table.iloc[:, 1:].to_numpy(np.float32)[inside].reshape(-1, 4, 100).transpose(1, 2, 0)
    return read_eeg(real/"competition/test_eegs/3911565283.parquet"), power, seconds[inside]


@pytest.mark.parametrize("name", ["test_eegs/3911565283", "train_eegs/1000913311"])
def test_log_mel_is_librosas_on_real_eegs(real, name):
    check_log_mel(read_eeg(real/f"competition/{name}.parquet"))


def test_log_mel_is_librosas_on_simulated_eegs(comp_dir):
    for path in sorted((comp_dir/"train_eegs").glob("*.parquet"))[:3]: check_log_mel(read_eeg(path))


def test_host_spectrogram_is_the_hosts(pair):
    eeg, theirs, seconds = pair
    ours = host_spectrogram(eeg, pad=False).numpy()
    assert ours.shape == theirs.shape == (4, 100, 24)
    assert (seconds - 275).tolist() == [2.0 + 2 * i for i in range(24)]
    for panel, a, b in zip(PANELS, ours, theirs, strict=False):
        correlation = np.corrcoef(np.log(a).ravel(), np.log(b).ravel())[0, 1]
        ratio = np.median(np.abs(np.log(a / b)))
        print(f"{panel} log-correlation {correlation:.5f}, median absolute log-ratio {ratio:.4f}")
        assert correlation >= .999 and ratio <= .025, panel


def test_the_high_pass_and_the_place_matter(pair):
    eeg, theirs, _ = pair
    def correlation(x):
        pairs = zip(x, theirs, strict=True)
        return min(np.corrcoef(np.log(a).ravel(), np.log(b).ravel())[0, 1] for a, b in pairs)
    raw = multitaper(repair(MONTAGES["chains"].derive(eeg))[0], pad=False).unflatten(0,
                                                                                     (4, 4)).mean(1).numpy()
    ours = host_spectrogram(eeg, pad=False).numpy()
    assert correlation(raw) < .999 and correlation(np.roll(ours, 1, -1)) < .99
    assert correlation(ours[[0, 2, 1, 3]]) < .9      # the panels are LL, RL, LP, RP, and no other order


def test_host_spectrogram_of_ten_minutes_has_the_files_rows():
    eeg = torch.randn(20, 120_000, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    whole = host_spectrogram(eeg)
    assert whole.shape == (4, 100, 300) and len(SPEC_FREQUENCIES) == 100 and bool((whole > 0).all())
    # a row is the same from the recording as from 50 s of it, away from where the high-pass meets the cut (10
    # s)
    part = host_spectrogram(eeg[:, 54_800:65_200])            # columns 137 ... 162
    assert np.abs(np.log(whole[..., 143:157] / part[..., 6:20]).numpy()).max() < .02
