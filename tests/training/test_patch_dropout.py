"""What is patch dropout's own: a fixed number of tokens without replacement, an output that is shorter, the mask."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from dropoutlib import PatchDropout, audit, functional, monte_carlo, predict, propagate_moments
from dropoutlib.noise import Subset


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def every_choice(tokens: int, kept: int) -> Tensor:
    """All keep masks that keep so many, of shape (choices, tokens)."""
    masks = torch.zeros(math.comb(tokens, kept), tokens)
    for row, places in enumerate(itertools.combinations(range(tokens), kept)):
        masks[row, list(places)] = 1
    return masks


# The law


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_every_choice_of_tokens_is_as_probable_as_the_other(prefix: int) -> None:
    layer, tokens, examples = PatchDropout(0.4, prefix), 5, 40_000
    x = torch.arange(tokens + prefix).double().repeat(examples, 1).unsqueeze(-1)
    y = layer(x).squeeze(-1)
    assert layer.num_kept(tokens) == 3 and y.shape == (examples, prefix + 3)
    assert (y[:, :prefix] == x[:, :prefix, 0]).all() and (y.diff() > 0).all(), "a prefix in front, and the order"
    counts = Counter(map(tuple, y[:, prefix:].int().tolist()))
    expected, choices = examples / 10, 10
    assert len(counts) == choices
    deviation = math.sqrt(expected * (1 - 1 / choices))
    assert all(abs(count - expected) < 6 * deviation for count in counts.values())
    first = counts[min(counts)] / examples
    again = layer(x).squeeze(-1)[:, prefix:].int()
    both = ((y[:, prefix:].int() == again).all(1) & (again == again[:1]).all(1)).double().mean()
    assert abs(both - first**2) < 6 * math.sqrt(first**2 / examples), "calls share their draw"


@pytest.mark.parametrize(("tokens", "p"), [(2, 0.5), (4, 0.5), (6, 0.3), (6, 0.8), (7, 0.5), (5, 0.95)])
def test_a_mean_pool_has_the_mean_and_the_variance_of_a_sample_without_replacement(tokens: int, p: float) -> None:
    layer, x = PatchDropout(p, 0), torch.randn(tokens, 3, dtype=torch.float64)
    kept = layer.num_kept(tokens)
    masks = every_choice(tokens, kept)
    pools = layer(x.expand(len(masks), -1, -1), noise=masks).mean(1)
    spread = x.var(0, correction=1)
    torch.testing.assert_close(pools.mean(0), x.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(pools.var(0, correction=0), (1 - kept / tokens) * spread / kept, rtol=0, atol=1e-12)


def test_attention_over_what_is_left_is_biased_towards_equal_weights() -> None:
    """From equal weights, where one token is left, to those of attention, where all are."""
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    x = torch.cat([scores.unsqueeze(1), torch.eye(4, dtype=torch.float64)], dim=1)     # the values name the tokens
    weights = []
    for kept in range(1, 5):
        masks = every_choice(4, kept)
        left = functional.patch_dropout(x.expand(len(masks), -1, -1), 1 - kept / 4, num_prefix_tokens=0, noise=masks)
        weights.append((left[..., :1].softmax(1) * left[..., 1:]).sum(1).mean(0))
    torch.testing.assert_close(weights[0], torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights[3], scores.softmax(0), rtol=0, atol=1e-12)
    largest, smallest = torch.stack(weights).T[[2, 0]]
    assert (largest.diff() > 0.05).all() and (smallest.diff() < -0.005).all()


def test_the_number_of_dropped_tokens_is_the_nearest_one() -> None:
    """Against exact fractions, for every rate of two digits; of two the smaller one, and never all tokens."""
    for percent, tokens in itertools.product(range(100), range(1, 260)):
        kept = PatchDropout(percent / 100).num_kept(tokens)
        distance = abs(tokens - kept - Fraction(percent, 100) * tokens)
        assert distance <= Fraction(1, 2) or (kept == 1 and distance < 1), (percent, tokens)
    assert [PatchDropout(0.5).num_kept(tokens) for tokens in range(6)] == [0, 1, 1, 2, 2, 3]


def of_timm(tokens: int, prob: float) -> int:
    return max(1, int(tokens * (1.0 - prob)))


def test_timm_keeps_as_many_or_fewer() -> None:
    """It rounds 1 - p times the number down, after a rounding of 1 - p: 10 tokens at 0.8 are 1.9999999999999996."""
    found = {(tokens, p): (PatchDropout(p).num_kept(tokens), of_timm(tokens, p))
             for tokens, p in [(196, 0.5), (196, 0.3), (49, 0.25), (10, 0.8), (100, 0.8), (256, 0.75)]}
    assert found == {(196, 0.5): (98, 98), (196, 0.3): (137, 137), (49, 0.25): (37, 36), (10, 0.8): (2, 1),
                     (100, 0.8): (20, 19), (256, 0.75): (64, 64)}
    assert round(1 - 137 / 196, 5) == 0.30102 and round(1 - 36 / 49, 4) == 0.2653
    for percent, tokens in itertools.product(range(100), range(1, 260)):
        assert 0 <= PatchDropout(percent / 100).num_kept(tokens) - of_timm(tokens, percent / 100) <= 1


def test_the_tokens_are_those_of_timm_for_its_indices() -> None:
    x, prefix = torch.randn(8, 12, 3), 2
    indices = torch.argsort(torch.randn(8, 10), dim=-1)[:, :of_timm(10, 0.5)].sort(-1).values
    theirs = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, indices.unsqueeze(-1).expand(-1, -1, 3))], dim=1)
    keep = torch.zeros(8, 10, dtype=torch.bool).scatter(1, indices, True)
    assert torch.equal(PatchDropout(0.5, prefix)(x, noise=keep), theirs)


# The mask


def test_a_mask_of_keys_is_the_shorter_sequence_for_the_queries_that_are_left() -> None:
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    layer = PatchDropout(0.5)
    keep = layer.draw(x)
    keys = pad(keep, (1, 0), value=True)
    left = layer(x, noise=keep)
    masked = scaled_dot_product_attention(x, x, x, attn_mask=keys.unsqueeze(1))
    short = scaled_dot_product_attention(left, left, left)
    torch.testing.assert_close(masked[keys].reshape(short.shape), short, rtol=0, atol=1e-12)
    assert masked.isfinite().all(), "a query without a key"


def test_noise_may_be_shared_by_the_examples() -> None:
    x, layer = torch.randn(4, 6, 2), PatchDropout(0.4, 0)
    keep = torch.tensor([1, 0, 1, 1, 0, 1])
    for noise in (keep, keep.bool(), keep.float(), keep.expand(1, 6), keep.expand(4, 6)):
        assert torch.equal(layer(x, noise=noise), x[:, [0, 2, 3, 5]])


def test_noise_without_a_draw_is_random_for_nothing() -> None:
    x, layer = torch.randn(4, 6, 2), PatchDropout(0.4)
    keep, before = layer.draw(x), torch.get_rng_state()
    assert torch.equal(layer(x, noise=keep), layer(x, noise=keep))
    layer.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)


# Zero means zero: what is dropped is gone


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_dropped_leaves_nothing(bad: float) -> None:
    keep = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 1, 0, 1]])
    x = torch.where(pad(keep, (1, 0), value=1).bool().unsqueeze(-1), 1.0, bad).expand(-1, -1, 3).clone()
    x.requires_grad_()
    y = PatchDropout(0.4)(x, noise=keep)
    assert (y == 1).all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, pad(keep, (1, 0), value=1).float().unsqueeze(-1).expand_as(x))
    kept = torch.full((1, 3, 1), bad)
    torch.testing.assert_close(PatchDropout(0.5)(kept), kept[:, :2], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(("p", "tokens"), [(0.0, 6), (0.05, 6), (0.9, 1), (0.5, 0)])
def test_where_nothing_is_dropped_the_input_is_returned_without_a_draw(p: float, tokens: int) -> None:
    x, layer = torch.randn(2, 1 + tokens, 3), PatchDropout(p)
    before = torch.get_rng_state()
    assert layer(x) is x and layer.eval()(x) is x
    keep = layer.train().draw(x)
    assert keep.shape == (2, tokens) and keep.all()
    assert torch.equal(layer(x, noise=keep), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_p_is_read_at_every_call() -> None:
    x, layer = torch.randn(2, 11, 3), PatchDropout(0.5)
    layer.p = 0.8
    assert layer(x).shape == (2, 3, 3) and layer.num_kept(10) == 2
    layer.p = 0.0
    assert layer(x) is x
    layer.p = 1.0
    for call in (lambda: layer(x), lambda: layer.eval()(x), lambda: layer.train().draw(x), lambda: layer.num_kept(3)):
        with pytest.raises(ValueError, match="less than 1 for patch dropout, but got 1"):
            call()


# Shapes and transforms


@pytest.mark.parametrize("shape", [(0, 9, 4), (4, 9, 0), (1, 9, 4), (3, 2, 4), (70, 197, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_shapes_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, layer = torch.randn(shape, dtype=dtype, requires_grad=True), PatchDropout(0.5)
    y = layer(x)
    assert y.shape == (shape[0], 1 + layer.num_kept(shape[1] - 1), shape[2]) and y.dtype == dtype
    (gradient,) = torch.autograd.grad(y.abs().sum(), x)
    assert gradient.shape == x.shape and gradient.isfinite().all()
    meta = layer(x.to("meta"))
    assert meta.is_meta and meta.shape == y.shape


def test_any_strides() -> None:
    whole, layer = torch.randn(6, 10, 8), PatchDropout(0.5)
    for x in (whole.transpose(0, 1), whole.transpose(1, 2), whole[:, ::2], whole[:1].expand(6, -1, -1)):
        keep = layer.draw(x)
        assert torch.equal(layer(x, noise=keep), layer(x.contiguous(), noise=keep))
    before = whole.clone()
    layer(whole)
    assert torch.equal(whole, before)


def test_vmap_in_each_mode_of_randomness() -> None:
    x, layer = torch.randn(20, 13, 3), PatchDropout(0.5)

    def single(x: Tensor) -> Tensor:
        return layer(x.unsqueeze(0)).squeeze(0)

    copies = x[:1].expand(20, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(single)(x)
    same = torch.vmap(single, randomness="same")(copies)
    assert same.shape == (20, 7, 3) and (same == same[0]).all()
    assert len(torch.vmap(single, randomness="different")(copies).unique(dim=0)) > 10
    keep = layer.draw(x)
    mapped = torch.vmap(lambda x, keep: layer(x.unsqueeze(0), noise=keep.unsqueeze(0)).squeeze(0))(x, keep)
    assert torch.equal(mapped, layer(x, noise=keep))


def test_compiled_for_sizes_that_change() -> None:
    torch._dynamo.reset()
    layer = PatchDropout(0.3)
    compiled = torch.compile(lambda x, keep: (layer(x), layer(x, noise=keep)), backend="aot_eager", fullgraph=True,
                             dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((5, 12, 3), (70, 40, 3), (2, 197, 3)):
            x = torch.randn(shape)
            keep = layer.draw(x)
            drawn, given = compiled(x, keep)
            assert torch.equal(given, layer(x, noise=keep)) and drawn.shape == given.shape
            assert not torch.equal(drawn, compiled(x, keep)[0])


# In a network


class Transformer(nn.Module):
    """One head of attention with a class token."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.drop = PatchDropout(p)
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1))
        return self.head(scaled_dot_product_attention(*self.mix(x).chunk(3, dim=-1))[:, 0])


