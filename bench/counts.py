"""`prepare` on as many files as the competition has, of the lengths that they have there.

    python bench/counts.py [--share 1.0] [--workers 2] [--place FOLDER]

17,001 EEGs and 11,087 spectrograms: forty-two files of random numbers, each linked under as many ids as
the competition has files of about its length (twenty steps of the lengths that train.csv tells, and the
longest). Needs 20 GB in `place` (default: the folder for temporary files), which are given back. `share`
takes so much of all files. The files lie in the page cache, as a second run over real ones would find them.

The last line is `files=... cache_gb=... seconds=... read_ratio=... peak_mb=...`: the time of `prepare`, the
same over that of only reading the files (as in bench/prepare.py), and the memory of its process at the
peak, imports included.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from prepare import run

from hms_hbac.core import CHANNELS, EEG_RATE, spectrogram_columns
from hms_hbac.simulate.competition import write_parquet

# seconds from the first to the last second that a label row of train.csv needs: the middles of twenty equal
# parts of all files by length
LENGTHS = {
    "eegs": [50, 50, 50, 50, 50, 50, 50, 52, 54, 56, 58, 62, 68, 74, 80, 90, 102, 118, 144, 220],
    "spectrograms": [600, 600, 600, 600, 602, 604, 606, 610, 614, 620,
                     626, 636, 648, 666, 690, 734, 840, 1006, 1197, 1814],
}
COUNTS = {"eegs": 17_001, "spectrograms": 11_087}
LONGEST = {"eegs": 3422, "spectrograms": 18_232}


def write(path, kind, seconds, rng):
    "A file of random numbers in the form of the competition's."
    if kind == "eegs":
        values = np.cumsum(rng.normal(0, 4, (20, seconds * EEG_RATE)).astype(np.float32), 1)
        values -= np.linspace(0, 1, values.shape[1], dtype=np.float32) * values[:, -1:]
        write_parquet(path, dict(zip(CHANNELS, values.round(2), strict=True)))
    else:
        values = rng.lognormal(0, 2, (400, seconds // 2)).astype(np.float32).round(2)
        time = {"time": 1 + 2 * np.arange(seconds // 2)}
        write_parquet(path, time | dict(zip(spectrogram_columns(), values, strict=True)), plain=True)


def make(comp, share):
    "The folder: (number of files, gigabytes of parquet that they name)."
    rng, files, size = np.random.default_rng(0), 0, 0
    for kind, lengths in LENGTHS.items():
        folder, source = comp / f"train_{kind}", comp / kind
        folder.mkdir(parents=True), source.mkdir()
        for k, seconds in enumerate([*lengths, LONGEST[kind]]):
            write(source / f"{k}.parquet", kind, seconds, rng)
        count = max(1, round(COUNTS[kind] * share))
        for i in range(count):
            k = len(lengths) if i == count - 1 else i % len(lengths)
            os.link(source / f"{k}.parquet", folder / f"{i}.parquet")
            size += (source / f"{k}.parquet").stat().st_size
        files += count
    (comp / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n")
    return files, size / 1e9


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--share", type=float, default=1.0)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--place", type=Path, default=None)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.place) as d:
        comp, cache = Path(d) / "comp", Path(d) / "cache"
        files, size = make(comp, a.share)
        print(f"{files} files, {size:.1f} GB of parquet, {a.workers} workers", flush=True)
        read, done = (run(what, comp, cache, a.workers) for what in ("read", "prepare"))
        cache_gb = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 1e9
    print(f"reading {read['s']:.1f} s; prepare {done['s']:.1f} s, of {done['peak']:.0f} MB at the peak "
          f"{done['before']:.0f} are imports")
    print(f"files={files} cache_gb={cache_gb:.1f} seconds={done['s']:.0f} "
          f"read_ratio={done['s'] / read['s']:.2f} peak_mb={done['peak']:.0f}")


if __name__ == "__main__":
    main()
