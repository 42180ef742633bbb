"""Which order L and which dimension q: the kernel 1-40-40-40 cut at L, by dimensions.

Source: the ablations of arXiv 2208.00789 (L of 2 and 3, q of 1,024 to 8,192; only the
projector's last width changes). The squared difference of the alignment is averaged
over q, so its coefficient grows with q and ‖z - z'‖² weighs the same in all runs.

python -m sfrik_jax sweep --config configs/ablation_L_q.py:small --workdir runs/L_q
python -m sfrik_jax report runs/L_q

":small" has 3 orders, 3 dimensions and 2 seeds of Fashion-MNIST; ":wide" is the table
of docs/results.md, 4 orders, 4 dimensions and 3 seeds, and holds the other's runs.

Hardware: two CPU cores for these two; without an argument ImageNet's 20 % on
accelerators. Time and accuracy: docs/results.md; that of ImageNet has not been run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sfrik_jax import config as configs

WEIGHTS = (1.0, 40.0, 40.0, 40.0)


class Study(NamedTuple):
    """What a size varies, and the weight of ‖z - z'‖² in all of its runs."""

    base: str
    orders: tuple[int, ...]
    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    alignment: float


STUDIES = {
    # The paper's 4000 at q = 8192.
    "full": Study(
        "imagenet20.py", (1, 2, 3), (1024, 2048, 4096, 8192), (0, 1, 2), 4000 / 8192
    ),
    "small": Study("fashion_small.py", (1, 2, 3), (64, 256, 1024), (0, 1), 2.0),
    "wide": Study(
        "fashion_small.py", (1, 2, 3, 4), (64, 256, 1024, 4096), (0, 1, 2), 2.0
    ),
}


def get_config(size: str = "full") -> ConfigDict:
    """What all runs share."""
    base = configs.chosen(STUDIES, size).base
    return configs.load(Path(__file__).with_name(base))


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """A run for each seed, dimension and order: one whole table after the other."""
    study = STUDIES[size]
    for seed in study.seeds:
        for dim in study.dims:
            for order in study.orders:
                yield {
                    "loss.weights": WEIGHTS[:order],
                    "model.embed_dim": dim,
                    "loss.alignment_coeff": study.alignment * dim,
                    "seed": seed,
                }
