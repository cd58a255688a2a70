"""The notebooks of the book: execute, normalise, check, edit as Markdown.

::

    python book/_tools/notebooks.py run [NOTEBOOK ...]            # all notebooks of the book if none is named
    python book/_tools/notebooks.py to-markdown NOTEBOOK MARKDOWN
    python book/_tools/notebooks.py from-markdown MARKDOWN NOTEBOOK

``run`` executes a notebook from top to bottom in a fresh kernel of this interpreter and stores what it printed, without
its pictures (every build of the book draws them).  Running it again changes nothing.  A notebook that fails is left as
it was.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets import default

ROOT = Path(__file__).resolve().parents[2]
CELL_TIMEOUT = 120
# Drawn or made anew by every build; a list of what to keep instead would lose mime types that other tools rely on.
NOT_STORED = ("image/", "video/", "text/html", "application/javascript", "application/vnd.jupyter.widget",
              "application/vnd.vegalite")
CELL_METADATA = ("mystnb", "tags")
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}
# Imports and pictures; the page shows such code on request.
PLUMBING = re.compile(r"^(?:import|from) |\b(?:plt|plotting|interactive)\.|\b(?:figure|axes|axis)\b", re.MULTILINE)
OPEN_LINES = 12
MYST = {"extension": ".md", "format_name": "myst"}


class NotebookError(Exception):
    """A notebook that cannot be stored, with the cell and the reason."""


class _ThisInterpreter(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> Any:
        return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())


class _KernelOfThisInterpreter(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_interpreter(self) -> KernelSpecManager:
        return _ThisInterpreter()


def shown(path: Path) -> str:
    """A path as the reader of a message knows it: from the root of the project where it lies inside."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def read(path: Path) -> NotebookNode:
    """Reads a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises a different type for every way to be no notebook
        raise NotebookError(f"{shown(path)} is not a notebook: {error}") from error


def is_folded(source: str) -> bool:
    """Whether a code cell is behind "show code" on the page: it teaches nothing, or more than fits at a glance.

    Args:
        source: of the cell.

    Returns:
        bool: True for imports, pictures and more than a dozen lines.
    """
    return PLUMBING.search(source) is not None or len(source.splitlines()) > OPEN_LINES


def _with_fold(metadata: dict[str, Any], source: str) -> dict[str, Any]:
    tags = [tag for tag in metadata.get("tags", []) if tag != "hide-input"]
    tags += ["hide-input"] if is_folded(source) else []
    return {**{key: value for key, value in metadata.items() if key != "tags"}, **({"tags": tags} if tags else {})}


def normalised(notebook: NotebookNode) -> NotebookNode:
    """The part of a notebook that is stored: no pictures, no widgets, no traces of editor or time; code folded by rule.

    Args:
        notebook: an executed notebook; it is left as it is.

    Returns:
        NotebookNode: the normalised copy, with the same cells, identifiers, texts and counts.
    """
    result = nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": METADATA, "cells": []})
    for cell in notebook.cells:
        kept = {"cell_type": cell.cell_type, "id": cell.get("id") or nbformat.v4.new_raw_cell().id,
                "source": "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n")),
                "metadata": {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}}
        if cell.cell_type == "code":
            kept |= {"execution_count": cell.execution_count, "outputs": _stored_outputs(cell.outputs),
                     "metadata": _with_fold(kept["metadata"], kept["source"])}
        elif cell.get("attachments"):
            kept["attachments"] = cell.attachments
        result.cells.append(nbformat.from_dict(kept))
    return result


def _stored_outputs(outputs: list[NotebookNode]) -> list[dict[str, Any]]:
    stored: list[dict[str, Any]] = []
    for output in outputs:
        output = dict(output)
        if "data" in output:
            output["data"] = {kind: data for kind, data in output["data"].items() if not kind.startswith(NOT_STORED)}
            output["metadata"] = {}
            if not output["data"]:
                continue
        if output["output_type"] == "stream" and stored and stored[-1].get("name") == output["name"]:
            stored[-1]["text"] += output["text"]
        else:
            stored.append(output)
    return stored


def text_of(notebook: NotebookNode) -> str:
    """The bytes of a notebook's file, as text."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path: Path, text: str) -> bool:
    """Replaces a file at once, or leaves it alone if it holds the text already.

    Returns:
        bool: whether the file changed.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False,
                                     encoding="utf-8") as file:
        file.write(text)
    temporary = Path(file.name)
    temporary.chmod(path.stat().st_mode if path.exists() else 0o644)
    temporary.replace(path)
    return True


def executed(path: Path, timeout: int = CELL_TIMEOUT) -> NotebookNode:
    """Executes a notebook in a fresh kernel of this interpreter, in the notebook's folder, and normalises it.

    Args:
        path: the notebook; the file is only read.
        timeout: seconds for one cell.

    Returns:
        NotebookNode: the executed and normalised notebook.

    Raises:
        NotebookError: if a cell fails, takes too long, or writes to stderr.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    running = 0

    def remember(cell: NotebookNode, cell_index: int) -> None:
        nonlocal running
        running = cell_index

    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", on_cell_start=remember,
                            kernel_manager_class=_KernelOfThisInterpreter,
                            resources={"metadata": {"path": str(path.resolve().parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        reason = f"still running after {timeout} s"
    except DeadKernelError:
        reason = "the kernel died"
    else:
        for running, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    raise NotebookError(_located(path, notebook, running, f"wrote to stderr: {output.text.strip()}"))
        return normalised(notebook)
    raise NotebookError(_located(path, notebook, running, reason))


def _located(path: Path, notebook: NotebookNode, index: int, reason: str) -> str:
    source = "\n".join(f"    {line}" for line in notebook.cells[index].source.splitlines())
    return f"{shown(path)}, cell {index + 1} of {len(notebook.cells)}: {reason}\n{source}"


def run(paths: list[Path], timeout: int = CELL_TIMEOUT) -> int:
    """Executes notebooks and stores them; one that fails is reported and left as it was.

    Returns:
        int: the number of notebooks that failed.
    """
    failed = 0
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {shown(path)} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            changed = write(path, text_of(executed(path, timeout)))
        except NotebookError as error:
            failed += 1
            print(f"FAILED, the file is as it was\n{error}", flush=True)
        else:
            print(f"{time.perf_counter() - start:.1f} s, {'changed' if changed else 'unchanged'}", flush=True)
    print(f"{len(paths) - failed} executed, {failed} failed")
    return failed


def to_markdown(notebook: Path, markdown: Path) -> None:
    """Writes a notebook's text, without its results, as MyST Markdown."""
    write(markdown, jupytext.writes(read(notebook), fmt=MYST))


def from_markdown(markdown: Path, notebook: Path) -> None:
    """Brings an edited Markdown text back: unchanged cells keep their identifiers, results and counts."""
    edited = jupytext.reads(markdown.read_text(encoding="utf-8"), fmt=MYST)
    if notebook.exists():
        edited = combine_inputs_with_outputs(edited, read(notebook), fmt=MYST)
    write(notebook, text_of(normalised(edited)))
    print(f"{shown(notebook)} written; execute it with: python book/_tools/notebooks.py run {shown(notebook)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="execute and store notebooks")
    command.add_argument("notebooks", nargs="*", type=Path, help="all notebooks of the book if none is named")
    command.add_argument("--timeout", type=int, default=CELL_TIMEOUT, help="seconds for one cell")
    for name, first, second in [("to-markdown", "notebook", "markdown"), ("from-markdown", "markdown", "notebook")]:
        command = commands.add_parser(name, help=f"{first} -> {second}")
        command.add_argument(first, type=Path)
        command.add_argument(second, type=Path)
    options = parser.parse_args(arguments)

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same digits, whatever the number of cores
    try:
        if options.command == "run":
            missing = [str(path) for path in options.notebooks if not path.is_file()]
            if missing:
                raise NotebookError(f"no such notebook: {', '.join(missing)}")
            return min(1, run(options.notebooks or sorted((ROOT / "book").rglob("*.ipynb")), options.timeout))
        if options.command == "to-markdown":
            to_markdown(options.notebook, options.markdown)
        else:
            from_markdown(options.markdown, options.notebook)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
