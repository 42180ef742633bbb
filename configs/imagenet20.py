"""ImageNet, 260 pictures per class: SFRIK, ResNet-18, L = 3, q = 8192, 100 epochs.

Source: the IN20% runs of arXiv 2208.00789. 126 steps per epoch: the short last batch is
dropped (the original keeps it, 127). Prepare the data set once, from its tar files:

python -m sfrik_jax data prepare imagenet2012 --from DIR

python -m sfrik_jax pretrain --config configs/imagenet20.py --workdir runs/in20

The multi-crops are configs/imagenet20.py:obow and configs/imagenet20.py:swav. The
validation split gives the final figure. Tune on 260 other pictures per class:

python -m sfrik_jax pretrain --config configs/imagenet20.py --workdir runs/in20_tune \
    --config.eval.test_split=train --config.eval.test_subset=in20_val

Hardware: accelerators with memory for a batch of 2048 in all.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import augment_section, default


def get_config(recipe: str = "vicreg") -> ConfigDict:
    """Two views of 224 px, or the multi-crop of "obow" or "swav"; batch 2048."""
    config = default()

    config.data.name = "imagenet2012"
    config.data.subset = "in20"
    config.eval.test_split = "validation"
    config.data.image_size = 224
    config.augment = augment_section(recipe)
    config.data.batch_size = 2048

    config.model.backbone = "resnet18"
    config.model.hidden_dims = (8192, 8192)
    config.model.embed_dim = 8192

    config.loss.weights = (1.0, 40.0, 40.0)
    config.loss.alignment_coeff = 4000.0
    config.loss.mmd_coeff = 1.0
    # The original leaves SwAV's small crops out of the MMD.
    config.loss.regularize_all = recipe != "swav"

    config.optim.base_lr = 1.2
    config.optim.epochs = 100
    config.optim.warmup_epochs = 10
    return config
