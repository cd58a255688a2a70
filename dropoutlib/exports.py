"""The names of the package, all in one place; :mod:`dropoutlib` loads them when one is asked for."""

import torch

from . import functional
from .convolutional.cutout import Cutout
from .convolutional.max_drop import MaxDrop
from .convolutional.pooling_dropout import (
    AvgPoolDropout1d,
    AvgPoolDropout2d,
    AvgPoolDropout3d,
    MaxPoolDropout1d,
    MaxPoolDropout2d,
    MaxPoolDropout3d,
    StochasticPool2d,
)
from .convolutional.spatial_dropout import SpatialDropout1d, SpatialDropout2d, SpatialDropout3d
from .convolutional.stochastic_rate_dropout import RateNoise, StochasticRateDropout
from .dense.concrete_dropout import ConcreteDropout, ConcreteDropout2d, WrapperNoise
from .dense.dropconnect import DropConnectLinear, WeightNoise
from .dense.fast_dropout import FastDropoutLinear
from .dense.gaussian_dropout import GaussianDropout
from .dense.standout import StandoutLinear
from .dense.variational_dropout import VariationalDropoutLinear
from .divergence import kl_divergence
from .foundations.max_norm import MaxNorm, max_norm_
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .layer import NoisyLayer
from .methods import catalogue
from .moments import JointMoments, Moments
from .surgery import audit, replace

__all__ = ["AvgPoolDropout1d", "AvgPoolDropout2d", "AvgPoolDropout3d", "ConcreteDropout", "ConcreteDropout2d",
           "Cutout", "DropConnectLinear", "Dropout", "FastDropoutLinear", "GaussianDropout", "MaxDrop", "MaxNorm",
           "MaxPoolDropout1d", "MaxPoolDropout2d", "MaxPoolDropout3d", "NoisyLayer", "SpatialDropout1d",
           "SpatialDropout2d", "SpatialDropout3d", "StandoutLinear", "StochasticPool2d", "StochasticRateDropout",
           "VariationalDropoutLinear", "WeightScalingDropout", "audit", "catalogue", "functional", "kl_divergence",
           "max_norm_", "replace"]

# torch.load gives back what draw() drew: named tuples are classes to it, which it takes from nobody else
torch.serialization.add_safe_globals([WeightNoise, RateNoise, WrapperNoise, Moments, JointMoments])
