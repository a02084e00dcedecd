"""Models at full scale (on the meta device), weights from folders, systems under autocast and in copies."""
import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hms_hbac.core import CheckpointError, RecipeError
from hms_hbac.draws import sample_keys
from hms_hbac.models.backbones import create_backbone, feature_grid, save_backbone, weights_file
from hms_hbac.models.image import AST, HeadsAttention, ImageModel, System, enlarge_stem, trace
from hms_hbac.models.joined import Joined
from hms_hbac.models.losses import loss
from hms_hbac.models.sequence import BandEnsemble, ResNet1DGRU, WaveNet, resnet1d_gru

TINY = ("test_efficientnet.r160_in1k", "test_convnext", "test_vit", "test_resnet", "test_maxvit")


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name, shape, grid", [
    ("tf_efficientnet_b0", (3, 400, 912), (1280, 13, 29)), ("tf_efficientnetv2_s", (3, 400, 912),
                                                            (1280, 13, 29)),
    ("tf_efficientnet_b1", (1, 512, 512), (1280, 16, 16)), ("tf_efficientnet_b2", (1, 400, 300),
                                                            (1408, 13, 10)),
    ("tf_efficientnet_b3", (1, 400, 600), (1536, 13, 19)), ("tf_efficientnet_b4", (1, 400, 300),
                                                            (1792, 13, 10)),
    ("convnext_base", (3, 400, 912), (1024, 12, 28)), ("mobilenetv3_large_100", (1, 400, 768), (960, 13, 24)),
    ("vit_small_patch16_224", (1, 400, 300), (384, 25, 19)), ("deit_tiny_patch16_224", (1, 400, 300),
                                                              (192, 25, 19)),
    ("swin_tiny_patch4_window7_224", (1, 400, 300), (768, 13, 10)), ("maxvit_tiny_tf_512", (1, 400, 300),
                                                                     (512, 13, 10))])
def test_full_scale_shapes(name, shape, grid):
    "Every backbone family makes a map of the expected size, also with the gate, whose width follows the map."
    with torch.device("meta"):
        net = ImageModel(name, shape, attention=True)
        assert feature_grid(net.backbone, shape) == grid
        assert net.attention.gate.out_features == grid[2]
        assert net.eval()(torch.empty(2, *shape)).shape == (2, 6)


def test_b0_counts():
    import timm
    with torch.device("meta"):
        reference = count(timm.create_model("tf_efficientnet_b0"))           # 5,288,548 with 1,000 classes
        ours = count(ImageModel("tf_efficientnet_b0", (3, 400, 300)))
    assert reference == 5_288_548
    assert ours == reference - (1280 * 1000 + 1000) + 1280 * 6 + 6


@pytest.mark.parametrize("name", TINY)
def test_folder_weights_reach_every_parameter(name, tmp_path):
    """What the folder holds is what the model starts from: stem summed over colours, everything else equal
    (positions resampled)."""
    import timm
    torch.manual_seed(3)
    source = timm.create_model(name)
    assert save_backbone(name, tmp_path, source) == weights_file(name, tmp_path)
    net = ImageModel(name, (1, 96, 128), pretrained=str(tmp_path)).backbone.net
    stem = source.pretrained_cfg["first_conv"] + ".weight"
    theirs = dict(source.named_parameters())
    for key, p in net.named_parameters():
        if key == stem: assert torch.allclose(p, theirs[key].sum(1, keepdim=True), atol=1e-5)
        elif p.shape == theirs[key].shape: assert torch.equal(p, theirs[key]), key
        else: assert "pos" in key or "bias_table" in key, key


def test_one_channel_stem_is_the_colour_net_on_gray(tmp_path):
    import timm
    torch.manual_seed(3)
    save_backbone("test_efficientnet", tmp_path, timm.create_model("test_efficientnet"))
    one, three = (create_backbone("test_efficientnet", tmp_path, in_chans=c).eval() for c in (1, 3))
    x = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        assert torch.allclose(one.forward_features(x), three.forward_features(x.repeat(1, 3, 1, 1)),
                              atol=1e-4)


