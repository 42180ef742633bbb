"""The log of a run: scalars of the steps, their rate, and the watch for NaN."""

import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping

import jax
import numpy as np

from sfrik_jax import processes
from sfrik_jax.errors import DiskFullError, NonFiniteError, OutputError
from sfrik_jax.metrics import Display, Unseen, Writer, read_rows
from sfrik_jax.rundir import RunDirectory

# Steps whose scalars may be on their way: the host never waits for the newest step.
IN_FLIGHT = 2
# Not shown: single orders, and the MMD with its constant diagonal.
HIDDEN = re.compile(
    r"learning_rate|gradient_norm|contrast|mmd|mmd_\d+_offdiagonal|skipped(_in_row)?"
)
# What has to be finite, and how often it was not where such steps are skipped.
FINITE = ("train/loss", "train/gradient_norm")
SKIPPED, IN_ROW = "train/skipped", "train/skipped_in_row"


class RunLog:
    """Scalars on their way from the device, to the metrics files and the display.

    Args:
      first: steps done before this session. total: steps of the run.
      steps_per_epoch: of the run.
      views_per_step: images of a global batch times their views.
      every: steps between rows.
      indices: the samples of a step's batch (0-based), to name those of a bad step.
      seed: noted with it. remedy: what to do about it.
      max_skipped: updates in a row that the steps may skip, if they skip any.
    """

    def __init__(
        self,
        run: RunDirectory,
        writer: Writer | Unseen,
        display: Display | Unseen,
        *,
        first: int,
        total: int,
        steps_per_epoch: int,
        views_per_step: int,
        every: int,
        indices: Callable[[int], np.ndarray],
        seed: int,
        remedy: str,
        max_skipped: int = 0,
    ) -> None:
        self._run, self._every = run, every
        self._seed, self._remedy = seed, remedy
        self._max_skipped = max_skipped
        self._writer, self._display = writer, display
        self._steps_per_epoch, self._views_per_step = steps_per_epoch, views_per_step
        self._indices = indices
        self._pending: deque[tuple[int, Mapping[str, jax.Array], float]] = deque()
        rows = [r for r in read_rows(run.path) if "time/seconds" in r]
        self._before = rows[-1]["time/seconds"] if rows else 0.0
        self._start = self._last_time = time.monotonic()
        self._last_step, self._total = first, total
        self._rate = math.nan
        self._waited = 0.0
        # The clock stops with the last step, before what comes after it.
        self._end = self._before if first == total else None

    def seconds(self) -> float:
        """Seconds of the steps up to now, those of earlier sessions included."""
        if self._end is not None:
            return self._end
        return self._before + time.monotonic() - self._start

    def add(self, step: int, scalars: Mapping[str, jax.Array], waited: float) -> None:
        """Takes a step's scalars, and handles those of the step IN_FLIGHT before."""
        self._pending.append((step, scalars, waited))
        while len(self._pending) > IN_FLIGHT:
            self._handle(*self._pending.popleft())

    def drain(self) -> None:
        """Waits for all scalars and writes them out."""
        while self._pending:
            self._handle(*self._pending.popleft())
        self._writer.flush()

    def evaluated(self, step: int, results: Mapping[str, float], prefix: str) -> None:
        """Writes a row of evaluation results, and leaves their time out of the rate."""
        if results:
            named = {f"{prefix}/{name}": value for name, value in results.items()}
            named["time/seconds"] = self.seconds()
            self._writer.write(step, step / self._steps_per_epoch, named)
            shown = [f"{k} {v:.1f}" for k, v in results.items() if k.endswith("top1")]
            self._display.say(f"step {step}  " + "  ".join(shown))
        self._last_step, self._last_time = step, time.monotonic()

    def stopped(self, step: int) -> None:
        """Notes the time up to a stop between two logged steps."""
        times = {"time/seconds": self.seconds()}
        self._writer.write(step, step / self._steps_per_epoch, times)
        self._writer.flush()

    def _handle(self, step: int, scalars: Mapping[str, jax.Array], waited: float):
        due = step in (1, self._total) or step % self._every == 0
        self._waited += waited
        watched = {k: scalars[k] for k in (*FINITE, SKIPPED, IN_ROW) if k in scalars}
        values = jax.device_get(scalars if due else watched)
        self._heed_non_finite(step, values)
        if not due:
            return
        now = time.monotonic()
        views = (step - self._last_step) * self._views_per_step
        # The first step of a session compiles: it is left out of the rate.
        if step > self._last_step and self._last_time != self._start:
            self._rate = views / (now - self._last_time)
        self._last_step, self._last_time = step, now
        row = {name: float(value) for name, value in values.items()}
        row["time/data_wait_seconds"], self._waited = self._waited, 0.0
        row["time/views_per_second"] = self._rate
        row["time/seconds"] = self.seconds()
        if step == self._total:
            self._end = row["time/seconds"]
        self._writer.write(step, step / self._steps_per_epoch, row)
        left = (self._total - step) * self._views_per_step / self._rate
        self._display.step(step, self._rate, left, _terms(row))

    def _heed_non_finite(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Lists the batch of a step that is not finite, and ends the run unless that
        was skipped within the budget, which is the device's count: every process and
        every resumed run has it.
        """
        bad = [k for k in FINITE if not np.isfinite(values[k])]
        if not bad:
            return
        found = f"{bad[0]} is {values[bad[0]]} at step {step}"
        listed = self._list(step)
        in_row, most = int(values.get(IN_ROW, 0)), self._max_skipped
        if 0 < in_row <= most:
            total = int(values[SKIPPED])
            counts = f"{in_row} in a row of at most {most}, {total} in all"
            self._display.say(f"SFRIK-STEP-SKIPPED {found} ({counts}); {listed}")
            return
        if in_row:
            found += f", {in_row} steps in a row with step.max_skipped={most}"
        raise processes.of_all(
            NonFiniteError(
                f"{found}; checkpoints before it are kept, {listed}. {self._remedy}"
            )
        )

    def _list(self, step: int) -> str:
        """Lists the batch of a step; where, or why that could not be."""
        name = f"nonfinite_{step}.json"
        indices = self._indices(step - 1).tolist()
        about = {"step": step, "seed": self._seed, "index": indices}
        try:
            self._run.write_json(name, about)
        except (DiskFullError, OutputError) as error:
            return f"the batch could not be listed: {error}"
        return f"the batch is listed in {self._run.path / name}"


def _terms(row: Mapping[str, float]) -> dict[str, float]:
    """The loss and its parts, as they are shown while the run goes on."""
    train = {k.removeprefix("train/"): v for k, v in row.items() if "train/" in k}
    terms = {k: v for k, v in train.items() if not HIDDEN.fullmatch(k)}
    return {"loss": terms.pop("loss"), **terms}
