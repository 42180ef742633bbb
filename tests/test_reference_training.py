"""Twelve training steps of each method are those of the original, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filled import draw

from sfrik_jax import losses, models, optim, passes, weights
from sfrik_jax.models import resnet

BATCH = 16
BASE_LR = {"sfrik": 1.2, "simclr": 0.8, "auh": 1.0, "vicreg": 0.7}
ALWAYS = ("sfrik", "vicreg")
SETTINGS = {
    "sfrik": {"weights": (1.0, 40.0, 40.0), "alignment_coeff": 4e3, "mmd_coeff": 1.0},
    "simclr": {"temperature": 0.15},
    "auh": {"alignment_coeff": 3000.0, "uniformity_coeff": 1.0, "scale": 2.5},
    "vicreg": {
        "invariance_coeff": 10.0,
        "variance_coeff": 10.0,
        "covariance_coeff": 1.0,
    },
}
# Where PyTorch's Sequential has the layers of the projector; ReLUs are 2 and 5.
PROJECTOR = {"linear1": 0, "bn1": 1, "linear2": 3, "bn2": 4, "linear3": 6}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(path) -> str:
    """("params", "projector", "linear1", "kernel") -> "projector.0.weight"."""
    collection, part, *rest = [key.key for key in path]
    if part == "backbone":
        return "backbone." + weights.torch_name((collection, *rest))
    module, leaf = rest
    return f"projector.{PROJECTOR[module]}.{LEAVES[leaf]}"


def filled_variables(model, seed: int):
    """Flax variables from tensors drawn by name in PyTorch's layouts."""

    def leaf(path, like):
        shape = like.shape
        if like.ndim == 4:
            value = draw(torch_name(path), tuple(shape[i] for i in (3, 2, 0, 1)), seed)
            value = value.transpose(2, 3, 1, 0)
        else:
            value = draw(torch_name(path), shape[::-1], seed).T
        return jnp.asarray(value, jnp.float64)

    images = jnp.zeros((2, 1, 32, 32, 3))
    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def view_pairs(seed: int, steps: int):
    """[B, 2, 32, 32, 3] of each step, float32 values in float64."""
    rng = np.random.default_rng(seed + 7)
    for _ in range(steps):
        base = rng.standard_normal((BATCH, 3, 32, 32))
        noise = [0.3 * rng.standard_normal(base.shape) for _ in range(2)]
        views = [(base.astype(np.float32) + n).astype(np.float32) for n in noise]
        yield jnp.asarray(np.stack(views, 1).transpose(0, 1, 3, 4, 2), jnp.float64)


def convolution_by_products(x, kernel, strides, padding, **_):
    """The convolution as one matrix product of its patches.

    XLA's own in float64 is a plain loop on a CPU: 13 s a step here, one core.
    """
    size, _, _, out = kernel.shape
    stride = strides[0]
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    height, width = (side - size + 1 for side in padded.shape[1:3])
    patches = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, out)


def make_step(model, optimizer, method):
    def loss_of(params, batch_stats, images):
        z, batch_stats = passes.forward(model, params, batch_stats, [images], [False])
        return losses.METHODS[method](z, **SETTINGS[method])[0], batch_stats

    @jax.jit
    def train_step(params, batch_stats, opt_state, images):
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, batch_stats), grads = grad(params, batch_stats, images)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    return train_step


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in SETTINGS
    ],
)
def test_twelve_steps_are_the_originals(reference, x64, monkeypatch, method):
    monkeypatch.setattr(resnet, "convolution", convolution_by_products)
    data = reference(f"train_{method}")
    seed, steps = int(data["seed"]), len(data["loss"])
    model = models.build(
        backbone="resnet18",
        width=64,
        stem="imagenet",
        hidden_dims=(64, 64),
        embed_dim=96,
        dtype="float64",
    )
    schedule = optim.warmup_cosine(
        base_lr=BASE_LR[method], batch_size=BATCH, epochs=20, steps_per_epoch=1
    )
    rates = [schedule(k) for k in range(steps)]
    np.testing.assert_allclose(rates, data["lr"], rtol=1e-8)
    optimizer = optim.lars(schedule, weight_decay=1e-6)
    variables = filled_variables(model, seed)
    params, batch_stats = variables["params"], variables["batch_stats"]
    carry = (params, batch_stats, optimizer.init(params))
    train_step = make_step(model, optimizer, method)
    found = []
    for images in view_pairs(seed, steps):
        *carry, loss = train_step(*carry, images)
        found.append(float(loss))
    np.testing.assert_allclose(found, data["loss"], rtol=1e-7)
    final = {"params": carry[0], "batch_stats": carry[1]}
    leaves, _ = jax.tree_util.tree_flatten_with_path(final)
    norms = {torch_name(path): np.linalg.norm(leaf) for path, leaf in leaves}
    assert set(norms) == set(data["tensor"].tolist())
    ordered = [norms[name] for name in data["tensor"].tolist()]
    np.testing.assert_allclose(ordered, data["norm"], rtol=1e-8)
