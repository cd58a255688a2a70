"""Laws of the noise: how it is distributed (``mean`` and ``variance``), and how it is drawn (``sample``).

Every draw has a plain torch expression, which is its definition and runs under every transform, and may have a
fast path in :mod:`dropoutlib.kernels`. Both have the same distribution, but not the same stream of random numbers:
a seed gives the same noise for the same call on the same device, not across sizes, memory formats, compilation or vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dropoutlib.arguments import (
    integer,
    is_eager,
    positive_integer,
    real,
    require_broadcastable,
    require_jagged,
    require_tensor,
)
from dropoutlib.documentation import document
from dropoutlib.kernels import cpu, gpu

from .given import check_generator, check_noise, given_mask
from .transforms import outside_of_derivatives

__all__ = ["DRAWING", "Bernoulli", "Coins", "Gaussian", "Law", "Position", "Subset", "Uniform", "announce",
           "draw_mask"]

_FARTHEST = torch.finfo(torch.float32).max / 2
DRAWING: list[Callable[[], None]] = []  # called before each draw, by contexts that follow what a model draws


def announce() -> None:
    """Before each draw: a context that follows draws can refuse it."""
    for follow in DRAWING:
        follow()


@document(given_mask)
class Bernoulli:
    """Keep masks: an element is dropped (False) with probability ``p`` and kept (True) with ``1 - p``.

    Args:
        p: the probability of dropping, between 0 and 1. The two limits are exact: 0 keeps everything, 1 drops
            everything.

    Raises:
        ValueError: ``p`` lies outside [0, 1] or is ``nan``.
        TypeError: ``p`` is not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Bernoulli
        >>> law = Bernoulli(p=0.2)
        >>> law.mean, round(law.variance, 12)
        (0.8, 0.16)
        >>> keep = law.sample(torch.ones(2, 3, 5, 5), shared=(2, 3))
        >>> keep.shape, keep.dtype
        (torch.Size([2, 3, 1, 1]), torch.bool)
    """

    __slots__ = ("p",)

    def __init__(self, p: float) -> None:
        if type(p) is not float:
            p = real("dropout probability", p)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p

    def __repr__(self) -> str:
        return f"Bernoulli(p={self.p})"

    @property
    def mean(self) -> float:
        """The mean of the mask, ``1 - p``."""
        return 1.0 - self.p

    @property
    def variance(self) -> float:
        """The variance of the mask, ``p * (1 - p)``."""
        return self.p * (1.0 - self.p)

    def sample(self, x: Tensor, *, shared: tuple[int, ...] = (), noise: Tensor | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Draws a keep mask for ``x``.

        Args:
            x: the tensor to be masked, floating point or complex, of any shape.
            shared: axes along which one draw is shared; what is drawn has size 1 there (an empty axis stays so).
            noise: the mask to use instead of a draw, broadcastable to the shape of the draw: bool, or any real
                type with the values 0 (drop) and 1 (keep). Other values (a mask already scaled, factors of
                another law) are refused wherever values can be read, that is outside of transforms; a bool mask
                needs no such check.
            generator: draws from here instead of torch's global generator, whose state is left alone; not used
                where ``noise`` is given, because nothing is drawn then.

        Returns:
            A bool tensor on the device and in the memory format of ``x``, of its shape but for ``shared``.

        Raises:
            TypeError: an argument is no tensor or no generator.
            {ValueError}
            RuntimeError: ``x`` holds integers or booleans; ``generator`` belongs to another device, or is used
                where its state cannot be kept: in a compiled or exported function, under activation checkpointing.
        """
        like = _like_the_draw(x, shared)
        if noise is not None:
            return given_mask(noise, like)
        announce()
        if generator is not None:
            check_generator(generator, x)
        return draw_mask(like, self.p, generator)


