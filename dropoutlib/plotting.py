"""The pictures of the book, in one style (extra ``book``).

Figures have a transparent background, dark ink and colours of middling lightness: for dark pages the site turns over
what is grey and keeps the colours, so one drawing serves both.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "animation", "band", "masked_image", "network", "use_style"]

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f79c4", "#d2691e", "#3a8a4d", "#8a5bb5", "#7d8590"


def use_style() -> None:
    """Sets matplotlib's defaults to the style of the book."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update({
        "figure.figsize": (6.4, 3.2),
        "figure.dpi": 110,
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "axes.facecolor": "none",
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE, GREY]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 10,
        "image.cmap": "Blues",
        "legend.frameon": False,
        "savefig.facecolor": "none",
    })


def masked_image(axes: Axes, values: Tensor, keep: Tensor | None = None, *, title: str = "",
                 limits: tuple[float, float] = (0.0, 1.0)) -> None:
    """Draws a matrix as an image; what is dropped is crossed out.

    Args:
        axes: where to draw.
        values: shape ``(rows, columns)``; blue grows with the value.
        keep: keep mask of the same shape; ``None`` keeps everything.
        title: title of the picture.
        limits: values of the lightest and of the darkest blue.

    Raises:
        ValueError: if ``keep`` has another shape than ``values``.
    """
    if keep is not None and keep.shape != values.shape:
        raise ValueError(f"keep has to be of the shape {tuple(values.shape)} of the values, but got "
                         f"{tuple(keep.shape)}")
    keep = torch.ones_like(values, dtype=torch.bool) if keep is None else keep.bool()
    axes.imshow(torch.where(keep, values.detach(), float("nan")).cpu().numpy(), vmin=limits[0], vmax=limits[1])
    rows, columns = (~keep).cpu().nonzero(as_tuple=True)
    axes.scatter(columns.numpy(), rows.numpy(), marker="x", s=14, linewidths=1.0, color=ORANGE)
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY)


def network(axes: Axes, sizes: Sequence[int], keep: Sequence[Tensor | None] | None = None) -> None:
    """Draws a fully connected network; a dropped unit is crossed out and loses its connections.

    Args:
        axes: where to draw.
        sizes: number of units of each layer, from the input to the output.
        keep: for each layer a keep mask of that many elements, or ``None`` to keep all of them.
    """
    from matplotlib.collections import LineCollection

    masks = [None] * len(sizes) if keep is None else keep
    if [len(sizes), *sizes] != [len(masks), *(size if mask is None else mask.numel()
                                              for size, mask in zip(sizes, masks, strict=False))]:
        raise ValueError(f"keep has to hold a mask, or None, for each layer of {list(sizes)} units, but got "
                         f"{[None if mask is None else mask.numel() for mask in masks]} elements")
    alive: list[list[tuple[float, float]]] = []
    dropped: list[tuple[float, float]] = []
    for layer, (size, mask) in enumerate(zip(sizes, masks, strict=True)):
        kept = [True] * size if mask is None else mask.bool().tolist()
        places = [(float(layer), (size - 1) / 2 - unit) for unit in range(size)]
        alive.append([place for place, keeps in zip(places, kept, strict=True) if keeps])
        dropped += [place for place, keeps in zip(places, kept, strict=True) if not keeps]
    lines = [(start, end) for starts, ends in pairwise(alive) for start in starts for end in ends]
    axes.add_collection(LineCollection(lines, colors=GREY, linewidths=0.7, zorder=1))
    for x, y in chain.from_iterable(alive):
        axes.plot(x, y, "o", color=BLUE, markersize=12, zorder=2)
    for x, y in dropped:
        axes.plot(x, y, "o", color=ORANGE, markersize=12, fillstyle="none", zorder=2)
        axes.plot(x, y, "x", color=ORANGE, markersize=8, zorder=3)
    axes.set_axis_off()


def band(axes: Axes, x: Sequence[float], runs: Tensor, *, label: str, color: str | None = None) -> None:
    """Draws the mean over runs as a line and two standard errors of it as a band.

    Args:
        axes: where to draw.
        x: the horizontal positions.
        runs: shape ``(runs, positions)``, at least two runs.
        label: what the line is.
        color: colour of line and band; the next of the style's if ``None``.
    """
    if runs.dim() != 2 or len(runs) < 2 or runs.shape[1] != len(x):
        raise ValueError(f"runs has to be of shape (runs, {len(x)}), with at least two runs, but got the shape "
                         f"{tuple(runs.shape)}")
    mean, error = runs.mean(dim=0), runs.std(dim=0) / len(runs) ** 0.5
    (line,) = axes.plot(x, mean.tolist(), marker="o", markersize=3, label=label, color=color)
    axes.fill_between(x, (mean - 2 * error).tolist(), (mean + 2 * error).tolist(), alpha=0.25,
                      color=line.get_color(), linewidth=0)


def animation(figure: Figure, draw: Callable[[int], None], frames: int, *, alt: str, interval: int = 600) -> HTML:
    """An animation with its own controls, for a page that loads nothing from elsewhere.

    Args:
        figure: the figure; it is closed, so that it is not shown a second time.
        draw: draws frame number 0, 1, ... into the figure, after clearing what changes.
        frames: number of frames.
        alt: describes the animation to people who cannot see it.
        interval: milliseconds between two frames.

    Returns:
        HTML: what a notebook shows.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML
    from matplotlib.animation import FuncAnimation

    def update(frame: int) -> tuple[Any, ...]:
        draw(frame)
        return ()

    page = FuncAnimation(figure, update, frames=frames, interval=interval, blit=False).to_jshtml(default_mode="once")
    plt.close(figure)
    page = re.sub(r"<link\b[^>]*font-awesome[^>]*>", "", page, flags=re.DOTALL)
    page = page.replace("<img id=", f'<img alt="{html.escape(alt, quote=True)}" id=')
    page = page.replace('type="range"', 'type="range" aria-label="Frame of the animation"')
    return HTML(page)
