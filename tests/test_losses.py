"""Losses: the original's values, independent NumPy, invariances, 1 = 2 = 8 devices."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrik_jax import losses
from sfrik_jax.mesh import make_mesh, shard_batch

WEIGHTS = (1.0, 40.0, 40.0)
SFRIK = {"weights": WEIGHTS, "alignment_coeff": 4000.0, "mmd_coeff": 1.0}
AUH = {"alignment_coeff": 3000.0, "uniformity_coeff": 1.0, "scale": 2.5}
VICREG = {"invariance_coeff": 10.0, "variance_coeff": 10.0, "covariance_coeff": 1.0}
SETTINGS = {
    "sfrik": SFRIK,
    "simclr": {"temperature": 0.15},
    "auh": AUH,
    "vicreg": VICREG,
}
TWO = ("x", "y")
OBOW = ("x", "crop0", "crop1", "crop2", "crop3", "crop4")
CASES = {
    **{
        f"sfrik[{'-'.join(map(str, w))}]": ("sfrik", {**SFRIK, "weights": w}, TWO)
        for w in [
            (1.0, 0.0, 0.0),
            (0.0, 1.0, 0.0),
            (0.0, 0.0, 1.0),
            (1.0, 40.0, 0.0),
            WEIGHTS,
            (2.5, 7.0, 11.0),
        ]
    },
    "sfrik_mmd_only": ("sfrik", {**SFRIK, "alignment_coeff": 0.0}, TWO),
    "sfrik_align_only": ("sfrik", {**SFRIK, "mmd_coeff": 0.0}, TWO),
    **{name: (name, SETTINGS[name], TWO) for name in ("simclr", "auh", "vicreg")},
    **{
        f"sfrik_{layout}[reg_small={small}]": (
            "sfrik",
            {**SFRIK, "anchors": anchors, "regularize_all": small},
            OBOW,
        )
        for layout, anchors in [("obow", (0,)), ("swav", (0, 1))]
        for small in (True, False)
    },
}


def views(n=32, q=48, count=2, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, q))
    return [
        jnp.asarray(base + 0.5 * rng.standard_normal((n, q)), dtype)
        for _ in range(count)
    ]


def sphere(n, q, seed=0):
    z = np.random.default_rng(seed).standard_normal((n, q))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def loss_of(method, settings, mesh=None):
    return lambda v: losses.METHODS[method](v, **settings, mesh=mesh)[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_originals_value_and_gradient(reference, x64, case, dtype):
    data = reference("losses")
    method, settings, names = CASES[case]
    inputs = [jnp.asarray(data[name], dtype) for name in names]
    value, grads = jax.value_and_grad(loss_of(method, settings))(inputs)
    assert value.dtype == dtype
    # The original accumulates SimCLR and AUH in float32.
    exact = dtype == "float64" and method not in ("simclr", "auh")
    rtol_value, rtol = (1e-7, 1e-9) if exact else (1e-5, 1e-5)
    np.testing.assert_allclose(value, data[f"{case}.loss"], rtol=rtol_value)
    for i, grad in enumerate(grads):
        want = data[f"{case}.grad{i}"]
        assert np.linalg.norm(grad - want) <= rtol * np.linalg.norm(want)


def test_every_reference_case_is_covered(reference):
    stored = {k.removesuffix(".loss") for k in reference("losses") if "loss" in k}
    assert stored == set(CASES)


def test_mmd_is_the_mean_kernel_over_all_pairs(x64):
    z = sphere(20, 7)
    t = z @ z.T
    p2 = (7 * t**2 - 1) / 6
    p3 = ((7 + 2) * t**3 - 3 * t) / 6
    want = np.mean(1.5 * t + 4 * p2 + 3 * p3)
    np.testing.assert_allclose(losses.mmd(z, (1.5, 4.0, 3.0)), want, rtol=1e-12)


def test_the_first_order_is_the_squared_length_of_the_mean(x64):
    z = sphere(20, 7)
    want = np.sum(z.mean(axis=0) ** 2)
    np.testing.assert_allclose(losses.mmd(z, (1.0,)), want, rtol=1e-12)


def test_the_second_order_is_the_feature_covariances_distance_to_isotropy(x64):
    n, q = 20, 7
    z = sphere(n, q)
    want = q / (q - 1) * np.sum((z.T @ z / n - np.eye(q) / q) ** 2)
    np.testing.assert_allclose(losses.mmd(z, (0.0, 1.0)), want, rtol=1e-12)


def test_mmd_ignores_rotation(x64):
    z = sphere(32, 12)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))
    np.testing.assert_allclose(
        losses.mmd(z @ rotation, WEIGHTS), losses.mmd(z, WEIGHTS), rtol=1e-10
    )


def test_mmd_of_uniform_embeddings_is_its_diagonal():
    """The expectation over uniform samples is sum b_l / n; the mean of 40 is near."""
    n, values = 128, []
    for seed in range(40):
        z = jnp.asarray(sphere(n, 16, seed), jnp.float32)
        values.append(float(losses.mmd(z, WEIGHTS)))
    assert abs(np.mean(values) - 81 / n) < 4 * np.std(values) / np.sqrt(40)


def test_mmd_sees_a_collapse():
    z = jnp.ones((16, 8)) / np.sqrt(8)
    np.testing.assert_allclose(losses.mmd(z, WEIGHTS), 81, rtol=1e-5)


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 40.0), WEIGHTS, (1.0, 2.0, 0.0, 5.0)]
)
def test_own_derivative_is_autodiffs_after_normalisation(x64, weights):
    from sfrik_jax.kernels import TruncatedKernel

    def dense(x):
        z = losses.normalize(x)
        return jnp.mean(TruncatedKernel(weights)(z @ z.T, z.shape[1]))

    def own(x):
        return losses.mmd(losses.normalize(x), weights)

    x = views(dtype="float64")[0]
    np.testing.assert_allclose(own(x), dense(x), rtol=1e-10)
    np.testing.assert_allclose(
        jax.grad(own)(x), jax.grad(dense)(x), rtol=1e-8, atol=1e-14
    )


@pytest.mark.parametrize("method", SETTINGS)
def test_gradient_is_that_of_finite_differences(x64, method):
    x, y = views(n=6, q=5, dtype="float64")
    loss = loss_of(method, SETTINGS[method])
    grad = jax.grad(lambda x: loss([x, y]))(x)
    direction = np.random.default_rng(3).standard_normal(x.shape)
    step = 1e-6
    slope = (loss([x + step * direction, y]) - loss([x - step * direction, y])) / (
        2 * step
    )
    np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-6)


def test_derivative_by_the_weights_is_the_moment_of_each_order(x64):
    z = sphere(20, 7)
    grads = jax.grad(losses.mmd, argnums=1)(z, WEIGHTS)
    for order in range(3):
        unit = tuple(float(k == order) for k in range(3))
        np.testing.assert_allclose(grads[order], losses.mmd(z, unit), rtol=1e-10)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("method", SETTINGS)
def test_sharded_form_has_the_value_and_gradient_of_the_global_one(
    devices, method, x64
):
    inputs = views(dtype="float64")
    mesh = make_mesh(devices)
    want = jax.value_and_grad(loss_of(method, SETTINGS[method]))(inputs)
    sharded = [shard_batch(v, mesh) for v in inputs]
    got = jax.jit(jax.value_and_grad(loss_of(method, SETTINGS[method], mesh)))(sharded)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize(
    "layout", ["sfrik_obow[reg_small=True]", "sfrik_swav[reg_small=False]"]
)
def test_sharded_multi_crop_on_a_mesh_with_a_model_axis(x64, layout, model):
    _, settings, _ = CASES[layout]
    inputs = views(count=6, dtype="float64")
    mesh = make_mesh(data=8 // model, model=model)
    want = jax.value_and_grad(loss_of("sfrik", settings))(inputs)
    sharded = [shard_batch(v, mesh) for v in inputs]
    got = jax.jit(jax.value_and_grad(loss_of("sfrik", settings, mesh)))(sharded)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_sharded_mmd_with_traced_weights(devices):
    z = jnp.asarray(sphere(32, 24), jnp.float32)
    mesh = make_mesh(devices)
    want = jax.value_and_grad(losses.mmd)(z, WEIGHTS)
    step = jax.jit(jax.value_and_grad(losses.mmd), static_argnames="mesh")
    got = step(shard_batch(z, mesh), WEIGHTS, mesh=mesh)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)


def collectives(hlo: str) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that each kind of collective of an HLO text returns."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found: dict[str, list[tuple[int, ...]]] = {}
    for line in hlo.splitlines():
        if match := re.search(rf"= (.*?) ({kinds})(-start)?\(", line):
            for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                shape = tuple(int(d) for d in dims.split(",") if d)
                found.setdefault(match[2], []).append(shape)
    return found


@pytest.mark.parametrize("count", [2, 6])
def test_sfrik_gathers_once_and_its_gradient_needs_no_collective(count):
    mesh = make_mesh(8)
    sharded = [shard_batch(v, mesh) for v in views(count=count)]
    settings = {**SFRIK, "anchors": (0, 1)}
    step = jax.jit(jax.value_and_grad(loss_of("sfrik", settings, mesh)))
    found = collectives(step.lower(sharded).compile().as_text() or "")
    assert len(found.pop("all-gather")) == 1
    # The alignment of each pair of views, and one moment for each order.
    assert all(np.prod(shape) <= 3 for shape in found.pop("all-reduce"))
    assert not found


def test_bfloat16_gradient_is_within_half_a_percent_of_float64(x64):
    n, q = 256, 1024
    rng = np.random.default_rng(0)
    x = sphere(n, q) + 0.3 * rng.standard_normal(q) / np.sqrt(q)
    exact = jax.grad(lambda x: losses.mmd(losses.normalize(x), WEIGHTS))(x)

    def half(x):
        only_mmd = {**SFRIK, "alignment_coeff": 0.0}
        both = [x.astype(jnp.bfloat16)] * 2
        return losses.sfrik(both, **only_mmd)[0]

    grad = jax.grad(half)(jnp.asarray(x, jnp.float32))
    error = np.linalg.norm(grad - exact) / np.linalg.norm(exact)
    assert error < 5e-3


@pytest.mark.parametrize("method", SETTINGS)
def test_sums_are_float32_or_wider_and_finite_at_a_zero_embedding(method):
    x, y = (v.astype(jnp.bfloat16).at[0].set(0) for v in views())
    loss, terms = losses.METHODS[method]([x, y], **SETTINGS[method])
    grads = jax.grad(loss_of(method, SETTINGS[method]))([x, y])
    assert {v.dtype for v in (loss, *terms.values())} == {jnp.dtype("float32")}
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)


def test_offdiagonal_mmd_leaves_the_constant_out(x64):
    x, y = views(dtype="float64")
    _, terms = losses.sfrik([x, y], **SFRIK)
    n, want = 32, 0
    for v in (x, y):
        t = np.asarray(losses.normalize(v))
        full = float(losses.mmd(t, WEIGHTS))
        want += (full - 81 / n) * n / (n - 1) / 2
    np.testing.assert_allclose(terms["mmd_offdiagonal"], want, rtol=1e-9)


@pytest.mark.parametrize(
    ("shapes", "method"),
    [
        ([(4, 8)], "sfrik"),
        ([(4, 8)] * 3, "vicreg"),
        ([(1, 8)] * 2, "sfrik"),
        ([(4, 1)] * 2, "simclr"),
    ],
)
def test_impossible_views_are_refused(shapes, method):
    with pytest.raises(ValueError, match=r"views|at least 2"):
        losses.METHODS[method]([jnp.ones(s) for s in shapes], **SETTINGS[method])


def test_views_of_unequal_shape_are_refused():
    with pytest.raises(AssertionError):
        losses.sfrik([jnp.ones((4, 8)), jnp.ones((4, 9))], **SFRIK)
