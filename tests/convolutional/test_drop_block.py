"""What is DropBlock's own: gamma, the exact law of overlapping blocks, the two factors, and what ports do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from dropoutlib import DropBlock1d, DropBlock2d, DropBlock3d, functional
from dropoutlib.enumeration import distribution

LAYERS = {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d}


def gamma_of(sizes: tuple[int, ...], p: float, block: int) -> float:
    sides = [min(block, size) for size in sizes]
    return p / math.prod(sides) * math.prod(sizes) / math.prod(
        size - side + 1 for size, side in zip(sizes, sides, strict=True))


def covered(seeds: Tensor, sizes: tuple[int, ...], block: int) -> Tensor:
    """By definition, block by block: the positions of one map in blocks; ``seeds`` is 0 where one begins."""
    hit = torch.zeros(sizes, dtype=torch.bool)
    for start in (seeds == 0).nonzero().tolist():
        hit[tuple(slice(first, first + block) for first in start)] = True
    return hit


def everything(layer: nn.Module, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The keep masks of ones under all seeds, their probabilities, and the outputs."""
    block = layer.block_size
    places = [size - min(block, size) + 1 for size in sizes]
    x = torch.ones(1, 1, *sizes, dtype=torch.float64)
    law = distribution(lambda seeds: layer(x, noise=seeds.reshape(1, 1, *places)), (math.prod(places),),
                       gamma_of(sizes, layer.p, block))
    return law.outputs.flatten(1) != 0, law.probabilities, law.outputs.flatten(1)


CASES = [((5,), 2), ((6,), 3), ((4,), 1), ((3,), 3), ((2,), 7), ((4, 4), 2), ((5, 4), 3), ((2, 5), 3), ((2, 3, 2), 2)]


@pytest.mark.parametrize(("sizes", "block"), CASES)
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_the_law_of_every_position_and_pair(sizes, block, p) -> None:
    """P(drop) = 1 - (1 - gamma)^n, with n the places of blocks that cover a position; two of them by their union."""
    layer = LAYERS[len(sizes)](p, block, scale="expected")
    keep, weight, _ = everything(layer, sizes)
    gamma = gamma_of(sizes, p, block)
    assert gamma <= p + 1e-12
    sides = [min(block, size) for size in sizes]
    hits = [{start for start in itertools.product(*(range(size - side + 1) for size, side in zip(
        sizes, sides, strict=True))) if all(first <= at < first + side for first, at, side in zip(
            start, position, sides, strict=True))} for position in itertools.product(*map(range, sizes))]
    dropped = layer.drop_probability(*sizes).flatten()
    for i, first in enumerate(hits):
        per_axis = [min(at, size - side) - max(0, at - side + 1) + 1 for at, size, side in zip(
            list(itertools.product(*map(range, sizes)))[i], sizes, sides, strict=True)]
        assert len(first) == math.prod(per_axis)
        assert abs(dropped[i] - (1 - (1 - gamma)**len(first))) < 1e-12
        for j, second in enumerate(hits):
            both_kept = weight @ (keep[:, i] & keep[:, j]).double()
            assert abs(both_kept - (1 - gamma)**len(first | second)) < 1e-12
    assert dropped.mean() <= p + 1e-12
    assert abs(sum(map(len, hits)) * gamma - p * math.prod(sizes)) < 1e-12


@pytest.mark.parametrize(("sizes", "block"), [((9,), 4), ((7, 6), 3), ((8, 9), 7), ((3, 12), 5), ((4, 5, 6), 2)])
def test_blocks_are_where_their_seeds_say(sizes, block) -> None:
    layer = LAYERS[len(sizes)](0.5, block)
    x = torch.rand(3, 2, *sizes, dtype=torch.float64) + 1
    seeds = layer.draw(x, generator=torch.Generator().manual_seed(1))
    assert seeds.shape == (3, 2, *(size - min(block, size) + 1 for size in sizes))
    y = layer(x, noise=seeds)
    for i, j in itertools.product(range(3), range(2)):
        keep = ~covered(seeds[i, j], sizes, block)
        left = int(keep.sum())
        torch.testing.assert_close(y[i, j], x[i, j] * keep * (keep.numel() / max(left, 1)), rtol=1e-14, atol=0)
    assert (y == 0).any() and (y != 0).any()


