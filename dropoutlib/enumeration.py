"""The exact oracle: every mask of a layer, with its probability.

Where noise is a 0/1 mask, the law of any output is a finite sum.  Nothing here knows a formula: it calls the layer once
for each mask, in float64, so what it returns can judge a closed form, a test rule or a fast path.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropoutlib.arguments import require_broadcastable

__all__ = ["Distribution", "distribution", "masks"]

_MOST_ELEMENTS = 20


def masks(*shape: int) -> Tensor:
    """All 0/1 masks of a shape, in counting order.

    Args:
        shape: shape of one mask, with n elements in all.

    Returns:
        Tensor of shape ``(2**n, *shape)``, float64.

    Raises:
        TypeError: if a size is no whole number, or less than 1.
        ValueError: if a mask has more than 20 elements.

    Example:
        >>> from dropoutlib.enumeration import masks
        >>> masks(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise TypeError(f"shape has to be sizes, whole numbers of at least 1, but got {shape}: masks(2, 3)")
    elements = math.prod(shape)
    if elements > _MOST_ELEMENTS:
        raise ValueError(f"a mask of shape {tuple(shape)} has {elements} elements, and 2**{elements} masks are too "
                         f"many to enumerate: at most {_MOST_ELEMENTS} elements are allowed")
    bits = torch.arange(elements - 1, -1, -1, device="cpu")
    return (torch.arange(2**elements, device="cpu")[:, None] >> bits & 1).to(torch.float64).reshape(-1, *shape)


@dataclass(frozen=True)
class Distribution:
    """The exact law of a layer's output: its values and their probabilities.

    Attributes:
        outputs: shape ``(number of masks, *output)``, float64, or complex128.
        probabilities: shape ``(number of masks,)``; they sum to one.
    """

    outputs: Tensor
    probabilities: Tensor

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of ``function(output)``, applied to one output at a time."""
        return self._mean(_stored([function(output) for output in self.outputs]))

    def mean(self) -> Tensor:
        """The mean of each element of the output; the shape of one output."""
        return self._mean(self.outputs)

    def variance(self) -> Tensor:
        """The variance of each element of the output, real; the shape of one output."""
        return self._mean((self.outputs - self.mean()).abs() ** 2)

    def covariance(self) -> Tensor:
        """The covariance matrix of the flattened output, of shape ``(elements, elements)``."""
        centred = (self.outputs - self.mean()).reshape(len(self.outputs), -1)
        return centred.mH @ (self.probabilities[:, None] * centred)

    def _mean(self, values: Tensor) -> Tensor:
        return torch.tensordot(self.probabilities.to(values.dtype), values, dims=1)


def _stored(outputs: Sequence[Tensor | float]) -> Tensor:
    """Outputs in one tensor, of double precision and on the CPU."""
    if not isinstance(outputs[0], (Tensor, numbers.Number)):
        raise TypeError(f"function has to return a tensor or a number, but returned {type(outputs[0]).__name__}")
    tensors = [output if isinstance(output, Tensor) else torch.tensor(output, device="cpu") for output in outputs]
    shapes = sorted({tuple(output.shape) for output in tensors})
    if len(shapes) > 1:
        raise ValueError(f"function has to return outputs of one shape, but returned {shapes[0]} and {shapes[1]}")
    stacked = torch.stack(tensors)
    return stacked.to("cpu", torch.complex128 if stacked.is_complex() else torch.float64)


def distribution(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], p: float | Tensor) -> Distribution:
    """The exact law of a function of a Bernoulli keep mask.

    Args:
        function: takes one keep mask of the given shape (float64, zeros and ones) and returns the output, a tensor or
            a number; it is called without recording gradients, and what it returns is stored in double precision.
        shape: shape of the mask, a tuple, at most 20 elements.
        p: probability of dropping, the same as that of the layer; a float, or a tensor that broadcasts to ``shape``.

    Returns:
        Distribution: the output under every mask, with its probability; a mask that never comes is left out.

    Raises:
        TypeError: if ``shape`` is no tuple of sizes, ``p`` is a truth value, or ``function`` returns neither a
            tensor nor a number.
        ValueError: if the mask has too many elements, ``p`` is not between 0 and 1, or outputs differ in shape.

    Example:
        Both values of one dropped unit, its mean and its variance p/(1 - p):

        >>> import torch
        >>> from dropoutlib import Dropout
        >>> from dropoutlib.enumeration import distribution
        >>> layer, x = Dropout(0.5), torch.ones(1, dtype=torch.float64)
        >>> law = distribution(lambda keep: layer(x, noise=keep), x.shape, p=0.5)
        >>> law.outputs.tolist(), law.mean().item(), law.variance().item()
        ([[0.0], [2.0]], 1.0, 1.0)
    """
    if not isinstance(shape, tuple):
        raise TypeError(f"shape has to be a tuple, but got {shape!r}")
    keep = masks(*shape)
    if isinstance(p, bool) or (isinstance(p, Tensor) and p.dtype is torch.bool):
        raise TypeError(f"dropout probability has to be a real number, but got {p}")
    p = torch.as_tensor(p, dtype=torch.float64, device="cpu")
    require_broadcastable("p", p, torch.Size(shape), "masks")  # else each mask would get the rates of another row
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p.tolist()}")
    probabilities = torch.where(keep == 1, 1 - p, p).reshape(len(keep), -1).prod(dim=1)
    possible = probabilities > 0
    with torch.no_grad():
        # A function may write every output into the same memory.
        outputs = [output.clone() if isinstance(output := function(mask), Tensor) else output
                   for mask in keep[possible]]
        return Distribution(_stored(outputs), probabilities[possible])
