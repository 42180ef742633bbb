"""From the settings to a source: which set, which split, which part of it."""

import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from sfrik_jax.data import prepared, subset_setting, subsets
from sfrik_jax.data.joined import JoinedSource
from sfrik_jax.data.sources import (
    FolderSource,
    Renumbered,
    Source,
    refuse_empty,
)
from sfrik_jax.data.subset_setting import Subset
from sfrik_jax.data.tfds_source import TfdsSource
from sfrik_jax.errors import ConfigError, MissingInputError

log = logging.getLogger("sfrik")


class SubsetSource(Renumbered):
    """The pictures `indices` of a source, numbered from 0; its classes are all of it.

    Args:
      indices: integers [n], ascending.
      name: the setting that chose them.

    Raises:
      ConfigError: the indices are none, not ascending, or beyond the source.
    """

    def __init__(self, source: Source, indices: np.ndarray, name: str) -> None:
        indices = np.asarray(indices, np.int64)
        rising = indices.ndim == 1 and len(indices) and (np.diff(indices) > 0).all()
        if not rising or indices[0] < 0 or indices[-1] >= len(source):
            raise ConfigError(
                f"the subset {name!r} is no rising list of numbers from 0 to "
                f"{len(source) - 1}"
            )
        self._source, self.indices = source, indices
        self.class_names, self.image_shape = source.class_names, source.image_shape
        self.multi_label = source.multi_label
        self.subset = {
            "name": name,
            "size": len(indices),
            "digest": subsets.digest(indices),
        }

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, i: int) -> tuple[Source, int]:
        return self._source, int(self.indices[i])

    @property
    def whole(self) -> Source:
        return self._source.whole

    @property
    def origin(self) -> tuple[object, np.ndarray]:
        split, numbers = self._source.origin
        if isinstance(numbers, range):
            return split, numbers.start + self.indices
        return split, numbers[self.indices]

    @property
    def file_names(self) -> list[str] | None:
        names = self._source.file_names
        return None if names is None else [names[int(i)] for i in self.indices]

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray | None:
        labels = self._source.labels
        return None if labels is None else labels[self.indices]

    @property
    def num_classes(self) -> int | None:
        return self._source.num_classes

    @functools.cached_property
    def fingerprint(self) -> str:
        both = f"{self._source.fingerprint} {subsets.digest(self.indices)}"
        return hashlib.sha256(both.encode()).hexdigest()


def open_source(
    *, source: str, name: str, path: str, split: str, subset: str = "", seed: int = 0
) -> Source:
    """Opens `data.source`: "tfds" (name, path = data_dir) or "folder" (path).

    Args:
      split: of TFDS also several, "train+validation".
      subset: see `subset_setting`; "" is the whole split.
      seed: of a subset that is drawn.
    """
    if source == "tfds":
        return subset_of(_tfds_splits(name, path, split), subset, seed=seed)
    if source == "folder":
        folder = FolderSource(path, split)
        _warn_of_absent_classes(folder, split)
        return subset_of(folder, subset, seed=seed)
    raise ConfigError(f"data.source={source!r}; choose one of ['folder', 'tfds']")


def _tfds_splits(name: str, path: str, split: str) -> Source:
    """One split of a TFDS set or, joined by "+", several that share no picture."""
    pieces = [TfdsSource(name, path, each) for each in prepared.split_names(split)]
    if len(pieces) == 1:
        return pieces[0]
    twice = sum(overlap(a, b) for a, b in itertools.combinations(pieces, 2))
    if twice:
        raise ConfigError(
            f"split {split!r} has {twice} pictures twice; join splits, or slices of "
            "them, that have none in common"
        )
    return JoinedSource(pieces)


def _warn_of_absent_classes(folder: FolderSource, split: str) -> None:
    """A slice goes by path, so of classes in sub-folders it has the first ones."""
    if "[" not in split or folder.labels is None:
        return
    names = folder.class_names or []
    absent = [names[i] for i in np.setdiff1d(np.arange(len(names)), folder.labels)]
    if absent:
        log.warning(
            "split %r of %s has no pictures of %d of %d classes (%s); a subset such as "
            "per_class:N or fraction:F has them all",
            split,
            folder.root,
            len(absent),
            len(names),
            ", ".join(absent[:3]) + (", …" if len(absent) > 3 else ""),
        )


