"""Every method under one protocol: ``python -m dropoutlib.experiments comparison``.

Each method, and some pairs of methods, has the same budget: three strengths and two step sizes are tried, and those
with the best accuracy on validation digits are kept (``comparison_choice.txt``). Then ten networks are trained
(``comparison.txt``) and tested on digits that nothing was chosen by. Those of one seed have the same labels and initial
weights; :func:`table` compares them with no dropout, seed by seed. What a method takes in time and memory is measured
in turns with no dropout (``comparison_cost.txt``).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib
from dropoutlib.benchmark.timing import allocated, ratio, seconds_of, turns

from . import recurrent
from .data import Split, digits
from .networks import DENSE, LENET, dense, facts_of, he_normal, lenet, place_of, put, rate_of
from .paired import Key, Plan, Row, Scores, arguments_of, compare, fill, read_scores
from .training import fit

__all__ = ["COMBINATIONS", "COSTS", "MEASURES", "METHODS", "REGIMES", "STRENGTHS", "Regime", "Run", "choices", "chosen",
           "cost", "main", "network", "runs", "score", "split", "strengths", "table", "timed"]

STRENGTHS = (0.1, 0.3, 0.5)     # probabilities of dropping; what else sets how much a method does has its own three
_OTHER = {"none": (0.0,), "early stopping": (150.0, 80.0, 40.0), "weight decay": (1e-4, 1e-3, 1e-2),
          "MaxNorm": (4.0, 2.0, 1.0), "Cutout": (2.0, 3.0, 4.0), "StandoutLinear": (0.5, 1.0, 2.0),
          "StochasticPool2d": (0.0,), "average pooling": (0.0,), "none, other step size": (0.0,)}
_DIVERGENCE = (0.01, 0.1, 1.0)  # weights of the divergence, for noise that is learned
_MONTE_CARLO = "Dropout, Monte Carlo"
_POOLS = ("average pooling", "expected pooling")    # other pools, without noise, beside methods that bring theirs along
_SAMPLES = 30
_STEPS, _BATCH, _BINS = 300, 64, 15
_POOL = 900     # digits to learn from and to choose by; the others are for testing
MEASURES = ("accuracy", "loss", "calibration error")
COSTS = ("time of an update", "time of a prediction", "memory of a pass")
_ROUNDS, _TIMED, _MIDDLE = 5, 50, 1     # processes that measure, updates that each of them times, and the strength


class Regime(NamedTuple):
    """What a network learns from, and how wide it is."""

    network: str
    labels: int
    wrong: float
    units: int


REGIMES = {"dense, few labels": Regime("dense", 100, 0.0, 128), "dense, wrong labels": Regime("dense", 300, 0.3, 128),
           "dense, wide": Regime("dense", 100, 0.0, 384),
           "convolutional, few labels": Regime("convolutional", 100, 0.0, 0),
           "convolutional, wrong labels": Regime("convolutional", 300, 0.3, 0),
           "recurrent, few labels": Regime("recurrent", 100, 0.0, 64),
           "recurrent, wrong labels": Regime("recurrent", 300, 0.3, 64)}
_STEP_SIZES = {"dense": (0.03, 0.1), "convolutional": (0.02, 0.05), "recurrent": (0.1, 0.3)}
_SCHEMES = {"Dropout": ("nn.Dropout", "input and output"), "LockedDropout": ("locked dropout", "input and output"),
            "RNNDropLSTM": ("RNNDrop", "cell, a sequence"),
            "RecurrentDropoutLSTM": ("recurrent dropout", "update, a step"),
            "VariationalLSTM": ("variational", "input, state, output"),
            "ZoneoutLSTM": ("zoneout", "state and cell, a step"), "WeightDropLSTM": ("weight drop", "weights, a call")}
_ALIKE = ("none", "early stopping", "weight decay", "MaxNorm", "Dropout", _MONTE_CARLO)


def _fitting(places: Mapping[str, str]) -> tuple[str, ...]:
    layers = [layer for row in dropoutlib.catalogue().values() for layer in row.facts]
    return (*_ALIKE, *(layer.name for layer in layers if place_of(layer, places) and layer.name not in _ALIKE))


METHODS = {"dense": _fitting(DENSE), "convolutional": (*_fitting(LENET), *_POOLS),
           "recurrent": (*_ALIKE, *(name for name in _SCHEMES if name not in _ALIKE))}
COMBINATIONS = {
    "dense": ("Dropout + weight decay", "Dropout + MaxNorm", "Dropout + GaussianDropout", "Dropout + DropConnectLinear",
              "Dropout + ConcreteDropout"),
    "convolutional": ("Dropout + SpatialDropout2d", "Dropout + Cutout", "Dropout + MaxPoolDropout2d",
                      "SpatialDropout2d + Cutout", "SpatialDropout2d + MaxPoolDropout2d"),
    "recurrent": ("LockedDropout + ZoneoutLSTM", "LockedDropout + WeightDropLSTM", "Dropout + weight decay")}


class Run(NamedTuple):
    """One training: everything that decides its scores. ``strength`` counts from 0, the weakest of the method's."""

    regime: str
    method: str
    strength: int
    step_size: float
    seed: int


