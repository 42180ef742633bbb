"""Losses on the embeddings of several views: SFRIK, SimCLR, AUH, VICReg.

Every loss takes `views`, a list of [n, q] projector outputs that are not
normalised, and returns `(loss, terms)`; terms are the unscaled parts to log. The
batch is the global one. Without a mesh the arrays may live anywhere; with one, the
rows are sharded over its `data` axis and each device forms its rows of the n x n
matrices against the gathered embeddings.

Sums are in float32, or in float64 where the views are float64. Where the views are
bfloat16, the matrix products take bfloat16 operands and accumulate in float32.

n: images in the global batch; q: embedding dimension; V: views; t: cosine.
"""

from collections.abc import Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax.kernels import TruncatedKernel, legendre_list, weighted_sum
from sfrik_jax.mesh import DATA

Views = Sequence[jax.Array]
Terms = dict[str, jax.Array]


def normalize(z: jax.Array) -> jax.Array:
    """Rows z / ‖z‖ in float32 or wider; rows shorter than 1e-12 become 0. z: [..., q].

    A zero row has derivative 0, where z / max(‖z‖, 1e-12) would have 1e12.
    """
    z = z.astype(_wide(z.dtype))
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    alive = square > 1e-24
    inverse = jax.lax.rsqrt(jnp.where(alive, square, 1))
    return z * jnp.where(alive, inverse, 0)


