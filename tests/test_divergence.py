"""Kullback-Leibler terms, judged by arbitrary precision and by quadrature."""

import math

import mpmath
import pytest
import torch
from scipy.integrate import quad
from scipy.special import dawsn
from torch import nn

import dropoutlib
from dropoutlib import divergence
from dropoutlib.divergence import (
    kingma_kl,
    kl_divergence,
    log_uniform_kl,
    log_uniform_kl_at,
    molchanov_kl,
    molchanov_kl_at,
)

ALPHAS = [math.exp(k) for k in range(-18, 19, 2)] + [1 / (2 * mean) for mean in (5.0, 17.9, 18.1, 35.9, 36.1)]


def hypergeometric(alpha):
    """-log(alpha)/2 + E log|eps| for eps ~ N(1, alpha), and its limit at infinity added."""
    with mpmath.workdps(40):
        alpha = mpmath.mpf(alpha)
        series = mpmath.hyp2f2(1, 1, mpmath.mpf(3) / 2, 2, -1 / (2 * alpha)) / alpha
        mean_log = (mpmath.log(alpha) - mpmath.euler - mpmath.log(2) + series) / 2
        return float(-mpmath.log(alpha) / 2 + mean_log + (mpmath.euler + mpmath.log(2)) / 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_log_uniform_kl_is_exact(dtype, tolerance, device):
    alpha = torch.tensor(ALPHAS, dtype=dtype, device=device)
    expected = [hypergeometric(value) for value in alpha.tolist()]
    assert log_uniform_kl(alpha).tolist() == pytest.approx(expected, rel=tolerance)


def test_single_precision_everywhere(device):
    """Value and derivative by log(alpha): polynomials, against double precision."""
    found = []
    for dtype in (torch.float32, torch.float64):
        log_alpha = torch.linspace(-80, 80, 4001, device=device).to(dtype).requires_grad_()
        kl = log_uniform_kl_at(log_alpha)
        found.append((kl, *torch.autograd.grad(kl.sum(), log_alpha)))
    for one, other in zip(*found, strict=True):
        assert ((one.double() - other) / other).abs().max() < 1e-5     # 80 in float32 has an error of 4e-6


@pytest.mark.parametrize("alpha", [0.05, 1.0, 5.0])
def test_log_uniform_kl_is_the_divergence(alpha):
    """By its definition: the mean of log q(w) - log p(w), with p(w) = 1/|w|, up to a constant."""
    def definition(alpha):
        std = math.sqrt(alpha)

        def integrand(w):
            density = math.exp(-((w - 1) / std) ** 2 / 2) / (std * math.sqrt(2 * math.pi))
            return density * (math.log(density) + math.log(abs(w))) if density > 0 and w != 0 else 0.0

        return quad(integrand, 1 - 14 * std, 1 + 14 * std, points=[0.0, 1.0], limit=500)[0]

    difference = log_uniform_kl(torch.tensor([alpha, 2.0], dtype=torch.float64))
    assert (difference[0] - difference[1]).item() == pytest.approx(definition(alpha) - definition(2.0), abs=1e-7)


def test_the_derivative_is_dawsons_function():
    alpha = torch.tensor(ALPHAS, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_uniform_kl(alpha).sum(), alpha)
    argument = [1 / math.sqrt(2 * value) for value in ALPHAS]
    expected = [-dawsn(t) * t / value for t, value in zip(argument, ALPHAS, strict=True)]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-12)
    assert (gradient < 0).all()


