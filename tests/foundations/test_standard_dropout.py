"""What is standard dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib import functional
from dropoutlib.enumeration import distribution


@pytest.mark.parametrize("call", [
    lambda module: module(),
    lambda module: module(0.2),
    lambda module: module(0.2, True),
    lambda module: module(p=0.2, inplace=True),
    lambda module: module(1),
])
def test_constructor_is_that_of_torch(call) -> None:
    ours, theirs = call(dropoutlib.Dropout), call(nn.Dropout)
    assert (ours.p, ours.inplace, ours.training) == (theirs.p, theirs.inplace, theirs.training)
    assert ours.extra_repr() == theirs.extra_repr().replace("p=1,", "p=1.0,")


def test_functional_takes_what_torch_takes(device: str) -> None:
    x = torch.ones(3, device=device)
    for arguments in [(x,), (x, 0.2), (x, 0.2, True), (x, 0.2, False, True)]:
        assert functional.dropout(*arguments).shape == torch.nn.functional.dropout(*arguments).shape


@pytest.mark.parametrize("size", [8, 5000])
def test_the_two_scalings_are_one_mask(device: str, size: int) -> None:
    x = torch.rand(size, device=device, dtype=torch.float64)
    generator = torch.Generator(device)
    inverted = dropoutlib.Dropout(0.3)(x, generator=generator.manual_seed(0))
    raw = dropoutlib.WeightScalingDropout(0.3)(x, generator=generator.manual_seed(0))
    torch.testing.assert_close(raw / 0.7, inverted)


def test_scaling_the_output_is_scaling_the_weights_that_follow() -> None:
    linear, dropout = nn.Linear(5, 3).double(), dropoutlib.WeightScalingDropout(0.2).eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    scaled = nn.functional.linear(x, 0.8 * linear.weight, linear.bias)  # the bias is not scaled
    torch.testing.assert_close(linear(dropout(x)), scaled)


def test_units_that_share_a_dropped_layer_are_correlated() -> None:
    """Cov(z_a, z_b) = p(1 - p) sum_j W_aj W_bj x_j^2, by the sum over all masks."""
    p = 0.3
    weight, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    for layer, variance in ((dropoutlib.Dropout(p), p / (1 - p)), (dropoutlib.WeightScalingDropout(p), p * (1 - p))):
        law = distribution(lambda keep, layer=layer: weight @ layer(x, noise=keep), (6,), p)
        torch.testing.assert_close(law.covariance(), variance * (weight * x**2) @ weight.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(law.mean(), weight @ layer.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [8, 5000])
def test_in_place(device: str, size: int) -> None:
    layer = dropoutlib.Dropout(0.5, inplace=True)
    leaf = torch.rand(size, device=device, dtype=torch.float64).add(0.5).requires_grad_()
    x = leaf * 1
    before = x.detach().clone()
    y = layer(x)
    assert y is x and not torch.equal(x, before)
    y.sum().backward()
    torch.testing.assert_close(leaf.grad * before, y.detach())  # the mask of the backward is that of the forward
    assert layer.eval()(x) is x
    assert dropoutlib.Dropout(0.0, inplace=True)(x) is x
    keep = torch.zeros(size, device=device)
    assert (functional.dropout(x, 0.5, True, True, noise=keep) == 0).all() and (x == 0).all()


def test_in_place_refuses_what_torch_refuses(device: str) -> None:
    leaf = torch.ones(3, device=device, requires_grad=True)
    for layer in (nn.Dropout(0.5, inplace=True), dropoutlib.Dropout(0.5, inplace=True)):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            layer(leaf)
        with pytest.raises(RuntimeError, match="single memory location"):
            layer(torch.ones(1, device=device).expand(3))
        used = leaf.exp()
        square = used * used
        layer(used)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            square.sum().backward()
    assert (leaf == 1).all()


def test_p_one_gives_zeros_at_test_time_only_where_the_rule_scales(device: str) -> None:
    x = torch.tensor([1.0, math.inf, math.nan], device=device)
    assert dropoutlib.Dropout(1.0).eval()(x) is x
    assert (dropoutlib.WeightScalingDropout(1.0).eval()(x) == 0).all()


def test_found_by_tools_that_look_for_dropout() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            setattr(model, name, dropoutlib.Dropout(module.p))
    found = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    assert len(found) == 3 and all(type(module) is dropoutlib.Dropout for module in found)
    x = torch.randn(2, 5, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), model(x))


@pytest.mark.parametrize(("p", "size"), [(0.99999, 1 << 17), (1e-5, 1 << 17), (1 - 1e-9, 1 << 14)])
def test_p_near_its_limits(device: str, p: float, size: int) -> None:
    torch.manual_seed(0)
    dropped = int((dropoutlib.Dropout(p)(torch.ones(size, device=device)) == 0).sum())
    deviation = math.sqrt(size * p * (1 - p))
    assert abs(dropped - size * p) <= 7 * deviation + 3
