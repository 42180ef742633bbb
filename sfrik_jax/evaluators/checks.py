"""Checks of features and labels that every evaluator makes before it computes."""

from typing import Any

import numpy as np

from sfrik_jax.errors import ConfigError

Array = Any  # a NumPy or a JAX array


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
    bad = np.flatnonzero(~np.isfinite(np.asarray(values)).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"{name} holds NaN or infinity in {len(bad)} of {shape[0]} rows, "
            f"the first is row {bad[0]}; the encoder that made them has diverged"
        )


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
