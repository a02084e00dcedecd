"""Kernels rehearsed from a wheel in a fresh environment.

The submission is that of predict and ensemble, and a kernel sees what it would see on Kaggle."""
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

from hms_hbac.core import KaggleError, read_json, write_json
from hms_hbac.draws import seed_everything
from hms_hbac.inference.ensemble import check_submission
from hms_hbac.inference.presets import preset
from hms_hbac.kaggle.commands import kaggle_app
from hms_hbac.kaggle.package import build_wheel
from hms_hbac.kaggle.place import can_isolate
from hms_hbac.kaggle.rehearse import passed, rehearse, settings_of
from hms_hbac.models.recipe import build, load_recipe, save_recipe
from hms_hbac.training.checkpoints import save_weights

KERNELS = Path(__file__).resolve().parents[2] / "kaggle_kernels"
RUNS = ("attention_b0", "multiwindow_b0", "refined_mosaic_b0", "resnet1d_gru", "panels_b0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory): return untrained(tmp_path_factory.mktemp("runs"), RUNS)


def untrained(folder, names):
    "Untrained systems at demo scale, saved as finished runs."
    for n, name in enumerate(names):
        recipe = load_recipe(name, "demo")
        seed_everything(n)
        save_recipe(recipe, folder / name / "fold0/recipe.yaml")
        save_weights(folder / name / "fold0/model.safetensors", build(recipe).state_dict())
        write_json(
            folder / name/"fold0/manifest.json",
            {"status": "finished", "prior": [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]},
        )
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel") / "wheel"
    build_wheel(folder, extra=())
    return folder


def test_submit_ensemble(few_dir, runs, wheel, tmp_path):
    """All four members from the wheel's folder, through the new mount form.

    The blend is that of predict and ensemble here."""
    table = rehearse(few_dir, runs, ["submit-ensemble"], out=tmp_path, wheel=wheel)
    row = table.iloc[0]
    assert passed(table) and row.difference <= 1e-6 and row.wall_s > 0 and row.memory_MB > 100, (
        table.to_string()
    )
    last = nbformat.read(tmp_path / "submit-ensemble/executed.ipynb", 4).cells[-1].outputs
    assert "all 4 members are in submission.csv" in str(last) and "infer-balance" in str(last)
    report = pd.read_csv(tmp_path / "submit-ensemble/working/members/infer-refined/prediction_report.csv")
    assert len(report) == 0


def test_one_kernel_in_the_old_form_without_namespaces(few_dir, runs, wheel, tmp_path):
    """The fallback: links and guarded sockets, the old mount form, an owner with capitals in the metadata.

    And fitted weights in place of the published ones, with what else was fitted."""
    folder = shutil.copytree(KERNELS, tmp_path / "kernels")
    book = folder / "infer-panels/infer-panels.ipynb"
    blend = tmp_path / "w.yaml"
    book.write_text(book.read_text().replace("WEIGHTS = None ", "WEIGHTS = 'weights.yaml' "))
    blend.write_text("weights: {panels_b0: 0.7, refined_mosaic_b0: 0.3}\nhow: {scale: 1.2}\nhome: /home/ann")
    meta = folder / "infer-panels/kernel-metadata.json"
    meta.write_text(meta.read_text().replace("INSERT_OWNER", "AnnSmith"))
    table = rehearse(
        few_dir,
        runs,
        ["infer-panels"],
        folder=folder,
        out=tmp_path/"out",
        form="old",
        wheel=wheel,
        isolate=False,
        blend=blend,
    )
    assert passed(table), table.to_string()
    assert "ann" not in (tmp_path / "out/weights/weights.yaml").read_text()
    last = nbformat.read(tmp_path / "out/infer-panels/executed.ipynb", 4).cells[-1].outputs
    assert "refined_mosaic_b0" in str(last) and "panels_twostage_4conf_b0" not in str(last)
    assert (tmp_path / "out/infer-panels/input/hms-hbac-wheel").is_symlink()


def probe(folder, name, *cells, **more):
    "A kernel whose cells look around after the first one has installed the wheel."
    shutil.copytree(KERNELS / "infer-panels", folder / name)
    nb = nbformat.read(folder / name / "infer-panels.ipynb", 4)
    nb.cells = [*nb.cells[:2], *(nbformat.v4.new_code_cell(c) for c in cells)]
    (folder / name / "infer-panels.ipynb").unlink()
    nbformat.write(nb, folder / name / f"{name}.ipynb")
    meta = read_json(folder / name / "kernel-metadata.json")
    write_json(folder / name / "kernel-metadata.json", {**meta, "code_file": f"{name}.ipynb", **more})
    return folder


LOOK = '''
import socket
where = hms_hbac.__file__
assert "/venv/" in where, where
assert os.getcwd() == os.path.join(os.environ["HMS_KAGGLE_ROOT"], "working") and os.listdir(".") == []
s = socket.socket(); s.settimeout(5)
try: s.connect(("192.0.2.1", 80)); reached = True
except OSError: reached = False
assert not reached'''
CHANGE = '''
from pathlib import Path
from hms_hbac.kaggle.kernels import competition_folder
try: (competition_folder()/"test.csv").write_text("")
except OSError as e: print(e.strerror)'''


def test_what_a_kernel_sees(few_dir, runs, wheel, tmp_path):
    """The package from the wheel, an empty working folder, no network, inputs that cannot be written.

    In either kind of isolation."""
    folder = probe(tmp_path / "kernels", "probe", LOOK, CHANGE)
    for isolate in {can_isolate(), False}:
        comp = shutil.copytree(few_dir, tmp_path / f"comp{isolate}")
        out = tmp_path / f"out{isolate}"
        table = rehearse(comp, runs, ["probe"], folder=folder, out=out, wheel=wheel, isolate=isolate,
                         compare=False)
        # an error of the first cell would be the state
        assert table.state[0] == ("ok" if isolate else "changed an input")
        assert ((comp / "test.csv").stat().st_size > 0) == isolate


def test_limits_errors_and_missing_inputs(few_dir, runs, wheel, tmp_path):
    folder = probe(
        tmp_path/"kernels",
        "hang",
        "from hms_hbac.kaggle.kernels import competition_folder, write_prior\n"
        "write_prior(competition_folder(), 'submission.csv')",
        "import time",
        "time.sleep(600)",
    )
    folder = probe(folder, "broken", "1/0 # submission.csv")
    folder = probe(folder, "alone", "", kernel_sources=["ann/hms-train-panels"])
    table = rehearse(
        few_dir,
        runs,
        ["hang", "broken"],
        folder=folder,
        out=tmp_path/"out",
        wheel=wheel,
        compare=False,
        time_limit=20,
    ).set_index("kernel")
    # written in the beginning
    assert (
        "time limit" in table.state["hang"] and table.submission["hang"] == "every row is the same: the prior"
    )
    assert check_submission(tmp_path/"out/hang/working/submission.csv", few_dir) == [] and not passed(
        table
    )
    assert "ZeroDivisionError" in table.state["broken"] and table.submission["broken"] == "none"
    with pytest.raises(KaggleError, match="nothing stands in for notebooks/hms-train-panels"):
        rehearse(few_dir, runs, ["alone"], folder=folder, out=tmp_path / "out", wheel=wheel)


def test_nothing_attached_does_not_pass(few_dir, wheel, tmp_path):
    "A kernel without weights writes the prior: a valid file, and no pass."
    table = rehearse(few_dir, None, ["infer-panels"], out=tmp_path, wheel=wheel, scale="full")
    assert not passed(table) and "the prior" in table.submission[0] and table.state[0] == "ok"
    report = pd.read_csv(tmp_path / "infer-panels/working/prediction_report.csv", dtype=str)
    assert set(preset("cranjis-final")) <= set(report.member)


def test_wheel_and_weights_commands(runs, tmp_path):
    def run(*args): return CliRunner().invoke(kaggle_app, [str(a) for a in args])
    for name in ("wheel", "weights"):
        shutil.copytree(
            KERNELS/name,
            tmp_path/name,
            ignore=lambda d, names: [n for n in names if n != "dataset-metadata.json"],
        )
    got = run("wheel", "--alone", "--out", tmp_path / "wheel")
    assert got.exit_code == 0 and "hms_hbac-" in got.output and "infer-attention.ipynb" in got.output
    got = run("weights", runs, "--out", tmp_path / "weights")
    assert got.exit_code == 0 and "packed" in got.output and " MB" in got.output
    sent = json.loads(run("push", tmp_path / "weights", "--dry-run").output)
    assert {f["name"] for f in sent["files"]} >= {
        "manifest.json",
        "panels_b0/fold0/model.safetensors",
        "panels_b0/fold0/recipe.yaml",
    }
    assert run("weights", tmp_path / "wheel", "--out", tmp_path / "none").exit_code == 1
    assert (
        run("push", KERNELS/"train-panels", "--resume", "--dry-run", "--owner", "ann").output.count(
            "ann/hms-train-panels"
        )
        == 2
    )


def test_the_command(few_dir, tmp_path):
    "With the kernel of the winners: at demo scale it takes those of its recipes that are attached."
    members = ["efficientnet1d", "left_right_encoder", "raw_picture_b5"]
    assert set(members) < set(settings_of(KERNELS / "infer-winners/infer-winners.ipynb")["GROUPS"])
    runs = untrained(tmp_path / "runs", members)
    given = ["--data", str(few_dir), "--runs", str(runs), "--out", str(tmp_path / "out")]
    got = CliRunner().invoke(kaggle_app, ["rehearse", "infer-winners", *given])
    assert got.exit_code == 0 and "passed" in got.output and "infer-winners" in got.output, got.output
    working = tmp_path / "out/infer-winners/working"
    assert check_submission(working / "submission.csv", few_dir) == []
    assert len(pd.read_csv(working / "prediction_report.csv")) == 0
    assert set(members) <= set((working.parent / "executed.ipynb").read_text().replace('"', " ").split())
    got = CliRunner().invoke(
        kaggle_app, ["rehearse", "infer-panels", "--data", str(few_dir), "--attach", "nonsense"]
    )
    assert got.exit_code == 2
