"""What a caller gives: noise in the place of a draw, and generators to draw from."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from dropoutlib.arguments import is_eager, require_broadcastable

__all__ = ["check_generator", "check_noise", "given_mask"]


def given_mask(noise: Tensor, like: Tensor) -> Tensor:
    """Checks a keep mask that was given instead of a draw.

    Args:
        noise: bool, or any real type with the values 0 (drop) and 1 (keep), broadcastable to the shape of ``like``.
        like: a tensor of the shape of the draw, on its device.

    Returns:
        The mask as a bool tensor of the shape of ``like``.

    Raises:
        TypeError: ``noise`` is no tensor.
        ValueError: ``noise`` has a wrong shape, layout, type, device or value.
    """
    check_noise(noise, like)
    if noise.is_complex():
        raise ValueError(f"noise has to be a keep mask of a real type, but got {noise.dtype}")
    if noise.dtype != torch.bool and is_eager(noise) and not bool(((noise == 0) | (noise == 1)).all()):
        raise ValueError("noise has to be a keep mask: 0 (drop) or 1 (keep), before any scaling, "
                         "but it has other values")
    return torch.ones_like(like, dtype=torch.bool).logical_and(noise)


def check_noise(noise: Tensor, like: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise has to be a tensor, but got {type(noise).__name__}")
    require_broadcastable("noise", noise, like.shape, "draw")
    if noise.device != like.device:
        raise ValueError(f"noise has to be on the device {like.device} of the input, "
                         f"but is on {noise.device}")


def check_generator(generator: torch.Generator, x: Tensor) -> None:
    """Refuses a generator that cannot give this draw, or could not give it a second time."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator has to be a torch.Generator, but got {type(generator).__name__}")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError("generator= cannot be used in a compiled, exported or traced function: its state does "
                           "not enter the graph. Leave it out and seed with torch.manual_seed, or pass noise=")
    if x.is_nested:
        raise RuntimeError("generator= cannot be used for a nested tensor, for which torch draws from its global "
                           "generator alone. Leave it out and seed with torch.manual_seed, or pass noise=")
    if generator.device.type != x.device.type:
        raise RuntimeError(f"generator has to be on the device {x.device} of the input, "
                           f"but is on {generator.device}")
    if in_checkpoint():
        raise RuntimeError("generator= cannot be used under activation checkpointing: torch restores only its "
                           "global generators for the second forward pass, which would draw other noise than the "
                           "first. Leave it out and seed with torch.manual_seed, or pass noise=")


def in_checkpoint(within_module: bool = False) -> bool:
    """Whether torch.utils.checkpoint, of either kind, calls; its first forward leaves no other trace.

    Args:
        within_module: whether a call of a module in between counts as the end.

    Returns:
        Whether it does.
    """
    ends = {"torch.utils.checkpoint", *(["torch.nn.modules.module"] if within_module else [])}
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name in ends:
            return name == "torch.utils.checkpoint"
        frame = frame.f_back  # type: ignore[assignment]
    return False
