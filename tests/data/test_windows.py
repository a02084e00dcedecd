"Batches of windows: the same numbers whoever asks, cut by the label's own offset; blank windows are counted."

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from hms_hbac.core import VOTES, DataError
from hms_hbac.data import windows
from hms_hbac.data.competition import Competition
from hms_hbac.data.recordings import Recordings, prepare
from hms_hbac.data.windows import FolderSource, WindowDataset, blank

EVENTS = pd.DataFrame(
    {
        "event_id": [0, 1, 2, 3],
        "eeg_id": [3, 7, 7, 40],
        "spectrogram_id": [2, 5, 5, 40],
        "eeg_offset": [0.0, 4.0, 10.0, 2.0],
        "eeg_offset_first": [0.0, 0.0, 10.0, 0.0],
        "eeg_offset_last": [0.0, 8.0, 10.0, 6.0],
        "spectrogram_offset": [0.0, 24.0, 30.0, 2.0],
        "spectrogram_offset_first": [0.0, 20.0, 30.0, 0.0],
        "spectrogram_offset_last": [0.0, 28.0, 30.0, 6.0],
    }
    | {v: [1, 0, 2, 0] for v in VOTES}
    | {"other_vote": [3, 5, 0, 1]}
)


def test_items_and_batches(folder, cache):
    ds = WindowDataset(Recordings(cache), EVENTS)
    item, batch = ds[1], ds.batch([3, 1])
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "key": ((2,), torch.int64),
        "event_id": ((2,), torch.int64),
        "target": ((2, 6), torch.float32),
        "n_votes": ((2,), torch.float32),
        "eeg": ((2, 20, 10_000), torch.float32),
        "spectrogram": ((2, 4, 100, 300), torch.float32),
    }
    for k in item:
        torch.testing.assert_close(item[k], batch[k][1], rtol=0, atol=0, equal_nan=True)
    assert (
        batch["event_id"].tolist() == [3, 1]
        and batch["n_votes"].tolist() == [1, 5]
        and torch.allclose(batch["target"].sum(1), torch.ones(2))
    )
    np.testing.assert_array_equal(item["eeg"], ds.source.eeg(7, 4 * 200))
    np.testing.assert_array_equal(item["spectrogram"], ds.source.spectrogram(5, 12))
    with pytest.raises(IndexError):
        ds[4]
    assert len(list(iter(ds))) == 4
    assert set(WindowDataset(Recordings(cache), EVENTS, spec_steps=0)[0]) == {
        "key",
        "event_id",
        "target",
        "n_votes",
        "eeg",
    }
    assert "eeg" not in WindowDataset(Recordings(cache), EVENTS, eeg=False)[0]


def test_wider_spectrogram_windows_are_centred(cache):
    narrow, wide = (
        WindowDataset(Recordings(cache), EVENTS, spec_steps=n)[2]["spectrogram"] for n in (300, 312)
    )
    torch.testing.assert_close(wide[..., 6:306], narrow, equal_nan=True, rtol=0, atol=0)


