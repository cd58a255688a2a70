"""What layers that learn their rate share: the logit of p is a parameter, of shape ``(1,)`` where there is one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .arguments import is_eager
from .noise import Bernoulli

__all__ = ["logit_of", "one_number_in_a_row", "set_rate", "shown_rate"]


def logit_of(p: float) -> float:
    """The logit of a rate, log(p/(1 - p)); refuses the two rates that have none."""
    p = Bernoulli(p).p
    if p in (0, 1):
        raise ValueError(f"dropout probability has to be between 0 and 1, both excluded, but got {p}: its logit, which "
                         "is learned, would be infinite")
    return math.log(p / (1 - p))


@torch.no_grad()
def set_rate(logit: Tensor, p: float) -> None:
    """Sets a learned rate, or all of them."""
    logit.fill_(logit_of(p))


def shown_rate(logit: Tensor) -> str:
    """The rate in ``print(layer)``, or the range of several; nothing where it cannot be read."""
    if not is_eager(logit) or logit.numel() == 0:
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
