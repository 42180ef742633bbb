"""Fashion-MNIST: a part of it that ships with this package, and all of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sfrik_jax.data import idx
from sfrik_jax.data.builders import base
from sfrik_jax.data.builders.base import Example

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_HOME = "https://github.com/zalandoresearch/fashion-mnist"
# The same address as TFDS's builder. It is not encrypted, hence the digests.
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_FASHION_SHA256 = {
    "train-images-idx3-ubyte": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "t10k-images-idx3-ubyte": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "t10k-labels-idx1-ubyte": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}
MINI_FILE = Path(__file__).parents[1] / "fashion_mini" / "images.npz"


class FashionMini(base.OwnBuilder, skip_registration=True):
    """5,000 + 1,000 images of Fashion-MNIST, shipped with this package."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(
            (28, 28, 1),
            "png",
            FASHION_CLASSES,
            "A balanced part of Fashion-MNIST: 5,000 train and 1,000 test images.",
            _FASHION_HOME,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        with np.load(MINI_FILE, allow_pickle=False) as arrays:
            return {
                split: _grey_examples(
                    arrays[f"{split}_images"], arrays[f"{split}_labels"]
                )
                for split in ("train", "test")
            }


class FashionMnist(base.OwnBuilder, skip_registration=True):
    """All of Fashion-MNIST, from the four idx files: 60,000 + 10,000 images."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(
            (28, 28, 1), "png", FASHION_CLASSES, "Fashion-MNIST.", _FASHION_HOME
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        if self.source_dir is not None:
            folder = self.source_dir
            pairs = {split: idx.read_split(folder, split) for split in idx.FILES}
        else:
            paths = _download(dl_manager)
            pairs = {split: idx.read_pair(*paths[split]) for split in idx.FILES}
        return {split: _grey_examples(*pair) for split, pair in pairs.items()}


def _grey_examples(images: np.ndarray, labels: np.ndarray) -> Iterator[Example]:
    return base.numbered(
        (int(label), base.png(image))
        for image, label in zip(images, labels, strict=True)
    )


def _download(dl_manager: Any) -> dict[str, tuple[Path, Path]]:
    """Fetches the idx files from where TFDS's own builder does: split → two paths."""
    remedy = (
        "get the four idx files (Debian: apt-get install dataset-fashion-mnist) and "
        "run: python -m sfrik_jax data prepare fashion_mnist --from "
        "/usr/share/datasets/fashion-mnist"
    )

    def fetch(name: str) -> Path:
        url = f"{_FASHION_URL}/{name}.gz"
        return base.fetch(dl_manager, url, _FASHION_SHA256[name], remedy)

    return {
        split: (fetch(images), fetch(labels))
        for split, (images, labels) in idx.FILES.items()
    }
