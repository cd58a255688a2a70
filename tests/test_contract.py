"""Every layer of the table, held to the contract of the library.

A check is a plain function ``check_...(layer, device)``, in which ``layer`` makes a layer for an input from its
``p``, and says what input and what noise it takes. The same checks judge the layers of the library, which have to
pass, and planted bugs, which have to fail.

One identity serves for all of them: for given noise every layer of the library is homogeneous (without biases), so
the derivative in the direction of the input is the output. A mask that is drawn anew in backward breaks it.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

import dropoutlib
from dropoutlib import functional
from dropoutlib.enumeration import distribution

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
TABLE = sorted({name for row in dropoutlib.catalogue().values() for name in row.layers})


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

# Checks that a layer cannot keep, each with its reason. "*" is every layer, or the whole contract.
_MATMUL = "zero times an inf is nan in a matrix product; the method's own tests see what a dropped weight leaves"
_PRODUCT = "its output is a matrix product, in the format that torch gives it"
_LEARNED = "its rate is learned, or depends on the input: there is no attribute p to assign"
_RANDOM_RATE = "its rate is drawn at every call, below 1: there is no attribute p to assign"
_PLACES = "its noise is the place of a square, without p: the method's own tests sum over all places"
OPT_OUTS = {
    ("max_norm_", "*"): "no layer: it changes weights, and has neither noise nor an output",
    ("MaxNorm", "*"): "no layer: it changes weights, and has neither noise nor an output",
    ("StochasticPool2d", "*"): "a window of one element, which keeps the shape, has nothing to draw; it has no p",
    **{(name, "check_onnx"): "a pool has operations of its own; the method's own tests export it" for name in POOLS},
    ("AvgPoolDropout3d", "check_dtypes"): "torch's avg_pool3d has no half precision on the CPU",
    ("AvgPoolDropout3d", "check_autocast"): "autocast computes avg_pool3d in float32",
    ("MaxPoolDropout3d", "check_autocast"): "autocast computes max_pool3d in float32",
    ("AvgPoolDropout3d", "check_memory_format"): "torch's avg_pool3d does not keep channels last",
    ("GaussianDropout", "check_zero_means_zero"): "a Gaussian factor is never zero: nothing is dropped",
    ("GaussianDropout", "check_p_one"): "its variance is infinite at p = 1, which it refuses",
    ("GaussianDropout", "check_exact_moments"): "its law is continuous: there is nothing to enumerate",
    ("FastDropoutLinear", "check_p_one"): "its variance is infinite at p = 1, which it refuses",
    ("FastDropoutLinear", "check_exact_moments"): "its law is continuous: there is nothing to enumerate",
    ("VariationalDropoutLinear", "check_exact_moments"): "its law is continuous: there is nothing to enumerate",
    ("VariationalDropoutLinear of kind B", "check_exact_moments"): "its law is continuous",
    ("VariationalDropoutLinear of kind B", "check_statistics"): "its outputs share their noise, so they are correlated",
    ("ConcreteDropout", "check_exact_moments"): "its law is continuous, without closed moments",
    ("ConcreteDropout2d", "check_exact_moments"): "its law is continuous, without closed moments",
    ("ConcreteDropout", "check_statistics"): "no closed form for the moments: the method's own tests integrate",
    ("ConcreteDropout2d", "check_statistics"): "no closed form for the moments: the method's own tests integrate",
    ("ConcreteDropout", "check_test_rule"): "no closed form for the mean, which the test rule misses by a little",
    ("ConcreteDropout2d", "check_test_rule"): "no closed form for the mean, which the test rule misses by a little",
    ("StandoutLinear", "check_exact_moments"): "every unit has its own probability: see the method's own tests",
    **{("StochasticRateDropout", check): _RANDOM_RATE
       for check in ("check_drop_in", "check_p_one", "check_p_assigned", "check_bad_p")},
    **{("Cutout", check): _PLACES
       for check in ("check_drop_in", "check_zero_means_zero", "check_p_zero", "check_p_one", "check_p_assigned",
                     "check_bad_p", "check_exact_moments", "check_statistics")},
    ("Cutout", "check_test_rule"): "images are whole at test time: the test rule is no mean",
    **{(name, "check_zero_means_zero"): _MATMUL for name in WITH_WEIGHTS},
    **{(name, "check_memory_format"): _PRODUCT for name in WITH_WEIGHTS},
    **{(name, check): _LEARNED for name in WITH_WEIGHTS if name not in ("DropConnectLinear", "FastDropoutLinear")
       for check in ("check_p_zero", "check_p_one", "check_p_assigned", "check_bad_p")},
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


# Shapes, types, memory


def check_drop_in(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device, torch.float32)
    module = layer(0.3, x)
    if isinstance(layer, LayerWithWeights):
        linear = next(part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
        replaced = type(linear)(5, 5, **({} if isinstance(linear, nn.Linear) else {"kernel_size": 1}))
        linear.load_state_dict({**linear.state_dict(), "weight": replaced.weight.detach()})
        torch.testing.assert_close(linear.weight, replaced.weight.to(device))
        return
    assert isinstance(module, _DropoutNd) and not isinstance(module, nn.Dropout)
    assert type(module.p) is float and module.p == 0.3 and type(layer(0, x).p) is float
    assert "p=0.3" in repr(module)
    assert list(module.state_dict()) == list(nn.Dropout().state_dict())
    model = nn.Sequential(nn.Linear(3, 3), module)
    model.load_state_dict(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).state_dict())


def check_shapes(layer: Layer, device: torch.device) -> None:
    shapes = [(0, 4), (4, 5), LARGE]
    if getattr(layer, "single", True):
        shapes += [(7,)]
    if not getattr(layer, "axes", ()):
        shapes += [(1,), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)]
    if layer.elementwise:
        shapes += [(), (0,), (3, 0)]
    for shape in shapes:
        x = layer.example(shape, device, torch.float32).requires_grad_()
        for module in (layer(0.3, x), layer(0.3, x).eval()):
            y = module(x)
            assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.shape == x.shape


def check_dtypes(layer: Layer, device: torch.device) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    for shape in (SMALL, LARGE):
        for dtype in [*dtypes, torch.complex64] if layer.elementwise else dtypes:
            x = layer.example(shape, device, dtype).requires_grad_()
            noise = layer.noise(x)
            for module in (layer(0.3, x), layer(0.3, x).eval()):
                y = module(x)
                x.grad = None
                y.abs().sum().backward()
                assert y.dtype == dtype and x.grad.dtype == dtype
                assert y.isfinite().all() and x.grad.isfinite().all()
                if hasattr(module, "mean"):
                    assert module.mean(x).dtype == dtype
                    assert module.variance(x).dtype == dtype.to_real()
            for size in (1, 300):  # the square of 300 is no float16
                y = layer(0.3, x)(size * x, noise=noise)
                assert y.dtype == dtype
                exact = (size * x.detach()).to(torch.complex128 if dtype.is_complex else torch.float64)
                error = (y.to(torch.complex128) - layer(0.3, exact)(exact, noise=noise)).abs().max() / size
                assert error < (4 if layer.elementwise else 40) * torch.finfo(dtype).eps, f"{dtype}: {error}"
            if hasattr(module, "variance") and not isinstance(layer, LayerWithWeights):
                large = 300 * x.detach() / x.detach().abs().max()
                exact = module.variance(large.to(torch.complex128 if dtype.is_complex else torch.float64))
                torch.testing.assert_close(module.variance(large).double(), exact, rtol=20 * torch.finfo(dtype).eps,
                                           atol=0.01)


def check_autocast(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device, torch.float32).requires_grad_()
    for module in (layer(0.3, x), layer(0.3, x).eval()):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = module(x.bfloat16())
            assert y.dtype == torch.bfloat16
            assert module(x).dtype == (torch.bfloat16 if isinstance(layer, LayerWithWeights) else torch.float32)
        (gradient,) = torch.autograd.grad(y.float().sum(), x)
        assert gradient.isfinite().all() and gradient.dtype == torch.float32


def check_memory_format(layer: Layer, device: torch.device) -> None:
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    for size in (3, 12):
        for rank in {2, 3} & {len(layer.axes)} if isinstance(layer, LayerOnMaps) else (2, 3):
            x = example((size,) * (2 + rank), device).to(memory_format=formats[rank])
            for module in (layer(0.3, x), layer(0.3, x).eval()):
                assert module(x).is_contiguous(memory_format=formats[rank])
            assert layer(0.3, x)(x, noise=layer.noise(x)).is_contiguous(memory_format=formats[rank])


def check_strides(layer: Layer, device: torch.device) -> None:
    whole = layer.example((96, 64), device)
    for x in (whole.transpose(0, 1), whole[:, ::2], whole[:1].expand(whole.shape)):
        noise = layer.noise(x)
        torch.testing.assert_close(layer(0.3, x)(x, noise=noise), layer(0.3, x)(x.contiguous(), noise=noise),
                                   rtol=0, atol=0 if layer.elementwise else 1e-13)
        y = layer(0.5, x)(x)
        assert y.shape == x.shape
        assert len({round(value, 9) for value in (y / x).flatten().tolist()}) > 1, "no noise"
    before = whole.clone()
    layer(0.3, whole)(whole)
    assert_same(whole, before)


def check_meta(layer: Layer, device: torch.device) -> None:
    x = torch.empty(layer.example(LARGE, device).shape, device="meta")
    for module in (layer(0.3, x), layer(0.3, x).eval()):
        assert module(x).shape == x.shape and module(x).is_meta


# Zero, limits, test time


def check_zero_means_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for bad in (math.inf, -math.inf, math.nan):
            x = torch.full_like(layer.example(shape, device), bad).requires_grad_()
            y = layer(0.5, x)(x)
            dropped = y == 0
            assert 0 < dropped.sum() < dropped.numel(), "nothing is dropped, or everything"
            assert_same(y[~dropped], x.detach()[~dropped])
            y.sum().backward()
            assert (x.grad[dropped] == 0).all() and x.grad.isfinite().all()

            noise = layer.noise(x).bool()
            keep = noise.expand(x.shape)
            x = torch.where(keep, 1.0, bad).requires_grad_()
            y = layer(0.5, x)(x, noise=noise)
            assert (y[~keep] == 0).all() and (y[keep] != 0).all()
            (gradient,) = torch.autograd.grad(y, x, torch.where(keep, 1.0, bad))
            assert (gradient[~keep] == 0).all() and gradient.isfinite().all()


def check_p_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device, torch.float32)
        if layer.elementwise:
            x[0, :4] = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
        before = random_state(device)
        for module in (layer(0.0, x), layer(0.0, x).eval()):
            assert_same(module(x).view(torch.int32), layer.without_noise(x).view(torch.int32))
            assert (module.variance(x) == 0).all()
        assert_same(random_state(device), before)
        everything = torch.ones_like(layer.noise(x))
        torch.testing.assert_close(layer(0.0, x)(x, noise=everything), layer.without_noise(x), equal_nan=True)


def check_p_one(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for value in (1.0, math.inf, math.nan) if layer.elementwise else (1.0,):
            x = torch.full_like(layer.example(shape, device), value).requires_grad_()
            before = random_state(device)
            for noise in (None, torch.zeros_like(layer.noise(x))):
                y = layer(1.0, x)(x, noise=noise)
                assert (y == 0).all()
                (gradient,) = torch.autograd.grad(y.sum(), x)
                assert (gradient == 0).all()
            assert_same(random_state(device), before)
            everything = torch.ones_like(layer.noise(x))
            (gradient,) = torch.autograd.grad(layer(1.0, x)(x, noise=everything).sum(), x)
            assert gradient.isfinite().all()
            assert (layer(1.0, x).mean(x) == 0).all() and (layer(1.0, x).variance(x) == 0).all()


def check_evaluation(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        model = nn.Sequential(layer(0.3, x), nn.Sequential(layer(0.6, x))).eval()
        before, private = random_state(device), generator.get_state()
        assert_same(model(x), model(x))
        assert_same(model[0](x, generator=generator), model[0](x))
        assert_same(random_state(device), before)
        assert_same(generator.get_state(), private)
        assert not torch.equal(model.train()(x), model(x)), "train() does not bring the noise back"


def check_test_rule(layer: Layer, device: torch.device) -> None:
    """The test output is the mean of the training output, given the layer's input."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        for p in (0.0, 0.2, 0.5, 0.9) if layer.elementwise else (0.2, 0.5, 0.9):
            torch.testing.assert_close(layer(p, x).eval()(x), layer(p, x).mean(x),
                                       rtol=0, atol=0 if layer.elementwise else 1e-13)


