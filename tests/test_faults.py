"""Commands from the outside, against what a hostile user and an unlucky machine bring: exit 0, 1, 2 or 3,
a message and never a traceback, and no file outside the output changes.

Every command runs in a process of its own (see `apart`); a real disk of its own is full where that can be."""
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from apart import apart, begun, command, full_then_room, on_read_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_files import write_clones

# HMS_FUZZ=300 throws that many, others on each call
FUZZ = int(os.environ.get("HMS_FUZZ", 0))
FEW = settings(max_examples=FUZZ or 25, derandomize=not FUZZ, database=None, deadline=None,
               suppress_health_check=list(HealthCheck), report_multiple_bugs=False)


def hms(*args, place=None): return apart(command, *args, place)


def snapshot(folder):
    "Names, kinds and contents under a folder."
    found = {}
    for p in sorted(Path(folder).rglob("*")):
        name = p.relative_to(folder).as_posix()
        found[name] = p.read_bytes() if p.is_file() else "folder"
        if p.is_symlink(): found[name] = os.readlink(p)
    return found


RECIPE = {"name": "panels_b0", "view": "Resize(Panels(), 32, 32)", "precision": "fp32",
          "net": {"kind": "timm", "backbone": "test_efficientnet", "pretrained": "none"}}


WRITTEN = json.dumps(RECIPE)


def foreign_place(folder, manifest=None, model=b"no model", recipe=WRITTEN):
    "A folder with a competition that is none, and a run whose model is none."
    run = folder / "runs/panels_b0/fold0"
    run.mkdir(parents=True)
    (folder / "comp").mkdir()
    if recipe is not None: (run / "recipe.yaml").write_text(recipe)
    (run / "model.safetensors").write_bytes(model)
    if manifest is None: manifest = {"status": "finished", "recipe": "panels_b0", "fold": 0}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def place(tmp_path): return foreign_place(tmp_path)


# one by one: what was seen to end in a traceback

def several(place, calls):
    "(status, said) of each of the `calls` in turn, and the folder before and after them."
    before = snapshot(place)
    return [command(*args, place=place) for args in calls], before, snapshot(place)


LOOPS = [("runs", "loop"), ("report", "loop", "--out", "new.html"), ("check", "loop"), ("recipes", "loop"),
         ("predict", "loop", "--data", "comp", "--out", "new.csv"), ("kaggle", "check", "loop"),
         ("kaggle", "weights", "loop", "--out", "w"), ("kaggle", "push", "loop", "--dry-run"),
         ("fit-weights", "loop", "--out", "w.yaml"), ("check-submission", "loop", "--data", "comp"),
         ("ensemble", "loop", "--out", "new.csv"), ("votes", "fit", "loop"), ("prepare", "loop", "cache"),
         ("train", "loop", "--data", "comp", "--runs", "loop"), ("open-eeg", "loop", "eeg")]


def test_links_that_lead_to_themselves(place):
    (place / "loop").symlink_to("loop")
    answers, before, after = apart(several, place, LOOPS)
    assert all(status in (1, 2) for status, _ in answers), answers
    assert {k: v for k, v in after.items() if k in before} == before


OVERRIDES = ["a=[1", "=", "view=!!python/name:os.system", "seed=-1", f"seed={'9' * 23}", "view=-'a'",
             "view=" + "-" * 3000 + "1", "view=9**9**9", "batch_size=1e308",
             "view=" + "(" * 400 + ")" * 400, "view=Panels(steps=0)", "stages=&a [*a]", "name=..", "name=a/b",
             "optimizer.lr=nan", "folds=1", "view=Resize(Panels(), 100000, 100000)"]


def test_overrides_that_are_none(place):
    base = ("train", "panels_b0", "--scale", "demo", "--data", "comp", "--set")
    answers, before, after = apart(several, place, [(*base, o) for o in OVERRIDES])
    assert all(status == 1 and len(said) < 5000 for status, said in answers), answers
    assert after == before


RECIPES = ["", "[]", "name: [", "a: &a [*a, *a]\nb: *a", "name: ../../../escaped\nview: Panels()",
           "!!python/object:os.system {}", "\x00", "name: x\nview: Panels()\nstages: 7",
           "a: " + "[" * 3000 + "]" * 3000]


