"""Does every recipe learn? One fold of each on a simulated competition, two seeds, and two plain baselines.

    python bench/learn.py                             # every recipe at scale small: many hours on two cores
    python bench/learn.py --recipes panels_b0,wavenet --time-budget 3h
    python bench/learn.py --patients 60 --seeds 1 --recipes left_right_encoder      # a smaller competition

Teachers come before their students and are trained though they were not named. What is finished is not
trained again, what was stopped goes on: the same command continues, and one that names other recipes adds
their rows. Each recipe prints one line as it ends and the table (--out) is written anew;
`hms-hbac runs FOLDER/seed0` lists the run folders.

`closed` is the share of the gap between the best constant answer and the floor, on fold 0's events with ten
votes or more: 0 knows nothing, 1 is perfect. Its interval draws patients (all seeds' rows together). The
baselines see, of the middle 10 s, the power of bands and how rhythmic the signal is, over the whole head and
over each side: a multinomial logistic regression and gradient boosting on histograms, both of scikit-learn,
fitted to the votes.
"""
import argparse
import datetime
import platform
import shlex
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hms_hbac.core import CLASSES, VOTES, read_json, write_json
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.data.recordings import prepare
from hms_hbac.data.windows import WindowDataset
from hms_hbac.evaluation.runs import gap_closed
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.simulate.competition import PRESETS, simulate
from hms_hbac.simulate.realism import MIDDLE, banana, rhythm, spectral
from hms_hbac.training.machine import device_name
from hms_hbac.training.run import seconds, train

SIDES = {"all": slice(0, 18), "left": slice(0, 8), "right": slice(8, 16)}       # derivations of `banana`
COLUMNS = ("recipe", "kl", "closed", "low", "high", "by seed", "minutes", "reduced")


def teachers(name):
    "The recipes whose predictions are labels of a recipe."
    return [run for stage in load_recipe(name).stages for run in stage.labels.runs]


def ordered(names):
    "`names` and all teachers behind them, teachers first."
    out = []

    def add(name):
        for teacher in teachers(name):
            if teacher not in out: add(teacher)
        if name not in out: out.append(name)

    for name in names: add(name)
    return out


def features(eeg):
    "Band powers and rhythmicity of 10 s of EEG (20, 2000) in µV: of the head, of each side, their distance."
    x, told = banana(eeg), {}
    for side, rows in SIDES.items():
        told |= {f"{side} {k}": v for k, v in (spectral(x[rows]) | rhythm(x[rows])).items()}
    names = [k.removeprefix("left ") for k in told if k.startswith("left ")]
    return told | {f"apart {k}": abs(told[f"left {k}"] - told[f"right {k}"]) for k in names}


def feature_table(cache, table):
    "Features of every event of `table`, (N, D)."
    data = WindowDataset(cache, table, spec_steps=0)
    eegs = (data.batch([k])["eeg"][0, :, MIDDLE].numpy() for k in range(len(table)))
    return pd.DataFrame([features(x) for x in eegs], index=table.index).fillna(0.)