def test_missing_foreign_and_broken_files(tmp_path):
    import timm
    from safetensors.torch import load_file, save_file
    with pytest.raises(CheckpointError,
                       match="no test_vit.safetensors in this folder; it holds no safetensors file"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path))
    with pytest.raises(CheckpointError,
                       match="no such folder of pretrained weights; wanted test_vit.safetensors"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path / "nowhere"))
    path = save_backbone("test_vit", tmp_path, timm.create_model("test_vit"))
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if "blocks.3.mlp" not in k}, path)
    with pytest.raises(CheckpointError, match="lacks blocks.3.mlp.fc1.weight"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path))
    save_file({**whole, "decoder.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="has the unknown decoder.weight"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path))
    save_file({**whole, "norm.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="norm.weight"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path))
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        ImageModel("test_vit", (1, 80, 120), pretrained=str(tmp_path))


def test_hub_without_network_is_an_error(tmp_path):
    "No silent random start where the hub cannot be reached; the message says what to do."
    code = "\n".join(["from hms_hbac.core import CheckpointError",
                      "from hms_hbac.models.backbones import create_backbone",
                      "try: create_backbone('test_vit.r160_in1k', 'hub')",
                      "except CheckpointError as e: print(e)", "else: print('SILENT')"])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                         timeout=300).stdout
    assert "no weights for test_vit.r160_in1k" in out and "set pretrained: none" in out


def test_nothing_of_torch_is_replaced_while_weights_load(tmp_path, monkeypatch):
    "Another thread's `load_state_dict` is never ours: it is the same function before, during and after."
    import timm
    save_backbone("test_vit", tmp_path, timm.create_model("test_vit"))
    before, seen = nn.Module.load_state_dict, []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a,
                        **k: seen.append(nn.Module.load_state_dict is before) or create(*a, **k))
    create_backbone("test_vit", tmp_path)
    assert seen and all(seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64])
def test_odd_numbers_are_no_weights(dtype, tmp_path):
    import timm
    from safetensors.torch import load_file, save_file
    path = save_backbone("test_vit", tmp_path, timm.create_model("test_vit"))
    whole = load_file(path)
    save_file({**whole, "norm.weight": whole["norm.weight"].to(dtype)}, path)
    with pytest.raises(CheckpointError, match=f"norm.weight is {str(dtype).removeprefix('torch.')}"):
        create_backbone("test_vit", tmp_path)


def test_hub_files_with_a_classifier_fit(tmp_path):
    """A file as timm's hub holds it, classifier included, is taken without it; a resampled position table is
    no fault."""
    import timm
    from safetensors.torch import save_file
    for name in ("test_efficientnet", "test_convnext", "test_vit", "test_resnet"):
        whole = timm.create_model(name)
        save_file({k: v.contiguous() for k, v in whole.state_dict().items()},
                  tmp_path / f"{name}.safetensors")
        net = create_backbone(name, tmp_path)
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in net.state_dict().items())


def test_published_head_of_mobilenet():
    """David's MobileNetV3 has one linear layer on 960 features; ConvNeXt without its norm trains every
    parameter it holds."""
    with torch.device("meta"):
        net = ImageModel("mobilenetv3_large_100", (1, 400, 768), stem="large", bias=False, finish=False)
    assert net.head.weight.shape == (6, 960) and net.backbone.net.conv_stem.kernel_size == (17, 17)
    for name in ("test_convnext", "test_efficientnet", "test_vit", "test_resnet"):
        small = ImageModel(name, (1, 64, 96), finish=False)
        small(torch.randn(2, 1, 64, 96)).square().sum().backward()
        assert [n for n, p in small.named_parameters() if p.grad is None] == []


def test_large_stem_keeps_the_stride():
    import timm
    net = timm.create_model("test_convnext", in_chans=1)
    enlarge_stem(net)
    assert net.stem[0].stride == (4, 4) and net.stem[0].kernel_size == (17, 17)
    assert net.stem[0](torch.zeros(1, 1, 400, 768)).shape[2:] == (100, 192)


def test_four_headed_attention_has_the_published_shape():
    "1280 channels: four projections to 160, gates of 64 hidden channels, joined 640 -> 320 -> 320 -> 1280."
    with torch.device("meta"): net = ImageModel("tf_efficientnet_b0", (1, 400, 768), attention=4)
    assert isinstance(net.attention, HeadsAttention)
    assert net.attention.heads[0][1].gate.weight.shape == (24, 64)
    convs = [m.weight.shape[:2] for m in net.attention.fuse if isinstance(m, nn.Conv2d)]
    assert convs == [(320, 640), (320, 320), (1280, 320)]


def test_auxiliary_heads_reach_every_part():
    "In training each part has logits of its own and a gradient; in evaluation the joint head answers alone."
    parts = [ImageModel("test_efficientnet", (1, 40, 60)), WaveNet(samples=80, filters=(4, 8))]
    net = Joined(parts, (1, 40 + 8 * 2, 60), auxiliary=True)
    x = torch.randn(4, *net.shape)
    logits = net.train()(x)
    loss("KL(auxiliary=.3)")(logits, torch.full((4, 6), 1 / 6)).backward()
    assert logits.shape == (4, 3, 6) and net.eval()(x).shape == (4, 6)
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_options_are_checked():
    for kw, text in ((dict(pool="max"), "unknown pool"), (dict(head="mlp"), "unknown head"),
                     (dict(stem="huge"), "unknown stem"),
                     (dict(head="sed", pool="gem"), "pools in its own way"), (dict(pool="token"),
                                                                              "need a vision transformer")):
        with pytest.raises(RecipeError, match=text): ImageModel("test_resnet", (1, 64, 64), **kw)
    with pytest.raises(RecipeError, match="names near it"): ImageModel("efficientnet_b00", (1, 64, 64))
    with pytest.raises(RecipeError, match="names near it"):
        ImageModel("tf_efficientnet_b0.no_such_tag", (1, 64, 64))
    with pytest.raises(RecipeError, match="smaller than one patch"): AST((1, 8, 100), "test_vit")


