"""From sample numbers to uint8 crops: the work of one thread or process of the host.

Everything here can be sent to another process.
"""

import functools
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sfrik_jax.data.bad_pictures import BadPictures, Found
from sfrik_jax.data.decode import Picture
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View, crop_boxes, permutation, size_groups
from sfrik_jax.errors import BadPictureError

# Pictures per task: the numbers of 16 crops cost little more than those of one.
CHUNK = 16
_ALIGNMENT = 64

_lock = threading.Lock()
_permutation = functools.lru_cache(maxsize=4)(permutation)


class Order(NamedTuple):
    """Which samples a step takes: those of its place in its epoch's permutation."""

    count: int  # N, pictures of the set
    batch_size: int  # B, over all processes
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last partial batch is dropped."""
        return self.count // self.batch_size

    def epoch(self, step: int) -> int:
        """Of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """Sample numbers of a step over all processes, int32 [B]."""
        with _lock:  # one thread draws an epoch, the others wait for it
            order = _permutation(self.seed, self.epoch(step), self.count)
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size].astype(np.int32)


class Cutter(NamedTuple):
    """Reads pictures and cuts the views of a recipe.

    methods: of resizing, for each view (see `decode.Picture.crops`).
    """

    source: Source
    views: tuple[View, ...]
    methods: tuple[str, ...]
    seed: int
    bad: BadPictures

    def boxes(
        self, heights: np.ndarray, widths: np.ndarray, epoch: int, index: np.ndarray
    ) -> np.ndarray:
        """The crops of some samples: int32 [n, V, 4] (top, left, height, width)."""
        return np.stack(
            [
                crop_boxes(
                    heights,
                    widths,
                    view,
                    seed=self.seed,
                    epoch=epoch,
                    index=index,
                    view_id=number,
                )
                for number, view in enumerate(self.views)
            ],
            axis=1,
        )

    def empty(self, count: int) -> list[np.ndarray]:
        """Room for the views of `count` pictures: [n, V_g, s, s, 3] per size group."""
        groups = size_groups(self.views)
        sides = [self.views[group[0]].size for group in groups]
        return [
            _aligned((count, len(group), side, side, 3))
            for group, side in zip(groups, sides, strict=True)
        ]

    def cut(self, epoch: int, index: np.ndarray, out: Sequence[np.ndarray]) -> Found:
        """Writes the views of some pictures: uint8 [n, V_g, s, s, 3] per size group.

        Returns: what is wrong with bad ones.
        """
        opened = [self.bad.good(self.source, int(i), lambda it: it) for i in index]
        heights = np.array([picture.height for picture, _ in opened])
        widths = np.array([picture.width for picture, _ in opened])
        boxes = self.boxes(heights, widths, epoch, index)
        groups, found = size_groups(self.views), []
        for row, (picture, bad) in enumerate(opened):
            try:
                crops = self._crops(picture, boxes[row])
            except BadPictureError:  # its header was good
                crops, bad = self._crops_instead(epoch, index[row : row + 1])
            found += bad
            for part, group in zip(out, groups, strict=True):
                for place, number in enumerate(group):
                    part[row, place] = crops[number]
        return found

    def _crops(self, picture: Picture, boxes: np.ndarray) -> list[np.ndarray]:
        return picture.crops(list(boxes), [v.size for v in self.views], self.methods)

    def _crops_instead(
        self, epoch: int, index: np.ndarray
    ) -> tuple[list[np.ndarray], Found]:
        """The views of one picture whose damage shows in its pixels."""

        def crops(picture: Picture) -> list[np.ndarray]:
            height, width = np.array([picture.height]), np.array([picture.width])
            return self._crops(picture, self.boxes(height, width, epoch, index)[0])

        return self.bad.good(self.source, int(index[0]), crops)


class Part(NamedTuple):
    """A chunk of a step: its rows in the batch of this process, and what they hold.

    Of arrays it has the views alone: each array that a process hands over is a file.
    """

    step: int
    rows: slice
    views: list[np.ndarray]
    found: Found


class Chunks(NamedTuple):
    """The steps from `first_step` on, in chunks of pictures, numbered through.

    rows: those of this process in the batch.
    """

    cutter: Cutter
    order: Order
    rows: np.ndarray
    first_step: int

    @property
    def size(self) -> int:
        """Pictures of a step in this process."""
        return len(self.rows)

    @property
    def per_step(self) -> int:
        """Chunks of a step; the last one may be smaller."""
        return -(-self.size // CHUNK)

    @property
    def chunk_bytes(self) -> int:
        """What the views of a whole chunk take."""
        return sum(part.nbytes for part in self.cutter.empty(CHUNK))

    def place(self, number: int) -> tuple[int, slice]:
        """The step and the rows of a chunk."""
        steps, chunk = divmod(number, self.per_step)
        stop = min((chunk + 1) * CHUNK, self.size)
        return self.first_step + steps, slice(chunk * CHUNK, stop)

    def __call__(self, number: int) -> Part:
        """A chunk, in memory of its own."""
        _, rows = self.place(number)
        return self.write(number, self.cutter.empty(rows.stop - rows.start))

    def write(self, number: int, out: list[np.ndarray]) -> Part:
        """A chunk, written into `out`."""
        step, rows = self.place(number)
        index = self.order.indices(step)[self.rows][rows]
        found = self.cutter.cut(self.order.epoch(step), index, out)
        return Part(step, rows, out, found)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Room for uint8 at a multiple of 64 bytes: a CPU device takes it without a copy.

    A copy of 300 kB per picture, into fresh memory, is 0.2 of 2 ms in the fast mode.
    """
    size = math.prod(shape)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].reshape(shape)
