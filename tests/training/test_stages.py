"""Every recipe runs all its stages at demo scale: selections, mosaics, pseudo labels, refinement, distillation."""
import numpy as np
import pandas as pd
import pytest
import torch

from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.core import CLASSES, VOTES, write_json
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.simulate.competition import simulate
from hms_hbac.training.run import train


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A competition of few events and, for every recipe that others learn from, out-of-fold predictions of each fold."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stages")
    comp = Competition(simulate(folder / "comp", patients=8, test_patients=1, seed=2, workers=1, progress=False, recordings_per_patient=1.))
    table = add_folds(events(comp.train), n=2, seed=42)
    shares = table[list(VOTES)].to_numpy(float) + .3
    prob = pd.DataFrame(shares / shares.sum(1, keepdims=True), columns=list(CLASSES))
    teachers = {run for name in list_recipes() for s in load_recipe(name).stages for run in s.labels.runs}
    assert teachers == {"attention_b0", "attention_v2s", "attention_v2s_distilled", "multiwindow_b0", "multiwindow_mobilenetv3"}
    for fold in (0, 1):
        part = table[table.fold == fold].reset_index(drop=True)
        for name in teachers:
            run = folder / "runs" / name / f"fold{fold}"
            write_json(run / "manifest.json", {"status": "finished", "fold": fold, "data": comp.fingerprint})
            pd.concat([part[["event_id"]], prob[(table.fold == fold).to_numpy()].reset_index(drop=True)], axis=1).to_parquet(run / "oof.parquet")
    return comp, folder


@pytest.mark.parametrize("name", list_recipes())
def test_all_stages_run(name, small):
    comp, folder = small
    recipe = load_recipe(name, "demo", ["folds=2", "batch_size=8"])
    recipe.name = f"try_{name}"
    for stage in recipe.stages:
        stage.epochs = max(1, stage.mosaic_epochs)
    run = train(recipe, comp.path, folder / "runs", 0, cache=folder / "cache", log=False)
    history, oof = pd.read_csv(run / "history.csv"), pd.read_parquet(run / "oof.parquet")
    assert history.stage.unique().tolist() == [s.name for s in recipe.stages]
    assert np.isfinite(history[["loss", "kl"]].to_numpy()).all()
    assert (oof.fold == 0).all() and np.allclose(oof[list(CLASSES)].sum(axis=1), 1, atol=1e-5)
