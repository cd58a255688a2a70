"""Noise applied to a tensor: drawn and applied in one step, and the moments that follow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dropoutlib.arguments import applies_noise, boolean, not_negative, require_jagged, require_tensor, unchanged
from dropoutlib.documentation import document
from dropoutlib.kernels import cpu, gpu

from .given import check_generator
from .laws import Bernoulli, Gaussian, Law, announce

__all__ = ["apply", "inverted", "inverted_mean", "inverted_scale", "inverted_variance", "noise_variance", "nothing",
           "odds", "raw_mean", "scaled", "select"]


@document()
def apply(input: Tensor, law: Law, scale: float | Tensor = 1.0, *,
          shared: tuple[int, ...] = (), as_mask: Callable[[Tensor], Tensor] | None = None,
          noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Draws noise for a tensor and applies it: what is dropped is 0, factors multiply.

    What is given as ``noise`` takes the way of what is drawn, so that both give the same, bit for bit.

    Args:
        {elements}
        law: of the noise.
        scale: what the result is multiplied with.
        shared: axes along which one draw is shared.
        as_mask: makes the keep mask of what was drawn, where they differ.
        noise: as for the ``sample`` of the law.
        {generator}

    Returns:
        {same}

    Example:
        >>> import torch
        >>> from dropoutlib.noise import Bernoulli, apply
        >>> apply(torch.ones(3), Bernoulli(0.5), 2.0, noise=torch.tensor([1, 0, 1]))
        tensor([2., 0., 2.])
    """
    if isinstance(input, Tensor) and input.is_nested and input.layout is torch.strided and noise is None:
        # torch has no draw for this layout
        return torch.nested.as_nested_tensor([
            apply(part, law, scale, shared=shared, as_mask=as_mask, generator=generator) for part in input.unbind()])
    if not hasattr(law, "sample"):
        raise TypeError(f"law has to be one of dropoutlib.noise, but got {law!r}")
    if noise is None and as_mask is None:
        applied = _drawn_where_applied(input, law, scale, shared, generator)
        if applied is not None:
            return applied
    draw: Callable[..., Tensor] = functools.partial(law.sample, input, noise=noise, generator=generator)
    drawn = draw(shared=shared) if shared else draw()
    keep = drawn if as_mask is None else as_mask(drawn)
    if isinstance(scale, Tensor):
        scale = scale.to(input.dtype)
    if keep.dtype is torch.bool:
        return select(input, keep, scale)
    return input * keep if isinstance(scale, float) and scale == 1 else input * keep * scale


def _drawn_where_applied(x: Tensor, law: Law, scale: float | Tensor, shared: tuple[int, ...],
                         generator: torch.Generator | None) -> Tensor | None:
    """The same by one kernel, where there is one: the noise that ``sample`` would draw is in no memory."""
    if not isinstance(scale, float):
        return None
    if isinstance(law, Bernoulli) and 0 < law.p < 1 and gpu.can_apply(x, shared, noisy_rows=True):
        announce()
        if generator is not None:
            check_generator(generator, x)
        return gpu.apply_mask(x, law.p, scale, shared, generator)
    if isinstance(law, Gaussian) and law.variance > 0 and scale == 1 and gpu.can_apply(x, shared, noisy_rows=False):
        announce()
        if generator is not None:
            check_generator(generator, x)
        return gpu.apply_factors(x, law.mean, math.sqrt(law.variance), generator)
    return None


def select(x: Tensor, keep: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Scales what a mask keeps and replaces the rest by zero.

    Dropping selects, it does not multiply: a dropped ``inf`` or ``nan`` becomes 0 and its gradient is 0.

    Args:
        x: floating point or complex, of any shape.
        keep: bool mask, broadcastable to the shape of ``x``.
        scale: what the kept elements are multiplied with.

    Returns:
        ``x * scale`` where ``keep`` is True, else 0; differentiable in ``x``.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import select
        >>> select(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]), scale=2.0)
        tensor([2., 0.])
    """
    if isinstance(scale, Tensor):
        return select(x, keep) * scale
    if cpu.can_apply_mask(x, keep):
        return cpu.apply_mask(x, keep, scale)
    return torch.where(keep, x if scale == 1 else x * scale, 0)


def nothing(x: Tensor) -> Tensor:
    """What is left where everything is dropped: zero, for ``inf`` and ``nan`` too, with a zero gradient.

    Args:
        x: of any shape.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``, in its graph.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import nothing
        >>> nothing(torch.tensor([1.0, float("inf")], requires_grad=True))
        tensor([0., 0.], grad_fn=<WhereBackward0>)
    """
    return select(x, torch.zeros_like(x, dtype=torch.bool))


@document(apply)
def inverted(input: Tensor, p: float, training: bool, inplace: bool = False, shared: tuple[int, ...] = (), *,
             noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Inverted dropout: what is kept is divided by 1 - p, one draw shared along some axes.

    Args:
        {elements}
        p: the probability of dropping. With 0 the input itself comes back; with 1 everything is zero.
        {training} {inplace} {shared} {mask} {generator}

    Returns:
        {same}

    Example:
        >>> import torch
        >>> from dropoutlib.noise import inverted
        >>> inverted(torch.ones(2, 3), 0.5, True, shared=(1,), noise=torch.tensor([[1], [0]]))
        tensor([[2., 2., 2.],
                [0., 0., 0.]])
    """
    law = Bernoulli(p)
    boolean("inplace", inplace)
    if not applies_noise(training, noise) or (law.p == 0 and noise is None):
        return unchanged(input)
    output = apply(input, law, inverted_scale(law.p), shared=shared, noise=noise, generator=generator)
    return input.copy_(output) if inplace else output


