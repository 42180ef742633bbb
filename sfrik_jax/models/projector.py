"""The projector: features to embeddings."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sfrik_jax.collectives import axis_size, gathered, shared
from sfrik_jax.models.norm import BatchNorm, relu

# Uniform in ±1/sqrt(fan_in), PyTorch's default for a linear layer.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Projector(nn.Module):
    """Linear, batch norm and ReLU for each hidden width; then linear without bias.

    Inside `jax.shard_map` the rows of a batch can be split over one mesh axis, and the
    columns of every layer, with their batch norm, over another or the same. Each layer
    then takes all columns of the one before: a gather forward, a reduce-scatter
    backward, and no collective for its own gradient.

    Attributes:
      hidden_dims: the hidden widths, 8192-8192 in the paper.
      embed_dim: q.
      dtype: of the arithmetic and of the embeddings.
      rows: the mesh axis over which the rows of h are split.
      columns: the mesh axis over which the columns are split. If it is that of the
        rows, each device has all rows of its columns.
      reduce_dtype: in which gradients by activations are added up over devices.
    """

    hidden_dims: Sequence[int]
    embed_dim: int
    dtype: DTypeLike = jnp.float32
    rows: str | None = None
    columns: str | None = None
    reduce_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool, views: int = 1) -> jax.Array:
        """h: [B * views, features]; returns [B * views, q], or this device's part."""
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        dtypes = {"dtype": self.dtype, "param_dtype": param_dtype}
        dense = partial(nn.Dense, kernel_init=torch_uniform, **dtypes)
        together = self.columns == self.rows  # with all rows on each device
        norm = partial(BatchNorm, axis=None if together else self.rows, **dtypes)
        devices = axis_size(self.columns)
        x: jax.Array = self._first_input(h.astype(self.dtype))
        for i, width in enumerate(self.hidden_dims, 1):
            bias_init = _uniform(1 / math.sqrt(x.shape[-1]))
            x = dense(width // devices, bias_init=bias_init, name=f"linear{i}")(x)
            x = relu(norm(name=f"bn{i}")(x, train=train, views=views))
            if self.columns:
                x = gathered(x, self.columns, 1, self.reduce_dtype)
        last = f"linear{len(self.hidden_dims) + 1}"
        return dense(self.embed_dim // devices, use_bias=False, name=last)(x)

    def _first_input(self, h: jax.Array) -> jax.Array:
        """h on each device that has columns to make of it."""
        if self.columns == self.rows and self.columns:
            return gathered(h, self.columns, 0, self.reduce_dtype)
        return shared(h, self.columns, self.reduce_dtype)


def _uniform(bound: float):
    """An initialiser uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
