"""Compiled, mapped, differentiated, exported, checkpointed, copied."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from subjects import (
    HELD,
    LARGE,
    ON_VECTORS,
    SMALL,
    Layer,
    assert_homogeneous,
    assert_mean,
    assert_noisy,
    assert_raises,
    assert_same,
    batch_axes,
    checks_in,
    covered,
    example,
    subject,
    without_bias,
)
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dropoutlib


def check_compile(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    x = layer.example(LARGE, device).requires_grad_()
    train, evaluate = without_bias(layer(0.3, x)), layer(0.3, x).eval()
    noise = layer.noise(train, x)
    compiled = torch.compile(lambda x, noise: (train(x), evaluate(x), train(x, noise=noise)), backend="aot_eager",
                             fullgraph=True)
    drawn, evaluated, given = compiled(x, noise)
    (gradient,) = torch.autograd.grad(drawn.sum(), x)
    assert_homogeneous(layer, x, gradient, drawn)
    torch.testing.assert_close(evaluated, evaluate(x))
    torch.testing.assert_close(given, train(x, noise=noise))
    again = compiled(x, noise)
    assert not torch.equal(again[0], drawn) and torch.equal(again[1], evaluated) and torch.equal(again[2], given)
    if layer.elementwise and isinstance(train, _DropoutNd):
        train.p = 0.0
        assert_same(compiled(x, noise)[0], x)


def check_compile_dynamic(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    module = layer(0.3, layer.example((2, 5), device))
    compiled = torch.compile(lambda x, noise: (module(x), module(x, noise=noise)), backend="aot_eager",
                             fullgraph=True, dynamic=True)
    # The first batch has a size that no other axis has, which the compiler would take for the same number.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 4), (70, 60), (2, 9)) if layer.elementwise else ((11, 5), (1300, 5), (2, 5)):
            x = layer.example(shape, device)
            noise = layer.noise(module, x)
            drawn, given = compiled(x, noise)
            assert drawn.shape == layer.without_noise(x).shape
            torch.testing.assert_close(given, module(x, noise=noise))


def check_vmap(layer: Layer, device: torch.device) -> None:
    for columns in (40, 4096) if layer.elementwise else (40,):
        x = layer.example((1, columns), device, torch.float32)
        x = x.expand(6, *x.shape[1:])
        module = layer(0.5, x)
        single = layer.mapped(module)
        assert_raises(RuntimeError, "randomness", lambda single=single, x=x: torch.vmap(single)(x))
        same = torch.vmap(single, randomness="same")(x)
        assert (same == same[0]).all()
        assert_noisy(layer, same, x)
        different = torch.vmap(single, randomness="different")(x)
        closed_over = torch.vmap(lambda _, x=x, single=single: single(x[0]), randomness="different")(x)
        for y in (different, closed_over):
            assert y.shape == same.shape and len(y.unique(dim=0)) == 6
        noise = layer.noise(module, x)
        mapped = torch.vmap(layer.mapped(lambda x, noise, module=module: module(x, noise=noise)),
                            in_dims=(0, batch_axes(noise)))(x, noise)
        torch.testing.assert_close(mapped, module(x, noise=noise))
        torch.testing.assert_close(torch.vmap(layer.mapped(layer(0.5, x).eval()))(x), layer(0.5, x).eval()(x))


def check_functional_transforms(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        module = without_bias(layer(0.3, x))
        noise = layer.noise(module, x)

        def function(x: Tensor, noise: Tensor = noise, module: nn.Module = module) -> Tensor:
            return module(x, noise=noise)

        gradient = torch.func.grad(lambda x, f=function: f(x).sum())(x)
        assert_homogeneous(layer, x, gradient, function(x))
        y, tangent = torch.func.jvp(function, (x,), (x,))
        torch.testing.assert_close(tangent, y)
        single = layer.mapped(function)
        per_example = torch.vmap(torch.func.grad(lambda x, n, f=single: f(x, n).sum()),
                                 in_dims=(0, batch_axes(noise)))(x, noise)
        torch.testing.assert_close(per_example, gradient)
        drawn, vjp = torch.func.vjp(module, x)
        assert_homogeneous(layer, x, vjp(torch.ones_like(drawn))[0], drawn)


def check_seed(layer: Layer, device: torch.device) -> None:
    """What only looks on, or differentiates, changes no draw; else a checkpoint could draw other noise again."""
    for shape in (SMALL, LARGE):
        x = layer.example(shape, device)
        module = layer(0.3, x)
        for formatted in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
            for generator in (None, torch.Generator(device)):

                def call(x: Tensor, module: nn.Module = module, generator: object = generator) -> Tensor:
                    keywords = {} if generator is None else {"generator": generator.manual_seed(1)}
                    torch.manual_seed(1)
                    return module(x, **keywords)

                outside = call(formatted)
                with FlopCounterMode(display=False):
                    torch.testing.assert_close(call(formatted), outside)
                gradient = torch.func.grad(lambda x, call=call: ((y := call(x)).sum(), y), has_aux=True)
                torch.testing.assert_close(gradient(formatted)[1], outside)
                torch.testing.assert_close(torch.func.jvp(call, (formatted,), (formatted,))[0], outside)


def check_export(layer: Layer, device: torch.device) -> None:
    x = layer.example(LARGE, device, torch.float32)
    model = nn.Sequential(layer(0.3, x), layer(0.6, x)).eval()
    program = torch.export.export(model, (x,))
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", [])
        assert torch.Tag.nondeterministic_seeded not in tags, f"{node.target} is random"
    torch.testing.assert_close(program.module()(x), model(x))


class NamesModules(fx.Tracer):
    """A tracer as torchvision's: it calls every module through its own method, and knows the module of every node."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.modules = "", {}

    def call_module(self, m: nn.Module, forward, args, kwargs):
        outside, self.inside = self.inside, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.inside = outside

    def create_proxy(self, *arguments, **options):
        proxy = super().create_proxy(*arguments, **options)
        self.modules[proxy.node.name] = self.inside
        return proxy


