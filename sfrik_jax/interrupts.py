"""Signals ask the run to stop; it stops where its work is safe.

Python runs a handler between two instructions of the main thread, and that thread can
be in a compiler, a collective or a disk for minutes. So a thread of its own hears the
signals too, through a pipe that the C handler of Python writes to at once: it ends the
process at the second signal, and when the grace is over.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import ClassVar, NoReturn

from sfrik_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 60.0
# Seconds in which a signal is the one before: launchers send it to the group of the
# processes and to each one.
REPEATED = 0.2
VALID = "the last checkpoint is valid"


class Stop:
    """Notes SIGTERM, SIGINT and SIGUSR1 while it is entered.

    The loop asks whether a stop is `reached` after each step. A second signal ends the
    process at once with code 75, and so does the end of the grace: the last checkpoint
    stays valid. Of several that are entered within each other, such as a job's within
    that of a series of jobs, all learn of a signal, also the one that is entered after
    it; the grace is the outermost one's.

    Args:
      grace: seconds from the signal to the end, whatever goes on.
    """

    _entered: ClassVar[list["Stop"]] = []

    def __init__(self, grace: float = GRACE) -> None:
        self.requested = False
        self.grace = grace

    def __enter__(self) -> "Stop":
        self._heard = heard()
        self._heard.__enter__()
        self._entered.append(self)
        # After it is among them, so that no signal falls in between.
        self.requested |= any(stop.requested for stop in self._entered)
        return self

    def __exit__(self, *_) -> None:
        self._entered.remove(self)
        self._heard.__exit__(None, None, None)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; asked once for each."""
        return self.requested

    def check(self, where: str) -> None:
        """Raises Preempted where a stop is requested and nothing is left to save.

        All processes of a job come here, and one that is asked to stop stops all.
        """
        self.check_here(where)

    def check_here(self, where: str) -> None:
        """`check` where only this process may come; the others end as by an error."""
        if self.requested:
            raise Preempted(f"preempted {where}; run the same command again to go on")

    def leave(self, why: str) -> None:
        """What is to be done in the moment before the process ends at once."""


@contextlib.contextmanager
def heard(*, to_the_end: bool = False) -> Iterator[None]:
    """Signals are heard here until the outermost of these ends.

    A signal that comes while no `Stop` is entered ends the process at once with 75: a
    run that has not begun, or is over, has nothing to lose.

    Args:
      to_the_end: the process ends soon after, with a code that no signal changes.
    """
    if _Ear.current is not None:
        yield
        return
    ear = _Ear()
    try:
        yield
    finally:
        ear.close(signal.SIG_IGN if to_the_end else None)


class _Ear:
    """The handlers, the pipe and the thread; one at a time in a process."""

    current: ClassVar["_Ear | None"] = None

    def __init__(self) -> None:
        _Ear.current = self
        # A lock is what a handler may take without waiting.
        self._noted = threading.Lock()
        self._first: float | None = None  # when the thread heard the first signal
        self._pipe, self._end = os.pipe()
        os.set_blocking(self._end, False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._before = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        # After it, so that none is heard by the handler alone.
        self._handlers = {s: signal.signal(s, self.note) for s in SIGNALS}

    def close(self, handler: signal.Handlers | None) -> None:
        """Puts back what was there before, or `handler`."""
        for number, before in self._handlers.items():
            signal.signal(number, before if handler is None else handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._end)
        self._thread.join()
        os.close(self._pipe)
        _Ear.current = None

    def note(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Asks all to stop, once: in the handler or the thread, whichever is first."""
        if Stop._entered and self._noted.acquire(blocking=False):
            for stop in tuple(Stop._entered):
                stop.requested = True
            _say("\nstopping as soon as all is saved; once more to stop at once")

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([self._pipe], [], [], self._left())
            numbers = os.read(self._pipe, 64) if ready else b""
            if ready and not numbers:
                return
            if not ready:
                _end_at_once(f"stopped after {_grace():g} s of grace; {VALID}")
            if any(number in SIGNALS for number in numbers):
                self._hear()

    def _left(self) -> float | None:
        if self._first is None:
            return None
        return max(0.0, self._first + _grace() - time.monotonic())

    def _hear(self) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self.note()
            if not self._noted.locked():
                _end_at_once("stopped with nothing to save")
        elif now > self._first + REPEATED:
            _end_at_once(f"stopped at once; {VALID}")


def _grace() -> float:
    return Stop._entered[0].grace if Stop._entered else GRACE


def _end_at_once(what: str) -> NoReturn:
    _say(what)
    for stop in tuple(Stop._entered):
        stop.leave(what)
    os._exit(Preempted.code)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
