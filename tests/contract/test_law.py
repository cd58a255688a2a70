"""The law of the noise: limits, the test rule, moments, what is drawn and what is given."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from subjects import (
    LARGE,
    SMALL,
    Layer,
    LayerOnMaps,
    assert_mean,
    assert_raises,
    assert_same,
    checks_in,
    covered,
    lag_pairs,
    product_at,
    random_state,
    subject,
)
from torch import nn

from dropoutlib.enumeration import distribution


def check_zero_means_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for bad in (math.inf, -math.inf, math.nan):
            x = torch.full_like(layer.example(shape, device), bad).requires_grad_()
            y = layer(0.5, x)(x)
            dropped = y == 0
            assert 0 < dropped.sum() < dropped.numel(), "nothing is dropped, or everything"
            assert_same(y[~dropped], x.detach()[~dropped])
            y.sum().backward()
            assert (x.grad[dropped] == 0).all() and x.grad.isfinite().all()

            noise = layer.noise(x).bool()
            keep = noise.expand(x.shape)
            x = torch.where(keep, 1.0, bad).requires_grad_()
            y = layer(0.5, x)(x, noise=noise)
            assert (y[~keep] == 0).all() and (y[keep] != 0).all()
            (gradient,) = torch.autograd.grad(y, x, torch.where(keep, 1.0, bad))
            assert (gradient[~keep] == 0).all() and gradient.isfinite().all()


def check_p_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device, torch.float32)
        if layer.elementwise:
            x[0, :4] = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
        before = random_state(device)
        for module in (layer(0.0, x), layer(0.0, x).eval()):
            assert_same(module(x).view(torch.int32), layer.without_noise(x).view(torch.int32))
            assert (module.variance(x) == 0).all()
        assert_same(random_state(device), before)
        everything = torch.ones_like(layer.noise(x))
        torch.testing.assert_close(layer(0.0, x)(x, noise=everything), layer.without_noise(x), equal_nan=True)


def check_p_one(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for value in (1.0, math.inf, math.nan) if layer.elementwise else (1.0,):
            x = torch.full_like(layer.example(shape, device), value).requires_grad_()
            before = random_state(device)
            for noise in (None, torch.zeros_like(layer.noise(x))):
                y = layer(1.0, x)(x, noise=noise)
                assert (y == 0).all()
                (gradient,) = torch.autograd.grad(y.sum(), x)
                assert (gradient == 0).all()
            assert_same(random_state(device), before)
            everything = torch.ones_like(layer.noise(x))
            (gradient,) = torch.autograd.grad(layer(1.0, x)(x, noise=everything).sum(), x)
            assert gradient.isfinite().all()
            assert (layer(1.0, x).mean(x) == 0).all() and (layer(1.0, x).variance(x) == 0).all()


def check_evaluation(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        model = nn.Sequential(layer(0.3, x), nn.Sequential(layer(0.6, x))).eval()
        before, private = random_state(device), generator.get_state()
        assert_same(model(x), model(x))
        assert_same(model[0](x, generator=generator), model[0](x))
        assert_same(random_state(device), before)
        assert_same(generator.get_state(), private)
        assert not torch.equal(model.train()(x), model(x)), "train() does not bring the noise back"


def check_test_rule(layer: Layer, device: torch.device) -> None:
    """The test output is the mean of the training output, given the layer's input."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        for p in (0.0, 0.2, 0.5, 0.9) if layer.elementwise else (0.2, 0.5, 0.9):
            torch.testing.assert_close(layer(p, x).eval()(x), layer(p, x).mean(x),
                                       rtol=0, atol=0 if layer.elementwise else 1e-13)


def check_exact_moments(layer: Layer, device: torch.device) -> None:
    """mean() and variance() are those of the sum over all masks, and so is the test output."""
    x = torch.tensor([[1.3, -0.4], [-1.7, 0.9]], dtype=torch.float64, device=device)
    if isinstance(layer, LayerOnMaps):
        x = x.reshape(2, 2, *(1 for _ in layer.axes)) * layer.example((2, 2), device)
    for p in (0.2, 0.5, 0.73):
        module = layer(p, x)
        law = distribution(lambda keep, module=module: module(x, noise=keep.to(device)), layer.noise(x).shape, p)
        for actual, expected in [(module.mean(x), law.mean()), (module.variance(x), law.variance()),
                                 (layer(p, x).eval()(x), law.mean())]:
            torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-12)
        covariance = law.covariance().reshape(4, x[0, 0].numel(), 4, x[0, 0].numel())
        for one, other in itertools.permutations(range(4), 2):  # of different draws
            assert covariance[one, :, other].abs().max() < 1e-12


