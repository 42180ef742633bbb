"""Convolution and max pooling that XLA also runs well on a CPU.

All return what the plain operations return, and have the same gradient up to rounding;
only the way differs, and only on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# im2col matrices of this size stay in a core's cache: 2 to 4 images of 28x28x16 are
# 64 ms, 128 of them 172 ms (kernel gradient of 512 images, two cores, jax 0.10.2).
PATCH_BYTES = 2 * 2**20
DILATIONS = ("lhs_dilation", "rhs_dilation")
_portable = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Within it the plain operations are traced, for programs that run elsewhere."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def _on_cpu() -> bool:
    """Whether what is traced will run on this machine's CPU, as far as is known."""
    return jax.default_backend() == "cpu" and not _portable.get()


def convolution(
    x: jax.Array, kernel: jax.Array, window_strides, padding, **settings
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of NHWC images; on one CPU device, its CPU form.

    For `flax.linen.Conv(conv_general_dilated=…)`.
    """
    size, stride = kernel.shape[0], window_strides[0]
    # A scan over parts of a batch that is split over devices would gather it.
    alone = _on_cpu() and jax.device_count() == 1
    plain = (
        tuple(window_strides) == (stride, stride)
        and kernel.shape[:2] == (size, size)
        and size % 2 == 1
        and list(padding) == [(size // 2, size // 2)] * 2
        and {settings.get(name) for name in DILATIONS} <= {None, (1, 1)}
        and settings.get("feature_group_count", 1) == 1
    )
    if not (alone and plain):
        return jax.lax.conv_general_dilated(
            x, kernel, window_strides, padding, **settings
        )
    return convolution_on_cpu(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution_on_cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """k x k convolution, k odd, with padding k // 2 and gradients made for a CPU.

    XLA's own kernel gradient of 512 maps of 28x28x16 takes 506 ms against 44 ms for the
    forward pass of the same arithmetic; as matrix products of im2col patches of a few
    images each it takes 69 ms. The 7x7 kernel of a stem on 256 images of 56 px: 802
    against 162 ms. XLA's forward pass is kept but for 1x1 kernels and the smallest
    maps, see `_forward`. (Two cores, jax 0.10.2.)

    Args:
      x: [n, H, W, C]. kernel: [k, k, C, out].
    """
    return _forward(x, kernel, stride)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution; of 1x1 kernels and 2x2 maps as a matrix product of patches.

    XLA takes a naive path for 3x3 on 2x2: 4,536 ms for 256 maps of 512 channels,
    against 97 ms on 3x3 maps, which have more than twice the arithmetic. Zero padding
    alone does not help: XLA folds it into the convolution. A 1x1 kernel from 128 to 64
    channels on 256 maps of 14x14, with its gradients: 771 ms, as products 65 ms.
    """
    size = kernel.shape[0]
    if size == 1 or max(x.shape[1:3]) <= 2:
        return _forward_of_products(x, kernel, stride)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward_of_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution as a matrix product of patches.

    Its transpose is the gradient by x of a strided convolution, which is 288 ms as XLA
    does it for 3x3 of stride 2 on 256 maps of 14x14x64.
    """
    rows = _patches(x, kernel.shape[0], stride)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    columns = kernel.reshape(rows.shape[-1], -1)
    return jnp.matmul(rows, columns, preferred_element_type=wide).astype(x.dtype)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The k x k surroundings of each place: [n, H, W, C] to [n, H', W', k k C]."""
    height, width = x.shape[1:3]
    pad = (size // 2, size // 2)
    padded = jnp.pad(x, [(0, 0), pad, pad, (0, 0)])
    parts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(parts, axis=-1)


def _forward_and_keep(x, kernel, stride):
    return _forward(x, kernel, stride), (x, kernel)


def _backward(stride, kept, cotangent):
    x, kernel = kept
    forward = _forward if stride == 1 else _forward_of_products
    (x_bar,) = jax.linear_transpose(lambda v: forward(v, kernel, stride), x)(cotangent)
    kernel_bar = _kernel_gradient(x, cotangent, kernel.shape[0], stride)
    return x_bar, kernel_bar.astype(kernel.dtype)


convolution_on_cpu.defvjp(_forward_and_keep, _backward)


def _kernel_gradient(
    x: jax.Array, cotangent: jax.Array, size: int, stride: int
) -> jax.Array:
    """Sum over images and places of patch^T cotangent, a few images at a time."""
    n, columns = len(x), size * size * x.shape[-1]
    out = cotangent.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    image = cotangent.shape[1] * cotangent.shape[2] * columns * wide.itemsize
    # The rows of a 1x1 kernel are the maps themselves: nothing grows.
    limit = n if size == 1 else max(1, min(n, PATCH_BYTES // image))
    part_size = next(k for k in range(limit, 0, -1) if n % k == 0)

    def product(images, bars):
        rows = _patches(images, size, stride).reshape(-1, columns)
        return jnp.matmul(rows.T, bars.reshape(-1, out), preferred_element_type=wide)

    if part_size == n:
        return product(x, cotangent).reshape(size, size, -1, out)
    parts = [v.reshape(-1, part_size, *v.shape[1:]) for v in (x, cotangent)]
    total, _ = jax.lax.scan(
        lambda total, part: (total + product(*part), None),
        jnp.zeros((columns, out), wide),
        tuple(parts),
    )
    return total.reshape(size, size, -1, out)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling, stride 2, padding 1. x: [n, H, W, C]."""
    if _on_cpu():
        return max_pool_of_slices(x)
    return max_pool_of_windows(x)


def max_pool_of_windows(x: jax.Array) -> jax.Array:
    """Max pooling by the backend's own window reduction."""
    return jax.lax.reduce_window(
        x,
        # A value, not a traced constant: only then does JAX know this for a maximum,
        # which has a derivative.
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def max_pool_of_slices(x: jax.Array) -> jax.Array:
    """Max pooling as a running maximum of nine strided slices.

    The window reduction's gradient is five times slower on a CPU. Of equal values
    the first in reading order takes the whole gradient, as there and in PyTorch.
    """
    height, width = x.shape[1:3]
    edge = [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = jnp.pad(x, edge, constant_values=-jnp.inf)
    best, *others = [
        x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
    ]
    for part in others:
        best = jnp.where(best >= part, best, part)
    return best
