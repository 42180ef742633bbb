"""Where pictures come from: a prepared TFDS set, a folder, or arrays in memory.

A source answers `read(i)` from any thread, in any order, and never decodes. Importing
TFDS is left to the moment a TFDS set is opened; TensorFlow is not needed.
"""

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax.data import folders, prepared, records
from sfrik_jax.errors import BadPictureError, ConfigError, CorruptInputError

# TFDS's names for the feature that holds a picture's file name.
_NAME_FEATURES = ("file_name", "filename")


class Source(ABC):
    """N pictures in a fixed order, perhaps with labels."""

    class_names: list[str] | None = None
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
        """int32 [N], or None for an unlabelled set."""
        return None

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
        self.files = files[start:stop]
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


class TfdsSource(Source):
    """A split of a TFDS set prepared as ArrayRecord, with `image` and perhaps `label`.

    Args:
      name: "cifar10", or with config and version "imagenet2012_subset/10pct:5.0.0".
      data_dir: the folder of prepared sets; "" is TFDS's default.
      split: a split or a slice of one, "train[:500]".
      counted: False opens damaged record files too, to read what is left of them; see
        `check_files`.

    Raises:
      MissingInputError: not prepared, or not as ArrayRecord; says how to.
      CorruptInputError: record files are missing, or do not hold the records that
        dataset_info.json counts; that file or features.json is damaged; no record in
        the split or in the slice.
      ConfigError: no such split, or no feature `image`.
    """

    def __init__(
        self,
        name: str,
        data_dir: str = "",
        split: str = "train",
        *,
        counted: bool = True,
    ) -> None:
        self._info = prepared.find_whole(name, data_dir)
        base, start, stop = prepared.split_range(split, self._info.lengths)
        refuse_empty(split, start, stop, str(self._info.directory))
        self._base, self._start, self._stop = base, start, stop

        builder = records.open_builder(self._info.directory)
        self._files = builder.info.splits[base].filepaths
        if counted:
            self.check_files()
        features = dict(builder.info.features)
        if "image" not in features:
            raise ConfigError(
                f"data.name={name!r} has no feature 'image' (it has "
                f"{sorted(features)}); choose an image classification set"
            )
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split=base, decoders=decoders)
        shape = features["image"].shape
        self.image_shape = None if None in shape else shape
        label = features.get("label")
        self._labelled = label is not None
        named = [key for key in _NAME_FEATURES if key in features]
        self._name_feature = named[0] if named else None
        self._count = getattr(label, "num_classes", None)
        self.class_names = getattr(label, "names", None)

    def __len__(self) -> int:
        return self._stop - self._start

    def check_files(self) -> None:
        """Raises CorruptInputError: a record file is damaged, or has other counts."""
        records.check_counts(self._files, self._info.shards[self._base])

    def _record(self, i: int) -> dict:
        try:
            return self._records[self._start + i]
        # ArrayRecord's reader reports damage as one of these.
        except (ValueError, RuntimeError, IndexError, OSError) as error:
            raise BadPictureError(
                self.name(i),
                f"record cannot be read ({error})",
                f"delete {self._info.directory} and prepare it again",
            ) from error

    def read(self, i: int) -> bytes:
        return self._record(i)["image"]

    def label(self, i: int) -> int | None:
        return self._label_of(self._record(i))

    def example(self, i: int) -> tuple[bytes, int | None]:
        record = self._record(i)
        return record["image"], self._label_of(record)

    def _label_of(self, record: dict) -> int | None:
        label = int(record["label"]) if self._labelled else -1
        return None if label == -1 else label

    def name(self, i: int) -> str:
        return f"{self._base}[{self._start + i}]"

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], read once; None without any (-1 in STL10's unlabelled split)."""
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray | None:
        if not self._labelled:
            return None
        labels = self._columns["label"].astype(np.int32)
        if (labels == -1).all():
            return None
        wrong = (labels < 0) | (labels >= (self._count or np.inf))
        if wrong.any():
            i = int(wrong.argmax())
            raise CorruptInputError(
                f"{self.name(i)} has label {labels[i]}, outside 0 … {self._count} - "
                f"1; prepare {self._info.directory} again"
            )
        return labels

    @property
    def file_names(self) -> list[str] | None:
        """The feature `file_name` or `filename`, read once; None without it."""
        if self._name_feature is None:
            return None
        names = self._columns[self._name_feature].tolist()
        return [os.fsdecode(name) for name in names]

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Labels and file names, [N], in one pass: a record is read as a whole."""
        keys = ("label" if self._labelled else None, self._name_feature)
        columns: dict[str, list] = {key: [] for key in keys if key}
        for i in range(len(self)):
            record = self._record(i)
            for key, values in columns.items():
                values.append(record[key])
        return {key: np.array(values) for key, values in columns.items()}

    @property
    def num_classes(self) -> int | None:
        return self._count if self._labelled else None

    @functools.cached_property
    def fingerprint(self) -> str:
        info = self._info.info
        split = next(each for each in info["splits"] if each["name"] == self._base)
        facts = (info["name"], info.get("configName"), info.get("version"))
        what = repr((facts, sorted(split.items()), self._start, self._stop))
        return hashlib.sha256(what.encode()).hexdigest()


def refuse_empty(split: str, start: int, stop: int, where: str) -> None:
    """Raises CorruptInputError for a split, or a slice of one, without pictures."""
    if start >= stop:
        raise CorruptInputError(
            f"split {split!r} of {where} is empty; choose another, or fill it"
        )
