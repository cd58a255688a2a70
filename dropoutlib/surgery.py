"""Finds the dropout of a model that is already written, and exchanges it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import MemberDescriptorType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dropoutlib.generators import global_generators_kept, seed_global_generators
from dropoutlib.layer import NoisyLayer
from dropoutlib.methods import Layer, catalogue, facts
from dropoutlib.rates import assigned_rates
from dropoutlib.recurrent_network import RecurrentNetwork

__all__ = ["Finding", "Report", "audit", "replace"]

_Name = TypeVar("_Name")

_PAGES = {"What is dropped?": "book/convolutional/what_is_dropped",
          "Where dropout goes": "book/convolutional/placement",
          "Fast dropout": "book/dense/fast_dropout",
          "Dropout and memory": "book/recurrent/memory",
          "Weight drop": "book/recurrent/weight_drop"}
_CHAPTERS = {
    "element dropout on feature maps": "What is dropped?",
    "map dropout without maps": "What is dropped?",
    "dropout before batch norm": "Where dropout goes",
    "dropout on the output": "Where dropout goes",
    "dropout before fast dropout": "Fast dropout",
    "recurrent dropout without effect": "Where dropout goes",
    "dropout inside a recursion": "Dropout and memory",
    "weights that the kernel does not read": "Weight drop",
    "noise in evaluation": "Where dropout goes",
    "noise that nothing calls": "Where dropout goes",
    "weights that torch takes": "Where dropout goes",
    "test rule that torch skips": "Where dropout goes",
}

_CONVOLUTIONS = {f"conv{transpose}{axes}d": axes for axes in (1, 2, 3) for transpose in ("", "_transpose")}
_WITH_WEIGHTS = {*_CONVOLUTIONS, "linear", "bilinear", "matmul", "bmm", "addmm", "baddbmm", "einsum", "mm", "mv",
                 "embedding", "embedding_bag", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell",
                 "rnn_tanh_cell", "rnn_relu_cell", "scaled_dot_product_attention", "multi_head_attention_forward",
                 "__matmul__", "__rmatmul__"}
_CELLS = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
_REARRANGING = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "reshape", "view", "flatten",
                "unflatten", "matmul", "bmm", "linear", "einsum", "__matmul__", "__rmatmul__"}
_OF_ELEMENTS = {"dropout", "dropout_", "alpha_dropout", "alpha_dropout_", "native_dropout"}
_OF_MAPS = {"dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_dropout_", "feature_alpha_dropout",
            "feature_alpha_dropout_"}


@dataclass(frozen=True)
class Finding:
    """One thing in a model that may not be meant.

    Attributes:
        kind: what it is, in a few words, the same for all findings of its kind.
        place: name of the module in the model; empty for the model itself.
        message: what was seen there, and what to do.
        chapter: title of the chapter of the book that explains it.
    """

    kind: str
    place: str
    message: str
    chapter: str

    def __str__(self) -> str:
        return f"{self.place or 'the model'}: {self.message}"


class Report(tuple[Finding, ...]):
    """What :func:`~dropoutlib.audit` found: a tuple of findings that prints them by kind, with chapters.

    Of findings that differ in numbers alone, as in layers that repeat, the first is printed, with places of the others.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        lines = []
        for kind in dict.fromkeys(finding.kind for finding in self):
            lines.append(f"{kind} (see the chapter {_CHAPTERS[kind]!r}{_link(_CHAPTERS[kind])})")
            alike: dict[str, list[Finding]] = {}
            for finding in self:
                if finding.kind == kind:
                    alike.setdefault(re.sub(r"\d+", "0", str(finding)), []).append(finding)
            for first, *others in alike.values():
                lines.append(f"  {first}")
                if others:
                    lines.append(f"    The same at {_listed([finding.place for finding in others])}.")
        return "\n".join(lines) or "nothing found"


def _listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and the number of the others."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    *first, last = [*names[:most], *more]
    return f"{', '.join(first)} and {last}" if first else last


def _link(chapter: str) -> str:
    """Where a chapter can be read, as far as the installed package knows the address of the book."""
    try:
        urls = metadata.metadata("dropoutlib").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    book = next((url.partition(", ")[2] for url in urls if url.startswith("Documentation, ")), None)
    return "" if book is None else f", {book.rstrip('/')}/{_PAGES[chapter]}.html"


