"""Recurrent dropout: what a step adds to the memory is dropped, and the memory stays."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..arguments import one_of
from ..methods import describe
from ..noise import Bernoulli, inverted_scale
from ..recurrence import Noise, State, Weights, run
from ..recurrent_network import RecurrentNetwork

__all__ = ["RecurrentDropoutGRU", "RecurrentDropoutLSTM"]

_LSTM = {
    "kind": "LSTM", "cell": r":math:`c_t = f_t \odot c_{t-1} + i_t \odot \frac{m_t}{1-p} \odot g_t`",
    "exact": "that of the cell, as long as gates and inputs do not depend on masks: in the first step, and later with "
             "the gates held fixed. The mean of h is another, because the output reads the tanh of the cell",
}
_GRU = {
    "kind": "GRU", "cell": r":math:`h_t = (1 - z_t) \odot \frac{m_t}{1-p} \odot n_t + z_t \odot h_{t-1}`",
    "exact": "that of h, as long as gates and candidates do not depend on masks: in the first step, and later with "
             "both held fixed",
}


class _RecurrentDropout(RecurrentNetwork):
    """{an_or_a} {kind} whose new memories are dropped.

    In training {cell}, where m is 1 with probability 1 - p, and 0 with probability p: another mask at every step, or
    one for all steps. What is remembered is multiplied by no mask, so nothing is forgotten sooner.

    {four_answers}

    {stays_plain} The mean is exactly {exact}.

    Args:
        {like_torch}
        p: probability of dropping an update. {assigned}
        sharing: ``"step"``: another mask at every step; ``"sequence"``: one for all.
        {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Semeniuta, Severyn and Barth, *Recurrent dropout without memory loss* (2016).

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import RecurrentDropout{kind}
        {>>>} layer, x = RecurrentDropout{kind}(10, 20, p=0.25), torch.randn(50, 4, 10)
        {>>>} output, state = layer(x)
        {>>>} output.shape
        torch.Size([50, 4, 20])
        {>>>} layer.draw(x).shape       # a mask for every step
        torch.Size([1, 50, 4, 20])

        A sequence in chunks, with the masks of their steps:

        {>>>} keep, state = layer.draw(x), None
        {>>>} for chunk, masks in zip(x.split(25), keep.split(25, dim=1)):
        ...     output, state = layer(chunk, state, noise=masks)
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p: float = 0.5, sharing: Literal["step", "sequence"] = "step", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        p = Bernoulli(p).p
        one_of("sharing", sharing, ("step", "sequence"))
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p, self.sharing = p, sharing

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
        one_of("sharing", self.sharing, ("step", "sequence"))
        steps = 1 if self.sharing == "sequence" else len(x)
        like = x.new_empty(self._stacked, steps, x.shape[1], self.hidden_size)
        return Bernoulli(self.p).sample(like, noise=noise, generator=generator)

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Tensor, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        factors = masks[k].to(x.dtype) * inverted_scale(self.p)
        return run(self.mode, x, state, weights, Noise(candidate=factors), lengths)

    def _modes(self) -> list[str]:
        return [] if self.sharing == "step" else [f"sharing={self.sharing!r}"]


_NOISE = "``noise``: keep masks ``(K, T, B, hidden_size)``; one step for all with ``sharing=\"sequence\"``."


@describe("recurrent_dropout", like=_RecurrentDropout, an_or_a="An", given=_NOISE, **_LSTM)
class RecurrentDropoutLSTM(_RecurrentDropout):
    mode = "LSTM"


@describe("recurrent_dropout", like=_RecurrentDropout, an_or_a="A", given=_NOISE, **_GRU)
class RecurrentDropoutGRU(_RecurrentDropout):
    mode = "GRU"