def strengths(method: str) -> tuple[float, ...]:
    """What is tried of a method, by the number that sets how much it does.

    Args:
        method: one of ``METHODS``.

    Returns:
        tuple[float, ...]: probabilities of dropping; for noise that is learned weights of its divergence, for Cutout
        sides of the square, for standout slopes, for max-norm radii, for weight decay factors, for early stopping
        numbers of updates.
    """
    return _OTHER.get(method, _DIVERGENCE if _is_learned(method) else STRENGTHS)


def _is_learned(method: str) -> bool:
    return hasattr(dropoutlib, method) and facts_of(method).rate == "learned"


def _parts(run: Run) -> dict[str, float]:
    """The methods of a run, each with what sets how much it does."""
    return {method: strengths(method)[run.strength] for method in run.method.split(" + ")}


def split(regime: Regime, seed: int) -> tuple[Split, Split]:
    """Digits to learn from and to choose by, and the same to learn from with the digits for testing.

    Args:
        regime: how many labels, and which part of them is replaced by random ones.
        seed: which digits, and which labels are wrong.

    Returns:
        tuple[Split, Split]: the test data of the first are for choosing.
    """
    inputs, labels, test, truth = digits(_POOL)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(_POOL, generator=generator)
    learn, choose = order[:regime.labels], order[regime.labels:]
    wrong = torch.rand(regime.labels, generator=generator) < regime.wrong
    given = torch.where(wrong, torch.randint(10, wrong.shape, generator=generator), labels[learn])
    return Split(inputs[learn], given, inputs[choose], labels[choose]), Split(inputs[learn], given, test, truth)


class _Rows(nn.Module):
    """Reads an image row by row, and answers behind the last row."""

    def __init__(self, units: int, noise: str, placement: str, p: float) -> None:
        super().__init__()
        self.network = recurrent.Network(8, units, 10, noise, placement, p)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.unflatten(1, (8, 8)).transpose(0, 1))[-1]


def network(run: Run) -> nn.Module:
    """The network of a run, with the layers of its methods.

    Args:
        run: of which the regime, the methods and their strength count.

    Returns:
        nn.Module: takes digits in rows.
    """
    regime, parts = REGIMES[run.regime], _parts(run)
    layers = {method.removesuffix(", Monte Carlo"): value for method, value in parts.items()
              if not method.startswith("none") and method not in ("early stopping", "weight decay", "MaxNorm")}
    model: nn.Module
    if regime.network == "recurrent":
        inside = next((name for name in layers if name.endswith("LSTM")), next(iter(layers), "none"))
        noise, placement = _SCHEMES.get(inside, ("-", "none"))
        model = _Rows(regime.units, noise, placement, layers.get(inside, 0.0))
        if "LockedDropout" in layers and inside != "LockedDropout":
            for place in ("before", "after"):
                setattr(model.network, place, dropoutlib.LockedDropout(layers["LockedDropout"]))
    else:
        model, places = (dense(regime.units), DENSE) if regime.network == "dense" else (lenet(8), LENET)
        he_normal(model)    # before layers take the weights over
        for name, value in layers.items():
            if name in _POOLS:
                model.pool1, model.pool2 = (_pool(name, value) for _ in range(2))
            else:
                put(name, model, places, **_options(name, value))
    if "MaxNorm" in parts:
        dropoutlib.MaxNorm(model, parts["MaxNorm"])
    return model


