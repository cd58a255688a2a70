"""What is Concrete dropout's own; the contract of every layer is in tests/contract."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binom
from torch import nn

from dropoutlib import ConcreteDropout, ConcreteDropout2d, DropConnectLinear, functional, kl_divergence


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def keep_factor(u: float, p: float, temperature: float) -> float:
    """(1 - z)/(1 - p) as it is defined."""
    return (1 - 1 / (1 + math.exp(-(logit(p) + logit(u)) / temperature))) / (1 - p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_mask_is_that_of_the_definition(p: float, temperature: float, device: str) -> None:
    uniform = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64, device=device)
    x = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64, device=device)
    p_logit = torch.tensor(logit(p), dtype=torch.float64, device=device)
    y = functional.concrete_dropout(x, p_logit, temperature, noise=uniform)
    expected = [value * keep_factor(u, p, temperature) for value, u in zip(x.tolist(), uniform.tolist(), strict=True)]
    assert y.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_more_than_half_is_dropped_with_probability_p(temperature: float, device: str) -> None:
    torch.manual_seed(0)
    p, size = 0.3, 200_000
    y = functional.concrete_dropout(torch.ones(size, device=device), torch.tensor(logit(p), device=device), temperature)
    dropped = int((y * (1 - p) < 0.5).sum())
    assert min(binom.cdf(dropped, size, p), binom.sf(dropped - 1, size, p)) > 1e-9


@pytest.mark.parametrize(("p", "temperature"), [(0.1, 0.1), (0.3, 0.1), (0.3, 2 / 3)])
def test_the_mean_of_what_is_drawn_is_that_of_the_integral(p: float, temperature: float) -> None:
    torch.manual_seed(0)
    mean, square = (quad(lambda u, k=k: keep_factor(u, p, temperature) ** k, 0, 1, points=[1 - p], limit=400)[0]
                    for k in (1, 2))
    draws = functional.concrete_dropout(torch.ones(400_000, dtype=torch.float64), torch.tensor(logit(p)), temperature)
    assert abs(draws.mean() - mean) < 6.5 * math.sqrt((square - mean**2) / len(draws))
    assert abs(mean - 1) > 1e-4  # inverted scaling is not exact


def test_the_error_of_the_test_rule_is_that_of_the_documentation() -> None:
    means = [quad(keep_factor, 0, 1, args=(p / 100, 0.1), points=[1 - p / 100], limit=400)[0] for p in range(1, 51)]
    assert 0.0020 < max(abs(mean - 1) for mean in means) < 0.0021


def test_it_becomes_a_bernoulli_mask() -> None:
    uniform = torch.tensor([0.1, 0.69, 0.71, 0.9])
    y = functional.concrete_dropout(torch.ones(4), torch.tensor(logit(0.3)), 1e-4, noise=uniform)
    torch.testing.assert_close(y, torch.tensor([1.0, 1.0, 0.0, 0.0]) / 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_ends_of_the_uniform_law_and_of_p_are_finite(dtype: torch.dtype, device: str) -> None:
    for value in (-60.0, 0.0, 60.0) if dtype == torch.float32 else (-9.0, 0.0, 9.0):
        p_logit = torch.tensor(value, device=device, requires_grad=True)
        x = torch.ones(3, dtype=dtype, device=device, requires_grad=True)
        y = functional.concrete_dropout(x, p_logit, noise=torch.tensor([0.0, 0.5, 1.0], device=device))
        gradients = torch.autograd.grad(y[1:].float().sum(), [x, p_logit])
        assert not y[1:].isnan().any() and not any(gradient.isnan().any() for gradient in gradients)


def test_kl_is_that_of_the_paper_and_stays_finite() -> None:
    """Per input the mixture of a row of mean weights M = W/(1 - p) with zero; up to a constant, (1 - p)|M|^2 - H."""
    layer = ConcreteDropout(nn.Linear(4, 3).double(), p=0.2, length_scale=0.7)
    p, squares = 0.2, (layer.module.weight / (1 - 0.2)).square().sum().item()
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert layer.kl().item() == pytest.approx(0.7**2 / 2 * (1 - p) * squares - 4 * entropy)
    for value in (-200.0, 200.0):
        with torch.no_grad():
            layer.p_logit.fill_(value)
        gradient = torch.autograd.grad(layer.kl(), layer.p_logit)[0]
        assert layer.kl().isfinite() and gradient.isfinite()


def test_kl_against_quadrature_of_the_mixture() -> None:
    """One weight: q = p N(0, s^2) + (1 - p) N(m, s^2) against N(0, 1/l^2), for small s; the constant drops out."""
    def divergence(p, m, s, length_scale):
        def normal(w, mean, std):
            return math.exp(-((w - mean) / std) ** 2 / 2) / (std * math.sqrt(2 * math.pi))

        def integrand(w):
            q = p * normal(w, 0, s) + (1 - p) * normal(w, m, s)
            return q * (math.log(q) - math.log(normal(w, 0, 1 / length_scale))) if q > 1e-300 else 0.0

        return sum(quad(integrand, centre - 9 * s, centre + 9 * s, limit=200)[0] for centre in (0, m))

    differences = []
    for p, m in ((0.2, 0.8), (0.6, 1.5)):
        layer = ConcreteDropout(nn.Linear(1, 1).double(), p=p, length_scale=1.3)
        with torch.no_grad():
            layer.module.weight.fill_(m * (1 - p))
        differences.append(layer.kl().item() - divergence(p, m, 0.01, 1.3))
    assert differences[0] == pytest.approx(differences[1], abs=1e-8)


def test_inputs_are_counted_for_convolutions_and_groups() -> None:
    for module, inputs in ((nn.Linear(6, 2), 6), (nn.Conv2d(6, 4, 3), 6), (nn.Conv2d(6, 4, 3, groups=2), 6)):
        layer = ConcreteDropout(module, p=0.5)
        entropy = math.log(2)
        expected = module.weight.square().sum().item() - inputs * entropy  # 1/(2 (1 - p)) = 1
        assert layer.kl().item() == pytest.approx(expected, rel=1e-5)


def test_p_is_learned_and_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    layer, x = ConcreteDropout(nn.Linear(4, 3).double()), torch.randn(6, 4, dtype=torch.float64)
    uniform = torch.rand(6, 4, dtype=torch.float64)

    def function(p_logit):
        return functional.concrete_dropout(x, p_logit, noise=uniform)

    assert torch.autograd.gradcheck(function, layer.p_logit, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, layer.p_logit)
    (layer(x).square().mean() + kl_divergence(layer) / 100).backward()
    assert layer.p_logit.grad.abs() > 0
    assert layer.p.item() == pytest.approx(0.1)


def test_one_draw_a_feature_map(device: str) -> None:
    torch.manual_seed(0)
    layer = ConcreteDropout2d(nn.Conv2d(8, 8, 1, groups=8, bias=False), p=0.5).to(device)
    with torch.no_grad():
        layer.module.weight.fill_(1.0)
    y = layer(torch.ones(4, 8, 5, 3, device=device))
    assert (y == y[..., :1, :1]).all() and len(y[..., 0, 0].unique()) > 16
    assert layer(torch.ones(8, 5, 3, device=device)).shape == (8, 5, 3)
    assert layer(torch.ones(2, 8, 4, 4, device=device).to(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last)
    for shape in ((8,), (4, 8), (1, 4, 8, 5, 3)):
        with pytest.raises(RuntimeError, match=r"\(N, C, H, W\).*shape"):
            layer(torch.ones(shape, device=device))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d])
def test_every_input_has_one_coin(kind) -> None:
    layer = ConcreteDropout(kind(6, 4, **({} if kind is nn.Linear else {"kernel_size": 3, "groups": 2})), p=0.5)
    nn.init.zeros_(layer.module.weight)
    assert layer.kl().item() == pytest.approx(-6 * math.log(2))


def test_the_divergence_of_half_precision_is_finite() -> None:
    layer = ConcreteDropout(nn.Linear(600, 600), p=0.5)
    nn.init.ones_(layer.module.weight)
    expected = layer.kl()
    assert expected > torch.finfo(torch.float16).max
    torch.testing.assert_close(layer.half().kl(), expected)


def test_a_noisy_module_draws_from_the_same_generator() -> None:
    layer, x = ConcreteDropout(DropConnectLinear(8, 4)), torch.ones(3, 8)
    before = torch.get_rng_state()
    first, second = (layer(x, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())


def test_reset_gives_p_back_its_start() -> None:
    layer = ConcreteDropout(nn.Linear(2, 2), p=0.2)
    nn.init.constant_(layer.p_logit, 3.0)
    layer.reset_parameters()
    assert layer.p.item() == pytest.approx(0.2)


def test_a_logit_may_be_a_number_but_not_larger_than_the_input() -> None:
    uniform = torch.rand(3)
    assert torch.equal(functional.concrete_dropout(torch.ones(3), 0.5, noise=uniform),
                       functional.concrete_dropout(torch.ones(3), torch.tensor(0.5), noise=uniform))
    with pytest.raises(ValueError, match=r"p_logit.*\(3,\).*\(5, 3\)"):
        functional.concrete_dropout(torch.ones(3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"p_logit.*\(3,\).*\(7,\)"):
        functional.concrete_dropout(torch.ones(3), torch.zeros(7))
    with pytest.raises(TypeError, match="p_logit has to be a real number, but got 'a'"):
        functional.concrete_dropout(torch.ones(3), "a")
    with pytest.raises(ValueError, match="between 0 and 1"):
        functional.concrete_dropout(torch.ones(3), 0.0, noise=torch.tensor([0.5, 1.5, 0.5]))


BAD = {
    "embedding": (lambda: ConcreteDropout(nn.Embedding(2, 2)), TypeError, "in_features.*Embedding"),
    "temperature no number": (lambda: ConcreteDropout(nn.Linear(2, 2), temperature="a"), TypeError, "temperature.*'a'"),
    "no weight": (lambda: ConcreteDropout(nn.ReLU()), TypeError, "weight.*ReLU"),
    "complex": (lambda: ConcreteDropout(nn.Linear(2, 2, dtype=torch.complex64)), TypeError, "real weight.*complex64"),
    "sequential": (lambda: ConcreteDropout(nn.Sequential(nn.Linear(2, 2))), TypeError, "weight.*Sequential"),
    "batch norm": (lambda: ConcreteDropout(nn.BatchNorm1d(2)), TypeError, "weight.*BatchNorm1d"),
    "p zero": (lambda: ConcreteDropout(nn.Linear(2, 2), p=0), ValueError, "excluded.*0"),
    "p nan": (lambda: ConcreteDropout(nn.Linear(2, 2), p=math.nan), ValueError, "probability.*nan"),
    "temperature": (lambda: ConcreteDropout(nn.Linear(2, 2), temperature=0), ValueError, "temperature.*0"),
    "length scale": (lambda: ConcreteDropout(nn.Linear(2, 2), length_scale=-1), ValueError, "length_scale.*-1"),
}


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, words) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_the_parameters_of_the_module_keep_their_place() -> None:
    layer = ConcreteDropout(nn.Linear(4, 3), p=0.25)
    assert list(layer.state_dict()) == ["p_logit", "module.weight", "module.bias"]
    x = torch.randn(2, 4)
    assert torch.equal(layer.eval()(x), layer.module(x))
    assert "p=0.25" in repr(layer)


def test_p_can_be_set_and_an_old_state_loads() -> None:
    layer, other = (ConcreteDropout(nn.Linear(4, 3)) for _ in range(2))
    layer.p = 0.3
    assert layer.p.item() == pytest.approx(0.3) and "p=0.3," in repr(layer)
    state = layer.state_dict()
    other.load_state_dict({**state, "p_logit": state["p_logit"].squeeze()})
    assert torch.equal(other.p_logit, layer.p_logit)
    with pytest.raises(ValueError, match="1"):
        layer.p = 1.0


@pytest.mark.parametrize("module", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1), nn.Conv3d(4, 3, 1)], ids=repr)
def test_maps_are_those_of_images(module):
    with pytest.raises(TypeError, match="4 axes.*" + type(module).__name__):
        ConcreteDropout2d(module)


def test_a_wrapper_in_evaluation_draws_what_the_layer_in_it_draws():
    layer = ConcreteDropout(DropConnectLinear(8, 5)).eval()
    layer.module.train()
    x = torch.randn(2, 8)
    noise = layer.draw(x, generator=torch.Generator().manual_seed(0))
    assert noise.own is None
    assert torch.equal(layer(x, noise=noise), layer(x, generator=torch.Generator().manual_seed(0)))


def test_a_length_scale_that_is_assigned_later_is_checked() -> None:
    layer = ConcreteDropout(nn.Linear(3, 2))
    layer.length_scale = -0.1
    with pytest.raises(ValueError, match=r"length_scale has to be .* but got -0\.1"):
        layer.kl()
