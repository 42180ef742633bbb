"""Lists of SHA-256 sums: `sum  id` a line, the form of sha256sum."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sfrik_jax.errors import (
    CorruptInputError,
    DiskFullError,
    MissingInputError,
    OutputError,
)
from sfrik_jax.files import NO_ROOM

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class HashList:
    """A list that was written earlier, and what was seen of it."""

    def __init__(self, path: Path, sums: dict[str, bytes]) -> None:
        self._path, self._sums = path, sums

    @classmethod
    def read(cls, path: Path) -> "HashList":
        """Errors: MissingInputError, or CorruptInputError for another kind of file."""
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise MissingInputError(
                f"--against {path}: {error.strerror}; write a list with --hashes"
            ) from error
        sums = {}
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise CorruptInputError(
                    f"--against {path}: line {number} is no SHA-256 sum and id; write "
                    "the list again with --hashes"
                )
            sums[match[2]] = bytes.fromhex(match[1])
        return cls(path, sums)

    def compare(self, name: str, digest: str | None) -> str | None:
        """What is wrong with a picture, if anything; it counts as seen.

        Args:
          digest: its sum in hexadecimal digits; None where it could not be read.
        """
        known = self._sums.pop(name, None)
        if digest is None:
            return None
        if known is None:
            return f"{self._path} does not list it"
        if known != bytes.fromhex(digest):
            return f"its SHA-256 sum is not that of {self._path}"
        return None

    def unseen(self) -> list[str]:
        """Listed pictures that were not asked for."""
        return sorted(self._sums)


@contextlib.contextmanager
def writing(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Takes lines for a list that appears whole at the end, or not at all.

    Raises:
      OutputError, DiskFullError: the list cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    partial = path.with_name(path.name + ".partial")
    with _told(path):
        file = partial.open("w", encoding="utf-8", errors="surrogateescape")

    def put(line: str) -> None:
        with _told(path):
            file.write(line)

    try:
        yield put
        with _told(path):
            file.close()
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(
                f"--hashes {path}: the disk is full; make room or name another place"
            ) from error
        raise OutputError(
            f"--hashes {path} cannot be written ({error.strerror}); name another place"
        ) from error
