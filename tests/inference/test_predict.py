"Predicting on broken folders: a valid row for every row of test.csv, good rows unchanged to the bit."

import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from apart import begun
from safetensors.torch import load_file, save_file

from hms_hbac.core import CHANNELS, EEG_SAMPLES, VOTES, DataError, RecipeError, spectrogram_columns
from hms_hbac.draws import seed_everything
from hms_hbac.inference.ensemble import check_submission
from hms_hbac.inference.members import Models, load_models, load_run
from hms_hbac.inference.outputs import report_path
from hms_hbac.inference.predict import predict
from hms_hbac.models.recipe import build, load_recipe, save_recipe, without_downloads
from hms_hbac.models.schema import validate
from hms_hbac.training.checkpoints import save_weights

PRIOR = [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]
RECIPES = {
    "spec": dict(
        view="Resize(Panels(), 32, 32)",
        net=dict(kind="timm", backbone="test_efficientnet", pretrained="none"),
    ),
    "raw": dict(
        view="Sequence(seconds=50, stride=40, zero_phase=True)",
        net=dict(kind="resnet1d_gru", kernels=[3, 5], filters=4, blocks=2, hidden=4),
    ),
}


def write_eeg(path, seed, samples=EEG_SAMPLES, edit=lambda f: f):
    x = np.random.default_rng(seed).normal(0, 30, (samples, 20)).astype(np.float32)
    edit(pd.DataFrame(x, columns=list(CHANNELS))).to_parquet(path)


def write_spectrogram(path, seed, edit=lambda f: f):
    x = np.random.default_rng(seed).lognormal(0, 1, (300, 400)).astype(np.float32)
    edit(pd.DataFrame(x, columns=spectrogram_columns()).assign(time=np.arange(1, 600, 2))).to_parquet(path)


def write_table(comp, ids):
    (comp / "test.csv").write_text(
        "\n".join(["spectrogram_id,eeg_id,patient_id", *(f"{s},{e},1" for e, s in ids), ""])
    )


def make_test(comp, rows=3):
    for kind in ("eegs", "spectrograms"):
        (comp / f"test_{kind}").mkdir(parents=True)
    for i in range(1, rows + 1):
        write_eeg(comp / f"test_eegs/{i}.parquet", i)
        write_spectrogram(comp / f"test_spectrograms/{100 + i}.parquet", i)
    write_table(comp, [(i, 100 + i) for i in range(1, rows + 1)])
    return comp


def make_run(folder, recipe, seed=0):
    recipe = validate(dict(precision="fp32", **recipe))
    seed_everything(seed)
    system = build(recipe)
    save_recipe(recipe, folder / "recipe.yaml")
    save_weights(folder / "model.safetensors", system.state_dict())
    pd.DataFrame([PRIOR] * 2, columns=list(VOTES)).to_parquet(folder / "oof.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for n, (name, recipe) in enumerate(RECIPES.items()):
        make_run(folder / name / "fold0", dict(name=name, **recipe), n)
    return folder


@pytest.fixture(scope="module")
def models(runs):
    return load_models(runs, device="cpu")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_test(tmp_path_factory.mktemp("clean") / "comp")


@pytest.fixture
def comp(clean, tmp_path):
    "A copy to be broken; row 2 is the one that suffers."
    return shutil.copytree(clean, tmp_path / "comp")


def run(models, comp, out, **kw):
    status = predict(models, comp, out, **({"batch_size": 4, "progress": False} | kw))
    assert check_submission(out, comp) == []
    return status, pd.read_csv(out, dtype={"eeg_id": str}), pd.read_csv(report_path(out), dtype=str)


@pytest.fixture(scope="module")
def baseline(models, clean, tmp_path_factory):
    out = tmp_path_factory.mktemp("baseline") / "s.csv"
    status, frame, report = run(models, clean, out)
    assert status == 0 and len(report) == 0
    return frame


EEG, SPEC = "test_eegs/2.parquet", "test_spectrograms/102.parquet"


def half(path):
    path.write_bytes(path.read_bytes()[:5000])


def columns(names, value):
    return lambda f: f.assign(**{c: np.float32(value) for c in names})


def twice(path, name):
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, table.column(name)), path)


