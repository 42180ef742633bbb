"""What `linear` and `finetune` share: crops with labels, heads, figures of parts.

Both train on random crops by the loop of pretraining, and so go on where they were
stopped. Settings are chosen on the part "val"; the part "test" is looked at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sfrik_jax import loop, metrics, watchdog
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.evaluators import heads as linear_heads
from sfrik_jax.evaluators import scores
from sfrik_jax.evaluators.choosing import Scored
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import parts as parts_of
from sfrik_jax.jobs import results
from sfrik_jax.jobs.bench import Bench, open_bench
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.subject import open_subject


class Recipe(NamedTuple):
    """What tells one supervised job from another.

    Attributes:
      name: of the job.
      epochs, val_every_epochs: of its settings.
      first: makes the first state.
      step: (state, batch) -> (state, scalars).
      evaluate: how the heads of a state, or one of them, do on a part.
      settings: of each head, for the table of what was compared.
      remedy: what to do about a loss that is not finite.
    """

    name: str
    epochs: int
    val_every_epochs: int
    first: Callable[[], Any]
    step: Callable[[Any, Any], Any]
    evaluate: Callable[[Any, str, int | None], Scored]
    settings: list[dict[str, float]]
    remedy: str


def run(
    config: ConfigDict,
    workdir: Path,
    name: str,
    recipe_of: Callable[[Bench], Recipe],
) -> dict[str, Any]:
    """Trains, chooses on "val", tests once, and returns the record that it wrote.

    Raises:
      Preempted: a signal asked to stop, and the state is saved.
      MismatchError: the directory holds the job of other weights, data or settings.
    """
    place = results.directory(workdir, name)
    subject = open_subject(config.weights, config.model.dtype)
    with Stop() as stop, RunDirectory(place, config) as run_dir:
        bench = open_bench(config, subject)
        run_dir.agree_on_data(bench.parts["train"].fingerprint)
        run_dir.agree_on_weights(bench.subject.about["sha256"])
        stop.check("before its first step")
        identity = parts_of.identity(config, bench.subject, bench.parts, bench.size)
        earlier = results.done(workdir, name, identity)
        if earlier:
            return earlier
        recipe = recipe_of(bench)
        judged: dict[int, Scored] = {}
        state, seconds = _train(bench, recipe, run_dir, stop, judged)
        rows = [row.get("val/top1") for row in metrics.read_rows(run_dir.path)]
        best = max((r for r in rows if r is not None), default=0.0)
        val = judged.get(int(state.step))
        figures, details = _finish(bench, recipe, state, val, best)
        figures["train_seconds"] = round(seconds, 1)
        return results.write(
            workdir,
            name,
            job=recipe.name,
            figures=figures,
            identity=identity,
            details=details,
        )


def _train(
    bench: Bench,
    recipe: Recipe,
    run_dir: RunDirectory,
    stop: Stop,
    judged: dict[int, Scored],
) -> tuple[Any, float]:
    """The last state, and the seconds of training; `judged` gets its step's "val"."""
    with Checkpoints(
        run_dir.path / "checkpoints", keep=bench.config.checkpoint.keep
    ) as checkpoints:
        watchdog.at("resume")
        abstract = mesh_lib.abstract(recipe.first, bench.mesh)
        state = checkpoints.restore(abstract)
        if state is None:
            state = mesh_lib.replicate(recipe.first(), bench.mesh)
        checkpoints.require_room(abstract)
        train = bench.parts["train"]
        weights = bench.subject.about
        run_dir.start(train.fingerprint, train.subset, weights=weights)
        plan = _plan(bench, recipe, judged)
        state, seconds = loop.run_steps(
            plan, state, bench.loader, run_dir, checkpoints, stop
        )
    stop.check("after its last step, saved")
    return state, seconds


def _plan(bench: Bench, recipe: Recipe, judged: dict[int, Scored]) -> loop.Plan:
    config, per_epoch = bench.config, bench.steps_per_epoch

    def evaluate(state: Any) -> dict[str, float]:
        if "val" not in bench.parts:
            return {}
        judged.clear()
        judged[int(state.step)] = found = recipe.evaluate(state, "val", None)
        return {"top1": max(found.top1())}

    return loop.Plan(
        name=recipe.name,
        step=recipe.step,
        total=recipe.epochs * per_epoch,
        per_epoch=per_epoch,
        views_per_step=config.data.batch_size,
        evaluate=evaluate,
        evaluated_as="val",
        evaluate_every=recipe.val_every_epochs * per_epoch,
        save_every=config.checkpoint.every_steps,
        log_every=config.log.every_steps,
        seed=config.seed,
        remedy=recipe.remedy,
    )


def _finish(
    bench: Bench, recipe: Recipe, state: Any, val: Scored | None, best: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and details: the head chosen on "val", and its figure on "test".

    Args:
      val: how the heads do on "val", if that is known.
      best: top-1 on "val" of the best head after the best of the epochs so far.
    """
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    chosen = 0
    if "val" in bench.parts:
        val = val or recipe.evaluate(state, "val", None)
        table = [
            {**each, "val_top1": top1, "val_loss": float(loss)}
            for each, top1, loss in zip(
                recipe.settings, val.top1(), val.loss, strict=True
            )
        ]
        chosen = linear_heads.best(val.top1(), val.loss, len(bench.parts["val"]))
        details = {"compared": table, "chosen": table[chosen]}
        figures |= _named(f"{recipe.name}/val_", val.counts[chosen])
        # The original reports this one, and of the final split; it flatters.
        best = max(best, *val.top1())
        figures[f"{recipe.name}/val_top1_best_epoch"] = best
    if "test" in bench.parts:
        test = recipe.evaluate(state, "test", chosen)
        linear_heads.best(test.top1(), test.loss, 1)  # one alone may have diverged
        figures |= _named(f"{recipe.name}/", test.counts[0])
        names = bench.parts["test"].class_names
        details |= results.class_details(test.counts[0], names)
    return figures, details


def _named(prefix: str, counts: scores.Counts) -> dict[str, Any]:
    return {f"{prefix}{key}": v for key, v in scores.figures(counts).items()}


def cosine_of(step: jax.Array, *, epochs: int, steps_per_epoch: int) -> jax.Array:
    """The factor of the rates in the epoch of a step (0-based)."""
    return linear_heads.cosine(jnp.floor_divide(step, steps_per_epoch), epochs)
