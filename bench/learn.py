"""Does every recipe learn? One fold of each on a simulated competition, two seeds, and two plain baselines.

    python bench/learn.py                             # every recipe at scale small: many hours on two cores
    python bench/learn.py --recipes panels_b0,wavenet --time-budget 3h
    python bench/learn.py --patients 60 --seeds 1 --recipes left_right_encoder      # a smaller competition

First one seed of all recipes, one of each family before the rest, then the next seed; teachers come before
their students and are trained though they were not named. What is finished is not trained again, what was
stopped goes on: the same command continues, and one that names other recipes adds their rows. A recipe that
has changed since is trained anew. Each training prints one line as it ends and the table (--out, and a .json
of the same name, which keeps all rows) is written anew; `hms-hbac runs FOLDER/seed0` lists the run folders.

`closed` is the share of the gap between the best constant answer and the floor, on fold 0's events with ten
votes or more: 0 knows nothing, 1 is perfect. Its interval draws patients (all seeds' rows together). The
baselines are a multinomial logistic regression and gradient boosting on histograms, both of scikit-learn,
fitted to the votes. `eeg`: they see, of the middle 10 s, the power of bands and how rhythmic the signal is,
over the whole head and over each side. `spectrogram`: power of bands in the host's spectrogram of 50 s, which
tells how much there is to find for recipes that see nothing else.
"""
import argparse
import datetime
import os
import platform
import shlex
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hms_hbac.core import CLASSES, VOTES, HmsError, read_json, write_json
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.data.recordings import prepare
from hms_hbac.data.windows import WindowDataset
from hms_hbac.inference.presets import PRESETS as BLENDS
from hms_hbac.inference.presets import preset
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.simulate.competition import PRESETS, simulate
from hms_hbac.simulate.realism import MIDDLE, banana, rhythm, spectral
from hms_hbac.training.machine import device_name
from hms_hbac.training.results import recipe_hash
from hms_hbac.training.run import seconds, train

sys.path.insert(0, str(Path(__file__).parent))
from learn_table import better, earlier, hash_of, say, scored, write  # noqa: E402  found by the line above

SIDES = {"all": slice(0, 18), "left": slice(0, 8), "right": slice(8, 16)}       # derivations of `banana`
# one of each family: of view, network and training
FIRST = ("left_right_encoder", "panels_b0", "eeg_twostage_b0", "efficientnet1d", "multiwindow_mobilenetv3",
         "attention_b0", "squeezeformer", "stats_b2", "percentiles_b2", "refined_mosaic_b0", "wavenet",
         "resnet1d_gru", "raw_picture_b5", "zoomed_mel_mixnet", "stft_x3d", "instance_b0", "dataset_b1",
         "own_spectrogram_b1", "tiled_mels_tinyvit", "shared_conv_picture", "scalogram_maxvit",
         "v2b3_picture", "four_pictures_vit", "panels_transformer", "sed_b0", "raw_image_b0",
         "kaggle_wavenet", "panels_twostage_b0", "panels_mosaic_b0", "panels_posterior_b0")


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


def powers(spectrogram):
    "Mean and spread of ten bands of each chain over the label's 50 s of a spectrogram (4, 100, 300): (80,)."
    x = np.log(np.nan_to_num(spectrogram).clip(np.exp(-6), np.exp(10)))
    x = x.reshape(4, 10, 10, -1).mean(2)[..., 138:162]
    return np.concatenate([x.mean(-1).ravel(), x.std(-1).ravel()])


def feature_tables(cache, table):
    "Two tables of features of every event of `table`: of the EEG's middle 10 s, of the spectrogram's 50 s."
    data = WindowDataset(cache, table)
    eeg, spectrogram = [], []
    for k in range(len(table)):
        batch = data.batch([k])
        eeg.append(features(batch["eeg"][0, :, MIDDLE].numpy()))
        spectrogram.append(powers(batch["spectrogram"][0].numpy()))
    return (pd.DataFrame(eeg, index=table.index).fillna(0.),
            pd.DataFrame(spectrogram, index=table.index).add_prefix("band "))


def baselines(x, table, fold=0):
    "Out-of-fold tables of the two baselines, by name; they are fitted to every vote of the other folds."
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    inside = (table.fold == fold).to_numpy()
    votes = table.loc[~inside, list(VOTES)].to_numpy(float)
    given = x[~inside].to_numpy()
    row, label = np.nonzero(votes)
    boosting = HistGradientBoostingClassifier(learning_rate=.05, max_leaf_nodes=8, l2_regularization=1.,
                                              random_state=0)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=500))
    ids = ["event_id", "eeg_id", "patient_id", "fold", "n_votes", *VOTES]
    out = {}
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


def given(name, k, args):
    "The recipe of a seed, and its run folder."
    recipe = load_recipe(name, args.scale, [*args.set, f"seed={42 + k}"])
    return recipe, args.folder / f"seed{k}" / name / "fold0"


