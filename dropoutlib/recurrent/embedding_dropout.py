"""Embedding and locked dropout: whole words, and features of a sequence, keep their masks over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import PackedSequence

from ..arguments import applies_noise, boolean, integer, one_of, require_one_size, unchanged
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, inverted, inverted_mean, inverted_variance

__all__ = ["EmbeddingDropout", "LockedDropout", "embedding_dropout", "locked_dropout"]

_Sequences = TypeVar("_Sequences", Tensor, PackedSequence)
_BATCH_FIRST = ("batch_first: whether the batch is the first axis, in front of time; by default time is, as for "
                "recurrent layers.")


# Words


def _word_mask(input: Tensor, weight: Tensor, p: float, sharing: str, batch_first: bool, *, noise: Any = None,
               generator: torch.Generator | None) -> Tensor:
    """A draw for every word type, (V,), or for every word type of an example, (B, V)."""
    one_of("sharing", sharing, ("batch", "sample"))
    _require_words(input, sharing)
    examples = input.shape[:1] if boolean("batch_first", batch_first) else input.shape[1:2]
    size = (*examples, len(weight)) if sharing == "sample" and input.dim() > 1 else (len(weight),)
    like = input.new_empty(size, dtype=weight.dtype)    # and not like a weight, of which FSDP holds a part
    return Bernoulli(p).sample(like, noise=noise, generator=generator)


def _require_words(input: Tensor, sharing: str) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input has to be a tensor of words, but got {type(input).__name__}")
    if input.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"input has to be a tensor of words, int64 or int32, but got {input.dtype}")
    if sharing == "sample" and input.dim() > 2:
        raise RuntimeError("input has to be of shape (T, B), (B, T) or (T,) for sharing='sample', but got the shape "
                           f"{tuple(input.shape)}")


@draws(_word_mask)
@describe("embedding_dropout", batch_first=_BATCH_FIRST)
def embedding_dropout(input: Tensor, weight: Tensor, p: float = 0.1, training: bool = True, *,
                      padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
                      scale_grad_by_freq: bool = False, sparse: bool = False,
                      sharing: Literal["batch", "sample"] = "batch", batch_first: bool = False,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Looks words up in a table, and drops whole word types.

    See :class:`~dropoutlib.EmbeddingDropout`.

    Args:
        input: words, whole numbers below V: of any shape, with ``sharing="sample"`` ``(T, B)`` or ``(T,)``.
        weight: the table, ``(V, embedding_dim)``.
        p: probability of dropping a word type.
        training: whether words are dropped; if not, they are looked up as they are.
        padding_idx: as for :func:`torch.nn.functional.embedding`, like the four that follow.
        max_norm: see there.
        norm_type: see there.
        scale_grad_by_freq: see there.
        sparse: see there.
        sharing: ``"batch"``: one draw for a word type; ``"sample"``: one for a word type in an example.
        {batch_first}
        noise: keep mask that replaces the draw, 0 or 1, of shape ``(V,)``, with ``sharing="sample"`` ``(B, V)``.
        {generator}

    Returns:
        Tensor of the shape of ``input`` with one more axis, ``embedding_dim``.

    Raises:
        ValueError: {bad_p}, if ``sharing`` is another word, or if ``noise`` does not fit or is given while ``training``
            is False.
        RuntimeError: if the input holds no words, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> words, table = torch.tensor([0, 1, 0]), torch.tensor([[1.0], [2.0]])
        >>> functional.embedding_dropout(words, table, p=0.5, noise=torch.tensor([0, 1])).flatten()
        tensor([0., 4., 0.])
    """
    law = Bernoulli(p)
    noisy = applies_noise(training, noise)
    one_of("sharing", sharing, ("batch", "sample"))
    _require_words(input, sharing)
    output = F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not noisy or (law.p == 0 and noise is None):
        return output
    keep = _word_mask(input, weight, p, sharing, batch_first, noise=noise, generator=generator)
    if keep.dim() == 1:
        keep = keep[input]
    else:
        keep = keep.gather(1, input.long()) if batch_first else keep.gather(1, input.long().T).T
    return inverted(output, p, True, noise=keep.unsqueeze(-1))


