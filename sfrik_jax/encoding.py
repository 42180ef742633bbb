"""A backbone as evaluators call it: uint8 pictures in, features out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from sfrik_jax import augment
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.evaluators.features import Encode
from sfrik_jax.models.resnet import ResNet


def encoder(
    backbone: ResNet,
    variables: Any,
    mesh: Mesh,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Encode:
    """Features of uint8 [b, S, S, 3] in eval mode; `b` a multiple of the mesh's data.

    Args: mean, std: per channel, for values in 0 … 1.
    """
    sharding = mesh_lib.batch_sharding(mesh)
    statistics = tuple(map(float, mean)), tuple(map(float, std))
    return lambda images: _encode(
        backbone, *statistics, variables, jax.device_put(images, sharding)
    )


def local_copy(variables: Any, mesh: Mesh) -> Any:
    """Variables that are whole on each device of a job, on those of this process.

    Args: mesh: of devices of this process.
    """
    whole = mesh_lib.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.device_put(x.addressable_data(0), whole), variables
    )


# One function for all encoders: the same network compiles once.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(backbone, mean, std, variables, images):
    pixels = augment.normalize(images, dtype=backbone.dtype, mean=mean, std=std)
    return backbone.apply(variables, pixels)
