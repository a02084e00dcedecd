"The cache: same bytes whatever makes it, survival of kill -9, refusal of other files, damage that is named."

import os
import shutil
import threading
import time

import numpy as np
import pytest
from apart import begun

from hms_hbac.core import DataError, HmsError, read_json, write_json
from hms_hbac.data import recordings
from hms_hbac.data.competition import Competition
from hms_hbac.data.recordings import Recordings, prepare, shard_path
from hms_hbac.data.windows import FolderSource


def same(a, b):
    "Both caches hold the same shards and the same index, byte for byte."
    names = sorted(p.name for p in (a / "shards").iterdir())
    assert names == sorted(p.name for p in (b / "shards").iterdir()) and len(names) == 2 * (3 + 2)
    for p in [*(f"shards/{n}" for n in names), "index.parquet"]:
        assert (a / p).read_bytes() == (b / p).read_bytes(), p


# ---- building


@pytest.mark.parametrize("workers, backend", [(3, None), (2, "loky"), (2, "multiprocessing")])
def test_same_bytes_for_any_workers_and_backend(folder, cache, tmp_path, workers, backend):
    prepare(folder, tmp_path / "c", workers=workers, backend=backend, progress=False)
    same(tmp_path / "c", cache)


def test_unknown_backend(folder, tmp_path):
    with pytest.raises(HmsError, match="Invalid backend: steam"):
        prepare(folder, tmp_path / "c", backend="steam", progress=False)


def prepare_slowly(folder, cache):
    pack = recordings.pack_file

    def slow(*a):
        time.sleep(0.02)
        return pack(*a)

    recordings.pack_file = slow
    prepare(folder, cache, workers=2, progress=False)


def test_kill_minus_nine_and_resume(folder, cache, tmp_path, monkeypatch):
    child, _ = begun(prepare_slowly, folder, tmp_path / "c")
    until, shards = time.time() + 60, tmp_path / "c/shards"
    while time.time() < until and len(list(shards.glob("*.json"))) < 2 and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    done = {p.stem for p in (tmp_path / "c/shards").glob("*.json")}
    assert 2 <= len(done) < 5
    with pytest.raises(DataError, match="the cache is not complete"):
        Recordings(tmp_path / "c")
    read, pack = [], recordings.pack_file
    monkeypatch.setattr(
        recordings, "pack_file", lambda kind, path: (read.append((kind, int(path.stem))), pack(kind, path))[1]
    )
    prepare(folder, tmp_path / "c", workers=1, progress=False)
    again = {f"{kind}-{(id - 1) // 32:05d}" for kind, id in read}
    assert not again & done and len(read) < 110  # only missing shards are read
    same(tmp_path / "c", cache)
    assert not list((tmp_path / "c").glob("**/.*.part"))  # and the half files are gone
    read.clear()
    prepare(folder, tmp_path / "c", progress=False)
    assert read == []


def test_half_states_are_done_again(folder, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "c")
    shard_path(tmp_path / "c", "eegs", 0, "json").unlink()  # killed between the two renames
    data = shard_path(tmp_path / "c", "eegs", 1, "f16")
    data.write_bytes(data.read_bytes()[:-2])
    (tmp_path / "c/index.parquet").unlink()
    prepare(folder, tmp_path / "c", progress=False)
    same(tmp_path / "c", cache)


def test_other_files_are_refused(folder, cache, tmp_path):
    other = shutil.copytree(folder, tmp_path / "comp")
    prepare(other, cache, progress=False)  # a copy is the same competition
    shutil.copy(other / "train_eegs/2.parquet", other / "train_eegs/3.parquet")
    with pytest.raises(DataError, match="the cache was made from other files"):
        prepare(other, cache, progress=False)
    (other / "train_eegs/3.parquet").unlink()
    with pytest.raises(DataError, match="the cache was made from other files"):
        prepare(other, cache, progress=False)


