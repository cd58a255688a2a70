"""Places on maps: the windows of torch's pooling layers, and squares around given positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dropoutlib.arguments import boolean, for_every_axis, is_eager, require_one_size
from dropoutlib.documentation import document

__all__ = ["Windows", "in_format_of", "on_each_process", "squares"]

_SHAPES = {1: "(N, C, L) or (C, L)", 2: "(N, C, H, W) or (C, H, W)", 3: "(N, C, D, H, W) or (C, D, H, W)"}


def in_format_of(input: Tensor, output: Tensor) -> Tensor:
    """Keeps channels last, as torch's pools and convolutions do; under a transform there is no such question.

    Args:
        input: with or without channels last.
        output: of as many axes.

    Returns:
        Tensor: the output, in the memory format of the input.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    kept = formats.get(input.dim()) if is_eager(input) or torch.compiler.is_compiling() else None
    if kept is None or input.is_contiguous() or not input.is_contiguous(memory_format=kept):
        return output
    return output.contiguous(memory_format=kept)


@document()
class Windows:
    """Where the windows of a pooling layer lie: its arguments, for every spatial axis.

    Args:
        axes: number of spatial axes.
        kernel_size: size of a window; a number, or one for every axis.
        stride: step from window to window; ``None``: the size of a window.
        padding: what is added on both sides, at most half of a window; it never wins.
        dilation: step from element to element of a window.
        ceil_mode: whether windows that reach over the end count.

    Raises:
        TypeError: if an argument is no whole number, or no sequence of one for every axis.
        ValueError: if a number is too small.
        {bad_padding}
    """

    def __init__(self, axes: int, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                 padding: int | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1,
                 ceil_mode: bool = False) -> None:
        self.axes, self.ceil_mode = axes, boolean("ceil_mode", ceil_mode)
        self.kernel = for_every_axis("kernel_size", kernel_size, axes, 1)
        self.stride = self.kernel if stride is None else for_every_axis("stride", stride, axes, 1)
        self.padding = for_every_axis("padding", padding, axes, 0)
        self.dilation = for_every_axis("dilation", dilation, axes, 1)
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel, strict=True)):
            raise RuntimeError(f"padding has to be at most half of kernel_size, but got padding={padding} "
                               f"for kernel_size={kernel_size}")

    @document(require_one_size)
    def check(self, input: Tensor) -> None:
        """Refuses an input that has no windows.

        Args:
            {input}

        Raises:
            {TypeError}
            RuntimeError: if it holds integers, has a wrong number of axes, or is smaller than a window.
        """
        require_one_size(input)
        if input.is_complex():
            raise RuntimeError(f"input has to be real, because pools take no complex numbers, but got {input.dtype}")
        if input.dim() not in (self.axes + 1, self.axes + 2):
            raise RuntimeError(f"input has to be of shape {_SHAPES[self.axes]}, but got the shape {tuple(input.shape)}")
        if any(size < 1 for size in self._sizes(input)):
            raise RuntimeError(f"kernel_size {self.kernel} with dilation {self.dilation} is larger than the map: "
                               f"input is of shape {tuple(input.shape)}, padded by {self.padding}")

    def of(self, input: Tensor, outside: float) -> Tensor:
        """The elements of every window, in a new last axis.

        Args:
            input: of shape ``(..., *maps)``.
            outside: what stands where a window reaches over the edge.

        Returns:
            Tensor of shape ``(..., *outputs, elements of a window)``.
        """
        return on_each_process(lambda own: self.view(own, outside).flatten(-self.axes), input, self.axes)

    def view(self, input: Tensor, outside: float) -> Tensor:
        """The same with an axis for every axis of a window, and without a copy of the elements, but for the padding.

        Args:
            input: of shape ``(..., *maps)``, on one process.
            outside: what stands where a window reaches over the edge.

        Returns:
            Tensor of shape ``(..., *outputs, *window)``.
        """
        sizes, pads = self._sizes(input), []
        per_axis = list(zip(input.shape[-self.axes:], sizes, self.kernel, self.stride, self.padding, self.dilation,
                            strict=True))
        for length, count, kernel, stride, padding, dilation in reversed(per_axis):
            end = (count - 1) * stride + dilation * (kernel - 1) + 1 - length - padding
            pads += [padding, max(end, 0) if self.ceil_mode else padding]
        input = F.pad(input, pads, value=outside)
        for _, count, kernel, stride, _, dilation in per_axis:
            # The elements go last, so that the next axis to be unfolded comes to the same place.
            input = input.unfold(-self.axes, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
            if self.ceil_mode:
                input = input.narrow(-self.axes - 1, 0, count)
        return input

    def _sizes(self, input: Tensor) -> list[int]:
        """Sizes of the output, as torch counts them."""
        sizes = []
        for length, kernel, stride, padding, dilation in zip(
                input.shape[-self.axes:], self.kernel, self.stride, self.padding, self.dilation, strict=True):
            free = length + 2 * padding - dilation * (kernel - 1) - 1
            size = (free + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            if self.ceil_mode and (size - 1) * stride >= length + padding:
                size -= 1  # a window has to start inside
            sizes.append(size)
        return sizes


def squares(centres: Tensor, size: int, height: int, width: int) -> Tensor:
    """Which positions of a map lie in a square, clipped at the edges.

    A square covers ``size`` rows and columns from ``centre - size // 2`` on: for an even size the centre is the first
    position behind the middle.

    Args:
        centres: whole numbers of shape ``(..., 2)``, row and column.
        size: length of a side.
        height: rows of the map.
        width: columns of the map.

    Returns:
        Bool tensor of shape ``(..., height, width)``.
    """
    first = centres - size // 2
    inside = []
    for axis, length in enumerate((height, width)):
        distance = torch.arange(length, device=centres.device) - first[..., axis, None]
        inside.append((distance >= 0) & (distance < size))
    return inside[0][..., :, None] & inside[1][..., None, :]


def on_each_process(function: Callable[[Tensor], Tensor], input: Tensor, axes: int) -> Tensor:
    """Computes map by map, for a ``DTensor`` on each process those maps that lie there: torch distributes no windows.

    Args:
        function: computes from a tensor one with the same axes in front of the last ``axes``.
        input: of shape ``(..., *maps)``.
        axes: number of axes that have to be whole.

    Returns:
        What the function gives, distributed as the input is.
    """
    if not hasattr(input, "full_tensor"):
        return function(input)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(input, DTensor)
    first = input.dim() - axes
    placements = [Replicate() if isinstance(one, Shard) and one.dim >= first else one for one in input.placements]
    whole = input.redistribute(placements=placements)
    output: Tensor = DTensor.from_local(function(whole.to_local()), input.device_mesh, placements)
    return output
