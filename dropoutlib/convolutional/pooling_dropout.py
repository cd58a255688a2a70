"""Pooling with dropped inputs: maximum, mean, and a draw in proportion to the activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import applies_noise, boolean, in_forward_mode, is_eager, one_of
from ..documentation import RANKS
from ..layer import NoisyLayer, draws
from ..maps import Windows, in_format_of, on_each_process
from ..methods import describe
from ..noise import Bernoulli, Uniform, apply, inverted, inverted_variance, nothing, raw_mean

__all__ = ["AvgPoolDropout1d", "AvgPoolDropout2d", "AvgPoolDropout3d", "MaxPoolDropout1d", "MaxPoolDropout2d",
           "MaxPoolDropout3d", "StochasticPool2d", "avg_pool_dropout1d", "avg_pool_dropout2d", "avg_pool_dropout3d",
           "max_pool_dropout1d", "max_pool_dropout2d", "max_pool_dropout3d", "stochastic_pool2d"]

_RANKS = {axes: words | {"window": "2" if axes == 1 else str((*(1 for _ in range(axes - 1)), 2))}
          for axes, words in RANKS.items()}
_MOST_IN_NETWORK = 16   # elements of a window: 63 comparisons
_MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _mask(input: Tensor, axes: int, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None,
          padding: int | tuple[int, ...], ceil_mode: bool, p: float, dilation: int | tuple[int, ...] = 1, *,
          generator: torch.Generator | None) -> Tensor:
    return _mask_of(input, Windows(axes, kernel_size, stride, padding, dilation, ceil_mode), p, generator)


def _mask_of(input: Tensor, windows: Windows, p: float, generator: torch.Generator | None) -> Tensor:
    windows.check(input)
    return Bernoulli(p).sample(input, generator=generator)


# Maximum


def _max_pool(input: Tensor, windows: Windows, p: float, training: bool, inference: str, *,
              noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Maximum of every window of {maps}, dropped elements counting as 0.

    See :class:`~dropoutlib.MaxPoolDropout{axes}d`.

    Args:
        input: floating point tensor {shapes}.
        {kernel_size} {stride} {padding} {dilation} {ceil_mode} {drop_p}
        training: whether elements are dropped; if not, the rule ``inference`` is used.
        inference: the test rule, ``"expected"`` or ``"scaled"``.
        {raw_mask} {generator}

    Returns:
        Tensor of the shape that torch's pooling gives.

    Raises:
        ValueError: {bad_p}, if ``inference`` is neither, if a size is too small, {bad_noise}.
        {bad_maps} {bad_padding}
        TypeError: if the input is not a tensor, or an argument no number.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} x = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 1{size})
        {>>>} keep = torch.tensor([1, 0, 1, 1]).reshape(1, 1{size})
        {>>>} functional.max_pool_dropout{axes}d(x, {window}, noise=keep).flatten()
        tensor([1., 3.])
        {>>>} functional.max_pool_dropout{axes}d(x, {window}, training=False).flatten()  # 4/2 + 1/4, 3/2 + 2/4
        tensor([2.2500, 2.0000])
    """
    law = Bernoulli(p)
    _check_inference(inference)
    windows.check(input)
    if applies_noise(training, noise):
        if law.p > 0 or noise is not None:
            input = apply(input, law, noise=noise, generator=generator)
        return _maximum(input, windows)
    if law.p == 0:
        return _maximum(input, windows)
    if inference == "scaled":
        return raw_mean(_maximum(input, windows), law.p)
    mean = _expected_by_network if _is_for_network(input, windows, law.p) else _expected_mean
    return in_format_of(input, on_each_process(lambda maps: mean(maps, windows, law.p), input, windows.axes))


