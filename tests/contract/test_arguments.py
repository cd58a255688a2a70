"""What a layer takes and gives, and what it says of bad input."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from subjects import (
    FACTS,
    LARGE,
    LAYERS,
    OPT_OUTS,
    SMALL,
    TABLE,
    WITH_WEIGHTS,
    Layer,
    LayerWithWeights,
    assert_noisy,
    assert_raises,
    assert_same,
    checks_in,
    covered,
    example,
    linear_in,
    random_state,
    spoil,
    subject,
    takes,
)
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

import dropoutlib
from dropoutlib import functional


def check_drop_in(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device, torch.float32)
    module = layer(0.3, x)
    if isinstance(layer, LayerWithWeights):
        linear = linear_in(module)
        replaced = type(linear)(5, 5, **({} if isinstance(linear, nn.Linear) else {"kernel_size": 1}))
        linear.load_state_dict({**linear.state_dict(), "weight": replaced.weight.detach()})
        torch.testing.assert_close(linear.weight, replaced.weight.to(device))
        return
    assert isinstance(module, _DropoutNd) and not isinstance(module, nn.Dropout)
    assert type(module.p) is float and module.p == 0.3 and type(layer(0, x).p) is float
    assert "p=0.3" in repr(module)
    assert list(module.state_dict()) == list(nn.Dropout().state_dict())
    model = nn.Sequential(nn.Linear(3, 3), module)
    model.load_state_dict(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).state_dict())


def check_shapes(layer: Layer, device: torch.device) -> None:
    shapes = [(0, 4), (4, 5), LARGE]
    if layer.single:
        shapes += [(7,)]
    if not layer.axes:
        shapes += [(1,), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)]
    if layer.elementwise:
        shapes += [(), (0,), (3, 0)]
    for shape in shapes:
        x = layer.example(shape, device, torch.float32).requires_grad_()
        for module in (layer(0.3, x), layer(0.3, x).eval()):
            y = module(x)
            assert y.shape == layer.without_noise(x).shape and y.dtype == x.dtype and y.device == x.device
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.shape == x.shape


def check_dtypes(layer: Layer, device: torch.device) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    for shape in (SMALL, LARGE):
        for dtype in [*dtypes, torch.complex64] if layer.elementwise else dtypes:
            x = layer.example(shape, device, dtype).requires_grad_()
            if not takes(layer, x):
                continue
            noise = layer.noise(layer(0.3, x), x)
            for module in (layer(0.3, x), layer(0.3, x).eval()):
                y = module(x)
                x.grad = None
                y.abs().sum().backward()
                assert y.dtype == dtype and x.grad.dtype == dtype
                assert y.isfinite().all() and x.grad.isfinite().all()
                if hasattr(module, "mean"):
                    assert module.mean(x).dtype == dtype
                    assert module.variance(x).dtype == dtype.to_real()
            for size in (1, 300):  # the square of 300 is no float16
                y = layer(0.3, x)(size * x, noise=noise)
                assert y.dtype == dtype
                exact = (size * x.detach()).to(torch.complex128 if dtype.is_complex else torch.float64)
                error = (y.to(torch.complex128) - layer(0.3, exact)(exact, noise=noise)).abs().max() / size
                assert error < (4 if layer.elementwise else 40) * torch.finfo(dtype).eps, f"{dtype}: {error}"
            if hasattr(module, "variance") and not isinstance(layer, LayerWithWeights):
                large = 300 * x.detach() / x.detach().abs().max()
                exact = module.variance(large.to(torch.complex128 if dtype.is_complex else torch.float64))
                torch.testing.assert_close(module.variance(large).double(), exact, rtol=20 * torch.finfo(dtype).eps,
                                           atol=0.01)


def check_autocast(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device, torch.float32).requires_grad_()
    for module in (layer(0.3, x), layer(0.3, x).eval()):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = module(x.bfloat16())
            assert y.dtype in (torch.bfloat16, layer.without_noise(x.bfloat16()).dtype)
            assert module(x).dtype == layer.without_noise(x).dtype
        (gradient,) = torch.autograd.grad(y.float().sum(), x)
        assert gradient.isfinite().all() and gradient.dtype == torch.float32


def check_memory_format(layer: Layer, device: torch.device) -> None:
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    for size in (3, 12):
        for rank in {2, 3} & ({len(layer.axes)} if layer.axes else {2, 3}):
            x = example((size,) * (2 + rank), device).to(memory_format=formats[rank])
            train = layer(0.3, x)
            kept = layer.without_noise(x).is_contiguous(memory_format=formats[rank])
            for y in (train(x), layer(0.3, x).eval()(x), train(x, noise=layer.noise(train, x))):
                assert y.is_contiguous(memory_format=formats[rank]) is kept


def check_strides(layer: Layer, device: torch.device) -> None:
    whole = layer.example((96, 64), device)
    for x in (whole.transpose(0, 1), whole[:, ::2], whole[:1].expand(whole.shape)):
        module = layer(0.3, x)
        noise = layer.noise(module, x)
        torch.testing.assert_close(module(x, noise=noise), module(x.contiguous(), noise=noise),
                                   rtol=0, atol=0 if layer.elementwise else 1e-13)
        assert_noisy(layer, layer(0.5, x)(x), x)
    before = whole.clone()
    layer(0.3, whole)(whole)
    assert_same(whole, before)


def check_meta(layer: Layer, device: torch.device) -> None:
    x = torch.empty(layer.example(LARGE, device).shape, device="meta")
    for module in (layer(0.3, x), layer(0.3, x).eval()):
        assert module(x).shape == layer.without_noise(x).shape and module(x).is_meta


def check_bad_p(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device)
    for p in (-0.1, 1.1, math.nan, math.inf):
        assert_raises(ValueError, f"probability has to be.*got {p}", lambda p=p: layer(p, x))
        for module in (layer(0.5, x), layer(0.5, x).eval()):
            module.p = p
            assert_raises(ValueError, f"probability has to be.*got {p}", lambda module=module: module(x))
    for p in ("0.5", None, [0.5], torch.tensor([0.1, 0.2])):
        assert_raises(TypeError, "probability has to be a real number", lambda p=p: layer(p, x))


def check_bad_calls(layer: Layer, device: torch.device) -> None:
    x = layer.example((4, 3), device)
    module = layer(0.5, x)
    noise = layer.noise(module, x)
    before, values = random_state(device), x.clone()
    bad_calls = [
        (TypeError, "tensor.*list", lambda: module([1.0, 2.0])),
        (RuntimeError, "floating point.*int64", lambda: module(x.long())),
        (RuntimeError, "floating point.*bool", lambda: module(x > 0)),
        (TypeError, "tensor.*list", lambda: layer(0.5, x).eval()([1.0, 2.0])),
        (RuntimeError, "floating point.*int64", lambda: layer(0.5, x).eval()(x.long())),
        (TypeError, "noise.*list", lambda: module(x, noise=[1.0])),
        (ValueError, r"noise.*train\(\)", lambda: layer(0.5, x).eval()(x, noise=noise)),
        (TypeError, "generator.*int", lambda: module(x, generator=0)),
        (TypeError, "unexpected keyword", lambda: module(x, mask=noise)),
    ]
    bad_parts = [
        (r"{shape}.*\(17,\)", lambda part: torch.ones(17, device=device)),
        (r"{shape}.*\(2, 4, 3, 3, 3, 3\)", lambda part: torch.ones(2, 4, 3, 3, 3, 3, device=device)),
        (r"{shape}.*0\)", lambda part: part[..., :0]),
        ("complex", lambda part: part * 1j),
        ("device", lambda part: part.to("meta")),
    ]
    bad_calls += [(ValueError, "noise.*" + words.format(shape=re.escape(str(tuple(shape)))),
                   lambda bad=bad: module(x, noise=bad))
                  for words, function in bad_parts for shape, bad in spoil(noise, function)]
    for kind, words, call in bad_calls:
        assert_raises(kind, words, call)
    assert_same(random_state(device), before)
    assert_same(x, values)
    if isinstance(layer, LayerWithWeights):
        for features in (5, 1):
            bad = layer.example((4, features), device)
            assert_raises((ValueError, RuntimeError), str(features), lambda bad=bad: module(bad))
    if isinstance(module, nn.Linear):
        module.weight, bad = nn.Parameter(module.weight.to(torch.complex64)), x.to(torch.complex64)
        for call in (module, module.draw, module.mean, module.variance):
            assert_raises(RuntimeError, "input has to be real.*complex64", lambda call=call: call(bad))


CHECKS = checks_in(globals())


@pytest.mark.parametrize(("name", "check"), covered(CHECKS))
def test_arguments(name: str, check: str, device: str) -> None:
    CHECKS[check](subject(name), torch.device(device))


def test_the_table_holds_every_layer() -> None:
    exported = {name for name in dropoutlib.__all__
                if isinstance(value := getattr(dropoutlib, name), type) and issubclass(value, nn.Module)}
    exported -= {"NoisyLayer"}     # what they all are
    assert exported <= set(TABLE)
    assert all(hasattr(dropoutlib, name) for name in TABLE)
    assert {name.split()[0] for name in LAYERS} <= set(TABLE)
    assert all(name in WITH_WEIGHTS or issubclass(getattr(dropoutlib, name), _DropoutNd)
               for name in exported if not {(name, "*"), (name, "check_drop_in")} & set(OPT_OUTS))


def is_like_dropout(name: str) -> bool:
    twin = FACTS[name].function
    return twin is not None and list(inspect.signature(getattr(functional, twin)).parameters)[:3] == [
        "input", "p", "training"]


@pytest.mark.parametrize("name", [name for name in TABLE if is_like_dropout(name)])
def test_functional_twin(name: str, device: str) -> None:
    layer, kind = getattr(dropoutlib, name), subject(name)
    twin = getattr(functional, FACTS[name].function)
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x = kind.example(shape, torch.device(device))
        noise = layer(0.3).draw(x)
        assert_same(twin(x, 0.3, noise=noise), layer(0.3)(x, noise=noise))
        assert_same(twin(x, 0.3, False), layer(0.3).eval()(x))
        assert_same(twin(x, p=0.3, training=True, generator=generator.manual_seed(5)),
                    layer(0.3)(x, generator=generator.manual_seed(5)))
    with pytest.raises(ValueError, match="train"):
        twin(x, 0.3, training=False, noise=noise)
    with pytest.raises(ValueError, match="nan"):
        twin(x, math.nan)
