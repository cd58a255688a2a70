"""Random claims against the prover: true ones by construction, and changed ones, each with one thing altered.

A true claim should be shown. A changed claim should be refused, unless an oracle that shares nothing with the prover
finds it true after all: plain floats, all masks enumerated jointly, at random sizes, indices and entries.

Command line: python tests/random_claims.py NUMBER [--seed S] [--processes 2] [--output FILE] [--records FILE]
[--only CLAIM]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import sympy
from sympy import (
    Abs,
    Add,
    Derivative,
    IndexedBase,
    KroneckerDelta,
    Max,
    Min,
    Mul,
    Piecewise,
    Pow,
    Product,
    Rational,
    S,
    Sum,
    Symbol,
    exp,
    log,
    sqrt,
    srepr,
    symbols,
)
from sympy.core.relational import Relational

from dropoutlib.symbolic import (
    Bernoulli,
    Covariance,
    Expectation,
    Noise,
    Normal,
    NotAClaim,
    Uniform,
    Unproved,
    Variance,
    prove,
)

Claim = tuple[Any, Any, list[Any], list[Any]]   # left, right, conditions, and conditions that the prover infers itself
Words = SimpleNamespace                         # the symbols, arrays and families of one claim, and its dice

SHOWN, FALSE, NOT_SHOWN, OUTSIDE, CRASH = ("shown", "refused: false", "refused: not shown",
                                           "refused: outside of the language", "CRASH")
SECONDS = 20                # for one claim
TOLERANCE = 1e-7            # of the oracle, relative to 1 or to the size of the sides
OUTCOMES = 2**15            # of one joint enumeration; a point that needs more is left out
NO_NUMBERS = (S.NaN, S.ComplexInfinity, S.Infinity, S.NegativeInfinity, S.ImaginaryUnit)
half, third = Rational(1, 2), Rational(1, 3)


# -- words --------------------------------------------------------------------
def words(dice: random.Random) -> Words:
    """Symbols, arrays and families; how much is assumed about an index or a rate differs from claim to claim."""
    v = Words(dice=dice)
    v.index = symbols("i j k l a b r", integer=True, positive=dice.choice([True, True, None]))
    v.age = symbols("h tau", integer=True, nonnegative=True)
    v.sizes = v.n, v.d, v.N = symbols("n d N", integer=True, positive=True)
    assumed = dice.choice([{"positive": True}, {"real": True}, {}])
    v.p, v.q = symbols("p q", **assumed)
    v.t, v.top = symbols("t top", positive=True)
    v.mu, v.nu = symbols("mu nu", real=True)
    v.s = dice.choice([Symbol("s", positive=True), Symbol("s", real=True), sqrt(Symbol("v", positive=True))])
    v.x, v.w, v.y, v.c = (IndexedBase(name) for name in "xwyc")
    v.W, v.A = IndexedBase("W"), IndexedBase("A")
    v.m, v.f, v.M = (Noise(Bernoulli(name, 1 - v.p)) for name in "mfM")
    v.u, v.R = (Noise(Bernoulli(name, v.q)) for name in "uR")
    v.g, v.U = Noise(Normal("g", v.mu, v.s)), Noise(Uniform("U", 0, v.top))
    v.rate = {v.m: 1 - v.p, v.f: 1 - v.p, v.M: 1 - v.p, v.u: v.q, v.R: v.q}
    v.mean = {**v.rate, v.g: v.mu, v.U: v.top / 2}
    v.variance = {**{family: rate * (1 - rate) for family, rate in v.rate.items()}, v.g: v.s**2, v.U: v.top**2 / 12}
    v.third = {**{family: rate * (1 - rate) * (1 - 2 * rate) for family, rate in v.rate.items()}, v.g: 0, v.U: 0}
    return v


def letters(v: Words, count: int) -> list[Any]:
    return v.dice.sample(v.index, count)


def number_of(v: Words) -> Any:
    return v.dice.choice([-2, -1, 2, 3, half, v.t, v.p, 1 - v.p, v.x[1], v.dice.choice(v.sizes)])


def term(v: Words, free: Any) -> Callable[[Any], Any]:
    """A function of an index, which may use one free index too; never w, by which derivatives are taken."""
    x, y, c, W, A = v.x, v.y, v.c, v.W, v.A
    return v.dice.choice([
        lambda j: x[j], lambda j: y[j] * x[j], lambda j: y[j] ** 2, lambda j: W[free, j] * x[j], lambda j: A[j, free],
        lambda j: 3 * x[j], lambda j: x[j] + c[j], lambda j: j * x[j], lambda j: v.t * c[j], lambda j: x[1] * y[j],
        lambda j: c[j] ** 2 * x[j] - y[j], lambda j: W[free, j] * A[free, j], lambda j: c[free] * x[j]])


def single(v: Words) -> Any:
    """A family with one index."""
    return v.dice.choice([v.m, v.m, v.f, v.u, v.g, v.U])


def claim(left: Any, right: Any, where: Sequence[Any] = (), inferred: Sequence[Any] = ()) -> Claim:
    return sympy.sympify(left), sympy.sympify(right), list(where), list(inferred)


def within(k: Any, size: Any) -> list[Any]:
    return [k >= 1, k <= size]


# -- true claims: moments -------------------------------------------------------
def mean_of_a_unit(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n, b = term(v, a), single(v), v.dice.choice(v.sizes), v.dice.choice([0, 1, v.c[1], v.t])
    return claim(Expectation(Sum(f(j) * z[j], (j, 1, n)) + b), v.mean[z] * Sum(f(k), (k, 1, n)) + b)


def variance_of_a_unit(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n, b = term(v, a), single(v), v.dice.choice(v.sizes), v.dice.choice([0, 1, v.c[1]])
    return claim(Variance(Sum(f(j) * z[j], (j, 1, n)) + b), v.variance[z] * Sum(f(k) ** 2, (k, 1, n)))


def variance_from_its_definition(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n = term(v, a), single(v), v.dice.choice(v.sizes)
    unit = Sum(f(j) * z[j], (j, 1, n))
    left = v.dice.choice([Expectation((unit - Expectation(unit)) ** 2), Expectation(unit**2) - Expectation(unit) ** 2])
    return claim(left, v.dice.choice([Variance(unit), v.variance[z] * Sum(f(k) ** 2, (k, 1, n))]))


def second_moment(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n = term(v, a), single(v), v.dice.choice(v.sizes)
    return claim(Expectation(Sum(f(j) * z[j], (j, 1, n)) ** 2),
                 v.mean[z] ** 2 * Sum(f(k), (k, 1, n)) ** 2 + v.variance[z] * Sum(f(j) ** 2, (j, 1, n)))


def third_moment(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n = v.dice.choice([lambda j: v.x[j], lambda j: v.W[a, j], lambda j: 2 * v.c[j]]), single(v), v.n
    one, two, three = (Sum(f(j) ** power, (j, 1, n)) for power in (1, 2, 3))
    return claim(Expectation(Sum(f(k) * z[k], (k, 1, n)) ** 3),
                 v.mean[z] ** 3 * one**3 + 3 * v.mean[z] * v.variance[z] * one * two + v.third[z] * three)


def units_that_share_masks(v: Words) -> Claim:
    j, k, a, b = letters(v, 4)
    z, n = single(v), v.dice.choice(v.sizes)
    return claim(Covariance(Sum(v.W[a, j] * z[j] * v.x[j], (j, 1, n)), Sum(v.W[b, k] * z[k] * v.x[k], (k, 1, n))),
                 v.variance[z] * Sum(v.W[a, j] * v.W[b, j] * v.x[j] ** 2, (j, 1, n)))


def units_with_own_masks(v: Words) -> Claim:
    j, k, a, b = letters(v, 4)
    z, n = v.dice.choice([v.M, v.R]), v.dice.choice(v.sizes)
    return claim(Covariance(Sum(v.W[a, j] * z[a, j] * v.x[j], (j, 1, n)), Sum(v.W[b, j] * z[b, j] * v.x[j], (j, 1, n))),
                 KroneckerDelta(a, b) * v.variance[z] * Sum(v.W[a, k] * v.W[b, k] * v.x[k] ** 2, (k, 1, n)))


def two_indices(v: Words) -> Claim:
    i, j, k, l = letters(v, 4)      # noqa: E741
    z = v.dice.choice([v.M, v.R])
    n, d = v.dice.sample(v.sizes, 2)
    both = Sum(v.A[i, j] * z[i, j], (i, 1, n), (j, 1, d))
    rows = Sum(Sum(v.A[i, j] * z[i, j], (j, 1, d)) ** 2, (i, 1, n))
    square = Sum(v.A[k, l] ** 2, (k, 1, n), (l, 1, d))
    return v.dice.choice([
        claim(Expectation(both), v.mean[z] * Sum(Sum(v.A[l, k], (k, 1, d)), (l, 1, n))),
        claim(Variance(both), v.variance[z] * square),
        claim(Expectation(rows),
              v.mean[z] ** 2 * Sum(Sum(v.A[i, k], (k, 1, d)) ** 2, (i, 1, n)) + v.variance[z] * square),
        claim(Variance(Sum(v.A[i, j] * v.m[j], (i, 1, n), (j, 1, d))),
              v.variance[v.m] * Sum(Sum(v.A[k, i], (k, 1, n)) ** 2, (i, 1, d)))])


def linear_regression(v: Words) -> Claim:
    i, j, k, l = letters(v, 4)      # noqa: E741
    X, p, n, d = v.A, v.p, v.N, v.d
    mask = v.dice.choice([v.m[j], v.M[i, j]])
    return claim(Expectation(Sum((v.y[i] - Sum(mask * X[i, j] * v.w[j], (j, 1, d))) ** 2, (i, 1, n))),
                 Sum((v.y[l] - (1 - p) * Sum(X[l, k] * v.w[k], (k, 1, d))) ** 2, (l, 1, n))
                 + p * (1 - p) * Sum(v.w[j] ** 2 * Sum(X[i, j] ** 2, (i, 1, n)), (j, 1, d)))


def linearity(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, g, z, n, b = term(v, a), term(v, a), single(v), v.dice.choice(v.sizes), number_of(v)
    one, two = Sum(f(j) * z[j], (j, 1, n)), Sum(g(k) * v.dice.choice([z, v.u])[k], (k, 1, n))
    return v.dice.choice([
        claim(Expectation(b * one + two), b * Expectation(one) + Expectation(two)),
        claim(Variance(b * one + 3), b**2 * Variance(one)),
        claim(Variance(one + b * two), Variance(one) + b**2 * Variance(two) + 2 * b * Covariance(one, two)),
        claim(Covariance(one, two), Expectation(one * two) - Expectation(one) * Expectation(two)),
        claim(Covariance(b * one + 1, two), b * Covariance(two, one)),
        claim(Expectation(one - Expectation(one)), 0),
        claim(Variance(one - Expectation(two)), Variance(one)),
        claim(Expectation(one * Expectation(two)), Expectation(two) * Expectation(one))])


def inverted_masks(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, p, n = term(v, a), v.p, v.dice.choice(v.sizes)
    unit = Sum(f(j) * v.m[j], (j, 1, n)) / (1 - p)
    return v.dice.choice([
        claim(Expectation(unit), Sum(f(k), (k, 1, n))),
        claim(Variance(unit), p / (1 - p) * Sum(f(k) ** 2, (k, 1, n))),
        claim(Expectation(unit**2), Sum(f(k), (k, 1, n)) ** 2 + p / (1 - p) * Sum(f(j) ** 2, (j, 1, n))),
        claim(Expectation((v.m[j] / (1 - p) - 1) ** 3), p * (2 * p - 1) / (1 - p) ** 2)])


def few_draws(v: Words) -> Claim:
    j, k, a, b = letters(v, 4)
    z, s = single(v), v.dice.choice([v.M, v.R])
    return v.dice.choice([
        claim(Covariance(z[j], z[k]), v.variance[z] * KroneckerDelta(j, k)),
        claim(Expectation(z[j] * z[k]), v.mean[z] ** 2 + v.variance[z] * KroneckerDelta(j, k)),
        claim(Covariance(s[a, j], s[b, k]), v.variance[s] * KroneckerDelta(a, b) * KroneckerDelta(j, k)),
        claim(Expectation(s[a, j] * s[b, j]), v.mean[s] ** 2 + v.variance[s] * KroneckerDelta(a, b)),
        claim(Expectation(v.m[j] * v.u[k]), (1 - v.p) * v.q), claim(Covariance(v.m[j], v.f[k]), 0),
        claim(Variance(v.m[j] * v.u[j]), (1 - v.p) * v.q * (1 - (1 - v.p) * v.q)),
        claim(Expectation(v.m[j] * Expectation(v.m[k])), (1 - v.p) ** 2),
        claim(Expectation(v.m[1] * v.m[2] * v.m[3]), (1 - v.p) ** 3)])


def masks_and_other_noise(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, z, n = term(v, a), v.dice.choice([v.g, v.U]), v.dice.choice(v.sizes)
    one = v.variance[z] + v.mean[z] ** 2
    return v.dice.choice([
        claim(Variance(Sum(f(j) * v.m[j] * z[j], (j, 1, n))),
              ((1 - v.p) * one - (1 - v.p) ** 2 * v.mean[z] ** 2) * Sum(f(k) ** 2, (k, 1, n))),
        claim(Expectation(Sum(f(j) * v.m[j] * z[j] ** 2, (j, 1, n))), (1 - v.p) * one * Sum(f(k), (k, 1, n))),
        claim(Variance(v.m[j] * z[k] / (1 - v.p)), v.variance[z] + v.p / (1 - v.p) * one)])


def function_of_one_draw(v: Words) -> Claim:
    j, k = letters(v, 2)
    z, x, t = v.dice.choice([v.m, v.u]), v.x, v.t
    f = v.dice.choice([
        lambda z: exp(t * z), lambda z: z**5, lambda z: 1 / (z + 2), lambda z: Abs(z - third), lambda z: Max(z, half),
        lambda z: Min(z, half) + t * z, lambda z: log(1 + z), lambda z: (z - v.p) ** 3, lambda z: exp(x[k] * z),
        lambda z: (x[k] + t * z) ** 2, lambda z: Piecewise((x[1], z > half), (x[2], True)),
        lambda z: Max(0, 2 * z - 1)])
    keep = v.rate[z]
    g = v.dice.choice([f, lambda z: f(z) * x[k], lambda z: f(z) + 1])
    return v.dice.choice([
        claim(Expectation(g(z[j])), (1 - keep) * g(S.Zero) + keep * g(S.One)),
        claim(Variance(f(z[j])), keep * (1 - keep) * (f(S.One) - f(S.Zero)) ** 2),
        claim(Expectation(Sum(f(z[j]) * v.w[j], (j, 1, v.n))),
              ((1 - keep) * f(S.Zero) + keep * f(S.One)) * Sum(v.w[j], (j, 1, v.n)))])


def normal_moments(v: Words) -> Claim:
    j, k = letters(v, 2)
    g, mu, s, t = v.g, v.mu, v.s, v.t
    return v.dice.choice([
        claim(Expectation(g[j] ** 2), mu**2 + s**2), claim(Expectation(g[j] ** 3), mu**3 + 3 * mu * s**2),
        claim(Expectation(g[j] ** 4), mu**4 + 6 * mu**2 * s**2 + 3 * s**4),
        claim(Expectation((g[j] - mu) ** 4), 3 * s**4), claim(Variance(g[j] ** 2), 2 * s**4 + 4 * mu**2 * s**2),
        claim(Covariance(g[j] ** 2, g[k]), 2 * mu * s**2 * KroneckerDelta(j, k)),
        claim(Variance(g[1] - g[2]), 2 * s**2), claim(Expectation((g[j] - mu) ** 3 * v.x[k]), 0),
        claim(Expectation(exp(t * g[j])), exp(t * mu + t**2 * s**2 / 2))])


def uniform_moments(v: Words) -> Claim:
    j, k = letters(v, 2)
    U, b, power = v.U, v.top, v.dice.randint(1, 4)
    return v.dice.choice([
        claim(Expectation(U[j] ** power), b**power / (power + 1)), claim(Variance(U[k]), b**2 / 12),
        claim(Variance(U[j] ** 2), 4 * b**4 / 45), claim(Covariance(U[j], U[k] ** 2), b**3 / 12 * KroneckerDelta(j, k)),
        claim(Expectation((U[j] - b / 2) ** 3), 0), claim(Expectation((b - U[j]) * U[j]), b**2 / 6)])


def products_of_masks(v: Words) -> Claim:
    i, l, k = letters(v, 3)         # noqa: E741
    m, p, n, x, t = v.m, v.p, v.dice.choice(v.sizes), v.x, v.t
    return v.dice.choice([
        claim(Expectation(Product(1 - m[l], (l, 1, n))), p**n),
        claim(Expectation(Product(m[l], (l, k + 1, n))), (1 - p) ** (n - k), [k <= n]),
        claim(Expectation(m[i] * Product(1 - m[l], (l, i + 1, n))), (1 - p) * p ** (n - i), [i <= n]),
        claim(Expectation(Product(1 + x[l] * m[l], (l, 1, n))), Product(1 + (1 - p) * x[k], (k, 1, n))),
        claim(Expectation(Product(1 + t * m[l], (l, 1, n))), (1 + (1 - p) * t) ** n),
        claim(Expectation(Product(exp(t * x[l] * m[l]), (l, 1, n))), Product(p + (1 - p) * exp(t * x[i]), (i, 1, n))),
        claim(Variance(Product(m[l], (l, 1, n))), (1 - p) ** n - (1 - p) ** (2 * n)),
        claim(Expectation(Sum(x[i] * m[i] * Product(1 - m[l], (l, i + 1, n)), (i, 1, n))),
              (1 - p) * Sum(x[i] * p ** (n - i), (i, 1, n)))])


# -- true claims: sums, algebra, functions, derivatives ----------------------------
def products_of_sums(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, g, h, (n, d) = term(v, a), term(v, a), term(v, a), v.dice.choices(v.sizes, k=2)
    one, two = Sum(f(j), (j, 1, n)), Sum(g(j), (j, 1, d))
    return v.dice.choice([
        claim(one * two, Sum(f(k) * g(l), (k, 1, n), (l, 1, d))), claim(one**2, Sum(f(j) * f(k), (j, 1, n), (k, 1, n))),
        claim((one + two) ** 2, one**2 + 2 * one * two + two**2), claim(one * two, Sum(f(k) * two, (k, 1, n))),
        claim(one * (two + 1), Sum(Sum(f(j) * g(k), (k, 1, d)), (j, 1, n)) + Sum(f(l), (l, 1, n))),
        claim(one**2 * two, Sum(f(j) * f(k) * g(l), (j, 1, n), (k, 1, n), (l, 1, d))),
        claim(Sum((f(j) + g(j)) ** 2, (j, 1, n)), Sum(f(k) ** 2 + 2 * f(k) * g(k) + g(k) ** 2, (k, 1, n))),
        claim(Sum(f(j) * one, (j, 1, n)), one**2), claim(Sum((f(j) - h(j)) * (f(j) + h(j)), (j, 1, n)),
                                                         Sum(f(k) ** 2, (k, 1, n)) - Sum(h(l) ** 2, (l, 1, n)))])


def linear_in_sums(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, g, n, b, c = term(v, a), term(v, a), v.dice.choice(v.sizes), number_of(v), number_of(v)
    return claim(Sum(b * f(j) - c * g(j), (j, 1, n)), b * Sum(f(k), (k, 1, n)) - c * Sum(g(l), (l, 1, n)))


def order_of_sums(v: Words) -> Claim:
    j, k, a, b = letters(v, 4)
    f, A, (n, d) = term(v, b), v.A, v.dice.choices(v.sizes, k=2)
    return v.dice.choice([
        claim(Sum(Sum(A[j, k] * f(j), (k, 1, d)), (j, 1, n)), Sum(f(j) * A[j, k], (j, 1, n), (k, 1, d))),
        claim(Sum(f(j) * Sum(A[j, k], (k, 1, d)), (j, 1, n)), Sum(Sum(A[k, a] * f(k), (k, 1, n)), (a, 1, d))),
        claim(Sum(Sum(A[j, k], (j, 1, k)), (k, 1, n)), Sum(Sum(A[j, a], (a, j, n)), (j, 1, n))),
        claim(Sum(f(j) * v.y[k] * A[j, k], (j, 1, n), (k, 1, d)), Sum(f(k) * v.y[j] * A[k, j], (j, 1, d), (k, 1, n)))])


def parts_of_a_range(v: Words) -> Claim:
    j, k, a, r = letters(v, 4)
    f, n = term(v, a), v.dice.choice(v.sizes)
    whole = Sum(f(j), (j, 1, n))
    return v.dice.choice([
        claim(whole, Sum(f(j), (j, 1, k)) + Sum(f(r), (r, k + 1, n)), [k >= 0, k <= n]),
        claim(whole, Sum(f(r), (r, 1, n - 1)) + f(n)), claim(whole, f(1) + Sum(f(r), (r, 2, n))),
        claim(whole - Sum(f(r), (r, 1, k)), Sum(f(j), (j, k + 1, n)), [k >= 0, k <= n]),
        claim(Sum(f(j), (j, 1, 2 * n)), whole + Sum(f(r), (r, n + 1, 2 * n))),
        claim(Sum(f(j), (j, k, n)), f(k) + Sum(f(r), (r, k + 1, n)), [k <= n]),
        claim(Sum(f(j), (j, 1, 3)), f(1) + f(2) + f(3))])


def shifted_and_mirrored(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, n, h = term(v, a), v.dice.choice(v.sizes), v.age[0]
    return claim(v.dice.choice([
        Sum(f(h + 1), (h, 0, n - 1)), Sum(f(j - 2), (j, 3, n + 2)), Sum(f(n + 1 - j), (j, 1, n)),
        Sum(f(n - h), (h, 0, n - 1))]), Sum(f(k), (k, 1, n)))


def triangles(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, n = term(v, a), v.dice.choice(v.sizes)
    one, two = Sum(f(l), (l, 1, n)), Sum(f(l) ** 2, (l, 1, n))
    return v.dice.choice([
        claim(Sum(Sum(f(j) * f(k), (j, 1, k - 1)), (k, 1, n)), (one**2 - two) / 2),
        claim(Sum(f(k) * Sum(f(j), (j, k + 1, n)), (k, 1, n)), Sum(f(k) * f(j), (j, 1, k - 1), (k, 1, n))),
        claim(2 * Sum(f(j) * f(k), (j, 1, k), (k, 1, n)), one**2 + two),
        claim(Sum(f(j) * f(k) * (1 - KroneckerDelta(j, k)), (j, 1, n), (k, 1, n)), one**2 - two)])


def constants_in_sums(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, n, b = term(v, a), v.dice.choice(v.sizes), number_of(v)
    return v.dice.choice([
        claim(Sum(b, (j, 1, n)), n * b), claim(Sum(Sum(f(k), (j, 1, k)), (k, 1, n)), Sum(l * f(l), (l, 1, n))),
        claim(Sum(f(j), (j, k, n), (k, 1, n)), Sum(j * f(j), (j, 1, n))), claim(Sum(1, (j, k, n)), n - k + 1, [k <= n]),
        claim(Sum(f(j) + b, (j, 1, n)), Sum(f(k), (k, 1, n)) + n * b), claim(Sum(b, (j, 1, n), (k, 1, n)), n**2 * b),
        claim(Sum(Sum(b, (j, 1, k)), (k, 1, n)), b * n * (n + 1) / 2)])


def closed_forms(v: Words) -> Claim:
    j, k = letters(v, 2)
    n, h, b = v.dice.choice(v.sizes), v.age[0], v.dice.choice([v.p, v.t, 1 - v.p, S(2)])
    return v.dice.choice([
        claim(Sum(j, (j, 1, n)), n * (n + 1) / 2), claim(Sum(j**2, (j, 1, n)), n * (n + 1) * (2 * n + 1) / 6),
        claim(Sum(j**3, (j, 1, n)), Sum(k, (k, 1, n)) ** 2), claim(Sum(b**h, (h, 0, n - 1)), (1 - b**n) / (1 - b)),
        claim(Sum(2 * j - 1, (j, 1, n)), n**2), claim(Sum(b**j, (j, 1, n)), b * (1 - b**n) / (1 - b)),
        claim(Sum(h * (h + 1), (h, 0, n)), n * (n + 1) * (n + 2) / 3), claim(Product(j, (j, 1, n)), sympy.factorial(n)),
        claim(Sum(sympy.binomial(n, h) * v.t**h, (h, 0, n)), (1 + v.t) ** n)])


def deltas(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, g, n, x = term(v, a), term(v, a), v.dice.choice(v.sizes), v.x
    return v.dice.choice([
        claim(Sum(f(j) * KroneckerDelta(j, k), (j, 1, n)), f(k), [], within(k, n)),
        claim(Sum(KroneckerDelta(j, k) * f(j) * g(k), (j, 1, n), (k, 1, n)), Sum(f(l) * g(l), (l, 1, n))),
        claim(Sum(f(j) * KroneckerDelta(j, 1), (j, 1, n)), f(1)),
        claim(Sum(f(j) * KroneckerDelta(j, 2), (j, 1, n)), f(2), [n >= 2]),
        claim(Sum(f(j) * KroneckerDelta(j, n), (j, 1, n)), f(n)),
        claim(KroneckerDelta(j, k) * x[j], KroneckerDelta(j, k) * x[k]),
        claim(KroneckerDelta(j, k) ** 2, KroneckerDelta(j, k)),
        claim(Sum(f(j) * KroneckerDelta(j + 1, k), (j, 1, n)), f(k - 1), [k >= 2, k <= n]),
        claim(Sum(KroneckerDelta(j, k), (j, 1, n), (k, 1, n)), n),
        claim(Sum(KroneckerDelta(j, k) * KroneckerDelta(k, l) * f(j), (j, 1, n), (k, 1, n), (l, 1, n)),
              Sum(f(l), (l, 1, n)))])


def products(v: Words) -> Claim:
    j, k, a = letters(v, 3)
    f, g, n, b = term(v, a), term(v, a), v.dice.choice(v.sizes), v.dice.choice([v.t, v.p, 1 - v.p, S(2)])
    return v.dice.choice([
        claim(Product(f(j) * g(j), (j, 1, n)), Product(f(j), (j, 1, n)) * Product(g(k), (k, 1, n))),
        claim(Product(b, (j, 1, n)), b**n), claim(Product(b * f(j), (j, 1, n)), b**n * Product(f(k), (k, 1, n))),
        claim(Product(exp(f(j)), (j, 1, n)), exp(Sum(f(k), (k, 1, n)))),
        claim(Product(f(j), (j, 1, n)) ** 2, Product(f(k) ** 2, (k, 1, n))),
        claim(Product(f(j), (j, 1, n)), f(1) * Product(f(k), (k, 2, n)))])


def derivatives(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, n, w, p, t = term(v, a), v.dice.choice(v.sizes), v.w, v.p, v.t
    unit, masked = Sum(w[j] * f(j), (j, 1, n)), Sum(w[j] * f(j) * v.m[j], (j, 1, n))
    inferred = within(k, n)
    return v.dice.choice([
        claim(Derivative(unit, w[k]), f(k), [], inferred),
        claim(Derivative(unit**2, w[k]), 2 * f(k) * Sum(w[l] * f(l), (l, 1, n)), [], inferred),
        claim(Derivative(Sum(w[j] ** 3 * f(j), (j, 1, n)), w[k]), 3 * w[k] ** 2 * f(k), [], inferred),
        claim(Derivative(unit**2, (w[k], 2)), 2 * f(k) ** 2, [], inferred),
        claim(Derivative(exp(unit), w[k]), f(k) * exp(unit), [], inferred),
        claim(Derivative(Expectation(masked**2), w[k]), 2 * (1 - p) ** 2 * f(k) * Sum(w[l] * f(l), (l, 1, n))
              + 2 * p * (1 - p) * w[k] * f(k) ** 2, [], inferred),
        claim(Derivative(Variance(masked), w[k]), 2 * p * (1 - p) * w[k] * f(k) ** 2, [], inferred),
        claim(Derivative(Expectation(masked), p), -Sum(w[l] * f(l), (l, 1, n))),
        claim(Derivative(Variance(masked), p), (1 - 2 * p) * Sum(w[l] ** 2 * f(l) ** 2, (l, 1, n))),
        claim(Derivative(Expectation(exp(t * v.m[j])), t), (1 - p) * exp(t)),
        claim(Derivative(p / (1 - p), p), 1 / (1 - p) ** 2), claim(Derivative(t**2 * Sum(w[j], (j, 1, n)), t),
                                                                  2 * t * Sum(w[l], (l, 1, n))),
        claim(Derivative(w[j], w[k]), KroneckerDelta(j, k)),
        claim(Sum(v.y[k] * Derivative(unit**2, w[k]), (k, 1, n)), 2 * unit * Sum(v.y[l] * f(l), (l, 1, n)))])


def algebra(v: Words) -> Claim:
    p, q, t = v.p, v.q, v.t
    return v.dice.choice([
        claim(p / (1 - p) + 1, 1 / (1 - p)), claim(p * (1 - p) + p**2, p), claim(1 - (1 - p) ** 2, 2 * p - p**2),
        claim(p * (1 - p) / (1 - p) ** 2, p / (1 - p)), claim(1 - p - q + p * q, (1 - p) * (1 - q)),
        claim((p**3 - 1) / (p - 1), 1 + p + p**2), claim(t ** (v.n + 1), t * t**v.n), claim(sqrt(t) ** 4, t**2),
        claim((1 - 2 * p) ** 2, 1 - 4 * p * (1 - p)), claim(1 / p + 1 / (1 - p), 1 / (p * (1 - p)))])


def exponentials(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, g, n, t, x = term(v, a), term(v, a), v.dice.choice(v.sizes), v.t, v.x
    return v.dice.choice([
        claim(exp(f(j) + g(k)), exp(f(j)) * exp(g(k))), claim(log(t * v.top), log(t) + log(v.top)),
        claim(log(exp(t) * v.top**2), t + 2 * log(v.top)),
        claim(exp(Sum(f(j), (j, 1, n))) ** 2, exp(2 * Sum(f(k), (k, 1, n)))),
        claim(exp(x[j]) / (exp(x[j]) + exp(x[k])), 1 / (1 + exp(x[k] - x[j]))),
        claim(Sum(exp(f(j) + x[k]), (j, 1, n)), exp(x[k]) * Sum(exp(f(l)), (l, 1, n))),
        claim(exp(Sum(f(j) + g(j), (j, 1, n))), exp(Sum(f(k), (k, 1, n))) * exp(Sum(g(l), (l, 1, n)))),
        claim(Sum(log(t * exp(x[j])), (j, 1, n)), n * log(t) + Sum(x[k], (k, 1, n)))])


def largest_and_smallest(v: Words) -> Claim:
    j, k, l = letters(v, 3)         # noqa: E741
    x, y, m, p, n = v.x, v.y, v.m, v.p, v.dice.choice(v.sizes)
    return v.dice.choice([
        claim(Max(x[j], y[k]) + Min(x[j], y[k]), x[j] + y[k]), claim(Max(x[j], 0), (x[j] + Abs(x[j])) / 2),
        claim(Abs(x[j]) ** 2, x[j] ** 2), claim(Abs(x[j] * y[k]), Abs(x[j]) * Abs(y[k])),
        claim(Sum(Max(x[j], 0) - Max(-x[j], 0), (j, 1, n)), Sum(x[k], (k, 1, n))),
        claim(Expectation(Max(m[1], m[2])), 1 - p**2), claim(Expectation(Min(m[1], m[2])), (1 - p) ** 2),
        claim(Expectation(Abs(m[j] - (1 - p))), 2 * p * (1 - p)), claim(Expectation(Sum(Max(m[j], half), (j, 1, n))),
                                                                       n * (1 - p / 2)),
        claim(Expectation(Sum(Abs(x[j] * m[j]), (j, 1, n))), (1 - p) * Sum(Abs(x[l]), (l, 1, n)))])


def case_distinctions(v: Words) -> Claim:
    j, k, l, a = letters(v, 4)      # noqa: E741
    f, n, z = term(v, a), v.dice.choice(v.sizes), v.dice.choice([v.m, v.u])
    return v.dice.choice([
        claim(Sum(Piecewise((f(j), j <= k), (0, True)), (j, 1, n)), Sum(f(l), (l, 1, k)), [k >= 0, k <= n]),
        claim(Sum(Piecewise((f(j), j <= n), (v.y[j], True)), (j, 1, n)), Sum(f(k), (k, 1, n))),
        claim(Piecewise((f(j), v.t > 0), (0, True)), f(j)),
        claim(Sum(Piecewise((f(j), sympy.Eq(j, k)), (0, True)), (j, 1, n)), f(k), within(k, n)),
        claim(Expectation(Sum(Piecewise((f(j) * z[j], j <= k), (0, True)), (j, 1, n))),
              v.mean[z] * Sum(Piecewise((f(l), l <= k), (0, True)), (l, 1, n)))])


KINDS = (
    mean_of_a_unit, variance_of_a_unit, variance_from_its_definition, second_moment, third_moment,
    units_that_share_masks, units_with_own_masks, two_indices, linear_regression, linearity, inverted_masks,
    few_draws, masks_and_other_noise, function_of_one_draw, normal_moments, uniform_moments, products_of_masks,
    products_of_sums, linear_in_sums, order_of_sums, parts_of_a_range, shifted_and_mirrored, triangles,
    constants_in_sums, closed_forms, deltas, products, derivatives, algebra, exponentials, largest_and_smallest,
    case_distinctions,
)


# -- true claims: put together ------------------------------------------------------
def true_claim(dice: random.Random) -> tuple[str, Any, Any, list[Any], Words]:
    """Kind, sides, conditions and words of a claim that is true by construction."""
    v = words(dice)
    kind = dice.choice(KINDS)
    left, right, where, inferred = kind(v)
    name, way = kind.__name__, dice.random()
    if way < 0.12:                              # other entries
        left, right = entries_replaced(v, left, right)
    elif way < 0.2:                             # two claims in one
        other = dice.choice(KINDS)
        left_2, right_2, where_2, inferred_2 = other(v)
        b = number_of(v)
        left, right = (b * left + left_2, b * right + right_2) if dice.random() < 0.6 else \
            (left * left_2, right * right_2)
        where, inferred, name = where + where_2, inferred + inferred_2, "two claims in one"
    elif way < 0.23:
        left, right, name = exp(left), exp(right), "exp of a claim"
    elif way < 0.4 and (whole := inside_a_sum(v, left, right, where + inferred)):
        (left, right, where), inferred, name = whole, [], "inside a sum"
    if way < 0.4 or dice.random() < 0.5:        # what is inferred from one claim alone may not be inferred from two
        where = where + inferred
    if dice.random() < 0.3:
        left, right = right, left
    return name.replace("_", " "), left, right, [c for c in dict.fromkeys(where) if c != sympy.true], v


def entries_replaced(v: Words, left: Any, right: Any) -> tuple[Any, Any]:
    """A claim about all x is one about x = y^2, too."""
    if left.has(Derivative):
        return left, right
    new = v.dice.choice([lambda j: v.y[j] ** 2, lambda j: v.W[j, j], lambda j: v.w[j] * v.w[1], lambda j: v.w[j] + 1,
                         lambda j: exp(v.w[j]), lambda j: v.w[j] - v.y[j], lambda j: Expectation(v.f[j]) * v.w[j]])
    return tuple(side.replace(lambda e: e.is_Indexed and e.base == v.x, lambda e: new(*e.indices))
                 for side in (left, right))


def inside_a_sum(v: Words, left: Any, right: Any, where: list[Any]) -> tuple[Any, Any, list[Any]] | None:
    """A claim about a free index k, summed over k with weights."""
    if left.has(Piecewise) or right.has(Piecewise):     # SymPy pulls cases out of sums over what they depend on
        return None
    free = sorted(set(v.index) & (left.free_symbols | right.free_symbols), key=str)
    v.dice.shuffle(free)
    for k in free:
        about = [c for c in where if c != sympy.true and k in c.free_symbols]
        for n in v.sizes:
            if set(about) <= {k >= 1, k >= 0, k <= n}:
                weight = v.dice.choice([v.y[k], v.w[k] * v.c[k], v.t, 1, k])
                left, right = (Sum(weight * side, (k, 1, n)) for side in (left, right))
                return left, right, [c for c in where if c not in about]
    return None


# -- changed claims -----------------------------------------------------------------
def changed_claim(dice: random.Random) -> tuple[str, Any, Any, list[Any]]:
    """A true claim with one thing altered."""
    while True:
        kind, left, right, where, v = true_claim(dice)
        for _ in range(20):
            changed = changed_as_a_whole(v, left, right, where) if dice.random() < 0.15 else None
            if changed is None:
                sides = [left, right]
                side = dice.randrange(2)
                sides[side] = changed_part(v, sides[side], left + right)
                changed = (*sides, where)
            if changed[0] != changed[1] and changed != (left, right, where) and None not in changed \
                    and not any(side.has(*NO_NUMBERS) for side in changed[:2]):
                return kind, *changed


def changed_as_a_whole(v: Words, left: Any, right: Any, where: list[Any]) -> tuple[Any, Any, list[Any]] | None:
    """A condition less, a weaker one, another expression for a size, or less assumed about a size or an index."""
    if where and v.dice.random() < 0.6:
        position = v.dice.randrange(len(where))
        one = where[position]
        by_one = one.func(one.lhs - 1, one.rhs) if one.rel_op == "<=" else one.func(one.lhs + 1, one.rhs)
        weaker = v.dice.choice([sympy.true, by_one])
        return left, right, [c for c in [*where[:position], weaker, *where[position + 1:]] if c != sympy.true]
    if v.dice.random() < 0.5:                   # a range that is empty, or more than empty, at some sizes only
        size, other = v.dice.sample(v.sizes, 2)
        new = {size: v.dice.choice([9 - size, 3 * size - other, size - other + 3, 2 * size - other, size - 2])}
        return left.xreplace(new), right.xreplace(new), [c.xreplace(new) for c in where]
    symbol = v.dice.choice([*v.sizes, *v.index])
    if symbol not in left.free_symbols | right.free_symbols:
        return None
    new = {symbol: Symbol(symbol.name, integer=True, nonnegative=v.dice.choice([True, None]))}
    return left.xreplace(new), right.xreplace(new), [c.xreplace(new) for c in where]


def changed_part(v: Words, e: Any, whole: Any) -> Any:
    """The expression with one node altered, None if SymPy does not take it."""
    places = [(path, node) for path, node in nodes(e) if changes(v, node, whole)]
    if not places:
        return None
    path, node = v.dice.choice(places)
    try:
        return put(e, path, sympy.sympify(v.dice.choice(changes(v, node, whole))))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def nodes(e: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """All parts that may be altered: no bound index where it is bound, and no law."""
    if not isinstance(e, sympy.Tuple):
        yield path, e
    first = 1 if e.is_Indexed or isinstance(e, sympy.Tuple) else 0      # neither the base nor the bound index
    for position, part in list(enumerate(e.args))[first:1 if isinstance(e, Derivative) else None]:
        yield from nodes(part, (*path, position))


def put(e: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    arguments = list(e.args)
    arguments[path[0]] = put(arguments[path[0]], path[1:], new)
    return e.func(*arguments)


def changes(v: Words, e: Any, whole: Any) -> list[Any]:
    """What a node may become."""
    letters_here = sorted((set(v.index) & whole.atoms(Symbol)) - {e}, key=str)
    if e.is_Integer:
        return [e + 1, e - 1]
    if e.is_Rational:
        return [e + 1, -e]
    if e in v.index or e in v.age:
        return [*letters_here, 1, 2, e + 1, e - 1]
    if e in v.sizes:
        return [*(size for size in v.sizes if size != e), e + 1, e - 1]
    if e.is_Symbol:
        return [{v.p: 1 - v.p, v.q: 1 - v.q}.get(e, -e), v.p, *({v.mu: [v.nu], v.t: [v.top]}.get(e, []))]
    if e.is_Indexed:
        alike = [v.x, v.w, v.y, v.c, v.m, v.f, v.u, v.g] if len(e.indices) == 1 else [v.W, v.A, v.M, v.R]
        return [base[e.indices] for base in alike if base != e.base] + [e**2]
    if e.is_Add:
        position = v.dice.randrange(len(e.args))
        one, others = e.args[position], e.args[:position] + e.args[position + 1:]
        return [Add(*others), Add(-one, *others), Mul(*e.args)]
    if e.is_Mul:
        position = v.dice.randrange(len(e.args))
        found = [Add(*e.args), Mul(*e.args[:position], *e.args[position + 1:]), -e]
        return found + ([e * KroneckerDelta(*v.dice.sample(letters_here, 2))] if len(letters_here) > 1 else [])
    if isinstance(e, Pow):
        return [e.base, e * e.base]
    if isinstance(e, Relational):
        return [{"<=": sympy.Lt, "<": sympy.Le, ">": sympy.Ge, ">=": sympy.Gt, "==": sympy.Le}[e.rel_op](*e.args)]
    swaps = {Expectation: lambda: [Variance(e.args[0])], Variance: lambda: [Expectation(e.args[0])],
             Covariance: lambda: [Expectation(Mul(*e.args)), Variance(e.args[0])], KroneckerDelta: lambda: [S.One],
             Max: lambda: [Min(*e.args)], Min: lambda: [Max(*e.args)], Abs: lambda: [e.args[0]],
             Product: lambda: [Sum(*e.args)], Sum: lambda: [Product(*e.args), -e], exp: lambda: [exp(-e.args[0])]}
    return swaps[type(e)]() if type(e) in swaps else []


# -- the oracle: plain floats, all masks at once ----------------------------------------
Point = dict[Any, Any]      # symbols, entries that a derivative has moved, and what the other entries are drawn from


def oracle(left: Any, right: Any, domain: Any, seed: str = "", points: int = 40) -> float | None:
    """The largest relative difference of two sides over random points of their domain; None if no point has values."""
    left, right = map(sympy.sympify, (left, right))
    dice = random.Random(f"{seed} {left} {right}")
    found: list[float] = []
    for _ in range(12 * points):
        try:
            point = a_point(domain, dice, [left, right])
            with np.errstate(all="ignore"):
                if not all(value(c, point) for c in [*domain.where, *domain.places] if symbols_of(c) <= set(point)):
                    continue
                one, two = (float(value(side, point)) for side in (left, right))
        except (ArithmeticError, OverflowError):        # outside of the domain, or too many outcomes
            continue
        if math.isfinite(one) and math.isfinite(two):
            found.append(abs(one - two) / max(1, abs(one), abs(two)))
            if len(found) == points or found[-1] > 1e-3:
                break
    return max(found) if found else None


def symbols_of(e: Any) -> set[Any]:
    """The symbols for which a point needs numbers: not the names of arrays."""
    return e.atoms(Symbol) - {entry.base.label for entry in e.atoms(sympy.Indexed)}


def a_point(domain: Any, dice: random.Random, sides: Sequence[Any]) -> Point:
    """Random sizes, indices (in 1..n where the domain says so) and symbols; entries of both signs, or positive."""
    def whole(symbol: Any, high: int) -> int:
        return dice.randint(1 if symbol.is_positive else 0 if symbol.is_nonnegative else -2, high)

    most = dice.choice([2, 3, 3, 5, 5, 12])
    point: Point = {"seed": dice.random(), "positive": dice.random() < 0.4}
    for symbol in domain.sizes:
        point[symbol] = whole(symbol, most)
    for symbol, high in domain.indices.items():
        size = point.get(high)
        if size is not None and size < 1:
            raise ArithmeticError("no index lies in 1..n")
        point[symbol] = whole(symbol, most + 1) if size is None else dice.randint(1, size)
    for symbol in domain.counts:
        point[symbol] = whole(symbol, 4)
    laws = (noise.base.law.pspace.distribution for side in sides for noise in side.atoms(sympy.Indexed)
            if isinstance(noise.base, Noise))
    rates = {symbol for law in laws if hasattr(law, "succ") for symbol in law.p.free_symbols}
    for symbol in domain.parameters:
        if symbol.is_integer:
            point[symbol] = whole(symbol, 5)
        elif symbol in rates:
            point[symbol] = dice.uniform(0.05, 0.95)
        else:
            sign = 1 if symbol.is_nonnegative or point["positive"] else dice.choice([-1, 1])
            point[symbol] = sign * dice.choice([dice.uniform(0.1, 0.9), dice.uniform(0.5, 1.8)])
    return point


def value(e: Any, point: Point, drawn: dict[Any, Any] | set[Any] | None = None) -> Any:
    """A number, or an array over all outcomes of what is drawn; a set takes note of the copies that stand in e."""
    def inner(part: Any) -> Any:
        return value(part, point, drawn)

    if e.is_Integer:
        return int(e)
    if e.is_number and e.is_Atom:
        return np.float64(e)
    if e.is_Symbol:
        return point[e]
    if e.is_Indexed:
        return entry(e, place(e, point), point, drawn)
    if e.is_Add:
        return reduce(lambda total, part: total + part, map(inner, e.args))
    if e.is_Mul:
        return reduce(lambda total, part: total * part, map(inner, e.args))
    if e.is_Pow:
        base, exponent = inner(e.base), inner(e.exp)
        return base**exponent if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 else \
            np.power(np.asarray(base, dtype=float), exponent)
    if isinstance(e, Sum | Product):
        parts = [value(e.function, at, drawn) for at in ranges(list(e.limits), point)]
        return sum(parts) if isinstance(e, Sum) else math.prod(parts)
    if isinstance(e, Expectation | Variance | Covariance):
        return 1.0 if isinstance(drawn, set) else moment(e, point)
    if isinstance(e, KroneckerDelta):
        return int(inner(e.args[0]) == inner(e.args[1]))
    if isinstance(e, Derivative):
        return slope(e, point, drawn)
    if isinstance(e, Piecewise):
        total: Any = math.nan
        for part, condition in reversed(e.args):
            chosen = inner(condition)
            total = np.where(chosen, inner(part), total) if drawn is not None else inner(part) if chosen else total
        return total
    if e in (sympy.true, sympy.false):
        return bool(e)
    if isinstance(e, sympy.And):
        return reduce(np.logical_and, map(inner, e.args))
    if isinstance(e, Relational):
        left, right = map(inner, e.args)
        return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right, "==": left == right,
                "!=": left != right}[e.rel_op]
    if isinstance(e, Max | Min):
        return reduce(np.maximum if isinstance(e, Max) else np.minimum, map(inner, e.args))
    if isinstance(e, sympy.factorial | sympy.binomial):
        parts = [inner(part) for part in e.args]
        if any(part < 0 for part in parts):
            raise ArithmeticError("a factorial of a negative number")
        return math.factorial(*parts) if isinstance(e, sympy.factorial) else math.comb(*parts)
    functions = {"exp": np.exp, "log": np.log, "Abs": np.abs, "sign": np.sign, "conjugate": np.real}
    return functions[e.func.__name__](np.asarray(inner(e.args[0]), dtype=float))


def place(e: Any, point: Point) -> tuple[Any, ...]:
    return e.base.name, *(value(index, point) for index in e.indices)


def entry(e: Any, key: tuple[Any, ...], point: Point, drawn: dict[Any, Any] | set[Any] | None) -> Any:
    if isinstance(e.base, Noise) and drawn is not None:
        if isinstance(drawn, set):
            drawn.add((key, e.base))
            return 0.5
        return drawn[key]
    if key not in point:
        drawn_from = random.Random(f"{point['seed']} {key}")
        sign = 1 if point["positive"] else drawn_from.choice([-1, 1])
        point[key] = np.float64(sign * drawn_from.uniform(0.2, 1.7))
    return point[key]


def ranges(limits: list[Any], point: Point) -> Iterator[Point]:
    """The outer index, which stands last, first; nothing where the upper end is below the lower one."""
    if not limits:
        yield point
        return
    *inner, (index, low, high) = limits
    for position in range(value(low, point), value(high, point) + 1):
        yield from ranges(inner, {**point, index: position})


def moment(e: Any, point: Point) -> Any:
    """E, Var or Cov: every copy that stands inside gets an axis of its own, and all outcomes are summed jointly."""
    touched: set[Any] = set()
    for part in e.args:
        value(part, point, touched)
    copies = sorted(touched, key=str)
    laws = [law_of(family, point, 40 if len(copies) == 1 else 14) for _, family in copies]
    if math.prod(len(nodes) for nodes, _ in laws) > OUTCOMES or len(laws) > 30:
        raise ArithmeticError("too many outcomes")
    drawn = {key: nodes.reshape([-1 if axis == position else 1 for axis in range(len(laws))])
             for position, ((key, _), (nodes, _)) in enumerate(zip(copies, laws, strict=True))}

    def mean(values: Any) -> Any:
        values = np.broadcast_to(np.asarray(values, dtype=float), [len(nodes) for nodes, _ in laws])
        for _, weights in reversed(laws):
            values = values @ weights
        return values

    parts = [value(part, point, drawn) for part in e.args]
    if isinstance(e, Expectation):
        return mean(parts[0])
    product = (parts[0] - mean(parts[0])) * (parts[-1] - mean(parts[-1]))
    found = mean(product)
    return found if abs(found) > 1e-13 * mean(abs(product)) else 0.0     # rounding, which a large factor would blow up


def law_of(family: Any, point: Point, count: int) -> tuple[Any, Any]:
    """Values and probabilities; of a normal law so many Gauss nodes, of a uniform law half of them."""
    law = family.law.pspace.distribution
    if hasattr(law, "succ"):
        keep = float(value(law.p, point))
        if not 0 < keep < 1:
            raise ArithmeticError("no probability")
        return np.array([float(law.succ), float(law.fail)]), np.array([keep, 1 - keep])
    if hasattr(law, "std"):
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        return value(law.mean, point) + value(law.std, point) * nodes, weights / weights.sum()
    left, right = value(law.left, point), value(law.right, point)
    nodes, weights = np.polynomial.legendre.leggauss(count // 2)
    return left + (right - left) * (nodes + 1) / 2, weights / 2


def slope(e: Any, point: Point, drawn: Any) -> Any:
    """Central differences of the fourth order, once for every order; a point near a pole tells nothing."""
    (variable, order), *others = e.variable_count
    rest = [(variable, order - 1)] if order > 1 else []
    body = Derivative(e.expr, *rest, *others, evaluate=False) if rest or others else e.expr
    key = place(variable, point) if variable.is_Indexed else variable
    at = value(variable, point)

    def differences(step: float) -> Any:
        return sum(weight * value(body, {**point, key: at + shift * step}, drawn)
                   for shift, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1))) / (12 * step)

    coarse, fine = (differences(factor * (1e-3 if not rest else 1e-2)) for factor in (2, 1))
    if np.any(np.abs(coarse - fine) > TOLERANCE / 2 * np.maximum(1, np.abs(fine))):
        raise ArithmeticError("the differences have not settled")
    return fine


# -- the tester -------------------------------------------------------------------------
class OutOfTimeError(BaseException):
    """Not an Exception, so that nothing on the way takes it for a failure of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(left: Any, right: Any, where: Sequence[Any]) -> tuple[str, Any]:
    """What the prover says about a claim, and its result or its message."""
    try:
        with at_most(SECONDS):
            return SHOWN, prove(left, right, where=where)
    except OutOfTimeError:
        return NOT_SHOWN, f"not within {SECONDS} s"
    except NotAClaim as error:
        return OUTSIDE, str(error)
    except Unproved as error:
        return (FALSE if str(error).startswith("the identity is false") else NOT_SHOWN), str(error)
    except Exception as error:
        return CRASH, f"{type(error).__name__}: {error}"


