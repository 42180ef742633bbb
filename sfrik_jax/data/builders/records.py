"""Writing a split of any size as ArrayRecord, shuffled, without TensorFlow.

Two passes: pictures are dealt out to the shards in turn, then each shard is read back,
shuffled and written again. The first spreads the classes over the shards and the second
over a shard, so a slice of the split has all classes, and every record was read once.
Memory: one shard, and a buffer for each open file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from sfrik_jax.errors import CorruptInputError

SHARD_BYTES = 1 << 29
# Each record can be read alone; pictures are compressed already.
_OPTIONS = "group_size:1,uncompressed"
_DEALT = ".dealt"


def write_split(
    info: tfds.core.DatasetInfo,
    folder: Path,
    split: str,
    examples: Iterable[dict[str, Any]],
    size: int,
) -> tfds.core.SplitInfo:
    """Writes the shards of a split into a folder.

    Args:
      info: of the set; tells features and name.
      examples: pictures as encoded bytes, the other features as TFDS takes them.
      size: bytes of all pictures, about; decides the number of shards.

    Returns:
      name, lengths of the shards and bytes, for `info.set_splits`.
    """
    template = tfds.core.ShardedFileTemplate(
        dataset_name=info.name,
        data_dir=tfds.core.Path(folder),
        split=split,
        filetype_suffix="array_record",
    )
    count = max(1, size // SHARD_BYTES)
    paths = [
        Path(template.sharded_filepath(shard_index=shard, num_shards=count))
        for shard in range(count)
    ]
    lengths, written = _deal(info.features, examples, paths)
    for shard, path in enumerate(paths):
        _shuffle(path, lengths[shard], seed=shard)
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=written,
        filename_template=template,
    )


def _deal(
    features: Any, examples: Iterable[dict[str, Any]], paths: list[Path]
) -> tuple[list[int], int]:
    """Record k into shard k mod n: lengths of the shards, bytes of all records."""
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    lengths, written = [0] * len(paths), 0
    writers = [_writer(path.with_name(path.name + _DEALT)) for path in paths]
    try:
        for number, example in enumerate(examples):
            record = serializer.serialize_example(features.encode_example(example))
            shard = number % len(paths)
            writers[shard].write(record)
            lengths[shard] += 1
            written += len(record)
    finally:
        for writer in writers:
            writer.close()
    return lengths, written


def _shuffle(path: Path, length: int, seed: int) -> None:
    dealt = path.with_name(path.name + _DEALT)
    reader = array_record_module.ArrayRecordReader(str(dealt))
    try:
        if reader.num_records() != length:
            raise CorruptInputError(
                f"{dealt} holds {reader.num_records()} records of {length}; prepare "
                "the set again"
            )
        found = reader.read_all() if length else []
    finally:
        reader.close()
    dealt.unlink()
    writer = _writer(path)
    try:
        for number in np.random.default_rng(seed).permutation(length):
            writer.write(found[number])
    finally:
        # What the disk does not take is told here, not by `write`.
        writer.close()


def _writer(path: Path) -> array_record_module.ArrayRecordWriter:
    return array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
