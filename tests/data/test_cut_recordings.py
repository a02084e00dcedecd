"""Files that were cut: what is there is read, and said; the rest is refused with a cure that helps."""
import gzip

import numpy as np
import pytest

from hms_hbac.core import EEG_RATE, ELECTRODES, DataError
from hms_hbac.data.stream import open_recording

SECONDS = 120


@pytest.fixture(scope="module")
def eeg():
    "Two minutes of slow noise, (19, 24000) µV."
    x = np.cumsum(np.random.default_rng(0).standard_normal((19, SECONDS * EEG_RATE)), 1)
    return x - x.mean(1, keepdims=True)


@pytest.fixture(scope="module")
def whole(eeg, tmp_path_factory):
    "The bytes of an EDF+, a BDF+, an EDF+D without a pause, and of a FIF file."
    import edfio
    mne = pytest.importorskip("mne")
    folder, out = tmp_path_factory.mktemp("whole"), {}
    for kind, one, file in (("edf", edfio.EdfSignal, edfio.Edf), ("bdf", edfio.BdfSignal, edfio.Bdf)):
        signals = [one(x, EEG_RATE, label=e, physical_dimension="uV", physical_range=(-3200, 3200))
                   for e, x in zip(ELECTRODES, eeg, strict=True)]
        file(signals, annotations=[edfio.EdfAnnotation(1, None, "note")]).write(folder / f"a.{kind}")
        out[kind] = (folder / f"a.{kind}").read_bytes()
    out["paused"] = out["edf"][:192] + b"EDF+D" + out["edf"][197:]
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(list(ELECTRODES), EEG_RATE, "eeg"), verbose="ERROR")
    raw.save(folder / "a_raw.fif", verbose="ERROR")
    return out | {"fif": (folder / "a_raw.fif").read_bytes()}


def parts(data):
    "Bytes of an EDF's header and of a record."
    head = 256 * (int(data[252:256]) + 1)
    return head, (len(data) - head) // int(data[236:244])


def told(data, records):
    "The same with another number of records in the header."
    return data[:236] + str(records).encode().ljust(8) + data[244:]


