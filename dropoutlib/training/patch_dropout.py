"""Patch dropout: a transformer is trained on some of its tokens, a number of them drawn without replacement."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, closed, integer, require_one_size, unchanged
from ..layer import NoisyLayer, draws
from ..maps import on_each_process
from ..methods import describe
from ..noise import Bernoulli, Subset

__all__ = ["PatchDropout", "patch_dropout"]


def _rate(p: float) -> float:
    p = Bernoulli(p).p
    if p == 1:
        raise ValueError("dropout probability has to be less than 1 for patch dropout, but got 1: "
                         "at least one token is kept")
    return p


def _prefix(num_prefix_tokens: int) -> int:
    if (number := integer("num_prefix_tokens", num_prefix_tokens)) < 0:
        raise ValueError(f"num_prefix_tokens has to be at least 0, but got {num_prefix_tokens}")
    return number


def _num_kept(num_tokens: int, p: float) -> int:
    """All but the whole number that is nearest to p times as many; at least one of them."""
    return min(num_tokens, max(1, num_tokens - math.ceil(num_tokens * p - 0.5)))


def _require_tokens(input: Tensor, prefix: int) -> None:
    require_one_size(input)
    if input.dim() != 3:
        raise RuntimeError(f"input has to be of shape (N, tokens, features), but got the shape {tuple(input.shape)}"
                           f"{': pass input[None] for a single example' if input.dim() == 2 else ''}")
    if input.shape[1] < prefix:
        raise RuntimeError(f"input has to have at least num_prefix_tokens={prefix} tokens, its second axis, "
                           f"but got the shape {tuple(input.shape)}")


def _mask(input: Tensor, p: float, num_prefix_tokens: int, *, noise: Tensor | None = None,
          generator: torch.Generator | None) -> Tensor:
    prefix = _prefix(num_prefix_tokens)
    _require_tokens(input, prefix)
    tokens = input.shape[1] - prefix
    like = input.detach().new_empty((input.shape[0], tokens))
    return Subset(_num_kept(tokens, _rate(p))).sample(like, noise=noise, generator=generator)


@draws(_mask)
@describe("patch_dropout")
def patch_dropout(input: Tensor, p: float = 0.5, training: bool = True, num_prefix_tokens: int = 1, *,
                  noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Keeps some of the tokens, which ones is drawn for each example.

    See :class:`~dropoutlib.PatchDropout`.

    Args:
        input: floating point or complex tensor of shape ``(N, tokens, features)``.
        p: share of the tokens that is dropped, less than 1.
        training: whether tokens are dropped; if not, the input is returned as it is.
        num_prefix_tokens: number of tokens in front, such as a class token, that are kept and not counted.
        noise: keep mask that replaces the draw, 0 or 1, of a shape that broadcasts to ``(N, L)``, for the L tokens
            behind those in front. For every example it has to keep as many tokens as a draw would.
        {generator}

    Returns:
        Tensor of shape ``(N, num_prefix_tokens + kept, features)``, the tokens in the order in which they were; in
        evaluation the input.

    Raises:
        ValueError: {bad_p}, or is 1, if ``num_prefix_tokens`` is less than 0, if ``noise`` does not broadcast to
            ``(N, L)``, keeps another number of tokens, or is given while ``training`` is False.
        RuntimeError: if the input has another number of axes or too few tokens, if it holds integers or booleans, or
            {bad_generator}.
        TypeError: if the input is not a tensor, ``p`` not a real number, or ``num_prefix_tokens`` no whole number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> tokens = torch.arange(5.0).reshape(1, 5, 1)
        >>> functional.patch_dropout(tokens, p=0.5, noise=torch.tensor([1, 0, 0, 1])).flatten()
        tensor([0., 1., 4.])
    """
    prefix, check = _prefix(num_prefix_tokens), partial(_require_tokens, prefix=_prefix(num_prefix_tokens))
    rate = _rate(p)
    if not applies_noise(training, noise):
        return unchanged(input, check)
    check(input)
    tokens, = closed(input.shape[1:2], "the number of tokens that PatchDropout keeps")
    kept = _num_kept(tokens - prefix, rate)
    if kept == tokens - prefix and noise is None:
        return input

    def left(part: Tensor) -> Tensor:
        keep = pad(_mask(part, rate, prefix, noise=noise, generator=generator), (prefix, 0), value=True)
        place = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :prefix + kept]
        examples = part.shape[0]    # len() would be a number for torch.export
        first = torch.arange(examples, device=part.device).unsqueeze(1) * tokens
        # rows of one matrix: several times as fast as gather, which copies element by element
        return part.flatten(0, 1).index_select(0, (first + place).flatten()).unflatten(0, (examples, prefix + kept))

    return on_each_process(left, input, 2)


