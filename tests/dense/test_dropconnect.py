"""What is DropConnect's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import nn

from dropoutlib import DropConnectConv1d, DropConnectConv2d, DropConnectLinear, Dropout, functional, moments
from dropoutlib.benchmark.timing import allocated
from dropoutlib.enumeration import distribution
from dropoutlib.noise import Bernoulli, Replay

P = 0.3


def layer_of(inputs: int, outputs: int, **arguments: object) -> DropConnectLinear:
    torch.manual_seed(1)
    return DropConnectLinear(inputs, outputs, dtype=torch.float64, **{"p": P, **arguments})


def of_weight_and_bias(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the weight, and in the last column those of the bias."""
    return keep[..., :-1], keep[..., -1]


def test_moments_and_independence_of_outputs_with_a_bias() -> None:
    """Two outputs of three weights and a bias each, over all 256 masks."""
    layer, x = layer_of(3, 2), torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    law = distribution(lambda keep: layer(x, noise=of_weight_and_bias(keep)), (1, 2, 4), P)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.covariance(), torch.diag(law.variance().flatten()), rtol=0, atol=1e-12)


def test_dropout_is_dropconnect_with_tied_columns() -> None:
    x, keep = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3) >= P
    layer = layer_of(3, 2, bias=False)
    tied = keep[:, None, :].expand(4, 2, 3)
    dropped = nn.functional.linear(Dropout(P)(x, noise=keep), layer.weight)
    torch.testing.assert_close(layer(x, noise=tied), dropped, rtol=0, atol=1e-14)


def test_sharing() -> None:
    """One mask for each element of the first axis, whatever lies between; or one for the batch."""
    x = torch.ones(4, 5, 6, dtype=torch.float64)
    y = layer_of(6, 8)(x)
    assert (y == y[:, :1]).all() and len(y[:, 0].unique(dim=0)) == 4
    y = layer_of(6, 8, sharing="batch")(x)
    assert (y == y[0, 0]).all()
    assert (layer_of(6, 8)(x[0, 0]) != layer_of(6, 8).eval()(x[0, 0])).any()


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("shape", [(5, 40), (3, 2, 40)])
def test_the_replayed_masks_are_those_of_the_formula(p: float, shape: tuple[int, ...], device: str) -> None:
    """Forward and all gradients in the chunked loop, against the masks drawn in full; small and large weights."""
    for outputs in (7, 300):
        torch.manual_seed(2)
        layer = DropConnectLinear(40, outputs, p=p, bias=False, dtype=torch.float64, device=device)
        x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        seed = torch.Generator(device).manual_seed(5)
        y = layer(x, generator=seed)
        masks = Replay(Bernoulli(p), layer.weight, shape[0], generator=seed.manual_seed(5))
        keep = torch.cat([part for _, part in masks])
        assert keep.shape == (shape[0], outputs, 40) and keep.any() and not keep.all()
        weight = layer.weight.detach().clone().requires_grad_()
        expected = torch.einsum("b...i,boi->b...o", x, torch.where(keep, weight / (1 - p), 0))
        torch.testing.assert_close(y, expected)
        cotangent = torch.randn_like(y)
        for actual, wanted in zip(torch.autograd.grad(y, [x, layer.weight], cotangent),
                                  torch.autograd.grad(expected, [x, weight], cotangent), strict=True):
            torch.testing.assert_close(actual, wanted)


def test_masks_of_a_chunk_and_of_examples_are_different() -> None:
    keep = torch.cat([part for _, part in Replay(Bernoulli(0.5), torch.empty(100, 100), 20)])
    assert len(keep.flatten(1).unique(dim=0)) == 20


def test_extra_memory_is_at_most_three_weights() -> None:
    x = torch.randn(64, 512, requires_grad=True)
    weight_bytes = 512 * 512 * 4

    def peak(module: nn.Linear) -> int:
        return allocated(module, x, list(module.parameters())).peak

    for p in (0.5, 0.3):
        extra = peak(DropConnectLinear(512, 512, p=p)) - peak(nn.Linear(512, 512))
        assert 0 < extra <= 3 * weight_bytes, extra / weight_bytes


