"""Writing a feature set: shard by shard, each whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.errors import (
    ConfigError,
    DiskFullError,
    MismatchError,
)
from sfrik_jax.feature_set import checks, layout
from sfrik_jax.feature_set.checks import Block
from sfrik_jax.feature_set.shard_file import ShardFile, told
from sfrik_jax.locks import Lock


class FeatureWriter:
    """Makes the shards of a feature set that are not there yet.

        with FeatureWriter(path, rows=len(source), identity=identity) as writer:
            for number in writer.pending(process_index, process_count):
                writer.write_shard(number, blocks(writer.rows_of(number)))

    Args:
      path: the directory; made when missing, gone on with when it is there.
      rows: pictures of the set. Those that are left out as bad have no row.
      identity: what the features depend on, as JSON; a set of another is refused.
      dtype: "float32" or "float16".
      shard_rows: pictures of a shard; a reader holds one file open for each shard.
      class_names: names of the classes, if there are labels.

    Raises:
      MismatchError: the directory holds other features; lists what differs.
      OutputError: the directory cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rows: int,
        identity: Mapping[str, Any],
        dtype: str = "float32",
        shard_rows: int = layout.SHARD_ROWS,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if rows < 1 or shard_rows < 1:
            raise ConfigError(
                f"a feature set of rows={rows}, shard_rows={shard_rows}; both are at "
                "least 1"
            )
        self.path, self.rows, self.shard_rows = Path(path), rows, shard_rows
        self._dtype = layout.feature_dtype(dtype)
        self._lock: Lock | None = None
        self._roomy = False
        about = {
            "format": layout.FORMAT,
            "rows": rows,
            "dtype": dtype,
            "shard_rows": shard_rows,
            "class_names": None if class_names is None else list(class_names),
            "identity": dict(identity),
        }
        with told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # As JSON gives it back, so that a stored one can be compared.
            self._about = self._agreed(json.loads(json.dumps(about)))

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets another writer have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def pending(self, process_index: int = 0, process_count: int = 1) -> list[int]:
        """The shards that this process has to make, in order.

        What a killed writer of these left half-written is deleted.

        Raises:
          OutputError: a process of the same index is at work in the directory.
        """
        self._hold(process_index)
        mine = range(process_index, self._shards, process_count)
        with told(self.path):
            layout.remove_stale(self.path, mine)
        return [number for number in mine if not self._finished(number)]

    def rows_of(self, number: int) -> range:
        """The pictures of a shard, by their number in the set."""
        start = number * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def write_shard(self, number: int, blocks: Iterable[Block]) -> None:
        """Writes a shard from the blocks of `rows_of(number)`, in their order.

        Blocks may have any length; one at a time is in memory. A shard may get fewer
        rows than `rows_of` has, where pictures are left out.

        Raises:
          NonFiniteError: a feature is NaN or infinite; names row and picture.
          ConfigError: a block is of other shapes than those before it, or there are
            more rows than the shard has.
          CorruptInputError: a label is none of the classes.
          DiskFullError, OutputError: the shard cannot be written.
        """
        if number not in range(self._shards):
            raise ConfigError(f"shard {number} of {self._shards} does not exist")
        if self._lock is None:
            self._hold(0)
        planned = self.rows_of(number)
        with ExitStack() as stack:
            files: dict[str, ShardFile] = {}
            done = 0
            for features, labels, names in blocks:
                if len(names) == len(features) == 0:
                    continue
                block = self._checked(features, labels, names, planned, done)
                with told(self.path):
                    if not files:
                        files = self._open(number, block, stack)
                    for kind, rows in block.items():
                        files[kind].add(rows)
                done += len(names)
            with told(self.path):
                self._finish(number, files, done)

    @property
    def _shards(self) -> int:
        return layout.shard_count(self.rows, self.shard_rows)

    def _finished(self, number: int) -> bool:
        return layout.shard_path(self.path, number, "json").exists()

    def _hold(self, process_index: int) -> None:
        self.close()
        with told(self.path):
            self._lock = Lock(
                self.path / f"lock-{process_index}",
                f"feature set {self.path}",
                "wait for it, or choose another directory",
            )

    def _agreed(self, about: dict[str, Any]) -> dict[str, Any]:
        """The stored description, if it is the same; else this one, now stored."""
        path = self.path / layout.ABOUT
        try:
            stored = layout.read_json(path)
        except FileNotFoundError:
            if any(map(self._finished, range(self._shards))):
                raise layout.damaged(path, "missing beside finished shards") from None
            layout.write_json(path, about)
            return about
        changed = layout.differences(stored, about)
        if changed:
            raise MismatchError(
                f"{self.path} holds other features ({changed}); choose "
                "another directory, or delete that one"
            )
        return stored

    def _checked(
        self,
        features: np.ndarray,
        labels: np.ndarray | None,
        names: Sequence[str],
        planned: range,
        done: int,
    ) -> dict[str, Any]:
        """What goes into each of the files, as stored."""
        if features.ndim != 2 or len(names) != len(features):
            raise ConfigError(
                f"a block has features {list(features.shape)} and {len(names)} names; "
                "give [b, d] and b"
            )
        if done + len(features) > len(planned):
            raise ConfigError(
                f"a shard of {len(planned)} rows got {done + len(features)} or more"
            )
        stored = checks.features(
            features, self._dtype, names, first_row=planned.start + done
        )
        block: dict[str, Any] = {layout.FEATURES: stored, layout.NAMES: names}
        if labels is not None:
            block[layout.LABELS] = checks.labels(
                labels, names, self._about["class_names"]
            )
        self._agree_on_rows(features.shape[1], block.get(layout.LABELS))
        return block

    def _agree_on_rows(self, dim: int, labels: np.ndarray | None) -> None:
        """Holds a block against the first one, which completes the description."""
        names = self._about["class_names"]
        facts = {
            "dim": dim,
            "labelled": labels is not None,
            "multi_label": labels is not None and labels.ndim == 2,
            "num_classes": None if names is None else len(names),
        }
        if labels is not None and labels.ndim == 2:
            facts["num_classes"] = labels.shape[1]
        if "dim" not in self._about:
            with told(self.path):
                # Another process may have been first.
                stored = layout.read_json(self.path / layout.ABOUT)
                if "dim" not in stored:
                    stored |= facts
                    layout.write_json(self.path / layout.ABOUT, stored)
            self._about = stored
        known = {key: self._about.get(key) for key in facts}
        if known != facts:
            raise ConfigError(
                f"{self.path} holds rows of {known}, and a block is of {facts}"
            )

    def _open(
        self, number: int, block: dict[str, Any], stack: ExitStack
    ) -> dict[str, ShardFile]:
        self._check_room(block)
        return {
            kind: stack.enter_context(
                ShardFile(layout.shard_path(self.path, number, kind), rows)
            )
            for kind, rows in block.items()
        }

    def _check_room(self, block: dict[str, Any]) -> None:
        """DiskFullError where the shards that are due do not fit; looked at once."""
        if self._roomy:
            return
        due = [number for number in range(self._shards) if not self._finished(number)]
        rows = sum(len(self.rows_of(number)) for number in due)
        arrays = (values for values in block.values() if hasattr(values, "nbytes"))
        row = sum(values.nbytes // len(values) for values in arrays if len(values))
        free = shutil.disk_usage(self.path).free
        if rows * row > free:
            raise DiskFullError(
                f"{rows} rows of features need {rows * row} bytes and the disk of "
                f"{self.path} has {free} free; make room or choose another directory, "
                "then run the command again"
            )
        self._roomy = True

    def _finish(self, number: int, files: dict[str, ShardFile], rows: int) -> None:
        """Puts the files in their places and notes them, which finishes the shard."""
        stale = {layout.FEATURES, layout.LABELS, layout.NAMES} - files.keys()
        for kind in stale:
            layout.shard_path(self.path, number, kind).unlink(missing_ok=True)
        noted = {kind: file.finish() for kind, file in files.items()}
        note = {"rows": rows, "dim": self._about.get("dim"), "files": noted}
        layout.write_json(layout.shard_path(self.path, number, "json"), note)
