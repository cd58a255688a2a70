"""What is Gaussian dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch

import dropoutlib
from dropoutlib import functional
from dropoutlib.enumeration import distribution


def test_moments_are_those_of_inverted_dropout() -> None:
    """Mean and covariance of a linear unit, against the sum over all masks of Bernoulli dropout."""
    x, p = torch.randn(2, 4, dtype=torch.float64), 0.3
    bernoulli = dropoutlib.Dropout(p)
    law = distribution(lambda keep: bernoulli(x, noise=keep), x.shape, p)
    layer = dropoutlib.GaussianDropout(p)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("size", [100, 1 << 18])
def test_the_law_is_normal(device: str, p: float, size: int) -> None:
    """Skewness, kurtosis and how often the sign flips; mean and variance are in the contract."""
    torch.manual_seed(0)
    layer, alpha = dropoutlib.GaussianDropout(p), p / (1 - p)
    x = torch.ones(size, device=device, dtype=torch.float64)
    noise = torch.cat([layer(x) for _ in range((1 << 18) // size)])
    standard = (noise - 1) / math.sqrt(alpha)
    n = noise.numel()
    assert abs(float((standard**3).mean())) < 6.5 * math.sqrt(15 / n)  # E z^6 = 15
    assert abs(float((standard**4).mean()) - 3) < 6.5 * math.sqrt(96 / n)  # E z^8 - 9 = 96
    flips = 0.5 * math.erfc(math.sqrt(1 / alpha / 2))
    assert abs(float((noise < 0).double().mean()) - flips) < 6.5 * math.sqrt(flips * (1 - flips) / n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_noise_is_drawn_in_more(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for size in (1000, 1 << 18):
        noise = torch.cat([dropoutlib.GaussianDropout(0.5)(torch.ones(size, device=device, dtype=dtype))
                           for _ in range((1 << 18) // size)]).double()
        assert abs(float(noise.mean()) - 1) < 6.5 / math.sqrt(noise.numel())
        assert abs(float(noise.var()) - 1) < 6.5 * math.sqrt(2 / noise.numel()) + torch.finfo(dtype).eps**2
        assert noise.max() > 4 and noise.min() < -2  # the tails of a coarse uniform number would end before


def test_noise_is_the_factor_itself(device: str) -> None:
    x, noise = torch.tensor([2.0, math.inf, 3.0], device=device), torch.tensor([0.5, 1.0, -1.0], device=device)
    assert dropoutlib.GaussianDropout(0.2)(x, noise=noise).tolist() == [1.0, math.inf, -3.0]
    with pytest.raises(ValueError, match=r"noise.*floating point"):
        dropoutlib.GaussianDropout(0.2)(x, noise=torch.ones(3, device=device, dtype=torch.bool))


def test_gradient_reaches_the_noise(device: str) -> None:
    """A factor that depends on parameters can be learned: variational dropout builds on this."""
    x = torch.rand(3, device=device)
    noise = torch.ones(3, device=device, requires_grad=True)
    functional.gaussian_dropout(x, 0.5, noise=noise).sum().backward()
    torch.testing.assert_close(noise.grad, x)


def test_refuses_p_one_and_says_why() -> None:
    layer = dropoutlib.GaussianDropout(0.5)
    layer.p = 1.0
    for call in (lambda: dropoutlib.GaussianDropout(1), lambda: layer(torch.ones(2)),
                 lambda: layer.eval()(torch.ones(2)), lambda: functional.gaussian_dropout(torch.ones(2), 1.0)):
        with pytest.raises(ValueError, match=r"less than 1.*variance, which contains p/\(1 - p\), would be infinite"):
            call()


def test_p_close_to_one_is_finite(device: str) -> None:
    x = torch.ones(1000, device=device, dtype=torch.float64)
    assert dropoutlib.GaussianDropout(1 - 1e-12)(x).isfinite().all()
