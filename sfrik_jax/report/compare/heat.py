"""A score over two settings, as a table coloured by value."""

from collections.abc import Callable, Sequence
from html import escape
from statistics import mode

from sfrik_jax.report import page
from sfrik_jax.report.compare.cells import (
    ABSENT,
    DIM,
    WEIGHTS,
    Cell,
    Layout,
    natural,
)
from sfrik_jax.report.compare.gather import Member
from sfrik_jax.report.compare.statistics import Spread

# Shares of the accent in % of the least and the greatest value: text stays readable.
PALE, STRONG = 4, 45


def axes_of(layout: Layout) -> tuple[str, str] | None:
    """The settings of the rows and of the columns; None where fewer than two vary.

    The weights (L) are the rows where they vary and q the columns; otherwise those of
    the two settings with the most values.
    """
    counts = {
        axis: len({cell.values[axis] for cell in layout.cells}) for axis in layout.axes
    }
    wanted = [axis for axis in (WEIGHTS, DIM) if axis in counts]
    rest = sorted((a for a in counts if a not in wanted), key=lambda a: -counts[a])
    chosen = [*wanted, *rest][:2]
    return (chosen[0], chosen[1]) if len(chosen) == 2 else None


def grids(
    layout: Layout, quantity: Callable[[Member], float | None], title: str
) -> list[str]:
    """A table for each choice of the settings that are neither rows nor columns.

    One with a single row or column is left out: the table of cells has it.
    """
    axes = axes_of(layout)
    if axes is None:
        return []
    found = {cell.label: cell.spread(quantity) for cell in layout.cells}
    shown = [spread for spread in found.values() if spread is not None]
    if len(shown) < 2:
        return []
    others = [axis for axis in layout.axes if axis not in axes]
    parts: dict[tuple[str, ...], list[Cell]] = {}
    for cell in layout.cells:
        parts.setdefault(tuple(cell.values[key] for key in others), []).append(cell)
    tables = []
    for values, cells in parts.items():
        words = [
            f"{layout.names[key]} = {value}"
            for key, value in zip(others, values, strict=True)
            if value != ABSENT
        ]
        caption = ", ".join([title, *words])
        tables.append(_grid(layout, axes, cells, found, shown, caption))
    return [table for table in tables if table]


def _grid(
    layout: Layout,
    axes: tuple[str, str],
    cells: Sequence[Cell],
    found: dict[str, Spread | None],
    shown: Sequence[Spread],
    caption: str,
) -> str:
    rows, columns = (
        sorted({cell.values[axis] for cell in cells}, key=natural) for axis in axes
    )
    if len(rows) < 2 or len(columns) < 2:
        return ""
    by_place = {(c.values[axes[0]], c.values[axes[1]]): found[c.label] for c in cells}
    names = [layout.names[axis] for axis in axes]
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row)}</th>'
        + "".join(_cell(by_place.get((row, column)), shown) for column in columns)
        + "</tr>"
        for row in rows
    )
    corner = f"{escape(names[0])} ↓ \u2002{escape(names[1])} →"
    return page.scrolled(
        f'<table class="grid"><caption>{escape(caption)}</caption><thead><tr>'
        f'<th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
        caption,
    )


def _cell(spread: Spread | None, shown: Sequence[Spread]) -> str:
    if spread is None:
        return f"<td>{ABSENT}</td>"
    least, most = min(s.mean for s in shown), max(s.mean for s in shown)
    part = (spread.mean - least) / (most - least) if most > least else 0.5
    share = PALE + (STRONG - PALE) * part
    small = []
    if spread.deviation is not None:
        small.append(f"± {spread.deviation:.1f}")
    if spread.n != mode(s.n for s in shown):
        small.append(f"n = {spread.n}")
    text = f"<small>{' · '.join(small)}</small>" if small else ""
    kind = "filled best" if spread.mean == most else "filled"
    return (
        f'<td class="{kind}" style="--share: {share:.0f}%">{spread.mean:.1f}{text}</td>'
    )
