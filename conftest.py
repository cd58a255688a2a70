"""Settings of all tests; the chapters of the book are tests too (nbval)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels run on the CPU then
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same digits, whatever the number of cores; the kernels inherit it

collect_ignore_glob = ["book/_tools/*"]
if importlib.util.find_spec("triton") is None:  # it is for Linux
    collect_ignore_glob.append("dropoutlib/kernels/triton_kernels.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--built", type=Path, metavar="FOLDER",
                     help="compare the chapters that a build of the book executed, instead of executing them again")


class Built:
    """The kernel of a chapter that a build of the book executed: to each cell it says again what it said there."""

    def __init__(self, path: Path) -> None:
        import nbformat

        cells = nbformat.read(path, as_version=4).cells
        self.cells = [cell for cell in cells if cell.cell_type == "code"]
        self.messages: list[dict[str, Any]] = []

    def execute_cell_input(self, source: str, allow_stdin: bool | None = None) -> str:
        cell = self.cells.pop(0)
        if cell.source != source or cell.execution_count is None:
            raise ValueError(f"the build executed another cell: {cell.source[:80]!r}")
        said = [(output.output_type, output) for output in cell.outputs]
        self.messages = [{"msg_type": kind, "content": content, "parent_header": {"msg_id": "built"}}
                         for kind, content in [*said, ("status", {"execution_state": "idle"})]]
        return "built"

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        return self.messages.pop(0)

    def is_alive(self) -> bool:
        return True

    def await_reply(self, message: str, timeout: float | None = None) -> None:
        pass

    def await_idle(self, message: str, timeout: float | None = None) -> None:
        pass

    def stop(self) -> None:
        pass


def pytest_collectstart(collector: Any) -> None:
    """Every build draws these anew; nbval itself leaves out only PNG and JPEG."""
    if getattr(collector, "skip_compare", None) is None:
        return
    collector.skip_compare += ("text/html", "image/svg+xml", "application/javascript",
                               "application/vnd.vegalite.v5+json")  # whose formulas stand in the text, too
    if (built := collector.config.getoption("built")) is not None:
        def setup() -> None:
            collector.kernel = Built(built / collector.path.relative_to(collector.config.rootpath))
            collector.setup_sanitize_files()

        collector.setup = setup


def pytest_itemcollected(item: pytest.Item) -> None:
    """An example runs when it is pasted alone: not even the names of its module are there."""
    if isinstance(item, pytest.DoctestItem) and item.dtest is not None:
        item.dtest.globs.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process one test after another; the cells of a notebook, which share a kernel, stay in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(".ipynb") else nodeid

    return Scheduler(config, log)
