"""Disks: room, permission, and what a run asks of a file system."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sfrik_jax import files, locks
from sfrik_jax.checkpoint import Checkpoints, room
from sfrik_jax.commands.parsing import checked_output
from sfrik_jax.doctor.findings import (
    Context,
    Finding,
    failed,
    ok,
    programs_folder,
    warning,
)
from sfrik_jax.errors import DiskFullError, MachineError, OutputError

# Without a configuration: bytes that a small run, its data and its report take.
SOME_ROOM = 1_000_000_000
SOME_FILES = 10_000
SHARED = Path("/dev/shm")
SOME_SHARED = 256_000_000  # worker processes hand over some batches at a time
SLOW = 1.0  # seconds for a megabyte that is on the disk and renamed
_folders: list[Path] = []  # of the trials that go on


def disk(context: Context) -> Finding:
    """Room and inodes where runs go, and where compiled programs are kept."""
    need = needed(context)
    places = {"the workdir": (context.place, need)}
    cache = programs_folder()
    if cache is not None and cache.is_dir():
        places["compiled programs"] = (cache, SOME_ROOM // 10)
    told = []
    for what, (place, least) in places.items():
        free = room.free_bytes(place)
        inodes = os.statvfs(place)
        told.append(f"{room.words(free)} free for {what} ({place})")
        if free < least:
            return failed(
                f"{told[-1]}, {room.words(least)} are needed",
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
    """Bytes of the checkpoints that a run has yet to write, as it asks for them."""
    if context.config is None:
        return SOME_ROOM
    settings = context.config.checkpoint
    # Both in epochs: the number of pictures does not matter.
    period = settings.milestone_epochs
    milestones = context.config.optim.epochs // period if period else 0
    place = context.workdir / "checkpoints"
    stored = len(Checkpoints(place, read_only=True).steps())
    count = room.count_needed(settings.keep, stored, milestones)
    return count * room.bytes_of(context.traced.parts.state) + SOME_ROOM // 10


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
                MachineError.code,
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
        made = tempfile.TemporaryDirectory(dir=context.place, prefix=".doctor-")
    except OSError as error:
        raise files.output_error(context.place, error) from error
    with made as name:
        _folders.append(Path(name))
        try:
            yield Path(name)
        finally:
            _folders.pop()


def remove_trials() -> None:
    """Before the process ends at once, while a check may still be in C++."""
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


def shared_memory(context: Context) -> Finding:
    """Room in which worker processes hand over pictures."""
    if not SHARED.is_dir():
        return ok("this system has no /dev/shm; workers do without")
    free = shutil.disk_usage(SHARED).free
    if free < SOME_SHARED:
        return warning(
            f"{room.words(free)} free in {SHARED}, which worker processes share",
            "give the container more (docker run --shm-size=8g), or set "
            "data.worker_type=threads",
        )
    return ok(f"{room.words(free)} free in {SHARED} for worker processes")
