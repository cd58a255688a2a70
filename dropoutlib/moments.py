"""A value known by its mean and variance, carried through the layers of a network.

Sums and independent factors are exact.  A non-linearity is exact for a Gaussian value; the chapters on the Gaussian
approximation measure what that costs.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Moments", "linear", "multiply", "relu", "sigmoid"]


class Moments(NamedTuple):
    """Mean and variance of independent random values, element by element."""

    mean: Tensor
    variance: Tensor


class Law(Protocol):
    """A noise with a known mean and variance, such as those of :mod:`dropoutlib.noise`."""

    @property
    def mean(self) -> float: ...

    @property
    def variance(self) -> float: ...


def multiply(value: Moments, law: Law, scale: float = 1.0) -> Moments:
    """Moments of ``scale * noise * value``, noise and value independent.  Exact.

    Args:
        value: moments of the value, of any shape.
        law: the law of the noise, with ``mean`` and ``variance``.
        scale: a constant factor, such as 1/(1 - p) of inverted dropout.

    Returns:
        Moments: of the same shape.

    Example:
        >>> import torch
        >>> from dropoutlib import moments, noise
        >>> value = moments.Moments(torch.tensor(0.0), torch.tensor(1.0))
        >>> moments.multiply(value, noise.Bernoulli(0.5), scale=2.0).variance.item()
        2.0
    """
    variance = law.variance * (value.mean**2 + value.variance) + law.mean**2 * value.variance
    return Moments(scale * law.mean * value.mean, scale**2 * variance)


def linear(value: Moments, weight: Tensor, bias: Tensor | None = None) -> Moments:
    """Moments of ``value @ weight.T + bias`` for independent elements of ``value``.  Exact.

    Args:
        value: moments of shape ``(..., in)``.
        weight: shape ``(out, in)``, not random.
        bias: shape ``(out,)``, not random.

    Returns:
        Moments: of shape ``(..., out)``.  The outputs share their inputs, so they are correlated; the variances are
        exact all the same.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> value = moments.Moments(torch.ones(2), torch.ones(2))
        >>> moments.linear(value, torch.tensor([[1.0, 2.0]]))
        Moments(mean=tensor([3.]), variance=tensor([5.]))
    """
    return Moments(torch.nn.functional.linear(value.mean, weight, bias),
                   torch.nn.functional.linear(value.variance, weight**2))


def relu(value: Moments) -> Moments:
    """Moments of max(0, Z) for Gaussian Z.

    With r = mean/standard deviation, the mean is ``mean * Phi(r) + std * phi(r)`` and the second moment
    ``(mean**2 + variance) * Phi(r) + mean * std * phi(r)``.  Where the variance is zero, it is max(0, mean).  Both are
    computed in float64: their terms cancel where r is large.

    Args:
        value: moments of any shape.

    Returns:
        Moments: of the same shape.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.relu(moments.Moments(torch.tensor(0.0), torch.tensor(1.0))).mean  # 1/sqrt(2 pi)
        tensor(0.3989)
    """
    dtype = value.mean.dtype
    mean, variance = (part if part.is_mps else part.double() for part in value)  # mps has no float64
    certain = variance == 0
    std = torch.where(certain, 1.0, variance).sqrt()  # 1 keeps the gradient of the unused branch finite
    ratio = mean / std
    below, above = torch.special.ndtr(-ratio), torch.special.ndtr(ratio)
    pdf = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    first = std * (ratio * above + pdf)
    # E[relu^2] - E[relu]^2, multiplied out so that for a large ratio nothing large cancels
    spread = variance * (above + ratio**2 * above * below + ratio * pdf * (below - above) - pdf**2)
    return Moments(torch.where(certain, mean.clamp(min=0), first.clamp(min=0)).to(dtype),
                   torch.where(certain, 0.0, spread.clamp(min=0)).to(dtype))


def sigmoid(value: Moments) -> Tensor:
    """Mean of the logistic function of a Gaussian, by its probit approximation.

    ``sigmoid(mean / sqrt(1 + pi * variance / 8))``: exact for the normal cdf with matched slope, and within 0.02 for
    the logistic function.

    Args:
        value: moments of any shape.

    Returns:
        Tensor: the mean, of the same shape.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.sigmoid(moments.Moments(torch.tensor(0.0), torch.tensor(3.0)))
        tensor(0.5000)
    """
    return torch.sigmoid(value.mean / torch.sqrt(1 + math.pi * value.variance / 8))
