"""Several splits of a data set as one, such as VOC's trainval."""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from sfrik_jax.data.sources import Renumbered, Source


class JoinedSource(Renumbered):
    """The pictures of several sources of one data set, one source after the other.

    Args:
      sources: in order; they have the same classes.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        first = sources[0]
        self._sources = tuple(sources)
        self._starts = [0, *itertools.accumulate(map(len, sources))]
        self.class_names, self.multi_label = first.class_names, first.multi_label
        same = all(each.image_shape == first.image_shape for each in sources)
        self.image_shape = first.image_shape if same else None

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, i: int) -> tuple[Source, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"picture {i} of {len(self)}")
        number = bisect.bisect_right(self._starts, i) - 1
        return self._sources[number], i - self._starts[number]

    @property
    def pieces(self) -> Sequence[Source]:
        return self._sources

    @property
    def file_names(self) -> list[str] | None:
        names = [each.file_names for each in self._sources]
        known = [each for each in names if each is not None]
        return list(itertools.chain(*known)) if len(known) == len(names) else None

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], read once; None where a source has none."""
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray | None:
        labels = [each.labels for each in self._sources]
        known = [each for each in labels if each is not None]
        return np.concatenate(known) if len(known) == len(labels) else None

    @property
    def num_classes(self) -> int | None:
        return self._sources[0].num_classes

    @functools.cached_property
    def fingerprint(self) -> str:
        each = " ".join(source.fingerprint for source in self._sources)
        return hashlib.sha256(each.encode()).hexdigest()
