"""Every published system as a recipe: builds at full scale, passes a batch, and learns at demo scale."""
import os
import time
from functools import cache

import pytest
import torch
import yaml

from hms_hbac.core import RecipeError
from hms_hbac.models.listing import read_table
from hms_hbac.models.losses import loss
from hms_hbac.models.nets import build_net, settled
from hms_hbac.models.recipe import (
    build,
    example_batch,
    list_recipes,
    load_recipe,
    recipe_table,
    without_downloads,
)
from hms_hbac.views.systems import view

WANTED = """attention_b0 attention_b0_distilled attention_b0_pseudo attention_convnext
attention_convnext_distilled attention_v2s attention_v2s_distilled dataset_b1 eeg_b2
eeg_percentiles_b2 eeg_stats_b2 eeg_stats_twostage_b0 eeg_twostage_b0 eeg_wavenet efficientnet1d
four_pictures_vit instance_b0 kaggle_b2 kaggle_eeg_b2 kaggle_eeg_wavenet kaggle_wavenet
left_right_encoder left_right_long multiwindow_b0 multiwindow_b0_heads
multiwindow_b0_pseudo
multiwindow_convnext_tiny multiwindow_mobilenetv3 multiwindow_mobilenetv3_pseudo multiwindow_v2s
own_spectrogram_b1 panels_b0 panels_b2 panels_globalnorm_b4 panels_mosaic_b0 panels_posterior_b0
panels_stats_b2 panels_transformer panels_twostage_4conf_b0 panels_twostage_b0 panels_weighted_b2
percentiles_b2 raw_image_b0 raw_picture_b5 refined_mosaic_augmented_b0 refined_mosaic_b0
resnet1d_gru resnet1d_gru_alpha resnet1d_gru_bands resnet1d_gru_delta resnet1d_gru_zero_phase
scalogram_maxvit sed_b0 shared_conv_picture smoothed_mosaic_b0 squeezeformer stats_b2
stats_globalnorm_b2 stats_mosaic_b0 stats_twostage_b0 stats_weighted_b2 stft_x3d superlet_maxvit
tiled_mels_tinyvit v2b3_picture wavenet wavenet_picture_maxxvit zoomed_mel_mixnet""".split()


def offline(name, scale):
    recipe = load_recipe(name, scale)
    recipe.net = without_downloads(recipe.net)
    return recipe


def test_every_row_of_the_table_exists():
    assert sorted(WANTED) == list_recipes()
    assert recipe_table(["resnet1d_gru_bands"]).parameters.item() == "0.5 M"      # counted without memory


def test_the_table_beside_the_recipes_knows_all():
    "What `hms-hbac recipes` reads; `test_full_scale_builds_and_passes_a_batch` compares it row by row."
    if not table_beside(): pytest.skip("a recipe has changed since: python tools/build_recipes.py")
    assert list(table_beside()) == list_recipes()


@cache
def table_beside():
    "{name: row} of the table beside the recipes; empty where a recipe has changed since it was written."
    told = read_table()
    return {} if told is None else {row["name"]: row for row in told.to_dict("records")}


# millions of parameters
FIRST_PLACES = {"zoomed_mel_mixnet": 10.37, "squeezeformer": .70, "tiled_mels_tinyvit": 20.92,
                "efficientnet1d": .91, "left_right_encoder": .88, "wavenet_picture_maxxvit": 23.25,
                "four_pictures_vit": 87.65, "scalogram_maxvit": 28.64, "superlet_maxvit": 28.64,
                "shared_conv_picture": 8.05, "raw_picture_b5": 28.35, "stft_x3d": 5.35, "v2b3_picture": 12.83}


@pytest.mark.parametrize("name", WANTED)
def test_full_scale_builds_and_passes_a_batch(name):
    """Networks on the meta device: every shape is computed, no weight and no product. A GRU unrolls there, so
    it runs for real. The first places take a whole step there; `bench/winners.py` takes the same for real."""
    recipe = offline(name, "full")
    device = "cpu" if recipe.net.kind == "resnet1d_gru" else "meta"
    drawn = view(recipe.view)
    with torch.device(device):
        net = build_net(recipe.net, drawn).eval()
        with torch.no_grad(): assert net(torch.zeros(2, *drawn.shape)).shape == (2, 6)
        if name in FIRST_PLACES:
            net.train()(torch.zeros(2, *drawn.shape)).sum().backward()
            torch.optim.AdamW(net.parameters()).step()
            assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions > .01 and millions == pytest.approx(FIRST_PLACES.get(name, millions), abs=.006)
    [row] = recipe_table([name], parameters=False).to_dict("records")
    told = row | {"parameters": f"{millions:.1f} M"}
    assert table_beside().get(name, told) == told, "a view or net has changed: python tools/build_recipes.py"


