"""Neighbours: independent float64 NumPy, their optima, collapses, 1 = 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from test_sharded_step import RECIPE, Run

from sfrik_jax import losses, passes
from sfrik_jax.mesh import make_mesh, shard_batch
from sfrik_jax.neighbours import slices, spectra
from sfrik_jax.settings import LOSS_DEFAULTS
from sfrik_jax.step import make_loss

FORMER = ("sfrik", "simclr", "auh", "vicreg")
NEIGHBOURS = [method for method in LOSS_DEFAULTS if method not in FORMER]
UNIT = ("sphere_slices", "wasserstein", "vne", "coding_rate", "mmcr")
# Of like size in all terms, so that each shows in value and gradient.
SETTINGS = {
    "sigreg": {"alignment_coeff": 0.7, "sigreg_coeff": 0.4, "slices": 5},
    "sphere_slices": {"alignment_coeff": 9.0, "sphere_slices_coeff": 0.4, "slices": 5},
    "gaussian_mmd": {
        "alignment_coeff": 0.1,
        "gaussian_mmd_coeff": 3.0,
        "bandwidth": 0.8,
    },
    "wasserstein": {"alignment_coeff": 9.0, "wasserstein_coeff": 2.0},
    "vne": {"alignment_coeff": 9.0, "vne_coeff": 0.5},
    "coding_rate": {
        "alignment_coeff": 9.0,
        "coding_rate_coeff": 0.1,
        "distortion": 0.3,
    },
    "mmcr": {"mmcr_coeff": 0.5, "local_coeff": 0.6},
    "barlow_twins": {"invariance_coeff": 0.5, "redundancy_coeff": 0.1},
}
SHAPES = [(16, 24), (32, 12)]
KEY = 5


def drawn(method):
    return {"key": jax.random.key(KEY)} if method in losses.DRAWING else {}


def loss_of(method, mesh=None, **changes):
    settings = SETTINGS[method] | changes | drawn(method)
    return lambda v: losses.METHODS[method](v, **settings, mesh=mesh)


def views(n, q, *, seed=0, dtype="float64", noise=0.5, scale=1.0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, q))
    both = [base + noise * rng.standard_normal((n, q)) for _ in range(2)]
    return [jnp.asarray(scale * v, dtype) for v in both]


def sphere(n, q, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, q)))


# --- The formulas in NumPy ------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nuclear(x):
    return np.linalg.svd(x, compute_uv=False).sum()


def sliced(x, phi):
    """n ∫ |phi_n - phi|² exp(-t²/2) dt by the trapezoid rule on the whole interval."""
    q, t = x.shape[1], np.linspace(-5, 5, 17)
    w = slices.directions(jax.random.key(KEY), q, 5, jnp.dtype("float64"))
    empirical = np.exp(1j * t[:, None, None] * (x @ np.asarray(w))).mean(axis=1)
    gap = np.abs(empirical - phi(t)[:, None]) ** 2 * np.exp(-(t**2) / 2)[:, None]
    return len(x) * np.trapezoid(gap, t, axis=0).mean()


def bessel(q):
    """The characteristic function of sqrt(q) u_1 in closed form."""
    order = q / 2 - 1

    def phi(t):
        x = np.where(t == 0, 1, np.sqrt(q) * np.abs(t))
        log = scipy.special.gammaln(q / 2) - order * np.log(x / 2)
        return np.where(t == 0, 1, np.exp(log) * scipy.special.jv(order, x))

    return phi


def of_gaussian(x, bandwidth=0.8):
    n, q = x.shape
    s2 = bandwidth * q
    pairs = [
        np.exp(-np.sum((x[i] - x[j]) ** 2) / (2 * s2))
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    crossed = (s2 / (s2 + 1)) ** (q / 2) * np.exp(-np.sum(x**2, 1) / (2 * (s2 + 1)))
    return np.mean(pairs) - 2 * crossed.mean() + (s2 / (s2 + 2)) ** (q / 2)


def of_wasserstein(u):
    n, q = u.shape
    mu, s = u.mean(axis=0), np.cov(u.T, bias=True)
    # By singular values: eigenvalues of 1e-17 would have roots of 3e-9.
    root = nuclear(u - mu) / np.sqrt(n)
    return mu @ mu + 1 + np.trace(s) - 2 / np.sqrt(q) * root


def of_vne(u):
    p = np.linalg.svd(u, compute_uv=False) ** 2 / len(u)
    p = p[p > 1e-14]
    return -np.sum(p * np.log(p))


def of_rate(u, distortion=0.3):
    n, q = u.shape
    return np.linalg.slogdet(np.eye(q) + q / (n * distortion) * u.T @ u)[1] / 2


def numpy_form(method, x, y):
    at = SETTINGS[method]
    a, b = (unit(x), unit(y)) if method in UNIT else (x, y)
    align = np.mean((a - b) ** 2)
    if method == "mmcr":
        local = np.mean([nuclear(np.stack(rows)) for rows in zip(a, b, strict=True)])
        return at["local_coeff"] * local - at["mmcr_coeff"] * nuclear((a + b) / 2)
    if method == "barlow_twins":
        a, b = ((v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) for v in (x, y))
        c = a.T @ b / len(x)
        on, off = np.sum((1 - np.diag(c)) ** 2), np.sum((c - np.diag(np.diag(c))) ** 2)
        return at["invariance_coeff"] * on + at["redundancy_coeff"] * off
    part, sign = {
        "sigreg": (lambda v: sliced(v, lambda t: np.exp(-(t**2) / 2)), 1),
        "sphere_slices": (
            lambda v: sliced(np.sqrt(v.shape[1]) * v, bessel(v.shape[1])),
            1,
        ),
        "gaussian_mmd": (of_gaussian, 1),
        "wasserstein": (of_wasserstein, 1),
        "vne": (of_vne, -1),
        "coding_rate": (of_rate, -1),
    }[method]
    both = sign * (part(a) + part(b)) / 2
    return at["alignment_coeff"] * align + at[f"{method}_coeff"] * both


# --- Value and gradient ---------------------------------------------------------------


def test_every_neighbour_is_tested():
    assert set(NEIGHBOURS) == set(SETTINGS) == set(losses.METHODS) - set(FORMER)
    assert all(SETTINGS[m].keys() == LOSS_DEFAULTS[m].keys() for m in NEIGHBOURS)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("n", "q"), SHAPES)
@pytest.mark.parametrize("method", NEIGHBOURS)
def test_value_and_gradient_are_those_of_the_formulas(x64, method, n, q, devices):
    """The gradient by central differences of the NumPy form along four directions."""
    pair = views(n, q)
    plain = [np.asarray(v) for v in pair]
    mesh = None if devices == 1 else make_mesh(devices)
    given = pair if mesh is None else [shard_batch(v, mesh) for v in pair]
    call = jax.jit(jax.value_and_grad(loss_of(method, mesh), has_aux=True))
    (value, terms), grads = call(given)
    assert value.dtype == grads[0].dtype == jnp.float64
    assert "alignment" in terms
    assert all(term.shape == () for term in terms.values())
    np.testing.assert_allclose(value, numpy_form(method, *plain), rtol=1e-9)
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(4):
        along = rng.standard_normal((2, n, q))
        ends = [
            numpy_form(method, *(np.stack(plain) + sign * step * along))
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        got = sum(np.sum(g * d) for g, d in zip(grads, along, strict=True))
        np.testing.assert_allclose(got, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("n", "q"), SHAPES)
@pytest.mark.parametrize("method", NEIGHBOURS)
def test_float32_is_near_float64(x64, method, n, q):
    call = jax.value_and_grad(lambda v: loss_of(method)(v)[0])
    want, exact = call(views(n, q))
    value, grads = call(views(n, q, dtype="float32"))
    assert value.dtype == grads[0].dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
    for got, grad in zip(grads, exact, strict=True):
        assert np.linalg.norm(got - grad) <= 1e-3 * np.linalg.norm(grad)


@pytest.mark.parametrize("method", NEIGHBOURS)
def test_bfloat16_rows_and_a_row_of_zeros_have_float32_sums(method):
    pair = [v.astype(jnp.bfloat16).at[0].set(0) for v in views(16, 24, dtype="float32")]
    (value, terms), grads = jax.value_and_grad(loss_of(method), has_aux=True)(pair)
    assert {v.dtype for v in (value, *terms.values())} == {jnp.dtype("float32")}
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)
    wide = loss_of(method)([v.astype(jnp.float32) for v in pair])[0]
    np.testing.assert_allclose(value, wide, rtol=2e-2)


@pytest.mark.parametrize(
    "rows", ["equal rows", "equal views", "orthogonal rows", "two points"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", NEIGHBOURS)
def test_the_gradient_is_finite_at_equal_eigenvalues(x64, method, dtype, rows):
    n, q = 8, 12
    first = {
        "equal rows": np.tile(np.arange(1.0, q + 1), (n, 1)),
        "equal views": np.random.default_rng(0).standard_normal((n, q)),
        "orthogonal rows": np.eye(n, q),
        "two points": np.eye(2, q)[np.arange(n) % 2],
    }[rows]
    pair = [jnp.asarray(first, dtype)] * 2
    (value, _), grads = jax.value_and_grad(loss_of(method), has_aux=True)(pair)
    assert np.isfinite(value)
    for grad in grads:
        assert np.isfinite(grad).all()
        # Rows have length 1 to 30: nothing here is steep.
        assert np.abs(grad).max() < 10


@pytest.mark.parametrize("shapes", [[(8, 4)], [(1, 4)] * 2, [(4, 1)] * 2])
@pytest.mark.parametrize("method", NEIGHBOURS)
def test_impossible_views_are_refused(method, shapes):
    with pytest.raises(ValueError, match=r"views|at least 2"):
        loss_of(method)([jnp.ones(shape) for shape in shapes])


def test_barlow_twins_takes_two_views_and_others_take_more(x64):
    three = [*views(8, 12), views(8, 12, seed=3)[0]]
    with pytest.raises(ValueError, match="3 views"):
        loss_of("barlow_twins")(three)
    _, terms = loss_of("vne")(three)
    u = [unit(np.asarray(v)) for v in three]
    np.testing.assert_allclose(terms["vne"], np.mean([of_vne(v) for v in u]))
    pairs = [np.mean((u[a] - u[b]) ** 2) for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(terms["alignment"], np.mean(pairs))


# --- Facts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["gaussian_mmd", "wasserstein", "vne", "coding_rate", "mmcr"]
)
def test_rotation_changes_nothing(x64, method):
    turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((24, 24)))
    pair = views(16, 24)
    want = loss_of(method)(pair)[0]
    np.testing.assert_allclose(loss_of(method)([v @ turn for v in pair])[0], want)


@pytest.mark.parametrize("method", UNIT)
def test_lengths_change_nothing_where_directions_count(x64, method):
    pair = views(16, 24)
    want = loss_of(method)(pair)[0]
    np.testing.assert_allclose(loss_of(method)([3 * v for v in pair])[0], want)


@pytest.mark.parametrize("q", [2, 3, 8, 64, 200])
def test_the_spheres_characteristic_function_is_bessels(q):
    t = np.linspace(0.25, 5, 20)
    want = bessel(q)(t)
    np.testing.assert_allclose(slices.sphere_characteristic(q, t), want, atol=1e-9)


def test_the_spheres_characteristic_function_tends_to_the_normal_one():
    t = np.linspace(0.25, 5, 20)
    found = slices.sphere_characteristic(32_768, t)
    np.testing.assert_allclose(found, np.exp(-(t**2) / 2), atol=1e-4)


def test_normal_rows_have_the_statistic_that_sigreg_expects():
    """sqrt(2π) (1 - 1/sqrt(3)) for any n, and much more for other laws."""
    want, found = np.sqrt(2 * np.pi) * (1 - 1 / np.sqrt(3)), []
    for seed in range(40):
        z = np.random.default_rng(seed).standard_normal((64, 16))
        terms = loss_of("sigreg", slices=16)([jnp.asarray(z, "float32")] * 2)[1]
        found.append(float(terms["sigreg"]))
    assert abs(np.mean(found) - want) < 4 * np.std(found) / np.sqrt(40)
    for other in (2 * z, z + 1, np.sign(z[:, :1]) * np.ones(16)):
        terms = loss_of("sigreg", slices=16)([jnp.asarray(other, "float32")] * 2)[1]
        assert terms["sigreg"] > 2 * want


def test_uniform_rows_are_near_the_least_sphere_slices_and_others_are_not():
    """Of uniform rows ∫ (1 - phi²) exp(-t²/2) dt is expected, for any n."""
    q, found = 6, []
    t = np.linspace(-5, 5, 17)
    want = np.trapezoid((1 - bessel(q)(t) ** 2) * np.exp(-(t**2) / 2), t)
    for seed in range(40):
        z = jnp.asarray(sphere(64, q, seed), jnp.float32)
        terms = loss_of("sphere_slices", slices=16)([z, z])[1]
        found.append(float(terms["sphere_slices"]))
    assert abs(np.mean(found) - want) < 4 * np.std(found) / np.sqrt(40)
    for other in (z + 0.3, z.at[:, 3:].set(0)):
        terms = loss_of("sphere_slices", slices=16)([other, other])[1]
        assert terms["sphere_slices"] > 2 * want


def test_normal_rows_have_no_gaussian_mmd_in_expectation():
    found = []
    for seed in range(40):
        z = jnp.asarray(np.random.default_rng(seed).standard_normal((64, 16)))
        found.append(float(loss_of("gaussian_mmd")([z, z])[1]["gaussian_mmd"]))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)
    for other in (1.5 * z, z + 0.5, 0 * z):
        terms = loss_of("gaussian_mmd")([other, other])[1]
        assert terms["gaussian_mmd"] > 10 * max(found)


def test_wasserstein_is_the_evaluators_gauge_squared(x64):
    from sfrik_jax.evaluators import gauges

    z = views(32, 12)[0]
    want = gauges.wasserstein(np.asarray(z)) ** 2
    terms = loss_of("wasserstein")([z, z])[1]
    np.testing.assert_allclose(terms["wasserstein"], want, rtol=1e-9)
    # All 2q points ± e_k have the mean and covariance of the uniform law.
    cross = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])
    terms = loss_of("wasserstein")([cross, cross])[1]
    np.testing.assert_allclose(terms["wasserstein"], 0, atol=1e-12)
    same = jnp.ones((8, 5))
    terms = loss_of("wasserstein")([same, same])[1]
    np.testing.assert_allclose(terms["wasserstein"], 2, rtol=1e-7)


@pytest.mark.parametrize(("n", "q"), [(6, 10), (10, 10)])
def test_orthogonal_rows_have_the_most_entropy_rate_and_capacity(x64, n, q):
    turn, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((q, q)))
    best = jnp.asarray(turn[:n])
    limits = {
        "vne": np.log(n),
        "coding_rate": n / 2 * np.log(1 + q / (n * 0.3)),
        "mmcr": n,
    }
    for method, limit in limits.items():
        np.testing.assert_allclose(loss_of(method)([best, best])[1][method], limit)
        for seed in range(5):
            z = jnp.asarray(sphere(n, q, seed))
            assert loss_of(method)([z, z])[1][method] < limit


def test_a_collapse_has_the_least_entropy_rate_and_capacity(x64):
    n, q = 6, 10
    same = jnp.ones((n, q))
    found = {m: float(loss_of(m)([same, same])[1][m]) for m in ("vne", "mmcr")}
    np.testing.assert_allclose(found["vne"], 0, atol=1e-12)
    np.testing.assert_allclose(found["mmcr"], np.sqrt(n))
    rate = loss_of("coding_rate")([same, same])[1]["coding_rate"]
    np.testing.assert_allclose(rate, np.log(1 + q / 0.3) / 2)


def test_mmcr_is_larger_for_aligned_views(x64):
    x, y = views(16, 24)
    assert loss_of("mmcr")([x, x])[1]["mmcr"] > loss_of("mmcr")([x, y])[1]["mmcr"]
    assert "local" not in loss_of("mmcr", local_coeff=0.0)([x, y])[1]
    # Two equal unit rows have the singular values sqrt(2) and 0, orthogonal ones 1, 1.
    np.testing.assert_allclose(loss_of("mmcr")([x, x])[1]["local"], np.sqrt(2))
    apart = [jnp.eye(4, 8), jnp.eye(4, 8)[:, ::-1]]
    np.testing.assert_allclose(loss_of("mmcr")(apart)[1]["local"], 2)


def test_barlow_twins_of_white_equal_views_is_0(x64):
    n, q = 32, 6
    x = np.random.default_rng(0).standard_normal((n, q))
    white, _ = np.linalg.qr(x - x.mean(axis=0))
    white = jnp.asarray(100 * white)
    loss, terms = loss_of("barlow_twins")([white, white])
    np.testing.assert_allclose(loss, 0, atol=1e-10)
    # Turned around, every dimension has the correlation -1: (1 + 1)² q.
    terms = loss_of("barlow_twins")([white, -white])[1]
    np.testing.assert_allclose(terms["invariance"], 4 * q, rtol=1e-5)
    np.testing.assert_allclose(terms["redundancy"], 0, atol=1e-10)


def test_a_spectral_sum_has_the_derivative_of_its_closed_form(x64):
    """tr G^(1/2) at a multiple of the identity, where all eigenvalues are equal."""
    grad = jax.grad(spectra.spectral_sum)(4 * jnp.eye(5), spectra.ROOT)
    np.testing.assert_allclose(grad, np.eye(5) / 4, atol=1e-12)
    grad = jax.grad(spectra.spectral_sum)(jnp.eye(5) / 5, spectra.ENTROPY)
    np.testing.assert_allclose(grad, (np.log(5) - 1) * np.eye(5), atol=1e-12)


# --- Slices of a step -----------------------------------------------------------------


def test_a_step_has_its_slices_by_seed_and_number():
    z = views(16, 24, dtype="float32")

    def value(step, seed=0, **where):
        settings = {"method": "sigreg", "settings": SETTINGS["sigreg"], "seed": seed}
        return float(make_loss(RECIPE, **settings, **where)(z, jnp.int32(step))[0])

    first = value(1, mesh=None)
    assert value(1, mesh=None) == first
    assert len({first, value(2, mesh=None), value(1, seed=1, mesh=None)}) == 3
    np.testing.assert_allclose(value(1, mesh=make_mesh(8)), first, rtol=1e-5)


class Drawing(Run):
    """Steps with a loss that draws."""

    def __init__(self, data=1, **settings):
        drawing = {
            "method": "sphere_slices",
            "loss_settings": SETTINGS["sphere_slices"],
        }
        super().__init__(data=data, **drawing, **settings)

    def values(self, state, steps):
        found = []
        for _ in range(steps):
            state, scalars = self.step(state, self.batch())
            found.append(float(scalars["train/loss"]))
        return state, found


def test_steps_have_the_same_slices_on_one_and_eight_devices_and_after_a_resume(x64):
    one, eight = Drawing(1), Drawing(8)
    _, want = one.values(one.first(), 3)
    np.testing.assert_allclose(eight.values(eight.first(), 3)[1], want, rtol=1e-7)
    state, _ = one.values(one.first(), 2)
    stored = jax.device_get(state)  # what a checkpoint has
    out = jax.tree.map(lambda leaf: leaf.sharding, eight.state)
    _, third = eight.values(jax.device_put(stored, out), 1)
    np.testing.assert_allclose(third, want[2:], rtol=1e-7)
    # Another step's slices give another value.
    other = stored._replace(step=stored.step + 5)
    _, fourth = eight.values(jax.device_put(other, out), 1)
    assert abs(fourth[0] / want[2] - 1) > 1e-5


@pytest.mark.parametrize(
    "settings",
    [{"columns": "data"}, {"micro_batches": 4}, {"deterministic_reduce": 4}],
    ids=["columns", "parts", "fixed order"],
)
def test_every_pass_tells_the_loss_its_step(x64, settings):
    run = Drawing(2, **settings)
    state, _ = run.values(run.first(), 1)
    found = jax.jit(run.learner.__call__)(state, run.batch())
    z = [jnp.asarray(jax.device_get(v)) for v in found.z]
    at = {"method": "sphere_slices", "settings": SETTINGS["sphere_slices"]}
    want, _ = make_loss(RECIPE, **at, mesh=None)(z, state.step + 1)
    np.testing.assert_allclose(found.value, want, rtol=1e-9)


def test_only_the_batch_of_a_drawing_loss_has_a_step():
    assert passes.step_of({"epoch": 0}) == ()
    assert not Run(dtype="float32").learner.draws
