"""Convolution and max pooling that XLA also runs well on a CPU.

All return what the plain operations return, and have the same gradient up to rounding;
only the way differs, and only on a CPU.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from sfrik_jax.models import cpu_convolutions as cpu
from sfrik_jax.target import is_cpu, is_one_cpu_device

# Names of results that rematerialisation can keep (`resnet.ResNet.remat`).
SAVED = CONVOLUTION, POOLING = ("convolution", "pooling")
DILATIONS = ("lhs_dilation", "rhs_dilation")


def convolution(
    x: jax.Array, kernel: jax.Array, window_strides, padding, **settings
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of NHWC images; on a CPU device, its CPU form.

    For `flax.linen.Conv(conv_general_dilated=…)`.
    """
    size, stride = kernel.shape[0], window_strides[0]
    plain = (
        tuple(window_strides) == (stride, stride)
        and kernel.shape[:2] == (size, size)
        and size % 2 == 1
        and list(padding) == [(size // 2, size // 2)] * 2
        and {settings.get(name) for name in DILATIONS} <= {None, (1, 1)}
        and settings.get("feature_group_count", 1) == 1
    )
    # A scan over parts of a batch that is split over devices would gather it.
    if plain and is_one_cpu_device():
        y = convolution_on_cpu(x, kernel, stride)
    else:
        y = jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **settings)
    return checkpoint_name(y, CONVOLUTION)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution_on_cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """k x k convolution, k odd, with padding k // 2, by the form that suits its shape.

    Args:
      x: [n, H, W, C]. kernel: [k, k, C, K].
    """
    return _forward(x, kernel, stride)


def _forward(x, kernel, stride):
    form = form_on_cpu(x.shape, kernel.shape, stride)
    if form == "winograd":
        return cpu.winograd(x, kernel)
    if form == "taps":
        return cpu.taps(x, kernel)
    if form == "patches":
        return cpu.patches(x, kernel, stride)
    return _by_xla(x, kernel, stride)


def form_on_cpu(x: Sequence[int], kernel: Sequence[int], stride: int) -> str:
    """The fastest form for these shapes: "winograd", "taps", "patches" or "xla".

    Milliseconds of the convolution, its gradient by x and that by the kernel, on two
    cores with jax 0.10.2, of 128 maps:

        3x3, 32x32x64           xla 162, 162, 1440   winograd 49, 55, 78
        3x3, 4x4x512            xla 68, 71, 81       winograd 46, 46, 50
        3x3, 3x3x512            xla 46, 50, 45       taps 22, 25, 26
        3x3 of stride 2,
          32x32x64 to 128       xla 90, 80, –        patches 51, 65, 55

    Of 256 maps of 12x12x32: xla 7.5 and 7.7, winograd 11.4 and 11.3. XLA takes 1x1
    kernels with gradients ten times as long as products do (771 and 65 ms for 256 maps
    of 14x14 from 128 to 64 channels).
    """
    size, channels = kernel[0], min(kernel[2:])
    if stride == 1 and size > 1:
        if max(x[1:3]) <= 3:
            return "taps"
        if size == 3 and channels >= 64:
            return "winograd"
        return "xla"
    return "patches"


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward_and_keep(x, kernel, stride):
    return _forward(x, kernel, stride), (x, kernel)


def _backward(stride, kept, bar):
    x, kernel = kept
    size = kernel.shape[0]
    form = form_on_cpu(x.shape, kernel.shape, stride)
    if form == "winograd":
        x_bar = cpu.winograd_gradient(bar, kernel)
        kernel_bar = cpu.winograd_kernel_gradient(x, bar)
    elif form == "taps":
        x_bar = cpu.taps_gradient(bar, kernel)
        kernel_bar = cpu.taps_kernel_gradient(x, bar, size)
    else:
        # XLA's kernel gradient of 512 maps of 28x28x16 takes 506 ms, by patches 69.
        kernel_bar = cpu.patches_kernel_gradient(x, bar, size, stride)
        if form == "patches":
            x_bar = cpu.patches_gradient(bar, kernel, stride, x.shape)
        else:
            x_bar = _by_xla(bar, cpu.turned(kernel), 1)
    return x_bar, kernel_bar.astype(kernel.dtype)


convolution_on_cpu.defvjp(_forward_and_keep, _backward)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling, stride 2, padding 1. x: [n, H, W, C]."""
    pool = max_pool_of_slices if is_cpu() else max_pool_of_windows
    return checkpoint_name(pool(x), POOLING)


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


@jax.custom_vjp
def max_pool_of_slices(x: jax.Array) -> jax.Array:
    """Max pooling as a running maximum of nine strided slices.

    Of equal values the first in reading order takes the whole gradient, as in the
    window reduction and in PyTorch. Forward and backward of 128 maps of 48x48x64: the
    window reduction 359 ms, this 85 (two cores, jax 0.10.2).
    """
    return _pool(x)[0]


def _pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and the place 3 i + j of each in its window."""
    height, width = x.shape[1:3]
    edge = [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = jnp.pad(x, edge, constant_values=-jnp.inf)
    best, *others = [
        x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
    ]
    winner = jnp.zeros(best.shape, jnp.int32)
    for place, part in enumerate(others, 1):
        keep = (best >= part) | jnp.isnan(best)
        best = jnp.where(keep, best, part)
        winner = jnp.where(keep, winner, place)
    return best, winner.astype(jnp.uint8)


def _pool_and_keep(x):
    best, winner = _pool(x)
    return best, (winner, x.shape[1:3])


def _pool_gradient(kept, bar):
    """Each place of x gathers from the one, two or four windows that hold it."""
    winner, (height, width) = kept
    after = [(0, 0), (0, 1), (0, 1), (0, 0)]
    bar, winner = jnp.pad(bar, after), jnp.pad(winner, after, constant_values=9)
    down, right = bar.shape[1] - 1, bar.shape[2] - 1

    def gathered(row, column):
        # Of an even row: window 0, its middle; of an odd one: 0, its end, and 1.
        parts = []
        for first, i in ((0, 1),) if row == 0 else ((0, 2), (1, 0)):
            for left, j in ((0, 1),) if column == 0 else ((0, 2), (1, 0)):
                window = (
                    slice(None),
                    slice(first, first + down),
                    slice(left, left + right),
                )
                won = winner[window] == 3 * i + j
                parts.append(jnp.where(won, bar[window], 0))
        return sum(parts[1:], parts[0])

    rows = [
        jnp.stack([gathered(row, column) for column in range(2)], axis=3)
        for row in range(2)
    ]
    x_bar = jnp.stack(rows, axis=2).reshape(len(bar), 2 * down, 2 * right, -1)
    return (x_bar[:, :height, :width],)


max_pool_of_slices.defvjp(_pool_and_keep, _pool_gradient)
