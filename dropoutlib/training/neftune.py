"""NEFTune: uniform noise is added to the embeddings of a language model that is fine-tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import applies_noise, at_least_zero, not_negative, require_broadcastable, require_one_size, unchanged
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Uniform, nothing

__all__ = ["NEFTune", "neftune"]

_LAW = Uniform(-1.0, 1.0)


def _require_embeddings(input: Tensor) -> None:
    require_one_size(input)
    if input.dim() != 3 or input.is_complex():
        raise RuntimeError("input has to be real embeddings of shape (N, tokens, features), but got the shape "
                           f"{tuple(input.shape)} and {input.dtype}")


def _require_lengths(input: Tensor, lengths: Tensor | None) -> None:
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths has to be a tensor of numbers of tokens, but got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
        raise ValueError(f"lengths has to be whole numbers, but got {lengths.dtype}: those of a mask are "
                         "mask * mask.sum(1, keepdim=True)")
    require_broadcastable("lengths", lengths, input.shape[:2], "tokens")
    not_negative("a number in lengths", lengths)


def _scale(input: Tensor, alpha: float, lengths: Tensor | None) -> Tensor:
    """What a number of [-1, 1] is multiplied with, of a shape that broadcasts to the input."""
    _require_embeddings(input)
    _require_lengths(input, lengths)
    single = torch.promote_types(input.dtype, torch.float32)  # half precision ends at 65504 entries
    if lengths is None:
        lengths = torch.full((1, 1), input.shape[1], device=input.device)
    entries = lengths.to(single).unsqueeze(-1) * input.shape[2]
    return torch.where(entries > 0, alpha * entries.rsqrt(), 0)


def _draw(input: Tensor, *, generator: torch.Generator | None) -> Tensor:
    _require_embeddings(input)
    return _LAW.sample(input, generator=generator)


@draws(_draw)
@describe("neftune")
def neftune(input: Tensor, alpha: float = 5.0, training: bool = True, *, lengths: Tensor | None = None,
            noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Adds uniform noise to embeddings, less of it the more entries an example has.

    See :class:`~dropoutlib.NEFTune`.

    Args:
        input: floating point tensor of shape ``(N, tokens, features)``.
        alpha: size of the noise, at least 0.
        training: whether noise is added; if not, the input is returned as it is.
        lengths: number of tokens of the text that a token belongs to, whole numbers of a shape that broadcasts to
            ``(N, tokens)``; a token with the length 0 gets no noise. None takes every example for one text without
            padding.
        noise: numbers between -1 and 1 that replace the draw, of a shape that broadcasts to ``input``.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if ``alpha`` is negative or not finite, if ``lengths`` does not broadcast to ``(N, tokens)`` or
            holds no whole numbers, or negative ones, {bad_noise}, or has values outside of [-1, 1].
        RuntimeError: if the input has another number of axes, if it holds integers, booleans or complex numbers, or
            {bad_generator}.
        TypeError: if the input or ``lengths`` is not a tensor, or ``alpha`` not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> noise = torch.tensor([[[1.0], [-1.0], [0.5], [0.0]]])
        >>> functional.neftune(torch.zeros(1, 4, 1), alpha=2.0, noise=noise).flatten()
        tensor([ 1.0000, -1.0000,  0.5000,  0.0000])
    """
    alpha = at_least_zero("alpha", alpha)
    if not applies_noise(training, noise):
        unchanged(input, _require_embeddings)
        _require_lengths(input, lengths)
        return input
    scale = _scale(input, alpha, lengths)
    if alpha == 0 and noise is None:
        return input
    return input + (scale * _LAW.sample(input, noise=noise, generator=generator)).to(input.dtype)


@describe("neftune", neftune)
class NEFTune(NoisyLayer):
    r"""Adds uniform noise to the embeddings of tokens: apply it to what :class:`torch.nn.Embedding` gives.

    Every entry gets :math:`\frac{\alpha}{\sqrt{TD}}\, u` with u uniform between -1 and 1, where T is the number of
    tokens and D that of features. The squared norm of the noise of an example is :math:`\alpha^2/3` on average,
    whatever T and D are. {identity}

    {four_answers}

    T is the length of the text. In a batch of padded or packed texts the axis of tokens is longer than a text, and its
    size would make the noise of the text too small: give ``lengths``. For a mask of 0 and 1, as
    ``attention_mask`` of a tokenizer, that is ``mask * mask.sum(1, keepdim=True)``, which adds no noise to padding. A
    factor behind this layer multiplies the noise, too: models that scale their embeddings, such as those of the Gemma
    family, want it behind their factor or a smaller alpha.

    Nothing is dropped, so an ``inf`` or ``nan`` passes through. With alpha = 0 the input itself is returned, without a
    draw.

    Args:
        {alpha} The attribute may be changed later.

    Shape:
        Input ``(N, tokens, features)``; the output has the same one. {given}

    Raises:
        ValueError: if ``alpha`` is negative or not finite.
        TypeError: if ``alpha`` is not a real number.

    Source:
        Jain et al., *NEFTune: Noisy Embeddings Improve Instruction Finetuning* (2024), section 2 and algorithm 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import NEFTune
        >>> layer, words = nn.Sequential(nn.Embedding(100, 16), NEFTune(5.0)), torch.randint(100, (8, 20))
        >>> added = layer(words) - layer.eval()(words)
        >>> bool((added.abs() <= 5 / (20 * 16) ** 0.5 + 1e-6).all())
        True
    """

    def __init__(self, alpha: float = 5.0) -> None:
        super().__init__()
        self.alpha = at_least_zero("alpha", alpha)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"alpha={self.alpha}"

    if TYPE_CHECKING:
        def __call__(self, input: Tensor, *, lengths: Tensor | None = None, noise: Tensor | None = None,
                     generator: torch.Generator | None = None) -> Tensor: ...

    def forward(self, input: Tensor, *, lengths: Tensor | None = None, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Adds noise in training and returns the input in evaluation.

        Args:
            {input}
            {lengths}
            {noise} {refused}
            {generator}

        Returns:
            {Returns}

        Raises:
            ValueError: if ``noise`` or ``lengths`` is not as described above, or ``noise`` is given in evaluation.
            {RuntimeError}
            TypeError: if the input or ``lengths`` is not a tensor.
        """
        return neftune(input, self.alpha, self.training, lengths=lengths, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _draw(input, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself. {moment}"""
        return unchanged(input, _require_embeddings)

    def variance(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        r"""{output_variance}: :math:`\alpha^2/(3TD)` for every entry.

        Args:
            {input}
            {lengths}

        Returns:
            Tensor of the shape of the layer's output.
        """
        variance = _scale(input, at_least_zero("alpha", self.alpha), lengths).square() * _LAW.variance
        return nothing(input) + variance.to(input.dtype)
