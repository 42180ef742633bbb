"""Where pictures come from: a folder, or arrays in memory; TFDS sets: `tfds_source`.

A source answers `read(i)` from any thread, in any order, and never decodes.
"""

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.data import folders, prepared
from sfrik_jax.errors import ConfigError, CorruptInputError


class Source(ABC):
    """N pictures in a fixed order, perhaps with labels.

    A picture of a multi-label set has any number of classes; its `label` is None, and
    `present` tells them.
    """

    class_names: list[str] | None = None
    multi_label = False
    image_shape: tuple[int, int, int] | None = None  # [H, W, C] if all agree on it
    subset: dict[str, Any] | None = None  # name, size, digest of a part of another

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> bytes | np.ndarray:
        """Picture i: an encoded file's bytes, or uint8 [H, W, 1 or 3]."""

    @abstractmethod
    def name(self, i: int) -> str:
        """The id of picture i in every message and list of bad pictures."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest of what defines content and order."""

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], or None for a set that is unlabelled or multi-label."""
        return None

    @property
    def origin(self) -> tuple[object, range | np.ndarray]:
        """Which split this is of, and the rising numbers of its pictures there.

        Two sources whose first parts are equal number the same pictures alike.
        """
        return self.fingerprint, range(len(self))

    @property
    def pieces(self) -> "Sequence[Source]":
        """The sources, each of one split, that this one joins; else itself."""
        return (self,)

    @property
    def file_names(self) -> Sequence[str] | None:
        """Names of the picture files, [N], perhaps with folders; None if unknown."""
        return None

    @property
    def whole(self) -> "Source":
        """The source that this one is a part of; else itself."""
        return self

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for an unlabelled set."""
        return None if self.class_names is None else len(self.class_names)

    def label(self, i: int) -> int | None:
        """The label of picture i, or None; all labels are not read for it."""
        return None if self.labels is None else int(self.labels[i])

    def example(self, i: int) -> tuple[bytes | np.ndarray, int | None]:
        """Picture i and its label."""
        return self.read(i), self.label(i)

    def present(self, i: int) -> np.ndarray:
        """The classes in picture i of a multi-label set.

        Returns:
          int8 [C]: 1 present, 0 absent, -1 present in difficult objects alone.
        """
        raise ConfigError(f"{self.name(i)} is of a set that has one label a picture")

    def multi_example(self, i: int) -> tuple[bytes | np.ndarray, np.ndarray]:
        """Picture i of a multi-label set and the classes in it, see `present`."""
        return self.read(i), self.present(i)


class Renumbered(Source):
    """Pictures of other sources under numbers of its own."""

    @abstractmethod
    def at(self, i: int) -> tuple[Source, int]:
        """The source that has picture i, and its number there."""

    def read(self, i: int) -> bytes | np.ndarray:
        source, number = self.at(i)
        return source.read(number)

    def label(self, i: int) -> int | None:
        source, number = self.at(i)
        return source.label(number)

    def example(self, i: int) -> tuple[bytes | np.ndarray, int | None]:
        source, number = self.at(i)
        return source.example(number)

    def present(self, i: int) -> np.ndarray:
        source, number = self.at(i)
        return source.present(number)

    def multi_example(self, i: int) -> tuple[bytes | np.ndarray, np.ndarray]:
        source, number = self.at(i)
        return source.multi_example(number)

    def name(self, i: int) -> str:
        source, number = self.at(i)
        return source.name(number)


class ArraySource(Source):
    """Pictures in memory: uint8 [N, H, W, C] with C of 1 or 3, labels integers [N]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] not in (1, 3)
        ):
            raise ConfigError(
                f"ArraySource takes uint8 [N, H, W, 1 or 3], not {images.dtype} "
                f"{list(images.shape)}"
            )
        self.images = images
        self.image_shape = images.shape[1:]
        self._labels = None if labels is None else np.asarray(labels, np.int32)
        if self._labels is None:
            return
        if self._labels.shape != images.shape[:1] or self._labels.min(initial=0) < 0:
            raise ConfigError(
                f"ArraySource has {len(images)} images and labels of shape "
                f"{list(self._labels.shape)}; one label from 0 upwards is due to each"
            )
        count = self._labels.max(initial=-1) + 1
        self.class_names = [str(label) for label in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]

    def name(self, i: int) -> str:
        return f"image {i}"

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        return digest.hexdigest()


class FolderSource(Source):
    """Picture files below a folder, in the order of their sorted relative paths.

    `path/train` and `path/test` (or `val`) are the splits when they exist; else `path`
    is the train split and there is no other. When all of a split's pictures lie in two
    or more sub-folders, these are the classes; the train split's classes number those
    of the others. Hidden files and files that are no pictures are passed over.

    Raises:
      MissingInputError: no such folder or split.
      CorruptInputError: no picture in the split or in the slice; the test split has a
        class that the train split lacks.
    """

    def __init__(self, path: str | os.PathLike[str], split: str = "train") -> None:
        self.root, base = folders.folder_split(Path(path).expanduser(), split)
        files = folders.picture_files(self.root)
        if not files:
            raise CorruptInputError(
                f"no pictures in {self.root}; put files ending in "
                f"{' '.join(sorted(folders.EXTENSIONS))} there, or change data.path"
            )
        _, start, stop = prepared.split_range(split, {base: len(files)})
        refuse_empty(split, start, stop, str(self.root))
        self.files, self._numbers = files[start:stop], range(start, stop)
        train_root = self.root.parent / "train"
        known = base == "train" or not train_root.is_dir()
        names = folders.class_names(files)
        if names is not None and not known:
            names = self._train_names(
                names, folders.class_names(folders.picture_files(train_root))
            )
        self.class_names = names
        number = {name: label for label, name in enumerate(names or ())}
        labels = [number[file.partition("/")[0]] for file in self.files if number]
        self._labels = np.array(labels, np.int32) if number else None

    def _train_names(
        self, names: list[str], train_names: list[str] | None
    ) -> list[str] | None:
        strange = sorted(set(names) - set(train_names or names))
        if strange:
            raise CorruptInputError(
                f"{self.root} has the class {strange[0]!r}, which the train split "
                "beside it lacks; rename or remove that folder"
            )
        return train_names

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> bytes:
        path = self.root / self.files[i]
        try:
            return path.read_bytes()
        except OSError as error:
            raise folders.unreadable(str(path), error) from error

    def name(self, i: int) -> str:
        return str(self.root / self.files[i])

    @property
    def origin(self) -> tuple[object, range]:
        return self.root.resolve(), self._numbers

    @property
    def file_names(self) -> Sequence[str]:
        return self.files

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i, file in enumerate(self.files):
            size = folders.file_size(self.name(i))
            digest.update(f"{file}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def refuse_empty(split: str, start: int, stop: int, where: str) -> None:
    """Raises CorruptInputError for a split, or a slice of one, without pictures."""
    if start >= stop:
        raise CorruptInputError(
            f"split {split!r} of {where} is empty; choose another, or fill it"
        )
