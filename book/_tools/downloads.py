"""Sphinx extension: a chapter that is downloaded runs alone, and reads well in plain Jupyter.

What the download button gives is made of the chapter: its roles and boxes are written as plain Markdown, figures have
their number and caption, links lead to the site where its address is known, and a first cell says what to install.
The site also serves the files that such a reader asks for next.
"""

from __future__ import annotations

import re
import shutil
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import checks
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from pybtex.database import Entry, parse_file
from sphinx.application import Sphinx

SERVED = ("requirements.txt", "LICENSE", "CITATION.cff")
BRANCH = "notebooks"     # of the repository, to which the workflow book.yml pushes the chapters as they are downloaded
EXTRAS = "book,experiments"     # of the library, for the pictures and the measurements of the chapters
NUMBERED = {"exercise": "Exercise", "prf:definition": "Definition", "prf:theorem": "Theorem"}
FENCE = re.compile(r"^(`{3,})\{([a-z:-]+)\} ?(.*)\n((?::[a-z]+: .*\n)*)((?:.*\n)*?)\1[ ]*$", re.MULTILINE)
ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)")
LABEL = re.compile(r"^:label: (\S+)$", re.MULTILINE)


def author_and_year(entry: Entry) -> tuple[str, str]:
    """How a text names a paper: "Wager et al." and "2013"."""
    names = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
    names = names or [entry.fields.get("organization", entry.fields["title"])]
    return (" and ".join(names) if len(names) < 3 else f"{names[0]} et al."), entry.fields.get("year", "n.d.")


class Plain:
    """Rewrites the chapters of a book in plain Markdown.

    Args:
        root: of the project.
        repository: its address, empty while that is not known.
        site: address of the built pages, empty while that is not known.
    """

    def __init__(self, root: Path, repository: str = "", site: str = "") -> None:
        self.root, self.repository, self.site = root, repository, site
        self.papers = parse_file(root / "book" / "references.bib").entries

    def notebook(self, path: Path) -> NotebookNode:
        """A chapter as it is downloaded.

        Args:
            path: of its source.

        Returns:
            NotebookNode: the same cells of code, with what stands between them in plain Markdown.
        """
        notebook = nbformat.read(path, 4)
        labels = self._numbers(notebook)
        cells = []
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = self.text(cell.source, path, labels)
            cells.append(cell)
            for output in cell.get("outputs", []):
                if "text/markdown" in output.get("data", {}):
                    output["data"]["text/markdown"] = self.text(output["data"]["text/markdown"], path, labels)
            figure = cell.metadata.get("mystnb", {}).get("figure")
            if figure:
                caption = self.text(" ".join(figure["caption"].split()), path, labels)
                cells.append(new_markdown_cell(f"**{labels[figure['name']]}.** {caption}"))
        notebook.cells = [cells[0], new_markdown_cell(self.install()), *cells[1:]]
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"       # the same notebook whenever it is built
        return notebook

    def install(self) -> str:
        """What the first cell says."""
        if self.repository:
            line = f'%pip install "dropoutlib[{EXTRAS}] @ git+{self.repository}"'
            where = f"To execute this page, run `{line}` in a cell of its own; in Colab, too."
        else:
            where = f'To execute this page, install the library: `pip install ".[{EXTRAS}]"` in a copy of the project.'
        return f"*{where}*"

    def text(self, source: str, path: Path, labels: dict[str, str]) -> str:
        """Markdown of a cell, without roles and directives."""
        written = FENCE.sub(lambda found: self._box(found, labels), source)
        written = ROLE.sub(lambda found: self._role(*found.groups(), labels), written)
        return LINK.sub(lambda found: self._link(*found.groups(), path), written)

    def _numbers(self, notebook: NotebookNode) -> dict[str, str]:
        counts = {kind: count(1) for kind in ("Figure", *NUMBERED.values())}
        labels = {}
        for cell in notebook.cells:
            if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
                labels[name] = f"Figure {next(counts['Figure'])}"
            elif cell.cell_type == "markdown":
                for _, kind, _, options, _ in FENCE.findall(cell.source):
                    if kind in NUMBERED and (label := LABEL.search(options)):
                        labels[label[1]] = f"{NUMBERED[kind]} {next(counts[NUMBERED[kind]])}"
        return labels

    def _box(self, found: re.Match[str], labels: dict[str, str]) -> str:
        _, kind, title, options, body = found.groups()
        if kind in NUMBERED:
            label = LABEL.search(options)
            head = labels[label[1]] if label else NUMBERED[kind]
            return f"**{head}{f' ({title})' if title else ''}.** {body.strip()}"
        match kind:
            case "prf:proof":
                return f"*Proof.* {body.strip()}"
            case "solution-start":
                return f"**Solution of {labels[title]}.**"
            case "solution-end":
                return ""
            case "prove-it":
                return f"```python\n{body.strip()}\n```"
        raise ValueError(f"no plain Markdown for the directive {kind}")

    def _role(self, role: str, content: str, labels: dict[str, str]) -> str:
        if role.startswith("cite:"):
            papers = [author_and_year(self.papers[key.strip()]) for key in content.split(",")]
            if role == "cite:t":
                return ", ".join(f"{names} ({year})" for names, year in papers)
            return f"({'; '.join(f'{names}, {year}' for names, year in papers)})"
        if role.startswith("py:"):
            return f"`{content.rpartition('.')[2] if content.startswith('~') else content}`"
        shown = re.fullmatch(r"(.*) <.*>", content)
        return shown[1] if shown else labels[content]

    def _link(self, shown: str, target: str, path: Path) -> str:
        place, _, anchor = target.partition("#")
        if "://" in target or not place:
            return f"[{shown}]({target})" if place else shown
        page = self.root / place.lstrip("/") if place.startswith("/") else (path.parent / place).resolve()
        shown = shown or title(page)
        if not self.site:
            return shown
        address = PurePosixPath(page.relative_to(self.root)).with_suffix(".html")
        return f"[{shown}]({self.site}{address}{f'#{anchor}' if anchor else ''})"


def title(page: Path) -> str:
    """The first heading of a page."""
    return re.search(r"^# (.*)$", checks.page_prose(page), re.MULTILINE)[1]  # type: ignore[index]


def _colab(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """A button that opens the chapter in Colab, where the repository's address is known."""
    theme = app.config.html_theme_options
    repository = theme.get("repository_url", "")
    if context.get("page_source_suffix") == ".ipynb" and repository.startswith("https://github.com/"):
        address = repository.replace("https://github.com", "https://colab.research.google.com/github")
        context.setdefault("header_buttons", []).append({
            "type": "link", "url": f"{address}/blob/{BRANCH}/{pagename}.ipynb", "icon": "fas fa-rocket",
            "text": "Colab", "tooltip": "Execute in Colab", "label": "launch-colab"})


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    root, site = Path(app.srcdir), Path(app.outdir)
    plain = Plain(root, app.config.html_theme_options.get("repository_url", ""), app.config.html_baseurl or "")
    for copy in (site / "_sources").rglob("*.ipynb"):
        nbformat.write(plain.notebook(root / copy.relative_to(site / "_sources")), copy)
    for name in SERVED:
        shutil.copy(root / name, site / name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _colab, priority=600)     # the theme makes its own buttons at 501
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
