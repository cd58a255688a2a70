"""DropConnect: every weight is kept or set to zero, independently, with a mask of its own for every example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib.moments as moments

from ..arguments import (
    boolean,
    noise_pair,
    one_of,
    positive_integer,
    refuse_noise,
    require_callable,
    require_channels,
    require_features,
)
from ..documentation import RANKS, UNDER_SHAPE
from ..from_torch import FromConv, FromLinear
from ..layer import NoisyLayer, draws
from ..local_reparameterization import Product, convolution
from ..maps import in_format_of
from ..methods import describe
from ..moments import Moments
from ..noise import Bernoulli, Gaussian, apply, inverted_scale, masked_product, masks_of_weight, nothing

__all__ = ["DropConnectConv1d", "DropConnectConv2d", "DropConnectLinear", "WeightNoise", "drop_connect_conv1d",
           "drop_connect_conv2d", "drop_connect_linear"]

_CLOSED_FORMS: dict[Any, Callable[[Moments], Moments]] = {
    torch.relu: moments.relu, F.relu: moments.relu, nn.ReLU: moments.relu,
    torch.sigmoid: moments.sigmoid, F.sigmoid: moments.sigmoid, nn.Sigmoid: moments.sigmoid,
    torch.special.expit: moments.sigmoid,
}


class WeightNoise(NamedTuple):
    """Keep masks of a layer's weight and of its bias, 0 or 1 before any scaling.

    Attributes:
        weight: of shape ``(batch, out, in)``, with the sides of the filters behind for a convolution; without the
            batch where all examples share one, as at p = 0 and p = 1.
        bias: of shape ``(batch, out)``, or ``(out,)``.
    """

    weight: Tensor
    bias: Tensor


class _Sums(NamedTuple):
    """How inputs and weights make sums, with ``axes`` spatial axes, and how they do with a mask for every example.

    ``for_examples`` takes input, weight, the bias of every example with its noise, the law, ``noise=`` and
    ``generator=``; ``masks`` draws what it draws, of input, weight and law.
    """

    product: Product
    axes: int
    for_examples: Callable[..., Tensor]
    masks: Callable[..., Tensor]


def _linear_for_examples(input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli, *, noise: Tensor | None,
                         generator: torch.Generator | None) -> Tensor:
    rows = input.unsqueeze(1) if input.dim() == 2 else input.flatten(1, -2)  # (batch, rows that share a mask, in)
    output = inverted_scale(law.p) * masked_product(rows, weight, law, noise=noise, generator=generator)
    if bias is not None:
        output = output + bias.unsqueeze(1).to(output.dtype)
    return output.view(*input.shape[:-1], -1) if input.numel() else output.reshape(*input.shape[:-1], weight.shape[0])


_LINEAR = _Sums(F.linear, 0, _linear_for_examples, masks_of_weight)


def _convolution(axes: int, stride: Any, padding: Any, dilation: Any, groups: int) -> _Sums:
    product = convolution(axes, stride, padding, dilation, groups)

    def for_examples(input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli, *, noise: Tensor | None,
                     generator: torch.Generator | None) -> Tensor:
        """The filters of all examples side by side, as groups of one convolution."""
        batch = input.shape[0]  # len() would fix it in an exported graph
        kept = apply(weight.expand(batch, *weight.shape), law, inverted_scale(law.p), noise=noise, generator=generator)
        if batch == 0:
            return product(input, weight, bias if bias is None else bias.sum(0))
        beside = convolution(axes, stride, padding, dilation, groups * batch)
        outputs = beside(input.flatten(0, 1).unsqueeze(0), kept.flatten(0, 1), bias if bias is None else bias.flatten())
        return in_format_of(input, outputs.unflatten(1, (batch, -1)).squeeze(0))

    def masks(input: Tensor, weight: Tensor, law: Bernoulli, *, generator: torch.Generator | None) -> Tensor:
        return law.sample(weight.expand(input.shape[0], *weight.shape), generator=generator)

    return _Sums(product, axes, for_examples, masks)


def _draw(input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool,
          activation: Callable[[Tensor], Tensor] | None, inference: str, num_samples: int, sharing: str, *,
          generator: torch.Generator | None) -> Tensor | WeightNoise:
    require_features(input, weight, bias)
    return _drawn(_LINEAR, input, weight, bias, p, training, activation, inference, num_samples, sharing,
                  generator=generator)


def _draw_conv(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
               groups: int, p: float, training: bool, activation: Callable[[Tensor], Tensor] | None, inference: str,
               num_samples: int, sharing: str, axes: int, *, generator: torch.Generator | None
               ) -> Tensor | WeightNoise:
    require_channels(input, weight, bias, axes, groups)
    return _drawn(_convolution(axes, stride, padding, dilation, groups), input, weight, bias, p, training, activation,
                  inference, num_samples, sharing, generator=generator)


def _drawn(sums: _Sums, input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool,
           activation: Callable[[Tensor], Tensor] | None, inference: str, num_samples: int, sharing: str, *,
           generator: torch.Generator | None) -> Tensor | WeightNoise:
    """What is drawn, in the order in which it is drawn."""
    law = Bernoulli(p)
    _check_choices(inference, num_samples, sharing)
    if not training:
        if inference != "sampled" or activation is None:
            raise ValueError("DropConnect draws nothing with training=False, unless inference='sampled' has an "
                             f"activation to average: got inference={inference!r}, activation={activation!r}")
        return _normal(_pre_activation(sums, input, weight, bias, law).mean, num_samples, generator=generator)
    batch = _batch(sums, input, law, sharing)
    keep_bias = None if bias is None else law.sample(bias.expand(*batch, -1), generator=generator)
    keep = sums.masks(input, weight, law, generator=generator) if batch else law.sample(weight, generator=generator)
    return keep if keep_bias is None else WeightNoise(keep, keep_bias)


@draws(_draw)
@describe("dropconnect")
def drop_connect_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5,
                        training: bool = True, *, activation: Callable[[Tensor], Tensor] | None = None,
                        inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                        sharing: Literal["sample", "batch"] = "sample",
                        noise: Tensor | tuple[Tensor, Tensor] | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    """A linear layer with dropped weights, and an activation.

    See :class:`~dropoutlib.DropConnectLinear`.

    Args:
        {features} {weight} {bias} It is dropped like a weight.
        p: the probability of dropping a weight.
        training: whether weights are dropped; if not, the rule ``inference`` is used.
        activation: acts on the pre-activation, element by element: a function or a module; ``None`` for none.
        inference: the test rule: ``"gaussian"``, ``"mean"`` or ``"sampled"``, which draws where there is an activation.
        num_samples: number of draws of ``"sampled"``.
        sharing: ``"sample"``: one mask for each element of the input's first axis; ``"batch"``: one for all.
        noise: keep mask of the weight that replaces the draw, 0 or 1, of shape ``(batch, out_features, in_features)``;
            where there is a bias, a pair of this and of the bias's mask, ``(batch, out_features)``
            (:class:`~dropoutlib.dense.dropconnect.WeightNoise`, or any tuple). Both are without the first axis for
            ``sharing="batch"`` and for an input without batch axis. For ``"sampled"`` in evaluation: standard normal
            numbers of shape ``(num_samples, ..., out_features)``.
        {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: {bad_p}; if ``inference`` or ``sharing`` is none of the above; if ``num_samples`` is no whole
            number, or less than 1; if ``noise`` has a wrong shape or value, or is given while nothing is drawn.
        {bad_features} {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight, keep = torch.tensor([[3.0, 4.0]]), torch.tensor([[[1, 0]], [[1, 1]]])
        >>> functional.drop_connect_linear(torch.ones(2, 2), weight, p=0.5, noise=keep)
        tensor([[ 6.],
                [14.]])
    """
    require_features(input, weight, bias)
    return _drop_connect(_LINEAR, input, weight, bias, p, training, activation, inference, num_samples, sharing,
                         noise=noise, generator=generator)


def _drop_connect_conv(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                       groups: int, p: float, training: bool, activation: Callable[[Tensor], Tensor] | None,
                       inference: str, num_samples: int, sharing: str, axes: int, *, noise: Any,
                       generator: torch.Generator | None) -> Tensor:
    """A convolution of {maps} with dropped weights, and an activation.

    See :class:`~dropoutlib.DropConnectConv{axes}d`.

    Args:
        {sequence_or_maps} {filters} {of_channels} It is dropped like a weight.
        {geometry} {p} {training} {activation} {inference} {num_samples} {sharing}
        noise: keep mask of the weight that replaces the draw, 0 or 1, of the shape of the weight with the batch in
            front; where there is a bias, a pair of this and of the bias's mask, ``(batch, out_channels)``
            (:class:`~dropoutlib.dense.dropconnect.WeightNoise`, or any tuple). Both are without the batch for
            ``sharing="batch"`` and for an input without batch axis. For ``"sampled"`` in evaluation: standard normal
            numbers of the shape of the output, with ``num_samples`` in front.
        {generator}

    Returns:
        {convolved}

    Raises:
        {Raises}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} weight, x = torch.tensor([3.0, 4.0]).reshape(1, 2{ones}), torch.ones(2, 2{ones})
        {>>>} keep = torch.tensor([1, 0, 1, 1]).reshape(2, 1, 2{ones})
        {>>>} functional.drop_connect_conv{axes}d(x, weight, p=0.5, noise=keep).flatten()
        tensor([ 6., 14.])
    """
    require_channels(input, weight, bias, axes, groups)
    return _drop_connect(_convolution(axes, stride, padding, dilation, groups), input, weight, bias, p, training,
                         activation, inference, num_samples, sharing, noise=noise, generator=generator)


@draws(partial(_draw_conv, axes=1))
@describe("dropconnect", drop_connect_linear, like=_drop_connect_conv, **RANKS[1])
def drop_connect_conv1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int] = 1,
                        padding: str | int | tuple[int] = 0, dilation: int | tuple[int] = 1, groups: int = 1,
                        p: float = 0.5, training: bool = True, *,
                        activation: Callable[[Tensor], Tensor] | None = None,
                        inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                        sharing: Literal["sample", "batch"] = "sample",
                        noise: Tensor | tuple[Tensor, Tensor] | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    return _drop_connect_conv(input, weight, bias, stride, padding, dilation, groups, p, training, activation,
                              inference, num_samples, sharing, 1, noise=noise, generator=generator)


@draws(partial(_draw_conv, axes=2))
@describe("dropconnect", drop_connect_linear, like=_drop_connect_conv, **RANKS[2])
def drop_connect_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, int] = 1,
                        padding: str | int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, groups: int = 1,
                        p: float = 0.5, training: bool = True, *,
                        activation: Callable[[Tensor], Tensor] | None = None,
                        inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                        sharing: Literal["sample", "batch"] = "sample",
                        noise: Tensor | tuple[Tensor, Tensor] | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    return _drop_connect_conv(input, weight, bias, stride, padding, dilation, groups, p, training, activation,
                              inference, num_samples, sharing, 2, noise=noise, generator=generator)


def _drop_connect(sums: _Sums, input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool,
                  activation: Callable[[Tensor], Tensor] | None, inference: str, num_samples: int, sharing: str, *,
                  noise: Any, generator: torch.Generator | None) -> Tensor:
    law = Bernoulli(p)
    _check_choices(inference, num_samples, sharing)
    if boolean("training", training):
        pre_activation = _dropped(sums, input, weight, bias, law, sharing, noise=noise, generator=generator)
        return pre_activation if activation is None else activation(pre_activation)
    if inference == "sampled" and activation is not None:
        return _sampled(_pre_activation(sums, input, weight, bias, law), activation, num_samples, sums.axes,
                        noise=noise, generator=generator)
    refuse_noise(noise)
    if inference == "mean" or activation is None:
        mean = sums.product(input, *_mean_weights(weight, bias, law))
        return mean if activation is None else activation(mean)
    return _activated(activation, _pre_activation(sums, input, weight, bias, law)).mean


def _check_choices(inference: str, num_samples: int, sharing: str) -> None:
    one_of("inference", inference, ("gaussian", "mean", "sampled"))
    one_of("sharing", sharing, ("sample", "batch"))
    positive_integer("num_samples", num_samples)


def _mean_weights(weight: Tensor, bias: Tensor | None, law: Bernoulli) -> tuple[Tensor, Tensor | None]:
    """The weights without noise; where all of them are dropped, zero."""
    if law.p < 1:
        return weight, bias
    return nothing(weight), None if bias is None else nothing(bias)


def _pre_activation(sums: _Sums, input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli) -> Moments:
    mean = sums.product(input, *_mean_weights(weight, bias, law))
    if law.p in (0, 1):
        return Moments(mean, nothing(mean))
    ratio = law.p / (1 - law.p)
    variance = moments.sum_variance(input, weight, ratio, sums.product)
    if bias is None:
        return Moments(mean, variance)
    return Moments(mean, variance + ratio * bias.to(variance.dtype).square().view(-1, *[1] * sums.axes))


def _activated(activation: Callable[[Tensor], Tensor], value: Moments) -> Moments:
    """Moments of the activation of a Gaussian."""
    closed_form = _CLOSED_FORMS.get(type(activation) if isinstance(activation, nn.Module) else activation)
    if closed_form is not None:
        result = closed_form(value)
    else:
        mean = moments.expectation(activation, value)
        result = Moments(mean, moments.expectation(lambda z: (activation(z) - mean).square(), value))
    return _in_type_of(value.mean, result)


def _in_type_of(x: Tensor, value: Moments) -> Moments:
    """Variances are computed in float32 where float16 is the type of the layer."""
    return Moments(value.mean.to(x.dtype), value.variance.to(x.dtype))


def _sampled(value: Moments, activation: Callable[[Tensor], Tensor], num_samples: int, axes: int, *, noise: Any,
             generator: torch.Generator | None) -> Tensor:
    normal = _normal(value.mean, num_samples, noise=noise, generator=generator)
    samples = value.mean + moments.deviation(value.variance).to(normal.dtype) * normal
    if value.mean.dim() == axes + 1:
        return activation(samples).mean(0)
    # samples are further examples: an activation may have a parameter for each channel
    return activation(samples.flatten(0, 1)).unflatten(0, samples.shape[:2]).mean(0)


def _normal(mean: Tensor, num_samples: int, *, noise: Any = None, generator: torch.Generator | None) -> Tensor:
    if mean.is_nested:  # which has no axis of samples
        raise RuntimeError("input has to be a tensor of examples of one size for inference='sampled', but got a nested "
                           "tensor, which inference='gaussian' takes")
    return Gaussian(0.0, 1.0).sample(mean.expand(num_samples, *mean.shape), noise=noise, generator=generator)


# Training


def _dropped(sums: _Sums, input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli, sharing: str, *,
             noise: Any, generator: torch.Generator | None) -> Tensor:
    of_weight, of_bias = (noise, None) if noise is None or bias is None else noise_pair(
        noise, "the masks of the weight and of the bias")
    if noise is None:
        batch = _batch(sums, input, law, sharing)
    else:
        is_shared = _fits_all(of_weight, weight) and (bias is None or _fits_all(of_bias, bias))
        batch = torch.Size() if is_shared else _examples(sums, input, sharing)
    scale = inverted_scale(law.p)
    masked_bias = None if bias is None else apply(bias.expand(*batch, -1), law, scale, noise=of_bias,
                                                  generator=generator)
    if not batch:
        return sums.product(input, apply(weight, law, scale, noise=of_weight, generator=generator), masked_bias)
    return sums.for_examples(input, weight, masked_bias, law, noise=of_weight, generator=generator)


def _examples(sums: _Sums, input: Tensor, sharing: str) -> torch.Size:
    """The axis of examples that have masks of their own."""
    if sharing == "batch" or input.dim() == (sums.axes + 1):
        return torch.Size()
    if input.is_nested:
        raise RuntimeError("input has to be a tensor of examples of one size for sharing='sample', but got a nested "
                           "tensor, which sharing='batch' takes")
    return input.shape[:1]


def _batch(sums: _Sums, input: Tensor, law: Bernoulli, sharing: str) -> torch.Size:
    """The same, for masks that are drawn: where there is nothing to draw, one is enough."""
    return _examples(sums, input, sharing) if 0 < law.p < 1 else torch.Size()


def _fits_all(mask: Any, parameter: Tensor) -> bool:
    """Whether a mask has no axis of examples, and fits without one."""
    return isinstance(mask, Tensor) and mask.dim() <= parameter.dim() and all(
        n == 1 or n == size for n, size in zip(reversed(mask.shape), reversed(parameter.shape), strict=False))


_REFUSED = "Refused in evaluation, unless ``inference=\"sampled\"`` averages an activation."


def _checked(p: float, activation: Any, inference: str, num_samples: int, sharing: str) -> float:
    _check_choices(inference, num_samples, sharing)
    if activation is not None:
        require_callable("activation", activation)
    return Bernoulli(p).p


@describe("dropconnect", drop_connect_linear, unwanted="where nothing is drawn", refused=_REFUSED, like=None,
          **UNDER_SHAPE)
class _DropConnect(NoisyLayer):
    weight: Tensor
    bias: Any

    def _set_options(self, p: float, activation: Callable[[Tensor], Tensor] | None, inference: str, num_samples: int,
                     sharing: str) -> None:
        self.p, self.activation = p, activation
        self.inference, self.num_samples, self.sharing = inference, num_samples, sharing

    _sums: Callable[[Tensor], tuple[Tensor, _Sums]]     # the input, checked and padded, and what is made of it

    def extra_repr(self) -> str:
        """{shown}"""
        name = "" if self.activation is None or isinstance(self.activation, nn.Module) else (
            f", activation={getattr(self.activation, '__name__', repr(self.activation))}")
        return f"{super().extra_repr()}, p={self.p}{name}, inference={self.inference!r}, sharing={self.sharing!r}"

    def forward(self, input: Tensor, *, noise: Tensor | tuple[Tensor, Tensor] | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops weights in training and applies the test rule in evaluation. {call}"""
        input, sums = self._sums(input)
        return _drop_connect(sums, input, self.weight, self.bias, self.p, self.training, self.activation,
                             self.inference, self.num_samples, self.sharing, noise=noise, generator=generator)

    def _is_noisy(self) -> bool:
        return self.training or (self.inference == "sampled" and self.activation is not None)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor | WeightNoise:
        input, sums = self._sums(input)
        return _drawn(sums, input, self.weight, self.bias, self.p, self.training, self.activation, self.inference,
                      self.num_samples, self.sharing, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: exact without activation, else for the matched Gaussian. {moment}"""
        return self._moments(input).mean

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: exact without activation, else for the Gaussian. {moment}"""
        return self._moments(input).variance

    def _moments(self, input: Tensor) -> Moments:
        taken, sums = self._sums(input)
        value = _pre_activation(sums, taken, self.weight, self.bias, Bernoulli(self.p))
        if self.activation is not None:
            return _activated(self.activation, value)
        return Moments(value.mean, value.variance.to(input.dtype))  # that of autocast may be too narrow for squares


@describe("dropconnect", drop_connect_linear, unwanted="where nothing is drawn", refused=_REFUSED)
class DropConnectLinear(FromLinear, _DropConnect, nn.Linear):
    r"""A linear layer whose weights are dropped, with a mask of its own for every example, and an activation.

    In training a weight w becomes w/(1 - p) with probability 1 - p and 0 with probability p, and so does the bias.
    Given the input x, a pre-activation has the mean :math:`\mu = \sum_j w_j x_j + b` and the variance
    :math:`s^2 = \frac{p}{1-p} \big(\sum_j w_j^2 x_j^2 + b^2\big)`; different outputs are independent.

    {four_answers}

    In evaluation, ``inference="gaussian"`` gives the mean of the *activation* under :math:`\mathcal N(\mu, s^2)`:
    :math:`\mu` without an activation, in closed form for ReLU (``torch.relu``, ``F.relu`` or the module), by the probit
    approximation for the logistic function (``torch.sigmoid`` or the module; within 0.02), by Gauss-Hermite quadrature
    for any other function, which has to act on every element by itself. ``"mean"`` is the activation of :math:`\mu`.
    ``"sampled"``, the paper's, averages the activation over draws from the Gaussian, and so is random at test time;
    without an activation it is :math:`\mu`, and nothing is drawn. It holds ``num_samples`` outputs at once.

    {loads} Masks are drawn example by example, again in
    backward, and never fill a tensor of shape (batch, out, in); this holds in eager mode. Dropping selects: a dropped
    ``inf`` or ``nan`` weight leaves nothing behind. An ``inf`` input times a dropped weight, though, is a ``nan`` of
    the matrix product. A mask of its own for every example costs: forward and backward of 128 examples through 512 x
    512 weights take 44 times as long as those of a linear layer at p = 0.5, and 83 times at p = 0.3, on one thread of a
    CPU (:doc:`/book/reference/performance`); ``sharing="batch"`` costs next to nothing.

    Examples lie along the first axis. For a sequence ``(time, batch, in_features)`` that is the time, and all sequences
    of a step share a mask: transpose it to ``(batch, time, in_features)``, where all steps of a sequence share one.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added; it is dropped like a weight.
        {p} {assigned} {activation} {inference} {num_samples} {sharing} {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: {bad_p}; if ``inference`` or ``sharing`` is another word; if ``num_samples`` is not a whole
            number of at least 1.
        TypeError: if ``p`` is not a real number, or ``activation`` cannot be called.

    Source:
        Wan, Zeiler, Zhang, LeCun and Fergus, *Regularization of Neural Networks using DropConnect* (2013), sections 2
        and 3, whose p is the probability of keeping.

    Example:
        >>> import torch
        >>> from dropoutlib import DropConnectLinear
        >>> layer = DropConnectLinear(64, 100, p=0.5, activation=torch.relu)
        >>> x = torch.rand(32, 64)
        >>> layer(x).shape
        torch.Size([32, 100])
        >>> torch.equal(layer.eval()(x), layer.mean(x))
        True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5,
                 activation: Callable[[Tensor], Tensor] | None = None,
                 inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                 sharing: Literal["sample", "batch"] = "sample", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p = _checked(p, activation, inference, num_samples, sharing)
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self._set_options(p, activation, inference, num_samples, sharing)

    def _sums(self, input: Tensor) -> tuple[Tensor, _Sums]:
        input, _ = self._taken(input)
        return input, _LINEAR


@describe("dropconnect", drop_connect_linear)
class _DropConnectConv(FromConv, _DropConnect):
    """A convolution of {maps} whose weights are dropped, with a mask of its own for every example, and an activation.

    What :class:`DropConnectLinear` is in the place of :class:`torch.nn.Linear`, this layer is in that of
    :class:`torch.nn.Conv{axes}d`. All positions of an example share its mask, so they are correlated; mean, variance
    and test rules are those of single outputs, as they are of the linear layer.

    {four_answers}

    {loads_convolution} A mask for every example makes the filters of all examples groups of one convolution: they are
    held at once, as many numbers as the batch times the weight. Such groups, over images of a size that is left open,
    are more than the compiler of PyTorch 2.13 and 2.14 knows: ``torch.compile(dynamic=False)`` compiles anew for each
    size. Dropping selects: a dropped ``inf`` or ``nan`` weight leaves nothing behind.

    Args:
        {in_channels} {out_channels} {kernel} {geometry}
        bias: whether a bias is added; it is dropped like a weight.
        {padding_mode} {p} {activation} {inference} {num_samples} {sharing} {device} {dtype}

    Shape:
        {convolved_shape}

    Raises:
        {Raises}

    Source:
        Wan, Zeiler, Zhang, LeCun and Fergus, *Regularization of Neural Networks using DropConnect* (2013), for linear
        layers; p is there the probability of keeping.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import DropConnectConv{axes}d
        {>>>} layer = DropConnectConv{axes}d(3, 8, kernel_size=3, padding=1, p=0.5, activation=torch.relu)
        {>>>} layer(torch.rand(2, 3{size})).shape == torch.Size([2, 8{size}])
        True
    """

    def _sums(self, input: Tensor) -> tuple[Tensor, _Sums]:
        input, geometry = self._geometry(input)
        return input, _convolution(*geometry)


@describe("dropconnect", drop_connect_conv1d, DropConnectLinear, like=_DropConnectConv,
          unwanted="where nothing is drawn", refused=_REFUSED, **RANKS[1])
class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int],
                 stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                 dilation: int | tuple[int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 p: float = 0.5, activation: Callable[[Tensor], Tensor] | None = None,
                 inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                 sharing: Literal["sample", "batch"] = "sample", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p = _checked(p, activation, inference, num_samples, sharing)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._set_options(p, activation, inference, num_samples, sharing)


@describe("dropconnect", drop_connect_conv2d, DropConnectLinear, like=_DropConnectConv,
          unwanted="where nothing is drawn", refused=_REFUSED, **RANKS[2])
class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 p: float = 0.5, activation: Callable[[Tensor], Tensor] | None = None,
                 inference: Literal["gaussian", "mean", "sampled"] = "gaussian", num_samples: int = 100,
                 sharing: Literal["sample", "batch"] = "sample", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p = _checked(p, activation, inference, num_samples, sharing)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._set_options(p, activation, inference, num_samples, sharing)
