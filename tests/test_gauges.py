"""Label-free gauges: closed forms, float64 by hand, rotations, chunks."""

import math
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import losses
from sfrik_jax.errors import ConfigError
from sfrik_jax.evaluators import checks, gauges


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def skewed():
    """[200, 12], of uneven spread, off the centre, of uneven length."""
    spread = normal(200, 12) * np.geomspace(1, 0.05, 12) + 0.3
    return (spread * np.linspace(0.5, 4, 200)[:, None]).astype(np.float32)


def gauge_names():
    return ["rankme", "uniformity", "wasserstein", "std", "alignment"]


# --- Closed forms -------------------------------------------------------------------


@pytest.mark.parametrize("d", [4, 32])
def test_an_orthonormal_basis(d):
    # All singular values are equal; distinct rows are at distance sqrt(2); the mean is
    # 1/d, the covariance I/d - 1/d²: eigenvalues 1/d, d - 1 times, and 0.
    found = gauges.all_gauges(np.eye(d, dtype=np.float32) * 3, np.eye(d))
    assert found["rankme"] == pytest.approx(d, rel=1e-4)
    assert found["uniformity"] == pytest.approx(-4)
    assert found["wasserstein"] == pytest.approx(math.sqrt(2 - 2 * (d - 1) / d))
    assert found["std"] == pytest.approx(math.sqrt(1 - 1 / d))
    assert found["alignment"] == 0


