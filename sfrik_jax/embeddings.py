"""What the losses share: unit rows, the checks of views, alignment, placement.

Views are projector outputs [n, q] that are not normalised; see `losses`.
"""

import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import DATA
from sfrik_jax.covariance import constrain
from sfrik_jax.mmd_forms import inverse_length, wide

Views = Sequence[jax.Array]
Terms = dict[str, jax.Array]


def normalize(z: jax.Array, columns: str | None = None) -> jax.Array:
    """Rows z / ‖z‖ in float32 or wider; rows shorter than 1e-12 become 0. z: [..., q].

    A zero row has derivative 0, where z / max(‖z‖, 1e-12) would have 1e12. Inside
    `jax.shard_map` the columns may be split over the mesh axis `columns`: one sum of
    the rows' squares, and in the derivative one of their products.
    """
    # Widened once: two cotangents that are rounded to bfloat16, each with a radial part
    # that their sum has not, gave 0.46 % of error in place of 0.17.
    z = z.astype(wide(z.dtype))
    return z * inverse_length(z, columns)


def rows_and_all(
    z: jax.Array, mesh: Mesh | None, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """z [V, n, q] as rows sharded over `data`, and whole on every device."""
    z = z.astype(dtype)
    return constrain(z, mesh, P(None, DATA)), constrain(z, mesh, P())


def check_views(views: Views, *, minimum: int, maximum: int | None = None) -> None:
    """The views are [n, q] arrays of one shape, n >= 2, q >= 2, of a fit number.

    Not float16: beside rows of 1e-3 the derivative leaves its range.
    """
    if jnp.float16 in {z.dtype.type for z in views}:
        raise ValueError("embeddings in float16; take bfloat16 or float32")
    if len(views) < minimum or (maximum is not None and len(views) > maximum):
        raise ValueError(
            f"{len(views)} views; this loss takes {minimum}"
            + ("" if maximum == minimum else " or more")
        )
    chex.assert_rank(list(views), 2)
    chex.assert_equal_shape(list(views))
    n, q = views[0].shape
    if n < 2 or q < 2:
        raise ValueError(f"embeddings of shape [{n}, {q}]; n and q must be at least 2")


def stacked(views: Views, mesh: Mesh | None, *, unit: bool) -> jax.Array:
    """Views [n, q] as one array [V, n, q] in float32 or wider, rows over `data`.

    Args:
      unit: rows are divided by their lengths, see `normalize`.
    """
    check_views(views, minimum=2)
    wider = [normalize(z) if unit else z.astype(wide(z.dtype)) for z in views]
    return constrain(jnp.stack(wider), mesh, P(None, DATA))


def alignment_of_pairs(z: jax.Array) -> jax.Array:
    """Mean over pairs of views a < b, the batch and q of (z_a - z_b)². z: [V, n, q]."""
    pairs = itertools.combinations(z, 2)
    return jnp.mean(jnp.stack([jnp.mean((a - b) ** 2) for a, b in pairs]))
