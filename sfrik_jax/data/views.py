"""What a view of an image is: recipes, the keyed hash, sample order, crop boxes.

Every random choice made on the host is a function of (seed, epoch, index, view). There
is no generator state: any batch can be drawn alone, in any order, by any process.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STL10_MEAN = (0.441, 0.428, 0.387)
STL10_STD = (0.268, 0.261, 0.269)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHAIN = np.uint64(0xD1B54A32D192ED03)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# The first coordinate of every hash names its use, so that streams never meet.
_ORDER_STREAM = 1
_CROP_STREAM = 2
SUBSET_STREAM = 3
_CROP_TRIES = 10


@dataclass(frozen=True)
class View:
    """One view: a random crop, then flip, jitter, grey, blur, solarise, normalise.

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


def _jitter(brightness: float, contrast: float, saturation: float, hue: float) -> dict:
    return {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "gray_prob": 0.2,
    }


def vicreg(size: int) -> tuple[View, ...]:
    """VICReg's two views: always blurred, and seldom blurred but at times solarised."""
    jitter = _jitter(0.4, 0.4, 0.2, 0.1)
    return (
        View(size, jitter_prob=0.8, blur_prob=1.0, **jitter),
        View(size, jitter_prob=0.8, blur_prob=0.1, solarize_prob=0.2, **jitter),
    )


def simclr(size: int) -> tuple[View, ...]:
    """SimCLR's two views: strong jitter, blur half of the time."""
    view = View(size, jitter_prob=0.8, blur_prob=0.5, **_jitter(0.8, 0.8, 0.8, 0.2))
    return (view, view)


def auh(size: int) -> tuple[View, ...]:
    """AUH's two views for STL10: jitter always, no blur, STL10's normalisation."""
    jitter = _jitter(0.4, 0.4, 0.4, 0.4)
    view = View(size, jitter_prob=1.0, mean=STL10_MEAN, std=STL10_STD, **jitter)
    return (view, view)


def small(size: int) -> tuple[View, ...]:
    """Two views of pictures up to 64 px: VICReg's jitter, milder crops, no blur.

    Not from the paper. 8 % of a picture of 28 px would be a crop of 8 px, and a blur of
    2 px there is one of 16 px in a picture of 224 px.
    """
    view = View(size, scale=(0.25, 1.0), jitter_prob=0.8, **_jitter(0.4, 0.4, 0.2, 0.1))
    return (view, view)


RECIPES: dict[str, Callable[[int], tuple[View, ...]]] = {
    "vicreg": vicreg,
    "simclr": simclr,
    "auh": auh,
    "small": small,
}


def size_groups(views: tuple[View, ...]) -> tuple[tuple[int, ...], ...]:
    """View numbers, one group for each run of consecutive views of equal size."""
    groups: list[list[int]] = []
    for number, view in enumerate(views):
        if groups and views[groups[-1][-1]].size == view.size:
            groups[-1].append(number)
        else:
            groups.append([number])
    return tuple(tuple(group) for group in groups)


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

    The first of ten tries that fits is placed uniformly; when none fits, the largest
    centred box within the ratios is taken. Source: torchvision, RandomResizedCrop.

    Args:
      heights, widths: pixels, [B]. index: sample numbers, [B].
      view_id: the view's number in its recipe.
    """
    height, width = (np.asarray(side, np.int64) for side in (heights, widths))
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
