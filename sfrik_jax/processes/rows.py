"""Rows that the processes of a job have made of their shares, brought together."""

import json

import numpy as np

from sfrik_jax import processes

# Bytes of a process that are on the devices at once.
PIECE_BYTES = 2**25


def share(total: int) -> range:
    """The rows of this process, of `total` that are split in the processes' order."""
    index, count = processes.index(), processes.count()
    return range(total * index // count, total * (index + 1) // count)


def concatenated(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes in their order: [n_0 + … + n_{P-1}, …].

    Waits for the slowest without a device; then the devices exchange piece by piece. A
    process may have none; its array then needs no shape.
    """
    if processes.count() == 1:
        return rows
    from jax.experimental import multihost_utils

    said = [json.loads(t) for t in processes.gather(json.dumps(rows.shape))]
    lengths = [shape[0] for shape in said]
    tail = next((shape[1:] for shape in said if shape[0]), said[0][1:])
    size = max(1, PIECE_BYTES // max(1, rows.dtype.itemsize * int(np.prod(tail))))
    found: list[list[np.ndarray]] = [[] for _ in lengths]
    for start in range(0, max(lengths), size):
        piece = np.zeros((min(size, max(lengths) - start), *tail), rows.dtype)
        mine = rows[start : start + size]
        if len(mine):
            piece[: len(mine)] = mine
        for parts, length, theirs in zip(
            found, lengths, multihost_utils.process_allgather(piece), strict=True
        ):
            parts.append(theirs[: max(0, length - start)])
    empty = np.zeros((0, *tail), rows.dtype)
    return np.concatenate([empty, *(part for parts in found for part in parts)])
