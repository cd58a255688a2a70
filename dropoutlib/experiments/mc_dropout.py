"""What Monte Carlo dropout gains over one pass: ``python -m dropoutlib.experiments.mc_dropout``.

On digits networks learn eight classes from few labels, and meet test digits, test digits that are turned, and the two
classes that they never saw. On the diabetes data they predict a number with a central 90 % interval. Metrics are those
of ``torchmetrics``; of each, lower is better, but for the accuracy, the areas (AUROC) and the coverage, which should be
0.9.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dropoutlib import Dropout, predict

from .data import diabetes, digits
from .paired import Key, Plan, arguments_of, fill
from .training import fit, mlp

__all__ = ["KNOWN", "METHODS", "Run", "digits_network", "known_digits", "main", "score", "turned"]

KNOWN, _LABELS, _STEPS, _SAMPLES, _MEMBERS, _ANGLE = 8, 250, 600, 100, 5, 45
_P, _P_REGRESSION = 0.5, 0.1
METHODS = ("test rule", "MC, all layers", "MC, last layer", "5 networks")
_INTERVALS = ("spread alone", "spread and 1/tau", "test rule and 1/tau")
_OF_DIGITS = ("accuracy", "NLL", "ECE", "NLL turned", "ECE turned", "AUROC unseen, entropy", "AUROC unseen, MI")
_OF_DIABETES = ("NLL", "coverage", "width")
_KEYS: dict[str, list[Key]] = {
    "digits": [("digits", method, _P, name) for method in METHODS for name in _OF_DIGITS
               if not (method == METHODS[0] and name == _OF_DIGITS[-1])],  # one pass has no mutual information
    "diabetes": [("diabetes", name, _P_REGRESSION, metric) for name in _INTERVALS for metric in _OF_DIABETES]}
_ABOUT = (f"digits: {_LABELS} labels of {KNOWN} classes, turned by {_ANGLE} degrees; {_STEPS} updates, {_SAMPLES} "
          "samples", "a column for each seed")


class Run(NamedTuple):
    """One split, with its networks."""

    data: str
    seed: int


def known_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Digits of the known classes to learn and to test with, and test digits of the others.

    Args:
        seed: of the split.

    Returns:
        tuple: inputs and labels for training, the same for testing, inputs of the unseen classes.
    """
    split = digits(1000, seed=seed)
    learnt, tested = split.train_labels < KNOWN, split.test_labels < KNOWN
    return (split.train_inputs[learnt][:_LABELS], split.train_labels[learnt][:_LABELS], split.test_inputs[tested],
            split.test_labels[tested], split.test_inputs[~tested])


def turned(inputs: Tensor, degrees: float = _ANGLE) -> Tensor:
    """Digits turned about their centre.

    Args:
        inputs: of shape (N, 64).
        degrees: by how much.

    Returns:
        Tensor: of the same shape, by bilinear interpolation.
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[[c, -s, 0.0], [s, c, 0.0]]], dtype=inputs.dtype).expand(len(inputs), 2, 3)
    grid = nn.functional.affine_grid(turn, [len(inputs), 1, 8, 8], align_corners=False)
    return nn.functional.grid_sample(inputs.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def digits_network(seed: int, p: float = _P) -> nn.Sequential:
    """A network with two hidden layers, trained on the known digits of a split.

    Args:
        seed: of the split, the weights and the masks.
        p: probability of dropping a hidden unit.

    Returns:
        nn.Sequential: in evaluation.
    """
    inputs, labels, *_ = known_digits(seed % 1000)
    network = fit(lambda: mlp(64, 128, 128, KNOWN, dropout=lambda: Dropout(p)), inputs, labels, steps=_STEPS,
                  seed=seed, batch_size=50, learning_rate=0.05)
    assert isinstance(network, nn.Sequential)
    return network


def _last_only(network: nn.Sequential) -> nn.Sequential:
    """The same weights, with the last dropout alone."""
    others = [module for module in network if isinstance(module, Dropout)][:-1]
    return nn.Sequential(*(nn.Identity() if module in others else module for module in network))


def _beliefs(network: nn.Sequential, members: Sequence[nn.Sequential], method: str, x: Tensor
             ) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probabilities, entropy, and mutual information."""
    with torch.no_grad():
        if method.startswith("MC"):
            model = network if method == METHODS[1] else _last_only(network)
            found = predict(model, x, _SAMPLES, task="classification", generator=torch.Generator().manual_seed(0))
            return found.mean, found.entropy, found.mutual_information
        p = torch.stack([model(x).softmax(-1) for model in ([network] if method == METHODS[0] else members)])
        entropy, own = torch.special.entr(p.mean(0)).sum(-1), torch.special.entr(p).sum(-1).mean(0)
        return p.mean(0), entropy, entropy - own


