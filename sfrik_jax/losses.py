"""Losses on the embeddings of several views: SFRIK, SimCLR, AUH, VICReg, neighbours.

Every loss takes `views`, a list of [n, q] projector outputs that are not
normalised, and returns `(loss, terms)`; terms are the unscaled parts to log. The
batch is the global one. Without a mesh the arrays may live anywhere; with one, the
rows are sharded over its `data` axis and each device forms its rows of the n x n
matrices against the gathered embeddings.

Sums are in float32, or in float64 where the views are float64. Where the views are
bfloat16, the matrix products take bfloat16 operands and accumulate in float32; those
before eigenvalues and slices are in float32.

n: images in the global batch; q: embedding dimension; V: views; t: cosine.
"""

from collections.abc import Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import (
    DATA,
    WHOLE,
    Split,
    add_over,
    axis_size,
    embeddings_split,
)
from sfrik_jax.covariance import constrain, off_diagonal_squares
from sfrik_jax.embeddings import (
    Terms,
    Views,
    check_views,
    normalize,
    rows_and_all,
)
from sfrik_jax.kernels import weighted_sum
from sfrik_jax.mmd import value_and_moments
from sfrik_jax.mmd_forms import product, wide
from sfrik_jax.neighbours.correlations import barlow_twins
from sfrik_jax.neighbours.gaussian import gaussian_mmd
from sfrik_jax.neighbours.slices import sigreg, sphere_slices
from sfrik_jax.neighbours.spectra import coding_rate, mmcr, vne, wasserstein


