"""Concrete dropout: the probability of dropping is learned through a relaxed mask."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import (
    applies_noise,
    noise_pair,
    positive,
    real,
    require_broadcastable,
    require_images,
    require_one_size,
    unchanged,
)
from ..divergence import gathered
from ..layer import NoisyLayer, draws
from ..learned_rate import logit_of, one_number_in_a_row, set_rate, shown_rate
from ..methods import describe
from ..noise import Uniform

__all__ = ["ConcreteDropout", "ConcreteDropout2d", "WrapperNoise", "concrete_dropout", "concrete_dropout2d"]

_MAPS = (-2, -1)  # axes along which the maps share one draw
_WRAPPER = {"Returns": "Tensor: what the module makes of it.", "refused": "{pair} Refused in evaluation.",
            "pair": "Where ``module`` is noisy itself, a pair of these and of what the module takes."}


class WrapperNoise(NamedTuple):
    """What a layer draws that wraps another layer with noise.

    Attributes:
        own: the layer's own noise; None where it is in evaluation.
        module: what the wrapped layer draws; None likewise.
    """

    own: Tensor | None
    module: Any


def _uniform(input: Tensor, shared: tuple[int, ...] = (), *, generator: torch.Generator | None) -> Tensor:
    (require_images if shared else require_one_size)(input)
    return Uniform().sample(input, shared=shared, generator=generator)


@draws(_uniform)
@describe("concrete_dropout")
def concrete_dropout(input: Tensor, p_logit: Tensor | float, temperature: float = 0.1, training: bool = True, *,
                     noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Multiplies by a relaxed mask, differentiable in the probability of dropping.

    See :class:`~dropoutlib.ConcreteDropout`.

    Args:
        input: floating point tensor of any shape.
        p_logit: log(p/(1 - p)), finite: a number, or a tensor that broadcasts to the input.
        temperature: of the relaxation, positive.
        {training}
        noise: numbers between 0 and 1 that replace the uniform draw, of a shape that broadcasts to ``input``.
        {generator}

    Returns:
        Tensor of the shape and dtype of ``input``.

    Raises:
        ValueError: if ``temperature`` is not positive, if ``p_logit`` or ``noise`` does not broadcast to ``input``, if
            ``noise`` is not between 0 and 1, or is given while ``training`` is False.
        {bad_input} {no_tensor}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> uniform = torch.tensor([0.3, 0.5, 0.7])  # at p = 1/2, above 1/2 is dropped
        >>> functional.concrete_dropout(torch.ones(3), torch.tensor(0.0), noise=uniform).round(decimals=3)
        tensor([2., 1., 0.])
    """
    return _relax(input, p_logit, temperature, training, (), noise=noise, generator=generator)


