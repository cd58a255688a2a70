"""LoRA dropout: the input of a low-rank adapter is dropped, that of the frozen weight beside it is not."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import boolean, is_autocast, positive_integer, real, require_features, require_tensor
from ..from_torch import FromLinear, method_of_its_own
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..moments import sum_variance
from ..noise import Bernoulli, inverted, inverted_mean

__all__ = ["LoRALinear", "lora_linear"]


def _require_factors(input: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None) -> None:
    require_features(input, weight, bias)
    outputs, inputs = weight.shape
    for name, factor in (("lora_A", lora_A), ("lora_B", lora_B)):
        require_tensor(factor, name)
        if factor.dtype != weight.dtype and not is_autocast(weight):
            raise RuntimeError(f"{name} has to be of the type of the weight, {weight.dtype}, but got {factor.dtype}")
    if lora_A.dim() != 2 or lora_A.shape[1] != inputs:
        raise RuntimeError(f"lora_A has to be of shape (rank, {inputs}) for a weight of shape {tuple(weight.shape)}, "
                           f"but got the shape {tuple(lora_A.shape)}")
    if lora_B.shape != (outputs, len(lora_A)):
        raise RuntimeError(f"lora_B has to be of shape ({outputs}, {len(lora_A)}) for a weight of shape "
                           f"{tuple(weight.shape)} and a lora_A of shape {tuple(lora_A.shape)}, but got the shape "
                           f"{tuple(lora_B.shape)}")


def _sum(input: Tensor, dropped: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None,
         scale: float) -> Tensor:
    return F.linear(input, weight, bias) + scale * F.linear(F.linear(dropped, lora_A), lora_B)


def _drawn(lora_A: Tensor) -> Tensor:
    """Fills it as torch draws a weight."""
    return nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))


def _mask(input: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None, p: float, *,
          generator: torch.Generator | None) -> Tensor:
    _require_factors(input, weight, lora_A, lora_B, bias)
    return Bernoulli(p).sample(input, generator=generator)


@draws(_mask)
@describe("lora_dropout")
def lora_linear(input: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, bias: Tensor | None = None,
                scale: float = 1.0, p: float = 0.1, training: bool = True, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
    """A linear layer beside a low-rank adapter, whose input is dropped.

    See :class:`~dropoutlib.LoRALinear`.

    Args:
        {features} {weight}
        lora_A: of shape ``(rank, in_features)``.
        lora_B: of shape ``(out_features, rank)``.
        {bias}
        scale: what the output of the adapter is multiplied with.
        p: probability of dropping an element of the adapter's input.
        training: whether elements are dropped.
        {mask}
        {generator}

    Returns:
        {outputs}

    Raises:
        {bad_values}
        RuntimeError: if shapes or types do not fit, if the input holds no real floating point numbers, or
            {bad_generator}.
        TypeError: if one of the tensors is none, or ``p`` or ``scale`` not a real number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight, lora_A, lora_B = torch.ones(1, 2), torch.tensor([[10.0, 20.0]]), torch.ones(1, 1)
        >>> functional.lora_linear(torch.ones(2), weight, lora_A, lora_B, p=0.5, noise=torch.tensor([1, 0]))
        tensor([22.])
    """
    _require_factors(input, weight, lora_A, lora_B, bias)
    dropped = inverted(input, p, training, noise=noise, generator=generator)
    return _sum(input, dropped, weight, lora_A, lora_B, bias, real("scale", scale))


@describe("lora_dropout", lora_linear)
class LoRALinear(FromLinear, NoisyLayer, nn.Linear):
    r"""A frozen linear layer beside a low-rank adapter that is trained, with dropout on the adapter's input.

    The output is :math:`W x + b + s\, B A \,\mathrm{dropout}(x)` with :math:`s = \alpha/r`. In training the adapter
    sees each input :math:`x_j` as :math:`x_j/(1-p)` with probability 1 - p and as 0 with probability p; the frozen
    weight W sees it as it is. The mean is the output of the merged weight :math:`W + s\,BA`, and the variance of an
    output :math:`\frac{p}{1-p} \sum_j x_j^2 (s\,BA)_{ij}^2`. In evaluation nothing is dropped; :meth:`merge` gives the
    plain layer that computes the same.

    {four_answers}

    ``weight`` and ``bias`` do not ask for gradients, ``lora_A`` and ``lora_B`` do. B begins at 0, so that the layer
    begins as the frozen one, without any noise. {loads} The adapter then keeps A, which has to have values
    (``reset_parameters()`` behind ``to_empty()``), and B begins anew at 0. :meth:`from_linear` takes and freezes those
    of a layer. What takes the weights of a layer instead of calling it, as
    :class:`torch.nn.TransformerEncoderLayer` does in evaluation, leaves the adapter out: merge it first.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added. It is frozen, too.
        rank: number r of rows of A.
        alpha: the output of the adapter is multiplied with alpha/rank.
        {p} {assigned} {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: {bad_p}, or ``rank`` is less than 1.
        TypeError: if ``p`` or ``alpha`` is not a real number, or ``rank`` no whole number.

    Source:
        Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2022), and its code, which has the dropout.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import LoRALinear, replace
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> model = replace(model.requires_grad_(False), {nn.Linear: lambda old: LoRALinear.from_linear(old, rank=2)})
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['0.lora_A', '0.lora_B', '2.lora_A', '2.lora_B']
        >>> replace(model.eval(), {LoRALinear: LoRALinear.merge})[0]
        Linear(in_features=16, out_features=32, bias=True)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rank: int = 8, alpha: float = 8.0,
                 p: float = 0.1, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        rank, alpha, p = positive_integer("rank", rank), real("alpha", alpha), Bernoulli(p).p
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.rank, self.alpha, self.p = rank, alpha, p
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, in_features))
        self.lora_B = nn.Parameter(self.weight.new_empty(out_features, rank))
        self._start()

    def _start(self) -> Self:
        """Freezes the weight, and begins with an adapter that adds nothing."""
        for frozen in (self.weight, self.bias):
            if frozen is not None:
                frozen.requires_grad_(False)
        _drawn(self.lora_A)
        nn.init.zeros_(self.lora_B)
        return self

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        super().reset_parameters()
        if hasattr(self, "lora_A"):     # torch calls it before there is one
            self._start()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any],
                              *arguments: Any) -> None:
        keys = [f"{prefix}lora_A", f"{prefix}lora_B"]
        of_torch = f"{prefix}weight" in state_dict and not any(key in state_dict for key in keys)
        if of_torch:    # a plain layer has no adapter: one that adds nothing
            weight = state_dict[f"{prefix}weight"]
            with torch.inference_mode(False):   # to be trained later
                lora_A = self.lora_A.detach().clone()
                if lora_A.is_meta and not weight.is_meta:
                    lora_A = _drawn(torch.empty_like(lora_A, device=weight.device))
                if local_metadata.get("assign_to_params_buffers", False):   # the weight's type is that of the layer
                    lora_A = lora_A.to(weight.dtype)
                state_dict.update(zip(keys, (lora_A, lora_A.new_zeros(self.lora_B.shape)), strict=True))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)
        if of_torch:
            for key in keys:
                del state_dict[key]

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """Makes a layer of a linear layer, whose weight and bias it takes and freezes: the parameters themselves.

        Args:
            linear: trained.
            **options: further arguments of the class, by name; sizes, bias, device and type are those of ``linear``.

        Returns:
            A layer of this class, in training or evaluation as ``linear`` is. Its A is drawn from torch's global
            generator.

        Raises:
            TypeError: if ``linear`` is no linear layer, or it or its class has a forward of its own, or an option is
                one of those that it decides, or none at all.
            ValueError: if it has no weights yet, or they are computed from other parameters, as by weight norm.
        """
        return super().from_linear(linear, **options)._start()

    @property
    def scale(self) -> float:
        """What the output of the adapter is multiplied with, ``alpha / rank``."""
        return self.alpha / self.rank

    def update(self) -> Tensor:
        """What the adapter adds to the weight.

        Returns:
            Tensor: ``scale * lora_B @ lora_A``, of the shape of the weight.
        """
        return self.scale * (self.lora_B @ self.lora_A)

    def merge(self) -> nn.Linear:
        """A plain layer that gives what this one gives in evaluation, but for rounding.

        Returns:
            nn.Linear: with the sum of weight and adapter and a copy of the bias, which can be trained; in training or
            evaluation as this layer is.

        Raises:
            TypeError: if the layer or its class has a forward of its own.
        """
        if method := method_of_its_own(self, LoRALinear):
            raise TypeError(f"merge gives what LoRALinear computes, but this {type(self).__name__} has a {method} of "
                            "its own, which would be lost")
        merged = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        merged.weight = nn.Parameter((self.weight + self.update()).detach())
        if self.bias is not None:
            merged.bias = nn.Parameter(self.bias.detach().clone())
        return merged.train(self.training)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}, p={self.p}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops inputs of the adapter in training, and none in evaluation. {call}"""
        return lora_linear(input, self.weight, self.lora_A, self.lora_B, self.bias, self.scale, self.p, self.training,
                           noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.weight, self.lora_A, self.lora_B, self.bias, self.p, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: that of the merged weight (of the frozen one if p = 1). {moment}"""
        _require_factors(input, self.weight, self.lora_A, self.lora_B, self.bias)
        return _sum(input, inverted_mean(input, self.p), self.weight, self.lora_A, self.lora_B, self.bias, self.scale)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}.

        Of every output by itself: outputs read the same masks, and are correlated.

        {moment}
        """
        _require_factors(input, self.weight, self.lora_A, self.lora_B, self.bias)
        p = Bernoulli(self.p).p
        return sum_variance(input, self.update(), p / (1 - p) if p < 1 else 0.0, F.linear).to(input.dtype)
