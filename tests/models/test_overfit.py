"""Every recipe can learn eight windows by heart: its view shows them apart, its network and its loss follow.

The pictures are the recipe's own, made once and brought down to at most 48 x 96 pixels (sequences to 200
samples); the
network is a tiny one of the family, without dropout; augmentation is off. Recipes that share all of this
share one fit."""
import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from hms_hbac.core import CHANNELS, EEG_RATE, EEG_SAMPLES, SPEC_BINS, SPEC_STEPS
from hms_hbac.models.losses import KL, loss
from hms_hbac.models.nets import Net
from hms_hbac.models.recipe import list_recipes, load_recipe
from hms_hbac.views.sequences import packed
from hms_hbac.views.systems import VIEWS, view
from hms_hbac.views.transforms import Around

TARGET = torch.eye(6)[torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])]
PLACES = ("Fp1", "T3", "C3", "O1", "Fp2", "C4", "T4", "O2")
UPDATES, GOAL = 150, .1


@cache
def windows():
    "Eight windows: a rhythm of its own at an electrode of its own, and a band of its own in the spectrogram."
    g = torch.Generator().manual_seed(0)
    eeg = 5 * torch.randn(8, 20, EEG_SAMPLES, generator=g)
    t = torch.arange(EEG_SAMPLES) / EEG_RATE
    spectrogram = torch.rand(8, 4, SPEC_BINS, SPEC_STEPS, generator=g) + .5
    for k in range(8):
        eeg[k, CHANNELS.index(PLACES[k])] += 60 * torch.sin(2 * torch.pi * (1.5 + 2 * k) * t)
        spectrogram[k, k % 4, 12 * k:12 * k + 12] += 30
    return {"eeg": eeg, "spectrogram": spectrogram}


def smaller(picture):
    "(8, C, H, W) to at most 48 x 96 pixels, (8, C, T) to 200 samples or fewer."
    if picture.ndim == 3: return F.interpolate(picture, size=min(200, picture.shape[-1]), mode="area")
    return F.adaptive_avg_pool2d(picture, (min(48, picture.shape[-2]), min(96, picture.shape[-1])))


class Blanked(Around):
    "A view that shows nothing: the fault that these tests are there to find."

    def forward(self, batch): return torch.zeros_like(self.view(batch))


@cache
def pictures(expr):
    "[(8, ...)] what the view makes of the windows, scaled down; one for each view of a `Bundle`."
    v = view(expr).eval()
    v.fit([windows()])
    with torch.no_grad(): x = v(windows())
    if hasattr(v, "parts"): return [smaller(p) for p in v.split(x)]
    return [smaller(x if x.ndim == len(v.shape) + 1 else x[:, 0])]


def quiet(net):
    "The network's keys without dropout, and shallow enough for a short sequence."
    if "parts" in net: net["parts"] = [quiet(p) for p in net["parts"]]
    if "image" in net: net["image"] = quiet(net["image"])
    net.update({k: 0. for k in ("dropout", "drop_path") if k in net})
    if "reduce" in net: net["reduce"] = 1
    if net["kind"] == "resnet1d_gru": net["blocks"] = 3
    if net["kind"] == "wavenet": net.update(filters=[8, 16], depth=4)
    return net


@cache
def fitted(expr, net, criterion, updates=UPDATES):
    "The KL after the last update of a fit by heart; it stops where the goal is reached."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = pictures(expr)
    net = TypeAdapter(Net).validate_python(json.loads(net))
    if len(x) == 1: laid, model = x[0], net.build(x[0].shape[1:])
    else:
        parts, width = [p.shape[1:] for p in x], max(p.shape[-1] for p in x)
        laid = torch.cat([packed(p, s, width) for p, s in zip(x, parts, strict=True)], 1)[:, None]
        model = net.build(laid.shape[1:], parts)
    model, criterion = model.train(), loss(criterion)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2 if len(laid.shape) == 3 else 3e-3, weight_decay=0)
    for _ in range(updates):
        logits = model(laid)
        kl = KL()(logits if logits.ndim == 2 else logits[:, 0], TARGET).item()
        if kl < GOAL: break
        optimizer.zero_grad()
        criterion(logits, TARGET, torch.full((8,), 12.)).backward()
        optimizer.step()
    return kl


def by_heart(name, sets=(), updates=UPDATES):
    recipe = load_recipe(name, "demo", sets)
    net = json.dumps(quiet(recipe.net.model_dump(mode="json")))
    kl = fitted(recipe.view, net, recipe.stages[-1].loss or recipe.loss, updates)
    assert kl < GOAL, f"the KL is still {kl:.2f}"


@pytest.mark.parametrize("name", list_recipes())
def test_eight_windows_are_learned_by_heart(name):
    by_heart(name)


BLANKED = {"panels_b0": "Blanked(Panels())", "wavenet": "Blanked(wavenet())",
           "kaggle_wavenet": "Bundle(Blanked(kaggle_twice()), Blanked(wavenet()))"}


@pytest.mark.parametrize("name, shown", BLANKED.items())
def test_a_recipe_whose_view_is_blanked_fails(name, shown, monkeypatch):
    """The same fit by heart, of the same recipe with a view that shows nothing. Eight windows that look alike
    cannot be told apart: the best answer to all is the mean label, a KL of about 1.7. (Of a bundle both views
    are blanked: one of them is enough to learn eight windows by heart.)"""
    monkeypatch.setitem(VIEWS, "Blanked", Blanked)
    with pytest.raises(AssertionError, match=r"the KL is still (1|2|3)\."):
        by_heart(name, [f"view={shown}"], UPDATES // 5)