def test_a_dropped_weight_leaves_nothing_behind(device: str) -> None:
    for size in (4, 200):
        layer = DropConnectLinear(size, size, bias=True, device=device)
        keep = torch.rand(3, size, size + 1, device=device) >= 0.5
        keep[:, 0, 0] = keep[:, 1, -1] = False
        with torch.no_grad():
            layer.weight[0, 0] = math.inf
            layer.bias[1] = math.nan
        y = layer(torch.ones(3, size, device=device), noise=of_weight_and_bias(keep))
        y.sum().backward()
        assert y.isfinite().all()
        assert layer.weight.grad.isfinite().all() and layer.weight.grad[0, 0] == 0 and layer.bias.grad[1] == 0


ACTIVATIONS = {"none": None, "relu": torch.relu, "module": nn.ReLU(), "sigmoid": torch.sigmoid, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gaussian_inference_is_the_mean_of_the_activation(activation) -> None:
    """Against the exact mean over all masks: near for the Gaussian, farther for the activation of the mean."""
    x = torch.linspace(0.5, 1.5, 11, dtype=torch.float64)[None]
    layer = layer_of(11, 1, bias=False, activation=activation, p=0.5)
    with torch.no_grad():
        layer.weight.fill_(0.35)
        layer.weight[0, ::2] = -0.25
    exact = distribution(lambda keep: layer(x, noise=keep), (1, 1, 11), 0.5).mean()
    gaussian, layer.inference = layer.eval()(x), "mean"
    assert abs(gaussian - exact) <= 0.01
    if activation is not None:
        assert abs(gaussian - exact) < abs(layer(x) - exact)
    torch.testing.assert_close(layer.mean(x), gaussian)


def test_the_variance_of_an_activation() -> None:
    x = torch.randn(2, 12, dtype=torch.float64)
    for activation in (torch.relu, torch.sigmoid, torch.tanh):
        layer = layer_of(12, 3, activation=activation)
        value = moments.Moments(*(getattr(layer_of(12, 3), name)(x) for name in ("mean", "variance")))
        draws = activation(value.mean + value.variance.sqrt() * torch.randn(200_000, 2, 3, dtype=torch.float64))
        torch.testing.assert_close(layer.variance(x), draws.var(0), rtol=0.05, atol=2e-3)


def test_sampled_inference() -> None:
    layer = layer_of(6, 4, activation=torch.relu, inference="sampled", num_samples=20_000).eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.manual_seed(0)
    sampled = layer(x)
    error = (layer.variance(x) / 20_000).sqrt()
    assert ((sampled - layer.mean(x)).abs() <= 6.5 * error + 1e-12).all()
    generator = torch.Generator()
    assert torch.equal(layer(x, generator=generator.manual_seed(1)), layer(x, generator=generator.manual_seed(1)))
    layer.num_samples = 2
    noise = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)]).double()
    mean, std = layer_of(6, 4).mean(x), layer_of(6, 4).variance(x).sqrt()
    torch.testing.assert_close(layer(x, noise=noise), (torch.relu(mean) + torch.relu(mean + std)) / 2)


def test_trained_weights_of_linear_mean_the_same() -> None:
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer = DropConnectLinear(5, 3)
    layer.load_state_dict(linear.state_dict())
    torch.testing.assert_close(layer.eval()(x), linear(x))
    assert list(layer.state_dict()) == list(linear.state_dict())


def test_functional_twin() -> None:
    layer, x = layer_of(5, 3, activation=torch.tanh), torch.randn(4, 5, dtype=torch.float64)
    keep = of_weight_and_bias(torch.rand(4, 3, 6) >= P)
    twin = functional.drop_connect_linear(x, layer.weight, layer.bias, P, activation=torch.tanh, noise=keep)
    torch.testing.assert_close(twin, layer(x, noise=keep), rtol=0, atol=0)
    twin = functional.drop_connect_linear(x, layer.weight, layer.bias, P, False, activation=torch.tanh)
    torch.testing.assert_close(twin, layer.eval()(x), rtol=0, atol=0)


