"""What is the stochastic rate's own: one rate a call, its law, and what it does to the moments."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy import integrate, stats

from dropoutlib import StochasticRateDropout, functional
from dropoutlib.enumeration import distribution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.1, 0.6), (0.0, 0.999), (0.3, 0.3), (0.2, 0.2 + 1e-12)])
def test_variance_under_a_uniform_rate(low: float, high: float) -> None:
    mean_odds = integrate.quad(lambda t: (p := low + (high - low) * t) / (1 - p), 0, 1, epsabs=1e-13, limit=200)[0]
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(StochasticRateDropout(low, high).variance(x), mean_odds * x**2, rtol=1e-9, atol=0)


def test_the_worked_number() -> None:
    variance = StochasticRateDropout(0.0, 0.4).variance(torch.ones((), dtype=torch.float64)).item()
    assert math.isclose(variance, -1 - math.log(0.6) / 0.4, rel_tol=1e-12) and round(variance, 4) == 0.2771


@pytest.mark.parametrize(("mean", "std", "low", "high"), [(0.2, 0.05, 0.0, 0.7), (0.02, 0.224, 0.0, 0.7),
                                                           (0.5, 2.0, 0.1, 0.6), (-3.0, 0.1, 0.0, 0.5),
                                                           (0.3, 1e-6, 0.0, 0.5), (5.0, 0.1, 0.0, 0.5)])
def test_variance_under_a_clipped_normal_rate(mean: float, std: float, low: float, high: float) -> None:
    law = stats.norm(mean, std)
    inside = integrate.quad(lambda z: (p := mean + std * z) / (1 - p) * stats.norm.pdf(z),
                            max((low - mean) / std, -12), min((high - mean) / std, 12), epsabs=1e-13)[0] \
        if low < mean + 12 * std and high > mean - 12 * std else 0.0
    expected = low / (1 - low) * law.cdf(low) + high / (1 - high) * law.sf(high) + inside
    layer = StochasticRateDropout(low, high, mean=mean, std=std)
    assert math.isclose(layer.variance(torch.ones((), dtype=torch.float64)), expected, rel_tol=1e-6, abs_tol=1e-12)


@pytest.mark.parametrize(("mean", "rate"), [(0.3, 0.3), (0.05, 0.1), (0.9, 0.6)])
def test_a_normal_law_without_spread_is_one_rate_within_the_limits(mean: float, rate: float) -> None:
    layer, x = StochasticRateDropout(0.1, 0.6, mean=mean, std=0.0), torch.ones(1000, dtype=torch.float64)
    assert math.isclose(layer.draw(x).rate, rate, rel_tol=1e-7)
    torch.testing.assert_close(layer.variance(x), rate / (1 - rate) * x)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6])
def test_given_the_rate_it_is_standard_dropout(rate: float) -> None:
    x = torch.tensor([1.3, -0.4, 0.9], dtype=torch.float64)
    layer = StochasticRateDropout(0.0, 0.6)
    law = distribution(lambda keep: layer(x, noise=(rate, keep)), (3,), rate)
    torch.testing.assert_close(law.mean(), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(law.covariance(), torch.diag(rate / (1 - rate) * x**2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [StochasticRateDropout(0.1, 0.6), StochasticRateDropout(0.1, 0.6, 0.2, 0.3)], ids=str)
def test_what_is_drawn(layer: StochasticRateDropout) -> None:
    """One rate a call; the mean is kept and elements are uncorrelated, but their squares are not."""
    outputs = torch.stack([layer(torch.ones(2000, dtype=torch.float64)) for _ in range(2000)])
    rates = 1 - 1 / outputs.max(1).values
    assert rates.min() >= 0.1 - 1e-12 and rates.max() <= 0.6 + 1e-12 and rates.unique().numel() > 500
    assert ((outputs == 0) | (outputs == outputs.max(1, keepdim=True).values)).all(), "a call has more than one rate"
    dropped = (outputs == 0).double().mean(1)
    assert ((dropped - rates).abs() < 6 * (rates * (1 - rates) / 2000).sqrt()).all()
    if layer.rate_mean is None:
        assert stats.kstest(rates.numpy(), stats.uniform(0.1, 0.5).cdf).pvalue > 1e-6
    else:
        inside = rates[(rates > 0.1 + 1e-9) & (rates < 0.6 - 1e-9)]
        law = stats.norm(0.2, 0.3)
        assert abs(len(inside) / 2000 - (law.cdf(0.6) - law.cdf(0.1))) < 6 * 0.5 / math.sqrt(2000)
        assert stats.kstest(inside.numpy(), stats.truncnorm(-1 / 3, 4 / 3, 0.2, 0.3).cdf).pvalue > 1e-6
    one, other = outputs[:, 0], outputs[:, 1]
    variance = layer.variance(torch.ones((), dtype=torch.float64)).item()
    assert abs(one.mean() - 1) < 6 * math.sqrt(variance / 2000)
    assert abs(outputs.var(0).mean() - variance) < 0.02
    assert abs(((one - 1) * (other - 1)).mean()) < 6 * variance / math.sqrt(2000)
    squares = outputs**2
    halves = squares[:, :1000].mean(1), squares[:, 1000:].mean(1)
    assert torch.corrcoef(torch.stack(halves))[0, 1] > 0.5, "the rate is common to all elements"


def test_bad_input() -> None:
    for low, high in ((-0.1, 0.5), (0.0, 1.0), (0.5, 0.4), (math.nan, 0.5), (0.0, math.nan)):
        with pytest.raises(ValueError, match=re.escape(f"but got low={low}, high={high}")):
            StochasticRateDropout(low, high)
    with pytest.raises(TypeError, match="low has to be a real number"):
        StochasticRateDropout(low="0.1")
    for keywords in ({"mean": 0.2}, {"std": 0.2}):
        with pytest.raises(ValueError, match="needs mean and std"):
            StochasticRateDropout(**keywords)
    for std in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="std has to be at least 0 and finite"):
            StochasticRateDropout(mean=0.2, std=std)
    layer, x = StochasticRateDropout(0.0, 0.5), torch.ones(3)
    for rate in (0.6, -0.1, torch.tensor(0.7)):
        with pytest.raises(ValueError, match=r"rate has to be between low=0.0 and high=0.5"):
            layer(x, noise=(rate, x))
    with pytest.raises(ValueError, match="one real number"):
        layer(x, noise=(torch.tensor([0.1, 0.2]), x))
    with pytest.raises(TypeError, match=r"noise has to be a pair, the rate and the keep mask.*Tensor"):
        layer(x, noise=x)
    with pytest.raises(ValueError, match="noise was given"):
        layer.eval()(x, noise=(0.2, x))


def test_the_rate_that_is_drawn_is_taken_back() -> None:
    for low, high in ((0.3, 0.3), (0.1, 0.7)):
        layer, x = StochasticRateDropout(low, high), torch.ones(100)
        drawn = layer.draw(x)
        assert low <= float(drawn.rate) + 1e-7 and float(drawn.rate) <= high + 1e-7
        assert torch.equal(layer(x, noise=drawn), layer(x, noise=tuple(drawn)))


def test_functional() -> None:
    x, keep = torch.rand(5, 3), torch.ones(5, 3)
    assert torch.equal(functional.stochastic_rate_dropout(x, 0.0, 0.5, noise=(0.2, keep)), x * 1.25)
    assert functional.stochastic_rate_dropout(x, training=False) is x
    assert functional.stochastic_rate_dropout(x, 0.0, 0.0) is x


@pytest.mark.parametrize("law", [{}, {"mean": 0.3, "std": 0.1}], ids=["uniform", "normal"])
def test_both_laws_compile_with_dynamic_sizes(law: dict[str, float]) -> None:
    torch._dynamo.reset()
    layer = StochasticRateDropout(0.0, 0.7, **law)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (1000, 3000):
        output = compiled(torch.ones(size))
        kept = output[output != 0]
        assert output.shape == (size,)
        assert 0 < len(kept) < size
        assert kept.unique().numel() == 1  # one rate for all
    moment = torch.compile(layer.variance, backend="aot_eager", fullgraph=True, dynamic=True)
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.rand(5, dtype=dtype)
        torch.testing.assert_close(moment(x), layer.variance(x), rtol=4 * torch.finfo(dtype).eps, atol=0)
