"""What is sparse variational dropout's own; the divergences are in test_divergence.py, the contract in tests/contract.

The judge of a variance is the Jacobian of torch's layer by its weight: an output is linear in the weights, so its
variance is the sum of sigma^2 times the squared derivative.
"""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dropoutlib import (
    SparseVariationalConv1d,
    SparseVariationalConv2d,
    SparseVariationalLinear,
    VariationalDropoutLinear,
    functional,
    kl_divergence,
)
from dropoutlib.divergence import log_uniform_kl
from dropoutlib.training import warm_up

LAYERS = {
    "Linear": (lambda **where: SparseVariationalLinear(3, 2, **where), (4, 3)),
    "Linear without bias, on sequences": (lambda **where: SparseVariationalLinear(3, 2, bias=False, **where),
                                          (2, 4, 3)),
    "Conv1d": (lambda **where: SparseVariationalConv1d(2, 4, 3, padding="same", groups=2, **where), (2, 2, 5)),
    "Conv2d": (lambda **where: SparseVariationalConv2d(2, 3, (3, 2), 2, 1, **where), (2, 2, 5, 4)),
    "Conv2d, dilated": (lambda **where: SparseVariationalConv2d(2, 3, 2, dilation=2, bias=False, **where),
                        (2, 2, 5, 4)),
    "Conv1d, circular": (lambda **where: SparseVariationalConv1d(2, 3, 3, padding=1, padding_mode="circular", **where),
                         (2, 2, 5)),
    "Conv2d, reflected": (lambda **where: SparseVariationalConv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect",
                                                                  **where), (2, 5, 4)),
}


