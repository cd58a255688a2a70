"""A value known by its mean and variance, carried through the layers of a network.

Sums and independent factors are exact.  :func:`relu` (mean and variance) and :func:`probit` are exact for a Gaussian
value; the others say their error.  The chapters on the Gaussian approximation measure what it costs that a value is not
Gaussian.  Squares of float16 numbers above 255 overflow: carry moments in float32.

A :class:`Moments` counts its elements as independent.  The outputs of a linear layer are not, and training makes that
matter: :func:`linear` says how much.  A :class:`JointMoments` carries the covariances too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeVar, final, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from dropoutlib.arguments import is_autocast, is_eager, not_negative
from dropoutlib.documentation import document

__all__ = ["JointMoments", "Moments", "deviation", "expectation", "linear", "logistic_loss", "multiply", "probit",
           "relu", "sigmoid", "squared_error", "sum_variance"]


@final
class Moments(NamedTuple):
    """Mean and variance of independent random values, element by element."""

    mean: Tensor
    variance: Tensor


@final
class JointMoments(NamedTuple):
    """Mean, of shape ``(..., n)``, and covariance, of shape ``(..., n, n)``, of random values that are not independent.

    :func:`linear`, :func:`multiply`, :func:`relu` and :meth:`dropoutlib.FastDropoutLinear.moments` carry it, and the
    losses and :func:`expectation`, which need no covariance, take it.  The others refuse it.  That the matrix is a
    covariance (symmetric, no correlation beyond 1) is not checked.

    It is for layers of up to a few hundred units.  On one core, two layers of 256 units behind dropout take 4 ms and
    2 MB for every example in float32; of 1024 units 170 ms and 20 MB.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)


_Value = TypeVar("_Value", Moments, JointMoments)


class Law(Protocol):
    """A noise with a known mean and variance, such as those of :mod:`dropoutlib.noise`."""

    @property
    def mean(self) -> float: ...

    @property
    def variance(self) -> float: ...


def multiply(value: _Value, law: Law, scale: float = 1.0) -> _Value:
    """Moments of ``scale * noise * value``, noise and value independent.  Exact.

    Every element has a noise of its own, so a covariance is multiplied by the mean noises of both elements.

    Args:
        value: moments of any shape.
        law: the law of the noise, with ``mean`` and ``variance``.
        scale: a constant factor, such as 1/(1 - p) of inverted dropout.

    Returns:
        Moments: of the same shape, a :class:`JointMoments` for one.

    Raises:
        TypeError: if ``value`` is no Moments, or ``law`` has no moments.
        ValueError: if the shapes of ``value`` do not fit, or a variance is negative.

    Example:
        >>> import torch
        >>> from dropoutlib import moments, noise
        >>> value = moments.Moments(torch.tensor(0.0), torch.tensor(1.0))
        >>> moments.multiply(value, noise.Bernoulli(0.5), scale=2.0).variance.item()
        2.0
    """
    _require(value, joint=True)
    if not hasattr(law, "variance") or callable(law.variance):
        raise TypeError(f"law has to have a mean and a variance, but got {law!r}")
    variance = law.variance * (value.mean**2 + value.variance) + law.mean**2 * value.variance
    mean = scale * law.mean * value.mean
    if isinstance(value, Moments):
        return Moments(mean, scale**2 * variance)
    factor = scale * law.mean * torch.ones_like(value.mean)  # the law of each element may be another
    return JointMoments(mean, _with_diagonal(_outer(factor) * value.covariance, scale**2 * variance))


@overload
def linear(value: Moments, weight: Tensor, bias: Tensor | None = None, *,
           covariance: Literal[False] = False) -> Moments: ...


@overload
def linear(value: Moments, weight: Tensor, bias: Tensor | None = None, *,
           covariance: Literal[True]) -> JointMoments: ...


@overload
def linear(value: JointMoments, weight: Tensor, bias: Tensor | None = None, *,
           covariance: bool = False) -> JointMoments: ...


