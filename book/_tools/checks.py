"""What can be said about the book without executing it; ``tests/test_book.py`` holds the tree to it.

::

    python book/_tools/checks.py

A check is a function that yields one message a problem.  The first group looks at one notebook, the second at the tree.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from notebooks import NOT_STORED, normalised, text_of

LONGEST_LINE = 72
MOST_IGNORE_TAGS = 3
IGNORE_TAGS = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception", "skip-execution"}
IGNORE_COMMENT = re.compile(r"^\s*#\s*(NBVAL_(?:IGNORE_OUTPUT|SKIP|RAISES_EXCEPTION)|PYTEST_VALIDATE_IGNORE_OUTPUT)"
                            r"\s*$", re.MULTILINE)
FIGURE = re.compile(r"^<Figure size .* Axes>$")
CHECKS = {"derive", "disprove", "prove"}
DIRECTIVE = re.compile(r"^`{3,}\{(?P<name>exercise|exercise-start|solution|solution-start|solution-end)\}[ \t]*"
                       r"(?P<argument>.*)(?P<options>(?:\n:.*)*)", re.MULTILINE)
LABEL = re.compile(r"^:label:[ \t]*(\S+)", re.MULTILINE)
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
BIBLIOGRAPHY_KEY = re.compile(r"^@\w+\{\s*([^,\s]+)", re.MULTILINE)
# Folders of a machine and hosts of package indexes; the words are split so that this line does not match itself.
PRIVATE = re.compile(r"/(?:work|root|tmp|home/\w+)/|python" r"hosted\.org|pypi" r"\.org|whl" r"/cpu")
Messages = Iterator[str]


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """The code cells, each with its number as a reader counts cells."""
    return [(number, cell) for number, cell in enumerate(notebook.cells, start=1) if cell.cell_type == "code"]


def markdown(notebook: NotebookNode) -> str:
    """The Markdown of the cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def prose(notebook: NotebookNode) -> str:
    """The Markdown of the cells and of what the cells printed as Markdown."""
    printed = [output.data["text/markdown"] for _, cell in code_cells(notebook) for output in cell.outputs
               if "text/markdown" in output.get("data", {})]
    return "\n\n".join([markdown(notebook), *printed])


# One notebook


def is_compared(notebook: NotebookNode) -> Messages:
    """nbval compares nothing in a cell without a count, so such a cell would pass whatever it prints."""
    for expected, (number, cell) in enumerate(code_cells(notebook), start=1):
        if not cell.source.strip():
            yield f"cell {number} is empty: remove it"
        elif cell.execution_count != expected:
            yield f"cell {number} has the count {cell.execution_count}, not {expected}: execute the notebook"


def has_no_error(notebook: NotebookNode) -> Messages:
    """A page shows no error and no warning."""
    for number, cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {number} stores an error: {output.ename}: {output.evalue}"
            elif output.get("name") == "stderr":
                yield f"cell {number} stores output to stderr: {output.text.strip()[:80]}"


def has_no_pictures(notebook: NotebookNode) -> Messages:
    """Pictures are drawn by the build; a stored one would be stale and nobody would notice."""
    for number, cell in enumerate(notebook.cells, start=1):
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        for kind in sorted(kind for kind in kinds if kind.startswith(NOT_STORED)):
            yield f"cell {number} stores {kind}"
        if cell.get("attachments"):
            yield f"cell {number} stores an attachment"


def has_plain_python(notebook: NotebookNode) -> Messages:
    """No magics and no shell lines: a reader can paste every cell into a script."""
    for number, cell in code_cells(notebook):
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            yield f"cell {number} is not plain Python (a magic or a shell line?): {error.text or error}".rstrip()
        if "get_ipython" in cell.source:
            yield f"cell {number} calls get_ipython"