# what is broken, how, the reason that the report gives, who loses it, what is used instead
BROKEN = {
    "EEG missing": (lambda c: (c / EEG).unlink(), "eeg: no such file", "raw", "the other members"),
    "EEG truncated": (lambda c: half(c / EEG), "eeg: cannot be read as parquet", "raw", "the other members"),
    "EEG of zero bytes": (
        lambda c: (c / EEG).write_bytes(b""),
        "eeg: cannot be read as parquet",
        "raw",
        "the other members",
    ),
    "EEG is a text file": (
        lambda c: (c / EEG).write_text("Fp1,F3\n1,2\n"),
        "eeg: cannot be read as parquet",
        "raw",
        "the other members",
    ),
    "EEG without channels": (
        lambda c: write_eeg(c / EEG, 2, edit=lambda f: f.drop(columns=["Fp1", "Cz"])),
        "eeg: missing channel Fp1",
        "all",
        "what is there",
    ),
    "EEG all NaN": (
        lambda c: write_eeg(c / EEG, 2, edit=columns(CHANNELS, np.nan)),
        "eeg: all values are NaN",
        "raw",
        "the other members",
    ),
    "EEG with infinities": (
        lambda c: write_eeg(c / EEG, 2, edit=columns(["Fp1"], np.inf)),
        "eeg: 10000 infinite values, read as NaN",
        "all",
        "what is there",
    ),
    "EEG all infinite": (
        lambda c: write_eeg(c / EEG, 2, edit=columns(CHANNELS, -np.inf)),
        "eeg: all values are NaN",
        "raw",
        "the other members",
    ),
    "EEG 3 s long": (
        lambda c: write_eeg(c / EEG, 2, samples=600),
        "eeg: only 3 s long",
        "raw",
        "the other members",
    ),
    "EEG 30 s long": (
        lambda c: write_eeg(c / EEG, 2, samples=6000),
        "eeg: short: 6000 of 10000 samples",
        "all",
        "what is there",
    ),
    "EEG without rows": (
        lambda c: write_eeg(c / EEG, 2, samples=0),
        "eeg: no rows",
        "raw",
        "the other members",
    ),
    "EEG constant": (
        lambda c: write_eeg(c / EEG, 2, edit=columns(CHANNELS, 7)),
        "eeg: constant",
        "raw",
        "the other members",
    ),
    "EEG is a pipe": (
        lambda c: ((c / EEG).unlink(), os.mkfifo(c / EEG)),
        "eeg: is no ordinary file",
        "raw",
        "the other members",
    ),
    "EEG has a column twice": (
        lambda c: twice(c / EEG, "Fp1"),
        "eeg: duplicate column Fp1",
        "all",
        "what is there",
    ),
    "EEG beyond float16": (
        lambda c: write_eeg(c / EEG, 2, edit=columns(["Fp1"], 1e6)),
        "eeg: 10000 values beyond 65504, clipped",
        "all",
        "what is there",
    ),
    "spectrogram backwards": (
        lambda c: write_spectrogram(c / SPEC, 2, lambda f: f[::-1]),
        "spectrogram: rows run backwards in time",
        "all",
        "what is there",
    ),
    "spectrogram has a column twice": (
        lambda c: twice(c / SPEC, "LL_0.59"),
        "spectrogram: duplicate column LL_0.59",
        "all",
        "what is there",
    ),
    "EEG is a folder": (
        lambda c: ((c / EEG).unlink(), (c / EEG).mkdir()),
        "eeg:",
        "raw",
        "the other members",
    ),
    "spectrogram missing": (
        lambda c: (c / SPEC).unlink(),
        "spectrogram: no such file",
        "spec",
        "the other members",
    ),
    "spectrogram truncated": (
        lambda c: half(c / SPEC),
        "spectrogram: cannot be read as parquet",
        "spec",
        "the other members",
    ),
    "spectrogram all NaN": (
        lambda c: write_spectrogram(c / SPEC, 2, columns(spectrogram_columns(), np.nan)),
        "spectrogram: all values are NaN",
        "spec",
        "the other members",
    ),
    "spectrogram without columns": (
        lambda c: write_spectrogram(c / SPEC, 2, lambda f: f.drop(columns=["LL_0.59"])),
        "spectrogram: missing 1 of 400 columns",
        "all",
        "what is there",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_row(name, models, comp, baseline, tmp_path):
    spoil, reason, member, used = BROKEN[name]
    spoil(comp)
    status, frame, report = run(models, comp, tmp_path / "s.csv")
    assert status == 3
    assert frame.iloc[[0, 2]].equals(baseline.iloc[[0, 2]])  # bit-identical: floats are written exactly
    assert set(report.row) == {"2"} and set(report.eeg_id) == {"2"}
    line = report[report.reason.str.startswith(reason)].iloc[0]
    assert (line.member, line.used) == (member, used)
    write_table(comp, [(1, 101), (3, 103)])  # and also to a folder without the row
    _, without, _ = run(models, comp, tmp_path / "t.csv")
    assert without.equals(baseline.iloc[[0, 2]].reset_index(drop=True))


def test_the_untouched_member_answers_alone(models, comp, runs, tmp_path):
    "Without its spectrogram a row gets exactly what the EEG models say, and the other way round."
    for lost, other in ((SPEC, "raw"), (EEG, "spec")):
        folder = shutil.copytree(comp, tmp_path / other)
        (folder / lost).unlink()
        _, frame, _ = run(models, folder, tmp_path / "s.csv")
        _, alone, report = run(load_models(runs / other), folder, tmp_path / "t.csv")
        assert len(report) == 0  # who does not need the file does not even notice
        assert frame.iloc[1].equals(alone.iloc[1])


def test_nothing_left_is_the_prior(models, comp, tmp_path):
    for f in (EEG, SPEC):
        (comp / f).write_bytes(b"PAR1")
    _, frame, report = run(models, comp, tmp_path / "s.csv")
    assert frame.loc[1, list(VOTES)].tolist() == pytest.approx(PRIOR)
    assert set(report.used) == {"prior"} and set(report.member) == {"spec", "raw"}


def test_a_long_eeg_stands_in_for_the_spectrogram(runs, comp, tmp_path):
    (comp / SPEC).unlink()
    write_eeg(comp / EEG, 2, samples=120_000)
    status, frame, report = run(load_models(runs / "spec"), comp, tmp_path / "s.csv")
    assert status == 3 and report.used.tolist() == ["spectrogram made from the EEG"]
    assert not np.allclose(frame.loc[1, list(VOTES)].astype(float), PRIOR)


def test_every_row_of_a_strange_table(models, comp, baseline, tmp_path):
    "Duplicate ids, ids beyond int64, no id at all: a row each, in order."
    big = "99999999999999999999999"
    write_table(
        comp, [(1, 101), (2, 102), (2, 102), (big, 101), ("", 102), ("-5", 103), ("../1", 101), (3, 103)]
    )
    status = predict(models, comp, tmp_path / "s.csv", batch_size=4, progress=False)
    frame = pd.read_csv(tmp_path / "s.csv", dtype={"eeg_id": str}, keep_default_na=False)
    assert status == 3 and frame.eeg_id.tolist() == ["1", "2", "2", big, "", "-5", "../1", "3"]
    assert frame.iloc[[0, 1, 7]].reset_index(drop=True).equals(baseline)
    assert frame.iloc[2].equals(frame.iloc[1])
    p = frame[list(VOTES)].to_numpy()
    assert np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1)
    report = pd.read_csv(report_path(tmp_path / "s.csv"), dtype=str)
    assert set(report[report.reason.str.contains("more than once")].row) == {"2", "3"}


def test_empty_and_missing_table(models, comp, tmp_path):
    write_table(comp, [])
    assert predict(models, comp, tmp_path / "s.csv", progress=False) == 0
    assert (tmp_path / "s.csv").read_text() == "eeg_id," + ",".join(VOTES) + "\n"
    (comp / "test.csv").write_text("")
    with pytest.raises(DataError, match="eeg_id"):
        predict(models, comp, tmp_path / "t.csv", progress=False)
    (comp / "test.csv").unlink()
    with pytest.raises(DataError, match="test.csv"):
        predict(models, comp, tmp_path / "t.csv", progress=False)
    assert not (tmp_path / "t.csv").exists()


def test_a_table_without_spectrograms(models, comp, tmp_path):
    (comp / "test.csv").write_text("eeg_id\n1\n2\n")
    status, frame, report = run(models, comp, tmp_path / "s.csv")
    assert status == 3 and len(frame) == 2 and set(report.member) == {"spec"}


def as_type(folder, dtype):
    "The same weights, of a type that they were not trained in."
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()},
        folder / "model.safetensors",
    )


