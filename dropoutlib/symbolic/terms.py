"""Expressions as lists of terms: a product and the sums in front of it.

Every dummy index becomes a nameless ``Dummy`` while products are multiplied out, so no index can be
captured; readable names come back when a term is put together again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count, permutations, product
from typing import Any

from sympy import Add, Derivative, Dummy, Indexed, KroneckerDelta, Mul, Pow, S, Sum, Symbol
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.sorting import default_sort_key

from .families import copies
from .notation import MOMENTS, VARYING, textbook

__all__ = ["Term", "collapse", "sum_over", "terms"]

Term = tuple[Any, list[Any]]                # (product, limits); the innermost sum first
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
    body = expression.function
    limits: list[Any] = []
    for position, (index, low, high) in enumerate(expression.limits):
        nameless = Dummy(index.name, **index._assumptions_orig)
        hidden = any(index in part.bound_symbols for part in body.atoms(ExprWithLimits))
        body = body.subs(index, nameless) if hidden else body.xreplace({index: nameless})
        limits = [limit.xreplace({index: nameless}) for limit in limits]
        limits.append(expression.limits[position].func(nameless, low, high))
    return [(part, more + limits) for part, more in terms(body)]


# -- readable names -----------------------------------------------------------
def _names(*expressions: Any) -> set[str]:
    """Names in use; nameless indices do not count."""
    return {s.name for e in expressions for s in e.atoms(Symbol) if not isinstance(s, Dummy)}


def _new_name(taken: Iterable[str]) -> str:
    return next(name for name in chain(LETTERS, (f"j_{i}" for i in count(1))) if name not in taken)


def sum_over(body: Any, limits: list[Any]) -> Any:
    """The sum of a term, its indices named as before where the names are free."""
    if not limits:
        return body
    taken = _names(body, *limits)
    named = {}
    for limit in limits:
        index = limit[0]
        name = index.name if index.name not in taken else _new_name(taken)
        taken.add(name)
        named[index] = Symbol(name, **index._assumptions_orig)
    return Sum(body.xreplace(named), *[limit.xreplace(named) for limit in limits])


# -- rule 3 -------------------------------------------------------------------
def collapse(expression: Any) -> Any:
    """Rule 3. A Kronecker delta removes a sum; what remains is split into single sums and collected.

    A free index stands for one of the units of the sum it meets: ``Sum(KroneckerDelta(j, k)*x[j], (j, 1, n))``
    is ``x[k]``, with k in 1..n understood.

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
    expression = expression.replace(lambda e: isinstance(e, Derivative), lambda e: e.doit(deep=False))
    names: dict[Any, list[str]] = {}
    for part in sorted(expression.atoms(Sum), key=default_sort_key):
        for index, *bounds in part.limits:
            pool = names.setdefault(tuple(bounds), [])
            if index.name not in pool:
                pool.append(index.name)
    names = {bounds: sorted(pool) for bounds, pool in names.items()}
    collected: dict[Any, Any] = {}
    for body, limits in terms(expression):
        coefficient, rest = _collapse_term(*_eliminate_deltas(body, limits), names)
        collected[rest] = collected.get(rest, S.Zero) + coefficient
    return Add(*[textbook(coefficient) * rest for rest, coefficient in collected.items()])


def _eliminate_deltas(body: Any, limits: list[Any]) -> Term:
    limits = list(limits)
    body = body.replace(lambda e: isinstance(e, Pow) and isinstance(e.base, KroneckerDelta), lambda e: e.base)
    while (step := _one_delta(body, limits)) is not None:
        body, limits = step
    return body, limits


def _one_delta(body: Any, limits: list[Any]) -> Term | None:
    """Sum over v of delta(v, u) f(v) is f(u); None when no delta can be used."""
    bounds = {limit[0]: tuple(limit[1:]) for limit in limits}
    hidden = {index for part in body.atoms(ExprWithLimits) for index in part.bound_symbols}
    for part in Mul.make_args(body):
        if not isinstance(part, KroneckerDelta):
            continue
        left, right = part.args[:2]
        for index, other in ((left, right), (right, left)):
            if index not in bounds or hidden & other.free_symbols \
                    or any(index in bound.free_symbols for bound in chain(*bounds.values())):
                continue
            low, high = bounds[index]
            if (other - low).is_negative or (high - other).is_negative:
                return S.Zero, []
            inside = bounds[other] == (low, high) if other in bounds else \
                (other.is_Atom or ((other - low).is_nonnegative and (high - other).is_nonnegative)) \
                and not set(bounds) & other.free_symbols
            if inside:
                return body.xreplace({index: other}), [limit for limit in limits if limit[0] != index]
    return None


def _collapse_term(body: Any, limits: list[Any], names: dict[Any, list[str]]) -> tuple[Any, Any]:
    """(coefficient, rest) of one term; the rest is a product of sums that cannot be separated."""
    bounds = {limit[0]: tuple(limit[1:]) for limit in limits}

    def indices(part: Any) -> set[Any]:
        found, new = set(), set(bounds) & part.free_symbols
        while new:                                      # sums whose limits depend on each other stay together
            found |= new
            new = {v for v in bounds if v not in found
                   and any(v in b.free_symbols for u in found for b in bounds[u])} \
                | {v for v in bounds if v not in found and any(b.has(u) for u in found for b in bounds[v])}
        return found

    coefficient, groups = S.One, list[tuple[list[Any], set[Any]]]()
    for part in Mul.make_args(body):
        factors, used = [part], indices(part)
        if not used:
            coefficient *= part
            continue
        for group in [g for g in groups if g[1] & used]:
            groups.remove(group)
            factors, used = group[0] + factors, group[1] | used
        groups.append((factors, used))
    used_somewhere = set().union(*(group[1] for group in groups))
    for index in [v for v in bounds if v not in used_somewhere]:
        if indices(index) != {index}:
            groups.append(([S.One], indices(index)))
            continue
        low, high = bounds[index]
        coefficient *= high - low + 1                   # the sum of a constant
    constants, rest = coefficient.as_independent(*VARYING, as_Add=False)
    for factors, used in groups:
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
    for bounds, indices in by_bounds.items():
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