def check_statistics(layer: Layer, device: torch.device) -> None:
    """Mean, variance, and covariance between elements, examples and calls, of what is really drawn."""
    torch.manual_seed(0)
    for p in (0.3, 0.5):
        for calls, shape in ((1, (512, 512) if layer.elementwise else (4096, 16)), (400, (24, 24))):
            x = layer.example(shape, device)
            module = layer(p, x)
            outputs = torch.stack([module(x).detach() for _ in range(calls)])
            with torch.no_grad():  # mean 0, variance 1, independent
                noise = (outputs - module.mean(x)) / module.variance(x).sqrt()
                alone = layer.one_of_each(noise)
                spread = alone.reshape(*alone.shape, *(1 for _ in range(noise.dim() - alone.dim())))
                assert (noise - spread).abs().max() < 1e-9, "elements that share a draw differ"
                noise = alone
            assert_mean(noise, 0.0, f"mean, p={p}, {shape}")
            assert_mean(noise**2, 1.0, f"variance, p={p}, {shape}")
            for lags in lag_pairs(noise.shape):
                assert_mean(product_at(noise, lags), 0.0, f"covariance at {lags}, p={p}, {shape}")
            flat = noise.flatten()
            for lag in (1 << 15, 1 << 16, 1 << 17):  # the random numbers of large tensors are drawn in chunks
                if lag < flat.numel():
                    assert_mean(flat[lag:] * flat[:-lag], 0.0, f"covariance at a distance of {lag}, p={p}")


def check_p_assigned(layer: Layer, device: torch.device) -> None:
    """p is read at every call, as tools that look for it and change it expect."""
    x = layer.example(LARGE, device)
    noise = layer.noise(x)
    module = layer(0.3, x)
    module.p = 0.0
    assert_same(module(x), layer.without_noise(x))
    module.p = 0.8
    assert_same(module(x, noise=noise), layer(0.8, x)(x, noise=noise))
    assert_same(module.mean(x), layer(0.8, x).mean(x))
    assert_same(module.variance(x), layer(0.8, x).variance(x))
    assert_same(module.eval()(x), layer(0.8, x).eval()(x))
    assert "p=0.8" in repr(module)


def check_noise(layer: Layer, device: torch.device) -> None:
    """noise= replaces the draw: nothing random is left, and it may have any shape that broadcasts."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        noise = layer.noise(x)
        before = random_state(device)
        assert_same(layer(0.3, x)(x, noise=noise), layer(0.3, x)(x, noise=noise.float()))
        assert_same(random_state(device), before)
        for some in (noise[:1], noise[:, :1], noise[0], noise[0, 0]):
            torch.testing.assert_close(layer(0.3, x)(x, noise=some), layer(0.3, x)(x, noise=some.expand(noise.shape)),
                                       rtol=0, atol=0 if layer.elementwise else 1e-13)
        single = x.float()
        assert layer(0.3, single)(single, noise=noise).dtype == torch.float32


def check_generator(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        module = layer(0.5, x)
        before = random_state(device)
        first, second = (module(x, generator=generator.manual_seed(1)) for _ in range(2))
        third = module(x, generator=generator)
        assert_same(random_state(device), before)
        assert_same(first, second)
        assert not torch.equal(second, third)
        torch.manual_seed(2)
        first = module(x)
        torch.manual_seed(2)
        assert_same(module(x), first)


def check_draw(layer: Layer, device: torch.device) -> None:
    """To draw and then to apply is to call: values, gradients and random numbers, bit for bit."""
    once, twice = torch.Generator(device), torch.Generator(device)
    for shape, p in itertools.product((SMALL, LARGE), (0.3, 0.5)):
        x, other = (layer.example(shape, device).requires_grad_() for _ in range(2))
        module = layer(p, x)
        y = module(x, generator=once.manual_seed(4))
        noise = module.draw(other, generator=twice.manual_seed(4))
        assert_same(once.get_state(), twice.get_state())
        again = module(other, noise=noise)
        assert_same(again, y)
        assert_same(torch.autograd.grad(again.sin().sum(), other), torch.autograd.grad(y.sin().sum(), x))
        torch.manual_seed(5)
        y, after = module(x), random_state(device)
        torch.manual_seed(5)
        assert_same(module(x, noise=module.draw(x)), y)
        assert_same(random_state(device), after)
        evaluated = layer(p, x).eval()
        assert_raises(ValueError, "train", lambda module=evaluated, x=x: module.draw(x))
        assert_raises((TypeError, RuntimeError), "generator", lambda module=module, x=x: module.draw(x, generator=0))


CHECKS = checks_in(globals())


@pytest.mark.parametrize(("name", "check"), covered(CHECKS))
def test_law(name: str, check: str, device: str) -> None:
    CHECKS[check](subject(name), torch.device(device))
