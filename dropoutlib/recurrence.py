"""Recurrent networks under noise: one loop under all variants, and torch's own kernel wherever it computes the same.

An LSTM reads ``i, f, g, o = W_ih x + W_hh h + b`` and keeps ``c = sigmoid(f) c + sigmoid(i) tanh(g)`` and
``h = sigmoid(o) tanh(c)``; a GRU reads ``r, z, n`` and keeps ``h = (1 - z) n + z h``. :class:`Noise` says where masks
act in a step. :func:`loop` is the definition: it runs under every transform, with noise of any law. Torch's kernel
knows no noise inside of a step, but a mask of zeros and ones that closes or opens a whole gate reaches it through the
input: :func:`folded` appends the mask to x, and columns of large weights to ``W_ih``, which saturate the gate. Then the
logistic function and its derivative are exactly 0 or 1, so that outputs and gradients are those of the loop.
:func:`analytic` is for all other noise of an LSTM, and for large ones: the loop, with its backward written out, so that
the products with the weights are one for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dropoutlib.arguments import in_forward_mode, is_eager
from dropoutlib.noise import select

__all__ = ["GATES", "Noise", "State", "Weights", "analytic", "folded", "loop", "native", "run"]

State: TypeAlias = tuple[Tensor, ...]       # h, and c of an LSTM, each (B, H)
GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}      # in the order of torch's weights
_LARGE = 192    # units; from here on the wider input of a folded mask costs more than calls on the CPU
_IN_CACHE = 2**16   # numbers of a block of steps whose slopes are computed at once
_SATURATED = 1e30   # closes or opens a gate whatever else it reads; in half precision, half of the largest number


class Weights(NamedTuple):
    """Of one layer in one direction, as torch lays them out; both biases or neither."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None


class Noise(NamedTuple):
    """Where noise acts in a step; each part broadcasts to (T, B, H), or is None.

    A bool mask keeps or drops: what is dropped is 0, for an ``inf`` too. Other parts are factors.

    Attributes:
        state: on the h that the gates read; with one more axis, (T, B, gates, H), another one for each gate.
        candidate: on the candidate, g of an LSTM or n of a GRU.
        cell: on the new cell of an LSTM.
        output: on the new h, which the next step reads as well.
        old_cell: 1 keeps the cell of the step before, 0 takes the new one.
        old_state: the same for h.
    """

    state: Tensor | None = None
    candidate: Tensor | None = None
    cell: Tensor | None = None
    output: Tensor | None = None
    old_cell: Tensor | None = None
    old_state: Tensor | None = None


def run(mode: str, x: Tensor, state: State, weights: Weights, noise: Noise, lengths: Tensor | None = None
        ) -> tuple[Tensor, State]:
    """One layer in one direction.

    Args:
        mode: ``"LSTM"`` or ``"GRU"``.
        x: inputs, (T, B, features); with one more axis, (T, B, gates, features), another one for each gate.
        state: before the first step.
        weights: of the layer.
        noise: masks and factors.
        lengths: of the sequences, (B,), on the CPU, where they differ; then what is behind the end is not read, and
            what the output holds there says nothing.

    Returns:
        tuple[Tensor, State]: h after every step, (T, B, H), and the state after the last.
    """
    given = [part for part in noise if part is not None]
    # complex gates do not saturate, and the backward that is written out is that of real numbers
    is_fixed = not in_forward_mode() and not any(part.requires_grad or x.is_complex() for part in given)
    is_plain = is_fixed and is_eager(x)
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if is_fixed and x.dim() == 3 and (is_plain or is_recorded):
        is_large = weights.hh.shape[1] >= _LARGE and x.is_cpu
        by_kernel = None if is_large and given and is_plain else folded(mode, x, state, weights, noise, lengths)
        if by_kernel is not None:
            return by_kernel
    if lengths is not None:
        noise = _frozen_behind_the_end(noise, lengths.to(x.device), len(x))
    if mode == "LSTM" and is_plain:
        return analytic(x, state, weights, noise)
    return loop(mode, x, state, weights, noise)


def native(mode: str, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None
           ) -> tuple[Tensor, State]:
    """Torch's kernel: a layer without noise."""
    flat = _in_one_piece([weight for weight in weights if weight is not None])
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not x.requires_grad:
        x = x + weights.ih[:0].sum()    # zero; without a gradient of x, the compiler fails to save what is not there
    options = weights.bias_ih is not None, 1, 0.0, False, False     # one layer, no dropout, forward
    kernel = torch._VF.lstm if mode == "LSTM" else torch._VF.gru
    before: Any = [part[None] for part in state] if mode == "LSTM" else state[0][None]
    if lengths is None:
        output, *last = kernel(x, before, flat, *options, False)    # time first
        return output, tuple(part[0] for part in last)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    before = [part[:, order] for part in before] if mode == "LSTM" else before[:, order]
    data, *last = kernel(packed.data, packed.batch_sizes, before, flat, *options)
    output, _ = pad_packed_sequence(packed._replace(data=data), total_length=len(x))
    return output, tuple(part[0, back] for part in last)


