"""What a page shows: chains of equalities and single identities, each checked before it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import mpmath
from sympy import (
    Basic,
    Indexed,
    IndexedBase,
    KroneckerDelta,
    Mul,
    Pow,
    Product,
    S,
    Sum,
    Symbol,
    fraction,
    simplify,
    sympify,
    together,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.stats import Covariance, Variance

from . import rules
from .brute_force import enumerate_masks, evaluate, number
from .families import copies, free_scalars
from .notation import MOMENTS, latex, plain

__all__ = ["Derivation", "Identity", "Unproved", "derive", "disprove", "prove"]

NARROW = 40             # characters that fit on the screen of a telephone


class Unproved(AssertionError):
    """A line that is false, or that could not be shown to be true; the message holds the difference."""


# -- at which sizes to enumerate ----------------------------------------------
def _given(sizes: Mapping[str, int | Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """The sizes of the caller; an empty list would check nothing and show everything."""
    given = {name: (size,) if isinstance(size, int) else tuple(size) for name, size in sizes.items()}
    for name, listed in given.items():
        if not listed:
            raise ValueError(f"{name} needs at least one size, for example {name}=2")
    return given


def _cases(expressions: Sequence[Any], sizes: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """Numbers for all sizes and free indices at which a claim is enumerated.

    A size that is not given is the number of sums over it, after multiplying out (at most 3): then the
    enumeration is itself a proof for every n where the certificate of ``enumerate_masks`` applies.
    Free indices run through all their values, equal ones included.
    """
    free = {s.name for e in expressions for s in free_scalars(e)}
    size_names = sorted(_size_names(*expressions) & free)
    unknown = sorted(set(sizes) - free)
    if unknown:
        raise ValueError(f"no size is called {', '.join(unknown)}")
    ranges = _ranges_of_free_indices(expressions, free - set(size_names))
    chosen: dict[str, Iterable[int]] = {}
    for name in size_names:
        count = max(_sums_over(e, name) for e in expressions) + sum(upper == name for upper in ranges.values())
        count = min(max(count, 1), 3)
        explicit = any(name in {s.name for s in _without_limits(e)} for e in expressions)
        chosen[name] = (count, count + 1) if explicit and count < 3 else (count,)
    chosen.update(sizes)
    loose = sum(upper is None and name not in chosen for name, upper in ranges.items())
    cases = []
    for picked in product(*chosen.values()):
        case = dict(zip(chosen, picked, strict=True))
        indices = {name: range(1, (case[upper] if upper else loose) + 1) for name, upper in ranges.items()
                   if name not in case}
        here = [{**case, **dict(zip(indices, at, strict=True))} for at in product(*indices.values())]
        if not here:
            raise ValueError(f"{_at(case)} leaves a free index no value: nothing would be checked")
        cases += here
    return cases


def _size_names(*expressions: Any) -> set[str]:
    """Names in the upper limits of sums, products and integrals."""
    return {s.name for e in expressions for part in e.atoms(ExprWithLimits) for limit in part.limits
            if len(limit) == 3 for s in limit[2].free_symbols}


def _without_limits(expression: Any) -> set[Any]:
    """Symbols outside the limits of sums."""
    if isinstance(expression, ExprWithLimits):
        return _without_limits(expression.function)
    if isinstance(expression, Symbol):
        return {expression}
    if isinstance(expression, IndexedBase):
        return set()
    return set().union(*(_without_limits(argument) for argument in expression.args))


def _sums_over(expression: Any, size: str) -> int:
    """How many sums over a size stand in one term when products are multiplied out."""
    def count(e: Any) -> int:
        if isinstance(e, Sum | Product):
            return count(e.function) + sum(size in {s.name for s in limit[2].free_symbols} for limit in e.limits)
        parts = [count(argument) for argument in e.args]
        if not parts:
            return 0
        if isinstance(e, Pow) and e.exp.is_Integer:
            return parts[0] * abs(int(e.exp))
        if isinstance(e, Mul | Covariance):
            return sum(parts)
        return max(parts) * (2 if isinstance(e, Variance) else 1)

    return count(expression)


def _ranges_of_free_indices(expressions: Sequence[Any], free: set[str]) -> dict[str, str | None]:
    """The size over which a free index runs: that of a dummy in the same place of the same base, if any."""
    places: dict[tuple[str, int], str] = {}
    for e in expressions:
        for part in e.atoms(ExprWithLimits):
            for limit in part.limits:
                upper = sorted(s.name for s in limit[-1].free_symbols) if len(limit) == 3 else []
                for entry in part.function.atoms(Indexed):
                    for position, index in enumerate(entry.indices):
                        if limit[0] in index.free_symbols and upper:
                            places[str(entry.base), position] = upper[-1]
    found: dict[str, str | None] = {}
    for e in expressions:
        for entry in sorted(e.atoms(Indexed), key=str):
            for position, index in enumerate(entry.indices):
                for symbol in sorted(index.free_symbols & e.free_symbols, key=str):
                    if symbol.name in free:
                        upper_name = places.get((str(entry.base), position))
                        found[symbol.name] = found.get(symbol.name) or upper_name
        for part in sorted(e.atoms(KroneckerDelta), key=str):
            for symbol in sorted(part.free_symbols & e.free_symbols, key=str):
                if symbol.name in free:
                    found.setdefault(symbol.name, None)
    return dict(sorted(found.items()))


def _enumerated_difference(left: Any, right: Any, case: Mapping[str, int]) -> Any:
    gap = (_enumerated(left, **case) - _enumerated(right, **case)).expand()
    if gap == 0 or fraction(together(gap))[0].expand() == 0:
        return S.Zero
    return simplify(gap)


@lru_cache(maxsize=256)
def _enumerated(expression: Any, **case: int) -> Any:
    return enumerate_masks(expression, **case)


def _first_disagreement(left: Any, right: Any, cases: Sequence[dict[str, int]]) -> tuple[dict[str, int], Any] | None:
    for case in cases:
        if (gap := _enumerated_difference(left, right, case)) != 0:
            return case, gap
    return None


def _at(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in case.items())


# -- chains -------------------------------------------------------------------
class Derivation:
    """A chain of equalities, every line checked; Jupyter shows it as aligned LaTeX.

    Attributes:
        lines: Pairs (expression, reason).
        sizes: The sizes and index values at which every line was also enumerated.
    """

    def __init__(self, lines: list[tuple[Any, str]], sizes: list[dict[str, int]]) -> None:
        self.lines, self.sizes = lines, sizes

    @property
    def result(self) -> Any:
        """The last line."""
        return self.lines[-1][0]

    def _repr_latex_(self) -> str:
        return _aligned([(latex(e), reason) for e, reason in self.lines])

    def __repr__(self) -> str:
        return "\n  = ".join(plain(e) + (f"    [{reason}]" if reason else "") for e, reason in self.lines)


def _aligned(rows: list[tuple[str, str]]) -> str:
    """Rows of an aligned chain; reasons stand beside short lines and under long ones."""
    (start, _), *rest = rows
    beside = rest and _width(start) + _width(rest[0][0]) < NARROW
    out = [] if beside else ["&" + start]
    for position, (line, reason) in enumerate(rest):
        head = start + " &= " if beside and position == 0 else "&= "
        escaped = re.sub(r"([%&#])", r"\\\1", reason)
        note = rf"\small\text{{({escaped})}}" if reason else ""
        if note and _width(head + line) + 0.8 * len(reason) > NARROW:
            out += [head + line, rf"&\qquad {note}"]
        else:
            out.append(head + line + (rf"\quad {note}" if note else ""))
    return "$\\displaystyle \\begin{aligned}\n" + "\\\\[4pt]\n".join(out) + "\n\\end{aligned}$"


def _width(text: str) -> int:
    """Roughly how many characters wide a formula is."""
    text = re.sub(r"\\substack\{(.*?)\\\\.*?\}", r"\1", text)
    text = re.sub(r"\\(left|right|limits|operatorname|mathrm|displaystyle)", "", text)
    text = re.sub(r"[_^]\{[^{}]*\}", "i", text)
    return len(re.sub(r"[{}\s_^]", "", re.sub(r"\\[A-Za-z]+", "x", text)))


def _reason(rule: Callable[[Any], Any], before: Any, after: Any) -> str:
    if rule is rules.collapse:
        if len(after.atoms(KroneckerDelta)) < len(before.atoms(KroneckerDelta)):
            return "only equal indices remain"
        return "collected"
    if rule is rules.by_law:
        gone = before.atoms(*MOMENTS) - after.atoms(*MOMENTS)
        several = any(len(copies(moment)) > 1 or moment.has(Product) for moment in gone)
        return "independence" if several else "law of the noise"
    known = {"linear": "linearity", "exact": "the three rules"}
    return known.get(getattr(rule, "__name__", ""), "")


def derive(start: Any, *links: Any, by: str | None = None, **sizes: int | Iterable[int]) -> Derivation:
    """A chain start = ... = result in which nothing unproved can be shown.

    Every line must equal the first one twice: by the rules, for sizes that stay symbols, and by
    :func:`enumerate_masks`, with symbols as entries.

    Args:
        start: The first line.
        *links: The following lines: a rule (applied to the line above; skipped where it changes nothing), an
            expression, or a pair (rule or expression, "reason").
        by: None requires both checks. ``"enumeration"`` also accepts lines which the rules cannot decide, at
            sizes that must then be given, since a false formula may hold at a few of them; ``"rules"`` skips
            the enumeration (laws and functions that it cannot handle). Such lines say so.
        **sizes: Sizes of the enumeration by name: ``n=2`` or ``n=(1, 2, 3)``. Left out, a size is the number of
            sums over it after multiplying out (at most 3), which makes the enumeration a proof for every n where
            both sides are polynomials; see :func:`enumerate_masks`.

    Raises:
        Unproved: If a line is not equal to the first; the message names the line and shows the difference.
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
    """
    if by not in (None, "enumeration", "rules"):
        raise ValueError(f'by must be None, "enumeration" or "rules", got {by!r}')
    given = _given(sizes)
    lines: list[tuple[Any, str]] = [(sympify(start), "")]
    for link in links:
        target, reason = link if isinstance(link, tuple) else (link, "")
        if callable(target) and not isinstance(target, Basic):
            line = target(lines[-1][0])
            reason = reason or _reason(target, lines[-1][0], line)
            if line == lines[-1][0]:
                continue
        else:
            line = sympify(target)
        lines.append((line, reason))
    expressions = [line for line, _ in lines]
    if by == "enumeration":
        _require_sizes(expressions, given)
    cases = [] if by == "rules" else _cases(expressions, given)
    checked = [lines[0]]
    for position, (line, reason) in enumerate(lines[1:], start=1):
        how = _check(lines[0][0], line, cases, by, f"line {position}", given)
        checked.append((line, ", ".join(part for part in (reason, how) if part)))
    return Derivation(checked, cases)


def _require_sizes(expressions: Sequence[Any], given: Mapping[str, tuple[int, ...]]) -> None:
    """Where the enumeration may stand alone, the caller chooses the sizes and sees them on the page."""
    free = {s.name for e in expressions for s in free_scalars(e)}
    if missing := sorted((_size_names(*expressions) & free) - set(given)):
        example = ", ".join(f"{name}=(1, 2, 3)" for name in missing)
        raise ValueError(f'by="enumeration" needs every size: give {example}')


def _check(left: Any, right: Any, cases: list[dict[str, int]], by: str | None, name: str,
           given: Mapping[str, tuple[int, ...]]) -> str:
    """Raise if left = right is false or not shown; else words for how it was shown, empty if in every way."""
    if (found := _first_disagreement(left, right, cases)) is not None:
        case, gap = found
        where = f" at {_at(case)}" if case else ""
        raise Unproved(f"{name} is false{where}: {plain(right)}\n  differs from {plain(left)}\n  by {plain(-gap)}")
    gap = rules.difference(left, right)
    if gap == 0:
        return "by the rules alone" if by == "rules" else ""
    if by == "enumeration":
        chosen = _size_names(left, right) | set(given)
        shown = dict.fromkeys(_at({k: v for k, v in case.items() if k in chosen}) for case in cases)
        return "checked for " + "; ".join(shown) if any(shown) else "checked by enumeration"
    agrees = " (the enumeration agrees)" if cases else ""
    raise Unproved(f"{name} is not shown by the rules{agrees}: {plain(right)}\n  difference left: {plain(-gap)}")


# -- single identities --------------------------------------------------------
class Identity:
    """A proved equation (or, from :func:`disprove`, a refuted one), shown with how it was checked."""

    def __init__(self, left: Any, right: Any, how: str, relation: tuple[str, str] = ("=", "=")) -> None:
        self.left, self.right, self.how, self.relation = left, right, how, relation

    def _repr_latex_(self) -> str:
        return _aligned([(latex(self.left), ""), (latex(self.right), self.how)])

    def __repr__(self) -> str:
        return f"{plain(self.left)} = {plain(self.right)}" + (f"    [{self.how}]" if self.how else "")


def prove(left: Any, right: Any, *, at: Iterable[Mapping[Any, Any]] | None = None, tolerance: float = 1e-12,
          **sizes: int | Iterable[int]) -> Identity:
    """Prove one identity and show it as an equation.

    Args:
        left: The left side.
        right: The right side.
        at: Points (as ``values`` of :func:`number`): compare numerically there, integrals by quadrature. A check, not
            a proof, and labelled so.
        tolerance: Largest difference at the points, relative to 1 or to the value where that is larger.
        **sizes: If given, compare by enumeration at these sizes only (``n=(1, 2, 3)``), and say so on the page.
            Without ``at`` and sizes the identity is proved for every size by the rules and SymPy.

    Raises:
        Unproved: If the sides differ, or nothing shows that they agree; the message holds the difference.
        ValueError: If ``at`` has no point, a size has no value (``n=()``), or no size has that name.

    >>> from sympy import symbols
    >>> from dropoutlib.symbolic import prove
    >>> p = symbols("p")
    >>> prove(p/(1 - p) + 1, 1/(1 - p))
    p/(1 - p) + 1 = 1/(1 - p)
    """
    left, right = sympify(left), sympify(right)
    given = _given(sizes)
    if at is not None:
        return Identity(left, right, _compare_numbers(left, right, list(at), tolerance))
    if given:
        cases = _cases([left, right], given)
        if (found := _first_disagreement(left, right, cases)) is not None:
            raise Unproved(f"false at {_at(found[0])}: {plain(left)} = {plain(right)}\n  difference {plain(found[1])}")
        shown = dict.fromkeys(_at({k: v for k, v in case.items() if k in sizes}) for case in cases)
        return Identity(left, right, "enumerated at " + "; ".join(shown))
    gap = rules.difference(left, right)
    if gap != 0:
        raise Unproved(f"not shown: {plain(left)} = {plain(right)}\n  difference {plain(gap)}")
    return Identity(left, right, "")


def _compare_numbers(left: Any, right: Any, points: list[Mapping[Any, Any]], tolerance: float) -> str:
    if not points:
        raise ValueError("at needs at least one point")
    with mpmath.workdps(30):
        for point in points:
            one, two = (evaluate(side, point, mpmath.mp) for side in (left, right))
            if not abs(one - two) <= tolerance * max(1, abs(two)):
                where = ", ".join(f"{key} = {value}" for key, value in point.items())
                raise Unproved(f"false at {where}: {plain(left)} = {plain(right)}\n  "
                               f"{mpmath.nstr(one, 12)} against {mpmath.nstr(two, 12)}")
    many = f"{len(points)} points" if len(points) > 1 else "1 point"
    return f"numerically at {many}, to {tolerance:.0e}".replace("e-0", "e-")


class Counterexample:
    """A printed formula and the truth at one point where they differ."""

    def __init__(self, claim: Any, truth: Any, values: Mapping[Any, Any], numbers: tuple[float, float]) -> None:
        self.claim, self.truth, self.values, self.numbers = claim, truth, values, numbers

    def _point(self, show: Callable[[Any], str], comma: str) -> str:
        return comma.join(f"{show(key)} = {_short(value, show)}" for key, value in self.values.items())

    def _sides(self, show: Callable[[Any], str], approximately: str) -> tuple[str, str]:
        """'claim = value' and 'value = truth'; a formula that is itself the decimal stands alone."""
        digits = next((d for d in range(4, 17) if len({f"{value:.{d}g}" for value in self.numbers}) == 2), 17)
        sides = []
        for formula, value in zip((self.claim, self.truth), self.numbers, strict=True):
            text = f"{value:.{digits}g}"
            rounded = abs(float(text) - value) > 1e-12 * abs(value)
            if formula.is_Integer or formula.is_Float:
                sides.append([show(formula) if formula.is_Integer else f"{value:.15g}"])
            else:
                sides.append([show(formula), approximately if rounded else "=", text])
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


def _short(value: Any, show: Callable[[Any], str]) -> str:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_short(item, show) for item in value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else show(sympify(value))


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
    claim, truth = sympify(claim), sympify(truth)
    wrong, right = number(claim, values), number(truth, values)
    if abs(wrong - right) <= 1e-9 * max(1.0, abs(right)):
        raise Unproved(f"no counterexample: {plain(claim)} and {plain(truth)} are both {right:.6g} there")
    return Counterexample(claim, truth, values, (wrong, right))
