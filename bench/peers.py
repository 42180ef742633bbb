"""The input recipes that others run on the host, for `bench/input.py` to compare with.

`Original` is the recipe that VICReg and the SFRIK paper train with, written from its
description with Pillow and NumPy. `Torchvision` is the same by torchvision: on Pillow
images, as the original has it, or by the newer transforms on uint8 tensors. All decode
once for all views, in one thread.
"""

import importlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from sfrik_jax.data.views import View

Box = Sequence[int]
_TRIES = 10
# What torch was told of operators is forgotten when this goes.
_KEPT: list[Any] = []


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


class Original:
    """Crop, flip, jitter, grey, blur, solarise and normalise with Pillow and NumPy."""

    def __init__(self, views: Sequence[View], seed: int = 0) -> None:
        self._views, self._rng = views, np.random.default_rng(seed)

    def batch(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """float32 [n, 3, S, S] for each view."""
        rows = []
        for item in items:
            image = _open(item)
            rows.append([self._view(image, view) for view in self._views])
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def crops(self, item: bytes, boxes: np.ndarray) -> list[np.ndarray]:
        """The boxes (top, left, height, width), resized: uint8 [S, S, 3] each."""
        image = _open(item)
        return [
            np.asarray(_resized_crop(image, box, view))
            for box, view in zip(boxes, self._views, strict=True)
        ]

    def _view(self, image: Image.Image, view: View) -> np.ndarray:
        image = _resized_crop(image, self._box(image, view), view)
        if self._happens(view.flip_prob):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._happens(view.jitter_prob):
            image = self._jitter(image, view)
        if self._happens(view.gray_prob):
            image = Image.fromarray(np.dstack([np.asarray(image.convert("L"))] * 3))
        if self._happens(view.blur_prob):
            sigma = self._rng.uniform(*view.sigma)
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        if self._happens(view.solarize_prob):
            image = ImageOps.solarize(image)
        # As ToTensor and Normalize: a copy, planes, floats, a quotient, a copy.
        planes = np.ascontiguousarray(np.array(image).transpose(2, 0, 1))
        values = (planes.astype(np.float32) / np.float32(255)).copy()
        values -= np.array(view.mean, np.float32)[:, None, None]
        values /= np.array(view.std, np.float32)[:, None, None]
        return values

    def _happens(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _box(self, image: Image.Image, view: View) -> Box:
        area = image.width * image.height
        low, high = (math.log(ratio) for ratio in view.ratio)
        for _ in range(_TRIES):
            share = area * self._rng.uniform(*view.scale)
            ratio = math.exp(self._rng.uniform(low, high))
            width = round(math.sqrt(share * ratio))
            height = round(math.sqrt(share / ratio))
            if 0 < width <= image.width and 0 < height <= image.height:
                top = int(self._rng.integers(image.height - height + 1))
                left = int(self._rng.integers(image.width - width + 1))
                return top, left, height, width
        # torchvision's fallback for pictures whose own ratio lies within the range.
        return 0, 0, image.height, image.width

    def _jitter(self, image: Image.Image, view: View) -> Image.Image:
        for operation in self._rng.permutation(4):
            if operation == 3:
                image = _hue(image, self._rng.uniform(-view.hue, view.hue))
                continue
            strength, enhance = (
                (view.brightness, ImageEnhance.Brightness),
                (view.contrast, ImageEnhance.Contrast),
                (view.saturation, ImageEnhance.Color),
            )[operation]
            factor = self._rng.uniform(max(0.0, 1 - strength), 1 + strength)
            image = enhance(image).enhance(factor)
        return image


def _resized_crop(image: Image.Image, box: Box | np.ndarray, view: View) -> Image.Image:
    top, left, height, width = box
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((view.size, view.size), Image.Resampling.BICUBIC)


def _hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.array(hue) + np.array(int(shift * 255) % 256, np.uint8)
    planes = (Image.fromarray(turned), saturation, value)
    return Image.merge("HSV", planes).convert("RGB")


class PillowCrops:
    """What `Original` does up to the resized crop; the rest is left to the device."""

    def __init__(self, views: Sequence[View], seed: int = 0) -> None:
        self._views, self._original = views, Original(views, seed)

    def batch(self, items: Sequence[bytes]) -> np.ndarray:
        """uint8 [n, V, S, S, 3]."""
        rows = []
        for item in items:
            image = _open(item)
            boxes = [self._original._box(image, view) for view in self._views]
            rows.append(
                [
                    np.asarray(_resized_crop(image, box, view))
                    for box, view in zip(boxes, self._views, strict=True)
                ]
            )
        return np.stack(rows)


class Torchvision:
    """The recipe by torchvision's transforms.

    Args:
      tensors: v2 on uint8 tensors; else v1 on Pillow images, with Pillow's blur.

    Raises:
      ImportError: torch or torchvision is not installed.
    """

    def __init__(self, views: Sequence[View], *, tensors: bool) -> None:
        self._torch, transforms = import_torchvision()
        self._torch.set_num_threads(1)
        self._tensors, self._views = tensors, views
        self._functional = transforms.v2.functional
        self._mode = transforms.InterpolationMode.BICUBIC
        recipe = self._tensor_recipe if tensors else self._pillow_recipe
        self._recipes = [
            recipe(transforms.v2 if tensors else transforms, view) for view in views
        ]

    def _shared(self, module: Any, view: View) -> list[Any]:
        jitter = module.ColorJitter(
            view.brightness, view.contrast, view.saturation, view.hue
        )
        return [
            module.RandomResizedCrop(
                view.size, view.scale, view.ratio, interpolation=self._mode
            ),
            module.RandomHorizontalFlip(view.flip_prob),
            module.RandomApply([jitter], view.jitter_prob),
            module.RandomGrayscale(view.gray_prob),
        ]

    def _pillow_recipe(self, v1: Any, view: View) -> Any:
        rng = np.random.default_rng(0)

        def blur(image: Image.Image) -> Image.Image:
            return image.filter(ImageFilter.GaussianBlur(rng.uniform(*view.sigma)))

        return v1.Compose(
            [
                *self._shared(v1, view),
                v1.RandomApply([blur], view.blur_prob),
                v1.RandomApply([ImageOps.solarize], view.solarize_prob),
                v1.ToTensor(),
                v1.Normalize(view.mean, view.std),
            ]
        )

    def _tensor_recipe(self, v2: Any, view: View) -> Any:
        # 23 taps hold the widest of VICReg's filters; Pillow's takes any width.
        blur = v2.GaussianBlur(23, view.sigma)
        return v2.Compose(
            [
                *self._shared(v2, view),
                v2.RandomApply([blur], view.blur_prob),
                v2.RandomSolarize(128, view.solarize_prob),
                v2.ToDtype(self._torch.float32, scale=True),
                v2.Normalize(view.mean, view.std),
            ]
        )

    def _read(self, item: bytes) -> Any:
        image = _open(item)
        return self._functional.pil_to_tensor(image) if self._tensors else image

    def batch(self, items: Sequence[bytes]) -> list[Any]:
        """float32 tensors [n, 3, S, S], one for each view."""
        rows = []
        for item in items:
            image = self._read(item)
            rows.append([recipe(image) for recipe in self._recipes])
        return [self._torch.stack(column) for column in zip(*rows, strict=True)]

    def crops(self, item: bytes, boxes: np.ndarray) -> list[np.ndarray]:
        """The boxes (top, left, height, width), resized: uint8 [S, S, 3] each."""
        image, crops = self._read(item), []
        for box, view in zip(boxes.tolist(), self._views, strict=True):
            size = [view.size, view.size]
            crop = self._functional.resized_crop(image, *box, size, self._mode)
            crops.append(crop.permute(1, 2, 0).numpy() if self._tensors else crop)
        return [np.asarray(crop) for crop in crops]


def import_torchvision() -> tuple[Any, Any]:
    """torch and torchvision.transforms."""
    torch = importlib.import_module("torch")
    try:
        importlib.import_module("torchvision.transforms.v2")
    except RuntimeError:
        # Beside another build of torch, torchvision lacks its compiled operators and
        # stops at describing these two. The transforms do not use them.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float t) -> Tensor")
        _KEPT.append(library)
        importlib.import_module("torchvision.transforms.v2")
    return torch, importlib.import_module("torchvision.transforms")
