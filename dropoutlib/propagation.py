"""Mean and variance of a network's output under its dropout, computed layer by layer, without a draw.

A table says what each class of layer does to moments; what it does not hold is refused.  The rules are exact for the
moments that reach them, but for ReLU, which takes its input for Gaussian, and but for covariances that are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import dropoutlib.moments as moments

from .arguments import boolean, is_autocast, require_tensor
from .bayesian.log_normal_dropout import LogNormalDropout
from .bayesian.sparse_variational_dropout import (
    SparseVariationalConv1d,
    SparseVariationalConv2d,
    SparseVariationalLinear,
)
from .convolutional.spatial_dropout import SpatialDropout1d, SpatialDropout2d, SpatialDropout3d
from .dense.dropconnect import _LINEAR, DropConnectLinear, _pre_activation
from .dense.fast_dropout import FastDropoutConv1d, FastDropoutConv2d, FastDropoutLinear
from .dense.gaussian_dropout import GaussianDropout
from .dense.variational_dropout import VariationalDropoutConv1d, VariationalDropoutConv2d, VariationalDropoutLinear
from .foundations.standard_dropout import Dropout, WeightScalingDropout
from .from_torch import method_of_its_own
from .front import DRAWING_LAYERS
from .moments import JointMoments, Moments, _outer, _with_diagonal
from .noise import Bernoulli, Gaussian, inverted_scale, odds
from .surgery import (
    _CONTEXTS,
    _has_hooks_for_all_modules,
    _is_noisy,
    _joined,
    _left_as_it_was,
    _never_drops,
    _require_values,
    _require_what_can_be_followed,
)

__all__ = ["propagate_moments"]

# Examples lie along the first axis. The mean keeps the shape of the layer's output; a covariance is that of the rest of
# its axes, flattened.
_Value: TypeAlias = Moments | JointMoments
_Map: TypeAlias = Callable[[Tensor], Tensor]
_POOLS: dict[type[nn.Module], int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3, nn.AdaptiveAvgPool1d: 1,
                                      nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
_CONVOLUTIONS: dict[type[nn.Module], tuple[int, Callable[..., Tensor]]] = {
    nn.Conv1d: (1, F.conv1d), nn.Conv2d: (2, F.conv2d), nn.Conv3d: (3, F.conv3d)}
_MAPS: dict[type[nn.Module], int] = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3, SpatialDropout1d: 1,
                                     SpatialDropout2d: 2, SpatialDropout3d: 3}
_KNOWN = ("torch.nn.modules.", "torch.nn.utils.parametrizations", "dropoutlib.")    # of modules without dropout
_RELU = (torch.relu, F.relu, nn.ReLU)


class _Law(NamedTuple):
    """What is known of a noise: a number, or a tensor with one for each element."""

    mean: Any
    variance: Any


class _Refused(NotImplementedError):
    """What cannot be followed; the place is not known yet."""


@overload
def propagate_moments(model: nn.Module, x: Tensor, *, covariance: Literal[False] = False) -> Moments: ...


@overload
def propagate_moments(model: nn.Module, x: Tensor, *, covariance: Literal[True]) -> JointMoments: ...


@overload
def propagate_moments(model: nn.Module, x: Tensor, *, covariance: bool) -> Moments | JointMoments: ...


def propagate_moments(model: nn.Module, x: Tensor, *, covariance: bool = False) -> Moments | JointMoments:
    """Mean and variance of the output of a sequential network under its dropout, from one pass and without a draw.

    The noise is that of training, all else is as in evaluation: batch norm has its stored statistics, whatever mode
    the model is in. Its mode is left as it was, and torch's random numbers, too, which no other thread may draw
    meanwhile. What lies in front of the first noise is certain. There any layers of ``torch.nn`` may stand that do not
    draw; of other classes, and of hooks, that is not known: compute those before, as by
    ``propagate_moments(model.head, model.backbone(x))``. :class:`~dropoutlib.Cutout` is an augmentation, and left out.
    From there on are followed

    * ``nn.Sequential``, also one in another, ``Linear``, ``Conv1d/2d/3d`` padded with zeros, ``BatchNorm1d/2d/3d``,
      ``AvgPool1d/2d/3d``, ``AdaptiveAvgPool1d/2d/3d``, ``Flatten``, ``Unflatten`` and ``Identity``, exactly;
    * ``ReLU``, which takes its input for Gaussian;
    * ``nn.Dropout``, :class:`~dropoutlib.Dropout`, :class:`~dropoutlib.WeightScalingDropout` and
      :class:`~dropoutlib.GaussianDropout`, exactly;
    * dropout of whole maps, torch's and :class:`~dropoutlib.SpatialDropout2d`, with ``covariance=True``: to count the
      elements of one map as independent would miss nearly all of its noise;
    * :class:`~dropoutlib.DropConnectLinear` without activation or with ReLU, :class:`~dropoutlib.FastDropoutLinear`
      and its convolutions, for the dropout that they stand for, :class:`~dropoutlib.VariationalDropoutLinear`,
      :class:`~dropoutlib.SparseVariationalLinear` and their convolutions, and :class:`~dropoutlib.LogNormalDropout` (on
      maps with ``covariance=True``), with all units and weights, as in training.

    Everything else is refused with its place.

    Without covariances the elements behind a layer count as independent. They share masks, and in trained networks this
    matters: the standard deviation of a logit comes out as 0.69 of that of 5000 samples in a dense network with one
    hidden layer, as 0.51 with three, and as 0.86 in a convolutional network. With covariances it is 1.00, 0.98 and
    1.00, and 1.00 where whole maps are dropped. These are medians over 200 logits, averaged over six trainings on
    digits with rates of 0.2 for inputs and maps and 0.5 for hidden units (``python -m
    dropoutlib.experiments.propagation``).

    With ``covariance=True`` the covariances are carried, too. For n elements behind a layer these are n^2 numbers for
    every example, n being channels times positions for maps: it is for narrow layers and small images
    (:class:`~dropoutlib.moments.JointMoments`).

    Args:
        model: the network. A module that draws no masks for itself may also be the model.
        x: inputs without noise, of shape ``(N, ...)``: examples lie along the first axis.
        covariance: whether the covariances of the elements of an example are carried.

    Returns:
        Moments: mean and variance of the shape of the output. With ``covariance=True`` a JointMoments whose mean is of
        shape ``(N, n)`` and whose covariance is of shape ``(N, n, n)``, an output of more axes being flattened. Both
        are differentiable in weights and inputs. The variance is that of the noise alone: that of the data, such as the
        noise of a regression, is not known to the network and comes on top.

    Raises:
        NotImplementedError: if a module cannot be followed, with its name in the model; also if one from the first
            noise on, or a sequence, has hooks, of its own or such as torch calls for all modules.
        ValueError: if what was followed has no noise at all, if ``x`` has no axis of examples, or a layer gets another
            number of axes than those of a batch; if the model has lazy layers that have no weights yet, or weights
            without values, on the device meta.
        TypeError: if the model is no module, or is scripted or exported, ``x`` is no tensor, or ``covariance`` no truth
            value.
        RuntimeError: if shapes do not fit, or ``x`` holds no real floating point numbers, or those of float16, in
            which variances overflow.

    Source:
        Postels et al., *Sampling-Free Epistemic Uncertainty Estimation Using Approximated Variance Propagation* (2019),
        who leave the covariances out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import propagate_moments
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> propagate_moments(model, torch.tensor([[1.0, 2.0, 3.0]]))
        Moments(mean=tensor([[6., 6.]], grad_fn=<MmBackward0>), variance=tensor([[14., 14.]], grad_fn=<MmBackward0>))
        >>> with torch.no_grad():
        ...     joint = propagate_moments(model, torch.tensor([[1.0, 2.0, 3.0]]), covariance=True)
        >>> joint.covariance  # both units read the same masks
        tensor([[[14., 14.],
                 [14., 14.]]])
        >>> propagate_moments(nn.Sequential(nn.Dropout(), nn.Tanh()), torch.ones(1, 3))
        Traceback (most recent call last):
        ...
        NotImplementedError: 1 (Tanh) cannot be followed behind noise: no rule for its moments is known
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    joint = boolean("covariance", covariance)
    require_tensor(x, "x")
    if x.is_complex() or x.is_nested:
        raise RuntimeError("x has to hold real numbers, and examples of one size, but got "
                           f"{'a nested tensor' if x.is_nested else x.dtype}")
    if torch.float16 in (x.dtype, torch.get_autocast_dtype(x.device.type) if is_autocast(x) else None):
        raise RuntimeError("x has to be float32, float64 or bfloat16, but got float16, in which the square of 256 is "
                           "infinite")
    if x.dim() < 2:
        raise ValueError("x has to be of shape (N, ...), with examples along the first axis, "
                         f"but got the shape {tuple(x.shape)}: x[None] is one example")
    _require_what_can_be_followed(model)
    if not x.is_meta:
        _require_values(model)
    with _left_as_it_was(model):
        value = _through(model, x.clone(), "", joint)  # a layer may write into its input
    if not isinstance(value, (Moments, JointMoments)):
        raise ValueError(f"the model {type(model).__name__} has no noise whose moments could be carried: no dropout "
                         "layer with a rate above 0")
    return _flat(value)


