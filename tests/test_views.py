"""Facts about the hash, the sample order, the recipes and the crop boxes."""

import math

import numpy as np
import pytest

from sfrik_jax.data import views
from sfrik_jax.data.views import View

VIEW = View(32)


def boxes(size, view=VIEW, *, count, seed=0, epoch=0, view_id=0):
    index = np.arange(count)
    heights, widths = (np.full(count, side) for side in size)
    return views.crop_boxes(
        heights, widths, view, seed=seed, epoch=epoch, index=index, view_id=view_id
    )


def test_the_hash_is_splitmix64():
    # The first outputs for state 0, as published with the generator.
    steps = np.arange(1, 4, dtype=np.uint64) * views._GOLDEN
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert views._mix(steps).tolist() == want


def test_the_hash_never_changes():
    # Runs that were stopped resume with the batches of before only if these stay.
    assert views.hash_bits(0, 1, 2, 3).item() == 10473343156893806242
    assert (
        views.hash_bits(2**64 + 5, [1, 2]).tolist()
        == views.hash_bits(5, [1, 2]).tolist()
    )
    np.testing.assert_array_equal(
        views.hash_uniform(5, 1, [1, 3], draws=2),
        [
            [0.37188197927005884, 0.28140501514042005],
            [0.7425503528400776, 0.6211818510190108],
        ],
    )
    assert views.permutation(0, 1, 10).tolist() == [9, 4, 8, 3, 1, 7, 2, 5, 0, 6]
    assert boxes((375, 500), count=2).tolist() == [
        [14, 162, 314, 334],
        [148, 250, 193, 165],
    ]


def test_hash_coordinates_broadcast_and_all_count():
    grid = views.hash_bits(0, np.arange(3)[:, None], np.arange(4))
    assert grid.shape == (3, 4)
    assert len(np.unique(grid)) == 12
    assert grid[2, 1] == views.hash_bits(0, 2, 1)
    assert views.hash_bits(0, 1, 2) != views.hash_bits(0, 2, 1)
    assert views.hash_bits(1, 2) != views.hash_bits(2, 1)


def test_uniform_draws_are_uniform_and_uncorrelated():
    draws = views.hash_uniform(0, np.arange(50_000), draws=3)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.006)
    np.testing.assert_allclose(draws.var(0), 1 / 12, atol=0.002)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.02)
    # Neighbouring samples share nothing either.
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02


@pytest.mark.parametrize("count", [1, 2, 7, 5_000])
def test_an_epoch_visits_each_sample_once(count):
    for epoch in range(3):
        order = views.permutation(3, epoch, count)
        np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_epochs_and_seeds_have_different_orders():
    orders = [views.permutation(s, e, 5_000) for s in (0, 1) for e in (0, 1)]
    agreeing = [np.mean(a == b) for a in orders for b in orders if a is not b]
    assert max(agreeing) < 0.005


def torchvision_boxes(rng, size, view, count):
    """RandomResizedCrop.get_params for images of one size, as torchvision defines it.

    Ten tries for each image; the centre within the ratios for one that has no box then.
    """
    height, width = size
    boxes, waiting = np.zeros((count, 4), np.int64), np.arange(count)
    for _ in range(10):
        area = height * width * rng.uniform(*view.scale, len(waiting))
        aspect = np.exp(rng.uniform(*np.log(view.ratio), len(waiting)))
        w = np.round(np.sqrt(area * aspect)).astype(int)
        h = np.round(np.sqrt(area / aspect)).astype(int)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        h, w = h[fits], w[fits]
        top = rng.integers(0, height - h, endpoint=True)
        left = rng.integers(0, width - w, endpoint=True)
        boxes[waiting[fits]] = np.stack([top, left, h, w], axis=1)
        waiting = waiting[~fits]
    boxes[waiting] = torchvision_fallback(size, view.ratio)
    return boxes


