"""From encoded pictures to uint8 arrays: decode, crop, resize.

Pillow opens every picture and says what is wrong with it. The pixels of JPEG files come
from simplejpeg, the same bytes as Pillow's. "bicubic" and "bilinear" are Pillow's
antialiased filters on the cut-out box, the same bytes as torchvision's resized_crop on
Pillow images. "fast" is near bicubic: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
as far as every box keeps the pixels it needs, and OpenCV resizes what is not reduced.
`bench/README.md` says what each costs.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sfrik_jax.data import jpeg, resize
from sfrik_jax.errors import BadPictureError, ConfigError

Item = bytes | np.ndarray
Box = Sequence[int] | np.ndarray

MAX_PIXELS = 50_000_000
# Told by content, whatever a file is called. Pillow knows more formats, among them
# EPS, for which it starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Without it the pixels may be whole, but the file was cut short all the same.
_PNG_END = b"IEND\xae\x42\x60\x82"
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
_EXIF_ORIENTATION = 0x0112
# Pillow warns of pictures that are refused here anyway, and of odd tags.
warnings.filterwarnings("ignore", module=r"PIL\.")
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class Picture:
    """One picture, opened: its size is known, its pixels are decoded when asked for.

    They are not kept: the memory serves the next picture.

    Args:
      item: an encoded file, or uint8 [H, W], [H, W, 1] or [H, W, 3].
      name: what a message calls it.

    Raises:
      BadPictureError: no picture, damaged, or more than 50 million pixels (told from
        the header, before any memory is taken).
    """

    def __init__(self, item: Item, name: str = "picture") -> None:
        self._item, self._name = item, name
        if isinstance(item, np.ndarray):
            self.height, self.width = item.shape[:2]
            return
        try:
            self._image = Image.open(io.BytesIO(item), formats=FORMATS)
            self._check_header(item)
            orientation = self._image.getexif().get(_EXIF_ORIENTATION, 1)
        except _DAMAGE as error:
            raise self._corrupt(error) from error
        self._upright = orientation == 1
        width, height = self._image.size
        sideways = orientation in (5, 6, 7, 8)
        self.height, self.width = (width, height) if sideways else (height, width)

    def _check_header(self, item: bytes) -> None:
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million"
            )
        if self._image.format == "PNG" and item.rfind(_PNG_END) < 0:
            raise ValueError("image file is truncated")

    def _corrupt(self, error: BaseException) -> BadPictureError:
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):  # Pillow's limit is higher
            reason = f"pixels are more than {MAX_PIXELS // 10**6} million"
        if isinstance(error, UnidentifiedImageError):  # its text holds an address
            reason = f"not a picture in {', '.join(FORMATS)}"
        if isinstance(self._item, bytes) and not self._item:
            reason = "the file is empty"
        return BadPictureError(self._name, f"cannot be decoded ({reason})")

    def _pixels(self, room: int = 1, scratch: bool = False) -> np.ndarray:
        """uint8 [h, w, 1 or 3], upright; grey pictures have one band.

        Args:
          room: how much smaller than the picture the result may be; a JPEG takes what
            it can of that, all else ignores it.
          scratch: the array may be overwritten by this thread's next picture.
        """
        if isinstance(self._item, np.ndarray):
            pixels = np.ascontiguousarray(self._item)
            return pixels.reshape(self.height, self.width, -1)
        pixels = self._turbo(room, scratch)
        if pixels is not None:
            return pixels
        try:
            if room > 1:  # only a JPEG takes this
                width, height = self._image.size
                self._image.draft(self._image.mode, (width // room, height // room))
            self._image.load()
            image = self._image
            return resize.array(
                _plain(image if self._upright else ImageOps.exif_transpose(image))
            )
        except _DAMAGE as error:
            raise self._corrupt(error) from error

    def _turbo(self, room: int, scratch: bool) -> np.ndarray | None:
        # Four bands are CMYK or YCCK, inverted or not.
        plain = self._image.format == "JPEG" and self._image.mode in ("L", "RGB")
        if not (plain and self._upright and isinstance(self._item, bytes)):
            return None
        return jpeg.decode(
            self._item,
            self.height,
            self.width,
            grey=self._image.mode == "L",
            reduce=jpeg.reduction(room),
            scratch=scratch,
        )

    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return _rgb(self._pixels())

    def crops(
        self, boxes: Sequence[Box], sizes: Sequence[int], methods: Sequence[str]
    ) -> list[np.ndarray]:
        """Each box (top, left, height, width) resized to uint8 [size, size, 3].

        Raises:
          ConfigError: a box is empty or not within the picture; an unknown method.
        """
        for box in boxes:
            self._check_box(box)
        room = 1
        if all(method == "fast" for method in methods):
            room = _room(boxes, sizes)
        pixels = self._pixels(room, scratch=True)
        return [
            _rgb(self._crop(pixels, box, size, method))
            for box, size, method in zip(boxes, sizes, methods, strict=True)
        ]

    def _check_box(self, box: Box) -> None:
        top, left, height, width = (int(side) for side in box)
        down = 0 <= top < top + height <= self.height
        if not (down and 0 <= left < left + width <= self.width):
            raise ConfigError(
                f"box (top, left, height, width) = {(top, left, height, width)} is not "
                f"within {self._name}, {self.height} high and {self.width} wide"
            )

    def _crop(self, pixels: np.ndarray, box: Box, size: int, method: str) -> np.ndarray:
        resize.check(method)
        top, left, height, width = (int(side) for side in box)
        if method == "fast":
            down, across = pixels.shape[0] / self.height, pixels.shape[1] / self.width
            part = (top * down, left * across, height * down, width * across)
            return resize.fast(pixels, part, size, size)
        return resize.exact(pixels, (top, left, height, width), size, size, method)

    def resize_center_crop(self, resize_to: int, size: int, method: str) -> np.ndarray:
        """Short side to `resize_to`, then the central uint8 [size, size, 3]."""
        resize.check(method)
        short = min(self.height, self.width)
        height, width = (
            resize_to if side == short else int(resize_to * side / short)
            for side in (self.height, self.width)
        )
        room = max(1, short // resize_to) if method == "fast" else 1
        pixels = self._pixels(room, scratch=True)
        if pixels.shape[:2] != (height, width):
            whole = (0, 0, *pixels.shape[:2])
            if method == "fast":
                pixels = resize.fast(pixels, whole, height, width)
            else:
                pixels = resize.exact(pixels, whole, height, width, method)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return _rgb(pixels[top : top + size, left : left + size].copy())


def _room(boxes: Sequence[Box], sizes: Sequence[int]) -> int:
    """How much smaller a picture may be for every box to keep the pixels it needs."""
    sides = (min(box[2:]) / size for box, size in zip(boxes, sizes, strict=True))
    return max(1, int(min(sides)))


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


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


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

    Errors: see `Picture` and `Picture.crops`.
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
