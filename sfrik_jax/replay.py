"""A step whose numbers were not finite, once more and alone: what was, and where.

A batch is a function of (seed, step) and a step one of (state, batch). So the newest
checkpoint before the step, and the steps in between, give the state that met it.
"""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sfrik_jax import finite, number_faults, pretrain, previews, processes, resuming
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data import bad_pictures
from sfrik_jax.errors import CorruptInputError, MismatchError, MissingInputError
from sfrik_jax.files import make_folder, write_whole
from sfrik_jax.mesh import replicated
from sfrik_jax.step import Learner
from sfrik_jax.subject import CHECKPOINTS, steps_of
from sfrik_jax.train_state import TrainState
from sfrik_jax.warm_start import first_state

SHOWN = 8  # names in a line


class Findings(NamedTuple):
    """What a step's numbers are.

    Attributes:
      start: the checkpoint's step from which it was taken again, 0 for the start.
      samples: of the batch, [B].
      terms: the loss and its parts.
      views, embeddings: of each view the rows that are not finite, bool [B].
      before, gradient: max |x| of each tensor of the state and of the gradient.
    """

    start: int
    samples: np.ndarray
    terms: dict[str, float]
    views: list[np.ndarray]
    embeddings: list[np.ndarray]
    before: dict[str, float]
    gradient: dict[str, float]


def replay(
    config: ConfigDict,
    workdir: Path,
    step: int,
    out: Path,
    check: Callable[[str], None],
) -> list[str]:
    """Takes a step again, and tells in lines what in it is not finite.

    `out` gets report.json, with the names of all, and views.png, with the samples whose
    numbers are not finite first. Nothing in the run directory is changed.

    Args:
      step: 1 for the first; one that `listed_steps` has.
      check: called before each step with words about it; raises where a stop is asked
        for.

    Raises:
      MissingInputError: the step is not listed, or no checkpoint leads to it.
      MismatchError: the data are others than those of the run, or its settings have
        changed since.
      CorruptInputError: the checkpoint is damaged.
    """
    samples = _samples(workdir, step)
    job = pretrain.build(config)
    _agree(job, workdir, step, samples)
    job.loader.bad.resume(_read(workdir / bad_pictures.FILE))
    start = _start_of(workdir, step)
    _refuse_changed(workdir, start)
    state = _state_at(job, workdir, start)
    with contextlib.closing(job.loader.iterate(start)) as batches:
        for each in range(start + 1, step):
            check(f"before step {each} of the replay")
            state, scalars = job.step(state, next(batches))
            jax.block_until_ready(scalars)
        check(f"before step {step} of the replay")
        batch = next(batches)
    before = finite.magnitudes(state)
    found = Findings(start, samples, before=before, **_look(job.learner, state, batch))
    lines = told(found, step)
    make_folder(out)
    rows = _rows(found)
    network, picture = job.learner.network, out / "views.png"
    previews.draw(network, job.loader, picture, step - 1, rows)
    if processes.first():
        report = {"step": step, "lines": lines, **_as_json(found)}
        text = json.dumps(report, indent=2) + "\n"
        write_whole(out / "report.json", text.encode())
    return lines


def listed_steps(workdir: Path) -> list[int]:
    """The steps that a run has listed as not finite, oldest first.

    Raises:
      MissingInputError: there are none.
    """
    names = (path.stem for path in workdir.glob("nonfinite_*.json"))
    steps = (name.removeprefix("nonfinite_") for name in names)
    found = sorted(int(step) for step in steps if step.isdecimal())
    if not found:
        raise MissingInputError(
            f"{workdir} lists no step that was not finite (nonfinite_STEP.json)"
        )
    return found


