"""A split as the evaluation sees it: resized, centre-cropped, in order.

Of several processes each decodes its share of the pictures.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np

from sfrik_jax import processes
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.images import eval_batches
from sfrik_jax.data.sources import Source
from sfrik_jax.errors import CorruptInputError
from sfrik_jax.processes import rows

# Sets up to this size are decoded once and kept.
CACHED_BYTES = 2**30
BATCH_SIZE = 256
# Sets up to this size have all labels checked before anything compiles, which takes a
# second where each means reading a record. Of larger ones these many, spread over the
# set, as a slow disk needs milliseconds for each; the first pass checks the others.
CHECKED_LABELS = 20_000
SAMPLED_LABELS = 1_000


class ImageSet:
    """The pictures of a split that are this process's, and the labels of all of them.

    Args:
      bad: leaves bad pictures out, if it is there and skips; else the first one raises.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int,
        resize: int,
        workers: int,
        bad: BadPictures | None = None,
    ) -> None:
        self.source = source
        self.left_out = 0  # of all pictures, known once they are `settled`
        self._share = rows.share(len(source))
        self._count: int | None = None  # of this process, after a pass
        self._bad = bad
        # The first picture tells; reading all labels of a large set reads its pictures.
        # Multi-label sets count as unlabelled: kNN and probe take one label a picture.
        self.labelled = (
            source.num_classes is not None
            and not source.multi_label
            and self._first_is_labelled()
        )
        # Of this process, then of all.
        self._own_labels: np.ndarray | None = None
        self._labels: np.ndarray | None = None
        self._settled = False
        self._decode = partial(
            eval_batches,
            source,
            image_size=image_size,
            resize=resize,
            batch_size=BATCH_SIZE,
            workers=workers,
            bad=bad,
        )
        small = len(self._share) * image_size**2 * 3 <= CACHED_BYTES
        self._cache: list[np.ndarray] | None = [] if small else None

    def check_labels(self, least_classes: int) -> None:
        """Checks labels without decoding a picture: all, or SAMPLED_LABELS of many.

        Raises:
          CorruptInputError: a label is missing or out of range, or there are pictures
            of fewer classes.
        """
        total, count = len(self.source), self.source.num_classes
        assert count is not None  # else the set is not labelled
        all_of_it = total <= CHECKED_LABELS
        seen = set()
        for i in np.linspace(0, total - 1, total if all_of_it else SAMPLED_LABELS):
            i = round(i)
            readable, label = self._label(i)
            if not readable:
                continue
            if label is None or not 0 <= label < count:
                raise CorruptInputError(
                    f"{self.source.name(i)} has label {label}, outside 0 … {count - 1} "
                    "of the feature label; prepare the set again"
                )
            seen.add(label)
        if len(seen) < least_classes and all_of_it:
            raise CorruptInputError(
                f"all pictures of the split of {self.source.name(0)} have label "
                f"{min(seen, default=None)}; kNN and probe need two classes or "
                "more, so choose another split"
            )

    def _label(self, i: int) -> tuple[bool, int | None]:
        """Whether picture i can be read, and its label."""
        if self._bad is None:
            return True, self.source.label(i)
        label, bad = self._bad.attempt(
            self.source.name(i), lambda: self.source.label(i)
        )
        return not bad, label

    def _first_is_labelled(self) -> bool:
        labels = map(self._label, range(len(self.source)))
        return next(
            (label is not None for readable, label in labels if readable), False
        )

    def batches(self) -> Iterator[np.ndarray]:
        """The pictures of this process, uint8 [<= BATCH_SIZE, S, S, 3] each."""
        if self._cache:
            yield from self._cache
            return
        made, labels, count = [], [], 0
        for images, batch_labels in self._decode(rows=self._share):
            if self._cache is not None:
                made.append(images)
            if self.labelled:
                labels.append(self._checked(batch_labels))
            count += len(images)
            yield images
        if self._cache is not None:
            self._cache = made
        if self.labelled:
            self._own_labels = np.concatenate([np.zeros(0, np.int32), *labels])
        self._count = count
        if processes.count() == 1:
            self.settle()

    def __len__(self) -> int:
        """Pictures of this process, the bad ones included."""
        return len(self._share)

    def settle(self) -> None:
        """Brings together what the processes know of their pictures; all call it."""
        if self._settled:
            return
        if self.labelled and self._count is None:
            for _ in self.batches():
                pass
        self._settled = self._count is not None or processes.count() > 1
        if self._own_labels is not None:
            self._labels = rows.concatenated(self._own_labels)
        counts = processes.gather("" if self._count is None else str(self._count))
        if all(counts):
            self.left_out = len(self.source) - sum(map(int, counts))

    def _checked(self, labels: np.ndarray | None) -> np.ndarray:
        """The labels of a batch, if all of its pictures have one of the classes."""
        count = self.source.num_classes
        assert count is not None  # else the set is not labelled
        if labels is None or labels.min() < 0 or labels.max() >= count:
            raise CorruptInputError(
                f"{self.source.name(0)} has a label, but another picture of its split "
                f"has none or a label outside 0 … {count - 1}; prepare the set again"
            )
        return labels

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N] of all pictures, None without labels; the first call is of all."""
        self.settle()
        return self._labels

    def first(self, count: int) -> np.ndarray:
        """The first images of the split, uint8 [<= count, S, S, 3], in any process."""
        batches = self.batches()
        if len(self._share) < min(count, len(self.source)):
            batches = (images for images, _ in self._decode())
        needed = itertools.islice(batches, -(-count // BATCH_SIZE))
        return np.concatenate(list(needed))[:count]
