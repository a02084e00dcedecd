"""A day through the reader: how many times real time, how much memory, and whether burden is what was put in.

    python bench/read.py --runs demo/runs [--hours 24 6] [--step 2] [--threads 2] [--folder F]
                         [--rate 512] [--channels 32] [--distinct 2]

Each length is simulated as an EDF at `--rate` Hz (hour by hour, events with known class and time; after
`--distinct` hours the first one comes again), then read in a process of its own. Channels beyond 20 are
others, which nobody asks for. The EDF is written here record by record, because edfio wants it whole. For
each recording: how many hourly burdens lie within the interval that the members' out-of-fold confusion
predicts. 95 % of new patients' burdens do; a recording is one patient, whose hours lie inside or outside
together. Hours that are bad from end to end have no burden. The last line is
`times_real=... peak_mb=... rss_ratio=... inside=...`: times real time of the
longest recording, its peak memory, that over the shortest's, and the share of its burdens inside.
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
from hms_hbac.evaluation.burden import expected_burden
from hms_hbac.inference.members import find_runs
from hms_hbac.training.oof import read_oof

LOW, HIGH = -3200.0, 3200.0
READ = """
import json, resource, sys, time
import torch
torch.set_num_threads(int(sys.argv[4]))
from hms_hbac.inference.reader import Reader
from hms_hbac.core import CLASSES
from hms_hbac.evaluation.burden import burden
from hms_hbac.evaluation.reading import write_reading
reader = Reader(sys.argv[2], step=float(sys.argv[5]), device="cpu")
begin = time.monotonic()
reading = reader.read(sys.argv[1], sys.argv[3], progress=False)
seconds = time.monotonic() - begin
write_reading(reading, sys.argv[3])
whole = time.monotonic() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
shares = burden(reading)[list(CLASSES)].to_numpy().tolist()
print(json.dumps({"read": seconds, "whole": whole, "peak_mb": peak, "shares": shares}))
"""


def header(records, rate, extra):
    "An EDF header for the 20 channels and `extra` others, one record a second."
    def field(text, size): return str(text).encode("ascii")[:size].ljust(size)
    labels = [f"EEG {c}-REF" for c in CHANNELS] + [f"X{i}" for i in range(extra)]
    n = len(labels)
    head = field(0, 8) + field("X", 80) + field("simulated", 80) + field("01.01.24", 8) + field("00.00.00", 8)
    head += field(256 * (n + 1), 8) + field("", 44) + field(records, 8) + field(1, 8) + field(n, 4)
    columns = [labels, [""] * n, ["uV"] * n, [LOW] * n, [HIGH] * n, [-32768] * n, [32767] * n, [""] * n,
               [rate] * n, [""] * n]
    sizes = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    cells = zip(columns, sizes, strict=True)
    return head + b"".join(b"".join(field(x, size) for x in column) for column, size in cells)


def hour(rng, scene_seed, rate):
    "An hour of EEG (20, 3600 * rate) and its classes by second; patterns last one to fifteen minutes."
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
    return resample_poly(np.nan_to_num(x), rate, 200, axis=1), name


def stored_hour(h, seed, rate, extra):
    "Hour `h` as records (3600 records, channels, rate) of int16, and its classes."
    x, name = hour(np.random.default_rng([seed, h]), seed, rate)
    x = np.concatenate([x, x[np.arange(extra) % len(x)]])
    stored = np.round((x.clip(LOW, HIGH) - LOW) / (HIGH - LOW) * 65535 - 32768).astype("<i2")
    return stored.reshape(len(x), 3600, rate).transpose(1, 0, 2), name


def simulate(path, hours, rate, channels, distinct, seed=0):
    "Write a recording of so many hours; returns the classes by second."
    extra, names, kept = max(channels - len(CHANNELS), 0), [], {}
    with open(path, "wb") as f:
        f.write(header(hours * 3600, rate, extra))
        for h in range(hours):
            k = h % distinct
            x, name = kept[k] if k in kept else stored_hour(k, seed, rate, extra)
            if distinct <= 2: kept[k] = x, name
            f.write(np.ascontiguousarray(x).tobytes())
            names.append(name)
    return np.concatenate(names)


def inside(runs, names, shares):
    "Which of the burdens (hours, 6) lie within the interval that out-of-fold confusions predict."
    tables = [read_oof(f) for f in sorted(set(find_runs(runs).values()))]
    events = set.intersection(*(set(t.event_id) for t in tables))
    tables = [t[t.event_id.isin(events)].sort_values("event_id") for t in tables]
    mean = tables[0].assign(**{c: np.mean([t[c].to_numpy() for t in tables], 0) for c in CLASSES})
    truth = np.stack([np.bincount(h, minlength=6) / len(h) for h in names.reshape(-1, 3600)])
    predicted = expected_burden(truth, mean)
    return (predicted[..., 1] <= shares) & (shares <= predicted[..., 2]), truth, predicted


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", required=True)
    p.add_argument("--hours", type=int, nargs="+", default=[24, 6])
    p.add_argument("--step", default="2")
    p.add_argument("--threads", default="2")
    p.add_argument("--rate", type=int, default=256)
    p.add_argument("--channels", type=int, default=20)
    p.add_argument("--distinct", type=int, default=24)
    p.add_argument("--folder", type=Path)
    a = p.parse_args()
    folder, got = a.folder or Path(tempfile.mkdtemp()), {}
    folder.mkdir(parents=True, exist_ok=True)
    for hours in a.hours:
        begin, path = time.monotonic(), folder / f"{hours}h.edf"
        names = simulate(path, hours, a.rate, a.channels, a.distinct)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, simulated in {time.monotonic() - begin:.0f} s")
        args = [path, a.runs, folder / f"out{hours}", a.threads, a.step]
        command = [sys.executable, "-c", READ, *map(str, args)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode: sys.exit(done.returncode)
        got[hours] = r = json.loads(done.stdout.strip().splitlines()[-1])
        good, truth, predicted = inside(a.runs, names, np.array(r["shares"])[:hours])
        counted = np.isfinite(r["shares"])[:hours]
        good = good[counted]
        r["inside"] = good.mean()
        print(f"{hours} h: read in {r['read']:.0f} s, with all files {r['whole']:.0f} s, "
              f"peak {r['peak_mb']:.0f} MB; {good.sum()} of {good.size} burdens inside their intervals, "
              f"{(~counted.any(1)).sum()} hours do not count")
        for k, c in enumerate(CLASSES):
            low, high = predicted[:, k, 1].mean(), predicted[:, k, 2].mean()
            print(f"  {c:8s} read {np.nanmean(r['shares'], 0)[k]:.3f}  put in {truth[:, k].mean():.3f}  "
                  f"expected {predicted[:, k, 0].mean():.3f} ({low:.3f} to {high:.3f} an hour)")
    long, short = max(got), min(got)
    print(f"times_real={3600 * long / got[long]['read']:.0f} peak_mb={got[long]['peak_mb']:.0f} "
          f"rss_ratio={got[long]['peak_mb'] / got[short]['peak_mb']:.2f} inside={got[long]['inside']:.2f}")


if __name__ == "__main__": main()
