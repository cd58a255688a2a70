"""The derivation engine: what it proves is true, what is false it refuses, and it prints the same everywhere."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sympy import (
    Derivative,
    IndexedBase,
    Integral,
    KroneckerDelta,
    Limit,
    Max,
    Product,
    Rational,
    Sum,
    Symbol,
    exp,
    expand,
    log,
    oo,
    simplify,
    sqrt,
    symbols,
)

import dropoutlib.symbolic
from dropoutlib.symbolic import (
    Bernoulli,
    Covariance,
    Expectation,
    Noise,
    Normal,
    NotAClaim,
    Phi,
    Uniform,
    Unproved,
    Variance,
    by_law,
    collapse,
    cumulant,
    derive,
    disprove,
    enumerate_masks,
    exact,
    gaussian_mean,
    judge,
    linear,
    meaning,
    number,
    phi,
    prove,
    same,
    textbook,
)
from dropoutlib.symbolic import rules as the_rules
from dropoutlib.symbolic import terms as the_terms

p, t = symbols("p t", positive=True)
mu, s = symbols("mu s", real=True)
n, N, d, K = symbols("n N d K", integer=True, positive=True)
i, j, k, l, a, b, T = symbols("i j k l a b T", integer=True, positive=True)  # noqa: E741
h = Symbol("h", integer=True, nonnegative=True)
w, x, y, u, c, A, W, X, bias = (IndexedBase(name) for name in ["w", "x", "y", "u", "c", "A", "W", "X", "b"])
m = Noise(Bernoulli("m", 1 - p))
M = Noise(Bernoulli("M", 1 - p))
z = Sum(w[j] * m[j] * x[j], (j, 1, n))
squares = Sum(w[j] ** 2 * x[j] ** 2, (j, 1, n))


# -- rules against enumeration, at random --------------------------------------
g = Noise(Normal("g", Symbol("mu_g"), Symbol("s_g", positive=True)))
BLOCKS = [
    Sum(c[j] * m[j], (j, 1, n)),
    Sum(A[j, k] * M[j, k], (j, 1, n), (k, 1, n)),
    Sum(A[k, j] * m[j] * Sum(c[j] * m[j], (j, 1, n)), (j, 1, n)),       # a dummy that hides another
    Sum(M[k, j] * c[j], (j, 1, n)),
    Sum(g[j] * m[j], (j, 1, n)),
    Sum(g[j] * Expectation(m[j] * M[j, k]), (j, 1, n)),
    m[k], M[k, l], g[l], c[k], Rational(-2), p, exp(t * m[k]),
]


def products() -> st.SearchStrategy:
    return st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2).map(lambda factors: sympy.Mul(*factors))


def sums() -> st.SearchStrategy:
    return st.lists(products(), min_size=1, max_size=2).map(lambda parts: sympy.Add(*parts))


MOMENTS = st.one_of(
    st.builds(lambda e, f: Expectation(e * f), products(), st.sampled_from(BLOCKS)),
    st.builds(Variance, products()),
    st.builds(Covariance, sums(), products()),
    st.builds(lambda e, f: Sum(Expectation(e) * f * c[k], (k, 1, n)), sums(), st.sampled_from(BLOCKS[8:10])),
    st.builds(lambda e: Expectation((e - Expectation(e)) ** 2), products()),
)


def with_numbers(expression):
    """Entries become numbers, different ones for different indices; with symbols the enumeration is slow."""
    def entry(e):
        first, last = e.indices[0], e.indices[-1]
        return 7 * first**2 + 3 * last + len(str(e.base))

    plain = expression.replace(lambda e: isinstance(e, sympy.Indexed) and not isinstance(e.base, Noise), entry)
    return plain.subs({p: Rational(1, 3), t: log(2), Symbol("mu_g"): 2, Symbol("s_g", positive=True): sqrt(3)})


@settings(max_examples=40, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(MOMENTS, st.sampled_from([(1, 1), (1, 2)]))
def test_the_rules_agree_with_the_sum_over_all_masks(expression, at):
    sizes = {"n": 2, "k": at[0], "l": at[1]}
    truth = enumerate_masks(with_numbers(expression), **sizes)
    worked_out = exact(expression)
    assert not worked_out.has(Expectation, Variance, Covariance) or expression.has(exp)
    assert simplify(enumerate_masks(with_numbers(worked_out), **sizes) - truth) == 0


# -- moments of linear units ----------------------------------------------------
za, zb = (Sum(W[unit, j] * m[j] * x[j], (j, 1, n)) for unit in (a, b))
ca, cb = (Sum(W[unit, j] * M[unit, j] * x[j], (j, 1, n)) for unit in (a, b))
loss = Sum((y[i] - Sum(M[i, j] * X[i, j] * w[j], (j, 1, d))) ** 2, (i, 1, N))
ridge = Sum((y[i] - (1 - p) * Sum(X[i, j] * w[j], (j, 1, d))) ** 2, (i, 1, N)) \
    + p * (1 - p) * Sum(w[j] ** 2 * Sum(X[i, j] ** 2, (i, 1, N)), (j, 1, d))
normal_input = Noise(Normal("h", mu, s))

RESULTS = {
    "mean": (Expectation(z), (1 - p) * Sum(w[j] * x[j], (j, 1, n))),
    "variance": (Variance(z), p * (1 - p) * squares),
    "inverted mean": (Expectation(z / (1 - p)), Sum(w[k] * x[k], (k, 1, n))),
    "inverted variance": (Variance(z / (1 - p)), p / (1 - p) * squares),
    "variance from its definition": (Expectation((z - Expectation(z)) ** 2), p * (1 - p) * squares),
    "two units share masks": (Covariance(za, zb), p * (1 - p) * Sum(W[a, j] * W[b, j] * x[j] ** 2, (j, 1, n))),
    "DropConnect units do not": (
        Covariance(ca, cb), KroneckerDelta(a, b) * p * (1 - p) * Sum(W[a, j] * W[b, j] * x[j] ** 2, (j, 1, n))),
    "third central moment": (Expectation((m[j] / (1 - p) - 1) ** 3), p * (2 * p - 1) / (1 - p) ** 2),
    "absolute third moment": (
        Expectation(sympy.Abs(m[j] - 1 + p) ** 3).subs(p, Rational(1, 3)), Rational(2, 9) * Rational(5, 9)),
    "linear regression": (Expectation(loss), ridge),
    "one mask for the batch": (
        Expectation(Sum((y[i] - Sum(m[j] * X[i, j] * w[j], (j, 1, d))) ** 2, (i, 1, N))), ridge),
    "gradient of the ridge": (
        Derivative(ridge, w[k]),
        2 * p * (1 - p) * w[k] * Sum(X[i, k] ** 2, (i, 1, N))
        - 2 * (1 - p) * Sum(X[i, k] * (y[i] - (1 - p) * Sum(X[i, j] * w[j], (j, 1, d))), (i, 1, N))),
    "variance shift": (Variance(m[j] * normal_input[j] / (1 - p)), s**2 + p / (1 - p) * (mu**2 + s**2)),
    "variance shift of a sum": (
        Variance(Sum(w[j] * m[j] * normal_input[j], (j, 1, n)) / (1 - p)),
        (s**2 + p / (1 - p) * (mu**2 + s**2)) * Sum(w[j] ** 2, (j, 1, n))),
    "one mask for a channel": (Variance(Sum(m[1] * x[j], (j, 1, n))), p * (1 - p) * Sum(x[j], (j, 1, n)) ** 2),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result(name):
    start, claim = RESULTS[name]
    assert derive(start, exact, (claim, "closed form")).result == claim


WRONG = {
    "missing square": (Variance(z), p * (1 - p) * Sum(w[j] * x[j], (j, 1, n))),
    "p for 1 - p": (Expectation(z), p * Sum(w[j] * x[j], (j, 1, n))),
    "n - 1": (Variance(z), p * (1 - p) * Sum(w[j] ** 2 * x[j] ** 2, (j, 1, n - 1))),
    "square of the sum": (Variance(z), p * (1 - p) * Sum(w[j] * x[j], (j, 1, n)) ** 2),
    "raw for inverted": (Variance(z / (1 - p)), p * (1 - p) * squares),
    "delta forgotten": (Covariance(ca, cb), RESULTS["two units share masks"][1]),
}


@pytest.mark.parametrize(("name", "by"), [
    *((name, None) for name in WRONG), ("missing square", "enumeration"), ("missing square", "rules")])
def test_wrong_claim_is_refused(name, by):
    start, claim = WRONG[name]
    with pytest.raises(Unproved, match=r"differ"):
        derive(start, (claim, "wrong"), by=by, **({"n": 2} if by == "enumeration" else {}))


def test_the_error_names_the_line_and_shows_the_difference():
    with pytest.raises(AssertionError) as caught:
        derive(Variance(z), linear, (p * squares, "wrong"))
    message = str(caught.value)
    assert message.startswith("line 2 is false at n = 1: Variance(") and "under the condition 0 < p < 1" in message
    shown = sympy.sympify(message.split("the difference is ")[1].split("\n")[0].replace("[", "_").replace("]", ""))
    missing = p**2 * sympy.prod(symbols("w_1 x_1")) ** 2
    assert expand(shown.subs(Symbol("p"), p) - missing) == 0


WRONG_RULES = {
    "linear": lambda e: the_rules.collapse(e.replace(Variance, lambda inside: Expectation(inside**2))),
    "by_law": lambda e: the_rules.collapse(
        e.replace(lambda f: isinstance(f, Covariance | Variance), lambda f: p * KroneckerDelta(
            *(next(iter(f.args[q].indices)) for q in (0, -1))) if len(f.args) > 1 else p)),
    "collapse": lambda e: the_terms.collapse(e.replace(KroneckerDelta, lambda *indices: sympy.Integer(1))),
}


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_a_wrong_rule_is_caught_by_the_judge(monkeypatch, rule):
    """The rules would confirm their own mistake; the judge does not share it."""
    assert derive(Variance(z), linear, by_law, collapse).result == p * (1 - p) * squares
    monkeypatch.setattr(the_rules, "difference", lambda *_: sympy.S.Zero)       # the other check is silenced
    rules = [WRONG_RULES[name] if name == rule else own for name, own in
             (("linear", linear), ("by_law", by_law), ("collapse", collapse))]
    with pytest.raises(Unproved, match=r"line \d is false at n = [12]:"):
        derive(Variance(z), *rules)


WRONG_JUDGES = {
    "all means are equal": ("mean", lambda *_: 1),
    "empty ranges only": ("ranges", lambda *_: iter(())),
    "the first term only": ("ranges", lambda self, limits, env: islice(true_ranges(self, limits, env), 1)),
    "no delta": ("index", lambda *_: 1),
}
true_ranges = meaning.Meaning.ranges


@pytest.mark.parametrize("name", WRONG_JUDGES)
def test_a_wrong_judge_is_caught_by_the_rules(monkeypatch, name):
    """No fault of the judge lets a false line through: the rules refuse it by themselves."""
    method, wrong = WRONG_JUDGES[name]
    monkeypatch.setattr(meaning.Meaning, method, wrong)
    monkeypatch.setattr(judge, "degree", lambda *_: 1)
    for start, claim in WRONG.values():
        with pytest.raises(Unproved):
            derive(start, (claim, "wrong"))


def test_a_judge_that_agrees_to_everything_is_caught_by_the_rules(monkeypatch):
    monkeypatch.setattr(judge, "disagreement", lambda *_: None)
    for start, claim in WRONG.values():
        with pytest.raises(Unproved, match="not shown by the rules"):
            derive(start, (claim, "wrong"))


# -- sizes at which the judge looks ----------------------------------------------
def test_small_sizes_can_deceive_and_the_chosen_size_does_not():
    """e_3 vanishes for one and two units, not for three."""
    total, second, third = (Sum(c[j] ** r, (j, 1, n)) for r in (1, 2, 3))
    e3 = total**3 - 3 * total * second + 2 * third
    prove(e3, 0, n=(1, 2))
    with pytest.raises(Unproved, match=r"6\*c\[1\]\*c\[2\]\*c\[3\]"):
        prove(e3, 0, n=3)
    with pytest.raises(Unproved, match="false at n = 3"):
        derive(e3, (0, "wrong"))
    with pytest.raises(Unproved, match="not shown"):       # (n - 1)(n - 2)(n - 3) deceives the judge
        derive((n - 1) * (n - 2) * (n - 3) * Variance(z), 0)
    assert "[at n = 1]" in repr(prove(Expectation(z**2), (1 - p) * squares, n=1))
    with pytest.raises(Unproved):
        derive(Expectation(z**2), ((1 - p) * squares, "wrong"))


def test_sizes_differ_or_not_and_indices_meet():
    """All orders of 1, 2, 3, and two sizes alike; units equal and unequal, first and last."""
    assert derive(Variance(z), exact).sizes == ({"n": 1}, {"n": 2}, {"n": 3})
    assert {(case["N"], case["d"]) for case in derive(Expectation(loss), exact).sizes} == {
        (first, second) for first in (1, 2, 3) for second in (1, 2, 3) if first != second or first < 3}
    units = derive(Covariance(ca, cb), exact).sizes
    assert {(case["a"], case["b"]) for case in units} == {(q, r) for q in (1, 2) for r in (1, 2)}
    gradient = derive(Derivative(Sum(w[j] ** 2, (j, 1, n)), w[k]), exact)
    assert [(case["n"], case["k"]) for case in gradient.sizes] == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


def test_sizes_can_be_given_and_must_exist():
    assert derive(Variance(z), exact, n=(1, 5)).sizes == ({"n": 1}, {"n": 2}, {"n": 3}, {"n": 5})
    with pytest.raises(ValueError, match="no size is called q"):
        derive(Variance(z), exact, q=2)
    with pytest.raises(ValueError, match="n needs whole numbers"):
        derive(Variance(z), exact, n=(1.5,))


def test_the_enumeration_alone_needs_sizes_and_names_them():
    """E 1/(1 + .) is not 1/(1 + E .), but without inputs it is."""
    total = Sum(m[j], (j, 1, n))
    start, claim = Expectation(1 / (1 + total)), (1 - p ** (n + 1)) / ((1 - p) * (n + 1))
    with pytest.raises(ValueError, match=r"needs every size: give n="):
        derive(start, claim, by="enumeration")
    with pytest.raises(ValueError, match=r"give d=.*, n="):
        derive(Expectation(loss), Sum(x[j], (j, 1, n)), by="enumeration", N=1)
    with pytest.raises(Unproved, match="false at n = 2"):
        derive(start, 1 / (1 + Expectation(total)) + p * (1 - p) / 2 / (2 - p), by="enumeration", n=(1, 2))
    assert derive(start, claim, by="enumeration", n=(1, 2, 4)).lines[-1][1] == "at n = 1, 2, 4"
    no_size = Expectation(1 / (m[1] + m[2] + 1))
    expected = Rational(1, 3) * (1 - p) ** 2 + p * (1 - p) + p**2
    assert derive(no_size, expected, by="enumeration").result == expected
    undecided = Expectation(m[1] / (m[1] + m[2] + 1) + m[2] / (m[1] + m[2] + 1))
    assert derive(undecided, 1 - no_size, by="enumeration").lines[-1][1] == "by enumeration"


def test_the_enumeration_alone_decides_rational_functions_only():
    """Where a difference may be tiny, or hidden behind a kink, a sample of points decides nothing."""
    for start, wrong in [(Max(0, mu - 100), 0), (sympy.Abs(mu + 9), mu + 9)]:
        with pytest.raises(Unproved, match="rational functions only"):
            derive(start, wrong, by="enumeration")
    with pytest.raises(Unproved, match="is false"):         # sixty digits see it
        derive(1 + exp(-60 * (mu**2 + 1)), 1, by="enumeration")
    largest = Expectation(Max(m[1], m[2]))          # the noise decides inside Max, nothing else
    assert derive(largest, 1 - p**2, by="enumeration").result == 1 - p**2


@pytest.mark.parametrize("check", [
    lambda: prove(Variance(z), squares, n=()),
    lambda: prove(Variance(z), squares, at=[{p: 0.5, n: 1, w: [1], x: [1]}], n=[]),
    lambda: derive(Variance(z), exact, n=()),
    lambda: derive(Variance(z), exact, by="enumeration", n=()),
    lambda: derive(Variance(z), exact, by="rules", n=iter(())),
])
def test_no_size_checks_nothing(check):
    with pytest.raises(ValueError, match="n needs at least one size"):
        check()


def test_a_size_that_leaves_an_index_no_value_checks_nothing():
    size = symbols("N", integer=True, nonnegative=True)
    for check in (prove, partial(derive, by="enumeration")):
        with pytest.raises(ValueError, match=r"no sizes and indices are left .* with N = \[0\]"):
            check(x[k] + Sum(x[j], (j, 1, size)), x[k] ** 2, N=0)
        with pytest.raises(ValueError, match=r"n is declared positive, got 0"):
            check(x[k] + Sum(x[j], (j, 1, n)), x[k] ** 2, n=0)


def test_free_indices_take_equal_and_different_values():
    """a = b is where a forgotten delta shows; a and b apart is where a spurious one does."""
    with pytest.raises(Unproved, match="a = 1, b = 1"):
        derive(Covariance(M[a, 1], M[b, 1]), (0, "wrong"))
    with pytest.raises(Unproved, match="a = 1, b = 2"):
        derive(Covariance(M[a, 1], M[b, 1]), (p * (1 - p), "wrong"))


def test_substitution_reaches_the_law_inside_a_sum():
    assert exact(Expectation(z).subs(p, Rational(1, 4))) == Rational(3, 4) * Sum(w[j] * x[j], (j, 1, n))
    assert p in Variance(z).free_symbols


# -- other laws and rules -----------------------------------------------------------
def test_random_rate_correlates_the_masks():
    """p ~ U(0, b): Cov(m_j, m_k) = Var(p) between different units (tower rule)."""
    top = Symbol("top", positive=True)
    rate = Noise(Uniform("P", 0, top))
    given_rate = exact(Expectation(m[1] * m[2]))
    between = exact(Expectation(given_rate.subs(p, rate[0]))) - exact(Expectation((1 - p).subs(p, rate[0]))) ** 2
    assert simplify(between - top**2 / 12) == 0
    assert simplify(enumerate_masks(Variance(rate[0])) - top**2 / 12) == 0
    with pytest.raises(NotAClaim, match="not random itself"):       # a law that is itself random is not guessed
        exact(Expectation(m[1].subs(p, rate[0])))


def test_continuous_noise_has_exact_moments_of_every_degree():
    for noise in (normal_input, Noise(Uniform("U", 0, 1))):
        for degree in range(9):
            mean = Expectation(noise[1] ** degree)
            assert expand(enumerate_masks(mean) - exact(mean)) == 0
        with pytest.raises(ValueError, match="polynomials in it only"):
            enumerate_masks(Expectation(exp(noise[1])))


def test_winner_of_a_max_pool():
    wins = m[i] * Product(1 - m[l], (l, i + 1, n))
    assert derive(Expectation(wins), by_law, where=i <= n).result == (1 - p) * p ** (n - i)
    assert exact(Expectation(wins)) == (1 - p) * Product(p, (l, i + 1, n))      # i may be larger than n
    mean = derive(Expectation(Sum(c[i] * wins, (i, 1, n))), linear, by_law, collapse, n=3).result
    truth = enumerate_masks(Expectation(Max(*[q * m[r] for r, q in enumerate((1, 3, 7), start=1)])))
    assert expand(truth - enumerate_masks(mean, n=3).subs({c[1]: 1, c[2]: 3, c[3]: 7})) == 0


def test_masks_per_step_forget_and_one_mask_does_not():
    """c_T is the sum over the age h: one mask gives one factor 1 - p, a mask a step gives (1 - p)^(h + 1)."""
    f = Symbol("f")
    once = Sum(m[1] ** (h + 1) * f**h * u[T - h], (h, 0, T - 1))
    each = Sum(Product(m[l], (l, T - h, T)) * f**h * u[T - h], (h, 0, T - 1))
    derive(Expectation(once), exact, ((1 - p) * Sum(f**h * u[T - h], (h, 0, T - 1)), ""), T=(1, 3))
    derive(Expectation(each), exact, (Sum((1 - p) ** (h + 1) * f**h * u[T - h], (h, 0, T - 1)), ""), T=(1, 3))


def test_what_the_rules_cannot_decide_stays():
    for inside in (log(Sum(exp(m[j]), (j, 1, n))), m[1] / (1 + Sum(m[j], (j, 1, n))), exp(m[j] * m[k])):
        assert exact(Expectation(inside)) == Expectation(inside)
    for shared in (m[k] * Product(1 - m[l], (l, 1, n)), M[a, k] * Product(M[b, l], (l, 1, n))):
        assert exact(Expectation(shared)) == Expectation(shared)    # m_k may be one of the factors
    one = m[1] / (m[1] + m[2] + 1) + m[2] / (m[1] + m[2] + 1)
    claim = 1 - Expectation(1 / (m[1] + m[2] + 1))
    with pytest.raises(Unproved, match="the judge found no point where it is false"):
        derive(Expectation(one), claim)
    shown = derive(Expectation(Sum(m[j] / (1 + Sum(m[k], (k, 1, n))), (j, 1, n))),
                   1 - Expectation(1 / (1 + Sum(m[k], (k, 1, n)))), by="enumeration", n=(1, 2, 3))
    assert shown.lines[-1][1] == "at n = 1, 2, 3"
    assert "[at n = 1, 2, 3]" in repr(shown) and "(at n = 1, 2, 3)" in shown._repr_latex_()


def test_normalised_geometric_mean_of_softmax_networks():
    net = bias[k] + Sum(W[k, j] * m[j] * x[j], (j, 1, n))
    geometric = exp(Expectation(net - log(Sum(exp(net.subs(k, l)), (l, 1, K)))))
    for keep, true in ((1 - p, True), (p, False)):
        one_net = exp(bias[k] + keep * Sum(W[k, j] * x[j], (j, 1, n)))
        claim = one_net / Sum(one_net.subs(k, l), (l, 1, K))
        assert same(geometric / Sum(geometric.subs(k, l), (l, 1, K)), claim) is true


@pytest.mark.parametrize("scale", [1, 1 - p])
def test_a_false_network_is_unproved_where_sympy_fails(scale):
    """The simplify of SymPy 1.14 ends in StopIteration here; the first claim forgets 1 - p, the second scales b too."""
    geometric = exp(Expectation(bias[k] + Sum(W[k, j] * m[j] * x[j], (j, 1, n))))
    one_net = exp(scale * (bias[k] + Sum(W[k, j] * x[j], (j, 1, n))))
    left, claim = (e / Sum(e.subs(k, l), (l, 1, K)) for e in (geometric, one_net))
    with pytest.raises(Unproved, match="is false at K = 2"):
        prove(left, claim)
    assert not same(left, claim)


# -- cumulants and the normal law -------------------------------------------------
def test_cumulants_of_a_mask_follow_the_recursion():
    law = m.law
    for r in range(1, 6):
        assert expand(cumulant(law, r + 1) + p * (1 - p) * cumulant(law, r).diff(p)) == 0
    assert str(cumulant(law, 3)) == "p*(1 - p)*(2*p - 1)"
    excess = cumulant(law, 4) / cumulant(law, 2) ** 2
    assert simplify(excess - (1 - 6 * p * (1 - p)) / (p * (1 - p))) == 0
    assert cumulant(normal_input.law, 3) == 0


def test_a_product_of_one_copy_is_a_power_of_it():
    one_mask = Product(m[1] / (1 - p), (j, 1, n))
    assert prove(Expectation(one_mask), (1 - p)**(1 - n))
    for wrong in (1, (1 - p)**(-n)):
        with pytest.raises(Unproved, match="false"):
            prove(Expectation(one_mask), wrong)



def test_cumulants_of_a_unit_are_the_derivatives_of_its_log_mgf():
    generating = exact(Expectation(Product(exp(t * w[j] * x[j] * m[j]), (j, 1, n))))
    log_mgf = sympy.expand_log(log(generating), force=True)
    for r in (1, 2, 3, 4):
        assert same(log_mgf.diff(t, r).subs(t, 0).simplify(), cumulant(z, r))
    assert same(cumulant(z + Sum(c[j] * M[j, 1], (j, 1, n)) + 7, 3),
                cumulant(m.law, 3) * (Sum((w[j] * x[j]) ** 3, (j, 1, n)) + Sum(c[j] ** 3, (j, 1, n))))
    assert same(cumulant(z, 3), Expectation((z - Expectation(z)) ** 3))
    with pytest.raises(ValueError, match="linear"):
        cumulant(z**2, 2)
    with pytest.raises(ValueError, match="order"):
        cumulant(z, 0)


def test_equal_weights_become_normal():
    equal = [cumulant(Sum(m[j], (j, 1, n)), r) for r in (2, 3, 4)]
    skewness, excess = equal[1] / equal[0] ** Rational(3, 2), equal[2] / equal[0] ** 2
    prove(excess, (1 - 6 * p * (1 - p)) / (n * p * (1 - p)))
    at = {p: Rational(1, 5)}
    assert sympy.limit(skewness.subs(at), n, oo) == sympy.limit(excess.subs(at), n, oo) == 0


RELU = mu * Phi(mu / s) + s * phi(mu / s)
MEANS = [
    (lambda v: Max(0, v), RELU),
    (lambda v: Max(0, v) ** 2, (mu**2 + s**2) * Phi(mu / s) + mu * s * phi(mu / s)),
    (Phi, Phi(mu / sqrt(1 + s**2))),
    (exp, exp(mu + s**2 / 2)),
]


@pytest.mark.parametrize(("function", "mean"), MEANS)
def test_mean_of_a_function_of_a_normal_variable(function, mean):
    shown = gaussian_mean(mean, function, mu, s)
    assert "heat equation" in repr(shown)
    v = Symbol("v", real=True)
    prove(Integral(function(mu + s * v) * phi(v), (v, -oo, oo)), mean,
          at=[{mu: Rational(3, 10), s: 1.2}, {mu: -1, s: 0.5}])


@pytest.mark.parametrize(("function", "mean", "defect"), [
    (lambda v: Max(0, v), Max(0, mu), None),
    (lambda v: Max(0, v), mu * Phi(mu / s), r"phi\(mu/s\)"),
    (lambda v: Max(0, v), RELU + mu, "is not 0 but mu "),
    (Phi, Phi(mu / sqrt(1 + sympy.pi * s**2 / 8)), "phi"),
])
def test_wrong_mean_is_refused(function, mean, defect):
    with pytest.raises(Unproved, match=defect):
        gaussian_mean(mean, function, mu, s)


def test_the_heat_equation_is_for_a_fixed_function():
    with pytest.raises(NotAClaim, match="g must be a function of its argument alone, but has mu of its own"):
        gaussian_mean(mu**2, lambda v: mu * v, mu, s)


def test_a_place_without_a_value_is_named():
    t = Symbol("t", real=True)
    with pytest.raises(NotAClaim, match="-1 > 0: is false, and without it a power, a function or an integral"):
        prove(Integral(1 / t, (t, -1, 1)), 0)


def test_quadrature_refuses():
    v = Symbol("v")
    with pytest.raises(Unproved, match="false at mu = 1, s = 2"):
        prove(Integral(Max(0, mu + s * v) * phi(v), (v, -oo, oo)), Max(0, mu), at=[{mu: 1, s: 2}])


def test_phi():
    v = Symbol("v", real=True)
    assert Phi(v).diff(v) == phi(v) and phi(v).diff(v) == -v * phi(v)
    assert [sympy.limit(Phi(v), v, end) for end in (-oo, oo)] == [0, 1]
    assert [sympy.limit(v**3 * phi(v), v, end) for end in (-oo, oo)] == [0, 0]
    assert abs(float(Phi(1)) - 0.841344746068543) < 1e-14 and abs(float(phi(0)) - 0.398942280401433) < 1e-14
    assert sympy.latex(Phi(v) * phi(v) ** 2) == r"\Phi\left(v\right) \varphi^{2}\left(v\right)"


# -- limits --------------------------------------------------------------------------
def test_limits():
    prove(Limit(exact(Variance(z / (1 - p))).subs(n, 2).doit(), p, 0), 0)
    assert sympy.limit(p / (1 - p), p, 1, "-") == oo
    assert exact(Variance(z)).subs(p, 1) == 0 and exact(Variance(z)).subs(p, 0) == 0


# -- printing ------------------------------------------------------------------------
def test_textbook_signs():
    for expression, shown in [
        (-p / (p - 1), "p/(1 - p)"), (p - p**2, "p*(1 - p)"), ((p - 1) ** 2, "(1 - p)**2"),
        (-p * (p - 1) * (2 * p - 1), "p*(1 - p)*(2*p - 1)"), (2 * p - 2, "-2*(1 - p)"), ((1 - p) ** T, "(1 - p)**T"),
    ]:
        assert str(textbook(expression)) == shown
        assert simplify(textbook(expression) - expression) == 0


PLAIN = """\
Variance(Sum(m[j]*x[j], (j, 1, n))/(1 - p))
  = Sum(Covariance(m[j], m[k])*x[j]*x[k]/(1 - p)**2, (j, 1, n), (k, 1, n))    [linearity]
  = Sum(p*KroneckerDelta(j, k)*x[j]*x[k]/(1 - p), (j, 1, n), (k, 1, n))    [independence]
  = p*Sum(x[j]**2, (j, 1, n))/(1 - p)    [only equal indices remain]
  for 0 < p < 1"""
LATEX = r"""$\displaystyle \begin{aligned}
\operatorname{Var}\left(\frac{\sum_{j=1}^{n} {m}_{j} {x}_{j}}{1 - p}\right) &= \
\sum_{\substack{1 \leq j \leq n\\1 \leq k \leq n}} \
\frac{\operatorname{Cov}\left({m}_{j}, {m}_{k}\right) {x}_{j} {x}_{k}}{\left(1 - p\right)^{2}}\\[4pt]
&\qquad \small\text{(linearity)}\\[4pt]
&= \sum_{\substack{1 \leq j \leq n\\1 \leq k \leq n}} \frac{p}{1 - p} \delta_{j k} {x}_{j} {x}_{k}\
\quad \small\text{(independence)}\\[4pt]
&= \frac{p}{1 - p} \sum_{j=1}^{n} {x}_{j}^{2}\quad \small\text{(only equal indices remain)}\\[4pt]
&\small\text{for } 0 < p < 1
\end{aligned}$""".replace("\\\n", "")


def test_only_moments_of_several_draws_are_said_to_need_independence():
    draws = Product(m[j], (j, 1, n))
    for start, reason in [(Expectation(m[j]), "law of the noise"), (Variance(m[j]), "law of the noise"),
                          (Expectation(m[1]**2 * x[1]), "law of the noise"), (Expectation(m[1]*m[2]), "independence"),
                          (Covariance(m[j], m[k]), "independence"), (Expectation(draws), "independence")]:
        assert [why for _, why in derive(start, by_law).lines[1:]] == [reason], start


def test_a_chain_as_text_and_as_latex():
    chain = derive(Variance(Sum(m[j] * x[j], (j, 1, n)) / (1 - p)), linear, by_law, collapse)
    assert repr(chain) == PLAIN
    assert chain._repr_latex_() == LATEX


def test_a_greek_letter_with_a_dash_as_latex():
    limit = Symbol("alpha'")
    assert repr(prove(limit**2 - 1, (limit - 1) * (limit + 1))).startswith("alpha'**2 - 1 = ")
    assert r"\alpha'^{2} - 1" in prove(limit**2 - 1, (limit - 1) * (limit + 1))._repr_latex_()


def test_reasons_of_the_author():
    long = "the masks of different units are independent, 100% of them"
    chain = derive(Expectation(z), (exact, long))
    assert chain.lines[1][1] == long
    assert r"&\qquad \small\text{(the masks" in chain._repr_latex_() and r"100\% of them" in chain._repr_latex_()
    assert r"(\} = 5 \$\textbackslash{}text\{)" in derive(Expectation(z), (exact, r"} = 5 $\text{"))._repr_latex_()


SHOW = """
from sympy import *
from dropoutlib.symbolic import *
p = symbols("p")
j, k, n, a, b = symbols("j k n a b", integer=True, positive=True)
x, W, m = IndexedBase("x"), IndexedBase("W"), Noise(Bernoulli("m", 1 - p))
unit = Sum(W[a, j]*m[j]*x[j], (j, 1, n))
for chain in (derive(Variance(Sum(m[j]*x[j], (j, 1, n))/(1 - p)), linear, by_law, collapse),
              derive(Covariance(unit, unit.subs(a, b)), linear, by_law, collapse)):
    print(chain); print(chain._repr_latex_())
