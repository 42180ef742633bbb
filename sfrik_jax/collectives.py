"""Mesh axes, and what devices tell each other along them, inside `jax.shard_map`.

An axis that is None has one device: then nothing is sent. What comes out of a sum is
equal along its axis, what comes out of a gather varies along it as far as
`jax.shard_map` knows (its check `check_vma`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

DATA = "data"
MODEL = "model"


class Split(NamedTuple):
    """The mesh axes over which the rows and the columns of an array are split.

    None for an axis that is whole. Inside `jax.shard_map` the axes can be summed over.
    """

    rows: str | None = None
    columns: str | None = None

    @property
    def spec(self) -> P:
        """For `jax.shard_map` and shardings, of an array [rows, columns]."""
        return P(*self)


WHOLE = Split()


def embeddings_split(columns: str | None) -> Split:
    """How embeddings [n, q] lie where the projector's columns are split over an axis.

    The batch is split over `data`, unless the columns are.
    """
    return Split(None if columns == DATA else DATA, columns)


def axis_size(axis: str | None) -> int:
    """Devices along an axis, inside `jax.shard_map`; 1 of None."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def varying(x: jax.Array, axis: str | None) -> jax.Array:
    """x, equal along an axis, as something that may vary along it; x of None.

    Inside `jax.shard_map`. The transpose is the sum over the axis.
    """
    return x if axis is None else jax.lax.pcast(x, axis, to="varying")


def add_over(axis: str | None, tree: Any) -> Any:
    """Sums over an axis, inside `jax.shard_map`; the same tree of None."""
    return tree if axis is None else jax.lax.psum(tree, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def shared(x: jax.Array, axis: str | None, dtype: DTypeLike) -> jax.Array:
    """`varying`, whose transpose, the sum over the axis, is taken in `dtype`."""
    return varying(x, axis)


def _shared(x, axis, dtype):
    return varying(x, axis), None


def _sum_back(axis, dtype, _, bar):
    if axis is None:
        return (bar,)
    return (jax.lax.psum(bar.astype(dtype), axis).astype(bar.dtype),)


shared.defvjp(_shared, _sum_back)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered(x: jax.Array, axis: str, along: int, dtype: DTypeLike) -> jax.Array:
    """The parts of all devices along a mesh axis, joined along an axis of the array.

    Its transpose, a reduce-scatter, adds up in `dtype`.
    """
    return jax.lax.all_gather(x, axis, axis=along, tiled=True)


def _gathered(x, axis, along, dtype):
    return gathered(x, axis, along, dtype), None


def _scatter_back(axis, along, dtype, _, bar):
    wide = bar.astype(dtype)
    total = jax.lax.psum_scatter(wide, axis, scatter_dimension=along, tiled=True)
    return (total.astype(bar.dtype),)


gathered.defvjp(_gathered, _scatter_back)