def subset_of(
    source: Source, text: str, *, seed: int, key: str = "data.subset"
) -> Source:
    """The part of a source that a setting asks for; the source itself for "".

    Args:
      text: the value of the setting `key`, see `subset_setting`.

    Raises:
      ConfigError: not such a form, or the source lacks the pictures, the labels or the
        file names that it needs.
      MissingInputError: the list of file names is not there.
    """
    if not text:
        return source
    subset = subset_setting.parse(text, key)
    if len(source.pieces) > 1:
        raise ConfigError(f"{key}={text!r}: it is a part of one split, not of several")
    try:
        return SubsetSource(source, _CHOOSE[subset.kind](source, subset, seed), text)
    except ConfigError as error:
        raise ConfigError(f"{key}={text!r}: {error}") from error


def overlap(a: Source, b: Source) -> int:
    """The number of pictures that two sources share; 0 for those of different splits.

    Pictures are told apart by their place in the split, no picture is read: a copy of
    a picture under another name, or in another set, is not found.
    """
    return sum(_shared(x, y) for x in a.pieces for y in b.pieces)


def _shared(a: Source, b: Source) -> int:
    (split_a, in_a), (split_b, in_b) = a.origin, b.origin
    if split_a != split_b:
        return 0
    if isinstance(in_a, range) and isinstance(in_b, range):
        return max(0, min(in_a.stop, in_b.stop) - max(in_a.start, in_b.start))
    return len(np.intersect1d(in_a, in_b, assume_unique=True))


def num_examples(
    *, source: str, name: str, path: str, split: str, subset: str = "", seed: int = 0
) -> int | None:
    """The number of pictures without reading records; None where that cannot tell.

    Errors: CorruptInputError when there are none.
    """
    if source == "folder":
        try:
            whole = FolderSource(path, split)
        except MissingInputError:
            return None
        return len(subset_of(whole, subset, seed=seed))
    found = prepared.find(name, path)
    if found is None:
        return None
    total = 0
    for each in prepared.split_names(split):
        _, start, stop = prepared.split_range(each, found.lengths)
        refuse_empty(each, start, stop, str(found.directory))
        total += stop - start
    if not subset:
        return total
    return _size(subset_setting.parse(subset), total, found.num_classes)


def _size(subset: Subset, total: int, num_classes: int | None) -> int | None:
    """Pictures of a subset of `total`; a share of each class takes reading labels."""
    if subset.kind == "list":
        return len(subsets.read_list(subset.path))
    if subset.kind == "fraction":
        return None if num_classes else int(subsets.part(total, subset.share))
    return None if num_classes is None else subset.count * num_classes


def _choose_first(source: Source, subset: Subset, seed: int) -> np.ndarray:
    return subsets.first_per_class(
        _file_names(source),
        _labels(source),
        start=subset.start,
        count=subset.count,
        classes=source.class_names or (),
    )


def _choose_per_class(source: Source, subset: Subset, seed: int) -> np.ndarray:
    classes = source.class_names or ()
    return subsets.per_class(
        _labels(source), count=subset.count, seed=seed, classes=classes
    )


def _choose_fraction(source: Source, subset: Subset, seed: int) -> np.ndarray:
    labels = len(source) if source.labels is None else source.labels
    return subsets.fraction(labels, share=subset.share, seed=seed)


def _choose_listed(source: Source, subset: Subset, seed: int) -> np.ndarray:
    return subsets.from_list(_file_names(source), subsets.read_list(subset.path))


_CHOOSE: dict[str, Callable[[Source, Subset, int], np.ndarray]] = {
    "in20": _choose_first,
    "in20_val": _choose_first,
    "per_class": _choose_per_class,
    "fraction": _choose_fraction,
    "list": _choose_listed,
}


def _file_names(source: Source) -> Sequence[str]:
    names = source.file_names
    if names is None:
        raise ConfigError(
            "it goes by file names, and the set stores none (feature file_name or "
            "filename); use per_class:N or fraction:F"
        )
    return names


def _labels(source: Source) -> np.ndarray:
    if source.labels is None:
        has = "several labels a picture" if source.multi_label else "no labels"
        raise ConfigError(
            f"it goes by classes, and the set has {has}; use fraction:F or list:PATH"
        )
    return source.labels
