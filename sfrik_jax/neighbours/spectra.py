"""Losses of eigenvalues and singular values.

A sum over eigenvalues F(G) = sum_k f(λ_k) of a symmetric G has the derivative
U f'(λ) Uᵀ. It is smooth where eigenvalues are equal, yet the derivative of the
eigenvectors, which automatic differentiation goes through, is not. So `spectral_sum`
has its own.

Of X [n, q] the smaller Gram matrix is taken, XXᵀ or XᵀX. They have the same
eigenvalues but for zeros, whose f is 0. Products are in float32 or wider, and not in
less than their dtype: the eigenvalues of a Gram matrix have half of its digits.

n: images; q: embedding dimension; m: the lesser of both; V: views; u: unit rows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import DATA
from sfrik_jax.covariance import constrain
from sfrik_jax.embeddings import Terms, Views, alignment_of_pairs, stacked

# Eigenvalues below so many epsilons of the largest are rounding.
ROUNDING = 10


class Spectral(NamedTuple):
    """A function of eigenvalues above 0, with f(0) = 0, and its derivative."""

    value: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


ROOT = Spectral(jnp.sqrt, lambda x: 0.5 * jax.lax.rsqrt(x))
ENTROPY = Spectral(lambda x: -x * jnp.log(x), lambda x: -jnp.log(x) - 1)


def wasserstein(
    views: Views,
    *,
    alignment_coeff: float,
    wasserstein_coeff: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment and the squared 2-Wasserstein distance to uniformity.

        alignment_coeff * mean (u_a - u_b)² + wasserstein_coeff * mean over views of
        ‖mu‖² + 1 + tr S - 2/sqrt(q) tr S^(1/2)

    mu and S are mean and covariance (over n) of u: the distance of their Gaussian to
    N(0, I/q). 0 is the best, 2 a collapse to one point. n <= q rows cannot reach 0.
    The distance itself has no derivative at 0, hence its square.
    Source: after Fang et al., ICLR 2024, arXiv 2403.00642, who add the distance.

    Args:
      views: V >= 2 arrays [n, q], not normalised.

    Returns:
      The loss, and terms `alignment` (over batch and q) and `wasserstein`, squared.
    """
    u = stacked(views, mesh, unit=True)
    align, (n, q) = alignment_of_pairs(u), u.shape[1:]
    mu = jnp.mean(u, axis=1, keepdims=True)
    centred = (u - mu) / n**0.5
    root = spectral_sum(smaller_gram(centred, mesh), ROOT)
    lengths = jnp.sum(mu**2, axis=(1, 2)) + 1 + jnp.sum(centred**2, axis=(1, 2))
    square = jnp.mean(lengths - 2 / q**0.5 * root)
    loss = alignment_coeff * align + wasserstein_coeff * square
    return loss, {"alignment": align, "wasserstein": square}


