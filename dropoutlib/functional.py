"""The functions behind the layers, flat: ``(input, ..., p, training=True, *, noise=None, generator=None)``.

``noise`` replaces the draw by a given tensor, the law's own value before any scaling: the keep mask (0 or 1)
where the law is Bernoulli, the factor itself where it is continuous. Where the law has learned parameters, or a
Gaussian is drawn for a sum, it is the number without parameters that the draw is made from (standard normal,
uniform), so that gradients reach the parameters. It is refused where ``training`` is False, because nothing would
use it. ``generator`` makes the draw reproducible without touching the global state of torch.
"""

from .dense.concrete_dropout import concrete_dropout, concrete_dropout2d
from .dense.dropconnect import drop_connect_linear
from .dense.fast_dropout import fast_dropout_linear
from .dense.gaussian_dropout import gaussian_dropout
from .dense.standout import standout_linear
from .dense.variational_dropout import variational_dropout_linear
from .foundations.max_norm import max_norm_
from .foundations.standard_dropout import dropout, weight_scaling_dropout

__all__ = ["concrete_dropout", "concrete_dropout2d", "drop_connect_linear", "dropout", "fast_dropout_linear",
           "gaussian_dropout", "max_norm_", "standout_linear", "variational_dropout_linear", "weight_scaling_dropout"]
