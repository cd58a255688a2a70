"""Log-normal dropout, or structured Bayesian pruning: units with learned noise, and without those that it drowns."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..arguments import applies_noise, is_eager, one_of, positive_integer, real, require_one_size
from ..layer import NoisyLayer, draws
from ..learned_rate import clamped, wide
from ..methods import describe
from ..moments import _normal_cdf, _quadrature
from ..noise import Uniform, noise_variance, select

__all__ = ["LogNormalDropout", "TruncatedLogNormal", "log_normal_dropout"]

LOW, HIGH = -20.0, 0.0  # between them lies the logarithm of a factor
_MU, _LOG_S = (LOW, HIGH + 5), (-20.0, 5.0)  # where parameters may lie; beyond, they count as the bound
_REACH = 40.0  # beyond, a density has fallen by the factor exp(40): to less than the rounding of float64
_TAIL = 30.0  # standard deviations by which mu may lie above HIGH before probabilities come close to underflow
_LEGENDRE = _quadrature([k / math.sqrt(4 * k * k - 1) for k in range(1, 64)])


class TruncatedLogNormal:
    r"""The law of a factor whose logarithm is normal, with mean mu and standard deviation s, cut off at -20 and 0.

    The density of :math:`\theta` is proportional to :math:`\frac1\theta \exp\big(-\frac{(\log\theta - \mu)^2}{2 s^2}
    \big)` between :math:`e^{-20}` and 1. Its moments have closed forms in the normal distribution function; evaluated
    as they stand, they are 0/0, or the difference of two equal numbers, in much of the range of mu and s. Here they are
    sums of positive terms, by a Gauss-Legendre rule with 64 nodes where the density, or its square moment, is not
    negligible. Everything is computed in float64.

    Args:
        mu: of any shape, from -20 to 5; beyond, it counts as the bound. Gradients still reach it, as they are at the
            bound, so that it can come back.
        log_s: log(s), of the same shape, from -20 to 5, likewise.

    Attributes:
        mu: within its bounds, float64.
        s: likewise.

    Raises:
        RuntimeError: at the first question, if the shapes do not fit each other.

    Source:
        Neklyudov et al., *Structured Bayesian Pruning via Log-Normal Multiplicative Noise* (2017), section 3.

    Example:
        >>> import torch
        >>> from dropoutlib.bayesian.log_normal_dropout import TruncatedLogNormal
        >>> law = TruncatedLogNormal(torch.tensor([-1.0, 5.0, 0.0]), torch.tensor([-20.0, 0.0, 5.0]))
        >>> law.mean.float(), law.snr.float()
        (tensor([0.3679, 0.8422, 0.0501]), tensor([4.8517e+08, 6.3851e+00, 3.3388e-01]))
    """

    def __init__(self, mu: Tensor, log_s: Tensor) -> None:
        self.mu = clamped(mu.double(), *_MU)
        self.s = clamped(log_s.double(), *_LOG_S).exp()
        self._peak = self.mu.detach().clamp(max=HIGH)  # where the density of the logarithm is largest

    def _rule(self) -> tuple[Tensor, Tensor]:
        """Nodes, as log(theta) - peak along a new first axis, and logarithms of the weights of the rule."""
        s, peak = self.s.detach(), self._peak
        beyond = self.mu.detach() - peak
        # What has fallen by exp(-reach): the root of r^2/2 + r beyond/s = reach, times s.
        below = 2 * _REACH * s / (beyond / s + ((beyond / s) ** 2 + 2 * _REACH).sqrt())
        bottom = (-below).maximum(LOW - peak)
        # The integrand of the second moment has its peak at mu + 2 s^2.
        top = (2 * s.square() + math.sqrt(2 * _REACH) * s).minimum(HIGH - peak)
        place, weight = (s.new_tensor(column).view(-1, *[1] * s.dim()) for column in zip(*_LEGENDRE, strict=True))
        length = top - bottom
        return bottom + length * (1 + place) / 2, weight.log() + length.log()

    def _weighted(self) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes, the log density at each, up to the one of the peak, and the probability that it stands for."""
        place, log_weight = self._rule()
        ratio = place / self.s
        log_density = -ratio * (ratio / 2 + (self._peak - self.mu) / self.s)
        return place, log_density, log_density + log_weight

    def kl(self) -> Tensor:
        """Divergence from the log-uniform prior, whose logarithm is uniform between -20 and 0: a proper law.

        Returns:
            Tensor: of the shape of the parameters.
        """
        _, log_density, log_share = self._weighted()
        relative = (torch.softmax(log_share, 0) * log_density).sum(0)
        return relative - log_share.logsumexp(0) + math.log(HIGH - LOW)

    def _relative_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of theta/exp(peak)."""
        place, _, log_share = self._weighted()
        share = torch.softmax(log_share, 0)
        rise = place.expm1()  # from here on nothing cancels, however small s is
        mean = (share * rise).sum(0)
        return 1 + mean, (share * (rise - mean).square()).sum(0).sqrt()

    @property
    def mean(self) -> Tensor:
        """Mean of the factor, less than 1."""
        return self._peak.exp() * self._relative_moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of the factor."""
        return (self._peak.exp() * self._relative_moments()[1]).square()

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio, the mean divided by the standard deviation."""
        mean, deviation = self._relative_moments()
        return mean / deviation

    def factor(self, uniform: Tensor) -> Tensor:
        """The factor below which a given share of the law lies: a draw, where the share is one.

        Differentiable in the parameters. In both tails of the normal law it is as precise as in the middle.

        Args:
            uniform: numbers between 0 and 1, of a shape that broadcasts with that of the parameters. 0 and 1 count as
                the last numbers between them that such a draw can tell from them.

        Returns:
            Tensor: from e^-20 to 1.
        """
        rounding = torch.finfo(uniform.dtype).eps
        share = uniform.clamp(rounding / 4, 1 - rounding / 2).to(self.mu.dtype)
        lower, upper = (LOW - self.mu) / self.s, (HIGH - self.mu) / self.s
        logarithm = self.mu + self.s * _quantile(lower, upper.clamp(min=-_TAIL), share)
        beyond = upper < -_TAIL
        if not (is_eager(beyond) and beyond.is_cpu) or beyond.any():
            tail = HIGH - self.s * _tail_quantile((-upper).clamp(min=_TAIL), share)
            logarithm = torch.where(beyond, tail, logarithm)
        return clamped(logarithm, LOW, HIGH).exp()


def _quantile(lower: Tensor, upper: Tensor, share: Tensor) -> Tensor:
    """Of a standard normal number between two bounds, of the smaller of its two tails."""
    below = (1 - share) * _normal_cdf(lower) + share * _normal_cdf(upper)
    above = (1 - share) * _normal_cdf(-lower) + share * _normal_cdf(-upper)
    smaller = below < above  # not minimum(), whose gradient is divided where both are equal
    return torch.where(smaller, 1.0, -1.0) * torch.special.ndtri(torch.where(smaller, below, above))


def _tail_quantile(start: Tensor, share: Tensor) -> Tensor:
    """How far a standard normal number above ``start`` lies above it, where ``share`` is the probability of more.

    The lower bound of the factor is then too far away to count. The logarithm of the probability is concave, so
    Newton's steps converge from where the density alone has fallen by the share; each doubles the number of correct
    digits, of the value and of its derivatives.
    """
    logarithm = share.log()
    beyond = -2 * logarithm / (start + (start.square() - 2 * logarithm).sqrt())
    mills = torch.special.erfcx(start * math.sqrt(0.5))
    for _ in range(2):
        mills_beyond = torch.special.erfcx((start + beyond) * math.sqrt(0.5))
        excess = (mills_beyond / mills).log() - beyond * (start + beyond / 2) - logarithm
        beyond = beyond + excess * mills_beyond * math.sqrt(math.pi / 2)
    return beyond


def _check(input: Tensor, mu: Tensor, log_s: Tensor, sharing: str) -> None:
    one_of("sharing", sharing, ("sample", "batch"))
    require_one_size(input)
    for name, parameter in (("mu", mu), ("log_s", log_s)):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{name} has to be a tensor with a number for each unit, but got {parameter!r}")
    if mu.dim() != 1 or mu.shape != log_s.shape:
        raise RuntimeError("mu and log_s have to be of one shape, (num_features,), "
                           f"but got {tuple(mu.shape)} and {tuple(log_s.shape)}")
    if input.dim() < 2 or input.shape[1] != len(mu):
        raise RuntimeError(f"input has to be of shape (N, {len(mu)}, ...), with {len(mu)} units along the second axis, "
                           f"but got the shape {tuple(input.shape)}")


def _at_least_zero(threshold: float) -> float:
    number = real("threshold", threshold)
    if not number >= 0:  # nor nan
        raise ValueError(f"threshold has to be at least 0, but got {threshold}")
    return number


def _law(input: Tensor, mu: Tensor, log_s: Tensor) -> TruncatedLogNormal:
    """The law of the factors, of a shape that broadcasts to the input."""
    ones = [1] * (input.dim() - 2)
    return TruncatedLogNormal(mu.view(-1, *ones), log_s.view(-1, *ones))


def _uniform(input: Tensor, mu: Tensor, log_s: Tensor, sharing: str, *, noise: Tensor | None = None,
             generator: torch.Generator | None) -> Tensor:
    _check(input, mu, log_s, sharing)
    shared = tuple(range(2, input.dim()))
    return Uniform().sample(input, shared=shared if sharing == "sample" else (0, *shared), noise=noise,
                            generator=generator)


@draws(_uniform)
@describe("log_normal_dropout")
def log_normal_dropout(input: Tensor, mu: Tensor, log_s: Tensor, threshold: float = 1.0,
                       sharing: Literal["sample", "batch"] = "sample", training: bool = True, *,
                       noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Multiplies units by truncated log-normal factors, differentiable in their parameters.

    See :class:`~dropoutlib.LogNormalDropout`.

    Args:
        input: floating point or complex tensor of shape ``(N, num_features, ...)``.
        mu: mean of the logarithm before it is cut off, of shape ``(num_features,)``.
        log_s: logarithm of its standard deviation, of the same shape.
        threshold: signal-to-noise ratio below which a unit is 0 outside of training.
        sharing: ``"sample"``: one factor for each unit of each example; ``"batch"``: one for each unit.
        training: whether noise is applied; if not, its mean is, or 0.
        noise: numbers between 0 and 1 that replace the uniform draw, of shape ``(N, num_features, 1, ...)``, or
            ``(1, num_features, 1, ...)`` for the sharing ``"batch"``, or of one that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if ``sharing`` is neither, if ``threshold`` is negative, or if ``noise`` does not broadcast to the
            draw, is not between 0 and 1, or is given while ``training`` is False.
        RuntimeError: if shapes do not fit, if the input holds integers or booleans, or {bad_generator}.
        TypeError: if the input, ``mu`` or ``log_s`` is not a tensor.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> mu, log_s = torch.tensor([-0.1, -3.0]), torch.tensor([-2.0, 1.0])
        >>> functional.log_normal_dropout(torch.ones(1, 2), mu, log_s, noise=torch.tensor([0.5, 0.5]))
        tensor([[0.8697, 0.0314]])
        >>> functional.log_normal_dropout(torch.ones(1, 2), mu, log_s, training=False)
        tensor([[0.8621, 0.0000]])
    """
    _at_least_zero(threshold)
    if not applies_noise(training, noise):
        _check(input, mu, log_s, sharing)
        law = _law(input, mu, log_s)
        return select(input, _kept(law, threshold)) * law.mean.to(_real(input))
    uniform = _uniform(input, mu, log_s, sharing, noise=noise, generator=generator)
    return input * _law(input, mu, log_s).factor(uniform).to(_real(input))


