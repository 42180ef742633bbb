"""Features of a whole set of pictures on the disk, which need not fit into memory.

    DIR/about.json          what is stored: rows, dim, dtype, classes, identity
    DIR/00000.features.npy  float32 or float16 [rows, d], NumPy's own form
    DIR/00000.labels.npy    int32 [rows], or int8 [rows, C]; absent without labels
    DIR/00000.names.txt     one name a line; in JSON's form where it is not printable
    DIR/00000.json          rows and SHA-256 of these three; written last

A shard is finished once its JSON file is there. Deleting that file has the shard made
again by the next run of the command that made the set.
"""

from sfrik_jax.feature_set.checks import Block
from sfrik_jax.feature_set.layout import SHARD_ROWS
from sfrik_jax.feature_set.reader import FeatureSet
from sfrik_jax.feature_set.writer import FeatureWriter

__all__ = ["SHARD_ROWS", "Block", "FeatureSet", "FeatureWriter"]
