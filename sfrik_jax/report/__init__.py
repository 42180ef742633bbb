"""One self-contained page about a run: what came out, how it went, how to repeat it."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfrik_jax.errors import OutputError
from sfrik_jax.files import make_folder
from sfrik_jax.report import accuracy, curves, evaluations, page
from sfrik_jax.report.run import Run, finite, load
from sfrik_jax.report.verdict import verdict

# Known metrics in the order of the page, with a title; other terms of a loss follow.
PANELS = {
    "train/loss": "Loss",
    "train/alignment": "Alignment",
    "train/mmd_offdiagonal": "MMD, off-diagonal part",
    **{f"train/mmd_{l}_offdiagonal": f"Its order {l}, unweighted" for l in range(1, 9)},
    "z/effective_rank": "Effective rank of z",
    "z/std": "Standard deviation of √q z",
    "z/uniformity": "Uniformity of z",
    "z/alignment": "Alignment of unit z",
    "z/mmd_offdiagonal": "MMD of unit z, off-diagonal part",
    "train/learning_rate": "Learning rate",
    "train/gradient_norm": "Gradient norm",
}
# With a constant added (the diagonal), or no concern of the method.
LEFT_OUT = ("train/mmd",)
# SFRIK's own terms are these gauges already.
TERMS_OF_SFRIK = ("z/alignment", "z/mmd_offdiagonal")
PICTURES = {
    "views": (
        "Augmented views",
        "Left, the image as it is in the data set; right of it, what the network sees.",
        "Rows of one source image and its augmented views.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Left, test images; right of each, the train images of nearest features. "
        "With labels, a green frame is the same class, a red one with a notch another.",
        "Rows of one test image and its nearest train images in feature space.",
    ),
}


def write_report(workdir: str | Path, out: Path | None = None) -> Path:
    """Writes report.html into a run directory, or into `out`; returns its path.

    Reads config.json, run.json, metrics.jsonl, summary.json, pictures/*.png and
    eval/*.json, of which a damaged one is named and left out. A run without labels or
    one that has not finished gives a page that says so. A directory with
    nothing but eval/*.json gives a page of those.

    Raises: MissingInputError (no such run), CorruptInputError (broken JSON),
      OutputError (the page cannot be written).
    """
    run = load(Path(workdir))
    target = (out or run.workdir) / "report.html"
    partial = target.with_suffix(".html.partial")
    kind = "pretraining" if run.pretrained_here else "evaluation"
    text = page.document(title=f"{run.name} · SFRIK {kind}", html=_sections(run))
    if out is not None:
        make_folder(out)
    try:
        # Half a surrogate pair, which JSON and file names may have, becomes "?".
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    return target


def _sections(run: Run) -> Iterator[str]:
    if not run.pretrained_here:
        yield page.header(
            kicker="Evaluation",
            title=run.name,
            verdict="Figures of weights that were not pretrained in this directory.",
            about="",
        )
        yield from evaluations.sections(run)
        return
    yield page.header(
        kicker="Self-supervised pretraining",
        title=run.name,
        verdict=verdict(run),
        about=_about(run),
    )
    yield from accuracy.sections(run)
    yield from evaluations.sections(run)
    yield from _training(run)
    yield from _pictures(run)
    yield page.section("The run", html=_facts(run))
    yield page.section("Do it again", html=[page.code("\n".join(command_lines(run)))])


def _about(run: Run) -> str:
    parts = [
        run.setting("loss", "method") and f"method {run.setting('loss', 'method')}",
        run.setting("model", "backbone"),
        run.setting("data", "name") or run.setting("data", "source"),
        run.last_step is not None and f"{run.last_step:,} steps",
    ]
    return " · ".join(str(part) for part in parts if part)


def _training(run: Run) -> Iterator[str]:
    terms = [
        name
        for name in sorted(run.curves)
        if name.startswith(("train/", "z/")) and name not in (*PANELS, *LEFT_OUT)
    ]
    known = [name for name in PANELS if name in run.curves]
    if "train/mmd_offdiagonal" in known:
        known = [name for name in known if name not in TERMS_OF_SFRIK]
    names = known[:1] + terms + known[1:] if "train/loss" in known else terms + known
    panels = []
    for number, name in enumerate(names):
        title = PANELS.get(name, name.split("/", 1)[1].replace("_", " ").capitalize())
        label = f"{title} against the training step: {run.course(name)}"
        svg = curves.draw(
            [curves.Line(run.curves[name])],
            ident=f"c{number}",
            label=label,
            log=name != "train/learning_rate",
        )
        panels.append(page.panel(title, f"{run.last(name):.4g}", html=svg))
    if not panels:
        return
    note = "Over the step; the number on the right is the last value."
    if run.bad_lines:
        note += f" {run.bad_lines} unreadable lines of metrics.jsonl are left out."
    yield page.section("Training", note=note, html=[page.group("panels", panels)])


def _pictures(run: Run) -> Iterator[str]:
    order = [*PICTURES]
    known = [path for name in order for path in run.pictures if path.stem == name]
    for path in [*known, *(path for path in run.pictures if path not in known)]:
        plain = path.stem.replace("_", " ").capitalize()
        title, note, alt = PICTURES.get(path.stem, (plain, "", plain))
        yield page.section(title, note=note, html=[page.image(path, alt=alt)])


def _facts(run: Run) -> Iterator[str]:
    summary = run.summary or {}
    pairs = []
    seconds, speed = summary.get("train_seconds"), summary.get("views_per_second")
    if finite(summary.get("steps")):
        pairs.append(("Steps", f"{summary['steps']:,}"))
    if finite(seconds):
        pairs.append(("Training time", duration(float(seconds))))
    if finite(speed):
        pairs.append(("Speed", f"{speed:,.0f} views per second"))
    if summary.get("bad_pictures"):
        left = summary.get("train_images_left_out", 0)
        words = f"{summary['bad_pictures']} replaced, {left} left out for the probes"
        pairs.append(("Bad pictures", words))
    for name, value in run.facts.items():
        if name != "command" and value not in (None, "", [], {}):
            pairs.append((name.replace("_", " ").capitalize(), _plain(value)))
    for name, title in (
        ("protocol", "Protocol"),
        ("weights_sha256", "Weights, SHA-256"),
    ):
        if summary.get(name):
            pairs.append((title, _plain(summary[name])))
    if pairs:
        yield page.definitions(pairs)
    if run.config:
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        yield page.collapsed("All settings, as resolved", text)


def command_lines(run: Run) -> list[str]:
    """The recorded command of a run, after the commit that it was run at."""
    command = run.facts.get("command") or "(the command was not recorded)"
    if isinstance(command, list):
        # The first entry may hold several words: "python -m sfrik_jax".
        program, *words = (str(word) for word in command)
        command = " ".join([program, *map(shlex.quote, words)])
    lines = [str(command)]
    revision = run.facts.get("git_revision")
    if isinstance(revision, str) and revision:
        commit = revision.removesuffix("-dirty")
        changed = "" if commit == revision else "  # and its uncommitted changes"
        lines.insert(0, f"git checkout {commit}{changed}")
    return lines


def duration(seconds: float) -> str:
    """Seconds as hours, minutes or seconds."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _plain(value: Any) -> str:
    """A JSON value as words, without brackets and quotes."""
    if isinstance(value, dict):
        pairs = ((name.replace("_", " "), _plain(item)) for name, item in value.items())
        return ", ".join(f"{name} {item}" for name, item in pairs)
    if isinstance(value, list):
        counts = Counter(_plain(item) for item in value)  # [cpu, cpu]: cpu × 2
        return ", ".join(
            item if n == 1 else f"{item} × {n}" for item, n in counts.items()
        )
    return str(value)
