"""Legendre polynomials and rotation-invariant kernels on the sphere.

A rotation-invariant kernel of two unit vectors of R^q depends on their cosine t
alone: `K(u, v) = sum_l b_l P_l(q; t)`. With weights `b_l >= 0` it is positive
definite (Schoenberg, 1942), and its maximum mean discrepancy to the uniform law
vanishes only there in all orders with `b_l > 0`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp


def legendre_list(t: jax.Array, *, order: int, dim: int) -> list[jax.Array]:
    """P_0 … P_order at t as a list, so that each can be fused on its own.

    See `legendre`.
    """
    if order < 0 or dim < 2:
        raise ValueError(f"order={order} must be >= 0 and dim={dim} must be >= 2")
    polys = [jnp.ones_like(t), t]
    for k in range(1, order):
        # Divided at once: the coefficients stay of order 1 for any q.
        up = (2 * k + dim - 2) / (k + dim - 2)
        down = k / (k + dim - 2)
        polys.append(up * t * polys[k] - down * polys[k - 1])
    return polys[: order + 1]


def legendre(t: jax.typing.ArrayLike, *, order: int, dim: int) -> jax.Array:
    """Legendre polynomials P_0 … P_order of dimension q = `dim`, with P_l(1) = 1.

        (l + q - 2) P_{l+1}(t) = (2l + q - 2) t P_l(t) - l P_{l-1}(t)

    They are the Gegenbauer polynomials of index (q - 2)/2 divided by their value
    at 1, in the convention of Müller, "Analysis of Spherical Symmetries in
    Euclidean Spaces" (1998).

    Args:
      t: cosines in [-1, 1], any shape.
      order: the highest order, >= 0.
      dim: q >= 2; the vectors live on the sphere S^{q-1} of R^q.

    Returns:
      [order + 1, *t.shape], in t's dtype.

    Raises:
      ValueError: order < 0 or dim < 2.
    """
    t = jnp.asarray(t)
    return jnp.stack(legendre_list(t, order=order, dim=dim))


@dataclass(frozen=True)
class TruncatedKernel:
    """`K(t) = sum_{l=1..L} b_l P_l(q; t)`, the constant b_0 left out.

    Attributes:
      weights: b_1 … b_L, each >= 0; the truncation order L is their number.

    Raises:
      ValueError: no weight, or a weight that is negative or not finite.
    """

    weights: Sequence[float | jax.Array]

    def __post_init__(self) -> None:
        if not len(self.weights):
            raise ValueError("a kernel needs at least one weight b_1")
        for order, weight in enumerate(self.weights, 1):
            if isinstance(weight, jax.Array):
                continue  # it may be traced, and has no value yet
            if not 0 <= weight < float("inf"):
                raise ValueError(f"b_{order}={weight} must be finite and >= 0")

    def __call__(self, t: jax.typing.ArrayLike, dim: int) -> jax.Array:
        """K at the cosines t (any shape), for unit vectors of R^dim."""
        t = jnp.asarray(t)
        polys = legendre_list(t, order=len(self.weights), dim=dim)
        return weighted_sum(self.weights, polys[1:])

    def derivative(
        self, t: jax.typing.ArrayLike, dim: int, *, first: int = 1
    ) -> jax.Array:
        """dK/dt at t, of the orders l >= `first` alone.

            P_l'(q; t) = l (l + q - 2)/(q - 1) P_{l-1}(q + 2; t)

        The identity follows from d/dt C_l^a = 2a C_{l-1}^{a+1} (DLMF 18.9.19).
        """
        t = jnp.asarray(t)
        order = len(self.weights)
        polys = legendre_list(t, order=max(order - 1, 0), dim=dim + 2)
        slopes = [k * (k + dim - 2) / (dim - 1) for k in range(1, order + 1)]
        weights = [w * s for w, s in zip(self.weights, slopes, strict=True)]
        return weighted_sum(weights[first - 1 :], polys[first - 1 :])


def weighted_sum(weights: Sequence, arrays: Sequence[jax.Array]) -> jax.Array:
    """`sum_k weights[k] * arrays[k]` in the arrays' own dtype."""
    total = jnp.zeros_like(arrays[0])
    for weight, array in zip(weights, arrays, strict=True):
        total = total + jnp.asarray(weight, array.dtype) * array
    return total
