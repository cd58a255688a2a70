"""The max-norm constraint: a projection of the weights, and the hook that does it after each step."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import dropoutlib
from dropoutlib import MaxNorm, max_norm_
from dropoutlib.foundations import max_norm as implementation


@pytest.fixture(autouse=True)
def _no_constraint_survives():
    torch.manual_seed(0)
    yield
    implementation._constraints.clear()


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 3, 3), (6, 5, 2, 3, 3)])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_is_the_projection(device: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    weight = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    norms = weight.to(torch.complex128).movedim(dim, 0).flatten(1).norm(dim=1)
    radius = float(norms.median()) * 1.001  # some are inside, some outside
    expected = weight.to(torch.complex128).movedim(dim, 0).clone()
    for unit, norm in zip(expected, norms, strict=True):
        unit.mul_(min(1.0, radius / float(norm)))
    result = weight.clone()
    assert max_norm_(result, radius, dim) is result
    error = (result.to(torch.complex128) - expected.movedim(0, dim)).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * float(weight.abs().max())
    inside = (norms <= radius).tolist()
    assert any(inside) and not all(inside)
    for unit, before, untouched in zip(result.movedim(dim, 0), weight.movedim(dim, 0), inside, strict=True):
        assert torch.equal(unit, before) is untouched


def test_agrees_with_renorm(device: str) -> None:
    weight = torch.randn(20, 30, device=device, dtype=torch.float64)
    for dim in (0, 1):
        torch.testing.assert_close(max_norm_(weight.clone(), 3.0, dim), torch.renorm(weight, 2, dim, 3.0),
                                   rtol=1e-6, atol=0)


def test_is_the_nearest_point_of_the_ball() -> None:
    outside = 3 * torch.randn(1, 4, dtype=torch.float64)
    projected = max_norm_(outside.clone(), 1.0)
    inside = max_norm_(torch.randn(2000, 4, dtype=torch.float64), 1.0)
    assert (outside - projected).norm() <= (outside - inside).norm(dim=1).min()


def test_inside_the_ball_every_bit_is_kept(device: str) -> None:
    weight = torch.tensor([[-0.0, 1e-45, 0.5], [0.0, 0.0, 0.0], [0.6, 0.0, 0.8]], device=device)
    before = weight.view(torch.int32).clone()
    for _ in range(3):
        max_norm_(weight, 1.0)
    assert torch.equal(weight.view(torch.int32)[:2], before[:2])
    torch.testing.assert_close(weight[2].norm(), torch.tensor(1.0, device=device))
    assert torch.equal(max_norm_(weight.clone(), math.inf), weight)


def test_what_is_not_finite_is_left_and_stays_where_it_is(device: str) -> None:
    weight = torch.tensor([[math.nan, 9.0], [math.inf, 9.0], [1e30, 1e30], [3.0, 4.0]], device=device)
    result = max_norm_(weight.clone(), 1.0)
    assert result[0, 0].isnan() and result[0, 1] == 9
    assert torch.equal(result[1:3], weight[1:3])
    torch.testing.assert_close(result[3], torch.tensor([0.6, 0.8], device=device))


def test_half_precision_norms_do_not_overflow(device: str) -> None:
    weight = torch.full((2, 4), 300.0, dtype=torch.float16, device=device)  # 300 ** 2 is inf in float16
    torch.testing.assert_close(max_norm_(weight, 2.0), torch.ones_like(weight))


@pytest.mark.parametrize("make", [
    lambda: nn.Linear(6, 4), lambda: nn.Conv1d(4, 6, 3), lambda: nn.Conv2d(4, 6, 3, groups=2),
    lambda: nn.Conv3d(4, 6, 2), lambda: nn.ConvTranspose1d(4, 6, 3), lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    lambda: nn.ConvTranspose3d(4, 6, 2),
])
def test_a_unit_is_what_one_output_sees(make) -> None:
    """The incoming weights of an output are those that its gradient reaches, in any kind of layer."""
    layer = make()
    with torch.no_grad():
        layer.bias.fill_(100.0)
    channels = 1 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    x = torch.ones(1, inputs, *[5] * (0 if isinstance(layer, nn.Linear) else channels))

    def incoming_norms() -> list[float]:
        norms = []
        for unit in range(layer.bias.numel()):
            (gradient,) = torch.autograd.grad(layer(x)[0, unit].sum(), layer.weight)
            norms.append(float(layer.weight.detach()[gradient != 0].norm()))
        return norms

    before = incoming_norms()
    radius = sorted(before)[1] * 1.001
    assert max_norm_(layer, radius) is layer
    assert incoming_norms() == pytest.approx([min(norm, radius) for norm in before])
    assert (layer.bias == 100).all()


def test_every_layer_of_a_model_and_tied_weights_once() -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), nn.Sequential(second, nn.Conv2d(3, 4, 3)), nn.LSTM(5, 5))
    lstm = copy.deepcopy(model[3].state_dict())
    assert len(implementation._weights(model)) == 2
    max_norm_(model, 0.1)
    for weight in (first.weight, model[2][1].weight):
        assert weight.flatten(1).norm(dim=1).max() <= 0.1 * (1 + 1e-6)
    assert all(torch.equal(value, lstm[name]) for name, value in model[3].state_dict().items())
    assert first.weight.requires_grad and first.weight.is_leaf


def test_gradients_are_not_recorded() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    max_norm_(weight, 0.1).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 3))


def _pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.3)


@pytest.mark.parametrize(("kind", "words", "call"), [
    (ValueError, "positive number, but got 0", lambda: max_norm_(torch.ones(2, 2), 0)),
    (ValueError, "positive number, but got -1", lambda: max_norm_(nn.Linear(2, 2), -1.0)),
    (ValueError, "positive number, but got nan", lambda: max_norm_(torch.ones(2, 2), math.nan)),
    (TypeError, "module or a tensor, but got list", lambda: max_norm_([1.0], 1.0)),
    (TypeError, "module or a tensor, but got generator", lambda: max_norm_(nn.Linear(2, 2).parameters(), 1.0)),
    (TypeError, "int64", lambda: max_norm_(torch.ones(2, 2, dtype=torch.int64), 1.0)),
    (RuntimeError, "at least 2 dimensions, but got 1", lambda: max_norm_(torch.ones(2), 1.0)),
    (IndexError, r"\[-2, 1\], but got 2", lambda: max_norm_(torch.ones(2, 2), 1.0, 2)),
    (IndexError, r"\[-2, 1\], but got -3", lambda: max_norm_(nn.Linear(2, 2), 1.0, -3)),
    (ValueError, "LSTM has no linear", lambda: max_norm_(nn.LSTM(2, 2), 1.0)),
    (ValueError, r"0 \(.*Linear\) is computed",
     lambda: max_norm_(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), 1.0)),
    (ValueError, "computed", lambda: max_norm_(parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)), 1.0)),
    (ValueError, "computed", lambda: max_norm_(_pruned(), 1.0)),
    (ValueError, "not initialised", lambda: max_norm_(nn.LazyLinear(2), 1.0)),
    (TypeError, "model has to be a module, but got Parameter", lambda: MaxNorm(nn.Linear(2, 2).weight, 1.0)),
    (ValueError, "positive", lambda: MaxNorm(nn.Linear(2, 2), 0.0)),
    (ValueError, "ReLU has no linear", lambda: MaxNorm(nn.ReLU(), 1.0)),
    (ValueError, "computed", lambda: MaxNorm(_pruned(), 1.0)),
])
def test_bad_calls(kind, words, call) -> None:
    with pytest.raises(kind, match=words):
        call()
    assert not implementation._constraints


def test_a_refused_model_is_not_half_projected() -> None:
    model = nn.Sequential(nn.Linear(3, 3), _pruned())
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="computed"):
        max_norm_(model, 0.01)
    with pytest.raises(IndexError):
        max_norm_(nn.Sequential(nn.Conv2d(1, 1, 1), model[0]), 0.01, dim=3)
    assert torch.equal(model[0].weight, before)


# The hook


def largest_norm(model: nn.Module) -> float:
    return max(float(m.weight.detach().norm(dim=1).max()) for m in model.modules() if isinstance(m, nn.Linear))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), dropoutlib.Dropout(0.5), nn.Linear(8, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (-model(torch.ones(3, 4)).square().sum()).backward()  # grows without bound
    optimizer.step()


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=10.0, momentum=0.9),
    lambda p: torch.optim.Adam(p, lr=10.0),
    lambda p: torch.optim.AdamW(p, lr=10.0, foreach=True),
])
def test_holds_after_every_step_until_removed(make) -> None:
    model = network()
    optimizer = make(model.parameters())
    constraint = MaxNorm(model, max_norm=0.5)
    for _ in range(3):
        step(model, optimizer)
        assert largest_norm(model) == pytest.approx(0.5)
    constraint.max_norm = 0.25
    step(model, optimizer)
    assert largest_norm(model) == pytest.approx(0.25)
    constraint.remove()
    constraint.remove()
    assert "removed" in repr(constraint)
    step(model, optimizer)
    assert largest_norm(model) > 1


def test_need_not_be_kept() -> None:
    model = network()
    MaxNorm(model, 0.5)
    gc.collect()
    step(model, torch.optim.SGD(model.parameters(), lr=10.0))
    assert largest_norm(model) == pytest.approx(0.5)


def test_touches_only_what_the_optimizer_stepped() -> None:
    model, other = network(), network()
    with torch.no_grad():
        for linear in (model[0], model[3], other[0], other[3]):
            linear.weight.mul_(100)
    MaxNorm(model, 0.5)
    MaxNorm(other, 0.7)
    before = [parameter.clone() for parameter in model.parameters()]
    step(other, torch.optim.SGD(other.parameters(), lr=1e-6))
    assert largest_norm(other) == pytest.approx(0.7)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    head = torch.optim.SGD(model[3].parameters(), lr=1e-6)  # two optimizers share a model
    step(model, head)
    assert largest_norm(model[3]) == pytest.approx(0.5)
    assert torch.equal(model[0].weight, before[0])
    step(model, torch.optim.SGD(model[0].parameters(), lr=1e-6))
    assert largest_norm(model[0]) == pytest.approx(0.5)


def test_parts_of_a_model_may_have_their_own_radius() -> None:
    model = network()
    MaxNorm(model[0], 0.2)
    MaxNorm(model[3], 0.4)
    step(model, torch.optim.SGD(model.parameters(), lr=10.0))
    assert largest_norm(model[0]) == pytest.approx(0.2)
    assert largest_norm(model[3]) == pytest.approx(0.4)


def test_an_optimizer_with_a_closure() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0)
    MaxNorm(model, 0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(3, 4)) - 100).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert largest_norm(model) == pytest.approx(0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_skips_changes_nothing(fused: bool) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(100)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused), torch.amp.GradScaler("cpu")
    MaxNorm(model, 0.5)
    before = model[0].weight.detach().clone()
    for loss, changed in ((math.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(3, 4)).sum() * loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[0].weight, before) is not changed
    assert largest_norm(model) == pytest.approx(0.5)


def test_does_not_keep_the_model_alive() -> None:
    model = network()
    constraint, alive = MaxNorm(model, 0.5), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    other = network()
    MaxNorm(other, 0.5)
    step(other, torch.optim.SGD(other.parameters(), lr=10.0))
    assert largest_norm(other) == pytest.approx(0.5)  # the dead one does not make the hook skip the next
    assert constraint not in implementation._constraints
    assert "removed" in repr(constraint)


def test_may_be_removed_while_the_hooks_run() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    first, second = MaxNorm(model, 0.5), MaxNorm(model, 0.3)
    optimizer.register_step_post_hook(lambda *_: first.remove())
    step(model, optimizer)
    assert largest_norm(model) == pytest.approx(0.3)
    second.remove()


class Constrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.constraint = MaxNorm(self, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_constrains_the_copied_model(duplicate) -> None:
    model = Constrained()
    other = duplicate(model)
    assert other.constraint._model() is other
    model.constraint.remove()
    step(other, torch.optim.SGD(other.parameters(), lr=10.0))
    assert largest_norm(other) == pytest.approx(0.5)
    step(model, torch.optim.SGD(model.parameters(), lr=10.0))
    assert largest_norm(model) > 0.6
    removed = duplicate(model)
    step(removed, torch.optim.SGD(removed.parameters(), lr=10.0))
    assert largest_norm(removed) > 0.6


@pytest.mark.parametrize(("max_norm", "error"), [(-1.0, ValueError), (0.0, ValueError), (float("nan"), ValueError),
                                                 ("3", TypeError), (True, TypeError), (None, TypeError)])
def test_a_radius_is_checked_whenever_it_is_set(max_norm, error):
    model = nn.Linear(3, 2)
    constraint = MaxNorm(model, 1.0)
    with pytest.raises(error, match="max_norm has to be a"):
        constraint.max_norm = max_norm
    with pytest.raises(error, match="max_norm has to be a"):
        max_norm_(model, max_norm)
    assert constraint.max_norm == 1.0


def test_the_latest_constraint_of_a_model_takes_the_place_of_the_earlier_one():
    model = nn.Linear(3, 2)
    earlier, latest = MaxNorm(model, 0.1), MaxNorm(model, 3.0)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, torch.ones(2, 3))
    assert "removed" in repr(earlier)
    assert "removed" not in repr(latest)


def test_frozen_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for layer in model:
        nn.init.constant_(layer.weight, 5.0)
    model[0].weight.requires_grad_(False)
    MaxNorm(model, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, torch.full((2, 3), 5.0))
    assert model[1].weight.norm().item() == pytest.approx(1.0)
