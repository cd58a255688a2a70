"""What is standout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from dropoutlib import StandoutLinear, WeightScalingDropout, functional


def layer_of(inputs: int, outputs: int, **arguments: object) -> StandoutLinear:
    torch.manual_seed(1)
    return StandoutLinear(inputs, outputs, dtype=torch.float64, **arguments)


def outcomes(layer: StandoutLinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every mask's output and its probability, each unit with its own."""
    keep_probability = layer.keep_probability(x).detach()
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=keep_probability.numel())), dtype=torch.float64)
    probability = torch.where(masks > 0, keep_probability, 1 - keep_probability).prod(1)
    return torch.stack([layer(x, noise=mask) for mask in masks]), probability


@pytest.mark.parametrize("belief", ["shared", "learned"])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 2.0])
def test_mean_variance_and_test_rule_are_exact(belief: str, alpha: float) -> None:
    layer = layer_of(3, 4, alpha=alpha, beta=0.5, belief=belief, activation=torch.tanh)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    outputs, probability = outcomes(layer, x)
    assert abs(probability.sum() - 1) < 1e-14
    mean = probability @ outputs
    torch.testing.assert_close(layer.mean(x), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), probability @ (outputs - mean) ** 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), mean, rtol=0, atol=1e-12)


def test_what_is_drawn_has_these_moments(device: str) -> None:
    torch.manual_seed(0)
    layer = StandoutLinear(3, 5, alpha=1.5, beta=-0.5, device=device)
    x = torch.randn(1, 3, device=device).expand(40_000, 3)
    y = layer(x).detach()
    error = (layer.variance(x[:1]) / len(y)).sqrt()
    assert ((y.mean(0) - layer.mean(x[:1])).abs() <= 6.5 * error + 1e-6).all()
    kept = (layer(x, generator=torch.Generator(device).manual_seed(0)) != 0).double().detach()
    covariance = torch.cov(kept.T).fill_diagonal_(0)
    assert covariance.abs().max() < 6.5 * 0.25 / math.sqrt(len(y))


def test_a_larger_pre_activation_is_kept_more_often() -> None:
    layer = layer_of(1, 1, alpha=2.0, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    probability = layer.keep_probability(torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64)).flatten().tolist()
    assert probability == pytest.approx([1 / (1 + math.exp(4)), 0.5, 1 / (1 + math.exp(-4))])


def test_alpha_zero_is_dropout_without_scaling() -> None:
    p = 0.3
    layer = layer_of(4, 3, alpha=0.0, beta=math.log((1 - p) / p))
    dropout, x = WeightScalingDropout(p), torch.randn(5, 4, dtype=torch.float64)
    hidden = torch.relu(nn.functional.linear(x, layer.weight, layer.bias))
    keep = torch.rand(5, 3) >= p
    torch.testing.assert_close(layer(x, noise=keep), dropout(hidden, noise=keep))
    torch.testing.assert_close(layer.eval()(x), dropout.eval()(hidden))


