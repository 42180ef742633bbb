"""Label-free gauges of a backbone's features, and of a run's embeddings.

Pictures spread over the part "train" are seen twice by the recipe of the section
`augment`, with the network in eval mode: alignment compares the two views, all other
gauges look at the first one.
"""

import contextlib
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sfrik_jax import augment, models
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.data import views as view_recipes
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.opening import SubsetSource
from sfrik_jax.data.progress import Progress
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View
from sfrik_jax.evaluators import gauges
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs.answers import Answer
from sfrik_jax.jobs.features import Opened
from sfrik_jax.subject import Subject


def measure(job: Opened, stop: Stop) -> Answer:
    """The gauges of features, and of embeddings where the weights are a run's."""
    source = spread(job.parts["train"], job.config.gauges.images)
    statistics = {k: tuple(job.subject.preprocessing[k]) for k in ("mean", "std")}
    views = tuple(
        dataclasses.replace(view, **statistics)
        for view in view_recipes.build(job.size.image_size, **job.config.augment)
    )
    seen = two_views(job, source, views, stop)
    figures = {
        f"{kind}/{key}": value
        for kind, (first, second) in seen.items()
        for key, value in gauges.all_gauges(first, second).items()
    }
    count = len(next(iter(seen.values()))[0])
    return Answer(figures | {"gauges/images": count}, {})


def spread(source: Source, count: int) -> Source:
    """`count` pictures at equal distances, which has all classes of a sorted set."""
    if count >= len(source):
        return source
    chosen = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
    return SubsetSource(source, chosen, f"spread:{count}")


def two_views(
    job: Opened, source: Source, views: tuple[View, ...], stop: Stop
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Outputs of the network for two views of each picture, float32 [n, d] each.

    A last partial batch is left out: n is a multiple of the batch.
    """
    config, mesh = job.config, job.mesh
    batch_size = min(config.features.batch_size, len(source))
    batch_size -= batch_size % mesh.size
    loader = TrainLoader(
        source,
        views,
        batch_size=batch_size,
        seed=config.seed,
        workers=config.data.workers,
        mesh=mesh,
    )
    network = _network(job.subject, views, config.seed, mesh)
    seen: dict[str, list[list[np.ndarray]]] = {}
    total = loader.steps_per_epoch
    with (
        contextlib.closing(loader.iterate()) as batches,
        Progress("gauges") as progress,
    ):
        for step, batch in enumerate(itertools.islice(batches, total), 1):
            for kind, outputs in jax.device_get(network(batch)).items():
                rooms = seen.setdefault(kind, [[], []])
                for room, output in zip(rooms, outputs, strict=True):
                    room.append(np.asarray(output, np.float32))
            progress.count("pictures", step * batch_size, total * batch_size)
            stop.check("between two batches")
    return {
        kind: (np.concatenate(first), np.concatenate(second))
        for kind, (first, second) in seen.items()
    }


def _network(subject: Subject, views: tuple[View, ...], seed: int, mesh: Mesh):
    """batch -> {"features": two of [B, d], "embeddings": two of [B, q]}, jitted."""
    dtype = subject.backbone.dtype
    state, model = subject.state, None
    variables: Any = subject.variables
    if state is not None and subject.config is not None:
        sections = subject.config.model.to_dict() | {"dtype": str(np.dtype(dtype))}
        model = models.build(**sections)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = mesh_lib.replicate(variables, mesh)

    def one(variables, images):
        if model is None:
            return {"features": subject.backbone.apply(variables, images)}
        h, z = map(jnp.asarray, model.apply(variables, images[:, None], train=False))
        return {"features": h[:, 0], "embeddings": z[:, 0]}

    @jax.jit
    def both(variables, batch):
        groups = augment.make_views(batch, views, seed, dtype)
        each = [group[:, v] for group in groups for v in range(group.shape[1])]
        first, second = (one(variables, images) for images in each[:2])
        return {kind: (first[kind], second[kind]) for kind in first}

    return lambda batch: both(variables, batch)
