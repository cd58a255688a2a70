"""What is max-drop's own: the maximum of a map or of a position, the window, and the scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dropoutlib import MaxDrop, functional
from dropoutlib.enumeration import distribution

CASES = [("feature", 1), ("feature", 2), ("feature", 3), ("feature", 9), ("channel", 1)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def noise_shape(x: Tensor, mode: str) -> tuple[int, ...]:
    return (*x.shape[:-2], 1, 1) if mode == "feature" else (*x.shape[:-3], 1, *x.shape[-2:])


def dropped_by_hand(x: Tensor, mode: str, window: int) -> Tensor:
    """Where the maxima are, in loops."""
    where = torch.zeros_like(x, dtype=torch.bool)
    channels, height, width = x.shape
    if mode == "channel":
        for i in range(height):
            for j in range(width):
                where[max(range(channels), key=lambda c, i=i, j=j: x[c, i, j]), i, j] = True
        return where
    for c in range(channels):
        row, column = max(((i, j) for i in range(height) for j in range(width)), key=lambda place, c=c: x[c][place])
        top, left = row - window // 2, column - window // 2
        where[c, max(top, 0):top + window, max(left, 0):left + window] = True
    return where


@pytest.mark.parametrize(("mode", "window"), CASES)
@pytest.mark.parametrize("signs", ["positive", "any"])
def test_mean_and_variance_from_the_sum_over_all_masks(mode: str, window: int, signs: str) -> None:
    p, x = 0.3, torch.rand(3, 2, 3, dtype=torch.float64) - (0.5 if signs == "any" else 0)
    layer = MaxDrop(p, mode, window)
    law = distribution(lambda keep: layer(x, noise=keep), noise_shape(x, mode), p)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    where = dropped_by_hand(x, mode, window)
    share = min(window, 2) * min(window, 3) / 6 if mode == "feature" else 1 / 3
    torch.testing.assert_close(law.mean(), torch.where(where, (1 - p) * x, x) / (1 - p * share), rtol=0, atol=1e-12)


def test_the_sum_of_a_map_loses_p_times_its_maximum() -> None:
    p, x = 0.4, torch.rand(1, 4, 5, dtype=torch.float64)
    unscaled = MaxDrop(p).mean(x) * (1 - p / 20)
    assert math.isclose(unscaled.sum(), x.sum() - p * x.max(), rel_tol=1e-12)
    constant = torch.ones(1, 4, 5, dtype=torch.float64)
    assert math.isclose(MaxDrop(p).mean(constant).sum(), 20, rel_tol=1e-12)


@pytest.mark.parametrize("mode", ["feature", "channel"])
def test_what_is_drawn(mode: str) -> None:
    p, x = 0.3, torch.rand(4000, 3, 4, 4)
    dropped = MaxDrop(p, mode)(x) == 0
    where = torch.stack([dropped_by_hand(each, mode, 1) for each in x[:20]])
    assert not (dropped[:20] & ~where).any() and (dropped[:20] & where).any()
    draws = dropped.flatten(2).any(2) if mode == "feature" else dropped.any(1)
    rate = draws.double().mean(0)
    assert ((rate - p).abs() < 6 * math.sqrt(p * (1 - p) / len(x))).all()


def test_of_equal_maxima_one_is_dropped() -> None:
    y = MaxDrop(1.0)(torch.ones(2, 3, 4, 4))
    assert ((y == 0).flatten(2).sum(2) == 1).all()
    assert ((MaxDrop(1.0, "channel")(torch.ones(2, 3, 4, 4)) == 0).sum(1) == 1).all()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_dropped_maximum_leaves_nothing_behind(value: float) -> None:
    x = torch.rand(1, 1, 4, 4)
    x[0, 0, 2, 1] = value
    x.requires_grad_()
    y = MaxDrop(0.5)(x, noise=torch.zeros(1, 1, 1, 1))
    y.sum().backward()
    assert y[0, 0, 2, 1] == 0 and x.grad[0, 0, 2, 1] == 0 and y.isfinite().all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="mode has to be 'feature' or 'channel', but got 'map'"):
        MaxDrop(mode="map")
    with pytest.raises(ValueError, match="window=3"):
        MaxDrop(mode="channel", window=3)
    with pytest.raises(ValueError, match="window has to be at least 1, but got 0"):
        MaxDrop(window=0)
    with pytest.raises(RuntimeError, match=r"\(N, C, H, W\) or \(C, H, W\), but got the shape \(4, 4\)"):
        MaxDrop()(torch.ones(4, 4))
    with pytest.raises(RuntimeError, match="complex numbers have no order"):
        MaxDrop()(torch.ones(1, 4, 4, dtype=torch.complex64))
    empty = torch.ones(0, 3, 4, 4)
    for values in (MaxDrop()(empty), MaxDrop().mean(empty), MaxDrop().variance(empty)):
        assert values.shape == (0, 3, 4, 4)


def test_moments_of_what_is_surely_dropped() -> None:
    x = torch.full((1, 2, 2), 1.0)
    x[0, 0, 0] = math.inf
    assert MaxDrop(1.0).mean(x)[0, 0, 0] == 0 and (MaxDrop(1.0).variance(x) == 0).all()


def test_functional_and_repr() -> None:
    x, keep = torch.rand(5, 3, 8, 8), torch.zeros(5, 3, 1, 1)
    assert torch.equal(functional.max_drop(x, 0.2, window=3, noise=keep), MaxDrop(0.2, window=3)(x, noise=keep))
    assert functional.max_drop(x, training=False) is x
    assert repr(MaxDrop(0.2, window=3)) == "MaxDrop(p=0.2, mode='feature', window=3)"
    assert repr(MaxDrop(0.2, "channel")) == "MaxDrop(p=0.2, mode='channel')"
