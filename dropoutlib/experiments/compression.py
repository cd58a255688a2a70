"""Pruning a LeNet, and what is left of it: ``python -m dropoutlib.experiments.compression digits``, or ``mnist``.

A network is trained for some updates without noise. From there on for as many again: with sparse variational dropout
(every weight may go), with log-normal dropout (units may go), or by magnitude, beside both: there the weights, or the
units, of the smallest size are set to zero at once, as many as the method beside it has set to zero, and the rest is
trained on. So all have the same number of updates, and a comparison is made at the same number of zeros.
:func:`~dropoutlib.compress` then makes a smaller network of each.

``digits`` are the 8 x 8 images of scikit-learn. ``mnist`` has the networks and the settings of the papers and fetches
its images from OpenML through scikit-learn; it takes hours.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib.bayesian.log_normal_dropout import LogNormalDropout
from dropoutlib.bayesian.sparse_variational_dropout import SparseVariationalConv2d, SparseVariationalLinear
from dropoutlib.benchmark.timing import processor
from dropoutlib.compression import compress
from dropoutlib.divergence import kl_divergence
from dropoutlib.surgery import replace
from dropoutlib.training import parameter_groups, warm_up

from .data import digits, mnist
from .paired import Key, Plan, Scores, arguments_of, fill
from .training import accuracy

__all__ = ["METHODS", "SETTINGS", "Run", "Setting", "lenet", "main", "score", "units_left"]

METHODS = {"sparse": "sparse variational", "units": "log-normal"}
_BESIDE = {"sparse": "magnitude of weights", "units": "magnitude of units"}


class Setting(NamedTuple):
    """What all runs of an experiment have in common.

    ``sizes`` are channels and units of the hidden layers, ``strengths`` weights of the divergence for each method.
    """

    sizes: tuple[int, int, int]
    kernels: tuple[int, int]
    pools: tuple[int, int]
    side: int
    train: int
    batch: int
    steps: int
    learning_rate: float
    noise_rate: float
    strengths: Mapping[str, tuple[float, ...]]


class Run(NamedTuple):
    """All trainings from one seed."""

    experiment: str
    seed: int


SETTINGS = {
    "digits": Setting((12, 30, 80), (3, 2), (2, 1), 8, 1000, 50, 1000, 2e-3, 2e-2,
                      {"sparse": (0.03, 0.2, 1.0), "units": (1.0, 5.0, 20.0)}),
    "mnist": Setting((20, 50, 500), (5, 5), (2, 2), 28, 60_000, 100, 120_000, 1e-3, 1e-3,
                     {"sparse": (1.0,), "units": (1.0,)})}


def lenet(setting: Setting) -> nn.Sequential:
    """Two convolutions with max pooling, and two linear layers.

    Args:
        setting: gives the sizes.

    Returns:
        nn.Sequential: takes images ``(N, 1, side, side)``, and gives ten logits.
    """
    (first, second, hidden), (one, two), (near, far) = setting.sizes, setting.kernels, setting.pools
    side = ((setting.side - one + 1) // near - two + 1) // far
    return nn.Sequential(
        nn.Conv2d(1, first, one), nn.ReLU(), nn.MaxPool2d(near), nn.Conv2d(first, second, two), nn.ReLU(),
        nn.MaxPool2d(far), nn.Flatten(), nn.Linear(second * side**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def _data(experiment: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    setting = SETTINGS[experiment]
    parts = digits(setting.train, seed=seed) if experiment == "digits" else mnist()
    images = [part.reshape(-1, 1, setting.side, setting.side) for part in (parts[0], parts[2])]
    return images[0], parts[1], images[1], parts[3]


def score(run: Run) -> list[float]:
    """Trains a network, prunes it in every way, and measures what is left.

    Args:
        run: what to train.

    Returns:
        list[float]: for each network of the table what its rows name.
    """
    torch.set_num_threads(1)
    setting = SETTINGS[run.experiment]
    inputs, labels, test, answers = _data(run.experiment, run.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        trained = _train(lenet(setting), inputs, labels, setting)
        start = {name: value.clone() for name, value in trained.state_dict().items()}

        def go_on(change: Callable[[nn.Sequential], nn.Module] | None = None, **options: Any) -> nn.Module:
            torch.manual_seed(run.seed + 1000)  # of batches and noise
            model = lenet(setting)
            model.load_state_dict(start)
            return _train(change(model) if change else model, inputs, labels, setting, **options)

        found = {("none", 0.0): _measure(go_on(), test, answers)}
        for method, name in METHODS.items():
            for strength in setting.strengths[method]:
                noisy = go_on(_NOISY[method], strength=strength)
                found[name, strength] = _measure(noisy, test, answers)
                found[_BESIDE[method], strength] = _measure(
                    go_on(zeros=_ZEROS[method](noisy, start)), test, answers)
    return [value for values in found.values() for value in values]


def _train(model: nn.Module, inputs: Tensor, labels: Tensor, setting: Setting, strength: float = 0.0,
           zeros: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Adam with a step size that falls to zero; the divergence comes in during the first half."""
    weights, noise = parameter_groups(model, 0.0)
    optimizer = torch.optim.Adam([weights, noise | {"lr": setting.noise_rate}], lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / setting.steps)
    model.train()
    for step in range(setting.steps):
        _set_zero(model, zeros)
        batch = torch.randint(len(inputs), (setting.batch,))
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        if strength:
            loss = loss + strength * warm_up(step, 0, setting.steps / 2) * kl_divergence(model) / len(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _set_zero(model, zeros)
    return model.eval()


@torch.no_grad()
def _set_zero(model: nn.Module, zeros: Mapping[str, Tensor] | None) -> None:
    for name, zero in (zeros or {}).items():
        model.get_parameter(name)[zero] = 0


def _with_noisy_weights(model: nn.Sequential) -> nn.Module:
    return replace(model, {nn.Conv2d: SparseVariationalConv2d.from_conv,
                           nn.Linear: SparseVariationalLinear.from_linear})


def _with_noisy_units(model: nn.Sequential) -> nn.Module:
    layers: list[nn.Module] = []
    for layer, behind in zip(model, [*list(model)[1:], None], strict=True):
        layers.append(layer)
        if isinstance(behind, nn.ReLU):
            layers.append(LogNormalDropout(len(layer.weight)))  # type: ignore[arg-type]
    return nn.Sequential(*layers)


_NOISY: dict[str, Callable[[nn.Sequential], nn.Module]] = {"sparse": _with_noisy_weights, "units": _with_noisy_units}


def _zero_weights(noisy: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The smallest weights of the whole network, as many as the method has set to zero."""
    names = [name for name in start if name.endswith("weight")]
    layers = [layer for layer in noisy.modules() if isinstance(layer, (SparseVariationalConv2d,
                                                                       SparseVariationalLinear))]
    count = sum(int((~layer.keep).sum()) for layer in layers)
    sizes = torch.cat([start[name].abs().flatten() for name in names])
    limit = sizes.sort().values[count - 1] if count else torch.tensor(-1.0)
    return {name: start[name].abs() <= limit for name in names}


def _zero_units(noisy: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In each layer the units with the shortest weight vectors, as many as the method has set to zero."""
    zeros = {}
    names = [name for name in start if name.endswith("weight")]
    for name, layer in zip(names, (layer for layer in noisy.modules() if isinstance(layer, LogNormalDropout)),
                           strict=False):
        unit = torch.zeros(layer.num_features, dtype=torch.bool)
        unit[start[name].flatten(1).norm(dim=1).argsort()[:int((~layer.kept).sum())]] = True
        zeros[name] = zeros[name.replace("weight", "bias")] = unit
    return zeros


_ZEROS = {"sparse": _zero_weights, "units": _zero_units}

_QUANTITIES = ("error, %", "weights that are not zero", "parameters", "FLOPs of an image", "units of conv1",
               "units of conv2", "units of fc1", "ms before", "ms after")


def _measure(model: nn.Module, test: Tensor, answers: Tensor) -> list[float]:
    """What ``_QUANTITIES`` names, of the smaller network; times are those of 64 images."""
    smaller, report = compress(model, test[:64])
    weights = [parameter for name, parameter in smaller.named_parameters() if name.endswith("weight")]
    return [100 * (1 - accuracy(smaller, test, answers)), sum(int((weight != 0).sum()) for weight in weights),
            report.parameters.after, report.flops.after / 64,
            *[len(units.kept) for units in report.layers.values()][:3], *(1e3 * seconds for seconds in report.seconds)]


def units_left(scores: Mapping[Key, Scores], method: str, strength: float) -> list[float]:
    """Mean number of units of the hidden layers that are left.

    Args:
        scores: as they stand in the table.
        method: as it stands there.
        strength: weight of the divergence.

    Returns:
        list[float]: for both convolutions and the first linear layer.
    """
    return [statistics.mean(scores[f"units of {layer}", method, strength, "-"].values())
            for layer in ("conv1", "conv2", "fc1")]


def _keys(run: Run) -> list[Key]:
    """Where the scores of a run stand in the table."""
    strengths = SETTINGS[run.experiment].strengths
    networks = [("none", 0.0), *((name, strength) for method in METHODS for strength in strengths[method]
                                 for name in (METHODS[method], _BESIDE[method]))]
    return [(quantity, name, strength, "-") for name, strength in networks for quantity in _QUANTITIES]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    parser = arguments_of("compression", __doc__, seeds=5)
    parser.add_argument("experiment", choices=sorted(SETTINGS))
    return fill(parser, arguments, lambda options: Plan(
        "compression" if options.experiment == "digits" else options.experiment, _about(options.experiment),
        [Run(options.experiment, seed) for seed in range(options.seeds)], _keys, score, processor("cpu")))



def _about(experiment: str) -> tuple[str, str]:
    setting = SETTINGS[experiment]
    return (f"twice {setting.steps} updates of {setting.batch} of {setting.train} images, Adam from "
            f"{setting.learning_rate:g}, of the noise from {setting.noise_rate:g}",
            "a column for each seed; p stands for the weight of the divergence; times are those of 64 images, on one "
            "thread of a machine that had other work")


if __name__ == "__main__":
    sys.exit(main())
