"""The three rules: linearity, the law, collapsing deltas."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

from sympy import (
    Add,
    And,
    Derivative,
    Dummy,
    Expr,
    FallingFactorial,
    Function,
    Indexed,
    Integral,
    KroneckerDelta,
    Limit,
    Mul,
    Piecewise,
    Pow,
    Product,
    RisingFactorial,
    S,
    Sum,
    Symbol,
    Tuple,
    binomial,
    expand,
    factorial,
    fraction,
    gamma,
    harmonic,
    loggamma,
    nan,
    oo,
    polygamma,
    simplify,
    sympify,
    together,
    zoo,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.relational import Relational
from sympy.core.sorting import default_sort_key
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.functions.special.hyper import TupleParametersBase
from sympy.stats import Covariance, Expectation, Variance
from sympy.stats.rv import RandomSymbol

from . import judge
from .families import (
    Noise,
    copies,
    joint_cumulant,
    law_cumulant,
    mean_of_function,
    mean_of_product,
    with_real_letters,
)
from .language import at_least_zero, is_whole, noting_positive, ranges_of_indices, read
from .notation import MOMENTS, VARYING, textbook
from .terms import (
    Ranges,
    collapse,
    collapsed,
    has_noise,
    inner_ranges,
    nameless,
    readable,
    sum_over,
    terms,
    unshadowed,
    without_powers_of_deltas,
)

__all__ = ["by_law", "collapse", "cumulant", "exact", "linear", "same"]


def _each_moment(expression: Any, change: Callable[[Any, Ranges], Any], ranges: Ranges | None = None) -> Any:
    """Rewrite every E, Var and Cov of an expression, the innermost first, in the ranges of the indices around it."""
    expression = sympify(expression)
    if ranges is None:
        expression, ranges = unshadowed(expression), ranges_of_indices(expression)
    if not isinstance(expression, Expr) or not expression.has(*MOMENTS):
        return expression
    inside = inner_ranges(expression.limits, ranges) if isinstance(expression, Sum | Product) else ranges
    arguments = [_each_moment(part, change, inside) if isinstance(part, Expr) else part for part in expression.args]
    rebuilt = expression.func(*arguments)
    return change(rebuilt, ranges) if isinstance(rebuilt, MOMENTS) else rebuilt


def _sides(moment: Any) -> tuple[Any, Any]:
    """The two arguments of Cov; those of Var are equal."""
    return moment.args[0], moment.args[-1]


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
    return _each_moment(expression, lambda moment, ranges: _linear(moment))


def _linear(moment: Any) -> Any:
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

    return readable(mean(moment.args[0]) if isinstance(moment, Expectation) else covariance(*_sides(moment)))


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
    return _each_moment(expression, _by_law)


def _by_law(moment: Any, ranges: Ranges) -> Any:
    if isinstance(moment, Expectation):
        return _mean_by_law(moment.args[0], ranges)
    left, right = _sides(moment)
    product_mean, left_mean, right_mean = (_mean_by_law(e, ranges) for e in (left * right, left, right))
    if any(isinstance(part, Expectation) for whole in (product_mean, left_mean, right_mean)
           for part in Mul.make_args(whole)):
        return moment
    return _collect(product_mean - left_mean * right_mean)


def _mean_by_law(inside: Any, ranges: Ranges) -> Any:
    """E of a product: independent families apart, each by the first rule that fits."""
    if inside.has(*MOMENTS):
        return Expectation(inside)          # a mean inside a mean
    for form in dict.fromkeys((_repeated_as_powers(inside, ranges), inside)):
        result = Mul(*[_mean_of_group(group, ranges) for group in _independent_groups(Mul.make_args(form))])
        if not result.has(Expectation):
            break
    return result


def _repeated_as_powers(expression: Any, ranges: Ranges) -> Any:
    """A product whose factor does not depend on its index is a power; of another one, the noise that does not."""
    if expression.is_Atom or isinstance(expression, Indexed) or not expression.has(Product):
        return expression
    inside = inner_ranges(expression.limits, ranges) if isinstance(expression, Sum | Product) else ranges
    changed = expression.func(*[_repeated_as_powers(part, inside) if isinstance(part, Expr) else part
                                for part in expression.args])
    if not isinstance(changed, Product) or len(changed.limits) != 1:
        return changed
    (index, low, high), = changed.limits
    if not at_least_zero(high - low + 1, ranges):
        return changed
    if index not in changed.function.free_symbols:
        return changed.function ** (high - low + 1)
    repeated = [factor for factor in Mul.make_args(changed.function)
                if index not in factor.free_symbols and has_noise(factor)]
    return Product(changed.function / Mul(*repeated), (index, low, high)) * Mul(*repeated) ** (high - low + 1)


def _independent_groups(factors: tuple[Any, ...]) -> list[list[Any]]:
    groups: list[tuple[list[Any], set[Any]]] = []
    for factor in factors:
        members, families = [factor], {copy.base for copy in copies(factor)}
        for group in [g for g in groups if g[1] & families]:
            groups.remove(group)
            members, families = group[0] + members, group[1] | families
        groups.append((members, families))
    return [members for members, _ in groups]


def _mean_of_group(factors: list[Any], ranges: Ranges) -> Any:
    whole = Mul(*factors)
    present = copies(whole)
    if not present:
        return whole
    if len(present) == 1 and not whole.has(ExprWithLimits):
        mean = noting_positive(whole, lambda e: mean_of_function(e, *copies(e)), ranges)
        is_shown = _is_finished(mean) and (present[0].base.is_finite_law or _is_confirmed(Expectation(whole), mean))
        return mean if is_shown else Expectation(whole)
    noises: list[Any] = []
    result = S.One
    for factor in factors:
        base, exponent = factor.as_base_exp()
        if isinstance(base, Product) and exponent.is_Integer and exponent > 0:
            factor = Product(base.function**exponent, *base.limits)
        if isinstance(base, Indexed) and isinstance(base.base, Noise) and exponent.is_Integer and exponent > 0:
            noises += [base] * int(exponent)
        elif not copies(factor):
            result *= factor
        elif isinstance(factor, Product) and _one_draw_a_factor(factor, whole / base**exponent, ranges):
            result *= _product_of_means(factor, ranges)
        else:
            return Expectation(whole)
    return result * noting_positive(Tuple(*noises), mean_of_product, ranges) if noises else result


def _is_finished(mean: Any) -> bool:
    """A closed and finite result of the law, in functions of the language."""
    return not mean.has(Integral, Piecewise, RandomSymbol, TupleParametersBase, oo, -oo, zoo, nan)


@lru_cache(maxsize=1024)
def _is_confirmed(integral: Any, closed: Any) -> bool:
    """Does an integral of SymPy agree with quadrature, wherever it stands in a claim and whatever hides it there?"""
    try:
        claim = read([integral, closed])
        return judge.disagreement(claim, integral, closed, judge.cases(claim, {})[-1:]) is None
    except (ArithmeticError, ValueError):
        return False


def _product_of_means(factor: Any, ranges: Ranges) -> Any:
    (index, low, high), = factor.limits
    mean = _mean_by_law(factor.function, inner_ranges(factor.limits, ranges))
    if index not in mean.free_symbols and at_least_zero(high - low + 1, ranges):
        return mean ** (high - low + 1)
    return Product(mean, (index, low, high))


def _one_draw_a_factor(factor: Any, others: Any, ranges: Ranges) -> bool:
    """Are the factors of a Product independent of each other and of everything else?"""
    (index, low, high), *more = factor.limits
    drawn = copies(factor.function)
    if more or others.has(Product) or factor.function.has(ExprWithLimits) \
            or len(drawn) != 1 or index not in drawn[0].indices:
        return False
    position = drawn[0].indices.index(index)
    return all(at_least_zero(low - copy.indices[position] - 1, ranges)
               or at_least_zero(copy.indices[position] - high - 1, ranges)
               for copy in copies(others) if copy.base == drawn[0].base)


def _collect(expression: Any) -> Any:
    """Like terms together; a power of a delta is the delta."""
    expanded = without_powers_of_deltas(expand(expression))
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
    expression = sympify(expression)
    return worked_out(expression, ranges_of_indices(expression))


def worked_out(expression: Any, ranges: Ranges) -> Any:
    """:func:`exact` where the ranges of the indices around the expression are known."""
    expression = differentiated(unshadowed(sympify(expression)), ranges)
    return collapsed(_each_moment(_each_moment(expression, lambda moment, _: _linear(moment), ranges), _by_law, ranges),
                     ranges)


def differentiated(expression: Any, ranges: Ranges) -> Any:
    """Derivatives worked out: of a mean, after the mean; what stays an expectation is left alone."""
    if not expression.has(Derivative):
        return expression
    if not isinstance(expression, Derivative):
        inside = inner_ranges(expression.limits, ranges) if isinstance(expression, Sum | Product) else ranges
        return expression.func(*[differentiated(part, inside) if hasattr(part, "has") and part.has(Derivative) else part
                                 for part in expression.args])
    body = nameless(differentiated(expression.expr, ranges))
    if body.has(*MOMENTS):
        body = nameless(worked_out(body, ranges))
    if body.has(*MOMENTS):
        return expression
    return readable(noting_positive(Tuple(body, *expression.variable_count), lambda e: e[0].diff(*e[1:]), ranges))


def same(left: Any, right: Any) -> bool:
    """Are two expressions equal for every size? Sound, not complete: False means "not shown".

    Both sides are worked out with :func:`exact`; quotients are compared crosswise and what
    remains is left to SymPy's ``simplify``. Printed forms are never compared. The judge has to agree.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import same
    >>> x = IndexedBase("x")
    >>> j, k, n = symbols("j k n", integer=True, positive=True)
    >>> same(Sum(x[j], (j, 1, n))**2, Sum(x[j]*x[k], (j, 1, n), (k, 1, n)))
    True
    """
    return bool(difference(left, right) == 0)


def difference(left: Any, right: Any, ranges: Ranges | None = None) -> Any:
    """left - right worked out: 0 if the rules show that they are equal."""
    left, right = sympify(left), sympify(right)
    known = ranges_of_indices(left - right) if ranges is None else ranges
    left, right = worked_out(left, known), worked_out(right, known)
    rest = collapsed(left - right, known)
    if rest == 0:
        return rest
    left, right = (_from_one(_split_products(side, known)) for side in (left, right))
    if collapsed(left - right, known) == 0:
        return S.Zero
    inside = _collapse_inside(left, known) - _collapse_inside(right, known)
    if _opaque(inside) == 0 or collapsed(inside, known) == 0:
        return S.Zero
    numerator = fraction(together(rest))[0]
    if collapsed(expand(numerator, power_exp=True), known) == 0:
        return S.Zero
    if not rest.has(*MOMENTS):
        settled = worked_out(_closed(rest, known), known)
        if settled == 0 or _simplifies_to_zero(expand(settled, power_exp=True)) or _simplifies_to_zero(settled):
            return S.Zero
    return rest


def _opaque(expression: Any) -> Any:
    """Sums, products and means as letters: SymPy closes sums without a look at their range, and lets free indices in.

    So is an integral, which SymPy would work out unseen, and a limit or derivative that holds one, in which its letter
    would be a constant. A mean is one letter as a whole: a letter in it would be no noise, and its mean the letter
    itself.
    """
    letters: dict[Any, Any] = {}

    def alike(e: Any, depth: int) -> Any:
        """The same with one name for the indices of all sums of one depth."""
        if isinstance(e, Sum | Product):
            inside = e.func(alike(e.function, depth + len(e.limits)), *e.limits)
            return inside.xreplace({index: Symbol(f"_{depth + i}", integer=True)
                                    for i, (index, *_) in enumerate(inside.limits)})
        return within(e, lambda part: alike(part, depth))

    def named(e: Any) -> Any:
        if isinstance(e, (Sum, Product, Integral, Limit, Derivative, *MOMENTS)):
            return letters.setdefault(alike(e, 0), Dummy(real=True))
        return within(e, named)

    def within(e: Any, change: Callable[[Any], Any]) -> Any:
        if e.is_Atom or isinstance(e, Indexed) or not e.has(Sum, Product, Integral, *MOMENTS):
            return e
        return _in_every_part(e, change)

    return named(expression)


def _in_every_part(expression: Any, change: Callable[[Any], Any]) -> Any:
    """The same of changed arguments; the values and the relations of a case distinction stand some levels deeper."""
    def changed(part: Any) -> Any:
        if isinstance(part, ExprCondPair | Relational | And):
            return part.func(*map(changed, part.args))
        return change(part) if isinstance(part, Expr) else part

    return expression.func(*map(changed, expression.args))


_FACTOR = Dummy("l", integer=True)      # one name for the index of every product


def _split_products(expression: Any, ranges: Ranges) -> Any:
    """Products over a range as products of their factors, powers outside, all with the same index."""
    if expression.is_Atom or isinstance(expression, Indexed) or not expression.has(Product):
        return expression
    if not isinstance(expression, Product) or len(expression.limits) != 1 or expression.function.has(ExprWithLimits):
        inside = inner_ranges(expression.limits, ranges) if isinstance(expression, Sum | Product) else ranges
        return expression.func(*[_split_products(part, inside) if isinstance(part, Expr) else part
                                 for part in expression.args])
    (index, low, high), = expression.limits
    result = S.One
    for factor in Mul.make_args(expression.function):
        base, exponent = factor.as_base_exp()
        if exponent.is_Integer and exponent > 0:
            factor = base
        else:
            exponent = S.One
        if index not in factor.free_symbols and at_least_zero(high - low + 1, ranges):
            result *= factor ** (exponent * (high - low + 1))
        else:
            result *= Product(factor.xreplace({index: _FACTOR}), (_FACTOR, low, high)) ** exponent
    return result


def _from_one(expression: Any) -> Any:
    """Sums whose range begins at a number begin at 1, unless their index is declared to stay below."""
    def moved(e: Any) -> Any:
        shifts = {index: index + low - 1 for index, low, _ in e.limits
                  if low.is_Integer and low != 1 and not index.is_nonpositive}
        if not shifts or any(set(shifts) & end.free_symbols for _, *ends in e.limits for end in ends):
            return e
        return Sum(e.function.xreplace(shifts), *[(index, 1, high - low + 1) if index in shifts else (index, low, high)
                                                  for index, low, high in e.limits])

    return nameless(expression).replace(lambda e: isinstance(e, Sum), moved)


def _closed(expression: Any, ranges: Ranges) -> Any:
    """Sums and products in closed form where their range cannot be empty, limits and integrals worked out."""
    if expression.is_Atom or isinstance(expression, Indexed):
        return expression
    if isinstance(expression, Sum | Product):
        *inner, (index, low, high) = expression.limits
        body = expression.func(expression.function, *inner) if inner else expression.function
        body = _closed(body, inner_ranges([(index, low, high)], ranges))
        # a delta is left to collapse(): SymPy finds a j with 41 j = k for every k
        may_be_closed = at_least_zero(high - low + 1, ranges) and not body.has(KroneckerDelta, ExprWithLimits)
        done = _closed_by_induction(expression.func, body, index, low, high, ranges) if may_be_closed else None
        return expression.func(body, (index, low, high)) if done is None else done
    closed = _in_every_part(expression, lambda part: _closed(part, ranges))
    if isinstance(closed, Limit):
        return with_real_letters(closed, lambda e: e.doit(deep=False))
    return _integrated(closed) if isinstance(closed, Integral) else closed


def _integrated(integral: Any) -> Any:
    """SymPy's closed form, where quadrature confirms it."""
    factor, body = integral.function.as_independent(integral.limits[0][0], as_Add=False)
    bare = Integral(body, *integral.limits)
    if body.has(Sum, Product):          # which SymPy closes without a look at their range
        return integral
    done = with_real_letters(bare, lambda e: e.doit(deep=False))
    if done.has(Integral) and not done.has(bare):   # SymPy has brought out a factor, and gives up where it would not
        done = done.replace(lambda e: isinstance(e, Integral),
                            lambda e: with_real_letters(Integral(*e.args), lambda e: e.doit(deep=False)))
    return factor * (done if not done.has(Integral) and _is_confirmed(bare, done) else bare)


