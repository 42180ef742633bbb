"""Weights of kernels with a name: closed forms, exact fractions, Bessel functions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import eval_gegenbauer, ive

from sfrik_jax import kernel_presets as presets

T = np.linspace(-1, 1, 41)
ANGLES = np.linspace(0.05, math.pi - 0.05, 23)
TEXTS = [
    "rbf(2.5)",
    "rbf(300, order=8)",
    "rbf(1e-9)",
    "exponential(0.15)",
    "exponential(0.002, order=5)",
    "heat(0.01, order=4)",
    "heat(50)",
    "bandlimited(1)",
    "bandlimited(7)",
]


def polynomials(t, order, dim):
    """P_0 … P_order, by the recurrence in NumPy."""
    polys = [np.ones_like(t), t]
    for k in range(1, order):
        up = (2 * k + dim - 2) * t * polys[k] - k * polys[k - 1]
        polys.append(up / (k + dim - 2))
    return np.stack(polys[: order + 1])


def kernel(text, dim, order, t=T):
    """The sum of the series up to `order` at the cosines t."""
    return presets.series(text, dim, order) @ polynomials(t, order, dim)


def theta(angle, time):
    """sum over all m of exp(-time m²) cos(m angle), by Poisson's sum, and its slope."""
    shifted = angle + 2 * math.pi * np.arange(-20, 21)[:, None]
    bells = math.sqrt(math.pi / time) * np.exp(-(shifted**2) / (4 * time))
    return bells.sum(axis=0), (-shifted / (2 * time) * bells).sum(axis=0)


# --- Harmonics ------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(9))
def test_there_are_as_many_harmonics_as_known(order):
    assert presets.harmonics(2, order) == (2 if order else 1)
    assert presets.harmonics(3, order) == 2 * order + 1
    assert presets.harmonics(4, order) == (order + 1) ** 2


def test_harmonics_of_an_order_are_polynomials_less_those_with_a_factor():
    for dim in (5, 64, 32_768):
        found = [presets.harmonics(dim, order) for order in range(6)]
        for order in range(6):
            # All of degree `order` on the sphere: these, and those two orders lower …
            polys = math.comb(order + dim - 1, dim - 1)
            assert sum(found[order::-2]) == polys


@pytest.mark.parametrize(("dim", "order"), [(1, 2), (3, -1)])
def test_harmonics_of_no_sphere_are_refused(dim, order):
    with pytest.raises(ValueError, match="must be >="):
        presets.harmonics(dim, order)


# --- Weights --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 64, 8192, 32_768])
@pytest.mark.parametrize("text", TEXTS)
def test_weights_are_not_negative_finite_and_add_up_to_1(text, dim):
    found = presets.weights(text, dim)
    assert len(found) == presets.parse(text).order
    assert all(type(b) is float and b >= 0 for b in found)
    assert sum(found) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 7, 512])
@pytest.mark.parametrize("text", ["rbf(2.5, order=5)", "heat(0.01)", "bandlimited(4)"])
def test_weights_are_those_of_the_series_without_the_constant(text, dim):
    found = presets.weights(text, dim)
    series = presets.series(text, dim, len(found))[1:]
    np.testing.assert_allclose(found, series / series.sum(), rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 8, 64, 32_768])
@pytest.mark.parametrize("scale", [0.1, 2.5, 40.0, 400.0])
def test_rbf_and_exponential_are_one_kernel_up_to_a_factor(scale, dim):
    rbf = presets.weights(f"rbf({scale}, order=6)", dim)
    simclr = presets.weights(f"exponential({1 / (2 * scale)!r}, order=6)", dim)
    np.testing.assert_allclose(rbf, simclr, rtol=1e-9)
    if scale < 100:  # exp(800) is no float64
        factor = presets.series(f"rbf({scale})", dim, 6) * np.exp(2 * scale)
        other = presets.series(f"exponential({1 / (2 * scale)!r})", dim, 6)
        np.testing.assert_allclose(factor, other, rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 4, 8, 64])
@pytest.mark.parametrize("scale", [0.05, 2.5, 40.0, 300.0])
def test_rbf_weights_are_bessel_functions(scale, dim):
    order, index = np.arange(9), dim / 2 - 1
    many = np.array([presets.harmonics(dim, k) for k in range(9)], np.float64)
    factor = math.gamma(dim / 2) * scale**-index
    want = many * factor * ive(order + index, 2 * scale)  # ive = exp(-2s) I
    np.testing.assert_allclose(presets.series(f"rbf({scale})", dim, 8), want, rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 8192, 32_768])
