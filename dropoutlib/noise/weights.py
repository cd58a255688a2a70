"""Masks of a weight, one for every example: drawn again in backward instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dropoutlib.arguments import is_autocast, is_eager
from dropoutlib.kernels.cpu import Selector

from .applying import select
from .given import check_generator
from .laws import Bernoulli, announce, draw_mask
from .transforms import outside_of_derivatives, outside_of_transforms

__all__ = ["Replay", "masked_product", "masks_of_weight"]

_REPLAYED = 1 << 16  # elements of the masks that a Replay draws at a time, at least one example: what the caches hold
_REPLAYED_BY_KERNELS = 1 << 24  # the same where a call costs more than the elements of a mask


def masked_product(input: Tensor, weight: Tensor, law: Bernoulli, *, noise: Tensor | None = None,
                   generator: torch.Generator | None = None) -> Tensor:
    """Multiplies each example with a weight of which a mask of its own is kept.

    In eager mode the masks, ``batch * out * in`` numbers, are never held at once.

    Args:
        input: of shape ``(batch, rows that share a mask, in)``.
        weight: of shape ``(out, in)``.
        law: of the masks.
        noise: masks that replace the draw, 0 or 1, broadcastable to ``(batch, out, in)``.
        generator: source of randomness; None is torch's global one.

    Returns:
        ``input[b] @ (mask[b] * weight).T`` for every example b, of shape ``(batch, rows, out)``.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Bernoulli, masked_product
        >>> weight, keep = torch.tensor([[3.0, 4.0]]), torch.tensor([[[1, 0]], [[1, 1]]])
        >>> masked_product(torch.ones(2, 1, 2), weight, Bernoulli(0.5), noise=keep).flatten()
        tensor([3., 7.])
    """
    if is_autocast(input):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
    for_all = weight.detach().expand(input.shape[0], -1, -1)
    keep = None if noise is None else law.sample(for_all, noise=noise)
    if keep is None:
        announce()
    if is_eager(input) and is_eager(weight) and (keep is None or is_eager(keep)):
        masks = Replay(law, weight, input.shape[0], noise=keep, generator=generator)
        output: Tensor = _Product.apply(masks, None, input, weight)
        return output
    keep = masks_of_weight(input, weight, law, generator=generator) if keep is None else keep
    return input @ select(weight, keep).mT


def masks_of_weight(input: Tensor, weight: Tensor, law: Bernoulli, *,
                    generator: torch.Generator | None = None) -> Tensor:
    """Draws the masks that :func:`masked_product` draws, all at once.

    Args:
        input: of shape ``(batch, ...)``.
        weight: of shape ``(out, in)``.
        law: of the masks.
        generator: source of randomness; None is torch's global one.

    Returns:
        Bool tensor of shape ``(batch, out, in)``.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Bernoulli, masks_of_weight
        >>> masks_of_weight(torch.ones(5, 2), torch.ones(3, 2), Bernoulli(0.5)).shape
        torch.Size([5, 3, 2])
    """
    for_all = weight.detach().expand(input.shape[0], -1, -1)
    if generator is not None:
        check_generator(generator, for_all)
    return _draw_masks(for_all, law, generator)


@outside_of_derivatives
def _draw_masks(like: Tensor, law: Bernoulli, generator: torch.Generator | None) -> Tensor:
    """The masks of a Replay, in the shape of ``like``, whose first axis is that of the examples."""
    if not is_eager(like) or len(like) == 0:
        return law.sample(like, generator=generator)
    return torch.cat([keep for _, keep in Replay(law, like[0], len(like), generator=generator)])


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
        >>> import torch
        >>> from dropoutlib.noise import Bernoulli, Replay
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
        elements = _REPLAYED if like.is_cpu else _REPLAYED_BY_KERNELS
        self._examples = max(1, elements // max(1, like.numel()))
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


class _Product(torch.autograd.Function):
    """The form sum over b of output[b] . (mask[b] * weight) input[b], differentiated by the argument that is None.

    By ``output`` it is the layer; by ``input`` and by ``weight`` its gradients. The form is linear in each of the
    three, so every derivative is the same form again, with one argument replaced. The masks are drawn again for
    each.
    """

    @staticmethod
    def forward(ctx: Any, masks: Replay, output: Tensor | None, input: Tensor | None, weight: Tensor | None) -> Tensor:
        arguments = [output, input, weight]
        ctx.masks, ctx.by = masks, next(i for i, argument in enumerate(arguments) if argument is None)
        given = [argument for argument in arguments if argument is not None]
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)
        (result,) = _derivatives(masks, arguments, [ctx.by])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        arguments: list[Any] = list(ctx.saved_tensors)
        arguments.insert(ctx.by, gradient)
        wanted = [i for i in range(3) if i != ctx.by and ctx.needs_input_grad[1 + i]]
        if torch.is_grad_enabled() and is_eager(gradient):  # the gradient is to be differentiated in its turn
            results = [_Product.apply(ctx.masks, *(None if j == i else argument
                                                   for j, argument in enumerate(arguments))) for i in wanted]
        else:
            results = _derivatives(ctx.masks, arguments, wanted)
        gradients = dict(zip(wanted, results, strict=True))
        return None, *(gradients.get(i) for i in range(3))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        arguments: list[Any] = list(ctx.saved_tensors)
        arguments.insert(ctx.by, None)
        total: Any = 0
        for i, tangent in enumerate(tangents):
            if tangent is not None:
                replaced = [tangent if j == i else argument for j, argument in enumerate(arguments)]
                total = total + _Product.apply(ctx.masks, *replaced)
        return total


def _derivatives(masks: Replay, arguments: list[Any], wanted: list[int]) -> list[Tensor]:
    plain = all(argument is None or is_eager(argument) for argument in arguments)
    return (_differentiate if plain else _materialised)(masks, arguments, wanted)


def _differentiate(masks: Replay, arguments: list[Any], wanted: list[int]) -> list[Tensor]:
    """The derivatives of the form by the wanted arguments (0 output, 1 input, 2 weight), in one pass over the masks."""
    output, input, weight = arguments
    given = output if output is not None else input
    rows = given.shape[1]
    size = {0: None if weight is None else (masks.batch, rows, weight.shape[0]),
            1: None if weight is None else (masks.batch, rows, weight.shape[1])}
    results = {i: given.new_empty(size[i]) for i in wanted if i != 2}
    if 2 in wanted:
        single = torch.promote_types(given.dtype, torch.float32)  # a sum over the batch
        results[2] = given.new_zeros(output.shape[2], input.shape[2], dtype=single)
    selector: Selector | None = None
    for chunk, keep in masks:
        selector = selector or Selector(given.new_empty(()).expand(keep.shape))
        if wanted != [2]:
            masked = selector.select(weight, keep)
            if 0 in wanted:
                torch.bmm(input[chunk], masked.mT, out=results[0][chunk])
            if 1 in wanted:
                torch.bmm(output[chunk], masked, out=results[1][chunk])
        if 2 in wanted:
            outer = selector.select_product(output[chunk].mT, input[chunk], keep)
            results[2].add_(outer[0] if len(outer) == 1 else outer.sum(0))
    return [results[i].to(given.dtype) for i in wanted]


def _materialised(masks: Replay, arguments: list[Any], wanted: list[int]) -> list[Tensor]:
    """As :func:`_differentiate`, with all masks at once: under transforms."""
    output, input, weight = arguments
    keep = outside_of_transforms(lambda: torch.cat([part for _, part in masks]))
    results = {0: lambda: input @ select(weight, keep).mT, 1: lambda: output @ select(weight, keep),
               2: lambda: select(output.mT @ input, keep).sum(0)}
    return [results[i]() for i in wanted]