def test_recipes_that_are_none(place):
    (place / "folder.yaml").mkdir()
    calls = []
    for n, text in enumerate(RECIPES):
        (place / f"mine{n}.yaml").write_text(text)
    for name in [*(f"mine{n}.yaml" for n in range(len(RECIPES))), "folder.yaml"]:
        calls += [("recipes", name), ("train", name, "--data", "comp", "--runs", "new")]
    answers, before, after = apart(several, place, calls)
    assert all(status == 1 and "error:" in said for status, said in answers), answers
    assert after == before and not (place.parent.parent / "escaped").exists()


def test_nothing_foreign_is_lost_by_a_mistyped_output(place):
    "`--out .` and its like, for every command that fills a folder; the details are in tests/kaggle."
    calls = []
    for out in (".", "runs", "runs/panels_b0/fold0", "comp/.."):
        calls += [("kaggle", "weights", "runs", "--out", out), ("kaggle", "wheel", "--alone", "--out", out),
                  ("kaggle", "rehearse", "--data", "comp", "--runs", "runs", "--out", out),
                  ("simulate", out), ("prepare", "comp", out), ("demo", "--out", out),
                  ("read", "a.edf", "b.edf", "--runs", "runs", "--out", out)]
    answers, before, after = apart(several, place, calls)
    assert all(status == 1 for status, _ in answers), answers
    assert after == before


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [" + ", ".join([f"*{old}"] * 9) + "]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True))


def test_alias_bombs_end_at_once(place):
    "Nine levels of nine references in every file that is read as YAML, at the key that is looked at."
    (place / "comp/test.csv").write_text("eeg_id,spectrogram_id,patient_id\n1,1,1\n")
    files = {"weights.yaml": "weights: {m: *i}\n", "mixture.yaml": "kinds: *i\n",
             "sets.yaml": "threshold: *i\n", "runs/panels_b0/fold0/recipe.yaml": "origin: *i\n"}
    for name, line in files.items(): (place / name).write_text(BOMB + line)
    names = ",".join(f"{c}_vote" for c in ("seizure", "lpd", "gpd", "lrda", "grda", "other"))
    (place / "votes.csv").write_text(f"patient_id,{names}\n1,1,2,3,4,5,6\n")
    calls = [("ensemble", "--weights", "weights.yaml", "--data", "comp", "--out", "new.csv"),
             ("predict", "runs", "--data", "comp", "--out", "new.csv", "--weights", "weights.yaml"),
             ("predict", "runs", "--data", "comp", "--out", "new.csv", "--sets", "sets.yaml"),
             ("votes", "score", "votes.csv", "--mixture", "mixture.yaml"),
             ("report", "runs", "--out", "new.html"), ("kaggle", "weights", "runs", "--out", "w")]
    answers, before, after = apart(several, place, calls)
    assert [status for status, _ in answers] == [1] * len(calls), answers
    assert all("aliases" in said for _, said in answers), answers
    assert {k: v for k, v in after.items() if k in before} == before


# whatever is thrown at them; each test's examples run in one process

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
                    max_leaves=8)
KEYS = st.sampled_from(
    "status recipe fold kl kl_10 seed updates updates_planned wall_seconds notes versions prior "
    "samples_per_s device_name train_rows data events held_out labels_from command".split())
FORMS = ["-{}", "({})", "{0}+{0}", "{0}*{0}", "Normalize({})", "{0}**{0}", "[{}]", "{0}.x", "Grid([{0}])",
         "f({})", "Resize({0}, 9, {0})", "VStack({0}, {0})", "{0} if 1 else 2", "lambda: {0}"]
EXPRESSIONS = st.recursive(
    st.sampled_from(["Panels()", "1", "'a'", "-1", "1e308", "None", "Resize(Panels(), 9, 9)", "eight()"]),
    lambda x: st.tuples(st.sampled_from(FORMS), x).map(lambda t: t[0].format(t[1])), max_leaves=4)
NAMES = st.sampled_from("view loss seed batch_size net.dropout net stages tta name folds optimizer.lr labels "
                        "image_augment signal_augment ema data.rows".split())


def made(root): return root / str(len(list(root.iterdir())))


