"""The command line: `python -m sfrik_jax COMMAND …`, also installed as `sfrik`.

Settings are overridden by dotted options, `--config.data.batch_size=64`. An error that
the user can mend is one line on stderr and a code of `errors.py`; a wrong command
line or configuration ends with 2 before anything compiles.

A job (`pretrain` and the evaluations) ends with 75 at SIGTERM, SIGINT and SIGUSR1, from
its first line on: what it has done is kept, and the same command goes on. The other
commands are short or cannot go on: Ctrl-C ends them with 130, the rest as the system
has it. So nothing is imported up here that takes long.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfrik_jax import interrupts
from sfrik_jax.errors import ConfigError, SfrikError
from sfrik_jax.settings import CHOICES

if TYPE_CHECKING:
    from sfrik_jax.commands.parsing import Parser

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
OVERRIDE = "--config."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    with heard(words, to_the_end=argv is None):
        return ended(words)


def ended(words: Sequence[str]) -> int:
    """The exit code of a command, whose error is told in one line."""
    from sfrik_jax import redaction

    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    redaction.install()
    try:
        code = run(words)
        sys.stdout.flush()
        return code
    except SfrikError as error:
        line = " ".join(redaction.redact(str(error)).splitlines())
        print(f"error: {line}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end: give it a place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def heard(
    words: Sequence[str], *, to_the_end: bool
) -> contextlib.AbstractContextManager[None]:
    """Hears the signals for the commands that are jobs (see `interrupts.heard`)."""
    if words and words[0].replace("-", "_") in CHOICES["job"]:
        return interrupts.heard(to_the_end=to_the_end)
    return contextlib.nullcontext()


def run(argv: Sequence[str]) -> int:
    """Parses `argv` and calls the command's function of its module in `commands`."""
    rest, overrides = split_overrides(argv)
    args = build_parser().parse_args(rest)
    if "config" in args:
        args.overrides = overrides
    elif overrides:
        raise ConfigError(f"{OVERRIDE}{overrides[0]}: this command takes no settings")
    return args.function(args)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.key=value` and `--config.key value` out of the command line.

    Returns: what argparse is to see, and the overrides as `key=value`.
    """
    rest: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(OVERRIDE):
            rest.append(word)
            continue
        override = word.removeprefix(OVERRIDE)
        if "=" not in override:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConfigError(f"{word} needs a value: {word}=VALUE")
            override = f"{override}={value}"
        overrides.append(override)
    return rest, overrides


def build_parser() -> "Parser":
    """All commands with their arguments; each help ends with an example."""
    from sfrik_jax.commands import (
        checkup,
        configuration,
        data,
        evaluation,
        planning,
        replaying,
        reports,
        sweeping,
        training,
        weights,
    )
    from sfrik_jax.commands.parsing import RUN, Parser

    parser = Parser(
        prog="sfrik",
        description="Self-supervised pretraining with rotation-invariant kernels.",
        epilog=f"example: {RUN} pretrain --config configs/quickstart.py "
        "--workdir runs/quickstart",
        allow_abbrev=False,
    )
    groups = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (
        training,
        replaying,
        sweeping,
        evaluation,
        weights,
        configuration,
        data,
        planning,
        reports,
        checkup,
    ):
        module.add(groups)
    return parser


if __name__ == "__main__":
    sys.exit(main())
