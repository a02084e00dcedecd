"""submit-ensemble's members fail in every way, and a valid submission arrives.

The first cell of every kernel takes the right wheel or none."""
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from hms_hbac.core import VOTES, write_json
from hms_hbac.inference.ensemble import check_submission
from hms_hbac.kaggle.members import run_members, verdict
from hms_hbac.kaggle.package import sha256, write_manifest
from hms_hbac.kaggle.place import make_environment, make_image

KERNELS = Path(__file__).resolve().parents[2] / "kaggle_kernels"
PRIOR = [.1, .1, .1, .1, .1, .5]


@pytest.fixture(scope="module")
def comp(tmp_path_factory):
    "Five test rows; the training votes give the prior."
    comp = tmp_path_factory.mktemp("members") / "comp"
    for kind in ("eegs", "spectrograms"):
        for split in ("train", "test"): (comp / f"{split}_{kind}").mkdir(parents=True)
    (comp/"test.csv").write_text(
        "spectrogram_id,eeg_id,patient_id\n" + "".join(f"{10 + i},{i},1\n" for i in range(1, 6))
    )
    pd.DataFrame([[1, 1, 1, 1, 1, 5]], columns=list(VOTES)).to_csv(comp / "train.csv", index=False)
    return comp


def member(comp, p, then=""):
    "A notebook that writes the probabilities `p` for every row, and does something more."
    code = ("import os, sys, time\nimport pandas as pd\n"
            f"t = pd.read_csv({str(comp)!r} + '/test.csv')[['eeg_id']]\n"
            f"for v, x in zip({VOTES}, {p}): t[v] = x\n{then}\nt.to_csv('submission.csv', index=False)")
    return {
        "cells": [
            {"cell_type": "markdown", "source": ["# member"]},
            {"cell_type": "code", "source": code.splitlines(keepends=True)},
        ]
    }


A, B = [.5, .1, .1, .1, .1, .1], [.1, .5, .1, .1, .1, .1]
FAULTS = {
    "raises": ("raise ValueError('no such recipe')", "cell 1: ValueError: no such recipe"),
    "hangs": ("while True: time.sleep(1)", "ran past its limit of 12 s and was killed"),
    "memory": ("os.kill(os.getpid(), 9)", "killed by signal 9, most likely out of memory"),
    "rows": ("t = t.iloc[:3]", "has no row"),
    "nan": ("t.loc[2, 'lpd_vote'] = None", "not a finite number"),
    "no_file": ("t.to_csv = lambda *a, **k: None", "wrote no submission.csv"),
    "prior": (
        "pd.DataFrame({'row': range(1, 6), 'used': 'prior'}).to_csv('prediction_report.csv')",
        "every row is the prior",
    ),
    "sums": ("t['lpd_vote'] = .9", "sums to"),
}


@pytest.fixture(scope="module")
def notebooks(comp):
    folder = comp.parent / "notebooks"
    for name, p in (("a", A), ("b", B)): write_json(folder / f"{name}.ipynb", member(comp, p))
    for name, (then, _) in FAULTS.items():
        write_json(folder/f"{name}.ipynb", member(comp, [0.2, 0.2, 0.2, 0.2, 0.1, 0.1], then))
    return folder


def probabilities(file): return pd.read_csv(file)[list(VOTES)].to_numpy()


def test_every_fault_of_a_member(comp, notebooks, tmp_path):
    """Two members answer, the others fail each in its way.

    Theirs is the blend, weights brought to sum 1, and the table says who failed and why."""
    members = {"a": .3, **dict.fromkeys(FAULTS, .05), "missing": .1, "b": .1}
    table = run_members(
        members, notebooks, tmp_path/"submission.csv", {"hangs": "12s"}, "10m", comp, tmp_path/"work"
    )
    assert check_submission(tmp_path / "submission.csv", comp) == []
    np.testing.assert_allclose(
        probabilities(tmp_path/"submission.csv"),
        np.tile(0.75 * np.array(A) + 0.25 * np.array(B), (5, 1)),
        atol=1e-12,
    )
    table = table.set_index("member")
    for name, (_, words) in FAULTS.items():
        assert table.state[name].startswith("FAILED") and words in table.state[name], table.state[name]
    assert "no notebook missing.ipynb" in table.state["missing"]
    assert table.share[["a", "b"]].tolist() == pytest.approx(
        [0.75, 0.25]
    ) and table.share.sum() == pytest.approx(1)
    assert "9 of 11 members failed" in verdict(table)


def test_all_members_fail(comp, notebooks, tmp_path, capsys):
    table = run_members(
        {"raises": 0.5, "missing": 0.5},
        notebooks,
        tmp_path/"submission.csv",
        {},
        "10m",
        comp,
        tmp_path/"work",
    )
    assert check_submission(tmp_path / "submission.csv", comp) == []
    np.testing.assert_allclose(probabilities(tmp_path / "submission.csv"), [PRIOR] * 5)
    assert (
        "ALL 2 MEMBERS FAILED" in verdict(table)
        and "do not submit" in verdict(table)
        and table.share.sum() == 0
    )


def test_a_changed_notebook_is_refused(comp, notebooks, tmp_path):
    folder = shutil.copytree(notebooks, tmp_path / "notebooks")
    write_manifest(folder)
    with open(folder / "b.ipynb", "a") as f: f.write(" ")
    table = run_members({"b": 1}, folder, tmp_path / "submission.csv", {}, "10m", comp, tmp_path / "work")
    assert "sha256" in table.state[0] and "refused" in table.state[0]


