"""Paired comparisons over seeds: runs that survive a failure, scores that can be read back, and their differences."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["Key", "Row", "Scores", "attempts", "compare", "finish", "read_scores", "write_scores"]

Key: TypeAlias = tuple[str, str, float, str]
Scores: TypeAlias = Mapping[int, float]  # by seed
_Run = TypeVar("_Run", bound=tuple[Any, ...])


class Row(NamedTuple):
    """One line of a table: what was trained, its mean score, its mean gain over its partner, and two intervals.

    ``low`` to ``high`` is a 95 % interval of the gain; ``all_low`` to ``all_high`` is wider, so that with a
    probability of 95 % all intervals of the table hold at once.
    """

    network: str
    noise: str
    p: float
    placement: str
    score: float
    gain: float
    low: float
    high: float
    all_low: float
    all_high: float


def compare(pairs: Mapping[Key, tuple[Scores, Scores]]) -> list[Row]:
    """Compares scores with those of a partner, seed by seed, by t intervals.

    Args:
        pairs: for each key its scores and those of its partner; a comparison uses the seeds that both have, at least
            two.

    Returns:
        list[Row]: in the order of ``pairs``; for intervals that hold at once 5 % is divided by the number of
        comparisons (Bonferroni).
    """
    columns = {}
    for key, (values, other) in pairs.items():
        common = sorted(values.keys() & other.keys())
        if len(common) > 1:
            columns[key] = torch.tensor([[values[seed], values[seed] - other[seed]] for seed in common]).double()
    return [_row(key, values, len(columns)) for key, values in columns.items()]


def _row(key: Key, values: Tensor, comparisons: int) -> Row:
    from scipy.special import stdtrit  # quantiles of Student's t

    (score, gain), error = values.mean(0).tolist(), (values[:, 1].std() / len(values) ** 0.5).item()
    one, every = (float(stdtrit(len(values) - 1, 1 - 0.025 / count)) * error for count in (1, comparisons))
    return Row(*key, score, gain, gain - one, gain + one, gain - every, gain + every)


def write_scores(scores: Mapping[Key, Scores]) -> str:
    """Writes scores as plain text, a line for each key and a column for each seed, with four decimals."""
    seeds = sorted(set().union(*scores.values()))
    lines = [("network", "noise", "p", "placement", *map(str, seeds))]
    for (network, noise, p, placement), values in scores.items():
        cells = (f"{values[seed]:.4f}" if seed in values else "-" for seed in seeds)
        lines.append((network, noise, f"{p:g}", placement, *cells))
    usual, columns = (26, 10, 6, 22, *[8 for _ in seeds]), zip(*lines, strict=True)
    widths = [max(width, *(len(cell) + 2 for cell in cells)) for width, cells in zip(usual, columns, strict=True)]
    return "\n".join("".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def read_scores(text: str) -> dict[Key, dict[int, float]]:
    """Reads scores that :func:`write_scores` wrote; lines that begin with ``#`` are left out."""
    header, *lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if not line.startswith("#")]
    return {(network, noise, float(p), placement):
            {int(seed): float(cell) for seed, cell in zip(header[4:], cells, strict=True) if cell != "-"}
            for network, noise, p, placement, *cells in lines}


def finish(runs: Sequence[_Run], score: Callable[[_Run], dict[str, Any]], records: Path, jobs: int = 1
           ) -> list[dict[str, Any]]:
    """Does the runs that are not in the records yet, and appends each result to them at once.

    Args:
        runs: what to do; tuples of texts and numbers.
        score: does a run; the result has the run under the key ``"run"``.
        records: file with one line of JSON for each finished run.
        jobs: number of processes.

    Returns:
        list[dict[str, Any]]: results in the order of ``runs``, without those that failed: they are reported on stderr.
    """
    done = _read_records(records)
    missing = [run for run in runs if tuple(run) not in done]
    with records.open("a") as file:
        for result in attempts(missing, score, jobs):
            file.write(json.dumps(result) + "\n")
            file.flush()
            done[tuple(result["run"])] = result
    return [done[tuple(run)] for run in runs if tuple(run) in done]


def attempts(runs: Sequence[_Run], score: Callable[[_Run], dict[str, Any]], jobs: int = 1) -> Iterator[dict[str, Any]]:
    """Does runs in processes.

    Args:
        runs: what to do.
        score: does a run.
        jobs: number of processes.

    Yields:
        Results as they come, without those of runs that failed: they are reported on stderr.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_attempt)(score, run) for run in runs)
    for result in tqdm(work, total=len(runs), file=sys.stderr):
        if "error" in result:
            print(f"{result['run']}: {result['error']}", file=sys.stderr)
        else:
            yield result


def _attempt(score: Callable[[_Run], dict[str, Any]], run: _Run) -> dict[str, Any]:
    try:
        return score(run)
    except Exception as error:  # one run that fails must not stop the others
        return {"run": run, "error": f"{type(error).__name__}: {error}"}


def _read_records(records: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Results by run; a last line that broke off is cut, so that its run is done again."""
    text = records.read_text() if records.exists() else ""
    whole = text[:text.rfind("\n") + 1]
    if whole != text:
        records.write_text(whole)
    found = [json.loads(line) for line in whole.splitlines()]
    return {tuple(result["run"]): result for result in found}
