"""What is nested dropout's own: one length for an example, its law, its test rule, and the order that it enforces."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import NestedDropout, audit, functional, monte_carlo
from dropoutlib.plain_layers import exchanged


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


LAWS = {
    "every length": ({"p": 1.0}, [0.25] * 4),
    "half are whole": ({"p": 0.5}, [0.125, 0.125, 0.125, 0.625]),
    "sizes": ({"p": 1.0, "sizes": [1, 3]}, [0.5, 0, 0.5, 0]),
    "sizes and whole": ({"p": 0.4, "sizes": (4, 2)}, [0, 0.2, 0, 0.8]),
    "weights": ({"p": 1.0, "sizes": [4, 1], "weights": [1, 3]}, [0.75, 0, 0, 0.25]),
    "geometric": ({"p": 1.0, "sizes": range(1, 5), "weights": [8, 4, 2, 1]}, [8 / 15, 4 / 15, 2 / 15, 1 / 15]),
    "nothing is cut": ({"p": 0.0}, [0, 0, 0, 1]),
}


@pytest.mark.parametrize(("options", "chances"), LAWS.values(), ids=LAWS)
def test_moments_are_those_of_the_sum_over_all_lengths(options, chances) -> None:
    x = torch.randn(1, 4, dtype=torch.float64)
    layer, chances = NestedDropout(**options), torch.tensor(chances, dtype=torch.float64)
    outputs = torch.cat([layer(x, noise=torch.tensor([[length]])) for length in (1, 2, 3, 4)])
    keep = torch.stack([chances[unit:].sum() for unit in range(4)])
    torch.testing.assert_close(layer.keep_probability(x)[0], keep, rtol=0, atol=1e-12)
    mean, square = chances @ outputs, torch.einsum("l,li,lj->ij", chances, outputs, outputs)
    torch.testing.assert_close(layer.mean(x)[0], mean, rtol=0, atol=1e-12)
    covariance = square - mean.outer(mean)
    torch.testing.assert_close(layer.variance(x)[0], covariance.diagonal(), rtol=0, atol=1e-12)
    later = torch.minimum(keep[:, None], keep)      # both are kept if the later one is
    torch.testing.assert_close(covariance, (later - keep.outer(keep)) * x[0].outer(x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "chances"), LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lengths_are_drawn_by_their_law(options, chances, dtype) -> None:
    many = 50_000
    lengths = NestedDropout(**options).draw(torch.ones(many, 4, dtype=dtype))
    assert lengths.shape == (many, 1) and lengths.dtype is torch.int64
    counts = Counter(lengths.flatten().tolist())
    for length, chance in enumerate(chances, start=1):
        assert abs(counts[length] / many - chance) <= 6 * math.sqrt(chance * (1 - chance) / many) + 1e-9


def test_examples_have_lengths_of_their_own_and_positions_share_them() -> None:
    kept = NestedDropout(1.0)(torch.ones(20_000, 3, 2, 2)) != 0
    assert torch.equal(kept, kept[..., :1, :1].expand_as(kept))
    assert (kept[:, :-1] >= kept[:, 1:]).all(), "no unit is kept behind one that is dropped"
    lengths = kept[:, :, 0, 0].sum(1).double() - 2
    assert abs((lengths[1:] * lengths[:-1]).mean()) < 6 * (2 / 3) / math.sqrt(20_000)


@pytest.mark.parametrize(("dim", "expected"), [(1, [[1, 1, 1], [0, 0, 0]]), (2, [[1, 0, 0], [1, 0, 0]]),
                                               (-1, [[1, 0, 0], [1, 0, 0]]), (-2, [[1, 1, 1], [0, 0, 0]])])
def test_the_axis_of_the_units(dim, expected) -> None:
    x = torch.ones(1, 2, 3)
    one = torch.ones(1, 1, 1)
    assert torch.equal(NestedDropout(dim=dim)(x, noise=one)[0], torch.tensor(expected).float())
    assert torch.equal(NestedDropout(dim=dim, length=1).eval()(x)[0], torch.tensor(expected).float())


def test_training_at_a_length_is_evaluation_at_this_length() -> None:
    """Nothing is scaled, so that a decoder sees in training what it will see."""
    x, layer = torch.randn(3, 6), NestedDropout()
    for length in range(1, 7):
        trained = layer.train()(x, noise=torch.tensor(length))
        layer.length = length
        assert torch.equal(trained, layer.eval()(x))
        assert torch.equal(trained[:, :length], x[:, :length]) and not trained[:, length:].any()
    layer.length = None
    assert layer(x) is x


def test_dropping_selects() -> None:
    for bad in (math.inf, math.nan):
        x = torch.full((2, 3), bad)
        x[:, 0] = 1
        x.requires_grad_()
        for y in (NestedDropout()(x, noise=torch.ones(2, 1)), NestedDropout(length=1).eval()(x)):
            assert torch.equal(y, torch.tensor([[1.0, 0, 0]] * 2))
            gradient, = torch.autograd.grad(y.sum(), x)
            assert torch.equal(gradient, torch.tensor([[1.0, 0, 0]] * 2))
    never = NestedDropout(1.0, sizes=[1])
    assert torch.equal(never.mean(torch.tensor([[1.0, math.inf]])), torch.tensor([[1.0, 0]]))
    assert not never.variance(torch.tensor([[1.0, math.inf]])).any()


def test_many_sizes_take_no_square_of_memory() -> None:
    units = 50_000
    layer = NestedDropout(1.0, sizes=range(units, 0, -1), weights=[1.0] * units)
    x = torch.ones(400, units)
    assert layer.keep_probability(x)[0, ::10_000].tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2], abs=1e-9)
    assert abs((layer(x) != 0).double().mean() - 0.5) < 6.5 * (1 / 12 / 400) ** 0.5


@pytest.mark.parametrize("count", range(2, 12))
def test_the_first_units_are_never_cut_and_those_behind_all_sizes_always(count) -> None:
    """Exactly, though weights are rounded."""
    layer = NestedDropout(1.0, sizes=range(2, count + 2), weights=[0.1 * (k + 1) for k in range(count)])
    keep = layer.keep_probability(torch.ones(1, count + 4))[0]
    assert (keep[:2] == 1).all() and (keep[-3:] == 0).all() and (keep >= 0).all()
    assert not layer.variance(torch.ones(1, count + 4))[0, -3:].any()


def test_examples_under_vmap_have_lengths_of_their_own() -> None:
    x = torch.ones(2000, 1, 8)
    lengths = torch.vmap(NestedDropout(1.0), randomness="different")(x).sum((1, 2))
    assert len(lengths.unique()) == 8
    assert len(torch.vmap(NestedDropout(1.0), randomness="same")(x).sum((1, 2)).unique()) == 1


def _errors(basis: Tensor, scatter: Tensor) -> Tensor:
    """Squared error of a linear autoencoder with an orthonormal basis, for each length."""
    return scatter.trace() - torch.einsum("id,de,ie->i", basis, scatter, basis).cumsum(0)


def test_the_plain_loss_is_blind_to_rotation_and_the_nested_one_is_least_at_principal_components() -> None:
    data = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    scatter = data.T @ data / 200
    best = torch.linalg.eigh(scatter).eigenvectors.flip(1).T[:3]
    decoded = functional.nested_dropout(data @ best.T, noise=torch.tensor(2)) @ best
    torch.testing.assert_close((data - decoded).square().sum(1).mean(), _errors(best, scatter)[1])
    for weights in ([1, 1, 1], [4, 2, 1]):
        chances = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        layer = NestedDropout(1.0, sizes=(1, 2, 3), weights=weights)
        keep = layer.keep_probability(data @ best.T)[0]
        least = chances @ _errors(best, scatter)
        variances = torch.einsum("id,de,ie->i", best, scatter, best)
        torch.testing.assert_close(least, scatter.trace() - keep @ variances)
        for _ in range(50):
            turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
            turned = _errors(turn @ best, scatter)
            torch.testing.assert_close(turned[-1], _errors(best, scatter)[-1])
            assert chances @ turned > least
    blocks = torch.block_diag(torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q, torch.ones(1, 1)).double()
    some = torch.tensor([0, 0.5, 0.5], dtype=torch.float64)      # sizes 2 and 3: no order inside of the first two
    torch.testing.assert_close(some @ _errors(blocks @ best, scatter), some @ _errors(best, scatter))


def test_monte_carlo_and_audit_know_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), NestedDropout(1.0), nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    assert not list(audit(model, x)) and not list(audit(model[:2], x)), "a code may be the output"
    with monte_carlo(model):
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model(x), model(x))


def test_what_is_plain_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 8), NestedDropout())
    assert isinstance(exchanged(model)[1], nn.Identity)
    with pytest.raises(ValueError, match="NestedDropout with length=3"):
        exchanged(nn.Sequential(NestedDropout(length=3)))


def test_repr() -> None:
    assert repr(NestedDropout(0.2, [1, 2])) == (
        "NestedDropout(p=0.2, sizes=(1, 2), weights=(0.5, 0.5), dim=1, length=None)")


X = torch.ones(2, 4)


@pytest.mark.parametrize(("error", "words", "call"), [
    (ValueError, "sizes.*at least one number", lambda: NestedDropout(sizes=[])),
    (ValueError, "sizes.*each of them once", lambda: NestedDropout(sizes=[2, 2])),
    (ValueError, "a number in sizes.*0", lambda: NestedDropout(sizes=[0, 2])),
    (TypeError, "a number in sizes.*1.5", lambda: NestedDropout(sizes=[1.5])),
    (TypeError, "sizes.*4", lambda: NestedDropout(sizes=4)),
    (ValueError, "sizes.*at most 4.*5", lambda: NestedDropout(sizes=[5])(X)),
    (ValueError, "weights.*together with sizes", lambda: NestedDropout(weights=[1.0])),
    (ValueError, "weights.*2 positive numbers", lambda: NestedDropout(sizes=[1, 2], weights=[1.0])),
    (ValueError, "weights.*positive", lambda: NestedDropout(sizes=[1, 2], weights=[1.0, 0.0])),
    (ValueError, "weights.*finite sum.*1e\\+308", lambda: NestedDropout(sizes=[1, 2], weights=[1e308, 1e308])),
    (ValueError, "weights.*nan", lambda: NestedDropout(sizes=[1], weights=[math.nan])),
    (TypeError, "a number in weights.*'a'", lambda: NestedDropout(sizes=[1], weights=["a"])),
    (TypeError, "weights.*1.0", lambda: NestedDropout(sizes=[1], weights=1.0)),
    (TypeError, "dim.*1.5", lambda: NestedDropout(dim=1.5)),
    (RuntimeError, r"dim=0.*\(2, 4\)", lambda: NestedDropout(dim=0)(X)),
    (RuntimeError, r"dim=2.*\(2, 4\)", lambda: NestedDropout(dim=2)(X)),
    (RuntimeError, r"dim=1.*\(4,\)", lambda: NestedDropout()(X[0])),
    (RuntimeError, r"dim=-2.*\(2, 4\)", lambda: NestedDropout(dim=-2).eval()(X)),
    (ValueError, "length.*0", lambda: NestedDropout(length=0)),
    (TypeError, "length.*1.5", lambda: NestedDropout(length=1.5)),
    (ValueError, "length.*at most 4.*5", lambda: NestedDropout(length=5).eval()(X)),
    (ValueError, "noise.*from 0 to 4", lambda: NestedDropout()(X, noise=torch.tensor(5))),
    (ValueError, "noise.*from 0 to 4", lambda: NestedDropout()(X, noise=torch.tensor(1.5))),
    (ValueError, "noise.*bool", lambda: NestedDropout()(X, noise=torch.ones(2, 1, dtype=torch.bool))),
    (ValueError, r"noise.*\(2, 4\)", lambda: NestedDropout()(X, noise=torch.ones(2, 4))),
])
def test_bad_arguments_are_named(error, words, call) -> None:
    with pytest.raises(error, match=words):
        call()
