"""The winners' views: what stays when sides swap, chains permute or time runs backwards, and each part
against numpy and scipy."""
import numpy as np
import pytest
import scipy.signal as ss
import torch

from hms_hbac.augment.mixing import augment
from hms_hbac.core import CHANNELS, RecipeError
from hms_hbac.draws import Draws, sample_keys
from hms_hbac.signal.filters import montage
from hms_hbac.signal.wavelets import magnitudes, superlets
from hms_hbac.views import VIEWS, WINNER_VIEWS, view
from hms_hbac.views.winners import mel_decibels, zoomed_time

LIGHT = ("zoomed_mel", "sixteen_fast", "sixteen_40hz", "left_right", "sixteen_slow", "raw_picture",
         "stft_volume")
SHAPES = {"zoomed_mel": (3, 1024, 602), "sixteen": (16, 10_000), "sixteen_fast": (16, 10_000),
          "sixteen_40hz": (16, 1920),
          "left_right": (40, 512), "sixteen_slow": (16, 2000), "four_pictures": (4, 518, 518),
          "scalogram": (1, 256, 256),
          "paul_scalogram": (1, 256, 256), "superlet": (1, 256, 256), "raw_picture": (3, 160, 1000),
          "stft_volume": (16, 96, 201), "v2b3": (3, 400, 902)}


@pytest.fixture(scope="module")
def batch():
    g = np.random.default_rng(0)
    eeg = ss.lfilter([4], [1, -.95], g.standard_normal((2, 20, 10_000)))
    eeg[:, CHANNELS.index("C3"), 4000:4100] = np.nan
    spectrogram = np.exp(g.standard_normal((2, 4, 100, 300)))
    return {"eeg": torch.tensor(eeg, dtype=torch.float32),
            "spectrogram": torch.tensor(spectrogram, dtype=torch.float32),
            "key": sample_keys(0, 0, range(2))}


def changed(batch, text): return augment(text)(batch, Draws(batch["key"]))


def test_sizes_are_the_published_ones():
    assert set(WINNER_VIEWS) <= set(VIEWS) and set(WINNER_VIEWS) == {*SHAPES, "tiled_mels"}
    for name, shape in SHAPES.items(): assert view(name).shape == shape, name
    mels, host = view("tiled_mels").parts
    assert (mels[:2], host) == ((16, 96), (4, 100, 300)) and 192 <= mels[2] <= 256


@pytest.mark.parametrize("name", LIGHT)
def test_alone_as_in_company_and_finite(name, batch):
    v = view(name).eval()
    x = v(batch)
    torch.testing.assert_close(v({k: b[1:] for k, b in batch.items()}), x[1:], rtol=1e-4, atol=1e-4)
    nothing = v({k: torch.full_like(b, torch.nan) if b.is_floating_point() else b for k, b in batch.items()})
    assert x.isfinite().all() and nothing.isfinite().all() and v.needs == {"eeg"}


def test_sides_swap_as_signals_do(batch):
    "Interleaved signals: swapping sides exchanges neighbours; two halves: it exchanges the halves."
    mirrored = changed(batch, "FlipLeftRight(p=1)")
    neighbours = [i ^ 1 for i in range(16)]
    for name in ("stft_volume", "sixteen_fast"):
        assert torch.equal(view(name).eval()(mirrored), view(name).eval()(batch)[:, neighbours])
    raw = view("raw_picture").eval()
    assert torch.equal(raw(mirrored).unflatten(2, (16, 10)),
                       raw(batch).unflatten(2, (16, 10))[:, :, neighbours])
    halves = [*range(10, 20), *range(10), *range(30, 40), *range(20, 30)]
    assert torch.equal(view("left_right").eval()(mirrored), view("left_right").eval()(batch)[:, halves])
    labels = montage("interleaved").labels
    assert labels[:4] == ["Fp1-F7", "Fp2-F8", "F7-T3", "F8-T4"] and len(set(labels)) == 16


