"""The judge: is a claim true at random points of its domain?

Every case gives numbers to the sizes, the free indices and the exponents of a claim: sizes that differ from each other
and two that are the same, indices equal and unequal, first and last. In every case the symbols and entries are random
points, and both sides are worked out from their meaning alone (:mod:`.meaning`), without the rules.

A false equation between rational functions of degree d vanishes at a random point with probability d / |S| at most,
where |S| is the number of values that a symbol can take (Schwartz and Zippel). |S| is 2^64, and there are as many
points as bring that below 10^-12 at the sizes of the case. What is not rational is compared with 60 and with 180
digits: a difference that is not zero stays, one that is zero vanishes with the rounding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any

import sympy
from mpmath import mp
from sympy import (
    Derivative,
    Function,
    Indexed,
    Integral,
    KroneckerDelta,
    Limit,
    Max,
    Min,
    Product,
    Sum,
    binomial,
    factorial,
)
from sympy.concrete.expr_with_limits import ExprWithLimits

from .evaluate import enumerate_masks
from .families import Noise, copies
from .language import FREE, PARTIAL, Claim, NotAClaim, in_words
from .meaning import (
    EXACT,
    Meaning,
    NotPolynomial,
    Numbers,
    Polynomial,
    TooLarge,
    TooMany,
    Undecided,
    Undefined,
    as_float,
    is_exact,
)
from .notation import MOMENTS, plain

__all__ = ["Disagreement", "cases", "degree", "disagreement", "domains_that_matter", "gap", "points",
           "without_zeros"]

BITS = 64                   # of a random number
RISK = Fraction(1, 10**12)
SCALES = (Fraction(1, 8), 1, 4, 32)     # of random numbers in what is not rational
DIGITS = (60, 180)          # at which what is not rational is compared
CONFIRMED = 600             # digits at which a difference is seen again before it refutes a claim
LARGEST_ARGUMENT = 100      # of an exponential at a random point: beyond, sixty digits do not tell 1 from 1 + exp(-x)
QUADRATURE_DIGITS = (12, 24)
QUADRATURE_ERROR = 1e-16    # of an integral found with 24 digits, relative to its size
TRIES = 400                 # random points until one lies in the domain
MOST_CASES = 3000
FAR = (1, 8, 25)            # sizes of formulas without noise
NEAR = range(4, 13)         # of one size alone, where a product may have a pole in its closed form
FARTHEST = 40               # numbers in ranges up to this one give sizes just beyond them
ELEMENTS = (1, 2, 3, 0, -1)     # of every range at some case, as far as the sizes allow it; -1 where it ends two below
LARGEST_CONSTANT = 9        # numbers in indices and ranges up to this one are sizes and indices of a case of their own


@dataclass
class Disagreement:
    """A point where two sides differ."""

    case: dict[str, int]
    difference: Any

    def at(self) -> str:
        """The case in words."""
        return ", ".join(f"{name} = {value}" for name, value in self.case.items())


def disagreement(claim: Claim, left: Any, right: Any, where: Iterable[dict[str, int]]) -> Disagreement | None:
    """The first point of the given cases where left and right differ, None if there is none.

    Raises:
        NotAClaim: If no point of some case has a value for both sides.
        Undecided: If a difference cannot be told from rounding.
    """
    judged = 0          # cases; one that is out of reach may be left out after them
    for case in where:
        source = random.Random(f"{plain(left)} = {plain(right)} at {case}")
        try:
            enough = points((left, right), case)
        except TooMany:
            if judged and case not in claim.needed:
                continue
            raise
        wanted, failure, failing, shrunk = enough or (3 if case else 6), None, None, 0
        for tries in range(TRIES):
            point = _Random(claim, case, source, exact=enough is not None, tries=tries, shrunk=shrunk)
            inside = False
            try:
                failing = next((part for part in claim.testable() if not point.holds(part, {})), None)
                if failing is not None:
                    continue
                inside = True
                difference = gap(point, left, right)
            except Undefined as error:          # outside of the domain
                if inside and not isinstance(error, TooLarge) and not claim.excuses(error):
                    raise NotAClaim(f"{plain(left)} = {plain(right)} has no value at some points of the domain of its "
                                    f"letters, and no condition says so: {error}") from error
                failure = error
                shrunk += isinstance(error, TooLarge)
                continue
            if difference != 0:
                return _described(left, right, case, difference)
            wanted = min(wanted, 4) - 1 if point.used_quadrature else wanted - 1
            if wanted == 0:
                judged += 1
                break
        else:
            if judged and isinstance(failure, TooLarge) and case not in claim.needed:
                continue
            at = f" at {', '.join(f'{k} = {v}' for k, v in case.items())}" if case else ""
            raise NotAClaim(f"no point was found{at} at which every part has a value"
                            + (f": {failure}" if failure else f" and {in_words(failing)}"))
    return None


def _described(left: Any, right: Any, case: dict[str, int], difference: Any) -> Disagreement:
    """With the difference as a formula, where the case can be written out."""
    formula = sympy.nan
    if max(case.values(), default=0) <= LARGEST_CONSTANT:       # what is written out at n = 50 is long, and takes long
        with suppress(Exception):       # the numbers have decided; the formula is a courtesy
            formula = enumerate_masks(left - right, **case)
    if formula == 0 or formula.has(sympy.nan, sympy.zoo):
        formula = sympy.Float(mp.nstr(as_float(Fraction(difference) if is_exact(difference) else difference), 15))
    return Disagreement(case, formula)


# -- factors that are 0 at every point --------------------------------------------
def without_zeros(claim: Claim, lines: Sequence[Any], where: Sequence[Mapping[str, int]]) -> list[Any] | None:
    """The lines with letters for factors that are 0 at every point that the judge tries, None where there are none.

    Behind such a factor, as binomial(h, 5) is for h = 0, ..., 3, everything agrees with everything.
    """
    letters: dict[Any, Any] = {}
    tried = where[:: max(1, len(where) // 40)]

    def vanishes(factor: Any, around: tuple[Any, ...]) -> bool:
        squares = factor**2
        for limit in reversed(around):
            if limit[0] in squares.free_symbols:
                squares = Sum(squares, limit)
        found = False
        for case in tried:
            source = random.Random(f"{plain(factor)} at {case}")
            for tries in range(6):
                try:
                    point = _Random(claim, case, source, exact=False, tries=tries)
                    if all(point.holds(part, {}) for part in claim.testable()):
                        found = True
                        if point.value(squares, {}) != 0:
                            return False
                except (Undefined, Undecided, ValueError, KeyError, TypeError):
                    return False
        return found

    def of_symbols(e: Any) -> bool:
        """What is a sum or a mean may be 0 because the claim says so."""
        return not e.has(ExprWithLimits, Derivative, Limit, KroneckerDelta, Indexed, *MOMENTS)

    def letter(factor: Any, around: tuple[Any, ...]) -> Any:
        if not factor.free_symbols or factor.is_Symbol or not of_symbols(factor):
            return None
        if factor not in letters:
            indices = tuple(index for index, *_ in around if index in factor.free_symbols)
            name = f"unseen_{len(letters)}"
            letters[factor] = None if not vanishes(factor, around) else \
                sympy.IndexedBase(name)[indices] if indices else sympy.Symbol(name, real=True)
        return letters[factor]

    def changed(e: Any, around: tuple[Any, ...]) -> Any:
        if e.is_Atom or isinstance(e, Indexed | KroneckerDelta | Derivative | Integral | Limit | binomial | factorial):
            return e
        if isinstance(e, Sum | Product):
            return e.func(changed(e.function, (*around, *reversed(e.limits))), *e.limits)
        if e.is_Pow:
            return changed(e.base, around) ** e.exp
        if e.is_Mul:
            return product_of(e.args, around)
        return e.func(*[changed(part, around) if isinstance(part, sympy.Expr) else part for part in e.args])

    def product_of(parts: Sequence[Any], around: tuple[Any, ...]) -> Any:
        zero = [part for part in parts if letter(part, around) is not None][:1]
        if not zero:
            zero = [part for part in parts if of_symbols(part)]
            for part in list(zero):         # as few of them as are 0 together
                without = [one for one in zero if one is not part]
                if without and letter(sympy.Mul(*without), around) is not None:
                    zero = without
        found = letter(sympy.Mul(*zero), around)
        if found is None:
            return sympy.Mul(*[changed(part, around) for part in parts])
        return sympy.Mul(found, *[changed(part, around) for part in parts if part not in zero])

    found = [changed(line, ()) for line in lines]
    found = [line.xreplace({factor: value for factor, value in letters.items() if value is not None}) for line in found]
    return found if any(value is not None for value in letters.values()) else None


# -- cases --------------------------------------------------------------------
def cases(claim: Claim, given: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Numbers for all sizes, free indices and exponents at which a claim is judged.

    Sizes that are not given take all orders of 1, 2, 3, every two of them once the same value, and in formulas without
    noise and free indices sizes that lie far apart. A free index takes every value of its range, or equal and different
    values where it has none; where sums over its place have several ranges, values inside and outside of them.
    """
    found: list[dict[str, int]] = []
    for sizes in _sizes(claim, given):
        largest = max(sizes.values(), default=0)
        ranges: list[Sequence[int]] = []
        for index, high in claim.indices.items():
            if index.name in given:
                ranges.append(tuple(given[index.name]))
            elif high is FREE:
                together = sum(h is FREE for h in claim.indices.values())
                ranges.append(_with(claim, _from(index, max(2, min(3, together)))))
            elif high is PARTIAL:
                ranges.append(_with(claim, _from(index, max(largest, 2) + 1)))
            else:
                ranges.append(range(1, sizes.get(high.name, 3) + 1))
        names = [index.name for index in claim.indices]
        counts = [given.get(count.name) or _admitted_values(claim, count) for count in claim.counts]
        for picked in product(*ranges, *counts):
            case = {**sizes, **dict(zip([*names, *(c.name for c in claim.counts)], picked, strict=True))}
            if _admitted(claim, case) and _keeps_to_ranges(claim, case):
                found.append(case)
        if len(found) > MOST_CASES:
            raise NotAClaim(f"the free indices {', '.join(names)} have more than {MOST_CASES} combinations of values: "
                            "give some of them a number")
    found += _reaching(claim, found, given)
    found += _meeting(claim, found, given)
    if not found:
        raise NotAClaim("no sizes and indices are left at which something could be checked"
                        + (f" with {', '.join(f'{k} = {list(v)}' for k, v in given.items())}" if given else ""))
    return found


