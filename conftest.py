"""Settings of all tests; the chapters of the book are tests too (nbval)."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same digits, whatever the number of cores; the kernels inherit it

collect_ignore_glob = ["book/_tools/*"]


def pytest_collectstart(collector: Any) -> None:
    """Every build draws these anew; nbval itself leaves out only PNG and JPEG."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("text/html", "image/svg+xml", "application/javascript")


def pytest_itemcollected(item: pytest.Item) -> None:
    """An example of the provers runs when it is pasted alone: not even the names of its module are there."""
    if isinstance(item, pytest.DoctestItem) and item.path.parent.name == "symbolic" and item.dtest is not None:
        item.dtest.globs.clear()
