"""Which pictures make a subset: chosen by class, by share or by a list of names.

A subset is a list of picture numbers, int64 and ascending, so that records are read in
the order in which they are stored. A random choice is a function of (seed, number):
what a smaller subset has, a larger one has too.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from sfrik_jax.data.views import SUBSET_STREAM, hash_bits
from sfrik_jax.errors import ConfigError, MissingInputError

# Names that a message quotes.
_QUOTED = 3


def first_per_class(
    names: Sequence[str],
    labels: np.ndarray,
    *,
    start: int,
    count: int,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Pictures start … start + count - 1 of each class, its files sorted by name.

    Names are sorted as strings: "n01440764_10026.JPEG" comes before
    "n01440764_2.JPEG". Equal names keep the order of the set.

    Args:
      names: [N]. labels: integers [N].
      classes: names of all classes, for the message; one without pictures is too small.

    Returns:
      int64 [C · count], ascending.

    Raises:
      ConfigError: a class has fewer than start + count pictures.
    """
    sizes = _class_sizes(labels, start + count, classes)
    order = np.lexsort((np.asarray(names, np.str_), labels))
    return _of_each_class(order, sizes, count, start)


def per_class(
    labels: np.ndarray, *, count: int, seed: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """`count` pictures of each class, drawn by `seed`: int64 [C · count], ascending.

    The subset of a smaller `count` is contained in that of a larger one.

    Args:
      labels, classes: see `first_per_class`.

    Raises:
      ConfigError: a class has fewer than `count` pictures.
    """
    sizes = _class_sizes(labels, count, classes)
    return _of_each_class(_drawn_order(labels, seed), sizes, count)


def fraction(labels: np.ndarray | int, *, share: float, seed: int) -> np.ndarray:
    """A share of each class, drawn by `seed`: int64, ascending.

        count_c = max(1, floor(share · size_c + 1/2))

    The subset of a smaller share is contained in that of a larger one.

    Args:
      labels: integers [N], or N for an unlabelled set, which counts as one class.
      share: above 0 and at most 1.
    """
    labels = np.zeros(labels, np.int64) if isinstance(labels, int) else labels
    sizes = np.bincount(labels)
    return _of_each_class(_drawn_order(labels, seed), sizes, part(sizes, share))


def part(sizes: np.ndarray | int, share: float) -> np.ndarray:
    """How many of `sizes` pictures `fraction` takes, int64 like `sizes`."""
    return np.maximum(1, np.floor(share * np.asarray(sizes) + 0.5)).astype(np.int64)


def from_list(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The pictures whose file names are listed: int64 [len(wanted)], ascending.

    A listed name may leave out folders or the ending, or have more folders in front:
    "n01440764/n01440764_2.JPEG", "n01440764_2.JPEG" and "n01440764_2" are the same.

    Args:
      names: of all pictures, [N]. wanted: the list.

    Raises:
      ConfigError: a listed name is unknown, is that of several pictures, or repeats
        another; tells how many and the first ones.
    """
    asked = {key for each in wanted for key in _keys(each)}
    by_stem: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        stem = _keys(name)[1]
        if stem in asked:
            by_stem.setdefault(stem, []).append(i)
    found = [_matches(each, names, by_stem) for each in wanted]
    _refuse(wanted, [not each for each in found], "are not in the set")
    _refuse(
        wanted,
        [len(each) > 1 for each in found],
        "are those of several pictures; write their folders and endings too",
    )
    indices, first = np.unique([each[0] for each in found], return_index=True)
    repeats = np.ones(len(wanted), bool)
    repeats[first] = False
    _refuse(wanted, repeats, "name a picture again; list each once")
    return indices.astype(np.int64)


def read_list(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file, without blank ones.

    Raises:
      MissingInputError: it cannot be read.
      ConfigError: it is empty.
    """
    try:
        text = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise MissingInputError(
            f"the list of file names {str(path)!r} cannot be read ({error.strerror})"
        ) from error
    # As file systems give names, so that those that are not UTF-8 are found too.
    lines = [line.strip() for line in os.fsdecode(text).splitlines()]
    wanted = [line for line in lines if line]
    if not wanted:
        raise ConfigError(f"{path} lists no file names; write one on each line")
    return wanted


def digest(indices: np.ndarray) -> str:
    """The SHA-256 of the numbers as little-endian int64, in hex."""
    return hashlib.sha256(np.asarray(indices, "<i8").tobytes()).hexdigest()


def _class_sizes(labels: np.ndarray, needed: int, classes: Sequence[str]) -> np.ndarray:
    """Pictures of each class, int64 [C]; ConfigError when one has too few."""
    sizes = np.bincount(labels, minlength=len(classes))
    small = np.flatnonzero(sizes < needed)
    if len(small):
        worst = int(small[0])
        name = f" {classes[worst]!r}" if classes else ""
        raise ConfigError(
            f"class {worst}{name} has {sizes[worst]} pictures, {needed} are needed "
            f"({len(small)} of {len(sizes)} classes have fewer); choose a larger split "
            "or another subset"
        )
    return sizes


def _drawn_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Class by class, the pictures of each in an order drawn by `seed`."""
    keys = hash_bits(seed, SUBSET_STREAM, np.arange(len(labels)))
    return np.lexsort((keys, labels))


def _of_each_class(
    order: np.ndarray, sizes: np.ndarray, count: np.ndarray | int, start: int = 0
) -> np.ndarray:
    """Places start … start + count - 1 of each class in `order`, as rising numbers.

    Args:
      order: picture numbers, class by class. sizes: of the classes, [C].
      count: one number, or [C].
    """
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(order)) - np.repeat(first, sizes)
    stop = start + np.repeat(np.broadcast_to(count, sizes.shape), sizes)
    return np.sort(order[(place >= start) & (place < stop)]).astype(np.int64)


def _keys(name: str) -> tuple[str, str]:
    """The file name without folders, as it is and without the ending."""
    base = name.rpartition("/")[2]
    return base, os.path.splitext(base)[0]


def _matches(
    wanted: str, names: Sequence[str], by_stem: dict[str, list[int]]
) -> list[int]:
    """The pictures that a listed name may mean: best the same name, then the same file.

    Folders have to agree as far as both names tell them.
    """
    base, stem = _keys(wanted)
    folders = PurePosixPath(wanted).parent.parts
    near: list[int] = []
    # A name without its ending may have a dot of its own.
    for i in by_stem.get(base) or by_stem.get(stem, []):
        others = PurePosixPath(names[i]).parent.parts
        depth = min(len(folders), len(others))
        if folders[len(folders) - depth :] == others[len(others) - depth :]:
            near.append(i)
    same_name = [i for i in near if names[i] == wanted]
    return same_name or [i for i in near if _keys(names[i])[0] == base] or near


def _refuse(wanted: Sequence[str], bad: Sequence[bool] | np.ndarray, what: str) -> None:
    """ConfigError about the listed names that are bad, if any."""
    culprits = [name for name, wrong in zip(wanted, bad, strict=True) if wrong]
    if culprits:
        quoted = ", ".join(repr(name) for name in culprits[:_QUOTED])
        raise ConfigError(
            f"{len(culprits)} of {len(wanted)} listed names (first {quoted}) {what}"
        )
