"One broken EEG or spectrogram file, and how it is read; windows at absurd times."

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_files import eeg_table, spec_table

from hms_hbac.core import CHANNELS, DataError
from hms_hbac.data.files import FAR_ROW, cut_spectrogram, read_eeg, read_spectrogram, spectrogram_row


@pytest.mark.parametrize(
    "change, flag",
    [
        (lambda t: t.drop(columns="Fz"), "missing channel Fz"),
        (lambda t: t.assign(A1=1.0), "extra column A1"),
        (lambda t: t.assign(Fz="x"), "column Fz is not numeric"),
        (lambda t: t[:8_000], "short: 8000 of 10000 samples, padded with NaN"),
        (lambda t: t.assign(Cz=t.Cz.where(t.index > 99)), "NaN in Cz (up to 1.00%)"),
        (lambda t: t.assign(Cz=t.Cz.where(t.index != 5, -np.inf)), "1 infinite values, read as NaN"),
        (lambda t: t.assign(Pz=0.0, O1=7.0), "flat channel O1, Pz"),
        (lambda t: t.assign(Pz=t.Pz.where(t.index != 5, -1e9)), "1 values beyond 65504, clipped"),
        (lambda t: t * 0, "all channels flat"),
        (lambda t: t * np.nan, "all channels flat"),
    ],
)
def test_flags_of_an_eeg(tmp_path, change, flag):
    change(eeg_table()).to_parquet(tmp_path / "1.parquet")
    x, flags = read_eeg(tmp_path / "1.parquet")
    assert flag in flags and x.dtype == np.float32 and len(x) == 20 and not np.isinf(x).any()


def test_eegs_that_hold_nothing(tmp_path):
    eeg_table()[:0].to_parquet(tmp_path / "1.parquet")
    with pytest.raises(DataError, match="no rows"):
        read_eeg(tmp_path / "1.parquet")
    spec_table().to_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match="none of the 20 channels"):
        read_eeg(tmp_path / "2.parquet")
    eeg_table().to_parquet(tmp_path / "3.parquet")
    with pytest.raises(DataError, match="none of the 400 spectrogram columns"):
        read_spectrogram(tmp_path / "3.parquet")


@pytest.mark.parametrize("dtype", ["int16", "int64", "float64", "float16", "Int32"])
def test_columns_by_name_in_any_order_and_dtype(tmp_path, dtype):
    t = eeg_table().round().astype(dtype)
    t[list(CHANNELS[::-1])].to_parquet(tmp_path / "1.parquet")
    np.testing.assert_array_equal(read_eeg(tmp_path / "1.parquet").signal, t.to_numpy("float32").T)


@pytest.mark.parametrize(
    "change, flag",
    [
        (lambda t: t.drop(columns=["LP_0.59", "RP_19.92"]), "missing 2 of 400 columns: LP_0.59, RP_19.92"),
        (lambda t: t.drop(columns="time"), "no usable time column, taken as 1, 3, 5 s"),
        (lambda t: t.drop(index=range(10, 20)), "time steps are not all 2 s"),
        (lambda t: t.assign(other=1), "extra column other"),
        (lambda t: t[::-1], "rows run backwards in time, sorted"),
        (lambda t: t.assign(**{"LL_0.59": 1e30}), "300 values beyond 1.84107e+19, clipped"),
        (lambda t: t[:250], "short: 250 of 300 rows, padded with NaN"),
        (lambda t: t.assign(**{"LL_0.59": -1.0}), "300 negative values, read as NaN"),
        (lambda t: t.assign(**{"LL_0.59": np.inf}), "300 infinite values, read as NaN"),
    ],
)
def test_flags_of_a_spectrogram(tmp_path, change, flag):
    change(spec_table()).to_parquet(tmp_path / "1.parquet")
    power, start, flags = read_spectrogram(tmp_path / "1.parquet")
    assert flag in flags and power.shape[:2] == (4, 100) and start == 1.0 and not (power < 0).any()


def test_rows_that_run_backwards_are_sorted(tmp_path):
    spec_table(310).to_parquet(tmp_path / "1.parquet")
    spec_table(310)[::-1].to_parquet(tmp_path / "2.parquet")
    forth = read_spectrogram(tmp_path / "1.parquet")
    back = read_spectrogram(tmp_path / "2.parquet")
    np.testing.assert_array_equal(forth.power, back.power)
    assert (forth.start_s, forth.flags) == (1.0, ()) and back.start_s == 1.0
    assert back.flags == ("rows run backwards in time, sorted",)


def test_duplicate_columns_are_named_and_the_first_is_read(tmp_path):
    t = pa.Table.from_pandas(eeg_table(), preserve_index=False)
    pq.write_table(t.append_column("Cz", pa.array(np.zeros(10_000, np.float32))), tmp_path / "1.parquet")
    x, flags = read_eeg(tmp_path / "1.parquet")
    assert flags == ("duplicate column Cz, the first is read",)
    np.testing.assert_array_equal(x[CHANNELS.index("Cz")], eeg_table().Cz)


def test_absent_columns_count_as_well(tmp_path):
    "A file of one column and many rows, so small on the disk, was filled up with NaN to 16 GB."
    pq.write_table(pa.table({"LL_0.59": pa.array(np.zeros(10_000_000, np.float32))}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match="10,000,000 rows are too many for a recording"):
        read_spectrogram(tmp_path / "1.parquet")


def test_a_small_file_with_very_many_rows_is_refused_by_its_footer(tmp_path):
    import tracemalloc

    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000_000, np.int8)), pa.array(np.float32([0])))
    pq.write_table(pa.table(dict.fromkeys(CHANNELS[:5], zeros)), tmp_path / "1.parquet")
    assert (tmp_path / "1.parquet").stat().st_size < 2e6
    tracemalloc.start()
    with pytest.raises(DataError, match="30,000,000 rows are too many for a recording"):
        read_eeg(tmp_path / "1.parquet")
    assert tracemalloc.get_traced_memory()[1] < 10e6 and pa.total_allocated_bytes() < 100e6
    tracemalloc.stop()


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "1.parquet")
    (tmp_path / "2.parquet").mkdir()
    (tmp_path / "3.parquet").symlink_to("3.parquet")
    for n in (1, 2, 3):
        with pytest.raises(DataError, match="is no ordinary file"):
            read_eeg(tmp_path / f"{n}.parquet")


def test_start_time_of_a_spectrogram(tmp_path):
    spec_table()[50:].to_parquet(tmp_path / "1.parquet")
    assert read_spectrogram(tmp_path / "1.parquet").start_s == 101.0


@pytest.mark.parametrize("time", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1.7e308])
def test_absurd_times_give_an_empty_window(time):
    power = np.ones((4, 100, 320), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [spectrogram_row(time), spectrogram_row(600, time), *spectrogram_row([time, -time])]
        assert all(abs(row) == FAR_ROW and row.dtype == np.int64 for row in rows)
        assert all(np.isnan(cut_spectrogram(power, row)).all() for row in rows)


def test_a_file_whose_clock_is_absurd(tmp_path):
    table = spec_table().astype({"time": "float64"})
    table["time"] = 1e30
    table.to_parquet(tmp_path / "1.parquet")
    power, start, flags = read_spectrogram(tmp_path / "1.parquet")
    assert "time steps are not all 2 s" in flags
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(cut_spectrogram(power, spectrogram_row(0, start))).all()