def test_the_spectrum_is_that_of_the_covariance_of_unit_rows(skewed):
    u = unit(skewed.astype(np.float64))
    want = np.linalg.eigvalsh(np.cov(u, rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(
        gauges.spectrum(skewed), want / want.sum(), rtol=1e-9, atol=1e-15
    )
    # Fewer rows than dimensions: of as many eigenvalues one is 0, as the mean is off.
    few = gauges.spectrum(skewed[:5])
    assert few.shape == (5,)
    assert few[-1] < 1e-12
    assert few.sum() == pytest.approx(1)


def test_the_spectrum_of_a_cross_polytope_is_flat_and_of_one_point_nothing():
    x = np.concatenate([np.eye(6), -np.eye(6)])
    np.testing.assert_allclose(gauges.spectrum(x), 1 / 6)
    same = np.tile(normal(1, 6), (9, 1))
    np.testing.assert_array_equal(gauges.spectrum(same), 0)


def test_a_cross_polytope_is_uniform_up_to_second_order():
    # ± e_k: mean 0 and covariance I/d, which is the uniform law's.
    d = 8
    x = np.concatenate([np.eye(d), -np.eye(d)])
    found = gauges.all_gauges(x, -x)
    assert found["wasserstein"] == pytest.approx(0, abs=1e-7)
    assert found["std"] == pytest.approx(1)
    assert found["alignment"] == pytest.approx(4)
    # 2d - 2 of the 2d - 1 others are orthogonal, one is opposite.
    want = math.log(((2 * d - 2) * math.exp(-4) + math.exp(-8)) / (2 * d - 1))
    assert found["uniformity"] == pytest.approx(want)
    # P_1(±1) = ±1 and P_2(0) = -1 / (d - 1): both orders' sums over all pairs are 0.
    assert gauges.mmd(x, (1.0,)) == pytest.approx(-1 / (2 * d - 1))
    assert gauges.mmd(x, (0.0, 1.0)) == pytest.approx(-1 / (2 * d - 1))


def test_a_collapse():
    found = gauges.all_gauges(np.tile(normal(1, 16), (50, 1)), np.ones((50, 16)))
    assert found["rankme"] == pytest.approx(1, rel=1e-4)
    assert found["uniformity"] == pytest.approx(0, abs=1e-12)
    assert found["wasserstein"] == pytest.approx(math.sqrt(2), rel=1e-6)
    assert found["std"] == pytest.approx(0, abs=1e-6)
    assert gauges.mmd(np.ones((50, 16)), (1.0, 40.0)) == pytest.approx(41)


def test_dead_features_are_a_number_too():
    found = gauges.all_gauges(np.zeros((30, 8), np.float32), np.zeros((30, 8)))
    assert found["rankme"] == found["std"] == found["alignment"] == 0
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("count", [24, 400])
def test_features_of_rank_r_have_at_most_that_rank(count):
    # By the pairs of few rows, and by those of the coordinates of many.
    x = normal(count, 5) @ np.linalg.qr(normal(40, 5))[0].T
    s = np.linalg.svd(x, compute_uv=False)[:5]
    p = s / s.sum()
    want = math.exp(-np.sum(p * np.log(p)))
    assert gauges.rankme(x) == pytest.approx(want, rel=2e-4)
    assert gauges.rankme(x) < 5.001


@pytest.mark.parametrize("smallest", [1e-2, 1e-6, 1e-9, 1e-16])
@pytest.mark.parametrize("shape", [(60, 150), (150, 60)])
def test_small_singular_values_cost_rankme_nothing_that_shows(shape, smallest):
    # The Gram matrix squares them: those below 1e-8 of the largest drown.
    n, d = shape
    s = np.geomspace(1, smallest, 60)
    u, v = np.linalg.qr(normal(n, 60))[0], np.linalg.qr(normal(d, 60, seed=1))[0]
    p = s / s.sum() + 1e-7
    want = math.exp(-np.sum(p * np.log(p)))
    assert gauges.rankme((u * s) @ v.T) == pytest.approx(want, rel=1e-6)


def test_samples_of_the_sphere_approach_its_values():
    d = 16
    found = gauges.all_gauges(unit(normal(4000, d)), normal(4000, d, seed=1))
    assert found["rankme"] == pytest.approx(d, rel=0.01)
    assert found["std"] == pytest.approx(1, abs=0.01)
    assert found["wasserstein"] < 0.06
    assert found["alignment"] == pytest.approx(2, abs=0.03)
    # E exp(-4 (1 - t)), t of density (1 - t²)^((d - 3) / 2).
    t = np.linspace(-1, 1, 20001)
    density = (1 - t**2) ** ((d - 3) / 2)
    want = math.log(np.sum(np.exp(4 * t - 4) * density) / np.sum(density))
    assert found["uniformity"] == pytest.approx(want, abs=0.005)
    assert gauges.mmd(normal(1000, d), (1.0, 40.0, 40.0)) == pytest.approx(0, abs=0.05)


# --- Independent float64 ------------------------------------------------------------


@pytest.mark.parametrize("rows", [200, 12, 9])
def test_each_agrees_with_its_definition(skewed, rows):
    skewed = skewed[:: 200 // rows][:rows]
    second = skewed + normal(rows, 12, seed=2)
    u, v = unit(skewed.astype(np.float64)), unit(second)
    n, d = u.shape
    pairs = [np.sum((u[i] - u[j]) ** 2) for i in range(n) for j in range(n) if i != j]
    covariance = np.cov(u.T, bias=True)
    root = np.linalg.svd(u - u.mean(0), compute_uv=False).sum() / math.sqrt(n)
    square = np.sum(u.mean(0) ** 2) + 1 + np.trace(covariance) - 2 * root / math.sqrt(d)
    p = np.linalg.svd(skewed.astype(np.float64), compute_uv=False)
    p = p / p.sum() + 1e-7
    want = {
        "rankme": np.exp(-np.sum(p * np.log(p))),
        "uniformity": np.log(np.mean(np.exp(-2 * np.array(pairs)))),
        "wasserstein": math.sqrt(square),
        "std": np.mean(u.std(axis=0)) * math.sqrt(d),
        "alignment": np.mean(np.sum((u - v) ** 2, axis=1)),
    }
    found = gauges.all_gauges(skewed, second)
    assert list(found) == gauge_names()
    for name, value in want.items():
        # Of N <= d centred rows one singular value is 0, and found as 1e-8.
        assert found[name] == pytest.approx(value, rel=1e-9 if n > d else 1e-7), name
    assert gauges.wasserstein(skewed) == found["wasserstein"]


def test_few_wide_features_need_no_matrix_of_coordinates():
    # 5,000 x 5,000 numbers would be 200 MB, and their eigenvalues a minute.
    x = normal(40, 5_000)
    tracemalloc.start()
    found = gauges.all_gauges(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    # Nearly orthogonal rows: one of N singular values goes with the centre.
    assert found["rankme"] == pytest.approx(40, rel=2e-3)
    root = 39 / math.sqrt(40 * 5_000)
    assert found["wasserstein"] == pytest.approx(math.sqrt(2 - 2 * root), rel=1e-3)


def test_the_mmd_is_that_of_the_loss(skewed):
    weights = (1.0, 40.0, 40.0)
    views = [jnp.asarray(skewed)] * 2
    _, terms = losses.sfrik(views, weights=weights, alignment_coeff=1.0, mmd_coeff=1.0)
    want = float(terms["mmd_offdiagonal"])
    assert gauges.mmd(skewed, weights) == pytest.approx(want, rel=1e-4)


# --- Invariances --------------------------------------------------------------------


def test_rotations_and_scales_change_none_but_the_deviations(skewed):
    rotation = np.linalg.qr(normal(12, 12, seed=3))[0]
    second = skewed + normal(200, 12, seed=2)
    found = gauges.all_gauges(skewed, second)
    turned = gauges.all_gauges(5 * skewed @ rotation, 0.1 * second @ rotation)
    for name in set(found) - {"std"}:
        assert turned[name] == pytest.approx(found[name], rel=1e-6), name


@pytest.mark.parametrize("rows", [200, 11])
def test_chunks_change_nothing(skewed, rows, monkeypatch):
    skewed = skewed[:rows]
    second = skewed + normal(rows, 12, seed=2)
    want = gauges.all_gauges(skewed, second)
    monkeypatch.setattr(checks, "CHUNK_BYTES", 4 * 12 * 7)
    monkeypatch.setattr(gauges, "PAIR_BLOCK", 32 if rows > 32 else 4)
    found = gauges.all_gauges(skewed, second)
    for name in gauge_names():
        near = 1e-12 if rows > 12 else 1e-7  # the singular value 0, as above
        assert found[name] == pytest.approx(want[name], rel=near), name


def test_uniformity_of_a_long_set_is_that_of_every_sth_row(skewed, monkeypatch):
    monkeypatch.setattr(gauges, "PAIR_ROWS", 67)
    monkeypatch.setattr(checks, "CHUNK_BYTES", 4 * 12 * 7)
    found = gauges.all_gauges(skewed)
    assert found["uniformity"] == gauges.uniformity(skewed[::3])
    assert "alignment" not in found


# --- Bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "says"),
    [
        (lambda x: gauges.all_gauges(x[:1]), "no pairs"),
        (lambda x: gauges.uniformity(x, t=0), "t=0"),
        (lambda x: gauges.uniformity(x, t=math.inf), "t=inf"),
        (lambda x: gauges.alignment(x, x[:9]), r"second \(9, 12\)"),
        (lambda x: gauges.rankme(x * np.nan), "NaN or infinity in 200 of 200"),
        (lambda x: gauges.wasserstein(x[0]), r"shape \(12,\)"),
        (lambda x: gauges.mmd(x[:1], (1.0,)), "no pairs"),
    ],
)
def test_bad_input_is_named(skewed, compute, says):
    with pytest.raises(ConfigError, match=says):
        compute(skewed)
