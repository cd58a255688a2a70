"""Writes the index of public names: where each is derived, documented, written and tested.

::

    python book/_tools/index_of_names.py > book/reference/api/names.md
"""

from __future__ import annotations

import inspect
from pathlib import Path

import dropoutlib
from dropoutlib import functional

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"audit": "surgery", "replace": "surgery", "catalogue": "methods", "kl_divergence": "divergence"}
HEAD = """# Names

Every public name, with the chapter that derives it, its documentation, its source and its tests.

| name | chapter | documentation | source | tests |
|---|---|---|---|---|
"""


def rows() -> list[tuple[str, ...]]:
    """Name, chapter, documentation, source and tests of every public name, in alphabetical order."""
    found = {}
    for method in dropoutlib.catalogue().values():
        tests = f"`tests/{method.part}/test_{method.name}.py`"
        source = f"`dropoutlib/{method.part}/{method.name}.py`"
        chapter = f"[{method.title}](/{method.chapter})"
        for layer in method.facts:
            found[layer.name] = (f"`{layer.name}`", chapter, f"[]({method.part}.md)", source, tests)
            found.setdefault(layer.function, (f"`functional.{layer.function}`", chapter, "[](functional.md)", source,
                                              tests))
    for name, page in TOOLS.items():
        source = Path(inspect.getfile(getattr(dropoutlib, name))).relative_to(ROOT).as_posix()
        tests = f"tests/test_{Path(source).stem}.py"
        found[name] = (f"`{name}`", "", f"[]({page}.md)", f"`{source}`", f"`{tests}`")
    missing = {*dropoutlib.__all__, *functional.__all__} - {*found, "functional"}
    if missing:
        raise SystemExit(f"no row for {', '.join(sorted(missing))}")
    return [found[name] for name in sorted(found, key=str.lower)]


def page() -> str:
    """The page as Markdown."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


if __name__ == "__main__":
    print(page(), end="")
