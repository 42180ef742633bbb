"""A lock that the system drops with its process, so that none gets stale."""

import fcntl
import os
import socket
import time
from pathlib import Path

from sfrik_jax.errors import OutputError


class Lock:
    """Holds a file until it is closed; the file says who holds it.

    Args:
      path: of the lock; its directory exists.
      what: is locked, for the message. remedy: what to do about that.

    Raises:
      OutputError: another process holds it.
      OSError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise OutputError(f"{what} is locked by {holder}; {remedy}") from error
        self._file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"{socket.gethostname()} pid {os.getpid()} since {since}\n")
        self._file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets go; the file stays, for the next one."""
        self._file.close()
