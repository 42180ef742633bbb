"""Whole sets as arrays, in order."""

from typing import Any

import numpy as np
import pytest
import stand_in_voc
from stand_ins import encoded

from sfrik_jax.data import decode, images, photos, sources
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.tfds_source import TfdsSource
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


def stacked(parts):
    return np.concatenate([part for part in parts if part is not None])


def test_rows_are_named_also_where_pictures_are_left_out():
    jpegs = [encoded(i) for i in range(7)]
    jpegs[4] = b"no picture"

    class Jpegs(sources.ArraySource):
        def read(self, i):
            return jpegs[i]

    source = Jpegs(np.zeros((7, 32, 32, 3), np.uint8), np.arange(7))
    settings: dict[str, Any] = {"image_size": 32, "resize": 32, "batch_size": 3}
    whole = list(
        images.named_batches(source, **settings, bad=BadPictures(7, on_error="skip"))
    )
    assert [names for _, _, names in whole] == [
        ["image 0", "image 1", "image 2"],
        ["image 3", "image 5"],
        ["image 6"],
    ]
    assert stacked(labels for _, labels, _ in whole).tolist() == [0, 1, 2, 3, 5, 6]
    ((pixels, labels, names),) = images.named_batches(
        source, **settings, rows=range(1, 3)
    )
    assert (stacked([labels]).tolist(), names) == ([1, 2], ["image 1", "image 2"])
    np.testing.assert_array_equal(pixels, whole[0][0][1:])


def test_several_labels_come_with_their_pictures(tmp_path):
    stand_in_voc.prepare(tmp_path)
    source = TfdsSource("voc/2007", str(tmp_path), "train")
    batches = images.eval_batches(source, image_size=32, resize=32, batch_size=4)
    labels = stacked(labels for _, labels in batches)
    assert (labels.shape, labels.dtype) == ((6, 4), np.int8)
    assert source.file_names is not None
    want = [stand_in_voc.PRESENT[name[:6]] for name in source.file_names]
    assert labels.tolist() == want
    split = ImageSet(source, image_size=32, resize=32, workers=1)
    assert len(np.concatenate(list(split.batches()))) == 6
    assert not split.labelled and split.labels is None


def test_grey_sets_stay_grey_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 1), np.uint8)
    source = sources.ArraySource(pixels)
    batch = TrainLoader(source, (View(8),), batch_size=2, seed=0).batch(0)
    np.testing.assert_array_equal(batch["images"], pixels)
    source = sources.ArraySource(np.repeat(pixels, 3, axis=3))
    np.testing.assert_array_equal(
        images.load_images(source, BadPictures(6))[..., :1], pixels
    )
