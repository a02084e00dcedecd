"""Losses against torch's own and by hand; the competition's score on real predictions."""
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr

from hms_hbac.core import CLASSES, VOTES, DataError, RecipeError
from hms_hbac.models.losses import (
    BCE,
    CE,
    KL,
    LOSSES,
    MSE,
    competition_kl,
    entmax,
    kl_rows,
    loss,
    smooth_counts,
    smooth_shares,
    vote_weights,
)

PUBLISHED = {"stft_30_10_convnext": .2349, "stft_50_10_maxvit": .2390, "raw_50_10_convnext": .2547,
             "multitaper_50_maxvit": .2667}


# of the logits 2, 1, .5, 0, -1, -3
PACKAGE15 = [.8146494, .1620701, .0232804, 0, 0, 0]
PACKAGE105 = [.5874999, .2047154, .1182609, .0672681, .0207004, .0015554]


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 6, (200, 6), generator=g).float()
    votes[:, 0] += 1
    n = votes.sum(1)
    return 3 * torch.randn(200, 6, generator=g), votes / n[:, None], n


def test_competition_score_on_real_predictions(real):
    oof = pd.read_parquet(real / "oof" / "oof_predictions.parquet").query("sample_quality == 2")
    assert len(oof) == 6366
    shares = oof[list(VOTES)]
    probs = {m: oof[[f"{m}__{c}" for c in CLASSES]] for m in PUBLISHED}
    for m, prob in probs.items():
        p = prob.to_numpy(float)
        assert round(competition_kl(shares, prob), 4) == PUBLISHED[m]
        assert abs(competition_kl(shares, prob) - rel_entr(shares.to_numpy(),
                                                           p.clip(1e-15, 1 - 1e-15)).sum(1).mean()) < 1e-12
        column_by_column = sum(np.where(y > 0, y * (np.log(np.where(y > 0, y, 1)) - np.log(q)), 0) 
                               for y, q in zip(shares.to_numpy(float).T, p.T, strict=True))
        assert abs(competition_kl(shares, prob) - np.average(column_by_column)) < 1e-12
        logits = torch.tensor(np.log(p), dtype=torch.float32)
        assert abs(float(KL()(logits, torch.tensor(shares.to_numpy(),
                                                   dtype=torch.float32))) - PUBLISHED[m]) < 1e-4
    assert round(competition_kl(shares, np.mean([p.to_numpy(float) for p in probs.values()], 0)), 4) == .2140


def test_clip():
    y, p = np.eye(6)[:2], np.eye(6)[:2]
    p[1] = np.eye(6)[5]                                                      # sure, and wrong
    np.testing.assert_allclose(kl_rows(y, p), [0, -np.log(1e-15)], atol=1e-14)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -.1, .9])
def test_refused_rows(fault):
    p = np.full((4, 6), 1 / 6)
    p[2, 3] = fault
    with pytest.raises(DataError, match="1 prediction rows are no probabilities, first row 2"):
        competition_kl(np.eye(6)[:4], p)


def test_against_torch(rows):
    z, y, v = rows
    logp = z.log_softmax(1)
    for got, want in ((KL(), F.kl_div(logp, y, reduction="batchmean")),
                      (KL(reduction="mean"), F.kl_div(logp, y, reduction="none").mean()),
                      (CE(), F.cross_entropy(z, y)), (MSE(), F.mse_loss(z.softmax(1), y)),
                      (BCE(), F.binary_cross_entropy_with_logits(z, y))):
        torch.testing.assert_close(got(z, y, v), want)
    torch.testing.assert_close(KL()(y.log().clamp(min=-50), y), torch.tensor(0.), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss("2 * CE() + 2 * KL(reduction='mean')")(z, y, v),
                               2 * CE()(z, y) + KL()(z, y) / 3)


@pytest.mark.parametrize("kind, want", [("log", lambda v: np.log(v + 1)), ("capped", lambda v: min(v, 10)),
                                        ("log10", lambda v: (10 + 2 * np.log10(v)) * np.log10(v)
                                         if v > 10 else v)])
def test_vote_weights(rows, kind, want):
    z, y, v = rows
    each = kl_rows(y, z.double().softmax(1))
    by_hand = np.mean([want(n) * k for n, k in zip(v.numpy(), each, strict=True)])
    assert float(KL(weights=kind)(z, y, v)) == pytest.approx(by_hand, rel=1e-5)
    assert vote_weights(kind, torch.tensor([1, 28])).dtype == torch.float32   # counts may be integers


def test_weights_need_votes(rows):
    with pytest.raises(RecipeError, match="weighs rows by votes"): KL(weights="log")(*rows[:2])


@pytest.mark.parametrize("expr", ["KL()", "KL(weights='log')", "KL(weights='capped', reduction='mean')",
                                  "2 * CE() + 2 * KL(reduction='mean')",
                                  "KL(reduction='mean') + MSE()", "0.5 * (KL() + 3 * BCE())",
                                  "CE() * 2", "-1 * KL() + CE()", "KL(weights='few', auxiliary=0.3)"])
