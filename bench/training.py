"""How much of a bare loop's speed our training keeps: samples/s of `fit` over those of the fifteen-line loop. Prints a table, ends with `train_ratio_cpu=...`.

The bare loop runs the same system, batch size, optimiser and precision on one batch that lies in memory: no reading, no augmentation, no evaluation, no
checkpoint. Ours reads from a cache of memory maps, shuffles, augments as the recipe says, schedules, clips and averages. Blocks of both alternate, so that a
busy machine slows both; "CPU-time ratio" compares CPU seconds instead (reader included), which a busy machine does not disturb; the ratio is the median over pairs of blocks. Without CUDA the recipes run at demo scale (a tiny backbone), in batches of 8: the
smaller the network, the larger the share of everything around it.

    python bench/training.py [--updates 3] [--rounds 7] [--recipes panels_b0,multiwindow_mobilenetv3]
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hms_hbac.training.batches import Prefetch, to_device
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.training.loop import backward, epoch_parts, make_accelerator, place, read_part, start_stage, step, switch
from hms_hbac.training.optimizers import make_optimizer
from hms_hbac.models.recipe import load_recipe
from hms_hbac.data.recordings import Recordings, prepare
from hms_hbac.simulate.competition import simulate
from hms_hbac.training.run import make_loop, show


def sync(device):
    if device.type == "cuda": torch.cuda.synchronize()


def our_blocks(loop, updates, device):
    "Samples, seconds and CPU seconds of one block of our loop after another, the reader running through (a generator)."
    from types import SimpleNamespace
    loop.bar = SimpleNamespace(update=lambda n: None, set_postfix=lambda **k: None)
    while True:
        parts = epoch_parts(loop)
        reader = Prefetch(parts, lambda p: read_part(loop, 0, p), pin=device.type == "cuda")
        try:
            done, samples, begin, cpu = 0, 0, time.perf_counter(), time.process_time()
            for part, batch in zip(parts, reader):
                loop.system.train()
                backward(loop, part, to_device(batch, device))
                samples += len(part.rows)
                if part.last:
                    step(loop, part)
                    show(loop, part)
                    done += 1
                if done == updates:
                    sync(device)
                    yield samples, time.perf_counter() - begin, time.process_time() - cpu
                    done, samples, begin, cpu = 0, 0, time.perf_counter(), time.process_time()
        finally: reader.close()
        loop.progress.update = 0


def bare_block(system, optimizer, loss, batch, updates, autocast, scaler):
    "Samples, seconds and CPU seconds of the fifteen-line loop."
    device, begin, cpu = batch["target"].device, time.perf_counter(), time.process_time()
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


def measure(name, data, updates, rounds, scale, sets=()):
    recipe = load_recipe(name, scale, sets)
    torch.manual_seed(0)
    accelerator = make_accelerator(recipe.precision)
    device = accelerator.device
    more = dict(folder=Path(data["dir"]), identity={"fold": 0}, log=False)
    loop = make_loop(accelerator, recipe, data["cache"], data["events"], **more)
    loop.train_rows = np.resize(loop.train_rows, max(len(loop.train_rows), (updates + 1) * rounds * recipe.batch_size * recipe.accumulate))
    place(loop)
    start_stage(loop)
    switch(loop.system, loop.stage, loop.stage.epochs)

    bare = make_loop(make_accelerator(recipe.precision), recipe, data["cache"], data["events"], **more).system
    bare.signal_augment, bare.image_augment = torch.nn.ModuleList(), torch.nn.ModuleList()
    bare = bare.to(device).train()
    if device.type == "cuda" and len(bare.view.shape) == 3: bare.net.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(bare, recipe.optimizer)
    batch = to_device(loop.train_data.batch(loop.rows[:recipe.batch_size], 0), device)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.precision)
    autocast = lambda: torch.autocast(device.type, dtype=kind, enabled=kind is not None)
    scaler = torch.amp.GradScaler(device.type) if kind == torch.float16 and device.type == "cuda" else None

    blocks, pairs = our_blocks(loop, updates, device), []
    next(blocks), bare_block(bare, optimizer, loop.loss, batch, 2, autocast, scaler)            # warm up
    for i in range(rounds):
        block = lambda: bare_block(bare, optimizer, loop.loss, batch, updates, autocast, scaler)
        (n, t, c), (m, u, v) = (next(blocks), block()) if i % 2 else (block(), next(blocks))[::-1]    # who goes first alternates
        pairs.append((n / t, m / u, (v / m) / (c / n)))
    blocks.close()
    ours, plain = (statistics.median(p[i] for p in pairs) for i in range(2))
    return {"recipe": name, "precision": recipe.precision, "batch": recipe.batch_size, "ours": ours, "bare": plain,
            "ratio": statistics.median(a / b for a, b, _ in pairs), "cpu": statistics.median(p[2] for p in pairs)}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--updates", type=int, default=3, help="updates in a block")
    args.add_argument("--rounds", type=int, default=7, help="pairs of blocks")
    args.add_argument("--recipes", default="panels_b0,multiwindow_mobilenetv3")
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as d:
        comp = Competition(simulate(f"{d}/comp", patients=10, test_patients=1, seed=0, workers=2, progress=False))
        prepare(comp, f"{d}/cache", progress=False)
        data = {"dir": d, "cache": Recordings(f"{d}/cache"), "events": add_folds(events(comp.train))}
        rows = [measure(r, data, args.updates, args.rounds, "full" if cuda else "demo", ["net.pretrained=none"] if cuda else ["batch_size=8"]) for r in args.recipes.split(",")]
        if cuda:
            bf16 = ["precision=bf16"]
            rows += [measure("attention_b0", data, args.updates, args.rounds, "full", ["net.pretrained=none", *bf16]),
                     measure("resnet1d_gru", data, args.updates, args.rounds, "full", bf16)]
    print(f"{'recipe':28}{'precision':>10}{'batch':>7}{'ours/s':>10}{'bare/s':>10}{'ratio':>8}{'CPU-time ratio':>16}")
    for r in rows: print(f"{r['recipe']:28}{r['precision']:>10}{r['batch']:>7}{r['ours']:>10.1f}{r['bare']:>10.1f}{r['ratio']:>8.3f}{r['cpu']:>16.3f}")
    if cuda:
        for r in rows[-2:]: print(f"samples_per_s_{r['recipe']}={r['ours']:.1f}")
    print(f"train_ratio_{'cuda' if cuda else 'cpu'}={min(r['ratio'] for r in rows):.3f}")


if __name__ == "__main__": main()