def overrides(root):
    @FEW
    @given(NAMES, EXPRESSIONS | st.text(max_size=20))
    def check(key, value):
        place = made(root)
        (place / "comp").mkdir(parents=True)
        before = snapshot(place)
        args = ("train", "panels_b0", "--scale", "demo", "--data", place / "comp", "--runs", place / "runs")
        status, said = command(*args, "--set", f"{key}={value}")
        assert status in (1, 2) and snapshot(place) == before, (key, value, said)
    check()


def recipes(root):
    @FEW
    @given(st.dictionaries(NAMES, EXPRESSIONS | JSON, max_size=4) | JSON, st.booleans())
    def check(raw, whole):
        place = made(root)
        place.mkdir()
        if whole and isinstance(raw, dict): raw = {**RECIPE, **raw}
        (place / "mine.yaml").write_text(json.dumps(raw))
        before = snapshot(place)
        status, said = command("recipes", place / "mine.yaml")
        assert status in (0, 1) and snapshot(place) == before, (raw, said)
    check()


def manifests(root):
    @FEW
    @given(st.dictionaries(KEYS, JSON, max_size=6) | JSON, st.binary(max_size=40), st.booleans())
    def check(manifest, model, with_recipe):
        "A run's folder with anything in it: the commands that read runs say so, and leave it as it was."
        place = made(root)
        foreign_place(place, manifest, model, json.dumps(RECIPE) if with_recipe else None)
        (place / "runs/panels_b0/fold0/oof.parquet").write_bytes(model)
        before = snapshot(place)
        command("runs", place / "runs")
        command("report", place / "runs", "--out", place / "out.html")
        command("predict", place / "runs", "--data", place / "comp", "--out", place / "out.csv")
        command("fit-weights", place / "runs", "--out", place / "out.yaml")
        command("kaggle", "weights", place / "runs", "--out", place / "out")
        after = snapshot(place)
        assert {k: v for k, v in after.items() if k in before} == before, (manifest, model)
        new = {k.partition("/")[0].partition(".")[0] for k in set(after) - set(before)}
        assert new <= {"out", "out_prediction_report"}, (manifest, new)
    check()


FOLD = ["", *(f"/{n}" for n in "recipe.yaml manifest.json oof.parquet model.safetensors last".split())]
LAYOUT = st.sampled_from(
    [f"runs/panels_b0/fold0{n}" for n in FOLD]
    + "runs runs/panels_b0 runs/fold0 comp comp/test.csv comp/train.csv comp/train_eegs comp/test_eegs "
      "comp/train_eegs/1.parquet out out/manifest.json out/.hms-hbac.json out.csv out.html".split())
KINDS = st.sampled_from(["folder", "loop", "fifo", "away", "up"]) | st.binary(max_size=30)


def lay(path, kind):
    "A folder, a file, a pipe, or a link; where something is in the way, nothing."
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder": path.mkdir()
        elif kind == "fifo": os.mkfifo(path)
        elif isinstance(kind, bytes): path.write_bytes(kind)
        else: path.symlink_to({"loop": path.name, "away": "/nonexistent/x", "up": ".."}[kind])


def tree(folder):
    "Like `snapshot`, without following links and without reading pipes."
    found = {}
    for where, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            p = Path(where, name)
            held = p.read_bytes() if p.is_file() and not p.is_symlink() else b""
            found[str(p.relative_to(folder))] = os.readlink(p) if p.is_symlink() else held
    return found


def layouts(root):
    @FEW
    @given(st.dictionaries(LAYOUT, KINDS, max_size=7))
    def check(what):
        place = made(root)
        place.mkdir()
        # who writes to a pipe waits for its reader, and rightly so
        for name, kind in sorted(what.items()):
            lay(place / name, b"" if kind == "fifo" and name.startswith("out") else kind)
        before = tree(place)
        runs, comp, out = place / "runs", place / "comp", place / "out"
        command("runs", runs)
        command("check", comp)
        command("prepare", comp, place / "cache")
        command("report", runs, "--out", f"{out}.html")
        command("predict", runs, "--data", comp, "--out", f"{out}.csv")
        command("kaggle", "weights", runs, "--out", out)
        command("check-submission", f"{out}.csv", "--data", comp)
        after = tree(place)
        mine = ("out", "cache")
        kept = {k: v for k, v in before.items() if not k.startswith(mine)}
        assert {k: v for k, v in after.items() if not k.startswith(mine)} == kept, what
    check()


