"""Many runs of one configuration, each with settings of its own.

Each run is the command `pretrain` in a process and a directory of its own, `DIR/NAME`,
where also its words go (`log.txt`). A run is done when its directory holds the summary
of just these settings. So the same sweep can be started again at any time: what is done
is kept, and what failed or was stopped is tried again and goes on where it was.
`DIR/sweep.json` tells the state of each run.
"""

import contextlib
import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import resuming
from sfrik_jax.errors import ConfigError, Preempted, SfrikError
from sfrik_jax.files import make_folder, write_whole
from sfrik_jax.interrupts import SIGNALS
from sfrik_jax.locks import Lock

PROGRAM = (sys.executable, "-m", "sfrik_jax")
WAITING, RUNNING, DONE, STOPPED = "waiting", "running", "done", "stopped"
NAME_LENGTH = 100
PAUSE = 0.1

Overrides = dict[str, str]  # setting -> its text


class Run(NamedTuple):
    """One run of a sweep: a plain file name, and what it sets."""

    name: str
    overrides: Overrides

    def texts(self) -> list[str]:
        """The overrides as `configs.load` takes them."""
        return [f"{key}={text}" for key, text in self.overrides.items()]


class Sweep(NamedTuple):
    """Runs of one configuration.

    Attributes:
      spec: of the configuration, see `configs.load`.
      common: overrides of all runs.
      runs: in the order in which they are started.
    """

    spec: str
    common: list[str]
    runs: list[Run]

    def config(self, run: Run) -> ConfigDict:
        """The settings of a run. Errors: as `configs.load`."""
        return configs.load(self.spec, [*self.common, *run.texts()])

    def command(self, run: Run, directory: Path) -> list[str]:
        """The words of a run after the program's name."""
        texts = [f"--config.{text}" for text in (*self.common, *run.texts())]
        place = str(directory / run.name)
        return ["pretrain", "--config", self.spec, "--workdir", place, *texts]


def parse_grid(text: str) -> tuple[str, list[str]]:
    """`key=a,b` to the setting and the texts of its values.

    Commas inside brackets and quotes part no values: `loss.weights=(1,),(1,40)`.
    Errors: ConfigError.
    """
    key, equals, listed = text.partition("=")
    values = [value.strip() for value in _parted(listed)]
    if not equals or not all(values):
        raise ConfigError(f"--grid {text}: write KEY=VALUE,VALUE …")
    if len(set(values)) < len(values):
        raise ConfigError(f"--grid {text}: a value is there twice")
    return key, values


def _parted(text: str) -> list[str]:
    depth, quote, parts = 0, "", [""]
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def product(grids: Iterable[tuple[str, list[str]]]) -> list[Overrides]:
    """Every choice of one value of each setting; the last setting changes fastest.

    Errors: ConfigError for a setting that is there twice.
    """
    grids = list(grids)
    keys = [key for key, _ in grids]
    twice = [key for key, times in Counter(keys).items() if times > 1]
    if twice:
        raise ConfigError(f"--grid {twice[0]} is there twice; list all its values once")
    choices = itertools.product(*(values for _, values in grids))
    return [dict(zip(keys, choice, strict=True)) for choice in choices]


def named(points: Sequence[Overrides]) -> list[Run]:
    """Runs with names that say what they set, each once.

    `loss.weights=(1,40)` and `model.embed_dim=64` give `weights-1-40_embed_dim-64`. A
    name that is too long, or that two would have, ends in a hash of the settings.
    """
    short = {key: key.rpartition(".")[2] for point in points for key in point}
    taken = Counter(short.values())
    words = {key: last if taken[last] == 1 else key for key, last in short.items()}
    names = ["_".join(f"{words[k]}-{_plain(v)}" for k, v in p.items()) for p in points]
    count = Counter(names)
    return [
        Run(name if _good(name, count) else _hashed(name, point), point)
        for name, point in zip(names, points, strict=True)
    ]


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+]+", "-", text, flags=re.ASCII).strip("-")


