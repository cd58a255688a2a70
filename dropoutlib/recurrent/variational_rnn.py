"""Variational recurrent networks: inputs, states and outputs keep their masks for a whole sequence."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..arguments import one_of
from ..methods import describe
from ..noise import Bernoulli, inverted, inverted_scale
from ..recurrence import GATES, Noise, State, Weights, run
from ..recurrent_network import RecurrentNetwork

__all__ = ["VariationalGRU", "VariationalLSTM", "VariationalNoise"]


class VariationalNoise(NamedTuple):
    """Keep masks of a variational network; D is 2 with two directions, K is D times the number of layers.

    With ``gates="untied"`` all but the last have an axis of gates in front of the last one.

    Attributes:
        input: of what the first layer reads, ``(D, B, input_size)``.
        hidden: of the h that the gates read, ``(K, B, hidden_size)``.
        between: of what the other layers read, ``(K - D, B, D * hidden_size)``.
        output: of what leaves the last layer, ``(B, D * hidden_size)``.
    """

    input: Tensor
    hidden: Tensor
    between: Tensor
    output: Tensor


class _Variational(RecurrentNetwork):
    r"""{an_or_a} {kind} that reads its inputs and its own state through masks, the same ones at all steps.

    In training the gates read :math:`W_\mathrm{ih} (m_x \odot x_t) + W_\mathrm{hh} (m_h \odot h_{t-1})`, and the output
    is :math:`m_o \odot h_t`. Each mask is drawn once for a sequence, and divided by its probability of keeping. {kept}

    {four_answers}

    {stays_plain} It is not the mean: gates are no linear functions, and one mask acts at all steps at once. The paper
    samples as well: ``inference="sampled"`` draws in evaluation as in training, for the caller to average.

    Args:
        {like_torch}
        p_input: probability of dropping what a layer reads of the layer below. The three may be changed later.
        p_hidden: probability of dropping what it reads of its own state.
        p_output: probability of dropping what leaves the last layer.
        gates: ``"tied"``: one mask for all gates; ``"untied"``: one for each, as in the authors' code.
        inference: ``"mean"``: no masks in evaluation; ``"sampled"``: masks as in training.
        {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Gal and Ghahramani, *A theoretically grounded application of dropout in recurrent neural networks* (2016).

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import Variational{kind}
        {>>>} layer, x = Variational{kind}(10, 20, p_input=0.2, p_hidden=0.3), torch.randn(50, 4, 10)
        {>>>} layer(x)[0].shape
        torch.Size([50, 4, 20])
        {>>>} layer.draw(x).hidden.shape
        torch.Size([1, 4, 20])
    """

    rates = "p_input", "p_hidden", "p_output"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p_input: float = 0.5, p_hidden: float = 0.5, p_output: float = 0.0,
                 gates: Literal["tied", "untied"] = "tied", inference: Literal["mean", "sampled"] = "mean", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        p_input, p_hidden, p_output = (Bernoulli(p).p for p in (p_input, p_hidden, p_output))
        one_of("gates", gates, ("tied", "untied"))
        one_of("inference", inference, ("mean", "sampled"))
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p_input, self.p_hidden, self.p_output = p_input, p_hidden, p_output
        self.gates, self.inference = gates, inference

    def _is_noisy(self) -> bool:
        one_of("inference", self.inference, ("mean", "sampled"))
        return self.training or self.inference == "sampled"

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> VariationalNoise:
        one_of("gates", self.gates, ("tied", "untied"))
        batch, directions = x.shape[1], self._directions
        gates = () if self.gates == "tied" else (len(GATES[self.mode]),)
        draws = (self.p_input, (directions, batch, *gates, self.input_size)), \
            (self.p_hidden, (self._stacked, batch, *gates, self.hidden_size)), \
            (self.p_input, (self._stacked - directions, batch, *gates, self._features)), \
            (self.p_output, (batch, self._features))
        given = (None,) * 4 if noise is None else noise
        if not isinstance(given, (tuple, list)) or len(given) != len(draws):
            raise TypeError("noise has to be four masks, of input, hidden, between and output, as draw() returns them, "
                            f"but got {type(noise).__name__}")
        return VariationalNoise(*(Bernoulli(p).sample(x.new_empty(shape), noise=mask, generator=generator)
                                  for (p, shape), mask in zip(draws, given, strict=True)))

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: VariationalNoise,
               lengths: Tensor | None) -> tuple[Tensor, State]:
        of_input = masks.input[k] if k < self._directions else masks.between[k - self._directions]
        if self.gates == "untied":  # gates first in memory, where the engine multiplies gate by gate
            x = x.expand(len(GATES[self.mode]), *x.shape)
            x = inverted(x, self.p_input, True, noise=of_input.transpose(0, 1).unsqueeze(1)).permute(1, 2, 0, 3)
        else:
            x = inverted(x, self.p_input, True, noise=of_input.unsqueeze(0))
        weights = weights._replace(hh=weights.hh * inverted_scale(self.p_hidden))
        return run(self.mode, x, state, weights, Noise(state=masks.hidden[k].unsqueeze(0)), lengths)

    def _after(self, output: Tensor, masks: VariationalNoise) -> Tensor:
        return inverted(output, self.p_output, True, noise=masks.output)

    def _modes(self) -> list[str]:
        return [*([] if self.gates == "tied" else [f"gates={self.gates!r}"]),
                *([] if self.inference == "mean" else [f"inference={self.inference!r}"])]


_NOISE = ("``noise``: four keep masks, of input ``(D, B, input_size)``, state ``(K, B, hidden_size)``, what other "
          "layers read ``(K - D, B, D hidden_size)`` and output ``(B, D hidden_size)``, with D directions; all but the "
          "last have an axis of gates before the last one if gates are untied. One that is None is drawn.")


@describe("variational_rnn", like=_Variational, an_or_a="An", kind="LSTM", given=_NOISE,
          kept="The cell is multiplied by no mask.")
class VariationalLSTM(_Variational):
    mode = "LSTM"


@describe("variational_rnn", like=_Variational, an_or_a="A", kind="GRU", given=_NOISE,
          kept=r"The h of :math:`z_t \odot h_{t-1}` is multiplied by no mask.")
class VariationalGRU(_Variational):
    mode = "GRU"