class _ExpectedPool(nn.Module):
    """The test rule of dropout in max pooling windows, in training too."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return dropoutlib.functional.max_pool_dropout2d(input, 2, p=self.p, training=False)


def _pool(name: str, p: float) -> nn.Module:
    return nn.AvgPool2d(2) if name == "average pooling" else _ExpectedPool(p)


def _options(method: str, value: float) -> dict[str, Any]:
    if method == "Cutout":
        return {"size": int(value)}
    if method == "StandoutLinear":
        return {"alpha": value}
    rate = rate_of(method)
    return {} if rate is None or _is_learned(method) else {rate: value}


def _train(run: Run, data: Split, steps: int | None = None) -> nn.Module:
    parts = _parts(run)
    learned = next((value for name, value in parts.items() if _is_learned(name)), None)
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append(network(run))
        return made[0]

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(output, labels)
        return cross_entropy if learned is None else (
            cross_entropy + learned * dropoutlib.kl_divergence(made[0]) / len(data.train_inputs))

    if steps is None:
        steps = min(_STEPS, int(parts.get("early stopping", _STEPS)))
    return fit(build, data.train_inputs, data.train_labels, steps=steps, batch_size=_BATCH, seed=run.seed,
               learning_rate=run.step_size, weight_decay=parts.get("weight decay", 0.0), loss=loss)


def _predict(run: Run, model: nn.Module, inputs: Tensor) -> Tensor:
    """The probabilities of the classes."""
    if run.method == _MONTE_CARLO:
        generator = torch.Generator().manual_seed(run.seed)
        return dropoutlib.predict(model, inputs, _SAMPLES, task="classification", generator=generator).mean
    with torch.no_grad():
        return model(inputs).softmax(-1)


def score(run: Run, *, is_choice: bool) -> list[float]:
    """Trains one network and tests it, on one thread.

    Args:
        run: what to train.
        is_choice: whether it is tested on the digits that are for choosing.

    Returns:
        list[float]: accuracy; where nothing is chosen also the mean cross-entropy and the expected calibration error.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    torch.set_num_threads(1)
    data = split(REGIMES[run.regime], run.seed)[0 if is_choice else 1]
    chances, truth = _predict(run, _train(run, data), data.test_inputs), data.test_labels
    found = [(chances.argmax(-1) == truth).float().mean().item()]
    if not is_choice:
        found += [F.nll_loss(chances.clamp(min=1e-12).log(), truth).item(),
                  multiclass_calibration_error(chances, truth, num_classes=10, n_bins=_BINS).item()]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"the network of {run} has outputs that are not finite")
    return found


def cost(run: Run) -> list[float]:
    """What a method takes, on one thread and in turns with no dropout.

    Args:
        run: of which the regime, the methods and their strength count; the seed is the number of the round.

    Returns:
        list[float]: the time of an update with its part of the divergence, the time to predict all test digits, and
        the most memory that a batch takes forward and back, each as a multiple of that without dropout.
    """
    torch.set_num_threads(1)
    ways = {"none": run._replace(method="none", strength=0), run.method: run}
    _, data = split(REGIMES[run.regime], run.seed)
    models = {name: _train(way, data, 1) for name, way in ways.items()}
    updates = turns({name: partial(seconds_of, partial(_train, way, data, _TIMED), data.train_inputs)
                     for name, way in ways.items()}, 3)
    predictions = turns({name: partial(seconds_of, partial(_predict, way, models[name], data.test_inputs),
                                       data.test_inputs) for name, way in ways.items()}, 9)
    peaks = [allocated(model.train(), data.train_inputs[:_BATCH], list(model.parameters())).peak
             for model in (models["none"], models[run.method])]
    return [*(ratio(times[run.method], times["none"]) for times in (updates, predictions)), peaks[1] / peaks[0]]


def timed(rounds: Sequence[int]) -> Iterator[Run]:
    """The runs that are timed: every method at its middle strength, in each network once."""
    kinds: dict[tuple[str, int], str] = {}
    for regime, (kind, _, _, units) in REGIMES.items():
        kinds.setdefault((kind, units), regime)
    for (kind, _), regime in kinds.items():
        for method in (*METHODS[kind][1:], *COMBINATIONS[kind]):    # the first is none
            middle = min(_MIDDLE, *(len(strengths(part)) - 1 for part in method.split(" + ")))
            yield from (Run(regime, method, middle, _STEP_SIZES[kind][0], number) for number in rounds)


def _cost_keys(run: Run) -> list[Key]:
    return [(run.regime, run.method, float(run.strength), measure) for measure in COSTS]


def choices(seeds: Sequence[int]) -> Iterator[Run]:
    """The runs by whose accuracies a strength and a step size are chosen."""
    for regime, (kind, *_) in REGIMES.items():
        for method in (*METHODS[kind], *COMBINATIONS[kind]):
            tried = range(min(len(strengths(part)) for part in method.split(" + ")))
            yield from (Run(regime, method, strength, size, seed)
                        for strength in tried for size in _STEP_SIZES[kind] for seed in seeds)


