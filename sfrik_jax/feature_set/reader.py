"""Reading a feature set row by row, whole only where the caller asks for that.

The files can be mapped into memory, and are read by position instead: pages of a map
count as the process's memory (141 MB after 512 random rows of 8 KiB from a set of
400 MiB), and a file that gets shorter while it is mapped ends the process.
"""

import functools
import hashlib
import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.errors import MissingInputError
from sfrik_jax.feature_set import layout

BLOCK_ROWS = 4096


class FeatureSet:
    """Features [N, d] on the disk; indexed like an array, which reads those rows.

    `x[a:b]`, `x[integers]`, `x[mask]` and `x[i]` give float32 arrays of their own. Rows
    come in the order asked for and are read in the order of the disk.

    Args:
      path: the directory.

    Raises:
      MissingInputError: there is no feature set, or not all of it.
      CorruptInputError: a file has another size than noted, or a damaged header;
        `verify` looks at all bytes.
    """

    dtype = np.dtype(np.float32)  # of what is read; `about` tells the stored one
    ndim = 2

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.about = self._read_about()
        count = layout.shard_count(self.about["rows"], self.about["shard_rows"])
        notes = self._read_notes(count)
        about = self.path / layout.ABOUT
        if not any(note["rows"] for note in notes):
            raise layout.damaged(about, "all pictures were left out")
        _require(self.about, ("dim", "labelled", "multi_label", "num_classes"), about)
        # A shard whose pictures were all left out has no files.
        self._shards = [
            _Shard(self.path, number, note, self.about)
            for number, note in enumerate(notes)
            if note["rows"]
        ]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])

    def _read_about(self) -> dict[str, Any]:
        path = self.path / layout.ABOUT
        try:
            about = layout.read_json(path)
        except OSError as error:
            raise MissingInputError(
                f"no feature set in {self.path} ({layout.ABOUT}: {error.strerror}); "
                "make one with the features command"
            ) from error
        if about.get("format") != layout.FORMAT:
            raise layout.damaged(
                path, f"format {about.get('format')!r}, not {layout.FORMAT}"
            )
        _require(
            about, ("rows", "shard_rows", "dtype", "class_names", "identity"), path
        )
        return about

    def _read_notes(self, count: int) -> list[dict[str, Any]]:
        notes = []
        for number in range(count):
            path = layout.shard_path(self.path, number, "json")
            try:
                note = layout.read_json(path)
            except FileNotFoundError:
                continue
            _require(note, ("rows", "files"), path)
            notes.append(note)
        if len(notes) < count:
            raise MissingInputError(
                f"{self.path} has {len(notes)} of {count} shards of features; run the "
                "features command again, which makes the others"
            )
        return notes

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d); N is less than about["rows"] where bad pictures were left out."""
        return len(self), int(self.about["dim"])

    @property
    def multi_label(self) -> bool:
        """Whether a picture may have several classes, or none."""
        return bool(self.about["multi_label"])

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, [C], if they were stored."""
        return self.about["class_names"]

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        if self.labels is None:
            return None
        return self.about["num_classes"] or int(self.labels.max()) + 1

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [N]; int8 [N, C] of 1, 0, -1 (difficult) if multi-label; or None."""
        if not self.about["labelled"]:
            return None
        return np.concatenate([shard.labels() for shard in self._shards])

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the pictures, [N]."""
        return [name for shard in self._shards for name in shard.names()]

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """All rows in order: float32 [<= size, d] each."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._range(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask of shape {chosen.shape} for {len(self)} rows")
            return self._gather(np.flatnonzero(chosen))
        if chosen.ndim > 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise IndexError(
                f"rows are chosen by a slice, integers [n] or a mask, not by "
                f"{chosen.dtype} {list(chosen.shape)}"
            )
        rows = self._gather(np.atleast_1d(chosen).astype(np.int64))
        return rows if chosen.ndim else rows[0]

    def _range(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.shape[1]), np.float32)
        for shard, first in zip(self._shards, self._starts, strict=False):
            a, b = max(start, first), min(stop, first + shard.rows)
            if a < b:
                out[a - start : b - start] = shard.read(np.arange(a, b) - first)
        return out

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        wrong = (rows < -len(self)) | (rows >= len(self))
        if wrong.any():
            raise IndexError(f"row {rows[wrong][0]} of {len(self)} features")
        rows = np.where(rows < 0, rows + len(self), rows)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for number, shard in enumerate(self._shards):
            places = order[bounds[number] : bounds[number + 1]]
            if len(places):
                once, again = np.unique(rows[places], return_inverse=True)
                out[places] = shard.read(once - self._starts[number])[again]
        return out

    def verify(self) -> None:
        """Reads every byte and holds it against the noted SHA-256.

        Raises:
          CorruptInputError: files differ; names the first, and tells how many.
        """
        wrong = [path for shard in self._shards for path in shard.wrong()]
        if wrong:
            raise layout.damaged(wrong[0], f"SHA-256 differs; {len(wrong)} such files")


def _require(value: dict[str, Any], keys: Sequence[str], path: Path) -> None:
    """CorruptInputError where a JSON file lacks keys."""
    missing = [key for key in keys if key not in value]
    if missing:
        raise layout.damaged(path, f"without {', '.join(missing)}")


class _Shard:
    """One finished shard, opened when its rows are first read."""

    def __init__(
        self, folder: Path, number: int, note: dict[str, Any], about: dict[str, Any]
    ) -> None:
        self._folder, self._number = folder, number
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
        kinds = {layout.FEATURES, layout.NAMES}
        kinds |= {layout.LABELS} if about.get("labelled") else set()
        if kinds != self._files.keys():
            raise layout.damaged(self._path("json"), "lists other files than are due")
        self._shape = (self.rows, about["dim"])
        self._dtype = np.dtype(about["dtype"])
        self._offset = self._read_header()

    def _path(self, kind: str) -> Path:
        return layout.shard_path(self._folder, self._number, kind)

    def _read_header(self) -> int:
        path = self._path(layout.FEATURES)
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
        except ValueError as error:
            raise layout.damaged(path, str(error)) from error
        if shape != self._shape or dtype != self._dtype:
            raise layout.damaged(path, f"{dtype} {list(shape)}, not as noted")
        return offset

    @functools.cached_property
    def _file(self) -> int:
        """The open file, for as long as this object lives."""
        file = os.open(self._path(layout.FEATURES), os.O_RDONLY)
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
        path = self._path(layout.LABELS)
        try:
            labels = np.load(path, allow_pickle=False)
        except (ValueError, OSError) as error:
            raise layout.damaged(path, str(error)) from error
        if len(labels) != self.rows:
            raise layout.damaged(path, f"{len(labels)} labels of {self.rows} rows")
        return labels

    def names(self) -> list[str]:
        path = self._path(layout.NAMES)
        try:
            names = layout.parse_names(path.read_bytes().decode())
        except ValueError as error:
            raise layout.damaged(path, str(error)) from error
        if len(names) != self.rows:
            raise layout.damaged(path, f"{len(names)} names of {self.rows} rows")
        return names

    def wrong(self) -> Iterator[Path]:
        """Files whose bytes are not those noted."""
        for kind, noted in self._files.items():
            with self._path(kind).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != noted["sha256"]:
                yield self._path(kind)
