"""What is recurrent dropout's own: a mask on what a step adds, its noise over time, steps and sequences, cell and h."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import RecurrentDropoutGRU, RecurrentDropoutLSTM
from dropoutlib.enumeration import Distribution, masks
from dropoutlib.recurrence import Noise, Weights, run

P, T, D, H = 0.3, 3, 2, 2
Q = 1 - P
LAYERS: dict[str, Any] = {"LSTM": RecurrentDropoutLSTM, "GRU": RecurrentDropoutGRU}
modes = pytest.mark.parametrize("mode", LAYERS)
sharings = pytest.mark.parametrize("sharing", ["step", "sequence"])


def layer(mode: str, fixed_gates: bool = False, p: float = P, **options: Any) -> Any:
    """With random weights; with fixed gates these, and the candidates, read the input alone."""
    torch.manual_seed(0)
    made = LAYERS[mode](D, H, p=p, dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=2.0)
        if mode == "GRU":
            made.bias_hh_l0[H:2 * H] -= 4       # update gates that are not all closed
        if fixed_gates:
            made.weight_hh_l0.zero_()
    return made


def inputs(*batch: int) -> Tensor:
    return torch.randn(T, *batch, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def start(mode: str, batch: int) -> Any:
    state = torch.randn(2, 1, 1, H, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h, c = state.expand(2, 1, batch, H)
    return (h, c) if mode == "LSTM" else h


def over_masks(made: Any, x: Tensor, with_start: bool = True) -> tuple[Distribution, Distribution]:
    """Laws of the memory (c of an LSTM, h of a GRU) and of the output, (T, H), from all masks along the batch."""
    made.train()
    keep = masks(T if made.sharing == "step" else 1, H)
    chances = (Q * keep + P * (1 - keep)).flatten(1).prod(1)
    noise = keep.transpose(0, 1)[None]
    state = start(made.mode, len(keep)) if with_start else None
    memory, outputs = [], []
    with torch.no_grad():
        for step in range(T):
            now = noise if made.sharing == "sequence" else noise[:, step:step + 1]
            output, state = made(x[step].expand(1, len(keep), D), state, noise=now)
            outputs.append(output[0])
            memory.append((state[1] if made.mode == "LSTM" else state)[0])
    return Distribution(torch.stack(memory, 1), chances), Distribution(torch.stack(outputs, 1), chances)


def memories(made: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forget gates, updates and output gates of an LSTM; update gates, updates and ones of a GRU. Fixed gates."""
    own = made.bias_hh_l0.detach()
    read = (x @ made.weight_ih_l0.T + made.bias_ih_l0).detach()
    if made.mode == "LSTM":
        i, f, g, o = (read + own).chunk(4, -1)
        return f.sigmoid(), i.sigmoid() * g.tanh(), o.sigmoid()
    r, z, n = read.chunk(3, -1)
    b_r, b_z, b_n = own.chunk(3)
    z = (z + b_z).sigmoid()
    return z, (1 - z) * (n + (r + b_r).sigmoid() * b_n).tanh(), torch.ones_like(z)


def closed_forms(made: Any, x: Tensor, sharing: str) -> tuple[Tensor, Tensor]:
    """Mean (T, H) and covariance (T, T, H) of the memory, written out as the sums of the chapter."""
    f, u, _ = memories(made, x)
    first = start(made.mode, 1)
    c = (first[1] if made.mode == "LSTM" else first)[0, 0]
    left = torch.zeros(T, T, H, dtype=torch.float64)    # of step k at step t
    for k in range(T):
        for t in range(k, T):
            left[k, t] = f[k + 1:t + 1].prod(0)
    mean = torch.stack([f[:t + 1].prod(0) * c + (left[:, t] * u).sum(0) for t in range(T)])
    terms = left * u.unsqueeze(1)       # (k, t, H), 0 where k > t
    if sharing == "step":
        return mean, P / Q * torch.einsum("ksh,kth->sth", terms, terms)
    return mean, P / Q * torch.einsum("sh,th->sth", terms.sum(0), terms.sum(0))


