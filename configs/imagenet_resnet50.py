"""ImageNet: SFRIK, ResNet-50, L = 3, q = 32768, 200 epochs.

Source: the IN100% run of arXiv 2208.00789. 625 steps per epoch: the short last batch is
dropped (the original keeps it, 626). configs/imagenet20.py says how to prepare the set.

python -m sfrik_jax pretrain --config configs/imagenet_resnet50.py --workdir runs/r50

Hardware: the paper's q = 32768 takes 30.9 GB on each of 8 GPUs. Here 22.8 GB are
counted, as the projector's columns are split, and 15.9 with step.remat=convolutions.
Published accuracy: 70.3 % linear top-1. Time and accuracy: not yet run here.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax.config import default


def get_config() -> ConfigDict:
    """Two views of 224 px with the recipe of VICReg, batch 2048."""
    config = default()

    config.data.name = "imagenet2012"
    config.eval.test_split = "validation"
    config.data.image_size = 224
    config.data.batch_size = 2048

    config.model.backbone = "resnet50"
    config.model.hidden_dims = (8192, 8192)
    config.model.embed_dim = 32_768

    config.mesh.projector = "data"

    config.loss.weights = (1.0, 40.0, 40.0)
    config.loss.alignment_coeff = 40_000.0
    config.loss.mmd_coeff = 1.0

    config.optim.base_lr = 0.4
    config.optim.epochs = 200
    config.optim.warmup_epochs = 10
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """The embedding dimensions whose time and memory the paper compares."""
    for q in (8192, 16_384, 32_768):
        yield {"model.embed_dim": q}
