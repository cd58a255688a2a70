"""Small convolutional networks with dropout in one place or another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib
from dropoutlib import Dropout, SpatialDropout2d
from dropoutlib.arguments import one_of
from dropoutlib.methods import Layer, catalogue

__all__ = ["CNN", "DENSE", "LENET", "NOISE", "NORMS", "RESIDUAL", "UNET", "Residual", "UNet", "cnn", "dense",
           "facts_of", "he_normal", "lenet", "place_of", "put", "rate_of", "residual"]

CNN = {"none": "", "before norm": "conv1 conv2", "before pooling": "relu1 relu2", "after pooling": "pool1 pool2",
       "between modules": "pool1", "before flatten": "pool2", "between dense layers": "relu3",
       "everywhere": "pool1 pool2 relu3"}  # for each placement the layers that dropout follows
RESIDUAL = {"none": "", "in the branch": "branch1 branch2 branch3 branch4", "on the sum": "sum1 sum2 sum3 sum4",
            "before flatten": "relu"}
UNET = {"none": "", "encoder": "encoder1 encoder2", "across": "across1 across2", "bottleneck": "bottleneck",
        "decoder": "decoder2 decoder1"}
DENSE = {"Linear": "hidden2 output", "StandoutLinear": "hidden1 hidden2", "Dropout": "noise1 noise2"}  # see put()
LENET = {"image": "noise0", "Linear": "hidden", "Conv2d": "conv2", "MaxPool2d": "pool1 pool2",
         "AvgPool2d": "pool1 pool2", "Dropout2d": "noise1 noise2", "Dropout": "noise3"}
NOISE: dict[str, type[nn.Module]] = {"elements": Dropout, "maps": SpatialDropout2d}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d, "instance": lambda maps: nn.InstanceNorm2d(maps, affine=True),
    "group": lambda maps: nn.GroupNorm(4, maps),
    "layer": lambda maps: nn.GroupNorm(1, maps)}  # one group is all maps, and has a scale for each as the others have

_Model = TypeVar("_Model", bound=nn.Module)


def _with_dropout(layers: dict[str, nn.Module], behind: str, noise: str, p: float) -> nn.Sequential:
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
        if name in behind.split():
            model.add_module(f"drop_{name}", Dropout(p) if name == "relu3" else NOISE[noise](p))
    return model


def cnn(placement: str = "none", noise: str = "elements", p: float = 0.5, norm: str | None = None) -> nn.Sequential:
    """Two modules of convolution, norm, ReLU and max pooling, and two dense layers, for 64 pixels.

    Args:
        placement: a key of ``CNN``.
        noise: ``"elements"`` or ``"maps"``; between the dense layers it is always elements.
        p: probability of dropping.
        norm: a key of ``NORMS``; ``None`` for none.

    Returns:
        nn.Sequential: layers with names; dropout behind the layer ``pool1`` is called ``drop_pool1``.
    """
    layers: dict[str, nn.Module] = {"image": nn.Unflatten(1, (1, 8, 8))}
    for index, (before, after) in enumerate(((1, 8), (8, 16)), start=1):
        layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1)
        if norm is not None:
            layers[f"norm{index}"] = NORMS[norm](after)
        layers |= {f"relu{index}": nn.ReLU(), f"pool{index}": nn.MaxPool2d(2)}
    layers |= {"flatten": nn.Flatten(), "hidden": nn.Linear(64, 64), "relu3": nn.ReLU(), "output": nn.Linear(64, 10)}
    return _with_dropout(layers, CNN[placement], noise, p)


def facts_of(method: str) -> Layer:
    """What the table of methods says about a layer.

    Args:
        method: name of a layer of the library.

    Returns:
        Layer: its facts.

    Raises:
        ValueError: if the table has no such layer.
    """
    layers = {layer.name: layer for row in catalogue().values() for layer in row.facts}
    one_of("method", method, sorted(layers))
    return layers[method]


def put(method: str, model: _Model, places: Mapping[str, str], **options: Any) -> _Model:
    """Puts the layers of a method where a network has places for them.

    Args:
        method: name of a layer of the library.
        model: is changed: what replaces a part with weights takes them over, what only drops follows what is there.
        places: ``DENSE`` or ``LENET``: the parts for a layer of that name, or for those that stand in the place of
            such a layer of torch, or that drop parts of the ``"image"``.
        options: of the layers.

    Returns:
        nn.Module: the same model.

    Raises:
        ValueError: if the network has no place for it.
    """
    layer, make = facts_of(method), getattr(dropoutlib, method)
    if not (names := place_of(layer, places)):
        raise ValueError(f"method has to be one for which the network has a place, but got {method!r}")
    for name in names.split():
        old: Any = model.get_submodule(name)
        if layer.replaces == "Linear":
            new = make.from_linear(old, **options)
        elif layer.replaces == "Conv2d":
            new = make.from_conv(old, **options)
        elif layer.has_weights:
            new = make(old, **options)
        elif layer.site == "window":
            new = make(2, **options)
        else:
            units: Any = [model.get_submodule("output").in_features] if layer.site == "unit" else []
            drops = make(*units, **options)
            new = drops if isinstance(old, nn.Identity) else nn.Sequential(old, drops)
        setattr(model, name, new)
    return model


def rate_of(method: str) -> str | None:
    """The argument of a layer that sets how much is dropped, if there is one."""
    return next((name for name in ("p", "high") if name in signature(getattr(dropoutlib, method)).parameters), None)


# one freezes the weight, and nothing here was trained before; one leaves weights out for good, and nothing here is to
# be smaller; one is for embeddings of words
_NOT_COMPARED = {"LoRALinear", "TargetedDropoutLinear", "NEFTune"}


def place_of(layer: Layer, places: Mapping[str, str]) -> str:
    """The parts of a network, separated by spaces, that a layer replaces or follows; empty if there are none."""
    if not isinstance(getattr(dropoutlib, layer.name, None), type) or layer.law == "none" or layer.site == "feature":
        return ""
    if layer.site in ("branch", "block", "condition", "code", "token") or layer.name in _NOT_COMPARED:
        # no network here has residual branches, maps much larger than a block, conditions, ordered units, or tokens
        return ""
    usual = {"image": "image", "map": "Conv2d" if layer.has_weights else "Dropout2d"}.get(
        layer.site, "Linear" if layer.has_weights else "Dropout")
    return places.get(layer.name, places.get(layer.replaces or usual, ""))


def dense(units: int) -> nn.Sequential:
    """Two hidden layers for 64 pixels, with places for noise.

    Args:
        units: of each hidden layer.

    Returns:
        nn.Sequential: layers with names; ``noise1`` and ``noise2`` behind the activations do nothing.
    """
    return nn.Sequential(OrderedDict(
        hidden1=nn.Linear(64, units), relu1=nn.ReLU(), noise1=nn.Identity(),
        hidden2=nn.Linear(units, units), relu2=nn.ReLU(), noise2=nn.Identity(), output=nn.Linear(units, 10)))


def lenet(side: int) -> nn.Sequential:
    """Two convolutions with max pooling and two dense layers, after LeNet, with places for noise.

    Args:
        side: of the images, in pixels. From 28 on there are 20 and 50 maps of filters with 5 x 5 weights and 500 hidden
            units, for smaller ones 8 and 16 maps of 3 x 3 and 64 units.

    Returns:
        nn.Sequential: takes images in rows; ``noise0`` in front of the first convolution, ``noise1`` and ``noise2``
        behind the pools and ``noise3`` behind the hidden layer do nothing.
    """
    first, second, units, size = (20, 50, 500, 5) if side >= 28 else (8, 16, 64, 3)
    return nn.Sequential(OrderedDict(
        image=nn.Unflatten(1, (1, side, side)), noise0=nn.Identity(),
        conv1=nn.Conv2d(1, first, size, padding=size // 2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        noise1=nn.Identity(),
        conv2=nn.Conv2d(first, second, size, padding=size // 2), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
        noise2=nn.Identity(), flatten=nn.Flatten(),
        hidden=nn.Linear(second * (side // 4) ** 2, units), relu3=nn.ReLU(), noise3=nn.Identity(),
        output=nn.Linear(units, 10)))


class Residual(nn.Module):
    """Adds to its input what a branch makes of it.

    Args:
        branch: its output has the shape of its input.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, input: Tensor) -> Tensor:
        """The sum of ``input`` and the branch's output."""
        return input + self.branch(input)


