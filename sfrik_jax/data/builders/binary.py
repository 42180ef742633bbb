"""STL10 and CIFAR from their binary archives, with TFDS's names and features.

Pictures are stored one plane a colour; they become PNG files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from sfrik_jax.data.builders import archives, base
from sfrik_jax.data.builders.base import Stream
from sfrik_jax.data.prepared import PUBLISHED
from sfrik_jax.errors import CorruptInputError, MissingInputError

_LIMIT = 3 << 30  # bytes of an unpacked file; STL10's largest has 2,764,800,000


class Archive(NamedTuple):
    """Where the pictures come from, and what they take."""

    url: str
    sha256: str
    files: dict[str, tuple[str, ...]]  # split → files, in order
    names: dict[str, str]  # feature of class names → text file
    disk: int  # bytes of the archive, its files and the records together


class BinaryBuilder(base.StreamBuilder, skip_registration=True):
    """Shared: the archive is fetched or found, its files unpacked for a while."""

    archive: Archive

    def origin_bytes(self) -> int:
        if self.source_dir is not None and not self._given(self.source_dir).is_file():
            raise MissingInputError(
                f"{self._given(self.source_dir)} is not there; get it from "
                f"{self.archive.url}"
            )
        return self.archive.disk

    def _given(self, folder: Path) -> Path:
        return folder / self.archive.url.rpartition("/")[2]

    def _split_generators(self, dl_manager: Any) -> dict[str, Stream]:
        archive = self.archive
        if self.source_dir is not None:
            path = self._given(self.source_dir)
        else:
            remedy = (
                "get it and run: python -m sfrik_jax data prepare "
                f"{self.name} --from FOLDER"
            )
            path = base.fetch(dl_manager, archive.url, archive.sha256, remedy)
        # `prepare` removes all of this folder.
        folder = Path(self.data_dir_root, "unpacked")
        wanted = [name for files in archive.files.values() for name in files]
        archives.unpack(path, [*wanted, *archive.names.values()], folder, _LIMIT)
        for feature, name in archive.names.items():
            lines = (folder / name).read_text().split("\n")
            classes = [line.strip() for line in lines if line.strip()]
            self._check_classes(feature, classes, path)
            self._feature(feature).names = classes
        counts = PUBLISHED[self.name]
        return {
            split: Stream(
                self._examples(split, [folder / name for name in files]),
                counts[split],
                sum((folder / name).stat().st_size for name in files),
            )
            for split, files in archive.files.items()
        }

    def _check_classes(self, feature: str, classes: list[str], path: Path) -> None:
        count = self._feature(feature).num_classes
        if len(set(classes)) != count or len(classes) != count:
            raise CorruptInputError(
                f"{path} names {len(classes)} classes, not {count}; fetch it again"
            )

    def _examples(self, split: str, paths: Sequence[Path]) -> Iterator[base.Example]:
        raise NotImplementedError


class Stl10(BinaryBuilder, skip_registration=True):
    """96 px; 5,000 labelled, 8,000 to test, 100,000 without labels."""

    archive = Archive(
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
        {
            "train": ("train_X.bin", "train_y.bin"),
            "test": ("test_X.bin", "test_y.bin"),
            "unlabelled": ("unlabeled_X.bin",),
        },
        {"label": "class_names.txt"},
        2_640_397_119 + 3_124_237_126 + 2_100_000_000,
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="STL10.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(96, 96, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://ai.stanford.edu/~acoates/stl10/",
        )

    def _examples(self, split: str, paths: Sequence[Path]) -> Iterator[base.Example]:
        # The rows of a plane are stored as its columns.
        images = _pictures(paths[0], (3, 96, 96)).transpose(0, 3, 2, 1)
        labels = np.full(len(images), -1, np.int64)
        if len(paths) > 1:
            labels = np.fromfile(paths[1], np.uint8).astype(np.int64) - 1
        _check_labels(labels, len(images), paths, lowest=-1 if len(paths) == 1 else 0)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            example = {"image": base.png(image), "label": int(label)}
            yield f"{split}_{number:06d}", example


class Cifar10(BinaryBuilder, skip_registration=True):
    """32 px, ten classes; 50,000 + 10,000."""

    VERSION = tfds.core.Version("3.0.2")
    label_features: tuple[str, ...] = ("label",)  # as they are stored
    num_classes: tuple[int, ...] = (10,)
    archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        {
            "train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        {"label": "batches.meta.txt"},
        170_052_171 + 184_380_000 + 140_000_000,
    )

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            feature: tfds.features.ClassLabel(num_classes=count)
            for feature, count in zip(
                self.label_features, self.num_classes, strict=True
            )
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"CIFAR with {self.num_classes[-1]} classes.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    **labels,
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _examples(self, split: str, paths: Sequence[Path]) -> Iterator[base.Example]:
        width = len(self.label_features)
        number = 0
        for path in paths:
            rows = _pictures(path, (width + 3 * 32 * 32,))
            for label, count in enumerate(self.num_classes):
                if rows[:, label].max(initial=0) >= count:
                    raise CorruptInputError(f"{path.name} has a label above {count}")
            for row in rows:
                image = row[width:].reshape(3, 32, 32).transpose(1, 2, 0)
                name = f"{split}_{number:05d}"
                labels = (int(label) for label in row[:width])
                example = dict(zip(self.label_features, labels, strict=True))
                yield name, {"id": name, "image": base.png(image), **example}
                number += 1


class Cifar100(Cifar10, skip_registration=True):
    """32 px, a hundred classes in twenty groups; 50,000 + 10,000."""

    label_features = ("coarse_label", "label")
    num_classes = (20, 100)
    archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        168_513_733 + 184_440_000 + 140_000_000,
    )


def _pictures(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, *shape], read from the file as it is needed."""
    size = path.stat().st_size
    if not size or size % int(np.prod(shape)):
        raise CorruptInputError(f"{path.name} of the archive has {size} bytes")
    return np.memmap(path, np.uint8, "r").reshape(-1, *shape)


def _check_labels(
    labels: np.ndarray, count: int, paths: Sequence[Path], lowest: int
) -> None:
    if len(labels) != count or labels.min() < lowest or labels.max() > 9:
        raise CorruptInputError(
            f"{paths[-1].name} has no label from 1 to 10 for each of {count} pictures"
        )
