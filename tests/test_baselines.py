"""Baselines without learning, and the pictures that go beside the figures."""

import numpy as np
import pytest
from PIL import Image

from sfrik_jax.errors import ConfigError, OutputError
from sfrik_jax.evaluators import baselines, pictures


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)


def test_pixels_are_levels_in_unit_range(images):
    got = baselines.pixels(images)
    assert got.shape == (6, 75) and got.dtype == np.float32
    np.testing.assert_allclose(got[2, 4], images[2, 0, 1, 1] / 255, rtol=1e-6)


def test_histogram_counts_joint_colours(images):
    got = baselines.color_histogram(images)
    assert got.shape == (6, 512)
    for row, image in zip(got, images, strict=True):
        want, _ = np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)
        np.testing.assert_allclose(row**2, want.ravel() / 25, atol=1e-6)


def test_histogram_has_unit_norm_and_ignores_position(images):
    got = baselines.color_histogram(images)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(baselines.color_histogram(images[:, ::-1, ::-1]), got)


def test_grey_images_count_as_equal_colours(images):
    grey = images[..., :1]
    np.testing.assert_array_equal(
        baselines.color_histogram(grey),
        baselines.color_histogram(np.repeat(grey, 3, axis=-1)),
    )


def test_bad_images_are_named(images):
    with pytest.raises(ConfigError, match="dtype float32"):
        baselines.pixels(images.astype(np.float32))
    with pytest.raises(ConfigError, match="shape"):
        baselines.color_histogram(images[0])
    with pytest.raises(ConfigError, match="bins=0"):
        baselines.color_histogram(images, bins=0)


def test_neighbours_are_framed_by_class(images, tmp_path):
    labels = np.array([0, 0, 0, 1, 1, 1])
    features = np.eye(6, dtype=np.float32)
    path = pictures.neighbours(
        images,
        images,
        features,
        features,
        tmp_path / "pictures" / "neighbours.png",
        train_labels=labels,
        test_labels=labels,
        rows=2,
        k=6,
    )
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    outer = pictures.CELL + 2 * pictures.FRAME
    assert sheet.shape[0] == 2 * outer + pictures.GAP
    assert (sheet == pictures.RIGHT).all(axis=-1).any()
    assert (sheet == pictures.WRONG).all(axis=-1).any()
    columns = 1 + 6  # the test image and its neighbours
    width = columns * (outer + pictures.GAP) - 2 * pictures.GAP + pictures.GUTTER
    assert sheet.shape[1] == width


def test_neighbours_without_labels_have_no_verdict(images, tmp_path):
    features = np.random.default_rng(0).standard_normal((6, 3))
    path = pictures.neighbours(images, images, features, features, tmp_path / "n.png")
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    for colour in (pictures.RIGHT, pictures.WRONG):
        assert not (sheet == colour).all(axis=-1).any()


def test_shown_test_images_are_spread_over_the_classes():
    labels = np.repeat(np.arange(4), [100, 3, 3, 3])
    chosen = pictures.spread(labels, 109, 8, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [2, 2, 2, 2])
    assert len(pictures.spread(None, 5, 8, seed=0)) == 5


def test_views_undo_the_normalisation(images):
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    normalised = ((images / 255 - mean) / std).astype(np.float32)
    np.testing.assert_array_equal(
        pictures.to_uint8(normalised, mean=mean, std=std), images
    )
    np.testing.assert_array_equal(pictures.to_uint8(images.astype(np.float32)), images)


def test_views_of_several_sizes_make_one_sheet(images, tmp_path):
    sources = [images[0], images[1, :3, :, :1]]
    augmented = [images[:2].astype(np.float32), np.zeros((2, 200, 200, 3), np.uint8)]
    path = pictures.views(sources, augmented, tmp_path / "views.png")
    with Image.open(path) as picture:
        assert picture.size[1] < picture.size[0]
    with pytest.raises(ConfigError, match="2 source images"):
        pictures.views(sources, [images], tmp_path / "views.png")


def test_a_picture_that_cannot_be_written_is_an_output_error(images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot write the picture"):
        pictures.views(images, [images], blocked / "views.png")
