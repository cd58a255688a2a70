"""Small convolutional networks with dropout in one place or another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib import Dropout, SpatialDropout2d

__all__ = ["CNN", "NOISE", "UNET", "UNet", "cnn", "he_normal"]

CNN = {"none": "", "before batch norm": "conv1 conv2", "before pooling": "relu1 relu2", "after pooling": "pool1 pool2",
       "between modules": "pool1", "before flatten": "pool2", "between dense layers": "relu3",
       "everywhere": "pool1 pool2 relu3"}  # for each placement the layers that dropout follows
UNET = {"none": "", "encoder": "encoder1 encoder2", "bottleneck": "bottleneck", "decoder": "decoder2 decoder1"}
NOISE: dict[str, type[nn.Module]] = {"elements": Dropout, "maps": SpatialDropout2d}


def cnn(placement: str = "none", noise: str = "elements", p: float = 0.5, batch_norm: bool = False) -> nn.Sequential:
    """Two modules of convolution, batch norm, ReLU and max pooling, and two dense layers, for 64 pixels.

    Args:
        placement: a key of ``CNN``.
        noise: ``"elements"`` or ``"maps"``; between the dense layers it is always elements.
        p: probability of dropping.
        batch_norm: whether the modules have batch norm.

    Returns:
        nn.Sequential: layers with names; dropout behind the layer ``pool1`` is called ``drop_pool1``.
    """
    layers: dict[str, nn.Module] = {"image": nn.Unflatten(1, (1, 8, 8))}
    for index, (before, after) in enumerate(((1, 8), (8, 16)), start=1):
        layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1)
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(after)
        layers |= {f"relu{index}": nn.ReLU(), f"pool{index}": nn.MaxPool2d(2)}
    layers |= {"flatten": nn.Flatten(), "hidden": nn.Linear(64, 64), "relu3": nn.ReLU(), "output": nn.Linear(64, 10)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
        if name in CNN[placement].split():
            model.add_module(f"drop_{name}", Dropout(p) if name == "relu3" else NOISE[noise](p))
    return model


class UNet(nn.Module):
    """A U-Net of depth two; dropout follows the blocks that ``UNET[placement]`` names.

    A dropped output of the encoder is dropped on its way down and on its way across.

    Args:
        placement: a key of ``UNET``.
        noise: ``"elements"`` or ``"maps"``.
        p: probability of dropping.
    """

    def __init__(self, placement: str = "none", noise: str = "elements", p: float = 0.5) -> None:
        super().__init__()
        sizes = {"encoder1": (1, 8), "encoder2": (8, 16), "bottleneck": (16, 32), "decoder2": (48, 16),
                 "decoder1": (24, 8)}
        self.blocks = nn.ModuleDict({name: nn.Sequential(
            nn.Conv2d(*size, 3, padding=1), nn.ReLU(),
            *([NOISE[noise](p)] if name in UNET[placement].split() else [])) for name, size in sizes.items()})
        self.output = nn.Conv2d(8, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the foreground, of the shape of ``input``, which is ``(N, 1, H, W)`` with sides divisible by 4."""
        first = self.blocks["encoder1"](input)
        second = self.blocks["encoder2"](F.max_pool2d(first, 2))
        deep = self.blocks["bottleneck"](F.max_pool2d(second, 2))
        up = self.blocks["decoder2"](torch.cat([F.interpolate(deep, scale_factor=2.0), second], 1))
        up = self.blocks["decoder1"](torch.cat([F.interpolate(up, scale_factor=2.0), first], 1))
        return self.output(up)


def he_normal(model: nn.Module) -> nn.Module:
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