@draws(partial(_mask, axes=1))
@describe("pooling_dropout", Windows, like=_max_pool, **_RANKS[1])
def max_pool_dropout1d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1,
                       ceil_mode: bool = False, p: float = 0.5, training: bool = True, *,
                       inference: Literal["expected", "scaled"] = "expected", noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(1, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(input, windows, p, training, inference, noise=noise, generator=generator)


@draws(partial(_mask, axes=2))
@describe("pooling_dropout", Windows, like=_max_pool, **_RANKS[2])
def max_pool_dropout2d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1,
                       ceil_mode: bool = False, p: float = 0.5, training: bool = True, *,
                       inference: Literal["expected", "scaled"] = "expected", noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(2, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(input, windows, p, training, inference, noise=noise, generator=generator)


@draws(partial(_mask, axes=3))
@describe("pooling_dropout", Windows, like=_max_pool, **_RANKS[3])
def max_pool_dropout3d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1,
                       ceil_mode: bool = False, p: float = 0.5, training: bool = True, *,
                       inference: Literal["expected", "scaled"] = "expected", noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(3, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(input, windows, p, training, inference, noise=noise, generator=generator)


def _check_inference(inference: str) -> None:
    one_of("inference", inference, ("expected", "scaled"))


def _maximum(input: Tensor, windows: Windows) -> Tensor:
    return _MAX_POOLS[windows.axes](input, windows.kernel, windows.stride, windows.padding, windows.dilation,
                                    windows.ceil_mode)


def _is_for_network(input: Tensor, windows: Windows, p: float) -> bool:
    """Its gradient at equal elements would be that of a maximum, which shares it between them."""
    return (is_eager(input) and not (input.requires_grad and torch.is_grad_enabled()) and not in_forward_mode()
            and p < 1 and math.prod(windows.kernel) <= _MOST_IN_NETWORK)


def _expected_by_network(input: Tensor, windows: Windows, p: float) -> Tensor:
    """The mean of :func:`_expected`: elements of all windows take turns in a network of comparisons, without a sort."""
    view = windows.view(input, -math.inf)
    places: Any = itertools.product(*(range(size) for size in windows.kernel))
    elements = [_wide(view[(..., *place)]) for place in places]
    for low, high in _comparisons(len(elements)):
        one, other = elements[low], elements[high]
        elements[low], elements[high] = torch.maximum(one, other), torch.minimum(one, other)
    in_window = windows.view(input.new_ones(input.shape[-windows.axes:]), 0.0)
    whole = (1 - p) ** in_window.flatten(-windows.axes).sum(-1)
    mean = elements[0].clamp(max=0) * whole     # where all are negative
    for rank, element in enumerate(elements):
        mean.add_(element.clamp_(min=0) if rank else element.clamp(min=0), alpha=(1 - p) * p**rank)
    return mean.to(input.dtype)


def _comparisons(count: int) -> Iterator[tuple[int, int]]:
    """Pairs of places that a network compares, one after the other, to sort (Knuth, 5.2.2, algorithm M)."""
    half = 1 << max(count - 1, 0).bit_length() >> 1
    step = half
    while step:
        offset, distance, reach = 0, step, half
        while True:
            yield from ((i, i + distance) for i in range(count - distance) if i & step == offset)
            if reach == step:
                break
            offset, distance, reach = step, reach - step, reach >> 1
        step >>= 1


def _expected_mean(input: Tensor, windows: Windows, p: float) -> Tensor:
    return _expected(input, windows, p)[0]


def _expected(input: Tensor, windows: Windows, p: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the maximum.

    The element of rank r from the top wins if it is kept and the r larger ones are dropped. A negative one wins only
    if nothing is dropped, because what is dropped counts as 0.
    """
    elements = _wide(windows.of(input, -math.inf)).sort(dim=-1, descending=True).values
    if p == 1:
        return nothing(elements[..., 0]).to(input.dtype), nothing(elements[..., 0]).to(input.dtype)
    ranks = torch.arange(elements.shape[-1], device=input.device, dtype=elements.dtype)
    chances = (1 - p) * p**ranks
    values = torch.where(elements < 0, 0, elements)  # nan stays nan
    largest = elements[..., 0]
    count = _wide(windows.of(torch.ones_like(input), 0.0)).sum(-1)
    whole = (1 - p) ** count
    negative = largest < 0
    least = torch.where(negative, largest, 0)
    mean = torch.where(negative, whole * least, (chances * values).sum(-1))
    spread = (chances * (values - mean.unsqueeze(-1)).square()).sum(-1) + p**elements.shape[-1] * mean.square()
    variance = torch.where(negative, whole * (least - mean).square() + (1 - whole) * mean.square(), spread)
    # a window that lies in padding alone is -inf, as torch's is, whatever is dropped
    return mean.to(input.dtype), torch.where(count == 0, 0, variance).to(input.dtype)


def _wide(elements: Tensor) -> Tensor:
    """At least float32, so that neither a sum nor a square leaves the range of half precision."""
    return elements.float() if elements.dtype in (torch.float16, torch.bfloat16) else elements


@describe("pooling_dropout", _max_pool, shapes="of a shape that the layer takes", RuntimeError="{bad_maps}",
          noise="{raw_mask}")
class _MaxPoolDropout(NoisyLayer, _DropoutNd):
    """Maximum of every window of {maps} whose elements are dropped.

    It takes the place of :class:`torch.nn.MaxPool{axes}d`.

    In training every element of the input is kept with probability 1 - p and set to 0 with probability p, before the
    windows are laid: windows that overlap share masks. With elements a_1 >= ... >= a_n >= 0, the maximum is a_j with
    probability (1 - p) p^(j - 1), and 0 with probability p^n.

    {four_answers}

    In evaluation ``inference="expected"`` (probability-weighted pooling) is the exact mean of the training output,
    negative elements included. ``"scaled"`` is 1 - p times the maximum: cheaper, and too small, because it leaves out
    that the second largest element wins if the largest is dropped. Nothing is scaled in training. The exact mean
    compares the elements of all windows pair by pair, which takes a CPU about as long as a maximum. With a
    gradient, and for windows of more than 16 elements, it sorts every window, of which it holds a copy: for 2 x 2 that
    is about 8 times as long, and k elements at a stride of 1 take about 4k times the memory of the input.

    With p = 0 it equals torch's layer, but has no ``return_indices``. A dropped ``inf`` or ``nan`` becomes 0.

    Args:
        {kernel_size} {stride} {padding} {dilation} {ceil_mode} {p} {assigned} {inference}

    Shape:
        {pooled}

    Raises:
        ValueError: {bad_p}, if ``inference`` is neither, or a size is too small.
        {bad_padding} {bad_numbers}

    Source:
        Wu and Gu, *Towards dropout training for convolutional neural networks* (2015).

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import MaxPoolDropout{axes}d
        {>>>} layer = MaxPoolDropout{axes}d({window}, p=0.5)
        {>>>} x = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 1{size})
        {>>>} layer(x, noise=torch.tensor([1, 0, 1, 1]).reshape(1, 1{size})).flatten()
        tensor([1., 3.])
        {>>>} layer.eval()(x).flatten()
        tensor([2.2500, 2.0000])
    """

    _axes: int

    def __init__(self, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                 padding: int | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1, ceil_mode: bool = False,
                 p: float = 0.5, inference: Literal["expected", "scaled"] = "expected") -> None:
        super().__init__(Bernoulli(p).p)
        _check_inference(inference)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode, self.inference = padding, dilation, ceil_mode, inference
        _ = self._windows  # refuses bad ones

    @property
    def _windows(self) -> Windows:  # of the attributes as they are now: torch's pools follow them, too
        return Windows(self._axes, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
                f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, p={self.p}, inference={self.inference!r}")

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops elements and takes the maximum in training, applies the test rule in evaluation. {call}"""
        return _max_pool(input, self._windows, self.p, self.training, self.inference, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask_of(input, self._windows, self.p, generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: exact for every window. {moment}"""
        return _max_pool(input, self._windows, self.p, False, "expected")

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: exact for every window. {overlap} {moment}"""
        windows, p = self._windows, Bernoulli(self.p).p
        windows.check(input)
        return on_each_process(lambda maps: _expected(maps, windows, p)[1], input, self._axes)


@describe("pooling_dropout", max_pool_dropout1d, like=_MaxPoolDropout, **_RANKS[1])
class MaxPoolDropout1d(_MaxPoolDropout):
    _axes = 1


@describe("pooling_dropout", max_pool_dropout2d, like=_MaxPoolDropout, **_RANKS[2])
class MaxPoolDropout2d(_MaxPoolDropout):
    _axes = 2


@describe("pooling_dropout", max_pool_dropout3d, like=_MaxPoolDropout, **_RANKS[3])
class MaxPoolDropout3d(_MaxPoolDropout):
    _axes = 3


# Mean


def _avg_pool(input: Tensor, windows: Windows, count_include_pad: bool, p: float, training: bool, *,
              noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Mean of every window of {maps} behind inverted dropout.

    See :class:`~dropoutlib.AvgPoolDropout{axes}d`.

    Args:
        input: floating point tensor {shapes}.
        {kernel_size} {stride}
        padding: zeros that are added on both sides, at most half of a window.
        {ceil_mode}
        count_include_pad: whether the padding counts in the number that is divided by.
        {p}
        training: whether elements are dropped.
        {mask} {generator}

    Returns:
        {Returns}

    Raises:
        ValueError: {bad_p}, if a size is too small, {bad_noise}.
        {bad_maps} {bad_padding} {TypeError}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} x = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 1{size})
        {>>>} keep = torch.tensor([1, 0, 1, 1]).reshape(1, 1{size})
        {>>>} functional.avg_pool_dropout{axes}d(x, {window}, noise=keep).flatten()
        tensor([1., 5.])
    """
    windows.check(input)
    return _average(inverted(input, p, training, noise=noise, generator=generator), windows, count_include_pad)


@draws(partial(_mask, axes=1))
@describe("pooling_dropout", max_pool_dropout1d, like=_avg_pool, **_RANKS[1])
def avg_pool_dropout1d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                       p: float = 0.5, training: bool = True, *, noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(1, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool(input, windows, count_include_pad, p, training, noise=noise, generator=generator)


@draws(partial(_mask, axes=2))
@describe("pooling_dropout", max_pool_dropout2d, like=_avg_pool, **_RANKS[2])
def avg_pool_dropout2d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                       p: float = 0.5, training: bool = True, *, noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(2, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool(input, windows, count_include_pad, p, training, noise=noise, generator=generator)


@draws(partial(_mask, axes=3))
@describe("pooling_dropout", max_pool_dropout3d, like=_avg_pool, **_RANKS[3])
def avg_pool_dropout3d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                       padding: int | tuple[int, ...] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                       p: float = 0.5, training: bool = True, *, noise: Tensor | None = None,
                       generator: torch.Generator | None = None) -> Tensor:
    windows = Windows(3, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool(input, windows, count_include_pad, p, training, noise=noise, generator=generator)


def _average(input: Tensor, windows: Windows, count_include_pad: bool) -> Tensor:
    return _AVG_POOLS[windows.axes](input, windows.kernel, windows.stride, windows.padding, windows.ceil_mode,
                                    boolean("count_include_pad", count_include_pad))


@describe("pooling_dropout", _max_pool, shapes="of a shape that the layer takes", RuntimeError="{bad_maps}",
          noise="{mask}")
class _AvgPoolDropout(NoisyLayer, _DropoutNd):
    """Mean of every window of {maps} behind inverted dropout.

    It takes the place of :class:`torch.nn.AvgPool{axes}d`.

    In training every element x of the input becomes x/(1 - p) with probability 1 - p and 0 with probability p, before
    the windows are laid: windows that overlap share masks. The mean of the output is the mean of the window, so that
    evaluation is torch's layer. The variance, for n elements, is p/(1 - p) times their sum of squares over n^2.

    {four_answers}

    The mean is over all elements of the window, dropped ones included. Dividing by the number of those that are kept
    would be another method, without a rule for a window that loses all of them.

    Args:
        {kernel_size} {stride} {padding} {ceil_mode} {count_include_pad} {p} {assigned}

    Shape:
        {pooled}

    Raises:
        ValueError: {bad_p}, or a size is too small.
        {bad_padding} {bad_numbers}

    Source:
        Dropout before a layer that takes means; the maximum is due to Wu and Gu, *Towards dropout training for
        convolutional neural networks* (2015).

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import AvgPoolDropout{axes}d
        {>>>} layer = AvgPoolDropout{axes}d({window}, p=0.5)
        {>>>} x = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 1{size})
        {>>>} layer(x, noise=torch.tensor([1, 0, 1, 1]).reshape(1, 1{size})).flatten()
        tensor([1., 5.])
        {>>>} layer.variance(x).flatten()  # (1 + 16)/4, (4 + 9)/4
        tensor([4.2500, 3.2500])
    """

    _axes: int

    def __init__(self, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                 padding: int | tuple[int, ...] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                 p: float = 0.5) -> None:
        super().__init__(Bernoulli(p).p)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        _ = self._windows  # refuses bad ones
        self.count_include_pad = boolean("count_include_pad", count_include_pad)

    @property
    def _windows(self) -> Windows:
        return Windows(self._axes, self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
                f"ceil_mode={self.ceil_mode}, count_include_pad={self.count_include_pad}, p={self.p}")

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops elements in training, and takes the mean. {call}"""
        return _avg_pool(input, self._windows, self.count_include_pad, self.p, self.training, noise=noise,
                         generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask_of(input, self._windows, self.p, generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the mean of the window (zero if p = 1). {moment}"""
        windows = self._windows
        windows.check(input)
        output = _average(input, windows, self.count_include_pad)
        return output if self.p < 1 else nothing(output)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times the sum of squares over n^2. {overlap} {moment}"""
        windows = self._windows
        windows.check(input)
        noise = inverted_variance(_wide(input), self.p)
        # The mean of ones is the number of elements over the number that torch divides by.
        ones = torch.ones_like(noise)
        divided_by = windows.of(ones, 0.0).sum(-1) / _average(ones, windows, self.count_include_pad)
        return (_average(noise, windows, self.count_include_pad) / divided_by).to(input.dtype)


@describe("pooling_dropout", avg_pool_dropout1d, like=_AvgPoolDropout, **_RANKS[1])
class AvgPoolDropout1d(_AvgPoolDropout):
    _axes = 1


@describe("pooling_dropout", avg_pool_dropout2d, like=_AvgPoolDropout, **_RANKS[2])
class AvgPoolDropout2d(_AvgPoolDropout):
    _axes = 2


@describe("pooling_dropout", avg_pool_dropout3d, like=_AvgPoolDropout, **_RANKS[3])
class AvgPoolDropout3d(_AvgPoolDropout):
    _axes = 3


# In proportion to the activations


def _uniform(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None,
             padding: int | tuple[int, ...], ceil_mode: bool, *, generator: torch.Generator | None) -> Tensor:
    return _uniform_of(input, Windows(2, kernel_size, stride, padding, 1, ceil_mode), generator)


def _uniform_of(input: Tensor, windows: Windows, generator: torch.Generator | None) -> Tensor:
    windows.check(input)
    elements, _ = _chances(input, windows)
    return Uniform().sample(elements[..., 0].detach(), generator=generator)


@draws(_uniform)
@describe("pooling_dropout", max_pool_dropout2d)
def stochastic_pool2d(input: Tensor, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                      padding: int | tuple[int, ...] = 0, ceil_mode: bool = False, training: bool = True, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """One element of every window, drawn with a probability in proportion to its size.

    See :class:`~dropoutlib.StochasticPool2d`.

    Args:
        {input} {kernel_size} {stride}
        padding: what is added on both sides, at most half of a window; it is never drawn.
        {ceil_mode}
        training: whether an element is drawn; if not, the mean over the draw is taken.
        noise: uniform numbers between 0 and 1 that replace the draw, of a shape that broadcasts to the output.
        {generator}

    Returns:
        {Returns}

    Raises:
        ValueError: if a size is too small, if ``noise`` does not broadcast to the output, is not between 0 and 1, or is
            given while ``training`` is False.
        {bad_maps} {bad_padding}
        TypeError: if the input is not a tensor, or a size no whole number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> functional.stochastic_pool2d(x, (1, 2), noise=torch.tensor([0.2])), functional.stochastic_pool2d(
        ...     x, (1, 2), noise=torch.tensor([0.3]))
        (tensor([[[1.]]]), tensor([[[3.]]]))
        >>> functional.stochastic_pool2d(x, (1, 2), training=False)  # (1 + 9)/(1 + 3)
        tensor([[[2.5000]]])
    """
    windows = Windows(2, kernel_size, stride, padding, 1, ceil_mode)
    return _stochastic_pool(input, windows, training, noise=noise, generator=generator)


def _stochastic_pool(input: Tensor, windows: Windows, training: bool, *, noise: Tensor | None = None,
                     generator: torch.Generator | None = None) -> Tensor:
    windows.check(input)
    elements, chances = _chances(input, windows)
    if not applies_noise(training, noise):
        return in_format_of(input, (chances * elements).sum(-1).to(input.dtype))
    uniform = Uniform().sample(elements[..., 0].detach(), noise=noise, generator=generator)
    with torch.no_grad():
        below = chances.cumsum(-1)
        total = below[..., -1:]
        last = (below < total).sum(-1)  # the last element that can be drawn
        drawn = torch.minimum((below <= uniform.unsqueeze(-1) * total).sum(-1), last)
    output = elements.gather(-1, drawn.unsqueeze(-1))
    output = torch.where(total > 0, output, total).squeeze(-1)  # 0 or nan, without a gradient
    return in_format_of(input, output.to(input.dtype))


def _chances(input: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """The elements of every window, negative ones as 0, and their probabilities: 0 where there is nothing to draw."""
    elements = _wide(windows.of(input, 0.0)).clamp(min=0)
    largest = elements.amax(-1, keepdim=True)
    weights = elements / torch.where(largest == 0, 1, largest)  # their sum stays in range
    total = weights.sum(-1, keepdim=True)
    return elements, weights / torch.where(total == 0, 1, total)


@describe("pooling_dropout", stochastic_pool2d, RuntimeError="{bad_maps}")
class StochasticPool2d(NoisyLayer):
    """Draws one element of every window with a probability in proportion to its size.

    In training the output is the element a_i of its window with probability a_i / (a_1 + ... + a_n). Negative elements
    count as 0; where nothing is positive, the output is 0. Every window has a draw of its own. There is no p.

    {four_answers}

    In evaluation the output is the mean over the draw, the sum of squares over the sum. A window with an ``inf`` or
    ``nan`` gives ``nan``. Here the *size* of an element decides, in :class:`MaxPoolDropout2d` its rank.

    Args:
        {kernel_size} {stride} {padding} {ceil_mode}

    Shape:
        {pooled}

    Raises:
        ValueError: if a size is too small.
        {bad_padding}
        TypeError: if a size is no whole number.

    Source:
        Zeiler and Fergus, *Stochastic Pooling for Regularization of Deep Convolutional Neural Networks* (2013).

    Example:
        >>> import torch
        >>> from dropoutlib import StochasticPool2d
        >>> layer = StochasticPool2d((1, 2))
        >>> layer(torch.tensor([[[1.0, 3.0]]]), noise=torch.tensor([0.3]))
        tensor([[[3.]]])
    """

    def __init__(self, kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None,
                 padding: int | tuple[int, ...] = 0, ceil_mode: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        _ = self._windows  # refuses bad ones

    @property
    def _windows(self) -> Windows:
        return Windows(2, self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
                f"ceil_mode={self.ceil_mode}")

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Draws in training and takes the mean over the draw in evaluation. {call}"""
        return _stochastic_pool(input, self._windows, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _uniform_of(input, self._windows, generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: sum of squares over sum, of every window. {moment}"""
        return _stochastic_pool(input, self._windows, False)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, of every window. {moment}"""
        windows = self._windows
        windows.check(input)
        elements, chances = _chances(input, windows)
        mean = (chances * elements).sum(-1, keepdim=True)
        return (chances * (elements - mean).square()).sum(-1).to(input.dtype)
