"""What is weight drop's own; the contract of every recurrent layer is in tests/contract/test_recurrent.py."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import WeightDropGRU, WeightDropLSTM
from dropoutlib.enumeration import distribution, masks

P = 0.3
LAYERS = {"LSTM": WeightDropLSTM, "GRU": WeightDropGRU}
GATES = {"LSTM": 4, "GRU": 3}
kinds = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer_of(kind: str, inputs: int = 3, units: int = 4, **options: Any) -> Any:
    return LAYERS[kind](inputs, units, dtype=torch.float64, **{"p": P, **options})


def linear_gru(weight: Tensor) -> WeightDropGRU:
    """A GRU that computes tanh(U h): its reset gate is 1, its update gate 0, and it reads no input."""
    size = len(weight)
    layer = WeightDropGRU(1, size, p=P, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_hh_l0[2 * size:] = weight
        layer.bias_ih_l0[:2 * size] = 1e4
        layer.bias_ih_l0[size:2 * size] *= -1
    return layer


def of_candidate(keep: Tensor) -> Tensor:
    """A mask of the candidate's weights; the saturated gates are kept."""
    return torch.cat([torch.ones(2 * len(keep), keep.shape[1], dtype=keep.dtype), keep])[None]


def step_by_step(kind: str, x: Tensor, weights: dict[str, Tensor], hh: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    """The recursion with its cell of torch, one call a step, with the recurrent weights given."""
    outputs = []
    for read in x:
        gates = weights["weight_ih_l0"], hh, weights["bias_ih_l0"], weights["bias_hh_l0"]
        if kind == "LSTM":
            state = torch._VF.lstm_cell(read, state, *gates)
        else:
            state = (torch._VF.gru_cell(read, state[0], *gates),)
        outputs.append(state[0])
    return torch.stack(outputs)


# The law


def test_one_step_over_all_masks() -> None:
    """Mean U h, covariance p/(1 - p) sum U^2 h h' of a unit in two examples, and none of two units."""
    weight, states = torch.randn(2, 3, dtype=torch.float64) / 4, torch.randn(2, 3, dtype=torch.float64)
    weight = torch.cat([weight, torch.zeros(1, 3, dtype=torch.float64)])
    layer, silence = linear_gru(weight), torch.zeros(1, 2, 1, dtype=torch.float64)
    law = distribution(lambda keep: layer(silence, states[None], noise=of_candidate(keep))[0][0, :, :2].atanh(),
                       (3, 3), P)
    torch.testing.assert_close(law.mean(), states @ weight[:2].T, rtol=0, atol=1e-12)
    expected = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    for (i, h), (k, other), a in itertools.product(enumerate(states), enumerate(states), range(2)):
        expected[i, a, k, a] = P / (1 - P) * (weight[a]**2 * h * other).sum()
    torch.testing.assert_close(law.covariance(), expected.reshape(4, 4), rtol=0, atol=1e-12)


def test_the_average_of_a_batch_is_one_example_with_the_average_state() -> None:
    weight, states = torch.randn(3, 3, dtype=torch.float64) / 4, torch.randn(5, 3, dtype=torch.float64)
    layer, silence = linear_gru(weight), torch.zeros(1, 5, 1, dtype=torch.float64)
    law = distribution(lambda keep: layer(silence, states[None], noise=of_candidate(keep))[0][0].atanh().mean(0),
                       (3, 3), P)
    expected = P / (1 - P) * (weight**2 @ states.mean(0)**2)
    torch.testing.assert_close(law.variance(), expected, rtol=0, atol=1e-12)


def test_powers_of_one_mask_over_time() -> None:
    """A linear unit: mean u^t/(1 - p)^(t - 1), variance p u^(2t)/(1 - p)^(2t - 1)."""
    u, t = 0.9, torch.arange(1, 7, dtype=torch.float64)
    layer = linear_gru(torch.tensor([[u]], dtype=torch.float64))
    silence, start = torch.zeros(6, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), 1e-7, dtype=torch.float64)
    law = distribution(lambda keep: layer(silence, start, noise=of_candidate(keep))[0].flatten() * 1e7, (1, 1), P)
    torch.testing.assert_close(law.mean(), u**t / (1 - P)**(t - 1), rtol=1e-12, atol=0)
    torch.testing.assert_close(law.variance(), P * u**(2 * t) / (1 - P)**(2 * t - 1), rtol=1e-12, atol=0)


