"""LARS and the schedule are the original's; only kernels decay."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sfrik_jax import optim

NAMES = ["lars", "adamw", "sgd"]
PEAK = 1.2 * 2048 / 256


def build(name, learning_rate: Any = 0.1, weight_decay=0.01):
    return optim.build(
        learning_rate,
        name=name,
        weight_decay=weight_decay,
        momentum=0.9,
        trust_coefficient=1e-3,
    )


def parameters():
    return {
        "conv": {"kernel": jnp.full((3, 3, 2, 4), 2.0)},
        "linear": {"kernel": jnp.full((4, 5), -3.0), "bias": jnp.full(5, 1.5)},
        "bn": {"scale": jnp.full(4, 0.5), "bias": jnp.full(4, -1.0)},
    }


def after_steps(optimizer, params, *gradients) -> Any:
    """The parameters after a step with each of the gradients."""
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_lars_follows_the_originals_path(reference, x64):
    data = reference("lars")
    rates = jnp.asarray(data["lr"])
    optimizer = optim.lars(
        lambda count: rates[count],
        weight_decay=float(data["weight_decay"]),
        momentum=float(data["momentum"]),
        trust_coefficient=float(data["eta"]),
    )
    params: Any = [jnp.asarray(data[f"param{i}"]) for i in range(5)]
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for k in range(len(rates)):
        grads = [jnp.asarray(data[f"step{k}.grad{i}"]) for i in range(5)]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for i, param in enumerate(params):
            want = data[f"step{k}.param{i}"]
            np.testing.assert_allclose(param, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(zero):
    kernel = {"kernel": jnp.zeros((3, 2)) if zero == "weights" else jnp.ones((3, 2))}
    gradient = jax.tree.map(
        lambda w: jnp.full(w.shape, 4.0 if zero == "weights" else 0.0), kernel
    )
    optimizer = optim.lars(0.1, weight_decay=0.0)
    found = after_steps(optimizer, kernel, gradient)
    np.testing.assert_allclose(
        found["kernel"], kernel["kernel"] - 0.1 * gradient["kernel"], rtol=1e-6
    )


def test_without_a_gradient_lars_moves_kernels_alone_and_by_the_trust_coefficient():
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = after_steps(build("lars"), params, zeros)
    # ‖w‖ / ‖decay w‖ cancels the decay: the step is rate * 1e-3 * w.
    for layer in ("conv", "linear"):
        want = params[layer]["kernel"] * (1 - 0.1 * 1e-3)
        np.testing.assert_allclose(found[layer]["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(found["linear"]["bias"], params["linear"]["bias"])
    for leaf in ("scale", "bias"):
        np.testing.assert_array_equal(found["bn"][leaf], params["bn"][leaf])


@pytest.mark.parametrize(("name", "first"), [("adamw", 1.0), ("sgd", 7.0)])
def test_a_step_decays_kernels_alone(name, first):
    """`first`: what the optimiser makes of a first gradient of 7."""
    params = parameters()
    sevens = jax.tree.map(lambda w: jnp.full(w.shape, 7.0), params)
    found = after_steps(build(name), params, sevens)

    def want(w):
        decay = 0.01 * w if w.ndim > 1 else 0 * w
        return w - 0.1 * (first + decay)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5),
        found,
        jax.tree.map(want, params),
    )


def test_sgd_sums_its_gradients_with_momentum():
    params = {"bias": jnp.zeros(3)}
    ones = {"bias": jnp.ones(3)}
    found = after_steps(build("sgd"), params, ones, ones)
    np.testing.assert_allclose(found["bias"], -0.1 * (1 + 1.9), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_the_schedules_of_the_steps_done(name):
    params = {"bias": jnp.zeros(3)}
    ones = {"bias": jnp.ones(3)}
    optimizer = build(name, lambda count: jnp.where(count == 2, 0.5, 0.0))
    zeros_then_one = [after_steps(optimizer, params, *[ones] * k) for k in (2, 3)]
    np.testing.assert_array_equal(zeros_then_one[0]["bias"], 0)
    assert (zeros_then_one[1]["bias"] < -0.1).all()


def test_several_axes_make_a_kernel():
    mask = optim.has_several_axes(parameters())
    assert mask == {
        "conv": {"kernel": True},
        "linear": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
    }


def test_an_unknown_optimiser_is_refused_with_the_choice():
    with pytest.raises(ValueError, match=r"'adam'.*lars, adamw, sgd"):
        build("adam")


# --- The schedule -------------------------------------------------------------------


def schedule_of(data):
    return optim.warmup_cosine(
        base_lr=float(data["base_lr"]),
        batch_size=int(data["batch_size"]),
        epochs=int(data["epochs"]),
        steps_per_epoch=int(data["steps_per_epoch"]),
    )


def test_the_schedule_is_the_originals(reference):
    data = reference("schedule")
    schedule = schedule_of(data)
    found = [schedule(int(k)) for k in data["step"]]
    np.testing.assert_allclose(found, data["lr"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_traced_step_has_the_rate_of_a_python_integer(reference, dtype):
    data = reference("schedule")
    schedule = schedule_of(data)
    want = [schedule(int(k)) for k in data["step"]]
    with jax.enable_x64(dtype == "float64"):
        steps = jnp.asarray(data["step"], jnp.int32)
        found = jax.jit(jax.vmap(schedule))(steps)
        assert found.dtype == dtype
    rtol = 1e-12 if dtype == "float64" else 1e-6
    # The cosine of float32 loses digits where the rate is small beside the peak.
    atol = 1e-6 * PEAK if dtype == "float32" else 1e-15
    np.testing.assert_allclose(found, want, rtol=rtol, atol=atol)


def test_the_rate_rises_from_zero_to_the_peak_and_ends_at_a_thousandth_of_it():
    schedule = optim.warmup_cosine(
        base_lr=1.2, batch_size=2048, epochs=100, steps_per_epoch=50
    )
    assert schedule(0) == 0
    np.testing.assert_allclose(schedule(250), PEAK / 2, rtol=1e-12)
    np.testing.assert_allclose(schedule(500), PEAK, rtol=1e-12)
    assert PEAK > schedule(501) > schedule(502)
    np.testing.assert_allclose(schedule(4999), PEAK / 1000, rtol=1e-3)
    np.testing.assert_allclose(schedule(5000), PEAK / 1000, rtol=1e-12)


def test_without_warm_up_the_first_step_has_the_peak():
    schedule = optim.warmup_cosine(
        base_lr=1.2, batch_size=2048, epochs=2, steps_per_epoch=4, warmup_epochs=0
    )
    rates = np.array([schedule(k) for k in range(8)])
    cosine = (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates, PEAK * (cosine + 1e-3 * (1 - cosine)), rtol=1e-12)


def test_half_an_epoch_of_warm_up_is_half_its_steps():
    schedule = optim.warmup_cosine(
        base_lr=1.2, batch_size=2048, epochs=2, steps_per_epoch=10, warmup_epochs=0.5
    )
    np.testing.assert_allclose(schedule(4), PEAK * 4 / 5, rtol=1e-12)
    np.testing.assert_allclose(schedule(5), PEAK, rtol=1e-12)
