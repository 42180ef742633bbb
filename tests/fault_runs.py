"""Real runs of a tiny net that faults are tried on, and what each must come to.

They keep to one core, so that every run of them has the same bits, after any number of
restarts.
"""

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import test_pretrain
from conftest import CACHE
from test_pretrain import SMALL

from sfrik_jax import metrics
from sfrik_jax.checkpoint import description, manifest

STEPS, SAVED_EVERY, KEPT = 120, 5, 2
KILLED = -signal.SIGKILL
SETTINGS = [
    *SMALL,
    "optim.epochs=30",
    f"checkpoint.every_steps={SAVED_EVERY}",
    f"checkpoint.keep={KEPT}",
    "eval.every_epochs=10",
    "eval.baselines=False",
]


def start(workdir: Path, settings: list[str], *, faults: str = "") -> subprocess.Popen:
    """The real command in a process of its own, on one core."""
    return test_pretrain.start(
        workdir,
        settings,
        JAX_COMPILATION_CACHE_DIR=str(CACHE / "jax"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
        SFRIK_TESTING="1",
        SFRIK_FAULTS=faults,
    )


@dataclass
class Outcome:
    """How a process ended."""

    code: int
    said: str


def end(process: subprocess.Popen, seconds: float = 300) -> Outcome:
    """Waits for a process, which must not take longer."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return Outcome(process.returncode, out + err)


@dataclass
class Reference:
    """A run that nothing disturbed.

    Attributes:
      leaves: type and digest of each leaf of the state, by step.
      rows: what was logged of each step, without times.
      weights: the hash of the exported backbone.
    """

    settings: list[str]
    leaves: dict[int, Any]
    rows: dict[int, dict[str, Any]]
    weights: str


def reference(workdir: Path, data_dir: Path) -> Reference:
    """Runs to the end and keeps every checkpoint."""
    settings = [*SETTINGS, f"data.path={data_dir}"]
    outcome = end(start(workdir, [*settings, f"checkpoint.keep={STEPS}"]))
    assert outcome.code == 0, outcome.said
    leaves = {int(path.name): leaves_of(path) for path in checkpoints_of(workdir)}
    assert sorted(leaves) == list(range(SAVED_EVERY, STEPS + 1, SAVED_EVERY))
    # The steps between are saved where a signal stops a run: they are taken as they are
    # and found right by what the run comes to.
    return Reference(settings, leaves, rows_of(workdir), weights_of(workdir))


def checkpoints_of(workdir: Path) -> list[Path]:
    """The checkpoints of a run that have the name of a step, oldest first."""
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if p.name.isdecimal()), key=lambda p: int(p.name))


def whole_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints that nothing is wrong with, oldest first."""
    return [int(p.name) for p in checkpoints_of(workdir) if not manifest.problem(p)]


def leaves_of(checkpoint: Path) -> Any:
    """Type and digest of each leaf, as the checkpoint states them."""
    meta = json.loads((checkpoint / "meta" / "metadata").read_text())
    return description.checked(meta)["leaves"]


def rows_of(workdir: Path) -> dict[int, dict[str, Any]]:
    """What was logged of each step, without times; a step is there once."""
    found: dict[int, dict[str, Any]] = {}
    for row in metrics.read_rows(workdir):
        values = {k: v for k, v in row.items() if not k.startswith("time/")}
        seen = found.setdefault(row["step"], {})
        doubled = seen.keys() & values.keys() - {"step", "epoch"}
        assert not doubled, f"step {row['step']} has {sorted(doubled)} twice"
        seen |= values
    return found


def weights_of(workdir: Path) -> str:
    """The hash of the exported backbone."""
    return json.loads((workdir / "summary.json").read_text())["weights_sha256"]


def resumed_at(workdir: Path) -> int:
    """The step that the last session went on from; -1 before there was one."""
    sessions = sessions_of(workdir)
    return sessions[-1]["step"] if sessions else -1


def sessions_of(workdir: Path) -> list[dict[str, Any]]:
    """What is noted of the sessions that came as far as to take steps."""
    path = workdir / "run.json"
    return json.loads(path.read_text())["sessions"] if path.exists() else []


def check(workdir: Path, wanted: Reference) -> None:
    """What must hold of a run at any time, whatever happened to it."""
    for step in whole_steps(workdir):
        found = leaves_of(workdir / "checkpoints" / str(step))
        if step in wanted.leaves:
            assert found == wanted.leaves[step], f"step {step} has other bits"
    for step, row in rows_of(workdir).items():
        known = wanted.rows.get(step, {"step": step})
        differing = [k for k in row if k in known and row[k] != known[k]]
        assert not differing, f"step {step}: {differing} differ"


def check_finished(workdir: Path, wanted: Reference) -> None:
    """What must hold once the run is done: nothing tells that it was disturbed."""
    check(workdir, wanted)
    assert whole_steps(workdir)[-1] == STEPS
    assert weights_of(workdir) == wanted.weights
    rows = {k: v for k, v in rows_of(workdir).items() if "train/loss" in v}
    assert rows.keys() == {k for k, v in wanted.rows.items() if "train/loss" in v}
    assert all(rows[step] == wanted.rows[step] for step in rows)
