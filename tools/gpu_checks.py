"""What `make gpu` checks besides speed: the pictures, losses and trainings of the CPU, and no work lost.

Each function takes a `Place` of bench/gpu.py and gives back rows of a table; where a check does not hold, its
row says so under `holds`. A dry run does the same with tiny sizes on the CPU.
"""
import ast
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from shared import ROOT, cells, notebooks
from torch import nn

from hms_hbac.augment.mixing import AUGMENTS, augment
from hms_hbac.core import DataError, HmsError, read_json, write_json
from hms_hbac.evaluation.runs import gap_closed
from hms_hbac.models.image import System, image_batch
from hms_hbac.models.losses import loss as make_loss
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.simulate.competition import PRESETS, simulate
from hms_hbac.training.batches import to_device
from hms_hbac.training.loop import backward, epoch_parts, read_part, step
from hms_hbac.training.machine import versions
from hms_hbac.training.run import train
from hms_hbac.training.teachers import view_data
from hms_hbac.views.systems import VIEWS, view

sys.path.insert(0, str(ROOT / "tests"))
import toy_training  # noqa: E402  its folder had to be found first

FAMILIES = ("panels_b0", "attention_b0", "resnet1d_gru", "wavenet", "squeezeformer", "scalogram_maxvit",
            "panels_transformer")
CURVES = {"bf16": ["precision=bf16"], "fp16": ["precision=fp16"],
          "channels last": ["precision=fp32", "speed.channels_last=true"],
          "compiled": ["precision=fp32", "speed.compile=inductor"]}
PICTURES, LOSSES, GRADIENTS = 1e-3, 1e-5, 1e-4      # largest difference over the largest value
TRAINED = ("panels_twostage_b0", "squeezeformer")


