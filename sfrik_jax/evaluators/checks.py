"""Checks of features and labels that every evaluator makes before it computes."""

from typing import Any

import numpy as np

from sfrik_jax.errors import ConfigError

Array = Any  # a NumPy or a JAX array


def features(name: str, values: Array) -> Array:
    """Returns `values` when they are finite floats of shape [N, d], N and d >= 1.

    Raises: ConfigError.
    """
    shape = np.shape(values)
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(
            f"{name} has shape {shape}; features are [N, d] and not empty"
        )
    bad = ~np.isfinite(np.asarray(values)).all(axis=1)
    if bad.any():
        raise ConfigError(
            f"{name} holds NaN or infinity in {bad.sum()} of {len(bad)} rows, "
            f"the first is row {bad.argmax()}; the encoder that made them has diverged"
        )
    return values


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


def same_width(train_features: Array, test_features: Array) -> None:
    """Raises ConfigError when the two sets of features differ in their dimension."""
    train, test = np.shape(train_features)[1], np.shape(test_features)[1]
    if train != test:
        raise ConfigError(
            f"train_features have dimension {train}, test_features {test}; "
            "extract both with the same encoder"
        )
