"""Elementwise Bernoulli noise on the CPU, for tensors so large that the time goes into elements and not into calls.

Two facts make it fast. The generator of the CPU gives 64 random bits a call, of which a keep mask needs only 8 an
element, and a few more for what 8 bits cannot say. And multiplying the bits of a number, read as an integer, with 0 or
1 selects (a dropped ``inf`` or ``nan`` leaves nothing behind) many elements at a time, where ``torch.where`` branches
on every single one. ``python -m dropoutlib.benchmark`` measures both against :func:`torch.nn.functional.dropout`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dropoutlib.arguments import in_forward_mode, is_eager

__all__ = ["Selector", "apply_mask", "can_apply_mask", "can_draw_mask", "draw_mask"]

_CHUNK = 1 << 16  # elements; the random words of a chunk stay in the cache
_SMALLEST = 3 << 11  # elements; below, the plain expressions cost less than the calls made here
_SMALLEST_IN_TWO_PARTS = 1 << 15  # the same, where a mask is a byte an element and distances
_ROW = 256  # elements; from here on the rows that share a draw are scaled as rows
_PLACES = torch.tensor([[1], [2], [4], [8], [16], [32], [64], [-128]], dtype=torch.int8, device="cpu")  # bits of a byte
_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def can_draw_mask(x: Tensor, p: float) -> bool:
    """Whether :func:`draw_mask` may draw a mask for ``x``."""
    if not is_eager(x) or not x.is_cpu:     # first: a compiler would keep the graph for this p alone
        return False
    return x.numel() >= (_SMALLEST if (256 * p).is_integer() else _SMALLEST_IN_TWO_PARTS)


def draw_mask(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Draws a bool mask in the memory format of ``x``, each element False with probability ``p``.

    For p = 1/2 an element is a random bit. Else a random byte drops it with the multiple of 1/256 that is next to
    ``p`` on the side of the rarer outcome, and that outcome then comes to a few more elements, at random distances:
    so all elements are independent, and ``p`` is that of a double, though most elements take 8 random bits.
    """
    keep = torch.empty_like(x, dtype=torch.int8, requires_grad=False)
    flat = keep.as_strided((x.numel(),), (1,), 0)  # whatever the memory format, empty_like leaves no gaps
    if p == 0.5:
        for chunk in flat.split(8 * _CHUNK):
            _toss_coins(chunk, generator)
        return keep.view(torch.bool)
    rarer_is_kept = p > 0.5
    rate = 1 - p if rarer_is_kept else p
    cut = int(rate * 256)
    _draw_rarer(flat, cut, not rarer_is_kept, generator)
    missing = (rate * 256 - cut) / (256 - cut)  # of the elements with the other outcome
    if missing:
        for places in _at_random_distances(flat.numel(), missing, flat.device, generator):
            flat.index_fill_(0, places, rarer_is_kept)
    return keep.view(torch.bool)


