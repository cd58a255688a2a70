"""Sphinx extension: the figures of :mod:`dropoutlib.interactive` on the pages.

A page holds the figure as it stands before a slider is moved, and its specification.  Where a reader comes near,
``sliders.js`` fetches Vega from the site itself and puts the moving figure in its place; a page without such a figure
loads nothing of this.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import vl_convert
from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer, load_mime_renders
from sphinx.application import Sphinx

from dropoutlib.interactive import MIME

VEGA_LITE = "6.4"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"      # what is written for version 5 is also version 6
WIDTH = 620     # before the figure moves; then it is as wide as the column of text


class SlidersRenderer:
    """Renders a specification of Vega-Lite; a plug-in of myst-nb."""

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = [("html", MIME, 1)]

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        if inline or data.mime_type != MIME:
            return None
        return [nodes.raw(text=figure(data.content), format="html", classes=["output", "text_html"])]


def figure(spec: dict[str, Any]) -> str:
    """The HTML of a figure.

    Args:
        spec: as :class:`dropoutlib.interactive.Figure` holds it; the title and the numbers stand beside the picture.

    Returns:
        str: the figure before it moves, its numbers, and the specification for the script.
    """
    title = html.escape(spec["title"]["text"])
    spec = {**spec, "$schema": SCHEMA, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
    del spec["title"]
    still = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    name = hashlib.sha256(still.encode()).hexdigest()[:8]
    still = still.replace("<svg ", f'<svg role="img" aria-label="{html.escape(spec["description"])}" ', 1)
    still = still.replace('id="clip', f'id="{name}-clip').replace("url(#clip", f"url(#{name}-clip")
    readings = ", ".join(
        f'<span>{html.escape(name)} <data value="{value!r}">{value:.4g}</data></span>'
        for name, value in zip(spec["usermeta"]["readings"], spec["usermeta"]["checks"][0]["values"], strict=True))
    data = json.dumps(spec, separators=(",", ":")).replace("<", r"\u003c")
    return f"""<div class="moving-figure" role="group" aria-label="{title}">
<p class="moving-title">{title}</p>
<div class="moving-picture">{still}</div>
<div class="moving-sliders"></div>
<p class="moving-readings" aria-live="polite">{readings}</p>
<script type="application/json" class="moving-data">{data}</script>
</div>"""


def has_figures(body: str) -> bool:
    """Whether a page needs the script."""
    return 'class="moving-picture"' in body


def _add_script(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if 'class="moving-figure' in context.get("body", ""):
        app.add_css_file("sliders.css")
    if has_figures(context.get("body", "")):
        app.add_js_file("sliders.js", loading_method="defer")


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves one name behind."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return f"/* Vega, Vega-Lite, Vega-Embed: see vega.LICENSE.txt */\n(() => {{{script}}})();\n"


def _add_vega(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    site, script = Path(app.outdir), Path(app.outdir) / "_static" / "vega.js"
    if not script.exists() and any(has_figures(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")):
        script.write_text(bundle(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    if SlidersRenderer not in load_mime_renders():
        load_mime_renders().append(SlidersRenderer)     # an entry point would need a package of its own
    app.connect("html-page-context", _add_script)
    app.connect("build-finished", _add_vega)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
