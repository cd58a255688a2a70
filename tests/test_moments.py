"""Moments through the layers of a network, judged by quadrature and by enumeration."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dropoutlib import Dropout, moments, noise
from dropoutlib.enumeration import distribution

GAUSSIANS = [(0.0, 1.0), (1.5, 0.3), (-2.0, 4.0), (0.3, 1e-4), (-8.0, 1.0)]


def by_quadrature(function, mean, variance):
    std = math.sqrt(variance)
    limits = mean - 12 * std, mean + 12 * std
    return quad(lambda z: function(z) * norm.pdf(z, mean, std), *limits, points=[0.0, mean], limit=400)[0]


def gaussian(mean, variance, device="cpu"):
    return moments.Moments(*(torch.tensor(value, dtype=torch.float64, device=device) for value in (mean, variance)))


@pytest.mark.parametrize(("mean", "variance"), GAUSSIANS)
def test_relu_is_exact_for_a_gaussian(mean, variance, device):
    result = moments.relu(gaussian(mean, variance, device))
    first = by_quadrature(lambda z: max(z, 0.0), mean, variance)
    second = by_quadrature(lambda z: max(z, 0.0) ** 2, mean, variance)
    assert result.mean.item() == pytest.approx(first, abs=1e-10)
    assert result.variance.item() == pytest.approx(second - first**2, abs=1e-10)


def test_relu_of_a_certain_value_is_relu_with_finite_gradients(device):
    mean = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, device=device, requires_grad=True)
    variance = torch.zeros_like(mean).requires_grad_()
    result = moments.relu(moments.Moments(mean, variance))
    assert result.mean.tolist() == [0, 0, 2]
    assert result.variance.tolist() == [0, 0, 0]
    (result.mean.sum() + result.variance.sum()).backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(variance.grad).all()


def test_relu_gradients():
    values = (torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True),
              torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda mean, variance: tuple(moments.relu(moments.Moments(mean, variance))), values)


def test_linear_and_multiply_are_exact_behind_dropout(device):
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(5, generator=generator, dtype=torch.float64), torch.tensor([0.5, -1.0], dtype=torch.float64)
    weight = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    p, layer = 0.3, Dropout(0.3)
    truth = distribution(lambda keep: weight @ layer(x, noise=keep) + bias, (5,), p)
    certain = moments.Moments(x.to(device), torch.zeros_like(x, device=device))
    masked = moments.multiply(certain, noise.Bernoulli(p), scale=1 / (1 - p))
    result = moments.linear(masked, weight.to(device), bias.to(device))
    torch.testing.assert_close(result.mean.cpu(), truth.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.variance.cpu(), truth.variance(), rtol=0, atol=1e-12)


def test_multiply_of_a_random_value_is_the_variance_of_a_product():
    """The value is itself a coin: two values, two masks, four outcomes."""
    value, p, scale = torch.tensor([1.0, 4.0], dtype=torch.float64), 0.4, 2.0
    products = scale * torch.cat([value, torch.zeros(2, dtype=torch.float64)])
    weights = torch.tensor([0.3, 0.3, 0.2, 0.2], dtype=torch.float64)
    mean = weights @ products
    result = moments.multiply(moments.Moments(value.mean(), value.var(correction=0)), noise.Bernoulli(p), scale=scale)
    assert result.mean.item() == pytest.approx(mean.item())
    assert result.variance.item() == pytest.approx((weights @ (products - mean) ** 2).item())


def test_sigmoid_is_within_its_stated_error():
    worst = max(abs(moments.sigmoid(gaussian(mean, variance)).item()
                    - by_quadrature(lambda z: 1 / (1 + math.exp(-z)), mean, variance))
                for mean in np.linspace(-8, 8, 17) for variance in (0.25, 4.0, 36.0))
    assert 0.01 < worst < 0.02


@pytest.mark.parametrize(("mean", "variance"), [(1000.0, 1e-3), (5.0, 1e-6), (-5.0, 1.0)])
def test_relu_in_float32_is_as_good_as_in_float64(mean, variance):
    """Computed in float32, the difference of the two moments would lose every digit."""
    single = moments.relu(moments.Moments(torch.tensor(mean), torch.tensor(variance)))
    double = moments.relu(gaussian(mean, torch.tensor(variance).item()))
    assert single.mean.dtype == single.variance.dtype == torch.float32
    assert single.mean.item() == pytest.approx(double.mean.item(), rel=1e-6)
    assert single.variance.item() == pytest.approx(double.variance.item(), rel=1e-6)
    if mean > 0:  # so far above zero that ReLU changes nothing
        assert single.variance.item() == pytest.approx(variance, rel=1e-6)
