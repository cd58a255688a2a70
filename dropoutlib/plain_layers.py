"""Layers of this library as layers of torch that give what they give in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bayesian.log_normal_dropout import LogNormalDropout
from .bayesian.sparse_variational_dropout import _SparseVariational
from .convolutional.cutout import Cutout
from .convolutional.drop_block import _DropBlock
from .convolutional.max_drop import MaxDrop
from .convolutional.pooling_dropout import _AvgPoolDropout, _MaxPoolDropout
from .convolutional.spatial_dropout import _SpatialDropout
from .convolutional.stochastic_rate_dropout import StochasticRateDropout
from .dense.alpha_dropout import AlphaDropout, FeatureAlphaDropout
from .dense.concrete_dropout import ConcreteDropout
from .dense.dropconnect import _DropConnect
from .dense.fast_dropout import _FastDropout
from .dense.gaussian_dropout import GaussianDropout
from .dense.targeted_dropout import TargetedDropoutLinear
from .dense.variational_dropout import _VariationalDropout
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .layer import NoisyLayer
from .recurrent.embedding_dropout import EmbeddingDropout, LockedDropout
from .recurrent_network import RecurrentNetwork
from .residual.layer_drop import LayerDrop
from .residual.shake_drop import ShakeDrop
from .residual.stochastic_depth import DropPath, StochasticDepth
from .training.condition_dropout import ConditionDropout
from .training.lora_dropout import LoRALinear
from .training.neftune import NEFTune
from .training.nested_dropout import NestedDropout
from .training.patch_dropout import PatchDropout

__all__ = ["Scale", "exchanged"]


class Scale(nn.Module):
    """Multiplies channels, which lie along the second axis, by factors of their own, or everything by one.

    It is what is left of a test rule that scales, where no layer beside it can take the factor into its weights.

    Args:
        factor: one number, or one for each channel.
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, input: Tensor) -> Tensor:
        """Multiplies.

        Args:
            input: of any shape, or ``(N, C, ...)`` where there is a factor for each channel.

        Returns:
            Tensor: of the same shape.
        """
        factor = self.factor.to(input.dtype)
        return input * (factor.view(-1, *[1] * (input.dim() - 2)) if factor.dim() else factor)


@singledispatch
def _plain(layer: nn.Module) -> nn.Module:
    """A layer of torch that gives the outputs that this one gives in evaluation."""
    if not isinstance(layer, NoisyLayer):
        return layer
    raise NotImplementedError(f"{type(layer).__name__} gives in evaluation what no plain layer gives")


@_plain.register(Dropout)
@_plain.register(GaussianDropout)
@_plain.register(AlphaDropout)
@_plain.register(FeatureAlphaDropout)
@_plain.register(_SpatialDropout)
@_plain.register(Cutout)
@_plain.register(_DropBlock)
@_plain.register(MaxDrop)
@_plain.register(StochasticRateDropout)
@_plain.register(LockedDropout)
@_plain.register(StochasticDepth)
@_plain.register(PatchDropout)
@_plain.register(NEFTune)
def _(layer: NoisyLayer) -> nn.Module:
    return nn.Identity()


@_plain.register
def _(layer: WeightScalingDropout) -> nn.Module:
    return _scaled(layer.p)


@_plain.register
def _(layer: DropPath) -> nn.Module:
    return nn.Identity() if layer.scale_by_keep else _scaled(layer.p)


@_plain.register
def _(layer: LoRALinear) -> nn.Module:
    return layer.merge()


@_plain.register
def _(layer: NestedDropout) -> nn.Module:
    if layer.length is not None:
        raise NotImplementedError(f"NestedDropout with length={layer.length} gives in evaluation what no plain layer "
                                  "gives")
    return nn.Identity()


@_plain.register
def _(layer: ConditionDropout) -> nn.Module:
    raise NotImplementedError("ConditionDropout has the null, for which unconditional() is asked, and no plain layer "
                              "has one: exchange it for nn.Identity() where no prediction without a condition is made")


@_plain.register
def _(layer: ShakeDrop) -> nn.Module:
    return Scale(layer.mean(torch.ones(1, dtype=torch.float64)).squeeze(0))


