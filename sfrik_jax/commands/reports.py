"""The command `report`."""

import argparse
from pathlib import Path

from sfrik_jax.commands.parsing import Groups, command
from sfrik_jax.errors import MissingInputError


def add(groups: Groups) -> None:
    """Adds `report`."""
    parser = command(
        groups,
        "report",
        "write report.html of runs",
        "runs/quickstart",
        report,
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="run directory")


def report(args: argparse.Namespace) -> int:
    """Writes report.html of each run and prints where."""
    for workdir in args.workdirs:
        if not Path(workdir).is_dir():
            raise MissingInputError(f"{workdir}: no such run directory")
    from sfrik_jax import report as pages

    for workdir in args.workdirs:
        print(pages.write_report(Path(workdir)))
    return 0