@describe("embedding_dropout", embedding_dropout)
class EmbeddingDropout(NoisyLayer, nn.Embedding):
    """A table of words, of which whole word types are dropped: :class:`torch.nn.Embedding` with noise.

    In training the vector of a word type is divided by 1 - p with probability 1 - p, and zero with probability p:
    wherever the word stands, in the whole batch or in an example. In evaluation it is torch's own.

    {four_answers}

    Args:
        num_embeddings: number V of word types.
        embedding_dim: size of a vector.
        padding_idx: as for :class:`torch.nn.Embedding`, like the four that follow.
        max_norm: see there.
        norm_type: see there.
        scale_grad_by_freq: see there.
        sparse: see there.
        {p} {assigned} {sharing} {batch_first} {device} {dtype}

    Shape:
        Words of any shape, with ``sharing="sample"`` ``(T, B)`` or ``(T,)``; the output has one more axis. {given}

    Raises:
        ValueError: {bad_p}, or if ``sharing`` is another word.
        TypeError: if an argument is of another type.

    Source:
        Gal and Ghahramani, *A theoretically grounded application of dropout in recurrent neural networks* (2016),
        section 4.2, one draw a sequence; Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*
        (2018), one a batch.

    Example:
        >>> import torch
        >>> from dropoutlib import EmbeddingDropout
        >>> layer, words = EmbeddingDropout(100, 8, p=0.1), torch.randint(100, (50, 4))
        >>> layer(words).shape, layer.draw(words).shape
        (torch.Size([50, 4, 8]), torch.Size([100]))
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
                 max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
                 sparse: bool = False, p: float = 0.1, sharing: Literal["batch", "sample"] = "batch",
                 batch_first: bool = False, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p = Bernoulli(p).p
        one_of("sharing", sharing, ("batch", "sample"))
        boolean("batch_first", batch_first)
        padding_idx = None if padding_idx is None else integer("padding_idx", padding_idx)
        super().__init__(num_embeddings, embedding_dim, padding_idx, max_norm, norm_type,
                         boolean("scale_grad_by_freq", scale_grad_by_freq), boolean("sparse", sparse), device=device,
                         dtype=dtype)
        self.p, self.sharing, self.batch_first = p, sharing, batch_first

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None,
                        max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
                        sparse: bool = False, **options: Any) -> EmbeddingDropout:
        """Makes the layer from a table that is there, as :meth:`~torch.nn.Embedding.from_pretrained` does.

        Args:
            embeddings: the table, ``(V, embedding_dim)``.
            freeze: whether the table stays as it is in training.
            padding_idx: as for the layer, like the four that follow.
            max_norm: see there.
            norm_type: see there.
            scale_grad_by_freq: see there.
            sparse: see there.
            **options: ``p``, ``sharing`` and ``batch_first``.

        Returns:
            EmbeddingDropout: the layer.

        Example:
            >>> import torch
            >>> from dropoutlib import EmbeddingDropout
            >>> EmbeddingDropout.from_pretrained(torch.ones(3, 2), p=0.2)
            EmbeddingDropout(3, 2, p=0.2)
        """
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings has to have two axes, (V, embedding_dim), but got the shape "
                             f"{tuple(embeddings.shape)}")
        words, size = embeddings.shape
        layer = cls(words, size, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse,
                    device=embeddings.device, dtype=embeddings.dtype, **options)
        layer.weight = nn.Parameter(embeddings, requires_grad=not freeze)
        return layer

    def forward(self, input: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
                ) -> Tensor:
        """Looks words up.{call}"""
        return embedding_dropout(input, self.weight, self.p, self.training, padding_idx=self.padding_idx,
                                 max_norm=self.max_norm, norm_type=self.norm_type,
                                 scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse, sharing=self.sharing,
                                 batch_first=self.batch_first, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _word_mask(input, self.weight, self.p, self.sharing, self.batch_first, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the vectors of the table.{moment}"""
        return inverted_mean(self._looked_up(input), self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times the squares. Equal words are dropped together.{moment}"""
        return inverted_variance(self._looked_up(input), self.p)

    def _looked_up(self, input: Tensor) -> Tensor:
        return embedding_dropout(input, self.weight, self.p, False, padding_idx=self.padding_idx,
                                 max_norm=self.max_norm, norm_type=self.norm_type,
                                 scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse, sharing=self.sharing,
                                 batch_first=self.batch_first)

    def extra_repr(self) -> str:
        """{shown}"""
        shared = "" if self.sharing == "batch" else f", sharing={self.sharing!r}, batch_first={self.batch_first}"
        return f"{super().extra_repr()}, p={self.p}{shared}"


# Features


def _require_sequences(input: Tensor | PackedSequence) -> None:
    if isinstance(input, PackedSequence):
        require_one_size(input.data)
        if input.data.dim() != 2:
            raise RuntimeError("input has to hold packed sequences of features, but got data of the shape "
                               f"{tuple(input.data.shape)}")
        return
    require_one_size(input)
    if input.dim() not in (2, 3):
        raise RuntimeError("input has to be of shape (T, B, features), (B, T, features) with batch_first, or "
                           f"(T, features), but got the shape {tuple(input.shape)}")


def _time(input: Tensor, batch_first: bool) -> tuple[int, ...]:
    """The axis along which a draw is shared."""
    return (1,) if boolean("batch_first", batch_first) and input.dim() == 3 else (0,)


def _locked_mask(input: Tensor | PackedSequence, p: float, batch_first: bool, *, noise: Tensor | None = None,
                 generator: torch.Generator | None) -> Tensor:
    _require_sequences(input)
    if isinstance(input, PackedSequence):
        like = input.data.new_empty(1, int(input.batch_sizes[0]), input.data.shape[-1])
        return Bernoulli(p).sample(like, noise=noise, generator=generator)
    return Bernoulli(p).sample(input, shared=_time(input, batch_first), generator=generator)


def _examples_of_rows(input: PackedSequence) -> Tensor:
    """For each row of a packed sequence, the number of its example in the batch."""
    rows = torch.cat([torch.arange(int(size)) for size in input.batch_sizes]).to(input.data.device)
    return rows if input.sorted_indices is None else input.sorted_indices[rows]


@draws(_locked_mask)
@describe("embedding_dropout", batch_first=_BATCH_FIRST)
def locked_dropout(input: _Sequences, p: float = 0.5, training: bool = True, inplace: bool = False,
                   batch_first: bool = False, *, noise: Tensor | None = None,
                   generator: torch.Generator | None = None) -> _Sequences:
    """Inverted dropout of the features of sequences, with one mask for all steps.

    See :class:`~dropoutlib.LockedDropout`.

    Args:
        input: floating point or complex tensor of shape ``(T, B, features)``, with ``batch_first``
            ``(B, T, features)``, or ``(T, features)``; or a :class:`~torch.nn.utils.rnn.PackedSequence` of these.
        p: probability of dropping a feature of a sequence.
        {training} {inplace} {batch_first} {mask} For packed sequences it is of shape ``(1, B, features)``, with the
            batch in the order in which it was before it was packed.
        {generator}

    Returns:
        {same} For packed sequences they are packed in the same way.

    Raises:
        {bad_values}
        RuntimeError: if the input has another number of axes, if it holds integers or booleans, if it is to be
            overwritten and is a leaf that requires a gradient, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> keep = torch.tensor([1, 0])
        >>> functional.locked_dropout(torch.ones(3, 2), p=0.5, noise=keep)
        tensor([[2., 0.],
                [2., 0.],
                [2., 0.]])
    """
    if isinstance(input, PackedSequence):
        _require_sequences(input)
        keep, rate = None, Bernoulli(p).p
        if applies_noise(training, noise) and (rate > 0 or noise is not None):
            keep = _locked_mask(input, p, False, noise=noise, generator=generator)
            keep = keep.expand(1, int(input.batch_sizes[0]), -1)[0, _examples_of_rows(input)]
        return input._replace(data=inverted(input.data, p, training, inplace, noise=keep))
    unchanged(input, _require_sequences)
    return inverted(input, p, training, inplace, _time(input, batch_first), noise=noise, generator=generator)


def _moment(moment: Callable[[Tensor, float], Tensor], input: _Sequences, p: float) -> _Sequences:
    _require_sequences(input)
    if isinstance(input, PackedSequence):
        return input._replace(data=moment(input.data, p))
    return moment(input, p)


@describe("embedding_dropout", locked_dropout)
class LockedDropout(NoisyLayer, _DropoutNd):
    """Inverted dropout of the features of sequences, with one mask for all steps: for what passes between layers.

    In training a feature of a sequence becomes x/(1 - p) at all steps with probability 1 - p, and 0 at all steps with
    probability p. {identity}

    {four_answers}

    {selects} {no_draw}

    Args:
        {p} {assigned} {inplace} {batch_first}

    Shape:
        Input ``(T, B, features)``, with ``batch_first`` ``(B, T, features)``, ``(T, features)``, or a
        :class:`~torch.nn.utils.rnn.PackedSequence` of these; the output has the same one. {given}

    Raises:
        {bad_rate}

    Source:
        Gal and Ghahramani, *A theoretically grounded application of dropout in recurrent neural networks* (2016); the
        name is that of the code of Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*
        (2018).

    Example:
        >>> import torch
        >>> from dropoutlib import LockedDropout
        >>> output = LockedDropout(0.5)(torch.ones(50, 4, 10))
        >>> bool((output == output[0]).all())
        True
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, batch_first: bool = False) -> None:
        super().__init__(Bernoulli(p).p, boolean("inplace", inplace))
        self.batch_first = boolean("batch_first", batch_first)

    def forward(self, input: _Sequences, *, noise: Tensor | None = None, generator: torch.Generator | None = None
                ) -> _Sequences:
        """Applies dropout.{call}"""
        return locked_dropout(input, self.p, self.training, self.inplace, self.batch_first, noise=noise,
                              generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _locked_mask(input, self.p, self.batch_first, generator=generator)

    def mean(self, input: _Sequences) -> _Sequences:
        """{output_mean}: the input, and zero if p = 1.{moment}"""
        return _moment(inverted_mean, input, self.p)

    def variance(self, input: _Sequences) -> _Sequences:
        """{output_variance}: p/(1 - p) times its square, and zero if p = 1.{moment}"""
        return _moment(inverted_variance, input, self.p)

    def extra_repr(self) -> str:
        """{shown}"""
        return super().extra_repr() + (", batch_first=True" if self.batch_first else "")
