"""What is LayerDrop's own: a layer that is not run, its test rule, networks that lose layers, distributed training."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropoutlib import LayerDrop, audit, compress, predict, propagate_moments
from dropoutlib.enumeration import distribution

X = torch.tensor([[0.4, -1.3], [1.1, -0.2]], dtype=torch.float64)


class Residual(nn.Module):
    """A layer with its own shortcut, which counts its calls."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.branch, self.calls = nn.Linear(width, width), 0

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return input + scale * self.branch(input).tanh()


@pytest.mark.parametrize(("mode", "rows"), [("batch", 1), ("row", 2)])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_moments_and_covariances_are_exact(mode: str, rows: int, p: float) -> None:
    layer = LayerDrop(Residual().double(), p, mode)
    law = distribution(lambda keep: layer(X, noise=keep), (rows, 1), p)
    added = layer.module(X) - X
    torch.testing.assert_close(law.mean(), X + (1 - p) * added, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mean(X), law.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(X), p * (1 - p) * added**2, rtol=0, atol=1e-12)
    products = torch.outer(added.flatten(), added.flatten())
    if mode == "row":
        products *= torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    torch.testing.assert_close(law.covariance(), p * (1 - p) * products, rtol=0, atol=1e-12)


def test_all_layers_run_in_evaluation_and_a_slice_is_the_pruned_network() -> None:
    layers = nn.Sequential(*(LayerDrop(Residual().double(), 0.9) for _ in range(4))).eval()
    expected, pruned = X, X
    for place, layer in enumerate(layers):
        expected = layer.module(expected)
        pruned = layer.module(pruned) if place % 2 == 0 else pruned
    assert torch.equal(layers(X), expected) and torch.equal(layers[::2](X), pruned)
    assert not torch.allclose(layers[0](X), layers[0].mean(X))


def test_a_layer_that_is_dropped_is_not_run() -> None:
    layer = LayerDrop(Residual(), 0.5)
    x, calls = torch.randn(8, 2), 0
    for _ in range(200):
        y = layer(x)
        assert y is x or layer.module.calls == calls + 1
        calls = layer.module.calls
    assert abs(calls - 100) < 6.5 * math.sqrt(50)


def test_without_skip_it_is_run_and_its_gradient_is_zero() -> None:
    x = torch.randn(8, 2)
    for skip, calls in ((True, 0), (False, 1)):
        layer = LayerDrop(Residual(), 0.5, skip=skip)
        (layer(x, noise=torch.tensor(0)) + layer.module.branch.weight.new_zeros(2).requires_grad_()).sum().backward()
        assert layer.module.calls == calls
        gradients = [parameter.grad for parameter in layer.parameters()]
        assert all(gradient is None for gradient in gradients) if skip else all(
            (gradient == 0).all() for gradient in gradients)


def test_rows_are_dropped_one_by_one() -> None:
    layer, x = LayerDrop(Residual(), 0.5, "row"), torch.randn(64, 2)
    keep = layer.draw(x)
    assert keep.shape == (64, 1) and 10 < keep.sum() < 54
    assert torch.equal(layer(x, noise=keep), torch.where(keep, layer.module(x), x))
    assert LayerDrop(Residual()).draw(x).shape == (1, 1)
    calls = layer.module.calls
    assert layer(x, noise=torch.zeros(64, 1)) is x and layer.module.calls == calls


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_dropped_does_not_matter(bad: float) -> None:
    layer, x = LayerDrop(Residual(), 0.5, skip=False), torch.randn(3, 2)
    nn.init.constant_(layer.module.branch.bias, bad)
    assert torch.equal(layer(x, noise=torch.tensor(0)), x)


def test_further_arguments_reach_the_layer() -> None:
    layer = LayerDrop(Residual(), 0.5)
    x, keep = torch.randn(3, 2), torch.tensor(1)
    for y in (layer(x, 3.0, noise=keep), layer(x, scale=3.0, noise=keep), layer.eval()(x, scale=3.0)):
        assert torch.equal(y, layer.module(x, 3.0))
    assert torch.equal(layer.mean(x, 3.0), layer.mean(x, scale=3.0))
    attention = LayerDrop(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 0.5)
    x, padding = torch.randn(3, 5, 4), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = True
    torch.testing.assert_close(attention(x, src_key_padding_mask=padding, noise=keep),
                               attention.module(x, src_key_padding_mask=padding))


