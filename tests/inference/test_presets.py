"Published blends, and the command that predicts what is missing and blends it."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hms_hbac.cli import app
from hms_hbac.core import VOTES, RecipeError, spectrogram_columns
from hms_hbac.data.competition import Competition
from hms_hbac.draws import seed_everything
from hms_hbac.inference.members import load_models
from hms_hbac.inference.outputs import report_path
from hms_hbac.inference.pooling import disagreement, entropy
from hms_hbac.inference.predict import predict
from hms_hbac.inference.presets import PRESETS, preset, preset_table
from hms_hbac.models.recipe import build, list_recipes, save_recipe
from hms_hbac.models.schema import validate
from hms_hbac.training.checkpoints import save_weights

TIMM = dict(kind="timm", backbone="test_efficientnet", pretrained="none")


def a_run(folder, name, seed, folds=1, view="Resize(Panels(), 32, 32)"):
    recipe = validate(dict(name=name, view=view, net=TIMM, precision="fp32"))
    for k in range(folds):
        seed_everything(seed + k)
        save_recipe(recipe, folder / name / f"fold{k}" / "recipe.yaml")
        save_weights(folder / name / f"fold{k}" / "model.safetensors", build(recipe).state_dict())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A competition of three rows, and runs of david's two recipes."
    root, rng = tmp_path_factory.mktemp("presets"), np.random.default_rng(0)
    (root / "comp" / "test_spectrograms").mkdir(parents=True)
    (root / "comp" / "test_eegs").mkdir()
    for i in (1, 2, 3):
        power = rng.lognormal(0, 1, (300, 400)).astype(np.float32)
        spec = pd.DataFrame(power, columns=spectrogram_columns()).assign(time=np.arange(1, 600, 2))
        spec.to_parquet(root / f"comp/test_spectrograms/{i}.parquet")
    rows = "".join(f"{i},{i},1\n" for i in (1, 2, 3))
    (root / "comp" / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n" + rows)
    a_run(root / "runs", "multiwindow_b0", 1, folds=2)
    a_run(root / "runs", "multiwindow_mobilenetv3", 5, view="Resize(Panels('image'), 32, 32)")
    return root


def read(file):
    return pd.read_csv(file)[list(VOTES)].to_numpy()


def hms(*args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    return done.exit_code, done.output


def test_every_preset_is_of_packaged_recipes_and_sums_to_one():
    for name in PRESETS:
        assert sum(preset(name).values()) == pytest.approx(1)
        assert set(preset(name)) <= set(list_recipes()), name
    table = preset_table().set_index("preset")
    assert table.loc["lb29", "weights"] == "published"
    assert table.loc["effnet-gru", "weights"] == "unstated: equal"


def test_the_published_weights():
    four = preset("four-notebooks")
    assert sum(four[m] for m in preset("david")) == pytest.approx(0.25)
    assert four["refined_mosaic_b0"] == pytest.approx(0.25)
    assert four["resnet1d_gru"] == pytest.approx(0.25 / 3)
    assert sum(four[m] for m in preset("three-timm")) == pytest.approx(0.25 / 3)
    richard = {"attention_b0_pseudo": .1, "attention_b0_distilled": .1, "attention_convnext_distilled": .1,
               "attention_v2s_distilled": .2, "attention_b0": .5}
    assert preset("richard") == pytest.approx(richard)
    table = preset_table().set_index("preset")
    assert "lb33" in table.note["richard"] and "unknown" in table.note["richard"]
    keras = preset("keras-inputs")                        # (1 - LB) / sum, in the notebook's order of inputs
    lost = [1 - lb for lb in (.81, .79, .81, .77, .79, .78, .76)]
    assert list(keras) == ["kaggle_b2", "eeg_b2", "wavenet", "kaggle_eeg_b2", "kaggle_wavenet", "eeg_wavenet",
                           "kaggle_eeg_wavenet"]
    assert list(keras.values()) == pytest.approx([w / sum(lost) for w in lost])
    assert preset("lb29")["resnet1d_gru"] == pytest.approx(0.45)
    first, second = preset("wu-n0"), preset("wu-n0-code")
    assert first["own_spectrogram_b1"] == pytest.approx(0.35 / 3)
    assert (second["own_spectrogram_b1"], second["instance_b0"]) == pytest.approx((0.175, 0.0875))
    assert set(first) == set(second)


# as the five documents and their repositories state them; where none is stated, the parts count alike
STATED = {
    "cranjis": {"panels_b2": .5, "stats_b2": .5}, "cranjis-eeg": {"eeg_percentiles_b2": 1, "eeg_stats_b2": 1},
    "cranjis-kaggle-eeg": {"cranjis": 1, "cranjis-eeg": 1},
    "cranjis-weighted": {"panels_weighted_b2": 1, "stats_weighted_b2": 1},
    "cranjis-global": {"panels_globalnorm_b4": 1, "stats_globalnorm_b2": 1},
    "cranjis-mosaic": {"panels_mosaic_b0": 1, "stats_mosaic_b0": 1},
    "cranjis-twostage": {"panels_twostage_4conf_b0": 1, "stats_twostage_b0": 1},
    "cranjis-twostage-eeg": {"eeg_twostage_b0": 1, "eeg_stats_twostage_b0": 1},
    "cranjis-final": {"cranjis-twostage": 1, "cranjis-twostage-eeg": 1},
    "three-timm": {"instance_b0": 1, "dataset_b1": 1, "own_spectrogram_b1": 1},
    "keras-inputs": {"kaggle_b2": .19, "eeg_b2": .21, "wavenet": .19, "kaggle_eeg_b2": .23,
                     "kaggle_wavenet": .21, "eeg_wavenet": .22, "kaggle_eeg_wavenet": .24},
    "lb29": {"resnet1d_gru": .45, "keras-inputs": .15, "three-timm": .40},
    "balance": {"resnet1d_gru": .334, "keras-inputs": .333, "three-timm": .333},
    "wu-n0": {"resnet1d_gru_zero_phase": .15, "refined_mosaic_b0": .50, "three-timm": .35},
    "wu-n0-code": {"resnet1d_gru_zero_phase": .15, "refined_mosaic_b0": .50, "instance_b0": .0875,
                   "dataset_b1": .0875, "own_spectrogram_b1": .175},
    "david": {"multiwindow_b0": 1.2, "multiwindow_mobilenetv3": 1},
    "richard": {"attention_b0_pseudo": .1, "attention_b0_distilled": .1, "attention_convnext_distilled": .1,
                "attention_v2s_distilled": .2, "attention_b0": .5},
    "four-notebooks": {"richard": .25, "david": .25, "refined_mosaic_b0": .25, "balance": .25},
    "effnet-gru": {"smoothed_mosaic_b0": 1, "resnet1d_gru": 1},
    "gru-bands": {"resnet1d_gru": 1, "resnet1d_gru_delta": 1, "resnet1d_gru_alpha": 1},
}


def stated(name):
    "Weights of recipes, worked out from `STATED` alone."
    total, flat = sum(STATED[name].values()), {}
    for part, w in STATED[name].items():
        for leaf, share in (stated(part) if part in STATED else {part: 1}).items():
            flat[leaf] = flat.get(leaf, 0) + share * w / total
    return flat


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_the_stated_weights_and_a_row_of_the_readme(name):
    assert preset(name) == pytest.approx(stated(name), abs=1e-3)
    row = preset_table().set_index("preset").loc[name]
    readme = Path(__file__).parents[2] / "README.md"
    [line] = [t for t in readme.read_text(encoding="utf-8").splitlines() if t.startswith(f"| `{name}` |")]
    told = f"| `{name}` | {row.source} | {row.weights} | {row.members}"
    assert line == told + (f" ({row.note}) |" if row.note else " |")


def test_one_command_predicts_and_blends(place, tmp_path):
    "It equals predict with the preset's weights; a second call predicts nothing."
    out = tmp_path / "submission.csv"
    command = (
        "ensemble",
        "--preset",
        "david",
        "--runs",
        place / "runs",
        "--data",
        place / "comp",
        "--out",
        out,
    )
    code, text = hms(*command)
    assert code == 0 and "2 to predict" in text, text
    how = dict(device="cpu", progress=False)
    assert predict(place / "runs", place / "comp", tmp_path / "p.csv", weights=preset("david"), **how) == 0
    np.testing.assert_allclose(read(out), read(tmp_path / "p.csv"), atol=1e-12)
    first = out.read_bytes()
    code, text = hms(*command)
    assert code == 0 and "0 to predict" in text
    np.testing.assert_allclose(read(out), pd.read_csv(tmp_path / "p.csv")[list(VOTES)], atol=1e-12)
    assert len(first) and len(list((tmp_path / "submission_members").glob("*.csv"))) == 2


def test_missing_and_foreign_members(place, tmp_path):
    out, members = tmp_path / "s.csv", tmp_path / "members"
    command = (
        "ensemble",
        "--preset",
        "cranjis",
        "--runs",
        place / "runs",
        "--data",
        place / "comp",
        "--out",
        out,
        "--folder",
        members,
    )
    code, text = hms(*command)
    assert code not in (0, 3) and not out.exists()  # nothing of it is there
    members.mkdir()
    pd.DataFrame({"eeg_id": [1, 2, 3], **{v: [1 / 6] * 3 for v in VOTES}}).to_csv(
        members / "panels_b2.csv", index=False
    )
    code, text = hms(*command)
    assert code == 3 and "stats_b2" in text, text
    assert "stats_b2" in pd.read_csv(report_path(out)).member.tolist()
    np.testing.assert_allclose(read(out), 1 / 6)


def test_fitted_weights_reach_the_submission(place, tmp_path):
    "A file with temperature and bias: by predict, by ensemble from runs and from files, the same."
    file, bias = tmp_path / "w.yaml", [0, 0.2, 0, 0.1, 0, -0.3]
    weights = "weights: {multiwindow_b0: 0.7, multiwindow_mobilenetv3: 0.3}"
    file.write_text(f"method: shrunk\n{weights}\nhow: {{scale: 1.1, bias: {bias}}}\n")
    base = ("--data", place / "comp", "--weights", file)
    assert hms("predict", place / "runs", *base, "--out", tmp_path / "a.csv")[0] == 0
    assert hms("ensemble", *base, "--runs", place / "runs", "--out", tmp_path / "b.csv")[0] == 0
    assert hms("ensemble", *base, "--folder", tmp_path / "b_members", "--out", tmp_path / "c.csv")[0] == 0
    one, two = (
        read(tmp_path / "b_members" / f"{m}.csv") for m in ("multiwindow_b0", "multiwindow_mobilenetv3")
    )
    wanted = (0.7 * one + 0.3 * two) ** 1.1 * np.exp(bias)
    for name in "abc":
        np.testing.assert_allclose(
            read(tmp_path / f"{name}.csv"), wanted / wanted.sum(1, keepdims=True), atol=1e-9
        )
    file.write_text("weights: {other: 1}")
    with pytest.raises(RecipeError, match="no weight for multiwindow"):
        predict(
            place / "runs", place / "comp", tmp_path / "d.csv", weights=file, device="cpu", progress=False
        )


def test_folds_and_recipes_share_pictures_and_reading(place, tmp_path, monkeypatch):
    "Each view once per batch and transform, each file once, whoever looks; answers stay the same."
    a_run(tmp_path / "runs", "other", 9, folds=2)
    models = load_models([place / "runs", tmp_path / "runs"], tta="flip_lr", device="cpu")
    assert sorted(map(len, models.teams())) == [1, 4]
    looks, files = [], []
    for m in models.loaded:
        m.system.view.register_forward_hook(lambda *_, name=m.name: looks.append(name))
    real = Competition.read_spectrogram
    monkeypatch.setattr(Competition, "read_spectrogram", lambda c, *a: files.append(a) or real(c, *a))
    assert predict(models, place / "comp", tmp_path / "s.csv", batch_size=4, progress=False) == 0
    assert len(looks) == 2 * 2 and len(files) == 3  # two pictures, two transforms; three rows
    alone = []
    for run in (
        place / "runs" / "multiwindow_b0",
        place / "runs" / "multiwindow_mobilenetv3",
        tmp_path / "runs",
    ):
        predict(
            load_models(run, tta="flip_lr", device="cpu"),
            place / "comp",
            tmp_path / "t.csv",
            batch_size=4,
            progress=False,
        )
        alone.append(read(tmp_path / "t.csv"))
    np.testing.assert_allclose(read(tmp_path / "s.csv"), np.mean(alone, 0), atol=1e-12)


def test_entropy_and_disagreement():
    from scipy.stats import entropy as by_scipy

    p = np.random.default_rng(0).dirichlet(np.ones(6), (4, 10))
    np.testing.assert_allclose(entropy(p), by_scipy(p, axis=-1), atol=1e-12)
    mean = p.mean(0)
    kl = np.mean([by_scipy(q, mean, axis=-1) for q in p], 0)  # mean KL from the members to their mean
    np.testing.assert_allclose(disagreement(mean, entropy(p).mean(0)), kl, atol=1e-12)