def test_no_time_left(comp, notebooks, tmp_path):
    table = run_members({"a": 1}, notebooks, tmp_path / "submission.csv", {}, 0, comp, tmp_path / "work")
    assert "no time was left" in table.state[0] and check_submission(tmp_path / "submission.csv", comp) == []


def test_killed_near_the_limit(comp, notebooks, tmp_path):
    """A run that is killed while its second member works has already written the first one's answer,
    and leaves no process behind."""
    places = f"{str(notebooks)!r}, 'submission.csv', None, '10m', {str(comp)!r}"
    call = f"run_members(dict(a=.5, hangs=.5), {places})"
    code = f"from hms_hbac.kaggle.members import run_members; {call}"
    with open(tmp_path/"log", "w") as log:
        driver = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=log, stderr=log)
    file, until = tmp_path / "submission.csv", time.time() + 120
    while "a: ok" not in (tmp_path / "log").read_text() and time.time() < until:
        # valid from the first moment on
        if file.exists() and time.time() % 1 < .1: assert check_submission(file, comp) == []
        time.sleep(.05)
    while not (tmp_path / "members/hangs/log.txt").exists() and time.time() < until: time.sleep(.05)
    time.sleep(1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert check_submission(file, comp) == []
    np.testing.assert_allclose(probabilities(file), [A] * 5)
    def left():
        return [
            p for p in psutil.process_iter(["cmdline"]) if str(notebooks) in " ".join(p.info["cmdline"] or ())
        ]
    while left() and time.time() < until: time.sleep(.2)
    assert left() == []


# the first cell

CELL = next(
    "".join(c["source"])
    for c in json.loads((KERNELS/"infer-panels/infer-panels.ipynb").read_text())["cells"]
    if c["cell_type"] == "code"
)


def test_every_kernel_begins_with_the_same_cell():
    for p in KERNELS.glob("*/*.ipynb"):
        nb = json.loads(p.read_text())
        code = [c for c in nb["cells"] if c["cell_type"] == "code"]
        assert (
            "".join(code[0]["source"]) == CELL
            and len(nb["cells"]) < 12
            and nb["metadata"]["kernelspec"]["name"] == "python3"
        )
        assert not any(c["outputs"] or c["execution_count"] for c in code)


@pytest.fixture(scope="module")
def image(tmp_path_factory): return make_image(tmp_path_factory.mktemp("image") / "image")


def dataset(folder, version):
    "A wheel of nothing but a version, with its manifest."
    import zipfile
    folder.mkdir(parents=True)
    info = f"hms_hbac-{version}.dist-info"
    with zipfile.ZipFile(folder / f"hms_hbac-{version}-py3-none-any.whl", "w") as z:
        z.writestr("hms_hbac/__init__.py", f"__version__ = '{version}'\n")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: hms_hbac\nVersion: {version}\n")
        z.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        z.writestr(f"{info}/RECORD", "")
    write_manifest(folder)
    return folder


def first_cell(root, image):
    "Run the first cell in a fresh environment: (status, what it printed)."
    python = make_environment(root / "venv", image, guard=True)
    env = {
        "PATH": f"{root}/venv/bin:/usr/bin:/bin",
        "HOME": str(root),
        "HMS_KAGGLE_ROOT": str(root),
        "PYTHONNOUSERSITE": "1",
    }
    done = subprocess.run(
        [python, "-c", CELL + "\nprint('FROM', hms_hbac.__file__)"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mount", ["hms-hbac-wheel", "datasets/AnnSmith/hms-hbac-wheel"])
def test_the_wheel_is_found_in_both_mount_forms(tmp_path, image, mount):
    folder = dataset(tmp_path / "input" / mount, "1.2.0")
    code, said = first_cell(tmp_path, image)
    assert code == 0 and "hms_hbac 1.2.0" in said and sha256(next(folder.glob("*.whl"))) in said
    assert f"FROM {tmp_path / 'venv'}" in said


def test_the_newest_of_two_versions(tmp_path, image):
    dataset(tmp_path / "input/hms-hbac-wheel", "1.9.0")
    dataset(tmp_path / "input/datasets/ann/hms-hbac-wheel-new", "1.10.0")
    code, said = first_cell(tmp_path, image)
    assert (
        code == 0
        and "2 wheels are attached, the newest is used: hms_hbac-1.10.0" in said
        and "hms_hbac 1.10.0" in said
    )


def test_a_wheel_that_is_not_its_manifest_is_refused(tmp_path, image):
    folder = dataset(tmp_path / "input/hms-hbac-wheel", "1.2.0")
    with open(next(folder.glob("*.whl")), "ab") as f: f.write(b"\0")
    code, said = first_cell(tmp_path, image)
    assert (
        code != 0
        and "is refused: its sha256" in said
        and not list(tmp_path.glob("venv/lib/*/site-packages/hms_hbac"))
    )
    shutil.rmtree(tmp_path / "input")
    (tmp_path / "input").mkdir()
    shutil.rmtree(tmp_path / "venv")
    code, said = first_cell(tmp_path, image)
    assert code != 0 and "attach the dataset hms-hbac-wheel" in said
