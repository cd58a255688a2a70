"""Means of functions of a normal variable, without integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy import (
    Dummy,
    Expr,
    Function,
    Gt,
    Pow,
    Product,
    Sum,
    Symbol,
    atan,
    cos,
    cosh,
    diff,
    erf,
    erfc,
    erfi,
    exp,
    fraction,
    limit,
    roots,
    simplify,
    sin,
    sinh,
    sympify,
    tanh,
    together,
)
from sympy.core.sorting import default_sort_key
from sympy.stats import Expectation, Normal

from . import judge
from .families import Noise, real_letters
from .functions import Phi, phi
from .language import NotAClaim, read
from .notation import plain
from .proofs import _SHOWN, Identity, Unproved, _domains_that_matter, _refusing, _refuted

__all__ = ["gaussian_mean"]

SMOOTH = (exp, Phi, phi, erf, erfc, erfi, cosh, sinh, tanh, cos, sin, atan)


def gaussian_mean(G: Expr, g: Callable[[Any], Any], mu: Any, s: Any) -> Identity:
    """Prove that G(mu, s) is the mean of g(mu + s Z), Z standard normal, without integrating.

    The mean solves the heat equation dG/ds = s d2G/dmu2 and starts from G(mu, 0) = g(mu); among smooth functions
    that grow no faster than exp(c mu^2) and are bounded near the start nothing else does. Four things are checked: that
    G has no kink and no pole; the equation; the start, by the limit s -> 0 for positive mu, for negative mu and along
    mu = c + u s for c = 0 and for every c at which a part of G may not tend to a limit; and, by quadrature at random
    points, the mean itself.

    Args:
        G: The claimed mean, an expression in ``mu`` and ``s``.
        g: The function, a callable such as ``lambda z: Max(0, z)``; it may grow exponentially, not faster.
        mu: The symbol of the mean.
        s: The symbol of the standard deviation.

    Returns:
        The identity E g(mu + s Z) = G, to be shown.

    Raises:
        Unproved: If G does not solve the equation, starts from another function, is not the mean, or may not be smooth.
        NotAClaim: If G or g is not part of the language, or whether the mean exists is not known.

    >>> from sympy import Max, symbols
    >>> from dropoutlib.symbolic import Phi, gaussian_mean, phi
    >>> mu, s = symbols("mu s", real=True)
    >>> gaussian_mean(mu*Phi(mu/s) + s*phi(mu/s), lambda z: Max(0, z), mu, s)
    Expectation(Max(0, mu + s*Z)) = mu*Phi(mu/s) + s*phi(mu/s)    [heat equation]
      for s > 0
    """
    for name, part in (("mu", mu), ("s", s)):
        if not isinstance(part, Symbol):
            raise TypeError(f"{name} must be a symbol of SymPy, got {part!r}")
    G, z = sympify(G), Dummy("z", real=True)
    body = sympify(g(z))                # once: what is checked is what is shown
    if not isinstance(body, Expr):
        raise TypeError(f"g must return an expression of SymPy, got {body!r}")
    if own := sorted(map(str, body.free_symbols & {mu, s})):
        raise NotAClaim(f"g must be a function of its argument alone, but has {' and '.join(own)} of its own: the heat "
                        "equation is for a fixed function")

    def at(value: Any) -> Any:
        return body.xreplace({z: value})

    drawn = Expectation(at(mu + s * Noise(Normal("Z", 0, 1))[1]))
    claim = read([drawn, G], () if s.is_positive else Gt(s, 0))
    if "Z" in {part.name for e in map(sympify, (body, G, mu, s)) for part in e.atoms(Symbol)}:
        raise NotAClaim("Z: stands for the normal variable, call the symbol otherwise")
    with _refusing("the mean"):
        _check_equation(G, at, mu, s)
    cases = judge.cases(claim, {})
    _refuted(claim, drawn, G, cases, "the mean")
    claim.signed = _domains_that_matter(claim, cases)
    return Identity(_SHOWN, Expectation(at(mu + s * Normal("Z", 0, 1))), G, "heat equation", claim)


def _check_equation(G: Any, g: Callable[[Any], Any], mu: Any, s: Any) -> None:
    if (rough := _rough(G.xreplace({mu: _CENTRE, s: _WIDTH}))) is not None:
        raise Unproved(f"whether {plain(rough.xreplace({_CENTRE: mu, _WIDTH: s}))} is smooth in {mu} and {s} is not "
                       "known: at a kink or a pole the equation says nothing")
    defect = simplify(diff(G, s) - s * diff(G, mu, 2))
    if defect != 0 and simplify(defect.rewrite(erf)) != 0:
        raise Unproved(f"dG/ds - s d2G/dmu2 is not 0 but {defect}, for G = {G}")
    for sign, name in ((1, "positive"), (-1, "negative")):
        size, width = Dummy(name, positive=True), Dummy("s", positive=True)
        start = limit(G.subs({mu: sign * size, s: width}).rewrite(erf), width, 0, "+")
        gap = simplify((start - g(sign * size)).rewrite(erf))
        if gap != 0:
            raise Unproved(f"G(mu, 0) - g(mu) is not 0 but {gap.subs(size, sign * mu)} for {name} mu, G = {G}")
    slope, width = Dummy("u", real=True), Dummy("s", positive=True)
    for centre in _centres(G, mu, s):
        start = limit(G.subs({mu: centre + slope * width, s: width}, simultaneous=True).rewrite(erf), width, 0, "+")
        gap = simplify((start - g(centre)).rewrite(erf))
        if gap != 0:
            along = f"{centre} + u s" if centre else "u s"
            raise Unproved(f"G({along}, s) - g({centre}) does not vanish with s but tends to {gap}, G = {G}")


_CENTRE, _WIDTH = Dummy("mu", real=True), Dummy("s", positive=True)


def _rough(e: Any) -> Any | None:
    """A part that may have a kink or a pole for some real centre and some positive width, None if there is none."""
    if not e.has(_CENTRE, _WIDTH):
        return None
    if e.is_Pow and not (e.exp.is_integer and e.exp.is_nonnegative):
        base = e.base.xreplace(real_letters(e.base))
        is_smooth = base.is_nonzero if e.exp.is_Integer else base.is_positive
    else:
        is_smooth = e.is_Symbol or e.is_Add or e.is_Mul or e.is_Pow or isinstance(e, (Sum, Product, *SMOOTH))
    if not is_smooth:
        return e
    parts = e.args[:1] if isinstance(e, Sum | Product) else e.args
    return next((rough for part in parts if (rough := _rough(part)) is not None), None)


def _centres(G: Any, mu: Any, s: Any) -> list[Any]:
    """0, and where the numerator of a part that s divides vanishes with s: there a solution may start from a mass."""
    found = [sympify(0)]
    for part in sorted(G.atoms(Function, Pow), key=default_sort_key):
        numerator, denominator = fraction(together(part.args[0]))
        if numerator.has(mu) and denominator.has(s):
            found += roots(numerator.subs(s, 0), mu)
    return [centre for centre in dict.fromkeys(found) if centre.is_extended_real is not False]
