"""The formula of Funk and Hecke: presets come back, and noise is NaN."""

import math

import numpy as np
import pytest
from test_kernel_presets import polynomials

from sfrik_jax import kernel_presets as presets
from sfrik_jax.kernel_spectrum import spectrum

DIMS = [2, 3, 4, 8, 64, 512, 8192, 32_768]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("scale", [0.5, 2.5, 20.0])
def test_a_gaussian_has_the_weights_of_rbf(dim, scale):
    found = spectrum(lambda t: np.exp(-scale * (2 - 2 * t)), dim, 12)
    want = presets.series(f"rbf({scale})", dim, 12)
    known = np.isfinite(found)
    # Of e^(40 t) at 32768 dimensions too little of the mean of K² is in a low order.
    assert known[:4].all() or scale == 20
    np.testing.assert_allclose(found[known], want[known], rtol=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_a_narrow_gaussian_too(dim):
    found = spectrum(lambda t: np.exp(-300 * (2 - 2 * t)), dim, 8)
    want = presets.series("rbf(300)", dim, 8)
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("text", ["heat(0.02)", "bandlimited(6)", "exponential(0.3)"])
@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_the_sum_of_a_series_has_its_weights(text, dim):
    series = presets.series(text, dim, 40)

    def kernel(t):
        return series @ polynomials(t, 40, dim)

    found = spectrum(kernel, dim, 3)
    np.testing.assert_allclose(found, series[:4], rtol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_t_squared_has_two_weights_and_no_other_is_known(dim):
    """t² = 1/q + (q - 1)/q P_2; the others are 0, which rounding hides."""
    found = spectrum(lambda t: t**2, dim, 5)
    np.testing.assert_allclose(found[[0, 2]], [1 / dim, (dim - 1) / dim], rtol=1e-6)
    assert np.isnan(found[[1, 3, 4, 5]]).all()


@pytest.mark.parametrize("dim", [8192, 32_768])
def test_at_a_large_dimension_noise_is_not_returned(dim):
    found = spectrum(lambda t: np.exp(5 * t), dim, 8)
    want = presets.series("exponential(0.2)", dim, 8)
    np.testing.assert_allclose(found[:4], want[:4], rtol=1e-6)
    assert np.isnan(found[8])
    # A rounding of the mean by one epsilon already is more than the tolerance.
    rounding = math.sqrt(presets.harmonics(dim, 8)) * np.finfo(np.float64).eps
    assert rounding > 1e-6 * want[8]


@pytest.mark.parametrize("dim", [2, 3, 8, 64, 8192])
@pytest.mark.parametrize("tolerance", [1e-9, 1e-6, 1e-3, 0.1])
def test_what_is_returned_is_within_the_tolerance(dim, tolerance):
    for slope in (0.5, 5.0, 50.0):
        found = spectrum(lambda t, a=slope: np.exp(a * t), dim, 20, tolerance=tolerance)
        want = presets.series(f"exponential({1 / slope!r})", dim, 20)
        known = np.isfinite(found)
        assert known.any() or slope == 50
        error = np.abs(found[known] - want[known])
        assert np.all(error <= tolerance * want[known])


def test_a_kernel_with_a_kink_is_as_good_as_its_quadrature():
    """|t| in space: b_2 = 5 ∫_0^1 t (3t² - 1)/2 dt = 5/8."""
    loose = spectrum(np.abs, 3, 2, tolerance=1e-2)
    np.testing.assert_allclose(loose[[0, 2]], [1 / 2, 5 / 8], rtol=1e-2)
    assert np.isnan(spectrum(np.abs, 3, 2, tolerance=1e-9)).all()


def test_a_kernel_that_is_zero_has_the_weights_zero():
    np.testing.assert_array_equal(spectrum(np.zeros_like, 5, 3), 0)


@pytest.mark.parametrize(
    ("q", "order", "tolerance", "words"),
    [
        (1, 3, 1e-6, "q=1 must be >= 2"),
        (3, -1, 1e-6, "order=-1"),
        (3, 101, 1e-6, "order=101"),
        (3, 3, 0.0, "tolerance=0.0 must be above 0"),
        (3, 3, 1.0, "below 1"),
    ],
)
def test_what_has_no_spectrum_is_refused(q, order, tolerance, words):
    with pytest.raises(ValueError, match=words):
        spectrum(np.exp, q, order, tolerance=tolerance)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (lambda t: 1.0, r"kernel gave \(\)"),
        (lambda t: t + 1j, "complex128"),
        (lambda t: np.where(t > 0, np.inf, 0), "not finite"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel, words):
    with pytest.raises(ValueError, match=words):
        spectrum(kernel, 3, 2)
