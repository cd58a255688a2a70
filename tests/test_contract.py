"""Every layer of the table, held to the contract of the library.

A check is a plain function ``check_...(layer, device)``, in which ``layer`` makes a layer from its ``p``. The
same checks judge the layers of the library, which have to pass, and planted bugs, which have to fail.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

import dropoutlib
from dropoutlib import functional
from dropoutlib.enumeration import distribution

Layer = Callable[[float], nn.Module]

# Checks that a layer cannot keep, each with its reason. "*" is the whole contract.
OPT_OUTS = {
    ("max_norm_", "*"): "no layer: it changes weights, and has neither noise nor an output",
    ("MaxNorm", "*"): "no layer: it changes weights, and has neither noise nor an output",
    ("GaussianDropout", "check_zero_means_zero"): "a Gaussian factor is never zero: nothing is dropped",
    ("GaussianDropout", "check_p_one"): "its variance is infinite at p = 1, which it refuses",
    ("GaussianDropout", "check_exact_moments"): "its law is continuous: there is nothing to enumerate",
}

LAYERS = sorted({name for row in dropoutlib.catalogue().values() for name in row.layers})

# Below and above the size from which the CPU takes its fast path.
SMALL, LARGE = (6, 5), (96, 64)

# 6.5 standard errors: a false alarm has probability 8e-11 for one statistic, and a device sees a few hundred of them.
STANDARD_ERRORS = 6.5


def example(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive numbers away from zero, so that what is dropped can be told from what is kept."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) + 0.5
    return values.to(device=device, dtype=dtype)


def example_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(device) >= 0.4


def example_noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A keep mask in floating point: a value that every law accepts."""
    return example_mask(shape, device).to(torch.float64)


def random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.cuda.get_rng_state(device)]


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_raises(kind: type[Exception], words: str, function: Callable[[], object]) -> None:
    try:
        function()
    except kind as error:
        assert re.search(words, str(error)), f"the message {str(error)!r} does not say {words!r}"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of {kind.__name__}: {error}") from error
    else:
        raise AssertionError(f"no {kind.__name__}")


# Shapes, types, memory


def check_drop_in(layer: Layer, device: torch.device) -> None:
    module = layer(0.3)
    assert isinstance(module, _DropoutNd) and not isinstance(module, nn.Dropout)
    assert type(module.p) is float and module.p == 0.3 and type(layer(0).p) is float
    assert "p=0.3" in repr(module)
    assert list(module.state_dict()) == list(nn.Dropout().state_dict())
    model = nn.Sequential(nn.Linear(3, 3), module)
    model.load_state_dict(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).state_dict())


def check_shapes(layer: Layer, device: torch.device) -> None:
    for shape in [(), (1,), (7,), (0,), (3, 0), (4, 5), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5), LARGE]:
        x = example(shape, device, torch.float32).requires_grad_()
        for module in (layer(0.3), layer(0.3).eval()):
            y = module(x)
            assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.shape == x.shape


def check_dtypes(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64):
            x = example(shape, device, dtype).requires_grad_()
            exact = example(shape, device)
            noise = example_noise(shape, device)
            for module in (layer(0.3), layer(0.3).eval()):
                y = module(x)
                y.abs().sum().backward()
                assert y.dtype == dtype and x.grad.dtype == dtype
                assert y.isfinite().all() and x.grad.isfinite().all()
                assert module.mean(x).dtype == dtype
                assert module.variance(x).dtype == dtype.to_real()
            y = layer(0.3)(x, noise=noise)
            assert y.dtype == dtype
            error = (y.to(torch.complex128) - layer(0.3)(exact, noise=noise)).abs().max()
            assert error < 4 * torch.finfo(dtype).eps, f"{dtype}: {error}"


def check_autocast(layer: Layer, device: torch.device) -> None:
    linear, x = nn.Linear(5, 5, device=device), example((4, 5), device, torch.float32)
    for module in (layer(0.3), layer(0.3).eval()):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = module(linear(x))
            assert y.dtype == torch.bfloat16
            assert module(x).dtype == torch.float32
        linear.zero_grad()
        y.sum().backward()
        assert linear.weight.grad.isfinite().all()


