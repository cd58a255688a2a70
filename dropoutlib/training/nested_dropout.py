"""Nested dropout: units in order, of which all behind a random length are set to zero."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import (
    applies_noise,
    integer,
    is_eager,
    positive_integer,
    real,
    require_broadcastable,
    require_one_size,
    unchanged,
)
from ..layer import NoisyLayer, draws
from ..maps import on_each_process
from ..methods import describe
from ..noise import Bernoulli, Uniform, noise_variance, select

__all__ = ["NestedDropout", "nested_dropout"]


class _Truncation:
    """The law of a length along one axis of an input, checked."""

    def __init__(self, input: Tensor, p: float, sizes: Sequence[int] | None, weights: Sequence[float] | None,
                 dim: int) -> None:
        self.p = Bernoulli(p).p
        self.sizes, self.weights = _law(sizes, weights)
        unchanged(input, require_one_size)
        axes = input.dim()
        if not -axes <= integer("dim", dim) < axes or dim % axes == 0:
            raise RuntimeError(f"input has to be of shape (N, ...) with an axis dim={dim} of units that is not that of "
                               f"the examples, but got the shape {tuple(input.shape)}")
        self.dim, self.units = dim % axes, input.shape[dim]
        if self.sizes is not None and max(self.sizes) > self.units:
            raise ValueError(f"sizes has to hold numbers of at most {self.units}, the units of the input, "
                             f"but got {max(self.sizes)}")
        self.shape = tuple(self.units if axis == self.dim else 1 for axis in range(axes))
        self.shared = tuple(range(1, axes))

    def position(self, like: Tensor) -> Tensor:
        """For each unit, how many are in front of it."""
        return torch.arange(self.units, device=like.device).view(self.shape)

    def keep_probability(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """For each unit the probability that it is kept: that the length reaches to it."""
        before = torch.arange(self.units, device=like.device, dtype=dtype)
        if self.sizes is None or self.weights is None:
            shorter = before / max(self.units, 1)
        else:
            sizes, weights = zip(*sorted(zip(self.sizes, self.weights, strict=True)), strict=True)
            ends = torch.tensor(sizes, device=like.device, dtype=dtype)
            up_to = torch.tensor([0.0, *itertools.accumulate(weights)], device=like.device, dtype=dtype)
            shorter = up_to[torch.searchsorted(ends, before, right=True)]
            shorter = torch.where(before < sizes[-1], shorter, 1)  # weights sum to one up to rounding
        return (1 - self.p * shorter).view(self.shape)

    def draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        """Lengths, one for each example: a unit is kept where one uniform number is below its probability."""
        if self.p == 0:
            return torch.full_like(self._lengths(input), self.units)
        uniform = Uniform().sample(input, shared=self.shared, generator=generator)
        return (uniform < self.keep_probability(input, uniform.dtype)).sum(self.dim, keepdim=True)

    def given(self, noise: Tensor, input: Tensor) -> Tensor:
        """Lengths of the caller."""
        if not isinstance(noise, Tensor):
            raise TypeError(f"noise has to be a tensor, but got {type(noise).__name__}")
        like = self._lengths(input)
        require_broadcastable("noise", noise, like.shape, "draw")
        if noise.device != like.device:
            raise ValueError(f"noise has to be on the device {like.device} of the input, but is on {noise.device}")
        if noise.is_complex() or noise.dtype is torch.bool:
            raise ValueError(f"noise has to be lengths, whole numbers, but got {noise.dtype}")
        if is_eager(noise) and not bool(((noise >= 0) & (noise <= self.units) & (noise == noise.long())).all()):
            raise ValueError(f"noise has to be lengths, whole numbers from 0 to {self.units}, but it has other values")
        return noise

    def _lengths(self, input: Tensor) -> Tensor:
        shape = tuple(size if axis == 0 else 1 for axis, size in enumerate(input.shape))
        return torch.empty(shape, device=input.device, dtype=torch.int64)


def _law(sizes: Sequence[int] | None, weights: Sequence[float] | None
         ) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Sizes, and weights that sum to one."""
    if sizes is None:
        if weights is not None:
            raise ValueError("weights has to be given together with sizes, one for each of them")
        return None, None
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"sizes has to be a sequence of whole numbers, but got {sizes!r}")
    ends = tuple(positive_integer("a number in sizes", size) for size in sizes)
    if not ends or len(set(ends)) < len(ends):
        raise ValueError(f"sizes has to hold at least one number, and each of them once, but got {sizes!r}")
    if weights is None:
        return ends, (1 / len(ends),) * len(ends)
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights has to be a sequence of real numbers, but got {weights!r}")
    shares = tuple(real("a number in weights", weight) for weight in weights)
    if len(shares) != len(ends) or not all(0 < share < math.inf for share in shares):
        raise ValueError(f"weights has to hold {len(ends)} positive numbers, one for each of sizes, "
                         f"but got {weights!r}")
    total = sum(shares)
    law = tuple(share / total for share in shares)
    if not all(law):
        raise ValueError("weights has to hold numbers of a finite sum, beside which none of them is zero, but got "
                         f"{weights!r}")
    return ends, law