def _toss_coins(keep: Tensor, generator: torch.Generator | None) -> None:
    """One random bit an element: the bits of each place in a byte follow one another."""
    size = -(-keep.numel() // 64) * 8  # bytes, whole words
    words = torch.empty(size // 8, dtype=torch.int64, device=keep.device)
    coins = words.random_(-2**63, None, generator=generator).view(torch.int8)
    if keep.numel() == 8 * size:
        planes = keep.view(8, size)
        torch.ne(torch.bitwise_and(coins, _PLACES, out=planes), 0, out=planes)
    else:
        planes = torch.bitwise_and(coins, _PLACES)
        keep.copy_(torch.ne(planes, 0, out=planes).view(-1)[:keep.numel()])


def _draw_rarer(outcomes: Tensor, cut: int, invert: bool, generator: torch.Generator | None) -> None:
    """1 with probability ``cut / 256``, or 0 if inverted."""
    if not cut:
        outcomes.fill_(invert)
        return
    compare = torch.ge if invert else torch.lt
    words = torch.empty(-(-min(outcomes.numel(), _CHUNK) // 8), dtype=torch.int64, device=outcomes.device)
    for chunk in outcomes.split(_CHUNK):
        words.random_(-2**63, None, generator=generator)
        compare(words.view(torch.int8)[:chunk.numel()], cut - 128, out=chunk)


def _at_random_distances(size: int, rate: float, device: torch.device, generator: torch.Generator | None
                         ) -> Iterator[Tensor]:
    """Places below ``size`` in order, each there with probability ``rate``, whatever the others are.

    The distance to the next one is geometric: k with probability ``rate * (1 - rate)**(k - 1)``.
    """
    last = -1
    while last < size:
        expected = (size - last) * rate
        count = min(int(expected + 4 * math.sqrt(expected)) + 1, _CHUNK)
        distances = torch.empty(count, dtype=torch.float64, device=device).geometric_(rate, generator=generator)
        places = distances.clamp_(max=size + 1).cumsum(0, dtype=torch.int64).add_(last)
        last = int(places[-1])
        yield places if last < size else places[:int(torch.searchsorted(places, size))]


def can_apply_mask(x: Tensor, keep: Tensor) -> bool:
    """Whether :func:`apply_mask` may multiply ``x`` with ``keep``."""
    return (is_eager(x) and x.numel() >= _SMALLEST and x.is_cpu and keep.is_cpu and type(keep) is Tensor
            and keep.dtype is torch.bool and x.is_floating_point() and x.element_size() in _SAME_SIZE
            and not x.is_neg() and (keep.shape == x.shape or _broadcasts(keep, x)))


def _broadcasts(keep: Tensor, x: Tensor) -> bool:
    return keep.dim() == x.dim() and all(k in (1, n) for k, n in zip(keep.shape, x.shape, strict=True))


def apply_mask(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """``x * scale`` where ``keep``, else 0; differentiable in ``x`` any number of times, in both modes."""
    if not torch.is_grad_enabled() and not in_forward_mode():
        return _masked(x, keep, scale)  # a Function costs as much as a thousand elements
    return _ApplyMask.apply(x, keep, scale)


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    if scale != 1 and _shares_rows(x, keep):
        return _scaled_rows(x, keep, scale)
    integer = _SAME_SIZE[x.element_size()]
    bits = torch.empty_like(keep, dtype=integer).copy_(keep)
    values = x.view(integer)
    bits = bits.mul_(values) if keep.shape == x.shape else values * bits
    y = bits.view(x.dtype)
    return y if scale == 1 else y.mul_(scale)


def _shares_rows(x: Tensor, keep: Tensor) -> bool:
    """Whether each draw is for many elements in a row, as for the positions of a feature map."""
    axes = sum(1 for _ in itertools.takewhile(lambda n: n == 1, reversed(keep.shape)))
    return (x.dtype is torch.float32 and x.is_contiguous() and 0 < _ROW * keep.numel() <= x.numel()
            and keep.shape[:x.dim() - axes] == x.shape[:x.dim() - axes])


def _scaled_rows(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Selects and scales in one pass: the sum over a bag of rows that holds the row itself, or nothing."""
    kept = keep.reshape(-1)
    index = kept.nonzero().squeeze(1)
    first = kept.cumsum(0).sub_(kept.view(torch.uint8))  # of each bag
    output = torch.nn.functional.embedding_bag(index, x.view(kept.numel(), -1), first, mode="sum",
                                               per_sample_weights=x.new_full(index.shape, scale))
    return output.resize_(x.shape)  # a view could not be written into where autograd sees it


class Selector:
    """Applies one mask after another to tensors of one shape, in memory that is allocated once.

    Fresh memory costs more than the arithmetic on it. What is returned is overwritten by the next call.

    Args:
        like: a tensor of the shape, type and device of what is selected from, shape ``(examples, out, in)``.
    """

    def __init__(self, like: Tensor) -> None:
        self._fast = (like.is_cpu and like.numel() >= _SMALLEST and like.is_floating_point()
                      and like.element_size() in _SAME_SIZE)
        if self._fast:
            self._bits = torch.empty(like.shape, dtype=_SAME_SIZE[like.element_size()], device=like.device)
            self._buffer = torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def select(self, values: Tensor, keep: Tensor) -> Tensor:
        """``values`` where kept, else 0; at most as many examples as the shape has."""
        if not self._fast:
            return torch.where(keep, values, 0)
        bits = self._bits[:len(keep)].copy_(keep)
        return bits.mul_(values.view(bits.dtype)).view(values.dtype)

    def select_product(self, left: Tensor, right: Tensor, keep: Tensor) -> Tensor:
        """The batched matrix product where kept, else 0."""
        product = torch.bmm(left, right, out=self._buffer[:len(keep)]) if self._fast else torch.bmm(left, right)
        return self.select(product, keep)


class _ApplyMask(torch.autograd.Function):
    """Linear in x and its own adjoint: backward and forward-mode derivatives select with the same mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.save_for_forward(keep)
        ctx.scale = scale
        return _masked(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        keep, = ctx.saved_tensors
        return _select(gradient, keep, ctx.scale), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        keep, = ctx.saved_tensors
        return _select(tangent, keep, ctx.scale)


def _select(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """As :func:`dropoutlib.noise.select`: a derivative can be sparse, batched, or of a type of its own."""
    x = x if x.layout is torch.strided else x.to_dense()
    return apply_mask(x, keep, scale) if can_apply_mask(x, keep) else torch.where(keep, x * scale, 0)
