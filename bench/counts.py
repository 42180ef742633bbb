"""Counts that the benches need beside those of `sfrik_jax.planning`."""

import jax.numpy as jnp

from sfrik_jax.planning.arithmetic import Work

# Arithmetic of one loss of two views, forward and backward, over n² q; `covariance` is
# over n q². By autodiff, as in `dense`, one product forward and two backward for each
# view; rows and covariance have derivatives of their own, of one.
LOSS_FLOP = {"rows": 8, "dense": 12, "covariance": 8}


def loss_flop(form: str, n: int, q: int) -> float:
    """Arithmetic of the loss of two views of [n, q] in a form of `LOSS_FLOP`."""
    return LOSS_FLOP[form] * n * q * (q if form == "covariance" else n)


def autodiff_work(side: int, inner: int, dtype: str) -> Work:
    """Products of two views by autodiff of a matrix [side, side] from [side, inner].

    One forward and two backward; the matrix is float32 forward and backward.
    """
    size = jnp.dtype(dtype).itemsize
    forward = size * side * inner + 4 * side**2
    backward = 2 * (size * side * inner + 4 * side**2 + 4 * side * inner)
    return Work(2 * 6 * side**2 * inner, 2 * (forward + backward))
