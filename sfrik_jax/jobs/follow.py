"""A job for every checkpoint of a run, also of one that is still being trained."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax.errors import ConfigError, CorruptInputError, MissingInputError
from sfrik_jax.interrupts import Stop
from sfrik_jax.jobs import results, runner
from sfrik_jax.subject import CHECKPOINTS, run_of, steps_of

POLL_SECONDS = 10.0
SHOWN = ("top1", "top5", "val_top1")


def every_checkpoint(
    config: ConfigDict, workdir: Path, name: str, *, wait: bool
) -> dict[int, dict[str, Any]]:
    """Runs the job for each checkpoint, and shows a table of their figures.

    Each has a record of its own, NAME_stepS. A checkpoint that the run deletes
    meanwhile is passed over: `checkpoint.milestone_epochs` keeps some for good.

    Args: wait: for those to come, until the run is done.
    Returns: the figures by step; none of a checkpoint that was passed over.
    Raises:
      ConfigError: the weights are no run directory.
      Preempted: a signal asked to stop; finished records are kept.
    """
    run, step = run_of(Path(config.weights))
    if run is None or step is not None:
        raise ConfigError(
            f"weights={config.weights!r} with --every-checkpoint; name a run directory"
        )
    found: dict[int, dict[str, Any]] = {}
    told = -1
    with Stop() as stop:
        while True:
            done = last_step(run)
            for step in steps_of(run):
                if step not in found:
                    found[step] = _evaluate(config, run, step, workdir, name)
            if not wait or (done is not None and done in found):
                break
            newest = max(found, default=0)
            if newest != told:
                _say(f"waiting for a checkpoint of {run} after step {newest}")
                told = newest
            _pause(stop)
    rows = [{"step": step, **shown(figures)} for step, figures in sorted(found.items())]
    for line in results.columns([row for row in rows if len(row) > 1]):
        print(line)
    return found


def last_step(run: Path) -> int | None:
    """The last step of a run that is done; None of another."""
    try:
        return int(json.loads((run / "summary.json").read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracies of a line of the table, by name without the job's."""
    short = {key.rpartition("/")[2]: value for key, value in figures.items()}
    return {key: short[key] for key in SHOWN if key in short}


def _evaluate(
    config: ConfigDict, run: Path, step: int, workdir: Path, name: str
) -> dict[str, Any]:
    here = ConfigDict(config.to_dict())
    here.weights = str(run / CHECKPOINTS / str(step))
    here.lock()
    try:
        return runner.run(here, workdir, f"{name}_step{step}")["figures"]
    except (MissingInputError, CorruptInputError) as error:
        _say(f"step {step} is passed over: {error}")
        return {}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pause(stop: Stop) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end:
        stop.check("between two checkpoints")
        time.sleep(0.2)
