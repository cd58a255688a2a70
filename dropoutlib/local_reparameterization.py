"""The local reparameterisation: a sum of terms with Gaussian noise is drawn as the one Gaussian that it is.

Layers with noise on weights share it, dense and convolutional: they differ in the product of input and weight alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import require_channels
from .moments import deviation
from .noise import Gaussian

__all__ = ["Product", "convolution", "drawn", "numbers_for", "numbers_for_convolution", "padded"]

Product: TypeAlias = Callable[..., Tensor]  # of input and weight, plus a bias if there is one

_LAW = Gaussian(0.0, 1.0)
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolution(axes: int, stride: int | tuple[int, ...], padding: str | int | tuple[int, ...],
                dilation: int | tuple[int, ...], groups: int) -> Product:
    """A convolution as a product of input and weight.

    Args:
        axes: spatial axes.
        stride: as torch's.
        padding: as torch's.
        dilation: as torch's.
        groups: as torch's.

    Returns:
        A function of input, weight and bias.
    """
    return partial(_CONVOLUTIONS[axes], stride=stride, padding=padding, dilation=dilation, groups=groups)


def padded(layer: nn.modules.conv._ConvNd, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
    """The input with its padding, where that is not zeros, and what padding is left to the convolution.

    Args:
        layer: a convolution.
        input: what it was called with.

    Returns:
        Both.
    """
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0


def numbers_for(output: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, one for each element of an output.

    Args:
        output: of any shape.
        noise: numbers that replace the draw.
        generator: source of randomness.

    Returns:
        Tensor: of the output's shape.
    """
    return _LAW.sample(output, noise=noise, generator=generator)


def numbers_for_convolution(input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int,
                            axes: int, *, generator: torch.Generator | None) -> Tensor:
    """The same for the output of a convolution.

    Args:
        input: of the convolution.
        weight: of the convolution.
        stride: as torch's.
        padding: as torch's.
        dilation: as torch's.
        groups: as torch's.
        axes: spatial axes.
        generator: source of randomness.

    Returns:
        Tensor: of the output's shape.
    """
    require_channels(input, weight, None, axes, groups)
    return numbers_for(convolution(axes, stride, padding, dilation, groups)(input, weight, None), generator=generator)


def drawn(mean: Tensor, variance: Tensor, *, noise: Tensor | None = None,
          generator: torch.Generator | None = None) -> Tensor:
    """Outputs from the Gaussians with these moments, independently.

    Args:
        mean: of the outputs.
        variance: of the same shape; it may be of another type.
        noise: standard normal numbers that replace the draw, of a shape that broadcasts to that of ``mean``.
        generator: source of randomness.

    Returns:
        Tensor: of the shape and type of ``mean``. Where a variance is zero, its square root has the gradient 0.
    """
    return mean + deviation(variance).to(mean.dtype) * numbers_for(mean, noise=noise, generator=generator)
