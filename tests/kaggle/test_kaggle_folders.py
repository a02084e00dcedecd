"Commands that fill folders remove only what they made, and pack no path of this machine."
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hms_hbac.core import KaggleError, RecipeError, read_json, write_json
from hms_hbac.kaggle.commands import kaggle_app
from hms_hbac.kaggle.folders import MARK, claim, files_of, renewed
from hms_hbac.kaggle.package import pack_weights, public_recipe, verify, write_manifest
from hms_hbac.models.recipe import load_recipe, recipe_yaml, save_recipe
from hms_hbac.training.checkpoints import save_weights


def snapshot(folder): return {n: (Path(folder) / n).read_bytes() for n in files_of(folder)}


@pytest.fixture
def runs(tmp_path):
    "Two finished folds and one that is paused; the model holds six numbers."
    for fold, status in enumerate(("finished", "finished", "paused")):
        f = tmp_path / f"runs/panels_b0/fold{fold}"
        write_json(
            f/"manifest.json",
            {"status": status, "prior": [0.2, 0.2, 0.2, 0.2, 0.1, 0.1], "data_path": "/home/lovelace"},
        )
        save_recipe(load_recipe("panels_b0", "demo"), f / "recipe.yaml")
        save_weights(f / "model.safetensors", {"bias": torch.full((6,), float(fold))})
    return tmp_path / "runs"


def run(*args):
    got = CliRunner().invoke(kaggle_app, [str(a) for a in args])
    assert got.exception is None or isinstance(got.exception, SystemExit), got.exception
    return got


OUTS = (".", "runs", "runs/panels_b0", "runs/panels_b0/fold0", "runs/new", "full", "file")


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("command", ["weights", "wheel", "rehearse"])
def test_nothing_foreign_is_removed(tmp_path, runs, monkeypatch, command, out):
    "The commands that once emptied the folder they were given."
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.ipynb").write_text("{}")
    (tmp_path / "file").write_text("a file")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    args = {
        "weights": ["weights", "runs"],
        "wheel": ["wheel", "--alone"],
        "rehearse": ["rehearse", "--data", "runs", "--runs", "runs"],
    }
    got = run(*args[command], "--out", out)
    # a new folder, and no input of `wheel`
    if (command, out) == ("wheel", "runs/new"): return
    assert got.exit_code == 1 and "cure:" in got.output, got.output
    assert snapshot(tmp_path) == before


def test_weights_twice_and_a_strangers_file(tmp_path, runs):
    out = tmp_path / "weights"
    shutil.copytree(
        Path(__file__).resolve().parents[2]/"kaggle_kernels/weights",
        out,
        ignore=lambda d, n: set(n) - {"dataset-metadata.json"},
    )
    assert run("weights", runs, "--out", out).exit_code == 0
    (out / "notes.txt").write_text("mine")
    shutil.rmtree(runs / "panels_b0/fold1")
    assert run("weights", runs, "--out", out).exit_code == 0
    assert not (out / "panels_b0/fold1").exists() and (out / "notes.txt").read_text() == "mine"
    assert (out/"dataset-metadata.json").is_file() and verify(out) == [
        "notes.txt is not named in manifest.json"
    ]


def test_packed_files_are_copies(tmp_path, runs):
    "Not hard links, and not links: editing the packed model leaves the run's as it was."
    real = tmp_path / "elsewhere.safetensors"
    save_weights(real, {"bias": torch.ones(6)})
    linked = real.read_bytes()
    own = (runs / "panels_b0/fold1/model.safetensors").read_bytes()
    (runs / "panels_b0/fold0/model.safetensors").unlink()
    (runs / "panels_b0/fold0/model.safetensors").symlink_to(real)
    pack_weights(runs, tmp_path / "weights")
    for fold in (0, 1):
        packed = tmp_path / f"weights/panels_b0/fold{fold}/model.safetensors"
        assert not packed.is_symlink() and packed.stat().st_nlink == 1
        packed.write_text("edited")
    assert real.read_bytes() == linked
    assert (runs / "panels_b0/fold1/model.safetensors").read_bytes() == own


@pytest.mark.parametrize("how", ["text", "cut off", "empty", "no weights"])
def test_a_damaged_model_is_not_packed(tmp_path, runs, how):
    "It is named, with the cure; the dataset that was packed before stays as it was."
    out = tmp_path / "weights"
    model = runs / "panels_b0/fold1/model.safetensors"
    pack_weights(runs, out)
    before = snapshot(out)
    if how == "no weights": save_weights(model, {})
    else: model.write_bytes({"text": b"no model", "cut off": model.read_bytes()[:-8], "empty": b""}[how])
    with pytest.raises(KaggleError, match="not a safetensors file"): pack_weights(runs, out)
    got = run("weights", runs, "--out", out)
    assert got.exit_code == 1 and "panels_b0/fold1/model.safetensors" in got.output.replace("\n", "")
    assert "cure: train that fold again" in got.output and snapshot(out) == before


