"""Branches of residual networks: which of their elements share a draw."""

from __future__ import annotations

from torch import Tensor, nn

from .arguments import one_of, require_one_size, require_tensor, unchanged

__all__ = ["LEVELS", "MODES", "require_batch", "require_module", "require_shape_of", "shared_axes"]

MODES = ("row", "batch")
LEVELS = ("batch", "row", "channel", "element")  # in the order of the axes that have draws of their own


def require_batch(input: Tensor) -> None:
    """Refuses what has no batch axis.

    Args:
        input: output of a branch.

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: if it has no axis, holds integers or booleans, or is nested.
    """
    require_one_size(input)
    if input.dim() == 0:
        raise RuntimeError("input has to be of shape (N, ...), but got a single number")


def shared_axes(input: Tensor, level: str, name: str = "mode", levels: tuple[str, ...] = MODES) -> tuple[int, ...]:
    """The axes along which a draw for a branch is shared.

    Args:
        input: output of the branch, of shape ``(N, C, ...)``.
        level: what has a draw of its own: the ``"batch"``, a ``"row"`` (an example), a ``"channel"`` of it or an
            ``"element"``.
        name: what this argument is called in the message.
        levels: which of these there are.

    Returns:
        tuple[int, ...]: the axes.

    Raises:
        ValueError: if ``level`` is another word.
        RuntimeError: as :func:`require_batch`.
    """
    one_of(name, level, levels)
    unchanged(input, require_batch)
    return () if level == "element" else tuple(range(LEVELS.index(level), input.dim()))


def require_module(module: nn.Module, what: str) -> nn.Module:
    """Refuses what is no module.

    Args:
        module: what the caller gave.
        what: its part in a residual block, in the message.

    Returns:
        The module.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module has to be a module, {what}, but got {module!r}")
    return module


def require_shape_of(input: Tensor, output: Tensor, name: str) -> None:
    """Refuses what cannot stand beside the input, or in its place.

    Args:
        input: of a residual block.
        output: what a module made of it.
        name: what this is called in the message.

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: if it is of another shape.
    """
    require_tensor(output, name)
    if output.shape != input.shape:
        raise RuntimeError(f"{name} has to be of the shape {tuple(input.shape)} of the input, but got the shape "
                           f"{tuple(output.shape)}")
