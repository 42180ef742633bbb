"""From a source to batches on the device: the batch is a function of (seed, step).

    epoch = step // steps_per_epoch,   p = (step % steps_per_epoch) · B + j,
    sample j of the step = permutation(seed, epoch, N)[p]

Nothing is stored between steps, so that resuming, replaying one step, and other numbers
of workers or processes give the same batches by construction. Grain starts the workers.
"""

import contextlib
import itertools
import logging
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
from sfrik_jax.data.crops import Chunks, Cutter, Order, Part
from sfrik_jax.data.decode import Picture
from sfrik_jax.data.images import load_images
from sfrik_jax.data.sources import ArraySource, Source
from sfrik_jax.data.views import View
from sfrik_jax.errors import ConfigError

Batch = dict[str, Any]

log = logging.getLogger("sfrik")

RESAMPLES = ("exact", "fast")
WORKER_TYPES = ("auto", "thread", "process")
RESIDENCES = ("auto", "device", "host")
MAX_RESIDENT_BYTES = 4 * 2**30
# Threads share an interpreter. On 16 cores, 500x375 JPEGs to two views of 224 px: 4
# threads 822 pictures/s, 8 threads 1,085, 16 threads 975. 16 processes decoded 3,758,
# without handing them over.
MOST_THREADS = 4
# Batches that are decoded ahead on the host, and that wait on the device.
_HOST_AHEAD = 2
_DEVICE_AHEAD = 1
_NO_END = 2**40