def test_the_numbers_of_the_papers_size() -> None:
    layer = DropBlock2d()
    dropped = layer.drop_probability(14, 14)
    assert abs(gamma_of((14, 14), 0.1, 7) - 0.00625) < 1e-12
    found = [dropped.mean(), dropped[0, 0], dropped[7, 7], DropBlock2d(0.5).drop_probability(14, 14).mean()]
    assert [round(value.item(), 4) for value in found] == [0.0929, 0.0063, 0.2645, 0.3582]


def test_special_cases() -> None:
    """Blocks of one position are ordinary dropout, and blocks of the whole map spatial dropout."""
    x = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    keep = torch.rand(4, 3, 5, 5) < 0.6
    single = DropBlock2d(0.4, 1, scale="expected")
    torch.testing.assert_close(single(x, noise=keep), functional.dropout(x, 0.4, noise=keep), rtol=1e-14, atol=0)
    assert (single.drop_probability(5, 5) - 0.4).abs().max() < 1e-15
    whole, keep = DropBlock2d(0.4, 5, scale="expected"), torch.rand(4, 3, 1, 1) < 0.6
    torch.testing.assert_close(whole(x, noise=keep), functional.spatial_dropout2d(x, 0.4, noise=keep), rtol=1e-14,
                               atol=0)
    assert (whole.drop_probability(5, 5) - 0.4).abs().max() < 1e-15


@pytest.mark.parametrize("scale", ["realised", "expected"])
@pytest.mark.parametrize("block", [1, 4])
def test_where_everything_is_dropped(scale, block) -> None:
    """p = 1 with blocks of one position, or of the map: zeros, also of an inf, and finite gradients."""
    x = torch.full((2, 3, 4, 4), math.inf, requires_grad=True)
    layer = DropBlock2d(1.0, block, scale=scale)
    y = layer(x)
    assert (y == 0).all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (gradient == 0).all()
    if scale == "expected":
        assert (layer.mean(x) == 0).all() and (layer.variance(x) == 0).all()
        assert layer(torch.ones(1, 3, 4, 4), noise=torch.ones(1)).isfinite().all()


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_the_factors(p) -> None:
    """The expected one keeps the mean of every position; the realised one the sum of what is constant."""
    keep, weight, output = everything(DropBlock2d(p, 3, scale="expected"), (5, 5))
    assert (weight @ output - 1).abs().max() < 1e-12
    keep, weight, output = everything(DropBlock2d(p, 3), (5, 5))
    left = keep.any(1)
    assert (output[left].sum(1) - 25).abs().max() < 1e-12 and (output[~left] == 0).all()
    mean = weight @ output
    assert mean[0] > 1 > mean[12]
    assert abs(mean.mean() - weight @ left.double()) < 1e-12


def test_the_mean_factor_at_the_corner_and_in_the_middle() -> None:
    """Of one map 1.126 and 0.759; of a whole batch, as ports do, the limit is (1 - P(drop)) / (1 - mean P)."""
    layer, generator = DropBlock2d(), torch.Generator().manual_seed(0)
    found = torch.stack([layer(torch.ones(1000, 16, 14, 14), generator=generator).mean((0, 1)) for _ in range(5)])
    mean, error = found.mean(0), found.std(0) / 5**0.5
    assert abs(mean[0, 0] - 1.126) < 0.002 + 8 * error[0, 0]
    assert abs(mean[7, 7] - 0.759) < 0.002 + 8 * error[7, 7]
    kept = 1 - layer.drop_probability(14, 14)
    limit = kept / kept.mean()
    assert abs(limit[0, 0] - 1.096) < 1e-3 and abs(limit[7, 7] - 0.811) < 1e-3


