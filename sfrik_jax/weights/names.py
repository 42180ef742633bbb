"""PyTorch's names, layouts and order of a backbone's tensors, and what they tell.

A backbone's variables are `{"params": …, "batch_stats": …}`; a state dict has
torchvision's names and layouts (OIHW kernels).
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sfrik_jax.errors import CorruptInputError
from sfrik_jax.models import BACKBONES
from sfrik_jax.weights.stored import shown

log = logging.getLogger("sfrik")

Variables = dict[str, Any]
Path = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]

# Flax leaf name -> PyTorch's, by the kind of layer.
_CONV = {"kernel": "weight"}
_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = "num_batches_tracked"  # of batch norm; nothing here reads it
STEMS = {7: "imagenet", 3: "small"}  # by the size of the first kernel
MAX_WIDTH = 4096
LISTED = 10  # problems that a message names


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
      CorruptInputError: tensors are missing, unexpected or of the wrong shape, of which
        the first ten are named; or a variance is negative.
    """
    sources = bare_names(state_dict)
    shapes = {name: np.shape(state_dict[key]) for name, key in sources.items()}
    return fill(
        shapes,
        lambda name: np.asarray(state_dict[sources[name]]),
        arch,
        width=width,
        stem=stem,
    )


def fill(
    shapes: Shapes,
    read: Callable[[str], np.ndarray],
    arch: str,
    *,
    width: int,
    stem: str,
    convert: Callable[[np.ndarray], Any] = np.asarray,
) -> Variables:
    """Variables of a backbone whose tensors are read once their shapes are right.

    Args:
      shapes: of the tensors by bare name, in PyTorch's layouts.
      read: gives the tensor of a name.
      convert: makes a leaf of each array, which is not kept.

    Raises:
      CorruptInputError: as `from_torch`.
    """
    leaves = _variable_shapes(arch, width, stem)
    wanted = {torch_name(path): _torch_shape(leaf) for path, leaf in leaves.items()}
    problems = _differences(shapes, wanted)
    if problems:
        more = len(problems) - LISTED
        listed = "; ".join(problems[:LISTED]) + (f"; and {more} more" * (more > 0))
        raise CorruptInputError(f"weights do not fit {arch}: {listed}")
    tree: Variables = {}
    for path in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        name = torch_name(path)
        value = read(name)
        if path[-1] == "var" and (value < 0).any():
            raise CorruptInputError(f"{name} holds a negative variance")
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        node[path[-1]] = convert(value)
    return tree


def _differences(shapes: Shapes, wanted: Shapes) -> list[str]:
    """What keeps tensors from being those of a network."""
    problems = [f"missing {name}" for name in wanted if name not in shapes]
    for name, shape in shapes.items():
        norm = f"{name.removesuffix(COUNTER)}running_var"
        if name in wanted and shape != wanted[name]:
            problems.append(f"{name} has shape {shape}, not {wanted[name]}")
        elif name not in wanted and not (name.endswith(COUNTER) and norm in wanted):
            problems.append(f"unexpected {shown(name)}")
    return problems


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """The backbone's own names, each with the name that it has in the state dict.

    What is dropped, a classifier or tensors beside "backbone.", is logged.

    Raises:
      CorruptInputError: a name is there twice, with and without a prefix.
    """
    found: dict[str, str] = {}
    for name in names:
        bare = name.removeprefix("module.")
        if bare in found:
            raise CorruptInputError(
                f"tensor {shown(bare)} is there twice, as {shown(name)} too"
            )
        found[bare] = name
    prefix = "backbone."
    dropped = []
    if any(name.startswith(prefix) for name in found):
        dropped += [name for name in found if not name.startswith(prefix)]
        found = {
            name.removeprefix(prefix): source
            for name, source in found.items()
            if name.startswith(prefix)
        }
    dropped += [name for name in found if name.startswith("fc.")]
    if dropped:
        listed = ", ".join(map(shown, sorted(dropped)[:LISTED]))
        more = len(dropped) - LISTED
        log.warning(
            "left out, as no part of the backbone: %s%s",
            listed,
            f" and {more} more" if more > 0 else "",
        )
    return {n: source for n, source in found.items() if not n.startswith("fc.")}


