"""What is targeted dropout's own: which weights are candidates, one draw for a unit, and pruning as the test rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib import (
    RateSchedule,
    TargetedDropoutLinear,
    audit,
    compress,
    functional,
    monte_carlo,
    propagate_moments,
    replace,
)
from dropoutlib.enumeration import distribution
from dropoutlib.training import early

MODES = ("weight", "unit")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(mode: str, p: float = 0.3, target_fraction: float = 0.5, sizes: tuple[int, int] = (4, 3)
         ) -> TargetedDropoutLinear:
    return TargetedDropoutLinear(*sizes, p=p, target_fraction=target_fraction, mode=mode, dtype=torch.float64)


def candidates(weight: Tensor, target_fraction: float, mode: str = "weight") -> Tensor:
    layer = TargetedDropoutLinear(*weight.T.shape, target_fraction=target_fraction, mode=mode)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer.candidates()


def law_of(layer: TargetedDropoutLinear, x: Tensor):
    """The outputs of a batch, under every mask."""
    shape = tuple(layer.draw(x).shape)
    return distribution(lambda keep: layer(x, noise=keep), shape, layer.p)


def close(first: Tensor, second: Tensor | float) -> None:
    second = torch.as_tensor(second, dtype=first.dtype).expand(first.shape)
    torch.testing.assert_close(first.detach(), second.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_the_law_of_dropped_weights_is_that_of_the_chapter(p: float) -> None:
    """Mean (1 - p) of the candidates; variance p(1 - p) sum w^2 x^2; units independent, examples not."""
    layer, x = made("weight", p), torch.randn(2, 4, dtype=torch.float64)
    law, chosen = law_of(layer, x), layer.candidates()
    weight = layer.weight.detach()
    mean = F.linear(x, torch.where(chosen, (1 - p) * weight, weight), layer.bias)
    close(law.mean(), mean)
    close(layer.mean(x), mean)
    covariance = law.covariance().reshape(2, 3, 2, 3)
    squares = torch.where(chosen, weight, 0) ** 2
    for one in range(2):
        for two in range(2):
            close(covariance[one, :, two], p * (1 - p) * torch.diag(squares @ (x[one] * x[two])))
    close(layer.variance(x), law.variance())


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_a_unit_has_one_draw(p: float) -> None:
    """Variance p(1 - p) (w x)^2: all weights of a unit go together."""
    layer, x = made("unit", p, 0.7), torch.randn(2, 4, dtype=torch.float64)
    law, chosen = law_of(layer, x), layer.candidates()
    assert chosen.shape == (3, 1) and chosen.sum() == 2
    sums = x @ layer.weight.detach().T
    close(law.mean(), torch.where(chosen[:, 0], (1 - p) * sums, sums) + layer.bias)
    covariance = law.covariance().reshape(2, 3, 2, 3)
    for unit in range(3):
        close(covariance[:, unit, :, unit], p * (1 - p) * sums[:, unit].outer(sums[:, unit]) * chosen[unit])
    close(covariance[:, 0, :, 1], 0)
    close(layer.mean(x), law.mean())
    close(layer.variance(x), law.variance())
    values = {round(value, 9) for value in law.outputs[:, 0, chosen[:, 0]].flatten().tolist()}
    assert len(values) == 4     # a unit is itself or its bias, nothing between


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_leaves_all_candidates_out_and_is_not_the_mean(mode: str) -> None:
    layer, x = made(mode), torch.randn(5, 4, dtype=torch.float64)
    pruned = torch.where(layer.candidates(), 0, layer.weight)
    close(layer.eval()(x), F.linear(x, pruned, layer.bias))
    assert (layer(x) - layer.mean(x)).abs().max() > 1e-3
    layer.target_fraction = 0.0
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)) and torch.equal(layer.train()(x), layer(x))
    assert not layer.candidates().any()


@pytest.mark.parametrize("mode", MODES)
def test_with_p_0_there_is_no_noise_and_evaluation_prunes(mode: str) -> None:
    layer, x = made(mode, p=0.0), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not layer.variance(x).any()
    whole = made(mode, p=1.0)
    whole.load_state_dict(layer.state_dict())
    assert torch.equal(whole(x), layer.eval()(x))
    assert not whole.variance(x).any()


@pytest.mark.parametrize(("fraction", "size", "count"), [
    (0.0, 10, 0), (0.29, 100, 29), (0.3, 10, 3), (0.5, 7, 3), (0.999, 10, 9), (1.0, 10, 10), (2 / 3, 3, 2)])
def test_there_are_exactly_as_many_candidates_as_asked_for(fraction: float, size: int, count: int) -> None:
    for weight in (torch.randn(4, size), torch.ones(4, size), torch.randn(4, size).sign(), torch.zeros(4, size)):
        assert (candidates(weight, fraction).sum(1) == count).all()
        assert candidates(weight.T, fraction, "unit").sum() == count


def test_candidates_are_the_smallest_of_each_row_or_the_rows_of_smallest_norm() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0], [0.1, 0.2, -0.3], [-5.0, 4.0, 0.0]])
    assert candidates(weight, 0.34).tolist() == [[False, True, False], [True, False, False], [False, False, True]]
    assert candidates(weight, 0.34, "unit").tolist() == [[False], [True], [False]]
    weight[1, 0] = math.nan     # is seen, not hidden
    assert not candidates(weight, 0.67)[1, 0]


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 6e4)])
def test_norms_of_half_precision_are_ranked_as_they_are(dtype: torch.dtype, size: float) -> None:
    """Their type has one number for most of these norms, or infinity."""
    layer = TargetedDropoutLinear(64, 100, target_fraction=0.5, mode="unit", dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(size * (1 - torch.rand(100, 64) / 20))
    norms = torch.linalg.vector_norm(layer.weight.double(), dim=1)
    assert norms[layer.candidates().squeeze(1)].max() < norms[~layer.candidates().squeeze(1)].min()


def test_what_may_be_dropped_follows_the_weights() -> None:
    layer, x = made("weight", p=1.0, sizes=(4, 1)), torch.eye(4, dtype=torch.float64)
    layer.bias.data.zero_()
    for order in ([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]):
        layer.weight.data[0] = torch.tensor(order)
        assert (layer(x)[:, 0] != 0).tolist() == [value > 2 for value in order]


def test_what_is_dropped_has_no_gradient_and_the_choice_has_none() -> None:
    layer, x = made("weight"), torch.randn(5, 4, dtype=torch.float64)
    keep = torch.rand(3, 4) > 0.5
    layer(x, noise=keep).sum().backward()
    stays = keep | ~layer.candidates()
    close(layer.weight.grad, torch.where(stays, x.sum(0), 0.0))
    assert not layer.weight.grad[~stays].any()


@pytest.mark.parametrize("mode", MODES)
def test_a_dropped_weight_is_zero_whatever_it_was(mode: str) -> None:
    weight = torch.tensor([[1.0, 2.0], [math.inf, 3.0]])
    given = functional.targeted_dropout_linear(torch.ones(1, 2), weight, p=0.5, target_fraction=1.0, mode=mode,
                                               noise=torch.tensor([[1], [0]]))
    assert given.tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("mode", MODES)
def test_how_many_are_dropped(mode: str) -> None:
    layer = TargetedDropoutLinear(500, 400, bias=False, p=0.3, target_fraction=0.6, mode=mode)
    dropped = [(layer(torch.eye(500)) == 0).double().mean().item() for _ in range(30)]
    draws = 30 * (500 * 400 if mode == "weight" else 400) * 0.6
    assert abs(sum(dropped) / 30 - 0.18) < 6 * 0.6 * math.sqrt(0.3 * 0.7 / draws)


def their_mask(weight: Tensor, fraction: float) -> Tensor:
    """What for-ai/Targeted-Dropout takes for candidates, in the layout of torch: a strict threshold."""
    size = weight.abs()
    threshold = size.sort(1).values[:, int(fraction * weight.shape[1])]
    return size < threshold[:, None]


def test_without_ties_the_candidates_are_those_of_the_papers_code() -> None:
    weight = torch.randn(20, 31)
    for fraction in (0.1, 0.5, 0.9):
        assert torch.equal(candidates(weight, fraction), their_mask(weight, fraction))
    assert not their_mask(weight.sign(), 0.5).any()     # of equal sizes theirs takes none
    with pytest.raises(IndexError):
        their_mask(weight, 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_compress_takes_the_candidates_away(mode: str) -> None:
    model = nn.Sequential(TargetedDropoutLinear(6, 8, target_fraction=0.5, mode=mode), nn.ReLU(),
                          nn.Linear(8, 3)).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    smaller, _ = compress(model, x)
    close(smaller(x), model(x))
    assert smaller[0].out_features == (4 if mode == "unit" else 8)
    assert int((smaller[0].weight == 0).sum()) == (0 if mode == "unit" else 24)


def test_with_the_other_tools() -> None:
    x = torch.randn(5, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    plain = model(x)
    model = replace(model, {nn.Linear: lambda old: TargetedDropoutLinear.from_linear(old, target_fraction=0.0)})
    assert torch.equal(model(x), plain)
    model[0].target_fraction = 0.5
    assert not list(audit(model, x))
    with monte_carlo(model, "fixed"):
        assert torch.equal(model(x), model(x)) and model(x).shape == (5, 2)
    with pytest.raises(NotImplementedError, match="TargetedDropoutLinear"):
        propagate_moments(model, x)
    schedule = RateSchedule(model, early(1))
    schedule.step()
    assert model[0].p == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_it_can_be_traced_in_evaluation(mode: str) -> None:
    layer = TargetedDropoutLinear(6, 4, mode=mode).eval()
    traced, x = torch.jit.trace(layer, torch.randn(4, 6)), torch.randn(9, 6)
    assert torch.equal(traced(x), layer(x))


def test_examples_share_the_mask_under_vmap() -> None:
    layer, x = made("weight"), torch.randn(5, 4, dtype=torch.float64)
    keep = layer.draw(x)
    close(torch.vmap(lambda one: layer(one, noise=keep))(x), layer(x, noise=keep))
    assert torch.vmap(layer, randomness="different")(x).shape == (5, 3)


BAD = {
    "p": (ValueError, "1.5", {"p": 1.5}), "fraction": (ValueError, "target_fraction.*-0.1", {"target_fraction": -0.1}),
    "no fraction": (ValueError, "target_fraction.*nan", {"target_fraction": math.nan}),
    "a word for the fraction": (TypeError, "target_fraction.*'half'", {"target_fraction": "half"}),
    "mode": (ValueError, "mode.*'column'", {"mode": "column"}), "bias": (TypeError, "bias.*0.1", {"bias": 0.1}),
}


@pytest.mark.parametrize(("error", "words", "options"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(error: type[Exception], words: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=words):
        TargetedDropoutLinear(4, 3, **options)


def test_bad_calls_are_named() -> None:
    layer, x = made("unit"), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"noise.*\(3, 1\).*\(3, 4\)"):
        layer(x, noise=torch.ones(3, 4))
    with pytest.raises(ValueError, match="noise"):
        layer.eval()(x, noise=torch.ones(3, 1))
    layer.train().target_fraction = 2.0
    with pytest.raises(ValueError, match=r"target_fraction.*2\.0"):
        layer(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e19, 1e30])
def test_units_of_any_size_are_ranked(size: float, dtype: torch.dtype) -> None:
    """Squares of such weights are below or beyond single precision."""
    layer = TargetedDropoutLinear(5, 4, p=1.0, target_fraction=0.5, mode="unit", bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0], [1.0], [4.0], [2.0]]) * size)
    x = torch.ones(1, 5, dtype=dtype)
    assert (layer(x) != 0).tolist() == [[True, False, True, False]]