def test_drop_path_is_what_was_asked_also_for_swin():
    "timm's Swin has a drop-path of 0.1 by default; ours is the recipe's."
    for rate in (0., .2):
        with torch.device("meta"):
            net = ImageModel("swin_tiny_patch4_window7_224", (1, 64, 96), drop_path=rate)
        rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
        assert max(rates, default=0.) == pytest.approx(rate)


class Bare(nn.Module):
    "A view that shows the spectrogram's first panel."
    shape = (1, 64, 96)
    def forward(self, batch): return batch["spectrogram"][:, :1, :64, :96]


class Noise(nn.Module):
    "An augmentation that adds one number per sample."
    def __init__(self, key):
        super().__init__()
        self.key = key
    def forward(self, batch, draws):
        return {**batch, self.key: batch[self.key] + draws.uniform()[:, None, None, None]}


def batch(n=4):
    g = torch.Generator().manual_seed(0)
    return {"spectrogram": torch.randn(n, 4, 100, 120, generator=g), "key": sample_keys(0, 0, range(n))}


def test_system_draws_belong_to_samples():
    "Augmentation of a sample is the same alone and in company, and two augmentations draw different numbers."
    system = System(Bare(), ImageModel("test_efficientnet", Bare.shape), [Noise("spectrogram")],
                    [Noise("image")])
    b = batch()
    seen = system(b)[1]["image"] - Bare()(b)
    alone = system({k: v[2:3] for k, v in b.items()})[1]["image"] - Bare()({k: v[2:3] for k, v in b.items()})
    assert torch.allclose(seen[2:3], alone)
    first = system(b)[1]["spectrogram"] - b["spectrogram"]
    assert not torch.allclose(seen[:, 0, 0, 0], 2 * first[:, 0, 0, 0], atol=1e-3)
    assert torch.equal(system.eval()(b)[1]["image"], Bare()(b))


def test_system_autocast_copy_and_state():
    """float32 logits under bf16; a copy (EMA) and a reloaded state predict the same; predict leaves the mode
    alone."""
    torch.manual_seed(0)
    system = System(Bare(), ImageModel("test_efficientnet", Bare.shape, pool="gem", attention=True,
                                       dropout=.5))
    b = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, out = system.eval()(b)
    assert logits.dtype == out["image"].dtype == torch.float32
    system.train()
    p = system.predict(b)
    assert system.training and p.dtype == torch.float32 and torch.allclose(p.sum(1), torch.ones(4))
    other = System(Bare(), ImageModel("test_efficientnet", Bare.shape, pool="gem", attention=True,
                                      dropout=.5))
    other.load_state_dict(system.state_dict())
    for twin in (copy.deepcopy(system), other): assert torch.equal(twin.predict(b), p)
    assert trace(system, b)["output shape"].iloc[-1] == (4, 6) and system.training


def test_sequence_models_count_and_companions():
    "The published sizes; predictions of a sample do not depend on its batch mates."
    torch.manual_seed(0)
    gru, wave = ResNet1DGRU(), WaveNet()
    assert (count(gru), count(wave)) == (170_214, 315_574)
    assert gru.convs.eval()(torch.zeros(1, 8, 2000)).shape == (1, 48) and gru.head.in_features == 304
    small = [ResNet1DGRU(samples=500, blocks=6), WaveNet(samples=500, filters=(4, 8)),
             resnet1d_gru(4, 500, 2, "models", [2, 1], blocks=6)]
    x = torch.randn(3, 8, 500)
    for net in small:
        assert net.eval().shape == (8, 500)
        with torch.no_grad(): assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)


def test_whole_window_and_other_derivations():
    # 9,745 -> 19 -> 3 steps
    assert ResNet1DGRU(in_channels=18, samples=10_000, kernels=(3, 7)).head.in_features == 24 * 3 + 256
    assert count(ResNet1DGRU(bands=3)) > count(ResNet1DGRU())
    with pytest.raises(RecipeError, match="too short"): ResNet1DGRU(samples=100)
    with pytest.raises(RecipeError, match="is even"): ResNet1DGRU(kernel=4)
    with pytest.raises(RecipeError, match="unknown band mode"): resnet1d_gru(mode="sum")


def test_band_ensemble_gradients_and_zero_weight():
    "A band of weight 0 changes nothing and gets no gradient; the loss of the mixture stays finite."
    torch.manual_seed(0)
    ens = BandEnsemble([ResNet1DGRU(2, 300, blocks=5) for _ in range(2)], [1, 0])
    x = torch.randn(4, 4, 300)
    with torch.no_grad():
        assert torch.allclose(ens.eval()(x).softmax(1), ens.nets[0](x[:, :2]).softmax(1), atol=1e-6)
    loss = nn.functional.cross_entropy(ens.train()(x), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in ens.parameters())
    assert ens.nets[0].head.weight.grad.abs().sum() > 0 == ens.nets[1].head.weight.grad.abs().sum()
