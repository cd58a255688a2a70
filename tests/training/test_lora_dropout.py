"""LoRA dropout: the noise of the adapter alone, its rank and its penalty, merging, and dropout of rows elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib import LoRALinear, audit, compress, functional, predict, propagate_moments, replace
from dropoutlib.enumeration import distribution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(rank: int = 2, p: float = 0.3, outputs: int = 4, alpha: float = 3.0) -> LoRALinear:
    """A layer of five inputs whose adapter adds something."""
    layer = LoRALinear(5, outputs, rank=rank, alpha=alpha, p=p, dtype=torch.float64)
    nn.init.normal_(layer.lora_B)
    return layer


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_mean_and_covariance_are_those_of_the_chapter(p: float) -> None:
    """p/(1 - p) s^2 B A diag(x^2) A^T B^T around the output of the merged weight."""
    layer, x = made(p=p).requires_grad_(False), random(5)
    law = distribution(lambda keep: layer(x, noise=keep), (5,), p)
    merged = layer.weight + 1.5 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.update(), merged - layer.weight, rtol=0, atol=1e-12)
    for mean in (law.mean(), layer.mean(x), layer.eval()(x), layer.merge()(x)):
        torch.testing.assert_close(mean, F.linear(x, merged, layer.bias), rtol=0, atol=1e-12)
    noisy = layer.update() * x
    torch.testing.assert_close(law.covariance(), p / (1 - p) * noisy @ noisy.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x), law.variance(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_noise_has_as_many_directions_as_the_rank(rank: int) -> None:
    layer, x = made(rank, outputs=6).requires_grad_(False), random(5)
    law = distribution(lambda keep: layer(x, noise=keep), (5,), 0.3)
    values = torch.linalg.eigvalsh(law.covariance())
    assert (values > 1e-9).sum() == rank and values[:-rank].abs().max() < 1e-12


def test_the_frozen_weight_sees_everything_and_the_adapter_what_is_kept() -> None:
    layer, x, keep = made(), random(7, 5), torch.rand(7, 5) < 0.5
    adapter = F.linear(torch.where(keep, x / 0.7, 0), layer.lora_A)
    torch.testing.assert_close(layer(x, noise=keep), F.linear(x, layer.weight, layer.bias)
                               + 1.5 * F.linear(adapter, layer.lora_B), rtol=0, atol=1e-12)
    layer.p = 1.0
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.mean(x), layer(x)) and not layer.variance(x).any()


def test_the_gradient_of_the_input_knows_the_mask() -> None:
    """Where an input of the adapter is dropped the frozen weight alone has a gradient."""
    layer, x = made(), random(5).requires_grad_()
    layer(x, noise=torch.tensor([1, 0, 1, 0, 1])).sum().backward()
    frozen, adapter = layer.weight.sum(0), layer.update().sum(0).detach() / 0.7
    torch.testing.assert_close(x.grad, frozen + adapter * torch.tensor([1, 0, 1, 0, 1]), rtol=0, atol=1e-12)


def test_the_expected_loss_is_that_of_the_merged_layer_and_a_penalty_on_the_adapter() -> None:
    layer, x, target, p = made(outputs=1).requires_grad_(False), random(5), 0.7, 0.3
    law = distribution(lambda keep: (layer(x, noise=keep) - target).square(), (5,), p)
    penalty = p / (1 - p) * (x * layer.update()).square().sum()
    torch.testing.assert_close(law.mean(), (layer.merge()(x) - target).square().detach() + penalty, rtol=0, atol=1e-12)


def test_it_begins_as_the_frozen_layer_without_noise() -> None:
    linear = nn.Linear(5, 4)
    layer, x = LoRALinear.from_linear(linear, p=0.5), torch.randn(3, 5)
    assert torch.equal(layer(x), linear(x)) and not layer.variance(x).any()
    assert not layer.weight.requires_grad and not layer.bias.requires_grad
    (layer(x).square()).sum().backward()
    assert layer.weight.grad is None and layer.lora_A.grad.abs().max() == 0 and layer.lora_B.grad.abs().max() > 0
    twin = LoRALinear.from_linear(nn.Linear(5, 4), p=0.5)
    assert not torch.equal(layer.lora_A, twin.lora_A), "every layer has an A of its own"
    nn.init.ones_(layer.lora_B)
    layer.reset_parameters()
    assert not layer.lora_B.any() and not layer.weight.requires_grad


def test_the_weights_of_a_plain_layer_load_and_mean_the_same() -> None:
    linear, layer, x = nn.Linear(5, 4), LoRALinear(5, 4, rank=2), torch.randn(3, 5)
    nn.init.normal_(layer.lora_B)
    before = linear.state_dict()
    layer.load_state_dict(before)
    assert torch.equal(layer(x), linear(x)) and layer.lora_A.any() and list(before) == ["weight", "bias"]
    nn.init.normal_(layer.lora_B)
    twin = LoRALinear(5, 4, rank=2)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer.eval()(x)) and not twin.weight.requires_grad
    with pytest.raises(RuntimeError, match="lora_A"):
        layer.load_state_dict({**before, "lora_B": layer.lora_B})


def test_what_inference_mode_assigned_can_be_trained() -> None:
    layer, plain = LoRALinear(5, 4, rank=2), nn.Linear(5, 4)
    before, state = layer.lora_A.detach().clone(), torch.get_rng_state()
    with torch.inference_mode():
        layer.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(layer.lora_A, before) and torch.equal(torch.get_rng_state(), state)
    layer(torch.ones(2, 5)).sum().backward()
    assert layer.lora_B.grad is not None


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_of_a_plain_layer_can_be_assigned(device: str, dtype: torch.dtype) -> None:
    plain, x = nn.Linear(5, 4, dtype=dtype), random(3, 5).to(dtype)
    model = nn.Sequential(LoRALinear(5, 4, rank=2, device=device))
    assert str(model.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()}, assign=True)
               ) == "<All keys matched successfully>"
    layer = model[0]
    assert {(part.device.type, part.dtype) for part in layer.parameters()} == {("cpu", dtype)}
    assert torch.equal(model.eval()(x), plain(x)) and layer.lora_A.std() > 0.1
    assert layer.lora_A.requires_grad and layer.lora_B.requires_grad
    model.train()(x).sum().backward()
    assert layer.lora_B.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [True, False])
def test_merging_gives_a_plain_layer_that_can_be_trained(bias: bool) -> None:
    layer = LoRALinear(5, 4, bias=bias, rank=2)
    nn.init.normal_(layer.lora_B)
    merged, x = layer.eval().merge(), torch.randn(3, 5)
    assert type(merged) is nn.Linear and not merged.training
    torch.testing.assert_close(merged(x), layer(x))
    assert all(parameter.requires_grad for parameter in merged.parameters()) and (merged.bias is not None) is bias
    assert not bias or merged.bias.data_ptr() != layer.bias.data_ptr()


def of_peft(x: Tensor, layer: LoRALinear, keep: Tensor) -> Tensor:
    """result + lora_B(lora_A(dropout(x))) * scaling"""
    return layer.weight @ x + layer.bias + (layer.lora_B @ (layer.lora_A @ (x * keep / 0.7))) * 1.5


def test_it_is_the_lora_dropout_of_peft() -> None:
    layer, x = made(), random(5)
    for keep in (torch.rand(5) < 0.5 for _ in range(8)):
        torch.testing.assert_close(layer(x, noise=keep), of_peft(x, layer, keep), rtol=0, atol=1e-12)


def test_dropped_rows_of_peft_are_biased_or_undefined_when_none_is_left() -> None:
    """Factors of rows as LoKr has them by default, and divided by their mean as in LoHa."""
    p, rows = 0.3, 4
    raw = distribution(lambda keep: keep, (rows,), p)
    torch.testing.assert_close(raw.mean(), torch.full((rows,), 1 - p, dtype=torch.float64), rtol=0, atol=1e-12)
    scaled = distribution(lambda keep: keep / keep.mean(), (rows,), p)
    undefined = scaled.outputs.isnan().any(1)
    torch.testing.assert_close(scaled.probabilities[undefined].sum(), torch.tensor(p**rows, dtype=torch.float64))
    left = scaled.probabilities[~undefined]
    torch.testing.assert_close(left @ scaled.outputs[~undefined] / left.sum(), torch.ones(rows, dtype=torch.float64),
                               rtol=0, atol=1e-12)


def test_bad_arguments() -> None:
    for rank, kind, words in ((0, ValueError, "rank has to be at least 1, but got 0"),
                              (0.5, TypeError, r"rank has to be a whole number, but got 0\.5")):
        with pytest.raises(kind, match=words):
            LoRALinear(5, 4, rank=rank)
    with pytest.raises(TypeError, match="alpha has to be a real number, but got '8'"):
        LoRALinear(5, 4, alpha="8")
    with pytest.raises(TypeError, match=r"bias has to be True or False, but got 0\.1"):
        LoRALinear(5, 4, 0.1)
    x, weight, lora_A, lora_B = (torch.ones(*shape) for shape in ((2, 5), (4, 5), (3, 5), (4, 3)))
    for training in (True, False):
        for factors, words in (
                ((torch.ones(3, 4), lora_B), r"lora_A has to be of shape \(rank, 5\).*got the shape \(3, 4\)"),
                ((torch.ones(5), lora_B), r"lora_A has to be of shape \(rank, 5\).*got the shape \(5,\)"),
                ((lora_A, torch.ones(3, 4)), r"lora_B has to be of shape \(4, 3\).*got the shape \(3, 4\)"),
                ((lora_A.double(), lora_B), "lora_A has to be of the type of the weight.*float64"),
                ((lora_A, lora_B.half()), "lora_B has to be of the type of the weight.*float16")):
            with pytest.raises(RuntimeError, match=words):
                functional.lora_linear(x, weight, *factors, training=training)
        with pytest.raises(TypeError, match="lora_B has to be a tensor, but got float"):
            functional.lora_linear(x, weight, lora_A, 1.0, training=training)
        with pytest.raises(TypeError, match="scale has to be a real number"):
            functional.lora_linear(x, weight, lora_A, lora_B, None, "2", training=training)
        with pytest.raises(RuntimeError, match="input has to have 5 features"):
            functional.lora_linear(x[:, :4], weight, lora_A, lora_B, training=training)


def test_half_precision_does_not_overflow_in_the_variance() -> None:
    layer = LoRALinear(4, 3, rank=2, p=0.5, dtype=torch.float16)
    nn.init.constant_(layer.lora_B, 0.05)
    x = torch.full((4,), 300.0, dtype=torch.float16)    # its square is no float16
    exact = LoRALinear(4, 3, rank=2, p=0.5, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.variance(x).double(), exact.variance(x.double()), rtol=0.02, atol=0)


def test_tools_know_the_layer() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    head = model[2].weight
    model = replace(model, {nn.Linear: lambda old: LoRALinear.from_linear(old, rank=2, p=0.5)})
    assert model[2].weight is head
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.lora_B)
    x = torch.randn(8, 5)
    assert not audit(model, x)
    findings = audit(nn.Sequential(model[0], nn.BatchNorm1d(6)), x)
    assert [finding.kind for finding in findings] == ["dropout before batch norm"]
    block = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
    replace(block, {nn.Linear: LoRALinear.from_linear}, ["linear1"])
    assert any(finding.kind == "weights that torch takes" for finding in audit(block, torch.randn(2, 3, 4)))
    assert predict(model.eval(), x, num_samples=30).variance.gt(0).all()
    with pytest.raises(NotImplementedError, match="LoRALinear"):
        propagate_moments(model, x)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0], model[0].lora_B[0] = 0, -1, 0
    smaller = compress(model, x)
    assert smaller.model[0].out_features == 5
    torch.testing.assert_close(smaller.model(x), model(x))
    plain = replace(model, {LoRALinear: LoRALinear.merge})
    assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_rate_that_is_no_probability_is_named() -> None:
    layer = LoRALinear(5, 4)
    layer.p = math.nan
    for call in (layer, layer.draw, layer.mean, layer.variance):
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got nan"):
            call(torch.ones(5))
