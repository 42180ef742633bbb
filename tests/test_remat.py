"""What is computed again changes what is stored, and no result."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import random_variables

from sfrik_jax.models import resnet
from sfrik_jax.models.norm import BatchNorm, relu
from sfrik_jax.settings import CHOICES


def test_the_policies_are_those_of_the_settings():
    assert CHOICES["step.remat"] == resnet.REMAT


def training(model, stats, images):
    """The value of a loss of the features with its gradient, and new statistics."""

    def loss(params, images):
        features, changed = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            views=2,
            mutable=["batch_stats"],
        )
        weights = jnp.cos(jnp.arange(features.size, dtype=features.dtype))
        return jnp.sum(weights.reshape(features.shape) * features**2), changed

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_values_gradients_and_statistics_do_not_change(x64, stem):
    kind = {"width": 4, "stem": stem, "dtype": jnp.dtype(jnp.float64)}
    images = jnp.asarray(np.random.default_rng(0).standard_normal((6, 16, 16, 3)))
    found = {}
    for remat in resnet.REMAT:
        model = resnet.ResNet((2, 1), True, remat=remat, **kind)
        init = partial(model.init, train=False)
        variables = random_variables(jax.eval_shape(init, jax.random.key(0), images))
        run = jax.jit(training(model, variables["batch_stats"], images))
        found[remat] = run(variables["params"], images)
    for remat in ("convolutions", "blocks"):
        chex.assert_trees_all_close(found[remat], found["none"], rtol=1e-10, atol=1e-12)


def test_a_model_starts_the_same_with_every_policy():
    images = jnp.zeros((2, 8, 8, 3))
    starts = [
        jax.jit(resnet.ResNet((1, 1), False, width=4, stem="small", remat=remat).init)(
            jax.random.key(1), images
        )
        for remat in resnet.REMAT
    ]
    for start in starts[1:]:
        chex.assert_trees_all_equal(start, starts[0])


def plain_norm(x, scale, bias, views):
    """Batch norm of each view, as the formula reads."""
    parts = []
    for view in range(views):
        part = x[view::views]
        axes = tuple(range(part.ndim - 1))
        unit = (part - part.mean(axes, keepdims=True)) / jnp.sqrt(
            part.var(axes, keepdims=True) + 1e-5
        )
        shape = (1,) * len(axes) + (-1,)
        parts.append(scale.reshape(shape) * unit + bias.reshape(shape))
    return jnp.stack(parts, axis=1).reshape(x.shape)


@pytest.mark.parametrize(("shape", "views"), [((6, 3, 2, 4), 2), ((8, 4), 1)])
def test_batch_norms_derivative_is_that_of_its_formula(x64, shape, views):
    rng = np.random.default_rng(0)
    x, bar = (jnp.asarray(2 * rng.standard_normal(shape) + 1) for _ in range(2))
    scale, bias = (jnp.asarray(rng.standard_normal(4)) for _ in range(2))
    model = BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}

    def ours(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        apply = partial(model.apply, train=True, views=views)
        return apply(variables, x, mutable=["batch_stats"])[0]

    y, pull = jax.vjp(ours, x, scale, bias)
    want, pull_plain = jax.vjp(partial(plain_norm, views=views), x, scale, bias)
    chex.assert_trees_all_close(y, want, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(pull(bar), pull_plain(bar), rtol=1e-10, atol=1e-12)


def test_a_constant_channel_has_a_derivative():
    model = BatchNorm()
    x = jnp.full((4, 3), 1e3) + jnp.array([[0.0, 0.0, 1.0]]) * jnp.eye(4, 3)
    variables = model.init(jax.random.key(0), x, train=False)

    def total(x):
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(apply(variables, x)[0]))

    assert np.isfinite(jax.grad(total)(x)).all()


def test_relu_has_the_derivative_of_jaxs():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.nan, jnp.inf])
    ours, theirs = jax.vjp(relu, x), jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1](x + 1)[0], theirs[1](x + 1)[0])
