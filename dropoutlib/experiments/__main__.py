"""``python -m dropoutlib.experiments NAME``: the experiments of the book."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["EXPERIMENTS", "main"]

EXPERIMENTS = ("dropout", "lenet", "comparison", "placement", "recurrent", "mc_dropout", "sparsity", "unit_pruning",
               "propagation", "compression")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment by its name.

    Args:
        arguments: those of the command line; by default the ones the program was started with.

    Returns:
        int: what the experiment returns.
    """
    modules = {name: importlib.import_module(f"dropoutlib.experiments.{name}") for name in EXPERIMENTS}
    lines = [f"  {name:<14}{(module.__doc__ or '').partition(chr(10))[0].partition(': ``')[0]}"
             for name, module in modules.items()]
    parser = argparse.ArgumentParser(
        prog="python -m dropoutlib.experiments", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The experiments of the book:\n\n" + "\n".join(lines),
        epilog="NAME --help says what an experiment can be told.")
    parser.add_argument("name", choices=EXPERIMENTS, metavar="NAME", help="of the experiment")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the experiment")
    options = parser.parse_args(arguments)
    done: int = modules[options.name].main(options.arguments)
    return done


if __name__ == "__main__":
    sys.exit(main())
