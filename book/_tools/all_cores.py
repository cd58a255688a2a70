"""Sphinx extension: every build executes every chapter, on all cores, while Sphinx reads the pages one after another.

The kernels start before the first page is read; where myst-nb executes a notebook, it waits for that one. When they are
done, the pages are written on all cores, too.
"""

from __future__ import annotations

import gc
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import nbformat
from jupyter_cache.executors.utils import ExecutionResult
from myst_nb.core.execute import direct
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

execute = direct.single_nb_execution  # in place, in the kernel of this environment


class Kernels:
    """The chapters of one build, executed or under way."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(joblib.cpu_count())
        self.results: dict[str, Future[ExecutionResult]] = {}

    def start(self, app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
        executes = app.config.nb_execution_mode != "off"
        for path in map(Path, map(env.doc2path, pages if executes else [])):
            if path.suffix == ".ipynb":
                notebook = nbformat.read(path, as_version=4)
                self.results[_key(notebook, str(path.parent))] = self.threads.submit(
                    execute, notebook, str(path.parent), app.config.nb_execution_timeout,
                    app.config.nb_execution_allow_errors)

    def result(self, notebook: NotebookNode, cwd: str, **options: Any) -> ExecutionResult:
        """What ``execute`` would give for a notebook, which is executed now if it has not been."""
        started = self.results.pop(_key(notebook, cwd), None)
        if started is None:
            return execute(notebook, cwd=cwd, **options)
        result = started.result()
        notebook.metadata.update(result.nb.metadata)
        for cell, executed in zip(notebook.cells, result.nb.cells, strict=True):
            cell.update(executed)
            if "outputs" in cell:
                cell.outputs = in_one_piece(cell.outputs)
        return result

    def stop(self, app: Sphinx, exception: Exception | None) -> None:
        self.threads.shutdown(cancel_futures=True)


def in_one_piece(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What a cell prints, in one output: a kernel sends it in pieces, wherever it was when it sent one."""
    whole: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and whole and whole[-1].get("name") == output.name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def _key(notebook: NotebookNode, cwd: str) -> str:
    return "\n".join([cwd, *(cell.source for cell in notebook.cells)])


def every_chapter(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """A chapter that has not changed may show something else: the library may have changed."""
    return [page for page in env.found_docs if env.doc2path(page).endswith(".ipynb")]


def write_on_all_cores(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Not before all is read: the processes that would read have no part in the kernels."""
    app.parallel = joblib.cpu_count()
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    gc.set_threshold(100_000, 50, 100)  # trees of a million nodes live to the end; to look for garbage in them took a
    kernels = Kernels()                 # third of the time of a build
    direct.single_nb_execution = kernels.result
    app.connect("env-get-outdated", every_chapter)
    app.connect("env-before-read-docs", kernels.start)
    app.connect("env-updated", write_on_all_cores)
    app.connect("build-finished", kernels.stop)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