def _through(module: nn.Module, value: Any, place: str, joint: bool) -> Any:
    """What a module makes of a value; what is no moments is a value without noise, in most models a tensor."""
    module = module.get_submodule("_orig_mod") if _is_compiled(module) else module
    kind = next((base for base in type(module).__mro__ if base in _RULES or base is nn.Sequential), None)
    replaced = method_of_its_own(module, type(module))
    if kind is None or method_of_its_own(module, kind):
        kind = None
    if kind is nn.Sequential:
        _refuse_hooks(module, place)
        parts: Any = module._modules  # named_children() leaves out a layer that stands in the sequence before
        for name, part in parts.items():
            value = _through(part, value, _joined(place, name), joint)
        return value
    is_certain = not isinstance(value, (Moments, JointMoments))
    when = "" if is_certain else " behind noise"
    try:
        if is_certain:
            if not _has_noise(module):
                return _certain(module, value, place)
            if kind is None and not _is_noisy(module):
                raise _Refused("it has dropout inside, and only sequences are followed")
        if kind is None:
            raise _Refused(f"its {replaced} was replaced" if replaced else "no rule for its moments is known")
        _refuse_hooks(module, place)
        _refuse_parametrizations(module)
        return _RULES[kind](module, _without_noise(value, joint) if is_certain else value)
    except _Refused as error:
        raise NotImplementedError(f"{place or 'the model'} ({type(module).__name__}) cannot be followed{when}: "
                                  f"{error}") from None
    except (RuntimeError, ValueError) as error:
        error.add_note(f"in {place or 'the model'} ({type(module).__name__})")
        raise


