"""Condition dropout: one draw for the condition of an example, a learned null, the two predictions, guidance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dropoutlib import ConditionDropout, RateSchedule, audit, functional, monte_carlo, predict, propagate_moments
from dropoutlib.enumeration import distribution
from dropoutlib.training import early, guidance


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(shape: int | tuple[int, ...] = 3, p: float = 0.3) -> ConditionDropout:
    """A layer with a null that is not 0, in double precision."""
    layer = ConditionDropout(shape, p, dtype=torch.float64)
    nn.init.normal_(layer.null)
    return layer


def test_guidance_is_one_of_its_predictions_beside_infinities() -> None:
    one, other = torch.tensor([1.0, -math.inf, 2.0]), torch.tensor([-math.inf, -math.inf, 3.0])
    assert torch.equal(guidance(one, other, w=0), one) and torch.equal(guidance(one, other, w=-1.0), other)
    guidance(one, other, w=0).zero_()
    assert one[0] == 1 and guidance(one.half(), other, w=0).dtype == torch.float32
    one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    gradients = torch.autograd.grad(guidance(one, other, w=0).sum(), [one, other])
    assert [gradient.tolist() for gradient in gradients] == [[1, 1], [0, 0]]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 1.0])
def test_mean_and_covariance_are_those_of_the_chapter(p: float) -> None:
    """p(1 - p) (c_aj - n_j)(c_ak - n_k) in an example, and nothing between two."""
    layer, x = made(p=p), torch.randn(2, 3, dtype=torch.float64)
    law = distribution(lambda keep: layer(x, noise=keep), (2, 1), p)
    away = x - layer.null.detach()
    expected = p * (1 - p) * torch.block_diag(*(torch.outer(one, one) for one in away))
    torch.testing.assert_close(law.covariance(), expected, rtol=0, atol=1e-12)
    for actual in (law.mean(), layer.mean(x).detach()):
        torch.testing.assert_close(actual, (1 - p) * x + p * layer.null.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.variance(x).detach(), p * (1 - p) * away.square(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(64, 3), (64, 5, 3), (64, 2, 4, 3)])
def test_an_example_keeps_its_condition_or_gets_the_null(shape: tuple[int, ...]) -> None:
    layer, x = made(shape[1:]), torch.randn(shape, dtype=torch.float64)
    keep = layer.draw(x)
    assert keep.shape == (64, *(1,) * (len(shape) - 1)) and 0 < keep.sum() < 64
    y = layer(x, noise=keep)
    for one, before, kept in zip(y, x, keep.flatten(), strict=True):
        assert torch.equal(one, before if kept else layer.null), "scaled, or not replaced as a whole"
    assert layer.eval()(x) is x


def test_examples_have_draws_of_their_own_at_the_rate_p() -> None:
    keep = made(2, 0.1).draw(torch.empty(1_000_000, 2, dtype=torch.float64)).flatten().double()
    assert abs(keep.mean() - 0.9) < 6.5 * math.sqrt(0.09 / 1e6)
    assert abs(((keep[1:] - 0.9) * (keep[:-1] - 0.9)).mean()) < 6.5 * 0.09 / 1e3


def test_the_null_may_be_shared_along_an_axis() -> None:
    x, null = torch.zeros(2, 5, 3), torch.arange(3.0)
    for shape in ((3,), (1, 3)):
        y = functional.condition_dropout(x, null.reshape(shape), noise=torch.zeros(()))
        assert torch.equal(y, null.expand(2, 5, 3))
    scalar = ConditionDropout((), p=1.0)
    assert torch.equal(scalar(torch.ones(4)), torch.zeros(4))


def joint() -> tuple[Tensor, Tensor, Tensor]:
    """Condition, target and probability of a small joint law, not the same number of targets for each condition."""
    return (torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2.0, -1.0, 5.0, 3.0, 0.5], dtype=torch.float64),
            torch.tensor([0.1, 0.3, 0.25, 0.15, 0.2], dtype=torch.float64))


def normal_equations(p: float) -> tuple[Tensor, Tensor]:
    """E[x x^T] and E[x y] of a table with an entry for each of two conditions and for the null, over all masks."""
    condition, target, chance = joint()
    layer = ConditionDropout(3, p, dtype=torch.float64)
    with torch.no_grad():
        layer.null.copy_(torch.tensor([0.0, 0.0, 1.0]))
    x = nn.functional.one_hot(condition, 3).double()

    def products(keep: Tensor) -> Tensor:
        rows = layer(x, noise=keep) * chance.sqrt()[:, None]
        return torch.cat([rows.T @ rows, rows.T @ (target * chance.sqrt())[:, None]], 1)

    mean = distribution(products, (5, 1), p).mean()
    return mean[:, :3], mean[:, 3]


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_best_predictions_are_the_two_means_whatever_p(p: float) -> None:
    condition, target, chance = joint()
    means = [(chance * target)[condition == one].sum() / chance[condition == one].sum() for one in (0, 1)]
    expected = torch.stack([*means, (chance * target).sum()])
    torch.testing.assert_close(torch.linalg.solve(*normal_equations(p)), expected, rtol=0, atol=1e-11)


def test_the_limits_leave_one_of_the_two_untrained() -> None:
    without_null, _ = normal_equations(0.0)
    null_alone, _ = normal_equations(1.0)
    assert without_null[2].abs().max() == 0 and torch.linalg.matrix_rank(without_null) == 2
    assert null_alone[:2].abs().max() == 0 and torch.linalg.matrix_rank(null_alone) == 1


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_zero_in_the_place_of_the_null_mixes_the_two_means(p: float) -> None:
    """Where one of K equally frequent conditions is 0: the formula of the chapter."""
    condition, target = torch.tensor([0, 0, 1, 1]), torch.tensor([2.0, -1.0, 5.0, 3.0], dtype=torch.float64)
    is_zero = (condition == 0).double()
    weight = (1 - p) * is_zero + p
    best = (weight * target).sum() / weight.sum()
    of_zero, of_all = target[:2].mean(), target.mean()
    torch.testing.assert_close(best, ((1 - p) * of_zero + p * 2 * of_all) / (1 - p + p * 2), rtol=0, atol=1e-12)
    assert min(abs(best - of_zero), abs(best - of_all)) > 0.1


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_dropping_selects(bad: float) -> None:
    x, null = torch.tensor([[bad, 1.0], [2.0, 3.0]], requires_grad=True), torch.ones(2, requires_grad=True)
    y = functional.condition_dropout(x, null, noise=torch.tensor([[0], [1]]))
    assert y.tolist() == [[1.0, 1.0], [2.0, 3.0]]
    (y * torch.tensor([[5.0, 6.0], [7.0, 8.0]])).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [7.0, 8.0]] and null.grad.tolist() == [5.0, 6.0]


def test_the_limits_of_p_draw_nothing() -> None:
    layer, x = made(), torch.randn(4, 3, dtype=torch.float64)
    state = torch.get_rng_state()
    layer.p = 0.0
    assert layer(x) is x and layer.mean(x) is x
    layer.p = 1.0
    assert torch.equal(layer(x), layer.unconditional(x))
    torch.testing.assert_close(layer.mean(torch.full_like(x, math.inf)), layer.unconditional(x))
    assert torch.equal(torch.get_rng_state(), state)


def of_diffusers(table: nn.Embedding, labels: Tensor, keep: Tensor) -> Tensor:
    """The null is one more row of the table of embeddings."""
    return table(torch.where(keep, labels, table.num_embeddings - 1))


def test_it_is_the_label_embedding_of_diffusers() -> None:
    table, layer = nn.Embedding(11, 8), ConditionDropout(8)
    with torch.no_grad():
        layer.null.copy_(table.weight[10])
    labels, keep = torch.randint(10, (32,)), torch.rand(32) > 0.3
    assert torch.equal(layer(table(labels), noise=keep[:, None]), of_diffusers(table, labels, keep))


def test_what_is_asked_for_without_a_condition_is_not_the_null_itself() -> None:
    layer = ConditionDropout((1, 4)).eval()
    with torch.no_grad():
        layer.null.fill_(0.5)
        for examples in (1, 3):
            null = layer.unconditional(torch.zeros(examples, 2, 4))
            null += 1
            assert torch.equal(null, torch.full((examples, 2, 4), 1.5)) and bool((layer.null == 0.5).all())
    layer.unconditional(torch.zeros(3, 2, 4)).sum().backward()
    assert torch.equal(layer.null.grad, torch.full((1, 4), 6.0))


def test_the_null_can_be_made_without_memory_and_reset() -> None:
    layer = ConditionDropout(4, device="meta").to_empty(device="cpu")
    torch.nn.init.constant_(layer.null, 3.0)
    layer.reset_parameters()
    assert not layer.null.any()


def test_guidance_in_both_conventions() -> None:
    c, n, w = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64), 0.7
    torch.testing.assert_close(guidance(c, n, w), (1 + w) * c - w * n, rtol=0, atol=1e-12)
    torch.testing.assert_close(guidance(c, n, w), n + (1 + w) * (c - n), rtol=0, atol=1e-12)
    assert torch.equal(guidance(c, n, 0), c)
    torch.testing.assert_close(guidance(c, n, -1), n, rtol=0, atol=1e-12)


def test_autocast_and_half_precision_give_the_type_of_the_conditions() -> None:
    layer = ConditionDropout(3, 0.5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.complex64):
        x = torch.ones(8, 3, dtype=dtype)
        assert layer(x).dtype == layer.unconditional(x).dtype == dtype
    assert ConditionDropout((2, 3), device="meta", dtype=torch.float16).null.dtype == torch.float16


def test_bad_arguments() -> None:
    for shape, words in ((0.1, "0.1 of type float"), ("8", "'8' of type str"), ((3, 2.0), "2.0"), (True, "True")):
        with pytest.raises(TypeError, match=f"shape has to be a whole number, but got .*{words}"):
            ConditionDropout(shape)
    with pytest.raises(ValueError, match="shape has to be at least 1, but got 0"):
        ConditionDropout((3, 0))
    x, layer = torch.ones(2, 4), ConditionDropout(3)
    for training in (True, False):
        layer.train(training)
        with pytest.raises(ValueError, match=r"null has to be broadcastable to the shape \(4,\) of the condition of "
                                             r"one example, but got the shape \(3,\)"):
            layer(x)
        with pytest.raises(RuntimeError, match="input has to be of shape"):
            layer(torch.ones(()))
        with pytest.raises(TypeError, match="null has to be a tensor, but got float"):
            functional.condition_dropout(x, 0.0, training=training)
        with pytest.raises(RuntimeError, match="null has to be real for a real input"):
            functional.condition_dropout(x, torch.ones(4, dtype=torch.complex64), training=training)
        with pytest.raises(RuntimeError, match="int64"):
            layer(torch.ones(2, 3, dtype=torch.int64))
    for call in (layer.unconditional, layer.mean, layer.variance):
        with pytest.raises(ValueError, match="null has to be broadcastable"):
            call(x)
    with pytest.raises(RuntimeError, match=r"unconditional has to be of the shape \(2, 4\) of conditional.*\(2,\)"):
        guidance(x, torch.ones(2), 1.0)
    with pytest.raises(TypeError, match="w has to be a real number"):
        guidance(x, x, "1")
    with pytest.raises(TypeError, match="unconditional has to be a tensor"):
        guidance(x, 0.0, 1.0)


def test_tools_know_the_layer() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), ConditionDropout(4, 0.5), nn.Linear(4, 2)), torch.randn(8, 4)
    assert not audit(model, x)
    assert audit(model[:2], x)[0].kind == "dropout on the output"
    before_batch_norm = nn.Sequential(*model[:2], nn.BatchNorm1d(4))
    assert any(finding.kind == "dropout before batch norm" for finding in audit(before_batch_norm, x))
    assert predict(model.eval(), x, num_samples=40).variance.gt(0).all()
    with monte_carlo(model):
        assert len(torch.stack([model(x) for _ in range(20)]).round(decimals=4).unique(dim=0)) > 1
    with pytest.raises(NotImplementedError, match="ConditionDropout"):
        propagate_moments(model, x)
    schedule = RateSchedule(model, early(steps=2))
    schedule.step()
    assert model[1].p == 0.25
