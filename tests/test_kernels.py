"""The polynomials against the original's values and scipy, and their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_gegenbauer

from sfrik_jax import kernels

T = np.linspace(-1, 1, 41)


def test_legendre_has_the_originals_values(reference):
    data = reference("legendre")
    for q, values in zip(data["q"], data["value"], strict=True):
        t = jnp.asarray(data["t"], jnp.float32)
        polys = kernels.legendre(t, order=4, dim=int(q))
        for degree, want in zip(data["degree"], values, strict=True):
            np.testing.assert_allclose(polys[degree], want, atol=1e-6)


@pytest.mark.parametrize("dim", [3, 8, 256, 32_768])
def test_legendre_is_scipys_gegenbauer_divided_by_its_value_at_1(x64, dim):
    polys = kernels.legendre(T, order=8, dim=dim)
    index = (dim - 2) / 2
    for order in range(9):
        want = eval_gegenbauer(order, index, T) / eval_gegenbauer(order, index, 1.0)
        np.testing.assert_allclose(polys[order], want, rtol=1e-9, atol=1e-12)


def test_in_the_plane_legendre_is_chebyshev(x64):
    polys = kernels.legendre(T, order=8, dim=2)
    for order in range(9):
        want = np.cos(order * np.arccos(T))
        np.testing.assert_allclose(polys[order], want, atol=1e-12)


def test_legendre_is_1_at_1_and_keeps_shape_and_dtype():
    polys = kernels.legendre(jnp.ones((2, 3), jnp.float32), order=8, dim=1000)
    assert polys.shape == (9, 2, 3)
    assert polys.dtype == jnp.float32
    np.testing.assert_allclose(polys, 1, rtol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_legendre_of_a_low_order(order):
    assert kernels.legendre(jnp.zeros(5), order=order, dim=7).shape == (order + 1, 5)


def test_orders_are_orthogonal_under_the_law_of_a_cosine(x64):
    """The cosine of uniform vectors has density (1 - t²)^((q-3)/2)."""
    dim = 5
    nodes, quadrature = np.polynomial.legendre.leggauss(64)
    density = (1 - nodes**2) ** ((dim - 3) / 2) * quadrature
    polys = np.asarray(kernels.legendre(nodes, order=5, dim=dim))
    gram = (polys * density) @ polys.T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-12)


def test_truncated_kernel_is_the_weighted_sum(x64):
    weights = (2.5, 7.0, 11.0, 0.0, 3.0)
    polys = kernels.legendre(T, order=5, dim=48)
    want = sum(w * p for w, p in zip(weights, polys[1:], strict=True))
    np.testing.assert_allclose(kernels.TruncatedKernel(weights)(T, 48), want)


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        ((1.0,), 1),
        ((1.0, 40.0), 1),
        ((1.0, 40.0), 2),
        ((1.0, 40.0, 40.0, 2.0, 9.0), 1),
        ((1.0, 40.0, 40.0, 2.0, 9.0), 2),
    ],
)
def test_kernel_derivative_is_autodiffs(x64, weights, first):
    kept = (0.0,) * (first - 1) + weights[first - 1 :]
    slope = jax.vmap(jax.grad(lambda t: kernels.TruncatedKernel(kept)(t, 48)))
    got = kernels.TruncatedKernel(weights).derivative(jnp.asarray(T), 48, first=first)
    np.testing.assert_allclose(got, slope(jnp.asarray(T)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "weights", [(), (1.0, -2.0), (float("nan"),), (float("inf"), 1.0)]
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"weight|b_"):
        kernels.TruncatedKernel(weights)


@pytest.mark.parametrize(("order", "dim"), [(-1, 8), (3, 1)])
def test_bad_order_or_dimension_is_refused(order, dim):
    with pytest.raises(ValueError, match="must be"):
        kernels.legendre(jnp.zeros(3), order=order, dim=dim)
