"""Checkpoints of a run: saved whole or not at all, verified before use.

    checkpoints/120/state …       the arrays, by Orbax
    checkpoints/120/meta …        dtype, shape and digest of each leaf, and versions
    checkpoints/120/manifest.json SHA-256 of each file
    checkpoints/120.corrupt/      one that failed a check: kept, and never read again

A directory gets the name of its step at the end, by one rename. A checkpoint that fails
a check is renamed and the one before it is taken; a run whose checkpoints are all bad
stops: it never starts afresh in silence.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfrik_jax import faults, processes
from sfrik_jax.checkpoint import description, folder, manifest, room, store
from sfrik_jax.errors import (
    CorruptInputError,
    DiskFullError,
    MismatchError,
    MissingInputError,
    Preempted,
    SfrikError,
)

log = logging.getLogger("sfrik")


class Checkpoints:
    """The checkpoints of one run directory.

    All processes of a job save and restore, each what its devices hold.

    Args:
      directory: created when missing. What killed runs have left behind is removed.
      keep: the newest ones that stay, at least 2.
      keep_period: steps divisible by it stay for good (milestones); None for none.
      read_only: another process may be writing here: nothing is changed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        keep_period: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._keep, self._keep_period = keep, keep_period
        self._read_only = read_only
        self._remedy = "evaluate another checkpoint"
        self._saving: int | None = None  # the step whose save goes on
        self._size = 0
        self._failure: SfrikError | None = None  # of the last save
        if read_only:
            return
        self._remedy = (
            "nothing is deleted. Look at the disk, or start in another --workdir"
        )
        if processes.first():
            folder.tidy_up(self.directory)
        processes.barrier()
        self._writer = store.Writer(self._list_files)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_) -> None:
        # A save that other processes have left would wait for them.
        together = error is None or (isinstance(error, Preempted) and error.of_all)
        if self._read_only or not (together or processes.count() == 1):
            return
        with contextlib.suppress(*() if error is None else (Exception,)):
            self._finish()
            if self._failure is not None:
                raise self._failure
        self._writer.close()

    def steps(self) -> list[int]:
        """The steps that are stored, oldest first."""
        return folder.steps(self.directory)

    def require_room(self, abstract: Any, milestones: int = 0) -> None:
        """Refuses to begin what the disk cannot hold.

        Args:
          abstract: shapes and dtypes of the state.
          milestones: checkpoints that the whole run keeps for good.

        Raises:
          DiskFullError: not enough is free for all of them, and one more while the
            oldest is still there.
        """
        size = room.bytes_of(abstract)
        stored, free = processes.from_first(
            lambda: (len(self.steps()), room.free_bytes(self.directory))
        )
        count = room.count_needed(self._keep, stored, milestones)
        if free < count * size:
            raise processes.of_all(
                DiskFullError(
                    f"{self.directory} has {room.words(free)} free, and "
                    f"{room.words(count * size)} are needed for {count} checkpoints of "
                    f"{room.words(size)}; make room, lower checkpoint.keep, or name "
                    "another --workdir"
                )
            )

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Stores `state` under `step` in the background, or waits for the disk.

        A step that is already stored is left as it is. A save that fails leaves the
        ones before it as they are, and is tried again once: at once with `wait`, else
        by the next call (see `failed`). Of several processes none tries again.

        Raises:
          DiskFullError: no room is left. OutputError: the disk refuses it otherwise.
        """
        self._finish()
        # Of the first process: another host's listing may be older.
        while step not in processes.from_first(self.steps):
            self._delete_oldest()
            self._start(step, state)
            if not wait:
                return
            self._finish()

    def failed(self) -> bool:
        """Whether the last save failed, so that the state of this step is to be saved.

        It waits for nothing. Raises: as `save`, where it is the second in a row.
        """
        if self._saving is not None:
            try:
                self._writer.check()
            except Exception as error:
                self._note(error)
        return self._failure is not None and self._saving is None

    def restore(self, abstract: Any, only: int | None = None) -> Any | None:
        """The newest state that is whole, or None where nothing was ever saved.

        Args:
          abstract: the tree of ShapeDtypeStructs with shardings to restore into.
          only: the step of one checkpoint; no other will do.

        Raises:
          CorruptInputError: checkpoints are there and none is whole.
          MismatchError: one is whole, of other leaves, dtypes or shapes than
            `abstract`, or of another format.
          MissingInputError: `only` is deleted by the run that writes here.
        """
        bad: dict[int, str] = {}
        stored = processes.from_first(self.steps) if only is None else [only]
        for step in reversed(stored):
            faults.at("restore", step)
            state, problem = self._restore_step(step, abstract)
            if not problem:
                self._set_aside(bad, step)
                return state
            bad[step] = problem
        if self._read_only and not all(map(self._is_there, bad)):
            return self._restore_again(abstract, only)
        # Also those that an earlier start set aside: a second try is no fresh start.
        told = [f"step {step}: {problem}" for step, problem in bad.items()]
        told = told or processes.from_first(lambda: folder.corrupt(self.directory))
        if told:
            raise processes.of_all(
                CorruptInputError(
                    f"no checkpoint in {self.directory} is whole ({'; '.join(told)}); "
                    + self._remedy
                )
            )
        return None

    def _restore_again(self, abstract: Any, only: int | None) -> Any | None:
        """What was read has been deleted meanwhile by the run that writes here."""
        if only is None:
            return self.restore(abstract)
        raise MissingInputError(
            f"the checkpoint {self.directory / str(only)} was deleted while it was "
            "read; name a newer one"
        )

    def _set_aside(self, bad: Mapping[int, str], used: int) -> None:
        """Renames those that failed, now that an older one is whole.

        Not before: where none can be read, the disk may be to blame, and not they.
        """
        for step, problem in bad.items():
            log.warning(
                "SFRIK-CKPT-CORRUPT step %d: %s; using step %d", step, problem, used
            )
        if bad and not self._read_only:
            if processes.first():
                for step in bad:
                    folder.set_aside(self.directory, step)
            processes.barrier()

    def _is_there(self, step: int) -> bool:
        return (self.directory / str(step)).is_dir()

    def _restore_step(self, step: int, abstract: Any) -> tuple[Any, str]:
        """A state, or why it is not to be used."""
        path = self.directory / str(step)
        problem = processes.from_first(lambda: manifest.problem(path))
        if problem:
            return None, problem
        meta, problem = _read(lambda: description.checked(store.read_meta(path)))
        if problem:
            return None, problem
        unfit = description.mismatch(meta, abstract)
        if unfit:
            raise processes.of_all(
                MismatchError(
                    f"checkpoint {path} does not fit this program: {unfit}; use the "
                    "program and the configuration that wrote it, or another --workdir"
                )
            )
        state, problem = _read(lambda: store.read_state(path, abstract))
        if problem:
            return None, problem
        leaf = description.damaged_leaf(meta, state)
        return (None, f"leaf {leaf} digest mismatch") if leaf else (state, "")

    def _start(self, step: int, state: Any) -> None:
        self._saving, self._size = step, room.bytes_of(state)
        try:
            faults.at("before_save", step)
            meta = description.describe(state)
            self._writer.start(self.directory / str(step), state, meta)
        except Exception as error:
            self._note(error)

    def _finish(self) -> None:
        """Waits for the save that goes on; then the oldest are deleted."""
        if self._saving is None:
            return
        try:
            self._writer.wait()
        except Exception as error:
            self._note(error)
            return
        step, self._saving, self._failure = self._saving, None, None
        faults.at("after_commit", step)
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        if processes.first():
            folder.delete_oldest(self.directory, self._keep, self._keep_period)

    def _list_files(self, directory: Path) -> None:
        faults.at("in_save", self._saving)
        manifest.write(directory)

    def _note(self, error: Exception) -> None:
        """Cleans up after a save that failed; raises where it is not tried again."""
        step, self._saving = self._saving, None
        about = error if isinstance(error, SfrikError) else room.of_the_disk(error)
        if about is None:
            raise error
        for path in store.unfinished(self.directory, str(step)):
            shutil.rmtree(path, ignore_errors=True)
        stored = self.steps()
        kept = f"step {stored[-1]} is kept" if stored else "none is stored"
        failure = room.told(about, step, self.directory, self._size, kept)
        if self._failure is not None or processes.count() > 1:
            raise failure from error
        self._failure = failure
        log.warning("%s; it is tried once more", failure)


def _read(read: Callable[[], Any]) -> tuple[Any, str]:
    """What all processes can read, or why one of them cannot."""
    found, problem = None, ""
    try:
        found = read()
    # Single flipped bits made Orbax raise AttributeError and Exception itself.
    except Exception as error:
        if store.of_the_machine(error):
            raise
        problem = f"cannot be read ({repr(error)[:200]})"
    return found, next(filter(None, processes.gather(problem)), "")
