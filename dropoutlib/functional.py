"""The functions behind the layers, flat: ``(input, ..., p, training=True, *, noise=None, generator=None)``.

``noise`` replaces the draw by a given tensor, the law's own value before any scaling: the keep mask (0 or 1)
where the law is Bernoulli, the factor itself where it is continuous, and where the law has learned parameters the
number without parameters that it is made from (standard normal, uniform), so that gradients reach the parameters.
It is refused where ``training`` is False, because nothing would use it. ``generator`` makes the draw reproducible without touching the global
state of torch.
"""

from .dense.gaussian_dropout import gaussian_dropout
from .foundations.max_norm import max_norm_
from .foundations.standard_dropout import dropout, weight_scaling_dropout

__all__ = ["dropout", "gaussian_dropout", "max_norm_", "weight_scaling_dropout"]