@sharings
@modes
def test_mean_and_covariance_over_time_are_the_closed_forms(mode: str, sharing: str) -> None:
    made, x = layer(mode, fixed_gates=True, sharing=sharing), inputs()
    law, _ = over_masks(made, x)
    mean, covariance = closed_forms(made, x, sharing)
    torch.testing.assert_close(law.mean(), mean, rtol=0, atol=1e-12)
    found = law.covariance().reshape(T, H, T, H)
    torch.testing.assert_close(torch.einsum("shth->sth", found), covariance, rtol=0, atol=1e-12)
    assert found[:, 0, :, 1].abs().max() < 1e-12, "units share their masks"
    other = closed_forms(made, x, "sequence" if sharing == "step" else "step")[1]
    assert (covariance - other).abs().max() > 1e-3, "the test could not tell steps from sequences"
    forgotten = torch.stack([Q**(t + 1) * mean[t] for t in range(T)])
    assert (law.mean() - forgotten).abs().max() > 0.01, "a mask on the whole memory would pass as well"


@modes
def test_where_evaluation_is_the_exact_mean(mode: str) -> None:
    """With fixed gates: of a GRU's h, of an LSTM's c, and not of an LSTM's h. With others: of neither."""
    for fixed_gates in (True, False):
        made, x = layer(mode, fixed_gates), inputs()
        laws = over_masks(made, x)
        made.eval()
        state, rules = start(mode, 1), []
        for row in x:
            output, state = made(row.expand(1, 1, D), state)
            rules.append([(state[1] if mode == "LSTM" else state)[0, 0].detach(), output[0, 0].detach()])
        memory, output = (torch.stack(part) for part in zip(*rules, strict=True))
        gap_of_memory = (memory - laws[0].mean()).abs().amax(1)
        gap_of_output = (output - laws[1].mean()).abs().amax(1)
        assert gap_of_memory[0] < 1e-12
        assert (gap_of_memory.max() < 1e-12) == fixed_gates
        if mode == "LSTM":
            assert gap_of_output[0] > 1e-3
        else:
            torch.testing.assert_close(gap_of_output, gap_of_memory, rtol=0, atol=0)


def test_the_first_output_of_an_lstm_in_closed_form() -> None:
    made, x = layer("LSTM", fixed_gates=True), inputs()
    _, u, o = memories(made, x)
    _, law = over_masks(made, x, with_start=False)
    expected = o[0] * Q * (u[0] / Q).tanh()
    torch.testing.assert_close(law.mean()[0], expected, rtol=0, atol=1e-12)
    assert (o[0] * u[0].tanh() - expected).abs().max() > 1e-3


@modes
def test_a_keep_mask_of_the_wrong_rate_is_not_the_mean(mode: str) -> None:
    """The article's Bernoulli(p) for a mask that keeps: its mean is p / (1 - p) of the update."""
    made, x = layer(mode, fixed_gates=True), inputs()
    law, _ = over_masks(made, x)
    turned = Distribution(law.outputs, law.probabilities.flip(0))   # each mask with the chance of its opposite
    assert (turned.mean() - closed_forms(made, x, "step")[0]).abs().max() > 0.01


@sharings
@modes
def test_the_mask_acts_on_the_candidate(mode: str, sharing: str) -> None:
    made, x = layer(mode, sharing=sharing), inputs(2)
    keep = made.draw(x)
    assert keep.shape == (1, T if sharing == "step" else 1, 2, H)
    state = start(mode, 2)
    before = tuple(part[0] for part in state) if mode == "LSTM" else (state[0],)
    expected, _ = run(mode, x, before, Weights(*made.parameters()), Noise(candidate=keep[0].double() / Q))
    torch.testing.assert_close(made(x, state, noise=keep)[0], expected, rtol=0, atol=1e-12)
    dropped = torch.zeros_like(keep)
    _, end = made(x, state, noise=dropped)
    if mode == "LSTM":      # all updates dropped: the cell has only been forgotten
        assert (end[1].abs() < before[1].abs()).all() and (end[1] * before[1] > 0).all()
    else:
        assert (end.abs() < before[0].abs()).all() and (end * before[0] > 0).all()


