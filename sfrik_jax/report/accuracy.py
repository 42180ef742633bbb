"""The page's first section: this run beside its baselines, and on the way there."""

from collections.abc import Iterator

from sfrik_jax.report import curves, page
from sfrik_jax.report.run import Run, finite
from sfrik_jax.report.verdict import OWNERS, owner_name, score_name, score_order

COLOURS = {"linear": ("accent", curves.ACCENT), "knn": ("second", curves.SECOND)}


def sections(run: Run) -> Iterator[str]:
    """Yields the section, or nothing for a run without labels."""
    if not run.results:
        return
    scores = sorted({s for row in run.results.values() for s in row}, key=score_order)
    owners = [owner for owner in OWNERS if owner in run.results]
    owners += sorted(set(run.results) - set(owners))
    rows = []
    for owner in owners:
        found = run.results[owner]
        numbers = [f"{found[score]:.1f}" if score in found else "–" for score in scores]
        rows.append([owner_name(owner), *numbers])
    table = page.table(
        ["Top-1 accuracy in %", *(score_name(score) for score in scores)],
        rows,
        own=0 if "" in owners else -1,
        label="Accuracy of this run and of the baselines",
    )
    html = [page.group("pair", [table, *_during_training(run)])]
    yield page.section("Accuracy", note=_note(run), html=html)


def _note(run: Run) -> str:
    if run.summary is None:
        return "The last evaluation during training; the run has not finished."
    note = "On frozen features; the test split chooses nothing."
    count = run.summary.get("test_images")
    top1 = next(iter(run.results.get("", {}).values()), None)
    if finite(count) and count and top1 is not None:
        error = (top1 * (100 - top1) / count) ** 0.5
        note += f" With {count:,} test images one standard error is {error:.1f} points."
    return note


def _during_training(run: Run) -> Iterator[str]:
    """Online accuracy over the step; dashed, the same network untrained."""
    names = {}
    for name in run.curves:
        score = name.removeprefix("online/").removesuffix("_top1")
        if name == f"online/{score}_top1" and score.rstrip("0123456789") in COLOURS:
            names[score] = name
    lines, legend, words = [], [], []
    for score in sorted(names, key=score_order):
        variable, colour = COLOURS[score.rstrip("0123456789")]
        lines.append(curves.Line(run.curves[names[score]], colour))
        legend.append(page.key(score_name(score), colour=variable))
        words.append(f"{score_name(score)} {run.course(names[score])}")
        untrained = run.results.get("random_init", {}).get(score)
        if untrained is not None:
            lines.append(curves.Line([(0, untrained)], colour, level=True))
            legend.append(page.key("untrained", colour=variable, dashed=True))
    if lines:
        svg = curves.draw(
            lines,
            ident="online",
            label="Top-1 accuracy in % against the training step: " + "; ".join(words),
            inches=(4.5, 2.45),
            unit=" %",
            log=False,
        )
        yield page.panel("During training", "over the step", html=svg, legend=legend)