@document(Bernoulli)
def inverted_scale(p: float) -> float:
    """What inverted dropout multiplies with what is kept: 1/(1 - p), and 1 where nothing is.

    Args:
        {p}

    Returns:
        The number.

    Example:
        >>> from dropoutlib.noise import inverted_scale
        >>> inverted_scale(0.75), inverted_scale(1.0)
        (4.0, 1.0)
    """
    p = Bernoulli(p).p  # of other types of numbers a double
    return 1 / (1 - p) if p < 1 else 1.0


@document()
def inverted_mean(input: Tensor, p: float) -> Tensor:
    """Mean of inverted dropout, element by element: the input, and zero if p = 1.

    Args:
        {elements} {drop_p}

    Returns:
        Tensor of the shape of ``input``.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import inverted_mean
        >>> inverted_mean(torch.ones(2), 0.5), inverted_mean(torch.ones(2), 1.0)
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    return unchanged(input) if Bernoulli(p).p < 1 else raw_mean(input, p)


@document(inverted_mean)
def inverted_variance(input: Tensor, p: float) -> Tensor:
    """Variance of inverted dropout, element by element: p/(1 - p) times the square, and zero if p = 1.

    Args:
        {elements} {drop_p}

    Returns:
        Tensor of the shape of ``input``, real.

    Example:
        >>> import torch
        >>> from dropoutlib.noise import inverted_variance
        >>> inverted_variance(torch.full((2,), 2.0), 0.5)
        tensor([4., 4.])
    """
    p = Bernoulli(p).p
    return noise_variance(input, p / (1 - p) if p < 1 else 0.0)


@document(inverted_mean)
def raw_mean(input: Tensor, p: float) -> Tensor:
    """Mean of dropout that does not scale: 1 - p times the input.

    Args:
        {elements}
        p: the probability of dropping. With 0 the input itself comes back; with 1 an ``inf`` is 0, too.

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib.noise import raw_mean
        >>> raw_mean(torch.ones(2), 0.25)
        tensor([0.7500, 0.7500])
    """
    return scaled(input, 1 - Bernoulli(p).p)


@document(inverted_mean)
def scaled(input: Tensor, factor: float) -> Tensor:
    """The input times a number: a test rule.

    Args:
        {elements}
        factor: with 1 the input itself comes back; with 0 an ``inf`` is 0, too.

    Returns:
        {Returns}

    Example:
        >>> import torch
        >>> from dropoutlib.noise import scaled
        >>> scaled(torch.tensor([1.0, float("inf")]), 0.0)
        tensor([0., 0.])
    """
    unchanged(input)
    if factor == 1:
        return input
    if factor == 0:  # inf * 0 would be nan
        return nothing(input)
    return input * factor


@document(Bernoulli)
def odds(p: float, method: str) -> float:
    """The variance of an inverted mask, p/(1 - p), for a method that cannot do without.

    Args:
        p: the probability of dropping, less than 1.
        method: what the method is called in the message.

    Returns:
        The number.

    Raises:
        ValueError: ``p`` is not between 0 and 1, or is 1.
        {TypeError}

    Example:
        >>> from dropoutlib.noise import odds
        >>> odds(0.75, "this method")
        3.0
    """
    p = Bernoulli(p).p
    if p == 1:
        raise ValueError(f"dropout probability has to be less than 1 for {method}, but got 1: "
                         "the variance, which contains p/(1 - p), would be infinite")
    return p / (1 - p)


def noise_variance(input: Tensor, variance: Tensor | float) -> Tensor:
    """Variance of a given value times noise: its square times the variance of the noise.

    The square comes last, so that in half precision it overflows only where the result does.

    Args:
        input: the value, real or complex, of any shape.
        variance: that of the noise, one number; with 0 the result is 0, for infinite values too.

    Returns:
        Tensor: real, of the same shape.

    Example:
        >>> import torch
        >>> from dropoutlib import noise
        >>> noise.noise_variance(torch.tensor(300.0, dtype=torch.float16), 1 / 9)
        tensor(10000., dtype=torch.float16)
    """
    require_tensor(input)
    require_jagged(input)
    not_negative("variance", variance)
    size = input.abs()
    if not isinstance(variance, Tensor) and variance == 0:
        return nothing(size)
    deviation = variance.sqrt().to(size) if isinstance(variance, Tensor) else math.sqrt(variance)
    spread = torch.where(size.isinf(), size, (deviation * size).square())   # a root may be 0 in the type of the value
    return torch.where(variance > 0, spread, nothing(size)) if isinstance(variance, Tensor) else spread