def sfrik(
    views: Views,
    *,
    weights: Sequence[float],
    alignment_coeff: float,
    mmd_coeff: float,
    anchors: Sequence[int] | None = None,
    regularize_all: bool = True,
    mesh: Mesh | None = None,
    columns: str | None = None,
    form: str | None = None,
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
        gradient needs none. (Up to L = 2 the form "feature" adds up second moments
        instead: all-reduces alone.)
      columns: the mesh axis over which the columns of the views are split. Partial
        products of rows are then added up, n² numbers a view, and rows are gathered
        over `data` only where the columns are split over another axis.
      form: of the sums over pairs, one of `mmd_forms.FORMS`; None chooses by shape.

    Returns:
      The loss, and terms `alignment`, `mmd` (mean over all n² pairs),
      `mmd_offdiagonal` (mean over the n(n-1) pairs of two images: 0 in expectation
      for uniform embeddings), and `mmd_<l>_offdiagonal` of each order, unweighted.
    """
    check_views(views, minimum=2)
    anchors = range(len(views)) if anchors is None else anchors
    local = partial(
        _sfrik,
        weights=tuple(weights),
        coefficients=(alignment_coeff, mmd_coeff),
        anchors=tuple(anchors),
        regularize_all=regularize_all,
        form=form,
    )
    if mesh is None:
        return local(list(views), split=WHOLE)
    split = embeddings_split(columns)
    island = partial(local, split=split)
    return jax.shard_map(island, mesh=mesh, in_specs=split.spec, out_specs=P())(
        list(views)
    )


def _sfrik(views, *, weights, coefficients, anchors, regularize_all, split, form):
    """`sfrik` of this device's part of the views."""
    unit = [normalize(z, split.columns) for z in views]
    n = len(views[0]) * axis_size(split.rows)
    align = _alignment(unit, anchors, split)
    chosen = range(len(unit)) if regularize_all else anchors
    unit, raw = [[each[i] for i in chosen] for each in (unit, views)]
    value, moments = value_and_moments(unit, raw, weights, split=split, form=form)
    offdiagonal = (n * moments - 1) / (n - 1)
    terms = {"alignment": align, "mmd": value}
    terms["mmd_offdiagonal"] = weighted_sum(weights, list(offdiagonal))
    for order, moment in enumerate(offdiagonal, 1):
        terms[f"mmd_{order}_offdiagonal"] = moment
    alignment_coeff, mmd_coeff = coefficients
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
        Their lengths are divided out, so that only their directions count.
      weights: b_1 … b_L; they may be traced, and have their own derivative.
      mesh: with it, row blocks over its `data` axis; else all rows at once.
    """
    z = jnp.asarray(z)
    chex.assert_rank(z, 2)

    def local(z, weights, split):
        return value_and_moments([z], [z], weights, split=split)[0]

    if mesh is None:
        return local(z, tuple(weights), WHOLE)
    split = embeddings_split(None)
    return jax.shard_map(
        partial(local, split=split),
        mesh=mesh,
        in_specs=(split.spec, P()),
        out_specs=P(),
    )(z, tuple(weights))


def simclr(
    views: Views, *, temperature: float, mesh: Mesh | None = None
) -> tuple[jax.Array, Terms]:
    """NT-Xent of two views: each embedding has 1 positive and 2n - 2 negatives.

        mean over the 2n embeddings of  -t_pos/τ + log sum_{k != self} exp(t_k/τ)

    Source: Chen et al., "A simple framework for contrastive learning of visual
    representations", ICML 2020, arXiv 2002.05709.
    """
    check_views(views, minimum=2, maximum=2)
    z = jnp.stack([normalize(v) for v in views])
    rows, everything = rows_and_all(z, mesh, views[0].dtype)
    cosines = product("vnq,wmq->vnwm", rows, everything)
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
    check_views(views, minimum=2, maximum=2)
    z = jnp.stack([normalize(v) for v in views])
    align = jnp.mean((z[0] - z[1]) ** 2)
    rows, everything = rows_and_all(z, mesh, views[0].dtype)
    cosines = product("vnq,vmq->vnm", rows, everything)
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
    form: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Invariance, variance and covariance of two views, not normalised.

        variance   = sum over views of 1/2 mean_k relu(1 - sqrt(var_k + 1e-4))
        covariance = sum over views of sum_{k != l} cov_kl² / q

    with the unbiased variance and covariance (n - 1). The squares are summed in the
    `form` "covariance", or "gram" from q = 2n on; see `sfrik_jax.covariance`.
    Source: Bardes et al., ICLR 2022, arXiv 2105.04906.
    """
    check_views(views, minimum=2, maximum=2)
    dtype = views[0].dtype
    floats = [constrain(z.astype(wide(z.dtype)), mesh, P(DATA)) for z in views]
    invariance = jnp.mean((floats[0] - floats[1]) ** 2)
    variance = covariance = jnp.zeros((), floats[0].dtype)
    n, q = floats[0].shape
    for z in floats:
        z = z - jnp.mean(z, axis=0, keepdims=True)
        var = jnp.sum(z * z, axis=0) / (n - 1)
        variance += jnp.mean(jax.nn.relu(1 - jnp.sqrt(var + 1e-4))) / 2
        covariance += off_diagonal_squares(z, dtype, mesh, form) / q
    loss = (
        invariance_coeff * invariance
        + variance_coeff * variance
        + covariance_coeff * covariance
    )
    terms = {"alignment": invariance, "variance": variance, "covariance": covariance}
    return loss, terms


METHODS = {
    "sfrik": sfrik,
    "simclr": simclr,
    "auh": auh,
    "vicreg": vicreg,
    "sigreg": sigreg,
    "sphere_slices": sphere_slices,
    "gaussian_mmd": gaussian_mmd,
    "wasserstein": wasserstein,
    "vne": vne,
    "coding_rate": coding_rate,
    "mmcr": mmcr,
    "barlow_twins": barlow_twins,
}
# Those that draw at random: they take a typed key as `key`, another for each step.
DRAWING = ("sigreg", "sphere_slices")


def _alignment(unit: Views, anchors: Sequence[int], split: Split) -> jax.Array:
    squares = [
        jnp.mean((unit[a] - unit[o]) ** 2)
        for a in anchors
        for o in range(len(unit))
        if o != a
    ]
    # Each anchor has the same number of others, so one mean is the mean of means; and
    # each device has the same number of entries.
    mean = sum(squares[1:], squares[0]) / len(squares)
    for axis in split:
        mean = add_over(axis, mean) / axis_size(axis)
    return mean
