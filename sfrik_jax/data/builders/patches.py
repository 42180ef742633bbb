"""Patches of installed photographs, cut at run time; see `data.photos`."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from sfrik_jax.data import photos
from sfrik_jax.data.builders import base


class PhotoPatches(base.OwnBuilder, skip_registration=True):
    """Colour JPEG patches of 16 photographs."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(
            (None, None, 3),
            "jpeg",
            photos.CLASSES,
            "Patches of photographs shipped by scikit-image and scikit-learn.",
            "https://scikit-image.org",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[base.Example]]:
        return {
            split: base.numbered(list(photos.patches(split)))
            for split in photos.PER_CLASS
        }
