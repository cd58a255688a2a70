"""What is ShakeDrop's own: two factors, what shares them, the test rule of any range, and a gradient of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropoutlib import ShakeDrop, StochasticDepth, audit, compress, functional, propagate_moments
from dropoutlib.enumeration import Distribution, distribution

RANGES = [(-1.0, 1.0), (0.0, 2.0), (0.0, 0.0), (-0.5, 0.25), (1.0, 1.0)]
LEVELS = {"batch": (1, 1, 1), "row": (2, 1, 1), "channel": (2, 3, 1), "element": (2, 3, 2)}
X = torch.tensor([[0.4, -1.3, 0.7], [1.1, -0.2, 0.6]], dtype=torch.float64)


def law(layer: ShakeDrop, x: Tensor) -> Distribution:
    """Over all masks, and both values of a coin with the first three moments of each factor."""
    noise = layer.draw(x)
    low, high = layer.alpha_range
    sizes = (noise.keep.numel(), noise.alpha.numel())

    def output(coins: Tensor) -> Tensor:
        keep, sign = coins.split(sizes)
        alpha = (low + high) / 2 + (2 * sign - 1) * (high - low) / math.sqrt(12)
        return layer(x, noise=(keep.reshape(noise.keep.shape), alpha.reshape(noise.alpha.shape), noise.beta))

    rates = torch.tensor([layer.p] * sizes[0] + [0.5] * sizes[1], dtype=torch.float64)
    return distribution(output, (sum(sizes),), rates)


@pytest.mark.parametrize("alpha_range", RANGES)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_mean_variance_and_test_rule_in_any_range(p: float, alpha_range: tuple[float, float]) -> None:
    layer = ShakeDrop(p, alpha_range)
    found, middle, width = law(layer, X), sum(alpha_range) / 2, alpha_range[1] - alpha_range[0]
    mean = 1 - p + p * middle
    variance = p * (1 - p) * (1 - middle) ** 2 + p * width**2 / 12
    for actual in (found.mean(), layer.mean(X), copy.copy(layer).eval()(X)):
        torch.testing.assert_close(actual, mean * X, rtol=0, atol=1e-12)
    for actual in (found.variance(), layer.variance(X)):
        torch.testing.assert_close(actual, variance * X**2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("level", ["batch", "row", "channel"])
def test_covariances_say_what_shares_the_mask_and_what_the_factor(mode: str, level: str) -> None:
    p, x = 0.3, X[:, :2].contiguous()
    layer = ShakeDrop(p, (-0.5, 1.0), mode=mode, level=level)
    row, channel = torch.arange(2).repeat_interleave(2), torch.arange(2).repeat(2)
    same_row, same_channel = row[:, None] == row, channel[:, None] == channel
    every = torch.ones_like(same_row)
    shares_factor = {"batch": every, "row": same_row, "channel": same_row & same_channel}[level].double()
    shares_mask = (same_row if mode == "row" else every).double()
    of_mask = p * (1 - p) * (1 - 0.25) ** 2 * shares_mask
    # both are dropped with probability p if they share the mask, else with its square
    of_factor = (p * shares_mask + p**2 * (1 - shares_mask)) * shares_factor * 1.5**2 / 12
    expected = (of_mask + of_factor) * torch.outer(x.flatten(), x.flatten())
    torch.testing.assert_close(law(layer, x).covariance(), expected, rtol=0, atol=1e-12)


def test_elements_of_one_mask_are_correlated_and_their_factors_are_not() -> None:
    p, x = 0.3, X[:1, :3].contiguous()
    found = law(ShakeDrop(p, level="element"), x).covariance()
    expected = p * (1 - p) * torch.ones(3, 3, dtype=torch.float64) + p / 3 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found, expected * torch.outer(x[0], x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_draws_have_the_shapes_that_are_documented(level: str) -> None:
    for mode in ("row", "batch"):
        noise = ShakeDrop(level=level, mode=mode).draw(torch.ones(2, 3, 2))
        assert noise.keep.shape == ((2 if mode == "row" else 1), 1, 1) and noise.keep.dtype is torch.bool
        assert noise.alpha.shape == noise.beta.shape == LEVELS[level]
    assert ShakeDrop(level=level).draw(torch.ones(7)).keep.shape == (7,)


def test_factors_are_uniform_in_their_ranges_and_independent() -> None:
    noise = ShakeDrop(0.3, (-1.0, 2.0), (0.5, 0.75), level="element").draw(torch.ones(400, 500, dtype=torch.float64))
    count = noise.alpha.numel()
    for drawn, low, high in ((noise.alpha, -1.0, 2.0), (noise.beta, 0.5, 0.75)):
        assert low <= drawn.min() and drawn.max() <= high
        standard = (drawn - (low + high) / 2) / ((high - low) / math.sqrt(12))
        assert abs(standard.mean()) < 6.5 / math.sqrt(count)
        assert abs(standard.square().mean() - 1) < 6.5 * math.sqrt(0.8 / count)
        assert abs((standard * (noise.keep.double() - 0.7)).mean()) < 6.5 * math.sqrt(0.21 / count)
    product = (noise.alpha - 0.5) * (noise.beta - 0.625)
    assert abs(product.mean()) < 6.5 * product.std() / math.sqrt(count)


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_has_the_factor_beta_and_the_same_mask(p: float, level: str) -> None:
    layer, x = ShakeDrop(p, level=level), torch.randn(2, 3, 2, requires_grad=True)
    noise = layer.draw(x)
    y = layer(x, noise=noise)
    forward, backward = (torch.where(noise.keep, 1, factor).expand(x.shape) for factor in (noise.alpha, noise.beta))
    assert torch.equal(y, forward * x)
    gradient = torch.randn(2, 3, 2)
    for _ in range(2):  # another pass through the same graph draws nothing
        assert torch.equal(torch.autograd.grad(y, x, gradient, retain_graph=True)[0], backward * gradient)


def test_the_gradient_is_not_that_of_the_forward_factor() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, 1, dtype=torch.float64)
    nothing = torch.zeros(3, 1, dtype=torch.bool)

    def shaken(x: Tensor, alpha: float, beta: float) -> Tensor:
        return functional.shake_drop(x, noise=(nothing, alpha * ones, beta * ones))

    assert not torch.autograd.gradcheck(lambda x: shaken(x, -0.5, 0.5), x, raise_exception=False)
    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(lambda x: shaken(x, 0.5, 0.5), x, **options)
    assert torch.autograd.gradgradcheck(lambda x: shaken(x, 0.5, 0.5).sin(), x)


def test_second_derivatives_go_through_the_first_backward_pass() -> None:
    """y = alpha x and z = y**3 / 3: the gradient is y**2 beta, the derivative of that 2 y beta times beta."""
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    factor = torch.ones(1, dtype=torch.float64)
    y = functional.shake_drop(x, noise=(torch.tensor([0]), -0.5 * factor, 0.25 * factor))
    (first,) = torch.autograd.grad(y**3 / 3, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert first.item() == (-1.0) ** 2 * 0.25 and second.item() == 2 * -1.0 * 0.25 * 0.25


def expected_gradient(layer: ShakeDrop, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    return gradient


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_draws_the_same_again(reentrant: bool) -> None:
    layer, x = ShakeDrop(), torch.randn(64, 3, requires_grad=True)
    torch.manual_seed(3)
    checkpoint(lambda x: layer(x), x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected_gradient(layer, x, 3))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_it_has_both_factors(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    layer, x = ShakeDrop(), torch.randn(16, 3, requires_grad=True)
    noise = layer.draw(x)
    compiled = torch.compile(lambda x, noise: layer(x, noise=noise), backend="aot_eager", fullgraph=True,
                             dynamic=dynamic)
    y, expected = compiled(x, noise), layer(x, noise=noise)
    torch.testing.assert_close(y, expected)
    for output in (y, expected):
        torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0],
                                   torch.where(noise.keep, 1, noise.beta).expand(x.shape))


def test_transforms_take_the_factor_of_the_gradient() -> None:
    layer, x = ShakeDrop(), torch.randn(8, 3, dtype=torch.float64)
    noise = layer.draw(x)
    backward = torch.where(noise.keep, 1, noise.beta)
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(lambda x: layer(x, noise=noise), (x,), (tangent,))
    torch.testing.assert_close(derivative, backward * tangent)
    mapped = torch.vmap(torch.func.grad(lambda x, *noise: layer(x[None], noise=[part[None] for part in noise]).sum()))
    torch.testing.assert_close(mapped(x, *noise), backward.expand(x.shape))


def test_special_cases() -> None:
    x = torch.randn(64, 3, requires_grad=True)
    keep = StochasticDepth(0.3).draw(x)
    at_rest = ShakeDrop(0.3, (0, 0), (0, 0))
    y = at_rest(x, noise=(keep, torch.zeros(1, 1), torch.zeros(1, 1)))
    assert torch.equal(y, functional.drop_path(x, 0.3, scale_by_keep=False, noise=keep))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], keep.float().expand(64, 3))
    assert torch.equal(at_rest.eval()(x), functional.drop_path(x, 0.3, False, scale_by_keep=False))
    assert torch.equal(ShakeDrop(0.3, (1, 1), (1, 1))(x), x)
    always = ShakeDrop(1.0)(x)
    assert len((always / x).round(decimals=4)[:, 0].unique()) > 60, "with p = 1 every example has its factor"
    assert (ShakeDrop(1.0).eval()(x) == 0).all() and ShakeDrop(0.7, (0, 2)).eval()(x) is x


def test_nothing_is_drawn_for_factors_that_are_not_random() -> None:
    x, state = torch.randn(8, 3), torch.get_rng_state()
    ShakeDrop(1.0, (0.5, 0.5), (0, 0))(x)
    assert ShakeDrop(0.0)(x) is x
    ShakeDrop(0.0).draw(x)
    assert torch.equal(torch.get_rng_state(), state)


# Other packages


def of_autoaugment(x: Tensor, keep: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """tensorflow/models, research/autoaugment/shake_drop.py."""
    forward, backward = (keep + factor - keep * factor for factor in (alpha, beta))
    return x * backward + (x * forward - x * backward).detach()


def of_pytorch_cifar10(x: Tensor, keep: Tensor, alpha: Tensor) -> Tensor:
    """dnddnjs/pytorch-cifar10, shake_drop/model.py: plus for minus."""
    return (keep + alpha + alpha * (1 - keep)) * x


def test_autoaugment_has_the_same_law() -> None:
    layer, x = ShakeDrop(0.4), torch.randn(64, 3, dtype=torch.float64, requires_grad=True)
    noise = layer.draw(x)
    ours, theirs = layer(x, noise=noise), of_autoaugment(x, noise.keep.double(), noise.alpha, noise.beta)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (ours, theirs)))


def test_a_wrong_sign_keeps_the_mean_and_changes_the_variance() -> None:
    p, x = 0.5, X[:1, :1]
    found = distribution(lambda coins: of_pytorch_cifar10(x, coins[0], (2 * coins[1] - 1) / math.sqrt(3)), (2,),
                         torch.tensor([p, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found.mean(), ShakeDrop(p).mean(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.variance(), (4 / 3 - (1 - p) ** 2) * x**2, rtol=0, atol=1e-12)
    assert (found.variance() > 2 * ShakeDrop(p).variance(x)).all()


# Arguments and tools


BAD = {
    "mode": (lambda: ShakeDrop(mode="channel"), ValueError, "mode has to be 'row' or 'batch', but got 'channel'"),
    "level": (lambda: ShakeDrop(level="pixel"), ValueError, "level has to be .*'element', but got 'pixel'"),
    "one number": (lambda: ShakeDrop(0.5, 1.0), TypeError, r"alpha_range has to be a pair.*1\.0"),
    "order": (lambda: ShakeDrop(0.5, (1, -1)), ValueError, r"alpha_range.*smaller one first.*\(1, -1\)"),
    "nan": (lambda: ShakeDrop(beta_range=(0.0, math.nan)), ValueError, "beta_range.*nan"),
    "infinite": (lambda: ShakeDrop(beta_range=(0.0, math.inf)), ValueError, "beta_range.*inf"),
    "a word": (lambda: ShakeDrop(beta_range=("0", 1)), TypeError, "beta_range has to be a real number.*'0'"),
    "evaluation": (lambda: functional.shake_drop(torch.ones(2), level="pixel", training=False), ValueError, "level"),
    "no axis": (lambda: ShakeDrop().eval()(torch.tensor(1.0)), RuntimeError, r"\(N, ...\)"),
    "no axis for a moment": (lambda: ShakeDrop().mean(torch.tensor(1.0)), RuntimeError, r"\(N, ...\)"),
    "noise": (lambda: ShakeDrop()(torch.ones(2), noise=torch.ones(2)), TypeError, "tuple of three, the keep mask"),
    "a factor out of range": (lambda: ShakeDrop()(torch.ones(2), noise=(torch.ones(1), torch.full((1,), 2.0), None)),
                              ValueError, "between -1 and 1"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_ranges_may_be_changed_later() -> None:
    layer = ShakeDrop(0.5)
    layer.alpha_range = (0.0, 2.0)
    assert torch.equal(layer.eval()(X), X)
    assert "p=0.5, alpha_range=(0.0, 2.0), beta_range=(0.0, 1.0), mode='row', level='row'" in repr(layer)


def block_models() -> Iterator[nn.Sequential]:
    for last in (ShakeDrop(0.3), ShakeDrop(0.3, (0.0, 2.0)), ShakeDrop(1.0)):
        yield nn.Sequential(nn.Linear(3, 3), nn.ReLU(), last, nn.Linear(3, 2))


def test_tools_know_it() -> None:
    x = torch.randn(8, 3)
    for model in block_models():
        assert not audit(model, x)
        with pytest.raises(NotImplementedError, match="ShakeDrop"):
            propagate_moments(model, x)
        smaller, _ = compress(model.eval(), x)
        torch.testing.assert_close(smaller(x), model(x))
    norm = nn.Sequential(nn.Linear(3, 3), ShakeDrop(0.2), nn.BatchNorm1d(3))
    assert any(finding.kind == "dropout before batch norm" for finding in audit(norm, x))
