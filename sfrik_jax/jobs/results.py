"""What a job leaves: `eval/NAME.json`, and a table on the standard output."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfrik_jax import files
from sfrik_jax.errors import MismatchError
from sfrik_jax.evaluators import scores
from sfrik_jax.provenance import about_this_process
from sfrik_jax.rundir import write_whole

FOLDER = "eval"
MOST_CLASSES = 100  # whose confusion matrix stands in the record itself


def directory(workdir: Path, name: str) -> Path:
    """Where a job keeps what it needs to go on."""
    return workdir / FOLDER / name


def path_of(workdir: Path, name: str) -> Path:
    """The record of a job's figures."""
    return workdir / FOLDER / f"{name}.json"


def read(workdir: Path, name: str) -> dict[str, Any]:
    """An earlier record; empty when there is none, or it is damaged."""
    try:
        record = json.loads(path_of(workdir, name).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def done(
    workdir: Path, name: str, identity: Mapping[str, Any], *, replace: bool = False
) -> dict[str, Any]:
    """The record of the same weights, data and protocol; empty when there is none.

    Args: replace: whether a record of others may be lost, as it holds no figures.
    Raises:
      MismatchError: there is a record of others, which would be lost.
    """
    earlier = read(workdir, name)
    if not isinstance(earlier.get("weights"), dict):
        return {}
    changed = [key for key in identity if _facts(earlier, key) != _facts(identity, key)]
    if changed and replace:
        return {}
    if changed:
        raise MismatchError(
            f"{path_of(workdir, name)} holds figures of other {' and '.join(changed)}; "
            "give another --name, or delete it"
        )
    return earlier


def _facts(record: Mapping[str, Any], key: str) -> Any:
    """What has to agree: weights are the same wherever they lie."""
    return record.get(key) if key != "weights" else record[key].get("sha256")


def write(
    workdir: Path,
    name: str,
    *,
    job: str,
    figures: Mapping[str, Any],
    identity: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the record of a job's figures, whole or not at all, and returns it.

    Args:
      figures: by name; accuracies in %.
      identity: what they depend on, see `parts.identity`.
      details: of the job: what was compared, figures of each class.
    """
    record = {
        "name": name,
        "job": job,
        "figures": figures,
        **identity,
        **details,
        "session": about_this_process(),
    }
    path = path_of(workdir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = record.get("confusion", [])
    if len(matrix) > MOST_CLASSES:
        # As text the matrix of ImageNet's classes would be 10 MB and 10^6 lines.
        file = directory(workdir, name) / "confusion.npy"
        content = io.BytesIO()
        np.save(content, np.asarray(matrix, np.int64))
        files.write_whole(file, content.getvalue())
        record["confusion"] = str(file.relative_to(path.parent))
    write_whole(path, json.dumps(_finite(record), indent=2) + "\n")
    return read(workdir, name)


def class_details(
    counts: scores.Counts, names: list[str] | None, most: int = 20
) -> dict[str, Any]:
    """Top-1 of each class, the confusion matrix, and the commonest mistakes."""
    names = names or [str(number) for number in range(len(counts.top5))]
    per_class = scores.per_class(counts)
    return {
        "per_class": {
            name: None if np.isnan(value) else round(float(value), 2)
            for name, value in zip(names, per_class, strict=True)
        },
        "most_confused": [
            {"true": names[true], "predicted": names[taken], "images": images}
            for true, taken, images in scores.most_confused(counts, most)
        ],
        "confusion": counts.confusion.tolist(),
    }


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
    compared = record.get("compared", [])
    if len(compared) > 1:
        chosen = record["chosen"]
        marked = [{**row, "chosen": "*" if row == chosen else ""} for row in compared]
        print("\n".join(columns(marked)))
    if "table" in record:
        print("\n".join(columns(record["table"])))
    told = {key for row in record.get("table", []) for key in row}
    lines = [
        (name, value)
        for name, value in intervals(record["figures"]).items()
        if "table" not in record or not _in_table(name, told)
    ]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")
    print(path)


def _in_table(name: str, told: set[str]) -> bool:
    """Whether a figure such as knn/top1_k20 stands in the table of the job."""
    short = name.rpartition("/")[2]
    return any(short.startswith(f"{key}_") for key in told)


def intervals(figures: Mapping[str, Any]) -> dict[str, str]:
    """Figures as texts; NAME_low and NAME_high stand behind NAME."""
    ends = {f"{name}_{end}" for name in figures for end in ("low", "high")}
    texts = {}
    for name, value in figures.items():
        if name in ends:
            continue
        text = _text(value)
        if f"{name}_low" in figures:
            low, high = (_text(figures[f"{name}_{end}"]) for end in ("low", "high"))
            text = f"{text}  ({low} … {high})"
        texts[name] = text
    return texts


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
