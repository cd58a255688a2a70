"""Dropout and max-norm in a LeNet-like network at several learning rates: ``python -m dropoutlib.experiments.lenet``.

A network that fails to train and one that overfits have low test accuracies both. The runs of ten seeds tell them
apart: training that fails does so for some seeds and not for others, and leaves units that are zero for every digit.
Some of the networks have a ReLU behind their class scores, as that of the article has.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from . import dropout
from .dropout import Settings
from .paired import Key, Plan, arguments_of, count, fill, positive_number, shortest

__all__ = ["DROPOUT", "MAX_NORM", "RATES", "RECTIFIED", "Run", "main", "rectified", "runs", "score"]

RATES = (0.02, 0.05, 0.1, 0.15, 0.2)
RECTIFIED = (0.02, 0.05)    # learning rates of the networks with rectified class scores
DROPOUT = (0.0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8)     # those of the article, and of max-norm
MAX_NORM = (1.0, 5.0, 10.0, 25.0, 50.0)
_MEASURES = ("accuracy", "dead units")


class Run(NamedTuple):
    """One training of the network."""

    learning_rate: float
    dropout: float
    max_norm: float
    seed: int
    is_rectified: bool = False


def runs(seeds: int, rates: Sequence[float]) -> Iterator[Run]:
    """All trainings: dropout alone, max-norm alone, and one of both."""
    for is_rectified, rate in (*((False, rate) for rate in rates), *((True, rate) for rate in RECTIFIED)):
        for p, norm in ((*((p, math.inf) for p in DROPOUT), *((0.0, norm) for norm in MAX_NORM), (0.4, 25.0))):
            yield from (Run(rate, p, norm, seed, is_rectified) for seed in range(seeds))


def _keys(run: Run) -> list[Key]:
    norm = "no max-norm" if run.max_norm == math.inf else f"max-norm {shortest(run.max_norm)}"
    network = f"{'rectified scores, ' if run.is_rectified else ''}learning rate {shortest(run.learning_rate)}"
    return [(network, norm, run.dropout, measure) for measure in _MEASURES]


def rectified(settings: Settings, side: int) -> nn.Sequential:
    """The network of :func:`dropoutlib.experiments.dropout.network`, with a ReLU behind its class scores."""
    model = dropout.network(settings, side)
    model.add_module("scores", nn.ReLU())
    return model


def score(run: Run, epochs: int) -> list[float]:
    """Trains a network as :func:`dropoutlib.experiments.dropout.score` does.

    Args:
        run: what to train.
        epochs: passes over the data.

    Returns:
        list[float]: its test accuracy, and the part of its rectified units, maps and class scores that are zero for
        every test digit.
    """
    settings = Settings(dropout=run.dropout, max_norm=run.max_norm, learning_rate=run.learning_rate, epochs=epochs)
    outcome = dropout.score(dropout.Run(settings, run.seed), rectified if run.is_rectified else None)
    return [outcome.accuracy, outcome.dead]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    parser = arguments_of("lenet", __doc__, seeds=10)
    parser.add_argument("--epochs", type=count, default=20, help="passes over the data (20)")
    parser.add_argument("--rates", type=positive_number, nargs="+", default=RATES,
                        help=f"learning rates ({' '.join(map(str, RATES))})")
    return fill(parser, arguments, _plan)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan("lenet", (f"1000 digits, {options.epochs} passes, batches of 64, momentum 0.9",
                          "a column for each seed"),
                list(runs(options.seeds, options.rates)), _keys, partial(score, epochs=options.epochs))


if __name__ == "__main__":
    sys.exit(main())
