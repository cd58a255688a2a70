"""What is cutout's own: squares around places that are uniform over all pixels, clipped at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dropoutlib import Cutout, functional
from dropoutlib.noise import Position

CASES = [(6, 5, 2), (6, 5, 3), (4, 4, 1), (5, 3, 4), (7, 7, 7), (3, 4, 9)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def every_centre(height: int, width: int, holes: int = 1) -> Tensor:
    """All places of the squares of one image, of shape (places, holes, 2)."""
    one = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    index = torch.cartesian_prod(*[torch.arange(len(one))] * holes).reshape(-1, holes)
    return one[index]


def cut_by_hand(image: Tensor, centres: list[list[int]], size: int) -> Tensor:
    """Pixel by pixel, from the definition."""
    output = image.clone()
    for row, column in centres:
        for i in range(row - size // 2, row - size // 2 + size):
            for j in range(column - size // 2, column - size // 2 + size):
                if 0 <= i < image.shape[-2] and 0 <= j < image.shape[-1]:
                    output[..., i, j] = 0
    return output


@pytest.mark.parametrize(("height", "width", "size"), CASES)
@pytest.mark.parametrize("holes", [1, 2])
def test_mean_variance_and_area_from_the_sum_over_all_places(height: int, width: int, size: int, holes: int) -> None:
    layer = Cutout(size, holes)
    centres = every_centre(height, width, holes)
    image = torch.rand(2, height, width, dtype=torch.float64) + 0.5
    outputs = layer(image.expand(len(centres), -1, -1, -1), noise=centres)
    torch.testing.assert_close(outputs, torch.stack([cut_by_hand(image, each.tolist(), size) for each in centres]),
                               rtol=0, atol=0)
    torch.testing.assert_close(layer.mean(image), outputs.mean(0), rtol=0, atol=1e-13)
    torch.testing.assert_close(layer.variance(image), outputs.var(0, correction=0), rtol=0, atol=1e-13)
    assert math.isclose(layer.expected_area(height, width), (outputs == 0).double().mean(), abs_tol=1e-13)


@pytest.mark.parametrize(("length", "size"), [(32, 16), (32, 8), (32, 20), (28, 28), (9, 2)])
def test_expected_area_in_closed_form(length: int, size: int) -> None:
    closed = (size / length * (1 - size / (4 * length))) ** 2
    assert math.isclose(Cutout(size).expected_area(length, length), closed, rel_tol=1e-12)
    if (length, size) == (32, 16):
        assert round(closed, 4) == 0.1914


def test_an_odd_size_is_what_it_says() -> None:
    y = Cutout(15)(torch.ones(1, 32, 32), noise=torch.tensor([[16, 16]]))
    assert (y == 0).sum() == 15 * 15
    assert (y[0, 9:24, 9:24] == 0).all()


@pytest.mark.parametrize("shape", [(5000, 1, 4, 6), (5000, 3, 4, 6)])
def test_every_place_is_as_probable_and_images_have_their_own(shape: tuple[int, ...]) -> None:
    y = Cutout(1)(torch.ones(shape))
    assert (y == y[:, :1]).all(), "the channels have one square"
    hit = (y[:, 0] == 0).flatten(1)
    assert (hit.sum(1) == 1).all()
    rate = hit.double().mean(0)
    assert ((rate - 1 / 24).abs() < 6 * math.sqrt(1 / 24 / len(y))).all()
    assert hit[:-1].logical_and(hit[1:]).any(1).double().mean() < 0.1, "neighbours share their squares"


def test_a_hidden_inf_or_nan_becomes_zero_with_its_gradient() -> None:
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 0], x[0, 0, 1, 1] = math.nan, math.inf
    x.requires_grad_()
    y = Cutout(2)(x, noise=torch.tensor([1, 1]))
    y.sum().backward()
    assert (y[..., :2, :2] == 0).all() and (x.grad[..., :2, :2] == 0).all() and x.grad.sum() == 12


def test_moments_of_what_is_surely_hidden_and_of_complex_pixels() -> None:
    x = torch.tensor([[[math.nan, math.inf], [1.0, 2.0]]])
    assert (Cutout(9).mean(x) == 0).all() and (Cutout(9).variance(x) == 0).all()
    x = torch.ones(1, 2, 2, dtype=torch.complex64)
    assert Cutout(1).mean(x).dtype == x.dtype and Cutout(1).variance(x).dtype == torch.float32


class Images(Dataset):
    def __init__(self, transform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(torch.ones(1, 16, 16))


@pytest.mark.parametrize("workers", [0, 2])
def test_as_a_transform_every_image_and_every_worker_draws_its_own(workers: int) -> None:
    (batch,) = DataLoader(Images(torch.nn.Sequential(torch.nn.Identity(), Cutout(3))), batch_size=32,
                          num_workers=workers, multiprocessing_context="forkserver" if workers else None)
    assert len(batch.unique(dim=0)) > 16


def test_bad_input() -> None:
    image = torch.ones(3, 8, 8)
    for size in (0, -2):
        with pytest.raises(ValueError, match=f"size has to be at least 1, but got {size}"):
            Cutout(size)
    with pytest.raises(ValueError, match="num_holes has to be at least 1, but got 0"):
        Cutout(4, num_holes=0)
    for size in (2.5, "4", None, True):
        with pytest.raises(TypeError, match="size has to be a whole number"):
            Cutout(size)
    with pytest.raises(RuntimeError, match=r"\(N, C, H, W\) or \(C, H, W\), but got the shape \(8, 8\)"):
        Cutout(4)(image[0])
    with pytest.raises(RuntimeError, match=r"floating point.*uint8"):
        Cutout(4)(image.byte())
    for place in ([8, 0], [-1, 0], [0.5, 0]):
        with pytest.raises(ValueError, match=r"positions on maps of the sizes \(8, 8\)"):
            Cutout(4)(image, noise=torch.tensor([place]))
    with pytest.raises(ValueError, match=r"whole numbers, but got torch\.bool"):
        Cutout(4)(image, noise=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="height has to be at least 1"):
        Cutout(4).expected_area(0, 3)


def test_functional() -> None:
    x, centres = torch.rand(5, 3, 8, 8), torch.randint(8, (5, 2, 2))
    assert torch.equal(functional.cutout(x, 3, 2, noise=centres), Cutout(3, 2)(x, noise=centres))
    assert functional.cutout(x, 3, training=False) is x


def test_maps_of_any_size_share_a_graph():
    torch._dynamo.reset()
    compiled = torch.compile(Cutout(3), backend="eager", dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for height, width in ((9, 11), (13, 12), (20, 30)):
            assert (compiled(torch.ones(4, 2, height, width)) == 0).any((1, 2, 3)).all()


def test_compiled_positions_are_uniform():
    torch._dynamo.reset()
    draw = torch.compile(lambda x: Position(1000).sample(x), backend="eager", dynamic=True, fullgraph=True)
    positions = draw(torch.empty(30, 1, 3, 4))
    counts = torch.bincount((4 * positions[..., 0] + positions[..., 1]).flatten(), minlength=12)
    assert len(counts) == 12 and (counts - 2500).abs().max() < 6 * 2500**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_variance_in_half_precision_keeps_its_digits(dtype):
    x = torch.ones(1, 1, 224, 224)
    exact = Cutout(8).variance(x.double())
    torch.testing.assert_close(Cutout(8).variance(x.to(dtype)).double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)
