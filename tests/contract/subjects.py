"""Every layer of the table, held to the contract of the library: how one is made, what it takes and cannot keep.

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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import dropoutlib
from dropoutlib import methods
from dropoutlib.enumeration import Distribution, distribution

# Below and above the size from which the CPU takes its fast path.
SMALL, LARGE = (6, 5), (96, 64)


# 6.5 standard errors: a false alarm has probability 8e-11 for one statistic, and a device sees a few hundred of them.
STANDARD_ERRORS = 6.5


def example(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive numbers away from zero, so that what is dropped can be told from what is kept."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) + 0.5
    return values.to(device=device, dtype=dtype)


def of_parts(function: Callable[[Tensor], Any], noise: Any) -> Any:
    """A function of every tensor in some noise; a rate, one number, stays as it is."""
    return tree_map(lambda part: function(part) if part.dim() else part, noise)


def batch_axes(noise: Any) -> Any:
    """What vmap calls ``in_dims``: a rate is common to the batch."""
    return tree_map(lambda part: 0 if part.dim() else None, noise)


def spoil(noise: Any, function: Callable[[Tensor], Tensor]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Noise with one wrong part, for every part in turn, each with the shape that the part has to have."""
    parts, spec = tree_flatten(noise)
    for wrong, part in enumerate(parts):
        if part.dim():
            yield part.shape, tree_unflatten([function(other) if i == wrong else other
                                              for i, other in enumerate(parts)], spec)


