"""What an expression means: a walk over its tree that shares nothing with the rules.

A range is a range, empty where its upper end is below its lower end. E, Var and Cov sum over every value of
the noise that their argument touches, each drawing anew. SymPy's own ``doit``, ``subs``, ``expand`` and ``simplify``,
whose faults the rules inherit, are not used. The numbers are exact fractions as long as the expression is rational,
else floating-point numbers of as many digits as mpmath is set to.
"""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import mpmath
import sympy
from mpmath import mp
from sympy import Derivative, Integral, KroneckerDelta, Limit, Max, Min, Piecewise, Product, Sum
from sympy.core.function import Function
from sympy.core.numbers import Float, NumberSymbol

from .families import Noise
from .functions import phi
from .notation import MOMENTS, plain
from .quadrature import integrate

__all__ = ["EXACT", "FUNCTIONS", "ROUNDING", "Env", "Intervals", "Meaning", "NotPolynomial", "Numbers", "Polynomial",
           "TooLarge", "TooMany", "Undecided", "Undefined", "as_float", "compared", "is_exact", "plus", "times"]

LARGEST = 2**16         # outcomes of one enumeration, or terms of one polynomial
LONGEST = 10**5         # terms of one sum
ROUNDING = Fraction(1, 10**12)      # by which a probability that is itself computed may miss 0 or 1

Env = Mapping[Any, Any]     # bound indices, drawn noise (family, index, ...), entries moved by a derivative
_LETTERS = "letters"        # in an Env: masks are letters of a polynomial, too


class Undefined(ArithmeticError):
    """The expression has no real value at this point; ``about`` is the part whose value is not allowed, if known."""

    def __init__(self, message: str, about: Any = None) -> None:
        super().__init__(message)
        self.about = about


class TooLarge(Undefined):
    """The value leaves the numbers that are worked with."""


class TooMany(ValueError):
    """There are too many outcomes or terms to go through them."""


class Undecided(ArithmeticError):
    """The value cannot be found with an error that can be stated."""


class _Undrawn(Exception):
    """A copy of a noise that has no value yet: ``outcomes`` goes through its values."""


class _Many(Exception):
    """There are more outcomes than were asked for."""


class NotPolynomial(Exception):
    """A copy of a noise that was taken for a letter stands in something else than a polynomial."""


# -- arithmetic ---------------------------------------------------------------
def as_float(value: Any) -> Any:
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def as_interval(value: Any) -> Any:
    """An interval in which a number lies."""
    if isinstance(value, Fraction):
        return mpmath.iv.mpf(value.numerator) / mpmath.iv.mpf(value.denominator)
    return value if hasattr(value, "_mpi_") else mpmath.iv.mpf(value)


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    """Two numbers of different kinds as two of the kind that holds both."""
    if hasattr(left, "_mpi_") or hasattr(right, "_mpi_"):
        return as_interval(left), as_interval(right)
    return as_float(left), as_float(right)


def plus(left: Any, right: Any) -> Any:
    """left + right, where one may be a fraction and the other a number of many digits."""
    try:
        return left + right
    except (TypeError, ValueError, NotImplementedError):
        left, right = _alike(left, right)
        return left + right


def times(left: Any, right: Any) -> Any:
    """left * right, as :func:`plus`."""
    try:
        return left * right
    except (TypeError, ValueError, NotImplementedError):
        left, right = _alike(left, right)
        return left * right


def compared(values: Sequence[Any]) -> list[Any]:
    """Numbers that Python can compare: fractions beside numbers of many digits become such numbers."""
    return list(values) if all(map(is_exact, values)) else [as_float(value) for value in values]


def is_exact(value: Any) -> bool:
    """True for a whole number or a fraction."""
    return isinstance(value, int | Fraction)


