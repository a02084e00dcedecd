"""Every published system as a recipe: builds at full scale, passes a batch, and learns at demo scale."""
import pytest
import torch

from hms_hbac.core import RecipeError
from hms_hbac.models.losses import loss
from hms_hbac.models.recipe import build, example_batch, list_recipes, load_recipe, recipe_table

WANTED = """panels_b2 stats_b2 panels_stats_b2 percentiles_b2 eeg_percentiles_b2 eeg_stats_b2 panels_weighted_b2 stats_weighted_b2
panels_globalnorm_b4 stats_globalnorm_b2 panels_mosaic_b0 stats_mosaic_b0 panels_twostage_b0 stats_twostage_b0 eeg_twostage_b0 panels_transformer
attention_b0 attention_v2s attention_convnext attention_b0_pseudo attention_v2s_distilled sed_b0 raw_image_b0
multiwindow_b0 multiwindow_mobilenetv3 multiwindow_b0_pseudo multiwindow_mobilenetv3_pseudo
refined_mosaic_b0 instance_b0 dataset_b1 own_spectrogram_b1 resnet1d_gru resnet1d_gru_bands wavenet kaggle_eeg_b2 panels_b0""".split()


def offline(name, scale):
    recipe = load_recipe(name, scale)
    if hasattr(recipe.net, "pretrained"):
        recipe.net.pretrained = "none"
    return recipe


def test_every_row_of_the_table_exists():
    assert sorted(WANTED) == list_recipes()
    assert list(recipe_table(parameters=False).name) == list_recipes()


@pytest.mark.parametrize("name", WANTED)
def test_full_scale_builds_and_passes_a_batch(name):
    system = build(offline(name, "full")).eval()
    batch = example_batch(system)
    with torch.inference_mode():
        logits, out = system(batch)
    assert logits.shape == (2, 6) and logits.isfinite().all()
    assert tuple(out["image"].shape[-len(system.view.shape):]) == system.view.shape
    assert sum(p.numel() for p in system.parameters()) > 10_000


@pytest.mark.parametrize("name", WANTED)
def test_demo_scale_learns_one_batch(name):
    recipe = offline(name, "demo")
    torch.manual_seed(0)
    system, criterion = build(recipe).train(), loss(recipe.loss)
    batch = example_batch(system, 4)
    batch["target"] = torch.eye(6)[:4]
    optimizer = torch.optim.AdamW(system.parameters(), lr=min(recipe.optimizer.lr, 1e-3))
    values = []
    for _ in range(3):
        torch.manual_seed(1)                      # the same dropout each time; the batch's keys fix the augmentation
        logits, mixed = system(batch)
        value = criterion(logits, mixed["target"], mixed["n_votes"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[2] < values[0]


@pytest.mark.parametrize("name", WANTED)
def test_demo_keeps_view_loss_and_stages(name):
    full, demo = load_recipe(name), load_recipe(name, "demo")
    assert (demo.view, demo.loss) == (full.view, full.loss)
    assert [(s.name, s.min_votes, s.max_votes, s.labels) for s in demo.stages] == [(s.name, s.min_votes, s.max_votes, s.labels) for s in full.stages]


def test_inheritance_is_one_level(tmp_path):
    (tmp_path / "a.yaml").write_text("inherits: panels_b0\noptimizer: {lr: 2e-3}\n")
    (tmp_path / "b.yaml").write_text("inherits: a\n")
    with pytest.raises(RecipeError, match="inherits 'panels_b0', which inherits itself"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("inherits: panels_b2\noptimizer: {lr: 2e-3}\n")
    recipe = load_recipe(tmp_path / "c.yaml")
    assert recipe.name == "c" and recipe.optimizer.lr == 2e-3 and recipe.net.backbone.startswith("tf_efficientnet_b2")


@pytest.mark.parametrize("text, message", [
    ("view: Panels()\nlearning_rate: 1", "learning_rate: Extra inputs are not permitted"),
    ("view: Panels()\nbatch_size: many", "batch_size: Input should be a valid integer"),
    ("view: Panels()\nnet: {kind: resnet1d_gru, attention: true}", "attention"),
    ("view: eight()\nnet: {kind: timm}", "reads an image"),
    ("view: Panels()\nnet: {attention: true, head: sed}", "choose one"),
    ("view: Panels()\nstages: [{epochs: 2, mosaic_epochs: 3}]", "3 mosaic epochs do not fit into 2"),
    ("view: Panels()\nstages: [{labels: {source: pseudo}}]", "need either runs or a table"),
    ("view: Panels()\nimage_augment: ['Mixupp()']", "unknown name 'Mixupp'"),
    ("view: [", "not valid YAML"),
    ("!!python/object:os.system {}", "not valid YAML"),
])
def test_faults_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="(?s)" + message.replace("(", r"\(").replace(")", r"\)")):
        load_recipe(path)
