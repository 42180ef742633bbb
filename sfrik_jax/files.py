"""A file is written whole or not at all, and what the system refuses is one line."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

from sfrik_jax.errors import DiskFullError, OutputError

# What the system says where no room is left, on the disk or in the user's share of it.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file at once: no reader sees half of it, no crash leaves half.

    A new file with a name that no other has is written beside it, is on the disk before
    it takes the name, and goes where that fails.

    Raises:
      DiskFullError: no room is left.
      OutputError: the system refuses it otherwise.
    """
    # Short, as a name of 255 bytes is the longest that most file systems take.
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise output_error(path, error) from error


def make_folder(path: Path) -> None:
    """Makes a directory and those above it. Raises: as `write_whole`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> DiskFullError | OutputError:
    """What the system refuses, as one of our errors."""
    if error.errno in NO_ROOM:
        return DiskFullError(
            f"the disk of {path} is full; make room or name another place"
        )
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}); name another place"
    )
