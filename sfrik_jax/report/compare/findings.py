"""What came out: the verdict, the table of cells, and the paired differences."""

import itertools
from collections.abc import Callable, Sequence

from sfrik_jax.report import duration
from sfrik_jax.report.compare import cells as names
from sfrik_jax.report.compare import tables
from sfrik_jax.report.compare.cells import Cell, Layout
from sfrik_jax.report.compare.gather import Collection, Member
from sfrik_jax.report.compare.statistics import Difference, paired
from sfrik_jax.report.compare.tables import Entry, Table
from sfrik_jax.report.verdict import score_name

Quantity = Callable[[Member], float | None]
GIB = 2**30
# Columns of the CSV for the figures of a cell, beside the scores.
FIGURES = {
    "train_seconds": names.summary("train_seconds"),
    "step_seconds": names.step_seconds,
    "views_per_second": names.summary("views_per_second"),
    "peak_memory_bytes": names.summary("peak_memory_bytes"),
}


def ranked(layout: Layout, score: str) -> list[Cell]:
    """The cells that have the score, the highest mean first.

    Cells with fewer seeds than others come after those: one lucky seed is no ranking.
    """
    found = {
        cell.label: spread
        for cell in layout.cells
        if (spread := cell.spread(names.score(score)))
    }
    have = [cell for cell in layout.cells if cell.label in found]
    places = {label: (-spread.n, -spread.mean) for label, spread in found.items()}
    return sorted(have, key=lambda cell: places[cell.label])


def verdict(collection: Collection, layout: Layout) -> str:
    """The best cell, and whether its lead over the second is more than noise."""
    left = [member for member in collection.members if not member.done]
    total = len(collection.members)
    tail = f" {total - len(left)} of {total} runs are done." if left else ""
    found = names.scores(layout.cells)
    if not found:
        if len(left) == total:
            return f"No run is done yet: {total} are not finished, or have failed."
        return f"No accuracy: no run that is done was tested with labels.{tail}"
    score = found[0]
    order = ranked(layout, score)
    best = order[0]
    sentence = f"Best: {best.label}, {_words(best, score)}."
    if len(order) > 1:
        sentence += f" {_lead(best, order[1], score)}"
    return sentence + tail


def _words(cell: Cell, score: str) -> str:
    found = cell.spread(names.score(score))
    assert found is not None  # of `ranked`
    seeds = "one seed" if found.n == 1 else f"{found.n} seeds"
    deviation = "" if found.deviation is None else f" ± {found.deviation:.1f}"
    name = score_name(score)
    return f"{found.mean:.1f}{deviation} % ({name[0].lower()}{name[1:]}, {seeds})"


def _lead(best: Cell, second: Cell, score: str) -> str:
    found = best.against(second, names.score(score))
    sentence = f"Second: {second.label}, {_words(second, score)}"
    if found is None:
        return sentence + "; they share no seed, so nothing tells the gap from noise."
    gap = f"{found.mean:+.2f} points".replace("-", "\u2212")
    if found.noise is None:
        seeds = "with one seed" if found.n == 1 else f"with each of {found.n} seeds"
        return f"{sentence}; the gap is {gap} {seeds}: noise cannot be told."
    word = "exceeds" if found.exceeds_noise else "is within"
    what = "noise, which is" if found.exceeds_noise else "noise:"
    return (
        f"{sentence}; the gap of {gap} over {found.n} shared seeds {word} {what} "
        f"{found.noise:.2f} points (half the 95 % interval of the paired difference)."
    )


def cell_table(layout: Layout) -> Table:
    """One row a cell: scores, differences to the best, time, memory, settings."""
    found = names.scores(layout.cells)
    order = ranked(layout, found[0]) if found else []
    best = order[0] if order else None
    others = [cell for cell in layout.cells if cell not in order]
    rest = [key for key in layout.varying if key not in layout.axes]
    head = ["Settings", *(f"{score_name(score)} (%)" for score in found)]
    head += ["Against the best"] if best else []
    head += ["n", "Time a run", "Step (ms)", "Views/s", "Memory (GiB)"]
    head += ["Other settings"] if rest else []
    rows, records = [], []
    for cell in [*order, *others]:
        rows.append(_row(layout, cell, found, best, rest))
        records.append(_record(layout, cell, found, best))
    title = "Settings, over their seeds"
    return Table("cells", title, head, rows, records, best=0 if best else -1)


