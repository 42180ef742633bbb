"""Backbones, the projector, and the model that is pretrained."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sfrik_jax.models import resnet
from sfrik_jax.models.projector import Projector

BACKBONES: dict[str, Callable[..., resnet.ResNet]] = {
    "resnet14": resnet.ResNet14,
    "resnet18": resnet.ResNet18,
    "resnet34": resnet.ResNet34,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
    "resnet50x2": resnet.ResNet50x2,
}


class SSLModel(nn.Module):
    """A backbone and its projector: images to features h and embeddings z."""

    backbone: resnet.ResNet
    projector: Projector

    def __call__(
        self, images: jax.Array, *, train: bool, joint: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """One group of views of equal size.

        Args:
          images: [B, V, H, W, 3], normalised.
          train: use and update batch statistics, those of each view apart.
          joint: take the statistics over all views of the group together.

        Returns:
          h [B, V, features] and z [B, V, q].
        """
        batch, views = images.shape[:2]
        # Batch-major, so that merging the axes of a sharded batch moves no data.
        flat = images.reshape(batch * views, *images.shape[2:])
        apart = 1 if joint else views
        h = self.backbone(flat, train=train, views=apart)
        z = self.projector(h, train=train, views=apart)
        # Of split columns a device has the rows of all devices.
        return h.reshape(batch, views, -1), z.reshape(-1, views, z.shape[-1])

    def on_axes(
        self, rows: str, columns: str | None, reduce_dtype: DTypeLike
    ) -> "SSLModel":
        """The model as it runs inside `jax.shard_map`, see `Projector`."""
        return self.clone(
            backbone=self.backbone.clone(axis=rows),
            projector=self.projector.clone(
                rows=rows, columns=columns, reduce_dtype=reduce_dtype
            ),
        )


def build(
    *,
    backbone: str,
    width: int,
    stem: str,
    hidden_dims: Sequence[int],
    embed_dim: int,
    dtype: str,
    remat: str = "none",
) -> SSLModel:
    """The model of a configuration's `model` section; remat is `step.remat`."""
    kind = jnp.dtype(dtype)
    return SSLModel(
        BACKBONES[backbone](width=width, stem=stem, dtype=kind, remat=remat),
        Projector(tuple(hidden_dims), embed_dim, dtype=kind),
    )