@draws(partial(_uniform, shared=_MAPS))
@describe("concrete_dropout", concrete_dropout)
def concrete_dropout2d(input: Tensor, p_logit: Tensor | float, temperature: float = 0.1, training: bool = True, *,
                       noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """As :func:`concrete_dropout`, with one draw for every feature map.

    See :class:`~dropoutlib.ConcreteDropout2d`.

    Args:
        {images} {p_logit} {temperature} {training}
        noise: numbers between 0 and 1 that replace the uniform draw, of shape ``(N, C, 1, 1)`` or ``(C, 1, 1)``.
        {generator}

    Returns:
        {Returns}

    Raises:
        {ValueError}
        RuntimeError: if the input has neither 3 nor 4 axes, or holds integers or booleans, or {bad_generator}.
        {TypeError}

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> uniform = torch.tensor([0.9, 0.1]).reshape(2, 1, 1)  # drops the first map, keeps the second
        >>> output = functional.concrete_dropout2d(torch.ones(2, 4, 4), torch.tensor(0.0), noise=uniform)
        >>> output.mean((1, 2)).round(decimals=3)
        tensor([0., 2.])
    """
    require_images(input)
    return _relax(input, p_logit, temperature, training, _MAPS, noise=noise, generator=generator)


def _relax(input: Tensor, p_logit: Tensor | float, temperature: float, training: bool, shared: tuple[int, ...], *,
           noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    positive("temperature", temperature)
    if not applies_noise(training, noise):
        return unchanged(input)
    require_one_size(input)
    uniform = Uniform().sample(input, shared=shared, noise=noise, generator=generator)
    number = p_logit if isinstance(p_logit, Tensor) else real("p_logit", p_logit)
    logit = torch.as_tensor(number, dtype=uniform.dtype, device=uniform.device)
    require_broadcastable("p_logit", logit, input.shape, "input")
    # (1 - z)/(1 - p) = (1 - z)(1 + exp(logit p)): nothing cancels, and neither u = 0 or 1 nor p near 1 gives a nan
    log_keep = F.logsigmoid(-(logit + torch.logit(uniform)) / temperature)
    return input * (log_keep.exp() + (logit + log_keep).exp()).to(input.dtype)


def _inputs(module: Any) -> int | None:
    """Number of inputs, each with a mask of its own."""
    inputs: Any = getattr(module, "in_features", getattr(module, "in_channels", None))
    return inputs if isinstance(inputs, int) else None


@describe("concrete_dropout", concrete_dropout, like=None, **_WRAPPER)
class ConcreteDropout(NoisyLayer):
    r"""Drops inputs of a module, and learns how often.

    In training the input x of ``module`` becomes :math:`x \frac{1 - z}{1 - p}`, with the relaxed drop mask
    :math:`z = \sigma\big(\tfrac1t [\log\tfrac{p}{1-p} + \log\tfrac{u}{1-u}]\big)` between 0 and 1, u uniform and t the
    temperature. :math:`z > 1/2` has the probability p at every temperature; for t to 0, z is a Bernoulli mask. In
    evaluation the module sees its input as it is.

    {four_answers}

    p is learned as its logit, ``p_logit``, by the gradient of the loss. The loss is the mean negative log-likelihood
    plus ``kl_divergence(model) / N``, with N training examples. For a loss that is *twice* the negative log-likelihood,
    as the authors' for regression (``((y - mean)**2 / variance + log(variance)).mean()``), add twice as much.
    Keep ``p_logit`` out of an optimizer's weight decay, which would pull p to 1/2. A trained layer can be wrapped; code
    that reads its ``weight``, and names of its state, then go through ``module``.

    The mean of the factor is not exactly 1, and its moments have no closed form, so there is no ``mean()`` and
    ``variance()``: the test rule is the layer's mean in the limit of temperature 0. At 0.1 it is off by at most
    0.21 percent for p up to 1/2, which the chapter measures.

    Args:
        module: sees the masked input: a :class:`torch.nn.Linear` or a convolution, which may be noisy itself.
        p: where the probability of dropping starts, between 0 and 1, both excluded.
        temperature: of the relaxation. Lower is closer to a Bernoulli mask, with a noisier gradient of p.
        length_scale: l of the prior :math:`\mathcal N(0, l^{-2})` of every weight.

    Shape:
        Input of any shape that ``module`` takes. {given} {pair}

    Raises:
        TypeError: if ``module`` is no linear or convolutional layer with a real weight, or another argument no real
            number.
        ValueError: {bad_p}, or is one of them; if ``temperature`` or ``length_scale`` is not
            positive.

    Source:
        Gal, Hron and Kendall, *Concrete Dropout* (2017), sections 3 and 4.1.

    Example:
        >>> import torch
        >>> from dropoutlib import ConcreteDropout, kl_divergence
        >>> model = torch.nn.Sequential(
        ...     ConcreteDropout(torch.nn.Linear(10, 20)), torch.nn.ReLU(), ConcreteDropout(torch.nn.Linear(20, 1)))
        >>> x, y = torch.randn(32, 10), torch.randn(32, 1)
        >>> loss = (model(x) - y).square().mean() / 2 + kl_divergence(model) / 500  # 500 training examples
        >>> loss.backward()
        >>> model[0].p
        tensor(0.1000, grad_fn=<SigmoidBackward0>)
    """

    def __init__(self, module: nn.Module, p: float = 0.1, temperature: float = 0.1, length_scale: float = 1.0) -> None:
        super().__init__()
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Module) or not isinstance(weight, Tensor) or _inputs(module) is None:
            raise TypeError("module has to be a linear or convolutional layer, with a weight and in_features or "
                            f"in_channels, but got {type(module).__name__}: wrap the layers of a Sequential one by one")
        if weight.dtype.is_complex:
            raise TypeError(f"module has to have a real weight, whose divergence is known, but got {weight.dtype}")
        self._start = logit_of(p)
        self.module = module
        self.temperature = positive("temperature", temperature)
        self.length_scale = positive("length_scale", length_scale)
        self.p_logit = nn.Parameter(torch.full((1,), self._start, device=weight.device, dtype=weight.dtype))

    _shared: tuple[int, ...] = ()

    def reset_parameters(self) -> None:
        """Sets p to where it starts; the module has a method of this name for its own parameters."""
        nn.init.constant_(self.p_logit, self._start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        with one_number_in_a_row(state_dict, f"{prefix}p_logit"):
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """{shown}"""
        own = f"temperature={self.temperature}, length_scale={self.length_scale}"
        return ", ".join(filter(None, [shown_rate(self.p_logit), own]))

    @property
    def p(self) -> Tensor:
        """The probability of dropping. Assign a number to set it."""
        return torch.sigmoid(gathered(self.p_logit).squeeze(0))

    @p.setter
    def p(self, p: float) -> None:
        set_rate(self, "p_logit", p)

    def forward(self, input: Tensor, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Applies the module to the masked input in training, to the input in evaluation. {call}"""
        output: Tensor
        if isinstance(self.module, NoisyLayer):
            parts = f"that of the layer and that of the {type(self.module).__name__} in it"
            own, inner = (None, None) if noise is None else noise_pair(noise, parts)
            output = self.module(self._masked(input, own, generator), noise=inner, generator=generator)
        else:
            output = self.module(self._masked(input, noise, generator))
        return output

    def _masked(self, input: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        return concrete_dropout(input, self.p_logit, self.temperature, self.training, noise=noise, generator=generator)

    def _is_noisy(self) -> bool:
        return self.training or (isinstance(self.module, NoisyLayer) and self.module._is_noisy())

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Any:
        own = _uniform(input, self._shared, generator=generator) if self.training else None
        if not isinstance(self.module, NoisyLayer):
            return own
        masked = self._masked(input, own, None)
        return WrapperNoise(own, self.module.draw(masked, generator=generator) if self.module._is_noisy() else None)

    def kl(self) -> Tensor:
        r"""Approximate divergence from the prior, up to a constant: :math:`\frac{l^2}{2(1-p)} \|W\|_F^2 - n H(p)`.

        W is the module's weight, as it is used, and n the number of its inputs, one mask each. H is the entropy of a
        coin, computed from the logit, so that its value and gradient stay finite for any p. The approximation is one
        for weights that are not close to zero. Divided by nothing. The bias
        is not dropped and does not count; the authors' code for PyTorch counts it.

        Returns:
            Tensor: a number, differentiable in ``p_logit`` and the weight; float32 for layers of half precision, where
            the sum would overflow.
        """
        given: Any = self.module.weight
        weight, logit = (part if part.dtype == torch.float64 else part.float()
                         for part in (gathered(given), gathered(self.p_logit).squeeze(0)))
        entropy = F.softplus(logit) - logit * torch.sigmoid(logit)
        squares = weight.square().sum() * (1 + logit.exp())  # 1/(1 - p)
        return positive("length_scale", self.length_scale) ** 2 / 2 * squares - (_inputs(self.module) or 0) * entropy


@describe("concrete_dropout", concrete_dropout2d, ConcreteDropout, like=None, **_WRAPPER)
class ConcreteDropout2d(ConcreteDropout):
    """As :class:`ConcreteDropout`, with one draw for every feature map of an image.

    {four_answers}

    Args:
        module: sees the masked input: a :class:`torch.nn.Conv2d`, say.
        p: where the probability of dropping a map starts, between 0 and 1, both excluded.
        {temperature} {length_scale}

    Shape:
        Input ``(N, C, H, W)`` or ``(C, H, W)``. {given} {pair}

    Raises:
        TypeError: if ``module`` is no convolution of images, or another argument no real number.
        {ValueError}

    Source:
        Gal, Hron and Kendall, *Concrete Dropout* (2017), and its code for convolutions.

    Example:
        >>> import torch
        >>> from dropoutlib import ConcreteDropout2d
        >>> layer = ConcreteDropout2d(torch.nn.Conv2d(3, 8, 3))
        >>> layer(torch.rand(2, 3, 10, 10)).shape
        torch.Size([2, 8, 8, 8])
    """

    _shared = _MAPS

    def __init__(self, module: nn.Module, p: float = 0.1, temperature: float = 0.1, length_scale: float = 1.0) -> None:
        super().__init__(module, p, temperature, length_scale)
        if (axes := getattr(module, "weight").dim()) != 4:  # noqa: B009  (its type is not known)
            raise TypeError("module has to be a convolution of images, whose weight has 4 axes, but got "
                            f"{type(module).__name__}, whose weight has {axes}: ConcreteDropout takes any of them")

    def forward(self, input: Tensor, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Applies the module to the masked maps in training, to the maps in evaluation. {call}"""
        return super().forward(input, noise=noise, generator=generator)

    def _masked(self, input: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        return concrete_dropout2d(input, self.p_logit, self.temperature, self.training, noise=noise,
                                  generator=generator)
