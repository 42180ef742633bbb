"""Labels of images that show several classes, or none: 1, 0, and -1 for difficult."""

import numpy as np
from numpy.typing import ArrayLike

from sfrik_jax.errors import ConfigError


def check(
    train_labels: ArrayLike, test_labels: ArrayLike, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both as int8, [N, C] and [M, C]; no feature is needed for that.

    Args: least: positive and negative train images that every class needs: the number
      of folds, or the highest number of shots.
    Raises: ConfigError for impossible labels, a class with fewer, and one that no test
      image shows.
    """
    train = _checked_one("train_labels", train_labels)
    test = _checked_one("test_labels", test_labels)
    if train.shape[1] != test.shape[1]:
        raise ConfigError(
            f"train_labels have {train.shape[1]} classes, test_labels "
            f"{test.shape[1]}; give both of one data set"
        )
    for c, column in enumerate(test.T):
        if not (column == 1).any():
            raise ConfigError(
                f"no test image shows class {c}: its average precision is not defined"
            )
    for c, column in enumerate(train.T):
        present, absent = int((column == 1).sum()), int((column == 0).sum())
        if present < least or absent < least:
            raise ConfigError(
                f"class {c} has {present} positive and {absent} negative train images; "
                f"{least} of each are needed: give more images, or fewer shots"
            )
    return train, test


def _checked_one(name: str, values: ArrayLike) -> np.ndarray:
    labels = np.asarray(values)
    if labels.ndim != 2 or not labels.size:
        raise ConfigError(f"{name} has shape {labels.shape}; give [images, classes]")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ConfigError(
            f"{name} holds {labels.min()} … {labels.max()}; give 1 present, 0 absent, "
            "-1 difficult"
        )
    return labels.astype(np.int8)
