"""Tables that the page sorts, and that stand as CSV and Markdown beside it."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sfrik_jax.report import page
from sfrik_jax.report.compare.statistics import Difference, Spread

NOTHING = "–"
LONG = 25  # rows beyond which a table opens on a click


@dataclass(frozen=True)
class Entry:
    """What stands in a table: its text, and the number that it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Attributes:
      name: in the first column of the CSV.
      title: above it in Markdown, and for readers who do not see it.
      head: titles of the columns; the first column names the row.
      records: its rows for the CSV, unrounded.
      best: the row that stands out; -1 for none.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    records: Sequence[dict[str, Any]] = field(default_factory=list)
    best: int = -1

    def html(self) -> str:
        """As HTML that the page's script makes sortable; without it a plain table."""
        kinds = [_kind(self._is_number(i)) for i in range(len(self.head))]
        head = "".join(
            f'<th scope="col"{kind}>{escape(cell)}</th>'
            for kind, cell in zip(kinds, self.head, strict=True)
        )
        body = "".join(self._row(i, row, kinds) for i, row in enumerate(self.rows))
        return page.scrolled(
            f'<table class="sortable"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>",
            self.title,
        )

    def markdown(self) -> str:
        """As a Markdown table below its title."""
        lines = [self.head, ["---"] * len(self.head)]
        lines += [[entry.text for entry in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        return f"## {_escaped(self.title)}\n\n{table}\n"

    def _is_number(self, column: int) -> bool:
        entries = [row[column] for row in self.rows]
        filled = [entry for entry in entries if entry.text not in ("", NOTHING)]
        return bool(filled) and all(entry.value is not None for entry in filled)

    def _row(self, place: int, row: Sequence[Entry], kinds: Sequence[str]) -> str:
        cells = [f'<th scope="row"{_sort(row[0])}>{escape(row[0].text)}</th>']
        cells += [
            f"<td{kind}{_sort(entry)}>{escape(entry.text)}</td>"
            for kind, entry in zip(kinds[1:], row[1:], strict=True)
        ]
        own = ' class="own"' if place == self.best else ""
        return f"<tr{own}>{''.join(cells)}</tr>"


def as_csv(tables: Iterable[Table]) -> str:
    """All records below one head; the column `table` tells which they are of."""
    rows = [{"table": table.name, **row} for table in tables for row in table.records]
    head = list(dict.fromkeys(key for row in rows for key in row)) or ["table"]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def number(value: float | None, digits: int = 1, unit: str = "") -> Entry:
    """A number, or a dash."""
    if value is None:
        return Entry(NOTHING)
    return Entry(f"{value:,.{digits}f}{unit}".replace("-", "\u2212"), value)


def figure(value: float | None) -> Entry:
    """A number of any size with three digits, or a dash."""
    if value is None:
        return Entry(NOTHING)
    return Entry(f"{value:.3g}".replace("-", "\u2212"), value)


def mean(found: Spread | None, digits: int = 1) -> Entry:
    """The mean ± its standard deviation, which one value has not."""
    if found is None:
        return Entry(NOTHING)
    text = f"{found.mean:,.{digits}f}"
    if found.deviation is not None:
        text += f" ± {found.deviation:.{digits}f}"
    return Entry(text, found.mean)


def difference(found: Difference | None) -> Entry:
    """A paired difference with its sign ± its standard error."""
    if found is None:
        return Entry(NOTHING)
    text = f"{found.mean:+.2f}".replace("-", "\u2212")
    if found.error is not None:
        text += f" ± {found.error:.2f}"
    return Entry(text, found.mean)


def folded(table: Table, title: str) -> str:
    """A table, behind its title where it is long."""
    inside = table.html()
    return page.opened(title, html=[inside]) if len(table.rows) > LONG else inside


def judged(found: Difference | None) -> Entry:
    """Whether a difference is more than noise."""
    beyond = found and found.exceeds_noise
    return Entry(NOTHING if beyond is None else "beyond noise" if beyond else "noise")


def _kind(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _sort(entry: Entry) -> str:
    return "" if entry.value is None else f' data-value="{entry.value!r}"'


def _escaped(text: str) -> str:
    """Text of one cell: no line break, no bar, no markup."""
    line = " ".join(text.split())
    for sign in "\\|`*_[":
        line = line.replace(sign, f"\\{sign}")
    return line.replace("<", "&lt;").replace(">", "&gt;")
