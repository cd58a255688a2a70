"""Integrals of functions that can also be evaluated for whole intervals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mpmath import iv, mp
from mpmath.calculus.quadrature import GaussLegendre

__all__ = ["integrate"]

_RULE = GaussLegendre(mp)

MOST_CELLS = 4000
STEADY = 0.1            # how much of its size a function may vary over a cell
FARTHEST = 100          # doublings of an infinite range that are looked at
SAMPLES = 32            # values that tell the size of a function


def integrate(f: Callable[[Any], Any], hull: Callable[[Any], Any], low: Any, high: Any) -> Any | None:
    """The integral of f from low to high to about mp.dps digits, or None if that is not certain.

    A cell is halved until an enclosure of f over the whole cell, not a few values, shows that nothing narrow hides
    in it, and until Gauss rules of different order agree. An infinite end is cut off where enclosures of f show that
    what lies beyond is too small to matter. At an end where f is infinite the last cell is judged by one value.

    Args:
        f: The function of a number.
        hull: The same for an interval: every value that f takes there lies in the result.
        low: The lower end, possibly minus infinity.
        high: The upper end, possibly infinity.
    """
    tolerance = mp.mpf(10) ** (2 - mp.dps)
    low, high = (_finite_end(hull, end, tolerance) for end in (low, high))
    if low is None or high is None:
        return None
    if low == high:
        return mp.mpf(0)
    size = max(abs(f(low + (high - low) * (i + mp.mpf("0.123")) / SAMPLES)) for i in range(SAMPLES))
    unit = tolerance * min(1, high - low)
    total, cells = mp.mpf(0), [(low, high)]
    for _ in range(MOST_CELLS):
        if not cells:
            return total
        left, right = cells.pop()
        tolerance = unit * (size or 1)
        width = right - left
        least, most = _enclosure(hull, left, right)
        if mp.isfinite(most - least):
            size = max(size, least, -most)              # what the function reaches for certain
            if (most - least) * width <= tolerance:
                total += (most + least) / 2 * width
                continue
        elif width < tolerance**3:
            value = f((left + right) / 2) * width
            if abs(value) > tolerance:
                return None
            total += value
            continue
        if most - least <= STEADY * size:
            rough, value = (_gauss(f, left, right, degree) for degree in (3, 4))
            if abs(value - rough) <= max(tolerance, abs(value) * mp.mpf(10) ** (2 - mp.dps)):
                total += value
                continue
        middle = (left + right) / 2
        cells += [(left, middle), (middle, right)]
    return None


def _gauss(f: Callable[[Any], Any], left: Any, right: Any, degree: int) -> Any:
    """The Gauss-Legendre rule with 3 * 2^(degree - 1) nodes."""
    return mp.fsum(weight * f(node) for node, weight in _RULE.get_nodes(left, right, degree, mp.prec))


def _enclosure(hull: Callable[[Any], Any], left: Any, right: Any) -> tuple[Any, Any]:
    try:
        found = hull(iv.mpf([left, right]))
        least, most = mp.mpf(found.a), mp.mpf(found.b)
    except (ArithmeticError, ValueError):
        least, most = -mp.inf, mp.inf
    return (least, most) if mp.isfinite(least) and mp.isfinite(most) else (-mp.inf, mp.inf)


def _finite_end(hull: Callable[[Any], Any], end: Any, tolerance: Any) -> Any | None:
    """The end, or a finite one beyond which f can be left out."""
    if not mp.isinf(end):
        return mp.mpf(end)
    sign = 1 if end > 0 else -1
    for power in range(3, 12):
        edges = [sign * mp.mpf(2) ** (power + step) for step in range(FARTHEST)]
        beyond = mp.mpf(0)
        for near, far in pairwise(edges):
            least, most = _enclosure(hull, *sorted((near, far)))
            beyond += max(abs(least), abs(most)) * abs(far - near)
            if not beyond <= tolerance:
                break
        else:
            return edges[0]
    return None