@overload
def linear(value: Moments | JointMoments, weight: Tensor, bias: Tensor | None = None, *,
           covariance: bool = False) -> Moments | JointMoments: ...


@document(multiply)
def linear(value: Moments | JointMoments, weight: Tensor, bias: Tensor | None = None, *,
           covariance: bool = False) -> Moments | JointMoments:
    """Moments of ``value @ weight.T + bias``.  Exact.

    {too_sure}

    Args:
        value: moments of shape ``(..., in)``, of independent elements unless it is a :class:`JointMoments`.
        weight: shape ``(out, in)``, not random.
        bias: shape ``(out,)``, not random.
        covariance: whether the covariances of the outputs are computed: n outputs have n^2 of them for every example.

    Returns:
        Moments: of shape ``(..., out)``; a :class:`JointMoments` with ``covariance=True`` or for a JointMoments.  The
        outputs share their inputs, so they are correlated.  A Moments has their exact variances and forgets the
        correlation: what follows counts them as independent.

    Raises:
        {Raises}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> value = moments.Moments(torch.ones(2), torch.ones(2))
        >>> moments.linear(value, torch.tensor([[1.0, 2.0]]))
        Moments(mean=tensor([3.]), variance=tensor([5.]))
        >>> moments.linear(value, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), covariance=True).covariance
        tensor([[5., 4.],
                [4., 5.]])
    """
    _require(value, joint=True)
    if value.mean.dtype != value[1].dtype:
        raise TypeError("value.mean and its variance have to be of one type for a linear layer, "
                        f"but got {value.mean.dtype} and {value[1].dtype}")
    mean = F.linear(value.mean, weight, bias)
    if isinstance(value, JointMoments):
        spread = weight @ value.covariance @ weight.mT
        return JointMoments(mean, _with_diagonal(spread, spread.diagonal(dim1=-2, dim2=-1).clamp(min=0)))
    variance = value.variance.expand(torch.broadcast_shapes(value.mean.shape, value.variance.shape))
    if covariance:
        return JointMoments(mean, (weight * variance.unsqueeze(-2)) @ weight.mT)
    return Moments(mean, F.linear(variance, weight**2))


@document(linear)
def sum_variance(input: Tensor, weight: Tensor, alpha: Tensor | float = 1.0,
                 product: Callable[[Tensor, Tensor], Tensor] = F.linear) -> Tensor:
    """Variance of a sum of terms ``w_j x_j`` that are multiplied by independent factors of variance ``alpha``.  Exact.

    Args:
        input: shape ``(..., in)``, not random.
        {weight}
        alpha: a number, or of a shape that broadcasts to that of the weight, at least 0.
        product: how input and weight make the sums: a convolution in the place of a linear layer.

    Returns:
        Tensor: of shape ``(..., out)``, sum over j of alpha w_j^2 x_j^2.  In float32 where float16 is computed with,
        whose squares overflow above 255 and vanish below 2e-4.

    Raises:
        ValueError: if an alpha is negative.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.sum_variance(torch.ones(2), torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """
    not_negative("alpha", alpha)
    _require_real("input", input)
    _require_real("weight", weight)
    autocast = is_autocast(input)
    if (torch.get_autocast_dtype(input.device.type) if autocast else input.dtype) != torch.float16:
        return product(input.square(), (alpha * weight.square()).to(weight.dtype))
    with torch.autocast(input.device.type, enabled=False) if autocast else contextlib.nullcontext():
        wide = alpha.float() if isinstance(alpha, Tensor) else alpha
        return product(input.float().square(), wide * weight.float().square())