class Polynomial:
    """A polynomial in copies of noise: from monomials ((copy, power), ...) to coefficients."""

    def __init__(self, terms: Mapping[tuple[tuple[Any, int], ...], Any]) -> None:
        self.terms = terms

    @classmethod
    def of(cls, value: Any) -> Polynomial:
        return value if isinstance(value, Polynomial) else cls({(): value})

    def __add__(self, other: Any) -> Polynomial:
        total = dict(self.terms)
        for monomial, coefficient in Polynomial.of(other).terms.items():
            total[monomial] = plus(total[monomial], coefficient) if monomial in total else coefficient
        return Polynomial(total)

    def __mul__(self, other: Any) -> Polynomial:
        total: dict[Any, Any] = {}
        for left, one in self.terms.items():
            for right, two in Polynomial.of(other).terms.items():
                powers = dict(left)
                for copy, power in right:
                    powers[copy] = powers.get(copy, 0) + power
                monomial, coefficient = tuple(sorted(powers.items(), key=str)), times(one, two)
                total[monomial] = plus(total[monomial], coefficient) if monomial in total else coefficient
                if len(total) > LARGEST:
                    raise TooMany(f"a polynomial in noise has more than {LARGEST} terms")
        return Polynomial(total)

    __radd__, __rmul__ = __add__, __mul__

    def mean(self, moment: Callable[[Any, int], Any]) -> Any:
        """E of the polynomial: copies are independent, so the mean of a monomial is a product of moments."""
        total: Any = 0
        for monomial, coefficient in self.terms.items():
            for copy, power in monomial:
                coefficient = times(coefficient, moment(copy, power))
            total = plus(total, coefficient)
        return total