print(exact(Expectation(unit**2))); print(cumulant(unit, 3))
"""


def test_output_is_the_same_for_every_hash_seed():
    outputs = {subprocess.run([sys.executable, "-c", SHOW], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                              capture_output=True, text=True).stdout for seed in ("0", "1", "2024")}
    assert len(outputs) == 1


def test_prove_says_how():
    assert repr(prove(p / (1 - p) + 1, 1 / (1 - p))) == "p/(1 - p) + 1 = 1/(1 - p)\n  for p != 1"
    assert "[at n = 2]" in repr(prove(Variance(z), exact(Variance(z)), n=2))
    compared = prove(p + 1, 1 + p, at=[{p: 0.3}])
    assert "p + 1 ~ p + 1    [numerically at p = 0.3, to 1e-12]" in repr(compared)
    assert "[numerically at 1 point, to 1e-12]" in repr(prove(x[1], x[1], at=[{x: [1.0]}]))
    assert r"\approx" in compared._repr_latex_() and "&= " not in compared._repr_latex_()
    with pytest.raises(Unproved, match=r"the difference is 1 - 2\*p"):
        prove(p, 1 - p)
    with pytest.raises(Unproved):
        prove(Variance(z), p * squares, n=2)
    with pytest.raises(ValueError, match="at least one point"):
        prove(p, p, at=[])


def test_disprove():
    shown = disprove(p * (1 - p), Variance(m[1] / (1 - p)), {p: Rational(1, 2)})
    assert repr(shown) == "p*(1 - p) = 0.25 != 1 = Variance(m[1]/(1 - p))    [at p = 1/2]"
    assert r"\neq" in shown._repr_latex_() and r"p = \frac{1}{2}" in shown._repr_latex_()
    with pytest.raises(Unproved, match="no counterexample"):
        disprove(p * (1 - p), Variance(m[1]), {p: 0.3})


@pytest.mark.parametrize(("claim", "truth", "text"), [
    (0, p, "0 != 0.125 = p"),
    (p, 1, "p = 0.125 != 1"),
    (123456, 0.123456, "123456 != 0.123456"),
    (Rational(1, 2), Rational(1, 3), "1/2 = 0.5 != 0.3333 ~ 1/3"),
    (p / 3, p / 7, "p/3 ~ 0.04167 != 0.01786 ~ p/7"),
    (Rational(1, 10) + Rational(2, 10) * (p + Rational(7, 8)), p, "p/5 + 11/40 = 0.3 != 0.125 = p"),
    (p + Rational(1, 10**6), p, "p + 1/1000000 = 0.125001 != 0.125 = p"),
])
def test_a_counterexample_repeats_no_number_and_says_what_is_rounded(claim, truth, text):
    shown = disprove(claim, truth, {p: Rational(1, 8)})
    assert repr(shown) == text + "    [at p = 1/8]"
    first, second = shown._repr_latex_().split("\\\\[4pt]\n")[:2]
    wrong, right = text.split(" != ")
    for line, part in ((first, wrong), (second, right)):
        assert (r"\approx" in line) is ("~" in part) and (" = " in line) is (" = " in part)
        assert part.split(" ")[0 if line is second else -1] in line


# -- numbers -----------------------------------------------------------------------------
def test_number_reads_arrays_from_one():
    values = {p: 0.3, n: 3, x: [1.0, -2.0, 3.0], w: (0.5, 1.0, 2.0)}
    direct = 0.3 * 0.7 * (0.5**2 + 2**2 + 6**2)
    assert number(exact(Variance(z)), values) == pytest.approx(direct, rel=1e-14)
    assert number(Variance(z), values) == pytest.approx(direct, rel=1e-13)           # enumerated
    assert number(Sum(W[a, j] * j, (j, 1, n)), {n: 2, a: 2, W: [[9, 9], [3, 4]]}) == 11
    assert number(z, {**values, m: [1, 0, 1]}) == 6.5
    assert number(bias[b] + b, {b: 2, bias: [1, 5]}) == 7                            # index b, array b
    assert number(Expectation(Max(0, z)), values) > max(0, number(exact(Expectation(z)), values))
    assert number(Product(p + j, (j, 1, n)), {p: 0.5, n: 2}) == 3.75
    assert number(Phi(0) + phi(p), {p: 0}) == pytest.approx(0.5 + 0.3989422804014327, rel=1e-15)


def test_number_takes_tensors():
    torch = pytest.importorskip("torch")
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert number(Sum(W[a, j], (j, 1, n)), {n: weight.shape[1], a: torch.tensor(2), W: weight}) == 7


@pytest.mark.parametrize(("expression", "values", "message"), [
    (squares, {n: 2, x: [1, 2]}, "no value for w"),
    (p * n, {n: 2}, "no value for p"),
    (squares, {n: 3, x: [1, 2], w: [1, 2, 3]}, "x has 2 entries along axis 0"),
    (x[j], {x: [1, 2]}, "no value for j.*index"),
    (x[j], {x: [1, 2], j: 0}, r"needed at 0 \(counted from 1\)"),
    (x[1, 2], {x: [1, 2]}, "x has 1 axes"),
    (W[1], {W: [[1, 2]]}, "more axes"),
    (p, {p: [1]}, "scalar"),
    (m[1], {p: 0.1}, "noise outside"),
    (sqrt(p), {p: -1}, "not a real number"),
    (p / (1 - p), {p: 1}, r"p/\(1 - p\) is not a real number at p = 1"),
    (1 / sqrt(p), {"p": 0.0}, "is not a real number at p = 0.0"),
    (exp(p), {p: 1e9}, "is not a real number at p = 1000000000.0"),
    (sympy.nan, {}, "not a real number"),
    (Variance(m[1]), {p: 2}, "the law of m needs probabilities from 0 to 1, got"),
    (Expectation(m[1]), {p: -0.1}, "the law of m needs probabilities from 0 to 1, got"),
    (Variance(z), {p: 1.5, n: 1, w: [1], x: [1]}, "probabilities from 0 to 1"),
    (Variance(m[1]), {p: float("nan")}, "p = nan is not a real number"),
])
def test_number_names_what_is_wrong(expression, values, message):
    with pytest.raises(ValueError, match=message):
        number(expression, values)


def test_number_integrates_what_is_more_than_a_polynomial():
    assert number(Expectation(exp(normal_input[1])), {mu: 0, s: 1}) == pytest.approx(1.6487212707001282, rel=1e-15)
    smooth = Expectation(1 / (1 + exp(-t * normal_input[1] * m[1])))
    assert number(smooth, {mu: 0, s: 1, t: 2, p: 0.25}) == pytest.approx(0.5, rel=1e-15)


def test_the_ends_of_the_range_of_a_probability_are_probabilities():
    assert [number(Expectation(m[1]), {p: end, "unused": 5}) for end in (0, 1, 0.0, 1.0)] == [1, 0, 1, 0]
    tenth = Noise(Bernoulli("m", sum([p] * 10)))        # 0.1 ten times is not 1 in floating point
    assert number(Variance(tenth[1]), {p: 0.1}) == pytest.approx(0, abs=1e-12)


def test_points_where_a_side_has_no_value_are_refused():
    with pytest.raises(ValueError, match="the point lies outside of 1 - p != 0"):
        prove(p / (1 - p), p, at=[{p: 1}])
    with pytest.raises(ValueError, match="p is declared positive, got -1"):
        disprove(p, 1, {p: -1})
    with pytest.raises(ValueError, match="outside of p < 1/2"):
        prove(p, p, at=[{p: 0.7}], where=p < Rational(1, 2))


def test_moments_of_sympy_point_to_those_for_families():
    for mean in (sympy.stats.E, sympy.stats.variance):
        with pytest.raises(TypeError, match=r"Expectation, Variance and Covariance of dropoutlib\.symbolic"):
            exact(mean(m[1]))


def test_enumeration_refuses():
    with pytest.raises(ValueError, match="the size n"):
        enumerate_masks(Variance(z))
    assert enumerate_masks(Variance(z), n=20) != 0      # a polynomial: its moments do for 2^20 outcomes
    with pytest.raises(ValueError, match="outcomes"):
        enumerate_masks(Expectation(Max(0, z)), n=20)
    with pytest.raises(ValueError, match="needs a number"):
        enumerate_masks(Covariance(m[j], m[k]))
    with pytest.raises(TypeError, match="random variable"):
        Noise(p)
    with pytest.raises(ValueError, match="by must be"):
        derive(z, by="faith")


# -- documentation -------------------------------------------------------------------------
def examples():      # conftest.py runs each as if it were pasted alone
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [dropoutlib.symbolic.__name__,
             *(part.name for part in pkgutil.iter_modules(dropoutlib.symbolic.__path__, "dropoutlib.symbolic."))]
    return [test for name in names for test in finder.find(importlib.import_module(name), globs={}) if test.examples]


def test_public_functions_have_an_example():
    found = {example.name.rpartition(".")[2] for example in examples()}
    own = {name for name in dropoutlib.symbolic.__all__
           if getattr(dropoutlib.symbolic, name).__module__.startswith("dropoutlib.")}
    assert own - found == {"Counterexample", "Derivation", "Identity", "NotAClaim", "Unproved"}     # not to be called


def test_the_page_shows_no_docstring_of_sympy(tmp_path):
    application = pytest.importorskip("sphinx.application")
    page = (Path(__file__).parents[1] / "book/reference/api/symbolic.md").read_text(encoding="utf-8")
    directive = re.search(r"```\{eval-rst\}\n(.*?)```", page, re.DOTALL)
    assert directive
    (tmp_path / "conf.py").write_text('extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]\n', encoding="utf-8")
    (tmp_path / "index.rst").write_text("Page\n====\n\n" + directive[1], encoding="utf-8")
    with pytest.importorskip("sphinx.util.docutils").docutils_namespace():     # leaves no directive to other tests
        application.Sphinx(tmp_path, tmp_path, tmp_path / "out", tmp_path / "trees", "text", status=None,
                           warning=None).build()
    text = (tmp_path / "out/index.txt").read_text(encoding="utf-8")
    assert "gaussian_mean" in text and "standard normal density" in text
    for of_sympy in ("fdiff", "eval(", "canonical form", "ArgumentIndexError"):
        assert of_sympy not in text


def test_a_line_that_holds_at_some_sizes_is_not_printed_as_one_for_all():
    n, j = symbols("n j", integer=True, positive=True)
    m = Noise(Bernoulli("m", 1 - p))
    false = n * p * (1 - p) + (n - 1) * (n - 2) * (n - 3)
    shown = repr(derive(Variance(Sum(m[j], (j, 1, n))), false, by="enumeration", n=(1, 2, 3)))
    assert "at n = 1, 2, 3" in shown and "n = 1, 2, ..." not in shown
