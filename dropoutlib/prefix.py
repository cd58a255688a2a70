"""What a model computes before its first random number, run once for many passes."""

from __future__ import annotations

import functools
import pickle
import random
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Apart", "Diverged", "Prefix", "generators", "random_state", "state_of_others"]

_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_REPLACE = Tensor.data.__set__     # type: ignore[attr-defined]
_UNKNOWN = None     # the version of a tensor of inference: it counts no writes
_VALUES = (bool, int, float, complex, str, slice, torch.Size, torch.device)


class Diverged(Exception):
    """A pass that calls other functions than the first one did, or cannot stand for several."""


class _Call(NamedTuple):
    """A function that was called: tensors in it stand as numbers of earlier results, or as what they are."""

    function: Callable[..., Any]
    inputs: list[Any]
    results: list[Any]
    structure: TreeSpec


class _Kept(NamedTuple):
    """Contents of a tensor at the end of the prefix."""

    tensor: Tensor
    contents: torch.UntypedStorage


class _Numbered(int):
    """The number of a result."""


class Prefix(TorchFunctionMode):
    """Records the torch functions of a first pass up to its first random number, and skips them in later passes.

    The end is where :meth:`end` is called, where a function moves the state of a global random number generator, or
    where it is given a generator. A later pass runs the same Python code; each recorded function gives what it gave,
    without being computed, as long as it is called with the same arguments in the same order; else the pass raises
    :class:`Diverged`. Only results that are alive at the end are kept. What later layers write into them, in place, is
    undone before the next pass. Where :attr:`has_state` is true, no later pass may be asked for.

    The first ``with`` block is the recorded pass, every further one is a later pass; all need ``torch.no_grad()``, and
    the very same input tensors.

    Args:
        inputs: tensors that a model may write into, but that later passes have to see as they were at the end.
        plain: tensors without noise: the parameters and buffers of a model.

    Attributes:
        peak: bytes of the largest set of results behind the prefix that were alive at one time in the first pass.
        has_state: whether the first pass wrote into a tensor that was there before it, other than the inputs: what it
            left there another pass finds.
        generators: those that functions of the first pass were given.
    """

    def __init__(self, inputs: list[Tensor], plain: list[Tensor]) -> None:
        super().__init__()
        self.peak, self.has_state = 0, False
        self.generators: set[torch.Generator] = set()
        self._inputs = inputs
        self._made = set(map(_place, inputs))           # places of what may be written, in the first pass
        self._calls: list[_Call] = []
        self._results: list[weakref.ref[Tensor]] = []   # while recording
        self._live: dict[int, Tensor] = {}              # later, by number
        self._kept: list[_Kept] = []
        self._numbers: dict[int, int] = {}              # of a tensor, by id
        self._now: dict[int, Tensor] = {}               # what stands for results in this pass, by number
        self._ended, self._is_first = False, True
        self._next, self._bytes = 0, 0
        self._measured: list[weakref.ref[Tensor]] = []  # results behind the prefix
        self._plain = set(map(id, plain))               # with what is computed from them alone behind the prefix, by id
        self._state, self._level = random_state(), _level()

    def __enter__(self) -> Prefix:
        if not self._is_first:
            for kept in self._kept:     # a write through .data or an array of numpy leaves no trace: undone in any case
                kept.tensor.untyped_storage().copy_(kept.contents)
            self._next, self._now = 0, dict(self._live)
            self._numbers = {id(tensor): number for number, tensor in self._live.items()}
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if self._is_first:
            self.end()
            self._is_first = False
        elif error is None and self._next < len(self._calls):
            raise Diverged(f"only {self._next} of {len(self._calls)} functions were called")

    def end(self) -> None:
        """Ends the prefix here, if it has not ended before."""
        if self._ended or not self._is_first:
            return
        self._ended = True
        alive = ((_Numbered(number), result()) for number, result in enumerate(self._results))
        self._live = {number: tensor for number, tensor in alive if tensor is not None}
        kept = {_place(tensor): tensor for tensor in (*self._inputs, *self._live.values())
                if tensor.layout is torch.strided and not tensor.is_meta}
        self._kept = [_Kept(tensor, tensor.untyped_storage().clone())
                      for place, tensor in kept.items() if place in self._made]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self._is_first:
            return self._again(func, args, kwargs) if self._next < len(self._calls) else func(*args, **kwargs)
        given = generators(args, kwargs)
        self.generators |= given
        if given or _level() > self._level:  # what the functions inside of a transform are given are no plain tensors
            self.end()
        leaves = _leaves((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inputs = [] if self._ended else [self._named(leaf) for leaf in leaves]
        own = set(map(id, tensors))
        is_plain = self._ended and self._reads_no_noise(func, own)
        with torch._C.DisableTorchFunction():   # else every look at a tensor is one that other modes see
            versions, replaced = list(map(_version, tensors)), _place(tensors[0]) if func == _REPLACE else None
        before = random_state() if is_plain else None
        output = func(*args, **kwargs)  # which may end the prefix
        results, structure = _leaves(output)
        with torch._C.DisableTorchFunction():
            written = {_place(tensor) for tensor, version in zip(tensors, versions, strict=True)
                       if version != _version(tensor) or (version is _UNKNOWN and _writes(func, kwargs))}
        if replaced is not None:
            written.add(replaced)
        self.has_state |= not written <= self._made
        if not self._ended and random_state() != self._state:
            self.has_state |= bool(written)     # later passes would call it again, on what it has written into already
            self.end()
        self._follow(tensors, results)
        if self._ended:
            self._measure(results, own, is_plain and random_state() == before)
        else:
            self._calls.append(_Call(func, inputs, [self._recorded(leaf, own) for leaf in results], structure))
        return output

    def _named(self, leaf: Any) -> Any:
        """What an argument is called in a record: the number of an earlier result, or the object itself."""
        return self._numbers.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    def _follow(self, arguments: list[Tensor], results: list[Any]) -> None:
        """Notes which memory is of this pass."""
        with torch._C.DisableTorchFunction():
            given = set(map(_place, arguments))
            made = {_place(result): result for result in results if isinstance(result, Tensor)}
            self._made |= {place for place in made.keys() - given if _is_of_torch(made[place])}

    def _recorded(self, leaf: Any, arguments: set[int]) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) in self._numbers:
            return self._named(leaf)
        if id(leaf) in arguments:  # written in place, into what came from outside
            return leaf
        number = self._numbers[id(leaf)] = _Numbered(len(self._results))
        key = id(leaf)  # which another tensor may get, once this one is gone
        self._results.append(weakref.ref(leaf, lambda _: self._numbers.pop(key, None)))
        return number

    def _again(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._calls[self._next]
        self._next += 1
        inputs = [self._named(leaf) for leaf in _leaves((args, kwargs))[0]]
        if func != call.function or len(inputs) != len(call.inputs) or not all(map(_alike, inputs, call.inputs)):
            raise Diverged(f"function {self._next} of {len(self._calls)} was called in another way")
        return tree_unflatten([self._given(result) for result in call.results], call.structure)

    def _given(self, result: Any) -> Any:
        if not isinstance(result, _Numbered):
            return result
        if result not in self._now:  # no longer needed when the prefix ended: only its name is
            self._now[result] = torch.empty(0, device="meta")
            self._numbers[id(self._now[result])] = result
        return self._now[result]

    def _reads_no_noise(self, func: Callable[..., Any], arguments: set[int]) -> bool:
        """Whether a function computes from plain tensors alone; one that makes room for numbers may get noisy ones."""
        name = getattr(func, "__name__", "")
        return bool(arguments) and arguments <= self._plain and not name.startswith("new_") and "_like" not in name

    def _measure(self, results: list[Any], arguments: set[int], is_plain: bool) -> None:
        for tensor in results:
            if not isinstance(tensor, Tensor):
                continue
            key, size = id(tensor), tensor.numel() * tensor.element_size()
            (self._plain.add if is_plain else self._plain.discard)(key)
            if key not in arguments:    # x.float() may be x
                self._bytes += size
                self.peak = max(self.peak, self._bytes)
                self._measured.append(weakref.ref(tensor, functools.partial(self._free, key, size)))

    def _free(self, key: int, size: int, _: Any) -> None:
        self._plain.discard(key)    # which another tensor may get now
        self._bytes -= size

    def outlived(self) -> bool:
        """Whether what may have noise in it is still held, after what the first pass returned is let go."""
        alive = (result() for result in self._measured)
        return any(tensor is not None and id(tensor) not in self._plain for tensor in alive)


class Apart(TorchFunctionMode):
    """Refuses, under :func:`torch.vmap`, a function that draws what all samples would share, as some kernels do.

    Also one that is given a generator, and a pass that sets the state of a global one, as ``torch.manual_seed`` does:
    what is seeded in every pass is the same for all samples of a loop, and :func:`torch.vmap` would draw it for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state = random_state()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            self._require_the_state()

    def _require_the_state(self) -> None:
        """Only functions that are seen may move it."""
        if random_state() != self._state:
            raise Diverged("the state of a global generator was set, or a function that is not seen drew")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if generators(args, kwargs or {}):
            raise Diverged(f"{getattr(func, '__name__', func)} draws from a generator that it is given")
        self._require_the_state()
        output = func(*args, **(kwargs or {}))
        before, self._state = self._state, random_state()
        if self._state != before and not any(map(_is_mapped, _leaves(output)[0])):
            raise Diverged(f"{getattr(func, '__name__', func)} draws the same for all samples")
        return output


def _is_mapped(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and torch._C._functorch.is_batchedtensor(leaf)


def _leaves(tree: Any) -> tuple[list[Any], TreeSpec]:
    return tree_flatten(tree, is_leaf=lambda node: isinstance(node, torch.Size))  # else it comes back as a tuple


def _alike(now: Any, before: Any) -> bool:
    """Whether an argument is what it was: the same object, or the same number, text or the like."""
    return now is before or (type(now) is type(before) and isinstance(now, _VALUES) and bool(now == before))


def _place(tensor: Tensor) -> int:
    """Where the numbers of a tensor lie, which it shares with its views; of one that does not tell, its id."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:    # of a sparse tensor, one inside of a transform, or a wrapper
        return id(tensor)


def _is_of_torch(tensor: Tensor) -> bool:
    """Whether torch allocated the memory of a tensor; that of an array of NumPy was there before."""
    return _place(tensor) == id(tensor) or tensor.untyped_storage().resizable()


def _version(tensor: Tensor) -> int | None:
    return _UNKNOWN if tensor.is_inference() else tensor._version


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether a function writes into what it is given, as far as its name tells."""
    name = getattr(func, "__name__", "")
    return (kwargs.get("out") is not None or bool(kwargs.get("inplace")) or name == "__setitem__"
            or name.startswith("__i") or (name.endswith("_") and not name.endswith("__")))


def _level() -> int:
    """How many functions of :mod:`torch.func` and modes of torch that see its operators are at work."""
    top = torch._C._functorch.peek_interpreter_stack()
    return torch._C._len_torch_dispatch_stack() + (0 if top is None else int(top.level()))


def generators(args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[torch.Generator]:
    """What a function of torch may draw from beside the global generators."""
    return {value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)}


def random_state() -> list[Any]:
    """Of the global generators of torch."""
    with torch._C._DisableFuncTorch():
        states: list[Any] = [torch.default_generator.get_state().numpy().tobytes()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += [(generator.initial_seed(), generator.get_offset()) for generator in torch.cuda.default_generators]
    return states


def state_of_others(model: nn.Module) -> list[Any]:
    """Of generators of Python and NumPy: the global ones, and those that are attributes of modules."""
    numpy: Any = sys.modules.get("numpy")  # a model that draws with it has loaded it
    kinds = (random.Random, *((numpy.random.Generator, numpy.random.RandomState) if numpy else ()))
    held = [value for module in model.modules() for name, value in vars(module).items()
            if name not in _OF_ALL_MODULES and isinstance(value, kinds)]
    return [random.getstate(), pickle.dumps(numpy and numpy.random.get_state()), *map(_state, held)]


def _state(generator: Any) -> Any:
    if isinstance(generator, random.SystemRandom):
        return generator.random()   # it has no state: it may have drawn
    if isinstance(generator, random.Random):
        return generator.getstate()
    return pickle.dumps(generator.bit_generator.state if hasattr(generator, "bit_generator") else generator.get_state())
