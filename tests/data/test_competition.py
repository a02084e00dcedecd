"Each fault of a competition folder, made on purpose, and the answer to it; the real tables' numbers."

import gzip

import numpy as np
import pandas as pd
import pytest
from toy_files import eeg_table, spec_table

from hms_hbac.core import CLASSES, VOTES, DataError
from hms_hbac.data.check import check
from hms_hbac.data.competition import Competition, add_folds, events, load_test
from hms_hbac.data.files import cut, cut_spectrogram


def train_table():
    "Four rows, two patients: EEG 10 (two rows with the same votes, one with others), EEG 11."
    votes = [(3, 0, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0), (0, 9, 1, 0, 0, 4), (0, 0, 0, 0, 2, 12)]
    rows = [
        (e, s, off, sp, s, off + 10, n, p, c, *v)
        for n, (e, s, off, sp, p, c, v) in enumerate(
            zip(
                (10, 10, 10, 11),
                (0, 1, 2, 0),
                (0.0, 6.0, 8.0, 0.0),
                (5, 5, 5, 6),
                (1, 1, 1, 2),
                ("Seizure", "Seizure", "LPD", "Other"),
                votes,
                strict=True,
            )
        )
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "eeg_id",
            "eeg_sub_id",
            "eeg_label_offset_seconds",
            "spectrogram_id",
            "spectrogram_sub_id",
            "spectrogram_label_offset_seconds",
            "label_id",
            "patient_id",
            "expert_consensus",
            *VOTES,
        ],
    )


@pytest.fixture
def folder(tmp_path):
    "A sound little competition; a test breaks one thing of it."
    for name in ("train_eegs", "train_spectrograms", "test_eegs", "test_spectrograms"):
        (tmp_path / name).mkdir()
    train_table().to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n8,20,3\n")
    for id in (10, 11):
        eeg_table(12_000, id).to_parquet(tmp_path / f"train_eegs/{id}.parquet")
    for id in (5, 6):
        spec_table(320, id).to_parquet(tmp_path / f"train_spectrograms/{id}.parquet")
    eeg_table().to_parquet(tmp_path / "test_eegs/20.parquet")
    spec_table().to_parquet(tmp_path / "test_spectrograms/8.parquet")
    return tmp_path


def findings(folder):
    table = check(Competition(folder), progress=False)
    return [f"{f}: {w}" for f, w in zip(table.file, table.what, strict=True)]


# ---- folder and tables


def test_sound_folder_has_no_findings(folder):
    assert findings(folder) == []
    comp = Competition(folder)
    assert comp.read_eeg(10).signal.shape == (20, 12_000) and comp.read_eeg(10).flags == ()
    power, start, flags = comp.read_spectrogram(8, "test")
    assert power.shape == (4, 100, 300) and power.dtype == np.float32 and (start, flags) == (1.0, ())
    assert power[1, 2, 3] == spec_table()["RL_0.98"][3]


