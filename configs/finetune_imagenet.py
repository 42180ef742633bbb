"""Semi-supervised evaluation: backbone and head trained on 1 % or 10 % of ImageNet.

Source: the semi-supervised protocol of arXiv 2208.00789 with SimCLR's file lists. Batch
norm in train mode, batch 256, no weight decay, 20 epochs with a cosine per epoch; rates
of the backbone and the head: 0.004 and 1.0 for 1 %, 0.02 and 0.1 for 10 %.

The lists are 1percent.txt and 10percent.txt of the folder imagenet_subsets in the
repository google-research/simclr; 12,811 and 128,116 names. They are looked for where
the command runs; another place is --config.data.train_subset=list:PATH.

python -m sfrik_jax finetune --config configs/finetune_imagenet.py:1 --weights runs/r50
python -m sfrik_jax finetune --config configs/finetune_imagenet.py:10 \
    --weights runs/r50 --name finetune10

Hardware: accelerators with memory for ResNet-50's gradient at a batch of 256 in all.
Time and accuracy: not yet run here. Published accuracy: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import default

RATES = {"1": (0.004, 1.0), "10": (0.02, 0.1)}


def get_config(percent: str = "1") -> ConfigDict:
    """So many percent of the labels: "1" or "10"."""
    if percent not in RATES:
        raise ValueError(f"{percent!r} is not one of {', '.join(RATES)}")
    config = default("finetune")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.train_subset = f"list:{percent}percent.txt"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.method = "bilinear"
    config.data.batch_size = 256

    backbone, head = RATES[percent]
    config.finetune.backbone_learning_rate = backbone
    config.finetune.head_learning_rate = head
    config.finetune.weight_decay = 0.0
    config.finetune.epochs = 20
    return config
