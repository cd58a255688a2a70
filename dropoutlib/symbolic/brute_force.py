"""Brute force: sums written out and masks enumerated, with symbols or numbers as entries.

Nothing here uses the rules; it is the second opinion on every line that they give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import mpmath
from sympy import (
    Abs,
    Add,
    Derivative,
    Indexed,
    IndexedBase,
    Integral,
    KroneckerDelta,
    Max,
    Min,
    Mul,
    Pow,
    Product,
    Sum,
    Symbol,
    expand,
    sympify,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.function import Function
from sympy.stats import Covariance, Expectation

from .families import Noise, check_degree, copies, free_scalars, is_finite, support
from .notation import MOMENTS, plain

__all__ = ["enumerate_masks", "number"]

LARGEST = 2**16         # outcomes of one enumeration
ROUNDING = 1e-12        # by which a probability that is itself computed may miss 0 or 1


# -- symbolic entries ---------------------------------------------------------
def enumerate_masks(expression: Any, **sizes: int) -> Any:
    """Write out the sums at given sizes and sum over all masks; the entries stay symbols.

    An independent path to what :func:`exact` finds by rules. Equality at n = r for sums over at most r different
    indices, with coefficients free of n, is equality for every n: monomials with at most r distinct
    indices are linearly independent as soon as there are r of them.

    Args:
        expression: May contain Sum, Product, Expectation, Variance and Covariance.
        **sizes: A number for each size and for each free index of the noise, by name: ``n=2, a=1, b=2``.

    Returns:
        The value, multiplied out.

    Raises:
        ValueError: If a size or index is missing, there are too many masks, or a continuous law meets anything but
            a polynomial of degree at most 5 (which three Gauss nodes integrate exactly).

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import Bernoulli, Noise, Variance, enumerate_masks
    >>> p, x = symbols("p"), IndexedBase("x")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> enumerate_masks(Variance(Sum(m[j]*x[j], (j, 1, n))), n=2)
    -p**2*x[1]**2 - p**2*x[2]**2 + p*x[1]**2 + p*x[2]**2
    """
    expression = sympify(expression).replace(lambda e: isinstance(e, Derivative), lambda e: e.doit(deep=False))
    present = [s for s in free_scalars(expression) if s.name in sizes]
    return expand(_mean_of_moments(_written_out(expression.subs({s: sizes[s.name] for s in present}))))


def _written_out(expression: Any) -> Any:
    """Every Sum and Product, term by term, from the outside in."""
    if not expression.has(Sum, Product):
        return expression
    if isinstance(expression, Sum | Product):
        *inner, (index, low, high) = expression.limits
        if not (low.is_Integer and high.is_Integer):
            missing = ", ".join(sorted(map(str, (low.free_symbols | high.free_symbols))))
            raise ValueError(f"the size {missing} of a sum needs a number, for example enumerate_masks(..., "
                             f"{missing.split(', ')[0]}=2)")
        body = expression.func(expression.function, *inner) if inner else expression.function
        pieces = [_written_out(body.subs(index, value)) for value in range(int(low), int(high) + 1)]
        return Add(*pieces) if isinstance(expression, Sum) else Mul(*pieces)
    return expression.func(*[_written_out(argument) for argument in expression.args])


def _mean_of_moments(expression: Any) -> Any:
    """Replace E, Var, Cov by sums over the values of the noise inside, the innermost first."""
    if not expression.has(*MOMENTS):
        return expression
    arguments = [_mean_of_moments(argument) for argument in expression.args]
    if not isinstance(expression, MOMENTS):
        return expression.func(*arguments)
    if isinstance(expression, Expectation):
        return _mean(arguments[0])
    left, right = arguments if isinstance(expression, Covariance) else arguments[:1] * 2
    return _mean(left * right) - _mean(left) * _mean(right)


def _mean(inside: Any) -> Any:
    drawn = copies(inside)
    for copy in drawn:
        if copies(copy.base.law):
            raise ValueError(f"the law of {copy} is itself random: take the mean given its parameter first")
    for copy in drawn:
        if len([c for c in drawn if c.base == copy.base]) > 1 and not all(i.is_Integer for i in copy.indices):
            raise ValueError(f"the indices of {copy} need numbers: it may or may not equal another copy")
        check_degree(inside, copy)
    laws = [support(copy.base.law) for copy in drawn]
    if (outcomes := prod(map(len, laws))) > LARGEST:
        raise ValueError(f"{len(drawn)} random entries have {outcomes} outcomes, more than {LARGEST}")
    total = []
    for picked in product(*laws):
        values = {copy: value for copy, (value, _) in zip(drawn, picked, strict=True)}
        total.append(inside.xreplace(values) * Mul(*[weight for _, weight in picked]))
    return Add(*total)


# -- numbers ------------------------------------------------------------------
def number(expression: Any, values: Mapping[Any, Any]) -> float:
    """The value of an expression: the bridge from a derivation to the library.

    Sums and products are unrolled, 1-based symbols read 0-based arrays (x[1] is the first entry), and
    E, Var and Cov that are left inside are summed over all masks.

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
    value = evaluate(expression, values, mpmath.fp)
    if isinstance(value, complex) or value != value:
        raise ValueError(f"not a real number: {value}")
    return float(value)


