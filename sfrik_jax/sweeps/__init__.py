"""Many runs of one configuration, each with settings of its own.

Each run is the command `pretrain` in a process and a directory of its own, `DIR/NAME`,
where also its words go (`log.txt`). A run is done when its directory holds the summary
of just these settings. So the same sweep can be started again at any time: what is done
is kept, and what failed or was stopped is tried again and goes on where it was.
`DIR/sweep.json` tells the state of each run.

Here: which runs there are and in which state they are left; `running` starts and stops
their processes, `board` shows and stores their states, `plans` reads a configuration
file's own sweep, `tuning` chooses among candidates.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import resuming
from sfrik_jax.errors import (
    ConfigError,
    NonFiniteError,
    OutputError,
    SfrikError,
)
from sfrik_jax.files import make_folder
from sfrik_jax.grids import Run
from sfrik_jax.locks import Lock
from sfrik_jax.sweeps import running
from sfrik_jax.sweeps.board import (
    DONE,
    ELSEWHERE,
    STOPPED,
    WAITING,
    Board,
    Display,
    Lines,
)

PROGRAM = (sys.executable, "-m", "sfrik_jax")
# Seconds in which a run ends whose own grace is over.
LATER = 5.0
DIVERGED = f"failed (code {NonFiniteError.code})"


class Sweep(NamedTuple):
    """Runs of one configuration.

    Attributes:
      spec: of the configuration, see `configs.load`.
      common: overrides of all runs.
      runs: in the order in which they are started.
      again: the words of the command that carries it out.
    """

    spec: str
    common: list[str]
    runs: list[Run]
    again: tuple[str, ...] = ()

    def board(self, directory: Path, display: Display) -> Board:
        """All runs as waiting. It writes nothing yet."""
        about = {"config": self.spec, "common": self.common, "again": list(self.again)}
        return Board(about, self.runs, directory, display)

    def config(self, run: Run) -> ConfigDict:
        """The settings of a run. Errors: as `configs.load`."""
        return configs.load(self.spec, [*self.common, *run.texts()])

    def command(self, run: Run, directory: Path) -> list[str]:
        """The words of a run after the program's name."""
        texts = [f"--config.{text}" for text in (*self.common, *run.texts())]
        place = str(directory / run.name)
        return ["pretrain", "--config", self.spec, "--workdir", place, *texts]

    def settings(self) -> dict[str, ConfigDict]:
        """The settings of each run, checked. Errors: ConfigError naming the run."""
        found = {}
        for run in self.runs:
            try:
                found[run.name] = self.config(run)
                configs.validate(found[run.name])
            except ConfigError as error:
                raise ConfigError(f"run {run.name}: {error}") from error
        return found


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


def states(
    sweep: Sweep, directory: Path, settings: Mapping[str, ConfigDict]
) -> dict[str, str]:
    """The state of each run as its directory tells it; nothing is started.

    A run that has begun, and that nobody is at work on, counts as stopped, or as
    diverged where it has noted a step that is not finite and may skip none.
    """
    found = {}
    for run in sweep.runs:
        place = directory / run.name
        if is_done(place, settings[run.name]):
            found[run.name] = DONE
        elif running.is_at_work(place):
            found[run.name] = ELSEWHERE
        else:
            found[run.name] = STOPPED if (place / "config.json").exists() else WAITING
            raising = settings[run.name].step.nonfinite == "raise"
            if raising and any(place.glob("nonfinite_*.json")):
                found[run.name] = DIVERGED
    return found


def note(sweep: Sweep, directory: Path) -> dict[str, str]:
    """`states`, kept in sweep.json too. Errors: as `files.write_whole`."""
    found = states(sweep, directory, sweep.settings())
    board = sweep.board(directory, Lines())
    board.states |= found
    make_folder(directory)
    board.write()
    return found


def carry_out(
    sweep: Sweep,
    directory: Path,
    *,
    display: Display,
    jobs: int = 1,
    program: Sequence[str] = PROGRAM,
) -> dict[str, str]:
    """Runs what is not done yet, `jobs` at a time; the state of each run by name.

    A signal is handed on to the runs, which save and stop. A run that a killed sweep
    has left behind is waited for, as one of the `jobs`; one that a user has started
    goes on by itself. With several jobs each has its share of the cores.

    Raises:
      ConfigError: the settings of a run are wrong; none was started.
      OutputError: another sweep holds the directory.
      Preempted: a signal asked to stop.
    """
    settings = sweep.settings()
    grace = max(config.processes.grace_seconds for config in settings.values()) + LATER
    make_folder(directory)
    what = f"--workdir {directory}"
    with Lock(directory / "lock", what, "wait for that sweep"), display:
        board = sweep.board(directory, display)
        commands = {}
        for run in sweep.runs:
            if is_done(directory / run.name, settings[run.name]):
                board.states[run.name] = DONE
            else:
                words = sweep.command(run, directory)
                commands[run.name] = [*program, *words]
        board.begin()
        running.run_all(
            commands,
            directory,
            board,
            jobs,
            grace,
            lambda name: is_done(directory / name, settings[name]),
        )
        # What ran elsewhere, or was begun twice, may have ended in the meantime.
        for name, state in list(board.states.items()):
            if state != DONE and is_done(directory / name, settings[name]):
                board.set(name, DONE)
    return board.states


def failures(found: Mapping[str, str]) -> dict[str, str]:
    """Those of the states that only a person can mend."""
    return {name: s for name, s in found.items() if s.startswith("failed")}


def refuse_taken(directory: Path) -> None:
    """Raises OutputError where a file or a run has the place of a sweep."""
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--workdir {directory} is a file; name a directory")
    if (directory / "config.json").exists():
        raise OutputError(f"--workdir {directory} holds a run; name another directory")
