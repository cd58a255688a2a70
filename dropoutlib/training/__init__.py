"""What changes in training: rates, losses, tokens, adapters, conditions; helpers where noise is learned."""

from .learned_noise import parameter_groups, warm_up

__all__ = ["parameter_groups", "warm_up"]
