"""Pretraining: the file to read first.

A run is built from its configuration, goes on from its newest checkpoint, takes steps,
and is evaluated. Batches are functions of (seed, step) and a step is a pure function
of (state, batch), so a run that was stopped and resumed is the run that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import (
    augment,
    metrics,
    models,
    optim,
    train_state,
    weights,
)
from sfrik_jax import (
    config as configs,
)
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data import bad_pictures
from sfrik_jax.data import views as view_recipes
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import Batch, TrainLoader
from sfrik_jax.data.opening import open_source
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View
from sfrik_jax.errors import ConfigError, Preempted, WorkerError
from sfrik_jax.evaluation import Evaluation
from sfrik_jax.evaluators import pictures
from sfrik_jax.interrupts import Stop
from sfrik_jax.run_log import RunLog
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.step import Step, make_train_step
from sfrik_jax.train_state import TrainState

PREVIEW_ROWS = 8
VIEWS_PICTURE = Path("pictures", "views.png")


class Job(NamedTuple):
    """What a run needs, built from its configuration."""

    config: ConfigDict
    mesh: Mesh
    source: Source
    views: tuple[View, ...]
    loader: TrainLoader
    plan: configs.Schedule
    model: models.SSLModel
    random_state: Callable[[], TrainState]
    step: Step


def pretrain(config: ConfigDict, workdir: Path) -> int:
    """Trains to the end of `config`, in or on from `workdir`. Returns exit code 0.

    Raises:
      Preempted: a signal asked to stop, and the state is saved.
      NonFiniteError: the loss or the gradient is not finite.
      SfrikError: see `errors.py`, for what else a user can mend.
    """
    with Stop() as stop, RunDirectory(workdir, config) as run:
        job = build(config)
        run.agree_on_data(job.source.fingerprint)
        bad = job.loader.bad
        bad.resume(run.read_json(bad_pictures.FILE))
        evaluation = Evaluation(
            config, job.mesh, job.model.backbone, job.views[0], job.source, bad
        )
        with _checkpoints(job, run.path) as checkpoints:
            state = checkpoints.restore(_abstract(job)) or _first_state(job)
            done = int(state.step)
            stop.check(f"before step {done + 1}")
            evaluated = run.read_json("summary.json").get("protocol")
            if done == job.plan.total_steps and evaluated == evaluation.protocol:
                print(f"{run.path} is done: step {done} of {done}")
                return 0
            run.start(job.source.fingerprint, job.source.subset)
            bad.save = partial(run.write_json, bad_pictures.FILE)
            if bad.noted:
                bad.save(bad.record())
            if not (run.path / VIEWS_PICTURE).exists():
                preview_job(job, run.path / VIEWS_PICTURE, step=0)
            state, seconds = train(job, state, run, checkpoints, evaluation, stop)
        stop.check(f"after step {job.plan.total_steps}, saved")
        evaluation.finish(run, state, job.random_state, seconds, stop.check)
    return 0


def build(config: ConfigDict) -> Job:
    """Opens the data and makes mesh, model, optimiser and step. Nothing compiles."""
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.model)
    data = config.data
    source = open_source(
        source=data.source,
        name=data.name,
        path=data.path,
        split=data.train_split,
        subset=data.subset,
        seed=config.seed,
    )
    configs.validate(config, num_examples=len(source), num_devices=mesh.size)
    views = view_recipes.build(data.image_size, **config.augment)
    loader = _loader(config, source, views, mesh)
    plan = configs.derive(config, len(source))
    model = models.build(**config.model)
    schedule, optimizer = _optimizer(config, plan.steps_per_epoch)
    loss_settings = dict(config.loss)
    step = make_train_step(
        model,
        optimizer,
        mesh,
        views=views,
        schedule=schedule,
        method=loss_settings.pop("method"),
        loss_settings=loss_settings,
        seed=config.seed,
        log_every=config.log.every_steps,
        last_step=plan.total_steps,
    )

    random_state = jax.jit(
        lambda: train_state.create(config.seed, model, optimizer, data.image_size),
        out_shardings=mesh_lib.replicated(mesh),
    )
    return Job(config, mesh, source, views, loader, plan, model, random_state, step)


def train(
    job: Job,
    state: TrainState,
    run: RunDirectory,
    checkpoints: Checkpoints,
    evaluation: Evaluation,
    stop: Stop,
) -> tuple[TrainState, float]:
    """Steps to the end. Returns the state and the seconds that the steps took.

    They include compilation, the evaluations in between and what earlier sessions
    took, but no evaluation after the last step.
    """
    config, plan, total = job.config, job.plan, job.plan.total_steps
    first = int(state.step)
    with (
        contextlib.closing(job.loader.iterate(first)) as batches,
        metrics.Writer(run.path, last_step=first) as writer,
        metrics.Display(total, first) as display,
        Trace(config.profile.first_step, config.profile.last_step, run.path) as trace,
    ):
        log = RunLog(
            config,
            run,
            writer,
            display,
            first=first,
            total=total,
            steps_per_epoch=plan.steps_per_epoch,
            views_per_step=config.data.batch_size * view_recipes.num_views(job.views),
            indices=job.loader.indices,
        )
        for step in range(first + 1, total + 1):
            trace.before(step)
            waited = time.monotonic()
            batch = _next_batch(batches, stop)
            waited = time.monotonic() - waited
            state, scalars = job.step(state, batch)
            log.add(step, scalars, waited)
            last = step == total or stop.requested
            if _due(step, config.eval.every_epochs * plan.steps_per_epoch):
                log.drain()
                log.evaluated(step, evaluation.run(state))
            if last or _checkpoint_due(job, step):
                log.drain()
                checkpoints.save(step, state, wait=last)
            if stop.requested and step < total:
                log.stopped(step)
                raise Preempted(
                    f"preempted at step {step}, saved; run the same command again to "
                    "go on"
                )
        return state, log.seconds()


def _next_batch(batches: Generator[Batch], stop: Stop) -> Batch:
    """The batch of a step. A signal that ended the workers too is told as a stop."""
    try:
        return next(batches)
    except WorkerError:
        stop.check("with its workers; what the last checkpoint holds is kept")
        raise


def preview(config: ConfigDict, path: Path, step: int) -> None:
    """Draws the source images and the views of a step (0-based) as a PNG."""
    preview_job(build(config), path, step)


def preview_job(job: Job, path: Path, step: int) -> None:
    """See `preview`."""
    batch = job.loader.batch(step)
    draw = jax.jit(augment.make_views, static_argnums=(1, 2))
    groups = draw(batch, job.views, job.config.seed)
    views = [np.asarray(g[:PREVIEW_ROWS, v]) for g in groups for v in range(g.shape[1])]
    sources = [job.loader.rgb(int(i)) for i in batch["index"][:PREVIEW_ROWS]]
    first = job.views[0]
    pictures.views(sources, views, path, mean=first.mean, std=first.std)


def _loader(
    config: ConfigDict, source: Source, views: tuple[View, ...], mesh: Mesh
) -> TrainLoader:
    data, seed = config.data, config.seed
    return TrainLoader(
        source,
        views,
        batch_size=data.batch_size,
        seed=seed,
        residence=data.residence,
        workers=data.workers,
        worker_type=data.worker_type,
        resample=data.resample,
        mesh=mesh,
        bad=BadPictures(
            len(source), seed=seed, on_error=data.on_error, max_bad=data.max_bad
        ),
    )


def _optimizer(config: ConfigDict, steps_per_epoch: int) -> tuple[optim.Schedule, Any]:
    settings = dict(config.optim)
    schedule = optim.warmup_cosine(
        base_lr=settings.pop("base_lr"),
        batch_size=config.data.batch_size,
        epochs=settings.pop("epochs"),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=settings.pop("warmup_epochs"),
    )
    return schedule, optim.build(schedule, **settings)


def _checkpoints(job: Job, workdir: Path) -> Checkpoints:
    period = job.config.checkpoint.milestone_epochs * job.plan.steps_per_epoch
    return Checkpoints(
        workdir / "checkpoints",
        keep=job.config.checkpoint.keep,
        keep_period=period or None,
    )


def _abstract(job: Job) -> Any:
    """Shapes, dtypes and shardings of the state, to restore into."""
    whole = mesh_lib.replicated(job.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(job.random_state),
    )


def _first_state(job: Job) -> TrainState:
    """Random weights, and the backbone of the weights file where one is given."""
    state, path = job.random_state(), job.config.init_from
    if not path:
        return state
    _, loaded, _ = weights.load(path)
    for kind in ("params", "batch_stats"):
        section = getattr(state, kind)
        shapes = [
            jax.tree.map(lambda x: x.shape, tree)
            for tree in (loaded[kind], section["backbone"])
        ]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"init_from={path!r} holds another network than the `model` settings"
            )
        backbone = jax.tree.map(
            lambda new, old: new.astype(old.dtype), loaded[kind], section["backbone"]
        )
        backbone = mesh_lib.replicate(backbone, job.mesh)
        state = state._replace(**{kind: {**section, "backbone": backbone}})
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checkpoint_due(job: Job, step: int) -> bool:
    settings = job.config.checkpoint
    milestone = settings.milestone_epochs * job.plan.steps_per_epoch
    return _due(step, settings.every_steps) or _due(step, milestone)


class Trace:
    """The profiler's trace of the steps first … last, in `profile/`; 0 and 0: none."""

    def __init__(self, first: int, last: int, workdir: Path) -> None:
        self._steps = range(first, last + 1) if first else range(0)
        self._path = workdir / "profile"
        self._active = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Starts or stops the trace, as the coming step asks."""
        if step not in self._steps:
            self._stop()
        elif not self._active:
            jax.profiler.start_trace(self._path)
            self._active = True

    def _stop(self) -> None:
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
