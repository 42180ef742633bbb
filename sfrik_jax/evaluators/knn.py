"""Weighted k-nearest-neighbour classification on frozen features.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination (CVPR 2018), section 3.4; ties are decided here.
"""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks
from sfrik_jax.evaluators.checks import Array

CHUNK_ELEMENTS = 1 << 26  # cosines held at once: 256 MiB in float32


def classify(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of the weighted vote of the k nearest train examples.

        votes_c = sum over the k nearest i with label c of exp(t_i / temperature)

    t_i is the cosine. Equal votes go to the lower class; top-5 means the first
    min(5, k) classes. Float64 features are compared in float64, others in float32.

    Args:
      train_features, test_features: [N, d] and [M, d], normalised here.
      train_labels, test_labels: integers [N] and [M] in 0 … num_classes - 1.
      k: neighbours that vote, at most N.
      temperature: of the vote weights, > 0.
    Returns: {"top1", "top5"} in percent.
    Raises: ConfigError for an impossible k, shapes, labels or non-finite features.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature}; it must be above 0")
    train_labels, test_labels = checks.labelled_sets(
        train_features,
        train_labels,
        test_features,
        test_labels,
        num_classes=num_classes,
    )
    cosines, neighbours = nearest(train_features, test_features, k=k)
    with _precision_of(cosines):
        ranked = _ranked_classes(
            cosines,
            train_labels[neighbours],
            np.asarray(temperature, cosines.dtype),
            num_classes=num_classes,
            depth=min(5, k, num_classes),
        )
    hits = np.asarray(ranked) == test_labels[:, None]
    return {
        "top1": 100.0 * float(hits[:, 0].sum()) / len(hits),
        "top5": 100.0 * float(hits.any(axis=1).sum()) / len(hits),
    }


def nearest(
    train_features: Array, test_features: Array, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k train examples of largest cosine with each test example, nearest first.

    Equal cosines go to the lower train index. The test set is taken in chunks of one
    size, so that memory is bounded and the search compiles once.

    Args: train_features [N, d], test_features [M, d], not normalised; 1 <= k <= N.
    Returns: cosines [M, k] and indices int32 [M, k].
    Raises: ConfigError for an impossible k, shapes or non-finite features.
    """
    checks.feature_pair(train_features, test_features)
    num_train, num_test = len(train_features), len(test_features)
    if not 1 <= k <= num_train:
        raise ConfigError(
            f"k={k} neighbours of {num_train} train examples; "
            f"choose k in 1 … {num_train}"
        )
    chunk = min(num_test, max(1, CHUNK_ELEMENTS // num_train))
    cosines, indices = [], []
    with _precision_of(train_features, test_features):
        train = _unit_rows(jnp.asarray(train_features))
        for start in range(0, num_test, chunk):
            rows = np.asarray(test_features[start : start + chunk])
            rows = np.pad(rows, ((0, chunk - len(rows)), (0, 0)))
            t, i = _nearest_chunk(train, jnp.asarray(rows), k=k)
            cosines.append(np.asarray(t))
            indices.append(np.asarray(i))
    return np.concatenate(cosines)[:num_test], np.concatenate(indices)[:num_test]


def _precision_of(*arrays: Array):
    """Switches 64-bit types on when every array is float64; else changes nothing."""
    wide = all(np.dtype(array.dtype) == np.float64 for array in arrays)
    return jax.enable_x64(True) if wide else nullcontext()


@jax.jit
def _unit_rows(features: jax.Array) -> jax.Array:
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    norms = jnp.linalg.norm(wide, axis=1, keepdims=True)
    return wide / jnp.maximum(norms, 1e-12)


@partial(jax.jit, static_argnames="k")
def _nearest_chunk(train: jax.Array, rows: jax.Array, *, k: int):
    # GPUs and TPUs round float32 products by default, which reorders neighbours.
    cosines = jnp.matmul(_unit_rows(rows), train.T, precision="highest")
    return jax.lax.top_k(cosines, k)


@partial(jax.jit, static_argnames=("num_classes", "depth"))
def _ranked_classes(cosines, labels, temperature, *, num_classes, depth):
    """The `depth` classes of most votes, [M, depth]; cosines and labels are [M, k]."""
    # exp(t / 0.07) reaches 1.6e6 and a lower temperature overflows. A factor common to
    # a row changes no order: the nearest neighbour gets the vote 1.
    weights = jnp.exp((cosines - cosines[:, :1]) / temperature)
    rows = jnp.arange(len(cosines))[:, None]
    votes = jnp.zeros((len(cosines), num_classes), weights.dtype)
    votes = votes.at[rows, labels].add(weights)
    return jax.lax.top_k(votes, depth)[1]
