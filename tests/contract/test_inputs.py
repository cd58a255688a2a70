"""What users bring: another default device, inputs of other layouts and types, arguments in the wrong place."""

from __future__ import annotations

import inspect
import io
import math
import re

import numpy as np
import pytest
import torch
from subjects import FACTS, HELD, LARGE, OPT_OUTS, SMALL, assert_raises, assert_same, subject
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.utils._pytree import tree_flatten, tree_unflatten

import dropoutlib
from dropoutlib import functional

CPU = torch.device("cpu")
OF_ELEMENTS = [name for name in HELD if subject(name).elementwise and FACTS[name.split()[0]].law != "none"
               and not FACTS[name.split()[0]].has_weights]
ROWS = {layer: row for row in dropoutlib.catalogue().values() for layer in row.layers}
IDENTITIES = [name for name in HELD if ROWS[name.split()[0]].test_rule == "identity"]
OF_ONE_SIZE = [name for name in HELD if subject(name).axes and not FACTS[name.split()[0]].has_weights]


@pytest.mark.parametrize("name", HELD)
def test_the_default_device_is_not_asked(name: str) -> None:
    kind = subject(name)
    for shape in (SMALL, LARGE):
        x = kind.example(shape, CPU).requires_grad_()
        layer = kind(0.5, x)
        torch.set_default_device("meta")
        try:
            outputs = [layer(x), layer(x, noise=layer.draw(x)), layer.eval()(x)]
            if hasattr(layer, "mean"):
                outputs += [layer.mean(x), layer.variance(x)]
            sum(output.sum() for output in outputs).backward()
            repr(layer)
        finally:
            torch.set_default_device(None)
        assert all(output.device == CPU for output in outputs) and x.grad.device == CPU


@pytest.mark.parametrize("name", HELD)
def test_nothing_leaves_the_graph(name: str) -> None:
    """Where everything is dropped, or nothing, too."""
    kind = subject(name)
    x = kind.example(SMALL, CPU).requires_grad_()
    for p in (0.0, 0.5, 1.0):
        try:
            layer = kind(p, x)
        except (ValueError, ZeroDivisionError):  # it has no such p
            continue
        moments = [layer.mean, layer.variance] if hasattr(layer, "mean") else []
        for function in (layer, *moments, layer.eval()):
            assert function(x).requires_grad, function


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_quantised_tensor_is_returned_in_evaluation(name: str) -> None:
    kind = subject(name)
    x = torch.quantize_per_tensor(kind.example(SMALL, CPU, torch.float32), 0.1, 0, torch.quint8)
    layer = kind(0.5, kind.example(SMALL, CPU))
    assert layer.eval()(x) is x
    assert_raises(RuntimeError, "quint8", lambda: layer.train()(x))


@pytest.mark.parametrize("name", HELD)
def test_sparse_and_tiny_numbers_are_refused_alike_in_both_modes(name: str) -> None:
    kind = subject(name)
    x = kind.example(SMALL, CPU, torch.float32)
    layer = kind(0.5, x)
    for training in (True, False):
        layer.train(training)
        assert_raises(RuntimeError, "to_dense", lambda: layer(x.to_sparse()))
        assert_raises(RuntimeError, "float8", lambda: layer(x.to(torch.float8_e4m3fn)))


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("name", OF_ELEMENTS)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_of_both_layouts_are_dropped(name: str, layout: torch.layout) -> None:
    parts = [torch.ones(300, 4), torch.ones(200, 4)]
    x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    layer = subject(name)(0.5, parts[0])
    y = layer(x)
    assert [part.shape for part in y.unbind()] == [part.shape for part in parts]
    assert all(len(part.unique()) > 1 for part in y.unbind())
    sum(part.sum() for part in y.unbind()).backward()
    for gradient, part in zip(x.grad.unbind(), y.unbind(), strict=True):
        if (name, "check_same_mask") not in OPT_OUTS:
            torch.testing.assert_close(gradient, part.detach())     # of ones, the gradient is the output


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_maps_of_several_sizes_are_refused(name: str) -> None:
    x = torch.nested.nested_tensor([torch.ones(3, 4, 4), torch.ones(3, 2, 4)])
    for training in (True, False):
        layer = subject(name)(0.5, torch.ones(1, 1, 4, 4)).train(training)
        assert_raises(RuntimeError, "nested", lambda layer=layer: layer(x))


def test_a_copy_on_write_tensor_is_not_copied() -> None:
    x = torch._lazy_clone(torch.ones(1 << 16))
    dropoutlib.arguments.is_eager(x)
    assert torch._C._is_cow_tensor(x)


