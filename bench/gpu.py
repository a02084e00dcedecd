"""How fast the parts of a training and of a prediction are on a GPU, and how much of its memory they take.

    python bench/gpu.py [--parts views,training] [--data COMP] [--seconds 1] [--recipes panels_b0,panels_b2]

Each part prints a table; `make gpu` runs them all, resumable, and writes a page. What a rate is compared
with:

- training: a bare loop of the same system on one batch in the device's memory (aim >= .90), and the bare
  timm network on pictures of the same size, forward, backward and SGD, as timm's own benchmark script does
  (aim >= .90; that script is not part of timm's package, so its loop is written out here)
- prediction: the same system on one batch in memory
- the reader: images/s that training takes, and windows/s that the reader gives

Without CUDA every part runs once with tiny sizes on the CPU, which shows that it runs and nothing else: the
tables then hold no figures.
"""
import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from hms_hbac.core import EEG_SAMPLES, SPEC_BINS, SPEC_STEPS, HmsError
from hms_hbac.data.competition import Competition, add_folds, events
from hms_hbac.data.recordings import Recordings, prepare
from hms_hbac.models.recipe import load_recipe, without_downloads
from hms_hbac.simulate.competition import simulate
from hms_hbac.training.batches import Prefetch, Resident, to_device
from hms_hbac.training.loop import backward, epoch_parts, predict_rows, read_part, start_stage, step, switch
from hms_hbac.training.machine import usable_precision
from hms_hbac.training.optimizers import make_optimizer
from hms_hbac.training.teachers import view_data
from hms_hbac.views.systems import VIEWS, view

sys.path.insert(0, str(Path(__file__).parent))
import training as bench_training  # noqa: E402  the folder had to be found first

RECIPES = ("panels_b0", "panels_b2", "attention_b0", "resnet1d_gru")
OPTIONS = ("channels_last", "fused", "resident", "compile")


@dataclass
class Place:
    "Where and how it is measured; `dry`: once, with tiny sizes, to see that it runs."
    comp: Path
    folder: Path                       # cache and runs
    dry: bool
    seconds: float = 1.0               # for each rate
    recipes: tuple = RECIPES
    rates: dict = field(default_factory=dict)          # images/s in training, by recipe
    given: bool = False                # the competition was named by the user

    @property
    def device(self): return torch.device("cpu" if self.dry else "cuda")
    @property
    def cache(self): return Recordings(self.folder / "cache")
    @property
    def events(self): return add_folds(events(Competition(self.comp).train))

    def some(self, names, n=2):
        "All of `names`, or the first `n` in a dry run."
        return list(names)[:n] if self.dry else list(names)

    def recipe(self, name, *sets):
        "A recipe without downloads, whole on a GPU and tiny in a dry run."
        if not self.dry: recipe = load_recipe(name, "full", sets)
        else: recipe = load_recipe(name, "demo", ["batch_size=4", f"view={small_view(name)}", *sets])
        return recipe.model_copy(update={"precision": usable_precision(recipe.precision)[0],
                                         "net": without_downloads(recipe.net)})

    def loop(self, recipe, rows=0):
        "A loop at the beginning of its first stage, its training rows repeated to `rows`."
        data = {"dir": self.folder / "runs" / "bench" / "fold0", "cache": self.cache, "events": self.events}
        torch.manual_seed(0)
        loop = bench_training.make_ours(recipe, data, rows)
        start_stage(loop)
        switch(loop.system, loop.stage, loop.stage.epochs)
        loop.bar = SimpleNamespace(update=lambda n: None, set_postfix=lambda **k: None)
        return loop


def small_view(name):
    "A recipe's view on 64 x 96 values, where it is a picture."
    shown = load_recipe(name).view
    return f"Resize({shown}, 64, 96)" if len(view(shown).shape) == 3 else shown


def make_place(data=None, folder=".", dry=None, **options):
    "A `Place` with its cache; without `data` a small competition is simulated there."
    folder, given = Path(folder), data is not None
    dry = not torch.cuda.is_available() if dry is None else dry
    if data is None:
        size = dict(patients=6, recordings_per_patient=1) if dry else dict(patients=60)
        data = simulate(folder / "comp", test_patients=1, seed=3, progress=False, **size)
    prepare(Competition(data), folder / "cache", progress=False)
    return Place(Path(data), folder, dry, given=given, **options)


def rate(call, place, images):
    "Images per second of `call`, which handles `images`; one call in a dry run."
    call()
    if place.dry: return None
    torch.cuda.synchronize()
    begin = time.perf_counter()
    n = 0
    while time.perf_counter() - begin < place.seconds:
        call()
        torch.cuda.synchronize()
        n += images
    return n / (time.perf_counter() - begin)


def over(a, b): return None if a is None or not b else a / b


def raw_batch(place, size):
    "A made-up raw batch on the device."
    g = torch.Generator().manual_seed(0)
    eeg = torch.randn(size, 20, EEG_SAMPLES, generator=g).cumsum(-1)
    power = torch.rand(size, 4, SPEC_BINS, SPEC_STEPS, generator=g).exp()
    return to_device({"eeg": eeg, "spectrogram": power}, place.device)