# -- cases that reach every range
def _reaching(claim: Claim, found: Sequence[dict[str, int]], given: Mapping[str, Any]) -> list[dict[str, int]]:
    """More cases, so that every range of the claim is empty in one and has one, two and three elements in others.

    Sizes that are small and differ do not reach a sum from s + 3 to t, nor one to n - 50: some of them are moved.
    """
    names = [symbol.name for symbol in [*claim.sizes, *claim.indices] if symbol.name not in given]
    groups = [group for count in range(1, min(len(names), 3) + 1) for group in combinations(names, count)]
    more: list[dict[str, int]] = []
    for chain in dict.fromkeys(chain for line in claim.lines for chain in _chains(line)):
        used = {symbol.name for _, *ends in chain for end in ends for symbol in end.free_symbols}
        moves = [group for group in groups if used & set(group)]
        if not moves or not found or not used <= {*found[0], *(index.name for index, *_ in chain)}:
            continue
        differing = {tuple(case.get(name) for name in used): case for case in [*more[::-1], *found[::-1]]}.values()
        reached = set().union(*(_elements(chain, case) for case in differing))
        bases = found[:: max(1, len(found) // 4)]
        for elements in ELEMENTS:
            if elements not in reached and (case := _moved(claim, chain, elements, bases, moves)) is not None:
                more.append(case)
                if not any(length > 0 for length in reached):
                    claim.needed.append(case)
                reached |= _elements(chain, case)
        _, low, high = chain[-1]
        if not given and not any(elements > 0 for elements in reached) and not sympy.expand(high - low).is_negative:
            raise NotAClaim(f"the range from {plain(low)} to {plain(high)} was empty at all sizes that were found")
    return more


def _meeting(claim: Claim, found: Sequence[dict[str, int]], given: Mapping[str, Any]) -> list[dict[str, int]]:
    """More cases, so that two indices that a delta or two copies compare agree in one, and hide nothing.

    Small indices do not reach a delta of a and b + 50.
    """
    more: list[dict[str, int]] = []
    compared = {delta.args[:2] for line in claim.lines for delta in line.atoms(KroneckerDelta)}
    drawn = [copy for line in claim.lines for copy in copies(line)]
    compared |= {pair for one, two in combinations(dict.fromkeys(drawn), 2) if one.base == two.base
                 for pair in zip(one.indices, two.indices, strict=True)}
    free = {index for index in claim.indices if index.name not in given}
    known = {*free, *claim.sizes, *claim.indices, *claim.counts}
    for left, right in sorted(compared, key=str):
        gap = sympy.expand(left - right)
        moves = [index for index in sorted(free & gap.free_symbols, key=str) if abs(gap.coeff(index)) == 1]
        if not moves or not gap.free_symbols <= known:
            continue
        apart = [(int(gap.xreplace({s: sympy.Integer(case[s.name]) for s in gap.free_symbols})), case)
                 for case in [*found, *more]]
        if any(distance == 0 for distance, _ in apart):
            continue
        for (distance, case), index in product(apart[:: max(1, len(apart) // 4)], moves):
            value = case[index.name] - distance * int(gap.coeff(index))
            moved = {**case, index.name: value}
            low = 1 if index.is_positive else 0 if index.is_nonnegative or index.is_integer is None else value
            high = -1 if index.is_negative else 0 if index.is_nonpositive else value
            if low <= value <= high and _admitted(claim, moved) and _keeps_to_ranges(claim, moved):
                more.append(moved)
                break
    return more


def _chains(e: Any, around: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every range with those around it, the outer one first."""
    if isinstance(e, Sum | Product):
        for limit in reversed(e.limits):
            around = (*around, limit)
            yield around
        yield from _chains(e.function, around)
    else:
        for part in e.args:
            yield from _chains(part, around)


def _lengths(chain: Sequence[Any], at_end: Sequence[bool], case: Mapping[str, int]) -> list[int]:
    """How long the ranges are where each outer index is at the beginning or at the end of its own."""
    numbers, env, found = Numbers(case, lambda e, key: 0), dict[Any, int](), []
    for (index, low, high), is_last in zip(chain, (*at_end, False), strict=True):
        first, last = numbers.end(low, env), numbers.end(high, env)
        env[index] = last if is_last else first
        found.append(last - first + 1)
    return found


def _patterns(chain: Sequence[Any]) -> Iterable[tuple[bool, ...]]:
    return product((False, True), repeat=len(chain) - 1)


def _elements(chain: Sequence[Any], case: Mapping[str, int]) -> set[int]:
    """How many elements the last range has, where the outer ones are not empty."""
    lengths = (_lengths(chain, at_end, case) for at_end in _patterns(chain))
    return {own for *outer, own in lengths if all(length > 0 for length in outer)}


def _moved(claim: Claim, chain: Sequence[Any], elements: int, bases: Sequence[Mapping[str, int]],
           moves: Sequence[tuple[str, ...]]) -> dict[str, int] | None:
    """A case with some sizes moved together, so that a range has so many elements."""
    for case, names, at_end in product(bases, moves, _patterns(chain)):
        here, next_to_it = (_lengths(chain, at_end, {**case, **{name: case[name] + step for name in names}})[-1]
                            for step in (0, 1))
        if here == next_to_it or (elements - here) % (next_to_it - here):
            continue
        step = (elements - here) // (next_to_it - here)
        moved = {**case, **{name: case[name] + step for name in names}}
        values = {symbol: moved[symbol.name] for symbol in [*claim.sizes, *claim.indices]}
        if all(values[symbol] in _from(symbol, abs(values[symbol])) for symbol in values if symbol.name in names) \
                and len({values[size] for size in claim.sizes}) == len(claim.sizes) \
                and _admitted(claim, moved) and _keeps_to_ranges(claim, moved) and elements in _elements(chain, moved):
            return moved
    return None


def _keeps_to_ranges(claim: Claim, case: Mapping[str, int]) -> bool:
    """Does every free index lie in its range?"""
    return all(1 <= case[index.name] <= case[high.name] for index, high in claim.indices.items()
               if high not in (FREE, PARTIAL))


def _with(claim: Claim, values: Sequence[int]) -> list[int]:
    """Also the numbers that stand in indices: where something depends on k = 5, 1 and 2 would not tell."""
    return sorted({*values, *(c for c in claim.constants if values[0] <= c <= LARGEST_CONSTANT)})


def _from(symbol: Any, last: int) -> range:
    if symbol.is_nonpositive:
        return range(-last, 0 if symbol.is_negative else 1)
    first = 1 if symbol.is_positive else 0 if symbol.is_nonnegative or symbol.is_integer is None else -1
    return range(first, last + 1)


def _admitted_values(claim: Claim, count: Any) -> list[int]:
    """The first values of an exponent that its conditions admit, and the numbers that stand in case distinctions."""
    found = [value for value in _from(count, FARTHEST) if _admitted(claim, {count.name: value})]
    few = found[: max(3, len(_from(count, 3)))]
    return few + [value for value in found if value in claim.constants and value not in few]


def _sizes(claim: Claim, given: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    free = [size for size in claim.sizes if size.name not in given]
    names = [size.name for size in free]
    listed = {size.name: given[size.name] for size in claim.sizes if size.name in given}
    for reach in (max(3, len(free)), 8, FARTHEST):
        pool: list[Sequence[int]] = [_from(size, reach) for size in free]
        if len(free) == 1:
            pool = [_with(claim, [*pool[0], *(c + 1 for c in claim.constants if pool[0][0] < c < LARGEST_CONSTANT),
                                  *(c + step for c in map(abs, claim.constants) if LARGEST_CONSTANT <= c < FARTHEST
                                    for step in (1, 2))])]
        found = [dict(zip(names, picked, strict=True)) for picked in _distinct(pool)]
        found = [{**case, **dict(zip(listed, more, strict=True))}
                 for case in found for more in product(*listed.values())]
        found = [case for case in found if _admitted(claim, case)]
        if len(found) > 2 or not [*claim.where, *claim.places]:
            break
    yield from found[:24] if len(free) < 4 else found[:: max(1, len(found) // 6)]
    for one, two in combinations(free, 2):          # a factor such as n - d hides everything at no other sizes
        equal = [{**case, two.name: case[one.name]} for case in found if case[one.name] in _from(two, reach)]
        different = {tuple(case.values()): case for case in equal if _admitted(claim, case)}
        yield from list(different.values())[:2]
    without_noise = not claim.indices and not any(line.has(*MOMENTS) for line in claim.lines)
    if without_noise and 0 < len(free) <= len(FAR) and all(_depth(line) <= 2 for line in claim.lines):  # cheap
        alone = (*(NEAR if any(line.has(Product) for line in claim.lines) else ()), FAR[-1])
        for picked in permutations(FAR, len(free)) if len(free) > 1 else zip(alone):
            case = {**dict(zip(names, picked, strict=True)), **{name: values[0] for name, values in listed.items()}}
            if _admitted(claim, case):
                yield case


def _depth(e: Any) -> int:
    """How many sums stand in each other."""
    return max((_depth(part) for part in e.args), default=0) + (len(e.limits) if isinstance(e, Sum | Product) else 0)


def _distinct(pools: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """All choices of different values; the small ones first."""
    yield from sorted((picked for picked in product(*pools) if len(set(picked)) == len(picked)), key=sum)


def _admitted(claim: Claim, case: Mapping[str, int]) -> bool:
    """Does a case satisfy the conditions that speak of its symbols alone?"""
    return _satisfies([*claim.where, *claim.places], case)


def _satisfies(relations: Iterable[Any], case: Mapping[str, int]) -> bool:
    numbers = Numbers(case, lambda e, key: 0)
    try:
        return all(numbers.holds(relation, {}) for relation in relations
                   if {s.name for s in relation.free_symbols} <= set(case) and not relation.atoms(Indexed))
    except Undefined:
        return False


# -- points -------------------------------------------------------------------
class _Random(Numbers):
    """Random values: of symbols by their assumptions, of entries as they are met."""

    def __init__(self, claim: Claim, case: Mapping[str, int], source: random.Random, exact: bool, tries: int,
                 shrunk: int = 0) -> None:
        self.size = Fraction(1, 2 ** (shrunk // 4))     # entries come nearer to 0 where exponentials were too large
        self.source, self.exact, self.tries = source, exact, tries
        self.signs = ((1,), (-1,), (-1, 1))[tries % 3]
        self.drawn: dict[Any, Any] = {}
        scalars: dict[str, Any] = dict(case)
        for symbol in claim.parameters:
            scalars[symbol.name] = self.scalar(symbol)
        super().__init__(scalars, self.remembered)
        self.largest = LARGEST_ARGUMENT
        self.scalars: dict[str, Any] = scalars

    def scalar(self, symbol: Any) -> Any:
        if symbol.is_integer:
            may_be_zero = not (self.exact or symbol.is_positive or symbol.is_negative)
            value: Any = self.source.randrange(1, 2**BITS if self.exact else 30) * (not may_be_zero or self.tries > 0)
        else:                       # half of them in (0, 1), where rates live
            value = Fraction(self.source.randrange(1, 2**BITS), 2**BITS)
            value *= self.source.choice((1, 4) if self.exact else (1, 1, *SCALES))
        signs = (1,) if symbol.is_nonnegative else (-1,) if symbol.is_nonpositive else self.signs
        return value * self.source.choice(signs)

    def with_opposite(self, symbol: Any) -> Numbers:
        """The same point with the other sign of a symbol."""
        return Numbers({**self.scalars, symbol.name: -self.scalars[symbol.name]}, self.entries)

    def remembered(self, e: Any, key: tuple[Any, ...]) -> Any:
        if key not in self.drawn:
            value: Any = self.source.randrange(1, 2**BITS)
            if not self.exact:
                value = self.size * Fraction(self.source.choice(SCALES) * value, 2**BITS)
            self.drawn[key] = self.source.choice(self.signs) * value
        return self.drawn[key]


def domains_that_matter(claim: Claim, where: Sequence[Mapping[str, int]]) -> list[Any]:
    """The symbols whose declared domain, a sign or whole numbers, the claim may need.

    An equation between rational functions holds for either sign, and for all real numbers, if it does so at a random
    point. For what is not rational no sample of points can tell. That a size or an index is not 0 matters if the
    claim is false there.
    """
    rational = all(points(claim.lines, case) is not None for case in where) \
        and not any(_may_be_irrational(line) for line in claim.lines)
    numbers = [symbol for symbol in claim.parameters if symbol.is_integer]
    needed = list(claim.counts) if rational else [*claim.counts, *numbers]
    needed += [symbol for symbol in numbers if symbol.is_nonpositive and symbol not in needed]
    for place in [*claim.sizes, *(index for index, high in claim.indices.items() if high in (FREE, PARTIAL))]:
        if place.is_integer and place not in claim.whole and (
                place.is_nonpositive or place in claim.positive
                or (not rational and any(_stands_as_a_number(place, line) or _fills(place, line)
                                         for line in claim.lines))):
            needed.append(place)
    needed += _not_zero(claim, where, needed)
    signed = [symbol for symbol in claim.parameters
              if not symbol.is_integer and (symbol.is_nonnegative or symbol.is_nonpositive)]
    if not signed or not rational:
        return needed + signed
    found: set[Any] = set()
    for case in where[:: max(1, len(where) // 12)]:
        if (point := _point_inside(claim, case)) is None:
            return needed + signed
        found |= {symbol for symbol in signed if not _holds(claim, point.with_opposite(symbol))}
    return needed + [symbol for symbol in signed if symbol in found]


def _point_inside(claim: Claim, case: Mapping[str, int]) -> _Random | None:
    """A random point at which the claim holds."""
    source = random.Random(f"inside {case}")
    for tries in range(TRIES):
        point = _Random(claim, case, source, exact=True, tries=tries)
        if _holds(claim, point):
            return point
    return None


def _not_zero(claim: Claim, where: Sequence[Mapping[str, int]], needed: Sequence[Any]) -> list[Any]:
    """The sizes and indices at whose zeros, one or several at once, the claim fails, though they are declared positive.

    An index from 1 to a size says already that it is not 0.
    """
    places = [place for place in [*claim.sizes, *claim.indices] if place.is_integer and place.is_positive
              and claim.indices.get(place) in (None, FREE, PARTIAL) and place not in claim.indices.values()]
    found: list[Any] = []
    for count in range(1, len(places) + 1):
        for group in combinations(places, count):
            if not set(group) & {*needed, *found} and not _holds_at_zero(claim, where, group):
                found += group
    return found


def _holds_at_zero(claim: Claim, where: Sequence[Mapping[str, int]], places: Sequence[Any]) -> bool:
    """Does the claim hold, or say nothing, where sizes or indices are 0, outside of their declared domain?"""
    zeros = {place.name: 0 for place in places}
    others = [dict(case) for case in sorted({tuple(sorted({**case, **zeros}.items())) for case in where})]
    others += _reaching(claim, others, zeros)       # an empty range may have hidden what fails there
    others += _meeting(claim, others, zeros)
    return all(_holds_in(claim, case, set(places)) for case in others)


def _holds_in(claim: Claim, case: Mapping[str, int], places: set[Any]) -> bool:
    """Does the claim hold at a point of a case? False where a condition on the places keeps all points from it."""
    if not _satisfies(claim.where, case):
        return True
    if not _satisfies(claim.places, case):
        return False                    # a denominator is 0 there, say
    source = random.Random(f"inside {case}")
    is_exact_there, kept_away = _is_rational_in(claim, case), False
    for tries in range(TRIES):
        point = _Random(claim, case, source, exact=is_exact_there, tries=tries)
        try:
            failing = [relation for relation in claim.testable() if not point.holds(relation, {})]
        except Undefined:
            kept_away = True
            continue
        except (Undecided, ValueError):
            return True
        if not failing:
            break
        kept_away |= any(relation.free_symbols & places and relation not in claim.where for relation in failing)
    else:
        return not kept_away
    try:
        return all(gap(point, claim.lines[0], line) == 0 for line in claim.lines[1:])
    except (TooLarge, Undecided, ValueError):
        return True
    except Undefined:
        return False


def _is_rational_in(claim: Claim, case: Mapping[str, int]) -> bool:
    try:
        return points(claim.lines, case) is not None
    except ValueError:
        return False


def _may_be_irrational(e: Any) -> bool:
    """A root, a function or a case distinction, also where it stands in a sum that is empty at the sizes of a case."""
    if isinstance(e, Indexed):
        return type(e.base) is Noise and any(map(_may_be_irrational, _parameters(e.base)))
    if isinstance(e, KroneckerDelta) or e.is_Atom:
        return False
    if (e.is_Pow and not e.exp.is_integer) or isinstance(e, Derivative | Integral | Limit) \
            or (isinstance(e, Function | Max | Min) and not isinstance(e, factorial | binomial)):   # of whole numbers
        return True
    return any(_may_be_irrational(part) for part in e.args if isinstance(part, sympy.Expr))


def _parameters(family: Noise) -> list[Any]:
    """What the moments of a law are made of: of a deviation the square, which is rational where it is a root."""
    distribution = family.law.pspace.distribution
    return [distribution.mean, distribution.std**2] if family.is_normal_law else list(distribution.args)


def _stands_as_a_number(symbol: Any, e: Any) -> bool:
    """Outside of indices, deltas and the ends of ranges."""
    if isinstance(e, Indexed | KroneckerDelta):
        return False
    if isinstance(e, Sum | Product):
        return _stands_as_a_number(symbol, e.function)
    return bool(e == symbol) or any(_stands_as_a_number(symbol, part) for part in e.args)


def _fills(size: Any, e: Any) -> bool:
    """Does SymPy give a sum a sign because its range is not empty, and that because of a size?"""
    def has_sign(body: Any) -> bool:
        return any(term.is_positive or term.is_negative for term in sympy.Add.make_args(sympy.expand(body)))

    return any(part.has_reversed_limits is False and has_sign(part.function) for part in e.atoms(Sum)
               if any(size in limit.free_symbols for limit in part.limits))


def _holds(claim: Claim, point: Numbers) -> bool:
    try:
        return all(point.holds(relation, {}) for relation in claim.where) \
            and all(gap(point, claim.lines[0], line) == 0 for line in claim.lines[1:])
    except (Undefined, Undecided):
        return False


def gap(point: Numbers, left: Any, right: Any) -> Any:
    """left - right at a point: 0 exactly if they agree.

    Raises:
        Undecided: If the difference neither stays nor vanishes with more digits.
    """
    found: list[Any] = []
    size: Any = 0
    for digits in (QUADRATURE_DIGITS[0], *DIGITS):
        if point.used_quadrature:
            digits = QUADRATURE_DIGITS[len(found)]
        point.forget()
        with mp.workdps(digits):
            one, two = point.value(left, {}), point.value(right, {})
            if is_exact(one) and is_exact(two):
                return one - two
            one, two = as_float(one), as_float(two)
            size = max(abs(one), abs(two))
            if digits != QUADRATURE_DIGITS[0] or point.used_quadrature:
                found.append(one - two)
        if len(found) == 2:
            break
    point.forget()
    if not point.used_quadrature and not _vanishes(found[0], found[1], size):
        with mp.workdps(CONFIRMED):         # seen again, before it refutes a claim
            found = [found[-1], as_float(point.value(left, {})) - as_float(point.value(right, {}))]
            point.forget()
            if abs(found[-1]) <= mp.mpf(10) ** (20 - CONFIRMED):
                return 0
    coarse, fine = found
    if (abs(fine) <= QUADRATURE_ERROR * max(1, size)) if point.used_quadrature else _vanishes(coarse, fine, size):
        return 0
    if abs(fine - coarse) <= mp.mpf(10) ** -3 * abs(fine):
        return fine
    raise Undecided(f"whether {plain(left)} and {plain(right)} agree cannot be told from rounding")


def _vanishes(coarse: Any, fine: Any, size: Any) -> bool:
    """True if a difference shrinks with the rounding error."""
    return bool(abs(fine) <= mp.mpf(10) ** -8 * abs(coarse) or abs(fine) <= mp.mpf(10) ** (1 - DIGITS[1] // 2) * size)


# -- how many points ----------------------------------------------------------
class _Degree:
    """The degrees of numerator and denominator of a rational function."""

    def __init__(self, above: int = 0, below: int = 0) -> None:
        self.above, self.below = above, below

    def __add__(self, other: Any) -> _Degree:
        if isinstance(other, Polynomial):
            return NotImplemented
        other = other if isinstance(other, _Degree) else _Degree()
        return _Degree(max(self.above + other.below, other.above + self.below), self.below + other.below)

    def __mul__(self, other: Any) -> _Degree:
        if isinstance(other, Polynomial):
            return NotImplemented
        other = other if isinstance(other, _Degree) else _Degree()
        return _Degree(self.above + other.above, self.below + other.below)

    __radd__, __rmul__ = __add__, __mul__


_NUMBERS = Numbers({}, lambda e, key: 0)


class _NotRational(Exception):
    pass


class _Degrees(Meaning):
    """Counts the degree of an expression in its symbols and entries at the sizes of a case."""

    few = 1             # a bound needs no sum over outcomes where moments give it

    def __init__(self, case: Mapping[str, int]) -> None:
        super().__init__()
        self.case = case

    def symbol(self, e: Any) -> Any:
        return self.case.get(e.name, _Degree(1))

    def entry(self, e: Any, key: tuple[Any, ...]) -> Any:
        return _Degree(1)

    def power(self, base: Any, exponent: Any, e: Any) -> Any:
        if isinstance(exponent, Polynomial):
            raise NotPolynomial
        if not is_exact(exponent) or exponent != int(exponent):
            raise _NotRational
        if is_exact(base):
            return _NUMBERS.power(base, exponent, e)
        if isinstance(base, Polynomial):
            if exponent < 0:
                raise NotPolynomial
            return math.prod([base] * int(exponent), start=1)
        above, below = (base.above, base.below) if exponent >= 0 else (base.below, base.above)
        return _Degree(above * abs(int(exponent)), below * abs(int(exponent)))

    def other(self, e: Any, env: Any) -> Any:
        if e.is_Rational:
            return Fraction(int(e.p), int(e.q))
        parts = [self.value(part, env) for part in e.args] if isinstance(e, Function | Max | Min) else [_Degree()]
        if any(isinstance(part, Polynomial) for part in parts):
            raise NotPolynomial
        if not all(map(is_exact, parts)) or type(e).__name__ not in (*EXACT, "Max", "Min"):
            raise _NotRational
        return _NUMBERS.function(e, parts)          # of numbers that are the same at every point

    def mean_by_quadrature(self, factors: Sequence[Any], env: Any) -> Any:
        raise _NotRational


def degree(sides: Iterable[Any], case: Mapping[str, int]) -> int | None:
    """A bound on the degree of left - right over a common denominator, None if a side is not a rational function."""
    total = _Degree()
    try:
        for side in sides:
            value = _Degrees(case).value(side, {})
            total = total + (value if isinstance(value, _Degree) else _Degree())
    except (_NotRational, ArithmeticError):
        return None
    return total.above


def points(sides: Sequence[Any], case: Mapping[str, int]) -> int | None:
    """So many points that a false identity survives all of them with a probability below RISK; None: not rational."""
    return _points(tuple(sides), tuple(case.items()))


@lru_cache(maxsize=4096)
def _points(sides: tuple[Any, ...], case: tuple[tuple[str, int], ...]) -> int | None:
    if (found := degree(sides, dict(case))) is None:
        return None
    once = Fraction(max(found, 1) * TRIES, 2**BITS)         # at most one in TRIES points may have been taken
    wanted = 1
    while once**wanted > RISK:
        wanted += 1
    return wanted