x = torch.ones(1, 4, 4)
REQUIRED = {**dict.fromkeys(("input", "branch", "query", "key", "value"), x), "weight": torch.ones(2, 4),
            "bias": None, "null": torch.ones(4), "lora_A": torch.ones(1, 4), "lora_B": torch.ones(2, 1),
            "alpha": 1.0, "log_sigma2": 0.0, "p_logit": 0.0, "mu": torch.zeros(4),
            "log_s": torch.zeros(4), "kernel_size": 2, "size": 2, "p": 0.4,
            "edge_index": torch.tensor([[0, 1], [1, 0]])}


def called(name: str, **options: object) -> Tensor:
    """A function with the arguments that it cannot do without."""
    function = getattr(functional, name)
    required = {argument: REQUIRED[argument] for argument, parameter in inspect.signature(function).parameters.items()
                if parameter.default is parameter.empty}
    if name.endswith(("1d", "2d", "3d")):
        required["input"] = torch.ones(1, 4, 4, 4, 4)[(0,) * (3 - int(name[-2]))]
        if "weight" in required:
            required["weight"] = torch.ones(4, 4, *[1] * int(name[-2]))
    return function(**required, **options)


WRONG = {
    "a rate for the bias of DropConnect": ("bias.*0.1.*p=", lambda: dropoutlib.DropConnectLinear(8, 4, 0.1)),
    "a rate of 0 for the bias": ("bias.*0.0", lambda: dropoutlib.DropConnectLinear(8, 4, 0.0)),
    "a function for the bias": ("bias.*tanh", lambda: dropoutlib.StandoutLinear(8, 4, torch.tanh)),
    "fast dropout": ("bias", lambda: dropoutlib.FastDropoutLinear(8, 4, 0.1)),
    "variational dropout": ("bias", lambda: dropoutlib.VariationalDropoutLinear(8, 4, 0.1)),
    "inplace": ("inplace", lambda: dropoutlib.Dropout(0.5, 0.1)),
    "inplace of maps": ("inplace", lambda: dropoutlib.SpatialDropout2d(0.5, 1)),
    "ceil_mode": ("ceil_mode", lambda: dropoutlib.MaxPoolDropout2d(2, 2, 0, 1, 0.5)),
    "count_include_pad": ("count_include_pad", lambda: dropoutlib.AvgPoolDropout2d(2, 2, 0, False, 0.5)),
    "stochastic pooling": ("ceil_mode", lambda: dropoutlib.StochasticPool2d(2, 2, 0, 0.5)),
    "num_samples": ("num_samples", lambda: dropoutlib.DropConnectLinear(8, 4, num_samples=True)),
    "a word for a function": ("activation.*relu", lambda: dropoutlib.DropConnectLinear(8, 4, activation="relu")),
    "functional inplace": ("inplace", lambda: functional.dropout(x, 0.5, True, 0.1)),
    **{f"training of {name}": ("training", lambda name=name: called(name, training=0.5)) for name in functional.__all__
       if "training" in inspect.signature(getattr(functional, name)).parameters},
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_is_no_truth_value_is_not_taken_for_one(mistake: str) -> None:
    words, call = WRONG[mistake]
    assert_raises(TypeError, words, call)


def test_a_function_for_a_word_is_refused() -> None:
    for layer, argument in ((dropoutlib.DropConnectLinear, "inference"), (dropoutlib.DropConnectLinear, "sharing"),
                            (dropoutlib.VariationalDropoutLinear, "kind"), (dropoutlib.StandoutLinear, "belief")):
        for value in (torch.relu, ["A"], 1):
            assert_raises(ValueError, argument, lambda layer=layer, argument=argument, value=value: layer(
                8, 4, **{argument: value}))


@pytest.mark.parametrize("bias", [True, False])
def test_batched_derivatives_of_dropconnect_are_those_of_its_masks(bias: bool) -> None:
    layer = dropoutlib.DropConnectLinear(8, 3, bias=bias, dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.manual_seed(3)
    noise = layer.draw(x)

    def given(x: Tensor) -> Tensor:
        return layer(x, noise=noise)

    expected = jacobian(given, x)
    torch.manual_seed(3)
    assert_same(jacobian(layer, x, vectorize=True), expected)
    assert_same(jacobian(given, x, vectorize=True, strategy="forward-mode"), expected)
    leaf = x.requires_grad_()
    torch.manual_seed(3)
    y = layer(leaf)
    assert_same(torch.autograd.grad(y, leaf, torch.eye(12, dtype=x.dtype).reshape(12, 4, 3), is_grads_batched=True)[0],
                expected.reshape(12, 4, 8))

    def drawn(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return layer(x)

    assert torch.autograd.gradcheck(drawn, leaf, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradcheck(given, leaf, check_batched_grad=True, check_forward_ad=True,
                                    check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(drawn, leaf, check_batched_grad=True)


def test_a_rate_that_requires_a_gradient_is_taken_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    rate = torch.tensor(0.2, requires_grad=True)
    y = dropoutlib.StochasticRateDropout()(torch.ones(4), noise=(rate, torch.ones(4)))
    (gradient,) = torch.autograd.grad(y.sum(), rate)
    assert math.isclose(gradient.item(), 4 / 0.8**2, rel_tol=1e-6) and not recwarn.list


@pytest.mark.parametrize("name", HELD)
def test_moments_refuse_what_the_layer_refuses(name: str) -> None:
    kind = subject(name)
    x = kind.example(SMALL, CPU)
    layer = kind(0.5, x)
    for moment in (layer.mean, layer.variance) if hasattr(layer, "mean") else ():
        assert_raises(TypeError, "input has to be a tensor, but got list", lambda moment=moment: moment([1.0]))
        assert_raises(RuntimeError, "floating point", lambda moment=moment: moment(x.long()))
        assert_raises(RuntimeError, "to_dense", lambda moment=moment: moment(x.to_sparse()))


@pytest.mark.parametrize("name", HELD)
def test_what_is_drawn_can_be_stored(name: str) -> None:
    """With the default of torch.load, which takes no class that it does not know."""
    kind = subject(name)
    x = kind.example(SMALL, CPU)
    layer, file = kind(0.3, x), io.BytesIO()
    noise = layer.draw(x)
    torch.save(noise, file)
    file.seek(0)
    assert_same(layer(x, noise=torch.load(file)), layer(x, noise=noise))


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_served_or_refused_in_words(name: str, layout: torch.layout) -> None:
    kind = subject(name)
    shape = (4, 4, 4) if kind.axes else kind.example(SMALL, CPU).shape[-1:]
    parts = [torch.rand(3, *shape), torch.rand(2, *shape)]
    x = torch.nested.nested_tensor(parts, layout=layout)
    layer = kind(0.5, parts[0])
    calls = [lambda: layer.train()(x), lambda: layer.eval()(x), lambda: layer.train().draw(x),
             lambda: layer.train()(x, generator=torch.Generator())]
    if hasattr(layer, "mean"):
        calls += [lambda: layer.mean(x), lambda: layer.variance(x)]
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            assert re.search("nested tensor|images|axes", str(error)), error


OTHER_LAYOUTS = {
    "coordinates": lambda noise: noise.float().to_sparse(),
    "rows": lambda noise: noise.float().reshape(1, -1).to_sparse_csr(),
    "quantized": lambda noise: torch.quantize_per_tensor(noise.float(), 1.0, 0, torch.quint8),
    "mkldnn": lambda noise: noise.float().flatten().to_mkldnn(),
    "nested": lambda noise: torch.nested.nested_tensor([noise.float()]),
    "jagged": lambda noise: torch.nested.nested_tensor([noise.float().flatten()], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:Sparse", "ignore:.*quantize")
@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_noise_of_another_layout_is_refused_by_its_name(name: str, layout: str) -> None:
    """Each part of it by itself."""
    kind = subject(name)
    x = kind.example(SMALL, CPU)
    layer = kind(0.3, x)
    parts, structure = tree_flatten(layer.draw(x))
    for place, part in enumerate(parts):
        if isinstance(part, torch.Tensor):
            others = [*parts[:place], OTHER_LAYOUTS[layout](part), *parts[place + 1:]]
            assert_raises(ValueError, "(noise|rate) has to be",
                          lambda others=others: layer(x, noise=tree_unflatten(others, structure)))


@pytest.mark.parametrize("name", HELD)
def test_lists_are_taken_for_tuples(name: str) -> None:
    kind = subject(name)
    x = kind.example(SMALL, CPU)
    layer = kind(0.3, x)
    noise = layer.draw(x)
    if isinstance(noise, tuple):
        assert_same(layer(x, noise=list(noise)), layer(x, noise=noise))


def test_a_truth_value_of_numpy_is_one() -> None:
    assert dropoutlib.FastDropoutLinear(4, 2, bias=np.bool_(False)).bias is None
    assert_same(functional.dropout(x, 0.5, np.bool_(False)), x)
