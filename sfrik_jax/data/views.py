"""What a view of an image is: recipes, the keyed hash, sample order, crop boxes.

Every random choice made on the host is a function of (seed, epoch, index, view). There
is no generator state: any batch can be drawn alone, in any order, by any process.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sfrik_jax.settings import RECIPE_DEFAULTS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STL10_MEAN = (0.441, 0.428, 0.387)
STL10_STD = (0.268, 0.261, 0.269)
NORMALIZATIONS: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "stl10": {"mean": STL10_MEAN, "std": STL10_STD},
}

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHAIN = np.uint64(0xD1B54A32D192ED03)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# The first coordinate of every hash names its use, so that streams never meet.
_ORDER_STREAM = 1
_CROP_STREAM = 2
SUBSET_STREAM = 3
REPLACEMENT_STREAM = 4
_CROP_TRIES = 10


@dataclass(frozen=True)
class View:
    """One picture made of a source, a view or several: crop, then flip, jitter, grey,
    blur, solarise, normalise.

    With `resize` the crop is no random one but the centre: the picture's short side
    brought to `resize`, and the central `size` of it. With `patches` the result is cut
    into that many views of `patch_size` (see `augment.cut_patches`). Views of one
    `group` and size go through the network in one pass; `joint` says that batch norm's
    statistics are those of the whole pass, not of each view. An `anchor` is compared
    with all other views.

    `size` is the side in pixels, `scale` the share of the image's area that a crop
    covers, `ratio` its width over height (log-uniform). Jitter strengths s give factors
    uniform in max(0, 1 - s) … 1 + s, `hue` h a shift uniform in -h … h (a share of the
    circle). `sigma` is the blur's standard deviation in pixels. `mean` and `std` are
    per channel, for values in 0 … 1. The defaults crop and flip, and nothing else.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    method: str = "bicubic"
    flip_prob: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_prob: float = 0.0
    gray_prob: float = 0.0
    blur_prob: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_prob: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 0
    patches: int = 0
    patch_size: int = 0
    group: int = 0
    joint: bool = False
    anchor: bool = True

    @property
    def count(self) -> int:
        """The views that the network sees of it."""
        return self.patches or 1


def two_views(
    size: int,
    *,
    crop_scale: tuple[float, float],
    blur_prob: tuple[float, float],
    solarize_prob: tuple[float, float],
    normalization: str,
    **operations: Any,
) -> tuple[View, ...]:
    """Two random crops, each with batch-norm statistics of its own.

    The recipes of VICReg, SimCLR and AUH, and `small`, which is not from the paper:
    8 % of a picture of 28 px would be a crop of 8 px, and a blur of 2 px there is one
    of 16 px in a picture of 224 px.
    """
    common: dict[str, Any] = NORMALIZATIONS[normalization] | operations
    return tuple(
        View(size, scale=crop_scale, blur_prob=blur, solarize_prob=solarize, **common)
        for blur, solarize in zip(blur_prob, solarize_prob, strict=True)
    )


def obow(
    size: int,
    *,
    resize: int,
    crop_count: int,
    crop_size: int,
    crop_scale: tuple[float, float],
    patch_count: int,
    patch_size: int,
    patch_image_size: int,
    patch_scale: tuple[float, float],
    flip_prob: float,
    blur_prob: float,
    normalization: str,
    **jitter: Any,
) -> tuple[View, ...]:
    """The original picture as the anchor, random crops, and patches of one more crop.

    Three passes: the original, the crops, the patches. Source: Gidaris et al., "OBoW:
    Online bag-of-visual-words generation", CVPR 2021, arXiv 2012.11552.
    """
    plain: dict[str, Any] = NORMALIZATIONS[normalization] | {
        "flip_prob": flip_prob,
        "method": "bilinear",
        "joint": True,
    }
    augmented: dict[str, Any] = plain | jitter | {"anchor": False}
    original = View(size, resize=resize, group=0, **plain)
    crop = View(crop_size, scale=crop_scale, blur_prob=blur_prob, group=1, **augmented)
    patches = View(
        patch_image_size,
        scale=patch_scale,
        patches=patch_count,
        patch_size=patch_size,
        group=2,
        **augmented,
    )
    return (original, *[crop] * crop_count, *[patches] * (patch_count > 0))


def swav(
    size: int,
    *,
    large_count: int,
    large_scale: tuple[float, float],
    small_count: int,
    small_size: int,
    small_scale: tuple[float, float],
    normalization: str,
    **operations: Any,
) -> tuple[View, ...]:
    """Large crops, the anchors, and small ones: one pass for each of the two sizes.

    Source: Caron et al., "Unsupervised learning of visual features by contrasting
    cluster assignments", NeurIPS 2020, arXiv 2006.09882.
    """
    common: dict[str, Any] = NORMALIZATIONS[normalization] | operations
    common |= {"method": "bilinear", "joint": True}
    large = View(size, scale=large_scale, group=0, **common)
    small = View(small_size, scale=small_scale, group=1, anchor=False, **common)
    return (*[large] * large_count, *[small] * small_count)


# settings.RECIPE_DEFAULTS holds the keyword arguments of each.
RECIPES: dict[str, Callable[..., tuple[View, ...]]] = {
    "vicreg": two_views,
    "simclr": two_views,
    "auh": two_views,
    "small": two_views,
    "obow": obow,
    "swav": swav,
}


