"""Weights files: ours are written, and ours and others' are read, by their content."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
from safetensors.numpy import save as serialize

from sfrik_jax import files
from sfrik_jax.data.views import IMAGENET_MEAN, IMAGENET_STD
from sfrik_jax.errors import CorruptInputError, MissingInputError
from sfrik_jax.models import BACKBONES
from sfrik_jax.models.resnet import ResNet
from sfrik_jax.weights import names, safetensors_files, torch_files
from sfrik_jax.weights.names import Variables
from sfrik_jax.weights.stored import StoredTensor, check_total, reason, shown

METADATA = "sfrik_jax"  # the key of what `save` says about the weights
RANGES = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6)}
# Of a file that does not say: torchvision's and the original's evaluation.
IMAGENET = {
    "image_size": 224,
    "resize": 256,
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}


class Backbone(NamedTuple):
    """What a weights file holds.

    Attributes:
      arch, width, stem: `BACKBONES[arch](width=width, stem=stem)` is `backbone`.
      variables: {"params", "batch_stats"}, float32.
      preprocessing: "image_size", "resize", "mean", "std".
      about: all that the file says about itself; empty if another program wrote it.
    """

    arch: str
    width: int
    stem: str
    backbone: ResNet
    variables: Variables
    preprocessing: dict[str, Any]
    about: dict[str, Any]


def save(path: str | Path, variables: Variables, about: Mapping[str, Any]) -> str:
    """Writes backbone variables as safetensors and returns the file's SHA-256.

    The file appears whole or not at all.

    Args:
      about: what `load` needs: "arch", "width", "stem", and "preprocessing" with
        "image_size", "resize", "mean", "std"; more keys are kept.

    Raises:
      DiskFullError, OutputError: it cannot be written.
    """
    tensors = names.to_torch(jax.device_get(variables), about["arch"])
    # Not `save_file`: its files are for their owner alone, whatever the umask.
    content = serialize(tensors, metadata={METADATA: json.dumps(dict(about))})
    files.write_whole(Path(path), content)
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
    """A backbone, its variables, and its preprocessing, from any weights file.

    Raises: as `open_file`.
    """
    found = open_file(path)
    return found.backbone, found.variables, found.preprocessing


def open_file(path: str | Path) -> Backbone:
    """What a file of this project, of PyTorch, torchvision or timm holds.

    Safetensors with or without this project's metadata, and PyTorch's zip format. A
    file that does not say what it is gets the architecture that its names and shapes
    tell, and ImageNet's preprocessing.

    Raises:
      MissingInputError: there is no such file, or it cannot be read.
      CorruptInputError: it is damaged, unsafe, of no known backbone, or holds values
        that are not finite.
    """
    with _opened(path) as file:
        return _content(Path(path), file)


def open_with_sum(path: str | Path, sha256: str | None = None) -> tuple[Backbone, str]:
    """As `open_file`, with the SHA-256 of the file.

    The sum is taken of the open file, before anything in it is looked at, and again
    after all was read: another file under the same name is not mixed up with this one.

    Args:
      sha256: the sum that the file must have.

    Raises:
      CorruptInputError: the sum is another, or another one in the end.
    """
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 is not None and sha256.lower() != digest:
            raise CorruptInputError(
                f"{path} has the SHA-256 sum {digest}, not {shown(sha256)}; fetch it "
                "again"
            )
        file.seek(0)
        found = _content(Path(path), file)
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise CorruptInputError(
                f"{path} changed while it was read; read it again when it is finished"
            )
    return found, digest


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[BufferedReader]:
    if not Path(path).is_file():
        raise MissingInputError(f"there is no weights file {path}")
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise MissingInputError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error


def _content(path: Path, file: BinaryIO) -> Backbone:
    tensors, about = _described(path, file)
    try:
        return _backbone(tensors, about, file)
    except CorruptInputError as error:
        raise CorruptInputError(f"{path}: {error}") from error


def _described(
    path: Path, file: BinaryIO
) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a file, not read yet, and what it says about them."""
    head = file.read(512)
    if head[8:9] != b"{":
        if head.startswith(torch_files.SIGNATURE):
            return torch_files.state_dict(path, file), {}
        if head.startswith(b"\x80") or head[257:262] == b"ustar":
            raise torch_files.legacy_error(path)
    tensors, metadata = safetensors_files.tensors(path, file)
    if METADATA not in metadata:
        return tensors, {}
    try:
        about = json.loads(metadata[METADATA])
        _check_about(about)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptInputError(
            f"{path}: what it says about its weights is damaged: "
            f"{type(error).__name__}: {reason(error)}"
        ) from error
    return tensors, about


def _check_about(about: Any) -> None:
    arch, width, stem = about["arch"], about["width"], about["stem"]
    if type(arch) is not str or arch not in BACKBONES:
        raise ValueError(f"arch is none of {', '.join(BACKBONES)}")
    if type(width) is not int or not 0 < width <= names.MAX_WIDTH:
        raise ValueError(f"width is no number in 1 … {names.MAX_WIDTH}")
    if stem not in names.STEMS.values():
        raise ValueError("stem is neither imagenet nor small")
    preprocessing = about["preprocessing"]
    for key in ("image_size", "resize"):
        size = preprocessing[key]
        if type(size) is not int or not 0 < size < 1 << 16:
            raise ValueError(f"preprocessing.{key} is no size")
    for key, (least, most) in RANGES.items():
        values = preprocessing[key]
        numbers = [v for v in values if type(v) in (int, float) and least <= v <= most]
        if len(numbers) != 3 or len(values) != 3:
            raise ValueError(
                f"preprocessing.{key} is not three numbers in {least:g} … {most:g}"
            )


def _backbone(
    tensors: dict[str, StoredTensor], about: dict[str, Any], file: BinaryIO
) -> Backbone:
    sources = names.bare_names(tensors)
    stored = {name: tensors[source] for name, source in sources.items()}
    check_total(stored.values(), file.seek(0, os.SEEK_END))
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    if about:
        arch, width, stem = about["arch"], about["width"], about["stem"]
    else:
        arch, width, stem = names.detect(shapes)
    variables = names.fill(
        shapes,
        lambda name: stored[name].read(file, name),
        arch,
        width=width,
        stem=stem,
        convert=jnp.asarray,
    )
    return Backbone(
        arch,
        width,
        stem,
        BACKBONES[arch](width=width, stem=stem),
        variables,
        about["preprocessing"] if about else dict(IMAGENET),
        about,
    )
