"""Swapout: every element of a residual block keeps or drops its input, and its branch, by two independent draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import applies_noise, noise_pair, require_jagged, require_tensor
from ..branches import require_module, require_shape_of
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Bernoulli, noise_variance, raw_mean, select

__all__ = ["Swapout", "SwapoutNoise", "swapout"]


class SwapoutNoise(NamedTuple):
    """Keep masks of a residual block, each of the shape of its input.

    Attributes:
        input: of the input, which takes the shortcut.
        branch: of what the branch makes of it.
    """

    input: Tensor
    branch: Tensor


def _masks(input: Tensor, p_input: float, p_branch: float, *, noise: Any = None,
           generator: torch.Generator | None) -> SwapoutNoise:
    of_input, of_branch = (None, None) if noise is None else noise_pair(noise, "the masks of the input and the branch")
    # both are drawn for the input: its branch may be of another type, under autocast
    return SwapoutNoise(Bernoulli(p_input).sample(input, noise=of_input, generator=generator),
                        Bernoulli(p_branch).sample(input, noise=of_branch, generator=generator))


def _require_dense(input: Tensor) -> None:
    require_tensor(input)
    require_jagged(input)


@draws(_masks)
@describe("swapout")
def swapout(input: Tensor, branch: Tensor, p_input: float = 0.5, p_branch: float = 0.5, training: bool = True, *,
            noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """Adds two tensors of which every element is kept or dropped.

    See :class:`~dropoutlib.Swapout`.

    Args:
        input: floating point or complex tensor of any shape.
        branch: what the branch makes of it, of the same shape.
        p_input: probability of dropping an element of the input.
        p_branch: probability of dropping an element of the branch.
        training: whether masks are applied; if not, both are multiplied with the means of their masks.
        noise: pair of keep masks that replace the draws, of the input and of the branch, 0 or 1, each of a shape that
            broadcasts to ``input``.
        {generator}

    Returns:
        Tensor of the shape of ``input``.

    Raises:
        ValueError: if a probability is not between 0 and 1, if a mask does not broadcast to ``input``, or if ``noise``
            is given while ``training`` is False.
        RuntimeError: if ``branch`` is of another shape, if one of the two holds integers or booleans, or
            {bad_generator}.
        TypeError: if one of the two is not a tensor, a probability not a real number, or ``noise`` no pair.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> keep_input, keep_branch = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> functional.swapout(torch.full((4,), 1.0), torch.full((4,), 10.0), noise=(keep_input, keep_branch))
        tensor([ 0., 10.,  1., 11.])
    """
    is_noisy = applies_noise(training, noise)
    _require_dense(input)
    require_shape_of(input, branch, "branch")
    if not is_noisy:
        return _mean(input, branch, p_input, p_branch)
    return _kept(input, branch, _masks(input, p_input, p_branch, noise=noise, generator=generator))


def _kept(input: Tensor, branch: Tensor, keep: SwapoutNoise) -> Tensor:
    return select(input, keep.input) + select(branch, keep.branch)


def _mean(input: Tensor, branch: Tensor, p_input: float, p_branch: float) -> Tensor:
    return raw_mean(input, p_input) + raw_mean(branch, p_branch)


@describe("swapout", swapout)
class Swapout(NoisyLayer):
    r"""A residual block whose output adds a random part of its input and a random part of its branch.

    In training the output is :math:`m \odot x + M \odot F(x)`, with F the ``module`` and two independent keep masks:
    every element becomes 0, x, F(x) or x + F(x). m is 0 with probability p = ``p_input``, M with q = ``p_branch``.
    Nothing is rescaled.

    {four_answers}

    With ``p_input=1`` it is raw dropout of the branch, with ``p_input=0`` stochastic depth with a draw of its own for
    every element. In evaluation the output is :math:`(1 - p) x + (1 - q) F(x)`, the exact mean of this block
    given its input, but in general not of a network of several. :func:`~dropoutlib.predict` averages over samples.
    {selects}

    Args:
        module: the branch: any module that gives a tensor of the shape of its input. What it draws itself is its own:
            ``noise`` and ``generator`` do not reach it.
        {p_input} The attribute of this name may be changed later.
        {p_branch} Changed like it.

    Shape:
        Input of any shape that ``module`` takes; the output has the same one. {given}

    Raises:
        TypeError: if ``module`` is no module, or a probability no real number.
        ValueError: if a probability is not between 0 and 1.

    Source:
        Singh, Hoiem and Forsyth, *Swapout: Learning an Ensemble of Deep Architectures* (2016).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import Swapout
        >>> branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> block, x = Swapout(branch, p_input=0.2, p_branch=0.2), torch.randn(2, 8, 16, 16)
        >>> block(x).shape
        torch.Size([2, 8, 16, 16])
        >>> torch.equal(block(x, noise=(torch.tensor(1), torch.tensor(0))), x)
        True
    """

    def __init__(self, module: nn.Module, p_input: float = 0.5, p_branch: float = 0.5) -> None:
        super().__init__()
        self.module = require_module(module, "the branch")
        self.p_input, self.p_branch = Bernoulli(p_input).p, Bernoulli(p_branch).p

    def extra_repr(self) -> str:
        """{shown}"""
        return f"p_input={self.p_input}, p_branch={self.p_branch}"

    def forward(self, input: Tensor, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Adds what is kept of the input and of the branch in training, and the means in evaluation. {call}"""
        _require_dense(input)
        if not applies_noise(self.training, noise):
            return _mean(input, self._branch(input), self.p_input, self.p_branch)
        # before the branch draws, if it does: then to draw() and to apply is to call
        keep = _masks(input, self.p_input, self.p_branch, noise=noise, generator=generator)
        return _kept(input, self._branch(input), keep)

    def _branch(self, input: Tensor) -> Tensor:
        branch: Tensor = self.module(input.clone())     # it may write into what it gets
        require_shape_of(input, branch, "branch")
        return branch

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> SwapoutNoise:
        return _masks(input, self.p_input, self.p_branch, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}, and what the module, called once, makes of it. {moment}"""
        _require_dense(input)
        return _mean(input, self._branch(input), self.p_input, self.p_branch)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, and what the module, called once, makes of it. {moment}"""
        _require_dense(input)
        return (noise_variance(input, Bernoulli(self.p_input).variance)
                + noise_variance(self._branch(input), Bernoulli(self.p_branch).variance))
