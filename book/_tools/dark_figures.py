"""Sphinx extension: every figure once more, in the colours of a dark page.

What is grey in a figure (ink, ground, axes, the pale end of a colour map) is turned over in lightness, what is coloured
keeps its colour. A page holds both; the theme shows the one that fits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sphinx.application import Sphinx

IMAGE = re.compile(r'<img\b(?P<before>[^>]*?)src="(?P<folder>[^"]*\b_images/)(?P<name>[^"/]+)\.png"(?P<after>[^>]*)>')
CLASS = re.compile(r'\s*\bclass="([^"]*)"')
DARKEST, SPAN = 0.09, 0.87  # black of a dark page is a dark grey, white is a light one


def for_dark_pages(picture: Image.Image) -> Image.Image:
    """The picture in the colours of a dark page.

    Args:
        picture: of any mode; transparent parts stay so.

    Returns:
        Image: of the same size.
    """
    pixels = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    colours, opacity = pixels[..., :3], pixels[..., 3:]
    grey = colours.min(-1, keepdims=True)           # a colour is a grey part and what is above it
    chroma = colours.max(-1, keepdims=True) - grey
    turned = DARKEST + SPAN * (colours - grey + (1 - chroma - grey))
    return Image.fromarray(np.rint(255 * np.concatenate([turned, opacity], -1)).astype(np.uint8))


def with_twins(page: str, names: set[str]) -> str:
    """The HTML of a page in which every figure is followed by its twin for dark pages.

    Args:
        page: the HTML.
        names: of the figures that have a twin.

    Returns:
        str: the HTML; figures without a twin are as they were.
    """
    def twin(found: re.Match[str]) -> str:
        if found["name"] not in names:
            return found.group()
        classes = CLASS.search(found["before"] + found["after"])
        before, after = (CLASS.sub("", found[part]) for part in ("before", "after"))
        shown = [f'<img{before}src="{found["folder"]}{found["name"]}{suffix}.png"{after.rstrip(" /")} '
                 f'loading="lazy" class="{classes[1] + " " if classes else ""}only-{theme}" />'
                 for suffix, theme in (("", "light"), ("-dark", "dark"))]
        # In a box of their own, because the theme hides a caption that stands beside a picture for one theme.
        return f'<span class="twins">{"".join(shown)}</span>'

    return IMAGE.sub(twin, page)


def _draw_twins(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    names = {path.stem for path in (site / "_images").glob("*.png") if not path.stem.endswith("-dark")}
    for name in names:
        with Image.open(site / "_images" / f"{name}.png") as picture:
            for_dark_pages(picture).save(site / "_images" / f"{name}-dark.png")
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if "-dark.png" not in page and (both := with_twins(page, names)) != page:
            path.write_text(both, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _draw_twins)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
