"Blending and checking submissions as a user would, on whole files."

import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import VOTES, DataError, SubmissionError
from hms_hbac.inference.ensemble import check_submission, ensemble
from hms_hbac.inference.outputs import write_submission
from hms_hbac.inference.pooling import pool
from hms_hbac.inference.presets import PRESETS, preset

IDS = [str(1000 + 7 * i) for i in range(50)]


@pytest.fixture
def comp(tmp_path):
    (tmp_path / "comp").mkdir()
    (tmp_path / "comp" / "test.csv").write_text(
        "spectrogram_id,eeg_id,patient_id\n" + "".join(f"5,{i},9\n" for i in IDS)
    )
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
    np.testing.assert_allclose(
        pd.read_csv(tmp_path / "out.csv")[list(VOTES)], 0.75 * a + 0.25 * b, atol=1e-12
    )
    assert len(pd.read_csv(tmp_path / "out_prediction_report.csv")) == 0
    assert capsys.readouterr().out == ""


def test_each_lost_row_is_named(comp, tmp_path, capsys):
    a = member(tmp_path / "a.csv", IDS, 1)
    b = member(tmp_path / "b.csv", IDS[:40], 2)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    bad = next(n for n, text in enumerate(lines) if text.startswith(IDS[3] + ","))
    lines[bad] = f"{IDS[3]},nan,0,0,0,0,1"
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    assert ensemble({tmp_path / "a.csv": 1, tmp_path / "b.csv": 1}, tmp_path / "out.csv", comp) == 3
    out = pd.read_csv(tmp_path / "out.csv")[list(VOTES)].to_numpy()
    np.testing.assert_allclose(out[3], b[3], atol=1e-12)
    np.testing.assert_allclose(out[40:], a[40:], atol=1e-12)
    report = pd.read_csv(tmp_path / "out_prediction_report.csv", dtype=str)
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
    assert pd.read_csv(tmp_path / "out.csv").iloc[0][list(VOTES)].tolist() == [0.25, 0.75, 0, 0, 0, 0]
    with pytest.raises(SubmissionError, match="no member could be read"):
        ensemble(members, tmp_path / "out2.csv")
    assert not (tmp_path / "out2.csv").exists()


