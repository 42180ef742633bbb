"""Reading and decoding every picture of a set, and comparing it with an earlier list.

A decoder accepts many a flipped bit; a list of SHA-256 sums tells each of them.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfrik_jax.data import pipeline, prepared
from sfrik_jax.data.decode import decode_rgb
from sfrik_jax.data.folders import SPLITS
from sfrik_jax.data.hashes import HashList, writing
from sfrik_jax.data.progress import Progress
from sfrik_jax.data.sources import FolderSource, Source
from sfrik_jax.data.tfds_source import TfdsSource
from sfrik_jax.errors import (
    BadPictureError,
    CorruptInputError,
)

# Pictures that the threads decode ahead, and that are handed over at once.
_AHEAD, _GROUP = 256, 32


class Part(NamedTuple):
    """A split to check."""

    split: str
    open: Callable[[], Source]
    root: Path | None = None  # ids are paths; lists have what lies below this folder

    def listed(self, id: str) -> str:
        """How a list names a picture, wherever the set lies, on one line."""
        name = id if self.root is None else os.path.relpath(id, self.root)
        return name.replace("\n", "\\n")

    def owns(self, listed: str) -> bool:
        """Whether a list's name is that of a picture of this split."""
        if self.root is None:
            return listed.startswith(f"{self.split}[")
        whole = not (self.root / self.split).is_dir()
        return whole or listed.startswith(f"{self.split}/")


class Summary(NamedTuple):
    """What was found in a split."""

    split: str
    pictures: int = 0
    bad: int = 0
    size: int = 0  # bytes of the encoded pictures
    sides: tuple[int, int] | None = None  # shortest and longest, pixels
    classes: int | None = None  # None without labels
    empty: Sequence[str] = ()  # classes without a picture


class _Seen(NamedTuple):
    """One picture: a reason if it is bad, and what is known of it all the same."""

    reason: str | None
    digest: str | None
    size: int
    label: int | None
    sides: tuple[int, int] | None


def prepared_parts(
    name: str, data_dir: str, splits: Sequence[str] = ()
) -> Iterator[Part]:
    """The splits of a prepared set. Errors: see `prepared.find_whole`."""
    for split in splits or prepared.find_whole(name, data_dir).lengths:
        yield Part(
            split,
            functools.partial(TfdsSource, name, data_dir, split, counted=False),
        )


def folder_parts(path: str, splits: Sequence[str] = ()) -> Iterator[Part]:
    """The splits of a folder; the folder itself when there are none."""
    root = Path(path).expanduser()
    there = [split for split in SPLITS if (root / split).is_dir()]
    for split in splits or there or ("train",):
        yield Part(split, functools.partial(FolderSource, root, split), root)


def check(
    parts: Iterator[Part],
    *,
    workers: int = 0,
    write: Path | None = None,
    against: Path | None = None,
    complete: bool = True,
) -> list[Summary]:
    """Reads all pictures; tells the bad ones on stderr, as `SFRIK-DATA-BAD`.

    Args:
      parts: splits, opened one after another.
      workers: threads; 0 is one for each core.
      write: the file for the list of hashes, written whole or not at all.
      against: an earlier such list.
      complete: the parts are the whole set, so what `against` lists has to be there.

    Returns:
      a summary of each split.

    Raises:
      MissingInputError, CorruptInputError: about the list `against`.
      OutputError, DiskFullError: the list `write` cannot be written.
    """
    known = None if against is None else HashList.read(against)
    summaries, closed, root = [], [], None
    with Progress("checking") as progress, writing(write) as put:
        for part in parts:
            root = part.root
            try:
                source = part.open()
            except CorruptInputError as error:
                _tell(part.split, str(error))
                summaries.append(Summary(part.split, bad=1))
                closed.append(part)
                continue
            summaries.append(_checked(part, source, known, put, progress, workers))
    if known is not None and complete:
        for name in known.unseen():
            if any(part.owns(name) for part in closed):
                continue  # nobody looked
            id = name if root is None else str(root / name)
            _tell(id, f"{against} lists it, and it is not there")
            summaries.append(Summary(name, bad=1))
    return summaries


