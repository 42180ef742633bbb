"""Photometric operations and recipes on the device: arrays in, arrays out.

Images are [n, H, W, 3] with values in 0 … 255. Nothing here looks across the batch, so
every function works on sharded batches without communication. Random numbers come from
one key per view, folded from (seed, epoch, index, view): a view does not depend on its
place in the batch, on the batch size, or on the device.

Reference: what Pillow and torchvision give for the same parameters. They round to whole
grey levels after each operation; here only the resized crop does.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax import resample
from sfrik_jax.data.views import View, size_groups
from sfrik_jax.resample import resized_crop
from sfrik_jax.settings import PATCH_SHIFT

# Inside this module an image batch is a list of channel planes [n, H, W], one (grey) or
# three. On a CPU the trailing channel axis of length 3 would defeat vectorisation.
Planes = list[jax.Array]

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(itertools.permutations(range(4))))  # all 24 orders of the jitter

# The place of each random number among those drawn for a view. New ones go to the end,
# so that old ones keep their values.
DRAWS = 11
FLIP, JITTER, ORDER, FACTORS, GRAY, BLUR, SIGMA, SOLARIZE = 0, 1, 2, 3, 7, 8, 9, 10

_KEY_STREAM = 0x61756767  # keeps these keys apart from others made from the same seed
GRID = 3  # patches come from a grid of 3x3
_PATCH_STREAM = 1  # and the draws of patches from those of a view


def _split(images: jax.Array) -> Planes:
    images = images.astype(jnp.float32)
    return [images[..., channel] for channel in range(images.shape[-1])]


def _join(planes: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(planes, axis=-1)


def _per_image(values: jax.Array) -> jax.Array:
    """[n] -> [n, 1, 1], to go with a plane."""
    return values[:, None, None]


def _check(images: jax.Array, *per_image: jax.Array) -> None:
    chex.assert_shape(images, (None, None, None, 3))
    chex.assert_shape(per_image, (images.shape[0],))


def _luma(planes: Planes) -> jax.Array:
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _mean_luma(planes: Planes) -> jax.Array:
    """The mean grey of each image as a whole number, [n]: Pillow rounds it."""
    return jnp.floor(_luma(planes).mean(axis=(1, 2)) + 0.5)


def _blend(planes: Planes, factor: jax.Array, target: jax.Array) -> Planes:
    """factor x + (1 - factor) target, clipped; target [n, 1 or H, 1 or W]."""
    factor = _per_image(factor.astype(jnp.float32))
    rest = (1 - factor) * target
    return [jnp.clip(factor * plane + rest, 0, 255) for plane in planes]


def _rotate_hue(planes: Planes, shift: jax.Array) -> Planes:
    """Add `shift` turns to the hue of HSV.

    With v the largest channel, c = v - smallest and h the hue in sixths of a turn:
    channel = v - c clip(min(m, 4 - m), 0, 1), m = (h + k) mod 6, k = 5, 3, 1.
    """
    if len(planes) == 1:
        return planes
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    span = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    sixth = jnp.where(value == red, (green - blue) / span, sixth)
    sixth = sixth + 6 * _per_image(shift.astype(jnp.float32))
    turned = []
    for offset in (5, 3, 1):
        place = (sixth + offset) / 6
        place = 6 * (place - jnp.floor(place))
        turned.append(value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1))
    return turned


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """clip(factor x). images [n, H, W, 3] in 0 … 255, factor [n]; not rounded."""
    _check(images, factor)
    return _join(_blend(_split(images), factor, jnp.zeros((1, 1, 1), jnp.float32)))


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """clip(factor x + (1 - factor) mean grey). images [n, H, W, 3], factor [n]."""
    _check(images, factor)
    planes = _split(images)
    return _join(_blend(planes, factor, _per_image(_mean_luma(planes))))


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """clip(factor x + (1 - factor) grey(x)). images [n, H, W, 3], factor [n]."""
    _check(images, factor)
    planes = _split(images)
    return _join(_blend(planes, factor, _luma(planes)))


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Turn the hue by `shift` of the circle (1 = a full turn). images [n, H, W, 3].

    Pillow keeps the hue in 256 steps, which is not copied: on the reference image the
    mean difference is 0.3 to 1.7 grey levels.
    """
    _check(images, shift)
    return _join(_rotate_hue(_split(images), shift))