def views(place):
    "Images/s of every view at batch 64."
    size = 2 if place.dry else 64
    data, rows = raw_batch(place, size), []
    for name, make in VIEWS.items():
        try: drawn = make().eval()
        except (TypeError, ValueError, HmsError): continue          # a building block that needs arguments
        drawn.fit([to_device(data, "cpu")])
        drawn = drawn.to(place.device)
        with torch.inference_mode():
            rows.append({"view": name, "shape": "x".join(map(str, drawn.shape)),
                         "images/s": rate(lambda drawn=drawn: drawn(data), place, size)})
        if place.dry and len(rows) == 3: break
    return rows


def training(place):
    "Training images/s of each recipe, of the bare loop, and their ratio."
    rows = []
    for name in place.some(place.recipes, 1):
        data = {"dir": str(place.folder), "cache": place.cache, "events": place.events}
        sets = ["net.pretrained=none"] * (name != "resnet1d_gru")
        if place.dry: sets += ["batch_size=4", f"view={small_view(name)}"]
        scale, updates, rounds = ("demo", 1, 1) if place.dry else ("full", 10, 7)
        got = bench_training.measure(name, data, updates, rounds, scale, sets)
        place.rates[name] = None if place.dry else got["ours"]
        rows.append({"recipe": name, "precision": got["precision"], "batch": got["batch"],
                     "images/s": place.rates[name], "bare": None if place.dry else got["bare"],
                     "ratio": None if place.dry else got["ratio"]})
    return rows


def inference(place):
    "Prediction's images/s through reader, view and network, and the bare system's on one batch."
    rows = []
    for name in place.some(place.recipes, 1):
        loop = place.loop(place.recipe(name))
        given = loop.given
        wanted = np.resize(loop.given.train_rows, 4 if place.dry else 2048)
        batch = to_device(given.valid_data.batch(wanted[:loop.settings.batch_size], 0), place.device)
        system = loop.system.eval()

        def bare(system=system, batch=batch, loop=loop):
            with torch.no_grad(), loop.accelerator.autocast(): return system(batch)

        def ours(loop=loop, given=given, wanted=wanted):
            return predict_rows(loop, loop.system, given.valid_data, wanted)

        found = rate(ours, place, len(wanted)), rate(bare, place, len(batch["target"]))
        rows.append({"recipe": name, "images/s": found[0], "bare": found[1], "ratio": over(*found)})
    return rows


