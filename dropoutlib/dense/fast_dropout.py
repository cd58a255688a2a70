"""Fast dropout: the sum of many dropped inputs is replaced by the Gaussian with its mean and variance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib.moments as moments

from ..arguments import applies_noise, boolean, require_channels, require_features
from ..documentation import RANKS, UNDER_SHAPE
from ..from_torch import FromConv, FromLinear
from ..layer import NoisyLayer, draws
from ..local_reparameterization import Product, convolution, drawn
from ..methods import describe
from ..moments import JointMoments, Moments
from ..noise import Bernoulli, Gaussian, nothing, odds

__all__ = ["FastDropoutConv1d", "FastDropoutConv2d", "FastDropoutLinear", "fast_dropout_conv1d",
           "fast_dropout_conv2d", "fast_dropout_linear"]


def _law(p: float) -> Gaussian:
    """Standard normal numbers; with p = 0 there is nothing to draw."""
    return Gaussian(0.0, 1.0 if odds(p, "fast dropout") > 0 else 0.0)


def _outputs(product: Product, input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool, *,
             noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    ratio = odds(p, "fast dropout")
    mean = product(input, weight, bias)
    if not applies_noise(training, noise):
        return mean
    if p == 0 and noise is None:
        return mean
    return drawn(mean, moments.sum_variance(input, weight, ratio, product), noise=noise, generator=generator)


def _normal(input: Tensor, weight: Tensor, bias: Tensor | None, p: float, *,
            generator: torch.Generator | None) -> Tensor:
    require_features(input, weight, bias)
    return _law(p).sample(F.linear(input, weight, bias), generator=generator)


@draws(_normal)
@describe("fast_dropout", fits="the output")
def fast_dropout_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5,
                        training: bool = True, *, noise: Tensor | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    """A linear layer behind inverted dropout, its outputs drawn from their Gaussians.

    See :class:`~dropoutlib.FastDropoutLinear`.

    Args:
        {features} {weight} {bias}
        p: the probability of dropping an input, less than 1.
        training: whether the outputs are drawn; if not, they are their means.
        noise: standard normal numbers that replace the draw, of a shape that broadcasts to the output's.
        {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: {bad_p} or is 1, {bad_noise}.
        {bad_features} {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight = torch.tensor([[3.0, 4.0]])
        >>> functional.fast_dropout_linear(torch.ones(2), weight, p=0.5, noise=torch.tensor([1.0]))
        tensor([12.])
    """
    require_features(input, weight, bias)
    return _outputs(F.linear, input, weight, bias, p, training, noise=noise, generator=generator)


def _normal_conv(input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, p: float,
                 axes: int, *, generator: torch.Generator | None) -> Tensor:
    require_channels(input, weight, None, axes, groups)
    product = convolution(axes, stride, padding, dilation, groups)
    return _law(p).sample(product(input, weight, None), generator=generator)


def _fast_dropout_conv(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                       groups: int, p: float, training: bool, axes: int, *, noise: Tensor | None,
                       generator: torch.Generator | None) -> Tensor:
    """A convolution of {maps} behind inverted dropout, its outputs drawn from their Gaussians.

    See :class:`~dropoutlib.FastDropoutConv{axes}d`.

    Args:
        {sequence_or_maps} {filters} {of_channels} {geometry} {p} {training} {noise} {generator}

    Returns:
        {convolved}

    Raises:
        {Raises}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} weight, x = torch.tensor([3.0, 4.0]).reshape(1, 2{ones}), torch.ones(2{ones})
        {>>>} functional.fast_dropout_conv{axes}d(x, weight, p=0.5, noise=torch.ones(1{ones})).flatten()
        tensor([12.])
    """
    require_channels(input, weight, bias, axes, groups)
    return _outputs(convolution(axes, stride, padding, dilation, groups), input, weight, bias, p, training,
                    noise=noise, generator=generator)


@draws(partial(_normal_conv, axes=1))
@describe("fast_dropout", fast_dropout_linear, like=_fast_dropout_conv, fits="the output", **RANKS[1])
def fast_dropout_conv1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int] = 1,
                        padding: str | int | tuple[int] = 0, dilation: int | tuple[int] = 1, groups: int = 1,
                        p: float = 0.5, training: bool = True, *, noise: Tensor | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    return _fast_dropout_conv(input, weight, bias, stride, padding, dilation, groups, p, training, 1, noise=noise,
                              generator=generator)


@draws(partial(_normal_conv, axes=2))
@describe("fast_dropout", fast_dropout_linear, like=_fast_dropout_conv, fits="the output", **RANKS[2])
def fast_dropout_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, int] = 1,
                        padding: str | int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1,
                        groups: int = 1, p: float = 0.5, training: bool = True, *, noise: Tensor | None = None,
                        generator: torch.Generator | None = None) -> Tensor:
    return _fast_dropout_conv(input, weight, bias, stride, padding, dilation, groups, p, training, 2, noise=noise,
                              generator=generator)


@describe("fast_dropout", fast_dropout_linear, like=None, **UNDER_SHAPE)
class _FastDropout(NoisyLayer):
    weight: Tensor
    bias: Any
    p: float
    _taken: Callable[[Tensor], tuple[Tensor, Product]]   # of FromLinear or FromConv

    def extra_repr(self) -> str:
        """{shown}"""
        return f"{super().extra_repr()}, p={self.p}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Draws the outputs in training and returns their means in evaluation. {call}"""
        input, product = self._taken(input)
        return _outputs(product, input, self.weight, self.bias, self.p, self.training, noise=noise,
                        generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        input, product = self._taken(input)
        return _law(self.p).sample(product(input, self.weight, self.bias), generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the output without noise. {moment}"""
        input, product = self._taken(input)
        return product(input, self.weight, self.bias)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}. {moment}"""
        input, product = self._taken(input)
        return moments.sum_variance(input, self.weight, odds(self.p, "fast dropout"), product).to(input.dtype)


@describe("fast_dropout", fast_dropout_linear)
class FastDropoutLinear(FromLinear, _FastDropout, nn.Linear):
    r"""A linear layer that knows mean and variance of its outputs behind dropout, and draws nothing else.

    With inverted dropout on its inputs, an output :math:`z = \sum_j w_j \frac{m_j}{1-p} x_j + b` has the mean
    :math:`\sum_j w_j x_j + b` and the variance :math:`\frac{p}{1-p} \sum_j w_j^2 x_j^2`. In training each output is
    drawn from the Gaussian with these two moments: one number for every output instead of one for every input. In
    evaluation it is the mean.

    {four_answers}

    The Gaussian is an approximation of the law of z, which gets better with the number of inputs. Outputs are drawn
    independently, while behind a dropped input they are correlated. Where all masked terms are zero, the gradient of
    the standard deviation, which is infinite there, counts as zero. A layer stands for dropout *and* the linear layer
    behind it: put no other dropout before it.

    {loads} :meth:`moments` carries both moments through a
    network without drawing at all; :mod:`dropoutlib.moments` has activations and losses for it.

    {too_sure} So give ``covariance=True`` where layers are narrow enough for it:
    :class:`~dropoutlib.moments.JointMoments` says what that costs.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added; it is not dropped.
        {p} {assigned} {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: {bad_p}, or is 1: the variance would be infinite.
        {no_number}

    Source:
        Wang and Manning, *Fast dropout training* (2013), whose p is the probability of keeping.

    Example:
        >>> import torch
        >>> from dropoutlib import FastDropoutLinear, moments
        >>> layer = FastDropoutLinear(100, 10, p=0.5)
        >>> x = torch.rand(32, 100)
        >>> layer(x).shape
        torch.Size([32, 10])
        >>> hidden = moments.relu(layer.moments(x))  # no draw
        >>> hidden.mean.shape, hidden.variance.shape
        (torch.Size([32, 10]), torch.Size([32, 10]))
        >>> hidden = moments.relu(layer.moments(x, covariance=True))  # for another layer behind it
        >>> hidden.covariance.shape
        torch.Size([32, 10, 10])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5, *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        odds(p, "fast dropout")
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.p = float(p)

    @overload
    def moments(self, mean: Tensor | Moments, variance: Tensor | None = None, *,
                covariance: Literal[False] = False) -> Moments: ...

    @overload
    def moments(self, mean: Tensor | Moments, variance: Tensor | None = None, *,
                covariance: Literal[True]) -> JointMoments: ...

    @overload
    def moments(self, mean: JointMoments, variance: None = None, *, covariance: bool = False) -> JointMoments: ...

    @overload
    def moments(self, mean: Tensor | Moments | JointMoments, variance: Tensor | None = None, *,
                covariance: bool = False) -> Moments | JointMoments: ...

    def moments(self, mean: Tensor | Moments | JointMoments, variance: Tensor | None = None, *,
                covariance: bool = False) -> Moments | JointMoments:
        """Mean and variance of the outputs, for inputs that are themselves random. In training and evaluation alike.

        {too_sure}

        Args:
            mean: means of the inputs, of shape ``(..., in_features)``, or a
                :class:`~dropoutlib.moments.Moments` or :class:`~dropoutlib.moments.JointMoments` of both.
            variance: variances of the inputs, which count as independent; ``None`` for inputs without noise.
            covariance: whether the covariances of the outputs are computed, n^2 numbers for n outputs.

        Returns:
            Moments: of shape ``(..., out_features)``, exact for independent inputs; a JointMoments, exact for any
            inputs with these covariances, with ``covariance=True`` or for a JointMoments.

        Raises:
            ValueError: if ``mean`` is a Moments and ``variance`` is given as well, if the shapes of mean and variance
                do not fit each other, or if a variance is negative.
            RuntimeError: if shapes do not fit the layer or the means are integers.
            TypeError: if ``mean`` is neither a tensor nor a Moments, or ``covariance`` no truth value.
        """
        value: Any = mean
        if isinstance(mean, Tensor):
            value = Moments(mean, nothing(mean) if variance is None else variance)
        elif not isinstance(mean, (Moments, JointMoments)):
            raise TypeError(f"mean has to be a tensor or a Moments, but got {type(mean).__name__}")
        elif variance is not None:
            raise ValueError("variance was given, but mean is a Moments, which has one")
        odds(self.p, "fast dropout")
        require_features(value.mean, self.weight)
        dropped = moments.multiply(value, Bernoulli(self.p), 1 / (1 - self.p))
        return moments.linear(dropped, self.weight, self.bias, covariance=boolean("covariance", covariance))


@describe("fast_dropout", fast_dropout_linear)
class _FastDropoutConv(FromConv, _FastDropout):
    """A convolution of {maps} that knows mean and variance of its outputs behind dropout, and draws nothing else.

    What :class:`FastDropoutLinear` is in the place of :class:`torch.nn.Linear`, this layer is in that of
    :class:`torch.nn.Conv{axes}d`: it stands for dropout of single elements *and* the convolution behind it, so put no
    other dropout before it. Every output, at every position, is drawn from its own Gaussian, independently, while
    behind dropout positions share the elements that are dropped: single outputs have the right mean and variance,
    sums over a map have another variance. Padding with anything but zeros is refused: there a filter reads one element
    in several places, under one mask, and the variance would be another one. A filter on few inputs, such as the first
    one of an image of one channel, adds few terms, whose sum is not close to Gaussian.

    {four_answers}

    {loads_convolution} In evaluation it is torch's.

    Args:
        {in_channels} {out_channels} {kernel} {geometry}
        bias: whether a bias is added; it is not dropped.
        {padding_mode} {p} {device} {dtype}

    Shape:
        {convolved_shape}

    Raises:
        {Raises}

    Source:
        Wang and Manning, *Fast dropout training* (2013), whose p is the probability of keeping; for convolutions the
        same sums over the inputs of a filter.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import FastDropoutConv{axes}d
        {>>>} layer = FastDropoutConv{axes}d(3, 8, kernel_size=3, padding=1, p=0.5)
        {>>>} layer(torch.rand(2, 3{size})).shape == torch.Size([2, 8{size}])
        True
    """


def _zeros(padding_mode: Literal["zeros"]) -> Literal["zeros"]:
    if padding_mode != "zeros":
        raise ValueError(f"padding_mode has to be 'zeros' for fast dropout, but got {padding_mode!r}: a filter would "
                         "read one element in several places, under one mask")
    return padding_mode


@describe("fast_dropout", fast_dropout_conv1d, FastDropoutLinear, like=_FastDropoutConv, **RANKS[1])
class FastDropoutConv1d(_FastDropoutConv, nn.Conv1d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int],
                 stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                 dilation: int | tuple[int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros"] = "zeros",
                 p: float = 0.5, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        odds(p, "fast dropout")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         _zeros(padding_mode), device, dtype)
        self.p = float(p)


@describe("fast_dropout", fast_dropout_conv2d, FastDropoutLinear, like=_FastDropoutConv, **RANKS[2])
class FastDropoutConv2d(_FastDropoutConv, nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros"] = "zeros",
                 p: float = 0.5, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        odds(p, "fast dropout")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         _zeros(padding_mode), device, dtype)
        self.p = float(p)
