"""Every recipe runs all its stages at demo scale (selections, mosaics, pseudo labels, refinement,
distillation) and predicts a test row."""
import numpy as np
import pandas as pd
import pytest
import torch

from hms_hbac.core import CLASSES, VOTES, DataError, read_json, write_json
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.inference.outputs import report_path
from hms_hbac.inference.predict import predict
from hms_hbac.models.recipe import build, list_recipes, load_recipe, save_recipe
from hms_hbac.simulate.competition import simulate
from hms_hbac.training.checkpoints import save_weights
from hms_hbac.training.results import events_hash, run_folder
from hms_hbac.training.run import train
from hms_hbac.training.teachers import lineage


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A competition of few events and, for every recipe that others learn from, out-of-fold predictions
    of each fold."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stages")
    comp = Competition(
        simulate(
            folder / "comp",
            patients=8,
            test_patients=1,
            seed=17,
            workers=1,
            progress=False,
            recordings_per_patient=1.0,
        )
    )
    table = add_folds(events(comp.train), n=2, seed=42)
    teachers = {run for name in list_recipes() for s in load_recipe(name).stages for run in s.labels.runs}
    for name in teachers: untrained(name, comp, table, folder / "runs")
    (folder / "one_row").mkdir()
    for p in comp.path.glob("test_*"): (folder / "one_row" / p.name).symlink_to(p)
    pd.read_csv(comp.path / "test.csv").head(1).to_csv(folder / "one_row/test.csv", index=False)
    return comp, folder


def untrained(name, comp, table, runs, fold=0, without=None, labels_from=(), status="finished"):
    "A finished run of recipe `name` with the weights of its beginning, and a record of what it has seen."
    recipe = load_recipe(name, "demo", ["folds=2", "batch_size=8"])
    run = run_folder(runs, name, fold, without)
    torch.manual_seed(0)
    save_recipe(recipe, run / "recipe.yaml")
    save_weights(run / "model.safetensors", build(recipe).state_dict())
    write_json(
        run / "manifest.json",
        {
            "status": status,
            "fold": fold,
            "data": comp.fingerprint,
            "events": events_hash(table),
            "held_out": [f for f in (fold, without) if f is not None],
            "labels_from": list(labels_from),
        },
    )
    part = table[table.fold == fold]
    part[["event_id"]].assign(**dict.fromkeys(CLASSES, 1 / 6)).to_parquet(run / "oof.parquet")
    return run


@pytest.mark.parametrize("name", list_recipes())
def test_all_stages_run(name, small):
    comp, folder = small
    recipe = load_recipe(name, "demo", ["folds=2", "batch_size=8"])
    recipe.name = f"try_{name}"
    for stage in recipe.stages:
        stage.epochs = max(1, stage.mosaic_epochs)
    run = train(recipe, comp.path, folder / "runs", 0, cache=folder / "cache", log=False)
    history = pd.read_csv(run / "history.csv")
    oof = pd.read_parquet(run / "oof.parquet")
    assert history.stage.unique().tolist() == [s.name for s in recipe.stages]
    assert np.isfinite(history[["loss", "kl"]].to_numpy()).all()
    assert (oof.fold == 0).all() and np.allclose(oof[list(CLASSES)].sum(axis=1), 1, atol=1e-5)
    out = folder / f"{name}.csv"
    status = predict(run, folder / "one_row", out, device="cpu", progress=False)
    assert status == 0, report_path(out).read_text()
    [row] = pd.read_csv(out)[list(VOTES)].to_numpy()
    assert np.isfinite(row).all() and (row > 0).all() and abs(row.sum() - 1) < 1e-6
    assert np.ptp(row) > 0, "the prior, not a prediction"


def student(comp, folder, name, fold=0, **labels):
    "A one-epoch run whose labels come from `tiny`, at the smallest scale."
    recipe = load_recipe(
        "panels_b0", "demo", ["folds=2", "batch_size=8", "stages=[{name: taught, epochs: 1}]"]
    )
    recipe.stages[0].labels = recipe.stages[0].labels.model_copy(
        update={"source": "distilled", "runs": ["panels_b0"], **labels}
    )
    recipe.name = name
    return train(recipe, comp.path, folder / "runs", fold, cache=folder / "cache", log=False)


def test_labels_never_see_the_held_out_fold(small, tmp_path):
    """The teacher of the student's own fold labels its rows.

    Any other is refused by name, over two hops too; nested fits are asked by fold."""
    comp, folder = small
    table = add_folds(events(comp.train), n=2, seed=42)
    runs = folder / "runs"
    teacher = untrained("panels_b0", comp, table, runs, fold=0)
    manifest = read_json(student(comp, folder, "taught") / "manifest.json")
    assert manifest["held_out"] == [0] and [r["run"] for r in manifest["labels_from"]] == ["panels_b0/fold0"]
    assert manifest["labels_from"][0]["held_out"] == [0]

    # a model that has seen fold 0 ...
    other = lineage(untrained("panels_b0", comp, table, runs, fold=1))
    # ... has labelled the rows of this teacher
    untrained("panels_b0", comp, table, runs, fold=0, labels_from=[other])
    with pytest.raises(
        DataError, match=r"panels_b0/fold0 \(by labels of panels_b0/fold1\) has seen the patients of fold 0"
    ):
        student(comp, folder, "leak")
    write_json(
        teacher / "manifest.json",
        {**read_json(teacher / "manifest.json"), "labels_from": [], "events": "of another table"},
    )
    with pytest.raises(DataError, match="another table of events"): student(comp, folder, "moved")

    with pytest.raises(DataError, match="no nested fits(.|\n)*--without 0"):
        student(comp, folder, "nested", teachers="nested")
    untrained("panels_b0", comp, table, runs, fold=1, without=0)
    manifest = read_json(student(comp, folder, "nested", teachers="nested") / "manifest.json")
    told = [(r["run"], r["held_out"]) for r in manifest["labels_from"]]
    assert told == [("panels_b0/without0/fold1", [1, 0])]


def test_a_table_of_labels_says_who_has_seen_what(small):
    """Every row's models must have left out the student's fold: a column `held_out`, or the user's word."""
    comp, folder = small
    table = add_folds(events(comp.train), n=2, seed=42)
    made = table[["event_id", "fold"]].assign(**dict.fromkeys(CLASSES, 1 / 6))
    def taught(name, outside=False, **columns):
        file = folder / f"{name}.csv"
        made.assign(**columns).drop(columns="fold").to_csv(file, index=False)
        run = student(comp, folder, name, runs=[], table=str(file), outside=outside)
        return read_json(run / "manifest.json")

    with pytest.raises(DataError, match="does not say which folds"): taught("silent")
    # out-of-fold predictions, each by a model that has seen the student's patients
    with pytest.raises(DataError, match="own.csv has seen the patients of fold 0"):
        taught("own", held_out=made.fold)
    made.to_parquet(folder / "oof.parquet")
    with pytest.raises(DataError, match="oof.parquet has seen the patients of fold 0"):
        student(comp, folder, "oof", runs=[], table=str(folder / "oof.parquet"))
    [record] = taught("clean", held_out=["1,0" if k else "1" for k in made.fold])["labels_from"]
    assert record["held_out"] == [0, 1] and not record["outside"]
    manifest = taught("word", outside=True)
    assert manifest["labels_from"][0]["outside"] and "knows none of these patients" in manifest["notes"][-1]
