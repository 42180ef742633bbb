"""Batch normalisation with the original's arithmetic."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sfrik_jax.collectives import add_over, axis_size


class BatchNorm(nn.Module):
    """Batch norm over the last axis, with statistics of each view in one pass.

        y = (x - mean_v) / sqrt(var_v + eps) * scale + bias

    The rows of x are batch-major: image 0 view 0, image 0 view 1, …, so that a
    sharded batch keeps its sharding. In training each view is normalised by its own
    statistics over the global batch, and the running ones are updated view after
    view, as V passes would: `r <- momentum r + (1 - momentum) stat_v`. As in
    PyTorch, the running variance is the unbiased one, n/(n - 1) times the variance
    that normalises. Statistics are float32 or wider.

    Attributes:
      momentum: weight of the old running value.
      eps: added to the variance.
      dtype: of the output.
      param_dtype: of scale, bias and the running statistics.
      zero_scale: start with scale 0, so that a residual block starts as identity.
      axis: inside `jax.shard_map`, the mesh axis over which the rows are split.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    zero_scale: bool = False
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, views: int = 1) -> jax.Array:
        """x: [B * views, …, C]; returns the same shape in `dtype`."""
        channels = (x.shape[-1],)
        init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param("scale", init, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, channels, self.param_dtype
        )
        running_var = self.variable(
            "batch_stats", "var", jnp.ones, channels, self.param_dtype
        )
        if not train:
            mean, var = running_mean.value[None], running_var.value[None]
            return self._normalize(x, mean, var, scale, bias)

        mean, var, count = _statistics(x, views, self.axis)
        if not self.is_initializing():
            if count < 2:
                raise ValueError(
                    f"batch norm of {x.shape} with {views} views has one value per "
                    "channel and no variance: use a larger batch"
                )
            keep = self.momentum
            for v in range(views):
                unbiased = var[v] * (count / (count - 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean[v]
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return self._normalize(x, mean, var, scale, bias)

    def _normalize(self, x, mean, var, scale, bias):
        """mean, var: [V, C]; one multiplication and one addition per value."""
        factor = scale[None] * jax.lax.rsqrt(var + self.eps)
        shift = bias[None] - mean * factor
        grouped = _by_view(x, mean.shape[0])
        spread = (1, mean.shape[0]) + (1,) * (grouped.ndim - 3) + (-1,)
        y = grouped * factor.reshape(spread) + shift.reshape(spread)
        return y.reshape(x.shape).astype(self.dtype)


def _by_view(x: jax.Array, views: int) -> jax.Array:
    return x.reshape(x.shape[0] // views, views, *x.shape[1:])


def _statistics(
    x: jax.Array, views: int, axis: str | None
) -> tuple[jax.Array, jax.Array, int]:
    """Mean and biased variance of each view [V, C], and the values per channel."""
    x = _by_view(x, views).astype(jnp.promote_types(x.dtype, jnp.float32))
    dims, devices = (0, *range(2, x.ndim - 1)), axis_size(axis)
    # E[x²] - E[x]² reads x once; rounding can make it just negative.
    sums = add_over(axis, (jnp.mean(x, axis=dims), jnp.mean(x * x, axis=dims)))
    mean, square = (each / devices for each in sums)
    var = jnp.maximum(square - mean * mean, 0)
    return mean, var, x.size // (views * x.shape[-1]) * devices
