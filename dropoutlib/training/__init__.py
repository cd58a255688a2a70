"""What changes in training: rates, losses, tokens, adapters, conditions; helpers where noise is learned."""

from .condition_dropout import guidance
from .learned_noise import parameter_groups, warm_up
from .nested_dropout import NestedDropout
from .r_drop_loss import RDropLoss
from .rate_schedule import RateSchedule, curriculum, early, late

__all__ = ["NestedDropout", "RDropLoss", "RateSchedule", "curriculum", "early", "guidance", "late", "parameter_groups",
           "warm_up"]