def test_exponential_weights_are_their_series_in_exact_fractions(dim):
    half = Fraction(5, 2)  # of the slope 1/τ = 5
    for order, found in enumerate(presets.series("exponential(0.2)", dim, 6)):
        term = Fraction(presets.harmonics(dim, order))
        for k in range(order):
            term *= half / (Fraction(dim, 2) + k)
        total = term
        for k in range(1, 40):
            term *= half**2 / (k * (order + Fraction(dim, 2) + k - 1))
            total += term
        assert found == pytest.approx(float(total), rel=1e-12)


def test_at_a_huge_dimension_the_exponentials_weights_are_those_of_its_taylor_series():
    """b_l -> a^l / l!: P_l then is t^l where t is near 1."""
    found = presets.series("exponential(0.2)", 2**31 - 1, 6)
    want = [5**order / math.factorial(order) for order in range(7)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_a_small_scale_keeps_the_first_order_alone():
    first, second, third = presets.weights("rbf(1e-300)", 64)
    assert (first, third) == (1.0, 0.0)
    # b_2/b_1 = (N_2/N_1) s/(q/2 + 1)
    ratio = presets.harmonics(64, 2) / 64 / 33
    assert second == pytest.approx(ratio * 1e-300, rel=1e-9)


def test_any_sequence_can_be_normalised():
    assert presets.normalised((1.0, 2.0, 1.0)) == (0.25, 0.5, 0.25)
    assert presets.normalised((1e308, 1e308)) == (0.5, 0.5)


@pytest.mark.parametrize("bad", [(), (0.0, 0.0), (1.0, -1.0), (math.inf,), (math.nan,)])
def test_a_sequence_that_is_no_kernel_is_refused(bad):
    with pytest.raises(ValueError, match="weights="):
        presets.normalised(bad)


# --- Closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "scale", "order"), [(2, 60, 120), (3, 60, 120)])
def test_rbf_of_a_narrow_kernel_is_the_gaussian(dim, scale, order):
    distance = 2 - 2 * T
    got = kernel(f"rbf({scale})", dim, order)
    np.testing.assert_allclose(got, np.exp(-scale * distance), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 8, 64, 8192])
@pytest.mark.parametrize("scale", [0.1, 2.5])
def test_rbf_is_the_gaussian_and_exponential_the_exponential(dim, scale):
    got = kernel(f"rbf({scale})", dim, 40)
    np.testing.assert_allclose(got, np.exp(-scale * (2 - 2 * T)), rtol=1e-5)
    got = kernel(f"exponential({scale})", dim, 80)
    np.testing.assert_allclose(got, np.exp(T / scale), rtol=1e-5)


@pytest.mark.parametrize("time", [0.02, 0.3])
def test_heat_in_the_plane_is_a_theta_function(time):
    got = kernel(f"heat({time})", 2, 60, np.cos(ANGLES))
    np.testing.assert_allclose(got, theta(ANGLES, time)[0], rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("time", [0.02, 0.3])
def test_heat_in_four_dimensions_is_the_slope_of_a_theta_function(time):
    """sum (l + 1) exp(-τ l (l + 2)) sin((l + 1) θ) / sin θ, with m = l + 1."""
    want = -math.exp(time) / (2 * np.sin(ANGLES)) * theta(ANGLES, time)[1]
    got = kernel(f"heat({time})", 4, 60, np.cos(ANGLES))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 7, 20])
def test_heat_solves_the_heat_equation(dim):
    """dK/dτ = (1 - t²) K'' - (q - 1) t K', by central differences."""
    time, step, t = 0.1, 1e-4, np.linspace(-0.9, 0.9, 19)

    def heat(time, t):
        return kernel(f"heat({time})", dim, 50, t)

    slope = (heat(time + step, t) - heat(time - step, t)) / (2 * step)
    ahead, here, behind = heat(time, t + step), heat(time, t), heat(time, t - step)
    first, second = (ahead - behind) / (2 * step), (ahead - 2 * here + behind) / step**2
    want = (1 - t**2) * second - (dim - 1) * t * first
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("last", [1, 3, 8])
def test_bandlimited_in_the_plane_is_dirichlets_kernel(last):
    want = np.sin((last + 0.5) * ANGLES) / np.sin(ANGLES / 2)
    got = kernel(f"bandlimited({last})", 2, last + 3, np.cos(ANGLES))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("last", [1, 3, 8])
