"""Pretraining: the file to read first.

A run is built from its configuration, goes on from its newest checkpoint, takes steps,
and is evaluated. Batches are functions of (seed, step) and a step is a pure function
of (state, batch), so a run that was stopped and resumed is the run that never stopped.
"""

import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import (
    config as configs,
)
from sfrik_jax import (
    finite,
    kernel_presets,
    loop,
    memory_use,
    models,
    optim,
    previews,
    processes,
    resuming,
    spectra,
    train_state,
    watchdog,
)
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data import bad_pictures
from sfrik_jax.data import views as view_recipes
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.opening import open_source
from sfrik_jax.data.sources import Source
from sfrik_jax.data.views import View
from sfrik_jax.evaluation import Evaluation
from sfrik_jax.interrupts import Stop
from sfrik_jax.provenance import about_the_program
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.step import Learner, Step, make_learner, make_train_step
from sfrik_jax.train_state import TrainState
from sfrik_jax.warm_start import first_state

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
    learner: Learner
    state: TrainState  # shapes, dtypes and shardings
    random_state: Callable[[], TrainState]
    step: Step


def pretrain(config: ConfigDict, workdir: Path, allowed: Collection[str] = ()) -> int:
    """Trains to the end of `config`, in or on from `workdir`. Returns exit code 0.

    Args: allowed: settings that may be others than those the run was started with.

    Raises:
      Preempted: a signal asked to stop, and the state is saved.
      NonFiniteError: the loss or the gradient is not finite.
      SfrikError: see `errors.py`, for what else a user can mend.
    """
    with processes.shared_stop() as stop:
        agree_on_program(config)
        stop.check("before its run directory was opened")
        with RunDirectory(workdir, config, allowed) as run:
            return _pretrain(config, run, stop)


def agree_on_program(config: ConfigDict) -> None:
    """Refuses a configuration or a program that another process does not have."""
    if processes.count() > 1:
        processes.agree({**configs.flatten(config), **about_the_program()})


def _pretrain(config: ConfigDict, run: RunDirectory, stop: Stop) -> int:
    job = build(config)
    fingerprint = job.source.fingerprint
    processes.agree({"data": fingerprint, "subset": job.source.subset})
    run.agree_on_data(fingerprint)
    bad = job.loader.bad
    bad.resume(processes.from_first(lambda: run.read_json(bad_pictures.FILE)))
    evaluation = Evaluation(
        config, job.mesh, job.model.backbone, job.views[0], job.source, bad
    )
    watchdog.at("resume")
    with _checkpoints(job, run.path) as checkpoints:
        state = checkpoints.restore(job.state)
        if state is None:
            state = first_state(job.random_state, config.init_from, job.mesh)
        else:
            finite.refuse_stored(state, int(state.step), run.path)
        done = int(state.step)
        resuming.refuse_the_past(done, job.plan.total_steps, run.path)
        stop.check(f"before step {done + 1}")
        evaluated = processes.from_first(lambda: run.read_json("summary.json"))
        whole = evaluated.get("protocol") == evaluation.protocol
        if done == job.plan.total_steps and whole:
            if processes.first():
                print(f"{run.path} is done: step {done} of {done}")
            return 0
        if done < job.plan.total_steps:
            checkpoints.require_room(job.state, _milestones(job))
        _tell_changes(run, job, state)
        run.remove("summary.json")  # before the new settings: it is of the old ones
        run.start(fingerprint, job.source.subset, step=done)
        bad.save = partial(run.write_json, bad_pictures.FILE)
        if bad.noted:
            bad.save(bad.record())
        drawn = run.path / VIEWS_PICTURE
        if not processes.from_first(drawn.exists):
            previews.draw(job.learner.network, job.loader, drawn, step=0)
            stop.check(f"before step {done + 1}")
        plan = plan_of(job, evaluation)
        state, seconds = loop.run_steps(plan, state, job.loader, run, checkpoints, stop)
    stop.check(f"after step {job.plan.total_steps}, saved")
    about = _about_training(plan, seconds, stepped=done < plan.total)
    _write_spectra(job, evaluation, run, state)
    stop.check("before the evaluation")
    evaluation.finish(run, state, job.random_state, about, stop.check)
    return 0


def _about_training(plan: loop.Plan, seconds: float, stepped: bool) -> dict[str, Any]:
    """What the summary says of the steps; the memory is that of the last session.

    Args:
      stepped: whether this session took any: else its memory is not the training's.
    """
    peak, owner = memory_use.peak()
    return {
        "train_seconds": round(seconds, 1),
        "views_per_step": plan.views_per_step,
        "peak_memory_bytes": peak if stepped else None,
        "memory_of": owner,
    }


