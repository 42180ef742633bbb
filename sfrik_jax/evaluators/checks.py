"""Checks of features and labels that every evaluator makes before it computes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sfrik_jax.errors import ConfigError

# A NumPy or a JAX array. Features may be anything with `shape`, `dtype`, `len` and
# slices x[a:b] that are arrays, as a np.memmap.
Array = Any
CHUNK_BYTES = 1 << 26  # of features that are looked at in one go


def labelled_sets(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Checks both sets whole; returns the labels as int32 [N] and [M].

    Raises: ConfigError.
    """
    feature_pair(train_features, test_features)
    return (
        labels(
            "train_labels",
            train_labels,
            rows=len(train_features),
            num_classes=num_classes,
        ),
        labels(
            "test_labels", test_labels, rows=len(test_features), num_classes=num_classes
        ),
    )


def feature_pair(train_features: Array, test_features: Array) -> None:
    """Raises ConfigError for bad features, or sets of features that do not match."""
    features("train_features", train_features)
    features("test_features", test_features)
    train, test = np.shape(train_features)[1], np.shape(test_features)[1]
    if train != test:
        raise ConfigError(
            f"train_features have dimension {train}, test_features {test}; "
            "extract both with the same encoder"
        )


def features(name: str, values: Array) -> None:
    """Raises ConfigError unless `values` are finite, of shape [N, d], N and d >= 1."""
    shape = np.shape(values)
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(
            f"{name} has shape {shape}; features are [N, d] and not empty"
        )
    bad = 0
    first = None
    for start, rows in chunks(values):
        found = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(found) and first is None:
            first = start + found[0]
        bad += len(found)
    if bad:
        raise ConfigError(
            f"{name} holds NaN or infinity in {bad} of {shape[0]} rows, "
            f"the first is row {first}; the encoder that made them has diverged"
        )


def chunks(values: Array) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows [n, d]) by slices of at most CHUNK_BYTES, or of one row.

    A set in a file of any length is read this way and never held.
    """
    row_bytes = np.dtype(values.dtype).itemsize * values.shape[1]
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(values), step):
        yield start, np.asarray(values[start : start + step])


def labels(name: str, values: Array, *, rows: int, num_classes: int) -> np.ndarray:
    """Returns `values` as int32 [rows], all in 0 … num_classes - 1.

    Raises: ConfigError.
    """
    array = np.asarray(values)
    if array.shape != (rows,):
        raise ConfigError(
            f"{name} has shape {array.shape}; its features have {rows} rows"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"{name} has dtype {array.dtype}; labels are integers")
    if array.min() < 0 or array.max() >= num_classes:
        raise ConfigError(
            f"{name} holds {array.min()} … {array.max()}; "
            f"with num_classes={num_classes} labels are 0 … {num_classes - 1}"
        )
    return array.astype(np.int32)