def torchvision_fallback(size, ratio):
    height, width = h, w = size
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def statistics(sample, size, ratio):
    """Rows whose means and spreads describe the distribution of boxes."""
    height, width = size
    top, left, h, w = sample.T.astype(float)
    return np.stack(
        [
            h * w / (height * width),
            np.log(w / h),
            (top + h / 2) / height,
            (left + w / 2) / width,
            h == height,
            w == width,
            top == 0,
            left == 0,
            np.all(sample == torchvision_fallback(size, ratio), axis=1),
        ]
    )


# Of the boxes of the strips three in four are the fallback where the scale is wide.
@pytest.mark.parametrize("size", [(375, 500), (28, 28), (96, 40), (40, 400), (400, 40)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14)])
def test_boxes_are_distributed_as_those_of_torchvision(size, scale):
    count, view = 100_000, View(32, scale=scale)
    want = torchvision_boxes(np.random.default_rng(7), size, view, count)
    got = boxes(size, view, count=count)
    want, got = (statistics(sample, size, view.ratio) for sample in (want, got))
    # Five standard errors of the difference of two means: of the values, and of their
    # squared deviations.
    for power in (1, 2):
        one, other = (
            sample if power == 1 else (sample - sample.mean(1, keepdims=True)) ** 2
            for sample in (want, got)
        )
        margin = 5 * one.std(1) * math.sqrt(2 / count) + 1e-12
        assert (abs(one.mean(1) - other.mean(1)) <= margin).all()
    np.testing.assert_allclose(got[:4].min(1), want[:4].min(1), atol=0.02)
    np.testing.assert_allclose(got[:4].max(1), want[:4].max(1), atol=0.02)


def test_corners_are_uniform_in_the_room_that_the_box_leaves():
    count, bins, size = 100_000, 20, (375, 500)
    made = boxes(size, count=count)
    rng = np.random.default_rng(7)
    # Whole numbers 0 … room become uniform in 0 … 1 by a random part of a step each.
    room = np.array(size) - made[:, 2:]
    places = (made[:, :2] + rng.random((count, 2))) / (room + 1)
    for place in places.T:
        counts = np.histogram(place, bins, (0, 1))[0]
        deviation = np.sum((counts - count / bins) ** 2) / (count / bins)
        assert deviation < 55  # chi-square with 19 degrees of freedom: p < 3e-5
    drawn = np.column_stack([places, made[:, 2:]])
    together = np.atleast_2d(np.corrcoef(drawn.T))[:2] - np.eye(2, 4)
    assert np.abs(together).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("size", [(3, 1000), (1000, 3), (50, 100), (100, 50), (7, 7)])
def test_the_fallback_is_the_centre_within_the_ratios(size):
    # No box of three times the area fits, so that all tries fail.
    got = boxes(size, View(32, scale=(3.0, 3.0)), count=5)
    want = torchvision_fallback(size, VIEW.ratio)
    np.testing.assert_array_equal(got, [want] * 5)


def test_boxes_lie_inside_images_of_any_size():
    rng = np.random.default_rng(0)
    height, width = rng.integers(1, 60, (2, 5_000))
    got = views.crop_boxes(
        height, width, VIEW, seed=0, epoch=0, index=np.arange(5_000), view_id=0
    )
    top, left, h, w = got.T
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_a_box_does_not_depend_on_its_neighbours():
    whole = boxes((90, 120), count=64)
    alone = views.crop_boxes([90], [120], VIEW, seed=0, epoch=0, index=[17], view_id=0)
    np.testing.assert_array_equal(alone[0], whole[17])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"view_id": 1}])
def test_seed_epoch_and_view_each_change_the_boxes(change):
    same = boxes((90, 120), count=500) == boxes((90, 120), count=500, **change)
    assert same.all(axis=1).mean() < 0.01


