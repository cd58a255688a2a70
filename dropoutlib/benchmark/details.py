"""Tables of single methods against what they replace, over sizes and rates."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import dropoutlib
from dropoutlib import DropConnectLinear
from dropoutlib.benchmark.timing import markdown, milliseconds, ratio, seconds_of, timer, turns, where
from dropoutlib.functional import dropout, gaussian_dropout, max_pool_dropout2d, spatial_dropout2d

__all__ = ["cost_table", "dropconnect_table", "maps_table", "measure", "prediction_table", "recurrent_table",
           "sizes_table"]

Function = Callable[[Tensor], Tensor]
_SECONDS = 2e-3  # of repetitions that one timing covers, so that the clock's own resolution does not matter
_EXPONENTS = (8, 10, 12, 13, 14, 16, 18, 20)
_POWERS = range(9)  # of ten
_MAPS = ((32, 64, 32, 32), (128, 32, 16, 16), (16, 64, 56, 56))
_SEQUENCES = ((100, 64, 256), (100, 16, 64))
_RECURRENT = ("RNNDropLSTM", "RecurrentDropoutLSTM", "VariationalLSTM", 'VariationalLSTM(gates="untied")',
              "ZoneoutLSTM", "WeightDropLSTM", "RecurrentDropoutGRU", "VariationalGRU",
              'VariationalGRU(gates="untied")', "ZoneoutGRU", "WeightDropGRU")
_ROWS = ("Dropout, p = 0.5", "Dropout, p = 0.3", "Gaussian dropout, p = 0.5", "x * 2")


def _composition(x: Tensor) -> Tensor:
    """Gaussian dropout as one writes it: p = 0.5, so a standard deviation of 1."""
    return x * (1 + 1.0 * torch.randn_like(x))


def _pairs() -> dict[str, tuple[Function, Function]]:
    """For each row of the table the function compared against, and the one measured."""
    half: Function = lambda x: F.dropout(x, 0.5)  # noqa: E731
    return dict(zip(_ROWS, (
        (half, lambda x: dropout(x, 0.5)),
        (lambda x: F.dropout(x, 0.3), lambda x: dropout(x, 0.3)),
        (_composition, lambda x: gaussian_dropout(x, 0.5)),
        (half, lambda x: x * 2),
    ), strict=True))


def measure(size: int, device: str = "cpu", rounds: int = 25) -> dict[str, tuple[float, float]]:
    """Compares every pair on ``size`` elements.

    Args:
        size: number of elements.
        device: where the tensors lie.
        rounds: how often each variant is timed; the variants take turns.

    Returns:
        For each row of the table (median of the ratios of reference time to measured time, microseconds that
        the measured function takes longer, least time against least time).
    """
    x = torch.randn(size, device=device, requires_grad=True)
    timers = {name: tuple(timer(function, x) for function in pair) for name, pair in _pairs().items()}
    repetitions = 1 + int(_SECONDS / max(timer(3) for pair in timers.values() for timer in pair))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, (reference, measured) in timers.items():
            seconds[name].append((reference(repetitions), measured(repetitions)))
    return {name: (statistics.median(a / b for a, b in times),
                   1e6 * (min(b for _, b in times) - min(a for a, _ in times)))
            for name, times in seconds.items()}


def sizes_table(sizes: Sequence[int] | None = None, device: str = "cpu") -> str:
    """Measures all sizes.

    Args:
        sizes: numbers of elements, powers of two; by default from 2^8 to 2^20.
        device: where the tensors lie.

    Returns:
        Two Markdown tables (ratios, additional microseconds) under a line that says where they were measured.
    """
    results = {}
    sizes = [2**k for k in _EXPONENTS] if sizes is None else sizes
    for size in sizes:
        print(f"{size} elements", file=sys.stderr, flush=True)
        results[size] = measure(size, device)
    head = ["elements", *(f"2^{size.bit_length() - 1}" for size in sizes)]
    ratios = [[row, *(f"{results[size][row][0]:.2f}" for size in sizes)] for row in _ROWS]
    extra = [[row, *(f"{results[size][row][1]:+.1f}" for size in sizes)] for row in _ROWS]
    return "\n".join([
        f"{where(device)}; forward and backward, float32.", "",
        "Times as fast as the reference (`F.dropout`; for Gaussian dropout `x * (1 + s * randn_like(x))`):", "",
        *markdown(head, ratios), "",
        "Additional microseconds, least time against least time (negative: faster):", "",
        *markdown(head, extra)])


def cost_table(device: str = "cpu", powers: Sequence[int] = _POWERS) -> str:
    """What an element costs, over sizes, and what the machine can do at best.

    Args:
        device: where the tensors lie.
        powers: of ten, the numbers of elements.

    Returns:
        Two Markdown tables under a line that says where they were measured: nanoseconds of an element, forward and
        backward, the least of some rounds; and at each size what a copy moves and a generator gives in a second.
    """
    costs: dict[str, list[str]] = {name: [] for name in ("F.dropout, p = 0.5", *_ROWS)}
    limits: dict[str, list[str]] = {name: [] for name in ("copy, GB", "random bits, G", "normal numbers, G")}
    for power in powers:
        size = 10**power
        print(f"10^{power} elements", file=sys.stderr, flush=True)
        x = torch.randn(size, device=device, requires_grad=True)
        functions = {"F.dropout, p = 0.5": _pairs()[_ROWS[0]][0], **{name: pair[1] for name, pair in _pairs().items()}}
        for name, function in functions.items():
            costs[name].append(_three_digits(1e9 * _least(timer(function, x)) / size))
        y, words = torch.empty_like(x.detach()), torch.empty(-(-size // 2), dtype=torch.int64, device=device)
        for name, step, amount in (
                ("copy, GB", lambda x=x, y=y: y.copy_(x.detach()), 8 * size),
                ("random bits, G", lambda words=words: words.random_(-2**63, None), 64 * len(words)),
                ("normal numbers, G", lambda y=y: y.normal_(), size)):
            limits[name].append(_three_digits(amount / _least(partial(seconds_of, step, y)) / 1e9))
        del x, y, words
    head = ["elements", *(f"10^{power}" for power in powers)]
    return "\n".join([f"{where(device)}; float32.", "", "Nanoseconds of an element, forward and backward:", "",
                      *markdown(head, [[name, *row] for name, row in costs.items()]), "", "In a second:", "",
                      *markdown(head, [[name, *row] for name, row in limits.items()])])


def _three_digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):.0f}" if number >= 100 else f"{number:.3g}"


def _least(seconds: Callable[[int], float]) -> float:
    """The least of a few timings, each long enough for the clock."""
    once = seconds(1)
    repetitions = 1 + int(5 * _SECONDS / max(once, 1e-7))
    return min(once, *(seconds(repetitions) for _ in range(7 if once < 0.1 else 2)))


def dropconnect_table(device: str = "cpu", batch: int = 128, features: int = 512, rounds: int = 7) -> str:
    """Compares DropConnect, one mask an example, with ``einsum`` over masks of shape (batch, out, in) in memory.

    Args:
        device: where the tensors lie.
        batch: number of examples.
        features: number of inputs and of outputs.
        rounds: how often each variant is timed; the variants take turns.

    Returns:
        A Markdown table under a line that says where it was measured.
    """
    x = torch.randn(batch, features, device=device, requires_grad=True)
    rows = []
    for p in (0.5, 0.3):
        layer = DropConnectLinear(features, features, p=p, device=device)
        shared = DropConnectLinear(features, features, p=p, sharing="batch", device=device)

        def einsum(x: Tensor, layer: DropConnectLinear = layer, p: float = p) -> Tensor:
            mask = torch.empty(batch, features, features, device=device).bernoulli_(1 - p)
            return torch.einsum("bi,boi->bo", x, mask * (layer.weight / (1 - p))) + layer.bias

        variants: dict[str, tuple[Function, DropConnectLinear]] = {
            "`einsum`, masks in memory": (einsum, layer), "`DropConnectLinear`": (layer, layer),
            '`DropConnectLinear(sharing="batch")`': (shared, shared), "linear layer": (layer.mean, layer)}
        timers = {name: timer(function, x, list(owner.parameters())) for name, (function, owner) in variants.items()}
        seconds = turns(timers, rounds, f"p = {p}")
        reference = seconds["`einsum`, masks in memory"]
        rows += [[name, str(p), milliseconds(times), f"{ratio(reference, times):.1f}"]
                 for name, times in seconds.items()]
    return "\n".join([f"{where(device)}; batch {batch}, {features} inputs and outputs, forward and backward, float32.",
                      "", *markdown(["", "p", "milliseconds", "times as fast"], rows)])


def maps_table(device: str = "cpu", shapes: Sequence[tuple[int, ...]] = _MAPS, rounds: int = 25) -> str:
    """Compares spatial dropout and max-pooling dropout with what one writes without them.

    Args:
        device: where the tensors lie.
        shapes: of the maps, ``(N, C, H, W)``.
        rounds: how often each variant is timed; the variants take turns.

    Returns:
        A Markdown table under a line that says where it was measured.
    """
    rows = []
    for shape in shapes:
        x = torch.randn(shape, device=device, requires_grad=True)
        for p in (0.5, 0.3):
            pairs = _pairs_on_maps(p)
            timers = {f"{row}, {index}": timer(function, x)
                      for row, pair in pairs.items() for index, function in enumerate(pair)}
            seconds = turns(timers, rounds, f"{shape}, p = {p}")
            for row in pairs:
                reference, measured = seconds[f"{row}, 0"], seconds[f"{row}, 1"]
                rows.append([row, " x ".join(map(str, shape)), str(p), milliseconds(measured),
                             f"{ratio(reference, measured):.2f}"])
    return "\n".join([f"{where(device)}; forward and backward, float32, contiguous.",
                      "", *markdown(["measured against", "maps", "p", "milliseconds", "times as fast"], rows)])


def recurrent_table(device: str = "cpu", sizes: Sequence[tuple[int, int, int]] = _SEQUENCES, rounds: int = 15) -> str:
    """Compares recurrent layers with torch's own, and with a loop over its cells as one writes it.

    Args:
        device: where the tensors lie.
        sizes: steps, batch and units; there are as many features.
        rounds: how often each variant is timed; the variants take turns.

    Returns:
        A Markdown table under a line that says where it was measured.
    """
    found: dict[str, list[str]] = {}
    for steps, batch, units in sizes:
        x = torch.randn(steps, batch, units, device=device, requires_grad=True)
        for kind in ("LSTM", "GRU"):
            layers: dict[str, torch.nn.Module] = {f"`nn.{kind}`": getattr(torch.nn, kind)(units, units, device=device),
                                                  f"loop over `nn.{kind}Cell`": _CellLoop(kind, units, device)}
            layers |= {f"`{name}`": getattr(dropoutlib, name.partition("(")[0])(
                units, units, device=device, **({"gates": "untied"} if "(" in name else {}))
                for name in _RECURRENT if kind in name}
            timers = {name: timer(partial(_output_of, layer), x, list(layer.parameters()))
                      for name, layer in layers.items()}
            seconds = turns(timers, rounds, f"{kind}, {steps} steps, batch {batch}, {units} units")
            for name, times in seconds.items():
                of_torch = seconds[f"`nn.{kind}`"]
                found.setdefault(name, []).extend([milliseconds(times), f"{ratio(times, of_torch):.2f}"])
    heads = [part for steps, batch, units in sizes
             for part in (f"T = {steps}, B = {batch}, H = {units}: ms", "times torch's time")]
    return "\n".join([f"{where(device)}; forward and backward, float32, one layer, masks drawn in each call.", "",
                      *markdown(["", *heads], [[name, *cells] for name, cells in found.items()])])


def prediction_table(device: str = "cpu", samples: int = 100, batch: int = 32, channels: int = 32, rounds: int = 5
                     ) -> str:
    """Compares ``predict`` with a loop over passes of a model whose dropout layers are in training.

    Args:
        device: where the tensors lie.
        samples: number of passes.
        batch: number of examples.
        channels: of the first convolution; the second one has twice as many.
        rounds: how often each variant is timed; the variants take turns.

    Returns:
        A Markdown table under a line that says where it was measured.
    """
    nn, units = torch.nn, 8 * channels
    convolutional = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(32 * channels, units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, 10))
    dense = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, 10))
    models = {"convolutions, and two dropout layers in the head": (convolutional, (batch, 3, 32, 32)),
              "dense, dropout in front of every layer": (dense, (batch, 64))}
    rows = []
    for name, (model, shape) in models.items():
        model, x = model.to(device).eval(), torch.randn(shape, device=device)
        timers: dict[str, Callable[[int], float]] = {
            "loop": partial(seconds_of, partial(_loop_of_passes, model, x, samples), x),
            "predict": partial(seconds_of, partial(dropoutlib.predict, model, x, samples), x)}
        seconds = turns(timers, rounds, name)
        rows.append([name, *(milliseconds(times) for times in seconds.values()),
                     f"{ratio(seconds['loop'], seconds['predict']):.1f}"])
    return "\n".join([f"{where(device)}; {samples} samples of {batch} examples, {channels} and {2 * channels} "
                      f"channels on 32 x 32 pixels, {units} units, float32.", "",
                      *markdown(["", "a loop: ms", "`predict`: ms", "times as fast"], rows)])


def _loop_of_passes(model: torch.nn.Module, x: Tensor, samples: int) -> Tensor:
    """What one writes: dropout in training, all else in evaluation."""
    with torch.no_grad():
        for part in model.modules():
            part.train(isinstance(part, torch.nn.Dropout))
        return torch.stack([model(x) for _ in range(samples)])


def _output_of(layer: torch.nn.Module, x: Tensor) -> Tensor:
    output: Tensor = layer(x)[0]
    return output


class _CellLoop(torch.nn.Module):
    """What one writes for a mask that acts at every step: on the state that the cell of torch reads."""

    def __init__(self, kind: str, units: int, device: str) -> None:
        super().__init__()
        self.cell = getattr(torch.nn, f"{kind}Cell")(units, units, device=device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[1:])
        keep = torch.empty_like(h).bernoulli_(0.5) / 0.5
        outputs = []
        for x_t in x:
            if isinstance(self.cell, torch.nn.LSTMCell):
                h, c = self.cell(x_t, (h * keep, c))
            else:
                h = self.cell(x_t, h * keep)
            outputs.append(h)
        return torch.stack(outputs), h


def _pairs_on_maps(p: float) -> dict[str, tuple[Function, Function]]:
    def drop(x: Tensor) -> Tensor:
        return x * torch.empty_like(x, requires_grad=False).bernoulli_(1 - p)

    return {
        "`spatial_dropout2d` against `x * 2`": (lambda x: x * 2, lambda x: spatial_dropout2d(x, p)),
        "`spatial_dropout2d` against `F.dropout2d`": (lambda x: F.dropout2d(x, p), lambda x: spatial_dropout2d(x, p)),
        "`max_pool_dropout2d`, 2 x 2, against `bernoulli_` and `F.max_pool2d`": (
            lambda x: F.max_pool2d(drop(x), 2), lambda x: max_pool_dropout2d(x, 2, p=p)),
        "`max_pool_dropout2d`, 3 x 3 with stride 2, against the same": (
            lambda x: F.max_pool2d(drop(x), 3, 2, 1), lambda x: max_pool_dropout2d(x, 3, 2, 1, p=p)),
    }
