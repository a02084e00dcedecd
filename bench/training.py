"""How much of a bare loop's speed our training keeps: samples/s of `fit` over those of the fifteen-line loop.

Prints a table and ends with `train_ratio_cpu=... sys_share=...`. The bare loop runs the same system, batch
size, optimizer and
precision on one batch that lies in memory: no reading, no augmentation, no evaluation, no checkpoint. Ours
reads from a cache of memory
maps, shuffles, augments as the recipe says, schedules, clips and averages. Blocks of both alternate, so that
a busy machine slows both;
"CPU ratio" compares CPU seconds instead (reader included), which a busy machine does not disturb; ratios are
medians over pairs of
blocks. "bytes" is what a sample brings from the cache; `sys_share` is the share of our CPU seconds that the
system took, of the worst
recipe (see `keep_memory`; HMS_MALLOC=system shows it without). Without CUDA the recipes run at demo scale (a
tiny backbone), in batches
of 8: the smaller the network, the larger the share of everything around it.

    python bench/training.py [--updates 3] [--rounds 7] [--recipes panels_b0,multiwindow_mobilenetv3]
"""
import argparse
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.data.recordings import Recordings, prepare
from hms_hbac.models.recipe import load_recipe
from hms_hbac.signal.memory import keep_memory
from hms_hbac.simulate.competition import simulate
from hms_hbac.training.batches import Prefetch, to_device
from hms_hbac.training.fit import show
from hms_hbac.training.loop import backward, epoch_parts, read_part, start_stage, step, switch
from hms_hbac.training.machine import make_accelerator
from hms_hbac.training.optimizers import make_optimizer
from hms_hbac.training.run import make_loop


def sync(device):
    if device.type == "cuda": torch.cuda.synchronize()


def cpu_seconds():
    "CPU seconds of this process and all its threads: (user, system)."
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([used.ru_utime, used.ru_stime])


def our_blocks(loop, updates, device):
    """Samples, seconds, CPU seconds and the system's share of them, one block of our loop after
    another, the reader running through."""
    loop.bar = SimpleNamespace(update=lambda n: None, set_postfix=lambda **k: None)
    while True:
        parts = epoch_parts(loop)
        reader = Prefetch(parts, lambda p: read_part(loop, 0, p), pin=device.type == "cuda")
        try:
            done, samples, begin, cpu = 0, 0, time.perf_counter(), cpu_seconds()
            for part, batch in zip(parts, reader, strict=False):
                loop.system.train()
                backward(loop, part, to_device(batch, device))
                samples += len(part.rows)
                if part.last:
                    step(loop, part)
                    show(loop, part)
                    done += 1
                if done == updates:
                    sync(device)
                    took = cpu_seconds() - cpu
                    yield samples, time.perf_counter() - begin, took.sum(), took[1]
                    done, samples = 0, 0
                    begin = time.perf_counter()
                    cpu = cpu_seconds()
        finally: reader.close()
        loop.progress.update = 0


def bare_block(system, optimizer, loss, batch, updates, autocast, scaler):
    "Samples, seconds and CPU seconds of the fifteen-line loop."
    device = batch["target"].device
    begin = time.perf_counter()
    cpu = time.process_time()
    for _ in range(updates):
        with autocast():
            logits, out = system(batch)
            value = loss(logits, out["target"], out["n_votes"])
        (scaler.scale(value) if scaler else value).backward()
        if scaler: scaler.step(optimizer), scaler.update()
        else: optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    sync(device)
    return updates * len(batch["target"]), time.perf_counter() - begin, time.process_time() - cpu


def make_ours(recipe, data, rows=0):
    "A loop over a fold of the recipe, its training rows repeated to `rows`."
    loop = make_loop(
        make_accelerator(recipe.precision),
        recipe,
        data["cache"],
        data["events"],
        Path(data["dir"]),
        {"fold": 0},
        log=False,
    )
    train_rows = loop.given.train_rows
    loop.given = replace(loop.given, train_rows=np.resize(train_rows, max(len(train_rows), rows)))
    return loop