class TrainLoader:
    """Batches of random crops for pretraining.

    A batch is a dict of jax arrays, over all processes: "index" int32 [B] (sample
    numbers), "epoch" int32 [], and by residence

    - host: "views", a tuple with uint8 [B, V_g, s, s, 3] for each run of V_g
      consecutive views of equal size: decoded, cropped and resized by the workers;
    - device: "images" uint8 [N, H, W, C], the whole set, the same buffer in each step,
      and "boxes" int32 [B, V, 4] (top, left, height, width): the step crops.

    With a mesh, arrays over B are sharded along "data" and the others replicated.

    Args:
      views: the recipe's views.
      batch_size: B, over all processes. A last partial batch of an epoch is dropped.
      residence: "device", "host", or "auto": device when all images have one known
        shape and take at most 4 GiB.
      workers: decoding threads or processes; 0 for one per core.
      worker_type: "thread", "process", or "auto": processes from five workers on, when
        there is enough shared memory.
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
        worker_type: str = "auto",
        resample: str = "exact",
        mesh: Mesh | None = None,
        bad: BadPictures | None = None,
    ) -> None:
        _check_choice("residence", residence, RESIDENCES)
        _check_choice("resample", resample, RESAMPLES)
        _check_choice("worker_type", worker_type, WORKER_TYPES)
        _check(len(source), batch_size, mesh)
        self._source, self._mesh = source, mesh
        self._workers, self._worker_type = workers, worker_type
        self.bad = bad or BadPictures(len(source), seed=seed)
        methods = [view.method if resample == "exact" else "fast" for view in views]
        self._cutter = Cutter(source, tuple(views), tuple(methods), seed, self.bad)
        self._rows = mesh_lib.process_rows(batch_size, mesh)
        self._order = Order(len(source), batch_size, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
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
        return next(self._noting(self._host_batches(step, 1, alone=True)))

    def iterate(self, first_step: int = 0) -> Generator[Batch]:
        """The batches of first_step, first_step + 1, … without end, prefetched.

        Close the iterator (or drop it) to stop its workers.
        """
        if self.resident:
            return (self._resident_batch(s) for s in itertools.count(first_step))
        return self._noting(self._host_batches(first_step, _NO_END))

    def rgb(self, i: int) -> np.ndarray:
        """Sample i, or what stands in its place, uncropped: uint8 [H, W, 3]."""
        return self.bad.good(self._source, i, Picture.rgb)[0]

    def indices(self, step: int) -> np.ndarray:
        """Sample numbers of a step over all processes, int32 [B]."""
        return self._order.indices(step)

    def _resident_batch(self, step: int) -> Batch:
        epoch, index = self._order.epoch(step), self.indices(step)[self._rows]
        heights, widths = (np.full(len(index), side) for side in self._sizes)
        boxes = self._cutter.boxes(heights, widths, epoch, index)
        batch = self._split({"index": index, "boxes": boxes})
        return batch | {"images": self._images, "epoch": self._whole(np.int32(epoch))}

    def _noting(self, batches: Generator[tuple[Batch, Found]]) -> Generator[Batch]:
        with contextlib.closing(batches):
            for batch, found in batches:
                self.bad.note(found)
                yield batch

    def _host_batches(
        self, first_step: int, count: int, *, alone: bool = False
    ) -> Generator[tuple[Batch, Found]]:
        """The batches of `count` steps; `alone` starts no processes."""
        chunks = Chunks(self._cutter, self._order, self._rows, first_step)
        processes = not alone and self._in_processes(chunks)
        # Threads write into the batch itself: a batch of their parts would be a copy.
        wholes: dict[int, list[np.ndarray]] = {}
        lock = threading.Lock()

        def write(number: int) -> Part:
            step, rows = chunks.place(number)
            with lock:
                whole = wholes.get(step) or self._cutter.empty(chunks.size)
                wholes[step] = whole
            return chunks.write(number, [part[rows] for part in whole])

        def assemble(parts: Sequence[Part]) -> tuple[Batch, Found]:
            step = parts[0].step
            whole = wholes.pop(step, None) or self._gathered(parts, chunks.size)
            index = self.indices(step)[self._rows]
            batch = self._split({"index": index, "views": tuple(whole)})
            batch["epoch"] = self._whole(np.int32(self._order.epoch(step)))
            return batch, [bad for part in parts for bad in part.found]

        return pipeline.in_order(
            chunks if processes else write,
            count * chunks.per_step,
            group=chunks.per_step,
            combine=assemble,
            workers=self._workers,
            processes=processes,
            ahead=_HOST_AHEAD * chunks.per_step,
            combined_ahead=0 if alone else _DEVICE_AHEAD,
        )

    def _gathered(self, parts: Sequence[Part], size: int) -> list[np.ndarray]:
        """The chunks of other processes in one batch."""
        whole = self._cutter.empty(size)
        for part in parts:
            for room, views in zip(whole, part.views, strict=True):
                room[part.rows] = views
        return whole

    def _in_processes(self, chunks: Chunks) -> bool:
        """Whether processes decode, as `data.worker_type` has it."""
        workers = pipeline.num_threads(self._workers)
        if self._worker_type == "thread":
            return False
        few = workers <= MOST_THREADS
        in_memory = isinstance(self._source.whole, ArraySource)
        if self._worker_type == "auto" and (few or in_memory):
            return False
        reason = pipeline.cannot_be_sent(chunks) or _lacks_memory(chunks, workers)
        if reason and self._worker_type == "process":
            raise ConfigError(f"data.worker_type='process': {reason}")
        if reason:
            log.warning("Threads decode, at a fraction of the speed: %s", reason)
        return not reason

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


def _lacks_memory(chunks: Chunks, workers: int) -> str | None:
    """Why processes cannot hand over what they decode."""
    # Those in the queues, two in the hands of each worker, those of the batch that is
    # being put together, and those that wait to be let go (Grain keeps up to 50).
    waiting = (_HOST_AHEAD + 1) * chunks.per_step + 3 * workers + 50
    needed, free = waiting * chunks.chunk_bytes, pipeline.shared_memory_free()
    if needed <= free:
        return None
    return (
        f"{workers} decoding processes need {needed >> 20} MiB of shared memory, of "
        f"which {free >> 20} MiB are free; give the container more (docker run "
        "--shm-size=8g), lower data.workers or set data.worker_type=thread"
    )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"data.{name}={value!r}; choose one of {choices}")


def _check(count: int, batch_size: int, mesh: Mesh | None) -> None:
    if not 1 <= batch_size <= count:
        raise ConfigError(
            f"data.batch_size={batch_size} does not fit a set of {count} images; "
            f"choose 1 to {count}"
        )
    parts = 1 if mesh is None else mesh.shape[mesh_lib.DATA]
    if batch_size % parts:
        raise ConfigError(
            f"data.batch_size={batch_size} leaves {batch_size % parts} images over "
            f"on {parts} devices along mesh.data; choose a multiple of {parts}"
        )


def _fits_on_device(source: Source) -> bool:
    shape = source.image_shape
    return shape is not None and len(source) * math.prod(shape) <= MAX_RESIDENT_BYTES
