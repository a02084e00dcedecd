"The kernels' own settings against what was published: final weights, training, metadata."
from pathlib import Path

import pytest

from hms_hbac.inference.presets import preset
from hms_hbac.kaggle.metadata import check, staged, with_model
from hms_hbac.kaggle.rehearse import INFERENCE, settings_of
from hms_hbac.models.recipe import load_recipe

KERNELS = Path(__file__).resolve().parents[2] / "kaggle_kernels"


def settings(name): return settings_of(KERNELS / name / f"{name}.ipynb")


def shares(weights):
    "Weights brought to sum 1."
    return {k: w / sum(weights.values()) for k, w in weights.items()}


def test_submit_ensemble_is_the_four_notebook_blend():
    "Each recipe's final weight, through both levels of the kernels' own settings."
    final = {}
    for member, outer in shares(settings("submit-ensemble")["MEMBERS"]).items():
        for recipe, inner in shares(settings(member)["GROUPS"]).items():
            final[recipe] = final.get(recipe, 0) + outer * inner
    assert final == pytest.approx(preset("four-notebooks"), abs=2e-6)
    assert shares(settings("submit-ensemble")["MEMBERS"]) == {
        "infer-attention": .25, "infer-multiwindow": .25, "infer-refined": .25, "infer-balance": .25}


def test_the_kernel_that_stands_alone_is_the_final_blend():
    assert settings("infer-panels")["GROUPS"] == pytest.approx(preset("cranjis-final"), abs=2e-6)


def test_only_published_weights_are_called_published():
    known = [preset(n) for n in ("richard", "david", "balance")]
    for path in KERNELS.glob("infer-*/*.ipynb"):
        says = "The weights are those of the published blend" in path.read_text()
        groups = shares(settings(path.stem)["GROUPS"])
        assert says == any(groups == pytest.approx(k, abs=2e-6) for k in known if set(k) == set(groups)), (
            path.stem
        )


def test_a_stand_in_is_named():
    "The group lb33 was never described: the kernel says what stands in its place."
    text = (KERNELS / "infer-attention" / "infer-attention.ipynb").read_text()
    assert "lb33 (.1), is unknown: `attention_b0_pseudo` stands in its place" in text


def test_every_member_is_trained_and_after_its_labels():
    trained = {}
    for path in KERNELS.glob("train-*/*.ipynb"):
        for n, recipe in enumerate(settings(path.stem)["RECIPES"]): trained[recipe] = (path.stem, n)
    used = {r for name in INFERENCE if name != "submit-ensemble" for r in settings(name)["GROUPS"]}
    assert used <= set(trained) and {"kaggle_eeg_b2", "wavenet"} <= set(trained)
    for recipe, (kernel, n) in trained.items():
        for source in [Path(r).name for stage in load_recipe(recipe).stages for r in stage.labels.runs]:
            assert trained[source][0] == kernel and trained[source][1] < n, (
                f"{recipe} needs {source} before it"
            )


def test_weights_as_a_model():
    "The exact version stands in the metadata; training kernels, which attach no weights, stay as they are."
    with staged(KERNELS / "infer-panels", "AnnSmith", model=3) as copy:
        assert len(check([copy])) == 0
        text = (copy / "kernel-metadata.json").read_text()
    assert (
        '"annsmith/hms-hbac-weights/pyTorch/default/3"' in text and '"annsmith/hms-hbac-weights"' not in text
    )
    meta = {"id": "ann/hms-train-panels", "dataset_sources": ["ann/hms-hbac-wheel"]}
    assert with_model(meta, 3) == meta
