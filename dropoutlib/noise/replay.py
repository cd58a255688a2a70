"""Masks that are drawn again instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .given import check_generator
from .laws import Bernoulli, draw_mask

__all__ = ["Replay"]

_REPLAYED = 1 << 16  # elements of the masks that a Replay draws at a time, at least one example


class Replay:
    """Keep masks for one example after the other, drawn again at every iteration instead of being kept.

    Masks of the weights, one for every example, would fill a tensor of ``(batch, out, in)``. This draws them a few
    examples at a time, in forward and again in backward, from a copy of the generator's state. Eager only.

    Args:
        law: the law of the masks.
        like: what one example's mask is for, of shape ``(out, in)``.
        batch: number of examples.
        noise: masks to use instead of a draw, bool, of shape ``(batch, out, in)``.
        generator: draws from here instead of torch's global generator.

    Raises:
        TypeError: ``generator`` is no generator.
        RuntimeError: as for :meth:`Bernoulli.sample`.

    Example:
        >>> masks = Replay(Bernoulli(0.5), torch.empty(2, 3), batch=4)
        >>> first, second = (torch.cat([keep for _, keep in masks]) for _ in range(2))
        >>> first.shape, torch.equal(first, second)
        (torch.Size([4, 2, 3]), True)
    """

    def __init__(self, law: Bernoulli, like: Tensor, batch: int, *, noise: Tensor | None = None,
                 generator: torch.Generator | None = None) -> None:
        if generator is not None:
            check_generator(generator, like)
        self._law, self._like, self.batch, self._noise = law, like.detach(), batch, noise
        self._examples = max(1, _REPLAYED // max(1, like.numel()))
        if noise is None:
            self._source = generator if generator is not None else _default_generator(like.device)
            self._state = self._source.clone_state()
            self._drawn = False

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """The examples of a chunk and their masks, of shape ``(examples, out, in)``."""
        if self._noise is None:
            first, self._drawn = not self._drawn, True  # the first draw moves the generator on
            return self._draw(self._source if first else self._state.clone_state())
        return ((rows, self._noise[rows]) for rows in self._chunks())

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.batch, self._examples):
            yield slice(start, min(start + self._examples, self.batch))

    def _draw(self, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        for rows in self._chunks():
            like = self._like.new_empty(()).expand(rows.stop - rows.start, *self._like.shape)
            yield rows, draw_mask(like, self._law.p, generator)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    generators = torch.get_device_module(device).default_generators
    generator: torch.Generator = generators[device.index if device.index is not None else 0]
    return generator
