"""The MMD of a truncated kernel to the uniform law, with its own derivative.

See `losses.mmd` for the formulas. Here: several views at once, the moments that are
logged, and the sharded form.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax.kernels import TruncatedKernel, legendre_list, weighted_sum
from sfrik_jax.mesh import DATA


def value_and_moments(
    z: jax.Array, weights: tuple, mesh: Mesh | None, operand_dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Mean MMD over views of z [V, n, q], and the moments mean_ij P_l(t_ij) [L].

    The moments are for logging; no derivative flows through them.
    """
    value, moments = _mmd(z, weights, mesh, operand_dtype)  # pyright: ignore
    return value, moments


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mmd(z, weights, mesh, operand_dtype):
    value, moments, _ = _over_rows(z, weights, mesh, operand_dtype, gradient=False)
    return value, moments


def _mmd_forward(z, weights, mesh, operand_dtype):
    value, moments, grad = _over_rows(z, weights, mesh, operand_dtype, gradient=True)
    return (value, moments), (grad.astype(z.dtype), moments, weights)


def _mmd_backward(mesh, operand_dtype, residuals, cotangents):
    grad, moments, weights = residuals
    bar = cotangents[0]
    weights_bar = tuple(
        (bar * m).astype(jnp.result_type(b))
        for m, b in zip(moments, weights, strict=True)
    )
    return bar.astype(grad.dtype) * grad, weights_bar


_mmd.defvjp(_mmd_forward, _mmd_backward)


def _over_rows(z, weights, mesh, operand_dtype, *, gradient):
    """Runs `_row_block` on all rows at once, or on each device's rows of the mesh."""
    weights = tuple(jnp.asarray(b, wide(z.dtype)) for b in weights)
    if mesh is None:
        block = partial(_row_block, axis=None, dtype=operand_dtype, gradient=gradient)
        return block(z, weights)
    block = partial(_row_block, axis=DATA, dtype=operand_dtype, gradient=gradient)
    rows = P(None, DATA, None)
    # The custom derivative wraps the shard_map: inside one, a gradient would need
    # a collective of its own.
    return jax.shard_map(
        block,
        mesh=mesh,
        in_specs=(rows, P()),
        out_specs=(P(), P(), rows if gradient else P()),
    )(z, weights)


def _row_block(z, weights, *, axis, dtype, gradient):
    """MMD, moments and the gradient's rows from this device's rows of the Gram.

    z: [V, b, q], the b rows here; gathered to [V, n, q] over the mesh axis `axis`.
    """
    num_views, b, q = z.shape
    kind = wide(z.dtype)
    z = z.astype(dtype)
    z_all, first_row = z, 0
    if axis is not None:
        z_all = jax.lax.all_gather(z, axis, axis=1, tiled=True)
        first_row = jax.lax.axis_index(axis) * b
    n = z_all.shape[1]
    order = len(weights)

    # l = 1 by the mean vector: mean_ij t_ij = ‖mean z‖², no matrix needed.
    mean = jnp.mean(z_all.astype(kind), axis=1)
    sums = [n * jnp.sum(jnp.einsum("vbq,vq->vb", z.astype(kind), mean))]
    grad = (2 / n) * weights[0] * jnp.broadcast_to(mean[:, None], z.shape)
    if order > 1:
        gram = product("vbq,vnq->vbn", z, z_all)
        diagonal = (jnp.arange(n)[None] == first_row + jnp.arange(b)[:, None])[None]
        polys = legendre_list(gram, order=order, dim=q)
        # P_l(1) = 1 on the diagonal: exactly the number of rows.
        sums += [jnp.sum(jnp.where(diagonal, 0, p)) + num_views * b for p in polys[2:]]
        if gradient:
            slope = TruncatedKernel(weights).derivative(gram, q, first=2)
            slope = jnp.where(diagonal, 0, slope).astype(dtype)
            grad = grad + (2 / n**2) * product("vbn,vnq->vbq", slope, z_all)

    moments = jnp.stack(sums) / (n * n * num_views)
    if axis is not None:
        moments = jax.lax.psum(moments, axis)
    value = weighted_sum(weights, list(moments))
    return value, moments, grad / num_views if gradient else jnp.zeros(())


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product that accumulates in float32, or in float64 for float64."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=wide(a.dtype))


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums: float32, or float64 where the operands are float64."""
    return jnp.promote_types(dtype, jnp.float32)