META = st.sampled_from(
    "id title code_file language kernel_type is_private enable_gpu enable_internet dataset_sources "
    "competition_sources kernel_sources model_sources machine_shape licenses resources".split())
SOURCE = st.sampled_from(["code", "infer(GROUPS, 'submission.csv')"])
CELLS = st.lists(st.dictionaries(st.sampled_from(["cell_type", "source", "id", "metadata"]), JSON | SOURCE,
                                 max_size=3), max_size=3)


def metadata(root):
    @FEW
    @given(st.dictionaries(META, JSON, max_size=6) | JSON, st.sampled_from(["kernel", "dataset"]),
           st.dictionaries(st.sampled_from(["cells", "metadata", "nbformat"]), JSON | CELLS) | CELLS.map(
               lambda c: {"cells": c, "metadata": {"kernelspec": {"name": "python3"}}}))
    def check(meta, kind, book):
        place = made(root)
        place.mkdir()
        if isinstance(meta, dict) and len(meta) % 2: meta["code_file"] = "k.ipynb"
        (place / f"{kind}-metadata.json").write_text(json.dumps(meta))
        (place / "k.ipynb").write_text(json.dumps(book))
        before = snapshot(place)
        status, said = command("kaggle", "check", place)
        assert status in (0, 1) and ("faults" in said or "error:" in said), (meta, said)
        command("kaggle", "push", place, "--dry-run", "--owner", "ann")
        assert snapshot(place) == before
    check()


# arguments of every command, from the outside: those that ask a server, or work for minutes, are left out
LEFT_OUT = {"demo", "simulate", "kaggle wheel", "kaggle rehearse", "kaggle wait", "kaggle fetch",
            "kaggle submit"}
PLACES = ["", ".", "..", "comp", "runs", "runs/panels_b0", "runs/panels_b0/fold0", "folder", "no/such",
          "x" * 300, "loop", "pipe", "pipe.csv", "pipe.edf", "pipe.parquet", "pipe.yaml", "/dev/null",
          "/dev/full", "\udcff", "note.txt", "note.txt/x", "w.yaml", "votes.csv", "s.csv", "s.csv=2",
          "new.csv", "new.html", "new", "new.png"]
OTHER = ["panels_b0", "0", "-1", "1", "3", "nan", "inf", "1e308", "9" * 30, "0,1", "0.5", "1h", "flip_lr",
         "cpu", "full", "demo", "david", "tcp://127.0.0.1:1", "a=b", "batch_size=3", "--help"]
WORDS = st.sampled_from(PLACES + OTHER)


def all_commands(group, path=()):
    "{path: command} of a group and those in it."
    found = {}
    for name, c in group.commands.items():
        found |= all_commands(c, (*path, name)) if hasattr(c, "commands") else {(*path, name): c}
    return found


class Hangs(BaseException):
    "A command that does not end."


def hangs(number, frame): raise Hangs


def crowded_place(folder):
    "`foreign_place`, with votes, weights, submissions, pipes, a link to itself, and notes."
    foreign_place(folder)
    names = ",".join(f"{c}_vote" for c in ("seizure", "lpd", "gpd", "lrda", "grda", "other"))
    rows = "".join(f"{i},3,2,{i},4,5,6\n" for i in range(9))
    (folder / "comp/test.csv").write_text("spectrogram_id,eeg_id,patient_id\n1,1,1\n")
    (folder / "votes.csv").write_text(f"patient_id,{names}\n{rows}")
    (folder / "s.csv").write_text(f"eeg_id,{names}\n1,.1,.1,.1,.1,.1,.5\n")
    (folder / "w.yaml").write_text("weights: {panels_b0: 1}\n")
    (folder / "note.txt").write_text("mine")
    (folder / "folder").mkdir()
    for name in ("pipe", "pipe.csv", "pipe.edf", "pipe.parquet", "pipe.yaml"): os.mkfifo(folder / name)
    (folder / "loop").symlink_to("loop")
    return folder


