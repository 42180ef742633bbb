"""Whole sets as arrays: for training from device memory, and for evaluation."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from sfrik_jax.data import pipeline
from sfrik_jax.data.bad_pictures import BadPictures, Found
from sfrik_jax.data.decode import Picture, resize_center_crop
from sfrik_jax.data.sources import ArraySource, Source
from sfrik_jax.errors import ConfigError

# A picture, its label (of a multi-label set: the classes in it), and its name.
Example = tuple[np.ndarray, int | np.ndarray | None, str]

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
    source: Source, **settings: Any
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """`named_batches` without the names; takes the same settings."""
    with contextlib.closing(named_batches(source, **settings)) as batches:
        for images, labels, _ in batches:
            yield images, labels


def named_batches(
    source: Source,
    *,
    image_size: int,
    resize: int,
    batch_size: int,
    rows: range | None = None,
    workers: int = 0,
    method: str = "bilinear",
    bad: BadPictures | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray | None, list[str]]]:
    """Pictures in order: short side to `resize`, central crop.

    Args:
      rows: numbers of the pictures, one after the other; all of them by default.
      bad: leaves bad pictures out, if it is there and skips.

    Yields:
      uint8 [b, S, S, 3]; int32 labels [b], int8 [b, C] of a multi-label set as in
      `Source.present`, or None without labels; names [b]. b is smaller in the last
      batch and where pictures are left out.

    Raises:
      CorruptInputError: a picture is bad, or more are left out than may be.
    """
    rows = range(len(source)) if rows is None else rows
    example_of = source.multi_example if source.multi_label else source.example

    def load(i: int) -> Example:
        item, label = example_of(i)
        name = source.name(i)
        return resize_center_crop(item, resize, image_size, method, name), label, name

    def attempt(place: int) -> tuple[Example | None, Found]:
        i = rows[place]
        if bad is None:
            return load(i), []
        return bad.attempt(source.name(i), lambda: load(i))

    batches = pipeline.in_order(
        attempt,
        len(rows),
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


def _stacked(
    examples: Sequence[Example],
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    images, labels, names = zip(*examples, strict=True)
    stacked = None
    if isinstance(labels[0], np.ndarray):
        stacked = np.stack(labels)
    elif None not in labels:
        stacked = np.array(labels, np.int32)
    return np.stack(images), stacked, list(names)
