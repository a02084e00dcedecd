"""The real kaggle client against a stub of the server.

Every refusal ends with a status other than 0 and a cure, and nothing leaves the machine."""
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
from stub_kaggle import GUARD, Stub
from typer.testing import CliRunner

from hms_hbac.core import COMPETITION, write_json
from hms_hbac.kaggle.commands import kaggle_app
from hms_hbac.kaggle.metadata import OWNER, check
from hms_hbac.kaggle.package import write_manifest

if not find_spec("kaggle"): pytest.skip("the kaggle client is not installed", allow_module_level=True)
KERNELS = Path(__file__).resolve().parents[2] / "kaggle_kernels"
NAMES = sorted(p.parent.name for p in KERNELS.glob("*/kernel-metadata.json"))
REF = "annsmith/hms-infer-panels"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    "A server, a client that is led there, and no way out: an attempt fails the test."
    stub, home = Stub(), tmp_path / "home"
    home.mkdir()
    for k in list(os.environ):
        if k.startswith("KAGGLE_"): monkeypatch.delenv(k)
    for k, v in stub.environment(home).items(): monkeypatch.setenv(k, v)
    for name in ("connect", "connect_ex", "getaddrinfo"):
        owner = socket if name == "getaddrinfo" else socket.socket
        # so that the guard is undone afterwards
        monkeypatch.setattr(owner, name, getattr(owner, name))
    exec(GUARD, {})
    from kaggle.api.kaggle_api_extended import KaggleApi
    # read from the environment when the module is imported
    monkeypatch.setattr(KaggleApi, "args", ["--local"])
    monkeypatch.setattr(KaggleApi, "config_dir", str(home))
    monkeypatch.setattr(KaggleApi, "config", str(home / "kaggle.json"))
    stub.datasets |= {"annsmith/hms-hbac-wheel", "annsmith/hms-hbac-weights"}
    yield stub
    stub.close()
    attempts = home / "attempts.txt"
    assert not attempts.exists(), f"connections were tried to {attempts.read_text()}"
    assert stub.problems == []


def run(*args):
    got = CliRunner().invoke(kaggle_app, [str(a) for a in args])
    if got.exception and not isinstance(got.exception, SystemExit): raise got.exception
    return got


def fails(*args):
    "The output of a command that must fail with a named fault and a cure."
    got = run(*args)
    assert got.exit_code == 1 and "error:" in got.output and "cure:" in got.output, got.output
    return got.output


def test_push_of_every_kernel(stub):
    for name in NAMES:
        got = run("push", KERNELS / name)
        assert got.exit_code == 0 and f"annsmith/hms-{name}: version 1, https://" in got.output
    sent = {b["slug"].split("hms-", 1)[1]: b for b in stub.bodies("SaveKernel")}
    assert sorted(sent) == NAMES and len(NAMES) == 13
    for name, b in sent.items():
        assert (
            b["machineShape"] == "NvidiaTeslaT4"
            and b["enableGpu"]
            and b["competitionDataSources"] == [COMPETITION]
        )
        assert bool(b.get("enableInternet")) == name.startswith("train")
        assert len(json.loads(b["text"])["cells"]) < 12
    assert "version 2" in run("push", KERNELS / "infer-panels", "--timeout", 600).output
    assert stub.calls[-1][1]["sessionTimeoutSeconds"] == 600


