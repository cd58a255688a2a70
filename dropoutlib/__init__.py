"""Dropout methods for PyTorch, each held to an executable derivation.

``p`` is always the probability of dropping. Every layer takes ``noise=`` (a given draw) and ``generator=`` (a
private source of randomness) in ``forward``, and has a functional twin in :mod:`dropoutlib.functional`.
"""

from . import functional
from .dense.concrete_dropout import ConcreteDropout, ConcreteDropout2d
from .dense.dropconnect import DropConnectLinear
from .dense.fast_dropout import FastDropoutLinear
from .dense.gaussian_dropout import GaussianDropout
from .dense.standout import StandoutLinear
from .dense.variational_dropout import VariationalDropoutLinear
from .divergence import kl_divergence
from .foundations.max_norm import MaxNorm, max_norm_
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .methods import catalogue

__version__ = "0.1.0"

__all__ = ["ConcreteDropout", "ConcreteDropout2d", "DropConnectLinear", "Dropout", "FastDropoutLinear",
           "GaussianDropout", "MaxNorm", "StandoutLinear", "VariationalDropoutLinear", "WeightScalingDropout",
           "catalogue", "functional", "kl_divergence", "max_norm_"]
