"""The names of the package, all in one place; :mod:`dropoutlib` loads them when one is asked for."""

import torch

from . import functional
from .bayesian.log_normal_dropout import LogNormalDropout
from .bayesian.mc_dropout import monte_carlo, predict
from .bayesian.sparse_variational_dropout import (
    SparseVariationalConv1d,
    SparseVariationalConv2d,
    SparseVariationalLinear,
)
from .compression import compress
from .convolutional.cutout import Cutout
from .convolutional.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
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
from .dense.alpha_dropout import AlphaDropout, FeatureAlphaDropout
from .dense.concrete_dropout import ConcreteDropout, ConcreteDropout2d, WrapperNoise
from .dense.dropconnect import DropConnectConv1d, DropConnectConv2d, DropConnectLinear, WeightNoise
from .dense.fast_dropout import FastDropoutConv1d, FastDropoutConv2d, FastDropoutLinear
from .dense.gaussian_dropout import GaussianDropout
from .dense.standout import StandoutLinear
from .dense.targeted_dropout import TargetedDropoutLinear
from .dense.variational_dropout import VariationalDropoutConv1d, VariationalDropoutConv2d, VariationalDropoutLinear
from .divergence import kl_divergence
from .foundations.max_norm import MaxNorm, max_norm_
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .layer import NoisyLayer
from .methods import catalogue
from .moments import JointMoments, Moments
from .propagation import propagate_moments
from .recurrent.embedding_dropout import EmbeddingDropout, LockedDropout
from .recurrent.recurrent_dropout import RecurrentDropoutGRU, RecurrentDropoutLSTM
from .recurrent.rnndrop import RNNDropLSTM
from .recurrent.variational_rnn import VariationalGRU, VariationalLSTM, VariationalNoise
from .recurrent.weight_drop import WeightDropGRU, WeightDropLSTM
from .recurrent.zoneout import ZoneoutGRU, ZoneoutLSTM, ZoneoutNoise
from .recurrent_network import StackNoise
from .residual.layer_drop import LayerDrop
from .residual.shake_drop import ShakeDrop, ShakeDropNoise
from .residual.stochastic_depth import DropPath, StochasticDepth
from .residual.swapout import Swapout, SwapoutNoise
from .surgery import audit, replace
from .training.attention_dropout import attention_dropout
from .training.condition_dropout import ConditionDropout
from .training.graph_dropout import dropout_edge, dropout_node
from .training.lora_dropout import LoRALinear
from .training.neftune import NEFTune
from .training.nested_dropout import NestedDropout
from .training.patch_dropout import PatchDropout
from .training.r_drop_loss import RDropLoss
from .training.rate_schedule import RateSchedule

__all__ = ["AlphaDropout", "AvgPoolDropout1d", "AvgPoolDropout2d", "AvgPoolDropout3d", "ConcreteDropout",
           "ConcreteDropout2d", "ConditionDropout", "Cutout", "DropBlock1d", "DropBlock2d", "DropBlock3d",
           "DropConnectConv1d", "DropConnectConv2d", "DropConnectLinear", "DropPath", "Dropout", "EmbeddingDropout",
           "FastDropoutConv1d", "FastDropoutConv2d", "FastDropoutLinear", "FeatureAlphaDropout", "GaussianDropout",
           "LayerDrop", "LoRALinear", "LockedDropout", "LogNormalDropout", "MaxDrop", "MaxNorm", "MaxPoolDropout1d",
           "MaxPoolDropout2d", "MaxPoolDropout3d", "NEFTune", "NestedDropout", "NoisyLayer", "PatchDropout",
           "RDropLoss", "RNNDropLSTM", "RateSchedule", "RecurrentDropoutGRU", "RecurrentDropoutLSTM", "ShakeDrop",
           "SparseVariationalConv1d", "SparseVariationalConv2d", "SparseVariationalLinear", "SpatialDropout1d",
           "SpatialDropout2d", "SpatialDropout3d", "StandoutLinear", "StochasticDepth", "StochasticPool2d",
           "StochasticRateDropout", "Swapout", "TargetedDropoutLinear", "VariationalDropoutConv1d",
           "VariationalDropoutConv2d", "VariationalDropoutLinear", "VariationalGRU", "VariationalLSTM",
           "WeightDropGRU", "WeightDropLSTM", "WeightScalingDropout", "ZoneoutGRU", "ZoneoutLSTM", "attention_dropout",
           "audit", "catalogue", "compress", "dropout_edge", "dropout_node", "functional", "kl_divergence",
           "max_norm_", "monte_carlo", "predict", "propagate_moments", "replace"]

# torch.load gives back what draw() drew: named tuples are classes to it, which it takes from nobody else
torch.serialization.add_safe_globals([WeightNoise, RateNoise, WrapperNoise, VariationalNoise, ZoneoutNoise, StackNoise,
                                      SwapoutNoise, ShakeDropNoise, Moments, JointMoments])