def _in_one_piece(weights: list[Tensor]) -> list[Tensor]:
    """Views of one buffer, in the order that cuDNN wants: otherwise it makes one at every call, and warns."""
    if not weights[0].is_cuda:
        return weights
    parts = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def loop(mode: str, x: Tensor, state: State, weights: Weights, noise: Noise) -> tuple[Tensor, State]:
    """The same as :func:`run`, step by step, in operations that every transform knows."""
    step, read = _lstm_step if mode == "LSTM" else _gru_step, _read_inputs(x, weights, weights.bias_ih)
    # unbind, and not x[t]: the backward of an index fills a tensor of all steps at every step
    if _is_untied(noise):
        noise, weights = _gates_first(noise), _each_by_itself(weights, read.shape[1])
        inputs = read.transpose(0, 1).unbind(1)     # as it lies in memory
    else:
        inputs = _side_by_side(read).unbind()
    outputs = []
    for read, noise_of_step in zip(inputs, _noises(noise, len(inputs)), strict=True):
        state = step(read, state, weights, noise_of_step)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _read_inputs(x: Tensor, weights: Weights, bias: Tensor | None) -> Tensor:
    """What the gates read of x in all steps, (T, gates, B, H)."""
    gates = weights.ih.shape[0] // weights.hh.shape[1]
    if x.dim() == 3:
        return _by_gate(F.linear(x, weights.ih, bias), gates)
    by_gate, weight = x.flatten(0, 1).transpose(0, 1), weights.ih.unflatten(0, (gates, -1)).mT
    read = by_gate @ weight if bias is None else torch.baddbmm(bias.unflatten(0, (gates, 1, -1)), by_gate, weight)
    return read.unflatten(1, x.shape[:2]).transpose(0, 1)


def _by_gate(read: Tensor, gates: int) -> Tensor:
    """(T, B, gates H) as (T, gates, B, H)."""
    return read.unflatten(-1, (gates, -1)).transpose(1, 2)


def _side_by_side(read: Tensor) -> Tensor:
    """(T, gates, B, H) as (T, B, gates H)."""
    return read.transpose(1, 2).flatten(2)


def _frozen_behind_the_end(noise: Noise, lengths: Tensor, steps: int) -> Noise:
    """Keeps the old state from where a sequence has ended."""
    ended = (torch.arange(steps, device=lengths.device).unsqueeze(1) >= lengths).unsqueeze(-1)

    def kept(keep: Tensor | None) -> Tensor:
        if keep is None:
            return ended
        return keep | ended if keep.dtype is torch.bool else torch.where(ended, 1, keep)

    return noise._replace(old_cell=kept(noise.old_cell), old_state=kept(noise.old_state))


