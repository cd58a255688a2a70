"""Sphinx extension: what people search for leads to its chapter, by the general index, which the search reads first.

A chapter of a method is found by its layers and by the classes of torch that they replace, from the table of methods;
what else people type stands in ``book/keywords.yml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from dropoutlib import catalogue

FILE = Path("book") / "keywords.yml"


def keywords(root: Path) -> dict[str, list[str]]:
    """The keywords of every page that has some, by the page's name without ending.

    Args:
        root: of the project.

    Returns:
        dict[str, list[str]]: from the table of methods and the file.
    """
    found: dict[str, list[str]] = {}
    for row in catalogue().values():
        names = [name for layer in row.facts for name in (layer.name, f"nn.{layer.replaces}") if name != "nn.None"]
        found[row.chapter.removesuffix(".ipynb")] = list(dict.fromkeys(names))
    written: Mapping[str, list[str]] = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    for page, words in written.items():
        found[page] = [*found.get(page, []), *words]
    return found


def _add_to_index(app: Sphinx, doctree: nodes.document) -> None:
    words = keywords(Path(app.srcdir)).get(app.env.docname, [])
    if not words:
        return
    section = doctree.next_node(nodes.section)
    assert section is not None, f"{app.env.docname} has no title"
    # The search shows the text of what an entry leads to: that has to be the section itself, no empty anchor.
    entries = [("single", word, section["ids"][0], "main", None) for word in words]
    section.insert(1, addnodes.index(entries=entries))
    doctree.settings.record_dependencies.add(str(Path(app.srcdir) / FILE))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", _add_to_index, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