def test_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        Competition(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no train.csv, train.csv.gz or test.csv in this folder"):
        Competition(tmp_path)


def test_missing_tables_and_folders(folder):
    (folder / "train.csv").unlink()
    with pytest.raises(DataError, match="no train.csv or train.csv.gz"):
        _ = Competition(folder).train
    (folder / "test_eegs/20.parquet").unlink()
    (folder / "test_eegs").rmdir()
    text = "\n".join(findings(folder))
    assert "test_eegs/: no such folder" in text and "train.csv: no such file" in text
    (folder / "test.csv").unlink()
    train_table().to_csv(folder / "train.csv", index=False)
    with pytest.raises(DataError, match="no test.csv"):
        _ = Competition(folder).test


def test_gzipped_table_and_float_dtypes(folder):
    expected = Competition(folder).train
    (folder / "train.csv").unlink()
    train_table().astype({c: float for c in (*VOTES, "eeg_id")}).to_csv(folder / "train.csv.gz", index=False)
    pd.testing.assert_frame_equal(Competition(folder).train, expected)


def test_truncated_tables(folder):
    data = gzip.compress((folder / "train.csv").read_bytes())
    (folder / "train.csv").unlink()
    (folder / "train.csv.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read as csv"):
        _ = Competition(folder).train
    (folder / "train.csv.gz").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as csv"):
        _ = Competition(folder).train


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns=["lpd_vote", "patient_id"]), "missing columns patient_id, lpd_vote"),
        (lambda t: t.assign(gpd_vote=[0, -1, 1, -2]), "column gpd_vote is negative in line 3 and 1 more"),
        (lambda t: t.assign(other_vote=[0, 0.5, 4, 12]), "column other_vote is not a whole number in line 3"),
        (lambda t: t.assign(other_vote=["0", "x", "4", "12"]), "column other_vote is not a number in line 3"),
        (lambda t: t.assign(eeg_id=[10, 10, None, 11]), "column eeg_id is not a number in line 4"),
        (
            lambda t: t.assign(eeg_label_offset_seconds=[0, 6, -8, 0]),
            "column eeg_label_offset_seconds is negative in line 4",
        ),
        (
            lambda t: t.assign(spectrogram_label_offset_seconds=[0, np.inf, 8, 0]),
            "column spectrogram_label_offset_seconds is not a number in line 3",
        ),
        (lambda t: t.assign(seizure_vote=[3, 0, 0, 0]), "all votes are zero in line 3"),
        (lambda t: t.assign(label_id=[0, 1, 1, 3]), "duplicate label_id in line 4"),
        (lambda t: t.assign(eeg_sub_id=[0, 1, 1, 0]), "duplicate eeg_id, eeg_sub_id in line 4"),
        (
            lambda t: t.assign(eeg_label_offset_seconds=[0, 6, 6, 0]),
            "duplicate eeg_id, eeg_label_offset_seconds in line 4",
        ),
        (lambda t: t.assign(patient_id=[1, 1, 7, 2]), "one eeg_id with two patient_ids in line 4"),
        (lambda t: t.assign(spectrogram_id=[5, 6, 5, 6]), "one eeg_id with two spectrogram_ids in line 3"),
        (lambda t: t.assign(spectrogram_id=5), "one spectrogram_id with two patient_ids in line 5"),
        (
            lambda t: t.assign(expert_consensus=["Seizure", "Seizure", "PDL", "Other"]),
            "unknown expert_consensus 'PDL' in line 4",
        ),
        (lambda t: t[:0], "no rows"),
    ],
)
def test_faults_of_the_train_table(folder, change, message):
    change(train_table()).to_csv(folder / "train.csv", index=False)
    with pytest.raises(DataError) as e:
        _ = Competition(folder).train
    assert f"train.csv: {message}" in str(e.value) and "cure: " in str(e.value)
    assert f"train.csv: {message}" in findings(folder)


@pytest.mark.parametrize(
    "text, ids, dtype, finding",
    [
        (
            "spectrogram_id,eeg_id,patient_id\n8,20,3\n8,20,3\n",
            [20, 20],
            "int64",
            "duplicate eeg_id in line 3",
        ),
        ("spectrogram_id,eeg_id,patient_id\n8,abc,3\n", ["abc"], None, "column eeg_id is no id in line 2"),
        (
            "spectrogram_id,eeg_id,patient_id\n8,99999999999999999999,3\n8,7,3\n",
            ["99999999999999999999", "7"],
            None,
            "column eeg_id is no id in line 2",
        ),
        ("spectrogram_id,eeg_id,patient_id\n8,,3\n", [""], None, "column eeg_id is no id in line 2"),
        ("\ufeffextra,eeg_id,spectrogram_id\n1,20,8\n", [20], "int64", None),
        ("eeg_id\n20\n", [20], "int64", "missing column spectrogram_id"),
        (
            "spectrogram_id,eeg_id,patient_id\n8,20\n8,21,3,4\n",
            [20, 21],
            "int64",
            "wrong number of fields in line 2 and 1 more",
        ),
        ("spectrogram_id,eeg_id,patient_id\n", [], "int64", None),
    ],
)
def test_odd_test_tables_keep_every_row(folder, text, ids, dtype, finding):
    (folder / "test.csv").write_text(text, encoding="utf-8")
    comp = Competition(folder)
    assert comp.test.eeg_id.tolist() == ids
    if dtype:
        assert comp.test.eeg_id.dtype == dtype
    else:
        assert all(isinstance(i, str) for i in comp.test.eeg_id)
    assert [f.what for f in load_test(comp)[1]] == ([finding] if finding else [])


