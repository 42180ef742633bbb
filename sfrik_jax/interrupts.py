"""Signals ask the run to stop; it stops where its work is safe."""

import os
import signal
from types import FrameType
from typing import ClassVar

from sfrik_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Notes SIGTERM, SIGINT and SIGUSR1 while it is entered.

    The loop asks whether a stop is `reached` after each step. A second signal ends the
    process at once with code 75: the last checkpoint stays valid. Of several that are
    entered within each other, such as a job's within that of a series of jobs, all
    learn of a signal, also the one that is entered after it.
    """

    _entered: ClassVar[list["Stop"]] = []

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        self._entered.append(self)
        # After the handlers are its own, so that no signal falls in between.
        self.requested |= any(stop.requested for stop in self._entered)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._entered.remove(self)

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os.write(2, b"stopped at once; the last checkpoint is valid\n")
            os._exit(Preempted.code)
        for stop in (self, *self._entered):
            stop.requested = True
        os.write(2, b"\nstopping as soon as all is saved; once more to stop at once\n")
