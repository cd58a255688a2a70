"""Gaussian dropout: every activation is multiplied by a Gaussian factor with mean one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, unchanged
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Gaussian, apply, noise_variance, odds

__all__ = ["GaussianDropout", "gaussian_dropout"]


def _law(p: float) -> Gaussian:
    """Factors with the first two moments of an inverted mask."""
    return Gaussian(1.0, odds(p, "Gaussian dropout"))


def _factors(input: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    return _law(p).sample(input, generator=generator)


@draws(_factors)
@describe("gaussian_dropout")
def gaussian_dropout(input: Tensor, p: float = 0.5, training: bool = True, *,
                     noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Multiplies by Gaussian factors of mean 1 and variance p/(1 - p).

    See :class:`~dropoutlib.GaussianDropout`.

    Args:
        {elements}
        p: the probability of dropping whose inverted mask has the same variance, less than 1.
        {training}
        noise: factors that replace the draw, of a shape that broadcasts to ``input``.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: {bad_p} or is 1, {bad_noise}.
        {bad_input} {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.gaussian_dropout(torch.ones(3), p=0.5, noise=torch.tensor([0.5, 1.0, -0.25]))
        tensor([ 0.5000,  1.0000, -0.2500])
    """
    law = _law(p)
    if not applies_noise(training, noise) or (p == 0 and noise is None):
        return unchanged(input)
    return apply(input, law, noise=noise, generator=generator)


@describe("gaussian_dropout", gaussian_dropout)
class GaussianDropout(NoisyLayer, _DropoutNd):
    r"""Multiplies every element by an independent Gaussian factor, :math:`\mathcal N(1, \frac{p}{1-p})`.

    The mean of the output is the input x, its variance :math:`\frac{p}{1-p} x^2`: the first two moments of
    :class:`~dropoutlib.Dropout`. {identity}

    {four_answers}

    Nothing is set to zero, so an ``inf`` or ``nan`` passes through. With p = 0 the input itself is returned
    and nothing is drawn. For half precision input torch draws the factors in float32 and rounds them.

    Args:
        {p} {assigned}

    Shape:
        {any_shape}

    Raises:
        ValueError: {bad_p}, or is 1: the variance of the noise would be infinite.
        {no_number}

    Source:
        Srivastava et al., *Dropout: A Simple Way to Prevent Neural Networks from Overfitting* (2014), section
        10, whose p is the probability of keeping.

    Example:
        >>> import torch
        >>> from dropoutlib import GaussianDropout
        >>> layer, x = GaussianDropout(p=0.2), torch.ones(3)
        >>> layer(x, noise=torch.tensor([0.5, 1.0, -0.25]))
        tensor([ 0.5000,  1.0000, -0.2500])
        >>> layer.variance(x)
        tensor([0.2500, 0.2500, 0.2500])
        >>> layer.eval()(x)
        tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        _law(p)
        super().__init__(float(p))

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Multiplies by the noise in training and returns the input in evaluation. {call}"""
        return gaussian_dropout(input, self.p, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _factors(input, self.p, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself. {moment}"""
        return unchanged(input)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times its square. {moment}"""
        return noise_variance(input, _law(self.p).variance)
