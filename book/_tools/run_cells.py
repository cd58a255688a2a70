"""Runs the code cells of a chapter without Jupyter, and compares the text that they print with what is stored.

::

    python book/_tools/run_cells.py NOTEBOOK ...

For machines that have torch, SymPy and matplotlib, and nothing that the notebooks need beside them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

IGNORED = {"nbval-ignore-output", "nbval-skip"}


def run(path: Path) -> list[str]:
    """Executes a chapter.

    Args:
        path: the notebook.

    Returns:
        list[str]: one message a cell that prints something else than what is stored.
    """
    import matplotlib

    matplotlib.use("agg")
    os.chdir(path.parent)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        if cell["cell_type"] != "code":
            continue
        printed = executed("".join(cell["source"]), namespace)
        if not IGNORED & set(cell["metadata"].get("tags", ())) and printed != stored(cell):
            found.append(f"differs: {path.name}, cell {number}: {printed!r} instead of {stored(cell)!r}")
    return found


def executed(source: str, namespace: dict[str, Any]) -> str:
    """What a cell prints, and the value of its last line."""
    tree, last = ast.parse(source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), namespace)
        value = None if last is None else eval(compile(last, "cell", "eval"), namespace)
    return printed.getvalue() + ("" if value is None else f"{value!r}\n")


def stored(cell: dict[str, Any]) -> str:
    """The text that a cell printed when the chapter was executed, without its figures."""
    texts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            texts.append("".join(output["text"]))
        elif output["output_type"] == "execute_result":
            texts.append("".join(output["data"].get("text/plain", "")) + "\n")
    return "".join(texts)


def main() -> int:
    root = Path.cwd()
    found = []
    for name in sys.argv[1:]:
        found += run(root / name)
        os.chdir(root)
    print("\n".join(found) or f"{len(sys.argv) - 1} notebooks print what is stored")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
