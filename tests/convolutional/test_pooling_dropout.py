"""What is pooling dropout's own: windows of every kind, the law of the winner, the rules, what torch's pools give."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import dropoutlib
from dropoutlib import (
    AvgPoolDropout1d,
    AvgPoolDropout2d,
    MaxPoolDropout1d,
    MaxPoolDropout2d,
    StochasticPool2d,
    functional,
)
from dropoutlib.convolutional import pooling_dropout
from dropoutlib.enumeration import distribution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def integers(low: int, high: int, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(low, high, (count,)).tolist())


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_without_noise_it_is_torchs_pool(kind: str, axes: int) -> None:
    """All kinds of windows, negative values among them: outputs, and the closed form behind mean()."""
    for _ in range(60):
        kernel, stride, ceil_mode = integers(1, 4, axes), integers(1, 4, axes), bool(torch.rand(()) < 0.5)
        padding = tuple(integers(0, size // 2 + 1, 1)[0] for size in kernel)
        last = ({"dilation": integers(1, 3, axes)} if kind == "Max" else
                {"count_include_pad": bool(torch.rand(()) < 0.5)})
        x = torch.randn(2, 3, *integers(5, 9, axes), dtype=torch.float64)
        theirs = getattr(nn, f"{kind}Pool{axes}d")(kernel, stride, padding, ceil_mode=ceil_mode, **last)
        ours = getattr(dropoutlib, f"{kind}PoolDropout{axes}d")(
            kernel, stride, padding, ceil_mode=ceil_mode, p=0.0, **last)
        for value in (ours(x), ours.eval()(x), ours.mean(x), ours(x[0])[None]):
            assert torch.equal(value, theirs(x)[: len(value)])
        assert (ours.variance(x) == 0).all() or kind == "Max"
        assert ours.variance(x).max() < 1e-12
        ours.p = 1e-9
        torch.testing.assert_close(ours.mean(x), theirs(x))  # the closed form, not torch's pool


def test_a_window_in_padding_alone_is_torchs_and_never_varies() -> None:
    layer, x = MaxPoolDropout1d(2, 4, 1, 3, ceil_mode=True, p=0.3), torch.rand(1, 1, 2)
    assert layer(x).item() == layer.mean(x).item() == -math.inf and layer.variance(x).item() == 0


OVERLAPPING = {
    "max 1d": (MaxPoolDropout1d(3, 2, 1, p=0.3), (1, 1, 8)),
    "max 1d dilated": (MaxPoolDropout1d(2, 1, dilation=2, p=0.6), (1, 1, 7)),
    "max 1d ceil": (MaxPoolDropout1d(3, 2, ceil_mode=True, p=0.3), (1, 1, 8)),
    "max 2d": (MaxPoolDropout2d(2, 1, p=0.5), (1, 1, 3, 3)),
    "max 2d padded": (MaxPoolDropout2d((2, 3), 1, (1, 1), p=0.4), (1, 1, 2, 4)),
    "mean 1d ceil": (AvgPoolDropout1d(3, 2, 1, ceil_mode=True, p=0.3), (1, 1, 8)),
    "mean 2d": (AvgPoolDropout2d(2, 1, 1, count_include_pad=False, p=0.4), (1, 1, 3, 3)),
    "mean 2d with padding": (AvgPoolDropout2d(3, 1, 1, p=0.4), (1, 1, 3, 3)),
}


@pytest.mark.parametrize(("layer", "shape"), OVERLAPPING.values(), ids=OVERLAPPING)
@pytest.mark.parametrize("sign", ["mixed", "positive", "negative", "ties"])
def test_moments_are_those_of_all_masks(layer: nn.Module, shape: tuple[int, ...], sign: str) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    x = {"mixed": x, "positive": x.abs(), "negative": -x.abs(), "ties": x.round()}[sign]
    law = distribution(lambda keep: layer.train()(x, noise=keep), shape, layer.p)
    for actual, expected in ((layer.mean(x), law.mean()), (layer.variance(x), law.variance()),
                             (layer.eval()(x), law.mean())):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    overlap = law.covariance() - torch.diag(law.variance().flatten())
    assert sign == "ties" or overlap.abs().max() > 1e-6, "overlapping windows do not share their masks"


@pytest.mark.parametrize("count", range(1, 10))
def test_the_network_of_comparisons_sorts(count: int) -> None:
    """What sorts all zeros and ones sorts everything."""
    for values in itertools.product((0, 1), repeat=count):
        places = list(values)
        for low, high in pooling_dropout._comparisons(count):
            assert low < high
            places[low], places[high] = max(places[low], places[high]), min(places[low], places[high])
        assert places == sorted(values, reverse=True)


@pytest.mark.parametrize("kind", ["mixed", "negative", "ties", "infinite", "nan", "half"])
def test_the_mean_with_and_without_a_gradient_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of comparisons where there is none, a sort of every window where there is one."""
    called = []
    network = pooling_dropout._expected_by_network
    monkeypatch.setattr(pooling_dropout, "_expected_by_network", lambda *a: called.append(1) or network(*a))
    for (layer, shape), _ in itertools.product(OVERLAPPING.values(), range(3)):
        if not hasattr(layer, "inference"):
            continue
        x = torch.randn(2, *shape[1:], dtype=torch.float16 if kind == "half" else torch.float64)
        x = {"negative": -x.abs(), "ties": x.round()}.get(kind, x)
        if kind in ("infinite", "nan"):
            x[torch.rand(shape[1:]).expand_as(x) < 0.2] = math.inf if kind == "infinite" else math.nan
        alone = layer.mean(x)
        assert called and alone.grad_fn is None
        called.clear()
        with_gradient = layer.mean(x.clone().requires_grad_())
        assert not called
        torch.testing.assert_close(alone, with_gradient.detach(), rtol=1e-3 if kind == "half" else 1e-12, atol=1e-12,
                                   equal_nan=True)