# The law


def check_exact_moments(layer: Layer, device: torch.device) -> None:
    """mean() and variance() are those of the sum over all masks, and so is the test output."""
    x = torch.tensor([[1.3, -0.4], [-1.7, 0.9]], dtype=torch.float64, device=device)
    if isinstance(layer, LayerOnMaps):
        x = x.reshape(2, 2, *(1 for _ in layer.axes)) * layer.example((2, 2), device)
    for p in (0.2, 0.5, 0.73):
        module = layer(p, x)
        law = distribution(lambda keep, module=module: module(x, noise=keep.to(device)), layer.noise(x).shape, p)
        for actual, expected in [(module.mean(x), law.mean()), (module.variance(x), law.variance()),
                                 (layer(p, x).eval()(x), law.mean())]:
            torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-12)
        covariance = law.covariance().reshape(4, x[0, 0].numel(), 4, x[0, 0].numel())
        for one, other in itertools.permutations(range(4), 2):  # of different draws
            assert covariance[one, :, other].abs().max() < 1e-12


def check_statistics(layer: Layer, device: torch.device) -> None:
    """Mean, variance, and covariance between elements, examples and calls, of what is really drawn."""
    torch.manual_seed(0)
    for p in (0.3, 0.5):
        for calls, shape in ((1, (512, 512) if layer.elementwise else (4096, 16)), (400, (24, 24))):
            x = layer.example(shape, device)
            module = layer(p, x)
            outputs = torch.stack([module(x).detach() for _ in range(calls)])
            with torch.no_grad():  # mean 0, variance 1, independent
                noise = (outputs - module.mean(x)) / module.variance(x).sqrt()
                alone = layer.one_of_each(noise)
                spread = alone.reshape(*alone.shape, *(1 for _ in range(noise.dim() - alone.dim())))
                assert (noise - spread).abs().max() < 1e-9, "elements that share a draw differ"
                noise = alone
            assert_mean(noise, 0.0, f"mean, p={p}, {shape}")
            assert_mean(noise**2, 1.0, f"variance, p={p}, {shape}")
            for lags in lag_pairs(noise.shape):
                assert_mean(product_at(noise, lags), 0.0, f"covariance at {lags}, p={p}, {shape}")
            flat = noise.flatten()
            for lag in (1 << 15, 1 << 16, 1 << 17):  # the random numbers of large tensors are drawn in chunks
                if lag < flat.numel():
                    assert_mean(flat[lag:] * flat[:-lag], 0.0, f"covariance at a distance of {lag}, p={p}")


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


