"""The engine of recurrent networks: the loop against torch's kernel, the kernel under noise against the loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dropoutlib import recurrence
from dropoutlib.recurrence import Noise, State, Weights

T, B, D, H = 5, 3, 4, 6     # steps, batch, features, units
MODES = tuple(recurrence.GATES)


def layer(mode: str, bias: bool = True) -> tuple[Tensor, State, Weights]:
    """Inputs, a state and weights, all of which have gradients."""
    torch.manual_seed(0)
    rows = len(recurrence.GATES[mode]) * H
    shapes = [(rows, D), (rows, H), *([(rows,), (rows,)] if bias else [])]
    weights = Weights(*(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes))
    state = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(1 + (mode == "LSTM")))
    return torch.randn(T, B, D, dtype=torch.float64, requires_grad=True), state, weights


def mask(*shape: int) -> Tensor:
    return torch.rand(*shape) < 0.6


def everything(function: Callable[..., tuple[Tensor, State]], mode: str, noise: Noise | None, bias: bool = True
               ) -> list[Tensor]:
    """Outputs, last states and all gradients."""
    x, state, weights = layer(mode, bias)
    output, last = function(mode, x, state, weights, *([] if noise is None else [noise]))
    leaves = [x, *state, *(weight for weight in weights if weight is not None)]
    total = output.sin().sum() + sum((i + 2) * part.cos().sum() for i, part in enumerate(last))
    return [output, *last, *torch.autograd.grad(total, leaves, allow_unused=True)]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_without_noise_the_loop_is_the_kernel(mode, bias):
    same(everything(recurrence.loop, mode, Noise(), bias), everything(recurrence.native, mode, None, bias))
    torch.manual_seed(1)
    module = getattr(nn, mode)(D, H, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64)
    zero = torch.zeros(B, H, dtype=torch.float64)
    output, last = recurrence.run(mode, x, (zero,) * (1 + (mode == "LSTM")), Weights(*module._flat_weights), Noise())
    expected, hidden = module(x)
    same([output, *last], [expected, *(part[0] for part in (hidden if mode == "LSTM" else [hidden]))])


torch.manual_seed(2)
FOLD = {
    "LSTM": {"candidate a step": Noise(candidate=mask(T, B, H)), "candidate a sequence": Noise(candidate=mask(1, B, H)),
             "cell a step": Noise(cell=mask(T, B, H)), "cell a sequence": Noise(cell=mask(1, B, H)),
             "output": Noise(output=mask(T, B, H)), "one mask for the batch": Noise(cell=mask(T, 1, H)),
             "two": Noise(candidate=mask(T, B, H), output=mask(1, B, H))},
    "GRU": {"old state": Noise(old_state=mask(T, B, H))},
}


@pytest.mark.parametrize(("mode", "name"), [(mode, name) for mode in MODES for name in FOLD[mode]])
def test_a_mask_that_saturates_gates_gives_what_the_loop_gives(mode, name):
    noise = FOLD[mode][name]
    assert recurrence.folded(mode, *layer(mode), noise) is not None
    same(everything(recurrence.run, mode, noise), everything(recurrence.loop, mode, noise))
    with pytest.raises(AssertionError):
        same(everything(recurrence.run, mode, noise), everything(recurrence.loop, mode, Noise()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_is_zero_in_every_precision(dtype):
    x, state, weights = tree_map(lambda part: part.detach().to(dtype), layer("LSTM"))
    keep = mask(1, B, H)
    output, (h, c) = recurrence.run("LSTM", x, state, weights, Noise(cell=keep))
    assert not output[:, ~keep[0]].any() and not h[~keep[0]].any() and not c[~keep[0]].any()
    assert output[:, keep[0]].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_state_that_is_kept_does_not_drift(dtype):
    x, (h,), weights = tree_map(lambda part: part.detach().to(dtype), layer("GRU"))
    keep = torch.ones(400, 1, 1, dtype=torch.bool)
    output, _ = recurrence.run("GRU", x[:1].expand(400, -1, -1), (h,), weights, Noise(old_state=keep))
    torch.testing.assert_close(output[-1], h, rtol=0, atol=0 if dtype.itemsize == 2 else 1e-5)


OTHER = [
    ("LSTM", Noise(state=mask(1, B, H))), ("LSTM", Noise(state=mask(1, B, 4, H))),
    ("LSTM", Noise(old_cell=mask(T, B, H))), ("LSTM", Noise(old_state=mask(T, B, H))),
    ("LSTM", Noise(candidate=mask(T, B, H).double() / 0.6)),
    ("GRU", Noise(candidate=mask(T, B, H))), ("GRU", Noise(state=mask(1, B, 3, H))),
    ("LSTM", Noise(*(mask(T, B, H) for _ in Noise._fields))),
    ("LSTM", Noise(*(mask(T, B, H).double() / 0.6 for _ in Noise._fields)))]


@pytest.mark.parametrize(("mode", "noise"), OTHER)
def test_other_noise_does_not_fold_and_has_the_derivatives_of_its_values_twice(mode, noise):
    x, state, weights = layer(mode)
    assert recurrence.folded(mode, x, state, weights, noise) is None

    def output(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        found, last = recurrence.run(mode, x, state, weights, noise)
        return found, *last

    assert torch.autograd.gradcheck(output, (x, *state), fast_mode=True)
    assert torch.autograd.gradgradcheck(output, (x, *state), fast_mode=True)


@pytest.mark.parametrize("noise", [
    Noise(), *FOLD["LSTM"].values(), *(noise for mode, noise in OTHER if mode == "LSTM")])
def test_the_backward_that_is_written_out_is_that_of_the_loop(noise):
    def analytic(mode: str, *arguments: Any) -> tuple[Tensor, State]:
        return recurrence.analytic(*arguments)

    same(everything(analytic, "LSTM", noise), everything(recurrence.loop, "LSTM", noise))


def test_factors_that_are_learned_have_gradients():
    x, state, weights = layer("LSTM")
    factor = torch.rand(1, B, H, dtype=torch.float64, requires_grad=True)
    recurrence.run("LSTM", x, state, weights, Noise(candidate=factor))[0].sum().backward()
    assert factor.grad is not None and factor.grad.all()


def test_forward_mode_runs_the_loop():
    x, state, weights = layer("LSTM")

    def output(x: Tensor) -> Tensor:
        return recurrence.run("LSTM", x, state, weights, Noise(state=mask(1, B, H)))[0]

    torch.manual_seed(4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(output(dual)).tangent is not None


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_in_two_parts_is_the_sequence(mode):
    x, state, weights = layer(mode)
    noise = Noise(candidate=mask(1, B, H)) if mode == "LSTM" else Noise(old_state=mask(1, B, H))
    whole, last = recurrence.run(mode, x, state, weights, noise)
    first, between = recurrence.run(mode, x[:2], state, weights, noise)
    second, end = recurrence.run(mode, x[2:], between, weights, noise)
    same([torch.cat([first, second]), *end], [whole, *last])


def test_under_vmap_every_member_has_its_own_noise():
    x, state, weights = layer("LSTM")
    keep = mask(4, T, B, H)

    def output(keep: Tensor) -> Tensor:
        return recurrence.run("LSTM", x, state, weights, Noise(candidate=keep))[0]

    torch.testing.assert_close(torch.vmap(output)(keep), torch.stack([output(one) for one in keep]))


# Where the gates do not read h, the cell is linear in the noise: its mean over all masks is known in closed form.


def cell(noise: Callable[[Tensor], Noise], shape: tuple[int, ...], p: float, steps: int = 3
         ) -> tuple[float, Tensor, Tensor, Tensor]:
    """Mean over all masks of the last cell, and the gates that made it: f and u = i g of every step, and c_0."""
    torch.manual_seed(3)
    x = torch.randn(steps, 1, 2, dtype=torch.float64)
    weights = Weights(torch.randn(4, 2, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    i, f, g, _ = (x @ weights.ih.T).squeeze(1).unbind(-1)
    start = torch.full((1, 1), 0.7, dtype=torch.float64)
    mean = 0.0
    for keep in itertools.product([True, False], repeat=torch.Size(shape).numel()):
        masks = torch.tensor(keep).reshape(shape)
        kept = masks.sum().item()
        _, (_, last) = recurrence.run("LSTM", x, (torch.zeros_like(start), start), weights, noise(masks))
        mean += (1 - p) ** kept * p ** (len(keep) - kept) * last.item()
    return mean, f.sigmoid(), i.sigmoid() * g.tanh(), start.squeeze()


def without_noise(f: Tensor, u: Tensor, start: Tensor) -> Tensor:
    for forget, add in zip(f, u, strict=True):
        start = forget * start + add
    return start


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_one_mask_a_sequence_costs_one_factor_and_a_mask_a_step_a_factor_a_step(p):
    mean, f, u, start = cell(lambda keep: Noise(cell=keep), (1, 1, 1), p)
    assert mean == pytest.approx((1 - p) * without_noise(f, u, start).item(), rel=1e-12)
    mean, f, u, start = cell(lambda keep: Noise(cell=keep), (3, 1, 1), p)
    assert mean == pytest.approx(without_noise((1 - p) * f, (1 - p) * u, start).item(), rel=1e-12)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_a_mask_on_the_candidate_keeps_the_memory_and_zoneout_slows_it(p):
    mean, f, u, start = cell(lambda keep: Noise(candidate=keep), (3, 1, 1), p)
    assert mean == pytest.approx(without_noise(f, (1 - p) * u, start).item(), rel=1e-12)
    mean, f, u, start = cell(lambda keep: Noise(old_cell=keep), (3, 1, 1), p)  # kept with probability 1 - p
    assert mean == pytest.approx(without_noise((1 - p) + p * f, p * u, start).item(), rel=1e-12)
