"""Targeted dropout: only the smallest weights, or the units with the smallest weights, may be dropped."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import applies_noise, boolean, one_of, real, require_features
from ..from_torch import FromLinear
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..moments import sum_variance
from ..noise import Bernoulli, noise_variance, select

__all__ = ["TargetedDropoutLinear", "targeted_dropout_linear"]


def _check_target(target_fraction: float, mode: str) -> None:
    one_of("mode", mode, ("weight", "unit"))
    if not 0 <= real("target_fraction", target_fraction) <= 1:
        raise ValueError(f"target_fraction has to be between 0 and 1, but got {target_fraction}")


def _candidates(weight: Tensor, target_fraction: float, mode: str) -> Tensor:
    """Which weights may be dropped, of shape (out, in), or which units, of shape (out, 1).

    Exactly floor(target_fraction n) of n, also where sizes are equal. No gradient flows through the choice.
    """
    size = weight.detach().abs()
    axis = 1
    if mode == "unit":
        # half precision gives many units one norm, or inf, and so do squares of very small and large weights in single
        size, axis = torch.linalg.vector_norm(size, dim=1, keepdim=True, dtype=torch.float64), 0
    whole = int(size.shape[axis])   # a tensor in torch.jit.trace
    count = math.floor(round(target_fraction * whole, 9))  # 0.29 * 100 is 28.999999999999996
    chosen = torch.zeros_like(size, dtype=torch.bool)
    if count == whole:
        return ~chosen
    return chosen.scatter(axis, size.topk(count, axis, largest=False, sorted=False).indices, 1)  # jit.trace has no True


def _coins(input: Tensor, weight: Tensor, bias: Tensor | None, p: float, target_fraction: float, mode: str, *,
           noise: Tensor | None = None, generator: torch.Generator | None) -> Tensor:
    """One for each weight or unit, whether it is a candidate or not: the ranking may change, the draw does not."""
    law = Bernoulli(p)
    require_features(input, weight, bias)
    _check_target(target_fraction, mode)
    return law.sample(weight, shared=(1,) if mode == "unit" else (), noise=noise, generator=generator)


@draws(_coins)
@describe("targeted_dropout")
def targeted_dropout_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5,
                            training: bool = True, *, target_fraction: float = 0.5,
                            mode: Literal["weight", "unit"] = "weight", noise: Tensor | None = None,
                            generator: torch.Generator | None = None) -> Tensor:
    """A linear layer whose smallest weights are dropped.

    See :class:`~dropoutlib.TargetedDropoutLinear`.

    Args:
        {features} {weight} {bias} It is never dropped.
        p: the probability of dropping a candidate.
        training: whether candidates are dropped by chance; if not, all of them are left out.
        target_fraction: which fraction of the weights of each unit, or of the units, are candidates.
        mode: ``"weight"``: candidates are the weights of each unit with the smallest absolute values; ``"unit"``: the
            units whose weights have the smallest norms.
        noise: keep mask that replaces the draw, 0 or 1, of a shape that broadcasts to that of the weight, for units to
            ``(out_features, 1)``. It is read where there are candidates.
        {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: {bad_p} or ``target_fraction`` is not; if ``mode`` is another word; if ``noise`` does not broadcast
            to the shape above, or if it is given while ``training`` is False.
        {bad_features}
        TypeError: if the input is not a tensor, or ``p`` or ``target_fraction`` not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight, x = torch.tensor([[3.0, -1.0, 2.0, 0.5]]), torch.ones(4)
        >>> functional.targeted_dropout_linear(x, weight, noise=torch.tensor([0, 0, 1, 1]))  # 3 is no candidate
        tensor([5.5000])
        >>> functional.targeted_dropout_linear(x, weight, training=False)
        tensor([5.])
    """
    law = Bernoulli(p)
    require_features(input, weight, bias)
    _check_target(target_fraction, mode)
    if not applies_noise(training, noise):
        return F.linear(input, _pruned(weight, target_fraction, mode), bias)
    if law.p == 0 and noise is None:
        return F.linear(input, weight, bias)
    keep = _coins(input, weight, bias, p, target_fraction, mode, noise=noise, generator=generator)
    return F.linear(input, select(weight, keep | ~_candidates(weight, target_fraction, mode)), bias)


def _pruned(weight: Tensor, target_fraction: float, mode: str) -> Tensor:
    return select(weight, ~_candidates(weight, target_fraction, mode))


@describe("targeted_dropout", targeted_dropout_linear)
class TargetedDropoutLinear(FromLinear, NoisyLayer, nn.Linear):
    r"""A linear layer whose smallest weights are dropped in training and left out in evaluation.

    Of each unit's weights the :math:`\lfloor \gamma n \rfloor` smallest are candidates, :math:`\gamma` being
    ``target_fraction``. In training each of them is dropped with probability p; the others stay, and nothing is
    scaled. In evaluation all candidates are left out: the network is evaluated as it is after pruning. So the test
    output is *not* the mean of the training output. With ``mode="unit"`` the candidates are whole units, those with
    the smallest norms of their weights, and each unit has one draw.

    {four_answers}

    Weights are ranked again at every call, so a weight that has grown is no candidate any more. A weight that is
    dropped has no gradient in that step. The bias is never dropped: without its weights a unit gives its bias.

    With p = 0 there is no noise in training, but evaluation leaves the candidates out. With ``target_fraction`` = 0 the
    layer is :class:`torch.nn.Linear` in both modes; both attributes may be changed later, for instance during
    training. :func:`~dropoutlib.compress` makes the candidates zeros and takes away units of which only a constant is
    left.

    Trained weights of :class:`torch.nn.Linear` load, and mean the same but for the candidates.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added.
        {p} {target_fraction} {mode} {device} {dtype}

    Shape:
        {linear_shape} One mask is shared by the batch.

    Raises:
        ValueError: {bad_p} or ``target_fraction`` is not, or ``mode`` is another word.
        TypeError: if ``p`` or ``target_fraction`` is not a real number, or ``bias`` no truth value.

    Source:
        Gomez et al., *Learning Sparse Networks Using Targeted Dropout* (2019). Their code draws once for each weight of
        a unit that is a candidate; here ``mode="unit"`` draws once for the unit.

    Example:
        >>> import torch
        >>> from dropoutlib import TargetedDropoutLinear
        >>> layer = TargetedDropoutLinear(64, 10, p=0.5, target_fraction=0.75)
        >>> layer(torch.rand(32, 64)).shape
        torch.Size([32, 10])
        >>> layer.candidates().sum(1)
        tensor([48, 48, 48, 48, 48, 48, 48, 48, 48, 48])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5,
                 target_fraction: float = 0.5, mode: Literal["weight", "unit"] = "weight", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        p = Bernoulli(p).p
        _check_target(target_fraction, mode)
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.p, self.target_fraction, self.mode = p, float(target_fraction), mode

    def extra_repr(self) -> str:
        """{shown}"""
        return f"{super().extra_repr()}, p={self.p}, target_fraction={self.target_fraction}, mode={self.mode!r}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops candidates in training and leaves all of them out in evaluation. {call}"""
        return targeted_dropout_linear(input, self.weight, self.bias, self.p, self.training,
                                       target_fraction=self.target_fraction, mode=self.mode, noise=noise,
                                       generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _coins(input, self.weight, self.bias, self.p, self.target_fraction, self.mode, generator=generator)

    def candidates(self) -> Tensor:
        """Which weights, or with ``mode="unit"`` which units, may be dropped now.

        Returns:
            Tensor: bool, of shape ``(out_features, in_features)``, for units ``(out_features, 1)``.
        """
        return _candidates(self.weight, self.target_fraction, self.mode)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: candidates count 1 - p times. {moment}"""
        require_features(input, self.weight, self.bias)
        q = 1 - Bernoulli(self.p).p
        dropped = select(self.weight, self.candidates())
        kept = _pruned(self.weight, self.target_fraction, self.mode)
        return F.linear(input, kept + (q * dropped if q > 0 else 0), self.bias)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: that of the candidates' coins. {moment}"""
        require_features(input, self.weight, self.bias)
        dropped, variance = select(self.weight, self.candidates()), Bernoulli(self.p).variance
        if self.mode == "unit":
            return noise_variance(F.linear(input, dropped), variance)
        return sum_variance(input, dropped, variance).to(input.dtype)