def _has_noise(module: nn.Module) -> bool:
    return any((_is_noisy(part) and not _never_drops(part))
               or (isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) and part.dropout > 0)
               for part in module.modules())


def _certain(module: nn.Module, value: Any, place: str) -> Any:
    """What torch's layers without noise make of a value without noise."""
    unknown = next(filter(None, map(_what_may_draw, module.modules())), None)
    if unknown and not place:
        raise _Refused(f"{unknown} may draw, and only sequences of layers are followed")
    if unknown:
        cut = int(place) + 1 if place.isdecimal() else "k"
        raise _Refused(f"{unknown} may draw in training; what stands in front of the noise can be computed before: "
                       f"propagate_moments(model[{cut}:], model[:{cut}].eval()(x))")
    return module(value)


def _what_may_draw(layer: nn.Module) -> str:
    """What of a layer is not known not to draw in training, if it has no dropout; empty where all is known."""
    kind = type(layer).__mro__[1] if parametrize.is_parametrized(layer) else type(layer)
    if isinstance(layer, parametrize.ParametrizationList) or _is_compiled(layer):
        return ""   # no layers: their parts are asked
    if not kind.__module__.startswith(_KNOWN):
        return f"the forward of {kind.__name__}"
    if kind in DRAWING_LAYERS:
        return kind.__name__
    if method := method_of_its_own(layer, kind):
        return f"the {method} of {kind.__name__}"
    functions = [value for value in vars(layer).values() if isinstance(value, FunctionType)]
    if not all(function.__module__.startswith("torch.") for function in functions):
        return f"a function that {kind.__name__} was given"
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    return "" if all(map(_is_of_torch, hooks)) else f"hooks of {kind.__name__}"


