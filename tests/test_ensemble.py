"Blending and checking submissions as a user would, on whole files."
import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import VOTES, DataError, SubmissionError
from hms_hbac.ensemble import PRESETS, check_submission, ensemble, pool, preset
from hms_hbac.predict import write_submission

IDS = [str(1000 + 7 * i) for i in range(50)]


@pytest.fixture
def comp(tmp_path):
    (tmp_path / "comp").mkdir()
    (tmp_path / "comp" / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n" + "".join(f"5,{i},9\n" for i in IDS))
    return tmp_path / "comp"


def member(path, ids, seed):
    "A submission in an order of its own; returns the probabilities in the order of `ids`."
    p = np.random.default_rng(seed).dirichlet(np.ones(6), len(ids))
    order = np.random.default_rng(seed + 1).permutation(len(ids))
    write_submission([ids[i] for i in order], p[order], path)
    return p


def test_join_is_by_id_and_weights_are_relative(comp, tmp_path, capsys):
    a, b = (member(tmp_path / f"{n}.csv", IDS, s) for n, s in (("a", 1), ("b", 2)))
    assert ensemble({tmp_path / "a.csv": 3, tmp_path / "b.csv": 1}, tmp_path / "out.csv", comp) == 0
    assert check_submission(tmp_path / "out.csv", comp) == []
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")[list(VOTES)], .75 * a + .25 * b, atol=1e-12)
    assert len(pd.read_csv(tmp_path / "prediction_report.csv")) == 0
    assert capsys.readouterr().out == ""


def test_each_lost_row_is_named(comp, tmp_path, capsys):
    a, b = member(tmp_path / "a.csv", IDS, 1), member(tmp_path / "b.csv", IDS[:40], 2)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    bad = next(n for n, text in enumerate(lines) if text.startswith(IDS[3] + ","))
    lines[bad] = f"{IDS[3]},nan,0,0,0,0,1"
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    assert ensemble({tmp_path / "a.csv": 1, tmp_path / "b.csv": 1}, tmp_path / "out.csv", comp) == 3
    out = pd.read_csv(tmp_path / "out.csv")[list(VOTES)].to_numpy()
    np.testing.assert_allclose(out[3], b[3], atol=1e-12)
    np.testing.assert_allclose(out[40:], a[40:], atol=1e-12)
    report = pd.read_csv(tmp_path / "prediction_report.csv", dtype=str)
    assert len(report) == 11 and set(report.used) == {"the other members"}
    assert "seizure_vote is not a finite number" in report[report.member == "a.csv"].reason.item()
    assert "b.csv: no row with this eeg_id; 10 of 50 rows" in capsys.readouterr().out


def test_without_a_competition_every_known_row_stands(tmp_path):
    member(tmp_path / "a.csv", IDS[:10], 1), member(tmp_path / "b.csv", IDS[5:20], 2)
    assert ensemble({tmp_path / "a.csv": 1, tmp_path / "b.csv": 1}, tmp_path / "out.csv") == 3
    assert sorted(pd.read_csv(tmp_path / "out.csv", dtype=str).eeg_id) == sorted(IDS[:20])


def test_nobody_left(comp, tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    members = {tmp_path / n: 1 for n in ("empty.csv", "bytes.csv", "gone.csv")}
    assert ensemble(members, tmp_path / "out.csv", comp) == 3
    assert check_submission(tmp_path / "out.csv", comp) == []
    (comp / "train.csv").write_text(",".join(VOTES) + "\n2,2,0,0,0,0\n0,4,0,0,0,0\n")
    assert ensemble(members, tmp_path / "out.csv", comp) == 3
    assert pd.read_csv(tmp_path / "out.csv").iloc[0][list(VOTES)].tolist() == [.25, .75, 0, 0, 0, 0]
    with pytest.raises(SubmissionError, match="no member could be read"):
        ensemble(members, tmp_path / "out2.csv")
    assert not (tmp_path / "out2.csv").exists()


def test_empty_test_table(comp, tmp_path):
    (comp / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n")
    member(tmp_path / "a.csv", IDS, 1)
    assert ensemble({tmp_path / "a.csv": 1}, tmp_path / "out.csv", comp) == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == ["eeg_id," + ",".join(VOTES)]
    assert check_submission(tmp_path / "out.csv", comp) == []


@pytest.mark.parametrize("edit, fault", [
    (lambda f: f.drop(columns="gpd_vote"), "column gpd_vote is missing"),
    (lambda f: f.assign(expert="x"), "column expert does not belong here"),
    (lambda f: f[["eeg_id", *VOTES[::-1]]], "the columns stand as eeg_id, other_vote"),
    (lambda f: f.iloc[1:], f"test.csv row 1: eeg_id {IDS[0]} has no row"),
    (lambda f: pd.concat([f, f.iloc[:1]]), f"row 51: eeg_id {IDS[0]} stands once too often"),
    (lambda f: f.replace({"eeg_id": {int(IDS[4]): 5}}), "row 5: eeg_id 5 is not in test.csv"),
    (lambda f: f.iloc[::-1], f"row 1: eeg_id {IDS[-1]} stands where test.csv has {IDS[0]}"),
    (lambda f: f.assign(lpd_vote=f.lpd_vote.where(f.index != 7)), f"row 8 (eeg_id {IDS[7]}): lpd_vote is not a finite number"),
    (lambda f: f.assign(lpd_vote=np.where(f.index == 7, -.1, f.lpd_vote)), f"row 8 (eeg_id {IDS[7]}): lpd_vote is negative"),
    (lambda f: f.assign(lpd_vote=np.where(f.index == 7, 1.2, f.lpd_vote)), f"row 8 (eeg_id {IDS[7]}): lpd_vote is above 1"),
    (lambda f: f.assign(lpd_vote=np.where(f.index == 7, 0, f.lpd_vote)), f"row 8 (eeg_id {IDS[7]}): the row sums to"),
])
def test_check_names_the_fault(comp, tmp_path, edit, fault):
    write_submission(IDS, np.full((50, 6), 1 / 6), tmp_path / "s.csv")
    edit(pd.read_csv(tmp_path / "s.csv")).to_csv(tmp_path / "s.csv", index=False)
    faults = check_submission(tmp_path / "s.csv", comp)
    assert faults[0].startswith(fault) and len(faults) <= 2, faults      # a strange id is also a missing one


def test_check_reads_what_is_no_table(comp, tmp_path):
    assert "not readable" in check_submission(tmp_path / "gone.csv", comp)[0]
    (tmp_path / "empty.csv").touch()
    assert "not readable" in check_submission(tmp_path / "empty.csv", comp)[0]
    with pytest.raises(DataError, match="no such file"):
        check_submission(tmp_path / "gone.csv", tmp_path)


def test_presets_are_recipes(tmp_path):
    for name in PRESETS:
        assert sum(preset(name).values()) == pytest.approx(1)
    assert preset("david", tmp_path) == {str(tmp_path / f"{m}.csv"): w for m, w in preset("david").items()}


def test_one_run_of_a_preset(comp, tmp_path):
    "A preset with a member missing degrades and says so."
    p = member(tmp_path / "multiwindow_b0.csv", IDS, 1)
    assert ensemble(preset("david", tmp_path), tmp_path / "out.csv", comp) == 3
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")[list(VOTES)], p, atol=1e-12)


def test_pool_order_does_not_matter():
    p = np.random.default_rng(0).dirichlet(np.ones(6), (3, 20))
    for kind in ("arithmetic", "log"):
        np.testing.assert_allclose(pool(p, [1, 2, 3], kind), pool(p[::-1], [3, 2, 1], kind), atol=1e-12)
