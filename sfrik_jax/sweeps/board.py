"""The states of a sweep's runs: kept in `sweep.json`, and shown as they change."""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sfrik_jax.errors import DiskFullError, OutputError
from sfrik_jax.files import write_whole
from sfrik_jax.grids import Run

WAITING, RUNNING, DONE, STOPPED = "waiting", "running", "done", "stopped"
ELSEWHERE = "running elsewhere"
# Seconds between looks at what the runs have written.
LOOK = 1.0
# Of a run's own words, see `metrics.Display`.
STEP = re.compile(r"step (\d+)/(\d+)  eta (\S+)")
TAIL = 4_096  # bytes of them


class Display(Protocol):
    """Where the states are shown."""

    def __enter__(self) -> "Display": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        ...

    def show(self, states: Mapping[str, str], directory: Path) -> None:
        """Shows the states as they are now; called every second too."""
        ...


class Board:
    """The states of the runs, shown as they change and kept in `sweep.json`."""

    def __init__(
        self,
        about: Mapping[str, Any],
        runs: Sequence[Run],
        directory: Path,
        display: Display,
    ) -> None:
        self._about, self._runs = dict(about), runs
        self._directory, self._display = directory, display
        self.states = {run.name: WAITING for run in runs}
        self._looked = 0.0

    def begin(self) -> None:
        """Keeps the first states. Raises: as `files.write_whole`."""
        self.write()
        done = sum(state == DONE for state in self.states.values())
        if done:
            self._tell(f"sweep: {done} of {len(self.states)} runs are done already")
        self._show()

    def set(self, name: str, state: str) -> None:
        """Notes that a run has come to a state; the runs do not end for a note."""
        self.states[name] = state
        done = sum(each == DONE for each in self.states.values())
        self._tell(f"sweep: {name} {state} ({done} of {len(self.states)} done)")
        self._show()
        try:
            self.write()
        except (DiskFullError, OutputError) as error:
            self._tell(f"sweep: {error}; the runs go on")

    def tick(self) -> None:
        """To be called often: looks at the runs every second."""
        if time.monotonic() - self._looked >= LOOK:
            self._show()

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._display.say(line)

    def _show(self) -> None:
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):
            self._display.show(self.states, self._directory)

    def write(self) -> None:
        """Keeps the states. Raises: as `files.write_whole`."""
        runs = [
            {"name": r.name, "overrides": r.overrides, "state": self.states[r.name]}
            for r in self._runs
        ]
        about = self._about | {"runs": runs}
        path = self._directory / "sweep.json"
        write_whole(path, (json.dumps(about, indent=2) + "\n").encode())


class Lines:
    """A line for each change, for files and pipes."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or print_at_once

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Prints the line."""
        self._say(line)

    def show(self, states: Mapping[str, str], directory: Path) -> None:
        """Nothing: each change has had its line."""


class LiveTable:
    """On a terminal: what runs and how far it is, what failed, how many are left."""

    def __init__(self, title: str) -> None:
        # Takes 0.1 s, which other commands need not wait for.
        from rich.console import Console
        from rich.live import Live

        self._title, self._begun = title, time.monotonic()
        self._ended_before: int | None = None
        self._live = Live(console=Console(), auto_refresh=False)

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed
            self._live.stop()

    def say(self, line: str) -> None:
        """Prints what is not in the table: ends, not beginnings."""
        if f" {RUNNING} (" not in line:
            self._live.console.print(line, highlight=False, markup=False)

    def show(self, states: Mapping[str, str], directory: Path) -> None:
        """Draws the table anew."""
        from rich.table import Table

        table = Table(title=self._title, title_justify="left", box=None, min_width=60)
        for head in ("run", "state", "step", "eta"):
            table.add_column(head, overflow="fold")
        for name, state in states.items():
            if state not in (WAITING, DONE):
                at_work = state in (RUNNING, ELSEWHERE)
                step, eta = progress(directory / name) if at_work else ("", "")
                table.add_row(name, state, step, eta)
        table.caption = self._summary(states)
        table.caption_justify = "left"
        self._live.update(table, refresh=True)

    def _summary(self, states: Mapping[str, str]) -> str:
        counts = Counter(state.partition(" (")[0] for state in states.values())
        words = [f"{count} {state}" for state, count in counts.items()]
        ended = len(states) - sum(counts[s] for s in (WAITING, RUNNING, ELSEWHERE))
        if self._ended_before is None:
            self._ended_before = ended
        here, left = ended - self._ended_before, len(states) - ended
        if here and left:
            minutes = (time.monotonic() - self._begun) / here * left / 60
            words.append(
                f"about {minutes:.0f} min left" if minutes > 1 else "a minute left"
            )
        return ", ".join(words)


def print_at_once(line: str) -> None:
    """Prints a line that a file shows at once too."""
    print(line, flush=True)


def progress(place: Path) -> tuple[str, str]:
    """Step of steps, and the time to the end, as a run last said; "" before that."""
    try:
        with (place / "log.txt").open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - TAIL))
            found = STEP.findall(log.read().decode(errors="replace"))
    except OSError:
        return "", ""
    if not found:
        return "", ""
    step, total, eta = found[-1]
    return f"{step} of {total}", eta
