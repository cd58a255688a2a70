"""What every method costs: against torch's own operation, against what one writes by hand, and against the floor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropoutlib
from dropoutlib.benchmark.timing import allocated, markdown, milliseconds, ratio, timer, turns, where

__all__ = ["methods_table"]

_SECONDS = 4.0      # that the rounds of one method take, about
_ELEMENTS, _MAPS, _SEQUENCE = (1024, 1024), (32, 64, 32, 32), (100, 64, 256)
_BATCH, _FEATURES, _WORDS = 128, 512, 10_000


@dataclass
class Case:
    """One row: a layer, and what it is held against.

    Attributes:
        name: the call, as one writes it.
        x: the input.
        layer: the layer of the library.
        floor: what the layer costs at least: the same without noise; for noise on elements one multiplication.
        composition: the same noise as one writes it with torch's operations.
        native: torch's own operation for it.
        owner: whose parameters get gradients.
        backward: whether gradients are computed.
    """

    name: str
    x: Tensor
    layer: Callable[[Tensor], Tensor]
    floor: Callable[[Tensor], Tensor]
    composition: Callable[[Tensor], Tensor] | None = None
    native: Callable[[Tensor], Tensor] | None = None
    owner: nn.Module = field(default_factory=nn.Module)
    backward: bool = True

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Those that there are."""
        every = {"layer": self.layer, "native": self.native, "composition": self.composition, "floor": self.floor}
        return {name: function for name, function in every.items() if function is not None}


def _double(x: Tensor) -> Tensor:
    return x * 2


def _keep(x: Tensor, p: float, shape: Sequence[int] | None = None) -> Tensor:
    return torch.rand(x.shape if shape is None else shape, device=x.device) >= p


def _on_elements(device: str) -> Iterator[Case]:
    x = torch.randn(_ELEMENTS, device=device, requires_grad=True)
    for p in (0.5, 0.3, 0.1):
        def selecting(x: Tensor, p: float = p) -> Tensor:
            return torch.where(_keep(x, p), x / (1 - p), 0)

        yield Case(f"Dropout({p})", x, dropoutlib.Dropout(p), _double, selecting, partial(F.dropout, p=p))
    yield Case("GaussianDropout(0.5)", x, dropoutlib.GaussianDropout(0.5), _double,
               lambda x: x * (1 + torch.randn_like(x)))
    limit = -1.7580993408473766
    a = (0.5 + limit**2 / 4) ** -0.5
    yield Case("AlphaDropout(0.5)", x, dropoutlib.AlphaDropout(0.5), _double,
               lambda x: torch.where(_keep(x, 0.5), a * x - a * limit / 2, a * limit / 2),
               partial(F.alpha_dropout, p=0.5, training=True))
    yield Case("StochasticRateDropout()", x, dropoutlib.StochasticRateDropout(), _double,
               lambda x: F.dropout(x, 0.5 * torch.rand(()).item()))
    yield Case("Swapout(Identity())", x, dropoutlib.Swapout(nn.Identity()), lambda x: x + x,
               lambda x: x * _keep(x, 0.5) + x * _keep(x, 0.5))
    behind = torch.arange(_ELEMENTS[1], device=device)
    yield Case("NestedDropout(1.0)", x, dropoutlib.NestedDropout(1.0), _double,
               lambda x: x * (behind < torch.randint(1, _ELEMENTS[1] + 1, (len(x), 1), device=x.device)))
    noise = dropoutlib.LogNormalDropout(_ELEMENTS[1], device=device)

    def log_normal(x: Tensor) -> Tensor:     # without the bounds of the law
        return x * torch.exp(noise.mu + noise.log_s.exp() * torch.randn_like(x))

    yield Case(f"LogNormalDropout({_ELEMENTS[1]})", x, noise, _double, log_normal, owner=noise)


