"""What every recurrent layer of the library is: layers and directions around the engine, in the form of torch's own."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .arguments import boolean, is_autocast, noise_pair, positive_integer, refuse_noise, require_tensor
from .documentation import document
from .from_torch import FromRNN
from .layer import NoisyLayer
from .noise import Bernoulli, inverted
from .recurrence import GATES, Noise, State, Weights, run

__all__ = ["RecurrentNetwork", "StackNoise"]


class StackNoise(NamedTuple):
    """What a recurrent layer draws that has ``dropout`` between its layers, too.

    Attributes:
        recurrent: the noise inside of the recursions.
        between: keep masks of the inputs of all layers but the first, ``(num_layers - 1, T, B, features)``.
    """

    recurrent: Any
    between: Tensor


@document()
class RecurrentNetwork(FromRNN, NoisyLayer):
    """A stack of LSTM or GRU layers with noise inside: shapes, names of parameters and errors are those of torch's own.

    A subclass says in ``_masks`` what is drawn for an input, or checks what is given; in ``_layer`` what one layer does
    with it in one direction; and in ``_test_rule`` what it does without noise, if that is not what torch does. It owns
    its parameters, under torch's names, instead of being a :class:`torch.nn.RNNBase`, which the compiler refuses.

    Args:
        {input_size} {hidden_size} {num_layers} {bias_too} {batch_first} {between} {bidirectional} {proj_size} {device}
        {dtype}
    """

    rates: ClassVar[tuple[str, ...]] = ("p",)       # attributes that are probabilities of dropping
    dropout: float
    batch_first: bool

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.input_size = positive_integer("input_size", input_size)
        self.hidden_size = positive_integer("hidden_size", hidden_size)
        self.num_layers = positive_integer("num_layers", num_layers)
        self.bias, self.batch_first = boolean("bias", bias), boolean("batch_first", batch_first)
        self.bidirectional = boolean("bidirectional", bidirectional)
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real) or not 0 <= dropout <= 1:
            raise ValueError("dropout should be a number in range [0, 1] representing the probability of an element "
                             f"being zeroed, but got {dropout!r}")
        self.dropout = float(dropout)
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn("dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                          f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                          stacklevel=3)
        if proj_size != 0:
            raise ValueError(f"proj_size has to be 0, but got {proj_size!r}: no method here is defined for a state "
                             "that is projected")
        self.proj_size = 0
        rows = len(GATES[self.mode]) * self.hidden_size
        for k in range(self._stacked):
            features = self.input_size if k < self._directions else self._features
            shapes = [(rows, features), (rows, self.hidden_size), *([(rows,), (rows,)] if self.bias else [])]
            for name, shape in zip(self._names(k), shapes, strict=True):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters as torch's own does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer in each direction, as torch's own lists them."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _all_weights(self) -> list[list[str]]:      # code for torch's layers finds the biases of gates by these names
        return [self._names(k) for k in range(self._stacked)]

    def flatten_parameters(self) -> None:
        """Does nothing: weights that a GPU wants in one piece are put together at each call."""

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _stacked(self) -> int:
        """Layers times directions, the first axis of a state."""
        return self.num_layers * self._directions

    @property
    def _features(self) -> int:
        """Of the output."""
        return self._directions * self.hidden_size

    def _names(self, k: int) -> list[str]:
        layer, direction = divmod(k, self._directions)
        kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else [])]
        return [f"{kind}_l{layer}{'_reverse' if direction else ''}" for kind in kinds]

    def _weights(self, k: int) -> Weights:
        return Weights(*(getattr(self, name) for name in self._names(k)))

    # What a subclass says

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Any:
        """Masks for inputs of shape (T, B, features): drawn, or those given if they fit."""
        raise NotImplementedError(f"{type(self).__name__} has to define _masks(x, noise, generator)")

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Any, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        """Layer and direction number k, with its masks."""
        raise NotImplementedError(f"{type(self).__name__} has to define _layer(k, x, state, weights, masks, lengths)")

    def _test_rule(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
        """One layer in one direction, where no noise is drawn."""
        return run(self.mode, x, state, weights, Noise(), lengths)

    def _after(self, output: Tensor, masks: Any) -> Tensor:
        """The output of the last layer, (T, B, features), under noise."""
        return output

    # The walk

    if TYPE_CHECKING:
        def __call__(self, input: Any, hx: Any = None, *, noise: Any = None,  # type: ignore[override]
                     generator: torch.Generator | None = None) -> tuple[Any, Any]: ...

    def forward(self, input: Tensor | PackedSequence, hx: Any = None, *, noise: Any = None,
                generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """Runs over sequences.

        Args:
            input: ``(T, B, input_size)``, with ``batch_first`` ``(B, T, input_size)``, ``(T, input_size)`` for one
                sequence, or a :class:`~torch.nn.utils.rnn.PackedSequence`.
            hx: state before the first step, as torch's own takes it; None for zeros.
            noise: what :meth:`~dropoutlib.NoisyLayer.draw` gives, to be used instead of a draw; see under Shape.
                Refused where nothing is drawn.
            {generator}

        Returns:
            tuple: the output and the last state, as torch's own gives them.

        Raises:
            ValueError: if the input has a wrong number of axes or another type than the weights, or if ``noise`` does
                not fit, or nothing is drawn.
            RuntimeError: if sizes do not fit, or {bad_generator}.
            TypeError: if an argument is no tensor.
        """
        for name in self.rates:
            Bernoulli(getattr(self, name))
        if not self._is_noisy():
            refuse_noise(noise)
        x, lengths = self._sequences(input)
        is_single = isinstance(input, Tensor) and input.dim() == 2
        state = self._state(x, hx, is_single)
        weights = [self._weights(k) for k in range(self._stacked)]
        if is_autocast(x):
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind)
            x, state = x.to(dtype), tuple(part.to(dtype) for part in state)
            weights = [_in_type(own, dtype) for own in weights]
            with torch.autocast(kind, enabled=False):
                output, last = self._run(x, state, weights, lengths, noise, generator)
        else:
            output, last = self._run(x, state, weights, lengths, noise, generator)
        if isinstance(input, PackedSequence):
            return _packed_like(input, output, lengths), last if self.mode == "LSTM" else last[0]
        if is_single:
            output, last = output.squeeze(1), tuple(part.squeeze(1) for part in last)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, last if self.mode == "LSTM" else last[0]

    def _run(self, x: Tensor, state: State, weights: list[Weights], lengths: Tensor | None, noise: Any,
             generator: torch.Generator | None) -> tuple[Tensor, State]:
        masks, between = self._noise(x, noise, generator) if self._is_noisy() else (None, None)
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and between is not None:
                x = inverted(x, self.dropout, True, noise=between[layer - 1])
            outputs = []
            for direction in range(self._directions):
                k = layer * self._directions + direction
                sequence = _reversed(x, lengths) if direction else x
                before = tuple(part[k] for part in state)
                output, end = self._test_rule(sequence, before, weights[k], lengths) if masks is None else self._layer(
                    k, sequence, before, weights[k], masks, lengths)
                outputs.append(_reversed(output, lengths) if direction else output)
                last.append(end)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        output = x if masks is None else self._after(x, masks)
        return output, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _noise(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> tuple[Any, Tensor | None]:
        """Drawn or given: inside of the recursions, and between the layers."""
        if self.num_layers == 1 or self.dropout == 0:
            return self._masks(x, noise, generator), None
        inside, between = (None, None) if noise is None else noise_pair(
            noise, "the masks inside of the recursions and between the layers")
        like = x.new_empty(self.num_layers - 1, *x.shape[:2], self._features)
        masks = self._masks(x, inside, generator)
        return masks, Bernoulli(self.dropout).sample(like, noise=between, generator=generator)

    def _draw(self, input: Tensor | PackedSequence, generator: torch.Generator | None) -> Any:
        masks, between = self._noise(self._sequences(input)[0], None, generator)
        return masks if between is None else StackNoise(masks, between)

    def _sequences(self, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
        """The input as (T, B, features), and lengths where it was packed; its errors are in torch's words."""
        lengths = None
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input)
        else:
            require_tensor(input)
            if input.dim() not in (2, 3):
                raise ValueError(f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D instead")
            x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if self.batch_first else input
        weight = getattr(self, self._names(0)[0])
        if x.shape[-1] != self.input_size:
            raise RuntimeError("input.size(-1) must be equal to input_size. "
                               f"Expected {self.input_size}, got {x.shape[-1]}")
        if x.dtype != weight.dtype and not is_autocast(x):
            raise ValueError(f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert "
                             f"input: input.to({weight.dtype}), or convert model: model.to({x.dtype})")
        if x.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return x, lengths

    def _state(self, x: Tensor, hx: Any, is_single: bool) -> State:
        """The state before the first step, as (layers and directions, B, H)."""
        names = {"LSTM": ("hx[0]", "hx[1]"), "GRU": ("hx",)}[self.mode]
        shape = (self._stacked, x.shape[1], self.hidden_size)
        if hx is None:
            return (x.new_zeros(shape),) * len(names)
        if self.mode == "LSTM" and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise TypeError(f"hx has to be a pair of tensors, (h_0, c_0), but got {type(hx).__name__}")
        given = tuple(hx) if self.mode == "LSTM" else (hx,)
        expected = (shape[0], shape[2]) if is_single else shape
        for name, part in zip(names, given, strict=True):
            require_tensor(part, name)
            if part.dim() != len(expected):
                raise RuntimeError(f"For {'unbatched 2-D' if is_single else 'batched 3-D'} input, {name} should also "
                                   f"be {len(expected)}-D but got {part.dim()}-D tensor")
            if part.shape != expected:
                raise RuntimeError(f"Expected {name} size {expected}, got {list(part.shape)}")
            if part.dtype != x.dtype and not is_autocast(x):
                raise ValueError(f"{name} has to be of the type of the input, {x.dtype}, but got {part.dtype}")
        return tuple(part.unsqueeze(1) for part in given) if is_single else given

    def extra_repr(self) -> str:
        """{shown}"""
        plain = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        changed = [f"{name}={getattr(self, name)}" for name, usual in plain.items() if getattr(self, name) != usual]
        rates = [f"{name}={getattr(self, name)}" for name in self.rates]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed, *rates, *self._modes()])

    def _modes(self) -> list[str]:
        """What else is shown."""
        return []


def _in_type(weights: Weights, dtype: torch.dtype) -> Weights:
    ih, hh, *biases = (None if weight is None else weight.to(dtype) for weight in weights)
    assert ih is not None and hh is not None
    return Weights(ih, hh, *biases)


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Every sequence read from its end; what is behind the end stays there."""
    if lengths is None:
        return x.flip(0)
    steps, last = torch.arange(len(x), device=x.device).unsqueeze(1), lengths.to(x.device) - 1
    places = torch.where(steps <= last, last - steps, steps).unsqueeze(-1)
    return x.gather(0, places.expand_as(x))


def _packed_like(input: PackedSequence, output: Tensor, lengths: Tensor | None) -> PackedSequence:
    order = input.sorted_indices
    assert lengths is not None
    if order is not None:
        output, lengths = output[:, order], lengths[order.cpu()]
    return input._replace(data=pack_padded_sequence(output, lengths).data)
