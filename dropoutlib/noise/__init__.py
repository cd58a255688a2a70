"""Noise: the only room of the library that draws randomness.

A law says how the noise is distributed (its ``mean`` and ``variance``, which positions have not) and draws it
(``sample``); :func:`apply` draws and applies it in one step, and :func:`select` applies a keep mask that is at hand. A
method draws once and applies what it drew, so forward and backward see the same noise by construction.
"""

from .applying import (
    apply,
    inverted,
    inverted_mean,
    inverted_scale,
    inverted_variance,
    noise_variance,
    nothing,
    odds,
    raw_mean,
    scaled,
    select,
)
from .laws import Bernoulli, Coins, Gaussian, Position, Subset, Uniform
from .weights import Replay, masked_product, masks_of_weight

__all__ = ["Bernoulli", "Coins", "Gaussian", "Position", "Replay", "Subset", "Uniform", "apply", "inverted",
           "inverted_mean", "inverted_scale", "inverted_variance", "masked_product", "masks_of_weight",
           "noise_variance", "nothing", "odds", "raw_mean", "scaled", "select"]
