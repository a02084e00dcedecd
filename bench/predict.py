"""Prediction's cost over the cost of its parts: time against reading and bare passes, memory against rows.

    python bench/predict.py [--rows 1000] [--batch 32] [--files 24] [--folds 5]

The test folder holds `files` simulated recordings, linked under new ids until there are `rows`. Two
systems at demo scale, panels_b0 and resnet1d_gru, with random weights (the time does not depend on
them). The parts are measured before and after predict in the same process, so that a busy machine
does not favor either; the doubled test set has a process of its own. Then `folds` folds of each
recipe against one fold: the folds share the reading and the pictures, and the table says what share
of one fold's forward pass is the picture. On CUDA, where there is one, attention_b0 and
multiwindow_b0 at full scale follow. The last line is `predict_ratio=... rss_ratio=...
folds_ratio=... view_share=...`: folds_ratio is the worse of the two recipes' times of all folds
over that of one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peak import peak_mb

SYSTEMS = ("panels_b0", "resnet1d_gru")


def simulated(folder, files, seed=0):
    "A folder with `files` test recordings in the competition's format."
    import numpy as np
    import pandas as pd

    from hms_hbac.core import CHANNELS, EEG_SAMPLES, spectrogram_columns

    rng = np.random.default_rng(seed)
    for kind in ("eegs", "spectrograms"):
        (folder / f"test_{kind}").mkdir(parents=True)
    for i in range(files):
        x = np.cumsum(rng.normal(0, 4, (EEG_SAMPLES, 20)), 0)
        x -= np.linspace(0, 1, EEG_SAMPLES)[:, None] * x[-1]
        pd.DataFrame(x.round(2).astype(np.float32), columns=list(CHANNELS)).to_parquet(
            folder / f"test_eegs/{i}.parquet", index=False
        )
        spec = pd.DataFrame(
            rng.lognormal(0, 1, (300, 400)).round(2).astype(np.float32), columns=spectrogram_columns()
        )
        spec.insert(0, "time", np.arange(1, 600, 2))
        spec.to_parquet(folder / f"test_spectrograms/{i}.parquet", index=False)
    return folder


def linked(source, folder, rows):
    "A competition folder of `rows` test rows whose files are hard links to those of `source`."
    for kind in ("eegs", "spectrograms"):
        (folder / f"test_{kind}").mkdir(parents=True)
        files = sorted((source / f"test_{kind}").glob("*.parquet"), key=lambda p: int(p.stem))
        for i in range(rows):
            os.link(files[i % len(files)], folder / f"test_{kind}/{10_000 + i}.parquet")
    (folder / "test.csv").write_text(
        "spectrogram_id,eeg_id,patient_id\n" + "".join(f"{10_000 + i},{10_000 + i},1\n" for i in range(rows))
    )
    return folder


def random_run(folder, name, scale, folds=1):
    "Folds of a recipe with random weights."
    from hms_hbac.draws import seed_everything
    from hms_hbac.models.recipe import build, load_recipe, save_recipe
    from hms_hbac.training.checkpoints import save_weights

    recipe = load_recipe(name, scale=scale, set=["net.pretrained=none"] if name != "resnet1d_gru" else ())
    for k in range(folds):
        seed_everything(k)
        save_recipe(recipe, folder / name / f"fold{k}" / "recipe.yaml")
        save_weights(folder / name / f"fold{k}" / "model.safetensors", build(recipe).state_dict())
    return folder / name


def measure(runs, comp, out, batch, parts):
    """Wall seconds of reading, pictures, bare forward passes (mean of before and after) and predict;
    peak memory in MB; status."""
    from hms_hbac.inference.members import load_models
    from hms_hbac.inference.predict import predict

    models = load_models(runs)
    x = warm_up(models, batch)
    before = measure_parts(models, Path(comp), x, batch) if parts else (0, 0, 0)
    begin = time.perf_counter()
    status = predict(models, comp, out, batch_size=batch, progress=False)
    wall = time.perf_counter() - begin
    after = measure_parts(models, Path(comp), x, batch) if parts else (0, 0, 0)
    read, view, forward = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    peak = peak_mb()
    print(f"{read:.3f} {view:.3f} {forward:.3f} {wall:.3f} {peak:.1f} {status}")


def warm_up(models, batch):
    import torch

    from hms_hbac.inference.predict import answer, for_model

    x = {"eeg": torch.randn(batch, 20, 10_000), "spectrogram": torch.rand(batch, 4, 100, 300) + 0.1}
    x = {k: v.to(models.device) for k, v in x.items()}
    for team in models.teams():
        answer(team, for_model(team[0], x))
    return x


def measure_parts(models, comp, x, batch):
    """Wall seconds of reading the parquet files with pyarrow, of each member's picture, and of the bare
    forward passes (picture and network), both on a batch in memory."""
    import pyarrow.parquet as pq
    import torch

    from hms_hbac.inference.predict import for_model

    files = [f for kind in ("eegs", "spectrograms") for f in sorted((comp / f"test_{kind}").iterdir())]
    begin = time.perf_counter()
    for f in files:
        for c in pq.read_table(f, use_threads=False).columns:
            c.to_numpy()
    read = time.perf_counter() - begin
    times = []
    for once in (lambda m, b: m.system.view(b), lambda m, b: m.system(b)[0].softmax(-1)):
        begin = time.perf_counter()
        with torch.no_grad():
            for _ in range(-(-len(files) // 2 // batch)):
                for m in models.loaded:
                    once(m, for_model(m, x))
        if models.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return read, *times


def child(*args):
    "Run `measure` in a process of its own and give back its numbers."
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, args)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [float(v) for v in done.stdout.strip().splitlines()[-1].split()]


def main(rows, batch, files, folds):
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        source = simulated(d / "source", files)
        small = linked(source, d / "small", rows)
        large = linked(source, d / "large", 2 * rows)
        for name in SYSTEMS:
            random_run(d / "runs", name, "demo")
        print(
            f"{rows} rows, {' + '.join(SYSTEMS)} at demo scale, batches of {batch}, {os.cpu_count()} cores\n"
        )
        print(f"{'':34}{'seconds':>9}{'rows/s':>9}{'peak MB':>9}")
        read, _, forward, wall, peak, status = child(d / "runs", small, d / "s.csv", batch, 1)
        for name, s in (
            ("reading the parquet files", read),
            ("bare forward passes", forward),
            ("sum", read + forward),
        ):
            print(f"{name:34}{s:9.2f}{rows / s:9.1f}")
        print(f"{f'predict, {rows} rows':34}{wall:9.2f}{rows / wall:9.1f}{peak:9.0f}")
        _, _, _, again, more, _ = child(d / "runs", large, d / "t.csv", batch, 0)
        print(f"{f'predict, {2 * rows} rows':34}{again:9.2f}{2 * rows / again:9.1f}{more:9.0f}")
        assert status == 0 and sum(1 for _ in open(d / "t.csv")) == 2 * rows + 1
        ratio, share = many_folds(d, small, batch, folds)
        gpu(d, small, rows, batch)
        print(
            f"\npredict_ratio={wall / (read + forward):.3f} "
            f"rss_ratio={more / peak:.3f} "
            f"folds_ratio={ratio:.3f} view_share={share:.3f}"
        )


def many_folds(d, comp, batch, folds):
    "All folds of a recipe against one, for each recipe: the worse ratio, and its picture's share."
    print(f"\n{'':34}{'one fold':>9}{f'{folds} folds':>9}{'ratio':>9}{'picture':>9}")
    worst = (0, 0)
    for name in SYSTEMS:
        one, many = (random_run(d / f"{k}folds", name, "demo", k) for k in (1, folds))
        _, view, forward, single, _, _ = child(one, comp, d / "f.csv", batch, 1)
        _, _, _, wall, _, _ = child(many, comp, d / "f.csv", batch, 0)
        print(f"{name:34}{single:9.2f}{wall:9.2f}{wall / single:9.2f}{view / forward:9.2f}")
        worst = max(worst, (wall / single, view / forward))
    return worst


def gpu(d, comp, rows, batch):
    import torch

    if not torch.cuda.is_available():
        return
    print(f"\n{torch.cuda.get_device_name()}, full scale")
    for name in ("attention_b0", "multiwindow_b0"):
        random_run(d / "full" / name, name, "full")
        read, _, forward, wall, peak, _ = child(d / "full" / name, comp, d / "g.csv", batch, 1)
        alone = f"forward alone {rows / forward:.1f} rows/s, reading alone {rows / read:.1f} rows/s"
        print(f"{name:34}{wall:9.2f}{rows / wall:9.1f}{peak:9.0f}   {alone}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        runs, comp, out, batch, parts = sys.argv[2:]
        measure(runs, comp, out, int(batch), int(parts))
    else:
        p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        p.add_argument("--rows", type=int, default=1000)
        p.add_argument("--batch", type=int, default=32)
        p.add_argument("--files", type=int, default=24)
        p.add_argument("--folds", type=int, default=5)
        a = p.parse_args()
        main(a.rows, a.batch, a.files, a.folds)
