"""The ladders of nbs/experiments/: every rung is a recipe that can be built, at demo scale and in full."""
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from hms_hbac.evaluation.ladder import Place, ladder_plot, rung_recipe, stack
from hms_hbac.models.recipe import build

EXPERIMENTS = sorted((Path(__file__).resolve().parents[2] / "nbs/experiments").glob("*.ipynb"))
LADDERS = [p for p in EXPERIMENTS if "table = climb(" in p.read_text(encoding="utf-8")]


def read(path, scale):
    "The rungs of a notebook and the place they ask for; nothing is simulated or trained."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    code = code.split("table = climb")[0].replace("where = place(", "where = somewhere(")
    def somewhere(comp, small=(), epochs=4, **_):
        return Place(None, None, None, scale, (0, 1), epochs, tuple(small))

    names = {"somewhere": somewhere}
    exec(code, names)
    return names["rungs"], names["where"]


def test_there_is_a_ladder_for_every_family():
    assert {"cranjis", "david", "public", "richard"} <= {p.stem for p in LADDERS}


@pytest.mark.parametrize("scale", ["demo", "full"])
@pytest.mark.parametrize("path", LADDERS, ids=lambda p: p.stem)
def test_every_rung_can_be_built_and_differs_from_the_one_below(path, scale):
    rungs, where = read(path, scale)
    todo = stack(rungs).items()
    made = {name: rung_recipe(name, recipe, changes, where) for name, (recipe, changes, _) in todo}
    assert len(made) >= 7
    for name, (_, _, below) in stack(rungs).items():
        if hasattr(made[name].net, "pretrained"): made[name].net.pretrained = "none"
        assert sum(p.numel() for p in build(made[name]).parameters()) > 1000
        keys = {"name", "about", "origin", "original", "ours", "avoided", "inherits"}
        assert not below or made[name].model_dump(exclude=keys) != made[below].model_dump(exclude=keys), name


@pytest.mark.parametrize("path", LADDERS, ids=lambda p: p.stem)
def test_the_last_rung_is_the_first_with_another_seed(path):
    rungs, where = read(path, "full")
    assert rungs[-1] == (rungs[-1].name, ["seed=7"], "", rungs[0].name)


def test_a_warm_up_ends_before_its_stage():
    "A rung of few epochs has the mosaics and the warm-up of its recipe in half of them at most."
    for epochs, wanted in ((4, 1), (1, 0)):
        where = Place(None, None, None, "demo", (0,), epochs)
        few, many = rung_recipe("two", "stats_twostage_b0", (), where).stages
        assert (few.epochs, few.mosaic_epochs, few.warmup.epochs) == (max(1, epochs // 2), wanted, wanted)
        assert (many.mosaic_epochs, many.warmup.epochs) == (0, 0)


def test_a_ladder_of_one_rung_has_a_picture():
    "Nothing lies below it, so `steps` makes no column of changes: its KL and its floor are drawn."
    kl = {"below": "", "kl": 1., "kl_10": .9, "floor": .4, "floor_10": .1, "wall_s": 3}
    fig = ladder_plot(pd.DataFrame(kl, index=["only"]))
    first, *changes = fig.axes
    assert [line.get_xdata()[0] for line in first.lines] == [1., .4, .9, .1]
    assert [len(ax.containers) for ax in changes] == [0, 0]
    plt.close(fig)