def arguments(root):
    import typer

    from hms_hbac.cli import app
    every = {k: c for k, c in all_commands(typer.main.get_command(app)).items()
             if " ".join(k) not in LEFT_OUT and k[-1] != "push"}
    signal.signal(signal.SIGALRM, hangs)

    @FEW
    @given(st.sampled_from(sorted(every)), st.data())
    def check(path, data):
        "What was there stays as it was, but for what --out names, and that is never something that is read."
        place = crowded_place(made(root))
        args = list(path)
        options = [p for p in every[path].params if p.name != "help"]
        for p in options:
            flag = getattr(p, "is_flag", False)
            if p.param_type_name == "option" and not p.required and data.draw(st.booleans()): continue
            if p.param_type_name == "option": args.append(max(p.opts, key=len))
            if not flag: args.append(data.draw(WORDS))
        if path == ("recipes",): args.append("--no-parameters")     # counting builds every network
        before = tree(place)
        signal.alarm(int(os.environ.get("HMS_PATIENCE", 100)))
        try: command(*args, place=place)
        except Hangs: raise AssertionError(f"no end: {args}") from None
        finally: signal.alarm(0)
        mine = ("new", "folder", "s", "note.txt", "votes.csv", "w.yaml", "runs/panels_b0/fold0/.lock")
        kept = {k: v for k, v in before.items() if not k.startswith(mine) or "--out" not in args}
        after = tree(place)
        assert {k: after.get(k) for k in kept} == kept, args
    check()


CELL = st.sampled_from(["0", "1", "2", "7", "-1", "1.5", "nan", "", "x", "1e308", "9" * 25, "Other", "'"])
HEAD = ("eeg_id eeg_sub_id eeg_label_offset_seconds spectrogram_id spectrogram_sub_id "
        "spectrogram_label_offset_seconds label_id patient_id expert_consensus").split()


def tables(root):
    @FEW
    @given(st.lists(st.lists(CELL, min_size=15, max_size=15), max_size=6), st.integers(0, 15), JSON)
    def check(rows, cut, odd):
        "Tables with anything in their cells: competition, out-of-fold, history, votes."
        import pandas as pd
        place = crowded_place(made(root))
        votes = [f"{c}_vote" for c in ("seizure", "lpd", "gpd", "lrda", "grda", "other")]
        text = "\n".join(",".join(r[:cut]) for r in [[*HEAD, *votes], *rows])
        for name in ("comp/train.csv", "comp/test.csv", "votes.csv"): (place / name).write_text(text)
        columns = ["event_id", "eeg_id", "patient_id", "fold", "n_votes", *votes,
                   *(v.removesuffix("_vote") for v in votes)][:cut]
        frame = pd.DataFrame([(r * 2)[:len(columns)] for r in rows], columns=columns, dtype=object)
        frame = frame.apply(pd.to_numeric, errors="coerce") if cut % 2 else frame.astype(str)
        fold = place / "runs/panels_b0/fold0"
        frame.to_parquet(fold / "oof.parquet")
        (fold / "history.csv").write_text(str(odd))
        before = tree(place)
        for args in (["check", "comp"], ["runs", "runs"], ["votes", "score", "votes.csv"],
                     ["fit-weights", "runs", "--out", "new.yaml", "--min-votes", "1"],
                     ["check-submission", "s.csv", "--data", "comp"],
                     ["ensemble", "s.csv", "--data", "comp", "--out", "new.csv"]):
            command(*args, place=place)
        after = tree(place)
        assert {k: after.get(k) for k in before} == before
    check()


@pytest.mark.parametrize("thrown", [overrides, recipes, manifests, layouts, metadata, arguments, tables])
def test_random(tmp_path, thrown):
    "Recipes, overrides, manifests, layouts, metadata, arguments and tables that nobody would write."
    apart(thrown, tmp_path, seconds=280 if not FUZZ else 20 * FUZZ)


# the disk is full, the folder is read-only

@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    "A competition, two recipes with a fold each, two submissions of them, clones of open EEG, votes."
    folder = tmp_path_factory.mktemp("inputs")
    apart(write_inputs, folder)
    return folder