def _steps(factor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    if factor is None or factor.shape[0] == 1:
        return [None if factor is None else factor[0]] * count
    return factor.unbind()


def _read(h: Tensor, weights: Weights, factor: Tensor | None) -> Tensor:
    """What the gates read of h, (B, gates H), or (gates, B, H) where each reads its own."""
    if weights.hh.dim() == 2:
        return F.linear(_times(h, factor), weights.hh, weights.bias_hh)
    seen = _times(h.expand(len(weights.hh), *h.shape), factor)
    return seen @ weights.hh if weights.bias_hh is None else torch.baddbmm(weights.bias_hh, seen, weights.hh)


def _each_by_itself(weights: Weights, gates: int) -> Weights:
    """Recurrent weights (gates, H, H) and biases (gates, 1, H), as :func:`_read` multiplies them gate by gate.

    They are laid out once: the gradient of a transposed view is copied at every step.
    """
    bias = weights.bias_hh
    return weights._replace(hh=weights.hh.unflatten(0, (gates, -1)).mT.contiguous(),
                            bias_hh=None if bias is None else bias.unflatten(0, (gates, 1, -1)))


def _split(read: Tensor, gates: int) -> Sequence[Tensor]:
    return read.chunk(gates, -1) if read.dim() == 2 else read.unbind()


def _lstm_step(read: Tensor, state: State, weights: Weights, noise: Noise) -> State:
    h, c = state
    i, f, g, o = _split(read + _read(h, weights, noise.state), 4)
    new = f.sigmoid() * c + i.sigmoid() * _times(g.tanh(), noise.candidate)
    new = _times(new, noise.cell)
    # the output reads the new cell, as published code does, also where the old one is kept
    return _kept(h, _times(o.sigmoid() * new.tanh(), noise.output), noise.old_state), _kept(c, new, noise.old_cell)


def _gru_step(read: Tensor, state: State, weights: Weights, noise: Noise) -> State:
    (h,) = state
    of_input, of_state = _split(read, 3), _split(_read(h, weights, noise.state), 3)
    r, z = ((a + b).sigmoid() for a, b in zip(of_input[:2], of_state[:2], strict=True))
    n = _times(torch.addcmul(of_input[2], r, of_state[2]).tanh(), noise.candidate)
    return (_kept(h, _times(n.lerp(h, z), noise.output), noise.old_state),)


def _times(value: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return value
    return select(value, factor) if factor.dtype is torch.bool else value * factor


def _kept(old: Tensor, new: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return new
    return torch.where(keep, old, new) if keep.dtype is torch.bool else keep * old + (1 - keep) * new


def folded(mode: str, x: Tensor, state: State, weights: Weights, noise: Noise, lengths: Tensor | None = None
           ) -> tuple[Tensor, State] | None:
    """The same as :func:`loop` by torch's kernel, where masks of zeros and ones close or open whole gates.

    A mask on the candidate closes the input gate, on the cell the forget gate as well, on the output the output gate;
    an old state of a GRU opens its update gate. An old cell of an LSTM does not fold: the output reads the new one.
    What a gate reads of the rest may be up to 1e29 in size, in float16 up to 30000.

    Returns:
        tuple[Tensor, State] | None: as of the loop, or None where no gate does what the noise does.
    """
    if any(part is not None and part.dtype is not torch.bool for part in noise):
        return None
    gates = _GATES_THAT_FOLD[mode](noise)
    if gates is None or (gates and mode == "GRU" and x.dtype.itemsize == 2):   # n + (h - n) is no h in half precision
        return None
    if not gates:
        return native(mode, x, state, weights, lengths)
    names, size, columns, features = GATES[mode], weights.hh.shape[1], [], []
    for mask, signs in gates:
        # one feature for each unit: 1 where its gates are saturated
        features.append(mask.to(x.dtype).expand(*x.shape[:2], size))
        unit = torch.eye(size, dtype=x.dtype, device=x.device) * min(_SATURATED, torch.finfo(x.dtype).max / 2)
        columns.append(torch.cat([unit * signs.get(name, 0) for name in names]))
    wide = weights._replace(ih=torch.cat([weights.ih, *columns], 1))
    return native(mode, torch.cat([x, *features], -1), state, wide, lengths)


_Saturated: TypeAlias = list[tuple[Tensor, dict[str, int]]]


def _lstm_gates(noise: Noise) -> _Saturated | None:
    closed = (noise.candidate, "i"), (noise.cell, "if"), (noise.output, "o")
    if any(factor is not None for factor in (noise.state, noise.old_cell, noise.old_state)):
        return None
    return [(~mask, dict.fromkeys(gates, -1)) for mask, gates in closed if mask is not None]


def _gru_gates(noise: Noise) -> _Saturated | None:
    if any(factor is not None for factor in (noise.state, noise.candidate, noise.output)):
        return None
    return [] if noise.old_state is None else [(noise.old_state, {"z": 1})]


_GATES_THAT_FOLD: dict[str, Callable[[Noise], _Saturated | None]] = {"LSTM": _lstm_gates, "GRU": _gru_gates}


def analytic(x: Tensor, state: State, weights: Weights, noise: Noise) -> tuple[Tensor, State]:
    """The same as :func:`loop` for an LSTM, with its backward written out."""
    bias = None if weights.bias_ih is None or weights.bias_hh is None else weights.bias_ih + weights.bias_hh
    read = _read_inputs(x, weights, bias)
    output, *last = _LSTM.apply(read, *state, weights.hh, *noise)
    return output, tuple(last)


class _LSTM(torch.autograd.Function):
    """An LSTM from what its gates have read of x: the steps of :func:`loop`, without a graph of them.

    A step of a small network takes as long as its calls do, so all views are made before the first step, and results
    are written where they stay. Where each gate reads its own h, gates come before the batch: then the products of a
    step are one, without a copy.
    """

    @staticmethod
    def forward(ctx: Any, read: Tensor, h: Tensor, c: Tensor, weight: Tensor, *factors: Tensor | None
                ) -> tuple[Tensor, Tensor, Tensor]:
        noise, start = _ready(factors, read), (h, c)
        steps, untied = len(read), _is_untied(noise)
        gates = (read if untied else _side_by_side(read)).clone(memory_format=torch.contiguous_format)
        by_gate, recurrent = gates if untied else _by_gate(gates, 4), _recurrent(weight, untied).mT
        add_product, tanh_c = Tensor.baddbmm_ if untied else Tensor.addmm_, read.new_empty(steps, *h.shape)
        all_h, all_c = (torch.cat([part[None], part.new_empty(steps, *part.shape)]) for part in (h, c))
        seen = torch.empty_like(by_gate[0] if untied else h, memory_format=torch.contiguous_format)
        seen_bits, h_bits = (_combinable(part, noise.state) for part in (seen, all_h[:-1]))
        each = zip(*(gate.unbind() for gate in by_gate.unbind(1)), strict=True)
        for gate, i_and_f, (i, f, g, o), tanh, bits, next_h, next_c, now in zip(
                gates.unbind(), by_gate[:, :2].unbind(), each, tanh_c.unbind(), h_bits.unbind(), all_h[1:].unbind(),
                all_c[1:].unbind(), _noises(noise, steps), strict=True):
            if now.state is not None:
                _combine(now.state)(bits, now.state, out=seen_bits)
            add_product(gate, h if now.state is None else seen, recurrent)
            i_and_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c, out=next_c).addcmul_(i, _masked(g, now.candidate))
            torch.tanh(_drop_(next_c, now.cell), out=tanh)
            torch.mul(o, tanh, out=next_h)
            _drop_(next_h, now.output)
            h, c = _keep_(next_h, h, now.old_state), _keep_(next_c, c, now.old_cell)
        ctx.save_for_backward(read, *start, weight, gates, tanh_c, all_h, all_c, *factors)
        return all_h[1:].clone(), h.clone(), c.clone()  # a view could not be written into where autograd sees it

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, of_h: Tensor, of_c: Tensor) -> tuple[Tensor | None, ...]:
        read, first_h, first_c, weight, gates, tanh_c, all_h, all_c, *factors = ctx.saved_tensors
        # a derivative of this derivative will be asked for, or many gradients come at once: those of the loop
        if torch.is_grad_enabled() or not is_eager(of_output):
            return _derivatives_of_the_loop((read, first_h, first_c, weight), factors, (of_output, of_h, of_c))
        noise, steps = _ready(factors, read), len(read)
        noise = noise._replace(old_cell=_as_factor(noise.old_cell, read), old_state=_as_factor(noise.old_state, read))
        untied, noises = _is_untied(noise), _noises(noise, steps)
        # gate by gate in memory, as the products over all steps read them
        of_gates = torch.empty_like(gates.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1) \
            if untied else torch.empty_like(gates)
        by_gate, of_by_gate = (gates, of_gates) if untied else (_by_gate(gates, 4), _by_gate(of_gates, 4))
        recurrent, product = _recurrent(weight, untied), torch.bmm if untied else torch.mm
        of_seen = torch.empty_like(by_gate[0] if untied else of_h, memory_format=torch.contiguous_format)
        of_seen_bits = _combinable(of_seen, noise.state)
        block = max(1, _IN_CACHE // max(1, gates[0].numel()))
        for start in range(steps - 1 - (steps - 1) % block, -1, -block):
            here = slice(start, start + block)
            masks = noise.candidate
            through = _slopes_(of_by_gate[here], by_gate[here], tanh_c[here], all_c[:-1][here],
                               masks if masks is None or len(masks) == 1 else masks[here])
            by_step = zip(
                of_output[here].unbind(), by_gate[here, 1].unbind(), through.unbind(), of_gates[here].unbind(),
                of_by_gate[here, :3].unbind(), of_by_gate[here, 3].unbind(), noises[here], strict=True)
            for given, f, of_tanh, of_gate, of_ifg, of_o, now in reversed(list(by_step)):
                of_h, of_old_h = _shares(of_h + given, now.old_state)
                of_c, of_old_c = _shares(of_c, now.old_cell)
                _drop_(of_h, now.output)
                of_c = _drop_(torch.addcmul(of_c, of_h, of_tanh), now.cell)
                of_ifg.mul_(of_c)
                of_o.mul_(of_h)
                of_c = of_c * f if of_old_c is None else of_old_c.addcmul_(of_c, f)
                of_h = product(of_gate, recurrent, out=of_seen)
                if now.state is not None:
                    _combine(now.state)(of_seen_bits, now.state, out=of_seen_bits)
                    of_h = of_seen.sum(0) if untied else of_seen
                of_h = of_h if of_old_h is None else of_h.add_(of_old_h)
        state = noise.state.transpose(0, 1) if noise.state is not None and untied else noise.state
        before = _masked(all_h[:-1], state)
        if untied:
            of_weight = of_gates.transpose(0, 1).flatten(1, 2).mT @ before.flatten(1, 2)
        else:
            of_weight = of_gates.flatten(0, 1).T @ before.flatten(0, 1)
        return of_by_gate, of_h, of_c, of_weight.view_as(weight), *(None for _ in factors)


def _slopes_(of_gates: Tensor, gates: Tensor, tanh_c: Tensor, c: Tensor, candidate: Tensor | None) -> Tensor:
    """Writes what the gradients of c and of h are multiplied with on their way to the gates, returns h's way to c."""
    to_i, to_f, to_g, to_o = of_gates.unbind(1)
    i, f, g, o = gates.unbind(1)
    torch.ops.aten.sigmoid_backward(_masked(g, candidate), i, grad_input=to_i)
    torch.ops.aten.sigmoid_backward(c, f, grad_input=to_f)
    torch.ops.aten.tanh_backward(i, g, grad_input=to_g)
    _drop_(to_g, candidate)
    torch.ops.aten.sigmoid_backward(tanh_c, o, grad_input=to_o)
    return torch.ops.aten.tanh_backward(o, tanh_c)


def _is_untied(noise: Noise) -> bool:
    return noise.state is not None and noise.state.dim() == 4


def _recurrent(weight: Tensor, untied: bool) -> Tensor:
    return weight.unflatten(0, (4, -1)) if untied else weight


def _ready(factors: Sequence[Tensor | None], like: Tensor) -> Noise:
    """Keep masks as whole numbers of all ones or no ones in their bits; old parts stay as they are, and so do factors.

    An ``and`` with them selects, at the speed of a multiplication. Masks of gates come gate by gate.
    """
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[like.dtype.itemsize]
    kept = len(Noise._fields) - 2
    noise = Noise(*(-factor.to(whole) if factor is not None and factor.dtype is torch.bool and place < kept else factor
                    for place, factor in enumerate(factors)))
    return _gates_first(noise) if _is_untied(noise) else noise


def _gates_first(noise: Noise) -> Noise:
    return noise if noise.state is None else noise._replace(state=noise.state.transpose(1, 2).contiguous())


def _as_factor(keep: Tensor | None, like: Tensor) -> Tensor | None:
    return None if keep is None else keep.to(like.dtype)


def _combine(factor: Tensor) -> Callable[..., Tensor]:
    return torch.mul if factor.is_floating_point() else torch.bitwise_and


def _combinable(value: Tensor, factor: Tensor | None) -> Tensor:
    """The value, or its bits where the factor is a mask of bits."""
    return value if factor is None or factor.is_floating_point() else value.view(factor.dtype)


def _masked(value: Tensor, factor: Tensor | None, out: Tensor | None = None) -> Tensor:
    """A value times noise, by what :func:`_ready` gives."""
    if factor is None:
        return value
    place = None if out is None else _combinable(out, factor)
    return _combine(factor)(_combinable(value, factor), factor, out=place).view(value.dtype)


def _drop_(value: Tensor, factor: Tensor | None) -> Tensor:
    """The same in place."""
    return value if factor is None else _masked(value, factor, value)


def _keep_(new: Tensor, old: Tensor, keep: Tensor | None) -> Tensor:
    """In place in ``new``."""
    if keep is None:
        return new
    return torch.where(keep, old, new, out=new) if keep.dtype is torch.bool else new.lerp_(old, keep.expand_as(new))


def _noises(factors: Sequence[Tensor | None], steps: int) -> list[Noise]:
    return [Noise(*step) for step in zip(*(_steps(factor, steps) for factor in factors), strict=True)]


def _shares(gradient: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the gradient of a state, what its new value gets and what the old one gets."""
    if keep is None:
        return gradient, None
    old = gradient * keep
    return gradient - old, old


def _derivatives_of_the_loop(inputs: tuple[Tensor, ...], factors: Sequence[Tensor | None], gradients: tuple[Tensor, ...]
                             ) -> tuple[Tensor | None, ...]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        needed = [part if part.requires_grad else part.detach().requires_grad_() for part in inputs]
        read, h, c, weight = needed
        unit = torch.eye(len(weight), dtype=read.dtype, device=read.device)     # the loop reads x, here x is read
        output, last = loop("LSTM", _side_by_side(read), (h, c), Weights(unit, weight), Noise(*factors))
    return (*torch.autograd.grad((output, *last), needed, gradients, create_graph=differentiable),
            *(None for _ in factors))
