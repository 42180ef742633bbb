"""How far a long command is: one line on a terminal, a line now and then elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


class Progress:
    """Tells on stderr what was done, from a thread of its own, while it is entered.

    Args:
      title: what is going on.
      folders: without counts, their growing size is told.
      interval: seconds between lines that are not on a terminal; the first comes after
        as many.
    """

    def __init__(
        self, title: str, folders: Sequence[Path] = (), *, interval: float = 30.0
    ) -> None:
        self._title, self._folders = title, folders
        self._what, self._done, self._total = "", 0, 0
        self._start = self._part_start = time.monotonic()
        self._stop = threading.Event()
        console = Console(file=sys.stderr)
        self._status = None
        if console.is_terminal:
            self._status = console.status(title)
        self._interval = 1.0 if self._status else interval
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if self._status is not None:
            self._status.stop()

    def count(self, what: str, done: int, total: int) -> None:
        """Notes how many pictures of a part are done, of how many (0: not known)."""
        if what != self._what:
            self._what, self._part_start = what, time.monotonic()
        self._done, self._total = done, total

    def line(self) -> str:
        """What is told now."""
        now = time.monotonic()
        clock = time.strftime("%H:%M:%S", time.gmtime(now - self._start))
        if not self._what:
            size = sum(_size(folder) for folder in self._folders)
            return f"{self._title}: {size:,} bytes, {clock}"
        of = f" of {self._total:,}" if self._total else ""
        rate = self._done / max(now - self._part_start, 1e-9)
        return f"{self._title}: {self._what} {self._done:,}{of}, {rate:,.0f}/s, {clock}"

    def _tell(self) -> None:
        while not self._stop.wait(self._interval):
            if self._status is not None:
                self._status.update(self.line())
            else:
                print(self.line(), file=sys.stderr, flush=True)


def _size(folder: Path) -> int:
    """Bytes of all files below a folder that may change meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
