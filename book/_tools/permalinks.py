"""Sphinx extension: what a cell shows has an address, that of the cell, which stays when others come before it.

``book.js`` puts the link beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx


def _name_cells(app: Sphinx, doctree: nodes.document) -> None:
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    cells = nbformat.read(path, as_version=4).cells
    for node in doctree.findall(nodes.container):
        if "cell" in node["classes"] and (index := node.get("cell_index")) is not None:
            node["ids"].append(f"cell-{cells[index].id}")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", _name_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