def test_the_winner_is_decided_by_rank() -> None:
    p, x = 0.3, torch.tensor([0.1, 5.0, 2.0, 7.0], dtype=torch.float64).reshape(1, 1, 4)
    layer = MaxPoolDropout1d(4, p=p)
    chances = dict.fromkeys((0.0, 0.1, 2.0, 5.0, 7.0), 0.0)
    for keep in itertools.product([0.0, 1.0], repeat=4):
        chances[layer(x, noise=torch.tensor(keep)).item()] += math.prod(1 - p if one else p for one in keep)
    expected = {7.0: 1 - p, 5.0: (1 - p) * p, 2.0: (1 - p) * p**2, 0.1: (1 - p) * p**3, 0.0: p**4}
    assert chances == pytest.approx(expected)


def test_what_is_drawn_has_these_moments() -> None:
    x = torch.randn(1, 1, 4, 4).abs()
    for layer in (MaxPoolDropout2d(3, 1, p=0.4), AvgPoolDropout2d(3, 1, p=0.4), StochasticPool2d(3, 1)):
        outputs = layer(x.expand(20_000, 1, 4, 4))
        error = (layer.variance(x) / len(outputs)).sqrt()
        assert ((outputs.mean(0) - layer.mean(x)[0]).abs() < 6 * error).all()
        torch.testing.assert_close(outputs.var(0), layer.variance(x)[0], rtol=0.1, atol=0)


def test_the_scaled_rule() -> None:
    layer, x = MaxPoolDropout2d(2, p=0.3, inference="scaled").eval(), torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(layer(x), 0.7 * nn.functional.max_pool2d(x, 2))
    assert (layer(x) <= layer.mean(x)).all() and not torch.equal(layer(x), layer.mean(x))


def test_gradients_reach_the_winner_alone() -> None:
    x = torch.tensor([1.0, 4.0, 2.0, 3.0], requires_grad=True)
    y = MaxPoolDropout1d(4)(x.reshape(1, 4), noise=torch.tensor([1, 0, 1, 1]))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 0, 1]
    y = MaxPoolDropout1d(4)(x.reshape(1, 4), noise=torch.zeros(4))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 0, 0]