def _refuse_parametrizations(module: nn.Module) -> None:
    """But those of torch: another one may draw."""
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        if _has_noise(parametrizations):
            raise _Refused("its parameters are dropped by a parametrization")
        for part in parametrizations.modules():
            if not _is_of_torch(part) or type(part) in DRAWING_LAYERS:
                raise _Refused(f"its parametrization {type(part).__name__} may draw in training; "
                               "torch.nn.utils.parametrize.remove_parametrizations makes plain weights of it")


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo.")


def _is_of_torch(part: Any) -> bool:
    return type(part).__module__.startswith("torch.nn.")


def _refuse_hooks(module: nn.Module, place: str) -> None:
    if _CONTEXTS.get(module):
        raise NotImplementedError(f"{place or 'the model'} ({type(module).__name__}) cannot be followed: it is in a "
                                  "context of monte_carlo, which has its layers draw; leave it first")
    of_all = _has_hooks_for_all_modules()
    if of_all or module._forward_hooks or module._forward_pre_hooks:
        raise NotImplementedError(f"{place or 'the model'} ({type(module).__name__}) cannot be followed: "
                                  f"{'torch has hooks for all modules' if of_all else 'it has hooks'}, which may "
                                  "change its weights, its input or its output")


def _without_noise(x: Any, joint: bool) -> _Value:
    if not isinstance(x, Tensor):
        raise _Refused(f"it gets a {type(x).__name__}, and noise is followed through tensors")
    elements = x.shape[1:].numel()
    return JointMoments(x, x.new_zeros(len(x), elements, elements)) if joint else Moments(x, torch.zeros_like(x))


def _flat(value: _Value) -> _Value:
    return JointMoments(value.mean.flatten(1), value.covariance) if isinstance(value, JointMoments) else value


def _elementwise(function: Callable[[Any], Any], value: _Value) -> _Value:
    result: _Value = function(_flat(value))
    return result._replace(mean=result.mean.view(value.mean.shape))


def _affine(value: _Value, mean: Tensor, linear: _Map, squared: _Map) -> _Value:
    """Moments behind a linear map and a constant.

    Args:
        value: in front of it.
        mean: behind it.
        linear: the map, without the constant.
        squared: the map with the squares of its weights.
    """
    if mean.shape[:1] != value.mean.shape[:1]:
        raise _Refused("it mixes examples")
    if isinstance(value, Moments):
        return Moments(mean, squared(value.variance))

    def mapped(rows: Tensor) -> Tensor:
        behind: Tensor = linear(rows.reshape(rows.shape[:2].numel(), *value.mean.shape[1:]))
        return behind.reshape(*rows.shape[:2], mean.shape[1:].numel())

    spread = mapped(mapped(value.covariance).mT)
    return JointMoments(mean, _with_diagonal(spread, spread.diagonal(dim1=-2, dim2=-1).clamp(min=0)))


def _require_batch(value: _Value, axes: int) -> None:
    if value.mean.dim() != axes + 2:
        raise ValueError(f"input has to be a batch of shape (N, C, {', '.join('DHW'[-axes:] if axes > 1 else 'L')}), "
                         f"but got the shape {tuple(value.mean.shape)}")


# What classes of layers do to moments


def _linear(layer: Any, value: _Value) -> _Value:
    weight = layer.weight
    return _affine(value, F.linear(value.mean, weight, layer.bias), lambda v: F.linear(v, weight),
                   lambda v: F.linear(v, weight.square()))


