"""Forms of the sums over all pairs of rows that the MMD and its gradient need.

`by_pairs` has the cosines of pairs of rows, whole or a chunk at a time; `by_features`
the second moments of pairs of dimensions. Both take the rows x as they are: the unit
rows z = x / ‖x‖ are never written, and bfloat16 rows enter the products unrounded.

Rows and columns of x may be split over mesh axes (`collectives.Split`); all sums over
devices are written out here.

n: all rows; b: the rows of this device; q: dimension; k: the columns of this device;
L: truncation order.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sfrik_jax.collectives import add_over, axis_size, varying
from sfrik_jax.kernels import TruncatedKernel, legendre_list
from sfrik_jax.target import is_cpu

ROWS, CHUNKED, FEATURE = FORMS = ("rows", "chunked", "feature")

# Rows of the Gram that the chunked form holds at a time.
CHUNK = 512
# Blocks along each side of a Gram of all rows, and the n from which it is cut.
BLOCKS, CUT_FROM = 4, 256
# A device's part of the Gram in float32 that is no longer held whole.
LARGE_GRAM = {"cpu": 2**26}
LARGE_GRAM_ELSEWHERE = 2**30


class Sums(NamedTuple):
    """Sums over the pairs of one view.

    Attributes:
      orders: sum_ij P_l(q; t_ij) for l = 1 … L. [L].
      total: sum_j z_j over all rows. [k].
      slopes: sum_{j != i} psi'(t_ij) z_j + c_i z_i of this device's rows i. psi has the
        orders l >= 2, and c_i is any number. [b, k]; None where no gradient is asked
        for or L = 1.
    """

    orders: jax.Array
    total: jax.Array
    slopes: jax.Array | None


def choose(
    n: int, q: int, order: int, devices: int, itemsize: int, backend: str
) -> str:
    """The form for n rows of dimension q and order L, rows split over so many devices.

    Measured on two cores of an AMD EPYC (jax 0.10.2, float32, two views, forward and
    backward, ms; chunks of 512 rows):

        L = 2          n, q: 512, 448   512, 512   2048, 512   2048, 1024
          rows                    5.7        6.6         114          196
          features                5.2        7.5          31          117
        L = 3          n, q: 2048, 2048   4096, 1024   4096, 256   8192, 64
          rows                      373          846         362       1150
          chunked                   447          891         260        383

    On other backends by count, not measured. Two views take 8 n² q / d FLOP by pairs
    and 8 n q² / d by features. Each device receives (d - 1)/d of n q numbers by the
    gather, of twice q² float32 numbers by the all-reduce. A Gram that memory holds is
    faster whole; 1 GiB of it, and its derivative, is n = 16,384 on one device.

    Args:
      itemsize: bytes of each number of x, as it is gathered.
      backend: of jax, "cpu" or another.
    """
    fewer_bytes = devices == 1 or 8 * q <= itemsize * n
    if order == 1 or (order == 2 and q < n and fewer_bytes):
        return FEATURE
    return by_memory(n, devices, backend)


def by_memory(n: int, devices: int, backend: str) -> str:
    """Of the two forms by pairs the one whose Gram fits."""
    large = LARGE_GRAM.get(backend, LARGE_GRAM_ELSEWHERE)
    return CHUNKED if 4 * n * n // devices >= large else ROWS


def check(form: str, forms: Sequence[str]) -> None:
    """Raises ValueError where a form is none of these."""
    if form not in forms:
        raise ValueError(f"form={form!r}; choose from {', '.join(forms)}")


def by_pairs(
    x: jax.Array,
    x_all: jax.Array,
    first_row: jax.Array | int,
    weights: tuple,
    *,
    columns: str | None,
    chunk: int | None,
    gradient: bool,
) -> Sums:
    """From the cosines of this device's rows x [b, k] with all rows x_all [n, k].

    The orders are those of this device's rows. Of split columns the products of rows
    are partial, and are added up over their axis: b n numbers.

    Args:
      first_row: where x begins in x_all.
      columns: the mesh axis over which the columns are split.
      chunk: rows of the Gram at a time, so that [chunk, n] is all of it that lives;
        None for all b.
    """
    inverse = inverse_length(x_all, columns)
    total = _total(x_all, inverse)
    first_order = add_over(columns, jnp.sum(total**2))[None] * (len(x) / len(x_all))
    if len(weights) == 1:
        return Sums(first_order, total, None)
    some = partial(_of_some, x, x_all, inverse, first_row, weights, columns, gradient)
    higher, slopes = _in_chunks(some, len(x), chunk or len(x))
    return Sums(jnp.concatenate([first_order, higher]), total, slopes)


def _of_some(x, x_all, inverse, first_row, weights, columns, gradient, start, size):
    """The orders l >= 2 and the slopes of `size` of the rows x, from `start` on."""
    rows = jax.lax.dynamic_slice_in_dim(x, start, size)
    own = jax.lax.dynamic_slice_in_dim(inverse, first_row + start, size)
    whole = size == len(x_all)
    products = gram(x_all) if whole else product("bq,nq->bn", rows, x_all)
    products = add_over(columns, products)
    q = x.shape[1] * axis_size(columns)
    indices = first_row + start + jnp.arange(size)[:, None]
    diagonal = jnp.arange(len(x_all))[None] == indices
    t = products * own * inverse.T
    polys = legendre_list(t, order=len(weights), dim=q)[2:]
    # P_l(1) = 1 on the diagonal: exactly the number of rows.
    sums = [jnp.sum(jnp.where(diagonal, 0, p)) + size for p in polys]
    if not gradient:
        return jnp.stack(sums), None
    slope = TruncatedKernel(weights).derivative(t, q, first=2)
    slope = jnp.where(diagonal, 0, slope) * inverse.T
    return jnp.stack(sums), product("bn,nq->bq", slope.astype(x.dtype), x_all)


def _in_chunks(some, rows, chunk):
    """Adds up the sums of `some(start, size)` over all rows, and joins its slopes."""
    whole, rest = divmod(rows, chunk)
    if (whole <= 1 and not rest) or not whole:
        return some(0, rows)
    starts = chunk * jnp.arange(whole)
    sums, slopes = jax.lax.map(lambda start: some(start, chunk), starts)
    sums = jnp.sum(sums, axis=0)
    if slopes is not None:
        slopes = slopes.reshape(whole * chunk, -1)
    if rest:
        last = some(whole * chunk, rest)
        sums = sums + last[0]
        slopes = None if slopes is None else jnp.concatenate([slopes, last[1]])
    return sums, slopes


def by_features(
    x: jax.Array, n: int, weights: Sequence, *, rows: str | None, gradient: bool
) -> Sums:
    """From the second moments M = ZᵀZ [q, q], for L <= 2.

        sum_ij t_ij² = ‖M‖²,   sum_j t_ij z_j = z_i M

    The part n/q · I of M that isotropic rows have is taken off before anything is
    rounded or squared: in the slopes it is radial, and ‖M - n/q I‖² = ‖M‖² - n²/q.

    Args:
      rows: the mesh axis over which the rows are split. M and the sum of the rows are
        added up over it, so that the orders are those of all n rows.
    """
    if len(weights) > 2:
        raise ValueError(f"the feature form takes 1 or 2 orders, not {len(weights)}")
    q, inverse = x.shape[1], inverse_length(x)
    total = _total(x, inverse)
    if len(weights) == 1:
        total = add_over(rows, total)
        return Sums(jnp.sum(total**2)[None], varying(total, rows), None)
    moment = product("nk,nl->kl", x, (x * inverse**2).astype(x.dtype))
    dead = jnp.sum(inverse == 0, dtype=inverse.dtype)
    moment, total, dead = add_over(rows, (moment, total, dead))
    rest = moment - n / q * jnp.eye(q, dtype=moment.dtype)
    # A row of zeros has no square in M, yet counts as P_2(1) on the diagonal.
    squares = jnp.sum(rest**2) + dead * (1 - 2 * n / q)
    orders = jnp.stack([jnp.sum(total**2), q / (q - 1) * squares])
    if not gradient:
        return Sums(orders, total, None)
    slopes = product("nk,kl->nl", x, rest.astype(x.dtype)) * inverse
    return Sums(orders, total, 2 * q / (q - 1) * weights[-1] * slopes)


def _total(x, inverse):
    """sum_i z_i. [q]."""
    if x.dtype == inverse.dtype:
        # On CPUs faster than a sum down the columns: the whole loss at n = 512 and
        # q = 4096 takes 49.5 ms on two cores, not 56.2.
        return jnp.einsum("nq,nk->q", x, inverse, precision="highest")
    return jnp.sum(x.astype(inverse.dtype) * inverse, axis=0)


def inverse_length(x: jax.Array, columns: str | None = None) -> jax.Array:
    """1 / ‖x_i‖ in float32 or wider; 0 for rows shorter than 1e-12.

    Where ‖x_i‖² overflows (rows longer than 1.8e19 in float32) it is 0 too, and what is
    made of such rows may be NaN.

    x: [..., q], the columns split over the mesh axis `columns`; returns [..., 1].
    """
    x = x.astype(wide(x.dtype))
    square = add_over(columns, jnp.sum(x * x, axis=-1, keepdims=True))
    alive = square > 1e-24
    return jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, square, 1)), 0)


def gram(x: jax.Array) -> jax.Array:
    """x xᵀ [n, n]. On CPUs the blocks below the diagonal are those above it, turned.

    The whole loss at n = 512 and q = 4096 then takes 49.7 ms on two cores, not 54.1.
    """
    n = len(x)
    if not is_cpu() or n < CUT_FROM or n % BLOCKS:
        return product("nq,mq->nm", x, x)
    parts, sides = jnp.split(x, BLOCKS), range(BLOCKS)
    upper = {
        (i, j): product("nq,mq->nm", parts[i], parts[j])
        for i in sides
        for j in sides
        if i <= j
    }
    return jnp.block(
        [[upper[i, j] if i <= j else upper[j, i].T for j in sides] for i in sides]
    )


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product that accumulates in float32, or in float64 for float64."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=wide(a.dtype))


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums: float32, or float64 where the operands are float64."""
    return jnp.promote_types(dtype, jnp.float32)
