"""How many units log-normal dropout removes, and what that costs: ``python -m dropoutlib.experiments.unit_pruning``.

A network with two hidden layers learns digits without noise. Then training goes on, once as before, and once with
:class:`~dropoutlib.LogNormalDropout` on the input and behind both hidden layers. Both have the same number of updates.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from dropoutlib import LogNormalDropout, kl_divergence

from .data import digits
from .paired import Key, Plan, arguments_of, fill
from .training import accuracy

__all__ = ["PLACES", "Run", "main", "network", "score"]

_LABELS, _BATCH, _BEFORE, _STEPS, _LEARNING_RATE, _OF_NOISE = 1000, 100, 500, 4000, 0.002, 0.02
_SIZES = (64, 100, 50)
PLACES = ("input", "first hidden layer", "second hidden layer")
_SCHEMES = ("none", "log-normal")
_ABOUT = (f"{_LABELS} digits, batches of {_BATCH}; sizes {'-'.join(map(str, (*_SIZES, 10)))}; Adam, {_BEFORE} updates "
          f"without noise, then {_STEPS} with steps that fall to 0 in the second half; weights {_LEARNING_RATE}, noise "
          f"{_OF_NOISE}", "a column for each seed: test errors in percent, and numbers of units")


class Run(NamedTuple):
    """One training."""

    noise: str
    seed: int


def _key(noise: str, what: str) -> Key:
    return ("dense, two hidden layers", noise, 0.0, what)


def _keys(run: Run) -> list[Key]:
    more = ("error, all units", *(f"units, {place}" for place in PLACES)) if run.noise == "log-normal" else ()
    return [_key(run.noise, what) for what in ("error before", "error", *more)]


def network() -> nn.Sequential:
    """The network of the experiment; its noise starts at next to nothing."""
    pixels, first, second = _SIZES
    return nn.Sequential(
        LogNormalDropout(pixels), nn.Linear(pixels, first), LogNormalDropout(first), nn.ReLU(),
        nn.Linear(first, second), LogNormalDropout(second), nn.ReLU(), nn.Linear(second, 10))


def score(run: Run) -> list[float]:
    """Trains a network, in two parts.

    Args:
        run: what to train.

    Returns:
        list[float]: its numbers in the order of the table.
    """
    torch.set_num_threads(1)
    data = digits(_LABELS, seed=run.seed)
    torch.manual_seed(run.seed)
    model = network()
    layers = [part for part in model if isinstance(part, LogNormalDropout)]
    noise = [parameter for layer in layers for parameter in layer.parameters()]
    weights = [parameter for part in model if isinstance(part, nn.Linear) for parameter in part.parameters()]

    def error() -> float:
        share = accuracy(model.eval(), data.test_inputs, data.test_labels)
        return 100 * (1 - share)

    def train(steps: int, falls: bool, *, noisy: bool) -> None:
        for layer in layers:
            layer.train(noisy)
        groups = [{"params": weights, "lr": _LEARNING_RATE}, *([{"params": noise, "lr": _OF_NOISE}] if noisy else [])]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, 2 * (1 - step / steps)) if falls else 1.0)
        for _ in range(steps):
            rows = torch.randint(len(data.train_inputs), (_BATCH,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.train_inputs[rows]), data.train_labels[rows])
            if noisy:
                loss = loss + kl_divergence(model) / _LABELS
            loss.backward()
            optimizer.step()
            schedule.step()

    model.eval()
    train(_BEFORE, False, noisy=False)
    scores = [error()]
    train(_STEPS, True, noisy=run.noise == "log-normal")
    scores.append(error())
    if run.noise == "log-normal":
        kept = [int(layer.kept.sum()) for layer in layers]
        for layer in layers:
            layer.threshold = 0.0
        scores += [error(), *kept]
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    return fill(arguments_of("unit_pruning", __doc__, seeds=6), arguments, lambda options: Plan(
        "unit_pruning", _ABOUT, [Run(noise, seed) for noise in _SCHEMES for seed in range(options.seeds)], _keys,
        score))



if __name__ == "__main__":
    sys.exit(main())
