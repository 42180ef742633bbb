"""Laws of random one-dimensional projections, compared by characteristic functions.

p_i = <x_i, w> with w uniform on the sphere; phi: the characteristic function of the
wanted law, which is even and real. Of n numbers p the statistic is, after Epps and
Pulley,

    n ∫ |1/n sum_i exp(i t p_i) - phi(t)|² exp(-t²/2) dt

by the trapezoid rule on KNOTS points of [-REACH, REACH]. The integrand is even and 0
at t = 0, so that the points t > 0 are enough.

n: images; q: embedding dimension; S: slices; V: views.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax.covariance import constrain
from sfrik_jax.embeddings import Terms, Views, alignment_of_pairs, stacked

# As public copies of LeJEPA's algorithm have them.
KNOTS, REACH = 17, 5.0
# Nodes of the quadrature of `sphere_characteristic`, and its width in deviations.
NODES, WIDTH = 200, 12.0


def sigreg(
    views: Views,
    *,
    alignment_coeff: float,
    sigreg_coeff: float,
    slices: int,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment and the Epps-Pulley statistic of slices against N(0, 1).

        alignment_coeff * mean (z_a - z_b)² + sigreg_coeff * mean over views and
        slices of  n ∫ |1/n sum_i exp(i t <z_i, w>) - exp(-t²/2)|² exp(-t²/2) dt

    Embeddings are taken as they are. The statistic of standard normal rows is
    sqrt(2π) (1 - 1/sqrt(3)) = 1.06 in expectation, for any n.
    Source: after Balestriero and LeCun, LeJEPA, arXiv 2511.08544, whose alignment is
    with the mean of the views.

    Args:
      views: V >= 2 arrays [n, q], not normalised.
      slices: S, the directions that are drawn from `key`, the same for all views.
      key: typed, another for each step.

    Returns:
      The loss, and terms `alignment` (over batch and q) and `sigreg`.
    """
    z = stacked(views, mesh, unit=False)
    align = alignment_of_pairs(z)
    statistic = _statistic(z, np.exp(-(_knots() ** 2) / 2), slices, key, mesh)
    loss = alignment_coeff * align + sigreg_coeff * statistic
    return loss, {"alignment": align, "sigreg": statistic}


def sphere_slices(
    views: Views,
    *,
    alignment_coeff: float,
    sphere_slices_coeff: float,
    slices: int,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment and the statistic of slices against those of the uniform sphere.

        alignment_coeff * mean (u_a - u_b)² + sphere_slices_coeff * mean over views and
        slices of  n ∫ |1/n sum_i exp(i t sqrt(q) <u_i, w>) - phi(t)|² exp(-t²/2) dt

    u are the unit rows, and phi belongs to sqrt(q) times one coordinate of a uniform
    unit vector, see `sphere_characteristic`.
    Source: after SPHERE-JEPA, arXiv 2605.26900, which takes LeJEPA's slices to the
    sphere; the statistic here is that of `sigreg` with another phi, not the paper's
    own form.

    Args: as `sigreg`.
    Returns: the loss, and terms `alignment` (over batch and q) and `sphere_slices`.
    """
    u = stacked(views, mesh, unit=True)
    align, q = alignment_of_pairs(u), u.shape[-1]
    phi = sphere_characteristic(q, _knots())
    statistic = _statistic(math.sqrt(q) * u, phi, slices, key, mesh)
    loss = alignment_coeff * align + sphere_slices_coeff * statistic
    return loss, {"alignment": align, "sphere_slices": statistic}


def directions(key: jax.Array, q: int, slices: int, dtype: jnp.dtype) -> jax.Array:
    """Unit columns w, uniform on the sphere. [q, S].

    Drawn in float32 whatever the dtype, so that all dtypes have the same slices.
    """
    w = jax.random.normal(key, (q, slices), jnp.float32).astype(dtype)
    return w / jnp.linalg.norm(w, axis=0, keepdims=True)


def sphere_characteristic(q: int, t: np.ndarray) -> np.ndarray:
    """E cos(t sqrt(q) u_1) of a uniform unit vector u of dimension q. float64, as t.

        ∫_0^π cos(t sqrt(q) cos a) sin(a)^(q-2) da / ∫_0^π sin(a)^(q-2) da

    u_1 = cos a has the density (1 - u²)^((q-3)/2) up to a constant. Gauss-Legendre
    quadrature around π/2, beyond which large q have no mass.
    """
    x, weights = np.polynomial.legendre.leggauss(NODES)
    angles = np.pi / 2 + min(np.pi / 2, WIDTH / np.sqrt(q)) * x
    mass = weights * np.sin(angles) ** (q - 2)
    waves = np.cos(np.multiply.outer(t, np.sqrt(q) * np.cos(angles)))
    return waves @ mass / mass.sum()


def _knots() -> np.ndarray:
    """The points t > 0."""
    return np.linspace(0, REACH, KNOTS // 2 + 1)[1:]


def _statistic(x, phi, slices, key, mesh):
    """The mean over views and slices. x: [V, n, q]; phi: at the knots."""
    knots, n = _knots(), x.shape[1]
    # The trapezoid rule: half a step at the end; the other half line doubles all.
    weights = 2 * knots[0] * np.exp(-(knots**2) / 2)
    weights[-1] /= 2
    w = constrain(directions(key, x.shape[-1], slices, x.dtype), mesh, P())
    p = jnp.einsum("vnq,qs->vns", x, w)
    # Sines and cosines are formed again in the backward pass: kept, they would be
    # 2 (KNOTS - 1)/2 times as many numbers as p.
    gap = jax.checkpoint(_gap)
    rule = zip(weights.tolist(), knots.tolist(), phi.tolist(), strict=True)
    gaps = [weight * gap(p, t, value) for weight, t, value in rule]
    return n * jnp.sum(jnp.stack(gaps))


def _gap(p, t, value):
    """Mean over views and slices of |1/n sum_i exp(i t p_i) - value|². p: [V, n, S]."""
    real, imaginary = (jnp.mean(f(t * p), axis=1) for f in (jnp.cos, jnp.sin))
    return jnp.mean((real - value) ** 2 + imaginary**2)
