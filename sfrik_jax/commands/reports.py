"""The command `report`."""

import argparse
from pathlib import Path

from sfrik_jax.commands.parsing import Groups, checked_output, command
from sfrik_jax.errors import MissingInputError


def add(groups: Groups) -> None:
    """Adds `report`."""
    parser = command(
        groups,
        "report",
        "write report.html of a run, or one page that compares many",
        "runs/quickstart",
        report,
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        help="directory of a run or of a sweep; a sweep, or several, are compared",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="gets report.html, and of many runs report.csv and report.md (default: "
        "the directory itself; of several, the one that holds them all)",
    )


def report(args: argparse.Namespace) -> int:
    """Writes the page of a run, or the page and tables of many, and prints where."""
    for workdir in args.workdirs:
        if not Path(workdir).is_dir():
            raise MissingInputError(f"{workdir}: no such run directory")
    out = None if args.out is None else checked_output(args.out, "--out")
    workdirs = [*{Path(w).resolve(): Path(w) for w in args.workdirs}.values()]
    from sfrik_jax import report as pages
    from sfrik_jax.report import compare

    if len(workdirs) == 1 and not compare.is_sweep(workdirs[0]):
        print(pages.write_report(workdirs[0], out))
        return 0
    for path in compare.write_comparison(workdirs, out):
        print(path)
    return 0
