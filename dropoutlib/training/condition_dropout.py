"""Condition dropout: the whole condition of an example is kept, or replaced by a learned null."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..arguments import (
    applies_noise,
    positive_integer,
    real,
    require_broadcastable,
    require_tensor,
    unchanged,
)
from ..branches import require_batch
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, noise_variance, raw_mean

__all__ = ["ConditionDropout", "condition_dropout", "guidance"]


def _null_for(input: Tensor, null: Tensor) -> Tensor:
    """The null in the type of the input, which autocast may have changed."""
    unchanged(input, require_batch)
    require_tensor(null, "null")
    require_broadcastable("null", null, input.shape[1:], "condition of one example")
    if null.is_complex() and not input.is_complex():
        raise RuntimeError(f"null has to be real for a real input, but got {null.dtype} for {input.dtype}")
    return null if input.is_quantized else null.to(input.dtype)


def _mask(input: Tensor, p: float, *, noise: Tensor | None = None, generator: torch.Generator | None) -> Tensor:
    unchanged(input, require_batch)
    return Bernoulli(p).sample(input, shared=tuple(range(1, input.dim())), noise=noise, generator=generator)


@draws(_mask)
@describe("condition_dropout")
def condition_dropout(input: Tensor, null: Tensor, p: float = 0.1, training: bool = True, *,
                      noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Replaces the whole condition of an example by the null.

    See :class:`~dropoutlib.ConditionDropout`.

    Args:
        input: conditions, a floating point or complex tensor of shape ``(N, ...)``, such as embeddings of labels.
        null: what stands in the place of a condition that is dropped, of the shape of the condition of one example, or
            of one that broadcasts to it.
        p: probability of dropping the condition of an example.
        {training}
        noise: keep mask that replaces the draw, 0 or 1, of shape ``(N, 1, ..., 1)`` or one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: {bad_p}, if ``null`` does not broadcast to the condition of one example, if ``noise`` does not
            broadcast to the draw, or if it is given while ``training`` is False.
        RuntimeError: if the input has no axis, if one of the two holds integers or booleans, if ``null`` is complex and
            the input is not, or {bad_generator}.
        TypeError: if the input or ``null`` is not a tensor, or ``p`` not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> conditions, null = torch.ones(2, 3), torch.tensor([7.0, 8.0, 9.0])
        >>> functional.condition_dropout(conditions, null, noise=torch.tensor([[1], [0]]))
        tensor([[1., 1., 1.],
                [7., 8., 9.]])
    """
    law, null = Bernoulli(p), _null_for(input, null)
    if not applies_noise(training, noise) or (law.p == 0 and noise is None):
        return input
    return torch.where(_mask(input, law.p, noise=noise, generator=generator), input, null)


def guidance(conditional: Tensor, unconditional: Tensor, w: float) -> Tensor:
    """Classifier-free guidance: away from what a model says without a condition.

    Args:
        conditional: prediction under the condition.
        unconditional: prediction under the null, of the same shape.
        w: strength. With 0 it is the conditional prediction, with -1 the unconditional one. Where others write a
            scale s that is 1 for the conditional prediction, it is s - 1.

    Returns:
        Tensor: ``(1 + w) * conditional - w * unconditional``.

    Raises:
        TypeError: if a prediction is not a tensor, or ``w`` not a real number.
        RuntimeError: if the predictions are of different shapes, or hold integers or booleans.

    Example:
        >>> import torch
        >>> from dropoutlib.training import guidance
        >>> guidance(torch.tensor([3.0]), torch.tensor([1.0]), w=0.5)
        tensor([4.])
    """
    require_tensor(conditional, "conditional")
    require_tensor(unconditional, "unconditional")
    if conditional.shape != unconditional.shape:
        raise RuntimeError(f"unconditional has to be of the shape {tuple(conditional.shape)} of conditional, but got "
                           f"the shape {tuple(unconditional.shape)}")
    w = real("w", w)
    if w in (0, -1):    # where the other one may be infinite
        return torch.where(torch.full(conditional.shape, w == 0, device=conditional.device), conditional, unconditional)
    return conditional + w * (conditional - unconditional)


@describe("condition_dropout", condition_dropout)
class ConditionDropout(NoisyLayer, _DropoutNd):
    r"""Replaces the whole condition of an example by a learned null, for classifier-free guidance.

    In training the condition c of an example becomes the null n with probability p, all its features and positions
    together. Nothing is rescaled: what is kept is the condition itself. {identity}

    {four_answers}

    One model learns two predictions, with the condition and without. The second is asked for with :meth:`unconditional`
    in the place of the conditions, and :func:`~dropoutlib.training.guidance` combines both. The null begins at 0 and is
    a parameter, so that a condition that is 0 can be told from none.

    Dropping selects: where a condition is dropped an ``inf`` or ``nan`` in it is gone, and its gradient is 0. With
    p = 0 the input itself is returned, with p = 1 the null alone; neither draws. With p = 0 the null gets no gradient.

    Args:
        shape: of the null, and of the condition of one example: a number of features, or a tuple. An axis of size 1
            shares the null along that axis.
        {p} {assigned}
        device: where the null lies.
        dtype: type of the null.

    Shape:
        Input ``(N, ...)``; the output has the same one. {given}

    Raises:
        ValueError: {bad_p}, or a size in ``shape`` is less than 1.
        TypeError: if ``p`` is not a real number, or ``shape`` neither a whole number nor a tuple of them.

    Source:
        Ho and Salimans, *Classifier-Free Diffusion Guidance* (2022).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import ConditionDropout
        >>> from dropoutlib.training import guidance
        >>> labels, embed, drop = torch.tensor([3, 1]), nn.Embedding(10, 8), ConditionDropout(8, p=0.1)
        >>> conditions = drop(embed(labels))
        >>> model = nn.Linear(8, 2)     # that takes conditions
        >>> _ = drop.eval()
        >>> guidance(model(drop(embed(labels))), model(drop.unconditional(embed(labels))), w=1.0).shape
        torch.Size([2, 2])
    """

    def __init__(self, shape: int | Sequence[int], p: float = 0.1, *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(Bernoulli(p).p)
        sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
        sizes = [positive_integer("shape", size) for size in sizes]
        self.null = nn.Parameter(torch.empty(sizes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the null to 0."""
        nn.init.zeros_(self.null)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"{tuple(self.null.shape)}, p={self.p}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Replaces conditions in training and returns the input in evaluation. {call}"""
        return condition_dropout(input, self.null, self.p, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.p, generator=generator)

    def unconditional(self, input: Tensor) -> Tensor:
        """The null for every example, in the place of the conditions.

        Args:
            input: conditions, whose shape and type count, not their values.

        Returns:
            Tensor of the shape and type of ``input``, not a view of the null.
        """
        return _null_for(input, self.null).expand(input.shape).clone(memory_format=torch.contiguous_format)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: 1 - p times the condition, plus p times the null. It is not the test output. {moment}"""
        null = _null_for(input, self.null)
        return input if Bernoulli(self.p).p == 0 else raw_mean(input, self.p) + self.p * null

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: p(1 - p) times the square of the distance from the null.

        Of every element by itself: the elements of an example share a draw and are fully correlated.

        {moment}
        """
        return noise_variance(input - _null_for(input, self.null), Bernoulli(self.p).variance)
