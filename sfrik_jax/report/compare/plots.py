"""Sections with charts: curves, cost against q, gauges, spectra."""

from collections.abc import Callable, Iterator, Sequence

from sfrik_jax.report import page
from sfrik_jax.report.compare import cells as names
from sfrik_jax.report.compare import figures, tables
from sfrik_jax.report.compare.cells import Cell, Layout
from sfrik_jax.report.compare.figures import Line
from sfrik_jax.report.compare.findings import GIB, ranked
from sfrik_jax.report.compare.tables import Entry, Table
from sfrik_jax.report.run import finite

ONLINE = {
    "online/linear_top1": "Linear probe during training (%)",
    "online/knn": "kNN during training (%)",
    "train/loss": "Loss",
}
GAUGES = {
    "z/effective_rank": "Effective rank of z",
    "z/std": "Standard deviation of √q z",
    "z/uniformity": "Uniformity of z",
}


def chosen(layout: Layout) -> list[Cell]:
    """At most six cells to be drawn: evenly over the ranking, best and last included.

    They come in the order of the page. Without scores they are taken over that order.
    """
    found = names.scores(layout.cells)
    order = ranked(layout, found[0]) if found else []
    order = order + [cell for cell in layout.cells if cell not in order]
    if len(order) > figures.GROUPS:
        last = len(order) - 1
        places = {round(i * last / (figures.GROUPS - 1)) for i in range(figures.GROUPS)}
        order = [order[place] for place in sorted(places)]
    return [cell for cell in layout.cells if cell in order]


def drawn(layout: Layout, groups: Sequence[Cell]) -> str:
    """A word on how many of the cells are drawn."""
    if len(groups) == len(layout.cells):
        return ""
    return (
        f" Drawn are {len(groups)} of {len(layout.cells)} settings, evenly over the "
        "ranking from the best to the last."
    )


def training(layout: Layout, groups: Sequence[Cell]) -> Iterator[str]:
    """Curves of each seed, of accuracies during training or else of the loss."""
    panels = []
    for number, (start, title) in enumerate(ONLINE.items()):
        lines = [
            Line(curve, group)
            for group, cell in enumerate(groups)
            for member in cell.members
            if (curve := _curve(member, start, top1=start != "train/loss"))
        ]
        if lines and (max(len(line.points) for line in lines) > 1):
            panels.append(_over_steps(title, lines, f"t{number}", groups))
    if panels:
        note = (
            "A thin line for each seed. Losses of different methods or weights are "
            "different quantities." + drawn(layout, groups)
        )
        yield _section("Training", note, panels, groups)


def gauges(layout: Layout, groups: Sequence[Cell]) -> tuple[list[str], Table | None]:
    """The section on collapse, and its table of last values."""
    have = [name for name in GAUGES if _any(layout.cells, names.last(name))]
    if not have:
        return [], None
    panels = []
    for number, name in enumerate(have):
        lines = [
            Line(member.run.curves[name], group)
            for group, cell in enumerate(groups)
            for member in cell.members
            if member.run and name in member.run.curves
        ]
        if lines:
            panels.append(_over_steps(GAUGES[name], lines, f"g{number}", groups))
    rows, records = [], []
    for cell in layout.cells:
        spreads = [cell.spread(names.last(name)) for name in have]
        if any(spreads):
            parts = [tables.figure(spread and spread.mean) for spread in spreads]
            rows.append([Entry(cell.label), *parts])
            values = zip(have, (s and s.mean for s in spreads), strict=True)
            records.append({"row": cell.label, **dict(values)})
    head = ["Settings", *(GAUGES[name] for name in have)]
    table = Table("gauges", "Collapse gauges, last values", head, rows, records)
    note = (
        "Embeddings that collapse have a low effective rank and a deviation far below "
        "1; a uniform law has the least uniformity. Means over seeds."
        + drawn(layout, groups)
    )
    return [_section("Collapse gauges", note, panels, groups, more=table.html())], table


