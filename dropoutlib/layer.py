"""What every layer with noise has in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .documentation import document

__all__ = ["NoisyLayer"]


@document()
class NoisyLayer(nn.Module):
    """A layer that multiplies something by noise: it draws when called, or takes what was drawn before."""

    def draw(self, input: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """Draws what ``noise=`` takes for an input, without applying it.

        ``layer(x, noise=layer.draw(x, generator=g))`` is ``layer(x, generator=h)`` bit for bit, for generators in the
        same state, and leaves them in the same state. Keep what was drawn to apply the same noise again.

        Args:
            input: what the layer will be called with.
            {generator}

        Returns:
            The noise, as the layer's docstring describes it under Shape: one tensor, or a named tuple of several.

        Raises:
            ValueError: in evaluation, where nothing is drawn.
            RuntimeError: if the input does not fit, or {bad_generator}.
        """
        if not self._is_noisy():
            raise ValueError(f"{type(self).__name__} draws nothing outside of training: call train() first")
        return self._draw(input, generator)

    def _is_noisy(self) -> bool:
        """Whether a call draws noise now."""
        return self.training

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Any:
        raise NotImplementedError
