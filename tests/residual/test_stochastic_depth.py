"""What is stochastic depth's own: one draw for a branch, its modes and scales, stacks of blocks, the other packages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import DropPath, NoisyLayer, StochasticDepth, audit, functional, propagate_moments
from dropoutlib.enumeration import distribution, masks

LAYERS = {"row": StochasticDepth(0.3), "batch": StochasticDepth(0.3, mode="batch"), "path": DropPath(0.3),
          "raw": DropPath(0.3, scale_by_keep=False)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LAYERS)
def test_all_that_shares_a_draw_is_fully_correlated(name: str) -> None:
    """Moments from the sum over all masks: the odds, or p(1 - p), times the product of any two elements."""
    layer, p, x = LAYERS[name], 0.3, torch.randn(2, 2, 3, dtype=torch.float64)
    law = distribution(lambda keep: layer(x, noise=keep), (1 if name == "batch" else 2, 1, 1), p)
    flat = x.flatten()
    products = torch.outer(flat, flat) if name == "batch" else torch.block_diag(
        *(torch.outer(one.flatten(), one.flatten()) for one in x))
    factor, mean = (p * (1 - p), (1 - p) * x) if name == "raw" else (p / (1 - p), x)
    torch.testing.assert_close(law.covariance(), factor * products, rtol=0, atol=1e-12)
    torch.testing.assert_close(law.mean(), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mean(x), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), factor * x.square(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(64,), (64, 3), (64, 3, 2, 2)])
def test_a_draw_has_the_shape_of_the_rows_or_of_the_batch(name: str, shape: tuple[int, ...]) -> None:
    layer, x = LAYERS[name], torch.ones(shape)
    keep = layer.draw(x)
    assert keep.shape == ((1 if name == "batch" else 64), *(1,) * (len(shape) - 1))
    y = layer(x)
    rows = y.reshape(64, -1)
    assert (rows == rows[:, :1]).all() and (name != "batch" or len(y.unique()) == 1)
    assert set(y.unique().tolist()) <= {0.0, 1.0 if name == "raw" else torch.tensor(1 / 0.7).item()}


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_gives_the_mean_over_the_masks(name: str) -> None:
    layer, x = LAYERS[name], torch.randn(2, 3, dtype=torch.float64)
    law = distribution(lambda keep: layer(x, noise=keep), (1 if name == "batch" else 2, 1), 0.3)
    try:
        torch.testing.assert_close(layer.eval()(x), law.mean(), rtol=0, atol=1e-12)
    finally:
        layer.train()


def of_torchvision(input: Tensor, p: float, mode: str, generator: torch.Generator) -> Tensor:
    shape = [input.shape[0] if mode == "row" else 1] + [1] * (input.ndim - 1)
    noise = torch.empty(shape, dtype=input.dtype).bernoulli_(1 - p, generator=generator)
    return input * (noise.div_(1 - p) if p < 1 else noise)


def of_timm(x: Tensor, drop_prob: float, keep: Tensor, scale_by_keep: bool, training: bool) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    keep = keep.to(x.dtype)
    return x * (keep / (1 - drop_prob) if scale_by_keep else keep)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_torchvision_has_the_same_law(mode: str, p: float) -> None:
    x = torch.rand(2, 3, dtype=torch.float64) + 0.5
    count, coin = 4000, torch.Generator().manual_seed(1)
    theirs = torch.stack([of_torchvision(x, p, mode, coin) for _ in range(count)]).flatten(1)
    law = distribution(lambda keep: functional.stochastic_depth(x, p, mode, noise=keep),
                       (2 if mode == "row" else 1, 1), p)
    bound = 6 * (law.variance().flatten() / count).sqrt() + 1e-12
    assert ((theirs.mean(0) - law.mean().flatten()).abs() <= bound).all()
    assert {*theirs.unique().tolist()} <= {*law.outputs.unique().tolist()}


@pytest.mark.parametrize("scale", [True, False])
def test_timm_has_the_same_noise_and_without_the_scale_no_test_rule(scale: bool) -> None:
    p, x = 0.3, torch.randn(2, 3, dtype=torch.float64)
    layer = DropPath(p, scale)
    for keep in masks(2, 1):
        torch.testing.assert_close(layer(x, noise=keep), of_timm(x, p, keep, scale, True), rtol=0, atol=1e-15)
    theirs = of_timm(x, p, torch.ones(2, 1), scale, False)
    assert torch.equal(layer.eval()(x), theirs) is scale
    torch.testing.assert_close(layer(x), theirs if scale else (1 - p) * theirs)


def stack(x: Tensor, branches: Tensor, factors: Tensor) -> Tensor:
    for matrix, factor in zip(branches, factors, strict=True):
        x = x + factor * (x @ matrix.T)
    return x


def test_a_linear_stack_keeps_its_mean_with_the_scale_only() -> None:
    """The mean of a product of independent factors is the product of their means."""
    p, x = 0.3, torch.randn(1, 4, dtype=torch.float64)
    branches = torch.randn(3, 4, 4, dtype=torch.float64) / 2
    inverted, raw = StochasticDepth(p), DropPath(p, scale_by_keep=False)

    def through(drop: StochasticDepth | DropPath, keep: Tensor) -> Tensor:
        y = x
        for matrix, one in zip(branches, keep, strict=True):
            y = y + drop(y @ matrix.T, noise=one.reshape(1, 1))
        return y

    scaled, unscaled = (distribution(lambda keep, drop=drop: through(drop, keep), (3,), p).mean()
                        for drop in (inverted, raw))
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(scaled, stack(x, branches, ones), rtol=0, atol=1e-12)
    torch.testing.assert_close(unscaled, stack(x, branches, (1 - p) * ones), rtol=0, atol=1e-12)
    assert (unscaled - stack(x, branches, ones)).abs().max() > 0.1, "layer drop has the mean of its test network"


def test_a_row_that_is_dropped_passes_no_gradient_to_its_branch() -> None:
    branch, x = nn.Linear(3, 3), torch.randn(2, 3)
    (x + StochasticDepth(0.5)(branch(x), noise=torch.zeros(2, 1))).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in branch.parameters())


@pytest.mark.parametrize("layer", [StochasticDepth(1.0), DropPath(1.0), DropPath(1.0, scale_by_keep=False)])
def test_p_one_leaves_the_shortcut(layer: NoisyLayer) -> None:
    f = torch.full((2, 3), math.inf, requires_grad=True)
    y = layer(f)
    y.sum().backward()
    assert (y == 0).all() and f.grad is not None and (f.grad == 0).all()
    assert (layer.mean(f) == 0).all() and (layer.variance(f) == 0).all()


def test_the_rate_has_both_names() -> None:
    layer = DropPath(0.2)
    assert isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p == layer.drop_prob == 0.2
    layer.drop_prob = 0.4
    assert layer.p == 0.4 and "p=0.4, scale_by_keep=True" in repr(layer)
    assert DropPath().drop_prob == 0 and "p=0.1, mode='batch'" in repr(StochasticDepth(0.1, "batch"))


BAD = {
    "mode": (lambda: StochasticDepth(0.1, mode="column"), ValueError, "mode.*column"),
    "mode later": (lambda: functional.stochastic_depth(torch.ones(2), 0.1, "rows", False), ValueError, "mode.*rows"),
    "rate": (lambda: DropPath(1.5), ValueError, "1.5"),
    "scale": (lambda: DropPath(0.5, scale_by_keep=1), TypeError, "scale_by_keep.*1"),
    "no axis": (lambda: StochasticDepth(0.5).eval()(torch.tensor(1.0)), RuntimeError, r"\(N, ...\)"),
    "no axis for a moment": (lambda: DropPath(0.5).variance(torch.tensor(1.0)), RuntimeError, r"\(N, ...\)"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_errors_name_what_is_wrong(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


class Block(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.branch, self.drop = nn.Linear(3, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.branch(x))


def test_a_model_of_blocks_is_audited_and_moments_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Block(DropPath(0.2)), nn.Linear(3, 2))
    audit(model, torch.randn(4, 3))
    with pytest.raises((TypeError, NotImplementedError, ValueError, RuntimeError)):
        propagate_moments(model, torch.randn(4, 3))
    with pytest.raises((TypeError, NotImplementedError, ValueError), match="StochasticDepth"):
        propagate_moments(nn.Sequential(nn.Linear(3, 3), StochasticDepth(0.2)), torch.randn(4, 3))


@pytest.mark.parametrize("name", LAYERS)
def test_a_mapped_layer_draws_for_every_batch(name: str) -> None:
    layer, x = LAYERS[name], torch.ones(64, 2, 3)
    different = torch.vmap(layer, randomness="different")(x)
    same = torch.vmap(layer, randomness="same")(x)
    assert len(different.unique(dim=0)) > 1 and len(same.unique(dim=0)) == 1
    assert (different == different[..., :1]).all()
