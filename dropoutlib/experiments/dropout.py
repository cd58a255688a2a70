"""Trains a LeNet-like network several times with one method, and says how accurate it becomes.

Each run has initial weights, batches and noise of its own; the data are the same for all. The last line has the mean
and the standard deviation of the runs. Runs that stand in the table are not done again, so that what was stopped goes
on where it was.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

import dropoutlib
from dropoutlib import plotting
from dropoutlib.methods import catalogue

from .data import Split, digits, mnist
from .networks import LENET, he_normal, lenet, place_of, put, rate_of
from .paired import attempts, count, file_in_folder, positive_number, probability, shortest, write_whole
from .training import fit

__all__ = ["METHODS", "Outcome", "Run", "Settings", "main", "network", "plot", "read_outcomes", "score"]

_BINS = 15  # of the calibration error
_PATIENCE = 10  # seconds until a scheduler has to answer
EXAMPLES = """examples:
  python -m dropoutlib.experiments dropout --dropout 0.4 --max-norm 25 --runs 10
  python -m dropoutlib.experiments dropout --method SpatialDropout2d --dropout 0.2 --jobs 2
  python -m dropoutlib.experiments dropout --data mnist --dropout 0.5 --device cuda
  python -m dropoutlib.experiments dropout --runs 100 --cluster tcp://scheduler:8786
  torchrun --nproc-per-node 2 -m dropoutlib.experiments dropout --data mnist --device cuda"""


class Settings(NamedTuple):
    """What is trained; a run is this and a seed. Several ``processes`` share each batch."""

    data: str = "digits"
    method: str = "Dropout"
    dropout: float = 0.0
    max_norm: float = math.inf
    epochs: int = 20
    learning_rate: float = 0.05
    batch_size: int = 64
    device: str = "cpu"
    processes: int = 1

    def __str__(self) -> str:
        usual = Settings()
        said = [f"{name.replace('_', ' ')} {shortest(value)}"
                for name, value in self._asdict().items() if value != getattr(usual, name) and name != "method"]
        return ", ".join([self.method if self.dropout or self.method != usual.method else "no dropout", *said])


class Outcome(NamedTuple):
    """What one run gave.

    ``accuracy``, ``loss`` (the mean cross-entropy) and ``calibration`` (the expected error, 15 bins) are those of the
    test data; ``dead`` is the part of all rectified units and maps that are zero for all of them.
    """

    accuracy: float
    loss: float
    calibration: float
    dead: float
    seconds: float


class Run(NamedTuple):
    """One training."""

    settings: Settings
    seed: int


METHODS = tuple(layer.name for method in catalogue().values() for layer in method.facts
                if place_of(layer, LENET) and layer.law != "place")


def network(settings: Settings, side: int) -> nn.Sequential:
    """The network with the layers of the method where they belong.

    Those that replace a linear layer, a convolution or a pool take the place of the hidden layer, of the second
    convolution, or of both pools; what drops maps is behind both pools, everything else behind the hidden layer.

    Args:
        settings: of which the method, its rate and the data count.
        side: of the images, in pixels.

    Returns:
        nn.Sequential: parts with names.
    """
    model, rate = he_normal(lenet(side)), rate_of(settings.method)   # before layers take the weights over
    if rate is None:
        return put(settings.method, model, LENET)
    return put(settings.method, model, LENET, **{rate: settings.dropout}) if settings.dropout else model


def _data(name: str) -> Split:
    return digits(1000) if name == "digits" else mnist()


def score(run: Run, build_network: Callable[[Settings, int], nn.Sequential] | None = None) -> Outcome:
    """Trains one network, on one thread, so that a number is the same on every number of cores.

    Args:
        run: settings and a seed.
        build_network: makes another network than :func:`network`.

    Returns:
        Outcome: on the test data.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    torch.set_num_threads(1)
    settings, (inputs, labels, test, truth) = run.settings, _data(run.settings.data)
    start, device = time.perf_counter(), _device(settings)
    side = math.isqrt(inputs.shape[1])
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append((build_network or network)(settings, side).to(device))
        if settings.max_norm < math.inf:
            dropoutlib.MaxNorm(made[0], settings.max_norm)
        if settings.processes == 1:
            return made[0]
        torch.manual_seed(run.seed * settings.processes + distributed.get_rank())  # batches and noise of its own
        return nn.parallel.DistributedDataParallel(made[0])

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(output, labels)
        return cross_entropy + dropoutlib.kl_divergence(made[0]) / len(inputs) if _has_kl(made[0]) else cross_entropy

    steps = settings.epochs * -(-len(inputs) // settings.batch_size)
    fit(build, inputs.to(device), labels.to(device), steps=steps, seed=run.seed, loss=loss,
        learning_rate=settings.learning_rate, batch_size=-(-settings.batch_size // settings.processes))
    seconds = time.perf_counter() - start
    alive: dict[str, Tensor] = {}
    for name, part in made[0].eval().named_children():
        if isinstance(part, nn.ReLU):
            part.register_forward_hook(partial(_note, alive, name))
    with torch.no_grad():
        output = torch.cat([made[0](part.to(device)) for part in test.split(1000)]).cpu()
    error = multiclass_calibration_error(output.softmax(-1), truth, num_classes=output.shape[1], n_bins=_BINS)
    return Outcome((output.argmax(-1) == truth).float().mean().item(), F.cross_entropy(output, truth).item(),
                   error.item(), 1 - torch.cat(list(alive.values())).float().mean().item(), seconds)


def _note(alive: dict[str, Tensor], name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
    """Which units or maps were above zero for an example, at a place of a map."""
    now = (output > 0).transpose(0, 1).flatten(1).any(1)
    alive[name] = alive[name] | now if name in alive else now


def _device(settings: Settings) -> torch.device:
    """One for each process that torchrun started."""
    is_alone = settings.processes == 1 or ":" in settings.device or settings.device == "cpu"
    return torch.device(settings.device if is_alone else f"{settings.device}:{os.environ['LOCAL_RANK']}")


def _has_kl(model: nn.Module) -> bool:
    return any(callable(getattr(part, "kl", None)) for part in model.modules())


# The table


_VERSIONS = {"torch": torch.__version__, "dropoutlib": dropoutlib.__version__}


def _row(run: Run, outcome: Outcome) -> dict[str, str]:
    settings = {name: shortest(value) for name, value in run.settings._asdict().items()}
    found = {name: f"{value:.6g}" for name, value in outcome._asdict().items()}
    return {**settings, "seed": str(run.seed), **_VERSIONS, **found}


def read_outcomes(file: Path) -> dict[Run, Outcome]:
    """The runs of a table that these versions of torch and of the library made.

    Args:
        file: a table; nothing has been done where there is none.

    Returns:
        dict: the outcome of every run.

    Raises:
        ValueError: if the file is something else.
    """
    found: dict[Run, Outcome] = {}
    if not file.exists() or not file.stat().st_size:
        return found
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != [*Settings._fields, "seed", *_VERSIONS, *Outcome._fields]:
            raise ValueError(f"{file} is no table of this program: its columns are {reader.fieldnames}")
        for row in reader:
            if all(row[name] == version for name, version in _VERSIONS.items()):
                try:
                    settings = Settings(*(type(usual)(row[name]) for name, usual in Settings()._asdict().items()))
                    found[Run(settings, int(row["seed"]))] = Outcome(*(float(row[name]) for name in Outcome._fields))
                except (TypeError, ValueError):     # a row that is not whole is done again
                    continue
    return found


def _add(file: Path, row: Mapping[str, str]) -> None:
    text = (file.read_text(encoding="utf-8") if file.exists() else "").rstrip("\n") or ",".join(row)
    write_whole(file, f"{text}\n{','.join(row.values())}\n")


def plot(outcomes: Mapping[Run, Outcome], file: Path) -> None:
    """Draws the accuracy of every run, a column for each setting.

    Args:
        outcomes: of all runs.
        file: of the picture.
    """
    from matplotlib.figure import Figure

    groups: dict[Settings, list[float]] = {}
    for run, outcome in outcomes.items():
        groups.setdefault(run.settings, []).append(100 * outcome.accuracy)
    figure = Figure(figsize=(3 + 0.9 * len(groups), 4.5), layout="constrained")
    axis = figure.subplots()
    for place, values in enumerate(groups.values()):
        spread = [0.25 * ((7 * k) % 11 / 10 - 0.5) for k in range(len(values))]
        axis.plot([place + shift for shift in spread], values, "o", color=plotting.BLUE, alpha=0.6)
        axis.plot([place - 0.3, place + 0.3], [statistics.fmean(values)] * 2, color=plotting.ORANGE)
    axis.set(ylabel="test accuracy, %, and mean", xlim=(-0.6, len(groups) - 0.4))
    names = [str(settings).replace(", ", ",\n") for settings in groups]
    axis.set_xticks(range(len(groups)), names, rotation=30, ha="right", fontsize=8)
    figure.savefig(file, dpi=150)


# The program


def _table(text: str) -> Path:
    if (file := file_in_folder(text)).suffix.lower() == ".png":
        raise argparse.ArgumentTypeError(f"has to be another file than the picture beside it, but got {text!r}")
    return file


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = argparse.ArgumentParser(prog="python -m dropoutlib.experiments dropout", description=__doc__,
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropout", type=probability, default=0.0, metavar="P",
                        help="probability of dropping, the largest one of StochasticRateDropout (0: nothing; methods "
                             "without a rate learn or draw their own)")
    parser.add_argument("--max-norm", "--max_norm", type=positive_number, default=math.inf, metavar="C",
                        help="largest norm of the weights into a unit (none)")
    parser.add_argument("--method", choices=METHODS, default=usual.method, metavar="LAYER",
                        help=f"what drops (Dropout), one of {', '.join(METHODS)}")
    parser.add_argument("--runs", type=count, default=10,
                        help="how many networks are trained, with the seeds 0, 1, ... (10)")
    parser.add_argument("--data", choices=("digits", "mnist"), default=usual.data,
                        help="digits of scikit-learn, 1000 to learn from (digits), or MNIST, fetched from OpenML once")
    parser.add_argument("--epochs", type=count, default=usual.epochs, help=f"passes over the data ({usual.epochs})")
    parser.add_argument("--learning-rate", type=positive_number, default=usual.learning_rate, metavar="RATE",
                        help=f"of gradient descent with momentum 0.9 ({usual.learning_rate})")
    parser.add_argument("--batch-size", type=count, default=usual.batch_size,
                        help=f"examples of a step, shared by several processes ({usual.batch_size})")
    parser.add_argument("--device", default=usual.device, help="cpu (default), cuda, ...")
    parser.add_argument("--jobs", type=count, default=1, help="processes side by side (1)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of the scheduler of a Dask cluster that trains instead")
    parser.add_argument("--output", type=_table, default=Path("dropout.csv"),
                        help="the table, a row for each run (dropout.csv); beside it a picture with the same name")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the runs that are not in the table yet.

    Args:
        arguments: those of the command line; by default the ones the program was started with.

    Returns:
        int: 0, or 1 if a run failed.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    options.processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = Settings(*(getattr(options, name) for name in Settings._fields))
    if settings.processes > 1 and (options.cluster is not None or options.jobs > 1):
        parser.error("torchrun's processes train every network together, without --jobs or --cluster")
    if settings.dropout and rate_of(settings.method) is None:
        parser.error(f"argument --dropout: {settings.method} has no rate to be set, it learns or draws its own")
    if not settings.dropout and settings.method != Settings().method and rate_of(settings.method) is not None:
        parser.error(f"argument --method: {settings.method} with --dropout 0 drops nothing; give a rate")
    try:
        torch.empty(0, device=settings.device)
    except Exception as error:  # torch has one of its own for each kind of device
        parser.error(f"argument --device: {settings.device!r} cannot be used: {str(error).splitlines()[0]}")
    try:
        network(settings, 8)
        found = read_outcomes(options.output)
        _data(settings.data)    # fetched once, before processes ask for it
    except Exception as error:  # the layers have one of their own for each way
        parser.error(str(error).splitlines()[0])
    runs = [Run(settings, seed) for seed in range(options.runs)]
    missing = [run for run in runs if run not in found]
    with _processes(settings), _workers(options.cluster, parser):
        is_first = settings.processes == 1 or distributed.get_rank() == 0
        if settings.processes > 1:  # one may have written before another has read
            distributed.broadcast_object_list(missing_of_first := [missing])
            missing = missing_of_first[0]
        if is_first:
            print(f"{options.output}: {len(missing)} of {len(runs)} runs are missing", file=sys.stderr)
        failed = len(missing)
        for run, values in attempts(missing, score, options.jobs):
            if is_first:
                _add(options.output, _row(run, Outcome(*values)))
            failed -= 1
    if not is_first:
        return int(failed > 0)
    found = read_outcomes(options.output)
    accuracies = [100 * found[run].accuracy for run in runs if run in found]
    if accuracies:
        spread = f" +/- {statistics.stdev(accuracies):.3g}" if len(accuracies) > 1 else ""
        print(f"mean accuracy ({len(accuracies)} runs): {statistics.fmean(accuracies):.3g}{spread}")
        plot(found, options.output.with_suffix(".png"))
    return int(failed > 0)


@contextmanager
def _processes(settings: Settings) -> Iterator[None]:
    """Those that torchrun started."""
    if settings.processes == 1:
        yield
        return
    distributed.init_process_group("nccl" if settings.device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _workers(address: str | None, parser: argparse.ArgumentParser) -> Iterator[None]:
    """Where joblib works: in processes, or on a Dask cluster."""
    if address is None:
        yield
        return
    from joblib import parallel_config

    try:
        client = importlib.import_module("distributed").Client(address, timeout=_PATIENCE)
    except (ImportError, OSError, ValueError) as error:
        parser.error(f"argument --cluster: no Dask cluster at {address!r}: {error}")
    with client, parallel_config(backend="dask"):
        yield


if __name__ == "__main__":
    sys.exit(main())
