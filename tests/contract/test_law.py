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
    assert_mean,
    assert_raises,
    assert_same,
    checks_in,
    covered,
    lag_pairs,
    of_parts,
    product_at,
    random_state,
    subject,
)
from torch import Tensor, nn


def check_zero_means_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for bad in (math.inf, -math.inf, math.nan):
            x = torch.full_like(layer.example(shape, device), bad).requires_grad_()
            module = layer(0.5, x)
            y = module(x)
            zero = y == 0
            assert 0 < zero.sum() < zero.numel(), "nothing is dropped, or everything"
            assert_same(y[~zero], torch.full_like(y[~zero], bad))
            y.sum().backward()
            assert x.grad.isfinite().all()
            if y.shape == x.shape:
                assert (x.grad[zero] == 0).all()

            noise = layer.noise(module, x)
            keep = layer.keep(noise).expand(x.shape)
            x = torch.where(keep, 1.0, bad).requires_grad_()
            dropped = ~(keep | layer.safe(x))
            y = module(x, noise=noise)
            left = layer.without_noise(torch.where(dropped, 0.0, x.detach()))
            assert_same(y == 0, left == 0)
            assert_same(y.isfinite(), left.isfinite())
            (gradient,) = torch.autograd.grad(y, x, torch.where(y == 0, bad, 1.0))
            assert (gradient[dropped] == 0).all() and gradient.isfinite().all()


def check_p_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device, torch.float32)
        if layer.elementwise:
            x[0, :4] = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
        before = random_state(device)
        module = layer(0.0, x)
        for _ in range(2):
            assert_same(module(x).view(torch.int32), layer.without_noise(x).view(torch.int32))
            assert (module.variance(x) == 0).all()
            module.eval()
        assert_same(random_state(device), before)
        everything = layer.noise(module.train(), x)
        torch.testing.assert_close(module(x, noise=everything), layer.without_noise(x), equal_nan=True)


def check_p_one(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for value in (1.0, math.inf, math.nan) if layer.elementwise else (1.0,):
            x = (value * layer.example(shape, device)).requires_grad_()
            module = layer(1.0, x)
            before = random_state(device)
            nothing = of_parts(torch.zeros_like, layer.noise(layer(0.5, x), x))
            for noise in (None, nothing):
                y = module(x, noise=noise)
                (gradient,) = torch.autograd.grad(y.sum(), x)
                assert y.any() == gradient.any() == layer.safe(x).any()
                if layer.safe(x).any():
                    assert_same(y != 0, layer.safe(x))
                    assert_same(gradient != 0, layer.safe(x))
            assert_same(random_state(device), before)
            everything = of_parts(torch.ones_like, nothing)
            (gradient,) = torch.autograd.grad(module(x, noise=everything).sum(), x)
            assert gradient.isfinite().all()
            assert_same(module.mean(x), y)
            assert (module.variance(x) == 0).all()


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
    """The test output is the mean of the training output, given the layer's input, or has the sum of one."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        for p in (0.0, 0.2, 0.5, 0.9) if layer.elementwise else (0.2, 0.5, 0.9):
            if layer.unbiased:
                torch.testing.assert_close(layer(p, x).eval()(x), layer(p, x).mean(x),
                                           rtol=0, atol=0 if layer.elementwise else 1e-13)
            else:
                ones = torch.ones_like(x)
                torch.testing.assert_close(layer(p, x).eval()(ones).sum(), layer(p, x).mean(ones).sum())


def check_exact_moments(layer: Layer, device: torch.device) -> None:
    """mean() and variance() are those of the sum over all masks, and so is the test output."""
    x = layer.few_numbers(device)
    for p in (0.2, 0.5, 0.73):
        module = layer(p, x)
        law = layer.law(module, x, p)
        for actual, expected in [(module.mean(x), law.mean()), (module.variance(x), law.variance()),
                                 *([(layer(p, x).eval()(x), law.mean())] if layer.unbiased else [])]:
            torch.testing.assert_close(actual.detach().cpu(), expected, rtol=0, atol=1e-12)
        places = torch.arange(law.outputs[0].numel()).reshape(1, *law.outputs.shape[1:])
        owner = torch.empty(places.numel(), dtype=torch.int64)
        for draw, elements in enumerate(layer.by_draw(places).flatten(0, 2)):
            owner[elements] = draw
        assert law.covariance()[owner[:, None] != owner].abs().sum() < 1e-12, "different draws are correlated"


def check_statistics(layer: Layer, device: torch.device) -> None:
    """Mean, variance, and covariance between elements, examples and calls, of what is really drawn."""
    torch.manual_seed(0)
    for p in (0.3, 0.5):
        for calls, shape in layer.many:
            x = layer.example(shape, device)
            module = layer(p, x)
            with torch.no_grad():  # mean 0, variance 1, independent
                outputs = torch.stack([module(x) for _ in range(calls)])
                deviation, variance = outputs - module.mean(x), module.variance(x)
                assert deviation[:, variance == 0].abs().sum() < 1e-9, "what no mask drops is random"
                noise = deviation / variance.sqrt()
                layer.assert_shared(noise)
                noise = layer.by_draw(noise)
            if (variance == 0).any():  # of the elements that share a draw one is random, the maximum
                noise = noise.nansum(-1, keepdim=True)
            for alone in noise.unbind(-1):
                assert_mean(layer.averaged(alone), 0.0, f"mean, p={p}, {shape}")
                assert_mean(layer.averaged(alone**2), 1.0, f"variance, p={p}, {shape}")
                for lags in lag_pairs(alone.shape):
                    product = layer.averaged(product_at(alone, lags))
                    assert_mean(product, 0.0, f"covariance at {lags}, p={p}, {shape}")
                flat = alone.flatten()
                for lag in (1 << 15, 1 << 16, 1 << 17):  # the random numbers of large tensors are drawn in chunks
                    if lag < flat.numel() and calls == 1:
                        assert_mean(flat[lag:] * flat[:-lag], 0.0, f"covariance at a distance of {lag}, p={p}")


def check_p_assigned(layer: Layer, device: torch.device) -> None:
    """p is read at every call, as tools that look for it and change it expect."""
    x = layer.example(LARGE, device)
    module = layer(0.3, x)
    noise = layer.noise(module, x)
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
        module = layer(0.3, x)
        noise = layer.noise(module, x)
        before = random_state(device)
        assert_same(module(x, noise=noise), module(x, noise=of_parts(Tensor.float, noise)))
        assert_same(random_state(device), before)
        for place in (slice(1), (slice(None), slice(1)), 0, (0, 0)):
            some = of_parts(lambda part, place=place: part[place], noise)
            whole = of_parts(lambda part, place=place: part[place].expand(part.shape), noise)
            torch.testing.assert_close(module(x, noise=some), module(x, noise=whole), rtol=0,
                                       atol=0 if layer.elementwise else 1e-13)
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
        parameters = tuple(module.parameters())
        assert_same(torch.autograd.grad(again.sin().sum(), (other, *parameters)),
                    torch.autograd.grad(y.sin().sum(), (x, *parameters)))
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
