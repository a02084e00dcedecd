"""Every augmentation, by its name: off in evaluation and at p=0, its input untouched, read back from its
repr, without a look at the values."""
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hms_hbac.augment.image import Autocontrast, HeightMask, HFlip, TimeMask
from hms_hbac.augment.mixing import AUGMENTS, ClassCutmix, Mixup, Mosaic, augment
from hms_hbac.core import CHANNELS, LEFT_RIGHT, PANELS, RecipeError
from hms_hbac.draws import Draws, sample_keys

MIXES = {"Mixup", "Cutmix", "ClassCutmix", "Mosaic"}
VIEW = SimpleNamespace(shape=(1, 40, 96), blocks=[(0, 32), (32, 96)])
SEQUENCE = ["DropChannels(p=1, stage='image')", "DropChannels(p=.5, each=True, stage='image')",
            "ReverseTime(p=.5, each=True, stage='image')",
            "Polarity(p=.5, each=True, stage='image')", "RescaleTime(p=1, stage='image')",
            "RandomBand(p=1, stage='image')",
            "RandomBand(p=1, low=.5, high=20, width=(2, 19), each=False, stage='image')", "HFlip(p=1)",
            "TimeMask(p=1)", "BrightnessContrast(p=1)", "Mixup(p=1)",
            "Cutmix(p=1)", "ClassCutmix(p=1)", "Mosaic(p=1)"]


def make_batch(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    eeg = torch.randn(n, 20, 2000, generator=g)
    spectrogram = torch.rand(n, 4, 100, 60, generator=g)
    eeg[0, 3, 100:200] = float("nan")
    eeg[1, 4] = float("nan")
    spectrogram[2, :, :, 50:] = float("nan")
    return {"eeg": eeg, "spectrogram": spectrogram, "image": torch.randn(n, 1, 40, 96, generator=g),
            "target": torch.eye(6)[torch.arange(n) % 2],
            "n_votes": torch.arange(1., n + 1), "key": sample_keys(seed, 0, range(n)),
            "event_id": torch.arange(n)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.nan_to_num(a[k], 77.), torch.nan_to_num(b[k], 77.))
                                        for k in a)


OPTIONS = {"DropSignals": {"of": 8}}               # the test's picture has 40 rows


def always(cls):
    return cls(p=1, **OPTIONS.get(cls.__name__, {})).bind(VIEW)


@pytest.mark.parametrize("cls", AUGMENTS.values(), ids=AUGMENTS)
class TestEvery:
    def test_off(self, cls):
        batch = make_batch()
        for off in (always(cls).eval(), cls(p=0).bind(VIEW)):
            out = off(batch, Draws(batch["key"]))
            assert all(out[k] is batch[k] for k in batch) and out is not batch
        # evaluation needs no key
        assert same(always(cls).eval()({k: v for k, v in batch.items() if k != "key"}),
                    {k: v for k, v in batch.items() if k != "key"})

    def test_changes_in_training_and_leaves_its_input(self, cls):
        batch, before = make_batch(), make_batch()
        options = {"Autocontrast": {"panels": 4}, "PadRandomCrop": {"pad": (4, 4)}, **OPTIONS}
        a = cls(p=1, **options.get(cls.__name__, {})).bind(VIEW)
        out = a(batch, Draws(batch["key"]))
        assert not same(out, before)
        assert same(batch, before)
        assert all(out[k].shape == batch[k].shape and out[k].dtype == batch[k].dtype for k in batch)
        changed = {k for k in batch if not torch.equal(out[k].nan_to_num(), batch[k].nan_to_num())}
        allowed = {"image", "target", "n_votes"} if cls.__name__ in MIXES else {"image"}
        if a.stage == "signal": allowed = {"eeg", "spectrogram"}
        assert changed <= allowed

    def test_alone_as_in_company(self, cls):
        batch = make_batch()
        if cls.__name__ in MIXES: pytest.skip("mixes need the others")
        a = cls(p=.5, **OPTIONS.get(cls.__name__, {})).bind(VIEW)
        whole = a(batch, Draws(batch["key"]))
        part = a({k: v[4:] for k, v in batch.items()}, Draws(batch["key"][4:]))
        for k in batch: torch.testing.assert_close(part[k], whole[k][4:], equal_nan=True, rtol=0, atol=1e-4)

    def test_repr_reads_back(self, cls):
        assert repr(augment(repr(cls(p=.25)))) == repr(cls(p=.25))

    def test_no_look_at_values(self, cls, monkeypatch):
        """On the meta device there are no values: a transform that copies one to the host, or whose shapes
        depend on one, fails."""
        # autocast knows no meta device
        monkeypatch.setattr(torch, "autocast", lambda *args, **kw: nullcontext())
        meta = {k: v.to("meta") for k, v in make_batch().items()}
        out = always(cls).to("meta")(meta, Draws(meta["key"]))
        assert all(out[k].shape == meta[k].shape for k in meta)

    def test_half_precision(self, cls):
        batch = make_batch()
        batch |= {k: batch[k].bfloat16() for k in ("eeg", "spectrogram", "image")}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = always(cls)(batch, Draws(batch["key"]))
        assert all(out[k].dtype == batch[k].dtype for k in batch)


