"""Paired comparisons over seeds: tables that survive a failure, scores that can be read back, and differences."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dropoutlib.arguments import positive
from dropoutlib.noise import Bernoulli

__all__ = ["Key", "Plan", "Row", "Scores", "arguments_of", "attempts", "compare", "count", "file_in_folder", "fill",
           "positive_number", "probability", "read_scores", "shortest", "write_scores", "write_whole"]

Key: TypeAlias = tuple[str, str, float, str]
Scores: TypeAlias = Mapping[int, float]  # by seed


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


def shortest(value: object) -> str:
    """A value as it is read, a float with six digits or as many as tell which it is: a table is asked for it again."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def write_scores(scores: Mapping[Key, Scores]) -> str:
    """Writes scores as plain text, a line for each key and a column for each seed, with four decimals."""
    seeds = sorted(set().union(*scores.values()))
    lines = [("network", "noise", "p", "placement", *map(str, seeds))]
    for (network, noise, p, placement), values in scores.items():
        cells = (f"{values[seed]:.4f}" if seed in values else "-" for seed in seeds)
        lines.append((network, noise, shortest(p), placement, *cells))
    usual, columns = (26, 10, 6, 22, *[8 for _ in seeds]), zip(*lines, strict=True)
    widths = [max(width, *(len(cell) + 2 for cell in cells)) for width, cells in zip(usual, columns, strict=True)]
    return "\n".join("".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def read_scores(text: str) -> dict[Key, dict[int, float]]:
    """Reads scores that :func:`write_scores` wrote; lines that begin with ``#`` are left out.

    Raises:
        ValueError: if a line is no row of such a table.
    """
    written = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if not line.startswith("#")]
    if not written:
        raise ValueError("it has no rows")
    header, *lines = written
    scores = {}
    for line in lines:
        try:
            network, noise, p, placement, *cells = line
            scores[network, noise, float(p), placement] = {
                int(seed): float(cell) for seed, cell in zip(header[4:], cells, strict=True) if cell != "-"}
        except ValueError:
            raise ValueError(f"a row of {len(header)} cells was expected, but got {'  '.join(line)!r}") from None
    return scores


class Plan(NamedTuple):
    """What a program runs, and what its table says about it.

    ``name`` is that of the table, ``about`` its two lines of comment: the settings, and what its columns are. Each of
    ``runs`` has a ``seed``; ``keys`` says to which rows its scores belong.
    """

    name: str
    about: tuple[str, str]
    runs: Sequence[Any]
    keys: Callable[[Any], Sequence[Key]]
    score: Callable[[Any], Sequence[float]]
    machine: str = "cpu"

    def header(self) -> list[str]:
        """The lines of comment behind the first, which is the command."""
        settings, columns = self.about
        return [f"# torch {torch.__version__}, {self.machine}, 1 thread a run; {settings}", f"# {columns}"]


def count(text: str) -> int:
    """A number of the command line that counts something.

    Args:
        text: as it was given.

    Returns:
        int: at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is anything else, which the program then says with the argument's name.
    """
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"has to be a whole number of at least 1, but got {text!r}")
    return int(text)


def probability(text: str) -> float:
    """A number of a command line, between 0 and 1.

    Args:
        text: as it was given.

    Returns:
        float: the number.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    return _number(text, lambda number: Bernoulli(number).p, "a number between 0 and 1")


def positive_number(text: str) -> float:
    """A number of a command line, above 0 and finite.

    Args:
        text: as it was given.

    Returns:
        float: the number.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    return _number(text, lambda number: positive("number", number), "a positive number")


def _number(text: str, checked: Callable[[float], float], what: str) -> float:
    try:
        return checked(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"has to be {what}, but got {text!r}") from None


def file_in_folder(text: str) -> Path:
    """A file of a command line that can be written when the work is done.

    Args:
        text: as it was given.

    Returns:
        Path: of the file, which need not be there yet.

    Raises:
        argparse.ArgumentTypeError: if its folder is not there.
    """
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def arguments_of(name: str, description: str | None, seeds: int) -> argparse.ArgumentParser:
    """The arguments that the program of every experiment has.

    Args:
        name: of the module.
        description: its docstring.
        seeds: how many, if nothing is said.

    Returns:
        argparse.ArgumentParser: an experiment may add others.
    """
    parser = argparse.ArgumentParser(prog=f"python -m dropoutlib.experiments.{name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=seeds,
                        help=f"number of splits, initial weights and noises ({seeds})")
    parser.add_argument("--jobs", type=count, default=1, help="processes (1)")
    parser.add_argument("--output", type=file_in_folder,
                        help="the table; runs that stand there already are not done again (in this folder, under the "
                             "name of the one that the book reads)")
    return parser


def fill(parser: argparse.ArgumentParser, arguments: Sequence[str] | None,
         plan: Callable[[argparse.Namespace], Plan]) -> int:
    """Does the runs that are not in the table yet, and writes the scores of each to it at once.

    Args:
        parser: of the program's arguments.
        arguments: command line; that of the program if None.
        plan: what to do, by the options.

    Returns:
        int: 0, or 1 if a run failed; what failed is reported on stderr, and the others are done.

    Raises:
        SystemExit: if the file is a table of other settings, or of another version of torch, or is not whole.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    name, _, runs, keys, score, _ = asked = plan(options)
    output = options.output or Path(f"{name}.txt")
    header, found = asked.header(), {}
    if output.exists():
        text = output.read_text(encoding="utf-8")
        if (other := text.splitlines()[1:len(header) + 1]) != header:
            parser.error(f"{output} is a table of something else, so that nothing can be added to it: it has\n"
                         + "\n".join(other) + "\nand not\n" + "\n".join(header))
        try:
            found = read_scores(text)
        except ValueError as error:
            parser.error(f"{output} is no table of scores, or is not whole: {error}")
    scores: dict[Key, dict[int, float]] = {key: {} for run in runs for key in keys(run)} | found
    missing = [run for run in runs if not all(run.seed in scores[key] for key in keys(run))]
    print(f"{output}: {len(missing)} of {len(runs)} runs are missing", file=sys.stderr)
    finished = 0
    for run, values in attempts(missing, score, options.jobs):
        for key, value in zip(keys(run), values, strict=True):
            scores[key][run.seed] = value
        finished += 1
        rows = write_scores({key: by_seed for key, by_seed in scores.items() if by_seed})
        write_whole(output, "\n".join([f"# {parser.prog} {shlex.join(given)}".rstrip(), *header, rows, ""]))
    return int(finished < len(missing))


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is whole at any time, also if the program is killed."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def attempts(runs: Sequence[Any], score: Callable[[Any], Sequence[float]], jobs: int
             ) -> Iterator[tuple[Any, Sequence[float]]]:
    """Runs and their scores as they come, without those that failed: they are reported on stderr."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_attempt)(score, run) for run in runs)
    for run, values in tqdm(work, total=len(runs), file=sys.stderr):
        if isinstance(values, str):
            print(f"{run}: {values}", file=sys.stderr)
        else:
            yield run, values


def _attempt(score: Callable[[Any], Sequence[float]], run: Any) -> tuple[Any, Sequence[float] | str]:
    try:
        return run, score(run)
    except Exception as error:  # one run that fails must not stop the others
        return run, f"{type(error).__name__}: {error}"