def check_p_assigned(layer: Layer, device: torch.device) -> None:
    """p is read at every call, as tools that look for it and change it expect."""
    x = layer.example(LARGE, device)
    noise = layer.noise(x)
    module = layer(0.3, x)
    module.p = 0.0
    assert_same(module(x), layer.without_noise(x))
    module.p = 0.8
    assert_same(module(x, noise=noise), layer(0.8, x)(x, noise=noise))
    assert_same(module.mean(x), layer(0.8, x).mean(x))
    assert_same(module.variance(x), layer(0.8, x).variance(x))
    assert_same(module.eval()(x), layer(0.8, x).eval()(x))
    assert "p=0.8" in repr(module)


def check_noise(layer: Layer, device: torch.device) -> None:
    """noise= replaces the draw: nothing random is left, and it may have any shape that broadcasts."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        noise = layer.noise(x)
        before = random_state(device)
        assert_same(layer(0.3, x)(x, noise=noise), layer(0.3, x)(x, noise=noise.float()))
        assert_same(random_state(device), before)
        for some in (noise[:1], noise[:, :1], noise[0], noise[0, 0]):
            torch.testing.assert_close(layer(0.3, x)(x, noise=some), layer(0.3, x)(x, noise=some.expand(noise.shape)),
                                       rtol=0, atol=0 if layer.elementwise else 1e-13)
        single = x.float()
        assert layer(0.3, single)(single, noise=noise).dtype == torch.float32


def check_generator(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        module = layer(0.5, x)
        before = random_state(device)
        first, second = (module(x, generator=generator.manual_seed(1)) for _ in range(2))
        third = module(x, generator=generator)
        assert_same(random_state(device), before)
        assert_same(first, second)
        assert not torch.equal(second, third)
        torch.manual_seed(2)
        first = module(x)
        torch.manual_seed(2)
        assert_same(module(x), first)


def check_draw(layer: Layer, device: torch.device) -> None:
    """To draw and then to apply is to call: values, gradients and random numbers, bit for bit."""
    once, twice = torch.Generator(device), torch.Generator(device)
    for shape, p in itertools.product((SMALL, LARGE), (0.3, 0.5)):
        x, other = (layer.example(shape, device).requires_grad_() for _ in range(2))
        module = layer(p, x)
        y = module(x, generator=once.manual_seed(4))
        noise = module.draw(other, generator=twice.manual_seed(4))
        assert_same(once.get_state(), twice.get_state())
        again = module(other, noise=noise)
        assert_same(again, y)
        assert_same(torch.autograd.grad(again.sin().sum(), other), torch.autograd.grad(y.sin().sum(), x))
        torch.manual_seed(5)
        y, after = module(x), random_state(device)
        torch.manual_seed(5)
        assert_same(module(x, noise=module.draw(x)), y)
        assert_same(random_state(device), after)
        evaluated = layer(p, x).eval()
        assert_raises(ValueError, "train", lambda module=evaluated, x=x: module.draw(x))
        assert_raises((TypeError, RuntimeError), "generator", lambda module=module, x=x: module.draw(x, generator=0))


# Gradients


def assert_homogeneous(layer: Layer, x: Tensor, gradient: Tensor, y: Tensor, weights: Tensor | float = 1.0,
                       degree: int = 1) -> None:
    """``gradient``, that of ``(weights * y).sum()``, belongs to the same noise as ``y``: Euler's identity."""
    along, values = gradient * x, degree * weights * y
    if not layer.elementwise:
        along, values = along.sum(), values.sum()
    torch.testing.assert_close(along, values)


