"""Weight drop: DropConnect on the recurrent weights of an LSTM or a GRU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..methods import describe
from ..noise import Bernoulli, inverted
from ..recurrence import GATES, State, Weights
from ..recurrent_network import RecurrentNetwork

__all__ = ["WeightDropGRU", "WeightDropLSTM"]


class _WeightDrop(RecurrentNetwork):
    r"""{an_or_a} {kind} whose recurrent weights are dropped, with one mask for all steps and examples of a call.

    In training a weight u of ``weight_hh`` becomes u/(1 - p) with probability 1 - p, and 0 with probability p. The mask
    is applied to the weights of the call; the parameters stay what they are, so the layer may be moved, copied, loaded,
    tied and trained like any other. Torch's own kernel runs.

    {four_answers}

    {stays_plain} These are the mean weights; the mean of h they give in no step but the first, whose h is given.

    Args:
        {like_torch}
        p: probability of dropping a recurrent weight. {assigned}
        {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models* (2018).

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import WeightDrop{kind}
        {>>>} layer, x = WeightDrop{kind}(10, 20, p=0.5), torch.randn(50, 4, 10)
        {>>>} layer(x)[0].shape
        torch.Size([50, 4, 20])
        {>>>} layer.draw(x).shape
        torch.Size([1, {rows}, 20])
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p: float = 0.5, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        p = Bernoulli(p).p
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p = p

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
        like = x.new_empty(self._stacked, len(GATES[self.mode]) * self.hidden_size, self.hidden_size)
        return Bernoulli(self.p).sample(like, noise=noise, generator=generator)

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Tensor, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        weights = weights._replace(hh=inverted(weights.hh, self.p, True, noise=masks[k]))
        return self._test_rule(x, state, weights, lengths)


@describe("weight_drop", like=_WeightDrop, an_or_a="An", kind="LSTM", rows="80",
          given="``noise``: keep masks ``(K, 4 * hidden_size, hidden_size)``.")
class WeightDropLSTM(_WeightDrop):
    mode = "LSTM"


@describe("weight_drop", like=_WeightDrop, an_or_a="A", kind="GRU", rows="60",
          given="``noise``: keep masks ``(K, 3 * hidden_size, hidden_size)``.")
class WeightDropGRU(_WeightDrop):
    mode = "GRU"
