"""The operations against Pillow and torchvision, and the odds of the recipes."""

import itertools
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sfrik_jax import augment
from sfrik_jax.data.views import View, build
from sfrik_jax.errors import ConfigError

# A view without any random step, with values left in 0 … 1.
PLAIN = View(16, flip_prob=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
FULL = View(
    16, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, jitter_prob=0.8,
    gray_prob=0.2, blur_prob=0.5, solarize_prob=0.2,
)  # fmt: skip
OPS = {
    "brightness": jax.jit(augment.brightness),
    "contrast": jax.jit(augment.contrast),
    "saturation": jax.jit(augment.saturation),
    "hue": jax.jit(augment.hue),
    "blur": jax.jit(augment.gaussian_blur),
}
JITTER = ("brightness", "contrast", "saturation", "hue")
photometric = jax.jit(augment.photometric, static_argnames="view")
make_views = jax.jit(augment.make_views, static_argnames=("views", "seed", "dtype"))
grayscale = jax.jit(augment.grayscale)
view_keys = jax.jit(augment.view_keys)
resized_crop = jax.jit(augment.resized_crop, static_argnames=("size", "method"))
FACTORS = ("0.2", "0.6", "1.0", "1.4", "1.8")
SHIFTS = ("-0.4", "-0.1", "-0.02", "0.05", "0.1", "0.2")
SIGMAS = ("0.1", "0.5", "1.0", "1.5", "2.0")
CASES = [
    *itertools.product(("brightness", "contrast", "saturation"), FACTORS),
    *itertools.product(("hue",), SHIFTS),
    *itertools.product(("blur",), SIGMAS),
]


@pytest.fixture
def images() -> jax.Array:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    return jnp.asarray(pixels)


def keys(count: int, **changes: int) -> jax.Array:
    coordinates = {"seed": 1, "epoch": 2, "view_id": 0, **changes}
    return view_keys(index=np.arange(count, dtype=np.int32), **coordinates)


def apply(images: jax.Array, view: View, **changes: int) -> np.ndarray:
    """Views of the images with a key each, in grey levels for a view like PLAIN."""
    return np.asarray(photometric(images, keys(len(images), **changes), view)) * 255


def draws(count: int) -> jax.Array:
    """The random numbers that `apply` uses."""
    uniform = partial(jax.random.uniform, shape=(augment.DRAWS,), dtype=jnp.float32)
    return jax.jit(jax.vmap(uniform))(keys(count))


def difference(got: jax.Array, want: np.ndarray) -> tuple[float, float]:
    gap = np.abs(np.asarray(got[0]) - want.astype(np.float32))
    return float(gap.mean()), float(np.percentile(gap, 99))


@pytest.mark.parametrize(("name", "amount"), CASES)
def test_operations_agree_with_pillow(reference, name, amount):
    arrays = reference("augment")
    got = OPS[name](jnp.asarray(arrays["image"])[None], jnp.array([float(amount)]))
    mean, tail = difference(got, arrays[f"{name}.{amount}"])
    assert mean <= (2 if name == "hue" else 1)
    assert tail <= (12 if name == "hue" else 4)


def test_grey_solarise_and_flip_agree_with_pillow(reference):
    arrays = reference("augment")
    image = jnp.asarray(arrays["image"])[None]
    assert max(difference(grayscale(image), arrays["gray"])) <= 0.5
    assert difference(augment.solarize(image), arrays["solarize"]) == (0, 0)
    flipped = photometric(image, keys(1), replace(PLAIN, flip_prob=1.0))
    assert max(difference(flipped * 255, arrays["hflip"])) < 1e-3


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 64])
def test_resized_crop_agrees_with_pillow(reference, method, size):
    arrays = reference("augment")
    boxes = jnp.asarray(arrays["boxes"])
    images = jnp.stack([jnp.asarray(arrays["image"])] * len(boxes))
    got = resized_crop(images, boxes, size=size, method=method)
    for number, crop in enumerate(got):
        want = arrays[f"resized_crop.{method}.{size}.box{number}"]
        mean, tail = difference(crop[None], want)
        assert mean <= 0.05 and tail <= 1