def test_shared_belief_sends_no_gradient_through_the_probability() -> None:
    """The gradient is that of the kept units, as if the mask were given."""
    layer, x = layer_of(4, 3, alpha=3.0), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    keep = torch.rand(5, 3) >= 0.5
    hidden = torch.relu(nn.functional.linear(x, layer.weight, layer.bias)) * keep
    actual = torch.autograd.grad(layer(x, noise=keep).sin().sum(), [x, layer.weight, layer.bias])
    expected = torch.autograd.grad(hidden.sin().sum(), [x, layer.weight, layer.bias])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_learned_belief_is_straight_through() -> None:
    """Its gradient is that of the mask taken for its probability: unbiased where the loss is linear in the mask."""
    layer, x = layer_of(3, 2, belief="learned", activation=torch.tanh), torch.randn(3, dtype=torch.float64)
    outputs, probability = outcomes(layer, x)
    parameters = [layer.belief_weight, layer.belief_bias]
    for output, loss, biased in ((outputs, torch.sum, False), (outputs, lambda y: y.sum().square(), True)):
        estimate = [torch.zeros_like(parameter) for parameter in parameters]
        for value, chance in zip(output, probability, strict=True):
            gradients = torch.autograd.grad(loss(value), parameters, retain_graph=True)
            estimate = [total + chance * part for total, part in zip(estimate, gradients, strict=True)]

        def expected_loss(weight, bias, loss=loss, output=output):
            keep = torch.sigmoid(nn.functional.linear(x, weight, bias))
            masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
            chances = torch.where(masks > 0, keep, 1 - keep).prod(1)
            return chances @ torch.stack([loss(value.detach()) for value in output])

        true = torch.autograd.grad(expected_loss(*parameters), parameters)
        gap = max(float((one - other).abs().max()) for one, other in zip(estimate, true, strict=True))
        assert (gap > 1e-3) if biased else (gap < 1e-12)


def test_learned_belief_starts_as_the_shared_one() -> None:
    x = torch.randn(4, 3)
    for bias in (True, False):
        layer = StandoutLinear(3, 2, bias=bias, alpha=2.0, beta=0.5, belief="learned")
        shared = StandoutLinear(3, 2, bias=bias, alpha=2.0, beta=0.5)
        shared.load_state_dict({name: value for name, value in layer.state_dict().items() if "belief" not in name})
        torch.testing.assert_close(layer.keep_probability(x), shared.keep_probability(x))


@pytest.mark.parametrize("belief", ["shared", "learned"])
def test_trained_weights_of_linear_load(belief: str) -> None:
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer = StandoutLinear(5, 3, belief=belief)
    state = nn.Sequential(linear).state_dict()
    nn.Sequential(layer).load_state_dict(state)
    assert list(state) == ["0.weight", "0.bias"]
    probability = torch.sigmoid(linear(x))
    torch.testing.assert_close(layer.keep_probability(x), probability)
    torch.testing.assert_close(layer.eval()(x), torch.relu(linear(x)) * probability)
    other = StandoutLinear(5, 3, belief=belief)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.eval()(x), layer(x))
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict({"bias": linear.bias})


def test_dropping_selects_and_nan_is_not_hidden(device: str) -> None:
    layer = StandoutLinear(1, 1, bias=False, alpha=-1.0, activation=nn.Identity(), device=device)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = torch.tensor([[math.inf], [-math.inf], [math.nan]], device=device, requires_grad=True)
    y = layer(x)
    assert y[0] == 0 and y[1] == -math.inf and y[2].isnan()
    assert layer(x, noise=torch.zeros(1, device=device)).flatten().tolist() == [0, 0, 0]


def test_reset_draws_new_weights_and_the_belief_starts_from_them() -> None:
    layer = StandoutLinear(3, 4, alpha=2.0, beta=1.0, belief="learned")
    before = layer.weight.clone()
    nn.init.zeros_(layer.belief_weight)
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    torch.testing.assert_close(layer.belief_weight, 2 * layer.weight)
    torch.testing.assert_close(layer.belief_bias, 2 * layer.bias + 1)


def test_weights_of_a_linear_layer_are_assigned_to_a_layer_without_memory() -> None:
    layer = StandoutLinear(8, 4, alpha=2.0, beta=1.0, belief="learned", device="meta")
    linear = nn.Linear(8, 4)
    layer.load_state_dict(linear.state_dict(), assign=True)
    torch.testing.assert_close(layer.belief_weight, 2 * linear.weight)
    torch.testing.assert_close(layer.belief_bias, 2 * linear.bias + 1)
    assert layer(torch.rand(3, 8)).shape == (3, 4)


