"""Kernels beyond the paper's, in training: L = 5 … 8, AUH as a member, each preset."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernel_presets import polynomials
from test_pretrain import ROOT, SMALL

from sfrik_jax import config as configs
from sfrik_jax import kernel_presets as presets
from sfrik_jax import losses, metrics, pretrain
from sfrik_jax.data.views import build
from sfrik_jax.mesh import make_mesh, shard_batch
from sfrik_jax.step import make_loss

ALL = (1.0, 40.0, 40.0, 3.0, 0.0, 7.0, 0.5, 2.0)
N, Q = 24, 10
NAMES = ["rbf(2.5)", "exponential(0.2, order=5)", "heat(0.05)", "bandlimited(4)"]


def rows(n=N, q=Q, seed=0):
    """Off centre, of unlike length, not normalised."""
    rng = np.random.default_rng(seed)
    return 0.3 + rng.standard_normal((n, q)) * rng.uniform(0.5, 2, (n, 1))


def slopes(t, order, dim):
    """P_0' … P_order', by the differentiated recurrence."""
    polys, found = polynomials(t, order, dim), [np.zeros_like(t), np.ones_like(t)]
    for k in range(1, order):
        up = (2 * k + dim - 2) * (polys[k] + t * found[k]) - k * found[k - 1]
        found.append(up / (k + dim - 2))
    return np.stack(found[: order + 1])


def by_formula(x, weights):
    """Mean of K over all pairs, and the gradient by the rows before normalisation."""
    n, q = x.shape
    length = np.linalg.norm(x, axis=1, keepdims=True)
    z = x / length
    t, order = z @ z.T, len(weights)
    value = np.tensordot(weights, polynomials(t, order, q)[1:], 1).mean()
    g = 2 / n**2 * np.tensordot(weights, slopes(t, order, q)[1:], 1) @ z
    return value, (g - np.sum(g * z, axis=1, keepdims=True) * z) / length


def mmd(weights, mesh=None):
    """Value and gradient of the rows before normalisation."""
    return jax.jit(
        jax.value_and_grad(lambda x: losses.mmd(losses.normalize(x), weights, mesh))
    )


@pytest.mark.parametrize("order", range(1, 9))
def test_orders_up_to_eight_have_the_formulas_value_and_gradient(x64, order):
    x = rows()
    got = mmd(ALL[:order])(jnp.asarray(x))
    want = by_formula(x, ALL[:order])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("order", range(1, 9))
def test_orders_up_to_eight_are_those_of_one_device_on_eight(x64, order):
    x, mesh = rows(), make_mesh(8)
    got = mmd(ALL[:order], mesh)(shard_batch(x, mesh))
    want = by_formula(x, ALL[:order])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("order", [5, 8])
def test_high_orders_in_bfloat16_are_within_half_a_percent(order):
    x = np.asarray(jnp.asarray(rows(64, 48), jnp.bfloat16), np.float64)
    settings: dict[str, Any] = {
        "weights": ALL[:order],
        "alignment_coeff": 0.0,
        "mmd_coeff": 1.0,
    }

    def loss(x):
        return losses.sfrik([x, x], **settings)[0]

    value, grad = jax.value_and_grad(loss)(jnp.asarray(x, jnp.bfloat16))
    want, want_grad = by_formula(x, ALL[:order])
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=2e-3)
    error = np.linalg.norm(np.asarray(grad, np.float64) - want_grad)
    assert error < 5e-3 * np.linalg.norm(want_grad)


# --- One family -----------------------------------------------------------------------


@pytest.mark.parametrize("q", [3, 10])
@pytest.mark.parametrize("scale", [0.5, 2.5])
def test_auhs_uniformity_is_the_logarithm_of_a_sum_over_orders(x64, q, scale):
    """log(b_0 + sum_l b_l m_l), m_l of the pairs i != j, b of rbf(s)."""
    x, order, want = [rows(q=q), rows(q=q, seed=1)], 40, 0.0
    series = presets.series(f"rbf({scale})", q, order)
    for each in x:
        z = each / np.linalg.norm(each, axis=1, keepdims=True)
        polys = polynomials(z @ z.T, order, q)
        moments = polys[:, ~np.eye(N, dtype=bool)].mean(axis=1)
        assert moments[0] == 1
        want += np.log(series @ moments) / 2
    views = [jnp.asarray(each) for each in x]
    settings: dict[str, Any] = {
        "alignment_coeff": 0.0,
        "uniformity_coeff": 1.0,
        "scale": scale,
    }
    _, terms = losses.auh(views, **settings)
    np.testing.assert_allclose(terms["uniformity"], want, rtol=1e-9)


@pytest.mark.parametrize("q", [3, 10])
def test_auhs_gradient_is_that_of_an_mmd_divided_by_its_value(x64, q):
    """grad log M = grad M / M, with M = b_0 + sum_l b_l m_l of rbf(s)."""
    x, order = rows(q=q), 30
    constant, *weights = presets.series("rbf(2.5)", q, order)
    # The pairs i = j add a constant, (sum b_l)/n, and no gradient.
    value, grad = mmd(tuple(float(b) for b in weights))(jnp.asarray(x))
    whole = constant + (N * value - sum(weights)) / (N - 1)
    settings: dict[str, Any] = {
        "alignment_coeff": 0.0,
        "uniformity_coeff": 1.0,
        "scale": 2.5,
    }
    other = jnp.asarray(rows(q=q, seed=1))
    got = jax.grad(lambda x: losses.auh([x, other], **settings)[0])(jnp.asarray(x))
    want = N / (N - 1) * grad / whole / 2  # the mean of two views
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-13)


# --- Training -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_preset_has_a_loss_that_falls_along_its_gradient(name):
    mesh = make_mesh(8)
    settings: dict[str, Any] = {
        "weights": name,
        "alignment_coeff": 0.0,
        "mmd_coeff": 1.0,
    }
    settings = presets.resolved(settings, Q) | {"regularize_all": True}
    views = build(32, **configs.default().augment)
    loss = make_loss(views, method="sfrik", settings=settings, mesh=mesh)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    x = [shard_batch(rows(seed=seed).astype(np.float32), mesh) for seed in (0, 1)]
    (before, terms), grads = step(x)
    squares = sum(float(jnp.vdot(g, g)) for g in grads)
    assert squares > 0
    rate = 0.05 * float(before) / squares
    (after, _), _ = step([v - rate * g for v, g in zip(x, grads, strict=True)])
    assert 0.9 * before < after < 0.97 * before
    order = len(settings["weights"])
    assert f"mmd_{order}_offdiagonal" in terms
    assert f"mmd_{order + 1}_offdiagonal" not in terms


def test_a_run_with_a_preset_trains_with_its_weights(tmp_path, data_dir):
    overrides = [
        *SMALL,
        f"data.path={data_dir}",
        "data.train_split=train[:32]",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "loss.weights=rbf(2.5, order=4)",
    ]
    config = configs.load(ROOT / "configs" / "quickstart.py", overrides)
    pretrain.pretrain(config, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["loss"]["weights"] == "rbf(2.5, order=4)"
    found = [r for r in metrics.read_rows(tmp_path / "run") if "train/loss" in r]
    assert [row["step"] for row in found] == [1, 2]
    weights = presets.weights("rbf(2.5, order=4)", 16)
    for row in found:
        terms = [row[f"train/mmd_{order}_offdiagonal"] for order in range(1, 5)]
        want = np.dot(weights, terms)
        np.testing.assert_allclose(row["train/mmd_offdiagonal"], want, rtol=1e-4)
