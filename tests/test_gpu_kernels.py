"""The kernels for a GPU, on a card or in Triton's interpreter: bit for bit what Philox gives, and nothing in memory."""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import dropoutlib
from dropoutlib.benchmark.compiled import Compiled, compiled_kernels
from dropoutlib.kernels import cpu, gpu
from dropoutlib.noise import Bernoulli, Gaussian, apply

kernels = pytest.importorskip("dropoutlib.kernels.triton_kernels", reason="without Triton")
STRIPE = kernels.STRIPE
P = 0.3


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch, device):
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels run on the card, and are not interpreted")
    monkeypatch.setattr(gpu, "_KINDS", {device})
    for name in ("_SMALLEST", "_SMALLEST_IN_TWO_PARTS"):
        monkeypatch.setattr(cpu, name, 2**62)


# --- what the kernels are held to: Philox4x32-10 in whole numbers of torch --------------------------------------------

LOW = 2**32 - 1


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low half of 64 bits, of which torch's whole numbers hold 63."""
    upper = factor * (word >> 16) + (factor * (word & 0xFFFF) >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16 | (factor * word & 0xFFFF))


def philox(seed: int, calls: Tensor, kind: int) -> Tensor:
    words = [calls & LOW, calls >> 32, torch.full_like(calls, kind), torch.zeros_like(calls)]
    key = [seed & LOW, seed >> 32 & LOW]
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(0xD2511F53, words[0]), _product(0xCD9E8D57, words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [key[0] + 0x9E3779B9 & LOW, key[1] + 0xBB67AE85 & LOW]
    return torch.stack(words)


def _places(size: int, per_call: int) -> tuple[Tensor, Tensor]:
    """Of each element its call, and its part of that."""
    element = torch.arange(size)
    return element // (per_call * STRIPE) * STRIPE + element % STRIPE, element // STRIPE % per_call


def sixteen_bits(seed: int, size: int) -> Tensor:
    calls, part = _places(size, 8)
    return philox(seed, calls, 0).gather(0, part[None] // 2)[0] >> 16 * (part % 2) & 0xFFFF


def thirty_two_more(seed: int, size: int) -> Tensor:
    calls, part = _places(size, 8)
    return torch.cat([philox(seed, calls, 1), philox(seed, calls, 2)]).gather(0, part[None])[0]


def mask(seed: int, size: int, p: float) -> Tensor:
    drawn = sixteen_bits(seed, size) * 2**31 + (thirty_two_more(seed, size) >> 1)
    return drawn >= round(p * 2**47)


def normals(seed: int, size: int) -> Tensor:
    calls, part = _places(size, 4)
    words = philox(seed, calls, 0)
    radius, angle = (words.gather(0, (part // 2 * 2 + k)[None])[0] for k in (0, 1))
    radius = (-2 * ((radius.float() + 1) * 2**-32).double().log()).sqrt()
    angle = angle.double() * (2 * math.pi / 2**32)
    return radius * torch.where(part % 2 == 0, angle.cos(), angle.sin())


def test_philox_gives_the_published_words() -> None:
    """The first of its authors' known answers: all zeros."""
    assert [hex(word) for word in philox(0, torch.zeros(1, dtype=torch.int64), 0)[:, 0].tolist()] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


SEEDS = [0, 1, -1, 2**40 + 12345, -(2**62) - 7]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, STRIPE + 1, 8 * STRIPE, 20 * STRIPE + 3])
def test_masks_bit_for_bit(seed: int, size: int, device: str) -> None:
    like, key = torch.empty(size, device=device), torch.tensor([seed], device=device)
    for p in (P, 0.5, 1e-4, 1 - 2**-20):
        assert torch.equal(gpu._mask(like, key, p).cpu(), mask(seed, size, p))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 4 * STRIPE, 9 * STRIPE + 5])
def test_factors(seed: int, size: int, device: str) -> None:
    like, key = torch.empty(size, device=device), torch.tensor([seed], device=device)
    drawn = gpu._factors(like, torch.float32, key, 0.0, 1.0).cpu().double()
    torch.testing.assert_close(drawn, normals(seed, size), rtol=1e-6, atol=1e-6)
    shifted = gpu._factors(like, torch.float32, key, 2.0, 0.25).cpu().double()
    torch.testing.assert_close(shifted, 2 + normals(seed, size) / 4, rtol=1e-6, atol=1e-6)


def test_a_tie_of_sixteen_bits_is_decided_by_more(device: str) -> None:
    """Rates between two multiples of 2**-16: without more bits none of them would differ from its neighbours."""
    seed, size = 17, 3 * STRIPE
    words, more = sixteen_bits(seed, size), thirty_two_more(seed, size) >> 1
    like, key = torch.empty(size, device=device), torch.tensor([seed], device=device)
    for element in (0, STRIPE + 3, 3 * STRIPE - 1):
        border = (int(words[element]) * 2**31 + int(more[element])) / 2**47
        kept = gpu._mask(like, key, border).cpu()
        dropped = gpu._mask(like, key, border + 2**-47).cpu()
        assert kept[element] and not dropped[element] and int((kept != dropped).sum()) == 1


def test_a_place_far_away_has_words_of_its_own() -> None:
    """Counters have 64 bits: what lies 2**32 calls apart is not the same."""
    calls = torch.tensor([5, 5 + 2**32])
    first, second = philox(3, calls, 0).unbind(1)
    assert not torch.equal(first, second)


# --- drawn where it is applied ----------------------------------------------------------------------------------------

LAWS: dict[str, tuple[Bernoulli | Gaussian, float]] = {
    "Bernoulli": (Bernoulli(P), 1 / (1 - P)), "rare": (Bernoulli(1e-3), 1.0), "Gaussian": (Gaussian(1.0, 0.5), 1.0)}
EVERY_LAW = pytest.mark.parametrize(("law", "scale"), LAWS.values(), ids=LAWS)


@EVERY_LAW
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 700)])
def test_what_is_applied_is_what_would_be_drawn(law, scale, dtype, shape, device) -> None:
    x = torch.randn(shape, device=device, dtype=dtype)
    torch.manual_seed(3)
    drawn = law.sample(x)
    torch.manual_seed(3)
    applied, expected = apply(x, law, scale), apply(x, law, scale, noise=drawn)
    assert applied.dtype == dtype
    if dtype is torch.bfloat16 and device == "cpu":     # Triton's interpreter cuts off what a card rounds
        torch.testing.assert_close(applied, expected, rtol=2**-7, atol=0)
    else:
        assert torch.equal(applied, expected)


