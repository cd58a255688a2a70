"""Zoneout: a unit keeps its old state instead of taking the new one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import noise_pair
from ..methods import describe
from ..noise import Bernoulli
from ..recurrence import Noise, State, Weights, run
from ..recurrent_network import RecurrentNetwork

__all__ = ["ZoneoutGRU", "ZoneoutLSTM", "ZoneoutNoise"]


class ZoneoutNoise(NamedTuple):
    """Masks of an LSTM: 1 takes the update, 0 keeps what was.

    Attributes:
        hidden: of h, ``(K, T, B, hidden_size)``.
        cell: of c, of the same shape.
    """

    hidden: Tensor
    cell: Tensor


_WORDS: dict[str, Any] = {
    "zoned": r":math:`h_t = (1 - m_t) \odot h_{t-1} + m_t \odot \tilde h_t`",
    "p_hidden": "p_hidden: probability of keeping the old h. The attribute of this name may be changed later.",
}


class _Zoneout(RecurrentNetwork):
    def _rate(self, x: Tensor, p: float) -> Tensor | None:
        """The test rule: the old state with weight p, the new one with 1 - p."""
        p = Bernoulli(p).p
        return x.new_full((1, 1, 1), p) if p > 0 else None

    def _mask(self, x: Tensor, p: float, noise: Any, generator: torch.Generator | None) -> Tensor:
        like = x.new_empty(self._stacked, *x.shape[:2], self.hidden_size)
        return Bernoulli(p).sample(like, noise=noise, generator=generator)


@describe("zoneout", given="``noise``: a pair of masks, of h and of c, each ``(K, T, B, hidden_size)``: 1 takes the "
                           "update, 0 keeps what was.", **_WORDS)
class ZoneoutLSTM(_Zoneout):
    r"""An LSTM that keeps the old value of a unit of h, or of c, instead of the new one.

    In training {zoned} and :math:`c_t = (1 - m'_t) \odot c_{t-1} + m'_t \odot \tilde c_t`, where m is 0 with
    probability ``p_hidden``, m' with ``p_cell``, at every step anew.
    :math:`\tilde h_t = o_t \odot \tanh \tilde c_t` reads the new cell, also where the old one is kept, as in the
    authors' code.

    {four_answers}

    In evaluation each unit takes the mean of old and new, with weights p and 1 - p. This is the exact mean of one step
    given the state before it, and that of the cell at all steps with the gates held fixed. Evaluation with p > 0
    therefore runs step by step. An exported graph holds as many steps as the example: some runtimes then read no more
    of a longer one, without an error.

    Args:
        {like_torch} {p_hidden}
        p_cell: probability of keeping the old c; changed like it.
        {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Krueger et al., *Zoneout: regularizing RNNs by randomly preserving hidden activations* (2017).

    Example:
        >>> import torch
        >>> from dropoutlib import ZoneoutLSTM
        >>> layer, x = ZoneoutLSTM(10, 20, p_hidden=0.05, p_cell=0.5), torch.randn(50, 4, 10)
        >>> layer(x)[0].shape
        torch.Size([50, 4, 20])
        >>> nothing_new = torch.zeros(50, 4, 20)
        >>> output, (h, c) = layer(x, noise=(nothing_new, nothing_new))
        >>> bool(output.any())
        False
    """

    mode = "LSTM"
    rates = "p_hidden", "p_cell"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p_hidden: float = 0.05, p_cell: float = 0.5, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p_hidden, p_cell = Bernoulli(p_hidden).p, Bernoulli(p_cell).p
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p_hidden, self.p_cell = p_hidden, p_cell

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> ZoneoutNoise:
        of_h, of_c = (None, None) if noise is None else noise_pair(noise, "the masks of h and of c")
        return ZoneoutNoise(self._mask(x, self.p_hidden, of_h, generator), self._mask(x, self.p_cell, of_c, generator))

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: ZoneoutNoise,
               lengths: Tensor | None) -> tuple[Tensor, State]:
        noise = Noise(old_state=~masks.hidden[k], old_cell=~masks.cell[k])
        return run(self.mode, x, state, weights, noise, lengths)

    def _test_rule(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
        noise = Noise(old_state=self._rate(x, self.p_hidden), old_cell=self._rate(x, self.p_cell))
        return run(self.mode, x, state, weights, noise, lengths)


@describe("zoneout", given="``noise``: masks ``(K, T, B, hidden_size)``: 1 takes the update, 0 keeps what was.",
          **_WORDS)
class ZoneoutGRU(_Zoneout):
    r"""A GRU that keeps the old value of a unit of h instead of the new one.

    In training {zoned}, where m is 0 with probability ``p_hidden``, at every step anew, and
    :math:`\tilde h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}`.

    {four_answers}

    In evaluation each unit takes the mean of old and new, with weights p and 1 - p. This is the exact mean of one step
    given the state before it, and that of all steps with gates and candidates held fixed. Evaluation with p > 0
    therefore runs step by step. An exported graph holds as many steps as the example: some runtimes then read no more
    of a longer one, without an error.

    Args:
        {like_torch} {p_hidden} {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Krueger et al., *Zoneout: regularizing RNNs by randomly preserving hidden activations* (2017).

    Example:
        >>> import torch
        >>> from dropoutlib import ZoneoutGRU
        >>> layer, x = ZoneoutGRU(10, 20, p_hidden=0.1), torch.randn(50, 4, 10)
        >>> output, h = layer(x)
        >>> output.shape, h.shape
        (torch.Size([50, 4, 20]), torch.Size([1, 4, 20]))
    """

    mode = "GRU"
    rates = ("p_hidden",)

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p_hidden: float = 0.1, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        p_hidden = Bernoulli(p_hidden).p
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p_hidden = p_hidden

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
        return self._mask(x, self.p_hidden, noise, generator)

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Tensor, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        return run(self.mode, x, state, weights, Noise(old_state=~masks[k]), lengths)

    def _test_rule(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
        return run(self.mode, x, state, weights, Noise(old_state=self._rate(x, self.p_hidden)), lengths)