def _on_weights(device: str) -> Iterator[Case]:
    x = torch.randn(_BATCH, _FEATURES, device=device, requires_grad=True)
    sizes = f"({_FEATURES}, {_FEATURES}"

    def case(layer: Any, name: str, composition: Callable[[Any, Tensor], Tensor],
             native: Callable[[Any, Tensor], Tensor] | None = None) -> Case:
        def bound(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda x: function(layer, x)

        return Case(name, x, layer, bound(lambda m, x: F.linear(x, m.weight, m.bias)), bound(composition),
                    None if native is None else bound(native), owner=layer)

    yield case(dropoutlib.StandoutLinear(_FEATURES, _FEATURES, device=device), f"StandoutLinear{sizes})", lambda m, x: (
        h := F.linear(x, m.weight, m.bias)).relu() * torch.bernoulli(h.detach().sigmoid()))
    yield case(dropoutlib.LoRALinear(_FEATURES, _FEATURES, device=device), f"LoRALinear{sizes})", lambda m, x: F.linear(
        x, m.weight, m.bias) + m.scale * (x * _keep(x, m.p) / (1 - m.p) @ m.lora_A.T @ m.lora_B.T))
    for p in (0.5, 0.3):
        yield case(dropoutlib.DropConnectLinear(_FEATURES, _FEATURES, p=p, device=device),
                   f"DropConnectLinear{sizes}, p={p})", lambda m, x: torch.einsum(
                       "bi,boi->bo", x, m.weight / (1 - m.p) * _keep(x, m.p, (len(x), *m.weight.shape))) + m.bias)
    yield case(dropoutlib.TargetedDropoutLinear(_FEATURES, _FEATURES, device=device),
               f"TargetedDropoutLinear{sizes})", lambda m, x: F.linear(x, m.weight * (
                   (m.weight.abs() > m.weight.abs().median(1, keepdim=True).values) | _keep(x, 0.5, m.weight.shape)),
                   m.bias))
    yield case(dropoutlib.FastDropoutLinear(_FEATURES, _FEATURES, device=device), f"FastDropoutLinear{sizes})",
               lambda m, x: (z := F.linear(x, m.weight, m.bias)) + F.linear(
                   x.square(), m.weight.square()).sqrt() * torch.randn_like(z),
               lambda m, x: F.linear(F.dropout(x, m.p), m.weight, m.bias))

    def relaxed(m: Any, x: Tensor) -> Tensor:
        p, u, eps = m.p_logit.sigmoid(), torch.rand_like(x), 1e-7
        z = torch.log(p + eps) - torch.log(1 - p + eps) + torch.log(u + eps) - torch.log(1 - u + eps)
        return F.linear(x * (1 - torch.sigmoid(z / 0.1)) / (1 - p), m.module.weight, m.module.bias)

    concrete = dropoutlib.ConcreteDropout(nn.Linear(_FEATURES, _FEATURES, device=device))
    yield Case(f"ConcreteDropout(Linear{sizes}))", x, concrete, concrete.module, partial(relaxed, concrete),
               owner=concrete)
    layer = dropoutlib.LayerDrop(nn.Linear(_FEATURES, _FEATURES, device=device), skip=False)
    yield Case(f"LayerDrop(Linear{sizes}), skip=False)", x, layer, layer.module, lambda x: torch.where(
        _keep(x, layer.p, (1, 1)), layer.module(x), x), owner=layer)
    yield case(dropoutlib.VariationalDropoutLinear(_FEATURES, _FEATURES, device=device),
               f"VariationalDropoutLinear{sizes})", lambda m, x: (z := F.linear(x, m.weight, m.bias)) + F.linear(
                   x.square(), m.weight.square() * m.log_alpha.exp()).sqrt() * torch.randn_like(z))
    yield case(dropoutlib.SparseVariationalLinear(_FEATURES, _FEATURES, device=device),
               f"SparseVariationalLinear{sizes})", lambda m, x: (z := F.linear(x, m.weight, m.bias)) + F.linear(
                   x.square(), m.log_sigma2.exp()).sqrt() * torch.randn_like(z))


def _on_maps(device: str) -> Iterator[Case]:
    x = torch.randn(_MAPS, device=device).relu_().requires_grad_()
    maps = (*_MAPS[:2], 1, 1)
    yield Case("SpatialDropout2d(0.5)", x, dropoutlib.SpatialDropout2d(0.5), _double,
               lambda x: torch.where(_keep(x, 0.5, maps), x * 2, 0), lambda x: F.dropout2d(x, 0.5))
    for size, stride, padding in ((2, 2, 0), (3, 2, 1)):
        layer = dropoutlib.MaxPoolDropout2d(size, stride, padding, p=0.5)
        evaluated = dropoutlib.MaxPoolDropout2d(size, stride, padding, p=0.5).eval()

        def pool(x: Tensor, size: int = size, stride: int = stride, padding: int = padding) -> Tensor:
            return F.max_pool2d(x, size, stride, padding)

        def expected(x: Tensor, size: int = size, stride: int = stride, padding: int = padding) -> Tensor:
            elements = F.unfold(x.flatten(0, 1).unsqueeze(1), size, 1, padding, stride).sort(1, descending=True).values
            mean = (0.5 ** torch.arange(1, size**2 + 1, device=x.device) @ elements)
            return mean.view(*x.shape[:2], *[(length + 2 * padding - size) // stride + 1 for length in x.shape[2:]])

        def dropped(x: Tensor, pool: Callable[[Tensor], Tensor] = pool) -> Tensor:
            return pool(x * _keep(x, 0.5))

        yield Case(f"MaxPoolDropout2d({size}, {stride}, {padding})", x, layer, pool, dropped)
        yield Case(f"MaxPoolDropout2d({size}, {stride}, {padding}).eval(), forward", x.detach(), evaluated, pool,
                   expected, backward=False)
    yield Case("AvgPoolDropout2d(2)", x, dropoutlib.AvgPoolDropout2d(2), lambda x: F.avg_pool2d(x, 2),
               native=lambda x: F.avg_pool2d(F.dropout(x, 0.5), 2))

    def stochastic(x: Tensor) -> Tensor:
        windows = F.unfold(x.flatten(0, 1).unsqueeze(1), 2, stride=2).transpose(1, 2).flatten(0, 1)
        index = torch.multinomial(windows.detach() + 1e-12, 1)
        return windows.gather(1, index).view(*x.shape[:2], *[length // 2 for length in x.shape[2:]])

    yield Case("StochasticPool2d(2)", x, dropoutlib.StochasticPool2d(2), lambda x: F.max_pool2d(x, 2), stochastic)

    def blocks_dropped(x: Tensor, p: float = 0.1, size: int = 7) -> Tensor:
        height, width = (length - size + 1 for length in x.shape[2:])
        gamma = p / size**2 * x.shape[2] * x.shape[3] / (height * width)
        seeds = torch.bernoulli(torch.full((*x.shape[:2], height, width), gamma, device=x.device))
        keep = 1 - F.max_pool2d(F.pad(seeds, [size // 2] * 4), size, 1, size // 2)
        return x * keep * (keep.numel() / keep.sum())

    yield Case("DropBlock2d(0.1, 7)", x, dropoutlib.DropBlock2d(0.1, 7), _double, blocks_dropped)

    def largest_dropped(x: Tensor) -> Tensor:
        largest = x == x.amax((2, 3), keepdim=True)
        return x.masked_fill(largest & ~_keep(x, 0.1, maps), 0)

    yield Case("MaxDrop(0.1)", x, dropoutlib.MaxDrop(0.1), _double, largest_dropped)

    def with_holes(x: Tensor) -> Tensor:
        holes = torch.ones(len(x), 1, *x.shape[2:], device=x.device)
        for hole in holes:
            row, column = torch.randint(x.shape[2], (2,)).tolist()
            hole[:, max(row - 4, 0):row + 4, max(column - 4, 0):column + 4] = 0
        return x * holes

    yield Case("Cutout(8)", x, dropoutlib.Cutout(8), _double, with_holes)
    for branch in (dropoutlib.StochasticDepth, dropoutlib.DropPath):
        yield Case(f"{branch.__name__}(0.2)", x, branch(0.2), _double,
                   lambda x: x * (_keep(x, 0.2, (len(x), 1, 1, 1)) / 0.8))
    condition = dropoutlib.ConditionDropout(_MAPS[1:], device=device)
    yield Case(f"ConditionDropout({_MAPS[1:]})", x, condition, _double,
               lambda x: torch.where(_keep(x, 0.1, (len(x), 1, 1, 1)), x, condition.null), owner=condition)

    def shaken(x: Tensor) -> Tensor:
        rows = (len(x), 1, 1, 1)
        keep, alpha, beta = (torch.rand(rows, device=x.device) for _ in range(3))
        forward, backward = (torch.where(keep >= 0.2, 1, factor) for factor in (2 * alpha - 1, beta))
        return backward * x + ((forward - backward) * x).detach()

    yield Case("ShakeDrop(0.2)", x, dropoutlib.ShakeDrop(0.2), _double, shaken)


def _on_sequences(device: str) -> Iterator[Case]:
    x = torch.randn(_SEQUENCE, device=device, requires_grad=True)
    yield Case("LockedDropout(0.5)", x, dropoutlib.LockedDropout(0.5), _double,
               lambda x: x * (_keep(x, 0.5, (1, *x.shape[1:])) * 2))
    yield Case("NEFTune(5)", x, dropoutlib.NEFTune(5), _double,
               lambda x: x + torch.empty_like(x).uniform_(-1, 1) * 5 / (x.shape[1] * x.shape[2]) ** 0.5)

    def some(x: Tensor) -> Tensor:
        kept = torch.rand(x.shape[:2], device=x.device).argsort(1)[:, :(x.shape[1] + 1) // 2].sort(1).values
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[2]))

    yield Case("PatchDropout(0.5, 0)", x, dropoutlib.PatchDropout(0.5, 0),
               lambda x: x[:, :(x.shape[1] + 1) // 2].clone(), some)
    words = torch.randint(_WORDS, _SEQUENCE[:2], device=device)
    embedding = dropoutlib.EmbeddingDropout(_WORDS, _SEQUENCE[2], p=0.1, device=device)
    yield Case(f"EmbeddingDropout({_WORDS}, {_SEQUENCE[2]})", words, embedding,
               lambda x: F.embedding(x, embedding.weight),
               lambda x: F.embedding(x, embedding.weight * (_keep(words, 0.1, (_WORDS, 1)) / 0.9)), owner=embedding)


def methods_table(device: str = "cpu", only: str = "", seconds: float = _SECONDS) -> str:
    """Times and memory of the layers in training, those that a pool has in evaluation too, forward and backward.

    Args:
        device: where the tensors lie.
        only: part of the names of the rows that are measured; all by default.
        seconds: that each row may take, about; at least five rounds, at most 25.

    Returns:
        Two Markdown tables, of times and of memory, under a line that says where they were measured.

    Raises:
        ValueError: if no row has such a name.
    """
    rows = []
    for cases in (_on_elements, _on_weights, _on_maps, _on_sequences):
        for case in cases(device):
            if only.lower() in case.name.lower():
                print(case.name, file=sys.stderr, flush=True)
                rows.append(_row(case, seconds))
    if not rows:
        raise ValueError(f"only has to be part of the name of a layer, but got {only!r}")
    return "\n".join([
        f"{where(device)}; float32, forward and backward but where it says forward.", "",
        *markdown(["layer", "ms", "times as fast as torch's own", "as the composition", "times the floor's time"],
                  [times for times, _ in rows]), "", "Memory in MiB:", "",
        *markdown(["layer", "peak", "of torch's own", "of the composition", "of the floor", "kept for backward"],
                  [memory for _, memory in rows])])


def _row(case: Case, seconds: float) -> tuple[list[str], list[str]]:
    """Of both tables."""
    variants = case.variants()
    timers = {name: timer(function, case.x, list(case.owner.parameters()), case.backward)
              for name, function in variants.items()}
    once = sum(run(1) for run in timers.values())
    times = turns(timers, min(25, max(5, int(seconds / max(once, 1e-9)))))
    memory = {name: allocated(function, case.x, list(case.owner.parameters()), case.backward)
              for name, function in variants.items()}
    ours = times["layer"]

    def faster(name: str) -> str:
        return f"{ratio(times[name], ours):.2f}" if name in times else "–"

    def peak(name: str) -> str:
        return f"{memory[name].peak / 2**20:.1f}" if name in memory else "–"

    name, kept = f"`{case.name}`", f"{memory['layer'].kept / 2**20:.1f}" if case.backward else "–"
    return ([name, milliseconds(ours), faster("native"), faster("composition"), f"{ratio(ours, times['floor']):.2f}"],
            [name, *map(peak, ("layer", "native", "composition", "floor")), kept])
