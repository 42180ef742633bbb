"""Features of the parts of a data set, stored once and used by every job that asks.

A feature set is found by what it depends on: weights, pictures, sizes, resampling,
dtype. So `knn`, `logreg` and others of the same working directory share them, and a
second run finds them made.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import mesh as mesh_lib
from sfrik_jax import processes
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.progress import Progress
from sfrik_jax.data.sources import Source
from sfrik_jax.evaluators import features as extraction
from sfrik_jax.feature_set import Block, FeatureSet, FeatureWriter
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.subject import Subject, open_subject

FOLDER = "features"


class Opened(NamedTuple):
    """What a job on features works with, opened from its configuration."""

    config: ConfigDict
    mesh: Mesh
    subject: Subject
    parts: dict[str, Source]
    size: parts_of.Sizes

    def identity(self, part: str) -> dict[str, Any]:
        """What the features of a part depend on."""
        source, data = self.parts[part], self.config.data
        return {
            "weights": self.subject.about["sha256"],
            "data": source.fingerprint,
            "subset": source.subset,
            "image_size": self.size.image_size,
            "resize": self.size.resize,
            "method": data.method,
            "mean": list(self.subject.preprocessing["mean"]),
            "std": list(self.subject.preprocessing["std"]),
            "model_dtype": self.config.model.dtype,
            "dtype": self.config.features.dtype,
            "on_error": data.on_error if part == "train" else "raise",
        }

    def place(self, workdir: Path, part: str) -> Path:
        """The directory of the features of a part."""
        text = json.dumps(self.identity(part), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return workdir / FOLDER / f"{part}-{key}"


def own_mesh(config: ConfigDict) -> Mesh:
    """The mesh of the settings, of the devices of this process.

    Each process encodes whole shards of its own: no device waits for another host.
    """
    return mesh_lib.make_mesh(
        config.mesh.data, config.mesh.model, devices=jax.local_devices()
    )


def open_job(config: ConfigDict) -> Opened:
    """Opens weights and pictures. Nothing compiles."""
    mesh = own_mesh(config)
    subject = open_subject(config.weights, config.model.dtype)
    subject = subject._replace(variables=mesh_lib.replicate(subject.variables, mesh))
    parts = parts_of.open_parts(config)
    return Opened(config, mesh, subject, parts, parts_of.sizes(config, subject))


def make(job: Opened, workdir: Path, stop: Stop) -> dict[str, FeatureSet]:
    """The stored features of each part, made as far as they are not there yet.

    With several processes each makes its share of the shards, and waits for the others
    only at the end.

    Raises:
      Preempted: a signal asked to stop; whole shards are kept.
    """
    made = [_make_part(job, part, job.place(workdir, part), stop) for part in job.parts]
    processes.barrier()
    sets = {part: FeatureSet(job.place(workdir, part)) for part in job.parts}
    for fresh, each in zip(made, sets.values(), strict=True):
        if not fresh:
            each.verify()
    return sets


def _make_part(job: Opened, part: str, place: Path, stop: Stop) -> bool:
    """Whether all of it was made now; stored shards have to be verified."""
    source, settings = job.parts[part], job.config.features
    with FeatureWriter(
        place,
        rows=len(source),
        identity=job.identity(part),
        dtype=settings.dtype,
        shard_rows=settings.shard_rows,
        class_names=source.class_names,
    ) as writer:
        due = writer.pending(jax.process_index(), jax.process_count())
        if not due:
            return False
        total = sum(len(writer.rows_of(number)) for number in due)
        done = 0
        bad = _bad_pictures(job, part)
        encode = job.subject.encoder(job.mesh)
        with Progress("features") as progress:
            for number in due:
                for_shard = _blocks(job, part, encode, writer.rows_of(number), bad)
                counted = _counted(
                    for_shard, stop, partial(progress.count, part), done, total
                )
                with contextlib.closing(counted):
                    writer.write_shard(number, counted)
                done += len(writer.rows_of(number))
        if bad is not None and bad.noted:
            print(f"{len(bad.noted)} bad pictures are left out", file=sys.stderr)
        return total == len(source)


def _bad_pictures(job: Opened, part: str) -> BadPictures | None:
    """A bad picture to test or to choose on always raises: figures are of all."""
    data = job.config.data
    if part != "train":
        return None
    return BadPictures(
        len(job.parts[part]),
        seed=job.config.seed,
        on_error=data.on_error,
        max_bad=data.max_bad,
    )


def _blocks(
    job: Opened, part: str, encode: Any, rows: range, bad: BadPictures | None
) -> Generator[Block]:
    devices = job.mesh.size
    size = -(-job.config.features.batch_size // devices) * devices
    named = parts_of.pictures(
        job.parts[part], job.config, job.size, size, rows=rows, bad=bad
    )
    with contextlib.closing(named):
        pictures = ((images, (labels, names)) for images, labels, names in named)
        for features, (labels, names) in extraction.pairs(encode, pictures, size):
            yield features, labels, names


def _counted(blocks, stop: Stop, count, done: int, total: int) -> Generator[Block]:
    """The blocks, told to the display; a stop leaves an unfinished shard."""
    for block in blocks:
        done += len(block[2])
        count(done, total)
        yield block
        stop.check("between two batches of features; finished shards are kept")
