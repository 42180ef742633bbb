"""Linear probe on ImageNet: the linear evaluation of arXiv 2208.00789.

Source: the protocol of the paper: a frozen backbone in eval mode, random crops of 224
px with flips, SGD with momentum 0.9, batch 256, rate 0.4 and decay 1e-6, 100 epochs
with a cosine per epoch; tested at 256 px, centre 224, bilinear. The last epoch counts.

python -m sfrik_jax linear --config configs/linear_imagenet.py --weights runs/r50

A backbone of the 20 % is probed on the 20 %. To choose rate and decay, eight heads are
compared on 260 other pictures per class, and the final split is left alone:

python -m sfrik_jax linear --config configs/linear_imagenet.py:in20 --weights runs/in20
python -m sfrik_jax linear --config configs/linear_imagenet.py:in20_tune \
    --weights runs/in20 --name linear_tune

Hardware: one accelerator or several, and cores that decode (docs/evaluation.md).
Time and accuracy: not yet run here. Published accuracy: 70.3 % for ResNet-50 after 200
epochs of the whole set (full); — for the 20 %.
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default

PARTS = ("full", "in20", "in20_tune")


def get_config(part: str = "full") -> ConfigDict:
    """The whole of ImageNet, its 20 %, or the comparison of settings on the 20 %."""
    if part not in PARTS:
        raise ValueError(f"{part!r} is not one of {', '.join(PARTS)}")
    config = default("linear")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bilinear"
    config.data.batch_size = 256

    config.probe.learning_rates = (0.4,)
    config.probe.weight_decays = (1e-6,)
    config.probe.epochs = 100

    if part != "full":
        config.data.train_subset = "in20"
    if part == "in20_tune":
        config.data.val_split = "train"
        config.data.val_subset = "in20_val"
        config.data.test_split = ""
        config.probe.learning_rates = (0.1, 0.2, 0.4, 0.8)
        config.probe.weight_decays = (1e-6, 1e-5)
    return config
