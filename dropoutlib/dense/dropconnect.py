"""DropConnect: every weight is kept or set to zero, independently, with a mask of its own for every example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib.moments as moments

from ..arguments import boolean, noise_pair, one_of, positive_integer, refuse_noise, require_callable, require_features
from ..from_torch import FromLinear
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..moments import Moments
from ..noise import Bernoulli, Gaussian, apply, inverted_scale, masked_product, masks_of_weight, nothing

__all__ = ["DropConnectLinear", "WeightNoise", "drop_connect_linear"]

_CLOSED_FORMS: dict[Any, Callable[[Moments], Moments]] = {
    torch.relu: moments.relu, F.relu: moments.relu, nn.ReLU: moments.relu,
    torch.sigmoid: moments.sigmoid, F.sigmoid: moments.sigmoid, nn.Sigmoid: moments.sigmoid,
    torch.special.expit: moments.sigmoid,
}


class WeightNoise(NamedTuple):
    """Keep masks of a layer's weight and of its bias, 0 or 1 before any scaling.

    Attributes:
        weight: of shape ``(batch, out, in)``, or ``(out, in)`` where all examples share one, as at p = 0 and p = 1.
        bias: of shape ``(batch, out)``, or ``(out,)``.
    """

    weight: Tensor
    bias: Tensor


def _draw(input: Tensor, weight: Tensor, bias: Tensor | None, p: float, training: bool,
          activation: Callable[[Tensor], Tensor] | None, inference: str, num_samples: int, sharing: str, *,
          generator: torch.Generator | None) -> Tensor | WeightNoise:
    """What is drawn, in the order in which it is drawn."""
    law = Bernoulli(p)
    _check_choices(inference, num_samples, sharing)
    require_features(input, weight, bias)
    if not training:
        if inference != "sampled" or activation is None:
            raise ValueError("drop_connect_linear draws nothing with training=False, unless inference='sampled' has an "
                             f"activation to average: got inference={inference!r}, activation={activation!r}")
        return _normal(_pre_activation(input, weight, bias, law).mean, num_samples, generator=generator)
    batch = _batch(input, law, sharing)
    keep_bias = None if bias is None else law.sample(bias.expand(*batch, -1), generator=generator)
    keep = masks_of_weight(input, weight, law, generator=generator) if batch else law.sample(
        weight, generator=generator)
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
    law = Bernoulli(p)
    _check_choices(inference, num_samples, sharing)
    require_features(input, weight, bias)
    if boolean("training", training):
        pre_activation = _drop(input, weight, bias, law, sharing, noise=noise, generator=generator)
        return pre_activation if activation is None else activation(pre_activation)
    if inference == "sampled" and activation is not None:
        return _sampled(_pre_activation(input, weight, bias, law), activation, num_samples, noise=noise,
                        generator=generator)
    refuse_noise(noise)
    if inference == "mean" or activation is None:
        mean = F.linear(input, *_mean_weights(weight, bias, law))
        return mean if activation is None else activation(mean)
    return _activated(activation, _pre_activation(input, weight, bias, law)).mean


def _check_choices(inference: str, num_samples: int, sharing: str) -> None:
    one_of("inference", inference, ("gaussian", "mean", "sampled"))
    one_of("sharing", sharing, ("sample", "batch"))
    positive_integer("num_samples", num_samples)


def _mean_weights(weight: Tensor, bias: Tensor | None, law: Bernoulli) -> tuple[Tensor, Tensor | None]:
    """The weights without noise; where all of them are dropped, zero."""
    if law.p < 1:
        return weight, bias
    return nothing(weight), None if bias is None else nothing(bias)


def _pre_activation(input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli) -> Moments:
    mean = F.linear(input, *_mean_weights(weight, bias, law))
    if law.p in (0, 1):
        return Moments(mean, nothing(mean))
    ratio = law.p / (1 - law.p)
    variance = moments.sum_variance(input, weight, ratio)
    return Moments(mean, variance if bias is None else variance + ratio * bias.to(variance.dtype).square())


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


def _sampled(value: Moments, activation: Callable[[Tensor], Tensor], num_samples: int, *, noise: Any,
             generator: torch.Generator | None) -> Tensor:
    normal = _normal(value.mean, num_samples, noise=noise, generator=generator)
    return activation(value.mean + moments.deviation(value.variance).to(normal.dtype) * normal).mean(0)


def _normal(mean: Tensor, num_samples: int, *, noise: Any = None, generator: torch.Generator | None) -> Tensor:
    if mean.is_nested:  # which has no axis of samples
        raise RuntimeError("input has to be a tensor of examples of one size for inference='sampled', but got a nested "
                           "tensor, which inference='gaussian' takes")
    return Gaussian(0.0, 1.0).sample(mean.expand(num_samples, *mean.shape), noise=noise, generator=generator)


# Training


def _drop(input: Tensor, weight: Tensor, bias: Tensor | None, law: Bernoulli, sharing: str, *, noise: Any,
          generator: torch.Generator | None) -> Tensor:
    of_weight, of_bias = (noise, None) if noise is None or bias is None else noise_pair(
        noise, "the masks of the weight and of the bias")
    if noise is None:
        batch = _batch(input, law, sharing)
    else:
        is_shared = _fits_all(of_weight, weight) and (bias is None or _fits_all(of_bias, bias))
        batch = torch.Size() if is_shared else _examples(input, sharing)
    scale = inverted_scale(law.p)
    masked_bias = None if bias is None else apply(bias.expand(*batch, -1), law, scale, noise=of_bias,
                                                  generator=generator)
    if not batch:
        return F.linear(input, apply(weight, law, scale, noise=of_weight, generator=generator), masked_bias)
    rows = input.unsqueeze(1) if input.dim() == 2 else input.flatten(1, -2)  # (batch, rows that share a mask, in)
    output = scale * masked_product(rows, weight, law, noise=of_weight, generator=generator)
    if masked_bias is not None:
        output = output + masked_bias.unsqueeze(1).to(output.dtype)
    return output.view(*input.shape[:-1], -1) if input.numel() else output.reshape(*input.shape[:-1], weight.shape[0])


def _examples(input: Tensor, sharing: str) -> torch.Size:
    """The axis of examples that have masks of their own."""
    if sharing == "batch" or input.dim() == 1:
        return torch.Size()
    if input.is_nested:
        raise RuntimeError("input has to be a tensor of examples of one size for sharing='sample', but got a nested "
                           "tensor, which sharing='batch' takes")
    return input.shape[:1]


def _batch(input: Tensor, law: Bernoulli, sharing: str) -> torch.Size:
    """The same, for masks that are drawn: where there is nothing to draw, one is enough."""
    return _examples(input, sharing) if 0 < law.p < 1 else torch.Size()


def _fits_all(mask: Any, parameter: Tensor) -> bool:
    """Whether a mask has no axis of examples, and fits without one."""
    return isinstance(mask, Tensor) and mask.dim() <= parameter.dim() and all(
        n == 1 or n == size for n, size in zip(reversed(mask.shape), reversed(parameter.shape), strict=False))


@describe("dropconnect", drop_connect_linear, unwanted="where nothing is drawn",
          refused="Refused in evaluation, unless ``inference=\"sampled\"`` averages an activation.")
class DropConnectLinear(FromLinear, NoisyLayer, nn.Linear):
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
        p = Bernoulli(p).p
        _check_choices(inference, num_samples, sharing)
        if activation is not None:
            require_callable("activation", activation)
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.p, self.activation = p, activation
        self.inference, self.num_samples, self.sharing = inference, num_samples, sharing

    def extra_repr(self) -> str:
        """{shown}"""
        name = "" if self.activation is None or isinstance(self.activation, nn.Module) else (
            f", activation={getattr(self.activation, '__name__', repr(self.activation))}")
        return f"{super().extra_repr()}, p={self.p}{name}, inference={self.inference!r}, sharing={self.sharing!r}"

    def forward(self, input: Tensor, *, noise: Tensor | tuple[Tensor, Tensor] | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops weights in training and applies the test rule in evaluation. {call}"""
        return drop_connect_linear(
            input, self.weight, self.bias, self.p, self.training, activation=self.activation, inference=self.inference,
            num_samples=self.num_samples, sharing=self.sharing, noise=noise, generator=generator)

    def _is_noisy(self) -> bool:
        return self.training or (self.inference == "sampled" and self.activation is not None)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor | WeightNoise:
        return _draw(input, self.weight, self.bias, self.p, self.training, self.activation, self.inference,
                     self.num_samples, self.sharing, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: exact without activation, else for the matched Gaussian. {moment}"""
        return self._moments(input).mean

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: exact without activation, else for the Gaussian. {moment}"""
        return self._moments(input).variance

    def _moments(self, input: Tensor) -> Moments:
        require_features(input, self.weight)
        value = _pre_activation(input, self.weight, self.bias, Bernoulli(self.p))
        return _in_type_of(value.mean, value) if self.activation is None else _activated(self.activation, value)
