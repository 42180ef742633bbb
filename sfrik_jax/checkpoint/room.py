"""Room on the disk: how much checkpoints need, and what says that there is none."""

import errno
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax

from sfrik_jax.files import NO_ROOM

# Metadata and digests take this much; the values do not compress.
_RESERVE = 2**20
# What the system and the libraries below Orbax say. A file that is longer than the
# process may write is too large in the same way.
_FULL = re.compile(
    r"no space left|quota exceeded|file too large|os_error_code='(28|122|27)'", re.I
)


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


def is_full(error: BaseException) -> bool:
    """Whether an error of writing means that no room is left."""
    number = getattr(error, "errno", None)
    return number in (*NO_ROOM, errno.EFBIG) or bool(_FULL.search(str(error)))


def words(count: int) -> str:
    """A number of bytes with its unit: "1.5 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1000:,.0f} kB"
