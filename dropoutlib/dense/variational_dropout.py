"""Variational dropout: Gaussian noise on weights whose variance is learned with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import applies_noise, boolean, not_negative, one_of, real, require_channels, require_features
from ..divergence import log_uniform_kl_at
from ..documentation import RANKS, UNDER_SHAPE
from ..from_torch import FromConv, FromLinear
from ..layer import NoisyLayer, draws
from ..learned_rate import (
    finite_logarithm,
    logit_of,
    one_number_in_a_row,
    set_rate,
    shown_rate,
    starts_if_missing,
)
from ..local_reparameterization import Product, convolution, drawn, numbers_for, numbers_for_convolution
from ..methods import describe
from ..moments import sum_variance

__all__ = ["VariationalDropoutConv1d", "VariationalDropoutConv2d", "VariationalDropoutLinear",
           "variational_dropout_conv1d", "variational_dropout_conv2d", "variational_dropout_linear"]

_PER = ("layer", "unit", "weight")


def _normal(input: Tensor, weight: Tensor, bias: Tensor | None, kind: str, *,
            generator: torch.Generator | None) -> Tensor:
    _check_kind(kind)
    require_features(input, weight, bias)
    return numbers_for(F.linear(input, weight, bias) if kind == "A" else input, generator=generator)


@draws(_normal)
@describe("variational_dropout", fits="the output (kind A) or the input (kind B)")
def variational_dropout_linear(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float,
                               kind: Literal["A", "B"] = "A", training: bool = True, *, noise: Tensor | None = None,
                               generator: torch.Generator | None = None) -> Tensor:
    """A linear layer with multiplicative Gaussian noise of variance ``alpha``.

    See :class:`~dropoutlib.VariationalDropoutLinear`.

    Args:
        {features} {weight} {bias}
        alpha: variance of the noise, positive: a number, one for each input ``(in_features,)``, or (kind A) for each
            weight ``(out_features, in_features)``.
        kind: ``"A"``: noise on every weight, drawn as one Gaussian for every output; ``"B"``: noise on the inputs.
        training: whether noise is applied.
        noise: standard normal numbers that replace the draw, of a shape that broadcasts to the output's (kind A) or
            the input's (kind B).
        {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: if ``kind`` is neither, if ``alpha`` is negative or has another shape, {bad_noise}.
        {bad_features} {no_tensor}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight = torch.tensor([[3.0, 4.0]])
        >>> functional.variational_dropout_linear(torch.ones(2), weight, None, torch.tensor(1.0),
        ...                                       noise=torch.tensor([1.0]))
        tensor([12.])
    """
    _check_kind(kind)
    require_features(input, weight, bias)
    _check_alpha(alpha, weight, weight.shape[1:], kind)
    if kind == "B" and applies_noise(training, noise):
        factor = 1 + alpha**0.5 * numbers_for(input, noise=noise, generator=generator)
        return F.linear(input * factor.to(input.dtype), weight, bias)
    return _outputs(F.linear, input, weight, bias, alpha, training, noise=noise, generator=generator)


def _outputs(product: Product, input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float,
             training: bool, *, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Noise on every weight, drawn for the sums; alpha broadcasts to the weight."""
    mean = product(input, weight, bias)
    if not applies_noise(training, noise):
        return mean
    return drawn(mean, sum_variance(input, weight, alpha, product), noise=noise, generator=generator)


def _check_kind(kind: str) -> None:
    one_of("kind", kind, ("A", "B"))


def _check_alpha(alpha: Tensor | float, weight: Tensor, inputs: Sequence[int], kind: str) -> None:
    shape = tuple(alpha.shape) if isinstance(alpha, Tensor) else ()
    if shape not in ((), (1,), tuple(inputs), *([tuple(weight.shape)] if kind == "A" else [])):
        raise ValueError(f"alpha has to be one number, one for each of {inputs[0]} inputs or, for kind A, of the "
                         f"shape {tuple(weight.shape)} of the weight, but got the shape {shape} for kind {kind}")
    not_negative("alpha", alpha if isinstance(alpha, Tensor) else real("alpha", alpha))


def _of_filters(alpha: Tensor | float, weight: Tensor, groups: int) -> Tensor | float:
    """Alpha as it broadcasts to the weight of a convolution."""
    if not isinstance(alpha, Tensor) or alpha.shape == weight.shape or alpha.numel() == 1:
        return alpha
    filters, inputs, *sizes = weight.shape  # of a group
    by_filter = alpha.view(groups, 1, inputs).expand(groups, filters // groups, inputs).reshape(filters, inputs)
    return by_filter.view(filters, inputs, *[1] * len(sizes))


def _variational_dropout_conv(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float, stride: Any,
                              padding: Any, dilation: Any, groups: int, training: bool, axes: int, *,
                              noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """A convolution of {maps} with multiplicative Gaussian noise of variance ``alpha`` on its weights.

    See :class:`~dropoutlib.VariationalDropoutConv{axes}d`.

    Args:
        {sequence_or_maps} {filters} {of_channels}
        alpha: variance of the noise, positive: a number, one for each input channel, or of the shape of the weight.
        {geometry} {training}
        noise: standard normal numbers that replace the draw, of a shape that broadcasts to the output's.
        {generator}

    Returns:
        {convolved}

    Raises:
        ValueError: if ``alpha`` is negative or has another shape, {bad_noise}.
        {bad_features} {no_tensor}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} weight, x = torch.tensor([3.0, 4.0]).reshape(1, 2{ones}), torch.ones(2{ones})
        {>>>} noise = torch.ones(1{ones})
        {>>>} functional.variational_dropout_conv{axes}d(x, weight, None, torch.tensor(1.0), noise=noise).flatten()
        tensor([12.])
    """
    require_channels(input, weight, bias, axes, groups)
    _check_alpha(alpha, weight, (weight.shape[1] * groups,), "A")
    return _outputs(convolution(axes, stride, padding, dilation, groups), input, weight, bias,
                    _of_filters(alpha, weight, groups), training, noise=noise, generator=generator)


@draws(partial(numbers_for_convolution, axes=1))
@describe("variational_dropout", variational_dropout_linear, like=_variational_dropout_conv, fits="the output",
          **RANKS[1])
def variational_dropout_conv1d(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float,
                               stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                               dilation: int | tuple[int] = 1, groups: int = 1, training: bool = True, *,
                               noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    return _variational_dropout_conv(input, weight, bias, alpha, stride, padding, dilation, groups, training, 1,
                                     noise=noise, generator=generator)


@draws(partial(numbers_for_convolution, axes=2))
@describe("variational_dropout", variational_dropout_linear, like=_variational_dropout_conv, fits="the output",
          **RANKS[2])
def variational_dropout_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float,
                               stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                               dilation: int | tuple[int, int] = 1, groups: int = 1, training: bool = True, *,
                               noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    return _variational_dropout_conv(input, weight, bias, alpha, stride, padding, dilation, groups, training, 2,
                                     noise=noise, generator=generator)


@describe("variational_dropout", variational_dropout_linear, like=None, **UNDER_SHAPE)
class _VariationalDropout(NoisyLayer):
    weight: Tensor
    bias: Any
    alpha_per: str
    _start: float
    _taken: Callable[[Tensor], tuple[Tensor, Product]]   # of FromLinear or FromConv

    def _learn_alpha(self, alpha_per: str, start: float, inputs: int) -> None:
        shape = {"layer": (1,), "unit": (inputs,), "weight": self.weight.shape}[alpha_per]
        self.alpha_per, self._start = alpha_per, start
        self.log_alpha = nn.Parameter(self.weight.new_full(shape, start))

    def reset_parameters(self) -> None:
        """Draws initial weights as torch's layer does, and sets alpha to where it starts."""
        super().reset_parameters()  # type: ignore[misc]  # of the layer of torch beside this class
        if "log_alpha" in self._parameters:  # not yet when torch's constructor calls
            nn.init.constant_(self.log_alpha, self._start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        with (starts_if_missing(state_dict, prefix, "log_alpha", self.log_alpha, self._start),
              one_number_in_a_row(state_dict, f"{prefix}log_alpha")):
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """{shown}"""
        return ", ".join(filter(None, [super().extra_repr(), shown_rate(self.log_alpha), *self._options()]))

    def _options(self) -> list[str]:
        return [f"alpha_per={self.alpha_per!r}"]

    @property
    def alpha(self) -> Tensor:
        """Variance of the multiplicative noise, in float32 for layers of half precision, from e^-40 to e^40.

        Beyond, ``log_alpha`` counts as the bound (in float16 as 16, or -16), so that outputs and divergence stay finite
        and constant. Gradients still reach it, as they are at the bound, so that it can come back.
        """
        return self._log_alpha().exp()

    @property
    def p(self) -> Tensor:
        """The probability of dropping for which an inverted mask has the variance alpha, alpha/(1 + alpha).

        Assign a number to set all of them.
        """
        return torch.sigmoid(self._log_alpha()).to(self.log_alpha.dtype)

    @p.setter
    def p(self, p: float) -> None:
        set_rate(self, "log_alpha", p)

    def _log_alpha(self) -> Tensor:
        log_alpha = finite_logarithm(self.log_alpha)
        return log_alpha.squeeze(0) if self.alpha_per == "layer" else log_alpha

    def _alpha_of_weights(self) -> Tensor | float:
        """Alpha as it broadcasts to the weight."""
        return self.alpha

    def kl(self) -> Tensor:
        """Divergence of the noise from the log-uniform prior, up to the constant of that prior: a sum.

        Over all weights; for kind B of a linear layer over all inputs, where one factor is all the noise that the
        weights of an input have. Divided by nothing; the bias has no noise and does not count.

        Returns:
            Tensor: a number, differentiable in ``log_alpha``; it does not depend on the weights. It is float32 for
            layers of half precision, where the sum would overflow.
        """
        return log_uniform_kl_at(self._log_alpha()).sum() * (self._noisy() / self.log_alpha.numel())

    def _noisy(self) -> int:
        """How many numbers have noise."""
        return self.weight.numel()

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the output without noise. {moment}"""
        input, product = self._taken(input)
        return product(input, self.weight, self.bias)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}. {moment}"""
        input, product = self._taken(input)
        return sum_variance(input, self.weight, self._alpha_of_weights(), product).to(input.dtype)


@describe("variational_dropout", variational_dropout_linear)
class VariationalDropoutLinear(FromLinear, _VariationalDropout, nn.Linear):
    r"""A linear layer with Gaussian dropout whose variance :math:`\alpha` is learned.

    Kind A: every weight is :math:`w (1 + \sqrt\alpha \epsilon)` with its own standard normal :math:`\epsilon`. An
    output is then Gaussian with mean :math:`\sum_j w_j x_j + b` and variance :math:`\sum_j \alpha w_j^2 x_j^2`, and is
    drawn as such: one number for every output and example (the local reparameterisation). Kind B: every input is
    :math:`x_j (1 + \sqrt\alpha \epsilon_j)`, shared by all outputs. In evaluation there is no noise.

    {four_answers}

    The loss is the mean negative log-likelihood plus ``kl_divergence(model) / N``, N the number of training examples;
    without the second term, alpha goes to zero. ``alpha`` is stored as its logarithm, ``log_alpha``, and lies between
    e^-40 and e^40. The divergence is exact for all of them, while the paper's approximation holds up to 1 only. Keep
    ``log_alpha`` out of an optimizer's weight decay, which would pull alpha to 1.

    {loads} ``log_alpha`` then keeps its value. With the
    log-uniform prior the posterior is improper, and for kind B the divergence is not that of any proper pair of laws
    (Hron, Matthews and Ghahramani, 2018): read the objective as a regulariser. The chapter says more.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added; it has no noise.
        p: where alpha starts: at p/(1 - p), the variance of inverted dropout. Between 0 and 1, both excluded.
        kind: ``"A"`` or ``"B"``.
        alpha_per: ``"layer"``: one alpha; ``"unit"``: one for each input; ``"weight"``: one for each weight
            (kind A only).
        {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: {bad_p}, or is one of them; if ``kind`` or ``alpha_per`` is none of the
            above; for one alpha a weight with kind B.
        {no_number}

    Source:
        Kingma, Salimans and Welling, *Variational Dropout and the Local Reparameterization Trick* (2015),
        sections 2 and 3.

    Example:
        >>> import torch
        >>> from dropoutlib import VariationalDropoutLinear
        >>> layer = VariationalDropoutLinear(64, 10, p=0.5, alpha_per="unit")
        >>> layer(torch.rand(32, 64)).shape, layer.alpha.shape
        (torch.Size([32, 10]), torch.Size([64]))
        >>> layer.kl()  # 640 weights
        tensor(273.0788, grad_fn=<MulBackward0>)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5,
                 kind: Literal["A", "B"] = "A", alpha_per: Literal["layer", "unit", "weight"] = "layer", *,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        start = logit_of(p)
        _check_kind(kind)
        one_of("alpha_per", alpha_per, _PER)
        if kind == "B" and alpha_per == "weight":
            raise ValueError("alpha_per='weight' needs kind='A': in kind B the noise belongs to the inputs, "
                             "not to the weights")
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.kind = kind
        self._learn_alpha(alpha_per, start, in_features)

    def _options(self) -> list[str]:
        return [f"kind={self.kind!r}", *super()._options()]

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Applies noise in training and the mean weights in evaluation. {call}"""
        return variational_dropout_linear(input, self.weight, self.bias, self.alpha, self.kind, self.training,
                                          noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _normal(input, self.weight, self.bias, self.kind, generator=generator)

    def _noisy(self) -> int:
        return self.weight.numel() if self.kind == "A" else self.in_features


@describe("variational_dropout", variational_dropout_linear, like=None, **UNDER_SHAPE)
class _VariationalDropoutConv(FromConv, _VariationalDropout):
    r"""A convolution of {maps} with Gaussian dropout on its weights, whose variance :math:`\alpha` is learned.

    What :class:`VariationalDropoutLinear` of kind A is in the place of :class:`torch.nn.Linear`, this layer is in that
    of :class:`torch.nn.Conv{axes}d`: parameters, loss and test rule are the same. Every output, at every position, is
    drawn from its own Gaussian, independently. So an output has the law that noise on the weights gives it, while
    positions, which share the weights of a draw, do not share their noise.

    {four_answers}

    {loads_convolution} ``log_alpha`` then keeps its value. Kind B, noise on the inputs, has no layer: it is Gaussian
    dropout in front of the convolution.

    Args:
        {in_channels} {out_channels} {kernel} {geometry}
        bias: whether a bias is added; it has no noise.
        {padding_mode} {p}
        alpha_per: ``"layer"``: one alpha; ``"unit"``: one for each input channel; ``"weight"``: one for each weight.
        {device} {dtype}

    Shape:
        {convolved_shape}

    Raises:
        ValueError: {bad_p}, or is one of them; if ``alpha_per`` is none of the above.
        {no_number}

    Source:
        {Source}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import VariationalDropoutConv{axes}d
        {>>>} layer = VariationalDropoutConv{axes}d(3, 8, kernel_size=3, padding=1, alpha_per="unit")
        {>>>} layer(torch.rand(2, 3{size})).shape == torch.Size([2, 8{size}]), layer.alpha.shape
        (True, torch.Size([3]))
    """

    groups: int

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Draws outputs in training and applies the mean weights in evaluation. {call}"""
        input, product = self._taken(input)
        return _outputs(product, input, self.weight, self.bias, self._alpha_of_weights(), self.training, noise=noise,
                        generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return numbers_for(self.mean(input), generator=generator)

    def _alpha_of_weights(self) -> Tensor | float:
        return _of_filters(self.alpha, self.weight, self.groups)


@describe("variational_dropout", variational_dropout_conv1d, VariationalDropoutLinear, like=_VariationalDropoutConv,
          **RANKS[1])
class VariationalDropoutConv1d(_VariationalDropoutConv, nn.Conv1d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int],
                 stride: int | tuple[int] = 1, padding: str | int | tuple[int] = 0,
                 dilation: int | tuple[int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 p: float = 0.5, alpha_per: Literal["layer", "unit", "weight"] = "layer", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        start = logit_of(p)
        one_of("alpha_per", alpha_per, _PER)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._learn_alpha(alpha_per, start, in_channels)


@describe("variational_dropout", variational_dropout_conv2d, VariationalDropoutLinear, like=_VariationalDropoutConv,
          **RANKS[2])
class VariationalDropoutConv2d(_VariationalDropoutConv, nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
                 p: float = 0.5, alpha_per: Literal["layer", "unit", "weight"] = "layer", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        start = logit_of(p)
        one_of("alpha_per", alpha_per, _PER)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self._learn_alpha(alpha_per, start, in_channels)