class Layer:
    """Makes layers that act on every element by itself, from their ``p``.

    Attributes:
        elementwise: whether an input of any shape is taken, and the output has it.
        axes: sizes of the spatial axes behind batch and channels.
        single: whether an input without batch axis is taken.
        unbiased: whether the test output is the mean of every element, and not of sums alone.
        few: shape of an input whose masks can be enumerated.
        many: numbers of calls and leading axes of the inputs from which statistics are taken.
    """

    elementwise = True
    axes: tuple[int, ...] = ()
    single = True
    unbiased = True
    few: tuple[int, ...] = ()
    many: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (512, 512)), (400, (24, 24)))

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        self.make = make

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        return self.make(p)

    def example(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        return example((*shape, *self.axes), device, dtype)

    def few_numbers(self, device: torch.device) -> Tensor:
        """An input of both signs whose masks can be enumerated."""
        x = example(self.few or (2, 2, *self.axes), device)
        return torch.where(example(x.shape[::-1], device).reshape(x.shape) < 0.9, -x, x)

    def noise(self, module: nn.Module, x: Tensor) -> Any:
        """What the layer draws for ``x``, the same at every call; numbers that float32 has too."""
        drawn = module.draw(x, generator=torch.Generator(x.device).manual_seed(3))
        return of_parts(lambda part: part.float().to(part.dtype), drawn)

    def keep(self, noise: Any) -> Tensor:
        """The keep mask in some noise."""
        return noise

    def safe(self, x: Tensor) -> Tensor:
        """What no mask drops."""
        return torch.zeros_like(x, dtype=torch.bool)

    def without_noise(self, x: Tensor) -> Tensor:
        """What torch gives for ``x``."""
        return x

    def law(self, module: nn.Module, x: Tensor, p: float) -> Distribution:
        """The output under every mask."""
        parts, spec = tree_flatten(self.noise(module, x))
        sizes = [part.numel() for part in parts]

        def output(keep: Tensor) -> Tensor:
            masks = [mask.reshape(part.shape)
                     for mask, part in zip(keep.to(x.device).split(sizes), parts, strict=True)]
            return module(x, noise=tree_unflatten(masks, spec))

        return distribution(output, (sum(sizes),), self.rate(module, x, p))

    def rate(self, module: nn.Module, x: Tensor, p: float) -> float | Tensor:
        """The probability of dropping, of all or of each element of the mask."""
        return p

    def by_draw(self, y: Tensor) -> Tensor:
        """The outputs of calls as (calls, examples, draws of an example, elements that share a draw)."""
        return y.flatten(2).unsqueeze(-1)

    def assert_shared(self, noise: Tensor) -> None:
        """What is common to elements is equal in them; ``noise`` is that of calls, with mean 0."""

    def averaged(self, statistic: Tensor) -> Tensor:
        """Independent values of a statistic."""
        return statistic

    def mapped(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function of a batch, for what is left of a batch under vmap."""
        if self.single:
            return function
        return lambda *values: function(*tree_map(lambda value: value.unsqueeze(0), values)).squeeze(0)


class LayerWithRate(Layer):
    """Makes layers that draw one rate for a call, up to ``p``."""

    many = ((1000, (16, 12)),)

    def keep(self, noise: Any) -> Tensor:
        return noise.mask

    def law(self, module: nn.Module, x: Tensor, p: float) -> Distribution:
        """The rate is integrated over, by Gauss and Legendre."""
        points, weights = np.polynomial.legendre.leggauss(20)
        middle, half = (module.low + module.high) / 2, (module.high - module.low) / 2
        given = [distribution(lambda keep, rate=rate: module(x, noise=(rate, keep.to(x.device))), x.shape, rate)
                 for rate in (middle + half * points).tolist()]
        return Distribution(torch.cat([law.outputs for law in given]), torch.cat(
            [weight / 2 * law.probabilities for weight, law in zip(weights.tolist(), given, strict=True)]))

    def assert_shared(self, noise: Tensor) -> None:
        calls = noise.flatten(1)
        largest = calls.amax(1, keepdim=True)
        assert torch.where(calls > 0, largest - calls, 0).max() < 1e-9, "a call has more than one rate"
        assert len(largest.unique()) > len(calls) / 2, "calls share their rate"

    def averaged(self, statistic: Tensor) -> Tensor:
        return statistic.flatten(1).mean(1)


class Halved(nn.Module):
    """A branch without weights, which acts on every element by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return input / 2


class ResidualBlock(Layer):
    """Makes residual blocks that draw for the input and for the branch, with the same ``p``."""

    def keep(self, noise: Any) -> Tensor:
        return (noise.input != 0) | (noise.branch != 0)

    def without_noise(self, x: Tensor) -> Tensor:
        return x + x / 2


class LayerOnMaps(Layer):
    """Makes layers without weights that act on maps.

    Args:
        make: makes the layer from ``p``.
        axes: sizes of the spatial axes behind the maps.
        single: whether an input without batch axis is taken.
        few: shape of an input whose masks can be enumerated.
    """

    elementwise = False
    many = ((1, (4096, 16)), (400, (24, 24)))

    def __init__(self, make: Callable[[float], nn.Module], axes: tuple[int, ...], single: bool = True,
                 few: tuple[int, ...] = ()) -> None:
        super().__init__(make)
        self.axes, self.single, self.few = axes, single, few

    def by_draw(self, y: Tensor) -> Tensor:
        return y.flatten(3)


class LayerOnWholeMaps(LayerOnMaps):
    """Makes layers of which all positions of a map share one draw."""

    def assert_shared(self, noise: Tensor) -> None:
        maps = self.by_draw(noise)
        assert (maps - maps[..., :1]).abs().max() < 1e-9, "elements that share a draw differ"


class LayerOverTime(LayerOnWholeMaps):
    """Makes layers of which all steps of a feature share one draw; an input is (batch, time, features)."""

    def by_draw(self, y: Tensor) -> Tensor:
        return y.transpose(2, 3)


class LayerOnBlocks(LayerOnMaps):
    """Makes layers that drop the union of blocks of two positions along every axis.

    Their moments are known with ``scale="expected"``; the other scale is held to what needs none by the method's own
    tests.
    """

    many = ((1, (2048, 16)), (400, (16, 16)))

    def keep(self, noise: Any) -> Tensor:
        pool = [nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d][len(self.axes) - 1]
        return pool(nn.functional.pad(1 - noise.double(), (1, 1) * len(self.axes)), 2, 1) == 0

    def rate(self, module: nn.Module, x: Tensor, p: float) -> float:
        return p * math.prod(size / (2 * (size - 1)) for size in x.shape[2:])
class LayerOnBranches(LayerOnWholeMaps):
    """Makes layers of which all elements of an example share one draw."""

    def by_draw(self, y: Tensor) -> Tensor:
        return y.flatten(2).unsqueeze(2)


class LayerOfCodes(LayerOnBranches):
    """Makes layers that cut a row of units at one length for an example: they share its draw, and differ in rate."""

    unbiased = False

    def law(self, module: nn.Module, x: Tensor, p: float) -> Distribution:
        """The output for every pair of lengths."""
        units = x.shape[1]
        chances = torch.full((units,), p / units, dtype=torch.float64) + (1 - p) * torch.eye(units).double()[-1]
        pairs = torch.cartesian_prod(*[torch.arange(units)] * len(x))
        outputs = [module(x, noise=(pair + 1).to(x.device).view(-1, 1, 1)) for pair in pairs]
        return Distribution(torch.stack(outputs).detach().cpu(), chances[pairs].prod(-1))
class LayerOnConditions(LayerOnBranches):
    """Makes layers that replace what they drop by a null, which is 0 at first."""

    unbiased = False

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        return self.make(p, tuple(x.shape[1:]), device=x.device, dtype=x.dtype)
class WholeLayer(LayerOnBranches):
    """Makes layers that halve an example, or leave it as it is."""

    unbiased = False

    def without_noise(self, x: Tensor) -> Tensor:
        return x / 2


class ShakenBranch(LayerOnBranches):
    """Makes layers that multiply what is dropped by a factor, uniform between -1 and 1, whatever their ``p``."""

    def keep(self, noise: Any) -> Tensor:
        return noise.keep

    def law(self, module: nn.Module, x: Tensor, p: float) -> Distribution:
        """The factors have the first three moments of a coin with two values: those of Gauss and Legendre."""
        rows = self.noise(module, x).keep.shape
        rates = torch.tensor([p, 0.5], dtype=torch.float64).repeat_interleave(rows.numel())

        def output(coins: Tensor) -> Tensor:
            keep, sign = (part.reshape(rows).to(x.device) for part in coins.split(rows.numel()))
            return module(x, noise=(keep, (2 * sign - 1) / math.sqrt(3), torch.zeros_like(keep)))

        return distribution(output, (2 * rows.numel(),), rates)


class AtRest(LayerOnBranches):
    """Makes the same with factors of 0 in both directions, so that the gradient is the derivative."""

    def keep(self, noise: Any) -> Tensor:
        return noise.keep

    def law(self, module: nn.Module, x: Tensor, p: float) -> Distribution:
        drawn = self.noise(module, x)
        return distribution(lambda keep: module(x, noise=drawn._replace(keep=keep.to(x.device))), drawn.keep.shape, p)


class LayerOnMaxima(LayerOnMaps):
    """Makes layers that drop a maximum, and scale what is left so that sums stay."""

    unbiased = False
    many = ((1, (2048, 16)), (400, (16, 16)))

    def safe(self, x: Tensor) -> Tensor:
        places = x.detach().flatten(-2)
        return (nn.functional.one_hot(places.argmax(-1), places.shape[-1]) == 0).reshape(x.shape)


class LayerOnChannels(LayerOnMaxima):
    """Makes layers whose maxima are those of a position over the channels."""

    def safe(self, x: Tensor) -> Tensor:
        return (nn.functional.one_hot(x.detach().argmax(-3), x.shape[-3]) == 0).movedim(-1, -3)

    def by_draw(self, y: Tensor) -> Tensor:
        return y.flatten(3).transpose(2, 3)


class Pool(LayerOnMaps):
    """Makes pools with windows that overlap.

    Args:
        name: name of the layer.
        axes: sizes of the spatial axes.
        few: an input whose masks can be enumerated.
        **windows: arguments of the layer.
    """

    many = ((1, (2048, 16)), (200, (16, 16)))

    def __init__(self, name: str, axes: tuple[int, ...], few: tuple[int, ...], **windows: Any) -> None:
        layer, has_p = getattr(dropoutlib, name), FACTS[name].rate == "assigned"
        super().__init__(lambda p: layer(**windows, p=p) if has_p else layer(**windows), axes, few=few)
        self.without_noise = getattr(nn, FACTS[name].replaces)(**windows)


class LayerWithWeights(Layer):
    """Makes layers with a square weight, positive and the same at every call.

    Args:
        make: makes the layer from ``p``, the number of features, ``device=`` and ``dtype=``.
        axes: spatial axes behind the features.
        few: shape of an input whose masks can be enumerated.
    """

    elementwise = False
    many = ((1, (4096, 16)), (400, (24, 24)))

    def __init__(self, make: Callable[..., nn.Module], axes: tuple[int, ...] = (), few: tuple[int, ...] = ()) -> None:
        super().__init__(make)
        self.axes, self.few = axes, few

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        features = x.shape[-1 - len(self.axes)]
        with torch.random.fork_rng():  # initial weights are random numbers, too
            layer = self.make(p, features, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.endswith(("weight", "bias")):
                    parameter.copy_(example(parameter.shape[:2], x.device, x.dtype).reshape(parameter.shape) / features)
        return layer

    def without_noise(self, x: Tensor) -> Tensor:
        of_torch = linear_in(self(0.5, x))
        name = "linear" if isinstance(of_torch, nn.Linear) else f"conv{len(self.axes)}d"
        return getattr(nn.functional, name)(x, of_torch.weight, of_torch.bias)


class LayerWithBelief(LayerWithWeights):
    """Makes layers in which every unit has its own rate."""

    def rate(self, module: nn.Module, x: Tensor, p: float) -> Tensor:
        return 1 - module.keep_probability(x).detach().cpu().flatten()


class LayerOfUnits(LayerOnWholeMaps, LayerWithWeights):
    """Makes layers with learned noise, a law for each channel, of which all positions share a draw."""

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        return self.make(p, x.shape[1], device=x.device, dtype=x.dtype)

    def without_noise(self, x: Tensor) -> Tensor:
        return x


class LayerWithAdapter(LayerWithWeights):
    """Makes layers with an adapter of full rank beside a weight that is 0: what they drop reaches all outputs."""

    def __call__(self, p: float, x: Tensor) -> nn.Module:
        layer = super().__call__(p, x)
        with torch.no_grad():
            layer.lora_A.copy_(layer.weight)
            nn.init.eye_(layer.lora_B)
            layer.weight.zero_()
        return layer.requires_grad_()

    def without_noise(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self(0.5, x).lora_A)

    def by_draw(self, y: Tensor) -> Tensor:
        return y.unsqueeze(2)


class LayerWithFactors(LayerWithWeights):
    """Makes layers in which the outputs of an example share their factors."""

    def by_draw(self, y: Tensor) -> Tensor:
        return y.unsqueeze(2)


class LayerOfCandidates(LayerWithWeights):
    """Makes layers that drop weights of which all examples share one mask; every weight may be dropped."""

    unbiased = False
    many = ((400, (4, 64)),)

    def by_draw(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).unsqueeze(2)


class LayerWithFilters(LayerWithWeights):
    """Makes convolutions with one mask for all positions of an example, whose outputs are not equal, though."""

    def by_draw(self, y: Tensor) -> Tensor:
        return y.flatten(3)


def linear_in(module: nn.Module) -> nn.Module:
    return next(part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)))


def without_bias(module: nn.Module) -> nn.Module:
    """The same layer, homogeneous."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return module


def keep_all(p: float) -> float:
    """The logit of keeping with probability 1 - p."""
    return math.log((1 - p) / p)


def sparse(layer: nn.Module, p: float) -> nn.Module:
    """A layer with learned noise, so that no weight of its size is dropped at test time."""
    nn.init.constant_(layer.log_sigma2, -keep_all(p) - 2 * math.log(len(layer.weight)) - 2)
    return layer


FACTS = {layer.name: layer for row in dropoutlib.catalogue().values() for layer in row.facts}
TABLE = sorted(FACTS)


WITH_WEIGHTS = {
    "DropConnectLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.DropConnectLinear(n, n, bias=False, p=p, **where)),
    "DropConnectLinear with bias": LayerWithWeights(
        lambda p, n, **where: dropoutlib.DropConnectLinear(n, n, p=p, **where), few=(1, 2)),
    "DropConnectConv1d": LayerWithFilters(
        lambda p, n, **where: dropoutlib.DropConnectConv1d(n, n, 1, bias=False, p=p, **where), axes=(3,),
        few=(2, 2, 2)),
    "DropConnectConv1d with bias": LayerWithFilters(
        lambda p, n, **where: dropoutlib.DropConnectConv1d(n, n, 1, p=p, **where), axes=(3,), few=(1, 2, 2)),
    "DropConnectConv2d": LayerWithFilters(
        lambda p, n, **where: dropoutlib.DropConnectConv2d(n, n, 1, bias=False, p=p, **where), axes=(3, 2),
        few=(2, 2, 2, 1)),
    "StandoutLinear": LayerWithBelief(
        lambda p, n, **where: dropoutlib.StandoutLinear(n, n, bias=False, beta=keep_all(p), **where)),
    "TargetedDropoutLinear": LayerOfCandidates(
        lambda p, n, **where: dropoutlib.TargetedDropoutLinear(n, n, bias=False, p=p, target_fraction=1.0, **where)),
    "TargetedDropoutLinear of units": LayerOfCandidates(
        lambda p, n, **where: dropoutlib.TargetedDropoutLinear(n, n, bias=False, p=p, target_fraction=1.0, mode="unit",
                                                               **where)),
    "FastDropoutLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.FastDropoutLinear(n, n, bias=False, p=p, **where)),
    "FastDropoutConv1d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.FastDropoutConv1d(n, n, 1, bias=False, p=p, **where), axes=(3,)),
    "FastDropoutConv2d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.FastDropoutConv2d(n, n, 1, bias=False, p=p, **where), axes=(3, 2)),
    "VariationalDropoutLinear": LayerWithWeights(
        lambda p, n, **where: dropoutlib.VariationalDropoutLinear(n, n, bias=False, p=p, **where)),
    "VariationalDropoutLinear of kind B": LayerWithFactors(
        lambda p, n, **where: dropoutlib.VariationalDropoutLinear(n, n, bias=False, p=p, kind="B", **where)),
    "VariationalDropoutConv1d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.VariationalDropoutConv1d(n, n, 1, bias=False, p=p, **where), axes=(3,)),
    "VariationalDropoutConv2d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.VariationalDropoutConv2d(n, n, 1, bias=False, p=p, **where), axes=(3, 2)),
    "SparseVariationalLinear": LayerWithWeights(
        lambda p, n, **where: sparse(dropoutlib.SparseVariationalLinear(n, n, bias=False, **where), p)),
    "SparseVariationalConv1d": LayerWithWeights(
        lambda p, n, **where: sparse(dropoutlib.SparseVariationalConv1d(n, n, 1, bias=False, **where), p), axes=(3,)),
    "SparseVariationalConv2d": LayerWithWeights(
        lambda p, n, **where: sparse(dropoutlib.SparseVariationalConv2d(n, n, 1, bias=False, **where), p), axes=(3, 2)),
    "LoRALinear": LayerWithAdapter(
        lambda p, n, **where: dropoutlib.LoRALinear(n, n, bias=False, rank=n, alpha=n, p=p, **where)),
    "ConcreteDropout": LayerWithWeights(
        lambda p, n, **where: dropoutlib.ConcreteDropout(nn.Linear(n, n, bias=False, **where), p=p).to(**where)),
    "ConcreteDropout around a noisy layer": LayerWithWeights(
        lambda p, n, **where: dropoutlib.ConcreteDropout(
            dropoutlib.DropConnectLinear(n, n, bias=False, p=p, **where), p=p).to(**where), few=(1, 2)),
    "ConcreteDropout2d": LayerWithWeights(
        lambda p, n, **where: dropoutlib.ConcreteDropout2d(nn.Conv2d(n, n, 1, bias=False, **where), p=p).to(**where),
        axes=(3, 2)),
}


def log_normal(p: float, n: int, **where: Any) -> nn.Module:
    """A layer that keeps all units at test time."""
    layer = dropoutlib.LogNormalDropout(n, **where)
    nn.init.constant_(layer.mu, -1.0)
    nn.init.constant_(layer.log_s, math.log2(p) / 4 if p > 0 else -20.0)
    return layer


ON_MAPS = {
    "LogNormalDropout": LayerOfUnits(log_normal, (3, 2), single=False),
    "SpatialDropout1d": LayerOnWholeMaps(dropoutlib.SpatialDropout1d, (3,)),
    "SpatialDropout2d": LayerOnWholeMaps(dropoutlib.SpatialDropout2d, (3, 2), single=False),
    "SpatialDropout3d": LayerOnWholeMaps(dropoutlib.SpatialDropout3d, (3, 2, 2)),
    **{f"DropBlock{axes}d": LayerOnBlocks(partial(getattr(dropoutlib, f"DropBlock{axes}d"), block_size=2,
                                                  scale="expected"), sizes, few=few)
       for axes, sizes, few in ((1, (4,), (2, 2, 4)), (2, (5, 5), (1, 2, 3, 3)), (3, (2, 2, 4), (1, 2, 2, 3, 2)))},
    "FeatureAlphaDropout": LayerOnWholeMaps(dropoutlib.FeatureAlphaDropout, (3, 2), single=False),
    "MaxDrop": LayerOnMaxima(dropoutlib.MaxDrop, (3, 2)),
    "MaxDrop of channels": LayerOnChannels(lambda p: dropoutlib.MaxDrop(p, mode="channel"), (3, 4), few=(2, 3, 2, 2)),
    "LockedDropout": LayerOverTime(lambda p: dropoutlib.LockedDropout(p, batch_first=True), (12,), few=(2, 2, 3)),
    "StochasticDepth": LayerOnBranches(dropoutlib.StochasticDepth, (3,), single=False),
    "DropPath": LayerOnBranches(dropoutlib.DropPath, (3,), single=False),
    "NestedDropout": LayerOfCodes(dropoutlib.NestedDropout, (3,), single=False),
    "NEFTune": LayerOnMaps(lambda p: dropoutlib.NEFTune(1 + 4 * p), (3,), single=False),
    "PatchDropout": LayerOnMaps(dropoutlib.PatchDropout, (3,), single=False),
    "ConditionDropout": LayerOnConditions(
        lambda p, shape, **where: dropoutlib.ConditionDropout(shape, p, **where), (3,), single=False),
    "ShakeDrop": ShakenBranch(dropoutlib.ShakeDrop, (3,), single=False),
    "ShakeDrop without factors": AtRest(lambda p: dropoutlib.ShakeDrop(p, (0, 0), (0, 0)), (3,), single=False),
    "LayerDrop": WholeLayer(lambda p: dropoutlib.LayerDrop(Halved(), p, mode="row"), (3,), single=False),
    "Cutout": LayerOnMaps(lambda p: dropoutlib.Cutout(3, num_holes=3), (8, 7), few=(1, 1, 8, 7)),
}


_WINDOWS: dict[int, dict[str, Any]] = {
    1: {"axes": (7,), "few": (2, 1, 4), "kernel_size": 3, "stride": 2, "padding": 1},
    2: {"axes": (5, 4), "few": (1, 1, 3, 3), "kernel_size": 3, "stride": 2, "padding": 1},
    3: {"axes": (2, 3, 3), "few": (1, 1, 2, 2, 2), "kernel_size": 2, "stride": 1, "padding": (1, 0, 0)},
}
POOLS = {name: Pool(name, **_WINDOWS[int(name[-2])]) for name in TABLE if FACTS[name].site == "window"}


_OTHERS = {
    "StochasticRateDropout": LayerWithRate(lambda p: dropoutlib.StochasticRateDropout(low=p / 2, high=p)),
    "Swapout": ResidualBlock(lambda p: dropoutlib.Swapout(Halved(), p, p)),
}


def subject(name: str) -> Layer:
    special = WITH_WEIGHTS | ON_MAPS | POOLS | _OTHERS
    return special[name] if name in special else Layer(getattr(dropoutlib, name))


LAYERS = sorted({*TABLE, *WITH_WEIGHTS, *ON_MAPS})


# Checks that a layer cannot keep, each with its reason: they follow from the facts in the table. "*" is the whole
# contract.
_RATE = ("check_p_one", "check_p_assigned", "check_bad_p")
_MATMUL = "zero times an inf is nan in a matrix product; the method's own tests see what a dropped weight leaves"
_LEARNED = "its rate is learned, or depends on the input: there is no attribute p to assign"
_OF_UNITS = "its learned noise belongs to a number of units, and it stands in the place of no layer of torch"
_RANDOM_RATE = "its rate is drawn at every call, below 1: there is no attribute p to assign"
_PLACES = "its noise is the place of a square, without p: the method's own tests sum over all places"
_WHOLE = "images are whole at test time: the test rule is no mean"
_NO_P = "it has no p"
_TWO_RATES = ("it stands around a branch, in the place of no layer of torch, and has two rates in the place of p: the "
              "method's own tests assign both")
_SEQUENCES = "its input is no tensor of features, or its output no tensor: see test_recurrent.py"
_RELAXED = "no closed form for the moments of a relaxed mask, which the method's own tests integrate"
_BLOCKS = "at p = 1 a block begins at some places, not at all: the method's own tests see where everything is dropped"
_AFFINE = "its output is affine in the input: dropped is not 0, and the identity is not the mean; see its own tests"
_PRUNED = "in evaluation the candidates are left out, whatever p is: the method's own tests see which"
_ONE_MASK = "its noise has no axis of examples, which share one mask: the method's own tests map over the input alone"
_SHORTER = ("its output in training has fewer tokens than its input, nothing is scaled, one token is always kept: "
            "the method's own tests see the law, shapes and transforms")
_ADDED = "its noise is added, so that its output is affine in the input: see its own tests"
_NULL = "it has a learned null in the place of what is dropped, which takes part in the mean: see its own tests"
_ONE_COIN = "the elements of an example share one draw of two values: six examples cannot all differ"
_CODES = "its first unit is never dropped, and the units of an example share one draw: six examples may all be whole"
_TRAITS: list[tuple[Callable[[methods.Layer], bool], tuple[str, ...], str]] = [
    (lambda layer: layer.law == "none", ("*",), "no layer: it changes weights, and has neither noise nor an output"),
    (lambda layer: layer.replaces in ("LSTM", "GRU", "Embedding"), ("*",), _SEQUENCES),
    (lambda layer: layer.law == "continuous", ("check_exact_moments",), "its law is continuous: nothing to enumerate"),
    (lambda layer: layer.law == "continuous", ("check_zero_means_zero",), "a continuous factor is never zero"),
    (lambda layer: layer.law == "continuous" and layer.rate == "assigned", ("check_p_one",),
     "its variance is infinite at p = 1, which it refuses"),
    (lambda layer: "AlphaDropout" in layer.name, (
        "check_zero_means_zero", "check_test_rule", "check_exact_moments", "check_same_mask", "check_compile",
        "check_functional_transforms", "check_checkpoint"), _AFFINE),
    (lambda layer: layer.law == "place", ("check_zero_means_zero", "check_exact_moments", "check_statistics"), _PLACES),
    (lambda layer: layer.site in ("branch", "condition") and not layer.has_weights, ("check_vmap",), _ONE_COIN),
    (lambda layer: layer.site == "condition", ("check_drop_in", "check_test_rule"), _NULL),
    (lambda layer: layer.law == "place", ("check_test_rule",), _WHOLE),
    (lambda layer: layer.name == "NEFTune", (
        "check_same_mask", "check_compile", "check_functional_transforms", "check_checkpoint"), _ADDED),
    (lambda layer: layer.name == "PatchDropout", (
        "check_zero_means_zero", "check_p_zero", "check_p_one", "check_test_rule", "check_exact_moments",
        "check_statistics", "check_p_assigned", "check_noise", "check_same_mask", "check_shapes", "check_strides",
        "check_meta", "check_vmap", "check_compile_dynamic"), _SHORTER),
    (lambda layer: layer.has_weights and layer.site != "branch", ("check_zero_means_zero",), _MATMUL),
    (lambda layer: layer.name == "TargetedDropoutLinear", ("check_p_zero", "check_test_rule"), _PRUNED),
    (lambda layer: layer.name == "TargetedDropoutLinear", ("check_vmap", "check_functional_transforms"), _ONE_MASK),
    (lambda layer: layer.name == "Swapout", ("check_drop_in", "check_p_assigned", "check_bad_p"), _TWO_RATES),
    (lambda layer: layer.site == "code", (
        "check_zero_means_zero", "check_p_one", "check_statistics", "check_vmap", "check_test_rule"), _CODES),
    (lambda layer: layer.site == "block", ("check_p_one",), _BLOCKS),
    (lambda layer: layer.rate == "learned" and layer.site in ("element", "map"), (
        "check_statistics", "check_test_rule"), _RELAXED),
    (lambda layer: layer.rate in ("learned", "input"), ("check_p_zero", *_RATE), _LEARNED),
    (lambda layer: layer.rate == "learned" and not layer.has_weights, ("check_drop_in",), _OF_UNITS),
    (lambda layer: layer.rate == "drawn", ("check_drop_in", *_RATE), _RANDOM_RATE),
    (lambda layer: layer.rate == "none", ("check_drop_in", "check_p_zero", *_RATE), _NO_P),
]
OPT_OUTS = {(name, check): reason for name in LAYERS for has, checks, reason in _TRAITS
            if has(FACTS[name.split()[0]]) for check in checks}
OPT_OUTS |= {("ShakeDrop", check): reason for checks, reason in (
    (("check_zero_means_zero", "check_p_one"), "what is dropped is multiplied by a random factor, not set to zero"),
    (("check_gradients", "check_same_mask", "check_compile", "check_functional_transforms", "check_checkpoint"),
     "the gradient has a factor of its own, on purpose: the method's own tests hold it to that one"),
) for check in checks}
OPT_OUTS["ShakeDrop without factors", "check_p_one"] = "a given factor of 1 is refused where the ranges hold 0 alone"
OPT_OUTS |= {("LayerDrop", check): reason for checks, reason in (
    (("check_zero_means_zero", "check_p_one"), "where it drops the input takes the place of the output, not zero"),
    (("check_test_rule",), "all layers run at test time: the test rule is no mean"),
    (("check_vmap",), _ONE_COIN),
    (("check_drop_in",), "it stands around a layer, in the place of none"),
    (("check_bad_calls",), "further arguments are for the layer that it stands around, which refuses them when called"),
) for check in checks}
HELD = [name for name in LAYERS if (name, "*") not in OPT_OUTS]
ON_VECTORS = [name for name in HELD if not subject(name).axes]


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


def takes(layer: Layer, x: Tensor) -> bool:
    """Whether torch has an operation for the type of ``x``."""
    try:
        return layer.without_noise(x) is not None
    except RuntimeError:
        return False


def assert_noisy(layer: Layer, y: Tensor, x: Tensor) -> None:
    assert y.shape == layer.without_noise(x).shape
    assert len((y / layer.without_noise(x)).round(decimals=5).unique()) > 1, "no noise"


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
