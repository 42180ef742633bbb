"""A small PASCAL VOC, prepared as TFDS prepares it, without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow_datasets as tfds
from stand_ins import encoded

from sfrik_jax.data.builders import base

CLASSES = ("aeroplane", "bicycle", "bird", "boat")
# Name → objects: a class, and whether it is difficult to recognise.
PICTURES = {
    "000005": [("bird", False), ("bird", True), ("boat", True)],
    "000007": [],
    "000012": [("aeroplane", False), ("bicycle", False)],
    "000017": [("bicycle", True)],
    "000023": [("boat", False)],
    "000026": [("bird", False), ("aeroplane", True), ("boat", False)],
}
# The same by picture, in the order of CLASSES.
PRESENT = {
    "000005": [0, 0, 1, -1],
    "000007": [0, 0, 0, 0],
    "000012": [1, 1, 0, 0],
    "000017": [0, -1, 0, 0],
    "000023": [0, 0, 0, 1],
    "000026": [-1, 0, 1, 1],
}


class Voc(base.StreamBuilder, skip_registration=True):
    """The features of tensorflow_datasets.object_detection.voc."""

    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="2007", version=tfds.core.Version("5.0.0")),
    )
    progress = SimpleNamespace(count=lambda *_: None)  # pyright: ignore

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=CLASSES)
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "label": label,
                    "bbox": tfds.features.BBoxFeature(),
                    "pose": tfds.features.ClassLabel(names=("frontal", "left")),
                    "is_truncated": np.bool_,
                    "is_difficult": np.bool_,
                }
            ),
            "labels": tfds.features.Sequence(label),
            "labels_no_difficult": tfds.features.Sequence(label),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict[str, base.Stream]:
        names = list(PICTURES)
        return {
            split: base.Stream(_examples(part), len(part), 1)
            for split, part in (("train", names), ("test", names[:3]))
        }


def _examples(names: list[str]) -> Iterator[base.Example]:
    for name in names:
        objects = PICTURES[name]
        yield (
            name,
            {
                "image": encoded(int(name)),
                "image/filename": f"{name}.jpg",
                "objects": [
                    {
                        "label": label,
                        "bbox": tfds.features.BBox(0.25, 0.0, 0.75, 1.0),
                        "pose": "left",
                        "is_truncated": False,
                        "is_difficult": difficult,
                    }
                    for label, difficult in objects
                ],
                "labels": sorted({label for label, _ in objects}),
                "labels_no_difficult": sorted(
                    {label for label, difficult in objects if not difficult}
                ),
            },
        )


def prepare(data_dir: Path) -> None:
    """Prepares voc/2007 in a folder of prepared sets."""
    builder = Voc(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
