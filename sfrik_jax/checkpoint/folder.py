"""The directory of a run's checkpoints: what is there, what stays, what is set aside.

Names are changed before anything is deleted, so that a kill in the middle leaves no
half of a checkpoint under the name of a step.
"""

import logging
import shutil
from pathlib import Path

from sfrik_jax import faults
from sfrik_jax.checkpoint import store
from sfrik_jax.files import make_folder, output_error

log = logging.getLogger("sfrik")

DELETING = ".deleting"


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def tidy_up(directory: Path) -> None:
    """Makes the directory, or removes what killed runs have left there.

    Raises:
      DiskFullError, OutputError: it cannot be made.
    """
    make_folder(directory)
    store.remove_unfinished(directory)
    for path in directory.glob(f"*{DELETING}"):
        shutil.rmtree(path, ignore_errors=True)


def delete_oldest(directory: Path, keep: int, period: int | None) -> None:
    """Deletes all but the newest `keep`, and those that `period` divides."""
    for step in steps(directory)[:-keep]:
        if period and step % period == 0:
            continue
        path = directory / str(step)
        going = path.with_name(f"{step}{DELETING}")
        try:
            path.rename(going)
            faults.at("delete", step)
            shutil.rmtree(going)
        except OSError as error:
            log.warning("%s cannot be deleted (%s)", path, error.strerror)


def set_aside(directory: Path, step: int) -> None:
    """Renames a checkpoint that failed a check, and keeps it.

    Raises:
      OutputError: the system refuses it.
    """
    path = directory / str(step)
    target, number = path.with_name(f"{step}.corrupt"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{step}.corrupt{number}")
    try:
        path.rename(target)
    except OSError as error:
        raise output_error(path, error) from error


def corrupt(directory: Path) -> list[str]:
    """The names of those that were set aside."""
    return sorted(path.name for path in directory.glob("*.corrupt*"))
