"""What is attention dropout's own: weights are dropped behind the softmax, and evaluation is torch's attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dropoutlib import attention_dropout, audit, functional
from dropoutlib.enumeration import distribution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(*batch: int, queries: int = 2, keys: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value, of 4 and 5 features."""
    return [torch.randn(*batch, *shape, dtype=dtype) for shape in ((queries, 4), (keys, 4), (keys, 5))]


def weights_of(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.mT / 2).softmax(-1)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_mean_and_covariance_are_those_of_the_chapter(p: float) -> None:
    """Features of a value share their noise, p/(1 - p) sum a_k^2 v_k v_k^T, and queries do not."""
    query, key, value = made()
    law = distribution(lambda keep: attention_dropout(query, key, value, p, noise=keep), (2, 3), p)
    a = weights_of(query, key)
    torch.testing.assert_close(law.mean(), a @ value, rtol=0, atol=1e-12)
    each = [p / (1 - p) * torch.einsum("k,ki,kj->ij", row**2, value, value) for row in a]
    torch.testing.assert_close(law.covariance(), torch.block_diag(*each), rtol=0, atol=1e-12)


def test_a_row_of_weights_has_mean_one_and_may_be_empty() -> None:
    p, (query, key, _) = 0.3, made(queries=1, keys=4)
    law = distribution(lambda keep: attention_dropout(query, key, torch.ones(4, 1).double(), p, noise=keep), (1, 4), p)
    squares = weights_of(query, key).square().sum()
    torch.testing.assert_close(law.mean().squeeze(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.variance().squeeze(), p / (1 - p) * squares, rtol=0, atol=1e-12)
    empty = law.probabilities[law.outputs.flatten() == 0].sum()
    torch.testing.assert_close(empty, torch.tensor(p**4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_queries_keys_heads_and_examples_have_draws_of_their_own() -> None:
    query, key, value = torch.zeros(50, 4, 30, 2), torch.zeros(50, 4, 20, 2), torch.eye(20)
    kept = attention_dropout(query, key, value, 0.3) != 0
    assert kept.shape == (50, 4, 30, 20)
    assert abs(kept.double().mean().item() - 0.7) < 6 * math.sqrt(0.21 / kept.numel())
    for axis in range(4):
        first, second = kept.select(axis, 0).double(), kept.select(axis, 1).double()
        assert ((first - 0.7) * (second - 0.7)).mean().abs() < 6 * 0.21 / math.sqrt(first.numel())


MASKS = {
    "none": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.3}, "scale 0": {"scale": 0.0},
    "choice": {"attn_mask": torch.tensor([[True, False, True], [False, True, True]])},
    "nothing to see": {"attn_mask": torch.tensor([[False, False, False], [True, True, False]])},
    "added": {"attn_mask": torch.tensor([[0.5, -1.0, 0.0], [-math.inf, 2.0, 0.0]])},
    "heads": {"attn_mask": torch.rand(2, 1, 2, 3) > 0.3},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_it_is_torchs_attention_where_nothing_is_dropped(options: dict[str, object]) -> None:
    query, key, value = (each.requires_grad_() for each in made(2, 3, dtype=torch.float32))
    expected = scaled_dot_product_attention(query, key, value, **options)
    gradients = torch.autograd.grad(expected.sin().sum(), (query, key, value))
    for output in (attention_dropout(query, key, value, 0.0, **options),
                   attention_dropout(query, key, value, 0.4, training=False, **options)):
        assert torch.equal(output, expected)
    kept = attention_dropout(query, key, value, 0.5, noise=torch.ones(2, 3), **options)
    torch.testing.assert_close(kept, 2 * expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad((kept / 2).sin().sum(), (query, key, value))
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)


def test_it_drops_as_torchs_function_does() -> None:
    """Mean and variance of torch's own, over many heads, at twelve standard errors of ours."""
    p, heads, (query, key, value) = 0.4, 100_000, made(queries=1, dtype=torch.float32)
    theirs = scaled_dot_product_attention(query.expand(heads, -1, -1), key.expand(heads, -1, -1),
                                          value.expand(heads, -1, -1), dropout_p=p)[:, 0]
    a = weights_of(query, key)
    variance = p / (1 - p) * (a**2 @ value**2)[0]
    assert ((theirs.mean(0) - (a @ value)[0]).abs() < 12 * (variance / heads).sqrt()).all()
    torch.testing.assert_close(theirs.var(0), variance, rtol=0.05, atol=0)


def test_a_dropped_weight_is_zero_and_everything_can_be_dropped() -> None:
    query, key, value = (each.requires_grad_() for each in made())
    output = attention_dropout(query, key, value, 1.0)
    assert not output.any()
    assert not any(each.any() for each in torch.autograd.grad(output.sum(), (query, key, value)))
    broken = torch.where(torch.tensor([[True], [False]]), math.nan, query)
    output = attention_dropout(broken, key, value, 0.5, noise=torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert not output[0].any() and output[1].isfinite().all()


def test_gradients_with_the_mask_held_fixed() -> None:
    tensors = tuple(each.requires_grad_() for each in made(2))
    keep = torch.rand(2, 2, 3) > 0.4
    assert torch.autograd.gradcheck(lambda *each: attention_dropout(*each, 0.4, noise=keep, is_causal=True), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_output_has_the_type_of_the_value(dtype: torch.dtype) -> None:
    query, key, value = made(2, dtype=dtype)
    for p in (0.0, 0.5):
        assert attention_dropout(query, key, value, p).dtype is dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert attention_dropout(query, key, value, p).dtype in (torch.bfloat16, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_products_beyond_half_precision_are_those_of_torch(dtype: torch.dtype, sign: int) -> None:
    """64 products of 1600 are beyond 65504 before they are scaled."""
    query, value = torch.full((4, 64), 40.0, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    output = attention_dropout(query, sign * query, value, 0.5, noise=torch.ones(4, 4))
    assert torch.equal(output, torch.full_like(output, 2.0))
    with torch.autocast("cpu", dtype):
        output = attention_dropout(query.float(), sign * query.float(), value.float(), 0.5, noise=torch.ones(4, 4))
    assert output.dtype is dtype and torch.equal(output, torch.full_like(output, 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_precise_as_torchs_own_expression(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (2 * torch.randn(8, 16, 64) for _ in range(3))
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    exact = scaled_dot_product_attention(query.double(), key.double(), value.double())
    with sdpa_kernel(SDPBackend.MATH):
        theirs = scaled_dot_product_attention(query, key, value)
    ours = attention_dropout(query, key, value, 0.0, noise=torch.ones(16, 16))
    assert (ours - exact).abs().max() <= 1.01 * (theirs - exact).abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("mask", "error", "words"), [
    (torch.ones(2, 3, dtype=torch.int64), RuntimeError, "attn_mask has to be bool.*but got torch.int64"),
    (torch.ones(2, 3, dtype=torch.uint8), RuntimeError, "attn_mask has to be bool.*but got torch.uint8"),
    (torch.ones(2, 3, dtype=torch.complex64), RuntimeError, "attn_mask has to be bool.*but got torch.complex64"),
    (torch.ones(5, 2, 2, 3, dtype=torch.bool), ValueError, r"attn_mask.*\(2, 2, 3\) of the scores.*\(5, 2, 2, 3\)"),
    (torch.ones(2, 4, dtype=torch.bool), ValueError, r"attn_mask.*\(2, 2, 3\) of the scores.*\(2, 4\)"),
])
def test_masks_that_would_mean_something_else(mask: Tensor, error: type[Exception], words: str, training: bool) -> None:
    query, key, value = made(2)
    with pytest.raises(error, match=words):
        attention_dropout(query, key, value, 0.5, training, attn_mask=mask)


@pytest.mark.parametrize("training", [True, False])
def test_types_that_differ_are_named_in_both_modes(training: bool) -> None:
    query, key, value = made(2, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"of one type, but got torch.float16, torch.float16 and torch.float32"):
        attention_dropout(query, key, value.float(), 0.1, training)


def test_the_least_number_of_a_mask_hides_a_key_under_autocast_too() -> None:
    query, key, value = torch.randn(3, 1, 2, 8)
    mask = torch.full((2, 2), torch.finfo(torch.float32).min)
    mask[0, 0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        trained = attention_dropout(query, key, value, 0.5, noise=torch.ones(1), attn_mask=mask) / 2
        torch.testing.assert_close(trained, attention_dropout(query, key, value, 0.5, False, attn_mask=mask))
    assert not trained[0, 1].any()


def test_it_runs_compiled_and_under_vmap() -> None:
    query, key, value = made(4, dtype=torch.float32)
    compiled = torch.compile(attention_dropout, backend="aot_eager", fullgraph=True)
    assert compiled(query, key, value, 0.5).shape == (4, 2, 5)
    drawn = torch.vmap(lambda *each: attention_dropout(*each, 0.5), randomness="different")(query, key, value)
    assert drawn.shape == (4, 2, 5)


class Attention(nn.Module):
    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets

    def forward(self, x: Tensor) -> Tensor:
        if self.forgets:
            return scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        return attention_dropout(x, x, x, 0.5, self.training)


def test_audit_finds_attention_that_drops_in_evaluation() -> None:
    x = torch.randn(2, 5, 4)
    assert [found.kind for found in audit(Attention(forgets=True), x)] == ["noise in evaluation"]
    assert not list(audit(Attention(forgets=False), x))


BAD = {
    "p": (ValueError, "1.5", {"p": 1.5}), "p of a wrong type": (TypeError, "half", {"p": "half"}),
    "both masks": (ValueError, "is_causal.*True", {"is_causal": True, "attn_mask": torch.ones(2, 3).bool()}),
    "no tensor": (TypeError, "attn_mask.*int", {"attn_mask": 1}), "scale": (TypeError, "scale.*'a'", {"scale": "a"}),
    "noise in evaluation": (ValueError, "noise", {"training": False, "noise": torch.ones(3)}),
    "noise of a wrong shape": (ValueError, r"\(4,\)", {"noise": torch.ones(4)}),
    "no keep mask": (ValueError, "keep mask", {"noise": torch.full((3,), 2.0)}),
    "integers": (RuntimeError, "key.*int64", {"key": torch.ones(3, 4, dtype=torch.long)}),
    "a vector": (RuntimeError, r"query.*\(4,\)", {"query": torch.ones(4).double()}),
    "batches": (RuntimeError, r"query and key.*\(2, 2, 4\)", {
        "query": torch.ones(2, 2, 4), "key": torch.ones(3, 3, 4)}),
}


@pytest.mark.parametrize(("error", "words", "options"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(error: type[Exception], words: str, options: dict[str, object]) -> None:
    query, key, value = made()
    with pytest.raises(error, match=words):
        functional.attention_dropout(**{"query": query, "key": key, "value": value, "p": 0.5, **options})
