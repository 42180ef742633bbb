"""Correlations between the dimensions of two views."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sfrik_jax.embeddings import (
    Terms,
    Views,
    alignment_of_pairs,
    check_views,
    stacked,
)
from sfrik_jax.mmd_forms import product

# Beside the variances, as in batch norm: a dimension without variance becomes 0.
VARIANCE_FLOOR = 1e-5


def barlow_twins(
    views: Views,
    *,
    invariance_coeff: float,
    redundancy_coeff: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """The cross-correlation of two views to the identity.

        C_kl = mean_i a_ik b_il
        invariance_coeff * sum_k (1 - C_kk)² + redundancy_coeff * sum_{k != l} C_kl²

    a and b are the views with the mean of each dimension taken off, and divided by
    sqrt(var + 1e-5), var over n. C is q x q whatever n is.
    Source: Zbontar et al., ICML 2021, arXiv 2103.03230.

    Args:
      views: two arrays [n, q], not normalised.

    Returns:
      The loss, and terms `alignment` (of a and b, over batch and q), `invariance` and
      `redundancy`.
    """
    check_views(views, minimum=2, maximum=2)
    z = stacked(views, mesh, unit=False)
    n, q = z.shape[1:]
    z = z - jnp.mean(z, axis=1, keepdims=True)
    variance = jnp.mean(z * z, axis=1, keepdims=True)
    z = z * jax.lax.rsqrt(variance + VARIANCE_FLOOR)
    invariance = jnp.sum((1 - jnp.mean(z[0] * z[1], axis=0)) ** 2)
    a, b = z.astype(views[0].dtype)
    correlations = product("nk,nl->kl", a, b) / n
    # Masked, not subtracted: the diagonal is near 1 and the rest is near 0.
    others = jnp.where(jnp.eye(q, dtype=bool), 0, correlations)
    redundancy = jnp.sum(others**2)
    loss = invariance_coeff * invariance + redundancy_coeff * redundancy
    align = alignment_of_pairs(z)
    terms = {"alignment": align, "invariance": invariance, "redundancy": redundancy}
    return loss, terms
