"""Settings of all tests; the chapters of the book are tests too (nbval)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

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


class Scheduler(LoadScopeScheduling):
    """Gives each process one test after another; the cells of a notebook, which share a kernel, stay in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(".ipynb") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)