def grayscale(images: jax.Array) -> jax.Array:
    """The luma 0.299 R + 0.587 G + 0.114 B in all channels. images [n, H, W, 3]."""
    _check(images)
    return _join([_luma(_split(images))] * 3)


def solarize(images: jax.Array, threshold: float = 128) -> jax.Array:
    """x below the threshold, 255 - x from it on. images [n, H, W, 3] in 0 … 255."""
    _check(images)
    return _join(_solarized(_split(images), threshold))


def _solarized(planes: Planes, threshold: float = 128) -> Planes:
    return [jnp.where(plane < threshold, plane, 255 - plane) for plane in planes]


def _blurred(planes: Planes, sigma: jax.Array) -> Planes:
    blurred = resample.blur(jnp.stack(planes, axis=1), sigma)
    return list(jnp.unstack(blurred, axis=1))


def gaussian_blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur(radius=sigma); sigma [n] in pixels, 0 leaves the image.

    images [n, H, W, 3]. Edges repeat; three boxes with the Gaussian's variance.
    """
    _check(images, sigma)
    return _join(_blurred(_split(images), sigma))


def normalize(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """(x / 255 - mean) / std per channel. images [..., 3]; computed in float32."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    scale = (1 / (255 * np.array(std))).astype(np.float32).reshape(shape)
    offset = (-np.divide(mean, std)).astype(np.float32).reshape(shape)
    return (images.astype(jnp.float32) * scale + offset).astype(dtype)


def view_keys(
    seed: int, epoch: jax.typing.ArrayLike, index: jax.Array, view_id: int
) -> jax.Array:
    """One typed key for each sample, [B]; index [B] holds the numbers of the samples.

    The generator is named, so that jax's default setting does not change the views.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    for coordinate in (_KEY_STREAM, epoch, view_id):
        key = jax.random.fold_in(key, coordinate)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(index)


def _active_operations(view: View, channels: int) -> list[int]:
    """The jitter's operations that change anything; hue and saturation leave grey."""
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    changing = range(4) if channels == 3 else (BRIGHTNESS, CONTRAST)
    return [op for op in changing if view.jitter_prob > 0 and strengths[op] > 0]


def jitter_plan(
    draws: jax.Array, view: View, active: list[int]
) -> tuple[jax.Array, jax.Array]:
    """Which operation each image gets in each slot, and how much: [slots, n] each.

    An image without jitter gets brightness 1 in all slots. One of the 24 orders of all
    four operations is drawn, and those that are not active are struck out.
    """
    orders = [[op for op in order if op in active] for order in ORDERS]
    ops = jnp.asarray(orders, jnp.int32)[(24 * draws[:, ORDER]).astype(jnp.int32)]
    strengths = np.array([view.brightness, view.contrast, view.saturation])
    low = np.append(np.maximum(0, 1 - strengths), -view.hue).astype(np.float32)
    high = np.append(1 + strengths, view.hue).astype(np.float32)
    amounts = low[None] + (high - low)[None] * draws[:, FACTORS : FACTORS + 4]
    amounts = jnp.take_along_axis(amounts, ops, axis=1)
    applied = draws[:, JITTER, None] < view.jitter_prob
    ops, amounts = jnp.where(applied, ops, BRIGHTNESS), jnp.where(applied, amounts, 1)
    return ops.T, amounts.T


def _jitter(planes: Planes, draws: jax.Array, view: View, active: list[int]) -> Planes:
    """Up to four operations in each image's own order.

    Brightness, contrast and saturation are one blend with different targets (0, the
    mean grey, the grey image), so a slot is a blend whose target is selected, and the
    hue. The slots are a scan: unrolled, XLA on a CPU computes the planes of one slot
    again for each plane of the next (seconds in place of milliseconds).
    """

    def slot(planes: Planes, plan: tuple[jax.Array, ...]) -> tuple[Planes, None]:
        op, amount = plan
        target = jnp.zeros((1, 1, 1), jnp.float32)
        if CONTRAST in active:
            target = _per_image(jnp.where(op == CONTRAST, _mean_luma(planes), 0))
        if SATURATION in active:
            target = jnp.where(_per_image(op == SATURATION), _luma(planes), target)
        planes = _blend(planes, jnp.where(op == HUE, 1, amount), target)
        if HUE in active:
            planes = _where(op == HUE, _rotate_hue(planes, amount), planes)
        return planes, None

    return jax.lax.scan(slot, planes, jitter_plan(draws, view, active))[0]