def _draw_lengths(input: Tensor, p: float, sizes: Sequence[int] | None, weights: Sequence[float] | None, dim: int, *,
                  generator: torch.Generator | None) -> Tensor:
    return _Truncation(input, p, sizes, weights, dim).draw(input, generator)


@draws(_draw_lengths)
@describe("nested_dropout")
def nested_dropout(input: Tensor, p: float = 0.5, sizes: Sequence[int] | None = None,
                   weights: Sequence[float] | None = None, dim: int = 1, length: int | None = None,
                   training: bool = True, *, noise: Tensor | None = None,
                   generator: torch.Generator | None = None) -> Tensor:
    """Keeps the first units of each example, up to a random length, and sets the others to zero.

    See :class:`~dropoutlib.NestedDropout`.

    Args:
        input: floating point or complex tensor of shape ``(N, ...)``.
        p: probability that an example is cut at all.
        sizes: the lengths to which it is cut; None is every length from 1 to the number of units.
        weights: for each of ``sizes`` how often it comes, in relation to the others; None is equally often.
        dim: axis of the units, not that of the examples.
        length: number of units that evaluation keeps; None is all of them.
        training: whether lengths are drawn.
        noise: lengths that replace the draw, whole numbers of shape ``(N, 1, ..., 1)``, with as many axes as the input,
            or one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: {bad_p}, if ``sizes`` or ``weights`` does not fit, if a size or ``length`` is below 1 or above the
            number of units, if ``noise`` does not broadcast to the draw, has other values, or is given while
            ``training`` is False.
        RuntimeError: if the input has no axis ``dim`` behind that of the examples, holds integers or booleans, or
            {bad_generator}.
        TypeError: if the input is not a tensor, or a number is of another type.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.nested_dropout(torch.ones(2, 4), noise=torch.tensor([[1], [3]]))
        tensor([[1., 0., 0., 0.],
                [1., 1., 1., 0.]])
        >>> functional.nested_dropout(torch.ones(1, 4), length=2, training=False)
        tensor([[1., 1., 0., 0.]])
    """
    law = _Truncation(input, p, sizes, weights, dim)
    if length is not None and positive_integer("length", length) > law.units:
        raise ValueError(f"length has to be at most {law.units}, the units of the input, but got {length}")
    if not applies_noise(training, noise):
        if length is None:
            return unchanged(input, require_one_size)
        return on_each_process(lambda part: select(part, law.position(part) < length), input, input.dim() - 1)
    if noise is None and law.p == 0:
        return unchanged(input, require_one_size)
    require_one_size(input)

    def truncated(part: Tensor) -> Tensor:
        lengths = law.draw(part, generator) if noise is None else law.given(noise, part)
        return select(part, law.position(part) < lengths)

    return on_each_process(truncated, input, input.dim() - 1)


