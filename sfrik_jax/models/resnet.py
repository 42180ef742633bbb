"""ResNets in torchvision's v1.5 layout, with PyTorch's padding and init.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016,
arXiv 1512.03385; the stride of a bottleneck is in its 3x3 convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sfrik_jax.models.layers import SAVED, convolution, max_pool
from sfrik_jax.models.norm import STATISTICS, BatchNorm, relu

# What the backward pass finds stored, and what it computes again. Each unit's input
# is stored; within it, with "convolutions", also what convolutions and the pooling
# give, so that only batch norm and ReLU run twice. Stored statistics spare a second
# sum over the devices.
REMAT = ("none", "convolutions", "blocks")
_STORED = {"convolutions": (*SAVED, STATISTICS), "blocks": (STATISTICS,)}

# Normal with variance 2 / (kh kw out), PyTorch's kaiming_normal_(mode="fan_out").
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A residual block; `bottleneck` chooses 1x1-3x3-1x1 over 3x3-3x3.

    Attributes:
      width: channels inside; a bottleneck returns 4 times as many.
      stride: of the (first) 3x3 convolution.
      conv, norm: constructors that carry the dtypes.
    """

    width: int
    stride: int
    bottleneck: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, views: int) -> jax.Array:
        s = self.stride
        if self.bottleneck:
            out = 4 * self.width
            plan = [(self.width, 1, 1), (self.width, 3, s), (out, 1, 1)]
        else:
            out = self.width
            plan = [(out, 3, s), (out, 3, 1)]
        y = x
        for i, (features, size, stride) in enumerate(plan, 1):
            last = i == len(plan)
            y = self.conv(features, size, stride, name=f"conv{i}")(y)
            norm = self.norm(zero_scale=last, name=f"bn{i}")
            y = norm(y, train=train, views=views)
            if not last:
                y = relu(y)
        if s != 1 or x.shape[-1] != out:
            x = self.conv(out, 1, s, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train=train, views=views)
        return relu(x + y)


class ResNet(nn.Module):
    """A ResNet without its classifier: images to globally averaged features.

    Attributes:
      stage_sizes: blocks in each stage; the width doubles from stage to stage.
      bottleneck: 1x1-3x3-1x1 blocks, with 4 times as many output channels.
      width: channels of the stem and of the first stage's blocks; 64 is standard.
      widen: multiplies every width (2 in ResNet-50x2).
      stem: "imagenet" (7x7 stride 2, max pooling) or "small" (3x3 stride 1, no
        pooling; for images up to 64 px).
      dtype: of the arithmetic. Parameters are float32, or float64 with float64.
      axis: inside `jax.shard_map`, the mesh axis over which the images are split.
      remat: what the backward pass computes again: "none"; "convolutions", all but what
        convolutions and the pooling give, by stage; "blocks", all but the blocks'
        inputs. Values, gradients and statistics are the same.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    width: int = 64
    widen: int = 1
    stem: str = "imagenet"
    dtype: DTypeLike = jnp.float32
    axis: str | None = None
    remat: str = "none"

    @property
    def features(self) -> int:
        """The number of output features."""
        channels = self.width * self.widen * 2 ** (len(self.stage_sizes) - 1)
        return channels * (4 if self.bottleneck else 1)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, views: int = 1
    ) -> jax.Array:
        """Features of images.

        Args:
          images: [B * views, H, W, 3], normalised; the views of an image adjacent.
          train: use and update batch statistics (collection "batch_stats").
          views: V, each with batch-norm statistics of its own.

        Returns:
          [B * views, features], float32 or wider.
        """
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        dtypes = {"dtype": self.dtype, "param_dtype": param_dtype}
        conv = partial(_conv, **dtypes)
        norm = partial(BatchNorm, axis=self.axis, **dtypes)

        def stem(module: ResNet, x: jax.Array) -> jax.Array:
            small = module.stem == "small"
            size, stride = (3, 1) if small else (7, 2)
            x = conv(module.width * module.widen, size, stride, name="conv1")(x)
            x = relu(norm(name="bn1")(x, train=train, views=views))
            return x if small else max_pool(x)

        def blocks(numbers: Sequence[tuple[int, int]], module: ResNet, x: jax.Array):
            for stage, index in numbers:
                x = Block(
                    width=module.width * module.widen * 2**stage,
                    stride=2 if stage and not index else 1,
                    bottleneck=module.bottleneck,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{index}",
                )(x, train=train, views=views)
            return x

        x = images.astype(self.dtype)
        for unit in (stem, *(partial(blocks, numbers) for numbers in self._units())):
            x = self._stored(unit)(self, x)
        return jnp.mean(x, axis=(1, 2), dtype=param_dtype)

    def _units(self) -> list[list[tuple[int, int]]]:
        """Stage and index of the blocks of which the backward pass makes one unit."""
        stages = [
            [(stage, index) for index in range(count)]
            for stage, count in enumerate(self.stage_sizes)
        ]
        if self.remat == "blocks":
            return [[block] for stage in stages for block in stage]
        return stages

    def _stored(self, unit: Callable) -> Callable:
        """The part of the network, so that its backward pass finds `_STORED` alone."""
        if self.remat == "none":
            return unit
        policy = jax.checkpoint_policies.save_only_these_names(*_STORED[self.remat])
        return nn.remat(unit, policy=policy)


def _conv(features: int, size: int, stride: int, *, name: str, **dtypes) -> nn.Conv:
    """A convolution without bias, padded symmetrically as in PyTorch."""
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        kernel_init=he_fan_out,
        conv_general_dilated=convolution,
        name=name,
        **dtypes,
    )


# Not in the paper: one bottleneck a stage, for a CPU and for small images. At equal
# cost its features are wider than those of plain blocks.
ResNet14 = partial(ResNet, stage_sizes=(1, 1, 1, 1), bottleneck=True)
ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), bottleneck=False)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=False)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True)
ResNet50x2 = partial(ResNet50, widen=2)
