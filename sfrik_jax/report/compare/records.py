"""Sections on the runs themselves: states, settings, pictures, commands, tuning."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from sfrik_jax.report import command_lines, page
from sfrik_jax.report.compare import cells as names
from sfrik_jax.report.compare import tables
from sfrik_jax.report.compare.cells import Cell, Layout
from sfrik_jax.report.compare.gather import Collection, Sweep
from sfrik_jax.report.compare.tables import Entry, Table
from sfrik_jax.report.run import finite
from sfrik_jax.report.verdict import score_name

PICTURES = 4  # cells whose neighbours are shown
MOST_BYTES = 1_500_000  # of a picture on the page


def run_table(collection: Collection, layout: Layout) -> Table:
    """One row a run: its state, its scores, and the settings that differ."""
    found = names.scores(layout.cells)
    head = ["Run", "State", *(f"{score_name(score)} (%)" for score in found), "seed"]
    head += [layout.names[key] for key in layout.varying]
    rows, records = [], []
    for member in collection.members:
        values = [names.score(s)(member) if member.done else None for s in found]
        keys = ["seed", *layout.varying]
        texts = [
            layout.shown(key, member.settings)
            if member.settings
            else names.text(member.overrides.get(key))
            for key in keys
        ]
        rows.append(
            [
                Entry(member.name),
                Entry(member.state),
                *(tables.number(value, 2) for value in values),
                *(Entry(text, names.number(text)) for text in texts),
            ]
        )
        scores = {f"{s}_top1": v for s, v in zip(found, values, strict=True)}
        records.append(
            {"row": member.name, "state": member.state, **scores}
            | dict(zip(keys, texts, strict=True))
        )
    return Table("runs", "Runs and the settings that differ", head, rows, records)


def states(collection: Collection, layout: Layout, table: Table) -> Iterator[str]:
    """How many runs are in which state, those that are not done by name."""
    counts = Counter(member.state for member in collection.members)
    pairs = []
    for state, count in sorted(counts.items(), key=lambda item: -item[1]):
        members = [m.name for m in collection.members if m.state == state]
        listed = f": {', '.join(members)}" if state != "done" else ""
        pairs.append((state[:1].upper() + state[1:], f"{count}{listed}"))
    if collection.damaged:
        pairs.append(("Damaged files", "; ".join(collection.damaged)))
    if layout.repeats:
        text = f"{', '.join(layout.repeats)}, of settings and a seed that another has"
        pairs.append(("Left out as repeats", text))
    if collection.unlisted:
        pairs.append(("There, and not of the sweep", ", ".join(collection.unlisted)))
    bad = sum(member.run.bad_lines for member in collection.members if member.run)
    if bad:
        pairs.append(("Unreadable lines of metrics.jsonl", str(bad)))
    title = f"All {len(collection.members)} runs, and the settings that differ"
    shown = tables.folded(table, title)
    note = "Figures of the page are of runs that are done." if len(counts) > 1 else ""
    yield page.section("Runs", note=note, html=[page.definitions(pairs), shown])


def common_settings(collection: Collection, layout: Layout) -> Iterator[str]:
    """What all runs share, folded."""
    readable = [member for member in collection.members if member.settings]
    if not readable:
        return
    first = readable[0].settings
    differ = {*layout.varying, "seed"}
    lines = [
        f"{key} = {names.text(v)}" for key, v in first.items() if key not in differ
    ]
    yield page.section(
        "Settings that all runs share",
        html=[page.collapsed(f"{len(lines)} settings", "\n".join(lines))],
    )


def neighbours(order: Sequence[Cell]) -> Iterator[str]:
    """Nearest neighbours of one run a cell, folded."""
    parts = []
    for cell in order:
        paths = (
            path
            for member in cell.members
            if member.done and member.run
            for path in member.run.pictures
            if path.stem == "neighbours" and path.stat().st_size <= MOST_BYTES
        )
        path = next(paths, None)
        if path is not None and len(parts) < PICTURES:
            alt = f"Test images and their nearest train images, {cell.label}"
            parts.append(page.opened(cell.label, html=[page.image(path, alt=alt)]))
    if parts:
        note = (
            "Left, test images; right of each, the train images of nearest features. "
            "A green frame is the same class, a red one with a notch another. One run "
            "for each of the best settings."
        )
        yield page.section("Nearest neighbours", note=note, html=parts)


def commands(collection: Collection) -> Iterator[str]:
    """Commands that make the runs again."""
    parts = []
    sweeps = [line for sweep in collection.sweeps for line in sweep_command(sweep)]
    if sweeps:
        parts.append(page.code("\n".join(sweeps)))
    blocks = [
        "\n".join([f"# {member.name}".replace("\n", " "), *command_lines(member.run)])
        for member in collection.members
        if member.run and member.run.facts.get("command")
    ]
    if blocks:
        text = "\n\n".join(blocks)
        parts.append(page.collapsed(f"The commands of {len(blocks)} runs", text))
    if parts:
        yield page.section("Do it again", html=parts)


def tuning(collection: Collection) -> tuple[list[str], list[Table]]:
    """What was tried on the validation split, apart from all final figures."""
    parts, found = [], []
    for choice in collection.choices:
        table = _choice(choice, len(found))
        found.append(table)
        parts.append(f"<h3>{escape(table.title)}</h3>{table.html()}")
    if not found and not collection.tuning:
        return [], []
    note = (
        "Figures of the validation split choose settings and are no results. The other "
        "sections know nothing of them."
    )
    if collection.tuning:
        counts = Counter(member.state for member in collection.tuning)
        words = ", ".join(f"{count} {state}" for state, count in counts.items())
        note += f" Runs of the tuning: {words}."
    return [
        page.section("Tuning, on the validation split", note=note, html=parts)
    ], found


def _choice(choice: dict[str, Any], place: int) -> Table:
    """One choice: its candidates, the chosen one first."""
    about, taken = _texts(choice.get("for")), _texts(choice.get("chosen"))
    listed = choice.get("candidates")
    candidates = [c for c in listed if isinstance(c, dict)] if listed else []
    candidates.sort(
        key=lambda c: -c["value"] if finite(c.get("value")) else float("inf")
    )
    chosen = str(choice.get("run") or "")
    metric = str(choice.get("metric") or "value")
    rows, records, best = [], [], -1
    for i, candidate in enumerate(candidates):
        name = str(candidate.get("run") or "")
        value = candidate.get("value")
        value = float(value) if finite(value) else None
        best = i if name == chosen and best < 0 else best
        words = _texts(candidate.get("overrides"))
        rows.append([Entry(name), Entry(words), tables.number(value, 2)])
        records.append(
            {
                "row": name,
                "choice": about,
                "overrides": words,
                f"tuning_{metric}": value,
            }
            | {"chosen": name == chosen}
        )
    head = ["Run", "Settings", f"{metric}, validation"]
    title = f"{about or f'Choice {place + 1}'}: {taken or 'nothing'} is taken"
    return Table("tuning", title, head, rows, records, best=best)


def _texts(pairs: Any) -> str:
    if not isinstance(pairs, dict):
        return ""
    return ", ".join(f"{key} = {names.text(value)}" for key, value in pairs.items())


def sweep_command(sweep: Sweep) -> list[str]:
    """The command that carries a sweep out, where it was noted."""
    return [f"python -m sfrik_jax {shlex.join(sweep.again)}"] if sweep.again else []