def build(size: int, *, recipe: str, **settings) -> tuple[View, ...]:
    """The views of a configuration's `augment` section.

    Args:
      size: `data.image_size`. recipe: a name of RECIPES.
      settings: those of the recipe that are not its defaults.
    """
    return RECIPES[recipe](size, **(RECIPE_DEFAULTS[recipe] | settings))


def size_groups(views: tuple[View, ...]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the views of each pass: runs of views of one size and one group."""
    runs = itertools.groupby(
        range(len(views)), key=lambda number: (views[number].size, views[number].group)
    )
    return tuple(tuple(run) for _, run in runs)


def anchors(views: tuple[View, ...]) -> tuple[int, ...]:
    """Which of the network's views are anchors, the views of patches counted each."""
    flags = [view.anchor for view in views for _ in range(view.count)]
    return tuple(number for number, anchor in enumerate(flags) if anchor)


def num_views(views: tuple[View, ...]) -> int:
    """The views of one picture that the network sees."""
    return sum(view.count for view in views)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def hash_bits(seed: int, *coords: ArrayLike) -> np.ndarray:
    """64 random bits for each combination of integer coordinates, uint64 [...].

        h_0 = mix(seed + g),   h_{k+1} = mix((h_k ^ coord_k) + c)

    mix and g are splitmix64's finaliser and step (Steele, Lea, Flood 2014), c another
    odd number, so that a coordinate is not a draw. Coordinates broadcast against each
    other. Only integer operations: the same on every machine.
    """
    word = np.array([seed % 2**64], np.uint64)  # one axis: scalars warn on overflow
    bits = _mix(word + _GOLDEN)
    for coord in coords:
        word = np.atleast_1d(np.asarray(coord)).astype(np.uint64)
        bits = _mix((bits ^ word) + _CHAIN)
    return bits.reshape(np.broadcast_shapes(*(np.shape(coord) for coord in coords)))


def hash_uniform(seed: int, *coords: ArrayLike, draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [..., draws], from `hash_bits` of `coords`.

    Draw d is the upper 53 bits of splitmix64's d-th output from that state, over 2^53.
    """
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(hash_bits(seed, *coords)[..., None] + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch `epoch` visits the `n` samples, int64 [n]."""
    keys = hash_bits(seed, _ORDER_STREAM, epoch, np.arange(n))
    return np.argsort(keys, kind="stable")


def crop_boxes(
    heights: ArrayLike,
    widths: ArrayLike,
    view: View,
    *,
    seed: int,
    epoch: int,
    index: ArrayLike,
    view_id: int,
) -> np.ndarray:
    """Random boxes (top, left, height, width), int32 [B, 4], as RandomResizedCrop's.

    area = height · width · U(scale),   ratio = exp(U(log lo, log hi)),
    w = round(sqrt(area · ratio)),   h = round(sqrt(area / ratio))

    A view with `resize` has the central square instead, whose side is size / resize of
    the short side: the centre crop of the resized picture, up to half a pixel.

    The first of ten tries that fits is placed uniformly; when none fits, the largest
    centred box within the ratios is taken. Source: torchvision, RandomResizedCrop.

    Args:
      heights, widths: pixels, [B]. index: sample numbers, [B].
      view_id: the view's number in its recipe.
    """
    height, width = (np.asarray(side, np.int64) for side in (heights, widths))
    if view.resize:
        return _centre_boxes(height, width, view.size / view.resize)
    draws = hash_uniform(
        seed, _CROP_STREAM, epoch, index, view_id, draws=2 * _CROP_TRIES + 2
    )
    sides, place = draws[:, :-2], draws[:, -2:]
    low, high = np.log(view.ratio)
    ratio = np.exp(low + (high - low) * sides[:, 1::2])
    share = view.scale[0] + (view.scale[1] - view.scale[0]) * sides[:, ::2]
    area = (height * width)[:, None] * share
    crop_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    crop_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (crop_w > 0) & (crop_w <= width[:, None])
    fits &= (crop_h > 0) & (crop_h <= height[:, None])
    found, rows = fits.any(axis=1), np.arange(len(fits))
    first = fits.argmax(axis=1)

    centre_h, centre_w = _largest_within(height, width, view.ratio)
    box_h = np.where(found, crop_h[rows, first], centre_h)
    box_w = np.where(found, crop_w[rows, first], centre_w)
    room = np.stack([height - box_h, width - box_w], axis=1)
    drawn = (place * (room + 1)).astype(np.int64)
    corner = np.where(found[:, None], drawn, room // 2)
    return np.column_stack([corner, box_h, box_w]).astype(np.int32)


def _centre_boxes(height: np.ndarray, width: np.ndarray, share: float) -> np.ndarray:
    side = np.maximum(np.rint(np.minimum(height, width) * share), 1).astype(np.int64)
    corner = [(height - side) // 2, (width - side) // 2]
    return np.column_stack([*corner, side, side]).astype(np.int32)


def _largest_within(
    height: np.ndarray, width: np.ndarray, ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Sides of torchvision's fallback: the whole image, cut to the nearest ratio."""
    low, high = ratio
    tall, wide = width / height < low, width / height > high
    box_h = np.where(tall, np.rint(width / low), height).astype(np.int64)
    box_w = np.where(wide, np.rint(height * high), width).astype(np.int64)
    # An extreme strip rounds to nothing in torchvision's formula; one pixel remains.
    return np.clip(box_h, 1, height), np.clip(box_w, 1, width)
