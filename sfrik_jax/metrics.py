"""Metrics of a run: files, gauges of collapse, and the progress display."""

import contextlib
import csv
import errno
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from sfrik_jax import faults, files

log = logging.getLogger("sfrik")


def gauges(z: jax.Array) -> dict[str, jax.Array]:
    """Label-free signs of collapse of unit embeddings z [m, q].

    uniformity: log mean_{i != j} exp(-2 ‖z_i - z_j‖²), lower is more uniform (Wang
      and Isola, arXiv 2005.10242).
    std: mean over coordinates of the standard deviation of sqrt(q) z; 1 for uniform
      embeddings, 0 for a collapse.
    effective_rank: exp of the entropy of the singular values divided by their sum
      (RankMe, arXiv 2210.02885), between 1 and min(m, q).
    """
    m, q = z.shape
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    gram = z @ z.T
    exponents = jnp.where(jnp.eye(m, dtype=bool), -jnp.inf, -4 * (1 - gram))
    eigenvalues = jnp.linalg.eigvalsh(gram)
    # Rounding leaves noise of 1e-7 of the largest; its root would count as rank.
    floor = 1e-6 * eigenvalues[-1]
    singular = jnp.sqrt(jnp.where(eigenvalues > floor, eigenvalues, 0))
    p = singular / jnp.sum(singular)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return {
        "uniformity": jax.nn.logsumexp(exponents) - math.log(m * (m - 1)),
        "std": jnp.mean(jnp.std(z, axis=0)) * math.sqrt(q),
        "effective_rank": jnp.exp(entropy),
    }


class Writer:
    """Appends rows to metrics.jsonl; writes metrics.csv when closed.

    TensorBoard events go to `tensorboard/` where the package tensorboardX is installed.
    A disk that refuses rows is no reason to end a run: it is warned of once, and they
    are kept and written as soon as the disk takes them.

    Args:
      workdir: the run directory.
      last_step: rows of later steps are dropped: they will be written again.
    """

    def __init__(self, workdir: Path, *, last_step: int = 0) -> None:
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_rows(workdir) if row["step"] <= last_step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        files.write_whole(self._path, text.encode())
        self._file = self._path.open("ab", buffering=0)
        # What the file holds in whole rows, and the rows that it does not hold yet.
        self._written, self._rows = len(text.encode()), b""
        self._refused = False
        self._events = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter  # pyright: ignore

            # Events of steps that will be taken again are dropped like the rows.
            self._events = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=last_step + 1
            )

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.flush()
        if self._rows:
            lost = self._rows.count(b"\n")
            log.warning("%d rows of %s could not be written", lost, self._path)
        with self._tolerated():
            self._file.close()
            write_csv(self._path.parent)
            if self._events is not None:
                self._events.close()

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Appends one row; values that are not finite become null."""
        row: dict[str, Any] = {"step": step, "epoch": round(epoch, 4)}
        for name, value in values.items():
            row[name] = float(value) if math.isfinite(value) else None
            if self._events is not None and row[name] is not None:
                self._events.add_scalar(name, row[name], step)
        self._rows += (json.dumps(row) + "\n").encode()
        self._append()

    def flush(self) -> None:
        """Hands the rows to the disk, so that a checkpoint never outlives them."""
        self._append()
        with self._tolerated():
            os.fsync(self._file.fileno())

    def _append(self) -> None:
        """Writes the rows that wait. What is written of them in part goes again."""
        with self._tolerated():
            faults.at("metrics")
            count = self._file.write(self._rows)
            if count < len(self._rows):
                os.ftruncate(self._file.fileno(), self._written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._written += count
            self._rows = b""

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._refused:
                log.warning(
                    "%s cannot be written (%s); training goes on, and the rows are "
                    "kept until it can",
                    self._path,
                    error.strerror,
                )
            self._refused = True
            # Its thread dies of such an error, and what is handed to it then waits.
            self._events = None


class Unseen:
    """In place of `Writer` and `Display` in the processes that stay quiet."""

    def __enter__(self) -> "Unseen":
        return self

    def __exit__(self, *_) -> None:
        pass

    def _nothing(self, *_) -> None:
        pass

    write = flush = step = say = _nothing


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last line that a kill cut short.

    Another line that is damaged is left out, and warned of.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            int(row["step"])
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    if damaged and damaged != [len(lines)]:
        log.warning("%s: damaged lines are left out: %s", path, damaged)
    return rows


def write_csv(workdir: Path) -> None:
    """metrics.csv from metrics.jsonl: one column a name, empty where not measured."""
    rows = read_rows(workdir)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (workdir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


class Display:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
      total: steps of the run.
      done: steps that an earlier run did.
      name: of the job.
      interval: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        done: int,
        *,
        name: str = "pretrain",
        interval: float = 10.0,
    ) -> None:
        self._total = total
        self._interval = interval
        self._last = -math.inf
        self._bar = None
        console = Console(file=sys.stderr)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(name),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(
        self,
        step: int,
        views_per_second: float,
        seconds_left: float,
        terms: Mapping[str, float],
    ) -> None:
        """Shows a step: number, rate, time to the end, and loss terms by name."""
        measured = math.isfinite(views_per_second)
        rate = f"{views_per_second:,.0f}" if measured else "–"
        parts = [f"{name} {value:.4g}" for name, value in terms.items()]
        note = "  ".join([f"{rate} views/s", *parts])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
            return
        now = time.monotonic()
        if now - self._last >= self._interval or step in (1, self._total):
            self._last = now
            left = _clock(seconds_left) if measured else "–"
            self.say(f"step {step}/{self._total}  eta {left}  {note}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    """ "4:05", or "1:04:05" from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
