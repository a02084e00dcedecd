"""Recordings as other programs write them: odd headers, units, names and marks; the same EEG comes out."""
import numpy as np
import pytest

from hms_hbac.core import EEG_RATE, ELECTRODES, DataError
from hms_hbac.data.quality import BLOCK, marked_blocks
from hms_hbac.data.stream import open_recording
from hms_hbac.signal.filters import MONTAGES

BANANA = MONTAGES["banana"].matrix(ELECTRODES).double().numpy()
SIZES = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)


@pytest.fixture(scope="module")
def eeg():
    "A minute of slow noise, (19, 12000) µV."
    x = np.cumsum(np.random.default_rng(0).standard_normal((19, 60 * EEG_RATE)), 1)
    return x - x.mean(1, keepdims=True)


def write(path, x, labels=ELECTRODES, unit="uV", ends=(-3200, 3200), stored=(-32768, 32767), width=2,
          records=60, date="01.01.24", time="00.00.00", patient="X", shown=None, beside=(), plus="C"):
    "An EDF or BDF by hand; `beside`: (label, samples, bytes of record k); `shown`: the ends as text."
    def field(text, size):
        return (text if isinstance(text, bytes) else str(text).encode("latin-1"))[:size].ljust(size)
    count, more = len(labels), len(beside)
    n, (low, high), (bottom, top) = count + more, ends, stored
    first = field("0", 8) if width == 2 else b"\xffBIOSEMI"
    head = first + field(patient, 80) + field("", 80) + field(date, 8) + field(time, 8)
    kind = f"{'EDF' if width == 2 else 'BDF'}+{plus}" if more else ""
    head += field(256 * (n + 1), 8) + field(kind, 44) + field(records, 8) + field(1, 8) + field(n, 4)
    low_text, high_text = shown or ends
    columns = [[*labels, *(b[0] for b in beside)], [""] * n, [unit] * count + [""] * more,
               [low_text] * count + [-1] * more, [high_text] * count + [1] * more,
               [bottom] * count + [-32768] * more, [top] * count + [32767] * more, [""] * n,
               [EEG_RATE] * count + [b[1] for b in beside], [""] * n]
    pairs = zip(columns, SIZES, strict=True)
    head += b"".join(b"".join(field(v, size) for v in column) for column, size in pairs)
    y = np.round((x - low) / (high - low) * (top - bottom) + bottom).astype("<i4")
    y = y.reshape(count, 60, EEG_RATE).transpose(1, 0, 2).copy()
    y = y.view(np.uint8).reshape(60, -1, 4)[..., :width]
    body = [y[k].tobytes() + b"".join(b[2](k).ljust(width * b[1], b"\0") for b in beside) for k in range(60)]
    path.write_bytes(head + b"".join(body))
    return path


def same(stream, eeg, chains=BANANA):
    "The differences along the chains are those that were written, to a few steps of 16 bits."
    return np.abs(BANANA @ stream.read(0, stream.samples)[:19] - chains @ eeg).max() < .5


HEADERS = {
    "patient in Latin-1": dict(patient="Müller 01-JÄN-1950 ñ"),
    "physical ends exchanged": dict(ends=(3200, -3200)),
    "digital ends exchanged": dict(stored=(32767, -32768)),
    "decimal commas": dict(shown=("-3200,0", "3200,0")),
    "no such day": dict(date="31.02.99", time="25.61.99"),
    "records unknown": dict(records=-1),
    "BDF": dict(width=3, ends=(-262144, 262143), stored=(-8388608, 8388607)),
}


@pytest.mark.parametrize("how", HEADERS)
def test_odd_headers(how, eeg, tmp_path):
    stream = open_recording(write(tmp_path / "A.EDF", eeg, **HEADERS[how]))
    assert same(stream, eeg) and stream.flags == ["missing channel EKG"]


@pytest.mark.parametrize("unit", [b"uV ", b"\xb5V", b"\xc2\xb5V", b"\xce\xbcV", b"\xe6V", b"\x83\xcaV",
                                  b"?V"])
def test_every_code_page_has_its_micro(unit, eeg, tmp_path):
    stream = open_recording(write(tmp_path / "a.edf", eeg, unit=unit))
    assert same(stream, eeg) and stream.flags == ["missing channel EKG"]