def test_recipes_are_those_of_the_protocol():
    first, second = views.build(224, recipe="vicreg")
    assert (first.blur_prob, second.blur_prob) == (1.0, 0.1)
    assert (first.solarize_prob, second.solarize_prob) == (0.0, 0.2)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (
        0.4,
        0.4,
        0.2,
        0.1,
    )
    simclr = views.build(32, recipe="simclr")
    assert simclr[0] == simclr[1]
    assert (simclr[0].brightness, simclr[0].hue, simclr[0].blur_prob) == (0.8, 0.2, 0.5)
    auh = views.build(64, recipe="auh")[0]
    assert (auh.jitter_prob, auh.blur_prob, auh.mean) == (1.0, 0.0, views.STL10_MEAN)
    for name in ("vicreg", "simclr", "auh", "small"):
        smallest = 0.25 if name == "small" else 0.08
        for view in views.build(96, recipe=name):
            assert view.size == 96
            assert (view.scale, view.method) == ((smallest, 1.0), "bicubic")
            assert (view.flip_prob, view.gray_prob) == (0.5, 0.2)


def test_obow_is_an_original_two_crops_and_five_patches():
    recipe = views.build(224, recipe="obow")
    original, *crops, patches = recipe
    assert (original.size, original.resize, original.jitter_prob) == (224, 256, 0)
    assert (original.flip_prob, original.gray_prob, original.blur_prob) == (0.5, 0, 0)
    assert crops[0] == crops[1] and len(crops) == 2
    assert (crops[0].size, crops[0].scale, crops[0].blur_prob) == (
        160,
        (0.08, 0.6),
        0.5,
    )
    assert (patches.size, patches.scale, patches.blur_prob) == (256, (0.6, 1.0), 0)
    assert (patches.patches, patches.patch_size) == (5, 96)
    for view in (*crops, patches):
        strengths = view.brightness, view.contrast, view.saturation, view.hue
        assert strengths == (0.4,) * 4
        assert (view.jitter_prob, view.gray_prob) == (0.8, 0.2)
    assert {view.method for view in recipe} == {"bilinear"}
    assert all(view.joint for view in recipe)
    assert views.size_groups(recipe) == ((0,), (1, 2), (3,))
    assert views.anchors(recipe) == (0,)
    assert views.num_views(recipe) == 8


def test_obow_groups_of_one_size_stay_apart():
    recipe = views.build(
        96, recipe="obow", resize=96, crop_size=96, patch_image_size=96, patch_size=72
    )
    assert views.size_groups(recipe) == ((0,), (1, 2), (3,))


def test_swav_is_two_large_and_six_small_crops():
    recipe = views.build(224, recipe="swav")
    assert [view.size for view in recipe] == [224] * 2 + [96] * 6
    assert [view.scale for view in recipe] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    for view in recipe:
        strengths = view.brightness, view.contrast, view.saturation, view.hue
        assert strengths == (0.8, 0.8, 0.8, 0.2)
        assert (view.jitter_prob, view.gray_prob, view.blur_prob) == (0.8, 0.2, 0.5)
        assert (view.method, view.joint, view.solarize_prob) == ("bilinear", True, 0)
    assert views.size_groups(recipe) == ((0, 1), (2, 3, 4, 5, 6, 7))
    assert views.anchors(recipe) == (0, 1)


def test_a_setting_reaches_the_views():
    first, second = views.build(32, recipe="simclr", blur_prob=(0.1, 0.7), hue=0.05)
    assert (first.blur_prob, second.blur_prob) == (0.1, 0.7)
    assert first.hue == second.hue == 0.05


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((256, 256), (16, 16, 224, 224)),
        ((375, 500), (23, 86, 328, 328)),
        ((500, 375), (86, 23, 328, 328)),
        ((3, 9), (0, 3, 3, 3)),
    ],
)
def test_the_centre_view_has_the_middle_of_the_short_side(size, box):
    view = View(224, resize=256)
    made = views.crop_boxes(
        [size[0]], [size[1]], view, seed=0, epoch=0, index=[0], view_id=0
    )
    assert made.tolist() == [list(box)]
    assert made.dtype == np.int32


def test_size_groups_are_runs_of_equal_size():
    sizes = [224, 224, 96, 96, 96, 224]
    groups = views.size_groups(tuple(View(size) for size in sizes))
    assert groups == ((0, 1), (2, 3, 4), (5,))
