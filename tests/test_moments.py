"""Moments through the layers of a network, judged by quadrature and by enumeration."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dropoutlib import Dropout, FastDropoutLinear, moments, noise
from dropoutlib.documentation import WORDS
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


def joint(mean, covariance, device="cpu"):
    return moments.JointMoments(torch.tensor(mean, dtype=torch.float64, device=device),
                                torch.tensor(covariance, dtype=torch.float64, device=device))


@pytest.mark.parametrize("power", [2, 20, 40, 62])
def test_powers_have_the_expectation_of_the_rule_to_the_last_digits(power):
    value = moments.Moments(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    expected = math.prod(range(1, power, 2))    # of a standard normal number
    found = moments.expectation(lambda z: z ** power, value).item()
    assert found == pytest.approx(expected, rel=1e-13)


def pair(one, two, correlation):
    (mean, std), (other_mean, other_std) = one, two
    product = correlation * std * other_std
    return joint([mean, other_mean], [[std**2, product], [product, other_std**2]])


@functools.cache
def covariance_of_relus(one, two, correlation):
    """By a Gauss-Legendre rule in two dimensions, over the quadrant where both are positive."""
    value = pair(one, two, correlation)
    mean, covariance = value
    points, weights = np.polynomial.legendre.leggauss(200)
    halves = [(center + 9 * std) / 2 for center, std in (one, two)]
    x, y = (torch.from_numpy(half * (1 + points)) for half in halves)
    grid = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(grid).exp()
    total = torch.from_numpy(weights) @ (density * grid.prod(-1)) @ torch.from_numpy(weights) * halves[0] * halves[1]
    return (total - moments.relu(value).mean.prod()).item()


PLACES = [(0.0, 1.0), (-1.5, 1.0), (1.0, 2.0), (0.3, 0.3)]
CORRELATIONS = (-0.95, -0.5, -0.1, 0.2, 0.6, 0.95)


def worst_relu(relu):
    """The largest error of a covariance, as a multiple of the bound that relu states."""
    worst = 0.0
    for index, one in enumerate(PLACES):
        for two in PLACES[index:]:
            for correlation in CORRELATIONS:
                found = relu(pair(one, two, correlation)).covariance[0, 1].item()
                error = abs(found - covariance_of_relus(one, two, correlation))
                worst = max(worst, error / (0.015 * abs(correlation) ** 3 * one[1] * two[1]))
    return worst


def test_the_quadrature_knows_what_is_known_in_closed_form():
    for correlation in CORRELATIONS:
        angle = math.acos(correlation)
        closed = (math.sin(angle) + (math.pi - angle) * correlation - 1) / (2 * math.pi)
        assert covariance_of_relus((0.0, 1.0), (0.0, 1.0), correlation) == pytest.approx(closed, abs=1e-9)


def test_covariances_behind_relu_are_within_their_stated_error():
    assert 0.3 < worst_relu(moments.relu) < 1


def one_term(value):
    slope = torch.special.ndtr(value.mean / value.variance.sqrt())
    return moments.JointMoments(value.mean, slope[:, None] * slope * value.covariance)


@pytest.mark.parametrize("planted", [
    lambda value: moments.JointMoments(value.mean, torch.diag(value.variance)),  # forgets the covariance
    lambda value: value,  # takes relu for the identity
    one_term,
])
def test_a_wrong_covariance_behind_relu_is_found(planted):
    assert worst_relu(planted) > 3


def test_the_variances_behind_relu_are_those_without_covariances_and_the_rest_is_a_covariance(device):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)  # singular: 8 values from 5
    value = joint(torch.randn(3, 8, generator=generator).tolist(), (root @ root.mT).tolist(), device)
    result = moments.relu(value)
    alone = moments.relu(moments.Moments(value.mean, value.variance))
    assert torch.equal(result.mean, alone.mean) and torch.equal(result.variance, alone.variance)
    assert torch.equal(result.covariance, result.covariance.mT)
    assert torch.linalg.eigvalsh(result.covariance).min() > -1e-12


def test_covariances_of_certain_values_have_finite_gradients(device):
    mean = torch.tensor([-1.0, 0.0, 2.0], device=device, requires_grad=True)
    covariance = torch.zeros(3, 3, device=device, requires_grad=True)
    result = moments.relu(moments.JointMoments(mean, covariance))
    assert result.covariance.eq(0).all()
    (result.mean.sum() + result.covariance.sum()).backward()
    assert mean.grad.isfinite().all() and covariance.grad.isfinite().all()


def test_gradients_of_covariances():
    def function(mean, root):
        value = moments.JointMoments(mean, root @ root.mT)
        value = moments.linear(moments.multiply(moments.relu(value), noise.Bernoulli(0.3)), torch.ones(2, 3).double())
        return tuple(value)

    values = (torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True),
              torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-0.3, 0.4, 2.0]], dtype=torch.float64,
                           requires_grad=True))
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("p", [0.3, [0.3, 0.0, 0.9]])
def test_multiply_and_linear_of_correlated_values_are_exact(p, device):
    """Three values that are sums of four coins, and a mask on each of them: 2^7 outcomes."""
    generator = torch.Generator().manual_seed(0)
    mix, weight = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (2, 3)))
    rates = torch.cat([torch.full((4,), 0.5), torch.tensor(p).expand(3)])
    values = distribution(lambda coins: mix @ coins, (4,), 0.5)
    truth = distribution(lambda bits: weight @ (2 * bits[4:] * (mix @ bits[:4])), (7,), rates)
    law = noise.Bernoulli(p) if isinstance(p, float) else noise.Coins(torch.tensor(p, device=device))
    value = moments.JointMoments(values.mean().to(device), values.covariance().to(device))
    result = moments.linear(moments.multiply(value, law, scale=2.0), weight.to(device))
    torch.testing.assert_close(result.mean.cpu(), truth.mean(), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.covariance.cpu(), truth.covariance(), rtol=0, atol=1e-6)


def test_docstrings_say_the_numbers_that_the_chapter_prints():
    chapter = json.loads((Path(__file__).parents[1] / "book/dense/fast_dropout.ipynb").read_text(encoding="utf-8"))
    printed = "".join(line for cell in chapter["cells"] for output in cell.get("outputs", [])
                      for line in output.get("text", []))
    rows = re.findall(r"(\d) hidden, +(\d+) steps:" + r" +([\d.]+)" * 6, printed)
    (_, *before), (_, *after) = (row[1:] for row in rows if row[0] == "1")
    (_, *deep_before), (_, *deep_after) = (row[1:] for row in rows if row[0] == "3")
    farthest = max(abs(1 - float(ratio)) for ratio in before[:3] + deep_before[:3])
    said = re.findall(r"\d\.\d\d|\d+ %", WORDS["too_sure"])
    medians = [before[0], deep_before[0], f"{100 * farthest:.0f} %"]
    assert said == after[:3] + deep_after[:3] + medians + after[3:] + deep_after[3:]
    for function in (moments.relu, moments.linear, FastDropoutLinear, FastDropoutLinear.moments):
        assert "behind one hidden layer of 256 units" in " ".join(function.__doc__.split())


def test_rounding_makes_no_variance_negative():
    certain = torch.full((50, 50), 1e6)  # of a value times (1, ..., 1), which the weights take the sum out of
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    weight = weight - weight.mean(1, keepdim=True)
    result = moments.linear(moments.JointMoments(torch.zeros(50), certain), weight)
    assert (result.variance >= 0).all() and not (weight @ certain @ weight.T).diagonal().ge(0).all()


FUNCTIONS = {
    "multiply": lambda value: moments.multiply(value, noise.Bernoulli(0.5)),
    "linear": lambda value: moments.linear(value, torch.ones(1, 2)),
    "relu": moments.relu, "sigmoid": moments.sigmoid, "probit": moments.probit,
    "expectation": lambda value: moments.expectation(torch.tanh, value),
    "squared_error": lambda value: moments.squared_error(value, torch.ones(2)),
    "logistic_loss": lambda value: moments.logistic_loss(value, torch.ones(2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_moments_is_refused(name):
    ones = torch.ones(2)
    for value in (ones, (ones, ones), 1.0, None):
        with pytest.raises(TypeError, match=rf"value has to be a Moments, but got {type(value).__name__}"):
            FUNCTIONS[name](value)
    with pytest.raises(TypeError, match=r"value\.variance has to be a tensor, but got float"):
        FUNCTIONS[name](moments.Moments(ones, 1.0))
    with pytest.raises(TypeError, match=r"value\.covariance has to be a tensor, but got NoneType"):
        moments.relu(moments.JointMoments(ones, None))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_mean_and_variance_is_refused(name):
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=r"value\.variance has to be at least 0, but got -0\.5"):
        FUNCTIONS[name](moments.Moments(ones, torch.tensor([1.0, -0.5])))
    with pytest.raises(ValueError, match=r"value\.mean and value\.variance.*broadcast.*\(2,\) and \(3,\)"):
        FUNCTIONS[name](moments.Moments(ones, torch.ones(3)))
    broadcast, whole = (FUNCTIONS[name](moments.Moments(ones, variance)) for variance in (torch.ones(()), ones))
    torch.testing.assert_close(broadcast, whole)
    assert torch.isnan(FUNCTIONS[name](moments.Moments(ones, ones * math.nan))[-1]).any(), "nan has to be seen"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_joint_moments_are_taken_where_they_mean_something(name):
    value = joint([1.0, 2.0], [[1.0, 0.5], [0.5, 1.0]])
    value = moments.JointMoments(*(part.float() for part in value))
    if name in ("sigmoid", "probit"):
        with pytest.raises(TypeError, match=r"JointMoments.*Moments\(value\.mean, value\.variance\) leaves them out"):
            FUNCTIONS[name](value)
    else:
        result, alone = FUNCTIONS[name](value), FUNCTIONS[name](moments.Moments(value.mean, value.variance))
        if isinstance(result, moments.JointMoments):
            torch.testing.assert_close(result.mean, alone.mean)
        else:
            torch.testing.assert_close(result, alone)
    for covariance in (torch.ones(2), torch.ones(2, 3), torch.ones(3, 3), torch.ones(4, 2, 2)):
        mean = torch.ones(3, 2) if covariance.dim() == 3 else torch.ones(2)
        if name not in ("sigmoid", "probit"):
            with pytest.raises(ValueError, match=r"value\.covariance has to be of shape \(\.\.\., n, n\)"):
                FUNCTIONS[name](moments.JointMoments(mean, covariance))


def test_targets_of_the_losses():
    value = moments.Moments(torch.tensor([1.0, -2.0]), torch.ones(2))
    for loss in (moments.logistic_loss, moments.squared_error):
        expected = loss(value, torch.tensor([1.0, 0.0]))
        for target in (torch.tensor([1, 0]), torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8)):
            torch.testing.assert_close(loss(value, target), expected)
        with pytest.raises(ValueError, match=r"target has to be of the shape \(2,\) of the output, but got \(1,\)"):
            loss(value, torch.ones(1))
        with pytest.raises(TypeError, match="target has to be a tensor, but got float"):
            loss(value, 1.0)


def test_the_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"target.*\(3, 1\).*\(3,\)"):
        moments.squared_error(moments.Moments(torch.ones(3, 1), torch.ones(3, 1)), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [-4.0, -5.5, -8.0])
def test_probit_keeps_the_digits_of_its_tail(mean, dtype):
    value = moments.Moments(torch.tensor(mean, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    assert moments.probit(value).mean.item() == pytest.approx(norm.cdf(mean), rel=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("variance", [0.0, 1e-40, 1e-10])
@pytest.mark.parametrize("mean", [1.0, -1.0])
def test_gradients_of_relu_by_a_variance_near_zero(mean, variance):
    value = gaussian(mean, variance)
    value.variance.requires_grad_()
    gradient, = torch.autograd.grad(moments.relu(value).variance, value.variance)
    assert gradient.item() == pytest.approx(float(mean > 0), abs=1e-9)


def test_gradients_of_covariances_of_certain_values():
    covariance = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    for mean, slope in (([1.0, 2.0], 1.0), ([1.0, -2.0], 0.0)):
        joint = moments.relu(moments.JointMoments(torch.tensor(mean, dtype=torch.float64), covariance))
        gradient, = torch.autograd.grad(joint.covariance[0, 1], covariance)
        assert gradient[0, 1] == slope


def test_large_variances_do_not_overflow():
    largest = {torch.float16: 6e4, torch.float32: 3e38}
    for dtype, variance in largest.items():
        wide = moments.Moments(torch.tensor(0.0, dtype=dtype), torch.tensor(variance, dtype=dtype))
        assert moments.probit(wide).variance.item() == pytest.approx(0.25, abs=0.02)
        assert moments.logistic_loss(wide, torch.tensor(1.0, dtype=dtype)).isfinite()
        assert moments.sigmoid(wide).mean == 0.5
    for mean in (1e200, -1e200):
        assert moments.relu(gaussian(mean, 1.0)).variance == (mean > 0)


@pytest.mark.parametrize(("call", "words"), [
    (lambda one: moments.multiply(one, noise.Position()), "law.*mean and a variance.*Position"),
    (lambda one: moments.linear(one._replace(variance=one.variance.float()), torch.ones(1, 1)), "one type.*float32"),
    (lambda one: moments.logistic_loss(one, torch.full((1,), 2.0)), "target.*goes from 2 to 2"),
    (lambda one: moments.logistic_loss(one, torch.full((1,), -1)), "target.*goes from -1 to -1"),
    (lambda one: moments.sum_variance(one.mean, torch.ones(1, 1).double(), -0.5), "alpha.*-0.5")])
def test_arguments_that_mean_nothing_are_refused(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(gaussian([1.0], [1.0]))


@pytest.mark.parametrize("call", [
    lambda value: moments.relu(value), lambda value: moments.probit(value), lambda value: moments.sigmoid(value),
    lambda value: moments.squared_error(value, torch.zeros(2)), lambda value: moments.expectation(torch.tanh, value),
    lambda value: moments.multiply(value, noise.Bernoulli(0.5), scale=2.0)])
def test_complex_values_are_refused(call):
    with pytest.raises(RuntimeError, match=r"value\.mean has to be real, as moments are, but got torch\.complex64"):
        call(moments.Moments(torch.tensor([1j, 2 + 0j]), torch.ones(2)))


def test_a_complex_sum_is_refused():
    for input, weight, name in ((torch.tensor([1j]), torch.ones(1, 1), "input"),
                                (torch.ones(1), torch.tensor([[1j]]), "weight")):
        with pytest.raises(RuntimeError, match=f"{name} has to be real"):
            moments.sum_variance(input, weight)


def test_targets_are_probabilities():
    value = moments.Moments(torch.zeros(3), torch.ones(3))
    assert moments.logistic_loss(value, torch.tensor([0.0, math.nan, 1.0])).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="target has to hold probabilities, from 0 to 1, but goes from 0 to 2"):
        moments.logistic_loss(value, torch.tensor([0.0, 1.0, 2.0]))