# -- the walk -----------------------------------------------------------------
class Meaning:
    """The value of an expression. Subclasses say what symbols, entries, powers and functions are worth."""

    few = 2**9          # outcomes beyond which a polynomial in masks is averaged term by term

    def __init__(self) -> None:
        self._means: dict[Any, Any] = {}

    def value(self, e: Any, env: Env) -> Any:
        """The value; ``env`` holds bound indices, drawn noise and what a derivative or integral moves."""
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            return env[e] if e in env else self.symbol(e)
        if e.is_Add or e.is_Mul:
            combine, total = (plus, 0) if e.is_Add else (times, 1)
            for part in e.args:
                total = combine(total, self.value(part, env))
            return total
        if e.is_Pow:
            return self.power(self.value(e.base, env), self.value(e.exp, env), e)
        if e.is_Indexed:
            key = self.place(e, env)
            if key in env:
                return env[key]
            if type(e.base) is Noise and env.get(Noise):
                raise _Undrawn(key)
            return self.entry(e, key)
        if isinstance(e, Sum | Product):
            combine, total = (plus, 0) if isinstance(e, Sum) else (times, 1)
            for inner in self.ranges(list(e.limits), env):
                total = combine(total, self.value(e.function, inner))
            return total
        if isinstance(e, MOMENTS):
            return self.moment(e, env)
        if isinstance(e, KroneckerDelta):
            return int(self.index(e.args[0], env) == self.index(e.args[1], env))
        return self.other(e, env)

    def place(self, e: Any, env: Env) -> tuple[Any, ...]:
        """Which entry of which array or family: (base, index, ...)."""
        return e.base, *(self.index(i, env) for i in e.indices)

    def index(self, e: Any, env: Env) -> int:
        """The value of an index."""
        value = self.value(e, env)
        if not is_exact(value):
            raise ValueError(f"the index {e} needs a number: it may or may not equal another one")
        if value != int(value):
            raise Undefined(f"{e} is used as an index and is {value}, not a whole number")
        return int(value)

    def ranges(self, limits: Sequence[Any], env: Env) -> Iterator[Env]:
        """All bindings of the indices of a sum, the outer one first; none where high < low."""
        if not limits:
            yield env
            return
        *inner, (index, low, high) = limits
        first, last = self.end(low, env), self.end(high, env)
        if last - first > LONGEST:
            raise TooMany(f"the sum over {index} has {last - first + 1} terms, more than {LONGEST}")
        for position in range(first, last + 1):
            yield from self.ranges(inner, {**env, index: position})

    def end(self, e: Any, env: Env) -> int:
        value = self.value(e, env)
        if not is_exact(value):
            missing = sorted(map(str, e.free_symbols))
            raise ValueError(f"the size {', '.join(missing)} of a sum needs a number, for example "
                             f"{missing[0]}=2" if missing else f"{e} cannot be the end of a range")
        if value != int(value):
            raise Undefined(f"a sum needs whole numbers as limits, got {value}")
        return int(value)

    def forget(self) -> None:
        """Work out every mean anew, as after a change of the number of digits."""
        self._means.clear()

    # E, Var, Cov
    def moment(self, e: Any, env: Env) -> Any:
        """E, Var or Cov over everything random inside, whatever was drawn around it."""
        fixed = {key: value for key, value in env.items()
                 if key not in (Noise, _LETTERS) and not (isinstance(key, tuple) and type(key[0]) is Noise)}
        remembered = (e, tuple(fixed.items()))
        if remembered not in self._means:
            inside = {**fixed, Noise: True}
            if isinstance(e, sympy.stats.Expectation):
                mean = self.mean([e.args[0]], inside)
            else:
                left, right = e.args[0], e.args[-1]
                parts = [left] if left == right else [left, right]
                means = [self.mean([part], inside) for part in parts]
                mean = plus(self.mean([left, right], inside), times(-1, times(means[0], means[-1])))
            self._means[remembered] = mean
        return self._means[remembered]

    def mean(self, factors: Sequence[Any], env: Env) -> Any:
        """E of a product: sum of weight times value over all outcomes, continuous copies by their moments.

        Masks of many outcomes are taken for letters like continuous copies first, and the mean of a polynomial in them
        is worked out term by term.
        """
        try:
            try:
                total = self.summed(factors, env, self.few)
            except _Many:
                try:
                    total = self.summed(factors, {**env, _LETTERS: True}, LARGEST)
                except NotPolynomial:
                    total = self.summed(factors, env, LARGEST)
        except NotPolynomial:
            return self.mean_by_quadrature(factors, env)
        except _Many:
            raise TooMany(f"the noise has more than {LARGEST} outcomes") from None
        fixed = {**env, Noise: False}
        return total.mean(lambda copy, power: self.moment_of_law(copy, power, fixed)) \
            if isinstance(total, Polynomial) else total

    def summed(self, factors: Sequence[Any], env: Env, most: int) -> Any:
        """The sum of weight times value over all outcomes, ``most`` of them at the utmost."""
        total: Any = 0
        for weight, value in self.outcomes(factors, env, most):
            total = plus(total, times(weight, value))
        return total

    def outcomes(self, factors: Sequence[Any], env: Env, most: int) -> Iterator[tuple[Any, Any]]:
        """(weight, value of the product) for every outcome of the noise that it touches."""
        try:
            value: Any = 1
            for factor in factors:
                value = times(value, self.value(factor, env))
        except _Undrawn as undrawn:
            (key,) = undrawn.args
            values = self.values_of_law(key, {**env, Noise: False})
            if (most := most // len(values)) == 0:
                raise _Many from None
            for drawn, probability in values:
                for weight, value in self.outcomes(factors, {**env, key: drawn}, most):
                    yield times(probability, weight), value
        else:
            yield 1, value

    def values_of_law(self, key: Any, env: Env) -> list[tuple[Any, Any]]:
        """Values and probabilities; a letter of a polynomial is one value of its own."""
        distribution = key[0].law.pspace.distribution
        if not key[0].is_finite_law or env.get(_LETTERS):
            return [(Polynomial({((key, 1),): 1}), 1)]
        keep = self.probability(self.value(distribution.p, env), key[0])
        values = (self.value(end, env) for end in (distribution.succ, distribution.fail))
        return list(zip(values, (keep, plus(1, times(-1, keep))), strict=True))

    def moment_of_law(self, key: Any, power: int, env: Env) -> Any:
        """E of a power of one copy of a noise."""
        law = key[0].law.pspace.distribution
        total: Any = 0
        if key[0].is_finite_law:
            for value, probability in self.values_of_law(key, env):
                total = plus(total, times(probability, _whole_power(value, power)))
            return total
        if key[0].is_normal_law:
            mean, variance = self.value(law.mean, env), self.variance(law.std, env)
            for i in range(0, power + 1, 2):        # E Z^i = 1 3 5 ... (i - 1), 0 for odd i
                count = math.comb(power, i) * math.prod(range(1, i, 2))
                total = plus(total, times(count, times(_whole_power(mean, power - i),
                                                       _whole_power(variance, i // 2))))
            return total
        left, right = self.value(law.left, env), self.value(law.right, env)
        self.ordered(left, right, key[0])
        for i in range(power + 1):
            total = plus(total, times(_whole_power(left, i), _whole_power(right, power - i)))
        return times(Fraction(1, power + 1), total)

    def variance(self, deviation: Any, env: Env) -> Any:
        """The square of a deviation, exact where it is written as a root."""
        if deviation.is_Mul:
            return math.prod((self.variance(part, env) for part in deviation.args), start=Fraction(1))
        if deviation.is_Pow and deviation.exp == sympy.S.Half:
            return self.positive(self.value(deviation.base, env), deviation)
        return _whole_power(self.positive(self.value(deviation, env), deviation), 2)

    # what subclasses decide
    def symbol(self, e: Any) -> Any:
        raise NotImplementedError

    def entry(self, e: Any, key: tuple[Any, ...]) -> Any:
        raise NotImplementedError

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        raise NotImplementedError

    def other(self, e: Any, env: Env) -> Any:
        raise NotImplementedError

    def probability(self, value: Any, family: Any) -> Any:
        return value

    def positive(self, value: Any, e: Any) -> Any:
        return value

    def ordered(self, left: Any, right: Any, family: Any) -> None:
        return None

    def mean_by_quadrature(self, factors: Sequence[Any], env: Env) -> Any:
        raise ValueError("a continuous law can be worked out for polynomials in it only")


def _whole_power(base: Any, exponent: int) -> Any:
    """base**exponent for a whole exponent, by multiplying."""
    result: Any = 1
    for _ in range(exponent):
        result = times(result, base)
    return result


# -- numbers ------------------------------------------------------------------
def _abs(x: Any) -> Any:
    return x if x >= 0 else -x


def _factorial(x: Any) -> Any:
    return math.factorial(x) if isinstance(x, int) and 0 <= x <= LONGEST else mp.gamma(as_float(x) + 1)


def _binomial(n: Any, k: Any) -> Any:
    whole = isinstance(n, int) and isinstance(k, int) and n >= 0
    return (math.comb(n, k) if k >= 0 else 0) if whole else mp.binomial(as_float(n), as_float(k))


FUNCTIONS: dict[str, Callable[..., Any]] = {     # of numbers; a whole number or a fraction may come
    "Abs": _abs, "binomial": _binomial, "conjugate": lambda x: x, "factorial": _factorial,
    "sign": lambda x: (x > 0) - (x < 0),
    "exp": mp.exp, "log": mp.log,
    "Phi": mp.ncdf, "phi": mp.npdf, "erf": mp.erf, "erfi": mp.erfi, "erfc": mp.erfc, "gamma": mp.gamma,
    "loggamma": mp.loggamma, "digamma": mp.digamma, "polygamma": mp.psi, "cosh": mp.cosh, "sinh": mp.sinh,
    "tanh": mp.tanh, "cos": mp.cos, "sin": mp.sin, "atan": mp.atan,
}
EXACT = ("Abs", "binomial", "conjugate", "factorial", "sign")


class Numbers(Meaning):
    """Values at one point, given for scalars by name and for entries by a function of (base, *indices)."""

    def __init__(self, scalars: Mapping[str, Any], entries: Callable[[Any, tuple[Any, ...]], Any],
                 slack: Fraction = Fraction(0)) -> None:
        super().__init__()
        self.scalars, self.entries, self.slack = scalars, entries, slack
        self.used_quadrature = False
        self.largest = 10**12               # argument of an exponential

    def symbol(self, e: Any) -> Any:
        if e.name not in self.scalars:
            raise ValueError(f"no value for {e.name}: give {{{e.name}: ...}}, or bind it with a sum if it is an index")
        return self.scalars[e.name]

    def entry(self, e: Any, key: tuple[Any, ...]) -> Any:
        return self.entries(e, key)

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        if is_exact(exponent) and exponent == int(exponent):
            exponent = int(exponent)
            if isinstance(base, Polynomial):
                if exponent < 0:
                    raise NotPolynomial
                return _whole_power(base, exponent)
            if base == 0 and exponent < 0:
                raise Undefined(f"division by zero in {plain(e)}", e.base)
            if is_exact(base):
                if abs(exponent) > LONGEST:
                    raise Undecided(f"the power {plain(e)} is too large")
                return Fraction(base) ** exponent
            return base**exponent
        if isinstance(base, Polynomial) or isinstance(exponent, Polynomial):
            raise NotPolynomial
        if base < 0 or (base == 0 and exponent <= 0):
            raise Undefined(f"{plain(e)} is not a real number", e.base)
        return mp.power(as_float(base), self.modest(exponent)) if base != 0 else 0

    def modest(self, x: Any) -> Any:
        """A number of many digits, refused where exponentials of it leave all bounds."""
        x = mp.mpf(as_float(x))
        if not abs(x) <= self.largest:
            raise TooLarge("an argument of a function is too large to work it out")
        return x

    def probability(self, value: Any, family: Any) -> Any:
        low, inside, high = compared([-self.slack, value, 1 + self.slack])
        if not low <= inside <= high:
            raise Undefined(f"the law of {family} needs probabilities from 0 to 1, got {_shown(value)}")
        return value

    def positive(self, value: Any, e: Any) -> Any:
        if not value >= 0:
            raise Undefined(f"the deviation {plain(e)} of a law must not be negative, got {_shown(value)}")
        return value

    def ordered(self, left: Any, right: Any, family: Any) -> None:
        low, high = compared([left, right])
        if not low < high:
            raise Undefined(f"the law of {family} needs a range, got {_shown(left)} to {_shown(right)}")

    def other(self, e: Any, env: Env) -> Any:
        if e.is_Rational:
            return Fraction(int(e.p), int(e.q))
        if isinstance(e, Float):
            return Fraction(str(e))         # the decimal that is seen
        if isinstance(e, NumberSymbol):
            return mp.mpf(getattr(mp, {"Pi": "pi", "Exp1": "e", "EulerGamma": "euler"}[type(e).__name__]))
        if isinstance(e, Derivative):
            return self.derivative(e, env)
        if isinstance(e, Integral):
            return self.integral(e, env)
        if isinstance(e, Limit):
            return self.limit(e, env)
        if isinstance(e, sympy.sign):
            return self.sign_of(lambda meaning: meaning.value(e.args[0], env))
        if isinstance(e, Piecewise):
            return self.value(next((part for part, condition in e.args if self.holds(condition, env)), sympy.nan), env)
        if isinstance(e, Function | Max | Min):
            return self.function(e, [self.value(part, env) for part in e.args])
        raise Undefined(f"{plain(e)} is not a real number", e)

    def holds(self, condition: Any, env: Env) -> bool:
        """A relation between numbers, or several of them."""
        if condition in (sympy.true, sympy.false):
            return bool(condition)
        if isinstance(condition, sympy.And):
            return all(self.holds(part, env) for part in condition.args)
        left, right = condition.args
        sign = self.sign_of(lambda meaning: plus(meaning.value(left, env), times(-1, meaning.value(right, env))))
        return {"<": sign < 0, "<=": sign <= 0, ">": sign > 0, ">=": sign >= 0, "==": sign == 0,
                "!=": sign != 0}[condition.rel_op]

    def sign_of(self, compute: Callable[[Numbers], Any]) -> int:
        """1, 0 or -1: of an exact number, or of one that stays with more digits. Nothing else tells it from 0."""
        before = compute(self)
        if isinstance(before, Polynomial):
            raise NotPolynomial
        if is_exact(before):
            return int(FUNCTIONS["sign"](before))
        again = copying.copy(self)
        for factor in (2,) if self.used_quadrature else (4, 16):
            again._means = {}
            with mp.workdps(factor * mp.dps):
                value = compute(again)
                if abs(value) > 0 and abs(value - before) <= abs(value) / 10:
                    return 1 if value > 0 else -1
            before = value
        raise Undecided("the sign of a number cannot be told from rounding")

    def function(self, e: Any, arguments: list[Any]) -> Any:
        if any(isinstance(x, Polynomial) for x in arguments):
            raise NotPolynomial
        if isinstance(e, Max | Min):
            return (max if isinstance(e, Max) else min)(compared(arguments))
        name = e.func.__name__
        if name == "log" and not arguments[0] > 0:
            raise Undefined(f"{plain(e)} is not a real number at {_shown(arguments[0])}", e.args[0])
        if (name, *arguments) in (("exp", 0), ("log", 1)):
            return int(name == "exp")
        if name not in EXACT:
            arguments = [x if name == "polygamma" and isinstance(x, int) else
                         (mp.mpf(as_float(x)) if name == "log" else self.modest(x)) for x in arguments]
        if name not in FUNCTIONS:
            raise ValueError(f"no value is defined for {plain(e)}")
        try:
            return FUNCTIONS[name](*arguments)
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise Undefined(f"{plain(e)} is not a real number: {error}", e.args[-1]) from error

    # derivatives, integrals, limits
    def derivative(self, e: Any, env: Env) -> Any:
        """Central differences, of the order step^2 wrong: the step is beyond the reach of all numbers at the point."""
        (variable, order), *more = e.variable_count
        body = sympy.Derivative(e.expr, *more) if more else e.expr
        key: Any = variable
        if variable.is_Indexed:
            key = self.place(variable, env)
        at, order = self.value(variable, env), int(order)
        reach = (order + 4) // 2 * _Reach(self).digits(body, {**env, key: at})
        step = Fraction(1, 10 ** (mp.dps // (order + 2) + reach))
        total: Any = 0
        with mp.workdps(mp.dps + order * reach):
            for i in range(order + 1):
                moved = plus(at, (Fraction(order, 2) - i) * step)
                total = plus(total, times((-1) ** i * math.comb(order, i), self.value(body, {**env, key: moved})))
            total = _plain_number(times(total, 1 / step**order))
        return +total

    def integral(self, e: Any, env: Env) -> Any:
        (variable, low, high), = e.limits
        ends = [-mp.inf if end == -sympy.oo else mp.inf if end == sympy.oo else mp.mpf(as_float(self.value(end, env)))
                for end in (low, high)]
        return self.integrate(lambda meaning, x: meaning.value(e.function, {**env, variable: x}), *ends)

    def integrate(self, body: Callable[[Numbers, Any], Any], low: Any, high: Any) -> Any:
        """Quadrature of body(meaning, x), which is also evaluated for whole intervals x."""
        self.used_quadrature, self.largest = True, 10**12       # a quadrature sees how small the rest is
        intervals = Intervals(self.scalars, self.entries, self.slack)
        if low > high:
            return -self.integrate(body, high, low)

        def hull(x: Any) -> tuple[Any, bool]:
            intervals.is_smooth = True
            return intervals.hull(body(intervals, x)), intervals.is_smooth

        found = integrate(lambda x: _plain_number(body(self, x)), hull, low, high)
        if found is None:
            raise Undecided("an integral cannot be found with an error that can be stated")
        return found

    def mean_by_quadrature(self, factors: Sequence[Any], env: Env) -> Any:
        """E where one copy of a continuous noise stands in more than a polynomial."""
        try:
            return math.prod(self.value(factor, env) for factor in factors)
        except _Undrawn as undrawn:
            (key,) = undrawn.args
        fixed = {**env, Noise: False}
        if key[0].is_finite_law:
            total: Any = 0
            for value, weight in self.values_of_law(key, fixed):
                total = plus(total, times(weight, self.mean(factors, {**env, key: value})))
            return total
        if any(isinstance(name, tuple) and type(name[0]) is Noise and not name[0].is_finite_law for name in env):
            raise Undecided("E of more than a polynomial in two continuous draws is not worked out")
        law = key[0].law.pspace.distribution
        if key[0].is_normal_law:
            centre, scale = (as_float(part) for part in (self.value(law.mean, fixed), self.variance(law.std, fixed)))
            def weighted(meaning: Numbers, u: Any) -> Any:
                drawn = plus(centre, times(mp.sqrt(scale), u))
                return times(meaning.density(u), meaning.mean(factors, {**env, key: drawn}))

            return self.integrate(weighted, -mp.inf, mp.inf)
        left, right = (as_float(self.value(end, fixed)) for end in (law.left, law.right))
        self.ordered(left, right, key[0])
        area = self.integrate(lambda meaning, x: meaning.mean(factors, {**env, key: x}), mp.mpf(left), mp.mpf(right))
        return area / (right - left)

    def density(self, u: Any) -> Any:
        return mp.npdf(u)

    def limit(self, e: Any, env: Env) -> Any:
        """The value very near the point, beyond the reach of all numbers in it; refused if it still moves there."""
        body, variable, point, direction = e.args
        reach = self._digits_of_constants(body, variable, env)
        digits = mp.dps + 4 * reach
        found = []
        for near in (digits, 8 * digits):
            with mp.workdps(2 * near + digits):
                far = mp.mpf(10) ** near * mp.mpf("1.2345678")
                if point in (sympy.oo, -sympy.oo):
                    places = [far if point == sympy.oo else -far]
                else:
                    at = as_float(self.value(point, env))
                    places = [at + side / far for side in {"+": (1,), "-": (-1,), "+-": (1, -1)}[str(direction)]]
                found.append([_plain_number(self.value(body, {**env, variable: place})) for place in places])
        rough, fine = found
        moves = max(abs(one - two) for one, two in zip(rough, fine, strict=True))
        if moves > mp.mpf(10) ** (-digits // 3) * (1 + abs(fine[0])):
            raise Undecided(f"{plain(e)} is reached too slowly, or does not exist")
        if abs(fine[0] - fine[-1]) > mp.mpf(10) ** (-digits // 3) * (1 + abs(fine[0])):
            raise Undefined(f"{plain(e)} has two one-sided values")
        return +fine[0]

    def _digits_of_constants(self, body: Any, variable: Any, env: Env) -> int:
        """How many digits the parts without the variable have before or after the point, all together."""
        if body.has(variable):
            return sum(self._digits_of_constants(part, variable, env) for part in body.args)
        size = abs(as_float(self.value(body, env)))
        return abs(int(mp.log10(size))) if size else 0


class _Reach(Numbers):
    """Walks through an expression at a point, and sees how large and how small its parts are."""

    def __init__(self, point: Numbers) -> None:
        super().__init__(point.scalars, point.entries, point.slack)
        self.largest = point.largest
        self.seen: dict[Any, int] = {}

    def digits(self, e: Any, env: Env) -> int:
        """How many digits its parts have before or after the point: those of factors add up, also where one is 0."""
        self.value(e, env)
        return self.scale(e)

    def scale(self, e: Any) -> int:
        parts = [self.scale(part) for part in e.args]
        inside = sum(parts) if e.is_Mul else max(parts, default=0)
        return max(self.seen.get(e, 0), inside * (abs(int(e.exp)) if e.is_Pow and e.exp.is_Integer else 1))

    def value(self, e: Any, env: Env) -> Any:
        found = super().value(e, env)
        if not isinstance(found, Polynomial) and found != 0:
            self.seen[e] = max(self.seen.get(e, 0), abs(int(mp.log10(abs(as_float(found))))))
        return found


class Intervals(Numbers):
    """Enclosures: the argument is an interval, the value an interval that holds every value over it."""

    is_smooth = True        # no kink of Max, Min or Abs was met
    RISING = ("exp", "log", "Phi", "erf", "erfi", "atan", "sinh", "tanh")

    def hull(self, value: Any) -> Any:
        if isinstance(value, Polynomial):
            raise NotPolynomial
        return as_interval(value)

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        if not hasattr(base, "_mpi_") and not hasattr(exponent, "_mpi_"):
            return super().power(base, exponent, e)
        if is_exact(exponent) and exponent == int(exponent):
            return self.hull(base) ** int(exponent)
        base, exponent = self.hull(base), self.hull(exponent)
        if not base.a >= 0:
            raise Undefined(f"{plain(e)} is not a real number on a whole interval")
        return base**exponent

    def function(self, e: Any, arguments: list[Any]) -> Any:
        if not any(hasattr(x, "_mpi_") for x in arguments):
            return super().function(e, arguments)
        name, parts = e.func.__name__, [self.hull(x) for x in arguments]
        if isinstance(e, Max | Min):
            pick = max if isinstance(e, Max) else min
            largest = pick(parts, key=lambda p: p.a if isinstance(e, Max) else p.b)
            self.is_smooth &= all(p is largest or (p.b < largest.a if isinstance(e, Max) else p.a > largest.b)
                                  for p in parts)
            return mpmath.iv.mpf([pick(p.a for p in parts), pick(p.b for p in parts)])
        (x,) = parts
        ends = [mp.mpf(x.a), mp.mpf(x.b)]
        if name == "log" and ends[0] <= 0:
            raise Undefined("log")
        if name in ("cos", "sin"):
            return getattr(mpmath.iv, name)(x)
        if name == "Abs":
            self.is_smooth &= not ends[0] <= 0 <= ends[1]
        if name in self.RISING:
            low, high = (FUNCTIONS[name](end) for end in ends)
        elif name in ("phi", "cosh", "Abs"):
            sizes = sorted(map(abs, ends))
            sizes[0] = sizes[0] if ends[0] * ends[1] > 0 else mp.mpf(0)
            low, high = sorted(mp.mpf(FUNCTIONS[name](size)) for size in sizes)
        else:
            raise Undecided(f"no enclosure of {plain(e)}")
        slack = mp.mpf(10) ** (-mp.dps + 3)
        return mpmath.iv.mpf([low - abs(low) * slack, high + abs(high) * slack])

    def density(self, u: Any) -> Any:
        return self.function(phi(sympy.Symbol("u")), [u])

    def derivative(self, e: Any, env: Env) -> Any:
        raise Undecided(f"no enclosure of {plain(e)}")

    def sign_of(self, compute: Callable[[Numbers], Any]) -> int:
        """Of all numbers in an interval, if they have one."""
        value = compute(self)
        if is_exact(value):
            return int(FUNCTIONS["sign"](value))
        enclosed = self.hull(value)
        if enclosed.a > 0 or enclosed.b < 0:
            return 1 if enclosed.a > 0 else -1
        raise Undecided("the sign changes over an interval")


def _plain_number(value: Any) -> Any:
    if isinstance(value, Polynomial):
        raise NotPolynomial
    return mp.mpf(as_float(value))


def _shown(value: Any) -> str:
    return f"{float(as_float(value)):.6g}"
