"""Backbone weights: PyTorch's names and layouts, and safetensors files.

A backbone's variables are `{"params": …, "batch_stats": …}`. Files hold
torchvision's names and layouts (OIHW kernels), so that PyTorch reads them too.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save as serialize

from sfrik_jax.errors import CorruptInputError, MissingInputError
from sfrik_jax.models import BACKBONES
from sfrik_jax.models.resnet import ResNet

Variables = dict[str, Any]

# Flax leaf name -> PyTorch's, by the kind of layer.
_CONV = {"kernel": "weight"}
_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def from_torch(
    state_dict: Mapping[str, Any], arch: str, *, width: int = 64, stem: str = "imagenet"
) -> Variables:
    """Variables of backbone `arch` from a PyTorch state dict of arrays.

    Args:
      state_dict: torch names to arrays; the prefixes "module." and "backbone." and
        a classifier "fc.*" are dropped, as are projector tensors beside a
        "backbone." prefix.
      arch: a name of `models.BACKBONES`.

    Raises:
      CorruptInputError: tensors are missing, unexpected or of the wrong shape; all
        of them are named.
    """
    tensors = _backbone_tensors(state_dict)
    shapes = _variable_shapes(BACKBONES[arch](width=width, stem=stem))
    wanted = {torch_name(path): (path, leaf) for path, leaf in shapes.items()}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [
        f"unexpected {name}"
        for name in tensors
        if name not in wanted and not name.endswith("num_batches_tracked")
    ]
    flat = {}
    for name in wanted.keys() & tensors.keys():
        path, leaf = wanted[name]
        value = np.asarray(tensors[name])
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if value.shape != leaf.shape:
            problems.append(f"{name} has shape {value.shape}, not {leaf.shape} (HWIO)")
        flat[path] = value
    if problems:
        raise CorruptInputError(f"weights do not fit {arch}: {'; '.join(problems)}")
    return _unflatten(flat)


def to_torch(variables: Variables, arch: str) -> dict[str, np.ndarray]:
    """The state dict of backbone variables, in torchvision's names and layouts.

    Raises:
      KeyError: `arch` is not a name of `models.BACKBONES`.
    """
    if arch not in BACKBONES:
        raise KeyError(f"{arch!r} is not one of {sorted(BACKBONES)}")
    state = {}
    for path, leaf in _flatten(variables).items():
        value = np.asarray(leaf)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        name = torch_name(path)
        state[name] = np.ascontiguousarray(value)
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.zeros((), np.int64)
    return {name: state[name] for name in sorted(state, key=_torch_order)}


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of a flax leaf: ("params", "layer1_0", "bn1", "scale") -> …"""
    *modules, leaf = path[1:]
    rename = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    parts = [rename.get(m, m.replace("_", ".")) for m in modules]
    kinds = _CONV if leaf in _CONV else _NORM
    return ".".join([*parts, kinds[leaf]])


def _torch_order(name: str) -> tuple:
    """Sorts as PyTorch registers: by block, conv1 bn1 conv2 …, then downsample."""
    leaves = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    *modules, leaf = name.split(".")
    block = tuple(int(m.removeprefix("layer")) for m in modules[:2] if len(modules) > 1)
    module = modules[-1]
    if module.isdigit():  # downsample.0 and .1 come after every numbered layer
        place = (9, int(module))
    else:
        place = (int(module[-1]), module.startswith("bn"))
    return block, place, leaves.index(leaf)


def save(path: str | Path, variables: Variables, about: Mapping[str, Any]) -> str:
    """Writes backbone variables as safetensors and returns the file's SHA-256.

    Args:
      about: what `load` needs: "arch", "width", "stem", and "preprocessing" with
        "image_size", "resize", "mean", "std"; more keys are kept.
    """
    path = Path(path)
    temporary = path.with_suffix(".partial")
    tensors = to_torch(jax.device_get(variables), about["arch"])
    # Not `save_file`: its files are for their owner alone, whatever the umask.
    content = serialize(tensors, metadata={"sfrik_jax": json.dumps(dict(about))})
    temporary.write_bytes(content)
    temporary.replace(path)
    return hashlib.sha256(content).hexdigest()


def describe(
    model: Mapping[str, Any], test: Mapping[str, Any], normalization: Mapping[str, Any]
) -> dict[str, Any]:
    """What `save` stores beside the weights, from the sections `model` and `eval`."""
    return {
        "arch": model["backbone"],
        "width": model["width"],
        "stem": model["stem"],
        "preprocessing": {
            "image_size": test["image_size"],
            "resize": test["resize"],
            **normalization,
        },
    }


def load(path: str | Path) -> tuple[ResNet, Variables, dict[str, Any]]:
    """A backbone, its variables, and its preprocessing from a safetensors file.

    Raises:
      MissingInputError: there is no such file.
      CorruptInputError: it is not a backbone that this project wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"there is no weights file {path}")
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            about = json.loads((file.metadata() or {})["sfrik_jax"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        arch, preprocessing = about["arch"], about["preprocessing"]
        shape = {"width": about["width"], "stem": about["stem"]}
        backbone = BACKBONES[arch](**shape)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptInputError(f"{path} is not a backbone file: {error!r}") from error
    try:
        variables = from_torch(tensors, arch, **shape)
    except CorruptInputError as error:
        raise CorruptInputError(f"{path}: {error}") from error
    for name, leaf in tensors.items():
        if not np.isfinite(leaf).all():
            raise CorruptInputError(f"{path}: {name} holds values that are not finite")
    return backbone, jax.tree.map(jnp.asarray, variables), preprocessing


def _backbone_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    named = {name.removeprefix("module."): t for name, t in state_dict.items()}
    if any(name.startswith("backbone.") for name in named):
        named = {
            name.removeprefix("backbone."): t
            for name, t in named.items()
            if name.startswith("backbone.")
        }
    return {n: t for n, t in named.items() if not n.startswith("fc.")}


def _variable_shapes(backbone: ResNet) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return _flatten(jax.eval_shape(backbone.init, jax.random.key(0), image))


def _flatten(tree: Variables) -> dict[tuple[str, ...], Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _unflatten(flat: Mapping[tuple[str, ...], Any]) -> Variables:
    tree: Variables = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
