"""The loop of every job that takes steps: log, evaluate, save, stop.

Batches are functions of (seed, step) and a step is a pure function of (state, batch),
so a job that was stopped and resumed is the job that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from sfrik_jax import metrics, processes, watchdog
from sfrik_jax.checkpoint import Checkpoints
from sfrik_jax.data.loader import Batch, TrainLoader
from sfrik_jax.errors import Preempted, WorkerError
from sfrik_jax.interrupts import Stop
from sfrik_jax.run_log import IN_FLIGHT, RunLog
from sfrik_jax.rundir import RunDirectory

State = TypeVar("State", bound=Any)

# Steps of a session until one is known to have ended in all processes: what follows
# compiles no more.
SETTLING = IN_FLIGHT + 2


class Plan(NamedTuple):
    """What the loop needs to know of a job.

    Attributes:
      name: of the job, for the display.
      step: step(state, batch) -> (state, scalars).
      total, per_epoch: steps.
      views_per_step: pictures that the network sees in a step, for the rate.
      evaluate: the state's results by name, and the prefix that they get in metrics.
      evaluate_every: steps between evaluations; 0 for none.
      save_every: steps between checkpoints.
      milestone_every: steps between those that are kept for good; 0 for none.
      log_every: steps between rows of metrics.
      trace: first and last step of a profiler trace; 0 and 0 for none.
      seed: of the job, noted with a step that is not finite.
      remedy: what to do when a step is not finite.
      max_skipped: updates in a row that its steps may skip, if they skip any.
      check: check(step, state) refuses a state that must not be saved.
    """

    name: str
    step: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]]
    total: int
    per_epoch: int
    views_per_step: int
    evaluate: Callable[[Any], Mapping[str, float]]
    evaluated_as: str
    evaluate_every: int
    save_every: int
    log_every: int
    seed: int
    remedy: str
    milestone_every: int = 0
    trace: tuple[int, int] = (0, 0)
    max_skipped: int = 0
    check: Callable[[int, Any], None] = lambda step, state: None


def run_steps(
    plan: Plan,
    state: State,
    loader: TrainLoader,
    run: RunDirectory,
    checkpoints: Checkpoints,
    stop: Stop,
) -> tuple[State, float]:
    """Steps to the end. Returns the state and the seconds that the steps took.

    They include compilation, the evaluations in between and what earlier sessions
    took, but no evaluation after the last step.

    Raises:
      Preempted: a signal asked to stop, and the state is saved.
      NonFiniteError: the loss or the gradient is not finite.
    """
    total, first = plan.total, int(state.step)
    evaluated = processes.from_first(lambda: _was_evaluated(run, plan, first))
    with (
        _end_noted(total),
        contextlib.closing(loader.iterate(first)) as batches,
        _writer(run, first) as writer,
        _display(plan, first) as display,
        _trace(plan, run) as trace,
    ):
        log = RunLog(
            run,
            writer,
            display,
            first=first,
            total=total,
            steps_per_epoch=plan.per_epoch,
            views_per_step=plan.views_per_step,
            every=plan.log_every,
            indices=loader.indices,
            seed=plan.seed,
            remedy=plan.remedy,
            max_skipped=plan.max_skipped,
        )
        between = _Between(plan, run, loader, checkpoints, log)
        if _due(first, plan.evaluate_every) and not evaluated:
            between.evaluate(first, state)
        for step in range(first + 1, total + 1):
            trace.before(step)
            waited, settled = time.monotonic(), step > first + SETTLING
            watchdog.at("data_read", step, settled=settled)
            batch = next_batch(batches, stop)
            waited = time.monotonic() - waited
            watchdog.at("step", step, settled=settled)
            state, scalars = plan.step(state, batch)
            log.add(step, scalars, waited)
            between.steps(step, state, stopping=stop.reached(step))
        return state, log.seconds()


@contextlib.contextmanager
def _end_noted(total: int) -> Iterator[None]:
    """A save that still goes on then may take longer than a step."""
    try:
        yield
    finally:
        watchdog.at("end", total)


class _Between(NamedTuple):
    """What happens between two steps: saves, evaluations, the end of a session."""

    plan: Plan
    run: RunDirectory
    loader: TrainLoader
    checkpoints: Checkpoints
    log: RunLog

    def steps(self, step: int, state: Any, *, stopping: bool) -> None:
        """What is due after a step. Raises: Preempted, where the run is to stop."""
        plan, last = self.plan, stopping or step == self.plan.total
        due = _due(step, plan.save_every) or _due(step, plan.milestone_every)
        if last or due or self.checkpoints.failed():
            self._save(step, state, last)
        # After the save: an evaluation can outlast the time before a kill.
        if _due(step, plan.evaluate_every) and not stopping:
            self.evaluate(step, state)
        if stopping and step < plan.total:
            self.log.stopped(step)
            raise Preempted(
                f"preempted at step {step}, saved; run the same command again to go on",
                of_all=True,
            )

    def evaluate(self, step: int, state: Any) -> None:
        """Evaluates the state of a step, and logs what was found."""
        self.log.drain()
        watchdog.at("eval", step)
        self.log.evaluated(step, self.plan.evaluate(state), self.plan.evaluated_as)

    def _save(self, step: int, state: Any, last: bool) -> None:
        self.log.drain()
        watchdog.at("save", step)
        self.run.refuse_removed()
        self.loader.bad.share()
        self.plan.check(step, state)
        self.checkpoints.save(step, state, wait=last)


def next_batch(batches: Generator[Batch], stop: Stop) -> Batch:
    """The batch of a step. A signal that ended the workers too is told as a stop."""
    try:
        return next(batches)
    except WorkerError:
        stop.check_here("with its workers; what the last checkpoint holds is kept")
        raise


def _writer(run: RunDirectory, first: int) -> metrics.Writer | metrics.Unseen:
    if not processes.first():
        return metrics.Unseen()
    return metrics.Writer(run.path, last_step=first)


def _display(plan: Plan, first: int) -> metrics.Display | metrics.Unseen:
    if not processes.first():
        return metrics.Unseen()
    return metrics.Display(plan.total, first, name=plan.name)


def _trace(plan: Plan, run: RunDirectory) -> "Trace":
    return Trace(*(plan.trace if processes.first() else (0, 0)), run.path)


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _was_evaluated(run: RunDirectory, plan: Plan, step: int) -> bool:
    """Whether the metrics have that evaluation; a stop comes before it."""
    return any(
        row["step"] == step and any(k.startswith(f"{plan.evaluated_as}/") for k in row)
        for row in metrics.read_rows(run.path)
    )


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
            watchdog.at("profile", step)
            jax.profiler.start_trace(self._path)
            self._active = True

    def _stop(self) -> None:
        if self._active:
            watchdog.at("profile", self._steps.stop)
            jax.profiler.stop_trace()
            self._active = False