def _checked(
    part: Part,
    source: Source,
    known: HashList | None,
    put: Callable[[str], None],
    progress: Progress,
    workers: int,
) -> Summary:
    """Reads the pictures of a split and hands over their hashes as lines."""
    tally = _Tally(source, known)
    for i, seen in enumerate(_all_seen(source, workers)):
        id = source.name(i)
        listed = part.listed(id)
        if seen.digest is not None:
            put(f"{seen.digest}  {listed}\n")
        tally.add(id, listed, seen)
        progress.count(part.split, i + 1, len(source))
    summary = tally.summary(part.split)
    if summary.bad or not isinstance(source, TfdsSource):
        return summary  # pictures have told of any damage
    try:
        source.check_files()
    except CorruptInputError as error:
        _tell(part.split, str(error))
        return summary._replace(bad=1)
    return summary


class _Tally:
    """Counts what is seen of a split, and tells what is bad."""

    def __init__(self, source: Source, known: HashList | None) -> None:
        self._known = known
        self._pictures = self._bad = self._size = 0
        self._sides: list[int] = []
        self._num_classes = source.num_classes or 0
        self._names = source.class_names or [str(k) for k in range(self._num_classes)]
        self._counts = np.zeros(self._num_classes, np.int64)
        self._unlabelled: list[str] = []

    def add(self, id: str, listed: str, seen: _Seen) -> None:
        self._pictures += 1
        self._size += seen.size
        if seen.sides is not None:
            sides = (*self._sides, *seen.sides)
            self._sides = [min(sides), max(sides)]
        differs = self._known.compare(listed, seen.digest) if self._known else None
        reason = seen.reason or differs or self._of_label(id, seen)
        if reason is not None:
            self._bad += 1
            _tell(id, reason)

    def _of_label(self, id: str, seen: _Seen) -> str | None:
        if not self._num_classes:
            return None
        if seen.label is None:
            self._unlabelled.append(id)
        elif 0 <= seen.label < self._num_classes:
            self._counts[seen.label] += 1
        else:
            return f"label {seen.label} is not from 0 to {self._num_classes - 1}"
        return None

    def summary(self, split: str) -> Summary:
        """Of all that was added; tells those without a label where others have one."""
        labelled = bool(self._counts.any())
        if labelled:
            self._bad += len(self._unlabelled)
            for id in self._unlabelled:
                _tell(id, "it has no label, and others have")
        return Summary(
            split,
            self._pictures,
            self._bad,
            self._size,
            (self._sides[0], self._sides[1]) if self._sides else None,
            self._num_classes if labelled else None,
            [self._names[k] for k in np.flatnonzero(self._counts == 0)]
            if labelled
            else (),
        )


def _all_seen(source: Source, workers: int) -> Iterator[_Seen]:
    def look(i: int) -> _Seen:
        digest, size, label = None, 0, None
        try:
            item, label = source.example(i)
            data = item if isinstance(item, bytes) else item.tobytes()
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
            height, width, _ = decode_rgb(item, source.name(i)).shape
        except BadPictureError as error:
            return _Seen(error.reason, digest, size, label, None)
        return _Seen(None, digest, size, label, (height, width))

    groups = pipeline.in_order(
        look, len(source), group=_GROUP, combine=list, workers=workers, ahead=_AHEAD
    )
    for group in groups:
        yield from group


def _tell(id: str, reason: str) -> None:
    print(BadPictureError(id, reason).line, file=sys.stderr, flush=True)


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The summaries as a table of texts, a line of heads first."""
    table: list[tuple[str, ...]] = [
        ("split", "pictures", "bad", "classes", "empty", "sides", "bytes")
    ]
    for each in summaries:
        if not each.pictures:
            continue  # told already
        sides = "-" if each.sides is None else f"{each.sides[0]}-{each.sides[1]}"
        classes = "-" if each.classes is None else str(each.classes)
        table.append(
            (
                each.split,
                f"{each.pictures:,}",
                f"{each.bad:,}",
                classes,
                str(len(each.empty)),
                sides,
                f"{each.size:,}",
            )
        )
    return table


def notes(name: str | None, summaries: Sequence[Summary]) -> Iterator[str]:
    """What is not bad and worth a line: empty classes, counts that are not published.

    Args:
      name: of the set, if it has one.
    """
    for each in summaries:
        if each.empty:
            first = ", ".join(each.empty[:3])
            yield f"{each.split}: {len(each.empty)} classes are empty, first {first}"
    want = prepared.PUBLISHED.get(name or "", {})
    for each in summaries:
        count = want.get(each.split, each.pictures)
        if each.pictures and each.pictures != count:
            yield f"{each.split}: {each.pictures:,} pictures, published are {count:,}"
