"""A simulated competition: the same bytes for any number of workers, Kaggle's own shapes, true signals."""
import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from hms_hbac.core import CHANNELS, CLASSES, PANELS, SPEC_FREQUENCIES, VOTES, DataError, spectrogram_columns
from hms_hbac.data.competition import Competition, events
from hms_hbac.signal.host import host_spectrogram
from hms_hbac.simulate.competition import fingerprint, plan, simulate, spectrogram_table, summary, tables
from hms_hbac.simulate.votes import floor

SMALL = dict(patients=3, test_patients=1, seed=5, recordings_per_patient=.6, progress=False)


def hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("one") / "comp", workers=1, **SMALL)


def test_same_bytes_for_one_and_two_workers(small, tmp_path):
    assert hashes(small) == hashes(simulate(tmp_path / "two", workers=2, **SMALL))


def test_stopped_simulation_is_continued_to_the_same_bytes(small, tmp_path):
    whole = hashes(small)
    victim = next(small.glob("train_spectrograms/*.parquet"))
    victim.unlink()
    (small / "train.csv").unlink()
    kept = {p: p.stat().st_mtime_ns for p in small.glob("*_spectrograms/*")}
    simulate(small, workers=1, **SMALL)
    assert hashes(small) == whole
    assert {p: p.stat().st_mtime_ns for p in kept} == kept            # finished recordings are not made again


def test_summary_and_fingerprint(small, tmp_path):
    found = summary(small)
    train = pd.read_csv(small / "train.csv")
    assert found["eeg"] == train.eeg_id.nunique() and found["rows"] == len(train)
    truth = pd.read_parquet(small / "truth.parquet")
    assert found["floor"] == floor(truth[truth.split == "train"])["floor"]
    (tmp_path / "a").write_text("1")
    one = fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = fingerprint(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, two, fingerprint(tmp_path)}) == 3 and found["fingerprint"] == fingerprint(small)


def test_another_simulation_is_refused(small):
    with pytest.raises(DataError, match="holds a simulation with other settings"):
        simulate(small, **SMALL | {"patients": 4})


def test_other_seed_other_votes():
    a, b = (tables(plan(12, 2, seed), seed)[0] for seed in (0, 1))
    assert not set(a.eeg_id) & set(b.eeg_id)
    assert tables(plan(12, 2, 0), 0)[0].equals(a)


def test_patients_and_ids(comp_dir):
    train = pd.read_csv(comp_dir / "train.csv")
    test = pd.read_csv(comp_dir / "test.csv")
    assert not set(train.patient_id) & set(test.patient_id)
    assert not set(train.eeg_id) & set(test.eeg_id)
    assert train.label_id.is_unique and test.eeg_id.is_unique and test.spectrogram_id.is_unique
    assert (train.groupby("spectrogram_id").patient_id.nunique() == 1).all()
    assert (train.eeg_sub_id == train.groupby("eeg_id").cumcount()).all()
    assert (train.spectrogram_sub_id == train.groupby("spectrogram_id").cumcount()).all()
    for split, table in (("train", train), ("test", test)):
        for kind in ("eeg", "spectrogram"):
            files = {int(p.stem) for p in (comp_dir / f"{split}_{kind}s").glob("*.parquet")}
            assert files == set(table[f"{kind}_id"])
    assert set(train.expert_consensus) <= {"Seizure", "LPD", "GPD", "LRDA", "GRDA", "Other"}


def test_offsets_lie_inside_the_files(comp_dir):
    train = pd.read_csv(comp_dir / "train.csv")
    assert (train.eeg_label_offset_seconds % 2 == 0).all()
    assert (train.groupby("eeg_id").eeg_label_offset_seconds.min() == 0).all()
    import pyarrow.parquet as pq
    def rows(kind, number): return pq.read_metadata(comp_dir / f"train_{kind}s/{number}.parquet").num_rows
    for eeg_id, last in train.groupby("eeg_id").eeg_label_offset_seconds.max().items():
        assert rows("eeg", eeg_id) == (50 + last) * 200
    for number, last in train.groupby("spectrogram_id").spectrogram_label_offset_seconds.max().items():
        assert rows("spectrogram", number) == (600 + last) / 2


def test_columns_and_dtypes(comp_dir):
    eeg = pd.read_parquet(next((comp_dir / "test_eegs").glob("*")))
    spectrogram = pd.read_parquet(next((comp_dir / "test_spectrograms").glob("*")))
    assert eeg.shape == (10_000,
                         20) and list(eeg) == list(CHANNELS) and set(eeg.dtypes.astype(str)) == {"float32"}
    assert spectrogram.shape == (300, 401) and list(spectrogram) == ["time", *spectrogram_columns()]
    assert spectrogram.time.dtype == "int64" and set(spectrogram.dtypes[1:].astype(str)) == {"float32"}
    sample = pd.read_csv(comp_dir / "sample_submission.csv")
    assert list(sample) == ["eeg_id", *VOTES] and np.allclose(sample[list(VOTES)].sum(axis=1), 1)