def cost(layout: Layout) -> Iterator[str]:
    """Seconds of a step and memory against q, a line for each other choice."""
    if names.DIM not in layout.varying:
        return
    rows = _by_others(layout)
    shown = dict(list(rows.items())[: figures.GROUPS])
    panels = []
    for ident, title, quantity, unit in (
        ("c0", "Time of a step (ms)", names.step_seconds, 1000.0),
        ("c1", "Peak memory (GiB)", names.summary("peak_memory_bytes"), 1 / GIB),
    ):
        lines = [
            Line(points, group)
            for group, row in enumerate(shown.values())
            if (points := _against_dim(row, quantity, unit))
        ]
        places = sorted({x for line in lines for x, _ in line.points})
        if len(places) > 1:
            label = f"{title} against q, {places[0]:g} to {places[-1]:g}"
            panels.append(
                figures.panel(
                    title,
                    lines,
                    ident=ident,
                    label=label,
                    value="over q",
                    x_scale="log",
                    x_ticks=places[:: 1 + (len(places) - 1) // 6],
                )
            )
    if panels:
        note = (
            "Means over seeds. Where the median of the steps was not kept, the time is "
            "the training's mean, its compilation included."
        )
        if len(shown) < len(rows):
            note += f" Drawn are {len(shown)} of {len(rows)} choices."
        parts = [figures.legend(shown), page.group("panels", panels)]
        yield page.section("Cost against q", note=note, html=parts)


# Shares of the covariance below it are rounding: features are float32.
FLOOR = 1e-8


def spectra(layout: Layout, groups: Sequence[Cell]) -> Iterator[str]:
    """Eigenvalues of the covariance of z and of h, of one seed a cell."""
    panels = []
    for what, title in (
        ("embeddings", "Eigenvalues of unit z"),
        ("features", "Eigenvalues of unit h"),
    ):
        lines = []
        for group, cell in enumerate(groups):
            stored = next(
                (m.spectrum[what] for m in cell.members if what in m.spectrum), []
            )
            found = [value for value in stored if value > FLOOR]
            if found:
                lines.append(Line(_few_logarithmic(found), group))
        if lines:
            label = f"{title} by rank, both axes logarithmic"
            panels.append(
                figures.panel(
                    title,
                    lines,
                    ident=f"s{what[0]}",
                    label=label,
                    value="over their rank",
                    x_scale="log",
                    y_scale="log",
                )
            )
    if panels:
        note = (
            "Shares of the covariance on test images, of the first seed. A flat line "
            "uses all dimensions alike; a steep one, few." + drawn(layout, groups)
        )
        yield _section("Spectra", note, panels, groups)


def _curve(member, start: str, *, top1: bool) -> list[tuple[int, float]] | None:
    curves = member.run.curves if member.run else {}
    fitting = (
        name for name in sorted(curves) if name.startswith(start) and _is(name, top1)
    )
    name = next(fitting, None)
    return curves[name] if name else None


def _is(name: str, top1: bool) -> bool:
    return name.endswith("_top1") if top1 else name == "train/loss"


def _over_steps(
    title: str, lines: Sequence[Line], ident: str, groups: Sequence[Cell]
) -> str:
    ends = sorted(line.points[-1][1] for line in lines)
    label = (
        f"{title} over the step: {len(lines)} runs of {len(groups)} settings end "
        f"between {ends[0]:.4g} and {ends[-1]:.4g}"
    )
    return figures.panel(
        title, lines, ident=ident, label=label, value="over the step", thin=True
    )


def _section(
    title: str,
    note: str,
    panels: Sequence[str],
    groups: Sequence[Cell],
    more: str = "",
) -> str:
    legend = figures.legend(cell.label for cell in groups)
    parts = [legend, page.group("panels", panels)] if panels else []
    return page.section(title, note=note, html=[*parts, more])


def _against_dim(
    cells: Sequence[Cell], quantity: Callable, unit: float
) -> list[tuple[float, float]]:
    points = [
        (float(dim), unit * spread.mean)
        for cell in cells
        if finite(dim := cell.settings.get(names.DIM)) and dim > 0
        if (spread := cell.spread(quantity))
    ]
    return sorted(points)


def _few_logarithmic(values: Sequence[float]) -> list[tuple[float, float]]:
    """Points (rank, value), of which high ranks are sparse as on the axis."""
    last = len(values)
    ranks = (
        {round(last ** (i / 119)) for i in range(120)} if last > 120 else range(last)
    )
    places = (
        sorted(max(1, rank) for rank in ranks) if last > 120 else range(1, last + 1)
    )
    return [(float(rank), values[rank - 1]) for rank in dict.fromkeys(places)]


def _any(cells: Sequence[Cell], quantity: Callable) -> bool:
    return any(cell.spread(quantity) for cell in cells)


def _by_others(layout: Layout) -> dict[str, list[Cell]]:
    """The cells by what they are beside q, in words."""
    others = [axis for axis in layout.axes if axis != names.DIM]
    rows: dict[str, list[Cell]] = {}
    for cell in layout.cells:
        words = [f"{layout.names[k]} = {cell.values[k]}" for k in others]
        rows.setdefault(", ".join(words) or "all runs", []).append(cell)
    return rows
