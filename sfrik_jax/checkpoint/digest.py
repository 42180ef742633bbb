"""A digest of each leaf of a state, the same for every sharding.

Orbax does not notice a flipped bit in an array's values; these digests do.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax import leaves


def digests(tree: Any) -> dict[str, list[int]]:
    """A 64-bit digest of each leaf, by path: two numbers of 32 bits.

    The sum over elements of a hash of bits and position. Integer sums do not depend
    on the order, so every sharding gives the same digest. It is made for accidents,
    not for adversaries.
    """
    return {k: v.tolist() for k, v in leaves.computed(_of_leaves, tree).items()}


def _of_leaves(tree: Any) -> dict[str, jax.Array]:
    return {path: _leaf_digest(leaf) for path, leaf in leaves.by_path(tree).items()}


def _leaf_digest(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4) * 8  # 8-byte types become pairs of words
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
    words = bits.astype(jnp.uint32)
    # Not flattened, which would bring a sharded leaf together on each device.
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    seeds = (jnp.uint32(1), jnp.uint32(0x9E3779B9))
    return jnp.stack(
        [jnp.sum(_mix(words ^ _mix(place + s)), dtype=jnp.uint32) for s in seeds]
    )


def _mix(h: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit moves every output bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)
