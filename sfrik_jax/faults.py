"""Faults on purpose, for the tests of what a run survives.

Without SFRIK_TESTING=1 in the environment nothing here does anything. With it,
SFRIK_FAULTS holds faults parted by blanks, each

    POINT[:STEP][@PROCESS]=ACTION[:ARGUMENT]

POINT is a place that calls `at`; a fault without STEP or PROCESS is for all of them.
ACTION is kill (SIGKILL of this process), term (SIGTERM to it), sleep (ARGUMENT
seconds), enospc (the system's error of a full disk), eio (of a broken one), or raise.
Each fault happens once in a process, or ARGUMENT times for enospc and eio.

Numbers that are not finite are put into the program of a training step as it is
traced (see `number_faults`), the same in all processes: no PROCESS. ACTION is nan or
inf, and POINT one of

    views=nan:SAMPLE   all pixels of the views of one sample, wherever its row is
    loss=nan           the value of the loss, and not its gradient
    gradient=inf       the first tensor of the gradient

They happen at STEP (1 for the first one) each time that it is taken, without STEP
always.
"""

import errno
import functools
import os
import re
import signal
import time
from dataclasses import dataclass

from sfrik_jax import processes

POINTS = (
    "restore",
    "data_read",
    "step",
    "before_save",
    "in_save",
    "after_commit",
    "delete",
    "metrics",
    "eval",
)
# Of a traced program.
NUMBERS = ("views", "loss", "gradient")
VALUES = ("nan", "inf")
_FAULT = re.compile(
    r"(?P<point>\w+)(:(?P<step>\d+))?(@(?P<process>\d+))?"
    r"=(?P<action>[a-z]+)(:(?P<argument>[\d.]+))?"
)
_SYSTEM = {"enospc": errno.ENOSPC, "eio": errno.EIO}


class InjectedError(Exception):
    """What the action `raise` raises: an error that nobody expects."""


@dataclass
class Fault:
    """One fault; `left` counts how often it will still happen."""

    point: str
    step: int | None
    process: int | None
    action: str
    argument: float
    left: int

    def due(self, point: str, step: int | None) -> bool:
        """Whether it happens at this place now."""
        return (
            self.left > 0
            and self.point == point
            and self.step in (None, step)
            and self.process in (None, processes.index())
        )

    def happen(self) -> None:
        """Does what the action says."""
        self.left -= 1
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.action == "sleep":
            time.sleep(self.argument)
        elif self.action in _SYSTEM:
            number = _SYSTEM[self.action]
            raise OSError(number, os.strerror(number))
        else:
            raise InjectedError(f"{self.action} at {self.point}")


def at(point: str, step: int | None = None) -> None:
    """The place `point`, of a step where there is one: what is due happens here."""
    for fault in _armed():
        if fault.due(point, step):
            fault.happen()


def of_numbers(point: str) -> tuple[Fault, ...]:
    """The faults of a point of a traced program, see `number_faults`."""
    return tuple(fault for fault in _armed() if fault.point == point)


@functools.cache
def _armed() -> tuple[Fault, ...]:
    if os.environ.get("SFRIK_TESTING") != "1":
        return ()
    return tuple(map(parse, os.environ.get("SFRIK_FAULTS", "").split()))


def parse(text: str) -> Fault:
    """A fault from its text. Errors: ValueError."""
    match = _FAULT.fullmatch(text)
    if match is None or not _means_something(match):
        raise ValueError(f"SFRIK_FAULTS: {text!r} is no POINT:STEP@PROCESS=ACTION")
    step, process = (
        None if match[name] is None else int(match[name])
        for name in ("step", "process")
    )
    argument = float(match["argument"] or 1)
    times = int(argument) if match["action"] in _SYSTEM else 1
    return Fault(match["point"], step, process, match["action"], argument, times)


def _means_something(match: re.Match[str]) -> bool:
    """Whether the action is one of the point's, with what it needs."""
    if match["point"] in NUMBERS:
        named = match["argument"] is not None
        return (
            match["action"] in VALUES
            and match["process"] is None
            and named == (match["point"] == "views")
        )
    return match["point"] in POINTS and match["action"] not in VALUES
