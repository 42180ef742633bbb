"""Convolutions as matrix products, in parts that fit a CPU's cache.

Three forms of a k x k convolution, k odd, with padding k // 2. Each has the plain one's
value and gradients up to rounding:

- Winograd's: 3x3, stride 1. 16 multiplications for four results in place of 36.
- by taps: stride 1. One product for each place of the kernel, over those results alone
  whose operand lies in the map: of a 3x3 map that is 49 of 81.
- by patches (im2col): one product of the surroundings of each result.

x: [n, H, W, C]; kernel: [k, k, C, K]; y, bar (the cotangent of y): [n, H', W', K], H'
being H over the stride, rounded up. Sums are in float32, or in float64 for float64.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

# Of the copies that a part makes of its images. 128 maps of 32x32x64 by Winograd's form
# take 180 ms at once, in parts of 4, 8, 16 and 32 MiB 77, 50, 61 and 90 ms (two cores
# with 512 KiB each and 32 MiB together, jax 0.10.2).
PART_BYTES = 8 * 2**20
# A copy of fewer channels at a time is slow: the stem's 49 slices of 3.
FEW_CHANNELS = 16

# F(2x2, 3x3): y = A [(G g Gᵀ) * (B x Bᵀ)] Aᵀ for tiles x of 4x4 that overlap by two.
# Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR
# 2016, arXiv 1509.09308. Larger tiles need fewer products, but entries of 4 and 5, and
# their error is 10 times that of the plain convolution; this one's is the same.
_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
# G of a kernel that is turned round is G of the kernel in this order.
_TURNED = [3, 1, 2, 0]


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of stride 1 with a 3x3 kernel."""
    transformed = _transformed_kernel(kernel)

    def part(x):
        product = jnp.einsum("atc,ack->atk", _tiles(_B, x), transformed)
        return _untiled(_A, product, x.shape[:3]).astype(x.dtype)

    return _in_parts(part, _tile_bytes(x, kernel.shape[-1]), x)


def winograd_gradient(bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of `winograd` by x: bar convolved with the kernel turned round."""
    transformed = _transformed_kernel(kernel)

    def part(bar):
        tiles = _tiles(_B[_TURNED], bar)
        product = jnp.einsum("atk,ack->atc", tiles, transformed)
        return _untiled(_A[:, _TURNED], product, bar.shape[:3]).astype(bar.dtype)

    return _in_parts(part, _tile_bytes(bar, kernel.shape[-2]), bar)


def winograd_kernel_gradient(x: jax.Array, bar: jax.Array) -> jax.Array:
    """The gradient of `winograd` by its kernel."""

    def part(x, bar):
        return jnp.einsum("atc,atk->ack", _tiles(_B, x), _cotangent_tiles(bar))

    total = _sum_of_parts(part, _tile_bytes(x, bar.shape[-1]), x, bar)
    total = total.reshape(4, 4, *total.shape[1:])
    return _transform(_G.T, _transform(_G.T, total, axis=1), axis=0)


def taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of stride 1, by the places of its kernel."""
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), _wide(x))
    for place, to, of in _overlaps(kernel.shape[0], *x.shape[1:3]):
        y = y.at[to].add(_product(x[of], kernel[place]))
    return y.astype(x.dtype)


