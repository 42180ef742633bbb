"""The CPU's own convolution and pooling are the plain ones, gradients included."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import random_variables
from jax.sharding import PartitionSpec as P

from sfrik_jax.mesh import make_mesh
from sfrik_jax.models import layers
from sfrik_jax.models.resnet import ResNet

MAPS = [(1, 1), (2, 2), (2, 1), (3, 3), (5, 4), (28, 28)]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain_convolution(x, kernel, stride):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )


def operands(n, size, dtype: Any = np.float64, channels=3, out=4, kernel=3):
    rng = np.random.default_rng(n)
    x = jnp.asarray(rng.standard_normal((n, *size, channels)), dtype)
    return x, jnp.asarray(rng.standard_normal((kernel, kernel, channels, out)), dtype)


def value_and_gradients(convolution, x, kernel, stride):
    """The result, and the gradients of its product with one random cotangent."""
    y, pullback = jax.vjp(lambda a, b: convolution(a, b, stride), x, kernel)
    bar = np.random.default_rng(9).standard_normal(y.shape)
    return y, *pullback(jnp.asarray(bar, y.dtype))


CASES = [(3, batch, size) for batch in (1, 13) for size in MAPS]
CASES += [(k, 5, size) for k in (1, 7) for size in ((2, 1), (5, 4), (14, 14))]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("k", "batch", "size"), CASES)
def test_convolution_has_the_plain_value_and_gradients(x64, size, stride, batch, k):
    x, kernel = operands(batch, size, kernel=k)
    found = value_and_gradients(layers.convolution_on_cpu, x, kernel, stride)
    want = value_and_gradients(plain_convolution, x, kernel, stride)
    chex.assert_trees_all_close(found, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(2, 2), (28, 28)])
def test_convolution_in_bfloat16_is_within_its_rounding(x64, size):
    half = operands(7, size, jnp.bfloat16)
    exact = [v.astype(jnp.float64) for v in half]
    found = value_and_gradients(layers.convolution_on_cpu, half[0], half[1], 1)
    want = value_and_gradients(plain_convolution, exact[0], exact[1], 1)
    for one, other in zip(found, want, strict=True):
        assert one.dtype == jnp.bfloat16
        error = np.linalg.norm(one.astype(jnp.float64) - other)
        # Half a unit in the last of 8 bits; the cotangent is rounded as well.
        assert error < 2**-8 * np.linalg.norm(other)


def spy_on_convolution_on_cpu(monkeypatch, devices):
    """A list that grows by each call, in a process that has so many devices."""
    calls, original = [], layers.convolution_on_cpu

    def counted(x, kernel, stride):
        calls.append(kernel.shape)
        return original(x, kernel, stride)

    monkeypatch.setattr(layers, "convolution_on_cpu", counted)
    have_devices(monkeypatch, devices)
    return calls


def have_devices(monkeypatch, devices):
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda: devices)


def training_value_and_gradients(model, variables, images):
    def objective(params, images):
        h, changed = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(h @ jnp.arange(1.0, 1 + h.shape[1])), (h, changed)

    grad = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    return jax.jit(grad)(variables["params"], images)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_resnet_takes_it_on_one_cpu_and_keeps_its_result(x64, monkeypatch, stem):
    model = ResNet((1, 1, 1), False, width=4, stem=stem, dtype=jnp.dtype("float64"))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((5, 5, 5, 3)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = random_variables(shapes)
    calls = spy_on_convolution_on_cpu(monkeypatch, devices=8)
    want = training_value_and_gradients(model, variables, images)
    assert calls == []
    have_devices(monkeypatch, 1)
    found = training_value_and_gradients(model, variables, images)
    assert len(calls) == 9  # the stem, two in each block, and two projections
    chex.assert_trees_all_close(found, want, rtol=1e-8, atol=1e-9)


def test_a_process_with_one_device_of_many_takes_it_on_its_own_rows(x64, monkeypatch):
    """Not outside of shard_map, where the partitioner would gather the batch."""
    mesh, rng = make_mesh(2), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 6, 6, 3)))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 5)))
    calls = spy_on_convolution_on_cpu(monkeypatch, devices=8)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    settings = {"dimension_numbers": LAYOUT}

    def convolved(x):
        return layers.convolution(x, kernel, (1, 1), [(1, 1), (1, 1)], **settings)

    want = jax.jit(convolved)(x)
    assert not calls
    rows = jax.shard_map(convolved, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(rows)(x), want, rtol=1e-10)
    assert len(calls) == 1


# --- Max pooling --------------------------------------------------------------------


def pooled_maps(kind, size, channels=3):
    rng = np.random.default_rng(4)
    values = rng.standard_normal((2, *size, channels))
    return {
        "distinct": values,
        "after relu": np.maximum(values, 0),
        "plateaus": np.round(np.abs(values)),
        "constant": np.full_like(values, 2.5),
        "all negative": -1 - np.abs(values),
    }[kind]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (8, 8), (13, 9)])
@pytest.mark.parametrize(
    "kind", ["distinct", "after relu", "plateaus", "constant", "all negative"]
)
def test_max_pool_of_slices_has_the_value_and_gradient_of_windows(kind, size):
    x = jnp.asarray(pooled_maps(kind, size), jnp.float32)
    found, found_pullback = jax.vjp(layers.max_pool_of_slices, x)
    want, want_pullback = jax.vjp(layers.max_pool_of_windows, x)
    np.testing.assert_array_equal(found, want)
    # Whole numbers: their sums are exact in any order.
    bar = np.random.default_rng(5).integers(1, 99, want.shape)
    bar = jnp.asarray(bar, jnp.float32)
    np.testing.assert_array_equal(found_pullback(bar)[0], want_pullback(bar)[0])


@pytest.mark.parametrize(
    "pool", [layers.max_pool, layers.max_pool_of_slices, layers.max_pool_of_windows]
)
def test_max_pool_takes_the_largest_of_every_second_3x3_window(pool):
    x = pooled_maps("all negative", (7, 6))
    want = np.empty((2, 4, 3, 3))
    for i in range(4):
        for j in range(3):
            top, left = max(2 * i - 1, 0), max(2 * j - 1, 0)
            window = x[:, top : 2 * i + 2, left : 2 * j + 2]
            want[:, i, j] = window.max(axis=(1, 2))
    found = pool(jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(found, want.astype(np.float32))


@pytest.mark.parametrize(
    "pool", [layers.max_pool_of_slices, layers.max_pool_of_windows]
)
def test_the_first_of_equal_values_takes_the_whole_gradient(pool):
    x = jnp.ones((1, 3, 3, 1))
    grad = jax.grad(lambda x: pool(x).sum())(x)[0, :, :, 0]
    # Four windows; the first value of each in reading order.
    np.testing.assert_array_equal(grad, [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    "pool", [layers.max_pool_of_slices, layers.max_pool_of_windows]
)
def test_max_pool_has_a_gradient_in_a_compiled_function(pool):
    # Windows with a traced initial value had none, and training ended on every GPU.
    x = jnp.asarray(pooled_maps("distinct", (7, 6)), jnp.float32)
    gradient = jax.grad(lambda x: (pool(x) ** 2).sum())
    np.testing.assert_allclose(jax.jit(gradient)(x), gradient(x), rtol=1e-6)


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (6, 5)])
def test_max_pool_of_slices_passes_nan_on(place):
    x = jnp.asarray(pooled_maps("distinct", (7, 6)), jnp.float32)
    x = x.at[(0, *place, 0)].set(jnp.nan)
    found, want = layers.max_pool_of_slices(x), layers.max_pool_of_windows(x)
    assert jnp.isnan(found).any()
    np.testing.assert_array_equal(found, want)


def test_max_pool_keeps_bfloat16():
    x = jnp.asarray(pooled_maps("distinct", (5, 5)), jnp.bfloat16)
    assert layers.max_pool(x).dtype == jnp.bfloat16
