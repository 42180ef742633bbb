"""A tensor that lies in a file, read when it is needed.

Names and shapes are compared with the network's before any value is read, so that a
hostile file makes nobody hold more than a network of its own size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from sfrik_jax.errors import CorruptInputError

BFLOAT16 = np.dtype(jnp.bfloat16)
FLOATS = (np.dtype("f2"), BFLOAT16, np.dtype("f4"), np.dtype("f8"))
MAX_AXES = 8
NAME_LENGTH, REASON_LENGTH = 80, 300


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file, little-endian.

    Attributes:
      shape, strides: in elements, one of each for an axis.
      start: the byte at which the first element begins.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements from the first in the file to the last, both counted."""
        if 0 in self.shape:
            return 0
        pairs = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in pairs)

    def read(self, file: BinaryIO, name: str) -> np.ndarray:
        """The values as float32.

        Raises:
          CorruptInputError: they are no floating-point numbers, not all there, or not
            all finite.
        """
        if self.dtype not in FLOATS:
            raise CorruptInputError(
                f"{shown(name)} holds {self.dtype} values, not floats"
            )
        file.seek(self.start)
        data = file.read(self.span * self.dtype.itemsize)
        # Strides would reach beyond a shorter buffer, into other memory.
        if len(data) != self.span * self.dtype.itemsize:
            raise CorruptInputError(f"{shown(name)} is cut short")
        flat = np.frombuffer(data, self.dtype)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        values = np.lib.stride_tricks.as_strided(flat, self.shape, steps)
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise CorruptInputError(
                f"{shown(name)} holds values that are not finite in float32"
            )
        return values


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array whose last axis is contiguous."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def check_total(tensors: Iterable[StoredTensor], size: int) -> None:
    """Refuses tensors that share bytes: a small file could fill the memory.

    Args:
      size: of the file, in bytes.

    Raises:
      CorruptInputError: all tensors together are larger than their file.
    """
    if sum(tensor.nbytes for tensor in tensors) > size:
        raise CorruptInputError("its tensors share bytes: together they exceed it")


def shown(text: str, limit: int = NAME_LENGTH) -> str:
    """Text from a file as it may stand in a message: printable, and not long."""
    cut = text[:limit]
    cut = cut if cut.isprintable() and cut else repr(cut)
    return cut if len(text) <= limit >= len(cut) else cut[:limit] + "…"


def reason(error: Exception) -> str:
    """What an error says, which may quote the file, as it may stand in a message."""
    return shown(str(error), REASON_LENGTH)