def _write_spectra(
    job: Job, evaluation: Evaluation, run: RunDirectory, state: TrainState
) -> None:
    """Writes spectrum.json, but of a projector that no device has whole."""

    def write() -> None:
        images = evaluation.pictures(spectra.PICTURES)
        run.write_json(
            spectra.FILE, spectra.of_state(job.model, state, images, job.views[0])
        )

    if job.learner.network.columns is None:
        processes.from_first(write)


def _tell_changes(run: RunDirectory, job: Job, state: TrainState) -> None:
    """Says which settings have changed; the first process alone knows the old ones."""
    changes = resuming.notable(run.changes())
    if not changes:
        return
    before = configs.derive(run.stored, len(job.source)).steps_per_epoch
    updates = int(state.step) - int(state.skipped.total)
    rates = (
        _optimizer(run.stored, before)[0](updates),
        _optimizer(job.config, job.plan.steps_per_epoch)[0](updates),
    )
    for line in resuming.told(changes, int(state.step), rates):
        print(line, file=sys.stderr)


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
    plan = configs.derive(config, len(source))
    parts = build_step(config, mesh, plan)
    loader = _loader(config, source, parts.views, mesh)
    random_state = jax.jit(
        parts.create,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, parts.state),
    )
    return Job(
        config,
        mesh,
        source,
        parts.views,
        loader,
        plan,
        parts.model,
        parts.learner,
        parts.state,
        random_state,
        parts.step,
    )


class StepParts(NamedTuple):
    """A step and what it is made of, without data."""

    views: tuple[View, ...]
    model: models.SSLModel
    learner: Learner
    create: Callable[[], TrainState]
    state: TrainState  # shapes, dtypes and shardings
    step: Step


def build_step(config: ConfigDict, mesh: Mesh, plan: configs.Schedule) -> StepParts:
    """The step of a run. Nothing compiles; on an abstract mesh it can be traced."""
    size = config.data.image_size
    views = view_recipes.build(size, **config.augment)
    model = models.build(**config.model, remat=config.step.remat)
    schedule, optimizer = _optimizer(config, plan.steps_per_epoch)
    learner = _learner(config, model, mesh, views)

    def create() -> TrainState:
        return train_state.create(config.seed, model, optimizer, size)

    state = mesh_lib.abstract(create, mesh, learner.network.columns)
    step = make_train_step(
        learner,
        optimizer,
        state,
        schedule=schedule,
        log_every=config.log.every_steps,
        last_step=plan.total_steps,
        skip_nonfinite=config.step.nonfinite == "skip",
    )
    return StepParts(views, model, learner, create, state, step)


def _learner(
    config: ConfigDict, model: models.SSLModel, mesh: Mesh, views: tuple[View, ...]
) -> Learner:
    loss_settings = kernel_presets.resolved(config.loss, config.model.embed_dim)
    columns = None if config.mesh.projector == "replicated" else config.mesh.projector
    return make_learner(
        model,
        mesh,
        views=views,
        method=loss_settings.pop("method"),
        loss_settings=loss_settings,
        seed=config.seed,
        columns=columns,
        reduce_dtype=config.step.reduce_dtype,
        micro_batches=config.step.micro_batches,
        deterministic_reduce=config.step.deterministic_reduce,
    )


def plan_of(job: Job, evaluation: Evaluation) -> loop.Plan:
    """The steps of a run, and what happens between them."""
    config, per_epoch = job.config, job.plan.steps_per_epoch
    return loop.Plan(
        name="pretrain",
        step=job.step,
        total=job.plan.total_steps,
        per_epoch=per_epoch,
        views_per_step=config.data.batch_size * view_recipes.num_views(job.views),
        evaluate=evaluation.run,
        evaluated_as="online",
        evaluate_every=config.eval.every_epochs * per_epoch,
        save_every=config.checkpoint.every_steps,
        milestone_every=_milestone_period(job),
        log_every=config.log.every_steps,
        trace=(config.profile.first_step, config.profile.last_step),
        seed=config.seed,
        remedy="The command replay shows what in it is not finite. Lower "
        f"optim.base_lr={config.optim.base_lr} (in another --workdir), look at the "
        "images, or set step.nonfinite=skip",
        max_skipped=config.step.max_skipped,
        check=finite.refuse_to_store,
    )


def preview(config: ConfigDict, path: Path, step: int) -> None:
    """Draws the source images and the views of a step (0-based) as a PNG."""
    job = build(config)
    previews.draw(job.learner.network, job.loader, path, step)


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
    return Checkpoints(
        workdir / "checkpoints",
        keep=job.config.checkpoint.keep,
        keep_period=_milestone_period(job) or None,
    )


def _milestones(job: Job) -> int:
    """Checkpoints that the run keeps for good."""
    period = _milestone_period(job)
    return job.plan.total_steps // period if period else 0


def _milestone_period(job: Job) -> int:
    return job.config.checkpoint.milestone_epochs * job.plan.steps_per_epoch
