"""How long `fit-weights` takes for many members: all methods, nested choice, spread of the weights.

    python bench/blending.py [--members 20] [--rows 6366] [--method NAME] [--profile]

Members are made up: each blurs the truth by its own noise, all are a little too sure, and six rows belong to
a patient. One process, as many threads as the machine gives. `--method shrunk` judges that one beside the
plain mean; `--profile` prints where the time goes. The last line is `seconds=... gain=... low=... high=...`
(aim: 60 s for 20 members and 6,366 rows on two cores).
"""

import argparse
import cProfile
import pstats
import time

import numpy as np

from hms_hbac.evaluation.blending import fit_weights
from hms_hbac.evaluation.members import example_members


def main():
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--rows", type=int, default=6366)
    parser.add_argument("--method", help="one of weights, log, calibrated, shrunk; default: all")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    noise = np.linspace(.5, 1.4, args.members)
    made = example_members(noise, echo=0, patients=-(-args.rows // 6), rows=6, sharpen=1.3)
    made = made.take(np.arange(args.rows))
    watch = cProfile.Profile()
    begin = time.perf_counter()
    if args.profile: watch.enable()
    fit = fit_weights(made, methods=args.method and [args.method])
    watch.disable()
    seconds = time.perf_counter() - begin
    if args.profile: pstats.Stats(watch).sort_stats("tottime").print_stats(12)
    print(fit["table"].round(4).to_string())
    print(f"chosen: {fit['method']} ({fit['reason']})")
    told = " ".join(f"{k}={fit['nested'][k]:.4f}" for k in ("gain", "low", "high"))
    print(f"seconds={seconds:.1f} {told}")


if __name__ == "__main__": main()
