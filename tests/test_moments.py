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
    worst = max(abs(moments.sigmoid(gaussian(mean, variance)).mean.item()
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


GRID = [(mean, std**2) for mean in (-8.0, -3.0, 0.0, 1.0, 5.0) for std in (0.01, 0.3, 1.0, 2.0, 6.0)]


def logistic(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def variance_by_quadrature(function, mean, variance):
    first = by_quadrature(function, mean, variance)
    return by_quadrature(lambda z: function(z) ** 2, mean, variance) - first**2


def test_the_variance_of_sigmoid_is_within_its_stated_error():
    errors = [abs(moments.sigmoid(gaussian(*value)).variance.item() - variance_by_quadrature(logistic, *value))
              for value in GRID]
    assert 0.001 < max(errors) < 0.01


@pytest.mark.parametrize(("mean", "variance"), GRID)
def test_probit_is_exact(mean, variance):
    result = moments.probit(gaussian(mean, variance))
    assert result.mean.item() == pytest.approx(by_quadrature(norm.cdf, mean, variance), abs=1e-11)
    assert result.variance.item() == pytest.approx(variance_by_quadrature(norm.cdf, mean, variance), abs=1e-11)


def test_probit_of_a_nearly_certain_value_keeps_its_digits():
    """phi(mean)^2 times the variance, in the limit: a difference of two moments would be zero."""
    result = moments.probit(gaussian(0.7, 1e-20))
    assert result.variance.item() == pytest.approx(norm.pdf(0.7) ** 2 * 1e-20, rel=1e-9)


@pytest.mark.parametrize(("function", "bound"), [(lambda z: z**5 - z, 1e-9), (torch.tanh, 1e-3),
                                                 (torch.nn.functional.leaky_relu, 2e-2)])
def test_expectation_by_quadrature(function, bound):
    for mean, variance in GRID[:-5]:
        if variance <= 4:
            exact = by_quadrature(lambda z: float(function(torch.tensor(z, dtype=torch.float64))), mean, variance)
            result = moments.expectation(function, gaussian(mean, variance)).item()
            assert result == pytest.approx(exact, abs=bound, rel=1e-9)


def test_expected_losses():
    for mean, variance in GRID:
        value = gaussian(mean, variance)
        squared = by_quadrature(lambda z: (z - 0.5) ** 2, mean, variance)
        target = torch.tensor(0.5, dtype=torch.float64)
        assert moments.squared_error(value, target).item() == pytest.approx(squared, rel=1e-9)
        if variance <= 4:
            for label in (0.0, 1.0):
                exact = by_quadrature(lambda z, label=label: math.log1p(math.exp(-abs(z))) + max(z, 0) - label * z,
                                      mean, variance)
                result = moments.logistic_loss(value, torch.tensor(label, dtype=torch.float64)).item()
                assert result == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("function", [
    lambda value: tuple(moments.sigmoid(value)), lambda value: tuple(moments.probit(value)),
    lambda value: moments.expectation(torch.tanh, value),
    lambda value: moments.logistic_loss(value, torch.ones_like(value.mean))])
def test_gradients_of_the_other_functions(function):
    values = (torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True),
              torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda mean, variance: function(moments.Moments(mean, variance)), values)


def test_deviation_has_a_finite_gradient_everywhere():
    variance = torch.tensor([0.0, 4.0, -1e-9], dtype=torch.float64, requires_grad=True)
    std = moments.deviation(variance)
    assert std.tolist() == [0, 2, 0]
    (gradient,) = torch.autograd.grad(std.sum(), variance)
    assert gradient.tolist() == [0, 0.25, 0]


def test_a_sum_of_squares_is_exact_and_wide():
    x, weight, alpha = torch.rand(4, 3).double(), torch.rand(2, 3).double(), torch.rand(2, 3).double()
    expected = (alpha * weight**2 * x[:, None] ** 2).sum(-1)
    torch.testing.assert_close(moments.sum_variance(x, weight, alpha), expected)
    large, small = torch.full((1, 16), 300.0), torch.full((1, 16), 1e-4)
    for value in (large, small):
        found = moments.sum_variance(value.half(), torch.full((1, 16), 0.01).half())
        torch.testing.assert_close(found, value[:, :1] ** 2 * 16e-4, rtol=2e-2, atol=0)
    with torch.autocast("cpu", dtype=torch.float16):
        assert moments.sum_variance(large, torch.ones(1, 16)).item() == 16 * 300.0**2


def test_whole_numbers_become_floating_point():
    value = moments.relu(moments.Moments(torch.tensor(1), torch.tensor(2)))
    assert value.mean.dtype == torch.float32 and value.mean.item() != 1


def test_the_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"target.*\(3, 1\).*\(3,\)"):
        moments.squared_error(moments.Moments(torch.ones(3, 1), torch.ones(3, 1)), torch.ones(3))