def detect(shapes: Shapes) -> tuple[str, int, str]:
    """Architecture, width and stem of the network that bare names and shapes tell.

    ResNet-50 of twice the standard width is "resnet50x2" of width 64.

    Raises:
      CorruptInputError: it is no ResNet of `models.BACKBONES`.
    """
    blocks = re.compile(r"layer(\d)\.(\d{1,3})\.conv([123])\.weight")
    parts = [tuple(map(int, m.groups())) for m in map(blocks.fullmatch, shapes) if m]
    stages = tuple(
        len({block for stage, block, _ in parts if stage == number})
        for number in sorted({stage for stage, _, _ in parts})
    )
    bottleneck = any(conv == 3 for _, _, conv in parts)
    first = shapes.get("conv1.weight", ())
    square = len(first) == 4 and first[2] == first[3]
    if not square or first[2] not in STEMS or not 0 < first[0] <= MAX_WIDTH:
        raise CorruptInputError(
            "it is no ResNet: there is no conv1.weight of 7x7 or 3x3 kernels, with "
            f"1 … {MAX_WIDTH} channels"
        )
    for arch, make in BACKBONES.items():
        model = make()
        if (tuple(model.stage_sizes), model.bottleneck) == (stages, bottleneck):
            width, stem = first[0], STEMS[first[2]]
            wide = arch == "resnet50" and width == 2 * model.width
            return ("resnet50x2", model.width, stem) if wide else (arch, width, stem)
    kind = "bottleneck" if bottleneck else "plain"
    raise CorruptInputError(
        f"it is none of {', '.join(BACKBONES)}: its stages have {list(stages)} {kind} "
        "blocks"
    )


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
            state[name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return {name: state[name] for name in sorted(state, key=_torch_order)}


def fingerprint(variables: Variables, arch: str) -> str:
    """SHA-256 of the weights themselves, whatever file or checkpoint holds them.

    Of each tensor of `to_torch` but the counters of batch norm, in that order: the line
    "name dtype (shape)", such as "conv1.weight float32 (64, 3, 7, 7)", a line feed, and
    the little-endian bytes.
    """
    digest = hashlib.sha256()
    for name, value in to_torch(jax.device_get(variables), arch).items():
        if not name.endswith(COUNTER):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(value.astype(value.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def torch_name(path: Path) -> str:
    """PyTorch's name of a flax leaf: ("params", "layer1_0", "bn1", "scale") -> …"""
    *modules, leaf = path[1:]
    rename = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    parts = [rename.get(m, m.replace("_", ".")) for m in modules]
    kinds = _CONV if leaf in _CONV else _NORM
    return ".".join([*parts, kinds[leaf]])


def _torch_order(name: str) -> tuple:
    """Sorts as PyTorch registers: by block, conv1 bn1 conv2 …, then downsample."""
    leaves = ["weight", "bias", "running_mean", "running_var", COUNTER]
    *modules, leaf = name.split(".")
    block = tuple(int(m.removeprefix("layer")) for m in modules[:2] if len(modules) > 1)
    module = modules[-1]
    if module.isdigit():  # downsample.0 and .1 come after every numbered layer
        place = (9, int(module))
    else:
        place = (int(module[-1]), module.startswith("bn"))
    return block, place, leaves.index(leaf)


def _torch_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    shape = leaf.shape
    return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape


@cache
def _variable_shapes(
    arch: str, width: int, stem: str
) -> dict[Path, jax.ShapeDtypeStruct]:
    backbone = BACKBONES[arch](width=width, stem=stem)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return _flatten(jax.eval_shape(backbone.init, jax.random.key(0), image))


def _flatten(tree: Variables) -> dict[Path, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}