def test_resized_crop_of_the_whole_image_is_the_image(images):
    whole = jnp.tile(jnp.array([[0, 0, 16, 16]]), (8, 1))
    for method in ("bicubic", "bilinear"):
        np.testing.assert_array_equal(
            resized_crop(images, whole, size=16, method=method), images
        )


def test_resized_crop_ignores_what_lies_outside_the_box(images):
    boxes = jnp.tile(jnp.array([[3, 2, 9, 7]]), (8, 1))
    outside = jnp.zeros_like(images).at[:, 3:12, 2:9].set(images[:, 3:12, 2:9])
    np.testing.assert_array_equal(
        resized_crop(images, boxes, 12),
        resized_crop(outside, boxes, 12),
    )


def test_an_unknown_method_names_the_choices(images):
    with pytest.raises(ConfigError, match="bilinear"):
        augment.resized_crop(images, jnp.zeros((8, 4), jnp.int32), 8, "nearest")


@pytest.mark.parametrize("name", OPS)
def test_identity_parameters_change_nothing(images, name):
    neutral = 0.0 if name in ("hue", "blur") else 1.0
    got = OPS[name](images, jnp.full(8, neutral))
    np.testing.assert_allclose(got, images, atol=1e-3)


@pytest.mark.parametrize("name", OPS)
def test_results_stay_in_range_and_are_float32(images, name):
    amounts = jnp.linspace(-0.5, 0.5, 8) if name == "hue" else jnp.linspace(0.0, 2.5, 8)
    got = OPS[name](images, amounts)
    assert got.dtype == jnp.float32
    assert got.min() >= -1e-3 and got.max() <= 255.001


def test_each_image_has_its_own_parameter(images):
    amounts = jnp.linspace(0.2, 1.8, 8)
    for name, operation in OPS.items():
        together = operation(images, amounts)
        for row in (0, 5):
            alone = operation(images[row : row + 1], amounts[row : row + 1])
            np.testing.assert_allclose(together[row], alone[0], atol=1e-3, err_msg=name)


def test_a_third_of_a_turn_moves_red_to_green_and_back():
    red = jnp.full((1, 2, 2, 3), jnp.array([200, 50, 50])[None, None, None])
    green = OPS["hue"](red, jnp.array([1 / 3]))
    np.testing.assert_allclose(green[0, 0, 0], [50, 200, 50], atol=1e-3)
    np.testing.assert_allclose(OPS["hue"](green, jnp.array([-1 / 3])), red, atol=1e-3)


def test_a_grey_image_stays_grey(images):
    grey = grayscale(images)
    np.testing.assert_allclose(grayscale(grey), grey, atol=1e-3)
    for name in ("saturation", "hue"):
        got = OPS[name](grey, jnp.linspace(0.1, 1.9, 8))
        np.testing.assert_allclose(got, grey, atol=1e-3)


def test_solarise_inverts_from_the_threshold_on():
    levels = jnp.arange(256.0).reshape(1, 16, 16, 1).repeat(3, axis=3)
    got = np.asarray(augment.solarize(levels)).reshape(256, 3)
    np.testing.assert_array_equal(got[:128, 0], np.arange(128))
    np.testing.assert_array_equal(got[128:, 0], 127 - np.arange(128))
    np.testing.assert_array_equal(augment.solarize(levels, 256), levels)


