"""Many runs of one configuration, each with settings of its own.

Each run is the command `pretrain` in a process and a directory of its own, `DIR/NAME`,
where also its words go (`log.txt`). A run is done when its directory holds the summary
of just these settings. So the same sweep can be started again at any time: what is done
is kept, and what failed or was stopped is tried again and goes on where it was.
`DIR/sweep.json` tells the state of each run.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import resuming
from sfrik_jax.errors import (
    ConfigError,
    DiskFullError,
    LostPeerError,
    OutputError,
    Preempted,
    SfrikError,
)
from sfrik_jax.files import make_folder, write_whole
from sfrik_jax.grids import Run
from sfrik_jax.interrupts import SIGNALS
from sfrik_jax.locks import Lock

PROGRAM = (sys.executable, "-m", "sfrik_jax")
WAITING, RUNNING, DONE, STOPPED = "waiting", "running", "done", "stopped"
ELSEWHERE = "running elsewhere"
PAUSE = 0.1
# Seconds in which a run ends whose own grace is over.
LATER = 5.0


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
        """Notes that a run has come to a state; the runs do not end for a note."""
        self.states[name] = state
        done = sum(each == DONE for each in self.states.values())
        self._tell(f"sweep: {name} {state} ({done} of {len(self.states)} done)")
        try:
            self.write()
        except (DiskFullError, OutputError) as error:
            self._tell(f"sweep: {error}; the runs go on")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._say(line)

    def write(self) -> None:
        """Keeps the states. Raises: as `files.write_whole`."""
        runs = [
            {"name": r.name, "overrides": r.overrides, "state": self.states[r.name]}
            for r in self._sweep.runs
        ]
        about = {"config": self._sweep.spec, "common": self._sweep.common, "runs": runs}
        write_whole(self._path, (json.dumps(about, indent=2) + "\n").encode())


def print_at_once(line: str) -> None:
    """Prints a line that a file shows at once too."""
    print(line, flush=True)


def carry_out(
    sweep: Sweep,
    directory: Path,
    *,
    jobs: int = 1,
    program: Sequence[str] = PROGRAM,
    say: Callable[[str], None] = print_at_once,
) -> dict[str, str]:
    """Runs what is not done yet, `jobs` at a time; the state of each run by name.

    A signal is handed on to the runs, which save and stop. A run that another sweep
    has left behind, or a user has started, goes on by itself.

    Raises:
      ConfigError: the settings of a run are wrong; none was started.
      OutputError: another sweep holds the directory.
      Preempted: a signal asked to stop.
    """
    settings = _checked(sweep)
    grace = max(config.processes.grace_seconds for config in settings.values()) + LATER
    make_folder(directory)
    what = f"--workdir {directory}"
    with Lock(directory / "lock", what, "wait for that sweep"):
        board = Board(sweep, directory, say)
        board.write()
        waiting = []
        for run in sweep.runs:
            if is_done(directory / run.name, settings[run.name]):
                board.set(run.name, DONE)
            else:
                waiting.append(run)
        commands = {
            run.name: [*program, *sweep.command(run, directory)] for run in waiting
        }
        _run_all(commands, directory, board, jobs, grace)
    return board.states


def _checked(sweep: Sweep) -> dict[str, ConfigDict]:
    """The settings of each run. Errors: ConfigError naming the run."""
    settings = {}
    for run in sweep.runs:
        try:
            settings[run.name] = sweep.config(run)
            configs.validate(settings[run.name])
        except ConfigError as error:
            raise ConfigError(f"run {run.name}: {error}") from error
    return settings


def _run_all(
    commands: Mapping[str, Sequence[str]],
    directory: Path,
    board: Board,
    jobs: int,
    grace: float,
) -> None:
    waiting = list(commands)
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _handing_on(running, grace) as asked:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                name = waiting.pop(0)
                if _is_held(directory / name):
                    board.set(name, ELSEWHERE)
                    continue
                board.set(name, RUNNING)
                running[name] = _start(commands[name], directory / name)
                if asked:  # it came while this one started
                    _ask(running[name])
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


def _is_held(place: Path) -> bool:
    """Whether a process is at work in a run directory."""
    path = place / "lock"
    if not path.exists():
        return False
    try:
        Lock(path, str(place), "wait for it").close()
    except OutputError:
        return True
    except OSError:  # the run itself says what is wrong there
        return False
    return False


def _ask(process: subprocess.Popen[bytes]) -> None:
    """Asks a run to save and stop."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _handing_on(
    running: dict[str, subprocess.Popen[bytes]], grace: float
) -> Iterator[list[int]]:
    """Hands signals on to what runs; the signals so far.

    Nothing is left behind: what runs when an error ends the sweep is asked to stop too,
    and is killed `grace` seconds later.
    """
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in list(running.values()):
            _ask(process)

    # What is ignored stays so: nohup means that a closed terminal ends nothing.
    handled = [
        number
        for number in (*SIGNALS, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, hand_on) for number in handled}
    try:
        yield asked
    finally:
        # A second signal would end at once those that were asked before.
        for process in () if asked else running.values():
            _ask(process)
        _end_within(grace, list(running.values()))
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_within(seconds: float, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for processes to end, and kills those that have not by then."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def state_of(code: int) -> str:
    """The state of a run whose process has ended: stopped where it can just go on."""
    if code < 0:
        return f"{STOPPED} ({signal.Signals(-code).name})"
    if code == LostPeerError.code:
        return f"{STOPPED} (code {code})"
    if code == Preempted.code:
        return STOPPED
    return f"failed (code {code})" if code else DONE
