"""How many weights of a dense network digits need: ``python -m dropoutlib.experiments.sparsity``.

A network 64-300-100-10 is trained on 1000 digits of scikit-learn, and then for 2000 updates more: as it is, with sparse
variational dropout (the weight of the divergence grows from 0 to 1 over the first quarter, or is 1 at once), or with
the weights of the smallest size set to zero, as many as sparse variational dropout has set to zero. Their share grows
over the first half of the updates, as 1 - (1 - t)^3, and the rest trains on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib.bayesian.sparse_variational_dropout import SparseVariationalLinear
from dropoutlib.divergence import kl_divergence
from dropoutlib.surgery import replace
from dropoutlib.training import warm_up

from .data import digits
from .paired import Key, Plan, arguments_of, fill
from .training import accuracy, mlp

__all__ = ["METHODS", "Run", "main", "score"]

_SIZES, _LABELS, _BATCH, _FIRST, _MORE, _RATE = (64, 300, 100, 10), 1000, 100, 500, 2000, 3e-3
METHODS = ("none", "warm-up", "at once", "magnitude")
_ROWS = ("test errors", "training errors", *(f"weights in layer {layer}" for layer in (1, 2, 3)))
_ABOUT = (f"{_FIRST} and {_MORE} updates on {_LABELS} digits", "a column for each seed: errors in percent, and weights "
          "that are not zero; p is the weight of the divergence")


class Run(NamedTuple):
    """All trainings from one split and one start."""

    seed: int


def score(run: Run) -> list[float]:
    """Trains a network, and prunes it in every way.

    Args:
        run: which seed.

    Returns:
        list[float]: for each method errors in percent and the weights that are left in each layer.
    """
    torch.set_num_threads(1)
    data = digits(_LABELS, seed=run.seed)
    inputs, labels = data.train_inputs, data.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        trained = mlp(*_SIZES)
        _train(trained, inputs, labels, _FIRST, 1e-3)

        def go_on(method: str, zeros: int = 0) -> nn.Module:
            torch.manual_seed(run.seed + 1000)  # of batches and noise
            model: nn.Module = mlp(*_SIZES)
            model.load_state_dict(trained.state_dict())
            if method not in ("warm-up", "at once"):
                return _train(model, inputs, labels, _MORE, _RATE, prune=lambda t: _prune(model, zeros, t))
            model = replace(model, {nn.Linear: SparseVariationalLinear.from_linear})
            warm = _MORE / 4 if method == "warm-up" else 0
            return _train(model, inputs, labels, _MORE, _RATE, strength=lambda step: warm_up(step, 0, warm))

        models = {method: go_on(method) for method in METHODS[:3]}
        models["magnitude"] = go_on("magnitude", sum(len(kept) - int(kept.sum()) for kept in _kept(models["warm-up"])))
    scores = []
    for model in models.values():
        errors = [100 * (1 - accuracy(model, *parts)) for parts in ((data.test_inputs, data.test_labels),
                                                                    (inputs, labels))]
        scores += [*errors, *(int(kept.sum()) for kept in _kept(model))]
    return scores


def _keys(run: Run) -> list[Key]:
    return [("-".join(map(str, _SIZES)), method, float(method in ("warm-up", "at once")), row)
            for method in METHODS for row in _ROWS]


def _train(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, rate: float,
           strength: Callable[[int], float] | None = None, prune: Callable[[float], None] | None = None) -> nn.Module:
    """Adam with a step size that falls to zero."""
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = warm_up(step, 0, steps, first=rate, last=0.0)
        batch = torch.randint(len(inputs), (_BATCH,))
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        if strength is not None:
            loss = loss + strength(step) * kl_divergence(model) / len(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if prune is not None:
            prune((step + 1) / steps)
    return model.eval()


def _weights(model: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _prune(model: nn.Module, zeros: int, time: float) -> None:
    """Sets the weights of the smallest size to zero: of ``zeros`` a share that grows with the time."""
    count = round(zeros * (1 - (1 - min(2 * time, 1)) ** 3))
    if count:
        weights = _weights(model)
        limit = torch.cat([weight.abs().flatten() for weight in weights]).kthvalue(count).values
        for weight in weights:
            weight[weight.abs() <= limit] = 0


def _kept(model: nn.Module) -> list[Tensor]:
    """For each layer, which weights evaluation multiplies with."""
    return [(layer.keep if isinstance(layer, SparseVariationalLinear) else layer.weight != 0).flatten()
            for layer in model.modules() if isinstance(layer, nn.Linear)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    return fill(arguments_of("sparsity", __doc__, seeds=5), arguments, lambda options: Plan(
        "sparsity", _ABOUT, [Run(seed) for seed in range(options.seeds)], _keys, score))



if __name__ == "__main__":
    sys.exit(main())
