"""DropBlock: contiguous blocks of feature maps are set to zero."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, closed, one_of, positive_integer, require_one_size, unchanged
from ..documentation import RANKS
from ..layer import NoisyLayer, draws
from ..maps import in_format_of, on_each_process
from ..methods import describe
from ..noise import Bernoulli, noise_variance, nothing, select

__all__ = ["DropBlock1d", "DropBlock2d", "DropBlock3d", "drop_block1d", "drop_block2d", "drop_block3d"]

_RANKS = {
    1: RANKS[1] | {"places": "``(N, C, L - b + 1)``", "square": "b steps", "size": ", 7", "seeds": ", 5"},
    2: RANKS[2] | {"places": "``(N, C, H - b + 1, W - b + 1)``", "square": "b x b positions", "size": ", 1, 7",
                   "seeds": ", 1, 5"},
    3: RANKS[3] | {"places": "``(N, C, D - b + 1, H - b + 1, W - b + 1)``", "square": "b x b x b positions",
                   "size": ", 1, 1, 7", "seeds": ", 1, 1, 5"},
}


def _require_maps(input: Tensor, axes: int) -> None:
    require_one_size(input)
    if input.dim() not in (axes + 1, axes + 2):
        raise RuntimeError(f"input has to be {RANKS[axes]['shapes'].replace('`', '')}, "
                           f"but got the shape {tuple(input.shape)}")


def _sizes(input: Tensor, axes: int) -> tuple[int, ...]:
    return closed(input.shape[-axes:], "where blocks of DropBlock begin")


def _sides(sizes: tuple[int, ...], block_size: int) -> list[int]:
    return [min(block_size, size) for size in sizes]


def _gamma(sizes: tuple[int, ...], p: float, block_size: int) -> float:
    """The probability that a block begins at a place, which is at most p."""
    gamma = p
    for size, side in zip(sizes, _sides(sizes, block_size), strict=True):
        if size:
            gamma *= size / (side * (size - side + 1))
    return min(gamma, p)  # both are equal for blocks of one position and of a whole map, but for rounding


def _probability(sizes: tuple[int, ...], p: float, block_size: int, like: Tensor) -> Tensor:
    """The probability of every position to be dropped, in double precision."""
    blocks = torch.ones((), dtype=torch.float64, device=like.device)
    for size, side in zip(sizes, _sides(sizes, block_size), strict=True):
        place = torch.arange(size, device=like.device, dtype=torch.float64)
        hits = place.clamp(max=size - side) - (place - side + 1).clamp(min=0) + 1
        blocks = blocks.unsqueeze(-1) * hits
    # a function of math would have a compiler keep its graph for this p alone
    gamma = torch.full((), _gamma(sizes, p, block_size), dtype=torch.float64, device=like.device)
    return -torch.expm1(blocks * torch.log1p(-gamma))


def _seeds(input: Tensor, p: float, block_size: int, axes: int, *, noise: Tensor | None = None,
           generator: torch.Generator | None = None) -> Tensor:
    """Where no block begins."""
    _require_maps(input, axes)
    block_size, sizes = positive_integer("block_size", block_size), _sizes(input, axes)
    places = input
    for axis, (size, side) in enumerate(zip(sizes, _sides(sizes, block_size), strict=True), -axes):
        if size:
            places = places.narrow(axis, 0, size - side + 1)
    return Bernoulli(_gamma(sizes, Bernoulli(p).p, block_size)).sample(places, noise=noise, generator=generator)


def _outside_of_blocks(seeds: Tensor, sizes: tuple[int, ...], block_size: int) -> Tensor:
    """The positions that no block covers.

    Behind the last place of a block a row has block - 1 more positions, and a map as many more rows. So all maps are
    one long line, in which a shift never carries a block into the next row or the next map.
    """
    sides, pads = _sides(sizes, block_size), []
    for side in reversed(sides):
        pads += [0, max(side - 1, 0)]
    keep = F.pad(seeds, pads, value=True)
    shape, keep, step = keep.shape, keep.flatten(), 1
    for size, side in zip(reversed(sizes), reversed(sides), strict=True):
        width = 1  # of the runs that the mask looks back on, doubled as long as they fit
        while width < side:
            shift = min(width, side - width) * step
            keep = torch.cat([keep[:shift], keep[shift:] & keep[:-shift]])
            width = min(2 * width, side)
        step *= size
    return keep.view(shape)


def _drop_block(input: Tensor, p: float, block_size: int, training: bool, scale: str, axes: int, *,
                noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Sets blocks of {maps} to zero.

    See :class:`~dropoutlib.DropBlock{axes}d`.

    Args:
        input: floating point or complex tensor {shapes}.
        p: probability of dropping a position, if no blocks overlapped.
        block_size: length b of the side of a block. A map that is shorter is covered as a whole along that axis.
        {training}
        scale: what is left is multiplied with, map by map: ``"realised"``, the number of positions over that of those
            that are left; or ``"expected"``, each position with one over its probability of being left.
        noise: replaces the draw: 0 where a block begins and 1 elsewhere, of shape {places}, or one that broadcasts to
            it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: {bad_p}, if ``block_size`` is below 1, if ``scale`` is another word, {bad_noise}.
        RuntimeError: if the input has another number of axes, if it holds integers or booleans, or {bad_generator}.
        TypeError: if the input is not a tensor, ``p`` not a real number or ``block_size`` not a whole number.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} seeds = torch.ones(1, 1{seeds})
        {>>>} seeds[..., 2] = 0
        {>>>} functional.drop_block{axes}d(torch.ones(1, 1{size}), block_size=3, noise=seeds).flatten()
        tensor([1.7500, 1.7500, 0.0000, 0.0000, 0.0000, 1.7500, 1.7500])
    """
    p, block_size = Bernoulli(p).p, positive_integer("block_size", block_size)
    one_of("scale", scale, ("realised", "expected"))
    unchanged(input, partial(_require_maps, axes=axes))
    if not applies_noise(training, noise) or (p == 0 and noise is None):
        return unchanged(input)
    _require_maps(input, axes)
    sizes = _sizes(input, axes)
    seeds = _seeds(input, p, block_size, axes, noise=noise, generator=generator)
    if input.numel() == 0:
        return input.clone()
    keep = on_each_process(lambda own: _outside_of_blocks(own, sizes, block_size), seeds, axes)
    dtype = input.real.dtype
    if scale == "expected":
        left = 1 - _probability(sizes, p, block_size, input)
        inverse = torch.where(left > 0, 1 / left, 1)
        factor = on_each_process(lambda own: inverse.expand(own.shape), keep, axes)
    else:
        left = keep.flatten(-axes).sum(-1, dtype=torch.int32).clamp(min=1)
        factor = (math.prod(sizes) / left.double()).unflatten(-1, (-1, *[1] * axes))
    return select(input, in_format_of(input, keep), factor.to(dtype))


