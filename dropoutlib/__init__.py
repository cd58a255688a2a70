"""Dropout methods for PyTorch, each held to an executable derivation.

``p`` is always the probability of dropping. Every layer takes ``noise=`` (a given draw) and ``generator=`` (a
private source of randomness) in ``forward``, and has a functional twin in :mod:`dropoutlib.functional`.
"""

from . import functional
from .dense.gaussian_dropout import GaussianDropout
from .foundations.max_norm import MaxNorm, max_norm_
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .methods import catalogue

__version__ = "0.1.0"

__all__ = ["Dropout", "GaussianDropout", "MaxNorm", "WeightScalingDropout", "catalogue", "functional",
"max_norm_"]