def check_symbolic_trace(layer: Layer, device: torch.device) -> None:
    x = layer.example(LARGE, device)
    module = layer(0.3, x)
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model, tracer = nn.Sequential(nn.Identity(), module), NamesModules()
    traced = fx.GraphModule(model, tracer.trace(model))
    assert not seen, "a hook was called while the layer was traced"
    assert list(tracer.modules.values()) == ["", "0", "1"]
    assert traced.get_submodule("1") is module
    for mode in (True, False, True):
        traced.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert_same(traced(x), expected)
    if "p" in vars(module):
        module.p = 0.0
        assert_same(traced(x), module(x))


def check_checkpoint(layer: Layer, device: torch.device) -> None:
    for shape in (SMALL, LARGE):
        for reentrant in (False, True):
            x = layer.example(shape, device).requires_grad_()
            module = without_bias(layer(0.5, x))
            y = checkpoint(lambda x, module=module: module(x) ** 2, x, use_reentrant=reentrant)
            (gradient,) = torch.autograd.grad(y.sum(), x) if not reentrant else (y.sum().backward(), x.grad)[1:]
            assert_homogeneous(layer, x, gradient, y, degree=2)  # not so if the second forward draws anew


def check_checkpoint_refuses_generator(layer: Layer, device: torch.device) -> None:
    """torch would not restore the generator, and the gradient would be that of another draw."""
    generator = torch.Generator(device).manual_seed(0)
    x = layer.example(LARGE, device).requires_grad_()
    module = layer(0.5, x)
    for reentrant in (False, True):
        assert_raises(RuntimeError, "generator", lambda reentrant=reentrant: checkpoint(
            lambda x: module(x, generator=generator), x, use_reentrant=reentrant))


def check_compile_refuses_generator(layer: Layer, device: torch.device) -> None:
    torch._dynamo.reset()
    x = layer.example(LARGE, device)
    module, generator = layer(0.5, x), torch.Generator(device).manual_seed(0)
    compiled = torch.compile(lambda x: module(x, generator=generator), backend="aot_eager", fullgraph=True)
    assert_raises(Exception, "(?i)generator", lambda: compiled(x))


