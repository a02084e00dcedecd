"""How long `prepare` takes compared with only reading the same parquet files, and how its memory grows with
their number.

    python bench/prepare.py [--workers 2] [--files 100 400] [--repeats 5]

Makes its own files of random numbers in a temporary folder (of `files`, five eighths EEGs of 50 s, the rest
spectrograms of 640 s, as in the competition). Wall times are the best of `repeats` interleaved runs, files
in the page cache for both sides; the reader decodes with pyarrow in as many threads and drops the numbers.
Peak memory is the resident set of a fresh process. The last line is `read_ratio=... rss_ratio=...` (aims:
<= 2, <= 1.2).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, time
from pathlib import Path
import pyarrow.parquet as pq
from joblib import Parallel, delayed
from hms_hbac.data.recordings import prepare
what, comp, cache, workers = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sys.path.insert(0, sys.argv[5])
from peak import peak_mb

def read(path):
    with pq.ParquetFile(path) as f: f.read(use_threads=False)
before, start = peak_mb(), time.perf_counter()
if what == "prepare": prepare(comp, cache, workers=workers, progress=False)
else: Parallel(workers, prefer="threads")(delayed(read)(p) for p in sorted(comp.glob("train_*/*.parquet")))
print(json.dumps({"s": time.perf_counter() - start, "peak": peak_mb(), "before": before}))
"""


def make(folder, n):
    "A folder with n parquet files of random numbers."
    import numpy as np
    import pandas as pd

    from hms_hbac.core import CHANNELS, spectrogram_columns

    rng, n_eegs = np.random.default_rng(0), n * 5 // 8
    for name in ("train_eegs", "train_spectrograms"):
        (folder / name).mkdir(parents=True)
    (folder / "test.csv").write_text("spectrogram_id,eeg_id,patient_id\n")
    for id in range(n_eegs):
        x = rng.normal(0, 30, (10_000, 20)).astype("float32")
        pd.DataFrame(x, columns=CHANNELS).to_parquet(folder / f"train_eegs/{id}.parquet")
    for id in range(n - n_eegs):
        s = pd.DataFrame(rng.lognormal(0, 2, (320, 400)).astype("float32"), columns=spectrogram_columns())
        s.insert(0, "time", np.arange(1, 640, 2))
        s.to_parquet(folder / f"train_spectrograms/{id}.parquet")
    return folder


def run(what, comp, cache, workers):
    "One fresh process: its wall time, peak memory and memory before the work (MB)."
    shutil.rmtree(cache, ignore_errors=True)
    out = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(comp), str(cache), str(workers), str(Path(__file__).parent)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--files", type=int, nargs=2, default=(100, 400), metavar=("FEW", "MANY"))
    p.add_argument("--repeats", type=int, default=5)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        few, many = (make(Path(d) / f"comp{n}", n) for n in a.files)
        cache, rows = Path(d) / "cache", []
        for comp, n in ((few, a.files[0]), (many, a.files[1])):
            got = {"read": [], "prepare": []}
            for _ in range(a.repeats):
                for what in got:
                    got[what].append(run(what, comp, cache, a.workers))
            rows.append(
                {
                    "files": n,
                    **{f"{w}_s": min(r["s"] for r in rs) for w, rs in got.items()},
                    "peak": min(r["peak"] for r in got["prepare"]),
                    "before": min(r["before"] for r in got["prepare"]),
                }
            )
    print(f"{'files':>6} {'read s':>8} {'prepare s':>10} {'ratio':>6} {'peak MB':>8} {'of it imports':>14}")
    for r in rows:
        print(
            f"{r['files']:>6} {r['read_s']:>8.2f} {r['prepare_s']:>10.2f} "
            f"{r['prepare_s'] / r['read_s']:>6.2f}"
            f" {r['peak']:>8.0f} {r['before']:>14.0f}"
        )
    few, many = rows
    print(f"read_ratio={many['prepare_s'] / many['read_s']:.2f} rss_ratio={many['peak'] / few['peak']:.2f}")


if __name__ == "__main__":
    main()
