"""Values for the reader: as a number at given values, and as a formula with every mask written out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from mpmath import mp
from sympy import Expr, IndexedBase, Symbol, expand, sympify

from .families import Noise
from .language import read
from .meaning import ROUNDING, Env, Meaning, NotPolynomial, Numbers, Polynomial, Undecided, as_float, is_exact
from .notation import plain

__all__ = ["at_scalars", "controlled", "enumerate_masks", "given_point", "number"]

DIGITS = 30


# -- numbers ------------------------------------------------------------------
def number(expression: Any, values: Mapping[Any, Any]) -> float:
    """The value of an expression: the bridge from a derivation to the library.

    Sums and products are unrolled, 1-based symbols read 0-based arrays (x[1] is the first entry), and
    E, Var and Cov that are left inside are summed over all masks. Floats count as the decimals that they print.

    Args:
        expression: A SymPy expression, such as ``derive(...).result``.
        values: From symbols, indexed bases and free indices (or their names) to numbers, nested lists, arrays
            or tensors: ``{p: 0.3, n: 4, x: x, W: layer.weight, a: 1}``.

    Raises:
        ValueError: If a value is missing (it is named), an array is too short for a sum, an index is free, or
            the result is not a real number (a division by zero, say), or a probability of a law that is
            enumerated is outside 0 to 1.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import number
    >>> p, x = symbols("p"), IndexedBase("x")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> number(p*(1 - p)*Sum(x[j]**2, (j, 1, n)), {p: 0.5, n: 2, x: [3.0, 4.0]})
    6.25
    """
    expression = sympify(expression)
    _check_language(expression)
    try:
        value = float(as_float(controlled(given_point(values), [expression], 1e-15)[0]))
    except ArithmeticError as error:
        raise ValueError(f"{plain(expression)} is not a real number{at_scalars(values)}: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"{plain(expression)} is not a real number{at_scalars(values)}: it is {value}")
    return value


@lru_cache(maxsize=256)
def _check_language(expression: Any) -> None:
    read([expression], floats=True)


def controlled(point: Numbers, expressions: Sequence[Any], tolerance: float) -> list[Any]:
    """The values at a point, worked out with more and more digits until they stay.

    Raises:
        Undecided: If they do not.
    """
    def settled(new: Any, old: Any) -> bool:        # zero is what shrinks with the rounding error
        if is_exact(new):
            return True
        new, old = as_float(new), as_float(old)
        return bool(abs(new) > 0 and (abs(new - old) <= tolerance * abs(new) or abs(new) <= abs(old) / 10**10))

    before: list[Any] = []
    for digits in (DIGITS, 2 * DIGITS, 4 * DIGITS, 8 * DIGITS):
        point.forget()
        with mp.workdps(digits):
            found = [point.value(e, {}) for e in expressions]
            if all(map(is_exact, found)) or point.used_quadrature:      # a quadrature controls itself
                return found
            if before and all(map(settled, found, before)):
                return [0 if abs(as_float(new)) < abs(as_float(old)) / 2 else new
                        for new, old in zip(found, before, strict=True)]
        before = found
    if all(value == 0 for value in before):
        return before
    raise Undecided("the value changes with the number of digits")


def at_scalars(values: Mapping[Any, Any]) -> str:
    """A point in words, without its arrays."""
    scalars = [f"{key} = {value}" for key, value in values.items() if not isinstance(_listed(value), list)]
    return f" at {', '.join(scalars)}" if scalars else ""


def given_point(values: Mapping[Any, Any]) -> Numbers:
    """The meaning of symbols and arrays at values of a caller."""
    listed = {key: _listed(value) for key, value in values.items()}
    if len({(str(key), isinstance(key, IndexedBase)) for key in listed}) < len(listed):
        raise ValueError(f"a value is given twice: {', '.join(map(str, listed))}")
    arrays = {str(key): value for key, value in listed.items() if not isinstance(key, Symbol)}
    scalars = {str(key): _scalar(key, value) for key, value in listed.items() if not isinstance(key, IndexedBase)}

    def entry(e: Any, key: tuple[Any, ...]) -> Any:
        name = str(e.base)
        if name not in arrays:
            reason = f"{name} is noise outside E, Var and Cov" if isinstance(e.base, Noise) else f"no value for {name}"
            raise ValueError(f"{reason}: give {{{name}: ...}}")
        value = arrays[name]
        for axis, position in enumerate(key[1:]):
            if not isinstance(value, list):
                raise ValueError(f"{name} has {axis} axes, but {e} has {len(e.indices)} indices")
            if not 1 <= position <= len(value):
                raise ValueError(f"{name} has {len(value)} entries along axis {axis}, but {e} is needed at "
                                 f"{position} (counted from 1)")
            value = value[position - 1]
        if isinstance(value, list):
            raise ValueError(f"{name} has more axes than {e} has indices")
        value = _scalar(name, value)
        return point.value(value, {}) if isinstance(value, Expr) else value

    point = _Given(scalars, entry, ROUNDING)
    return point


class _Given(Numbers):
    def symbol(self, e: Any) -> Any:
        if isinstance(value := super().symbol(e), list):
            raise ValueError(f"{e.name} is a scalar in the expression, got an array")
        return self.value(value, {}) if isinstance(value, Expr) else value


def _listed(value: Any) -> Any:
    """Arrays and tensors as nested lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(map(_listed, value)) if isinstance(value, tuple | list) else value


