"""One finished shard of a feature set, read by position."""

import functools
import hashlib
import itertools
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.feature_set import layout

HASH_BYTES = 4 << 20
# NumPy's format 1.0 as NumPy writes it. Its own reader takes the header for Python
# text, and raises whatever Python's parser does about a damaged one.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([!-&(-~]+)', 'fortran_order': False, "
    rb"'shape': (\([0-9, ]*\)), \} *\n"
)


class Shard:
    """A shard with rows, whose files are opened when they are first read.

    Args:
      note: of the shard, and `about` of the set, as `described` has checked them.

    Raises:
      CorruptInputError: a file is missing, of another size than noted, or its header
        is damaged.
    """

    def __init__(
        self, folder: Path, number: int, note: Mapping[str, Any], about: dict[str, Any]
    ) -> None:
        self._folder, self._number, self._about = folder, number, about
        self.rows: int = note["rows"]
        self._files: dict[str, dict[str, Any]] = note["files"]
        for kind, noted in self._files.items():
            path = self._path(kind)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise layout.damaged(path, str(error.strerror)) from error
            if size != noted["bytes"]:
                raise layout.damaged(path, f"{size} bytes, {noted['bytes']} noted")
        self._shape = (self.rows, about["dim"])
        self._dtype = np.dtype(about["dtype"])
        self._offset = self._header(layout.FEATURES, self._shape, self._dtype)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(noted["bytes"] for noted in self._files.values())

    def _path(self, kind: str) -> Path:
        return layout.shard_path(self._folder, self._number, kind)

    def _header(self, kind: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """Where the numbers of an .npy file begin, which has to be of this form."""
        path = self._path(kind)
        try:
            with path.open("rb") as file:
                start = file.read(len(_MAGIC) + 2)
                length = struct.unpack("<H", start[-2:])[0] if len(start) == 10 else 0
                match = _HEADER.fullmatch(file.read(length))
        except OSError as error:
            raise layout.damaged(path, str(error.strerror)) from error
        if not start.startswith(_MAGIC) or not match:
            raise layout.damaged(path, "no header of NumPy's")
        found = b" ".join(match.groups()).decode("latin-1")
        due = f"{dtype.str} {shape}"
        size = len(start) + length + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if found != due or size != self._files[kind]["bytes"]:
            raise layout.damaged(path, f"{found}, and {due} is noted")
        return len(start) + length

    @functools.cached_property
    def _file(self) -> int:
        """The open file, for as long as this object lives."""
        path = self._path(layout.FEATURES)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise layout.damaged(path, str(error.strerror)) from error
        weakref.finalize(self, os.close, file)
        return file

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows, ascending and each once, as stored: adjoining ones at one go."""
        out = np.empty((len(rows), self._shape[1]), self._dtype)
        width = out.strides[0]
        data = out.reshape(-1).view(np.uint8).data
        breaks = np.flatnonzero(np.diff(rows) > 1) + 1
        edges = [0, *breaks.tolist(), len(rows)]
        for a, b in itertools.pairwise(edges):
            part = data[a * width : b * width]
            self._fill(part, self._offset + int(rows[a]) * width)
        return out

    def _fill(self, data: memoryview, position: int) -> None:
        while data:
            count = os.preadv(self._file, [data], position)
            if not count:
                raise layout.damaged(self._path(layout.FEATURES), "it became shorter")
            data, position = data[count:], position + count

    def labels(self) -> np.ndarray:
        """int32 [rows], or int8 [rows, C] of pictures of several classes."""
        path = self._path(layout.LABELS)
        shape, dtype = (self.rows,), np.dtype(np.int32)
        if self._about["multi_label"]:
            shape, dtype = (self.rows, self._about["num_classes"]), np.dtype(np.int8)
        offset = self._header(layout.LABELS, shape, dtype)
        data = self._whole(path)[offset:]
        if len(data) != self._files[layout.LABELS]["bytes"] - offset:
            raise layout.damaged(path, "it became shorter")
        return np.frombuffer(data, dtype).reshape(shape)

    def names(self) -> list[str]:
        """Names of the pictures, [rows]."""
        path = self._path(layout.NAMES)
        try:
            names = layout.parse_names(self._whole(path).decode())
        except ValueError as error:
            raise layout.damaged(path, str(error)) from error
        if len(names) != self.rows:
            raise layout.damaged(path, f"{len(names)} names of {self.rows} rows")
        return names

    def _whole(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise layout.damaged(path, str(error.strerror)) from error

    def wrong(self, read: Callable[[int], None]) -> Iterator[Path]:
        """Files whose bytes are not those noted; `read` hears of each block's bytes."""
        for kind, noted in self._files.items():
            path = self._path(kind)
            try:
                digest = _sha256(path, read)
            except OSError as error:
                raise layout.damaged(path, str(error.strerror)) from error
            if digest != noted["sha256"]:
                yield path


def _sha256(path: Path, read: Callable[[int], None]) -> str:
    """Of a file's bytes; they are read into one block, and hashed where they lie."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            read(count)
    return digest.hexdigest()
