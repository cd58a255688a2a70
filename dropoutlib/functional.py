"""The functions behind the layers, flat: ``(input, ..., p, training=True, *, noise=None, generator=None)``.

``noise`` replaces the draw by a given tensor, the law's own value before any scaling: the keep mask (0 or 1)
where the law is Bernoulli, the factor itself where it is continuous. Where the law has learned parameters, or a
Gaussian is drawn for a sum, it is the number without parameters that the draw is made from (standard normal,
uniform), so that gradients reach the parameters. It is refused where ``training`` is False, because nothing would
use it. ``generator`` makes the draw reproducible without touching the global state of torch. :func:`draw` gives what
a function would draw. For :func:`torch.fx.symbolic_trace` a function that is called as ``functional.dropout``, through
this module, is one node; like every argument, ``training`` stays what it was.
"""

from torch.fx import wrap

from .bayesian.log_normal_dropout import log_normal_dropout
from .bayesian.sparse_variational_dropout import (
    sparse_variational_conv1d,
    sparse_variational_conv2d,
    sparse_variational_linear,
)
from .convolutional.cutout import cutout
from .convolutional.drop_block import drop_block1d, drop_block2d, drop_block3d
from .convolutional.max_drop import max_drop
from .convolutional.pooling_dropout import (
    avg_pool_dropout1d,
    avg_pool_dropout2d,
    avg_pool_dropout3d,
    max_pool_dropout1d,
    max_pool_dropout2d,
    max_pool_dropout3d,
    stochastic_pool2d,
)
from .convolutional.spatial_dropout import spatial_dropout1d, spatial_dropout2d, spatial_dropout3d
from .convolutional.stochastic_rate_dropout import stochastic_rate_dropout
from .dense.alpha_dropout import alpha_dropout, feature_alpha_dropout
from .dense.concrete_dropout import concrete_dropout, concrete_dropout2d
from .dense.dropconnect import drop_connect_conv1d, drop_connect_conv2d, drop_connect_linear
from .dense.fast_dropout import fast_dropout_conv1d, fast_dropout_conv2d, fast_dropout_linear
from .dense.gaussian_dropout import gaussian_dropout
from .dense.standout import standout_linear
from .dense.targeted_dropout import targeted_dropout_linear
from .dense.variational_dropout import (
    variational_dropout_conv1d,
    variational_dropout_conv2d,
    variational_dropout_linear,
)
from .foundations.max_norm import max_norm_
from .foundations.standard_dropout import dropout, weight_scaling_dropout
from .layer import draw
from .recurrent.embedding_dropout import embedding_dropout, locked_dropout
from .residual.shake_drop import shake_drop
from .residual.stochastic_depth import drop_path, stochastic_depth
from .residual.swapout import swapout
from .training.attention_dropout import attention_dropout
from .training.condition_dropout import condition_dropout
from .training.graph_dropout import dropout_edge, dropout_node
from .training.lora_dropout import lora_linear
from .training.neftune import neftune
from .training.nested_dropout import nested_dropout
from .training.patch_dropout import patch_dropout

__all__ = ["alpha_dropout", "attention_dropout", "avg_pool_dropout1d", "avg_pool_dropout2d", "avg_pool_dropout3d",
           "concrete_dropout", "concrete_dropout2d", "condition_dropout", "cutout", "draw", "drop_block1d",
           "drop_block2d", "drop_block3d", "drop_connect_conv1d", "drop_connect_conv2d", "drop_connect_linear",
           "drop_path", "dropout", "dropout_edge", "dropout_node", "embedding_dropout", "fast_dropout_conv1d",
           "fast_dropout_conv2d", "fast_dropout_linear", "feature_alpha_dropout", "gaussian_dropout", "locked_dropout",
           "log_normal_dropout", "lora_linear", "max_drop", "max_norm_", "max_pool_dropout1d", "max_pool_dropout2d",
           "max_pool_dropout3d", "neftune", "nested_dropout", "patch_dropout", "shake_drop",
           "sparse_variational_conv1d", "sparse_variational_conv2d", "sparse_variational_linear", "spatial_dropout1d",
           "spatial_dropout2d", "spatial_dropout3d", "standout_linear", "stochastic_depth", "stochastic_pool2d",
           "stochastic_rate_dropout", "swapout", "targeted_dropout_linear", "variational_dropout_conv1d",
           "variational_dropout_conv2d", "variational_dropout_linear", "weight_scaling_dropout"]

for _name in __all__:
    wrap(_name)