def state(recipe, folder):
    "`finished`, `begun`, `other` where the folder holds another version of the recipe, or `none`."
    path = folder / "manifest.json"
    told = read_json(path) if path.is_file() else {}
    if not told: return "none"
    if told.get("recipe_hash") != recipe_hash(recipe): return "other"
    return "finished" if told["status"] == "finished" else "begun"


def train_seed(name, k, args, comp, left):
    "True where a recipe's seed is finished, False where the time did not suffice."
    recipe, home = given(name, k, args)
    before, budget = state(recipe, home), left()
    if before == "finished": return True
    if budget is not None and budget <= 0: return False
    began, told = time.process_time(), home / "learn.json"
    spent = read_json(told)["cpu_seconds"] if before == "begun" and told.is_file() else 0.
    train(recipe, comp, args.folder / f"seed{k}", 0, cache=args.folder / "cache", log=False,
          resume=before != "other", time_budget=budget)
    write_json(told, {"cpu_seconds": spent + time.process_time() - began} | circumstances(args))
    return state(recipe, home) == "finished"


def circumstances(args):
    "Where, when and by which command something was trained, and how busy the machine was."
    import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"date": datetime.date.today().isoformat(), "command": shlex.join(args.argv),
            "machine": f"{device_name(device)} of {os.cpu_count()} cores, {platform.system()}",
            "load": round(os.getloadavg()[0], 1)}


def finished(name, args):
    "The finished run folders of a recipe as it is now, by number of the seed."
    found = {k: given(name, k, args) for k in range(args.seeds)}
    return {k: home for k, (recipe, home) in found.items() if state(recipe, home) == "finished"}


def recipe_row(name, args, truth):
    "The row of a recipe with at least one finished seed."
    folders = finished(name, args).values()
    told, spent = ([read_json(f / n) for f in folders] for n in ("manifest.json", "learn.json"))
    last = {k: v for k, v in spent[-1].items() if k != "cpu_seconds"}
    return scored(name, [pd.read_parquet(f / "oof.parquet") for f in folders], truth,
                  cpu_minutes=sum(t["cpu_seconds"] for t in spent) / len(spent) / 60,
                  samples=told[-1]["samples"], hash=hash_of(name, args),
                  reduced=load_recipe(name, args.scale, args.set).reduced, **last)


def blend_rows(args, truth):
    "A row for each published ensemble all of whose members have finished a seed."
    out = []
    names = {n: set(finished(n, args)) for n in {m for b in BLENDS for m in preset(b)}}
    for name in BLENDS:
        weights = preset(name)
        oofs = []
        for k in sorted(set.intersection(*(names[m] for m in weights))):
            tables = {m: pd.read_parquet(finished(m, args)[k] / "oof.parquet") for m in weights}
            oof = next(iter(tables.values())).copy()
            assert all(t.event_id.equals(oof.event_id) for t in tables.values())
            oof[list(CLASSES)] = sum(w * tables[m][list(CLASSES)] for m, w in weights.items())
            oofs.append(oof)
        if oofs: out.append(scored(name, oofs, truth, members=len(weights)))
    return out


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
    args.out = args.out or args.folder / "learn.md"
    return args


def start(args):
    "(competition folder, its truth, the rows of before with those of the baselines)."
    comp = competition(args)
    kept = [args.folder / f"{n}.parquet" for n in ("eeg", "spectrogram")]
    table = add_folds(events(Competition(comp).train))
    cache = prepare(comp, args.folder / "cache", progress=False)
    if not all(f.is_file() for f in kept):
        for x, file in zip(feature_tables(cache, table), kept, strict=True): x.to_parquet(file)
    truth, rows = pd.read_parquet(comp / "truth.parquet"), earlier(args)
    for file in kept:
        for name, oof in baselines(pd.read_parquet(file), table).items():
            name = f"{name}, {file.stem}"
            rows[name] = scored(name, [oof], truth)
            say(rows[name])
    return comp, truth, rows


def main(argv=None):
    args = options(argv)
    end = None if args.time_budget is None else time.monotonic() + seconds(args.time_budget)
    def left(): return None if end is None else end - time.monotonic()
    (comp, truth, rows), failed = start(args), []
    write(rows, blend_rows(args, truth), args)
    every = list(FIRST) + [n for n in list_recipes() if n not in FIRST]
    for k in range(args.seeds):
        for name in ordered([n for n in args.recipes.split(",") if n] or every):
            try: done = train_seed(name, k, args, comp, left)
            except HmsError as e:
                print(f"{name}: {e}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            if not done:
                print(f"the time is over in {name}; the same command goes on", flush=True)
                return 0
            rows[name] = better(recipe_row(name, args, truth), rows.get(name))
            say(rows[name])
            write(rows, blend_rows(args, truth), args)
    return int(bool(failed))


if __name__ == "__main__": sys.exit(main())
