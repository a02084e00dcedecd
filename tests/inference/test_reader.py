"""Recordings of every kind: the same answers, faults with names, and nothing lost when killed."""
import subprocess
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from apart import begun
from scipy.signal import resample_poly

from hms_hbac.core import CHANNELS, CLASSES, EEG_RATE, ELECTRODES, DataError, HmsError, write_json
from hms_hbac.data.stream import open_recording
from hms_hbac.draws import seed_everything
from hms_hbac.inference.reader import Reader
from hms_hbac.models.recipe import build, save_recipe
from hms_hbac.models.schema import validate
from hms_hbac.simulate.patterns import compose, draw_scene
from hms_hbac.training.checkpoints import save_weights

RECIPES = {"spec": dict(view="Resize(Panels(), 32, 32)",
                        net=dict(kind="timm", backbone="test_efficientnet", pretrained="none")),
           "raw": dict(view="Sequence(seconds=50, stride=40, zero_phase=True)",
                       net=dict(kind="resnet1d_gru", kernels=[3, 5], filters=4, blocks=2, hidden=4))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for n, (name, over) in enumerate(RECIPES.items()):
        recipe = validate(dict(name=name, precision="fp32", **over))
        seed_everything(n)
        save_recipe(recipe, folder / name / "fold0/recipe.yaml")
        save_weights(folder / name / "fold0/model.safetensors", build(recipe).state_dict())
    return folder


@pytest.fixture(scope="module")
def reader(runs):
    return Reader(runs, step=10, device="cpu")


@pytest.fixture(scope="module")
def eeg():
    rng = np.random.default_rng(3)
    shares = np.zeros((6, 90 * EEG_RATE), np.float32)
    shares[2] = 1
    x = compose(rng, draw_scene(rng, rng), shares)[:19].astype(np.float64)
    return x - x.mean(1, keepdims=True)


@pytest.fixture(scope="module")
def truth(reader, eeg):
    return reader.read((eeg, ELECTRODES, EEG_RATE), progress=False).prob


def at_rate(eeg, rate):
    return eeg if rate == EEG_RATE else resample_poly(eeg, rate, EEG_RATE, axis=1)


def write_edf(path, x, names, rate, unit="uV", **more):
    import edfio
    one, whole = (edfio.BdfSignal, edfio.Bdf) if path.suffix == ".bdf" else (edfio.EdfSignal, edfio.Edf)
    scale = {"uV": 1, "mV": 1e-3, "V": 1e-6}[unit]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signals = [one(v * scale, rate, label=n, physical_dimension=unit,
                       physical_range=(-3200 * scale, 3200 * scale))
                   for n, v in zip(names, np.clip(x, -3200, 3200), strict=True)]
        whole(signals, **more).write(path)
    return path


def write_brainvision(path, x, names, rate):
    "BrainVision is two texts and a file of numbers; no package here writes it."
    data = np.round(x.T / .1).astype("<i2")
    path.with_suffix(".eeg").write_bytes(data.tobytes())
    channels = "\n".join(f"Ch{i + 1}={n},,0.1,µV" for i, n in enumerate(names))
    path.write_text("Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
                    f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\n"
                    f"DataOrientation=MULTIPLEXED\nNumberOfChannels={len(names)}\n"
                    f"SamplingInterval={1e6 / rate:g}\n[Binary Infos]\nBinaryFormat=INT_16\n"
                    f"[Channel Infos]\n{channels}\n", encoding="utf-8")
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\n[Marker Infos]\nMk1=New Segment,,1,1,0,20200101000000000000\n",
        encoding="utf-8")
    return path


def write_fif(path, x, names, rate):
    import mne
    info = mne.create_info(list(names), rate, "eeg", verbose="ERROR")
    mne.io.RawArray(x * 1e-6, info, verbose="ERROR").save(path, verbose="ERROR")
    return path


@pytest.mark.parametrize("kind", ["edf 256 uV", "edf 500 mV", "edf 512 V", "bdf 1000 uV", "bdf 256 V",
                                  "brainvision 500", "fif 512", "array 400"])
