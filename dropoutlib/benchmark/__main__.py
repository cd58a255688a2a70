"""``python -m dropoutlib.benchmark``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

import torch

from dropoutlib.benchmark import (
    cost_table,
    dropconnect_table,
    kernels_table,
    maps_table,
    methods_table,
    prediction_table,
    recurrent_table,
    sizes_table,
)
from dropoutlib.experiments.paired import count, file_in_folder

__all__ = ["main"]

_TABLES: dict[str, tuple[Callable[[str], str], str]] = {
    "sizes": (lambda device: sizes_table(device=device), "elementwise noise on tensors of 2^8 to 2^20 elements"),
    "cost": (cost_table, "an element's cost on 1 to 10^8 elements, and the limits of the machine"),
    "dropconnect": (dropconnect_table, "DropConnect"),
    "maps": (maps_table, "layers on feature maps"),
    "recurrent": (recurrent_table, "recurrent layers"),
    "kernels": (lambda device: kernels_table(), "what the kernels for a GPU are compiled to; needs no card"),
    "prediction": (prediction_table, "predict, against a loop of passes"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line.

    Args:
        arguments: those of the command line; by default the ones the program was started with.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dropoutlib.benchmark",
        description="Time dropoutlib against torch: all methods in about two minutes, or one table of its own.",
        epilog="Examples: python -m dropoutlib.benchmark --only Pool; "
               "python -m dropoutlib.benchmark --recurrent --device cuda --output times.md")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads of torch (default 1)")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name has this part")
    parser.add_argument("--output", type=file_in_folder,
                        help="write the table to this file, with the command that made it")
    tables = parser.add_mutually_exclusive_group()
    for name, (_, what) in _TABLES.items():
        tables.add_argument(f"--{name}", action="store_const", dest="table", const=name, help=f"instead, {what}")
    options = parser.parse_args(arguments)
    if options.only and options.table:
        parser.error(f"--only chooses among all methods, and --{options.table} is a table of its own")
    try:
        torch.empty(0, device=options.device)
    except Exception as error:      # torch has one of its own for each way in which a device is not there
        parser.error(f"argument --device: {options.device!r} cannot be used here: {str(error).splitlines()[0]}")
    torch.set_num_threads(options.threads)
    if options.table is not None:
        text = _TABLES[options.table][0](options.device)
    else:
        try:
            text = methods_table(options.device, options.only)
        except ValueError as error:
            parser.error(str(error))
    print(text)
    if options.output is not None:
        words = sys.argv[1:] if arguments is None else arguments
        command = f"python -m dropoutlib.benchmark {shlex.join(words)}".rstrip()
        options.output.write_text(f"`{command}`\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