def test_other_formats_and_folders_are_refused(folder, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "c")
    write_json(tmp_path / "c/meta.json", read_json(cache / "meta.json") | {"format": 0})
    with pytest.raises(DataError, match="cache of format 0, wanted 1"):
        prepare(folder, tmp_path / "c", progress=False)
    with pytest.raises(DataError, match="cache of another format"):
        Recordings(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty and holds no cache"):
        prepare(folder, tmp_path / "d", progress=False)
    with pytest.raises(DataError, match="no such file"):
        Recordings(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/test.csv").write_text("eeg_id\n")
    with pytest.raises(DataError, match="no recordings in train_eegs"):
        prepare(tmp_path / "e", tmp_path / "f", progress=False)


def test_the_second_prepare_waits_says_so_and_finds_the_work_done(
    folder, cache, tmp_path, monkeypatch, capfd
):
    half = shutil.copytree(cache, tmp_path / "c")
    shard_path(half, "eegs", 2, "json").unlink()
    written, write = [], recordings.write_shard
    monkeypatch.setattr(recordings, "write_shard", lambda *task: written.append(task[2]) or write(*task))
    second = threading.Thread(target=prepare, args=(folder, half), kwargs={"workers": 1})
    with recordings.locked(half):
        prepare(folder, cache, progress=False)  # complete: nothing to wait for
        second.start()
        second.join(0.5)
        assert second.is_alive() and written == []  # it waits, and has said for whom
        assert f"{half}: process {os.getpid()} on " in (told := capfd.readouterr().err) and "waiting" in told
        tasks, missing = recordings.plan(Competition(folder), half, read_json(half / "meta.json"))
        for task in missing:
            write(*task)
        recordings.write_index(half, tasks)
    second.join(60)
    assert not second.is_alive() and written == []  # the first one's work is taken over
    same(half, cache)


def test_nobody_removes_what_the_next_one_claims_the_cache_with(folder, tmp_path):
    "A second process that is about to write meta.json keeps its temporary file; other remains go."
    recordings.claim(tmp_path, Competition(folder))
    mine = tmp_path / ".meta.json.x.part"
    left = tmp_path / ".index.parquet.x.part"
    for p in (mine, left): p.write_text("half")
    prepare(folder, tmp_path, workers=1, progress=False)
    assert mine.exists() and not left.exists()


def test_a_file_that_vanishes_stops_the_work(folder, tmp_path):
    comp = shutil.copytree(folder, tmp_path / "comp")
    meta = recordings.claim(tmp_path / "c", Competition(comp))
    tasks, _ = recordings.plan(Competition(comp), tmp_path / "c", meta)
    (comp / "train_eegs/4.parquet").unlink()
    with pytest.raises(DataError, match="4.parquet: no such file"):
        recordings.write_shard(*tasks[0])
    with pytest.raises(DataError, match="belongs to other files"):
        recordings.write_shard(*tasks[0][:4], "otherprint")


# ---- Dask


def test_dask_makes_the_same_bytes_though_a_worker_dies(folder, cache, tmp_path, cluster):

    from distributed import Client

    address, workers = cluster
    with Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)

    def shoot():
        until = time.time() + 60
        while time.time() < until and not list((tmp_path / "c").glob("shards/.*.part")):
            time.sleep(0.002)
        workers[0].kill()  # it holds at least one of the shards now

    killer = threading.Thread(target=shoot)
    killer.start()
    prepare(folder, tmp_path / "c", dask=address, progress=False)
    killer.join()
    assert workers[0].wait(10) != 0 and workers[1].poll() is None
    for part in (tmp_path / "c").glob("**/.*.part"):
        part.unlink()
    same(tmp_path / "c", cache)


def test_dask_without_a_scheduler(folder, tmp_path):
    pytest.importorskip("distributed")
    import dask
    with (dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
          pytest.raises(HmsError, match="no Dask scheduler answers")):
        list(recordings.on_cluster(recordings.write_shard, [], "tcp://127.0.0.1:9"))


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
        np.testing.assert_allclose(x, y, rtol=0.002)
    assert a.start_s(5) == b.start_s(5) == 1.0


def test_missing_and_broken_recordings(cache, folder):
    r = Recordings(cache)
    with pytest.raises(DataError, match="no recording 999 among the eegs"):
        r.eeg(999, 0)
    with pytest.raises(DataError, match="eegs/60.parquet: cannot be read as parquet"):
        r.eeg(60, 0)
    assert r.index[["id", "error"]][r.index.error != ""].id.tolist() == [60]
    assert r.has("eegs", 7) and not r.has("eegs", 60)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: p.unlink(), "a shard is missing or empty"),
        (lambda p: p.write_bytes(b""), "a shard is missing or empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "a shard is cut short"),
    ],
)
def test_shards_of_another_size_are_named_when_the_cache_is_opened(cache, tmp_path, damage, message):
    shutil.copytree(cache, tmp_path / "c")
    damage(shard_path(tmp_path / "c", "eegs", 0, "f16"))
    with pytest.raises(DataError, match=message) as e:
        Recordings(tmp_path / "c")
    assert "eegs-00000.f16" in str(e.value) and "cure: run prepare again" in str(e.value)


