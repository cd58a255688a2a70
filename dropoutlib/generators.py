"""The global generators of torch, those of all devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["global_generators_kept", "seed_global_generators"]


def _in_use() -> list[tuple[Any, str]]:
    """Modules of the accelerators that may have drawn, and how their functions for all devices end.

    Whether CUDA is available is no question to ask before: after it, a forked process cannot use it.
    """
    found = []
    for name in ("cuda", "xpu", "mtia", "mps", torch._C._get_privateuse1_backend_name()):
        module = getattr(torch, name, None)
        is_used = getattr(module, "is_initialized", getattr(module, "is_available", None))
        ends = [end for end in ("_all", "") if all(hasattr(module, f"{function}{end}") for function in (
            "manual_seed", "get_rng_state", "set_rng_state"))]
        if is_used is not None and ends and is_used():
            found.append((module, ends[0]))
    return found


@contextlib.contextmanager
def global_generators_kept() -> Iterator[None]:
    """Puts torch's global generators back at the end, those of all devices: a training may go on at another one."""
    with torch.random.fork_rng(devices=[]):
        states = [(module, end, getattr(module, f"get_rng_state{end}")()) for module, end in _in_use()]
        try:
            yield
        finally:
            for module, end, state in states:
                getattr(module, f"set_rng_state{end}")(state)


def seed_global_generators(seed: int) -> None:
    """Seeds those of the CPU and of devices in use; ``torch.manual_seed`` would set what others begin with later, too.

    Args:
        seed: any number; it is taken modulo 2^63.
    """
    seed %= 2 ** 63
    torch.default_generator.manual_seed(seed)
    for module, end in _in_use():
        getattr(module, f"manual_seed{end}")(seed)
