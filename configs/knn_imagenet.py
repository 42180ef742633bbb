"""Weighted k-nearest neighbours on ImageNet: no training, no setting to choose.

Source: the evaluation of arXiv 2208.00789: unit features, cosine t, votes of weight
exp(t / 0.07), k = 10, 20, 100 and 200 in one pass.

python -m sfrik_jax knn --config configs/knn_imagenet.py --weights runs/r50
python -m sfrik_jax knn --config configs/knn_imagenet.py:in20 --weights runs/in20

Hardware: as configs/features_imagenet.py, whose features it uses; the search itself is
50,000 x 1,281,167 cosines of 2,048 numbers, 2.6e14 floating-point operations.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default

SUBSETS = {"full": "", "in20": "in20"}


def get_config(part: str = "full") -> ConfigDict:
    """Neighbours among the whole of ImageNet ("full"), or its 20 % ("in20")."""
    if part not in SUBSETS:
        raise ValueError(f"{part!r} is not one of {', '.join(SUBSETS)}")
    config = default("knn")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.train_subset = SUBSETS[part]
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bicubic"

    config.knn.k = (10, 20, 100, 200)
    config.knn.temperature = 0.07
    return config
