"""The MMD of a truncated kernel to the uniform law, with its own derivative.

See `losses.mmd` for the formulas. Here: several views at once, the moments that are
logged, and the sharded form; how the sums over pairs come about is in `mmd_forms`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax import mmd_forms
from sfrik_jax.kernels import weighted_sum
from sfrik_jax.mesh import DATA
from sfrik_jax.mmd_forms import CHUNK, CHUNKED, FEATURE, wide


def value_and_moments(
    unit: Sequence[jax.Array],
    raw: Sequence[jax.Array],
    weights: tuple,
    mesh: Mesh | None,
    *,
    form: str | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Mean MMD over views, and the moments mean_ij P_l(t_ij) [L].

    The moments are for logging; no derivative flows through them.

    Args:
      unit: V arrays z [n, q] of unit rows; the derivative is by them, their numbers are
        not looked at.
      raw: V arrays x [n, q] with z = x / ‖x‖, in the dtype of the matrix products.
      form: one of `mmd_forms.FORMS`; None for `mmd_forms.choose`.
      chunk: rows of the Gram at a time, for the form "chunked".

    Raises:
      ValueError: there is no such form, or no weight.
    """
    if not weights:
        raise ValueError("a kernel needs at least one weight b_1")
    n, q = raw[0].shape
    devices = 1 if mesh is None else mesh.shape[DATA]
    if form is None:
        itemsize = raw[0].dtype.itemsize
        backend = jax.default_backend()
        form = mmd_forms.choose(n, q, len(weights), devices, itemsize, backend)
    mmd_forms.check(form, mmd_forms.FORMS)
    settings = (mesh, form, chunk if form == CHUNKED else None)
    value, moments = _mmd(tuple(unit), tuple(raw), weights, settings)  # pyright: ignore
    return value, moments


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mmd(unit, raw, weights, settings):
    value, moments, _ = _over_rows(raw, weights, settings, gradient=False)
    return value, moments


def _mmd_forward(unit, raw, weights, settings):
    value, moments, grads = _over_rows(raw, weights, settings, gradient=True)
    grads = tuple(g.astype(z.dtype) for g, z in zip(grads, unit, strict=True))
    return (value, moments), (grads, moments, weights)


def _mmd_backward(settings, residuals, cotangents):
    grads, moments, weights = residuals
    bar = cotangents[0]
    weights_bar = tuple(
        (bar * m).astype(jnp.result_type(b))
        for m, b in zip(moments, weights, strict=True)
    )
    return tuple(bar.astype(g.dtype) * g for g in grads), None, weights_bar


_mmd.defvjp(_mmd_forward, _mmd_backward)


def _over_rows(raw, weights, settings, *, gradient):
    """Runs `_block` on all rows at once, or on each device's rows of the mesh."""
    mesh, form, chunk = settings
    weights = tuple(jnp.asarray(b, wide(raw[0].dtype)) for b in weights)
    block = partial(_block, n=len(raw[0]), form=form, chunk=chunk, gradient=gradient)
    if mesh is None:
        return block(raw, weights, axis=None)
    rows = P(DATA, None)
    # The custom derivative wraps the shard_map: inside one, a gradient would need
    # a collective of its own.
    return jax.shard_map(
        partial(block, axis=DATA),
        mesh=mesh,
        in_specs=(rows, P()),
        out_specs=(P(), P(), rows if gradient else P()),
    )(raw, weights)


def _block(raw, weights, *, n, form, chunk, gradient, axis):
    """MMD, moments, and each view's gradient of this device's rows."""
    if form == FEATURE:
        sums = [
            mmd_forms.by_features(x, n, weights, axis=axis, gradient=gradient)
            for x in raw
        ]
    else:
        gathered, first_row = _gathered(raw, n, axis)
        pairs = partial(mmd_forms.by_pairs, chunk=chunk, gradient=gradient)
        sums = [
            pairs(x, x_all, first_row, weights)
            for x, x_all in zip(raw, gathered, strict=True)
        ]
    moments = sum(s.orders for s in sums) / (n * n * len(raw))
    if form != FEATURE and axis is not None:
        moments = jax.lax.psum(moments, axis)
    value = weighted_sum(weights, list(moments))
    scale = 2 / (n * n * len(raw))
    grads = [_gradient(s, x, scale, weights) for s, x in zip(sums, raw, strict=True)]
    return value, moments, tuple(grads) if gradient else ()


def _gathered(raw, n, axis):
    """All rows of each view, by one collective, and the index of the first one here."""
    b = len(raw[0])
    if axis is None or b == n:
        return raw, 0
    everything = jax.lax.all_gather(jnp.stack(raw), axis, axis=1, tiled=True)
    return list(everything), jax.lax.axis_index(axis) * b


def _gradient(sums, x, scale, weights):
    first_order = scale * weights[0] * sums.total[None]
    if sums.slopes is None:
        return jnp.broadcast_to(first_order, x.shape)
    return scale * sums.slopes + first_order
