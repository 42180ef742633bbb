"""Pictures of a prepared TFDS set, read without TensorFlow.

Importing TFDS is left to the moment a set is opened.
"""

import functools
import hashlib
import os

import numpy as np

from sfrik_jax.data import prepared, records
from sfrik_jax.data.sources import Source, refuse_empty
from sfrik_jax.errors import BadPictureError, ConfigError, CorruptInputError

# TFDS's names for the feature that holds a picture's file name.
_NAME_FEATURES = ("file_name", "filename", "image/filename")
# Those for the classes in a picture: of all objects, and of those easily recognised.
_PRESENT, _EASY = "labels", "labels_no_difficult"


class TfdsSource(Source):
    """A split of a TFDS set prepared as ArrayRecord, with `image` and perhaps `label`.

    A set without `label` is multi-label if it has `labels`, a sequence of classes, as
    PASCAL VOC has; classes that are not in its `labels_no_difficult` too, where there
    is such a feature, are present in difficult objects alone.

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
        several = getattr(features.get(_PRESENT), "feature", None)
        self.multi_label = label is None and hasattr(several, "num_classes")
        self._easy = _EASY if _EASY in features else _PRESENT
        classes = several if self.multi_label else label
        self._count = getattr(classes, "num_classes", None)
        self.class_names = getattr(classes, "names", None)

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

    def present(self, i: int) -> np.ndarray:
        return self._present_in(i, self._record(i))

    def multi_example(self, i: int) -> tuple[bytes, np.ndarray]:
        record = self._record(i)
        return record["image"], self._present_in(i, record)

    def _present_in(self, i: int, record: dict) -> np.ndarray:
        if not self.multi_label:
            return super().present(i)
        assert self._count is not None
        classes, easy = (np.asarray(record[key], int) for key in (_PRESENT, self._easy))
        for label in (*classes, *easy):
            if not 0 <= label < self._count:
                raise self._outside(i, label)
        present = np.zeros(self._count, np.int8)
        present[classes] = -1
        present[easy] = 1
        return present

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
            raise self._outside(i, labels[i])
        return labels

    def _outside(self, i: int, label: int) -> CorruptInputError:
        return CorruptInputError(
            f"{self.name(i)} has label {label}, outside 0 … {self._count} - 1; prepare "
            f"{self._info.directory} again"
        )

    @property
    def file_names(self) -> list[str] | None:
        """The feature `file_name` or the like, read once; None without it."""
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
        return self._count if self._labelled or self.multi_label else None

    @property
    def origin(self) -> tuple[object, range]:
        return self._facts, range(self._start, self._stop)

    @functools.cached_property
    def fingerprint(self) -> str:
        what = repr((*self._facts, self._start, self._stop))
        return hashlib.sha256(what.encode()).hexdigest()

    @property
    def _facts(self) -> tuple:
        """What the set's description says of this split; a copy of it says the same."""
        info = self._info.info
        split = next(each for each in info["splits"] if each["name"] == self._base)
        facts = (info["name"], info.get("configName"), info.get("version"))
        return facts, sorted(split.items())