def layer_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A layer with another variance for every weight, and an input."""
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    layer = make(dtype=dtype)
    nn.init.uniform_(layer.log_sigma2, -6.0, 0.0)
    with torch.no_grad():  # no weight close to zero
        layer.weight.copy_(torch.where(layer.weight > 0, layer.weight + 0.1, layer.weight - 0.1))
    return layer, torch.randn(shape, dtype=dtype)


def plain(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What torch's layer gives with another weight."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_noisy_weights(name: str) -> None:
    layer, x = layer_of(name)
    derivative = torch.func.jacrev(lambda weight: plain(layer, weight, x))(layer.weight.detach())
    expected = (derivative.square() * layer.log_sigma2.exp()).flatten(x.dim()).sum(-1)
    torch.testing.assert_close(layer.variance(x), expected)
    torch.testing.assert_close(layer.mean(x), plain(layer, layer.weight, x))
    for number in (-2.0, 0.0, 0.5):
        noise = torch.full(layer.mean(x).shape[1:], number)
        torch.testing.assert_close(layer(x, noise=noise), layer.mean(x) + number * expected.sqrt())


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Conv2d"])
def test_what_is_drawn_has_the_moments_and_no_covariance(name: str, device: str) -> None:
    """Outputs of one example are independent, at all positions of a map, too."""
    layer, x = layer_of(name)
    layer, count = layer.to(device), 20_000
    x = x[:1].to(device)
    y = layer(x.expand(count, *x.shape[1:])).detach().flatten(1)
    noise = (y - layer.mean(x).flatten()) / layer.variance(x).sqrt().flatten()
    assert (noise.mean(0).abs() < 6.5 / math.sqrt(count)).all()
    assert ((noise.var(0) - 1).abs() < 6.5 * math.sqrt(2 / count)).all()
    covariance = torch.cov(noise.detach().T)
    covariance.fill_diagonal_(0)
    assert (covariance.abs() < 6.5 / math.sqrt(count)).all()


@pytest.mark.parametrize("name", LAYERS)
def test_the_noise_does_not_reach_the_derivative_by_the_weight(name: str) -> None:
    """The additive trick; of the multiplicative form the derivative is noisy."""
    layer, x = layer_of(name)
    (noisy,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    (without,) = torch.autograd.grad(layer.mean(x).sum(), layer.weight)
    assert torch.equal(noisy, without)
    other = VariationalDropoutLinear(3, 2, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    (noisy,) = torch.autograd.grad(other(x).sum(), other.weight)
    assert not torch.allclose(noisy, torch.autograd.grad(other.mean(x).sum(), other.weight)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str) -> None:
    layer, x = layer_of(name)
    noise = layer.draw(x)

    def call(x: Tensor, weight: Tensor, log_sigma2: Tensor) -> Tensor:
        parameters = {"weight": weight, "log_sigma2": log_sigma2}
        return torch.func.functional_call(layer, parameters, (x,), {"noise": noise})

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), layer.weight, layer.log_sigma2))


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_loses_the_weights_that_are_mostly_noise(name: str) -> None:
    layer, x = layer_of(name)
    log_alpha = layer.log_sigma2 - 2 * layer.weight.abs().log()
    torch.testing.assert_close(layer.log_alpha, log_alpha)
    layer.threshold = log_alpha.median().item()
    assert torch.equal(layer.keep, log_alpha <= layer.threshold)  # the median itself is kept
    assert 0.2 < layer.sparsity < 0.8 and layer.sparsity == 1 - layer.keep.double().mean()
    torch.testing.assert_close(layer.eval()(x), plain(layer, layer.weight * layer.keep, x))
    nothing = plain(layer, torch.zeros_like(layer.weight), x)
    layer.threshold = log_alpha.min().item() - 1
    assert layer.sparsity == 1 and torch.equal(layer(x), nothing)
    layer.threshold = math.inf
    assert layer.sparsity == 0
    torch.testing.assert_close(layer(x), layer.mean(x))


def test_a_weight_that_is_infinite_and_dropped_leaves_nothing() -> None:
    layer = SparseVariationalLinear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 1e-30]]))
    assert layer.eval()(torch.tensor([1.0, 1e38])).item() == 2


def test_log_alpha_of_weights_that_are_zero_and_of_variances_beyond_the_bounds() -> None:
    layer = SparseVariationalLinear(5, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1e-6, 1.0, 100.0, 1.0]]))
        layer.log_sigma2.copy_(torch.tensor([[-10.0, -10.0, -1.0, -50.0, 50.0]]))
    expected = torch.tensor([-10 + 6 * math.log(100), -1.0, -40 - math.log(1e4), 40.0])
    torch.testing.assert_close(layer.log_alpha[0, 1:], expected.double())
    assert 130 < layer.log_alpha[0, 0] < math.inf
    assert layer.keep.tolist() == [[False, False, True, True, False]]
    layer.threshold = 20.0
    assert layer.keep.tolist() == [[False, True, True, True, False]]
    layer.log_alpha.sum().backward()
    assert (layer.log_sigma2.grad == 1).all()
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0, -2e6, -2, -0.02, -2]]).double())


@pytest.mark.parametrize("name", LAYERS)
def test_kl_is_the_sum_over_weights(name: str) -> None:
    layer, _ = layer_of(name)
    exact = log_uniform_kl(layer.log_sigma2.exp() / layer.weight.square()).sum()
    torch.testing.assert_close(layer.kl(exact=True), exact)
    count = layer.weight.numel()
    assert 0 < abs(layer.kl() - exact) < 0.0094 * count
    assert layer.kl().dim() == 0
    torch.testing.assert_close(kl_divergence(nn.Sequential(layer, nn.ReLU())), layer.kl())
    for way in (True, False):
        assert torch.autograd.gradcheck(lambda *_, way=way, layer=layer: layer.kl(way),
                                        (layer.weight, layer.log_sigma2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_kl_for_every_alpha(dtype: torch.dtype, tolerance: float, device: str) -> None:
    """Against arbitrary precision, where noise is all but nothing and where it is nearly all."""
    layer = SparseVariationalLinear(1, 1, bias=False, device=device, dtype=dtype)
    for weight, log_alpha in itertools.product((0.1, 3.0, -50.0), range(-30, 31, 2)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.log_sigma2, log_alpha + 2 * math.log(abs(weight)))
        mean = mpmath.exp(-log_alpha) / 2    # kappa = mean 2F2(1, 1; 3/2, 2; -mean), for a large mean its expansion
        exact = (mean * mpmath.hyp2f2(1, 1, 1.5, 2, -mean) if mean < 500 else
                 (mpmath.log(4 * mean) + mpmath.euler) / 2 - 1 / (4 * mean) - 3 / (16 * mean**2) - 5 / (16 * mean**3))
        assert layer.kl(exact=True).item() == pytest.approx(float(exact), rel=tolerance), (weight, log_alpha)
        assert abs(layer.kl().item() - exact) < 0.0094, (weight, log_alpha)


def test_the_slope_of_the_divergence() -> None:
    """It falls as the noise grows, and grows with the size of a weight: it pulls both towards a weight that is gone."""
    layer, _ = layer_of("Conv2d")
    for way in (True, False):
        of_weight, of_noise = torch.autograd.grad(layer.kl(way), (layer.weight, layer.log_sigma2))
        assert (of_noise < 0).all() and (of_weight * layer.weight > 0).all()


WEIGHTS = {torch.float16: (0.0, 1e-3, 1.0, -100.0)}  # it holds neither the outputs nor the slopes of others


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_weight_and_variance_give_finite_values_and_gradients(dtype: torch.dtype) -> None:
    weights = WEIGHTS.get(dtype, (0.0, 1e-42, 1e-30, 1e-6, 1.0, -1e4))
    for (make, shape), weight, log_sigma2 in itertools.product(
            (LAYERS["Linear"], LAYERS["Conv2d"]), weights, (
                -math.inf, -1e4, -200.0, -90.0, 0.0, 90.0, 1e4, math.inf)):
        layer = make(dtype=dtype)
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.log_sigma2, log_sigma2)
        y = layer(torch.rand(shape, dtype=dtype))
        (y.float().tanh().sum() + layer.kl() + layer.kl(exact=True)).backward()
        values = [y, layer.kl(), layer.kl(exact=True), layer.log_alpha, layer.eval()(torch.rand(shape, dtype=dtype)),
                  *(parameter.grad for parameter in layer.parameters())]
        assert all(value.isfinite().all() for value in values), (weight, log_sigma2, values)


def test_the_divergence_of_half_precision_is_finite() -> None:
    layer = SparseVariationalLinear(1024, 1024)
    expected = layer.kl()
    assert expected > torch.finfo(torch.float16).max
    torch.testing.assert_close(layer.half().kl(), expected, rtol=1e-3, atol=0)


def test_silent_inputs_have_finite_gradients(device: str) -> None:
    for name in ("Linear", "Conv1d", "Conv2d"):
        make, shape = LAYERS[name]
        layer, x = make(device=device), torch.zeros(shape, device=device, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_it_finds_the_inputs_that_matter() -> None:
    """Of twenty inputs three matter; the weights of the others are dropped, and of those three none is."""
    torch.manual_seed(0)
    x, true, steps = torch.randn(200, 20), torch.zeros(20), 400
    true[:3] = torch.tensor([1.0, -0.5, 0.25])
    layer = SparseVariationalLinear(20, 1, bias=False)
    optimizer = torch.optim.Adam(layer.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = warm_up(step, 0, steps, first=0.1, last=0.0)
        optimizer.zero_grad()
        fit = (layer(x).squeeze(1) - x @ true).square().mean() / (2 * 0.1**2)
        (fit + warm_up(step, 0, steps / 3) * layer.kl() / len(x)).backward()
        optimizer.step()
    assert layer.keep[0].tolist() == [True] * 3 + [False] * 17
    torch.testing.assert_close(layer.weight[0, :3], true[:3], rtol=0, atol=0.03)


def test_trained_weights_of_torch_load() -> None:
    for plain_layer, layer in ((nn.Linear(5, 3), SparseVariationalLinear(5, 3)),
                               (nn.Conv1d(5, 3, 2), SparseVariationalConv1d(5, 3, 2)),
                               (nn.Conv2d(5, 3, 2), SparseVariationalConv2d(5, 3, 2))):
        nn.init.constant_(layer.log_sigma2, -30.0)  # nothing is dropped
        state = nn.Sequential(plain_layer).state_dict()
        nn.Sequential(layer).load_state_dict(state)
        assert list(state) == ["0.weight", "0.bias"]
        x = torch.rand(4, 5, 3, 4)[(slice(None), slice(None), *(0,) * (4 - plain_layer.weight.dim()))]
        assert torch.equal(layer.eval()(x), plain_layer(x))
        assert (layer.log_sigma2 == -30).all()
        assert list(layer.state_dict()) == ["weight", "bias", "log_sigma2"]
        with pytest.raises(RuntimeError, match="weight"):
            layer.load_state_dict({"bias": plain_layer.bias})


def test_layers_without_memory_get_weights_and_a_start() -> None:
    linear = nn.Linear(8, 4)
    layer = SparseVariationalLinear(8, 4, device="meta")
    layer.load_state_dict(linear.state_dict(), assign=True)
    assert layer(torch.rand(3, 8)).shape == (3, 4) and (layer.log_sigma2 == -10).all()
    other = SparseVariationalConv2d(8, 4, 3, device="meta").to_empty(device="cpu")
    nn.init.constant_(other.log_sigma2, math.nan)
    other.reset_parameters()
    assert (other.log_sigma2 == -10).all() and other.weight.isfinite().all()


OPTIONS = {"stride": 2, "padding": 1, "dilation": (2, 1), "groups": 2, "bias": False, "padding_mode": "replicate"}


def test_layers_made_of_those_of_torch_have_their_parameters() -> None:
    for old, make in ((nn.Linear(5, 3), SparseVariationalLinear.from_linear),
                      (nn.Conv1d(6, 4, 3, **{**OPTIONS, "dilation": 1}), SparseVariationalConv1d.from_conv),
                      (nn.Conv2d(6, 4, (3, 2), **OPTIONS), SparseVariationalConv2d.from_conv)):
        old = old.double().eval()
        before = torch.get_rng_state()
        layer = make(old, threshold=math.inf)
        assert torch.equal(torch.get_rng_state(), before)
        assert layer.weight is old.weight and layer.bias is old.bias and not layer.training
        assert layer.log_sigma2.dtype == torch.float64 and layer.threshold == math.inf
        x = torch.rand(2, *((5,) if isinstance(old, nn.Linear) else (6, 7, 8)[:old.weight.dim() - 1])).double()
        assert torch.equal(layer(x), old(x))


def test_ties_are_kept() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    model[0].weight = model[1].weight
    model[1] = SparseVariationalLinear.from_linear(model[1])
    assert model[0].weight is model[1].weight and len(list(model.parameters())) == 3


def test_what_no_layer_can_be_made_of_is_refused() -> None:
    for make, old, words in ((SparseVariationalLinear.from_linear, nn.Conv1d(2, 2, 1), "nn.Linear, but got Conv1d"),
                             (SparseVariationalConv1d.from_conv, nn.Conv2d(2, 2, 1), "nn.Conv1d, but got Conv2d"),
                             (SparseVariationalConv2d.from_conv, nn.Linear(2, 2), "nn.Conv2d, but got Linear")):
        with pytest.raises(TypeError, match=words):
            make(old)
    with pytest.raises(ValueError, match=r"weight of the .*Linear is computed"):
        SparseVariationalLinear.from_linear(parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="kernel"):
        SparseVariationalConv2d.from_conv(nn.Conv2d(2, 2, 1), kernel=3)
    with pytest.raises(TypeError, match="bias"):
        SparseVariationalLinear.from_linear(nn.Linear(2, 2), bias=False)


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Conv2d", "Conv2d, dilated"])
def test_functional_twin(name: str) -> None:
    layer, x = layer_of(name)
    noise = layer.draw(x)
    arguments = [x, layer.weight, layer.bias, layer.log_sigma2]
    if not isinstance(layer, nn.Linear):
        arguments += [layer.stride, layer.padding, layer.dilation, layer.groups]
    twin = getattr(functional, f"sparse_variational_{name.split(',')[0].lower()}")
    assert torch.equal(twin(*arguments, noise=noise), layer(x, noise=noise))
    layer.threshold = 0.0
    assert torch.equal(twin(*arguments, 0.0, False), layer.eval()(x))
    assert not torch.equal(twin(*arguments, 0.0, False), twin(*arguments, math.inf, False))


def called(**options: object) -> Tensor:
    arguments = {"log_sigma2": 0.0, **options}
    return functional.sparse_variational_linear(torch.ones(3, 2), torch.ones(2, 2), None, **arguments)


BAD = {
    "threshold": (ValueError, lambda: SparseVariationalLinear(2, 2, threshold=math.nan), "threshold.*nan"),
    "threshold of a function": (ValueError, lambda: called(threshold=-math.inf), "threshold.*-inf"),
    "a word": (TypeError, lambda: SparseVariationalConv1d(2, 2, 1, threshold="3"), "threshold.*'3'"),
    "a variance for the bias": (TypeError, lambda: SparseVariationalLinear(2, 2, 3.0), r"bias.*3\.0"),
    "shape of log_sigma2": (ValueError, lambda: called(log_sigma2=torch.ones(3, 2)), r"log_sigma2.*\(2, 2\).*\(3, 2\)"),
    "no log_sigma2": (TypeError, lambda: called(log_sigma2=None), "log_sigma2.*None"),
    "exact": (TypeError, lambda: SparseVariationalLinear(2, 2).kl(1.0), r"exact.*1\.0"),
    "channels": (RuntimeError, lambda: SparseVariationalConv2d(3, 2, 1)(torch.ones(1, 2, 4, 4)), "3 channels"),
    "axes": (RuntimeError, lambda: SparseVariationalConv1d(3, 2, 1)(torch.ones(1, 3, 4, 4)), "3 channels.*1 spatial"),
    "types": (RuntimeError, lambda: SparseVariationalConv1d(3, 2, 1)(torch.ones(3, 4).double()), "float32.*float64"),
    "complex": (RuntimeError, lambda: SparseVariationalConv1d(3, 2, 1, dtype=torch.complex64)(
        torch.ones(3, 4, dtype=torch.complex64)), "real.*complex64"),
    "axes of a weight": (RuntimeError, lambda: functional.sparse_variational_conv2d(
        torch.ones(3, 4, 4), torch.ones(2, 3), None, 0.0), r"weight.*4 axes.*\(2, 3\)"),
    "no weight": (TypeError, lambda: functional.sparse_variational_conv2d(
        torch.ones(3, 4, 4), 1.0, None, 0.0), r"weight.*1\.0"),
}


@pytest.mark.parametrize(("kind", "call", "words"), BAD.values(), ids=BAD)
def test_bad_input(kind, call, words) -> None:
    with pytest.raises(kind, match=words):
        call()
