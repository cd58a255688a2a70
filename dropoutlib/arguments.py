"""Checks that all noisy layers share, so that they refuse bad input in the same words."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy

from dropoutlib.documentation import document

__all__ = ["applies_noise", "boolean", "for_every_axis", "in_forward_mode", "integer", "is_autocast",
           "is_differentiated", "is_eager", "is_recorded", "noise_pair", "noise_triple", "not_negative", "one_of",
           "positive", "positive_integer", "real", "refuse_noise", "require_broadcastable", "require_callable",
           "require_channels", "require_dense", "require_features", "require_images", "require_jagged",
           "require_one_size", "require_tensor", "unchanged"]

# torch has no public question for these (autograd.Function.apply asks the first). Were a name to vanish,
# every call would take the plain path: slower, never wrong.
_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_levels: Callable[[], Any] = getattr(getattr(torch._C, "_functorch", None), "get_interpreter_stack", lambda: None)
_dispatch_mode: Callable[[int], Any] = getattr(torch._C, "_get_dispatch_stack_at", lambda place: None)


def real(name: str, value: object) -> float:
    """A real number, as a float.

    Args:
        name: what the argument is called in the message.
        value: what the caller gave.

    Returns:
        The number.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} has to be a real number, but got {value!r} of type {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


@document(real)
def positive(name: str, value: object) -> float:
    """A positive number that is not infinite, as a float.

    Args:
        {name} {value}

    Returns:
        {Returns}

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is not positive, or not finite.
    """
    number = real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} has to be positive and finite, but got {value}")
    return number


@document(real)
def at_least_zero(name: str, value: object) -> float:
    """A number from 0 on that is not infinite, as a float.

    Args:
        {name} {value}

    Returns:
        {Returns}

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is negative, or not finite.
    """
    number = real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} has to be at least 0 and finite, but got {value}")
    return number


@document(real)
def integer(name: str, value: object) -> int:
    """A whole number.

    Args:
        {name} {value}

    Returns:
        {Returns}

    Raises:
        TypeError: if it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} has to be a whole number, but got {value!r} of type {type(value).__name__}")
    return int(value)


@document(real)
def positive_integer(name: str, value: object) -> int:
    """A whole number, at least 1.

    Args:
        {name} {value}

    Returns:
        {Returns}

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is below 1.
    """
    if (number := integer(name, value)) < 1:
        raise ValueError(f"{name} has to be at least 1, but got {value}")
    return number


@document(real)
def for_every_axis(name: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """Whole numbers, one for each axis of a map; a single one is for all of them.

    Args:
        {name} {value}
        axes: how many axes a map has.
        least: what they have to be at least.

    Returns:
        tuple[int, ...]: as many as there are axes.

    Raises:
        TypeError: if it is no whole number, and not as many as there are axes.
        ValueError: if one is too small.
    """
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or any(isinstance(one, bool) or not isinstance(one, numbers.Integral) for one in values):
        raise TypeError(f"{name} has to be a whole number, or {axes} of them, but got {value!r}")
    if any(one < least for one in values):
        raise ValueError(f"{name} has to be at least {least}, but got {value!r}")
    return tuple(int(one) for one in values)


@document(real)
def not_negative(name: str, value: Tensor | float) -> None:
    """Refuses a variance below zero, wherever values can be read; for those on a GPU one would have to wait.

    Args:
        {name} {value}

    Raises:
        ValueError: if it, or an element of it, is below zero.
    """
    if isinstance(value, Tensor) and (not is_eager(value) or not value.is_cpu or value.is_complex()):
        return
    if (value < 0).any() if isinstance(value, Tensor) else value < 0:
        least = value.min().item() if isinstance(value, Tensor) else value
        raise ValueError(f"{name} has to be at least 0, but got {least:g}")


@document(real)
def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses what is none of a few words.

    Args:
        {name} {value}
        choices: the words, two or more.

    Raises:
        ValueError: if it is another.
    """
    *first, last = choices
    if value not in (*first, last):
        raise ValueError(f"{name} has to be {', '.join(map(repr, first))} or {last!r}, but got {value!r}")