def test_any_rate_name_order_unit_and_format_gives_the_same_answers(kind, reader, eeg, truth, tmp_path):
    how, rate, *unit = kind.split()
    order = np.random.default_rng(len(kind)).permutation(19)
    newer = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
    names = [ELECTRODES[i] for i in order]
    x = at_rate(eeg[order], int(rate))
    if how in ("edf", "bdf"):
        labels = [f"EEG {newer.get(n, n).upper()}-REF" for n in names]
        what = write_edf(tmp_path / f"a.{how}", x, labels, int(rate), *unit)
    elif how == "brainvision": what = write_brainvision(tmp_path / "a.vhdr", x, names, int(rate))
    elif how == "fif": what = write_fif(tmp_path / "a_raw.fif", x, [n.lower() for n in names], int(rate))
    else: what = (x, [f"{n}-A1" for n in names], int(rate))
    got = reader.read(what, progress=False)
    assert len(got.prob) == len(truth)
    assert np.abs(got.prob - truth).max() < .01


def test_a_bipolar_recording_keeps_its_chains(reader, eeg):
    from hms_hbac.signal.filters import MONTAGES
    banana = MONTAGES["banana"]
    chains = banana.matrix(ELECTRODES).double().numpy() @ eeg
    stream = open_recording((chains, banana.labels, EEG_RATE))
    assert any("taken as they are" in f for f in stream.flags)
    back = banana.matrix(ELECTRODES).double().numpy() @ stream.read(0, stream.samples)[:19]
    assert np.abs(back - chains).max() < .01
    assert np.isfinite(reader.read(stream, progress=False).prob).all()


def corrupt(data, seed):
    "One of the things that happen to files, by seed."
    rng, data = np.random.default_rng(seed), bytearray(data)
    channels = int(data[252:256])
    kind = ("number", "field", "cut", "garbage", "scale")[seed % 5]
    if kind == "number":
        at, size = [(236, 8), (244, 8), (252, 4), (184, 8)][rng.integers(4)]
        data[at:at + size] = bytes(rng.choice([b"-1", b"0", b"nan", b"1e9", b"abc", b"", b"7"])).ljust(size)
    elif kind == "field":
        at = 256 + int(rng.integers(256 * channels))
        data[at:at + 8] = bytes(rng.integers(0, 256, 8, np.uint8))
    elif kind == "cut": data = data[:int(rng.integers(len(data)))]
    elif kind == "garbage":
        at = int(rng.integers(len(data) - 5000))
        data[at:at + 5000] = bytes(rng.integers(0, 256, 5000, np.uint8))
    else:
        at = 256 + 104 * channels + 8 * int(rng.integers(4 * channels))
        data[at:at + 8] = bytes(rng.choice([b"1e30", b"-1e30", b"0", b"nan", b"9999999", b"inf"])).ljust(8)
    return bytes(data)


@pytest.fixture(scope="module")
def edf(tmp_path_factory, eeg):
    return write_edf(tmp_path_factory.mktemp("edf") / "a.edf", eeg, ELECTRODES, EEG_RATE)


@pytest.mark.parametrize("seed", range(40))
def test_a_corrupt_edf_gives_a_named_fault_or_valid_numbers(seed, edf, reader, tmp_path):
    path = tmp_path / "bad.edf"
    path.write_bytes(corrupt(edf.read_bytes(), seed))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stream = open_recording(path)
            stream.read(0, min(stream.samples, 12_000))
    except HmsError as e:
        assert e.where and e.cure
        return
    if seed % 4 == 0:                                    # the models are slow, the file is what is tested
        prob = reader.read(stream, progress=False).prob
        answered = np.isfinite(prob).all(1)
        assert np.allclose(prob[answered].sum(1), 1, atol=1e-5)


def test_what_is_cut_is_read_and_said(edf, tmp_path):
    whole = open_recording(edf)
    data = edf.read_bytes()
    (tmp_path / "cut.edf").write_bytes(data[:int(len(data) * .8)])
    cut = open_recording(tmp_path / "cut.edf")
    assert 50 < cut.seconds < whole.seconds and any(f.startswith("cut: ") for f in cut.flags)
    n = cut.samples
    np.testing.assert_array_equal(cut.read(0, n), whole.read(0, n))


def test_refusals_have_names_and_cures(eeg, tmp_path):
    cases = {"only": (eeg[:, :4000], ELECTRODES, EEG_RATE),
             "of 19 electrodes": (eeg[:5], ELECTRODES[:5], EEG_RATE),
             "at least 100 Hz": (eeg, ELECTRODES, 80), "no such file": tmp_path / "none.edf"}
    for what, given in cases.items():
        with pytest.raises(DataError, match=what) as e: open_recording(given)
        assert e.value.cure


