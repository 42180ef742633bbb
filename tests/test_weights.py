"""Backbone weights: PyTorch's names, layouts and order; files, and damaged ones."""

import hashlib
import json
import os
import stat

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from conftest import REFERENCE
from filled import random_variables
from safetensors.numpy import load_file, save_file

from sfrik_jax import models, weights
from sfrik_jax.errors import CorruptInputError, MissingInputError

NAMES = json.loads((REFERENCE / "torch_state_dict_names.json").read_text())
PREPROCESSING = {"image_size": 28, "resize": 32, "mean": [0.1] * 3, "std": [0.3] * 3}
ABOUT = {
    "arch": "resnet18",
    "width": 4,
    "stem": "small",
    "preprocessing": PREPROCESSING,
    "note": "kept",
}


def shapes_of(arch, **settings):
    model = models.BACKBONES[arch](**settings)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def variables_of(arch="resnet18", width=4, stem="small"):
    return random_variables(shapes_of(arch, width=width, stem=stem))


@pytest.fixture
def stored(tmp_path):
    """A file that `save` wrote, and what is in it."""
    variables = variables_of()
    path = tmp_path / "backbone.safetensors"
    digest = weights.save(path, variables, ABOUT)
    return path, variables, digest


@pytest.mark.parametrize("arch", NAMES)
def test_names_shapes_and_order_are_pytorchs(arch):
    variables = jax.tree.map(
        lambda like: np.zeros(like.shape, like.dtype), shapes_of(arch)
    )
    state = weights.to_torch(variables, arch)
    assert [[name, list(t.shape)] for name, t in state.items()] == NAMES[arch]


def test_a_kernels_axes_are_output_input_height_width():
    variables = variables_of()
    found = weights.to_torch(variables, "resnet18")["layer2.0.downsample.0.weight"]
    kernel = np.asarray(variables["params"]["layer2_0"]["downsample_conv"]["kernel"])
    assert found.shape == (8, 4, 1, 1)
    assert found[5, 2, 0, 0] == kernel[0, 0, 2, 5]
    stem = weights.to_torch(variables, "resnet18")["conv1.weight"]
    assert stem[3, 1, 0, 2] == variables["params"]["conv1"]["kernel"][0, 2, 1, 3]


@pytest.mark.parametrize(
    ("arch", "stem"),
    [("resnet18", "small"), ("resnet50", "imagenet"), ("resnet50x2", "small")],
)
def test_to_pytorch_and_back_changes_nothing(arch, stem):
    variables = variables_of(arch, stem=stem)
    state = weights.to_torch(variables, arch)
    found = weights.from_torch(state, arch, width=4, stem=stem)
    chex.assert_trees_all_equal(found, variables)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes_classifier_and_projector_are_dropped(prefix):
    variables = variables_of()
    state = weights.to_torch(variables, "resnet18")
    state["fc.weight"], state["fc.bias"] = np.zeros((10, 32)), np.zeros(10)
    state = {prefix + name: value for name, value in state.items()}
    if "backbone" in prefix:
        state[prefix.replace("backbone", "projector") + "0.weight"] = np.zeros((4, 32))
    found = weights.from_torch(state, "resnet18", width=4, stem="small")
    chex.assert_trees_all_equal(found, variables)


def test_counters_may_be_absent():
    state = weights.to_torch(variables_of(), "resnet18")
    state = {n: t for n, t in state.items() if "num_batches_tracked" not in n}
    weights.from_torch(state, "resnet18", width=4, stem="small")


def test_every_tensor_that_does_not_fit_is_named():
    state = weights.to_torch(variables_of(), "resnet18")
    del state["bn1.weight"], state["layer3.1.conv2.weight"]
    state["layer5.0.conv1.weight"] = np.zeros(3)
    state["conv1.weight"] = np.zeros((4, 3, 7, 7))
    state["bn1.bias"] = np.zeros(5)
    with pytest.raises(CorruptInputError) as caught:
        weights.from_torch(state, "resnet18", width=4, stem="small")
    message = str(caught.value)
    for problem in (
        "missing bn1.weight",
        "missing layer3.1.conv2.weight",
        "unexpected layer5.0.conv1.weight",
        "conv1.weight has shape",
        "bn1.bias has shape (5,)",
    ):
        assert problem in message
    assert message.count(";") == 4