def write_inputs(folder):
    import numpy as np
    import pandas as pd

    from hms_hbac.core import CLASSES, VOTES, write_json
    from hms_hbac.data.competition import Competition, add_folds, events
    from hms_hbac.draws import seed_everything
    from hms_hbac.models.recipe import build, save_recipe
    from hms_hbac.models.schema import validate
    from hms_hbac.simulate.competition import simulate
    from hms_hbac.training.checkpoints import save_weights
    few_recordings()
    comp = simulate(folder / "comp", patients=6, test_patients=1, workers=1, progress=False)
    table = add_folds(events(Competition(comp).train), n=2, seed=42)
    part = table[table.fold == 0].reset_index(drop=True)
    for n, name in enumerate(("one", "two")):
        run = folder / f"runs/{name}/fold0"
        recipe = validate(RECIPE | {"name": name})
        seed_everything(n)
        save_recipe(recipe, run / "recipe.yaml")
        save_weights(run / "model.safetensors", build(recipe).state_dict())
        write_json(run / "manifest.json", {"status": "finished", "recipe": name, "fold": 0, "notes": []})
        prob = pd.DataFrame(np.random.default_rng(n).dirichlet(np.ones(6), len(part)), columns=list(CLASSES))
        columns = ["event_id", "eeg_id", "patient_id", "fold", "n_votes", *VOTES]
        pd.concat([part[columns], prob], axis=1).to_parquet(run / "oof.parquet")
        command("predict", folder / f"runs/{name}", "--data", comp, "--out", folder / f"{name}.csv")
    votes = pd.DataFrame(np.random.default_rng(0).integers(0, 9, (40, 6)), columns=list(VOTES))
    votes.assign(patient_id=range(40)).to_csv(folder / "votes.csv", index=False)
    write_clones(folder / "clones")
    shutil.copy(sorted((comp / "train_eegs").iterdir())[0], folder / "eeg.parquet")


def few_recordings():
    "Let a simulation be short: one recording of noise of each of three patients, the last one of the test's."
    import numpy as np

    import hms_hbac.simulate.competition as simulation
    whole = simulation.plan
    def noise(recording, strength=1.):
        rng = np.random.default_rng(recording.spectrogram_id)
        return rng.normal(0, 30, (20, 200 * (recording.seconds + 2))).astype(np.float32)
    def short(*args, **more):
        recordings = whole(*args, **more)
        first = {r.rows.patient_id.iloc[0]: r for r in recordings[::-1]}
        return [*[first[p] for p in sorted(first) if first[p].split == "train"][:2], recordings[-1]]
    simulation.plan, simulation.render = short, noise


# name: (arguments, files that tell the time, what must not have begun where nothing can be written, before)
WRITING = {
    "predict": (["predict", "runs", "--data", "comp", "--out", "{disk}/s.csv", "--uncertainty"],
                (), "hms_hbac.inference.predict:load_models"),
    "ensemble": (["ensemble", "one.csv=2", "two.csv", "--data", "comp", "--out", "{disk}/s.csv"],
                 (), "hms_hbac.inference.ensemble:gather"),
    "presets": (["ensemble", "--weights", "w.yaml", "--runs", "runs", "--data", "comp", "--out",
                 "{disk}/s.csv"], (), "hms_hbac.inference.presets:load_models"),
    "report": (["report", "runs", "--out", "{disk}/page.html"], (), "hms_hbac.evaluation.report:sections_of"),
    "fit-weights": (["fit-weights", "runs", "--out", "{disk}/w.yaml", "--min-votes", "1"],
                    (), "hms_hbac.evaluation.blending:compare"),
    "weights": (["kaggle", "weights", "runs", "--out", "{disk}/w"], ("manifest.json",),
                "hms_hbac.kaggle.package:pack_run"),
    "simulate": (["simulate", "{disk}/comp", "--patients", "6", "--test-patients", "1", "--workers", "1"],
                 (), "hms_hbac.simulate.competition:render"),
    "prepare": (["prepare", "comp", "{disk}/cache", "--workers", "1"], (".lock",),
                "hms_hbac.data.recordings:run_joblib"),
    "open-eeg": (["open-eeg", "clones", "{disk}/eeg"], (), "hms_hbac.data.open_eeg:read_segments"),
    "votes": (["votes", "fit", "votes.csv", "--out", "{disk}/v.yaml", "--kinds", "2", "--min-votes", "1",
               "--folds", "0"], (), "hms_hbac.models.votes:fit_mixture"),
    "read": (["read", "eeg.parquet", "--runs", "runs", "--out", "{disk}/read", "--step", "20"],
             (), "hms_hbac.inference.reader:load_models"),
}
# of what a command writes, in all; HMS_DISK=40 fills the disk at so many points
POINTS = int(os.environ.get("HMS_DISK", 0))


