"""Attention dropout: weights of attention are kept or set to zero behind the softmax, without normalising again."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..arguments import applies_noise, boolean, is_autocast, real, require_broadcastable, require_tensor
from ..layer import draws
from ..methods import describe
from ..noise import Bernoulli, inverted_scale, select

__all__ = ["attention_dropout"]


def _like_the_weights(query: Tensor, key: Tensor) -> Tensor:
    """A tensor of the shape of the weights, ``(..., L, S)``, for the draw."""
    for name, each in (("query", query), ("key", key)):
        require_tensor(each, name)
        if each.dim() < 2:
            raise RuntimeError(f"{name} has to be of shape (..., tokens, features), "
                               f"but got the shape {tuple(each.shape)}")
    try:
        batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    except RuntimeError as error:
        raise RuntimeError(f"query and key have to agree in front of their last two axes, but got the shapes "
                           f"{tuple(query.shape)} and {tuple(key.shape)}") from error
    return query.detach().new_empty((*batch, query.shape[-2], key.shape[-2]))


def _require_attention_mask(attn_mask: Tensor, query: Tensor, shape: torch.Size) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask has to be a tensor, but got {type(attn_mask).__name__}")
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError("attn_mask has to be bool, True where a query may see a key, or numbers of the type "
                           f"{query.dtype} of the query that are added to the scores, but got {attn_mask.dtype}")
    require_broadcastable("attn_mask", attn_mask, shape, "scores")


def _mask(query: Tensor, key: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    return Bernoulli(p).sample(_like_the_weights(query, key), generator=generator)


@draws(_mask)
@describe("attention_dropout")
def attention_dropout(query: Tensor, key: Tensor, value: Tensor, p: float = 0.1, training: bool = True,
                      attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Scaled dot-product attention with dropout of its weights, which evaluation turns off.

    It is :func:`~torch.nn.functional.scaled_dot_product_attention` of torch, with ``dropout_p=p``, but for
    ``training``, which that function does not have, and for a mask that can be seen, given and drawn again. In training
    a weight becomes 1/(1 - p) times itself with probability 1 - p and 0 with probability p. The weights of a query then
    no longer sum to one. In evaluation, and with p = 0, it is a call of torch's function.

    {four_answers}

    In training all ``(..., L, S)`` weights are computed and stored: torch's fused kernels give no mask away. Of half
    precision they are in single, as in torch's own expression, so that products of queries and keys do not overflow. A
    module needs no layer for this: where the weights themselves are at hand, :class:`~dropoutlib.Dropout` drops them.

    A dropped weight is 0, for ``nan`` too. It is the weight that is dropped and not the value: 0 times a value that is
    infinite is ``nan``, as for torch. With p = 1 the output is zero. A query that may see no key has the output zero.

    Args:
        query: floating point tensor of shape ``(..., L, E)``.
        key: of shape ``(..., S, E)``.
        value: of shape ``(..., S, V)``.
        p: probability of dropping a weight.
        training: whether weights are dropped.
        attn_mask: which keys a query may see, bool, or numbers that are added to the scores, of the type of the query
            or of single precision; of a shape that broadcasts to ``(..., L, S)``.
        is_causal: whether query l sees the keys 1 to l alone; not together with ``attn_mask``.
        scale: what the products of queries and keys are multiplied with; None is 1/sqrt(E).
        noise: keep mask that replaces the draw, 0 or 1 before any scaling, of a shape that broadcasts to
            ``(..., L, S)``.
        {generator}

    Returns:
        Tensor of shape ``(..., L, V)``.

    Raises:
        ValueError: {bad_p}, if ``noise`` or ``attn_mask`` does not broadcast to ``(..., L, S)``, or if ``noise`` is
            given while ``training`` is False, or if there is an ``attn_mask`` and ``is_causal`` is True.
        RuntimeError: if shapes or types do not fit, if ``attn_mask`` is of another type, such as the whole numbers of a
            tokenizer, if another tensor holds integers or booleans, or {bad_generator}.
        TypeError: if an argument is of another type.

    Source:
        Vaswani et al., *Attention Is All You Need* (2017), section 3.2.1 for attention; dropout of its weights is in
        their code (tensor2tensor).

    Example:
        >>> import torch
        >>> from dropoutlib import attention_dropout
        >>> query, key, value = torch.zeros(1, 2), torch.zeros(4, 2), torch.eye(4)
        >>> attention_dropout(query, key, value, p=0.5, noise=torch.tensor([1, 0, 1, 1]))
        tensor([[0.5000, 0.0000, 0.5000, 0.5000]])
        >>> attention_dropout(query, key, value, p=0.5, training=False)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    law = Bernoulli(p)
    like = _like_the_weights(query, key)
    require_tensor(value, "value")
    types = {each.dtype for each in (query, key, value)}
    if len(types) > 1 and (not is_autocast(query) or torch.float64 in types):
        raise RuntimeError("query, key and value have to be of one type, but got "
                           f"{query.dtype}, {key.dtype} and {value.dtype}")
    if boolean("is_causal", is_causal) and attn_mask is not None:
        raise ValueError("is_causal has to be False where attn_mask is given, but got True: write it into the mask")
    if attn_mask is not None:
        _require_attention_mask(attn_mask, query, like.shape)
    factor = 1 / math.sqrt(max(1, query.shape[-1])) if scale is None else real("scale", scale)
    if not applies_noise(training, noise) or (law.p == 0 and noise is None):
        return scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    keep = law.sample(like, noise=noise, generator=generator)
    kind, dtype = value.device.type, value.dtype
    if is_autocast(value) and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        if attn_mask is not None and attn_mask.dtype is not torch.bool:     # as torch does: the least number is -inf
            attn_mask = attn_mask.to(dtype)
    with torch.autocast(kind, enabled=False) if is_autocast(value) else contextlib.nullcontext():
        query, key, value = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (query, key, value))
        scores = query @ key.mT * factor
        if is_causal:
            attn_mask = torch.ones_like(like, dtype=torch.bool).tril()
        if attn_mask is not None:
            is_choice = attn_mask.dtype is torch.bool
            scores = torch.where(attn_mask, scores, -math.inf) if is_choice else scores + attn_mask
        sees = (scores != -math.inf).any(-1, keepdim=True)  # softmax of a query that sees nothing would be nan
        weights = torch.where(sees, torch.where(sees, scores, 0).softmax(-1), 0)
        return (select(weights, keep, inverted_scale(law.p)).to(value.dtype) @ value).to(dtype)