def test_a_shard_of_zeros_is_named_on_first_use_and_made_anew(folder, cache, tmp_path):
    "Right size, wrong numbers: a sampled checksum sees it before the first window, `verify` writes it again."
    shutil.copytree(cache, tmp_path / "c")
    for kind in ("eegs", "spectrograms"):
        path = shard_path(tmp_path / "c", kind, 1, "f16")
        path.write_bytes(bytes(path.stat().st_size))
    r = Recordings(tmp_path / "c")
    assert r.eeg(7, 0).shape == (20, 10_000)  # the other shards are sound
    with pytest.raises(DataError, match="eegs-00001.f16: a shard does not hold what was written"):
        r.eeg(40, 0)
    with pytest.raises(DataError, match="spectrograms-00001.f16: a shard does not"):
        r.spectrogram(40, 0)
    prepare(folder, tmp_path / "c", progress=False, verify=True)
    same(tmp_path / "c", cache)


def test_one_changed_value_is_found_by_verify(folder, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "c")
    path = shard_path(tmp_path / "c", "eegs", 2, "f16")
    data = bytearray(path.read_bytes())
    data[1_001] ^= 1  # no sample stands there
    path.write_bytes(data)
    task = (tmp_path / "c", "eegs", 2)
    assert recordings.shard_done(*task) and not recordings.shard_done(*task, whole=True)
    prepare(folder, tmp_path / "c", progress=False, verify=True)
    same(tmp_path / "c", cache)


def test_a_cache_without_checksums_still_opens(folder, cache, tmp_path):
    "Caches that were made before shards had checksums."
    shutil.copytree(cache, tmp_path / "c")
    for path in (tmp_path / "c/shards").glob("*.json"):
        write_json(path, {k: v for k, v in read_json(path).items() if k in ("bytes", "entries")})
    np.testing.assert_array_equal(
        prepare(folder, tmp_path / "c", verify=True).eeg(7, 0), Recordings(cache).eeg(7, 0)
    )
    assert recordings.plan(Competition(folder), tmp_path / "c", read_json(cache / "meta.json"))[1] == []


def test_real_recordings(real, tmp_path):
    comp = Competition(real / "competition")
    r = prepare(comp, tmp_path / "c", progress=False)
    f = FolderSource(comp, "train")
    np.testing.assert_allclose(r.eeg(1000913311, 0), f.eeg(1000913311, 0), rtol=2**-11, atol=1e-6)
    np.testing.assert_allclose(r.spectrogram(1000189855, 100), f.spectrogram(1000189855, 100), rtol=0.002)
