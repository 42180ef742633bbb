"""What the evaluation commands left in a run directory: the records of eval/*.json."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik_jax.report.run import EVALUATIONS, finite


@dataclass(frozen=True)
class Record:
    """One evaluation, checked as far as the page looks at it.

    Attributes:
      figures: by name, finite numbers; accuracies in %.
      protocol: settings by dotted name; those that are lists stay away.
      sha256, step: of the weights; the step is None for those of a file.
      compared, chosen: the settings that were compared, and the one that was taken.
      per_class: top-1 of each class in %, None for one without pictures.
      confusion: pictures of class (row) that were taken for class (column).
      confusion_file: where in the working directory it is, of too many classes for
        the record; `confusion` is empty then.
      most_confused: the commonest mistakes (true class, predicted class, pictures).
      table: rows of the job, such as those of the SVMs on few pictures.
    """

    name: str
    job: str
    figures: dict[str, float]
    protocol: dict[str, Any]
    sha256: str
    step: int | None = None
    compared: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] | None = None
    per_class: dict[str, float | None] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    confusion_file: str = ""
    most_confused: list[tuple[str, str, int]] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)


def read(workdir: Path) -> tuple[list[Record], list[str]]:
    """The records by name, numbers in it by their size, and the files that are damaged.

    A damaged file does not hide the others: the page says which it is.
    """
    records, damaged = [], []
    paths = (path for path in (workdir / EVALUATIONS).glob("*.json") if path.is_file())
    for path in sorted(paths, key=lambda path: _natural(path.stem)):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            records.append(_record(path.stem, content))
        # What damage raises: no file, no JSON, other types than are written.
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            damaged.append(f"{EVALUATIONS}/{path.name}")
    return records, damaged


def _record(name: str, content: Any) -> Record:
    weights = _mapping(content["weights"])
    step = weights.get("step")
    return Record(
        name=name,
        job=_text(content["job"]),
        figures={k: v for k, v in _mapping(content["figures"]).items() if finite(v)},
        protocol={k: v for k, v in _mapping(content["protocol"]).items() if _plain(v)},
        sha256=_text(weights["sha256"]),
        step=None if step is None else _count(step),
        compared=[_row(row) for row in content.get("compared", [])],
        chosen=content.get("chosen") and _row(content["chosen"]),
        table=[_row(row) for row in content.get("table", [])],
        **_classes(content),
    )


def _classes(content: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the classes; those of the SVMs are no accuracies and stay away."""
    if "confusion" not in content:
        return {}
    per_class = _mapping(content["per_class"])
    stored, confusion = content["confusion"], []
    if not isinstance(stored, str):
        confusion = [[_count(cell) for cell in row] for row in stored]
        if {len(per_class)} != {len(confusion), *map(len, confusion)}:
            raise ValueError("the confusion matrix has other classes")
    return {
        "per_class": {k: float(v) if finite(v) else None for k, v in per_class.items()},
        "confusion": confusion,
        "confusion_file": f"{EVALUATIONS}/{stored}" if isinstance(stored, str) else "",
        "most_confused": [
            (_text(row["true"]), _text(row["predicted"]), _count(row["images"]))
            for row in content.get("most_confused", [])
        ],
    }


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} in place of an object")
    return value


def _row(value: Any) -> dict[str, Any]:
    """Of a table: a cell has one text or number."""
    row = _mapping(value)
    if not all(map(_plain, row.values())):
        raise TypeError("a list or an object in place of a cell")
    return row


def _plain(value: Any) -> bool:
    """Whether a value has a short text of its own; a row may have NaN."""
    return value is None or isinstance(value, str | bool | float) or finite(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value


def _count(value: Any) -> int:
    if not finite(value) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{type(value).__name__} in place of a whole number")
    return value


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts linear_step200 before linear_step1000."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts]
