"""Every form of a convolution by products is the plain one, gradients included."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax.models import cpu_convolutions as cpu
from sfrik_jax.models import layers

SIZES = [(1, 1), (3, 3), (4, 4), (5, 2)]
CASES = [("winograd", 3, 1), ("taps", 3, 1), ("taps", 7, 1)]
CASES += [("patches", k, s) for k in (1, 3, 7) for s in (1, 2)]


def plain(x, kernel, stride):
    pad = [(kernel.shape[0] // 2,) * 2] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=layout
    )


def operands(n, size, k, channels=3, out=4, dtype: Any = np.float64):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, *size, channels)).astype(dtype)
    kernel = rng.standard_normal((k, k, channels, out)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(kernel)


def by_form(form, x, kernel, stride, bar):
    """Value, gradient by x, gradient by the kernel."""
    if form == "winograd":
        gradient = cpu.winograd_gradient(bar, kernel)
        return (
            cpu.winograd(x, kernel),
            gradient,
            cpu.winograd_kernel_gradient(x, bar),
        )
    if form == "taps":
        gradient = cpu.taps_gradient(bar, kernel)
        kernel_gradient = cpu.taps_kernel_gradient(x, bar, len(kernel))
        return cpu.taps(x, kernel), gradient, kernel_gradient
    return (
        cpu.patches(x, kernel, stride),
        cpu.patches_gradient(bar, kernel, stride, x.shape),
        cpu.patches_kernel_gradient(x, bar, len(kernel), stride),
    )


def both(form, x, kernel, stride):
    want, pullback = jax.vjp(lambda a, b: plain(a, b, stride), x, kernel)
    bar = np.random.default_rng(9).standard_normal(want.shape)
    bar = jnp.asarray(bar, want.dtype)
    return by_form(form, x, kernel, stride, bar), (want, *pullback(bar))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("form", "k", "stride"), CASES)
def test_a_form_has_the_plain_value_and_gradients(x64, form, k, stride, size):
    found, want = both(form, *operands(3, size, k), stride)
    chex.assert_trees_all_close(found, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("channels", [cpu.FEW_CHANNELS - 1, cpu.FEW_CHANNELS])
def test_patches_of_few_and_of_many_channels_are_alike(x64, channels):
    found, want = both("patches", *operands(2, (6, 5), 3, channels=channels), 2)
    chex.assert_trees_all_close(found, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("part_bytes", [1, 3 * 16 * 9 * 4 * 8, 2**30])
@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize(("form", "stride"), [("winograd", 1), ("patches", 2)])
def test_the_number_of_parts_changes_nothing(
    x64, monkeypatch, form, stride, n, part_bytes
):
    monkeypatch.setattr(cpu, "PART_BYTES", part_bytes)
    found, want = both(form, *operands(n, (5, 6), 3), stride)
    chex.assert_trees_all_close(found, want, rtol=1e-11, atol=1e-11)


def test_parts_are_as_few_as_fit(monkeypatch):
    monkeypatch.setattr(cpu, "PART_BYTES", 100)
    sizes = (0, 1, 20, 25, 30, 101)
    assert [cpu._parts(12, each) for each in sizes] == [1, 1, 3, 3, 4, 12]
    assert cpu._parts(128, 7) == 16  # of 8, though 14 would keep to 100 bytes
    # A prime number of images takes no more parts than one that can be divided.
    assert [cpu._parts(13, each) for each in sizes] == [1, 1, 3, 4, 5, 13]
    filled = cpu._split(jnp.arange(1, 14), 4)
    assert filled.tolist()[-1] == [13, 0, 0, 0]


def test_winograd_loses_no_more_digits_than_the_plain_convolution(x64):
    x, kernel = operands(4, (16, 16), 3, channels=64, out=64)
    half = x.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = [v.astype(jnp.float64) for v in half]
    want, pullback = jax.vjp(lambda a, b: plain(a, b, 1), *exact)
    bar = jnp.asarray(np.random.default_rng(9).standard_normal(want.shape), jnp.float32)
    wants = want, *pullback(bar.astype(jnp.float64))
    _, pullback = jax.vjp(lambda a, b: plain(a, b, 1), *half)
    plains = plain(*half, 1), *pullback(bar)
    founds = by_form("winograd", *half, 1, bar)
    for found, simple, want in zip(founds, plains, wants, strict=True):
        error, usual = (
            float(jnp.linalg.norm(v - want) / jnp.linalg.norm(want))
            for v in (found, simple)
        )
        assert error < max(2 * usual, 3e-7)


FORMS = {
    ((9, 32, 32, 64), (3, 3, 64, 64), 1): "winograd",
    ((9, 4, 4, 512), (3, 3, 512, 512), 1): "winograd",
    ((9, 3, 3, 512), (3, 3, 512, 512), 1): "taps",
    ((9, 12, 12, 32), (3, 3, 32, 32), 1): "xla",
    ((9, 32, 32, 3), (3, 3, 3, 64), 1): "xla",
    ((9, 32, 32, 64), (3, 3, 64, 128), 2): "patches",
    ((9, 32, 32, 64), (1, 1, 64, 128), 1): "patches",
    ((9, 96, 96, 3), (7, 7, 3, 64), 2): "patches",
}


def test_each_shape_takes_the_form_that_was_fastest():
    assert {shapes: layers.form_on_cpu(*shapes) for shapes in FORMS} == FORMS


@pytest.mark.parametrize("shapes", FORMS)
def test_the_chosen_form_is_the_plain_convolution(shapes):
    (_, *size, channels), (k, _, _, out), stride = shapes
    x, kernel = operands(2, size, k, channels, out, np.float32)

    def of(convolution):
        return jax.jit(
            jax.value_and_grad(
                lambda x, kernel: jnp.sum(convolution(x, kernel, stride) ** 2),
                argnums=(0, 1),
            )
        )(x, kernel)

    found, want = of(layers.convolution_on_cpu), of(plain)
    np.testing.assert_allclose(found[0], want[0], rtol=1e-4)
    for one, other in zip(found[1], want[1], strict=True):
        assert jnp.linalg.norm(one - other) < 1e-5 * jnp.linalg.norm(other)