def test_an_unknown_architecture_has_no_names():
    with pytest.raises(KeyError, match="resnet18"):
        weights.to_torch(variables_of(), "resnet19")


# --- Files --------------------------------------------------------------------------


def test_a_file_gives_back_model_variables_and_preprocessing(stored):
    path, variables, _ = stored
    model, found, preprocessing = weights.load(path)
    assert (model.width, model.stem, model.features) == (4, "small", 32)
    chex.assert_trees_all_equal(found, variables)
    assert preprocessing == PREPROCESSING


def test_the_digest_is_the_files_and_other_readers_open_it(stored):
    path, variables, digest = stored
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = load_file(path)
    np.testing.assert_array_equal(
        tensors["bn1.running_var"], variables["batch_stats"]["bn1"]["var"]
    )
    assert list(path.parent.iterdir()) == [path]


def test_a_file_keeps_all_that_is_said_about_it(stored):
    path = stored[0]
    with safetensors.safe_open(str(path), framework="np") as file:
        assert json.loads(file.metadata()["sfrik_jax"]) == ABOUT


def test_a_file_is_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        path = tmp_path / "backbone.safetensors"
        weights.save(path, variables_of(), ABOUT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_describe_says_what_load_needs(stored, tmp_path):
    model = {"backbone": "resnet18", "width": 4, "stem": "small", "dtype": "float32"}
    data = {"image_size": 28, "resize": 32, "batch_size": 8}
    statistics = {"mean": [0.1] * 3, "std": [0.3] * 3}
    about = weights.describe(model, data, statistics)
    weights.save(tmp_path / "other.safetensors", stored[1], about)
    assert weights.load(tmp_path / "other.safetensors")[2] == PREPROCESSING


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"nothing\.safetensors"):
        weights.load(tmp_path / "nothing.safetensors")


def garbage(content):
    return b"not a file of tensors"


def empty(content):
    return b""


def cut(content):
    return content[:-100]


@pytest.mark.parametrize("damage", [garbage, empty, cut])
def test_a_damaged_file_is_named(stored, damage):
    path = stored[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptInputError, match=r"backbone\.safetensors"):
        weights.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found_and_its_tensor_named(tmp_path, value):
    variables = variables_of()
    block = variables["params"]["layer2_0"]
    block["bn1"]["bias"] = block["bn1"]["bias"].at[3].set(value)
    path = tmp_path / "backbone.safetensors"
    weights.save(path, variables, ABOUT)
    with pytest.raises(CorruptInputError, match=r"layer2\.0\.bn1\.bias"):
        weights.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"sfrik_jax": "{"},
        {"sfrik_jax": "[]"},
        {"sfrik_jax": json.dumps({**ABOUT, "arch": "resnet19"})},
        *(
            {"sfrik_jax": json.dumps({k: v for k, v in ABOUT.items() if k != key})}
            for key in ("arch", "width", "stem", "preprocessing")
        ),
    ],
)
def test_a_file_whose_description_is_damaged_is_refused(tmp_path, metadata):
    path = tmp_path / "backbone.safetensors"
    save_file(weights.to_torch(variables_of(), "resnet18"), path, metadata=metadata)
    with pytest.raises(CorruptInputError, match=r"backbone\.safetensors"):
        weights.load(path)


def test_a_file_of_another_width_is_refused_by_name(stored):
    path, variables, _ = stored
    weights.save(path, variables, {**ABOUT, "width": 8})
    with pytest.raises(
        CorruptInputError, match=r"backbone\.safetensors: .*conv1\.weight has shape"
    ):
        weights.load(path)
