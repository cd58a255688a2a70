"""What is alpha dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dropoutlib
from dropoutlib import audit
from dropoutlib.enumeration import distribution

LIMIT = -1.7580993408473766
NUMBERS = {0.05: (0.954844, 0.083936), 0.1: (0.921285, 0.161971), 0.5: (0.886405, 0.779194)}
LAYERS = [dropoutlib.AlphaDropout, dropoutlib.FeatureAlphaDropout]


def affine(p: float) -> tuple[float, float]:
    q = 1 - p
    a = (q + LIMIT**2 * q * p) ** -0.5
    return a, -a * p * LIMIT


def of_torch(layer: nn.Module) -> nn.Module:
    return getattr(nn, type(layer).__name__)(layer.p)


@pytest.mark.parametrize("p", NUMBERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_values_are_those_of_the_paper_and_of_torch(kind: type, p: float) -> None:
    a, b = affine(p)
    assert (round(a, 6), round(b, 6)) == NUMBERS[p]
    x = torch.linspace(-1, 2, 2000, dtype=torch.float64).reshape(200, 10)
    keep = torch.arange(2000).reshape(200, 10) % 3 > 0
    y = kind(p)(x, noise=keep)
    torch.testing.assert_close(y, torch.where(keep, a * x + b, a * LIMIT + b), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    native = of_torch(kind(p)).train()(x)
    kept = ~torch.isclose(native, torch.full_like(native, a * LIMIT + b), rtol=0, atol=1e-9)
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(kind(p)(x, noise=kept), native, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_law_over_all_masks(p: float) -> None:
    a, _ = affine(p)
    x = torch.tensor([[-1.5, 0.0], [0.7, 2.0]], dtype=torch.float64)
    layer = dropoutlib.AlphaDropout(p)
    law = distribution(lambda keep: layer(x, noise=keep), x.shape, p)
    torch.testing.assert_close(law.mean(), a * (1 - p) * x, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.variance(), a**2 * p * (1 - p) * (x - LIMIT) ** 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    assert (layer.eval()(x) - law.mean()).abs().max() > 0.05 * p


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_mean_zero_and_variance_one_are_kept(p: float) -> None:
    """Over inputs of population mean 0 and variance 1; another mean or variance is not kept."""
    layer = dropoutlib.AlphaDropout(p)
    for scale, shift in ((1.0, 0.0), (1.0, 0.5), (2.0, 0.0)):
        x = scale * torch.tensor([-0.5, -0.5, -0.5, 1.5], dtype=torch.float64) / math.sqrt(0.75) + shift
        mean = layer.mean(x).mean()
        variance = layer.variance(x).mean() + (layer.mean(x) - mean).square().mean()
        kept = abs(float(mean) - shift) < 1e-12 and abs(float(variance) - scale**2) < 1e-12
        assert kept == (scale == 1 and shift == 0)


def test_selu_keeps_mean_zero_and_variance_one() -> None:
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    y = F.selu(z)
    assert abs(float((weight * y).sum())) < 1e-8
    assert abs(float((weight * y * y).sum()) - 1) < 1e-8


def test_positions_of_a_map_share_their_draw() -> None:
    x = torch.zeros(2, 2, 2, dtype=torch.float64) + torch.tensor([1.0, -1.0])
    layer, p = dropoutlib.FeatureAlphaDropout(0.3), 0.3
    law = distribution(lambda keep: layer(x, noise=keep), (2, 2, 1), p)
    a, _ = affine(p)
    covariance = law.covariance()
    assert abs(float(covariance[0, 1]) - a**2 * p * (1 - p) * (1 - LIMIT) * (-1 - LIMIT)) < 1e-12
    assert covariance[:2, 2:].abs().max() < 1e-12
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    drawn = layer(torch.ones(50, 6, 3, 2))
    assert (drawn == drawn[..., :1, :1]).all() and len(drawn.unique()) == 2


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_dropped_is_finite_and_has_no_gradient(kind: type, bad: float) -> None:
    x = torch.tensor([[1.0, bad]], requires_grad=True)
    y = kind(0.5)(x, noise=torch.tensor([[1, 0]]))
    a, b = affine(0.5)
    torch.testing.assert_close(y, torch.tensor([[a + b, a * LIMIT + b]]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[a, 0.0]]))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("way", ["eager", "compiled", "jvp", "checkpoint"])
def test_the_gradient_is_that_of_the_mask(kind: type, way: str) -> None:
    """In the place of the contract's lines for layers that multiply."""
    layer, p = kind(0.4), 0.4
    a, _ = affine(p)
    x = torch.rand(30, 20, dtype=torch.float64, requires_grad=True)
    if way == "jvp":
        y, slope = torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))
    else:
        calls = {"eager": layer, "compiled": torch.compile(layer, backend="aot_eager", fullgraph=True),
                 "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)}
        y = calls[way](x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    kept = slope != 0
    assert 0.4 < float(kept.double().mean()) < 0.8
    torch.testing.assert_close(slope, a * kept.double())
    torch.testing.assert_close(y.detach(), kind(p)(x.detach(), noise=kept), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_all_is_zero_at_p_one_as_in_torch(kind: type) -> None:
    x = torch.ones(3, 4)
    assert (kind(1.0)(x) == 0).all() and (of_torch(kind(1.0))(x) == 0).all()
    assert kind(1 - 1e-9)(x, noise=torch.zeros(3, 4)).abs().max() < 1e-4  # the limit


def test_maps_need_an_axis_of_maps() -> None:
    for call in (dropoutlib.FeatureAlphaDropout(), dropoutlib.FeatureAlphaDropout().eval(),
                 dropoutlib.FeatureAlphaDropout().mean):
        with pytest.raises(RuntimeError, match=r"input.*\(N, C, ...\).*\(3,\).*use AlphaDropout"):
            call(torch.ones(3))


@pytest.mark.parametrize("drop", [nn.AlphaDropout(), dropoutlib.AlphaDropout()])
def test_audit_names_the_layer_that_drops_maps(drop: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SELU(), drop, nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    (finding,) = audit(model, torch.ones(2, 1, 6, 6))
    assert "FeatureAlphaDropout drops whole maps" in finding.message
    model[2] = dropoutlib.FeatureAlphaDropout()
    assert audit(model, torch.ones(2, 1, 6, 6)) == ()
