"Training kernels: a run that pauses, a second one that gets its output attached and finishes, two processes."
import os
import subprocess
from pathlib import Path

from hms_hbac.core import read_json
from hms_hbac.data.competition import Competition
from hms_hbac.data.recordings import prepare
from hms_hbac.kaggle.kernels import launch
from hms_hbac.kaggle.package import build_wheel
from hms_hbac.kaggle.rehearse import passed, rehearse


def test_training_pauses_and_goes_on(comp_dir, tmp_path):
    """A budget of a second stops after one update.

    A second run with the first's output attached finishes, and predicts."""
    wheel = tmp_path / "wheel"
    build_wheel(wheel, extra=())
    first = rehearse(
        comp_dir, None, ["train-panels"], out=tmp_path/"first", wheel=wheel, env={"HMS_TIME_BUDGET": "1s"}
    )
    assert passed(first), first.to_string()
    manifest = Path("runs/panels_twostage_4conf_b0/fold0/manifest.json")
    working = tmp_path / "first/train-panels/working"
    before = read_json(working / manifest)
    assert before["status"] == "paused" and 0 < before["updates"] < before["updates_planned"]
    text = (tmp_path / "first/train-panels/executed.ipynb").read_text()
    assert "1 of 1 runs are not finished: push again with --resume" in text
    second = rehearse(
        comp_dir,
        None,
        ["train-panels"],
        out=tmp_path/"second",
        wheel=wheel,
        form="old",
        attach={"hms-train-panels": working},
    )
    after = read_json(tmp_path / "second/train-panels/working" / manifest)
    assert (
        passed(second) and after["status"] == "finished" and after["updates"] == after["updates_planned"]
    ), second.to_string()
    text = (tmp_path / "second/train-panels/executed.ipynb").read_text()
    assert "goes on from" in text and "all runs are finished" in text
    # the attached output is as it was
    assert read_json(working / manifest) == before
    table = rehearse(
        comp_dir,
        tmp_path/"second/train-panels/working/runs",
        ["infer-panels"],
        out=tmp_path/"third",
        wheel=wheel,
    )
    assert passed(table), table.to_string()


def test_two_processes(comp_dir, tmp_path):
    """What a kernel starts on two GPUs, here on the CPU.

    Torchrun, one checkpoint, a pause on which both agree."""
    prepare(Competition(comp_dir), tmp_path / "cache", workers=1, progress=False)
    command = launch(["panels_b0", comp_dir, tmp_path / "runs", 0, tmp_path / "cache", "demo", 1], gpus=2)
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, CUDA_VISIBLE_DEVICES="")
    )
    manifest = read_json(tmp_path / "runs/panels_b0/fold0/manifest.json")
    assert done.returncode == 0 and (manifest["processes"], manifest["status"]) == (2, "paused"), done.stderr[
        -2000:
    ]
