"""The command line: `python -m sfrik_jax COMMAND …`, also installed as `sfrik`.

Settings are overridden by dotted options, `--config.data.batch_size=64`. An error that
the user can mend is one line on stderr and a code of `errors.py`; a wrong command
line or configuration ends with 2 before anything compiles.
"""

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sfrik_jax import commands
from sfrik_jax.errors import ConfigError, SfrikError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
RUN = "python -m sfrik_jax"
OVERRIDE = "--config."


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others here."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with the command whose help explains more."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except SfrikError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end: give it a place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def run(argv: Sequence[str]) -> int:
    """Parses `argv` and calls the command's function of `commands.py`."""
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


def build_parser() -> Parser:
    """All commands with their arguments; each help ends with an example."""
    parser = Parser(
        prog="sfrik",
        description="Self-supervised pretraining with rotation-invariant kernels.",
        epilog=f"example: {RUN} pretrain --config configs/quickstart.py "
        "--workdir runs/quickstart",
        allow_abbrev=False,
    )
    groups = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_pretrain(groups)
    _add_config(groups)
    _add_data(groups)
    _add_report(groups)
    return parser


def _add_pretrain(groups: "argparse._SubParsersAction[Parser]") -> None:
    pretrain = _command(
        groups,
        "pretrain",
        "pretrain a backbone and evaluate it; resumes what the run directory holds",
        "--config configs/quickstart.py --workdir runs/quickstart "
        "--config.optim.epochs=5",
        commands.pretrain,
    )
    _add_config_option(pretrain)
    pretrain.add_argument(
        "--workdir",
        metavar="DIR",
        help="run directory, made if missing (default: runs/ and the name of the "
        "configuration file; of a config.json, its directory)",
    )


def _add_config(groups: "argparse._SubParsersAction[Parser]") -> None:
    actions = _group(groups, "config", "show and compare configurations")
    show = _command(
        actions,
        "show",
        "print all settings after overrides",
        "--config configs/quickstart.py --config.loss.method=vicreg",
        commands.config_show,
    )
    _add_config_option(show)
    show.add_argument("--json", action="store_true", help="as stored with a run")
    diff = _command(
        actions,
        "diff",
        "print the settings that differ",
        "configs/quickstart.py runs/quickstart",
        commands.config_diff,
    )
    diff.add_argument(
        "a", metavar="A", help="config file, config.json or run directory"
    )
    diff.add_argument("b", metavar="B", help="the same, to compare with")


def _add_data(groups: "argparse._SubParsersAction[Parser]") -> None:
    actions = _group(groups, "data", "prepare data sets and look at their views")
    prepare = _command(
        actions,
        "prepare",
        "write a data set as ArrayRecord, where pretraining reads it",
        "fashion_mini --data-dir data",
        commands.data_prepare,
    )
    prepare.add_argument(
        "name",
        metavar="NAME",
        help="of an image set of TFDS, such as imagenet2012, stl10 or voc/2007, or "
        "fashion_mini or photo_patches",
    )
    prepare.add_argument(
        "--data-dir", default="", metavar="DIR", help="where to (default: that of TFDS)"
    )
    prepare.add_argument(
        "--from", dest="source", metavar="DIR", help="folder with the downloaded files"
    )
    prepare.add_argument(
        "--allow-counts",
        action="store_true",
        help="take other numbers of pictures than the published ones",
    )
    _add_check(actions)
    preview = _command(
        actions,
        "preview",
        "draw the augmented views of one step as a PNG",
        "--config configs/quickstart.py --out views.png --step 3",
        commands.data_preview,
    )
    _add_config_option(preview)
    preview.add_argument("--out", required=True, metavar="PNG", help="file to write")
    preview.add_argument(
        "--step", type=step, default=0, metavar="S", help="training step (default 0)"
    )


def _add_check(actions: "argparse._SubParsersAction[Parser]") -> None:
    check = _command(
        actions,
        "check",
        "read and decode every picture of a set, and name the bad ones",
        "fashion_mini --data-dir data --hashes data/fashion_mini.sha256",
        commands.data_check,
    )
    check.add_argument("name", nargs="?", metavar="NAME", help="of a prepared set")
    check.add_argument(
        "--data-dir", default="", metavar="DIR", help="where it lies (default: of TFDS)"
    )
    check.add_argument("--folder", metavar="DIR", help="check a folder of pictures")
    _add_config_option(check, required=False)
    check.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="SPLIT",
        help="only this one; may be repeated (default: all that there are)",
    )
    check.add_argument(
        "--hashes", metavar="FILE", help="write the SHA-256 sum of each picture"
    )
    check.add_argument(
        "--against", metavar="FILE", help="compare with such a list of earlier"
    )
    check.add_argument(
        "--workers", type=step, default=0, metavar="N", help="threads (default: all)"
    )


def _add_report(groups: "argparse._SubParsersAction[Parser]") -> None:
    report = _command(
        groups,
        "report",
        "write report.html of runs",
        "runs/quickstart",
        commands.report,
    )
    report.add_argument("workdirs", nargs="+", metavar="DIR", help="run directory")


def _group(groups, name: str, words: str) -> "argparse._SubParsersAction[Parser]":
    group = groups.add_parser(name, help=words, description=words, allow_abbrev=False)
    return group.add_subparsers(metavar="ACTION", required=True)


def _command(groups, name: str, words: str, example: str, function) -> Parser:
    command = groups.add_parser(
        name,
        help=words,
        description=words,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = command.prog.removeprefix("sfrik ")
    command.epilog = f"example:\n  {RUN} {path} {example}"
    command.set_defaults(function=function)
    return command


def _add_config_option(command: Parser, *, required: bool = True) -> None:
    command.add_argument(
        "--config",
        required=required,
        metavar="SPEC",
        help="configs/x.py, configs/x.py:ARG, or the config.json of a run; "
        "--config.KEY=VALUE overrides a setting",
    )


def step(text: str) -> int:
    """A step number, or another count, from the command line; argparse names it."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
