"""Layers whose input or output is of another form: recurrent networks, and tables of words."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from subjects import FACTS, TABLE, assert_raises, assert_same, random_state
from test_distributed import CPU, in_two_processes
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

import dropoutlib
from dropoutlib import functional

T, B, D, H = 5, 3, 5, 6
NETWORKS = [name for name in TABLE if FACTS[name].replaces in ("LSTM", "GRU")]
STACKED: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dropout": 0.2}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "RecurrentDropoutLSTM": [{"sharing": "sequence"}], "RecurrentDropoutGRU": [{"sharing": "sequence"}],
    "VariationalLSTM": [{"gates": "untied", "p_output": 0.3}], "VariationalGRU": [{"gates": "untied"}]}
SUBJECTS = [(name, options) for name in NETWORKS for options in [{}, STACKED, *VARIANTS.get(name, [])]]
NAMES = [name + "".join(f" {key}={value}" for key, value in options.items()) for name, options in SUBJECTS]
every = pytest.mark.parametrize(("name", "options"), SUBJECTS, ids=NAMES)


def rates(name: str) -> list[str]:
    return [key for key in inspect.signature(getattr(dropoutlib, name)).parameters if key.split("_")[0] == "p"]


def made(name: str, device: str, rate: float | None = 0.4, dtype: torch.dtype = torch.float64, **options: Any
         ) -> Any:
    torch.manual_seed(0)
    given = {} if rate is None else dict.fromkeys(rates(name), rate)
    return getattr(dropoutlib, name)(D, H, **{**given, **options}, device=device, dtype=dtype)


def sequences(device: str, dtype: torch.dtype = torch.float64, batch: int = B) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T, batch, D, generator=generator, dtype=torch.float64).to(device, dtype)


def everything(layer: nn.Module, *arguments: Any, **keywords: Any) -> list[Tensor]:
    """The output, the last state, and the gradients of all parameters."""
    output, last = layer(*arguments, **keywords)
    parts, _ = tree_flatten((output.data if isinstance(output, PackedSequence) else output, last))
    total = sum(((i + 1) * part.sin()).sum() for i, part in enumerate(parts))
    return [*parts, *torch.autograd.grad(total, list(layer.parameters()))]


def twin_of_torch(name: str, device: str, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A layer without noise, and torch's own with the same weights."""
    layer = made(name, device, 0.0, dtype, **options)
    of_torch = getattr(nn, FACTS[name].replaces)(D, H, device=device, dtype=dtype, **options)
    layer.load_state_dict(of_torch.state_dict())
    return layer, of_torch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_noise_it_is_the_layer_of_torch(name: str, dtype: torch.dtype, tolerance: float, device: str) -> None:
    x = sequences(device, dtype)
    packed = pack_sequence([x[:3, 0], x[:5, 1], x[:3, 2]], enforce_sorted=False)
    ordered = pack_padded_sequence(x, torch.tensor([5, 4, 4]))
    for options in ({}, {"bias": False}, {"num_layers": 2, "bidirectional": True}):
        layer, of_torch = twin_of_torch(name, device, dtype, **options)
        assert list(layer.state_dict()) == list(of_torch.state_dict())
        count = 4 if "num_layers" in options else 1
        h, c = (torch.randn(count, B, H, device=device, dtype=dtype) for _ in range(2))
        state = (h, c) if FACTS[name].replaces == "LSTM" else h
        single = tree_map(lambda part: part[:, 0], state)
        for mode in (True, False):
            layer.train(mode)
            for arguments in ((x,), (x, state), (x[:, 0],), (x[:, 0], single), (packed,), (packed, state), (ordered,)):
                for one, other in zip(everything(layer, *arguments), everything(of_torch, *arguments), strict=True):
                    torch.testing.assert_close(one, other, rtol=tolerance, atol=100 * tolerance)
            output = layer(packed)[0]
            assert_same(output.sorted_indices, packed.sorted_indices)
            assert_same(output.batch_sizes, packed.batch_sizes)