def test_after_two_steps_only_the_diagonal_is_off() -> None:
    weight = torch.randn(3, 3, dtype=torch.float64) / 3
    layer, silence = linear_gru(weight), torch.zeros(2, 3, 1, dtype=torch.float64)
    start = 1e-7 * torch.eye(3, dtype=torch.float64)[None]
    law = distribution(lambda keep: layer(silence, start, noise=of_candidate(keep))[0][1].T * 1e7, (3, 3), P)
    expected = weight @ weight + P / (1 - P) * weight.diag().square().diag()
    torch.testing.assert_close(law.mean(), expected, rtol=0, atol=1e-12)


@kinds
def test_the_test_rule_is_the_mean_in_no_later_step(kind: str) -> None:
    """Over all masks of two units: without noise in the first step, and off in the third."""
    layer, x = layer_of(kind, 2, 2), torch.randn(3, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(4)
        every = masks(1, GATES[kind] * 2, 2)
        chances = ((1 - P)**every * P**(1 - every)).flatten(1).prod(1)
        outputs = torch.vmap(lambda keep: layer(x, noise=keep)[0], chunk_size=8192)(every)
        mean = torch.tensordot(chances, outputs, 1)
        gap = (mean - layer.eval()(x)[0]).abs().amax((1, 2))
    assert (outputs[:, 0] == outputs[0, 0]).all() and gap[0] < 1e-12 and gap[2] > 1e-4


# The mask


@kinds
def test_one_mask_for_all_steps_and_examples(kind: str, device: str) -> None:
    layer = layer_of(kind, device=device)
    x = torch.randn(6, 5, 3, dtype=torch.float64, device=device)
    keep = layer.draw(x)
    assert keep.shape == (1, GATES[kind] * 4, 4) and keep.any() and not keep.all()
    weights = dict(layer.named_parameters())
    dropped = torch.where(keep[0].bool(), weights["weight_hh_l0"] / (1 - P), 0)
    state = torch.zeros(5, 4, dtype=torch.float64, device=device)
    expected = step_by_step(kind, x, weights, dropped, (state, state))
    torch.testing.assert_close(layer(x, noise=keep)[0], expected, rtol=0, atol=1e-12)


@kinds
def test_layers_and_directions_have_masks_of_their_own(kind: str) -> None:
    layer = layer_of(kind, num_layers=2, bidirectional=True)
    keep = layer.draw(torch.zeros(2, 1, 3, dtype=torch.float64))
    assert keep.shape == (4, GATES[kind] * 4, 4) and len(keep.unique(dim=0)) == 4
    x, names = torch.randn(5, 2, 3, dtype=torch.float64), [n for n in layer.state_dict() if n.startswith("weight_hh")]
    masked = getattr(nn, kind)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    state = layer.state_dict()
    masked.load_state_dict({**state, **{name: state[name] * keep[k] / (1 - P) for k, name in enumerate(names)}})
    torch.testing.assert_close(layer(x, noise=keep)[0], masked(x)[0], rtol=0, atol=1e-12)


@kinds
def test_the_mask_is_a_fair_coin(kind: str) -> None:
    layer = layer_of(kind, 1, 200)
    keep = layer.draw(torch.zeros(1, 1, 1, dtype=torch.float64)).double()
    assert abs(keep.mean() - (1 - P)) < 6 * math.sqrt(P * (1 - P) / keep.numel())


@kinds
def test_a_batch_in_two_calls_has_two_masks(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(4, 1, 3, dtype=torch.float64).expand(-1, 6, -1)
    once = layer(x)[0]
    torch.testing.assert_close(once, once[:, :1].expand_as(once), rtol=0, atol=1e-12)
    assert (layer(x)[0] - once).abs().max() > 1e-3


@kinds
def test_all_dropped_is_a_layer_without_recurrence(kind: str) -> None:
    layer, x = layer_of(kind, p=1.0), torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] = math.inf
    plain = copy.deepcopy(layer).eval()
    with torch.no_grad():
        plain.weight_hh_l0.zero_()
    output = layer(x)[0]
    torch.testing.assert_close(output, plain(x)[0], rtol=0, atol=1e-12)
    output.sum().backward()
    assert not layer.weight_hh_l0.grad.any() and layer.weight_ih_l0.grad.any()


# The parameters


@kinds
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_at_p_0_it_is_torchs_layer_with_its_gradients(kind: str, options: dict[str, Any], device: str) -> None:
    theirs = getattr(nn, kind)(3, 4, dtype=torch.float64, device=device, **options)
    ours = layer_of(kind, p=0.0, device=device, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device)
    results = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        output = layer(given)[0]
        results.append([output, *torch.autograd.grad(output.sin().sum(), [given, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@kinds
def test_a_call_changes_no_parameter_and_every_parameter_learns(kind: str, device: str) -> None:
    layer = layer_of(kind, device=device)
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device)
    before, objects = copy.deepcopy(layer.state_dict()), [id(part) for part in layer.parameters()]
    keep = layer.draw(x)
    output = layer(x, noise=keep)[0]
    output.square().sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [id(part) for part in layer.parameters()] == objects
    assert all(part.is_leaf and part.grad is not None and part.grad.any() for part in layer.parameters())
    assert not layer.weight_hh_l0.grad[~keep[0].bool()].any()
    assert layer.weight_hh_l0.grad[keep[0].bool()].all()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    moved = layer.weight_hh_l0 != before["weight_hh_l0"]
    assert torch.equal(moved, keep[0].bool())


@kinds
def test_backward_twice_gives_the_same(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(5, 2, 3, dtype=torch.float64)
    loss = layer(x)[0].sin().sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    torch.rand(3)   # another state of the generator
    again = torch.autograd.grad(loss, list(layer.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@kinds
def test_two_layers_that_share_a_weight_have_two_masks_and_one_gradient(kind: str) -> None:
    one, two = layer_of(kind, 4, 4), layer_of(kind, 4, 4)
    two.weight_hh_l0 = one.weight_hh_l0
    stack, x = nn.ModuleList([one, two]), torch.randn(5, 2, 4, dtype=torch.float64)
    assert len(list(stack.parameters())) == 7
    keeps = [layer.draw(x) for layer in stack]
    assert not torch.equal(*keeps)
    two(one(x, noise=keeps[0])[0], noise=keeps[1])[0].sum().backward()
    apart = [copy.deepcopy(layer) for layer in stack]
    for layer in apart:
        layer.zero_grad()
    apart[1](apart[0](x, noise=keeps[0])[0], noise=keeps[1])[0].sum().backward()
    torch.testing.assert_close(one.weight_hh_l0.grad, sum(layer.weight_hh_l0.grad for layer in apart))
    assert copy.deepcopy(stack)[0].weight_hh_l0.data_ptr() != one.weight_hh_l0.data_ptr()
    tied = copy.deepcopy(stack)
    assert tied[0].weight_hh_l0 is tied[1].weight_hh_l0


@kinds
def test_it_survives_what_attributes_do_not(kind: str) -> None:
    """Copying, pickling, storing, moving and flattening, before and after a call."""
    layer, x = layer_of(kind), torch.randn(5, 2, 3, dtype=torch.float64)
    keep = layer.draw(x)
    expected = layer(x, noise=keep)[0]

    def stored(layer: nn.Module) -> nn.Module:
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other = layer_of(kind)
        other.load_state_dict(torch.load(buffer))
        return other

    def flattened(layer: Any) -> Any:
        layer.flatten_parameters()
        return layer

    for change in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), stored, flattened,
                   lambda layer: layer.float().double(), lambda layer: layer.eval().train()):
        original = copy.deepcopy(layer)
        original(x)[0].sum().backward()
        with torch.no_grad():
            changed = change(original)
        torch.testing.assert_close(changed(x, noise=keep)[0], expected, rtol=0, atol=1e-6)
        changed(x)[0].sum().backward()
        assert changed.weight_hh_l0.grad is not None
        assert list(changed.state_dict()) == list(getattr(nn, kind)(3, 4).state_dict())


@kinds
def test_trained_weights_of_torch_mean_the_same(kind: str) -> None:
    theirs, ours = getattr(nn, kind)(3, 4), LAYERS[kind](3, 4, p=P).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@kinds
def test_gradients_with_the_mask_held_fixed(kind: str) -> None:
    layer, x = layer_of(kind, 2, 3), torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    keep = layer.draw(x)
    names = list(dict(layer.named_parameters()))

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,), {"noise": keep})[0]

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))
