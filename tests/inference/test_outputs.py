"Where a prediction is written: tried before any work, called by name when it cannot be, and never lost."

import os
import resource
import stat

import numpy as np
import pandas as pd
import pytest
from apart import apart

from hms_hbac.core import VOTES, SubmissionError
from hms_hbac.inference.ensemble import ensemble
from hms_hbac.inference.outputs import check_output, report_path, write_outputs, write_submission

FLAT = np.full((2, 6), 1 / 6)


@pytest.fixture
def place(tmp_path):
    "A folder with two submissions and a competition of two rows."
    (tmp_path / "comp").mkdir()
    (tmp_path / "comp" / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n1,11,1\n1,12,1\n")
    write_submission(["11", "12"], FLAT, tmp_path / "m.csv")
    write_submission(["11"], FLAT[:1], tmp_path / "n.csv")
    return tmp_path


def blend(place, out, members=("m.csv", "n.csv")):
    return ensemble({place / m: 1 for m in members}, out, place / "comp")


def test_each_output_has_its_own_report(place):
    assert blend(place, place / "a.csv") == 3 and blend(place, place / "b.csv", ["m.csv"]) == 0
    assert len(pd.read_csv(report_path(place / "a.csv"))) == 1
    assert len(pd.read_csv(report_path(place / "b.csv"))) == 0
    assert report_path("x/submission.csv").name == "prediction_report.csv"
    names = ("a.csv", "b.csv", "a.txt", "submission.csv", "submission.txt")
    assert len({report_path(n) for n in names}) == 5


def test_devices_are_written_to_and_links_followed(place, capfd):
    assert blend(place, "/dev/null") == 3
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and not os.path.exists(report_path("/dev/null"))
    (place / "real").mkdir()
    (place / "link.csv").symlink_to(place / "real" / "s.csv")  # to nowhere yet
    for _ in range(2):
        assert blend(place, place / "link.csv") == 3
        assert (place / "link.csv").is_symlink() and len(pd.read_csv(place / "real" / "s.csv")) == 2
    capfd.readouterr()
    assert blend(place, "/dev/stdout", ["m.csv"]) == 0
    assert capfd.readouterr().out.startswith("eeg_id," + ",".join(VOTES) + "\n11,")


@pytest.mark.parametrize(
    "out, fault",
    [
        (".", "is a folder"),
        ("a_prediction_report.csv", "is the name of a report"),
        ("m.csv", "is one of the inputs"),
        ("m.csv/s.csv", "Not a directory"),
        ("loop.csv", "symbolic links"),
        ("x" * 300, "File name too long"),
    ],
)
def test_refused_by_name(place, out, fault):
    (place / "loop.csv").symlink_to(place / "loop.csv")
    before = {p: p.read_bytes() for p in place.glob("*.csv") if p.is_file()}
    with pytest.raises(SubmissionError, match=fault):
        blend(place, place / out)
    assert {p: p.read_bytes() for p in place.glob("*.csv") if p.is_file()} == before


def test_a_pipe_without_a_reader_does_not_hang_a_member(place):
    os.mkfifo(place / "pipe.csv")
    assert ensemble({place / "m.csv": 1, place / "pipe.csv": 1}, place / "a.csv", place / "comp") == 3
    assert pd.read_csv(report_path(place / "a.csv")).reason.tolist() == ["is no file"]


def without_room(file):
    "What is said where no file may have more than a megabyte."
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(SubmissionError) as e: check_output(file, 50_000)
    return e.value.what


def test_no_room_is_seen_before_the_work_and_nothing_stays(tmp_path):
    assert apart(without_room, tmp_path / "s.csv") == "cannot be written (File too large)"
    assert list(tmp_path.iterdir()) == []
    assert check_output(tmp_path / "s.csv", 50_000) == tmp_path / "s.csv"


def test_computed_answers_are_kept_elsewhere(tmp_path, monkeypatch):
    "The place vanishes between the attempt and the end."
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SubmissionError, match="the answers are kept in"):
        write_outputs(["11", "12"], FLAT, [], tmp_path / "out" / "s.csv")
    (kept,) = (tmp_path / "kept").iterdir()
    assert pd.read_csv(kept).eeg_id.tolist() == [11, 12]
    (tmp_path / "kept" / kept.name).unlink()
    (tmp_path / "kept").rmdir()
    with pytest.raises(SubmissionError, match="make room and give the same command again"):
        write_outputs(["11", "12"], FLAT, [], tmp_path / "out" / "s.csv")
