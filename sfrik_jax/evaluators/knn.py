"""Weighted k-nearest-neighbour classification on frozen features.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
Discrimination (CVPR 2018), section 3.4; ties are decided here.

Neither set has to fit into memory: the train set is read once for each group of
queries, chunk by chunk, and merged into the best so far. Devices share the queries.
That needs no merge between devices; shares of the train set would.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks
from sfrik_jax.evaluators.checks import Array
from sfrik_jax.mesh import DATA, replicated

# Queries of one product, on each device. It does not follow the number of devices: a
# row then has its place in a product of the same shape, so of the same rounding.
QUERY_ROWS = 256
TRAIN_BYTES = 1 << 28  # of the normalised train rows that a device holds at once
TRAIN_ROWS = 1 << 17  # at most; with QUERY_ROWS 128 MiB of float32 cosines
QUERY_BYTES = 1 << 28  # of the queries and their best that a device holds at once
BLOCK = 32  # neighbouring cosines that are judged by their maximum first
VOTE_ROWS = 1 << 12  # examples whose votes of all classes are held at once


def classify(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    k: int | Sequence[int],
    temperature: float,
    num_classes: int,
    mesh: Mesh | None = None,
) -> dict:
    """Top-1 and top-5 accuracy of the weighted vote of the k nearest train examples.

        votes_c = sum over the k nearest i with label c of exp(t_i / temperature)

    t_i is the cosine. Equal votes go to the lower class; top-5 means the first
    min(5, k) classes. Float64 features are compared in float64, others in float32.

    Args:
      train_features, test_features: [N, d] and [M, d], normalised here; as `nearest`.
      train_labels, test_labels: integers [N] and [M] in 0 … num_classes - 1.
      k: neighbours that vote, at most N; several numbers share one search.
      temperature: of the vote weights, > 0.
      mesh: shares the queries over the devices of its axis `data`.
    Returns: {"top1", "top5"} in percent; for several k a dict of those, by k.
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
    several = isinstance(k, Sequence)
    ks = _check_k(k if several else (k,), len(train_features))
    hits = np.zeros((len(ks), 2), np.int64)
    with _precision_of(train_features, test_features):
        for start, cosines, indices in _search(
            train_features, test_features, k=ks[-1], mesh=mesh
        ):
            hits += _hits(
                cosines,
                train_labels[indices],
                test_labels[start : start + len(cosines)],
                ks=ks,
                temperature=temperature,
                num_classes=num_classes,
            )
    percent = (100.0 * hits / len(test_labels)).tolist()
    answers = {k: {"top1": a, "top5": b} for k, (a, b) in zip(ks, percent, strict=True)}
    return answers if several else answers[ks[0]]