def parts_of(): return [.01 + .94 * n / ((POINTS or 5) - 1) for n in range(POINTS or 5)]


# what takes its seconds and writes nothing: while the disk is full, its first answer is given again
SLOW = {"report": "hms_hbac.evaluation.report:sections_of",
        "read": "hms_hbac.evaluation.reading:recording_page"}


def call(inputs, name):
    "The arguments of a writing command, with the places of its inputs."
    args, timed, work = WRITING[name]
    here = {"runs", "comp", "w.yaml", "clones", "votes.csv", "one.csv=2", "two.csv", "eeg.parquet"}
    (inputs / "w.yaml").write_text("weights: {one: 0.7, two: 0.3}\n")
    return [str(inputs / a) if a in here and n else a for n, a in enumerate(args)], timed, work


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_and_then_room(inputs, tmp_path, name):
    """Full again and again, each time a little later: a named fault, nothing half.

    Then room, the same command, the same bytes."""
    args, timed, _ = call(inputs, name)
    (tmp_path / "spare").mkdir()
    before = few_recordings if name == "simulate" else None
    seen, others = apart(full_then_room, tmp_path / "disk", tmp_path / "spare", args, parts_of(), timed,
                         before, SLOW.get(name))
    assert seen and not others, others
    for size, status, said, left in seen:
        assert status == 1 and "cure:" in said and ("room" in said or "raise it" in said), (size, said)
        assert not left, (size, left)


@pytest.mark.parametrize("name", WRITING)
def test_a_read_only_folder(inputs, tmp_path, name):
    "Told before the work, not after it."
    args, _, work = call(inputs, name)
    (tmp_path / "spare").mkdir()
    answer = apart(on_read_only, tmp_path / "disk", tmp_path / "spare", args, work)
    if answer is None: pytest.skip("no file system can be mounted here")
    assert answer[0] == 1 and "ead-only" in answer[1] and "cure:" in answer[1], answer


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ELOOP, errno.EFBIG])
def test_each_fault_of_the_system_has_its_cure(number):
    from hms_hbac.kaggle.console import CURES, fault
    assert CURES[number] in fault(OSError(number, os.strerror(number), "out.csv"))


def test_nothing_that_is_read_is_written_over(inputs):
    "An output that is a table of the competition, a part of a run, or another file that was named."
    call(inputs, "presets")                                                   # writes w.yaml
    fold = "runs/one/fold0/"
    blend = ("ensemble", "--weights", "w.yaml", "--runs", "runs", "--data", "comp")
    tables = [f"comp/{n}.csv" for n in ("train", "test", "sample_submission")]
    calls = [("predict", "runs", "--data", "comp", "--out", out) for out in (*tables, fold + "recipe.yaml")]
    calls += [("predict", "runs", "--data", "comp", "--weights", "w.yaml", "--out", "w.yaml"),
              (*blend, "--out", "w.yaml"), (*blend, "--out", fold + "model.safetensors"),
              ("ensemble", "one.csv", "two.csv", "--data", "comp", "--out", "comp/test.csv"),
              ("report", "runs", "--out", fold + "manifest.json"),
              ("report", "runs", "--submission", "one.csv", "--out", "one.csv"),
              ("fit-weights", "runs", "--min-votes", "1", "--out", fold + "oof.parquet")]
    answers, before, after = apart(several, inputs, calls)
    assert all(status == 1 and "is one of the inputs" in said for status, said in answers), answers
    assert after == before


def in_turn(place, calls):
    "(status, said) of each of the `calls`, without a look at the files."
    return [[command(*args, place=place) for args in calls]]


PIPES = [("votes", "score", "votes.csv", "--mixture", "pipe.yaml"), ("recipes", "pipe.yaml"),
         ("read", "pipe.edf", "--runs", "runs", "--out", "new"), ("prepare", "comp", "new"),
         ("check-submission", "pipe.csv", "--data", "comp"), ("votes", "fit", "pipe.csv"),
         ("read", "pipe.parquet", "--runs", "runs", "--out", "new"), ("runs", "pipe"),
         ("ensemble", "s.csv", "pipe.csv", "--data", "comp", "--out", "new.csv")]