@every
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_sequences_as_those_of_torch(name: str, options: dict[str, Any], dtype: torch.dtype, device: str
                                             ) -> None:
    x = 0.1 * sequences(device, dtype) * (1 + 2j)     # far from the poles of complex gates
    layer, exact = (made(name, device, dtype=kind, **options) for kind in (dtype, torch.complex128))
    exact.load_state_dict(layer.state_dict())
    noise = layer.draw(x)
    one, other = (network(y, noise=noise)[0] for network, y in ((layer, x), (exact, x.to(torch.complex128))))
    torch.testing.assert_close(one, other.to(dtype), rtol=1e-3, atol=1e-4)
    layer, of_torch = twin_of_torch(name, device, dtype)
    torch.testing.assert_close(layer(x)[0], of_torch(x)[0], rtol=1e-3, atol=1e-4)


@every
def test_gradients_of_complex_sequences(name: str, options: dict[str, Any], device: str) -> None:
    layer = made(name, device, dtype=torch.complex128, **options)
    x = (0.1 * sequences(device, torch.complex128, 1)[:2] * (1 + 2j)).requires_grad_()
    noise = layer.draw(x)
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=noise)[0], x, fast_mode=True)


@every
def test_batch_first_turns_input_and_output(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device)
    turned = made(name, device, batch_first=True, **options)
    noise = layer.draw(x)
    output, last = layer(x, noise=noise)
    again, same = turned(x.transpose(0, 1), noise=noise)
    torch.testing.assert_close(again.transpose(0, 1), output)
    torch.testing.assert_close(same, last)


@every
def test_to_draw_and_then_to_apply_is_to_call(name: str, options: dict[str, Any], device: str) -> None:
    layer, once, twice = made(name, device, **options), torch.Generator(device), torch.Generator(device)
    x = sequences(device)
    for given in (x, x[:, 0], pack_padded_sequence(x, torch.tensor([5, 4, 4]))):
        called = everything(layer, given, generator=once.manual_seed(4))
        noise = layer.draw(given, generator=twice.manual_seed(4))
        assert_same(once.get_state(), twice.get_state())
        assert_same(everything(layer, given, noise=noise), called)
        assert_same(everything(layer, given, noise=tree_map(torch.Tensor.float, noise)), called)
        torch.manual_seed(5)
        called, after = everything(layer, given), random_state(torch.device(device))
        torch.manual_seed(5)
        assert_same(everything(layer, given, noise=layer.draw(given)), called)
        assert_same(random_state(torch.device(device)), after)


@every
def test_evaluation_draws_nothing(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options).eval(), sequences(device)
    before = random_state(torch.device(device))
    assert_same(layer(x), layer(x))
    assert_same(random_state(torch.device(device)), before)
    assert_raises(ValueError, "train", lambda: layer.draw(x))
    noise = layer.train().draw(x)
    assert not torch.equal(layer(x)[0], layer.eval()(x)[0])
    assert_raises(ValueError, r"noise.*train\(\)", lambda: layer(x, noise=noise))


@every
def test_packed_sequences_are_those_of_their_length(name: str, options: dict[str, Any], device: str) -> None:
    """With the masks of an example, each sequence gives by itself what it gives among others."""
    layer, x, lengths = made(name, device, **options), sequences(device), [3, 5, 1]
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    noise = layer.draw(packed)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(layer(packed, noise=noise)[0])
    assert found.tolist() == lengths
    last = layer(packed, noise=noise)[1]
    for example, length in enumerate(lengths):
        def own(part: Tensor, example: int = example, length: int = length) -> Tensor:
            if part.dim() == 3 and part.shape[-2:] == layer.weight_hh_l0.shape:    # common to the batch
                return part
            axis = part.shape.index(B)
            part = part.narrow(axis, example, 1)
            return part.narrow(axis - 1, 0, length) if part.shape[axis - 1] == T else part

        output, state = layer(x[:length, example:example + 1], noise=tree_map(own, noise))
        torch.testing.assert_close(padded[:length, example], output[:, 0])
        torch.testing.assert_close(tree_map(lambda part, e=example: part[:, e], last),
                                   tree_map(lambda part: part[:, 0], state))
    assert not padded[3:, 0].any()