def test_broken_members(runs, clean, baseline, tmp_path, capsys):
    "Each kind of broken run folder is named; the rest goes on; with nobody left the text is loud."
    bad = tmp_path / "bad"
    good = shutil.copytree(runs / "raw", bad / "raw")
    spoil = {
        "corrupt": lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 100),
        "unfinished": lambda f: (f / "model.safetensors").unlink(),
        "half precision": lambda f: as_type(f, torch.float16),
        "complex": lambda f: as_type(f, torch.complex64),
        "pipe": lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        "foreign": lambda f: shutil.copy(runs / "spec/fold0/model.safetensors", f),
        "no recipe": lambda f: (f / "recipe.yaml").unlink(),
        "bad recipe": lambda f: (f / "recipe.yaml").write_text("view: Panls()\n"),
        "no yaml": lambda f: (f / "recipe.yaml").write_bytes(bytes(range(256))),
    }
    for name, f in spoil.items():
        f(shutil.copytree(good / "fold0", bad / name / "fold0"))
    status = predict(bad, clean, tmp_path / "s.csv", batch_size=4, device="cpu", progress=False)
    report = pd.read_csv(report_path(tmp_path / "s.csv"), dtype=str)
    assert status == 3 and set(report.member) == {f"{n}/fold0" for n in spoil}
    assert (
        report.reason.str.startswith("cannot be loaded").all() and (report.used == "the other members").all()
    )
    run(load_models(good, device="cpu"), clean, tmp_path / "t.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    shutil.rmtree(good)
    assert predict(bad, clean, tmp_path / "s.csv", progress=False, device="cpu") == 3
    assert "NO MEMBER COULD BE LOADED" in capsys.readouterr().out
    assert check_submission(tmp_path / "s.csv", clean) == []


def test_a_model_that_fails_on_the_way(models, clean, baseline, tmp_path):
    "An exception in forward and an answer of NaN cost the member its rows only."
    spec, raw = (next(m for m in models.loaded if m.group == g) for g in ("spec", "raw"))

    class Broken:
        view = raw.system.view

        def __init__(self, f):
            self.f = f

        def classify(self, picture):
            return self.f(raw.system.classify(picture))

    def explode(x):
        raise ValueError("no such kernel")

    for f, text in (
        (explode, "the model failed: ValueError: no such kernel"),
        (lambda x: x * np.nan, "the model's answer is not finite"),
    ):
        member = replace(raw, system=Broken(f))
        status, frame, report = run(Models([spec, member], torch.device("cpu")), clean, tmp_path / "s.csv")
        assert status == 3 and set(report.reason) == {text} and len(report) == 3
        _, alone, _ = run(Models([spec], torch.device("cpu")), clean, tmp_path / "t.csv")
        assert frame.equals(alone)


def test_a_batch_has_no_more_slots_than_the_table_has_rows(models, clean, tmp_path):
    "And all batches of a table have the same number, the last one too."
    raw = next(m for m in models.loaded if m.group == "raw")
    sizes = []

    class Counted:
        view = raw.system.view

        def classify(self, picture):
            sizes.append(len(picture))
            return raw.system.classify(picture)

    counted = Models([replace(raw, system=Counted())], torch.device("cpu"))
    for size in (32, 2): assert run(counted, clean, tmp_path / "s.csv", batch_size=size)[0] == 0
    assert sizes == [3, 2, 2]


def test_out_of_memory_halves_the_batch(models, tmp_path):
    raw = next(m for m in models.loaded if m.group == "raw")
    sizes, many = [], make_test(tmp_path / "many", rows=8)

    class Crowded:
        view = raw.system.view

        def classify(self, picture):
            sizes.append(len(picture))
            if sizes[-1] > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return raw.system.classify(picture)

    crowded = Models([replace(raw, system=Crowded())], torch.device("cpu"))
    status, frame, _ = run(crowded, many, tmp_path / "s.csv", batch_size=8)
    assert status == 0 and sizes == [8, 4, 2, 2, 2, 2]
    _, alone, _ = run(Models([raw], torch.device("cpu")), many, tmp_path / "t.csv")
    np.testing.assert_allclose(frame[list(VOTES)], alone[list(VOTES)], atol=1e-6)


def test_tta_and_weights(runs, clean, tmp_path):
    flips = load_models(runs, tta="flip_lr,flip_time,shift", device="cpu")
    assert all(len(m.transforms) == 5 for m in flips.loaded)
    assert run(flips, clean, tmp_path / "s.csv")[0] == 0
    with pytest.raises(RecipeError, match="flip_everything"):
        predict(runs, clean, tmp_path / "t.csv", tta="flip_everything", progress=False)
    a, b = (
        run(load_models(runs / n, device="cpu"), clean, tmp_path / "u.csv")[1][list(VOTES)].to_numpy()
        for n in ("raw", "spec")
    )
    _, both, _ = run(
        load_models(runs, device="cpu"), clean, tmp_path / "v.csv", weights={"raw": 3.0, "spec": 1.0}
    )
    np.testing.assert_allclose(both[list(VOTES)], 0.75 * a + 0.25 * b, atol=1e-12)


@pytest.mark.parametrize(
    "view",
    [
        "HostSpectrogram()",
        "Resize(Mels(50, 32, 64), 64, 64)",
        "Resize(SlidingWindows(Panels(), 256, 128), 32, 64)",
        "Resize(OwnSpectrogram(), 64, 64)",
    ],
)
def test_views_do_not_look_at_neighbors(view, clean, comp, tmp_path):
    "Gaps in one row must not move another row by a bit, for views that treat gaps specially."
    make_run(
        tmp_path / "run",
        dict(name="run", view=view, net=dict(kind="timm", backbone="test_efficientnet", pretrained="none")),
    )
    models = load_models(tmp_path / "run", device="cpu")
    _, before, _ = run(models, clean, tmp_path / "s.csv")

    def holes(f):
        f.iloc[2000:3000, :5] = np.nan
        return f

    write_eeg(comp / EEG, 2, edit=holes)
    write_spectrogram(comp / SPEC, 2, edit=holes)
    _, after, _ = run(models, comp, tmp_path / "t.csv")
    assert after.iloc[[0, 2]].equals(before.iloc[[0, 2]])


def announced(flag, runs, comp, out, how):
    "Predict, and touch a file just before."
    flag.touch()
    predict(runs, comp, out, **how)


def test_killed_and_repeated(runs, clean, baseline, tmp_path):
    "A kill at any moment leaves the old file or none; the same command then gives the same bytes."
    out = tmp_path / "s.csv"
    how = dict(batch_size=4, device="cpu", progress=False)
    child, _ = begun(announced, tmp_path / "in", runs, clean, out, how)
    while not (tmp_path / "in").exists() and child.is_alive():
        time.sleep(0.005)
    time.sleep(0.05)
    child.kill()
    child.join()
    assert not out.exists() or out.read_bytes().count(b"\n") == 4
    for _ in range(2):
        assert predict(runs, clean, out, **how) == 0
        pd.testing.assert_frame_equal(pd.read_csv(out, dtype={"eeg_id": str}), baseline)


def test_interrupt_in_the_middle_leaves_the_old_file(models, clean, tmp_path):
    "Ctrl-C while a batch is computed."
    out = tmp_path / "s.csv"
    out.write_text("the old file")
    raw = next(m for m in models.loaded if m.group == "raw")

    class Interrupted:
        view = raw.system.view

        def classify(self, picture):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(Models([replace(raw, system=Interrupted())], torch.device("cpu")), clean, out, progress=False)
    assert out.read_text() == "the old file" and [p.name for p in tmp_path.iterdir()] == ["s.csv"]


def test_real_public_test(models, real, tmp_path):
    "The real public test row is clean, and its submission valid."
    status, frame, report = run(models, real / "competition", tmp_path / "s.csv")
    assert (status, len(frame), len(report)) == (0, 1, 0), report.reason.tolist()


def test_a_run_of_joined_nets_is_loaded_without_downloads(tmp_path):
    "Each part of a joined net begins with pretrained weights; a trained run has its own."
    recipe = load_recipe("kaggle_wavenet", "demo")
    assert recipe.net.kind == "joined"
    parts = [without_downloads(part) for part in recipe.net.parts]
    told = recipe.model_copy(update={"net": recipe.net.model_copy(update={"parts": parts})})
    seed_everything(0)
    save_weights(tmp_path / "model.safetensors", build(told).state_dict())
    hub = [p.model_copy(update={"pretrained": "hub"}) if p.kind == "timm" else p for p in parts]
    net = recipe.net.model_copy(update={"parts": hub})
    save_recipe(recipe.model_copy(update={"net": net}), tmp_path / "recipe.yaml")
    loaded, _ = load_run(tmp_path)
    assert [p.pretrained for p in loaded.net.parts if p.kind == "timm"] == ["none"]
