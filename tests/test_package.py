"""The package as a whole: what it imports, what it exports, and what its docstrings say."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dropoutlib
from dropoutlib import functional

ROOT = Path(dropoutlib.__file__).parent

PARTS = {row.part for row in dropoutlib.catalogue().values()}

# Modules that need an extra of the package; a test that runs without that extra leaves them out.
EXTRAS = {"symbolic": "sympy", "interactive": "sympy", "plotting": "matplotlib", "experiments": "sklearn"}


def available(module: str) -> bool:
    needs = EXTRAS.get(module.split(".")[1] if "." in module else "")
    return needs is None or importlib.util.find_spec(needs) is not None


MODULES = sorted(name for name in ["dropoutlib", *(module.name for module in pkgutil.walk_packages(
    dropoutlib.__path__, "dropoutlib."))] if available(name) and not name.endswith("__main__"))


def public() -> dict[str, object]:
    """Everything that a user imports: the flat names, the functions, and what the modules say is theirs."""
    found: dict[str, object] = {}
    for name in MODULES:
        if name == "dropoutlib" or name.split(".")[1] in {"functional", "arguments", *PARTS}:
            module = importlib.import_module(name)
            for exported in getattr(module, "__all__", []):
                value = getattr(module, exported)
                if not isinstance(value, types.ModuleType):
                    found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


@pytest.mark.parametrize("module", ["training", "enumeration", "functional", "symbolic"])
def test_a_module_is_there_when_it_is_asked_for(module: str) -> None:
    assert run(f"import dropoutlib; print(dropoutlib.{module}.__name__)") == f"dropoutlib.{module}\n"


def missing_words(text: str) -> list[str]:
    """The ``{word}`` that nothing was filled in for; formulas have braces of their own."""
    return re.findall(r"\{\w+\}|\{>>>\}", re.sub(":math:`[^`]*`", "", text))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
                          ).stdout


def test_import_loads_torch_and_nothing_else() -> None:
    """No module that ``import torch`` does not load already, and little time of its own."""
    loaded = run(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import dropoutlib\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n")
    others = set(ast.literal_eval(loaded)) - {"dropoutlib"} - set(sys.stdlib_module_names)
    assert not {name for name in others if not name.startswith("__editable__")}


def test_every_module_can_be_the_first_that_is_imported() -> None:
    run("import importlib, sys\n"
        f"for name in {MODULES}:\n"
        "    for loaded in [other for other in sys.modules if other.split('.')[0] == 'dropoutlib']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n")


def test_kernels_and_laws_do_not_know_the_methods() -> None:
    """Arrows point down only."""
    for file in [ROOT / "moments.py", *(ROOT / "noise").glob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        imported = re.findall(r"^\s*(?:from|import)\s+(\S+)", file.read_text(), flags=re.MULTILINE)
        assert not any(re.search("|".join(["functional", "methods", "sympy", *PARTS]), name) for name in imported), file
    for file in (ROOT / "symbolic").glob("*.py"):
        assert not re.search(r"^\s*(from|import)\s+torch", file.read_text(), flags=re.MULTILINE), file


def test_flat_names() -> None:
    names = {layer for row in dropoutlib.catalogue().values() for layer in row.layers} | {"catalogue", "functional"}
    assert names <= set(dropoutlib.__all__)
    assert set(dropoutlib.__all__) <= set(vars(dropoutlib))
    assert list(dropoutlib.__all__) == sorted(dropoutlib.__all__)
    functions = {name for name, value in public().items()
                 if inspect.isfunction(value) and name.split(".")[1] in PARTS and ".learned_noise." not in name}
    of_methods = {name.rpartition(".")[2] for name in functions} | {"draw"}
    assert set(functional.__all__) <= of_methods    # functions of tensors; those of models are flat
    helpers = set(dropoutlib.training.__all__)      # what a loop of training calls
    assert of_methods - set(functional.__all__) - helpers <= set(dropoutlib.__all__)


def test_no_name_hides_a_module() -> None:
    """``dropoutlib.dense.gaussian_dropout`` is the module, whatever else its package exports."""
    for name in MODULES:
        module = importlib.import_module(name)
        parent, _, last = name.rpartition(".")
        if parent:
            assert getattr(importlib.import_module(parent), last) is module, name


def test_version_is_that_of_the_project() -> None:
    assert dropoutlib.__version__ == importlib.metadata.version("dropoutlib")


def test_is_marked_as_typed() -> None:
    assert (ROOT / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(public()))
def test_docstrings_say_what_a_user_needs(name: str) -> None:
    value = public()[name]
    text = inspect.getdoc(value) or ""
    parameters = [p for p in inspect.signature(value).parameters if p not in ("self", "args", "kwargs")]
    assert not missing_words(text)
    # what a layer draws, and what a function returns
    if inspect.isclass(value) and (issubclass(value, tuple) or dataclasses.is_dataclass(value)):
        assert "Attributes:" in text
        return
    if parameters:
        assert "Args:" in text
        arguments = text.split("Args:")[1]
        assert all(re.search(rf"^\s+\**{parameter}: ", arguments, flags=re.MULTILINE) for parameter in parameters)
    if not name.startswith("dropoutlib.arguments"):
        assert "Example:" in text and ">>>" in text
    if name.split(".")[1] in PARTS:
        assert "Raises:" in text
    if inspect.isclass(value) and any(value.__name__ in row.layers for row in dropoutlib.catalogue().values()):
        for words in ("Source:", "Chapter: ", "* Site: ", "* Law: ", "* Sharing: ", "* Test rule: "):
            assert words in text, words
        own = {key for kind in value.__mro__ if kind.__module__.startswith("dropoutlib.") for key in vars(kind)}
        methods = {key: getattr(value, key) for key in own if inspect.isfunction(getattr(value, key)) and key[0] != "_"}
        for key, method in methods.items():
            assert method.__doc__, key
            assert not missing_words(method.__doc__), key
            assert all(re.search(rf"^\s+\**{parameter}: ", method.__doc__, flags=re.MULTILINE)
                       for parameter in inspect.signature(method).parameters if parameter != "self"), key