def _scalar(name: Any, value: Any) -> Any:
    """A number as a fraction where it is one."""
    if isinstance(value, list | int):
        return value
    if isinstance(value, Expr):         # worked out where it is used, with as many digits as are wanted there
        read([value], floats=True)
        return Fraction(int(value.p), int(value.q)) if value.is_Rational else value
    if not math.isfinite(value):
        raise ValueError(f"{name} = {value} is not a real number")
    return Fraction(repr(float(value)))     # the decimal that it prints


# -- formulas -----------------------------------------------------------------
def enumerate_masks(expression: Any, **sizes: int) -> Any:
    """Write out the sums at given sizes and sum over all masks; the entries stay symbols.

    An independent path to what :func:`exact` finds by rules, and what the judge of :func:`derive` does with numbers.

    Args:
        expression: May contain Sum, Product, Expectation, Variance and Covariance.
        **sizes: A number for each size and for each free index of the noise, by name: ``n=2, a=1, b=2``.

    Returns:
        The value, multiplied out.

    Raises:
        ValueError: If a size or index is missing, there are too many masks, or a continuous law meets anything but
            a polynomial.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import Bernoulli, Noise, Variance, enumerate_masks
    >>> p, x = symbols("p"), IndexedBase("x")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> enumerate_masks(Variance(Sum(m[j]*x[j], (j, 1, n))), n=2)
    -p**2*x[1]**2 - p**2*x[2]**2 + p*x[1]**2 + p*x[2]**2
    """
    return expand(sympify(_Formulas(sizes).value(sympify(expression), {})))


class _Formulas(Meaning):
    """Values that are formulas in the symbols and entries that have no number."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def symbol(self, e: Any) -> Any:
        return self.sizes.get(e.name, e)

    def place(self, e: Any, env: Env) -> tuple[Any, ...]:
        if isinstance(e.base, Noise):
            return super().place(e, env)
        return e.base, *(self.value(i, env) for i in e.indices)

    def entry(self, e: Any, key: tuple[Any, ...]) -> Any:
        return e.base[key[1:]]

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        if isinstance(base, Polynomial) and is_exact(exponent) and exponent == int(exponent) >= 0:
            return math.prod([base] * int(exponent), start=1)
        return sympify(self._formula(base)) ** sympify(self._formula(exponent))

    def _formula(self, value: Any) -> Any:
        if isinstance(value, Polynomial):
            raise NotPolynomial
        return value

    def other(self, e: Any, env: Env) -> Any:
        if not e.args:
            return e
        if isinstance(e, sympy.Derivative):
            written_out = sympify(self.value(e.expr, env))
            return written_out.diff(*[(self.value(v, env), count) for v, count in e.variable_count])
        return e.func(*[sympify(self._formula(self.value(part, env))) for part in e.args])
