"""Kullback-Leibler terms of noise whose rate is learned, and their sum over a model.

The terms of variational dropout are those of N(w, alpha w^2) from the log-uniform prior on w. The prior is improper, so
each is known up to a constant; here it is zero in the limit of infinite alpha.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dropoutlib.arguments import is_eager, require_tensor
from dropoutlib.documentation import document
from dropoutlib.layer import NoisyLayer

__all__ = ["kingma_kl", "kl_divergence", "log_uniform_kl", "log_uniform_kl_at", "molchanov_kl", "molchanov_kl_at"]


def kl_divergence(model: nn.Module) -> Tensor:
    """Sum of the Kullback-Leibler terms of all layers of a model that have one.

    It is divided by nothing. Where the data term of the loss is a mean over examples, divide it by the number of
    training examples (not by the size of a batch).

    Args:
        model: a module; every part of it with a method ``kl()`` counts, and counts once. A model or a block with a
            ``kl()`` of its own, whose parts have one too, is taken for their sum and does not count again; a
            :class:`~dropoutlib.NoisyLayer`, such as one that wraps another, always has a term of its own. Layers of one
            class that share all of their parameters, but for biases, have one posterior, and it counts once. Where they
            share weights alone, or noise alone, each has a posterior of its own.

    Returns:
        Tensor: a number, differentiable.

    Raises:
        ValueError: if no part of the model has a Kullback-Leibler term, so that nothing would be learned from it.
        TypeError: if the model is no module, or if a ``kl()`` returns no tensor with one number.

    Example:
        >>> import torch
        >>> from dropoutlib import VariationalDropoutLinear, kl_divergence
        >>> model = torch.nn.Sequential(VariationalDropoutLinear(4, 3), VariationalDropoutLinear(3, 1))
        >>> torch.allclose(kl_divergence(model), model[0].kl() + model[1].kl())
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    terms: list[Tensor] = []
    counted = set()
    for name, part in model.named_modules():
        kl: Any = getattr(part, "kl", None)
        if callable(kl) and (isinstance(part, NoisyLayer) or not any(
                callable(getattr(inner, "kl", None)) for inner in part.modules() if inner is not part)):
            posterior = _posterior(part)
            if posterior in counted:
                continue
            counted.add(posterior)
            terms.append(kl())
            if not isinstance(terms[-1], Tensor) or terms[-1].dim() > 0:
                raise TypeError(f"kl() of {name or 'the model'} ({type(part).__name__}) has to return a tensor with "
                                f"one number, a sum, but got {terms[-1]!r}")
    if not terms:
        raise ValueError(f"no part of the model {type(model).__name__} has a Kullback-Leibler term: "
                         "none of its layers learns its noise")
    total = terms[0]
    for term in terms[1:]:
        total = total + term.to(total.device)
    return total


def _posterior(part: nn.Module) -> tuple[Any, ...]:
    """What two layers have in common if the one learns what the other does; a bias has no noise."""
    parameters = [(name, id(parameter)) for name, parameter in part.named_parameters()
                  if name.rpartition(".")[2] != "bias"]
    # A parametrization gives every layer a class of its own.
    return (parametrize.type_before_parametrizations(part), *parameters) if parameters else (part,)


def gathered(x: Tensor) -> Tensor:
    """The whole of a tensor whose parts lie on several processes (a ``DTensor``, as FSDP2 makes it), else itself.

    All processes have to call it.

    Args:
        x: any tensor.

    Returns:
        Tensor: an ordinary one; gradients flow back to the parts.

    Example:
        >>> import torch
        >>> from dropoutlib.divergence import gathered
        >>> gathered(torch.ones(2))
        tensor([1., 1.])
    """
    full_tensor = getattr(x, "full_tensor", None)
    return x if full_tensor is None else full_tensor()


def log_uniform_kl(alpha: Tensor) -> Tensor:
    """Exact divergence of N(w, alpha w^2) from the log-uniform prior, for one weight w.

    It is the mean of 1/1 + 1/3 + ... + 1/(2J - 1) for J ~ Poisson(1/(2 alpha)): a sum of positive terms, where alpha is
    not small; where it is, its asymptotic series. The error is of the order of the rounding of the type of ``alpha``
    (half precision is computed in float32). Differentiable any number of times; each derivative is a Poisson mean, too.
    What is not positive gives ``nan``, or infinity at 0.

    Args:
        alpha: variance of the multiplicative noise, positive, of any shape.

    Returns:
        Tensor: of the same shape; it falls from infinity (alpha = 0) to 0.

    Raises:
        TypeError: if ``alpha`` is no tensor.
        RuntimeError: if ``alpha`` holds integers.

    Source:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick* (2015), appendix C,
        who approximate it. The Poisson form is derived in the chapter, :doc:`/book/dense/variational_dropout`.

    Example:
        >>> import torch
        >>> from dropoutlib.divergence import log_uniform_kl
        >>> log_uniform_kl(torch.tensor([0.01, 1.0, 100.0]))
        tensor([2.9327, 0.4267, 0.0050])
    """
    require_tensor(alpha, "alpha")
    precise = alpha if alpha.dtype in (torch.float32, torch.float64) else alpha.float()
    # Not by 1/(2 alpha), whose derivative overflows where alpha is tiny and the divergence is not.
    return log_uniform_kl_at(precise.log()).to(alpha.dtype)


