"""From a recipe to a run folder on a simulated competition, and the stages counted on the real table."""
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hms_hbac.cli import app
from hms_hbac.core import CLASSES, VOTES, CheckpointError, DataError, HmsError, RecipeError
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.data.recordings import Recordings
from hms_hbac.evaluation.runs import run_table
from hms_hbac.models.recipe import load_recipe
from hms_hbac.training.batches import example_rows, stage_rows
from hms_hbac.training.checkpoints import load_weights
from hms_hbac.training.fit import fit
from hms_hbac.training.machine import make_accelerator
from hms_hbac.training.run import train, train_folds
from hms_hbac.training.teachers import view_data
from hms_hbac.training.toy import toy_optimizer, toy_schedule
from hms_hbac.views.systems import view

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_training import toy_loop, toy_settings


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(
        "panels_twostage_b0",
        "demo",
        [
            "stages=[{name: few, epochs: 1, max_votes: 4, bound: divided, mosaic_epochs: 1}, "
            "{name: many, epochs: 1, min_votes: 4, bound: unanimous}]",
            "view=CropPad(Panels(), 100, 100)",
        ],
    )


@pytest.fixture(scope="module")
def runs(comp_dir, tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("train")
    train_folds(recipe, comp_dir, folder / "runs", folds=[0, 1], cache=folder / "cache", log=False)
    return folder / "runs"


def test_run_folder(runs, comp_dir, recipe):
    folder = runs / "panels_twostage_b0" / "fold0"
    assert sorted(p.name for p in folder.iterdir()) == [
        "history.csv",
        "last",
        "manifest.json",
        "model.safetensors",
        "oof.parquet",
        "recipe.yaml",
    ]
    assert load_recipe(folder / "recipe.yaml") == recipe
    oof = pd.read_parquet(folder / "oof.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(oof.columns) == ["event_id", "eeg_id", "patient_id", "fold", "n_votes", *VOTES, *CLASSES]
    assert np.allclose(oof[list(CLASSES)].sum(axis=1), 1, atol=1e-6) and (oof.fold == 0).all()
    assert (
        manifest["status"] == "finished"
        and manifest["valid_rows"] == len(oof)
        and manifest["precision"] == "fp32"
    )
    assert {
        "versions",
        "recipe_hash",
        "data",
        "fold",
        "seed",
        "device",
        "wall_seconds",
        "samples_per_s",
    } <= set(manifest)
    history = pd.read_csv(folder / "history.csv")
    assert history.stage.tolist() == ["few", "many"]
    table = events(Competition(comp_dir).train)
    # the two stages share out the rows
    assert manifest["train_rows"] + len(oof) == len(table) and manifest["samples"] == manifest["train_rows"]


def test_folds_and_table(runs, comp_dir):
    a, b = (pd.read_parquet(runs / "panels_twostage_b0" / f"fold{k}" / "oof.parquet") for k in (0, 1))
    assert not set(a.patient_id) & set(b.patient_id) and not set(a.event_id) & set(b.event_id)
    [row] = run_table(runs).to_dict("records")
    assert row["folds"] == 2 and row["events"] == len(a) + len(b) and 0 < row["floor"] < row["kl"]


def test_finished_is_skipped_and_strangers_are_refused(runs, comp_dir, recipe, tmp_path):
    folder = runs / "panels_twostage_b0" / "fold0"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    cache = runs.parent / "cache"
    assert train(recipe, comp_dir, runs, 0, cache=cache, log=False) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    shutil.copytree(folder, tmp_path / "runs/panels_twostage_b0/fold0")
    lost = tmp_path / "runs/panels_twostage_b0/fold0/model.safetensors"
    lost.write_bytes(b"")                                                # as a full disk leaves it
    train(recipe, comp_dir, tmp_path / "runs", 0, cache=cache, log=False)
    assert lost.read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="recipe_hash(.|\n)*--fresh"):
        train(recipe.model_copy(update={"seed": 7}), comp_dir, runs, 0, cache=cache, log=False)


def another_table(comp_dir, folder, change):
    "The competition with a changed train.csv; its recordings are links."
    folder.mkdir()
    for p in comp_dir.iterdir():
        if p.name != "train.csv": (folder / p.name).symlink_to(p)
    change(pd.read_csv(comp_dir / "train.csv")).to_csv(folder / "train.csv", index=False)
    return folder


def swapped(table): return table.assign(**{v: table[w] for v, w in zip(VOTES, VOTES[::-1], strict=True)})


def without(patient): return lambda table: table[table.patient_id != patient]


def test_a_table_that_changes_while_a_fold_is_paused(runs, comp_dir, recipe, tmp_path):
    "Votes that are swapped, a patient who leaves: the next call refuses by name, and nothing is touched."
    how = dict(cache=runs.parent / "cache", log=False)
    folder = train(recipe, comp_dir, tmp_path / "runs", 0, time_budget=0, **how)
    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    leaver = events(Competition(comp_dir).train).patient_id[0]
    for name, change in (("swapped", swapped), ("left", without(leaver))):
        other = another_table(comp_dir, tmp_path / name, change)
        with pytest.raises(CheckpointError, match="the table of events has changed: events (.|\n)*--fresh"):
            train(recipe, other, tmp_path / "runs", 0, **how)
    assert before == {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    train(recipe, comp_dir, tmp_path / "runs", 0, time_budget=0, **how)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "paused"


def test_a_patient_who_leaves_between_two_folds(runs, comp_dir, recipe, tmp_path):
    """The folds move, and EEGs would stand in two of them: training refuses by name; folds that were laid
    side by side by hand are refused by `runs` and `report`."""
    how = dict(cache=runs.parent / "cache", log=False)
    old = pd.read_csv(comp_dir / "train.csv")
    def moved(leaver, fold):
        table = add_folds(events(without(leaver)(old)), recipe.folds)
        return set(table.eeg_id[table.fold == fold]) & first
    first = set(pd.read_parquet(runs / "panels_twostage_b0/fold0/oof.parquet").eeg_id)
    leaver, k = next((p, k) for p in old.patient_id.unique() for k in range(1, 5) if moved(p, k))
    other = another_table(comp_dir, tmp_path / "left", without(leaver))
    here = tmp_path / "runs/panels_twostage_b0"
    shutil.copytree(runs / "panels_twostage_b0/fold0", here / "fold0")
    with pytest.raises(CheckpointError, match="fold0 beside it was made of another table of events"):
        train(recipe, other, tmp_path / "runs", k, **how)
    elsewhere = train(recipe, other, tmp_path / "new", k, **how)
    shutil.copytree(elsewhere, here / f"fold{k}", dirs_exist_ok=True)
    for args in (["runs", here.parent], ["report", here.parent, "--out", tmp_path / "page.html"]):
        answer = CliRunner().invoke(app, list(map(str, args)))
        said = re.search(r"EEG (\d+) stands in two folds", answer.output)
        assert answer.exit_code == 1 and said and int(said[1]) in moved(leaver, k), answer.output
    assert not (tmp_path / "page.html").exists()


def test_time_budget_pauses_and_goes_on(runs, comp_dir, recipe, tmp_path):
    "A recipe paused after each update or two ends with the weights of the uninterrupted run."
    cache, status, calls = runs.parent / "cache", "paused", 0
    while status == "paused" and calls < 60:
        folder = train(recipe, comp_dir, tmp_path / "runs", 0, cache=cache, log=False, time_budget="0.001s")
        status = json.loads((folder / "manifest.json").read_text())["status"]
        calls += 1
    assert status == "finished" and calls > 3
    a, b = (
        load_file(r / "panels_twostage_b0" / "fold0" / "model.safetensors") for r in (runs, tmp_path / "runs")
    )
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_a_stage(tmp_path, monkeypatch, patience):
    "Scores that only rise: the first is the best, and so many evaluations more end the stage."
    import hms_hbac.training.loop as parts
    seen = []
    monkeypatch.setattr(parts, "score", lambda loop, prob: seen.append(0) or (len(seen), len(seen)))
    fit(loop := toy_loop(tmp_path, settings=toy_settings(epochs=9, patience=patience, stages=[{}])))
    assert len(loop.progress.history) == 1 + patience


def warm(epochs, weighted=False):
    return {"epochs": epochs, "warmup": SimpleNamespace(epochs=1, weighted=weighted, reset_best=True)}


def test_a_warm_up_sees_no_vote_weights(tmp_path):
    "One epoch of warm-up moves the weights as a loss without vote weights does."
    def trained(name, **over):
        fit(loop := toy_loop(tmp_path / name, settings=toy_settings(**over)))
        return loop.system.state_dict()

    plain = trained("plain", stages=[{"epochs": 1}], loss="KL()")
    first = trained("first", stages=[warm(1)], loss="KL(weights='log')")
    other = trained("other", stages=[warm(1, weighted=True)], loss="KL(weights='log')")
    assert all(first[k].equal(v) for k, v in plain.items())
    assert not any(other[k].equal(v) for k, v in plain.items())
    whole = trained("whole", stages=[warm(2)], loss="KL(weights='log')")
    half = trained("half", stages=[{"epochs": 2}], loss="KL()")
    assert not any(whole[k].equal(v) for k, v in half.items())


def test_no_weights_of_a_warm_up_win(tmp_path, monkeypatch):
    "Scores that only rise: without a warm-up the first weights win, with one those of the second epoch."
    import hms_hbac.training.loop as parts
    def best(name, **stage):
        seen = []
        monkeypatch.setattr(parts, "score", lambda loop, prob: seen.append(len(seen)) or (seen[-1], seen[-1]))
        fit(loop := toy_loop(tmp_path / name, settings=toy_settings(stages=[stage], evals_per_epoch=1)))
        return [row["epoch"] for row in loop.progress.history if row["best"]]

    assert best("plain", epochs=3) == [1]
    assert best("warm", **warm(3)) == [1, 2]


def test_a_stage_that_continues_keeps_its_schedule(tmp_path):
    "Two stages, one cosine: the rate falls on over the border, and nothing begins anew."
    def rates(**second):
        stages = [{"epochs": 2}, {"name": "sure", "epochs": 2, "min_votes": 10, **second}]
        settings = toy_settings(stages=stages, schedule=toy_schedule("cosine"))
        fit(loop := toy_loop(tmp_path / str(second), settings=settings))
        return [row["lr"] for row in loop.progress.history]

    one, two = rates(start="continue"), rates()
    assert sorted(one, reverse=True) == one and one[3] > .1 * one[0]
    assert two[3] < .01 * two[0] < two[4]


def test_nothing_to_validate_on(tmp_path):
    loop = toy_loop(tmp_path, train_rows=np.arange(330), valid_rows=np.array([], int))
    assert fit(loop) == "finished" and loop.progress.history[-1]["best"]
    weights = load_file(next((tmp_path / "last").glob("*.safetensors")))
    assert all(weights[f"state.best.{k}"].equal(v) for k, v in loop.system.state_dict().items())


def test_no_row_with_enough_votes(tmp_path):
    fit(toy_loop(tmp_path, settings=toy_settings(select_min_votes=99, stages=[{}])))
    assert (
        "no validation row has 99 votes" in json.loads((tmp_path / "manifest.json").read_text())["notes"][0]
    )


@pytest.mark.parametrize("name, eeg, spectrogram", [
    ("panels_b0", 0, 300), ("stats_b2", 0, 300), ("kaggle_b2", 0, 300), ("instance_b0", 0, 300),
    ("resnet1d_gru", 10_000, 0), ("eeg_stats_b2", 10_000, 0), ("own_spectrogram_b1", 10_000, 0),
    ("attention_b0", 10_000, 300), ("multiwindow_b0", 10_000, 300), ("kaggle_eeg_b2", 10_000, 300)])
def test_a_batch_reads_what_its_view_needs(runs, comp_dir, name, eeg, spectrogram):
    "Windows and bytes a sample, counted where they are read: 800 kB of EEG, 480 kB of spectrogram, or both."
    def rows_of(*shape): return np.prod(shape) * 4
    seen = {"eeg": 0, "spectrogram": 0}
    class Counted(Recordings):
        def eeg(self, id, start, n, out): seen["eeg"] += out.nbytes
        def spectrogram(self, id, start, n, out): seen["spectrogram"] += out.nbytes
    settings = load_recipe(name)
    drawn = SimpleNamespace(view=view(settings.view), signal_augment=settings.signal_augment)
    data = view_data(drawn, Counted(runs.parent / "cache"), events(Competition(comp_dir).train))
    batch = data.batch([0, 5, 9], 0)
    wanted = {"eeg": rows_of(20, eeg), "spectrogram": rows_of(4, 100, spectrogram)}
    assert seen == {k: 3 * n for k, n in wanted.items()}
    assert {k: batch[k].nbytes // 3 for k in wanted if k in batch} == {k: n for k, n in wanted.items() if n}


def test_blank_windows_are_counted(monkeypatch):
    "None, some (a note) or too many (refused) of the windows that the view needs hold nothing."
    import hms_hbac.training.run as training
    table = pd.DataFrame({"eeg": np.arange(100) < 8, "spectrogram": np.arange(100) % 2 == 0})
    monkeypatch.setattr(training, "blank", lambda recordings, events: table.loc[events.index])
    def check(needs, **how): return training.check_blank(None, table, np.arange(100), needs, **how)

    assert check(set()) is None and training.check_blank(None, table, np.arange(8, 99), {"eeg"}) is None
    assert check({"eeg"}) == "8.0% of 100 training windows looked at hold nothing (eeg 8.0%)"
    assert "(eeg 8.0%, spectrogram 50.0%)" in check({"spectrogram", "eeg"}, most=1.0)
    with pytest.raises(DataError, match=r"50.0% of 100(.|\n)*--set data.blank=1"): check({"spectrogram"})
    assert "of 10 training windows" in check({"eeg"}, most=.2, sample=10)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "complex64"])
def test_numbers_of_another_kind_are_named(tmp_path, kind):
    net = torch.nn.Linear(3, 2)
    odd = {k: v.to(getattr(torch, kind)) for k, v in net.state_dict().items()}
    save_file(odd, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=kind) as e: load_weights(net, tmp_path / "model.safetensors")
    assert "'bias'" in str(e.value) or "not a safetensors file" in str(e.value)


def test_divergence_is_named(tmp_path):
    wild = toy_settings(
        stages=[{}],
        clip=None,
        ema=None,
        optimizer=toy_optimizer("sgd", lr=1e30, weight_decay=0.0),
        schedule=toy_schedule("constant"),
    )
    with pytest.raises(HmsError, match="diverged"): fit(toy_loop(tmp_path, settings=wild))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "diverged" in manifest["error"]


def test_tensorboard(runs, comp_dir, recipe, tmp_path):
    pytest.importorskip("tensorboard")
    folder = train(
        recipe, comp_dir, tmp_path / "runs", 0, cache=runs.parent / "cache", log=False, track="tensorboard"
    )
    assert list(folder.rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed(tmp_path):
    with pytest.raises(RecipeError, match="no tracker 'abacus' is installed"):
        make_accelerator(track="abacus", folder=tmp_path)


def test_labels_from_elsewhere_survive_a_pause(tmp_path):
    "A label source is asked once a stage, also when the stage is interrupted."
    asked = []
    def source(loop, stage, rows):
        asked.append(stage.name)
        return pd.DataFrame(
            np.eye(6)[[5] * len(rows)], index=loop.given.events.event_id.iloc[rows], columns=list(CLASSES)
        )

    for budget in (0, 0, None):
        loop = toy_loop(
            tmp_path,
            budget=budget,
            settings=toy_settings(stages=[{"labels": SimpleNamespace(source="table")}]),
            label_sources={"table": source},
        )
        status = fit(loop)
    assert status == "finished" and asked == ["all"] and loop.state.targets[loop.state.rows, 5].eq(1).all()


def test_stage_one_of_the_raw_network_leaves_out_gpd_with_four_votes():
    "One vote to five; of the rows with four, those that most voters called GPD are not shown."
    rows = [[0, 0, 4, 0, 0, 0], [0, 0, 3, 0, 0, 1], [0, 0, 1, 0, 0, 3], [0, 0, 3, 0, 0, 0],
            [0, 0, 5, 0, 0, 0], [4, 0, 0, 0, 0, 0], [0, 0, 6, 0, 0, 0]]
    table = pd.DataFrame(rows, columns=list(VOTES))
    table = table.assign(event_id=range(len(rows)), n_votes=table.sum(axis=1))
    first, second = load_recipe("resnet1d_gru").stages
    assert np.flatnonzero(stage_rows(table, first)).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(stage_rows(table, second)).tolist() == [6]


def test_stages_on_the_real_table(real):
    "Counted once by hand from the vote columns of the public extract (20,080 events)."
    table = events(Competition(real / "competition").train)

    def count(**over):
        return int(
            stage_rows(
                table,
                SimpleNamespace(
                    **(
                        {
                            "min_votes": 0,
                            "max_votes": None,
                            "bound": None,
                            "keep": 1.0,
                            "keep_from": 0,
                            "leave_out": [],
                        }
                        | over
                    )
                ),
            ).sum()
        )

    votes = table[list(VOTES)].to_numpy()
    unanimous_4 = ((votes == 4).any(1) & (votes.sum(1) == 4)).sum()
    assert len(table) == 20080 and unanimous_4 == 152
    # 7 votes are the most below 10
    assert count(min_votes=10) == 6313 and count(min_votes=8) == 6313
    assert count(min_votes=4, max_votes=28) == 8339 and count(max_votes=3) == 11741
    assert count(max_votes=4, bound="divided") == 11741 + 743 - 152 == 12332
    assert count(min_votes=4, bound="unanimous") == 8339 - 743 + 152 == 7748
    assert count(min_votes=1, max_votes=5) == 13625 and count(min_votes=6, max_votes=28) == 6455
    half = count(min_votes=10, keep=.5, keep_from=10)
    assert abs(half / 6313 - .5) < .02
    assert len(example_rows(table, "eeg")) == table.eeg_id.nunique() == 17001
    # one row per EEG is its best voted: with the first one, 504 well-voted EEGs would count as poorly voted
    best = table.iloc[example_rows(table, "eeg")]
    first = table.drop_duplicates("eeg_id").set_index("eeg_id")
    assert best.set_index("eeg_id").n_votes.equals(table.groupby("eeg_id", sort=False).n_votes.max())
    sure = best.eeg_id[best.n_votes >= 6]
    assert len(sure) == 6017 and (first.n_votes[sure] < 6).sum() == 504
    assert len(example_rows(table, "spectrogram")) == table.spectrogram_id.nunique() == 11087
