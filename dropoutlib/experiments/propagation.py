"""How far the spread from moments is from that of samples: ``python -m dropoutlib.experiments.propagation``.

Networks are trained with dropout on digits. For the ten logits of some test images the standard deviation that
:func:`~dropoutlib.propagate_moments` gives is divided by that of many passes with masks. A score is the median of these
ratios over all logits: 1 is right, less is too sure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from dropoutlib import Dropout, SpatialDropout2d, propagate_moments

from .data import digits
from .paired import Key, Plan, arguments_of, fill
from .training import fit, mlp

__all__ = ["CARRIED", "NETWORKS", "Run", "main", "score"]

_STEPS, _LABELS, _IMAGES, _PASSES, _AT_ONCE = 200, 1000, 20, 5000, 50
CARRIED = {"independent": False, "with covariances": True}


class Run(NamedTuple):
    """One training."""

    network: str
    seed: int


def _dense(*hidden: int) -> nn.Sequential:
    return mlp(64, *hidden, 10, dropout=lambda: Dropout(0.5), input_dropout=lambda: Dropout(0.2))


def _convolutional(maps: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), maps(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), maps(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), Dropout(0.5), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "dense, one hidden layer": lambda: _dense(256), "dense, three hidden layers": lambda: _dense(256, 256, 256),
    "convolutional, elements": lambda: _convolutional(lambda: Dropout(0.2)),
    "convolutional, maps": lambda: _convolutional(lambda: SpatialDropout2d(0.2))}
_HAS_MAPS = {"convolutional, maps"}  # which moments without covariances refuse


_ABOUT = (f"{_STEPS} updates on {_LABELS} digits; input 0.2, hidden 0.5; convolutions 0.2, dense 0.5",
          f"a column for each seed: median over {10 * _IMAGES} logits of the standard deviation from moments over that "
          f"of {_PASSES} passes")


def _keys(run: Run) -> list[Key]:
    return [(run.network, "dropout", 0.5, carried) for carried, covariance in CARRIED.items()
            if covariance or run.network not in _HAS_MAPS]


def score(run: Run) -> list[float]:
    """Trains a network and compares its moments with its samples.

    Args:
        run: what to train.

    Returns:
        list[float]: the median ratio for each way of carrying moments that the network allows.
    """
    torch.set_num_threads(1)
    data = digits(_LABELS, seed=run.seed)
    model = fit(lambda: NETWORKS[run.network]().double(), data.train_inputs.double(), data.train_labels, steps=_STEPS,
                seed=run.seed, batch_size=100, learning_rate=0.05)
    x = data.test_inputs[:_IMAGES].double()
    with torch.no_grad():
        ratios = [propagate_moments(model, x, covariance=CARRIED[carried]).variance.sqrt()
                  for *_, carried in _keys(run)]
        for part in model.modules():
            part.train(isinstance(part, nn.modules.dropout._DropoutNd))
        torch.manual_seed(run.seed)
        many = x.repeat(_AT_ONCE, 1)
        samples = torch.cat([model(many).view(_AT_ONCE, _IMAGES, 10) for _ in range(_PASSES // _AT_ONCE)])
    return [(ratio / samples.std(0)).median().item() for ratio in ratios]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    return fill(arguments_of("propagation", __doc__, seeds=6), arguments, lambda options: Plan(
        "propagation", _ABOUT, [Run(network, seed) for network in NETWORKS for seed in range(options.seeds)], _keys,
        score))



if __name__ == "__main__":
    sys.exit(main())
