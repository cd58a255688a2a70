"""Helpers for a loop of training in which noise is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..arguments import at_least_zero, real
from ..layer import NoisyLayer
from ..methods import facts

__all__ = ["parameter_groups", "warm_up"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: weight decay for all parameters but those of learned noise.

    Decay would pull what is a logarithm to 0, a variance to 1 and a rate to 1/2, whatever the data say. Parameters of
    noise are ``log_alpha``, ``log_sigma2``, ``p_logit``, ``mu`` and ``log_s``: those of layers of the library whose
    noise is learned, and of a :class:`~dropoutlib.NoisyLayer` of yours, that say neither weight nor bias in their
    names. An adapter, or a null, is not noise.

    Args:
        model: any module.
        weight_decay: of all other parameters, at least 0.

    Returns:
        Two groups, each a dictionary; a parameter that several modules share is there once.

    Raises:
        TypeError: if ``model`` is no module, or ``weight_decay`` no real number.
        ValueError: if ``weight_decay`` is negative or infinite.

    Example:
        >>> import torch
        >>> from dropoutlib import SparseVariationalLinear
        >>> from dropoutlib.training import parameter_groups
        >>> model = torch.nn.Sequential(SparseVariationalLinear(8, 4), torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.AdamW(parameter_groups(model, 0.01))
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.01, 4), (0.0, 1)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    at_least_zero("weight_decay", weight_decay)
    of_noise = {parameter for layer in model.modules() if isinstance(layer, NoisyLayer) and _learns_noise(layer)
                for name, parameter in (*layer.named_parameters(recurse=False), *_parametrized(layer))
                if "weight" not in name and "bias" not in name}
    return [{"params": [one for one in model.parameters() if one not in of_noise], "weight_decay": weight_decay},
            {"params": [one for one in model.parameters() if one in of_noise], "weight_decay": 0.0}]


def _learns_noise(layer: NoisyLayer) -> bool:
    known = facts(type(layer))
    return known is None or known.rate == "learned"


def _parametrized(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of what torch computes anew at every call, by its name."""
    parametrizations: Any = getattr(layer, "parametrizations", {})
    for name, parametrization in parametrizations.items():
        for _, parameter in parametrization.named_parameters():
            yield name, parameter


def warm_up(step: float, start: float, end: float, first: float = 0.0, last: float = 1.0) -> float:
    """A number that goes from ``first`` to ``last`` in a straight line, between two steps.

    For the weight of a divergence in the loss, or for a rate that a layer reads at every call (``layer.p = ...``).

    Args:
        step: of training, in the unit of ``start`` and ``end``: updates or epochs.
        start: until then it is ``first``.
        end: from then on it is ``last``; not before ``start``.
        first: where it begins.
        last: where it ends.

    Returns:
        The number.

    Raises:
        TypeError: if an argument is no real number.
        ValueError: if ``end`` is before ``start``, or an argument is nan, or infinite but for ``step``.

    Example:
        >>> from dropoutlib.training import warm_up
        >>> [warm_up(epoch, start=2, end=6) for epoch in (0, 2, 3, 6, 9)]
        [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    step, start, end = real("step", step), real("start", start), real("end", end)
    first, last = real("first", first), real("last", last)
    for name, value in (("step", step), ("first", first), ("last", last)):
        if math.isnan(value) or (math.isinf(value) and name != "step"):
            raise ValueError(f"{name} has to be a finite number, but got {value}")
    if not -math.inf < start <= end < math.inf:
        raise ValueError(f"end has to be at or behind start, both finite, but got start={start:g} and end={end:g}")
    if step >= end:
        return last
    return first if step <= start else first + (last - first) * (step - start) / (end - start)
