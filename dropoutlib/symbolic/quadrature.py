"""Integrals of functions that can also be evaluated for whole intervals."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from mpmath import iv, mp
from mpmath.calculus.quadrature import GaussLegendre

__all__ = ["integrate"]

_RULE = GaussLegendre(mp)

MOST_CELLS = 4000
STEADY = 0.3            # how much of its size a function may vary over a cell
FARTHEST = 100          # doublings of an infinite range that are looked at
MOST_CUTS = 4           # times that an infinite range is cut off, each time farther away


def integrate(f: Callable[[Any], Any], hull: Callable[[Any], tuple[Any, bool]], low: Any, high: Any) -> Any | None:
    """The integral of f from low to high to about mp.dps digits, or None if that is not certain.

    A cell is halved until an enclosure of f over the whole cell, not a few values, shows that nothing narrow hides
    in it, and until Gauss rules of different order agree. An infinite end is cut off where enclosures of f show that
    what lies beyond is too small to matter. At an end where f is infinite the last cell is judged by one value.

    Args:
        f: The function of a number.
        hull: The same for an interval: an interval in which every value lies that f takes there, and whether f is
            smooth there.
        low: The lower end, possibly minus infinity.
        high: The upper end, possibly infinity.
    """
    tolerance = mp.mpf(10) ** (2 - mp.dps)
    negligible = tolerance
    for _ in range(MOST_CUTS):
        first, last = (_finite_end(hull, end, negligible) for end in (low, high))
        if first is None or last is None:
            return None
        found = _between(f, hull, first[0], last[0], tolerance)
        if found is None:
            return None
        integral, size = found
        if first[1] + last[1] <= 2 * tolerance * size:
            return integral
        negligible = tolerance * size       # the whole is smaller than it seemed: what lies beyond may be most of it
    return None


def _between(f: Callable[[Any], Any], hull: Callable[[Any], tuple[Any, bool]], low: Any, high: Any,
             tolerance: Any) -> tuple[Any, Any] | None:
    """The integral between finite ends, and about the integral of |f|, from below."""
    size = mp.mpf(0)
    if low == high:
        return size, size
    steady: list[tuple[Any, Any]] = []
    waiting = [(-mp.inf, low, high)]
    for _ in range(MOST_CELLS):
        if not waiting:
            break
        _, left, right = heappop(waiting)       # where most may hide, so that the size is known early
        width, middle = right - left, (left + right) / 2
        size = max(size, abs(f(middle)) * width / 2)
        for part in ((left, middle), (middle, right)):
            least, most, is_smooth = _enclosure(hull, *part)
            height = max(abs(most), abs(least), size / (high - low))
            if (most - least) * width <= tolerance * size or (is_smooth and most - least <= STEADY * height < mp.inf):
                steady.append(part)
            elif width < tolerance**3:          # at an end where f is infinite
                if abs(f(sum(part) / 2)) * width > tolerance * size:
                    return None
            else:
                heappush(waiting, (-(most - least) * width, *part))
    if waiting:
        return None
    total = _sum_of_cells(f, steady, tolerance * size)
    return None if total is None else (total, size)


def _sum_of_cells(f: Callable[[Any], Any], cells: list[tuple[Any, Any]], tolerance: Any) -> Any | None:
    total = mp.mpf(0)
    for _ in range(2 * MOST_CELLS):
        if not cells:
            return total
        left, right = cells.pop()
        rough, value = (_gauss(f, left, right, degree) for degree in (3, 4))
        if abs(value - rough) <= max(tolerance, abs(value) * mp.mpf(10) ** (2 - mp.dps)):
            total += value
        else:
            middle = (left + right) / 2
            cells += [(left, middle), (middle, right)]
    return None


def _gauss(f: Callable[[Any], Any], left: Any, right: Any, degree: int) -> Any:
    """The Gauss-Legendre rule with 3 * 2^(degree - 1) nodes."""
    return mp.fsum(weight * f(node) for node, weight in _RULE.get_nodes(left, right, degree, mp.prec))


def _enclosure(hull: Callable[[Any], tuple[Any, bool]], left: Any, right: Any) -> tuple[Any, Any, bool]:
    try:
        found, is_smooth = hull(iv.mpf([left, right]))
        least, most = mp.mpf(found.a), mp.mpf(found.b)
    except (ArithmeticError, ValueError, NotImplementedError):
        return -mp.inf, mp.inf, False
    return (least, most, is_smooth) if mp.isfinite(least) and mp.isfinite(most) else (-mp.inf, mp.inf, False)


def _finite_end(hull: Callable[[Any], tuple[Any, bool]], end: Any, negligible: Any) -> tuple[Any, Any] | None:
    """The end, or a finite one, and a bound on the integral of |f| beyond it."""
    if not mp.isinf(end):
        return mp.mpf(end), mp.mpf(0)
    sign = 1 if end > 0 else -1
    for power in range(3, 12):
        edges = [sign * mp.mpf(2) ** (power + step) for step in range(FARTHEST)]
        beyond = mp.mpf(0)
        for near, far in pairwise(edges):
            least, most, _ = _enclosure(hull, *sorted((near, far)))
            beyond += max(abs(least), abs(most)) * abs(far - near)
            if not beyond <= negligible:
                break
        else:
            return edges[0], beyond
    return None
