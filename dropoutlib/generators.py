"""The states of generators that a model may draw from."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["OF_ALL_MODULES", "global_generators_kept", "is_given_a_generator", "random_state", "rewinding",
           "seed_global_generators", "state_of_others"]

OF_ALL_MODULES = frozenset(vars(nn.Module()))   # names of the attributes that every module has


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


def is_given_a_generator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of torch may draw from another generator than the global ones."""
    return any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))


def random_state() -> list[Any]:
    """Of the global generators of torch."""
    with torch._C._DisableFuncTorch():
        states: list[Any] = [torch.default_generator.get_state().numpy().tobytes()]
    for module, end in _in_use():
        if module is torch.cuda:
            states += [(one.initial_seed(), one.get_offset()) for one in torch.cuda.default_generators]
        else:
            states += [one.cpu().numpy().tobytes() for one in tree_leaves(getattr(module, f"get_rng_state{end}")())]
    return states


def rewinding(generator: Any) -> Callable[[], Any] | None:
    """What takes a generator of torch, Python or NumPy back to the state it is in; of anything else, None."""
    numpy: Any = sys.modules.get("numpy")
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return partial(generator.setstate, generator.getstate())
    if numpy and isinstance(generator, numpy.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if numpy and isinstance(generator, numpy.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return None


def state_of_others(model: nn.Module) -> list[Any]:
    """Of generators of Python and NumPy: the global ones, and those that are attributes of modules."""
    numpy: Any = sys.modules.get("numpy")  # a model that draws with it has loaded it
    kinds = (random.Random, *((numpy.random.Generator, numpy.random.RandomState) if numpy else ()))
    held = [value for module in model.modules() for name, value in vars(module).items()
            if name not in OF_ALL_MODULES and isinstance(value, kinds)]
    return [random.getstate(), pickle.dumps(numpy and numpy.random.get_state()), *map(_state, held)]


def _state(generator: Any) -> Any:
    if isinstance(generator, random.SystemRandom):
        return generator.random()   # it has no state: it may have drawn
    if isinstance(generator, random.Random):
        return generator.getstate()
    return pickle.dumps(generator.bit_generator.state if hasattr(generator, "bit_generator") else generator.get_state())