@pytest.mark.parametrize("unit, factor", [("mV", 1e-3), ("V", 1e-6), ("nV", 1e3)])
def test_other_units_scale(unit, factor, eeg, tmp_path):
    ends = (-3200 * factor, 3200 * factor)
    stream = open_recording(write(tmp_path / "a.edf", eeg * factor, unit=unit, ends=ends))
    assert same(stream, eeg)


def test_no_unit_is_said(eeg, tmp_path):
    stream = open_recording(write(tmp_path / "a.edf", eeg, unit=""))
    assert same(stream, eeg) and stream.flags[0].startswith("no unit of voltage, taken as µV: Fp1, ")


NEWER = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}


@pytest.mark.parametrize("name", ["{}-TP9", "EEG{}", "EEG-{}-LE", "{}-(A1+A2)", "'{}'", "POL {}", "{}A2",
                                  "CH1: {}", "EXG {}", "{} vs Ref", "{}-A1/A2", "EEG {}-REF-CZ"])
def test_referential_names(name, eeg, tmp_path):
    labels = [name.format(NEWER.get(e, e).upper()) for e in ELECTRODES]
    assert same(open_recording(write(tmp_path / "a.edf", eeg, labels)), eeg)


@pytest.mark.parametrize("how", ["{}-{}", "{}{}", "{} - {}", "EEG {}/{}", "{}_{}", "{} {}", "{}:{} [uV]",
                                 "{}-{}-0"])
def test_chains_are_kept_in_every_spelling(how, eeg, tmp_path):
    labels = [how.format(*(NEWER.get(e, e) for e in pair)).upper() for pair in MONTAGES["banana"].pairs]
    stream = open_recording(write(tmp_path / "a.edf", BANANA @ eeg, labels))
    assert same(stream, eeg) and "3 chains without a common reference" in stream.flags[0]


def test_the_first_of_two_names_is_read(eeg, tmp_path):
    path = write(tmp_path / "a.edf", np.concatenate([eeg, -eeg[:2]]), [*ELECTRODES, *ELECTRODES[:2]])
    stream = open_recording(path)
    assert same(stream, eeg) and stream.flags[0] == "stands twice, the first is read: Fp1, F3"


def test_slow_numbers_of_an_electrodes_name_are_left_out(eeg, tmp_path):
    beside = [("Fp1", 1, lambda k: b"\x05\x00"), ("SpO2", 4, lambda k: b"")]
    stream = open_recording(write(tmp_path / "a.edf", eeg, beside=beside))
    assert same(stream, eeg) and "left out, below 100 Hz: Fp1" in stream.flags


def entries(told):
    "A channel of EDF+ annotations; `told`: {record: (onset, seconds, text)}."
    def record(k):
        out = f"+{k}\x14\x14\0".encode()
        if k in told: out += ("+%s\x15%s\x14%s\x14\0" % told[k]).encode()  # noqa: UP031 (control characters)
        return out
    return "EDF Annotations", 40, record


@pytest.mark.parametrize("kind, width", [("EDF", 2), ("BDF", 3)])
def test_pauses_are_refused_or_missing(kind, width, eeg, tmp_path):
    "From record 30 on each is 10 s late."
    def late(k): return f"+{k + 10 * (k >= 30)}\x14\x14\0".encode()
    beside = [(f"{kind} Annotations", 40, late)]
    path = write(tmp_path / "a.edf", eeg, width=width, beside=beside, plus="D")
    with pytest.raises(DataError, match=rf"{kind}\+D: interrupted 1 times, 10 s are missing") as e:
        open_recording(path)
    assert "--gaps" in e.value.cure
    x = open_recording(path, gaps=True).read(0, 70 * EEG_RATE)[:19]
    assert np.isnan(x[:, 30 * EEG_RATE:40 * EEG_RATE]).all() and np.isnan(x).mean() == 1 / 7
    there = np.delete(x, np.s_[30 * EEG_RATE:40 * EEG_RATE], 1)
    assert np.abs(BANANA @ there - BANANA @ eeg).max() < .5


def test_eight_electrodes_without_a_chain_are_read_and_said(eeg):
    names = ["Fp1", "Fp2", "C3", "C4", "T3", "T4", "O1", "O2"]
    flags = open_recording((eeg[[ELECTRODES.index(n) for n in names]], names, EEG_RATE)).flags
    assert any("no two neighbours" in f for f in flags) and not any("units" in f for f in flags)


