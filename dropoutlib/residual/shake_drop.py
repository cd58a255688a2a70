"""ShakeDrop: where a residual branch is dropped it is multiplied by a random number, and its gradient by another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, noise_triple, one_of, real, unchanged
from ..branches import LEVELS, MODES, require_batch, shared_axes
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, Uniform, noise_variance, scaled, select

__all__ = ["ShakeDrop", "ShakeDropNoise", "shake_drop"]


class ShakeDropNoise(NamedTuple):
    """What ShakeDrop draws for a branch.

    Attributes:
        keep: mask, of shape ``(N, 1, ..., 1)`` or, in the mode ``"batch"``, ``(1, ..., 1)``.
        alpha: factors of what is dropped, of a shape that the level says.
        beta: factors of its gradient, of the same shape.
    """

    keep: Tensor
    alpha: Tensor
    beta: Tensor


def _factors(name: str, limits: Any) -> Uniform:
    if not isinstance(limits, (tuple, list)) or len(limits) != 2:
        raise TypeError(f"{name} has to be a pair of numbers, the lower and the upper limit, but got {limits!r}")
    low, high = (real(name, limit) for limit in limits)
    try:
        return Uniform(low, high)
    except ValueError:
        raise ValueError(f"{name} has to be two finite numbers, the smaller one first, but got {limits!r}") from None


def _noise(input: Tensor, p: float, alpha_range: tuple[float, float], beta_range: tuple[float, float], mode: str,
           level: str, *, noise: Any = None, generator: torch.Generator | None) -> ShakeDropNoise:
    keep, alpha, beta = (None,) * 3 if noise is None else noise_triple(
        noise, "the keep mask and the factors alpha and beta")
    mask, laws = Bernoulli(p), (_factors("alpha_range", alpha_range), _factors("beta_range", beta_range))
    of_mask, of_factors = shared_axes(input, mode), shared_axes(input, level, "level", LEVELS)
    if mask.p == 0 and noise is None:  # no factor is used: none is drawn
        laws = (Uniform(laws[0].low, laws[0].low), Uniform(laws[1].low, laws[1].low))
    return ShakeDropNoise(mask.sample(input, shared=of_mask, noise=keep, generator=generator),
                          *(law.sample(input, shared=of_factors, noise=given, generator=generator)
                            for law, given in zip(laws, (alpha, beta), strict=True)))


def _times(x: Tensor, factors: Tensor) -> Tensor:
    """A factor of 0 drops an ``inf`` or ``nan``, too."""
    return select(x, factors != 0, factors)


class _Shake(torch.autograd.Function):
    """Times one factor in the forward pass, times another in the backward pass: not its derivative, on purpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        return _times(x, forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        factors, = ctx.saved_tensors
        return _times(gradient, factors), None, None


class _ShakeWithTangents(_Shake):
    """The same in forward mode, which the compiler does not follow: a tangent takes the factor of the gradient."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        factors, = ctx.saved_tensors
        return _times(tangent, factors)


def _mean(p: float, factors: Uniform) -> float:
    return 1 - Bernoulli(p).p * (1 - factors.mean)


@draws(_noise)
@describe("shake_drop")
def shake_drop(input: Tensor, p: float = 0.5, alpha_range: tuple[float, float] = (-1.0, 1.0),
               beta_range: tuple[float, float] = (0.0, 1.0), mode: str = "row", level: str = "row",
               training: bool = True, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """Multiplies a residual branch that is dropped by a random number, and its gradient by another.

    See :class:`~dropoutlib.ShakeDrop`.

    Args:
        input: output of the branch, a floating point or complex tensor of shape ``(N, C, ...)`` or ``(N,)``.
        p: probability of dropping the branch, that is of multiplying it by a random number.
        alpha_range: limits of the factor of a branch that is dropped.
        beta_range: limits of the factor of its gradient.
        mode: ``"row"`` drops every example by itself, ``"batch"`` all of them or none.
        level: what has factors of its own: the ``"batch"``, every ``"row"``, every ``"channel"`` of it, or every
            ``"element"``.
        training: whether noise is applied; if not, the input is multiplied by the mean factor.
        noise: three tensors that replace the draws: the keep mask, 0 or 1, of shape ``(N, 1, ..., 1)`` or, in the mode
            ``"batch"``, ``(1, ..., 1)``; the factors alpha, and beta, within their limits, of shape ``(1, ..., 1)``,
            ``(N, 1, ..., 1)``, ``(N, C, 1, ..., 1)`` or that of the input, as the level says. Each may be of one that
            broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if ``mode`` or ``level`` is another word, {bad_p}, if limits are not finite or in the wrong order,
            if a part of ``noise`` does not broadcast to its shape or holds other values, or if ``noise`` is given
            while ``training`` is False.
        RuntimeError: if the input has no axis, if it holds integers or booleans, or {bad_generator}.
        TypeError: if the input is not a tensor, ``p`` or a limit not a real number, or ``noise`` not three tensors.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> f = torch.ones(2, 3, requires_grad=True)
        >>> keep, alpha, beta = torch.tensor([[1], [0]]), torch.full((2, 1), -0.5), torch.full((2, 1), 0.25)
        >>> y = functional.shake_drop(f, p=0.5, noise=(keep, alpha, beta))
        >>> y.detach()
        tensor([[ 1.0000,  1.0000,  1.0000],
                [-0.5000, -0.5000, -0.5000]])
        >>> y.sum().backward()
        >>> f.grad
        tensor([[1.0000, 1.0000, 1.0000],
                [0.2500, 0.2500, 0.2500]])
    """
    one_of("mode", mode, MODES)
    one_of("level", level, LEVELS)
    alphas, _ = _factors("alpha_range", alpha_range), _factors("beta_range", beta_range)
    unchanged(input, require_batch)
    if not applies_noise(training, noise):
        return scaled(input, _mean(p, alphas))
    if Bernoulli(p).p == 0 and noise is None:
        return unchanged(input, require_batch)
    keep, *factors = _noise(input, p, alpha_range, beta_range, mode, level, noise=noise, generator=generator)
    dtype = input.real.dtype if input.is_complex() else input.dtype
    forward, backward = (torch.where(keep, 1.0, factor).to(dtype) for factor in factors)
    shake = _Shake if torch.compiler.is_compiling() else _ShakeWithTangents
    output: Tensor = shake.apply(input, forward, backward)
    return output


@describe("shake_drop", shake_drop)
class ShakeDrop(NoisyLayer, _DropoutNd):
    r"""A factor for a residual branch, random where the branch is dropped, and another one for its gradient.

    A residual block is ``x + shake(branch(x))``. In training the output f of the branch stays f with probability
    1 - p. With probability p it becomes :math:`\alpha f`, and its gradient g becomes :math:`\beta g`, with
    :math:`\alpha` and :math:`\beta` uniform in their ranges and independent: what comes back is not the derivative of
    what went forward. The mean is :math:`(1 - p + p \bar\alpha) f`, with :math:`\bar\alpha` the middle of
    ``alpha_range``, and the variance :math:`\bigl(p(1-p)(1-\bar\alpha)^2 + p v\bigr) f^2`, where v is a twelfth of
    the square of the width of ``alpha_range``. In evaluation the layer multiplies by the mean factor, 1 - p by default.

    {four_answers}

    With ``alpha_range=(0, 0)`` and ``beta_range=(0, 0)`` it is stochastic depth without a scale in training: dropping
    then selects, and a dropped ``inf`` or ``nan`` becomes 0, with a zero gradient. With p = 0 the input itself is
    returned, and nothing is drawn. Forward-mode derivatives multiply by :math:`\beta`, too, and a second derivative
    goes through the first backward pass.

    Args:
        {p} {assigned}
        {alpha_range} {beta_range} {mode} {level}

    Shape:
        Input ``(N, C, ...)`` or ``(N,)``; the output has the same one. {given}

    Raises:
        ValueError: if ``mode`` or ``level`` is another word, ``p`` is not between 0 and 1, or limits are not finite or
            in the wrong order.
        TypeError: if ``p`` or a limit is not a real number.

    Source:
        Yamada et al., *ShakeDrop Regularization for Deep Residual Learning* (2019), whose :math:`p_l` is the
        probability of keeping. The authors' code has one mask for the batch and factors for every element:
        ``mode="batch", level="element"``.

    Example:
        >>> import torch
        >>> from dropoutlib import ShakeDrop
        >>> layer, f = ShakeDrop(p=0.5), torch.ones(2, 3)
        >>> layer(f, noise=(torch.tensor([[1], [0]]), torch.tensor(-0.5), torch.tensor(0.25)))
        tensor([[ 1.0000,  1.0000,  1.0000],
                [-0.5000, -0.5000, -0.5000]])
        >>> layer.eval()(f)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, p: float = 0.5, alpha_range: tuple[float, float] = (-1.0, 1.0),
                 beta_range: tuple[float, float] = (0.0, 1.0), mode: str = "row", level: str = "row") -> None:
        one_of("mode", mode, MODES)
        one_of("level", level, LEVELS)
        alphas, betas = _factors("alpha_range", alpha_range), _factors("beta_range", beta_range)
        super().__init__(Bernoulli(p).p)
        self.alpha_range, self.beta_range = (alphas.low, alphas.high), (betas.low, betas.high)
        self.mode, self.level = mode, level

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"p={self.p}, alpha_range={self.alpha_range}, beta_range={self.beta_range}, mode={self.mode!r}, "
                f"level={self.level!r}")

    def forward(self, input: Tensor, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Shakes what is dropped in training, and multiplies by the mean factor in evaluation. {call}"""
        return shake_drop(input, self.p, self.alpha_range, self.beta_range, self.mode, self.level, self.training,
                          noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> ShakeDropNoise:
        return _noise(input, self.p, self.alpha_range, self.beta_range, self.mode, self.level, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the mean factor times it. {moment}"""
        unchanged(input, require_batch)
        return scaled(input, _mean(self.p, _factors("alpha_range", self.alpha_range)))

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: that of the forward factor times its square.

        Of every element by itself: elements that share the mask, or a factor, are correlated.

        {moment}
        """
        require_batch(input)
        factors, mask = _factors("alpha_range", self.alpha_range), Bernoulli(self.p)
        return noise_variance(input, mask.variance * (1 - factors.mean) ** 2 + mask.p * factors.variance)