def has_a_check(notebook: NotebookNode) -> Messages:
    """A chapter claims nothing that it does not check."""
    for _, cell in code_cells(notebook):
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            name = getattr(node, "func", None)
            if isinstance(node, ast.Assert) or getattr(name, "id", getattr(name, "attr", None)) in CHECKS:
                return
    yield f"no cell has an assert or calls one of {', '.join(sorted(CHECKS))}"


def has_short_lines(notebook: NotebookNode) -> Messages:
    """Longer lines are cut off on the page."""
    for number, cell in code_cells(notebook):
        for line in cell.source.splitlines():
            if len(line) > LONGEST_LINE:
                yield f"cell {number} has a line of {len(line)} characters (at most {LONGEST_LINE}): {line.strip()}"


def has_alt_texts(notebook: NotebookNode) -> Messages:
    """Who cannot see a figure is told what it shows."""
    for number, cell in code_cells(notebook):
        if any(FIGURE.match(str(output.get("data", {}).get("text/plain", ""))) for output in cell.outputs):
            alt = str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt") or "")
            if len(alt.split()) < 3:
                yield f"cell {number} draws a figure without alt text: set mystnb.image.alt in the cell's metadata"
            elif "$" in alt:
                yield f"cell {number} has TeX in its alt text, which nothing renders"


def has_solutions(notebook: NotebookNode) -> Messages:
    """Every exercise has a solution that is hidden and that the build executes."""
    exercises: list[str] = []
    executed: dict[str, int] = {}
    solved = ""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code" and solved:
            executed[solved] += 1
        for found in DIRECTIVE.finditer(cell.source) if cell.cell_type == "markdown" else ():
            name, label = found["name"], LABEL.search(found["options"])
            if name.startswith("exercise") and label:
                exercises.append(label[1])
            elif name.startswith("exercise"):
                yield f"cell {number} has an exercise without a label"
            elif name == "solution":
                yield f"cell {number}: a {{solution}} executes nothing; use {{solution-start}} and {{solution-end}}"
            elif name == "solution-start":
                solved = found["argument"].strip()
                executed[solved] = 0
                if "dropdown" not in found["options"]:
                    yield f"cell {number}: the solution of {solved} is not hidden: add ':class: dropdown'"
            else:
                if solved and executed[solved] == 0:
                    yield f"cell {number}: the solution of {solved} executes nothing"
                solved = ""
    if solved:
        yield f"the solution of {solved} has no end"
    yield from (f"exercise {label} has no solution" for label in exercises if label not in executed)
    yield from (f"the solution of {label} has no exercise" for label in executed if label not in exercises)


NOTEBOOK_CHECKS = (is_compared, has_no_error, has_no_pictures, has_plain_python, has_a_check, has_short_lines,
                   has_alt_texts, has_solutions)


def notebook_problems(path: Path) -> list[str]:
    """All problems of one notebook."""
    notebook = nbformat.read(path, as_version=4)
    found = [message for check in NOTEBOOK_CHECKS for message in check(notebook)]
    if not found and text_of(normalised(notebook)) != path.read_text(encoding="utf-8"):
        found.append(f"is not stored as `notebooks.py run` stores it: python book/_tools/notebooks.py run {path.name}")
    return found


# The tree


