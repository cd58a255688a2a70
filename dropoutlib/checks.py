"""Checks that all noisy layers share, so that they refuse bad input in the same words."""

from __future__ import annotations

from torch import Tensor

__all__ = ["refuse_noise", "require_floating_point"]


def refuse_noise(noise: Tensor | None) -> None:
    """Refuses noise outside of training: leaving it out in silence would hide a forgotten ``train()``.

    Args:
        noise: what the caller gave, or None.

    Raises:
        ValueError: if something was given.
    """
    if noise is not None:
        raise ValueError("noise was given, but outside of training no noise is applied: "
                         "call train() (or training=True), or leave noise out")


def require_floating_point(input: Tensor) -> None:
    """Refuses an input that noise cannot be applied to.

    Args:
        input: what the caller gave.

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: if it holds integers or booleans.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input has to be a tensor, but got {type(input).__name__}")
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(f"input has to be a floating point or complex tensor, but got {input.dtype}")
