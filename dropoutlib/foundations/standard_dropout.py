"""Standard dropout: every activation is kept or set to zero, independently, afresh at every forward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, boolean, require_tensor
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, apply, inverted, inverted_mean, inverted_variance, noise_variance, raw_mean

__all__ = ["Dropout", "WeightScalingDropout", "dropout", "weight_scaling_dropout"]


def _mask(input: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    return Bernoulli(p).sample(input, generator=generator)


@draws(_mask)
@describe("standard_dropout")
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
            noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Inverted dropout: ``input / (1 - p)`` where an element is kept, zero where it is dropped.

    See :class:`~dropoutlib.Dropout`.

    Args:
        {elements} {drop_p} {training} {inplace} {mask} {generator}

    Returns:
        {same}

    Raises:
        {bad_values}
        RuntimeError: if the input holds integers or booleans, if it is to be overwritten and is a leaf that
            requires a gradient, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.dropout(torch.ones(4), p=0.5, noise=torch.tensor([1, 0, 0, 1]))
        tensor([2., 0., 0., 2.])
    """
    return inverted(input, p, training, inplace, noise=noise, generator=generator)


@draws(_mask)
@describe("standard_dropout")
def weight_scaling_dropout(input: Tensor, p: float = 0.5, training: bool = True, *,
                           noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Dropout as it was published: the raw mask in training, ``input * (1 - p)`` at test time.

    See :class:`~dropoutlib.WeightScalingDropout`.

    Args:
        {elements} {drop_p}
        training: whether noise is applied; if not, the input is scaled.
        {raw_mask} {generator}

    Returns:
        {same}

    Raises:
        {bad_values} {bad_input} {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.weight_scaling_dropout(torch.ones(4), p=0.25, noise=torch.tensor([1, 0, 0, 1]))
        tensor([1., 0., 0., 1.])
        >>> functional.weight_scaling_dropout(torch.ones(4), p=0.25, training=False)
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """
    law = Bernoulli(p)
    if not applies_noise(training, noise):
        require_tensor(input)
        return raw_mean(input, p)
    if p == 0 and noise is None:
        require_tensor(input)
        return input
    return apply(input, law, noise=noise, generator=generator)


@describe("standard_dropout", dropout)
class Dropout(NoisyLayer, _DropoutNd):
    r"""Inverted dropout, a drop-in for :class:`torch.nn.Dropout`.

    In training, an element x becomes x/(1 - p) with probability 1 - p and 0 with probability p, so that its
    mean stays x and its variance is :math:`\frac{p}{1-p} x^2`. {identity}

    {four_answers}

    {selects} {no_draw} A mask that is given is applied all the same;
    with p = 1, where there is no scale, what it keeps stays as it is.

    Like torch's own it is a ``torch.nn.modules.dropout._DropoutNd``, and found by that class; it is not an instance
    of :class:`torch.nn.Dropout`. It works under :func:`torch.compile`, not under ``torch.jit.script``.

    Args:
        {p} {assigned} {inplace}

    Shape:
        {any_shape}

    Raises:
        {bad_rate}

    Source:
        Hinton et al., *Improving neural networks by preventing co-adaptation of feature detectors* (2012);
        Srivastava et al., *Dropout: A Simple Way to Prevent Neural Networks from Overfitting* (2014), section
        4, whose p is the probability of keeping.

    Example:
        >>> import torch
        >>> from dropoutlib import Dropout
        >>> layer, x = Dropout(p=0.5), torch.ones(4)
        >>> layer(x, noise=torch.tensor([1, 0, 0, 1]))
        tensor([2., 0., 0., 2.])
        >>> first = layer(x, generator=torch.Generator().manual_seed(0))
        >>> second = layer(x, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(first, second)
        True
        >>> layer.mean(x), layer.variance(x)
        (tensor([1., 1., 1., 1.]), tensor([1., 1., 1., 1.]))
        >>> layer.eval()(x)
        tensor([1., 1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(Bernoulli(p).p, boolean("inplace", inplace))

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops elements in training and returns the input in evaluation. {call}"""
        return dropout(input, self.p, self.training, self.inplace, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself (zero if p = 1). {moment}"""
        return inverted_mean(input, self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times its square.

        It is zero if p = 1.

        {moment}
        """
        return inverted_variance(input, self.p)


@describe("standard_dropout", Dropout, weight_scaling_dropout)
class WeightScalingDropout(NoisyLayer, _DropoutNd):
    """Dropout as it was published: raw in training, scaled at test time.

    In training, an element x stays x with probability 1 - p and becomes 0 with probability p: its mean is
    (1 - p)x and its variance :math:`p(1-p)x^2`. In evaluation the input is multiplied by 1 - p, which is the
    same as scaling the weights of a linear layer that follows, but not its bias.

    {four_answers}

    Not for :class:`torch.nn.TransformerEncoderLayer` and other modules of torch with an inference fast path: that
    path takes dropout for the identity in evaluation and leaves the scaling out.

    {selects} {no_draw}

    Args:
        {p} {assigned}

    Shape:
        {any_shape}

    Raises:
        {bad_rate}

    Source:
        {Source}

    Example:
        >>> import torch
        >>> from dropoutlib import WeightScalingDropout
        >>> layer, x = WeightScalingDropout(p=0.25), torch.ones(4)
        >>> layer(x, noise=torch.tensor([1, 0, 0, 1]))
        tensor([1., 0., 0., 1.])
        >>> layer.eval()(x)
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(Bernoulli(p).p)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops elements in training and scales the input in evaluation. {call}"""
        return weight_scaling_dropout(input, self.p, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: 1 - p times the input. {moment}"""
        return raw_mean(input, self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p(1 - p) times its square. {moment}"""
        return noise_variance(input, self.p * (1 - self.p))