def test_a_full_step_for_real():
    "The smallest of them on the CPU: finite gradients, and weights that moved."
    recipe = offline("left_right_encoder", "full")
    system = build(recipe).train()
    batch = example_batch(system, 2)
    logits, batch = system(batch)
    loss(recipe.loss)(logits, batch["target"], batch["n_votes"]).backward()
    before = system.net.head[-1].weight.detach().clone()
    assert all(p.grad.isfinite().all() for p in system.net.parameters())
    torch.optim.AdamW(system.parameters()).step()
    assert not torch.equal(before, system.net.head[-1].weight)


@pytest.mark.parametrize("name", WANTED)
def test_demo_keeps_view_loss_and_stages(name):
    full, demo = load_recipe(name), load_recipe(name, "demo")
    assert (demo.view, demo.loss) == (full.view, full.loss)
    kept = [[(s.name, s.min_votes, s.max_votes, s.labels, s.start) for s in r.stages] for r in (demo, full)]
    assert kept[0] == kept[1]


def test_inheritance_is_one_level(tmp_path):
    (tmp_path / "a.yaml").write_text("inherits: panels_b0\noptimizer: {lr: 2e-3}\n")
    (tmp_path / "b.yaml").write_text("inherits: a\n")
    with pytest.raises(RecipeError, match="inherits 'panels_b0', which itself inherits"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("inherits: panels_b2\noptimizer: {lr: 2e-3}\n")
    recipe = load_recipe(tmp_path / "c.yaml")
    assert recipe.name == "c" and recipe.optimizer.lr == 2e-3
    assert recipe.net.backbone.startswith("tf_efficientnet_b2")


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


def write(folder, text, name="r"):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text, message", [
    ("a: &a [1, 1]\nb: [*a, *a]\nview: Panels()", "anchors and aliases"),
    ("view: &v Panels()", "anchors and aliases"),
    ("view: " + "[" * 300 + "]" * 300, "more than 20 levels"),
    ("view: " + "{a: " * 900 + "1" + "}" * 900, "more than 20 levels"),
    ("view: !!python/name:os.system", "not valid YAML"),
    ("view: Panels()\nwhen: 2024-13-45", "not valid YAML"),
    ("view: Panels()\nname: ../../../x", "cannot name a folder"),
    ("view: Panels()\nname: /tmp/x", "cannot name a folder"),
    ("view: Panels()\nseed: -1", "seed: Input should be greater than or equal to 0"),
    ("view: Panels()\nseed: " + "9" * 23, "seed: Input should be less than"),
    ("view: Panels()\nstages: [{name: a}, {name: b, min_votes: 6}]", "set select_min_votes (6"),
    ("view: Panels()\nstages: [{name: a, start: continue}]", "nothing to continue"),
    ("view: Panels()\nstages: [{name: a}, {name: a}]", "two stages have one name"),
    ("inherits: resnet1d_gru\nnet: {bands: 3, band_mode: models, weights: [.inf, 1, 1]}",
     "Input should be a finite number"),
    ("view: Panels()\nnet: {kind: joined, parts: [{kind: timm}, {kind: wavenet}]}", "needs a view Bundle"),
    ("- a\n- b", "a recipe is a mapping of keys"), ("inherits: [1]\nview: Panels()",
                                                    "inherits names one recipe"),
])
def test_files_that_would_harm_are_named(tmp_path, text, message):
    with pytest.raises(RecipeError) as e: load_recipe(write(tmp_path, text))
    assert message in str(e.value) and len(str(e.value)) < 3000


def test_rows_of_all_votes_may_choose_if_the_recipe_says_so(tmp_path):
    stages = "view: Panels()\nstages: [{name: a}, {name: b, min_votes: 6}]\n"
    for n in (0, 6):
        path = write(tmp_path, stages + f"select_min_votes: {n}", f"r{n}")
        assert load_recipe(path).select_min_votes == n == load_recipe(path, "demo").select_min_votes