def log_uniform_kl_at(log_alpha: Tensor) -> Tensor:
    """:func:`log_uniform_kl` where log(alpha) is known.

    Args:
        log_alpha: float32 or float64.

    Returns:
        Tensor: of the same shape.
    """
    # Further down it is a straight line, to all digits, where the mean would overflow.
    mean = torch.exp(-log_alpha.clamp(min=_LINE)) / 2
    # The compiler cannot trace a Function with a forward derivative; it differentiates the sum itself.
    result: Tensor = _poisson_mean(mean, 0) if torch.compiler.is_compiling() else _PoissonMean.apply(mean, 0)
    return result + F.relu(_LINE - log_alpha) / 2


def kingma_kl(alpha: Tensor) -> Tensor:
    """The cubic approximation of :func:`log_uniform_kl`, for alpha up to 1.

    ``-log(alpha)/2 - c1 alpha - c2 alpha^2 - c3 alpha^3`` with the published coefficients, and with the constant that
    makes it exact in the limit of small alpha. Beyond alpha = 1 it is meaningless.

    Args:
        alpha: variance of the multiplicative noise, of any shape.

    Returns:
        Tensor: of the same shape.

    Source:
        Kingma, Salimans and Welling (2015), equation 14.
    """
    require_tensor(alpha, "alpha")
    cubic = alpha * (1.16145124 + alpha * (-1.50204118 + alpha * 0.58629921))
    return (_EULER + math.log(2)) / 2 - alpha.log() / 2 - cubic


@document(kingma_kl)
def molchanov_kl(alpha: Tensor) -> Tensor:
    """The approximation of :func:`log_uniform_kl` by a logistic function of log(alpha), for all alpha.

    It is off by at most 0.0094, near log(alpha) = -3.5; by 0.0006 in the limit of small alpha.

    Args:
        {alpha}

    Returns:
        {Returns}

    Source:
        Molchanov, Ashukha and Vetrov, *Variational Dropout Sparsifies Deep Neural Networks* (2017), equation 14.
    """
    require_tensor(alpha, "alpha")
    return molchanov_kl_at(alpha.log())


def molchanov_kl_at(log_alpha: Tensor) -> Tensor:
    """:func:`molchanov_kl` where log(alpha) is known.

    Args:
        log_alpha: of any shape.

    Returns:
        Tensor: of the same shape.
    """
    scale, shift, slope = 0.63576, 1.87320, 1.48695
    # Not 1 - sigmoid, which cancels for a large alpha, nor log(1 + 1/alpha), which overflows for a small one.
    return scale * torch.sigmoid(-shift - slope * log_alpha) - F.logsigmoid(log_alpha) / 2


_EULER = 0.5772156649015329
_LINE = -40.0   # of log alpha; from here down the divergence is -log(alpha)/2 and a constant, up to exp(-40)
# Up to this mean a Poisson sum, above it the asymptotic series, whose error is then about exp(-mean).
_LARGE = {torch.float32: 18.0, torch.float64: 36.0}


def _terms(mean: float, dtype: torch.dtype) -> int:
    """A Poisson variable is at least as large with a probability far below the rounding error."""
    count, chance = 0, math.exp(-mean)
    while count <= mean or chance > torch.finfo(dtype).eps / 64:
        count += 1
        chance *= mean / count
    return count + 1


def _poisson_mean(mean: Tensor, order: int) -> Tensor:
    """E f(J) for J ~ Poisson(mean), where f is the ``order``-th forward difference of j -> 1 + 1/3 + ... + 1/(2j-1)."""
    if mean.dtype is torch.float32 and order < len(_MIDDLE) and is_eager(mean):
        return _by_chebyshev(mean, order)
    large = _LARGE[mean.dtype]
    # Where the values can be read, no more terms than they need.
    least, largest = ((float(end) for end in mean.nan_to_num(large + 1).aminmax())
                      if is_eager(mean) and mean.numel() > 0 else (0.0, math.inf))
    if least > large:
        return _asymptotic(mean, order)
    small_mean = mean.clamp(max=large)
    scale = min(max(largest, 1.0), large)
    weight, polynomial = 1.0, []
    for j, value in enumerate(_differences(order, _terms(scale, mean.dtype))):
        polynomial.append(value * weight)
        weight *= scale / (j + 1)
    small = torch.exp(-small_mean) * _horner(polynomial, small_mean / scale)
    if largest <= large:
        return small
    return torch.where(mean > large, _asymptotic(mean.clamp(min=large), order), small)


