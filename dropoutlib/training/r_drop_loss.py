"""R-Drop: the loss of two passes under two draws of a network's dropout, and a price for their disagreement."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import at_least_zero, integer, one_of, real, require_tensor
from ..methods import describe

__all__ = ["RDropLoss"]


@describe("r_drop_loss")
class RDropLoss(nn.Module):
    r"""Cross-entropies of two passes of one batch, plus ``alpha`` times their mean Kullback-Leibler divergence.

    With the probabilities P and Q of the two passes and a label y it is, for each example or position,

    .. math:: -\log P_y - \log Q_y + \frac\alpha2 \, \big(KL(P \,\|\, Q) + KL(Q \,\|\, P)\big).

    Gradients flow through both passes. The cross-entropies are *summed*, as in the paper. Code that averages them has
    half of this loss, for an ``alpha`` that is half of this one.

    {four_answers}

    Call the model twice, ``loss(model(x), model(x), y)``, or once with a doubled batch,
    ``loss(*model(torch.cat([x, x])).chunk(2), y)``, which has the same law where every example has draws of its own and
    depends on no other. A layer with one draw for the whole batch gives both halves the same noise: their divergence
    does not see it. Batch norm takes its statistics from both halves together. In evaluation both passes are the same,
    and so the loss is twice the cross-entropy.

    Args:
        alpha: weight of the divergence, at least 0; the attribute may be changed later.
        ignore_index: label of positions that count neither for the cross-entropies nor for the divergence, such as
            padding.
        reduction: ``"mean"`` over what is not ignored, ``"sum"``, or ``"none"``; the divergence is summed over the
            classes, whatever this is.
        label_smoothing: of the cross-entropies, as torch's, between 0 and 1.

    Shape:
        Logits of each pass ``(N, C)``, ``(N, C, d1, ...)`` or ``(C,)``, as :class:`torch.nn.CrossEntropyLoss` takes
        them; the target has their shape without the axis ``C``, or the same shape if it holds probabilities. The output
        is a number, or with ``reduction="none"`` has the shape of the logits without ``C``.

    Raises:
        ValueError: if ``alpha`` is negative or not finite, ``label_smoothing`` not between 0 and 1, or ``reduction``
            another word.
        TypeError: if ``alpha`` or ``label_smoothing`` is no real number, or ``ignore_index`` no whole number.

    Source:
        Liang et al., *R-Drop: Regularized Dropout for Neural Networks* (2021).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import RDropLoss
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 2, 1, 0])
        >>> loss = RDropLoss(alpha=1.0)
        >>> loss(model(x), model(x), y).backward()
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> loss(one, other, torch.tensor([0]))
        tensor(1.2009)
    """

    def __init__(self, alpha: float = 1.0, *, ignore_index: int = -100, reduction: str = "mean",
                 label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= real("label_smoothing", label_smoothing) <= 1:
            raise ValueError(f"label_smoothing has to be between 0 and 1, but got {label_smoothing}")
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.alpha = at_least_zero("alpha", alpha)
        self.ignore_index = integer("ignore_index", ignore_index)
        self.reduction = reduction
        self.label_smoothing = float(label_smoothing)

    def extra_repr(self) -> str:
        """{shown}"""
        return (f"alpha={self.alpha}, ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
                f"label_smoothing={self.label_smoothing}")

    def forward(self, first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        """The loss of two passes.

        Args:
            first: logits of one pass, of the shape that is said above.
            second: logits of the other, of the same shape.
            target: labels, or probabilities of the classes.

        Returns:
            Tensor of one number, or of the loss of each position.

        Raises:
            ValueError: if the two passes differ in shape, or do not fit the target; if ``alpha`` was set to what is
                negative or not finite.
            RuntimeError: if logits have no axis, or are no real floating point numbers.
            TypeError: if an argument is not a tensor.
        """
        for name, logits in (("first", first), ("second", second)):
            require_tensor(logits, name)
            if logits.is_complex() or logits.dim() == 0:
                raise RuntimeError(f"{name} has to be real logits of shape (N, C, ...) or (C,), but got {logits.dtype} "
                                   f"of the shape {tuple(logits.shape)}")
        if first.shape != second.shape:
            raise ValueError("first and second have to be logits of the same examples, but got the shapes "
                             f"{tuple(first.shape)} and {tuple(second.shape)}")
        if not isinstance(target, Tensor):
            raise TypeError(f"target has to be a tensor, but got {type(target).__name__}")
        of_labels, of_probabilities = (*first.shape[:1], *first.shape[2:])[:first.dim() - 1], first.shape
        holds_probabilities = target.is_floating_point()
        kind, shape, other = (("probabilities", of_probabilities, of_labels) if holds_probabilities
                              else ("labels", of_labels, of_probabilities))
        if target.shape != shape:
            cure = ""
            if target.shape == other:
                cure = ": labels are whole numbers, and probabilities floating point numbers"
            elif target.shape == first.shape[:-1]:
                cure = ": the classes are the second axis of the logits, so transpose those of a sequence"
            raise ValueError(f"target holds {kind}, as {target.dtype}, and has to be of the shape {tuple(shape)} for "
                             f"logits of the shape {tuple(first.shape)}, but got the shape {tuple(target.shape)}{cure}")
        loss = self._cross_entropy(first, target) + self._cross_entropy(second, target)
        # a target of probabilities has no position that is ignored
        counts = (torch.ones_like(loss, dtype=torch.bool) if holds_probabilities
                  else target.long() != self.ignore_index)  # -100 would be 156 among bytes
        loss = loss + at_least_zero("alpha", self.alpha) * torch.where(counts, _mean_divergence(first, second), 0)
        if self.reduction == "none":
            return loss
        return loss.sum() / counts.sum() if self.reduction == "mean" else loss.sum()

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none",
                               label_smoothing=self.label_smoothing)


def _mean_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the two divergences, as a sum of terms of which none is negative."""
    classes = min(1, first.dim() - 1)
    one, other = first.log_softmax(classes), second.log_softmax(classes)
    impossible = one.isneginf() & other.isneginf()  # a class that the model excludes
    gap = torch.where(impossible, 0, one - other)
    return ((one.exp() - other.exp()) * gap).sum(classes) / 2
