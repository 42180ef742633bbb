"""The idx files of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from sfrik_jax.errors import CorruptInputError, MissingInputError

# The four files, by split: (images, labels).
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UBYTE = 8


def read(path: Path) -> np.ndarray:
    """The uint8 array in an idx file: two zero bytes, type, rank, big-endian sizes."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
        if zeros or kind != _UBYTE:
            raise ValueError("it does not hold unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (ValueError, EOFError, struct.error, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptInputError(
            f"{path} is not a whole idx file ({error}); fetch it again"
        ) from error


def read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] and labels uint8 [N] from their two files."""
    images, labels = read(images_path), read(labels_path)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise CorruptInputError(
            f"{images_path} holds {list(images.shape)} and {labels_path.name} "
            f"{list(labels.shape)}; fetch the files again"
        )
    return images, labels


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] and labels uint8 [N] of "train" or "test"."""
    images_name, labels_name = FILES[split]
    return read_pair(_find(folder, images_name), _find(folder, labels_name))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise MissingInputError(
        f"there is no {name}.gz in {folder}; give the folder of the four idx files"
    )
