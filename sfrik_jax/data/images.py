"""Whole sets as arrays: for training from device memory, and for evaluation."""

import contextlib
from collections.abc import Generator, Sequence

import numpy as np

from sfrik_jax.data import pipeline
from sfrik_jax.data.bad_pictures import BadPictures, Found
from sfrik_jax.data.decode import Picture, resize_center_crop
from sfrik_jax.data.sources import ArraySource, Source
from sfrik_jax.errors import ConfigError

Example = tuple[np.ndarray, int | None]

# Pictures that the threads decode ahead.
_AHEAD = 256


def load_images(source: Source, bad: BadPictures, *, workers: int = 0) -> np.ndarray:
    """The whole set, decoded: uint8 [N, H, W, C], C = 1 if the source says so, else 3.

    Args:
      bad: gives what stands in the place of bad pictures.

    Raises:
      ConfigError: the images differ in size.
      CorruptInputError: a picture is bad, or there are too many.
    """
    if isinstance(source, ArraySource):
        return source.images
    first, _ = bad.good(source, 0, Picture.rgb)
    channels = source.image_shape[2] if source.image_shape else 3
    images = np.empty((len(source), *first.shape[:2], channels), np.uint8)

    def load(i: int) -> Found:
        image, found = bad.good(source, i, Picture.rgb)
        if image.shape != first.shape:
            raise ConfigError(
                f"data.residence='device' needs images of one size; {source.name(i)} "
                f"is {image.shape[:2]}, not {first.shape[:2]}: use 'host'"
            )
        images[i] = image[..., :channels]
        return found

    def alone(each: Sequence[Found]) -> Found:
        return each[0]

    for found in pipeline.in_order(
        load, len(source), group=1, combine=alone, workers=workers, ahead=_AHEAD
    ):
        bad.note(found)
    return images


def eval_batches(
    source: Source,
    *,
    image_size: int,
    resize: int,
    batch_size: int,
    workers: int = 0,
    method: str = "bilinear",
    bad: BadPictures | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """All pictures in order: short side to `resize`, central crop.

    Args:
      bad: leaves bad pictures out, if it is there and skips.

    Yields:
      uint8 [b, S, S, 3] and int32 labels [b] (None without labels); b is smaller in
      the last batch and where pictures are left out.

    Raises:
      CorruptInputError: a picture is bad, or more are left out than may be.
    """

    def load(i: int) -> Example:
        item, label = source.example(i)
        name = source.name(i)
        return resize_center_crop(item, resize, image_size, method, name), label

    def attempt(i: int) -> tuple[Example | None, Found]:
        if bad is None:
            return load(i), []
        return bad.attempt(source.name(i), lambda: load(i))

    batches = pipeline.in_order(
        attempt,
        len(source),
        group=batch_size,
        combine=list,
        workers=workers,
        ahead=_AHEAD,
    )
    with contextlib.closing(batches):
        for attempts in batches:
            if bad is not None:
                bad.note(error for _, found in attempts for error in found)
            examples = [example for example, _ in attempts if example is not None]
            if examples:
                yield _stacked(examples)


def _stacked(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray | None]:
    images, labels = zip(*examples, strict=True)
    labelled = None not in labels
    return np.stack(images), np.array(labels, np.int32) if labelled else None
