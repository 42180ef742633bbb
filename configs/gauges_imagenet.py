"""Gauges without labels on ImageNet: rank, alignment, uniformity, distance to uniform.

Source: RankMe (arXiv 2210.02885), alignment and uniformity (arXiv 2005.10242), and the
Wasserstein distance to the uniform law (arXiv 2403.00642); docs/evaluation.md has the
formulas. 10,000 train pictures at equal distances, two views of each by the recipe of
the paper. They compare checkpoints of one run, or runs of one method; no label is used.

python -m sfrik_jax gauges --config configs/gauges_imagenet.py --weights runs/r50

Hardware: one accelerator; of a run the embeddings too, 1.3 GB for each view where q is
32,768. Time and figures: not yet run here. Published: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import augment_section, default


def get_config(recipe: str = "vicreg") -> ConfigDict:
    """10,000 pictures, two views of 224 px by the "vicreg" or "simclr" recipe."""
    config = default("gauges")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.image_size = 224
    config.data.resize = 256
    config.augment = augment_section(recipe)

    config.gauges.images = 10_000
    return config
