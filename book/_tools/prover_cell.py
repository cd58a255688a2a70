"""Answers a reader's claim as a cell of a notebook would; ``prover.py`` takes it into the reader's browser."""

from __future__ import annotations

import ast
import re
from types import TracebackType
from typing import Any

from dropoutlib.symbolic import Counterexample, Derivation, Identity, NotAClaim, Unproved

CELL = "<claim>"
LONGEST = 20_000  # characters of a value or a message; a page with more does not scroll any more
EXAMPLE = """\
from sympy import IndexedBase, Sum, symbols
from dropoutlib.symbolic import *
p, x = symbols("p"), IndexedBase("x")
j, n = symbols("j n", integer=True, positive=True)
m = Noise(Bernoulli("m", 1 - p))
derive(Variance(Sum(m[j]*x[j], (j, 1, n))), linear, by_law, collapse)
"""


def answer(source: str) -> dict[str, str]:
    """Runs a reader's Python in a fresh namespace.

    Args:
        source: the text of the box.

    Returns:
        dict[str, str]: the ``verdict``, which is "shown", "refused", "value" or "error", with a ``title`` in words; the
        value of the last expression as ``text``, and as ``latex`` where it has a formula; or the message as ``text``.
    """
    try:
        tree = ast.parse(source, CELL)
        end = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        last = ast.Expression(end.value) if isinstance(end, ast.Expr) else None
        body, value_of_last = compile(tree, CELL, "exec"), last and compile(last, CELL, "eval")
    except (SyntaxError, ValueError) as error:
        return _answer("error", f"Not Python: {_syntax(error)}", (getattr(error, "text", None) or "").strip())
    namespace = {"__name__": "__main__"}
    try:
        exec(body, namespace)
        value = eval(value_of_last, namespace) if value_of_last else None
        return _shown(value)
    except BaseException as error:  # also what would end Python: the reader goes on with another claim
        return _stopped(error)
    finally:
        print(end="", flush=True)  # a printed line that has no end


def _answer(verdict: str, title: str, text: str = "", latex: str = "") -> dict[str, str]:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n... {len(text) - LONGEST} more characters"
    return {"verdict": verdict, "title": title, "text": text, "latex": latex if len(latex) <= LONGEST else ""}


def _syntax(error: SyntaxError | ValueError) -> str:
    return f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) and error.lineno else str(error)


def _shown(value: Any) -> dict[str, str]:
    if value is None:
        return _answer("value", "Ran to the end, but the last line has no value: write the claim there.")
    verdict, title = "value", "The value of the last line; nothing was claimed."
    if isinstance(value, Identity) and value.sign == "~":
        title = "Agrees at the given points: a check, not a proof"
    elif isinstance(value, Derivation | Identity):
        verdict, title = "shown", "Shown"
    elif isinstance(value, Counterexample):
        verdict, title = "shown", "Shown: a counterexample"
    formula = getattr(value, "_repr_latex_", lambda: None)() or ""
    return _answer(verdict, title, repr(value), re.sub(r"^\$+|\$+$", "", formula))


def _stopped(error: BaseException) -> dict[str, str]:
    """Refused by the prover, or stopped by a mistake in the Python around the claim."""
    line, in_prover = 0, isinstance(error, NotAClaim | Unproved)
    place: TracebackType | None = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == CELL:
            line = place.tb_lineno
        in_prover = in_prover or str(place.tb_frame.f_globals.get("__name__")).startswith("dropoutlib.symbolic")
        place = place.tb_next
    where = f" at line {line} of the box" if line else ""
    kind = "" if isinstance(error, Unproved) else f"{type(error).__name__}: "
    if in_prover:
        return _answer("refused", f"Refused{where}", f"{kind}{error}")
    return _answer("error", f"Python stopped{where}", f"{kind}{error}")