def test_empty_test_table(comp, tmp_path):
    (comp / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n")
    member(tmp_path / "a.csv", IDS, 1)
    assert ensemble({tmp_path / "a.csv": 1}, tmp_path / "out.csv", comp) == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == ["eeg_id," + ",".join(VOTES)]
    assert check_submission(tmp_path / "out.csv", comp) == []


@pytest.mark.parametrize(
    "edit, fault",
    [
        (lambda f: f.drop(columns="gpd_vote"), "column gpd_vote is missing"),
        (lambda f: f.assign(expert="x"), "column expert does not belong here"),
        (lambda f: f[["eeg_id", *VOTES[::-1]]], "the columns stand as eeg_id, other_vote"),
        (lambda f: f.iloc[1:], f"test.csv row 1: eeg_id {IDS[0]} has no row"),
        (lambda f: pd.concat([f, f.iloc[:1]]), f"row 51: eeg_id {IDS[0]} stands once too often"),
        (lambda f: f.replace({"eeg_id": {int(IDS[4]): 5}}), "row 5: eeg_id 5 is not in test.csv"),
        (lambda f: f.iloc[::-1], f"row 1: eeg_id {IDS[-1]} stands where test.csv has {IDS[0]}"),
        (
            lambda f: f.assign(lpd_vote=f.lpd_vote.where(f.index != 7)),
            f"row 8 (eeg_id {IDS[7]}): lpd_vote is not a finite number",
        ),
        (
            lambda f: f.assign(lpd_vote=np.where(f.index == 7, -0.1, f.lpd_vote)),
            f"row 8 (eeg_id {IDS[7]}): lpd_vote is negative",
        ),
        (
            lambda f: f.assign(lpd_vote=np.where(f.index == 7, 1.2, f.lpd_vote)),
            f"row 8 (eeg_id {IDS[7]}): lpd_vote is above 1",
        ),
        (
            lambda f: f.assign(lpd_vote=np.where(f.index == 7, 0, f.lpd_vote)),
            f"row 8 (eeg_id {IDS[7]}): the row sums to",
        ),
    ],
)
def test_check_names_the_fault(comp, tmp_path, edit, fault):
    write_submission(IDS, np.full((50, 6), 1 / 6), tmp_path / "s.csv")
    edit(pd.read_csv(tmp_path / "s.csv")).to_csv(tmp_path / "s.csv", index=False)
    faults = check_submission(tmp_path / "s.csv", comp)
    assert faults[0].startswith(fault) and len(faults) <= 2, faults  # a strange id is also a missing one


def test_check_reads_what_is_no_table(comp, tmp_path):
    assert "not readable" in check_submission(tmp_path / "gone.csv", comp)[0]
    (tmp_path / "empty.csv").touch()
    assert "not readable" in check_submission(tmp_path / "empty.csv", comp)[0]
    with pytest.raises(DataError, match="test.csv"):
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


# ---- fitting --------------------------------------------------------------------------------


def made_up(noise=(0.6, 0.6, 1.0), patients=120, rows=5, votes=14, seed=0):
    "Members whose errors we know: true log-probabilities plus noise."
    from hms_hbac.evaluation.blending import Members
    from hms_hbac.inference.pooling import softmax

    rng = np.random.default_rng(seed)
    truth = softmax(np.log(rng.dirichlet(np.full(6, 0.5), patients * rows).clip(1e-3)))
    prob = softmax(np.stack([np.log(truth) + rng.normal(0, s, truth.shape) for s in noise]))
    counts = np.stack([rng.multinomial(votes, p) for p in truth])
    n = patients * rows
    return Members(
        [f"m{i}" for i in range(len(noise))],
        prob,
        counts / votes,
        np.arange(n) // rows,
        np.full(n, float(votes)),
        np.arange(n).astype(str),
    )


def write_runs(folder, m, folds=5):
    from hms_hbac.core import CLASSES

    frame = pd.DataFrame(
        {
            "event_id": np.arange(len(m.key)),
            "eeg_id": np.arange(len(m.key)),
            "patient_id": m.patient,
            "fold": m.patient % folds,
            "n_votes": m.n_votes,
        }
    )
    frame[list(VOTES)] = m.target
    for name, p in zip(m.names, m.prob, strict=True):
        frame[list(CLASSES)] = p
        for k, part in frame.groupby("fold"):
            (folder / name / f"fold{k}").mkdir(parents=True)
            part.to_parquet(folder / name / f"fold{k}" / "oof.parquet")
    return folder


def test_runs_to_weights_to_submission(comp, tmp_path):
    "The whole way: run folders, fit, weights.yaml, blended submission."
    from hms_hbac.evaluation.blending import fit_weights
    from hms_hbac.inference.pooling import read_weights
    from hms_hbac.inference.presets import blend_runs

    m = made_up(noise=(0.3, 0.3, 3.0))
    fit = fit_weights(write_runs(tmp_path / "runs", m), tmp_path / "weights.yaml")
    assert fit["method"] in ("weights", "log", "shrunk") and fit["weights"]["m2"] < 0.05
    assert fit["nested"]["low"] > 0
    assert read_weights(tmp_path / "weights.yaml")["data"]["fingerprint"] == fit["data"]["fingerprint"]
    assert (
        fit_weights([tmp_path / "runs" / n for n in m.names])["data"]["fingerprint"]
        == fit["data"]["fingerprint"]
    )
    (tmp_path / "members").mkdir()
    p = np.stack([member(tmp_path / "members" / f"{n}.csv", IDS, i) for i, n in enumerate(m.names)])
    given = tmp_path / "weights.yaml", None, comp, tmp_path / "out.csv", tmp_path / "members"
    assert blend_runs(*given, progress=False) == 0
    np.testing.assert_allclose(
        pd.read_csv(tmp_path / "out.csv")[list(VOTES)],
        pool(p, list(fit["weights"].values()), **fit["how"]),
        atol=1e-9,
    )
    (tmp_path / "members" / "m0.csv").unlink()
    assert blend_runs(*given, progress=False) == 3


def test_runs_that_leak_or_do_not_match_are_refused(tmp_path):
    from hms_hbac.evaluation.blending import fit_weights

    m = made_up()
    write_runs(tmp_path / "runs", m)
    file = tmp_path / "runs" / "m1" / "fold0" / "oof.parquet"
    whole = pd.read_parquet(file)
    for edit, text in (
        (
            lambda t: t.assign(patient_id=t.patient_id.where(t.index != t.index[0], 1)),
            "folds share patients across training and validation",
        ),
        (lambda t: t.iloc[1:], "lacks 1 of the 600 rows that m0 has"),
        (lambda t: t.assign(**{VOTES[0]: t[VOTES[1]], VOTES[1]: t[VOTES[0]]}), "its votes differ"),
        (lambda t: t.assign(fold=3), "stand in the folder of fold 0"),
        (lambda t: t.assign(lpd=np.nan), "no shares that sum to 1"),
        (lambda t: t.drop(columns="patient_id"), "has no patient_id"),
    ):
        edit(whole).to_parquet(file)
        with pytest.raises(DataError, match=text):
            fit_weights(tmp_path / "runs")
    whole.to_parquet(file)
    assert fit_weights(tmp_path / "runs")["method"]
    with pytest.raises(DataError, match="no oof.parquet"):
        fit_weights(tmp_path)
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not readable"):
        fit_weights(tmp_path / "runs")


def test_the_mean_is_rarely_left_for_nothing():
    "Members whose mean is the truth: of 30 draws a rival may win few by luck (intervals of 95 %)."
    from hms_hbac.evaluation.blending import Members, compare

    wins = 0
    for seed in range(30):
        m = made_up(noise=(0.6, 0.6, 0.6), patients=60, seed=seed)
        rng, mean = np.random.default_rng(seed), m.prob.mean(0)
        target = np.stack([rng.multinomial(14, p) for p in mean]) / 14
        wins += (
            compare(Members(m.names, m.prob, target, m.patient, m.n_votes, m.key), reps=400).attrs["choice"]
            != "mean"
        )
    assert wins <= 4, wins


def test_few_patients_leave_the_mean(tmp_path):
    from hms_hbac.evaluation.blending import fit_weights

    fit = fit_weights(made_up(noise=(0.1, 3.0), patients=6), tmp_path / "w.yaml")
    assert fit["method"] == "mean" and "too few" in fit["reason"]


def test_real_table(real):
    "Public out-of-fold predictions: .2140 for the plain mean, and no worse for the tool's own choice."
    import time

    from hms_hbac.evaluation.blending import Members, fit_weights, read_members
    from hms_hbac.inference.pooling import softmax

    begin = time.process_time()
    fit = fit_weights(real / "oof" / "oof_predictions.parquet")
    four = time.process_time() - begin
    assert round(fit["plain_mean"], 4) == 0.2140 and fit["nested"]["kl"] <= 0.2145 and fit["reason"]
    assert four < 60
    m = read_members(real / "oof" / "oof_predictions.parquet")
    rng = np.random.default_rng(0)
    more = softmax(
        np.log(m.prob[rng.integers(0, 4, 14)].clip(1e-7)) + rng.normal(0, 0.3, (14, *m.target.shape))
    )
    begin = time.process_time()
    fit = fit_weights(
        Members(
            [f"m{i}" for i in range(18)],
            np.concatenate([m.prob, more]),
            m.target,
            m.patient,
            m.n_votes,
            m.key,
        )
    )
    eighteen = time.process_time() - begin
    print(f"4 members {four:.1f} s, 18 members {eighteen:.1f} s, choice {fit['method']}")
    assert eighteen < 60 and eighteen / four < 2.5 * 18 / 4


def test_presets_name_packaged_recipes():
    from hms_hbac.models.recipe import list_recipes

    assert {m for name in PRESETS for m in preset(name)} <= set(list_recipes())