def _samples(workdir: Path, step: int) -> np.ndarray:
    steps, path = listed_steps(workdir), workdir / f"nonfinite_{step}.json"
    if step not in steps:
        raise MissingInputError(
            f"there is no {path}; the steps {', '.join(map(str, steps))} are listed"
        )
    try:
        return np.array(_read(path)["index"], np.int32)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptInputError(f"{path} is damaged: {error!r}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptInputError(f"{path} is damaged: {error}") from error


def _agree(job: pretrain.Job, workdir: Path, step: int, samples: np.ndarray) -> None:
    noted = _read(workdir / "run.json").get("data_fingerprint")
    same = noted in (None, job.source.fingerprint)
    if not same or not np.array_equal(job.loader.indices(step - 1), samples):
        raise MismatchError(
            f"the data are not those that {workdir} was trained on: step {step} had "
            "other samples; restore them"
        )


def _start_of(workdir: Path, step: int) -> int:
    """The step of the newest checkpoint before a step; 0 where there is none yet."""
    stored = processes.from_first(lambda: steps_of(workdir))
    earlier = [each for each in stored if each < step]
    if stored and not earlier:
        raise MissingInputError(
            f"{workdir} has checkpoints of the steps {', '.join(map(str, stored))} and "
            f"none before {step}; raise checkpoint.keep, or keep milestones"
        )
    return earlier[-1] if earlier else 0


def _refuse_changed(workdir: Path, start: int) -> None:
    """Refuses steps from `start` on whose settings are not those that are stored now.

    A change after `start` steps counts too: the step may be of the try before it.
    """
    for each in _read(workdir / "run.json").get("config_changes", []):
        change = each["key"], each["old"], each["new"]
        unskipped = change == ("step.nonfinite", "skip", "raise")
        if each["step"] >= start and (unskipped or resuming.notable([change])):
            raise MismatchError(
                f"{workdir} changed {change[0]} from {change[1]!r} to {change[2]!r} at "
                f"step {each['step']}, and the replay would begin at step {start} with "
                "the settings of now; name a step with a checkpoint after the change"
            )


def _state_at(job: pretrain.Job, workdir: Path, start: int) -> TrainState:
    """The state after a step."""
    if not start:
        return first_state(job.random_state, job.config.init_from, job.mesh)
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        state = checkpoints.restore(job.state, start)
    assert state is not None  # `only` raises
    return state


def _look(learner: Learner, state: TrainState, batch: Any) -> dict[str, Any]:
    """The findings of a step, from one program."""
    network = learner.network

    def numbers(state, batch):
        found = learner(state, batch)
        groups = network.make_views(number_faults.in_batch(batch, state.step + 1))
        views = [group[:, v] for group in groups for v in range(group.shape[1])]
        return {
            "terms": {"loss": found.value, **found.terms},
            "views": [_bad_rows(view) for view in views],
            "embeddings": [_bad_rows(z) for z in found.z],
            "gradient": finite.leaf_magnitudes(found.grads),
        }

    compiled = jax.jit(numbers, out_shardings=replicated(network.mesh))
    found = jax.device_get(compiled(state, batch))
    for name in ("terms", "gradient"):
        found[name] = {key: float(value) for key, value in found[name].items()}
    return found


def _bad_rows(x: jax.Array) -> jax.Array:
    return ~jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _rows(found: Findings) -> list[int]:
    """The rows to draw: those with bad views, with bad embeddings, then the others."""
    badness = 2 * np.any(found.views, axis=0) + np.any(found.embeddings, axis=0)
    return np.argsort(-badness, kind="stable")[: previews.ROWS].tolist()


def _as_json(found: Findings) -> dict[str, Any]:
    """Of numbers that JSON lacks their names."""

    def plain(values: dict[str, float]) -> dict[str, Any]:
        return {k: v if math.isfinite(v) else str(v) for k, v in values.items()}

    def samples(rows: list[np.ndarray]) -> list[list[int]]:
        return [found.samples[each].tolist() for each in rows]

    return {
        "from_checkpoint": found.start,
        "samples": found.samples.tolist(),
        "terms": plain(found.terms),
        "views_not_finite": samples(found.views),
        "embeddings_not_finite": samples(found.embeddings),
        "largest_before": plain(found.before),
        "largest_of_gradient": plain(found.gradient),
    }


def told(found: Findings, step: int) -> list[str]:
    """The findings in plain words; the last line says where it begins."""
    start = f"the checkpoint of step {found.start}" if found.start else "the start"
    terms = {"loss": found.terms["loss"], **found.terms}
    shown = ", ".join(f"{name} {value:.6g}" for name, value in terms.items())
    return [
        f"step {step} again, from {start}: {shown}",
        f"views: {_of_rows(found.views, found.samples)}",
        f"embeddings: {_of_rows(found.embeddings, found.samples)}",
        f"state before the step: {_of_tensors(found.before)}",
        f"gradient: {_of_tensors(found.gradient)}",
        _where(found),
    ]


def _of_rows(views: list[np.ndarray], samples: np.ndarray) -> str:
    bad = [
        f"view {number}: {int(rows.sum())} of {len(rows)} rows are not finite, sample "
        + _some([str(sample) for sample in samples[rows]])
        for number, rows in enumerate(views, 1)
        if rows.any()
    ]
    return "; ".join(bad) or "all finite"


def _of_tensors(largest: dict[str, float]) -> str:
    bad = [path for path, value in largest.items() if not math.isfinite(value)]
    if bad:
        return f"{len(bad)} of {len(largest)} tensors are not finite: {_some(bad)}"
    path = max(largest, key=largest.__getitem__)
    return f"all finite, the largest {largest[path]:.3g} in {path}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _where(found: Findings) -> str:
    """The first place on the way through a step that is not finite."""
    bad = [name for name, value in found.terms.items() if not math.isfinite(value)]
    if not all(map(math.isfinite, found.before.values())):
        return "It begins before this step: the state was not finite."
    if np.any(found.views):
        return "It begins in the views: look at those samples, and at `augment`."
    if np.any(found.embeddings):
        return (
            "It begins in the network: views and parameters are finite. Lower "
            "optim.base_lr, or try model.dtype=float32 in another run."
        )
    if bad:
        return f"It begins in the loss, in {', '.join(bad)}: embeddings are finite."
    if not all(map(math.isfinite, found.gradient.values())):
        return "It begins in the gradient: the loss is finite."
    return (
        "All is finite here: other devices round otherwise, and a fault of a machine "
        "does not come again. The run can go on from its checkpoint."
    )
