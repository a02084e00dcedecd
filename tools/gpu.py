"""One command for a machine with a GPU: what it has, whether everything holds on it, and how fast it is.

    make gpu                                  # all that is left to do, at most 40 minutes
    python tools/gpu.py [--parts environment,views] [--list] [--data COMP] [--minutes 10]

A part that is done is kept (build/gpu/parts/NAME.json) and not done again on the same device, unless --fresh
is given; --minutes ends a call after the part that runs then, and the same command goes on. At the end stand
build/gpu/report.html and gpu.json (and gpu.md, for bench/gpu.md). Exit status 1 where a check does not hold.

Without a CUDA device every part runs once with tiny sizes on the CPU, so that nothing here can rot. Such a
dry run writes no figure, and ends with status 0.
"""
import argparse
import datetime
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")       # before CUDA starts: exact resume wants it

from shared import ROOT  # noqa: E402  the line above must come first

sys.path.insert(0, str(ROOT / "bench"))
import gpu_checks  # noqa: E402  likewise
import pandas as pd  # noqa: E402  likewise
import torch  # noqa: E402  likewise

from hms_hbac.core import read_json, write_json  # noqa: E402  likewise
from hms_hbac.evaluation.page import page, picture, table, text  # noqa: E402  likewise


def bench():
    "bench/gpu.py, which has this file's name."
    import importlib.util
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    module = sys.modules["bench_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCH = bench()
# these take all the time that is left, and go on at the next call
LONG = {"learn": gpu_checks.trained, "curves-all": gpu_checks.other_curves}
PARTS = gpu_checks.CHECKS | BENCH.PARTS | LONG


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def done(out, name):
    "What a part has left, or None; what another device left, or what did not end well, does not count."
    path = out / "parts" / f"{name}.json"
    told = read_json(path) if path.is_file() else None
    return told if told and told["device"] == device_name() and told["ended"] == "well" else None


def outcome(rows):
    "`well`, `not well` where a check does not hold, `paused` where there is more to do."
    if not all(r.get("holds", True) for r in rows): return "not well"
    return "paused" if any(r.get("status") == "paused" for r in rows) else "well"


def run(name, place, out, minutes):
    "Run one part and write what it left."
    began = time.monotonic()
    told = {"part": name, "device": device_name(), "dry": place.dry}
    try:
        rows = PARTS[name](place, **({"minutes": minutes} if name in LONG else {}))
        told |= {"rows": rows, "ended": outcome(rows)}
    except Exception as e:
        traceback.print_exc()
        told |= {"rows": [], "ended": "not well", "error": f"{type(e).__name__}: {e}"}
    told |= {"date": datetime.date.today().isoformat()}
    if not place.dry: told["seconds"] = round(time.monotonic() - began, 1)
    write_json(out / "parts" / f"{name}.json", told)
    return told


def lead():
    if device_name(): return f"Measured on {device_name()}; command: make gpu."
    return ("No CUDA device here: a dry run of every part with tiny sizes on the CPU. "
            "It shows that the parts run; nothing was measured.")


def time_picture(rows):
    "Where an image's time goes, as a picture."
    frame = pd.DataFrame(rows).set_index("recipe")
    axis = frame.plot.barh(stacked=True, figsize=(8, 1 + .5 * len(frame)))
    axis.set(xlabel="milliseconds an image, each part waited for")
    axis.figure.tight_layout()
    return picture(axis.figure, "where the time of an update goes, by recipe")


def write(out, told):
    "gpu.json, report.html and, where something was measured, gpu.md."
    write_json(out / "gpu.json", {"device": device_name(), "dry": device_name() is None, "parts": told})
    sections = []
    for name, part in told.items():
        frame = pd.DataFrame(part["rows"])
        shown = [text(f"{part['ended']}, {part['date']}. {(PARTS[name].__doc__ or name).splitlines()[0]}")]
        if part.get("error"): shown.append(text(part["error"]))
        if len(frame): shown.append(table(frame, name))
        if name == "time" and not part["dry"] and len(frame): shown.append(time_picture(part["rows"]))
        sections.append((name, name, *shown))
    (out / "report.html").write_text(page("hms_hbac on a GPU", lead(), sections), encoding="utf-8")
    if device_name():
        tables = {n: pd.DataFrame(p["rows"]).round(3).to_string(index=False) for n, p in told.items()}
        parts = [f"## {n}\n\n```\n{tables[n]}\n```\n\n{p['date']}" for n, p in told.items()]
        (out / "gpu.md").write_text("\n\n".join([f"# {device_name()}\n\nCommand: `make gpu`", *parts]) + "\n",
                                    encoding="utf-8")


def main(argv=None):
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="the parts, and which are done")
    parser.add_argument("--data", help="competition folder; default: a simulated one")
    parser.add_argument("--minutes", type=float, default=40.)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--fresh", action="store_true", help="do again what is done")
    args = parser.parse_args(argv)
    names = [n for n in args.parts.split(",") if n]
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if args.list:
        for name, part in PARTS.items():
            state = "done" if done(args.out, name) else "-"
            print(f"{name:12} {state:5} {(part.__doc__ or name).splitlines()[0]}")
        return 0
    print(lead(), flush=True)
    if args.fresh:
        for kept in ("curves", "runs", "bench-m/runs", "bench-s/runs"):
            shutil.rmtree(args.out / "work" / kept, ignore_errors=True)
    if not device_name(): torch.set_num_threads(1)
    end, made = time.monotonic() + 60 * args.minutes, {}
    with tempfile.TemporaryDirectory(prefix="hms-gpu-") as scratch:
        # on a GPU the work stays, so that a training that was not finished goes on
        place = BENCH.make_place(args.data, args.out / "work" if device_name() else scratch)
        for name in PARTS:
            kept = None if args.fresh else done(args.out, name)
            left = (end - time.monotonic()) / 60
            if kept is None and name in names and left > 0:
                kept = run(name, place, args.out, left)
                more = " (the same command goes on)" if kept["ended"] == "paused" else ""
                print(f"{name:12} {kept['ended']}{more}", flush=True)
            elif kept is None and name in names: print(f"{name:12} left for the next call", flush=True)
            if kept: made[name] = kept
    write(args.out, made)
    print(args.out / "report.html")
    return int(any(part["ended"] == "not well" for part in made.values()))


if __name__ == "__main__": sys.exit(main())
