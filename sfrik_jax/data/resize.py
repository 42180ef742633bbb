"""Resized crops of arrays: Pillow's result, or one near it in less time."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from sfrik_jax.errors import ConfigError

METHODS = ("bicubic", "bilinear", "fast")
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
# Pillow averages blocks of pixels first, down to this multiple of the target.
_REDUCING_GAP = 2.0

# The threads are the loader's; those of OpenCV would compete with them.
cv2.setNumThreads(1)


def check(method: str) -> None:
    """Raises ConfigError unless `method` is one of METHODS."""
    if method not in METHODS:
        raise ConfigError(f"resampling method {method!r}; choose one of {METHODS}")


def exact(
    pixels: np.ndarray, box: Sequence[int], height: int, width: int, method: str
) -> np.ndarray:
    """The box (top, left, height, width) of uint8 [H, W, C] as [height, width, C].

    By Pillow, from the cut-out box: its `resize(box=…)` lets the filter see the pixels
    beyond the border. `pixels` has to be contiguous.
    """
    return array(_cut(pixels, *box).resize((width, height), _FILTERS[method]))


def fast(
    pixels: np.ndarray, box: Sequence[float], height: int, width: int
) -> np.ndarray:
    """The box (top, left, height, width) of uint8 [H, W, C] as [height, width, C].

    Sides may be fractions of a pixel. Whole ones that shrink to more than half go to
    OpenCV. It does not stretch its bicubic filter by the scale s (pixels of the box to
    one of the result), so a filter (b, 1 - 2b, b) comes before it, against aliases:

        b = max(0, 0.2 s - 0.18)

    fitted to Pillow's result on photographs. The rest is left to Pillow.
    """
    top, left, down, across = box
    first_row, first_column = math.floor(top), math.floor(left)
    rows = math.ceil(top + down) - first_row
    columns = math.ceil(left + across) - first_column
    scales = down / height, across / width
    if (rows, columns) == (down, across) and max(scales) < _REDUCING_GAP:
        cut = pixels[first_row : first_row + rows, first_column:][:, :columns]
        return _bicubic(cut, scales, height, width)
    # Sums of fractions may end a hair beyond the picture.
    rows = min(rows, pixels.shape[0] - first_row)
    columns = min(columns, pixels.shape[1] - first_column)
    top, left = top - first_row, left - first_column
    image = _cut(pixels, first_row, first_column, rows, columns).resize(
        (width, height),
        Image.Resampling.BICUBIC,
        box=(left, top, min(left + across, columns), min(top + down, rows)),
        reducing_gap=_REDUCING_GAP,
    )
    return array(image)


def _bicubic(
    cut: np.ndarray, scales: tuple[float, float], height: int, width: int
) -> np.ndarray:
    down, across = (max(0.0, 0.2 * scale - 0.18) for scale in scales)
    if down or across:
        row, column = (np.array([b, 1 - 2 * b, b]) for b in (across, down))
        cut = cv2.sepFilter2D(cut, -1, row, column, borderType=cv2.BORDER_REPLICATE)
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_CUBIC)
    return small.reshape(height, width, -1)  # OpenCV drops an axis of one band


def _cut(
    pixels: np.ndarray, top: int, left: int, height: int, width: int
) -> Image.Image:
    """A box as an image, its rows copied once; `fromarray` would copy them twice."""
    mode = "L" if pixels.shape[2] == 1 else "RGB"
    stride, bands = pixels.strides[:2]
    rest = pixels.reshape(-1)[top * stride + left * bands :]
    return Image.frombytes(mode, (width, height), rest, "raw", mode, stride, 1)


def array(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 1 or 3] of a picture in mode "L" or "RGB"."""
    return np.asarray(image).reshape(image.height, image.width, -1)