def test_random_offsets_belong_to_the_sample(cache):
    r = Recordings(cache)
    ds = WindowDataset(r, EVENTS, offset="random", seed=3)
    a, b = ds.batch([1, 2], epoch=5), ds.batch([2, 1, 0], epoch=5)
    torch.testing.assert_close(a["eeg"][0], b["eeg"][1], equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(
        torch.nan_to_num(ds.batch([1], 5)["eeg"]), torch.nan_to_num(ds.batch([1], 6)["eeg"])
    )
    eeg, spec = windows.window_starts(
        {k: np.repeat(v[1:2], 2_000) for k, v in ds.table.items()},
        "random",
        windows.sample_keys(3, 0, range(2_000)),
    )
    assert (
        0 <= eeg.min() < 0.1
        and 7.9 < eeg.max() <= 8
        and abs(eeg.mean() - 4) < 0.2
        and np.allclose(spec - eeg, 20)
    )
    torch.testing.assert_close(
        ds.batch([2])["eeg"], WindowDataset(r, EVENTS).batch([2])["eeg"], equal_nan=True, rtol=0, atol=0
    )


def test_loaders_agree(cache):
    "Default collation and batches from a worker process give the same numbers; a dataset travels as a path."
    ds = WindowDataset(Recordings(cache), EVENTS, offset="random")
    one = next(iter(DataLoader(ds, batch_size=4)))
    sampler = BatchSampler(range(4), 4, drop_last=False)
    two = next(iter(DataLoader(ds, sampler=sampler, batch_size=None, num_workers=1)))
    for k in one:
        torch.testing.assert_close(one[k], two[k], equal_nan=True, rtol=0, atol=0)
    copy = pickle.loads(pickle.dumps(ds))
    torch.testing.assert_close(copy[1]["eeg"], ds[1]["eeg"], equal_nan=True)
    assert len(pickle.dumps(ds)) < 10_000


def test_rows_of_test_csv_have_no_target_and_faults_have_a_name(folder):
    comp = Competition(folder)
    ds = WindowDataset(FolderSource(comp, "train"), comp.test)
    assert set(ds[0]) == {"key", "event_id", "eeg", "spectrogram"}
    table = pd.DataFrame({"eeg_id": ["7", "60", "../7", "3"], "spectrogram_id": ["5", "2", "2", ""]})
    ds = WindowDataset(FolderSource(comp, "train"), table)
    for row, message in (
        (1, "cannot be read as parquet"),
        (2, "is no id of a file"),
        (3, "is no id of a file"),
    ):
        with pytest.raises(DataError, match=message):
            ds[row]


@pytest.mark.parametrize(
    "change",
    [
        {},  # as it is: nothing is blank
        {"eeg_offset": [1e9, 4.0, 69.995, 70.0]},
        {"spectrogram_offset": [1e9, -600.0, -599.0, 600.0]},
        {"eeg_id": [3, 60, 7, 999], "spectrogram_id": [2, 5, 999, 40]},  # unreadable and missing recordings
    ],
)
@pytest.mark.parametrize("steps", [300, 340])
def test_blank_windows_are_those_without_a_finite_value(cache, change, steps):
    "Against all windows, read in full."
    r, table = Recordings(cache), EVENTS.assign(**change)
    expected = []
    for i in range(len(table)):
        try:
            item = WindowDataset(r, table, spec_steps=steps)[i]
        except DataError:  # then one of the two cannot be read
            item = {
                "eeg": torch.zeros(1) if r.has("eegs", table.eeg_id[i]) else torch.full((1,), torch.nan),
                "spectrogram": torch.zeros(1)
                if r.has("spectrograms", table.spectrogram_id[i])
                else torch.full((1,), torch.nan),
            }
        expected.append([bool(torch.isnan(item[k]).all()) for k in ("eeg", "spectrogram")])
    assert blank(r, table, steps).to_numpy().tolist() == expected
    assert "spectrogram" not in blank(r, table, spec_steps=0)


def test_a_recording_of_nan_alone_is_blank(folder, tmp_path):
    import shutil

    comp = tmp_path / "comp"
    for name in ("train_eegs/3.parquet", "train_spectrograms/2.parquet"):
        (comp / name).parent.mkdir(parents=True)
        shutil.copy(folder / name, comp / name)
        t = pd.read_parquet(comp / name)
        t.iloc[:, 1:] = np.nan  # the first channel lives
        if "eegs" in name:
            t.loc[:, "Fp1"] = np.nan
        t.to_parquet(comp / name)
    (comp / "test.csv").write_text("eeg_id\n")
    b = blank(prepare(comp, tmp_path / "c", progress=False), EVENTS[:1])
    assert b.to_numpy().tolist() == [[True, True]]


def test_folder_source_forgets(folder):
    source = FolderSource(folder, "train", keep=2)
    for id in (1, 2, 3, 2):
        source.eeg(id, 0, 10)
    assert [k[1] for k in source._last] == [3, 2]


def test_real_windows(real):
    comp = Competition(real / "competition")
    b = WindowDataset(FolderSource(comp, "test"), comp.test)[0]
    assert b["eeg"].shape == (20, 10_000) and not torch.isnan(b["spectrogram"]).any()