def test_bandlimited_in_space_is_christoffels_quotient(last):
    """sum (2l + 1) P_l = (L + 1) (P_L - P_{L+1}) / (1 - t)."""
    t = T[:-1]
    polys = [eval_gegenbauer(order, 0.5, t) for order in (last, last + 1)]
    want = (last + 1) * (polys[0] - polys[1]) / (1 - t)
    got = kernel(f"bandlimited({last})", 3, last + 3, t)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dim", [5, 64])
@pytest.mark.parametrize("last", [1, 3, 8])
def test_bandlimited_is_a_sum_of_two_gegenbauer_polynomials(dim, last):
    """(l + a)/a C_l^a = C_l^{a+1} - C_{l-2}^{a+1}, so that the sum telescopes."""
    want = sum(eval_gegenbauer(order, dim / 2, T) for order in (last, last - 1))
    got = kernel(f"bandlimited({last})", dim, last, T)
    size = kernel(f"bandlimited({last})", dim, last, np.ones(1))[0]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-13 * size)


# --- Texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("rbf(2.5)", ("rbf", 2.5, 3)),
        (" rbf ( 2.5 , order = 4 ) ", ("rbf", 2.5, 4)),
        ("exponential(1e-1)", ("exponential", 0.1, 3)),
        ("heat(.01,order=2)", ("heat", 0.01, 2)),
        ("bandlimited(5)", ("bandlimited", 5.0, 5)),
    ],
)
def test_a_text_names_a_preset(text, want):
    assert presets.parse(text) == want


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rbf", "write NAME(NUMBER)"),
        ("rbf()", "'' is not a number"),
        ("rbf(2.5", "write NAME(NUMBER)"),
        ("rbf(2.5)(1)", "write NAME(NUMBER)"),
        ("rbf(2.5, 4)", "order is the one key"),
        ("rbf(2.5, ordr=4)", "order is the one key"),
        ("rbf(2.5, order=4, order=5)", "order is the one key"),
        ("rbf(2.5, order=4.5)", "'4.5' is not a whole number"),
        ("rbf(2.5, order=0)", "order=0 must be from 1 to 64"),
        ("rbf(2.5, order=65)", "order=65 must be from 1 to 64"),
        ("rbf(fast)", "'fast' is not a number"),
        ("rbf(0)", "s=0 must be above 0 and at most 5000"),
        ("rbf(-1)", "s=-1 must be above 0"),
        ("rbf(nan)", "s=nan must be above 0"),
        ("rbf(6000)", "at most 5000"),
        ("exponential(1e-5)", "τ=1e-05 must be at least 0.0001 and finite"),
        ("exponential(inf)", "τ=inf must be at least 0.0001 and finite"),
        ("heat(0)", "τ=0 must be above 0"),
        ("bandlimited(0)", "L=0 must be at least 1"),
        ("bandlimited(2.5)", "'2.5' is not a whole number"),
        ("bandlimited(65)", "at most 64"),
        ("bandlimited(3, order=3)", "leave order out"),
        ("rfb(2.5)", "did you mean rbf?"),
        ("bandlimitted(3)", "did you mean bandlimited?"),
        ("gauss(1)", "choose one of rbf, exponential, heat, bandlimited"),
    ],
)
def test_a_text_that_names_none_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError) as caught:
        presets.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_is_resolved_for_its_dimension():
    assert presets.resolve((1, 40.0), 64) == (1.0, 40.0)
    assert presets.resolve("rbf(2.5)", 64) == presets.weights("rbf(2.5)", 64)
    assert presets.resolve("rbf(2.5)", 64) != presets.resolve("rbf(2.5)", 8)


def test_the_settings_of_a_loss_get_numbers():
    settings = {"weights": "bandlimited(2)", "mmd_coeff": 2.0}
    found = presets.resolved(settings, 3)
    assert found == {"weights": pytest.approx((3 / 8, 5 / 8)), "mmd_coeff": 2.0}
    assert presets.resolved({"temperature": 0.1}, 3) == {"temperature": 0.1}
    assert settings["weights"] == "bandlimited(2)"


@pytest.mark.parametrize(("dim", "order"), [(1, 3), (8, -1)])
def test_a_series_of_no_sphere_or_order_is_refused(dim, order):
    with pytest.raises(ValueError, match="must be >="):
        presets.series("rbf(2.5)", dim, order)


def test_a_series_beyond_the_numbers_is_refused():
    with pytest.raises(ValueError, match=r"above 1\.8e308"):
        presets.series("exponential(0.001)", 3, 2)
    with pytest.raises(ValueError, match="s=-1"):
        presets.series(presets.Preset("rbf", -1.0, 3), 3, 2)
