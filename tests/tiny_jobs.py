"""Evaluation jobs on a tiny backbone and few pictures, for the tests of jobs."""

from pathlib import Path

import jax
import jax.numpy as jnp
from filled import random_variables
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import models, weights

ARCH, WIDTH, STEM, SIZE = "resnet14", 4, "small", 16
PREPROCESSING = {"image_size": SIZE, "resize": 20, "mean": [0.4] * 3, "std": [0.3] * 3}
ABOUT = {"arch": ARCH, "width": WIDTH, "stem": STEM, "preprocessing": PREPROCESSING}
TRAIN, VAL, TEST, BATCH = 96, 40, 50, 32


def variables(seed: int = 0):
    """Filled variables of the tiny backbone, which has 128 features."""
    model = models.BACKBONES[ARCH](width=WIDTH, stem=STEM)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))
    )
    return random_variables(shapes, seed)


def backbone_file(folder: Path, seed: int = 0) -> Path:
    """A file of them; another seed gives other weights."""
    path = folder / f"backbone{seed}.safetensors"
    weights.save(path, variables(seed), ABOUT)
    return path


def settings(job: str, data_dir: Path, weights: Path, *overrides: str) -> ConfigDict:
    """The job on pictures of fashion_mini; the sizes are those of the weights."""
    small = [
        f"weights={weights}",
        "data.name=fashion_mini",
        f"data.path={data_dir}",
        f"data.train_split=train[:{TRAIN}]",
        f"data.val_split=train[{TRAIN}:{TRAIN + VAL}]",
        f"data.test_split=test[:{TEST}]",
        "data.workers=1",
        "mesh.data=1",
    ]
    if job in ("linear", "finetune"):
        section = {"linear": "probe", "finetune": "finetune"}[job]
        small += [
            f"data.batch_size={BATCH}",
            f"{section}.epochs=2",
            f"{section}.val_every_epochs=1",
            "checkpoint.every_steps=2",
            "log.every_steps=1",
        ]
    if job == "gauges":
        small.append("data.test_split=")
    config = configs.apply_overrides(configs.default(job), [*small, *overrides])
    configs.validate(config)
    return config
