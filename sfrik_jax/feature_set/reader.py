"""Reading a feature set row by row, whole only where the caller asks for that.

The files can be mapped into memory, and are read by position instead: pages of a map
count as the process's memory (141 MB after 512 random rows of 8 KiB from a set of
400 MiB), and a file that gets shorter while it is mapped ends the process.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.feature_set import described, layout
from sfrik_jax.feature_set.shard import Shard

BLOCK_ROWS = 4096


class FeatureSet:
    """Features [N, d] on the disk; indexed like an array, which reads those rows.

    `x[a:b]`, `x[integers]`, `x[mask]` and `x[i]` give float32 arrays of their own. Rows
    come in the order asked for and are read in the order of the disk.

    Args:
      path: the directory.

    Raises:
      MissingInputError: there is no feature set, or not all of it.
      CorruptInputError: a description is damaged, or a file has another size than
        noted, or a damaged header; `verify` looks at all bytes.
    """

    dtype = np.dtype(np.float32)  # of what is read; `about` tells the stored one
    ndim = 2

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.about = described.read_about(self.path)
        # A shard whose pictures were all left out has no files.
        self._shards = [
            Shard(self.path, number, note, self.about)
            for number, note in enumerate(described.read_notes(self.path, self.about))
            if note["rows"]
        ]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])

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

    def verify(self, count: Callable[[int, int], None] | None = None) -> None:
        """Reads every byte and holds it against the noted SHA-256.

        Args:
          count: is called after each block with the bytes done and those of all files.

        Raises:
          CorruptInputError: files differ; names the first, and tells how many.
        """
        total, done = sum(shard.size for shard in self._shards), 0

        def read(size: int) -> None:
            nonlocal done
            done += size
            if count is not None:
                count(done, total)

        wrong = [path for shard in self._shards for path in shard.wrong(read)]
        if wrong:
            raise layout.damaged(wrong[0], f"SHA-256 differs; {len(wrong)} such files")
