"""Scale small keeps what a recipe is and says what it took away."""
import pytest
import torch

from hms_hbac.models.recipe import build, example_batch, list_recipes, load_recipe
from hms_hbac.models.scales import small_view
from hms_hbac.training.results import recipe_hash

KEPT = ("signal_augment", "image_augment", "loss", "smoothing", "data", "optimizer", "schedule", "clip",
        "select_min_votes", "folds", "seed")


@pytest.mark.parametrize("name", list_recipes())
def test_small_keeps_what_a_recipe_is(name):
    full, small = load_recipe(name), load_recipe(name, "small")
    for key in KEPT: assert getattr(small, key) == getattr(full, key), key
    kept = [[(s.name, s.min_votes, s.max_votes, s.bound, s.labels, s.start, s.lr, s.loss) for s in r.stages]
            for r in (small, full)]
    assert kept[0] == kept[1]
    for a, b in zip(small.stages, full.stages, strict=True):
        assert 1 <= a.epochs <= b.epochs and bool(a.mosaic_epochs) == bool(b.mosaic_epochs)
        assert a.warmup.epochs < a.epochs
    assert small.view == (full.small.get("view") or small_view(full.view))
    assert small.net.kind == full.net.kind and "test_" not in str(small.net)      # no toy networks
    assert small.reduced


def test_a_small_system_reads_a_batch():
    recipe = load_recipe("multiwindow_mobilenetv3", "small")
    torch.manual_seed(0)
    system = build(recipe).eval()
    logits, batch = system(example_batch(system))
    assert logits.shape == (2, 6) and batch["image"].shape[-3:] == (1, 200, 384)


def test_notes_and_keys_at_their_defaults_do_not_change_a_recipes_hash():
    recipe = load_recipe("panels_b0")
    noted = recipe.model_copy(update={"reduced": "much", "small": {"clip": 1}})
    assert recipe_hash(recipe) == recipe_hash(noted)
    assert recipe_hash(recipe) != recipe_hash(load_recipe("panels_b0", set=["speed.fused=true"]))