def test_the_plain_client_sends_the_same(stub, tmp_path):
    "Only the owner's name edited by hand; and its exit status shows why push exists."
    run("push", KERNELS / "infer-panels")
    folder = shutil.copytree(KERNELS / "infer-panels", tmp_path / "infer-panels")
    meta = folder / "kernel-metadata.json"
    meta.write_text(meta.read_text().replace(OWNER, "annsmith"))
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard/sitecustomize.py").write_text(GUARD)
    plain = [Path(sys.executable).parent / "kaggle", "kernels", "push", "-p", folder]
    env = dict(os.environ, PYTHONPATH=str(tmp_path / "guard"))
    done = subprocess.run(plain, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "version 2 successfully pushed" in done.stdout, done.stdout + done.stderr
    ours, theirs = stub.bodies("SaveKernel")
    assert ours == theirs
    stub.script["SaveKernel"] = [{"error": "Maximum weekly GPU quota of 30.00 hours reached"}]
    assert subprocess.run(plain, capture_output=True, env=env).returncode == 0


def test_invalid_sources(stub):
    stub.datasets.clear()
    out = fails("push", KERNELS / "infer-panels")
    assert (
        "WITHOUT dataset annsmith/hms-hbac-wheel, annsmith/hms-hbac-weights" in out
        and "push the source first" in out
    )
    out = fails("push", KERNELS / "train-panels", "--resume")                # no earlier run there
    assert "kernel annsmith/hms-train-panels" in out
    stub.datasets.add("annsmith/hms-hbac-wheel")
    assert run("push", KERNELS / "train-panels", "--resume").exit_code == 0


@pytest.mark.parametrize("answer, words", [
    ({"error": "Maximum weekly GPU quota of 30.00 hours reached"}, "weekly reset"),
    ({"error": "Maximum batch GPU session count of 2 reached."}, "stop a running session"),
    ({"error": "The requested title is already in use by a notebook"}, "another title"),
    (401, "token"),
    (403, "accept the competition's rules"),
    (404, "owner and slug"),
    (429, "wait some minutes"),
    (500, "try again later"),
    ("drop", "check the network")])
def test_refusals_of_a_push(stub, answer, words):
    stub.script["SaveKernel"] = [answer] * 12
    assert words in fails("push", KERNELS / "infer-panels")


def test_no_server(stub, monkeypatch):
    for k in ("HTTP_PROXY", "http_proxy"): monkeypatch.setenv(k, "http://127.0.0.1:9")
    assert "no connection to Kaggle" in fails("push", KERNELS / "infer-panels")


def test_no_credentials(stub, monkeypatch):
    for k in ("KAGGLE_USERNAME", "KAGGLE_KEY"): monkeypatch.delenv(k)
    out = fails("push", KERNELS / "infer-panels")
    assert "no credentials" in out and "access_token" in out and not stub.calls


def test_a_token_alone(stub, monkeypatch):
    for k in ("KAGGLE_USERNAME", "KAGGLE_KEY"): monkeypatch.delenv(k)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    assert f"{REF}: version 1" in run("push", KERNELS / "infer-panels").output


def test_the_guard(stub, monkeypatch):
    "Led to the real host, the client does not get out; this test alone may try."
    from kaggle.api.kaggle_api_extended import KaggleApi
    monkeypatch.setattr(KaggleApi, "args", [])
    monkeypatch.delenv("KAGGLE_API_ENVIRONMENT")
    for k in ("HTTP_PROXY", "http_proxy"): monkeypatch.delenv(k)
    assert "no connection" in fails("push", KERNELS / "infer-panels")
    attempts = Path(os.environ["STUB_ATTEMPTS"])
    assert "kaggle.com" in attempts.read_text()
    attempts.unlink()


def test_dry_run_and_faulty_metadata(stub, tmp_path):
    got = run("push", KERNELS / "infer-panels", "--owner", "BobJones", "--dry-run")
    sent = json.loads(got.output)
    assert (
        sent["metadata"]["id"] == "bobjones/hms-infer-panels"
        and sent["metadata"]["dataset_sources"][0] == "bobjones/hms-hbac-wheel"
        and not stub.calls
    )
    folder = shutil.copytree(KERNELS / "infer-panels", tmp_path / "k")
    meta = json.loads((folder / "kernel-metadata.json").read_text())
    write_json(folder / "kernel-metadata.json", {**meta, "machine_shapes": "NvidiaTeslaT4"})
    assert "write machine_shape" in fails("push", folder) and not stub.calls
    assert "is no account's name" in fails("push", KERNELS / "infer-panels", "--owner", "Bob Jones")


def test_wait(stub):
    stub.kernels[REF] = 1
    stub.script["GetKernelSessionStatus"] = [
        {"status": "QUEUED"},
        "drop",
        {"status": "RUNNING"},
        {"status": "COMPLETE"},
    ]
    got = run("wait", KERNELS / "infer-panels", "--every", 0)
    assert got.exit_code == 0 and all(
        w in got.output for w in ("queued", "no connection", "running", "complete", "done after")
    )
    stub.script["GetKernelSessionStatus"] = [
        {"status": "ERROR", "failureMessage": "Your notebook tried to allocate more memory than is available"}
    ]
    assert "more memory" in fails("wait", REF, "--every", 0)
    stub.script["GetKernelSessionStatus"] = [{"status": "CANCEL_ACKNOWLEDGED"}]
    assert "cancel_acknowledged" in fails("wait", REF, "--every", 0)
    stub.script["GetKernelSessionStatus"] = [{"status": "RUNNING"}] * 99
    assert "still running" in fails("wait", REF, "--every", .2, "--deadline", "0.5s")
    stub.script["GetKernelSessionStatus"] = []
    fails("wait", "annsmith/no-such-kernel")
    stub.script["GetDatasetStatus"] = [{"status": "NOT_YET_PERSISTED"}, {"status": "READY"}]
    assert "done after" in run("wait", "datasets/annsmith/hms-hbac-wheel", "--every", 0).output
    stub.script["GetDatasetStatus"] = [{"status": "FAILED"}]
    assert "ended with failed" in fails("wait", KERNELS / "wheel", "--every", 0)


def test_fetch_all_pages(stub, tmp_path):
    stub.kernels[REF] = 1
    names = [
        f"runs/panels_b0/fold{k}/{n}"
        for k in range(3)
        for n in ("manifest.json", "model.safetensors", "recipe.yaml")
    ] + ["submission.csv"]
    stub.pages = [names[:4], names[4:8], names[8:]]
    stub.files = {n: n.encode() * 100 for n in names}
    got = run("fetch", REF, "--runs", tmp_path / "runs")
    assert got.exit_code == 0 and "10 files" in got.output
    for n in names:
        assert (
            tmp_path / (n if n.startswith("runs") else f"runs/kaggle-hms-infer-panels/{n}")
        ).read_bytes() == stub.files[n]
    assert (tmp_path / "runs/kaggle-hms-infer-panels/log.txt").read_text() == "the log"
    assert len(stub.bodies("ListKernelSessionOutput")) == 3
    # what calls a run finished comes last
    assert got.output.index("recipe.yaml") < got.output.index("manifest.json")


def test_fetch_that_fails(stub, tmp_path):
    stub.kernels[REF], out = 1, tmp_path / "runs"
    stub.pages = [["runs/panels_b0/fold0/model.safetensors", "runs/panels_b0/fold0/manifest.json"]]
    stub.files = {"runs/panels_b0/fold0/manifest.json": b"{}"}
    assert "(404)" in fails("fetch", REF, "--runs", out)
    assert not list(out.rglob("manifest.json"))
    stub.pages = [["runs/../../escaped"]]
    assert "do not trust" in fails("fetch", REF, "--runs", out)
    stub.pages = [[]]
    assert "left no file" in fails("fetch", REF, "--runs", out)
    stub.script["GetKernelSessionStatus"] = [{"status": "RUNNING"}]
    assert "is still running" in fails("fetch", REF, "--runs", out)


@pytest.fixture
def weights(tmp_path):
    spared = ["dataset-metadata.json"]
    folder = shutil.copytree(
        KERNELS/"weights",
        tmp_path/"weights",
        ignore=lambda d, names: [n for n in names if n not in spared],
    )
    for k in range(2): write_json(folder / f"panels_b0/fold{k}/recipe.yaml", {"fold": k})
    write_manifest(folder)
    return folder


def test_a_dataset_that_is_not_its_manifest(stub, weights):
    "Nothing is sent of a folder whose files were changed, added or lost after it was packed."
    recipe = weights / "panels_b0/fold1/recipe.yaml"
    text = recipe.read_text()
    recipe.write_text("edited")
    assert "is not the file whose sha256" in fails("push", weights)
    recipe.unlink()
    assert "is named in manifest.json, and is not there" in fails("push", weights)
    recipe.write_text(text)
    (weights / "notes.txt").write_text("new")
    assert "notes.txt is not named in manifest.json" in fails("push", weights)
    assert not [rpc for rpc, _ in stub.calls if "Dataset" in rpc]


def test_dataset_created_then_a_version(stub, weights):
    stub.datasets.clear()
    got = run("push", weights)
    assert got.exit_code == 0 and "annsmith/hms-hbac-weights: created, https://" in got.output
    assert sorted(f["token"] for f in stub.bodies("CreateDataset")[0]["files"]) == [
        "token-manifest.json",
        "token-panels_b0.zip",
    ]
    assert stub.bodies("CreateDataset")[0]["isPrivate"]
    assert sorted(zipfile.ZipFile(BytesIO(stub.blobs["panels_b0.zip"])).namelist())[-1].endswith(
        "fold1/recipe.yaml"
    )
    got = run("push", weights)
    assert "new version" in got.output and len(stub.bodies("CreateDatasetVersion")) == 1


def test_dataset_that_fails(stub, weights):
    stub.script["CreateDatasetVersion"] = [
        {"status": "error", "error": "The requested title is already in use"}
    ]
    assert "another title" in fails("push", weights)
    stub.lost.add("panels_b0.zip")
    assert "WITHOUT panels_b0.zip" in fails("push", weights)
    stub.script["GetDatasetStatus"] = [500]
    assert "try again later" in fails("push", weights)
    (weights / "manifest.json").unlink()
    assert "hms-hbac kaggle wheel" in fails("push", weights)


def fold(status, updates=10, recipe="aa", model="there"):
    "A fold as {name: bytes}, as a kernel's output holds it."
    manifest = {"status": status, "updates": updates, "recipe_hash": recipe, "data": "d", "fold": 0}
    return {
        "manifest.json": json.dumps(manifest).encode(),
        "model.safetensors": model.encode(),
        "recipe.yaml": b"a: 1",
    }


@pytest.mark.parametrize("here, there, stays", [
    (fold("finished", model="here"), fold("finished", recipe="bb"), "it is another run"),
    (fold("finished", model="here"), fold("paused", 90), "it is finished"),
    (fold("paused", 20, model="here"), fold("finished", 90, recipe="bb"), "it is another run"),
    (fold("paused", 20, model="here"), fold("paused", 10), "it got further"),
    (fold("paused", 20, model="here"), fold("finished", 90), ""),
    (fold("paused", 20, model="here"), fold("paused", 30), "")])
def test_whole_folds_are_swapped(stub, tmp_path, here, there, stays):
    "Never one fold's model beside another's manifest, and never a finished fold lost."
    stub.kernels[REF], runs = 1, tmp_path / "runs"
    for name, data in here.items():
        (runs / "panels_b0/fold0").mkdir(parents=True, exist_ok=True)
        (runs / "panels_b0/fold0" / name).write_bytes(data)
    stub.files = {f"runs/panels_b0/fold0/{n}": data for n, data in there.items()}
    stub.pages = [list(stub.files)]
    got = run("fetch", REF, "--runs", runs)
    lies = {p.name: p.read_bytes() for p in (runs / "panels_b0/fold0").iterdir()}
    aside = tmp_path / "runs-hms-infer-panels/panels_b0/fold0"
    assert got.exit_code == 0 and lies == (here if stays else there)
    assert (
        ({p.name: p.read_bytes() for p in aside.iterdir()} == there and stays in got.output)
        if stays
        else not aside.exists()
    )
    assert [p.name for p in runs.rglob("*") if p.name.startswith(".")] == []


def test_what_lies_aside_stays_and_odd_manifests_are_read(stub, tmp_path):
    "A finished fold here; two others are fetched one after the other, and each lies beside it."
    stub.kernels[REF], runs = 1, tmp_path / "runs"
    for name, data in fold("finished", model="here").items():
        (runs / "panels_b0/fold0").mkdir(parents=True, exist_ok=True)
        (runs / "panels_b0/fold0" / name).write_bytes(data)
    for model in ("one", "two", "two"):
        odd = json.dumps({"status": [], "updates": "many", "recipe_hash": model}).encode()
        brought = fold("finished", model=model) | {"manifest.json": odd}
        stub.files = {f"runs/panels_b0/fold0/{n}": d for n, d in brought.items()}
        stub.pages = [list(stub.files)]
        assert run("fetch", REF, "--runs", runs).exit_code == 0
    aside = (tmp_path / "runs-hms-infer-panels/panels_b0").iterdir()
    models = {p.name: (p / "model.safetensors").read_text() for p in aside}
    assert models == {"fold0": "one", "fold0-2": "two"}
    assert (runs / "panels_b0/fold0/model.safetensors").read_text() == "here"


def test_fetch_writes_no_hidden_file_and_through_no_link(stub, tmp_path):
    stub.kernels[REF], runs = 1, tmp_path / "runs"
    stub.pages = [[".git/hooks/pre-commit", "log.csv"]]
    stub.files = {".git/hooks/pre-commit": b"rm -rf ~", "log.csv": b"1"}
    got = run("fetch", REF, "--runs", runs)
    assert (
        got.exit_code == 0
        and "left out .git/hooks/pre-commit" in got.output
        and not list(tmp_path.rglob("pre-commit"))
    )
    (runs / "notes.txt").write_text("mine")
    stub.pages, stub.files = [["runs/notes.txt"]], {"runs/notes.txt": b"theirs"}
    assert run("fetch", REF, "--runs", runs).exit_code == 0 and (runs / "notes.txt").read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (runs / "panels_b0").symlink_to(tmp_path / "elsewhere")
    stub.pages = [["runs/panels_b0/fold0/manifest.json"]]
    stub.files = {"runs/panels_b0/fold0/manifest.json": b"{}"}
    assert "is a link" in fails("fetch", REF, "--runs", runs) and not list((tmp_path / "elsewhere").iterdir())


def test_a_failed_download_shows_no_signature(stub, tmp_path, monkeypatch):
    stub.kernels[REF] = 1
    page = {
        "files": [{"fileName": "a.bin", "url": "http://localhost/files/a.bin?X-Goog-Signature=secret&e=1"}],
        "log": "",
    }
    stub.script["ListKernelSessionOutput"] = [page]
    said = fails("fetch", REF, "--runs", tmp_path / "runs")
    assert "(404)" in said and "a.bin" in said and "secret" not in said


class Hub:
    "A stand-in for kagglehub: uploads raise the stub's version number."
    def __init__(self): self.version, self.uploads = 2, []

    def model_upload(self, handle, local_model_dir, license_name, version_notes, ignore_patterns):
        self.uploads.append((handle, sorted(p.name for p in Path(local_model_dir).iterdir())))
        self.version += 1


def test_weights_as_a_model(stub, tmp_path, monkeypatch):
    """Packed, uploaded by kagglehub, and the exact version asked for.

    A push then attaches it in place of the dataset."""
    import torch

    from hms_hbac.models.recipe import load_recipe, save_recipe
    from hms_hbac.training.checkpoints import save_weights
    hub = Hub()
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    stub.GetModelInstance = lambda b: {"id": 1, "versionNumber": hub.version, "slug": "default"}
    save_recipe(load_recipe("panels_b0", "demo"), tmp_path / "runs/panels_b0/fold0/recipe.yaml")
    save_weights(tmp_path / "runs/panels_b0/fold0/model.safetensors", {"bias": torch.zeros(6)})
    got = run("weights", tmp_path / "runs", "--out", tmp_path / "w", "--as", "model")
    handle = "annsmith/hms-hbac-weights/pyTorch/default"
    assert got.exit_code == 0 and f"model_sources: {handle}/3" in got.output, got.output
    assert hub.uploads[0][0] == handle and {"manifest.json", "panels_b0"} <= set(hub.uploads[0][1])
    assert run("push", KERNELS / "infer-panels", "--model", 3).exit_code == 0
    sent = stub.bodies("SaveKernel")[-1]
    assert sent["modelDataSources"] == [f"{handle}/3"] and sent["datasetDataSources"] == [
        "annsmith/hms-hbac-wheel"
    ]
    hub.model_upload = lambda *a, **k: None
    assert "the newest version is still 3" in fails(
        "weights", tmp_path/"runs", "--out", tmp_path/"w", "--as", "model"
    )


def test_submission(stub):
    stub.kernels["annsmith/hms-submit-ensemble"] = 2
    got = run("submit", KERNELS / "submit-ensemble", "--version", 2, "--message", "four notebooks")
    assert got.exit_code == 0 and "Successfully submitted" in got.output
    assert stub.bodies("CreateCodeSubmission")[0]["submissionDescription"] == "four notebooks"
    assert "Could not find version 7" in fails("submit", KERNELS / "submit-ensemble", "--version", 7)
    answers = {403: "accept the competition's rules", 404: "owner and slug", 400: "the server refused (400)"}
    for status, words in answers.items():
        stub.script["CreateCodeSubmission"] = [status]
        assert words in fails("submit", KERNELS / "submit-ensemble", "--version", 2)


# metadata

def broken(folder, key, value):
    name = "kernel-metadata.json" if (folder / "kernel-metadata.json").exists() else "dataset-metadata.json"
    meta = json.loads((folder / name).read_text())
    if value is None: meta.pop(key)
    else: meta[key] = value
    write_json(folder / name, meta)
    return check([folder])


@pytest.mark.parametrize("key, value, words", [
    ("machine_shapes", "NvidiaTeslaT4", "unknown key"),
    ("machine_shape", None, "missing"),
    ("machine_shape", "NvidiaTeslaP100", "P100"),
    ("enable_internet", None, "missing"),
    ("enable_internet", "false", "without quotes"),
    ("enable_internet", True, "takes no submission"),
    ("competition_sources", [f"competitions/{COMPETITION}"], "bare slugs"),
    ("competition_sources", [], "not attached"),
    ("id", "AnnSmith/hms-infer-panels", "lower case"),
    ("id", "ann/hms", "5 to 50"),
    ("id", "hms-infer-panels", "owner/slug"),
    ("id", "ann/hms-infer-panels/3", "owner/slug in lower case"),
    ("title", "hms infer panel", "slug"),
    ("title", "hms", "5 to 50"),
    ("title", "x" * 51, "5 to 50"),
    ("code_file", "other.ipynb", "there is no"),
    ("dataset_sources", [f"{OWNER}/hms-hbac-weights"], "wheel is not attached"),
    ("dataset_sources", ["datasets/ann/hms-hbac-wheel"], "prefix"),
    ("kernel_sources", ["code/ann/x"], "prefix"),
    ("language", "r", "python"),
    ("enable_gpu", False, "contradicts")])
def test_faults_of_metadata(tmp_path, key, value, words):
    folder = shutil.copytree(KERNELS / "infer-panels", tmp_path / "k")
    found = broken(folder, key, value)
    assert (found.what + " " + found.cure).str.contains(words).any() and key in set(found.key), (
        found.to_string()
    )
    assert found.file.str.endswith("kernel-metadata.json").all()


def test_faults_of_datasets_and_notebooks(tmp_path):
    folder = shutil.copytree(KERNELS / "wheel", tmp_path / "wheel")
    assert "licenses" in set(broken(folder, "licenses", []).key)
    assert "subtitle" in set(broken(folder, "subtitle", "short").key)
    folder = shutil.copytree(KERNELS / "infer-panels", tmp_path / "k")
    nb = json.loads((folder / "infer-panels.ipynb").read_text())
    write_json(folder / "infer-panels.ipynb", {**nb, "metadata": {}})
    assert "kernelspec" in check([folder]).what[0]
    (folder / "infer-panels.ipynb").write_text("{")
    assert "is no notebook" in check([folder]).what[0]
    (folder / "kernel-metadata.json").write_text("[]")
    assert len(check([folder])) == 1 and len(check([tmp_path])) == 1


def test_the_folders_are_those_of_the_builder():
    builder = Path(__file__).resolve().parents[2] / "tools/build_kernels.py"
    done = subprocess.run([sys.executable, builder, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(check(sorted(p.parent for p in KERNELS.glob("*/*-metadata.json")))) == 0