@pytest.mark.parametrize("expr", SEQUENCE)
def test_sequences(expr):
    batch = make_batch() | {"image": torch.randn(6, 8, 2000, generator=torch.Generator().manual_seed(1))}
    a = augment(expr).bind(SimpleNamespace(shape=(8, 2000), blocks=[(0, 2000)]))
    assert a.stage == "image"
    out = a(batch, Draws(batch["key"]))
    assert out["image"].shape == (6, 8,
                                  2000) and out["image"].isfinite().all() and not torch.equal(out["image"],
                                                                                              batch["image"])
    assert repr(augment(repr(a))) == repr(a)


@pytest.mark.parametrize("name",
                         ["VFlip", "FrequencyMask", "HeightMask", "ShiftScaleRotate", "PadRandomCrop",
                          "Autocontrast"])
def test_a_sequence_has_no_height(name):
    with pytest.raises(RecipeError, match="needs a picture"):
        augment(f"{name}()").bind(SimpleNamespace(shape=(8, 2000), blocks=[(0, 2000)]))


@pytest.mark.parametrize("text, fault",
                         [("HFlip(p=1.5)", "no probability"), ("TimeShift(border='zero')", "unknown border"),
                          ("Polarity(stage='late')", "unknown stage"),
                                         ("Blur()", "unknown name"), ("HFlip(often=1)", "unexpected keyword"),
                          ("2", "no augmentation")])
def test_faults_are_named(text, fault):
    with pytest.raises(RecipeError, match=fault): augment(text)


@pytest.mark.parametrize("expr",
                         ["FlipLeftRight(p=1)", "FlipFrontBack(p=1)", "ReverseTime(p=1)", "Polarity(p=1)",
                          "HFlip(p=1)", "HFlip(p=1, within=True)", "VFlip(p=1)"])
def test_twice_is_nothing(expr):
    batch, a = make_batch(), augment(expr).bind(VIEW)
    assert same(a(a(batch, Draws(batch["key"])), Draws(batch["key"])), batch)


def test_mirror_by_names():
    batch = make_batch()
    out = augment("FlipLeftRight(p=1)")(batch, Draws(batch["key"]))
    for names, entry in ((CHANNELS, "eeg"), (PANELS, "spectrogram")):
        for i, name in enumerate(names):
            partner = names.index(LEFT_RIGHT.get(name, name))
            torch.testing.assert_close(out[entry][:, i], batch[entry][:, partner], equal_nan=True)


def test_half_of_the_samples():
    keys = sample_keys(0, 0, range(2000))
    batch = {"image": torch.arange(2.).expand(2000, 1, 1, 2), "key": keys}
    for p in (.1, .5, .9):
        assert abs((HFlip(p=p)(batch, Draws(keys))["image"][:, 0, 0, 0] == 1).float().mean() - p) < .03


def test_masked_share():
    batch = {"image": torch.ones(2000, 1, 40, 96), "key": sample_keys(0, 0, range(2000))}
    out = TimeMask(p=.5, masks=(1, 1), length=(24, 24))(batch, Draws(batch["key"]))["image"]
    assert set(((out == 0).float().mean((1, 2, 3)) * 4).tolist()) == {0, 1}
    out = HeightMask(p=1, share=.2).bind(VIEW)(batch, Draws(batch["key"]))["image"]
    assert abs((out == 0).float().mean() - .1) < .005
    left, right = out[:, 0, :, 0] == 0, out[:, 0, :, 40] == 0
    # each time axis has a band of its own
    assert not torch.equal(left, right)
    assert torch.equal(out[..., 0], out[..., 31]) and torch.equal(out[..., 32], out[..., 95])