def test_gradients_with_a_bias_and_an_activation() -> None:
    layer, keep = layer_of(4, 3, activation=torch.tanh), of_weight_and_bias(torch.rand(2, 3, 5) >= P)

    def function(x, weight, bias):
        return functional.drop_connect_linear(x, weight, bias, P, activation=torch.tanh, noise=keep)

    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))
    for rule in ("gaussian", "mean"):
        layer.inference = rule
        assert torch.autograd.gradcheck(layer.eval(), x)


BAD = {
    "inference": (lambda: DropConnectLinear(2, 2, inference="exact"), r"inference.*'exact'"),
    "sharing": (lambda: DropConnectLinear(2, 2, sharing="element"), r"sharing.*'element'"),
    "num_samples": (lambda: DropConnectLinear(2, 2, num_samples=0), r"num_samples.*0"),
    "noise of the output": (lambda: DropConnectLinear(2, 3, bias=False)(torch.ones(4, 2), noise=torch.ones(4, 3)),
                            r"noise.*\(4, 3, 2\).*\(4, 3\)"),
    "noise of another weight": (
        lambda: DropConnectLinear(2, 3)(torch.ones(4, 2), noise=(torch.ones(4, 3, 3), torch.ones(4, 3))),
        r"noise.*\(4, 3, 2\).*\(4, 3, 3\)"),
    "scaled noise": (lambda: DropConnectLinear(2, 3)(
        torch.ones(4, 2), noise=of_weight_and_bias(2 * torch.ones(4, 3, 3))), "noise.*0 .*1"),
}


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_nested_tensors_with_any_activation() -> None:
    parts = [torch.rand(3, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    layer = layer_of(4, 3, activation=torch.tanh, sharing="batch").eval()
    for call in (layer, layer.mean, layer.variance):
        for of_nested, part in zip(call(x).unbind(), parts, strict=True):
            torch.testing.assert_close(of_nested, call(part))
    layer.inference = "sampled"
    for call in (layer, layer.draw):
        with pytest.raises(RuntimeError, match=r"inference='sampled'.*nested tensor"):
            call(x)


def test_shapes_and_types_that_do_not_fit_are_named() -> None:
    layer = DropConnectLinear(4, 3)
    with pytest.raises(TypeError, match=r"noise has to be a pair, the masks of the weight and of the bias.*Tensor"):
        layer(torch.ones(2, 4), noise=torch.ones(2, 3, 4))
    for words, call in (
            (r"4 features.*\(3, 4\).*\(2, 5\)", lambda: layer(torch.ones(2, 5))),
            (r"float32, but got torch.float64", lambda: layer(torch.ones(2, 4).double())),
            (r"weight.*\(out, in\).*\(4,\)", lambda: functional.drop_connect_linear(torch.ones(4), torch.ones(4)))):
        with pytest.raises(RuntimeError, match=words):
            call()
    with pytest.raises(TypeError, match=r"weight has to be a tensor.*None"):
        functional.drop_connect_linear(torch.ones(4), None)
    for activation in ("relu", 1, nn.ReLU):
        with pytest.raises(TypeError, match=f"activation.*{getattr(activation, '__name__', activation)}"):
            DropConnectLinear(4, 3, activation=activation)


@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid, torch.tanh])
@pytest.mark.parametrize("inference", ["gaussian", "sampled"])
def test_the_test_rule_survives_squares_that_float16_cannot_hold(activation, inference) -> None:
    layer = DropConnectLinear(16, 2, activation=activation, inference=inference).eval()
    with torch.no_grad():
        layer.weight.fill_(0.01)
        layer.bias.zero_()
    x, noise = torch.full((1, 16), 300.0), torch.randn(100, 1, 2) if inference == "sampled" else None
    expected = layer(x, noise=noise)
    torch.testing.assert_close(layer.half()(x.half(), noise=noise).float(), expected, rtol=2e-3, atol=2e-3)