def test_test_table_without_ids(folder):
    (folder / "test.csv").write_text("spectrogram_id\n8\n")
    with pytest.raises(DataError, match="missing column eeg_id"):
        _ = Competition(folder).test


def test_ids_that_are_no_file(folder):
    comp = Competition(folder)
    for id in ("../train_eegs/10", "", "a\0b", ".."):
        with pytest.raises(DataError, match="is no id of a file"):
            comp.read_eeg(id, "test")
    assert (
        comp.read_eeg("20.0", "test").signal.shape
        == comp.read_eeg(" 20", "test").signal.shape
        == (20, 10_000)
    )


# ---- recordings


def test_missing_and_truncated_files(folder):
    whole = (folder / "train_eegs/10.parquet").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PAR1" * 100):
        (folder / "train_eegs/10.parquet").write_bytes(data)
        with pytest.raises(DataError, match="10.parquet: cannot be read as parquet"):
            Competition(folder).read_eeg(10)
    (folder / "train_spectrograms/6.parquet").unlink()
    with pytest.raises(DataError, match="6.parquet: no such file"):
        Competition(folder).read_spectrogram(6)
    text = "\n".join(findings(folder))
    assert "train_eegs/10.parquet: cannot be read as parquet" in text
    assert "train_spectrograms/: 1 of 2 files that train.csv names are missing: 6" in text


def test_offsets_beyond_the_recording(folder):
    train_table().assign(
        eeg_label_offset_seconds=[0, 6, 20, 60], spectrogram_label_offset_seconds=[0, 6, 700, 42]
    ).to_csv(folder / "train.csv", index=False)
    assert findings(folder) == [
        "train_eegs/11.parquet: offset 60 s lies beyond the recording (60 s)",
        "train_spectrograms/5.parquet: offset 700 s lies beyond the recording (640 s)",
        "train_eegs/10.parquet: the window at offset 20 s ends after the recording (60 s)",
        "train_spectrograms/6.parquet: the window at offset 42 s ends after the recording (640 s)",
    ]
    x = Competition(folder).read_eeg(10).signal
    window = cut(x, 20 * 200, 10_000)
    assert window.shape == (20, 10_000) and np.isnan(window[:, 8_000:]).all()
    np.testing.assert_array_equal(window[:, :8_000], x[:, 4_000:])
    assert np.isnan(cut(x, 60 * 200, 10_000)).all()
    assert np.isnan(cut_spectrogram(x.reshape(4, 5, -1), 10**9)).all()


def test_files_that_are_no_recording_are_named(folder):
    (folder / "train_eegs/notes.txt").write_text("x")
    assert findings(folder) == ["train_eegs/: 1 files that are no recording: notes.txt"]


# ---- events, folds, fingerprint


def test_events_of_the_small_table():
    e = events(train_table())
    assert (
        e.eeg_id.tolist() == [10, 10, 11]
        and e.event_id.tolist() == [0, 1, 2]
        and e.n_rows.tolist() == [2, 1, 1]
    )
    assert (
        e.eeg_offset_first.tolist() == [0, 8, 0]
        and e.eeg_offset_last.tolist() == [6, 8, 0]
        and e.eeg_offset.tolist() == [0, 8, 0]
    )
    assert e.spectrogram_offset_last.tolist() == [16, 18, 10] and e.n_votes.tolist() == [3, 14, 14]
    assert e.consensus.tolist() == ["seizure", "lpd", "other"]
    shuffled = train_table().iloc[[1, 0, 2, 3]]
    assert events(shuffled).eeg_offset_first.tolist() == [0, 8, 0]


