"""What a model holds between its calls, put back after calls that should leave no trace."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .generators import OF_ALL_MODULES, rewinding

__all__ = ["state_kept"]

_OF_PROCESSES = ("torch.distributed", "torch.nn.parallel")  # their wrappers agree with others on what they hold


@contextlib.contextmanager
def state_kept(model: nn.Module, with_values: bool = False) -> Iterator[None]:
    """Puts back what its modules hold: which attributes, what lies in their tensors, arrays and containers.

    Generators among them go on where they were. What lies in other objects stays, and what was sharded.

    Args:
        model: as with all that it contains.
        with_values: also the values of parameters, of which that takes a copy.
    """
    known: dict[int, Any] = {}      # alive, so that no other object has the id of one of them
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            if type(module).__module__.startswith(_OF_PROCESSES):
                continue
            undo.callback(_put_back_attributes, module, _attributes(module))
            parameters = module._parameters
            if all(map(_is_plain, parameters.values())):
                undo.callback(_put_back_items, parameters, dict(parameters))
                if with_values:
                    _keep(tuple(parameters.values()), undo, known)
            _keep((module._buffers, module._non_persistent_buffers_set, module._modules,
                   *_attributes(module).values()), undo, known)
        yield


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OF_ALL_MODULES}


def _put_back_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    for name in _attributes(module).keys() - before.keys():
        del vars(module)[name]
    vars(module).update(before)


def _keep(value: Any, undo: contextlib.ExitStack, known: dict[int, Any]) -> None:
    if id(value) in known:
        return
    known[id(value)] = value
    rewind = rewinding(value)
    if rewind is not None:
        undo.callback(rewind)
    elif isinstance(value, Tensor):
        undo.callback(_put_back_values, value, value.detach().clone(), _version(value))
    elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray" and value.flags.writeable:
        undo.callback(value.__setitem__, ..., value.copy())
    elif isinstance(value, (dict, list, deque, set)):
        before = dict(value) if isinstance(value, dict) else list(value)
        undo.callback(_put_back_items, value, before)
        for part in before.values() if isinstance(before, dict) else before:
            _keep(part, undo, known)
    elif isinstance(value, tuple):
        for part in value:
            _keep(part, undo, known)


def _put_back_items(container: Any, before: Any) -> None:
    """In place: others may refer to it."""
    now, were = (list(items.items()) if isinstance(items, dict) else list(items) for items in (container, before))
    if len(now) != len(were) or any(not _is_same(one, other) for one, other in zip(now, were, strict=True)):
        container.clear()
        container.extend(before) if isinstance(container, (list, deque)) else container.update(before)


def _is_same(one: Any, other: Any) -> bool:
    """The same object, or the same pair of a key and an object."""
    return one is other or (type(one) is type(other) is tuple and len(one) == len(other) == 2
                            and one[0] is other[0] and one[1] is other[1])


def _put_back_values(tensor: Tensor, before: Tensor, version: int) -> None:
    if not _is_plain(tensor) or tensor.shape != before.shape or tensor.dtype != before.dtype:
        if _version(tensor) != version or tensor.shape != before.shape or tensor.dtype != before.dtype:
            tensor.data = before
    elif not torch.equal(_bytes(tensor), _bytes(before)):
        with torch.no_grad():
            tensor.copy_(before)    # what shares its memory goes along


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether its bytes can be read."""
    return tensor is None or (type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
                              and not (tensor.is_meta or tensor.is_quantized))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
