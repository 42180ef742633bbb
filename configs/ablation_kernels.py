"""Which kernel: weights by hand beside those of named kernels, at equal weight in all.

The weights of a named kernel add up to 1 and those of 1-40-40 to 81, so that its MMD
has the coefficient 81. How strong the MMD is against the alignment is tuned for each:
a quarter, once and four times that. docs/maths.md has the kernels. ":small" has the
orders 1 to 4 of 1-40-40-40 too: there L is compared apart from the sum of the weights,
which ablation_L_q.py leaves as it falls.

python -m sfrik_jax sweep --config configs/ablation_kernels.py:small \
    --workdir runs/kernels
python -m sfrik_jax report runs/kernels

Source: the kernels of docs/maths.md beside that of arXiv 2208.00789.
Hardware: two CPU cores for ":small", which is Fashion-MNIST; without it ImageNet's 20 %
on accelerators. Time and accuracy: docs/results.md; that of ImageNet has not been run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs

BASES = {"full": "imagenet20.py", "small": "fashion_small.py"}
VALIDATION = {
    "full": {"eval.test_split": "train", "eval.test_subset": "in20_val"},
    "small": {"eval.test_split": "train[90%:]"},
}
SEEDS = (0, 1, 2)
STRENGTHS = (0.25, 1.0, 4.0)

# The kernels, and how much their weights add up to.
COMMON: dict[Any, float] = {
    (1.0, 40.0): 41.0,
    (1.0, 40.0, 40.0): 81.0,
    "rbf(2.5)": 1.0,
    "exponential(0.1)": 1.0,
    "bandlimited(3)": 1.0,
}
# The heat kernel's time is near log(q / 2) / q, where its orders 1 to 3 have like
# weights.
KERNELS: dict[str, dict[Any, float]] = {
    "full": {**COMMON, "heat(0.001)": 1.0},
    "small": {
        **COMMON,
        "heat(0.006)": 1.0,
        (1.0,): 1.0,
        (1.0, 40.0, 40.0, 40.0): 121.0,
    },
}


def get_config(size: str = "full") -> ConfigDict:
    """What all runs share."""
    return configs.load(Path(__file__).with_name(configs.chosen(BASES, size)))


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """The final runs: every kernel with every seed."""
    for seed in SEEDS:
        for kernel in KERNELS[size]:
            yield {"loss.weights": kernel, "seed": seed}


def tune(size: str = "full") -> Iterator[dict[str, Any]]:
    """The candidates: every kernel at each strength of the MMD."""
    for kernel, total in KERNELS[size].items():
        for strength in STRENGTHS:
            coefficient = round(81 * strength / total, 4)
            yield {"loss.weights": kernel, "loss.mmd_coeff": coefficient}


def validation(size: str = "full") -> dict[str, Any]:
    """What is tested while tuning."""
    return VALIDATION[size]
