"""Quickstart: SFRIK on 5,000 pictures of Fashion-MNIST in a few minutes on two cores.

Source: the method of arXiv 2208.00789 with L = 3; the sizes are chosen here for a
laptop. The data set ships with the package; launch/quickstart.sh prepares it.

python -m sfrik_jax pretrain --config configs/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores, no accelerator: 206 to 221 s of training. Linear probe 83.7 to
84.9 %, the untrained network 72.5 to 74.5 %, kNN on raw pixels 80.4 % (README.md).
"""

from ml_collections import ConfigDict

from sfrik_jax.config import augment_section, default


def get_config() -> ConfigDict:
    """5,000 + 1,000 grey pictures of 28 px, a light ResNet, 8 epochs of 39 steps."""
    config = default()

    config.data.name = "fashion_mini"
    config.data.path = "data"
    config.augment = augment_section("small")
    # Crops enlarged to 48 px: after the standard stem the blocks work on 12x12 maps, at
    # a fifth of the products of 28x28 maps behind the small stem.
    config.data.image_size = 48
    config.data.batch_size = 128

    # Bottlenecks of width 32 give 1,024 features, as many products as plain blocks of
    # that width take to give 256.
    config.model.backbone = "resnet14"
    config.model.width = 32
    config.model.hidden_dims = (1024, 1024)
    config.model.embed_dim = 1024
    config.model.dtype = "float32"

    # The squared difference is averaged over q: the paper's 4000 is 0.5 ‖z - z'‖² at
    # its q = 8192 and would be 4 here; 2000 is 2.
    config.loss.alignment_coeff = 2000.0

    # LARS moves a tensor by about 1e-3 * rate of its norm in a step: a run of few steps
    # needs a higher rate than the paper's 1.2.
    config.optim.base_lr = 3.0
    config.optim.epochs = 8
    config.optim.warmup_epochs = 1
    config.eval.every_epochs = 4

    config.checkpoint.every_steps = 100
    config.eval.image_size = 48
    config.eval.resize = 48
    config.eval.baselines = True
    config.log.every_steps = 5
    return config
