"""Makes images.npz from the idx files of Fashion-MNIST.

python -m sfrik_jax.data.fashion_mini.make /usr/share/datasets/fashion-mnist

That folder is what Debian's package dataset-fashion-mnist installs. From the train and
the test files alike, the first images of each class in a seeded order are taken.
"""

import sys
from pathlib import Path

import numpy as np

from sfrik_jax.data import idx, views

SEED = 0
CLASSES = 10
PER_CLASS = {"train": 500, "test": 100}


def choose(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Positions of `per_class` images of each class, in a seeded order, int64 [n]."""
    order = views.permutation(SEED, 0, len(labels))
    by_class = [order[labels[order] == label][:per_class] for label in range(CLASSES)]
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate(by_class)] = True
    return order[chosen[order]]


def main(source: Path) -> None:
    """Writes images.npz from the idx files of Fashion-MNIST in `source`."""
    arrays = {}
    for split, per_class in PER_CLASS.items():
        images, labels = idx.read_split(source, split)
        chosen = choose(labels, per_class)
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(Path(__file__).with_name("images.npz"), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