def _where(applied: jax.Array, changed: Planes, planes: Planes) -> Planes:
    pairs = zip(changed, planes, strict=True)
    return [jnp.where(_per_image(applied), new, old) for new, old in pairs]


def photometric(images: jax.Array, keys: jax.Array, view: View) -> jax.Array:
    """Flip, colour jitter, grey, blur, solarise, normalise: float32 [B, s, s, 3].

    images [B, s, s, 3] in 0 … 255, uint8 or float, or [B, s, s, 1] for grey ones, which
    cost a third; keys [B] from `view_keys`. Each step is applied to each image with the
    view's probability; a step with probability or strength 0 is not compiled at all.
    """
    chex.assert_rank(images, 4)
    chex.assert_shape(keys, (images.shape[0],))
    draws = jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,), jnp.float32))(keys)
    planes = _split(images)
    if view.flip_prob > 0:
        mirrored = [plane[:, :, ::-1] for plane in planes]
        planes = _where(draws[:, FLIP] < view.flip_prob, mirrored, planes)
    if active := _active_operations(view, len(planes)):
        planes = _jitter(planes, draws, view, active)
    if view.gray_prob > 0:
        grey = [_luma(planes)] * len(planes)
        planes = _where(draws[:, GRAY] < view.gray_prob, grey, planes)
    if view.blur_prob > 0:
        low, high = view.sigma
        sigma = low + (high - low) * draws[:, SIGMA]
        sigma = jnp.where(draws[:, BLUR] < view.blur_prob, sigma, 0)
        planes = _blurred(planes, sigma)
    if view.solarize_prob > 0:
        applied = draws[:, SOLARIZE] < view.solarize_prob
        planes = _where(applied, _solarized(planes), planes)
    return normalize(_join(planes), view.mean, view.std)


def cut_patches(images: jax.Array, keys: jax.Array, count: int, size: int) -> jax.Array:
    """Patches of a 3x3 grid, `count` of the nine in random order: [B, count, p, p, 3].

    Corner (i, j) of the grid is at i · step, j · step with step = (side - p - 24) // 2,
    and each patch is shifted by an integer of its own in 0 … 24 along each axis.

    Args:
      images: [B, S, S, 3], S >= p + 24. keys: [B] typed keys. size: p in pixels.
    """
    side = images.shape[1]
    step = (side - size - PATCH_SHIFT) // (GRID - 1)
    if step < 0:
        raise ValueError(f"patches of {size} px with shifts do not fit {side} px")

    def of_one(image, key):
        order_key, shift_key = jax.random.split(jax.random.fold_in(key, _PATCH_STREAM))
        places = jax.random.permutation(order_key, GRID * GRID)[:count]
        cells = jnp.stack([places // GRID, places % GRID], axis=1)
        shifts = jax.random.randint(shift_key, (count, 2), 0, PATCH_SHIFT + 1)

        def cut(corner):
            start = (corner[0], corner[1], 0)
            return jax.lax.dynamic_slice(image, start, (size, size, image.shape[2]))

        return jax.vmap(cut)(step * cells + shifts)

    return jax.vmap(of_one)(images, keys)


def make_views(
    batch: Mapping[str, Any],
    views: tuple[View, ...],
    seed: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[jax.Array, ...]:
    """The network's input: [B, V_g, s, s, 3] for each pass (see `views.size_groups`).

    `batch` holds "index" [B], "epoch" [] and either "views", the uint8 crops of each
    group [B, V_g, s, s, 3], or "images", the whole data set [N, H, W, 1 or 3], with
    "boxes" [B, V, 4]. The batch stays the leading axis, so that merging the views into
    it moves no data.
    """
    index = batch["index"]
    images = batch["images"][index] if "images" in batch else None
    groups = []
    for number, group in enumerate(size_groups(views)):
        made = []
        for place, view_id in enumerate(group):
            view, keys = views[view_id], view_keys(seed, batch["epoch"], index, view_id)
            if images is None:
                crops = batch["views"][number][:, place]
            else:
                box = batch["boxes"][:, view_id]
                crops = resized_crop(images, box, view.size, view.method)
            pictures = photometric(crops, keys, view)
            if view.patches:
                made.append(cut_patches(pictures, keys, view.patches, view.patch_size))
            else:
                made.append(pictures[:, None])
        groups.append(jnp.concatenate(made, axis=1).astype(dtype))
    return tuple(groups)
