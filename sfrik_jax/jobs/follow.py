"""A job for every checkpoint of a run, also of one that is still being trained.

The tuning protocol holds for checkpoints as for settings: each is judged on the part
"val", and the best one alone sees the part "test", once.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from sfrik_jax.errors import (
    ConfigError,
    CorruptInputError,
    MismatchError,
    MissingInputError,
)
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import parts, results, runner
from sfrik_jax.subject import CHECKPOINTS, open_subject, run_of, steps_of

POLL_SECONDS = 10.0


class Series(NamedTuple):
    """The jobs on the checkpoints of a run, and where their records go."""

    config: ConfigDict
    run: Path
    workdir: Path
    name: str

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.run / CHECKPOINTS / str(step)

    def at(self, step: int, **data: str) -> ConfigDict:
        """The configuration of one job, with other settings of its data."""
        config = ConfigDict(self.config.to_dict())
        config.weights = str(self.checkpoint(step))
        config.data.update(data)
        return config.lock()

    def name_at(self, step: int) -> str:
        """The name of the record of a checkpoint."""
        return f"{self.name}_step{step}"


def every_checkpoint(
    config: ConfigDict, workdir: Path, name: str, *, wait: bool
) -> dict[int, float]:
    """Judges each checkpoint on "val", and tests the best one where "test" is named.

    Each has a record NAME_stepS without any figure of the final split. Then the job
    runs once more on the best of them, of equal ones the later, as the record NAME.
    A checkpoint that the run deletes meanwhile is passed over.

    Args:
      config: of a job with one top-1 on "val".
      wait: for those to come, until the run is done.
    Returns: the top-1 on "val" in %, by step.
    Raises:
      ConfigError: the weights are no run directory, or no validation split is named.
      MissingInputError: there is no checkpoint, or none that can be opened; or no
        pictures.
      MismatchError: the record NAME is there, of weights that no series chose.
      Preempted: a signal asked to stop; finished records are kept.
    """
    series = Series(config, _run_of(config), workdir, name)
    _refuse_foreign(series)
    with Stop() as stop, parts.kept_open():
        # What is wrong with the final split must not come out after all the others.
        parts.open_parts(config)
        judged = _judge_all(series, stop, wait)
        if not judged:
            raise MissingInputError(
                f"{series.run} has no checkpoint that can be opened; evaluate the "
                "directory without --every-checkpoint, or train it first"
            )
        best = _best(series, judged)
        rows = [
            {"step": step, "val_top1": top1, "chosen": "*" if step == best else ""}
            for step, top1 in sorted(judged.items())
        ]
        print("\n".join(results.columns(rows)), flush=True)
        if config.data.test_split:
            stop.check("before the final split was looked at")
            runner.run(series.at(best), workdir, name)
    return judged


def best_first(judged: Mapping[int, float]) -> list[int]:
    """Steps by falling top-1, of equal ones the later before the earlier."""
    return sorted(judged, key=lambda step: (judged[step], step), reverse=True)


def _run_of(config: ConfigDict) -> Path:
    run, step = run_of(Path(config.weights))
    if run is None or step is not None:
        raise ConfigError(
            f"weights={config.weights!r} with --every-checkpoint; name a run directory"
        )
    if not config.data.val_split:
        raise ConfigError(
            "data.val_split='' with --every-checkpoint; the final split is no place to "
            "choose a checkpoint on: name a validation split, such as "
            "--config.data.val_split=train --config.data.val_subset=in20_val"
        )
    return run


def _refuse_foreign(series: Series) -> None:
    """Before all the work: a record of the same name that is of another evaluation."""
    earlier = results.read(series.workdir, series.name)
    if not (earlier and series.config.data.test_split):
        return
    weights = earlier.get("weights", {})
    if results.read(series.workdir, series.name_at(weights.get("step", -1))):
        return
    raise MismatchError(
        f"{results.path_of(series.workdir, series.name)} is of {weights.get('path')} "
        "alone, not of its checkpoints; give another --name"
    )


def _judge_all(series: Series, stop: Stop, wait: bool) -> dict[int, float]:
    """The top-1 on "val" by step, of the checkpoints that are there or still come."""
    judged: dict[int, float] = {}
    seen: set[int] = set()
    told = None
    while True:
        # In this order: the run stores its last checkpoint before its summary.
        ends = not wait or (series.run / "summary.json").exists()
        for step in steps_of(series.run):
            if step not in seen:
                stop.check("between two checkpoints")
                seen.add(step)
                judged |= _judge(series, step)
        if ends:
            return judged
        newest = max(seen, default=0)
        if newest != told:
            _say(f"waiting for a checkpoint of {series.run} after step {newest}")
            told = newest
        _pause(stop)


def _judge(series: Series, step: int) -> dict[int, float]:
    """The top-1 of one checkpoint by its step; empty where it cannot be opened."""
    config, name = series.at(step, test_split=""), series.name_at(step)
    try:
        figures = runner.JOBS[config.job](config, series.workdir, name)["figures"]
    except (MissingInputError, CorruptInputError):
        # The data may be to blame, too: then the next one would fail as well.
        try:
            open_subject(config.weights, config.model.dtype)
        except (MissingInputError, CorruptInputError) as gone:
            _say(f"step {step} is passed over: {gone}")
            return {}
        raise
    key = f"{config.job}/val_top1"
    path = results.path_of(series.workdir, name)
    print(f"step {step}  {key} {results.intervals(figures)[key]}  {path}", flush=True)
    return {step: figures[key]}


def _best(series: Series, judged: Mapping[int, float]) -> int:
    """The best checkpoint; where it is to be tested, of those that are still there."""
    for step in best_first(judged):
        if not series.config.data.test_split or series.checkpoint(step).is_dir():
            return step
        _say(
            f"step {step} has the best val_top1 and is deleted: another is taken; "
            "checkpoint.milestone_epochs of the run keeps some for good"
        )
    raise MissingInputError(
        f"no checkpoint of {series.run} is there any longer, to be tested; the records "
        f"{series.name_at(max(judged))} and before it are kept"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pause(stop: Stop) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end:
        stop.check("between two checkpoints")
        time.sleep(0.2)