def test_a_default_does_not_choose_at_any_scale(tmp_path):
    "A scale or an override that ends on many votes is asked as well who chooses its best weights."
    sure = "stages=[{name: sure, epochs: 2, min_votes: 10}]"
    for scale in ("full", "demo", "small"):
        with pytest.raises(RecipeError, match="set select_min_votes .10"):
            load_recipe("panels_b0", scale, [sure])
        assert load_recipe("panels_b0", scale, [sure, "select_min_votes=0"]).select_min_votes == 0
    path = write(tmp_path, "view: Panels()\ndemo: {stages: [{name: sure, min_votes: 9}]}")
    with pytest.raises(RecipeError, match="set select_min_votes .9"): load_recipe(path, "demo")


def test_a_stage_may_say_that_it_continues(tmp_path):
    text = "view: Panels()\nselect_min_votes: 8\nstages: [{name: a}, {name: b, min_votes: 8, KEY}]"
    short, long = (load_recipe(write(tmp_path, text.replace("KEY", k)))
                   for k in ("continue: true", "start: continue"))
    assert short == long and short.stages[1].start == "continue"
    assert load_recipe(write(tmp_path, text.replace("KEY", "continue: false"))).stages[1].start == "previous"
    for wrong in ("continue: 1", "continue: true, start: fresh"):
        with pytest.raises(RecipeError, match="in place of start"):
            load_recipe(write(tmp_path, text.replace("KEY", wrong)))


@pytest.mark.parametrize("name", ["resnet1d_gru_alpha", "resnet1d_gru_delta"])
def test_a_recipe_says_which_augmentation_it_leaves_out(name):
    def names(recipe): return {a.partition("(")[0] for a in recipe.image_augment}
    recipe = load_recipe(name)
    gone = names(load_recipe("resnet1d_gru")) - names(recipe)
    assert gone == {"RandomBand"} and all(a in recipe.ours for a in gone)


