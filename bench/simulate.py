"""How many recordings a second `simulate` makes, and where the time goes.

    python bench/simulate.py [--sample 48] [--patients 60] [--workers 2]

First one process with one thread makes `sample` recordings, spread over those of `bench-s`: CPU-seconds a
recording, the whole, and then by part (a part lies in the one above that is less indented; the profiler takes
its share, so the whole is measured without it). Then `simulate` makes `patients` patients in `workers`
processes that were started before: recordings over wall time. Files go to a temporary folder. What else is
going on shows in both. The last line is `cpu_s=... recordings_per_s=...` (aim: 15 or more on two cores).
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

from hms_hbac.simulate.competition import PRESETS, plan, simulate, write_recording

PARTS = {"render": 1, "mixture": 2, "compose": 2, "background": 3, "periodic": 3, "rhythmic": 3,
         "strength_of": 3, "add_seizure": 3, "add_artifacts": 2, "host_spectrogram": 1, "write_eegs": 1,
         "spectrogram_table": 1}
ANYWHERE = ("noise", "write_parquet", "atomic_write")


def run(recordings, folder):
    "CPU-seconds a recording."
    start = time.process_time()
    for recording in recordings:
        write_recording(recording, folder)
    return (time.process_time() - start) / len(recordings)


def by_part(recordings, folder):
    "CPU-seconds a recording of each function of the package, by its name."
    with cProfile.Profile(time.process_time) as profile:
        run(recordings, folder)
    found = pstats.Stats(profile).stats.items()
    return {name: row[3] / len(recordings) for (file, _, name), row in found if "hms_hbac" in file}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sample", type=int, default=48)
    p.add_argument("--patients", type=int, default=60)
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    recordings = plan(**PRESETS["bench-s"])
    recordings = recordings[:: len(recordings) // a.sample][: a.sample]
    with tempfile.TemporaryDirectory() as d:
        run(recordings[:1], Path(d) / "first")
        whole = run(recordings, Path(d) / "whole")
        parts = by_part(recordings, Path(d) / "parts")
        print(f"{'ms of CPU a recording':24}{1000 * whole:8.1f}")
        for name, depth in PARTS.items():
            print(f"{'  ' * depth + name:24}{1000 * parts.get(name, 0):8.1f}")
        for name in ANYWHERE:
            print(f"{'anywhere: ' + name:24}{1000 * parts.get(name, 0):8.1f}")
        sizes = {"workers": a.workers, "progress": False}
        simulate(Path(d) / "start", patients=3, test_patients=1, **sizes)
        start = time.perf_counter()
        made = simulate(Path(d) / "all", patients=a.patients, test_patients=12, **sizes)
        seconds = time.perf_counter() - start
        n = len(list(made.glob("*_spectrograms/*.parquet")))
    print(f"cpu_s={whole:.3f} recordings_per_s={n / seconds:.1f}")


if __name__ == "__main__":
    main()
