"""What is variational dropout's own; the divergence is in test_divergence.py, the contract in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dropoutlib import (
    GaussianDropout,
    VariationalDropoutConv1d,
    VariationalDropoutConv2d,
    VariationalDropoutLinear,
    functional,
)
from dropoutlib.divergence import log_uniform_kl

KINDS = [("A", "layer"), ("A", "unit"), ("A", "weight"), ("B", "layer"), ("B", "unit")]


def layer_of(inputs: int, outputs: int, **arguments: object) -> VariationalDropoutLinear:
    torch.manual_seed(1)
    layer = VariationalDropoutLinear(inputs, outputs, dtype=torch.float64, **arguments)
    with torch.no_grad():
        layer.log_alpha += torch.randn_like(layer.log_alpha)
    return layer


@pytest.mark.parametrize(("kind", "alpha_per"), KINDS)
def test_moments_and_covariance_of_what_is_drawn(kind: str, alpha_per: str, device: str) -> None:
    """Outputs of kind A are uncorrelated; those of kind B share the noise of their inputs."""
    layer = layer_of(3, 2, kind=kind, alpha_per=alpha_per).to(device)
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, device=device)
    count = 100_000
    y = layer(x.expand(count, 3)).detach()
    mean, variance = layer.mean(x)[0].detach(), layer.variance(x)[0].detach()
    assert ((y.mean(0) - mean).abs() < 6.5 * (variance / count).sqrt()).all()
    assert ((y.var(0) / variance - 1).abs() < 6.5 * math.sqrt(2 / count)).all()
    covariance = torch.cov(y.T)[0, 1]
    expected = torch.zeros((), device=device)
    if kind == "B":
        expected = (layer.alpha * x[0] ** 2 * layer.weight[0] * layer.weight[1]).sum().detach()
    assert abs(covariance - expected) < 6.5 * float((variance.prod() + expected**2).sqrt()) / math.sqrt(count)


def test_noise_is_standard_normal() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    layer = layer_of(3, 2, alpha_per="weight")
    expected = layer.mean(x) - 2 * layer.variance(x).sqrt()
    torch.testing.assert_close(layer(x, noise=torch.full((2,), -2.0)), expected)
    layer = layer_of(3, 2, kind="B", alpha_per="unit")
    factor = 1 + 0.5 * layer.alpha.sqrt()
    torch.testing.assert_close(layer(x, noise=torch.full((3,), 0.5)), layer.mean(x * factor))


def test_kind_b_is_gaussian_dropout_before_a_linear_layer() -> None:
    layer, p = VariationalDropoutLinear(3, 2, p=0.4, kind="B", dtype=torch.float64), 0.4
    x, noise = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    factors = 1 + math.sqrt(p / (1 - p)) * noise
    expected = nn.functional.linear(GaussianDropout(p)(x, noise=factors), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, noise=noise), expected)


@pytest.mark.parametrize(("kind", "alpha_per", "terms"), [("A", "layer", 6), ("A", "unit", 2), ("A", "weight", 1),
                                                         ("B", "layer", 3), ("B", "unit", 1)])
def test_kl_is_the_sum_over_noise_variables(kind: str, alpha_per: str, terms: int) -> None:
    layer = layer_of(3, 2, kind=kind, alpha_per=alpha_per)
    torch.testing.assert_close(layer.kl(), terms * log_uniform_kl(layer.alpha).sum())
    assert layer.kl().dim() == 0
    (gradient,) = torch.autograd.grad(layer.kl(), layer.log_alpha)
    assert (gradient < 0).all()
    assert torch.autograd.grad(layer.kl(), layer.weight, allow_unused=True) == (None,)


@pytest.mark.parametrize(("kind", "alpha_per"), KINDS)
def test_the_loss_reaches_alpha(kind: str, alpha_per: str) -> None:
    layer, x = layer_of(3, 2, kind=kind, alpha_per=alpha_per), torch.randn(5, 3, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert layer.log_alpha.grad.abs().min() > 0


def test_silent_inputs_have_finite_gradients(device: str) -> None:
    for kind in "AB":
        layer = VariationalDropoutLinear(5, 3, kind=kind, device=device)
        x = torch.zeros(2, 5, device=device, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_alpha_and_p() -> None:
    layer = VariationalDropoutLinear(3, 2, p=0.2)
    assert layer.alpha.item() == pytest.approx(0.25) and layer.p.item() == pytest.approx(0.2)
    layer.p = 0.5
    assert layer.alpha.item() == pytest.approx(1.0) and "p=0.5," in repr(layer)
    with pytest.raises(ValueError, match="0"):
        layer.p = 0.0
    several = VariationalDropoutLinear(3, 2, alpha_per="unit")
    torch.nn.init.uniform_(several.log_alpha)
    assert f"p={several.p.min().item():.4g} to {several.p.max().item():.4g}" in repr(several)


def test_a_rate_that_was_saved_as_a_number_loads() -> None:
    layer = VariationalDropoutLinear(3, 2, p=0.2)
    state = layer.state_dict()
    old = {**state, "log_alpha": state["log_alpha"].squeeze()}
    other = VariationalDropoutLinear(3, 2)
    other.load_state_dict(old)
    assert torch.equal(other.log_alpha, layer.log_alpha) and old["log_alpha"].shape == ()


def test_trained_weights_of_linear_load() -> None:
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer = VariationalDropoutLinear(5, 3, p=0.1, alpha_per="unit")
    state = nn.Sequential(linear).state_dict()
    nn.Sequential(layer).load_state_dict(state)
    assert torch.equal(layer.eval()(x), linear(x)) and list(state) == ["0.weight", "0.bias"]
    torch.testing.assert_close(layer.p, torch.full((5,), 0.1))
    other = VariationalDropoutLinear(5, 3, alpha_per="unit")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.log_alpha, layer.log_alpha)
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict({"bias": linear.bias})


def test_functional_twin() -> None:
    for kind in "AB":
        layer, x = layer_of(3, 3, kind=kind), torch.randn(5, 3, dtype=torch.float64)
        noise = torch.randn(5, 3, dtype=torch.float64)
        arguments = (x, layer.weight, layer.bias, layer.alpha, kind)
        assert torch.equal(functional.variational_dropout_linear(*arguments, noise=noise), layer(x, noise=noise))
        assert torch.equal(functional.variational_dropout_linear(*arguments, False), layer.eval()(x))


def test_reset_gives_a_layer_back_its_start() -> None:
    with torch.device("meta"):
        layer = VariationalDropoutLinear(3, 2, p=0.2, alpha_per="weight")
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.log_alpha.fill_(math.nan)
    layer.reset_parameters()
    torch.testing.assert_close(layer.p, torch.full((2, 3), 0.2))


def test_weights_of_a_linear_layer_are_assigned_to_a_layer_without_memory() -> None:
    layer = VariationalDropoutLinear(8, 4, p=0.2, device="meta")
    linear = nn.Linear(8, 4)
    layer.load_state_dict(linear.state_dict(), assign=True)
    x = torch.rand(3, 8)
    assert layer(x).shape == (3, 4) and torch.equal(layer.eval()(x), linear(x))
    assert layer.p.item() == pytest.approx(0.2)


def test_large_noise_in_half_precision_is_finite() -> None:
    layer = VariationalDropoutLinear(8, 4).half()
    with torch.no_grad():
        layer.log_alpha.fill_(12.0)
    assert layer(torch.rand(3, 8).half()).isfinite().all()


def test_the_divergence_of_half_precision_is_finite() -> None:
    layer = VariationalDropoutLinear(1024, 1024)
    expected = layer.kl()
    assert expected > torch.finfo(torch.float16).max
    torch.testing.assert_close(layer.half().kl(), expected)


@pytest.mark.parametrize("logarithm", [-80.0, -50.0, 50.0, 80.0])
def test_the_gradient_of_the_divergence_of_extreme_noise(logarithm) -> None:
    layer = VariationalDropoutLinear(1, 1)
    with torch.no_grad():
        layer.log_alpha.fill_(logarithm)
    layer.kl().backward()
    assert layer.log_alpha.grad.item() == pytest.approx(-0.5 if logarithm < 0 else 0.0)


BAD = {
    "kind": (lambda: VariationalDropoutLinear(2, 2, kind="C"), r"kind.*'C'"),
    "alpha_per": (lambda: VariationalDropoutLinear(2, 2, alpha_per="output"), r"alpha_per.*'output'"),
    "weight of kind B": (lambda: VariationalDropoutLinear(2, 2, kind="B", alpha_per="weight"), "weight.*kind='A'"),
    "p zero": (lambda: VariationalDropoutLinear(2, 2, p=0), "excluded.*0"),
    "p one": (lambda: VariationalDropoutLinear(2, 2, p=1.0), "excluded.*1"),
    "p negative": (lambda: VariationalDropoutLinear(2, 2, p=-1), "probability.*-1"),
    "alpha negative": (lambda: called(-1.0), "alpha.*-1"),
    "alpha of examples": (lambda: called(torch.ones(3, 2)), r"alpha.*\(3, 2\)"),
    "alpha of outputs": (lambda: called(torch.ones(2, 1)), r"alpha.*\(2, 1\)"),
    "alpha of weights for kind B": (lambda: called(torch.ones(2, 2), "B"), r"alpha.*\(2, 2\).*kind B"),
}


def called(alpha, kind="A"):
    return functional.variational_dropout_linear(torch.ones(3, 2), torch.ones(2, 2), None, alpha, kind)


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("alpha", ["a", None, True])
def test_an_alpha_that_is_no_number_is_named(alpha) -> None:
    with pytest.raises(TypeError, match=f"alpha has to be a real number, but got {alpha!r}"):
        called(alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("logarithm", [-math.inf, -1e4, -90.0, 0.0, 90.0, 1e4, math.inf])
def test_every_log_alpha_gives_finite_values_and_gradients(dtype, kind, logarithm):
    layer = VariationalDropoutLinear(4, 3, kind=kind, dtype=dtype)
    torch.nn.init.constant_(layer.log_alpha, logarithm)
    y = layer(torch.rand(5, 4, dtype=dtype))
    (y.float().tanh().sum() + layer.kl()).backward()
    assert y.isfinite().all() and layer.kl().isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    # from below, the divergence leads back
    assert (layer.log_alpha.grad != 0).all() or logarithm > 0 or math.isinf(logarithm)


# Convolutions


CONVOLUTIONS = {
    "of a sequence": (lambda **more: VariationalDropoutConv1d(4, 6, 3, padding="same", groups=2, **more), (2, 4, 5)),
    "with strides": (lambda **more: VariationalDropoutConv2d(2, 3, (3, 2), 2, 1, **more), (2, 2, 5, 4)),
    "circular": (lambda **more: VariationalDropoutConv1d(2, 3, 3, padding=1, padding_mode="circular", **more),
                 (2, 2, 5))}


def convolution_of(name: str, **arguments: object) -> tuple[nn.Module, torch.Tensor]:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(1)
    layer, x = make(dtype=torch.float64, **arguments), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        layer.log_alpha += torch.randn_like(layer.log_alpha)
    return layer, x


@pytest.mark.parametrize("alpha_per", ["layer", "unit", "weight"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_are_those_of_noise_on_every_weight(name: str, alpha_per: str) -> None:
    """An output is linear in the factors, so one factor at a time gives its variance."""
    layer, x = convolution_of(name, alpha_per=alpha_per)
    filters, inputs, *_ = layer.weight.shape
    variance = torch.zeros_like(layer.mean(x))
    for place in torch.ones_like(layer.weight).nonzero():
        alone = torch.zeros_like(layer.weight)
        alone[tuple(place)] = layer.weight[tuple(place)]
        channel = place[0] // (filters // layer.groups) * inputs + place[1]  # of the input
        alpha = {"layer": layer.alpha, "unit": layer.alpha[channel] if alpha_per == "unit" else None,
                 "weight": layer.alpha[tuple(place)] if alpha_per == "weight" else None}[alpha_per]
        variance = variance + alpha * layer._conv_forward(x, alone, None).square()
    mean = layer._conv_forward(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer.mean(x), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), variance, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x, noise=torch.full((1,), -2.0)), mean - 2 * variance.sqrt())
    torch.testing.assert_close(layer.eval()(x), mean, rtol=0, atol=1e-12)
    if layer.padding_mode == "zeros":
        function = getattr(functional, f"variational_dropout_conv{x.dim() - 2}d")
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        y = function(x, layer.weight, layer.bias, layer.alpha, *geometry, noise=torch.full((1,), -2.0))
        torch.testing.assert_close(y, mean - 2 * variance.sqrt())


@pytest.mark.parametrize("alpha_per", ["layer", "unit", "weight"])
def test_every_weight_of_a_convolution_counts_in_the_divergence(alpha_per: str) -> None:
    layer, _ = convolution_of("of a sequence", alpha_per=alpha_per)
    shape = {"layer": (), "unit": (2, 1, 2, 1), "weight": (2, 3, 2, 3)}[alpha_per]  # by groups
    of_weights = layer.alpha.reshape(shape).expand(2, 3, 2, 3)
    torch.testing.assert_close(layer.kl(), log_uniform_kl(of_weights).sum())


def test_a_convolution_with_a_filter_as_large_as_the_map_is_the_linear_layer() -> None:
    conv, x = VariationalDropoutConv2d(2, 5, (2, 3), dtype=torch.float64), torch.randn(4, 2, 2, 3, dtype=torch.float64)
    linear = VariationalDropoutLinear(12, 5, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    noise = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x, noise=noise[..., None, None]).flatten(1), linear(x.flatten(1), noise=noise))
    torch.testing.assert_close(conv.kl(), linear.kl())
    conv.p = 0.2
    assert conv.alpha.item() == pytest.approx(0.25) and "p=0.2" in repr(conv)


@pytest.mark.parametrize(("words", "call"), [
    ("alpha_per has to be", lambda: VariationalDropoutConv1d(2, 2, 1, alpha_per="channel")),
    ("probability has to be between 0 and 1", lambda: VariationalDropoutConv2d(2, 2, 1, p=1.0)),
    (r"alpha has to be one number, one for each of 4 inputs.*\(3,\)", lambda: functional.variational_dropout_conv1d(
        torch.ones(4, 5), torch.ones(2, 2, 1), None, torch.ones(3), groups=2)),
    ("alpha.*-1", lambda: functional.variational_dropout_conv1d(torch.ones(2, 5), torch.ones(2, 2, 1), None, -1.0))])
def test_bad_input_of_a_convolution(words: str, call: object) -> None:
    with pytest.raises(ValueError, match=words):
        call()
