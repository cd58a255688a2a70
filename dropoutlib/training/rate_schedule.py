"""Early, late and curriculum dropout: the rates of a model times a factor that depends on the step of training."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ..arguments import positive, real, require_callable
from ..methods import describe
from ..rates import assigned_rates
from .learned_noise import warm_up

__all__ = ["RateSchedule", "curriculum", "early", "late"]


@describe("rate_schedule")
class RateSchedule:
    r"""Multiplies every assigned rate of a model by one factor, which changes with the step of training.

    After t calls of :meth:`step` a layer whose rate was p has the rate :math:`f(t)\, p`. Nothing else is remembered, so
    that training that is resumed at step t has the rates of training that was never stopped. Layers that scale
    do so with the rate of the moment.

    {four_answers}

    Rates are those of torch's dropout layers (``p``), of its recurrent layers and of its attention (``dropout``), of
    the noisy layers of this library (``p``, ``p_hidden``, ..., and ``dropout`` between recurrent layers), and
    ``drop_prob`` of any module, as other libraries call it. A rate that is drawn, as by
    :class:`~dropoutlib.StochasticRateDropout`, is multiplied by multiplying its limits, and mean and standard deviation
    of its law. A rate that is learned, or computed from the input, is no number and stays. So do numbers that are no
    rates: ``alpha`` of :class:`~dropoutlib.NEFTune`, the size of noise that is added, and of
    :class:`~dropoutlib.LoRALinear`, ``target_fraction`` of :class:`~dropoutlib.TargetedDropoutLinear`, the squares of
    :class:`~dropoutlib.Cutout`; and the number that a model's own code gives to a function of dropout.

    Rates are no part of a model's ``state_dict()``: save that of the schedule beside it. A schedule takes the rates
    that it finds for those of the whole training. So make one schedule of a model, not two.

    Args:
        model: a module with rates.
        schedule: from a step, 0 and up, to the factor, in [0, 1]: :func:`~dropoutlib.training.early`,
            :func:`~dropoutlib.training.late`, :func:`~dropoutlib.training.curriculum`, or any function.

    Raises:
        TypeError: if ``model`` is no module, or ``schedule`` no function that gives real numbers.
        ValueError: if the model has no rate that can be assigned, or a factor is outside of [0, 1].

    Source:
        Morerio et al., *Curriculum Dropout* (2017); Liu et al., *Dropout Reduces Underfitting* (2023).

    Example:
        >>> from torch import nn
        >>> from dropoutlib import RateSchedule
        >>> from dropoutlib.training import early
        >>> model = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 4), nn.Dropout(0.5))
        >>> schedule = RateSchedule(model, early(steps=4))
        >>> for _ in range(3):
        ...     schedule.step()     # after optimizer.step()
        >>> model[0].p, model[2].p
        (0.05, 0.125)
        >>> schedule.state_dict()
        {'step': 3, 'rates': {'0.p': 0.2, '2.p': 0.5}}
    """

    def __init__(self, model: nn.Module, schedule: Callable[[int], float]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model has to be a module, but got {type(model).__name__}")
        require_callable("schedule", schedule)
        self._schedule = schedule
        self._step = 0
        self._layers = {f"{name}.{rate}".lstrip("."): (layer, rate)
                        for name, layer in model.named_modules() for rate in assigned_rates(layer)}
        if not self._layers:
            raise ValueError(f"{type(model).__name__} has no dropout rate that can be assigned, so there is nothing to "
                             "schedule")
        self._assign(0, {key: float(getattr(layer, rate)) for key, (layer, rate) in self._layers.items()})

    @property
    def factor(self) -> float:
        """The factor at the present step."""
        return self._factor(self._step)

    def _factor(self, step: int) -> float:
        factor = real("the factor that schedule gives", self._schedule(step))
        if not 0 <= factor <= 1:
            raise ValueError(f"schedule has to give a factor in [0, 1], but at step {step} got {factor}")
        return factor

    def _assign(self, step: int, rates: dict[str, float]) -> None:
        """Sets the rates of a step; where its factor, or one of them, is refused, nothing has changed."""
        factor = self._factor(step)
        assigned = {key: factor * rates[key] for key in self._layers}
        self._step, self._rates = step, rates
        for key, (layer, rate) in self._layers.items():
            setattr(layer, rate, assigned[key])

    def step(self) -> None:
        """Goes on by one step, and sets the rates: after each step of the optimizer, or after each epoch.

        Raises:
            TypeError: if the schedule gives no real number for it; nothing is changed then.
            ValueError: if that number is outside of [0, 1]; nothing is changed then.
        """
        self._assign(self._step + 1, self._rates)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the rates that the factor multiplies; not the function ``schedule``."""
        return {"step": self._step, "rates": dict(self._rates)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where another schedule was, and sets the rates.

        Args:
            state_dict: from :meth:`state_dict`, of a schedule of a model with the same names.

        Raises:
            TypeError: if the schedule gives no real number for its step; nothing is changed then.
            ValueError: if it is no state of a schedule, or has the rates of other layers, or that number is outside of
                [0, 1]; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping) or state_dict.keys() != self.state_dict().keys():
            raise ValueError(f"state_dict has to hold {' and '.join(map(repr, self.state_dict()))}, as that of a "
                             f"schedule does, but got {state_dict!r}")
        step, rates = state_dict["step"], state_dict["rates"]
        try:
            step, rates = operator.index(step), {name: float(rate) for name, rate in rates.items()}
            if not all(map(math.isfinite, rates.values())):
                raise ValueError
        except (AttributeError, OverflowError, TypeError, ValueError):
            raise ValueError("state_dict has to hold a whole number, and numbers by the names of rates, but got "
                             f"{step!r} and {rates!r}") from None
        if set(rates) != set(self._rates):
            raise ValueError(f"state_dict has to hold the rates {sorted(self._rates)}, but got "
                             f"{sorted(map(str, rates))}: make the schedule of a model that is wrapped as that one was")
        if step < 0:
            raise ValueError(f"state_dict has to hold a step of at least 0, but got {step}")
        self._assign(step, rates)

    def __repr__(self) -> str:
        return f"RateSchedule({len(self._layers)} rates, step={self._step}, factor={self.factor:.4g})"