def measure(name, data, updates, rounds, scale, sets=()):
    recipe = load_recipe(name, scale, sets)
    torch.manual_seed(0)
    loop = make_ours(recipe, data, (updates + 1) * rounds * recipe.batch_size * recipe.accumulate)
    device = loop.accelerator.device
    start_stage(loop)
    switch(loop.system, loop.stage, loop.stage.epochs)

    bare = make_ours(recipe, data).system
    bare.signal_augment = torch.nn.ModuleList()
    bare.image_augment = torch.nn.ModuleList()
    bare = bare.to(device).train()
    if recipe.speed.channels_last and len(bare.view.shape) == 3:
        bare.net.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(bare, recipe.optimizer)
    raw = loop.given.train_data.batch(loop.state.rows[:recipe.batch_size], 0)
    windows = sum(raw[k].nbytes for k in ("eeg", "spectrogram") if k in raw) // len(raw["target"])
    batch = to_device(raw, device)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.precision)
    scaler = torch.amp.GradScaler(device.type) if kind == torch.float16 and device.type == "cuda" else None

    def autocast(): return torch.autocast(device.type, dtype=kind, enabled=kind is not None)
    def block(n=updates): return bare_block(bare, optimizer, loop.state.loss, batch, n, autocast, scaler)

    blocks, pairs = our_blocks(loop, updates, device), []
    next(blocks), block(2)                                                                # warm up
    for i in range(rounds):
        # who goes first alternates
        ours, plain = (next(blocks), block()) if i % 2 else (block(), next(blocks))[::-1]
        (n, t, c, system), (m, u, v) = ours, plain
        pairs.append((n / t, m / u, (v / m) / (c / n), system, c))
    blocks.close()
    ours, plain = (statistics.median(p[i] for p in pairs) for i in range(2))
    return {
        "recipe": name,
        "precision": recipe.precision,
        "batch": recipe.batch_size,
        "bytes": windows,
        "ours": ours,
        "bare": plain,
        "ratio": statistics.median(p[0] / p[1] for p in pairs),
        "cpu": statistics.median(p[2] for p in pairs),
        "sys": sum(p[3] for p in pairs) / sum(p[4] for p in pairs),
    }


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--updates", type=int, default=3, help="updates in a block")
    args.add_argument("--rounds", type=int, default=7, help="pairs of blocks")
    args.add_argument("--recipes", default="panels_b0,multiwindow_mobilenetv3")
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    cuda = torch.cuda.is_available()
    keep_memory()
    with tempfile.TemporaryDirectory() as d:
        comp = Competition(
            simulate(f"{d}/comp", patients=10, test_patients=1, seed=0, workers=2, progress=False)
        )
        prepare(comp, f"{d}/cache", progress=False)
        data = {"dir": d, "cache": Recordings(f"{d}/cache"), "events": add_folds(events(comp.train))}
        scale, sets = ("full", ["net.pretrained=none"]) if cuda else ("demo", ["batch_size=8"])
        rows = [measure(r, data, args.updates, args.rounds, scale, sets) for r in args.recipes.split(",")]
        if cuda:
            for name, sets in (
                ("attention_b0", ["net.pretrained=none", "precision=bf16"]),
                ("resnet1d_gru", ["precision=bf16"]),
            ):
                rows.append(measure(name, data, args.updates, args.rounds, "full", sets))
    table(rows)
    if cuda:
        for r in rows[-2:]: print(f"samples_per_s_{r['recipe']}={r['ours']:.1f}")
    kind = "cuda" if cuda else "cpu"
    print(
        f"train_ratio_{kind}={min(r['ratio'] for r in rows):.3f} sys_share={max(r['sys'] for r in rows):.3f}"
    )


def table(rows):
    names = ("precision", "batch", "bytes", "ours/s", "bare/s", "ratio", "CPU ratio", "system")
    print(f"{'recipe':28}" + "".join(f"{n:>11}" for n in names))
    for r in rows:
        how = f"{r['recipe']:28}{r['precision']:>11}{r['batch']:>11}{r['bytes']:>11}"
        speed = f"{r['ours']:>11.1f}{r['bare']:>11.1f}"
        print(f"{how}{speed}{r['ratio']:>11.3f}{r['cpu']:>11.3f}{r['sys']:>11.3f}")


if __name__ == "__main__": main()
