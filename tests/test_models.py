"""Backbones and the model: the original's features, batch norm by view, init."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import draw, random_variables

from sfrik_jax import models, weights
from sfrik_jax.mesh import make_mesh, replicate, shard_batch
from sfrik_jax.models.norm import BatchNorm
from sfrik_jax.models.projector import Projector
from sfrik_jax.models.resnet import ResNet


def shapes_of(model, size=32):
    image = jnp.zeros((2, size, size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), image)


def filled_variables(model, seed: int):
    """A backbone's variables, each tensor drawn from its PyTorch name."""

    def leaf(path, like):
        name = weights.torch_name(tuple(key.key for key in path))
        if like.ndim != 4:
            return jnp.asarray(draw(name, like.shape, seed))
        torch_shape = tuple(like.shape[i] for i in (3, 2, 0, 1))
        return jnp.asarray(draw(name, torch_shape, seed).transpose(2, 3, 1, 0))

    return jax.tree_util.tree_map_with_path(leaf, shapes_of(model))


def tiny_model(dtype="float64"):
    """A small model with random variables, its residual branches at work."""
    kind = jnp.dtype(dtype)
    backbone = ResNet((1, 1), bottleneck=False, width=4, stem="small", dtype=kind)
    model = models.SSLModel(backbone, Projector((8,), 6, dtype=kind))
    images = jnp.zeros((2, 1, 8, 8, 3), kind)
    init = partial(model.init, train=False)
    return model, random_variables(jax.eval_shape(init, jax.random.key(0), images))


def random_images(*shape, seed=1, dtype: Any = np.float64):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((*shape, 3)), dtype)


def training_pass(model, variables, images):
    """(h, z) and the new running statistics."""
    (h, z), changed = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    return h, z, changed["batch_stats"]


def relative_error(found, want):
    want = np.asarray(want, np.float64)
    return np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet50x2"])
def test_features_and_statistics_are_the_originals(reference, arch):
    data = reference("backbones")
    model = models.BACKBONES[arch]()
    variables = filled_variables(model, int(data["seed"]))
    images = jnp.asarray(data["image_nchw"].transpose(0, 2, 3, 1))
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    with jax.default_matmul_precision("highest"):
        evaluated = jax.jit(model.apply)(variables, images)
        trained, changed = jax.jit(train)(variables, images)
    assert relative_error(evaluated, data[f"{arch}.eval"]) < 1e-4
    assert relative_error(trained, data[f"{arch}.train"]) < 1e-4
    after = changed["batch_stats"]["bn1"]
    for leaf in ("mean", "var"):
        want = data[f"{arch}.bn1.running_{leaf}_after"]
        assert relative_error(after[leaf], want) < 1e-5


def test_features_of_an_odd_size_are_the_originals(reference):
    data = reference("backbones")
    model = models.BACKBONES["resnet18"]()
    variables = filled_variables(model, int(data["seed"]))
    images = jnp.asarray(data["odd_image_nchw"].transpose(0, 2, 3, 1))
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)(variables, images)
    assert relative_error(found, data["resnet18.eval_odd"]) < 1e-4


def test_the_backbones_are_the_papers_and_a_small_one():
    assert set(models.BACKBONES) == {
        "resnet14",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet50x2",
    }


@pytest.mark.parametrize(
    ("arch", "width", "features"),
    [
        ("resnet14", 16, 512),
        ("resnet18", 64, 512),
        ("resnet18", 16, 128),
        ("resnet34", 64, 512),
        ("resnet50", 64, 2048),
        ("resnet50", 8, 256),
        ("resnet101", 64, 2048),
        ("resnet50x2", 64, 4096),
    ],
)
def test_width_and_widening_set_the_number_of_features(arch, width, features):
    model = models.BACKBONES[arch](width=width)
    image = jnp.zeros((2, 64, 64, 3))
    out = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)[0]
    )
    assert out.shape == (2, features)
    assert model.features == features


def layer_shapes(model, size):
    """The shape of what each named layer returns."""
    image = jnp.zeros((2, size, size, 3), model.dtype)

    def run():
        _, state = model.init_with_output(
            jax.random.key(0), image, capture_intermediates=True
        )
        return state["intermediates"]

    found = jax.eval_shape(run)
    return {name: found[name]["__call__"][0] for name in found if name != "__call__"}


