"""The three rules: linearity, the law, collapsing deltas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from sympy import (
    Derivative,
    Indexed,
    KroneckerDelta,
    Mul,
    Product,
    S,
    Sum,
    expand,
    fraction,
    simplify,
    sympify,
    together,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.sorting import default_sort_key
from sympy.stats import Covariance, Expectation, Variance
from sympy.stats.rv import RandomSymbol

from .families import Noise, copies, joint_cumulant, law_cumulant, mean_of_function, mean_of_product
from .notation import MOMENTS, VARYING, textbook
from .terms import collapse, has_noise, sum_over, terms

__all__ = ["by_law", "collapse", "cumulant", "exact", "linear", "same"]


def _each_moment(expression: Any, mean: Callable[[Any], Any], covariance: Callable[[Any, Any], Any]) -> Any:
    """Rewrite every E, Var and Cov of an expression, the innermost first."""
    def rewrite(moment: Any) -> Any:
        if isinstance(moment, Expectation):
            return mean(moment.args[0])
        left, right = moment.args if isinstance(moment, Covariance) else moment.args[:1] * 2
        return covariance(left, right)

    return sympify(expression).replace(lambda e: isinstance(e, MOMENTS), rewrite)


def linear(expression: Any) -> Any:
    """Rule 1. E is linear and Cov bilinear: constants and sums come out, powers are multiplied out.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import Bernoulli, Expectation, Noise, linear
    >>> p, w = symbols("p"), IndexedBase("w")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> linear(Expectation(Sum(w[j]*m[j], (j, 1, n))))
    Sum(Expectation(m[j])*w[j], (j, 1, n))
    """
    def mean(inside: Any) -> Any:
        total = S.Zero
        for body, limits in terms(inside):
            constant, random = _constant_and_random(body)
            coefficient, constant = constant.as_coeff_Mul()
            total += coefficient * sum_over(constant * Expectation(random), limits)
        return total

    def covariance(left: Any, right: Any) -> Any:
        total = S.Zero
        for (body_1, limits_1), (body_2, limits_2) in product(terms(left), terms(right)):
            (constant_1, random_1), (constant_2, random_2) = map(_constant_and_random, (body_1, body_2))
            if random_1 != 1 and random_2 != 1:
                moment = Variance(random_1) if random_1 == random_2 else Covariance(random_1, random_2)
                total += sum_over(constant_1 * constant_2 * moment, limits_1 + limits_2)
        return total

    return _each_moment(expression, mean, covariance)


def _constant_and_random(body: Any) -> tuple[Any, Any]:
    factors = Mul.make_args(body)
    random = [factor for factor in factors if has_noise(factor)]
    return Mul(*[factor for factor in factors if factor not in random]), Mul(*random)


def by_law(expression: Any) -> Any:
    """Rule 2. Independence and the law: E m_j = 1 - p, Cov(m_j, m_k) = p(1 - p) delta_jk.

    Products of copies follow from the cumulants of their law (any law, any degree), a function of one
    copy from the law itself, a product over an index from one draw a factor. Everything else is
    left as it stands, never guessed.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import Bernoulli, Covariance, Noise, by_law
    >>> p = symbols("p")
    >>> j, k = symbols("j k", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> by_law(Covariance(m[j], m[k]))
    p*(1 - p)*KroneckerDelta(j, k)
    """
    def covariance(left: Any, right: Any) -> Any:
        product_mean, left_mean, right_mean = map(_mean_by_law, (left * right, left, right))
        if any(isinstance(part, Expectation) for whole in (product_mean, left_mean, right_mean)
               for part in Mul.make_args(whole)):
            return Variance(left) if left == right else Covariance(left, right)
        return _collect(product_mean - left_mean * right_mean)

    return _each_moment(expression, _mean_by_law, covariance)


def _mean_by_law(inside: Any) -> Any:
    """E of a product: independent families apart, each by the first rule that fits."""
    if inside.has(*MOMENTS) or any(copies(copy.base.law) for copy in copies(inside)):
        return Expectation(inside)          # a mean inside a mean, or a law that is itself random
    result = S.One
    for group in _independent_groups(Mul.make_args(inside)):
        result *= _mean_of_group(group)
    return result


def _independent_groups(factors: tuple[Any, ...]) -> list[list[Any]]:
    groups: list[tuple[list[Any], set[Any]]] = []
    for factor in factors:
        members, families = [factor], {copy.base for copy in copies(factor)}
        for group in [g for g in groups if g[1] & families]:
            groups.remove(group)
            members, families = group[0] + members, group[1] | families
        groups.append((members, families))
    return [members for members, _ in groups]


def _mean_of_group(factors: list[Any]) -> Any:
    whole = Mul(*factors)
    present = copies(whole)
    if not present:
        return whole
    if len(present) == 1 and not whole.has(ExprWithLimits):
        return mean_of_function(whole, present[0])
    noises: list[Any] = []
    result = S.One
    for factor in factors:
        base, exponent = factor.as_base_exp()
        if isinstance(base, Indexed) and isinstance(base.base, Noise) and exponent.is_Integer and exponent > 0:
            noises += [base] * int(exponent)
        elif not copies(factor):
            result *= factor
        elif isinstance(factor, Product) and _one_draw_a_factor(factor, whole / factor):
            result *= Product(_mean_by_law(factor.function), *factor.limits).doit()
        else:
            return Expectation(whole)
    return result * mean_of_product(noises) if noises else result


def _one_draw_a_factor(factor: Any, others: Any) -> bool:
    """Are the factors of a Product independent of each other and of everything else?"""
    (index, low, high), *more = factor.limits
    drawn = copies(factor.function)
    if more or others.has(Product) or factor.function.has(ExprWithLimits) \
            or len(drawn) != 1 or index not in drawn[0].indices:
        return False
    position = drawn[0].indices.index(index)
    return all((low - copy.indices[position]).is_positive or (copy.indices[position] - high).is_positive
               for copy in copies(others) if copy.base == drawn[0].base)


def _collect(expression: Any) -> Any:
    """Like terms together; a power of a delta is the delta."""
    expanded = expand(expression).replace(
        lambda e: e.is_Pow and isinstance(e.base, KroneckerDelta), lambda e: e.base)
    collected: dict[Any, Any] = {}
    for term in expanded.as_ordered_terms():
        coefficient, rest = term.as_independent(*VARYING, as_Add=False)
        collected[rest] = collected.get(rest, S.Zero) + coefficient
    return sum((textbook(coefficient) * rest for rest, coefficient in collected.items()), S.Zero)


def exact(expression: Any) -> Any:
    """All three rules: E, Var and Cov worked out for sums of any size.

    What the rules cannot decide stays an unevaluated ``Expectation``.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import Bernoulli, Noise, Variance, exact
    >>> p, x = symbols("p"), IndexedBase("x")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> exact(Variance(Sum(m[j]*x[j], (j, 1, n))))
    p*(1 - p)*Sum(x[j]**2, (j, 1, n))
    """
    expression = sympify(expression).replace(lambda e: isinstance(e, Derivative), lambda e: e.doit(deep=False))
    return collapse(by_law(linear(expression)))


def same(left: Any, right: Any) -> bool:
    """Are two expressions equal for every size? Sound, not complete: False means "not shown".

    Both sides are worked out with :func:`exact`; quotients are compared crosswise and what
    remains is left to SymPy's ``doit`` and ``simplify``. Printed forms are never compared.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import same
    >>> x = IndexedBase("x")
    >>> j, k, n = symbols("j k n", integer=True, positive=True)
    >>> same(Sum(x[j], (j, 1, n))**2, Sum(x[j]*x[k], (j, 1, n), (k, 1, n)))
    True
    """
    return bool(difference(left, right) == 0)


def difference(left: Any, right: Any) -> Any:
    """left - right worked out: 0 if the rules show that they are equal."""
    rest = collapse(exact(left) - exact(right))
    if rest == 0:
        return rest
    if collapse(_collapse_inside(exact(left)) - _collapse_inside(exact(right))) == 0:
        return S.Zero
    numerator = fraction(together(rest))[0]
    if collapse(expand(numerator, power_exp=True)) == 0:
        return S.Zero
    if not rest.has(*MOMENTS):
        settled = exact(rest.doit())
        if settled == 0 or _simplifies_to_zero(expand(settled, power_exp=True)) or _simplifies_to_zero(settled):
            return S.Zero
    return rest


def _simplifies_to_zero(expression: Any) -> bool:
    try:
        return bool(simplify(expression) == 0)
    except StopIteration:       # sum_add of SymPy 1.14 looks for a Sum among factors where there is none
        return False


def _collapse_inside(expression: Any) -> Any:
    """Collapse sums in exponents, denominators and arguments too, the innermost first; exp(a + b) = exp(a) exp(b)."""
    if expression.is_Atom or isinstance(expression, (Indexed, *MOMENTS)):
        return expression
    if isinstance(expression, Sum):
        return collapse(Sum(_collapse_inside(expression.function), *expression.limits))
    if isinstance(expression, ExprWithLimits):
        return expression
    arguments = [_collapse_inside(argument) for argument in expression.args]
    if not expression.is_Add and not expression.is_Mul:
        arguments = [collapse(argument) for argument in arguments]
        return expand(expression.func(*arguments), deep=False, power_exp=True, multinomial=False, mul=False)
    return expression.func(*arguments)


def cumulant(z: Any, order: int) -> Any:
    """The cumulant of a law, or of a sum that is linear in independent copies, for any size.

    Cumulants of independent terms add, and kappa_r(c m) = c^r kappa_r(m); so the whole distance of
    a linear unit from the normal law is in kappa_3, kappa_4, ...

    Args:
        z: A random variable of ``sympy.stats``, or a sum such as ``Sum(w[j]*m[j], (j, 1, n))``.
        order: The order r, at least 1.

    Raises:
        ValueError: If ``z`` is not linear in the noise, or ``order`` is below 1.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import Bernoulli, cumulant
    >>> p = symbols("p")
    >>> cumulant(Bernoulli("m", 1 - p), 3)
    p*(1 - p)*(2*p - 1)
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    if isinstance(z, RandomSymbol):
        return law_cumulant(z, order)
    if order == 1:
        return exact(Expectation(z))
    total = S.Zero
    for picked in product(*[_linear_terms(z) for _ in range(order)]):
        noises = [noise for _, noise, _ in picked]
        if len({noise.base for noise in noises}) == 1:
            constants = Mul(*[constant for constant, _, _ in picked])
            total += sum_over(constants * joint_cumulant(noises), [limit for _, _, more in picked for limit in more])
    return collapse(total)


def _linear_terms(z: Any) -> list[tuple[Any, Any, list[Any]]]:
    """The terms of z as (constant, copy, limits); terms without noise have no cumulants above the first."""
    found = []
    for body, limits in terms(sympify(z)):
        constant, random = _constant_and_random(body)
        if random == 1:
            continue
        if not (isinstance(random, Indexed) and isinstance(random.base, Noise)):
            raise ValueError(f"z must be linear in independent copies of a noise, got the factor {random}")
        found.append((constant, random, limits))
    return sorted(found, key=lambda term: default_sort_key(term[1]))