def check_gradients(layer: Layer, device: torch.device) -> None:
    for shape in ((2, 3), (48, 48)):
        x = layer.example(shape, device).requires_grad_()
        noise, train, evaluate = layer.noise(x), layer(0.3, x), layer(0.3, x).eval()
        for function in (lambda x, noise=noise, train=train: train(x, noise=noise), evaluate):
            quick = {"fast_mode": x.numel() > 100}
            assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True, **quick)
            assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).sin(), (x,), **quick)


def check_parameter_gradients(layer: Layer, device: torch.device) -> None:
    x = layer.example((3, 2), device)
    module, noise = layer(0.3, x), layer.noise(x)
    names, values = zip(*module.named_parameters(), strict=True) if dict(module.named_parameters()) else ((), ())

    def function(*values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,), {"noise": noise})

    assert isinstance(layer, LayerWithWeights) or not values
    if values:
        leaves = tuple(value.detach().requires_grad_() for value in values)
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda *leaves: function(*leaves).sin(), leaves)


def check_same_mask(layer: Layer, device: torch.device) -> None:
    """Forward and backward multiply by the same noise, whatever the layout of the gradient."""
    for rows, columns in (SMALL, LARGE):
        x = layer.example((rows, columns), device).requires_grad_()
        wide = layer.example((columns, 2 * rows), device)
        for gradient in (torch.ones((), device=device, dtype=x.dtype).expand(x.shape), wide[:, :rows].transpose(0, 1),
                         wide[:, ::2].transpose(0, 1), wide[:, :1].transpose(0, 1).expand(x.shape)):
            y = layer(0.5, x)(x)
            for _ in range(2):
                (actual,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
                assert_homogeneous(layer, x, actual, y, gradient)


# Transforms


def check_compile(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    x = layer.example(LARGE, device).requires_grad_()
    for module in (layer(0.3, x), layer(0.3, x).eval()):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        y = compiled(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        if module.training:
            assert_homogeneous(layer, x, gradient, y)
        assert torch.equal(compiled(x), y) is (not module.training)
        torch.testing.assert_close(compiled(x), module(x)) if not module.training else None
    module = layer(0.3, x)
    noise = layer.noise(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, noise=noise), module(x, noise=noise))
    if layer.elementwise and isinstance(module, _DropoutNd):
        module.p = 0.0
        assert_same(compiled(x), x)


def check_compile_dynamic(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    module = layer(0.3, layer.example((2, 5), device))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((3, 4), (70, 60), (2, 9)) if layer.elementwise else ((3, 5), (1300, 5), (2, 5)):
        x = layer.example(shape, device)
        noise = layer.noise(x)
        assert compiled(x).shape == x.shape
        torch.testing.assert_close(compiled(x, noise=noise), module(x, noise=noise))


def check_vmap(layer: Layer, device: torch.device) -> None:
    for columns in (40, 4096) if layer.elementwise else (40,):
        x = torch.ones_like(layer.example((6, columns), device, torch.float32))
        module = layer(0.5, x)
        single = layer.mapped(module)
        assert_raises(RuntimeError, "randomness", lambda single=single, x=x: torch.vmap(single)(x))
        same = torch.vmap(single, randomness="same")(x)
        assert (same == same[0]).all() and len(same[0].unique()) > 1
        different = torch.vmap(single, randomness="different")(x)
        closed_over = torch.vmap(lambda _, x=x, single=single: single(x[0]), randomness="different")(x)
        for y in (different, closed_over):
            assert y.shape == x.shape and len(y.unique(dim=0)) == 6
        noise = layer.noise(x).float()
        mapped = torch.vmap(layer.mapped(lambda x, noise, module=module: module(x, noise=noise)))(x, noise)
        torch.testing.assert_close(mapped, module(x, noise=noise))
        torch.testing.assert_close(torch.vmap(layer.mapped(layer(0.5, x).eval()))(x), layer(0.5, x).eval()(x))


def check_functional_transforms(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        noise = layer.noise(x)
        module = layer(0.3, x)

        def function(x: Tensor, noise: Tensor = noise, module: nn.Module = module) -> Tensor:
            return module(x, noise=noise)

        gradient = torch.func.grad(lambda x, f=function: f(x).sum())(x)
        assert_homogeneous(layer, x, gradient, function(x))
        y, tangent = torch.func.jvp(function, (x,), (x,))
        torch.testing.assert_close(tangent, y)
        single = layer.mapped(function)
        per_example = torch.vmap(torch.func.grad(lambda x, n, f=single: f(x, n).sum()))(x, noise)
        torch.testing.assert_close(per_example, gradient)
        drawn, vjp = torch.func.vjp(module, x)
        assert_homogeneous(layer, x, vjp(torch.ones_like(x))[0], drawn)


def check_export(layer: Layer, device: torch.device) -> None:
    x = layer.example(LARGE, device, torch.float32)
    model = nn.Sequential(layer(0.3, x), layer(0.6, x)).eval()
    program = torch.export.export(model, (x,))
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", [])
        assert torch.Tag.nondeterministic_seeded not in tags, f"{node.target} is random"
    torch.testing.assert_close(program.module()(x), model(x))


def check_onnx(layer: Layer, device: torch.device) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    x = layer.example(SMALL, torch.device("cpu"), torch.float32)
    model = nn.Sequential(*(() if not layer.elementwise else (nn.Linear(5, 5),)), layer(0.3, x)).eval()
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    operations = {node.op_type for node in program.model.graph}
    assert operations <= {"Gemm", "Mul", "MatMul", "Add", "Transpose", "Identity", "Constant", "Relu", "Sigmoid",
                          "Conv", "Reshape", "Unsqueeze", "Squeeze"}, operations


def check_checkpoint(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for reentrant in (False, True):
            x = layer.example(shape, device).requires_grad_()
            module = layer(0.5, x)
            y = checkpoint(lambda x, module=module: module(x) ** 2, x, use_reentrant=reentrant)
            (gradient,) = torch.autograd.grad(y.sum(), x) if not reentrant else (y.sum().backward(), x.grad)[1:]
            assert_homogeneous(layer, x, gradient, y, degree=2)  # not so if the second forward draws anew


def check_checkpoint_refuses_generator(layer: Layer, device: torch.device) -> None:
    """torch would not restore the generator, and the gradient would be that of another draw."""
    generator = torch.Generator(device).manual_seed(0)
    x = layer.example(LARGE, device).requires_grad_()
    module = layer(0.5, x)
    for reentrant in (False, True):
        assert_raises(RuntimeError, "generator", lambda reentrant=reentrant: checkpoint(
            lambda x: module(x, generator=generator), x, use_reentrant=reentrant))


def check_compile_refuses_generator(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    x = layer.example(LARGE, device)
    module, generator = layer(0.5, x), torch.Generator(device).manual_seed(0)
    compiled = torch.compile(lambda x: module(x, generator=generator), backend="aot_eager", fullgraph=True)
    assert_raises(Exception, "(?i)generator", lambda: compiled(x))


def check_copies(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device)
    noise = layer.noise(x)
    module = nn.Sequential(layer(0.3, x), layer(0.7, x).eval())
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert [(repr(m), m.training) for m in other] == [(repr(m), m.training) for m in module]
        assert_same(other.state_dict(), module.state_dict())
        assert_same(other[0](x, noise=noise), module[0](x, noise=noise))
        assert_same(other[1](x), module[1](x))


# Bad input


def check_bad_p(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device)
    for p in (-0.1, 1.1, math.nan, math.inf):
        assert_raises(ValueError, f"probability has to be.*got {p}", lambda p=p: layer(p, x))
        for module in (layer(0.5, x), layer(0.5, x).eval()):
            module.p = p
            assert_raises(ValueError, f"probability has to be.*got {p}", lambda module=module: module(x))
    for p in ("0.5", None, [0.5], torch.tensor([0.1, 0.2])):
        assert_raises(TypeError, "probability has to be a real number", lambda p=p: layer(p, x))


def check_bad_calls(layer: Layer, device: torch.device) -> None:
    x = layer.example((4, 3), device)
    module, noise = layer(0.5, x), layer.noise(x)
    shape = re.escape(str(tuple(noise.shape)))
    before, values = random_state(device), x.clone()
    bad_calls = [
        (TypeError, "tensor.*list", lambda: module([1.0, 2.0])),
        (RuntimeError, "floating point.*int64", lambda: module(x.long())),
        (RuntimeError, "floating point.*bool", lambda: module(x > 0)),
        (TypeError, "tensor.*list", lambda: layer(0.5, x).eval()([1.0, 2.0])),
        (RuntimeError, "floating point.*int64", lambda: layer(0.5, x).eval()(x.long())),
        (TypeError, "noise.*list", lambda: module(x, noise=[1.0])),
        (ValueError, rf"noise.*{shape}.*\(7,\)", lambda: module(x, noise=torch.ones(7, device=device))),
        (ValueError, rf"noise.*{shape}.*\(2, 4, 3, 3, 3, 3\)",
         lambda: module(x, noise=torch.ones(2, 4, 3, 3, 3, 3, device=device))),
        (ValueError, rf"noise.*{shape}.*0\)", lambda: module(x, noise=noise[..., :0])),
        (ValueError, "noise.*complex", lambda: module(x, noise=noise * 1j)),
        (ValueError, "noise.*device", lambda: module(x, noise=noise.to("meta"))),
        (ValueError, r"noise.*train\(\)", lambda: layer(0.5, x).eval()(x, noise=noise)),
        (TypeError, "generator.*int", lambda: module(x, generator=0)),
        (TypeError, "unexpected keyword", lambda: module(x, mask=noise)),
    ]
    for kind, words, call in bad_calls:
        assert_raises(kind, words, call)
    assert_same(random_state(device), before)
    assert_same(x, values)
    if isinstance(layer, LayerWithWeights):
        for features in (5, 1):
            bad = layer.example((4, features), device)
            assert_raises((ValueError, RuntimeError), str(features), lambda bad=bad: module(bad))


CHECKS = {name: function for name, function in list(globals().items()) if name.startswith("check_")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def covered() -> list[tuple[str, str]]:
    return [(name, check) for name in LAYERS for check in CHECKS
            if (name, "*") not in OPT_OUTS and (name, check) not in OPT_OUTS]


@pytest.mark.parametrize(("name", "check"), covered())
def test_contract(name: str, check: str, device: str) -> None:
    CHECKS[check](subject(name), torch.device(device))


def test_the_table_holds_every_layer() -> None:
    exported = {name for name in dropoutlib.__all__
                if isinstance(value := getattr(dropoutlib, name), type) and issubclass(value, nn.Module)}
    assert exported <= set(TABLE)
    assert all(hasattr(dropoutlib, name) for name in TABLE)
    assert ON_MAPS.keys() <= exported
    assert all(name in WITH_WEIGHTS or issubclass(getattr(dropoutlib, name), _DropoutNd)
               for name in exported if not {(name, "*"), (name, "check_drop_in")} & set(OPT_OUTS))


@pytest.mark.parametrize(("name", "check"), [pair for pair in OPT_OUTS if pair[1] != "*"])
def test_an_opt_out_is_needed(name: str, check: str) -> None:
    with pytest.raises((AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, ValueError)):
        CHECKS[check](subject(name), torch.device("cpu"))


OWN_ARGUMENTS = {"Cutout", "MaxDrop", "StochasticRateDropout"}  # not (input, p, training); see their own tests
WITHOUT_WEIGHTS = sorted({name for name, _ in covered()} - set(WITH_WEIGHTS) - set(POOLS) - OWN_ARGUMENTS)


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_functional_twin(name: str, device: str) -> None:
    layer, kind = getattr(dropoutlib, name), subject(name)
    twin = getattr(functional, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x = kind.example(shape, torch.device(device))
        noise = kind.noise(x)
        assert_same(twin(x, 0.3, noise=noise), layer(0.3)(x, noise=noise))
        assert_same(twin(x, 0.3, False), layer(0.3).eval()(x))
        assert_same(twin(x, p=0.3, training=True, generator=generator.manual_seed(5)),
                    layer(0.3)(x, generator=generator.manual_seed(5)))
    with pytest.raises(ValueError, match="train"):
        twin(x, 0.3, training=False, noise=noise)
    with pytest.raises(ValueError, match="nan"):
        twin(x, math.nan)


ON_VECTORS = sorted(name for name in {name for name, _ in covered()} if not getattr(subject(name), "axes", ()))


def test_full_compiler(device: str) -> None:
    """The layers in one network, through the whole compiler."""
    torch._dynamo.reset()
    x = example((256, 64), torch.device(device), torch.float32)
    subjects = [subject(name) for name in ON_VECTORS]
    layers = nn.ModuleList(layer(0.3, x) for layer in subjects)

    def function(x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in layers])

    compiled = torch.compile(function, fullgraph=True)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close((gradient * x).sum(), y.sum(), rtol=1e-4, atol=0)
    for layer, output, kind in zip(layers, y, subjects, strict=True):
        if not hasattr(layer, "mean"):
            continue
        noise = ((output - layer.mean(x)) / layer.variance(x).sqrt()).detach()
        if getattr(layer, "kind", "A") == "A":  # else the elements of an example share their noise
            assert_mean(noise, 0.0, "mean")
            assert_mean(noise**2, 1.0, "variance")
        assert_mean(noise[1:, 0] * noise[:-1, 0], 0.0, "covariance of examples")
        assert_homogeneous(kind, x, torch.func.grad(lambda x, f=layer: f.eval()(x).sum())(x), layer.eval()(x)) \
            if kind.elementwise else None
    layers.eval()
    torch.testing.assert_close(compiled(x), function(x))


def _train_in_parallel(rank: int, directory: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank,
                                         world_size=2)
    torch.manual_seed(rank)
    x = torch.ones(16, 8)
    layers = [subject(name)(0.5, x) for name in names]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    torch.save([parameter.detach() for parameter in model.parameters()], f"{directory}/parameters{rank}")
    torch.save([layer(x).detach() for layer in layers], f"{directory}/noise{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed_data_parallel(tmp_path) -> None:
    torch.multiprocessing.spawn(_train_in_parallel, (str(tmp_path), ON_VECTORS), nprocs=2)
    parameters = [torch.load(tmp_path / f"parameters{rank}") for rank in range(2)]
    assert_same(parameters[0], parameters[1])
    assert all(parameter.isfinite().all() for parameter in parameters[0])
    noise = [torch.load(tmp_path / f"noise{rank}") for rank in range(2)]
    assert not any(torch.equal(first, second) for first, second in zip(*noise, strict=True))


# The tests themselves: a wrong layer has to fail the check that is named beside it


class Planted(dropoutlib.Dropout):
    """The right layer, to be spoilt in one place."""

    def keep(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        drawn = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) >= self.p
        return drawn if noise is None else noise.bool()

    def apply(self, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x / (1 - self.p), 0)

    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return input
        return self.apply(input, self.keep(input, noise, generator))


class DividesByP(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x / self.p, 0)


class ForgetsToScale(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x, 0)


class KeepsWithProbabilityP(Planted):
    def keep(self, x, noise, generator):
        return torch.rand_like(x) <= self.p if noise is None else noise.bool()


class SharesOverTheBatch(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesWithinAnExample(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:, :1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesBetweenHalves(Planted):
    def keep(self, x, noise, generator):
        half = super().keep(x[: len(x) // 2], None, generator)
        return torch.cat([half, half]) if noise is None else noise.bool()


class DrawsOnce(Planted):
    def keep(self, x, noise, generator):
        if noise is None and getattr(self, "drawn", None) is None:
            self.drawn = super().keep(x, None, generator)
        return self.drawn if noise is None else noise.bool()


class Multiplies(Planted):
    def apply(self, x, keep):
        return x * keep / (1 - self.p)


class _Redraws(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.p = p
        return x * (torch.rand_like(x) >= p) / (1 - p)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.rand_like(gradient) >= ctx.p) / (1 - ctx.p), None


class RedrawsInBackward(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return _Redraws.apply(input, self.p)


class ForgetsTheTestRule(dropoutlib.WeightScalingDropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input


class ScalesAtBothTimes(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input * (1 - self.p)


class IgnoresEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return self.apply(input, self.keep(input, noise, generator))


class DrawsInEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        noisy = self.apply(input, self.keep(input, noise, generator))
        return noisy if self.training else input


class IgnoresTheGenerator(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x, noise, None)


class FixesPAtConstruction(dropoutlib.Dropout):
    def __init__(self, p):
        super().__init__(p)
        self.first_p = p

    def forward(self, input, **keywords):
        return functional.dropout(input, self.first_p, self.training, **keywords)


class AcceptsAnyP(Planted):
    def __init__(self, p):
        super().__init__()
        self.p = p


class LosesTheMemoryFormat(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.contiguous(), **keywords)


class WritesIntoItsInput(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return input.copy_(super().forward(input, **keywords))


class WidensHalfPrecision(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.float(), **keywords)


class ChangesTheVariance(dropoutlib.GaussianDropout):
    """The variance of the raw mask, p(1 - p), as some articles print it."""

    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + math.sqrt(self.p * (1 - self.p)) * torch.randn_like(input))


class TakesTheVarianceForTheDeviation(dropoutlib.GaussianDropout):
    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + self.p / (1 - self.p) * torch.randn_like(input))


class WrongClosedForm(dropoutlib.WeightScalingDropout):
    def variance(self, input):
        return self.p / (1 - self.p) * input**2


class PlantedWeights(nn.Linear):
    """DropConnect as one writes it, to be spoilt in one place."""

    def __init__(self, features: int, p: float, **where: object) -> None:
        super().__init__(features, features, bias=False, **where)
        self.p = p

    def keep(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.rand(*x.shape[:1], *self.weight.shape, device=x.device, generator=generator) >= self.p

    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return nn.functional.linear(input, self.weight)
        keep = self.keep(input, generator) if noise is None else noise.bool()
        weight = torch.where(keep, self.weight / (1 - self.p), 0)
        return (weight @ input[..., None])[..., 0]

    def mean(self, input):
        return nn.functional.linear(input, self.weight)

    def variance(self, input):
        return nn.functional.linear(input**2, self.p / (1 - self.p) * self.weight**2)


class SharesTheWeightMaskOverTheBatch(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x[:1], generator)


class MasksTheInputForAllOutputs(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x, generator)[:, :1]


class IgnoresTheGeneratorForWeights(PlantedWeights):
    def keep(self, x, generator):
        return super().keep(x, None)


class ScalesWeightsByP(PlantedWeights):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) * ((1 - self.p) / self.p if self.training else 1)


class _RedrawsWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, p):
        ctx.p = p
        ctx.save_for_backward(weight)
        return ((torch.rand(len(x), *weight.shape) >= p) * weight / (1 - p) @ x[..., None])[..., 0]

    @staticmethod
    def backward(ctx, gradient):
        weight, = ctx.saved_tensors
        masked = (torch.rand(len(gradient), *weight.shape) >= ctx.p) * weight / (1 - ctx.p)
        return (masked.mT @ gradient[..., None])[..., 0], None, None


class RedrawsWeightsInBackward(PlantedWeights):
    def forward(self, input, *, noise=None, generator=None):
        return _RedrawsWeights.apply(input, self.weight, self.p)


class DrawsWeightsInEvaluation(PlantedWeights):
    def forward(self, input, **keywords):
        noisy = super().forward(input, **keywords)
        torch.rand(())
        return noisy


class KeepsTheScaleAtTestTime(PlantedWeights):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) / (1 if self.training else 1 - self.p)


PLANTED = [
    (DividesByP, "check_exact_moments"),
    (DividesByP, "check_statistics"),
    (ForgetsToScale, "check_exact_moments"),
    (ForgetsToScale, "check_statistics"),
    (KeepsWithProbabilityP, "check_statistics"),
    (SharesOverTheBatch, "check_statistics"),
    (SharesWithinAnExample, "check_statistics"),
    (SharesBetweenHalves, "check_statistics"),
    (DrawsOnce, "check_statistics"),
    (Multiplies, "check_zero_means_zero"),
    (Multiplies, "check_p_one"),
    (RedrawsInBackward, "check_same_mask"),
    (RedrawsInBackward, "check_compile"),
    (ForgetsTheTestRule, "check_test_rule"),
    (ForgetsTheTestRule, "check_exact_moments"),
    (ScalesAtBothTimes, "check_test_rule"),
    (IgnoresEvaluation, "check_evaluation"),
    (IgnoresEvaluation, "check_export"),
    (DrawsInEvaluation, "check_evaluation"),
    (IgnoresTheGenerator, "check_generator"),
    (IgnoresTheGenerator, "check_checkpoint_refuses_generator"),
    (FixesPAtConstruction, "check_p_assigned"),
    (AcceptsAnyP, "check_bad_p"),
    (LosesTheMemoryFormat, "check_memory_format"),
    (WritesIntoItsInput, "check_strides"),
    (WidensHalfPrecision, "check_dtypes"),
    (WidensHalfPrecision, "check_autocast"),
    (ChangesTheVariance, "check_statistics"),
    (TakesTheVarianceForTheDeviation, "check_statistics"),
    (WrongClosedForm, "check_exact_moments"),
    (SharesTheWeightMaskOverTheBatch, "check_statistics"),
    (MasksTheInputForAllOutputs, "check_statistics"),
    (IgnoresTheGeneratorForWeights, "check_generator"),
    (ScalesWeightsByP, "check_exact_moments"),
    (ScalesWeightsByP, "check_statistics"),
    (RedrawsWeightsInBackward, "check_same_mask"),
    (DrawsWeightsInEvaluation, "check_evaluation"),
    (KeepsTheScaleAtTestTime, "check_test_rule"),
]


def planted(layer: type[nn.Module]) -> Layer:
    if not issubclass(layer, PlantedWeights):
        return Layer(layer)
    return LayerWithWeights(lambda p, n, **where: layer(n, p, **where), noise=lambda x: (*x.shape, x.shape[-1]))


@pytest.mark.parametrize(("layer", "check"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_bug_is_caught(layer: type[nn.Module], check: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS[check](planted(layer), torch.device("cpu"))


# What only the library's own layers keep, not the shortest ones above.
_BEYOND = {"check_bad_p", "check_memory_format", "check_p_one", "check_checkpoint_refuses_generator"}
WITHOUT_THE_BUG = {(base, check) for base in (Planted, PlantedWeights) for layer, check in PLANTED
                   if issubclass(layer, base) and check not in _BEYOND}


@pytest.mark.parametrize(("base", "check"), sorted(WITHOUT_THE_BUG, key=str))
def test_the_layer_without_the_bug_passes(base: type[nn.Module], check: str) -> None:
    CHECKS[check](planted(base), torch.device("cpu"))
