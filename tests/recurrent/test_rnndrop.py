"""What is RNNDrop's own: one mask for all steps of the cell, one factor, the rule outside of the tanh, units of h."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dropoutlib
from dropoutlib import RNNDropLSTM
from dropoutlib.enumeration import Distribution, distribution, masks
from dropoutlib.recurrence import Noise, Weights, run

P, T, D, H = 0.3, 4, 2, 2
Q = 1 - P


def layer(fixed_gates: bool = False, p: float = P, **options: object) -> RNNDropLSTM:
    """With random weights; with fixed gates these read the input alone."""
    torch.manual_seed(0)
    made = RNNDropLSTM(D, H, p=p, dtype=torch.float64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=2.0)
        if fixed_gates:
            made.weight_hh_l0.zero_()
    return made


def inputs(*batch: int) -> Tensor:
    return torch.randn(T, *batch, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def start(*shape: int) -> tuple[Tensor, Tensor]:
    h, c = torch.randn(2, *shape, H, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return h, c


def gates(made: RNNDropLSTM, x: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (x @ made.weight_ih_l0.T + made.bias_ih_l0 + made.bias_hh_l0).detach().chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def cells_without_noise(made: RNNDropLSTM, x: Tensor, c: Tensor) -> Tensor:
    i, f, g, _ = gates(made, x)
    found = []
    for step in range(len(x)):
        c = f[step] * c + i[step] * g[step]
        found.append(c)
    return torch.cat(found)


def law(function: Callable[[Tensor], Tensor]) -> Distribution:
    return distribution(function, (1, 1, H), P)


def cells(made: RNNDropLSTM, x: Tensor, state: tuple[Tensor, Tensor], keep: Tensor) -> Tensor:
    return torch.cat([made(x[:step], state, noise=keep)[1][1] for step in range(1, T + 1)])


def test_the_cell_has_one_factor_and_steps_share_their_noise() -> None:
    """Means (1 - p) a_t and covariances p (1 - p) a_s a_t over time, none between units; from a cell that is not 0."""
    made, x, state = layer(fixed_gates=True), inputs(), start(1)
    found = law(lambda keep: cells(made, x, state, keep))
    a = cells_without_noise(made, x, state[1])
    torch.testing.assert_close(found.mean(), Q * a, rtol=0, atol=1e-12)
    expected = torch.einsum("su,tu,uv->sutv", a, a, torch.eye(H, dtype=a.dtype)).reshape(T * H, T * H)
    torch.testing.assert_close(found.covariance(), P * Q * expected, rtol=0, atol=1e-12)
    at_every_step = torch.stack([Q ** (step + 1) * a[step] for step in range(T)])
    assert (found.mean() - at_every_step).abs().max() > 0.01, "a factor at every step would pass as well"


def test_evaluation_is_the_mean_of_h_with_fixed_gates_and_no_other_rule_is() -> None:
    made, x, state = layer(fixed_gates=True), inputs(), start(1)
    found = law(lambda keep: made(x, state, noise=keep)[0])
    a, o = cells_without_noise(made, x, state[1]), gates(made, x)[3]
    torch.testing.assert_close(found.mean(), o * a.tanh(), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.eval()(x, state)[0], found.mean(), rtol=0, atol=1e-12)
    h = found.mean()
    torch.testing.assert_close(found.variance(), P / Q * h**2, rtol=0, atol=1e-12)
    assert (o * (Q * a).tanh() / Q - h).abs().max() > 0.01, "scaling inside of the tanh"
    i, f, g, _ = gates(made, x)
    wrong = state[1]
    for step in range(T):       # the rule of the article: 1 - p at every step
        wrong = Q * (f[step] * wrong + i[step] * g[step])
    assert (o[-1] * wrong.tanh() / Q - h[-1]).abs().max() > 0.01


def test_gates_that_read_h_make_the_rule_approximate_from_the_second_step_on() -> None:
    made, x = layer(), inputs()
    found = law(lambda keep: made(x, noise=keep)[0]).mean()
    gap = (made.eval()(x)[0] - found).abs().amax(1)
    assert gap[0] < 1e-12 < 1e-4 < gap[1:].max()


@pytest.mark.parametrize("state", [None, start(1, 1)])
def test_a_raw_network_in_other_units_of_h_is_the_same(state: tuple[Tensor, Tensor] | None) -> None:
    """h is 1 - p times ours, in training without a scale and in evaluation with the factor outside of the tanh."""
    made, x = layer(), inputs(1)
    weights = Weights(*(weight.detach() for weight in made.parameters()))
    raw = weights._replace(hh=weights.hh / Q)
    h, c = (torch.zeros(1, H, dtype=torch.float64),) * 2 if state is None else (part[0] for part in state)
    for keep in masks(1, 1, H):
        ours, (h_ours, c_ours) = made.train()(x, state, noise=keep)
        theirs, (h_theirs, c_theirs) = run("LSTM", x, (Q * h, c), raw, Noise(cell=keep))
        torch.testing.assert_close(Q * ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close((Q * h_ours[0], c_ours[0]), (h_theirs, c_theirs), rtol=0, atol=1e-12)
    scaled = run("LSTM", x, (Q * h, c), raw, Noise(output=torch.full((1, 1, H), Q, dtype=torch.float64)))[0]
    torch.testing.assert_close(Q * made.eval()(x, state)[0], scaled, rtol=0, atol=1e-12)


def test_a_mask_on_h_alone_gives_the_same_output_and_another_cell() -> None:
    made, x = layer(), inputs(1)
    zero = torch.zeros(1, H, dtype=torch.float64)
    for keep in masks(1, 1, H):
        ours, (_, c_ours) = made(x, noise=keep)
        theirs, (_, c_theirs) = run("LSTM", x, (zero, zero), Weights(*made.parameters()), Noise(output=keep / Q))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(c_ours[0], keep[0] * c_theirs, rtol=0, atol=1e-12)
        assert keep.all() or not torch.allclose(c_ours[0], c_theirs)


def test_without_noise_it_is_torchs_lstm_and_so_are_its_gradients() -> None:
    options = {"num_layers": 2, "bidirectional": True}
    ours, theirs = layer(p=0.0, **options), nn.LSTM(D, H, dtype=torch.float64, num_layers=2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    for ours_now in (ours.train(), ours.eval(), layer(**options).eval()):
        results = []
        for network in (ours_now, theirs):
            output, (h, c) = network(inputs(3))
            loss = output.sin().sum() + h.cos().sum() + c.square().sum()
            results.append([output, h, c, *torch.autograd.grad(loss, list(network.parameters()))])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_sequence_in_chunks_with_its_masks_is_the_whole_sequence() -> None:
    made, x = layer(num_layers=2), inputs(3)
    keep, state, parts = made.draw(x), None, []
    whole, end = made(x, noise=keep)
    for chunk in x.split(1):
        part, state = made(chunk, state, noise=keep)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    assert state is not None
    torch.testing.assert_close(state, end, rtol=0, atol=1e-12)


def test_drawn_masks_stay_for_all_steps_and_differ_between_sequences() -> None:
    made, examples = RNNDropLSTM(D, H, p=P), 20_000
    output = made(inputs(1).float().expand(T, examples, D))[0]
    silent = output == 0
    assert (silent == silent[0]).all(), "a unit changes between silence and sound within a sequence"
    share = silent[0].double()
    assert ((share.mean(0) - P).abs() < 6 * (P * Q / examples) ** 0.5).all()
    together = torch.cov(share.T)[0, 1].abs()
    assert together < 6 * P * Q / examples**0.5, "units share their masks"


def test_gradients_with_the_masks_held_fixed() -> None:
    made, x, state = layer(), inputs(2), start(1, 2)
    keep = made.draw(x)
    leaves = [x.requires_grad_(), *(part.requires_grad_() for part in state)]

    def function(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        output, end = made(x, (h, c), noise=keep)
        return output, *end

    assert torch.autograd.gradcheck(function, leaves)
    _, (_, c) = made(x, noise=torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 2, H))
    (slope,) = torch.autograd.grad(c[..., 0].sum(), x)
    assert not slope.any(), "a dropped unit has a gradient"


def test_there_is_none_for_a_gru() -> None:
    assert not hasattr(dropoutlib, "RNNDropGRU")


def test_a_long_sequence_stays_finite() -> None:
    made = RNNDropLSTM(D, H, p=0.9)
    with torch.no_grad():
        made.bias_hh_l0[H:2 * H] = 20       # the forget gates are open
    output, (h, c) = made(torch.randn(2000, 5, D))
    assert output.isfinite().all() and c.abs().max() < 2001 and h.abs().max() < 1 / 0.1
