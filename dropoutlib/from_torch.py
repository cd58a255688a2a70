"""Layers with noisy weights, made of torch's: the weights are the same parameters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from .arguments import boolean, for_every_axis, positive_integer, require_channels, require_features
from .generators import global_generators_kept
from .local_reparameterization import Product, convolution, padded

__all__ = ["FromConv", "FromLinear", "FromRNN", "method_of_its_own"]

_Layer = TypeVar("_Layer", bound=nn.Module)
_METHODS = ("forward", "_conv_forward")     # by which layers of torch compute


class FromLinear(nn.Module):
    """A layer in the place of :class:`torch.nn.Linear`."""

    @classmethod
    def from_linear(cls: type[_Layer], linear: nn.Linear, **options: Any) -> _Layer:
        """Makes a layer of a linear layer, whose weight and bias it takes: the parameters themselves, not copies.

        So what was tied to them stays tied, and an optimizer that has them goes on. Hooks stay with the old layer. No
        random number is drawn from torch's global generators, if no other thread draws meanwhile.

        Args:
            linear: may be trained.
            **options: further arguments of the class, by name; sizes, bias, device and type are those of ``linear``.

        Returns:
            A layer of this class, in training or evaluation as ``linear`` is.

        Raises:
            TypeError: if ``linear`` is no linear layer, or it or its class has a forward of its own, or an option is
                one of those that it decides, or none at all.
            ValueError: if it has no weights yet, or they are computed from other parameters, as by weight norm.
        """
        _require_kind("linear", linear, nn.Linear)
        return _with_weights_of(linear, cls, ("in_features", "out_features"), options)

    def _taken(self, input: Tensor) -> tuple[Tensor, Product]:
        """The input, checked, and what is made of it and a weight."""
        layer: Any = self
        require_features(input, layer.weight, layer.bias)
        return input, F.linear


class FromConv(nn.Module):
    """A layer in the place of a convolution of :mod:`torch.nn`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
                 groups: int, bias: bool, *options: Any) -> None:
        # as torch takes them, where a rate in the place of a stride fails in the first forward pass
        axes = next(axes for axes, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1) if isinstance(self, kind))
        kernel_size = for_every_axis("kernel_size", kernel_size, axes, 1)
        stride, dilation = for_every_axis("stride", stride, axes, 1), for_every_axis("dilation", dilation, axes, 1)
        padding = padding if isinstance(padding, str) else for_every_axis("padding", padding, axes, 0)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         positive_integer("groups", groups), boolean("bias", bias), *options)

    @classmethod
    def from_conv(cls: type[_Layer], conv: _ConvNd, **options: Any) -> _Layer:
        """Makes a layer of a convolution, whose weight and bias it takes: the parameters themselves, not copies.

        So what was tied to them stays tied, and an optimizer that has them goes on. Hooks stay with the old layer. No
        random number is drawn from torch's global generators, if no other thread draws meanwhile.

        Args:
            conv: of as many axes as this layer; it may be trained.
            **options: further arguments of the class, by name; all those that torch's has are those of ``conv``.

        Returns:
            A layer of this class, in training or evaluation as ``conv`` is.

        Raises:
            TypeError: if ``conv`` is no convolution of as many axes, or it or its class has a forward of its own, or
                an option is one of those that it decides, or none at all.
            ValueError: if it has no weights yet, or they are computed from other parameters, as by weight norm.
        """
        kind = next(base for base in cls.__mro__ if base.__module__ == _ConvNd.__module__)
        _require_kind("conv", conv, kind)
        return _with_weights_of(conv, cls, ("in_channels", "out_channels", "kernel_size", "stride", "padding",
                                            "dilation", "groups", "padding_mode"), options)

    def _geometry(self, input: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """The input, checked and padded, and what :func:`convolution` takes."""
        layer: Any = self
        axes = layer.weight.dim() - 2
        require_channels(input, layer.weight, layer.bias, axes, layer.groups)
        input, padding = padded(layer, input)
        return input, (axes, layer.stride, padding, layer.dilation, layer.groups)

    def _taken(self, input: Tensor) -> tuple[Tensor, Product]:
        """The input, checked and padded, and what is made of it and a weight."""
        input, geometry = self._geometry(input)
        return input, convolution(*geometry)


class FromRNN(nn.Module):
    """A layer in the place of :class:`torch.nn.LSTM` or :class:`torch.nn.GRU`."""

    mode: ClassVar[Literal["LSTM", "GRU"]]

    @classmethod
    def from_rnn(cls: type[_Layer], rnn: nn.RNNBase, **options: Any) -> _Layer:
        """Makes a layer of one of torch's, whose weights and biases it takes: the parameters themselves, not copies.

        So an optimizer that has them goes on. Hooks stay with the old layer. No random number is drawn from torch's
        global generators, if no other thread draws meanwhile.

        Args:
            rnn: a :class:`torch.nn.LSTM`, or :class:`torch.nn.GRU` for a class of that name; it may be trained.
            **options: further arguments of the class, by name; all those that torch's has are those of ``rnn``.

        Returns:
            A layer of this class, in training or evaluation as ``rnn`` is.

        Raises:
            TypeError: if ``rnn`` is another layer, or it or its class has a forward of its own, or an option is one of
                those that it decides, or none at all.
            ValueError: if its weights are computed from other parameters, as by weight norm, or it has ``proj_size``.
        """
        mode: str = cls.mode  # type: ignore[attr-defined]
        _require_kind("rnn", rnn, getattr(nn, mode))
        decided = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                   "proj_size")
        weight: Any = rnn.weight_hh_l0
        made = _made(cls, rnn, {name: getattr(rnn, name) for name in decided}, options, weight)
        return _taking(made, rnn, [name for name, _ in made.named_parameters()])


