"""From encoded pictures to uint8 arrays: decode, crop, resize. Needs Pillow alone.

"bicubic" and "bilinear" are Pillow's antialiased filters on the cut-out box, the same
bytes as torchvision's resized_crop on Pillow images. "fast" is bicubic on a JPEG
decoded at 1/2, 1/4 or 1/8 of its size, as far as every box keeps the pixels it needs.
Measured on random crops against "bicubic", mean absolute difference in grey levels and
speed-up: 500x375 photographs to 64 px 1.7 to 2.6 and 2 x, to 224 px 0.03 and none (few
crops leave room for a reduction); 1000 px ones to 224 px 0.2 to 0.5 and 1.1 to 2.4 x.
"""

import functools
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from sfrik_jax.errors import ConfigError, CorruptInputError

Item = bytes | np.ndarray
Box = Sequence[int] | np.ndarray

METHODS = ("bicubic", "bilinear", "fast")
MAX_PIXELS = 50_000_000
# What Pillow raises for damaged files, over all of its formats.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "fast": Image.Resampling.BICUBIC,
}
_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# Fast resizing shrinks by whole steps down to this multiple of the target first.
_REDUCING_GAP = 2.0


class Picture:
    """One picture, opened: its size is known, its pixels are decoded when asked for.

    Args:
      item: an encoded file, or uint8 [H, W], [H, W, 1] or [H, W, 3].
      name: what a message calls it.

    Raises:
      CorruptInputError: no picture, damaged, or more than 50 million pixels (told from
        the header, before any memory is taken).
    """

    def __init__(self, item: Item, name: str = "picture") -> None:
        self._name = name
        if isinstance(item, np.ndarray):
            single = item.ndim == 3 and item.shape[2] == 1
            self._image = Image.fromarray(item[..., 0] if single else item)
            orientation = 1
        else:
            try:
                self._image = Image.open(io.BytesIO(item))
                self._check_size()
                orientation = self._image.getexif().get(_EXIF_ORIENTATION, 1)
            except _DAMAGE as error:
                raise self._corrupt(error) from error
        self._upright = orientation == 1
        width, height = self._image.size
        sideways = orientation in (5, 6, 7, 8)
        self.height, self.width = (width, height) if sideways else (height, width)

    def _check_size(self) -> None:
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million"
            )

    def _corrupt(self, error: BaseException) -> CorruptInputError:
        reason = str(error) or type(error).__name__
        return CorruptInputError(
            f"{self._name} cannot be decoded ({reason}); replace or remove it"
        )

    def _draft(self, reduction: int) -> None:
        # Only a JPEG that is not yet decoded takes this; all else ignores it.
        width, height = self._image.size
        size = (width // reduction, height // reduction)
        self._image.draft(self._image.mode, size)

    @functools.cached_property
    def _pixels(self) -> Image.Image:
        """Mode "L" or "RGB", upright."""
        try:
            self._image.load()
            image = self._image
            return _plain(image if self._upright else ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise self._corrupt(error) from error

    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return _rgb(self._pixels)

    def crops(
        self, boxes: Sequence[Box], sizes: Sequence[int], methods: Sequence[str]
    ) -> list[np.ndarray]:
        """Each box (top, left, height, width) resized to uint8 [size, size, 3]."""
        if all(method == "fast" for method in methods):
            sides = [
                min(box[2:]) / size for box, size in zip(boxes, sizes, strict=True)
            ]
            self._draft(max(1, int(min(sides))))
        return [
            _rgb(self._crop(box, size, method))
            for box, size, method in zip(boxes, sizes, methods, strict=True)
        ]

    def _crop(self, box: Box, size: int, method: str) -> Image.Image:
        top, left, height, width = (int(side) for side in box)
        image, resample = self._pixels, _filter(method)
        if method != "fast":
            # `resize(box=…)` would let the filter see pixels beyond the box's border.
            image = image.crop((left, top, left + width, top + height))
            return image.resize((size, size), resample)
        across, down = image.width / self.width, image.height / self.height
        return image.resize(
            (size, size),
            resample,
            box=(
                left * across,
                top * down,
                min((left + width) * across, image.width),
                min((top + height) * down, image.height),
            ),
            reducing_gap=_REDUCING_GAP,
        )

    def resize_center_crop(self, resize: int, size: int, method: str) -> np.ndarray:
        """Short side to `resize`, then the central uint8 [size, size, 3]."""
        short = min(self.height, self.width)
        height, width = (
            resize if side == short else int(resize * side / short)
            for side in (self.height, self.width)
        )
        gap = None
        if method == "fast":
            self._draft(max(1, short // resize))
            gap = _REDUCING_GAP
        image = self._pixels
        if image.size != (width, height):
            image = image.resize((width, height), _filter(method), reducing_gap=gap)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return _rgb(image.crop((left, top, left + size, top + size)))


def _filter(method: str) -> Image.Resampling:
    if method not in _FILTERS:
        raise ConfigError(f"resampling method {method!r}; choose one of {METHODS}")
    return _FILTERS[method]


def _plain(image: Image.Image) -> Image.Image:
    """Mode "L" for grey pictures, "RGB" for all others; transparency is dropped."""
    if image.mode in ("L", "RGB"):
        return image  # converting would copy, a twentieth of the work of a picture
    if image.mode in _SIXTEEN_BITS:
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(high.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    return image.convert("RGB")


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_rgb(item: Item, name: str = "picture") -> np.ndarray:
    """uint8 [H, W, 3] of any picture: grey, palette, RGBA, CMYK, 16 bits, turned.

    16-bit values keep their high byte, transparency is dropped, EXIF orientation is
    applied, of several frames the first is taken. Errors: see `Picture`.
    """
    return Picture(item, name).rgb()


def resized_crop(item: Item, box: Box, size: int, method: str) -> np.ndarray:
    """The box (top, left, height, width) resized to uint8 [size, size, 3].

    Args:
      item: an encoded file, or uint8 [H, W, 1 or 3].
      method: "bicubic", "bilinear" (Pillow's result, exactly) or "fast".
    """
    return Picture(item).crops([box], [size], [method])[0]


def resize_center_crop(
    item: Item, resize: int, size: int, method: str, name: str = "picture"
) -> np.ndarray:
    """Short side to `resize`, then the central square: uint8 [size, size, 3].

    Rounds sizes and corners as torchvision's Resize and CenterCrop do.

    Raises:
      ConfigError: size > resize, or an unknown method.
    """
    if size > resize:
        raise ConfigError(
            f"eval.image_size={size} is more than eval.resize={resize}; raise it"
        )
    return Picture(item, name).resize_center_crop(resize, size, method)
