"""Sphinx extension: what the default HTML keeps from readers who use a keyboard or a screen reader, and a lost link."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from sphinx.application import Sphinx

BACKLINK = re.compile(r'(id="([^"]+)">\s*<a class="viewcode-back" href=")[^"]*')
TOGGLE = re.compile(r'<summary>(\s*<span class="toctree-toggle")')


def make_accessible(body: str) -> str:
    """Mends the HTML of a page's body.

    The list of citations becomes a list: docutils writes ``<div role="list">`` around children whose role is that of a
    bibliography entry, so that a screen reader finds a list without items.

    Args:
        body: the HTML.

    Returns:
        str: the mended HTML, or the same string where there was nothing to mend.
    """
    if "citation-list" not in body:
        return body
    soup = BeautifulSoup(body, "html.parser")
    for division in soup.find_all("div", class_="citation-list"):
        division.name = "ul"
        del division["role"]
        for entry in division.find_all("div", class_="citation", recursive=False):
            entry.name = "li"
            del entry["role"]
    return str(soup)


def name_the_toggles(page: str) -> str:
    """Gives the arrows that open a section of the navigation a name; the theme draws them without one.

    Args:
        page: the HTML of a whole page.

    Returns:
        str: the mended HTML.
    """
    return TOGGLE.sub(r'<summary aria-label="Pages of this section">\1', page)


def find_the_functions(body: str, module: str, address: Callable[[str], str | None]) -> str:
    """Mends the links from a page of source code back to the functions.

    Sphinx remembers one package for all documented objects of a module, that of whichever it read first (``dropoutlib``
    of ``dropoutlib.Dropout``), and one page for each object, the last that shows it, although others may be documented
    as ``dropoutlib.functional.dropout`` or by their module, and some twice.

    Args:
        body: the HTML.
        module: the module whose source code the page shows.
        address: the page of a documented object by its full name; None for a name that is not documented.

    Returns:
        str: the mended HTML.
    """
    parts = module.split(".")
    packages = ["dropoutlib.functional", *(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))]

    def mended(link: re.Match[str]) -> str:
        for package in packages:
            if (page := address(name := f"{package}.{link.group(2)}")) is not None:
                return f"{link.group(1)}{page}#{name}"
        return link.group()

    return BACKLINK.sub(mended, body)


def _mend_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = make_accessible(context["body"])
    if pagename.startswith("_modules/"):
        module = pagename.removeprefix("_modules/").replace("/", ".")
        objects = app.env.get_domain("py").objects

        def address(name: str) -> str | None:
            return app.builder.get_relative_uri(pagename, objects[name].docname) if name in objects else None

        context["body"] = find_the_functions(context["body"], module, address)


def _mend_navigation(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (mended := name_the_toggles(page)) != page:
            path.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _mend_page, priority=900)
    app.connect("build-finished", _mend_navigation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