@document(real)
def boolean(name: str, value: object) -> bool:
    """A truth value: a number or a function in its place is a mistake, most often a rate that should have a name.

    Args:
        {name} {value}

    Returns:
        The value; one of NumPy counts.

    Raises:
        TypeError: if it is neither True nor False.
    """
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):  # of a grid of parameters
        value = bool(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} has to be True or False, but got {value!r} of type {type(value).__name__}"
                        + (": pass p= by its name" if isinstance(value, float) else ""))
    return value


def applies_noise(training: object, noise: object) -> bool:
    """Whether noise is applied; outside of training it is refused, which leaving it out would hide.

    Args:
        training: what the caller gave.
        noise: what the caller gave, or None.

    Returns:
        ``training``.

    Raises:
        TypeError: if ``training`` is no truth value.
        ValueError: if noise was given outside of training.
    """
    if not boolean("training", training):
        refuse_noise(noise)
        return False
    return True


def refuse_noise(noise: object) -> None:
    """Refuses noise outside of training: leaving it out in silence would hide a forgotten ``train()``.

    Args:
        noise: what the caller gave, or None.

    Raises:
        ValueError: if something was given.
    """
    if noise is not None:
        raise ValueError("noise was given, but outside of training no noise is applied: "
                         "call train() (or training=True), or leave noise out")


def noise_pair(noise: object, parts: str) -> tuple[Any, Any]:
    """The noise of a layer that has two draws.

    Args:
        noise: what the caller gave.
        parts: what the two are, in the message.

    Returns:
        Both parts.

    Raises:
        TypeError: if it is no pair.
    """
    first, second = _noise_parts(noise, 2, f"a pair, {parts}")
    return first, second


@document(noise_pair)
def noise_triple(noise: object, parts: str) -> tuple[Any, Any, Any]:
    """The noise of a layer that has three draws.

    Args:
        {noise}
        parts: what the three are, in the message.

    Returns:
        The parts.

    Raises:
        TypeError: if there are not three.
    """
    first, second, third = _noise_parts(noise, 3, f"a tuple of three, {parts}")
    return first, second, third


def _noise_parts(noise: object, count: int, what: str) -> tuple[Any, ...]:
    if not isinstance(noise, (tuple, list)) or len(noise) != count:
        raise TypeError(f"noise has to be {what}, as draw() returns them, but got {type(noise).__name__}")
    return tuple(noise)


@document(real)
def require_callable(name: str, value: object) -> None:
    """Refuses what is neither a function nor a module.

    Args:
        {name} {value}

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} has to be a function or a module, but got {value!r}")


def require_features(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Refuses an input of a linear layer whose last axis does not fit the weight, and a bias that does not.

    Args:
        input: what the caller gave, of shape ``(..., in)``.
        weight: of shape ``(out, in)``.
        bias: of shape ``(out,)``.

    Raises:
        TypeError: if the input, the weight or the bias is no tensor.
        RuntimeError: if the input holds integers, booleans or complex numbers, if shapes do not fit, or if the types
            differ, outside of autocast.
    """
    require_tensor(input)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight has to be a tensor of shape (out, in), but got {weight!r}")
    if weight.dim() != 2:
        raise RuntimeError(f"weight has to be of shape (out, in), but got the shape {tuple(weight.shape)}")
    _require_bias(bias, weight)
    require_jagged(input)
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"input has to have {weight.shape[1]} features, its last axis, for a weight of shape "
                           f"{tuple(weight.shape)}, but got the shape {tuple(input.shape)}")
    _require_type_of_weight(input, weight, bias)


def require_channels(input: Tensor, weight: Tensor, bias: Tensor | None, axes: int, groups: int = 1) -> None:
    """Refuses an input of a convolution that its weight does not fit, and a bias that does not.

    Args:
        input: what the caller gave, of shape ``(N, C, ...)`` or ``(C, ...)``.
        weight: of shape ``(out, C / groups, ...)``.
        bias: of shape ``(out,)``.
        axes: spatial axes.
        groups: of the convolution.

    Raises:
        TypeError: if the input, the weight or the bias is no tensor.
        RuntimeError: if the input holds integers, booleans or complex numbers or is nested, if shapes do not fit, or if
            the types differ, outside of autocast.
    """
    require_one_size(input)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight has to be a tensor, but got {weight!r}")
    if weight.dim() != axes + 2:
        raise RuntimeError(f"weight has to have {axes + 2} axes, (out, in, ...), but got the shape "
                           f"{tuple(weight.shape)}")
    _require_bias(bias, weight)
    channels = weight.shape[1] * groups
    if input.dim() not in (axes + 1, axes + 2) or input.shape[-axes - 1] != channels:
        raise RuntimeError(f"input has to have {channels} channels, in front of {axes} spatial axes, with or without a "
                           f"batch, but got the shape {tuple(input.shape)}")
    _require_type_of_weight(input, weight, bias)