def audit(model: nn.Module, x: Any) -> Report:
    """Runs a model in evaluation mode and reports dropout that may not do what was meant.

    It finds

    * element dropout on feature maps: on correlated neighbours it removes little,
    * dropout of whole maps on what is no map: it takes a batch of vectors for the maps of one example,
    * dropout before batch norm, through any layers between: the variance that batch norm has learned is that with
      noise, the one at test time is another,
    * dropout after the last layer with weights, on the output of the model; what a layer with weights takes as well,
      such as hidden states that are returned beside the logits, does not count,
    * dropout before, or around, :class:`~dropoutlib.FastDropoutLinear` and its convolutions, which stand for dropout
      and the layer behind it,
    * ``dropout=`` of a recurrent layer that has only one layer, where torch applies none,
    * dropout on the state of a cell of torch, with another mask at every step, which loses memories,
    * weights of a recurrent layer that its kernel does not read, as weight drop leaves them that puts masked weights in
      the place of parameters,
    * noise in evaluation: a functional dropout that is not told of ``eval()``, a module that stays in training,
    * a noisy layer of this library that nothing calls: its place is that of a module whose p is read by code that drops
      by itself, such as the attention of other libraries,
    * a layer with weights and a test rule inside of ``nn.TransformerEncoderLayer``, whose fast path in evaluation takes
      the weights and leaves the test rule out, or one that changes its input there, which it skips.

    A finding is a question, not a verdict. It says so where the dropout is the call of a function, which
    :func:`~dropoutlib.replace` cannot exchange; its place is the module that calls. Noise that is added to a tensor
    without noise, as behind a residual branch, does not count as noise on the output. What is not run for ``x`` in
    evaluation is not seen, nor what a model computes without torch functions, inside of ``torch.vmap``, or by writing
    into a part of a tensor; of the functions in :mod:`dropoutlib.functional` only that they go on in evaluation; and
    not the ``dropout=`` inside of attention and recurrent layers. A tensor whose axes are rearranged (``view``,
    ``permute``, ...) counts as a feature map again behind the next convolution only. Dropout with p = 0 does not count.
    What was compiled is run uncompiled. The model runs once or twice, as by ``model.eval()(x)``; what such calls
    change in it, as a cache or a counter, they change here. Its mode, the input and torch's random numbers, which no
    other thread may draw meanwhile, are left as they were.

    Args:
        model: any module.
        x: its input: a tensor, a tuple of positional arguments (a named tuple is one argument), or a mapping of keyword
            arguments (for a model that takes one dictionary: ``(dictionary,)``).

    Returns:
        Report: a tuple of :class:`~dropoutlib.surgery.Finding`.

    Raises:
        TypeError: if the model is no module, or is scripted, traced or exported.
        ValueError: if the model has lazy layers that have no weights yet.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import audit
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 10))
        >>> [(finding.place, finding.kind) for finding in audit(model, torch.randn(2, 3, 8, 8))]
        [('1', 'element dropout on feature maps')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    _require_what_can_be_followed(model)
    findings = list(_of_recurrent_layers(model))
    frozen = [name for name, module in model.named_modules() if model.training and not module.training]
    with _left_as_it_was(model):
        awake = [name for name, module in model.named_modules()
                 if module.training and (_is_noisy(module) or isinstance(module, nn.modules.batchnorm._BatchNorm))
                 and not _never_drops(module)]
        findings += [_finding("noise in evaluation", name, f"{type(model.get_submodule(name)).__name__} stays in "
                              "training after eval().") for name in awake]
        trace = _Trace(model, awake=awake, frozen=frozen)
        output = trace.run(_copied(x))
        known = [trace.facts(tensor) for tensor in _tensors(output)]
    findings += trace.findings()
    findings += _skipped_test_rules(model, trace.changing)
    findings += [_finding("noise that nothing calls", name, f"Nothing calls this {type(module).__name__} in "
                          "evaluation: code that reads its p and drops by itself applies another noise, or fails.")
                 for name, module in model.named_modules()
                 if isinstance(module, NoisyLayer) and name not in trace.called and not _never_drops(module)]
    findings += [_finding("dropout on the output", place, "No linear layer, convolution or the like follows: the "
                          f"noise goes into the loss as it is, or scaled.{_of_call(model, place)}")
                 for place, _ in _union(tuple(drop for drop in one.since_weights if drop not in trace.taken)
                                        for one in known)
                 if not _cuts_codes(model.get_submodule(place))]
    if not any(one.kind == "noise in evaluation" for one in findings):
        with _left_as_it_was(model):
            seed_global_generators(torch.initial_seed() + 1)  # other random numbers than in the first run
            buffers = list(model.buffers())     # alive, so that no other tensor has the id of one of them
            before = [(id(buffer), _version(buffer)) for buffer in buffers]
            again = _call(model, _copied(x))
        is_same = [(id(buffer), _version(buffer)) for buffer in model.buffers()] == before  # else it is no noise
        if is_same and any(_differ(one, other) for one, other in zip(_tensors(output), _tensors(again), strict=True)):
            findings.append(_finding("noise in evaluation", "", "Two runs in evaluation differ: a function that is not "
                                     "told of eval(), a layer that is meant to sample (inference='sampled'), or a "
                                     "state outside of the buffers that changes with every call."))
    return Report(dict.fromkeys(findings))


def replace(model: nn.Module, factories: Mapping[type[nn.Module], Callable[[Any], nn.Module]],
            places: Iterable[str] | None = None) -> nn.Module:
    """Exchanges all modules of some classes, or those of them in some places. Changes the model itself.

    A module that is used in several places is exchanged once and still shared. The new module is in the mode, training
    or evaluation, of the old one; its device, its type and the hooks of the old one are the factory's matter. Where a
    factory fails, nothing is exchanged. Weights that are tied stay tied: a parameter that the old module shares with
    another one takes the place of its copy, of the same name and the same values, in the new module. Functional
    dropout, and ``dropout=`` of recurrent and attention layers, are no modules and stay: write a module in the place of
    the function into the model's code. So does dropout that the model only asks for its p, as the attention of
    other libraries may: :func:`~dropoutlib.audit` finds a new layer that nothing calls.

    A factory for layers with weights takes them, or they start anew: ``from_linear``, ``from_conv`` and ``from_rnn`` of
    this library's layers do. Of other factories, make optimizers, and freeze parameters, after the exchange: they know
    the old ones.

    Args:
        model: the module to search.
        factories: for a class, exactly (subclasses are left alone), a function from the old module to the new one.
        places: names of modules in the model, such as the places of findings of :func:`~dropoutlib.audit`: only
            modules there are exchanged, none for an empty list. ``None`` for all.

    Returns:
        nn.Module: the model itself, or the new module if the model is of one of the classes.

    Warns:
        UserWarning: if in some of the places there is no module of the classes, as where a function drops; if a
            parameter was shared with another module, and a new module with parameters has neither it nor a copy of it.

    Raises:
        ValueError: if the model has no module of the classes (in the places), or no module of a name in ``places``; if
            a module to exchange is in a context of :func:`~dropoutlib.monte_carlo`.
        TypeError: if the model is no module, a class no module class, a factory no function, or if one returns no
            module; if ``places`` is a single text.

    Example:
        >>> from torch import nn
        >>> from dropoutlib import SpatialDropout2d, replace
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.2))
        >>> replace(model, {nn.Dropout: lambda old: SpatialDropout2d(old.p)})[1]
        SpatialDropout2d(p=0.2, inplace=False)
        >>> from dropoutlib import DropConnectLinear, ZoneoutLSTM
        >>> linear = nn.Linear(4, 2)
        >>> replace(linear, {nn.Linear: DropConnectLinear.from_linear}).weight is linear.weight
        True
        >>> model = nn.ModuleDict({"read": nn.LSTM(8, 16), "say": nn.Linear(16, 2)})
        >>> replace(model, {nn.LSTM: lambda old: ZoneoutLSTM.from_rnn(old, p_hidden=0.1)})["read"]
        ZoneoutLSTM(8, 16, p_hidden=0.1, p_cell=0.5)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    _check_factories(factories)
    places = None if places is None else _names(places)
    if places == []:  # nothing was found
        return model
    chosen = _modules_in(model, places)
    among = set(chosen.values())
    new: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module) in factories and module in among:
            if _CONTEXTS.get(module):
                raise ValueError(f"{name or 'the model'} is in a context of monte_carlo, which knows the old module: "
                                 "leave it first")
            new[module] = _made(factories[type(module)], module, name)
    others = [] if places is None else [f"{place or 'the model'} ({type(module).__name__})"
                                        for place, module in chosen.items() if module not in new]
    classes = ", ".join(kind.__name__ for kind in factories) or "(none given)"
    if not new:
        raise ValueError(f"the model {type(model).__name__} has no module that is exactly of the classes {classes}"
                         f"{f' in the given places, {_listed(others)}' if others else ''}; a call of a function, such "
                         "as functional.dropout, is no module")
    if others:
        warnings.warn(f"nothing is exchanged at {_listed(others)}: what is there is not exactly of the classes "
                      f"{classes}; a call of a function, such as functional.dropout, is no module", stacklevel=2)
    _tie(model, new)
    everything = set(model.modules())
    for parent in list(model.modules()):
        _exchange(parent, new)
    for old, made in new.items():
        for part in list(made.modules()):
            if part not in everything:  # what is kept of the old parts is in the mode it was in
                part.training = old.training
            _exchange(part, {inner: other for inner, other in new.items() if inner is not old})
    return new.get(model, model)