def _row(
    layout: Layout,
    cell: Cell,
    found: Sequence[str],
    best: Cell | None,
    rest: Sequence[str],
) -> list[Entry]:
    row = [Entry(cell.label)]
    row += [tables.mean(cell.spread(names.score(score))) for score in found]
    if best is not None:
        lead = cell.against(best, names.score(found[0])) if cell is not best else None
        row.append(tables.difference(lead))
    done = sum(member.done for member in cell.members)
    row.append(Entry(str(done), done))
    seconds, step, speed, memory = (
        spread.mean if (spread := cell.spread(quantity)) else None
        for quantity in FIGURES.values()
    )
    row += [
        Entry(duration(seconds), seconds) if seconds is not None else Entry("–"),
        tables.number(step and 1000 * step),
        tables.number(speed, 0),
        tables.number(memory and memory / GIB, 2),
    ]
    if rest:
        parts = (
            f"{layout.names[key]} = {layout.shown(key, cell.settings)}"
            for key in rest
            if key in cell.settings
        )
        row.append(Entry(", ".join(parts)))
    return row


def _record(
    layout: Layout, cell: Cell, found: Sequence[str], best: Cell | None
) -> dict[str, object]:
    record: dict[str, object] = {"row": cell.label}
    record |= {key: names.text(cell.settings.get(key)) for key in layout.varying}
    figures = {f"{score}_top1": names.score(score) for score in found} | FIGURES
    for name, quantity in figures.items():
        spread = cell.spread(quantity)
        record |= {
            name: spread and spread.mean,
            f"{name}_sd": spread and spread.deviation,
            f"{name}_n": spread and spread.n,
        }
    if best is not None and cell is not best:
        record |= _difference(cell, best, found[0])
    return record


def _difference(cell: Cell, other: Cell, score: str) -> dict[str, object]:
    return _recorded(cell.label, other.label, cell.against(other, names.score(score)))


def _recorded(row: str, against: str, found: Difference | None) -> dict[str, object]:
    return {
        "row": row,
        "against": against,
        "difference": found and found.mean,
        "difference_se": found and found.error,
        "difference_n": found and found.n,
    }


def neighbours(layout: Layout, axis: str) -> list[tuple[Cell, Cell]]:
    """Pairs of cells of neighbouring values of an axis, equal in all other axes.

    The second has the greater value, of those that such cells have.
    """
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in layout.cells:
        others = tuple(cell.values[key] for key in layout.axes if key != axis)
        rows.setdefault(others, []).append(cell)
    pairs = []
    for row in rows.values():
        numbered = [c for c in row if names.number(c.values[axis]) is not None]
        line = sorted(numbered, key=lambda c: names.natural(c.values[axis]))
        pairs += itertools.pairwise(line)
    return pairs


def difference_table(layout: Layout) -> Table | None:
    """Differences between neighbouring L, and neighbouring q, at equal seeds.

    Each at every value of the other axes; where those are several, then over all.
    """
    found = names.scores(layout.cells)
    axes = [axis for axis in (names.WEIGHTS, names.DIM) if axis in layout.axes]
    rows, records = [], []
    for axis in axes if found else []:
        name, score = layout.names[axis], names.score(found[0])
        together: dict[str, list[tuple[Cell, Cell]]] = {}
        for low, high in neighbours(layout, axis):
            difference = high.against(low, score)
            if difference is None:
                continue
            step = f"{name}: {low.values[axis]} → {high.values[axis]}"
            at = ", ".join(
                f"{layout.names[key]} = {value}"
                for key, value in high.values.items()
                if key != axis and value != names.ABSENT
            )
            together.setdefault(step, []).append((low, high))
            rows.append(_step(step, at or "–", difference))
            records.append(_difference(high, low, found[0]))
        for step, pairs in together.items():
            if len(pairs) > 1:
                over = pooled(pairs, score)
                rows.append(_step(step, "all of these", over))
                low, high = pairs[0]
                to, of = (f"{name} = {each.values[axis]}" for each in (high, low))
                records.append(_recorded(to, of, over))
    if not rows:
        return None
    head = [
        "Step",
        "At",
        f"Gain, {score_name(found[0])} (points)",
        "n",
        "Against noise",
    ]
    return Table("differences", "Paired differences", head, rows, records)


def pooled(pairs: Sequence[tuple[Cell, Cell]], score: Quantity) -> Difference | None:
    """The mean difference of several pairs of cells, each seed of each one pair."""
    lows, highs = (
        {
            f"{i} {seed}": value
            for i, pair in enumerate(pairs)
            for seed, value in pair[which].by_seed(score).items()
        }
        for which in (0, 1)
    )
    return paired(highs, lows)


def _step(step: str, at: str, found: Difference | None) -> list[Entry]:
    n = found.n if found else 0
    count = Entry(str(n), n)
    words = [Entry(step), Entry(at), tables.difference(found)]
    return [*words, count, tables.judged(found)]