def test_a_network_computes_less() -> None:
    model, x = Transformer(0.75), torch.randn(4, 16, 8)
    cost = {}
    for mode in (True, False):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):   # the others may not be counted
            model.train(mode)(x)
        cost[mode] = counter.get_total_flops() - 2 * 4 * 8 * 2      # the head sees one token in both
    linear = 2 * 4 * 8 * 24
    attention = 2 * 2 * 4 * 8
    assert cost == {True: 5 * linear + 25 * attention, False: 17 * linear + 289 * attention}


def test_tools_of_the_library_know_it() -> None:
    model, x = Transformer(0.5), torch.randn(4, 16, 8)
    assert not audit(model, x)
    with monte_carlo(model, "fixed"), torch.no_grad():
        assert torch.equal(model(x), model(x))
        assert torch.allclose(model(x)[:1], model(x[:1]))
    assert predict(model, x, num_samples=8, task="regression").variance.min() > 0
    with pytest.raises(NotImplementedError, match=r"0 \(PatchDropout\) cannot be followed"):
        propagate_moments(nn.Sequential(PatchDropout(0.5), nn.Linear(8, 2)), x)


# Bad input


def test_bad_arguments_are_named() -> None:
    x, layer = torch.randn(2, 7, 3), PatchDropout(0.5)
    keep = layer.draw(x)
    for kind, words, call in [
        (ValueError, "probability has to be less than 1 for patch dropout, but got 1", lambda: PatchDropout(1)),
        (ValueError, "num_prefix_tokens has to be at least 0, but got -1", lambda: PatchDropout(0.5, -1)),
        (TypeError, "num_prefix_tokens has to be a whole number, but got True", lambda: PatchDropout(0.5, True)),
        (TypeError, "num_prefix_tokens has to be a whole number, but got 0.5", lambda: functional.patch_dropout(
            x, 0.5, True, 0.5)),
        (ValueError, "num_tokens has to be at least 0, but got -3", lambda: layer.num_kept(-3)),
        (RuntimeError, r"\(N, tokens, features\), but got the shape \(7, 3\): pass input\[None\]", lambda: layer(x[0])),
        (RuntimeError, r"\(N, tokens, features\), but got the shape \(1, 2, 7, 3\)$", lambda: layer(x[None])),
        (RuntimeError, r"at least num_prefix_tokens=9 tokens.*\(2, 7, 3\)", lambda: PatchDropout(0.5, 9)(x)),
        (RuntimeError, r"at least num_prefix_tokens=9 tokens", lambda: PatchDropout(0.5, 9).eval()(x)),
        (ValueError, "noise has to keep 3 of 6 in every row, but keeps 6", lambda: layer(x, noise=torch.ones(6))),
        (ValueError, "noise has to keep 3 of 6 in every row, but keeps 2", lambda: layer(
            x, noise=keep & (keep.cumsum(1) < 3))),
        (ValueError, r"noise.*\(2, 6\) of the draw.*\(2, 7\)", lambda: layer(x, noise=torch.ones(2, 7))),
        (ValueError, r"noise.*0 \(drop\) or 1 \(keep\)", lambda: layer(x, noise=2 * keep.float())),
        (ValueError, "count has to be at least 0, but got -1", lambda: Subset(-1)),
        (TypeError, "count has to be a whole number", lambda: Subset(0.5)),
        (ValueError, r"x has to have at least 4 elements.*\(2, 3\)", lambda: Subset(4).sample(torch.ones(2, 3))),
        (RuntimeError, "floating point", lambda: Subset(1).sample(torch.ones(2, 3).long())),
    ]:
        with pytest.raises(kind, match=words):
            call()


def test_an_export_in_training_needs_a_fixed_number_of_tokens() -> None:
    tokens = ({1: torch.export.Dim("tokens", min=4, max=100)},)
    layer, x = PatchDropout(0.5), torch.randn(2, 9, 3)
    with pytest.raises(RuntimeError, match=r"tokens that PatchDropout keeps depends on the sizes.*fixed ones"):
        torch.export.export(layer, (x,), dynamic_shapes=tokens)
    exported = torch.export.export(layer.eval(), (x,), dynamic_shapes=tokens).module()
    assert exported(x[:, :5]).shape == (2, 5, 3)
