"""What the benches' command lines share: argument types, outputs, errors in a line."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfrik_jax import files
from sfrik_jax.commands import parsing
from sfrik_jax.errors import OutputError, SfrikError

DTYPES = ("bfloat16", "float32")
INTERRUPTED = 130  # 128 + SIGINT, as the package's own commands end


def parser(words: str | None, *, json: bool = True) -> parsing.Parser:
    """A parser whose errors are one line; with --json, the file of the records."""
    made = parsing.Parser(
        description=words,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if json:
        made.add_argument("--json", type=json_file, help="where the figures go")
    return made


def integer(text: str) -> int:
    """A number of things, of which there is one at least."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def integers(text: str) -> list[int]:
    """Such numbers with commas."""
    return [integer(each) for each in text.split(",")]


def seconds(text: str) -> float:
    """A length of time, 0 among them."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{number} is no length of time")
    return number


def json_file(text: str) -> Path:
    """A file that can be written. Raises: OutputError: it cannot."""
    path = parsing.checked_output(text, "--json")
    if path.is_dir():
        raise OutputError(f"--json {path} is a folder; name a file")
    return path


def folder(text: str) -> Path:
    """A folder that can be made and written. Raises: OutputError: it cannot."""
    path = parsing.checked_output(text, "--profile")
    if path.is_file():
        raise OutputError(f"--profile {path} is a file; name a folder")
    return path


def write_json(path: Path | None, rows: Sequence[Any]) -> None:
    """Writes the rows where a path is given.

    Raises:
      OutputError, DiskFullError: the system refuses it.
    """
    if path:
        files.make_folder(path.parent)
        text = json.dumps(list(rows), indent=1, default=str)
        files.write_whole(path, f"{text}\n".encode())


def share_the_card() -> None:
    """Leaves memory of a GPU to PyTorch; to be called before JAX starts.

    JAX takes three quarters of it at once else. A setting of the user stays.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def run(main: Callable[[], None]) -> None:
    """Runs a bench; what the user can mend ends it with one line and its code."""
    try:
        main()
    except SfrikError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        raise SystemExit(error.code) from error
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