@every
def test_gradients_with_the_noise_held_fixed(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device)[:3, :2].requires_grad_()
    noise = layer.draw(x)

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, last = torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), weights,
                                                                  strict=True)), (x,), {"noise": noise})
        return output, *tree_flatten(last)[0]

    weights = [weight.detach().requires_grad_() for weight in layer.parameters()]
    assert torch.autograd.gradcheck(function, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *weights), fast_mode=True)


@every
@pytest.mark.parametrize("training", [True, False])
def test_the_output_may_be_written_into(name: str, options: dict[str, Any], training: bool, device: str) -> None:
    layer, x = made(name, device, **options).train(training), sequences(device)
    noise = layer.draw(x) if training else None
    for batch_first in (False, True):
        layer.batch_first = batch_first
        given = x.transpose(0, 1) if batch_first else x
        expected = torch.autograd.grad((3 * layer(given, noise=noise)[0]).sin().sum(), list(layer.parameters()))
        output, _ = layer(given, noise=noise)
        found = torch.autograd.grad(output.mul_(3).sin().sum(), list(layer.parameters()))
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_half_precision(name: str, options: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    layer, x = made(name, device, dtype=dtype, **options), sequences(device, dtype)
    noise = layer.draw(x)
    exact = copy.deepcopy(layer).double()
    for mode in (True, False):
        given = {"noise": noise} if mode else {}
        output = layer.train(mode)(x, **given)[0]
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), exact.train(mode)(x.double(), **given)[0], rtol=0,
                                   atol=30 * torch.finfo(dtype).eps)
        output.float().sum().backward()
        assert all(part.grad.isfinite().all() for part in layer.parameters())


@every
def test_autocast(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, dtype=torch.float32, **options), sequences(device, torch.float32)
    for mode in (True, False):
        with torch.autocast(device, dtype=torch.bfloat16):
            output, _ = layer.train(mode)(x)
        assert output.dtype == torch.bfloat16
        output.float().sum().backward()
        assert all(part.grad.dtype == torch.float32 for part in layer.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled(name: str, device: str) -> None:
    torch._dynamo.reset()
    options = VARIANTS.get(name, [{"num_layers": 2, "dropout": 0.3}])[0]
    layer, x = made(name, device, dtype=torch.float32, **options), sequences(device, torch.float32)[:3]
    noise, evaluated = layer.draw(x), copy.deepcopy(layer).eval()
    compiled = torch.compile(lambda x, noise: (layer(x)[0], layer(x, noise=noise), evaluated(x)),
                             backend="aot_eager", fullgraph=True)
    drawn, given, plain = compiled(x, noise)
    torch.testing.assert_close(given, layer(x, noise=noise))
    torch.testing.assert_close(plain, evaluated(x))
    drawn.sum().backward()
    assert all(part.grad is not None for part in layer.parameters())
    assert not torch.equal(compiled(x, noise)[0], drawn)


@every
def test_vmap_and_forward_mode(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device)
    if options != STACKED:
        different = torch.vmap(lambda x: layer(x)[0], in_dims=1, randomness="different")(x[:, :1].expand(-1, 3, -1))
        assert len(different.unique(dim=0)) == 3
        assert_raises(RuntimeError, "randomness", lambda: torch.vmap(lambda x: layer(x)[0], in_dims=1)(x))
        torch.testing.assert_close(torch.vmap(lambda x: layer.eval()(x)[0], in_dims=1, out_dims=1)(x),
                                   layer.eval()(x)[0])
    noise = layer.train().draw(x)
    y, tangent = torch.func.jvp(lambda x: layer(x, noise=noise)[0], (x,), (x,))
    torch.testing.assert_close(y, layer(x, noise=noise)[0])
    step = 1e-6
    ahead, behind = (layer(x * (1 + s), noise=noise)[0] for s in (step, -step))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@every
def test_a_checkpoint_draws_the_same_again(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device).requires_grad_()
    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(layer(x)[0].sin().sum(), x)
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(checkpoint(lambda x: layer(x)[0], x, use_reentrant=False).sin().sum(), x)
    torch.testing.assert_close(gradient, expected)
    generator = torch.Generator(device)
    assert_raises(RuntimeError, "generator", lambda: checkpoint(lambda x: layer(x, generator=generator)[0], x,
                                                                use_reentrant=False))


@every
def test_copies(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device)
    noise, buffer = layer.draw(x), io.BytesIO()
    torch.save((layer.state_dict(), noise), buffer)
    buffer.seek(0)
    weights, kept = torch.load(buffer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), made(name, device, **options)):
        other.load_state_dict(weights)
        assert repr(other) == repr(layer)
        assert_same(other(x, noise=kept), layer(x, noise=noise))


