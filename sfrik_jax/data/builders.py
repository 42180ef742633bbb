"""TFDS builders of the project's own sets: ArrayRecord, no TensorFlow, no network.

TFDS writes into a directory with a temporary name and renames it when all is done, so a
preparation that was cut short is never taken for a whole one.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sfrik_jax.data import idx, photos, prepared
from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    DiskFullError,
    MissingInputError,
    OutputError,
    SfrikError,
)

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
_MINI_FILE = Path(__file__).parent / "fashion_mini" / "images.npz"

Example = tuple[str, dict[str, Any]]


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the sets share. None is registered, so TFDS's own names stay free."""

    VERSION = tfds.core.Version("1.0.0")
    # The folder that `prepare` was given, for sets made from the user's files.
    source_dir: Path | None = None

    def _describe(
        self,
        shape: tuple[int | None, int | None, int],
        encoding: str,
        classes: Sequence[str],
        description: str,
        homepage: str,
    ) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=shape, encoding_format=encoding)
        label = tfds.features.ClassLabel(names=list(classes))
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage=homepage,
        )


class FashionMini(_Builder, skip_registration=True):
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
        with np.load(_MINI_FILE, allow_pickle=False) as arrays:
            return {
                split: _grey_examples(
                    arrays[f"{split}_images"], arrays[f"{split}_labels"]
                )
                for split in ("train", "test")
            }

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError  # the splits above are generators already


class FashionMnist(_Builder, skip_registration=True):
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

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError  # the splits above are generators already


class PhotoPatches(_Builder, skip_registration=True):
    """Colour JPEG patches of 16 photographs, cut at run time; see `data.photos`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(
            (None, None, 3),
            "jpeg",
            photos.CLASSES,
            "Patches of photographs shipped by scikit-image and scikit-learn.",
            "https://scikit-image.org",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        return {
            split: _examples(list(photos.patches(split))) for split in photos.PER_CLASS
        }

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError  # the splits above are generators already


def _grey_examples(images: np.ndarray, labels: np.ndarray) -> Iterator[Example]:
    return _examples(
        (int(label), _png(image)) for image, label in zip(images, labels, strict=True)
    )


def _png(image: np.ndarray) -> bytes:
    # Handed an array, TFDS would encode it with TensorFlow.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _examples(pictures: Iterable[tuple[int, bytes]]) -> Iterator[Example]:
    for number, (label, data) in enumerate(pictures):
        yield f"{number:05d}", {"image": data, "label": label}


def _download(dl_manager: Any) -> dict[str, tuple[Path, Path]]:
    """Fetches the idx files from where TFDS's own builder does: split → two paths."""
    urls = {
        split: [f"{_FASHION_URL}/{name}.gz" for name in names]
        for split, names in idx.FILES.items()
    }
    try:
        # TFDS itself tries for three minutes before it gives up.
        request = urllib.request.Request(_FASHION_URL, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
        paths = dl_manager.download(urls)
    # A lost connection is an OSError, a refused one TFDS's own error.
    except (OSError, tfds.download.DownloadError) as error:
        raise MissingInputError(
            f"Fashion-MNIST could not be fetched from {_FASHION_URL} "
            f"({type(error).__name__}); get the four idx files (Debian: apt-get "
            "install dataset-fashion-mnist) and run: python -m sfrik_jax data prepare "
            "fashion_mnist --from /usr/share/datasets/fashion-mnist"
        ) from error
    for split, names in idx.FILES.items():
        for name, path in zip(names, paths[split], strict=True):
            _check_digest(Path(path), name)
    return {split: (Path(paths[split][0]), Path(paths[split][1])) for split in paths}


def _check_digest(path: Path, name: str) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _FASHION_SHA256[name]:
        raise CorruptInputError(
            f"{path} is not the {name}.gz of Fashion-MNIST (sha256 {digest}); delete "
            "it and fetch it again"
        )


BUILDERS: dict[str, type[_Builder]] = {
    "fashion_mini": FashionMini,
    "fashion_mnist": FashionMnist,
    "photo_patches": PhotoPatches,
}


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] = "",
    source_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Prepares one of BUILDERS; returns its directory, at once if it is there already.

    Args:
      data_dir: the folder of prepared sets; "" is TFDS's default.
      source_dir: for fashion_mnist, the folder of the idx files; None fetches them.

    Raises:
      ConfigError: unknown name, or a source_dir for a set that takes none.
      MissingInputError: the set's origin is not there; says what to install.
      OutputError, DiskFullError: data_dir cannot be written, or is full.
    """
    if name not in BUILDERS:
        raise ConfigError(f"data set {name!r}; choose one of {sorted(BUILDERS)}")
    if source_dir is not None and name != "fashion_mnist":
        raise ConfigError(f"data set {name!r} takes no source folder; leave it out")
    if ready := prepared.whole(name, data_dir):
        return ready
    root = prepared.data_root(data_dir)
    try:
        return _generate(BUILDERS[name], root, source_dir)
    except SfrikError:
        raise
    except OSError as error:
        # Another process may have prepared the same set in the meantime.
        if ready := prepared.whole(name, data_dir):
            return ready
        kind = DiskFullError if error.errno == errno.ENOSPC else OutputError
        raise kind(
            f"data set {name!r} cannot be written to {root} ({error}); make room or "
            "choose another data folder"
        ) from error


def _generate(
    builder_class: type[_Builder],
    root: Path,
    source_dir: str | os.PathLike[str] | None,
) -> Path:
    tfds.disable_progress_bar()
    builder = builder_class(file_format="array_record", data_dir=root)
    builder.source_dir = None if source_dir is None else Path(source_dir).expanduser()
    directory = Path(builder.data_path)
    # `prepare` found this directory not to be whole; TFDS would take it as it is.
    if directory.exists():
        shutil.rmtree(directory)
    # TFDS announces itself with sizes that it does not know.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return directory
