"""What is spatial dropout's own: whole maps, ranks, torch's layers as the model."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

from dropoutlib import SpatialDropout1d, SpatialDropout2d, SpatialDropout3d, functional
from dropoutlib.enumeration import distribution

LAYERS = {1: SpatialDropout1d, 2: SpatialDropout2d, 3: SpatialDropout3d}
TORCHS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("axes", LAYERS)
def test_elements_of_a_map_share_their_noise_and_maps_do_not(axes: int) -> None:
    """Covariances, from the sum over all masks: p/(1 - p) x_r x_s within a map, zero between maps."""
    p, x = 0.3, torch.rand(1, 2, *(2,) * axes, dtype=torch.float64)
    layer = LAYERS[axes](p)
    law = distribution(lambda keep: layer(x, noise=keep), (1, 2, *(1,) * axes), p)
    maps = x.flatten(2)[0]
    expected = p / (1 - p) * torch.block_diag(*(torch.outer(each, each) for each in maps))
    torch.testing.assert_close(law.covariance(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", LAYERS)
def test_the_number_of_dropped_maps_is_binomial(axes: int) -> None:
    p, maps, examples = 0.3, 16, 20_000
    y = LAYERS[axes](p)(torch.ones(examples, maps, *(2,) * axes)).flatten(2)
    assert (y == y[:, :, :1]).all(), "a map has more than one draw"
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    counts = torch.bincount((y[:, :, 0] == 0).sum(1), minlength=maps + 1).double()
    chances = torch.from_numpy(binom.pmf(range(maps + 1), maps, p))
    assert ((counts / examples - chances).abs() < 6 * (chances / examples).sqrt() + 1e-9).all()


@pytest.mark.parametrize("axes", LAYERS)
def test_it_is_a_drop_in_for_torchs_layer(axes: int) -> None:
    ours, theirs = LAYERS[axes](0.4, inplace=True), TORCHS[axes](0.4, inplace=True)
    assert (ours.p, ours.inplace) == (theirs.p, theirs.inplace) and LAYERS[axes]().p == TORCHS[axes]().p
    x = torch.rand(3, 4, *(5,) * axes)
    assert torch.equal(ours.eval()(x.clone()), theirs.eval()(x.clone()))
    assert torch.equal(LAYERS[axes](0.0)(x), x)
    given = x.clone()
    assert ours.train()(given).data_ptr() == given.data_ptr() and not torch.equal(given, x)


@pytest.mark.parametrize("axes", [1, 3])
def test_an_input_without_batch_axis_has_maps(axes: int) -> None:
    y = LAYERS[axes](0.5)(torch.ones(64, *(3,) * axes)).flatten(1)
    assert (y == y[:, :1]).all() and {0.0, 2.0} == set(y.unique().tolist())


RANKS = {
    "3-D": (2, (3, 4, 5), r"\(N, C, H, W\).*\(3, 4, 5\).*SpatialDropout1d.*input\[None\]"),
    "5-D": (2, (1, 3, 4, 5, 6), r"\(N, C, H, W\).*SpatialDropout3d"),
    "2-D": (2, (3, 4), r"\(N, C, H, W\).*\(3, 4\)"),
    "4-D sequence": (1, (1, 3, 4, 5), r"\(N, C, L\) or \(C, L\).*SpatialDropout2d"),
    "1-D": (1, (3,), r"\(C, L\).*\(3,\)"),
    "3-D volume": (3, (3, 4, 5), r"\(C, D, H, W\).*\(3, 4, 5\)"),
}


@pytest.mark.parametrize(("axes", "shape", "words"), RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_rank_is_refused_and_not_guessed(axes: int, shape: tuple[int, ...], words: str, training: bool) -> None:
    with pytest.raises(RuntimeError, match=words):
        LAYERS[axes](0.5).train(training)(torch.ones(shape))


def test_a_dropped_infinity_leaves_nothing() -> None:
    x = torch.full((1, 2, 2, 2), math.inf)
    keep = torch.tensor([1, 0]).reshape(2, 1, 1)
    assert functional.spatial_dropout2d(x, 0.5, noise=keep).flatten(2).sum(-1).tolist() == [[math.inf, 0.0]]


@pytest.mark.parametrize("axes", LAYERS)
def test_moments_check_their_input(axes: int) -> None:
    for moment in (LAYERS[axes]().mean, LAYERS[axes]().variance):
        with pytest.raises(RuntimeError, match="has to be of shape"):
            moment(torch.ones(3))
        with pytest.raises(RuntimeError, match="floating point"):
            moment(torch.ones(1, 2, *(3,) * axes, dtype=torch.long))