def test_autocontrast_is_torchvisions_on_unit_pictures():
    tv = pytest.importorskip("torchvision.transforms.v2.functional")
    x = torch.rand(3, 1, 10, 12, generator=torch.Generator().manual_seed(0)) * .5 + .2
    x[0, 0], x[1, 0, 2] = .4, 5                                                # one flat, one beyond [0, 1]
    got = Autocontrast(p=1)({"image": x}, Draws(sample_keys(0, 0, range(3))))["image"]
    torch.testing.assert_close(got, tv.autocontrast(x))


@pytest.mark.parametrize("cls", [Mixup, Mosaic])
def test_targets_mix_as_pictures_do(cls):
    n, g = 300, torch.Generator().manual_seed(0)
    target = torch.rand(n, 6, generator=g)
    target = target / target.sum(1, keepdim=True)
    batch = {"image": target[:, None, :, None].expand(-1, 1, -1, 48), "target": target,
             "n_votes": target[:, 0], "key": sample_keys(0, 0, range(n))}
    out = cls(p=1)(batch, Draws(batch["key"]))
    torch.testing.assert_close(out["image"][:, 0].mean(-1), out["target"])
    torch.testing.assert_close(out["n_votes"], out["target"][:, 0])
    torch.testing.assert_close(out["target"].sum(1), torch.ones(n))
    assert (out["target"] - target).abs().max() > .05


def test_mixup_of_unequal_widths():
    batch = make_batch() | {"width": torch.tensor([96, 96, 60, 60, 40, 96])}
    inside = torch.arange(96) < batch["width"][:, None]
    batch["image"] = batch["image"] * inside[:, None, None]
    for seed in range(10):
        keys = sample_keys(seed, 0, range(6))
        out, j = Mixup(p=1)(batch, Draws(keys)), Draws(keys).partner()
        assert (out["image"] * ~inside[:, None, None] == 0).all()            # padding stays padding
        for i in range(6):
            if batch["width"][j[i]] < batch["width"][i]:
                assert torch.equal(out["target"][i], batch["target"][i])


def test_cutmix_cuts_time_in_every_axis_of_the_picture():
    n = 8
    view = SimpleNamespace(shape=(1, 4, 600), blocks=[(0, 300), (300, 600)])
    batch = {"image": torch.arange(float(n))[:, None, None, None].expand(n, 1, 4, 600),
             "target": torch.eye(6)[torch.arange(n) % 2], "n_votes": torch.ones(n)}
    for seed in range(20):
        out = ClassCutmix(p=1).bind(view)(batch, Draws(sample_keys(seed, 0, range(n))))["image"]
        assert torch.equal(out, out[:, :, :1].expand_as(out))                # the same for all frequencies
        # the second strip stands 300 later
        assert torch.equal(out[..., :300], out[..., 300:])
        assert torch.equal(out % 2, batch["image"] % 2)                      # within the class
        for sample in out[:, 0, 0, :300]:
            columns = torch.nonzero(sample != sample.mode().values)[:, 0]
            assert 25 <= len(columns) <= 75 and columns[-1] - columns[0] == len(columns) - 1
            assert columns[0] <= 50 or 175 <= columns[0] <= 225


def test_a_strip_of_any_other_mixes_the_target_too():
    "Every time axis gets the same part of it, and the target's share is the columns'."
    n = 64
    view = SimpleNamespace(shape=(2, 3, 500), blocks=[(0, 400), (400, 500)])
    batch = {"image": torch.arange(float(n))[:, None, None, None].expand(n, 2, 3, 500),
             "target": torch.eye(n), "n_votes": torch.arange(float(n)), "key": sample_keys(1, 0, range(n))}
    out = augment("Cutmix(p=1, alpha=1)").bind(view)(batch, Draws(batch["key"]))
    for i in range(n):
        lent = out["image"][i] != i
        assert torch.equal(lent, lent[:1, :1].expand_as(lent))                   # whole columns
        assert (lent[0, 0, 1:] != lent[0, 0, :-1]).sum() <= 4                    # one strip an axis
        wide = lent[0, 0, :400].float().mean()
        narrow = lent[0, 0, 400:].float().mean()
        assert abs(wide - narrow) <= .02
        share = lent[0, 0].float().mean()
        torch.testing.assert_close(out["target"][i, i], 1 - share * (out["target"][i, i] < 1))
        torch.testing.assert_close(out["n_votes"][i], (out["image"][i, 0, 0]).mean(), rtol=1e-4, atol=1e-3)


