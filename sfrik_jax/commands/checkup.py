"""The command `doctor`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sfrik_jax import config as configs
from sfrik_jax.commands.parsing import Groups, add_config_option, command
from sfrik_jax.commands.training import default_workdir
from sfrik_jax.errors import ConfigError


def add(groups: Groups) -> None:
    """Adds `doctor`."""
    parser = command(
        groups,
        "doctor",
        "check Python, devices, disk and data, and train a tiny net for two steps",
        "--config configs/quickstart.py --workdir runs/quickstart",
        doctor,
    )
    add_config_option(parser, required=False)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where runs go; need not be there (default: as of pretrain, or here)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def doctor(args: argparse.Namespace) -> int:
    """Prints a line for each check; returns the code of the first that failed."""
    config = None
    if args.config is not None:
        config = configs.load_for("pretrain", args.config, args.overrides)
        configs.validate(config)
    elif args.overrides:
        raise ConfigError(f"--config.{args.overrides[0]}: needs --config SPEC")
    place = args.workdir or (default_workdir(args.config) if args.config else ".")
    from sfrik_jax import doctor as checks

    results = []
    context = checks.Context(Path(place), config)
    for result in checks.examine(context, _progress):
        results.append(result)
        _progress("")
        if not args.json:
            print(_line(result), flush=True)
    if args.json:
        print(json.dumps([_record(each) for each in results], indent=2))
    else:
        print(_summary(results))
    return checks.exit_code(results)


def _progress(name: str) -> None:
    """What is being checked, in a line that the next one takes the place of."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name} …" if name else "\r\x1b[K", end="", file=sys.stderr)
        sys.stderr.flush()


def _line(result: Any) -> str:
    return f"{result.finding.outcome:8} {result.name:14} {result.finding.line}"


def _record(result: Any) -> dict[str, Any]:
    found = result.finding
    return {
        "name": result.name,
        "outcome": found.outcome,
        "words": found.words,
        "remedy": found.remedy,
        "code": found.code,
        "seconds": round(result.seconds, 2),
    }


def _summary(results: list[Any]) -> str:
    outcomes = [each.finding.outcome for each in results]
    seconds = sum(each.seconds for each in results)
    bad, odd = outcomes.count("failed"), outcomes.count("warning")
    counts = f"{bad} failed, {odd} to look at, of" if bad or odd else "all well:"
    return f"{counts} {len(outcomes)} checks in {seconds:.0f} s"
