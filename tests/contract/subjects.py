"""Every layer of the table, held to the contract of the library: how a layer is made, and what it cannot keep.

A check is a plain function ``check_...(layer, device)``, in which ``layer`` makes a layer for an input from its
``p``, and says what input and what noise it takes. The checks stand in a file for each topic. The same checks judge the
layers of the library, which have to pass, and planted bugs, which have to fail.

For given noise every layer of the library is homogeneous (without biases), so the derivative in the direction of the
input is the output. A mask that is drawn anew in backward breaks it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

import dropoutlib
from dropoutlib import methods

# Below and above the size from which the CPU takes its fast path.
SMALL, LARGE = (6, 5), (96, 64)


# 6.5 standard errors: a false alarm has probability 8e-11 for one statistic, and a device sees a few hundred of them.
STANDARD_ERRORS = 6.5


def example(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive numbers away from zero, so that what is dropped can be told from what is kept."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) + 0.5
    return values.to(device=device, dtype=dtype)


def example_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(device) >= 0.4


def example_noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A keep mask in floating point: a value that every law accepts."""
    return example_mask(shape, device).to(torch.float64)


class Layer:
    """Makes layers that act on every element by itself, from their ``p``."""

    elementwise = True

    def __init__(self, make: Callable[[float], nn.Module]) -> None:
        self.make = make

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        return self.make(p)

    def example(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        return example(shape, device, dtype)

    def noise(self, x: Tensor) -> Tensor:
        """A value of the noise that the layer takes for ``x``."""
        return example_noise(x.shape, x.device)

    def without_noise(self, x: Tensor) -> Tensor:
        return x

    def mapped(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function of a batch, for what is left of a batch under vmap."""
        return function

    def one_of_each(self, values: Tensor) -> Tensor:
        """Of the elements that share a draw, one."""
        return values


class LayerOnMaps(Layer):
    """Makes layers without weights that act on maps.

    Args:
        make: makes the layer from ``p``.
        axes: sizes of the spatial axes behind the maps.
        single: whether an input without batch axis is taken.
        shared: whether the positions of a map share one draw.
    """

    elementwise = False

    def __init__(self, make: Callable[[float], nn.Module], axes: tuple[int, ...], single: bool = True,
                 shared: bool = True) -> None:
        super().__init__(make)
        self.axes, self.single, self.shared = axes, single, shared

    def example(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        return example((*shape, *self.axes), device, dtype)

    def noise(self, x: Tensor) -> Tensor:
        if not self.shared:
            return example_noise(x.shape, x.device)
        return example_noise((*x.shape[: -len(self.axes)], *(1 for _ in self.axes)), x.device)

    def mapped(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.single:
            return function
        return lambda *values: function(*(value.unsqueeze(0) for value in values)).squeeze(0)

    def one_of_each(self, values: Tensor) -> Tensor:
        for _ in self.axes:
            values = values.select(-1, 0)
        return values


class LayerThatCuts(LayerOnMaps):
    """Makes layers whose noise is the places of squares."""

    def noise(self, x: Tensor) -> Tensor:
        return example_noise((*x.shape[:-3], 3, 2), x.device)


class LayerWithWeights(Layer):
    """Makes layers with a square weight, positive and the same at every call, and no bias.

    Args:
        make: makes the layer from ``p``, the number of features, ``device=`` and ``dtype=``.
        noise: shape of the noise for an input.
        axes: spatial axes behind the features.
    """

    elementwise = False

    def __init__(self, make: Callable[..., nn.Module], noise: Callable[[Tensor], tuple[int, ...]] | None = None,
                 axes: tuple[int, ...] = ()) -> None:
        super().__init__(make)
        self.noise_shape = noise or (lambda x: x.shape)
        self.axes = axes

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        features = x.shape[-1 - len(self.axes)]
        with torch.random.fork_rng():  # initial weights are random numbers, too
            layer = self.make(p, features, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.endswith("weight"):
                    weight = example((features, features), x.device, x.dtype) / features
                    parameter.copy_(weight.reshape(parameter.shape))
        return layer

    def example(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        return example((*shape, *self.axes), device, dtype)

    def noise(self, x: Tensor) -> Tensor:
        return example_noise(self.noise_shape(x), x.device)

    def without_noise(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self(0.5, x).weight)


def keep_all(p: float) -> float:
    """The logit of keeping with probability 1 - p."""
    return math.log((1 - p) / p)


WITH_WEIGHTS = {
    "DropConnectLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.DropConnectLinear(n, n, bias=False, p=p, **where),
        noise=lambda x: (*x.shape[: x.dim() - 1][:1], x.shape[-1], x.shape[-1])),
    "StandoutLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.StandoutLinear(n, n, bias=False, beta=keep_all(p), **where)),
    "FastDropoutLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.FastDropoutLinear(n, n, bias=False, p=p, **where)),
    "VariationalDropoutLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.VariationalDropoutLinear(n, n, bias=False, p=p, **where)),
    "VariationalDropoutLinear of kind B": LayerWithWeights(
        lambda p, n, **where: dropoutlib.VariationalDropoutLinear(n, n, bias=False, p=p, kind="B", **where)),
    "ConcreteDropout": LayerWithWeights(
        lambda p, n, **where: dropoutlib.ConcreteDropout(nn.Linear(n, n, bias=False, **where), p=p).to(**where)),
    "ConcreteDropout2d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.ConcreteDropout2d(nn.Conv2d(n, n, 1, bias=False, **where), p=p).to(**where),
        noise=lambda x: (*x.shape[:-2], 1, 1), axes=(3, 2)),
}


ON_MAPS = {
    "SpatialDropout1d": LayerOnMaps(dropoutlib.SpatialDropout1d, (3,)),
    "SpatialDropout2d": LayerOnMaps(dropoutlib.SpatialDropout2d, (3, 2), single=False),
    "SpatialDropout3d": LayerOnMaps(dropoutlib.SpatialDropout3d, (3, 2, 2)),
    "MaxDrop": LayerOnMaps(dropoutlib.MaxDrop, (1, 1)),  # of one position the maximum is every position
    "Cutout": LayerThatCuts(lambda p: dropoutlib.Cutout(7, num_holes=3), (16, 16)),
}


POOLS = {  # with windows of one element, so that the output has the shape of the input
    name: LayerOnMaps(lambda p, name=name: getattr(dropoutlib, name)(1, p=p), (1,) * axes, shared=False)
    for axes in (1, 2, 3) for name in (f"AvgPoolDropout{axes}d", f"MaxPoolDropout{axes}d")
}


FACTS = {layer.name: layer for row in dropoutlib.catalogue().values() for layer in row.facts}
TABLE = sorted(FACTS)


class GivenRate(dropoutlib.StochasticRateDropout):
    """Takes the mask alone: without a stochastic rate it is standard dropout."""

    def forward(self, input, *, noise=None, generator=None):
        pair = noise if noise is None or isinstance(noise, tuple) else (self.low, noise)
        return super().forward(input, noise=pair, generator=generator)


def subject(name: str) -> Layer:
    if name == "StochasticRateDropout":
        return Layer(lambda p: GivenRate(low=p, high=p))
    return WITH_WEIGHTS.get(name) or ON_MAPS.get(name) or POOLS.get(name) or Layer(getattr(dropoutlib, name))


LAYERS = sorted({*TABLE, *WITH_WEIGHTS})


# Checks that a layer cannot keep, each with its reason. "*" is every layer, or the whole contract. What follows from
# the facts in the table comes first.
_RATE = ("check_p_one", "check_p_assigned", "check_bad_p")
_MATMUL = "zero times an inf is nan in a matrix product; the method's own tests see what a dropped weight leaves"
_PRODUCT = "its output is a matrix product, in the format that torch gives it"
_LEARNED = "its rate is learned, or depends on the input: there is no attribute p to assign"
_RANDOM_RATE = "its rate is drawn at every call, below 1: there is no attribute p to assign"
_PLACES = "its noise is the place of a square, without p: the method's own tests sum over all places"
_TRAITS: list[tuple[Callable[[methods.Layer], bool], tuple[str, ...], str]] = [
    (lambda layer: layer.law == "none", ("*",), "no layer: it changes weights, and has neither noise nor an output"),
    (lambda layer: layer.law == "continuous", ("check_exact_moments",), "its law is continuous: nothing to enumerate"),
    (lambda layer: layer.law == "place", ("check_drop_in", "check_zero_means_zero", "check_p_zero", *_RATE,
                                          "check_exact_moments", "check_statistics"), _PLACES),
    (lambda layer: layer.has_weights, ("check_zero_means_zero",), _MATMUL),
    (lambda layer: layer.has_weights, ("check_memory_format",), _PRODUCT),
    (lambda layer: layer.rate in ("learned", "input"), ("check_p_zero", *_RATE), _LEARNED),
    (lambda layer: layer.rate == "drawn", ("check_drop_in", *_RATE), _RANDOM_RATE),
]
OPT_OUTS = {(name, check): reason for name in LAYERS for has, checks, reason in _TRAITS
            if has(FACTS[name.partition(" of ")[0]]) for check in checks} | {
    ("StochasticPool2d", "*"): "a window of one element, which keeps the shape, has nothing to draw; it has no p",
    **{(name, "check_onnx"): "a pool has operations of its own; the method's own tests export it" for name in POOLS},
    ("AvgPoolDropout3d", "check_dtypes"): "torch's avg_pool3d has no half precision on the CPU",
    ("AvgPoolDropout3d", "check_autocast"): "autocast computes avg_pool3d in float32",
    ("MaxPoolDropout3d", "check_autocast"): "autocast computes max_pool3d in float32",
    ("AvgPoolDropout3d", "check_memory_format"): "torch's avg_pool3d does not keep channels last",
    ("GaussianDropout", "check_zero_means_zero"): "a Gaussian factor is never zero: nothing is dropped",
    **{(name, "check_p_one"): "its variance is infinite at p = 1, which it refuses"
       for name in ("GaussianDropout", "FastDropoutLinear")},
    ("VariationalDropoutLinear of kind B", "check_statistics"): "its outputs share their noise, so they are correlated",
    **{(name, check): "no closed form for its moments, which the method's own tests integrate"
       for name in ("ConcreteDropout", "ConcreteDropout2d") for check in ("check_statistics", "check_test_rule")},
    ("StandoutLinear", "check_exact_moments"): "every unit has its own probability: see the method's own tests",
    ("Cutout", "check_test_rule"): "images are whole at test time: the test rule is no mean",
}


def random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.cuda.get_rng_state(device)]


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_raises(kind: type[Exception] | tuple[type[Exception], ...], words: str,
                  function: Callable[[], object]) -> None:
    try:
        function()
    except kind as error:
        assert re.search(words, str(error)), f"the message {str(error)!r} does not say {words!r}"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of {kind}: {error}") from error
    else:
        raise AssertionError(f"no {kind}")


def assert_mean(values: Tensor, expected: float, what: str) -> None:
    deviation = float(values.double().std()) / math.sqrt(values.numel())
    distance = abs(float(values.double().mean()) - expected)
    assert distance <= STANDARD_ERRORS * deviation + 1e-12, f"{what}: off by {distance:.3g} +- {deviation:.3g}"


def lag_pairs(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Steps (between calls, between examples, between elements of an example)."""
    for lags in [(0, 0, 1), (0, 0, 8), (0, 1, 0), (0, 7, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)]:
        if all(lag < size for lag, size in zip(lags, shape, strict=True)):
            yield lags


def product_at(noise: Tensor, lags: tuple[int, ...]) -> Tensor:
    ahead = noise[tuple(slice(lag, None) for lag in lags)]
    behind = noise[tuple(slice(None, size - lag) for lag, size in zip(lags, noise.shape, strict=True))]
    return ahead * behind


def assert_homogeneous(layer: Layer, x: Tensor, gradient: Tensor, y: Tensor, weights: Tensor | float = 1.0,
                       degree: int = 1) -> None:
    """``gradient``, that of ``(weights * y).sum()``, belongs to the same noise as ``y``: Euler's identity."""
    along, values = gradient * x, degree * weights * y
    if not layer.elementwise:
        along, values = along.sum(), values.sum()
    torch.testing.assert_close(along, values)


def checks_in(names: dict[str, object]) -> dict[str, Callable[[Layer, torch.device], None]]:
    """The checks of a topic, by name."""
    return {name: function for name, function in names.items() if name.startswith("check_")}


def covered(checks: Iterable[str]) -> list[tuple[str, str]]:
    """The layers that a topic holds to its checks."""
    return [(name, check) for name in LAYERS for check in checks
            if (name, "*") not in OPT_OUTS and (name, check) not in OPT_OUTS]
