"""What is R-Drop's own: the divergence of two passes, its mean over the masks, and what counts for the mean."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib import Dropout, RDropLoss, StochasticDepth
from dropoutlib.enumeration import distribution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


SHAPES = {"batch": (6, 5), "sequence": (4, 5, 3), "images": (2, 5, 3, 4), "one example": (5,)}


def made(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two passes, and labels."""
    first, second = torch.randn(2, *shape, dtype=torch.float64)
    return first, second, torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else ())


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the two divergences of torch, for each position."""
    axis = min(1, first.dim() - 1)
    p, q = first.log_softmax(axis), second.log_softmax(axis)
    both = F.kl_div(p, q, reduction="none", log_target=True) + F.kl_div(q, p, reduction="none", log_target=True)
    return both.sum(axis) / 2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_it_is_torchs_cross_entropies_and_divergences(shape, smoothing, reduction) -> None:
    first, second, target = made(shape)
    expected = divergence(first, second)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.mean()}[reduction]
    entropy = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    loss = RDropLoss(0.7, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(loss(first, second, target),
                               entropy(first, target) + entropy(second, target) + 0.7 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_target_of_probabilities(shape) -> None:
    first, second, _ = made(shape)
    target = torch.randn(shape, dtype=torch.float64).softmax(min(1, len(shape) - 1))
    expected = (F.cross_entropy(first, target) + F.cross_entropy(second, target)
                + 2 * divergence(first, second).mean())
    torch.testing.assert_close(RDropLoss(2.0)(first, second, target), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_counts_for_nothing(reduction, smoothing) -> None:
    """A batch with padding has the loss and the gradients of the words that are no padding."""
    first, second = torch.randn(2, 3, 5, 4, dtype=torch.float64).requires_grad_()
    target = torch.randint(5, (3, 4))
    target[:, 2:] = 9
    loss = RDropLoss(1.5, ignore_index=9, reduction=reduction, label_smoothing=smoothing)
    whole, short = loss(first, second, target), loss(first[..., :2], second[..., :2], target[:, :2])
    torch.testing.assert_close(whole, short, rtol=0, atol=1e-12)
    for found, expected in zip(torch.autograd.grad(whole, (first, second)),
                               torch.autograd.grad(short, (first, second)), strict=True):
        assert not found[..., 2:].any()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    each = RDropLoss(1.5, ignore_index=9, reduction="none", label_smoothing=smoothing)(first, second, target)
    assert each.shape == (3, 4) and not each[:, 2:].any()


def test_where_nothing_counts_the_mean_is_that_of_torch() -> None:
    first, second, _ = made((2, 5))
    target = torch.full((2,), -100)
    assert RDropLoss()(first, second, target).isnan() and F.cross_entropy(first, target).isnan()
    assert RDropLoss(reduction="sum")(first, second, target) == 0


def test_the_divergence_is_never_negative_and_zero_for_equal_passes() -> None:
    """In single precision, where a difference of two sums is negative every other time."""
    first = 4 * torch.randn(10**4, 20)
    second = first + 1e-4 * torch.randn(10**4, 20)
    target = torch.zeros(10**4, dtype=torch.long)
    one, zero = RDropLoss(1.0, reduction="none"), RDropLoss(0.0, reduction="none")
    assert (one(first, second, target) >= zero(first, second, target)).all()
    assert torch.equal(one(first, first, target), 2 * F.cross_entropy(first, target, reduction="none"))


def test_it_does_not_matter_which_pass_is_the_first() -> None:
    first, second, target = made((6, 5))
    assert torch.equal(RDropLoss(3.0)(first, second, target), RDropLoss(3.0)(second, first, target))


def test_gradients_flow_through_both_passes() -> None:
    first, second, target = made((3, 5))
    tensors = first.requires_grad_(), second.requires_grad_()
    assert torch.autograd.gradcheck(lambda one, other: RDropLoss(2.0)(one, other, target), tensors)
    assert torch.autograd.gradgradcheck(lambda one, other: RDropLoss(2.0)(one, other, target), tensors)
    gradient, = torch.autograd.grad(RDropLoss(1.0)(first, second, target) - RDropLoss(0.0)(first, second, target),
                                    first)
    p, q, apart = first.softmax(1), second.softmax(1), first - second
    slope = p - q + p * (apart - (p * apart).sum(1, keepdim=True))
    torch.testing.assert_close(gradient, slope / 2 / 3)


def test_a_class_that_the_model_excludes_has_no_part() -> None:
    first, second, target = made((4, 5))
    target = target.clamp(max=3)
    without = RDropLoss(2.0)(first[:, :4], second[:, :4], target)
    first, second = (each.index_fill(1, torch.tensor([4]), -math.inf).requires_grad_() for each in (first, second))
    loss = RDropLoss(2.0)(first, second, target)
    torch.testing.assert_close(loss, without)
    assert all(each.isfinite().all() for each in torch.autograd.grad(loss, (first, second)))
    assert RDropLoss(2.0)(first, first.nan_to_num(neginf=0.0), target) == math.inf


def classifier() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


def logits(weight: Tensor, x: Tensor, keep: Tensor, p: float) -> Tensor:
    return Dropout(p)(x.expand_as(keep), noise=keep) @ weight.T


@pytest.mark.parametrize("p", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 5.0])
def test_mean_over_all_pairs_of_masks(p, alpha) -> None:
    """Twice the mean cross-entropy, and alpha times the covariances of probabilities and logits."""
    (weight, x), target = classifier(), torch.tensor([1])
    loss = RDropLoss(alpha)
    pairs = distribution(lambda keep: loss(*logits(weight, x, keep, p).split(1), target), (2, 4), p)
    once = distribution(lambda keep: torch.cat([found := logits(weight, x, keep, p), found.softmax(0)]), (4,), p)
    entropy = distribution(lambda keep: F.cross_entropy(logits(weight, x, keep, p)[None], target), (4,), p).mean()
    expected = 2 * entropy + alpha * once.covariance()[:3, 3:].trace()
    torch.testing.assert_close(pairs.mean(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("p", "order"), [(0.1, 3), (0.5, 4)])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_small_noise_multiplies_the_penalty_of_dropout(p, order, alpha) -> None:
    """By 1 + alpha, with an error of third order in the size of the logits, of fourth order at p = 1/2."""
    (weight, x), target = classifier(), torch.tensor([2])
    errors = []
    for size in (0.02, 0.01):
        law = distribution(
            lambda keep, size=size: RDropLoss(alpha)(*logits(size * weight, x, keep, p).split(1), target), (2, 4), p)
        mean = size * weight @ x
        pi = mean.softmax(0)
        fisher = pi.diag() - pi.outer(pi)
        covariance = p / (1 - p) * size**2 * weight @ (x**2).diag() @ weight.T
        expected = 2 * F.cross_entropy(mean[None], target) + (1 + alpha) * (fisher @ covariance).trace()
        errors.append((law.mean() - expected).abs().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_two_calls_and_a_doubled_batch_have_the_same_law() -> None:
    """Each example has its own draws in both; with one draw for a batch the halves of a doubled one agree."""
    x = torch.ones(2000, 1)
    target = torch.zeros(2000, dtype=torch.long)

    def divergences(layer: nn.Module, doubled: bool) -> Tensor:
        def passes(x: Tensor) -> Tensor:
            out = layer(x)
            return torch.cat([out, torch.zeros_like(out)], 1)

        both = passes(torch.cat([x, x])).chunk(2) if doubled else (passes(x), passes(x))
        return (RDropLoss(1.0, reduction="none")(*both, target) - RDropLoss(0.0, reduction="none")(*both, target))

    for layer in (Dropout(0.5), StochasticDepth(0.5, "row")):
        shares = [(divergences(layer, doubled) > 0).double().mean().item() for doubled in (True, False)]
        assert shares == pytest.approx([0.5, 0.5], abs=0.08)
    shared = StochasticDepth(0.5, "batch")
    assert not any(divergences(shared, doubled=True).any() for _ in range(20))
    assert any(divergences(shared, doubled=False).any() for _ in range(40))


def test_in_evaluation_it_is_twice_the_cross_entropy() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Dropout(0.5), nn.Linear(8, 5)).eval()
    x, target = torch.randn(6, 4), torch.randint(5, (6,))
    assert torch.equal(RDropLoss(5.0)(model(x), model(x), target), 2 * F.cross_entropy(model(x), target))


def test_other_conventions_are_this_loss_with_another_alpha() -> None:
    """The averaged loss of the authors' README; the mean over the classes of torch's kl_div and of bert4torch."""
    first, second, target = made((6, 5))
    entropies = F.cross_entropy(first, target) + F.cross_entropy(second, target)
    mean = divergence(first, second).mean()
    torch.testing.assert_close(entropies / 2 + 0.3 * mean, RDropLoss(0.6)(first, second, target) / 2)
    pairs = ((first, second), (second, first))
    of_classes = sum(F.kl_div(a.log_softmax(1), b.softmax(1), reduction="none").mean() for a, b in pairs)
    torch.testing.assert_close(entropies / 2 + 4 * of_classes / 4, RDropLoss(4 / 5)(first, second, target) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_devices_and_transforms(dtype) -> None:
    first, second, target = made((6, 5))
    first, second = first.to(dtype), second.to(dtype)
    loss = RDropLoss(1.0)
    assert loss(first, second, target).dtype is dtype
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(first, second, target), loss(first, second, target))
    each = torch.vmap(loss)(first[:, None], second[:, None], target[:, None])
    torch.testing.assert_close(each.mean(), loss(first, second, target), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(first, second, target).isfinite()


def test_copies_and_repr() -> None:
    loss = RDropLoss(2, ignore_index=0, reduction="sum", label_smoothing=0.1)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == "RDropLoss(alpha=2.0, ignore_index=0, reduction='sum', label_smoothing=0.1)"
    assert not loss.state_dict() and isinstance(loss, nn.Module)


GOOD = {"first": torch.ones(2, 5), "second": torch.ones(2, 5), "target": torch.tensor([0, 1])}


@pytest.mark.parametrize(("error", "words", "options"), [
    (ValueError, "alpha has to be at least 0 and finite, but got -1", {"alpha": -1}),
    (ValueError, "alpha.*nan", {"alpha": math.nan}), (TypeError, "alpha.*'1'", {"alpha": "1"}),
    (ValueError, "reduction.*'batchmean'", {"reduction": "batchmean"}),
    (ValueError, "label_smoothing.*1.5", {"label_smoothing": 1.5}),
    (TypeError, "ignore_index.*0.5", {"ignore_index": 0.5}),
])
def test_bad_settings_are_named(error, words, options) -> None:
    with pytest.raises(error, match=words):
        RDropLoss(**options)


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_set_later_is_checked_too(alpha: float) -> None:
    loss = RDropLoss()
    loss.alpha = alpha
    with pytest.raises(ValueError, match=f"alpha has to be at least 0 and finite, but got {alpha}"):
        loss(**GOOD)


@pytest.mark.parametrize(("error", "words", "options"), [
    (ValueError, r"first and second.*\(2, 5\) and \(1, 5\)", {"second": torch.ones(1, 5)}),
    (TypeError, "second.*int", {"second": 1}), (RuntimeError, "first.*int64", {"first": torch.ones(2, 5).long()}),
    (RuntimeError, r"first.*\(\)", {"first": torch.tensor(1.0)}),
    (RuntimeError, "second.*complex", {"second": torch.ones(2, 5, dtype=torch.complex64)}),
    (TypeError, "target.*list", {"target": [0, 1]}),
    (ValueError, r"target holds labels, as torch.int64, and has to be of the shape \(2,\).*\(2, 5\).*\(3,\)$",
     {"target": torch.tensor([0, 1, 2])}),
    (ValueError, r"target holds probabilities, as torch.float32.* labels are whole numbers",
     {"target": torch.tensor([0.0, 1.0])}),
    (ValueError, r"target holds labels, as torch.int64.* labels are whole numbers", {"target": torch.eye(2, 5).long()}),
])
def test_bad_arguments_are_named(error, words, options) -> None:
    with pytest.raises(error, match=words):
        RDropLoss()(**{**GOOD, **options})


@pytest.mark.parametrize(("logits", "target", "words"), [
    (torch.ones(2, 6, 11), torch.ones(2, 6, dtype=torch.long), r"\(2, 11\).*\(2, 6, 11\).*\(2, 6\): the classes are"),
    (torch.ones(2, 6, 11), torch.ones(2, 6, 12), r"\(2, 6, 11\) for logits.*\(2, 6, 12\)$"),
    (torch.ones(6, 3), torch.ones(6, 1, dtype=torch.long), r"\(6,\) for logits.*\(6, 1\)$"),
    (torch.ones(3), torch.ones(1, dtype=torch.long), r"\(\) for logits of the shape \(3,\), but got the shape \(1,\)$"),
])
def test_a_target_of_another_shape_is_named(logits: torch.Tensor, target: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RDropLoss()(logits, logits, target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_labels_that_are_bytes(reduction: str) -> None:
    """156 is -100 among bytes."""
    first, second = torch.randn(2, 6, 200)
    target = torch.tensor([156, 3, 156, 4, 5, 6])
    loss = RDropLoss(reduction=reduction)
    torch.testing.assert_close(loss(first, second, target.to(torch.uint8)), loss(first, second, target))