BAD = {
    "activation": (lambda: StandoutLinear(2, 2, activation=None), TypeError, "activation.*None"),
    "alpha": (lambda: StandoutLinear(2, 2, alpha="a"), TypeError, "alpha.*'a'"),
    "beta": (lambda: StandoutLinear(2, 2, beta=None), TypeError, "beta.*None"),
    "nan": (lambda: StandoutLinear(2, 2, alpha=math.nan), ValueError, "alpha.*nan"),
    "alpha of the function": (lambda: functional.standout_linear(torch.ones(2), torch.ones(3, 2), alpha="a"), TypeError,
                              "alpha.*'a'"),
    "beta of the function": (lambda: functional.standout_linear(torch.ones(2), torch.ones(3, 2), beta=None), TypeError,
                             "beta.*None"),
    "nan of the function": (lambda: functional.standout_linear(torch.ones(2), torch.ones(3, 2), beta=math.nan),
                            ValueError, "beta.*nan"),
    "belief bias": (lambda: functional.standout_linear(torch.ones(2), torch.ones(3, 2), belief_bias=torch.ones(3)),
                    ValueError, "belief_bias.*without"),
    "belief weight": (lambda: functional.standout_linear(torch.ones(2), torch.ones(3, 2),
                                                         belief_weight=torch.ones(1, 2)),
                      RuntimeError, r"belief_weight.*\(3, 2\).*\(1, 2\)"),
}


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, words) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_slope_that_changes_compiles() -> None:
    torch._dynamo.reset()
    layer, x = layer_of(3, 4), torch.randn(5, 3, dtype=torch.float64)
    compiled = torch.compile(layer.eval(), backend="aot_eager", fullgraph=True)
    for layer.alpha in (0.5, 1.0, 2.0):
        torch.testing.assert_close(compiled(x), layer(x))


def test_functional_twin_and_bad_belief() -> None:
    layer, x = layer_of(3, 4, alpha=2.0, beta=1.0, belief="learned"), torch.randn(5, 3, dtype=torch.float64)
    keep = torch.rand(5, 4) >= 0.5
    own = {"alpha": 2.0, "beta": 1.0, "belief_weight": layer.belief_weight, "belief_bias": layer.belief_bias}
    assert torch.equal(functional.standout_linear(x, layer.weight, layer.bias, noise=keep, **own), layer(x, noise=keep))
    assert torch.equal(functional.standout_linear(x, layer.weight, layer.bias, False, **own), layer.eval()(x))
    with pytest.raises(ValueError, match=r"belief.*'own'"):
        StandoutLinear(2, 2, belief="own")
    assert "alpha=2.0" in repr(layer) and "activation=relu" in repr(layer)


@pytest.mark.parametrize(("dtype", "z"), [(torch.bfloat16, 8.0), (torch.float16, 9.0), (torch.float32, 17.0)])
def test_the_variance_of_a_unit_that_is_nearly_sure_keeps_its_digits(dtype, z) -> None:
    layer = StandoutLinear(1, 1, bias=False, dtype=dtype)
    torch.nn.init.ones_(layer.weight)
    exact = z**2 / (1 + math.exp(-z)) / (1 + math.exp(z))
    assert layer.variance(torch.tensor([z], dtype=dtype)).item() == pytest.approx(exact, rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("bias", [True, False])
def test_a_learned_belief_starts_from_the_weights_that_are_taken(bias):
    linear, x = nn.Linear(4, 3, bias), torch.rand(5, 4)
    nn.init.constant_(linear.weight, 3.0)
    options = {"alpha": 2.0, "beta": 0.5}
    learned = StandoutLinear.from_linear(linear, belief="learned", **options).eval()
    shared = StandoutLinear.from_linear(linear, **options).eval()
    assert learned.weight is linear.weight and torch.equal(learned.belief_weight, 2 * linear.weight)
    torch.testing.assert_close(learned(x), shared(x))
    state = torch.get_rng_state()
    StandoutLinear.from_linear(linear, belief="learned")
    assert torch.equal(torch.get_rng_state(), state)
