"""The command `doctor`."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfrik_jax import config as configs
from sfrik_jax.commands.parsing import (
    Groups,
    add_config_option,
    command,
    default_workdir,
)
from sfrik_jax.errors import ConfigError, HangError

PATIENCE = 120.0  # seconds after which a check is told that does not end, as a hang
# Seconds after which it is given up. A collective that hangs is in C++: there neither
# Ctrl-C nor a signal reaches Python.
LIMIT = 600.0
TIDYING = 10.0  # seconds to remove what the check wrote
TERMINATED = 143  # 128 + SIGTERM, as shells report it


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

    results, progress = [], _Progress()
    context = checks.Context(Path(place), config)
    with _terminated(), progress:
        for result in checks.examine(context, progress):
            results.append(result)
            progress("")
            if not args.json:
                print(_line(result), flush=True)
    if args.json:
        print(json.dumps([_record(each) for each in results], indent=2))
    else:
        print(_summary(results))
    return checks.exit_code(results)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, as of timeout(1), ends the command as an exception, which tidies up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """Says what is being checked, on a terminal, and elsewhere what does not end."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        self("")

    def __call__(self, name: str) -> None:
        """The check `name` begins; "" when it has ended."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name} …" if name else "\r\x1b[K", end="", file=sys.stderr)
            sys.stderr.flush()
        if name:
            for seconds, then in ((PATIENCE, _tell_late), (LIMIT, _give_up)):
                timer = threading.Timer(seconds, then, [name])
                timer.daemon = True
                timer.start()
                self._timers.append(timer)


def _tell_late(name: str) -> None:
    words = f"{name}: no end after {PATIENCE:g} s; it is given up after {LIMIT:g} s"
    print(words, file=sys.stderr, flush=True)


def _give_up(name: str) -> None:
    from sfrik_jax.doctor import places

    words = f"error: {name}: no end after {LIMIT:g} s: a device, a link between them "
    words += "or a disk hangs; restart this machine, or leave it out"
    print(words, file=sys.stderr, flush=True)
    # The disk may be what hangs.
    tidying = threading.Thread(target=places.remove_trials, daemon=True)
    tidying.start()
    tidying.join(TIDYING)
    os._exit(HangError.code)


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
