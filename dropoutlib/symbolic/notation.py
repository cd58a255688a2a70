"""Textbook notation: signs, factors and printing."""

from __future__ import annotations

from typing import Any

from sympy import (
    Derivative,
    Dummy,
    Indexed,
    Integral,
    KroneckerDelta,
    Limit,
    Mul,
    Pow,
    Product,
    S,
    Sum,
    Symbol,
    Tuple,
    exp,
    factor,
    fraction,
    sympify,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter
from sympy.stats import Covariance, Expectation, Variance

__all__ = ["MOMENTS", "VARYING", "latex", "plain", "textbook"]


MOMENTS = (Expectation, Variance, Covariance)
BINDERS = (ExprWithLimits, Derivative, Limit, *MOMENTS)
VARYING = (Indexed, KroneckerDelta, Sum, Product, *MOMENTS)     # what is not a mere coefficient


def textbook(expression: Any) -> Any:
    """Factor with the signs of a textbook: p/(1 - p), never -p/(p - 1).

    Args:
        expression: A SymPy expression, usually a coefficient such as a variance or a cumulant.

    Returns:
        An equal expression, factored; factors such as ``p - 1`` are turned to ``1 - p``.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import textbook
    >>> p = symbols("p")
    >>> textbook(-p / (p - 1)), textbook(p - p**2), textbook(p*(p - 1)*(1 - 2*p))
    (p/(1 - p), p*(1 - p), p*(1 - p)*(2*p - 1))
    """
    expression = sympify(expression)
    # factor() would pull (-1)^T out of (1 - p)^T, and a factor with the index of a sum out of the sum: hide
    # both, and exponentials, which it takes for high powers of e
    hidden = {part: Dummy() for part in sorted(_opaque(expression), key=str)}
    factored = factor(expression.xreplace(hidden)).xreplace({d: power for power, d in hidden.items()})
    factors: list[Any] = []
    sign, can_flip_back = S.One, []
    for part in Mul.make_args(factored):
        base, exponent = part.as_base_exp()
        if base.is_Add and exponent.is_Integer and base.as_coeff_Add()[0].is_negative:
            sign, part = sign * (-1) ** exponent, (-base) ** exponent
            leading_coefficients = [abs(term.as_coeff_Mul()[0]) for term in base.args]
            if exponent.is_odd and any(c != 1 for c in leading_coefficients):
                can_flip_back.append(len(factors))
        factors.append(part)
    total = Mul(sign, *factors)
    if can_flip_back and total.could_extract_minus_sign():      # -(1 - 2p) reads better as 2p - 1
        index = can_flip_back[0]
        base, exponent = factors[index].as_base_exp()
        factors[index] = (-base) ** exponent
        sign = -sign
        total = Mul(sign, *factors)
    if total.is_Add and len(factors) > 1:
        return Mul(sign * factors[0], *factors[1:], evaluate=False)     # 2(1 - p), which SymPy would distribute
    return total


def _opaque(expression: Any) -> set[Any]:
    """Parts that a factorisation must not look into."""
    if isinstance(expression, (exp, *BINDERS)) or (isinstance(expression, Pow) and not expression.exp.is_Integer):
        return {expression}
    return set().union(*(_opaque(part) for part in expression.args))


def _letters(e: Any) -> set[Any]:
    """What has a meaning of its own up to the end of a sum, product, limit or derivative."""
    if isinstance(e, Sum | Product):
        return set(e.bound_symbols)
    if isinstance(e, Limit):
        return {e.args[1]}
    return {v.base.label if v.is_Indexed else v for v in e.variables} if isinstance(e, Derivative) else set()


def _positive_first(terms: list[Any]) -> list[Any]:
    """n - i, not -i + n: begin a sum with its first positive term."""
    if terms and terms[0].could_extract_minus_sign():
        for position, term in enumerate(terms):
            if not term.could_extract_minus_sign():
                return [term, *terms[:position], *terms[position + 1:]]
    return terms


class _Latex(LatexPrinter):  # type: ignore[misc]
    def _as_ordered_terms(self, expr: Any, order: Any = None) -> list[Any]:
        return _positive_first(list(super()._as_ordered_terms(expr, order)))

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:
        r"""\alpha' of the name alpha', whose letter sympy does not see before the dash."""
        name = expr.name.rstrip("'")
        dashes = expr.name[len(name):]
        return str(super()._print_Symbol(Symbol(name) if dashes else expr, style)) + dashes

    def _print_Mul(self, expr: Any) -> str:
        r"""\frac{p}{1-p} \sum ..., not one fraction with the sum in its numerator."""
        if expr.has(Derivative, Limit, Integral):
            return str(super()._print_Mul(expr))
        coefficient, rest = expr.as_independent(*VARYING, as_Add=False)
        numerator, denominator = fraction(coefficient)
        if rest == 1 or numerator in (1, -1) or denominator.is_Number or fraction(rest)[1] != 1:
            return str(super()._print_Mul(expr))
        shown = self._print(rest)
        bracket = rest.is_Add or shown.lstrip().startswith("-")
        return f"{self._print(coefficient)} " + (rf"\left({shown}\right)" if bracket else shown)

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        """Brackets where a sum, a limit or a derivative would seem to go on: its letter stands in a term behind it."""
        terms = self._as_ordered_terms(expr, order)
        text = ""
        for position, term in enumerate(terms):
            is_minus = position > 0 and term.could_extract_minus_sign()
            term = -term if is_minus else term
            shown, behind = self._print(term), Tuple(*terms[position + 1:]).free_symbols
            if self._needs_add_brackets(term) or any(behind & _letters(part) for part in Mul.make_args(term)):
                shown = rf"\left({shown}\right)"
            text += (" - " if is_minus else " + " if position else "") + shown
        return text

    def _needs_mul_brackets(self, expr: Any, first: bool = False, last: bool = False) -> bool:
        """A derivative or a limit in front of a factor would seem to be one of their product, a minus a difference."""
        return (isinstance(expr, Derivative | Limit) and not last) or bool(
            super()._needs_mul_brackets(expr, first, last)) or (
            expr.is_Mul and not first and self._print(expr).lstrip().startswith("-"))

    def _print_KroneckerDelta(self, expr: Any, exp: Any = None) -> str:
        i, j = (self._print(index) for index in expr.args[:2])
        simple = expr.args[0].is_Atom and expr.args[1].is_Atom
        delta = rf"\delta_{{{i} {j}}}" if simple else rf"\delta_{{{i},{j}}}"
        return delta if exp is None else rf"{delta}^{{{exp}}}"


class _Plain(StrPrinter):  # type: ignore[misc]
    def _as_ordered_terms(self, expr: Any, order: Any = None) -> list[Any]:
        return _positive_first(list(super()._as_ordered_terms(expr, order)))


def latex(expression: Any) -> str:
    r"""LaTeX as a book sets it: \frac{p}{1-p} before a sum, \delta_{jk}, n - i."""
    return str(_Latex().doprint(expression))


def plain(expression: Any) -> str:
    """The same in plain text."""
    return str(_Plain().doprint(expression))
