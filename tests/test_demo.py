"""The README's path as a user walks it: whole commands, on a small competition.

The demo is a process as the user starts it; the commands after it are forked (see `apart`)."""
import re
import subprocess
import sys

import pandas as pd
import pytest
from apart import apart, command
from browser import chromium

from hms_hbac.core import VOTES
from hms_hbac.data.competition import Competition


def hms(*args):
    "(status, all that was said) of `hms-hbac ARGS`."
    return apart(command, *args)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    "The demo's folder. The seed is one whose seven patients have few recordings."
    folder = tmp_path_factory.mktemp("demo")
    sizes = ["--patients", "7", "--test-patients", "2", "--seed", "2", "--folds", "0", "--no-kernels"]
    done = subprocess.run([sys.executable, "-m", "hms_hbac", "demo", "--out", folder, *sizes],
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_demo_leaves_what_it_promises(out):
    said = (out / "stdout.txt").read_text()
    assert said.splitlines()[-1] == f"report      {out / 'report.html'}"
    assert "submission.csv (valid: one row per test row)" in said and "mean vote on held-out patients" in said
    assert re.search(r"^seconds=\d+ gap_closed=-?\d+\.\d\d$", said, re.M)
    assert "beats its better member" in said or "does NOT beat its better member" in said
    scores = pd.read_csv(out / "scores.csv", index_col="member")
    assert list(scores.index) == ["left_right_encoder", "left_right_long", "ensemble", "mean vote", "floor"]
    assert (scores.loc["floor"] < scores.loc["mean vote"]).all() and (
        scores.loc["floor"] < scores.loc["ensemble"]
    ).all()
    submission = pd.read_csv(out / "submission.csv")
    test = Competition(out / "competition").test
    assert submission.eeg_id.tolist() == test.eeg_id.tolist()
    assert submission[list(VOTES)].sum(axis=1).sub(1).abs().max() < 1e-6
    for member in ("left_right_encoder", "left_right_long"):
        files = {p.name for p in (out / "runs" / member / "fold0").iterdir()}
        assert {"recipe.yaml", "model.safetensors", "history.csv", "oof.parquet", "manifest.json"} <= files


def test_the_demos_report_in_a_browser(out):
    address = (out / "report.html").as_uri()
    names = "[...document.querySelectorAll('#leaderboard tbody tr')].map(r => r.cells[0].textContent)"
    with chromium() as tab:
        for width in (390, 1400):
            tab.show(address, width)
            assert tab.run("document.scrollingElement.scrollWidth") <= width
            assert tab.run(
                "document.images.length > 5 && [...document.images].every(i => i.naturalWidth > 0 && i.alt)"
            )
        click = "document.querySelectorAll('#leaderboard thead th')[0].querySelector('button').click()"
        rising = ["left_right_encoder", "left_right_long"]
        for expected in (rising, rising[::-1]):
            tab.run(click)
            assert tab.run(names) == expected
        assert tab.complaints() == []
        assert {u for u in tab.requests() if not u.startswith("data:")} == {address}


def test_commands_on_the_demos_folders(out):
    data, runs = out / "competition", out / "runs"
    assert hms("check", data)[0] == 0
    status, stdout = hms("runs", runs)
    assert status == 0 and "left_right_encoder" in stdout and "left_right_long" in stdout
    again = out / "again.csv"
    assert hms("predict", runs / "left_right_encoder", "--data", data, "--out", again)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(again), pd.read_csv(out / "left_right_encoder.csv"))
    status, stdout = hms(
        "ensemble",
        f"{out}/left_right_encoder.csv=1",
        f"{out}/left_right_long.csv=3",
        "--data",
        data,
        "--out",
        out/"blend.csv",
    )
    assert status == 0 and hms("check-submission", out / "blend.csv", "--data", data)[0] == 0
    status, stdout = hms("fit-weights", runs, "--out", out / "weights.yaml")
    assert status == 0 and "chosen: mean" in stdout and (out / "weights.yaml").exists()
    assert (out / "report.html").stat().st_size > 100_000
    a, b, c = (
        pd.read_csv(out/f)[list(VOTES)].to_numpy()
        for f in ("left_right_encoder.csv", "left_right_long.csv", "blend.csv")
    )
    assert abs(.25 * a + .75 * b - c).max() < 1e-6


def test_a_named_fault_is_one_message_and_status_1(out):
    status, said = hms("check-submission", out / "scores.csv", "--data", out / "competition")
    assert status == 1 and "Traceback" not in said
    status, said = hms("train", "no_such_recipe", "--data", out / "competition")
    assert status == 1 and "no such recipe" in said and "cure:" in said and "Traceback" not in said


def test_the_trained_runs_answer_the_real_sample(out, real):
    "One real test row: one valid row, and nothing degraded (status 0)."
    status, said = hms(
        "predict",
        out/"runs"/"left_right_encoder",
        out/"runs"/"left_right_long",
        "--data",
        real/"competition",
        "--out",
        out/"real.csv",
    )
    assert status == 0, said
    table = pd.read_csv(out / "real.csv")
    assert table.eeg_id.tolist() == [3911565283] and abs(table[list(VOTES)].to_numpy().sum() - 1) < 1e-6
    assert hms("check-submission", out / "real.csv", "--data", real / "competition")[0] == 0


def test_one_list_of_members():
    "The command line imports late, so it repeats the demo's members; they must not drift apart."
    import inspect

    from hms_hbac import cli, demo
    assert inspect.signature(cli.demo).parameters["members"].default == ",".join(demo.MEMBERS)
