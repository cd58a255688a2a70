"""What a page shows: chains of equalities and single identities, each checked before it is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from functools import wraps
from types import MappingProxyType
from typing import Any

import mpmath
from sympy import Basic, KroneckerDelta, Product, binomial, sympify
from sympy.stats import Expectation
from sympy.stats.rv import RandomSymbol

from . import judge, rules
from .evaluate import as_listed, at_scalars, controlled, given_point
from .families import Noise, copies
from .language import FREE, NAME, PARTIAL, Claim, NotAClaim, assuming, in_words, read
from .meaning import Undecided, Undefined, as_float, is_exact
from .notation import MOMENTS, latex, plain

__all__ = ["Counterexample", "Derivation", "Identity", "Unproved", "cumulant", "derive", "disprove", "judged", "prove",
           "same"]

NARROW = 40             # characters that fit on the screen of a telephone
_SHOWN = object()       # known to this module alone: only what was checked becomes a result


class Unproved(AssertionError):
    """A line that is false, or that could not be shown to be true; the message holds the difference."""


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Whatever a rule trips over in an unforeseen expression is no proof, and no crash either."""
    try:
        yield
    except (Unproved, NotAClaim):
        raise
    except Undecided as error:
        raise Unproved(f"{what} is not shown: {error}") from error
    except (ArithmeticError, AttributeError, IndexError, KeyError, NotImplementedError, RecursionError, StopIteration,
            TypeError, ValueError) as error:
        raise Unproved(f"{what} is not shown: it could not be worked out ({type(error).__name__}: {error})") from error


