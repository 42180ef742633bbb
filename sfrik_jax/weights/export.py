"""A backbone as one program: pictures in, features out, weights and all inside.

The program is StableHLO as `jax.export` serialises it. It needs jax and flatbuffers to
run (jax does not install the latter), but neither this project nor its networks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sfrik_jax import augment, files
from sfrik_jax.errors import ConfigError
from sfrik_jax.models.resnet import ResNet
from sfrik_jax.target import portable
from sfrik_jax.weights.names import Variables

INPUTS = {"uint8": np.dtype("uint8"), "float32": np.dtype("float32")}
PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    path: str | Path,
    backbone: ResNet,
    variables: Variables,
    preprocessing: Mapping[str, Any],
    *,
    input_dtype: str = "uint8",
    platforms: Sequence[str] = PLATFORMS,
) -> str:
    """Writes the program of a backbone and returns the file's SHA-256.

        jax.export.deserialize(bytearray(Path(path).read_bytes())).call(images)

    Images [b, S, S, 3] become float32 features [b, features], b free and S the
    `image_size` of the preprocessing. Pixels are in 0 … 255 for either input type; the
    normalisation is part of the program. Products are float32 on every platform, and
    the plain operations are used: no trick of the machine that exports is inside.

    Raises:
      ConfigError: the input type is neither "uint8" nor "float32".
      DiskFullError, OutputError: the file cannot be written.
    """
    if input_dtype not in INPUTS:
        raise ConfigError(f"input {input_dtype!r}; choose one of {', '.join(INPUTS)}")
    mean, std = preprocessing["mean"], preprocessing["std"]
    network = backbone.clone(dtype=np.dtype("float32"))

    def features(images: jax.Array) -> Any:
        return network.apply(variables, augment.normalize(images, mean, std))

    (batch,) = jax.export.symbolic_shape("b")
    size = preprocessing["image_size"]
    images = jax.ShapeDtypeStruct((batch, size, size, 3), INPUTS[input_dtype])
    with portable(), jax.default_matmul_precision("highest"):
        program = jax.export.export(jax.jit(features), platforms=platforms)(images)
    content = bytes(program.serialize())
    files.write_whole(Path(path), content)
    return hashlib.sha256(content).hexdigest()
