"""`make gpu` runs from end to end on a machine without a GPU and writes no figure; what only CUDA can show is
marked cuda and waits for a machine that has it."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hms_hbac.data.competition import Competition, events
from hms_hbac.data.recordings import prepare
from hms_hbac.data.windows import WindowDataset
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.training.batches import Resident
from hms_hbac.training.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import gpu

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
FIGURES = {"images/s", "bare", "ratio", "ours", "timm", "windows/s", "needed", "times what is needed", "data",
           "view and augment", "net", "optimizer", "peak GB", "against none", "ms", "minutes", "seconds",
           "seeds differ by", "closed", "kl"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run make gpu")
def test_the_dry_run_goes_through_every_part_and_writes_no_figure(comp_dir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu"
    assert gpu.main(["--out", str(out), "--data", str(comp_dir)]) == 0
    told = json.loads((out / "gpu.json").read_text())
    assert list(told["parts"]) == list(gpu.PARTS) and told["dry"] and told["device"] is None
    for name, part in told["parts"].items():
        assert part["ended"] == "well" and (part["rows"] or name == "tests"), name
        assert "seconds" not in part
        for row in part["rows"]:
            assert row.get("holds", True), (name, row)
            assert not [k for k in FIGURES & set(row) if row[k] is not None], (name, row)
    page = (out / "report.html").read_text()
    assert "nothing was measured" in page and not (out / "gpu.md").exists()

    # what is done is kept; what does not hold is said, and is done again the next time
    monkeypatch.setitem(gpu.PARTS, "curves", lambda place: pytest.fail("done already"))
    monkeypatch.setitem(gpu.PARTS, "losses", lambda place: [{"loss": "KL()", "holds": False}])
    (out / "parts" / "losses.json").unlink()
    assert gpu.main(["--out", str(out), "--data", str(comp_dir), "--parts", "losses,curves"]) == 1
    monkeypatch.setitem(gpu.PARTS, "losses", gpu.gpu_checks.losses)
    assert gpu.main(["--out", str(out), "--data", str(comp_dir), "--parts", "losses"]) == 0
    capsys.readouterr()
    assert gpu.main(["--out", str(out), "--list"]) == 0
    assert capsys.readouterr().out.count("done") == len(gpu.PARTS)


def test_every_recipe_is_ready_for_a_gpu_without_downloads():
    place = gpu.BENCH.Place(Path(), Path(), dry=False)
    for name in list_recipes(): assert "hub" not in str(place.recipe(name, "seed=1").net), name


def test_what_is_paused_goes_on_and_is_no_fault(tmp_path, monkeypatch, capsys):
    told = iter([[{"status": "paused", "holds": True}], [{"status": "finished", "holds": True}]])
    monkeypatch.setitem(gpu.PARTS, "losses", lambda place: next(told))
    place = gpu.BENCH.Place(Path(), Path(), dry=True)
    monkeypatch.setattr(gpu.BENCH, "make_place", lambda data, folder: place)
    for ended in ("paused", "well", "well"):                      # the third call finds it done
        assert gpu.main(["--out", str(tmp_path), "--parts", "losses"]) == 0
        assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["losses"]["ended"] == ended
    assert "losses       paused (the same command goes on)" in capsys.readouterr().out


def test_a_part_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit) as e: gpu.main(["--parts", "environment,speed"])
    assert e.value.code == 2 and "no part speed" in capsys.readouterr().err


@pytest.mark.cuda
@needs_cuda
def test_windows_of_the_gpus_memory_are_those_of_the_memory_maps(comp_dir, tmp_path):
    cache = prepare(comp_dir, tmp_path / "cache", progress=False)
    table = events(Competition(comp_dir).train)
    rows = np.arange(len(table))
    mapped, resident = (WindowDataset(s, table).batch(rows) for s in (cache, Resident(cache, "cuda")))
    for name, x in mapped.items(): assert x.numpy().tobytes() == resident[name].cpu().numpy().tobytes()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("key", ["channels_last=true", "fused=true", "resident=true", "compile=inductor"])
def test_each_way_to_save_time_trains(comp_dir, tmp_path, key):
    sets = ["precision=fp16", f"speed.{key}", "stages=[{name: all, epochs: 1}]"]
    folder = train(load_recipe("panels_b0", "demo", sets), comp_dir, tmp_path / "runs", 0, log=False)
    assert json.loads((folder / "manifest.json").read_text())["precision"] == "fp16"
