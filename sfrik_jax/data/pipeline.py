"""Threads for reading and decoding, by Grain: numbered tasks in, results in order."""

import atexit
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

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
) -> Generator[T]:
    """combine([task(0), …, task(group - 1)]), and so on up to task(count - 1).

    Tasks run in `workers` threads, at most `ahead` of them before they are asked for.
    `combine` runs in the caller's thread, or, with combined_ahead > 0, in one more,
    that many results ahead. The first error of a task is raised in its turn. Closing
    or dropping the iterator stops the threads.
    """
    import grain
    from grain.experimental import ThreadPrefetchIterDataset

    threads = num_threads(workers)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(ahead, threads)
    )
    dataset = grain.MapDataset.source(_Tasks(task, count)).to_iter_dataset(options)
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
    finally:
        results.close()


@atexit.register
def _close_all() -> None:
    # A thread that is still at work while the interpreter goes down can abort it.
    for results in list(_OPEN):
        results.close()
