"""Spatial dropout: whole feature maps are kept or set to zero, one draw for all positions of a map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import boolean, require_one_size, unchanged
from ..documentation import RANKS
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, inverted, inverted_mean, inverted_variance

__all__ = ["SpatialDropout1d", "SpatialDropout2d", "SpatialDropout3d", "spatial_dropout1d", "spatial_dropout2d",
           "spatial_dropout3d"]

# Number of spatial axes: the shapes that are taken, and what is said of others.
_SHAPES = {1: ({2, 3}, "(N, C, L) or (C, L)"), 2: ({4}, "(N, C, H, W)"), 3: ({4, 5}, "(N, C, D, H, W) or (C, D, H, W)")}
_HINTS = {(2, 3): ": use SpatialDropout1d for (N, C, L), and input[None] for a single image (C, H, W)",
          (1, 4): ": use SpatialDropout2d for (N, C, H, W)", (2, 5): ": use SpatialDropout3d for (N, C, D, H, W)"}
_RANKS = {
    1: RANKS[1] | {"single": "A 2-D input is one sequence ``(C, L)``, as for torch's own."},
    2: RANKS[2] | {"shapes": "of shape ``(N, C, H, W)``",
                   "single": "A 3-D input is refused: torch's own takes it for ``(N, C, L)``, convolutions for "
                             "``(C, H, W)``."},
    3: RANKS[3] | {"single": "A 4-D input is one volume ``(C, D, H, W)``, as for torch's own."},
}


def _shared(axes: int) -> tuple[int, ...]:
    return tuple(range(-axes, 0))


def _require_maps(input: Tensor, axes: int) -> None:
    require_one_size(input)
    dims, shapes = _SHAPES[axes]
    if input.dim() not in dims:
        raise RuntimeError(f"input has to be of shape {shapes}, but got the shape {tuple(input.shape)}"
                           f"{_HINTS.get((axes, input.dim()), '')}")


def _mask(input: Tensor, p: float, axes: int, *, generator: torch.Generator | None) -> Tensor:
    _require_maps(input, axes)
    return Bernoulli(p).sample(input, shared=_shared(axes), generator=generator)


def _spatial(input: Tensor, p: float, training: bool, inplace: bool, axes: int, *, noise: Tensor | None,
             generator: torch.Generator | None) -> Tensor:
    """Inverted dropout of whole feature maps of {maps}.

    See :class:`~dropoutlib.SpatialDropout{axes}d`.

    Args:
        input: floating point or complex tensor {shapes}.
        p: probability of dropping a map.
        {training} {inplace}
        noise: keep mask that replaces the draw, 0 or 1 before any scaling, of shape ``(N, C{ones})`` or one that
            broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        {bad_values}
        RuntimeError: if the input has another number of axes, if it holds integers or booleans, if it is to be
            overwritten and is a leaf that requires a gradient, or {bad_generator}.
        {no_tensor_or_number}

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import functional
        {>>>} keep = torch.tensor([1, 0]).reshape(2{ones})
        {>>>} functional.spatial_dropout{axes}d(torch.ones(1, 2{size}), p=0.5, noise=keep).flatten(2)
        tensor([[[2., 2., 2., 2.],
                 [0., 0., 0., 0.]]])
    """
    unchanged(input, partial(_require_maps, axes=axes))
    return inverted(input, p, training, inplace, _shared(axes), noise=noise, generator=generator)


@draws(partial(_mask, axes=1))
@describe("spatial_dropout", like=_spatial, fits="the draw", **_RANKS[1])
def spatial_dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    return _spatial(input, p, training, inplace, 1, noise=noise, generator=generator)


@draws(partial(_mask, axes=2))
@describe("spatial_dropout", like=_spatial, fits="the draw", **_RANKS[2])
def spatial_dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    return _spatial(input, p, training, inplace, 2, noise=noise, generator=generator)


@draws(partial(_mask, axes=3))
@describe("spatial_dropout", like=_spatial, fits="the draw", **_RANKS[3])
def spatial_dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    return _spatial(input, p, training, inplace, 3, noise=noise, generator=generator)


@describe("spatial_dropout", _spatial, shapes="of a shape that the layer takes", ones=", 1, ...")
class _SpatialDropout(NoisyLayer, _DropoutNd):
    """Inverted dropout of whole feature maps of {maps}: a drop-in for :class:`torch.nn.Dropout{axes}d`.

    In training all positions of a map x become x/(1 - p) with probability 1 - p and 0 with probability p, together.
    Every map of every example has a draw of its own. {identity}

    {four_answers}

    {single} {selects} {no_draw}

    Args:
        {p} {assigned} {inplace}

    Shape:
        Input {shapes}; the output has the same one. {given}

    Raises:
        {bad_rate}

    Source:
        Tompson et al., *Efficient Object Localization Using Convolutional Networks* (2015), section 3.2.

    Example:
        {>>>} import torch
        {>>>} from dropoutlib import SpatialDropout{axes}d
        {>>>} layer, x = SpatialDropout{axes}d(p=0.5), torch.ones(1, 2{size})
        {>>>} layer(x, noise=torch.tensor([1, 0]).reshape(2{ones})).flatten(2)
        tensor([[[2., 2., 2., 2.],
                 [0., 0., 0., 0.]]])
    """

    _axes: int

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(Bernoulli(p).p, boolean("inplace", inplace))

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops maps in training and returns the input in evaluation. {call}"""
        return _spatial(input, self.p, self.training, self.inplace, self._axes, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, self._axes, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input itself (zero if p = 1). {moment}"""
        _require_maps(input, self._axes)
        return inverted_mean(input, self.p)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p/(1 - p) times its square.

        Of every element by itself: the elements of one map share their noise, so that they are fully correlated.

        {moment}
        """
        _require_maps(input, self._axes)
        return inverted_variance(input, self.p)


@describe("spatial_dropout", spatial_dropout1d, like=_SpatialDropout, **_RANKS[1])
class SpatialDropout1d(_SpatialDropout):
    _axes = 1


@describe("spatial_dropout", spatial_dropout2d, like=_SpatialDropout, **_RANKS[2])
class SpatialDropout2d(_SpatialDropout):
    _axes = 2


@describe("spatial_dropout", spatial_dropout3d, like=_SpatialDropout, **_RANKS[3])
class SpatialDropout3d(_SpatialDropout):
    _axes = 3
