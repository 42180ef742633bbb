"""What every classifier's figures come from: a confusion matrix and top-5 hits.

Counts are whole numbers, so that those of batches and of processes add up exactly.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks

Z95 = 1.959964  # the standard normal law is within ± Z95 in 95 of 100 cases


class Counts(NamedTuple):
    """Answers of a classifier of C classes; `+` joins those of two sets of images.

    confusion: int64 [C, C], images of class (row) that were taken for class (column).
    top5: int64 [C], images of each class that is among their five best answers.
    """

    confusion: np.ndarray
    top5: np.ndarray

    @staticmethod
    def zero(num_classes: int) -> "Counts":
        """No image yet."""
        square = np.zeros((num_classes, num_classes), np.int64)
        return Counts(square, np.zeros(num_classes, np.int64))

    def __add__(self, other: tuple) -> "Counts":
        confusion, top5 = other
        return Counts(self.confusion + confusion, self.top5 + top5)


def count(ranked: np.ndarray, labels: np.ndarray, num_classes: int) -> Counts:
    """Counts the answers to M images.

    Args:
      ranked: integers [M, r], the classes of each image, the best first; with
        r = min(5, num_classes) `top5` means five classes.
      labels: integers [M] in 0 … num_classes - 1.
    Raises: ConfigError for labels or classes out of range, or of other lengths.
    """
    ranked = np.asarray(ranked)
    if ranked.ndim != 2 or ranked.shape[1] < 1:
        raise ConfigError(f"ranked classes have shape {ranked.shape}; give [M, r >= 1]")
    if not len(ranked) and not len(labels):
        return Counts.zero(num_classes)
    rows = {"rows": len(ranked), "num_classes": num_classes}
    true = checks.labels("labels", labels, **rows).astype(np.int64)
    first = checks.labels("ranked classes", ranked[:, 0], **rows)
    cells = np.bincount(true * num_classes + first, minlength=num_classes**2)
    hits = (ranked[:, :5] == true[:, None]).any(axis=1)
    return Counts(
        cells.reshape(num_classes, num_classes).astype(np.int64),
        np.bincount(true[hits], minlength=num_classes).astype(np.int64),
    )


def figures(counts: Counts) -> dict[str, float]:
    """The figures of a table, in percent, and the number of images.

    Returns: {"top1", "top5"}; "mean_per_class", the mean top-1 of the classes that
      have images; "top1_low" and "top1_high", the 95 % interval of `wilson`; "images".
    Raises: ConfigError when no image was counted.
    """
    images = int(counts.confusion.sum())
    if not images:
        raise ConfigError("there are no images to give an accuracy of")
    hits = int(np.trace(counts.confusion))
    low, high = wilson(hits, images)
    return {
        "top1": 100 * hits / images,
        "top5": 100 * int(counts.top5.sum()) / images,
        "mean_per_class": float(np.nanmean(per_class(counts))),
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "images": images,
    }


def wilson(hits: int, images: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share p = hits / images, n = images:

        (p + z² / 2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z² / n)

    It stays within 0 … 1 and is not empty at p = 0 or 1. It speaks of the choice of
    the test images alone, not of another training of the classifier.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical
    inference, Journal of the American Statistical Association 22 (1927).
    """
    share, weight = hits / images, z * z / images
    middle = share + weight / 2
    reach = sqrt(weight * share * (1 - share) + weight * weight / 4)
    low, high = (middle - reach) / (1 + weight), (middle + reach) / (1 + weight)
    # At no hit or nothing but hits an end is 0 or 1 but for rounding.
    return max(0.0, low), min(1.0, high)


def per_class(counts: Counts) -> np.ndarray:
    """Top-1 of each class in percent: float64 [C], NaN for a class without images."""
    images = counts.confusion.sum(axis=1)
    hits = np.diagonal(counts.confusion)
    answer = np.full(len(images), np.nan)
    return np.divide(100.0 * hits, images, out=answer, where=images > 0)


def most_confused(counts: Counts, n: int) -> list[tuple[int, int, int]]:
    """The n commonest mistakes: (true class, predicted class, images), most first.

    Equal ones stand in the order of their classes; pairs never confused are left out.
    """
    wrong = counts.confusion * (1 - np.eye(len(counts.top5), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:n]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    found = [(int(true), int(taken), int(wrong[true, taken])) for true, taken in pairs]
    return [mistake for mistake in found if mistake[2]]
