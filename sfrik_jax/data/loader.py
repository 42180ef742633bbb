"""From a source to batches on the device: the batch is a function of (seed, step).

    epoch = step // steps_per_epoch,   p = (step % steps_per_epoch) · B + j,
    sample j of the step = permutation(seed, epoch, N)[p]

Nothing is stored between steps, so that resuming, replaying one step, and other numbers
of workers or processes give the same batches by construction. Grain brings the threads.
"""

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sfrik_jax import mesh as mesh_lib
from sfrik_jax.data import pipeline
from sfrik_jax.data.bad_pictures import BadPictures, Found
from sfrik_jax.data.decode import Picture
from sfrik_jax.data.images import load_images
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View, crop_boxes, permutation, size_groups
from sfrik_jax.errors import BadPictureError, ConfigError

Batch = dict[str, Any]

RESAMPLES = ("exact", "fast")
RESIDENCES = ("auto", "device", "host")
MAX_RESIDENT_BYTES = 4 * 2**30
# Pictures per task of a worker: the numbers of 16 crops cost little more than of one.
_CHUNK = 16
# Batches that are decoded ahead on the host, and that wait on the device.
_HOST_AHEAD = 2
_DEVICE_AHEAD = 1
_NO_END = 2**48
_ALIGNMENT = 64