def check_memory_format(layer: Layer, device: torch.device) -> None:
    for size in (3, 12):
        image = example((size, size, size, size), device).to(memory_format=torch.channels_last)
        volume = example((2, size, size, size, size), device).to(memory_format=torch.channels_last_3d)
        for module in (layer(0.3), layer(0.3).eval()):
            assert module(image).is_contiguous(memory_format=torch.channels_last)
            assert module(volume).is_contiguous(memory_format=torch.channels_last_3d)
        assert layer(0.3)(image, noise=example_noise(image.shape, device)).is_contiguous(
            memory_format=torch.channels_last)


def check_strides(layer: Layer, device: torch.device) -> None:
    whole = example((96, 128), device)
    for x in (whole.T, whole[:, ::2], whole[:1].expand(96, 128), whole.unflatten(1, (8, 16)).transpose(0, 2)):
        noise = example_noise(x.shape, device)
        assert_same(layer(0.3)(x, noise=noise), layer(0.3)(x.contiguous(), noise=noise))
        y = layer(0.5)(x)
        assert y.shape == x.shape
        assert len({round(value, 9) for value in (y / x).flatten().tolist()}) > 1, "no noise"
    before = whole.clone()
    layer(0.3)(whole)
    assert_same(whole, before)


def check_meta(layer: Layer, device: torch.device) -> None:
    x = torch.empty(LARGE, device="meta")
    for module in (layer(0.3), layer(0.3).eval()):
        assert module(x).shape == x.shape and module(x).is_meta


# Zero, limits, test time


def check_zero_means_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for bad in (math.inf, -math.inf, math.nan):
            x = torch.full(shape, bad, device=device).requires_grad_()
            y = layer(0.5)(x)
            dropped = y == 0
            assert 0 < dropped.sum() < dropped.numel(), "nothing is dropped, or everything"
            assert_same(y[~dropped], x.detach()[~dropped])
            y.sum().backward()
            assert (x.grad[dropped] == 0).all() and x.grad.isfinite().all()

            keep = example_mask(shape, device)
            x = torch.where(keep, 1.0, bad).requires_grad_()
            y = layer(0.5)(x, noise=keep)
            assert (y[~keep] == 0).all() and (y[keep] != 0).all()
            (gradient,) = torch.autograd.grad(y, x, torch.where(keep, 1.0, bad))
            assert (gradient[~keep] == 0).all() and gradient.isfinite().all()


