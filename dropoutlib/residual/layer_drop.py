"""LayerDrop: a whole residual layer is left out, for the batch or for each example, so that it can be pruned later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import applies_noise, boolean, is_eager, one_of
from ..branches import MODES, require_batch, require_module, require_shape_of, shared_axes
from ..layer import NoisyLayer
from ..methods import describe
from ..noise import Bernoulli, noise_variance, raw_mean

__all__ = ["LayerDrop"]


@describe("layer_drop")
class LayerDrop(NoisyLayer):
    """A residual layer that is left out in training, and whole or pruned in evaluation.

    In training the output is that of the ``module`` with probability 1 - p, and the input itself with probability p.
    Nothing is rescaled. The module holds its own shortcut, as a layer of a transformer does. In evaluation it always
    runs: its output is not the mean of training, 1 - p times the output and p times the input. To prune a
    :class:`torch.nn.Sequential` of such layers is to take some of them, such as ``layers[::2]``.

    {four_answers}

    A layer that is dropped for the whole batch is not computed, where the draw can be read: not under a compiler or
    :func:`torch.vmap`, which compute it and leave its output out. What is not computed has no gradient: the attribute
    ``grad`` of its parameters stays None. DistributedDataParallel takes this for an error unless it is told
    ``find_unused_parameters=True``; FSDP and ZeRO-3, which gather weights when a layer is called, wait for a process
    that does not call it. With ``skip=False`` everything is computed, and the gradient is zero. On a GPU a call with
    ``skip=True`` waits for its draw. With p = 0 nothing is drawn. The module may write into its input: where both are
    needed it gets a copy.

    :class:`torch.nn.TransformerEncoder` and its decoder ask their layers for ``self_attn``, and so take none that this
    one holds; use a :class:`torch.nn.Sequential`, or a loop.

    Args:
        module: the layer: any module that gives a tensor of the shape of its input. What it draws itself is its own:
            ``noise`` and ``generator`` do not reach it.
        p: probability of leaving it out. The attribute ``p`` may be changed later.
        mode: ``"batch"`` draws once for all examples, ``"row"`` for every example. A row that is dropped is computed,
            unless all are.
        skip: whether what is dropped for the whole batch is not computed.

    Shape:
        Input ``(N, ...)``; the output has the same shape and type. ``noise``: keep mask that replaces the draw, 0 or 1,
        of shape ``(1, ..., 1)`` or, in the mode ``"row"``, ``(N, 1, ..., 1)``, or one that broadcasts to it.

    Raises:
        TypeError: if ``module`` is no module, ``p`` no real number, or ``skip`` neither True nor False.
        ValueError: if ``p`` is not between 0 and 1, or ``mode`` is another word.

    Source:
        Fan, Grave and Joulin, *Reducing Transformer Depth on Demand with Structured Dropout* (2020).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import LayerDrop
        >>> layers = nn.Sequential(*(LayerDrop(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), p=0.2)
        ...                          for _ in range(6)))
        >>> x = torch.randn(4, 5, 8)
        >>> torch.equal(layers[0](x, noise=torch.tensor(0)), x)
        True
        >>> pruned = layers.eval()[::2]
        >>> len(pruned), pruned(x).shape
        (3, torch.Size([4, 5, 8]))
    """

    def __init__(self, module: nn.Module, p: float = 0.2, mode: str = "batch", skip: bool = True) -> None:
        super().__init__()
        self.module = require_module(module, "the layer")
        self.p = Bernoulli(p).p
        one_of("mode", mode, MODES)
        self.mode, self.skip = mode, boolean("skip", skip)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p={self.p}, mode={self.mode!r}, skip={self.skip}"

    def forward(self, input: Tensor, *arguments: Any, noise: Tensor | None = None,
                generator: torch.Generator | None = None, **options: Any) -> Tensor:
        """Leaves the layer out in training, and runs it in evaluation.

        Args:
            input: of shape ``(N, ...)``.
            *arguments: further arguments of the module, such as masks.
            noise: replaces the draw, as the layer says under Shape. Refused in evaluation.
            {generator}
            **options: arguments of the module by name.

        Returns:
            Tensor of the shape and type of ``input``.

        Raises:
            ValueError: if ``noise`` is not as described above, or is given in evaluation.
            RuntimeError: if the module gives another shape, if the input has no axis, if one of the two holds integers
                or booleans, or {bad_generator}.
            TypeError: if the input, or what the module gives, is not a tensor.
        """
        require_batch(input)
        nothing_dropped = Bernoulli(self.p).p == 0 and noise is None
        if not applies_noise(self.training, noise) or nothing_dropped:
            return self._output(input, *arguments, **options)
        # before the module draws, if it does: then to draw() and to apply is to call
        keep = self._mask(input, noise=noise, generator=generator)
        if self.skip and is_eager(input) and is_eager(keep) and (not keep.any() or keep.all()):
            return self._output(input, *arguments, **options) if keep.any() else input
        return torch.where(keep, self._output(input.clone(), *arguments, **options), input)

    def _output(self, input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        output: Tensor = self.module(input, *arguments, **options)
        require_shape_of(input, output, "output of the module")
        return output.to(input.dtype)  # of one type, whether it is dropped or not, under autocast too

    def _mask(self, input: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None) -> Tensor:
        return Bernoulli(self.p).sample(input, shared=shared_axes(input, self.mode), noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._mask(input, generator=generator)

    def mean(self, input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """{output_mean}, and what the module, called once, makes of it.

        Args:
            input: of shape ``(N, ...)``.
            *arguments: further arguments of the module.
            **options: arguments of the module by name.

        Returns:
            Tensor of the shape of ``input``.
        """
        require_batch(input)
        return raw_mean(self._output(input.clone(), *arguments, **options), self.p) + raw_mean(input, 1 - self.p)

    def variance(self, input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """{output_variance}, and what the module, called once, makes of it.

        Of every element by itself: elements that share a draw are fully correlated, up to sign.

        Args:
            input: of shape ``(N, ...)``.
            *arguments: further arguments of the module.
            **options: arguments of the module by name.

        Returns:
            Tensor of the shape of ``input``.
        """
        require_batch(input)
        return noise_variance(self._output(input.clone(), *arguments, **options) - input, Bernoulli(self.p).variance)