def _require_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias has to be a tensor of shape (out,), but got {bias!r}"
                        + (": pass p= by its name" if isinstance(bias, float) else ""))
    if bias.shape != weight.shape[:1]:
        raise RuntimeError(f"bias has to be of shape ({weight.shape[0]},) for a weight of shape {tuple(weight.shape)}, "
                           f"but got the shape {tuple(bias.shape)}")


def _require_type_of_weight(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.dtype != weight.dtype and not is_autocast(input):
        raise RuntimeError(f"input has to be of the type of the weight, {weight.dtype}, but got {input.dtype}")
    if input.is_complex():
        raise RuntimeError(f"input has to be real, because its moments are those of real sums, but got {input.dtype}")
    if bias is not None and bias.dtype != weight.dtype and not is_autocast(weight):
        raise RuntimeError(f"bias has to be of the type of the weight, {weight.dtype}, but got {bias.dtype}")


def is_autocast(x: Tensor) -> bool:
    """Whether autocast chooses types on the device of a tensor.

    Args:
        x: any tensor.

    Returns:
        Whether it is on.
    """
    kind = x.device.type
    return bool(torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))


def is_recorded() -> bool:
    """Whether a dispatch mode keeps what is called for a graph or another pass, and does not only look on.

    Returns:
        True under tracing, fake tensors, selective checkpoints and where saved tensors may be changed; False under a
        mode that counts or prints.
    """
    modes = [_dispatch_mode(place) for place in range(_dispatch_modes())]
    return any(mode is None or getattr(mode, "_mode_key", None) is not None
               or type(mode).__module__ in ("torch.utils.checkpoint", "torch.autograd.graph") for mode in modes)


def is_differentiated(x: Tensor) -> bool:
    """Whether an otherwise ordinary tensor is seen by derivatives of ``torch.func``, and by no other transform.

    Args:
        x: any tensor.

    Returns:
        Whether it is.
    """
    if torch.compiler.is_compiling() or not _transforms() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if x.layout is not torch.strided or x.is_meta or (_dispatch_modes() and is_recorded()):
        return False
    levels = _levels()
    return bool(levels) and all(level.key().name in ("Grad", "Jvp") for level in levels)