def _good(name: str, count: Counter[str]) -> bool:
    return count[name] == 1 and len(name) <= NAME_LENGTH


def _hashed(name: str, point: Overrides) -> str:
    text = json.dumps(point, sort_keys=True)
    return f"{name[:NAME_LENGTH]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_done(directory: Path, config: ConfigDict) -> bool:
    """Whether a run directory holds the end of a run of these settings."""
    if not all(
        (directory / name).is_file() for name in ("summary.json", "config.json")
    ):
        return False
    with contextlib.suppress(SfrikError):
        changes = configs.diff(configs.load(directory), config)
        evaluated = all(not key.startswith("eval.") for key, *_ in changes)
        return evaluated and not resuming.notable(changes)
    return False


class Board:
    """The states of the runs, told as they change and kept in `sweep.json`."""

    def __init__(self, sweep: Sweep, directory: Path, say: Callable[[str], None]):
        self._sweep, self._path, self._say = sweep, directory / "sweep.json", say
        self.states = {run.name: WAITING for run in sweep.runs}

    def set(self, name: str, state: str) -> None:
        """Notes that a run has come to a state."""
        self.states[name] = state
        done = sum(each == DONE for each in self.states.values())
        self._say(f"sweep: {name} {state} ({done} of {len(self.states)} done)")
        self.write()

    def write(self) -> None:
        """Keeps the states."""
        runs = [
            {"name": r.name, "overrides": r.overrides, "state": self.states[r.name]}
            for r in self._sweep.runs
        ]
        about = {"config": self._sweep.spec, "common": self._sweep.common, "runs": runs}
        write_whole(self._path, (json.dumps(about, indent=2) + "\n").encode())


def carry_out(
    sweep: Sweep,
    directory: Path,
    *,
    jobs: int = 1,
    program: Sequence[str] = PROGRAM,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Runs what is not done yet, `jobs` at a time; the state of each run by name.

    A signal is handed on to the runs, which save and stop.

    Raises:
      ConfigError: the settings of a run are wrong; none was started.
      OutputError: another sweep holds the directory.
      Preempted: a signal asked to stop.
    """
    for run in sweep.runs:
        try:
            configs.validate(sweep.config(run))
        except ConfigError as error:
            raise ConfigError(f"run {run.name}: {error}") from error
    make_folder(directory)
    what = f"--workdir {directory}"
    with Lock(directory / "lock", what, "wait for that sweep"):
        board = Board(sweep, directory, say)
        board.write()
        waiting = []
        for run in sweep.runs:
            if is_done(directory / run.name, sweep.config(run)):
                board.set(run.name, DONE)
            else:
                waiting.append(run)
        _run_all(sweep, directory, waiting, board, jobs, program)
    return board.states


def _run_all(
    sweep: Sweep,
    directory: Path,
    waiting: list[Run],
    board: Board,
    jobs: int,
    program: Sequence[str],
) -> None:
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _handing_on(running) as asked:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                run = waiting.pop(0)
                board.set(run.name, RUNNING)
                words = [*program, *sweep.command(run, directory)]
                running[run.name] = _start(words, directory / run.name)
            time.sleep(PAUSE)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    board.set(name, state_of(process.returncode))
    if asked:
        raise Preempted("the sweep was stopped; the same command goes on with it")


def _start(words: Sequence[str], place: Path) -> subprocess.Popen[bytes]:
    make_folder(place)
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C comes to the sweep alone, which hands it on once.
            process_group=0,
        )


@contextlib.contextmanager
def _handing_on(running: dict[str, subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hands signals on to what runs; the signals so far. Nothing is left behind."""
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in list(running.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    handled = (*SIGNALS, signal.SIGHUP)
    before = {number: signal.signal(number, hand_on) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running.values():
            process.kill()


def state_of(code: int) -> str:
    """The state of a run whose process has ended."""
    if code == Preempted.code:
        return STOPPED
    if code < 0:
        return f"failed ({signal.Signals(-code).name})"
    return f"failed (code {code})" if code else DONE
