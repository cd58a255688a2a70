"""Draws under the transforms of torch.func: what a transform does not need to see is drawn outside of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from dropoutlib.arguments import is_differentiated

__all__ = ["outside_of_derivatives", "outside_of_transforms"]

Arguments = ParamSpec("Arguments")
Draw = Callable[Concatenate[Tensor, Arguments], Tensor]


def outside_of_derivatives(draw: Draw[Arguments]) -> Draw[Arguments]:
    """Makes a draw for a tensor that only derivatives see the draw that it is without them.

    Noise is a constant to ``torch.func.grad`` and ``jvp``, so a seed gives inside what it gives outside.

    Args:
        draw: makes a tensor from the shape, type, device and memory format of its first argument.

    Returns:
        The draw.
    """
    @functools.wraps(draw)
    def wrapper(like: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if not is_differentiated(like):
            return draw(like, *args, **kwargs)
        facts = like.size(), like.stride(), like.dtype, like.device

        def outside() -> Tensor:
            size, stride, dtype, device = facts
            return draw(torch.empty_strided(size, stride, dtype=dtype, device=device), *args, **kwargs)

        return outside_of_transforms(outside)
    return wrapper


def outside_of_transforms(function: Callable[[], Tensor]) -> Tensor:
    """Calls a function where no transform sees it: vmap would refuse to draw, or draw other masks.

    Transforms belong to a thread.

    Args:
        function: without arguments.

    Returns:
        What it returns.
    """
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None   # device and stream are a thread's

    def there() -> Tensor:
        if stream is None:
            return function()
        with torch.cuda.stream(stream):
            return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(there).result()
