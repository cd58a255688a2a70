"""Sparse variational dropout: a variance is learned for every weight, and weights that are mostly noise are dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import (
    applies_noise,
    boolean,
    real,
    require_broadcastable,
    require_channels,
    require_features,
)
from ..divergence import log_uniform_kl_at, molchanov_kl_at
from ..documentation import RANKS, UNDER_SHAPE
from ..from_torch import FromConv, FromLinear
from ..layer import NoisyLayer, draws
from ..learned_rate import clamped, largest_logarithm, starts_if_missing, wide
from ..local_reparameterization import Product, convolution, drawn, numbers_for, numbers_for_convolution
from ..methods import describe
from ..moments import sum_variance

__all__ = ["SparseVariationalConv1d", "SparseVariationalConv2d", "SparseVariationalLinear",
           "sparse_variational_conv1d", "sparse_variational_conv2d", "sparse_variational_linear"]

_START = -10.0  # of log_sigma2
_LEAST = -40.0  # what it counts as at least: a number without noise would have an infinite divergence


def _log_variance(log_sigma2: Tensor) -> Tensor:
    """Of the noise, for the draw, the divergence and the test rule alike.

    Gradients still reach a number beyond the bounds, as they are at the bound, so that it can come back.
    """
    return clamped(wide(log_sigma2), _LEAST, largest_logarithm(log_sigma2.dtype))


def _log_alpha(weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """log sigma^2 - 2 log|weight|. A weight of zero counts as the smallest number, with the gradient zero."""
    size = wide(weight).abs()
    return _log_variance(log_sigma2) - 2 * size.clamp(min=torch.finfo(size.dtype).tiny).log()


def _sigma(weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """Standard deviation of the noise, in the type of the weight."""
    return (_log_variance(log_sigma2) / 2).exp().to(weight.dtype).expand_as(weight)


def _without_noise(weight: Tensor, log_sigma2: Tensor, threshold: float) -> Tensor:
    """The weights of the test rule."""
    return torch.where(_log_alpha(weight, log_sigma2) <= threshold, weight, 0)


def _outputs(product: Product, input: Tensor, weight: Tensor, bias: Tensor | None, log_sigma2: Tensor | float,
             threshold: float, training: bool, *, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    number = log_sigma2 if isinstance(log_sigma2, Tensor) else real("log_sigma2", log_sigma2)
    log_sigma2 = torch.as_tensor(number, dtype=weight.dtype, device=weight.device)
    require_broadcastable("log_sigma2", log_sigma2, weight.shape, "weight")
    _check_threshold(threshold)
    if not training:
        return product(input, _without_noise(weight, log_sigma2, threshold), bias)
    mean = product(input, weight, bias)
    variance = sum_variance(input, _sigma(weight, log_sigma2), product=product)
    return drawn(mean, variance, noise=noise, generator=generator)


def _check_threshold(threshold: float) -> None:
    if not real("threshold", threshold) > -math.inf:
        raise ValueError(f"threshold has to be a number above -inf, but got {threshold}")


def _normal_linear(input: Tensor, weight: Tensor, bias: Tensor | None, *, generator: torch.Generator | None) -> Tensor:
    require_features(input, weight, bias)
    return numbers_for(F.linear(input, weight), generator=generator)


@draws(_normal_linear)
@describe("sparse_variational_dropout", fits="the output")
def sparse_variational_linear(input: Tensor, weight: Tensor, bias: Tensor | None, log_sigma2: Tensor | float,
                              threshold: float = 3.0, training: bool = True, *, noise: Tensor | None = None,
                              generator: torch.Generator | None = None) -> Tensor:
    """A linear layer with additive Gaussian noise on its weights, of a variance of its own for each of them.

    See :class:`~dropoutlib.SparseVariationalLinear`.

    Args:
        {features} {weight} {bias}
        log_sigma2: logarithm of the variance of the noise: a number, or of a shape that broadcasts to the weight's.
        threshold: outside of training, weights with a larger log alpha are zero.
        training: whether outputs are drawn; if not, they are those of the weights that are left.
        noise: standard normal numbers that replace the draw, of a shape that broadcasts to the output's.
        {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: if ``log_sigma2`` has another shape, if ``threshold`` is nan or -inf, {bad_noise}.
        {bad_features} {no_tensor}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight, log_sigma2 = torch.tensor([[3.0, 0.1]]), torch.tensor([[0.0, 0.0]])
        >>> functional.sparse_variational_linear(torch.ones(2), weight, None, log_sigma2, training=False)
        tensor([3.])
    """
    noisy = applies_noise(training, noise)
    require_features(input, weight, bias)
    return _outputs(F.linear, input, weight, bias, log_sigma2, threshold, noisy, noise=noise, generator=generator)


def _sparse_variational_conv(input: Tensor, weight: Tensor, bias: Tensor | None, log_sigma2: Tensor | float,
                             stride: Any, padding: Any, dilation: Any, groups: int, threshold: float, training: bool,
                             axes: int, *, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """A convolution of {maps} with additive Gaussian noise on its weights, drawn anew for every output.

    See :class:`~dropoutlib.SparseVariationalConv{axes}d`.

    Args:
        {sequence_or_maps} {filters} {of_channels} {log_sigma2} {geometry} {threshold} {training} {noise} {generator}

    Returns:
        {convolved}

    Raises:
        {Raises}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} weight, x = torch.tensor([3.0, 0.1]).reshape(1, 2{ones}), torch.ones(2{ones})
        {>>>} functional.sparse_variational_conv{axes}d(x, weight, None, 0.0, training=False).flatten()
        tensor([3.])
    """
    noisy = applies_noise(training, noise)
    require_channels(input, weight, bias, axes, groups)
    product = convolution(axes, stride, padding, dilation, groups)
    return _outputs(product, input, weight, bias, log_sigma2, threshold, noisy, noise=noise, generator=generator)


@draws(partial(numbers_for_convolution, axes=1))
@describe("sparse_variational_dropout", sparse_variational_linear, like=_sparse_variational_conv, fits="the output",
          **RANKS[1])
def sparse_variational_conv1d(input: Tensor, weight: Tensor, bias: Tensor | None, log_sigma2: Tensor | float,
                              stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                              dilation: int | tuple[int] = 1, groups: int = 1, threshold: float = 3.0,
                              training: bool = True, *, noise: Tensor | None = None,
                              generator: torch.Generator | None = None) -> Tensor:
    return _sparse_variational_conv(input, weight, bias, log_sigma2, stride, padding, dilation, groups, threshold,
                                    training, 1, noise=noise, generator=generator)


@draws(partial(numbers_for_convolution, axes=2))
@describe("sparse_variational_dropout", sparse_variational_linear, like=_sparse_variational_conv, fits="the output",
          **RANKS[2])
def sparse_variational_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, log_sigma2: Tensor | float,
                              stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                              dilation: int | tuple[int, int] = 1, groups: int = 1, threshold: float = 3.0,
                              training: bool = True, *, noise: Tensor | None = None,
                              generator: torch.Generator | None = None) -> Tensor:
    return _sparse_variational_conv(input, weight, bias, log_sigma2, stride, padding, dilation, groups, threshold,
                                    training, 2, noise=noise, generator=generator)


@describe("sparse_variational_dropout", sparse_variational_linear, like=None, **UNDER_SHAPE)
class _SparseVariational(NoisyLayer):
    weight: Tensor
    bias: Any
    threshold: float

    def _learn_noise(self, threshold: float) -> None:
        _check_threshold(threshold)
        self.threshold = threshold
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, _START))

    def reset_parameters(self) -> None:
        """Draws initial weights as torch's layer does, and sets the noise to where it starts."""
        super().reset_parameters()  # type: ignore[misc]  # of the layer of torch beside this class
        if "log_sigma2" in self._parameters:  # not yet when torch's constructor calls
            nn.init.constant_(self.log_sigma2, _START)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        with starts_if_missing(state_dict, prefix, "log_sigma2", self.log_sigma2, _START):
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"{super().extra_repr()}, threshold={self.threshold}"

    @property
    def log_alpha(self) -> Tensor:
        """log alpha of every weight, log sigma^2 - 2 log|weight|; float32 for layers of half precision.

        ``log_sigma2`` counts as at least -40 and at most 40 (in float16 16), here as in the noise and in ``kl()``.
        Gradients still reach it beyond. Where a weight is zero, so that log alpha is infinite, it is finite and above
        130, and the gradient of the weight is zero.
        """
        return _log_alpha(self.weight, self.log_sigma2)

    @property
    def keep(self) -> Tensor:
        """The weights that evaluation keeps, those whose log alpha is not above the threshold; the others are zero."""
        return self.log_alpha <= self.threshold

    @property
    def sparsity(self) -> float:
        """Share of the weights that evaluation sets to zero; biases do not count."""
        return 1 - self.keep.double().mean().item()

    _taken: Callable[[Tensor], tuple[Tensor, Product]]   # of FromLinear or FromConv

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Draws outputs in training, and applies the weights that are left in evaluation. {call}"""
        noisy = applies_noise(self.training, noise)
        input, product = self._taken(input)
        return _outputs(product, input, self.weight, self.bias, self.log_sigma2, self.threshold, noisy, noise=noise,
                        generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        input, product = self._taken(input)
        return numbers_for(product(input, self.weight, None), generator=generator)

    def kl(self, exact: bool = False) -> Tensor:
        """Divergence of the noisy weights from the log-uniform prior, up to the constant of that prior: a sum.

        Divided by nothing; the bias has no noise and does not count.

        Args:
            exact: whether it is computed exactly, which takes longer; else by the paper's approximation
                (:func:`~dropoutlib.divergence.molchanov_kl`), with an error of at most 0.0094 for each weight, for
                every alpha.

        Returns:
            Tensor: a number, differentiable in weight and ``log_sigma2``; it is finite for all of them, and float32
            for layers of half precision.
        """
        divergence = log_uniform_kl_at if boolean("exact", exact) else molchanov_kl_at
        return divergence(self.log_alpha).sum()

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: that of the weights without noise, all of them. {moment}"""
        input, product = self._taken(input)
        return product(input, self.weight, self.bias)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}. {moment}"""
        input, product = self._taken(input)
        return sum_variance(input, _sigma(self.weight, self.log_sigma2), product=product).to(input.dtype)


@describe("sparse_variational_dropout", sparse_variational_linear)
class SparseVariationalLinear(FromLinear, _SparseVariational, nn.Linear):
    r"""A linear layer with learned noise on every weight, which loses the weights that are mostly noise.

    In training a weight is :math:`w_{ij} = \theta_{ij} + \sigma_{ij} \epsilon`, with its own standard normal
    :math:`\epsilon`. An output is then Gaussian with mean :math:`\sum_j \theta_{ij} x_j + b_i` and variance
    :math:`\sum_j \sigma_{ij}^2 x_j^2`, and is drawn as such: one number for every output and example (the local
    reparameterisation). The noise is that of variational dropout with :math:`\alpha = \sigma^2/\theta^2`, for every
    positive :math:`\alpha`. In evaluation there is no noise, and weights with :math:`\log\alpha` above ``threshold``
    are zero.

    {four_answers}

    :math:`\theta` is ``weight``, and :math:`\log\sigma^2` the parameter ``log_sigma2`` of the same shape, which starts
    at -10. The loss is the mean negative log-likelihood plus ``kl_divergence(model) / N``, N the number of training
    examples. That term should begin at zero and grow to its full weight (:func:`~dropoutlib.training.warm_up`), or the
    first epochs, in which no weight has learned anything, set all of them to zero. Keep ``log_sigma2`` out of an
    optimizer's weight decay (:func:`~dropoutlib.training.parameter_groups`), which would pull it to 0, a variance of 1.

    ``sparsity`` tells how many weights are zero in evaluation, ``keep`` which are not; :func:`~dropoutlib.compress`
    makes a smaller model of it. {loads} ``log_sigma2`` then keeps its value, though, and in evaluation a weight whose
    log alpha is above the threshold is zero: as things start, one whose size is below 0.0015. :meth:`from_linear` makes
    a layer of another one.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added; it has no noise.
        threshold: weights with a larger log alpha are zero in evaluation. At 3, the probability of dropping whose noise
            has the variance alpha, alpha/(1 + alpha), is 0.95.
        {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: if ``threshold`` is nan or -inf.
        TypeError: if ``threshold`` is no real number, or ``bias`` no truth value.

    Source:
        Molchanov, Ashukha and Vetrov, *Variational Dropout Sparsifies Deep Neural Networks* (2017), sections 4.1 to
        4.4.

    Example:
        >>> import torch
        >>> from dropoutlib import SparseVariationalLinear
        >>> layer = SparseVariationalLinear(64, 10)
        >>> layer(torch.rand(32, 64)).shape
        torch.Size([32, 10])
        >>> with torch.no_grad():
        ...     _ = layer.log_sigma2[:5].fill_(4.0)
        >>> round(layer.sparsity, 1)
        0.5
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, threshold: float = 3.0, *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self._learn_noise(threshold)


@describe("sparse_variational_dropout", sparse_variational_linear)
class _SparseVariationalConv(FromConv, _SparseVariational):
    """A convolution of {maps} with learned noise on every weight, which loses the weights that are mostly noise.

    What :class:`SparseVariationalLinear` is in the place of :class:`torch.nn.Linear`, this layer is in that of
    :class:`torch.nn.Conv{axes}d`: parameters, loss and test rule are the same. Every output, at every position, is
    drawn from its own Gaussian, independently. So an output has the law that noise on the weights gives it, while
    positions, which share the weights of a draw, do not share their noise.

    {four_answers}

    {loads_convolution}

    Args:
        {in_channels} {out_channels} {kernel} {geometry}
        bias: whether a bias is added; it has no noise.
        {padding_mode} {threshold} {device} {dtype}

    Shape:
        {convolved_shape}

    Raises:
        {Raises}

    Source:
        {Source}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import SparseVariationalConv{axes}d
        {>>>} layer = SparseVariationalConv{axes}d(3, 8, kernel_size=3, padding=1)
        {>>>} layer(torch.rand(2, 3{size})).shape == torch.Size([2, 8{size}])
        True
    """


@describe("sparse_variational_dropout", sparse_variational_conv1d, SparseVariationalLinear, like=_SparseVariationalConv,
          **RANKS[1])
class SparseVariationalConv1d(_SparseVariationalConv, nn.Conv1d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int],
                 stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                 dilation: int | tuple[int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 threshold: float = 3.0, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._learn_noise(threshold)


@describe("sparse_variational_dropout", sparse_variational_conv2d, SparseVariationalLinear, like=_SparseVariationalConv,
          **RANKS[2])
class SparseVariationalConv2d(_SparseVariationalConv, nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 threshold: float = 3.0, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._learn_noise(threshold)
