"""Orbax: a directory of items that is written whole or not at all, and is read back.

`CheckpointManager` deletes what it keeps no longer by itself and in place, and its
restore waits at its end for all processes, for ever where one of them has failed. So
only the writer and the handlers of the items are taken.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

log = logging.getLogger("sfrik")

UNFINISHED = "*.orbax-checkpoint-tmp*"


class _Unraised(logging.Filter):
    """Passes what Orbax says, but for the errors that it raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in Path(record.pathname).parts)


_UNRAISED = _Unraised()


class Writer:
    """Writes checkpoints in the background, one at a time.

    Args:
      before_name: called in process 0 with the directory once all is written into it,
        and before it gets its name; what it raises, the save raises.
    """

    def __init__(self, before_name: Callable[[Path], None]) -> None:
        self._before_name = before_name
        self._path = Path()
        logging.getLogger("absl").addFilter(_UNRAISED)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._written
            ),
        )

    def start(self, path: Path, state: Any, meta: Mapping[str, Any]) -> None:
        """Takes a copy of the state and returns; the save goes on in the background.

        Raises: what went wrong with this save or the one before.
        """
        self._path = path
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
        )
        self._orbax.save(path, args=items)

    def check(self) -> None:
        """Raises what went wrong meanwhile."""
        self._orbax.check_for_errors()

    def wait(self) -> None:
        """Waits for the disk. Raises: as `check`."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self._orbax.close()

    def _written(self) -> None:
        [directory] = unfinished(self._path.parent, self._path.name)
        self._before_name(directory)


def unfinished(directory: Path, name: str = "*") -> list[Path]:
    """The directories of saves that did not come to their end."""
    return sorted(directory.glob(f"{name}{UNFINISHED[1:]}"))


def remove_unfinished(directory: Path) -> None:
    """Removes what saves have left behind that did not come to their end."""
    for path in unfinished(directory):
        shutil.rmtree(path, ignore_errors=True)
        log.warning("removed %s of a save that did not come to its end", path)


def read_meta(path: Path) -> dict[str, Any]:
    """The item `meta`. Raises: whatever Orbax makes of a damaged file."""
    read: Any = ocp.JsonCheckpointHandler().restore
    return read(path / "meta", args=ocp.args.JsonRestore())


def read_state(path: Path, abstract: Any) -> Any:
    """The item `state`, placed as `abstract` is. Raises: as `read_meta`."""
    read: Any = ocp.StandardCheckpointHandler().restore
    return read(path / "state", args=ocp.args.StandardRestore(abstract))


def of_the_machine(error: Exception) -> bool:
    """Whether an error of reading is no fault of the checkpoint."""
    return isinstance(error, (MemoryError, jax.errors.JaxRuntimeError))
