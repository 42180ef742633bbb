"""Weights for tests, among them the filled ones of tests/reference/README.md."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor of a PyTorch name, float32 in PyTorch's layout."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        value = np.zeros(shape)
    elif kind == "running_var" or (kind == "weight" and len(shape) == 1):
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        value = 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def random_variables(shapes: Any, seed: int = 0) -> Any:
    """Variables of any module: kernels of He size, no scale 0, variances positive."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        kind = path[-1].key
        if kind == "kernel":
            size = np.sqrt(2 / np.prod(like.shape[:-1]))
            return jnp.asarray(size * rng.standard_normal(like.shape), like.dtype)
        start = 0.5 if kind in ("scale", "var") else -0.5
        return jnp.asarray(start + rng.uniform(size=like.shape), like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
