"""Logistic regression on stored features of ImageNet: a cheap linear probe.

Source: the features and regression of arXiv 2208.00789: each picture is seen once, the
head is trained on features: SGD with momentum 0.9, rate 0.4, decay 1e-6, batch 256, 100
epochs with a cosine per epoch.

python -m sfrik_jax logreg --config configs/logreg_imagenet.py --weights runs/r50
python -m sfrik_jax logreg --config configs/logreg_imagenet.py:in20 --weights runs/in20

To choose rate and decay, eight heads are compared on 260 other pictures per class, and
the final split is left alone:

python -m sfrik_jax logreg --config configs/logreg_imagenet.py:in20_tune \
    --weights runs/in20 --name logreg_tune

Hardware: as configs/features_imagenet.py, whose features it uses.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default

PARTS = ("full", "in20", "in20_tune")


def get_config(part: str = "full") -> ConfigDict:
    """The whole of ImageNet, its 20 %, or the comparison of settings on the 20 %."""
    if part not in PARTS:
        raise ValueError(f"{part!r} is not one of {', '.join(PARTS)}")
    config = default("logreg")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bicubic"

    config.logreg.solver = "sgd"
    config.logreg.learning_rates = (0.4,)
    config.logreg.weight_decays = (1e-6,)
    config.logreg.batch_size = 256
    config.logreg.epochs = 100

    if part != "full":
        config.data.train_subset = "in20"
    if part == "in20_tune":
        config.data.val_split = "train"
        config.data.val_subset = "in20_val"
        config.data.test_split = ""
        config.logreg.learning_rates = (0.1, 0.2, 0.4, 0.8)
        config.logreg.weight_decays = (1e-6, 1e-5)
    return config