@describe("nested_dropout", nested_dropout)
class NestedDropout(NoisyLayer, _DropoutNd):
    r"""Keeps the first units of each example, up to a random length: the first units learn what matters most.

    In training an example keeps all its n units with probability 1 - p. Otherwise it is cut to a length that is drawn
    from ``sizes``, and the units behind it are 0. Nothing is scaled: an example that is cut to k units looks as it does
    in evaluation with ``length=k``, and as what is stored when the first k numbers are. In evaluation all units are
    kept, or the first ``length``.

    {four_answers}

    With the default every length from 1 to n is equally probable, and unit i is kept with probability
    :math:`1 - p\,\frac{i - 1}{n}`. ``sizes=[8, 16, 32]`` are those of a Matryoshka embedding; a unit behind the last of
    them is trained by the examples that are not cut, and with p = 1 by none. A geometric law is
    ``sizes=range(1, n + 1), weights=[rho**k for k in range(n)]``.

    {selects} With p = 0 the input itself is returned, and nothing is drawn.

    Args:
        p: probability that an example is cut at all. {assigned}
        {sizes} {weights} {dim}
        length: number of units that evaluation keeps; None is all of them. The attribute may be changed later.

    Shape:
        Input ``(N, ...)``; the output has the same one. {given}

    Raises:
        ValueError: if ``p`` is not between 0 and 1, ``sizes`` or ``weights`` does not fit, or ``length`` is below 1.
        TypeError: if a number is of another type.

    Source:
        Rippel et al., *Learning Ordered Representations with Nested Dropout* (2014).

    Example:
        >>> import torch
        >>> from dropoutlib import NestedDropout
        >>> code, layer = torch.ones(2, 4), NestedDropout(p=0.5)
        >>> layer(code, noise=torch.tensor([[1], [4]]))
        tensor([[1., 0., 0., 0.],
                [1., 1., 1., 1.]])
        >>> layer.keep_probability(code)
        tensor([[1.0000, 0.8750, 0.7500, 0.6250]], dtype=torch.float64)
        >>> layer.eval().length = 3
        >>> layer(code[:1])
        tensor([[1., 1., 1., 0.]])
    """

    def __init__(self, p: float = 0.5, sizes: Sequence[int] | None = None, weights: Sequence[float] | None = None,
                 dim: int = 1, length: int | None = None) -> None:
        super().__init__(Bernoulli(p).p)
        self.sizes, self.weights = _law(sizes, weights)
        self.dim = integer("dim", dim)
        self.length = None if length is None else positive_integer("length", length)

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"p={self.p}, sizes={self.sizes}, weights={self.weights}, dim={self.dim}, length={self.length}")

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Cuts examples in training, and keeps all units or the first ``length`` in evaluation. {call}"""
        return nested_dropout(input, self.p, self.sizes, self.weights, self.dim, self.length, self.training,
                              noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _draw_lengths(input, self.p, self.sizes, self.weights, self.dim, generator=generator)

    def keep_probability(self, input: Tensor) -> Tensor:
        """For each unit the probability that training keeps it; it never grows from one unit to the next.

        Args:
            {input}

        Returns:
            Tensor of double precision, of the shape of one example, with 1 for every axis but that of the units.
        """
        return _Truncation(input, self.p, self.sizes, self.weights, self.dim).keep_probability(input, torch.float64)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}, which is not the test output: the input times the probability of keeping. {moment}"""
        keep = self.keep_probability(input).to(input.real.dtype)
        return torch.where(keep > 0, input * keep, 0)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, of every element by itself. {moment}"""
        require_one_size(input)
        keep = self.keep_probability(input)
        return noise_variance(input, keep * (1 - keep))
