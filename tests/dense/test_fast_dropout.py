"""What is fast dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dropoutlib import Dropout, FastDropoutConv1d, FastDropoutConv2d, FastDropoutLinear, audit, functional, moments
from dropoutlib.enumeration import distribution

P = 0.3


def layer_of(inputs: int, outputs: int, p: float = P) -> FastDropoutLinear:
    torch.manual_seed(1)
    return FastDropoutLinear(inputs, outputs, p=p, dtype=torch.float64)


def test_the_moments_are_those_of_a_linear_layer_behind_dropout() -> None:
    layer, dropout = layer_of(5, 3), Dropout(P)
    x = torch.randn(5, dtype=torch.float64)
    law = distribution(lambda keep: nn.functional.linear(dropout(x, noise=keep), layer.weight, layer.bias), (5,), P)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), law.mean(), rtol=0, atol=1e-12)


def test_noise_is_standard_normal() -> None:
    layer, x = layer_of(5, 3), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, noise=torch.zeros(3)), layer.mean(x))
    torch.testing.assert_close(layer(x, noise=torch.full((3,), -2.0)), layer.mean(x) - 2 * layer.variance(x).sqrt())


def test_moments_of_random_inputs_are_exact() -> None:
    """An input that is itself a coin: its value and its mask, four outcomes a unit."""
    layer, probability = layer_of(2, 2), 0.4
    values = torch.tensor([[0.0, 3.0], [1.0, -1.0]], dtype=torch.float64)  # of each input, with tails and heads

    def output(bits):
        coins, keep = bits[0], bits[1]
        return nn.functional.linear(Dropout(P)(torch.where(coins > 0, values[:, 1], values[:, 0]), noise=keep),
                                    layer.weight, layer.bias)

    outputs, weights = [], []
    for index in range(16):
        bits = torch.tensor([(index >> k) & 1 for k in range(4)], dtype=torch.float64).view(2, 2)
        chance = torch.where(bits > 0, torch.tensor([[probability], [1 - P]]), torch.tensor([[1 - probability], [P]]))
        outputs.append(output(bits))
        weights.append(chance.prod())
    outputs, weights = torch.stack(outputs), torch.stack(weights).double()
    mean = weights @ outputs
    variance = weights @ (outputs - mean) ** 2
    spread = probability * (1 - probability) * (values[:, 1] - values[:, 0]) ** 2
    result = layer.moments(values[:, 0] + probability * (values[:, 1] - values[:, 0]), spread)
    torch.testing.assert_close(result.mean, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.variance, variance, rtol=0, atol=1e-6)


def test_moments_take_and_give_the_same_type() -> None:
    layer, x = layer_of(5, 3), torch.rand(4, 5, dtype=torch.float64)
    first = layer.moments(x)
    torch.testing.assert_close(first.mean, layer.mean(x))
    torch.testing.assert_close(first.variance, layer.variance(x))
    hidden = moments.relu(first)
    for actual, expected in zip(layer_of(3, 2).moments(hidden), layer_of(3, 2).moments(*hidden), strict=True):
        assert torch.equal(actual, expected)


def test_a_network_without_sampling_is_near_the_sum_over_all_masks() -> None:
    """Ten dropped inputs, ReLU, four dropped units, a linear output."""
    torch.manual_seed(3)
    first, second = (FastDropoutLinear(10, 4, dtype=torch.float64), FastDropoutLinear(4, 1, dtype=torch.float64))
    x = torch.rand(10, dtype=torch.float64)

    def network(keep):
        hidden = torch.relu(nn.functional.linear(Dropout(0.5)(x, noise=keep[:10]), first.weight, first.bias))
        return nn.functional.linear(Dropout(0.5)(hidden, noise=keep[10:]), second.weight, second.bias)

    law = distribution(network, (14,), 0.5)
    result = second.moments(moments.relu(first.moments(x)))
    assert abs(result.mean - law.mean()) < 0.05 * law.variance().sqrt()
    assert abs(result.variance / law.variance() - 1) < 0.3


def test_covariances_through_two_layers_without_activation_are_exact() -> None:
    """Four dropped inputs and three dropped units: 2^7 masks."""
    first, second = layer_of(4, 3), layer_of(3, 2)
    x, dropout = torch.randn(4, dtype=torch.float64), Dropout(P)

    def network(keep):
        hidden = nn.functional.linear(dropout(x, noise=keep[:4]), first.weight, first.bias)
        return nn.functional.linear(dropout(hidden, noise=keep[4:]), second.weight, second.bias)

    law = distribution(network, (7,), P)
    hidden = first.moments(x, covariance=True)
    result = second.moments(hidden)
    torch.testing.assert_close(result.mean, law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.covariance, law.covariance(), rtol=0, atol=1e-12)
    forgetful = second.moments(hidden._replace(covariance=hidden.variance.diag()))
    assert (forgetful.covariance - law.covariance()).abs().max() > 1e-3, "this test would not see a lost covariance"


def test_covariances_from_random_inputs_are_those_of_the_diagonal() -> None:
    layer, x = layer_of(5, 3), torch.rand(4, 5, dtype=torch.float64)
    variance = torch.rand(5, dtype=torch.float64)
    joint = moments.JointMoments(x, torch.diag_embed(variance.expand(4, 5)))
    for value in (layer.moments(x, variance, covariance=True), layer.moments(moments.Moments(x, variance.expand(4, 5)),
                                                                            covariance=True)):
        torch.testing.assert_close(value, layer.moments(joint))
        torch.testing.assert_close(value.variance, layer.moments(x, variance).variance)


def test_units_that_agree_need_their_covariances() -> None:
    """Positive weights, as far as training drives units to agree: the sum over 2^14 masks is the judge."""
    torch.manual_seed(3)
    first, second = (FastDropoutLinear(10, 4, dtype=torch.float64), FastDropoutLinear(4, 1, dtype=torch.float64))
    for parameter in (first.weight, second.weight):
        parameter.data.abs_()
    x = torch.rand(10, dtype=torch.float64)

    def network(keep):
        hidden = torch.relu(nn.functional.linear(Dropout(0.5)(x, noise=keep[:10]), first.weight, first.bias))
        return nn.functional.linear(Dropout(0.5)(hidden, noise=keep[10:]), second.weight, second.bias)

    std = distribution(network, (14,), 0.5).variance().sqrt()
    without = second.moments(moments.relu(first.moments(x))).variance.sqrt()
    within = second.moments(moments.relu(first.moments(x, covariance=True))).variance.sqrt()
    assert without / std < 0.9
    assert abs(within / std - 1) < 0.02


def test_moments_refuse_what_is_none() -> None:
    layer, x = FastDropoutLinear(2, 2), torch.ones(2)
    for value in (1.0, None, (x, x)):
        with pytest.raises(TypeError, match=f"mean has to be a tensor or a Moments, but got {type(value).__name__}"):
            layer.moments(value)
    with pytest.raises(ValueError, match=r"variance has to be at least 0, but got -1"):
        layer.moments(x, -x)
    with pytest.raises(ValueError, match=r"broadcast, but got \(2,\) and \(3,\)"):
        layer.moments(x, torch.ones(3))
    with pytest.raises(TypeError, match="covariance has to be True or False"):
        layer.moments(x, covariance=torch.eye(2))
    with pytest.raises(ValueError, match="variance was given"):
        layer.moments(moments.JointMoments(x, torch.eye(2)), x)


def test_silent_inputs_have_finite_gradients(device: str) -> None:
    layer = FastDropoutLinear(5, 3, device=device)
    x = torch.zeros(2, 5, device=device, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()


def test_trained_weights_of_linear_mean_the_same() -> None:
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer = FastDropoutLinear(5, 3)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.eval()(x), linear(x))


def test_functional_twin() -> None:
    layer, x = layer_of(5, 3), torch.randn(4, 5, dtype=torch.float64)
    noise = torch.randn(4, 3, dtype=torch.float64)
    arguments = (x, layer.weight, layer.bias, P)
    assert torch.equal(functional.fast_dropout_linear(*arguments, noise=noise), layer(x, noise=noise))
    assert torch.equal(functional.fast_dropout_linear(*arguments, False), layer.eval()(x))


def test_two_variances_are_one_too_many() -> None:
    value = moments.Moments(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="variance was given"):
        FastDropoutLinear(2, 2).moments(value, value.variance)


def test_refuses_p_one_and_says_why() -> None:
    layer = layer_of(2, 2)
    layer.p = 1.0
    x = torch.ones(2, dtype=torch.float64)
    for call in (lambda: FastDropoutLinear(2, 2, p=1), lambda: layer(x), lambda: layer.eval()(x),
                 lambda: layer.moments(x), lambda: layer.variance(x)):
        with pytest.raises(ValueError, match=r"less than 1.*variance, which contains.*would be infinite"):
            call()
    assert math.isfinite(FastDropoutLinear(2, 2, p=1 - 1e-9)(torch.ones(2)).sum().item())


# Convolutions


CONVOLUTIONS = {
    "of a sequence": (lambda: FastDropoutConv1d(2, 4, 3, padding="same", groups=2, p=P), (1, 2, 4)),
    "with strides": (lambda: FastDropoutConv2d(2, 3, (3, 2), 2, 1, p=P), (1, 2, 2, 2)),
    "without bias": (lambda: FastDropoutConv1d(2, 3, 3, padding=1, bias=False, p=P), (1, 2, 4))}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_moments_are_those_of_a_convolution_behind_dropout(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(1)
    layer, dropout, x = make().double(), Dropout(P), torch.randn(shape, dtype=torch.float64)
    law = distribution(lambda keep: layer._conv_forward(dropout(x, noise=keep), layer.weight, layer.bias), shape, P)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), law.mean(), rtol=0, atol=1e-12)
    layer.train()
    torch.testing.assert_close(layer(x, noise=torch.full((1,), -2.0)), layer.mean(x) - 2 * layer.variance(x).sqrt())
    noise = layer.draw(x, generator=torch.Generator().manual_seed(0))
    assert noise.shape == law.mean().shape and len(noise.unique()) == noise.numel()  # every position has its own
    assert torch.equal(layer(x, noise=noise), layer(x, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_elements_is_refused(mode: str) -> None:
    """One mask acts in several places of a window: at the border the sum of squares is not the variance."""
    conv = nn.Conv1d(1, 1, 3, padding=1, padding_mode=mode, bias=False).double()
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    law = distribution(lambda keep: conv(Dropout(P)(x, noise=keep)), x.shape, P)
    by_squares = P / (1 - P) * F.conv1d(F.pad(x, (1, 1), mode=mode) ** 2, conv.weight ** 2)
    assert not torch.allclose(law.variance(), by_squares)
    for make in (lambda: FastDropoutConv1d.from_conv(conv), lambda: FastDropoutConv1d(1, 1, 3, padding_mode=mode),
                 lambda: FastDropoutConv2d(1, 1, 3, padding_mode=mode)):
        with pytest.raises(ValueError, match=f"padding_mode has to be 'zeros' for fast dropout, but got '{mode}'"):
            make()


def test_a_convolution_stands_for_dropout_too() -> None:
    model = nn.Sequential(nn.Dropout(), FastDropoutConv1d(2, 2, 1))
    assert "1, a FastDropoutConv1d, which stands for dropout and the layer behind it" in str(
        audit(model, torch.ones(1, 2, 3)))
