"""Families of independent copies of a random variable, and what their law says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sympy import (
    Add,
    Dummy,
    Indexed,
    IndexedBase,
    Integral,
    KroneckerDelta,
    Mul,
    Piecewise,
    Product,
    Sum,
    Symbol,
    binomial,
    stats,
    sympify,
)
from sympy.core.sorting import default_sort_key
from sympy.stats.crv_types import NormalDistribution
from sympy.stats.frv_types import BernoulliDistribution
from sympy.stats.rv import RandomSymbol, is_random
from sympy.utilities.iterables import multiset_partitions

from .notation import textbook

__all__ = ["Noise", "copies", "delta", "joint_cumulant", "law_cumulant", "mean_of_function", "mean_of_product",
           "real_letters", "with_real_letters"]


class Noise(IndexedBase):  # type: ignore[misc]
    """Independent copies m[j] or M[i, j] of one SymPy random variable.

    Copies with different indices are independent, and so are different families. The law takes part
    in substitutions: ``m[j].subs(p, 0)`` is a copy of a mask that is never zero. Moments of copies are written with
    ``Expectation``, ``Variance`` and ``Covariance`` of this package and worked out by :func:`exact`; the functions
    ``E`` and ``variance`` of ``sympy.stats`` do not know families.

    Args:
        law: A random variable of ``sympy.stats``, such as ``Bernoulli("m", 1 - p)``.

    Raises:
        TypeError: If ``law`` is not a random variable of ``sympy.stats``.
        ValueError: If the law is under a condition, or both of its two values are the same, of which SymPy forgets one
            probability.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import Bernoulli, Expectation, Noise, exact
    >>> p, j = symbols("p j")
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> exact(Expectation(m[j]))
    1 - p
    """

    def __new__(cls, law: Any) -> Noise:
        if not hasattr(law, "pspace"):
            raise TypeError(f"law must be a random variable of sympy.stats, got {law!r}. If this came from a function "
                            "of sympy.stats such as E or variance: these do not know families of copies, use "
                            "Expectation, Variance and Covariance of dropoutlib.symbolic with exact()")
        distribution = getattr(law.pspace, "distribution", None)
        if distribution is None:
            raise ValueError(f"law has to be one of sympy.stats as it stands, and that of {law.symbol} is none: it is "
                             "under a condition, or made of several")
        if isinstance(distribution, BernoulliDistribution) and distribution.succ == distribution.fail:
            raise ValueError(f"law has to have two values, but both are {distribution.succ} in {law.symbol}")
        family = super().__new__(cls, law.symbol, real=True)
        family._args = (law,)   # the law takes part in subs, == and hash
        family.law = law
        return family

    @property
    def is_finite_law(self) -> bool:
        """True where the values can be gone through one by one."""
        return isinstance(self.law.pspace.distribution, BernoulliDistribution)

    @property
    def is_normal_law(self) -> bool:
        """True for a normal law."""
        return isinstance(self.law.pspace.distribution, NormalDistribution)

    @property
    def free_symbols(self) -> set[Any]:
        """With the parameters of the law; Sum.subs passes over what is not free in it."""
        return set(super().free_symbols) | set(self.law.pspace.distribution.free_symbols)


@is_random.register(Noise)  # type: ignore[untyped-decorator]
def _(family: Any) -> bool:
    return True


def _mend_product_of_zeros(by_sympy: Callable[[Any], bool | None]) -> None:
    """SymPy takes every product of zeros for 0, and its exponential for 1, also where the range may be empty."""
    def is_zero(product: Any) -> bool | None:
        filled = all(len(limit) == 3 and (limit[2] - limit[1]).is_nonnegative for limit in product.limits)
        found = by_sympy(product)
        return found if filled or not found else None

    Product._prop_handler["zero"] = Product._eval_is_zero = is_zero


_mend_product_of_zeros(Product._eval_is_zero)


def copies(expression: Any) -> list[Any]:
    """The copies m[j] in an expression, in a fixed order."""
    found = (a for a in expression.atoms(Indexed) if isinstance(a.base, Noise))
    return sorted(found, key=default_sort_key)


# -- one law ------------------------------------------------------------------
def mean_of_function(expression: Any, copy: Any) -> Any:
    """E g(m_j) for a function of one copy."""
    law = copy.base.law
    if not copy.base.is_finite_law:
        mean = with_real_letters(expression.xreplace({copy: _nameless(law)}), _mean_of_law)
        if copy.base.is_normal_law and mean.has(Integral, Piecewise):   # SymPy asks for the sign of the deviation
            mean = with_real_letters(expression.xreplace({copy: law.pspace.distribution.mean
                                                          + law.pspace.distribution.std * _STANDARD}), _mean_of_law)
        return mean
    weights = sorted(stats.density(law).dict.items(), key=default_sort_key)
    return Add(*[weight * expression.xreplace({copy: sympify(value)}) for value, weight in weights])


@cache
def _nameless(law: Any) -> Any:
    """The same law without its name: a letter of an expression that has it is a number, no noise."""
    return law.pspace.func(Dummy(law.symbol.name), law.pspace.distribution).value


def real_letters(expression: Any) -> dict[Any, Any]:
    """For every letter and entry of an expression of which nothing is said, one that is real.

    An entry that has a bound index stays an entry, of an array of real numbers.
    """
    random = {part.symbol for part in expression.atoms(RandomSymbol)}
    bound = set().union(*(part.bound_symbols for part in expression.atoms(Sum, Product)))
    names = {symbol: Symbol(symbol.name, real=True) for symbol in expression.atoms(Symbol) - random - bound
             if type(symbol) is Symbol and symbol.is_extended_real is None}
    entries = expression.atoms(Indexed)
    moving = {entry.base: IndexedBase(entry.base.label, real=True) for entry in entries
              if type(entry.base) is IndexedBase and entry.free_symbols & bound}
    return {**names, **moving, **{entry: Symbol(str(entry), real=True) for entry in entries
                                  if not entry.free_symbols & bound}}


def with_real_letters(expression: Any, work: Callable[[Any], Any]) -> Any:
    """Let SymPy work on an expression that says of its letters and entries that they are real.

    It integrates exp(-|t - u|) over t as if u were no number of the range, where nothing is said of u.
    """
    letters = real_letters(expression)
    entries = {part: real for part, real in letters.items() if part.is_Indexed}
    others = {part: real for part, real in letters.items() if not part.is_Indexed}
    return work(expression.xreplace(entries).xreplace(others)).xreplace(
        {real: part for part, real in letters.items()})


_STANDARD = stats.Normal(Dummy("u"), 0, 1)         # no letter of an expression is captured


@cache
def _mean_of_law(expression: Any) -> Any:
    return stats.E(expression)


@cache
def law_cumulant(law: Any, order: int) -> Any:
    def moment(k: int) -> Any:
        return _mean_of_law(law**k)

    lower = (binomial(order - 1, i - 1) * law_cumulant(law, i) * moment(order - i) for i in range(1, order))
    return textbook(moment(order) - sum(lower))


# -- products of copies -------------------------------------------------------
def delta(left: Any, right: Any) -> Any:
    """1 if the indices agree; a common shift is dropped, so that T - h and T - k give h and k."""
    difference = left - right
    positive = Add(*[term for term in Add.make_args(difference) if not term.could_extract_minus_sign()])
    return KroneckerDelta(positive, positive - difference)


def joint_cumulant(factors: list[Any]) -> Any:
    """kappa_r where all copies agree, 0 where two of them are independent."""
    first, *others = factors
    agree = [delta(a, b) for other in others for a, b in zip(first.indices, other.indices, strict=True)]
    return law_cumulant(first.base.law, len(factors)) * Mul(*agree)


def mean_of_product(factors: list[Any]) -> Any:
    """E m_i m_j ...: the sum over set partitions of products of joint cumulants."""
    return Add(*[Mul(*[joint_cumulant([factors[i] for i in block]) for block in blocks])
                 for blocks in multiset_partitions(list(range(len(factors))))])