def evaluate(expression: Any, values: Mapping[Any, Any], context: Any) -> Any:
    """As :func:`number`, in the arithmetic of an mpmath context."""
    plain_values = [(key, _plain_value(value)) for key, value in values.items()]
    scalars = {str(key): value for key, value in plain_values if not isinstance(key, IndexedBase)}
    arrays = {str(key): value for key, value in plain_values if not isinstance(key, Symbol)}
    try:
        return _Evaluator(scalars, arrays, context).value(sympify(expression), {}, {})
    except (ZeroDivisionError, OverflowError) as error:
        where = ", ".join(f"{key} = {value}" for key, value in scalars.items() if not isinstance(value, list))
        raise ValueError(f"{plain(sympify(expression))} is not a real number" + (f" at {where}" if where else "")
                         + f": {error}") from error


def _plain_value(value: Any) -> Any:
    """Arrays and tensors as nested lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


class _Evaluator:
    def __init__(self, scalars: dict[str, Any], arrays: dict[str, Any], context: Any) -> None:
        self.scalars, self.arrays, self.context = scalars, arrays, context

    def value(self, e: Any, indices: dict[Any, Any], draw: dict[Any, Any]) -> Any:
        """The number; ``indices`` binds dummies, ``draw`` holds the values of noise in an enumeration."""
        def of(part: Any) -> Any:
            return self.value(part, indices, draw)

        if e.is_Integer:
            return int(e)
        if e.is_Rational:
            return self.context.mpf(int(e.p)) / int(e.q)
        if e.is_number and e.is_Atom:
            if e.is_infinite:
                return self.context.inf if e.is_extended_positive else self.context.ninf
            return self.context.mpf(str(e.evalf(self.context.dps + 5)))
        if isinstance(e, Symbol):
            return indices[e] if e in indices else self.scalar(e)
        if isinstance(e, Indexed):
            return self.entry(e, [of(i) for i in e.indices], draw)
        if e.is_Add:
            return sum(of(part) for part in e.args)
        if e.is_Mul:
            return prod(of(part) for part in e.args)
        if isinstance(e, Sum | Product):
            pieces = (self.value(e.function, bound, draw) for bound in self.ranges(list(e.limits), indices, draw))
            return sum(pieces) if isinstance(e, Sum) else prod(pieces)
        if isinstance(e, MOMENTS):
            return self.moment(e, indices, draw)
        if isinstance(e, Integral):
            return self.integral(e, indices, draw)
        if isinstance(e, KroneckerDelta):
            return int(of(e.args[0]) == of(e.args[1]))
        if isinstance(e, Pow):
            base, exponent = of(e.base), of(e.exp)
            return self.context.mpf(base) ** exponent if isinstance(exponent, int) else \
                self.context.power(base, exponent)
        if isinstance(e, Max | Min):
            return (max if isinstance(e, Max) else min)(of(part) for part in e.args)
        return self.function(e, [of(part) for part in e.args])

    def scalar(self, symbol: Any) -> Any:
        if symbol.name not in self.scalars:
            raise ValueError(f"no value for {symbol.name}: give {{{symbol.name}: ...}}, or bind it with a sum if it is "
                             "an index")
        value = self.scalars[symbol.name]
        if isinstance(value, list):
            raise ValueError(f"{symbol.name} is a scalar in the expression, got an array")
        if isinstance(value, int):
            return value
        if hasattr(value, "free_symbols"):
            return self.value(value, {}, {})
        return self.context.mpf(value)

    def entry(self, e: Any, index: list[Any], draw: dict[Any, Any]) -> Any:
        key = (e.base, *index)
        if key in draw:
            return draw[key]
        name = str(e.base)
        if name not in self.arrays:
            reason = f"{name} is noise outside E, Var and Cov" if isinstance(e.base, Noise) else f"no value for {name}"
            raise ValueError(f"{reason}: give {{{name}: ...}}")
        value = self.arrays[name]
        for axis, position in enumerate(index):
            if not isinstance(value, list):
                raise ValueError(f"{name} has {axis} axes, but {e} has {len(index)} indices")
            if not 1 <= position <= len(value):
                raise ValueError(f"{name} has {len(value)} entries along axis {axis}, but {e} is needed at "
                                 f"{position} (counted from 1)")
            value = value[position - 1]
        if isinstance(value, list):
            raise ValueError(f"{name} has more axes than {e} has indices")
        return self.context.mpf(value)

    def ranges(self, limits: list[Any], indices: dict[Any, Any], draw: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """All bindings of the dummies of a sum, the outer one first."""
        if not limits:
            yield indices
            return
        *inner, (index, low, high) = limits
        first, last = self.value(low, indices, draw), self.value(high, indices, draw)
        if int(first) != first or int(last) != last:
            raise ValueError(f"the sum over {index} needs whole numbers as limits, got {first} and {last}")
        for value in range(int(first), int(last) + 1):
            yield from self.ranges(inner, {**indices, index: value}, draw)

    def moment(self, e: Any, indices: dict[Any, Any], draw: dict[Any, Any]) -> Any:
        """Sum over all values of the noise that the argument touches."""
        bodies = e.args if isinstance(e, Covariance) else e.args[:1]
        touched: dict[Any, Any] = {}
        for body in bodies:
            self.touch(body, indices, draw, touched)
        laws = []
        for key in touched:
            law = key[0].law
            if not is_finite(law):
                raise ValueError(f"the continuous law of {key[0]} cannot be enumerated: work E out with exact() first")
            laws.append([(self.value(sympify(v), indices, draw), self.value(sympify(w), indices, draw))
                         for v, w in support(law)])
            for _, weight in laws[-1]:
                if isinstance(weight, complex) or not -ROUNDING <= weight <= 1 + ROUNDING:
                    raise ValueError(f"the law of {key[0]} needs probabilities from 0 to 1, got {weight}")
        if (outcomes := prod(map(len, laws))) > LARGEST:
            raise ValueError(f"{len(laws)} random entries have {outcomes} outcomes, more than {LARGEST}")
        means = [0] * 3
        for picked in product(*laws):
            here = {**draw, **{key: v for key, (v, _) in zip(touched, picked, strict=True)}}
            weight = prod(w for _, w in picked)
            left, right = (self.value(body, indices, here) for body in (bodies[0], bodies[-1]))
            means = [means[0] + weight * left, means[1] + weight * right, means[2] + weight * left * right]
        return means[0] if isinstance(e, Expectation) else means[2] - means[0] * means[1]

    def touch(self, e: Any, indices: dict[Any, Any], draw: dict[Any, Any], touched: dict[Any, Any]) -> None:
        if not copies(e) or isinstance(e, MOMENTS):
            return
        if isinstance(e, Indexed):
            key = (e.base, *(self.value(i, indices, draw) for i in e.indices))
            if isinstance(e.base, Noise) and key not in draw and str(e.base) not in self.arrays:
                touched[key] = None
        elif isinstance(e, Sum | Product):
            for bound in self.ranges(list(e.limits), indices, draw):
                self.touch(e.function, bound, draw, touched)
        else:
            for part in e.args:
                self.touch(part, indices, draw, touched)

    def integral(self, e: Any, indices: dict[Any, Any], draw: dict[Any, Any]) -> Any:
        """Quadrature, split at 0 and at the kinks of Max, Min and Abs."""
        if len(e.limits) != 1 or len(e.limits[0]) != 3:
            raise ValueError(f"only definite integrals over one variable have a value, got {e}")
        variable, low, high = e.limits[0]
        ends = [self.value(end, indices, draw) for end in (low, high)]
        cuts = {self.context.mpf(0)}
        for part in sorted(e.function.atoms(Max, Min, Abs), key=str):
            arguments = (*part.args, sympify(0))
            for line in (a - b for a in arguments for b in arguments if a != b):
                slope = line.diff(variable)
                if slope != 0 and not slope.has(variable):
                    cuts.add(self.context.mpf(self.value(-line.subs(variable, 0) / slope, indices, draw)))
        inside = sorted(cut for cut in cuts if ends[0] < cut < ends[1])
        return self.context.quad(lambda v: self.value(e.function, {**indices, variable: v}, draw),
                                 [ends[0], *inside, ends[1]])

    def function(self, e: Any, arguments: list[Any]) -> Any:
        name = {"Phi": "ncdf", "phi": "npdf", "Abs": "fabs", "loggamma": "loggamma"}.get(e.func.__name__,
                                                                                        e.func.__name__)
        if isinstance(e, Function) and hasattr(self.context, name):
            return getattr(self.context, name)(*map(self.context.mpf, arguments))
        if isinstance(e, ExprWithLimits):
            raise ValueError(f"no value is defined for {e}")
        result = e.func(*map(sympify, arguments)).evalf(self.context.dps + 5)
        if not result.is_number:
            raise ValueError(f"no value is defined for {e}")
        return self.context.mpf(str(result)) if result.is_real else complex(result)
