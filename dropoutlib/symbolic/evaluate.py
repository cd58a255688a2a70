"""Values for the reader: as a number at given values, and as a formula with every mask written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import mpmath
import sympy
from mpmath import mp
from sympy import Derivative, Expr, IndexedBase, Integral, Limit, Symbol, expand, sympify
from sympy.core.numbers import NumberSymbol

from .families import Noise
from .language import read
from .meaning import (
    EXACT,
    ROUNDING,
    Env,
    Intervals,
    Meaning,
    NotPolynomial,
    Numbers,
    Polynomial,
    Undecided,
    as_float,
    is_exact,
)
from .notation import plain

__all__ = ["as_listed", "at_scalars", "controlled", "enumerate_masks", "given_point", "number"]

DIGITS = 30             # to begin with
MOST_DIGITS = DIGITS * 2**6


# -- numbers ------------------------------------------------------------------
def number(expression: Any, values: Mapping[Any, Any]) -> float:
    """The value of an expression: the bridge from a derivation to the library.

    Sums and products are unrolled, 1-based symbols read 0-based arrays (x[1] is the first entry), and
    E, Var and Cov that are left inside are summed over all masks. Floats count as the decimals that they print. The
    formula is taken as it is written, also where a value is not of the sign that its symbol declares.

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
    except Undecided as error:
        raise ValueError(f"{plain(expression)} cannot be worked out{at_scalars(values)}: {error}") from error
    except ArithmeticError as error:
        raise ValueError(f"{plain(expression)} is not a real number{at_scalars(values)}: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"{plain(expression)} is not a real number{at_scalars(values)}: it is {value}")
    return value


@lru_cache(maxsize=256)
def _check_language(expression: Any) -> None:
    read([expression], floats=True)


def controlled(point: Numbers, expressions: Sequence[Any], tolerance: float, floor: float = 0) -> list[Any]:
    """The values at a point to a relative tolerance: exact, or between bounds that are worked out with more and more
    digits until they are that close, or, where a function has no bounds, with digits until the values stay. A value
    below ``floor`` need not be told from 0.

    Raises:
        Undecided: If they do not.
    """
    point.forget()
    with mp.workdps(DIGITS):
        found = [point.value(e, {}) for e in expressions]
    if all(map(is_exact, found)):
        return found
    if point.used_quadrature:
        return _stable(point, expressions, (DIGITS // 2, DIGITS), floor)
    try:
        return [_between_bounds(point, e, tolerance) for e in expressions]
    except (_NoBounds, ArithmeticError, ValueError, NotImplementedError, TypeError):
        return _stable(point, expressions, (2 * DIGITS, 4 * DIGITS, 20 * DIGITS), floor)


class _NoBounds(Exception):
    pass


def _between_bounds(point: Numbers, e: Any, tolerance: float) -> Any:
    bounds = _Bounds(point.scalars, point.entries, point.slack)
    digits = DIGITS
    while digits <= MOST_DIGITS:
        bounds.forget()
        with mp.workdps(digits), _interval_digits(digits):
            value = bounds.value(e, {})
            if is_exact(value):
                return value
            low, high = mp.mpf(value.a), mp.mpf(value.b)
            if high - low <= tolerance * max(abs(low), abs(high)) or high == low:
                return (low + high) / 2
            if digits == MOST_DIGITS and max(-low, high) <= mp.mpf(10) ** (-digits // 2):
                return mp.mpf(0)            # about
        digits *= 2
    raise _NoBounds


@contextmanager
def _interval_digits(digits: int) -> Iterator[None]:
    before = mpmath.iv.prec
    mpmath.iv.dps = digits
    try:
        yield
    finally:
        mpmath.iv.prec = before


def _stable(point: Numbers, expressions: Sequence[Any], digits: Sequence[int], floor: float) -> list[Any]:
    """The values with the most digits. Where those with fewer digits are within a millionth, the error is far below."""
    tables = []
    for number_of_digits in digits:
        point.forget()
        with mp.workdps(number_of_digits):
            tables.append([point.value(e, {}) for e in expressions])
    found = []
    for column in zip(*tables, strict=True):
        if all(map(is_exact, column)):
            found.append(column[-1])
            continue
        values = [as_float(value) for value in column]
        last = values[-1]
        shrinks = len(digits) > 2 and all(0 < abs(new) <= abs(old) / 10**10 for old, new in pairwise(values))
        if last != 0 and all(abs(value - last) <= abs(last) / 10**6 for value in values):
            found.append(last)
        elif shrinks or all(0 < abs(value) <= floor for value in values):     # exactly 0: digits may have cancelled
            found.append(mp.mpf(0) if shrinks else last)
        elif abs(last) < 1 / mp.mpf(10) ** (DIGITS // 2):
            raise Undecided("the value is too near to 0 to be told from it")
        else:
            raise Undecided("the value changes with the number of digits")
    return found


def at_scalars(values: Mapping[Any, Any]) -> str:
    """A point in words, without its arrays."""
    listed = {key: as_listed(value) for key, value in values.items()}
    scalars = [f"{key} = {value}" for key, value in listed.items() if not isinstance(value, list)]
    return f" at {', '.join(scalars)}" if scalars else ""


def given_point(values: Mapping[Any, Any]) -> Numbers:
    """The meaning of symbols and arrays at values of a caller."""
    if not isinstance(values, Mapping):
        raise TypeError(f"a point is a dictionary from symbols to numbers, got {values!r}")
    listed = {key: as_listed(value) for key, value in values.items()}
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


class _Bounds(Intervals, _Given):
    """Every value is exact or lies between two bounds."""

    def entry(self, e: Any, key: tuple[Any, ...]) -> Any:
        value = super().entry(e, key)
        if not is_exact(value):
            raise _NoBounds
        return value

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        if is_exact(exponent) and exponent == int(exponent):
            return super().power(base, exponent, e)
        return super().power(self.hull(base), exponent, e)

    def function(self, e: Any, arguments: list[Any]) -> Any:
        if all(map(is_exact, arguments)):
            if is_exact(found := Numbers.function(self, e, arguments)):
                return found
            if type(e).__name__ in EXACT:       # a factorial of no whole number
                raise _NoBounds
        return super().function(e, [self.hull(x) for x in arguments])

    def other(self, e: Any, env: Env) -> Any:
        if isinstance(e, NumberSymbol) and type(e).__name__ in ("Pi", "Exp1"):
            return mpmath.iv.pi if type(e).__name__ == "Pi" else mpmath.iv.e
        if isinstance(e, Integral | Limit | Derivative | NumberSymbol):
            raise _NoBounds
        return super().other(e, env)

    def mean_by_quadrature(self, factors: Sequence[Any], env: Env) -> Any:
        raise _NoBounds


def as_listed(value: Any) -> Any:
    """Arrays and tensors as nested lists, other floating-point numbers as the floats that are printed and used."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return list(map(as_listed, value))
    if isinstance(value, int | str | Fraction | Decimal | Expr):
        return value
    try:
        return float(value) if float(value) == value else value
    except (TypeError, ValueError, OverflowError):
        return value


def _scalar(name: Any, value: Any) -> Any:
    """A number as a fraction where it is one."""
    if isinstance(value, list) or type(value) is int:
        return value
    if isinstance(value, Expr):         # worked out where it is used, with as many digits as are wanted there
        if value.free_symbols:
            raise ValueError(f"{name} = {value} is not a number")
        read([value], floats=True)
        return Fraction(int(value.p), int(value.q)) if value.is_Rational else value
    try:
        if isinstance(value, str | bool) or not math.isfinite(value):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r} is not a real number") from None
    if isinstance(value, Fraction | Decimal):
        return Fraction(value)
    if float(value) != value:
        raise ValueError(f"{name} = {value!r} is more than a float holds: give it as a fraction")
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
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"{name} needs a whole number, got {size!r}")
    expression = sympify(expression)
    found = expand(sympify(_Formulas(sizes).value(expression, {})))
    if (found.atoms() - expression.atoms()) & {sympy.zoo, sympy.nan, sympy.oo, -sympy.oo, sympy.I}:
        raise ValueError(f"{plain(expression)} is not a real number for some values of the noise")
    return found


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
        if isinstance(e, Integral | Limit):         # its variable is no size
            variable = e.args[1] if isinstance(e, Limit) else e.limits[0][0]
            env = {**env, variable: variable}
        if isinstance(e, sympy.Derivative):
            written_out = sympify(self.value(e.expr, env))
            return written_out.diff(*[(self.value(v, env), count) for v, count in e.variable_count])
        return e.func(*[sympify(self._formula(self.value(part, env))) for part in e.args])