# -- sizes that a caller gives ------------------------------------------------
def _given(sizes: Mapping[str, int | Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """The sizes of the caller; an empty list would check nothing and show everything."""
    given: dict[str, tuple[int, ...]] = {}
    for name, size in sizes.items():
        given[name] = listed = tuple(size) if isinstance(size, Iterable) else (size,)
        if not listed:
            raise ValueError(f"{name} needs at least one size, for example {name}=2")
        if not all(isinstance(size, int) and not isinstance(size, bool) for size in listed):
            raise ValueError(f"{name} needs whole numbers, got {listed}")
    return given


def _cases(claim: Claim, given: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
    whole = [*claim.sizes, *claim.indices, *claim.counts]
    if unknown := sorted(set(given) - {symbol.name for symbol in whole}):
        raise ValueError(f"no size is called {', '.join(unknown)}")
    for symbol in whole:
        for value in given.get(symbol.name, ()):
            _check_declared(symbol, value)
    return judge.cases(claim, given)


def _in_words(claim: Claim, cases: Sequence[Mapping[str, int]]) -> str:
    """At which sizes and indices a line was checked."""
    names = [symbol.name for symbol in [*claim.sizes, *claim.indices, *claim.counts]]
    listed = {name: sorted({case[name] for case in cases}) for name in names}
    return "at " + "; ".join(f"{name} = {', '.join(map(str, values))}" for name, values in listed.items()) \
        if listed else "by enumeration"


def _require_sizes(claim: Claim, given: Mapping[str, tuple[int, ...]]) -> None:
    """Where the enumeration may stand alone, the caller chooses the sizes and sees them on the page."""
    needed = [*claim.sizes, *(index for index, high in claim.indices.items() if high is PARTIAL), *claim.counts]
    if missing := sorted({symbol.name for symbol in needed} - set(given)):
        example = ", ".join(f"{name}=(1, 2, 3)" for name in missing)
        raise ValueError(f"an enumeration needs every size: give {example}")


def _enumerated(claim: Claim, left: Any, right: Any, cases: Sequence[Mapping[str, int]]) -> str:
    """In words, where the judge alone decides; only for what is decided at every point of a case by some points."""
    for case in cases:
        if judge.points((left, right), case) is None:
            raise Unproved(f"the enumeration alone shows equations between rational functions only, and not\n"
                           f"  {plain(left)} = {plain(right)}\n  (prove(..., at=...) compares numbers)")
    return _in_words(claim, cases)


def _refuted(claim: Claim, left: Any, right: Any, cases: list[dict[str, int]], name: str, at_given: bool = False
             ) -> None:
    """Raise if the judge finds a point where left and right differ, or cannot see one; ``at_given`` sizes it sees."""
    with _refusing(name):
        found = judge.disagreement(claim, left, right, cases)
    if found is not None:
        where = f" at {found.at()}" if found.case else ""
        condition = claim.condition()
        raise Unproved(f"{name} is false{where}: {plain(left)} = {plain(right)}\n"
                       f"  the difference is {plain(-found.difference)}"
                       + (f"\n  under the condition {condition}" if condition else "")
                       + _advice(claim))
    with _refusing(name):
        general = None if at_given else _in_general(claim, [left, right], cases)
        found = None if general is None else judge.disagreement(general, general.lines[0], general.lines[1], cases)
    if found is not None:
        raise Unproved(f"{name} is not shown: {plain(left)} = {plain(right)}\n"
                       "  a factor is 0 at all points that the judge tries, and with a letter in its place the sides "
                       "differ")


def _in_general(claim: Claim, lines: Sequence[Any], cases: Sequence[Mapping[str, int]]) -> Claim | None:
    """A claim of letters where factors are 0 at every point that the judge tries, None where there are none."""
    found = judge.without_zeros(claim, lines, cases)
    return None if found is None else read(found, claim.where)


def _domains_that_matter(claim: Claim, cases: Sequence[Mapping[str, int]]) -> list[Any]:
    """Also where such a factor hides them."""
    needed = judge.domains_that_matter(claim, cases)
    general = _in_general(claim, claim.lines, cases)
    hidden = [] if general is None else judge.domains_that_matter(general, cases)
    known = {*claim.sizes, *claim.indices, *claim.counts, *claim.parameters}
    return needed + [symbol for symbol in hidden if symbol in known and symbol not in needed]


def _advice(claim: Claim) -> str:
    partial = [index.name for index, high in claim.indices.items() if high is PARTIAL]
    return f"\n  ({', '.join(partial)} may be any whole number; where=... says which are meant)" if partial else ""


# -- chains -------------------------------------------------------------------
class _Result:
    """What only this module can make: results are shown because they were checked."""

    domain: Claim
    condition: str
    _condition_row: str

    def _refuse_strangers(self, key: object) -> None:
        if key is not _SHOWN:
            raise TypeError(f"a {type(self).__name__} is made by derive, prove, disprove or gaussian_mean, which check "
                            "it")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise AttributeError(f"{name} was checked and cannot be changed")
        super().__setattr__(name, value)

    def _under(self, claim: Claim) -> None:
        """Fix the condition as it is printed."""
        self.domain, self.condition, shown = claim, claim.condition(), claim.condition(latex)
        self._condition_row = rf"&\small\text{{for }} {shown}" if shown else ""


class Derivation(_Result):
    """A chain of equalities, every line checked; Jupyter shows it as aligned LaTeX.

    Attributes:
        lines: Pairs (expression, reason).
        condition: The condition under which all lines hold, beyond the assumptions of the symbols.
        sizes: The sizes and index values at which every line was also judged.
    """

    def __init__(self, key: object, lines: Sequence[tuple[Any, str]], sizes: Sequence[dict[str, int]],
                 claim: Claim) -> None:
        self._refuse_strangers(key)
        self.lines, self.sizes = tuple(lines), tuple(sizes)
        self._under(claim)

    @property
    def result(self) -> Any:
        """The last line."""
        return self.lines[-1][0]

    def _repr_latex_(self) -> str:
        return _aligned([("=", latex(e), reason) for e, reason in self.lines], self._condition_row)

    def __repr__(self) -> str:
        chain = "\n  = ".join(plain(e) + (f"    [{reason}]" if reason else "") for e, reason in self.lines)
        return chain + (f"\n  for {self.condition}" if self.condition else "")


def _aligned(rows: list[tuple[str, str, str]], condition: str = "") -> str:
    """Rows (sign, formula, reason) of an aligned chain; reasons stand beside short lines and under long ones."""
    (_, start, _), *rest = rows
    beside = rest and _width(start) + _width(rest[0][1]) < NARROW
    out = [] if beside else ["&" + start]
    for position, (sign, line, reason) in enumerate(rest):
        head = f"{start} &{sign} " if beside and position == 0 else f"&{sign} "
        note = rf"\small\text{{({_escaped(reason)})}}" if reason else ""
        if note and _width(head + line) + 0.8 * len(reason) > NARROW:
            out += [head + line, rf"&\qquad {note}"]
        else:
            out.append(head + line + (rf"\quad {note}" if note else ""))
    out += [condition] if condition else []
    return "$\\displaystyle \\begin{aligned}\n" + "\\\\[4pt]\n".join(out) + "\n\\end{aligned}$"


def _escaped(reason: str) -> str:
    """A reason is text: nothing in it may print as a formula."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^%&#${}_]", lambda found: special.get(found[0], "\\" + found[0]), reason)


def _width(text: str) -> int:
    """Roughly how many characters wide a formula is."""
    text = re.sub(r"\\substack\{(.*?)\\\\.*?\}", r"\1", text)
    text = re.sub(r"\\(left|right|limits|operatorname|mathrm|displaystyle)", "", text)
    text = re.sub(r"[_^]\{[^{}]*\}", "i", text)
    return len(re.sub(r"[{}\s_^]", "", re.sub(r"\\[A-Za-z]+", "x", text)))


def _reason(rule: Callable[[Any], Any], before: Any, after: Any) -> str:
    known = {"linear": "linearity", "exact": "the three rules"}
    name = getattr(rule, "__name__", "")
    if name == "collapse":
        return "only equal indices remain" if len(after.atoms(KroneckerDelta)) < len(before.atoms(KroneckerDelta)) \
            else "collected"
    if name == "by_law":
        gone = before.atoms(*MOMENTS) - after.atoms(*MOMENTS)
        several = any(len(copies(moment)) > 1 or moment.has(Product) for moment in gone)
        return "independence" if several else "law of the noise"
    return known.get(name, "")


def derive(start: Any, *links: Any, by: str | None = None, where: Any = (),
           **sizes: int | Iterable[int]) -> Derivation:
    """A chain start = ... = result in which nothing unproved can be shown.

    Every line must equal the first one twice: by the rules, for sizes that stay symbols, and for the judge, which
    knows no rules and works both sides out at random points, all masks summed, at several sizes. What may stand in a
    line is listed in :mod:`dropoutlib.symbolic.language`.

    Args:
        start: The first line.
        *links: The following lines: a rule (applied to the line above; skipped where it changes nothing), an
            expression, or a pair (rule or expression, "reason").
        by: None requires both checks. ``"enumeration"`` also accepts lines which the rules cannot decide, at
            sizes and exponents that must then be given, since a false formula may hold at a few of them; such lines say
            so. ``"rules"`` is the same as None.
        where: Conditions under which the chain is meant, such as ``i <= n``; they are shown with it. The judge keeps to
            them; the rules do not know them, so two different units are ``m[i]`` and ``m[i + 1]``.
        **sizes: More sizes for the judge by name: ``n=5`` or ``n=(4, 5)``. Without them, sizes take the values 1, 2
            and 3 in every order, every two of them once the same value, and some larger ones.

    Raises:
        Unproved: If a line is not equal to the first; the message names the line and shows the difference.
        NotAClaim: If a line is not part of the language.
        ValueError: If ``by`` or the name of a size is unknown, a size has no value (``n=()``), or a size is left
            out although ``by="enumeration"``.

    >>> from sympy import IndexedBase, Sum, symbols
    >>> from dropoutlib.symbolic import Bernoulli, Noise, Variance, by_law, collapse, derive, linear
    >>> p, x = symbols("p"), IndexedBase("x")
    >>> j, n = symbols("j n", integer=True, positive=True)
    >>> m = Noise(Bernoulli("m", 1 - p))
    >>> derive(Variance(Sum(m[j]*x[j], (j, 1, n))), linear, by_law, collapse)
    Variance(Sum(m[j]*x[j], (j, 1, n)))
      = Sum(Covariance(m[j], m[k])*x[j]*x[k], (j, 1, n), (k, 1, n))    [linearity]
      = Sum(p*(1 - p)*KroneckerDelta(j, k)*x[j]*x[k], (j, 1, n), (k, 1, n))    [independence]
      = p*(1 - p)*Sum(x[j]**2, (j, 1, n))    [only equal indices remain]
      for 0 < p < 1
    """
    if by not in (None, "enumeration", "rules"):
        raise ValueError(f'by must be None, "enumeration" or "rules", got {by!r}')
    given = _given(sizes)
    opening = read([start], where)
    lines: list[tuple[Any, str]] = [(opening.lines[0], "")]
    with assuming(opening):
        for link in links:
            if isinstance(link, tuple) and (len(link) != 2 or not isinstance(link[1], str)):
                raise TypeError(f'a link is a rule, an expression or a pair (one of them, "reason"), got {link!r}')
            target, reason = link if isinstance(link, tuple) else (link, "")
            if callable(target) and not isinstance(target, Basic):
                with _refusing(f"line {len(lines)}"):
                    rule: Any = getattr(target, "rule", target)
                    line = sympify(rule(lines[-1][0]))
                reason = reason or _reason(target, lines[-1][0], line)
                if line == lines[-1][0]:
                    continue
            else:
                line = target
            lines.append((line, " ".join(str(reason).split())))
    claim = read([line for line, _ in lines], where)
    cases = _cases(claim, given if by == "enumeration" else {})
    if by == "enumeration":
        _require_sizes(claim, given)
    elif given:
        cases += [case for case in _cases(claim, given) if case not in cases]
    start = claim.lines[0]
    checked, hows = [(start, "")], []
    for position, (line, (_, reason)) in enumerate(zip(claim.lines[1:], lines[1:], strict=True), start=1):
        _refuted(claim, start, line, cases, f"line {position}", at_given=by == "enumeration")
        how = _shown_by_rules(claim, start, line, f"line {position}", cases if by == "enumeration" else None)
        if by == "enumeration" and not how:
            how = _at_other_sizes(claim, start, line, f"line {position}", cases)
        hows.append(how)
        checked.append((line, ", ".join(part for part in (reason, how) if part)))
    at_given = bool(hows) and all(hows)         # a line that the rules show does not say at which sizes
    claim.signed = _domains(claim, cases, given if at_given else {})
    if at_given:
        claim.whole = [symbol for symbol in claim.whole if symbol.name not in given]
    return Derivation(_SHOWN, checked, cases, claim)


def _at_other_sizes(claim: Claim, left: Any, right: Any, name: str, cases: Sequence[Mapping[str, int]]) -> str:
    """A line that the rules show at every size is judged beyond the given sizes, too, or keeps to them and says so."""
    try:
        others = judge.cases(claim, {})
    except NotAClaim:
        return _enumerated(claim, left, right, cases)
    _refuted(claim, left, right, others, name)
    return ""


def _domains(claim: Claim, cases: list[dict[str, int]], given: Mapping[str, Any]) -> list[Any]:
    """The symbols whose domain the claim needs, but for sizes of which it says which ones were checked."""
    return [symbol for symbol in _domains_that_matter(claim, cases) if symbol.name not in given]


def _shown_by_rules(claim: Claim, left: Any, right: Any, name: str, cases: Sequence[Mapping[str, int]] | None) -> str:
    """Raise if the rules do not show left = right; where cases are given they may stand instead, and are named."""
    gap: Any = None
    try:
        with assuming(claim), _refusing(name):
            gap = rules.difference(left, right)
    except Unproved:
        if cases is None:
            raise
    if gap == 0:
        return ""
    if cases is not None:
        return _enumerated(claim, left, right, cases)
    raise Unproved(f"{name} is not shown by the rules (the judge found no point where it is false): "
                   f"{plain(left)} = {plain(right)}\n"
                   f"  difference left: {plain(-gap)}")


# -- single identities --------------------------------------------------------
class Identity(_Result):
    """A proved equation, shown with how it was checked and under which condition it holds."""

    def __init__(self, key: object, left: Any, right: Any, how: str, claim: Claim, sign: str = "=") -> None:
        self._refuse_strangers(key)
        self.left, self.right, self.how, self.sign = left, right, how, sign
        self._under(claim)

    def _repr_latex_(self) -> str:
        sign = {"=": "=", "~": r"\approx"}[self.sign]
        return _aligned([("", latex(self.left), ""), (sign, latex(self.right), self.how)], self._condition_row)

    def __repr__(self) -> str:
        return f"{plain(self.left)} {self.sign} {plain(self.right)}" + (f"    [{self.how}]" if self.how else "") \
            + (f"\n  for {self.condition}" if self.condition else "")


def prove(left: Any, right: Any, *, at: Iterable[Mapping[Any, Any]] | None = None, tolerance: float = 1e-12,
          where: Any = (), **sizes: int | Iterable[int]) -> Identity:
    """Prove one identity and show it as an equation.

    Args:
        left: The left side.
        right: The right side.
        at: Points (as ``values`` of :func:`number`): compare numerically there, integrals by quadrature. A check, not
            a proof, and labelled so.
        tolerance: Largest difference at the points, relative to 1 or to the value where that is larger.
        where: Conditions under which the identity is meant, as for :func:`derive`.
        **sizes: If given, compare at these sizes only (``n=(1, 2, 3)``), in exact numbers and so for rational functions
            only, and say so on the page.
            Without ``at`` and sizes the identity is proved for every size by the rules, and judged as in
            :func:`derive`.

    Raises:
        Unproved: If the sides differ, or nothing shows that they agree; the message holds the difference.
        NotAClaim: If a side is not part of the language.
        ValueError: If ``at`` has no point, a size has no value (``n=()``), or no size has that name.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import prove
    >>> p = symbols("p", positive=True)
    >>> prove(p/(1 - p) + 1, 1/(1 - p))
    p/(1 - p) + 1 = 1/(1 - p)
      for p != 1
    """
    given = _given(sizes)
    claim = read([left, right], where)
    left, right = claim.lines
    if at is not None:
        points: list[Any] = list(at) if isinstance(at, Iterable) and not isinstance(at, Mapping) else [None]
        if not all(isinstance(point, Mapping) for point in points):
            raise TypeError(f"at is a list of dictionaries from symbols to numbers, got {at!r}")
        return Identity(_SHOWN, left, right, _compare_numbers(claim, points, tolerance), claim, "~")
    cases = _cases(claim, given)
    if given:
        _require_sizes(claim, given)
    _refuted(claim, left, right, cases, "the identity", at_given=bool(given))
    if given:
        how = _enumerated(claim, left, right, cases)
        claim.signed = _domains(claim, cases, given)
        return Identity(_SHOWN, left, right, how, claim)
    _shown_by_rules(claim, left, right, "the identity", None)
    claim.signed = _domains_that_matter(claim, cases)
    return Identity(_SHOWN, left, right, "", claim)


def _compare_numbers(claim: Claim, points: list[Mapping[Any, Any]], tolerance: float) -> str:
    left, right = claim.lines
    if not points:
        raise ValueError("at needs at least one point")
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance has to lie between 0 and 1, got {tolerance!r}")
    for point in points:
        _check_names(point)
        one, two = (mpmath.mpf(as_float(value)) for value in _values_at(claim, point, tolerance))
        if not abs(one - two) <= tolerance * max(1, abs(two)):
            where = ", ".join(f"{key} = {value}" for key, value in point.items())
            raise Unproved(f"false at {where}: {plain(left)} = {plain(right)}\n  "
                           f"{mpmath.nstr(one, 12)} against {mpmath.nstr(two, 12)}")
    named = "; ".join(at_scalars(point).removeprefix(" at ") for point in points)
    if any(isinstance(as_listed(value), list) for point in points for value in point.values()) \
            or len(named) > 2 * NARROW:
        named = f"{len(points)} points" if len(points) > 1 else "1 point"
    return f"numerically{' at ' * bool(named)}{named}, to {float(tolerance)!r}".replace("e-0", "e-")


def _check_names(point: Mapping[Any, Any]) -> None:
    """What is printed as the name of a letter has to be one."""
    for key in point:
        if not NAME.fullmatch(str(key)):
            raise ValueError(f"{str(key)!r} is not the name of a symbol or an array")


def _values_at(claim: Claim, point: Mapping[Any, Any], tolerance: float = 1e-15) -> tuple[Any, Any]:
    """Both sides at a given point of the domain."""
    meaning = given_point(point)
    left, right = claim.lines
    try:
        with mpmath.workdps(30):
            for relation in claim.testable():
                if not meaning.holds(relation, {}):
                    raise ValueError(f"the point lies outside of {in_words(relation)}")
            _check_whole_numbers(claim, meaning)
        left_value, right_value = controlled(meaning, [left, right], tolerance / 10, tolerance / 10)
        return left_value, right_value
    except (Undefined, Undecided, OverflowError) as error:
        raise ValueError(f"{plain(left)} and {plain(right)} cannot be compared{at_scalars(point)}: {error}") from error


def _check_whole_numbers(claim: Claim, meaning: Any) -> None:
    for symbol in [*claim.sizes, *claim.indices, *claim.counts, *claim.parameters]:
        _check_declared(symbol, meaning.symbol(symbol))
    for symbol in claim.whole:
        if (value := meaning.symbol(symbol)) < 0 or value != int(value):
            raise ValueError(f"{symbol.name} is a size or an index and one of 0, 1, 2, ..., got {value}")
    for index, high in claim.indices.items():
        if high not in (FREE, PARTIAL) and not 1 <= meaning.symbol(index) <= meaning.symbol(high):
            raise ValueError(f"{index.name} has to lie in 1..{high.name}, got {index.name} = {meaning.symbol(index)}, "
                             f"{high.name} = {meaning.symbol(high)}")


def _check_declared(symbol: Any, value: Any) -> None:
    for wanted, holds in (("a whole number", not symbol.is_integer or value == int(value)),
                          ("positive", not symbol.is_positive or value > 0),
                          ("negative", not symbol.is_negative or value < 0),
                          ("not positive", not symbol.is_nonpositive or value <= 0),
                          ("not negative", not symbol.is_nonnegative or value >= 0)):
        if not holds:
            raise ValueError(f"{symbol.name} is declared {wanted}, got {value}")


class Counterexample(_Result):
    """A printed formula and the truth at one point where they differ."""

    def __init__(self, key: object, claim: Any, truth: Any, values: Mapping[Any, Any],
                 numbers: tuple[Any, Any]) -> None:
        self._refuse_strangers(key)
        self.claim, self.truth, self.numbers = claim, truth, (float(numbers[0]), float(numbers[1]))
        self._exactly = numbers
        self.values = MappingProxyType({key: _frozen(value) for key, value in values.items()})

    def _point(self, show: Callable[[Any], str], comma: str) -> str:
        return comma.join(f"{show(key)} = {_short(value, show)}" for key, value in self.values.items())

    def _sides(self, show: Callable[[Any], str], approximately: str) -> tuple[str, str]:
        """'claim = value' and 'value = truth'; a formula that is itself the decimal stands alone."""
        digits = next((d for d in range(4, 17) if len({f"{value:.{d}g}" for value in self.numbers}) == 2), 17)
        sides = []
        for formula, value, exactly in zip((self.claim, self.truth), self.numbers, self._exactly, strict=True):
            text = f"{value:.{digits}g}"
            rounded = not is_exact(exactly) or Fraction(text) != exactly
            if formula.is_Integer or formula.is_Float:
                sides.append([show(formula) if formula.is_Integer else _decimal(f"{value:.15g}", show)])
            else:
                sides.append([show(formula), approximately if rounded else "=", _decimal(text, show)])
        return " ".join(sides[0]), " ".join(reversed(sides[1]))

    def _repr_latex_(self) -> str:
        claim, truth = self._sides(latex, r"\approx")
        rows = [f"&{claim}", rf"\neq{{}} &{truth}"]
        if self.values:
            rows.append(r"&\small\text{at } " + self._point(latex, r",\ "))
        return "$\\displaystyle \\begin{aligned}\n" + "\\\\[4pt]\n".join(rows) + "\n\\end{aligned}$"

    def __repr__(self) -> str:
        where = f"    [at {self._point(str, ', ')}]" if self.values else ""
        return " != ".join(self._sides(plain, "~")) + where


def _frozen(value: Any) -> Any:
    """What later changes of a list or an array do not reach."""
    value = as_listed(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _short(value: Any, show: Callable[[Any], str]) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_short(item, show) for item in value) + ")"
    return _decimal(str(value).lower(), show) if isinstance(value, float | Decimal) else show(sympify(value))


def _decimal(text: str, show: Callable[[Any], str]) -> str:
    """1e-05 as a page sets it."""
    digits, _, power = text.partition("e")
    return rf"{digits} \cdot 10^{{{int(power)}}}" if power and show is latex else text


def disprove(claim: Any, truth: Any, values: Mapping[Any, Any]) -> Counterexample:
    """Show a wrong formula beside the right value at a concrete counterexample.

    Args:
        claim: The formula as printed in the place that is corrected.
        truth: The quantity it should equal; E, Var and Cov inside are summed over all masks.
        values: The counterexample, as for :func:`number`.

    Raises:
        Unproved: If the two agree there (to a relative 1e-9): the point refutes nothing.

    >>> from sympy import S, symbols
    >>> from dropoutlib.symbolic import disprove
    >>> p = symbols("p")
    >>> disprove(p*(1 - p), p/(1 - p), {p: S.Half})
    p*(1 - p) = 0.25 != 1 = p/(1 - p)    [at p = 1/2]
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"values is a dictionary from symbols to numbers, got {values!r}")
    values = {key: _frozen(value) for key, value in values.items()}
    _check_names(values)
    read_claim = read([claim, truth], floats=True)
    wrong, right = _values_at(read_claim, values)
    claim, truth = read_claim.lines
    if is_exact(wrong) and is_exact(right):
        differ = abs(wrong - right) > Fraction(1, 10**9) * max(abs(wrong), abs(right))
    else:
        one, two = as_float(wrong), as_float(right)
        differ = abs(one - two) > 1e-9 * max(1e-12, abs(one), abs(two))
    if not differ:
        raise Unproved(f"no counterexample: {plain(claim)} and {plain(truth)} are both {_rounded(right)} there")
    for formula, value in ((claim, wrong), (truth, right)):
        try:
            size = float(value)
        except OverflowError:
            size = math.inf
        if math.isinf(size) or (size == 0 and value != 0):
            raise ValueError(f"{plain(formula)} is too {'large' if size else 'small'} there to be printed")
    return Counterexample(_SHOWN, claim, truth, values, (wrong, right))


def _rounded(value: Any) -> str:
    try:
        if math.isfinite(size := float(value)):
            return f"{size:.6g}"
    except OverflowError:
        pass
    return str(mpmath.nstr(mpmath.mpf(as_float(value)), 6))


def judged(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rule whose result is judged when it is called by itself; in a chain, the chain is judged."""
    @wraps(rule)
    def checked(expression: Any) -> Any:
        claim = read([expression])
        with assuming(claim), _refusing("the result"):
            result = rule(claim.lines[0])
        whole = read([*claim.lines, result])
        _refuted(whole, whole.lines[0], whole.lines[1], judge.cases(whole, {}), "the result")
        return result

    checked.rule = rule     # type: ignore[attr-defined]  # what derive applies
    return checked


def cumulant(z: Any, order: int) -> Any:
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"order must be a whole number, got {order!r}")
    claim = read([Noise(z)[1] if isinstance(z, RandomSymbol) else z])
    with assuming(claim):
        result = rules.cumulant(z, order)
    copy = claim.lines[0]
    definition = _cumulant_from_moments(copy, order)
    whole = read([definition, result])
    _refuted(whole, definition, result, judge.cases(whole, {}), "the cumulant")
    return result


def _cumulant_from_moments(z: Any, order: int) -> Any:
    lower = (binomial(order - 1, i - 1) * _cumulant_from_moments(z, i) * Expectation(z ** (order - i))
             for i in range(1, order))
    return Expectation(z**order) - sum(lower)


def same(left: Any, right: Any) -> bool:
    claim = read([left, right])
    with assuming(claim), _refusing("the equality"):
        equal = rules.same(*claim.lines)
    if equal:
        _refuted(claim, claim.lines[0], claim.lines[1], judge.cases(claim, {}), "what the rules call equal")
    return equal


same.__doc__ = rules.same.__doc__
cumulant.__doc__ = rules.cumulant.__doc__