@describe("patch_dropout", patch_dropout)
class PatchDropout(NoisyLayer, _DropoutNd):
    """Keeps some of the tokens of a sequence and drops the rest, so that what follows has less to compute.

    Of the L tokens behind the first ``num_prefix_tokens`` every example loses the whole number nearest to pL, but
    never all of them, each choice being as probable as the other: the output has fewer tokens than the input. The
    ones that are left stay in their order and are not scaled. {identity}

    {four_answers}

    Apply it behind what tells the tokens their positions, and in front of the first block. Positions that blocks
    compute by themselves, as in rotary embeddings, have to be those of the tokens that are left: ``draw()`` gives the
    mask. The same mask as ``attn_mask`` of attention hides keys and keeps the number of tokens.

    Dropping selects: an ``inf`` or ``nan`` in a dropped token is gone, with a zero gradient. Where no token is to be
    dropped, as with p = 0, the input itself is returned, without a draw.

    It is the layer of timm, whose ``prob`` is ``p`` here, with its ``ordered=True``. timm keeps
    ``max(1, int(L * (1 - prob)))`` tokens, which can be one less: see :meth:`num_kept`.

    Args:
        {p} {assigned}
        {num_prefix_tokens}

    Shape:
        Input ``(N, tokens, features)``; output ``(N, num_prefix_tokens + num_kept(L), features)`` with
        L = tokens - num_prefix_tokens; in evaluation that of the input. {given}

    Raises:
        ValueError: {bad_p}, or is 1, or if ``num_prefix_tokens`` is less than 0.
        TypeError: if ``p`` is not a real number, or ``num_prefix_tokens`` no whole number.

    Source:
        Liu et al., *PatchDropout: Economizing Vision Transformers Using Patch Dropout* (2023), and Li et al., *Scaling
        Language-Image Pre-training via Masking* (2023), section 3.

    Example:
        >>> import torch
        >>> from dropoutlib import PatchDropout
        >>> layer = PatchDropout(p=0.75)
        >>> layer(torch.rand(8, 1 + 196, 64)).shape, layer.eval()(torch.rand(8, 1 + 196, 64)).shape
        (torch.Size([8, 50, 64]), torch.Size([8, 197, 64]))
    """

    def __init__(self, p: float = 0.5, num_prefix_tokens: int = 1) -> None:
        super().__init__(_rate(p))
        self.num_prefix_tokens = _prefix(num_prefix_tokens)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, num_prefix_tokens={self.num_prefix_tokens}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops tokens in training and returns the input in evaluation. {call}"""
        return patch_dropout(input, self.p, self.training, self.num_prefix_tokens, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, self.num_prefix_tokens, generator=generator)

    def num_kept(self, num_tokens: int) -> int:
        """How many tokens are kept, those in front not counted.

        Args:
            num_tokens: number of tokens behind those in front.

        Returns:
            All but the whole number that is nearest to ``p * num_tokens``, the smaller one of two; at least one.

        Raises:
            ValueError: if ``num_tokens`` is less than 0.
            TypeError: if it is no whole number.

        Example:
            >>> from dropoutlib import PatchDropout
            >>> PatchDropout(0.25).num_kept(49), PatchDropout(0.99).num_kept(10)
            (37, 1)
        """
        if (number := integer("num_tokens", num_tokens)) < 0:
            raise ValueError(f"num_tokens has to be at least 0, but got {num_tokens}")
        return _num_kept(number, _rate(self.p))