def test_chains_permute_as_signals_do(batch):
    v = view("sixteen_40hz").eval()
    # LL RL LP RP -> LP RP LL RL
    order = [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(v(changed(batch, "SwapChains(p=1)")), v(batch)[:, order])


def test_time_reversal(batch):
    "Played backwards, what lies symmetric around the middle is the same picture backwards."
    whole = {"eeg": batch["eeg"].nan_to_num()}
    back = {"eeg": whole["eeg"].flip(-1)}
    forward, backward = (magnitudes(b["eeg"][0, :2], (2., 8., 20.)) for b in (whole, back))
    torch.testing.assert_close(backward.flip(-1), forward, rtol=1e-3, atol=1e-3)
    odd = [mel_decibels(b["eeg"][0, :1, :9985] if b is whole else b["eeg"][0, :1, 15:], hop=32)
           for b in (whole, back)]
    torch.testing.assert_close(odd[1].flip(-1), odd[0], rtol=1e-3, atol=2e-2)


def test_the_zoom_leaves_the_outer_columns(batch):
    zoomed = view("zoomed_mel").eval()(batch)
    plain = mel_decibels(view("sixteen").eval()(batch)).flatten(1, 2) / 20
    assert torch.equal(zoomed[:, 0, :, :125], plain[..., :125]) and torch.equal(zoomed[:, 0, :, 476:],
                                                                                plain[..., 187:])
    tiles = view("zoomed_mel").tiles()
    assert {t.columns for t in tiles} == {(0, 125), (125, 476), (476, 602)}
    assert [t.seconds for t in tiles if t.columns[0] == 125][0] == pytest.approx((-7.02, 7.02), abs=.01)


def test_neighbours_share_an_electrode(batch):
    "Third channel of the zoomed mel: minus the mean of the two that share an electrode, the third place's."
    beside = [(2, 8), (3, 9), (4, 0), (5, 1), (6, 2), (7, 3), (14, 4), (15, 5),
              (10, 0), (11, 1), (12, 8), (13, 9), (14, 10), (15, 11), (6, 12), (7, 13)]
    x = view("zoomed_mel").eval()(batch).unflatten(2, (16, 64))
    for i, pair in enumerate(beside):
        torch.testing.assert_close(x[:, 2, i], x[:, 0, i] - x[:, 0, list(pair)].mean(1), rtol=0, atol=1e-4)
        others = [j for j in range(16) if j != i]
        torch.testing.assert_close(x[:, 1, i], x[:, 0, i] - x[:, 0, others].mean(1), rtol=0, atol=1e-4)


def test_powers_are_scipys(batch):
    v = view("Powers(Sequence(10, high=40, lowpass=None, montage='chains', unit=104, random=False))").eval()
    x = v.source(batch).double().numpy() * 104
    f, _, want = ss.spectrogram(x, 200, nperseg=70, nfft=256)
    np.testing.assert_allclose(v(batch).numpy(), np.log1p(want[:, :, f <= 40]) / 2, atol=2e-3)


def test_mels_are_scipys_with_triangles():
    x = np.random.default_rng(0).standard_normal(2000)
    window = np.zeros(512)
    window[192:320] = ss.get_window("hann", 128)
    padded = np.pad(x, 256, mode="reflect")
    frames = np.stack([padded[32 * i:32 * i + 512] for i in range(63)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    f, edges = np.arange(257) * 200 / 512, np.linspace(.53, 30, 66)
    triangles = [np.interp(f, edges[k:k + 3], [0, 2 / (edges[k + 2] - edges[k]), 0]) for k in range(64)]
    want = 10 * np.log10(np.maximum(power @ np.array(triangles).T, 1e-10)).T
    np.testing.assert_allclose(mel_decibels(torch.tensor(x)).numpy(), want, atol=1e-6)


def test_superlets_are_the_geometric_mean():
    x = torch.randn(1, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = magnitudes(x, (5., 9.), shape=3) * magnitudes(x, (5., 9.), shape=5)
    torch.testing.assert_close(superlets(x, (5., 9.), cycles=(3, 5)), product.sqrt())


def test_a_time_zoom_belongs_to_the_sample(batch):
    v = view("Spectra(Sequence(50, lowpass=None, montage='eight'), zoom=.25)")
    drawn = v.train()(batch)
    assert torch.equal(drawn[1:], v({k: b[1:] for k, b in batch.items()}))
    assert not torch.equal(drawn, v.eval()(batch))
    ramp = torch.arange(100.).expand(1, 1, 100)
    for factor in (.75, 1., 1.25):
        got = zoomed_time(ramp, 80, torch.tensor([factor]))[0, 0]
        torch.testing.assert_close(got, 49.5 + (torch.arange(80) - 39.5) * factor)


@pytest.mark.parametrize("text, fault", [
    ("ZoomedMel(Panels())", "no sequence"), ("ZoomedMel(eight(), samples=5)", "a zoom of 5"),
                                         ("Scalogram(sixteen(), 'haar')", "unknown wavelet"),
    ("Scalogram(sixteen(), width=100000)", "columns of 10000"), ("Folded(sixteen(), 7)", "7 rows"),
                                         ("Tiled(Spectra(sixteen()), 3, 3)", "3 x 3"),
    ("Channels(Repeat(Panels()))", "3 channels"), ("Stacked(Panels(), Resize(Panels(), 8, 8))", "one size"),
                                         ("Spectra(wavenet())", "no sequence"),
    ("Powers(Panels())", "no sequence"), ("Powers(sixteen(), 300)", "nperseg 300"),
    ("Sequence(unit=0)", "unit of 0"),
    ("Spectra(sixteen(), zoom=2)", "zoom of 2"), ("LeftRight(100000)", "samples every")])
def test_impossible_views_are_refused(text, fault):
    with pytest.raises(RecipeError, match=fault): view(text)
