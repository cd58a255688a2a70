"""The plain layers that a sequence of layers begins with, computed once for many calls."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from dropoutlib.from_torch import _METHODS, method_of_its_own
from dropoutlib.surgery import _has_hooks_for_all_modules, _version

__all__ = ["DRAWING_LAYERS", "Front"]

_PLACES = {f"torch.nn.modules.{name}" for name in (
    "activation", "batchnorm", "channelshuffle", "conv", "flatten", "instancenorm", "linear", "normalization",
    "padding", "pixelshuffle", "pooling", "upsampling")}
DRAWING_LAYERS = {nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d}    # in training, or always
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Front:
    """Computes the first layers of a model in its first call, and hands out copies of their output in further ones.

    Those are the layers of torch, of classes that have no noise and no memory of calls, that a
    :class:`torch.nn.Sequential`, in others of its kind or not, begins with; a layer with hooks, one that comes twice,
    and any other ends them. Of another model, and under a mode of torch that sees functions, it has none. What is
    written into weights between two calls is seen, or what is set on a layer, unless torch does not count it, as what
    is written through ``.data``, by NumPy or a fused optimizer.

    Args:
        model: in the mode in which it will be called.
        input: what every call gets a copy of.
    """

    def __init__(self, model: nn.Module, input: Any) -> None:
        times = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._layers: list[nn.Module] = []
        self._sequences = [part for part in model.modules() if type(part) is nn.Sequential]
        self._input = input
        if _is_plain(input) and not _has_hooks_for_all_modules() and not _is_watched():
            self._layers += itertools.takewhile(lambda layer: times[layer] == 1, _first_plain(model)[0])
        self._thread, self._next = threading.get_ident(), 0
        self._kept: Tensor | None = None
        self._before: list[Any] = []
        self._held: list[Tensor] = []   # alive, so that no other tensor has the id of one of them

    @contextlib.contextmanager
    def computed_once(self) -> Iterator[None]:
        """Within it, the model is called in this thread, once after each :meth:`begin`."""
        before = [vars(layer).get("forward") for layer in self._layers]
        ours = [self._forward(place, layer, was)
                for place, (layer, was) in enumerate(zip(self._layers, before, strict=True))]
        for layer, forward in zip(self._layers, ours, strict=True):
            vars(layer)["forward"] = forward
        try:
            yield
        finally:
            for layer, forward, was in zip(self._layers, ours, before, strict=True):
                if vars(layer).get("forward") is forward:   # and not one that the model has set
                    if was is None:
                        del vars(layer)["forward"]
                    else:
                        vars(layer)["forward"] = was

    def begin(self) -> None:
        """Before each call."""
        self._next = 0

    def _forward(self, place: int, layer: nn.Module, was: Callable[[Tensor], Tensor] | None
                 ) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Any:
            return type(layer).forward(layer, input) if was is None else was(input)

        def once(input: Tensor) -> Tensor:
            if (threading.get_ident() != self._thread or place != self._next
                    or (place == 0 and self._kept is not None and self._state() != self._before)):
                return forward(input)
            if self._kept is None and place == 0:
                self._before = self._state()
                self._held = [tensor for layer in self._layers for _, tensor in _tensors_of(layer)]
            self._next += 1
            is_last = self._next == len(self._layers)
            if self._kept is not None:
                return self._kept.clone() if is_last else input
            output = forward(input)
            if is_last and isinstance(output, Tensor):  # no pair of a maximum and its place
                self._kept = output.clone()
            return output

        return once

    def _state(self) -> list[Any]:
        """What the output depends on: which tensors there are, how often they were written, and what else is set."""
        with torch._C.DisableTorchFunction():   # else a mode is asked for each number that is read
            state: list[Any] = [(id(self._input), self._input._version), _has_hooks_for_all_modules()]
            for sequence in self._sequences:
                state += [dict(sequence._modules), vars(sequence).get("forward")]
                state += [tuple(getattr(sequence, hooks)) for hooks in _HOOKS]
            for layer in self._layers:
                state += [(name, id(tensor), _version(tensor), tensor.data_ptr())
                          for name, tensor in _tensors_of(layer)]
                state += [type(layer), *((name, value) for name, value in vars(layer).items() if name in _METHODS
                                         or isinstance(value, (Real, str, tuple)))]
                # hooks that monte_carlo itself has, and the forward that is set here, are there from the beginning
                state += [tuple(getattr(layer, hooks)) for hooks in _HOOKS]
        return state


def _is_watched() -> bool:
    """Whether a mode is on that sees functions of torch, other than one for a device and those of this library."""
    modes = [type(mode).__module__ for mode in _get_current_function_mode_stack()]
    return torch._C._len_torch_dispatch_stack() > 0 or any(
        module != "torch.utils._device" and not module.startswith("dropoutlib.") for module in modes)


def _is_plain(tensor: Any) -> bool:
    """Whether it lies in memory, and counts what is written into it."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_inference()


def _tensors_of(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()
    yield from ((name, value) for name, value in vars(layer).items() if isinstance(value, Tensor))


def _first_plain(module: nn.Module) -> tuple[list[nn.Module], bool]:
    """Plain layers that a module begins with, and whether there is nothing else in it."""
    if method_of_its_own(module, type(module)) or any(getattr(module, hooks) for hooks in _HOOKS):
        return [], False
    if type(module) is not nn.Sequential:
        is_layer = type(module).__module__ in _PLACES and type(module) not in {*DRAWING_LAYERS, nn.MultiheadAttention}
        return ([module], True) if is_layer and all(
            _is_plain(tensor) for _, tensor in _tensors_of(module)) else ([], False)
    layers: list[nn.Module] = []
    for part in module:
        found, is_whole = _first_plain(part)
        layers += found
        if not is_whole:
            return layers, False
    return layers, True