def _choice_key(run: Run) -> list[Key]:
    return [(run.regime, run.method, float(run.strength), f"step size {run.step_size:g}")]


def chosen(scores: Mapping[Key, Scores]) -> dict[tuple[str, str], tuple[int, float]]:
    """What has the best mean accuracy; of those that are as good, the first.

    Args:
        scores: of the runs that :func:`choices` names.

    Returns:
        dict: for a regime and a method the strength, and the step size.
    """
    best: dict[tuple[str, str], tuple[float, int, float]] = {}
    for (regime, method, strength, size), values in scores.items():
        mean = sum(values.values()) / len(values)
        if mean > best.get((regime, method), (-1.0,))[0]:
            best[regime, method] = mean, int(strength), float(size.removeprefix("step size "))
    return {key: (strength, size) for key, (_, strength, size) in best.items()}


def runs(found: Mapping[tuple[str, str], tuple[int, float]], seeds: Sequence[int]) -> list[Run]:
    """The runs that are compared: each method as it was chosen, and no dropout with the other step size, too."""
    all_ways: list[tuple[str, str, int, float]] = []
    for (regime, method), (strength, size) in found.items():
        all_ways.append((regime, method, strength, size))
        if method == "none":
            [other] = set(_STEP_SIZES[REGIMES[regime].network]) - {size}
            all_ways.append((regime, "none, other step size", 0, other))
    return [Run(*way, seed) for way in all_ways for seed in seeds]


def _keys(run: Run) -> list[Key]:
    return [(run.regime, run.method, float(run.strength), measure) for measure in MEASURES]


def table(scores: Mapping[Key, Scores]) -> list[Row]:
    """Compares every method with no dropout, and a pair of methods also with the better of the two.

    Args:
        scores: of all runs that are compared, as they stand in the table.

    Returns:
        list[Row]: the network of a row is the regime, or for a pair the regime with ``", over "`` and the method with
        which it is compared: the one of the two whose mean accuracy is better.
    """
    by_name = {(regime, method, measure): (key, values) for key, values in scores.items()
               for regime, method, _, measure in [key]}
    pairs: dict[Key, tuple[Scores, Scores]] = {}
    for (regime, method, measure), (key, values) in by_name.items():
        if method == "none":
            continue
        pairs[key] = values, by_name[regime, "none", measure][1]
        if " + " in method:
            best = max(method.split(" + "), key=lambda name: _mean(by_name[regime, name, "accuracy"][1]))
            pairs[f"{regime}, over {best}", *key[1:]] = values, by_name[regime, best, measure][1]
    return compare(pairs)


def _mean(values: Scores) -> float:
    return sum(values.values()) / len(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Chooses, then compares; :func:`~dropoutlib.experiments.paired.fill` says how."""
    parser = arguments_of("comparison", __doc__, seeds=10)
    parser.add_argument("--choice", type=Path, default=Path("comparison_choice.txt"),
                        help="the table by which strengths and step sizes are chosen (comparison_choice.txt)")
    parser.add_argument("--cost", type=Path, default=Path("comparison_cost.txt"),
                        help="the table of time and memory (comparison_cost.txt)")
    about = f"{_STEPS} updates, batches of {_BATCH}, momentum 0.9"

    def choice(options: argparse.Namespace) -> Plan:
        options.output, options.final = options.choice, options.output
        seeds = range(options.seeds, options.seeds + 2)
        return Plan("comparison_choice", (about, "a column for each seed: accuracy on digits to choose by"),
                    list(choices(seeds)), _choice_key, partial(score, is_choice=True))

    def comparison(options: argparse.Namespace) -> Plan:
        found = chosen(read_scores(options.choice.read_text(encoding="utf-8")))
        return Plan("comparison", (about, "a column for each seed, on test digits"),
                    runs(found, range(options.seeds)), _keys, partial(score, is_choice=False))

    def costs(options: argparse.Namespace) -> Plan:
        options.output, options.jobs = options.cost, 1      # alone, since it is timed
        return Plan("comparison_cost", (f"batches of {_BATCH}; multiples of what no dropout takes, in turns with it",
                                        "a column for each round"),
                    list(timed(range(_ROUNDS))), _cost_keys, cost)

    return (fill(parser, arguments, choice) or fill(parser, arguments, comparison)
            or fill(parser, arguments, costs))


if __name__ == "__main__":
    sys.exit(main())
