"One broken EEG or spectrogram file, and how it is read; windows at absurd times."
import warnings

import numpy as np
import pytest

from hms_hbac.core import CHANNELS, DataError
from hms_hbac.data.files import FAR_ROW, cut_spectrogram, read_eeg, read_spectrogram, spectrogram_row
from toy_files import eeg_table, spec_table


@pytest.mark.parametrize("change, flag", [
    (lambda t: t.drop(columns="Fz"), "missing channel Fz"),
    (lambda t: t.assign(A1=1.0), "extra column A1"),
    (lambda t: t.assign(Fz="x"), "column Fz is not numeric"),
    (lambda t: t[:8_000], "short: 8000 of 10000 samples, padded with NaN"),
    (lambda t: t.assign(Cz=t.Cz.where(t.index > 99)), "NaN in Cz (up to 1.00%)"),
    (lambda t: t.assign(Cz=t.Cz.where(t.index != 5, -np.inf)), "1 infinite values, read as NaN"),
    (lambda t: t.assign(Pz=0.0, O1=7.0), "flat channel O1, Pz"),
    (lambda t: t * 0, "all channels flat"),
    (lambda t: t * np.nan, "all channels flat"),
])
def test_flags_of_an_eeg(tmp_path, change, flag):
    change(eeg_table()).to_parquet(tmp_path / "1.parquet")
    x, flags = read_eeg(tmp_path / "1.parquet")
    assert flag in flags and x.dtype == np.float32 and len(x) == 20 and not np.isinf(x).any()


def test_eegs_that_hold_nothing(tmp_path):
    eeg_table()[:0].to_parquet(tmp_path / "1.parquet")
    with pytest.raises(DataError, match="no rows"): read_eeg(tmp_path / "1.parquet")
    spec_table().to_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match="none of the 20 channels"): read_eeg(tmp_path / "2.parquet")
    eeg_table().to_parquet(tmp_path / "3.parquet")
    with pytest.raises(DataError, match="none of the 400 spectrogram columns"): read_spectrogram(tmp_path / "3.parquet")


@pytest.mark.parametrize("dtype", ["int16", "int64", "float64", "float16", "Int32"])
def test_columns_by_name_in_any_order_and_dtype(tmp_path, dtype):
    t = eeg_table().round().astype(dtype)
    t[list(CHANNELS[::-1])].to_parquet(tmp_path / "1.parquet")
    np.testing.assert_array_equal(read_eeg(tmp_path / "1.parquet").signal, t.to_numpy("float32").T)


@pytest.mark.parametrize("change, flag", [
    (lambda t: t.drop(columns=["LP_0.59", "RP_19.92"]), "missing 2 of 400 columns: LP_0.59, RP_19.92"),
    (lambda t: t.drop(columns="time"), "no usable time column, taken as 1, 3, 5 s"),
    (lambda t: t.drop(index=range(10, 20)), "time steps are not all 2 s"),
    (lambda t: t.assign(other=1), "extra column other"),
    (lambda t: t[:250], "short: 250 of 300 rows, padded with NaN"),
    (lambda t: t.assign(**{"LL_0.59": -1.0}), "300 negative values, read as NaN"),
    (lambda t: t.assign(**{"LL_0.59": np.inf}), "300 infinite values, read as NaN"),
])
def test_flags_of_a_spectrogram(tmp_path, change, flag):
    change(spec_table()).to_parquet(tmp_path / "1.parquet")
    power, start, flags = read_spectrogram(tmp_path / "1.parquet")
    assert flag in flags and power.shape[:2] == (4, 100) and start == 1.0 and not (power < 0).any()


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
