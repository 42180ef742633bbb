"""Quickstart: SFRIK on 5,000 pictures of Fashion-MNIST in a few minutes on two cores.

Source: the method of arXiv 2208.00789 with L = 3; the sizes are chosen here for a
laptop. The data set ships with the package; launch/quickstart.sh prepares it.

python -m sfrik_jax pretrain --config configs/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores, no accelerator. Time and accuracy: not yet run here.
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default


def get_config() -> ConfigDict:
    """5,000 + 1,000 grey pictures of 28 px, a narrow ResNet-18, 20 epochs."""
    config = default()

    config.data.name = "fashion_mini"
    config.data.path = "data"
    config.data.image_size = 28
    config.data.batch_size = 256

    config.model.backbone = "resnet18"
    config.model.stem = "small"
    config.model.width = 16
    config.model.hidden_dims = (256, 256)
    config.model.embed_dim = 512
    config.model.dtype = "float32"

    config.optim.epochs = 20
    config.optim.warmup_epochs = 2

    config.checkpoint.every_steps = 100
    config.eval.image_size = 28
    config.eval.resize = 28
    config.eval.every_epochs = 5
    config.eval.baselines = True
    config.log.every_steps = 10
    return config
