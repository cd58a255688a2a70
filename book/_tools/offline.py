"""Sphinx extension: the built site asks no other host for anything, and knows its own address where it is published.

MathJax is served from the site itself, the scripts that the book does not use are left out, and a build fails when a
page or a style sheet would fetch something from outside.  What a script fetches while it runs cannot be read off the
files: ``check_pages.py`` watches that in a browser.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

MATHJAX = "mathjax/tex-chtml.js"
# Of the 24 MB of MathJax, what the pages can load: the bundle, its fonts, TeX's packages, and the screen-reader parts.
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "a11y", "sre/mathmaps/en.json",
                 "sre/mathmaps/base.json")
# A link of one of these kinds is followed by the reader or read by a robot; a browser does not fetch it.
HARMLESS_LINKS = {"alternate", "author", "canonical", "help", "index", "license", "next", "prev", "search"}
SOURCES = {"audio": ["src"], "embed": ["src"], "iframe": ["src"], "image": ["href", "xlink:href"],
           "img": ["src", "srcset"], "input": ["src"], "link": ["href", "imagesrcset"], "object": ["data"],
           "script": ["src"], "source": ["src", "srcset"], "track": ["src"], "use": ["href", "xlink:href"],
           "video": ["src", "poster"]}
# The theme loads its icons as fonts and, once more, as a script of 1.5 MB; two of the fonts before a page needs them.
ICONS = re.compile(r'\s*<script[^>]*/fontawesome/[^>]*></script>'
                   r'|\s*<link[^>]*/fontawesome/[^>]*(?:\.js|fa-brands-400\.woff2|fa-regular-400\.woff2)[^>]*>')
REMOTE = re.compile(r"(?:^|[\s,])((?:https?:)?//[^\s,]+)", re.IGNORECASE)
REMOTE_IN_CSS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class _Fetches(HTMLParser):
    """Collects what a browser would fetch from another host to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        if not (tag == "link" and set(values.get("rel", "").lower().split()) <= HARMLESS_LINKS):
            for name in SOURCES.get(tag, []):
                self.found += [f"<{tag} {name}> {address}" for address in REMOTE.findall(values.get(name, ""))]
        self.found += [f"<{tag} style> {address}" for address in REMOTE_IN_CSS.findall(values.get("style", ""))]

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += [f"<style> {address}" for address in REMOTE_IN_CSS.findall(data)]


def remote_fetches(path: Path) -> list[str]:
    """What an HTML page or a style sheet would fetch from another host.

    Args:
        path: the ``.html`` or ``.css`` file.

    Returns:
        list[str]: one entry a fetch, empty if there is none.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        return [f"css {address}" for address in REMOTE_IN_CSS.findall(text)]
    parser = _Fetches()
    parser.feed(text)
    return parser.found


def _repository_of_this_build(app: Sphinx, config: Any) -> None:
    """Pages built on GitHub point at their own repository; a placeholder shows no button that leads nowhere."""
    options = config.html_theme_options
    if "GITHUB_REPOSITORY" in os.environ:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        options["repository_url"] = f"{server}/{os.environ['GITHUB_REPOSITORY']}"
        owner, _, name = os.environ["GITHUB_REPOSITORY"].partition("/")
        config.html_baseurl = config.ogp_site_url = f"https://{owner.lower()}.github.io/{name}/"
        config.sitemap_url_scheme = "{link}"
    if "/OWNER/" in options.get("repository_url", ""):
        options.update(repository_url="", use_repository_button=False, use_issues_button=False)


def _kernel_of_this_environment(app: Sphinx, config: Any) -> None:
    """The chapters must run against the library of the environment that builds the book."""
    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if Path(command).name.rstrip("0123456789.") == "python" and not Path(command).is_absolute():
        return  # jupyter_client replaces a bare "python" by the interpreter that runs it
    if Path(command).absolute() != Path(sys.executable).absolute():
        raise ExtensionError(f"the kernel 'python3' is {command}, not {sys.executable}: a kernel specification outside "
                             "this environment hides its own; set JUPYTER_PREFER_ENV_PATH=1")


def _leave_out_thebe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """sphinx-thebe adds its scripts to every page, one of them twice, which is an error in the browser."""
    def uses_thebe(script: Any) -> bool:
        attributes = getattr(script, "attributes", {})
        return "thebe" in f"{getattr(script, 'filename', script)} {attributes.get('body', '')}".lower()

    context["script_files"] = [script for script in context.get("script_files", []) if not uses_thebe(script)]


def _copy_mathjax(app: Sphinx) -> None:
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        raise ExtensionError("the package sphinx-mathjax-offline, which holds MathJax, is not installed")
    source = Path(found.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    _copy_mathjax(app)
    site = Path(app.outdir)
    (site / "llms-full.txt").unlink(missing_ok=True)  # written although it is switched off: notebooks as JSON
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (lighter := ICONS.sub("", page)) != page:
            path.write_text(lighter, encoding="utf-8")
    pages = sorted([*site.rglob("*.html"), *site.rglob("*.css")])
    found = [f"{path.relative_to(site)}: {fetch}" for path in pages for fetch in remote_fetches(path)]
    if found:
        raise ExtensionError("the site would ask another host for:\n  " + "\n  ".join(found))


def setup(app: Sphinx) -> dict[str, Any]:
    if "GITHUB_REPOSITORY" in os.environ:  # a map of the site needs its address
        app.setup_extension("sphinx_sitemap")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same digits, whatever the number of cores
    app.config.mathjax_path = MATHJAX
    app.connect("config-inited", _repository_of_this_build, priority=900)
    app.connect("config-inited", _kernel_of_this_environment)
    app.connect("html-page-context", _leave_out_thebe, priority=900)
    app.connect("build-finished", _finish, priority=900)     # when the others have written
    return {"parallel_read_safe": True, "parallel_write_safe": True}