_MIDDLE = (3.0, 8.0)    # the mean that lies in the middle of the polynomial, for the value and for its derivative


def _by_chebyshev(mean: Tensor, order: int) -> Tensor:
    """The same in single precision, a third of the time: what has its two limits, and a polynomial for the rest.

    The rest is smooth in ``mean / (middle + mean)``, which runs from 0 to 1.
    """
    part = (_MIDDLE[order] / mean).add_(1).reciprocal_()
    rest = _chebyshev_series(_rest_of_poisson_mean(order), part)
    double = 2 * mean
    return double.log1p_().div_(2).add_(rest.mul_(part).mul_(part)) if order == 0 else rest.div_(double.add_(1))


@functools.cache
def _rest_of_poisson_mean(order: int, points: int = 64, degree: int = 20) -> list[float]:
    """Chebyshev coefficients, from the values in double precision."""
    angle = (torch.arange(points, dtype=torch.float64, device="cpu") + 0.5) * math.pi / points
    part = (1 + angle.cos()) / 2
    mean = _MIDDLE[order] * part / (1 - part)
    exact = _poisson_mean(mean, order)
    rest = (exact - torch.log1p(2 * mean) / 2) / part**2 if order == 0 else exact * (1 + 2 * mean)
    coefficients = [(rest * (k * angle).cos()).mean().item() * 2 for k in range(degree + 1)]
    return [coefficients[0] / 2, *coefficients[1:]]


def _chebyshev_series(coefficients: list[float], part: Tensor) -> Tensor:
    """Of 2 part - 1, by Clenshaw's recurrence."""
    double = part * 4 - 2
    last, before = torch.full_like(part, coefficients[-1]), torch.zeros_like(part)
    for coefficient in reversed(coefficients[1:-1]):
        last, before = before.neg_().add_(coefficient).addcmul_(double, last), last
    return before.neg_().add_(coefficients[0]).addcmul_(double, last, value=0.5)


class _PoissonMean(torch.autograd.Function):
    """The derivative of a Poisson mean by ``mean`` is the Poisson mean of the difference f(j + 1) - f(j)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, order: int) -> Tensor:
        return _poisson_mean(mean, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        mean, ctx.order = inputs
        ctx.save_for_backward(mean)
        ctx.save_for_forward(mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        mean, = ctx.saved_tensors
        return gradient * _PoissonMean.apply(mean, ctx.order + 1), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        mean, = ctx.saved_tensors
        derivative: Tensor = _PoissonMean.apply(mean, ctx.order + 1)
        return tangent * derivative


def _differences(order: int, count: int) -> list[float]:
    """The differences of the given order of 0, 1, 1 + 1/3, ...; the first are 1, 1/3, 1/5, ..."""
    if order == 0:
        sums = [0.0]
        for j in range(count - 1):
            sums.append(sums[-1] + 1 / (2 * j + 1))
        return sums
    values = [1 / (2 * j + 1) for j in range(count)]
    for step in range(1, order):  # a difference of reciprocals of products, written out so that nothing cancels
        values = [-2 * step * value / (2 * j + 2 * step + 1) for j, value in enumerate(values)]
    return values


def _asymptotic(mean: Tensor, order: int) -> Tensor:
    """log(mean)/2 + gamma/2 + log 2 - sum over k of (2k - 1)!!/(2^(k+1) k mean^k), differentiated ``order`` times."""
    inverse = 1 / mean
    coefficients, double_factorial = [0.0], 1.0
    for k in range(1, 13 if mean.dtype is torch.float32 else 30):
        double_factorial *= 2 * k - 1
        rising = math.prod(range(k, k + order))  # of (-1)^order d^order/dmean^order mean^-k
        coefficients.append(-double_factorial / (2 ** (k + 1) * k) * rising * (-1) ** order)
    if order == 0:
        return torch.log(mean) / 2 + (_EULER / 2 + math.log(2)) + _horner(coefficients, inverse)
    coefficients[0] = (-1) ** (order - 1) * math.factorial(order - 1) / 2
    return inverse**order * _horner(coefficients, inverse)


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, from the constant on."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient if torch.compiler.is_compiling() else result.mul_(x).add_(coefficient)
    return result
