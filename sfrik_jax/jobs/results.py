"""What a job leaves: `eval/NAME.json`, and a table on the standard output."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfrik_jax.rundir import about_this_process, write_whole

FOLDER = "eval"


def directory(workdir: Path, name: str) -> Path:
    """Where a job keeps what it needs to go on."""
    return workdir / FOLDER / name


def path_of(workdir: Path, name: str) -> Path:
    """The record of a job's figures."""
    return workdir / FOLDER / f"{name}.json"


def read(workdir: Path, name: str) -> dict[str, Any]:
    """An earlier record; empty when there is none, or it is damaged."""
    try:
        return json.loads(path_of(workdir, name).read_text())
    except (OSError, ValueError):
        return {}


def write(
    workdir: Path,
    name: str,
    *,
    job: str,
    figures: Mapping[str, Any],
    protocol: Mapping[str, Any],
    weights: Mapping[str, Any],
    data: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the record of a job's figures, whole or not at all.

    Args:
      figures: by name; accuracies in %.
      protocol: everything that a figure depends on besides weights and data.
      weights: as `Subject.about` states them. data: of each part.
      details: of the job: what was compared, figures of each class.
    """
    record = {
        "name": name,
        "job": job,
        "figures": figures,
        "protocol": protocol,
        "weights": weights,
        "data": data,
        **(details or {}),
        "session": about_this_process(),
    }
    path = path_of(workdir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(_finite(record), indent=2) + "\n")
    return path


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, as in metrics.jsonl."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(record: Mapping[str, Any], path: Path) -> None:
    """Prints the figures of a record, what they are of, and where they are stored."""
    weights = record["weights"]
    step = f", step {weights['step']}" if "step" in weights else ""
    print(f"{record['job']} of {weights['path']}{step} ({weights['sha256'][:12]})")
    for row in rows(record["figures"]):
        print("  ".join(row))
    print(path)


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as texts of one width each."""
    shown = {name: _text(value) for name, value in figures.items()}
    width = max(map(len, shown), default=0)
    digits = max(map(len, shown.values()), default=0)
    return [(name.ljust(width), text.rjust(digits)) for name, text in shown.items()]


def columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table with a row of names; each row has the same names."""
    if not table:
        return []
    texts = [list(table[0])] + [[_text(v) for v in row.values()] for row in table]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) for row in texts
    ]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
    return str(value)