@_plain.register(_FastDropout)
@_plain.register(_VariationalDropout)
def _of_torch(layer: Any) -> nn.Module:
    """The layer of torch that this one is, with the noise left out."""
    plain: nn.Module
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        kind: Callable[..., nn.Module] = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
        plain = kind(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                     layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


@_plain.register
def _(layer: _DropConnect) -> nn.Module:
    if layer.activation is not None and layer.inference != "mean":
        raise NotImplementedError(f"{type(layer).__name__} with inference={layer.inference!r} averages its "
                                  "activation, which no plain layer does: use inference='mean'")
    parts = [_of_torch(layer)]
    if layer.p == 1:
        parts.append(_scaled(1.0))
    if layer.activation is not None:
        parts.append(_activation(layer.activation))
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


@_plain.register
def _(layer: _SparseVariational) -> nn.Module:
    return _of_weights(layer, layer.keep)


@_plain.register
def _(layer: TargetedDropoutLinear) -> nn.Module:
    return _of_weights(layer, ~layer.candidates())


def _of_weights(layer: Any, keep: Tensor) -> nn.Module:
    """The layer of torch with some of the weights."""
    plain = _of_torch(layer)
    plain.weight = nn.Parameter(torch.where(keep, layer.weight.detach(), 0), layer.weight.requires_grad)
    return plain


@_plain.register
def _(layer: LogNormalDropout) -> nn.Module:
    return Scale(layer.scale.detach())


@_plain.register(ConcreteDropout)
@_plain.register(LayerDrop)
def _(layer: Any) -> nn.Module:
    return _plain(layer.module)


@_plain.register
def _(layer: _AvgPoolDropout) -> nn.Module:
    pool: Callable[..., nn.Module] = getattr(nn, f"AvgPool{layer._axes}d")
    return pool(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)


@_plain.register
def _(layer: _MaxPoolDropout) -> nn.Module:
    pool: Callable[..., nn.Module] = getattr(nn, f"MaxPool{layer._axes}d")
    plain = pool(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)
    if layer.p == 0:
        return plain
    if layer.inference == "expected":
        raise NotImplementedError(f"{type(layer).__name__} with inference='expected' averages over its windows, which "
                                  "no plain layer does: use inference='scaled'")
    return nn.Sequential(plain, _scaled(layer.p))


@_plain.register
def _(layer: EmbeddingDropout) -> nn.Module:
    plain = nn.Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, layer.max_norm, layer.norm_type,
                         layer.scale_grad_by_freq, layer.sparse, device="meta")
    plain.weight = layer.weight
    return plain


@_plain.register
def _(layer: RecurrentNetwork) -> nn.Module:
    if type(layer)._test_rule is not RecurrentNetwork._test_rule:
        raise NotImplementedError(f"{type(layer).__name__} has a test rule of its own, which no plain layer has")
    plain: nn.Module = getattr(nn, layer.mode)(layer.input_size, layer.hidden_size, layer.num_layers, layer.bias,
                                               layer.batch_first, layer.dropout, layer.bidirectional, device="meta")
    plain.load_state_dict(layer.state_dict(), assign=True)
    return plain


def _require_forward_of_the_library(module: nn.Module) -> None:
    if isinstance(module, NoisyLayer) and not type(module).forward.__module__.startswith(f"{__package__}."):
        raise NotImplementedError(f"{type(module).__name__} has a forward of its own: what it gives in evaluation is "
                                  "not known")


def _scaled(p: float) -> Scale:
    return Scale(torch.tensor(1 - p, dtype=torch.float64))


def _activation(function: Callable[[Tensor], Tensor]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function
    modules = {torch.relu: nn.ReLU, F.relu: nn.ReLU, torch.sigmoid: nn.Sigmoid, F.sigmoid: nn.Sigmoid,
               torch.special.expit: nn.Sigmoid, torch.tanh: nn.Tanh, F.tanh: nn.Tanh}
    if function not in modules:
        raise NotImplementedError(f"the activation {function!r} is not known as a module: give one, such as nn.ReLU()")
    return modules[function]()


def exchanged(module: nn.Module, place: str = "", done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Exchanges layers of this library, in place, for plain ones; what a model has twice it still has twice.

    Args:
        module: a model that may be changed.
        place: its name, for messages.
        done: what was exchanged already.

    Returns:
        nn.Module: the model, or what stands for it if it is a layer of this library.

    Raises:
        ValueError: if a layer has no plain equal, with its place.
    """
    done = {} if done is None else done
    if module not in done:
        try:
            _require_forward_of_the_library(module)
            done[module] = _plain(module)
        except NotImplementedError as error:
            raise ValueError(f"{place or 'the model'}: {error}") from None
        for name, child in list(done[module]._modules.items()):
            if child is not None:
                setattr(done[module], name, exchanged(child, f"{place}.{name}" if place else name, done))
    return done[module]