def nearest(
    train_features: Array, test_features: Array, *, k: int, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k train examples of largest cosine with each test example, nearest first.

    Exact; equal cosines go to the lower train index. The same on one device and many.

    Args:
      train_features, test_features: [N, d] and [M, d], not normalised. Anything with
        `shape`, `dtype`, `len` and slices x[a:b] that are arrays, as a np.memmap; only
        a chunk of each is held at a time.
      k: 1 <= k <= N.
      mesh: shares the queries over the devices of its axis `data`.
    Returns: cosines [M, k] and indices int32 [M, k].
    Raises: ConfigError for an impossible k, shapes or non-finite features.
    """
    checks.feature_pair(train_features, test_features)
    _check_k((k,), len(train_features))
    with _precision_of(train_features, test_features):
        found = list(_search(train_features, test_features, k=k, mesh=mesh))
    _, cosines, indices = zip(*found, strict=True)
    return np.concatenate(cosines), np.concatenate(indices)


def _check_k(ks: Sequence[int], num_train: int) -> tuple[int, ...]:
    """The numbers of neighbours, each once, ascending."""
    if not ks:
        raise ConfigError("k names no number of neighbours; give one or more")
    for k in ks:
        if not 1 <= k <= num_train:
            raise ConfigError(
                f"k={k} neighbours of {num_train} train examples; "
                f"choose k in 1 … {num_train}"
            )
    return tuple(sorted({int(k) for k in ks}))


def _precision_of(*arrays: Array):
    """Switches 64-bit types on when every array is float64; else changes nothing."""
    wide = all(np.dtype(array.dtype) == np.float64 for array in arrays)
    return jax.enable_x64(True) if wide else nullcontext()


def _search(
    train: Array, test: Array, *, k: int, mesh: Mesh | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (first row, cosines [g, k], indices [g, k]) for group after group."""
    rows = QUERY_ROWS * (mesh.shape[DATA] if mesh else 1)
    row_bytes = 8 * k + _width(test) * test.shape[1]
    products = _even(-(-len(test) // rows), QUERY_BYTES // (QUERY_ROWS * row_bytes))
    for start in range(0, len(test), products * rows):
        some = np.asarray(test[start : start + products * rows])
        cosines, indices = _search_group(train, some, (products, rows), k, mesh)
        yield start, cosines[: len(some)], indices[: len(some)]


def _search_group(train, queries, shape, k, mesh) -> tuple[np.ndarray, np.ndarray]:
    """Merges all of the train set into the best of one group of queries."""
    split, whole = (
        (NamedSharding(mesh, P(None, DATA)), replicated(mesh)) if mesh else (None, None)
    )
    rows = np.zeros((shape[0] * shape[1], queries.shape[1]), queries.dtype)
    rows[: len(queries)] = queries
    queries = jax.device_put(rows.reshape(*shape, -1), split)
    queries = _unit_rows(queries, length=shape[0])
    best = jax.device_put(
        (np.full((*shape, k), -np.inf, queries.dtype), np.zeros((*shape, k), np.int32)),
        split,
    )
    limit = min(TRAIN_ROWS, TRAIN_BYTES // (_width(train) * train.shape[1]))
    chunk = -(-_even(len(train), limit) // BLOCK) * BLOCK
    for first in range(0, len(train), chunk):
        # Read while the devices work on the chunk before; never further ahead.
        rows = train[first : first + chunk]
        jax.block_until_ready(best)
        rows = _unit_rows(jax.device_put(rows, whole), length=chunk)
        best = _merge(best, queries, rows, np.int32(first), len(train), mesh=mesh)
    return tuple(np.asarray(each).reshape(-1, k) for each in best)  # pyright: ignore


def _width(features: Array) -> int:
    """Bytes of a number once normalised: 4, or 8 for float64."""
    return max(4, np.dtype(features.dtype).itemsize)


def _even(total: int, limit: int) -> int:
    """The size of parts of `total`, as few as `limit` allows and as equal as can be."""
    return -(-total // -(-total // max(1, limit)))


@partial(jax.jit, static_argnames="length")
def _unit_rows(features: jax.Array, *, length: int) -> jax.Array:
    """Unit rows of features [n, …, d] in float32 or wider, and zeros up to `length`."""
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    norms = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    missing = [(0, length - len(features))] + [(0, 0)] * (features.ndim - 1)
    return jnp.pad(wide / jnp.maximum(norms, 1e-12), missing)


@partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _merge(best, queries, train, first, num_train, *, mesh):
    """The best of `best` and of the rows `train`, which begin at number `first`.

    best: cosines and indices [g, m, k], of rows before `first`; queries [g, m, d].
    """

    if mesh is None:
        return _merge_products(best, queries, train, first, num_train)
    split = P(None, DATA)
    return jax.shard_map(
        _merge_products,
        mesh=mesh,
        in_specs=(split, split, P(), P(), P()),
        out_specs=split,
    )(best, queries, train, first, num_train)


def _merge_products(best, queries, train, first, num_train):
    """`_merge` on one device: one product after the other, in the same memory."""
    return jax.lax.map(
        lambda pair: _merge_product(pair[0], pair[1], train, first, num_train),
        (best, queries),
    )


def _merge_product(best, queries, train, first, num_train):
    """`_merge` for queries [m, d]: a top k of blocks, then one of what they hold.

    It is exact. Order the columns by falling cosine, then by rising index, and the
    blocks by their first column in that order: that is by falling maximum, then by
    rising number, as top_k does. A column outside the k chosen blocks comes after the
    first of its own block, which comes after those of all k: it is not among the k
    best. The chosen blocks are put back in their order, behind the best of earlier
    rows, so that top_k's preference for the left is one for the lower index.
    """
    # GPUs and TPUs round float32 products by default, which reorders neighbours.
    cosines = jnp.matmul(queries, train.T, precision="highest")
    blocks = cosines.reshape(len(queries), -1, BLOCK)
    columns = first + jnp.arange(len(train), dtype=first.dtype).reshape(1, -1, BLOCK)
    # The last chunk ends in rows of zeros.
    maxima = jnp.max(blocks, axis=2, where=columns < num_train, initial=-jnp.inf)
    k = best[0].shape[1]
    chosen = jax.lax.top_k(maxima, min(k, maxima.shape[1]))[1]
    chosen = jnp.sort(chosen, axis=1)[:, :, None]
    found = jnp.take_along_axis(blocks, chosen, axis=1)
    within = jnp.arange(BLOCK, dtype=first.dtype)[None, None]
    columns = first + chosen * BLOCK + within
    found = jnp.where(columns < num_train, found, -jnp.inf)
    flat = (len(queries), -1)
    cosines = jnp.concatenate([best[0], found.reshape(flat)], axis=1)
    columns = jnp.concatenate([best[1], columns.reshape(flat)], axis=1)
    cosines, places = jax.lax.top_k(cosines, k)
    return cosines, jnp.take_along_axis(columns, places, axis=1)


def _hits(cosines, labels, wanted, *, ks, temperature, num_classes) -> np.ndarray:
    """Top-1 and top-5 hits of each k, [len(ks), 2]; cosines and labels are [g, k]."""
    hits = np.zeros((len(ks), 2), np.int64)
    for start in range(0, len(wanted), VOTE_ROWS):
        some = slice(start, start + VOTE_ROWS)
        ranked = _ranked_classes(
            cosines[some],
            labels[some],
            np.asarray(temperature, cosines.dtype),
            ks=ks,
            num_classes=num_classes,
        )
        for row, classes in zip(hits, ranked, strict=True):
            right = np.asarray(classes) == wanted[some, None]
            row += right[:, 0].sum(), right.any(axis=1).sum()
    return hits


@partial(jax.jit, static_argnames=("ks", "num_classes"))
def _ranked_classes(cosines, labels, temperature, *, ks, num_classes):
    """The min(5, k) classes of most votes, [g, min(5, k)] for each of the rising ks."""
    # exp(t / 0.07) reaches 1.6e6 and a lower temperature overflows. A factor common to
    # a row changes no order: the nearest neighbour gets the vote 1.
    weights = jnp.exp((cosines - cosines[:, :1]) / temperature)
    rows = jnp.arange(len(cosines))[:, None]
    votes = jnp.zeros((len(cosines), num_classes), weights.dtype)
    ranked = []
    for low, high in zip((0, *ks[:-1]), ks, strict=True):
        votes = votes.at[rows, labels[:, low:high]].add(weights[:, low:high])
        ranked.append(jax.lax.top_k(votes, min(5, high, num_classes))[1])
    return ranked
