"""Gradients belong to the noise of the forward pass."""

from __future__ import annotations

import pytest
import torch
from subjects import (
    LARGE,
    SMALL,
    Layer,
    LayerOnConditions,
    LayerWithWeights,
    assert_homogeneous,
    checks_in,
    covered,
    example,
    subject,
    without_bias,
)
from torch import Tensor


def check_gradients(layer: Layer, device: torch.device) -> None:
    for shape in ((2, 3), (48, 48)):
        x = layer.example(shape, device).requires_grad_()
        train, evaluate = layer(0.3, x), layer(0.3, x).eval()
        noise = layer.noise(train, x)
        for function in (lambda x, noise=noise, train=train: train(x, noise=noise), evaluate):
            quick = {"fast_mode": x.numel() > 100}
            assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True, **quick)
            assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).sin(), (x,), **quick)


def check_parameter_gradients(layer: Layer, device: torch.device) -> None:
    x = layer.example((3, 2), device)
    module = layer(0.3, x)
    noise = layer.noise(module, x)
    names, values = zip(*module.named_parameters(), strict=True) if dict(module.named_parameters()) else ((), ())

    def function(*values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,), {"noise": noise})

    assert isinstance(layer, LayerWithWeights | LayerOnConditions) or not values
    if values:
        leaves = tuple(value.detach().requires_grad_() for value in values)
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda *leaves: function(*leaves).sin(), leaves)


def check_same_mask(layer: Layer, device: torch.device) -> None:
    """Forward and backward multiply by the same noise, whatever the layout of the gradient."""
    for rows, columns in (SMALL, LARGE):
        x = layer.example((rows, columns), device).requires_grad_()
        module = without_bias(layer(0.5, x))
        maps = module(x).shape[2:]
        wide = example((columns, 2 * rows, *maps), device)
        for gradient in (torch.ones((), device=device, dtype=x.dtype).expand(rows, columns, *maps),
                         wide[:, :rows].transpose(0, 1), wide[:, ::2].transpose(0, 1),
                         wide[:, :1].transpose(0, 1).expand(rows, columns, *maps)):
            y = module(x)
            for _ in range(2):
                (actual,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
                assert_homogeneous(layer, x, actual, y, gradient)


def check_output_may_be_written_into(layer: Layer, device: torch.device) -> None:
    """As ReLU(inplace=True) behind the layer does it."""
    many = (4, 8, *(round(1024 ** (1 / len(layer.axes))) for _ in layer.axes)) if layer.axes else (16, 1024)
    for shape in ((6, 5, *layer.axes), many):
        x = example(shape, device, torch.float32).requires_grad_()
        output = layer(0.3, x)(x)
        output.mul_(2).sum().backward()
        assert x.grad is not None


CHECKS = checks_in(globals())


@pytest.mark.parametrize(("name", "check"), covered(CHECKS))
def test_gradients(name: str, check: str, device: str) -> None:
    CHECKS[check](subject(name), torch.device(device))
