"""Sphinx extension: ``{summaries} FOLDER`` lists what the chapters of a part say in their summaries.

The summary of a chapter is written once, at its end; the index of results is made of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import checks
import nbformat
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SUMMARY = re.compile(r"^## Summary\n(.*?)(?=^Read on|^#|\Z)", re.DOTALL | re.MULTILINE)


def summary(notebook: Path) -> str:
    """What a chapter says in its summary, as Markdown; empty if it has none."""
    found = SUMMARY.search(checks.markdown(nbformat.read(notebook, 4)))
    return found[1].strip() if found else ""


def chapters(root: Path, folder: str) -> list[str]:
    """The chapters of a folder, without ending, in the order of the table of contents."""
    return [page for page in checks.contents(root) if Path(page).parent == Path(folder)]


class Summaries(SphinxDirective):
    """The directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A link to each chapter, and its summary."""
        root, folder = Path(self.env.srcdir), self.arguments[0]
        lines: list[str] = []
        for chapter in chapters(root, folder):
            notebook = (root / chapter).with_suffix(".ipynb")
            self.env.note_dependency(str(notebook))
            lines += [f"**[](/{chapter}.ipynb)**", "", *summary(notebook).splitlines(), ""]
        if not lines:
            raise self.error(f"no chapter in {folder}")
        node = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, node)
        return node.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("summaries", Summaries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
