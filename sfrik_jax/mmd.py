"""The MMD of a truncated kernel to the uniform law, with its own derivative.

See `losses.mmd` for the formulas. Here: several views at once, the moments that are
logged, and the rows and columns of a mesh; how the sums over pairs come about is in
`mmd_forms`. On a mesh all of this runs inside `jax.shard_map`, with its check of what
varies over which axis (`check_vma`, the default): without it the gradient would come
out divided by the number of devices.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from sfrik_jax import mmd_forms
from sfrik_jax.collectives import WHOLE, Split, add_over, axis_size
from sfrik_jax.kernels import weighted_sum
from sfrik_jax.mmd_forms import CHUNK, CHUNKED, FEATURE, wide
from sfrik_jax.target import is_cpu


def value_and_moments(
    unit: Sequence[jax.Array],
    raw: Sequence[jax.Array],
    weights: tuple,
    *,
    split: Split = WHOLE,
    form: str | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Mean MMD over views, and the moments mean_ij P_l(t_ij) [L].

    The moments are for logging; no derivative flows through them.

    Args:
      unit: V arrays z [b, k] of unit rows, this device's part of [n, q]; the derivative
        is by them, their numbers are not looked at.
      raw: V arrays x [b, k] with z = x / ‖x‖, in the dtype of the matrix products.
      split: the mesh axes over which rows and columns are split.
      form: one of `mmd_forms.FORMS`; None for `mmd_forms.choose`.
      chunk: rows of the Gram at a time, for the form "chunked".

    Raises:
      ValueError: there is no such form, or no weight; the form "feature" is asked for
        split columns.
    """
    if not weights:
        raise ValueError("a kernel needs at least one weight b_1")
    form = form or _chosen(raw[0], len(weights), split)
    mmd_forms.check(form, mmd_forms.FORMS)
    if form == FEATURE and split.columns:
        raise ValueError(f"form={form!r} needs all columns on one device")
    settings = (split, form, chunk if form == CHUNKED else None)
    value, moments = _mmd(tuple(unit), tuple(raw), weights, settings)  # pyright: ignore
    return value, moments


def _chosen(x: jax.Array, order: int, split: Split) -> str:
    devices, backend = axis_size(split.rows), "cpu" if is_cpu() else "accelerator"
    n = len(x) * devices
    if split.columns:
        return mmd_forms.by_memory(n, devices, backend)
    return mmd_forms.choose(n, x.shape[1], order, devices, x.dtype.itemsize, backend)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mmd(unit, raw, weights, settings):
    value, moments, _ = _block(raw, weights, settings, gradient=False)
    return value, moments


def _mmd_forward(unit, raw, weights, settings):
    value, moments, grads = _block(raw, weights, settings, gradient=True)
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


def _block(raw, weights, settings, *, gradient):
    """MMD, moments, and each view's gradient of this device's rows and columns.

    By symmetry the gradient of these rows is theirs alone: it needs no collective.
    """
    split, form, chunk = settings
    weights = tuple(jnp.asarray(b, wide(raw[0].dtype)) for b in weights)
    n = len(raw[0]) * axis_size(split.rows)
    if form == FEATURE:
        sums = [
            mmd_forms.by_features(x, n, weights, rows=split.rows, gradient=gradient)
            for x in raw
        ]
    else:
        gathered, first_row = _gathered(raw, split.rows)
        pairs = partial(
            mmd_forms.by_pairs, columns=split.columns, chunk=chunk, gradient=gradient
        )
        sums = [
            pairs(x, x_all, first_row, weights)
            for x, x_all in zip(raw, gathered, strict=True)
        ]
    moments = jnp.sum(jnp.stack([s.orders for s in sums]), axis=0)
    moments = moments / (n * n * len(raw))
    if form != FEATURE:
        moments = add_over(split.rows, moments)
    value = weighted_sum(weights, list(moments))
    scale = 2 / (n * n * len(raw))
    grads = [_gradient(s, x, scale, weights) for s, x in zip(sums, raw, strict=True)]
    return value, moments, tuple(grads) if gradient else ()


def _gathered(raw, axis):
    """All rows of each view, by one collective, and the index of the first one here."""
    if axis_size(axis) == 1:
        return raw, 0
    everything = jax.lax.all_gather(jnp.stack(raw), axis, axis=1, tiled=True)
    return list(everything), jax.lax.axis_index(axis) * len(raw[0])


def _gradient(sums, x, scale, weights):
    first_order = scale * weights[0] * sums.total[None]
    if sums.slopes is None:
        return jnp.broadcast_to(first_order, x.shape)
    return scale * sums.slopes + first_order
