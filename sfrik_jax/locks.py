"""A lock that ends with its process, so that none gets stale."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from sfrik_jax import files
from sfrik_jax.errors import DiskFullError, OutputError

# What file systems say that have no locks, such as Lustre without the option flock.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Seconds between two signs of life of a claim; without one for so long it is stale;
# in which a claim that another host wrote at the same time is seen.
BEAT, STALE, SETTLE = 5.0, 20.0, 2.0


class Lock:
    """Holds a file until it is closed; the file says who holds it.

    The system drops it with the process. Where the file system has no locks, a `Claim`
    beside the file replaces it.

    Args:
      path: of the lock; its directory exists.
      what: is locked, for the message. remedy: what to do about that.

    Raises:
      OutputError: another process holds it.
      OSError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        self._claim = None
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise OutputError(f"{what} is locked by {holder}; {remedy}") from error
        except OSError as error:
            self._file.close()
            if error.errno not in NO_LOCKS:
                raise
            self._claim = Claim(path.with_name(f"{path.name}.claim"), what, remedy)
            return
        self._file.truncate(0)
        self._file.write(f"{_holder()}\n")
        self._file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets go; the file stays, for the next one."""
        self._file.close()
        if self._claim is not None:
            self._claim.close()


def is_locked(path: Path) -> bool | None:
    """Whether a process holds a file's lock; None where the file system has no locks.

    It asks with a shared lock, so that two who ask do not take each other for a holder,
    and writes nothing. A file that cannot be opened is held by nobody.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return None if error.errno in NO_LOCKS else False
    return False


class Claim:
    """A file that says who is at work and, every five seconds, that it still is.

    It takes no clock that two hosts share: a claim is stale when its text stays the
    same for as long as one looks. Weaker than a lock: a process that was suspended for
    longer is taken for dead.

    Raises:
      OutputError: another process holds it.
      OSError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        self._path, self._token = path, f"{_holder()} {secrets.token_hex(8)}"
        self._wait_for_its_end(what, remedy)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self._line(0))
            time.sleep(SETTLE)
            mine = self._text().startswith(self._token)
        except FileExistsError:
            mine = False
        if not mine:
            raise OutputError(f"{what} is locked by {self._who()}; {remedy}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the signs of life and lets go."""
        self._over.set()
        self._thread.join()
        if self._text().startswith(self._token):
            self._path.unlink(missing_ok=True)

    def _wait_for_its_end(self, what: str, remedy: str) -> None:
        before, end = self._text(), time.monotonic() + STALE
        while self._path.exists() and time.monotonic() < end:
            time.sleep(min(BEAT, STALE) / 10)
            if self._text() not in (before, ""):
                raise OutputError(f"{what} is locked by {self._who()}; {remedy}")

    def _live(self) -> None:
        beat = 0
        while not self._over.wait(BEAT):
            beat += 1
            # A moment without the file system is no reason to end a run.
            with contextlib.suppress(OSError, DiskFullError):
                if self._text().startswith(self._token):
                    # At once, so that nobody reads an empty claim.
                    files.write_whole(self._path, self._line(beat).encode())

    def _line(self, beat: int) -> str:
        return f"{self._token} {beat}\n"

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _who(self) -> str:
        return " ".join(self._text().split()[:-2]) or "another process"


def _holder() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"{socket.gethostname()} pid {os.getpid()} since {since}"
