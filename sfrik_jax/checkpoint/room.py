"""Room on the disk: how much checkpoints need, and what says that there is none."""

import errno
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax

from sfrik_jax.errors import DiskFullError, OutputError, SfrikError
from sfrik_jax.files import NO_ROOM, output_error

# Metadata and digests take this much; the values do not compress.
_RESERVE = 2**20
# The system's number in the words of tensorstore, which knows no OSError.
_NUMBER = re.compile(r"os_error_code='(\d+)'")


def bytes_of(state: Any) -> int:
    """Of one checkpoint of a state, or of its shapes and dtypes."""
    leaves = jax.tree.leaves(state)
    values = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return values + values // 100 + _RESERVE


def count_needed(keep: int, stored: int, milestones: int) -> int:
    """Checkpoints that a run has yet to find room for.

    The newest `keep`, those kept for good and one that is being written, less those
    that are there already; at least the next one.
    """
    return max(1, keep + 1 + milestones - stored)


def free_bytes(path: Path) -> int:
    """Of the file system of a directory, for this user."""
    return shutil.disk_usage(path).free


def of_the_disk(error: BaseException) -> OSError | None:
    """An error of writing as the system means it; None where it is none."""
    if isinstance(error, OSError):
        return error
    found = _NUMBER.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def is_full(error: OSError) -> bool:
    """Whether no room is left, or a file is longer than this process may write."""
    return error.errno in (*NO_ROOM, errno.EFBIG)


def told(
    error: OSError | SfrikError, step: int | None, directory: Path, size: int, kept: str
) -> SfrikError:
    """What the failed save of a step means for the user.

    Args: size: of the checkpoint. kept: what the directory still holds, in words.
    """
    if isinstance(error, DiskFullError) or (
        isinstance(error, OSError) and is_full(error)
    ):
        return DiskFullError(
            f"the disk is full: the checkpoint of step {step} does not fit into "
            f"{directory} ({words(size)} needed, {words(free_bytes(directory))} free); "
            f"{kept}. Make room and run the same command again"
        )
    if isinstance(error, SfrikError):
        return error
    return OutputError(f"{output_error(directory, error)}; {kept}")


def words(count: int) -> str:
    """A number of bytes with its unit: "1.5 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1000:,.0f} kB"