@document(multiply)
def relu(value: _Value) -> _Value:
    """Moments of max(0, Z) for Gaussian Z.

    {too_sure}

    With r = mean/standard deviation, the mean is ``mean * Phi(r) + std * phi(r)`` and the second moment
    ``(mean**2 + variance) * Phi(r) + mean * std * phi(r)``.  Where the variance is zero, it is max(0, mean).  Both are
    computed in float64, because their terms cancel: what is left of a value with r below -6, less than 2e-10 of its
    standard deviation, has few correct digits.

    The covariance c of two jointly Gaussian elements becomes
    ``c * Phi(r) * Phi(r') + c**2/2 * phi(r)/std * phi(r')/std'``, two terms of a series in c.  The error is at most
    ``0.015 * abs(correlation)**3 * std * std'``, and the result is a covariance matrix again, up to rounding.

    Args:
        {value}

    Returns:
        {Returns}

    Raises:
        {Raises}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.relu(moments.Moments(torch.tensor(0.0), torch.tensor(1.0))).mean  # 1/sqrt(2 pi)
        tensor(0.3989)
    """
    _require(value, joint=True)
    dtype = value.mean.dtype if value.mean.is_floating_point() else torch.get_default_dtype()
    # mps has no float64, and runtimes of ONNX have no error function of it.
    single = value.mean.is_mps or torch.compiler.is_exporting()
    mean, variance = (part if single else part.double() for part in (value.mean, value.variance))
    certain = variance == 0
    std = torch.where(certain, 1.0, variance).sqrt()  # 1 keeps the gradient of the unused branch finite
    ratio = mean / std
    below, above = _normal_cdf(-ratio), _normal_cdf(ratio)
    pdf = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    first = std * (ratio * above + pdf)
    # E[relu^2] - E[relu]^2, multiplied out so that for a large ratio nothing large cancels
    spread = variance * (above + (ratio * above) * (ratio * below) + ratio * pdf * (below - above) - pdf**2)
    positive = (mean > 0).to(mean.dtype)
    mean = torch.where(certain, mean.clamp(min=0), first.clamp(min=0)).to(dtype)
    variance = torch.where(certain, variance * positive, spread.clamp(min=0)).to(dtype)
    if isinstance(value, Moments):
        return Moments(mean, variance)
    # The covariance is a sum over k of c^k/k! E[relu^(k)] E[relu^(k)]', from k = 1 (Price's theorem).  On the diagonal
    # what the first two leave of the variance is at most 0.015 std^2, so by Cauchy and Schwarz the rest is bounded.
    slope, bend = torch.where(certain, positive, above).to(dtype), torch.where(certain, 0, pdf / std).to(dtype)
    bent = value.covariance * bend.unsqueeze(-1)
    return JointMoments(mean, _with_diagonal(_outer(slope) * value.covariance + bent * bent.mT / 2, variance))