def early(steps: float) -> Callable[[int], float]:
    """Early dropout: the factor falls from 1 to 0 in a straight line, and stays there.

    Args:
        steps: after which no dropout is left, in the unit in which the schedule steps: updates, or epochs.

    Returns:
        From a step to the factor.

    Raises:
        TypeError: if ``steps`` is no real number.
        ValueError: if it is not positive, or infinite.

    Example:
        >>> from dropoutlib.training import early
        >>> [early(4)(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return partial(warm_up, start=0, end=positive("steps", steps), first=1.0, last=0.0)


def late(start: float) -> Callable[[int], float]:
    """Late dropout: the factor is 0, and from one step on 1.

    Args:
        start: the first step with dropout, in the unit in which the schedule steps: updates, or epochs.

    Returns:
        From a step to the factor.

    Raises:
        TypeError: if ``start`` is no real number.
        ValueError: if it is not positive, or infinite.

    Example:
        >>> from dropoutlib.training import late
        >>> [late(4)(step) for step in (0, 3, 4, 9)]
        [0.0, 0.0, 1.0, 1.0]
    """
    return partial(_from, start=positive("start", start))


def _from(step: int, start: float) -> float:
    return float(step >= start)


def curriculum(gamma: float) -> Callable[[int], float]:
    r"""Curriculum dropout: the factor :math:`1 - e^{-\gamma t}` rises from 0 towards 1.

    Args:
        gamma: how fast, for one step of the schedule: 10 divided by the number of steps of the whole training, if
            nothing else is known. The factor is 1/2 after :math:`\log(2)/\gamma` steps.

    Returns:
        From a step to the factor.

    Raises:
        TypeError: if ``gamma`` is no real number.
        ValueError: if it is not positive, or infinite.

    Example:
        >>> from dropoutlib.training import curriculum
        >>> [round(curriculum(10 / 1000)(step), 4) for step in (0, 69, 300, 1000)]
        [0.0, 0.4984, 0.9502, 1.0]
    """
    return partial(_saturating, gamma=positive("gamma", gamma))


def _saturating(step: int, gamma: float) -> float:
    return -math.expm1(-gamma * step)
