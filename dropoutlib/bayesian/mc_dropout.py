"""Monte Carlo dropout: the noise of training, left on in evaluation, as samples from a posterior."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from types import CodeType
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves, tree_map

from dropoutlib.arguments import integer, is_eager, one_of, positive, positive_integer, require_callable
from dropoutlib.front import Front
from dropoutlib.generators import global_generators_kept, seed_global_generators
from dropoutlib.layer import NoisyLayer
from dropoutlib.methods import describe, facts
from dropoutlib.noise.given import in_checkpoint
from dropoutlib.noise.laws import DRAWING
from dropoutlib.rates import assigned_rates
from dropoutlib.surgery import (
    _CONTEXTS,
    _OF_ELEMENTS,
    _OF_MAPS,
    _argument,
    _call,
    _copied,
    _dropout_of,
    _is_noisy,
    _layer_by_layer,
    _never_drops,
    _require_what_can_be_followed,
    _tensors,
    set_modes,
)

__all__ = ["ClassPrediction", "Prediction", "monte_carlo", "predict"]

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_IN_KERNELS = {*_RECURRENT, "multi_head_attention_forward", "native_dropout"}
_DROPPING = {*_OF_ELEMENTS, *_OF_MAPS, "multi_head_attention_forward", "scaled_dot_product_attention"}
_PREDICTING = threading.RLock()     # contexts change a model, and a seed is that of the process
_ENTERING = threading.RLock()
_COPYING = ("__reduce_ex__", "__deepcopy__")    # set on modules in a context, whose copies are as they were before


@contextlib.contextmanager
@describe("mc_dropout")
def monte_carlo(model: nn.Module, masks: Literal["example", "call", "fixed"] = "example") -> Iterator[list[str]]:
    """Turns the dropout of a model on, and nothing else: a context in which every call of the model is a sample.

    {four_answers}

    In the context the model is in evaluation, whatever mode it was in, so that batch norm uses its statistics and does
    not change them. These draw as in training:

    * the layers of this library (:class:`~dropoutlib.NoisyLayer`) and subclasses of yours, but for
      :class:`~dropoutlib.Cutout`, which is an augmentation of the data,
    * torch's dropout layers, and its functions, such as ``torch.nn.functional.dropout(x, p, training=False)``,
      whatever they are told of training,
    * ``dropout=`` of torch's recurrent layers, and of its attention, whose fast paths are off,
    * attention that drops its weights only while it is in training, by ``self.dropout if self.training else 0.0``: a
      module with a rate above 0, in an attribute, or in a configuration that it holds, as ``self.config.dropout``. It
      counts as attention if one of its methods calls ``scaled_dot_product_attention``, or by the name of its class or
      of the attribute, such as ``attention_dropout`` in transformers. That module alone is then in training, without
      what it contains.

    So do layers that ``train()`` of the model itself keeps in evaluation, as in a frozen backbone; for the noise of a
    part alone, enter the context for that part.

    Functions of :mod:`dropoutlib.functional` draw where they are told ``training=True``, for each example; they are
    refused with other ``masks``. What it cannot see stays off: those that are told ``training=False``, functions of
    torch in a method of the model that is called instead of the model, what code runs behind ``if self.training:``,
    such as stochastic depth of other libraries, kernels that are no functions of torch. Modules that the model
    calls without holding them, as in a plain list, stay as they are: one in training draws, for each example;
    unseen if it is scripted, or called in another thread. At the end everything is as it was, also after an error.
    Contexts nest; for a module that is in several, the innermost one counts, and of contexts that take turns, in
    generators or coroutines, the one that was entered last. A compiled model runs uncompiled: its graph was made
    without the noise; compile it before. Other threads may call the model, too, and meet its dropout as well, if
    their calls end before the context does; none may enter a context for it meanwhile: layers are shared. Copies,
    as ``nn.DataParallel`` makes them, are not followed; those of ``copy``, and what is pickled, are as the model
    was before the context. Under activation checkpointing masks have to be those of examples, and ``backward`` has
    to run in the context, too.

    Recurrent layers draw their masks anew at every call. To generate step by step with the masks of a sequence kept,
    use ``masks="fixed"``, or hand on what you drew: ``layer(x, state, noise=noise)`` with ``noise = layer.draw(x)``.
    What is given as ``noise`` is used as it is.

    Args:
        model: any module that is not scripted, traced or exported.
        masks: ``"example"``: every example has masks of its own, as in training. ``"call"``: all examples of a call
            share theirs. ``"fixed"``: they share them, and the calls that follow in the context, too: the model is
            one function, drawn from the posterior. A part that one call of the model uses twice has masks for each
            of its uses; enter the context for that part to share them; under ``torch.vmap`` with
            ``randomness="different"`` each slice is a call. For the last two, the first axis of what a layer gets
            is the batch; the second is it for recurrent layers without ``batch_first`` alone, not for the dropout
            behind them: use ``batch_first=True``. A dropout has to be called in the same order each time, for
            inputs of one size; where a step has masks of its own, for as many steps. Where a rate, or another
            setting of a layer, is changed in between, its masks are drawn anew. Coroutines that each enter
            ``"fixed"`` for one model, and wait in the context, meet the function of the one that entered last:
            enter it once, around all of them.

    Yields:
        list: places that have drawn so far, as names of modules, each once. Empty for the model itself. A layer whose
            noise was given drew none; a function that drops in a hook counts for the module of the hook, and a module
            that the model does not hold for the one that calls it.

    Warns:
        UserWarning: where a function that may drop gets a rate of 0 in evaluation, and the module that calls it has one
            above 0; for ``scaled_dot_product_attention``, also where the module names no rate. Whether it drops in
            training cannot be seen.

    Raises:
        TypeError: if the model is no module, or is scripted, traced or exported.
        ValueError: if ``masks`` is another word; if it is not ``"example"`` and the model has a layer whose masks
            depend on their example, such as :class:`~dropoutlib.StandoutLinear`; if the model has lazy layers that have
            no weights yet.
        RuntimeError: in calls of the model as long as no noise was drawn or given; with shared masks where a kernel of
            torch would draw, or a module that the model does not hold, or under activation checkpointing; if the model
            is in a context of another thread.

    Source:
        Gal and Ghahramani, *Dropout as a Bayesian Approximation* (2016), section 4.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import monte_carlo
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).eval()
        >>> x = torch.ones(3, 4)
        >>> with monte_carlo(model) as places:
        ...     one, other = model(x), model(x)
        >>> torch.equal(one, other), torch.equal(model(x), model(x)), places
        (False, True, ['2'])

        One function for all inputs and calls, here a network that reads a sequence step by step:

        >>> from dropoutlib import VariationalLSTM
        >>> network, sequence = VariationalLSTM(4, 8), torch.ones(5, 1, 4)
        >>> with torch.no_grad(), monte_carlo(network, masks="fixed"):
        ...     whole, _ = network(sequence)
        ...     steps, state = [], None
        ...     for x in sequence:
        ...         y, state = network(x.unsqueeze(0), state)
        ...         steps.append(y)
        >>> torch.allclose(torch.cat(steps), whole)
        True
    """
    one_of("masks", masks, ("example", "call", "fixed"))
    noise = _Noise(model, masks)
    with noise.on():
        yield noise.places


def _rates(module: nn.Module) -> dict[str, float]:
    """Rates of dropout that a module names: among its attributes, in a configuration that it holds, and of layers."""
    own = {name: part for name, part in vars(module).items() if not isinstance(part, nn.Module)}
    held = {f"{name}.{key}": rate for name, part in own.items()
            for key, rate in (part if isinstance(part, Mapping) else getattr(part, "__dict__", {})).items()}
    layers = {name: getattr(part, "p", None) for name, part in module.named_children()}
    return {name: float(rate) for name, rate in {**own, **held, **layers}.items()
            if isinstance(rate, Real) and not isinstance(rate, bool) and 0 <= float(rate) <= 1
            and re.search(r"drop[^.]*$|(^|\.)p$", name)}


def _drops_in_training_only(module: nn.Module) -> bool:
    """Whether it is attention that may hide its rate, where it is not in training.

    No other module is put in training: what it does there, beside dropping, may be anything.
    """
    rates = [name for name, rate in _rates(module).items() if rate > 0]
    if not rates or "running_mean" in module._buffers:
        return False
    return (any("att" in name for name in rates if "." not in name)     # a configuration is that of the whole model
            or re.search("attention|attn", type(module).__name__.lower()) is not None
            or _calls_attention(type(module)))


def _calls_attention(kind: type[nn.Module]) -> bool:
    """Whether a method of a class calls torch's attention itself, by whatever name it was imported."""
    attention = nn.functional.scaled_dot_product_attention
    methods = [inspect.unwrap(getattr(part, "__func__", part))
               for base in kind.__mro__ if base is not nn.Module for part in vars(base).values()]
    return any(name == attention.__name__ or method.__globals__.get(name) is attention
               for method in methods if inspect.isfunction(method) for name in _names(method.__code__))


