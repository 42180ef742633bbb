"""A run that hangs ends itself, and leaves word of where.

The program says where it is by `at`, which costs an assignment. A thread of each
process looks twice a second. Where nothing has moved for longer than it may, it asks
the others where they are: a process that may still take its time excuses all that wait
for it. Else all write their stacks to WORKDIR/hang_rankI.txt and end with code 76.

How long a step may take, N, is a setting, or ten median steps and at least a minute.
The first steps of a session compile, and they, restoring, saving and a profile have an
hour. What comes before the steps, evaluations and the end are not watched: nothing
tells a long one from one that hangs. A process that is gone or suspended as a whole is
noticed by the heartbeat.
"""

import contextlib
import faulthandler
import json
import math
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sfrik_jax import faults, processes
from sfrik_jax.errors import HangError

MEDIANS, LEAST = 10, 60.0
# Seconds for what happens once, and the phases that have them.
PATIENCE = 3600.0
PATIENT = ("resume", "data_read", "step", "save", "profile")
# Seconds between two looks; for the others to answer; for the stacks to be written,
# which on a disk that hangs they never are.
LOOK, ANSWER, WRITE = 0.5, 10.0, 5.0


class Place(NamedTuple):
    """Where a process is: a phase of a step.

    Attributes:
      settled: it is one of the steps that have the same length.
    """

    step: int
    phase: str
    settled: bool


_place = Place(0, "start", False)


def at(phase: str, step: int = 0, *, settled: bool = False) -> None:
    """This process has come to a phase of a step; faults on purpose happen here."""
    global _place
    _place = Place(step, phase, settled)
    faults.at(phase, step)


@contextlib.contextmanager
def watching(workdir: Path, hang_seconds: float) -> Iterator[None]:
    """Watches this process of a job until the body ends.

    Args:
      workdir: for the stacks; where it is not there yet they go to stderr.
      hang_seconds: N; 0 to watch nothing, -1 for one that follows the steps.
    """
    global _place
    _place = Place(0, "start", False)
    if hang_seconds == 0:
        yield
        return
    watch = Watch(workdir, hang_seconds)
    processes.listen(watch.answer, watch.write_stacks)
    watch.start()
    try:
        yield
    finally:
        watch.close()


class Watch:
    """The thread that looks.

    Time is counted in looks: a laptop that slept or a process that was stopped has not
    hung, since its looks are missing too.
    """

    def __init__(self, workdir: Path, hang_seconds: float) -> None:
        self._workdir, self._fixed = workdir, hang_seconds
        self._pause = LOOK if hang_seconds < 0 else min(LOOK, hang_seconds / 4)
        self._place, self._idle = _place, 0.0
        self._awake, self._moved = 0.0, 0.0  # seconds up to now, and to the last step
        self._rates: deque[float] = deque(maxlen=99)  # seconds of a step
        self._asked = 0.0  # idle seconds until which the others need not be asked
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()
        self._thread.join()

    def answer(self) -> str:
        """Where this process is, for the others, and whether it is late."""
        return json.dumps([*self._place[:2], self._idle > self.limit()])

    def write_stacks(self) -> None:
        """Writes the stacks of all threads, or gives up soon."""
        writing = threading.Thread(target=self._write, daemon=True)
        writing.start()
        writing.join(WRITE)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._pause):
            now = time.monotonic()
            self.look(now - before)
            before = now

    def look(self, passed: float) -> None:
        """Looks where the program is, `passed` seconds after the last time."""
        passed = min(passed, 2 * self._pause)
        self._awake += passed
        if _place is not self._place:
            self._step_on(_place)
            return
        self._idle += passed
        # Not at each look, where another process is excused for long.
        if self._idle > max(self.limit(), self._asked):
            self._asked = self._idle + self.limit() / 4
            self._judge()

    def _step_on(self, place: Place) -> None:
        steps = place.step - self._place.step
        if steps:
            if steps > 0 and place.settled and self._place.settled:
                self._rates.append((self._awake - self._moved) / steps)
            self._moved = self._awake
        self._place, self._idle, self._asked = place, 0.0, 0.0

    def limit(self) -> float:
        """Seconds that the program may be where it is."""
        if not self._place.settled:
            return PATIENCE if self._place.phase in PATIENT else math.inf
        if self._fixed > 0:
            return self._fixed
        rate = statistics.median(self._rates) if self._rates else 0.0
        return max(LEAST, MEDIANS * rate)

    def _judge(self) -> None:
        """Ends the job, if no process is excused."""
        idle, limit = self._idle, self.limit()
        said: list[str | None] = [self.answer()]
        if processes.count() > 1:
            try:
                said = processes.ask(ANSWER, self._over)
            except Exception:
                return  # the store is gone, and this process ends for that
        excused = any(text is not None and not _late(text) for text in said)
        if excused or self._over.is_set():
            return
        self.write_stacks()
        stacks = self._workdir / "hang_rank*.txt"
        error = HangError(
            f"no step for {idle:.0f} s (N = {limit:.0f} s); {_behind(said)}; stacks "
            f"of all threads are in {stacks}, the last checkpoint is valid: start again"
        )
        processes.end_all(error, hangs=True)

    def _write(self) -> None:
        place, name = self._place, f"hang_rank{processes.index()}.txt"
        head = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} step {place.step} "
        head += f"({place.phase})\n"
        with contextlib.suppress(OSError):
            with (self._workdir / name).open("w", encoding="utf-8") as file:
                file.write(head)
                file.flush()
                faulthandler.dump_traceback(file)
            return
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)


def _late(text: str) -> bool:
    # One that has not begun to watch, or has ended, answers with nothing.
    return bool(text) and json.loads(text)[2]


def _behind(said: list[str | None]) -> str:
    """The processes that are behind the others, and where."""
    silent = [rank for rank, text in enumerate(said) if text is None]
    if silent:
        return f"rank {_listed(silent)} does not answer"
    places = [json.loads(text or "")[:2] for text in said]
    # Within a step the data comes first.
    step, phase = min(places, key=lambda place: (place[0], place[1] != "data_read"))
    ranks = [rank for rank, place in enumerate(places) if place == [step, phase]]
    return f"last step {step} at rank {_listed(ranks)} ({phase})"


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