def sfrik(
    views: Views,
    *,
    weights: Sequence[float],
    alignment_coeff: float,
    mmd_coeff: float,
    anchors: Sequence[int] | None = None,
    regularize_all: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment plus the truncated-kernel MMD to the uniform law on the sphere.

        alignment_coeff * align + mmd_coeff * mean over regularised views of MMD²

    `align` is the mean over anchor views of the mean over all other views of the
    squared difference, averaged over the batch and over q. One formula for each
    layout: two views have anchors (0, 1); OBoW has one anchor, the original image;
    SwAV's anchors are the large views.

    Source: Zheng et al., "Self-supervised learning with rotation-invariant
    kernels", ICLR 2023, arXiv 2208.00789.

    Args:
      views: V >= 2 arrays [n, q], not normalised.
      weights: b_1 … b_L >= 0; L is their number.
      anchors: indices of the anchor views; None for all.
      regularize_all: the MMD of all views, or of the anchors alone.
      mesh: shard over its `data` axis: one all-gather for all views, and the
        gradient needs none.

    Returns:
      The loss, and terms `alignment`, `mmd` (mean over all n² pairs),
      `mmd_offdiagonal` (mean over the n(n-1) pairs of two images: 0 in expectation
      for uniform embeddings), and `mmd_<l>_offdiagonal` of each order, unweighted.
    """
    _check(views, minimum=2)
    unit = [normalize(z) for z in views]
    anchors = range(len(unit)) if anchors is None else anchors
    align = _alignment(unit, anchors)
    regularized = unit if regularize_all else [unit[a] for a in anchors]
    z = jnp.stack(regularized)
    value, moments = _mmd_and_moments(z, tuple(weights), mesh, views[0].dtype)
    n = views[0].shape[0]
    offdiagonal = (n * moments - 1) / (n - 1)
    terms = {"alignment": align, "mmd": value}
    terms["mmd_offdiagonal"] = weighted_sum(weights, list(offdiagonal))
    for order, moment in enumerate(offdiagonal, 1):
        terms[f"mmd_{order}_offdiagonal"] = moment
    return alignment_coeff * align + mmd_coeff * value, terms


def mmd(
    z: jax.typing.ArrayLike,
    weights: Sequence[float | jax.Array],
    mesh: Mesh | None = None,
) -> jax.Array:
    """Squared MMD of the rows of z to the uniform law: mean_ij sum_l b_l P_l(q; t_ij).

    All n² pairs count, and the diagonal adds its constant `sum b_l / n`.

    The derivative is written by hand and formed in the forward pass, so that the
    Gram matrix and the gathered embeddings are freed before the backward pass:

        d/dz_i = 2/n² sum_{j != i} psi'(t_ij) z_j + 2 b_1/n mean(z),  psi of l >= 2

    It leaves out the radial part that the diagonal would add, a multiple of z_i,
    which the normalisation of z removes: compare with autodiff after `normalize`.

    Args:
      z: [n, q], unit rows, float32 or float64 (bfloat16: operands stay bfloat16).
      weights: b_1 … b_L; they may be traced, and have their own derivative.
      mesh: with it, row blocks over its `data` axis; else all rows at once.
    """
    z = jnp.asarray(z)
    chex.assert_rank(z, 2)
    return _mmd_and_moments(z[None], tuple(weights), mesh, z.dtype)[0]


def simclr(
    views: Views, *, temperature: float, mesh: Mesh | None = None
) -> tuple[jax.Array, Terms]:
    """NT-Xent of two views: each embedding has 1 positive and 2n - 2 negatives.

        mean over the 2n embeddings of  -t_pos/τ + log sum_{k != self} exp(t_k/τ)

    Source: Chen et al., "A simple framework for contrastive learning of visual
    representations", ICML 2020, arXiv 2002.05709.
    """
    _check(views, minimum=2, maximum=2)
    z = jnp.stack([normalize(v) for v in views])
    rows, everything = _rows_and_all(z, mesh, views[0].dtype)
    cosines = _product("vnq,wmq->vnwm", rows, everything)
    n = z.shape[1]
    own = jnp.eye(2 * n, dtype=bool).reshape(cosines.shape)
    logits = jnp.where(own, -jnp.inf, cosines / temperature)
    log_sum = jax.nn.logsumexp(logits, axis=(2, 3))
    positive = jnp.sum(z[0] * z[1], axis=-1)
    loss = jnp.mean(log_sum) - jnp.mean(positive) / temperature
    return loss, {"contrast": loss, "alignment": jnp.mean((z[0] - z[1]) ** 2)}


def auh(
    views: Views,
    *,
    alignment_coeff: float,
    uniformity_coeff: float,
    scale: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Alignment and uniformity on the hypersphere, of two views.

        uniformity = mean over views of log mean_{i != j} exp(-2 s (1 - t_ij))

    `1 - t` is half the squared distance, so the kernel is exp(-s ‖u - v‖²).
    Source: Wang and Isola, ICML 2020, arXiv 2005.10242.
    """
    _check(views, minimum=2, maximum=2)
    z = jnp.stack([normalize(v) for v in views])
    align = jnp.mean((z[0] - z[1]) ** 2)
    rows, everything = _rows_and_all(z, mesh, views[0].dtype)
    cosines = _product("vnq,vmq->vnm", rows, everything)
    n = z.shape[1]
    own = jnp.eye(n, dtype=bool)[None]
    exponents = jnp.where(own, -jnp.inf, -2 * scale * (1 - cosines))
    log_sums = jax.nn.logsumexp(exponents, axis=(1, 2))
    uniformity = jnp.mean(log_sums - jnp.log(float(n * (n - 1))).astype(z.dtype))
    loss = alignment_coeff * align + uniformity_coeff * uniformity
    return loss, {"alignment": align, "uniformity": uniformity}


def vicreg(
    views: Views,
    *,
    invariance_coeff: float,
    variance_coeff: float,
    covariance_coeff: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Terms]:
    """Invariance, variance and covariance of two views, not normalised.

        variance   = sum over views of 1/2 mean_k relu(1 - sqrt(var_k + 1e-4))
        covariance = sum over views of sum_{k != l} cov_kl² / q

    with the unbiased variance and covariance (n - 1).
    Source: Bardes et al., ICLR 2022, arXiv 2105.04906.
    """
    _check(views, minimum=2, maximum=2)
    wide = [z.astype(_wide(z.dtype)) for z in views]
    z = _constrain(jnp.stack(wide), mesh, P(None, DATA))
    _, n, q = z.shape
    invariance = jnp.mean((z[0] - z[1]) ** 2)
    z = z - jnp.mean(z, axis=1, keepdims=True)
    var = jnp.sum(z * z, axis=1) / (n - 1)
    variance = jnp.sum(jnp.mean(jax.nn.relu(1 - jnp.sqrt(var + 1e-4)), axis=-1)) / 2
    operand = z.astype(views[0].dtype)
    cov = _product("vnk,vnl->vkl", operand, operand) / (n - 1)
    # Masked, not subtracted: the sum of all squares less the diagonal's would lose
    # the digits of a small covariance beside a large variance.
    covariance = jnp.sum(jnp.where(jnp.eye(q, dtype=bool)[None], 0, cov) ** 2) / q
    loss = (
        invariance_coeff * invariance
        + variance_coeff * variance
        + covariance_coeff * covariance
    )
    terms = {"alignment": invariance, "variance": variance, "covariance": covariance}
    return loss, terms


METHODS = {"sfrik": sfrik, "simclr": simclr, "auh": auh, "vicreg": vicreg}


# --- The MMD's own derivative -------------------------------------------------------


def _mmd_and_moments(
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
    weights = tuple(jnp.asarray(b, _wide(z.dtype)) for b in weights)
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
    wide = _wide(z.dtype)
    z = z.astype(dtype)
    z_all, first_row = z, 0
    if axis is not None:
        z_all = jax.lax.all_gather(z, axis, axis=1, tiled=True)
        first_row = jax.lax.axis_index(axis) * b
    n = z_all.shape[1]
    order = len(weights)

    # l = 1 by the mean vector: mean_ij t_ij = ‖mean z‖², no matrix needed.
    mean = jnp.mean(z_all.astype(wide), axis=1)
    sums = [n * jnp.sum(jnp.einsum("vbq,vq->vb", z.astype(wide), mean))]
    grad = (2 / n) * weights[0] * jnp.broadcast_to(mean[:, None], z.shape)
    if order > 1:
        gram = _product("vbq,vnq->vbn", z, z_all)
        diagonal = (jnp.arange(n)[None] == first_row + jnp.arange(b)[:, None])[None]
        polys = legendre_list(gram, order=order, dim=q)
        # P_l(1) = 1 on the diagonal: exactly the number of rows.
        sums += [jnp.sum(jnp.where(diagonal, 0, p)) + num_views * b for p in polys[2:]]
        if gradient:
            slope = TruncatedKernel(weights).derivative(gram, q, first=2)
            slope = jnp.where(diagonal, 0, slope).astype(dtype)
            grad = grad + (2 / n**2) * _product("vbn,vnq->vbq", slope, z_all)

    moments = jnp.stack(sums) / (n * n * num_views)
    if axis is not None:
        moments = jax.lax.psum(moments, axis)
    value = weighted_sum(weights, list(moments))
    return value, moments, grad / num_views if gradient else jnp.zeros(())


# --- Small parts --------------------------------------------------------------------


def _alignment(unit: Views, anchors: Sequence[int]) -> jax.Array:
    pairs = [
        jnp.mean((unit[a] - unit[o]) ** 2)
        for a in anchors
        for o in range(len(unit))
        if o != a
    ]
    # Each anchor has the same number of others, so one mean is the mean of means.
    return sum(pairs[1:], pairs[0]) / len(pairs)


def _rows_and_all(z, mesh, dtype):
    """z [V, n, q] as rows sharded over `data`, and whole on every device."""
    z = z.astype(dtype)
    return _constrain(z, mesh, P(None, DATA)), _constrain(z, mesh, P())


def _constrain(z: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    if mesh is None:
        return z
    return jax.lax.with_sharding_constraint(z, NamedSharding(mesh, spec))


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product that accumulates in float32, or in float64 for float64."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _check(views: Views, *, minimum: int, maximum: int | None = None) -> None:
    """The views are [n, q] arrays of one shape, n >= 2, q >= 2, of a fit number."""
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