@pytest.mark.parametrize("shape", [(4, 3, 12, 12), (2, 5, 3001)])
def test_rows_that_share_a_draw(shape, device) -> None:
    shared = tuple(range(2, len(shape)))
    x = torch.randn(shape, device=device)
    x[0, 1] = math.inf
    torch.manual_seed(4)
    drawn = Bernoulli(0.5).sample(x, shared=shared)
    torch.manual_seed(4)
    applied = apply(x, Bernoulli(0.5), 2.0, shared=shared)
    assert drawn.numel() == shape[0] * shape[1] and 0 < int(drawn.sum()) < drawn.numel()
    assert torch.equal(applied, torch.where(drawn, x * 2, 0))


@EVERY_LAW
def test_strides_decide_nothing(law, scale, device) -> None:
    x = torch.randn(4, 6, 5, 7, device=device)
    outputs = []
    for same in (x, x.to(memory_format=torch.channels_last), x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
                 torch.stack([x, x], -1)[..., 0]):
        torch.manual_seed(5)
        outputs.append(apply(same, law, scale))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)


@EVERY_LAW
def test_what_comes_later_decides_nothing(law, scale, device) -> None:
    x = torch.randn(30 * STRIPE, device=device)
    outputs = []
    for size in (11, 9 * STRIPE, 30 * STRIPE):
        torch.manual_seed(6)
        outputs.append(apply(x[:size], law, scale))
    assert all(torch.equal(output, outputs[-1][:len(output)]) for output in outputs)


@EVERY_LAW
def test_backward_needs_a_seed_alone(law, scale, device) -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(2, 4, 600, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = apply(x, law, scale)
    assert [(tensor.numel(), tensor.dtype) for tensor in saved] == [(8, torch.uint8)]
    gradient = torch.autograd.grad(y.sum(), x)[0]   # an expanded gradient
    torch.testing.assert_close(gradient * x, y)


def test_a_seed_survives_what_a_mask_survives(device) -> None:
    """Hooks that save in a lower precision."""
    x = torch.randn(4, 300, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.dtype, t.half()), lambda kept: kept[1].to(kept[0])):
        y = apply(x, Bernoulli(P), 2.0)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0] * x, y)


def test_axes_that_are_not_there_are_refused(device) -> None:
    for shared in ((2, 7), [2], (2, -9)):
        with pytest.raises(ValueError, match="shared has to be a tuple of axes"):
            apply(torch.randn(2, 3, 300, device=device), Bernoulli(0.5), 2.0, shared=shared)