def vne(
    views: Views,
    *,
    alignment_coeff: float,
    vne_coeff: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment less the von Neumann entropy of the autocorrelation.

        alignment_coeff * mean (u_a - u_b)² - vne_coeff * mean over views of
        -sum_k λ_k log λ_k,   λ the eigenvalues of UᵀU/n

    They add up to 1. The entropy is log m at most, and 0 at a collapse.
    Source: after Kim et al., CVPR 2023, arXiv 2304.01434, who add it to other losses.

    Args:
      views: V >= 2 arrays [n, q], not normalised.

    Returns:
      The loss, and terms `alignment` (over batch and q) and `vne`, the entropy.
    """
    u = stacked(views, mesh, unit=True)
    align = alignment_of_pairs(u)
    gram = smaller_gram(u / u.shape[1] ** 0.5, mesh)
    entropy = jnp.mean(spectral_sum(gram, ENTROPY))
    loss = alignment_coeff * align - vne_coeff * entropy
    return loss, {"alignment": align, "vne": entropy}


def coding_rate(
    views: Views,
    *,
    alignment_coeff: float,
    coding_rate_coeff: float,
    distortion: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment less the total coding rate.

        alignment_coeff * mean (u_a - u_b)² - coding_rate_coeff * mean over views of
        1/2 log det(I + q/(n distortion) UᵀU)

    by a Cholesky factor of the smaller matrix of the two that have this determinant.
    The rate is largest where the rows (n <= q) or the columns are orthogonal:
    m/2 log(1 + q/(m distortion)).
    Source: after Tong et al., EMP-SSL, arXiv 2304.03977, whose similarity is a cosine
    with the mean of the views.

    Args:
      views: V >= 2 arrays [n, q], not normalised.
      distortion: eps² of the papers on coding rates, above 0.

    Returns:
      The loss, and terms `alignment` (over batch and q) and `coding_rate`.
    """
    u = stacked(views, mesh, unit=True)
    align, (n, q) = alignment_of_pairs(u), u.shape[1:]
    gram = smaller_gram(u, mesh)
    matrix = q / (n * distortion) * gram + jnp.eye(gram.shape[-1], dtype=u.dtype)[None]
    factor = jnp.linalg.cholesky(matrix)
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    rate = jnp.mean(jnp.sum(jnp.log(diagonal), axis=-1))
    loss = alignment_coeff * align - coding_rate_coeff * rate
    return loss, {"alignment": align, "coding_rate": rate}


def mmcr(
    views: Views,
    *,
    mmcr_coeff: float,
    local_coeff: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Maximum manifold capacity: the nuclear norm of the images' centroids.

        local_coeff * mean over images of ‖U_i‖_* - mmcr_coeff * ‖C‖_*

    C [n, q] has the mean over views of u in its rows, U_i [V, q] the views of image i.
    The nuclear norm of C asks for aligned views too: it is sqrt(n m) at most, where
    they are equal and the rows or columns of C orthogonal of equal length.
    Source: Yerxa et al., NeurIPS 2023, arXiv 2303.03307.

    Args:
      views: V >= 2 arrays [n, q], not normalised.
      local_coeff: with 0 the first term is left out.

    Returns:
      The loss, and terms `alignment` (over batch and q), `mmcr`, the nuclear norm of C,
      and where it counts `local`.
    """
    u = stacked(views, mesh, unit=True)
    capacity = spectral_sum(smaller_gram(jnp.mean(u, axis=0)[None], mesh), ROOT)[0]
    terms = {"alignment": alignment_of_pairs(u), "mmcr": capacity}
    loss = -mmcr_coeff * capacity
    if local_coeff:
        of_images = jnp.einsum("vnq,wnq->nvw", u, u, precision="highest")
        norms = spectral_sum(constrain(of_images, mesh, P()), ROOT)
        terms["local"] = jnp.mean(norms)
        loss += local_coeff * terms["local"]
    return loss, terms


def smaller_gram(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """XXᵀ, or XᵀX where q < n, of each view, whole on every device. [V, m, m]."""
    if x.shape[-1] < x.shape[-2]:
        gram = jnp.einsum("vnk,vnl->vkl", x, x, precision="highest")
    else:
        rows, everything = constrain(x, mesh, P(None, DATA)), constrain(x, mesh, P())
        gram = jnp.einsum("vnq,vmq->vnm", rows, everything, precision="highest")
    return constrain(gram, mesh, P())


def spectral_sum(matrix: jax.Array, function: Spectral) -> jax.Array:
    """sum_k f(λ_k) of symmetric matrices without negative eigenvalues. [..., m, m].

    Eigenvalues that are rounding, see `ROUNDING`, count as 0, and the derivative there
    is that at the bound. Of a Gram matrix it meets rows of X that are as good as 0.
    """
    return _spectral_sum(matrix, function)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spectral_sum(matrix, function):
    return _with_gradient(matrix, function)[0]


def _with_gradient(matrix, function):
    values, vectors = jnp.linalg.eigh(matrix)
    number = jnp.finfo(values.dtype)
    bound = float(ROUNDING * number.eps) * values[..., -1:]
    floored = jnp.maximum(values, jnp.maximum(bound, float(number.tiny)))
    total = jnp.sum(jnp.where(values > bound, function.value(floored), 0), axis=-1)
    scaled = vectors * function.slope(floored)[..., None, :]
    gradient = jnp.einsum("...ik,...jk->...ij", scaled, vectors, precision="highest")
    return total, gradient


def _backward(function, gradient, bar):
    return (bar[..., None, None] * gradient,)


_spectral_sum.defvjp(_with_gradient, _backward)