def check_copies(layer: Layer, device: torch.device) -> None:
    x = layer.example(SMALL, device)
    module = nn.Sequential(layer(0.3, x), layer(0.7, x).eval())
    noise = layer.noise(module[0], x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert [(repr(m), m.training) for m in other] == [(repr(m), m.training) for m in module]
        assert_same(other.state_dict(), module.state_dict())
        assert_same(other[0](x, noise=noise), module[0](x, noise=noise))
        assert_same(other[1](x), module[1](x))


CHECKS = checks_in(globals())


@pytest.mark.parametrize(("name", "check"), covered(CHECKS))
def test_transforms(name: str, check: str, device: str) -> None:
    CHECKS[check](subject(name), torch.device(device))


def test_full_compiler(device: str) -> None:
    """The layers in one network, through the whole compiler."""
    torch._dynamo.reset()
    x = example((256, 64), torch.device(device), torch.float32)
    subjects = [subject(name) for name in ON_VECTORS]
    layers = nn.ModuleList(without_bias(layer(0.3, x)) for layer in subjects)

    def function(x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in layers])

    compiled = torch.compile(function, fullgraph=True)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close((gradient * x).sum(), y.sum(), rtol=1e-4, atol=0)
    for layer, output, kind in zip(layers, y, subjects, strict=True):
        if not hasattr(layer, "mean") or type(kind).__name__ == "LayerOfCandidates":    # examples share its noise
            continue
        noise = ((output - layer.mean(x)) / layer.variance(x).sqrt()).detach()
        if getattr(layer, "kind", "A") == "A":  # else the elements of an example share their noise
            assert_mean(noise, 0.0, "mean")
            if type(kind).__name__ != "LayerWithRate":   # the variance of one call is that of its rate
                assert_mean(noise**2, 1.0, "variance")
        assert_mean(noise[1:, 0] * noise[:-1, 0], 0.0, "covariance of examples")
        assert_homogeneous(kind, x, torch.func.grad(lambda x, f=layer: f.eval()(x).sum())(x), layer.eval()(x)) \
            if kind.elementwise else None
    layers.eval()
    torch.testing.assert_close(compiled(x), function(x))


class Beside(nn.ModuleDict):
    """Layers side by side, so that they are exported at once."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.values()]


def onnx_groups() -> dict[tuple[int, ...], list[str]]:
    """The layers that take the same input."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in HELD:
        groups.setdefault(subject(name).axes, []).append(name)
    return groups


def assert_runs_in_onnx(layers: dict[str, nn.Module], x: Tensor) -> None:
    """The graphs of the layers hold nothing random, run, and give the same."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Beside(layers).eval()
    graph = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    operations = " ".join(node.op_type for node in graph.graph.node)
    assert not re.search("Dropout|Bernoulli|Multinomial|Random", operations), operations
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for name, output, expected in zip(layers, outputs, model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected.detach(), msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("axes", onnx_groups(), ids=str)
def test_exported_with_a_batch_of_any_size(axes: tuple[int, ...]) -> None:
    names = onnx_groups()[axes]
    x = subject(names[0]).example(SMALL, torch.device("cpu"), torch.float32)
    model = Beside({name: subject(name)(0.3, x) for name in names})
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    larger = torch.cat([x, x])
    assert [output.shape for output in program(larger)] == [output.shape for output in model(larger)]


@pytest.mark.parametrize("axes", onnx_groups(), ids=str)
def test_exported_to_onnx(axes: tuple[int, ...]) -> None:
    names = onnx_groups()[axes]
    x = subject(names[0]).example(SMALL, torch.device("cpu"), torch.float32)
    assert_runs_in_onnx({name: subject(name)(0.3, x) for name in names}, x)


def test_test_rules_exported_to_onnx() -> None:
    activations = {"relu": torch.relu, "sigmoid": torch.sigmoid, "GELU": nn.GELU()}
    rules = {f"{rule} of {name}": dropoutlib.DropConnectLinear(8, 5, activation=activation, inference=rule)
             for name, activation in activations.items() for rule in ("gaussian", "mean")}
    assert_runs_in_onnx({**rules, "learned": dropoutlib.StandoutLinear(8, 5, belief="learned")}, torch.rand(6, 8) - 0.5)


def test_noise_in_an_exported_graph_is_noticed() -> None:
    sampled = dropoutlib.DropConnectLinear(8, 5, activation=torch.relu, inference="sampled")
    assert_raises(AssertionError, "Random", lambda: assert_runs_in_onnx({"sampled": sampled}, torch.rand(6, 8)))