def test_pipes_end_at_once(tmp_path):
    "Nobody writes into them: whoever opened one would wait for ever."
    place = crowded_place(tmp_path / "place")
    (place / "comp/train_eegs").mkdir()
    os.mkfifo(place / "comp/train_eegs/1.parquet")
    os.mkfifo(place / "comp/train.csv")
    answers, *_ = apart(in_turn, place, PIPES, seconds=60)
    assert [status for status, _ in answers] == [1] * (len(PIPES) - 1) + [3], answers


def test_a_kernels_name_is_no_path(place):
    "`kaggle rehearse /a/kernel` built its place over the kernel itself."
    kernel = place / "kernels/mine"
    kernel.mkdir(parents=True)
    (kernel / "kernel-metadata.json").write_text("{}")
    calls = [("kaggle", "rehearse", name, "--data", "comp") for name in (str(kernel), "../mine", "image")]
    answers, before, after = apart(several, place, calls)
    assert all(status == 1 and "no kernel" in said for status, said in answers) and after == before, answers


def test_links_in_a_runs_folder_are_not_followed(tmp_path):
    "A lock and a crash log are written into folders that may come from anywhere."
    from hms_hbac.core import CheckpointError
    from hms_hbac.training.machine import hold, last_words
    (tmp_path / "note.txt").write_text("mine")
    for name in (".lock", "crash.log"): (tmp_path / name).symlink_to("note.txt")
    with pytest.raises(CheckpointError, match="cannot be written to"), hold(tmp_path): pass
    with last_words(tmp_path): pass
    assert (tmp_path / "note.txt").read_text() == "mine"


def printing(full):
    "`recipes panels_b0` into a device that is full; what it says goes to `full`/said.txt."
    from hms_hbac.cli import app
    os.dup2(os.open(full / "said.txt", os.O_CREAT | os.O_WRONLY), 2)
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    app(["recipes", "panels_b0"])


def test_a_full_disk_behind_the_output_is_told(tmp_path):
    child, _ = begun(printing, tmp_path)
    child.join(60)
    said = (tmp_path / "said.txt").read_text()
    assert child.exitcode == 1 and "No space left" in said and "Traceback" not in said, said


# a signal comes

def slow_weights(place):
    "`kaggle weights` that packs for a minute; what it says goes to said.txt."
    from hms_hbac.cli import app
    from hms_hbac.kaggle import package
    def slow(*args):
        Path("begun").touch()
        time.sleep(60)
    os.chdir(place)
    os.dup2(os.open("../said.txt", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = open(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)     # a shell's background ignores it
    package.pack_run = slow
    app(["kaggle", "weights", "runs", "--out", "w"])


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path, number, status):
    "A command that is stopped ends with 128 plus the signal's number, a line, and no half of its output."
    place = foreign_place(tmp_path / "place")
    child, _ = begun(slow_weights, place)
    until = time.time() + 120
    while not (place / "begun").exists() and time.time() < until: time.sleep(.02)
    os.kill(child.pid, number)
    child.join(60)
    said = (tmp_path / "said.txt").read_text()
    assert child.exitcode == status and "what is finished is kept" in said and "Traceback" not in said, said
    assert sorted(p.name for p in place.iterdir()) == ["begun", "comp", "runs"]


def told(calls):
    "(status, said) of commands that may show a traceback."
    from typer.testing import CliRunner

    from hms_hbac.cli import app
    answers = [CliRunner().invoke(app, args) for args in calls]
    return [(a.exit_code, a.output) for a in answers]


def test_the_traceback_comes_with_debug(tmp_path):
    "Anywhere on the line, and only then."
    runs = str(tmp_path / "runs")
    packing = ["kaggle", "--debug", "weights", runs, "--out", str(tmp_path / "w")]
    calls = [["--debug", "runs", runs], ["runs", runs, "--debug"], packing, ["runs", runs]]
    *shown, silent = apart(told, calls)
    assert all(status == 1 and "Traceback" in said and "cure:" in said for status, said in shown)
    assert silent[0] == 1 and "Traceback" not in silent[1]
    shutil.rmtree(tmp_path)