def timm_step(place):
    "Training images/s of the bare timm network on pictures of the recipe's size, and our share of it."
    import timm
    rows = []
    for name in place.some([r for r in place.recipes if r != "resnet1d_gru"], 1):
        loop = place.loop(place.recipe(name))
        recipe, shape = loop.settings, loop.system.view.shape
        net = timm.create_model(recipe.net.backbone.split(".")[0], in_chans=shape[0], num_classes=6)
        net = net.to(place.device).train()
        x = torch.randn(recipe.batch_size, *shape, device=place.device)
        y = torch.zeros(len(x), dtype=torch.long, device=place.device)
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        criterion = torch.nn.CrossEntropyLoss()
        scaler = torch.amp.GradScaler(place.device.type, enabled=recipe.precision == "fp16" and not place.dry)

        def once(net=net, x=x, y=y, optimizer=optimizer, criterion=criterion, scaler=scaler, loop=loop):
            with loop.accelerator.autocast(): loss = criterion(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        got = rate(once, place, len(x))
        ours = place.rates.get(name) or bare_rate(place, loop)
        rows.append({"recipe": name, "backbone": recipe.net.backbone, "ours": ours, "timm": got,
                     "ratio": over(ours, got)})
    return rows


def blocks(loop, updates):
    "Our loop over so many updates, the reader running beside it."
    parts, device = epoch_parts(loop), loop.accelerator.device
    reader = Prefetch(parts, lambda p: read_part(loop, 0, p), pin=device.type == "cuda")
    loop.system.train()
    done = images = 0
    try:
        for part, batch in zip(parts, reader, strict=False):
            backward(loop, part, to_device(batch, device))
            images += len(part.rows)
            if not part.last: continue
            step(loop, part)
            done += 1
            if done == updates: break
    finally:
        reader.close()
        loop.progress.update = 0
    return images


def bare_rate(place, loop, updates=20):
    "Images/s of our own loop; None in a dry run."
    blocks(loop, 1)
    if place.dry: return None
    torch.cuda.synchronize()
    begin = time.perf_counter()
    images = blocks(loop, updates)
    torch.cuda.synchronize()
    return images / (time.perf_counter() - begin)


def feed(place):
    "Windows/s that the reader gives, from memory maps and from the device's memory, and what training takes."
    rows, table = [], place.events
    for name in place.some(place.recipes, 1):
        loop = place.loop(place.recipe(name))
        need = place.rates.get(name) or bare_rate(place, loop)
        size = loop.settings.batch_size
        for kind in ("memory maps", "device"):
            source = place.cache if kind == "memory maps" else Resident(place.cache, place.device)
            data = view_data(loop.system, source, table)
            batches = [np.resize(np.arange(len(table)), size)] * (1 if place.dry else 50)

            def read(data=data, batches=batches):
                pin = place.device.type == "cuda"
                reader = Prefetch(batches, lambda r: data.batch(r, 0), pin=pin)
                for batch in reader: to_device(batch, place.device)

            had = rate(read, place, size * len(batches))
            rows.append({"recipe": name, "from": kind, "windows/s": had, "needed": need,
                         "times what is needed": over(had, need)})
    return rows


def spent(place, updates=20):
    "Milliseconds an image: reading, view and augmentation, network, optimizer, each waited for."
    from hms_hbac.models.image import image_batch
    rows = []
    for name in place.some(place.recipes, 1):
        loop = place.loop(place.recipe(name))
        took = dict.fromkeys(("data", "view and augment", "net", "optimizer"), 0.)
        images = 0
        clock = time.perf_counter()

        def lap(kind, took=took):
            nonlocal clock
            if place.device.type == "cuda": torch.cuda.synchronize()
            took[kind] += time.perf_counter() - clock
            clock = time.perf_counter()

        for k, part in enumerate(epoch_parts(loop)[:1 if place.dry else updates]):
            if k == 3: took.update(dict.fromkeys(took, 0.))               # the first ones warm up
            images = len(part.rows) if k == 3 else images + len(part.rows)
            clock = time.perf_counter()
            batch = to_device(read_part(loop, 0, part), place.device)
            lap("data")
            batch = image_batch(loop.system.train(), batch)
            lap("view and augment")
            with loop.accelerator.autocast(): logits = loop.system.classify(batch["image"])
            loop.accelerator.backward(loop.state.loss(logits, batch["target"], batch["n_votes"]))
            lap("net")
            if part.last: step(loop, part)
            lap("optimizer")
        rows.append({"recipe": name, **{k: None if place.dry else 1e3 * v / images for k, v in took.items()}})
    return rows


def memory(place, sizes=(8, 16, 32, 64, 128, 256), limit=16e9):
    "Peak GB of a training step by batch size, in a GPU that is held to a T4's 16 GB."
    rows, cuda = [], place.device.type == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory if cuda else limit
    if cuda: torch.cuda.set_per_process_memory_fraction(min(1., limit / total))
    try:
        for name in place.some(place.recipes, 1):
            for size in (2,) if place.dry else sizes:
                rows.append({"recipe": name, "batch": size, "peak GB": peak(place, name, size, cuda)})
    finally:
        if cuda: torch.cuda.set_per_process_memory_fraction(1.)
    return rows


def peak(place, name, size, cuda):
    "Peak GB of two updates, `does not fit`, or None without CUDA, where nobody counts."
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try: blocks(place.loop(place.recipe(name, f"batch_size={size}"), 2 * size), 2)
    except torch.cuda.OutOfMemoryError: return "does not fit"
    return torch.cuda.max_memory_reserved() / 1e9 if cuda else None


def options(place):
    "Training images/s with each of the recipe's `speed` keys alone, against none."
    rows = []
    for name in place.some(place.recipes, 1):
        rates = {}
        for option in ("none", *OPTIONS):
            backend = "eager" if place.dry else "inductor"
            value = backend if option == "compile" else "true"
            sets = [] if option == "none" else [f"speed.{option}={value}"]
            try: loop = place.loop(place.recipe(name, *sets), 40 * place.recipe(name).batch_size)
            except HmsError as e:                                      # an optimizer without a fused kernel
                rows.append({"recipe": name, "option": option, "images/s": f"not possible: {e.what}"})
                continue
            rates[option] = bare_rate(place, loop)
            rows.append({"recipe": name, "option": option, "images/s": rates[option],
                         "against none": over(rates[option], rates["none"])})
    return rows


def plain_optimizer(place):
    "Milliseconds of one optimizer step, fused and not, on the recipe's network."
    rows = []
    for name in place.some(place.recipes, 1):
        loop = place.loop(place.recipe(name))
        for fused in (False, True):
            try: optimizer = make_optimizer(loop.system, loop.settings.optimizer, fused=fused)
            except HmsError: continue
            for p in loop.system.parameters(): p.grad = torch.zeros_like(p)
            took = rate(optimizer.step, place, 1)
            rows.append({"recipe": name, "fused": fused, "ms": None if took is None else 1e3 / took})
    return rows


PARTS = {"views": views, "training": training, "inference": inference, "timm": timm_step, "feed": feed,
         "time": spent, "memory": memory, "options": options, "optimizer": plain_optimizer}


def main():
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--data", help="competition folder; default: a simulated one")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(args.data, folder, seconds=args.seconds, recipes=tuple(args.recipes.split(",")))
        where = "dry run on the CPU: no figures" if place.dry else torch.cuda.get_device_name()
        for name in args.parts.split(","):
            print(f"\n{name} ({where})\n{pd.DataFrame(PARTS[name](place)).round(3).to_string(index=False)}")


if __name__ == "__main__": main()