def _score_digits(seed: int) -> list[float]:
    from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

    *_, x, y, unseen = known_digits(seed)
    members = [digits_network(seed + 1000 * member) for member in range(_MEMBERS)]
    scores: list[float] = []
    for method in METHODS:
        (p, entropy, information), (tilted, *_), (_, strange, strange_information) = (
            _beliefs(members[0], members, method, inputs) for inputs in (x, turned(x), unseen))
        is_unseen = torch.cat([torch.zeros(len(x)), torch.ones(len(unseen))]).long()

        def area(known: Tensor, other: Tensor, truth: Tensor = is_unseen) -> float:
            both = torch.cat([known, other])
            return float(binary_auroc(both / both.abs().max().clamp(min=1e-12), truth))

        scores.append((p.argmax(-1) == y).float().mean().item())
        for belief in (p, tilted):
            scores += [nn.functional.nll_loss(belief.clamp(min=1e-12).log(), y).item(),
                       float(multiclass_calibration_error(belief, y, KNOWN, 15))]
        scores.append(area(entropy, strange))
        if method != METHODS[0]:
            scores.append(area(information, strange_information))
    return scores


def _score_diabetes(seed: int) -> list[float]:
    inputs, targets = (part.float() for part in diabetes())
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    learn, hold, test = order[:200], order[200:300], order[300:]
    network = fit(lambda: mlp(10, 50, 1, dropout=lambda: Dropout(_P_REGRESSION)), inputs[learn],
                  targets[learn].unsqueeze(1), steps=_STEPS, seed=seed, batch_size=50, learning_rate=0.02,
                  loss=nn.functional.mse_loss, weight_decay=1e-2)
    held, tested = (predict(network, inputs[part], _SAMPLES, generator=torch.Generator().manual_seed(0))
                    for part in (hold, test))
    y = targets[test]
    with torch.no_grad():
        one, of_held = network(inputs[test]).squeeze(1), network(inputs[hold]).squeeze(1)
    spread = tested.variance.squeeze(1)
    noise = _observation_variance(targets[hold] - held.mean.squeeze(1), held.variance.squeeze(1))
    average = tested.mean.squeeze(1)
    laws = ((average, spread), (average, spread + noise),
            (one, (targets[hold] - of_held).square().mean().expand(len(y))))  # those of _INTERVALS
    scores: list[float] = []
    for mean, variance in laws:
        half = 1.6448536 * variance.sqrt()
        scores += [nn.functional.gaussian_nll_loss(mean, y, variance, full=True).item(),
                   ((y - mean).abs() <= half).float().mean().item(), (2 * half).mean().item()]
    return scores


def _observation_variance(residual: Tensor, spread: Tensor) -> Tensor:
    """1/tau with the largest likelihood of held-out targets, on a grid."""
    grid = torch.logspace(-3, 1, 400)
    variance = spread + grid.unsqueeze(1)
    return grid[(variance.log() + residual.square() / variance).sum(1).argmin()]


def score(run: Run) -> list[float]:
    """Trains the networks of a split and measures every method.

    Args:
        run: what to measure.

    Returns:
        list[float]: in the order of the table.
    """
    torch.set_num_threads(1)
    measure = _score_digits if run.data == "digits" else _score_diabetes
    return measure(run.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    return fill(arguments_of("mc_dropout", __doc__, seeds=10), arguments, lambda options: Plan(
        "mc_dropout", _ABOUT, [Run(data, seed) for data in _KEYS for seed in range(options.seeds)],
        lambda run: _KEYS[run.data], score))



if __name__ == "__main__":
    sys.exit(main())