def taps_gradient(bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of `taps` by x."""
    return taps(bar, turned(kernel))


def turned(kernel: jax.Array) -> jax.Array:
    """The kernel whose convolution of stride 1 is the gradient by x."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def taps_kernel_gradient(x: jax.Array, bar: jax.Array, size: int) -> jax.Array:
    """The gradient of `taps` by its kernel."""
    channels, out = x.shape[-1], bar.shape[-1]
    result = jnp.zeros((size, size, channels, out), _wide(x))
    for place, to, of in _overlaps(size, *x.shape[1:3]):
        rows, bars = x[of].reshape(-1, channels), bar[to].reshape(-1, out)
        result = result.at[place].set(_product(rows.T, bars))
    return result


def patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution by the surroundings of each result."""
    part = _of_patches(kernel, stride)
    return _in_parts(part, _patch_bytes(x, kernel.shape[0], stride), x)


def patches_gradient(
    bar: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]
) -> jax.Array:
    """The gradient of `patches` by x, which has this shape."""

    def part(bar):
        # Like bar, so that it varies over the same axes of a mesh.
        images = jnp.zeros_like(bar, shape=(len(bar), *shape[1:]))
        (x_bar,) = jax.linear_transpose(_of_patches(kernel, stride), images)(bar)
        return x_bar

    images = jax.ShapeDtypeStruct(shape, bar.dtype)
    return _in_parts(part, _patch_bytes(images, kernel.shape[0], stride), bar)


def patches_kernel_gradient(
    x: jax.Array, bar: jax.Array, size: int, stride: int
) -> jax.Array:
    """The gradient of `patches` by its kernel."""
    columns, out = size * size * x.shape[-1], bar.shape[-1]

    def part(x, bar):
        rows = _surroundings(x, size, stride).reshape(-1, columns)
        # The longer side second: 60 against 66 ms for the stem of 128 images of 96 px.
        return _product(bar.reshape(-1, out).T, rows)

    total = _sum_of_parts(part, _patch_bytes(x, size, stride), x, bar)
    return total.T.reshape(size, size, -1, out)


def _of_patches(kernel: jax.Array, stride: int) -> Callable[[jax.Array], jax.Array]:
    columns = kernel.reshape(-1, kernel.shape[-1])

    def convolution(x):
        rows = _surroundings(x, kernel.shape[0], stride)
        return _product(rows, columns).astype(x.dtype)

    return convolution


def _surroundings(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The k x k surroundings of each place: [n, H, W, C] to [n, H', W', k k C]."""
    height, width = x.shape[1:3]
    pad = (size // 2, size // 2)
    x = jnp.pad(x, [(0, 0), pad, pad, (0, 0)])
    if x.shape[-1] < FEW_CHANNELS:
        # First along the rows, then whole pieces of rows: 2 k copies in place of k².
        x = jnp.concatenate([x[:, :, j : j + width : stride] for j in range(size)], -1)
        parts = [x[:, i : i + height : stride] for i in range(size)]
    else:
        parts = [
            x[:, i : i + height : stride, j : j + width : stride]
            for i in range(size)
            for j in range(size)
        ]
    return jnp.concatenate(parts, axis=-1)


def _overlaps(size: int, height: int, width: int) -> Iterator[tuple]:
    """Each place of the kernel, the results that it adds to, and its operands."""
    for i in range(size):
        for j in range(size):
            down, right = i - size // 2, j - size // 2
            if abs(down) < height and abs(right) < width:
                (rows, from_rows), (columns, from_columns) = (
                    _shifted(height, down),
                    _shifted(width, right),
                )
                every = slice(None)
                yield (i, j), (every, rows, columns), (every, from_rows, from_columns)


def _shifted(length: int, by: int) -> tuple[slice, slice]:
    """Where `place + by` is in range, and that range of `place + by`."""
    first, last = max(0, -by), min(length, length - by)
    return slice(first, last), slice(first + by, last + by)


def _transformed_kernel(kernel: jax.Array) -> jax.Array:
    """G g Gᵀ, [16, C, K]."""
    kernel = kernel.astype(_wide(kernel))
    kernel = _transform(_G, _transform(_G, kernel, axis=1), axis=0)
    return kernel.reshape(16, *kernel.shape[2:])


def _tiles(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """B x Bᵀ of every tile, [16, n tiles, C]."""
    (down, _), (right, _) = _sides(x)
    channels = x.shape[-1]
    pads = [(1, 1 + 2 * count - side) for count, side in _sides(x)]
    x = jnp.pad(x.astype(_wide(x)), [(0, 0), *pads, (0, 0)])
    x = _stacked(matrix, [x[:, :, j : j + 2 * right - 1 : 2] for j in range(4)])
    x = _stacked(matrix, [x[:, :, i : i + 2 * down - 1 : 2] for i in range(4)])
    return x.reshape(16, -1, channels)


def _cotangent_tiles(bar: jax.Array) -> jax.Array:
    """Aᵀ bar A of every tile of 2x2 cotangents, [16, n tiles, K]."""
    out = bar.shape[-1]
    pads = [(0, 2 * count - side) for count, side in _sides(bar)]
    bar = jnp.pad(bar.astype(_wide(bar)), [(0, 0), *pads, (0, 0)])
    bar = _stacked(_A.T, [bar[:, :, j::2] for j in range(2)])
    bar = _stacked(_A.T, [bar[:, :, i::2] for i in range(2)])
    return bar.reshape(16, -1, out)


def _untiled(
    matrix: np.ndarray, product: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """A product Aᵀ of every tile in its place: [16, n tiles, K] to [n, H, W, K]."""
    n, height, width = shape
    down, right = -(-height // 2), -(-width // 2)
    out = product.shape[-1]
    product = product.reshape(4, 4, n, down, right, out)
    rows = [_combinations(matrix, list(row)) for row in product]
    columns = [_combinations(matrix, [row[c] for row in rows]) for c in range(2)]
    # [column][row] of results; stacked beside their tiles.
    places = jnp.stack([jnp.stack(c, axis=2) for c in columns], axis=4)
    return places.reshape(n, 2 * down, 2 * right, out)[:, :height, :width]


def _transform(matrix: np.ndarray, array: jax.Array, axis: int) -> jax.Array:
    """The matrix times the array's axis."""
    slices = [jnp.take(array, i, axis) for i in range(array.shape[axis])]
    return jnp.stack(_combinations(matrix, slices), axis)


def _stacked(matrix: np.ndarray, slices: list[jax.Array]) -> jax.Array:
    return jnp.stack(_combinations(matrix, slices))


def _combinations(matrix: np.ndarray, slices: list[jax.Array]) -> list[jax.Array]:
    """`sum_i matrix[r, i] slices[i]` for each row r, without what is times zero."""
    rows = []
    for row in matrix:
        first, *rest = [
            float(factor) * each
            for factor, each in zip(row, slices, strict=True)
            if factor
        ]
        rows.append(sum(rest, first))
    return rows


def _sides(x: jax.Array) -> list[tuple[int, int]]:
    """The tiles along each side of the maps, and its length."""
    return [(-(-side // 2), side) for side in x.shape[1:3]]


def _tile_bytes(x: jax.Array, out: int) -> int:
    """Of the tiles of one image, or of their products."""
    (down, _), (right, _) = _sides(x)
    return 16 * down * right * max(x.shape[-1], out) * _wide(x).itemsize


def _patch_bytes(x: jax.Array | jax.ShapeDtypeStruct, size: int, stride: int) -> int:
    """Of the surroundings in one image; a 1x1 kernel of stride 1 copies nothing."""
    if size == stride == 1:
        return 0
    height, width = (-(-side // stride) for side in x.shape[1:3])
    return height * width * size * size * x.shape[-1] * x.dtype.itemsize


def _in_parts(function: Callable, image_bytes: int, x: jax.Array) -> jax.Array:
    """The function of x, a part of the images at a time."""
    parts = _parts(len(x), image_bytes)
    if parts == 1:
        return function(x)
    y = jax.lax.map(function, _split(x, parts))
    return y.reshape(-1, *y.shape[2:])[: len(x)]


def _sum_of_parts(function: Callable, image_bytes: int, *arrays: jax.Array):
    """The sum of the function over parts of the arrays."""
    parts = _parts(len(arrays[0]), image_bytes)
    if parts == 1:
        return function(*arrays)
    pieces = tuple(_split(each, parts) for each in arrays)
    shape = jax.eval_shape(function, *(each[0] for each in pieces))
    total, _ = jax.lax.scan(
        lambda total, piece: (total + function(*piece), None),
        jnp.zeros_like(pieces[0], shape=shape.shape, dtype=shape.dtype),
        pieces,
    )
    return total


def _parts(n: int, image_bytes: int) -> int:
    """The fewest parts of n images that keep to PART_BYTES, or single images.

    Equal parts where they are at least half as long as that allows: others are filled
    with zeros, which copies all images.
    """
    most = max(1, min(n, PART_BYTES // max(1, image_bytes)))
    equal = next(size for size in range(most, 0, -1) if n % size == 0)
    return n // equal if 2 * equal >= most else -(-n // most)


def _split(x: jax.Array, parts: int) -> jax.Array:
    """Parts of equal size; images of zeros, which add nothing, fill the last one."""
    size = -(-len(x) // parts)
    missing = parts * size - len(x)
    if missing:
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(parts, size, *x.shape[1:])


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=_wide(a))


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
