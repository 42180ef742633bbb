"""What a supervised job works on: crops to train with, parts to score heads on."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import augment
from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.evaluators.features import Encode, pairs
from sfrik_jax.image_set import BATCH_SIZE
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.subject import Subject, open_subject

Pictures = Iterator[tuple[np.ndarray, np.ndarray]]


class Bench(NamedTuple):
    """What a supervised job works with, opened from its configuration.

    Attributes:
      view: the random crop to train on.
      labels: of the part "train", int32 [N], on each device.
    """

    config: ConfigDict
    mesh: Mesh
    subject: Subject
    parts: dict[str, Source]
    size: parts_of.Sizes
    num_classes: int
    view: View
    loader: TrainLoader
    labels: jax.Array
    steps_per_epoch: int

    def pictures(self, part: str, batch_size: int) -> Pictures:
        """A part as it is evaluated, without the names."""
        named = parts_of.pictures(self.parts[part], self.config, self.size, batch_size)
        with contextlib.closing(named):
            for images, labels, _ in named:
                assert labels is not None  # looked at when the part was opened
                yield images, labels

    def crops(self, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Normalised crops [B, S, S, 3] of a batch, and their labels [B]; traceable."""
        (group,) = augment.make_views(
            batch, (self.view,), self.config.seed, self.subject.backbone.dtype
        )
        group = jax.lax.with_sharding_constraint(
            group, mesh_lib.batch_sharding(self.mesh)
        )
        return group[:, 0], self.labels[batch["index"]]

    def encoder(self, variables: Any) -> Encode:
        """Features of uint8 pictures with the backbone in eval mode."""
        return self.subject.encoder(self.mesh, variables)


def open_bench(config: ConfigDict, subject: Subject | None = None) -> Bench:
    """Opens the pictures, and the weights if they are not yet. Nothing compiles.

    Raises:
      SfrikError: the pictures or the settings do not do.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"{config.job} runs in one process, on all devices of its host; start it "
            f"once, not in {jax.process_count()} processes"
        )
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.model)
    configs.validate(config, num_devices=mesh.size)
    subject = subject or open_subject(config.weights, config.model.dtype)
    subject = subject._replace(variables=mesh_lib.replicate(subject.variables, mesh))
    parts = parts_of.open_parts(config)
    num_classes = parts_of.classes(parts)
    train, size = parts["train"], parts_of.sizes(config, subject)
    view = _crop(config, subject, size)
    loader = _loader(config, train, view, mesh)
    return Bench(
        config,
        mesh,
        subject,
        parts,
        size,
        num_classes,
        view,
        loader,
        mesh_lib.replicate(_labels(train), mesh),
        loader.steps_per_epoch,
    )


def _crop(config: ConfigDict, subject: Subject, size: parts_of.Sizes) -> View:
    return View(
        size.image_size,
        scale=tuple(config.data.crop_scale),
        method=config.data.method,
        flip_prob=config.data.flip_prob,
        mean=tuple(subject.preprocessing["mean"]),
        std=tuple(subject.preprocessing["std"]),
    )


def _loader(config: ConfigDict, train: Source, view: View, mesh: Mesh) -> TrainLoader:
    data = config.data
    if data.batch_size > len(train):
        raise ConfigError(
            f"data.batch_size={data.batch_size} is more than the {len(train)} pictures "
            f"to train on; use at most {len(train)}"
        )
    return TrainLoader(
        train,
        (view,),
        batch_size=data.batch_size,
        seed=config.seed,
        residence=data.residence,
        workers=data.workers,
        worker_type=data.worker_type,
        resample=data.resample,
        mesh=mesh,
        # Another picture in the place of a bad one would have another label.
        bad=BadPictures(len(train), seed=config.seed, may_skip=False),
    )


def _labels(train: Source) -> np.ndarray:
    labels = train.labels
    if labels is None:
        raise CorruptInputError(
            f"{train.name(0)} and the others to train on have no labels; choose "
            "another data.train_split"
        )
    return labels


Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def encoded(bench: Bench, part: str, encode: Encode) -> Blocks:
    """Features [b, d] and labels [b] of a part, block by block, in order."""
    devices = bench.mesh.shape[mesh_lib.DATA]
    size = -(-BATCH_SIZE // devices) * devices
    yield from pairs(encode, bench.pictures(part, size), size)
