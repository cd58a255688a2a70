"""Swapout: its exact law, its special cases, its rates, and what it says of bad arguments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import Swapout, audit, functional, predict, propagate_moments
from dropoutlib.enumeration import Distribution, distribution

X = torch.tensor([1.5, -0.7], dtype=torch.float64)
BRANCH = torch.tensor([0.4, 2.0], dtype=torch.float64)
RATES = [(0.3, 0.6), (0.0, 0.5), (0.5, 0.0), (1.0, 0.25), (0.25, 1.0), (1.0, 1.0), (0.0, 0.0)]


def law(p_input: float, p_branch: float) -> Distribution:
    """Of two units, over the masks of the input and then of the branch."""
    rates = torch.tensor([p_input, p_input, p_branch, p_branch], dtype=torch.float64)
    return distribution(lambda keep: functional.swapout(X, BRANCH, p_input, p_branch, noise=keep.split(2)), (4,), rates)


@pytest.mark.parametrize(("p_input", "p_branch"), RATES)
def test_four_outcomes_with_their_probabilities(p_input: float, p_branch: float) -> None:
    found = law(p_input, p_branch)
    for unit in range(2):
        outcomes = {0.0: p_input * p_branch, X[unit].item(): (1 - p_input) * p_branch,
                    BRANCH[unit].item(): p_input * (1 - p_branch),
                    (X + BRANCH)[unit].item(): (1 - p_input) * (1 - p_branch)}
        for value, chance in outcomes.items():
            here = found.probabilities[(found.outputs[:, unit] - value).abs() < 1e-12].sum().item()
            assert math.isclose(here, chance, abs_tol=1e-12)


@pytest.mark.parametrize(("p_input", "p_branch"), RATES)
def test_moments_and_test_rule_are_exact(p_input: float, p_branch: float) -> None:
    layer, found = Swapout(Constant(), p_input, p_branch), law(p_input, p_branch)
    mean = (1 - p_input) * X + (1 - p_branch) * BRANCH
    variance = p_input * (1 - p_input) * X**2 + p_branch * (1 - p_branch) * BRANCH**2
    for actual in (found.mean(), layer.mean(X), layer.eval()(X),
                   functional.swapout(X, BRANCH, p_input, p_branch, False)):
        torch.testing.assert_close(actual, mean, rtol=0, atol=1e-12)
    for actual in (found.covariance().diagonal(), layer.variance(X)):
        torch.testing.assert_close(actual, variance, rtol=0, atol=1e-12)
    assert abs(found.covariance()[0, 1]) < 1e-12


class Constant(nn.Module):
    """A branch whose output is known."""

    def forward(self, input: Tensor) -> Tensor:
        return BRANCH.to(input.dtype).expand(input.shape)


def test_special_cases() -> None:
    torch.manual_seed(0)
    branch, x = nn.Linear(6, 6), torch.randn(4, 6)
    keep = torch.rand(4, 6) < 0.5
    assert torch.equal(Swapout(branch, 0.0, 0.0)(x), x + branch(x))
    dropped = functional.weight_scaling_dropout(branch(x), 0.5, noise=keep)
    assert torch.equal(Swapout(branch, 1.0)(x, noise=(torch.zeros_like(keep), keep)), dropped)
    assert torch.equal(Swapout(branch, 0.0)(x, noise=(torch.ones_like(keep), keep)), x + dropped)
    skip_forward = Swapout(branch)(x, noise=(~keep, keep))
    assert torch.equal(skip_forward, torch.where(keep, branch(x), x))


def test_the_two_masks_are_independent_and_have_their_own_rates() -> None:
    keep = Swapout(nn.Identity(), 0.2, 0.7).draw(torch.empty(1000, 1000), generator=torch.Generator().manual_seed(0))
    both = (keep.input & keep.branch).float().mean().item()
    for share, expected in ((keep.input.float().mean().item(), 0.8), (keep.branch.float().mean().item(), 0.3),
                            (both, 0.24)):
        assert abs(share - expected) < 6.5 * math.sqrt(expected * (1 - expected) / 1e6)


def test_rates_are_read_at_every_call() -> None:
    layer, x = Swapout(nn.Identity(), 0.3, 0.4), torch.ones(4)
    layer.p_input, layer.p_branch = 1.0, 0.0
    assert torch.equal(layer(x), x)
    layer.p_input, layer.p_branch = 0.25, 0.5
    torch.testing.assert_close(layer.eval()(x), 1.25 * x)
    assert "p_input=0.25, p_branch=0.5" in repr(layer)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, "0.5", None])
def test_bad_rates(p: object) -> None:
    kind = ValueError if isinstance(p, float) else TypeError
    for rates in ({"p_input": p}, {"p_branch": p}):
        with pytest.raises(kind, match="probability has to be"):
            Swapout(nn.Identity(), **rates)
        layer = Swapout(nn.Identity())
        for name in rates:
            setattr(layer, name, p)
        for training in (True, False):
            with pytest.raises(kind, match="probability has to be"):
                layer.train(training)(torch.ones(3))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"module has to be a module, the branch, but got 0\.5"):
        Swapout(0.5)
    for training in (True, False):
        with pytest.raises(RuntimeError, match=r"branch has to be of the shape \(2, 3\) of the input.*\(2, 4\)"):
            Swapout(nn.Linear(3, 4)).train(training)(torch.ones(2, 3))
        with pytest.raises(TypeError, match="branch has to be a tensor, but got tuple"):
            Swapout(nn.LSTM(3, 3)).train(training)(torch.ones(2, 3))
    with pytest.raises(TypeError, match="noise has to be a pair, the masks of the input and the branch"):
        functional.swapout(torch.ones(3), torch.ones(3), noise=torch.ones(3))


def test_a_branch_that_draws_itself_draws_after_the_block() -> None:
    layer, x = Swapout(nn.Sequential(nn.Linear(8, 8), nn.Dropout())), torch.randn(16, 8)
    torch.manual_seed(0)
    y = layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x, noise=layer.draw(x)), y)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_dropped_is_zero_with_a_zero_gradient(bad: float) -> None:
    x = torch.tensor([bad, 1.0], requires_grad=True)
    branch = torch.tensor([1.0, bad], requires_grad=True)
    y = functional.swapout(x, branch, noise=(torch.tensor([0, 1]), torch.tensor([1, 0])))
    assert y.tolist() == [1.0, 1.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0] and branch.grad.tolist() == [1.0, 0.0]


def test_the_mean_rule_is_that_of_a_network_only_if_it_is_linear() -> None:
    """Summed over all masks of two blocks of one unit."""
    def gap(activation: nn.Module) -> float:
        first, second = (Swapout(activation, 0.5, 0.5).double() for _ in range(2))
        x = torch.ones(1, dtype=torch.float64)
        outputs = [second(first(x, noise=tuple(keep[:2, None])), noise=tuple(keep[2:, None]))
                   for keep in torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))]
        return (torch.stack(outputs).mean() - second.eval()(first.eval()(x))).abs().item()

    assert gap(nn.Identity()) < 1e-12
    assert gap(nn.Tanh()) > 0.01


def test_tools_know_the_block() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Swapout(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    x = torch.randn(8, 4)
    assert any(finding.kind == "dropout before batch norm" and finding.place == "1" for finding in audit(model, x))
    assert not audit(nn.Sequential(Swapout(nn.Linear(4, 4)), nn.Linear(4, 2)), x)
    with pytest.raises(NotImplementedError, match="Swapout"):
        propagate_moments(nn.Sequential(Swapout(nn.Linear(4, 4))), x)
    assert predict(model.eval(), x, num_samples=30).variance.gt(0).all()


def test_a_block_that_drops_its_branch_alone_drops():
    model = nn.Sequential(Swapout(nn.Linear(4, 4), p_input=0.0, p_branch=0.5), nn.Linear(4, 2))
    assert (predict(model, torch.ones(3, 4), 20).variance > 0).all()


def test_a_branch_that_writes_into_its_input() -> None:
    block = Swapout(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)), 0.5, 0.5)
    x = torch.tensor([[-1.0, 2.0, -3.0]])
    branch = block.module[1](x.relu())
    for keep, expected in (((1, 0), x), ((0, 1), branch), ((1, 1), x + branch)):
        given = x.clone()
        assert torch.equal(block(given, noise=tuple(map(torch.tensor, keep))), expected) and torch.equal(given, x)
    torch.testing.assert_close(block.mean(x), (x + branch) / 2)
    torch.testing.assert_close(block.variance(x), (x.square() + branch.square()) / 4)
    torch.testing.assert_close(block.eval()(x), (x + branch) / 2)