def _closed_by_induction(kind: Any, body: Any, index: Any, low: Any, high: Any, ranges: Ranges) -> Any:
    """The closed form of SymPy for a sum or product, if induction over its end confirms it, else None.

    An end of its own keeps SymPy from what it gets wrong: a sum over k of (-1)^k binomial(n, k) P(k) up to the same n
    is 0 for every polynomial P, it says.
    """
    length = Dummy("length", integer=True, nonnegative=True)
    form = kind(body, (index, low, low + length - 1)).doit(deep=False)
    if form.has(oo, nan, zoo, kind):
        return None
    first, step = form.xreplace({length: S.Zero}), form.xreplace({length: length + 1})
    next_one = body.xreplace({index: low + length})
    shown = (first, step - form - next_one) if kind is Sum else (first - 1, step - form * next_one)
    if not all(map(_simplifies_to_zero, shown)):
        return None
    return _without_poles(form, length, high - low + 1, ranges)


def _without_poles(form: Any, length: Any, whole: Any, ranges: Ranges) -> Any:
    """A closed form for the whole length, written without a pole, also at any shorter length; None if one may be left.

    At a pole a closed form is a limit, which depends on the way: (n - 3) (n - 2) ... (2 n - 4) is the quotient of
    gamma(2 n - 3) and gamma(n - 3), but not its limit n -> 2. Where a letter moves freely there is only one way.
    """
    def is_apart(e: Any) -> bool:
        """Is e no whole number below 1, whatever the sizes are?"""
        with_letter = [term for term in Add.make_args(expand(e))
                       if term.has(Indexed) or any(not is_whole(s, lengths) for s in term.free_symbols)]
        if with_letter:
            return not any(is_whole(s, lengths) for term in with_letter if not term.has(Indexed)
                           for s in term.free_symbols)
        numerator, denominator = fraction(together(e))
        return bool(e.is_real is False or (denominator.is_Integer and at_least_zero(expand(numerator - 1), lengths)))

    def turned(start: Any, count: Any) -> Any:
        """x (x + 1) ... (x + k - 1): 0 if it runs over 0, begun at the other end if it stays below."""
        other = 1 - start - count
        if is_apart(start):
            return RisingFactorial(start, count)
        if is_apart(other):
            return (-1)**count * RisingFactorial(other, count)
        runs_over_zero = all(end.is_integer and at_least_zero(end, ranges) for end in (-start, -other))
        return S.Zero if runs_over_zero else nan

    def has_no_pole(part: Any) -> bool:
        if isinstance(part, Pow):
            return is_apart(part.base) or is_apart(-part.base) or not part.exp.is_negative \
                or not part.base.has(length) or part.base.has(Function)
        if isinstance(part, gamma | loggamma | polygamma):
            return is_apart(part.args[-1])
        if isinstance(part, factorial | binomial | harmonic):
            return is_apart(part.args[0] + 1)
        return not isinstance(part, FallingFactorial | TupleParametersBase)

    lengths = {length: (S.Zero, whole), **ranges}
    if not all(map(has_no_pole, form.atoms(Function, Pow))):
        return None
    form = form.xreplace({length: whole}).replace(RisingFactorial, turned)
    return None if form.has(nan, zoo, oo) else form


def _simplifies_to_zero(expression: Any) -> bool:
    try:
        return bool(with_real_letters(_opaque(expression), simplify) == 0)
    except StopIteration:       # sum_add of SymPy 1.14 looks for a Sum among factors where there is none
        return False


def _collapse_inside(expression: Any, ranges: Ranges) -> Any:
    """Collapse sums in exponents, denominators and arguments too, the innermost first; exp(a + b) = exp(a) exp(b)."""
    if expression.is_Atom or isinstance(expression, (Indexed, *MOMENTS)):
        return expression
    if isinstance(expression, Sum):
        inside = inner_ranges(expression.limits, ranges)
        return collapsed(Sum(_collapse_inside(expression.function, inside), *expression.limits), ranges)
    if isinstance(expression, ExprWithLimits):
        return expression
    arguments = [_collapse_inside(part, ranges) if isinstance(part, Expr) else part for part in expression.args]
    if not expression.is_Add and not expression.is_Mul:
        arguments = [collapsed(argument, ranges) if isinstance(argument, Expr) else argument for argument in arguments]
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
    return collapsed(total, ranges_of_indices(total))


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


