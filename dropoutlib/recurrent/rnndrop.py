"""RNNDrop: units of an LSTM's cell are dropped for a whole sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..methods import describe
from ..noise import Bernoulli, inverted_scale
from ..recurrence import Noise, State, Weights, run
from ..recurrent_network import RecurrentNetwork

__all__ = ["RNNDropLSTM"]


@describe("rnndrop", given="``noise``: keep masks ``(K, B, hidden_size)``.")
class RNNDropLSTM(RecurrentNetwork):
    r"""An LSTM whose cell is masked, with one mask for all steps of a sequence.

    In training :math:`c_t = m \odot (f_t \odot c_{t-1} + i_t \odot g_t)` and
    :math:`h_t = \frac{1}{1-p}\, o_t \odot \tanh c_t`, where m is 1 with probability 1 - p, and 0 with probability p.
    The mask stays as it is for a whole sequence: what a unit remembers it remembers to the end, or it is silent. The
    cell is never scaled; h is, outside of the recursion of the cell.

    {four_answers}

    {stays_plain} It is the exact mean of h, and (1 - p) c that of the cell, as long as gates and inputs do not depend
    on the mask: in the first step, and later with the gates held fixed. Gates read the h that was masked, so the mean
    of a network is another. An LSTM alone has a cell: there is no RNNDrop for a GRU.

    Args:
        {like_torch}
        p: probability of dropping a unit of the cell. {assigned}
        {device} {dtype}

    Shape:
        {recurrent_shape}

    Raises:
        {bad_sizes}

    Source:
        Moon, Choi, Lee and Song, *RNNDROP: a novel dropout for RNNs in ASR* (2015). In the raw form h is not scaled in
        training, and by 1 - p in evaluation: the same network with other units for h.

    Example:
        >>> import torch
        >>> from dropoutlib import RNNDropLSTM
        >>> layer, x = RNNDropLSTM(10, 20, p=0.3), torch.randn(50, 4, 10)
        >>> output, (h, c) = layer(x)
        >>> output.shape, h.shape
        (torch.Size([50, 4, 20]), torch.Size([1, 4, 20]))

        A sequence in chunks, with the masks of the first one:

        >>> keep, state = layer.draw(x), None
        >>> for chunk in x.split(25):
        ...     output, state = layer(chunk, state, noise=keep)
    """

    mode = "LSTM"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 p: float = 0.5, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        p = Bernoulli(p).p
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device=device, dtype=dtype)
        self.p = p

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
        like = x.new_empty(self._stacked, x.shape[1], self.hidden_size)
        return Bernoulli(self.p).sample(like, noise=noise, generator=generator)

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Tensor, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        scale = inverted_scale(self.p)
        h, c = state
        # the engine keeps the h that is not scaled: so the mask is one of whole gates, which torch's kernel applies
        output, (h, c) = run(self.mode, x, (h / scale, c), weights._replace(hh=weights.hh * scale),
                             Noise(cell=masks[k].unsqueeze(0)), lengths)
        return output * scale, (h * scale, c)
