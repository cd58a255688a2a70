"""Stochastic depth: a residual branch is kept or dropped as a whole, for each example or for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, boolean, one_of, unchanged
from ..branches import MODES, require_batch, shared_axes
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, apply, inverted, inverted_mean, inverted_variance, noise_variance, raw_mean

__all__ = ["DropPath", "StochasticDepth", "drop_path", "stochastic_depth"]


def _mask(input: Tensor, p: float, mode: str, *, generator: torch.Generator | None) -> Tensor:
    return Bernoulli(p).sample(input, shared=shared_axes(input, mode), generator=generator)


def _mask_of_rows(input: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    return _mask(input, p, "row", generator=generator)


@draws(_mask)
@describe("stochastic_depth", fits="the draw")
def stochastic_depth(input: Tensor, p: float, mode: str = "row", training: bool = True, *,
                     noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Inverted dropout of a whole residual branch.

    See :class:`~dropoutlib.StochasticDepth`.

    Args:
        input: output of the branch, a floating point or complex tensor of shape ``(N, ...)``.
        p: probability of dropping the branch.
        mode: ``"row"`` draws for every example, ``"batch"`` once for all of them.
        {training}
        noise: keep mask that replaces the draw, 0 or 1 before any scaling, of shape ``(N, 1, ..., 1)`` or, in the mode
            ``"batch"``, ``(1, ..., 1)``, or one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if ``mode`` is another word, {bad_p}, {bad_noise}.
        RuntimeError: if the input has no axis, if it holds integers or booleans, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> keep = torch.tensor([[1], [0]])
        >>> functional.stochastic_depth(torch.ones(2, 3), p=0.5, noise=keep)
        tensor([[2., 2., 2.],
                [0., 0., 0.]])
    """
    return inverted(input, p, training, shared=shared_axes(input, mode), noise=noise, generator=generator)


@draws(_mask_of_rows)
@describe("stochastic_depth", stochastic_depth, fits="the draw")
def drop_path(input: Tensor, p: float = 0.0, training: bool = True, scale_by_keep: bool = True, *,
              noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Dropout of a whole residual branch for every example, with the scale where one asks for it.

    See :class:`~dropoutlib.DropPath`.

    Args:
        {input} {p}
        training: whether noise is applied.
        scale_by_keep: whether what is kept is divided by 1 - p in training. If not, it is the output outside of
            training that is multiplied by 1 - p.
        noise: keep mask that replaces the draw, 0 or 1 before any scaling, of shape ``(N, 1, ..., 1)`` or one that
            broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        {bad_values}
        {RuntimeError}
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> keep = torch.tensor([[1], [0]])
        >>> functional.drop_path(torch.ones(2, 3), p=0.5, scale_by_keep=False, noise=keep)
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """
    shared = shared_axes(input, "row")
    if boolean("scale_by_keep", scale_by_keep):
        return inverted(input, p, training, shared=shared, noise=noise, generator=generator)
    law = Bernoulli(p)
    if not applies_noise(training, noise):
        return raw_mean(input, p)
    if law.p == 0 and noise is None:
        return unchanged(input)
    return apply(input, law, shared=shared, noise=noise, generator=generator)


@describe("stochastic_depth", stochastic_depth)
class StochasticDepth(NoisyLayer, _DropoutNd):
    r"""Inverted dropout of a whole residual branch, with the arguments of torchvision's ``StochasticDepth``.

    A residual block is ``x + drop(branch(x))``. In training the output f of the branch becomes f/(1 - p) with
    probability 1 - p and 0 with probability p, all elements of an example together: its mean stays f and its variance
    is :math:`\frac{p}{1-p} f^2`. {identity} The branch is computed all the same.

    {four_answers}

    {selects} {no_draw}

    Args:
        {p} {assigned}
        {mode}

    Shape:
        Input ``(N, ...)``; the output has the same one. {given}

    Raises:
        ValueError: if ``mode`` is another word, or ``p`` is not between 0 and 1.
        {no_number}

    Source:
        Huang et al., *Deep Networks with Stochastic Depth* (2016), with one draw for a mini-batch, without a scale in
        training, and with p the probability of keeping.

    Example:
        >>> import torch
        >>> from dropoutlib import StochasticDepth
        >>> layer, f = StochasticDepth(p=0.5, mode="row"), torch.ones(2, 3)
        >>> layer(f, noise=torch.tensor([[1], [0]]))
        tensor([[2., 2., 2.],
                [0., 0., 0.]])
        >>> layer.eval()(f)
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(self, p: float, mode: str = "row") -> None:
        one_of("mode", mode, MODES)
        super().__init__(Bernoulli(p).p)
        self.mode = mode

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, mode={self.mode!r}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops the branch in training and returns it in evaluation. {call}"""
        return stochastic_depth(input, self.p, self.mode, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, self.mode, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself (zero if p = 1). {moment}"""
        unchanged(input, require_batch)
        return inverted_mean(input, self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times its square.

        Of every element by itself: elements that share a draw have the same factor.

        {moment}
        """
        require_batch(input)
        return inverted_variance(input, self.p)


@describe("stochastic_depth", drop_path)
class DropPath(NoisyLayer, _DropoutNd):
    r"""Dropout of a whole residual branch for every example, with the arguments of timm's ``DropPath``.

    With ``scale_by_keep`` it is :class:`~dropoutlib.StochasticDepth` of the mode ``"row"``. Without, the noise is raw:
    the branch f becomes f or 0, its mean is (1 - p)f and its variance :math:`p(1-p)f^2`. In evaluation it is then
    multiplied by 1 - p, the paper's test rule. The layer of timm does nothing there, so that its branches are larger
    in evaluation than they were on average in training.

    {four_answers}

    {selects} {no_draw}

    Args:
        drop_prob: probability of dropping the branch. It is the attribute ``p``, which may be changed later, by either
            name.
        {scale_by_keep}

    Shape:
        Input ``(N, ...)``; the output has the same one. {given}

    Raises:
        ValueError: if ``drop_prob`` is not between 0 and 1.
        TypeError: if ``drop_prob`` is not a real number, or ``scale_by_keep`` neither True nor False.

    Source:
        Huang et al., *Deep Networks with Stochastic Depth* (2016), whose p is the probability of keeping; the name is
        from Larsson et al., *FractalNet* (2017).

    Example:
        >>> import torch
        >>> from dropoutlib import DropPath
        >>> layer, f = DropPath(0.5, scale_by_keep=False), torch.ones(2, 3)
        >>> layer(f, noise=torch.tensor([[1], [0]]))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
        >>> layer.eval()(f)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__(Bernoulli(drop_prob).p)
        self.scale_by_keep = boolean("scale_by_keep", scale_by_keep)

    @property
    def drop_prob(self) -> float:
        """The probability of dropping, ``p``."""
        return self.p

    @drop_prob.setter
    def drop_prob(self, drop_prob: float) -> None:
        self.p = drop_prob

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, scale_by_keep={self.scale_by_keep}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops the branch in training, and returns its mean over the masks in evaluation. {call}"""
        return drop_path(input, self.p, self.training, self.scale_by_keep, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask_of_rows(input, self.p, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself, 1 - p times it without the scale. {moment}"""
        unchanged(input, require_batch)
        return inverted_mean(input, self.p) if self.scale_by_keep else raw_mean(input, self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times its square, p(1 - p) times without the scale.

        Of every element by itself: the elements of an example have the same factor.

        {moment}
        """
        require_batch(input)
        if self.scale_by_keep:
            return inverted_variance(input, self.p)
        return noise_variance(input, self.p * (1 - self.p))
