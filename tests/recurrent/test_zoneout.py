"""What is zoneout's own: old values in place of new ones, its moments and test rule, gradients that pass unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import ZoneoutGRU, ZoneoutLSTM
from dropoutlib.enumeration import masks
from dropoutlib.recurrent.zoneout import ZoneoutNoise

P_HIDDEN, P_CELL = 0.3, 0.6
D, H = 3, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(mode: str, inputs: int = D, units: int = H, p_hidden: float = P_HIDDEN, p_cell: float = P_CELL, **options: Any
         ) -> Any:
    if mode == "GRU":
        return ZoneoutGRU(inputs, units, p_hidden=p_hidden, **options, dtype=torch.float64)
    return ZoneoutLSTM(inputs, units, p_hidden=p_hidden, p_cell=p_cell, **options, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


both = pytest.mark.parametrize("mode", ["LSTM", "GRU"])


def law(layer: Any, x: Tensor, start: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """The last h, and c, under every mask, each (masks, H), with the probabilities of the masks."""
    rates = [layer.p_hidden, layer.p_cell] if layer.mode == "LSTM" else [layer.p_hidden]
    keep = masks(len(rates), len(x), layer.hidden_size)
    parts = [keep[:, k].transpose(0, 1)[None] for k in range(len(rates))]
    chance = torch.ones(len(keep), dtype=torch.float64)
    for part, p in zip(parts, rates, strict=True):
        chance *= (part * (1 - p) + (1 - part) * p).prod(1).prod(-1)[0]
    with torch.no_grad():
        last = run(layer, x, start, len(keep), noise=tuple(parts) if len(parts) == 2 else parts[0])
    return [part[0] for part in last], chance


def run(layer: Any, x: Tensor, start: tuple[Tensor, ...], batch: int = 1, **given: Any) -> tuple[Tensor, ...]:
    state = tuple(part.expand(1, batch, -1).contiguous() for part in start)
    last = layer(x.expand(-1, batch, -1), state if len(state) == 2 else state[0], **given)[1]
    return last if isinstance(last, tuple) else (last,)


def beginning(mode: str, units: int) -> tuple[Tensor, ...]:
    return tuple(normal(1, 1, units).tanh() for _ in range(2 if mode == "LSTM" else 1))


@both
def test_one_step_has_the_mean_and_the_covariance_of_its_formula(mode: str) -> None:
    """Mean p old + (1 - p) new, variance p (1 - p) (new - old)^2, units apart, and h and c apart."""
    layer, x, old = made(mode, units=2), normal(1, 1, D), beginning(mode, 2)
    plain = getattr(nn, mode)(D, 2, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    new = run(plain, x, old)
    values, chance = law(layer, x, old)
    rates = (P_HIDDEN, P_CELL)[:len(old)]
    means, variances = [], []
    for one, other, p in zip(old, new, rates, strict=True):
        means.append(p * one.flatten() + (1 - p) * other.flatten())
        variances.append(p * (1 - p) * (other - one).flatten() ** 2)
    found = torch.cat(values, 1)
    mean = chance @ found
    torch.testing.assert_close(mean, torch.cat(means).detach(), rtol=0, atol=1e-12)
    covariance = (found - mean).T @ (chance[:, None] * (found - mean))
    torch.testing.assert_close(covariance, torch.cat(variances).detach().diag(), rtol=0, atol=1e-12)


def with_gates_fixed(mode: str, units: int, **rates: float) -> Any:
    """Gates that read the inputs alone."""
    layer = made(mode, units=units, **rates)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    return layer


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_mean_and_covariance_of_the_cell_over_time(p: float) -> None:
    steps, c = 5, 0.8
    layer, x = with_gates_fixed("LSTM", 1, p_hidden=0.0, p_cell=p), normal(steps, 1, D)
    gates = (x[:, 0] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    i, f, g, _ = gates.T
    f, u = f.sigmoid(), i.sigmoid() * g.tanh()
    start = torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), c, dtype=torch.float64)
    keep = masks(steps)
    chance = (keep * (1 - p) + (1 - keep) * p).prod(1)
    cells = []
    for t in range(1, steps + 1):
        part = keep[:, :t].T[None, :, :, None]
        with torch.no_grad():
            cells.append(run(layer, x[:t], start, len(keep), noise=(torch.ones_like(part), part))[1][0, :, 0])
    found = torch.stack(cells)
    mean = found @ chance
    covariance = (found - mean[:, None]) * chance @ (found - mean[:, None]).T
    mu, variance = c, 0.0
    for t in range(steps):
        variance = (p + (1 - p) * f[t]**2) * variance + p * (1 - p) * ((1 - f[t]) * mu - u[t])**2
        mu = (p + (1 - p) * f[t]) * mu + (1 - p) * u[t]
        between = torch.cat([torch.ones(1).double(), (p + (1 - p) * f[t + 1:]).cumprod(0)])
        torch.testing.assert_close(mean[t], mu, rtol=0, atol=1e-12)
        torch.testing.assert_close(covariance[t, t:], variance * between, rtol=0, atol=1e-12)


@both
def test_where_the_test_rule_is_the_mean_and_where_not(mode: str) -> None:
    def gaps(layer: Any, steps: int) -> list[float]:
        x, old = normal(steps, 1, D), beginning(mode, 2)
        values, chance = law(layer.train(), x, old)
        with torch.no_grad():
            test = run(layer.eval(), x, old)
        return [(chance @ one - other.flatten()).abs().max().item() for one, other in zip(values, test, strict=True)]

    assert max(gaps(made(mode, units=2), 1)) < 1e-12
    fixed, real = gaps(with_gates_fixed(mode, 2), 3), gaps(made(mode, units=2), 3)
    assert fixed[-1] < 1e-12 and min(real) > 1e-5       # the last is c of an LSTM, h of a GRU
    if mode == "LSTM":
        assert fixed[0] > 1e-4, "the tanh of a random cell"


def by_hand(layer: Any, x: Tensor, noise: Any, start: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer, step by step; masks may lie between 0 and 1."""
    of_h, of_c = noise if layer.mode == "LSTM" else (noise, noise)
    h, c = start if layer.mode == "LSTM" else (start[0], start[0])
    outputs = []
    for t, step in enumerate(x):
        read_x = (step @ layer.weight_ih_l0.T + layer.bias_ih_l0).chunk(4 if layer.mode == "LSTM" else 3, -1)
        read_h = (h @ layer.weight_hh_l0.T + layer.bias_hh_l0).chunk(len(read_x), -1)
        if layer.mode == "LSTM":
            i, f, g, o = (one + other for one, other in zip(read_x, read_h, strict=True))
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()      # of the new cell, also where the old one is kept
            c = (1 - of_c[0, t]) * c + of_c[0, t] * new_c
        else:
            r, z = ((one + other).sigmoid() for one, other in zip(read_x[:2], read_h[:2], strict=True))
            new_h = (1 - z) * (read_x[2] + r * read_h[2]).tanh() + z * h
        h = (1 - of_h[0, t]) * h + of_h[0, t] * new_h
        outputs.append(h)
    return torch.stack(outputs), (h, c) if layer.mode == "LSTM" else (h,)


