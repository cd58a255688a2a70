"""Alpha dropout: what is dropped becomes the lower limit of SELU, and an affine map keeps mean 0 and variance 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, boolean, require_one_size, unchanged
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, noise_variance, nothing

__all__ = ["AlphaDropout", "FeatureAlphaDropout", "alpha_dropout", "feature_alpha_dropout"]

# SELU's lower limit, -lambda * alpha, as in torch.
_LIMIT = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717


def _affine(p: float) -> tuple[float, float]:
    """Slope and shift that keep mean 0 and variance 1; where nothing is kept by the law, as without noise."""
    q = 1 - Bernoulli(p).p
    if q == 0:
        return 1.0, 0.0
    a = 1 / math.sqrt(q + _LIMIT * _LIMIT * q * (1 - q))
    return a, -a * (1 - q) * _LIMIT


def _require_features(input: Tensor) -> None:
    require_one_size(input)
    if input.dim() < 2:
        raise RuntimeError(f"input has to be of shape (N, C, ...), but got the shape {tuple(input.shape)}: use "
                           "AlphaDropout, which drops single elements")


def _mask(input: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    return Bernoulli(p).sample(input, generator=generator)


def _mask_of_maps(input: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    _require_features(input)
    return Bernoulli(p).sample(input, shared=tuple(range(2, input.dim())), generator=generator)


def _apply(input: Tensor, p: float, training: bool, inplace: bool, shared: tuple[int, ...],
           noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    law = Bernoulli(p)
    boolean("inplace", inplace)
    if not applies_noise(training, noise) or (law.p == 0 and noise is None):
        return input
    if input.is_nested and input.layout is torch.strided and noise is None:  # torch has no draw for this layout
        return torch.nested.as_nested_tensor([
            _apply(part, p, training, inplace, shared, noise, generator) for part in input.unbind()])
    a, b = _affine(p)
    keep = law.sample(input, shared=shared, noise=noise, generator=generator)
    # a * limit + b goes to 0 as p goes to 1
    output = torch.where(keep, input, _LIMIT if law.p < 1 else 0.0) * a + b
    return input.copy_(output) if inplace else output


@draws(_mask)
@describe("alpha_dropout")
def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
                  noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Replaces elements by the lower limit of SELU and keeps mean 0 and variance 1 by an affine map.

    See :class:`~dropoutlib.AlphaDropout`.

    Args:
        {elements} {drop_p} {training} {inplace}
        noise: keep mask that replaces the draw, 0 or 1, of a shape that broadcasts to ``input``.
        {generator}

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
        >>> functional.alpha_dropout(torch.ones(3), p=0.5, noise=torch.tensor([1, 0, 1]))
        tensor([ 1.6656, -0.7792,  1.6656])
    """
    unchanged(input)
    return _apply(input, p, training, inplace, (), noise, generator)


