"""A day through the reader: how many times real time, how much memory, and whether burden is what was put in.

    python bench/read.py --runs demo/runs [--hours 24 6] [--step 2] [--threads 2] [--folder F]
                         [--rate 512] [--channels 32] [--distinct 2]
    python bench/read.py --runs demo/runs --patients 12 --hours 2

Each length is simulated as an EDF at `--rate` Hz (hour by hour, events with known class and time; after
`--distinct` hours the first one comes again), then read in a process of its own. Channels beyond 20 are
others, which nobody asks for. The EDF is written here record by record, because edfio wants it whole. For
each recording: how many hourly burdens lie within the interval that the members' out-of-fold confusion
predicts. 95 % of new patients' burdens do; a recording is one patient, whose hours lie inside or outside
together. Hours that are bad from end to end have no burden. The last line is
`times_real=... peak_mb=... rss_ratio=... inside=...`: times real time of the longest recording, its peak
memory in MB (10**6 bytes), that over the shortest's, and the share of its burdens inside.

`--patients` asks whether the interval keeps its promise: so many recordings, each of another simulated
patient whom no member has seen, and six burdens for each (the share of each class in what counts). How many
lie inside is told with its exact binomial interval: of each class, where patients are independent, and in the
last line, `inside=... of=... low=... high=...`, of all, as if a patient's six burdens were independent, too.
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
import json, sys, time
import torch
sys.path.insert(0, sys.argv[6])
from peak import peak_mb
torch.set_num_threads(int(sys.argv[4]))
from hms_hbac.inference.reader import Reader
from hms_hbac.core import CLASSES
from hms_hbac.evaluation.burden import burden, totals
from hms_hbac.evaluation.reading import write_reading
reader = Reader(sys.argv[2], step=float(sys.argv[5]), device="cpu")
begin = time.monotonic()
reading = reader.read(sys.argv[1], sys.argv[3], progress=False)
seconds = time.monotonic() - begin
write_reading(reading, sys.argv[3])
whole = time.monotonic() - begin
shares = burden(reading)[list(CLASSES)].to_numpy().tolist()
total = list(totals(reading)["share"].values())
print(json.dumps({"read": seconds, "whole": whole, "peak_mb": peak_mb(), "shares": shares, "total": total}))
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


def answers(runs):
    "The out-of-fold table of all recipes' mean answer, on the events that all of them have."
    tables = [read_oof(f) for f in sorted(set(find_runs(runs).values()))]
    events = set.intersection(*(set(t.event_id) for t in tables))
    tables = [t[t.event_id.isin(events)].sort_values("event_id") for t in tables]
    return tables[0].assign(**{c: np.mean([t[c].to_numpy() for t in tables], 0) for c in CLASSES})


def inside(runs, names, shares, seconds=3600):
    "Which burdens (parts, 6) of so many seconds lie within the interval that out-of-fold confusions predict."
    truth = np.stack([np.bincount(h, minlength=6) / len(h) for h in names.reshape(-1, seconds)])
    predicted = expected_burden(truth, answers(runs), windows=seconds // 2)
    return (predicted[..., 1] <= shares) & (shares <= predicted[..., 2]), truth, predicted


def read_apart(path, out, a):
    "What a process of its own tells of reading `path`."
    args = [path, a.runs, out, a.threads, a.step, Path(__file__).parent]
    done = subprocess.run([sys.executable, "-c", READ, *map(str, args)], stdout=subprocess.PIPE, text=True)
    if done.returncode: sys.exit(done.returncode)
    return json.loads(done.stdout.strip().splitlines()[-1])


def lengths(a, folder):
    "One patient's recordings of `--hours`."
    got = {}
    for hours in a.hours:
        begin, path = time.monotonic(), folder / f"{hours}h.edf"
        names = simulate(path, hours, a.rate, a.channels, a.distinct)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, simulated in {time.monotonic() - begin:.0f} s")
        got[hours] = r = read_apart(path, folder / f"out{hours}", a)
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


def share_of(good):
    "Share of a row of truths, and its exact 95 % binomial interval (Clopper and Pearson)."
    from scipy.stats import binomtest
    interval = binomtest(int(good.sum()), good.size).proportion_ci(method="exact")
    return good.mean(), interval.low, interval.high


def many(a, folder):
    "Recordings of `--patients`, each of the first of `--hours`, against their intervals."
    hours, rows = a.hours[0], []
    for p in range(a.patients):
        path = folder / f"patient{p}.edf"
        names = simulate(path, hours, a.rate, a.channels, hours, seed=1000 + p)
        found = np.array([read_apart(path, folder / f"patient{p}", a)["total"]], float)
        path.unlink()
        good, truth, predicted = inside(a.runs, names, found, 3600 * hours)
        out = ", ".join(c for c, g in zip(CLASSES, good[0], strict=True) if not g)
        print(f"patient {p}: {good.sum()} of 6 inside{f'; outside: {out}' if out else ''}", flush=True)
        rows.append((good[0], found[0], truth[0], predicted[0, :, 1], predicted[0, :, 2]))
    good, found, truth, low, high = (np.stack(x) for x in zip(*rows, strict=True))
    for k, c in enumerate(CLASSES):
        _, least, most = share_of(good[:, k])
        print(f"  {c:8s} {good[:, k].sum()} of {len(good)} inside ({least:.2f} to {most:.2f}); read "
              f"{found[:, k].mean():.3f}, put in {truth[:, k].mean():.3f}, interval on average "
              f"{low[:, k].mean():.3f} to {high[:, k].mean():.3f}")
    print(f"  {good.all(1).sum()} of {len(good)} patients have all six inside")
    share, least, most = share_of(good)
    print(f"inside={share:.3f} of={good.size} low={least:.3f} high={most:.3f}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", required=True)
    p.add_argument("--hours", type=int, nargs="+", default=[24, 6])
    p.add_argument("--patients", type=int, help="read so many patients for the first of --hours")
    p.add_argument("--step", default="2")
    p.add_argument("--threads", default="2")
    p.add_argument("--rate", type=int, default=256)
    p.add_argument("--channels", type=int, default=20)
    p.add_argument("--distinct", type=int, default=24)
    p.add_argument("--folder", type=Path)
    a = p.parse_args()
    folder = a.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    many(a, folder) if a.patients else lengths(a, folder)


if __name__ == "__main__": main()
