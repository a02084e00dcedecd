"""Commands from the outside, against what a hostile user and an unlucky machine bring: exit 0, 1, 2 or 3,
a message and never a traceback, and no file outside the output changes."""
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hms_hbac.cli import app
from hms_hbac.core import read_json, write_json
from hms_hbac.kaggle.console import CURES, fault
from hms_hbac.kaggle.package import verify
from hms_hbac.models.recipe import load_recipe, save_recipe

FEW = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def hms(*args):
    "(exit status, all that was said) of a command in this process; it must not end with a traceback."
    got = CliRunner().invoke(app, [str(a) for a in args])
    assert got.exception is None or isinstance(got.exception, SystemExit), repr(got.exception)
    assert "Traceback" not in got.output and got.exit_code in (0, 1, 2, 3), (got.exit_code, got.output)
    if got.exit_code == 1 and "check" not in args[0]:
        assert "error:" in got.output or "cure:" in got.output, got.output
    return got.exit_code, got.output


def snapshot(folder):
    "Names, kinds and contents under a folder."
    found = {}
    for p in sorted(Path(folder).rglob("*")):
        name = p.relative_to(folder).as_posix()
        found[name] = os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else "folder"
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A working folder with a run's folder, whose model is none; everything in it is foreign to the commands."
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/panels_b0/fold0"
    save_recipe(load_recipe("panels_b0", "demo"), run / "recipe.yaml")
    (run / "model.safetensors").write_bytes(b"no model")
    write_json(run / "manifest.json", {"status": "finished", "recipe": "panels_b0", "fold": 0})
    (tmp_path / "comp").mkdir()
    return tmp_path


# one by one: what was seen to end in a traceback

def loop(path):
    path.symlink_to(path.name)
    return path


@pytest.mark.parametrize("args", [
    ("runs", "loop"), ("report", "loop", "--out", "new.html"), ("check", "loop"), ("recipes", "loop"),
    ("predict", "loop", "--data", "comp", "--out", "new.csv"), ("kaggle", "weights", "loop", "--out", "w"),
    ("kaggle", "check", "loop"), ("kaggle", "push", "loop", "--dry-run"),
    ("fit-weights", "loop", "--out", "w.yaml"),
    ("check-submission", "loop", "--data", "comp"), ("ensemble", "loop", "--out", "new.csv"),
    ("train", "loop", "--data", "comp", "--runs", "loop")])
def test_links_that_lead_to_themselves(place, args):
    loop(place / "loop")
    before = snapshot(place)
    status, said = hms(*args)
    assert status in (1, 2), said
    assert {k: v for k, v in snapshot(place).items() if k in before} == before


@pytest.mark.parametrize("override", ["a=[1", "=", "view=!!python/name:os.system", "seed=-1",
                                      f"seed={'9' * 23}",
                                      "view=-'a'", "view=" + "-" * 3000 + "1",
                                      "view=9**9**9", "batch_size=1e308",
                                      "view=" + "(" * 400 + ")" * 400, "view=Panels(steps=0)",
                                      "stages=&a [*a]"])
def test_overrides_that_are_none(place, override):
    before = snapshot(place)
    status, said = hms("train", "panels_b0", "--scale", "demo", "--data", "comp", "--set", override)
    assert status == 1 and len(said) < 5000, said[:500]
    assert snapshot(place) == before


@pytest.mark.parametrize("text", ["", "[]", "name: [", "a: &a [*a, *a]\nb: *a",
                                  "name: ../../../escaped\nview: Panels()",
                                  "!!python/object:os.system {}", "\x00",
                                  "name: x\nview: Panels()\nstages: 7",
                                  "a: " + "[" * 3000 + "]" * 3000])
def test_recipes_that_are_none(place, text):
    (place / "mine.yaml").write_text(text)
    (place / "folder.yaml").mkdir()
    before = snapshot(place)
    for name in ("mine.yaml", "folder.yaml"):
        status, said = hms("recipes", name)
        assert status == 1 and "error:" in said, said
        assert hms("train", name, "--data", "comp", "--runs", "new")[0] == 1
    assert snapshot(place) == before and not (place.parent.parent / "escaped").exists()


def test_nothing_foreign_is_lost_by_a_mistyped_output(place):
    "`--out .` and its like, for every command that fills a folder; the details are in tests/kaggle."
    before = snapshot(place)
    for out in (".", "runs", "runs/panels_b0/fold0", "comp/.."):
        assert hms("kaggle", "weights", "runs", "--out", out)[0] == 1
        assert hms("kaggle", "rehearse", "--data", "comp", "--runs", "runs", "--out", out)[0] == 1
        assert hms("kaggle", "wheel", "--alone", "--out", out)[0] == 1
    assert snapshot(place) == before


# whatever is thrown at them

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "status",
        "recipe",
        "fold",
        "kl",
        "kl_10",
        "seed",
        "updates",
        "updates_planned",
        "wall_seconds",
        "notes",
        "versions",
        "prior",
        "samples_per_s",
        "device_name",
        "train_rows",
    ]
)
EXPRESSIONS = st.recursive(
    st.sampled_from(["Panels()", "1", "'a'", "-1", "Resize(Panels(), 9, 9)", "VStack(Panels())"]),
    lambda x: st.tuples(
        st.sampled_from(
            [
                "-{}",
                "({})",
                "{0}+{0}",
                "{0}*{0}",
                "Normalize({})",
                "{0}**{0}",
                "[{}]",
                "{0}.x",
                "Grid([{0}])",
                "f({})",
            ]
        ),
        x,
    ).map(lambda t: t[0].format(t[1])),
    max_leaves=4,
)