@draws(_mask_of_maps)
@describe("alpha_dropout", alpha_dropout)
def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
                          noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Alpha dropout of whole feature maps.

    See :class:`~dropoutlib.FeatureAlphaDropout`.

    Args:
        input: floating point or complex tensor of shape ``(N, C, ...)``.
        p: probability of dropping a map.
        {training} {inplace}
        noise: keep mask that replaces the draw, 0 or 1, of shape ``(N, C, 1, ...)`` or one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        {bad_values}
        RuntimeError: if the input has fewer than two axes, if it holds integers or booleans, if it is to be overwritten
            and is a leaf that requires a gradient, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.feature_alpha_dropout(torch.ones(1, 2, 2), p=0.5, noise=torch.tensor([[1], [0]]))
        tensor([[[ 1.6656,  1.6656],
                 [-0.7792, -0.7792]]])
    """
    unchanged(input, _require_features)
    return _apply(input, p, training, inplace, tuple(range(2, input.dim())), noise, generator)


@describe("alpha_dropout", alpha_dropout)
class _AlphaDropout(NoisyLayer, _DropoutNd):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(Bernoulli(p).p, boolean("inplace", inplace))

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: a (1 - p) times the input, which for 0 < p < 1 is not the test output. {moment}"""
        self._check(input)
        if self.p == 0:
            return input
        return nothing(input) if self.p == 1 else input * (_affine(self.p)[0] * (1 - self.p))

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: a^2 p (1 - p) times the square of its distance from the lower limit of SELU.

        {moment}
        """
        self._check(input)
        return noise_variance(input - _LIMIT, _affine(self.p)[0] ** 2 * self.p * (1 - self.p))

    def _check(self, input: Tensor) -> None:
        unchanged(input)


@describe("alpha_dropout", alpha_dropout)
class AlphaDropout(_AlphaDropout):
    r"""Dropout for SELU networks: a drop-in for :class:`torch.nn.AlphaDropout`.

    In training x becomes :math:`a x + b` with probability q = 1 - p, and :math:`a \alpha' + b = a q \alpha'` with
    probability p. Here :math:`\alpha' \approx -1.7581` is the lower limit of SELU,
    :math:`a = (q + \alpha'^2 q p)^{-1/2}` and :math:`b = -a p \alpha'`. Inputs of mean 0 and variance 1 give outputs of
    mean 0 and variance 1, and no other inputs keep theirs in general. {identity}

    {four_answers}

    The test output is not the mean of the training output given x, which is :math:`a q x`. Dropping selects: a dropped
    ``inf`` or ``nan`` becomes :math:`a q \alpha'`, with a zero gradient (torch's own gives ``nan``).
    {no_draw}

    Args:
        {p} {assigned} {inplace} Torch's module has the argument, and does not do it.

    Shape:
        {any_shape}

    Raises:
        {bad_rate}

    Source:
        Klambauer et al., *Self-Normalizing Neural Networks* (2017), section "New Dropout Technique".

    Example:
        >>> import torch
        >>> from dropoutlib import AlphaDropout
        >>> layer, x = AlphaDropout(p=0.5), torch.ones(3)
        >>> layer(x, noise=torch.tensor([1, 0, 1]))
        tensor([ 1.6656, -0.7792,  1.6656])
        >>> layer.mean(x)
        tensor([0.4432, 0.4432, 0.4432])
        >>> layer.eval()(x)
        tensor([1., 1., 1.])
    """

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops in training and returns the input in evaluation. {call}"""
        return alpha_dropout(input, self.p, self.training, self.inplace, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, generator=generator)


@describe("alpha_dropout", feature_alpha_dropout)
class FeatureAlphaDropout(_AlphaDropout):
    r"""Alpha dropout of whole feature maps: a drop-in for :class:`torch.nn.FeatureAlphaDropout`.

    As :class:`~dropoutlib.AlphaDropout`, with one draw for all positions of a map. {identity}

    {four_answers}

    The test output is not the mean of the training output given x. Dropping selects: a dropped ``inf`` or ``nan``
    becomes a finite number, with a zero gradient. {no_draw}

    Args:
        {p} {assigned} {inplace} Torch's module has the argument, and does not do it.

    Shape:
        Input of shape ``(N, C, ...)``; the output has the same one. {given}

    Raises:
        {bad_rate}

    Source:
        Klambauer et al., *Self-Normalizing Neural Networks* (2017), for single elements; torch drops maps.

    Example:
        >>> import torch
        >>> from dropoutlib import FeatureAlphaDropout
        >>> FeatureAlphaDropout(p=0.5)(torch.ones(1, 2, 2), noise=torch.tensor([[1], [0]]))
        tensor([[[ 1.6656,  1.6656],
                 [-0.7792, -0.7792]]])
    """

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops maps in training and returns the input in evaluation. {call}"""
        return feature_alpha_dropout(input, self.p, self.training, self.inplace, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask_of_maps(input, self.p, generator=generator)

    def _check(self, input: Tensor) -> None:
        unchanged(input, _require_features)
