"""Workers for reading and decoding, by Grain: numbered tasks in, results in order."""

import atexit
import multiprocessing
import multiprocessing.util  # its work at exit is registered before ours, so done after
import os
import pickle
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from sfrik_jax.errors import WorkerError

T = TypeVar("T")

_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


class _Tasks:
    """What Grain takes for a data source: element k is task(k)."""

    def __init__(self, task: Callable[[int], Any], count: int) -> None:
        self._task, self._count = task, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._task(index)


def num_threads(workers: int) -> int:
    """`data.workers`: 0 is one thread for each core that this process may use."""
    if workers:
        return workers
    # Not every system tells a process's own share.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(allowed(0))


def in_order(
    task: Callable[[int], Any],
    count: int,
    *,
    group: int,
    combine: Callable[[Sequence[Any]], T],
    workers: int,
    ahead: int,
    combined_ahead: int = 0,
    processes: bool = False,
) -> Generator[T]:
    """combine([task(0), …, task(group - 1)]), and so on up to task(count - 1).

    Tasks run in `workers` threads, at most `ahead` of them before they are asked for.
    `combine` runs in the caller's thread, or, with combined_ahead > 0, in one more,
    that many results ahead. The first error of a task is raised in its turn. Closing
    or dropping the iterator stops the threads.

    With `processes` the workers are processes, which take the task pickled and hand
    arrays over in shared memory; `ahead` is then shared out among them.

    Raises:
      WorkerError: a process ended by itself, or was killed.
    """
    import grain
    from grain.experimental import ThreadPrefetchIterDataset

    threads = num_threads(workers)
    tasks = grain.MapDataset.source(_Tasks(task, count))
    if processes:
        _settle_flags()
        each = -(-max(ahead, threads) // threads)
        options = grain.MultiprocessingOptions(threads, per_worker_buffer_size=each)
        inside = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        dataset = tasks.to_iter_dataset(inside).mp_prefetch(options, _begin_worker)
    else:
        buffer = max(ahead, threads)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        dataset = tasks.to_iter_dataset(options)
    dataset = dataset.batch(group, batch_fn=combine)
    if combined_ahead:
        dataset = ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=combined_ahead
        )
    results = _closing(dataset)
    _OPEN.add(results)
    return results


def _closing(dataset: Iterable[T]) -> Generator[T]:
    results: Any = iter(dataset)
    try:
        yield from results
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise WorkerError(
            "a decoding process ended, perhaps killed for want of memory; run the "
            "command again, with fewer data.workers if that was the cause. A program "
            'of your own must start under if __name__ == "__main__", or set '
            "data.worker_type=thread"
        ) from error
    finally:
        results.close()


def _settle_flags() -> None:
    """Grain reads flags of absl before it starts a process; ours are none of them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _begin_worker(number: int, count: int) -> None:
    """In a new process: signals are the parent's to answer, and its end is ours."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cannot_be_sent(task: Any) -> str | None:
    """Why a task cannot go to another process, or None."""
    try:
        pickle.dumps(task)
    # What objects raise that hold a lock, an open file or a local function.
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        return f"the source cannot be sent to other processes ({error})"
    return None


def shared_memory_free() -> int:
    """Bytes that processes may still share: of /dev/shm, where a system has it."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return sys.maxsize


@atexit.register
def _close_all() -> None:
    # A thread that is still at work while the interpreter goes down can abort it.
    for results in list(_OPEN):
        results.close()
