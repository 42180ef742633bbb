"""Whole sets as arrays: for training from device memory, and for evaluation."""

from collections.abc import Generator, Sequence

import numpy as np

from sfrik_jax.data import pipeline
from sfrik_jax.data.decode import decode_rgb, resize_center_crop
from sfrik_jax.data.sources import ArraySource, Source
from sfrik_jax.errors import ConfigError

# Pictures that the threads decode ahead.
_AHEAD = 256


def load_images(source: Source, *, workers: int = 0) -> np.ndarray:
    """The whole set, decoded: uint8 [N, H, W, C], C = 1 if the source says so, else 3.

    Raises:
      ConfigError: the images differ in size.
    """
    if isinstance(source, ArraySource):
        return source.images
    first = decode_rgb(source.read(0), source.name(0))
    channels = source.image_shape[2] if source.image_shape else 3
    images = np.empty((len(source), *first.shape[:2], channels), np.uint8)

    def load(i: int) -> int:
        image = decode_rgb(source.read(i), source.name(i))
        if image.shape != first.shape:
            raise ConfigError(
                f"data.residence='device' needs images of one size; {source.name(i)} "
                f"is {image.shape[:2]}, not {first.shape[:2]}: use 'host'"
            )
        images[i] = image[..., :channels]
        return i

    for _ in pipeline.in_order(
        load, len(source), group=1, combine=len, workers=workers, ahead=_AHEAD
    ):
        pass
    return images


def eval_batches(
    source: Source,
    *,
    image_size: int,
    resize: int,
    batch_size: int,
    workers: int = 0,
    method: str = "bilinear",
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """All pictures in order: short side to `resize`, central crop.

    Yields:
      uint8 [b, S, S, 3] and int32 labels [b] (None without labels); the last b may be
      smaller.
    """

    def load(i: int) -> tuple[np.ndarray, int | None]:
        item, label = source.example(i)
        name = source.name(i)
        return resize_center_crop(item, resize, image_size, method, name), label

    def combine(
        examples: Sequence[tuple[np.ndarray, int | None]],
    ) -> tuple[np.ndarray, np.ndarray | None]:
        images, labels = zip(*examples, strict=True)
        labelled = None not in labels
        return np.stack(images), np.array(labels, np.int32) if labelled else None

    return pipeline.in_order(
        load,
        len(source),
        group=batch_size,
        combine=combine,
        workers=workers,
        ahead=_AHEAD,
    )
