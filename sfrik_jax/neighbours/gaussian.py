"""The MMD of a Gaussian kernel to a Gaussian law, in closed form."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sfrik_jax.embeddings import (
    Terms,
    Views,
    alignment_of_pairs,
    rows_and_all,
    stacked,
)
from sfrik_jax.mmd_forms import product


def gaussian_mmd(
    views: Views,
    *,
    alignment_coeff: float,
    gaussian_mmd_coeff: float,
    bandwidth: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment and the squared MMD of the embeddings to N(0, I).

        k(x, y) = exp(-‖x - y‖²/(2 s²)),  s² = bandwidth * q
        MMD² = mean_{i != j} k(z_i, z_j)
               - 2 mean_i (1 + 1/s²)^(-q/2) exp(-‖z_i‖²/(2 (s² + 1)))
               + (1 + 2/s²)^(-q/2)

    averaged over the views. Embeddings are taken as they are. The pairs are of two
    images, so that the expectation over normal rows is 0, and values may be negative.
    Distances between normal rows are about 2q, hence a bandwidth by q: the kernel of
    such a pair is near exp(-1/bandwidth) for all q.
    Source: after Zimmermann et al., KerJEPA, arXiv 2512.19605; the choice of s² is
    not from there.

    Args:
      views: V >= 2 arrays [n, q], not normalised.
      bandwidth: s²/q, above 0.

    Returns:
      The loss, and terms `alignment` (over batch and q) and `gaussian_mmd`.
    """
    z = stacked(views, mesh, unit=False)
    align = alignment_of_pairs(z)
    n, q = z.shape[1:]
    variance = bandwidth * q
    rows, everything = rows_and_all(z, mesh, views[0].dtype)
    squares, others = (
        jnp.sum(x.astype(z.dtype) ** 2, axis=-1) for x in (rows, everything)
    )
    distances = squares[:, :, None] + others[:, None]
    distances -= 2 * product("vnq,vmq->vnm", rows, everything)
    own = jnp.eye(n, dtype=bool)[None]
    pairs = jnp.exp(jnp.where(own, -jnp.inf, -distances / (2 * variance)))
    shrink = q / 2 * jnp.log1p(jnp.asarray(1 / variance, z.dtype))
    crossed = jnp.exp(-shrink - squares / (2 * (variance + 1)))
    within = jnp.exp(-q / 2 * jnp.log1p(jnp.asarray(2 / variance, z.dtype)))
    count = len(views) * n * (n - 1)
    value = jnp.sum(pairs) / count - 2 * jnp.mean(crossed) + within
    loss = alignment_coeff * align + gaussian_mmd_coeff * value
    return loss, {"alignment": align, "gaussian_mmd": value}