def check_p_zero(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = example(shape, device, torch.float32)
        x[0, :4] = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
        before = random_state(device)
        for module in (layer(0.0), layer(0.0).eval()):
            assert_same(module(x).view(torch.int32), x.view(torch.int32))
            assert (module.variance(x) == 0).all()
        assert_same(random_state(device), before)
        assert_same(layer(0.0)(x, noise=torch.ones_like(x)), x)


def check_p_one(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for value in (1.0, math.inf, math.nan):
            x = torch.full(shape, value, device=device).requires_grad_()
            before = random_state(device)
            for noise in (None, torch.zeros_like(x)):
                y = layer(1.0)(x, noise=noise)
                assert (y == 0).all()
                (gradient,) = torch.autograd.grad(y.sum(), x)
                assert (gradient == 0).all()
            assert_same(random_state(device), before)
            (gradient,) = torch.autograd.grad(layer(1.0)(x, noise=torch.ones_like(x)).sum(), x)
            assert gradient.isfinite().all()
            assert (layer(1.0).mean(x) == 0).all() and (layer(1.0).variance(x) == 0).all()


def check_evaluation(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for shape in (SMALL, LARGE):
        x = example(shape, device)
        model = nn.Sequential(layer(0.3), nn.Sequential(layer(0.6))).eval()
        before, private = random_state(device), generator.get_state()
        assert_same(model(x), model(x))
        assert_same(model[0](x, generator=generator), model[0](x))
        assert_same(random_state(device), before)
        assert_same(generator.get_state(), private)
        assert not torch.equal(model.train()(x), model(x)), "train() does not bring the noise back"


def check_test_rule(layer: Layer, device: torch.device) -> None:
    """The test output is the mean of the training output, given the layer's input."""
    for shape in (SMALL, LARGE):
        x = example(shape, device)
        for p in (0.0, 0.2, 0.5, 0.9):
            assert_same(layer(p).eval()(x), layer(p).mean(x))


# The law


def check_exact_moments(layer: Layer, device: torch.device) -> None:
    """mean() and variance() are those of the sum over all masks, and so is the test output."""
    x = torch.tensor([[1.3, -0.4, 2.0], [-1.7, 0.9, 0.6]], dtype=torch.float64, device=device)
    for p in (0.2, 0.5, 0.73):
        module = layer(p)
        law = distribution(lambda keep, module=module: module(x, noise=keep.to(device)), x.shape, p)
        for actual, expected in [(module.mean(x), law.mean()), (module.variance(x), law.variance()),
                                 (layer(p).eval()(x), law.mean())]:
            torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(law.covariance(), torch.diag(law.variance().flatten()), rtol=0, atol=1e-12)


def check_statistics(layer: Layer, device: torch.device) -> None:
    """Mean, variance, and covariance between elements, examples and calls, of what is really drawn."""
    torch.manual_seed(0)
    for p in (0.3, 0.5):
        for calls, shape in ((1, (512, 512)), (400, (24, 24))):
            x = example(shape, device)
            module = layer(p)
            outputs = torch.stack([module(x) for _ in range(calls)])
            noise = (outputs - module.mean(x)) / module.variance(x).sqrt()  # mean 0, variance 1, independent
            assert_mean(noise, 0.0, f"mean, p={p}, {shape}")
            assert_mean(noise**2, 1.0, f"variance, p={p}, {shape}")
            for lags in lag_pairs(noise.shape):
                assert_mean(product_at(noise, lags), 0.0, f"covariance at {lags}, p={p}, {shape}")
            flat = noise.flatten()
            for lag in (1 << 15, 1 << 16, 1 << 17):  # the random numbers of large tensors are drawn in chunks
                assert_mean(flat[lag:] * flat[:-lag], 0.0, f"covariance at a distance of {lag}, p={p}")


def assert_mean(values: Tensor, expected: float, what: str) -> None:
    deviation = float(values.double().std()) / math.sqrt(values.numel())
    distance = abs(float(values.double().mean()) - expected)
    assert distance <= STANDARD_ERRORS * deviation + 1e-12, f"{what}: off by {distance:.3g} +- {deviation:.3g}"


def lag_pairs(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Steps (between calls, between examples, between elements of an example)."""
    for lags in [(0, 0, 1), (0, 0, 8), (0, 1, 0), (0, 7, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)]:
        if all(lag < size for lag, size in zip(lags, shape, strict=True)):
            yield lags


def product_at(noise: Tensor, lags: tuple[int, ...]) -> Tensor:
    ahead = noise[tuple(slice(lag, None) for lag in lags)]
    behind = noise[tuple(slice(None, size - lag) for lag, size in zip(lags, noise.shape, strict=True))]
    return ahead * behind


def check_p_assigned(layer: Layer, device: torch.device) -> None:
    """p is read at every call, as tools that look for it and change it expect."""
    x, noise = example(LARGE, device), example_noise(LARGE, device)
    module = layer(0.3)
    module.p = 0.0
    assert_same(module(x), x)
    module.p = 0.8
    assert_same(module(x, noise=noise), layer(0.8)(x, noise=noise))
    assert_same(module.mean(x), layer(0.8).mean(x))
    assert_same(module.variance(x), layer(0.8).variance(x))
    assert_same(module.eval()(x), layer(0.8).eval()(x))
    assert "p=0.8" in repr(module)


def check_noise(layer: Layer, device: torch.device) -> None:
    """noise= replaces the draw: nothing random is left, and it may have any shape that broadcasts."""
    for shape in (SMALL, LARGE):
        x, noise = example(shape, device), example_noise(shape, device)
        before = random_state(device)
        assert_same(layer(0.3)(x, noise=noise), layer(0.3)(x, noise=noise.float()))
        assert_same(random_state(device), before)
        for some in (noise[:1], noise[:, :1], noise[0], noise[0, 0]):
            assert_same(layer(0.3)(x, noise=some), layer(0.3)(x, noise=some.expand(shape)))
        assert layer(0.3)(x.float(), noise=noise).dtype == torch.float32


def check_generator(layer: Layer, device: torch.device) -> None:
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x, module = example(shape, device), layer(0.5)
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


# Gradients


def check_gradients(layer: Layer, device: torch.device) -> None:
    for shape in ((2, 3), (48, 48)):
        x, noise = example(shape, device).requires_grad_(), example_noise(shape, device)
        for function in (lambda x, noise=noise: layer(0.3)(x, noise=noise), layer(0.3).eval()):
            quick = {"fast_mode": x.numel() > 100}
            assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True, **quick)
            assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).sin(), (x,), **quick)


def check_same_mask(layer: Layer, device: torch.device) -> None:
    """Forward and backward multiply by the same noise, whatever the layout of the gradient."""
    for rows, columns in (SMALL, LARGE):
        x = example((rows, columns), device).requires_grad_()
        wide = example((columns, 2 * rows), device)
        for gradient in (torch.ones((), device=device, dtype=x.dtype).expand(x.shape), wide[:, :rows].T,
                         wide[:, ::2].T, wide[:, :1].T.expand(x.shape)):
            y = layer(0.5)(x)
            for _ in range(2):
                (actual,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
                torch.testing.assert_close(actual * x, gradient * y)


# Transforms


def check_compile(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    for module in (layer(0.3), layer(0.3).eval()):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        x = example(LARGE, device).requires_grad_()
        y = compiled(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient * x, y)
        assert torch.equal(compiled(x), y) is (not module.training)
        assert_same(compiled(x), module(x)) if not module.training else None
    module = layer(0.3)
    noise = example_noise(LARGE, device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, noise=noise), module(x, noise=noise))
    module.p = 0.0
    assert_same(compiled(x), x)


def check_compile_dynamic(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    module = layer(0.3)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((3, 4), (70, 60), (2, 9)):
        x, noise = example(shape, device), example_noise(shape, device)
        assert compiled(x).shape == shape
        torch.testing.assert_close(compiled(x, noise=noise), module(x, noise=noise))


def check_vmap(layer: Layer, device: torch.device) -> None:
    for columns in (40, 4096):
        x, module = torch.ones(6, columns, device=device), layer(0.5)
        assert_raises(RuntimeError, "randomness", lambda x=x: torch.vmap(layer(0.5))(x))
        same = torch.vmap(module, randomness="same")(x)
        assert (same == same[0]).all() and len(same[0].unique()) > 1
        different = torch.vmap(module, randomness="different")(x)
        closed_over = torch.vmap(lambda _, x=x: layer(0.5)(x[0]), randomness="different")(x)
        for y in (different, closed_over):
            assert y.shape == x.shape and len(y.unique(dim=0)) == 6
        noise = example_noise(x.shape, device).float()
        mapped = torch.vmap(lambda x, noise: layer(0.5)(x, noise=noise))(x, noise)
        assert_same(mapped, layer(0.5)(x, noise=noise))
        assert_same(torch.vmap(layer(0.5).eval())(x), layer(0.5).eval()(x))


def check_functional_transforms(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x, noise = example(shape, device), example_noise(shape, device)

        def function(x: Tensor, noise: Tensor = noise) -> Tensor:
            return layer(0.3)(x, noise=noise)

        gradient = torch.func.grad(lambda x: function(x).sum())(x)
        torch.testing.assert_close(gradient * x, function(x))
        y, tangent = torch.func.jvp(function, (x,), (x,))
        torch.testing.assert_close(tangent, y)
        per_example = torch.vmap(torch.func.grad(lambda x, n: function(x, n).sum()))(x, noise)
        torch.testing.assert_close(per_example, gradient)
        drawn, vjp = torch.func.vjp(layer(0.5), x)
        torch.testing.assert_close(vjp(torch.ones_like(x))[0] * x, drawn)


def check_export(layer: Layer, device: torch.device) -> None:
    x = example(LARGE, device, torch.float32)
    model = nn.Sequential(nn.Linear(64, 5, device=device), layer(0.3)).eval()
    program = torch.export.export(model, (x,))
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", [])
        assert torch.Tag.nondeterministic_seeded not in tags, f"{node.target} is random"
    torch.testing.assert_close(program.module()(x), model(x))


def check_onnx(layer: Layer, device: torch.device) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    model = nn.Sequential(nn.Linear(64, 5), layer(0.3)).eval()
    program = torch.onnx.export(model, (example(LARGE, torch.device("cpu"), torch.float32),), dynamo=True,
                                verbose=False)
    operations = {node.op_type for node in program.model.graph}
    assert operations <= {"Gemm", "Mul", "MatMul", "Add", "Transpose", "Identity", "Constant"}, operations


def check_checkpoint(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for reentrant in (False, True):
            x = example(shape, device).requires_grad_()
            module = layer(0.5)
            y = checkpoint(lambda x, module=module: module(x) ** 2, x, use_reentrant=reentrant)
            (gradient,) = torch.autograd.grad(y.sum(), x) if not reentrant else (y.sum().backward(), x.grad)[1:]
            torch.testing.assert_close(gradient * x, 2 * y)  # not so if the second forward draws anew


def check_checkpoint_refuses_generator(layer: Layer, device: torch.device) -> None:
    """torch would not restore the generator, and the gradient would be that of another draw."""
    generator = torch.Generator(device).manual_seed(0)
    x = example(LARGE, device).requires_grad_()
    for reentrant in (False, True):
        assert_raises(RuntimeError, "generator", lambda reentrant=reentrant: checkpoint(
            lambda x: layer(0.5)(x, generator=generator), x, use_reentrant=reentrant))


def check_compile_refuses_generator(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    module, generator = layer(0.5), torch.Generator(device).manual_seed(0)
    compiled = torch.compile(lambda x: module(x, generator=generator), backend="aot_eager", fullgraph=True)
    assert_raises(Exception, "(?i)generator", lambda: compiled(example(LARGE, device)))


def check_copies(layer: Layer, device: torch.device) -> None:
    module = nn.Sequential(layer(0.3), layer(0.7).eval())
    x, noise = example(SMALL, device), example_noise(SMALL, device)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert [(type(m), m.p, m.training) for m in other] == [(type(m), m.p, m.training) for m in module]
        assert_same(other[0](x, noise=noise), module[0](x, noise=noise))
        assert_same(other[1](x), module[1](x))


# Bad input


def check_bad_p(layer: Layer, device: torch.device) -> None:
    x = example(SMALL, device)
    for p in (-0.1, 1.1, math.nan, math.inf):
        assert_raises(ValueError, f"probability has to be.*got {p}", lambda p=p: layer(p))
        for module in (layer(0.5), layer(0.5).eval()):
            module.p = p
            assert_raises(ValueError, f"probability has to be.*got {p}", lambda module=module: module(x))
    for p in ("0.5", None, [0.5], torch.tensor([0.1, 0.2])):
        assert_raises(TypeError, "probability has to be a real number", lambda p=p: layer(p))


def check_bad_calls(layer: Layer, device: torch.device) -> None:
    module, x = layer(0.5), example((4, 3), device)
    before, values = random_state(device), x.clone()
    bad_calls = [
        (TypeError, "tensor.*list", lambda: module([1.0, 2.0])),
        (RuntimeError, "floating point.*int64", lambda: module(torch.arange(3, device=device))),
        (RuntimeError, "floating point.*bool", lambda: module(x > 0)),
        (TypeError, "noise.*list", lambda: module(x, noise=[1.0])),
        (ValueError, r"noise.*\(4, 3\).*\(4,\)", lambda: module(x, noise=torch.ones(4, device=device))),
        (ValueError, r"noise.*\(4, 3\).*\(2, 4, 3\)", lambda: module(x, noise=torch.ones(2, 4, 3, device=device))),
        (ValueError, r"noise.*\(4, 3\).*\(4, 0\)", lambda: module(x, noise=torch.ones(4, 0, device=device))),
        (ValueError, "noise.*complex", lambda: module(x, noise=torch.ones(4, 3, device=device) * 1j)),
        (ValueError, "noise.*device", lambda: module(x, noise=torch.ones(4, 3, device="meta"))),
        (ValueError, r"noise.*train\(\)", lambda: layer(0.5).eval()(x, noise=torch.ones_like(x))),
        (TypeError, "generator.*int", lambda: module(x, generator=0)),
        (TypeError, "unexpected keyword", lambda: module(x, mask=torch.ones_like(x))),
    ]
    for kind, words, call in bad_calls:
        assert_raises(kind, words, call)
    assert_same(random_state(device), before)
    assert_same(x, values)


CHECKS = {name: function for name, function in list(globals().items()) if name.startswith("check_")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def covered() -> list[tuple[str, str]]:
    return [(name, check) for name in LAYERS for check in CHECKS
            if (name, "*") not in OPT_OUTS and (name, check) not in OPT_OUTS]


@pytest.mark.parametrize(("name", "check"), covered())
def test_contract(name: str, check: str, device: str) -> None:
    CHECKS[check](getattr(dropoutlib, name), torch.device(device))


def test_the_table_holds_every_layer() -> None:
    exported = {name for name in dropoutlib.__all__
                if isinstance(value := getattr(dropoutlib, name), type) and issubclass(value, nn.Module)}
    assert exported <= set(LAYERS)
    assert all(hasattr(dropoutlib, name) for name in LAYERS)


@pytest.mark.parametrize(("name", "check"), [pair for pair in OPT_OUTS if pair[1] != "*"])
def test_an_opt_out_is_needed(name: str, check: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        CHECKS[check](getattr(dropoutlib, name), torch.device("cpu"))


@pytest.mark.parametrize("name", sorted({name for name, _ in covered()}))
def test_functional_twin(name: str, device: str) -> None:
    layer = getattr(dropoutlib, name)
    twin = getattr(functional, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    generator = torch.Generator(device)
    for shape in (SMALL, LARGE):
        x, noise = example(shape, torch.device(device)), example_noise(shape, torch.device(device))
        assert_same(twin(x, 0.3, noise=noise), layer(0.3)(x, noise=noise))
        assert_same(twin(x, 0.3, False), layer(0.3).eval()(x))
        assert_same(twin(x, p=0.3, training=True, generator=generator.manual_seed(5)),
                    layer(0.3)(x, generator=generator.manual_seed(5)))
    with pytest.raises(ValueError, match="train"):
        twin(x, 0.3, training=False, noise=noise)
    with pytest.raises(ValueError, match="nan"):
        twin(x, math.nan)


def test_full_compiler(device: str) -> None:
    """The layers in one network, through the whole compiler."""
    torch._dynamo.reset()
    layers = nn.ModuleList(getattr(dropoutlib, name)(0.3) for name in sorted({name for name, _ in covered()}))

    def function(x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in layers])

    x = example((256, 64), torch.device(device), torch.float32)
    compiled = torch.compile(function, fullgraph=True)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(gradient * x, y.sum(0))
    for layer, output in zip(layers, y, strict=True):
        noise = ((output - layer.mean(x)) / layer.variance(x).sqrt()).detach()
        assert_mean(noise, 0.0, "mean")
        assert_mean(noise**2, 1.0, "variance")
        assert_mean(noise[1:] * noise[:-1], 0.0, "covariance of examples")
    layers.eval()
    torch.testing.assert_close(compiled(x), function(x))


def _train_in_parallel(rank: int, directory: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank,
                                         world_size=2)
    torch.manual_seed(rank)
    layers = [getattr(dropoutlib, name)(0.5) for name in names]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(16, 8)).square().mean().backward()
        optimizer.step()
    torch.save([parameter.detach() for parameter in model.parameters()], f"{directory}/parameters{rank}")
    torch.save([layer(torch.ones(64)) for layer in layers], f"{directory}/noise{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed_data_parallel(tmp_path) -> None:
    names = sorted({name for name, _ in covered()})
    torch.multiprocessing.spawn(_train_in_parallel, (str(tmp_path), names), nprocs=2)
    parameters = [torch.load(tmp_path / f"parameters{rank}") for rank in range(2)]
    assert_same(parameters[0], parameters[1])
    assert all(parameter.isfinite().all() for parameter in parameters[0])
    noise = [torch.load(tmp_path / f"noise{rank}") for rank in range(2)]
    assert not any(torch.equal(first, second) for first, second in zip(*noise, strict=True))


# The tests themselves: a wrong layer has to fail the check that is named beside it


class Planted(dropoutlib.Dropout):
    """The right layer, to be spoilt in one place."""

    def keep(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        drawn = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) >= self.p
        return drawn if noise is None else noise.bool()

    def apply(self, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x / (1 - self.p), 0)

    def forward(self, input, *, noise=None, generator=None):
        if not self.training:
            return input
        return self.apply(input, self.keep(input, noise, generator))


class DividesByP(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x / self.p, 0)


class ForgetsToScale(Planted):
    def apply(self, x, keep):
        return torch.where(keep, x, 0)


class KeepsWithProbabilityP(Planted):
    def keep(self, x, noise, generator):
        return torch.rand_like(x) <= self.p if noise is None else noise.bool()


class SharesOverTheBatch(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesWithinAnExample(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x[:, :1], None, generator).expand(x.shape) if noise is None else noise.bool()


class SharesBetweenHalves(Planted):
    def keep(self, x, noise, generator):
        half = super().keep(x[: len(x) // 2], None, generator)
        return torch.cat([half, half]) if noise is None else noise.bool()


class DrawsOnce(Planted):
    def keep(self, x, noise, generator):
        if noise is None and getattr(self, "drawn", None) is None:
            self.drawn = super().keep(x, None, generator)
        return self.drawn if noise is None else noise.bool()


class Multiplies(Planted):
    def apply(self, x, keep):
        return x * keep / (1 - self.p)


class _Redraws(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.p = p
        return x * (torch.rand_like(x) >= p) / (1 - p)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.rand_like(gradient) >= ctx.p) / (1 - ctx.p), None


class RedrawsInBackward(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return _Redraws.apply(input, self.p)


class ForgetsTheTestRule(dropoutlib.WeightScalingDropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input


class ScalesAtBothTimes(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input, **keywords) if self.training else input * (1 - self.p)


class IgnoresEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        return self.apply(input, self.keep(input, noise, generator))


class DrawsInEvaluation(Planted):
    def forward(self, input, *, noise=None, generator=None):
        noisy = self.apply(input, self.keep(input, noise, generator))
        return noisy if self.training else input


class IgnoresTheGenerator(Planted):
    def keep(self, x, noise, generator):
        return super().keep(x, noise, None)


class FixesPAtConstruction(dropoutlib.Dropout):
    def __init__(self, p):
        super().__init__(p)
        self.first_p = p

    def forward(self, input, **keywords):
        return functional.dropout(input, self.first_p, self.training, **keywords)


class AcceptsAnyP(Planted):
    def __init__(self, p):
        super().__init__()
        self.p = p


class LosesTheMemoryFormat(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.contiguous(), **keywords)


class WritesIntoItsInput(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return input.copy_(super().forward(input, **keywords))


class WidensHalfPrecision(dropoutlib.Dropout):
    def forward(self, input, **keywords):
        return super().forward(input.float(), **keywords)


class ChangesTheVariance(dropoutlib.GaussianDropout):
    """The variance of the raw mask, p(1 - p), as some articles print it."""

    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + math.sqrt(self.p * (1 - self.p)) * torch.randn_like(input))


class TakesTheVarianceForTheDeviation(dropoutlib.GaussianDropout):
    def forward(self, input, *, noise=None, generator=None):
        return input * (1 + self.p / (1 - self.p) * torch.randn_like(input))


class WrongClosedForm(dropoutlib.WeightScalingDropout):
    def variance(self, input):
        return self.p / (1 - self.p) * input**2


PLANTED = [
    (DividesByP, "check_exact_moments"),
    (DividesByP, "check_statistics"),
    (ForgetsToScale, "check_exact_moments"),
    (ForgetsToScale, "check_statistics"),
    (KeepsWithProbabilityP, "check_statistics"),
    (SharesOverTheBatch, "check_statistics"),
    (SharesWithinAnExample, "check_statistics"),
    (SharesBetweenHalves, "check_statistics"),
    (DrawsOnce, "check_statistics"),
    (Multiplies, "check_zero_means_zero"),
    (Multiplies, "check_p_one"),
    (RedrawsInBackward, "check_same_mask"),
    (RedrawsInBackward, "check_compile"),
    (ForgetsTheTestRule, "check_test_rule"),
    (ForgetsTheTestRule, "check_exact_moments"),
    (ScalesAtBothTimes, "check_test_rule"),
    (IgnoresEvaluation, "check_evaluation"),
    (IgnoresEvaluation, "check_export"),
    (DrawsInEvaluation, "check_evaluation"),
    (IgnoresTheGenerator, "check_generator"),
    (IgnoresTheGenerator, "check_checkpoint_refuses_generator"),
    (FixesPAtConstruction, "check_p_assigned"),
    (AcceptsAnyP, "check_bad_p"),
    (LosesTheMemoryFormat, "check_memory_format"),
    (WritesIntoItsInput, "check_strides"),
    (WidensHalfPrecision, "check_dtypes"),
    (WidensHalfPrecision, "check_autocast"),
    (ChangesTheVariance, "check_statistics"),
    (TakesTheVarianceForTheDeviation, "check_statistics"),
    (WrongClosedForm, "check_exact_moments"),
]


@pytest.mark.parametrize(("layer", "check"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_bug_is_caught(layer: type[nn.Module], check: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS[check](layer, torch.device("cpu"))


@pytest.mark.parametrize("check", sorted({check for layer, check in PLANTED if issubclass(layer, Planted)}
                                         - {"check_bad_p", "check_memory_format", "check_p_one",
                                            "check_checkpoint_refuses_generator"}))
def test_the_layer_without_the_bug_passes(check: str) -> None:
    CHECKS[check](Planted, torch.device("cpu"))
