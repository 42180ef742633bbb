"""What commands share: how arguments are declared, outputs checked, tables printed."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from sfrik_jax import addresses
from sfrik_jax.config_checks import shown
from sfrik_jax.errors import ConfigError, OutputError

RUN = "python -m sfrik_jax"
NAME_BYTES = 255  # the longest file name that common file systems take
SHELL = frozenset("$`\"'\\;&|<>*?!")  # what means something to a shell


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others here."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with the command whose help explains more."""
        raise ConfigError(f"{message}; see {self.prog} --help")


Groups: TypeAlias = "argparse._SubParsersAction[Parser]"


def group(groups: Groups, name: str, words: str) -> Groups:
    """A command that has actions of its own."""
    actions = groups.add_parser(name, help=words, description=words, allow_abbrev=False)
    return actions.add_subparsers(metavar="ACTION", required=True)


def command(
    groups: Groups,
    name: str,
    words: str,
    example: str,
    function: Callable[[argparse.Namespace], int],
) -> Parser:
    """Declares a command; its help ends with the example."""
    parser = groups.add_parser(
        name,
        help=words,
        description=words,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = parser.prog.removeprefix("sfrik ")
    parser.epilog = f"example:\n  {RUN} {path} {example}"
    parser.set_defaults(function=function)
    return parser


def add_config_option(parser: Parser, *, required: bool = True) -> None:
    """The option --config, which lets settings be overridden too."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="SPEC",
        help="configs/x.py, configs/x.py:ARG, or the config.json of a run; "
        "--config.KEY=VALUE overrides a setting",
    )


def count(text: str) -> int:
    """A step number, or another count, from the command line; argparse names it."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def checked_name(name: str, option: str) -> str:
    """`name`, if a file may be called so, and a shell takes it as one plain word.

    Errors: ConfigError.
    """
    if name in ("", "..") or Path(name).name != name:
        raise ConfigError(f"{option} {shown(name)} is no plain file name")
    if not name.isprintable() or name[0] == "-" or set(name) & SHELL:
        raise ConfigError(
            f"{option} {shown(name)}: give a name without control characters, a - in "
            f"front, and {' '.join(sorted(SHELL))}"
        )
    if len(os.fsencode(name)) > NAME_BYTES - len(".json"):
        raise ConfigError(f"{option} {shown(name)} is too long for a file name")
    return name


def checked_output(path: str, option: str) -> Path:
    """`path`, if it can be created and written; nothing is created yet.

    Errors: ConfigError for an address and a name that no file can have; OutputError
        where a file is in the way or permission is missing.
    """
    problem = addresses.problem(option, path)
    if problem is not None:
        raise ConfigError(problem)
    names = Path(path).parts
    if not path.strip() or not path.isprintable():
        raise ConfigError(
            f"{option} {shown(path)}: give a name without control characters"
        )
    if any(len(os.fsencode(name)) > NAME_BYTES for name in names):
        raise ConfigError(
            f"{option} {shown(path)}: a name is longer than {NAME_BYTES} bytes"
        )
    place = Path(path)
    nearest = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
    # What is there has the name that it has.
    for name in place.absolute().relative_to(nearest.absolute()).parts:
        if name not in ("..", "."):
            checked_name(name, f"{option} {path}:")
    if not nearest.exists():
        raise OutputError(f"{option} {path}: {nearest} is a link to nowhere")
    if nearest != place and not nearest.is_dir():
        raise OutputError(f"{option} {path}: {nearest} is a file; name another place")
    if not os.access(nearest, os.W_OK | (os.X_OK if nearest.is_dir() else 0)):
        raise OutputError(f"{option} {path}: no permission to write {nearest}")
    return place


def default_workdir(spec: str) -> str:
    """Where a run goes that is not told: a run's own directory, or runs/NAME."""
    path = Path(spec.partition(".py:")[0])
    if path.is_dir():
        return str(path)
    if path.suffix == ".json":
        return str(path.parent)
    return str(Path("runs", path.stem))


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of texts with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
