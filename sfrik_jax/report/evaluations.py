"""The page's section of evaluation commands: figures, what was compared, confusions."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sfrik_jax.report import page, records
from sfrik_jax.report.records import Record
from sfrik_jax.report.run import Run, finite

# Features have no figure to show.
JOBS = {
    "linear": "Linear probe",
    "finetune": "Fine-tuned",
    "knn": "kNN",
    "logreg": "Logistic regression",
    "voc_svm": "SVMs",
    "gauges": "Gauges",
}
# top1 of the final split, or val_top1 where that was left alone; _k20 of kNN.
TOP1 = re.compile(r"(?P<head>\w+/(?P<val>val_)?)top1(?P<k>_k\d+)?")
GAUGES = {
    "rankme": "Effective rank (RankMe)",
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "wasserstein": "Wasserstein distance to uniform",
    "std": "Standard deviation of √d u",
}
# Settings that a line about the protocol names, with words before and after them.
PROTOCOL = {
    "data.resize": ("resized to", "px"),
    "data.image_size": ("centre", "px"),
    "data.method": ("", ""),
    "probe.epochs": ("", "epochs"),
    "finetune.epochs": ("", "epochs"),
    "finetune.backbone_learning_rate": ("backbone rate", ""),
    "finetune.head_learning_rate": ("head rate", ""),
    "logreg.solver": ("", ""),
    "knn.temperature": ("temperature", ""),
    "data.train_subset": ("trained on", ""),
    "augment.recipe": ("views", ""),
    "gauges.images": ("", "pictures"),
}
NOTE = (
    "In %; the 95 % interval is of the choice of test pictures alone. In small print, "
    "protocol and weights."
)
HEAT_CLASSES = 20  # more do not fit; their commonest mistakes are listed


def sections(run: Run) -> Iterator[str]:
    """Yields the section, or nothing where no evaluation command has run."""
    found, damaged = records.read(run.workdir)
    last = (run.summary or {}).get("backbone_sha256")
    found = [each for job in JOBS for each in found if each.job == job]
    shown = [_Shown(each, _note(each, last)) for each in found]
    if not (shown or damaged):
        return
    note = NOTE if shown else ""
    if damaged:
        files = ", ".join(damaged)
        note += f" Left out, as damaged: {files}; run the command again."
    html = [*_accuracies(shown), *_precisions(shown), *_gauges(shown)]
    html += [details for each in shown for details in _details(each.record)]
    yield page.section("Evaluations", note=note.strip(), html=html)


class _Shown(NamedTuple):
    record: Record
    note: str


def _accuracies(shown: Sequence[_Shown]) -> Iterator[str]:
    rows, notes = [], []
    for record, note in shown:
        own = [[title, *texts] for title, texts in accuracies(record)]
        rows += own
        notes += [""] * (len(own) - 1) + [note] * bool(own)
    if rows:
        head = ["Top-1 accuracy in %", "Top-1", "95 % interval", "Top-5"]
        label = "Accuracies of the evaluation commands"
        yield page.table(head, rows, own=-1, label=label, notes=notes)


def accuracies(record: Record) -> Iterator[tuple[str, list[str]]]:
    """Title and texts of top-1, its interval and top-5; for kNN one row for each k.

    Those of the validation split are given where the final one was left alone.
    """
    found = [match for key in record.figures if (match := TOP1.fullmatch(key))]
    final = [match for match in found if not match["val"]]
    for match in final or found:
        head, k = match["head"], match["k"] or ""
        own = {
            name: record.figures.get(f"{head}{name}{k}")
            for name in ("top1", "top1_low", "top1_high", "top5")
        }
        title = _title(record) + (f", k\u00a0=\u00a0{k[2:]}" if k else "")
        title += "" if final else ", validation split"
        low, high = own["top1_low"], own["top1_high"]
        interval = "–" if low is None or high is None else f"{low:.1f} – {high:.1f}"
        yield title, [_percent(own["top1"]), interval, _percent(own["top5"])]


def _precisions(shown: Sequence[_Shown]) -> Iterator[str]:
    rows, notes = [], []
    for record, note in shown:
        if record.job != "voc_svm":
            continue
        own = [record.figures.get(f"voc_svm/map_{kind}") for kind in ("voc07", "area")]
        rows.append([_title(record), *map(_percent, own)])
        notes.append(note)
        for row in record.table:
            own = [row.get("map_voc07"), row.get("map_area")]
            rows.append([f"{row.get('shots')} per class", *map(_percent, own)])
            notes.append("")
    if rows:
        head = ["Mean average precision in %", "11 points", "Area"]
        label = "Mean average precision of the SVMs"
        yield page.table(head, rows, own=-1, label=label, notes=notes)


def _gauges(shown: Sequence[_Shown]) -> Iterator[str]:
    for record, note in shown:
        pairs = [key.partition("/")[::2] for key in record.figures if "/" in key]
        if record.job != "gauges" or not pairs:
            continue
        kinds = list(dict.fromkeys(kind for kind, _ in pairs))
        own = {name for _, name in pairs}
        names = [name for name in GAUGES if name in own] + sorted(own - set(GAUGES))
        rows = [
            [
                GAUGES.get(name, name.replace("_", " ")),
                *(_short(record.figures.get(f"{kind}/{name}")) for kind in kinds),
            ]
            for name in names
        ]
        head = [_title(record), *(kind.capitalize() for kind in kinds)]
        label = "Gauges of features, and of embeddings where there are any"
        notes = [""] * (len(rows) - 1) + [note]
        yield page.table(head, rows, own=-1, label=label, notes=notes)


def _details(record: Record) -> Iterator[str]:
    """What was compared, and the classes, behind a line that opens."""
    html = [*_compared(record), *_confusion(record)]
    if html:
        yield page.opened(f"{_title(record)}: {_contents(record)}", html=html)


def _contents(record: Record) -> str:
    settings = f"{len(record.compared)} settings compared"
    parts = [settings] if len(record.compared) > 1 else []
    if record.per_class:
        heat = _fits(record)
        parts.append("confusions of the classes" if heat else "commonest mistakes")
    return ", ".join(parts)


def _compared(record: Record) -> Iterator[str]:
    if len(record.compared) < 2:
        return
    keys = list(dict.fromkeys(key for row in record.compared for key in row))
    rows = [
        [str(number), *(_short(row.get(key)) for key in keys)]
        for number, row in enumerate(record.compared, 1)
    ]
    own = next((i for i, r in enumerate(record.compared) if r == record.chosen), -1)
    head = ["Setting", *(key.replace("_", " ") for key in keys)]
    label = f"What {record.name} compared; the emphasised setting was chosen"
    yield page.table(head, rows, own=own, label=label)


def _confusion(record: Record) -> Iterator[str]:
    if _fits(record):
        yield page.heat_table(
            list(record.per_class),
            record.confusion,
            [_percent(value) for value in record.per_class.values()],
            head=("True class", "Top-1"),
            label=f"Pictures of each class and what {record.name} took them for",
        )
        return
    rows = [[f"{t} as {p}", f"{n:,}"] for t, p, n in record.most_confused[:10]]
    if rows:
        head = ["Taken for another class", "Pictures"]
        label = f"The commonest mistakes of {record.name}"
        notes = [""] * len(rows)
        if record.confusion_file:
            count = len(record.per_class)
            notes[-1] = f"All of {count:,} x {count:,} classes: {record.confusion_file}"
        yield page.table(head, rows, own=-1, label=label, notes=notes)


def _fits(record: Record) -> bool:
    """Whether the matrix can be shown whole."""
    return 0 < len(record.confusion) <= HEAT_CLASSES


def _title(record: Record) -> str:
    known = JOBS.get(record.job, record.job)
    plain = record.job.replace("_", "-")
    return known if record.name == plain else f"{known} ({record.name})"


def _note(record: Record, last: Any) -> str:
    """Protocol and weights in a line; `last` is the hash of the run's last weights."""
    parts = []
    for key, (before, after) in PROTOCOL.items():
        value = record.protocol.get(key)
        # Gauges look at random crops.
        seen = record.job != "gauges" or not key.startswith("data.")
        if seen and value not in (None, ""):
            parts.append(" ".join(filter(None, (before, _short(value), after))))
    step = "" if record.step is None else f"step {record.step:,}, "
    parts.append(f"weights {step}{record.sha256[:12]}")
    if last is not None and last != record.sha256:
        parts.append("not the run's last")
    return " · ".join(parts)


def _percent(value: Any) -> str:
    return f"{value:.1f}" if finite(value) else "–"


def _short(value: Any) -> str:
    if isinstance(value, float) and finite(value):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