def test_blur_keeps_constants_and_the_sum_and_spread_of_an_impulse():
    sigma = np.array([0.0, 0.1, 0.5, 1.0, 1.7, 2.0, 3.0], np.float32)
    constant = jnp.full((7, 24, 32, 3), 200.0)
    np.testing.assert_allclose(
        OPS["blur"](constant, jnp.asarray(sigma)), constant, atol=1e-3
    )
    impulse = jnp.zeros((7, 41, 45, 3)).at[:, 20, 22].set(255.0)
    got = np.asarray(OPS["blur"](impulse, jnp.asarray(sigma)))[..., 0] / 255
    np.testing.assert_allclose(got.sum(axis=(1, 2)), 1, rtol=1e-5)
    for axis, middle in ((1, 20), (2, 22)):
        profile = got.sum(axis=3 - axis)
        offset = np.arange(profile.shape[1]) - middle
        np.testing.assert_allclose(profile @ offset**2, sigma**2, atol=1e-3)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation(images):
    view = View(16)
    want = (np.asarray(images) / 255 - np.array(view.mean)) / np.array(view.std)
    got = augment.normalize(images, view.mean, view.std)
    np.testing.assert_allclose(got, want, atol=1e-5)
    half = augment.normalize(images[0], view.mean, view.std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16 and half.shape == (16, 16, 3)
    plain = photometric(images, keys(8), replace(view, flip_prob=0.0))
    np.testing.assert_allclose(plain, want, atol=1e-5)


def rate_tolerance(count: int, probability: float) -> float:
    return 5 * (probability * (1 - probability) / count) ** 0.5


@pytest.mark.parametrize("setting", ["flip", "jitter", "gray", "blur", "solarize"])
def test_each_step_has_its_probability(setting):
    count, probability = 4000, 0.3
    image = jnp.array([[[250, 90, 30], [60, 120, 10]], [[10, 30, 200], [220, 80, 20]]])
    images = jnp.tile(image[None], (count, 1, 1, 1))
    strength = {"brightness": 0.5} if setting == "jitter" else {}
    view = replace(PLAIN, **{f"{setting}_prob": probability}, **strength)
    changed = np.abs(apply(images, view) - images).max(axis=(1, 2, 3)) > 1e-2
    # The blur's sigma is from 0.1 on, the factor seldom 1: nearly all changes are seen.
    assert abs(changed.mean() - probability) < rate_tolerance(count, probability) + 2e-3
    always = apply(images, replace(view, **{f"{setting}_prob": 1.0}))
    assert (np.abs(always - images).max(axis=(1, 2, 3)) > 1e-2).mean() > 0.99


def test_factors_are_uniform_in_their_ranges():
    images = jnp.full((4000, 1, 1, 3), 100.0)
    for strength, (low, high) in {0.4: (0.6, 1.4), 1.4: (0.0, 2.4)}.items():
        view = replace(PLAIN, brightness=strength, jitter_prob=1.0)
        factors = np.sort(apply(images, view)[:, 0, 0, 0] / 100)
        want = np.linspace(low, high, 4000)
        # Kolmogorov-Smirnov: 2 / sqrt(n) is passed by one seed in a thousand.
        assert np.abs(factors - want).max() / (high - low) < 2 / 4000**0.5


def test_the_24_orders_of_the_jitter_are_equally_likely_and_carried_out():
    count = 2400
    image = jnp.array([[[250, 90, 30], [60, 120, 10]], [[10, 30, 200], [220, 80, 20]]])
    images = jnp.tile(image[None].astype(jnp.float32), (count, 1, 1, 1))
    strong = {"brightness": 1.5, "contrast": 1.5, "saturation": 1.5, "hue": 0.2}
    view = replace(PLAIN, jitter_prob=1.0, **strong)
    drawn = draws(count)
    plan, _ = augment.jitter_plan(drawn, view, list(range(4)))
    got, turn = apply(images, view), drawn[:, augment.FACTORS :]
    amounts = {name: 2.5 * turn[:, place] for place, name in enumerate(JITTER)}
    amounts["hue"] = 0.4 * turn[:, 3] - 0.2
    counts, gaps = [], np.zeros((24, count))
    for number, order in enumerate(itertools.permutations(range(4))):
        planned = np.all(plan == np.array(order)[:, None], axis=0)
        counts.append(planned.sum())
        want = images
        for op in order:
            want = OPS[JITTER[op]](want, amounts[JITTER[op]])
        gaps[number] = np.abs(want - got).max(axis=(1, 2, 3))
        # An ulp may decide how the mean grey is rounded in a few images.
        assert np.mean(gaps[number, planned] < 1e-2) > 0.97
    # The order shows: most images agree with few of the others.
    assert np.mean(gaps < 1e-2) < 0.2
    deviation = np.sum((np.array(counts) - count / 24) ** 2 / (count / 24))
    assert deviation < 60  # chi-square with 23 degrees of freedom: p < 5e-5


def test_the_order_of_the_operations_shows_in_the_pixels():
    """Bright red clips before it is made greyer, or not if that comes first."""
    images = jnp.tile(jnp.array([[[[255, 0, 0]]]]), (2000, 1, 1, 1))
    view = replace(PLAIN, brightness=1.0, saturation=1.0, jitter_prob=1.0)
    got = apply(images, view)[:, 0, 0]
    bright, colour = 2 * np.asarray(draws(2000)).T[augment.FACTORS :][[0, 2]]
    first = np.asarray(OPS["brightness"](images, jnp.asarray(bright)))
    first = np.asarray(OPS["saturation"](first, jnp.asarray(colour)))[:, 0, 0]
    telling = (bright > 1.1) & (colour < 0.9)
    share = (np.abs(first - got).max(axis=1) < 1e-2)[telling].mean()
    assert abs(share - 0.5) < rate_tolerance(int(telling.sum()), 0.5)


def test_a_view_depends_on_its_own_sample_alone(images):
    alone = photometric(images[3:4], keys(8)[3:4], FULL)
    together = photometric(images, keys(8), FULL)
    shuffled = photometric(images[::-1], keys(8)[::-1], FULL)
    np.testing.assert_allclose(together[3], alone[0], atol=1e-3)
    np.testing.assert_allclose(shuffled[4], alone[0], atol=1e-3)


def test_seed_epoch_index_and_view_each_change_the_key():
    drawn = [keys(4), keys(4, seed=2), keys(4, epoch=3), keys(4, view_id=1)]
    data = np.concatenate([jax.random.key_data(key) for key in drawn])
    assert len(np.unique(data, axis=0)) == 16
    with jax.default_prng_impl("rbg"):
        chex.assert_trees_all_equal(jax.random.key_data(keys(4)), data[:4])


def test_float64_does_not_change_the_views(images, x64):
    got = photometric(images, keys(8), FULL)
    assert got.dtype == jnp.float32
    with jax.enable_x64(False):
        want = photometric(images, keys(8), FULL)
    np.testing.assert_allclose(got, want, atol=1e-4)


def resident_batch(images: jax.Array, views: tuple[View, ...]) -> dict:
    random = np.random.default_rng(3)
    index = random.permutation(len(images)).astype(np.int32)
    boxes = random.integers((0, 0, 6, 6), (6, 6, 11, 11), (len(index), len(views), 4))
    return {
        "images": images,
        "boxes": jnp.asarray(boxes, jnp.int32),
        "index": jnp.asarray(index),
        "epoch": jnp.int32(5),
    }


def host_batch(batch: dict, views: tuple[View, ...], groups: tuple) -> dict:
    """The batch that the host would send: the same crops, as uint8."""
    crops = [
        resized_crop(
            batch["images"][batch["index"]],
            batch["boxes"][:, v],
            view.size,
            view.method,
        ).astype(jnp.uint8)
        for v, view in enumerate(views)
    ]
    stacks = tuple(jnp.stack([crops[v] for v in group], axis=1) for group in groups)
    return {"index": batch["index"], "epoch": batch["epoch"], "views": stacks}


def test_make_views_is_the_same_for_host_and_device_residence(images):
    small = replace(PLAIN, size=8)
    views, groups = (FULL, replace(FULL, blur_prob=0.0), small), ((0, 1), (2,))
    batch = resident_batch(images, views)
    device = make_views(batch, views=views, seed=7)
    host = make_views(host_batch(batch, views, groups), views=views, seed=7)
    assert [group.shape for group in device] == [(8, 2, 16, 16, 3), (8, 1, 8, 8, 3)]
    chex.assert_trees_all_close(device, host, atol=1e-3)


def test_one_channel_gives_what_three_equal_channels_give(images):
    views = build(16, recipe="vicreg")
    grey = images[..., :1]
    batch = resident_batch(grey, views)
    (one,) = make_views(batch, views=views, seed=7)
    batch["images"] = grey.repeat(3, axis=3)
    (three,) = make_views(batch, views=views, seed=7)
    grey_level = 1 / (255 * min(views[0].std))
    # Solarisation is a jump at 128, and contrast rounds the mean: an ulp may decide.
    gap = np.abs(np.asarray(one) - np.asarray(three))
    assert np.mean(gap > grey_level) < 0.005


def test_views_of_a_step_differ_and_do_not_depend_on_the_batch(images):
    views = build(16, recipe="vicreg")
    batch = resident_batch(images, views)
    (all_rows,) = make_views(batch, views=views, seed=7)
    half = batch | {name: batch[name][2:4] for name in ("index", "boxes")}
    (two_rows,) = make_views(half, views=views, seed=7)
    np.testing.assert_allclose(all_rows[2:4], two_rows, atol=1e-3)
    assert np.abs(all_rows[:, 0] - all_rows[:, 1]).mean() > 0.1


def test_a_sharded_batch_needs_no_communication(images):
    views = build(16, recipe="vicreg")
    batch = resident_batch(images, views)
    devices = len(jax.devices())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {
        name: jax.device_put(value, rows if name in ("index", "boxes") else whole)
        for name, value in batch.items()
    }
    compiled = make_views.lower(placed, views=views, seed=7).compile()
    program = compiled.as_text() or ""
    assert program
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program
    (got,) = compiled(placed)
    assert got.sharding.is_equivalent_to(rows, got.ndim)
    (want,) = make_views(batch, views=views, seed=7)
    np.testing.assert_allclose(got, want, atol=1e-3)


# --- Patches --------------------------------------------------------------------------


def coordinates(side):
    """[side, side, 3] whose pixels say where they are."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.float32)


def test_patches_are_cut_from_shifted_cells_of_the_grid():
    side, size, count, n = 256, 96, 5, 400
    keys = view_keys(0, 0, jnp.arange(n), 0)
    images = jnp.broadcast_to(coordinates(side), (n, side, side, 3))
    patches = np.asarray(augment.cut_patches(images, keys, count, size))
    assert patches.shape == (n, count, size, size, 3)
    corners = patches[:, :, 0, 0, :2]
    np.testing.assert_array_equal(
        patches - corners[:, :, None, None] @ np.eye(2, 3, dtype=np.float32),
        np.broadcast_to(coordinates(size), patches.shape),
    )
    # Steps of (256 - 96 - 24) // 2 = 68 px are more than the shifts of at most 24.
    cells, shifts = np.divmod(corners, 68)
    assert shifts.min() == 0 and shifts.max() == 24
    assert set(np.unique(cells)) == {0, 1, 2}
    numbers = 3 * cells[..., 0] + cells[..., 1]
    assert all(len(set(row)) == count for row in numbers)
    # Each cell is in a picture with probability 5/9, each shift has probability 1/25.
    odds = np.bincount(numbers.astype(int).ravel(), minlength=9) / n
    np.testing.assert_allclose(odds, 5 / 9, atol=5 * np.sqrt(5 / 9 * 4 / 9 / n))
    share = np.bincount(shifts.astype(int).ravel(), minlength=25) / shifts.size
    np.testing.assert_allclose(share, 0.04, atol=5 * np.sqrt(0.04 / shifts.size))


def test_patches_that_do_not_fit_are_refused():
    keys = view_keys(0, 0, jnp.arange(2), 0)
    with pytest.raises(ValueError, match="96 px with shifts do not fit 119 px"):
        augment.cut_patches(jnp.zeros((2, 119, 119, 3)), keys, 5, 96)


@pytest.mark.parametrize(
    ("recipe", "shapes"),
    [
        ("obow", [(8, 1, 16, 16, 3), (8, 2, 16, 16, 3), (8, 5, 8, 8, 3)]),
        ("swav", [(8, 2, 16, 16, 3), (8, 6, 8, 8, 3)]),
    ],
)
def test_multi_crop_has_one_group_for_each_pass(images, recipe, shapes):
    small = {
        "obow": {
            "resize": 18,
            "crop_size": 16,
            "patch_size": 8,
            "patch_image_size": 32,
        },
        "swav": {"small_size": 8},
    }
    views = build(16, recipe=recipe, **small[recipe])
    batch = resident_batch(images, views)
    groups = make_views(batch, views=views, seed=7)
    assert [group.shape for group in groups] == shapes
    first, second = groups[-1][:, 0], groups[-1][:, 1]
    assert np.abs(first - second).mean() > 0.05
