"""Where dropout goes in a convolutional network: ``python -m dropoutlib.experiments.placement`` prints a table.

Small networks learn from few labels, with dropout in one place or another. Every score is compared with that of the
same network without dropout, on the same split and from the same initial weights. Each finished run is appended to the
file of ``--records`` at once; a later call with that file goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import digits
from .networks import CNN, NOISE, UNET, UNet, cnn, he_normal
from .paired import Key, Row, compare, finish, write_table
from .training import accuracy, fit

__all__ = ["Run", "main", "runs", "score", "segmentation", "table"]

_NETWORKS = ("CNN", "CNN with batch norm", "U-Net", "U-Net, He weights")
_REESTIMATED = "batch norm re-estimated"
_AMONG = ", among places"


class Run(NamedTuple):
    """One training: everything that decides its score."""

    network: str
    noise: str
    p: float
    placement: str
    seed: int
    steps: int
    labels: int


def segmentation(num_train: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits of 16 x 16 pixels under Gaussian noise, and which pixels are foreground.

    Args:
        num_train: number of labelled images; 400 others are for testing.
        seed: seed of the split and of the noise.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: images and masks to train on and to test on, ``(N, 1, 16, 16)``.
    """
    data = digits(num_train, seed=seed)
    images = torch.cat([data.train_inputs, data.test_inputs[:400]]).reshape(-1, 1, 8, 8)
    clean = F.interpolate(images, scale_factor=2.0, mode="bilinear")
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    masks = (clean > 0.5).float()
    return noisy[:num_train], masks[:num_train], noisy[num_train:], masks[num_train:]


def score(run: Run) -> dict[str, Any]:
    """Trains one network and tests it.

    Args:
        run: what to train; the U-Net gets a fifth of the labels, as images.

    Returns:
        dict[str, Any]: the run, its score (accuracy, or the Dice overlap averaged over images), and with batch norm
        the score after the running statistics were estimated anew without dropout.
    """
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"steps": run.steps, "seed": run.seed}
    if run.network.startswith("U-Net"):
        inputs, masks, test, truth = segmentation(max(10, run.labels // 5), seed=run.seed)
        start, rate = (he_normal, 0.01) if run.network.endswith("He weights") else (_as_it_is, 0.05)
        model = fit(lambda: start(UNet(run.placement, run.noise, run.p)), inputs, masks, learning_rate=rate,
                    loss=F.binary_cross_entropy_with_logits, **settings)
        return {"run": run, "score": _dice(model, test, truth)}
    data = digits(run.labels, seed=run.seed)
    model = fit(lambda: he_normal(cnn(run.placement, run.noise, run.p, run.network != "CNN")), data.train_inputs,
                data.train_labels, learning_rate=0.03, **settings)
    found: dict[str, Any] = {"run": run, "score": accuracy(model, data.test_inputs, data.test_labels)}
    if run.network != "CNN":
        _estimate_anew(model, data.train_inputs)
        found[_REESTIMATED] = accuracy(model, data.test_inputs, data.test_labels)
    return found


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


@torch.no_grad()
def _dice(model: nn.Module, images: Tensor, truth: Tensor) -> float:
    found = (model(images) > 0).float()
    return (2 * (found * truth).sum((1, 2, 3)) / (found + truth).sum((1, 2, 3)).clamp(min=1)).mean().item()


@torch.no_grad()
def _estimate_anew(model: nn.Module, inputs: Tensor) -> None:
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.train().momentum = 1.0  # one pass over all training examples, dropout off
    model(inputs)
    model.eval()


def runs(seeds: int, steps: int, labels: int, rates: Sequence[float]) -> Iterator[Run]:
    """All trainings of the table: every place that a kind of noise can have, at every rate."""
    for seed, network in product(range(seeds), _NETWORKS):
        yield Run(network, "-", 0.0, "none", seed, steps, labels)
        for p, noise, place in product(rates, NOISE, UNET if network.startswith("U-Net") else CNN):
            impossible = {"none"} | ({"between dense layers", "before pooling"} if noise == "maps" else set()) | (
                {"before batch norm"} if network == "CNN" else set())
            if place not in impossible:
                yield Run(network, noise, p, place, seed, steps, labels)


def table(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Compares the runs with their partners: dropout with none, statistics estimated anew with stored ones.

    Args:
        results: what :func:`score` returned.

    Returns:
        list[Row]: a line for each network, kind of noise, rate and place.
    """
    scores: dict[Key, dict[int, float]] = {}
    for result in results:
        run = Run(*result["run"])
        scores.setdefault(run[:4], {})[run.seed] = result["score"]
        if _REESTIMATED in result:
            scores.setdefault((_REESTIMATED, *run[1:4]), {})[run.seed] = result[_REESTIMATED]
    return compare(scores | _averages(scores), _partner)


def _averages(scores: dict[Key, dict[int, float]]) -> dict[Key, dict[int, float]]:
    """All places once more, and for each network, noise and rate the mean score of its places, seed by seed."""
    again: dict[Key, dict[int, float]] = {}
    groups: dict[tuple[str, str, float], list[dict[int, float]]] = {}
    for (network, noise, p, place), values in scores.items():
        if network in _NETWORKS and place != "none":
            group = (network + _AMONG, noise, p)
            again[(*group, place)] = values
            groups.setdefault(group, []).append(values)
    for group, members in groups.items():
        seeds = set.intersection(*(set(values) for values in members))
        again[(*group, "average")] = {seed: sum(values[seed] for values in members) / len(members) for seed in seeds}
    return again


def _partner(key: Key) -> Key:
    if key[0] == _REESTIMATED:
        return (_NETWORKS[1], *key[1:])
    return (*key[:3], "average") if key[0].endswith(_AMONG) else (key[0], "-", 0.0, "none")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not in the records yet, and prints the table of all that is.

    Args:
        arguments: command line; that of the program if None.

    Returns:
        int: 0, or 1 if a run failed.
    """
    parser = argparse.ArgumentParser(prog="python -m dropoutlib.experiments.placement", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of splits and initial weights")
    parser.add_argument("--steps", type=int, default=150, help="updates of each training")
    parser.add_argument("--labels", type=int, default=100, help="labelled digits; the U-Net gets a fifth")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2], help="probabilities of dropping")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--records", type=Path, default=Path("placement.jsonl"), help="file of the finished runs")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    wanted = list(runs(options.seeds, options.steps, options.labels, options.rates))
    results = finish(wanted, score, options.records, options.jobs)
    print(f"# {parser.prog} {' '.join(given)}".rstrip())
    print(f"# torch {torch.__version__}, cpu, 1 thread a run; seeds 0 to {options.seeds - 1}, {options.steps} updates, "
          f"{options.labels} labels ({max(10, options.labels // 5)} images for the U-Net)")
    print("# score: accuracy, or Dice overlap of the U-Net; gain: over the same network without dropout, seed by seed;")
    print("# of batch norm re-estimated: over the stored statistics; among places: over the average of the places")
    print("# low, high: 95 % t interval over seeds; all low, all high: 95 % for all rows at once (Bonferroni)")
    print(write_table(table(results)))
    return int(len(results) < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