def test_marks_of_edf_plus(eeg, tmp_path):
    marks = {3: (3.5, 4, "BAD artefact"), 9: (9, 2, "badge"), 50: (20, 1.5, "bad"), 51: (51, 3, "Bewegung")}
    stream = open_recording(write(tmp_path / "a.edf", eeg, beside=[entries(marks)]))
    assert same(stream, eeg) and [m[:2] for m in stream.marks] == [(3.5, 7.5), (20, 21.5)]
    assert "2 stretches are marked as bad, 5.5 s" in stream.flags
    marked = marked_blocks(stream.marks, 2 * BLOCK, 10)                         # from second 4 on
    assert marked.all(0).nonzero()[0].tolist() == [0, 1, 8]


def test_marks_and_bad_channels_of_mne(eeg):
    mne = pytest.importorskip("mne")
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(list(ELECTRODES), EEG_RATE, "eeg"), verbose="ERROR")
    names = [(), ("T3", "T5"), ()]
    said = ["BAD_move", "bad contact", "seizure"]
    raw.set_annotations(mne.Annotations([10, 20, 30], [4, 2, 5], said, ch_names=names))
    raw.info["bads"] = ["F7"]
    stream = open_recording(raw.crop(3, 58))
    assert [(round(m.start, 6), round(m.stop, 6), m.electrodes) for m in stream.marks] == [
        (7, 11, ()), (17, 19, ("T3", "T5"))]
    assert np.isnan(stream.read(0, 100)[ELECTRODES.index("F7")]).all()
    assert stream.flags[0] == "left out, as the file calls them bad: F7"


def test_an_ending_in_capitals_that_mne_refuses_has_a_cure(tmp_path):
    pytest.importorskip("mne")
    (tmp_path / "A.VHDR").write_text("Brain Vision Data Exchange Header File Version 1.0\n")
    with pytest.raises(DataError) as e: open_recording(tmp_path / "A.VHDR")
    assert e.value.cure == "rename it to A.vhdr"


ODD_ARRAYS = {
    "strings": (lambda x: ([["a"] * 20] * 19, ELECTRODES, EEG_RATE), "no array of real numbers"),
    "rows of two lengths": (lambda x: ([[1.0], [1.0, 2.0]], "ab", EEG_RATE), "no array of real numbers"),
    "complex numbers": (lambda x: (x + 1j, ELECTRODES, EEG_RATE), "no array of real numbers"),
    "one name": (lambda x: (x, "Fp1", EEG_RATE), "an array of shape"),
    "no names": (lambda x: (x, None, EEG_RATE), "is no recording"),
    "a rate in words": (lambda x: (x, ELECTRODES, "fast"), "a sampling rate of 'fast'"),
    "no rate": (lambda x: (x, ELECTRODES, None), "a sampling rate of None"),
    "a rate of NaN": (lambda x: (x, ELECTRODES, float("nan")), "a sampling rate of nan"),
    "the array alone": (lambda x: x, "is no recording"),
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_what_is_no_recording_is_refused_by_name(kind, eeg):
    make, what = ODD_ARRAYS[kind]
    with pytest.raises(DataError, match=what) as e: open_recording(make(eeg))
    assert e.value.cure


def test_lists_are_arrays_too(eeg):
    assert same(open_recording((eeg.tolist(), ELECTRODES, EEG_RATE)), eeg)


def test_epochs_and_averages_of_mne_are_no_recording(eeg):
    mne = pytest.importorskip("mne")
    info = mne.create_info(list(ELECTRODES), EEG_RATE, "eeg", verbose="ERROR")
    epochs = mne.EpochsArray(eeg.reshape(19, 6, -1).swapaxes(0, 1) * 1e-6, info, verbose="ERROR")
    for what in (epochs, epochs.average()):
        with pytest.raises(DataError, match="is no recording") as e: open_recording(what)
        assert "mne.io.Raw" in e.value.cure


def test_a_brainvision_file_that_came_alone(tmp_path):
    pytest.importorskip("mne")
    (tmp_path / "a.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        "DataFile=a.eeg\nMarkerFile=a.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        "NumberOfChannels=1\nSamplingInterval=5000\n[Binary Infos]\nBinaryFormat=INT_16\n"
        "[Channel Infos]\nCh1=Fp1,,0.1,µV\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.eeg") as e: open_recording(tmp_path / "a.vhdr")
    assert e.value.cure == "copy the files that a.vhdr names beside it as well"
