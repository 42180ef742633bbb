"""Safetensors files: every rule of their header, then where each tensor lies.

Eight bytes with the length of a JSON header, the header, and the bytes of the tensors
without a gap. Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfrik_jax.errors import CorruptInputError
from sfrik_jax.weights.stored import (
    BFLOAT16,
    MAX_AXES,
    StoredTensor,
    reason,
    row_major,
    shown,
)

# A byte of JSON takes up to 23 as Python objects, and the format allows 100 MB;
# ResNet-101's header has 57 kB.
MAX_HEADER = 1_000_000
METADATA = "__metadata__"
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def tensors(
    path: Path, file: BinaryIO
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors by name, not read yet, and the metadata.

    Raises:
      CorruptInputError: a rule of the format is broken; the message says which.
    """
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        size, header = _header(file, length)
        metadata = header.pop(METADATA, {})
        if type(metadata) is not dict or not all(
            type(value) is str for value in metadata.values()
        ):
            raise ValueError(f"{METADATA} holds something else than text")
        return _entries(header, 8 + size, length), metadata
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        what = "its header nests too deep" if deep else reason(error)
        raise CorruptInputError(
            f"{path} is no sound safetensors file: {what}"
        ) from error


def _header(file: BinaryIO, length: int) -> tuple[int, dict[str, Any]]:
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("it is shorter than the length of a header")
    (size,) = struct.unpack("<Q", start)
    if size > length - 8:
        raise ValueError(f"its header of {size} bytes is longer than the file")
    if size > MAX_HEADER:
        raise ValueError(f"its header of {size} bytes is longer than {MAX_HEADER}")
    data = file.read(size)
    if not data.startswith(b"{"):
        raise ValueError("its header does not start with {")
    try:
        header = json.loads(data.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    return size, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"its header names {shown(twice)} twice")
    return found


def _entries(
    header: dict[str, Any], start: int, length: int
) -> dict[str, StoredTensor]:
    """Tensors whose bytes follow each other from `start` to the end of the file."""
    found, places = {}, []
    for name, entry in header.items():
        dtype, shape, (first, last) = _entry(name, entry)
        strides = row_major(shape)
        found[name] = StoredTensor(dtype, shape, strides, start + first)
        if last - first != found[name].nbytes:
            raise ValueError(
                f"{shown(name)} of shape {list(shape)} and {dtype} takes "
                f"{found[name].nbytes} bytes, not {last - first}"
            )
        places.append((first, last, name))
    end = 0
    for first, last, name in sorted(places):
        if first != end:
            fault = "overlaps another tensor" if first < end else "follows a hole"
            raise ValueError(f"{shown(name)} {fault}")
        end = last
    if end != length - start:
        raise ValueError(f"it holds {length - start} bytes of tensors, not {end}")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], list[int]]:
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(name)} is not told by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise ValueError(f"{shown(name)} is of an unknown dtype")
    if type(shape) is not list or len(shape) > MAX_AXES or not _counts(shape):
        raise ValueError(f"{shown(name)} has an impossible shape")
    if type(offsets) is not list or len(offsets) != 2 or not _counts(offsets):
        raise ValueError(f"{shown(name)} has impossible data_offsets")
    if math.prod(shape) >= 1 << 63:
        raise ValueError(f"{shown(name)} has an impossible shape")
    return DTYPES[dtype], tuple(shape), offsets


def _counts(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
