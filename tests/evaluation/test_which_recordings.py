"""Which files `hms-hbac read` takes, under which names, and what it says of the others."""
import pytest

from hms_hbac.core import DataError, HmsError
from hms_hbac.evaluation.reading import annotated_path, check_place, recordings_of
from hms_hbac.evaluation.recording import reasons
from hms_hbac.inference.members import load_models
from hms_hbac.inference.outputs import report_row


@pytest.fixture
def folder(tmp_path):
    "Files of every kind: recordings, parts of them, hidden ones, others."
    place = tmp_path / "Daten von Müller"
    (place / "sub").mkdir(parents=True)
    (place / ".trash").mkdir()
    for name in ("a.edf", "B.EDF", "._a.edf", "c.edf.part", "d.vhdr", "d.eeg", "d.vmrk", "e_raw.fif",
                 "e_raw-1.fif", "f-1.fif", "notes.pdf", "list.txt", "sub/a.edf", "sub/empty.bdf", "no.dat",
                 ".trash/a.edf"):
        (place / name).write_bytes({"c.edf.part": b"0       X", "no.dat": b""}.get(name, b"some bytes"))
    return place


def names(found, folder):
    return [str(p.relative_to(folder)) for p in found.values()]


def test_a_folder(folder):
    "Hidden files, further parts of a FIF, and other files are left aside; an EDF is known by its bytes."
    found = recordings_of([folder])
    assert names(found, folder) == ["B.EDF", "a.edf", "c.edf.part", "d.vhdr", "e_raw.fif", "f-1.fif",
                                    "sub/a.edf", "sub/empty.bdf"]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("text", ["a.edf\n# no\n\nsub/a.edf\na.edf\n", "\ufeffa.edf\r\nsub/a.edf\r\n",
                                  '"a.edf"\n"sub/a.edf"\n', "sub/../a.edf\nsub/a.edf\n./a.edf\n"])
def test_a_list(text, folder):
    "As editors of several systems save it; a file that stands twice is read once."
    (folder / "list.txt").write_text(text, encoding="utf-8", newline="")
    found = recordings_of([folder / "list.txt", folder / "sub" / "a.edf"])
    assert [p.resolve() for p in found.values()] == [folder / "a.edf", folder / "sub/a.edf"]


@pytest.mark.parametrize("code", ["latin-1", "utf-16"])
def test_a_list_that_is_no_text(code, folder):
    (folder / "list.txt").write_text("Müller.edf", encoding=code)
    with pytest.raises(DataError, match=r"list\.txt: is no text in UTF-8") as e:
        recordings_of([folder / "list.txt"])
    assert e.value.cure == "save the list as UTF-8"


def test_out_is_a_file(folder):
    for out in (folder / "a.edf", folder / "a.edf" / "out"):
        with pytest.raises(DataError, match=r"a\.edf: is a file") as e: check_place(out, [])
        assert e.value.cure == "name a folder"


def test_no_such_device(tmp_path):
    "The advice was to name a folder of trained runs."
    import torch
    if torch.cuda.is_available(): pytest.skip("there is one")
    with pytest.raises(HmsError, match="no device 'cuda' here") as e: load_models(tmp_path, device="cuda")
    assert "cpu" in e.value.cure


def test_the_copy_of_a_download_ends_as_viewers_want_it(tmp_path):
    from types import SimpleNamespace

    from hms_hbac.data.edf import EdfFile
    source = EdfFile.__new__(EdfFile)
    source.header = SimpleNamespace(kind="BDF")
    for name, copy in (("a.bdf", "a_annotated.bdf"), ("A.EDF", "A_annotated.EDF"),
                       ("a.bdf.part", "a.bdf_annotated.bdf"), ("night", "night_annotated.bdf")):
        source.path = tmp_path / name
        assert annotated_path(SimpleNamespace(source=source), tmp_path).name == copy


def test_one_line_for_a_hundred_windows():
    rows = [report_row("eeg: all values are NaN", "raw", i, [f"{2 * i:.3f} s" for i in range(100)])
            for i in range(100)]
    assert reasons([report_row("lost", "old"), *rows]) == [
        "old: lost", "raw: eeg: all values are NaN (100 windows, 0.000 s to 198.000 s)"]
    assert reasons(rows[:1]) == ["raw: eeg: all values are NaN (0.000 s)"]