def test_rows_are_no_more_programs_than_a_card_takes() -> None:
    """65535 along the second axis of a grid."""
    assert -(-gpu._ROWS[-1] // gpu._WITHIN_ROW) == 65535


def test_rates_are_the_same_types_for_a_kernel() -> None:
    for p in (1e-9, 0.1, 0.3, 0.5, 1 - 1e-12, 1 - 2**-53):
        assert all(0 <= part < 2**31 for part in gpu._threshold(p))


@EVERY_LAW
def test_all_derivatives_see_the_same_noise(law, scale, device) -> None:
    x, v = torch.randn(2, 3, 200, device=device), torch.randn(2, 3, 200, device=device)

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return apply(x, law, scale)

    factor = function(torch.ones_like(x))
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(function(leaf), leaf, v.clone().requires_grad_(), create_graph=True)[0]
    torch.testing.assert_close(first, factor * v)
    w = v.clone().requires_grad_()
    once = torch.autograd.grad(function(leaf), leaf, w, create_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(once.sum(), w)[0], factor)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent, factor * v)
    torch.testing.assert_close(torch.func.jvp(function, (x,), (v,))[1], factor * v)
    torch.testing.assert_close(torch.func.grad(lambda x: function(x).sum())(x), factor)
    batched = torch.autograd.grad(function(leaf), leaf, torch.stack([v, 2 * v]), is_grads_batched=True)[0]
    torch.testing.assert_close(batched, torch.stack([factor * v, 2 * factor * v]))
    with torch.inference_mode():
        assert torch.equal(function(x), function(leaf))


LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "Dropout": lambda: dropoutlib.Dropout(P), "GaussianDropout": lambda: dropoutlib.GaussianDropout(P),
    "SpatialDropout2d": lambda: dropoutlib.SpatialDropout2d(P), "Dropout in place": lambda: dropoutlib.Dropout(P, True)}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_layers_give_what_they_draw(make, device, monkeypatch) -> None:
    layer, calls = make(), []
    noisy = gpu._noisy
    monkeypatch.setattr(gpu, "_noisy", lambda *arguments: calls.append(1) or noisy(*arguments))
    x = torch.randn(3, 4, 16, 16, device=device)
    generator = torch.Generator(device).manual_seed(8)
    drawn = layer.draw(x, generator=generator)
    expected = layer(x.clone(), noise=drawn)
    assert not calls
    assert torch.equal(layer(x.clone(), generator=generator.manual_seed(8)), expected)
    assert calls, "the kernel has to be taken"


def _no_compiler(*given: object, **named: object) -> None:
    raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize("missing", ["Triton", "a compiler"])
def test_where_kernels_do_not_run_there_is_one_warning_and_the_plain_path(missing, device, monkeypatch) -> None:
    words = "ModuleNotFoundError"
    if missing == "Triton":
        monkeypatch.setitem(sys.modules, "dropoutlib.kernels.triton_kernels", None)
    else:
        words = "Failed to find C compiler"
        monkeypatch.setattr(kernels, "masks", {(1,): _no_compiler})
    for cached in (gpu._kernels, gpu._works):
        cached.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"do not run there: .*{words}") as warned:
            for _ in range(3):
                assert dropoutlib.Dropout(0.5)(torch.ones(1000, device=device)).unique().tolist() == [0, 2]
        assert len(warned) == 1
    finally:
        for cached in (gpu._kernels, gpu._works):
            cached.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_kernels_compile_for_a_card_without_spills_or_exchange() -> None:
    """By the compiler alone, in a process that does not interpret: what a card does with them is not shown."""
    code = "from dropoutlib.benchmark.compiled import compiled_kernels as rows; print([tuple(row) for row in rows()])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                         env={**os.environ, "TRITON_INTERPRET": "0"})
    assert run.returncode == 0, run.stderr
    rows = [Compiled(*row) for row in ast.literal_eval(run.stdout)]
    assert len(rows) == 13 and len({(row.kernel, row.dtype) for row in rows}) == 13
    for row in rows:
        assert row.local == row.exchanged == 0, row
        # ten rounds of two products a call: one call, and two more where 16 bits tie
        assert 0 < row.products <= {"factors": 5.5, "gaussian": 5.5}.get(row.kernel, 7.6), row


def test_an_interpreter_compiles_nothing(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compiled_kernels()
