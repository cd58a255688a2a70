"""How many units log-normal dropout removes, and what that costs: ``python -m dropoutlib.experiments.unit_pruning``.

A network with two hidden layers learns digits without noise. Then training goes on, once as before, and once with
:class:`~dropoutlib.LogNormalDropout` on the input and behind both hidden layers. Both have the same number of updates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dropoutlib import LogNormalDropout, kl_divergence

from .data import digits
from .paired import Key, attempts, write_scores
from .training import accuracy

__all__ = ["PLACES", "Run", "main", "network", "score"]

_LABELS, _BATCH, _BEFORE, _STEPS, _LEARNING_RATE, _OF_NOISE = 1000, 100, 500, 4000, 0.002, 0.02
_SIZES = (64, 100, 50)
_TABLE = Path(__file__).parent / "tables" / "unit_pruning.txt"
PLACES = ("input", "first hidden layer", "second hidden layer")
_SCHEMES = ("none", "log-normal")


class Run(NamedTuple):
    """One training."""

    noise: str
    seed: int


def _key(noise: str, what: str) -> Key:
    return ("dense, two hidden layers", noise, 0.0, what)


def _keys(noise: str) -> list[Key]:
    more = ("error, all units", *(f"units, {place}" for place in PLACES)) if noise == "log-normal" else ()
    return [_key(noise, what) for what in ("error before", "error", *more)]


def _about() -> str:
    return (f"# torch {torch.__version__}, cpu, 1 thread a run; {_LABELS} digits, batches of {_BATCH}; sizes "
            f"{'-'.join(map(str, (*_SIZES, 10)))}; Adam, {_BEFORE} updates without noise,\n# then {_STEPS} with steps "
            f"that fall to 0 in the second half; weights {_LEARNING_RATE}, noise {_OF_NOISE}; test errors in percent")


def network() -> nn.Sequential:
    """The network of the experiment; its noise starts at next to nothing."""
    pixels, first, second = _SIZES
    return nn.Sequential(
        LogNormalDropout(pixels), nn.Linear(pixels, first), LogNormalDropout(first), nn.ReLU(),
        nn.Linear(first, second), LogNormalDropout(second), nn.ReLU(), nn.Linear(second, 10))


def score(run: Run) -> dict[str, Any]:
    """Trains a network, in two parts.

    Args:
        run: what to train.

    Returns:
        dict[str, Any]: the run, and its numbers in the order of the table.
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
    return {"run": run, "scores": scores}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains every network and writes the table.

    Args:
        arguments: command line; that of the program if None.

    Returns:
        int: 0, or 1 if a run failed.
    """
    parser = argparse.ArgumentParser(prog="python -m dropoutlib.experiments.unit_pruning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="number of splits, initial weights and batches (6)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--output", type=Path, default=_TABLE, help="the table (the one that the book reads)")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    runs = [Run(noise, seed) for noise in _SCHEMES for seed in range(options.seeds)]
    scores: dict[Key, dict[int, float]] = {key: {} for noise in _SCHEMES for key in _keys(noise)}
    finished = 0
    for result in attempts(runs, score, options.jobs):
        noise, seed = result["run"]
        for key, value in zip(_keys(noise), result["scores"], strict=True):
            scores[key][seed] = value
        finished += 1
    options.output.write_text("\n".join([
        f"# {parser.prog} {' '.join(given)}".rstrip(), _about(), write_scores(scores), ""]), encoding="utf-8")
    return int(finished < len(runs))


if __name__ == "__main__":
    sys.exit(main())
