"""Several views of several sizes: passes, batch statistics, anchors, and the losses."""

from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import random_variables

from sfrik_jax import models, passes, step
from sfrik_jax.data import views

SETTINGS = {"weights": (1.0, 40.0, 40.0), "alignment_coeff": 4000.0, "mmd_coeff": 1.0}


class Passing:
    """A model whose embeddings are its images; it notes each pass."""

    def __init__(self):
        self.passes = []

    def apply(self, variables, images, *, train, joint, mutable):
        self.passes.append((images.shape[1], joint))
        return (None, images), {"batch_stats": variables["batch_stats"] + 1}


@pytest.mark.parametrize("regularize_all", [True, False])
@pytest.mark.parametrize("layout", ["obow", "swav"])
def test_losses_are_the_originals_through_the_passes(
    x64, reference, layout, regularize_all
):
    data = reference("losses")
    case = f"sfrik_{layout}[reg_small={regularize_all}]"
    names = {
        "obow": (["x"], ["crop0", "crop1"], ["crop2", "crop3", "crop4"]),
        "swav": (["x", "crop0"], ["crop1", "crop2", "crop3", "crop4"]),
    }[layout]
    recipe = {
        "obow": views.build(224, recipe="obow", patch_count=3),
        "swav": views.build(224, recipe="swav", small_count=4),
    }[layout]
    groups = [
        jnp.stack([jnp.asarray(data[name]) for name in group], 1) for group in names
    ]
    loss = step.make_loss(
        recipe,
        method="sfrik",
        settings=SETTINGS | {"regularize_all": regularize_all},
        mesh=None,
    )
    model: Any = Passing()

    def value_of(groups):
        joint = [recipe[group[0]].joint for group in views.size_groups(recipe)]
        z, stats = passes.forward(model, {}, 0, groups, joint)
        assert stats == len(groups)
        return loss(z)[0]

    value, grads = jax.value_and_grad(value_of)(groups)
    np.testing.assert_allclose(value, data[f"{case}.loss"], rtol=1e-7)
    found = np.concatenate(grads, axis=1)
    for number in range(found.shape[1]):
        np.testing.assert_allclose(
            found[:, number], data[f"{case}.grad{number}"], rtol=1e-8, atol=1e-10
        )
    assert model.passes == [(len(group), True) for group in names]


def test_joint_statistics_are_those_of_all_views_of_the_pass(x64):
    model = models.build(
        backbone="resnet14",
        width=4,
        stem="small",
        hidden_dims=(8,),
        embed_dim=6,
        dtype="float64",
    )
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((3, 2, 8, 8, 3)))
    shapes = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )
    variables = random_variables(shapes)

    def run(images, joint):
        return jax.jit(
            lambda v, x: model.apply(
                v, x, train=True, joint=joint, mutable=["batch_stats"]
            )
        )(variables, images)

    (h, z), changed = run(images, True)
    (flat_h, flat_z), flat_changed = run(images.reshape(6, 1, 8, 8, 3), False)
    chex.assert_trees_all_close(h.reshape(6, 1, -1), flat_h, rtol=1e-9)
    chex.assert_trees_all_close(z.reshape(6, 1, -1), flat_z, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(changed, flat_changed, rtol=1e-9)
    (apart, _), _ = run(images, False)
    assert np.abs(apart - h).max() > 1e-3


def test_a_method_of_two_views_gets_no_anchors():
    recipe = views.build(32, recipe="simclr")
    loss = step.make_loss(
        recipe, method="simclr", settings={"temperature": 0.2}, mesh=None
    )
    z = [jnp.asarray(v) for v in np.random.default_rng(0).standard_normal((2, 8, 4))]
    assert np.isfinite(loss(z)[0])
    assert SimpleNamespace(**loss.keywords) == SimpleNamespace(
        mesh=None, temperature=0.2
    )
