"""Whole sets as arrays, in order."""

from typing import Any

import numpy as np
import pytest

from sfrik_jax.data import decode, images, photos, sources
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.views import View
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.image_set import ImageSet


@pytest.fixture
def patch_folder(tmp_path, monkeypatch):
    """JPEG files of many sizes."""
    monkeypatch.setattr(photos, "PER_CLASS", {"train": 1, "test": 2})
    return photos.write_folder(tmp_path)


def test_evaluation_sees_every_picture_once_and_in_order(patch_folder):
    source = sources.FolderSource(patch_folder, "test")
    settings: dict[str, Any] = {"image_size": 48, "resize": 64, "workers": 3}
    batches = list(images.eval_batches(source, batch_size=9, **settings))
    assert [len(pixels) for pixels, _ in batches] == [9, 9, 9, 5]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert (pixels.shape, pixels.dtype) == ((32, 48, 48, 3), np.uint8)
    np.testing.assert_array_equal(labels, source.labels)
    want = decode.resize_center_crop(source.read(20), 64, 48, "bilinear")
    np.testing.assert_array_equal(pixels[20], want)


def test_unlabelled_sets_have_no_labels_in_evaluation():
    source = sources.ArraySource(np.zeros((3, 20, 24, 3), np.uint8))
    ((pixels, labels),) = images.eval_batches(
        source, image_size=16, resize=16, batch_size=9
    )
    assert pixels.shape == (3, 16, 16, 3)
    assert labels is None


@pytest.mark.parametrize("wrong", [None, -1, 3])
def test_a_label_that_is_none_is_found_by_the_pass_over_the_pictures(wrong):
    class Damaged(sources.ArraySource):
        @property
        def num_classes(self):
            return 3

        def example(self, i):
            item, label = super().example(i)
            return item, wrong if i == 4 else label

    source = Damaged(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 3)
    split = ImageSet(source, image_size=8, resize=8, workers=1)
    assert split.labelled
    with pytest.raises(CorruptInputError, match="label"):
        _ = split.labels


def test_grey_sets_stay_grey_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 1), np.uint8)
    source = sources.ArraySource(pixels)
    batch = TrainLoader(source, (View(8),), batch_size=2, seed=0).batch(0)
    np.testing.assert_array_equal(batch["images"], pixels)
    source = sources.ArraySource(np.repeat(pixels, 3, axis=3))
    np.testing.assert_array_equal(
        images.load_images(source, BadPictures(6))[..., :1], pixels
    )