def test_shift_keeps_both_clocks_together():
    batch = {"eeg": torch.arange(10_000.).expand(50, 20, -1),
             "spectrogram": torch.arange(300.).expand(50, 4, 100, -1)}
    out = augment("TimeShift(p=1, seconds=20)")(batch, Draws(sample_keys(0, 0, range(50))))
    seconds = (5000 - out["eeg"][:, 0, 5000]) / 200
    steps = 150 - out["spectrogram"][:, 0, 0, 150]
    assert seconds.abs().max() > 15 and (seconds / 2 - steps).abs().max() <= .51
    assert torch.equal(out["eeg"][:, 0].isnan().sum(1), (seconds * 200).round().abs().long())


def test_missing_stays_missing_in_the_filter():
    batch = make_batch()
    out = augment("RandomBand(p=1)")(batch, Draws(batch["key"]))["eeg"]
    assert torch.equal(out.isnan(), batch["eeg"].isnan())


def test_epochs_differ():
    batch = make_batch()
    a = augment("TimeMask(p=1)")
    one, two = (a(batch, Draws(sample_keys(0, e, range(6))))["image"] for e in (0, 1))
    assert not torch.equal(one, two) and np.isfinite(one.numpy()).all()


@pytest.mark.parametrize("expr, exprs", [
    ("attention()",
     ["PadRandomCrop(width=912)", "BrightnessContrast(brightness=.6, contrast=0)", "HFlip()", "VFlip()",
      "TimeMask()", "ShiftScaleRotate()", "Mixup()"]),
    ("multiwindow()", ["HFlip(within=True)", "Autocontrast(panels=4)", "Mixup()", "HeightMask(p=.5)"]),
    ("panels_percentiles()", ["Mosaic()", "ClassCutmix(p=1)", "FrequencyMask(p=1)"]),
    ("eight()",
     ["DropChannels(p=.05, each=True, stage='image')", "RescaleTime(p=1, stage='image')",
      "RandomBand(p=1, stage='image')"])])
def test_on_real_views(expr, exprs):
    from hms_hbac.views.systems import view
    g, v = torch.Generator().manual_seed(0), view(expr)
    batch = {"eeg": 30 * torch.randn(2, 20, 10_000, generator=g),
             "spectrogram": torch.rand(2, 4, 100, 300, generator=g),
             "target": torch.eye(6)[:2], "n_votes": torch.ones(2), "key": sample_keys(0, 0, range(2))}
    draws = Draws(batch["key"])
    for a in ("FlipLeftRight()", "DropChannels()", "TimeShift()"): batch = augment(a)(batch, draws)
    v.train()
    batch = batch | {"image": v(batch)}
    for a in exprs: batch = augment(a).bind(v)(batch, draws)
    assert tuple(batch["image"].shape[1:]) == tuple(v.shape) and batch["image"].isfinite().all()


def test_flips_move_eeg_and_spectrogram_together():
    "The host's spectrogram of a flipped EEG is the flipped spectrogram."
    from hms_hbac.signal.host import host_spectrogram
    eeg = 30 * torch.randn(1, 20, 10_000, generator=torch.Generator().manual_seed(0))
    batch = {"eeg": eeg, "spectrogram": host_spectrogram(eeg), "key": sample_keys(0, 0, [0])}
    for expr in ("FlipLeftRight(p=1)", "FlipFrontBack(p=1)"):
        out = augment(expr)(batch, Draws(batch["key"]))
        torch.testing.assert_close(host_spectrogram(out["eeg"]), out["spectrogram"], rtol=1e-3, atol=1e-4)


def test_autocontrast_takes_every_panel_of_a_view_by_itself():
    """Panels of the spectrogram and of each of the four EEG windows are stretched as torchvision stretches
    each of them alone."""
    tv = pytest.importorskip("torchvision.transforms.v2.functional")
    from hms_hbac.views.systems import view
    v = view("multiwindow").train()
    x = 3 * torch.randn(4, *v.shape, generator=torch.Generator().manual_seed(0))
    got = augment("Autocontrast(p=1, panels=4)").bind(v)({"image": x},
                                                         Draws(sample_keys(0, 0, range(4))))["image"]
    areas = [(slice(100 * i, 100 * i + 100), slice(0, 256)) for i in range(4)]
    areas += [(slice(50 * i, 50 * i + 50), slice(a, a + 256)) for i in range(8) for a in (256, 512)]
    for rows, columns in areas:
        torch.testing.assert_close(got[..., rows, columns], tv.autocontrast(x[..., rows, columns]))
    some = augment("Autocontrast(p=.25, panels=4)").bind(v)({"image": x.repeat(50, 1, 1, 1)},
                                                            Draws(sample_keys(0, 0, range(200))))["image"]
    hit = torch.stack([(some[..., r, c].amax((1, 2, 3)) == 1) for r, c in areas], 1).float()
    # each panel tosses its own coin
    assert abs(hit.mean() - .25) < .03 and 0 < hit.sum(1).min() + 1 and hit.std(0).min() > .3


