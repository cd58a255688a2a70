"""Which attributes of a layer are rates of dropout that were assigned, not learned."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .convolutional.stochastic_rate_dropout import StochasticRateDropout
from .layer import NoisyLayer
from .recurrent_network import RecurrentNetwork

__all__ = ["assigned_rates"]

_OF_A_LAW = {"low", "high", "rate_mean", "rate_std"}    # all of them times a factor: the rate that is drawn times it


def assigned_rates(layer: nn.Module) -> Iterator[str]:
    """Names of the attributes of a layer that are assigned rates; the p of a norm (nn.TripletMarginLoss) is none."""
    for name, value in vars(layer).items():
        if isinstance(value, Real) and (
                name == "drop_prob"
                or (name == "p" and isinstance(layer, _DropoutNd | NoisyLayer))
                or (name.startswith("p_") and isinstance(layer, NoisyLayer))
                or (name in _OF_A_LAW and isinstance(layer, StochasticRateDropout))
                or (name == "dropout" and isinstance(layer, nn.RNNBase | nn.MultiheadAttention | RecurrentNetwork))):
            yield name
