"""Gauges without labels on ImageNet: rank, alignment, uniformity, distance to uniform.

Source: RankMe (arXiv 2210.02885), alignment and uniformity (arXiv 2005.10242), and the
Wasserstein distance to the uniform law (arXiv 2403.00642); docs/evaluation.md has the
formulas. 4,096 train pictures at equal distances, two views of each by the recipe of
the paper. They compare checkpoints of one run, or runs of one method; no label is used.

python -m sfrik_jax gauges --config configs/gauges_imagenet.py --weights runs/r50

Hardware: one accelerator. Of a run the embeddings too: where q is 32,768 they are
0.5 GB a view, and take 2 GB while they are put together and measured (an estimate).
Time: the gauges of those embeddings some 5 minutes of CPU time (extrapolated from 54 s
of 2,048 rows); of 10,000 pictures an hour. The pictures: not yet run here. Figures: not
yet run here. rankme is at most the number of pictures: compare equally many.
Published: —
"""

from ml_collections import ConfigDict

from sfrik_jax.config import augment_section, default


def get_config(recipe: str = "vicreg") -> ConfigDict:
    """4,096 pictures, two views of 224 px by the "vicreg" or "simclr" recipe."""
    config = default("gauges")

    config.data.name = "imagenet2012"
    config.data.train_split = "train"
    config.data.image_size = 224
    config.data.resize = 256
    config.augment = augment_section(recipe)

    config.gauges.images = 4_096
    return config
