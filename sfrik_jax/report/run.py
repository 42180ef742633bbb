"""What a run directory says: settings, facts, metrics, results and pictures."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from sfrik_jax.errors import CorruptInputError, MissingInputError

Curve = list[tuple[int, float]]  # (step, value), by rising step
EVALUATIONS = "eval"  # the folder of what the evaluation commands leave
SCORE = re.compile(r"(?P<owner>.*?)_?(?P<score>linear|knn\d+)_top1")


@dataclass(frozen=True)
class Run:
    """A run directory in memory; `summary` is None until the run has finished."""

    workdir: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    summary: dict[str, Any] | None
    curves: dict[str, Curve]
    pictures: list[Path]
    bad_lines: int = 0
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    pretrained_here: bool = True  # False: evaluations alone, of weights of a file

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.workdir.resolve().name

    @property
    def last_step(self) -> int | None:
        """The last step with metrics, None before the first."""
        return max((curve[-1][0] for curve in self.curves.values()), default=None)

    def first(self, name: str) -> float | None:
        """The first value of a curve; None where there is none."""
        return self.curves[name][0][1] if name in self.curves else None

    def last(self, name: str) -> float | None:
        """The last value of a curve; None where there is none."""
        return self.curves[name][-1][1] if name in self.curves else None

    def course(self, name: str) -> str:
        """A curve in words, for those who do not see it."""
        (first, start), (last, end) = self.curves[name][0], self.curves[name][-1]
        return f"{start:.4g} at step {first:,}, {end:.4g} at step {last:,}"

    def setting(self, *path: str) -> Any:
        """The configuration's value at `path`, None when it has none."""
        node: Any = self.config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node


def load(workdir: Path) -> Run:
    """Reads a run directory; files that a run writes late may be absent.

    Raises: MissingInputError when it holds no run, CorruptInputError for broken JSON.
    """
    if not workdir.is_dir():
        raise MissingInputError(
            f"workdir {workdir} is not there; run `pretrain` into it"
        )
    config = _read_json(workdir / "config.json")
    metrics = workdir / "metrics.jsonl"
    pretrained_here = config is not None or metrics.is_file()
    if not pretrained_here and not any((workdir / EVALUATIONS).glob("*.json")):
        raise MissingInputError(
            f"{workdir} holds neither config.json nor metrics.jsonl nor "
            f"{EVALUATIONS}/*.json; give the --workdir of a `pretrain` run or of an "
            "evaluation"
        )
    curves, bad_lines = _read_metrics(metrics)
    summary = _read_json(workdir / "summary.json")
    return Run(
        workdir=workdir,
        config=config or {},
        facts=_facts(_read_json(workdir / "run.json") or {}),
        summary=summary,
        curves=curves,
        pictures=sorted((workdir / "pictures").glob("*.png")),
        bad_lines=bad_lines,
        results=_results(summary, curves),
        pretrained_here=pretrained_here,
    )


def finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that can be shown (not a bool, NaN or infinity).

    JSON has whole numbers of any length; those beyond a float's range cannot.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """The newest session of run.json, the number of sessions, and the first's start."""
    sessions = [s for s in record.get("sessions") or [] if isinstance(s, dict)]
    if not sessions:
        return record
    facts = {**sessions[-1], "started": sessions[0].get("started")}
    return facts | ({"sessions": len(sessions)} if len(sessions) > 1 else {})


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptInputError(f"{path} is not JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        raise CorruptInputError(f"{path} holds no JSON object; restore it")
    return content


def _read_metrics(path: Path) -> tuple[dict[str, Curve], int]:
    """The curve of every number in metrics.jsonl, and how many lines were unreadable.

    A line cut short by a kill is left out. A step that was run again counts once, with
    its last value.
    """
    values: dict[str, dict[int, float]] = {}
    bad_lines = 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            step = int(float(row["step"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            bad_lines += bool(line.strip())
            continue
        for name, value in row.items():
            if name not in ("step", "epoch") and finite(value):
                values.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}, bad_lines


def _results(
    summary: dict[str, Any] | None, curves: dict[str, Curve]
) -> dict[str, dict[str, float]]:
    """Top-1 by owner ("" = this run) and score ("linear", "knn20").

    An unfinished run is represented by its last online evaluation.
    """
    numbers = summary
    if numbers is None:
        online = {name: curve[-1][1] for name, curve in curves.items()}
        numbers = {
            name.removeprefix("online/"): value
            for name, value in online.items()
            if name.startswith("online/")
        }
    results: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        match = SCORE.fullmatch(name)
        if match and finite(value):
            results.setdefault(match["owner"], {})[match["score"]] = float(value)
    return results