@modes
def test_without_noise_it_is_torchs_layer_and_so_are_its_gradients(mode: str) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    ours, theirs = layer(mode, p=0.0, **options), getattr(nn, mode)(D, H, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    for ours_now in (ours.train(), ours.eval(), layer(mode, **options).eval()):
        results = []
        for network in (ours_now, theirs):
            output, end = network(inputs(3))
            parts = [output, *end] if mode == "LSTM" else [output, end]
            loss = sum((part.sin() * (i + 1)).sum() for i, part in enumerate(parts))
            results.append([*parts, *torch.autograd.grad(loss, list(network.parameters()))])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@sharings
@modes
def test_a_sequence_in_chunks_with_its_masks_is_the_whole_sequence(mode: str, sharing: str) -> None:
    made, x = layer(mode, sharing=sharing, num_layers=2), inputs(3)
    keep, state, parts = made.draw(x), None, []
    whole, end = made(x, noise=keep)
    for step, chunk in enumerate(x.split(1)):
        part, state = made(chunk, state, noise=keep if sharing == "sequence" else keep[:, step:step + 1])
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-12)


@sharings
@modes
def test_drawn_noise_of_two_steps_has_the_covariance_of_its_sharing(mode: str, sharing: str) -> None:
    """What the layer draws by itself, not what it is given: a mask a step and one a sequence have equal means."""
    made, x, examples = layer(mode, fixed_gates=True, sharing=sharing), inputs(), 20_000
    memory, state = [], start(mode, examples)
    keep = made.draw(x.unsqueeze(1).expand(T, examples, D), generator=torch.Generator().manual_seed(3))
    for step, row in enumerate(x):
        now = keep if sharing == "sequence" else keep[:, step:step + 1]
        _, state = made(row.expand(1, examples, D), state, noise=now)
        memory.append((state[1] if mode == "LSTM" else state)[0].detach())
    drawn = torch.stack(memory)
    mean, covariance = closed_forms(made, x, sharing)
    centred = drawn - mean.unsqueeze(1)
    products = torch.einsum("snh,tnh->nsth", centred, centred)
    error = products.std(0) / examples**0.5 + 1e-12
    assert ((products.mean(0) - covariance).abs() < 6 * error).all()
    other = closed_forms(made, x, "sequence" if sharing == "step" else "step")[1]
    assert ((products.mean(0) - other).abs() > 6 * error).any(), "the other sharing would pass as well"


@sharings
@modes
def test_gradients_with_the_masks_held_fixed(mode: str, sharing: str) -> None:
    made, x = layer(mode, sharing=sharing), inputs(2)
    keep, state = made.draw(x), start(mode, 2)
    given = [part.clone().requires_grad_() for part in (state if mode == "LSTM" else (state,))]

    def function(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, end = made(x, state if mode == "LSTM" else state[0], noise=keep)
        return output, *(end if mode == "LSTM" else (end,))

    assert torch.autograd.gradcheck(function, [x.requires_grad_(), *given])


@modes
def test_p_of_one_leaves_the_memory_and_adds_nothing(mode: str) -> None:
    made, x = layer(mode, p=1.0), inputs(2)
    output, end = made(x)
    assert not output.any() and not (end[1] if mode == "LSTM" else end).any()
    for weight in torch.autograd.grad(output.sum(), list(made.parameters())):
        assert weight.isfinite().all()


@pytest.mark.parametrize("argument", ["Step", None, 1])
def test_an_unknown_sharing_is_refused(argument: Any) -> None:
    with pytest.raises(ValueError, match="sharing"):
        RecurrentDropoutLSTM(D, H, sharing=argument)


def test_torchs_dropout_between_layers_leaves_recursions_alone() -> None:
    """What the chapter says of nn.LSTM(dropout=): the first layer does not know it."""
    stack, x = nn.LSTM(D, H, num_layers=2, dropout=1.0, dtype=torch.float64), inputs(2)
    noisy, plain = stack.train()(x)[1], stack.eval()(x)[1]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(noisy, plain, strict=True))
    assert not torch.equal(noisy[1][1], plain[1][1])
