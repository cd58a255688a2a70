"""Means of functions of a normal variable, without integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy import Dummy, Expr, Function, S, diff, erf, exp, limit, oo, pi, simplify, sqrt
from sympy.stats import Expectation, Normal

from .proofs import Identity, Unproved

__all__ = ["Phi", "gaussian_mean", "phi"]


class phi(Function):  # type: ignore[misc]  # the name in every formula
    """The standard normal density.

    >>> from sympy import oo, symbols
    >>> from dropoutlib.symbolic import phi
    >>> x = symbols("x")
    >>> phi(x).diff(x), phi(x).limit(x, -oo), round(float(phi(0)), 4)
    (-x*phi(x), 0, 0.3989)
    """

    @classmethod
    def eval(cls, x: Any) -> Any:
        return S.Zero if x in (oo, -oo) else None

    def fdiff(self, argindex: int = 1) -> Any:
        return -self.args[0] * phi(self.args[0])

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_extended_real and self.args[0].is_finite else None

    def _eval_is_extended_real(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _eval_rewrite_as_exp(self, x: Any, **hints: Any) -> Any:
        return exp(-x**2 / 2) / sqrt(2 * pi)

    def _eval_rewrite_as_erf(self, x: Any, **hints: Any) -> Any:
        return self._eval_rewrite_as_exp(x)

    def _eval_rewrite_as_tractable(self, x: Any, limitvar: Any = None, **hints: Any) -> Any:
        return self._eval_rewrite_as_exp(x)

    def _eval_evalf(self, precision: int) -> Any:
        return self._eval_rewrite_as_exp(self.args[0])._eval_evalf(precision)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\varphi{power}\left({printer._print(self.args[0])}\right)"


class Phi(Function):  # type: ignore[misc]
    """The standard normal distribution function.

    >>> from sympy import oo, symbols
    >>> from dropoutlib.symbolic import Phi
    >>> x = symbols("x")
    >>> Phi(x).diff(x), Phi(x).limit(x, oo), Phi(0)
    (phi(x), 1, 1/2)
    """

    @classmethod
    def eval(cls, x: Any) -> Any:
        return {oo: S.One, -oo: S.Zero, S.Zero: S.Half}.get(x)

    def fdiff(self, argindex: int = 1) -> Any:
        return phi(self.args[0])

    def _eval_is_extended_real(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _eval_rewrite_as_erf(self, x: Any, **hints: Any) -> Any:
        return (1 + erf(x / sqrt(2))) / 2

    def _eval_rewrite_as_tractable(self, x: Any, limitvar: Any = None, **hints: Any) -> Any:
        return self._eval_rewrite_as_erf(x).rewrite("tractable", deep=True, limitvar=limitvar)

    def _eval_evalf(self, precision: int) -> Any:
        return self._eval_rewrite_as_erf(self.args[0])._eval_evalf(precision)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\Phi{power}\left({printer._print(self.args[0])}\right)"


def gaussian_mean(G: Expr, g: Callable[[Any], Any], mu: Any, s: Any) -> Identity:
    """Prove that G(mu, s) is the mean of g(mu + s Z), Z standard normal, without integrating.

    The mean solves the heat equation dG/ds = s d2G/dmu2 and starts from G(mu, 0) = g(mu); among functions
    that grow no faster than exp(c mu^2) nothing else does. Both are checked; the start
    by the limit s -> 0 for positive and for negative mu apart.

    Args:
        G: The claimed mean, an expression in ``mu`` and ``s``.
        g: The function, a callable such as ``lambda z: Max(0, z)``.
        mu: The symbol of the mean.
        s: The symbol of the standard deviation.

    Returns:
        The identity E g(mu + s Z) = G, to be shown.

    Raises:
        Unproved: If G does not solve the equation, or starts from another function.

    >>> from sympy import Max, symbols
    >>> from dropoutlib.symbolic import Phi, gaussian_mean, phi
    >>> mu, s = symbols("mu s", real=True)
    >>> gaussian_mean(mu*Phi(mu/s) + s*phi(mu/s), lambda z: Max(0, z), mu, s)
    Expectation(Max(0, mu + s*Z)) = mu*Phi(mu/s) + s*phi(mu/s)    [heat equation]
    """
    defect = simplify(diff(G, s) - s * diff(G, mu, 2))
    if defect != 0 and simplify(defect.rewrite(erf)) != 0:
        raise Unproved(f"dG/ds - s d2G/dmu2 is not 0 but {defect}, for G = {G}")
    for sign, name in ((1, "positive"), (-1, "negative")):
        size, width = Dummy(name, positive=True), Dummy("s", positive=True)
        start = limit(G.subs({mu: sign * size, s: width}).rewrite(erf), width, 0, "+")
        gap = simplify((start - g(sign * size)).rewrite(erf))
        if gap != 0:
            raise Unproved(f"G(mu, 0) - g(mu) is not 0 but {gap.subs(size, sign * mu)} for {name} mu, G = {G}")
    return Identity(Expectation(g(mu + s * Normal("Z", 0, 1))), G, "heat equation")
