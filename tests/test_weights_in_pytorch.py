"""Weights go to and fro between here and the real PyTorch, torchvision and timm.

    PYTHONPATH=… python -m pytest -m slow tests/test_weights_in_pytorch.py

They are no requirement of the tests: requirements-bench.txt has them.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_form
from filled import draw

from bench import peers
from sfrik_jax import weights
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.weights.files import IMAGENET

pytestmark = pytest.mark.slow
SEED = 20260701


@pytest.fixture(scope="module")
def libraries():
    """torch, and makers of networks by name."""
    try:
        torch, _ = peers.import_torchvision()
    except ImportError as error:
        pytest.skip(f"{error}: pip install -r requirements-bench.txt to compare")
    torch.set_num_threads(1)
    makers = {"torchvision": importlib.import_module("torchvision").models.get_model}
    try:
        makers["timm"] = importlib.import_module("timm").create_model
    except ImportError:
        print("timm is not installed: torchvision's networks alone are compared")
    return torch, makers


def networks(libraries, arch):
    torch, makers = libraries
    for maker, make in makers.items():
        model = make(arch).eval()
        state = {
            name: torch.from_numpy(draw(name, tuple(value.shape), SEED).copy())
            for name, value in model.state_dict().items()
        }
        model.load_state_dict(state)
        yield maker, model


def torch_features(torch, model, images):
    """Features of a network whose classifier is taken off."""
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return model(torch.from_numpy(nchw)).numpy()


def our_features(backbone, variables, images):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(backbone.apply)(variables, jnp.asarray(images)))


def images():
    rng = np.random.default_rng(3)
    return rng.standard_normal((2, 64, 64, 3)).astype(np.float32)


def assert_close(found, want):
    assert np.linalg.norm(found - want) < 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_an_imported_network_has_the_features_that_it_has_there(
    libraries, tmp_path, arch
):
    torch, _ = libraries
    for maker, model in networks(libraries, arch):
        path = tmp_path / f"{maker}.pth"
        torch.save(model.state_dict(), path)
        found = weights.open_file(path)
        assert (found.arch, found.width, found.stem) == (arch, 64, "imagenet")
        ours = our_features(found.backbone, found.variables, images())
        assert_close(ours, torch_features(torch, model, images()))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_an_exported_network_has_the_features_there_that_it_has_here(
    libraries, tmp_path, arch
):
    torch, makers = libraries
    load_file = importlib.import_module("safetensors.torch").load_file
    for maker, model in networks(libraries, arch):
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        variables = weights.from_torch(state, arch)
        path = tmp_path / "backbone.safetensors"
        about = {"arch": arch, "width": 64, "stem": "imagenet"}
        weights.save(path, variables, about | {"preprocessing": IMAGENET})
        backbone, variables, _ = weights.load(path)
        fresh = makers[maker](arch).eval()
        left = fresh.load_state_dict(load_file(path), strict=False)
        assert set(left.missing_keys) == {"fc.weight", "fc.bias"}
        assert left.unexpected_keys == []
        found = torch_features(torch, fresh, images())
        assert_close(found, our_features(backbone, variables, images()))
        fresh.load_state_dict(load_file(path), strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read_alike(libraries, tmp_path, protocol):
    torch, _ = libraries
    maker, model = next(networks(libraries, "resnet18"))
    state = model.state_dict()
    plain, path = tmp_path / "plain.pth", tmp_path / f"{maker}.pth"
    torch.save(state, plain)
    last = state["layer4.1.conv2.weight"]
    state["layer4.1.conv2.weight"] = last.to(memory_format=torch.channels_last)
    state["bn1.weight"] = torch.nn.Parameter(state["bn1.weight"])
    torch.save({"model": state, "epoch": 3}, path, pickle_protocol=protocol)
    want, found = weights.open_file(plain), weights.open_file(path)
    assert weights.fingerprint(found.variables, "resnet18") == weights.fingerprint(
        want.variables, "resnet18"
    )


def test_torch_reads_what_the_tests_write_in_its_form(libraries, tmp_path):
    torch, _ = libraries
    _, model = next(networks(libraries, "resnet18"))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    path = tmp_path / "net.pth"
    path.write_bytes(torch_form.saved(state))
    found = torch.load(path, weights_only=True)
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


def test_the_old_format_and_whole_modules_are_refused(libraries, tmp_path):
    torch, _ = libraries
    _, model = next(networks(libraries, "resnet18"))
    old, whole = tmp_path / "old.pth", tmp_path / "whole.pth"
    torch.save(model.state_dict(), old, _use_new_zipfile_serialization=False)
    with pytest.raises(CorruptInputError, match=r"old format.*torch\.save"):
        weights.load(old)
    torch.save(model, whole)
    with pytest.raises(CorruptInputError, match=r"refused global torchvision\.models"):
        weights.load(whole)


def test_a_training_checkpoint_with_a_function_is_refused(libraries, tmp_path):
    torch, _ = libraries
    _, model = next(networks(libraries, "resnet18"))
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": model.state_dict(), "schedule": draw}, path)
    with pytest.raises(CorruptInputError, match=r"filled\.draw.*resnet50\.pth"):
        weights.load(path)
