"""STL10: SFRIK, ResNet-18, L = 3, q = 8192, on the 100,000 unlabelled pictures.

Source: the STL10 run of the official code of arXiv 2208.00789. 48 steps per epoch: the
short last batch is dropped (the original keeps it, 49). Prepare the data set once:

python -m sfrik_jax data prepare stl10

python -m sfrik_jax pretrain --config configs/stl10.py --workdir runs/stl10

Hardware: one accelerator; the data set (2.8 GB) stays in its memory.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import augment_section, default


def get_config() -> ConfigDict:
    """Two views of 64 px with the recipe of AUH."""
    config = default()

    config.data.name = "stl10"
    config.data.train_split = "unlabelled"
    config.data.image_size = 64
    config.augment = augment_section("auh")
    config.data.batch_size = 2048

    config.model.backbone = "resnet18"
    config.model.hidden_dims = (8192, 8192)
    config.model.embed_dim = 8192

    config.loss.weights = (1.0, 40.0, 40.0)
    config.loss.alignment_coeff = 4000.0

    config.optim.base_lr = 1.2
    config.optim.epochs = 100
    config.optim.warmup_epochs = 10

    # The pictures to train on have no labels.
    config.eval.train_split = "train"
    config.eval.image_size = 96
    config.eval.resize = 96
    return config
