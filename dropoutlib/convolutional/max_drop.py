"""Max-drop: the largest activation of a map, or of a position, is set to zero with probability p."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, one_of, positive_integer, require_images, unchanged
from ..layer import NoisyLayer, draws
from ..maps import on_each_process, squares
from ..methods import describe
from ..noise import Bernoulli, apply, noise_variance

__all__ = ["MaxDrop", "max_drop"]


_SHARED = {"feature": (-2, -1), "channel": (-3,)}


def _mask(input: Tensor, p: float, mode: str, *, generator: torch.Generator | None) -> Tensor:
    one_of("mode", mode, _SHARED)
    _require_real_images(input)
    return Bernoulli(p).sample(input, shared=_SHARED[mode], generator=generator)


@draws(_mask)
@describe("max_drop")
def max_drop(input: Tensor, p: float = 0.1, mode: Literal["feature", "channel"] = "feature", window: int = 1,
             training: bool = True, *, noise: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
    """Drops the largest activation of every map, or of every position, with probability p.

    See :class:`~dropoutlib.MaxDrop`.

    Args:
        {images}
        p: probability of dropping a maximum.
        mode: ``"feature"``: the maximum of a map over its positions; ``"channel"``: of a position over the channels.
        window: length of the side of the square that is dropped around the maximum of a map, clipped at its edges.
        {training}
        noise: keep mask that replaces the draw, 0 or 1, of shape ``(N, C, 1, 1)`` for ``mode="feature"`` and
            ``(N, 1, H, W)`` for ``mode="channel"``, or one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: {bad_p}, if ``mode`` is another word, if ``window`` is below 1 or given
            with ``mode="channel"``, if ``noise`` does not broadcast to the draw, or is given while ``training`` is
            False.
        RuntimeError: if the input is of another rank, or holds no real floating point numbers, or {bad_generator}.
        TypeError: if the input is not a tensor, ``p`` not a real number or ``window`` not a whole number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> x = torch.tensor([[[1., 2.], [4., 3.]]])
        >>> functional.max_drop(x, p=0.4, noise=torch.zeros(1, 1, 1)).round(decimals=4)
        tensor([[[1.1111, 2.2222],
                 [0.0000, 3.3333]]])
    """
    law = Bernoulli(p)
    _check(mode, window)
    if not applies_noise(training, noise):
        return unchanged(input, _require_real_images)
    _require_real_images(input)
    if (p == 0 and noise is None) or input.numel() == 0:
        return input
    others = ~on_each_process(lambda maps: peaks(maps, mode, window), input, axes=3)
    return apply(input, law, _scale(input, p, mode, window), shared=_SHARED[mode], noise=noise, generator=generator,
                 as_mask=lambda keep: others | keep)


@describe("max_drop", max_drop)
def peaks(input: Tensor, mode: str, window: int = 1) -> Tensor:
    """Where the largest activations are; of equal ones the first.

    Args:
        input: of shape ``(..., C, H, W)``.
        {mode} {window}

    Returns:
        Bool tensor of the shape of ``input``.
    """
    if input.numel() == 0:
        return torch.zeros_like(input, dtype=torch.bool)
    height, width = input.shape[-2:]
    if mode == "feature":
        place = input.detach().flatten(-2).argmax(-1)
        where = squares(torch.stack([place // width, place % width], -1), window, height, width)
    else:
        channel = input.detach().argmax(-3, keepdim=True)
        where = torch.arange(input.shape[-3], device=input.device)[:, None, None] == channel
    return torch.zeros_like(input, dtype=torch.bool).logical_or(where)  # in the memory format of the input


def _check(mode: str, window: int) -> None:
    one_of("mode", mode, _SHARED)
    if positive_integer("window", window) > 1 and mode == "channel":
        raise ValueError(f'window is for mode="feature": a position has no neighbours among the channels, '
                         f"but got window={window}")


def _require_real_images(input: Tensor) -> None:
    require_images(input)
    if input.is_complex():
        raise RuntimeError(f"input has to be real, because complex numbers have no order, but got {input.dtype}")


def _scale(input: Tensor, p: float, mode: str, window: int) -> float:
    """What keeps the sum of a constant input, but for squares that are clipped."""
    if input.numel() == 0:
        return 1.0
    channels, height, width = input.shape[-3:]
    square = min(window, height) * min(window, width)
    share = square / (height * width) if mode == "feature" else 1 / channels
    return 1 / (1 - p * share) if p * share < 1 else 1.0  # where everything is dropped, nothing is scaled


@describe("max_drop", max_drop)
class MaxDrop(NoisyLayer, _DropoutNd):
    r"""Drops the largest activation of every map, or of every position, with probability p.

    In training the maximum of every feature map (``mode="feature"``), or of every position over the channels
    (``mode="channel"``), becomes 0 with probability p; everything else is kept. All is divided by
    :math:`1 - p s`, where s is the share of what can be dropped: that of a whole window in the map,
    :math:`L^2/(HW)` for a side L, or :math:`1/C`. {identity}

    {four_answers}

    Without a window, the division keeps the sum of a constant map, or position, on average. A maximum is larger than
    its share, so of any other the sum, where it is positive, is too small in training: by the factor
    :math:`\frac{1 - p\,x_{\max}/\sum x}{1 - p s}`. With a window the sum of the window takes the place of the maximum,
    and one that is clipped at the edge can hold less than its share: a constant map of 4 x 4 comes out 1.22 times as
    large with a window of 3 and p = 1/2. :meth:`mean` is exact. Where some activations are equal, the first is taken. A
    negative maximum is dropped too, that is, raised to 0. The authors' code differs for channels: it takes a window
    there as well, around the maximum in its map, and computes a scale of 1, through a division of whole numbers.
    *MaxDropout* by Santos et al. is another method: it drops all that is above a threshold.

    Args:
        {p} {assigned} {mode} {window}

    Shape:
        {image_shape}

    Raises:
        ValueError: {bad_p}, if ``mode`` is another word, if ``window`` is below 1, or above 1 with ``mode="channel"``.
        TypeError: if ``p`` is not a real number or ``window`` not a whole number.

    Source:
        Park and Kwak, *Analysis on the Dropout Effect in Convolutional Neural Networks* (2016), and its code.

    Example:
        >>> import torch
        >>> from dropoutlib import MaxDrop
        >>> layer = MaxDrop(p=0.2, mode="feature", window=3)
        >>> layer(torch.rand(8, 16, 10, 10)).shape
        torch.Size([8, 16, 10, 10])
    """

    def __init__(self, p: float = 0.1, mode: Literal["feature", "channel"] = "feature", window: int = 1) -> None:
        super().__init__(Bernoulli(p).p)
        _check(mode, window)
        self.mode, self.window = mode, window

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, mode={self.mode!r}" + (f", window={self.window}" if self.mode == "feature" else "")

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops maxima in training and returns the input in evaluation. {call}"""
        return max_drop(input, self.p, self.mode, self.window, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, self.mode, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}, which is not the test output. {moment}"""
        peaks = self._peaks(input)
        scale = _scale(input, self.p, self.mode, self.window)
        return torch.where(peaks, (1 - self.p) * scale * input if self.p < 1 else 0, scale * input)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, element by element: that of the maxima. {moment}"""
        peaks = self._peaks(input)
        scale = _scale(input, self.p, self.mode, self.window)
        return torch.where(peaks, noise_variance(input, self.p * (1 - self.p) * scale**2), 0)

    def _peaks(self, input: Tensor) -> Tensor:
        _require_real_images(input)
        return peaks(input, self.mode, self.window)
