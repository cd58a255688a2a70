"""The plain layers that a sequence of layers begins with, computed once for many calls."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dropoutlib.surgery import _has_hooks_for_all_modules

__all__ = ["Front"]

_PLACES = {f"torch.nn.modules.{name}" for name in (
    "activation", "batchnorm", "channelshuffle", "conv", "flatten", "instancenorm", "linear", "normalization",
    "padding", "pixelshuffle", "pooling", "upsampling")}
_NOT_PLAIN = {nn.MultiheadAttention, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Front:
    """Computes the first layers of a model in its first call, and hands out copies of their output in further ones.

    Those are the layers of torch, of classes that have no noise and no memory of calls, that a
    :class:`torch.nn.Sequential`, in others of its kind or not, begins with; a layer with hooks, one that comes twice,
    and any other ends them. Of another model it has none.

    Args:
        model: in the mode in which it will be called.
        input: what every call gets a copy of.
    """

    def __init__(self, model: nn.Module, input: Any) -> None:
        times = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._layers: list[nn.Module] = []
        if _is_plain(input) and not _has_hooks_for_all_modules():
            self._layers += itertools.takewhile(lambda layer: times[layer] == 1, _first_plain(model)[0])
        self._tensors = [input, *(tensor for layer in self._layers for tensor in _tensors_of(layer))]
        self._before = self._versions() if self._layers else []
        self._thread, self._next = threading.get_ident(), 0
        self._kept: Tensor | None = None

    @contextlib.contextmanager
    def computed_once(self) -> Iterator[None]:
        """Within it, the model is called in this thread, once after each :meth:`begin`."""
        for place, layer in enumerate(self._layers):
            vars(layer)["forward"] = self._forward(place, layer.forward)
        try:
            yield
        finally:
            for layer in self._layers:
                del vars(layer)["forward"]

    def begin(self) -> None:
        """Before each call."""
        self._next = 0

    def _forward(self, place: int, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def once(input: Tensor) -> Tensor:
            if (threading.get_ident() != self._thread or place != self._next
                    or (place == 0 and self._versions() != self._before)):
                return forward(input)
            self._next += 1
            is_last = self._next == len(self._layers)
            if self._kept is not None:
                return self._kept.clone() if is_last else input
            output = forward(input)
            if is_last and isinstance(output, Tensor):  # no pair of a maximum and its place
                self._kept = output.clone()
            return output

        return once

    def _versions(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]


def _is_plain(tensor: Any) -> bool:
    """Whether it lies in memory, and counts what is written into it."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_inference()


def _tensors_of(layer: nn.Module) -> Iterator[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()


def _first_plain(module: nn.Module) -> tuple[list[nn.Module], bool]:
    """Plain layers that a module begins with, and whether there is nothing else in it."""
    if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
        return [], False
    if type(module) is not nn.Sequential:
        is_layer = type(module).__module__ in _PLACES and type(module) not in _NOT_PLAIN
        return ([module], True) if is_layer and all(map(_is_plain, _tensors_of(module))) else ([], False)
    layers: list[nn.Module] = []
    for part in module:
        found, is_whole = _first_plain(part)
        layers += found
        if not is_whole:
            return layers, False
    return layers, True