@document(multiply)
def sigmoid(value: Moments) -> Moments:
    """Moments of the logistic function of a Gaussian, by its probit approximation.

    The mean is ``sigmoid(mean / sqrt(1 + pi * variance / 8))``, within 0.02. The variance is that of
    :func:`probit` at ``sqrt(pi / 8)`` times the value, whose slope at 0 is that of the logistic function; it is
    within 0.01.

    Args:
        {value}

    Returns:
        Moments: of the same shape.

    Raises:
        TypeError: if ``value`` is no Moments, or a :class:`JointMoments`.
        ValueError: if its shapes do not fit, or a variance is negative.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.sigmoid(moments.Moments(torch.tensor(0.0), torch.tensor(3.0))).mean
        tensor(0.5000)
    """
    _require(value)
    mean = torch.sigmoid(value.mean / _widening(value))
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
        Moments: of the same shape.

    Raises:
        TypeError: if ``value`` is no Moments, or a :class:`JointMoments`.
        ValueError: if its shapes do not fit, or a variance is negative.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.probit(moments.Moments(torch.tensor(0.0), torch.tensor(1e9))).variance  # that of a fair coin
        tensor(0.2500)
    """
    _require(value)
    height = value.mean / torch.sqrt(1 + value.variance)
    whole = value.variance + 0.5  # twice as much could overflow
    lower = torch.sqrt(0.5 / whole)
    length = value.variance / whole / (1 + lower)  # 1 - lower, without cancellation
    integral = torch.zeros_like(height)
    for node, weight in _LEGENDRE:
        square = 1 + (1 - length * (1 - node) / 2) ** 2
        integral = integral + weight / 2 * torch.exp(-(height**2) * square / 2) / square
    return Moments(_normal_cdf(height), length * integral / math.pi)


@document(multiply)
def expectation(function: Callable[[Tensor], Tensor], value: Moments | JointMoments) -> Tensor:
    """Mean of a function of a Gaussian, by Gauss-Hermite quadrature with 32 points.

    Exact for polynomials up to degree 63. The error is largest where a function bends within a small part of the
    standard deviation: for tanh it is below 1e-3 up to a standard deviation of 2, and grows to 0.03 at 5, 0.07 at 8 and
    0.14 at 20; with a kink, as of leaky ReLU, it is up to a hundredth of the standard deviation. The gradient by the
    variance is a difference of slopes a standard deviation apart: near a variance of zero it is rounding, at zero 0.

    Args:
        function: acts on every element by itself.
        {value}

    Returns:
        Tensor: of the same shape.

    Raises:
        {Raises}

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> value = moments.Moments(torch.tensor(1.0), torch.tensor(4.0))
        >>> moments.expectation(torch.square, value)
        tensor(5.0000)
    """
    _require(value, joint=True)
    std = deviation(value.variance)
    terms = [weight * function(value.mean + node * std) for node, weight in _HERMITE]
    # torch stacks no nested tensors
    return sum(terms[1:], terms[0]) if terms[0].is_nested else torch.stack(terms).sum(0)


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


def squared_error(value: Moments | JointMoments, target: Tensor) -> Tensor:
    """Mean of (Y - target)^2 for a random output Y, which depends on its two moments alone.  Exact.

    Args:
        value: moments of the output.
        target: of the same shape; integers and booleans are converted.

    Returns:
        Tensor: the expected loss of every element.

    Raises:
        TypeError: if ``value`` is no Moments or ``target`` no tensor.
        ValueError: if the shapes differ, or a variance is negative.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> moments.squared_error(moments.Moments(torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(4.0))
        tensor(11.)
    """
    _require(value, joint=True)
    return (value.mean - _as_target(target, value.mean)) ** 2 + value.variance


@document(squared_error)
def logistic_loss(value: Moments | JointMoments, target: Tensor) -> Tensor:
    """Mean of the logistic loss of a Gaussian output, by the probit approximation.

    With k = sqrt(1 + pi * variance/8), it is ``k`` times the logistic loss of ``mean / k`` (Wang and Manning, 2013,
    equation 8 of their code); within 0.05 for a standard deviation up to 2.

    Args:
        value: moments of the output before the logistic function.
        target: 0 or 1, or a probability, of the same shape; integers and booleans are converted.

    Returns:
        {Returns}

    Raises:
        TypeError: if ``value`` is no Moments or ``target`` no tensor.
        ValueError: if the shapes differ, a variance is negative, or a target is below 0 or above 1.

    Example:
        >>> import torch
        >>> from dropoutlib import moments
        >>> certain = moments.Moments(torch.tensor(0.0), torch.tensor(0.0))
        >>> moments.logistic_loss(certain, torch.tensor(1.0))  # log 2
        tensor(0.6931)
    """
    _require(value, joint=True)
    widening = _widening(value)
    logits = value.mean / widening
    target = _as_target(target, logits)
    if is_eager(target) and target.is_cpu and bool(((target < 0) | (target > 1)).any()):
        raise ValueError("target has to hold probabilities, from 0 to 1, but goes from "
                         f"{target.min().item():g} to {target.max().item():g}")
    return widening * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _normal_cdf(x: Tensor) -> Tensor:
    """Phi, with its left tail: torch.special.ndtr takes it from 1."""
    if torch.compiler.is_exporting():  # runtimes of ONNX have no complementary error function
        return torch.special.ndtr(x)
    return torch.special.erfc(-x / math.sqrt(2)) / 2


def _widening(value: Moments | JointMoments) -> Tensor:
    return torch.sqrt(1 + (math.pi / 8) * value.variance)


def _require(value: object, *, joint: bool = False) -> None:
    """Refuses what is no Moments, and one whose parts cannot be mean and variance of the same values."""
    if not isinstance(value, (Moments, JointMoments) if joint else Moments):
        hint = (": the covariances behind this function are not known; Moments(value.mean, value.variance) leaves them "
                "out" if isinstance(value, JointMoments) else ": Moments(mean, variance) holds both")
        raise TypeError(f"value has to be a Moments, but got {type(value).__name__}{hint}")
    for name, part in value._asdict().items():
        if not isinstance(part, Tensor):
            raise TypeError(f"value.{name} has to be a tensor, but got {type(part).__name__}")
        _require_real(f"value.{name}", part)
    mean, spread = value
    if isinstance(value, JointMoments):
        size = mean.shape[-1:]
        if not size or spread.shape[-2:] != size + size or not _broadcasts(mean.shape[:-1], spread.shape[:-2]):
            raise ValueError("value.covariance has to be of shape (..., n, n) for a mean of shape (..., n), "
                             f"but got {tuple(spread.shape)} and {tuple(mean.shape)}")
    elif not _broadcasts(mean.shape, spread.shape):
        raise ValueError("value.mean and value.variance have to be of shapes that broadcast, "
                         f"but got {tuple(mean.shape)} and {tuple(spread.shape)}")
    not_negative("value.variance", value.variance)


def _require_real(name: str, part: Tensor) -> None:
    if part.is_complex():
        raise RuntimeError(f"{name} has to be real, as moments are, but got {part.dtype}")


def _broadcasts(one: torch.Size, other: torch.Size) -> bool:
    return all(1 in sizes or sizes[0] == sizes[1] for sizes in zip(reversed(one), reversed(other), strict=False))


def _as_target(target: object, output: Tensor) -> Tensor:
    if not isinstance(target, Tensor):
        raise TypeError(f"target has to be a tensor, but got {type(target).__name__}")
    if target.shape != output.shape:
        raise ValueError(f"target has to be of the shape {tuple(output.shape)} of the output, "
                         f"but got {tuple(target.shape)}")
    return target if target.is_floating_point() else target.to(output.dtype)


def _outer(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) * x.unsqueeze(-2)


def _with_diagonal(covariance: Tensor, variance: Tensor) -> Tensor:
    """A covariance with other variances: those that are known exactly, or that rounding has not made negative."""
    diagonal = torch.eye(covariance.shape[-1], dtype=torch.bool, device=covariance.device)
    return torch.where(diagonal, variance.unsqueeze(-1), covariance)


def _quadrature(off_diagonal: list[float]) -> list[tuple[float, float]]:
    """Nodes and weights (of sum 1) of a Gauss rule: eigenvalues of its Jacobi matrix (Golub and Welsch, 1969).

    A weight is 1 over the sum of the squares of the orthonormal polynomials at its node: of eigenvectors, the smallest
    weights, which high powers need, would be rounding.
    """
    off = torch.tensor(off_diagonal, dtype=torch.float64, device="cpu")
    rule = []
    for node in torch.linalg.eigvalsh(torch.diag(off, 1) + torch.diag(off, -1)).tolist():
        before, now, of_before, total = 0.0, 1.0, 0.0, 1.0
        for factor in off_diagonal:
            before, now, of_before = now, (node * now - of_before * before) / factor, factor
            total += now ** 2
        rule.append((node, 1 / total))
    return rule


_HERMITE = _quadrature([math.sqrt(k) for k in range(1, 32)])
_LEGENDRE = [(node, 2 * weight) for node, weight in _quadrature([k / math.sqrt(4 * k * k - 1) for k in range(1, 24)])]
