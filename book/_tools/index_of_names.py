"""Writes the index of public names, where each is derived, documented, written and tested, and README's table.

::

    python book/_tools/index_of_names.py

Both are rendered from the table of methods; tests compare them with it.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import dropoutlib
from dropoutlib import functional

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"audit": "surgery", "replace": "surgery", "catalogue": "methods", "kl_divergence": "divergence",
         "propagate_moments": "propagation", "compress": "compression"}
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
            found[layer.name] = (f"`{layer.name}`", chapter, f"[]({method.name}.md)", source, tests)
            if layer.function is not None:
                found.setdefault(layer.function, (f"`functional.{layer.function}`", chapter, "[](functional.md)",
                                                  source, tests))
    for name, page in TOOLS.items():
        source = Path(inspect.getfile(getattr(dropoutlib, name))).relative_to(ROOT).as_posix()
        tests = f"tests/test_{Path(source).stem}.py"
        found[name] = (f"`{name}`", "", f"[]({page}.md)", f"`{source}`", f"`{tests}`")
    found["draw"] = ("`functional.draw`", "", "[](functional.md)", "`dropoutlib/layer.py`",
                     "`tests/contract/test_functions.py`")
    found["NoisyLayer"] = ("`NoisyLayer`", "", "[](noise.md)", "`dropoutlib/layer.py`", "`tests/contract/test_law.py`")
    missing = {*dropoutlib.__all__, *functional.__all__} - {*found, "functional"}
    if missing:
        raise SystemExit(f"no row for {', '.join(sorted(missing))}")
    return [found[name] for name in sorted(found, key=str.lower)]


def page() -> str:
    """The page as Markdown."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def methods() -> str:
    """README's table: the layers of every method, and the classes of torch.nn in whose place they stand."""
    lines = ["| method | layers | in the place of `torch.nn`'s |", "|---|---|---|"]
    for method in dropoutlib.catalogue().values():
        replaced = dict.fromkeys(f"`{layer.replaces}`" for layer in method.facts if layer.replaces)
        layers = ", ".join(f"`{name}`" for name in method.layers)
        lines.append(f"| {method.title} | {layers} | {', '.join(replaced)} |")
    return "\n".join(lines) + "\n"


def with_methods(text: str) -> str:
    """README with its table."""
    before, marker, table = text.partition("<!-- methods -->\n")
    rest = table.partition("\n\n")[2]
    return f"{before}{marker}{methods()}\n{rest}"


if __name__ == "__main__":
    (ROOT / "book/reference/api/names.md").write_text(page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_methods(readme.read_text(encoding="utf-8")), encoding="utf-8")
