"""Standout: a unit is kept with a probability that is computed from the same input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import applies_noise, boolean, one_of, real, require_callable, require_features
from ..documentation import document
from ..from_torch import FromLinear
from ..layer import NoisyLayer, draws
from ..methods import describe
from ..noise import Coins, apply

__all__ = ["StandoutLinear", "standout_linear"]


def _check_line(alpha: Tensor | float, beta: Tensor | float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        # Not math.isnan, which torch.compile does not know. A nan would keep every unit, in silence.
        if not isinstance(value, Tensor) and not -math.inf <= real(name, value) <= math.inf:
            raise ValueError(f"{name} has to be a number, but got {value}")


def _logit(input: Tensor, pre_activation: Tensor, alpha: float, beta: float, belief_weight: Tensor | None,
           belief_bias: Tensor | None) -> Tensor:
    """That of the keep probability."""
    _check_line(alpha, beta)
    return alpha * pre_activation + beta if belief_weight is None else F.linear(input, belief_weight, belief_bias)


def _coins(logit: Tensor) -> Coins:
    wide = logit if logit.dtype == torch.float64 else logit.float()
    return Coins(torch.sigmoid(-wide))


def _mask(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: float, beta: float, belief_weight: Tensor | None,
          belief_bias: Tensor | None, *, generator: torch.Generator | None) -> Tensor:
    require_features(input, weight, bias)
    logit = _logit(input, F.linear(input, weight, bias), alpha, beta, belief_weight, belief_bias)
    return _coins(logit).sample(logit, generator=generator)


@draws(_mask)
@describe("standout", fits="the output")
def standout_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, training: bool = True, *,
                    activation: Callable[[Tensor], Tensor] = torch.relu, alpha: float = 1.0, beta: float = 0.0,
                    belief_weight: Tensor | None = None, belief_bias: Tensor | None = None,
                    noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """A linear layer whose units are kept with a probability that depends on the input.

    See :class:`~dropoutlib.StandoutLinear`.

    Args:
        {features} {weight} {bias}
        training: whether units are dropped; if not, they are scaled by their keep probability.
        activation: acts on the pre-activation, element by element: a function or a module.
        alpha: slope of the keep probability in the pre-activation.
        beta: logit of the keep probability where the pre-activation is 0.
        belief_weight: separate weights of the keep probability, of the shape of ``weight``, instead of ``alpha`` and
            ``beta``; ``None`` for shared ones.
        belief_bias: their bias, of the shape of ``bias``.
        {raw_mask} {generator}

    Returns:
        {outputs}

    Raises:
        ValueError: {bad_noise}; if ``belief_bias`` is given without ``belief_weight``, or ``alpha`` or ``beta`` is nan.
        {bad_features}
        TypeError: if the input is not a tensor, or ``alpha`` or ``beta`` no real number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> weight = torch.tensor([[1.0], [2.0]])
        >>> functional.standout_linear(torch.ones(1), weight, noise=torch.tensor([1, 0]))
        tensor([1., 0.])
        >>> functional.standout_linear(torch.ones(1), weight, training=False)  # 1 sigmoid(1), 2 sigmoid(2)
        tensor([0.7311, 1.7616])
    """
    require_features(input, weight, bias)
    if belief_weight is None and belief_bias is not None:
        raise ValueError("belief_bias was given without belief_weight")
    if belief_weight is not None and belief_weight.shape != weight.shape:
        raise RuntimeError(f"belief_weight has to be of the shape {tuple(weight.shape)} of the weight, "
                           f"but got {tuple(belief_weight.shape)}")
    require_callable("activation", activation)
    pre_activation = F.linear(input, weight, bias)
    logit = _logit(input, pre_activation, alpha, beta, belief_weight, belief_bias)
    hidden = activation(pre_activation)
    if not applies_noise(training, noise):
        return hidden * torch.sigmoid(logit)
    output = apply(hidden, _coins(logit), noise=noise, generator=generator)
    if belief_weight is None:
        return output
    probability = torch.sigmoid(logit)
    return output + hidden.detach() * (probability - probability.detach())  # adds zero, with a gradient


@describe("standout", standout_linear)
class StandoutLinear(FromLinear, NoisyLayer, nn.Linear):
    r"""A linear layer with an activation, whose units are kept with a probability that depends on the input.

    With the pre-activation z = Wx + b, a unit is kept with probability
    :math:`\pi = \sigma(\alpha z + \beta)`, :math:`\sigma` being the logistic function. In training the output is
    activation(z) where the unit is kept and 0 where it is dropped; in evaluation it is :math:`\pi` activation(z), the
    mean of the training output given the input.

    {four_answers}

    With ``alpha`` = 0 it is ordinary dropout, without scaling in training, with p = sigmoid(-``beta``). With a positive
    ``alpha`` large pre-activations are kept more often.

    ``belief="shared"``: the keep probability uses the layer's own weights, and no gradient flows through it in
    training. ``belief="learned"``: it has weights of its own (``belief_weight``, ``belief_bias``), which start as
    ``alpha`` times the layer's and ``beta``. They are trained by the straight-through estimator: backward takes the
    mask for its probability. This gradient is in general biased where the loss is not linear in the mask; the
    chapter measures by how much.

    Trained weights of :class:`torch.nn.Linear` load; with a learned belief that starts from them. Their scale changes
    its meaning, as in the paper: kept units are not scaled up, and in evaluation units are scaled down by their keep
    probability.

    Dropping selects: a dropped ``inf`` becomes 0, with a zero gradient. A ``nan`` is kept, whatever its probability,
    rather than hidden; a learned belief lets ``inf`` and ``nan`` through.

    Args:
        {in_features} {out_features}
        bias: whether a bias is added before the activation.
        {activation} {alpha} {beta}
        belief: ``"shared"`` or ``"learned"``.
        {device} {dtype}

    Shape:
        {linear_shape}

    Raises:
        ValueError: if ``belief`` is neither ``"shared"`` nor ``"learned"``, or ``alpha`` or ``beta`` is nan.
        TypeError: if ``activation`` cannot be called, or ``alpha`` or ``beta`` is no real number.

    Source:
        Ba and Frey, *Adaptive dropout for training deep neural networks* (2013).

    Example:
        >>> import torch
        >>> from dropoutlib import StandoutLinear
        >>> layer = StandoutLinear(64, 100, alpha=1.0, beta=0.0)
        >>> x = torch.rand(32, 64)
        >>> layer(x).shape
        torch.Size([32, 100])
        >>> layer.keep_probability(x).shape
        torch.Size([32, 100])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 activation: Callable[[Tensor], Tensor] = torch.relu, alpha: float = 1.0, beta: float = 0.0,
                 belief: Literal["shared", "learned"] = "shared", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        one_of("belief", belief, ("shared", "learned"))
        require_callable("activation", activation)
        super().__init__(in_features, out_features, boolean("bias", bias), device, dtype)
        self.activation = activation
        self.alpha, self.beta, self.belief = real("alpha", alpha), real("beta", beta), belief
        _check_line(alpha, beta)
        self.register_parameter("belief_weight", None)
        self.register_parameter("belief_bias", None)
        if belief == "learned":
            self.belief_weight = nn.Parameter(torch.empty_like(self.weight))
            self.belief_bias = nn.Parameter(self.weight.new_empty(out_features))
            self._start_belief()

    @classmethod
    @document(FromLinear.from_linear)
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """Makes a layer of a linear layer, whose weight and bias it takes: the parameters themselves, not copies.

        A learned belief starts from them. What was tied to them stays tied, and an optimizer that has them goes on. No
        random number is drawn from torch's global generators.

        Args:
            {linear}
            **options: further arguments of the class, by name; sizes, bias, device and type are those of ``linear``.

        Returns:
            {Returns}

        Raises:
            {TypeError}
            {ValueError}
        """
        made = super().from_linear(linear, **options)
        if made.belief_weight is not None:
            made._start_belief()
        return made

    def reset_parameters(self) -> None:
        """Draws initial weights as :class:`torch.nn.Linear` does; a learned belief starts from them."""
        super().reset_parameters()
        if self._parameters.get("belief_weight") is not None:  # not yet when torch's constructor calls
            self._start_belief()

    @torch.no_grad()
    def _start_belief(self) -> None:
        """What the shared belief would be."""
        self.belief_weight.copy_(self.alpha * self.weight)
        self.belief_bias.copy_(self.beta if self.bias is None else self.alpha * self.bias + self.beta)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.belief == "learned" and f"{prefix}weight" in state_dict and f"{prefix}belief_weight" not in state_dict:
            weight, bias = state_dict[f"{prefix}weight"], state_dict.get(f"{prefix}bias")
            start = {f"{prefix}belief_weight": self.alpha * weight,
                     f"{prefix}belief_bias": weight.new_full((self.out_features,), self.beta) if bias is None
                     else self.alpha * bias + self.beta}
            state_dict.update(start)
            super()._load_from_state_dict(state_dict, prefix, *arguments)
            for belief in start:
                del state_dict[belief]
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """{shown}"""
        name = "" if isinstance(self.activation, nn.Module) else f", activation={_name(self.activation)}"
        return f"{super().extra_repr()}{name}, alpha={self.alpha}, beta={self.beta}, belief={self.belief!r}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Drops units in training and scales them by their keep probability in evaluation. {call}"""
        return standout_linear(
            input, self.weight, self.bias, self.training, activation=self.activation, alpha=self.alpha, beta=self.beta,
            belief_weight=self.belief_weight, belief_bias=self.belief_bias, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _mask(input, self.weight, self.bias, self.alpha, self.beta, self.belief_weight, self.belief_bias,
                     generator=generator)

    def keep_probability(self, input: Tensor) -> Tensor:
        """The probability with which each unit is kept, given the layer's input. {moment}"""
        return torch.sigmoid(self._pre_activation_and_logit(input)[1])

    def _pre_activation_and_logit(self, input: Tensor) -> tuple[Tensor, Tensor]:
        require_features(input, self.weight)
        pre_activation = F.linear(input, self.weight, self.bias)
        return pre_activation, _logit(input, pre_activation, self.alpha, self.beta, self.belief_weight,
                                      self.belief_bias)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: activation times keep probability. {moment}"""
        pre_activation, logit = self._pre_activation_and_logit(input)
        return torch.sigmoid(logit) * self.activation(pre_activation)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}: that of a coin with the keep probability. {moment}"""
        pre_activation, logit = self._pre_activation_and_logit(input)
        output = self.activation(pre_activation)
        # Not 1 - probability, of which half precision leaves nothing; and a square could overflow.
        return (torch.sigmoid(logit) * output) * (torch.sigmoid(-logit) * output)


def _name(activation: Callable[[Tensor], Tensor]) -> str:
    return getattr(activation, "__name__", repr(activation))