def test_nan_and_flat_are_not_counted(reader, eeg):
    from hms_hbac.evaluation.burden import totals
    x = np.concatenate([eeg, eeg, eeg], 1)
    x[:, 60 * EEG_RATE:150 * EEG_RATE] = 0
    x[:, 160 * EEG_RATE:220 * EEG_RATE] = np.nan
    got = reader.read((x, ELECTRODES, EEG_RATE), progress=False)
    table = got.table
    inside = (table.time > 66) & (table.time < 144) | (table.time > 166) & (table.time < 214)
    assert table.bad[inside].all() and not table.bad[table.time < 54].any()
    assert table["flags"][inside].str.contains("flat|missing").all()
    counted = totals(got)["hours_counted"] * 3600
    assert abs(counted - (~table.bad & np.isfinite(table[list(CLASSES)]).all(axis=1)).sum() * 10) < 1e-6


def read_alone(runs, file, out):
    torch.set_num_threads(1)
    Reader(runs, step=10, device="cpu").read(file, out, progress=False)


def test_killed_and_continued_gives_the_same_bytes(runs, eeg, tmp_path):
    from hms_hbac.evaluation.reading import summary, write_tables
    x = np.tile(eeg, 15).astype(np.float32)                                 # 22 minutes: three pieces
    table = pd.DataFrame(np.pad(x, ((0, 1), (0, 0))).T, columns=list(CHANNELS))
    table.to_parquet(tmp_path / "a.parquet")
    process, _ = begun(read_alone, runs / "raw", tmp_path / "a.parquet", tmp_path / "killed")
    end, pieces = time.monotonic() + 200, tmp_path / "killed/pieces"
    def waiting(): return time.monotonic() < end and process.is_alive()
    while waiting() and not list(pieces.glob("*.npz")): time.sleep(.02)
    process.kill()
    process.join()
    assert len(list(pieces.glob("[0-9]*.npz"))) in (1, 2), "it was to be killed between pieces"
    assert not (tmp_path / "killed/summary.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for out in ("killed", "whole"):
            got = Reader(runs / "raw", step=10, device="cpu").read(tmp_path / "a.parquet", tmp_path / out,
                                                                    progress=False)
            write_tables(got, tmp_path / out)
            write_json(tmp_path / out / "summary.json", summary(got))
    finally: torch.set_num_threads(threads)
    for name in ("probabilities.parquet", "probabilities.csv", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_marked_stretches_are_not_counted(reader, eeg):
    import mne

    from hms_hbac.evaluation.burden import totals
    x = np.concatenate([eeg, eeg, eeg], 1)
    info = mne.create_info(list(ELECTRODES), EEG_RATE, "eeg", verbose="ERROR")
    raw = mne.io.RawArray(x * 1e-6, info, verbose="ERROR")
    whole = reader.read(raw, progress=False)
    raw.set_annotations(mne.Annotations([60, 150], [90, 20], ["BAD_scanner", "seizure"]))
    got = reader.read(raw, progress=False)
    inside = (got.table.time > 66) & (got.table.time < 144)
    assert got.table.bad[inside].all() and (got.table["flags"][inside] == "marked 19").all()
    assert not got.table.bad[(got.table.time < 54) | (got.table.time > 156)].any()
    np.testing.assert_array_equal(got.prob, whole.prob)                    # the models answer all the same
    assert totals(whole)["hours_counted"] - totals(got)["hours_counted"] > 80 / 3600
    assert got.about["recording"] != whole.about["recording"]


def test_a_finished_reading_costs_nothing(runs, eeg, tmp_path, monkeypatch):
    import hms_hbac.inference.reader as module
    from hms_hbac.evaluation.reading import read_one
    path = write_edf(tmp_path / "a.edf", eeg, ELECTRODES, EEG_RATE)
    out, how = tmp_path / "out", dict(progress=False, step=10, device="cpu")
    first = read_one(path, runs / "raw", out, **how)
    assert not (out / "pieces").exists() and "before" not in first
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}
    monkeypatch.setattr(module, "read_pieces", None)                       # whoever reads now fails
    again = read_one(path, runs / "raw", out, **how)
    assert again.pop("before") and again["total"] == first["total"]
    assert times == {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}
    read_one(path, runs / "raw", out, annotated=True, **how)
    assert (out / "a_annotated.edf").is_file()
    with pytest.raises(DataError, match="not the same: step"):
        read_one(path, runs / "raw", out, progress=False, step=5, device="cpu")


def megabytes(f):
    "The most memory that numpy takes at once while `f` runs, in MB."
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally: tracemalloc.stop()


def test_a_piece_takes_little_more_memory_than_its_samples():
    from hms_hbac.data.quality import block_faults
    seconds, rng = 650, np.random.default_rng(0)
    one = rng.standard_normal(seconds * 512).astype(np.float32)
    stream = open_recording((np.broadcast_to(20 * one, (20, len(one))), CHANNELS, 512))
    held = 20 * seconds * EEG_RATE * 8 / 1e6                           # as float64: 21 MB; at 512 Hz 53
    assert megabytes(lambda: stream.read(0, seconds * EEG_RATE)) < 4 * held
    x = stream.read(0, seconds * EEG_RATE)
    assert megabytes(lambda: block_faults(x)) < held
    parts = [stream.read(a, 130 * EEG_RATE) for a in range(0, len(x[0]), 130 * EEG_RATE)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), x)


