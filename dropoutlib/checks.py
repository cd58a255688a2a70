"""Checks that all noisy layers share, so that they refuse bad input in the same words."""

from __future__ import annotations

from torch import Tensor

__all__ = ["refuse_noise"]


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
