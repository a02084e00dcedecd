"The cache: same bytes whatever makes it, survival of kill -9, refusal of other files, same windows as parquet."
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from hms_hbac.core import CHANNELS, VOTES, DataError, HmsError, read_json, spectrogram_columns, write_json
from hms_hbac.data import recordings
from hms_hbac.data.competition import Competition
from hms_hbac.data.recordings import FolderSource, Recordings, WindowDataset, covered, prepare, shard_path

EVENTS = pd.DataFrame({"event_id": [0, 1, 2, 3], "eeg_id": [3, 7, 7, 40], "spectrogram_id": [2, 5, 5, 40],
                       "eeg_offset": [0., 4., 10., 2.], "eeg_offset_first": [0., 0., 10., 0.], "eeg_offset_last": [0., 8., 10., 6.],
                       "spectrogram_offset": [0., 24., 30., 2.], "spectrogram_offset_first": [0., 20., 30., 0.],
                       "spectrogram_offset_last": [0., 28., 30., 6.]} | {v: [1, 0, 2, 0] for v in VOTES} | {"other_vote": [3, 5, 0, 1]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "70 EEGs (three shards) and 40 spectrograms (two shards) of odd lengths; one file truncated, one with holes."
    root, rng = tmp_path_factory.mktemp("rec") / "comp", np.random.default_rng(0)
    for name in ("train_eegs", "train_spectrograms"): (root / name).mkdir(parents=True)
    (root / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n5,7,1\n2,3,1\n")
    for id in range(1, 71):
        x = pd.DataFrame(rng.normal(0, 30, (10_000 + 4_000 * (id % 2), 20)).astype("float32"), columns=CHANNELS)
        if id == 7: x.loc[1_000:1_099, "T3"] = np.nan
        x.to_parquet(root / f"train_eegs/{id}.parquet")
    for id in range(1, 41):
        s = pd.DataFrame(np.exp(rng.normal(0, 3, (300 + 20 * (id % 2), 400))).astype("float32"), columns=spectrogram_columns())
        s.insert(0, "time", 2 * np.arange(len(s)) + 1)
        if id == 5: s.loc[20, "RL_0.98"] = np.nan
        s.to_parquet(root / f"train_spectrograms/{id}.parquet")
    bad = root / "train_eegs/60.parquet"
    bad.write_bytes(bad.read_bytes()[:70_000])
    return root


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    "A cache that nothing may change."
    out = tmp_path_factory.mktemp("cache") / "cache"
    prepare(folder, out, workers=1, progress=False)
    return out


def same(a, b):
    "Both caches hold the same shards and the same index, byte for byte."
    names = sorted(p.name for p in (a / "shards").iterdir())
    assert names == sorted(p.name for p in (b / "shards").iterdir()) and len(names) == 2 * (3 + 2)
    for p in [*(f"shards/{n}" for n in names), "index.parquet"]: assert (a / p).read_bytes() == (b / p).read_bytes(), p


# ---- building

@pytest.mark.parametrize("workers, backend", [(3, None), (2, "loky"), (2, "multiprocessing")])
def test_same_bytes_for_any_workers_and_backend(folder, cache, tmp_path, workers, backend):
    prepare(folder, tmp_path / "c", workers=workers, backend=backend, progress=False)
    same(tmp_path / "c", cache)


def test_unknown_backend(folder, tmp_path):
    with pytest.raises(HmsError, match="Invalid backend: steam"): prepare(folder, tmp_path / "c", backend="steam", progress=False)


def test_kill_minus_nine_and_resume(folder, cache, tmp_path, monkeypatch):
    code = f"""
import time
from hms_hbac.data import recordings
pack = recordings.pack_file
def slow(*a): time.sleep(.02); return pack(*a)
recordings.pack_file = slow
recordings.prepare({str(folder)!r}, {str(tmp_path / 'c')!r}, workers=2, progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.time() + 60
    while time.time() < until and len(list((tmp_path / "c/shards").glob("*.json"))) < 2 and child.poll() is None: time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = {p.stem for p in (tmp_path / "c/shards").glob("*.json")}
    assert 2 <= len(done) < 5
    with pytest.raises(DataError, match="the cache is not complete"): Recordings(tmp_path / "c")
    read, pack = [], recordings.pack_file
    monkeypatch.setattr(recordings, "pack_file", lambda kind, path: (read.append((kind, int(path.stem))), pack(kind, path))[1])
    prepare(folder, tmp_path / "c", workers=1, progress=False)
    again = {f"{kind}-{(id - 1) // 32:05d}" for kind, id in read}
    assert not again & done and len(read) < 110                          # only missing shards are read
    same(tmp_path / "c", cache)
    assert not list((tmp_path / "c").glob("**/.*.part"))                 # and the half files are gone
    read.clear()
    prepare(folder, tmp_path / "c", progress=False)
    assert read == []


def test_half_states_are_done_again(folder, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "c")
    shard_path(tmp_path / "c", "eegs", 0, "json").unlink()               # killed between the two renames
    data = shard_path(tmp_path / "c", "eegs", 1, "f16")
    data.write_bytes(data.read_bytes()[:-2])
    (tmp_path / "c/index.parquet").unlink()
    prepare(folder, tmp_path / "c", progress=False)
    same(tmp_path / "c", cache)


def test_other_files_are_refused(folder, cache, tmp_path):
    other = shutil.copytree(folder, tmp_path / "comp")
    prepare(other, cache, progress=False)                                # a copy is the same competition
    shutil.copy(other / "train_eegs/2.parquet", other / "train_eegs/3.parquet")
    with pytest.raises(DataError, match="the cache was made from other files"): prepare(other, cache, progress=False)
    (other / "train_eegs/3.parquet").unlink()
    with pytest.raises(DataError, match="the cache was made from other files"): prepare(other, cache, progress=False)


def test_other_formats_and_folders_are_refused(folder, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "c")
    write_json(tmp_path / "c/meta.json", read_json(cache / "meta.json") | {"format": 0})
    with pytest.raises(DataError, match="cache of format 0, wanted 1"): prepare(folder, tmp_path / "c", progress=False)
    with pytest.raises(DataError, match="cache of another format"): Recordings(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty and holds no cache"): prepare(folder, tmp_path / "d", progress=False)
    with pytest.raises(DataError, match="no such file"): Recordings(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/test.csv").write_text("eeg_id\n")
    with pytest.raises(DataError, match="no recordings in train_eegs"): prepare(tmp_path / "e", tmp_path / "f", progress=False)


def test_one_prepare_at_a_time(folder, cache, tmp_path):
    half = shutil.copytree(cache, tmp_path / "c")
    shard_path(half, "eegs", 2, "json").unlink()
    with recordings.locked(half), recordings.locked(cache):
        with pytest.raises(DataError, match="another prepare works on this cache"): prepare(folder, half, progress=False)
        prepare(folder, cache, progress=False)                           # complete: nothing to keep apart
    prepare(folder, half, progress=False)
    same(half, cache)


def test_a_file_that_vanishes_stops_the_work(folder, tmp_path):
    comp = shutil.copytree(folder, tmp_path / "comp")
    meta = recordings.claim(tmp_path / "c", Competition(comp))
    tasks, _ = recordings.plan(Competition(comp), tmp_path / "c", meta)
    (comp / "train_eegs/4.parquet").unlink()
    with pytest.raises(DataError, match="4.parquet: no such file"): recordings.write_shard(*tasks[0])
    with pytest.raises(DataError, match="belongs to other files"): recordings.write_shard(*tasks[0][:4], "otherprint")


# ---- Dask

@pytest.fixture
def cluster():
    "A scheduler and two worker processes on loopback: (address, the workers' processes)."
    pytest.importorskip("distributed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}
    code = "import sys; from distributed.cli import dask_{0} as m; sys.argv = ['dask'] + sys.argv[1:]; m.main()"
    def start(what, *args): return subprocess.Popen([sys.executable, "-c", code.format(what), *args], env=env,
                                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    processes = [start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter")]
    processes += [start("worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "60") for _ in range(2)]
    yield address, processes[1:]
    for p in processes: p.kill()
    for p in processes: p.wait()


def test_dask_makes_the_same_bytes_though_a_worker_dies(folder, cache, tmp_path, cluster):
    import threading

    from distributed import Client
    address, workers = cluster
    with Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    def shoot():
        until = time.time() + 60
        while time.time() < until and not list((tmp_path / "c").glob("shards/.*.part")): time.sleep(.002)
        workers[0].kill()                                                # it holds at least one of the shards now
    killer = threading.Thread(target=shoot)
    killer.start()
    prepare(folder, tmp_path / "c", dask=address, progress=False)
    killer.join()
    assert workers[0].wait(10) != 0 and workers[1].poll() is None
    for part in (tmp_path / "c").glob("**/.*.part"): part.unlink()
    same(tmp_path / "c", cache)


def test_dask_without_a_scheduler(folder, tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(HmsError, match="no Dask scheduler answers"):
        list(recordings.run_dask([], "tcp://127.0.0.1:9", timeout=1))


# ---- reading

def test_windows_of_cache_and_parquet_agree(folder, cache):
    "float16: 2**-11 relative for the EEG, 0.2 % for the power; NaN at the same places."
    a, b = Recordings(cache), FolderSource(folder, "train")
    for start, n in ((0, 10_000), (-500, 2_000), (13_000, 3_000), (99_999, 10)):
        x, y = a.eeg(7, start, n), b.eeg(7, start, n)
        assert x.shape == y.shape == (20, n) and x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, rtol=2**-11, atol=1e-6)
    for start, n in ((0, 300), (-20, 60), (310, 40)):
        x, y = a.spectrogram(5, start, n), b.spectrogram(5, start, n)
        assert x.shape == y.shape == (4, 100, n)
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, rtol=.002)
    assert a.start_s(5) == b.start_s(5) == 1.0


def test_missing_and_broken_recordings(cache, folder):
    r = Recordings(cache)
    with pytest.raises(DataError, match="no recording 999 among the eegs"): r.eeg(999, 0)
    with pytest.raises(DataError, match="eegs/60.parquet: cannot be read as parquet"): r.eeg(60, 0)
    assert r.index[["id", "error"]][r.index.error != ""].id.tolist() == [60]
    assert r.rows("eegs", 7) == 14_000 and r.rows("eegs", 60) == 0
    table = pd.DataFrame({"eeg_id": [7, 60, 999, 3], "spectrogram_id": [5, 2, 2, 99]})
    assert covered(r, table).tolist() == [True, False, False, False]
    assert covered(FolderSource(folder, "train"), table).tolist() == [True, True, False, False]


def test_damaged_shards_have_a_name(cache, tmp_path):
    for damage, message in ((lambda p: p.unlink(), "a shard is missing or empty"), (lambda p: p.write_bytes(b""), "a shard is missing or empty"),
                            (lambda p: p.write_bytes(b"xx"), "a shard is cut short")):
        c = shutil.copytree(cache, tmp_path / "c", dirs_exist_ok=True)
        damage(shard_path(c, "eegs", 0, "f16"))
        with pytest.raises(DataError, match=message): Recordings(c).eeg(7, 0)


def test_items_and_batches(folder, cache):
    ds = WindowDataset(Recordings(cache), EVENTS)
    item, batch = ds[1], ds.batch([3, 1])
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "key": ((2,), torch.int64), "event_id": ((2,), torch.int64), "target": ((2, 6), torch.float32), "n_votes": ((2,), torch.float32),
        "eeg": ((2, 20, 10_000), torch.float32), "spectrogram": ((2, 4, 100, 300), torch.float32)}
    for k in item: torch.testing.assert_close(item[k], batch[k][1], rtol=0, atol=0, equal_nan=True)
    assert batch["event_id"].tolist() == [3, 1] and batch["n_votes"].tolist() == [1, 5] and torch.allclose(batch["target"].sum(1), torch.ones(2))
    np.testing.assert_array_equal(item["eeg"], ds.source.eeg(7, 4 * 200))
    np.testing.assert_array_equal(item["spectrogram"], ds.source.spectrogram(5, 12))
    with pytest.raises(IndexError): ds[4]
    assert len(list(iter(ds))) == 4
    assert set(WindowDataset(Recordings(cache), EVENTS, spec_steps=0)[0]) == {"key", "event_id", "target", "n_votes", "eeg"}
    assert "eeg" not in WindowDataset(Recordings(cache), EVENTS, eeg=False)[0]


def test_wider_spectrogram_windows_are_centred(cache):
    narrow, wide = (WindowDataset(Recordings(cache), EVENTS, spec_steps=n)[2]["spectrogram"] for n in (300, 312))
    torch.testing.assert_close(wide[..., 6:306], narrow, equal_nan=True, rtol=0, atol=0)


def test_random_offsets_belong_to_the_sample(cache):
    r = Recordings(cache)
    ds = WindowDataset(r, EVENTS, offset="random", seed=3)
    a, b = ds.batch([1, 2], epoch=5), ds.batch([2, 1, 0], epoch=5)
    torch.testing.assert_close(a["eeg"][0], b["eeg"][1], equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(torch.nan_to_num(ds.batch([1], 5)["eeg"]), torch.nan_to_num(ds.batch([1], 6)["eeg"]))
    eeg, spec = recordings.window_starts({k: np.repeat(v[1:2], 2_000) for k, v in ds.table.items()}, "random",
                                         recordings.sample_keys(3, 0, range(2_000)))
    assert 0 <= eeg.min() < .1 and 7.9 < eeg.max() <= 8 and abs(eeg.mean() - 4) < .2 and np.allclose(spec - eeg, 20)
    torch.testing.assert_close(ds.batch([2])["eeg"], WindowDataset(r, EVENTS).batch([2])["eeg"], equal_nan=True, rtol=0, atol=0)


def test_loaders_agree(cache):
    "Default collation, batches asked for at once, and two worker processes give the same numbers; set_epoch reaches the workers."
    ds = WindowDataset(Recordings(cache), EVENTS, offset="random")
    ds.set_epoch(2)
    one = next(iter(DataLoader(ds, batch_size=4)))
    sampler = BatchSampler(range(4), 4, drop_last=False)
    loader = DataLoader(ds, sampler=sampler, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (2, 3):
        ds.set_epoch(epoch)
        two = next(iter(loader))
        for k in one: torch.testing.assert_close(ds.batch(range(4), epoch)[k], two[k], equal_nan=True, rtol=0, atol=0)
        if epoch == 2: assert all(torch.equal(torch.nan_to_num(one[k]), torch.nan_to_num(two[k])) for k in one)
    copy = pickle.loads(pickle.dumps(ds))
    torch.testing.assert_close(copy[1]["eeg"], ds[1]["eeg"], equal_nan=True)
    assert len(pickle.dumps(ds)) < 10_000


def test_test_rows_and_failures(folder):
    comp = Competition(folder)
    ds = WindowDataset(FolderSource(comp, "train"), comp.test)
    assert set(ds[0]) == {"key", "event_id", "eeg", "spectrogram"}
    table = pd.DataFrame({"eeg_id": ["7", "60", "../7", "3"], "spectrogram_id": ["5", "2", "2", ""]})
    with pytest.raises(DataError, match="cannot be read"): WindowDataset(FolderSource(comp, "train"), table).batch(range(4))
    ds = WindowDataset(FolderSource(comp, "train"), table, errors="nan")
    b = ds.batch(range(4))
    assert b["failed"].tolist() == [False, True, True, True] and sorted(ds.failures) == [1, 2, 3]
    assert torch.isnan(b["eeg"][1]).all() and not torch.isnan(b["spectrogram"][1]).all() and not torch.isnan(b["eeg"][3]).all()
    assert "cannot be read as parquet" in ds.failures[1][0] and "is no id of a file" in ds.failures[2][0]


def test_folder_source_forgets(folder):
    source = FolderSource(folder, "train", keep=2)
    for id in (1, 2, 3, 2): source.eeg(id, 0, 10)
    assert [k[1] for k in source._last] == [3, 2]


def test_real_recordings(real, tmp_path):
    comp = Competition(real / "competition")
    r, f = prepare(comp, tmp_path / "c", progress=False), FolderSource(comp, "train")
    np.testing.assert_allclose(r.eeg(1000913311, 0), f.eeg(1000913311, 0), rtol=2**-11, atol=1e-6)
    np.testing.assert_allclose(r.spectrogram(1000189855, 100), f.spectrogram(1000189855, 100), rtol=.002)
    b = WindowDataset(FolderSource(comp, "test"), comp.test)[0]
    assert b["eeg"].shape == (20, 10_000) and not torch.isnan(b["spectrogram"]).any()
