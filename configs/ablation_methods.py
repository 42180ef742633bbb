"""SFRIK beside SimCLR, AUH and VICReg on equal terms: one net, one recipe, one budget.

Each method is tuned over the same number of candidates on the validation split, and its
best one is trained with every seed and tested once. Source of the full protocol: the
IN20% runs of arXiv 2208.00789, whose own rates are among the candidates.

python -m sfrik_jax sweep --config configs/ablation_methods.py:small \
    --workdir runs/methods

python -m sfrik_jax report runs/methods

":small" is Fashion-MNIST on two CPU cores; without it ImageNet's 20 % on accelerators.
Time and accuracy of the small one: docs/results.md. The full one: not yet run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs

BASES = {"full": "imagenet20.py", "small": "fashion_small.py"}
SEEDS = (0, 1, 2)

# Of each size and method: what is tuned besides the rate, two choices each.
CANDIDATES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "full": {
        "sfrik": [{"loss.alignment_coeff": c} for c in (2000.0, 4000.0)],
        "simclr": [{"loss.temperature": t} for t in (0.15, 0.5)],
        "auh": [{"loss.alignment_coeff": c} for c in (1000.0, 3000.0)],
        "vicreg": [
            {"loss.invariance_coeff": c, "loss.variance_coeff": c} for c in (10.0, 25.0)
        ],
    },
    "small": {
        # q = 1024: 2 and 0.5 ‖z - z'‖².
        "sfrik": [{"loss.alignment_coeff": c} for c in (2048.0, 512.0)],
        "simclr": [{"loss.temperature": t} for t in (0.15, 0.5)],
        "auh": [{"loss.alignment_coeff": c} for c in (1024.0, 256.0)],
        "vicreg": [
            {"loss.invariance_coeff": c, "loss.variance_coeff": c} for c in (10.0, 25.0)
        ],
    },
}
RATES = {"full": (0.4, 0.8, 1.2), "small": (2.0, 6.0)}
VALIDATION = {
    "full": {"eval.test_split": "train", "eval.test_subset": "in20_val"},
    "small": {"eval.test_split": "train[90%:]"},
}


def get_config(size: str = "full") -> ConfigDict:
    """What all runs share."""
    return configs.load(Path(__file__).with_name(BASES[size]))


def sweep(size: str = "full") -> Iterator[dict[str, Any]]:
    """The final runs: every method with every seed."""
    for method in CANDIDATES[size]:
        for seed in SEEDS:
            yield {"loss.method": method, "seed": seed}


def tune(size: str = "full") -> Iterator[dict[str, Any]]:
    """The candidates: of each method rates by two settings of its loss."""
    for method, choices in CANDIDATES[size].items():
        for choice in choices:
            for rate in RATES[size]:
                yield {"loss.method": method, **choice, "optim.base_lr": rate}


def validation(size: str = "full") -> dict[str, Any]:
    """What is tested while tuning."""
    return VALIDATION[size]