def test_seeds_over_the_whole_map_with_the_same_gamma_drop_too_much() -> None:
    """As timm does: on a map of 7 x 7 with blocks of 7 gamma is p, at each of 49 places instead of one."""
    p, size = 0.1, 7
    dropped = 1 - (1 - gamma_of((size, size), p, 7))**(torch.tensor([min(i, 3) + min(6 - i, 3) + 1 for i in range(7)])[
        :, None] * torch.tensor([min(i, 3) + min(6 - i, 3) + 1 for i in range(7)]))
    seeds = (torch.rand(20000, 1, 7, 7, generator=torch.Generator().manual_seed(0)) < p).float()
    ported = F.max_pool2d(seeds, 7, 1, 3).mean((0, 1))
    assert (ported - dropped).abs().max() < 0.02
    assert abs(ported.mean() - 0.927) < 0.01
    assert abs(DropBlock2d(p, 7).drop_probability(7, 7).mean() - p) < 1e-12


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_realised_factor_keeps_the_contract_that_needs_no_moments(axes) -> None:
    layer = LAYERS[axes](0.4, 2)
    x = torch.rand(6, 3, *(4,) * axes, dtype=torch.float64, requires_grad=True)
    once, twice = (torch.Generator().manual_seed(4) for _ in range(2))
    seeds = layer.draw(x, generator=once)
    y = layer(x, generator=twice)
    assert torch.equal(y, layer(x, noise=seeds)) and torch.equal(once.get_state(), twice.get_state())
    assert torch.autograd.gradcheck(lambda x: layer(x, noise=seeds), x)
    mapped = torch.vmap(lambda x, noise: layer(x, noise=noise))(x, seeds)
    torch.testing.assert_close(mapped, y)
    compiled = torch.compile(lambda x: layer(x, noise=seeds), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)
    bad = torch.where(y.detach() == 0, math.nan, x.detach()).requires_grad_()
    z = layer(bad, noise=seeds)
    torch.testing.assert_close(z, y)
    assert torch.autograd.grad(z.sum(), bad)[0].isfinite().all()
    assert layer.eval()(x) is x and LAYERS[axes](0.0, 2)(x) is x
    half = layer.train()(x.detach().half(), noise=seeds)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), y.detach(), rtol=3e-3, atol=1e-3)


def test_channels_last_stays() -> None:
    x = torch.rand(8, 16, 14, 14).contiguous(memory_format=torch.channels_last)
    for scale in ("realised", "expected"):
        assert DropBlock2d(scale=scale)(x).is_contiguous(memory_format=torch.channels_last)


def test_the_rate_is_that_of_the_law() -> None:
    x = torch.ones(400, 16, 14, 14)
    found = (DropBlock2d(0.3)(x, generator=torch.Generator().manual_seed(2)) == 0).float().mean((2, 3)).flatten()
    expected = DropBlock2d(0.3).drop_probability(14, 14).mean()
    assert abs(found.mean() - expected) < 6.5 * found.std() / len(found)**0.5


BAD = {
    "p": (ValueError, "1.2", lambda: DropBlock2d(1.2)),
    "block_size": (ValueError, "block_size.*0", lambda: DropBlock2d(block_size=0)),
    "type of block_size": (TypeError, "block_size.*3.5", lambda: DropBlock2d(block_size=3.5)),
    "scale": (ValueError, "scale.*'mean'", lambda: DropBlock2d(scale="mean")),
    "axes": (RuntimeError, "shape.*(4, 4)", lambda: DropBlock2d()(torch.ones(4, 4))),
    "integers": (RuntimeError, "int64", lambda: DropBlock1d()(torch.ones(4, 4, dtype=torch.int64))),
    "noise": (ValueError, "noise.*(1, 1, 2, 2)", lambda: DropBlock2d(block_size=3)(
        torch.ones(1, 1, 4, 4), noise=torch.ones(1, 1, 4, 4))),
    "noise in evaluation": (ValueError, "noise", lambda: DropBlock2d().eval()(
        torch.ones(1, 8, 8), noise=torch.ones(1))),
    "moments": (NotImplementedError, "scale='expected'", lambda: DropBlock2d().mean(torch.ones(1, 8, 8))),
    "sizes": (TypeError, "2, one for each axis.*1", lambda: DropBlock2d().drop_probability(8)),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name) -> None:
    kind, words, call = BAD[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("scale", ["realised", "expected"])
@pytest.mark.parametrize("block_size", [3, 7])
def test_one_graph_serves_sizes_and_rates_that_change(scale: str, block_size: int) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    layer = DropBlock2d(0.3, block_size, scale=scale)
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for step in range(12):
        layer.p = 0.3 * (step + 1) / 12
        assert compiled(torch.randn(2, 3, 12 + step, 30 - step)).shape == (2, 3, 12 + step, 30 - step)
    assert counter.frame_count <= 3


def test_an_export_in_training_needs_fixed_sizes() -> None:
    sizes = ({2: torch.export.Dim("h", min=8, max=100)},)
    layer, x = DropBlock2d(0.2, 3), torch.randn(2, 3, 12, 12)
    with pytest.raises(RuntimeError, match=r"where blocks of DropBlock begin depends on the sizes.*fixed ones"):
        torch.export.export(layer, (x,), dynamic_shapes=sizes)
    exported = torch.export.export(layer.eval(), (x,), dynamic_shapes=sizes).module()
    assert exported(x[:, :, :9]).shape == (2, 3, 9, 12)
