"""Sphinx extension: ``{claims} DOCUMENT`` lists what ``book/claims.yml`` knows of a document: claims and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from checks import page_prose, pages
from docutils import nodes
from docutils.statemachine import StringList
from mdit_py_plugins.anchors.index import slugify
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FILE = "book/claims.yml"
VERDICTS = ("proved", "corrected", "confirmed", "refuted", "undecided", "opinion", "unknown")   # the page says of each
WITHOUT_PLACE = ("opinion", "unknown")


class Claim(NamedTuple):
    """A sentence that can be true or false, in the words of a document or, without quotes, in ours."""

    source: str
    says: str
    verdict: str
    because: str
    where: str


def read(root: Path) -> list[Claim]:
    """The ledger, in the order of the file."""
    documents = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    return [Claim(document["source"], *(str(claim.get(field, "")) for field in Claim._fields[1:]))
            for document in documents for claim in document["claims"]]


def problems(root: Path) -> Iterator[str]:
    """Claims without a verdict, without a reason, or whose place is none."""
    known = set(pages(root))
    for claim in read(root):
        if claim.verdict not in VERDICTS:
            yield f"{claim.says}: the verdict {claim.verdict!r} is none of {', '.join(VERDICTS)}"
        if not claim.because:
            yield f"{claim.says}: no reason"
        if claim.where or claim.verdict not in WITHOUT_PLACE:
            page, _, place = claim.where.partition("#")
            if (file := root / page.lstrip("/")) not in known:
                yield f"{claim.says}: {claim.where!r} is no page"
            elif place not in headings(file):
                yield f"{claim.says}: {page} has no section {place!r}"


@cache  # many claims have a section of one page
def headings(page: Path) -> set[str]:
    """The addresses of the sections of a page."""
    found = (line for line in page_prose(page).splitlines() if line.startswith("#"))
    return {slugify(line.lstrip("# ").replace("`", "").replace("$", "")) for line in found}


def counts(claims: list[Claim]) -> Iterator[str]:
    """A table of verdicts by document, as Markdown."""
    number = Counter((claim.source, claim.verdict) for claim in claims)
    yield from ("| document | " + " | ".join(VERDICTS) + " |", "| --- |" + " ---: |" * len(VERDICTS))
    for source in dict.fromkeys(claim.source for claim in claims):
        cells = (str(number[source, verdict] or "") for verdict in VERDICTS)
        yield f"| {{cite:t}}`{source}` | " + " | ".join(cells) + " |"


def listed(claims: list[Claim]) -> Iterator[str]:
    """Every claim with its verdict, the reason, and a link to what decides it, as Markdown."""
    for claim in claims:
        link = f" ([where]({claim.where}))" if claim.where else ""
        yield f"- *{claim.verdict.capitalize()}.* {claim.says.rstrip('.')}. {claim.because}{link}"


class Claims(SphinxDirective):
    """The directive; without a document, the table of verdicts."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The claims of a document, or how many there are of each verdict."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / FILE))
        ledger = read(root)
        found = [claim for claim in ledger if [claim.source] == self.arguments]
        if self.arguments and not found:
            raise self.error(f"no claims of {self.arguments[0]}")
        node = nodes.container()
        text = listed(found) if self.arguments else counts(ledger)
        self.state.nested_parse(StringList(list(text), self.env.docname), self.content_offset, node)
        return node.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