@pytest.mark.parametrize("stage", ["signal", "image"])
def test_random_band_keeps_one_hertz_of_each_derivation(stage):
    """Against scipy's spectrum: nothing is left outside of one band of 1 Hz between 10 and 20 Hz, and every
    channel has its own."""
    from scipy.signal import periodogram
    x = torch.randn(40, 20 if stage == "signal" else 8, 2000, generator=torch.Generator().manual_seed(0))
    key = "eeg" if stage == "signal" else "image"
    out = augment(f"RandomBand(stage={stage!r})")({key: x}, Draws(sample_keys(0, 0, range(40))))[key]
    changed = (out != x).any(-1)
    # p .1 of every channel, not of the sample
    assert abs(changed.float().mean() - .1) < .04 and changed.any(1).float().mean() > .4
    centres = []
    for y in out[changed].double().numpy():
        f, power = periodogram(y, 200)
        centre = (f * power).sum() / power.sum()
        centres.append(centre)
        assert power[abs(f - centre) <= 1].sum() > .999 * power.sum() and 10 <= centre <= 20
    # uniform over 10-20 Hz: 2.6
    assert np.std(centres) > 1.5


def test_published_augmentations_can_be_written():
    "Flip, scale, shift, brightness and contrast of .1, as one of the seeds trained its picture with."
    batch = make_batch()
    for a in ("HFlip()", "VFlip()", "ShiftScaleRotate(p=1, shift=.1, scale=.1, rotate=0)",
              "BrightnessContrast(p=1, brightness=.1, contrast=.1)"):
        batch = augment(a)(batch, Draws(batch["key"]))
    assert batch["image"].shape == make_batch()["image"].shape and not torch.equal(batch["image"],
                                                                                   make_batch()["image"])


def test_a_bundle_is_not_torn():
    from hms_hbac.views.systems import view
    v = view("kaggle_wavenet")
    augment("Mixup()").bind(v)
    for a in ("HFlip()", "TimeMask()", "ShiftScaleRotate()", "Mosaic()"):
        with pytest.raises(RecipeError, match="tear the lines"): augment(a).bind(v)


def test_chains_swap_as_their_spectra_do():
    """The host's spectrogram of an EEG whose chains are exchanged is the spectrogram with its panels
    exchanged; sides stay."""
    from hms_hbac.signal.host import host_spectrogram
    eeg = 30 * torch.randn(1, 20, 4000, generator=torch.Generator().manual_seed(1))
    batch = {"eeg": eeg, "spectrogram": host_spectrogram(eeg), "key": sample_keys(0, 0, [0])}
    out = augment("SwapChains(p=1)")(batch, Draws(batch["key"]))
    torch.testing.assert_close(host_spectrogram(out["eeg"]), out["spectrogram"], rtol=1e-3, atol=1e-4)


def test_winners_augmentations_on_their_pictures():
    """What the winners shared, on the zoomed mel: dropped signals, a narrower band, a shifted window, sides,
    chains, holes."""
    from hms_hbac.views import view
    g, v = torch.Generator().manual_seed(0), view("zoomed_mel").train()
    batch = {"eeg": 30 * torch.randn(1, 20, 10_000, generator=g), "key": sample_keys(0, 0, [0])}
    draws = Draws(batch["key"])
    for a in ("FlipLeftRight(p=1)", "SwapChains(p=1)", "TimeShift(p=1, seconds=16)", "Cutout(p=1)",
              "RandomBand(p=1, low=.5, high=30, width=(5, 29), each=False)"):
        batch = augment(a)(batch, draws)
    out = augment("DropSignals(p=1)").bind(v)({**batch, "image": v(batch)}, draws)["image"]
    silent = (out.unflatten(2, (16, 64)) == 0).all((1, 3, 4)).sum()
    assert out.isfinite().all() and 1 <= silent <= 8