def _require_kind(name: str, layer: Any, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind):
        got = type(layer)
        where = f"{got.__module__}." if got.__name__ == kind.__name__ else ""
        raise TypeError(f"{name} has to be a torch.nn.{kind.__name__}, but got {where}{got.__name__}")
    if method := method_of_its_own(layer, kind):
        raise TypeError(f"{name} has to compute what torch.nn.{kind.__name__} does, but {type(layer).__name__} has a "
                        f"{method} of its own, which would be lost")


def method_of_its_own(layer: nn.Module, kind: type[nn.Module]) -> str:
    """The method by which a layer computes something else than a class, its own or one that it inherits from.

    Args:
        layer: its class may define the method anew, or it may be set on the layer itself. One that was put back there,
            as tools do that replace methods for a while, is that of the class.
        kind: the class.

    Returns:
        The name of the first one, empty if there is none.
    """
    for name in _METHODS:
        usual, method = getattr(type(layer), name, None), vars(layer).get(name)
        if usual is not getattr(kind, name, None) or (method is not None and not (
                getattr(method, "__func__", None) is usual and getattr(method, "__self__", None) is layer)):
            return name
    return ""


def _with_weights_of(layer: Any, kind: type[_Layer], decided: tuple[str, ...], options: dict[str, Any]) -> _Layer:
    if any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters()):
        raise ValueError(f"the {type(layer).__name__} has no weights yet: run the model once")
    taken = {**{name: getattr(layer, name) for name in decided}, "bias": layer.bias is not None}
    made = _made(kind, layer, taken, options, layer.weight)
    return _taking(made, layer, ["weight", "bias"] if taken["bias"] else ["weight"])


def _made(kind: type[_Layer], layer: nn.Module, taken: dict[str, Any], options: dict[str, Any], like: Tensor) -> _Layer:
    """A new layer; the random numbers of its weights are not those of the caller."""
    taken = {**taken, "device": like.device, "dtype": like.dtype}
    for name in options:
        if name in taken:
            raise TypeError(f"{name} is that of the {type(layer).__name__}, {taken[name]!r}, and cannot be given")
        if name not in inspect.signature(kind).parameters:
            raise TypeError(f"{kind.__name__} has no argument {name!r}")
    with global_generators_kept():
        return kind(**taken, **options)


def _taking(made: _Layer, layer: nn.Module, names: Sequence[str]) -> _Layer:
    for name in names:
        parameter = getattr(layer, name)
        if not isinstance(parameter, nn.Parameter):
            raise ValueError(f"the {name} of the {type(layer).__name__} is computed from other parameters: remove its "
                             "parametrization, or weight norm, first")
        setattr(made, name, parameter)
    return made.train(layer.training)
