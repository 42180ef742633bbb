"""A file of a shard while it is written, and what the system says against it."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfrik_jax.errors import DiskFullError, OutputError
from sfrik_jax.feature_set import layout
from sfrik_jax.files import NO_ROOM


class ShardFile:
    """A file of a shard, row after row; an .npy of them gets its length at the end.

    Args:
      path: where it is put once it is whole; until then ".partial" is appended. What
        was not finished when the context ends is deleted.
      rows: the first ones, which tell the kind: an array, or names. Not yet added.
    """

    def __init__(self, path: Path, rows: Any) -> None:
        self._path, self._partial = path, layout.partial(path)
        self._file: BinaryIO = self._partial.open("wb")
        self._count = 0
        self._add: Callable[[Any], None] = self._add_names
        if isinstance(rows, np.ndarray):
            self._add = self._add_array
            self._dtype, self._shape = rows.dtype, rows.shape[1:]
            self._write_header()

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *_) -> None:
        # On a full disk closing fails again, at the bytes that are still to go.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, rows: Any) -> None:
        """Appends an array [b, …], or names [b]."""
        self._add(rows)
        self._count += len(rows)

    def finish(self) -> dict[str, Any]:
        """Moves the whole file to its place: bytes and SHA-256."""
        if self._add == self._add_array:
            # NumPy leaves room in the header for a length of 21 digits.
            self._file.seek(0)
            self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._partial.stat().st_size
        self._partial.replace(self._path)
        return {"bytes": size, "sha256": digest}

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def _add_array(self, rows: np.ndarray) -> None:
        self._file.write(rows.data)

    def _add_names(self, names: Sequence[str]) -> None:
        self._file.write("".join(map(layout.name_line, names)).encode())


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Tells what the system refuses as one of our errors."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(
                f"the disk of {path} is full; what is finished is kept: make room and "
                "run the command again"
            ) from error
        raise OutputError(f"feature set {path}: {error.strerror}") from error