@pytest.mark.parametrize("name", NETWORKS)
def test_meta_and_another_default_device(name: str, device: str) -> None:
    layer = made(name, device, dtype=torch.float32, **STACKED)
    x = sequences(device, torch.float32)
    with torch.device("meta"):
        assert layer(x)[0].isfinite().all()
    for module in (copy.deepcopy(layer).to("meta"), copy.deepcopy(layer).to("meta").eval()):
        assert module(x.to("meta"))[0].shape == (T, B, 2 * H)


@pytest.mark.parametrize("name", NETWORKS)
def test_long_sequences_stay_finite(name: str, device: str) -> None:
    layer = made(name, device, dtype=torch.float32)
    x = torch.randn(2000, 2, D, device=device, requires_grad=True)
    output, last = layer(x)
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()
    assert all(part.isfinite().all() for part in tree_flatten(last)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_exported(name: str) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = made(name, "cpu", dtype=torch.float32, bidirectional=True, num_layers=2).eval()
    x = sequences("cpu", torch.float32)
    program = torch.export.export(layer, (x,))
    for node in program.graph.nodes:    # the kernels of torch can draw, but are told not to: their dropout is 0
        if node.target in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
            assert 0.0 in node.args
        else:
            assert torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", [])
    torch.testing.assert_close(program.module()(x), layer(x))
    graph = torch.onnx.export(layer, (x,), dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    torch.testing.assert_close(output, layer(x)[0].detach(), rtol=1e-4, atol=1e-5)


def bad_calls(name: str) -> list[tuple[Any, str, Any]]:
    layer, x = made(name, "cpu"), sequences("cpu")
    is_lstm = FACTS[name].replaces == "LSTM"
    h = torch.zeros(1, B, H, dtype=torch.float64)
    state = (h, h) if is_lstm else h
    (rate, *_) = rates(name)
    calls = [
        (TypeError, "tensor.*list", lambda: layer([1.0])),
        (ValueError, "Expected input to be 2D or 3D, got 4D", lambda: layer(x[None])),
        (RuntimeError, "input_size. Expected 5, got 4", lambda: layer(x[..., :4])),
        (ValueError, "does not match weight dtype", lambda: layer(x.float())),
        (RuntimeError, "floating point", lambda: layer(x.long())),
        (RuntimeError, "sequence length to be larger than 0", lambda: layer(x[:0])),
        (RuntimeError, r"size \(1, 3, 6\), got \[1, 2, 6\]", lambda: layer(x, tree_map(lambda s: s[:, :2], state))),
        (RuntimeError, "For unbatched 2-D input", lambda: layer(x[:, 0], state)),
        (RuntimeError, "For batched 3-D input", lambda: layer(x, tree_map(lambda s: s[:, 0], state))),
        (ValueError, "type", lambda: layer(x, tree_map(torch.Tensor.float, state))),
        (TypeError, "generator.*int", lambda: layer(x, generator=0)),
        (ValueError, "probability has to be between 0 and 1, but got 1.5", lambda: made(name, "cpu", 1.5)),
        (TypeError, "real number", lambda: made(name, "cpu", **{rate: "0.5"})),
        (ValueError, "proj_size has to be 0, but got 3", lambda: made(name, "cpu", proj_size=3)),
        (ValueError, "dropout should be a number in range", lambda: made(name, "cpu", dropout=1.5)),
        (TypeError, "bidirectional has to be True or False, but got 0.5", lambda: made(name, "cpu", bidirectional=0.5)),
        (ValueError, "hidden_size has to be at least 1, but got 0", lambda: getattr(dropoutlib, name)(D, 0)),
        (ValueError, "num_layers has to be at least 1", lambda: made(name, "cpu", num_layers=0)),
        (RuntimeError, "(?i)length", lambda: layer(pack_padded_sequence(x, torch.tensor([2, 5, 1])))),
    ]
    if is_lstm:
        calls.append((TypeError, "hx has to be a pair of tensors", lambda: layer(x, h)))
    parts, spec = tree_flatten(layer.draw(x))
    for place, part in enumerate(parts):
        if part.numel() == 0:
            continue
        for words, spoilt in (("shape", part[..., :-1]), ("keep mask", 0.5 * part.double()),
                              ("device", part.to("meta"))):
            noise = tree_unflatten([spoilt if i == place else other for i, other in enumerate(parts)], spec)
            calls.append((ValueError, f"noise.*{words}", lambda noise=noise: layer(x, noise=noise)))
    calls.append((TypeError, "noise", lambda: layer(x, noise=[1.0] if len(parts) == 1 else parts[0])))
    return calls


@pytest.mark.parametrize("name", NETWORKS)
def test_bad_calls_are_told_why(name: str) -> None:
    for kind, words, call in bad_calls(name):
        assert_raises(kind, words, call)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        made(name, "cpu", dropout=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_rates_are_read_at_every_call(name: str, device: str) -> None:
    layer, x = made(name, device), sequences(device)
    for rate in rates(name):
        setattr(layer, rate, 0.0)
        assert f"{rate}=0.0" in repr(layer)
    output = layer(x)[0]
    plain = made(name, device, 0.0)
    torch.testing.assert_close(output, plain(x)[0])
    for rate in rates(name):
        setattr(layer, rate, math.nan)
        for mode in (True, False):
            if mode or "Zoneout" in name:
                assert_raises(ValueError, "probability has to be.*nan", lambda mode=mode: layer.train(mode)(x))
        setattr(layer, rate, 0.0)


@every
def test_another_draw_at_every_call_and_for_every_example(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device, batch=1).expand(-1, 8, -1)
    first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)
    examples = len(first.round(decimals=9).unique(dim=1)[0])
    assert examples == (1 if name.startswith("WeightDrop") and not options.get("dropout") else 8)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float64, 1e20), (torch.float32, 1e20), (torch.bfloat16, 1e20),
                                              (torch.float16, 1e4)], ids=str)
