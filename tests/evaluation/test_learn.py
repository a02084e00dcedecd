"""bench/learn.py on a small scale: teachers first, baselines without held-out votes, a table that grows."""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hms_hbac.core import CHANNELS, CLASSES, EEG_RATE, VOTES
from hms_hbac.models.recipe import list_recipes
from hms_hbac.training.oof import oof_kl

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import learn


def test_teachers_come_before_their_students():
    order = learn.ordered(list_recipes())
    assert sorted(order) == list_recipes()
    for name in order: assert all(order.index(t) < order.index(name) for t in learn.teachers(name))
    asked = learn.ordered(["attention_b0_distilled", "panels_b0"])
    assert asked == ["attention_b0", "attention_v2s", "attention_b0_distilled", "panels_b0"]


def test_features_tell_sides_and_rhythms():
    t = np.arange(2000) / EEG_RATE
    eeg = np.random.default_rng(0).normal(0, 5, (20, 2000))
    eeg[[CHANNELS.index(c) for c in ("F7", "T3", "T5")]] += 80 * np.sin(2 * np.pi * 2 * t) * [[1], [-1], [1]]
    found = learn.features(eeg)
    assert found["left delta"] > found["right delta"] + 1
    assert found["left rhythm"] > found["right rhythm"] + .3
    assert np.exp(found["left rhythm hz"]) == pytest.approx(2, abs=.1)
    assert found["apart delta"] == pytest.approx(found["left delta"] - found["right delta"])


def test_powers_tell_chains_bands_and_spread():
    spectrogram = np.ones((4, 100, 300))
    spectrogram[1, 20:30, 138:150] = np.e ** 2               # half of the 50 s: mean 1, standard deviation 1
    spectrogram[2, :, :138] = np.nan                         # outside of them nothing counts
    mean, spread = learn.powers(spectrogram).reshape(2, 4, 10)
    assert mean[1, 2] == pytest.approx(1) and spread[1, 2] == pytest.approx(1)
    assert np.count_nonzero(mean.round(9)) == np.count_nonzero(spread.round(9)) == 1


@pytest.fixture
def told():
    "Events whose votes one feature tells, and another does not."
    rng, n = np.random.default_rng(0), 300
    kind = rng.integers(0, 6, n)
    votes = pd.DataFrame(np.eye(6, dtype=int)[kind] * 12, columns=list(VOTES))
    table = votes.assign(event_id=range(n), eeg_id=range(n), patient_id=range(n), n_votes=12)
    table = table.assign(fold=np.arange(n) % 5)
    x = pd.DataFrame(np.eye(6)[kind] + rng.normal(0, .1, (n, 6))).assign(noise=rng.normal(size=n))
    return x, table


def test_baselines_learn_and_see_no_held_out_vote(told):
    x, table = told
    first = learn.baselines(x, table)
    assert list(first) == ["logistic regression", "gradient boosting"]
    for oof in first.values():
        assert (oof.fold == 0).all() and len(oof) == 60 and oof_kl(oof).mean() < .2
        assert np.allclose(oof[list(CLASSES)].sum(axis=1), 1)
    turned = table.copy()
    turned.loc[turned.fold == 0, list(VOTES)] = turned.loc[turned.fold == 0, list(VOTES)].to_numpy()[:, ::-1]
    for name, oof in learn.baselines(x, turned).items():
        assert oof[list(CLASSES)].equals(first[name][list(CLASSES)])


def test_a_run_writes_its_line_and_goes_on(comp_dir, tmp_path, capsys, monkeypatch):
    once = ["--data", str(comp_dir), "--folder", str(tmp_path), "--scale", "demo", "--seeds", "1",
            "--set", "stages=[{name: all, epochs: 1}]", "--recipes"]
    monkeypatch.setattr(learn, "feature_tables", lambda cache, table: [pd.DataFrame(
        np.random.default_rng(0).normal(size=(len(table), 3)), columns=list("abc"))] * 2)
    assert learn.main([*once, "left_right_encoder", "--time-budget", "0s"]) == 0
    assert "the time is over in left_right_encoder" in capsys.readouterr().out
    assert "| left_right_encoder |" not in (tmp_path / "learn.md").read_text()
    assert learn.main([*once, "left_right_encoder"]) == 0
    assert "left_right_encoder  " in capsys.readouterr().out
    run = tmp_path / "seed0" / "left_right_encoder" / "fold0" / "manifest.json"
    when, text = run.stat().st_mtime_ns, (tmp_path / "learn.md").read_text()
    assert "| left_right_encoder |" in text and "| gradient boosting, spectrogram |" in text
    assert "Not run yet (" in text and "panels_b0" in text.split("Not run yet")[1]
    assert json.loads(run.read_text())["status"] == "finished"
    kept = learn.earlier(learn.options([*once, "wavenet"]))
    assert "left_right_encoder" in kept and run.stat().st_mtime_ns == when
    assert learn.earlier(learn.options([*once, "wavenet", "--scale", "small"])) == {}

    # other recipes add their rows; a recipe that has changed since is named, and trained anew
    args = learn.options(once + ["left_right_encoder"])
    truth = pd.read_parquet(comp_dir / "truth.parquet")
    row = learn.recipe_row("left_right_encoder", args, truth)
    assert row["by_seed"] == kept["left_right_encoder"]["by_seed"]
    learn.write(kept | {"wavenet": kept["left_right_encoder"] | {"recipe": "wavenet"}}, [], args)
    assert "Changed since its row was made (1): wavenet." in args.out.read_text()
    changed = learn.options([*once, "left_right_encoder", "--set", "optimizer.lr=2e-3"])
    assert learn.state(*learn.given("left_right_encoder", 0, changed)) == "other"
    assert learn.finished("left_right_encoder", changed) == {}


def test_a_row_of_more_seeds_is_kept_unless_its_recipe_has_changed():
    two = {"hash": "a", "by_seed": [.5, .6]}
    one = {"hash": "a", "by_seed": [.7]}
    assert learn.better(one, two) is two and learn.better(two, one) is two and learn.better(one, None) is one
    assert learn.better(one | {"hash": "b"}, two) == one | {"hash": "b"}


def test_a_published_ensemble_is_blended_of_finished_members(told, tmp_path, monkeypatch):
    x, table = told
    oofs = learn.baselines(x, table)
    truth = table.assign(**{c: table[v] / 12 for c, v in zip(CLASSES, VOTES, strict=True)})
    for name, oof in zip(("panels_b2", "stats_b2"), oofs.values(), strict=True):
        (tmp_path / name).mkdir()
        oof.to_parquet(tmp_path / name / "oof.parquet")
    monkeypatch.setattr(learn, "finished", lambda name, args: {
        0: tmp_path / name} if (tmp_path / name).is_dir() else {})
    [blend] = learn.blend_rows(None, truth)
    a, b = (oof[list(CLASSES)] for oof in oofs.values())
    half = next(iter(oofs.values())).assign(**(a / 2 + b / 2))
    assert blend["recipe"] == "cranjis" and blend["kl"] == pytest.approx(oof_kl(half).mean())