class InFloat(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.float() + 1


def test_the_type_is_that_of_the_input_whatever_is_drawn() -> None:
    layer, x = LayerDrop(InFloat(), 0.5), torch.randn(3, 2, dtype=torch.bfloat16)
    assert {layer(x, noise=torch.tensor(keep)).dtype for keep in (0, 1)} == {layer.eval()(x).dtype} == {torch.bfloat16}


def test_the_draw_comes_before_those_of_the_layer() -> None:
    layer, x = LayerDrop(nn.Sequential(nn.Linear(8, 8), nn.Dropout()), 0.5), torch.randn(16, 8)
    for seed in range(4):
        torch.manual_seed(seed)
        y = layer(x)
        torch.manual_seed(seed)
        assert torch.equal(layer(x, noise=layer.draw(x)), y)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_drops_the_same_again(reentrant: bool) -> None:
    layers = nn.Sequential(*(LayerDrop(Residual(), 0.5) for _ in range(6)))
    x = torch.randn(4, 2, requires_grad=True)
    for seed in range(4):
        torch.manual_seed(seed)
        (expected,) = torch.autograd.grad(layers(x).square().sum(), x)
        torch.manual_seed(seed)
        x.grad = None
        checkpoint(lambda x: layers(x), x, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, expected)


def test_under_a_compiler_it_is_computed_and_left_out() -> None:
    torch._dynamo.reset()
    layer, x = LayerDrop(Residual(), 0.5), torch.randn(4, 2)
    compiled = torch.compile(lambda x, keep: layer(x, noise=keep), backend="aot_eager", fullgraph=True)
    for keep in (torch.tensor([[True]]), torch.tensor([[False]])):
        torch.testing.assert_close(compiled(x, keep), layer(x, noise=keep))
    mapped = torch.vmap(lambda x, keep: layer(x, noise=keep))
    keep = torch.tensor([True, False, True])
    torch.testing.assert_close(mapped(x.expand(3, 4, 2), keep[:, None, None])[1], x)


# Networks


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_how_many_layers_are_left(p: float) -> None:
    law = distribution(lambda keep: keep.sum()[None], (6,), p)
    for left in range(7):
        chance = law.probabilities[law.outputs[:, 0] == left].sum().item()
        assert math.isclose(chance, math.comb(6, left) * (1 - p)**left * p**(6 - left), abs_tol=1e-12)


def test_the_mean_of_a_linear_stack_is_not_the_test_network() -> None:
    """Between the pruned network of as many layers as are left on average, and the whole one."""
    p, slope = 0.5, 0.3
    layers = nn.Sequential(*(LayerDrop(nn.Linear(1, 1, bias=False), p) for _ in range(4))).double().eval()
    for layer in layers:
        nn.init.constant_(layer.module.weight, 1 + slope)
    x = torch.ones(1, 1, dtype=torch.float64)

    def network(keep: Tensor) -> Tensor:
        y = x
        for layer, one in zip(layers.train(), keep, strict=True):
            y = layer(y, noise=one.reshape(1, 1))
        return y

    mean = distribution(network, (4,), p).mean()
    torch.testing.assert_close(mean, (1 + (1 - p) * slope) ** 4 * x, rtol=0, atol=1e-12)
    assert layers.eval()[::2](x) < mean < layers(x)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_rate_that_draws_a_smaller_network_most_often(kept: int) -> None:
    """Of N layers: 1 - kept/N."""
    rates = torch.linspace(0, 1, 1001, dtype=torch.float64)
    chances = (1 - rates)**kept * rates**(4 - kept)
    assert math.isclose(rates[chances.argmax()].item(), 1 - kept / 4, abs_tol=1e-3)


class LayerDropModuleList(nn.ModuleList):
    """fairseq, fairseq/modules/layer_drop.py."""

    def __init__(self, p: float, modules: list[nn.Module]) -> None:
        super().__init__(modules)
        self.p = p

    def __iter__(self) -> Any:
        uniform = torch.empty(len(self)).uniform_()
        return (module for module, u in zip(super().__iter__(), uniform, strict=True)
                if not self.training or u > self.p)


def test_fairseq_has_the_same_networks() -> None:
    modules: list[nn.Module] = [Residual() for _ in range(3)]
    ours, theirs = [LayerDrop(module, 0.3) for module in modules], LayerDropModuleList(0.3, modules)
    x, networks = torch.randn(4, 2), {}
    for keep in itertools.product((0, 1), repeat=3):
        y = x
        for layer, one in zip(ours, keep, strict=True):
            y = layer(y, noise=torch.tensor(one))
        networks[keep] = y
    counts = dict.fromkeys(networks, 0)
    for _ in range(2000):
        y = x
        for layer in theirs:
            y = layer(y)
        counts[next(keep for keep, output in networks.items() if torch.equal(output, y))] += 1
    for keep, count in counts.items():
        chance = math.prod(0.7 if one else 0.3 for one in keep)
        assert abs(count - 2000 * chance) < 6.5 * math.sqrt(2000 * chance * (1 - chance))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.parametrize("skip", [True, False])
def test_distributed_training_misses_what_is_not_computed(skip: bool) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), LayerDrop(Residual(), 1.0, skip=skip), nn.Linear(2, 1))
        parallel, x = nn.parallel.DistributedDataParallel(model), torch.randn(4, 2)
        parallel(x).sum().backward()
        if skip:
            with pytest.raises(RuntimeError, match="find_unused_parameters"):
                parallel(x)
        else:
            parallel(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


# Arguments and tools


BAD = {
    "module": (lambda: LayerDrop(0.5), TypeError, r"module has to be a module, the layer, but got 0\.5"),
    "rate": (lambda: LayerDrop(Residual(), 1.5), ValueError, "1.5"),
    "mode": (lambda: LayerDrop(Residual(), mode="rows"), ValueError, "mode has to be 'row' or 'batch', but got 'rows'"),
    "skip": (lambda: LayerDrop(Residual(), skip=1), TypeError, "skip has to be True or False, but got 1"),
    "shape": (lambda: LayerDrop(nn.Linear(2, 3)).eval()(torch.ones(4, 2)), RuntimeError,
              r"output of the module has to be of the shape \(4, 2\) of the input, but got the shape \(4, 3\)"),
    "a pair": (lambda: LayerDrop(nn.LSTM(2, 2)).eval()(torch.ones(4, 2)), TypeError,
               "output of the module has to be a tensor, but got tuple"),
    "no axis": (lambda: LayerDrop(nn.Identity())(torch.tensor(1.0)), RuntimeError, r"\(N, ...\)"),
    "evaluation": (lambda: LayerDrop(Residual()).eval()(torch.ones(1, 2), noise=torch.tensor(1)), ValueError, "train"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_rate_is_read_at_every_call() -> None:
    layer, x = LayerDrop(Residual(), 0.5), torch.ones(4, 2)
    layer.p = 1.0
    assert layer(x) is x
    layer.p = 0.0
    assert torch.equal(layer(x), layer.module(x))
    assert "p=0.0, mode='batch', skip=True" in repr(layer)


def test_tools_know_it() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), LayerDrop(Residual(3)), nn.Linear(3, 2)), torch.randn(8, 3)
    assert not audit(model, x)
    with pytest.raises(NotImplementedError, match="LayerDrop"):
        propagate_moments(model, x)
    smaller, _ = compress(model.eval(), x)
    torch.testing.assert_close(smaller(x), model(x))
    assert not any(isinstance(module, LayerDrop) for module in smaller.modules())
    rows = nn.Sequential(nn.Linear(3, 3), LayerDrop(Residual(3), mode="row"), nn.Linear(3, 2)).eval()
    assert predict(rows, x, num_samples=50).variance.gt(0).all()


def _writes() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))


@pytest.mark.parametrize("options", [{}, {"skip": False}, {"mode": "row"}, {"mode": "row", "skip": False}])
@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: torch.compile(layer, backend="aot_eager")])
def test_a_layer_that_writes_into_its_input_is_dropped_as_another(options: dict[str, Any], wrap: Any) -> None:
    layer, x = LayerDrop(_writes(), 0.5, **options), torch.tensor([[-1.0, 2.0, -3.0], [4.0, -5.0, 6.0]])
    runs = layer.module[1](x.relu())
    by_row = layer.mode == "row"
    for keep in ([[0], [1]], [[1], [1]], [[0], [0]]) if by_row else ([[0]], [[1]]):
        mask = torch.tensor(keep)
        assert torch.equal(wrap(layer)(x.clone(), noise=mask), torch.where(mask.bool(), runs, x))
    if wrap(layer) is layer:
        torch.testing.assert_close(layer.mean(x.clone()), (x + runs) / 2)
        torch.testing.assert_close(layer.variance(x.clone()), ((x - runs) / 2).square())