def _convolution(layer: Any, value: _Value) -> _Value:
    axes, convolve = next(_CONVOLUTIONS[base] for base in type(layer).__mro__ if base in _CONVOLUTIONS)
    _require_batch(value, axes)
    if layer.padding_mode != "zeros":
        raise _Refused(f"padding_mode={layer.padding_mode!r} reads one element in several places")

    def by(weight: Tensor, bias: Tensor | None = None) -> _Map:
        return lambda v: convolve(v, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    return _affine(value, by(layer.weight, layer.bias)(value.mean), by(layer.weight), by(layer.weight.square()))


def _batch_norm(layer: Any, value: _Value) -> _Value:
    if layer.running_var is None:
        raise _Refused("it has no stored statistics, so that those of the batch mix examples")
    factor = torch.rsqrt(layer.running_var + layer.eps)
    factor = (factor if layer.weight is None else factor * layer.weight).view(-1, *[1] * (value.mean.dim() - 2))
    return _affine(value, layer(value.mean), lambda v: v * factor, lambda v: v * factor.square())


def _average(layer: Any, value: _Value) -> _Value:
    axes = next(_POOLS[base] for base in type(layer).__mro__ if base in _POOLS)
    _require_batch(value, axes)
    mean = layer(value.mean)

    def squared(v: Tensor) -> Tensor:
        """In a window all weights are the same: with its weight once more, they are squared."""
        if getattr(layer, "divisor_override", None):
            return layer(v) / layer.divisor_override
        behind: Tensor = layer(v)
        for axis in range(-axes, 0):
            each = torch.eye(v.shape[axis], dtype=v.dtype, device=v.device).unsqueeze(1)
            weight = _pool_along(layer, each, axis, mean.shape[axis]).amax((0, 1))
            behind = behind * weight.view(-1, *[1] * (-axis - 1))
        return behind

    return _affine(value, mean, layer, squared)


def _pool_along(layer: Any, x: Tensor, axis: int, size: int) -> Tensor:
    """One axis of a pool, for x of shape (examples, 1, elements): its weights are products over the axes."""
    if not hasattr(layer, "kernel_size"):
        return F.adaptive_avg_pool1d(x, size)
    kernel, stride, padding = (part if isinstance(part, int) else part[axis]
                               for part in (layer.kernel_size, layer.stride, layer.padding))
    return F.avg_pool1d(x, kernel, stride, padding, layer.ceil_mode, layer.count_include_pad)


def _rearranged(layer: nn.Module, value: _Value) -> _Value:
    return _affine(value, layer(value.mean), layer, layer)


def _relu(layer: nn.Module, value: _Value) -> _Value:
    return _elementwise(moments.relu, value)


def _times(law: Callable[[Any], tuple[moments.Law, float]]) -> Callable[[Any, _Value], _Value]:
    """The rule of a layer that multiplies each element by a noise of its own."""
    return lambda layer, value: _elementwise(lambda flat: moments.multiply(flat, *law(layer)), value)


def _inverted(layer: Any) -> tuple[Bernoulli, float]:
    return Bernoulli(layer.p), inverted_scale(layer.p)


_drop = _times(_inverted)


def _times_for_each_map(value: _Value, law: moments.Law | _Law, scale: float = 1.0) -> JointMoments:
    """Moments behind a noise that is one for all positions of a map."""
    if isinstance(value, Moments):
        raise _Refused("one draw for a whole map makes its elements correlated: covariance=True carries that")
    mean, maps = value.mean.flatten(1), value.mean.shape[1]
    place = torch.arange(mean.shape[1], device=mean.device) // value.mean.shape[2:].numel()
    of_noise, spread = (torch.as_tensor(part, dtype=mean.dtype, device=mean.device).expand(maps)[place]
                        for part in (scale * law.mean, scale**2 * law.variance))
    # E[noise^2] E[h h'] - E[noise]^2 E[h] E[h'] within a map; between maps the noises are independent
    within = spread * (value.covariance + _outer(mean)) * (place[:, None] == place)
    return JointMoments((of_noise * mean).view(value.mean.shape), _outer(of_noise) * value.covariance + within)


def _drop_maps(layer: Any, value: _Value) -> _Value:
    _require_batch(value, next(_MAPS[base] for base in type(layer).__mro__ if base in _MAPS))
    return _times_for_each_map(value, *_inverted(layer))


def _log_normal(layer: LogNormalDropout, value: _Value) -> _Value:
    one = value.mean.new_ones(1, value.mean.shape[1])
    law = _Law(layer.mean(one)[0], layer.variance(one)[0])
    if value.mean.dim() > 2:
        return _times_for_each_map(value, law)
    return _elementwise(lambda flat: moments.multiply(flat, law), value)


def _fast_dropout(layer: Any, value: _Value) -> _Value:
    odds(layer.p, "fast dropout")
    return _sums(layer, _drop(layer, value))


def _plus(value: _Value, variance: Tensor) -> _Value:
    """With noise that is independent for every element and, given what came before, has a mean of 0."""
    if isinstance(value, Moments):
        return Moments(value.mean, value.variance + variance)
    return JointMoments(value.mean, value.covariance + torch.diag_embed(variance.flatten(1)))


def _root_mean_square(value: _Value) -> Tensor:
    """The certain input of the same mean squares, on which alone the variance of noisy weights depends."""
    return (value.mean.square() + value.variance.view(value.mean.shape)).sqrt()


def _drop_connect(layer: DropConnectLinear, value: _Value) -> _Value:
    if value.mean.dim() > 2 and isinstance(value, JointMoments):
        raise _Refused("the positions of an example share the masks of its weights, which covariance=True does not "
                       "carry")
    given = _pre_activation(_LINEAR, _root_mean_square(value), layer.weight, layer.bias, Bernoulli(layer.p)).variance
    mean = _pre_activation(_LINEAR, value.mean, layer.weight, layer.bias, Bernoulli(layer.p)).mean
    weight = layer.weight if layer.p < 1 else torch.zeros_like(layer.weight)
    behind = _plus(_affine(value, mean, lambda v: F.linear(v, weight), lambda v: F.linear(v, weight.square())),
                   given.to(mean.dtype))
    if layer.activation is None:
        return behind
    if layer.activation not in _RELU and type(layer.activation) not in _RELU:
        raise _Refused("of its activations ReLU alone is followed")
    return _relu(layer, behind)


def _sums(layer: Any, value: _Value) -> _Value:
    """Behind the weights without their noise."""
    return _linear(layer, value) if isinstance(layer, nn.Linear) else _convolution(layer, value)


def _noisy_weights(layer: Any, value: _Value) -> _Value:
    return _plus(_sums(layer, value), layer.variance(_root_mean_square(value)))


def _variational(layer: VariationalDropoutLinear, value: _Value) -> _Value:
    if layer.kind == "A":
        return _noisy_weights(layer, value)
    alpha = layer.alpha.to(value.mean.dtype).expand(value.mean.shape[1:])
    if isinstance(value, JointMoments):
        alpha = alpha.reshape(-1)
    return _linear(layer, _elementwise(lambda flat: moments.multiply(flat, _Law(1.0, alpha)), value))


_RULES: dict[type[nn.Module], Callable[[Any, Any], _Value]] = {
    nn.Linear: _linear,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys(_POOLS, _average),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.Identity), _rearranged),
    nn.ReLU: _relu,
    **dict.fromkeys((nn.Dropout, Dropout), _drop),
    WeightScalingDropout: _times(lambda layer: (Bernoulli(layer.p), 1.0)),
    GaussianDropout: _times(lambda layer: (Gaussian(1.0, odds(layer.p, "Gaussian dropout")), 1.0)),
    **dict.fromkeys(_MAPS, _drop_maps),
    **dict.fromkeys((FastDropoutLinear, FastDropoutConv1d, FastDropoutConv2d), _fast_dropout),
    DropConnectLinear: _drop_connect,
    VariationalDropoutLinear: _variational,
    **dict.fromkeys((VariationalDropoutConv1d, VariationalDropoutConv2d, SparseVariationalLinear,
                     SparseVariationalConv1d, SparseVariationalConv2d), _noisy_weights),
    LogNormalDropout: _log_normal,
}
