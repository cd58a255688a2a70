"""Where dropout goes in a convolutional network: ``python -m dropoutlib.experiments.placement``.

Small networks learn from few labels, with dropout in one place or another, each on the same splits and from the same
initial weights; :func:`table` compares the scores, split by split.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import digits
from .networks import CNN, NOISE, NORMS, RESIDUAL, UNET, UNet, cnn, he_normal, residual
from .paired import Key, Plan, Row, Scores, arguments_of, compare, count, fill, probability
from .training import accuracy, fit

__all__ = ["PLACES", "Run", "main", "runs", "score", "segmentation", "table"]

_NORM = {"CNN": None} | {f"CNN with {norm} norm": norm for norm in NORMS}
_BATCH = "CNN with batch norm"
_REESTIMATED = "batch norm re-estimated"
PLACES: dict[str, Sequence[str]] = {
    "CNN": [place for place in CNN if place != "before norm"], _BATCH: list(CNN),
    **{name: ["none", "before norm", "after pooling"] for name in _NORM if name not in ("CNN", _BATCH)},
    "residual network": list(RESIDUAL), "U-Net": list(UNET), "U-Net, He weights": list(UNET)}
_OVER = {"after pooling": "before norm", "in the branch": "on the sum"}  # behind or in front, as many layers of dropout


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


def score(run: Run) -> list[float]:
    """Trains one network and tests it.

    Args:
        run: what to train; the U-Net gets a fifth of the labels, as images.

    Returns:
        list[float]: accuracy, or the Dice overlap averaged over images; and with batch norm the accuracy after the
        running statistics were estimated anew without dropout.
    """
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"steps": run.steps, "seed": run.seed}
    if run.network.startswith("U-Net"):
        inputs, masks, test, truth = segmentation(max(10, run.labels // 5), seed=run.seed)
        start, rate = (he_normal, 0.01) if run.network.endswith("He weights") else (_as_it_is, 0.05)
        model = fit(lambda: start(UNet(run.placement, run.noise, run.p)), inputs, masks, learning_rate=rate,
                    loss=F.binary_cross_entropy_with_logits, **settings)
        return [_dice(model, test, truth)]
    data = digits(run.labels, seed=run.seed)
    build, rate = (partial(cnn, norm=_NORM[run.network]), 0.03) if run.network in _NORM else (residual, 0.01)
    model = fit(lambda: he_normal(build(run.placement, run.noise, run.p)), data.train_inputs, data.train_labels,
                learning_rate=rate, **settings)
    found = [accuracy(model, data.test_inputs, data.test_labels)]
    if run.network == _BATCH:
        _estimate_anew(model, data.train_inputs)
        found.append(accuracy(model, data.test_inputs, data.test_labels))
    return found


def _keys(run: Run) -> list[Key]:
    return [run[:4], *([(_REESTIMATED, *run[1:4])] if run.network == _BATCH else [])]


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
    """All trainings: every place of ``PLACES`` that a kind of noise can have, at every rate."""
    for seed, network in product(range(seeds), PLACES):
        yield Run(network, "-", 0.0, "none", seed, steps, labels)
        for p, noise, place in product(rates, NOISE, PLACES[network]):
            if place != "none" and not (noise == "maps" and place in ("before pooling", "between dense layers")):
                yield Run(network, noise, p, place, seed, steps, labels)


def table(scores: Mapping[Key, Scores]) -> list[Row]:
    """Compares the scores, split by split; a row that says nothing else is a gain over the network without dropout.

    Args:
        scores: of every network, noise, rate and place, as they stand in the table.

    Returns:
        list[Row]: the network of a row says with what it is compared: ``"batch norm re-estimated"`` with the stored
        statistics, ``"CNN, among places"`` with the average of all places with this noise, ``"CNN with batch norm,
        over before norm"`` with that place, ``"CNN, over maps"`` with maps at the same place.
    """
    pairs: dict[Key, tuple[Scores, Scores]] = {}
    groups: dict[tuple[str, str, float], dict[str, Scores]] = {}
    for key, values in scores.items():
        network, noise, p, place = key
        if network == _REESTIMATED:
            pairs[key] = values, scores[_BATCH, noise, p, place]
        elif place != "none":
            pairs[key] = values, scores[network, "-", 0.0, "none"]
            groups.setdefault((network, noise, p), {})[place] = values
    for (network, noise, p), places in groups.items():
        for place, values in places.items():
            if len(places) > 2:  # two places have their difference
                pairs[f"{network}, among places", noise, p, place] = values, _average(list(places.values()))
            if (other := _OVER.get(place)) in places:
                pairs[f"{network}, over {other}", noise, p, place] = values, places[other]
            if noise == "elements" and place in (maps := groups.get((network, "maps", p), {})):
                pairs[f"{network}, over maps", noise, p, place] = values, maps[place]
    return compare(pairs)


def _average(members: Sequence[Scores]) -> Scores:
    seeds = set.intersection(*(set(values) for values in members))
    return {seed: sum(values[seed] for values in members) / len(members) for seed in seeds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    parser = arguments_of("placement", __doc__, seeds=20)
    parser.add_argument("--steps", type=count, default=150, help="updates of each training (150)")
    parser.add_argument("--labels", type=count, default=100, help="labelled digits; the U-Net gets a fifth (100)")
    parser.add_argument("--rates", type=probability, nargs="+", default=[0.2], help="probabilities of dropping (0.2)")
    return fill(parser, arguments, lambda options: Plan(
        "placement", (f"{options.steps} updates, {options.labels} labels ({max(10, options.labels // 5)} images for "
                      "the U-Net)", "a column for each seed: accuracy, or Dice overlap of the U-Net"),
        list(runs(options.seeds, options.steps, options.labels, list(dict.fromkeys(options.rates)))), _keys, score))



if __name__ == "__main__":
    sys.exit(main())