@FEW
@given(st.sampled_from(["view", "loss", "seed", "batch_size", "net.dropout", "stages", "tta", "name"]),
       EXPRESSIONS | st.text(max_size=20))
def test_random_overrides(tmp_path_factory, key, value):
    place = tmp_path_factory.mktemp("overrides")
    (place / "comp").mkdir()
    before = snapshot(place)
    status, said = hms(
        "train",
        "panels_b0",
        "--scale",
        "demo",
        "--data",
        place/"comp",
        "--runs",
        place/"runs",
        "--set",
        f"{key}={value}",
    )
    assert status in (1, 2) and snapshot(place) == before


@FEW
@given(st.dictionaries(KEYS, JSON, max_size=6) | JSON, st.binary(max_size=40), st.booleans())
def test_random_manifests_and_models(tmp_path_factory, manifest, model, with_recipe):
    "A run's folder with anything in it: the commands that read runs say so, and leave it as it was."
    place = tmp_path_factory.mktemp("manifests")
    run = place / "runs/panels_b0/fold0"
    write_json(run / "manifest.json", manifest)
    (run / "model.safetensors").write_bytes(model)
    (run / "oof.parquet").write_bytes(model)
    if with_recipe: save_recipe(load_recipe("panels_b0", "demo"), run / "recipe.yaml")
    (place / "comp").mkdir()
    before = snapshot(place)
    hms("runs", place / "runs")
    hms("report", place / "runs", "--out", place / "out.html")
    hms("predict", place / "runs", "--data", place / "comp", "--out", place / "out.csv")
    hms("kaggle", "weights", place / "runs", "--out", place / "out")
    assert {k: v for k, v in snapshot(place).items() if k in before} == before
    assert {k.partition("/")[0].partition(".")[0] for k in snapshot(place)} <= {
        "runs",
        "comp",
        "out",
        "out_prediction_report",
        "prediction_report",
    }


# the disk is full, the folder is read-only, a signal comes

def limited(size, *args):
    "A command in a process whose files may not grow beyond `size` bytes: (status, stderr)."
    code = ("import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\n"
            "from hms_hbac.cli import app\napp()")
    done = subprocess.run(
        [sys.executable, "-c", code, str(size), *map(str, args)], capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_a_full_disk_and_then_room(place):
    """`weights` at several points of its writing.

    A named fault, nothing half; then the same command gives the same bytes."""
    (place / "runs/panels_b0/fold0/model.safetensors").write_bytes(bytes(range(256)) * 400)
    args = ("kaggle", "weights", place / "runs", "--out", place / "w")
    for size in (100, 3000, 50_000):
        status, said = limited(size, *args)
        assert status == 1 and "cure:" in said and "Traceback" not in said, said
        assert not (place / "w").exists() and not [p for p in place.iterdir() if p.name.startswith(".")]
    assert hms(*args)[0] == 0 and verify(place / "w") == []
    first = snapshot(place / "w")
    assert hms(*args)[0] == 0
    again = snapshot(place / "w")
    assert {k: v for k, v in first.items() if k != "manifest.json"} == {
        k: v for k, v in again.items() if k != "manifest.json"
    }
    sums = [read_json(place / "w/manifest.json")["sha256"]]
    # full once more: what lies there stays
    limited(3000, *args)
    assert verify(place / "w") == [] and sums == [read_json(place / "w/manifest.json")["sha256"]]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ELOOP, errno.EFBIG])
def test_each_fault_of_the_system_has_its_cure(number):
    assert CURES[number] in fault(OSError(number, os.strerror(number), "out.csv"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(place):
    place.chmod(0o500)
    try: assert hms("kaggle", "weights", place / "runs", "--out", place / "w")[0] == 1
    finally: place.chmod(0o700)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(place, number, status):
    "A command that is stopped ends with 128 plus the signal's number, a line, and no half of its output."
    code = ("import sys, time\nfrom pathlib import Path\nfrom hms_hbac.kaggle import package\n"
            "from hms_hbac.cli import app\ndef slow(*a): Path('begun').touch(); time.sleep(60)\n"
            "package.pack_run = slow\napp(['kaggle', 'weights', 'runs', '--out', 'w'])")
    child = subprocess.Popen([sys.executable, "-c", code], cwd=place, stderr=subprocess.PIPE, text=True)
    until = time.time() + 120
    while not (place / "begun").exists() and time.time() < until: time.sleep(.05)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == status and "what is finished is kept" in said and "Traceback" not in said, said
    assert sorted(p.name for p in place.iterdir()) == ["begun", "comp", "runs"]


def test_the_traceback_comes_with_debug(place):
    "Anywhere on the line, and only then."
    shutil.rmtree(place / "runs")
    packing = ("kaggle", "--debug", "weights", "runs", "--out", "w")
    for args in (("--debug", "runs", "runs"), ("runs", "runs", "--debug"), packing):
        got = CliRunner().invoke(app, [str(a) for a in args])
        assert got.exit_code == 1 and "Traceback" in got.output and "cure:" in got.output
    assert "Traceback" not in hms("runs", "runs")[1]
