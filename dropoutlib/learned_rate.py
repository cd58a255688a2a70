"""What layers that learn their rate share: a parameter is the logit of p, or the logarithm of a variance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .arguments import is_eager
from .divergence import gathered
from .noise import Bernoulli

__all__ = ["clamped", "finite_logarithm", "largest_logarithm", "logit_of", "one_number_in_a_row", "set_rate",
           "shown_rate", "starts_if_missing", "wide"]


def wide(x: Tensor) -> Tensor:
    """The whole of a parameter, in float32 where its type is of half precision."""
    whole = gathered(x)
    return whole if whole.dtype == torch.float64 else whole.float()


def largest_logarithm(dtype: torch.dtype) -> float:
    """Up to which logarithm of a variance outputs stay finite."""
    return 16.0 if dtype == torch.float16 else 40.0


def finite_logarithm(log: Tensor) -> Tensor:
    """A learned logarithm of a variance, within bounds.

    Gradients still reach one beyond, as they are at the bound, so that it can come back.
    """
    bound = largest_logarithm(log.dtype)
    return clamped(wide(log), -bound, bound)


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """Numbers within bounds, with the gradient 1 beyond them, too; at infinity it is 0."""
    within = x.clamp(low, high).detach()
    return within + torch.where(x.isinf(), 0, x - x.detach())


def logit_of(p: float) -> float:
    """The logit of a rate, log(p/(1 - p)); refuses the two rates that have none."""
    p = Bernoulli(p).p
    if p in (0, 1):
        raise ValueError(f"dropout probability has to be between 0 and 1, both excluded, but got {p}: its logit, which "
                         "is learned, would be infinite")
    return math.log(p / (1 - p))


@torch.no_grad()
def set_rate(layer: nn.Module, name: str, p: float) -> None:
    """Sets a learned rate, or all of them, whose logit is a parameter of the layer; also one that is parametrized."""
    value, logit = logit_of(p), getattr(layer, name)
    if parametrize.is_parametrized(layer, name):
        setattr(layer, name, torch.full_like(logit, value))
    else:
        logit.fill_(value)


def shown_rate(logit: Tensor) -> str:
    """The rate in ``print(layer)``, or the range of several; nothing where it cannot be read."""
    if not is_eager(logit) or logit.numel() == 0 or logit.is_complex():
        return ""
    least, most = (torch.sigmoid(one).item() for one in (logit.detach().min(), logit.detach().max()))
    return f"p={least:.4g}" if logit.numel() == 1 else f"p={least:.4g} to {most:.4g}"


@contextlib.contextmanager
def one_number_in_a_row(state_dict: dict[str, Any], key: str) -> Iterator[None]:
    """Loads a rate that was saved without an axis: it has one, because FSDP takes no parameter without."""
    saved = state_dict.get(key)
    if not isinstance(saved, Tensor) or saved.dim() > 0:
        yield
        return
    state_dict[key] = saved.reshape(1)
    try:
        yield
    finally:
        state_dict[key] = saved


@contextlib.contextmanager
def starts_if_missing(state_dict: dict[str, Any], prefix: str, name: str, value: Tensor, start: float
                      ) -> Iterator[None]:
    """Loads what a layer without learned noise saved: the parameter ``name`` keeps its value."""
    key, of_plain = f"{prefix}{name}", f"{prefix}weight"
    if key in state_dict or of_plain not in state_dict:
        yield
        return
    # of a layer without memory, the value is where it starts
    state_dict[key] = torch.full_like(value, start, device=state_dict[of_plain].device) if value.is_meta else value
    try:
        yield
    finally:
        del state_dict[key]