def tried(seed: str, number: int) -> dict[str, Any]:
    """One claim by its number, every fifth one true, and what became of it."""
    dice = random.Random(f"{seed}:{number}")
    changed = number % 5 != 0
    kind, left, right, where, *_ = changed_claim(dice) if changed else true_claim(dice)
    verdict, message = outcome(left, right, where)
    if changed and verdict == SHOWN:
        try:
            with at_most(3 * SECONDS):
                gap = oracle(left, right, message.domain, f"{seed}:{number}")
        except OutOfTimeError:
            gap = None
        verdict = "accepted, not decided" if gap is None else \
            "accepted, true after all" if gap < TOLERANCE else f"FALSE ACCEPTED, {gap:.2g} apart"
    return {"number": number, "kind": kind, "changed": changed, "verdict": verdict, "message": str(message),
            "claim": f"{left} = {right}" + (f"    where {where}" if where else ""),
            "srepr": "\n".join(map(srepr, [left, right, *where])) if verdict.startswith((CRASH, "FALSE")) else ""}


def remarkable(record: dict[str, Any]) -> bool:
    """Faults, of the prover or of this file."""
    return bool(record["srepr"]) or record["verdict"] == "accepted, not decided" \
        or (not record["changed"] and record["verdict"] in (FALSE, OUTSIDE))