class TrainLoader:
    """Batches of random crops for pretraining.

    A batch is a dict of jax arrays, over all processes: "index" int32 [B] (sample
    numbers), "epoch" int32 [], and by residence

    - host: "views", a tuple with uint8 [B, V_g, s, s, 3] for each run of V_g
      consecutive views of equal size: decoded, cropped and resized by threads;
    - device: "images" uint8 [N, H, W, C], the whole set, the same buffer in each step,
      and "boxes" int32 [B, V, 4] (top, left, height, width): the step crops.

    With a mesh, arrays over B are sharded along "data" and the others replicated.

    Args:
      views: the recipe's views.
      batch_size: B, over all processes. A last partial batch of an epoch is dropped.
      residence: "device", "host", or "auto": device when all images have one known
        shape and take at most 4 GiB.
      workers: decoding threads; 0 for one per core.
      resample: "exact" is Pillow's result, "fast" one near it in less time.
      bad: what becomes of bad pictures; by default the first one raises.

    Raises:
      ConfigError: batch_size does not suit the set, the mesh or the processes.
      CorruptInputError: a picture is bad, or too many are; raised where its batch is
        due.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[View],
        *,
        batch_size: int,
        seed: int,
        residence: str = "auto",
        workers: int = 0,
        resample: str = "exact",
        mesh: Mesh | None = None,
        bad: BadPictures | None = None,
    ) -> None:
        _check(len(source), batch_size, residence, resample, mesh)
        self._source, self._views = source, tuple(views)
        self._batch_size, self._seed, self._mesh = batch_size, seed, mesh
        self._workers = workers
        self.bad = bad or BadPictures(len(source), seed=seed)
        self._methods = [
            view.method if resample == "exact" else "fast" for view in self._views
        ]
        self._rows = mesh_lib.process_rows(batch_size)
        self._order_lock = threading.Lock()
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: permutation(seed, epoch, len(source))
        )
        self.steps_per_epoch = len(source) // batch_size
        self.resident = residence == "device" or (
            residence == "auto" and _fits_on_device(source)
        )
        if self.resident:
            images = load_images(source, self.bad, workers=workers)
            self._sizes = images.shape[1:3]
            self._images = self._whole(images)

    def batch(self, step: int) -> Batch:
        """The batch of one step (0-based), alone."""
        if self.resident:
            return self._resident_batch(step)
        return next(self._noting(self._host_batches(step, self._chunks, 0)))

    def iterate(self, first_step: int = 0) -> Generator[Batch]:
        """The batches of first_step, first_step + 1, … without end, prefetched.

        Close the iterator (or drop it) to stop its threads.
        """
        if self.resident:
            return (self._resident_batch(s) for s in itertools.count(first_step))
        return self._noting(self._host_batches(first_step, _NO_END, _DEVICE_AHEAD))

    def rgb(self, i: int) -> np.ndarray:
        """Sample i, or what stands in its place, uncropped: uint8 [H, W, 3]."""
        return self.bad.good(self._source, i, Picture.rgb)[0]

    def indices(self, step: int) -> np.ndarray:
        """Sample numbers of a step over all processes, int32 [B]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        with self._order_lock:
            order = self._order(epoch)
        start = place * self._batch_size
        return order[start : start + self._batch_size].astype(np.int32)

    def _boxes(
        self, heights: np.ndarray, widths: np.ndarray, epoch: int, index: np.ndarray
    ) -> np.ndarray:
        """int32 [n, V, 4]."""
        return np.stack(
            [
                crop_boxes(
                    heights,
                    widths,
                    view,
                    seed=self._seed,
                    epoch=epoch,
                    index=index,
                    view_id=number,
                )
                for number, view in enumerate(self._views)
            ],
            axis=1,
        )

    def _resident_batch(self, step: int) -> Batch:
        epoch, index = step // self.steps_per_epoch, self.indices(step)[self._rows]
        heights, widths = (np.full(len(index), side) for side in self._sizes)
        boxes = self._boxes(heights, widths, epoch, index)
        batch = self._split({"index": index, "boxes": boxes})
        return batch | {"images": self._images, "epoch": self._whole(np.int32(epoch))}

    @property
    def _chunks(self) -> int:
        return -(-(self._rows.stop - self._rows.start) // _CHUNK)

    def _noting(self, batches: Generator[tuple[Batch, Found]]) -> Generator[Batch]:
        with contextlib.closing(batches):
            for batch, found in batches:
                self.bad.note(found)
                yield batch

    def _host_batches(
        self, first_step: int, chunks: int, combined_ahead: int
    ) -> Generator[tuple[Batch, Found]]:
        # Threads write into the batch itself: a batch of their parts would be a copy.
        views: dict[int, list[np.ndarray]] = {}
        lock = threading.Lock()

        def decode(number: int) -> tuple[int, np.ndarray, Found]:
            steps, chunk = divmod(number, self._chunks)
            step, rows = first_step + steps, slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
            with lock:
                whole = views[step] = views.get(step) or self._empty()
            index = self.indices(step)[self._rows][rows]
            epoch = step // self.steps_per_epoch
            found = self._decode(epoch, index, [part[rows] for part in whole])
            return step, index, found

        def assemble(
            parts: Sequence[tuple[int, np.ndarray, Found]],
        ) -> tuple[Batch, Found]:
            steps, indices, found = zip(*parts, strict=True)
            batch = {"index": np.concatenate(indices)}
            batch = self._split(batch | {"views": tuple(views.pop(steps[0]))})
            epoch = np.int32(steps[0] // self.steps_per_epoch)
            return batch | {"epoch": self._whole(epoch)}, list(itertools.chain(*found))

        return pipeline.in_order(
            decode,
            chunks,
            group=self._chunks,
            combine=assemble,
            workers=self._workers,
            ahead=_HOST_AHEAD * self._chunks,
            combined_ahead=combined_ahead,
        )

    def _empty(self) -> list[np.ndarray]:
        """Room for this process's views of a step: [b, V_g, s, s, 3] per size group."""
        count = self._rows.stop - self._rows.start
        groups = size_groups(self._views)
        sides = [self._views[group[0]].size for group in groups]
        return [
            _aligned((count, len(group), side, side, 3))
            for group, side in zip(groups, sides, strict=True)
        ]

    def _decode(self, epoch: int, index: np.ndarray, out: list[np.ndarray]) -> Found:
        """Writes the views of some pictures: uint8 [n, V_g, s, s, 3] per size group.

        Returns: what is wrong with bad ones.
        """
        opened = [self.bad.good(self._source, int(i), lambda it: it) for i in index]
        heights = np.array([picture.height for picture, _ in opened])
        widths = np.array([picture.width for picture, _ in opened])
        boxes = self._boxes(heights, widths, epoch, index)
        groups, found = size_groups(self._views), []
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
        return picture.crops(list(boxes), [v.size for v in self._views], self._methods)

    def _crops_instead(
        self, epoch: int, index: np.ndarray
    ) -> tuple[list[np.ndarray], Found]:
        """The views of one picture whose damage shows in its pixels."""

        def crops(picture: Picture) -> list[np.ndarray]:
            height, width = np.array([picture.height]), np.array([picture.width])
            return self._crops(picture, self._boxes(height, width, epoch, index)[0])

        return self.bad.good(self._source, int(index[0]), crops)

    def _split(self, tree: dict[str, Any]) -> dict[str, Any]:
        if self._mesh is None:
            return jax.device_put(tree)
        return mesh_lib.shard_batch(tree, self._mesh)

    def _whole(self, array: np.ndarray | np.generic) -> jax.Array:
        if self._mesh is None:
            return jax.device_put(array)
        # device_put would compare the value between processes, in each step.
        return jax.make_array_from_process_local_data(
            mesh_lib.replicated(self._mesh), np.asarray(array)
        )


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Room for uint8 at a multiple of 64 bytes: a CPU device takes it without a copy.

    A copy of 300 kB per picture, into fresh memory, is 0.2 of 2 ms in the fast mode.
    """
    size = math.prod(shape)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].reshape(shape)


def _check(
    count: int, batch_size: int, residence: str, resample: str, mesh: Mesh | None
) -> None:
    if residence not in RESIDENCES:
        raise ConfigError(f"data.residence={residence!r}; choose one of {RESIDENCES}")
    if resample not in RESAMPLES:
        raise ConfigError(f"data.resample={resample!r}; choose one of {RESAMPLES}")
    if not 1 <= batch_size <= count:
        raise ConfigError(
            f"data.batch_size={batch_size} does not fit a set of {count} images; "
            f"choose 1 to {count}"
        )
    for what, parts in (
        ("processes", jax.process_count()),
        ("devices along mesh.data", 1 if mesh is None else mesh.shape[mesh_lib.DATA]),
    ):
        if batch_size % parts:
            raise ConfigError(
                f"data.batch_size={batch_size} leaves {batch_size % parts} images over "
                f"on {parts} {what}; choose a multiple of {parts}"
            )


def _fits_on_device(source: Source) -> bool:
    shape = source.image_shape
    return shape is not None and len(source) * math.prod(shape) <= MAX_RESIDENT_BYTES
