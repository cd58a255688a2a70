"""Means of functions of a normal variable, without integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy import Dummy, Expr, Gt, Symbol, diff, erf, limit, simplify, sympify
from sympy.stats import Expectation, Normal

from . import judge
from .families import Noise
from .language import NotAClaim, read
from .proofs import _SHOWN, Identity, Unproved, _domains_that_matter, _refusing, _refuted

__all__ = ["gaussian_mean"]


def gaussian_mean(G: Expr, g: Callable[[Any], Any], mu: Any, s: Any) -> Identity:
    """Prove that G(mu, s) is the mean of g(mu + s Z), Z standard normal, without integrating.

    The mean solves the heat equation dG/ds = s d2G/dmu2 and starts from G(mu, 0) = g(mu); among functions
    that grow no faster than exp(c mu^2) and are bounded near the start nothing else does. Three things are checked: the
    equation; the start, by the limit s -> 0 for positive mu, for negative mu and along mu = u s; and, by quadrature at
    random points, the mean itself.

    Args:
        G: The claimed mean, an expression in ``mu`` and ``s``.
        g: The function, a callable such as ``lambda z: Max(0, z)``; it may grow exponentially, not faster.
        mu: The symbol of the mean.
        s: The symbol of the standard deviation.

    Returns:
        The identity E g(mu + s Z) = G, to be shown.

    Raises:
        Unproved: If G does not solve the equation, starts from another function or is not the mean.
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
    start = limit(G.subs({mu: slope * width, s: width}, simultaneous=True).rewrite(erf), width, 0, "+")
    gap = simplify((start - g(sympify(0))).rewrite(erf))
    if gap != 0:
        raise Unproved(f"G(u s, s) - g(0) does not vanish with s but tends to {gap}, G = {G}")
