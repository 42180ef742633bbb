"""Features of ImageNet's train and validation pictures, for kNN and regression.

Source: the extraction of arXiv 2208.00789: short side to 256 px, bicubic, centre 224.
ResNet-50's 2,048 features of 1,281,167 pictures take 10.5 GB; float16 half of that.
configs/knn_imagenet.py and configs/logreg_imagenet.py use what this command has stored
in the same working directory, and store it themselves where it is missing.

python -m sfrik_jax features --config configs/features_imagenet.py --weights runs/r50

Hardware: one accelerator or several, and cores that decode (docs/evaluation.md).
Time: not yet run here.
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default

SUBSETS = {"full": "", "in20": "in20"}


def get_config(part: str = "full") -> ConfigDict:
    """The whole of ImageNet ("full"), or 260 pictures of each class ("in20")."""
    if part not in SUBSETS:
        raise ValueError(f"{part!r} is not one of {', '.join(SUBSETS)}")
    config = default("features")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.train_subset = SUBSETS[part]
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bicubic"
    return config
