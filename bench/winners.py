"""What one training step of the first places' systems costs at full scale, on the CPU: a row per recipe.

    python bench/winners.py [--out bench/winners.csv] [--recipes NAME,NAME] [--batch 2]

Each recipe gets a process of its own, one after the other, with one thread: it builds the whole system
(random weights, no download), takes one step of `batch` windows to warm up and times the next (view,
forwards, backwards, AdamW). Columns: parameters in millions, seconds of processor time per window, peak
memory of the process in GB, MB that one window keeps for its gradients, and the machine. Rows of recipes that
are not named stay as they are in the file. It is processor time that is counted, so other work on the machine
makes it somewhat longer, not many times; memory is right.
"""
import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

NAMES = ("zoomed_mel_mixnet squeezeformer tiled_mels_tinyvit efficientnet1d left_right_encoder "
         "wavenet_picture_maxxvit four_pictures_vit scalogram_maxvit superlet_maxvit shared_conv_picture "
         "raw_picture_b5 stft_x3d v2b3_picture").split()


def machine():
    "The processor's name, the threads used, and torch's version."
    import torch
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, 1 thread, torch {torch.__version__}"


def measure(name, batch):
    "The row of one recipe, in this process."
    import torch

    from hms_hbac.models.losses import loss
    from hms_hbac.models.recipe import build, example_batch, load_recipe, without_downloads
    torch.set_num_threads(1)
    recipe = load_recipe(name)
    recipe.net = without_downloads(recipe.net)
    system, kept = build(recipe).train(), {}
    optimizer = torch.optim.AdamW(system.parameters())
    criterion = loss(recipe.loss)
    windows = example_batch(system, batch)

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    for _ in range(2):
        kept.clear()
        start = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            logits, drawn = system(windows)
            value = criterion(logits, drawn["target"], drawn["n_votes"])
        weights = {p.untyped_storage().data_ptr() for p in system.parameters()}
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = (time.process_time() - start) / batch
    saved = sum(size for at, size in kept.items() if at not in weights)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20            # KiB on Linux
    return {"recipe": name, "parameters_M": round(sum(p.numel() for p in system.net.parameters()) / 1e6, 2),
            "step_s": round(seconds, 2), "memory_GB": round(peak, 2),
            "kept_MB": round(saved / batch / 2**20), "machine": machine()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("winners.csv"))
    parser.add_argument("--recipes", default=",".join(NAMES))
    parser.add_argument("--batch", type=int, default=2, help="windows of a step (default 2)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.batch)))
        return
    for name in args.recipes.split(","):
        command = [sys.executable, __file__, "--one", name, "--batch", str(args.batch)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        old = pd.read_csv(args.out).to_dict("records") if args.out.is_file() else []
        rows = {r["recipe"]: r for r in old}
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        pd.DataFrame([rows[n] for n in NAMES if n in rows]).to_csv(args.out, index=False)
        print(rows[name], flush=True)


if __name__ == "__main__":
    main()