def baselines(x, table, fold=0):
    "Out-of-fold tables of the two baselines, by name; they are fitted to every vote of the other folds."
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    inside = (table.fold == fold).to_numpy()
    votes, given = table.loc[~inside, list(VOTES)].to_numpy(float), x[~inside].to_numpy()
    row, label = np.nonzero(votes)
    boosting = HistGradientBoostingClassifier(learning_rate=.05, max_leaf_nodes=8, l2_regularization=1.)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=500))
    ids, out = ["event_id", "eeg_id", "patient_id", "fold", "n_votes", *VOTES], {}
    for name, model, key in (("logistic regression", plain, "logisticregression__sample_weight"),
                             ("gradient boosting", boosting, "sample_weight")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(given[row], label, **{key: votes[row, label]})
        found = pd.DataFrame(0., table.index[inside], list(CLASSES))
        found.iloc[:, model.classes_] = model.predict_proba(x[inside].to_numpy())
        found = found.clip(1e-4).div(found.clip(1e-4).sum(axis=1), axis=0)
        out[name] = pd.concat([table.loc[inside, ids], found], axis=1).reset_index(drop=True)
    return out


def line(name, oofs, truth, **more):
    "A row of the table, of a list of out-of-fold tables (one a seed)."
    each = [gap_closed(oof, truth)["closed"] for oof in oofs]
    found = gap_closed(pd.concat(oofs, ignore_index=True), truth)
    by_seed = ", ".join(f"{c:.2f}" for c in each)
    return {"recipe": name, **found, "by seed": by_seed, "minutes": None, "reduced": "", **more}


def train_seeds(name, args, folder, comp, left):
    "Run folders of a recipe, one a seed; None where the time did not suffice."
    done = []
    for k in range(args.seeds):
        recipe = load_recipe(name, args.scale, [*args.set, f"seed={42 + k}"])
        budget = left()
        if budget is not None and budget <= 0: return None
        done.append(train(recipe, comp, folder / f"seed{k}", 0, cache=folder / "cache", log=False,
                          time_budget=budget))
        if read_json(done[-1] / "manifest.json")["status"] != "finished": return None
    return done


def cost(folders):
    "Minutes a seed, and what the scale took away."
    told = [read_json(f / "manifest.json") for f in folders]
    return {"minutes": sum(m["wall_seconds"] for m in told) / len(told) / 60,
            "reduced": load_recipe(folders[0] / "recipe.yaml").reduced}


def say(row):
    took = f"{row['minutes']:6.1f} min" if row["minutes"] is not None else " " * 10
    print(f"{row['recipe']:32} KL {row['kl']:.3f}  closed {row['closed']:6.1%} "
          f"[{row['low']:6.1%}, {row['high']:6.1%}] {took}", flush=True)


def settings(args):
    "What must be alike for two rows to stand in one table."
    return {k: getattr(args, k) for k in ("scale", "seeds", "preset", "patients", "data", "set")}


def earlier(args):
    "The rows of earlier calls with these settings, by name."
    path = args.folder / "learn.json"
    told = read_json(path) if path.is_file() else {"settings": None}
    return {r["recipe"]: r for r in told["rows"]} if told["settings"] == settings(args) else {}


def write(rows, args, out):
    "The table as markdown, best first, with what it was made from."
    import torch
    frame = pd.DataFrame(rows).sort_values("closed", ascending=False)
    first, device = frame.iloc[0], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    body = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in frame.to_dict("records"):
        shown = {k: f"{row[k]:.1%}" for k in ("closed", "low", "high")} | {"kl": f"{row['kl']:.3f}"}
        shown["minutes"] = "" if pd.isna(row["minutes"]) else f"{row['minutes']:.1f}"
        body.append("| " + " | ".join(str(shown.get(c, row[c])) for c in COLUMNS) + " |")
    left = [n for n in list_recipes() if n not in set(frame.recipe)]
    data = args.data or (f"{args.patients} patients" if args.patients else args.preset)
    text = [f"# What each recipe learns at scale {args.scale}", "",
            f"Last command: `python bench/learn.py {shlex.join(args.argv)}`.",
            f"Machine: {device_name(device)}, {platform.system()}; {datetime.date.today().isoformat()}.", "",
            f"Fold 0 of a simulated competition ({data}): {first.events // args.seeds} events with ten votes",
            f"or more of {first.patients} patients. Best constant answer {first.mean_vote:.3f}, floor",
            f"{first.floor:.3f}. `closed`: share of that gap, with its 95 % interval over patients;",
            "`minutes`: a seed.", "", *body, ""]
    if left: text += [f"Not run yet ({len(left)}): {', '.join(left)}.", ""]
    low = [r["recipe"] for r in rows if r["closed"] < .4 and r["minutes"] is not None]
    if low: text += [f"Below 40 %: {', '.join(low)}.", ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(text), encoding="utf-8")


def competition(args):
    "The competition's folder: given, or simulated (and continued where that was stopped)."
    if args.data: return Path(args.data)
    sizes = PRESETS[args.preset]
    if args.patients: sizes = dict(patients=args.patients, test_patients=1, seed=args.patients)
    return simulate(args.folder / "comp", **sizes, workers=args.workers)


def options(argv):
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--recipes", default="", help="default: all")
    parser.add_argument("--scale", default="small", help="small, demo or full")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--preset", default="bench-s", choices=sorted(PRESETS))
    parser.add_argument("--patients", type=int, default=0, help="a simulation of this size, no preset")
    parser.add_argument("--data", default="", help="a simulated competition folder")
    parser.add_argument("--folder", type=Path, default=Path("build/learn"), help="of all that is made")
    parser.add_argument("--out", type=Path, help="the table; default FOLDER/learn.md")
    parser.add_argument("--time-budget", help="stop cleanly after, such as 3h")
    parser.add_argument("--set", action="append", default=[], help="override for every recipe")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return args


def main(argv=None):
    args = options(argv)
    end = None if args.time_budget is None else time.monotonic() + seconds(args.time_budget)
    def left(): return None if end is None else end - time.monotonic()
    comp = competition(args)
    folder, truth = args.folder, pd.read_parquet(comp / "truth.parquet")
    table = add_folds(events(Competition(comp).train))
    cache, kept = prepare(comp, folder / "cache", progress=False), folder / "features.parquet"
    if not kept.is_file(): feature_table(cache, table).to_parquet(kept)
    rows = earlier(args)
    for name, oof in baselines(pd.read_parquet(kept), table).items():
        rows[name] = line(name, [oof] * args.seeds, truth)
        say(rows[name])
    for name in ordered([n for n in args.recipes.split(",") if n] or list_recipes()):
        folders = train_seeds(name, args, folder, comp, left)
        if folders is None:
            print(f"the time is over in {name}; the same command goes on", flush=True)
            break
        oofs = [pd.read_parquet(f / "oof.parquet") for f in folders]
        rows[name] = line(name, oofs, truth, **cost(folders))
        say(rows[name])
        write(list(rows.values()), args, args.out or folder / "learn.md")
        write_json(folder / "learn.json", {"settings": settings(args), "rows": list(rows.values())})
    return 0


if __name__ == "__main__": sys.exit(main())
