"""Expressions as lists of terms: a product and the sums in front of it.

Every dummy index becomes a nameless ``Dummy`` while products are multiplied out, so no index can be
captured; readable names come back when a term is put together again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count, permutations, product
from typing import Any

from sympy import (
    Add,
    Basic,
    Dummy,
    Indexed,
    KroneckerDelta,
    Limit,
    Mul,
    Pow,
    Product,
    S,
    Sum,
    Symbol,
    Tuple,
    expand,
    sympify,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.sorting import default_sort_key

from .families import copies
from .language import at_least_zero, noting_positive, ranges_of_indices
from .notation import MOMENTS, VARYING, textbook

__all__ = ["Ranges", "Term", "collapse", "collapsed", "has_noise", "inner_ranges", "nameless", "readable", "sum_over",
           "terms", "unshadowed", "without_powers_of_deltas"]

Term = tuple[Any, list[Any]]                # (product, limits); the innermost sum first
Ranges = dict[Any, Any]                     # index -> (low, high); the innermost index first
LETTERS = "jklrstuv"


def terms(expression: Any) -> list[Term]:
    """Multiply out: powers and products of sums become sums over separate indices."""
    if expression.is_Add and expression.has(*VARYING):
        return [term for part in expression.args for term in terms(part)]
    if isinstance(expression, Sum):
        return _terms_of_sum(expression)
    if expression.is_Mul:
        factors = expression.args
    elif isinstance(expression, Pow) and expression.exp.is_Integer and expression.exp > 1 \
            and isinstance(expression.base, Add | Sum | Mul) and expression.has(*VARYING):
        factors = [expression.base] * int(expression.exp)
    else:
        return [(expression, [])]
    multiplied: list[Term] = [(S.One, [])]
    for part in factors:
        multiplied = [(left * right, left_limits + right_limits)
                      for (left, left_limits), (right, right_limits) in product(multiplied, terms(part))]
    return multiplied


def _terms_of_sum(expression: Any) -> list[Term]:
    expression = nameless(expression)
    return [(part, more + list(expression.limits)) for part, more in terms(expression.function)]


# -- readable names -----------------------------------------------------------
def nameless(expression: Any) -> Any:
    """Every bound index a Dummy of its own, so that nothing can capture it."""
    def renamed(e: Any) -> Any:
        new = {index: Dummy(index.name, **index._assumptions_orig) for index, *_ in e.limits}
        return e.func(e.function.xreplace(new), *[limit.func(*[part.xreplace(new) for part in limit])
                                                  for limit in e.limits])

    return expression.replace(lambda e: isinstance(e, Sum | Product), renamed)


def unshadowed(expression: Any) -> Any:
    """Other names for indices that a sum or product around them binds as well: a name has one range everywhere."""
    taken = _names(expression)

    def renamed(e: Any, around: frozenset[Any]) -> Any:
        if not isinstance(e, Basic) or not e.has(Sum, Product):
            return e
        if not isinstance(e, Sum | Product):
            return e.func(*[renamed(part, around) for part in e.args])
        new = {}
        for index, *_ in e.limits:
            if index in around:
                name = _new_name(taken)
                taken.add(name)
                new[index] = Symbol(name, **index._assumptions_orig)
        body = renamed(e.function, around | {index for index, *_ in e.limits})
        return e.func(body.xreplace(new), *[limit.xreplace(new) for limit in e.limits])

    return renamed(expression, frozenset())


def readable(expression: Any) -> Any:
    """Bound Dummies under their own names again, or others where these are taken."""
    def has_nameless(e: Any) -> bool:
        return isinstance(e, Sum | Product) and any(isinstance(index, Dummy) for index, *_ in e.limits)

    return expression.replace(has_nameless, lambda e: sum_over(e.function, e.limits, e.func))


def _names(*expressions: Any) -> set[str]:
    """Names in use; nameless indices do not count."""
    return {s.name for e in expressions for s in e.atoms(Symbol) if not isinstance(s, Dummy)}


def _new_name(taken: Iterable[str]) -> str:
    return next(name for name in chain(LETTERS, (f"j_{i}" for i in count(1))) if name not in taken)


def sum_over(body: Any, limits: Iterable[Any], kind: Any = Sum) -> Any:
    """The sum of a term, its indices named as before where the names are free."""
    limits = list(limits)
    if not limits:
        return body
    taken = _names(body, *limits)
    named = {}
    for limit in limits:
        index = limit[0]
        name = index.name if index.name not in taken else _new_name(taken)
        taken.add(name)
        named[index] = Symbol(name, **index._assumptions_orig)
    return kind(body.xreplace(named), *[limit.xreplace(named) for limit in limits])


# -- rule 3 -------------------------------------------------------------------
def collapse(expression: Any) -> Any:
    """Rule 3. A Kronecker delta removes a sum; what remains is split into single sums and collected.

    A delta is used only where its index is known to lie inside of the range. A free index runs over the range 1..n of
    its place: ``Sum(KroneckerDelta(j, k)*x[j], (j, 1, n))`` is ``x[k]`` for 1 <= k <= n.

    Args:
        expression: An expression in which expectations have been worked out (or stand for themselves).

    Returns:
        An equal expression: like terms collected, dummy indices named alike, coefficients as a textbook prints them.

    >>> from sympy import IndexedBase, KroneckerDelta, Sum, symbols
    >>> from dropoutlib.symbolic import collapse
    >>> x = IndexedBase("x")
    >>> j, k, n = symbols("j k n", integer=True, positive=True)
    >>> collapse(Sum(KroneckerDelta(j, k)*x[j]*x[k], (j, 1, n), (k, 1, n)))
    Sum(x[j]**2, (j, 1, n))
    """
    return collapsed(unshadowed(sympify(expression)), ranges_of_indices(expression))


def collapsed(expression: Any, ranges: Ranges) -> Any:
    """:func:`collapse` where the ranges of the indices around the expression are known."""
    names: dict[Any, list[str]] = {}
    for part in sorted(expression.atoms(Sum), key=default_sort_key):
        for index, *bounds in part.limits:
            pool = names.setdefault(tuple(bounds), [])
            if index.name not in pool:
                pool.append(index.name)
    names = {bounds: sorted(pool) for bounds, pool in names.items()}
    collected: dict[Any, Any] = {}
    for body, limits in terms(expression):
        coefficient, rest = _collapse_term(*_eliminate_deltas(body, limits, ranges), ranges, names)
        collected[rest] = collected.get(rest, S.Zero) + coefficient
    return readable(Add(*[textbook(coefficient) * rest for rest, coefficient in collected.items()]))


def inner_ranges(limits: Iterable[Any], ranges: Ranges) -> Ranges:
    """The known ranges inside of a sum: its own indices, the innermost first, and those around it."""
    own = {index: (low, high) for index, low, high in limits}
    return {**own, **{index: ends for index, ends in ranges.items() if index not in own}}


def _eliminate_deltas(body: Any, limits: list[Any], ranges: Ranges) -> Term:
    body = without_powers_of_deltas(body)
    while (step := _one_delta(body, limits, ranges)) is not None:
        body, limits = step
    return body, limits


def without_powers_of_deltas(expression: Any) -> Any:
    """A power of a delta is the delta, unless its exponent may be 0."""
    return expression.replace(lambda e: isinstance(e, Pow) and isinstance(e.base, KroneckerDelta) and e.exp.is_positive,
                              lambda e: e.base)


def _one_delta(body: Any, limits: list[Any], ranges: Ranges) -> Term | None:
    """Sum over v of delta(v, u) f(v) is f(u) if u is in the range; None when no delta can be used."""
    known = inner_ranges(limits, ranges)
    used = set().union(*(end.free_symbols for _, *ends in limits for end in ends))
    hidden = {index for part in body.atoms(ExprWithLimits) for index in part.bound_symbols} \
        | {part.args[1] for part in body.atoms(Limit)}
    for part in Mul.make_args(body):
        if not isinstance(part, KroneckerDelta):
            continue
        apart = expand(part.args[0] - part.args[1])
        for index, low, high in sorted(limits, key=lambda limit: part.args.index(limit[0]) if limit[0] in part.args
                                       else len(part.args)):
            slope = apart.coeff(index)
            other = expand(index - apart / slope) if slope in (1, -1) else index
            if index in used | hidden or index in other.free_symbols or hidden & other.free_symbols:
                continue
            others = {u: ends for u, ends in known.items() if u != index}
            if at_least_zero(low - other - 1, others) or at_least_zero(other - high - 1, others):
                return S.Zero, []
            if at_least_zero(other - low, others) and at_least_zero(high - other, others):
                moved = noting_positive(Tuple(body, index, other), lambda e: e[0].xreplace({e[1]: e[2]}), known)
                return moved, [limit for limit in limits if limit[0] != index]
    return None


def _collapse_term(body: Any, limits: list[Any], ranges: Ranges, names: dict[Any, list[str]]) -> tuple[Any, Any]:
    """(coefficient, rest) of one term; the rest is a product of sums that cannot be separated."""
    for limit in list(limits):                          # the sum of a constant, where the range cannot be empty
        index, low, high = limit
        others = [other for other in limits if other is not limit]
        used = body.free_symbols.union(*(end.free_symbols for _, *ends in others for end in ends))
        if index not in used and at_least_zero(high - low + 1, inner_ranges(others, ranges)):
            body, limits = body * (high - low + 1), others
    bounds = {limit[0]: tuple(limit[1:]) for limit in limits}

    def indices(part: Any) -> set[Any]:
        found, new = set(), set(bounds) & part.free_symbols
        while new:                                      # sums whose limits depend on each other stay together
            found |= new
            new = {v for v in bounds if v not in found
                   and (any(v in end.free_symbols for u in found for end in bounds[u])
                        or any(end.has(u) for u in found for end in bounds[v]))}
        return found

    coefficient, groups = S.One, [([S.One], indices(index)) for index in bounds if index not in body.free_symbols]
    for factor in Mul.make_args(body):
        used = indices(factor)
        if not used:
            coefficient *= factor
            continue
        factors = [factor]
        for group in [g for g in groups if g[1] & used]:
            groups.remove(group)
            factors, used = group[0] + factors, group[1] | used
        groups.append((factors, used))
    merged: list[tuple[list[Any], set[Any]]] = []
    for factors, used in groups:
        for group in [g for g in merged if g[1] & used]:
            merged.remove(group)
            factors, used = group[0] + factors, group[1] | used
        merged.append((factors, used))
    constants, rest = coefficient.as_independent(*VARYING, as_Add=False)
    for factors, used in merged:
        rest *= _canonical_sum(Mul(*factors), [limit for limit in limits if limit[0] in used], names)
    return constants, rest


def _canonical_sum(body: Any, limits: list[Any], names: dict[Any, list[str]]) -> Any:
    """One name for equal sums: of all ways to name the indices, the first in a fixed order."""
    free = _names(body, *limits)
    by_bounds: dict[Any, list[Any]] = {}
    for limit in limits:
        by_bounds.setdefault(tuple(limit[1:]), []).append(limit[0])
    taken = set(free)
    choices = []
    for bounds, indices in sorted(by_bounds.items(), key=lambda item: str(item[0])):
        pool = [name for name in names.get(bounds, []) if name not in taken]
        while len(pool) < len(indices):
            pool.append(_new_name({*taken, *pool, *chain(*names.values())}))
        taken.update(pool[:len(indices)])
        choices.append([dict(zip(indices, order, strict=True)) for order in permutations(pool[:len(indices)])])
    best = None
    for choice in product(*choices):
        named = {index: Symbol(name, **index._assumptions_orig) for part in choice for index, name in part.items()}
        ordered = [limit.xreplace(named) for limit in limits]
        if all(not (limit.free_symbols & set(named.values()) - {limit[0]}) for limit in ordered):
            ordered.sort(key=str)                       # limits that depend on each other keep their order
        candidate = Sum(body.xreplace(named), *ordered)
        if len(choices) == 1 and len(choices[0]) == 1:
            return candidate
        if best is None or _order(candidate) < _order(best):
            best = candidate
    return best


def _order(expression: Any) -> tuple[int, str]:
    text = str(expression)
    return len(text), text


def has_noise(expression: Any) -> bool:
    """True if copies of a noise stand outside E, Var and Cov."""
    if isinstance(expression, MOMENTS):
        return False
    if isinstance(expression, Indexed):
        return bool(copies(expression))
    return any(has_noise(argument) for argument in expression.args)