def test_folds_need_patients():
    with pytest.raises(DataError, match="2 patients cannot fill 5 folds"):
        add_folds(events(train_table()))


def test_fingerprint(folder, tmp_path_factory):
    import os
    import shutil

    first = Competition(folder).fingerprint
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "c")
    os.utime(copy / "train_eegs/10.parquet", (1, 1))
    (copy / "train.csv").write_text((copy / "train.csv").read_text() + "\n")
    assert Competition(copy).fingerprint == first  # dates and tables do not count
    data = bytearray((copy / "train_eegs/10.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "train_eegs/10.parquet").write_bytes(data)
    assert Competition(copy).fingerprint != first
    shutil.copy(folder / "train_eegs/10.parquet", copy / "train_eegs/10.parquet")
    assert Competition(copy).fingerprint == first
    shutil.copy(folder / "train_eegs/10.parquet", copy / "train_eegs/12.parquet")
    assert Competition(copy).fingerprint != first


def test_real_table(real):
    train = Competition(real / "competition").train
    assert (
        len(train),
        train.eeg_id.nunique(),
        train.spectrogram_id.nunique(),
        train.patient_id.nunique(),
    ) == (106_519, 17_001, 11_087, 1_945)
    e = events(train)
    assert len(e) == 20_080 and e.n_rows.sum() == 106_519 and e.patient_id.nunique() == 1_945
    assert e.consensus.value_counts().to_dict() == {
        "other": 7670,
        "seizure": 3953,
        "lpd": 3329,
        "gpd": 2075,
        "grda": 1925,
        "lrda": 1128,
    }
    argmax = np.array(CLASSES)[e[list(VOTES)].to_numpy().argmax(1)]
    assert (argmax == e.consensus).all()  # ties go to the first class, as in Kaggle's column
    counts = e.n_votes.value_counts()
    assert set(counts.index) <= {*range(1, 8), *range(10, 29)}
    assert [counts[n] for n in (1, 2, 3, 4, 5, 6, 7, 10, 13, 15, 28)] == [
        3433,
        2070,
        6238,
        743,
        1141,
        141,
        1,
        116,
        1354,
        1438,
        1,
    ]
    assert (e.n_votes >= 10).sum() == 6_313
    assert events(train.drop(columns="expert_consensus")).equals(e)


def test_real_folds(real):
    e = add_folds(events(Competition(real / "competition").train))
    assert e.groupby("patient_id").fold.nunique().max() == 1 and set(e.fold) == set(range(5))
    shares = pd.crosstab(e.fold, e.consensus, normalize="index")
    shares.loc["all"] = e.consensus.value_counts(normalize=True)
    points = (shares - shares.loc["all"]).abs().to_numpy().max()
    relative = (shares / shares.loc["all"] - 1).abs().to_numpy().max()
    print(
        f"largest difference of a class share: {points * 100:.3f} points, {relative * 100:.2f} % of the share"
    )
    assert points < 0.02 and relative < 0.02


def test_real_files(real):
    comp = Competition(real / "competition")
    x = comp.read_eeg(1000913311)
    assert x.signal.shape == (20, 10_000) and x.flags == ()
    s = comp.read_spectrogram(1000189855)
    assert s.power.shape == (4, 100, 690) and s.start_s == 1.0 and s.flags == ()
    assert comp.test.eeg_id.tolist() == [3911565283] and load_test(comp)[1] == []
    assert comp.read_spectrogram(comp.test.spectrogram_id[0], "test").power.shape == (4, 100, 300)
    found = check(comp, progress=False)
    assert found.what.tolist() == [
        "17000 of 17001 files that train.csv names are missing: 568657, 582999, 642382, 751790 "
        "and 16996 more",
        "11086 of 11087 files that train.csv names are missing: 353733, 924234, 999431, 1084844 "
        "and 11082 more",
    ]
