"""The language of claims: what may be said, about which numbers, and under which condition.

A claim is an equation between expressions that are made of

* whole numbers, fractions and the constants pi, e and Euler's gamma (no floats: they are rounded, a claim is not);
* symbols for real numbers. A symbol's assumptions are its domain (``positive=True`` ...), and so is its place: the
  rate of a Bernoulli law lies in (0, 1), a deviation and the argument of a logarithm are positive, a denominator is
  not zero, a size is a whole number;
* entries x[j], W[a, j] of arrays of real numbers, which have an entry for every whole number;
* copies m[j], M[a, j] of families of Bernoulli, normal or uniform noise (:class:`~dropoutlib.symbolic.Noise`).
  Families are independent and have different names; inside E, Var and Cov a copy is random, outside of them it is an
  entry like any other;
* sums and products over explicit ranges, empty where the upper end is below the lower end; Kronecker deltas;
* quotients, products and powers of these; Abs, sign, Max, Min and case distinctions; exp, log, cosh, sinh, tanh, cos,
  sin, atan; factorial and binomial of whole numbers; gamma, loggamma, digamma, polygamma; erf, erfi, erfc, and the
  standard normal Phi and phi; conjugate, which is its argument;
* Expectation, Variance and Covariance without conditions;
* derivatives by a real symbol or an entry of an array, except of functions with a kink; definite integrals over one
  variable and limits at a number or infinity, both without noise. No other letter may stand
  under an integral up to infinity, unless that falls like an exponential; that it does is a condition.

Everything else is refused with :class:`~dropoutlib.symbolic.NotAClaim`, which names the part. A free index runs over
the range 1..n of its place, if all sums over that place have that range; else it is any whole number that its
assumptions admit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import sympy
from mpmath import mp
from sympy import (
    Derivative,
    Dummy,
    Indexed,
    IndexedBase,
    Integral,
    KroneckerDelta,
    Limit,
    Max,
    Min,
    Piecewise,
    Pow,
    Product,
    S,
    Sum,
    Symbol,
    oo,
    sympify,
)
from sympy.core.function import Function
from sympy.core.numbers import EulerGamma, Exp1, Float, Pi
from sympy.core.relational import Relational
from sympy.stats.crv_types import NormalDistribution, UniformDistribution
from sympy.stats.frv_types import BernoulliDistribution
from sympy.stats.rv import RandomSymbol

from .families import Noise, copies, real_letters
from .functions import Phi, phi
from .meaning import FUNCTIONS, NotPolynomial, Numbers, as_float
from .notation import MOMENTS, latex, plain

__all__ = ["FREE", "NAME", "PARTIAL", "Claim", "NotAClaim", "assuming", "at_least_zero", "in_words", "is_whole",
           "noting_positive", "ranges_of_indices", "read"]

NAME = re.compile(r"[A-Za-z]\w*'*", re.ASCII)
BINDERS = (Sum, Product)
ASSUMPTIONS = {"real", "positive", "negative", "nonnegative", "nonpositive", "integer", "commutative", "finite",
               "extended_real"}
SIMPLE_LATEX = re.compile(r"(\\mathrm\{)?\\?[A-Za-z]+\}?'*(_\{[^{}^]*\})?'*")
RESERVED = {"E", "I", "oo", "zoo", "nan", "True", "False", "Epsilon"}
WORDS = {*FUNCTIONS, "sqrt", "ln", "sgn", "min", "max", "Min", "Max", "Var", "Cov", "lim", "tan", "inf", "sup"} \
    - {"phi", "gamma"}      # the letters print as others than the functions
OPERATORS = {"Phi": r"\Phi", "phi": r"\varphi", "gamma": r"\Gamma", "loggamma": r"\Gamma", "polygamma": r"\psi",
             "digamma": r"\psi"}
KINKS = (Max, Min, sympy.Abs, sympy.sign, Piecewise)
BOUNDED = (sympy.cos, sympy.sin, sympy.tanh, sympy.atan, sympy.erf, sympy.erfc, sympy.sign, Phi, phi)
CONTINUOUS = (sympy.exp, sympy.cosh, sympy.sinh, sympy.erfi)
FREE, PARTIAL = "free", "partial"


class NotAClaim(ValueError):
    """What was said lies outside the language of claims; the message names the part and says why."""


@dataclass
class Claim:
    """Expressions that are said to be equal, and the numbers about which they speak."""

    lines: list[Any]
    where: list[Any] = field(default_factory=list)          # conditions of the author
    places: list[Any] = field(default_factory=list)         # conditions that a place adds
    sizes: list[Any] = field(default_factory=list)          # symbols in the ends of ranges
    indices: dict[Any, Any] = field(default_factory=dict)   # free indices: the size n of their range 1..n, or FREE, or
                                                            # PARTIAL where some sums over their place have another one
    counts: list[Any] = field(default_factory=list)         # other whole numbers: exponents, arguments of a factorial
    parameters: list[Any] = field(default_factory=list)     # all other symbols
    whole: list[Any] = field(default_factory=list)          # indices and sizes that are not declared whole numbers
    untestable: set[Any] = field(default_factory=set)       # places that speak of bound indices or draws
    inside: set[Any] = field(default_factory=set)           # places that stand inside of E, Var and Cov only
    constants: set[int] = field(default_factory=set)        # whole numbers in indices and ends of ranges
    positive: set[Any] = field(default_factory=set)         # sizes and indices that may not be 0, as they are declared
    signed: list[Any] = field(default_factory=list)         # symbols whose declared domain the claim needs
    needed: list[dict[str, int]] = field(default_factory=list)      # cases without which a range is always empty

    def testable(self) -> list[Any]:
        """The conditions that hold or fail at a point."""
        return [relation for relation in [*self.where, *self.places] if relation not in self.untestable]

    def excuses(self, error: Any) -> bool:
        """True if a condition that no point can tell may be why there is no value: else every point has to have one.

        Random numbers are never 0 where they must not be.
        """
        return any(error.about in (None, relation.lhs) for relation in self.untestable
                   if relation.rel_op != "!=" and not _implied(relation, {}, False))

    def condition(self, show: Any = plain) -> str:
        """The condition under which the claim holds; that a size or an index is 1, 2, ... only where that matters."""
        less = " <= " if show is plain else r" \leq "
        found = [f"1{less}{show(index)}{less}{show(high)}"
                 for index, high in self.indices.items() if high not in (FREE, PARTIAL)]
        above = {sympy.Le(index, high) for index, high in self.indices.items() if high not in (FREE, PARTIAL)}
        whole = (*self.whole, *(s for s in self.signed if s.is_integer))
        signed = tuple(symbol for symbol in self.signed if not (symbol.is_integer and symbol.is_nonnegative))
        relations = tuple(relation for relation in self.places + self.where if relation not in above)
        domains = tuple((s, self._domain(s)) for s in [*self.parameters, *self.counts, *self.sizes, *self.indices])
        return (", " if show is plain else r",\ ").join(
            [*_conditions(relations, domains, signed, whole, frozenset(self.inside), show), *found])

    def _domain(self, symbol: Any) -> Any:
        """What a reader knows of a symbol without a condition: that a size is a whole number; its declared sign only
        where it is printed."""
        ranged = {part for index, high in self.indices.items() if high not in (FREE, PARTIAL) for part in (index, high)}
        if symbol in self.signed or symbol in ranged:       # 1 <= k <= K is printed
            return _declared_interval(symbol)
        if symbol in self.parameters or (symbol.is_integer and not symbol.is_nonnegative):
            return sympy.Interval(-oo, oo)
        return sympy.Interval(0, oo)


def read(lines: Sequence[Any], where: Any = (), floats: bool = False) -> Claim:
    """Check that expressions belong to the language, and find their symbols and conditions.

    Args:
        lines: The expressions.
        where: Conditions of the author: relations such as ``i <= n``.
        floats: Whether floats may stand in the lines, as the fractions that they are.

    Raises:
        NotAClaim: If a part is not in the language.
    """
    claim = Claim([_sympified(line) for line in lines])
    claim.where = list(_relations(where))
    reader = _Reader(claim, floats)
    with _knowing(None):            # not what another claim, in whose proof this one is read, says of its letters
        try:
            for line in claim.lines:
                reader.visit(line)
        except RecursionError:
            raise NotAClaim("the expression is nested too deeply") from None
        for relation in claim.where:
            for side in relation.args:
                reader.visit(side)
                if side.atoms(Indexed, *MOMENTS):
                    raise NotAClaim(f"where={plain(relation)} has to speak of symbols, not of entries or noise")
    reader.check_names()
    reader.sort_symbols()
    return claim


def _sympified(line: Any) -> Any:
    if isinstance(line, str):
        raise NotAClaim(f"{line!r} is a text, write an expression of SymPy")
    try:
        line = sympify(line)
    except (sympy.SympifyError, TypeError, ValueError, AttributeError) as error:
        raise NotAClaim(f"{line!r} is not an expression of SymPy") from error
    if not isinstance(line, sympy.Expr):
        raise NotAClaim(f"{line} is a {type(line).__name__}, not an expression for a number")
    return line


def _relations(where: Any) -> Iterator[Any]:
    where = where.args if isinstance(where, sympy.And) else where
    for relation in where if isinstance(where, Iterable) and not isinstance(where, Relational) else [where]:
        if relation in (True, sympy.true):
            continue
        if isinstance(relation, sympy.And):
            yield from _relations(relation)
        elif isinstance(relation, Relational):
            yield relation
        else:
            raise NotAClaim(f"where has to be relations such as i <= n, got {relation}")


# -- grammar ------------------------------------------------------------------
class _Reader:
    def __init__(self, claim: Claim, floats: bool) -> None:
        self.claim, self.floats = claim, floats
        self.free: dict[Any, set[str]] = {}         # symbol -> its places: index, limit, count, value
        self.symbols: set[Any] = set()              # free and bound
        self.bases: set[Any] = set()
        self.ranks: dict[Any, int] = {}
        self.ranges: dict[Any, list[Any]] = {}      # place (base, position) -> ranges of bound indices, None if shifted
        self.at: dict[Any, set[Any]] = {}           # free index -> its places
        self.constants: set[Any] = set()
        self.functions: set[str] = set()
        self.bound_symbols: set[Any] = set()
        self.law_symbols: set[Any] = set()
        self.outside: set[Any] = set()              # conditions outside of E, Var and Cov

    def refuse(self, part: Any, why: str) -> NotAClaim:
        shown = part if isinstance(part, str) else plain(part)
        return NotAClaim(f"{shown}: {why}")

    def visit(self, e: Any, bound: dict[Any, Any] | None = None, place: str = "value", random: bool = False) -> None:
        """Check one part. ``bound`` holds the indices bound around it, ``random`` says whether E stands around it."""
        bound = bound or {}
        kind = type(e)
        if (e.is_Rational or e.is_Add or e.is_Mul or e.is_Pow) and not kind.__module__.startswith("sympy."):
            raise self.refuse(e, f"{kind.__name__} is a type of its own")
        if isinstance(e, RandomSymbol):
            raise self.refuse(e, "a bare random variable is not a number; write a copy of a family, "
                                 f"Noise({e.pspace.distribution.__class__.__name__.removesuffix('Distribution')}"
                                 f"(...))[1], inside Expectation, Variance or Covariance")
        if e.is_Rational:
            if place == "index" and not e.is_Integer:
                raise self.refuse(e, "an index or the end of a range is made of whole numbers, +, - and *")
            if place in ("index", "case") and e.is_Integer:
                self.claim.constants.add(int(e))
            return
        if kind in (Pi, Exp1, EulerGamma):
            self.constants.add(e)
        elif kind is Float:
            if self.floats and e.is_finite:
                return
            raise self.refuse(e, "a float is rounded and a claim is not; write a fraction such as Rational(1, 10)")
        elif e in (oo, -oo, S.ComplexInfinity, S.NaN, S.ImaginaryUnit):
            raise self.refuse(e, "is not a real number")
        elif kind in (Symbol, Dummy):
            self.symbol(e, bound, place)
        elif kind is Indexed:
            self.entry(e, bound, place)
        elif place == "index" and not (e.is_Add or e.is_Mul):
            raise self.refuse(e, "an index or the end of a range is made of whole numbers, +, - and *")
        elif e.is_Add or e.is_Mul:
            self.parts(e.args, bound, place, random)
        elif kind is Pow:
            self.power(e, bound, random)
        elif kind in BINDERS:
            self.binder(e, bound, random)
        elif kind is KroneckerDelta:
            if len(e.args) > 2:
                raise self.refuse(e, "a delta has two indices")
            self.parts(e.args, bound, "index", random)
            self.meet(e.args[0], e.args[1], bound)
        elif kind in MOMENTS:
            if len(e.args) > (2 if kind is sympy.stats.Covariance else 1):
                raise self.refuse(e, "E, Var and Cov take no condition")
            self.parts(e.args, bound, "value", True)
        elif kind in (Max, Min) or (isinstance(e, Function) and _is_known(kind)):
            self.function(e, bound, random)
        elif kind is Piecewise:
            self.cases(e, bound, random)
        elif kind is Derivative:
            self.derivative(e, bound, random)
        elif kind is Integral:
            self.integral(e, bound)
        elif kind is Limit:
            self.limit(e, bound)
        else:
            raise self.refuse(e, f"{kind.__name__} is not part of the language of claims")
        if random:
            self.check_mean_exists(e)

    def parts(self, parts: Iterable[Any], bound: dict[Any, Any], place: str, random: bool) -> None:
        for part in parts:
            self.visit(part, bound, place, random)

    def symbol(self, e: Any, bound: dict[Any, Any], place: str) -> None:
        if not NAME.fullmatch(e.name):
            raise self.refuse(e.name, "a name has letters, digits and _, and begins with a letter")
        if e.is_extended_real is False or e.is_finite is False or not e.is_commutative:
            raise self.refuse(e, "a symbol stands for a real number")
        if unknown := {name for name in e._assumptions_orig if name not in ASSUMPTIONS}:
            raise self.refuse(e, f"is declared {', '.join(sorted(unknown))}, which a claim does not know: say it with "
                                 "where")
        if denied := {name for name, value in e._assumptions_orig.items() if value is False}:
            raise self.refuse(e, f"is declared not {', '.join(sorted(denied))}, which a claim does not know: say it "
                                 "with where")
        self.letter(e)
        if place == "index" and e.is_integer is False:
            raise self.refuse(e, "an index is a whole number")
        self.symbols.add(e)
        if e not in bound:
            self.free.setdefault(e, set()).add(place)

    def letter(self, e: Any) -> None:
        if not SIMPLE_LATEX.fullmatch(latex(e)) or e.name in RESERVED:
            raise self.refuse(e, "prints as something else than a letter with a subscript")

    def entry(self, e: Any, bound: dict[Any, Any], place: str) -> None:
        base = e.base
        if place == "index":
            raise self.refuse(e, "an index or the end of a range cannot be an entry or a draw")
        if type(base) not in (IndexedBase, Noise) or (type(base) is IndexedBase and type(base.label) is not Symbol):
            raise self.refuse(e, "an array is an IndexedBase with a name")
        if type(base) is IndexedBase and not _declared(base.label) | _declared(base) <= {"real"}:
            raise self.refuse(e, "the entries of an array are real numbers, without other assumptions")
        if type(base) is IndexedBase and (base.offset != 0 or base.strides is not None):
            raise self.refuse(e, "an array has no offset and no strides")
        if self.ranks.setdefault(base, len(e.indices)) != len(e.indices):
            raise self.refuse(e, f"{base} is also used with {self.ranks[base]} indices")
        if base not in self.bases:
            self.bases.add(base)
            if not NAME.fullmatch(base.name):
                raise self.refuse(base.name, "a name has letters, digits and _, and begins with a letter")
            self.letter(Symbol(base.name))
            if type(base) is Noise:
                self.family(base)
        self.parts(e.indices, bound, "index", False)
        for position, index in enumerate(e.indices):
            self.stands_at((base, position), index, bound)

    def stands_at(self, place: Any, index: Any, bound: dict[Any, Any]) -> None:
        """Note which range a place has, and which free index stands there."""
        if index in bound:
            self.ranges.setdefault(place, []).append(bound[index])
        elif isinstance(index, Symbol):
            self.at.setdefault(index, set()).add(place)
        elif index.free_symbols:
            self.ranges.setdefault(place, []).append(None)
            for symbol in index.free_symbols - set(bound):
                self.at.setdefault(symbol, set()).add((symbol, "shifted"))
                self.ranges.setdefault((symbol, "shifted"), []).append(None)

    def meet(self, left: Any, right: Any, bound: dict[Any, Any]) -> None:
        """In a delta each index stands at the place of the other one."""
        for index, other in ((left, right), (right, left)):
            if isinstance(index, Symbol) and index not in bound:
                self.at.setdefault(index, set())
                if other in bound:
                    self.at[index].add((index, "delta"))
                    self.ranges.setdefault((index, "delta"), []).append(bound[other])
                elif not isinstance(other, Symbol) and other.free_symbols:
                    self.at[index].add((index, "delta"))
                    self.ranges.setdefault((index, "delta"), []).append(None)
            elif not isinstance(index, Symbol):
                for symbol in index.free_symbols - set(bound):
                    self.at.setdefault(symbol, set()).add((symbol, "shifted"))
                    self.ranges.setdefault((symbol, "shifted"), []).append(None)

    def note(self, left: Any, sign: str, right: Any, bound: dict[Any, Any], random: bool) -> None:
        """A condition that a place adds, also where a declared sign says it already.

        One on bound indices or draws is printed, but no point alone can tell it.
        """
        relation = Relational(left, right, sign, evaluate=False)
        real = {s: Dummy(real=True) for s in relation.free_symbols
                if s.is_extended_real is None and not relation.has(Noise)}
        if Relational(left.xreplace(real), relation.rhs.xreplace(real), sign) == sympy.false:
            raise self.refuse(relation, "is false, and without it a power, a function or an integral is no real number")
        if not (left.is_number and relation.rhs.is_number):
            self.claim.places.append(relation)
            if relation.free_symbols & set(bound) or _drawn(relation):
                self.claim.untestable.add(relation)
            (self.claim.inside if random else self.outside).add(relation)

    def family(self, family: Any) -> None:
        distribution = family.law.pspace.distribution
        for parameter in distribution.args:
            if parameter.atoms(Indexed, RandomSymbol, *MOMENTS):
                raise self.refuse(family, f"the parameter {plain(parameter)} of its law has to be the same for all "
                                          "copies, and not random itself")
            self.visit(parameter)
            self.law_symbols |= parameter.free_symbols
        if isinstance(distribution, BernoulliDistribution):
            if not (distribution.succ.is_Rational and distribution.fail.is_Rational):
                raise self.refuse(family, "the values of a Bernoulli law are numbers")
            if not distribution.p.is_number:
                self.note(distribution.p, ">", 0, {}, False)
                self.note(distribution.p, "<", 1, {}, False)
        elif isinstance(distribution, NormalDistribution):
            self.note(distribution.std, ">", 0, {}, False)
        elif isinstance(distribution, UniformDistribution):
            self.note(distribution.left, "<", distribution.right, {}, False)
        else:
            raise self.refuse(family, "noise has a Bernoulli, a normal or a uniform law")

    def power(self, e: Any, bound: dict[Any, Any], random: bool) -> None:
        base, exponent = e.args
        self.visit(base, bound, "value", random)
        self.visit(exponent, bound, "count", random)
        if exponent.is_Integer and exponent > 0:
            return
        if random and copies(base) and not exponent.is_number \
                and not (exponent.is_integer and exponent.is_nonnegative):
            raise self.refuse(e, "the exponent of something random is a number, or declared whole and not negative")
        if _may_vanish(base):               # the power of 0 is 0 for 1, 2, ... alone
            self.at_least_zero(exponent - 1, bound)
        if exponent.is_integer and self.at_least_zero(exponent, bound):
            return
        sign = "!=" if exponent.is_integer else ">=" if exponent.is_Rational and exponent > 0 else ">"
        self.note(base, sign, 0, bound, random)

    def binder(self, e: Any, bound: dict[Any, Any], random: bool) -> None:
        names: list[Any] = []
        inside = dict(bound)
        for limit in reversed(e.limits):            # the outer one first
            if len(limit) != 3 or not isinstance(limit[0], Symbol):
                raise self.refuse(e, "a sum or product runs over a symbol from a lower to an upper end")
            index, low, high = limit
            if index in names or index in low.free_symbols | high.free_symbols \
                    or any(other in low.free_symbols | high.free_symbols for other, *_ in e.limits
                           if other not in names):
                raise self.refuse(e, f"the ends of the range of {index} may use outer indices only, and each index "
                                     "is bound once")
            if index.is_integer is False:
                raise self.refuse(index, "an index is a whole number")
            self.keep_declared_sign(index, low, high, inside, e)
            for end in (low, high):
                self.visit(end, inside, "index", False)
                for symbol in end.free_symbols - set(inside):
                    self.free[symbol].add("limit")
            self.symbol(index, {index: None}, "index")
            self.bound_symbols.add(index)
            names.append(index)
            if isinstance(e, Product) and _vanishes(e.function):        # and so is the product, of 1, 2, ... factors
                self.at_least_zero(high - low, inside)
            inside[index] = (low, high) if not (low.free_symbols | high.free_symbols) & set(inside) else None
        self.visit(e.function, inside, "value", random)

    def keep_declared_sign(self, index: Any, low: Any, high: Any, bound: dict[Any, Any], e: Any) -> None:
        """SymPy uses the declared sign of a bound index: its range has to keep it, or a condition says so."""
        sign = next((name for name in ("positive", "negative", "nonnegative", "nonpositive")
                     if getattr(index, f"is_{name}")), None)
        if sign is None:
            return
        room = {"positive": low - 1, "nonnegative": low, "negative": -1 - high, "nonpositive": -high}[sign]
        if self.at_least_zero(room, bound, needed=self.may_use_sign(index, e)):
            return
        end = low if sign in ("positive", "nonnegative") else high
        limit = {"positive": 1, "negative": -1}.get(sign, 0)
        kept = (end, ">=" if end is low else "<=", limit)
        if Relational(*kept[::2], kept[1]) == sympy.false or end.free_symbols & set(bound):
            raise self.refuse(index, f"is declared {sign}, but runs from {low} to {high} in {plain(e)}")
        self.note(*kept, bound, False)

    def may_use_sign(self, index: Any, e: Any) -> bool:
        """May a rule use the sign of a bound index: as a number, or where a delta tells it from another index?"""
        lines = self.claim.lines
        drawn = {copy for line in lines for copy in copies(line)}
        meets = any(one != two and one.base == two.base and index in one.free_symbols
                    for one in drawn for two in drawn)
        if meets or any(line.has(Derivative, KroneckerDelta) for line in lines):
            return True
        inside = [e.function, *(end for limit in e.limits for end in limit[1:])]
        return any(part.xreplace({entry: Dummy() for entry in part.atoms(Indexed)}).has(index) for part in inside)

    def at_least_zero(self, e: Any, bound: dict[Any, Any], needed: bool = True) -> bool:
        """True if e is not negative on the ranges of the indices bound around it; undeclared sizes are 0, 1, 2, ...

        Where that takes a size or a free index that is 1, 2, ..., the claim may need it.
        """
        ranges = {index: limits for index, limits in reversed(bound.items()) if limits is not None}
        symbols = e.free_symbols.union(*(end.free_symbols for limits in ranges.values() for end in limits)) - set(bound)
        positive = {s for s in symbols if s.is_integer and s.is_positive}

        def holds(of: set[Any]) -> bool:
            whole = {s: Dummy(integer=True, nonnegative=True) for s in of}
            return at_least_zero(e.xreplace(whole), {index: (low.xreplace(whole), high.xreplace(whole))
                                                     for index, (low, high) in ranges.items()})

        undeclared = {s for s in symbols if s.is_integer is None}
        if holds(undeclared | positive):
            return True
        is_known = holds(undeclared)
        if is_known and needed:
            self.claim.positive |= positive
        return is_known

    def function(self, e: Any, bound: dict[Any, Any], random: bool) -> None:
        name = type(e).__name__
        self.functions.add(name)
        self.parts(e.args, bound, "count" if name in ("factorial", "binomial") else "value", random)
        if name in ("log", "gamma", "loggamma", "digamma"):
            self.note(e.args[0], ">", 0, bound, random)
        if name in ("factorial", "binomial") and not all(part.is_integer for part in e.args):
            raise self.refuse(e, "its arguments have to be declared whole numbers")
        if name in ("factorial", "binomial"):
            for part in e.args:
                if not self.at_least_zero(part, bound):
                    self.note(part, ">=", 0, bound, random)
        if name == "polygamma":
            if not (e.args[0].is_Integer and e.args[0] >= 0):
                raise self.refuse(e, "the order of a polygamma function is a number")
            self.note(e.args[1], ">", 0, bound, random)

    def cases(self, e: Any, bound: dict[Any, Any], random: bool) -> None:
        if e.args[-1].cond != sympy.true:
            raise self.refuse(e, "the last of its cases has to be for all the rest, (..., True)")
        for value, condition in e.args:
            self.visit(value, bound, "value", random)
            for relation in sympy.And.make_args(condition):
                if relation in (sympy.true, sympy.false):
                    continue
                if not isinstance(relation, Relational):
                    raise self.refuse(e, "a case is told by relations such as j <= n")
                self.parts(relation.args, bound, "case", random)

    def derivative(self, e: Any, bound: dict[Any, Any], random: bool) -> None:
        for variable, order in e.variable_count:
            if not order.is_Integer or not 1 <= order <= 4:
                raise self.refuse(e, "the order of a derivative is a number up to 4")
            if type(variable) is Indexed:
                if type(variable.base) is Noise:
                    raise self.refuse(e, "a derivative is by a symbol or an entry of an array, not by noise")
            elif type(variable) is not Symbol or variable.is_integer or variable in bound:
                raise self.refuse(e, f"a derivative is by a real number, and {variable} is none")
            self.visit(variable, bound)
        before = len(self.claim.places)
        self.visit(e.expr, bound, "value", random)
        for relation in self.claim.places[before:]:
            if relation.rel_op == ">=":         # at the border there is no derivative
                self.note(relation.args[0], ">", relation.args[1], bound, random)
        if e.expr.has(Integral, Limit):
            raise self.refuse(e, "the derivative of an integral or limit is not worked out")
        for variable in e.variables:
            name = variable.base if variable.is_Indexed else variable
            if any(kink.has(name) for kink in e.expr.atoms(*KINKS)):
                raise self.refuse(e, f"the derivative of a function with a kink in {variable} is not worked out")
            if any(name in copy.base.law.pspace.distribution.free_symbols for copy in _drawn(e.expr)):
                raise self.refuse(e, f"how a draw depends on {variable}, a parameter of its law, is not said")

    def integral(self, e: Any, bound: dict[Any, Any]) -> None:
        if len(e.limits) != 1 or len(e.limits[0]) != 3:
            raise self.refuse(e, "only definite integrals over one variable have a value")
        if copies(e) or e.has(*MOMENTS):
            raise self.refuse(e, "noise cannot stand in an integral")
        variable, low, high = e.limits[0]
        if variable.is_integer or variable in low.free_symbols | high.free_symbols:
            raise self.refuse(e, f"{variable} has to be a real variable that the limits do not use")
        for end in (low, high):
            if end not in (oo, -oo):
                self.visit(end, bound)
            if variable.is_nonnegative or variable.is_nonpositive:      # SymPy uses the declared sign
                self.note(end, ">=" if variable.is_nonnegative else "<=", 0, bound, False)
        self.check_powers(e, variable, low, high)
        self.check_tails(e, variable, low, high, bound)
        free = Symbol(variable.name, real=True)
        body, variable = e.function.xreplace({variable: free}), free
        for relation in self.conditions_with(variable, body, bound):
            gap = relation.args[0] - relation.args[1]
            slope = gap.diff(variable)
            if _implied(relation, {}, False):
                continue
            if slope.has(variable) or slope == 0:
                raise self.refuse(e, f"whether {in_words(relation, plain)} holds on the whole range is not known")
            # linear in the variable: between its ends it lies on the side of both
            ends = [slope * end if end in (oo, -oo) else gap.xreplace({variable: end}) for end in (low, high)]
            if relation.rel_op == "!=":
                signs = [sympy.sign(end) if end in (oo, -oo) else end for end in ends]
                self.note(signs[0] * signs[1], ">", 0, bound, False)
            else:
                root = sympy.expand(variable - gap / slope)
                sign = ">=" if relation.rel_op == ">=" or _order(body, variable, root) > -1 else ">"
                for end in ends:
                    self.note(end, ">=" if end.has(oo) else sign, 0, bound, False)

    def check_powers(self, e: Any, variable: Any, low: Any, high: Any) -> None:
        """An exponent that is a letter decides whether an integral exists; no sample of points tells where."""
        falls = any(type(part) in (sympy.exp, phi) for part in sympy.Mul.make_args(e.function) if part.has(variable))
        for part in e.function.atoms(Pow):
            if not part.base.has(variable) or part.exp.is_number:
                continue
            finite = not {low, high} & {oo, -oo}
            stays = finite and all(part.base.xreplace({variable: end}).is_positive for end in (low, high))
            if not stays and not (part.exp.is_nonnegative and (finite or falls)):
                raise self.refuse(e, f"for which {plain(part.exp)} it exists is not known")

    def check_tails(self, e: Any, variable: Any, low: Any, high: Any, bound: dict[Any, Any]) -> None:
        """Letters decide whether an integral up to infinity exists, and no sample of points tells for which it does."""
        body = e.function.as_independent(variable, as_Add=False)[1]
        for end in {low, high} & {oo, -oo}:
            if body.free_symbols <= {variable}:
                continue
            exponents = _exponents(body, variable)
            for exponent in exponents or [S.Zero]:
                order = sympy.degree(exponent, variable) if exponent.has(variable) else 0
                if order < 1:
                    raise self.refuse(e, "for which letters it exists is not known")
                slope = exponent.coeff(variable, order) * (1 if end is oo else (-1) ** order)
                if not (slope.is_number or (slope.is_negative and slope.free_symbols <= set(bound))):
                    self.note(-slope, ">", 0, bound, False)

    def limit(self, e: Any, bound: dict[Any, Any]) -> None:
        body, variable, point, _ = e.args
        if copies(e) or e.has(*MOMENTS):
            raise self.refuse(e, "noise cannot stand in a limit")
        if body.has(*BINDERS, Integral, Derivative, Limit, KroneckerDelta, *KINKS):
            raise self.refuse(e, "a limit is of a closed formula, without sums, integrals, derivatives and kinks")
        if type(variable) is not Symbol or variable in bound:
            raise self.refuse(e, "a limit is by a symbol that stands nowhere else")
        if point not in (oo, -oo) and not point.is_Rational:
            raise self.refuse(e, "a limit is at a number or at infinity")
        if (variable.is_nonnegative and (point < 0 or (point == 0 and str(e.args[3]) != "+"))) \
                or (variable.is_nonpositive and (point > 0 or (point == 0 and str(e.args[3]) != "-"))):
            raise self.refuse(e, f"the declared sign of {variable} excludes what is near {point}")
        for part in sympy.preorder_traversal(body):
            inner = (part.is_Pow and not (part.exp.is_Integer and part.exp > 0)) or isinstance(part, Function)
            if inner and part.has(variable) and part.free_symbols != {variable}:
                others = ", ".join(sorted(map(str, part.free_symbols - {variable})))
                raise self.refuse(e, f"the limit of {plain(part)} may depend on {others}")
        self.conditions_with(variable, body, bound)     # they hold near the point: the judge looks there

    def conditions_with(self, variable: Any, body: Any, bound: dict[Any, Any]) -> list[Any]:
        """Visit what stands under an integral or limit; the conditions on its variable, which are taken out."""
        before = len(self.claim.places)
        self.bound_symbols.add(variable)
        self.visit(body, {**bound, variable: None})
        added = self.claim.places[before:]
        self.claim.places[before:] = [c for c in added if variable not in c.free_symbols]
        found = [c for c in added if variable in c.free_symbols]
        self.claim.untestable -= set(found)
        return found

    def check_mean_exists(self, e: Any) -> None:
        """Continuous noise may stand only where the mean of what surrounds it is known to exist."""
        continuous = [copy for copy in copies(e) if not copy.base.is_finite_law]
        if not continuous:
            return
        if e.is_Pow and not (e.exp.is_Integer and e.exp > 0) and copies(e.base) and not _bounded_away(e.base):
            raise self.refuse(e, "whether its mean exists is not known: a power other than 1, 2, 3 ... of a "
                                 "continuous noise")
        name = type(e).__name__
        if name == "exp" or (e.is_Pow and copies(e.exp)):
            exponent = e.args[0] if name == "exp" else e.exp
            if not _at_most_linear(exponent, set(continuous)):
                raise self.refuse(e, "whether its mean exists is not known: the exponent grows faster than the noise")
        elif isinstance(e, Function) and name not in ("Abs", "Max", "Min", "Phi", "phi", "erf", "erfc", "tanh", "sign",
                                                      "atan", "sin", "cos") \
                and not (name == "log" and _bounded_away(e.args[0])):
            raise self.refuse(e, "whether its mean exists is not known: a function of a continuous noise")

    # the whole claim
    def check_names(self) -> None:
        """Two different things may not print alike."""
        if captured := self.law_symbols & self.bound_symbols:
            raise self.refuse(min(map(str, captured)), "is a parameter of a law, and bound by a sum or an integral")
        if captured := {s.name for s in self.bound_symbols} & {base.name for base in self.bases}:
            raise self.refuse(min(captured), "is the name of an array or a family, and bound by a sum or an integral")
        entries = {entry for line in self.claim.lines for entry in line.atoms(Indexed)}
        operators = set(OPERATORS.values())
        if any(line.has(KroneckerDelta) for line in self.claim.lines):
            operators.add(r"\delta")
        arrays = {_print(Symbol(base.name)) for base in self.bases}
        seen: dict[str, Any] = {}
        constants = {*self.constants, *([S.Exp1] if "exp" in self.functions else [])}       # exp prints as e^...
        for thing in [*constants, *self.symbols, *self.bases, *entries]:
            is_base = isinstance(thing, IndexedBase)
            key = _print(Symbol(thing.name)) + "[]" if is_base else _print(thing)
            if key in seen and seen[key] != thing:
                what = "families or arrays" if is_base else "things"
                raise self.refuse(str(thing), f"two different {what} print alike, which no reader could tell apart")
            if is_base or isinstance(thing, Symbol):
                stem = latex(Symbol(thing.name)).split("_")[0]
                if stem in operators or stem.removeprefix("\\") in WORDS:
                    raise self.refuse(str(thing), "a symbol and a function print alike")
                if not is_base and any(key.startswith(array) and array.startswith(stem) and key != array
                                       for array in arrays):
                    raise self.refuse(str(thing), "a symbol and an entry of an array print alike")
                if index := self.read_in(latex(Symbol(thing.name))):
                    raise self.refuse(str(thing), f"reads as if it had the index {index}, which is bound")
            seen[key] = thing
        names = {latex(Symbol(thing.name)) for thing in [*self.symbols, *self.bases]}
        if ambiguous := _read_in_two_ways({name for name in names if "\\" not in name}):
            raise self.refuse(ambiguous, "reads like the product of other symbols of the claim")

    def read_in(self, name: str) -> str | None:
        """A bound letter that a reader sees in the subscript of a name, or in a row of two or three letters."""
        bound = {latex(symbol) for symbol in self.bound_symbols} - {name}
        letters = bound | {latex(symbol) for symbol in self.symbols}
        stem, _, subscript = name.replace("'", "").partition("_")
        parts = [part.strip("{}") for part in re.split(r"[\s,]", subscript)]
        if len(stem) in (2, 3) and stem.isalpha():
            parts += [letter for letter in stem if letter in bound]
        for part in parts:
            found = [part] if part in letters or "\\" in part else re.findall("[A-Za-z]", part)
            if set(found) <= letters and set(found) & bound:
                return min(set(found) & bound)
        return None

    def sort_symbols(self) -> None:
        claim = self.claim
        for symbol, places in sorted(self.free.items(), key=lambda item: item[0].name):
            direct = {place for place in self.at.get(symbol, ()) if place[1] != "shifted"}
            if symbol in self.at and (direct or "limit" not in places):
                claim.indices[symbol] = PARTIAL if "limit" in places else self.range_of(symbol)
            elif "limit" in places:
                claim.sizes.append(symbol)
            elif symbol.is_integer and places & {"count", "case"}:
                claim.counts.append(symbol)
            else:
                claim.parameters.append(symbol)
        claim.whole = [symbol for symbol in [*claim.indices, *claim.sizes] if symbol.is_integer is None]
        claim.places = list(dict.fromkeys(claim.places))
        claim.inside -= self.outside

    def range_of(self, index: Any) -> Any:
        """The n of the range 1..n of a free index: that of all sums over its places, if they agree."""
        found = {limits for place in self.at[index] for limits in self.ranges.get(place, [])}
        if not found:
            return FREE
        if len(found) == 1 and (limits := next(iter(found))) and limits[0] == 1 and limits[1].is_Symbol:
            return limits[1]
        return PARTIAL


def _read_in_two_ways(names: set[str]) -> str | None:
    """A name in a row of letters that can be read as two different products (Sardinas and Patterson)."""
    rests = {(two[len(one):], two) for one in names for two in names if one != two and two.startswith(one)}
    seen: set[str] = set()
    while rests:
        rest, name = rests.pop()
        if rest in names:
            return name
        if rest not in seen:
            seen.add(rest)
            rests |= {(other[len(rest):], name) for other in names if other.startswith(rest)}
            rests |= {(rest[len(other):], name) for other in names if rest.startswith(other)}
    return None


def _print(thing: Any) -> str:
    """What a reader sees of a name, without the differences that are easily missed."""
    return re.sub(r"\\mathrm|[{}\s,_]", "", latex(thing))


def _drawn(e: Any) -> list[Any]:
    """The copies outside of E, Var and Cov."""
    if isinstance(e, MOMENTS):
        return []
    return copies(e) if e.is_Indexed else [copy for part in e.args for copy in _drawn(part)]


def _declared(symbol: Any) -> set[str]:
    """What is declared beyond a finite real number, as far as SymPy remembers it."""
    real = set(Symbol("x", real=True).assumptions0) - {"real"}
    return {name for name, value in symbol.assumptions0.items() if value is not None} - real


def _is_known(kind: Any) -> bool:
    return kind.__name__ in FUNCTIONS and kind.__module__.startswith(("sympy.", "dropoutlib."))


def _bounded_away(e: Any) -> bool:
    """True if e is at least some positive number: a positive number plus what cannot be negative."""
    return e.is_Add and any(part.is_Rational and part > 0 for part in e.args) and all(map(_never_negative, e.args))


def _never_negative(e: Any) -> bool:
    if e.is_Rational:
        return bool(e >= 0)
    if e.is_Mul:
        return all(map(_never_negative, e.args))
    if e.is_Pow and e.exp.is_Integer and e.exp.is_even:
        return True
    return type(e).__name__ in ("exp", "Abs", "Phi", "phi", "cosh") or bool(e.is_Symbol and e.is_nonnegative)


def _may_vanish(base: Any) -> bool:
    """May the rules find that a base is 0 or a delta?"""
    return bool(base.has(*BINDERS, *MOMENTS, KroneckerDelta, Derivative)) or _vanishes(base)


class _Anywhere(Numbers):
    """Numbers for all letters and entries, those of an index that is bound around it too."""

    def __init__(self, scale: int) -> None:
        super().__init__({}, self.drawn)
        self.scale = scale

    def symbol(self, e: Any) -> Any:
        source = random.Random(e.name)
        return source.randrange(3, 7) if e.is_integer else self.scale * Fraction(source.randrange(1, 2**64), 2**64)

    def place(self, e: Any, env: Any) -> tuple[Any, ...]:
        return e.base, *(str(i.xreplace({s: sympy.Integer(env[s]) for s in i.free_symbols if s in env}))
                         for i in e.indices)

    def drawn(self, e: Any, key: tuple[Any, ...]) -> Any:
        return self.scale * Fraction(random.Random(str(key)).randrange(1, 2**64), 2**64)


def _vanishes(e: Any) -> bool:
    """Is e 0 at a random point, as what is 0 everywhere is? True where no point is found."""
    if e.is_Symbol or e.is_Indexed or e.is_Number:
        return bool(e == 0)
    for scale in (1, -1, 10, -10, 10**4, -10**4):
        with suppress(ArithmeticError, ValueError, NotPolynomial), mp.workdps(60):
            return bool(abs(as_float(_Anywhere(scale).value(e, {}))) < mp.mpf(10) ** -40)
    return True


def _order(e: Any, variable: Any, root: Any) -> Any:
    """A number r for which e is at most a constant times |variable - root|^r near the root, up to logarithms.

    Minus infinity where none is known.
    """
    if variable not in e.free_symbols or isinstance(e, BOUNDED):
        return S.Zero
    parts = [value for value, _ in e.args] if isinstance(e, Piecewise) else e.args[:1] if isinstance(e, Sum) else e.args
    orders = [_order(part, variable, root) for part in parts]
    least = min(orders, default=S.Zero)
    if e.is_Mul:
        return sympy.Add(*orders)
    if e.is_Symbol or e.is_Add or isinstance(e, Sum | Piecewise | Max | Min | sympy.Abs):
        return least
    if e.is_Pow and e.exp.is_Rational and e.exp > 0:
        return e.exp * least
    is_bounded = least >= 0 and not e.has(sympy.log, sympy.loggamma)
    if e.is_Pow and e.exp.is_Rational:
        at_root = e.base.xreplace({variable: root})
        if is_bounded and sympy.expand(at_root.xreplace(real_letters(at_root))).is_nonzero:
            return S.Zero
        return e.exp if e.base.is_polynomial(variable) and sympy.degree(e.base, variable) == 1 else -oo
    if isinstance(e, sympy.log | sympy.loggamma) and e.args[0].is_polynomial(variable):
        return S.Zero
    is_continuous = isinstance(e, CONTINUOUS) or (e.is_Pow and (e.exp.is_nonnegative or not e.base.has(variable)))
    return S.Zero if is_bounded and is_continuous else -oo


def _exponents(e: Any, variable: Any) -> set[Any] | None:
    """Polynomials q for which |e| is at most a sum of exp(q), each times a power of |variable|, far away from 0.

    None where none are known.
    """
    if variable not in e.free_symbols or e == variable or (isinstance(e, BOUNDED) and not isinstance(e, phi)):
        return {S.Zero}
    if isinstance(e, (sympy.exp, phi, sympy.cosh, sympy.sinh)):
        inner = sympy.expand(e.args[0])
        if not inner.is_polynomial(variable):
            return None
        return {sympy.expand(-inner**2 / 2)} if isinstance(e, phi) else {inner} if isinstance(e, sympy.exp) \
            else {inner, -inner}
    values = [value for value, _ in e.args] if isinstance(e, Piecewise) else e.args
    if isinstance(e, Piecewise | Max | Min | sympy.Abs) or e.is_Add:
        found = [_exponents(part, variable) for part in values]
        return None if None in found else set().union(*(part for part in found if part))
    if e.is_Mul:
        total: set[Any] = {S.Zero}
        for part in map(_exponents, e.args, [variable] * len(e.args)):
            if part is None:
                return None
            total = {sympy.expand(one + two) for one in total for two in part}
        return total
    if e.is_Pow and variable not in e.base.free_symbols:
        return _exponents(sympy.exp(e.exp * sympy.log(e.base)), variable)
    if e.is_Pow and e.exp.is_Integer and 0 < e.exp <= 9:
        return _exponents(sympy.Mul(*[e.base] * int(e.exp), evaluate=False), variable)
    # 1 - tanh falls like an exponential, too: one over it is not known
    if (e.is_Pow and e.exp.is_number and not e.base.has(*BOUNDED)) or isinstance(e, sympy.log):
        inside = _exponents(e.args[0], variable)
        return {S.Zero} if inside == {S.Zero} else None
    return None


def _at_most_linear(e: Any, noise: set[Any]) -> bool:
    """True if e grows no faster than linearly in the noise."""
    if not noise & set(copies(e)):
        return True
    if e in noise:
        return True
    if e.is_Add or type(e) in (Sum, Max, Min, sympy.Abs):
        return all(_at_most_linear(part, noise) for part in (e.args[:1] if type(e) is Sum else e.args))
    if e.is_Mul:
        return sum(bool(noise & set(copies(part))) for part in e.args) <= 1 \
            and all(_at_most_linear(part, noise) for part in e.args)
    return type(e).__name__ in ("Phi", "phi", "erf", "tanh")


# -- conditions ---------------------------------------------------------------
@lru_cache(maxsize=1024)
def _conditions(relations: tuple[Any, ...], domains: tuple[tuple[Any, Any], ...], signed: tuple[Any, ...],
                whole: tuple[Any, ...], inside: frozenset[Any], show: Any) -> list[str]:
    """Relations as a reader writes them: 0 < p < 1; what follows from the others is left out."""
    by_symbol: dict[Any, list[Any]] = {symbol: [] for symbol in signed}
    others = []
    for relation in (part if part in inside else _without_denominator(part) for part in relations):
        symbols = relation.free_symbols
        if len(symbols) == 1 and not relation.atoms(Indexed):
            by_symbol.setdefault(next(iter(symbols)), []).append(relation)
        elif symbols:
            others.append(relation)
    shown: dict[Any, list[str]] = {}
    own = dict(domains)
    known: dict[Any, Any] = dict(own)
    for symbol in sorted(by_symbol, key=str):
        domain = own.get(symbol, sympy.Interval(-oo, oo))
        shown[symbol], known[symbol] = _interval(symbol, domain, by_symbol[symbol], symbol in signed, show)
    for symbol in whole:                    # 1 <= n <= 9 says of a size or index that it is positive
        narrowed = symbol in known and known[symbol] != own.get(symbol)
        if not symbol.is_positive or not narrowed:
            shown.setdefault(symbol, []).append(_whole_number(symbol, show))
    rest = [relation for relation in dict.fromkeys(others) if not _implied(relation, known, relation in inside)]
    for relation in list(rest):             # 2 <= k and k <= n are written as one
        symbol, interval = relation.lhs, known.get(relation.lhs)
        if relation.rel_op in ("<", "<=") and interval is not None and interval.end == oo and interval.start != -oo \
                and symbol not in relation.rhs.free_symbols \
                and shown.get(symbol) == [_between(symbol, interval & _declared_interval(symbol), show)]:
            less, low = ("<", "<=") if show is plain else ("<", r"\leq"), show(interval.start)
            shown[symbol] = [f"{low} {less[not interval.left_open]} {show(symbol)} {less[relation.rel_op == '<=']} "
                             f"{show(relation.rhs)}"]
            rest.remove(relation)
            break
    return list(dict.fromkeys([text for texts in shown.values() for text in texts]
                              + [in_words(relation, show) for relation in rest]))


def _without_denominator(relation: Any) -> Any:
    """n - p != 0 for 1 - p/n != 0: that the denominator is not 0 is a condition of its own."""
    if relation.rel_op != "!=" or not relation.lhs.is_Add:
        return relation
    numerator, denominator = sympy.fraction(sympy.together(relation.lhs - relation.rhs))
    if denominator.is_number:
        return relation
    return sympy.Ne(-numerator if numerator.could_extract_minus_sign() else numerator, 0, evaluate=False)


def _whole_number(symbol: Any, show: Any) -> str:
    if symbol.is_integer and not symbol.is_nonnegative:
        return f"{show(symbol)} whole" if show is plain else rf"{show(symbol)} \in \mathbb{{Z}}"
    dots = ", 2, ..." if show is plain else r", 2, \ldots"
    return f"{show(symbol)} = {'1' if symbol.is_positive else '0, 1'}{dots}"


def in_words(relation: Any, show: Any = plain) -> str:
    """A relation as a reader writes it."""
    signs = {"==": "=", "!=": "!=", ">=": ">=", "<=": "<="} if show is plain else \
        {"==": "=", "!=": r"\neq", ">=": r"\geq", "<=": r"\leq"}
    left, right = relation.args
    parts = sympy.Add.make_args(left)
    taken = [part for part in parts if part.could_extract_minus_sign()]
    if relation.rel_op == ">=" and right == 0 and 0 < len(taken) < len(parts) \
            and all(symbol.is_integer for symbol in left.free_symbols):     # s <= n rather than n - s >= 0
        right = sympy.Add(*[part for part in parts if part not in taken])
        return f"{show(right - left)} {signs['<=']} {show(right)}"
    return f"{show(left)} {signs.get(relation.rel_op, relation.rel_op)} {show(right)}"


def _declared_interval(symbol: Any) -> Any:
    return sympy.Interval(1, oo) if symbol.is_positive and symbol.is_integer \
        else sympy.Interval.open(0, oo) if symbol.is_positive else sympy.Interval(0, oo) if symbol.is_nonnegative \
        else sympy.Interval.open(-oo, 0) if symbol.is_negative else sympy.Interval(-oo, 0) if symbol.is_nonpositive \
        else sympy.Interval(-oo, oo)


def _interval(symbol: Any, own: Any, relations: list[Any], signed: bool, show: Any) -> tuple[list[str], Any]:
    """The relations of one symbol as an interval, and the points that it leaves out."""
    x = Dummy(real=True)
    inside, left_out, rest = own, [], []
    for relation in dict.fromkeys(relations):
        moved = relation.func(*[side.xreplace({symbol: x}) for side in relation.args])
        if moved == sympy.true:
            continue
        if moved == sympy.false:
            rest.append(relation)
            continue
        try:
            if isinstance(relation, sympy.Ne):
                points = sympy.solveset(moved.args[0] - moved.args[1], x, sympy.S.Reals)
                if not isinstance(points, sympy.FiniteSet) and points != sympy.S.EmptySet:
                    raise ValueError
                left_out += list(points)
            elif moved.atoms(Function) - moved.atoms(sympy.exp, sympy.log):
                raise ValueError
            else:
                solved = moved.as_set()
                inside = inside & solved
        except (NotImplementedError, TypeError, ValueError, AttributeError, RecursionError):
            rest.append(relation)
    if not isinstance(inside, sympy.Interval) or inside.has(sympy.CRootOf):
        declared = [_between(symbol, own, show)] if signed and own != sympy.Interval(-oo, oo) else []
        return declared + [in_words(r, show) for r in dict.fromkeys(relations)], own
    out = [in_words(sympy.Ne(symbol, point, evaluate=False), show)
           for point in dict.fromkeys(left_out) if inside.contains(point) == sympy.true]
    words = [] if inside == (sympy.Interval(-oo, oo) if signed else own) \
        else [_between(symbol, inside & _declared_interval(symbol), show)]
    return words + out + [in_words(r, show) for r in rest if not _implied(r, {symbol: inside}, False)], inside


def _between(symbol: Any, interval: Any, show: Any) -> str:
    closed = "<=" if show is plain else r"\leq"
    text = str(show(symbol))
    if interval.start != -oo:
        text = f"{show(interval.start)} {'<' if interval.left_open else closed} {text}"
    if interval.end != oo:
        text = f"{text} {'<' if interval.right_open else closed} {show(interval.end)}"
    if interval.end == oo and interval.start != -oo:
        closed = ">=" if show is plain else r"\geq"
        text = f"{show(symbol)} {'>' if interval.left_open else closed} {show(interval.start)}"
    return text


def _implied(relation: Any, known: dict[Any, Any], random: bool) -> bool:
    """True if a relation follows from the intervals of its symbols (only spares the reader what is plain)."""
    try:
        gap = sympy.factor(sympy.together(_with_signs(relation.args[0] - relation.args[1], known, random, {})))
    except Exception:
        return False
    gap = gap if relation.rel_op in (">", ">=", "!=") else -gap
    return bool(gap.is_positive or (relation.rel_op in (">=", "<=") and gap.is_nonnegative)
                or (relation.rel_op == "!=" and gap.is_nonzero))


def _with_signs(e: Any, known: dict[Any, Any], random: bool, seen: dict[Any, Any]) -> Any:
    """The same expression, with stand-ins whose signs SymPy knows: odds/(1 + odds) for what lies in (0, 1).

    A symbol without a known interval is bound, and its range keeps its declared sign. A copy of a noise outside of E
    is not the one inside.
    """
    if (e, random) in seen:
        return seen[e, random]

    def in_unit_interval(symbol: Any) -> bool:
        interval = known.get(symbol)
        return interval is not None and interval == sympy.Interval.open(0, 1)

    if in_unit_interval(e) or (e.is_Pow and in_unit_interval(e.base) and e.exp.is_Symbol
                               and known.get(e.exp, _declared_interval(e.exp)).start > 0):
        odds = Dummy(positive=True)
        found = odds / (1 + odds)
    elif e.is_Symbol:
        interval = known.get(e, _declared_interval(e))
        sign = "positive" if interval.start > 0 or (interval.start == 0 and interval.left_open) \
            else "nonnegative" if interval.start == 0 \
            else "negative" if interval.end < 0 or (interval.end == 0 and interval.right_open) \
            else "nonpositive" if interval.end == 0 else "real"
        found = Dummy(integer=e.is_integer or None, **{sign: True})
    elif e.is_Indexed:
        law = e.base.law.pspace.distribution if type(e.base) is Noise and e.base.is_finite_law else None
        mask = random and law is not None and law.succ >= 0 and law.fail >= 0
        found = Dummy(nonnegative=True) if mask else Dummy(real=True)
    elif isinstance(e, (Sum, *MOMENTS)):
        body = _with_signs(e.args[0], known, random or not isinstance(e, Sum), seen)
        filled = isinstance(e, Sum) and all(_with_signs(high - low, known, random, seen).is_nonnegative
                                            for _, low, high in e.limits)
        found = Dummy(positive=True) if filled and body.is_positive else Dummy(nonnegative=True) \
            if isinstance(e, sympy.stats.Variance) \
            or (body.is_nonnegative and not isinstance(e, sympy.stats.Covariance)) else Dummy(real=True)
    elif e.is_Atom:
        return e
    else:
        return e.func(*[_with_signs(part, known, random, seen) for part in e.args])
    seen[e, random] = found
    return found


# -- what rules may use -------------------------------------------------------
class _Facts(NamedTuple):
    whole: tuple[Any, ...]                  # 0, 1, 2, ...
    ranges: dict[Any, Any]                  # of free indices
    positive: set[Any]                      # what had to be 1, 2, ...: rules add to it


_FACTS: ContextVar[_Facts | None] = ContextVar("facts", default=None)


@contextmanager
def _knowing(facts: _Facts | None) -> Iterator[None]:
    token = _FACTS.set(facts)
    try:
        yield
    finally:
        _FACTS.reset(token)


@contextmanager
def assuming(claim: Claim) -> Iterator[None]:
    """Let the rules use the conditions of a claim: where= and the ranges of its free indices."""
    facts: list[Any] = list(claim.whole)        # shown as 0, 1, 2, ...
    for relation in claim.where:
        left, right = relation.args
        gap = {"<=": right - left, "<": right - left - 1, ">=": left - right, ">": left - right - 1}
        if relation.rel_op in gap and all(s.is_integer for s in relation.free_symbols):
            facts.append(gap[relation.rel_op])
    with _knowing(_Facts(tuple(facts), _known_ranges(claim), claim.positive)):
        yield


def ranges_of_indices(expression: Any) -> dict[Any, Any]:
    """The ranges (low, high) of the free indices of an expression: of the claim it belongs to, or of its own."""
    if (facts := _FACTS.get()) is not None:
        return dict(facts.ranges)
    return _known_ranges(read([expression]))


def _known_ranges(claim: Claim) -> dict[Any, Any]:
    return {index: (S.One, high) for index, high in claim.indices.items() if high not in (FREE, PARTIAL)}


def is_whole(symbol: Any, ranges: dict[Any, Any]) -> bool:
    """Does a letter stand for whole numbers alone: by its declaration, or as a size or an index?"""
    facts = _FACTS.get()
    return bool(symbol.is_integer) or symbol in ranges or (facts is not None and symbol in facts.whole)


def at_least_zero(e: Any, ranges: dict[Any, Any]) -> bool:
    """True if e, linear in the indices of ``ranges``, is known not to be negative on all of them."""
    facts = _FACTS.get()
    for index, (low, high) in ranges.items():       # the inner indices stand first
        slope = e.coeff(index)
        if index in e.free_symbols:
            if not slope.is_Integer or index in (e - slope * index).expand().free_symbols:
                return False
            e = sympy.expand(e.xreplace({index: low if slope > 0 else high}))
    gaps = [sympy.expand(e - fact) for fact in (S.Zero, *(facts.whole if facts else ()))]
    if not any(gap.is_nonnegative for gap in gaps):
        return False
    positive = {s: Dummy(integer=True, nonnegative=True) for gap in gaps for s in gap.free_symbols
                if s.is_integer and s.is_positive}
    if facts and not any(gap.xreplace(positive).is_nonnegative for gap in gaps):
        facts.positive.update(positive)
    return True


def noting_positive(e: Any, work: Callable[[Any], Any], ranges: dict[Any, Any]) -> Any:
    """work(e), where SymPy takes 0^n for 0 and a delta of 0 and n, too, if n is declared positive.

    Where the result would be another one with 0, 1, 2, ..., the claim needs that sizes and free indices are 1, 2, ...
    """
    facts, result = _FACTS.get(), work(e)
    positive = {s: Dummy(s.name, integer=True, nonnegative=True) for s in e.free_symbols
                if s.is_Symbol and s.is_integer and s.is_positive and s not in ranges}

    def matters(symbols: set[Any]) -> bool:
        weaker = {s: positive[s] for s in symbols}
        return bool(work(e.xreplace(weaker)) != result.xreplace(weaker))

    if facts and not facts.positive.issuperset(positive) and matters(set(positive)):
        alone = {symbol for symbol in positive if matters({symbol})}
        together = set(positive) - alone
        facts.positive.update(alone, together if matters(together) else ())
    return result