def _names(places: Iterable[str]) -> list[str]:
    if isinstance(places, str):
        raise TypeError(f"places has to be a list of names of modules, but got the text {places!r}")
    names: list[Any] = list(places)
    if strangers := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"places has to be a list of names of modules, but has {strangers[0]!r}"
                        + (": [finding.place for finding in findings]" if isinstance(strangers[0], Finding) else ""))
    return names


def _modules_in(model: nn.Module, places: list[str] | None) -> dict[str, nn.Module]:
    if places is None:
        return dict(model.named_modules())
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [place for place in places if place not in modules]:
        raise ValueError(f"places has {missing[0]!r}, but the model {type(model).__name__} has no module of that name")
    return {place: modules[place] for place in places}


def _exchange(parent: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    for name, child in list(parent._modules.items()):
        if child is not None and child in new:
            setattr(parent, name, new[child])


def _check_factories(factories: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> None:
    if not isinstance(factories, Mapping):
        raise TypeError(f"factories has to map classes of modules to functions, but got {factories!r}")
    for kind, factory in factories.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"factories has to map classes of modules to functions, but has the key {kind!r}")
        if isinstance(factory, nn.Module) or not callable(factory):
            raise TypeError(f"the factory of {kind.__name__} has to be a function from the old module to the new one, "
                            f"but got {factory!r}")


def _made(factory: Callable[[Any], nn.Module], old: nn.Module, name: str) -> nn.Module:
    try:
        new = factory(old)
    except Exception as error:
        error.add_note(f"in the factory for {name or 'the model'}, {old!r}; nothing was replaced")
        if isinstance(factory, type):
            error.add_note(f"a class is called with the old module: write lambda old: {factory.__name__}(old.p), say")
        raise
    if not isinstance(new, nn.Module):
        raise TypeError(f"the factory of {type(old).__name__} has to return a module, but got {new!r} "
                        f"for {name or 'the model'}")
    return new


def _of_call(model: nn.Module, place: str) -> str:
    """What is added to a message about dropout that is no module."""
    module = model.get_submodule(place)
    return "" if _is_noisy(module) else (f" It is the call of a function in {type(module).__name__}: replace() "
                                         "exchanges modules, not calls.")


def _tie(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Gives new modules the parameters that old ones share with others, where they have the same values."""
    places = {module: name for name, module in model.named_modules()}
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in places:
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((module, _joined(places[module], name)))
    for old, made in new.items():
        inside, own = set(old.modules()), dict(made.named_parameters(remove_duplicate=False))
        kept = {id(parameter) for parameter in own.values()}
        for name, parameter in old.named_parameters(remove_duplicate=False):
            elsewhere = [where for module, where in holders[id(parameter)] if module not in inside]
            if not elsewhere or not own or id(parameter) in kept:
                continue
            if name in own and _is_copy(own[name], parameter):
                path, _, attribute = name.rpartition(".")
                setattr(made.get_submodule(path), attribute, parameter)
            else:
                warnings.warn(f"{_joined(places[old], name)} was one parameter with {_listed(elsewhere)}, and what the "
                              "factory made is no copy of it: they are tied no more", stacklevel=3)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is_copy(one: nn.Parameter, other: nn.Parameter) -> bool:
    if is_lazy(one) or is_lazy(other):
        return False
    alike = all(getattr(one, fact) == getattr(other, fact) for fact in ("shape", "dtype", "device", "requires_grad"))
    return alike and not _differ(one, other)


def _finding(kind: str, place: str, message: str) -> Finding:
    return Finding(kind, place, message, _CHAPTERS[kind])


def _of_recurrent_layers(model: nn.Module) -> Iterator[Finding]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.RNNBase, RecurrentNetwork)) and module.dropout > 0 and module.num_layers == 1:
            yield _finding("recurrent dropout without effect", name,
                           f"{type(module).__name__}(dropout={module.dropout}) drops between its layers only, and has "
                           "one: put a dropout layer behind it.")
        if isinstance(module, nn.RNNBase):
            for weight, read in zip(module._flat_weights_names, module._flat_weights, strict=True):
                if getattr(module, weight, None) is not read:
                    yield _finding("weights that the kernel does not read", _joined(name, weight), "It is not the "
                                   f"tensor that {type(module).__name__} calculates with: neither what was dropped nor "
                                   "gradients pass through. WeightDropLSTM and WeightDropGRU drop inside of a call.")


_SLOW_PATH = "torch.backends.mha.set_fastpath_enabled(False)"


def _skipped_test_rules(model: nn.Module, changing: set[nn.Module]) -> Iterator[Finding]:
    """Of layers inside of a transformer, where they are among those that changed their input in evaluation."""
    for name, block in model.named_modules():
        if not isinstance(block, nn.TransformerEncoderLayer) or not torch.backends.mha.get_fastpath_enabled():
            continue
        for part, module in block.named_modules():
            layer, place = facts(type(module)), _joined(name, part)
            if layer is None or not isinstance(module, NoisyLayer):
                continue
            if layer.has_weights:
                yield _finding("weights that torch takes", place, "torch's fast path may multiply by the "
                               f"weights of this {type(module).__name__} in evaluation instead of calling it: call "
                               f"{_SLOW_PATH}.")
            elif module in changing:
                yield _finding("test rule that torch skips", place, "torch's fast path may leave out this "
                               f"{type(module).__name__} in evaluation, where it changes its input: call "
                               f"{_SLOW_PATH}, or use Dropout.")


class _Drop(NamedTuple):
    """One call of a dropout: a module that is used twice drops twice."""

    place: str
    call: int


@dataclass
class _Facts:
    """What is known of a tensor: where it is a feature map, and the dropout that it went through."""

    axes: int = 0  # spatial axes of a feature map, 0 where it is none
    since_weights: tuple[_Drop, ...] = ()
    ever: tuple[str, ...] = ()


class _Trace(TorchFunctionMode):
    """Follows tensors through a model, function by function, and notes what dropout they meet."""

    def __init__(self, model: nn.Module, awake: list[str], frozen: list[str]) -> None:
        super().__init__()
        self.model, self.awake, self.frozen = model, awake, frozen
        self.found: list[Finding] = []
        self.elsewhere: set[str] = set()  # places of element dropout on what is no feature map
        self.stack: list[str] = []
        self.noted: set[str] = set()
        self.called: set[str] = set()
        self.within = {part for block in model.modules() if isinstance(block, nn.TransformerEncoderLayer)
                       for part in block.modules() if isinstance(part, NoisyLayer)}
        self.given: dict[nn.Module, Tensor] = {}        # copies of what these get
        self.changing: set[nn.Module] = set()           # those of them that gave something else
        self.before_batch_norm: set[str] = set()
        self.on_states: dict[str, int] = {}     # the call of a dropout whose noise a cell's state had
        self.taken: set[_Drop] = set()  # by a layer with weights, so that they are not on the output alone
        self._facts: dict[int, _Facts] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice

    def facts(self, tensor: Tensor) -> _Facts:
        return self._facts.get(id(tensor), _Facts())

    def findings(self) -> list[Finding]:
        return [dataclasses.replace(finding, message=f"{finding.message} The same module also acts on other tensors: "
                                    "the maps want one of their own.")
                if finding.kind == "element dropout on feature maps" and finding.place in self.elsewhere else finding
                for finding in self.found]

    def run(self, x: Any) -> Any:
        hooks = []
        for name, module in self.model.named_modules():
            hooks += [module.register_forward_pre_hook(partial(self._enter, name), prepend=True),
                      module.register_forward_hook(self._leave, with_kwargs=True)]
        try:
            for tensor in _tensors(x):
                self._remember(tensor, _Facts())
            with self:
                return _call(self.model, x)
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in self.within and args and isinstance(args[0], Tensor):
            with torch._C.DisableTorchFunction():
                self.given[module] = args[0].detach().clone()
        self.stack.append(name)
        self.called.add(name)
        self.noted.discard(name)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Layers that are no more than an identity in evaluation call no function: the module itself is noted."""
        place = self.stack.pop()
        if module in self.given and isinstance(output, Tensor):
            given = self.given.pop(module)
            with torch._C.DisableTorchFunction():
                if given.shape != output.shape or _differ(given, output):
                    self.changing.add(module)
        if isinstance(module, RecurrentNetwork):    # it gives the last state, too
            output = next(_tensors(output))
        if not _is_noisy(module) or place in self.noted or not isinstance(output, Tensor) or _never_drops(module):
            return None
        name, layer = type(module).__name__, facts(type(module))
        source = next(_tensors((args, kwargs)), output)
        elements = isinstance(module, (nn.Dropout, nn.AlphaDropout)) if layer is None else layer.site == "element"
        weights = any(True for _ in module.parameters()) if layer is None else layer.has_weights
        if weights:
            known = self.facts(output)
            if elements:  # those that go into the layer it wraps
                self._check_maps(place, name, source, layer)
            if layer is not None and layer.stands_for_dropout:
                self._check_inputs(place, name, source)
            self._remember(output, _Facts(known.axes, known.since_weights, _union((known.ever, (place,)))))
            return None
        axes = 0
        if layer is not None and layer.site == "map" and layer.replaces and layer.replaces.endswith("d"):
            axes = _axes_of_maps(layer.replaces)
        return self._note(place, name, elements, source, output, inplace=getattr(module, "inplace", False), axes=axes)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        if not outputs:
            return result
        name = getattr(func, "__name__", "")
        sources = list(_tensors((args, kwargs))) or outputs
        place = self.stack[-1] if self.stack else ""
        p, active = _dropout_of(name, args, kwargs)
        if active and place not in self.awake:
            self.found.append(_finding("noise in evaluation", place, f"{name} with p = {p} is not told of eval(): "
                                          "pass training=self.training, or a p of 0."))
        if name in _OF_ELEMENTS | _OF_MAPS and isinstance(result, Tensor):
            inplace = name.endswith("_") or bool(kwargs.get("inplace"))
            if p == 0:
                return result
            axes = _axes_of_maps(name) if name in ("dropout1d", "dropout3d") else 0  # 2d takes (N, C, L), too
            return self._note(place, name, name in _OF_ELEMENTS, sources[0], result, inplace, axes)
        stores = name in ("batch_norm", "instance_norm") and _argument(args, kwargs, "running_mean", 1) is not None
        if stores and place not in self.frozen:
            self._check_batch_norm(place, self.facts(sources[0]))
        traced = [self.facts(tensor) for tensor in _tensors((args, kwargs)) if id(tensor) in self._facts]
        if name in _CELLS:
            self._check_recursion(place, args[1] if len(args) > 1 else kwargs.get("hx"))
        if name in _WITH_WEIGHTS:
            self.taken.update(drop for one in traced for drop in one.since_weights)
        for output in outputs:
            self._remember(output, self._after(name, traced, output))
        return result

    def _check_batch_norm(self, place: str, source: _Facts) -> None:
        for dropout in source.ever:
            if dropout not in self.before_batch_norm:
                self.found.append(_finding(
                    "dropout before batch norm", dropout, f"Its noise reaches {place or 'a batch norm'}, which learns "
                    f"another variance in training than it meets in evaluation.{_of_call(self.model, dropout)}"))
                self.before_batch_norm.add(dropout)

    def _check_recursion(self, place: str, state: Any) -> None:
        """Two calls of one dropout on states: each step has another mask."""
        for drop in _union(self.facts(tensor).since_weights for tensor in _tensors(state)):
            first = self.on_states.setdefault(drop.place, drop.call)
            if 0 <= first != drop.call:
                self.on_states[drop.place] = -1     # said once
                self.found.append(_finding(
                    "dropout inside a recursion", drop.place, f"Its mask is drawn anew for every step of "
                    f"{place or 'the model'}: of a state that is multiplied by it, (1 - p)^k is left after k steps, or "
                    "its variance grows. RNNDropLSTM, and VariationalLSTM or VariationalGRU, draw once for a sequence."
                    f"{_of_call(self.model, drop.place)}"))

    def _check_inputs(self, place: str, name: str, source: Tensor) -> None:
        self.found += [_finding(
            "dropout before fast dropout", dropout, f"Its noise reaches {place or 'the model'}, a {name}, which stands "
            f"for dropout and the layer behind it: inputs are dropped twice.{_of_call(self.model, dropout)}")
            for dropout in dict.fromkeys([*(drop.place for drop in self.facts(source).since_weights),
                                          *(outer for outer in self.stack if self._drops_elements(outer))])]

    def _drops_elements(self, place: str) -> bool:
        """Whether the module there drops what goes into the layer that it wraps."""
        module = self.model.get_submodule(place)
        layer = facts(type(module))
        is_around = layer is not None and layer.has_weights and layer.site in ("element", "map")
        return is_around and not _never_drops(module)

    def _note(self, place: str, name: str, elements: bool, source: Tensor, output: Tensor, inplace: bool,
              axes: int = 0) -> Tensor:
        """Notes a dropout, and gives what comes out of it an identity of its own, unless it is what went in."""
        self.noted.add(place)
        facts = self.facts(source)
        if elements:
            self._check_maps(place, name, source)
        if axes and source.dim() == axes + 1 and not facts.axes:
            self.found.append(_finding(
                "map dropout without maps", place, f"{name} takes a tensor of shape {tuple(source.shape)} for one "
                f"example with {len(source)} maps, and drops whole rows of its first axis. If that is the batch, "
                f"element dropout is meant.{_of_call(self.model, place)}"))
        if not inplace:     # by an index the strides stay, by which kernels are chosen
            output = output.view_as(output) if output.is_nested else output[...]
        drop = _Drop(place, call=len(self._alive))
        self._remember(output, _Facts(facts.axes, (*facts.since_weights, drop), _union((facts.ever, (place,)))))
        return output

    def _check_maps(self, place: str, name: str, source: Tensor, layer: Layer | None = None) -> None:
        axes = self.facts(source).axes
        if not axes:
            self.elsewhere.add(place)
        elif source.shape[-axes:].numel() > 1:
            instead = "FeatureAlphaDropout" if "alpha" in name.lower() else _layer_of_maps(axes, layer)
            self.found.append(_finding(
                "element dropout on feature maps", place, f"{name} acts on maps of shape {tuple(source.shape)}: "
                f"neighbours can stand in for what is dropped. {instead} drops whole maps."
                f"{_of_call(self.model, place)}"))

    def _after(self, name: str, sources: list[_Facts], output: Tensor) -> _Facts:
        axes = _CONVOLUTIONS.get(name, 0)
        if not axes and name not in _REARRANGING:
            axes = max((one.axes for one in sources if output.dim() in (one.axes + 1, one.axes + 2)), default=0)
        # Of a sum with a branch without noise, as around a residual block, nothing stays.
        in_all = set.intersection(*({drop.place for drop in one.since_weights} for one in sources)) if sources else ()
        since = () if name in _WITH_WEIGHTS else tuple(
            drop for drop in _union(one.since_weights for one in sources) if drop.place in in_all)
        return _Facts(axes, since, _union(one.ever for one in sources))

    def _remember(self, tensor: Tensor, facts: _Facts) -> None:
        self._alive.append(tensor)
        self._facts[id(tensor)] = facts


def _layer_of_maps(axes: int, layer: Layer | None) -> str:
    """The layer that drops whole maps where another drops elements: of the same method if it has one, else torch's."""
    rows = catalogue().values()
    of_method = [other for row in rows if layer in row.facts for other in row.facts]
    of_torch = [other for row in rows for other in row.facts if other.replaces == f"Dropout{axes}d"]
    return next(other.name for other in (*of_method, *of_torch) if other.site == "map")


def _axes_of_maps(name: str) -> int:
    """Spatial axes of the maps that a layer or function of torch drops: Dropout2d drops maps of two."""
    return int(name[-2])


def _union(groups: Iterable[tuple[_Name, ...]]) -> tuple[_Name, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _is_noisy(module: nn.Module) -> bool:
    layer = facts(type(module))
    # A square that is cut out is an augmentation; what the table does not know is a layer of the user's own.
    ours = layer.law not in ("none", "place") if layer is not None else isinstance(module, NoisyLayer)
    return (ours or isinstance(module, _DropoutNd)) and getattr(module, "p", 1) is not None


def _never_drops(module: nn.Module) -> bool:
    """Whether its rate is 0; a rate that is drawn or learned is not."""
    if isinstance(module, RecurrentNetwork) and module.num_layers > 1 and module.dropout > 0:
        return False
    rates = [getattr(module, name) for name in assigned_rates(module)
             if name in ("high", "drop_prob") or name.partition("_")[0] == "p"]
    return bool(rates) and not any(rates)


def _cuts_codes(module: nn.Module) -> bool:
    """Whether its output is meant to be one of the model: a code that will be cut."""
    layer = facts(type(module))
    return layer is not None and layer.site == "code"


def _dropout_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, bool]:
    """Rate of a function that may drop, and whether it drops now."""
    if name in _OF_ELEMENTS | _OF_MAPS:
        p = float(_argument(args, kwargs, "p", 1, 0.5))
        training = _argument(args, kwargs, "train" if "train" in kwargs else "training", 2, True)
        return p, bool(training) and p > 0
    if name == "scaled_dot_product_attention":
        p = float(_argument(args, kwargs, "dropout_p", 4, 0.0))
        return p, p > 0
    if name == "multi_head_attention_forward":
        p = float(_argument(args, kwargs, "dropout_p", 10, 0.0))
        return p, bool(_argument(args, kwargs, "training", 13, True)) and p > 0
    return 0.0, False


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: str, position: int, default: Any = None) -> Any:
    return kwargs.get(key, args[position] if len(args) > position else default)


def _call(model: nn.Module, x: Any) -> Any:
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if type(x) is tuple else model(x)  # a named tuple, as of packed sequences, is one input


def _items(value: Any) -> dict[Any, Any]:
    """What a container holds, by its keys or places."""
    if isinstance(value, (list, tuple, deque)):
        return dict(enumerate(value))
    return dict(value) if isinstance(value, dict) or (isinstance(value, Mapping) and not _attributes(value)) else {}


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds, such as a dataclass, by the names of its attributes; a module is no data."""
    if isinstance(value, (Tensor, nn.Module, type)) or type(value).__module__ == "builtins":
        return {}
    slots = {name for kind in type(value).__mro__ if "__slots__" in vars(kind)
             for name, part in vars(kind).items() if isinstance(part, MemberDescriptorType) and hasattr(value, name)}
    return {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})


def _tensors(value: Any, inside: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """All tensors in what a model takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in inside:   # it may refer to itself
        items = list(_items(value).values())
        known = set(map(id, items))     # an item that is an attribute, too
        for part in (*items, *(part for part in _attributes(value).values() if id(part) not in known)):
            yield from _tensors(part, (*inside, id(value)))


def _copies(tensors: Iterable[Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes copies; where tensors share memory, as the views of a series do, so do their copies."""
    sharing: dict[tuple[int, torch.dtype], dict[int, Tensor]] = {}
    for tensor in tensors:
        if (type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta
                and tensor.numel() and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)):
            sharing.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), {})[id(tensor)] = tensor
    whole: dict[int, tuple[Tensor, int | torch.SymInt]] = {}
    for views in sharing.values():
        if len(views) > 1:
            first = min(view.storage_offset() for view in views.values())
            last = max(view.storage_offset() + sum((size - 1) * stride for size, stride in
                                                   zip(view.shape, view.stride(), strict=True))
                       for view in views.values())
            view = next(iter(views.values())).detach()
            whole |= dict.fromkeys(views, (view.as_strided((last - first + 1,), (1,), first).clone(), first))

    def copied(tensor: Tensor) -> Tensor:
        if id(tensor) not in whole:
            return tensor.detach().clone()
        memory, first = whole[id(tensor)]
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - first)

    return copied


def _copied(value: Any) -> Any:
    """The same input with containers, objects, arrays and tensors of its own: a model may write into all of them.

    What comes twice is one copy, and an object without tensors is no copy.
    """
    return _copied_by(_copies(_tensors(value)), value, {})


def _copied_by(of: Callable[[Tensor], Tensor], value: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    if id(value) in known:
        return known[id(value)][1]
    result: Any = value
    items = _items(value)
    if isinstance(value, Tensor):
        result = of(value)
    elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        result = value.copy()
    elif isinstance(value, tuple):
        parts = [_copied_by(of, part, known) for part in value]
        if any(part is not before for part, before in zip(parts, value, strict=True)):
            result = getattr(type(value), "_make", type(value))(parts)  # of a named tuple
    elif isinstance(value, (dict, list, deque)) or any(True for _ in _tensors(value)):
        # a mapping with items alone is one that cannot be changed
        result = dict(value) if items and not isinstance(value, (dict, list, deque)) else copy.copy(value)
        known[id(value)] = value, result    # it may refer to itself
        if result is not value:     # as a member of an enumeration
            for key, part in items.items():
                result[key] = _copied_by(of, part, known)
            for name, part in _attributes(value).items():
                object.__setattr__(result, name, _copied_by(of, part, known))  # also of a frozen dataclass
    known[id(value)] = value, result
    return result


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether tensors have other values, as far as their values can be read."""
    readable = not one.is_meta and one.layout is torch.strided
    return readable and not torch.equal(one.nan_to_num(), other.nan_to_num())


def _version(tensor: Tensor) -> int:
    """How often it was written, as far as torch counts it."""
    return -1 if tensor.is_inference() else tensor._version


def _is_exported(module: nn.Module) -> bool:
    """Whether a module is what :func:`torch.export.export` makes: it has no modes, and its methods for them raise."""
    return isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)


def _require_what_can_be_followed(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"a scripted or traced module cannot be followed, but {name or 'the model'} is one: use "
                            "the model before it is scripted")
        if _is_exported(module):
            raise TypeError(f"an exported program cannot be followed, but {name or 'the model'} is one: use the model "
                            "before it is exported")
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(f"{name or 'the model'} ({type(module).__name__}) has no weights yet: run the model once "
                             "before")


def _has_hooks_for_all_modules() -> bool:
    """Whether something may change what any module gets or gives; torch's trackers and :func:`monte_carlo` look on."""
    hooks = nn.modules.module
    every = (*hooks._global_forward_pre_hooks.values(), *hooks._global_forward_hooks.values())
    return any(getattr(hook, "__module__", "").partition(".")[0] not in ("torch", "dropoutlib") for hook in every)


def _require_values(model: nn.Module) -> None:
    for name, part in (*model.named_parameters(), *model.named_buffers()):
        if part.is_meta:
            raise ValueError(f"{name} has no values: it lies on the device meta")


# The contexts of monte_carlo that a module is in; the innermost one counts.
_CONTEXTS: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
_STARTING = threading.RLock()    # what collects garbage may end an abandoned context in the middle of another one
_watched = 0                # contexts of any thread in which models run layer by layer
_fast_path_before = True
_stance: contextlib.AbstractContextManager[Any] | None = None


@contextlib.contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Has compiled modules and torch's fast paths call what they were made of, so that hooks and the trace see it.

    Both are settings of the process: they are put back when nobody needs them any more, whoever leaves last.
    """
    global _watched, _fast_path_before, _stance
    with _STARTING:
        _watched += 1
        if _watched == 1:
            _fast_path_before = torch.backends.mha.get_fastpath_enabled()
        if _stance is None and "torch._dynamo" in sys.modules:  # else nothing was compiled; its import takes seconds
            _stance = torch.compiler.set_stance("force_eager")
        torch.backends.mha.set_fastpath_enabled(False)  # it skips the layers inside a transformer
    try:
        yield
    finally:
        with _STARTING:
            _watched -= 1
            if not _watched:
                torch.backends.mha.set_fastpath_enabled(_fast_path_before)
                if _stance is not None:
                    _stance.__exit__(None, None, None)
                    _stance = None


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Sets a model to evaluation; keeps its modes and the random numbers; has every layer called.

    What its calls change in it, they change: a half of a state that is put back may not fit the other half.
    """
    modes = {module: module.training for module in model.modules()}
    with global_generators_kept(), _layer_by_layer():
        try:
            model.eval()
            yield
        finally:
            set_modes(modes)


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Puts modules back into modes, parents first; by ``train()`` of classes that do more there.

    Some merge weights, clear a cache or exchange a graph.
    """
    special = [module for module in modes if "train" in vars(module) or type(module).train is not nn.Module.train]
    exact = {part: part.training for module in special for part in module.modules()} | dict(modes)
    try:
        for module in special:
            if module.training is not modes[module]:    # else a parent has done it
                module.train(modes[module])
    finally:
        for module, mode in exact.items():
            module.training = mode