def is_eager(x: Tensor) -> bool:
    """Whether a tensor is an ordinary one, that no transform sees and no mode records: its values can be read.

    Args:
        x: any tensor.

    Returns:
        Whether it is.
    """
    # The order matters: a size or an address must not be asked for while a graph is being recorded.
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if _transforms() or x.layout is not torch.strided or (_dispatch_modes() and is_recorded()):
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    try:
        x.untyped_storage()
    except RuntimeError:  # of the gradients of torch.autograd.grad(is_grads_batched=True)
        return False
    return not x.is_meta


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents; torch does not say of which, and Function finds out by itself."""
    return bool(getattr(forward_ad, "_current_level", 0) >= 0)


@document(real)
def require_tensor(input: Tensor, name: str = "input") -> None:
    """Refuses what noise cannot be applied to.

    Args:
        input: what the caller gave.
        {name}

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: if it holds integers, booleans or numbers of 8 bits, or is sparse.
    """
    if not isinstance(input, Tensor):
        hint = (": torch.fx can follow a layer that is a part of the traced module, and a function that is called as "
                "dropoutlib.functional.<name>, or is given to torch.fx.wrap") if isinstance(input, Proxy) else ""
        raise TypeError(f"{name} has to be a tensor, but got {type(input).__name__}{hint}")
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(f"{name} has to be a floating point or complex tensor, but got {input.dtype}")
    if input.layout not in (torch.strided, torch.jagged):
        raise RuntimeError(f"{name} has to be dense, but got the layout {input.layout}: call to_dense() first")
    if input.dtype.itemsize == 1:
        raise RuntimeError(f"{name} has to have at least 16 bits, but got {input.dtype}: torch cannot multiply it")


@document(real)
def require_jagged(input: Tensor) -> None:
    """Refuses nested tensors of the older layout, for which torch has too few operators.

    Args:
        input: any tensor.

    Raises:
        RuntimeError: if it is one.
    """
    if input.is_nested and input.layout is torch.strided:
        raise RuntimeError("a nested tensor of strided layout is taken by a call that draws, of a layer without "
                           "weights, alone: make it with layout=torch.jagged")


def require_dense(name: str, value: Tensor) -> None:
    """Refuses what torch multiplies by in words of its own, or takes for something else: a sparse tensor, say.

    Args:
        name: what the tensor is called in the message.
        value: what the caller gave.

    Raises:
        ValueError: if it is sparse, quantized, of a layout for one kind of machine, or nested in the older layout.
    """
    is_old_nested = value.is_nested and value.layout is torch.strided
    if value.is_quantized or is_old_nested or value.layout not in (torch.strided, torch.jagged):
        kind = "a quantized" if value.is_quantized else "a nested" if is_old_nested else f"a {value.layout}"
        raise ValueError(f"{name} has to be a dense tensor, but got {kind} one")


def require_broadcastable(name: str, value: Tensor, shape: torch.Size, of: str) -> None:
    """Refuses a tensor that does not broadcast to a shape, or only by making it larger.

    Args:
        name: what the tensor is called in the message.
        value: what the caller gave.
        shape: where it has to go.
        of: whose shape that is, in the message.

    Raises:
        ValueError: if it does not, or is not dense.
    """
    require_dense(name, value)
    missing = len(shape) - value.dim()
    # Not `n not in (1, s)`: with dynamic sizes the compiler takes two symbols of one size for different.
    if missing < 0 or any(n != 1 and n != s for n, s in zip(value.shape, shape[missing:], strict=True)):
        raise ValueError(f"{name} has to be broadcastable to the shape {tuple(shape)} of the {of}, "
                         f"but got the shape {tuple(value.shape)}")


@document(real)
def require_one_size(input: Tensor) -> None:
    """Refuses what noise cannot be applied to, and a batch of examples of several sizes.

    Args:
        input: what the caller gave.

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: as :func:`require_tensor`, or if it is nested.
    """
    require_tensor(input)
    if input.is_nested:
        raise RuntimeError("input has to be a tensor of examples of one size, but got a nested tensor")


def closed(sizes: Sequence[int], law: str) -> tuple[int, ...]:
    """Sizes on which a law depends, which an exported graph therefore has to fix.

    Args:
        sizes: of an input.
        law: what depends on them, in the message.

    Returns:
        The sizes.

    Raises:
        RuntimeError: if :func:`torch.export` is to leave one of them open.
    """
    if any(isinstance(size, torch.SymInt) for size in sizes):
        raise RuntimeError(f"{law} depends on the sizes {tuple(sizes)}: export it for fixed ones, or in evaluation")
    return tuple(sizes)


def unchanged(input: Tensor, check: Callable[[Tensor], None] = require_tensor) -> Tensor:
    """What comes back where the test rule is the identity: of a quantised model, too.

    Args:
        input: what the caller gave.
        check: refuses what cannot be dropped.

    Returns:
        The input.

    Raises:
        TypeError: as ``check``.
        RuntimeError: as ``check``.
    """
    if not (isinstance(input, Tensor) and input.is_quantized):
        check(input)
    return input


@document(require_tensor)
def require_images(input: Tensor) -> None:
    """Refuses what is neither one image nor a batch of images.

    Args:
        {input}

    Raises:
        {TypeError}
        RuntimeError: as :func:`require_tensor`, or if it has another number of axes than 3 or 4.
    """
    require_one_size(input)
    if input.dim() not in (3, 4):
        raise RuntimeError("input has to be of shape (N, C, H, W) or (C, H, W), "
                           f"but got the shape {tuple(input.shape)}")
