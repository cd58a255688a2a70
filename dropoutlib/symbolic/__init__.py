"""Executable derivations: exact moments of indexed sums of noise, each line checked twice.

The law of a noise is a random variable of ``sympy.stats``; :class:`Noise` makes a family of independent
copies of it. Three rules work out E, Var and Cov for sums of symbolic size; :func:`derive` checks every line
by the rules and by brute force over all masks before a page may show it.

.. warning::

   The laws are SymPy's, and their parameters are not those of :mod:`dropoutlib.noise`:

   * ``Bernoulli("m", q)`` takes the probability q of **success**, here of keeping, while
     :class:`dropoutlib.noise.Bernoulli` takes the probability p of **dropping**. A keep mask is
     ``m = Noise(Bernoulli("m", 1 - p))``.
   * ``Normal("g", mean, s)`` takes the **standard deviation**, while :class:`dropoutlib.noise.Gaussian` takes the
     variance.

>>> from sympy import sqrt, symbols
>>> from dropoutlib.symbolic import Bernoulli, Expectation, Noise, Normal, Variance, exact
>>> p, v = symbols("p v", positive=True)
>>> m = Noise(Bernoulli("m", 1 - p))
>>> g = Noise(Normal("g", 1, sqrt(v)))
>>> exact(Expectation(m[1])), exact(Variance(g[1]))
(1 - p, v)
"""

from sympy.stats import Bernoulli, Covariance, Expectation, Normal, Uniform, Variance

from . import notation, rules, terms
from .evaluate import enumerate_masks, number
from .families import Noise
from .functions import Phi, phi
from .gaussian import gaussian_mean
from .language import NotAClaim
from .proofs import Counterexample, Derivation, Identity, Unproved, cumulant, derive, disprove, judged, prove, same

linear, by_law, collapse = judged(rules.linear), judged(rules.by_law), judged(terms.collapse)
exact, textbook = judged(rules.exact), judged(notation.textbook)

__all__ = [
    "Bernoulli", "Counterexample", "Covariance", "Derivation", "Expectation", "Identity", "Noise", "Normal",
    "NotAClaim", "Phi", "Uniform", "Unproved", "Variance", "by_law", "collapse", "cumulant", "derive", "disprove",
    "enumerate_masks", "exact", "gaussian_mean", "linear", "number", "phi", "prove", "same", "textbook",
]