def test_the_pictures_of_a_piece_are_gone_before_the_next_is_read(runs, eeg, monkeypatch):
    import weakref

    from hms_hbac.inference import sliding
    made, alive, drawers = [], [], sliding.drawers
    def watched(*given):
        alive.append(sum(r() is not None for r in made))
        found = drawers(*given)
        made.extend(weakref.ref(f) for ways in found.values() for f in ways.values())
        return found
    monkeypatch.setattr(sliding, "drawers", watched)
    Reader(runs / "raw", step=10, device="cpu").read((np.tile(eeg, 15), ELECTRODES, EEG_RATE), progress=False)
    assert made and alive == [0, 0, 0]                                      # 22 minutes: three pieces


def test_the_subpackage_is_light_and_has_the_reader():
    import hms_hbac.inference
    assert hms_hbac.inference.Reader is Reader
    assert not hasattr(hms_hbac.inference, "Writer")
    code = "import sys, hms_hbac.inference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_dask_reads_on_though_a_worker_dies(runs, eeg, tmp_path, cluster):
    import threading

    import dask
    from distributed import Client

    from hms_hbac.evaluation.reading import read_recordings
    address, workers = cluster
    with Client(address, timeout=30, set_as_default=False) as client: client.wait_for_workers(2, timeout=60)
    x = np.tile(eeg, 12).astype(np.float32)                                 # 18 minutes: two pieces
    (tmp_path / "in").mkdir()
    for name in "ab":
        table = pd.DataFrame(np.pad(x, ((0, 1), (0, 0))).T, columns=list(CHANNELS))
        table.to_parquet(tmp_path / f"in/{name}.parquet")
        x = x[:, EEG_RATE:]
    out, killed = tmp_path / "out", []

    def shoot():
        "Kill the first worker that has written a piece, in the middle of its recording."
        until = time.monotonic() + 120
        while time.monotonic() < until and not killed:
            for piece in out.glob("*/pieces/[0-9]*.npz"):
                pid = int((piece.parents[1] / ".lock").read_text().split()[1])
                killed.extend(w for w in workers if w.pid == pid and not killed)
            time.sleep(.005)
        killed[0].kill()

    killer = threading.Thread(target=shoot)
    killer.start()
    told = read_recordings([tmp_path / "in"], runs / "raw", out, dask=address, progress=False, step=10,
                           device="cpu")
    killer.join()
    assert killed[0].wait(10) != 0 and [t["fault"] for t in told] == ["", ""]
    reader = Reader(runs / "raw", step=10, device="cpu")
    for name in "ab":
        prob = pd.read_parquet(out / name / "probabilities.parquet")[list(CLASSES)].to_numpy()
        here = reader.read(tmp_path / f"in/{name}.parquet", progress=False).prob
        np.testing.assert_allclose(prob, here, atol=1e-6)
    with (dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
          pytest.raises(HmsError, match="no Dask scheduler answers")):
        read_recordings([tmp_path / "in"], runs, tmp_path / "b", dask="tcp://127.0.0.1:9", progress=False)