def test_a_recipe_without_paths(tmp_path):
    "Whatever names a path or a user is blanked, and the packed recipe is still a recipe."
    recipe = yaml.safe_load(recipe_yaml(load_recipe("attention_b0_pseudo")))
    recipe["net"]["pretrained"] = "/home/lovelace/b0.safetensors"
    for stage in recipe["stages"]:
        if stage["labels"]["runs"]: stage["labels"]["runs"] = ["/home/lovelace/runs/attention_b0"]
    recipe["ours"] = "trained from /home/lovelace/notes.md and ~/x"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    public = public_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "public.yaml").write_text(yaml.safe_dump(public))
    assert (
        "lovelace" not in (tmp_path/"public.yaml").read_text()
        and "~" not in (tmp_path/"public.yaml").read_text()
    )
    assert load_recipe(str(tmp_path / "public.yaml")).net.pretrained == "none"
    hidden = {**recipe, "view": "Panels(file='/home/lovelace/x')"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(hidden))
    with pytest.raises(RecipeError, match="view names a path"): public_recipe(tmp_path / "recipe.yaml")


def test_equal_names_and_a_forged_mark(tmp_path, runs):
    shutil.copytree(runs, tmp_path / "again")
    with pytest.raises(KaggleError, match="stands there 2 times"):
        pack_weights([runs, tmp_path/"again"], tmp_path/"w")
    out = tmp_path / "weights"
    pack_weights(runs, out)
    model = "panels_b0/fold0/model.safetensors"
    for name in (f"../runs/{model}", str(runs / model)):
        write_json(out / MARK, {"kind": "weights", "files": [name]})
        with pytest.raises(KaggleError, match="does not lie in the folder"): claim(out, "weights")
    assert len(files_of(runs)) == 9


def test_killed_between_old_and_new(tmp_path):
    "Killed at any file of the move: no manifest, so that a push refuses; the next call clears both."
    code = """
import os, sys
from hms_hbac.kaggle import folders
n, inner = int(sys.argv[2]), os.replace
def replace(a, b):
    global n
    if not str(b).endswith(folders.MARK):
        n -= 1
        if n < 0: os.kill(os.getpid(), 9)
    inner(a, b)
folders.os = type("os", (), {**vars(os), "replace": staticmethod(replace)})
with folders.renewed(sys.argv[1], "weights") as build:
    for name in ("b.bin", "c.bin", "manifest.json"): (build / name).write_text("new " + name)
"""
    for n in range(3):
        out = tmp_path / f"out{n}"
        with renewed(out, "weights") as build:
            for name in ("a.bin", "b.bin"): (build / name).write_text("old")
            write_manifest(build)
        assert subprocess.run([sys.executable, "-c", code, str(out), str(n)]).returncode == -signal.SIGKILL
        assert verify(out) == ["there is no manifest.json: the dataset is empty, or its making was cut off"]
        with renewed(out, "weights") as build: (build / "d.bin").write_text("newest")
        assert files_of(out) == [MARK, "d.bin"]


def test_sigterm_leaves_no_half(tmp_path, runs):
    "SIGTERM while a folder is built: status 143, the old content, and no temporary folder."
    code = ("import sys, time\nfrom pathlib import Path\nfrom hms_hbac.kaggle import package\n"
            "from hms_hbac.cli import app\ninner = package.pack_run\n"
            "def slow(*a): inner(*a); Path(sys.argv[3]).touch(); time.sleep(60)\n"
            "package.pack_run = slow\napp(['kaggle', 'weights', sys.argv[1], '--out', sys.argv[2]])")
    out, flag = tmp_path / "weights", tmp_path / "begun"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(runs), str(out), str(flag)], stderr=subprocess.PIPE, text=True
    )
    until = time.time() + 120
    while not flag.exists() and time.time() < until: time.sleep(.05)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 143 and "what is finished is kept" in said and "Traceback" not in said, said
    assert sorted(os.listdir(tmp_path)) == ["begun", "runs"]


def test_manifest_of_what_is_packed(tmp_path, runs):
    pack_weights(runs, tmp_path / "weights")
    assert read_json(tmp_path/"weights/panels_b0/fold0/manifest.json") == {
        "status": "finished",
        "prior": [0.2, 0.2, 0.2, 0.2, 0.1, 0.1],
    }
    assert not (tmp_path / "weights/panels_b0/fold2").exists() and verify(tmp_path / "weights") == []
    (tmp_path / "weights/panels_b0/fold0/model.safetensors").write_text("other")
    assert "is not the file whose sha256" in verify(tmp_path / "weights")[0]
