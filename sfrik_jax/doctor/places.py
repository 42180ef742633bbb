"""Disks: room, permission, and what a run asks of a file system."""

import contextlib
import errno
import fcntl
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from sfrik_jax import files, locks
from sfrik_jax.commands.parsing import checked_output
from sfrik_jax.doctor.findings import (
    Context,
    Finding,
    failed,
    ok,
    programs_folder,
    size,
    warning,
)
from sfrik_jax.errors import DiskFullError, OutputError

# Without a configuration: bytes that a small run, its data and its report take.
SOME_ROOM = 1_000_000_000
SOME_FILES = 10_000
SHARED = Path("/dev/shm")
SOME_SHARED = 256_000_000  # worker processes hand over some batches at a time
SLOW = 1.0  # seconds for a megabyte that is on the disk and renamed


def disk(context: Context) -> Finding:
    """Room and inodes where runs go, and where compiled programs are kept."""
    need = needed(context)
    places = {"the workdir": (context.place, need)}
    cache = programs_folder()
    if cache is not None and cache.is_dir():
        places["compiled programs"] = (cache, SOME_ROOM // 10)
    told = []
    for what, (place, room) in places.items():
        free = shutil.disk_usage(place).free
        inodes = os.statvfs(place)
        told.append(f"{size(free)} free for {what} ({place})")
        if free < room:
            return failed(
                f"{told[-1]}, {size(room)} are needed",
                "make room or name another place with --workdir",
                DiskFullError.code,
            )
        if inodes.f_files and inodes.f_favail < SOME_FILES:
            return failed(
                f"{place} takes only {inodes.f_favail} more files",
                "delete some or name another place with --workdir",
                DiskFullError.code,
            )
    return ok(", ".join(told))


def needed(context: Context) -> int:
    """Bytes of the checkpoints that a run keeps, and of one that is being written."""
    if context.config is None:
        return SOME_ROOM
    state = context.traced.parts.state
    one = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return (context.config.checkpoint.keep + 1) * one + SOME_ROOM // 10


def writing(context: Context) -> Finding:
    """Files are written, flushed to the disk, renamed, locked and deleted."""
    checked_output(str(context.workdir), "--workdir")
    if context.workdir.exists() and not context.workdir.is_dir():
        raise OutputError(f"--workdir {context.workdir} is a file; name a directory")
    with trial_folder(context) as folder:
        begin = time.perf_counter()
        files.write_whole(folder / "file", bytes(1_000_000))
        files.write_whole(folder / "file", b"second")
        seconds = time.perf_counter() - begin
        if (folder / "file").read_bytes() != b"second":
            return failed(
                f"{context.place} does not give back what was written",
                "name a directory on another disk with --workdir",
                OutputError.code,
            )
        words = f"{context.place} takes files ({seconds * 1000:.0f} ms for a megabyte"
        words += " on the disk, renamed)"
        if not _locks(folder):
            return warning(
                f"{words}, and has no locks: a run claims its directory by a file "
                "instead",
                "mount it with the option flock, or name another disk",
            )
    if seconds > SLOW:
        return warning(words, "a faster disk makes checkpoints faster")
    return ok(f"{words}, and has locks")


def _locks(folder: Path) -> bool:
    """Whether a second opening of a locked file is refused the lock."""
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in locks.NO_LOCKS:
                return False
            return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    return False


@contextlib.contextmanager
def trial_folder(context: Context) -> Iterator[Path]:
    """A directory for trials where runs go, removed at the end."""
    try:
        with tempfile.TemporaryDirectory(dir=context.place, prefix=".doctor-") as name:
            yield Path(name)
    except OSError as error:
        raise files.output_error(context.place, error) from error


def shared_memory(context: Context) -> Finding:
    """Room in which worker processes hand over pictures."""
    if not SHARED.is_dir():
        return ok("this system has no /dev/shm; workers do without")
    free = shutil.disk_usage(SHARED).free
    if free < SOME_SHARED:
        return warning(
            f"{size(free)} free in {SHARED}, which worker processes share",
            "give the container more (docker run --shm-size=8g), or set "
            "data.worker_type=threads",
        )
    return ok(f"{size(free)} free in {SHARED} for worker processes")