@draws(partial(_seeds, axes=1))
@describe("drop_block", like=_drop_block, fits="the draw", **_RANKS[1])
def drop_block1d(input: Tensor, p: float = 0.1, block_size: int = 7, training: bool = True, *,
                 scale: Literal["realised", "expected"] = "realised", noise: Tensor | None = None,
                 generator: torch.Generator | None = None) -> Tensor:
    return _drop_block(input, p, block_size, training, scale, 1, noise=noise, generator=generator)


@draws(partial(_seeds, axes=2))
@describe("drop_block", like=_drop_block, fits="the draw", **_RANKS[2])
def drop_block2d(input: Tensor, p: float = 0.1, block_size: int = 7, training: bool = True, *,
                 scale: Literal["realised", "expected"] = "realised", noise: Tensor | None = None,
                 generator: torch.Generator | None = None) -> Tensor:
    return _drop_block(input, p, block_size, training, scale, 2, noise=noise, generator=generator)


@draws(partial(_seeds, axes=3))
@describe("drop_block", like=_drop_block, fits="the draw", **_RANKS[3])
def drop_block3d(input: Tensor, p: float = 0.1, block_size: int = 7, training: bool = True, *,
                 scale: Literal["realised", "expected"] = "realised", noise: Tensor | None = None,
                 generator: torch.Generator | None = None) -> Tensor:
    return _drop_block(input, p, block_size, training, scale, 3, noise=noise, generator=generator)


