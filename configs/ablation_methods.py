"""SFRIK beside SimCLR, AUH and VICReg on equal terms: one net, one recipe, one budget.

Each method is tuned over the same number of candidates on the validation split, and its
best one is trained with every seed and tested once.

Source: the IN20% runs of arXiv 2208.00789; its rates 0.8 and 1.2 are candidates of all.

python -m sfrik_jax sweep --config configs/ablation_methods.py:small \
    --workdir runs/methods

python -m sfrik_jax report runs/methods

":small" is Fashion-MNIST; ":neighbours" has eight more methods there and holds the runs
of the other.

Hardware: two CPU cores for these two; without an argument ImageNet's 20 % on
accelerators. Time and accuracy: docs/results.md; that of ImageNet has not been run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs

BASES = {
    "full": "imagenet20.py",
    "small": "fashion_small.py",
    "neighbours": "fashion_small.py",
}
SEEDS = (0, 1, 2)

Settings = dict[str, Any]


def _each(key: str, *values: float) -> list[Settings]:
    return [{f"loss.{key}": value} for value in values]


def _both(first: str, second: str, *values: float) -> list[Settings]:
    return [{f"loss.{first}": value, f"loss.{second}": value} for value in values]


def _aligned(key: str, *values: float) -> list[Settings]:
    # 0.5 ‖u - v‖² at q = 1024.
    return [{"loss.alignment_coeff": 512.0, f"loss.{key}": value} for value in values]


# Of each size and method: what is tuned besides the rate, two choices each.
VICREG = _both("invariance_coeff", "variance_coeff", 10.0, 25.0)
SMALL = {
    # q = 1024: 2 and 0.5 ‖u - v‖².
    "sfrik": _each("alignment_coeff", 2048.0, 512.0),
    "simclr": _each("temperature", 0.15, 0.5),
    "auh": _each("alignment_coeff", 1024.0, 256.0),
    "vicreg": VICREG,
}
CHOICES: dict[str, dict[str, list[Settings]]] = {
    "full": {
        "sfrik": _each("alignment_coeff", 2000.0, 4000.0),
        "simclr": _each("temperature", 0.15, 0.5),
        "auh": _each("alignment_coeff", 1000.0, 3000.0),
        "vicreg": VICREG,
    },
    "small": SMALL,
    "neighbours": SMALL
    | {
        "sigreg": _each("sigreg_coeff", 0.02, 0.2),
        "sphere_slices": _aligned("sphere_slices_coeff", 0.02, 0.2),
        "gaussian_mmd": _each("gaussian_mmd_coeff", 1.0, 10.0),
        "wasserstein": _aligned("wasserstein_coeff", 1.0, 4.0),
        "vne": _aligned("vne_coeff", 0.25, 1.0),
        # The rate of n = 256 rows is 389 at most.
        "coding_rate": _aligned("coding_rate_coeff", 0.004, 0.016),
        "mmcr": _each("local_coeff", 0.0, 0.1),
        "barlow_twins": _each("redundancy_coeff", 0.001, 0.005),
    },
}
# With 2 and 6 alone three of the four best candidates had the higher one.
SMALL_RATES = (2.0, 6.0, 12.0)
RATES = {"full": (0.4, 0.8, 1.2), "small": SMALL_RATES, "neighbours": SMALL_RATES}
SMALL_VALIDATION = {"eval.test_split": "train[90%:]"}
VALIDATION = {
    "full": {"eval.test_split": "train", "eval.test_subset": "in20_val"},
    "small": SMALL_VALIDATION,
    "neighbours": SMALL_VALIDATION,
}


def get_config(size: str = "full") -> ConfigDict:
    """What all runs share."""
    return configs.load(Path(__file__).with_name(configs.chosen(BASES, size)))


def sweep(size: str = "full") -> Iterator[Settings]:
    """The final runs: every method with every seed."""
    for seed in SEEDS:
        for method in CHOICES[size]:
            yield {"loss.method": method, "seed": seed}


def tune(size: str = "full") -> Iterator[Settings]:
    """The candidates: of each method the rates by two settings of its loss."""
    for method, choices in CHOICES[size].items():
        for choice in choices:
            for rate in RATES[size]:
                yield {"loss.method": method, **choice, "optim.base_lr": rate}


def validation(size: str = "full") -> Settings:
    """What is tested while tuning."""
    return VALIDATION[size]