def environment(place):
    "Versions, GPUs, cores and free disk."
    rows = [{"what": k, "is": v} for k, v in versions().items()]
    rows += [{"what": "system", "is": platform.platform()}, {"what": "cores", "is": os.cpu_count()},
             {"what": "free disk, GB", "is": round(shutil.disk_usage(place.folder).free / 1e9)},
             {"what": "CUDA, cuDNN", "is": f"{torch.version.cuda}, {torch.backends.cudnn.version()}"}]
    for k in range(0 if place.dry else torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(k)
        rows.append({"what": f"GPU {k}", "is": f"{told.name}, {told.total_memory / 1e9:.1f} GB"})
    return rows


def cuda_cells(place):
    "Every notebook with cells marked cuda, run with them; in a dry run they are only compiled."
    import test_notebooks
    rows = []
    for path in notebooks():
        marked = [s for _, _, s in cells(path) if re.search(r"^#\|\s*cuda\b", s, re.M)]
        if not marked: continue
        for k, source in enumerate(marked): compile(source, f"{path.name}, cell {k} of those marked", "exec")
        fault = None if place.dry else test_notebooks.run(path, "cuda", 600)[2]
        rows.append({"notebook": str(path.relative_to(ROOT)), "cells": len(marked), "holds": fault is None,
                     "fault": (fault or "")[-500:]})
    return rows


def marked_tests():
    "Test file -> names of its tests that are marked cuda."
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.cuda" not in text: continue
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        names = [f.name for f in functions if any("mark.cuda" in ast.unparse(d) for d in f.decorator_list)]
        if names: found[path] = names
    return found


def cuda_tests(place):
    "All tests marked cuda, a row a file; in a dry run they are only found."
    rows = []
    for path, names in marked_tests().items():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", str(path)]
        done = None if place.dry else subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        rows.append({"file": str(path.relative_to(ROOT)), "tests": len(names),
                     "holds": done is None or done.returncode == 0,
                     "fault": "" if done is None or not done.returncode else done.stdout[-500:]})
    return rows


def apart(a, b):
    "Largest difference of two tensors over the first's largest value; inf where one alone is not finite."
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    if not torch.equal(a.isfinite(), b.isfinite()): return float("inf")
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()


def drawn(recipe):
    "A system that draws a recipe's augmented picture and has no network."
    return System(view(recipe.view), nn.Identity(), [augment(a) for a in recipe.signal_augment],
                  [augment(a) for a in recipe.image_augment])


def drawings(place):
    "(kind, name, system without a network): every view, every augmentation always on, every recipe."
    for name in place.some(VIEWS, 1):
        try: yield "view", name, System(VIEWS[name](), nn.Identity())
        except (TypeError, ValueError, HmsError): continue          # a building block that needs arguments
    for name in place.some(AUGMENTS, 3):
        made = augment(f"{name}(p=1)")
        given = {"signal_augment": [], "image_augment": []}
        given[f"{made.stage}_augment"].append(made)
        yield "augmentation", name, System(view("eeg_mels()"), nn.Identity(), **given)
    for name in place.some(list_recipes(), 1): yield "recipe", name, drawn(load_recipe(name))


def pictures(place):
    "Every view, augmentation (always on) and recipe's augmented picture, on CPU and GPU from the same keys."
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    table, rows = place.events, []
    for kind, name, system in drawings(place):
        batch = view_data(system.train(), place.cache, table).batch(np.arange(2 if place.dry else 8), 0)
        system.view.fit([batch])
        here = image_batch(system, batch)
        there = image_batch(system.to(place.device), to_device(batch, place.device))
        far = max(apart(here[k], there[k]) for k in ("image", "target"))
        rows.append({"kind": kind, "name": name, "difference": far, "at most": PICTURES,
                     "holds": far <= PICTURES})
    return rows


def losses(place):
    "Each loss and its gradient, on the CPU and on the GPU."
    named = {s.loss or r.loss for r in map(load_recipe, list_recipes()) for s in r.stages}
    g, rows = torch.Generator().manual_seed(0), []
    logits = torch.randn(64, 6, generator=g)
    shares = torch.rand(64, 6, generator=g)
    n_votes = torch.randint(1, 20, (64,), generator=g).float()
    for text in place.some(sorted(named), 3):
        criterion, got = make_loss(text), []
        for device in ("cpu", place.device):
            x = logits.to(device).requires_grad_()
            value = criterion(x, (shares / shares.sum(1, keepdim=True)).to(device), n_votes.to(device))
            value.backward()
            got.append((value, x.grad))
        value, slope = (apart(a, b) for a, b in zip(*got, strict=True))
        rows.append({"loss": text, "difference": value, "of the gradient": slope,
                     "holds": value <= LOSSES and slope <= GRADIENTS})
    return rows


def curve(place, name, sets, updates):
    "The loss of each of the first `updates` updates, on the votes (a student's teachers are not here)."
    if any(s.labels.runs for s in load_recipe(name).stages): sets = [*sets, "stages=[{name: all}]"]
    recipe = place.recipe(name, *sets)
    loop = place.loop(recipe, (updates + 1) * recipe.batch_size * recipe.accumulate)
    values, before = [], loop.loss_sum.clone()
    loop.system.train()
    for part in epoch_parts(loop):
        backward(loop, part, to_device(read_part(loop, 0, part), loop.accelerator.device))
        if not part.last: continue
        step(loop, part)
        total, rows = (loop.loss_sum - before).tolist()
        values.append(total / max(rows, 1))
        before = loop.loss_sum.clone()
        if len(values) == updates: break
    return np.array(values)


def curve_rows(place, name, kinds=CURVES):
    "A row for each way to train: is the mean loss at the end within what seeds give?"
    updates, seeds = (2, (42,)) if place.dry else (50, (42, 1, 2))
    whole = [curve(place, name, ["precision=fp32", f"seed={k}"], updates) for k in seeds]
    ends, rows = [c[-10:].mean() for c in whole], []
    spread = max(ends) - min(ends)
    for kind, sets in kinds.items():
        sets = [s.replace("inductor", "eager") for s in sets] if place.dry else sets
        got = curve(place, name, [*sets, "seed=42"], updates)
        far = float(abs(got[-10:].mean() - ends[0]))
        rows.append({"recipe": name, "kind": kind, "difference": None if place.dry else far,
                     "seeds differ by": None if place.dry else float(spread),
                     "holds": bool(np.isfinite(got).all() and (place.dry or far <= max(spread, .05)))})
    return rows


def curves(place):
    "50 updates of a recipe of each family: the loss in each precision, laid out, compiled, against seeds."
    return [row for name in place.some(FAMILIES, 1) for row in curve_rows(place, name)]


def other_curves(place, minutes=30.):
    "The same of all other recipes, each kept as it ends; what time does not allow is left for the next call."
    rows = []
    end = time.monotonic() + 60 * minutes
    home = place.folder / "curves"
    kinds = {k: CURVES[k] for k in place.some(CURVES, 1)}
    home.mkdir(exist_ok=True)
    for name in place.some([n for n in list_recipes() if n not in FAMILIES], 1):
        file = home / f"{name}.json"
        if not file.is_file() and time.monotonic() < end: write_json(file, curve_rows(place, name, kinds))
        rows += read_json(file) if file.is_file() else [{"recipe": name, "status": "paused"}]
    return rows


def same_files(a, b):
    return (Path(a) / "model.safetensors").read_bytes() == (Path(b) / "model.safetensors").read_bytes()


def resume(place):
    "A training that was paused after its first update ends with the same bytes as one that never stopped."
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    recipe = place.recipe("panels_b0", f"stages=[{{name: all, epochs: {1 if place.dry else 3}}}]")
    options = dict(cache=place.folder / "cache", log=False)
    try:
        for kind in ("whole", "paused"): shutil.rmtree(place.folder / kind, ignore_errors=True)
        whole = train(recipe, place.comp, place.folder / "whole", 0, **options)
        train(recipe, place.comp, place.folder / "paused", 0, time_budget=.001, **options)
        status = read_json(place.folder / "paused" / recipe.name / "fold0" / "manifest.json")["status"]
        paused = train(recipe, place.comp, place.folder / "paused", 0, **options)
    finally: torch.use_deterministic_algorithms(before)
    same = status == "paused" and same_files(whole, paused)
    return [{"check": f"{recipe.name}, {status} once", "holds": same}]


def processes(place):
    "Two processes train at once, one is killed and goes on: the same bytes. Two GPUs: also one on both."
    script = str(ROOT / "tests" / "toy_training.py")
    home = place.folder / "toys"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

    def launch(folder, *words):
        command = [sys.executable, *words, script, str(home / folder), "every=0"]
        return [*command, "die=update:5"] if folder == "killed" else command

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    other = subprocess.Popen(launch("killed"), env=env, **quiet)
    with contextlib.redirect_stdout(None):
        toy_training.main(str(home / "whole"), "every=0")                # this process is the second one
        code = other.wait(300)
        toy_training.main(str(home / "killed"), "every=0")
    rows = [{"check": "two at once on one device, one killed and taken up again",
             "holds": code == -signal.SIGKILL and same_files(home / "whole", home / "killed")}]
    if not place.dry and torch.cuda.device_count() > 1:
        words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        done = subprocess.run(launch("both", *words), env=env, capture_output=True, text=True, timeout=300)
        one, two = (pd.read_csv(home / f / "history.csv").kl.to_numpy() for f in ("whole", "both"))
        same = len(one) == len(two) and bool(np.allclose(one, two, atol=1e-3))
        rows.append({"check": "one training on two GPUs, as on one", "holds": done.returncode == 0 and same})
    return rows


def whole_competition(place):
    "(folder of runs and cache, competition): bench-m, bench-s where cores or disk are few, or what is given."
    if place.dry or place.given: return place.folder, place.comp
    large = (os.cpu_count() or 1) >= 8 and shutil.disk_usage(place.folder).free > 60e9
    name = "bench-m" if large else "bench-s"
    home = place.folder / name
    return home, simulate(home / "comp", **PRESETS[name], workers=os.cpu_count() or 1, progress=False)


def trained(place, minutes=30.):
    "Whole trainings of one fold: share of the gap closed, images/s, minutes. Each goes on where time ended."
    rows = []
    end = time.monotonic() + 60 * minutes
    home, comp = whole_competition(place)
    wanted = [("panels_b0", ["stages=[{name: all, epochs: 1}]"])] if place.dry else [(n, []) for n in TRAINED]
    for k, (name, sets) in enumerate(wanted):
        recipe = place.recipe(name, *sets)
        left = max(1., (end - time.monotonic()) / (len(wanted) - k))
        folder = train(recipe, comp, home / "runs", 0, cache=home / "cache", log=False,
                       time_budget=None if place.dry else left)
        told = read_json(folder / "manifest.json")
        row = {"recipe": name, "competition": comp.parent.name, "status": told["status"], "holds": True}
        if not place.dry: row |= {"images/s": told["samples_per_s"], "minutes": told["wall_seconds"] / 60}
        if told["status"] == "finished":
            try: found = gap_closed(pd.read_parquet(folder / "oof.parquet"),
                                    pd.read_parquet(comp / "truth.parquet"))
            except (DataError, OSError) as e: found = {"note": str(e)}
            row |= {k: v for k, v in found.items() if k == "note" or not place.dry}
        rows.append(row)
    return rows


CHECKS = {"environment": environment, "cells": cuda_cells, "tests": cuda_tests, "pictures": pictures,
          "losses": losses, "curves": curves, "resume": resume, "processes": processes}
