"""Colour patches cut from the photographs that scikit-image and scikit-learn ship.

The class is the photograph. So this measures whether features tell photographs apart,
which colours alone do well: on histograms of 8 x 8 x 8 colours a linear classifier
reaches 80 %, 20 nearest neighbours 78 %. It exercises colour, JPEG and real textures
in tests, previews and benches, and says little about recognising things.
"""

import importlib.util
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sfrik_jax.data.views import hash_uniform
from sfrik_jax.errors import MissingInputError

# Class → package and the file inside its wheel; nothing is fetched.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
CLASSES = tuple(PHOTOGRAPHS)
PER_CLASS = {"train": 200, "test": 50}
# Sides in pixels: the smallest is a small network's input, the largest fits all parts
# but a few, where the part's own side is the limit.
MIN_SIDE, MAX_SIDE = 64, 160
TRAIN_SHARE = 0.7
JPEG_QUALITY = 90
# Standard deviation in grey levels; black sky or backdrop stays below it.
MIN_CONTRAST = 8.0
_TRIES = 8
_DRAWS = 4
_PATCH_STREAM = 3
_SPLIT_CODES = {"train": 0, "test": 1}


def patches(split: str, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Label and JPEG bytes of each patch of "train" or "test", class after class.

    The left (or upper) 70 % of a photograph give train patches, the rest test patches.
    Height and width lie in 64 … 160 px, sides log-uniform, ratios in 3/4 … 4/3.

    Raises:
      MissingInputError: scikit-image or scikit-learn is not installed.
    """
    parts = [_part(photograph(name), split) for name in CLASSES]
    for label, part in enumerate(parts):
        for number in range(PER_CLASS[split]):
            yield label, _jpeg(_patch(part, seed, _SPLIT_CODES[split], label, number))


def write_folder(directory: Path, seed: int = 0) -> Path:
    """Writes the patches as `directory`/train/<class>/0000.jpg and …/test/…."""
    for split in PER_CLASS:
        for label, data in patches(split, seed):
            folder = directory / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            number = len(list(folder.iterdir()))
            (folder / f"{number:04d}.jpg").write_bytes(data)
    return directory


def photograph(name: str) -> Image.Image:
    """One of PHOTOGRAPHS, in RGB.

    Raises:
      MissingInputError: its package is not installed.
    """
    package, file = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        path = Path(folder) / file
        if path.is_file():
            return Image.open(path).convert("RGB")
    raise MissingInputError(
        f"photo_patches needs {package}/{file}, which is not installed; "
        'run: pip install "scikit-image" "scikit-learn"'
    )


def _part(photo: Image.Image, split: str) -> Image.Image:
    """The part of a photograph, cut across its longer axis, that a split may use."""
    width, height = photo.size
    wide = width >= height
    x, y = round(width * TRAIN_SHARE), round(height * TRAIN_SHARE)
    if split == "train":
        return photo.crop((0, 0, x if wide else width, height if wide else y))
    return photo.crop((x if wide else 0, 0 if wide else y, width, height))


def _patch(part: Image.Image, seed: int, *coords: int) -> Image.Image:
    """The first of some random boxes with contrast; the last one if all are flat."""
    draws = hash_uniform(seed, _PATCH_STREAM, *coords, np.arange(_TRIES), draws=_DRAWS)
    for side, ratio, across, down in draws:
        side = MIN_SIDE * (MAX_SIDE / MIN_SIDE) ** side
        half_ratio = math.exp((ratio - 0.5) * math.log(4 / 3))
        width = _clip(side * half_ratio, part.width)
        height = _clip(side / half_ratio, part.height)
        left = int(across * (part.width - width + 1))
        top = int(down * (part.height - height + 1))
        patch = part.crop((left, top, left + width, top + height))
        if np.asarray(patch.convert("L")).std() >= MIN_CONTRAST:
            break
    return patch


def _clip(side: float, limit: int) -> int:
    return min(max(round(side), MIN_SIDE), MAX_SIDE, limit)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
