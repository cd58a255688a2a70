"""A value known by its mean and variance, carried through the layers of a network.

Sums and independent factors are exact.  A non-linearity is exact for a Gaussian value; the chapters on the Gaussian
approximation measure what that costs.  Squares of float16 numbers above 255 overflow: carry moments in float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dropoutlib.arguments import is_autocast
from dropoutlib.documentation import document

__all__ = ["Moments", "deviation", "expectation", "linear", "logistic_loss", "multiply", "probit",
           "relu", "sigmoid", "squared_error", "sum_variance"]


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
        value: moments of any shape.
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
    return Moments(F.linear(value.mean, weight, bias), F.linear(value.variance, weight**2))


@document(linear)
def sum_variance(input: Tensor, weight: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """Variance of a sum of terms ``w_j x_j`` that are multiplied by independent factors of variance ``alpha``.  Exact.

    Args:
        input: shape ``(..., in)``, not random.
        {weight}
        alpha: a number, or of a shape that broadcasts to that of the weight.

    Returns:
        Tensor: of shape ``(..., out)``, sum over j of alpha w_j^2 x_j^2.  In float32 where float16 is computed with,
        whose squares overflow above 255 and vanish below 2e-4.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.sum_variance(torch.ones(2), torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """
    autocast = is_autocast(input)
    if (torch.get_autocast_dtype(input.device.type) if autocast else input.dtype) != torch.float16:
        return F.linear(input.square(), (alpha * weight.square()).to(weight.dtype))
    with torch.autocast(input.device.type, enabled=False) if autocast else contextlib.nullcontext():
        wide = alpha.float() if isinstance(alpha, Tensor) else alpha
        return F.linear(input.float().square(), wide * weight.float().square())


@document(multiply)
def relu(value: Moments) -> Moments:
    """Moments of max(0, Z) for Gaussian Z.

    With r = mean/standard deviation, the mean is ``mean * Phi(r) + std * phi(r)`` and the second moment
    ``(mean**2 + variance) * Phi(r) + mean * std * phi(r)``.  Where the variance is zero, it is max(0, mean).  Both are
    computed in float64: their terms cancel where r is large.

    Args:
        {value}

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.relu(moments.Moments(torch.tensor(0.0), torch.tensor(1.0))).mean  # 1/sqrt(2 pi)
        tensor(0.3989)
    """
    dtype = value.mean.dtype if value.mean.is_floating_point() else torch.get_default_dtype()
    # mps has no float64, and runtimes of ONNX have no error function of it.
    single = value.mean.is_mps or torch.compiler.is_exporting()
    mean, variance = (part if single else part.double() for part in value)
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


@document(multiply)
def sigmoid(value: Moments) -> Moments:
    """Moments of the logistic function of a Gaussian, by its probit approximation.

    The mean is ``sigmoid(mean / sqrt(1 + pi * variance / 8))``, within 0.02. The variance is that of
    :func:`probit` at ``sqrt(pi / 8)`` times the value, whose slope at 0 is that of the logistic function; it is
    within 0.01.

    Args:
        {value}

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.sigmoid(moments.Moments(torch.tensor(0.0), torch.tensor(3.0))).mean
        tensor(0.5000)
    """
    mean = torch.sigmoid(value.mean / torch.sqrt(1 + math.pi * value.variance / 8))
    scaled = Moments(math.sqrt(math.pi / 8) * value.mean, math.pi / 8 * value.variance)
    return Moments(mean, probit(scaled).variance)


@document(multiply)
def probit(value: Moments) -> Moments:
    """Moments of the normal distribution function Phi of a Gaussian.  Exact.

    With h = mean/sqrt(1 + variance), the mean is Phi(h). The variance is an integral of Owen's T function, from
    a = 1/sqrt(1 + 2 variance) to 1, computed by a Gauss-Legendre rule to about 1e-12 in float64.

    Args:
        {value}

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.probit(moments.Moments(torch.tensor(0.0), torch.tensor(1e9))).variance  # that of a fair coin
        tensor(0.2500)
    """
    height = value.mean / torch.sqrt(1 + value.variance)
    lower = 1 / torch.sqrt(1 + 2 * value.variance)
    length = 2 * value.variance / (1 + 2 * value.variance) / (1 + lower)  # 1 - lower, without cancellation
    integral = torch.zeros_like(height)
    for node, weight in _LEGENDRE:
        square = 1 + (1 - length * (1 - node) / 2) ** 2
        integral = integral + weight / 2 * torch.exp(-(height**2) * square / 2) / square
    return Moments(torch.special.ndtr(height), length * integral / math.pi)


@document(multiply)
def expectation(function: Callable[[Tensor], Tensor], value: Moments) -> Tensor:
    """Mean of a function of a Gaussian, by Gauss-Hermite quadrature with 32 points.

    Exact for polynomials up to degree 63; for tanh of a value with standard deviation up to 2 the error is below 1e-3;
    for a function with a kink, such as leaky ReLU, up to a hundredth of the standard deviation.

    Args:
        function: acts on every element by itself.
        {value}

    Returns:
        Tensor: of the same shape.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> value = moments.Moments(torch.tensor(1.0), torch.tensor(4.0))
        >>> moments.expectation(torch.square, value)
        tensor(5.0000)
    """
    std = deviation(value.variance)
    return torch.stack([weight * function(value.mean + node * std) for node, weight in _HERMITE]).sum(0)


@document(expectation)
def deviation(variance: Tensor) -> Tensor:
    """Square root of a variance, with the gradient 0 instead of infinity where it is 0.

    Args:
        variance: of any shape; what rounding has made negative counts as 0.

    Returns:
        {Returns}
    """
    certain = variance <= 0
    return torch.where(certain, 0, torch.where(certain, 1, variance).sqrt())


def squared_error(value: Moments, target: Tensor) -> Tensor:
    """Mean of (Y - target)^2 for a random output Y, which depends on its two moments alone.  Exact.

    Args:
        value: moments of the output.
        target: of the same shape.

    Returns:
        Tensor: the expected loss of every element.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.squared_error(moments.Moments(torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(4.0))
        tensor(11.)
    """
    if target.shape != value.mean.shape:
        raise ValueError(f"target has to be of the shape {tuple(value.mean.shape)} of the output, "
                         f"but got {tuple(target.shape)}")
    return (value.mean - target) ** 2 + value.variance


@document(squared_error)
def logistic_loss(value: Moments, target: Tensor) -> Tensor:
    """Mean of the logistic loss of a Gaussian output, by the probit approximation.

    With k = sqrt(1 + pi * variance/8), it is ``k`` times the logistic loss of ``mean / k`` (Wang and Manning, 2013,
    equation 8 of their code); within 0.05 for a standard deviation up to 2.

    Args:
        value: moments of the output before the logistic function.
        target: 0 or 1, or a probability, of the same shape.

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> certain = moments.Moments(torch.tensor(0.0), torch.tensor(0.0))
        >>> moments.logistic_loss(certain, torch.tensor(1.0))  # log 2
        tensor(0.6931)
    """
    widening = torch.sqrt(1 + math.pi * value.variance / 8)
    return widening * F.binary_cross_entropy_with_logits(value.mean / widening, target, reduction="none")


def _quadrature(off_diagonal: list[float]) -> list[tuple[float, float]]:
    """Nodes and weights (of sum 1) of a Gauss rule: eigenvalues of its Jacobi matrix (Golub and Welsch, 1969)."""
    off = torch.tensor(off_diagonal, dtype=torch.float64, device="cpu")
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return list(zip(nodes.tolist(), (vectors[0] ** 2).tolist(), strict=True))


_HERMITE = _quadrature([math.sqrt(k) for k in range(1, 32)])
_LEGENDRE = [(node, 2 * weight) for node, weight in _quadrature([k / math.sqrt(4 * k * k - 1) for k in range(1, 24)])]