CUTS = {                                            # what is done to the bytes; seconds there; what is said
    "in the middle": (lambda d, h, r: d[:h + 60 * r + r // 2], 60, "cut: 60 of 120 s"),
    "a few bytes short": (lambda d, h, r: d[:-3], 119, "cut: 119 of 120 s"),
    "more announced": (lambda d, h, r: told(d, 500), 120, "cut: 120 of 500 s"),
    "number unknown": (lambda d, h, r: told(d, -1), 120, ""),
    "number unknown and cut": (lambda d, h, r: told(d, -1)[:h + 60 * r + 9], 60, "ends within a record"),
    "zeros at the end": (lambda d, h, r: d[:h + 80 * r] + bytes(40 * r), 120, ""),
}


@pytest.mark.parametrize("name", ["a.edf", "a.edf.part", "night", "a.EDF.crdownload"])
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("kind", ["edf", "bdf", "paused"])
def test_what_is_there_is_read_whatever_the_file_is_called(kind, how, name, whole, eeg, tmp_path):
    make, seconds, said = CUTS[how]
    (tmp_path / name).write_bytes(make(whole[kind], *parts(whole[kind])))
    stream = open_recording(tmp_path / name)
    assert stream.seconds == seconds and any(said in f for f in stream.flags)
    assert np.abs(stream.read(0, 50 * EEG_RATE)[:19] - eeg[:, :50 * EEG_RATE]).max() < .1
    if kind == "paused" and how == "zeros at the end":
        assert stream.flags[0].startswith("40 records do not tell their time")


def test_a_hole_of_zeros_in_an_edf_d_is_no_pause(whole, eeg, tmp_path):
    head, record = parts(whole["paused"])
    data = bytearray(whole["paused"])
    data[head + 40 * record:head + 50 * record] = bytes(10 * record)
    (tmp_path / "a.edf").write_bytes(data)
    x = open_recording(tmp_path / "a.edf").read(0, SECONDS * EEG_RATE)[:19]
    assert np.abs(np.delete(x - eeg, np.s_[39 * EEG_RATE:51 * EEG_RATE], 1)).max() < .1


def test_a_part_of_a_recording_begins_when_its_first_record_says(whole, eeg, tmp_path):
    "Programs that save a part keep the header's time; the records begin an hour later."
    from hms_hbac.data.annotations import Event, annotate
    from hms_hbac.data.edf import EdfFile
    head, record = parts(whole["paused"])
    data = bytearray(whole["paused"])
    for k in range(SECONDS):
        at = head + k * record + 2 * EEG_RATE * len(ELECTRODES)
        data[at:at + record - 2 * EEG_RATE * len(ELECTRODES)] = bytes(record - 2 * EEG_RATE * len(ELECTRODES))
        data[at:at + 8] = f"+{3600 + k}".encode() + b"\x14\x14\0"
    (tmp_path / "a.edf").write_bytes(data)
    late = EdfFile(tmp_path / "a.edf")
    there = EdfFile(write(tmp_path / "b.edf", whole["edf"]))
    assert (late.about()["start"] - there.about()["start"]).total_seconds() == late.begin == 3600
    copy = annotate(tmp_path / "a.edf", tmp_path / "c.edf", [Event(90.0, 5.0, "seizure")])
    assert b"+3690.000\x155.000\x14seizure" in copy.read_bytes()
    assert EdfFile(copy).notes() == [(90.0, 5.0, "seizure")]
    assert open_recording(copy).flags == open_recording(tmp_path / "a.edf").flags == ["missing channel EKG"]


def write(path, data):
    path.write_bytes(data)
    return path


REFUSED = {
    "nothing": (lambda d, h, r: b"", "is empty"), "100 bytes": (lambda d, h, r: d[:100], "within its header"),
    "half a header": (lambda d, h, r: d[:h // 2], "within its header"),
    "the header": (lambda d, h, r: d[:h], "no whole record"),
    "30 s": (lambda d, h, r: d[:h + 30 * r], "cut: only 30 s are there"),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("kind", ["edf", "bdf", "paused"])
def test_what_leaves_nothing_to_read_is_refused(kind, how, whole, tmp_path):
    make, what = REFUSED[how]
    (tmp_path / "a.edf").write_bytes(make(whole[kind], *parts(whole[kind])))
    with pytest.raises(DataError, match=what) as e: open_recording(tmp_path / "a.edf")
    assert e.value.cure == "copy the file again" and "a.edf" in str(e.value)


@pytest.mark.parametrize("share, seconds", [(.5, 59), (.75, 89), (.999, 119)])
def test_fif(share, seconds, whole, eeg, tmp_path):
    (tmp_path / "a_raw.fif").write_bytes(whole["fif"][:int(share * len(whole["fif"]))])
    stream = open_recording(tmp_path / "a_raw.fif")
    assert abs(stream.seconds - seconds) <= 1 and "its end is missing: the file was cut" in stream.flags
    assert np.abs(stream.read(0, stream.samples)[:19] - eeg[:, :stream.samples]).max() < .1


def test_fif_whose_directory_lies_beyond_its_end(whole, tmp_path):
    "As acquisition programs write them: the second tag points to it."
    data = bytearray(whole["fif"])
    data[52:56] = (len(data) + 1000).to_bytes(4, "big")
    (tmp_path / "a_raw.fif").write_bytes(data)
    assert "its end is missing: the file was cut" in open_recording(tmp_path / "a_raw.fif").flags


def test_a_file_that_is_broken_in_the_middle_is_named(whole, tmp_path):
    mne = pytest.importorskip("mne")
    (tmp_path / "a_raw.fif").write_bytes(whole["fif"])
    stream, good = open_recording(tmp_path / "a_raw.fif"), mne.io.BaseRaw.get_data
    def broken(raw, picks, start, stop, **how):
        if start <= 12_000 < stop: raise ValueError("cannot reshape array of size 5084")
        return good(raw, picks, start, stop, **how)
    stream.source.raw.get_data = broken.__get__(stream.source.raw)
    with pytest.raises(DataError, match=r"a_raw\.fif: cannot be read between") as e: stream.read(0, 24_000)
    assert e.value.cure == "copy the file again"


def test_fif_of_which_nothing_can_be_read(whole, tmp_path):
    for n in (10, 1000):
        (tmp_path / "a_raw.fif").write_bytes(whole["fif"][:n])
        with pytest.raises(DataError, match=r"a_raw\.fif") as e: open_recording(tmp_path / "a_raw.fif")
        assert e.value.cure.startswith("copy the file again")
    (tmp_path / "b_raw.fif.gz").write_bytes(gzip.compress(whole["fif"])[:-5000])
    with pytest.raises(DataError, match=r"b_raw\.fif\.gz") as e: open_recording(tmp_path / "b_raw.fif.gz")
    assert "gzip -dc b_raw.fif.gz > part.fif" in e.value.cure


def brainvision(path, x, points=None, marker=0, orientation="MULTIPLEXED", cut=None, said="end"):
    "The three files of a BrainVision recording, its numbers cut to `cut` bytes."
    data = np.round(x / .1).astype("<i2")
    data = (data.T if orientation == "MULTIPLEXED" else data).tobytes()
    path.with_suffix(".eeg").write_bytes(data[:cut])
    marks = f"Mk2=Comment,{said},{marker},400,0\n" if marker else ""
    path.with_suffix(".vmrk").write_text(
        f"Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile={path.stem}.eeg\n"
        f"[Marker Infos]\nMk1=New Segment,,1,1,0,20240101000000000000\n{marks}")
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\n"
        f"DataOrientation={orientation}\nNumberOfChannels=19\nSamplingInterval=5000\n"
        + (f"DataPoints={points}\n" if points else "")
        + "[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\n"
        + "\n".join(f"Ch{i + 1}={e},,0.1,µV" for i, e in enumerate(ELECTRODES)), encoding="utf-8")
    return path


@pytest.mark.parametrize("told, said", [(dict(points=24_000), "cut: 60 of 120 s are there and read"),
                                        (dict(marker=23_000), "cut: markers up to 115 s, 60 s are there"),
                                        (dict(cut=12_000 * 38 + 5), "ends within a sample")])
def test_brainvision(told, said, eeg, tmp_path):
    pytest.importorskip("mne")
    stream = open_recording(brainvision(tmp_path / "a.vhdr", eeg, **{"cut": 12_000 * 38} | told))
    assert stream.seconds == 60 and any(f.startswith(said) for f in stream.flags)
    assert np.abs(stream.read(0, 12_000)[:19] - eeg[:, :12_000]).max() < .1


@pytest.mark.parametrize("told", [dict(points=24_000, cut=-38), dict(marker=23_000, cut=12_000 * 38),
                                  dict(cut=-3)])
def test_brainvision_channel_after_channel(told, eeg, tmp_path):
    "Whole it is read; cut, every channel but the first would be taken from the wrong place."
    pytest.importorskip("mne")
    path = brainvision(tmp_path / "a.vhdr", eeg, orientation="VECTORIZED", points=24_000)
    assert np.abs(open_recording(path).read(0, 24_000)[:19] - eeg).max() < .1
    with pytest.raises(DataError, match="was cut") as e:
        open_recording(brainvision(path, eeg, orientation="VECTORIZED", **told))
    assert e.value.cure == "copy a.eeg again"


def test_brainvision_comments_are_marks(eeg, tmp_path):
    "MNE puts `Comment/` before what was written."
    pytest.importorskip("mne")
    stream = open_recording(brainvision(tmp_path / "a.vhdr", eeg, marker=2001, said="BAD_move"))
    assert [m[:2] for m in stream.marks] == [(10, 12)] and "1 stretch is marked as bad, 2 s" in stream.flags


def test_brainvision_in_parts(eeg, tmp_path):
    pytest.importorskip("mne")
    path = brainvision(tmp_path / "a.vhdr", eeg)
    path.with_suffix(".vmrk").unlink()
    assert "its markers are not there: a.vmrk" in open_recording(path).flags
    header = path.read_text()
    path.unlink()
    with pytest.raises(DataError) as e: open_recording(tmp_path / "a.eeg")
    assert "copy a.vhdr" in e.value.cure
    path.write_text(header[:len(header) // 2])
    with pytest.raises(DataError) as e: open_recording(path)
    assert e.value.cure.startswith("copy the file again")


def test_other_files_are_told_what_to_do(whole, tmp_path):
    for name, data, cure in (("a.zip", b"PK\3\4....", "unpack it first"),
                             ("b", whole["fif"], "rename it to b.fif"),
                             ("c.dat", b"some text", "export it as EDF+C")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError) as e: open_recording(tmp_path / name)
        assert e.value.cure == cure
