"""What a model computes before its first random number, run once for many passes."""

from __future__ import annotations

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

__all__ = ["Prefix", "is_given_a_generator", "random_state", "state_of_others"]

_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_REPLACE = Tensor.data.__set__     # type: ignore[attr-defined]
_UNKNOWN = None     # the version of a tensor of inference: it counts no writes
_VALUES = (bool, int, float, complex, str, slice, torch.Size, torch.device)
# What hands out the memory of a tensor, into which others may then write.
_OPENING = {"numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "_typed_storage"}


class _Call(NamedTuple):
    """A function that was called: tensors in it stand as numbers of earlier results, or as what they are."""

    function: Callable[..., Any]
    inputs: list[Any]
    arguments: TreeSpec
    results: list[Any]
    structure: TreeSpec


class _Kept(NamedTuple):
    """What lay in the memory of a tensor."""

    tensor: Tensor
    contents: torch.UntypedStorage

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        return cls(tensor, tensor.untyped_storage().clone())

    def put_back(self) -> None:
        self.tensor.untyped_storage().copy_(self.contents)


class _Numbered(int):
    """The number of a result."""


class Prefix(TorchFunctionMode):
    """Runs a model several times, and what torch computes in front of the first random number only twice.

    The first pass records functions of torch up to its end: where :meth:`end` is called, where one moves the state of a
    global random number generator, is given a generator, reads memory that is not torch's, or gives it away. The second
    pass computes everything and is compared with the record: the same functions have to be called with the same
    arguments, and to leave the same numbers behind. Later passes run the same Python code; each recorded function gives
    what it gave, without being computed. Where one is called in another way, what stands in front of it is computed
    after all, and the pass goes on as it is; so do all later ones. So every pass gives what it would give by itself.

    Only results that are alive at the end are kept. What later layers write into them, in place, is undone before the
    next pass. Nothing is skipped where a pass writes into a tensor that was there before.

    Args:
        inputs: tensors that the model gets in every pass. It may write into them: a pass finds them as the first did.
        plain: parameters and buffers of the model, whose memory may be that of a file.

    Attributes:
        is_off: whether functions are computed in all further passes.
    """

    def __init__(self, inputs: list[Tensor], plain: list[Tensor]) -> None:
        super().__init__()
        self._start = [_Kept.of(tensor) for tensor in inputs if _has_memory(tensor)]
        self._inputs = inputs
        self._made = {_place(tensor) for tensor in inputs if _has_memory(tensor)}   # what may be written, by place
        self._plain = set(map(_place, plain))
        self._calls: list[_Call] = []
        self._results: list[weakref.ref[Tensor]] = []   # in the first two passes
        self._versions: dict[int, int | None] = {}      # after the last function that is known, by number of a result
        self._live: dict[int, Tensor] = {}              # later, by number
        self._kept: list[_Kept] = []
        self._numbers: dict[int, _Numbered] = {}        # of a tensor, by id
        self._now: dict[int, Tensor] = {}               # what stands for results in this pass, by number
        self._passes, self._ended, self._next = 0, False, 0
        self.is_off = False    # functions are computed
        self._real: dict[int, Tensor] | None = None     # results that were computed after all, by number
        self._state, self._level = random_state(), _level()

    def run(self, model: Callable[[], Any]) -> Any:
        """One pass; needs ``torch.no_grad()``.

        Args:
            model: calls the model with the inputs.

        Returns:
            What it returns.
        """
        self._begin()
        if self.is_off and self._passes:
            return model()
        with self:
            output = model()
        if self._passes == 0:
            self.end()
            self.is_off |= not self._calls
        elif self._next < len(self._calls) and not self.is_off:     # it took another way, to its end
            self._go_off()
            output = self._computed(output)
        self._passes += 1
        return output

    def _begin(self) -> None:
        if self._passes < 2 or self.is_off:
            for kept in self._start:
                kept.put_back()
        else:
            for kept in self._kept:     # a write through .data or an array of numpy leaves no trace: undone in any case
                kept.put_back()
            self._now = dict(self._live)
            self._numbers = {id(tensor): _Numbered(number) for number, tensor in self._live.items()}
        if self._passes == 1:
            self._numbers, self._results = {}, []
        self._next, self._real = 0, None

    def end(self) -> None:
        """Ends the prefix here, if it has not ended before."""
        if self._ended or self._passes:
            return
        self._ended = True
        alive = ((_Numbered(number), result()) for number, result in enumerate(self._results))
        self._live = {number: tensor for number, tensor in alive if tensor is not None}
        with torch._C.DisableTorchFunction():
            # else something wrote that is no function of torch, and would write again
            self.is_off |= any(self._versions[number] != _version(tensor) for number, tensor in self._live.items())
            kept = {_place(tensor): tensor for tensor in (*self._inputs, *self._live.values()) if _has_memory(tensor)}
            self._kept = [_Kept.of(tensor) for place, tensor in kept.items() if place in self._made]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._passes == 0:
            return self._record(func, args, kwargs)
        if self._real is not None:
            args, kwargs = self._computed((args, kwargs))
        elif self._next < len(self._calls) and not self.is_off:
            return (self._compare if self._passes == 1 else self._skip)(func, args, kwargs)
        return func(*args, **kwargs)

    def _record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, arguments = _leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with torch._C.DisableTorchFunction():   # else every look at a tensor is one that other modes see
            versions, replaced = list(map(_version, tensors)), _place(tensors[0]) if func == _REPLACE else None
            is_foreign = any(not _is_of_torch(tensor) and _place(tensor) not in self._plain for tensor in tensors)
        if (is_foreign or is_given_a_generator(args, kwargs) or getattr(func, "__name__", "") in _OPENING
                or _level() > self._level):     # inside of a transform tensors are no plain ones
            self.end()
        inputs = [] if self._ended else [self._named(leaf) for leaf in leaves]
        output = func(*args, **kwargs)  # which may end the prefix
        results, structure = _leaves(output)
        with torch._C.DisableTorchFunction():
            written = {_place(tensor) for tensor, version in zip(tensors, versions, strict=True)
                       if version != _version(tensor) or (version is _UNKNOWN and _writes(func, kwargs))}
        if replaced is not None:
            written.add(replaced)
        self.is_off |= not written <= self._made
        if not self._ended and random_state() != self._state:
            self.is_off |= bool(written)   # later passes would call it again, on what it has written into already
            self.end()
        self._follow(tensors, results)
        if not self._ended:
            own = set(map(id, tensors))
            named = [self._recorded(leaf, own) for leaf in results]
            self._calls.append(_Call(func, inputs, arguments, named, structure))
            self._note_versions(named, written)
        return output

    def _note_versions(self, named: list[Any], written: set[int]) -> None:
        numbers = range(len(self._results)) if written else [leaf for leaf in named if isinstance(leaf, _Numbered)]
        with torch._C.DisableTorchFunction():
            for number in numbers:
                if (tensor := self._results[number]()) is not None and (
                        number not in self._versions or _place(tensor) in written):
                    self._versions[number] = _version(tensor)

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
        number = _Numbered(len(self._results))
        self._number(leaf, number)
        return number

    def _number(self, result: Tensor, number: _Numbered) -> None:
        key = id(result)    # which another tensor may get, once this one is gone
        self._numbers[key] = number
        self._results.append(weakref.ref(result, lambda _: self._numbers.pop(key, None)))

    def _is_as_recorded(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        call = self._calls[self._next]
        inputs = [self._named(leaf) for leaf in _leaves((args, kwargs))[0]]
        return func == call.function and len(inputs) == len(call.inputs) and all(map(_alike, inputs, call.inputs))

    def _compare(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In the second pass: computes a function, and compares what is left at the end."""
        is_same = self._is_as_recorded(func, args, kwargs)
        call = self._calls[self._next]
        output = func(*args, **kwargs)
        results, structure = _leaves(output)
        if not is_same or structure != call.structure:
            self.is_off = True
            return output
        for result, recorded in zip(results, call.results, strict=True):
            if isinstance(recorded, _Numbered):
                if id(result) not in self._numbers:
                    self._number(result, recorded)
                self.is_off |= self._numbers[id(result)] != recorded
                if recorded in self._live:
                    self._now[recorded] = result
            elif not _alike(result, recorded):
                self.is_off = True
        self._next += 1
        if self._next == len(self._calls):
            with torch._C.DisableTorchFunction():
                self.is_off |= not all(map(self._is_left_the_same, self._kept))
            self._now, self._numbers = {}, {}
        return output

    def _is_left_the_same(self, kept: _Kept) -> bool:
        number = next((number for number, tensor in self._live.items() if tensor is kept.tensor), None)
        tensor = kept.tensor if number is None else self._now[number]
        contents = tensor.untyped_storage()
        return contents.nbytes() == kept.contents.nbytes() and torch.equal(_bytes(contents), _bytes(kept.contents))

    def _skip(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In later passes: what a function gave, if it is called as it was."""
        if not self._is_as_recorded(func, args, kwargs):
            self._go_off()
            args, kwargs = self._computed((args, kwargs))
            return func(*args, **kwargs)
        call = self._calls[self._next]
        self._next += 1
        return tree_unflatten([self._given(result) for result in call.results], call.structure)

    def _given(self, result: Any) -> Any:
        if not isinstance(result, _Numbered):
            return result
        if result not in self._now:  # no longer needed when the prefix ended: only its name is
            self._now[result] = torch.empty(0, device="meta")
            self._numbers[id(self._now[result])] = result
        return self._now[result]

    def _go_off(self) -> None:
        """Computes in this pass what it has skipped, for it goes another way."""
        self.is_off = True
        if self._passes == 1:
            return
        for kept in self._start:
            kept.put_back()
        self._real = {}
        for call in self._calls[:self._next]:
            args, kwargs = tree_unflatten([self._real[leaf] if isinstance(leaf, _Numbered) else leaf
                                           for leaf in call.inputs], call.arguments)
            for result, recorded in zip(_leaves(call.function(*args, **kwargs))[0], call.results, strict=True):
                if isinstance(recorded, _Numbered):
                    self._real[recorded] = result

    def _computed(self, tree: Any) -> Any:
        """What was computed after all, in the place of what stands for it in this pass."""
        real = self._real or {}
        leaves, structure = _leaves(tree)
        return tree_unflatten([real.get(self._numbers.get(id(leaf), -1), leaf) if isinstance(leaf, Tensor) else leaf
                               for leaf in leaves], structure)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and _place(tensor) != id(tensor)


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


def is_given_a_generator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of torch may draw from another generator than the global ones."""
    return any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))


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