def notebooks(root: Path) -> list[Path]:
    """The notebooks of the book."""
    return sorted(path for path in (root / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def pages(root: Path) -> list[Path]:
    """The pages of the book."""
    return sorted([*notebooks(root), *(root / "book").rglob("*.md")])


def contents(root: Path) -> list[str]:
    """The pages in the order of the table of contents, without ending: such as ``book/intro``."""
    def entries(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            yield from (node[key] for key in ("root", "file") if key in node)
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from entries(child)

    return list(entries(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def page_prose(path: Path) -> str:
    """The Markdown of a page."""
    if path.suffix == ".ipynb":
        return prose(nbformat.read(path, as_version=4))
    return path.read_text(encoding="utf-8")


def has_few_ignore_tags(root: Path) -> Messages:
    """Each of these tags takes a cell out of the comparison."""
    found = []
    for path in notebooks(root):
        for number, cell in code_cells(nbformat.read(path, as_version=4)):
            marks = (IGNORE_TAGS & set(cell.metadata.get("tags", []))) | set(IGNORE_COMMENT.findall(cell.source))
            found += [f"{path.name} cell {number}: {mark}" for mark in sorted(marks)]
    if len(found) > MOST_IGNORE_TAGS:
        yield f"{len(found)} ignore tags, at most {MOST_IGNORE_TAGS}: {'; '.join(found)}"


def is_in_contents(root: Path) -> Messages:
    """Every page is in the table of contents, once, and every entry is a page."""
    listed = contents(root)
    existing = {path.relative_to(root).with_suffix("").as_posix() for path in pages(root)}
    yield from (f"_toc.yml: {entry} has no file" for entry in listed if entry not in existing)
    yield from (f"{page} is in no table of contents" for page in sorted(existing - set(listed)))
    yield from (f"_toc.yml: {entry} is there twice" for entry in sorted({e for e in listed if listed.count(e) > 1}))


def has_whole_links(root: Path) -> Messages:
    """Links between the pages lead to a file, citations to the bibliography."""
    keys = set(BIBLIOGRAPHY_KEY.findall((root / "book" / "references.bib").read_text(encoding="utf-8")))
    for path in pages(root):
        text = re.sub(r"^(`{3,})(?!\{).*?^\1", "", page_prose(path), flags=re.MULTILINE | re.DOTALL)
        for target in LINK.findall(re.sub(r"(?<!\})`[^`\n]+`(?!\])", "", text)):
            place = target.split("#")[0]
            if not place or re.match(r"[a-z]+:", target):
                continue
            file = root / place.lstrip("/") if place.startswith("/") else path.parent / place
            if not file.exists():
                yield f"{path.relative_to(root)}: the link {target} leads to no file"
        for key in _cited(text) - keys:
            yield f"{path.relative_to(root)}: the citation {key} is not in book/references.bib"


def has_unique_labels(root: Path) -> Messages:
    """A label belongs to one page: the build finds the second one too, minutes later."""
    owners: dict[str, Path] = {}
    for path in notebooks(root):
        notebook = nbformat.read(path, as_version=4)
        figures = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for _, cell in code_cells(notebook)]
        for label in [*filter(None, figures), *LABEL.findall(prose(notebook))]:
            if label in owners:
                yield f"{path.relative_to(root)}: the label {label} is taken by {owners[label].relative_to(root)}"
            owners[label] = path


def _cited(text: str) -> set[str]:
    return {key.strip() for group in CITATION.findall(text) for key in group.split(",")}


def has_whole_rows(root: Path, table: Mapping[str, Any]) -> Messages:
    """Every row of the table of methods has its chapter, module, tests, bibliography and API entry, linked together.

    Args:
        root: the root of the project.
        table: the rows by name, as :func:`dropoutlib.methods.catalogue` gives them.
    """
    bibliography = (root / "book" / "references.bib").read_text(encoding="utf-8")
    for name, row in table.items():
        chapter, module = root / f"book/{row.part}/{name}.ipynb", root / f"dropoutlib/{row.part}/{name}.py"
        tests, api = root / f"tests/{row.part}/test_{name}.py", root / f"book/reference/api/{name}.md"
        missing = [path for path in (chapter, module, tests, api) if not path.is_file()]
        for path in missing:
            yield f"method {name}: no {path.relative_to(root)}"
        text = page_prose(chapter) if chapter.is_file() else None
        for key in row.references:
            if key not in BIBLIOGRAPHY_KEY.findall(bibliography):
                yield f"method {name}: {key} is not in book/references.bib"
            if text is not None and key not in _cited(text):
                yield f"method {name}: its chapter does not cite {key}"
        if text is not None and not re.search(rf"reference/api/{name}(\.md)?[)`#]", text):
            yield f"method {name}: its chapter does not link book/reference/api/{name}.md"
        if tests.is_file() and not re.search(r"^(?:    )?def test_", tests.read_text(encoding="utf-8"), re.MULTILINE):
            yield f"method {name}: {tests.relative_to(root)} tests nothing"
        if api.is_file():
            entries = api.read_text(encoding="utf-8")
            wanted = [f"automodule:: dropoutlib.{row.part}.{name}", f"/book/{row.part}/{name}.ipynb",
                      *(f":: dropoutlib.{layer}" for layer in row.layers)]
            for entry in wanted:
                if not re.search(rf"{re.escape(entry)}(?![\w.])", entries):
                    yield f"method {name}: {api.relative_to(root)} does not mention {entry}"
    modules = {path.stem for part in {row.part for row in table.values()}
               for path in (root / "dropoutlib" / part).glob("*.py") if not path.stem.startswith("_")}
    for stray in sorted(modules - set(table) - {"learned_noise"}):   # helpers of a loop of training
        yield f"module {stray}: no row in the table of methods"


def has_sources_that_can_be_opened(root: Path) -> Messages:
    """Every entry of the bibliography has a DOI or an address."""
    for entry in re.split(r"\n(?=@)", (root / "book" / "references.bib").read_text(encoding="utf-8")):
        key = BIBLIOGRAPHY_KEY.search(entry)
        if key and not re.search(r"^\s*(?:doi|url)\s*=|\\url\{", entry, re.MULTILINE):
            yield f"book/references.bib: {key[1]} has neither a doi nor a url"


def has_docstrings_that_name_the_chapter(table: Mapping[str, Any], library: Any) -> Messages:
    """Every layer's docstring names the chapter that derives it."""
    for name, row in table.items():
        for layer in row.layers:
            if f"book/{row.part}/{name}" not in (getattr(library, layer, None).__doc__ or ""):
                yield f"method {name}: the docstring of {layer} does not name book/{row.part}/{name}"


def has_no_private_words(root: Path) -> Messages:
    """Nothing in the tree names a machine's folders or a package index."""
    for folder in ("book", "dropoutlib", "tests", ".ci", ".github"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".ipynb", ".md", ".py", ".yml", ".bib", ".css", ".js", "") and path.is_file():
                yield from _private(path, root)
    for name in ("_config.yml", "_toc.yml", "requirements.txt", "pyproject.toml", "README.md", "CITATION.cff"):
        if (root / name).is_file():
            yield from _private(root / name, root)


def _private(path: Path, root: Path) -> Messages:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if found := PRIVATE.search(line):
            yield f"{path.relative_to(root)}:{number}: {found.group()}"


def has_pinned_requirements(root: Path) -> Messages:
    """A fresh machine gets what was tried, and a reader learns why each package is there."""
    of_one_system = r'(; platform_system == "\w+")?'
    for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and not re.fullmatch(
                rf"(-e \.|[\w.-]+==[\w.+]+{of_one_system})\s+# .+", line):
            yield f"requirements.txt: not pinned, or no reason: {line}"


TREE_CHECKS = (has_few_ignore_tags, is_in_contents, has_whole_links, has_unique_labels, has_no_private_words,
               has_pinned_requirements, has_sources_that_can_be_opened)


def problems(root: Path) -> list[str]:
    """All problems of the book at ``root``, which is the tree that the installed library comes from."""
    library = importlib.import_module("dropoutlib")
    table = library.catalogue()
    found = [f"{path.relative_to(root)}: {message}" for path in notebooks(root) for message in notebook_problems(path)]
    for check in TREE_CHECKS:
        found += check(root)
    return [*found, *has_whole_rows(root, table), *has_docstrings_that_name_the_chapter(table, library)]


def main() -> int:
    found = problems(Path(__file__).resolve().parents[2])
    print("\n".join([*found, f"{len(found)} problems"]))
    return min(1, len(found))


if __name__ == "__main__":
    sys.exit(main())
