"""A prepared TFDS set, its descriptions and record files held against each other."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfrik_jax.errors import CorruptInputError


def open_builder(directory: Path) -> Any:
    """TFDS's reader of a prepared set, its descriptions read.

    Raises:
      CorruptInputError: one of them is missing or damaged.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        assert builder.info.features is not None
        return builder
    # What TFDS raises for a description that is missing or no JSON of its form.
    except (
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise CorruptInputError(
            f"{directory / 'features.json'} or a file beside it is damaged or missing "
            f"({error}); delete {directory} and prepare it again"
        ) from error


def check_counts(
    paths: Sequence[str | os.PathLike[str]], lengths: Sequence[int]
) -> None:
    """Opens each ArrayRecord file and compares its number of records.

    A file that was cut short has lost its index, and counts as one without records.
    Of each file only the end is read.

    Args:
      paths: the files of a split. lengths: the records that each ought to hold.

    Raises:
      CorruptInputError: a number differs, or a file cannot be opened; names the first.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for path, length in zip(paths, lengths, strict=True):
        try:
            reader = ArrayRecordReader(os.fspath(path))
            whole, found = reader.ok(), reader.num_records()
            if whole:  # a damaged reader complains once more when it is closed
                reader.close()
        except (RuntimeError, ValueError, OSError) as error:
            raise _wrong(path, f"cannot be opened ({error})") from error
        if found != length or not whole:
            state = f"holds {found} records" if whole else "is damaged or cut short"
            raise _wrong(path, f"{state}; shardLengths in dataset_info.json: {length}")


def _wrong(path: str | os.PathLike[str], what: str) -> CorruptInputError:
    directory = os.path.dirname(os.fspath(path))
    return CorruptInputError(f"{path} {what}. Delete {directory} and prepare it again")
