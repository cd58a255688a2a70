"""How far the spread from moments is from that of samples: ``python -m dropoutlib.experiments.propagation``.

Networks are trained with dropout on digits. For the ten logits of some test images the standard deviation that
:func:`~dropoutlib.propagate_moments` gives is divided by that of many passes with masks. A score is the median of these
ratios over all logits: 1 is right, less is too sure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dropoutlib import Dropout, SpatialDropout2d, propagate_moments

from .data import digits
from .paired import Key, attempts, write_scores
from .training import fit, mlp

__all__ = ["CARRIED", "NETWORKS", "Run", "main", "score"]

_STEPS, _LABELS, _IMAGES, _PASSES, _AT_ONCE = 200, 1000, 20, 5000, 50
_TABLE = Path(__file__).parent / "tables" / "propagation.txt"
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


def _keys(network: str) -> list[Key]:
    return [(network, "dropout", 0.5, carried) for carried, covariance in CARRIED.items()
            if covariance or network not in _HAS_MAPS]


def _about() -> str:
    return (f"# torch {torch.__version__}, cpu, 1 thread a run; {_STEPS} updates on {_LABELS} digits; input 0.2, "
            f"hidden 0.5; convolutions 0.2, dense 0.5\n# a column for each seed: median over {10 * _IMAGES} logits of "
            f"the standard deviation from moments over that of {_PASSES} passes")


def score(run: Run) -> dict[str, Any]:
    """Trains a network and compares its moments with its samples.

    Args:
        run: what to train.

    Returns:
        dict[str, Any]: the run, and the median ratio for each way of carrying moments that the network allows.
    """
    torch.set_num_threads(1)
    data = digits(_LABELS, seed=run.seed)
    model = fit(lambda: NETWORKS[run.network]().double(), data.train_inputs.double(), data.train_labels, steps=_STEPS,
                seed=run.seed, batch_size=100, learning_rate=0.05)
    x = data.test_inputs[:_IMAGES].double()
    with torch.no_grad():
        ratios = [propagate_moments(model, x, covariance=CARRIED[carried]).variance.sqrt()
                  for *_, carried in _keys(run.network)]
        for part in model.modules():
            part.train(isinstance(part, nn.modules.dropout._DropoutNd))
        torch.manual_seed(run.seed)
        many = x.repeat(_AT_ONCE, 1)
        samples = torch.cat([model(many).view(_AT_ONCE, _IMAGES, 10) for _ in range(_PASSES // _AT_ONCE)])
    return {"run": run, "scores": [(ratio / samples.std(0)).median().item() for ratio in ratios]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every network and writes the table.

    Args:
        arguments: command line; that of the program if None.

    Returns:
        int: 0, or 1 if a run failed.
    """
    parser = argparse.ArgumentParser(prog="python -m dropoutlib.experiments.propagation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="number of splits, initial weights and masks (6)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--output", type=Path, default=_TABLE, help="the table (the one that the book reads)")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    runs = [Run(network, seed) for network in NETWORKS for seed in range(options.seeds)]
    scores: dict[Key, dict[int, float]] = {key: {} for network in NETWORKS for key in _keys(network)}
    finished = 0
    for result in attempts(runs, score, options.jobs):
        network, seed = result["run"]
        for key, value in zip(_keys(network), result["scores"], strict=True):
            scores[key][seed] = value
        finished += 1
    options.output.write_text("\n".join([
        f"# {parser.prog} {' '.join(given)}".rstrip(), _about(), write_scores(scores), ""]), encoding="utf-8")
    return int(finished < len(runs))


if __name__ == "__main__":
    sys.exit(main())