@both
def test_it_is_the_loop_in_training_and_in_evaluation(mode: str) -> None:
    layer, x = made(mode), normal(6, 5, D).requires_grad_()
    start = tuple(normal(5, H).tanh() for _ in range(2 if mode == "LSTM" else 1))
    state = tuple(part[None] for part in start)
    drawn = layer.draw(x)
    means = tuple(torch.full_like(x[:, :, :1], 1 - p)[None] for p in (P_HIDDEN, P_CELL))
    for training, noise in ((True, tuple(part.double() for part in drawn) if mode == "LSTM" else drawn.double()),
                            (False, means if mode == "LSTM" else means[0])):
        given = {"noise": drawn} if training else {}
        ours, last = layer.train(training)(x, state if mode == "LSTM" else state[0], **given)
        hand, expected = by_hand(layer, x, noise, start)
        torch.testing.assert_close(ours, hand, rtol=0, atol=1e-12)
        for one, other in zip(last if mode == "LSTM" else (last,), expected, strict=True):
            torch.testing.assert_close(one[0], other, rtol=0, atol=1e-12)
        weights = [x, *layer.parameters()]
        for one, other in zip(torch.autograd.grad(ours.sin().sum(), weights),
                              torch.autograd.grad(hand.sin().sum(), weights), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@both
def test_without_rates_it_is_torchs_layer(mode: str) -> None:
    layer = made(mode, p_hidden=0.0, p_cell=0.0, num_layers=2, bidirectional=True)
    plain = getattr(nn, mode)(D, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = normal(6, 3, D)
    for training in (True, False):
        ours, theirs = layer.train(training)(x)[0], plain(x)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        for one, other in zip(torch.autograd.grad(ours.sin().sum(), layer.parameters()),
                              torch.autograd.grad(theirs.sin().sum(), plain.parameters()), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@both
def test_rate_one_stands_still(mode: str, training: bool) -> None:
    layer, x, start = made(mode, p_hidden=1.0, p_cell=1.0).train(training), normal(9, 2, D), normal(1, 2, H)
    state = (start, 2 * start) if mode == "LSTM" else start
    output, last = layer(x, state)
    # a GRU computes n + (h - n), which rounds
    torch.testing.assert_close(output, start.expand(9, -1, -1), rtol=0, atol=0 if mode == "LSTM" else 1e-14)
    torch.testing.assert_close(last, state, rtol=0, atol=0 if mode == "LSTM" else 1e-14)


@both
def test_a_one_takes_the_update_and_a_zero_keeps_what_was(mode: str) -> None:
    layer, x, start = made(mode), normal(1, 2, D), normal(1, 2, H)
    keep = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(1, 1, 2, H)
    state = (start, start) if mode == "LSTM" else start
    plain = getattr(nn, mode)(D, H, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    new = plain(x, state)[0]
    output = layer(x, state, noise=(keep, keep) if mode == "LSTM" else keep)[0]
    torch.testing.assert_close(output, torch.where(keep[0] == 1, new, start), rtol=0, atol=1e-12)
    nothing = torch.zeros(1, 1, 2, H)
    output = layer(x, state, noise=(nothing, nothing) if mode == "LSTM" else nothing)[0]
    torch.testing.assert_close(output, start, rtol=0, atol=1e-14)


@both
def test_a_kept_unit_passes_its_gradient_on_unchanged(mode: str) -> None:
    layer, x, first = made(mode), normal(2000, 1, D), normal(1, 1, H).requires_grad_()
    kept = torch.zeros(1, 2000, 1, H)
    state = (torch.zeros_like(first), first) if mode == "LSTM" else first
    last = layer(x, state, noise=(torch.ones_like(kept), kept) if mode == "LSTM" else kept)[1]
    (gradient,) = torch.autograd.grad((last[1] if mode == "LSTM" else last).sum(), first)
    assert torch.equal(gradient, torch.ones_like(first))


def test_the_mean_gradient_over_many_steps() -> None:
    """With gates held fixed it is (p + (1 - p) f)^n; without noise f^n."""
    p, f, steps, batch = 0.5, 0.8, 12, 40_000
    layer = with_gates_fixed("LSTM", 1, p_hidden=0.0, p_cell=p)
    with torch.no_grad():
        layer.weight_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        layer.bias_ih_l0[1] = torch.tensor(f).logit()
    first = torch.zeros(1, batch, 1).double().requires_grad_()
    last = layer(torch.zeros(steps, batch, D).double(), (torch.zeros_like(first), first))[1][1]
    (gradient,) = torch.autograd.grad(last.sum(), first)
    mean = (p + (1 - p) * f) ** steps
    error = ((p + (1 - p) * f**2) ** steps - mean**2) ** 0.5 / batch**0.5
    assert abs(gradient.mean().item() - mean) < 6 * error
    assert mean > 4 * f**steps


def test_draws_follow_the_law_and_are_independent_of_each_other() -> None:
    """Bounds of six standard errors, for means and for products of steps, units, layers, and of h and c."""
    batch = 20_000
    noise = ZoneoutLSTM(2, 2, 2, p_hidden=0.2, p_cell=0.6).draw(torch.empty(3, batch, 2))
    assert isinstance(noise, ZoneoutNoise)
    columns = []
    for mask, p in zip(noise, (0.2, 0.6), strict=True):
        assert mask.shape == (2, 3, batch, 2) and mask.dtype is torch.bool
        parts = mask.movedim(2, 0).reshape(batch, -1).double()
        assert ((parts.mean(0) - (1 - p)).abs() < 6 * (p * (1 - p) / batch) ** 0.5).all()
        columns.append((parts - (1 - p)) / (p * (1 - p)) ** 0.5)
    correlation = torch.cat(columns, 1)
    correlation = correlation.T @ correlation / batch
    assert ((correlation - correlation.diag().diag()).abs() < 6 / batch**0.5).all()


def test_the_share_of_kept_states() -> None:
    output = ZoneoutGRU(2, 16, p_hidden=0.7, dtype=torch.float64)(normal(200, 50, 2))[0]
    kept = ((output[1:] - output[:-1]).abs() < 1e-14).double()
    assert abs(kept.mean().item() - 0.7) < 6 * (0.21 / kept.numel()) ** 0.5
    after = kept[1:][kept[:-1] == 1]        # whether a step was kept says nothing of the next
    assert abs(after.mean().item() - 0.7) < 6 * (0.21 / after.numel()) ** 0.5


@both
def test_gradients_with_the_masks_held_fixed(mode: str) -> None:
    layer, x = made(mode, 2, 2), normal(3, 2, 2).requires_grad_()
    noise = layer.draw(x)
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=noise)[0], (x,))
    assert torch.autograd.gradcheck(lambda x: layer.eval()(x)[0], (x,))


@both
def test_chunks_with_their_part_of_the_masks_are_the_whole_sequence(mode: str) -> None:
    layer, x = made(mode), normal(10, 3, D)
    noise, state, parts = layer.draw(x), None, []
    for start in (0, 4):
        here = slice(start, 4 if start == 0 else None)
        part = ZoneoutNoise(*(mask[:, here] for mask in noise)) if mode == "LSTM" else noise[:, here]
        output, state = layer(x[here], state, noise=part)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), layer(x, noise=noise)[0], rtol=0, atol=1e-12)


@both
def test_long_sequences_stay_finite(mode: str) -> None:
    layer, x = made(mode), normal(2000, 2, D)
    for training in (True, False):
        output = layer.train(training)(x)[0]
        assert output.isfinite().all() and output.abs().max() <= 1
        assert all(part.isfinite().all() for part in torch.autograd.grad(output.sum(), layer.parameters()))
