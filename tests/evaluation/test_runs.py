"""The table of runs: the same numbers as the report, and faults of files with their names."""
import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import CLASSES, VOTES, DataError, write_json
from hms_hbac.evaluation.leaderboard import versus
from hms_hbac.evaluation.members import example_members
from hms_hbac.evaluation.report import read_runs, report
from hms_hbac.evaluation.runs import example_run, read_run, run_table
from hms_hbac.training.machine import hold


def tables():
    made = example_members((.5, .8), echo=0, patients=40)
    rows = pd.DataFrame(np.round(made.target * 14), columns=list(VOTES)).assign(
        event_id=range(200), eeg_id=range(200), patient_id=made.patient, fold=made.patient % 2, n_votes=14)
    return [rows.assign(**dict(zip(CLASSES, p.T, strict=True))) for p in made.prob]


@pytest.fixture
def runs(tmp_path):
    for name, table in zip(("good", "poor"), tables(), strict=True):
        example_run(tmp_path / "runs", name, table)
    return tmp_path / "runs"


def test_table_and_report_give_the_same_interval_for_one_question(runs):
    row = run_table(runs).iloc[1]
    good, poor = read_runs(runs)
    text, key = versus(poor["oof"], good["oof"])
    assert row.recipe == "poor" and key == pytest.approx(row.vs_best, abs=1e-4)
    assert text == f"{row.vs_best:+.3f}\n({row.low:+.3f} to {row.high:+.3f})"


@pytest.mark.parametrize("held, said", [
    ([1], "no mapping"), ("finished", "no mapping"), ({"status": ["finished"]}, "status is"),
                                        ({"data": 7}, "data is 7"),
    ({"wall_seconds": "long"}, "wall_seconds is"), ({"samples_per_s": {}}, "samples_per_s is"),
    ({"notes": "none"}, "notes is"), ({"versions": 3}, "versions is"), ({"data_path": True}, "data_path is")])
def test_manifests_of_odd_types_are_named_faults(runs, tmp_path, held, said):
    file = runs / "good" / "fold1" / "manifest.json"
    write_json(file, held if not isinstance(held, dict) else {"status": "finished"} | held)
    for call in (lambda: run_table(runs), lambda: report(runs, tmp_path / "r.html")):
        with pytest.raises(DataError, match=said) as fault:
            call()
        assert str(file) in str(fault.value)
    assert not (tmp_path / "r.html").exists()


def test_a_training_that_died_is_not_shown_as_running(tmp_path):
    fold = tmp_path / "one/fold0"
    write_json(fold / "manifest.json", {"status": "running"})
    with hold(fold): alive = read_run(tmp_path / "one")["open"]
    assert (alive, read_run(tmp_path / "one")["open"]) == (["fold0 running"], ["fold0 failed"])


def test_both_refuse_an_event_that_stands_in_two_folds(runs, tmp_path):
    table = pd.read_parquet(runs / "good/fold0/oof.parquet")
    table.assign(fold=1).to_parquet(runs / "good/fold1/oof.parquet")
    for call in (lambda: run_table(runs), lambda: report(runs, tmp_path / "r.html")):
        with pytest.raises(DataError, match="stands in two folds"):
            call()


@pytest.mark.parametrize("name, text, said", [
    ("oof.parquet", b"PAR1", "not readable"), ("manifest.json", b"{", "not valid JSON"),
    ("recipe.yaml", b"- a list", "is no recipe"), ("history.csv", b"", "not readable")])
def test_broken_files_are_named(runs, name, text, said):
    (runs / "good/fold0" / name).write_bytes(text)
    with pytest.raises(DataError, match=said) as fault:
        run_table(runs)
    assert name in str(fault.value)
