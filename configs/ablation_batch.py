"""How many images a batch needs: SFRIK and SimCLR by batch size, at equal epochs.

The peak rate is base_lr times batch/256, as always here; a smaller batch takes more
steps. SFRIK's MMD has a bias of sum b_l / n: a constant, without a gradient.

python -m sfrik_jax sweep --config configs/ablation_batch.py:small --workdir runs/batch
python -m sfrik_jax report runs/batch

Source: the method of arXiv 2208.00789; its batch is 2048 throughout.
Hardware: two CPU cores for ":small", which is Fashion-MNIST; without it ImageNet's 20 %
on accelerators. Time and accuracy: neither has been run yet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs

BASES = {"full": "imagenet20.py", "small": "fashion_small.py"}
BATCHES = {"full": (256, 512, 1024, 2048, 4096), "small": (64, 128, 256, 512)}
METHODS = ("sfrik", "simclr")
SEEDS = (0, 1, 2)


def get_config(size: str = "full") -> ConfigDict:
    """What all runs share."""
    return configs.load(Path(__file__).with_name(configs.chosen(BASES, size)))


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """One run for each seed, method and batch size."""
    for seed in SEEDS:
        for method in METHODS:
            for batch in BATCHES[size]:
                yield {
                    "loss.method": method,
                    "data.batch_size": batch,
                    "seed": seed,
                }
