"""Dropout with a stochastic rate: the probability of dropping is drawn anew at every call."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import (
    applies_noise,
    at_least_zero,
    is_eager,
    noise_pair,
    real,
    require_dense,
    require_tensor,
    unchanged,
)
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Coins, Gaussian, Uniform, apply, noise_variance

__all__ = ["RateNoise", "StochasticRateDropout", "stochastic_rate_dropout"]


class RateNoise(NamedTuple):
    """What one call of dropout with a stochastic rate draws.

    Attributes:
        rate: the probability of dropping, one number.
        mask: the keep mask, 0 or 1 before any scaling.
    """

    rate: Tensor | float
    mask: Tensor


def _rate_and_mask(input: Tensor, low: float, high: float, mean: float | None, std: float | None, *,
                   generator: torch.Generator | None) -> RateNoise:
    require_tensor(input)
    rate = _rate(input, *_limits(low, high), _normal(mean, std), generator=generator)
    if high == 0:  # nothing to draw
        return RateNoise(rate, torch.ones_like(input, dtype=torch.bool))
    return RateNoise(rate, Coins(rate).sample(input, generator=generator))


@draws(_rate_and_mask)
@describe("stochastic_rate_dropout")
def stochastic_rate_dropout(input: Tensor, low: float = 0.0, high: float = 0.5, mean: float | None = None,
                            std: float | None = None, training: bool = True, *,
                            noise: tuple[Tensor | float, Tensor] | None = None,
                            generator: torch.Generator | None = None) -> Tensor:
    """Inverted dropout with one random probability of dropping for the whole input.

    See :class:`~dropoutlib.StochasticRateDropout`.

    Args:
        {elements}
        low: the smallest probability of dropping.
        high: the largest, below 1.
        mean: of a normal law of the probability, which is clipped to ``low`` and ``high``; None for a uniform law.
        std: standard deviation of the normal law (not the variance), at least 0.
        {training}
        noise: the rate, between ``low`` and ``high``, and the keep mask, 0 or 1 before any scaling, of a shape that
            broadcasts to ``input``, that replace the draw (a
            :class:`~dropoutlib.convolutional.stochastic_rate_dropout.RateNoise` or any pair).
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if not 0 <= ``low`` <= ``high`` < 1, if one of ``mean`` and ``std`` is missing or ``std`` negative,
            if the rate is not between ``low`` and ``high``, if the mask does not broadcast to ``input``, or
            if ``noise`` is given while ``training`` is False.
        {bad_input}
        TypeError: if the input is not a tensor, a number not real, or ``noise`` no pair.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.stochastic_rate_dropout(torch.ones(3), noise=(0.2, torch.tensor([1, 0, 1])))
        tensor([1.2500, 0.0000, 1.2500])
    """
    low, high = _limits(low, high)
    normal = _normal(mean, std)
    if not applies_noise(training, noise):
        return unchanged(input)
    require_tensor(input)
    if high == 0 and noise is None:
        return input
    rate, mask = (None, None) if noise is None else noise_pair(noise, "the rate and the keep mask")
    rate = _rate(input, low, high, normal, noise=rate, generator=generator)
    return apply(input, Coins(rate), (1 / (1 - rate)).to(input.dtype), noise=mask, generator=generator)


def _limits(low: float, high: float) -> tuple[float, float]:
    low, high = real("low", low), real("high", high)
    if not 0 <= low <= high < 1:
        raise ValueError("low and high have to be probabilities of dropping, 0 <= low <= high < 1, "
                         f"but got low={low}, high={high}")
    return low, high


def _normal(mean: float | None, std: float | None) -> Gaussian | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError(f"a normal law of the rate needs mean and std, but got mean={mean}, std={std}")
    return Gaussian(mean, at_least_zero("std", std) ** 2)


def _rate(input: Tensor, low: float, high: float, normal: Gaussian | None, *, noise: Tensor | float | None = None,
          generator: torch.Generator | None) -> Tensor:
    wide = torch.float64 if input.dtype in (torch.float64, torch.complex128) else torch.float32
    new = torch.empty if input.is_nested else input.new_empty
    like = new((), dtype=wide, device=input.device)
    if noise is not None:
        return _given_rate(like, noise, low, high)
    if low == high:  # nothing to draw
        return like.new_full((), low)
    if normal is None:
        return Uniform(low, high).sample(like, generator=generator)
    return normal.sample(like, generator=generator).clamp(low, high)


def _given_rate(like: Tensor, rate: Tensor | float, low: float, high: float) -> Tensor:
    if isinstance(rate, Tensor):
        require_dense("rate", rate)
        if rate.dim() > 0 or not rate.is_floating_point():
            raise ValueError(f"rate has to be one real number, but got a tensor of shape {tuple(rate.shape)} and type "
                             f"{rate.dtype}")
        if is_eager(rate) and not bool((rate >= rate.new_tensor(low)) & (rate <= rate.new_tensor(high))):
            raise ValueError(f"rate has to be between low={low} and high={high}, but got {float(rate)}")
    elif not low <= real("rate", rate) <= high:
        raise ValueError(f"rate has to be between low={low} and high={high}, but got {rate}")
    return torch.as_tensor(rate, dtype=like.dtype, device=like.device)


@describe("stochastic_rate_dropout", stochastic_rate_dropout)
class StochasticRateDropout(NoisyLayer):
    r"""Inverted dropout whose probability of dropping is drawn anew at every call.

    In training one probability p is drawn for the whole input, uniform between ``low`` and ``high``, or normal and
    clipped to them; then every element is kept with probability 1 - p and divided by 1 - p. {identity}

    {four_answers}

    Given p this is standard dropout, so the mean is the input and elements are uncorrelated; but p is common to them,
    so they are not independent. The variance is that of standard dropout averaged over p, which for a p
    that varies is larger than that at the mean of p: :math:`\operatorname{E}\frac{p}{1 - p}`.
    The authors' code caps the factor 1/(1 - p) at 1.5, which loses the mean for p above 1/3; here it is not capped.

    Args:
        {low} {high} The authors' normal law is clipped to 0 and 0.7.
        {mean} Kept as the attribute ``rate_mean``, because :meth:`mean` is that of the output.
        {std} Kept as ``rate_std``.

    Shape:
        {any_shape}

    Raises:
        ValueError: if not 0 <= ``low`` <= ``high`` < 1, if one of ``mean`` and ``std`` is missing, or ``std`` is
            negative.
        TypeError: if one of them is not a real number.

    Source:
        Park and Kwak, *Analysis on the Dropout Effect in Convolutional Neural Networks* (2016), *stochastic dropout*,
        and its code.

    Example:
        >>> import torch
        >>> from dropoutlib import StochasticRateDropout
        >>> layer = StochasticRateDropout(low=0.0, high=0.4)
        >>> layer(torch.ones(4), noise=(0.2, torch.tensor([1, 0, 1, 1])))
        tensor([1.2500, 0.0000, 1.2500, 1.2500])
        >>> layer.variance(torch.ones(1)).round(decimals=4)  # 0.25 at p = 0.2
        tensor([0.2771])
    """

    def __init__(self, low: float = 0.0, high: float = 0.5, mean: float | None = None,
                 std: float | None = None) -> None:
        super().__init__()
        self.low, self.high = _limits(low, high)
        _normal(mean, std)
        self.rate_mean, self.rate_std = mean, std

    def extra_repr(self) -> str:
        """{shown}"""
        normal = "" if self.rate_mean is None else f", mean={self.rate_mean}, std={self.rate_std}"
        return f"low={self.low}, high={self.high}{normal}"

    def forward(self, input: Tensor, *, noise: tuple[Tensor | float, Tensor] | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Draws a rate, drops and scales in training, and returns the input in evaluation. {call}"""
        return stochastic_rate_dropout(input, self.low, self.high, self.rate_mean, self.rate_std, self.training,
                                       noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> RateNoise:
        return _rate_and_mask(input, self.low, self.high, self.rate_mean, self.rate_std, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself. {moment}"""
        return unchanged(input)

    def variance(self, input: Tensor) -> Tensor:
        r"""{output_variance}: its square times the mean of p/(1 - p).

        For a uniform law that is :math:`\frac{1}{b - a} \log\frac{1 - a}{1 - b} - 1`, for a normal law an integral,
        which is computed numerically.

        {moment}
        """
        return noise_variance(input, self._odds())

    def _odds(self) -> Tensor | float:
        """Mean of p/(1 - p)."""
        low, high = self.low, self.high
        if self.rate_mean is None or self.rate_std is None:
            width = (high - low) / (1 - low)
            # log((1 - low)/(1 - high)) = -log1p(-width); over width this is 1 for small ones, without cancelling
            return (-math.log1p(-width) / width if width > 0 else 1.0) / (1 - low) - 1
        return _clipped_normal_odds(self.rate_mean, self.rate_std, low, high)


def _clipped_normal_odds(mean: float, std: float, low: float, high: float) -> Tensor | float:
    """Mean of p/(1 - p) for a normal p that is clipped: two atoms at the limits, and the density between."""
    if std == 0:
        rate = min(max(mean, low), high)
        return rate / (1 - rate)
    start, stop = max(low, mean - 10 * std), min(high, mean + 10 * std)

    def cumulative(value: float) -> float:
        return math.erfc((mean - value) / (std * math.sqrt(2))) / 2

    total = low / (1 - low) * cumulative(low) + high / (1 - high) * math.erfc((high - mean) / (std * math.sqrt(2))) / 2
    if start >= stop:
        return total
    count = 20001
    p = torch.linspace(start, stop, count, dtype=torch.float64, device="cpu")
    density = torch.exp(-((p - mean) / std).square() / 2) / (std * math.sqrt(2 * math.pi))
    between = torch.trapezoid(density * p / (1 - p), p)
    return total + (between.item() if is_eager(between) else between)  # no number can be read while a graph is recorded
