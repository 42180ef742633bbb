"""ImageNet (ILSVRC 2012) from its two tar files, with TFDS's names and features.

Every picture keeps its bytes. Some train pictures are CMYK and one is a PNG; TFDS
encodes these anew as JPEG, here the decoder takes them as they are.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sfrik_jax.data.builders import archives, base
from sfrik_jax.data.builders.base import Stream
from sfrik_jax.data.prepared import PUBLISHED
from sfrik_jax.errors import CorruptInputError, MissingInputError

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_TRAIN_NAME = re.compile(r"(n\d{8})_\d+\.JPEG")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# Lists of TFDS's package: the classes, sorted, and those of the validation pictures.
_CLASSES = "datasets/imagenet2012/labels.txt"
_VALIDATION_LABELS = "datasets/imagenet2012/validation_labels.txt"
# The largest picture has 16 MB, the largest class 400 MB.
_PICTURE_LIMIT = 64 << 20
_CLASS_LIMIT = 4 << 30


class Imagenet2012(base.StreamBuilder, skip_registration=True):
    """1,281,167 train and 50,000 validation pictures of 1,000 classes."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names_file=tfds.core.tfds_path(_CLASSES))
        return tfds.core.DatasetInfo(
            builder=self,
            description="ILSVRC 2012, the bytes of the pictures as published.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": label,
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
        )

    def origin_bytes(self) -> int:
        assert self.source_dir is not None
        paths = [self.source_dir / name for name in TARS.values()]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise MissingInputError(
                f"{' and '.join(missing)} not in {self.source_dir}; register at "
                "https://image-net.org/download-images, get both files of ILSVRC2012 "
                f"({' and '.join(TARS.values())}, 148 and 6.7 GB), put them in one "
                "folder and run: python -m sfrik_jax data prepare imagenet2012 "
                "--from FOLDER"
            )
        # The records hold the same pictures again.
        return sum(path.stat().st_size for path in paths)

    def _split_generators(self, dl_manager: Any) -> dict[str, Stream]:
        assert self.source_dir is not None
        readers = {"train": self._train, "validation": self._validation}
        counts = PUBLISHED["imagenet2012"]
        streams = {}
        for split, name in TARS.items():
            path = self.source_dir / name
            size = path.stat().st_size
            streams[split] = Stream(readers[split](path), counts[split], size)
        return streams

    def _train(self, path: Path) -> Iterator[base.Example]:
        """A tar of tars, one for each class."""
        classes = set(self._feature("label").names)
        with archives.opened(path) as outer:
            for class_tar, member in archives.files(outer, path, _CLASS_LIMIT):
                match = _CLASS_TAR.fullmatch(class_tar)
                if not match or match[1] not in classes:
                    raise _strange(path, class_tar)
                inside = path / class_tar
                with archives.opened(inside, outer.extractfile(member)) as inner:
                    for name, data in _pictures(inner, inside):
                        found = _TRAIN_NAME.fullmatch(name)
                        if not found or found[1] != match[1]:
                            raise _strange(inside, name)
                        yield name, _example(name, data, match[1])

    def _validation(self, path: Path) -> Iterator[base.Example]:
        labels = tfds.core.tfds_path(_VALIDATION_LABELS).read_text().split()
        with archives.opened(path) as tar:
            for name, data in _pictures(tar, path):
                match = _VALIDATION_NAME.fullmatch(name)
                if not match or not 1 <= int(match[1]) <= len(labels):
                    raise _strange(path, name)
                # The list goes by the pictures' names, which are numbers from 1.
                yield name, _example(name, data, labels[int(match[1]) - 1])


def _pictures(tar: Any, path: Path) -> Iterator[tuple[str, bytes]]:
    for name, member in archives.files(tar, path, _PICTURE_LIMIT):
        yield name, archives.read(tar, member, path)


def _example(name: str, data: bytes, label: str) -> dict[str, Any]:
    return {"image": data, "label": label, "file_name": name}


def _strange(path: Path, name: str) -> CorruptInputError:
    return CorruptInputError(
        f"{path} holds {name[:80]!r}, which is not of ILSVRC2012; get the archive from "
        "https://image-net.org"
    )