def described(seed: str, record: dict[str, Any]) -> str:
    what = "changed" if record["changed"] else "true"
    return f"{record['verdict']}: {seed}:{record['number']}, {what}, {record['kind']}\n  {record['claim']}\n  " \
        f"{record['message'][:600]}\n{record['srepr']}"


COLUMNS = ("true: tried", "shown", "as false", "not shown", "outside", "changed: tried", "as false", "otherwise",
           "true after all", "not decided", "FALSE ACCEPTED", "CRASH")


def counted(records: Sequence[dict[str, Any]]) -> list[int]:
    true = Counter(record["verdict"] for record in records if not record["changed"])
    changed = Counter(record["verdict"].split(",")[0] if record["verdict"].startswith("FALSE") else record["verdict"]
                      for record in records if record["changed"])
    return [true.total(), true[SHOWN], true[FALSE], true[NOT_SHOWN], true[OUTSIDE],
            changed.total(), changed[FALSE], changed[NOT_SHOWN] + changed[OUTSIDE],
            changed["accepted, true after all"], changed["accepted, not decided"], changed["FALSE ACCEPTED"],
            true[CRASH] + changed[CRASH]]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Counts by kind, as text."""
    kinds = sorted({record["kind"] for record in records})
    rows = [(kind, counted([record for record in records if record["kind"] == kind])) for kind in kinds]
    rows.append(("all", counted(records)))
    width = max(len(kind) for kind, _ in rows)
    lines = [" " * width + "  " + "  ".join(COLUMNS)]
    lines += [kind.ljust(width) + "  " + "  ".join(f"{count:{len(column)}d}" for count, column in
                                                   zip(counts, COLUMNS, strict=True)) for kind, counts in rows]
    return "\n".join(lines)


def report(seed: str, records: Sequence[dict[str, Any]]) -> str:
    """The table, the command that makes it, and examples of true claims that are not shown."""
    missing = [f"{kind}: {one['claim']}" for kind in sorted({record["kind"] for record in records}) for one in
               [record for record in records if not record["changed"] and record["kind"] == kind
                and record["verdict"] == NOT_SHOWN][:3]]
    return "\n".join([f"python tests/random_claims.py {len(records)} --seed {seed}", "", table(records), "",
                      "True claims that the rules do not show, up to three of a kind:", *missing, ""])


def _tried(job: tuple[str, int]) -> dict[str, Any]:
    return tried(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description="Random claims, true and changed, against the prover.")
    parser.add_argument("number", type=int, help="how many claims")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a file for the table")
    parser.add_argument("--records", type=Path, help="a file of outcomes, from which a run that was stopped goes on")
    parser.add_argument("--only", type=int, help="one claim by its number")
    options = parser.parse_args()
    if options.only is not None:
        print(described(options.seed, tried(options.seed, options.only)))
        return
    records: list[dict[str, Any]] = []
    if options.records and options.records.exists():
        records = [json.loads(line) for line in options.records.read_text(encoding="utf-8").splitlines()]
    jobs = ((options.seed, number) for number in range(len(records), options.number))
    with (multiprocessing.Pool(options.processes) as pool,
          options.records.open("a", encoding="utf-8") if options.records else nullcontext() as kept):
        for record in pool.imap(_tried, jobs, chunksize=10):
            if remarkable(record):
                print(described(options.seed, record), flush=True)
            records.append({name: record[name] for name in ("kind", "changed", "verdict", "claim")})
            if kept:
                print(json.dumps(records[-1]), file=kept, flush=True)
            if len(records) % 1000 == 0:
                print(f"{len(records)} of {options.number} claims", file=sys.stderr, flush=True)
    print(text := report(options.seed, records))
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