def _names(code: CodeType) -> Iterator[str]:
    """Names that are not local in a piece of code, also those in functions inside of it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


class _Noise(TorchFunctionMode):
    """Turns dropout functions on, inside of the modules of a model, and shares their masks."""

    def __init__(self, model: nn.Module, masks: str) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model has to be a module, but got {type(model).__name__}")
        _require_what_can_be_followed(model)
        self.model, self.masks = model, masks
        self.names = {module: name for name, module in model.named_modules()}
        self.modes: dict[nn.Module, bool] = {}      # before the context
        self.places: list[str] = []
        self.is_noisy = False       # something drew, or noise was given, also in a context inside of this one
        self.warned: set[str] = set()
        self.awake = {module for module in self.names if (isinstance(module, NoisyLayer) and _is_noisy(module))
                      or _drops_in_training_only(module)}
        self.kept: dict[tuple[str, str, int, str], Any] = {}
        self.fitting: dict[tuple[str, str, int, str], set[torch.Size]] = {}     # shapes of inputs that they are for
        self.units: dict[tuple[str, int], int] = {}     # of codes, by place and number of the call
        self.local = threading.local()
        self.drawing = threading.RLock()
        self.thread = threading.get_ident()
        if masks != "example":
            for module, name in self.names.items():
                layer = facts(type(module))
                if isinstance(module, NoisyLayer) and layer is not None and layer.rate == "input":
                    raise ValueError(f"masks has to be 'example', but got {masks!r}: those of {name or 'the model'}, a "
                                     f"{type(module).__name__}, depend on their example")

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with _ENTERING:
                if any(other.thread != self.thread for module in self.names for other in _CONTEXTS.get(module, [])):
                    raise RuntimeError(f"the model {type(self.model).__name__} is in a context of another thread, "
                                       "which has its layers draw: leave that first")
                stack.callback(self._put_back)
                for module in self.names:
                    _CONTEXTS.setdefault(module, []).append(self)
                    self.modes[module] = module.training
                    vars(module)["__reduce_ex__"] = partial(_reduced, module)   # which copy and pickle ask for
                    if hasattr(type(module), "__deepcopy__"):   # as parametrised modules have it
                        vars(module)["__deepcopy__"] = partial(_deepcopied, module)
            for module in self._awake_in_others():
                module.training = False     # which train() did not set: it is to know what it did
            self.model.eval()
            for module in self.awake:
                module.training = True
            for handle in self._hooks():
                # which the handle does through weak references; in what is collected as garbage they are gone
                for hooks in (handle.hooks_dict_ref(), *(ref() for ref in handle.extra_dict_ref)):
                    stack.callback(hooks.pop, handle.id, None)
            stack.enter_context(_layer_by_layer())
            stack.enter_context(self)
            stack.callback(DRAWING.remove, self._follow)
            DRAWING.append(self._follow)
            yield

    def _put_back(self) -> None:
        """Takes modules out of the context; where another one was entered later, that one knows their mode from now on.

        Contexts of generators and coroutines end in any order.
        """
        last: dict[nn.Module, bool] = {}
        for module, mode in self.modes.items():
            contexts = _CONTEXTS[module]
            place = contexts.index(self)
            del contexts[place]
            if not contexts:
                for name in _COPYING:
                    vars(module).pop(name, None)
            if place == len(contexts):
                last[module] = mode
            else:
                contexts[place].modes[module] = mode
        awake = self._awake_in_others()
        for module in self.awake & last.keys():
            module.training = False
        set_modes({module: mode and module not in awake for module, mode in last.items()})
        for module in awake & last.keys():
            module.training = last[module]

    def _awake_in_others(self) -> set[nn.Module]:
        return {module for module in self.names for other in _CONTEXTS.get(module, ())
                if other is not self and module in other.awake}

    @property
    def stack(self) -> list[nn.Module]:
        """The modules that are being called in this thread."""
        if not hasattr(self.local, "stack"):
            self.local.stack, self.local.calls = [], Counter()
        stack: list[nn.Module] = self.local.stack
        return stack

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        entering = nn.modules.module.register_module_forward_pre_hook(self._enter)
        yield entering
        before_a_call: Any = nn.modules.module._global_forward_pre_hooks
        before_a_call.move_to_end(entering.id, last=False)      # so that what drops in other hooks has a place
        yield nn.modules.module.register_module_forward_hook(self._leave_another, always_call=True)
        yield self.model.register_forward_hook(self._require_noise)
        for module in self.names:
            if module in self.awake:    # behind hooks that change what it gets
                yield module.register_forward_pre_hook(self._have_draw, with_kwargs=True)
            yield module.register_forward_hook(self._leave, always_call=True)

    def __deepcopy__(self, memo: Any) -> _Noise:
        return self     # a hook: a copy is rid of it as soon as it is made

    def _counts(self, module: nn.Module) -> bool:
        return _CONTEXTS.get(module, [None])[-1:] == [self]

    def _follow(self) -> None:
        """A function of this library that draws, in a module that is none of its layers."""
        if not self.stack or not self._counts(self._holder):
            return
        if self.stack[-1] not in self.names:
            self._note_another()
            return
        if isinstance(self.stack[-1], NoisyLayer):
            return
        if self.masks != "example":
            raise RuntimeError(f"masks has to be 'example', but got {self.masks!r}: a function of dropoutlib in "
                               f"{self._place() or 'the model'} draws masks of its own; use a layer in its place")
        self._note()

    def _enter(self, module: nn.Module, *_: Any) -> None:
        if module not in self.names:
            if self.stack:      # a module that the model calls without holding it, such as a teacher: it stays as it is
                self.stack.append(module)
            return
        if not self.stack:
            self.local.calls.clear()
            # off in other threads, and where backward() runs the forward of a checkpoint again
            self.local.may_repeat = torch.is_grad_enabled()     # in backward, under activation checkpointing
            self.local.is_pushed = self not in _get_current_function_mode_stack()
            if self.local.is_pushed:
                self.__enter__()
        self.stack.append(module)

    def _have_draw(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._counts(module):    # nor does a copy, which has the hooks of what it was made of
            return None
        module.training = True      # also where the model was told eval() in the context
        if not isinstance(module, NoisyLayer):
            return None
        if kwargs.get("noise") is not None:
            self._tell_contexts()
            return None
        if not _never_drops(module):
            self._note()
        if self.masks == "example":
            return None
        self._refuse_checkpoint()
        input = args[0] if args else kwargs["input"]
        if getattr(input, "is_nested", False):
            raise RuntimeError(f"masks has to be 'example' for a nested tensor, but got {self.masks!r}")
        if not {"noise", "kwargs"} & inspect.signature(module.forward).parameters.keys():
            raise RuntimeError(f"masks has to be 'example', but got {self.masks!r}: forward of "
                               f"{self._place() or 'the model'} ({type(module).__name__}) takes no noise=, by which "
                               "examples share a mask")
        one = _one_example(module, input)
        draw = lambda: _draw_for_all(module, one, kwargs.get("generator"))  # noqa: E731
        noise = self._shared(type(module).__name__, _settings(module), draw, one[0].shape)
        self._require_the_same_units(module, one[0])
        return args, {**kwargs, "noise": noise}

    def _leave_another(self, module: nn.Module, *_: Any) -> None:
        if self.stack and module not in self.names:
            self.stack.pop()

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module not in self.names or not self.stack:   # a call of another thread, begun before the context
            return
        self.stack.pop()
        if not self.stack and self.local.is_pushed:
            self.__exit__(None, None, None)

    def _refuse_checkpoint(self) -> None:
        """A recomputation in backward has the random numbers of the forward, but not its masks."""
        if self.local.may_repeat and in_checkpoint():
            raise RuntimeError(f"masks has to be 'example' under activation checkpointing, but got {self.masks!r}")

    def _require_noise(self, module: nn.Module, *_: Any) -> None:
        if self._counts(module) and not self.is_noisy:
            raise RuntimeError(f"nothing in the model {type(self.model).__name__} drew: it has no dropout with p > 0 "
                               "that this call reached and monte_carlo can turn on")

    @property
    def _holder(self) -> nn.Module:
        """The innermost module of the model that is being called."""
        return next(module for module in reversed(self.stack) if module in self.names)

    def _place(self) -> str:
        return self.names[self._holder]

    def _note_another(self) -> None:
        """Of a module that the model does not hold: it draws as it would without the context.

        Only a context of its own may see to it that examples share masks.
        """
        if self.masks != "example" and not _CONTEXTS.get(self.stack[-1]):
            raise RuntimeError(f"masks has to be 'example', but got {self.masks!r}: {self._place() or 'the model'} "
                               f"calls a {type(self.stack[-1]).__name__} that the model does not hold, or did not when "
                               "the context began, and that draws masks of its own: make it a part of the model "
                               "before, as by nn.ModuleList")
        self._note()

    def _note(self) -> None:
        """Before each draw."""
        self._tell_contexts()
        if self._place() not in self.places:
            self.places.append(self._place())

    def _tell_contexts(self) -> None:
        for context in _CONTEXTS[self._holder]:
            context.is_noisy = True

    def _shared(self, name: str, settings: str, draw: Callable[[], Any], shape: torch.Size | None = None) -> Any:
        """A draw; with fixed masks that of the same call in an earlier pass, for an input for which it fits.

        For other settings, as where a rate was changed in between, it is another one: the old one had another law.
        """
        if self.masks != "fixed":
            return draw()
        self.local.calls[self._place(), name] += 1
        key = (self._place(), name, self.local.calls[self._place(), name], settings)
        with self.drawing:      # other threads call the same function
            if key not in self.kept:
                drawn = draw()
                if not all(type(part) is Tensor and is_eager(part) for part in tree_leaves(drawn)):
                    raise RuntimeError(f"masks are fixed, and those of {self._place() or 'the model'} would be drawn "
                                       "inside of a transform, such as torch.vmap: call the model once outside of it "
                                       "first")
                with torch.inference_mode(False):   # a later call may have a gradient
                    self.kept[key] = tree_map(lambda part: part.clone() if part.is_inference() else part, drawn)
                self.fitting[key] = set() if shape is None else {shape}
            elif shape is not None and shape not in self.fitting[key]:
                self._require_the_same_sizes(self.kept[key], draw)
                self.fitting[key].add(shape)
            return self.kept[key]

    def _require_the_same_sizes(self, kept: Any, draw: Callable[[], Any]) -> None:
        """A mask that is shared over time fits any length; another one would be shared over what it has not seen."""
        with global_generators_kept():
            now = draw()
        for before, after in zip(tree_leaves(kept), tree_leaves(now), strict=True):
            if _sizes(before) != _sizes(after):
                raise RuntimeError(f"masks are fixed, but {self._place() or 'the model'} got an input of another size "
                                   "behind the batch, or of another number of steps: its mask has the shape "
                                   f"{tuple(before.shape)}, and would have {tuple(after.shape)}")

    def _require_the_same_units(self, module: NoisyLayer, input: Tensor) -> None:
        """Lengths of a code have one shape, however many units they may reach to."""
        layer = facts(type(module))
        if self.masks == "fixed" and layer is not None and layer.site == "code":
            now: int = input.shape[module.dim]  # type: ignore[index]
            use = self._place(), self.local.calls[self._place(), type(module).__name__]
            if (before := self.units.setdefault(use, now)) != now:
                raise RuntimeError(f"masks are fixed, but {self._place() or 'the model'} got an input of {now} units, "
                                   f"and before one of {before}")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        stack = self.stack
        if not stack or not self._counts(self._holder):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").partition(".")[0]  # of an operator: dropout.default
        p, key, position = _switch(name, args, kwargs)
        if stack[-1] not in self.names:
            if p > 0 and (not key or _argument(args, kwargs, key, position, True)):
                self._note_another()
            return func(*args, **kwargs)
        if p == 0:
            # attention that is told no rate at all has none in training either
            if name in _DROPPING and (key or len(args) > 4 or "dropout_p" in kwargs):
                self._require_a_rate(name)
            return func(*args, **kwargs)
        if self.local.may_repeat and in_checkpoint(within_module=True):
            raise RuntimeError(f"{name} is called by a function under activation checkpointing, which monte_carlo does "
                               f"not reach when it runs again: checkpoint a module of {self._place() or 'the model'}")
        self._note()
        if self.masks == "example":
            if not key:
                return func(*args, **kwargs)
            args, kwargs = _with(args, kwargs, key, position, True)
            return func(*args, **kwargs)
        if not key or name in _IN_KERNELS:
            raise RuntimeError(f"masks has to be 'example', but got {self.masks!r}: {name} in "
                               f"{self._place() or 'the model'} draws masks inside of its kernel, one an example")
        return self._apply(func, name, args, kwargs, p)

    def _apply(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
               p: float) -> Tensor:
        """A dropout of torch, with one mask for all examples."""
        self._refuse_checkpoint()
        x: Tensor = _argument(args, kwargs, "input", 0)
        factor, shift = self._shared(name, str(p), lambda: _factor_and_shift(func, name, x, p))
        if factor.dim() > x.dim() and len(factor) == 1:  # one example, after a batch
            factor, shift = factor[0], shift[0]
        if (factor.shape[1:] if factor.dim() == x.dim() else factor.shape) != x.shape[1:]:
            raise RuntimeError(f"masks are fixed, but {name} in {self._place() or 'the model'} got the shape "
                               f"{tuple(x.shape)}, and before {tuple(factor.shape[1:])} behind the batch")
        factor, shift = factor.to(x.dtype), shift.to(x.dtype)
        output = torch.where(factor == 0, shift, x * factor + shift)  # a dropped inf or nan is no part of the result
        inplace = name.endswith("_") or bool(_argument(args, kwargs, "inplace", 3, False))
        return x.copy_(output) if inplace else output

    def _require_a_rate(self, name: str) -> None:
        """Warns of a function with a rate of 0 that may be one in evaluation alone."""
        place, module = self._place(), self.stack[-1]
        if module.training or place in self.warned:
            return
        rates, is_attention = _rates(module), name == "scaled_dot_product_attention"
        if is_attention and not rates:
            named = "and no attribute of the module names one"
        elif rates and (max if is_attention else min)(rates.values()) > 0:      # else it may be the one that is 0
            named = f"though the module has {', '.join(f'{key} = {rate:g}' for key, rate in rates.items() if rate)}"
        else:
            return
        self.warned.add(place)
        cure = ("an attribute attention_dropout with the rate, in the module that reads self.training, turns it on"
                if is_attention else "tell it training=self.training, and a rate that does not depend on the mode")
        warnings.warn(f"{name} in {place or 'the model'} ({type(module).__name__}) gets no rate of dropout, {named}: "
                      f"whether it drops in training cannot be seen, and it does not drop here; {cure}", stacklevel=3)


def _reduced(module: nn.Module, protocol: Any) -> Any:
    """What a copy or a pickle of a module in a context is made of."""
    reduced = type(module).__reduce_ex__(module, protocol)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        raise RuntimeError(f"{type(module).__name__}, which defines __reduce__, cannot be copied or pickled in a "
                           "context of monte_carlo: take its state_dict(), or leave the context first")
    return *reduced[:2], _as_before(module, reduced[2]), *reduced[3:]


def _deepcopied(module: Any, memo: Any) -> Any:
    """A copy of a module in a context whose class makes its copies by itself."""
    copied = type(module).__deepcopy__(module, memo)
    state = _as_before(module, vars(copied))
    vars(copied).clear()
    vars(copied).update(state)
    return copied


def _as_before(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module in a context, or of a copy, as they would be outside of it."""
    ours = {key for hooks in (module._forward_hooks, module._forward_pre_hooks) for key, hook in hooks.items()
            if isinstance(getattr(hook, "__self__", None), _Noise)}
    before = {key: type(part)((number, one) for number, one in part.items() if number not in ours)
              if re.fullmatch("_forward.*hooks.*", key) else part
              for key, part in state.items()
              if key not in _COPYING and getattr(part, "__module__", "") != Front.__module__}
    return {**before, "training": _CONTEXTS[module][0].modes[module]}