@pytest.mark.parametrize("name", ["RNNDropLSTM", "RecurrentDropoutLSTM", "ZoneoutLSTM", "ZoneoutGRU"])
def test_a_closed_gate_stays_closed_whatever_it_reads(name: str, dtype: torch.dtype, large: float, device: str) -> None:
    layer = getattr(dropoutlib, name)(1, 8, **dict.fromkeys(rates(name), 0.5), device=device, dtype=dtype)
    x = (large * sequences(device)[..., :1]).to(dtype).requires_grad_()
    nothing = tree_map(torch.zeros_like, layer.draw(x))
    output, _ = layer(x, noise=nothing)
    output.sum().backward()
    assert not output.any() and not x.grad.any()


@every
def test_many_gradients_at_once(name: str, options: dict[str, Any], device: str) -> None:
    layer, x = made(name, device, **options), sequences(device)
    noise = layer.draw(x)

    def ends(x: Tensor) -> Tensor:
        return layer(x, noise=noise)[0][:, 0, :2]

    at_once, one_by_one = (torch.autograd.functional.jacobian(ends, x, vectorize=vectorize)
                           for vectorize in (True, False))
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("Zoneout")])
def test_what_was_traced_takes_other_lengths(name: str, device: str) -> None:
    layer = made(name, device).eval()
    traced, x = torch.jit.trace(layer, (sequences(device),)), sequences(device).repeat(2, 2, 1)
    assert_same(traced(x)[0], layer(x)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_rate_is_refused_in_evaluation_too(name: str, device: str) -> None:
    for rate in rates(name):
        layer = made(name, device).eval()
        setattr(layer, rate, math.nan)
        assert_raises(ValueError, "nan", lambda layer=layer: layer(sequences(device)))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_listed_as_torch_lists_them(name: str) -> None:
    layer, of_torch = twin_of_torch(name, "cpu", torch.float32, num_layers=2, bidirectional=True)
    assert layer._all_weights == of_torch._all_weights
    assert_same(layer.all_weights, of_torch.all_weights)


@every
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_gradients_of_zero(name: str, options: dict[str, Any], training: bool) -> None:
    layer = made(name, "cpu", **options).train(training)
    x = sequences("cpu", batch=3)[:, :0].requires_grad_()
    output, _ = layer(x)
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(part.grad is not None and (part.grad == 0).all() for part in layer.parameters())


@every
def test_saved_tensors_may_be_changed(name: str, options: dict[str, Any]) -> None:
    layer, x = made(name, "cpu", **options), sequences("cpu")
    noise = layer.draw(x)
    expected = everything(layer, x, noise=noise)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        torch.testing.assert_close(everything(layer, x, noise=noise), expected)  # the plain loop rounds otherwise


def wrapped(rank: int, directory: str) -> None:
    for name, options in itertools.product(NETWORKS, ({}, {"num_layers": 2, "dropout": 0.3})):
        layer = made(name, "cpu", dtype=torch.float32, **options)
        parallel = nn.parallel.DistributedDataParallel(layer)
        torch.manual_seed(rank)
        parallel(torch.randn(T, B, D))[0].sum().backward()
        for part in layer.parameters():
            grads = [torch.empty_like(part) for _ in range(2)]
            torch.distributed.all_gather(grads, part.grad)
            assert_same(grads[0], grads[1])
            assert part.grad.isfinite().all() and part.grad.device == CPU


def test_two_processes_share_gradients(tmp_path) -> None:
    in_two_processes(wrapped, tmp_path)


class Tagger(nn.Module):
    """Words, a recurrent layer, and a number for each step."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.words = dropoutlib.EmbeddingDropout(7, D, p=0.3)
        self.network = made(name, "cpu", dtype=torch.float32, **options)
        self.output = nn.LazyLinear(1)

    def forward(self, words: Tensor) -> Tensor:
        return self.output(self.network(self.words(words))[0])


def sharded(rank: int, directory: str) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh, words = torch.distributed.device_mesh.init_device_mesh("cpu", (2,)), torch.arange(T * B).reshape(T, B) % 7
    for name, options in itertools.product(NETWORKS, ({}, STACKED)):
        torch.manual_seed(0)
        whole = Tagger(name, **options)
        whole(words)
        for every_layer in (False, True):
            model = copy.deepcopy(whole)
            for part in model.children() if every_layer else ():
                fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert_same(model.eval()(words), whole.eval()(words))
            assert type(model.train().words.draw(words)) is Tensor
            model(words).square().mean().backward()
            for key, part in model.named_parameters():
                gradient = part.grad.full_tensor()
                assert gradient.isfinite().all() and gradient.any(), (name, key)


def test_shards_of_two_processes_make_the_whole(tmp_path) -> None:
    in_two_processes(sharded, tmp_path)


def test_words_are_drawn_and_then_applied(device: str) -> None:
    words = torch.tensor([[0, 3, 3], [1, 0, 2]], device=device)
    table = torch.randn(5, 4, device=device, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"sharing": "sample"}, {"sharing": "sample", "batch_first": True}):
        once, twice = (torch.Generator(device).manual_seed(7) for _ in range(2))
        y = functional.embedding_dropout(words, table, 0.4, generator=once, **options)
        noise = functional.draw(functional.embedding_dropout, words, table, 0.4, generator=twice, **options)
        assert_same(once.get_state(), twice.get_state())
        again = functional.embedding_dropout(words, table, 0.4, noise=noise, **options)
        assert_same(again, y)
        assert_same(torch.autograd.grad(again.sin().sum(), table), torch.autograd.grad(y.sin().sum(), table))
        layer = dropoutlib.EmbeddingDropout(5, 4, p=0.4, **options, device=device, dtype=torch.float64)
        assert_same(layer.draw(words, generator=twice.manual_seed(7)), noise)
        assert_raises(ValueError, "draws nothing", lambda options=options: functional.draw(
            functional.embedding_dropout, words, table, training=False, **options))