def test_forward_mode_shares_a_tie_as_reverse_mode_does() -> None:
    layer, x = MaxPoolDropout1d(3, p=0.4).eval(), torch.tensor([[[0.0, 0.0, 2.0]]], dtype=torch.float64)
    for function in (layer, layer.mean):
        reverse = torch.autograd.functional.jacobian(function, x).flatten()
        for place, slope in enumerate(reverse):
            with forward_ad.dual_level():
                tangent = torch.nn.functional.one_hot(torch.tensor(place), 3).to(x).view_as(x)
                output = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
            torch.testing.assert_close(output.tangent.squeeze(), slope)


@pytest.mark.parametrize("layer", [MaxPoolDropout2d(3, 2, 1, p=0.3), AvgPoolDropout2d(3, 2, 1, p=0.3),
                                   StochasticPool2d(3, 2, 1)], ids=lambda layer: type(layer).__name__)
def test_gradients_and_transforms_of_windows(layer: nn.Module) -> None:
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64) + 0.1
    noise = torch.rand(2, 2, 3, 3) if isinstance(layer, StochasticPool2d) else (torch.rand_like(x) > 0.4).double()
    leaf = x.clone().requires_grad_()
    for function in (lambda x: layer.train()(x, noise=noise), lambda x: layer.eval()(x), layer.variance):
        assert torch.autograd.gradcheck(function, (leaf,), check_forward_ad=True)
    mapped = torch.vmap(lambda x, noise: layer.train()(x, noise=noise))(x, noise)
    torch.testing.assert_close(mapped, layer(x, noise=noise))
    torch.testing.assert_close(torch.vmap(layer.eval())(x), layer(x))
    torch._dynamo.reset()
    for training in (True, False):
        compiled = torch.compile(layer.train(training), backend="aot_eager", fullgraph=True)
        keywords = {"noise": noise} if training else {}
        torch.testing.assert_close(compiled(x, **keywords), layer(x, **keywords))
    program = torch.export.export(layer.eval(), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    image = x.float().to(memory_format=torch.channels_last)
    assert layer(image.half()).dtype == torch.float16
    torch.testing.assert_close(layer(image), layer(image.contiguous()))


def by_hand(values: Tensor, uniform: float) -> float:
    """The element in whose part of [0, sum) the number falls."""
    total = 0.0
    for value in values.clamp(min=0).tolist():
        total += value
        if uniform * values.clamp(min=0).sum().item() < total:
            return value
    return 0.0


def test_stochastic_pooling_draws_in_proportion() -> None:
    values = torch.tensor([0.5, -3.0, 2.0, 1.5], dtype=torch.float64)
    layer = StochasticPool2d(2)
    window = values.reshape(1, 1, 2, 2)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = torch.stack([layer(window, noise=one.reshape(1, 1)).flatten()[0] for one in grid[::10]])
    assert drawn.tolist() == [by_hand(values, one) for one in grid[::10].tolist()]
    assert (drawn == 2.0).double().mean().item() == pytest.approx(0.5)
    assert layer.eval()(window).item() == pytest.approx((0.25 + 4 + 2.25) / 4)
    assert layer.variance(window).item() == pytest.approx((0.125 + 8 + 3.375) / 4 - (6.5 / 4) ** 2)


def test_stochastic_pooling_of_nothing_is_zero() -> None:
    layer, x = StochasticPool2d(2), torch.tensor([[-1.0, 0.0], [0.0, -2.0]]).reshape(1, 1, 2, 2).requires_grad_()
    for module in (layer, layer.eval()):
        y = module(x)
        assert y.item() == 0 and torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    assert layer.train()(torch.rand(1, 1, 2, 2), noise=torch.ones(1)).item() > 0


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_functional_twins(axes: int) -> None:
    x = torch.rand(2, 3, *(6,) * axes)
    keep = torch.rand_like(x) > 0.4
    for kind, extra in (("max", {"dilation": 2}), ("avg", {"count_include_pad": False})):
        layer = getattr(dropoutlib, f"{kind.title()}PoolDropout{axes}d")(2, 1, 1, p=0.3, **extra)
        twin = getattr(functional, f"{kind}_pool_dropout{axes}d")
        assert torch.equal(twin(x, 2, 1, 1, p=0.3, noise=keep, **extra), layer(x, noise=keep))
        assert torch.equal(twin(x, 2, 1, 1, p=0.3, training=False, **extra), layer.eval()(x))
    assert "kernel_size=2" in repr(layer) and "p=0.3" in repr(layer)


BAD = {
    "rank": (RuntimeError, r"\(N, C, H, W\).*\(6, 6\)", lambda: MaxPoolDropout2d(2)(torch.rand(6, 6))),
    "window": (RuntimeError, r"kernel_size \(7, 7\).*larger than the map.*\(1, 1, 6, 6\)",
               lambda: MaxPoolDropout2d(7)(torch.rand(1, 1, 6, 6))),
    "padding": (RuntimeError, "padding.*at most half.*padding=2.*kernel_size=3",
                lambda: MaxPoolDropout2d(3, padding=2)),
    "stride": (ValueError, "stride has to be at least 1, but got 0", lambda: AvgPoolDropout2d(3, 0)),
    "kernel": (TypeError, r"kernel_size.*2 of them.*\(1, 2, 3\)", lambda: MaxPoolDropout2d((1, 2, 3))),
    "kernel float": (TypeError, "kernel_size.*2.5", lambda: StochasticPool2d(2.5)),
    "dilation": (ValueError, "dilation.*0", lambda: MaxPoolDropout1d(2, dilation=0)),
    "inference": (ValueError, "inference.*'mean'", lambda: MaxPoolDropout2d(2, inference="mean")),
    "p": (ValueError, "probability.*1.5", lambda: AvgPoolDropout2d(2, p=1.5)),
    "noise": (ValueError, r"noise.*\(1, 1, 6, 6\).*\(1, 1, 3, 3\)",
              lambda: MaxPoolDropout2d(2)(torch.rand(1, 1, 6, 6), noise=torch.ones(1, 1, 3, 3))),
    "uniform": (ValueError, "between 0 and 1",
                lambda: StochasticPool2d(2)(torch.rand(1, 2, 2), noise=torch.tensor(2.0))),
    "integers": (RuntimeError, "int64", lambda: MaxPoolDropout2d(2)(torch.ones(1, 4, 4).long())),
}


@pytest.mark.parametrize(("kind", "words", "call"), BAD.values(), ids=BAD)
def test_bad_input(kind, words, call) -> None:
    with pytest.raises(kind, match=words):
        call()


# Values at the limits of a type


@pytest.mark.parametrize("inference", ["expected", "scaled"])
def test_a_nan_is_not_hidden_in_evaluation(inference: str) -> None:
    x = torch.tensor([[[1.0, math.nan, 2.0, 3.0]]])
    y = MaxPoolDropout1d(2, inference=inference).eval()(x)
    assert y[0, 0, 0].isnan() and y[0, 0, 1].isfinite()
    layer = StochasticPool2d((1, 2))
    for mode in (layer.train(), layer.eval()):
        y = mode(x)
        assert y[0, 0, 0].isnan() and y[0, 0, 1].isfinite()


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 20000.0), (torch.bfloat16, 2e38), (torch.float32, 2e38)])
def test_sums_of_large_values_stay_in_range(dtype: torch.dtype, value: float) -> None:
    x = torch.full((1, 4, 4), value, dtype=dtype)
    layer = StochasticPool2d(4)
    assert torch.equal(layer(x), x[:, :1, :1]) and torch.equal(layer.eval()(x), x[:, :1, :1])
    assert torch.equal(layer.variance(x), torch.zeros(1, 1, 1, dtype=dtype))