def test_the_small_stem_keeps_28_pixels():
    layers = layer_shapes(models.BACKBONES["resnet18"](width=8, stem="small"), 28)
    sides = [layers[name].shape[1] for name in ("conv1", "layer1_0", "layer4_1")]
    assert sides == [28, 28, 4]


def test_the_imagenet_stem_divides_the_side_by_four():
    layers = layer_shapes(models.BACKBONES["resnet50"](width=8), 224)
    sides = [layers[name].shape[1] for name in ("conv1", "layer1_0", "layer4_2")]
    assert sides == [112, 56, 7]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_layer_computes_in_the_models_dtype(x64, dtype):
    model = models.BACKBONES["resnet18"](width=4, stem="small", dtype=jnp.dtype(dtype))
    layers = layer_shapes(model, 16)
    assert {layer.dtype for layer in layers.values()} == {jnp.dtype(dtype)}
    wide = jnp.promote_types(dtype, jnp.float32)
    variables = shapes_of(model, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {wide}
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    assert jax.eval_shape(model.apply, variables, images).dtype == wide


def test_bfloat16_features_are_float32_and_near_those_of_float32():
    images = random_images(8, 2, 8, 8, dtype=np.float32)
    model, variables = tiny_model("float32")
    half, _ = tiny_model("bfloat16")
    want, _, want_stats = jax.jit(partial(training_pass, model))(variables, images)
    found, z, stats = jax.jit(partial(training_pass, half))(variables, images)
    assert found.dtype == jnp.float32
    assert z.dtype == jnp.bfloat16
    assert 1e-5 < relative_error(found, want) < 0.02
    for one, other in zip(
        jax.tree.leaves(stats), jax.tree.leaves(want_stats), strict=True
    ):
        assert one.dtype == jnp.float32
        assert relative_error(one, other) < 0.02


def test_float64_is_not_rounded_to_float32_on_the_way(x64):
    images = random_images(4, 2, 8, 8)
    model, variables = tiny_model("float64")
    run = jax.jit(partial(training_pass, model))
    h, z, _ = run(variables, images)
    assert h.dtype == z.dtype == jnp.float64
    # A change of 1e-11 is far below float32's resolution, and its effect is linear.
    noise = random_images(4, 2, 8, 8, seed=2)
    small, large = [
        run(variables, images + change * noise)[1] - z for change in (1e-11, 1e-8)
    ]
    assert relative_error(small, 1e-3 * large) < 1e-3


# --- Initial values -----------------------------------------------------------------


@pytest.mark.parametrize(("bottleneck", "last"), [(False, "bn2"), (True, "bn3")])
def test_a_residual_block_starts_as_its_shortcut(bottleneck, last):
    model = ResNet((2, 1), bottleneck, width=4)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    blocks = [params[name] for name in ("layer1_0", "layer1_1", "layer2_0")]
    for block in blocks:
        for name in {"bn1", "bn2", "bn3", "downsample_bn"} & set(block):
            np.testing.assert_array_equal(block[name]["scale"], float(name != last))
            np.testing.assert_array_equal(block[name]["bias"], 0)


def test_kernels_start_normal_with_he_variance_of_the_fan_out():
    model = ResNet((1, 1), bottleneck=True, width=32)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 16, 16, 3)))["params"]
    kernels = [np.asarray(k) for k in jax.tree.leaves(params) if k.ndim == 4]
    assert len(kernels) == 9
    scaled = []
    for kernel in kernels:
        height, width, _, out = kernel.shape
        scaled.append(kernel.ravel() / np.sqrt(2 / (height * width * out)))
        # Six standard errors of the variance of a normal sample.
        assert abs(scaled[-1].var() - 1) < 6 * np.sqrt(2 / kernel.size)
    # A normal law, not one that is cut at two deviations.
    assert abs(np.mean(np.concatenate(scaled) ** 4) - 3) < 0.1