def _switch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, str, int]:
    """Rate of a function that drops, or may, and the argument that turns it on; without a name it is on."""
    if name in _RECURRENT:
        is_packed = isinstance(args[3], (list, tuple))
        layers, p = args[4 + is_packed:6 + is_packed]
        return (float(p) if layers > 1 else 0.0), "train", 6 + is_packed
    p, _ = _dropout_of(name, args, kwargs)
    if name == "scaled_dot_product_attention":
        return p, "", 0
    if name == "multi_head_attention_forward":
        return p, "training", 13
    return p, "train" if "train" in kwargs else "training", 2


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], key: str, position: int, value: Any
          ) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, with one of them changed."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1:]), kwargs
    return args, {**kwargs, key: value}


def _factor_and_shift(func: Callable[..., Any], name: str, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """A draw for one example: what the function multiplies with and adds, element by element."""
    is_single = x.dim() == 1 or (name in ("dropout1d", "dropout3d") and x.dim() == int(name[-2]) + 1)
    ones = torch.ones_like(x) if is_single else x.new_ones(1, *x.shape[1:])
    if "alpha" not in name:
        factor = func(ones, p, True)
        return factor, torch.zeros_like(factor)
    with global_generators_kept():
        shift = func(torch.zeros_like(ones), p, True)
    return func(ones, p, True) - shift, shift


def _settings(module: nn.Module) -> str:
    """What the law of its noise may depend on, as far as it is assigned: rates, and arguments that it was made with."""
    names = {*inspect.signature(type(module)).parameters, *assigned_rates(module)}
    return str(sorted((name, value) for name, value in vars(module).items()
                      if name in names and isinstance(value, (Real, str, tuple, list))))


def _sizes(mask: Tensor) -> list[int]:
    return [size for size in mask.shape if size != 1]


def _one_example(module: NoisyLayer, input: Any) -> tuple[Tensor, bool]:
    """The first example of an input, as a batch of one, or the input if it has no batch; and whether it is a batch."""
    first = getattr(module, "batch_first", True)
    if isinstance(input, PackedSequence):
        input = pad_packed_sequence(input, batch_first=first)[0]
    layer = facts(type(module))
    rank = re.search(r"(\d)d$", (layer and (layer.replaces or layer.name)) or "")
    is_of_maps = layer is not None and layer.site == "map" and layer.replaces is None     # MaxDrop, of images
    has_features = not first and not (layer and layer.site == "word")
    if input.dim() == (int(rank[1]) + 1 if rank else 3 if is_of_maps else 2 if has_features else 1):
        return input, False
    axis = 0 if first else 1
    is_empty = input.shape[axis] == 0
    one = input.new_ones((*input.shape[:axis], 1, *input.shape[axis + 1:])) if is_empty else input.narrow(axis, 0, 1)
    return one, True


def _draw_for_all(module: NoisyLayer, example: tuple[Tensor, bool], generator: torch.Generator | None) -> Any:
    """Noise for one example, which broadcasts to all of them."""
    one, is_batch = example
    drawn, layer = module.draw(one, generator=generator), facts(type(module))
    if not is_batch or layer is None or layer.site == "state":  # takes a batch of one for an input without a batch
        return drawn
    # an axis of one in front broadcasts to a batch with and without it; a single example takes it without
    return tree_map(lambda part: part.squeeze(0) if part.dim() else part, drawn)


@dataclass(frozen=True)
class Prediction:
    """What :func:`~dropoutlib.predict` knows of an output: samples, what they say, and how sure they are of it.

    Attributes:
        samples: outputs of the model, ``(num_samples, *output shape)``.
        mean: their mean; for classes the mean of the probabilities.
        variance: their variance, with ``num_samples - 1`` in the denominator, and with 1/precision added where the
            precision was given.
        standard_error: of each of these but the samples, by name: the Monte Carlo error that more samples make smaller.
    """

    samples: Tensor
    mean: Tensor
    variance: Tensor
    standard_error: dict[str, Tensor]

    @property
    def stacked(self) -> Tensor:
        """A view of the samples along the batch axis, ``(num_samples * N, ...)``, as torch-uncertainty takes them.

        Of an output without axes it is ``(num_samples,)``.
        """
        return self.samples.flatten(0, 1) if self.samples.dim() > 1 else self.samples


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """What :func:`~dropoutlib.predict` knows of classes; entropies are in nats, without the axis of the classes.

    Attributes:
        entropy: of the mean probabilities: all uncertainty of the class. Corrected for its bias, and so sometimes above
            the logarithm of the number of classes.
        expected_entropy: mean entropy of a sample: what would be left if the weights were known (aleatoric).
        mutual_information: the difference: what the label would tell about the weights (epistemic).
        variation_ratio: share of samples that vote for another class than most do.
    """

    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    variation_ratio: Tensor


@overload
def predict(model: nn.Module, x: Any, num_samples: int = ..., task: Literal["regression"] = ..., *,
            precision: float | None = ..., masks: Literal["example", "call"] = ...,
            progress: Callable[[int, int], Any] | None = ..., generator: torch.Generator | None = ...
            ) -> Prediction: ...
@overload
def predict(model: nn.Module, x: Any, num_samples: int = ..., *, task: Literal["classification"],
            class_axis: int = ..., masks: Literal["example", "call"] = ...,
            progress: Callable[[int, int], Any] | None = ..., generator: torch.Generator | None = ...
            ) -> ClassPrediction: ...
@overload
def predict(model: nn.Module, x: Any, num_samples: int, task: Literal["classification"], *,
            class_axis: int = ..., masks: Literal["example", "call"] = ...,
            progress: Callable[[int, int], Any] | None = ..., generator: torch.Generator | None = ...
            ) -> ClassPrediction: ...


@describe("mc_dropout")
def predict(model: nn.Module, x: Any, num_samples: int = 100, task: str = "regression", *,
            precision: float | None = None, class_axis: int = 1, masks: Literal["example", "call"] = "example",
            progress: Callable[[int, int], Any] | None = None, generator: torch.Generator | None = None) -> Prediction:
    r"""Samples the outputs of a model with its dropout on, as :func:`~dropoutlib.monte_carlo` does, and sums them up.

    {four_answers}

    All of it comes with its Monte Carlo standard error. The entropy of the mean probabilities, and with it the mutual
    information, is too small by :math:`\frac{1}{2T}\sum_k \mathrm{Var}(p_k)/\bar p_k` on average over draws of T
    samples, to first order; that is added. So corrected, both may lie above :math:`\log K`, for K classes, by at most
    :math:`\frac{K-1}{2(T-1)}`. They are not cut off there: estimates of a value near it that cannot be too large are
    too small on average. Where a score has to be in its range, ``clamp`` it. None is below 0. The variation ratio is
    not corrected: it is too small where classes are close.

    The samples are those of a loop over calls of the model under :func:`~dropoutlib.monte_carlo`, bit for bit, and take
    the memory of one call. If the model is a :class:`torch.nn.Sequential`, the plain layers of torch that it begins
    with are computed once; where calls change their weights, it has to be in a way that torch counts, not through
    ``.data``. Of another model no part can be known to be the same for all samples: where one is, compute it before,
    ``predict(model.head, model.backbone(x))``. That is most of the work where dropout sits in the head.

    Layers may work in place; so may the model on its input, of which it gets a copy in each call. Nothing is
    differentiated.

    Metrics are left to others. ``torchmetrics`` takes ``mean`` as probabilities ``(N, K)``; ``torch-uncertainty`` takes
    ``stacked``.

    Args:
        model: any module that returns one tensor; wrap one that returns more.
        x: its input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        num_samples: at least 2.
        task: ``"regression"``, or ``"classification"`` for a model that returns logits.
        precision: for a regression, that of the observations around the output, tau in the chapter; 1/precision is
            their variance.
        class_axis: for a classification, the axis of the output along which the classes lie.
        masks: as for :func:`~dropoutlib.monte_carlo`: ``"example"``, or ``"call"`` for one function a sample.
            With generators in the same state, other inputs then meet the same functions, in the same order.
        progress: called with the number of samples that are done, and of all, after each: ``progress=print``.
        {generator} Meanwhile torch's global generator is seeded from it, and then put back: no other thread may draw,
            but for ``predict``, which waits.

    Returns:
        Prediction: a :class:`~dropoutlib.bayesian.mc_dropout.Prediction`, for a classification a
        :class:`~dropoutlib.bayesian.mc_dropout.ClassPrediction`.

    Warns:
        UserWarning: as from :func:`~dropoutlib.monte_carlo`.

    Raises:
        TypeError: if the model is no module, is scripted, traced or exported, or returns no tensor of floating point
            numbers; if ``num_samples`` or ``precision`` is no number.
        ValueError: if ``num_samples`` is below 2, ``precision`` not positive, or given for a classification;
            ``task`` or ``masks`` another word; ``class_axis`` no axis of the output, or one of a single class; or as
            from :func:`~dropoutlib.monte_carlo`.
        RuntimeError: if nothing draws, or as from :func:`~dropoutlib.monte_carlo`.

    Source:
        Gal and Ghahramani, *Dropout as a Bayesian Approximation* (2016), sections 4 and 5.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import predict
        >>> model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1, bias=False)), torch.ones(3, 2)
        >>> _ = nn.init.ones_(model[1].weight)
        >>> p = predict(model, x, 1000, precision=4.0, generator=torch.Generator().manual_seed(0))
        >>> bool(((p.mean - 2).abs() < 4 * p.standard_error["mean"]).all())
        True
        >>> bool(((p.variance - (1 / 4 + 2)).abs() < 4 * p.standard_error["variance"]).all())
        True
    """
    if positive_integer("num_samples", num_samples) < 2:
        raise ValueError(f"num_samples has to be at least 2, for a variance, but got {num_samples}")
    one_of("task", task, ("regression", "classification"))
    one_of("masks", masks, ("example", "call"))
    if progress is not None:
        require_callable("progress", progress)
    if precision is not None:
        precision = positive("precision", precision)
        if task == "classification":
            raise ValueError(f"precision is that of the noise around a regression, but got {precision:g} for "
                             "task='classification'")
    if any(tensor.is_nested for tensor in _tensors(x)):
        raise ValueError("x has to be a tensor or several, not nested ones: call the model under monte_carlo, once for "
                         "every sample")
    with _PREDICTING, torch.no_grad(), _drawing_from(generator):
        samples = _samples(model, x, int(num_samples), masks, progress)
        return _summary(samples, precision) if task == "regression" else _class_summary(samples, class_axis)


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Has everything that draws begin where a generator says; torch's global state is then left as it was."""
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator has to be a torch.Generator, but got {type(generator).__name__}")
    seed = torch.randint(2 ** 63 - 1, (), generator=generator, device=generator.device).item()
    with global_generators_kept():
        seed_global_generators(int(seed))
        yield


def _samples(model: nn.Module, x: Any, num_samples: int, masks: str,
             progress: Callable[[int, int], Any] | None) -> Tensor:
    """Outputs of a model that draws, those of a plain loop."""
    noise, front = _Noise(model, masks), Front(model, x)
    with noise.on(), front.computed_once():
        samples = None
        for done in range(num_samples):
            front.begin()
            inputs = _copied(x)
            for given, tensor in zip(_tensors(x), _tensors(inputs), strict=True):
                if given.requires_grad:
                    tensor.requires_grad_()
            output = _call(model, inputs)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise TypeError("model has to return one tensor of floating point numbers, but "
                                f"{type(model).__name__} returned "
                                f"{output.dtype if isinstance(output, Tensor) else type(output).__name__}: wrap it "
                                "into a module that gives the output")
            if samples is None:
                samples = output.new_empty(num_samples, *output.shape)
            if output.shape != samples.shape[1:]:
                raise RuntimeError("model has to return outputs of one shape, but "
                                   f"{type(model).__name__} returned {tuple(samples.shape[1:])} for one sample and "
                                   f"{tuple(output.shape)} for another")
            samples[done] = output
            if progress is not None:
                progress(done + 1, num_samples)
    assert samples is not None
    return samples


def _moments(values: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Mean and variance of samples along the first axis, and the standard errors of both."""
    count = len(values)
    mean = values.mean(0)
    away = values - mean
    squares = away.square()
    variance = (squares.sum(0) - away.sum(0).square() / count) / (count - 1)   # the mean is rounded
    of_variance = (squares.square().mean(0) - (count - 3) / (count - 1) * variance.square()) / count
    return mean, variance, {"mean": (variance / count).sqrt(), "variance": of_variance.clamp(min=0).sqrt()}


def _precise(samples: Tensor) -> Tensor:
    return samples if samples.dtype.itemsize > 2 else samples.float()


def _summary(samples: Tensor, precision: float | None) -> Prediction:
    mean, variance, error = _moments(_precise(samples))
    return Prediction(samples, mean, variance if precision is None else variance + 1 / precision, error)


def _class_summary(samples: Tensor, class_axis: int) -> ClassPrediction:
    shape = tuple(samples.shape[1:])
    if not -len(shape) <= integer("class_axis", class_axis) < len(shape):
        raise ValueError(f"class_axis has to be an axis of the output, which has the shape {shape}, but got "
                         f"{class_axis}")
    axis = class_axis % len(shape)
    if shape[axis] < 2:
        raise ValueError(f"task='classification' takes logits of at least 2 classes along class_axis={class_axis}, but "
                         f"the output has the shape {shape}: to one logit z of a class belong the two logits 0 and z")
    p = _precise(samples).softmax(axis + 1)
    count = len(p)
    mean, variance, error = _moments(p)
    own = torch.special.entr(p).sum(axis + 1)
    cross = -torch.special.xlogy(p, mean).sum(axis + 1)     # its mean is the entropy of the mean
    missed = torch.where(mean > 0, variance / mean, 0).sum(axis) / (2 * count)
    votes = nn.functional.one_hot(p.argmax(axis + 1), shape[axis]).sum(0)
    ratio = 1 - votes.amax(-1).to(p.dtype) / count
    error |= {name: _moments(values)[2]["mean"] for name, values in (
        ("entropy", cross), ("expected_entropy", own), ("mutual_information", cross - own))}
    error["variation_ratio"] = (ratio * (1 - ratio) / count).sqrt()
    entropy, expected = cross.mean(0) + missed, own.mean(0)
    information = (entropy - expected).clamp(min=0)     # of samples that are all the same, it is 0 but for rounding
    return ClassPrediction(samples, mean, variance, error, entropy, expected, information, ratio)
