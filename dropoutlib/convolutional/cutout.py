"""Cutout: a square of the input image is set to zero, at a random place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import applies_noise, positive_integer, require_images, unchanged
from ..layer import NoisyLayer, draws
from ..maps import on_each_process, squares
from ..methods import describe
from ..noise import Position, apply

__all__ = ["Cutout", "cutout"]


def _centres(input: Tensor, num_holes: int, *, generator: torch.Generator | None) -> Tensor:
    require_images(input)
    return Position(positive_integer("num_holes", num_holes)).sample(input, generator=generator)


@draws(_centres)
@describe("cutout")
def cutout(input: Tensor, size: int, num_holes: int = 1, training: bool = True, *, noise: Tensor | None = None,
           generator: torch.Generator | None = None) -> Tensor:
    """Sets squares of images to zero.

    See :class:`~dropoutlib.Cutout`.

    Args:
        input: floating point or complex tensor of shape ``(N, C, H, W)`` or ``(C, H, W)``.
        size: length of a side of a square, in pixels. It may be larger than the image.
        num_holes: number of squares in an image, which may overlap.
        training: whether squares are cut out; if not, the input is returned as it is.
        noise: centres that replace the draw, row and column, whole numbers of shape ``(N, num_holes, 2)``, or
            ``(num_holes, 2)`` for one image, or of a shape that broadcasts to it.
        {generator}

    Returns:
        {same}

    Raises:
        ValueError: if ``size`` or ``num_holes`` is below 1, if ``noise`` does not broadcast to the draw, is off the
            image, or is given while ``training`` is False.
        RuntimeError: if the input is of another rank, or holds integers or booleans (convert and normalise first), or
            {bad_generator}.
        TypeError: if the input is not a tensor, or ``size`` or ``num_holes`` not a whole number.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> functional.cutout(torch.ones(1, 4, 5), size=3, noise=torch.tensor([[1, 4]]))[0]
        tensor([[1., 1., 1., 0., 0.],
                [1., 1., 1., 0., 0.],
                [1., 1., 1., 0., 0.],
                [1., 1., 1., 1., 1.]])
    """
    size, num_holes = positive_integer("size", size), positive_integer("num_holes", num_holes)
    if not applies_noise(training, noise):
        return unchanged(input, require_images)
    require_images(input)
    if input.numel() == 0:
        return input.clone()

    def seen(centres: Tensor) -> Tensor:
        return ~squares(centres, size, *input.shape[-2:]).any(-3).unsqueeze(-3)

    return apply(input, Position(num_holes), noise=noise, generator=generator,
                 as_mask=lambda centres: on_each_process(seen, centres, axes=2))


@describe("cutout", cutout)
class Cutout(NoisyLayer):
    r"""Sets squares of the input image to zero: a data augmentation for training.

    Every image has squares of its own, the same for all its channels, around centres that are uniform over **all**
    pixels. A square that reaches over the edge is clipped, so one square of more than one pixel hides less than
    ``size * size`` on average: 19.1 %, not 25 %, for squares of 16 on images of 32. {identity}

    {four_answers}

    Nothing is rescaled. Zero should be the mean: apply it after the normalisation. It takes batches on any device, as
    the first layer of a model, and single images, as the last transform of a data pipeline; a transform has no
    ``train()``, it belongs in the pipeline of the training data alone.
    An odd size is what it says; the authors' code makes it even by dropping one row and column.
    Hiding selects: an ``inf`` or ``nan`` in a square becomes 0, with a zero gradient.

    Args:
        {size} {num_holes}

    Shape:
        {image_shape}

    Raises:
        ValueError: if ``size`` or ``num_holes`` is below 1.
        TypeError: if one of them is not a whole number.

    Source:
        DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout* (2017), section 3,
        and its code.

    Example:
        >>> import torch
        >>> from dropoutlib import Cutout
        >>> augment = Cutout(size=16)
        >>> augment(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
        >>> round(augment.expected_area(32, 32), 4)
        0.1914
    """

    def __init__(self, size: int, num_holes: int = 1) -> None:
        super().__init__()
        self.size = positive_integer("size", size)
        self.num_holes = positive_integer("num_holes", num_holes)

    def extra_repr(self) -> str:
        """{shown}"""
        return f"size={self.size}, num_holes={self.num_holes}"

    def forward(self, input: Tensor, *, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        """Hides squares in training and returns the input in evaluation. {call}"""
        return cutout(input, self.size, self.num_holes, self.training, noise=noise, generator=generator)

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Tensor:
        return _centres(input, self.num_holes, generator=generator)

    def mean(self, input: Tensor) -> Tensor:
        """{output_mean}: the input times the probability that a pixel is seen. {moment}"""
        seen = self._seen(input).to(input.real.dtype)
        return torch.where(seen > 0, input * seen, 0)

    def variance(self, input: Tensor) -> Tensor:
        """{output_variance}, pixel by pixel. {moment}"""
        seen = self._seen(input)
        deviation = (seen * (1 - seen)).sqrt().to(input.real.dtype)  # half precision would lose 1 - seen
        return torch.where(deviation > 0, (deviation * input.abs()).square(), 0)

    def expected_area(self, height: int, width: int) -> float:
        r"""Expected share of the pixels that are hidden.

        With one square, a side of n pixels contributes the factor :math:`\frac{L}{n}\left(1 - \frac{L}{4n}\right)`,
        where L is ``size``, even and at most 2n.

        Args:
            height: rows of the image.
            width: columns of the image.

        Returns:
            A number between 0 and 1.
        """
        image = torch.empty(1, positive_integer("height", height), positive_integer("width", width),
                            dtype=torch.float64, device="cpu")
        return 1 - self._seen(image).mean().item()

    def _seen(self, input: Tensor) -> Tensor:
        """Probability that a pixel is outside of all squares, of shape ``(H, W)``, in double precision."""
        require_images(input)
        height, width = input.shape[-2:]
        hit = [self._centres_that_hit(n, input) / n for n in (height, width)]
        return (1 - hit[0][:, None] * hit[1]) ** self.num_holes

    def _centres_that_hit(self, length: int, like: Tensor) -> Tensor:
        """For every place on an axis, the number of centres whose square covers it."""
        place = torch.arange(length, device=like.device, dtype=torch.float64)
        first = (place - (self.size - 1 - self.size // 2)).clamp(min=0)
        last = (place + self.size // 2).clamp(max=length - 1)
        return last - first + 1
