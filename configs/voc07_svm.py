"""VOC07: a linear SVM for each of the 20 classes on frozen features.

Source: the VOC07 evaluation of arXiv 2208.00789: trained on trainval, tested on test;
the cost of each class by cross-validation over 0.01 … 1000; mean average precision at
11 points; low-shot with 1 … 96 pictures of each class, five samples. Preparing the set
needs TensorFlow, once:

python -m sfrik_jax data prepare voc/2007

python -m sfrik_jax voc-svm --config configs/voc07_svm.py --weights runs/r50

Hardware: 9,963 pictures are encoded once; the SVMs take CPU cores.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default


def get_config() -> ConfigDict:
    """5,011 pictures of trainval, which TFDS keeps as two splits, and 4,952 of test."""
    config = default("voc_svm")

    config.data.name = "voc/2007"
    config.data.train_split = "train+validation"
    config.data.test_split = "test"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bicubic"

    config.svm.low_shot = (1, 2, 4, 8, 16, 32, 64, 96)
    config.svm.low_shot_samples = 5
    return config