@describe("drop_block", _drop_block, shapes="of a shape that the layer takes", places="as the layer says")
class _DropBlock(NoisyLayer, _DropoutNd):
    """Sets contiguous blocks of {maps} to zero, a draw of blocks for every map.

    In training a block of {square} begins at every place where it fits with probability gamma, independently of the
    others. It is such that the expected number of positions in blocks, each counted as often as it is covered, is p
    times all of them. Blocks overlap, so fewer are dropped: :meth:`drop_probability` says how often a position is.
    {identity}

    {four_answers}

    ``scale="realised"`` is the paper's: the sum of a constant map is kept in every draw that leaves something, but not
    the mean of a position. For blocks between one position and the whole map it is too large in a corner and too small
    in the middle; for blocks of the whole map it is 1 - p times the input. With ``scale="expected"`` the mean of every
    position is the input. Both work map by map, so that examples are independent; the authors' code,
    torchvision and timm divide by the share that is left of the whole batch. A map of which nothing is left is zero.
    {selects} With p = 0 the input itself is returned. With p = 1 something may be left, unless a block is one
    position or the whole map.

    Args:
        {p} {assigned} {block_size} {scale}

    Shape:
        Input {shapes}; the output has the same one. {given}

    Raises:
        ValueError: {bad_p}, if ``block_size`` is below 1, or if ``scale`` is another word.
        TypeError: if ``p`` is not a real number or ``block_size`` not a whole number.

    Source:
        Ghiasi, Lin and Le, *DropBlock: A regularization method for convolutional networks* (2018), section 3,
        algorithm 1.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import DropBlock{axes}d
        {>>>} layer, seeds = DropBlock{axes}d(block_size=3), torch.ones(1, 1{seeds})
        {>>>} seeds[..., 2] = 0
        {>>>} layer(torch.ones(1, 1{size}), noise=seeds).flatten()
        tensor([1.7500, 1.7500, 0.0000, 0.0000, 0.0000, 1.7500, 1.7500])
    """

    _axes: int

    def __init__(self, p: float = 0.1, block_size: int = 7, *,
                 scale: Literal["realised", "expected"] = "realised") -> None:
        super().__init__(Bernoulli(p).p)
        one_of("scale", scale, ("realised", "expected"))
        self.block_size, self.scale = positive_integer("block_size", block_size), scale

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, block_size={self.block_size}, scale={self.scale!r}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops blocks in training and returns the input in evaluation. {call}"""
        return _drop_block(input, self.p, self.block_size, self.training, self.scale, self._axes, noise=noise,
                           generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _seeds(input, self.p, self.block_size, self._axes, generator=generator)

    def drop_probability(self, *sizes: int) -> Tensor:
        """Probability that a position is dropped: 1 - (1 - gamma)**n, where n blocks can cover it.

        Args:
            sizes: of a map, one for each of its axes.

        Returns:
            Tensor of that shape, in double precision.

        Raises:
            TypeError: if a size is no whole number, or there is not one for each axis.
            ValueError: if a size is below 1.
        """
        if len(sizes) != self._axes:
            raise TypeError(f"sizes have to be {self._axes}, one for each axis of a map, but got {len(sizes)}")
        whole = tuple(positive_integer("size", size) for size in sizes)
        return _probability(whole, Bernoulli(self.p).p, self.block_size, torch.empty(0, device="cpu"))

    def _dropped(self, input: Tensor) -> Tensor:
        _require_maps(input, self._axes)
        if self.scale != "expected" and self.p != 0:
            raise NotImplementedError(f"{type(self).__name__} with scale='realised' has no closed form for its moments:"
                                      " use scale='expected', or average over draws")
        return _probability(_sizes(input, self._axes), Bernoulli(self.p).p, self.block_size, input)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}, for ``scale="expected"``: the input itself (zero if everything is dropped).

        Args:
            {input}

        Returns:
            Tensor of the shape of the layer's output.

        Raises:
            NotImplementedError: for ``scale="realised"``, whose moments have no closed form.
        """
        dropped = self._dropped(input)
        return nothing(input) if input.numel() and _gamma(tuple(dropped.shape), self.p, self.block_size) == 1 else input

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, for ``scale="expected"``, position by position.

        Positions that one block can cover are correlated.

        Args:
            {input}

        Returns:
            Tensor of the shape of the layer's output, real.

        Raises:
            NotImplementedError: for ``scale="realised"``, whose moments have no closed form.
        """
        dropped = self._dropped(input)
        return noise_variance(input, torch.where(dropped < 1, dropped / (1 - dropped), 0))


@describe("drop_block", drop_block1d, like=_DropBlock, **_RANKS[1])
class DropBlock1d(_DropBlock):
    _axes = 1


@describe("drop_block", drop_block2d, like=_DropBlock, **_RANKS[2])
class DropBlock2d(_DropBlock):
    _axes = 2


@describe("drop_block", drop_block3d, like=_DropBlock, **_RANKS[3])
class DropBlock3d(_DropBlock):
    _axes = 3
