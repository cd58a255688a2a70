"""The book without executing it: what the checks of ``book/_tools`` find, and that each of them can find something."""

from __future__ import annotations

import asyncio
import colorsys
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accessible
import all_cores
import check_pages
import checks
import claims
import dark_figures
import downloads
import index_of_names
import keywords
import nbformat
import notebooks
import offline
import pytest
import summaries
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import dropoutlib

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = checks.notebooks(ROOT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    assert checks.notebook_problems(path) == []


def test_the_book_has_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("check", checks.TREE_CHECKS, ids=lambda check: check.__name__)
def test_tree(check: Callable[[Path], Iterator[str]]) -> None:
    assert list(check(ROOT)) == []


def test_the_index_of_names_is_that_of_the_table() -> None:
    assert (ROOT / "book/reference/api/names.md").read_text(encoding="utf-8") == index_of_names.page()
    for _, _, _, source, tests in index_of_names.rows():
        assert (ROOT / source.strip("`")).is_file() and (ROOT / tests.strip("`")).is_file(), (source, tests)


def test_every_method_has_its_chapter_module_tests_and_entries() -> None:
    table = dropoutlib.catalogue()
    assert list(checks.has_whole_rows(ROOT, table)) == []
    assert list(checks.has_docstrings_that_name_the_chapter(table, dropoutlib)) == []


# The checks can fail: each of these notebooks has exactly one fault.

EXERCISE = "```{exercise}\n:label: ex-one\n\nHow many?\n```\n\n```{solution-start} ex-one\n:class: dropdown\n```\nOne."


def good_notebook() -> NotebookNode:
    """A notebook that passes every check."""
    figure = new_output("display_data", {"text/plain": "<Figure size 600x350 with 1 Axes>"})
    cells = [new_markdown_cell("# Title"), new_code_cell("assert 1 + 1 == 2"),
             new_code_cell("figure", outputs=[figure],
                           metadata={"mystnb": {"image": {"alt": "A line that rises steadily."}}}),
             new_markdown_cell(EXERCISE), new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")]),
             new_markdown_cell("```{solution-end}\n```")]
    notebook = new_notebook(cells=cells)
    for count, cell in enumerate([cell for cell in cells if cell.cell_type == "code"], start=1):
        cell.execution_count = count
    return notebook


def set_source(cell: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[cell].update(source=source)


def replace(cell: int, old: str, new: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[cell].update(source=notebook.cells[cell].source.replace(old, new))


def add_output(output_type: str, *arguments: Any, **keywords: Any) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[4].outputs.append(new_output(output_type, *arguments, **keywords))


FAULTS = {
    "not executed": (lambda notebook: notebook.cells[4].update(execution_count=None), "count None, not 3"),
    "executed out of order": (lambda notebook: notebook.cells[4].update(execution_count=7), "count 7, not 3"),
    "empty cell": (set_source(2, ""), "empty"),
    "error": (add_output("error", ename="ValueError", evalue="p"), "stores an error: ValueError"),
    "stderr": (add_output("stream", name="stderr", text="warning"), "stderr: warning"),
    "picture": (add_output("display_data", {"image/png": "AAAA"}), "stores image/png"),
    "html": (add_output("display_data", {"text/html": "<p>"}), "stores text/html"),
    "magic": (set_source(4, "%timeit 1"), "not plain Python"),
    "cell magic": (set_source(4, "%%time\nx = 1"), "not plain Python"),
    "shell line": (set_source(4, "!ls"), "not plain Python"),
    "hidden magic": (set_source(4, "get_ipython().run_line_magic('time', '1')"), "get_ipython"),
    "no check": (set_source(1, "1 + 1 == 2"), "no cell has an assert"),
    "long line": (set_source(4, f"x = '{'a' * 80}'"), "line of 86 characters"),
    "no alt text": (lambda notebook: notebook.cells[2].update(metadata={}), "without alt text"),
    "TeX in alt text": (lambda notebook: notebook.cells[2].metadata.mystnb.image.update(alt="the line $p$ rises"),
                        "TeX"),
    "no solution": (replace(3, "solution-start} ex-one", "note} ex-one"), "ex-one has no solution"),
    "shown solution": (replace(3, ":class: dropdown\n", ""), "is not hidden"),
    "solution without code": (lambda notebook: notebook.cells.insert(4, notebook.cells.pop(5)), "executes nothing"),
    "solution without end": (set_source(5, "The end."), "has no end"),
    "exercise without label": (replace(3, ":label: ex-one\n", ""), "without a label"),
    "editor's metadata": (lambda notebook: notebook.cells[1].metadata.update(collapsed=True), "notebooks.py run"),
}


def store(notebook: NotebookNode, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebooks.text_of(notebook), encoding="utf-8")
    return path


def test_good_notebook_passes(tmp_path: Path) -> None:
    assert checks.notebook_problems(store(notebooks.normalised(good_notebook()), tmp_path / "good.ipynb")) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_notebook_with_a_fault_is_refused(fault: str, tmp_path: Path) -> None:
    plant, message = FAULTS[fault]
    notebook = notebooks.normalised(good_notebook())
    plant(notebook)
    assert message in "\n".join(checks.notebook_problems(store(notebook, tmp_path / "bad.ipynb")))


@dataclass(frozen=True)
class Row:
    """A row of the table of methods, as the checks see it."""

    part: str = "dense"
    layers: tuple[str, ...] = ("Layer",)
    references: tuple[str, ...] = ("someone2000",)


TABLE = {"method": Row()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project that passes every check of the tree."""
    notebook = good_notebook()
    notebook.cells[0].source += "\n{cite:t}`someone2000`, [the layer](/book/reference/api/method.md)"
    store(notebooks.normalised(notebook), tmp_path / "book/dense/method.ipynb")
    for name, text in {
        "book/reference/api/method.md": "[](/book/dense/method.ipynb)\n.. automodule:: dropoutlib.dense.method\n"
                                       ".. autoclass:: dropoutlib.Layer\n",
        "book/references.bib": "@article{someone2000,\n title = {Title},\n doi = {10.1000/1}\n}\n",
        "dropoutlib/dense/method.py": "",
        "tests/dense/test_method.py": "def test_it():\n    pass\n",
        "_toc.yml": "root: book/dense/method\nparts:\n- chapters:\n  - file: book/reference/api/method\n",
        "requirements.txt": "-e .  # the library\ntorch==2.13.0  # the layers\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def tree_problems(root: Path) -> list[str]:
    found = list(checks.has_whole_rows(root, TABLE))
    for check in checks.TREE_CHECKS:
        found += check(root)
    return found


def test_good_tree_passes(tree: Path) -> None:
    assert tree_problems(tree) == []


@pytest.mark.parametrize(("name", "old", "new", "message"), [
    ("book/dense/method.ipynb", None, None, "no book/dense/method.ipynb"),
    ("dropoutlib/dense/method.py", None, None, "no dropoutlib/dense/method.py"),
    ("tests/dense/test_method.py", None, None, "no tests/dense/test_method.py"),
    ("tests/dense/test_method.py", "def test_it", "def helper", "tests nothing"),
    ("book/reference/api/method.md", None, None, "no book/reference/api/method.md"),
    ("book/reference/api/method.md", "dropoutlib.Layer", "dropoutlib.LayerNorm", "does not mention :: dropoutlib.L"),
    ("book/reference/api/method.md", "automodule", "autofunction", "does not mention automodule"),
    ("book/reference/api/method.md", "/book/dense/method.ipynb", "method.ipynb", "does not mention /book/dense"),
    ("book/references.bib", "someone2000", "someone2001", "someone2000 is not in book/references.bib"),
    ("book/dense/method.ipynb", "{cite:t}", "", "does not cite someone2000"),
    ("book/dense/method.ipynb", "/book/reference/api/method.md", "/book/references.bib", "does not link"),
    ("book/dense/method.ipynb", "/book/reference/api/method.md", "missing.ipynb", "missing.ipynb leads to no file"),
    ("book/dense/method.ipynb", "someone2000", "nobody2000", "citation nobody2000"),
    ("_toc.yml", "root: book/dense/method", "root: book/dense/other", "book/dense/method is in no table of contents"),
    ("_toc.yml", "book/reference/api/method", "book/reference/api/gone", "book/reference/api/gone has no file"),
    ("_toc.yml", "book/reference/api/method", "book/dense/method", "there twice"),
    ("book/references.bib", "doi = ", "note = ", "neither a doi nor a url"),
    ("requirements.txt", "torch==2.13.0", "torch>=2.13", "not pinned"),
    ("requirements.txt", "  # the layers", "", "no reason"),
    ("dropoutlib/dense/method.py", "", "# see /ro" "ot/notes", "/ro" "ot/"),
    ("dropoutlib/dense/other.py", "", "", "module other: no row"),
])
def test_tree_with_a_fault_is_refused(tree: Path, name: str, old: str | None, new: str | None, message: str) -> None:
    path = tree / name
    if old is None or new is None:
        path.unlink()
    else:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(text.replace(old, new) if old else new, encoding="utf-8")
    assert message in "\n".join(tree_problems(tree))


def test_many_ignore_tags_are_refused(tree: Path) -> None:
    notebook = good_notebook()
    for cell in notebook.cells[1:3]:
        cell.metadata["tags"] = ["nbval-ignore-output", "raises-exception"]
    store(notebook, tree / "book/dense/method.ipynb")
    assert "4 ignore tags" in "\n".join(checks.has_few_ignore_tags(tree))


@pytest.mark.parametrize("place", ["label", "figure"])
def test_label_of_two_pages_is_refused(tree: Path, place: str) -> None:
    notebook = good_notebook()
    if place == "label":
        notebook.cells[0].source += "\n```{prf:theorem}\n:label: ex-one\n```"
    else:
        for cell in notebook.cells[1:3]:
            cell.metadata["mystnb"] = {"figure": {"name": "ex-one"}}
    store(notebook, tree / "book/dense/other.ipynb")
    assert "the label ex-one is taken by" in "\n".join(checks.has_unique_labels(tree))


def test_ignore_comments_count_as_tags(tree: Path) -> None:
    notebook = good_notebook()
    for cell in notebook.cells:
        cell.source = "# NBVAL_IGNORE_OUTPUT\n1"
    notebook.cells.append(new_code_cell("# NBVAL_SKIP\n1"))
    store(notebook, tree / "book/dense/method.ipynb")
    assert "4 ignore tags" in "\n".join(checks.has_few_ignore_tags(tree))


def test_docstring_without_chapter_is_refused() -> None:
    named = SimpleNamespace(Layer=type("Layer", (), {"__doc__": "Chapter: :doc:`/book/dense/method`."}))
    silent = SimpleNamespace(Layer=type("Layer", (), {"__doc__": "A layer."}))
    assert list(checks.has_docstrings_that_name_the_chapter(TABLE, named)) == []
    assert "does not name" in "\n".join(checks.has_docstrings_that_name_the_chapter(TABLE, silent))


# Executing and storing


def test_executing_again_changes_nothing(tmp_path: Path) -> None:
    source = "import sys\nprint(sys.prefix)\nfrom IPython.display import HTML, display\ndisplay(HTML('<p>'))\n1 / 2"
    path = store(new_notebook(cells=[new_markdown_cell("# Title  "), new_code_cell(source)]), tmp_path / "a.ipynb")
    identifiers = [cell.id for cell in notebooks.read(path).cells]
    assert notebooks.run([path]) == 0
    first = path.read_bytes()
    assert notebooks.run([path]) == 0
    assert path.read_bytes() == first
    stored = notebooks.read(path)
    assert [cell.id for cell in stored.cells] == identifiers
    printed, shown, result = stored.cells[1].outputs
    assert printed.text == f"{sys.prefix}\n"  # the kernel is this interpreter
    assert list(shown.data) == ["text/plain"]
    assert result.data == {"text/plain": "0.5"}
    assert stored.cells[1].execution_count == 1


@pytest.mark.parametrize(("source", "message"), [
    ("raise ValueError('no such p')", "cell 1 of 1: ValueError: no such p"),
    ("import warnings\nwarnings.warn('old')", "wrote to stderr"),
    ("import time\ntime.sleep(60)", "still running after 2 s"),
])
def test_notebook_that_fails_is_left_alone(source: str, message: str, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    path = store(new_notebook(cells=[new_code_cell(source)]), tmp_path / "a.ipynb")
    before = path.read_bytes()
    assert notebooks.run([path], timeout=2) == 1
    assert message in capsys.readouterr().out
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_markdown_and_back_changes_nothing_but_what_was_edited(tmp_path: Path) -> None:
    path, text = store(notebooks.normalised(good_notebook()), tmp_path / "a.ipynb"), tmp_path / "a.md"
    before = path.read_bytes()
    notebooks.to_markdown(path, text)
    notebooks.from_markdown(text, path)
    assert path.read_bytes() == before
    text.write_text(text.read_text(encoding="utf-8").replace("# Title", "# Another title"), encoding="utf-8")
    notebooks.from_markdown(text, path)
    assert path.read_bytes() == before.replace(b"# Title", b"# Another title")


def nbval(folder: Path, *arguments: str) -> list[str]:
    """What the command that everybody runs says of each cell of a folder of notebooks, in one process."""
    command = [sys.executable, "-m", "pytest", "-n0", "-rA", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}",
               "-p", "no:cacheprovider", "-p", "conftest", *arguments, str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    return sorted(re.findall(r"^(?:PASSED|FAILED|ERROR) [\w.]+::Cell \d", result.stdout, flags=re.MULTILINE))


def test_nbval_compares_what_is_stored(tmp_path: Path) -> None:
    """It sees a changed number, both in what a kernel prints and in what a build of the book has printed."""
    built, stored = tmp_path / "built", tmp_path / "stored"
    same = store(new_notebook(cells=[new_code_cell("print(f'{0.3 / (1 - 0.3):.3f}')"), new_code_cell("1 / 4")]),
                 built / "same.ipynb")
    assert notebooks.run([same]) == 0
    for name in ("changed", "edited", "raised", "same", "unbuilt"):
        notebook = nbformat.read(same, as_version=4)
        if name == "raised":
            notebook.cells[0].outputs = [new_output("error", ename="ValueError", evalue="no such p", traceback=[])]
        if name != "unbuilt":
            store(notebook, built / f"{name}.ipynb")
        notebook = nbformat.read(same, as_version=4)
        if name == "changed":
            notebook.cells[0].outputs[0].text = "0.210\n"
        if name == "edited":  # the build executed something else
            notebook.cells[1].source = "2 / 8"
        store(notebook, stored / f"{name}.ipynb")
    assert nbval(stored, f"--built={built}") == [
        "ERROR unbuilt.ipynb::Cell 0", "ERROR unbuilt.ipynb::Cell 1", "FAILED changed.ipynb::Cell 0",
        "FAILED edited.ipynb::Cell 1", "FAILED raised.ipynb::Cell 0", "PASSED changed.ipynb::Cell 1",
        "PASSED edited.ipynb::Cell 0", "PASSED raised.ipynb::Cell 1", "PASSED same.ipynb::Cell 0",
        "PASSED same.ipynb::Cell 1"]
    for name in ("edited", "raised", "unbuilt"):
        (stored / f"{name}.ipynb").unlink()
    assert nbval(stored) == ["FAILED changed.ipynb::Cell 0", "PASSED changed.ipynb::Cell 1",
                             "PASSED same.ipynb::Cell 0", "PASSED same.ipynb::Cell 1"]


def started(*paths: Path) -> all_cores.Kernels:
    """The kernels of a build of these notebooks."""
    kernels = all_cores.Kernels()
    config = SimpleNamespace(nb_execution_mode="force", nb_execution_timeout=60, nb_execution_allow_errors=False)
    kernels.start(SimpleNamespace(config=config), SimpleNamespace(doc2path=str), [*map(str, paths), "page.md"])
    return kernels


def test_build_executes_chapters_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = store(new_notebook(cells=[new_markdown_cell("# A"), new_code_cell("import os\nos.getcwd()")]),
                 tmp_path / "folder" / "good.ipynb")
    bad = store(new_notebook(cells=[new_code_cell("print(1)"), new_code_cell("1 / 0")]), tmp_path / "bad.ipynb")
    options: dict[str, Any] = {"timeout": 60, "allow_errors": False, "meta_override": True}
    kernels, asked = started(good, bad), nbformat.read(good, as_version=4)
    monkeypatch.setattr(all_cores, "execute", None)  # what follows was started
    result = kernels.result(asked, cwd=str(good.parent), **options)
    assert result.err is None and result.time > 0
    assert asked.cells[1].outputs[0].data == {"text/plain": repr(str(good.parent))}
    assert asked.cells[1].execution_count == 1
    assert asked.metadata.language_info.name == "python"
    asked = nbformat.read(bad, as_version=4)
    assert "ZeroDivisionError" in str(kernels.result(asked, cwd=str(tmp_path), **options).err)
    assert asked.cells[0].outputs[0].text == "1\n"
    kernels.stop(SimpleNamespace(), None)


def test_build_executes_what_it_has_not_started(tmp_path: Path) -> None:
    path = store(new_notebook(cells=[new_code_cell("print(1)")]), tmp_path / "a.ipynb")
    kernels = started()
    asked = nbformat.read(path, as_version=4)
    kernels.result(asked, cwd=str(tmp_path), timeout=60, allow_errors=False)
    assert asked.cells[0].outputs[0].text == "1\n"
    kernels.stop(SimpleNamespace(), None)


def test_what_a_cell_prints_is_shown_in_one_piece(tmp_path: Path) -> None:
    slowly = "import sys, time\nfor i in range(3):\n    print(i)\n    sys.stdout.flush()\n    time.sleep(0.3)\ni"
    path = store(new_notebook(cells=[new_code_cell(slowly)]), tmp_path / "a.ipynb")
    kernels, asked = started(path), nbformat.read(path, as_version=4)
    kernels.result(asked, cwd=str(tmp_path), timeout=60, allow_errors=False)
    printed, shown = asked.cells[0].outputs
    assert printed.text == "0\n1\n2\n" and shown.data == {"text/plain": "2"}
    kernels.stop(SimpleNamespace(), None)


def test_every_build_reads_every_chapter_again() -> None:
    pages = {"index": "index.md", "chapter": "book/chapter.ipynb"}
    env = SimpleNamespace(found_docs=set(pages), doc2path=pages.get)
    assert all_cores.every_chapter(None, env, set(), set(), set()) == ["chapter"]


# The pages


@pytest.mark.parametrize("html", [
    '<script src="https://cdn.example/a.js"></script>', '<script src="//cdn.example/a.js"></script>',
    '<link rel="stylesheet" href="https://cdn.example/a.css">', '<link rel="preconnect" href="https://cdn.example">',
    '<img src="http://cdn.example/a.png">', '<img srcset="a.png 1x, https://cdn.example/a.png 2x">',
    '<iframe src="https://cdn.example"></iframe>', '<div style="background: url(https://cdn.example/a.png)"></div>',
    "<style>@import 'https://cdn.example/a.css';</style>", "<style>@font-face {src: url(//cdn.example/a.woff)}</style>",
    '<link\nrel="stylesheet"\nhref="https://cdn.example/a.css">', '<object data="https://cdn.example/a.svg"></object>',
])
def test_page_that_asks_another_host_is_refused(html: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<html><body>{html}</body></html>", encoding="utf-8")
    assert "cdn.example" in "\n".join(offline.remote_fetches(tmp_path / "a.html"))


@pytest.mark.parametrize("css", ["@import url(https://cdn.example/a.css);", '@import "//cdn.example/a.css";',
                                 "a {background: url( 'https://cdn.example/a.png' )}"])
def test_style_sheet_that_asks_another_host_is_refused(css: str, tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(css, encoding="utf-8")
    assert "cdn.example" in "\n".join(offline.remote_fetches(tmp_path / "a.css"))


def test_links_that_a_reader_follows_are_allowed(tmp_path: Path) -> None:
    html = ('<a href="https://other.example">a</a><link rel="canonical" href="https://other.example">'
            '<img src="data:image/png;base64,AA//BB"><img src="a.png" srcset="a.png 1x, b.png 2x">'
            '<script src="a.js"></script>'
            '<p style="color: red">url(https://other.example)</p>')
    (tmp_path / "a.html").write_text(html, encoding="utf-8")
    assert offline.remote_fetches(tmp_path / "a.html") == []


def test_citations_are_a_list() -> None:
    html = ('<div role="list" class="citation-list"><div class="citation" id="id1" role="doc-biblioentry">'
            '<span class="label">[1]</span><p>Title &amp; more</p></div></div>')
    mended = accessible.make_accessible(html)
    assert mended.startswith('<ul class="citation-list"><li class="citation" id="id1">')
    assert "role=" not in mended
    assert "Title &amp; more" in mended
    assert accessible.make_accessible("<p>nothing to mend<br></p>") == "<p>nothing to mend<br></p>"


@pytest.mark.parametrize(("module", "name", "documented"), [
    ("dropoutlib.foundations.standard_dropout", "Dropout.mean", "dropoutlib.Dropout.mean"),
    ("dropoutlib.foundations.standard_dropout", "dropout", "dropoutlib.functional.dropout"),
    ("dropoutlib.noise.laws", "Coins", "dropoutlib.noise.Coins"),
    ("dropoutlib.divergence", "kingma_kl", "dropoutlib.divergence.kingma_kl"),
    ("dropoutlib.divergence", "unknown", None)])
def test_source_code_links_back_to_the_documented_name(module: str, name: str, documented: str | None) -> None:
    page = f'<div class="viewcode-block" id="{name}">\n<a class="viewcode-back" href="{{}}">[docs]</a>'
    linked = page.format("../api/last.html#dropoutlib.first." + name)
    mended = accessible.find_the_functions(linked, module, {documented: "../api/documented.html"}.get)
    assert mended == (page.format(f"../api/documented.html#{documented}") if documented else linked)


def test_arrows_of_the_navigation_have_a_name() -> None:
    html = '<summary><span class="toctree-toggle" role="presentation"></span></summary><summary>Named</summary>'
    once = accessible.name_the_toggles(html)
    assert once.startswith('<summary aria-label="Pages of this section"><span')
    assert once.endswith("<summary>Named</summary>")
    assert accessible.name_the_toggles(once) == once


GOOD_PAGE = """<!doctype html><html lang="en"><head><title>Title</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><script>document.documentElement.dataset.theme = localStorage.getItem("mode");</script>
<script async src="mathjax/tex-chtml.js"></script></head><body><main><article><h1>Title</h1>
<p>The variance <span class="math">\\(p / (1 - p)\\)</span>.</p>
<div class="solution"><p class="admonition-title" onclick="this.nextElementSibling.hidden = false">Solution</p>
<p hidden>One.</p></div>
</article></main><p class="search-summary">One page.</p>
<ul class="search"><li><a href="good.html">a hit</a></li></ul></body></html>"""
FAULTS_OF_PAGES = {
    "formula error": ("p / (1 - p)", r"\frac{p}", "formula with an error"),
    "unknown command": ("p / (1 - p)", r"\nosuchcommand p", "unknown TeX command"),
    "formula not rendered": ("\\(p / (1 - p)\\)", "p / (1 - p)", "formula not rendered"),
    "TeX as text": ("Title</h1>", r"Title</h1><p>\operatorname{Var}</p>", "TeX left as text"),
    "wide content": ("</article>", "<p style='width: 500px'>wide</p></article>", "in a window of 390 px"),
    "cut off content": ("<article>", "<article style='overflow: hidden'><p style='width: 500px'>wide</p>", "ends at"),
    "script error": ("</article>", "<script>throw new Error('planted')</script></article>", "script error: planted"),
    "console": ("</article>", "<script>console.error('planted')</script></article>", "console: planted"),
    "other host": ("</article>", "<script>fetch('https://cdn.example/a')</script></article>", "asks another host"),
    "broken image": ("</article>", "<img src='gone.png' alt='gone'></article>", "broken image"),
    "no alt text": ("</article>", "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='></article>", "axe, critical"),
    "pale text": ("<p>The", "<p style='color: #ccc; background: #fff'>The", "axe, serious"),
    "pale words": ("</article>", "<pre style='background: #fff'>" + "<b>if</b> <span>x</span> " * 9
                   + "<span style='color: #bbb'># all</span>" * 9 + "</pre></article>", "axe, serious"),
    "pale on grey": ("</article>", "<p><code>mask</code> <code style='background: #444'>mask</code></p></article>",
                     "axe, serious"),
    "open solution": ("<p hidden>", "<p>", "solution is not hidden"),
    "closed solution": (".hidden = false", ".hidden = true", "solution does not open"),
    "wrong theme": ('localStorage.getItem("mode")', '"light"', "the theme is light, not dark"),
    "dead link": ("</article>", "<a href='gone.html'>gone</a></article>", "link leads nowhere: gone.html"),
    "dead place": ("</article>", "<a href='search.html#gone'>gone</a></article>", "nowhere: search.html#gone"),
    "heavy": ("</article>", "<script>/* " + "heavy " * 450_000 + " */</script></article>", "weighs 3."),
    "search": ("good.html", "elsewhere.html", "is not in the first 3 hits"),
}


ON_A_DARK_TELEPHONE = ("wide content", "cut off content", "wrong theme")     # where else they are no fault


@pytest.mark.skipif(check_pages.chromium() is None, reason="needs a Chromium")
def test_check_of_the_pages_finds_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desktop, telephone = check_pages.View(1280, "light"), check_pages.View(390, "dark", axe=("color-contrast",))
    mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
    assert mathjax is not None and mathjax.origin is not None
    (tmp_path / "mathjax").symlink_to(Path(mathjax.origin).parent / "static" / "mathjax")
    (tmp_path / "good.html").write_text(GOOD_PAGE, encoding="utf-8")
    (tmp_path / "dark good.html").write_text(GOOD_PAGE, encoding="utf-8")
    for fault, (old, new, _) in FAULTS_OF_PAGES.items():
        assert old in GOOD_PAGE, fault
        name = f"dark {fault}.html" if fault in ON_A_DARK_TELEPHONE else f"{fault}.html"
        (tmp_path / name).write_text(GOOD_PAGE.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(check_pages, "VIEWS", (desktop,))
    findings = asyncio.run(check_pages.check_site(tmp_path))
    assert not any(found for name, found in findings.items() if name.startswith(("good", "dark")))
    monkeypatch.setattr(check_pages, "VIEWS", (telephone,))
    findings |= asyncio.run(check_pages.check_site(tmp_path, only="dark"))
    assert findings.pop("good.html") == findings.pop("dark good.html") == []
    findings = {name.removeprefix("dark ").removesuffix(".html"): found for name, found in findings.items()}
    assert findings.keys() == FAULTS_OF_PAGES.keys()
    unseen = {fault: findings[fault] for fault, (_, _, message) in FAULTS_OF_PAGES.items()
              if message not in "\n".join(findings[fault])}
    assert unseen == {}


def test_a_figure_has_a_twin_for_dark_pages() -> None:
    page = ('<a href="#"><img alt="A line." class="wide" src="../_images/one.png" /></a>'
            '<img alt="Another." src="_images/two.png"/><img src="_static/logo.png">')
    both = dark_figures.with_twins(page, {"one"})
    assert both.count("<img") == 4 and both.count('alt="A line."') == 2
    assert 'src="../_images/one.png" loading="lazy" class="wide only-light"' in both
    assert 'src="../_images/one-dark.png" loading="lazy" class="wide only-dark"' in both
    assert '<img alt="Another." src="_images/two.png"/><img src="_static/logo.png">' in both


def test_the_twin_turns_over_what_is_grey_and_keeps_the_colours() -> None:
    colours = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255), "clear": (0, 0, 0, 0),
               "blue": (47, 121, 196, 255), "orange": (210, 105, 30, 255)}
    picture = Image.new("RGBA", (len(colours), 1))
    picture.putdata(list(colours.values()))
    drawn = dark_figures.for_dark_pages(picture)
    twin = {name: drawn.getpixel((place, 0)) for place, name in enumerate(colours)}
    assert max(twin["white"][:3]) < 40 and min(twin["black"][:3]) > 230 and twin["clear"][3] == 0
    for name in ("blue", "orange"):
        hues = [colorsys.rgb_to_hls(*(part / 255 for part in colour[:3])) for colour in (colours[name], twin[name])]
        assert abs(hues[0][0] - hues[1][0]) < 0.01, "the hue changed"
        assert abs(hues[0][1] - hues[1][1]) < 0.2, "the lightness of a colour was turned over"


def test_keywords_lead_to_pages() -> None:
    found = keywords.keywords(ROOT)
    assert set(found) <= {path.relative_to(ROOT).with_suffix("").as_posix() for path in checks.pages(ROOT)}
    assert "nn.Dropout2d" in found["book/convolutional/spatial_dropout"]


def test_every_chapter_has_a_summary_for_the_index_of_results() -> None:
    index = (ROOT / "book/reference/results.md").read_text(encoding="utf-8")
    for folder in {Path(method.chapter).parent.as_posix() for method in dropoutlib.catalogue().values()}:
        assert f"```{{summaries}} {folder}\n" in index
        for chapter in summaries.chapters(ROOT, folder):
            assert summaries.summary((ROOT / chapter).with_suffix(".ipynb")).startswith("- "), chapter
    assert summaries.summary(ROOT / "book/dense/variational_dropout.ipynb").count("\n- ") < 12, "the appendix is in it"


def test_every_claim_has_a_verdict_a_reason_and_a_place() -> None:
    assert list(claims.problems(ROOT)) == []
    page = (ROOT / "book/reference/claims.md").read_text(encoding="utf-8")
    ledger = claims.read(ROOT)
    assert {f"```{{claims}} {claim.source}" for claim in ledger} == set(re.findall(r"```\{claims\} .+", page))
    assert all(f"*{verdict.capitalize()}*" in page or f"*{verdict}*" in page for verdict in claims.VERDICTS)
    assert len({(claim.source, claim.says) for claim in ledger}) == len(ledger)


@pytest.mark.parametrize(("field", "value", "words"), [
    ("verdict", "perhaps", "the verdict 'perhaps' is none of"), ("because", "", "no reason"),
    ("where", "/book/dense/gone.ipynb#here", "'/book/dense/gone.ipynb#here' is no page"),
    ("where", "/book/foundations/standard_dropout.ipynb#gone", "has no section 'gone'"),
    ("where", "", "'' is no page")])
def test_a_claim_that_is_not_decided_is_found(tmp_path, field, value, words) -> None:
    chapter = "book/foundations/standard_dropout.ipynb"
    claim = {"says": "one", "verdict": "proved", "because": "so", "where": f"/{chapter}#summary"}
    (tmp_path / "book/foundations").mkdir(parents=True)
    (tmp_path / chapter).write_bytes((ROOT / chapter).read_bytes())
    file = tmp_path / claims.FILE
    file.write_text(yaml.safe_dump([{"source": "someone2000", "claims": [claim]}]))
    assert list(claims.problems(tmp_path)) == []
    file.write_text(yaml.safe_dump([{"source": "someone2000", "claims": [claim | {field: value}]}]))
    assert len(found := list(claims.problems(tmp_path))) == 1 and words in found[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_that_is_downloaded_reads_well_and_needs_no_other_file(path: Path) -> None:
    notebook = downloads.Plain(ROOT).notebook(path)
    nbformat.validate(notebook)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.findall(r"\{[a-z:-]+\}`|`{3}\{|\]\(\)|^:label:", prose, re.MULTILINE)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code == "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert not re.findall(r"\bopen\(|\bPath\(|read_(?:text|bytes)\(", code)


def test_what_is_downloaded_in_plain_markdown() -> None:
    plain = downloads.Plain(ROOT, "https://github.com/someone/dropout", "https://someone.github.io/dropout/")
    labels = {"ex-one": "Exercise 1", "thm-one": "Theorem 1", "fig-one": "Figure 1"}
    chapter = ROOT / "book/foundations/max_norm.ipynb"
    for written, expected in {
        "{cite:t}`wager2013adaptive` say": "Wager et al. (2013) say",
        "so {cite:p}`wager2013adaptive,wang2013fast`.": "so (Wager et al., 2013; Wang and Manning, 2013).",
        "{py:class}`~dropoutlib.Dropout`, {py:func}`dropoutlib.audit`": "`Dropout`, `dropoutlib.audit`",
        "{numref}`fig-one`, {ref}`ex-one`, {ref}`the exercise <ex-one>`": "Figure 1, Exercise 1, the exercise",
        "````{exercise}\n:label: ex-one\n\nProve it.\n````": "**Exercise 1.** Prove it.",
        "```{prf:theorem} Steiner\n:label: thm-one\n\n$a$\n```": "**Theorem 1 (Steiner).** $a$",
        "```{solution-start} ex-one\n:class: dropdown\n```\n\nEasy.": "**Solution of Exercise 1.**\n\nEasy.",
        "```{prove-it}\nprove(p, p)\n```": "```python\nprove(p, p)\n```",
        "[here](ensemble.ipynb#a)": "[here](https://someone.github.io/dropout/book/foundations/ensemble.html#a)",
        "[](/book/reference/notation.md)": "[Notation](https://someone.github.io/dropout/book/reference/notation.html)",
        "[below](#variance), [torch](https://pytorch.org)": "below, [torch](https://pytorch.org)",
    }.items():
        assert plain.text(written, chapter, labels) == expected
    assert "git+https://github.com/someone/dropout" in plain.install()
    assert "in a copy of the project" in downloads.Plain(ROOT).install()
