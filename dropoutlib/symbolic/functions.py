"""The standard normal density and distribution function, as SymPy functions that print as in a book."""

from __future__ import annotations

from typing import Any

from sympy import Function, S, erf, exp, oo, pi, sqrt

__all__ = ["Phi", "phi"]


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
