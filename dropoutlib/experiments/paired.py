"""Paired comparisons over seeds: runs that survive a failure, and a table that can be read back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["Key", "Row", "compare", "finish", "read_table", "write_table"]

Key: TypeAlias = tuple[str, str, float, str]
_Run = TypeVar("_Run", bound=tuple[Any, ...])
_NUMBERS = ("score", "gain", "low", "high", "all low", "all high")
_HEADER = f"{'network':36}{'noise':10}{'p':6}{'placement':22}" + "  ".join(f"{name:8}" for name in _NUMBERS)


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


def compare(scores: Mapping[Key, Mapping[int, float]], partner: Callable[[Key], Key]) -> list[Row]:
    """Compares scores with those of a partner, seed by seed, by t intervals.

    Args:
        scores: for each key the score of every seed; a comparison uses the seeds that both sides have, at least two.
        partner: for each key the key to compare with.

    Returns:
        list[Row]: in the order of ``scores``; for intervals that hold at once 5 % is divided by the number of
        comparisons (Bonferroni), not counting those of a key with itself.
    """
    pairs = {}
    for key, values in scores.items():
        other = scores.get(partner(key), {})
        common = sorted(values.keys() & other.keys())
        if len(common) > 1:
            pairs[key] = torch.tensor([[values[seed], values[seed] - other[seed]] for seed in common])
    comparisons = sum(partner(key) != key for key in pairs)
    return [_row(key, values.double(), max(1, comparisons)) for key, values in pairs.items()]


def _row(key: Key, values: Tensor, comparisons: int) -> Row:
    from scipy.special import stdtrit  # quantiles of Student's t

    (score, gain), error = values.mean(0).tolist(), (values[:, 1].std() / len(values) ** 0.5).item()
    one, every = (float(stdtrit(len(values) - 1, 1 - 0.025 / count)) * error for count in (1, comparisons))
    return Row(*key, score, gain, gain - one, gain + one, gain - every, gain + every)


def write_table(rows: Sequence[Row]) -> str:
    """Writes a table as plain text, with numbers of four decimals."""
    lines = [f"{row.network:36}{row.noise:10}{row.p:<6g}{row.placement:22}"
             + "  ".join(f"{value:<8.4f}" for value in row[4:]) for row in rows]
    return "\n".join(line.rstrip() for line in [_HEADER, *lines])


def read_table(text: str) -> list[Row]:
    """Reads a table that :func:`write_table` wrote; lines that begin with ``#`` are left out."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line and not line.startswith("#")]
    return [Row(line[0], line[1], float(line[2]), line[3], *map(float, line[4:])) for line in lines[1:]]


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
    from joblib import Parallel, delayed
    from tqdm import tqdm

    done = _read_records(records)
    missing = [run for run in runs if tuple(run) not in done]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_attempt)(score, run) for run in missing)
    with records.open("a") as file:
        for result in tqdm(work, total=len(missing), file=sys.stderr):
            if "error" in result:
                print(f"{result['run']}: {result['error']}", file=sys.stderr)
            else:
                file.write(json.dumps(result) + "\n")
                file.flush()
                done[tuple(result["run"])] = result
    return [done[tuple(run)] for run in runs if tuple(run) in done]


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
