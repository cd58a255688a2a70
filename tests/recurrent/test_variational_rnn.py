"""What is the variational network's own: masks that stay for a sequence, tied or untied, and its inexact test rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import VariationalGRU, VariationalLSTM
from dropoutlib.enumeration import masks
from dropoutlib.recurrent.variational_rnn import VariationalNoise

KINDS = {"LSTM": VariationalLSTM, "GRU": VariationalGRU}
GATES = {"LSTM": 4, "GRU": 3}
D, H = 3, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(mode: str, *sizes: int, **options: Any) -> Any:
    return KINDS[mode](*(sizes or (D, H)), **{"p_input": 0.3, "p_hidden": 0.4, **options}, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def chance(keep: Tensor, p: float) -> Tensor:
    return (keep * (1 - p) + (1 - keep) * p).flatten(1).prod(1)


def by_hand(layer: Any, x: Tensor, noise: VariationalNoise) -> Tensor:
    """One layer, gate by gate and step by step."""
    count = GATES[layer.mode]
    of_x, of_h = (mask.unsqueeze(1).expand(-1, count, -1) if mask.dim() == 2 else mask
                  for mask in (noise.input[0], noise.hidden[0]))
    inputs, states = layer.weight_ih_l0.chunk(count), layer.weight_hh_l0.chunk(count)
    b_x, b_h = layer.bias_ih_l0.chunk(count), layer.bias_hh_l0.chunk(count)
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    outputs = []
    for step in x:
        read_x = [(step * of_x[:, k] / (1 - layer.p_input)) @ inputs[k].T + b_x[k] for k in range(count)]
        read_h = [(h * of_h[:, k] / (1 - layer.p_hidden)) @ states[k].T + b_h[k] for k in range(count)]
        if layer.mode == "LSTM":
            i, f, g, o = (one + other for one, other in zip(read_x, read_h, strict=True))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            r, z = ((read_x[k] + read_h[k]).sigmoid() for k in range(2))
            h = (1 - z) * (read_x[2] + r * read_h[2]).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs) * noise.output / (1 - layer.p_output)


@pytest.mark.parametrize("gates", ["tied", "untied"])
@pytest.mark.parametrize("mode", KINDS)
def test_every_gate_reads_through_its_mask(mode: str, gates: str) -> None:
    layer, x = made(mode, gates=gates, p_output=0.25), normal(6, 5, D).requires_grad_()
    noise = layer.draw(x)
    axes = () if gates == "tied" else (GATES[mode],)
    assert noise.input.shape == (1, 5, *axes, D) and noise.hidden.shape == (1, 5, *axes, H)
    assert noise.output.shape == (5, H) and noise.between.numel() == 0
    weights = [x, *layer.parameters()]
    ours, hand = layer(x, noise=noise)[0], by_hand(layer, x, noise)
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(y.sin().sum(), weights) for y in (ours, hand)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", KINDS)
def test_untied_masks_that_agree_are_tied(mode: str) -> None:
    tied, untied, x = made(mode), made(mode, gates="untied"), normal(5, 2, D)
    untied.load_state_dict(tied.state_dict())
    noise = tied.draw(x)
    wide = noise._replace(**{name: getattr(noise, name).unsqueeze(2).expand(-1, -1, GATES[mode], -1)
                             for name in ("input", "hidden", "between")})
    torch.testing.assert_close(untied(x, noise=wide)[0], tied(x, noise=noise)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("gates", ["tied", "untied"])
@pytest.mark.parametrize("mode", KINDS)
def test_a_mask_deletes_columns_of_the_weights_for_the_whole_sequence(mode: str, gates: str) -> None:
    layer, x, count = made(mode, 1, 1, gates=gates), normal(4, 1, 1), GATES[mode]
    axes = (count,) if gates == "untied" else ()
    for keep in masks(2, 1, 1, *axes, 1):
        plain = getattr(nn, mode)(1, 1, dtype=torch.float64)
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            plain.weight_ih_l0 *= keep[0].reshape(-1, 1).expand(count, 1) / 0.7
            plain.weight_hh_l0 *= keep[1].reshape(-1, 1).expand(count, 1) / 0.6
        noise = layer.draw(x)._replace(input=keep[0], hidden=keep[1])
        torch.testing.assert_close(layer(x, noise=noise), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gates", ["tied", "untied"])
@pytest.mark.parametrize("mode", KINDS)
def test_without_rates_it_is_torchs_layer(mode: str, gates: str) -> None:
    layer = made(mode, D, H, num_layers=2, bidirectional=True, p_input=0.0, p_hidden=0.0, gates=gates)
    plain = getattr(nn, mode)(D, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = normal(6, 3, D)
    ours, theirs = layer(x)[0], plain(x)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad(ours.sin().sum(), layer.parameters()),
                          torch.autograd.grad(theirs.sin().sum(), plain.parameters()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"gates": "untied"}, {"num_layers": 2, "p_output": 0.3}])
@pytest.mark.parametrize("mode", KINDS)
def test_chunks_with_kept_masks_are_the_whole_sequence(mode: str, options: dict[str, Any]) -> None:
    layer, x = made(mode, **options), normal(12, 3, D)
    keep, state, parts = layer.draw(x), None, []
    for chunk in x.split(5):
        part, state = layer(chunk, state, noise=keep)
        parts.append(part)
    whole, last = layer(x, noise=keep)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)
    anew = torch.cat([layer(chunk)[0] for chunk in x.split(5)])
    assert not torch.allclose(anew, whole)


def linear(inputs: int, units: int, **rates: float) -> Any:
    """A GRU that is h = tanh(W x + U h): its update gate is closed, its reset gate open."""
    layer = made("GRU", inputs, units, **rates)
    with torch.no_grad():
        for part in layer.parameters():
            part[:2 * units] = 0
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        layer.bias_ih_l0[:units], layer.bias_ih_l0[units:2 * units] = 1e4, -1e4
    return layer


TINY = 1e-9     # there the tanh is the identity, in double precision


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_a_unit_that_reads_itself_has_one_factor_for_all_steps(p: float) -> None:
    layer, u, n = linear(1, 1, p_input=0.0, p_hidden=p), 0.9, 8
    with torch.no_grad():
        layer.weight_hh_l0[2] = u
    keep = masks(1)
    noise = VariationalNoise(torch.ones(1, 2, 1), keep[None], torch.ones(0, 2, 1), torch.ones(2, 1))
    start = torch.full((1, 2, 1), TINY, dtype=torch.float64)
    with torch.no_grad():
        out = layer(torch.zeros(n, 2, 1).double(), start, noise=noise)[0][..., 0] / TINY
        test = layer.eval()(torch.zeros(n, 1, 1).double(), start[:, :1])[0].flatten() / TINY
    steps = torch.arange(1, n + 1).double()
    mean, square = (out**power @ chance(keep, p) for power in (1, 2))
    torch.testing.assert_close(mean, u**steps * (1 - p) ** (1 - steps), rtol=1e-12, atol=0)
    torch.testing.assert_close(square, u**(2 * steps) * (1 - p) ** (1 - 2 * steps), rtol=1e-12, atol=0)
    torch.testing.assert_close(test, u**steps, rtol=1e-12, atol=0)


def test_the_test_rule_misses_paths_that_meet_a_unit_twice() -> None:
    layer, p = linear(1, 3, p_input=0.0, p_hidden=0.3), 0.3
    matrix, start, keep = layer.weight_hh_l0.detach()[6:], normal(3), masks(3)
    noise = VariationalNoise(torch.ones(1, 8, 1), keep[None], torch.ones(0, 8, 3), torch.ones(8, 3))
    with torch.no_grad():
        out = layer(torch.zeros(2, 8, 1).double(), TINY * start.expand(1, 8, 3).contiguous(), noise=noise)[0]
    expected = matrix @ matrix @ start + p / (1 - p) * matrix @ (matrix.diag() * start)
    torch.testing.assert_close(chance(keep, p) @ out[1] / TINY, expected, rtol=0, atol=1e-12)


def test_steps_share_the_noise_of_their_inputs() -> None:
    """Covariance of two steps: p/(1 - p) sum w^2 x_s x_t. Masks of another step would leave none."""
    layer, p = linear(3, 1, p_input=0.3, p_hidden=0.0), 0.3
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    weight, x, keep = layer.weight_ih_l0.detach()[2], normal(4, 1, 3), masks(3)
    noise = VariationalNoise(keep[None], torch.ones(1, 8, 1), torch.ones(0, 8, 1), torch.ones(8, 1))
    with torch.no_grad():
        out = layer(TINY * x.expand(-1, 8, -1), noise=noise)[0][..., 0] / TINY
    centred = out - (out @ chance(keep, p))[:, None]
    series = x[:, 0] * weight
    torch.testing.assert_close(centred * chance(keep, p) @ centred.T, p / (1 - p) * series @ series.T,
                               rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", KINDS)
def test_the_test_rule_is_torchs_layer_and_not_the_mean(mode: str) -> None:
    gaps = []
    for seed in range(20):
        torch.manual_seed(seed)
        layer, x, keep = made(mode, 2, 2, p_input=0.5, p_hidden=0.5), normal(4, 1, 2), masks(4)
        noise = VariationalNoise(keep[None, :, :2], keep[None, :, 2:], torch.ones(0, 16, 2), torch.ones(16, 2))
        plain = getattr(nn, mode)(2, 2, dtype=torch.float64)
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            mean = layer(x.expand(-1, 16, -1), noise=noise)[0].mean(1)
            test = layer.eval()(x)[0]
            assert torch.equal(test, plain(x)[0])
        gaps.append((mean - test[:, 0]).abs().max().item())
    assert min(gaps) > 1e-3 and max(gaps) > 0.1


def test_a_gru_carries_its_state_over_without_a_mask() -> None:
    layer, x = made("GRU"), torch.zeros(50, 2, D, dtype=torch.float64)
    with torch.no_grad():
        layer.bias_ih_l0[H:2 * H] = 1e4     # the update gate is open
    start = normal(1, 2, H).tanh()
    nothing = layer.draw(x)._replace(hidden=torch.zeros(1, 2, H))
    assert torch.equal(layer(x, start, noise=nothing)[0], start.expand(50, -1, -1))


def test_an_lstm_carries_its_cell_over_without_a_mask() -> None:
    layer, x = made("LSTM"), torch.zeros(50, 2, D, dtype=torch.float64)
    with torch.no_grad():
        layer.bias_ih_l0[:H], layer.bias_ih_l0[H:2 * H] = -1e4, 1e4
    cell = normal(1, 2, H)
    nothing = VariationalNoise(torch.zeros(1, 2, D), torch.zeros(1, 2, H), torch.zeros(0, 2, H), torch.ones(2, H))
    assert torch.equal(layer(x, (torch.zeros_like(cell), cell), noise=nothing)[1][1], cell)


def test_draws_follow_the_law_and_are_independent() -> None:
    """Bounds of six standard errors: of means, and of the products of two different masks."""
    batch, rates = 20_000, (0.2, 0.4, 0.2, 0.3)
    layer = VariationalLSTM(2, 2, 2, p_input=0.2, p_hidden=0.4, p_output=0.3, gates="untied")
    noise = layer.draw(torch.empty(3, batch, 2))
    columns = []
    for mask, p in zip(noise, rates, strict=True):
        assert mask.dtype is torch.bool
        parts = mask.double().movedim(-1 if mask.dim() == 2 else 1, -1)
        parts = parts.reshape(batch, -1) if mask.dim() == 2 else mask.movedim(1, 0).reshape(batch, -1).double()
        assert ((parts.mean(0) - (1 - p)).abs() < 6 * (p * (1 - p) / batch) ** 0.5).all()
        columns.append((parts - (1 - p)) / (p * (1 - p)) ** 0.5)
    correlation = torch.cat(columns, 1)
    correlation = correlation.T @ correlation / batch
    assert ((correlation - correlation.diag().diag()).abs() < 6 / batch**0.5).all()


def test_a_dropped_output_is_silent_at_all_steps() -> None:
    layer = VariationalLSTM(2, 8, p_input=0.0, p_hidden=0.0, p_output=0.5)
    output, (h, _) = layer(torch.randn(30, 64, 2))
    silent = (output == 0).all(0)
    assert ((output != 0).all(0) | silent).all() and 0.4 < silent.float().mean() < 0.6
    assert h.all(), "the state itself is not masked"


@pytest.mark.parametrize("options", [{}, {"gates": "untied"}])
@pytest.mark.parametrize("mode", KINDS)
def test_sampled_inference_draws_in_evaluation(mode: str, options: dict[str, Any]) -> None:
    layer, x = made(mode, inference="sampled", **options).eval(), normal(5, 3, D)
    assert "inference='sampled'" in repr(layer) and not layer.training
    assert not torch.equal(layer(x)[0], layer(x)[0])
    noise = layer.draw(x)
    torch.testing.assert_close(layer(x, noise=noise)[0], by_hand(layer, x, noise), rtol=0, atol=1e-12)
    generator = torch.Generator()
    drawn = layer(x, generator=generator.manual_seed(5))[0]
    assert torch.equal(drawn, layer(x, noise=layer.draw(x, generator=generator.manual_seed(5)))[0])
    assert torch.equal(drawn, layer.train()(x, generator=generator.manual_seed(5))[0])
    layer.inference = "Sampled"     # assigned later: refused where it is used
    with pytest.raises(ValueError, match="inference has to be 'mean' or 'sampled', but got 'Sampled'"):
        layer(x)
    layer.inference = "mean"
    with pytest.raises(ValueError, match="noise"):
        layer.eval()(x, noise=noise)


def test_the_average_of_sampled_passes_comes_to_the_mean() -> None:
    layer, x, keep = made("LSTM", 1, 1, inference="sampled").eval(), normal(3, 1, 1), masks(2)
    noise = VariationalNoise(keep[None, :, :1], keep[None, :, 1:], torch.ones(0, 4, 1), torch.ones(4, 1))
    weights = chance(keep[:, :1], 0.3) * chance(keep[:, 1:], 0.4)
    passes = 20_000
    with torch.no_grad():
        law = layer(x.expand(-1, 4, -1), noise=noise)[0][..., 0]
        found = layer(x.expand(-1, passes, -1))[0][..., 0].mean(1)
    mean = law @ weights
    error = ((law - mean[:, None]) ** 2 @ weights / passes).sqrt()
    assert ((found - mean).abs() < 6 * error).all()


@pytest.mark.parametrize("gates", ["tied", "untied"])
@pytest.mark.parametrize("mode", KINDS)
def test_gradients_with_the_masks_held_fixed(mode: str, gates: str) -> None:
    layer, x = made(mode, 2, 2, gates=gates, p_output=0.3), normal(3, 2, 2).requires_grad_()
    noise = layer.draw(x)
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=noise)[0], (x,))


@pytest.mark.parametrize(("name", "value"), [("gates", "loose"), ("inference", "montecarlo"), ("p_input", 1.5),
                                             ("p_hidden", -0.1), ("p_output", float("nan"))])
def test_a_wrong_choice_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="probability" if name.startswith("p_") else name):
        made("LSTM", **{name: value})
