"Five hundred ways to spoil a file, drawn by hypothesis: predict never raises, every row is valid."

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hms_hbac.core import CHANNELS, VOTES, spectrogram_columns
from hms_hbac.inference.ensemble import check_submission
from hms_hbac.inference.members import FoldModel, Models
from hms_hbac.inference.predict import predict
from hms_hbac.views.algebra import Panels
from hms_hbac.views.sequences import RawImage

EXAMPLES = int(os.environ.get("HMS_CORRUPTIONS", 520))


class Tiny(torch.nn.Module):
    "A system in one matrix: a real view, then fixed random weights on a coarse grid of it."

    def __init__(self, view, seed):
        super().__init__()
        self.view = view
        self.weight = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) / 4

    def classify(self, x):
        return (
            torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), (8, 8)).flatten(1) @ self.weight
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, models, files of row 2, their bytes, the good row's line in the clean
    submission, their tables).

    Row 1 is good, row 2 suffers."""
    comp = tmp_path_factory.mktemp("corrupt")
    rng = np.random.default_rng(0)
    for kind in ("eegs", "spectrograms"):
        (comp / f"test_{kind}").mkdir()
    for i in (1, 2):
        eeg = pd.DataFrame(
            rng.normal(0, 30, (10_000, 20)).round(1).astype(np.float32), columns=list(CHANNELS)
        )
        eeg.to_parquet(comp / f"test_eegs/{i}.parquet")
        spec = pd.DataFrame(rng.lognormal(0, 1, (300, 400)).astype(np.float32), columns=spectrogram_columns())
        spec.assign(time=np.arange(1, 600, 2)).to_parquet(comp / f"test_spectrograms/{100 + i}.parquet")
    (comp / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n101,1,1\n102,2,1\n")
    models = Models(
        [
            FoldModel(
                "spec",
                "spec",
                Tiny(Panels(), 1),
                [lambda b: b],
                lambda x: x.softmax(-1),
                prior=np.full(6, 1 / 6),
            ),
            FoldModel("raw", "raw", Tiny(RawImage(rows=4), 2), [lambda b: b], lambda x: x.softmax(-1)),
        ],
        torch.device("cpu"),
    )
    files = {
        kind: comp / name
        for kind, name in (("eeg", "test_eegs/2.parquet"), ("spectrogram", "test_spectrograms/102.parquet"))
    }
    original = {k: f.read_bytes() for k, f in files.items()}
    assert predict(models, comp, comp / "s.csv", batch_size=2, progress=False) == 0
    line = (comp / "s.csv").read_text().splitlines()[1]
    assert len(set(line.split(",")[1:])) == 6
    tables = {k: pq.read_table(pa.BufferReader(b)) for k, b in original.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # twice 600 times: the disk would be all that is measured
        yield comp, models, files, original, line, tables


# ---- corruptions of bytes -------------------------------------------------------------------


def flip(data, at, n, value):
    data = bytearray(data)
    for k in range(n):
        data[(at + k * 7919) % len(data)] ^= value
    return bytes(data)


BYTES = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**7), st.integers(1, 40), st.integers(1, 255)),
    st.tuples(
        st.just("foot"), st.integers(1, 6000), st.integers(1, 20), st.integers(1, 255)
    ),  # the metadata at the end
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("head off"), st.floats(0, 1)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=50)),
    st.tuples(st.just("replace"), st.binary(max_size=100)),
    st.tuples(st.just("wrap"), st.binary(max_size=100)),
)


def spoil_bytes(data, how):
    kind, *a = how
    if kind == "flip":
        return flip(data, *a)
    if kind == "foot":
        return flip(data, len(data) - a[0], a[1], a[2])
    if kind == "cut":
        return data[: int(a[0] * len(data))]
    if kind == "head off":
        return data[int(a[0] * len(data)) :]
    if kind == "insert":
        return data[: int(a[0] * len(data))] + a[1] + data[int(a[0] * len(data)) :]
    return a[0] if kind == "replace" else b"PAR1" + a[0] + b"PAR1"


# ---- corruptions of columns and values ------------------------------------------------------

NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e6, 1e30, 3.4e38, -3.4e38])
TYPES = (
    "string",
    "int8",
    "int64",
    "uint64",
    "double",
    "float16",
    "bool",
    "null",
    "binary",
    "timestamp",
    "list",
    "dictionary",
    "decimal",
    "struct",
)
COLUMNS = st.one_of(
    st.tuples(st.just("drop"), st.lists(st.integers(0, 500), min_size=1, max_size=20)),
    st.tuples(st.just("keep"), st.lists(st.integers(0, 500), max_size=3)),
    st.tuples(st.just("rename"), st.integers(0, 500), st.text(max_size=8)),
    st.tuples(st.just("twice"), st.integers(0, 500)),
    st.tuples(st.just("type"), st.integers(0, 500), st.sampled_from(TYPES)),
    st.tuples(st.just("type of all"), st.sampled_from(TYPES)),
    st.tuples(st.just("rows"), st.sampled_from([0, 1, 2, 3, 7, 199, 299, 301, 2000, 9999, 10_001, 70_000])),
    st.tuples(st.just("reverse columns")),
)
VALUES = st.one_of(
    st.tuples(st.just("all"), NUMBERS),
    st.tuples(st.just("column"), st.integers(0, 500), NUMBERS),
    st.tuples(st.just("span"), st.integers(0, 9999), st.integers(1, 9999), NUMBERS),
    st.tuples(st.just("sprinkle"), st.integers(0, 2**31), st.floats(0, 1), NUMBERS),
    st.tuples(st.just("scale"), st.sampled_from([0.0, -1.0, 1e-20, 1e20, 1e38])),
    st.tuples(st.just("one left"), st.integers(0, 500)),
)


def retype(column, kind):
    values = column.to_numpy()
    n = len(values)
    with np.errstate(all="ignore"):
        if kind == "string":
            return pa.array([str(v) for v in values])
        if kind in ("int8", "int64", "uint64", "double", "float16"):
            return pa.array(np.nan_to_num(values).astype({"double": "float64"}.get(kind, kind)))
        if kind == "bool":
            return pa.array(values > 0)
        if kind == "null":
            return pa.nulls(n)
        if kind == "binary":
            return pa.array([b"\x00\xff"] * n)
        if kind == "timestamp":
            return pa.array(np.nan_to_num(values).astype("int64"), pa.timestamp("us"))
        if kind == "list":
            return pa.array([[1.0, 2.0]] * n)
        if kind == "dictionary":
            return pa.array(
                [str(round(float(v)) % 5) if np.isfinite(v) else "x" for v in values]
            ).dictionary_encode()
        if kind == "decimal":
            return pa.array([None] * n, pa.decimal128(10, 2))
        return pa.array([{"a": 1.0}] * n)


def spoil_columns(table, how):
    kind, *a = how
    names = table.column_names

    def at(i):
        return i % len(names)

    if kind == "drop":
        return table.drop_columns(list({names[at(i)] for i in a[0]}))
    if kind == "keep":
        return table.select(list({names[at(i)] for i in a[0]}))
    if kind == "rename":
        return table.rename_columns([a[1] if i == at(a[0]) else n for i, n in enumerate(names)])
    if kind == "twice":
        return table.append_column(names[at(a[0])], table.column(at(a[0])))
    if kind == "type":
        return table.set_column(at(a[0]), names[at(a[0])], retype(table.column(at(a[0])), a[1]))
    if kind == "type of all":
        few = names[:20]
        return pa.table({n: retype(table.column(n), a[0]) for n in few})
    if kind == "rows":
        return table.take(pa.array(np.arange(a[0]) % len(table)))
    return table.select(names[::-1])


def spoil_values(table, how):
    kind, *a = how
    x = np.stack([c.to_numpy().astype(np.float32) for c in table.columns], 1)
    with np.errstate(all="ignore"):
        if kind == "all":
            x[:] = a[0]
        elif kind == "column":
            x[:, a[0] % x.shape[1]] = a[1]
        elif kind == "span":
            x[a[0] % len(x) :][: a[1]] = a[2]
        elif kind == "sprinkle":
            x[np.random.default_rng(a[0]).random(x.shape) < a[1]] = a[2]
        elif kind == "scale":
            x *= np.float32(a[0])
        else:
            keep = a[0] % x.shape[1]
            x[:, [i for i in range(x.shape[1]) if i != keep]] = np.nan
    return pa.table({n: x[:, i] for i, n in enumerate(table.column_names)})


def check(place, kind, spoil):
    "Spoil one file of row 2, predict, and look at what was written."
    comp, models, files, original, line, _ = place
    try:
        spoil(files[kind])
        status = predict(models, comp, comp / "s.csv", batch_size=2, progress=False)
        lines = (comp / "s.csv").read_text().splitlines()
        assert check_submission(comp / "s.csv", comp) == []
        assert len(lines) == 3 and lines[1] == line, "the good row moved"
        rows = len((comp / "s_prediction_report.csv").read_text().splitlines()) - 1
        assert status == (3 if rows else 0)
    finally:
        files[kind].write_bytes(original[kind])


common = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
FILE = st.sampled_from(["eeg", "spectrogram"])


@settings(max_examples=EXAMPLES // 2, **common)
@given(kind=FILE, how=BYTES)
def test_any_bytes(place, kind, how):
    check(place, kind, lambda f: f.write_bytes(spoil_bytes(place[3][kind], how)))


@settings(max_examples=EXAMPLES // 4, **common)
@given(kind=FILE, how=COLUMNS)
def test_any_columns(place, kind, how):
    check(place, kind, lambda f: pq.write_table(spoil_columns(place[5][kind], how), f))


@settings(max_examples=EXAMPLES // 4, **common)
@given(kind=FILE, how=VALUES)
def test_any_values(place, kind, how):
    check(place, kind, lambda f: pq.write_table(spoil_values(place[5][kind], how), f))


@settings(max_examples=60, **common)
@given(
    ids=st.lists(
        st.one_of(
            st.integers(-(2**70), 2**70).map(str),
            st.text(
                alphabet=st.characters(blacklist_characters='",\r\n\x00', blacklist_categories=["Cs"]),
                max_size=12,
            ),
            st.sampled_from(["1", "2", "1.0", "", "nan"]),
        ),
        max_size=5,
    )
)
def test_any_ids(place, ids):
    "Whatever stands in test.csv, there is a row for each, in order."
    comp, models, *_ = place
    table = (comp / "test.csv").read_text()
    try:
        (comp / "test.csv").write_text(
            "spectrogram_id,eeg_id,patient_id\n" + "".join(f"102,{i},1\n" for i in ids), encoding="utf-8"
        )
        predict(models, comp, comp / "s.csv", batch_size=2, progress=False)
        frame = pd.read_csv(comp / "s.csv", dtype=str, keep_default_na=False)
        p = frame[list(VOTES)].astype(float).to_numpy()
        assert len(frame) == len(ids) and np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1)
        assert check_submission(comp / "s.csv", comp) == []
    finally:
        (comp / "test.csv").write_text(table)
