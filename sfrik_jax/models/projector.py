"""The projector: features to embeddings."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sfrik_jax.models.norm import BatchNorm

# Uniform in ±1/sqrt(fan_in), PyTorch's default for a linear layer.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Projector(nn.Module):
    """Linear, batch norm and ReLU for each hidden width; then linear without bias.

    Attributes:
      hidden_dims: the hidden widths, 8192-8192 in the paper.
      embed_dim: q.
      dtype: of the arithmetic and of the embeddings.
    """

    hidden_dims: Sequence[int]
    embed_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool, views: int = 1) -> jax.Array:
        """h: [B * views, features]; returns [B * views, q]."""
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        dense = partial(
            nn.Dense,
            kernel_init=torch_uniform,
            dtype=self.dtype,
            param_dtype=param_dtype,
        )
        norm = partial(BatchNorm, dtype=self.dtype, param_dtype=param_dtype)
        x = h.astype(self.dtype)
        for i, width in enumerate(self.hidden_dims, 1):
            bias_init = _uniform(1 / math.sqrt(x.shape[-1]))
            x = dense(width, bias_init=bias_init, name=f"linear{i}")(x)
            x = nn.relu(norm(name=f"bn{i}")(x, train=train, views=views))
        last = f"linear{len(self.hidden_dims) + 1}"
        return dense(self.embed_dim, use_bias=False, name=last)(x)


def _uniform(bound: float):
    """An initialiser uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