def _kept(law: TruncatedLogNormal, threshold: float) -> Tensor:
    return ~(law.snr < threshold)  # what is nan is kept, so that it is seen


def _real(input: Tensor) -> torch.dtype:
    return input.real.dtype if input.is_complex() else input.dtype


@describe("log_normal_dropout", log_normal_dropout)
class LogNormalDropout(NoisyLayer):
    r"""Multiplies units by noise that is learned, and drops those of which the noise is larger than the signal.

    In training the unit, or channel, i is multiplied by a factor :math:`\theta_i` between :math:`e^{-20}` and 1 whose
    logarithm is normal with mean :math:`\mu_i` and standard deviation :math:`s_i`, cut off at -20 and 0. In evaluation
    it is multiplied by the mean of the factor, or set to 0 where the signal-to-noise ratio (the mean divided by the
    standard deviation) is below ``threshold``. The mean is less than 1 always.

    {four_answers}

    The loss is the mean negative log-likelihood plus ``kl_divergence(model) / N``, N the number of training examples:
    the divergence pushes the noise of every unit up. ``mu`` and ``log_s`` are parameters, one number a unit, starting
    at 0 and -5, where the noise is next to nothing (mean 0.995, ratio 247), so that a trained network can go on. They
    count as the nearest number in [-20, 5] where they lie beyond. Keep them out of an optimizer's weight decay. Place
    the layer behind a linear layer or a convolution, or behind its activation; where a unit is 0 all that reads it can
    be cut: :func:`~dropoutlib.compress`.

    Args:
        num_features: number of units, or of channels: the size of the second axis of the input.
        {threshold} {sharing}
        {device} {dtype}

    Shape:
        Input ``(N, num_features, ...)``; the output has the same one. {given}

    Raises:
        ValueError: if ``num_features`` is below 1, ``threshold`` negative, or ``sharing`` neither.
        TypeError: if ``num_features`` is no whole number, or ``threshold`` no real one.

    Source:
        Neklyudov, Molchanov, Ashukha and Vetrov, *Structured Bayesian Pruning via Log-Normal Multiplicative Noise*
        (2017), section 3.

    Example:
        >>> import torch
        >>> from dropoutlib import LogNormalDropout
        >>> layer = LogNormalDropout(3)
        >>> with torch.no_grad():
        ...     _ = layer.log_s.copy_(torch.tensor([-5.0, 0.0, 5.0]))
        >>> layer.snr, layer.kept
        (tensor([246.6992,   2.0924,   0.3339], grad_fn=<ToCopyBackward0>), tensor([ True,  True, False]))
        >>> layer.eval()(torch.ones(1, 3))
        tensor([[0.9946, 0.5232, 0.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(self, num_features: int, threshold: float = 1.0, sharing: Literal["sample", "batch"] = "sample", *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.num_features = positive_integer("num_features", num_features)
        self.threshold = _at_least_zero(threshold)
        one_of("sharing", sharing, ("sample", "batch"))
        self.sharing: Literal["sample", "batch"] = sharing
        self.mu, self.log_s = (nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the noise to where it starts."""
        nn.init.constant_(self.mu, 0.0)
        nn.init.constant_(self.log_s, -5.0)

    def extra_repr(self) -> str:
        """{shown}"""
        kept = f", kept={int(self.kept.sum())}" if is_eager(self.mu) else ""
        return f"{self.num_features}, threshold={self.threshold}, sharing={self.sharing!r}{kept}"

    def _law(self) -> TruncatedLogNormal:
        return TruncatedLogNormal(wide(self.mu), wide(self.log_s))

    def _own(self, number: Tensor) -> Tensor:
        """Numbers of the units in the type of the parameters, float32 for those of half precision."""
        return number.to(torch.promote_types(self.mu.dtype, torch.float32))

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of every unit, the mean of its factor divided by the standard deviation."""
        return self._own(self._law().snr)

    @property
    def kept(self) -> Tensor:
        """The units that evaluation keeps, those whose signal-to-noise ratio is at least ``threshold``."""
        return _kept(self._law(), self.threshold)

    @property
    def scale(self) -> Tensor:
        """What evaluation multiplies every unit by, the mean of its factor, or 0."""
        law = self._law()
        return self._own(select(law.mean, _kept(law, self.threshold)))

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Applies noise in training, and its mean to the units that are kept in evaluation. {call}"""
        return log_normal_dropout(input, wide(self.mu), wide(self.log_s), self.threshold, self.sharing, self.training,
                                  noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _uniform(input, self.mu, self.log_s, self.sharing, generator=generator)

    def kl(self) -> Tensor:
        """Divergence of the noise from the log-uniform prior between e^-20 and 1, a proper law: a sum over the units.

        Returns:
            Tensor: a number, at least 0, differentiable in ``mu`` and ``log_s``; divided by nothing. It is float32 for
            layers of half precision, where the sum would overflow.
        """
        return self._own(self._law().kl().sum())

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}, of units that evaluation drops, too. {moment}"""
        _check(input, self.mu, self.log_s, self.sharing)
        return input * _law(input, wide(self.mu), wide(self.log_s)).mean.to(_real(input))

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}. {moment}"""
        _check(input, self.mu, self.log_s, self.sharing)
        return noise_variance(input, _law(input, wide(self.mu), wide(self.log_s)).variance)