def test_derivatives_of_every_kind():
    alpha = torch.tensor([0.01, 0.02, 0.3, 1.0, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_uniform_kl, alpha, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(log_uniform_kl, alpha)
    mapped = torch.vmap(torch.func.grad(log_uniform_kl))(alpha.detach())
    torch.testing.assert_close(mapped, torch.autograd.grad(log_uniform_kl(alpha).sum(), alpha)[0])
    compiled = torch.compile(log_uniform_kl, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(alpha), log_uniform_kl(alpha))
    gradients = [torch.autograd.grad(function(alpha).sum(), alpha)[0] for function in (compiled, log_uniform_kl)]
    torch.testing.assert_close(*gradients)


def test_half_precision_and_empty():
    assert log_uniform_kl(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert log_uniform_kl(torch.empty(0)).shape == (0,)


def test_the_errors_of_the_approximations():
    alpha = torch.logspace(-4, 0, 400, dtype=torch.float64)
    error = (kingma_kl(alpha) - log_uniform_kl(alpha)).abs()
    assert 0.02 < error.max() < 0.05 and error[0] < 1e-3
    alpha = torch.logspace(-300, 300, 60001, dtype=torch.float64)
    error = (molchanov_kl(alpha) - log_uniform_kl(alpha)).abs()
    assert 0.0093 < error.max() < 0.0094 and 5e-4 < error[0] < 6e-4


def test_the_smallest_and_the_largest_alpha():
    """The logarithm of alpha may be given where alpha itself is no number of the type, and then it is a line."""
    for dtype in (torch.float64, torch.float32):
        log_alpha = torch.tensor([-1500.0, -200.0, -40.0, 200.0, math.inf], dtype=dtype, requires_grad=True)
        kl, fit = log_uniform_kl_at(log_alpha), molchanov_kl_at(log_alpha)
        expected = [-log / 2 + (float(mpmath.euler) + math.log(2)) / 2 for log in (-1500, -200, -40)]
        assert kl.tolist() == pytest.approx([*expected, 0, 0], abs=1e-80 if dtype is torch.float64 else 1e-4)
        assert ((kl - fit).abs() < 6e-4).all()
        (slope,) = torch.autograd.grad(kl[:4].sum(), log_alpha)
        assert slope.tolist() == pytest.approx([-0.5, -0.5, -0.5, 0, 0], abs=1e-6)


@pytest.mark.parametrize("make", [dropoutlib.SparseVariationalLinear, dropoutlib.VariationalDropoutLinear])
@pytest.mark.parametrize("number", [-math.inf, -1e3, -60.0, -41.0, -20.0, -9.0, 0.0, 9.0, 39.0, 60.0, 1e3])
def test_a_divergence_is_that_of_the_noise_which_is_drawn(make, number):
    """Alpha is read off the variance of the output, so that noise and divergence cannot have other bounds."""
    layer = make(1, 1, bias=False, dtype=torch.float64)
    learned = layer.log_sigma2 if hasattr(layer, "log_sigma2") else layer.log_alpha
    nn.init.constant_(learned, number)
    for weight in (3.0, -0.01):
        nn.init.constant_(layer.weight, weight)
        alpha = layer.variance(torch.ones(1, dtype=torch.float64)) / weight**2
        options = {"exact": True} if hasattr(layer, "keep") else {}
        torch.testing.assert_close(layer.kl(**options), log_uniform_kl(alpha).sum(), rtol=1e-9, atol=0)


def test_the_terms_of_a_model_are_summed_once_each():
    layer = dropoutlib.VariationalDropoutLinear(3, 3)
    concrete = dropoutlib.ConcreteDropout(nn.Linear(3, 2))
    model = nn.Sequential(layer, nn.ReLU(), layer, concrete)
    torch.testing.assert_close(kl_divergence(model), layer.kl() + concrete.kl())
    torch.testing.assert_close(kl_divergence(layer), layer.kl())
    kl_divergence(model).backward()
    assert layer.log_alpha.grad is not None and concrete.p_logit.grad is not None


TIED = {
    "sparse": (lambda: dropoutlib.SparseVariationalLinear(3, 3), ("weight",), ("log_sigma2",)),
    "a convolution": (lambda: dropoutlib.SparseVariationalConv1d(3, 3, 1), ("weight",), ("log_sigma2",)),
    "one alpha": (lambda: dropoutlib.VariationalDropoutLinear(3, 3), ("weight",), ("log_alpha",)),
    "a wrapper": (lambda: dropoutlib.ConcreteDropout(nn.Linear(3, 3)), ("module.weight",), ("p_logit",)),
    "units": (lambda: dropoutlib.LogNormalDropout(3), ("mu",), ("log_s",)),
}


def tie(one, other, names):
    for name in names:
        place, _, last = name.rpartition(".")
        setattr(other.get_submodule(place), last, one.get_parameter(name))


@pytest.mark.parametrize(("make", "weights", "noise"), TIED.values(), ids=TIED)
def test_a_posterior_that_layers_share_counts_once(make, weights, noise):
    """Biases may be the layers' own; one posterior is one with all that says what it is."""
    for shared, times in ((weights + noise, 1), (weights, 2), (noise, 2), ((), 2)):
        model = nn.Sequential(make(), nn.ReLU(), make())
        tie(model[0], model[2], shared)
        torch.testing.assert_close(kl_divergence(model), model[0].kl() + (times - 1) * model[2].kl())


def test_a_posterior_that_is_shared_and_parametrized_counts_once():
    model = nn.Sequential(*[dropoutlib.SparseVariationalLinear(3, 3) for _ in range(3)])
    for layer in (model[0], model[1]):
        nn.utils.parametrizations.weight_norm(layer)
    tie(model[0], model[1], ("log_sigma2", "parametrizations.weight.original0", "parametrizations.weight.original1"))
    tie(model[0], model[2], ("log_sigma2",))
    torch.testing.assert_close(kl_divergence(model), model[0].kl() + model[2].kl())


def test_a_shared_posterior_counts_once_in_a_compiled_loss_and_in_a_function():
    model = nn.Sequential(*[dropoutlib.SparseVariationalLinear(3, 3) for _ in range(2)])
    tie(model[0], model[1], ("weight", "log_sigma2"))
    compiled = torch.compile(kl_divergence, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(model), model[0].kl())
    term = nn.Sequential(model)
    term.forward = lambda: kl_divergence(model)
    torch.testing.assert_close(torch.func.functional_call(term, dict(term.named_parameters()), ()), model[0].kl())


def test_terms_without_parameters_all_count():
    class One(nn.Module):
        def kl(self):
            return torch.ones(())

    assert kl_divergence(nn.Sequential(One(), One())) == 2


def test_a_noisy_module_in_a_noisy_module_counts_too():
    inner = dropoutlib.VariationalDropoutLinear(3, 2)
    outer = dropoutlib.ConcreteDropout(inner)
    torch.testing.assert_close(kl_divergence(outer), outer.kl() + inner.kl())


def test_what_is_no_variance_is_not_hidden():
    value = log_uniform_kl(torch.tensor([-1.0, math.nan, 0.0, 1.0]))
    assert value[:2].isnan().all() and value[2] == math.inf
    torch.testing.assert_close(value[3], log_uniform_kl(torch.tensor(1.0)))
    with pytest.raises(RuntimeError, match=r"alpha.*int64"):
        log_uniform_kl(torch.tensor(1))
    with pytest.raises(TypeError, match=r"alpha.*float"):
        log_uniform_kl(1.0)


def test_a_term_that_is_no_tensor_is_named():
    class Half(nn.Module):
        term = 0.5

        def kl(self):
            return self.term

    for Half.term in (0.5, torch.full((2,), 0.5)):
        with pytest.raises(TypeError, match=r"kl\(\) of 1 \(Half\).*0.5"):
            kl_divergence(nn.Sequential(nn.ReLU(), Half()))
    with pytest.raises(TypeError, match=r"model.*list"):
        kl_divergence([dropoutlib.VariationalDropoutLinear(2, 2)])


def test_a_model_without_terms_is_refused():
    with pytest.raises(ValueError, match=r"Sequential.*learns its noise"):
        kl_divergence(nn.Sequential(nn.Linear(2, 2), dropoutlib.Dropout(0.5)))


class WithTerm(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.one, self.two = dropoutlib.VariationalDropoutLinear(4, 3), dropoutlib.VariationalDropoutLinear(3, 2)
        self.function = function

    def kl(self):
        return self.function(self)


@pytest.mark.parametrize("function", [lambda model: model.one.kl() + model.two.kl(), kl_divergence])
def test_a_model_with_a_term_of_its_own_is_the_sum_of_its_parts(function):
    model = WithTerm(function)
    torch.testing.assert_close(kl_divergence(nn.Sequential(model)), model.one.kl() + model.two.kl())
    assert model.kl() == kl_divergence(model)


def test_a_wrapper_and_what_it_wraps_have_both_a_term():
    wrapper = dropoutlib.ConcreteDropout(dropoutlib.VariationalDropoutLinear(4, 3))
    torch.testing.assert_close(kl_divergence(wrapper), wrapper.kl() + wrapper.module.kl())


def test_the_default_device_is_not_asked():
    divergence._rest_of_poisson_mean.cache_clear()      # as in a process that asks for the first time
    torch.set_default_device("meta")
    try:
        divergences = [log_uniform_kl(torch.tensor(ALPHAS, device="cpu")),
                       kl_divergence(dropoutlib.VariationalDropoutLinear(4, 3, device="cpu"))]
    finally:
        torch.set_default_device(None)
    assert all(torch.isfinite(kl).all() for kl in divergences)