def test_repr_reads_back(expr, rows):
    once = loss(expr)
    twice = loss(repr(once))
    assert repr(twice) == repr(once)
    assert twice(*rows) == once(*rows)


@pytest.mark.parametrize("text, fault", [
    ("Focal()", "unknown name"), ("KL(weights='sqrt')", "unknown vote weights"), ("3", "is no loss"),
    ("KL(reduction='sum')", "unknown reduction"), ("KL(alpha=1)", "unexpected keyword")])
def test_faults_are_named(text, fault):
    with pytest.raises(RecipeError, match=fault): loss(text)


def test_kl_and_ce_pull_alike(rows):
    z, y, v = rows
    grads = []
    for f in (KL(), CE()):
        z = z.detach().requires_grad_()
        f(z, y).backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits(name, rows):
    z, y, v = rows
    z = z.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[name](weights="capped")(z, y, v)
    value.backward()
    assert value.dtype == torch.float32 and z.grad.isfinite().all()
    torch.testing.assert_close(value, LOSSES[name](weights="capped")(z.detach().float(), y, v))


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits(name):
    z = torch.tensor([[200., -200, 0, 0, 0, 0]], requires_grad=True)
    value = LOSSES[name]()(z, torch.eye(6)[1:2])
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


def test_probabilities(rows):
    z = rows[0]
    for f in (KL(), BCE(), loss("2 * BCE() + KL()")):
        p = f.probabilities(z.bfloat16())
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.sum(1), torch.ones(len(z)))
    torch.testing.assert_close(BCE().probabilities(z)[0], z[0].sigmoid() / z[0].sigmoid().sum())
    torch.testing.assert_close(KL().probabilities(z), z.softmax(1))


def test_smoothing(rows):
    _, y, v = rows
    torch.testing.assert_close(smooth_shares(y, .12), .88 * y + .02)
    counts = y * v[:, None]
    torch.testing.assert_close(smooth_counts(y, v, .5), (counts + .5) / (counts + .5).sum(1, keepdim=True))
    one, twenty = (smooth_counts(torch.eye(6)[:1], torch.tensor([n]), .1)[0, 0] for n in (1., 20.))
    assert one < twenty



def sorted_entmax(z):
    "Alpha 1.5 by sorting: the threshold of the k largest solves a square equation, k is the most that fit."
    x, _ = (z.double() / 2).sort(descending=True)
    k = torch.arange(1, len(x) + 1)
    mean, square = x.cumsum(0) / k, (x**2).cumsum(0) / k
    thresholds = mean - ((1 - k * (square - mean**2)) / k).clamp(min=0).sqrt()
    return (z.double() / 2 - thresholds[(thresholds <= x).sum() - 1]).clamp(min=0)**2


def test_entmax_three_ways():
    "Against sorting, and values of the package entmax 1.3 (entmax15, entmax_bisect)."
    for z in 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1)):
        torch.testing.assert_close(entmax(z, 1.5).double(), sorted_entmax(z), rtol=0, atol=1e-6)
    z = torch.tensor([2., 1., .5, 0., -1., -3.])
    torch.testing.assert_close(entmax(z, 1.5), torch.tensor(PACKAGE15), rtol=0, atol=1e-5)
    torch.testing.assert_close(entmax(z, 1.05), torch.tensor(PACKAGE105), rtol=0, atol=1e-5)
    for alpha in (.9, 2.1, float("nan")):
        with pytest.raises(RecipeError, match="entmax with alpha"): entmax(z, alpha)


def test_entmax_is_what_a_loss_says(rows):
    logits, target, n = rows
    sparse = loss("KL(sparse=1.5) + MSE()")
    torch.testing.assert_close(sparse.probabilities(logits), entmax(logits, 1.5))
    # not in training
    torch.testing.assert_close(sparse(logits, target), loss("KL() + MSE()")(logits, target))
    assert repr(loss(repr(sparse))) == repr(sparse)
    with pytest.raises(RecipeError, match="alpha 3"): loss("KL(sparse=3)")
    with pytest.raises(RecipeError): loss("BCE(sparse=1.5)")


def test_weights_fade(rows):
    logits, target, n = rows
    few, fading = loss("KL(weights='few')"), loss("2 * KL(weights='fading')")
    torch.testing.assert_close(fading(logits, target, n), 2 * few(logits, target, n))
    each, last = loss("KL()").rows(logits, target), torch.where(n < 9, .02, 1.)
    torch.testing.assert_close(fading(logits, target, n, 1.), 2 * (last * each).mean())
    for epoch in range(30):            # the third place's numbers, epoch by epoch
        want = [max(w * (1 - epoch / 30 * 1.2), .02) for w in (.3, .3, .5, .5)] + [1.]
        got = vote_weights("fading", torch.tensor([1, 2, 3, 8, 9]), epoch / 30)
        torch.testing.assert_close(got, torch.tensor(want))
