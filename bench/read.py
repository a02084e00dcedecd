"""A day through the reader: how many times real time, how much memory, and whether burden is what was put in.

    python bench/read.py --runs demo/runs [--hours 24 6] [--step 2] [--threads 2] [--folder F]

Each length is simulated as an EDF of 20 channels at 256 Hz (hour by hour, events with known class and
time), then read in a process of its own. The EDF is written here record by record, because edfio wants
it whole. The last line is `times_real=... rss_ratio=... seizure_share=... truth=...`: times real time of
the longest recording, its peak memory over that of the shortest, the share of seizure that was read in
it, and the share that was put in.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hms_hbac.core import CHANNELS, CLASSES

RATE, LOW, HIGH = 256, -3200.0, 3200.0
READ = """
import json, resource, sys, time
import torch
torch.set_num_threads(int(sys.argv[4]))
from hms_hbac.inference.reader import Reader
from hms_hbac.evaluation.burden import totals
from hms_hbac.evaluation.reading import write_reading
reader = Reader(sys.argv[2], step=float(sys.argv[5]), device="cpu")
begin = time.monotonic()
reading = reader.read(sys.argv[1], sys.argv[3], progress=False)
seconds = time.monotonic() - begin
write_reading(reading, sys.argv[3])
whole = time.monotonic() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
share = totals(reading)["share"]
print(json.dumps({"read": seconds, "whole": whole, "peak_mb": peak, "share": share}))
"""


def header(records):
    "An EDF header for the 20 channels, one record a second."
    def field(text, size): return str(text).encode("ascii")[:size].ljust(size)
    n = len(CHANNELS)
    head = field(0, 8) + field("X", 80) + field("simulated", 80) + field("01.01.24", 8) + field("00.00.00", 8)
    head += field(256 * (n + 1), 8) + field("", 44) + field(records, 8) + field(1, 8) + field(n, 4)
    columns = [[f"EEG {c}-REF" for c in CHANNELS], [""] * n, ["uV"] * n, [LOW] * n, [HIGH] * n, [-32768] * n,
               [32767] * n, [""] * n, [RATE] * n, [""] * n]
    sizes = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    cells = zip(columns, sizes, strict=True)
    return head + b"".join(b"".join(field(x, size) for x in column) for column, size in cells)


def hour(rng, scene_seed):
    "An hour of EEG (20, 3600 * RATE) and its classes by second; patterns last one to fifteen minutes."
    from scipy.signal import resample_poly

    from hms_hbac.simulate.artifacts import add_artifacts
    from hms_hbac.simulate.patterns import compose, draw_scene
    name, at = np.full(3600, 5), 0
    while at < 3600:
        last = at + int(rng.uniform(60, 900))
        name[at:last] = rng.choice(6, p=[.12, .1, .1, .08, .1, .5])
        at = last
    edges = np.flatnonzero(np.diff(np.r_[-1, name, -1]))
    shares = np.repeat(np.eye(6, dtype=np.float32)[name].T, 200, 1)
    runs = [(a * 200, b * 200) for a, b in zip(edges, edges[1:], strict=False) if name[a] == 0]
    scene = draw_scene(np.random.default_rng([scene_seed, 0]), np.random.default_rng([scene_seed, 1]))
    x = compose(rng, scene, shares, runs)
    add_artifacts(rng, x)
    return resample_poly(np.nan_to_num(x), 32, 25, axis=1), name


def simulate(path, hours, seed=0):
    "Write a recording of so many hours; returns the classes by second."
    names = []
    with open(path, "wb") as f:
        f.write(header(hours * 3600))
        for h in range(hours):
            x, name = hour(np.random.default_rng([seed, h]), seed)
            stored = np.round((x.clip(LOW, HIGH) - LOW) / (HIGH - LOW) * 65535 - 32768).astype("<i2")
            f.write(np.ascontiguousarray(stored.reshape(20, 3600, RATE).transpose(1, 0, 2)).tobytes())
            names.append(name)
    return np.concatenate(names)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", required=True)
    p.add_argument("--hours", type=int, nargs="+", default=[24, 6])
    p.add_argument("--step", default="2")
    p.add_argument("--threads", default="2")
    p.add_argument("--folder", type=Path)
    a = p.parse_args()
    folder = a.folder or Path(tempfile.mkdtemp())
    got, truth = {}, {}
    for hours in a.hours:
        begin, path = time.monotonic(), folder / f"{hours}h.edf"
        names = simulate(path, hours)
        truth[hours] = {c: float((names == k).mean()) for k, c in enumerate(CLASSES)}
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, simulated in {time.monotonic() - begin:.0f} s")
        args = [path, a.runs, folder / f"out{hours}", a.threads, a.step]
        command = [sys.executable, "-c", READ, *map(str, args)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode: sys.exit(done.returncode)
        got[hours] = r = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{hours} h: read in {r['read']:.0f} s, with all files {r['whole']:.0f} s, "
              f"peak {r['peak_mb']:.0f} MB")
        for c in CLASSES: print(f"  {c:8s} read {r['share'][c]:.3f}  put in {truth[hours][c]:.3f}")
    long, short = max(got), min(got)
    print(f"times_real={3600 * long / got[long]['read']:.0f} "
          f"rss_ratio={got[long]['peak_mb'] / got[short]['peak_mb']:.2f} "
          f"seizure_share={got[long]['share']['seizure']:.3f} truth={truth[long]['seizure']:.3f}")


if __name__ == "__main__": main()