def test_linear_layers_start_uniform_within_the_root_of_their_fan_in():
    projector = Projector((256, 128), 64)
    h = jnp.zeros((2, 512))
    variables = projector.init(jax.random.key(0), h, train=False)
    params = variables["params"]
    assert "bias" not in params["linear3"]
    for name, fan_in in [("linear1", 512), ("linear2", 256), ("linear3", 128)]:
        for leaf in params[name].values():
            scaled = np.asarray(leaf) * np.sqrt(fan_in)
            assert np.abs(scaled).max() <= 1
            assert scaled.max() > 0.9 and scaled.min() < -0.9
            noise = 6 * np.sqrt(0.8 / scaled.size)
            assert abs(3 * scaled.var() - 1) < noise


# --- Views and devices --------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_model_gives_a_feature_and_an_embedding_of_each_view(views):
    model = models.build(
        backbone="resnet18",
        width=4,
        stem="small",
        hidden_dims=(8, 16),
        embed_dim=6,
        dtype="float32",
    )
    images = jnp.zeros((3, views, 16, 16, 3))
    (h, z), _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert h.shape == (3, views, 32)
    assert z.shape == (3, views, 6)


def test_one_pass_with_all_views_is_a_pass_with_each_in_turn(x64):
    model, variables = tiny_model()
    # Views of unlike scale: statistics that mixed them would be far off.
    scale = jnp.array([1.0, 3.0, 0.5])[None, :, None, None, None]
    images = random_images(4, 3, 8, 8) * scale
    together = jax.jit(partial(training_pass, model))
    h, z, stats = together(variables, images)
    for view in range(3):
        h_one, z_one, changed = together(variables, images[:, view : view + 1])
        chex.assert_trees_all_close(h[:, view], h_one[:, 0], rtol=1e-10, atol=1e-12)
        chex.assert_trees_all_close(z[:, view], z_one[:, 0], rtol=1e-10, atol=1e-12)
        variables = {**variables, "batch_stats": changed}
    chex.assert_trees_all_close(stats, variables["batch_stats"], rtol=1e-11)


def test_running_statistics_are_the_unbiased_ones_of_each_view(x64):
    model = BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
    x = np.random.default_rng(0).standard_normal((5, 2, 3, 4)) * 2 + 1
    flat = jnp.asarray(x.reshape(10, 3, 4))
    variables = model.init(jax.random.key(0), flat, train=False)
    _, changed = model.apply(
        variables, flat, train=True, views=2, mutable=["batch_stats"]
    )
    mean, var = np.zeros(4), np.ones(4)
    for view in range(2):
        values = x[:, view].reshape(-1, 4)
        mean = 0.9 * mean + 0.1 * values.mean(axis=0)
        var = 0.9 * var + 0.1 * values.var(axis=0, ddof=1)
    chex.assert_trees_all_close(
        changed["batch_stats"], {"mean": mean, "var": var}, rtol=1e-12
    )


def test_batch_norm_of_a_single_value_is_refused():
    model = BatchNorm()
    x = jnp.ones((2, 4))
    variables = model.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="larger batch"):
        model.apply(variables, x, train=True, views=2, mutable=["batch_stats"])


@pytest.mark.parametrize("devices", [2, 8])
def test_a_batch_over_many_devices_is_one_batch(x64, devices):
    model, variables = tiny_model()
    # Rows of unlike scale: statistics of one device's rows would be far off.
    scale = jnp.linspace(0.2, 3, 8)[:, None, None, None, None]
    images = random_images(8, 2, 8, 8) * scale
    target = random_images(8, 2, 2, seed=2).reshape(8, 2, 6)

    def objective(params, batch_stats, images, target):
        variables = {"params": params, "batch_stats": batch_stats}
        _, z, stats = training_pass(model, variables, images)
        return jnp.mean((z - target) ** 2), (z, stats)

    grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    parts = (variables["params"], variables["batch_stats"])
    want = grad(*parts, images, target)
    mesh = make_mesh(devices)
    found = grad(*replicate(parts, mesh), *shard_batch((images, target), mesh))
    assert len(found[0][1][0].sharding.device_set) == devices
    chex.assert_trees_all_close(
        jax.device_get(found), jax.device_get(want), rtol=1e-8, atol=1e-11
    )