def residual(placement: str = "none", noise: str = "elements", p: float = 0.5) -> nn.Sequential:
    """A convolution, max pooling, four residual blocks of ReLU and convolution, and a dense layer, for 64 pixels.

    Args:
        placement: a key of ``RESIDUAL``.
        noise: ``"elements"`` or ``"maps"``.
        p: probability of dropping.

    Returns:
        nn.Sequential: layers with names; ``sum1`` is the first block, and ``sum1.branch`` has a layer ``branch1``.
    """
    behind = RESIDUAL[placement]
    layers: dict[str, nn.Module] = {"image": nn.Unflatten(1, (1, 8, 8)), "stem": nn.Conv2d(1, 16, 3, padding=1),
                                    "pool": nn.MaxPool2d(2)}
    for index in range(1, 5):
        branch: dict[str, nn.Module] = {"activation": nn.ReLU(), f"branch{index}": nn.Conv2d(16, 16, 3, padding=1)}
        layers[f"sum{index}"] = Residual(_with_dropout(branch, behind, noise, p))
    layers |= {"relu": nn.ReLU(), "flatten": nn.Flatten(), "output": nn.Linear(256, 10)}
    return _with_dropout(layers, behind, noise, p)


class UNet(nn.Module):
    """A U-Net of depth two; dropout follows the blocks that ``UNET[placement]`` names.

    A dropped output of the encoder is dropped on its way down and on its way across; ``"across"`` drops it there only.

    Args:
        placement: a key of ``UNET``.
        noise: ``"elements"`` or ``"maps"``.
        p: probability of dropping.
    """

    def __init__(self, placement: str = "none", noise: str = "elements", p: float = 0.5) -> None:
        super().__init__()
        sizes = {"encoder1": (1, 8), "encoder2": (8, 16), "bottleneck": (16, 32), "decoder2": (48, 16),
                 "decoder1": (24, 8)}
        blocks = {name: nn.Sequential(nn.Conv2d(*size, 3, padding=1), nn.ReLU()) for name, size in sizes.items()}
        blocks |= {"across1": nn.Sequential(), "across2": nn.Sequential()}
        for name in UNET[placement].split():
            blocks[name].append(NOISE[noise](p))
        self.blocks = nn.ModuleDict(blocks)
        self.output = nn.Conv2d(8, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the foreground, of the shape of ``input``, which is ``(N, 1, H, W)`` with sides divisible by 4."""
        first = self.blocks["encoder1"](input)
        second = self.blocks["encoder2"](F.max_pool2d(first, 2))
        deep = self.blocks["bottleneck"](F.max_pool2d(second, 2))
        first, second = self.blocks["across1"](first), self.blocks["across2"](second)
        up = self.blocks["decoder2"](torch.cat([F.interpolate(deep, scale_factor=2.0), second], 1))
        up = self.blocks["decoder1"](torch.cat([F.interpolate(up, scale_factor=2.0), first], 1))
        return self.output(up)


def he_normal(model: _Model) -> _Model:
    """Draws the weights of convolutions and dense layers anew, with a variance that fits to ReLU; biases are 0.

    Args:
        model: is changed.

    Returns:
        nn.Module: the same model.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return model
