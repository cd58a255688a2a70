"""How long things take, and how much memory. Variants take turns, so that a disturbance meets all of them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

__all__ = ["Memory", "allocated", "markdown", "milliseconds", "processor", "ratio", "seconds_of", "timer", "turns",
           "where"]

Function = Callable[[Tensor], Tensor]


class Memory(NamedTuple):
    """Bytes of one pass: at most at a time, and kept from forward to backward, each beyond what was there before."""

    peak: int
    kept: int


def timer(function: Function, x: Tensor, parameters: Sequence[Tensor] = (), backward: bool = True
          ) -> Callable[[int], float]:
    """Prepares one variant.

    Args:
        function: of the input.
        x: the input; its gradient is computed where it wants one.
        parameters: those that the function uses get gradients.
        backward: whether gradients are computed; if not, nothing is recorded.

    Returns:
        Seconds of one pass, averaged over a number of repetitions. With one thread on the CPU it is processor time.
    """
    run = _pass(function, x, parameters, backward)
    return lambda repetitions: seconds_of(run, x, repetitions)


def _pass(function: Function, x: Tensor, parameters: Sequence[Tensor], backward: bool) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(lambda: function(x))
    leaves = [leaf for leaf in (x, *parameters) if leaf.requires_grad]
    output = function(x)
    gradient = torch.randn_like(output)
    found = torch.autograd.grad(output, leaves, gradient, allow_unused=True)
    used = [leaf for leaf, part in zip(leaves, found, strict=True) if part is not None]
    return lambda: torch.autograd.grad(function(x), used, gradient)


def allocated(function: Function, x: Tensor, parameters: Sequence[Tensor] = (), backward: bool = True) -> Memory:
    """The memory of one pass.

    Args:
        function: of the input.
        x: the input.
        parameters: as for :func:`timer`.
        backward: as for :func:`timer`.

    Returns:
        Memory: of a second pass, when what is made once is there.
    """
    run = _pass(function, x, parameters, backward)
    run()
    given = {part.untyped_storage().data_ptr() for part in (x, *parameters)}
    kept: dict[int, int] = {}

    def keep(part: Tensor) -> Tensor:
        if part.untyped_storage().data_ptr() not in given:
            kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        run()
    return Memory(_peak_on_gpu(run, x) if x.is_cuda else _peak(run), sum(kept.values()))


def _peak(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes into the progress on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    now = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def _peak_on_gpu(run: Callable[[], object], x: Tensor) -> int:
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    run()
    torch.cuda.synchronize(x.device)
    return torch.cuda.max_memory_allocated(x.device) - before


def seconds_of(function: Callable[[], object], x: Tensor, repetitions: int) -> float:
    """Seconds of one call, averaged.

    Args:
        function: without arguments.
        x: says on which device.
        repetitions: number of calls.

    Returns:
        With one thread the time that the processor works: the time, less what it spends on other programs.
    """
    if x.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if x.is_cuda or torch.get_num_threads() > 1 else time.process_time
    start = clock()
    for _ in range(repetitions):
        function()
    if x.is_cuda:
        torch.cuda.synchronize()
    return (clock() - start) / repetitions


def processor(device: str) -> str:
    """The name of the processor, or of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                platform.machine())


def turns(timers: dict[str, Callable[[int], float]], rounds: int, what: str = "") -> dict[str, list[float]]:
    """Seconds of every variant in every round; the variants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds + 1):
        if what:
            print(f"{what}, round {turn}", file=sys.stderr, flush=True)
        for name, timer in timers.items():
            taken = timer(1)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def milliseconds(times: Sequence[float]) -> str:
    """The median, as it is printed."""
    return f"{1e3 * statistics.median(times):.1f}"


def ratio(reference: Sequence[float], measured: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(reference, measured, strict=True))


def where(device: str) -> str:
    """Versions, device and threads, in words."""
    threads = "" if device.startswith("cuda") else f", threads: {torch.get_num_threads()}"
    return f"torch {torch.__version__}, {processor(device)}{threads}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, its first column to the left and the others to the right."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---", *("---:" for _ in head[1:])], *rows)]