def test_an_alias_bomb_ends_at_once(tmp_path):
    "Nine levels of nine references each would unfold into 400 million values."
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{new}: &{new} [" + ", ".join([f"*{old}"] * 9) + "]\n"
    begin = time.perf_counter()
    with pytest.raises(RecipeError, match="anchors and aliases"): load_recipe(write(tmp_path, text))
    assert time.perf_counter() - begin < 2


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "huge.yaml").write_text("view: Panels()\n#" + "x" * (1 << 20))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00view")
    for name, message in (("folder", "is a folder"), ("loop", "cannot be read"), ("pipe", "is no ordinary"),
                          ("huge", "larger than 1 MB"), ("bytes", "not valid YAML"), ("missing",
                                                                                      "no such recipe")):
        with pytest.raises(RecipeError, match=message): load_recipe(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize("item", [
    "a=[1", "x", "=3", "a=!!python/name:os.system", "seed=-1", "optimizer.lr=.inf", "a=&b [1]",
    ".".join("a" * 5000) + "=1", "name=../x", "stages=[]", "seed=1e308"])
def test_overrides_fail_by_name(item):
    with pytest.raises(RecipeError): load_recipe("panels_b0", set=[item])


def test_a_recipe_of_the_first_layout_keeps_its_hash(tmp_path):
    "A file as version 0.1 saved it: it loads, and what is hashed of it has the keys of then and no other."
    path = write(tmp_path, OLD, "recipe")
    recipe, then = load_recipe(path), yaml.safe_load(OLD)
    assert settled(recipe) == then
    assert settled(load_recipe(path, set=["data.blank=0.5"]))["data"]["blank"] == .5


def test_vote_rules_of_the_two_stage_recipes():
    """What the originals did, as keys: unweighted warm-up, best score forgotten, one training in two stages,
    rows left out."""
    for name in ("panels_mosaic_b0", "stats_mosaic_b0", "panels_twostage_b0", "panels_twostage_4conf_b0",
                 "stats_twostage_b0", "eeg_twostage_b0", "eeg_stats_twostage_b0"):
        stage = load_recipe(name).stages[0]
        assert stage.warmup.model_dump() == {"epochs": stage.mosaic_epochs, "weighted": False,
                                             "reset_best": True}
        assert stage.mosaic_epochs in (2, 3) and load_recipe(name).image_augment == ["Mosaic()"]
    for name in ("attention_b0", "attention_v2s", "attention_b0_distilled", "attention_b0_pseudo",
                 "raw_image_b0"):
        assert load_recipe(name).select_min_votes == 8
    assert [s.start for s in load_recipe("multiwindow_b0").stages] == ["previous", "continue"]
    assert load_recipe("multiwindow_mobilenetv3").net.finish is False
    net = load_recipe("eeg_percentiles_b2").net
    assert (net.dropout, net.drop_path) == (.3, .2)
    gru = load_recipe("resnet1d_gru")
    assert gru.data.rows == "eeg"
    assert [r.model_dump() for r in gru.stages[0].leave_out] == [{"votes": 4, "consensus": "gpd"}]


ROWS = """attention_b0 original more than 7 votes
raw_image_b0 avoided attention_b0
attention_b0 ours 300 columns that a test row has (blank margins)
attention_b0_pseudo ours teachers that have not seen the patients on whom the student is judged
attention_b0_pseudo avoided leaks
attention_b0_pseudo original validation fold's rows below 7 votes moved into training
panels_twostage_b0 ours by the rows with 5 votes or more
wavenet ours schedule and epochs are ours
instance_b0 original plain shuffled folds
attention_b0_distilled original weight .1
attention_convnext_distilled original weight .1
attention_v2s_distilled original weight .2
attention_b0_distilled ours says which folds its models have not seen
panels_mosaic_b0 original three unweighted warm-up epochs
panels_mosaic_b0 original best score is forgotten after the warm-up
stats_mosaic_b0 original commented out
panels_twostage_b0 ours the warm-up's best score forgotten
resnet1d_gru original keeps nothing but one hertz between 10 and 20
resnet1d_gru ours each derivation by itself
resnet1d_gru original 4-vote GPD left out
resnet1d_gru ours best voted
multiwindow_b0 original one training of 15 epochs
multiwindow_b0 ours optimizer, average and cosine running on over both stages
multiwindow_b0 ours its own range
multiwindow_mobilenetv3 original one linear layer on its 960 features
eeg_percentiles_b2 ours dropout .3 and drop path .2
kaggle_eeg_b2 origin input KE
resnet1d_gru_bands avoided separately trained bands are the recipes
resnet1d_gru_zero_phase original weight decay 1e-4
smoothed_mosaic_b0 ours smoothed by .05
refined_mosaic_augmented_b0 original no code applies them""".splitlines()


def test_rows_say_what_was_done_and_what_we_do():
    "Original, ours and avoided of the recipes that once differed from their originals unsaid."
    for name, key, told in (row.split(" ", 2) for row in ROWS):
        assert told in getattr(load_recipe(name), key), (name, key, told)
    assert all(getattr(load_recipe(n), k) for n in WANTED for k in ("origin", "original", "ours", "avoided"))


def test_seven_inputs_of_the_keras_notebook():
    "EfficientNet-B2's 1408 features and the WaveNet's 256 meet in one last layer, as published."
    recipe = offline("kaggle_eeg_wavenet", "full")
    with torch.device("meta"): net = build_net(recipe.net, view(recipe.view))
    assert net.head.in_features == 1408 + 256 and net.head.out_features == 6
    for name in ("kaggle_b2", "eeg_b2", "kaggle_eeg_b2"):
        assert view(load_recipe(name).view).shape == (3, 512, 512)


OLD = """
name: panels_b0
origin: old
original: ''
ours: ''
avoided: ''
view: Panels()
signal_augment: []
image_augment: []
net: {kind: timm, backbone: test_efficientnet, pool: avg, attention: false, head: linear, stem: null,
  bias: true,   dropout: 0.1, drop_path: 0.0,
  pretrained: none}
loss: KL()
smoothing: {eps: 0.0, 'on': shares}
data: {rows: event, offset: middle}
optimizer: {name: adamw, lr: 0.004, weight_decay: 0.01, betas: null}
schedule: {name: onecycle, warmup: 0.1, div: 25.0, final_div: 100.0, period: 20, at: 0.75, factor: 0.1}
batch_size: 16
accumulate: 1
clip: null
ema: null
precision: fp32
stages:
- {name: all, epochs: 6, min_votes: 0, max_votes: null, bound: null, keep: 1.0, keep_from: 0, start: previous,
  lr: null, loss: null, labels: {source: votes, runs: [], table: null, weight: 1.0, below_votes: null},
  mosaic_epochs: 0, mixing: true}
evals_per_epoch: 1
select_min_votes: 0
patience: null
folds: 5
seed: 42
tta: []
demo: {}
"""