def test_autocast_gives_its_type_with_a_bias_too() -> None:
    x = torch.rand(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for sharing in ("sample", "batch"):
            layer = DropConnectLinear(4, 2, sharing=sharing)
            assert layer(x).dtype == layer.eval()(x).dtype == torch.bfloat16


def test_the_readme_layer_compiles_in_evaluation() -> None:
    torch._dynamo.reset()
    layer = DropConnectLinear(6, 4, activation=torch.relu).eval()
    x = torch.randn(3, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


# Convolutions


CONVOLUTIONS = {
    "of a sequence": (lambda **more: DropConnectConv1d(2, 4, 3, padding="same", groups=2, **more), (2, 2, 5)),
    "with strides": (lambda **more: DropConnectConv2d(2, 3, (3, 2), 2, 1, **more), (2, 2, 5, 4)),
    "dilated": (lambda **more: DropConnectConv2d(2, 3, 2, dilation=2, bias=False, **more), (3, 2, 4, 5)),
    "reflected": (lambda **more: DropConnectConv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect", **more),
                  (2, 2, 4, 5)),
    "without padding": (lambda **more: DropConnectConv1d(2, 2, 2, padding="valid", **more), (1, 2, 5))}


def convolution_of(name: str, **arguments: object) -> tuple[nn.Module, torch.Tensor]:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(1)
    return make(dtype=torch.float64, **{"p": P, **arguments}), torch.randn(shape, dtype=torch.float64)


def plainly(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What torch's convolution of this geometry gives with other weights."""
    return layer._conv_forward(x, weight, bias)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_each_example_has_its_own_filters(name: str) -> None:
    """Values and gradients: those of torch's convolution, example by example, with the masked weights."""
    layer, x = convolution_of(name)
    x.requires_grad_()
    noise = layer.draw(x)
    keep, keep_bias = noise if layer.bias is not None else (noise, None)
    assert keep.shape == (len(x), *layer.weight.shape) and len(keep.flatten(1).unique(dim=0)) == len(x)
    expected = torch.cat([plainly(
        layer, x[i:i + 1], layer.weight * keep[i] / (1 - P),
        None if keep_bias is None else layer.bias * keep_bias[i] / (1 - P)) for i in range(len(x))])
    y = layer(x, noise=noise)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    gradient, leaves = torch.randn_like(y), [x, *layer.parameters()]
    for got, wanted in zip(torch.autograd.grad(y, leaves, gradient), torch.autograd.grad(expected, leaves, gradient),
                           strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_moments_of_a_convolution_over_all_masks() -> None:
    """Two filters of two weights and a bias each: 64 masks; positions share them, filters do not."""
    torch.manual_seed(1)
    layer, x = DropConnectConv1d(1, 2, 2, p=P, dtype=torch.float64), torch.randn(1, 1, 3, dtype=torch.float64)
    law = distribution(lambda keep: layer(x, noise=(keep[..., :2].reshape(1, 2, 1, 2), keep[..., 2])), (1, 2, 3), P)
    torch.testing.assert_close(layer.mean(x), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)
    covariance = law.covariance()
    assert covariance[:2, 2:].abs().max() < 1e-12 < covariance[0, 1].abs()
    for inference in ("gaussian", "mean"):
        layer.inference = inference
        torch.testing.assert_close(layer.eval()(x), law.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_mask_for_the_batch_of_a_convolution(name: str) -> None:
    layer, x = convolution_of(name, sharing="batch")
    noise = layer.draw(x)
    keep, keep_bias = noise if layer.bias is not None else (noise, None)
    assert keep.shape == layer.weight.shape
    expected = plainly(layer, x, layer.weight * keep / (1 - P),
                       None if keep_bias is None else layer.bias * keep_bias / (1 - P))
    torch.testing.assert_close(layer(x, noise=noise), expected, rtol=0, atol=1e-12)
    if name != "reflected":  # torch pads no single example so
        torch.testing.assert_close(layer(x[0], noise=noise), expected[0], rtol=0, atol=1e-12)


def test_a_convolution_averages_its_activation_as_the_linear_layer_does() -> None:
    """A filter as large as the map is a linear layer."""
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for activation, inference in ((torch.relu, "gaussian"), (torch.tanh, "gaussian"), (torch.relu, "mean"),
                                  (torch.relu, "sampled")):
        conv, linear = DropConnectConv1d(2, 5, 3, p=P, dtype=torch.float64), layer_of(6, 5)
        for layer in (conv, linear):
            layer.activation, layer.inference = activation, inference
        with torch.no_grad():
            linear.weight.copy_(conv.weight.flatten(1))
            linear.bias.copy_(conv.bias)
        noise = torch.randn(100, 4, 5, dtype=torch.float64) if inference == "sampled" else None
        y = conv.eval()(x, noise=noise if noise is None else noise.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(y, linear.eval()(x.flatten(1), noise=noise), rtol=0, atol=1e-12)
        torch.testing.assert_close(conv.variance(x).squeeze(-1), linear.variance(x.flatten(1)), rtol=0, atol=1e-12)


def test_an_empty_batch_and_all_weights_dropped() -> None:
    layer = DropConnectConv2d(2, 3, 2)
    y = layer(torch.ones(0, 2, 4, 4))
    assert y.shape == (0, 3, 3, 3)
    y.sum().backward()
    assert not layer.weight.grad.any() and not layer.bias.grad.any()
    layer.p = 1.0
    assert not layer(torch.ones(2, 2, 4, 4)).any() and not layer.eval()(torch.ones(2, 2, 4, 4)).any()


@pytest.mark.parametrize("batch", [6, 5])
def test_an_activation_may_have_a_parameter_for_each_channel(batch: int) -> None:
    """Samples must not be taken for its channels; the batch may have as many examples as there are channels."""
    activation = nn.PReLU(6, dtype=torch.float64)
    with torch.no_grad():
        activation.weight.copy_(torch.linspace(-1, 1, 6))
    for layer, shape in ((DropConnectLinear(4, 6, p=P, dtype=torch.float64), (batch, 4)),
                         (DropConnectConv1d(2, 6, 3, p=P, dtype=torch.float64), (batch, 2, 5)),
                         (DropConnectConv2d(2, 6, 2, p=P, dtype=torch.float64), (batch, 2, 3, 4))):
        layer.activation, layer.inference, layer.num_samples = activation, "sampled", 3
        x = torch.randn(shape, dtype=torch.float64)
        noise = torch.randn(3, *layer.mean(x).shape, dtype=torch.float64)
        layer.activation = None
        mean, deviation = layer.mean(x), layer.variance(x).sqrt()
        layer.activation = activation
        expected = sum(activation(mean + deviation * one) for one in noise) / 3
        torch.testing.assert_close(layer.eval()(x, noise=noise), expected, rtol=0, atol=1e-12)
        assert layer(x[:0]).shape == expected[:0].shape


@pytest.mark.parametrize("sharing", ["sample", "batch"])
def test_a_training_convolution_is_exported_for_any_batch(sharing: str) -> None:
    layer = DropConnectConv2d(4, 6, 3, sharing=sharing)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (torch.randn(3, 4, 7, 6),), dynamic_shapes=({0: batch},)).module()
    assert exported(torch.randn(5, 4, 7, 6)).shape == (5, 6, 5, 4)


def test_a_wrong_bias_of_a_convolution_is_named() -> None:
    for bias, message in ((torch.ones(3), r"bias has to be of shape \(4,\) .* but got the shape \(3,\)"),
                          (torch.ones(4, dtype=torch.float64), "bias has to be of the type of the weight")):
        with pytest.raises(RuntimeError, match=message):
            functional.drop_connect_conv2d(torch.ones(2, 3, 4, 4), torch.ones(4, 3, 3, 3), bias)
        with pytest.raises(RuntimeError, match=message):
            functional.drop_connect_linear(torch.ones(2, 3), torch.ones(4, 3), bias)


def test_a_variance_under_autocast_is_as_wide_as_the_input() -> None:
    layer, x = DropConnectLinear(6, 3), 1000 * torch.ones(4, 6)
    expected = layer.variance(x)
    assert expected.max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(layer.variance(x), expected)
    assert layer.half().variance(x.half() / 1000).dtype == torch.float16


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.parametrize("dynamic", [
    False, pytest.param(True, marks=pytest.mark.xfail(strict=True, reason="inductor, open sizes and groups"))])
def test_a_compiled_convolution_takes_images_of_several_sizes(dynamic: bool) -> None:
    """When the second one passes, the note on it in the documentation can go."""
    torch._dynamo.reset()
    layer = DropConnectConv2d(3, 4, 3, padding=1)
    compiled = torch.compile(layer, dynamic=dynamic)
    for size in (8, 11):
        compiled(torch.ones(2, 3, size, size)).sum().backward()
    assert layer.weight.grad.isfinite().all()