@pytest.mark.parametrize("layer", [MaxPoolDropout2d(2, p=0.01), StochasticPool2d(2)], ids=repr)
def test_the_variance_of_nearly_equal_elements_does_not_cancel(layer: torch.nn.Module) -> None:
    x = torch.tensor([[[100.0, 100.01], [100.02, 100.03]]], dtype=torch.float64)
    if isinstance(layer, StochasticPool2d):
        expected = torch.var(x, correction=0)
    else:
        expected = distribution(lambda keep: layer(x, noise=keep), (1, 2, 2), 0.01).variance().squeeze()
    torch.testing.assert_close(layer.variance(x).squeeze(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(layer.variance(x.float()).squeeze(), expected.float(), rtol=1e-2, atol=0)


def test_the_variance_in_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 2, 2), 300.0, dtype=torch.float16)
    exact = MaxPoolDropout2d(2, p=0.5).variance(x.double())
    torch.testing.assert_close(MaxPoolDropout2d(2, p=0.5).variance(x), exact.half())


def test_what_cannot_win_is_not_drawn() -> None:
    x = torch.tensor([[[1.0, 3.0, 0.0, 0.0]]])
    assert StochasticPool2d((1, 4))(x, noise=torch.ones(1, 1, 1)).item() == 3.0


@pytest.mark.parametrize("layer", [MaxPoolDropout2d(3, 2, 1), AvgPoolDropout2d(2), StochasticPool2d(2)], ids=repr)
@pytest.mark.parametrize("mode", [True, False])
def test_export_with_a_width_that_may_change(layer: torch.nn.Module, mode: bool) -> None:
    dimension = torch.export.Dim("width", min=4, max=64)
    program = torch.export.export(layer.train(mode), (torch.rand(1, 3, 8, 12),), dynamic_shapes=({3: dimension},))
    x = torch.rand(1, 3, 8, 20)
    assert program.module()(x).shape == layer(x).shape


