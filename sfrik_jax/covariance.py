"""VICReg's sum of squared covariances between dimensions, with its own derivative.

X: [n, q], a view with the mean of each dimension taken off; C = XᵀX / (n - 1).

    S = sum_{k != l} C_kl²,   dS/dX = 4/(n - 1) X (C less its diagonal)

`by_covariance` forms C [q, q]. `by_gram` forms G = XXᵀ [n, n], which has the same
Frobenius norm as XᵀX: with g_i = G_ii, d_k = (XᵀX)_kk and tr = sum g = sum d,

    (n - 1)² S = sum_{i != j} G_ij² + sum_i (g_i - tr/n)² - sum_k (d_k - tr/q)²
                 + tr² (q - n)/(nq)
    (n - 1)² dS/dX_ik = 4 (sum_{j != i} G_ij X_jk + (g_i - d_k) X_ik)

Only the third sum is subtracted; it is (n - 1)² q times the variance of the variances
of the dimensions. So rounding adds a few epsilons of S and of that, and dimensions of
like variance lose nothing. docs/maths.md has the bound.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sfrik_jax.collectives import DATA
from sfrik_jax.mmd_forms import check, gram, product

GRAM, COVARIANCE = "gram", "covariance"


def choose(n: int, q: int) -> str:
    """The form for n rows of dimension q.

    FLOP for each view, forward and backward: 4 n² q by the Gram, 4 n q² by the
    covariance. From q = 2n on the Gram's terms outweigh what is subtracted by
    q/(n - 1) - 1 >= 1 over the spread of the variances, whatever X is.
    """
    return GRAM if q >= 2 * n else COVARIANCE


def off_diagonal_squares(
    x: jax.Array, dtype: jnp.dtype, mesh: Mesh | None, form: str | None = None
) -> jax.Array:
    """S of one centred view x [n, q], float32 or wider. A scalar.

    Args:
      dtype: of the products' operands; they accumulate in float32 or wider.
      mesh: the rows are sharded over its `data` axis.
      form: "gram" or "covariance"; None for `choose`.

    Raises:
      ValueError: there is no such form.
    """
    form = form or choose(*x.shape)
    check(form, (GRAM, COVARIANCE))
    return _squares(x, dtype, mesh, form)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _squares(x, dtype, mesh, form):
    return _with_gradient(x, dtype, mesh, form)[0]


def _with_gradient(x, dtype, mesh, form):
    of_form = by_gram if form == GRAM else by_covariance
    return of_form(constrain(x.astype(dtype), mesh, P(DATA)), mesh)


def _backward(dtype, mesh, form, gradient, bar):
    return (bar * gradient,)


_squares.defvjp(_with_gradient, _backward)


def by_covariance(x: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """S and its gradient from the covariance of the dimensions."""
    n, q = x.shape
    cov = product("nk,nl->kl", x, x) / (n - 1)
    # Masked, not subtracted: the sum of all squares less the diagonal's would lose
    # the digits of a small covariance beside a large variance.
    cov = jnp.where(jnp.eye(q, dtype=bool), 0, cov)
    gradient = product("nk,kl->nl", x, cov.astype(x.dtype)) * (4 / (n - 1))
    return jnp.sum(cov**2), gradient


def by_gram(x: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """S and its gradient from the Gram matrix of the rows."""
    n, q = x.shape
    if mesh is None:
        everything, products = x, gram(x)
    else:
        everything = constrain(x, mesh, P())
        products = product("nq,mq->nm", x, everything)
    floats = x.astype(products.dtype)
    squares = floats**2
    rows, columns = jnp.sum(squares, axis=1), jnp.sum(squares, axis=0)
    trace = jnp.sum(columns)
    others = jnp.where(jnp.eye(n, dtype=bool), 0, products)
    total = (
        jnp.sum(others**2)
        + jnp.sum((rows - trace / n) ** 2)
        - jnp.sum((columns - trace / q) ** 2)
        + trace**2 * ((q - n) / (n * q))
    )
    # The diagonal of G stays out of the product, whose factors may be rounded.
    pulls = product("nm,mq->nq", others.astype(x.dtype), everything)
    gradient = pulls + (rows[:, None] - columns[None]) * floats
    return total / (n - 1) ** 2, gradient * (4 / (n - 1) ** 2)


def constrain(z: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    """Tells the partitioner how z is split over the mesh; without one, z as it is."""
    if mesh is None:
        return z
    return jax.lax.with_sharding_constraint(z, NamedSharding(mesh, spec))