@document(Bernoulli.sample)
class Coins:
    """Keep masks whose probabilities are tensors: computed from an input, learned or drawn themselves.

    Args:
        p: probabilities of dropping, between 0 and 1, broadcastable to what is masked. They are met to 6e-8, the step
            of uniform numbers in float32, and to 1e-16 where what is masked is of double precision. Where one is
            ``nan`` the element is kept, so that the ``nan`` is seen.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Coins
        >>> law = Coins(torch.tensor([0.0, 1.0]))
        >>> law.sample(torch.ones(3, 2)).all(0)
        tensor([ True, False])
    """

    __slots__ = ("p",)

    def __init__(self, p: Tensor) -> None:
        self.p = p

    def __repr__(self) -> str:
        return f"Coins(p={self.p})"

    @property
    def mean(self) -> Tensor:
        """The means of the masks, ``1 - p``."""
        return 1 - self.p

    @property
    def variance(self) -> Tensor:
        """The variances of the masks, ``p * (1 - p)``."""
        return self.p * (1 - self.p)

    def sample(self, x: Tensor, *, shared: tuple[int, ...] = (), noise: Tensor | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Draws a keep mask for ``x``, without a gradient to ``p``.

        Args:
            {x} {shared} {noise} {generator}

        Returns:
            {Returns}

        Raises:
            {Raises}
        """
        like = _like_the_draw(x, shared)
        require_broadcastable("p", self.p, like.shape, "draw")
        if noise is not None:
            return given_mask(noise, like)
        uniform = Uniform().sample(x, shared=shared, generator=generator)
        return ~(uniform < self.p.detach().to(uniform.dtype))


@document(Bernoulli.sample)
class Gaussian:
    """Normally distributed factors.

    Args:
        mean: the mean of the factors.
        variance: their variance (not the standard deviation), at least 0.

    Raises:
        ValueError: ``mean`` or ``variance`` is not finite, or ``variance`` is negative.
        TypeError: one of the two is not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Gaussian
        >>> law = Gaussian(mean=1.0, variance=0.25)
        >>> law.sample(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    __slots__ = ("mean", "variance")

    def __init__(self, mean: float, variance: float) -> None:
        self.mean = mean if type(mean) is float else real("mean", mean)
        self.variance = variance if type(variance) is float else real("variance", variance)
        if not -math.inf < self.mean < math.inf:  # the compiler cannot follow math.isfinite
            raise ValueError(f"mean has to be finite, but got {mean}")
        if not 0.0 <= self.variance < math.inf:
            raise ValueError(f"variance has to be finite and at least 0, but got {variance}")

    def __repr__(self) -> str:
        return f"Gaussian(mean={self.mean}, variance={self.variance})"

    def sample(self, x: Tensor, *, shared: tuple[int, ...] = (), noise: Tensor | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Draws factors for ``x``.

        Args:
            x: the tensor to be multiplied, floating point or complex, of any shape.
            {shared}
            noise: the factors to use instead of a draw, floating point, broadcastable to the shape of the draw.
                They come back in the type of ``x``, and gradients flow to them.
            {generator}

        Returns:
            Factors of the type of ``x`` (for a complex ``x`` the real type of its parts), on its device. {drawn}

        Raises:
            {TypeError}
            ValueError: ``noise`` has a wrong shape, type or device.
            {RuntimeError}
        """
        like = _like_the_draw(x, shared)
        dtype = x.real.dtype if x.is_complex() else x.dtype  # a complex normal would turn the phase
        if noise is not None:
            check_noise(noise, like)
            if not noise.is_floating_point():
                raise ValueError(f"noise has to be of a floating point type, but got {noise.dtype}")
            return noise.to(dtype)
        announce()
        if generator is not None:
            check_generator(generator, x)
        if self.variance == 0:  # nothing to draw
            return torch.full_like(like, self.mean, dtype=dtype, requires_grad=False)
        return _draw_normal(like, dtype, self.mean, math.sqrt(self.variance), generator)


@document(Bernoulli.sample)
class Uniform:
    """Uniform numbers between two limits: factors, or what a rate that is learned, or depends on the input, is compared
    with.

    Args:
        low: the lower limit.
        high: the upper limit, at least ``low``. If they are equal, nothing is drawn.

    Raises:
        ValueError: the size of a limit is above 1.7e38, half of what float32 holds, or ``low`` is greater than
            ``high``.
        TypeError: one of the two is not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Uniform
        >>> Uniform().mean, round(Uniform().variance, 12)
        (0.5, 0.083333333333)
        >>> bool((Uniform(-1, 1).sample(torch.ones(2, 3)).abs() <= 1).all())
        True
    """

    __slots__ = ("high", "low")

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low = low if type(low) is float else real("low", low)
        self.high = high if type(high) is float else real("high", high)
        if not -_FARTHEST <= self.low <= self.high <= _FARTHEST:
            raise ValueError(f"low and high have to be numbers of at most {_FARTHEST:.3g}, so that their difference is "
                             f"finite in float32, and low <= high, but got low={low}, high={high}")

    def __repr__(self) -> str:
        return f"Uniform(low={self.low}, high={self.high})"

    @property
    def mean(self) -> float:
        """The mean of the numbers, half of the sum of the limits."""
        return (self.low + self.high) / 2

    @property
    def variance(self) -> float:
        """Their variance, the square of the width over 12."""
        return (self.high - self.low) ** 2 / 12

    def sample(self, x: Tensor, *, shared: tuple[int, ...] = (), noise: Tensor | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Draws numbers for ``x``.

        Args:
            x: the tensor that the noise is for, floating point or complex, of any shape.
            {shared}
            noise: the numbers to use instead of a draw, within the limits, floating point, broadcastable to the shape
                of the draw; others are refused wherever values can be read, that is outside of transforms.
            {generator}

        Returns:
            Numbers between the limits, on the device of ``x``: float64 where ``x`` is of double precision, otherwise
            float32, because half precision would give too few different ones. The upper limit of 1 of the default
            is never drawn. {drawn}

        Raises:
            {TypeError}
            {ValueError}
            {RuntimeError}
        """
        like = _like_the_draw(x, shared)
        dtype = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
        if noise is not None:
            check_noise(noise, like)
            if not noise.is_floating_point():
                raise ValueError(f"noise has to be of a floating point type, but got {noise.dtype}")
            if is_eager(noise) and not bool(((noise >= self.low) & (noise <= self.high)).all()):
                raise ValueError(f"noise has to be uniform numbers between {self.low:g} and {self.high:g}, "
                                 "but it has other values")
            return noise.to(dtype)
        announce()
        if generator is not None:
            check_generator(generator, x)
        if self.low == self.high:  # nothing to draw
            return torch.full_like(like, self.low, dtype=dtype, requires_grad=False)
        uniform = _draw_uniform(like, dtype, generator)
        return uniform if (self.low, self.high) == (0, 1) else self.low + (self.high - self.low) * uniform


@document(Bernoulli.sample)
class Position:
    """Positions on maps, each as probable as the other.

    Args:
        count: number of positions for every image, at least 1.

    Raises:
        TypeError: ``count`` is no whole number.
        ValueError: it is less than 1.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Position
        >>> positions = Position(5).sample(torch.empty(8, 3, 32, 48))
        >>> positions.shape, bool((positions < torch.tensor([32, 48])).all())
        (torch.Size([8, 5, 2]), True)
    """

    __slots__ = ("count",)

    def __init__(self, count: int = 1) -> None:
        self.count = positive_integer("count", count)

    def __repr__(self) -> str:
        return f"Position(count={self.count})"

    def sample(self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws rows and columns on the maps of ``x``.

        Args:
            x: images of shape ``(..., C, H, W)``; their values are not read.
            noise: positions to use instead of a draw, whole numbers, broadcastable to the shape of the draw; positions
                off the map are refused wherever values can be read.
            {generator}

        Returns:
            Whole numbers of type int64, of shape ``(..., count, 2)``, on the device of ``x``.

        Raises:
            {TypeError}
            {ValueError}
            RuntimeError: ``generator`` cannot be used here, as for :meth:`Bernoulli.sample`.
        """
        sizes, shape = x.shape[-2:], (*x.shape[:-3], self.count)
        if noise is not None:
            return _given_positions(noise, x.new_empty(()).expand(*shape, 2), sizes)
        announce()
        if generator is not None:
            check_generator(generator, x)
        like = x.new_empty(shape, dtype=torch.int64)
        if x.numel() == 0:  # nowhere
            return torch.zeros_like(like).unsqueeze(-1).expand(*shape, 2)
        if torch.compiler.is_compiling():  # randint would keep the sizes of this map in the graph
            drawn = [torch.rand_like(like, dtype=torch.float32) * size for size in sizes]
            return torch.stack([one.long().clamp(max=size - 1) for one, size in zip(drawn, sizes, strict=True)], -1)
        if generator is None:
            return torch.stack([torch.randint_like(like, size) for size in sizes], -1)
        return torch.stack([torch.randint(size, shape, device=x.device, generator=generator) for size in sizes], -1)


@document(Bernoulli.sample)
class Subset:
    """Keep masks that keep a fixed number of elements of the last axis, each choice of them as probable as the other.

    Args:
        count: number of elements that are kept of every row, at least 0.

    Raises:
        TypeError: ``count`` is no whole number.
        ValueError: it is less than 0.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Subset
        >>> Subset(2).sample(torch.empty(8, 5)).sum(1).unique()
        tensor([2])
    """

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        if integer("count", count) < 0:
            raise ValueError(f"count has to be at least 0, but got {count}")
        self.count = count

    def __repr__(self) -> str:
        return f"Subset(count={self.count})"

    def sample(self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws keep masks for the rows of ``x``, along its last axis.

        Args:
            x: floating point or complex tensor of shape ``(..., L)``, with L at least ``count``; its values are not
                read.
            noise: the mask to use instead of a draw, broadcastable to the shape of ``x``: bool, or any real type with
                the values 0 (drop) and 1 (keep). Rows that keep another number are refused wherever values can be read.
            {generator}

        Returns:
            A bool tensor of the shape of ``x``, on its device.

        Raises:
            {TypeError}
            ValueError: ``noise`` has a wrong shape, type, device or value, or L is less than ``count``.
            {RuntimeError}
        """
        require_tensor(x)
        require_jagged(x)
        if x.dim() == 0 or x.shape[-1] < self.count:
            raise ValueError(f"x has to have at least {self.count} elements along its last axis, "
                             f"but got the shape {tuple(x.shape)}")
        if noise is not None:
            keep = given_mask(noise, x)
            if is_eager(keep) and not bool((numbers := keep.sum(-1)).eq(self.count).all()):
                raise ValueError(f"noise has to keep {self.count} of {x.shape[-1]} in every row, "
                                 f"but keeps {numbers[numbers != self.count][0].item()}")
            return keep
        if self.count == x.shape[-1]:  # nothing to draw
            return torch.ones_like(x, dtype=torch.bool, requires_grad=False)
        order = Uniform().sample(x, generator=generator).argsort(dim=-1)
        return torch.zeros_like(x, dtype=torch.bool, requires_grad=False).scatter(-1, order[..., :self.count], True)


# A new law joins here: sample(x, *, noise=None, generator=None) draws for a tensor, and takes what it drew as noise.
Law: TypeAlias = Bernoulli | Coins | Gaussian | Uniform | Position | Subset


def _given_positions(noise: Tensor, like: Tensor, sizes: tuple[int, ...]) -> Tensor:
    check_noise(noise, like)
    if noise.is_complex() or noise.dtype is torch.bool:
        raise ValueError(f"noise has to be whole numbers, but got {noise.dtype}")
    last = torch.tensor([size - 1 for size in sizes], device=noise.device)
    if is_eager(noise) and not bool(((noise >= 0) & (noise <= last) & (noise == noise.long())).all()):
        raise ValueError(f"noise has to be positions on maps of the sizes {tuple(sizes)}, counted from 0, "
                         "but it has other values")
    return noise.long().expand(like.shape)


def _like_the_draw(x: Tensor, shared: tuple[int, ...]) -> Tensor:
    """A tensor like ``x`` with size 1 along the axes ``shared``."""
    require_tensor(x)
    if not isinstance(shared, tuple) or not all(-x.dim() <= axis < x.dim() for axis in shared):
        raise ValueError(f"shared has to be a tuple of axes of the input, which has {x.dim()}, but got {shared!r}")
    require_jagged(x)
    for axis in shared:
        x = x.narrow(axis, 0, 1) if x.shape[axis] != 0 else x
    return x


def _needs_double(x: Tensor, p: float) -> bool:
    """Whether the 24 bits of a float32 draw are too few.

    They move the probability by up to 6e-8: nothing to the values of x, unless p or 1 - p is itself small.
    """
    if x.is_mps:  # it has no float64
        return False
    return x.dtype in (torch.float64, torch.complex128) or not 2**-8 <= p <= 1 - 2**-8


@outside_of_derivatives
def draw_mask(like: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    if p in (0, 1):  # nothing to draw
        return torch.full_like(like, p == 0, dtype=torch.bool, requires_grad=False)
    if cpu.can_draw_mask(like, p):
        return cpu.draw_mask(like, p, generator)
    if gpu.can_draw(like):
        return gpu.draw_mask(like, p, generator)
    return _draw_uniform(like, torch.float64 if _needs_double(like, p) else torch.float32, generator) >= p


@outside_of_derivatives
def _draw_uniform(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.rand_like(like, dtype=dtype)
    if is_eager(like):
        return torch.empty_like(like, dtype=dtype, requires_grad=False).uniform_(generator=generator)
    # rand_like(generator=...) disregards the randomness mode of vmap.
    return _in_format_of(like, torch.rand(like.shape, dtype=dtype, device=like.device, generator=generator))


@outside_of_derivatives
def _draw_normal(like: Tensor, dtype: torch.dtype, mean: float, deviation: float,
                 generator: torch.Generator | None) -> Tensor:
    if gpu.can_draw(like) and dtype in gpu.FAST:
        return gpu.draw_factors(like, dtype, mean, deviation, generator)
    if is_eager(like):
        factors = torch.empty_like(like, dtype=dtype, requires_grad=False)
        flat = factors.as_strided((factors.numel(),), (1,), 0)  # normal_ is slow on other memory formats
        flat.normal_(mean, deviation, generator=generator)
        return factors
    if generator is None:
        return mean + deviation * torch.randn_like(like, dtype=dtype)
    normal = torch.randn(like.shape, dtype=dtype, device=like.device, generator=generator)
    return _in_format_of(like, mean + deviation * normal)


def _in_format_of(like: Tensor, values: Tensor) -> Tensor:
    """``values``, of the shape of ``like``, in its memory format: that of the first operand decides."""
    return torch.zeros_like(like, dtype=values.dtype) + values