def test_files_equal_the_real_ones_in_columns_and_dtypes(comp_dir, real):
    real = real / "competition"
    theirs = pd.read_csv(real / "train.csv.gz", nrows=50)
    ours = pd.read_csv(comp_dir / "train.csv")
    assert list(theirs.dtypes.astype(str).items()) == list(ours.dtypes.astype(str).items())
    for name in ("test.csv", "sample_submission.csv"):
        a, b = pd.read_csv(real / name), pd.read_csv(comp_dir / name)
        assert list(a.dtypes.astype(str).items()) == list(b.dtypes.astype(str).items())
    for folder in ("train_eegs", "train_spectrograms", "test_eegs"):
        a, b = (pd.read_parquet(next((root / folder).glob("*.parquet"))) for root in (real, comp_dir))
        assert list(a.dtypes.astype(str).items()) == list(b.dtypes.astype(str).items())


def test_truth_joins_the_events_one_to_one(comp_dir):
    truth = pd.read_parquet(comp_dir / "truth.parquet")
    train = Competition(comp_dir).train
    mine = truth[truth.split == "train"]
    joined = events(train).merge(mine, on=["eeg_id", *VOTES], how="outer", indicator=True,
                                 suffixes=("", "_truth"))
    assert (joined._merge == "both").all() and (joined.n_votes == joined.n_votes_truth).all()
    assert np.allclose(truth[list(CLASSES)].sum(axis=1), 1)
    assert mine.merge(train, on=["eeg_id", "eeg_sub_id", "label_id"]).shape[0] == len(mine)
    assert (truth[truth.split == "test"].n_votes >= 10).all()


def test_counts_follow_the_real_ones_and_classes_are_spread():
    rows, _, _, truth = tables(plan(150, 4, 0), 0)
    n, files = rows[list(VOTES)].sum(axis=1), rows.eeg_id.nunique()
    event = truth[truth.split == "train"]
    assert abs((event.n_votes <= 3).mean() - .585) < .05 and abs((event.n_votes >= 10).mean() - .314) < .05
    assert n.between(1, 28).all() and not n.isin((7, 8, 9)).any()
    assert abs(len(event) / files - 1.15) < .06 and abs(len(rows) / files - 6.25) < 2
    assert abs(files / rows.spectrogram_id.nunique() - 1.53) < .12
    assert 52 <= 50 + rows.groupby("eeg_id").eeg_label_offset_seconds.max().median() <= 60
    default = tables(plan(60, 12, 1),
                     1)[0]                             # the default size: every class in several patients
    assert default.groupby("expert_consensus").patient_id.nunique().min() >= 5


def test_floor_lies_between_zero_and_the_mean_vote():
    truth = tables(plan(60, 2, 0), 0)[3]
    s = floor(truth[truth.split == "train"])
    assert 0 < s["floor_experts"] < .25 * s["mean_vote_experts"] and s["floor"] < .5 * s["mean_vote"]
    assert s["floor"] == pytest.approx(s["expected_floor"], abs=.05)
    sure = pd.DataFrame([[0, 0, 12, 0, 0, 0]], columns=list(VOTES)).assign(n_votes=12)
    sure[list(CLASSES)] = (0., 0., 1., 0., 0., 0.)
    for name in ("floor", "expected_floor"): assert floor(sure)[name] == pytest.approx(0, abs=1e-14)


def test_spectrogram_file_of_a_sinusoid():
    "10 Hz, 50 µV at F7 alone: only the chain LL has power, at 10 Hz, in two of its four differences."
    eeg = np.zeros((20, 602 * 200), np.float32)
    eeg[CHANNELS.index("F7")] = 50 * np.sin(2 * np.pi * 10 * np.arange(eeg.shape[1]) / 200)
    table = pd.DataFrame(spectrogram_table(host_spectrogram(torch.from_numpy(eeg), pad=False).numpy()))
    assert len(table) == 300 and table.time.iloc[-1] == 599
    power = table.iloc[150, 1:].to_numpy(float).reshape(4, 100)
    assert abs(SPEC_FREQUENCIES[power[PANELS.index("LL")].argmax()] - 10) < .6
    assert power[[PANELS.index(p) for p in ("RL", "LP", "RP")]].max() < 1e-3
    density = 50 ** 2 / 4 / 2             # two-sided mean square of the sine, in two of four differences
    assert power[PANELS.index("LL")].sum() * 200 / 1024 == pytest.approx(density, rel=.05)


def test_the_signal_expresses_the_truth(comp_dir):
    "The more pattern the truth holds, the more slow power the spectrogram shows around the label."
    truth = pd.read_parquet(comp_dir / "truth.parquet")
    offset = pd.read_csv(comp_dir / "train.csv").set_index("label_id").spectrogram_label_offset_seconds
    power, pattern = [], []
    for row in truth[truth.split == "train"].itertuples():
        table = pd.read_parquet(comp_dir / f"train_spectrograms/{row.spectrogram_id}.parquet")
        middle = int(offset[row.label_id]) // 2 + 150
        window = table.iloc[middle - 6:middle + 6, 1:].to_numpy().reshape(12, 4, 100)[..., :40]
        level = np.log(window + .01).mean(axis=(0, 2))
        if np.isnan(level).all(): continue                                # no data around this label
        power.append(np.nanmax(level))
        pattern.append(1 - row.latent_other)
    assert pd.Series(power).corr(pd.Series(pattern), method="spearman") > .35