def test_moments_check_their_input() -> None:
    for layer in (MaxPoolDropout2d(2), AvgPoolDropout2d(2), StochasticPool2d(2)):
        for moment in (layer.mean, layer.variance):
            with pytest.raises(RuntimeError, match="floating point"):
                moment(torch.ones(1, 4, 4, dtype=torch.long))
            with pytest.raises(RuntimeError, match="complex"):
                moment(torch.ones(1, 4, 4, dtype=torch.complex64))


@pytest.mark.parametrize("layer", [MaxPoolDropout2d(2, p=0.0), AvgPoolDropout2d(2, p=0.0), StochasticPool2d(2)],
                         ids=repr)
def test_windows_that_are_changed_later_are_those_that_are_shown(layer: nn.Module) -> None:
    """As in torch's pools, of which code sets ``stride`` or ``ceil_mode`` after they were made."""
    x = torch.rand(1, 1, 7, 7)
    layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode = 3, 2, 1, True
    fresh = type(layer)(3, 2, 1, ceil_mode=True, **({} if isinstance(layer, StochasticPool2d) else {"p": 0.0}))
    assert repr(layer) == repr(fresh)
    for moment in (layer.mean, layer.variance):
        assert torch.equal(moment(x), getattr(fresh, moment.__name__)(x))
    noise = fresh.draw(x)
    assert layer.draw(x).shape == noise.shape and torch.equal(layer(x, noise=noise), fresh(x, noise=noise))
    layer.padding = 2
    with pytest.raises(RuntimeError, match="padding=2"):
        layer(x)


def test_sizes_may_be_numbers_of_numpy_and_tuples_of_one() -> None:
    x = torch.rand(1, 3, 8, 8)
    for size in (numpy.int64(2), (2,), [2]):
        assert torch.equal(MaxPoolDropout2d(size, p=0.0)(x), torch.nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("training", [True, False])
def test_a_window_of_zeros_has_no_gradient(training: bool) -> None:
    x = torch.zeros(1, 2, 2, requires_grad=True)
    StochasticPool2d(2).train(training)(x).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("inference", ["expected", "scaled"])
def test_where_everything_is_dropped_nothing_is_left(inference):
    x = torch.tensor([math.inf, 1.0]).reshape(1, 1, 1, 2)
    layer = MaxPoolDropout2d((1, 2), p=1.0, inference=inference)
    assert layer(x) == layer.eval()(x) == 0
